"""Derivatives of a transport problem from its solution alone, whatever solver found it.

Every problem here has the form: find f and g such that T_ij = ψ(f_i + g_j - R_ij) has the row sums a and
the column sums b, with ψ(x) = exp(x) for an entropy and max(x, 0) for a quadratic term. With W = ψ' at the
solution, the derivatives solve the one linear system

    Σ_j W_ij (df_i + dg_j) = da_i + Σ_j W_ij dR_ij,    Σ_i W_ij (df_i + dg_j) = db_j + Σ_i W_ij dR_ij.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fenchel.operators.transport.problem import Problem, Transport


class Potentials(NamedTuple):
    """f = row + row_step and g = column + column_step.

    The steps are small and carry the derivatives: R - row - column is rounded once, so that the plan keeps
    its marginals where the costs are so large that the sums of potentials would not.
    """

    row: Tensor
    column: Tensor
    row_step: Tensor
    column_step: Tensor

    def slack(self, cost: Tensor) -> Tensor:
        """f_i + g_j - R_ij, in memory of its own."""
        # In place where that can be: new memory costs more here than what is computed with it.
        reduced = (cost - self.row.unsqueeze(-1)).sub_(self.column.unsqueeze(-2))
        return (self.row_step.unsqueeze(-1) + self.column_step.unsqueeze(-2)).sub_(reduced)


class Link(Protocol):
    """One kind of regularisation, in its own units: ψ, which may overwrite its argument, its derivative, and
    a solver."""

    def solve(self, problem: Problem) -> Potentials: ...
    def plan(self, slack: Tensor) -> Tensor: ...
    def slope(self, plan: Tensor) -> Tensor: ...


def solve(problem: Problem, link: Link) -> Potentials:
    """The potentials of a problem, differentiable in its cost and marginals to any order."""
    function = _Implicit if torch.compiler.is_compiling() else _TransformableImplicit
    return Potentials(*function.apply(*problem, link))  # type: ignore[no-untyped-call]


def envelope(value: Tensor, problem: Problem, gradients: Transport) -> Tensor:
    """`value`, with the gradients in cost, a and b that the envelope theorem says: the plan, f and g."""
    function = _Envelope if torch.compiler.is_compiling() else _TransformableEnvelope
    plan, _, f, g, _ = gradients
    found: Tensor = function.apply(value.detach(), *problem, plan, f, g)  # type: ignore[no-untyped-call]
    return found


def residual(plan: Tensor, problem: Problem) -> Tensor:
    """The largest violation of a marginal."""
    rows = (plan.sum(-1) - problem.a).abs().amax(-1)
    return torch.maximum(rows, (plan.sum(-2) - problem.b).abs().amax(-1)).detach()


def centred(f: Tensor, g: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The potentials of which each has half of the dual value."""
    mass = 0.5 * (problem.a.sum(-1) + problem.b.sum(-1))
    shift = ((g * problem.b).sum(-1) - (f * problem.a).sum(-1)) / (2 * mass)
    return f + shift.unsqueeze(-1), g - shift.unsqueeze(-1)


