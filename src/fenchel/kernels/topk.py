"""Relaxed choices of the k largest in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import BadScores
from fenchel.thresholds import around_cut, decreasing_root, ramp


def topk_mask(x: Tensor, k: int | Tensor, regularization: float, exponent: float) -> Tensor:
    """y_i = min(1, (max(x_i - τ, 0) / l)^e) with τ the root of Σ y = k, for every row.

    Args:
        x: (..., n) in float32 or float64.
        k: a number in [0, n], or numbers (..., 1).
        regularization: l > 0.
        exponent: e >= 1.

    Returns:
        y (..., n).

    Raises:
        BadScores: a row with NaN or inf, or with fewer than k scores above -inf (on CPU, where looking is
            free).
    """
    _check(x, x < torch.inf)
    kth, following = around_cut(x, k)
    _check(x, (kth > -torch.inf) | torch.as_tensor(k == 0, device=x.device))
    kth = torch.where(torch.isfinite(kth), kth, 0.0)
    # In units of l from the k-th score: beyond 1 all is settled, and far beyond it no digit is needed.
    z = ((x - kth) / regularization).clamp(-2, 2)
    high = ((following - kth) / regularization).clamp(-2, 0)
    low = -torch.ones_like(high) if isinstance(k, int) else -(k > 0).to(high.dtype)

    def excess(z: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        mask, slope = ramp(z - threshold, exponent)
        return (_sum(mask) - k) / _size(k), _sum(slope) / _size(k)

    return ramp(z - decreasing_root(excess, z, low, high), exponent)[0]


def topk_magnitude(s: Tensor, k: int | Tensor, regularization: float, exponent: float) -> Tensor:
    """How far magnitudes lie above τ, the root of Σ min(1, (max(s_i - τ, 0) / l)^e / τ) = k, for every row.

    Args:
        s: (..., n), at least 0, in float32 or float64.
        k: a number in [0, n], or numbers (..., 1).
        regularization: l > 0.
        exponent: e >= 1.

    Returns:
        (..., n): max(s_i - τ, 0), and inf for terms of the sum that are 1: these magnitudes are kept as they
        are, as all are where no more than k are above 0.

    Raises:
        BadScores: a row with NaN or inf (on CPU, where looking is free).
    """
    _check(s, s < torch.inf)
    kth, following = around_cut(s, k)
    # All relative to the k-th magnitude. The border of m = 1 is `width` above τ: (width / l)^e = τ.
    scale = torch.where(kth > 0, kth, 1.0)
    strength = regularization * scale ** (1 / exponent - 1)
    # A weak l leaves τ close to the k-th magnitude and a strong one close to 0: from there digits count.
    weak = strength < 1
    origin = weak.to(scale.dtype)
    z = ((s - origin * kth) / scale).clamp(max=torch.finfo(scale.dtype).max ** 0.5)

    def at(z: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tau = origin + threshold
        width = strength * tau ** (1 / exponent)
        return *ramp((z - threshold) / width, exponent), tau, width

    def excess(z: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        # Newton's step is that of τ Σ m - k τ, which is closer to linear in τ than Σ m - k.
        m, growth, tau, width = at(z, threshold)
        whole = _sum(torch.where(growth > 0, 0.0, m))
        # Whole numbers first, so that a little above k is not lost in k.
        value = _sum(torch.where(growth > 0, m, 0.0)) + (whole - k)
        return value / _size(k), ((k - whole) / tau + _sum(growth) / width) / _size(k)

    # A τ below `floor` drops nothing but rounding, nor does τ = 0, where no more than k are above 0.
    floor = torch.full_like(scale, torch.finfo(z.dtype).eps)
    # There the k-th has m = 1; and `width` is at most the strength.
    least = (1 / (2 * strength)).clamp(max=0.5 ** (1 / exponent)) ** exponent
    low = torch.where(weak, torch.maximum(least - 1, -strength), torch.maximum(least, floor))
    dense = ~weak & (excess(z, torch.where(weak, low, floor))[0] <= 0) & (k > 0)
    intact = dense | (following <= 0)
    high = torch.where(intact, 1 - origin, (following - origin * kth) / scale)
    certain = intact | (1 - origin - high > strength * (origin + high) ** (1 / exponent))
    threshold = decreasing_root(excess, z, torch.where(certain, 2.0, low), high)
    m = at(z, threshold)[0]
    return torch.where(intact | (m >= 1), torch.inf, scale * torch.where(m > 0, z - threshold, 0.0))


def _check(x: Tensor, good: Tensor) -> None:
    if not holds(good):
        raise BadScores(int((~good).any(-1).flatten().nonzero()[0]), x.shape)


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def _size(k: int | Tensor) -> int | Tensor:
    """What an error in a sum of k is relative to."""
    return max(k, 1) if isinstance(k, int) else k.clamp(min=1)
