"""The Sinkhorn divergence between two weighted clouds of points."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.errors import InputError
from fenchel.losses.reduce import reduce
from fenchel.operators.transport import entropic_transport


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    regularization: float = 0.1,
    norm: float = 2.0,
    power: float = 2.0,
    iterations: int = 1000,
    tolerance: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """S(α, β) = OT(α, β) - OT(α, α) / 2 - OT(β, β) / 2, entropic transport without its bias.

    OT(α, β) = min_T <T, C> + ε KL(T, a bᵀ / M) with C_ij = ||x_i - y_j||^power, as `entropic_transport`.
    α = Σ a_i δ(x_i) and β = Σ b_j δ(y_j). S >= 0, and S = 0 if and only if α = β, in whatever order the
    points come. It tends to the transport cost as ε → 0 and to a maximum mean discrepancy as ε → ∞.

    Differentiable once in points and masses, by the envelope theorem: exact up to the residual of the
    marginals, in memory that does not grow with the iterations.

    Args:
        x: points, (..., m, d), any float dtype; half types are computed in float32.
        y: points, (..., n, d), with the same batch axes.
        a: masses of x, (..., m), at least 0; 1/m each by default.
        b: masses of y, (..., n), with the same sum; 1/n each by default.
        regularization: ε > 0, in the units of the cost.
        norm: the order of the norm, in [1, 2].
        power: of the distance, in (0, norm]: S >= 0 needs exp(-C/ε) positive definite.
        iterations: the most updates, as in `entropic_transport`.
        tolerance: the share of the mass by which a marginal may be missed.
        reduction: "mean" or "sum" over the batch axes, or "none".

    Returns:
        The divergence, a scalar, or (...) for "none", in the dtype of x.

    Raises:
        InputError: points of different dimension or dtype kind, options out of range, or as
            `entropic_transport`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> round(float(sinkhorn_divergence(x, x.flip(0))), 6)  # the same points in another order
        0.0
        >>> round(float(sinkhorn_divergence(x, x + 2)), 4)  # a shift costs its square
        8.0

    Reference:
        Feydy et al., 2019, arXiv 1810.08278; Genevay, Peyré and Cuturi, 2018, arXiv 1706.00292.
    """
    for name, points in (("x", x), ("y", y)):
        if not isinstance(points, Tensor) or not points.is_floating_point():
            received = points.dtype if isinstance(points, Tensor) else type(points).__name__
            raise InputError(f"{name} must be a floating-point tensor of points, received {received}")
    if min(x.dim(), y.dim()) < 2 or (x.shape[:-2], x.shape[-1]) != (y.shape[:-2], y.shape[-1]):
        raise InputError(
            "x must be (..., m, d) and y (..., n, d) with the same batch axes and d, received "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not 1 <= norm <= 2:
        raise InputError(f"norm must be in [1, 2], received {norm}")
    if not 0 < power <= norm:
        raise InputError(f"power must be in (0, norm] = (0, {norm}], received {power}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    first, second = x.to(dtype), y.to(dtype)

    def transport(u: Tensor, v: Tensor, mass: Tensor | None, other: Tensor | None) -> Tensor:
        # Not by matrix products, which lose the digits of small distances.
        distance = torch.cdist(u, v, p=norm, compute_mode="donot_use_mm_for_euclid_dist")
        cost = distance if power == 1 else distance.pow(power)
        return entropic_transport(
            cost, mass, other, regularization=regularization, iterations=iterations, tolerance=tolerance
        ).value

    biases = 0.5 * (transport(first, first, a, a) + transport(second, second, b, b))
    values = transport(first, second, a, b) - biases
    return reduce(values, reduction=reduction).to(x.dtype)
