"""Fenchel-Young losses: what cross-entropy is to softmax, for every f-softargmax."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.divergences.solution import one_hot_constant
from fenchel.errors import BadScores, InputError
from fenchel.kernels.dispatch import implementation, which
from fenchel.losses.reduce import reduce
from fenchel.operators._inputs import (
    check_axis,
    check_logits,
    class_last,
    prepare_reference,
    scale_by,
)
from fenchel.operators.engine import solve


@overload
def fenchel_young_loss(
    logits: Tensor,
    target: Tensor,
    divergence: str | FDivergence = ...,
    *,
    reference: float | Tensor = ...,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    reduction: str = ...,
    dim: int = ...,
    temperature: float | Tensor = ...,
    return_probs: Literal[False] = ...,
    impl: str = ...,
) -> Tensor: ...


@overload
def fenchel_young_loss(
    logits: Tensor,
    target: Tensor,
    divergence: str | FDivergence = ...,
    *,
    reference: float | Tensor = ...,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    reduction: str = ...,
    dim: int = ...,
    temperature: float | Tensor = ...,
    return_probs: Literal[True],
    impl: str = ...,
) -> tuple[Tensor, Tensor]: ...


def fenchel_young_loss(
    logits: Tensor,
    target: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    reference: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    temperature: float | Tensor = 1.0,
    return_probs: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The Fenchel-Young loss softmax_f(θ; q) + D_f(y, q) - <θ, y>, with θ = logits / T.

    Its gradient in θ is f-softargmax(θ) - y; it is convex in θ, >= 0, and 0 if and only if
    f-softargmax(θ) = y. With "kl" and hard labels it is `torch.nn.functional.cross_entropy`, argument by
    argument; the class axis is the last one unless `dim` says otherwise.

    Where it differs from `cross_entropy`:
        - soft targets: the entropy of y is included (the loss is KL(y, p) for "kl"), so that 0 is the
          minimum; the gradient is the same;
        - f(0) = inf ("reverse-kl", "jeffreys", "neyman", α <= 0): D_f(y, q) is infinite for a y with
          zeros, and this constant is left out, so that the loss may be negative;
        - a batch in which every target is ignored gives 0 with zero gradient, not NaN;
        - classes at -inf do not count: they have p = 0, and take no part in label smoothing.

    Args:
        logits: scores, shape (..., V, ...), any float dtype; half types are computed in float32.
        target: class indices, the shape of logits without `dim`; or probabilities, the shape of logits
            (differentiable, for a learned teacher).
        divergence: a name or an `FDivergence`.
        reference: the measure q > 0: a number, (V,), or broadcastable to logits.
        weight: weights of the classes, shape (V,), as in `cross_entropy`.
        ignore_index: an index target that adds nothing to the loss.
        label_smoothing: ε in [0, 1): the loss becomes (1 - ε) L(θ, y) + ε mean_j L(θ, e_j).
        reduction: "mean" (over targets, weighted by the weights of their classes), "sum" or "none".
        dim: the axis of the classes.
        temperature: T > 0, a number or a tensor with size 1 along `dim`.
        return_probs: also return f-softargmax(θ), which costs nothing more.
        impl: which implementation runs, see `fenchel.which`: its operation is "token_loss" for hard labels,
            and "softargmax" for soft ones, for probabilities, a learned measure, and smoothing together with
            weights or a measure.

    Returns:
        The loss in nats, in the dtype of logits: a scalar, or the shape of logits without `dim` for
        "none". With `return_probs`, the pair (loss, probabilities).

    Raises:
        InputError: shapes, dtypes, or values (on CPU) that do not fit, quoting what was received.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0, -2.0], [0.0, 1.0, 0.0]], requires_grad=True)
        >>> loss = fenchel_young_loss(logits, torch.tensor([0, -100]), "alpha:1.5")
        >>> round(loss.item(), 4)
        0.0617
        >>> loss.backward()
        >>> logits.grad
        tensor([[-0.1693,  0.1693,  0.0000],
                [ 0.0000,  0.0000,  0.0000]])

    Reference:
        Blondel, Martins and Niculae, 2020, arXiv 1901.02324 (Fenchel-Young losses); Roulet, Liu,
        Vieillard, Sander and Blondel, 2025, arXiv 2501.18537 (those of f-divergences).
    """
    record = find(divergence)
    check_axis(logits, dim)
    check_smoothing(label_smoothing)
    hard = is_hard(logits, target, dim, ignore_index)
    target = target.long() if hard else target
    scores, _ = scale_by(class_last(logits, dim), temperature, logits, dim)
    q = prepare_reference(reference, logits, dim, scores)
    weight = class_weight(weight, logits, dim, scores)
    mask = target != ignore_index if hard else None
    counted = None if weight is None or mask is None else weight[torch.where(mask, target, 0)]
    p: Tensor | None = None
    try:
        # The gradient p - y comes with the loss where nothing else is asked for.
        if (
            mask is not None
            and not return_probs
            and (q is None or not (q.requires_grad or label_smoothing))
            and (weight is None or not label_smoothing)
            and _is_compiled(scores, q, target, record, impl)
        ):
            index = torch.where(mask, target, -1)
            losses = _TokenLoss.apply(scores, index, q, record, label_smoothing, impl)  # type: ignore[no-untyped-call]
            losses = losses if counted is None else counted * losses
        else:
            last = target if hard else target.movedim(dim, -1)
            if mask is not None and not return_probs:  # a row that does not count may hold anything
                scores = torch.where(mask.unsqueeze(-1), scores, 0.0)
            p, losses = _from_solution(scores, last, mask, q, weight, record, label_smoothing, impl)
    except BadScores:
        check_logits(logits, dim)  # says it of the logits as they were given
        raise
    loss = reduce(losses, reduction=reduction, mask=mask, weight=counted).to(logits.dtype)
    if not return_probs:
        return loss
    assert p is not None
    return loss, p.movedim(-1, dim).to(logits.dtype)