def coupled(weight: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """x, y with Σ_j W_ij (x_i + y_j) = rows_i and Σ_i W_ij (x_i + y_j) = columns_j.

    Every connected part of the bipartite graph of W leaves x + t, y - t free, so that the system is
    singular; the right sides are then in its range. A small multiple of the identity makes it regular, and
    refinement takes its effect away again: x_i + y_j is right wherever W_ij > 0.
    """
    if weight.shape[-2] > weight.shape[-1]:
        y, x = coupled(weight.mT, columns, rows)
        return x, y
    row_scale, column_scale = (_inverse_root(weight.sum(axis)) for axis in (-1, -2))
    normal = row_scale.unsqueeze(-1) * weight * column_scale.unsqueeze(-2)
    gram = normal @ normal.mT
    size = torch.finfo(weight.dtype).eps ** (2 / 3)
    identity = torch.eye(weight.shape[-2], dtype=weight.dtype, device=weight.device)
    factor = torch.linalg.cholesky_ex((1 + size) * identity - gram).L
    right = row_scale * rows - _times(normal, column_scale * columns)
    x = torch.zeros_like(right)
    for _ in range(3):
        left = right - (x - _times(gram, x))
        x = x + torch.cholesky_solve(left.unsqueeze(-1), factor).squeeze(-1)
    y = column_scale * columns - _times(normal.mT, x)
    return row_scale * x, column_scale * y


class _Implicit(torch.autograd.Function):
    """R, a, b → the potentials. `backward` is written in the outputs, so it can be differentiated again."""

    @staticmethod
    def forward(cost: Tensor, a: Tensor, b: Tensor, link: Link) -> tuple[Tensor, ...]:
        return tuple(link.solve(Problem(cost, a, b)))

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Link], output: tuple[Tensor, ...]
    ) -> None:
        cost, _, _, ctx.link = inputs
        ctx.mark_non_differentiable(*output[:2])
        ctx.save_for_backward(cost, *output)
        ctx.save_for_forward(cost, *output)

    @staticmethod
    def backward(ctx: Any, _: None, __: None, rows: Tensor, columns: Tensor) -> tuple[Tensor | None, ...]:
        weight = _weight(ctx)
        x, y = coupled(weight, rows, columns)
        return weight * (x.unsqueeze(-1) + y.unsqueeze(-2)), x, y, None


class _TransformableImplicit(_Implicit):
    """The same with rules for `torch.func`, apart because `torch.compile` refuses such functions."""

    @staticmethod
    def jvp(ctx: Any, cost: Tensor | None, a: Tensor | None, b: Tensor | None, _: None) -> tuple[Any, ...]:
        weight = _weight(ctx)
        rows = weight.new_zeros(weight.shape[:-1]) if a is None else a
        columns = weight.new_zeros(weight.shape[:-2] + weight.shape[-1:]) if b is None else b
        if cost is not None:
            moved = weight * cost
            rows, columns = rows + moved.sum(-1), columns + moved.sum(-2)
        return None, None, *coupled(weight, rows, columns)

    @staticmethod
    def vmap(info: Any, in_dims: Any, cost: Tensor, a: Tensor, b: Tensor, link: Any) -> tuple[Any, Any]:
        problem = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((cost, a, b), in_dims[:3], strict=True)
        ]
        found = _TransformableImplicit.apply(*problem, link)  # type: ignore[no-untyped-call]
        return found, (0, 0, 0, 0)


class _Envelope(torch.autograd.Function):
    """The value as it is; its gradients are those given, whose own derivatives are those of the value."""

    @staticmethod
    def forward(
        value: Tensor, cost: Tensor, a: Tensor, b: Tensor, plan: Tensor, f: Tensor, g: Tensor
    ) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[4:])
        ctx.save_for_forward(*inputs[4:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan, f, g = ctx.saved_tensors
        vector = gradient.unsqueeze(-1)
        return None, vector.unsqueeze(-1) * plan, vector * f, vector * g, None, None, None


class _TransformableEnvelope(_Envelope):
    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, _: None, cost: Tensor | None, a: Tensor | None, b: Tensor | None, *__: Any) -> Tensor:
        plan, f, g = ctx.saved_tensors
        moved: Tensor = plan.new_zeros(plan.shape[:-2])
        if cost is not None:
            moved = moved + (plan * cost).sum((-1, -2))
        for potential, tangent in ((f, a), (g, b)):
            if tangent is not None:
                moved = moved + (potential * tangent).sum(-1)
        return moved


def _weight(ctx: Any) -> Tensor:
    cost, *potentials = ctx.saved_tensors
    weight: Tensor = ctx.link.slope(ctx.link.plan(Potentials(*potentials).slack(cost)))
    return weight


def _inverse_root(x: Tensor) -> Tensor:
    """1/√x, and 0 where x = 0: an empty row takes no part."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).rsqrt(), 0.0)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
