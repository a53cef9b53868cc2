"""The record that an f-divergence is.

D_f(p, q) = Σ_j q_j f(p_j / q_j), with f convex on (0, ∞) and f(1) = 0.

A record keeps what its definition says (f, f', f(0), f'(0), the slope at infinity) and four functions
that say the same things without cancellation, as functions of the density ratio u = p/q. The engine
(`fenchel.operators.engine`) is written in them alone, and they are why it keeps its digits where q is
small, scores are large or p is nearly zero:

    shift(u, gap)          f*'(f'(u) - gap): the ratio of a class whose score is lower by `gap`
    conjugate_of_ratio(u)  f*(f'(u)) + f(0)  (f(0) only where it is finite)
    elasticity(u)          d log u / dv = f*''(v) / u at v = f'(u), that is 1 / (u f''(u))
    f_centred(u)           f(u) - f(0)       (f(0) only where it is finite)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from fenchel.checks import looked
from fenchel.divergences import derive
from fenchel.errors import InputError

Elementwise = Callable[[Tensor], Tensor]
Pairwise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class FDivergence:
    """One f-divergence, as a frozen record; call it on probabilities to get D_f(p, q).

    Only `name` and `f` are required: `FDivergence("mine", f)` derives every other field numerically
    (derivatives by automatic differentiation, f*' by inverting f', limits by extrapolation) and checks
    on construction that f is finite, strictly convex and zero at 1, and that the fields that you give
    agree with it.

    Args:
        name: what it is called in messages and tables.
        f: elementwise convex function of a tensor of ratios u > 0, with f(1) = 0, made of
            differentiable torch operations.
        derivative: f'.
        shift: (u, gap) -> f*'(f'(u) - gap), 0 where f'(u) - gap <= f'(0).
        conjugate_of_ratio: u -> f*(f'(u)) + f(0), the last term only where it is finite.
        elasticity: u -> 1 / (u f''(u)).
        f_centred: u -> f(u) - f(0), the last term only where it is finite.
        perspective: (log p, log q) -> q f(p / q) for finite arguments.
        at_zero: f(0), possibly inf.
        derivative_at_zero: f'(0), possibly -inf; finite if and only if f-softargmax gives exact zeros.
        slope: sup dom f* = lim f(u)/u as u -> inf, possibly inf.
        kappa: the solver's coordinate u^kappa (log u at 0) in which the normalisation is most linear.
        formula: f(u) as text.
        reference: where the divergence comes from.

    Raises:
        InputError: f is not finite, not convex or not zero at 1, or a given field contradicts it.

    Example:
        >>> import torch
        >>> from fenchel import alpha
        >>> mine = FDivergence("square", lambda u: (u - 1) ** 2)
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> torch.testing.assert_close(mine(p, q), alpha(2)(p, q) * 2)
        >>> float(mine.conjugate(torch.tensor(2.0)))
        3.0

    Reference:
        Ali and Silvey, 1966; Csiszár, 1967.
    """

    name: str
    f: Elementwise
    derivative: Elementwise = None  # type: ignore[assignment]
    shift: Pairwise = None  # type: ignore[assignment]
    conjugate_of_ratio: Elementwise = None  # type: ignore[assignment]
    elasticity: Elementwise = None  # type: ignore[assignment]
    f_centred: Elementwise = None  # type: ignore[assignment]
    perspective: Pairwise = None  # type: ignore[assignment]
    at_zero: float = math.nan
    derivative_at_zero: float = math.nan
    slope: float = math.nan
    kappa: float = 0.0
    formula: str = ""
    reference: str = ""
    is_power: bool = field(init=False)
    """Whether u f''(u) = c u^kappa, as of the α-divergences: there the root may have a closed form."""

    def __post_init__(self) -> None:
        derived = derive.missing_fields(self)
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        if derived:
            self.check()
        u = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
        scaled = (self.elasticity(u) * u**self.kappa).expand(5)
        object.__setattr__(self, "is_power", bool(torch.allclose(scaled, scaled[:1], rtol=1e-12)))

    def check(self) -> None:
        """Raise InputError unless f is a divergence generator and the other fields agree with it.

        Runs by itself when a field was derived; a record with every field written out is trusted.
        """
        derive.check(self)

    def __repr__(self) -> str:
        return f"FDivergence({self.name!r})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        # Functions cannot be pickled, names can: a divergence that has one is found again by it.
        from fenchel.divergences.table import divergence

        try:
            known = divergence(self.name)
        except InputError:
            known = None
        return (divergence, (self.name,)) if known is self else super().__reduce_ex__(protocol)

    def __call__(self, p: Tensor, q: Tensor, *, dim: int = -1) -> Tensor:
        """D_f(p, q) along `dim`; see `fenchel.f_divergence`."""
        return self.from_log_probs(p.log(), q.log(), dim=dim)

    def from_log_probs(self, log_p: Tensor, log_q: Tensor, *, dim: int = -1) -> Tensor:
        """Σ q f(p/q) along `dim` from log-probabilities, which may be -inf.

        Zeros follow the literature: a class with p = q = 0 adds 0, one with p = 0 adds q f(0), one with
        q = 0 adds p times the slope at infinity.
        """
        inside = torch.isfinite(log_p) & torch.isfinite(log_q)
        if looked(inside):
            return self.perspective(log_p, log_q).sum(dim)
        zero = torch.zeros((), dtype=log_p.dtype, device=log_p.device)
        value = self.perspective(torch.where(inside, log_p, zero), torch.where(inside, log_q, zero))
        p, q = log_p.exp(), log_q.exp()
        edge = torch.where(q > 0, _times(q, self.at_zero), _times(p, self.slope))
        # NaN must stay NaN: it is neither inside nor at an edge.
        edge = torch.where(torch.isnan(log_p) | torch.isnan(log_q), log_p + log_q, edge)
        return torch.where(inside, value, edge).sum(dim)

    @property
    def gauge(self) -> float:
        """f(0) where it is finite, else 0: the constant that `f_centred` leaves out."""
        return self.at_zero if math.isfinite(self.at_zero) else 0.0

    @property
    def is_sparse(self) -> bool:
        """Whether f-softargmax can give probabilities that are exactly zero (f'(0) is finite)."""
        return math.isfinite(self.derivative_at_zero)

    def conjugate_derivative(self, v: Tensor) -> Tensor:
        """f*'(v): the ratio u with f'(u) = v; 0 for v <= f'(0), inf from the slope on."""
        one = torch.ones((), dtype=v.dtype, device=v.device)
        inside = (v > self.derivative_at_zero) & (v < self.slope)
        u = self.shift(one, self.derivative(one) - torch.where(inside, v, self.derivative(one)))
        return torch.where(inside, u, torch.where(v < self.slope, 0.0, math.inf))

    def conjugate(self, v: Tensor) -> Tensor:
        """f*(v) = sup_{u >= 0} u v - f(u); -f(0) for v <= f'(0), inf beyond the slope."""
        u = self.conjugate_derivative(v)
        inside = (u > 0) & (v <= self.slope)
        value = self.conjugate_of_ratio(torch.where(inside, u, 1.0)) - self.gauge
        # Not a where of two numbers, which would be float32.
        below = torch.full_like(v, -self.at_zero)
        return torch.where(inside, value, torch.where(v <= self.slope, below, math.inf))

    def conjugate_second_derivative(self, v: Tensor) -> Tensor:
        """f*''(v) = 1 / f''(u) at u = f*'(v); 0 for v <= f'(0)."""
        u = self.conjugate_derivative(v)
        inside = (u > 0) & (v < self.slope)
        safe = torch.where(inside, u, 1.0)
        return torch.where(inside, safe * self.elasticity(safe), 0.0)


def _times(x: Tensor, factor: float) -> Tensor:
    """x · factor with 0 · inf = 0, and no NaN in its gradient."""
    return x * factor if math.isfinite(factor) else torch.where(x > 0, factor, 0.0).to(x.dtype)
