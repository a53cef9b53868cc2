"""Quadratic transport, of which sparse transport is the case of few nonzeros a column."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fenchel.checks import looked
from fenchel.operators.transport.ascent import adam, lbfgs
from fenchel.operators.transport.implicit import Potentials, centred, envelope, residual, solve
from fenchel.operators.transport.problem import Problem, Transport, prepare, zeros_out

# The problem is solved for larger regularisation first, each time divided by this.
_RATIO = 4.0
_COARSE_STEPS, _NEWTON_STEPS, _LAST_NEWTON_STEPS = 100, 30, 100


def quadratic_transport(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    regularization: float = 0.1,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Transport:
    """The plan of least cost with a squared norm: argmin <T, C> + γ/2 ||T||², T >= 0, T1 = a, Tᵀ1 = b.

    The solution is T_ij = max(f_i + g_j - C_ij, 0) / γ, with many cells exactly zero. The potentials
    maximise <f, a> + <g, b> - Σ max(f_i + g_j - C_ij, 0)² / 2γ, concave and quadratic in pieces: L-BFGS
    comes near, and a damped Newton method on f, with g exact, ends at the solution of the last piece up to
    rounding. `value` is the minimum.

    `value` has the gradients T in cost, f in a and g in b; they, the plan and the potentials are
    differentiated implicitly, by one linear system of min(m, n) unknowns, under `torch.func` too. The plan
    is linear in pieces, so that its second derivatives are zero where they exist. Potentials are
    determined up to a constant in each connected part of the plan, and their derivatives too. Marginals
    move in step (Σda = Σdb).

    Args:
        cost: C, (..., m, n), any float dtype; half types are computed in float32. +inf forbids a cell.
        a: masses of the rows, (..., m), at least 0; 1/m each by default.
        b: masses of the columns, (..., n), with the same sum; 1/n each by default. Batch axes broadcast.
        regularization: γ > 0, in units of cost per mass: what matters is γ T against the cost, so that the
            same sparsity takes a γ in proportion to m n / M.
        iterations: the most steps of L-BFGS. Newton's steps end it, at most 100 of them.
        tolerance: stop when no marginal is violated by more than this share of M, over the whole batch.

    Returns:
        `Transport`: plan, value, potentials and residual, in the dtype of cost.

    Raises:
        InputError: as `entropic_transport`. The iterations look at values, so that `torch.compile` breaks
            its graph here.

    Example:
        >>> import torch
        >>> found = quadratic_transport(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), regularization=4.0)
        >>> found.plan  # 1/4 ± 1 / (2 γ)
        tensor([[0.3750, 0.1250],
                [0.1250, 0.3750]])

    Reference:
        Blondel, Seguy and Rolet, 2018, arXiv 1710.06276; Lorenz, Manns and Meyer, 2021, arXiv 1903.01112
        (semismooth Newton).
    """
    problem = prepare(cost, a, b, regularization, iterations, tolerance)
    link = TopColumns(None, True, iterations, tolerance)
    return solve_quadratic(problem, link, regularization, cost.dtype)


@dataclass(frozen=True)
class TopColumns:
    """T_ij = max(f_i + g_j - R_ij, 0) for the k largest of each column, or for all where k is None."""

    k: int | None
    semidual: bool
    iterations: int
    tolerance: float

    def plan(self, slack: Tensor) -> Tensor:
        if self.k is None:
            return slack.relu()
        top, index = slack.topk(self.k, -2)
        return torch.zeros_like(slack).scatter(-2, index, top.relu())

    def slope(self, plan: Tensor) -> Tensor:
        return (plan > 0).to(plan.dtype)

    def solve(self, problem: Problem) -> Potentials:
        cost, a, b = problem
        if a.numel() == 0:
            return Potentials(a.clone(), b.clone(), torch.zeros_like(a), torch.zeros_like(b))
        row = torch.zeros_like(a)
        levels = _levels(problem)
        for level in range(levels, 0, -1):
            scaled = problem._replace(cost=cost / _RATIO**level)
            row = self._maximum(scaled, row, _COARSE_STEPS, _NEWTON_STEPS, 1e-2 / max(cost.shape[-2:]))
            row = _RATIO * row
        row = self._maximum(problem, row, self.iterations, _LAST_NEWTON_STEPS, self.tolerance)
        if self.k is not None:
            row = self._past_kinks(problem, row)
        return self._refined(problem, row)

    def _refined(self, problem: Problem, row: Tensor) -> Potentials:
        """Steps that mend what rounding the potentials, in the units of the cost, does to the marginals."""
        cost, a, b = problem
        # Each column of the reduced cost is at least 0, and exactly 0 somewhere.
        column = torch.where(b > 0, (cost - row.unsqueeze(-1)).amin(-2), 0.0)
        reduced = problem._replace(cost=cost - row.unsqueeze(-1) - column.unsqueeze(-2))
        still = torch.zeros_like(a)
        row_step = self._maximum(reduced, still, _COARSE_STEPS, _NEWTON_STEPS, self.tolerance)
        # Where the cost leaves no digit for the mass, the steps have none either.
        missed, missed_still = (self._missed(reduced, x) for x in (row_step, still))
        row_step = torch.where((missed <= missed_still).unsqueeze(-1), row_step, 0.0)
        return Potentials(row, column, row_step, self._columns(reduced, row_step)[0])

    def _maximum(
        self, problem: Problem, row: Tensor, steps: int, last_steps: int, tolerance: float
    ) -> Tensor:
        """The row potentials at the maximum, from a guess."""
        cost, a, b = problem
        m, allowed = a.shape[-1], tolerance * a.sum(-1, keepdim=True)

        def semidual(row: Tensor) -> tuple[Tensor, Tensor]:
            _, plan, value = self._columns(problem, row)
            return value, a - plan.sum(-1)

        def dual(both: Tensor) -> tuple[Tensor, Tensor]:
            row, column = both[..., :m], both[..., m:]
            plan = self.plan(row.unsqueeze(-1) + column.unsqueeze(-2) - cost)
            gradient = torch.cat([a - plan.sum(-1), b - plan.sum(-2)], -1)
            return _dual_value(problem, row, column, plan), gradient

        def enough(gradient: Tensor) -> bool:
            return bool((gradient.abs() <= allowed).all())

        # All columns at once are exact only by sorting; for them the dual is the faster way to the same.
        if self.semidual and self.k is not None:
            row = lbfgs(semidual, row, iterations=steps, enough=enough)
        else:
            start = torch.cat([row, self._columns(problem, row)[0]], -1)
            row = lbfgs(dual, start, iterations=steps, enough=enough)[..., :m]
        return self._newton(problem, row, last_steps, tolerance)

    def _past_kinks(self, problem: Problem, row: Tensor) -> Tensor:
        """Nearer to a maximum which lies where the selection of the k largest changes."""
        a, b = problem.a, problem.b
        allowed = self.tolerance * a.sum(-1, keepdim=True)

        def semidual(row: Tensor) -> tuple[Tensor, Tensor]:
            _, plan, value = self._columns(problem, row)
            return value, a - plan.sum(-1)

        def enough(gradient: Tensor) -> bool:
            return bool((gradient.abs() <= allowed).all())

        # In these units a potential and a cell of the plan are of one size.
        return adam(semidual, row, size=0.5 * b.mean(-1), iterations=self.iterations, enough=enough)

    def _columns(self, problem: Problem, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The column potentials which give the plan its column sums, the plan, and the semi-dual's value."""
        cost, _, b = problem
        scores = (row.unsqueeze(-1) - cost).mT
        top = scores.topk(self.k or scores.shape[-1], -1).values
        excess = top.cumsum(-1) - b.unsqueeze(-1)
        count = torch.arange(1, top.shape[-1] + 1, dtype=top.dtype, device=top.device)
        support = (top * count > excess).sum(-1, keepdim=True).clamp(min=1)
        # A column without mass has no cell.
        column = torch.where(b > 0, -(excess.gather(-1, support - 1) / support).squeeze(-1), 0.0)
        plan = self.plan(row.unsqueeze(-1) + column.unsqueeze(-2) - cost)
        return column, plan, _dual_value(problem, row, column, plan)

    def _missed(self, problem: Problem, row: Tensor) -> Tensor:
        """By how much both marginals are violated, in all."""
        _, a, b = problem
        plan = self._columns(problem, row)[1]
        return (a - plan.sum(-1)).abs().sum(-1) + (b - plan.sum(-2)).abs().sum(-1)

    def _newton(self, problem: Problem, row: Tensor, steps: int, tolerance: float) -> Tensor:
        """Newton's method on the semi-dual, damped as Levenberg and Marquardt do; never worse than `row`."""
        _, a, _ = problem
        allowed = tolerance * a.sum(-1)
        damping = torch.full_like(allowed, 1e-2)
        _, plan, value = self._columns(problem, row)
        for _ in range(steps):
            gradient = a - plan.sum(-1)
            error = gradient.abs().amax(-1)
            if bool(((error <= allowed) | (damping > 1e8)).all()):
                break
            active = self.slope(plan)
            counts = active.sum(-1)
            hessian = counts.diag_embed() - (active / active.sum(-2, keepdim=True).clamp(min=1)) @ active.mT
            # A row that is empty has no curvature of its own; damping moves it.
            shift = damping.unsqueeze(-1) * counts.clamp(min=0.1) + torch.finfo(a.dtype).eps ** 0.6
            direction = torch.linalg.solve(hessian + shift.diag_embed(), gradient)
            trial = row + direction
            _, ahead, trial_value = self._columns(problem, trial)
            curved = (hessian @ direction.unsqueeze(-1)).squeeze(-1)
            foreseen = (direction * (gradient - 0.5 * curved)).sum(-1)
            share = (trial_value - value) / foreseen
            # Close to the maximum values differ by rounding alone, and the marginals decide.
            rounding = 64 * torch.finfo(a.dtype).eps * value.abs()
            closer = (a - ahead.sum(-1)).abs().amax(-1) < 0.5 * error
            accepted = (share > 0.1) | (closer & (trial_value >= value - rounding))
            row = torch.where(accepted.unsqueeze(-1), trial, row)
            plan = torch.where(accepted.unsqueeze(-1).unsqueeze(-1), ahead, plan)
            value = torch.where(accepted, trial_value, value)
            eased = torch.where(share > 0.7, damping / 10, torch.where(share < 0.3, 2 * damping, damping))
            damping = torch.where(
                accepted, torch.where(closer, damping / 10, eased).clamp(min=1e-12), 5 * damping
            )
        return row


