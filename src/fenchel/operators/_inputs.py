"""What operators and losses accept: shapes, dtypes and values, checked once, with errors that quote."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import InputError


def check_axis(logits: Tensor, dim: int, *, name: str = "logits", empty: bool = False) -> None:
    """Raise InputError unless `logits` have classes along `dim`, or none where `empty` allows it."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        received = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{name} must be a floating-point tensor, received {received}")
    if logits.dim() == 0 or not -logits.dim() <= dim < logits.dim():
        raise InputError(f"{name} of shape {tuple(logits.shape)} have no axis dim={dim}")
    if logits.shape[dim] == 0 and not empty:
        raise InputError(f"{name} of shape {tuple(logits.shape)} have no classes along dim={dim}")


def check_logits(logits: Tensor, dim: int, *, name: str = "logits") -> None:
    """Raise InputError unless `logits` can be normalised along `dim`: it looks at every one."""
    check_axis(logits, dim, name=name)
    top = logits.detach().amax(dim)
    if holds(torch.isfinite(top)):
        return
    row = tuple(torch.nonzero(~torch.isfinite(top))[0].tolist())
    value = float(top[row])
    what = "is all -inf: every class is masked" if value == -torch.inf else f"holds {value}"
    raise InputError(f"{name} of shape {tuple(logits.shape)}: row {row} along dim={dim} {what}")


def check_finite(x: Tensor, dim: int, *, name: str = "x") -> None:
    """Raise InputError unless `x` has entries along `dim`, all of them finite."""
    check_axis(x, dim, name=name)
    finite = torch.isfinite(x.detach())
    if not holds(finite):
        place = tuple(torch.nonzero(~finite)[0].tolist())
        raise InputError(
            f"{name} of shape {tuple(x.shape)} must be finite, holds {float(x.detach()[place])} at {place}"
        )


def class_last(x: Tensor, dim: int) -> Tensor:
    """The classes on the last axis, half types in float32."""
    return x.movedim(dim, -1).to(torch.promote_types(x.dtype, torch.float32))


def check_numbers(values: Tensor, name: str, *, finite: bool = False) -> Tensor:
    """The values; raises InputError for a NaN, or what is not finite, where looking is free."""
    bad = ~torch.isfinite(values) if finite else torch.isnan(values)
    if not holds(~bad):
        where = tuple(torch.nonzero(bad)[0].tolist())
        found = float(values.detach()[where])
        raise InputError(f"{name} of shape {tuple(values.shape)} holds {found} at {where}")
    return values


def check_temperature(temperature: float) -> None:
    """Raise InputError unless scores can be divided by it."""
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be positive and finite, received {temperature}")


def scale_by(
    scores: Tensor, temperature: float | Tensor, logits: Tensor, dim: int
) -> tuple[Tensor, Tensor | float]:
    """scores / T (classes last) and T, broadcastable to the scores' shape without the classes."""
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
        return (scores, 1.0) if temperature == 1 else (scores / temperature, temperature)
    if not holds(temperature > 0):
        raise InputError(f"temperature must be positive, received {float(temperature.detach().min())}")
    if temperature.dim() == 0:
        return scores / temperature.to(scores.dtype), temperature.to(scores.dtype)
    if temperature.dim() != logits.dim() or temperature.shape[dim] != 1:
        raise InputError(
            f"temperature must be a scalar or broadcast to logits {tuple(logits.shape)} with size 1 "
            f"along dim={dim}, received shape {tuple(temperature.shape)}"
        )
    last = temperature.movedim(dim, -1).to(scores.dtype)
    return scores / last, last.squeeze(-1)


def prepare_reference(reference: float | Tensor, logits: Tensor, dim: int, scores: Tensor) -> Tensor | None:
    """q with the shape of scores (classes last), or None for the unit measure."""
    if not isinstance(reference, Tensor):
        if not 0 < reference < float("inf"):
            raise InputError(f"the reference measure must be positive, received {reference}")
        return None if reference == 1 else torch.full_like(scores, reference).detach()
    if not holds(reference > 0):
        raise InputError(
            "the reference measure must be positive (mask a class by a logit of -inf instead), "
            f"received {float(reference.detach().min())}"
        )
    q = reference.to(scores.dtype)
    try:
        if q.dim() == 1:
            return q.expand(scores.shape)
        return q.expand(logits.shape).movedim(dim, -1)
    except RuntimeError:
        raise InputError(
            f"the reference measure must be a number, ({logits.shape[dim]},) or broadcast to logits "
            f"{tuple(logits.shape)}, received shape {tuple(reference.shape)}"
        ) from None
