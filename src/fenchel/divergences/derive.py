"""What a user's own f implies, derived numerically: the fields of an `FDivergence` that were not given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fenchel.errors import InputError

if TYPE_CHECKING:
    from fenchel.divergences.record import FDivergence

Elementwise = Callable[[Tensor], Tensor]
_LOG_RANGE = 340.0  # e^±340 and its square stay inside float64
_REQUIRED = (
    "derivative",
    "shift",
    "conjugate_of_ratio",
    "elasticity",
    "f_centred",
    "perspective",
)


def missing_fields(record: FDivergence) -> dict[str, Any]:
    """Derived values for the fields of `record` that are None or NaN."""
    f = record.f
    found: dict[str, Any] = {}

    def absent(field: str) -> bool:
        value = getattr(record, field)
        return value is None or (isinstance(value, float) and math.isnan(value))

    if not any(absent(name) for name in (*_REQUIRED, "at_zero", "derivative_at_zero", "slope")):
        return found
    _check_generator(record.name, f)
    derivative = _in_float64(slope_of(f)) if absent("derivative") else record.derivative
    if absent("derivative"):
        found["derivative"] = derivative
    for field, function, sign in (
        ("at_zero", f, -1.0),
        ("derivative_at_zero", derivative, -1.0),
        ("slope", derivative, 1.0),
    ):
        if absent(field):
            found[field] = _limit(function, sign)
    at_zero = found.get("at_zero", record.at_zero)
    gauge = at_zero if math.isfinite(at_zero) else 0.0

    def centred(u: Tensor) -> Tensor:
        """f need not be defined at 0 itself (u log u is not)."""
        return torch.where(u > 0, f(torch.where(u > 0, u, 1.0)) - gauge, at_zero - gauge)

    f_centred = _in_float64(centred) if absent("f_centred") else record.f_centred
    derived: dict[str, Any] = {
        "f_centred": f_centred,
        "elasticity": _in_float64(lambda u: 1 / (u * slope_of(derivative)(u))),
        "conjugate_of_ratio": _in_float64(lambda u: u * derivative(u) - f_centred(u)),
        "shift": _inverse(derivative, found.get("derivative_at_zero", record.derivative_at_zero)),
        "perspective": lambda log_p, log_q: log_q.exp() * f((log_p - log_q).exp()),
    }
    return found | {field: value for field, value in derived.items() if absent(field)}


def slope_of(function: Elementwise) -> Elementwise:
    """The elementwise derivative, itself differentiable."""

    def derivative(u: Tensor) -> Tensor:
        tangent: Tensor = torch.func.jvp(function, (u,), (torch.ones_like(u),))[1]
        return tangent

    return derivative


def _in_float64(function: Elementwise) -> Elementwise:
    """Numerical derivatives and differences have no digits to spare."""
    return lambda u: function(u.double()).to(u.dtype)


def _limit(function: Elementwise, sign: float) -> float:
    """lim function(e^(sign t)) as t → ∞: a number when the steps shrink geometrically, else ±inf."""
    t = sign * torch.tensor([40.0, 80.0, 160.0, 320.0], dtype=torch.float64)
    values = function(t.exp())
    steps = values.diff()
    first, last = float(steps[0]), float(steps[-1])
    if not math.isfinite(last):
        return math.copysign(math.inf, float(values[torch.isfinite(values)][-1]))
    scale = max(1.0, float(values.abs().max()))
    if abs(last) <= 1e-12 * scale or abs(last) < 0.5 * abs(first):
        return _clean(float(values[-1]))
    return math.copysign(math.inf, last)


def _clean(x: float) -> float:
    """The nearby integer, where rounding alone separates them."""
    return float(round(x)) if abs(x - round(x)) < 1e-12 else x


def _inverse(derivative: Elementwise, derivative_at_zero: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(u, gap) → the x with f'(x) = f'(u) - gap, by bisection in log x, computed in float64."""

    def shift(u: Tensor, gap: Tensor) -> Tensor:
        value = (derivative(u.double()) - gap.double()).expand(torch.broadcast_shapes(u.shape, gap.shape))
        low = torch.full_like(value, -_LOG_RANGE)
        high = -low
        for _ in range(62):
            middle = (low + high) / 2
            above = derivative(middle.exp()) > value
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        root = ((low + high) / 2).exp()
        return torch.where(value > derivative_at_zero, root, 0.0).to(u.dtype)

    return shift


def _grid() -> Tensor:
    return torch.linspace(math.log(1e-2), math.log(1e2), 129, dtype=torch.float64).exp()


def _check_generator(name: str, f: Elementwise) -> None:
    """f is finite on (0, ∞), zero at 1 and strictly convex, on a grid from 1e-2 to 1e2."""
    u = _grid()
    values = f(u)
    if values.shape != u.shape:
        raise InputError(
            f"divergence {name!r}: f must be elementwise, but shape {tuple(u.shape)} became "
            f"{tuple(values.shape)}"
        )
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        at = float(u[~finite][0])
        raise InputError(f"divergence {name!r}: f({at:g}) is {float(f(u)[~finite][0])}, not finite")
    at_one = float(f(torch.ones((), dtype=torch.float64)))
    if abs(at_one) > 1e-9:
        raise InputError(f"divergence {name!r}: f(1) must be 0, received {at_one:g}; subtract it from f")
    rising = slope_of(f)(u).diff() > 0
    if not bool(rising.all()):
        at = float(u[:-1][~rising][0])
        raise InputError(
            f"divergence {name!r}: f is not strictly convex, f' does not increase near u = {at:g}"
        )


def check(record: FDivergence) -> None:
    """Raise InputError unless every field of `record` agrees with its f (see `FDivergence.check`)."""
    _check_generator(record.name, record.f)
    u = _grid()
    derivative = slope_of(record.f)(u)
    curvature = slope_of(slope_of(record.f))(u)
    centred = record.f(u) - record.gauge
    expected = {
        "derivative": (record.derivative(u), derivative),
        "elasticity": (record.elasticity(u), 1 / (u * curvature)),
        "f_centred": (record.f_centred(u), centred),
        "conjugate_of_ratio": (record.conjugate_of_ratio(u), u * derivative - centred),
        "perspective": (record.perspective(u.log(), torch.zeros_like(u)), record.f(u)),
        "shift": (record.derivative(record.shift(u[1:], derivative.diff())), derivative[:-1]),
    }
    for field, (received, wanted) in expected.items():
        # u f'(u) - f(u) cancels by up to u f'(u), so errors count relative to that.
        scale = 1 + wanted.abs() + (u * derivative.abs())[: len(wanted)]
        error = (received - wanted).abs() / scale
        worst = int(error.argmax())
        if not float(error[worst]) < 1e-6:
            raise InputError(
                f"divergence {record.name!r}: {field} disagrees with f near u = {float(u[worst]):g}: "
                f"received {float(received[worst]):g}, f implies {float(wanted[worst]):g}"
            )