def _is_compiled(scores: Tensor, q: Tensor | None, target: Tensor, record: FDivergence, impl: str) -> bool:
    if torch.compiler.is_compiling():
        return False
    return which("token_loss", scores, q, target, divergence=record, impl=impl).impl != "eager"


class _TokenLoss(torch.autograd.Function):
    """θ → loss, whose gradient p - y is found with it. Second derivatives are those of f-softargmax."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        target: Tensor,
        q: Tensor | None,
        record: FDivergence,
        label_smoothing: float,
        impl: str,
    ) -> Tensor:
        shape, classes = target.shape, scores.shape[-1]
        gradient = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
        run = implementation("token_loss", record, scores, q, impl=impl)
        losses: Tensor = run(
            scores.reshape(-1, classes),
            target.reshape(-1),
            None if q is None else q.reshape(-1, classes),
            record,
            label_smoothing,
            gradient.view(-1, classes) if ctx.needs_input_grad[0] else None,
        )
        ctx.record = record
        ctx.save_for_backward(scores, target, q, gradient)
        return losses.view(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, q, gradient = ctx.saved_tensors
        if torch.is_grad_enabled() and scores.requires_grad:
            # p - y can be differentiated again through p, which is found once more.
            p = solve(torch.where((target >= 0).unsqueeze(-1), scores, 0.0), q, ctx.record, with_value=False)[
                0
            ]
            gradient = gradient + (p - p.detach())
        return gradient * grad.unsqueeze(-1), None, None, None, None, None


def _from_solution(
    scores: Tensor,
    target: Tensor,
    mask: Tensor | None,
    q: Tensor | None,
    weight: Tensor | None,
    record: FDivergence,
    label_smoothing: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """p and the losses, for hard labels (with a mask) and soft ones (without), in differentiable steps."""
    p, value, _, top = solve(scores, q, record, impl)
    # Everything below is relative to the top score, which cancels: <top - θ, y> instead of <θ, y>.
    gap = top.unsqueeze(-1) - scores
    if mask is not None:
        index = torch.where(mask, target, 0).unsqueeze(-1)
        losses = value + gap.gather(-1, index).squeeze(-1) + one_hot_constant(record, q, index)
        losses = losses if weight is None else weight[index.squeeze(-1)] * losses
    else:
        target = target.to(scores.dtype)
        losses = _soft_loss(target if weight is None else target * weight, gap, value, q, record)
    if label_smoothing:
        smooth = _mean_over_classes(gap, value, q, weight, record)
        losses = (1 - label_smoothing) * losses + label_smoothing * smooth
    return p, losses


def _soft_loss(target: Tensor, gap: Tensor, value: Tensor, q: Tensor | None, record: FDivergence) -> Tensor:
    """s L(θ, y/s) for a target of mass s, where s = Σ y is 1 but for class weights."""
    present = torch.isfinite(gap)
    mass = target.sum(-1)
    safe_mass = torch.where(mass > 0, mass, 1.0).unsqueeze(-1)
    y = target / safe_mass
    safe_gap = torch.where(present, gap, torch.where(target > 0, gap, 0.0))
    entropy = record.f_centred(torch.where(present, y if q is None else y / q, 1.0))
    if not math.isfinite(record.at_zero):  # D_f(y, q) is left out of rows where it is infinite
        finite = ((y > 0) | ~present).all(-1, keepdim=True)
        entropy = torch.where(finite & (y > 0), entropy, 0.0)
    entropy = torch.where(present, entropy if q is None else q * entropy, 0.0)
    return mass * value + (target * safe_gap).sum(-1) + mass * entropy.sum(-1)


def _mean_over_classes(
    gap: Tensor, value: Tensor, q: Tensor | None, weight: Tensor | None, record: FDivergence
) -> Tensor:
    """The mean over the classes j that are not masked of w_j L(θ, e_j)."""
    present = torch.isfinite(gap)
    share = torch.where(present, 1.0, 0.0).to(gap.dtype)
    share = share / share.sum(-1, keepdim=True)
    if weight is not None:
        share = share * weight
    cost = torch.where(present, gap, 0.0)
    if math.isfinite(record.at_zero):
        one = torch.ones_like(gap) if q is None else q
        cost = cost + one * record.f_centred(1 / one)
    return (share * (value.unsqueeze(-1) + cost)).sum(-1)


def is_hard(logits: Tensor, target: Tensor, dim: int, ignore_index: int) -> bool:
    """Whether target holds class indices; raises InputError when it fits neither form."""
    check_tensor(target, "target")
    rows = tuple(n for i, n in enumerate(logits.shape) if i != dim % logits.dim())
    classes = logits.shape[dim]
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise InputError(
                f"a soft target must have the shape of logits {tuple(logits.shape)}, received "
                f"{tuple(target.shape)} (sizes that differ by padded classes must be aligned by you)"
            )
        if not holds(target >= 0):
            place = tuple(torch.nonzero(~(target >= 0))[0].tolist())
            raise InputError(f"a soft target must be >= 0, received {float(target[place]):.6g} at {place}")
        return False
    if tuple(target.shape) != rows:
        raise InputError(
            f"class indices for logits {tuple(logits.shape)} with classes along dim={dim} must have "
            f"shape {rows}, received {tuple(target.shape)}"
        )
    check_indices(target, classes, ignore_index)
    return True


def check_tensor(x: object, name: str) -> None:
    """Raise InputError unless it is one."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name} must be a tensor, received {type(x).__name__}")


