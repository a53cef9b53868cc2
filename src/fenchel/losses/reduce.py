"""The one reduction: masks, weights, sums and means, and the global token count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fenchel.errors import InputError

REDUCTIONS = ("none", "sum", "mean")


def check_rows(x: Tensor | None, rows: Sequence[int], name: str) -> None:
    """Raise InputError unless x, if there is one, has a number for each row: broadcasting would miscount."""
    if x is not None and tuple(x.shape) != tuple(rows):
        raise InputError(f"{name} must have the shape of the rows {tuple(rows)}, received {tuple(x.shape)}")


def reduce(
    values: Tensor,
    *,
    reduction: str = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    count: float | Tensor | None = None,
) -> Tensor:
    """Reduce per-element values: Σ m v for "sum", Σ m v / Σ m w for "mean", m v for "none".

    Args:
        values: per-element losses, any shape.
        reduction: "none", "sum" or "mean".
        mask: elements that count (True or 1), the shape of values; others give 0 and no gradient,
            whatever they hold.
        weight: what each element adds to the denominator of the mean (default 1), the shape of values.
        count: the denominator itself, for example the number of tokens of the global batch over all
            processes and accumulation steps; the mean is then a sum divided by it.

    Returns:
        A scalar, or the masked values for "none". A mean over nothing is 0, with zero gradient.

    Raises:
        InputError: the reduction is unknown.

    Example:
        >>> import torch
        >>> reduce(torch.tensor([1.0, 2.0, 9.0]), mask=torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    if reduction not in REDUCTIONS:
        raise InputError(f"reduction must be one of {', '.join(REDUCTIONS)}, received {reduction!r}")
    if mask is not None:
        values = torch.where(mask.bool(), values, 0.0)
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    if count is None:
        counted = torch.ones_like(values) if weight is None else weight
        count = (counted if mask is None else torch.where(mask.bool(), counted, 0.0)).sum()
    if isinstance(count, Tensor):
        return total / torch.where(count == 0, torch.ones_like(count), count)
    return total / (count or 1)
