"""Dense relaxations of the top-k mask: by noise, and by entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.errors import InputError
from fenchel.operators._inputs import check_temperature
from fenchel.operators.topk import around
from fenchel.thresholds import TOLERANCE, decreasing_root


def perturbed_topk_mask(
    scores: Tensor,
    k: int,
    *,
    sigma: float = 0.1,
    samples: int = 100,
    generator: torch.Generator | None = None,
    dim: int = -1,
) -> Tensor:
    """The mean of hard masks of noisy scores, an estimate of E[topk(x + σ Z)] with Z standard normal.

    The gradient is that of the expectation, estimated without bias from the same samples: the covariance
    of masks and noise, ∂E[y_i]/∂x_j = Cov(y_i, Z_j) / σ, about the sample mean, which removes most of its
    variance. First derivatives only. Time and memory O(samples · n) a row.

    Args:
        scores: x, shape (..., n, ...), any float dtype. A score of -inf is never chosen.
        k: how many to choose, 0 <= k <= n.
        sigma: the standard deviation of the noise, > 0, in the units of the scores.
        samples: how many masks are averaged, at least 2.
        generator: of the noise, on the device of scores; by default that of torch.
        dim: the axis to choose along.

    Returns:
        y in [0, 1], the shape and dtype of scores, with sum k along `dim`; a multiple of 1 / samples.

    Raises:
        InputError: k, sigma or samples out of range; a row with fewer than k scores above -inf; NaN or
            +inf among the scores (looked at on CPU only).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> perturbed_topk_mask(torch.tensor([5.0, 0.0, 3.0]), 2, generator=generator)
        tensor([1., 0., 1.])
        >>> y = perturbed_topk_mask(torch.zeros(4), 1, samples=10_000, generator=generator)
        >>> bool((y - 0.25).abs().max() < 0.02)
        True

    Reference:
        Berthet, Blondel, Teboul, Cuturi, Vert and Bach, 2020, arXiv 2002.08676.
    """
    if not 0 < sigma < float("inf"):
        raise InputError(f"sigma must be positive and finite, received {sigma}")
    if samples < 2:
        raise InputError(f"samples must be at least 2, for their covariance, received {samples}")
    if isinstance(k, Tensor):
        raise InputError("k must be an integer, the same for every row, received a tensor")
    rows = around(scores, k, dim)
    x = rows.x
    noise = torch.randn((samples, *x.shape), generator=generator, dtype=x.dtype, device=x.device)
    chosen = (x.detach() + sigma * noise).topk(k, -1, sorted=False).indices
    masks = torch.zeros_like(noise).scatter(-1, chosen, 1.0)
    mean = masks.mean(0)
    # Nothing in value; its derivative is the estimate above.
    movement = torch.where(torch.isfinite(x), x - x.detach(), 0.0)
    pull = (noise * movement).sum(-1, keepdim=True) / (sigma * (samples - 1))
    y = mean + ((masks - mean) * pull).sum(0)
    return y.movedim(-1, dim).to(scores.dtype)


def entropic_topk_mask(scores: Tensor, k: int | Tensor, *, temperature: float = 0.1, dim: int = -1) -> Tensor:
    """The dense mask argmax_y <x, y> + T Σ H(y_i) over Σ y = k, H the entropy of a coin: sigmoids.

    y_i = 1 / (1 + exp(-(x_i - τ) / T)) with τ the root of Σ y = k. It is what entropic optimal transport
    from the scores to {chosen, not chosen} gives in the limit of its iterations. Differentiable to second
    order, under `torch.func` and `torch.compile` too.

    Args:
        scores: x, shape (..., n, ...), any float dtype; float16 and bfloat16 are computed in float32. A
            score of -inf is never chosen.
        k: how many to choose, 0 <= k <= n: a number, or an integer tensor of the shape of scores without
            `dim`.
        temperature: T > 0, in the units of the scores.
        dim: the axis to choose along.

    Returns:
        y in (0, 1), or in {0, 1} where k leaves no choice, the shape and dtype of scores, with sum k.

    Raises:
        InputError: k or T out of range; a row with fewer than k scores above -inf; NaN or +inf among the
            scores (looked at on CPU only).

    Example:
        >>> import torch
        >>> entropic_topk_mask(torch.tensor([1.0, 0.0, -1.0, 0.0]), 2, temperature=1.0)
        tensor([0.7311, 0.5000, 0.2689, 0.5000])

    Reference:
        Xie, Dai, Chen, Dai, Zhao, Zha, Wei and Pfister, 2020, arXiv 2002.06504 (by transport); the form
        without iterations is that of a projection onto the hypersimplex.
    """
    check_temperature(temperature)
    rows = around(scores, k, dim)
    n = rows.x.shape[-1]
    k = torch.as_tensor(rows.k, dtype=rows.x.dtype, device=rows.x.device)
    size = k.clamp(min=1)
    finite = torch.isfinite(rows.following)
    kth = torch.where(torch.isfinite(rows.kth), rows.kth, 0.0)
    z = (rows.x - kth) / temperature
    # k + 1 scores are no less than the following one, and n - k + 1 no more than the k-th.
    low = torch.where(finite, (rows.following - kth) / temperature, 0.0) - size.log()
    high = (n - k).clamp(min=1).log().expand_as(low)

    def excess(z: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.sigmoid(z - threshold)
        slope = (y * (1 - y)).sum(-1, keepdim=True) / size
        # Across a wide gap the sum is flat, and differs from k by rounding only.
        flat = TOLERANCE * torch.finfo(z.dtype).eps
        return (y.sum(-1, keepdim=True) - k) / size, slope.clamp(min=flat)

    y = torch.sigmoid(z - decreasing_root(excess, z, low, high))
    # Where k leaves no choice, the threshold is infinite.
    y = torch.where(k < 1, 0.0, torch.where(finite, y, torch.isfinite(z).to(z.dtype)))
    return y.movedim(-1, dim).to(scores.dtype)
