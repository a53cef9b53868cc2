"""The engine: one record in, the f-softargmax, its value and its threshold out, with derivatives.

    softmax_f(θ; q) = max_{p in simplex} <p, θ> - D_f(p, q) = min_τ τ + Σ_j q_j f*(max(θ_j - τ, f'(0)))

The unknown is not τ but U = p_J/q_J, the density ratio of the class with the highest score; every other
ratio is `shift(U, gap_j)` with gap_j = θ_max - θ_j >= 0, and U is the root of S(U) = Σ q_j u_j = 1. Sums
of gaps replace differences of large numbers, so the digits survive scores of 1e30 and small q.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences.solution import conjugate, sensitivities
from fenchel.kernels.dispatch import implementation

Optional = Tensor | None


def solve(
    scores: Tensor, q: Optional, record: FDivergence, impl: str = "auto", with_value: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The solution in the form that keeps all digits; the losses build on it.

    Args:
        scores: (..., V) in float32 or float64.
        q: None for the unit measure, or the shape of scores.
        record: the divergence.
        impl: which implementation finds it, see `fenchel.which`.
        with_value: whether the value is wanted; if not, it may be NaN.

    Returns:
        p (..., V); value - top and τ - top (...), the value with f centred (without the constant
        -f(0) Σq, see `FDivergence.gauge`); top = max θ (...), constant under differentiation.

    Raises:
        BadScores: a row cannot be normalised (on CPU, where looking is free).
    """
    function = _Solution if torch.compiler.is_compiling() else _TransformableSolution
    solution: tuple[Tensor, Tensor, Tensor, Tensor]
    solution = function.apply(scores, q, record, impl, with_value)  # type: ignore[no-untyped-call]
    return solution


class _Solution(torch.autograd.Function):
    """θ, q → p, softmax_f - max θ, τ - max θ, with derivatives of every order written in p and q.

    The saved p is itself an output, so differentiating `backward` again reaches this function again:
    that gives exact second derivatives without differentiating the solver.
    """

    @staticmethod
    def forward(
        scores: Tensor, q: Optional, record: FDivergence, impl: str, with_value: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor, Tensor]
        run = implementation("softargmax", record, scores, q, impl=impl)
        found = run(scores, q, record, with_value)
        return found

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, Optional, FDivergence, str, bool],
        output: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        _, q, ctx.record, ctx.impl, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[3])
        ctx.save_for_backward(output[0], q)
        ctx.save_for_forward(output[0], q)

    @staticmethod
    def backward(
        ctx: Any, grad_p: Optional, grad_value: Optional, grad_threshold: Optional, _: None
    ) -> tuple[Optional, Optional, None, None, None]:
        p, q = ctx.saved_tensors
        grads = (grad_p, grad_value, grad_threshold)
        # A backward pass that will itself be differentiated is written in differentiable operations.
        again = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (p, q, *grads))
        impl = "eager" if again else ctx.impl if ctx.impl == "eager" else "auto"
        run = implementation("softargmax_gradient", ctx.record, p, q, *grads, impl=impl)
        grad_scores = run(p, q, ctx.record, grads)
        grad_q: Optional = None
        if ctx.needs_input_grad[1]:
            u, _w, rho, inverse = sensitivities(p, q, ctx.record)
            grad_q = torch.zeros_like(p)
            if grad_p is not None:
                grad_q = grad_q + u * (grad_p - (rho * grad_p).sum(-1, keepdim=True))
            if grad_value is not None:
                grad_q = grad_q + conjugate(u, ctx.record) * grad_value.unsqueeze(-1)
            if grad_threshold is not None:
                grad_q = grad_q + u * inverse * grad_threshold.unsqueeze(-1)
        return grad_scores, grad_q, None, None, None


class _TransformableSolution(_Solution):
    """The same with rules for `torch.func`, apart because `torch.compile` refuses such functions."""

    @staticmethod
    def jvp(ctx: Any, tangent: Optional, tangent_q: Optional, *_: None) -> tuple[Optional, ...]:
        p, q = ctx.saved_tensors
        u, w, rho, inverse = sensitivities(p, q, ctx.record)
        zero = torch.zeros_like(p)
        tangent = zero if tangent is None else tangent
        tangent_q = zero if tangent_q is None else tangent_q
        moved = (rho * tangent).sum(-1) + (u * tangent_q).sum(-1) * inverse.squeeze(-1)
        return (
            w * (tangent - moved.unsqueeze(-1)) + u * tangent_q,
            (p * tangent).sum(-1) + (conjugate(u, ctx.record) * tangent_q).sum(-1),
            moved,
            None,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, int | None, None, None, None],
        scores: Tensor,
        q: Optional,
        record: Any,
        impl: str,
        with_value: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # Rows are independent, so a mapped axis is just one more batch axis.
        size = info.batch_size
        scores = _batch_first(scores, in_dims[0], size)
        q = None if q is None else _batch_first(q, in_dims[1], size)
        found = _TransformableSolution.apply(scores, q, record, impl, with_value)  # type: ignore[no-untyped-call]
        return found, (0, 0, 0, 0)


def _batch_first(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
