"""Thresholds of rows: the root of a decreasing function, found safely and differentiated exactly; the cut
of the k largest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fenchel.checks import looked

MAX_STEPS = {torch.float32: 28, torch.float64: 40}  # six are usual; the most found in a search is 38
TOLERANCE = 8  # in units of the rounding error of the type

Excess = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def decreasing_root(excess: Excess, scores: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The root t of a decreasing function of t in [low, high], and `high` where low > high.

    Newton's method that keeps within the bracket finds it without gradients. Two more steps of Newton are
    differentiable: at the root each doubles the order of derivatives that are exact, so that the first and
    second derivatives are those of the implicit function, under every transformation.

    Args:
        excess: (scores, t) → the function, relative to the sizes that it is the difference of, and minus
            its derivative in t; both (..., 1).
        scores: (..., n), what t depends on.
        low: (..., 1), where the function is not negative; no gradient.
        high: (..., 1), where it is not positive; no gradient.

    Returns:
        t (..., 1).
    """
    settled = low > high
    root = _search(excess, scores.detach(), low, high)
    for _ in range(2):
        value, slope = excess(scores, root)
        still = settled | (slope <= 0)
        root = root + torch.where(still, 0.0, value / torch.where(still, 1.0, slope))
    return root


def _search(excess: Excess, scores: Tensor, low: Tensor, high: Tensor) -> Tensor:
    settled, root, step = low > high, high, high - low
    tolerance = TOLERANCE * torch.finfo(scores.dtype).eps
    for _ in range(MAX_STEPS[scores.dtype]):
        value, slope = excess(scores, root)
        newton = root + value / torch.where(slope > 0, slope, 1.0)
        low, high = torch.where(value >= 0, root, low), torch.where(value <= 0, root, high)
        change = (newton - root).abs()
        exact = (value.abs() <= tolerance) | ((slope > 0) & (change <= tolerance * root.abs()))
        if looked(settled | exact):
            break
        # Steps that do not shrink fast may go round a kink: the bracket is halved instead.
        good = (slope > 0) & (newton >= low) & (newton <= high) & (2 * change <= step)
        step = torch.where(good, change, high - low)
        root = torch.where(settled, root, torch.where(good, newton, (low + high) / 2))
    return root


def around_cut(x: Tensor, k: int | Tensor) -> tuple[Tensor, Tensor]:
    """The k-th largest of every row and the one after it, without derivatives.

    Args:
        x: (..., n).
        k: a number in [0, n], or numbers (..., 1).

    Returns:
        The k-th largest (..., 1), the largest for k = 0; the one after it (..., 1), -inf for k = n.
    """
    n, x = x.shape[-1], x.detach()
    if isinstance(k, int):
        ordered = x.topk(min(k + 1, n), -1).values
        kth = ordered[..., max(k - 1, 0)].unsqueeze(-1)
        return kth, ordered[..., -1:] if k < n else torch.full_like(kth, -torch.inf)
    ordered = x.sort(-1, descending=True).values
    following = torch.where(k < n, ordered.gather(-1, k.clamp(0, n - 1)), -torch.inf)
    return ordered.gather(-1, (k - 1).clamp(0, n - 1)), following


def ramp(ratio: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """min(1, max(ratio, 0)^exponent) and its derivative, each with finite derivatives of its own."""
    inner = (ratio > 0) & (ratio <= 1)
    safe = torch.where(inner, ratio, 1.0)
    value = torch.where(inner, safe**exponent, (ratio > 1).to(ratio.dtype))
    return value, torch.where(inner, exponent * safe ** (exponent - 1), 0.0)