def check_smoothing(label_smoothing: float) -> None:
    """Raise InputError unless it is a share."""
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing must be in [0, 1), received {label_smoothing}")


def class_indices(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    """The classes in int64, -1 for rows to be ignored; raises InputError where target holds anything else."""
    check_indices(target, classes, ignore_index)
    return torch.where(target != ignore_index, target.long(), -1)


def check_indices(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise InputError unless `target` holds classes, or what marks a row to be ignored."""
    if not holds(((target >= 0) & (target < classes)) | (target == ignore_index)):
        bad = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
        raise InputError(
            f"target {int(bad[0])} is not a class: logits have {classes}, and ignore_index is {ignore_index}"
        )


def class_weight(weight: Tensor | None, logits: Tensor, dim: int, scores: Tensor) -> Tensor | None:
    """The weights in the dtype of the scores; raises InputError unless each class has one, >= 0."""
    if weight is None:
        return None
    check_tensor(weight, "weight")
    if tuple(weight.shape) != (logits.shape[dim],):
        raise InputError(
            f"weight must have one number per class, shape ({logits.shape[dim]},), received "
            f"{tuple(weight.shape)}"
        )
    good = (weight >= 0) & torch.isfinite(weight)
    if not holds(good):
        place = int(torch.nonzero(~good)[0])
        raise InputError(f"weight must be >= 0 and finite, received {float(weight[place])} for class {place}")
    return weight.to(scores.dtype)
