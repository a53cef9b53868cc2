"""Entropic transport: stabilised Sinkhorn scaling, in the log domain where the scalings leave their range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fenchel.checks import looked
from fenchel.kernels.dispatch import implementation
from fenchel.operators.transport.implicit import Potentials, centred, envelope, residual, solve
from fenchel.operators.transport.problem import Problem, Transport, prepare, zeros_out

_CHUNK = 20  # updates between two looks at the marginals


def entropic_transport(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    regularization: float = 0.1,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Transport:
    """The plan of least cost with an entropy: argmin <T, C> + ε KL(T, a bᵀ / M), T >= 0, T1 = a, Tᵀ1 = b.

    The solution is T_ij = a_i b_j exp((f_i + g_j - C_ij) / ε) / M with M = Σa = Σb, found by Sinkhorn's
    updates. They scale the kernel by matrix-vector products; where the scalings leave the range of the
    dtype they are absorbed into the potentials, and the next updates are made on logarithms. `value` is
    the minimum, <f, a> + <g, b>; for M = 1 it is that of the independent plan a bᵀ where ε is large, and
    the transport cost as ε → 0. It is accurate to second order in the error of the potentials.

    `value` has the gradients T in cost, f in a and g in b; they, the plan and the potentials are
    differentiated implicitly, by one linear system of min(m, n) unknowns, to any order, under `torch.func`
    and forward mode too. Marginals move in step (Σda = Σdb). The plan is not differentiated in a mass that
    is zero.

    Args:
        cost: C, (..., m, n), any float dtype; half types are computed in float32. +inf forbids a cell.
        a: masses of the rows, (..., m), at least 0; 1/m each by default.
        b: masses of the columns, (..., n), with the same sum; 1/n each by default. Batch axes broadcast.
        regularization: ε > 0, in the units of the cost.
        iterations: the most updates of both potentials. Under `torch.compile` it is their number.
        tolerance: stop when no marginal is violated by more than this share of M, over the whole batch.
            Derivatives are as exact as the marginals are.

    Returns:
        `Transport`: plan, value, potentials and residual, in the dtype of cost. Every cell that may be used
        is positive, up to underflow.

    Raises:
        InputError: shapes that do not fit; NaN or -inf in cost; marginals that are negative, empty, or of
            different sums (both are quoted); a row or column with mass and no cell; options out of range.
            Values are checked on CPU outside `torch.compile`.

    Example:
        >>> import torch
        >>> found = entropic_transport(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), regularization=1.0)
        >>> found.plan  # the diagonal is 0.5 / (1 + exp(-1))
        tensor([[0.3655, 0.1345],
                [0.1345, 0.3655]])

    Reference:
        Cuturi, 2013, arXiv 1306.0895; Schmitzer, 2019, arXiv 1610.06519 (absorption); Luise, Rudi, Pontil
        and Ciliberto, 2018, arXiv 1805.11897 (implicit derivatives).
    """
    problem = prepare(cost, a, b, regularization, iterations, tolerance)
    log_a, log_b = (torch.where(x > 0, x, 1.0).log() for x in (problem.a, problem.b))
    log_mass = (0.5 * (problem.a.sum(-1) + problem.b.sum(-1))).log().unsqueeze(-1)
    scaled = zeros_out(problem.cost / regularization, problem.a, problem.b)
    link = Scaling(iterations, tolerance)
    found = solve(Problem(scaled, problem.a, problem.b), link)
    plan = link.plan(found.slack(scaled))

    f = regularization * (found.row + found.row_step - log_a + 0.5 * log_mass)
    g = regularization * (found.column + found.column_step - log_b + 0.5 * log_mass)
    f, g = (
        _complete(f, g, problem, log_b - log_mass, regularization),
        _complete(g, f, problem.transposed(), log_a - log_mass, regularization),
    )
    f, g = centred(f, g, problem)
    # The dual objective: exact to second order in the potentials, and the value where they are optimal.
    missing = problem.a.sum(-1) - plan.sum((-1, -2))
    value = (f * problem.a).sum(-1) + (g * problem.b).sum(-1) + regularization * missing
    result = Transport(plan, value, f, g, residual(plan, problem))
    result = result._replace(value=envelope(value, problem, result))
    return Transport(*(x.to(cost.dtype) for x in result))


@dataclass(frozen=True)
class Scaling:
    """Sinkhorn's updates on T_ij = exp(f_i + g_j - R_ij)."""

    iterations: int
    tolerance: float

    def plan(self, slack: Tensor) -> Tensor:
        return slack.exp_()

    def slope(self, plan: Tensor) -> Tensor:
        return plan

    def solve(self, problem: Problem) -> Potentials:
        cost, a, b = problem
        log_a, log_b = a.log(), b.log()
        # The independent plan, where the cost is 0.
        row, column = _finite(log_a), _finite(log_b) - a.sum(-1, keepdim=True).log()
        if torch.compiler.is_compiling():
            for _ in range(self.iterations):
                row, column = _log_update(cost, log_a, log_b, column)
            return Potentials(row, column, torch.zeros_like(a), torch.zeros_like(b))
        # What an empty row or column adds to both sides of its update, which then gives 1.
        spare = [(x == 0).to(x.dtype) for x in (a, b)]
        wanted, other = (x + y for x, y in zip((a, b), spare, strict=True))
        allowed = self.tolerance * a.sum(-1, keepdim=True)
        largest = 20.0 if a.dtype == torch.float32 else 200.0
        done = 0
        while True:
            kernel = torch.sub(row.unsqueeze(-1), cost).add_(column.unsqueeze(-2)).exp_()
            run = implementation("sinkhorn", None, kernel)
            s, t, reached = run(kernel, wanted, other, *spare, torch.ones_like(b), 0)
            while True:
                if done >= self.iterations or bool(((s * reached - wanted).abs() <= allowed).all()):
                    return Potentials(row, column, s.log(), t.log())
                last, updates = (s, t), min(_CHUNK, self.iterations - done)
                s, t, reached = run(kernel, wanted, other, *spare, t, updates)
                if not _within(largest, s, t):
                    break
                done += updates
            s, t = last
            row, column = _log_update(cost, log_a, log_b, column + t.log())
            done += 1


def _log_update(cost: Tensor, log_a: Tensor, log_b: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Both potentials once, exactly; 0 where there is no mass."""
    row = _finite(log_a - torch.logsumexp(column.unsqueeze(-2) - cost, -1))
    return row, _finite(log_b - torch.logsumexp(row.unsqueeze(-1) - cost, -2))


def _finite(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, 0.0)


def _within(largest: float, *scalings: Tensor) -> bool:
    """Whether all of them are between exp(-largest) and exp(largest); NaN is not."""
    low, high = math.exp(-largest), math.exp(largest)
    for x in scalings:
        least, most = x.aminmax() if x.numel() else (x.new_ones(()), x.new_ones(()))
        if not (low < float(least) and float(most) < high):
            return False
    return True


def _complete(f: Tensor, g: Tensor, problem: Problem, log_share: Tensor, regularization: float) -> Tensor:
    """f, with -ε log Σ_j b_j exp((g_j - C_ij) / ε) / M where a_i = 0: such rows are no unknowns."""
    cost, a, b = problem
    if looked(a > 0):
        return f
    exponent = log_share.unsqueeze(-2) + (g.unsqueeze(-2) - cost) / regularization
    there = (b > 0).unsqueeze(-2) & (cost < torch.inf)
    reached = -regularization * torch.logsumexp(torch.where(there, exponent, -torch.inf), -1)
    return torch.where(a > 0, f, _finite(reached))
