"""Fitzpatrick losses of yes-or-no targets, with the face of `binary_cross_entropy_with_logits`."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import InputError
from fenchel.losses.fenchel_young import check_tensor
from fenchel.losses.fitzpatrick import logistic_rows
from fenchel.losses.reduce import reduce


def binary_fitzpatrick_logistic_loss(
    logits: Tensor, target: Tensor, *, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """`fitzpatrick_logistic_loss` of the two classes of scores s and 0, where the first has probability y.

    L(y, s) = (q - y)² / (q (1 - q)), with q the root of logit(q) - y / q + (1 - y) / (1 - q) = s.
    For y = 1 it is W(e^(-1 - s)), for y = 0 it is W(e^(s - 1)).

    0 <= L <= KL of (y, 1 - y) from (σ(s), 1 - σ(s)), which for y of 0 or 1 is
    `binary_cross_entropy_with_logits`; L = 0 if and only if σ(s) = y. Its gradient in s is q - y.

    Args:
        logits: scores s, any shape, any float dtype; half types are computed in float32.
        target: y in [0, 1], the shape of logits (differentiable).
        weight: of every loss, >= 0, broadcastable to logits. The mean divides by the number of losses.
        reduction: "mean", "sum" or "none".

    Returns:
        The loss in nats, in the dtype of logits: a scalar, or the shape of logits for "none".

    Raises:
        InputError: shapes that differ, a target outside [0, 1], a logit that is not finite, a weight below 0.

    Example:
        >>> import torch
        >>> s = torch.tensor([-1.0, 0.0])
        >>> binary_fitzpatrick_logistic_loss(s, torch.tensor([1.0, 0.5]), reduction="none")
        tensor([0.5671, 0.0000])

    Reference:
        Rakotomandimby, Chancelier, de Lara and Blondel, 2024, arXiv 2405.14574.
    """
    s, y = _prepare(logits, target)
    losses = logistic_rows(torch.stack([s, torch.zeros_like(s)], -1), torch.stack([y, 1 - y], -1))
    return _finish(losses, weight, reduction, logits)


def binary_fitzpatrick_sparsemax_loss(
    logits: Tensor, target: Tensor, *, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """`fitzpatrick_sparsemax_loss` of the two classes of scores s and 0, where the first has probability y.

    L(y, s) = (q - y) (s + 1 - 2q), with q = (2y + s + 1) / 4 held in [0, 1]: 2 (q - y)² between these bounds,
    and linear in s beyond.

    0 <= L <= the sparsemax loss of the two classes, with L = 0 if and only if y = (s + 1) / 2 held in [0, 1].
    Its gradient in s is q - y.

    Args:
        logits: scores s, any shape, any float dtype; half types are computed in float32.
        target: y in [0, 1], the shape of logits (differentiable).
        weight: of every loss, >= 0, broadcastable to logits. The mean divides by the number of losses.
        reduction: "mean", "sum" or "none".

    Returns:
        The loss, in the dtype of logits: a scalar, or the shape of logits for "none".

    Raises:
        InputError: shapes that differ, a target outside [0, 1], a logit that is not finite, a weight below 0.

    Example:
        >>> import torch
        >>> s = torch.tensor([0.0, 1.0, -4.0])
        >>> binary_fitzpatrick_sparsemax_loss(s, torch.ones(3), reduction="none")
        tensor([0.1250, 0.0000, 3.0000])

    Reference:
        Rakotomandimby, Chancelier, de Lara and Blondel, 2024, arXiv 2405.14574.
    """
    s, y = _prepare(logits, target)
    q = 0.25 * (2 * y + s + 1)
    beyond = torch.where(q >= 1, (1 - y) * (s - 1), -y * (s + 1))
    losses = torch.where((q > 0) & (q < 1), 2 * (q - y).square(), beyond)
    return _finish(losses, weight, reduction, logits)


def _prepare(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """s and y in float32 at least."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        received = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"logits must be a floating-point tensor, received {received}")
    check_tensor(target, "target")
    if target.shape != logits.shape:
        raise InputError(
            f"target must have the shape of logits {tuple(logits.shape)}, received {tuple(target.shape)}"
        )
    if not holds((target >= 0) & (target <= 1)):
        bad = target[~((target >= 0) & (target <= 1))]
        raise InputError(f"target must be in [0, 1], received {float(bad[0]):.6g}")
    if not holds(torch.isfinite(logits)):
        bad = logits[~torch.isfinite(logits)]
        raise InputError(f"logits must be finite, received {float(bad[0])}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), target.to(dtype)


def _finish(losses: Tensor, weight: Tensor | None, reduction: str, logits: Tensor) -> Tensor:
    if weight is not None:
        check_tensor(weight, "weight")
        good = (weight >= 0) & torch.isfinite(weight)
        if not holds(good):
            raise InputError(f"weight must be >= 0 and finite, received {float(weight[~good][0])}")
        try:
            losses = losses * weight.to(losses.dtype).expand(losses.shape)
        except RuntimeError:
            raise InputError(
                f"weight must broadcast to logits {tuple(logits.shape)}, received shape {tuple(weight.shape)}"
            ) from None
    return reduce(losses, reduction=reduction).to(logits.dtype)
