"""The Fitzpatrick logistic loss of a language-model head, made of cross-entropy's pass over it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fenchel.divergences import divergence
from fenchel.losses.fenchel_young import check_smoothing, class_indices
from fenchel.losses.fitzpatrick import fitzpatrick_logistic_loss, of_cross_entropy
from fenchel.losses.head import Tokens
from fenchel.losses.linear import flat_target, head_of, in_chunks, losses_of, may_fuse
from fenchel.losses.reduce import reduce
from fenchel.operators._inputs import check_temperature


def linear_fitzpatrick_logistic_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    chunk: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """`fitzpatrick_logistic_loss` of the logits hidden @ weight.T + bias, which are never held as a whole.

    For a label it is W((e^c - 1) / e), where c is the cross-entropy: what `linear_fenchel_young_loss`
    computes, and a number for each row on top. The gradients are made in the same pass, chunk by chunk, in
    float32 at least; the loss has the absolute precision of c. Soft targets and smoothed labels are no
    function of c: they take differentiable steps on chunks of logits, which the backward pass computes again.

    Args:
        hidden: last hidden states, (..., d).
        weight: the head, (V, d).
        target: class indices (...), or probabilities (..., V).
        bias: of the head, (V,).
        ignore_index, label_smoothing: as in `fitzpatrick_logistic_loss`.
        temperature: T > 0, a number.
        reduction: "mean" (over targets that count), "sum" or "none". Where the rows' losses then have
            gradients that differ, as "none" allows, logits are computed a second time in the backward pass.
        chunk: rows whose logits are held at a time; by default 2^23 / V on a CPU.
        impl: which implementation of the "token_loss" runs, see `fenchel.which`; "eager" is plain PyTorch,
            and what runs under `torch.compile` and `torch.func`.

    Returns:
        The loss in nats, in float32 at least; for "none" the shape of hidden without d.

    Raises:
        InputError: shapes or values that do not fit, quoting what was received.

    Example:
        >>> import torch
        >>> hidden, weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2)
        >>> loss = linear_fitzpatrick_logistic_loss(hidden, weight, torch.tensor([1, 1]), reduction="none")
        >>> loss  # W(1) and W(e^-3)
        tensor([0.5671, 0.0475])

    Reference:
        Rakotomandimby, Chancelier, de Lara and Blondel, 2024, arXiv 2405.14574; Wijmans et al., 2024, arXiv
        2411.09009 (losses without the logits).
    """
    scores, shape = head_of(hidden, weight, bias, "hidden", "weight")
    check_temperature(temperature)
    check_smoothing(label_smoothing)
    flat = flat_target(target, hidden, scores)
    if impl == "eager" or flat.is_floating_point() or label_smoothing or not may_fuse(scores, flat):

        def loss(logits: Tensor, part: Tensor) -> Tensor:
            return fitzpatrick_logistic_loss(
                logits,
                part,
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                temperature=temperature,
                reduction="none",
            )

        losses = in_chunks(loss, scores, flat, chunk=chunk).view(shape)
        mask = None if flat.is_floating_point() else target != ignore_index
        return reduce(losses, reduction=reduction, mask=mask)
    counted = class_indices(flat, scores.vocabulary, ignore_index)
    criterion = _Margins(counted, divergence("kl"), impl=impl)
    losses = losses_of(scores.over(temperature), criterion, chunk).view(shape)
    return reduce(losses, reduction=reduction, count=(counted >= 0).sum())


@dataclass
class _Margins(Tokens):
    """The Fitzpatrick logistic loss of tokens, made of their cross-entropies."""

    def dense(self, logits: Tensor, rows: slice, gradient: bool) -> Tensor:
        losses, slope = of_cross_entropy(super().dense(logits, rows, gradient))
        if gradient:
            logits *= slope.unsqueeze(-1)
        return losses

    def plain(self, logits: Tensor, rows: slice) -> Tensor:
        return fitzpatrick_logistic_loss(logits, self.target[rows], ignore_index=-1, reduction="none")