def solve_quadratic(
    problem: Problem, link: TopColumns, regularization: float, dtype: torch.dtype
) -> Transport:
    """The transport of a link, in the units of the cost and in `dtype`."""
    if link.k is None and problem.a.shape[-1] > problem.b.shape[-1]:  # Newton's systems are those of the rows
        plan, value, g, f, missed = solve_quadratic(problem.transposed(), link, regularization, dtype)
        return Transport(plan.mT, value, f, g, missed)
    scaled = zeros_out(problem.cost / regularization, problem.a, problem.b)
    found = solve(Problem(scaled, problem.a, problem.b), link)
    plan = link.plan(found.slack(scaled))
    f = regularization * (found.row + found.row_step)
    g = regularization * (found.column + found.column_step)
    if not looked((problem.a > 0).all(-1) & (problem.b > 0).all(-1)):
        # Without mass the largest potential that leaves the plan empty: the gradient in a mass that grows.
        free = torch.where((problem.b > 0).unsqueeze(-2), problem.cost - g.unsqueeze(-2), torch.inf)
        f = torch.where(problem.a > 0, f, _finite(free.amin(-1)))
        g = torch.where(problem.b > 0, g, _finite((problem.cost - f.unsqueeze(-1)).amin(-2)))
    f, g = centred(f, g, problem)
    value = _dual_value(problem, f, g, plan, regularization)
    result = Transport(plan, value, f, g, residual(plan, problem))
    result = result._replace(value=envelope(value, problem, result))
    return Transport(*(x.to(dtype) for x in result))


def _dual_value(problem: Problem, f: Tensor, g: Tensor, plan: Tensor, regularization: float = 1.0) -> Tensor:
    squares = plan.square().sum((-1, -2))
    return (f * problem.a).sum(-1) + (g * problem.b).sum(-1) - 0.5 * regularization * squares


def _levels(problem: Problem) -> int:
    """How many larger regularisations to solve for first: until most cells of the plan are positive."""
    cost, a, _ = problem
    cells = torch.isfinite(cost)
    top = torch.where(cells, cost, -torch.inf).amax((-1, -2))
    spread = top - torch.where(cells, cost, torch.inf).amin((-1, -2))
    sharpness = 0.005 * float((spread / a.sum(-1)).max()) * min(cost.shape[-2:])
    return max(0, math.ceil(math.log(sharpness, _RATIO))) if sharpness > 0 else 0


def _finite(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, 0.0)
