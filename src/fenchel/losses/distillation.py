"""Distillation losses: the student's distribution is pulled towards the teacher's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fenchel.checks import is_plain
from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.errors import BadScores, InputError
from fenchel.kernels.dispatch import implementation, which
from fenchel.losses.reduce import check_rows, reduce
from fenchel.losses.truncated import TopK, bucketed, check_fits
from fenchel.operators._inputs import check_axis, check_logits, class_last, scale_by


def distillation_loss(
    student: Tensor,
    teacher: Tensor | TopK,
    divergence: str | FDivergence = "kl",
    *,
    temperature: float | Tensor = 1.0,
    squared_temperature: bool = False,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    dim: int = -1,
    impl: str = "auto",
) -> Tensor:
    """D_f(p_T, p_S) between the softmax distributions of a teacher and a student.

    D_f(p_T, p_S) = Σ_j p_S,j f(p_T,j / p_S,j) with p = softmax(logits / T). "kl" is forward KL
    KL(p_T, p_S), "reverse-kl" is KL(p_S, p_T), "js" twice the Jensen-Shannon divergence. Computed from
    log-probabilities, so that tails that underflow as probabilities still count.

    A teacher of whom only the k most likely classes are known is a `TopK`: D_f is then between
    distributions over k + 1 buckets, the last of which is everything else. That is a lower bound of D_f
    between the whole distributions, for every f (data-processing inequality), and 0 where they agree.

    To distil into f-softargmax instead, with a convex loss in the student's logits, pass the teacher's
    probabilities as the target of `fenchel_young_loss`.

    Args:
        student: logits (..., V, ...).
        teacher: logits of the same shape, into which gradients flow unless you detach it; or a `TopK` of
            its probabilities at temperature T, with the student's classes on the last axis.
        divergence: a name or an `FDivergence`.
        temperature: T > 0, for both.
        squared_temperature: multiply by T², so that the size of the gradient depends little on T.
        mask: positions that count, the shape of student without `dim`.
        weight: weights >= 0 of the positions, the shape of student without `dim`; the mean is Σ w l / Σ w.
        reduction: "mean" (over the positions that count), "sum" or "none".
        dim: the axis of the classes.
        impl: which implementation runs, see `fenchel.which`: its operation is "distillation", or
            "topk_distillation" for a `TopK`. A tensor of temperatures or a teacher with gradients are the
            work of plain PyTorch.

    Returns:
        The loss in nats, in the dtype of student; half types are computed in float32.

    Raises:
        InputError: the shapes differ (both are quoted), or logits that cannot be normalised.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[0.0, 0.0]])
        >>> student = torch.tensor([[1.0986123, 0.0]])  # probabilities 3/4 and 1/4
        >>> round(float(distillation_loss(student, teacher, "chi2")), 4)
        0.3333

    Reference:
        Hinton, Vinyals and Dean, 2015, arXiv 1503.02531; Agarwal et al., 2024, arXiv 2306.13649 (any
        divergence); Roulet et al., 2025, arXiv 2501.18537.
    """
    record = find(divergence)
    check_axis(student, dim, name="student logits")
    if isinstance(teacher, Tensor) and student.shape != teacher.shape:
        raise InputError(
            f"student and teacher logits must have the same shape, received {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}; vocabularies that differ by padding must be aligned by you"
        )
    rows = student.movedim(dim, -1).shape[:-1]
    check_rows(mask, rows, "mask")
    check_rows(weight, rows, "weight")
    found = _by_kernel(student, teacher, record, temperature, dim, impl)
    losses, scale = found or _in_steps(student, teacher, record, temperature, dim)
    losses = losses * scale**2 if squared_temperature else losses
    losses = losses if weight is None else losses * weight
    return reduce(losses, reduction=reduction, mask=mask, weight=weight).to(student.dtype)


def _in_steps(
    student: Tensor, teacher: Tensor | TopK, record: FDivergence, temperature: float | Tensor, dim: int
) -> tuple[Tensor, float | Tensor]:
    """The losses and T, differentiable in everything and twice."""
    check_logits(student, dim, name="student logits")
    scores, scale = scale_by(class_last(student, dim), temperature, student, dim)
    log_q = torch.log_softmax(scores, -1)
    if isinstance(teacher, TopK):
        check_fits(scores, teacher)
        log_p, log_q = bucketed(log_q, teacher)
    else:
        check_logits(teacher, dim, name="teacher logits")
        log_p = torch.log_softmax(scale_by(class_last(teacher, dim), temperature, teacher, dim)[0], -1)
    return record.from_log_probs(log_p, log_q), scale


def _by_kernel(
    student: Tensor,
    teacher: Tensor | TopK,
    record: FDivergence,
    temperature: float | Tensor,
    dim: int,
    impl: str,
) -> tuple[Tensor, float] | None:
    """The same where one pass gives the losses and the student's gradient, else None."""
    scores = class_last(student, dim)
    op, known = operation(teacher if isinstance(teacher, TopK) else class_last(teacher, dim))
    reason = None
    if any(part.requires_grad for part in known):
        reason = "the teacher is to have a gradient"
    elif isinstance(temperature, Tensor):
        reason = "the temperature is a tensor"
    if reason is not None and impl not in ("auto", "eager"):
        raise InputError(f"impl={impl!r} cannot run {op} of {record.name}: {reason}")
    if reason is not None or isinstance(temperature, Tensor) or not 0 < temperature < math.inf:
        return None
    if impl == "auto" and not is_plain(scores):
        return None
    if which(op, scores, *known, divergence=record, impl=impl).impl == "eager":
        return None
    if isinstance(teacher, TopK):
        check_fits(scores, teacher)
    try:
        losses = _Distillation.apply(scores, record, temperature, impl, op, *known)  # type: ignore[no-untyped-call]
    except BadScores:  # says it of the logits as they were given
        check_logits(student, dim, name="student logits")
        if isinstance(teacher, Tensor):
            check_logits(teacher, dim, name="teacher logits")
        raise
    return losses, temperature


def operation(teacher: Tensor | TopK) -> tuple[str, tuple[Tensor, ...]]:
    """The operation of kernels that compares students with such a teacher, and its tensors."""
    return ("distillation", (teacher,)) if isinstance(teacher, Tensor) else ("topk_distillation", teacher)


class _Distillation(torch.autograd.Function):
    """Student's logits → losses, whose gradient is found with them; differentiated twice step by step."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        record: FDivergence,
        temperature: float,
        impl: str,
        op: str,
        *teacher: Tensor,
    ) -> Tensor:
        shape, classes = student.shape[:-1], student.shape[-1]
        gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
        run = implementation(op, record, student, *teacher, impl=impl)
        out = gradient.view(-1, classes) if ctx.needs_input_grad[0] else None
        rows = (part.reshape(-1, *part.shape[len(shape) :]) for part in teacher)
        losses: Tensor = run(student.reshape(-1, classes), *rows, record, temperature, out)
        ctx.of = (record, temperature)
        ctx.save_for_backward(student, gradient, *teacher)
        return losses.view(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, gradient, *known = ctx.saved_tensors
        record, temperature = ctx.of
        others = (None,) * (len(ctx.needs_input_grad) - 1)
        if torch.is_grad_enabled() and student.requires_grad:
            teacher = known[0] if len(known) == 1 else TopK(*known)
            losses, _ = _in_steps(student, teacher, record, temperature, -1)
            again = torch.autograd.grad(losses, student, grad, create_graph=True)[0]
            return again, *others
        return gradient * (grad / temperature).unsqueeze(-1), *others
