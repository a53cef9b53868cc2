"""Fitzpatrick losses: tighter than the Fenchel-Young losses of the same links, and zero where they are.

Both are the least value over a number λ of a sum over classes,

    L(y, θ) = min_λ Σ_i h(y_i, θ_i - λ),

whose terms are >= 0, so that no digits are lost where the loss is small, and whose derivative in λ is
Σ y - Σ y*, so that the y* of the least λ sums to one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.divergences import divergence
from fenchel.divergences.table import wright_omega
from fenchel.errors import InputError
from fenchel.losses.fenchel_young import check_smoothing, class_weight, is_hard
from fenchel.losses.reduce import reduce
from fenchel.operators._inputs import check_axis, check_logits, class_last, scale_by
from fenchel.operators.engine import solve

_SPARSEMAX = divergence("alpha:2")
# Newton's method halves the logarithm of an error that begins below 1: after six steps it is 1e-25.
_NEWTON_STEPS = 6


def fitzpatrick_logistic_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """The Fitzpatrick logistic loss, a tighter cross-entropy: 0 <= L(y, θ) <= KL(y, softmax(θ)).

    L(y, θ) = sup_{y' in simplex} <y' - y, θ - log y'> = Σ_i (y*_i - y_i)² / y*_i, with θ = logits / T and
    y*_i = y_i / W(y_i e^(λ - θ_i)), which is e^(θ_i - λ) where y_i = 0, and λ such that Σ y* = 1.

    For a label k it is W(e^(-1 - m)) and depends on the margin m = θ_k - log Σ_{j≠k} e^θ_j alone: linear for
    a wrong label, 1/e of the cross-entropy for a right one. It is convex in θ and in y, and 0 if and only if
    softmax(θ) = y. Its gradient in θ is y* - y, and in y it is W(y_i e^(λ - θ_i)) - 1 up to a constant.

    Derivatives are exact to third order, in the logits and in soft targets, under `torch.func` and
    `torch.compile` too.

    Args:
        logits: scores, shape (..., V, ...), any float dtype; half types are computed in float32. -inf
            removes a class: it has y* = 0 and does not count.
        target: class indices, the shape of logits without `dim`; or probabilities, the shape of logits,
            summing to one along `dim` (differentiable).
        weight: weights of the classes, shape (V,). A soft target y counts as the target w ⊙ y, which is that
            of proportions (w ⊙ y) / Σ w y with weight Σ w y.
        ignore_index: an index target that adds nothing to the loss.
        label_smoothing: ε in [0, 1): the target becomes (1 - ε) y + ε / V, over the classes not removed.
        reduction: "mean" (over targets, weighted by the weights of their classes), "sum" or "none".
        dim: the axis of the classes.
        temperature: T > 0, a number or a tensor with size 1 along `dim`.

    Returns:
        The loss in nats, in the dtype of logits: a scalar, or the shape of logits without `dim` for "none".

    Raises:
        InputError: shapes, dtypes, or values (on CPU) that do not fit, quoting what was received.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 1.0]], requires_grad=True)  # a margin of -1 for the label 0
        >>> loss = fitzpatrick_logistic_loss(logits, torch.tensor([0]))
        >>> round(loss.item(), 4)  # W(1); cross-entropy is 1.3133
        0.5671
        >>> loss.backward()
        >>> logits.grad
        tensor([[-0.3619,  0.3619]])

    Reference:
        Rakotomandimby, Chancelier, de Lara and Blondel, 2024, arXiv 2405.14574.
    """
    return _token_loss(
        _logistic_label,
        logistic_rows,
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
        temperature=temperature,
    )


def fitzpatrick_sparsemax_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """The Fitzpatrick sparsemax loss, tighter than the sparsemax loss: `fenchel_young_loss` of "alpha:2".

    L(y, θ) = sup_{y' in simplex} <y' - y, θ - y'> = <y* - y, θ - y*>, where y* = sparsemax((y + θ) / 2) is
    the projection of (y + θ) / 2 onto the simplex, and θ = logits / T.

    It is convex in θ and in y, and 0 if and only if sparsemax(θ) = y. Its gradient in θ is y* - y, and in y
    it is y* - θ up to a constant. Second derivatives are exact where the support of y* does not change, under
    `torch.func` and `torch.compile` too.

    Args:
        logits: scores, shape (..., V, ...), any float dtype; half types are computed in float32. -inf
            removes a class: it has y* = 0 and does not count.
        target: class indices, the shape of logits without `dim`; or probabilities, the shape of logits,
            summing to one along `dim` (differentiable).
        weight, ignore_index, label_smoothing, reduction, dim, temperature: as in
            `fitzpatrick_logistic_loss`.

    Returns:
        The loss, in the dtype of logits: a scalar, or the shape of logits without `dim` for "none".

    Raises:
        InputError: shapes, dtypes, or values (on CPU) that do not fit, quoting what was received.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 1.0]], requires_grad=True)
        >>> loss = fitzpatrick_sparsemax_loss(logits, torch.tensor([0]))
        >>> loss.item()  # the sparsemax loss is 0.25
        0.125
        >>> loss.backward()
        >>> logits.grad
        tensor([[-0.2500,  0.2500]])

    Reference:
        Rakotomandimby, Chancelier, de Lara and Blondel, 2024, arXiv 2405.14574.
    """
    return _token_loss(
        _sparsemax_label,
        _sparsemax,
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
        temperature=temperature,
    )


def of_cross_entropy(losses: Tensor) -> tuple[Tensor, Tensor]:
    """The Fitzpatrick logistic losses W((e^c - 1) / e) of labels of cross-entropy c >= 0, and dL/dc."""
    probability = -torch.expm1(-losses)  # of the other classes
    omega = _wright_omega(losses + probability.log() - 1)
    held = omega.clamp_max(torch.finfo(omega.dtype).max)  # a class that is masked: the slope is 1
    slope = held / ((1 + held) * probability)
    return omega, torch.where(losses > 0, slope, torch.exp(torch.full_like(slope, -1.0)))


def _token_loss(
    of_label: Callable[[Tensor, Tensor], Tensor],
    of_distribution: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    dim: int,
    temperature: float | Tensor,
) -> Tensor:
    """The face of cross-entropy over losses of rows, classes last, with labels (..., 1) or distributions."""
    check_axis(logits, dim)
    check_smoothing(label_smoothing)
    hard = is_hard(logits, target, dim, ignore_index)
    scores, _ = scale_by(class_last(logits, dim), temperature, logits, dim)
    class_weights = class_weight(weight, logits, dim, scores)
    mask = label = counted = None
    if hard:
        mask = target != ignore_index
        label = torch.where(mask, target, 0).long().unsqueeze(-1)
        scores = torch.where(mask.unsqueeze(-1), scores, 0.0)  # a row that does not count may hold anything
        counted = None if class_weights is None else class_weights[label.squeeze(-1)]
    else:
        check_simplex(target, dim)
    if not holds(torch.isfinite(scores.detach().amax(-1))):
        check_logits(logits, dim)
    if label is not None and not label_smoothing:
        losses = of_label(scores, label)
        losses = losses if counted is None else counted * losses
    else:
        y = _one_hot(scores, label) if label is not None else target.movedim(dim, -1).to(scores.dtype)
        if label_smoothing:
            present = torch.isfinite(scores).to(y.dtype)
            y = (1 - label_smoothing) * y + label_smoothing * present / present.sum(-1, keepdim=True)
        y = y if class_weights is None else class_weights * y
        mass = y.sum(-1)
        losses = mass * of_distribution(scores, y / torch.where(mass > 0, mass, 1.0).unsqueeze(-1))
    return reduce(losses, reduction=reduction, mask=mask, weight=counted).to(logits.dtype)


def check_simplex(target: Tensor, dim: int) -> None:
    """Raise InputError unless the distributions along `dim` sum to one, to the precision of their dtype."""
    total = target.detach().to(torch.promote_types(target.dtype, torch.float32)).sum(dim)
    # Rounding is relative to an entry, but for the ones below the smallest normal number of the dtype.
    kind = torch.finfo(target.dtype)
    off = (total - 1).abs() > 1e-4 + kind.eps * (1 + target.shape[dim] * kind.smallest_normal)
    if holds(~off):
        return
    row = tuple(torch.nonzero(off)[0].tolist())
    raise InputError(
        f"a soft target must sum to one along dim={dim}, received a sum of {float(total[row]):.6g} in row "
        f"{row}"
    )


def _one_hot(scores: Tensor, label: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter(-1, label, 1.0)


# -- Sparsemax: h(y, d) = (d - y)² where d > 0, else y² - 2 y d, with d = z - τ of z = (y + θ) / 2.


def _sparsemax_label(scores: Tensor, label: Tensor) -> Tensor:
    return _sparsemax(scores, _one_hot(scores, label))


def _sparsemax(scores: Tensor, y: Tensor) -> Tensor:
    present = torch.isfinite(scores)
    # Less the top score, so that the sum with y keeps the digits of y.
    middle = 0.5 * (y + (scores - scores.detach().amax(-1, keepdim=True)))
    _, _, threshold, top = solve(middle, None, _SPARSEMAX, with_value=False)
    # f' of the record is u - 1, that of the projection u.
    depth = torch.where(present, middle - (top + threshold - 1).unsqueeze(-1), 0.0)
    terms = torch.where(depth > 0, (depth - y).square(), y * (y - 2 * depth))
    return _sum(terms, y, present)


# -- Logistic: h(y, t) = (v - y)² / v, with v the root of log v - y / v = t = θ - λ.


def _logistic_label(scores: Tensor, label: Tensor) -> Tensor:
    others = scores.scatter(-1, label, -torch.inf)
    top = others.detach().amax(-1, keepdim=True)
    alone = ~torch.isfinite(top)
    gaps = torch.where(alone, 0.0, others - torch.where(alone, 0.0, top))
    excess = torch.where(alone, 0.0, top) - scores.gather(-1, label)
    against = torch.where(alone.squeeze(-1), -torch.inf, excess.squeeze(-1) + torch.logsumexp(gaps, -1))
    return _wright_omega(against - 1)


def _wright_omega(x: Tensor) -> Tensor:
    """ω(x) = W(e^x) for any x, infinite ones too, with derivatives exact to third order."""
    at = x.detach()
    largest = torch.finfo(x.dtype).max
    omega = torch.where(at < -50, at.exp(), wright_omega(at.clamp(-50, largest)))
    omega = torch.where(at == torch.inf, at, omega)
    finite = at.abs() < torch.inf
    # Two steps of Newton for the change of log ω, from the root: each doubles the order that is exact.
    moved = torch.where(finite, x - torch.where(finite, at, 0.0), 0.0)
    fixed = torch.where(finite, omega, 0.0)
    change = moved / (1 + fixed)
    change = change - (change + fixed * torch.expm1(change) - moved) / (1 + fixed * change.exp())
    return torch.where(finite, fixed * change.exp(), omega)


def logistic_rows(scores: Tensor, y: Tensor) -> Tensor:
    """The saddle value Σ (v - y)(1 + θ - λ - log v) in v and λ.

    Where v and λ are right to first order it is right to third, so that v and λ are found without gradients
    and then moved by the differentials of θ and y, which are zero in value.
    """
    present = torch.isfinite(scores)
    v = _dual_distribution(scores.detach(), torch.where(present, y, 0.0).detach())
    v = v.clamp_min(torch.finfo(v.dtype).tiny)
    ratio = y / v
    fixed = ratio.detach()
    slope = 1 / (1 + fixed)
    scores = torch.where(present, scores, 0.0)
    by_scores, by_ratio = scores - scores.detach(), ratio - fixed
    pull = v * (slope * (by_scores + by_ratio) - by_ratio)
    shift = by_scores - (pull.sum(-1) / (v * slope).sum(-1)).unsqueeze(-1)  # of θ - λ
    change = slope * (shift + by_ratio)  # of log v
    return _sum((v * change.exp() - y) * (1 - fixed + shift - change), y, present)


def _dual_distribution(scores: Tensor, y: Tensor) -> Tensor:
    """y*, which sums to one. λ lies at most 1 above logsumexp θ; log Σ v is convex in it."""
    t = scores - scores.amax(-1, keepdim=True)
    t = t - torch.logsumexp(t, -1, keepdim=True)
    log_y = y.log()

    def step(t: Tensor) -> tuple[Tensor, Tensor]:
        omega = _wright_omega(torch.where(y > 0, log_y - t, -torch.inf))
        return omega, torch.where(omega > 1, y / omega, (t + omega).exp())

    for _ in range(_NEWTON_STEPS):
        omega, v = step(t)
        total = v.sum(-1, keepdim=True)
        t = t - total.log() * total / (v / (1 + omega)).sum(-1, keepdim=True)
    return step(t)[1]


def _sum(terms: Tensor, y: Tensor, present: Tensor) -> Tensor:
    """Σ over the classes that are not masked; infinite where the target names one that is."""
    terms = torch.where(present, terms, torch.where(y > 0, torch.inf, 0.0))
    return terms.sum(-1)
