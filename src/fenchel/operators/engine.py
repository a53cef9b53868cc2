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

Optional = Tensor | None


def solve(scores: Tensor, q: Optional, record: FDivergence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The solution in the form that keeps all digits; the losses build on it.

    Args:
        scores: (..., V) in float32 or float64.
        q: None for the unit measure, or the shape of scores.
        record: the divergence.

    Returns:
        p (..., V); value - top and τ - top (...), the value with f centred (without the constant
        -f(0) Σq, see `FDivergence.gauge`); top = max θ (...), constant under differentiation.
    """
    top = scores.detach().amax(-1)
    function = _Solution if torch.compiler.is_compiling() else _TransformableSolution
    p, value, threshold = function.apply(scores, q, record)  # type: ignore[no-untyped-call]
    return p, value, threshold, top


class _Solution(torch.autograd.Function):
    """θ, q → p, softmax_f - max θ, τ - max θ, with derivatives of every order written in p and q.

    The saved p is itself an output, so differentiating `backward` again reaches this function again:
    that gives exact second derivatives without differentiating the solver.
    """

    @staticmethod
    def forward(scores: Tensor, q: Optional, record: FDivergence) -> tuple[Tensor, Tensor, Tensor]:
        gap = scores.amax(-1, keepdim=True) - scores
        if record.kappa > 1:  # α > 2 needs more digits than float32 has, near the threshold
            p, value, threshold = find_root(gap.double(), None if q is None else q.double(), record)
            return p.to(scores.dtype), value.to(scores.dtype), threshold.to(scores.dtype)
        return find_root(gap, q, record)

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, Optional, FDivergence],
        output: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        _, q, ctx.record = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[0], q)
        ctx.save_for_forward(output[0], q)

    @staticmethod
    def backward(
        ctx: Any, grad_p: Optional, grad_value: Optional, grad_threshold: Optional
    ) -> tuple[Optional, Optional, None]:
        p, q = ctx.saved_tensors
        u, w, rho, inverse = _sensitivities(p, q, ctx.record)
        grad_scores: Optional = None
        grad_q: Optional = None
        centred: Optional = None
        if grad_p is not None:
            centred = grad_p - (rho * grad_p).sum(-1, keepdim=True)
            grad_scores = w * centred
        if grad_value is not None:
            grad_scores = _add(grad_scores, p * grad_value.unsqueeze(-1))
        if grad_threshold is not None:
            grad_scores = _add(grad_scores, rho * grad_threshold.unsqueeze(-1))
        if ctx.needs_input_grad[1]:
            if centred is not None:
                grad_q = u * centred
            if grad_value is not None:
                grad_q = _add(grad_q, _conjugate(u, ctx.record) * grad_value.unsqueeze(-1))
            if grad_threshold is not None:
                grad_q = _add(grad_q, u * inverse * grad_threshold.unsqueeze(-1))
        return grad_scores, grad_q, None


class _TransformableSolution(_Solution):
    """The same with rules for `torch.func`, apart because `torch.compile` refuses such functions."""

    @staticmethod
    def jvp(ctx: Any, tangent: Optional, tangent_q: Optional, _: None) -> tuple[Tensor, ...]:
        p, q = ctx.saved_tensors
        u, w, rho, inverse = _sensitivities(p, q, ctx.record)
        zero = torch.zeros_like(p)
        tangent = zero if tangent is None else tangent
        tangent_q = zero if tangent_q is None else tangent_q
        moved = (rho * tangent).sum(-1) + (u * tangent_q).sum(-1) * inverse.squeeze(-1)
        return (
            w * (tangent - moved.unsqueeze(-1)) + u * tangent_q,
            (p * tangent).sum(-1) + (_conjugate(u, ctx.record) * tangent_q).sum(-1),
            moved,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, int | None, None],
        scores: Tensor,
        q: Optional,
        record: Any,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # Rows are independent, so a mapped axis is just one more batch axis.
        size = info.batch_size
        scores = _batch_first(scores, in_dims[0], size)
        q = None if q is None else _batch_first(q, in_dims[1], size)
        return _TransformableSolution.apply(scores, q, record), (0, 0, 0)  # type: ignore[no-untyped-call]


def _batch_first(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _add(a: Optional, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _sensitivities(p: Tensor, q: Optional, record: FDivergence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u = p/q, w = q f*'' (0 where clipped), ρ = w / Σw and 1 / Σw, differentiable in p and q."""
    u = p if q is None else p / q
    active = p > 0
    w = torch.where(active, p * record.elasticity(torch.where(active, u, 1.0)), 0.0)
    inverse = 1 / w.sum(-1, keepdim=True)
    return u, w, w * inverse, inverse


def _conjugate(u: Tensor, record: FDivergence) -> Tensor:
    """f*(v) + f(0) at v = f'(u), 0 for a class at zero."""
    active = u > 0
    return torch.where(active, record.conjugate_of_ratio(torch.where(active, u, 1.0)), 0.0)


# Evaluations of S that reach working precision, with a margin (tests/operators/test_accuracy.py: V up to
# 131072, scores of scale 1e-3 to 1e4, q of spread 1e6). Above α = 2 the derivative of f*' is unbounded at
# the threshold, Newton's steps can shrink to nothing there, and every second step bisects.
_STEPS, _STEPS_STEEP = 20, 80


def find_root(gap: Tensor, q: Optional, record: FDivergence) -> tuple[Tensor, Tensor, Tensor]:
    """(p, value - top, τ - top) from gap = θ_max - θ (..., V), which may hold inf for absent classes.

    Newton's method on S in the coordinate (U^κ - 1)/κ, on which S^κ is nearly linear, from the upper
    end of the bracket 1/Σq <= U <= 1/q_J, where it is monotone; a step that leaves the bracket is
    replaced by the geometric mean of its ends. In float64, α = 2 and 1.5 take their sorted closed form
    instead, and KL has one in every type. What remains of 1 - S, below the resolution of U, is
    handed out by one last Newton step taken on p itself.
    """
    if record.name == "kl" or record.name == "generalized-kl":
        return _closed_form_kl(gap, q, record)
    kappa = record.kappa
    measure = torch.ones_like(gap) if q is None else q
    low = 1 / measure.sum(-1, keepdim=True)
    high = 1 / torch.where(gap == 0, measure, 0.0).sum(-1, keepdim=True)
    exact = kappa in (0.5, 1.0) and gap.dtype == torch.float64  # float32 sums would lose digits
    ratio = _sorted_closed_form(gap, measure, record).clamp(low, high) if exact else high
    tolerance = torch.finfo(gap.dtype).eps ** 0.5
    early_exit = gap.device.type == "cpu" and not torch.compiler.is_compiling()
    for i in range(0 if exact else _STEPS_STEEP if kappa > 1 else _STEPS):
        p, total, w, weight = _evaluate(ratio, gap, measure, record)
        slope = weight / (total * record.elasticity(ratio))
        log_total = total.log()
        if kappa == 0:
            step = torch.exp(-log_total / slope)
        else:
            step = torch.exp(torch.log1p(torch.expm1(-kappa * log_total) / slope) / kappa)
        low = torch.where(total <= 1, ratio, low)
        high = torch.where(total >= 1, ratio, high)
        moved = ratio * step
        middle = (low * high).sqrt()
        inside = (moved >= low) & (moved <= high)
        moved = middle if kappa > 1 and i % 2 else torch.where(inside, moved, middle)
        settled = (moved - ratio).abs() <= tolerance * ratio
        if kappa > 1:  # a short step may only mean a steep kink
            settled = settled & (log_total.abs() <= tolerance)
        ratio = moved
        if early_exit and bool(settled.all()):
            break
    p, total, w, weight = _evaluate(ratio, gap, measure, record)
    rest = (1 - total) / weight
    p = (p + w * rest).clamp_min(0)
    v_top = (record.derivative(ratio) + rest).squeeze(-1)
    u = p if q is None else p / q
    conjugates = _conjugate(u, record)
    value = (conjugates if q is None else q * conjugates).sum(-1) - v_top
    return p, value, -v_top


def _evaluate(
    ratio: Tensor, gap: Tensor, measure: Tensor, record: FDivergence
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, Σp, w = q f*'' and Σw at U = ratio."""
    u = record.shift(ratio, gap)
    p = measure * u
    w = torch.where(u > 0, p * record.elasticity(torch.where(u > 0, u, 1.0)), 0.0)
    return p, p.sum(-1, keepdim=True), w, w.sum(-1, keepdim=True)


def _sorted_closed_form(gap: Tensor, measure: Tensor, record: FDivergence) -> Tensor:
    """U for α = 2 (κ = 1) and α = 1.5 (κ = ½), whatever the scale of f, by sorting.

    With B = U^κ and h_j = κ gap_j / scale, Σ q_j max(B - h_j, 0)^(1/κ) = 1 is linear or quadratic in B
    once the support is known, and the support is a prefix of the classes sorted by h.
    """
    kappa = record.kappa
    h, order = (gap * (kappa * record.elasticity(torch.ones_like(gap[..., :1])))).sort(-1)
    weights = measure.gather(-1, order)
    # Beyond the largest possible B a class has no part in the support; inf would spoil the sums.
    h = h.minimum(weights[..., :1] ** -kappa)
    mass, first = weights.cumsum(-1), (weights * h).cumsum(-1)
    if kappa == 1:
        base = (1 + first) / mass
    else:
        spread = (weights * h * h).cumsum(-1) - 1
        base = (first + (first**2 - mass * spread).clamp_min(0).sqrt()) / mass
    count = (base > h).sum(-1, keepdim=True).clamp_min(1)
    return base.gather(-1, count - 1) ** (1 / kappa)


def _closed_form_kl(gap: Tensor, q: Optional, record: FDivergence) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax with a measure: U = 1 / Σ q e^-gap."""
    weights = (-gap).exp() if q is None else q * (-gap).exp()
    ratio = 1 / weights.sum(-1, keepdim=True)
    p = weights * ratio
    v_top = record.derivative(ratio).squeeze(-1)
    return p, p.sum(-1) - v_top, -v_top
