"""What every transport problem accepts and returns: cost, marginals, checks that quote, the result."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fenchel.checks import holds, looked
from fenchel.errors import InputError


class Transport(NamedTuple):
    """A transport plan, its value and its potentials, as the transport operators return them.

    Attributes:
        plan: T >= 0, (..., m, n), with row sums a and column sums b up to `residual`.
        value: the regularised value that the operator names, (...).
        row_potential: (..., m), the gradient of the value in a.
        column_potential: (..., n), the gradient of the value in b. Only sums of the two potentials are
            determined; they are returned with <row_potential, a> = <column_potential, b>.
        residual: the largest violation of a marginal by the plan, (...), in the units of mass.

    Example:
        >>> import torch
        >>> from fenchel import entropic_transport
        >>> found = entropic_transport(torch.zeros(2, 2))
        >>> found.plan
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])

    Reference:
        Cuturi, 2013, arXiv 1306.0895.
    """

    plan: Tensor
    value: Tensor
    row_potential: Tensor
    column_potential: Tensor
    residual: Tensor


class Problem(NamedTuple):
    """Cost and marginals of one batch shape and one dtype of at least float32."""

    cost: Tensor
    a: Tensor
    b: Tensor

    def transposed(self) -> Problem:
        return Problem(self.cost.mT, self.b, self.a)


def prepare(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    regularization: float,
    iterations: int,
    tolerance: float,
) -> Problem:
    """The problem as the solvers want it, checked."""
    if not isinstance(cost, Tensor) or not cost.is_floating_point():
        received = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
        raise InputError(f"cost must be a floating-point tensor, received {received}")
    if cost.dim() < 2 or 0 in cost.shape[-2:]:
        raise InputError(f"cost must be (..., m, n) with m, n >= 1, received shape {tuple(cost.shape)}")
    if not 0 < regularization < float("inf"):
        raise InputError(f"regularization must be positive and finite, received {regularization}")
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, received {iterations}")
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"tolerance must be at least 0 and finite, received {tolerance}")
    dtype = torch.promote_types(cost.dtype, torch.float32)
    rows, columns = cost.shape[-2:]
    first = _marginal(a, rows, "a", cost).to(dtype)
    second = _marginal(b, columns, "b", cost).to(dtype)
    try:
        batch = torch.broadcast_shapes(cost.shape[:-2], first.shape[:-1], second.shape[:-1])
    except RuntimeError:
        raise InputError(
            f"the batch axes of cost {tuple(cost.shape)}, a {tuple(first.shape)} and b {tuple(second.shape)} "
            "do not broadcast"
        ) from None
    problem = Problem(
        cost.to(dtype).expand(*batch, rows, columns),
        first.expand(*batch, rows),
        second.expand(*batch, columns),
    )
    _check_values(problem)
    return problem


def zeros_out(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The cost with +inf where a marginal is zero: such a row or column has no plan."""
    if looked((a > 0).all(-1) & (b > 0).all(-1)):
        return cost
    empty = (a == 0).unsqueeze(-1) | (b == 0).unsqueeze(-2)
    return torch.where(empty, torch.inf, cost)


def _marginal(x: Tensor | None, size: int, name: str, cost: Tensor) -> Tensor:
    if x is None:
        return cost.new_full((size,), 1 / size, dtype=torch.promote_types(cost.dtype, torch.float32))
    if not isinstance(x, Tensor) or not x.is_floating_point():
        received = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{name} must be a floating-point tensor, received {received}")
    if x.dim() == 0 or x.shape[-1] != size:
        raise InputError(
            f"{name} must be (..., {size}) for cost {tuple(cost.shape)}, received shape {tuple(x.shape)}"
        )
    return x


def _check_values(problem: Problem) -> None:
    """Raise InputError where no plan exists, as far as looking is free and the reason is in one line."""
    cost, a, b = (x.detach() for x in problem)
    # One pass, and NaN shows in both.
    finite = cost.numel() and looked(torch.stack(cost.aminmax()).isfinite())
    if not finite and not holds(cost > -torch.inf):  # NaN fails too
        bad = cost[~(cost > -torch.inf)]
        raise InputError(
            f"cost of shape {tuple(cost.shape)} holds {float(bad[0])}; it must be a number, or +inf"
        )
    for name, x in (("a", a), ("b", b)):
        if not holds((x >= 0) & (x < torch.inf)):
            bad = x[~((x >= 0) & (x < torch.inf))]
            raise InputError(f"the marginal {name} must be at least 0 and finite, received {float(bad[0])}")
        if not holds(x.sum(-1) > 0):
            raise InputError(f"the marginal {name} of shape {tuple(x.shape)} has no mass: it sums to zero")
    ours, theirs = a.sum(-1), b.sum(-1)
    agree = (ours - theirs).abs() <= torch.finfo(cost.dtype).eps ** 0.5 * ours
    if not holds(agree):
        i = tuple(torch.nonzero(~agree)[0].tolist())
        raise InputError(
            f"the marginals must have the same mass, received a with sum {float(ours[i]):.10g} and b with "
            f"sum {float(theirs[i]):.10g}; divide each by its sum, in {cost.dtype}"
        )
    if finite or holds(cost < torch.inf):
        return
    allowed = cost < torch.inf
    for name, x, y, axis in (("row", a, b.unsqueeze(-2), -1), ("column", b, a.unsqueeze(-1), -2)):
        reached = (allowed & (y > 0)).any(axis) | (x == 0)
        if not holds(reached):
            place = tuple(torch.nonzero(~reached)[0].tolist())
            raise InputError(
                f"no plan exists: {name} {place} has mass {float(x[place]):.6g}, but cost +inf to all mass"
            )
