"""The operations in plain PyTorch: what the other implementations are measured against, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.divergences import FDivergence
from fenchel.divergences.buckets import log_buckets
from fenchel.divergences.solution import conjugate, one_hot_constant, sensitivities
from fenchel.errors import BadScores
from fenchel.kernels.isotonic import dykstra as dykstra
from fenchel.kernels.isotonic import isotonic as isotonic
from fenchel.kernels.isotonic import isotonic_gradient as isotonic_gradient
from fenchel.kernels.isotonic import isotonic_tangent as isotonic_tangent
from fenchel.kernels.sinkhorn import sinkhorn as sinkhorn
from fenchel.kernels.topk import topk_magnitude as topk_magnitude
from fenchel.kernels.topk import topk_mask as topk_mask

Optional = Tensor | None

Total = Callable[..., tuple[Tensor, ...]]
"""Sums over the classes of tensors (..., V), (..., 1) each; all the solver knows of where the classes are."""


class Root(NamedTuple):
    """What `find_root` finds, and from what p can be had again: U, and what the last step adds to f'(U)."""

    p: Tensor
    value: Tensor
    threshold: Tensor
    ratio: Tensor
    rest: Tensor


def softargmax(
    scores: Tensor, q: Optional, record: FDivergence, with_value: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, and value - top, τ - top and top = max θ, where the value is that of f centred.

    Args:
        scores: (..., V) in float32 or float64.
        q: the measure, broadcast to scores, or None for the unit measure.
        record: the divergence.
        with_value: whether the value is wanted; if not, it may be NaN.

    Returns:
        (..., V) and three of (...).

    Raises:
        BadScores: a row is all -inf, or holds NaN or inf (on CPU, where looking is free).
    """
    top = scores.amax(-1)
    if not holds(torch.isfinite(top)):
        raise BadScores(int((~torch.isfinite(top)).flatten().nonzero()[0]), scores.shape)
    root = shard_softargmax(scores, q, record, top, _total, with_value)
    return root.p, root.value, root.threshold, top


def shard_softargmax(
    scores: Tensor, q: Optional, record: FDivergence, top: Tensor, total: Total, with_value: bool = True
) -> Root:
    """`softargmax` where scores may be some of the classes: `top` and `total` are those of all of them.

    Args:
        scores: (..., V) in float32 or float64; V may be 0.
        q: the measure, broadcast to scores, or None for the unit measure.
        record: the divergence.
        top: max θ, (...), finite.
        total: sums over all classes.
        with_value: whether the value is wanted; if not, it may be NaN.

    Returns:
        p of these classes, (..., V), value - top and τ - top (...), and what `shard_probabilities` takes.
    """
    gap = top.unsqueeze(-1) - scores
    if record.kappa > 1:  # α > 2 needs more digits than float32 has, near the threshold
        measure = None if q is None else q.double()
        p, value, threshold, *state = _root(gap.double(), measure, record, total, with_value)
        return Root(*(each.to(scores.dtype) for each in (p, value, threshold)), *state)
    return _root(gap, q, record, total, with_value)


def shard_probabilities(
    scores: Tensor, q: Optional, record: FDivergence, top: Tensor, ratio: Tensor, rest: Tensor
) -> Tensor:
    """p of `shard_softargmax` once more, from its U and rest: no sum over classes is taken."""
    gap = (top.unsqueeze(-1) - scores).to(ratio.dtype)
    if _is_kl(record):
        p = (-gap).exp() * ratio if q is None else q * (-gap).exp() * ratio
    else:
        measure = torch.ones_like(gap) if q is None else q.to(ratio.dtype)
        p, w = _terms(ratio, gap, measure, record)
        p = (p + w * rest).clamp_min(0)
    return p.to(scores.dtype)


def softargmax_gradient(
    p: Tensor, q: Optional, record: FDivergence, grads: tuple[Optional, Optional, Optional]
) -> Optional:
    """The gradient in the scores, from those of p, the value and the threshold; differentiable in all.

    w (g_p - <ρ, g_p>) + p g_value + ρ g_threshold, with w = q f*'' and ρ = w / Σw.
    """
    grad_p, grad_value, grad_threshold = grads
    found: Optional = None
    if grad_p is not None or grad_threshold is not None:
        _, w, rho, _ = sensitivities(p, q, record)
        if grad_p is not None:
            found = w * (grad_p - (rho * grad_p).sum(-1, keepdim=True))
        if grad_threshold is not None:
            found = _add(found, rho * grad_threshold.unsqueeze(-1))
    if grad_value is not None:
        found = _add(found, p * grad_value.unsqueeze(-1))
    return found


def token_loss(
    scores: Tensor,
    target: Tensor,
    q: Optional,
    record: FDivergence,
    label_smoothing: float = 0.0,
    out: Optional = None,
) -> Tensor:
    """softmax_f(θ; q) - <θ, y> + D_f(y, q), row by row, with p - y as a by-product.

    Args:
        scores: (n, V).
        target: class indices (n,), negative for rows that do not count: these give 0.
        q: None for the unit measure, or broadcast to scores (then label_smoothing must be 0).
        record: the divergence.
        label_smoothing: ε; y is (1 - ε) e_y + ε / (number of finite scores) on these.
        out: where the gradient p - y is written, (n, V); it may be scores itself.

    Returns:
        The losses, (n,).

    Raises:
        BadScores: as `softargmax`, for a row that counts.
    """
    counts = target >= 0
    index = target.clamp_min(0).unsqueeze(-1)
    scores = torch.where(counts.unsqueeze(-1), scores, 0.0)
    p, value, _, top = softargmax(scores, q, record)
    cost = top - scores.gather(-1, index).squeeze(-1)
    present = torch.isfinite(scores)
    share = present.to(scores.dtype) / present.sum(-1, keepdim=True)
    if label_smoothing:
        spread = (share * torch.where(present, top.unsqueeze(-1) - scores, 0.0)).sum(-1)
        cost = (1 - label_smoothing) * cost + label_smoothing * spread
    if out is not None:
        out.copy_(p - label_smoothing * share if label_smoothing else p)
        out.scatter_add_(-1, index, torch.full_like(cost, label_smoothing - 1).unsqueeze(-1))
        out.masked_fill_(~counts.unsqueeze(-1), 0.0)
    return torch.where(counts, value + cost + one_hot_constant(record, q, index), 0.0)


def token_support(
    scores: Tensor, target: Tensor, q: Optional, record: FDivergence, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The loss of tokens with p - y as its nonzero numbers; None where these are more than `most`.

    Args:
        scores: (n, V).
        target: class indices (n,), negative for rows that do not count.
        q: None for the unit measure, or broadcast to scores.
        record: a divergence that gives zeros.
        most: how many numbers are few enough.

    Returns:
        The losses (n,); classes and numbers, (total,), row after row; how
        many each row has, (n,).

    Raises:
        BadScores: as `softargmax`.
    """
    gradient = torch.empty_like(scores)
    losses = token_loss(scores, target, q, record, 0.0, gradient)
    rows, classes = gradient.nonzero(as_tuple=True)
    if len(rows) > most:
        return None
    return losses, classes, gradient[rows, classes], torch.bincount(rows, minlength=len(scores))


def distillation(
    student: Tensor,
    teacher: Tensor,
    record: FDivergence,
    temperature: float = 1.0,
    out: Optional = None,
) -> Tensor:
    """D_f(p_T, p_S) with p = softmax(logits / T), row by row, with its gradient as a by-product.

    Args:
        student: logits (n, V).
        teacher: logits (n, V).
        record: the divergence.
        temperature: T.
        out: where the gradient in the student's logits / T is written, (n, V); it may be student itself.

    Returns:
        The losses, (n,).

    Raises:
        BadScores: a row is all -inf, or holds NaN or inf (on CPU).
    """
    _check_rows(teacher)
    log_p = torch.log_softmax(teacher.detach() / temperature, -1)
    return _compared(student, temperature, out, lambda log_q: record.from_log_probs(log_p, log_q))


def topk_distillation(
    student: Tensor,
    indices: Tensor,
    log_probs: Tensor,
    log_tail: Tensor,
    record: FDivergence,
    temperature: float = 1.0,
    out: Optional = None,
) -> Tensor:
    """D_f between k + 1 buckets, k classes and a tail, row by row, with its gradient as a by-product.

    Args:
        student: logits (n, V).
        indices: the classes of which the teacher's probabilities are known, each once, (n, k); -1 marks an
            empty slot.
        log_probs: the logarithms of these probabilities, (n, k); -inf in empty slots.
        log_tail: the logarithm of the mass of all other classes, (n,); -inf where there is none.
        record: the divergence.
        temperature: T of the student's probabilities.
        out: where the gradient in the student's logits / T is written, (n, V); it may be student itself.

    Returns:
        The losses, (n,).

    Raises:
        BadScores: a row of the student is all -inf, or holds NaN or inf (on CPU).
    """
    log_p = torch.cat([log_probs, log_tail.unsqueeze(-1)], -1).to(student.dtype)
    return _compared(
        student, temperature, out, lambda log_q: record.from_log_probs(log_p, log_buckets(log_q, indices))
    )


def _compared(
    student: Tensor, temperature: float, out: Optional, divergence: Callable[[Tensor], Tensor]
) -> Tensor:
    """A divergence of the student's log-probabilities, with its gradient in logits / T written to `out`."""
    _check_rows(student)
    with torch.enable_grad():
        scaled = (student.detach() / temperature).requires_grad_(out is not None)
        losses = divergence(torch.log_softmax(scaled, -1))
        if out is not None:
            out.copy_(torch.autograd.grad(losses.sum(), scaled)[0])
    return losses.detach()


def _check_rows(scores: Tensor) -> None:
    top = scores.amax(-1)
    if not holds(torch.isfinite(top)):
        raise BadScores(int((~torch.isfinite(top)).nonzero()[0]), scores.shape)


def _add(a: Optional, b: Tensor) -> Tensor:
    return b if a is None else a + b


# Evaluations of S that reach working precision, with a margin (tests/operators/test_accuracy.py: V up to
# 131072, scores of scale 1e-3 to 1e4, q of spread 1e6). Above α = 2 the derivative of f*' is unbounded at
# the threshold, Newton's steps can shrink to nothing there, and every second step bisects; so it does
# elsewhere once Newton has had its chances: f of one's own may send it to and fro.
_STEPS, _STEPS_STEEP, _CHANCES = 20, 80, 10


def _total(*parts: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.sum(-1, keepdim=True) for part in parts)


def find_root(
    gap: Tensor, q: Optional, record: FDivergence, total: Total = _total
) -> tuple[Tensor, Tensor, Tensor]:
    """(p, value - top, τ - top) from gap = θ_max - θ (..., V), which may hold inf for absent classes."""
    return _root(gap, q, record, total)[:3]


def _is_kl(record: FDivergence) -> bool:
    return record.name == "kl" or record.name == "generalized-kl"


def _root(gap: Tensor, q: Optional, record: FDivergence, total: Total, with_value: bool = True) -> Root:
    """The root of S, from gap = θ_max - θ.

    Newton's method on S in the coordinate (U^κ - 1)/κ, on which S^κ is nearly linear, from the upper
    end of the bracket 1/Σq <= U <= 1/q_J, where it is monotone; a step that leaves the bracket is
    replaced by the geometric mean of its ends. In float64, α = 2 and 1.5 take their sorted closed form
    instead where all classes are here, and KL has one in every type. What remains of 1 - S, below the
    resolution of U, is handed out by one last Newton step taken on p itself.
    """
    if _is_kl(record):
        return _closed_form_kl(gap, q, record, total)
    kappa = record.kappa
    measure = torch.ones_like(gap) if q is None else q
    low, high = (1 / each for each in total(measure, torch.where(gap == 0, measure, 0.0)))
    double = gap.dtype == torch.float64
    exact = (
        kappa in (0.5, 1.0) and record.is_power and double and total is _total
    )  # float32 sums would lose digits
    ratio = _sorted_closed_form(gap, measure, record).clamp(low, high) if exact else high
    # S is piecewise linear for κ = 1: where a kink is near, the last step is no better than this.
    tolerance = torch.finfo(gap.dtype).eps ** (0.75 if kappa == 1 and double else 0.5)
    early_exit = gap.device.type == "cpu" and not torch.compiler.is_compiling()
    chances = 0 if kappa > 1 else _CHANCES
    most = _STEPS_STEEP if kappa > 1 or early_exit else _STEPS
    for i in range(0 if exact else most):
        mass, weight = total(*_terms(ratio, gap, measure, record))
        slope = weight / (mass * record.elasticity(ratio))
        log_mass = mass.log()
        if kappa == 0:
            step = torch.exp(-log_mass / slope)
        else:
            step = torch.exp(torch.log1p(torch.expm1(-kappa * log_mass) / slope) / kappa)
        low = torch.where(mass <= 1, ratio, low)
        high = torch.where(mass >= 1, ratio, high)
        moved = ratio * step
        middle = (low * high).sqrt()
        inside = (moved == ratio) | ((moved > low) & (moved < high))
        bisect = i % 2 == 1 and i > chances
        moved = middle if bisect else torch.where(inside, moved, middle)
        settled = (moved - ratio).abs() <= tolerance * ratio
        if kappa > 0:  # a short step may only mean a kink
            settled = settled & (log_mass.abs() <= tolerance)
        ratio = moved
        if early_exit and bool(settled.all()):
            break
    p, w = _terms(ratio, gap, measure, record)
    mass, weight = total(p, w)
    rest = (1 - mass) / weight
    p = (p + w * rest).clamp_min(0)
    v_top = (record.derivative(ratio) + rest).squeeze(-1)
    value = torch.full_like(v_top, math.nan)
    if with_value:
        conjugates = conjugate(p if q is None else p / q, record)
        (value,) = total(conjugates if q is None else q * conjugates)
        value = value.squeeze(-1) - v_top
    return Root(p, value, -v_top, ratio, rest)


def _terms(ratio: Tensor, gap: Tensor, measure: Tensor, record: FDivergence) -> tuple[Tensor, Tensor]:
    """p and w = q f*'' at U = ratio."""
    u = record.shift(ratio, gap)
    p = measure * u
    return p, torch.where(u > 0, p * record.elasticity(torch.where(u > 0, u, 1.0)), 0.0)


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


def _closed_form_kl(gap: Tensor, q: Optional, record: FDivergence, total: Total) -> Root:
    """Softmax with a measure: U = 1 / Σ q e^-gap."""
    weights = (-gap).exp() if q is None else q * (-gap).exp()
    ratio = 1 / total(weights)[0]
    p = weights * ratio
    v_top = record.derivative(ratio).squeeze(-1)
    # Σp differs from 1 by rounding alone, which is not worth asking other processes for.
    mass = p.sum(-1) if total is _total else 1.0
    return Root(p, mass - v_top, -v_top, ratio, torch.zeros_like(ratio))
