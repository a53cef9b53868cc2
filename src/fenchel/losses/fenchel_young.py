"""Fenchel-Young losses: what cross-entropy is to softmax, for every f-softargmax."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.errors import InputError
from fenchel.losses.reduce import reduce
from fenchel.operators._inputs import (
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
    check_logits(logits, dim)
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing must be in [0, 1), received {label_smoothing}")
    hard = _is_hard(logits, target, dim, ignore_index)
    scores, _ = scale_by(class_last(logits, dim), temperature, logits, dim)
    q = prepare_reference(reference, logits, dim, scores)
    weight = _class_weight(weight, logits, dim, scores)
    p, value, _, top = solve(scores, q, record)

    # Everything below is relative to the top score, which cancels: <top - θ, y> instead of <θ, y>.
    gap = top.unsqueeze(-1) - scores
    mask: Tensor | None = None
    if hard:
        mask = target != ignore_index
        index = torch.where(mask, target, 0).unsqueeze(-1)
        mass = None if weight is None else weight.expand_as(scores).gather(-1, index).squeeze(-1)
        cost = gap.gather(-1, index).squeeze(-1) + _one_hot_constant(record, q, index)
        losses = value + cost
        counted = mass
        if mass is not None:
            losses = mass * losses
    else:
        target = target.movedim(dim, -1).to(scores.dtype)
        target = target if weight is None else target * weight
        losses = _soft_loss(target, gap, value, q, record)
        counted = None
    if label_smoothing:
        smooth = _mean_over_classes(gap, value, q, weight, record)
        losses = (1 - label_smoothing) * losses + label_smoothing * smooth
    loss = reduce(losses, reduction=reduction, mask=mask, weight=counted).to(logits.dtype)
    return (loss, p.movedim(-1, dim).to(logits.dtype)) if return_probs else loss


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


def _one_hot_constant(record: FDivergence, q: Tensor | None, index: Tensor) -> Tensor | float:
    """D_f(e_y, q) + f(0) Σq, or 0 where it is infinite."""
    if not math.isfinite(record.at_zero):
        return 0.0
    if q is None:
        return float(record.f_centred(torch.ones((), dtype=torch.float64)))
    q_y = q.gather(-1, index).squeeze(-1)
    return q_y * record.f_centred(1 / q_y)


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


def _is_hard(logits: Tensor, target: Tensor, dim: int, ignore_index: int) -> bool:
    """Whether target holds class indices; raises InputError when it fits neither form."""
    rows = tuple(n for i, n in enumerate(logits.shape) if i != dim % logits.dim())
    classes = logits.shape[dim]
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise InputError(
                f"a soft target must have the shape of logits {tuple(logits.shape)}, received "
                f"{tuple(target.shape)} (sizes that differ by padded classes must be aligned by you)"
            )
        if not holds(target >= 0):
            raise InputError("a soft target must be >= 0, received a negative or NaN probability")
        return False
    if tuple(target.shape) != rows:
        raise InputError(
            f"class indices for logits {tuple(logits.shape)} with classes along dim={dim} must have "
            f"shape {rows}, received {tuple(target.shape)}"
        )
    if not holds(((target >= 0) & (target < classes)) | (target == ignore_index)):
        bad = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
        raise InputError(
            f"target {int(bad[0])} is not a class: logits have {classes}, and ignore_index is {ignore_index}"
        )
    return True


def _class_weight(weight: Tensor | None, logits: Tensor, dim: int, scores: Tensor) -> Tensor | None:
    if weight is None:
        return None
    if tuple(weight.shape) != (logits.shape[dim],):
        raise InputError(
            f"weight must have one number per class, shape ({logits.shape[dim]},), received "
            f"{tuple(weight.shape)}"
        )
    return weight.to(scores.dtype)
