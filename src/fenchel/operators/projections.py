"""Euclidean projections onto the simplex, the capped simplex and the permutahedron."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import InputError
from fenchel.operators._inputs import check_finite, check_logits, class_last
from fenchel.operators.isotonic import pool, put_back
from fenchel.operators.softargmax import f_softargmax


def project_simplex(x: Tensor, *, radius: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    """The nearest point of a simplex: argmin ||x - y||² over y >= 0 with Σ y = r.

    y = max(x - τ, 0), with many exact zeros: r times `sparsemax` of x / r. Differentiable in x and r.

    Args:
        x: (..., n, ...), any float dtype; -inf gives 0.
        radius: r > 0: a number, or a tensor that broadcasts to the rows, the shape of x without `dim`.
        dim: the axis along which y sums to r.

    Returns:
        y, the shape and dtype of x.

    Raises:
        InputError: an empty axis, NaN or +inf, a row of all -inf, a radius that is not positive.

    Example:
        >>> import torch
        >>> project_simplex(torch.tensor([1.0, 0.5, -2.0]))
        tensor([0.7500, 0.2500, 0.0000])
        >>> project_simplex(torch.tensor([1.0, 0.5, -2.0]), radius=3.0)
        tensor([1.7500, 1.2500, 0.0000])

    Reference:
        Held, Wolfe and Crowder, 1974; Duchi, Shalev-Shwartz, Singer and Chandra, 2008.
    """
    check_logits(x, dim, name="x")
    rows = class_last(x, dim)
    r = _of_rows(radius, rows, "radius")
    if not holds((r > 0) & (r < torch.inf)):
        raise InputError(
            f"radius must be positive and finite, received {_worst(r, (r > 0) & (r < torch.inf))}"
        )
    # Only differences count, and those of large x survive the division so. A gap of -inf is outside for any
    # r, and has no derivative in it.
    gaps = rows - rows.detach().amax(-1, keepdim=True)
    outside = gaps == -torch.inf
    scaled = torch.where(outside, -torch.inf, torch.where(outside, 0.0, gaps) / r)
    return (r * f_softargmax(scaled, "alpha:2")).movedim(-1, dim).to(x.dtype)


def project_capped_simplex(x: Tensor, total: float | Tensor, *, upper: float = 1.0, dim: int = -1) -> Tensor:
    """The nearest point of a capped simplex: argmin ||x - y||² over 0 <= y <= u with Σ y = k.

    y = min(max(x - τ, 0), u) with τ the root of Σ y = k, found exactly among the sorted points at which an
    entry enters or saturates. Its Jacobian is that of the mean over the entries strictly between; where
    there are none, 0.

    Args:
        x: (..., n, ...), any float dtype; float16 and bfloat16 are computed in float32.
        total: k in [0, n u]: a number, or a tensor that broadcasts to the rows, the shape of x without `dim`.
        upper: u > 0.
        dim: the axis along which y sums to k.

    Returns:
        y, the shape and dtype of x.

    Raises:
        InputError: an empty axis, values that are not finite, u not positive, k out of range or of a shape
            that does not broadcast.

    Example:
        >>> import torch
        >>> project_capped_simplex(torch.tensor([2.0, 0.5, 0.25, -1.0]), 1.5)
        tensor([1.0000, 0.3750, 0.1250, 0.0000])

    Reference:
        Wang and Lu, 2015, arXiv 1503.01002.
    """
    check_finite(x, dim)
    if not 0 < upper < float("inf"):
        raise InputError(f"upper must be positive and finite, received {upper}")
    rows = class_last(x, dim)
    k, most = _of_rows(total, rows, "total"), rows.shape[-1] * upper
    if not holds(possible := (k >= 0) & (k <= most)):
        raise InputError(
            f"total must lie in [0, n * upper] = [0, {most}] for n = {rows.shape[-1]}, "
            f"received {_worst(k, possible)}"
        )

    # As τ falls Σ y grows piecewise linearly: faster by one once an entry enters, slower once one is full.
    with torch.no_grad():
        points, order = torch.cat([rows, rows - upper], -1).sort(-1, descending=True)
        n = rows.shape[-1]
        slopes = torch.where(order < n, 1, -1).cumsum(-1)
        sums = torch.nn.functional.pad((-slopes[..., :-1] * points.diff(dim=-1)).cumsum(-1), (1, 0))
        pieces = ((sums <= k).sum(-1, keepdim=True) - 1).clamp_min(0)
        pivot = points.gather(-1, pieces)
        below = (k - sums.gather(-1, pieces)) / slopes.gather(-1, pieces).clamp_min(1)
    # From the point below which τ lies, so that the digits of large x survive. The steps mend the rounding of
    # the sums, and the derivative of the last is that of the root.
    from_pivot = rows - pivot
    for _ in range(2):
        below = below.detach()
        y = from_pivot + below
        free = ((y > 0) & (y < upper)).sum(-1, keepdim=True)
        step = (k - _clip(y, upper).sum(-1, keepdim=True)) / free.clamp_min(1)
        below = below + torch.where(free > 0, step, 0.0)
    return _clip(from_pivot + below, upper).movedim(-1, dim).to(x.dtype)


def project_permutahedron(
    x: Tensor,
    w: Tensor | None = None,
    *,
    solver: str = "pav",
    iterations: int = 500,
    dim: int = -1,
    impl: str = "auto",
) -> Tensor:
    """The nearest point of the permutahedron of w, the convex hull of all orders of its entries.

    With s = x sorted to fall, the projection is s - v, put back in the order of x, where v is the falling
    sequence nearest to s - w. Differentiable in x and w.

    Args:
        x: (..., n, ...), any float dtype; float16 and bfloat16 are computed in float32.
        w: (n,), in any order; by default n, n - 1, ..., 1.
        solver: "pav" or "dykstra", see `isotonic_regression`.
        iterations: of "dykstra".
        dim: the axis of the entries.
        impl: which implementation of "pav" runs; see `fenchel.which`.

    Returns:
        y, the shape and dtype of x; Σ y = Σ w.

    Raises:
        InputError: an empty axis, values that are not finite, w of another size, an unknown solver.

    Example:
        >>> import torch
        >>> project_permutahedron(torch.tensor([10.0, 30.0, 20.0]))
        tensor([1., 3., 2.])
        >>> project_permutahedron(torch.tensor([0.0, 0.5, 4.0]))
        tensor([1.2500, 1.7500, 3.0000])

    Reference:
        Lim and Wright, 2016 (Efficient Bregman projections onto the permutahedron); Blondel, Teboul, Berthet
        and Djolonga, 2020, arXiv 2002.08871.
    """
    check_finite(x, dim)
    rows = class_last(x, dim)
    n = rows.shape[-1]
    if w is None:
        weights = ranks(n, rows)
    else:
        check_finite(w, -1, name="w")
        if w.shape != (n,):
            raise InputError(f"w must have shape ({n},) for x {tuple(x.shape)}, received {tuple(w.shape)}")
        weights = w.to(rows.dtype).sort(descending=True).values
    y = onto_permutahedron("mean", rows, weights, solver=solver, iterations=iterations, impl=impl)
    return y.movedim(-1, dim).to(x.dtype)


def ranks(n: int, like: Tensor) -> Tensor:
    """n, n - 1, ..., 1 in the dtype and on the device of `like`."""
    return torch.arange(n, 0, -1, dtype=like.dtype, device=like.device)


def onto_permutahedron(
    kind: str, x: Tensor, w: Tensor, *, solver: str = "pav", iterations: int = 500, impl: str = "auto"
) -> Tensor:
    """`project_in_order` for x (..., n) in any order."""
    s, order = x.sort(-1, descending=True)
    y = project_in_order(kind, s, w, solver=solver, iterations=iterations, impl=impl)
    return put_back(y, order)


def project_in_order(
    kind: str, s: Tensor, w: Tensor, *, solver: str = "pav", iterations: int = 500, impl: str = "auto"
) -> Tensor:
    """s - v for falling s and w: the Euclidean projection of s onto the permutahedron of w for kind "mean";
    for "entropic" the logarithm of the KL projection of exp(s) onto that of exp(w).

    It is w + (s - w) - v, so that an entry that is its own block is w exactly.
    """
    apart = s - w
    if kind == "mean":
        v = pool(kind, apart, solver=solver, iterations=iterations, impl=impl)
    else:
        v = pool(kind, *torch.broadcast_tensors(s, w), solver=solver, iterations=iterations, impl=impl)
    return w + (apart - v)


def _clip(y: Tensor, upper: float) -> Tensor:
    """y in [0, upper], constant at both ends, where `clamp` would have a derivative."""
    return torch.where((y > 0) & (y < upper), y, y.detach().clamp(0, upper))


def _of_rows(value: float | Tensor, rows: Tensor, name: str) -> Tensor:
    """A number or a tensor of the rows, as (..., 1)."""
    tensor = torch.as_tensor(value, dtype=rows.dtype, device=rows.device)
    try:
        return tensor.expand(rows.shape[:-1]).unsqueeze(-1)
    except RuntimeError:
        wanted, received = tuple(rows.shape[:-1]), tuple(tensor.shape)
        raise InputError(f"{name} must broadcast to the rows {wanted}, received shape {received}") from None


def _worst(x: Tensor, good: Tensor) -> float:
    return float(x.detach()[~good].flatten()[0])
