"""The table: an f-divergence is data, and one record of it reaches every operator and loss.

D_f(p, q) = Σ_j q_j f(p_j / q_j), with f convex on (0, ∞) and f(1) = 0. Each row of `TABLE`, the family
`alpha(a)` and the user's own `FDivergence(name, f)` are records of the same kind. Names are resolved by
`divergence("alpha:1.5")`.

A record keeps what its definition says (f, f', f(0), f'(0), the slope at infinity) and four functions
that say the same things without cancellation, as functions of the density ratio u = p/q. The engine
(`fenchel.operators.softargmax`) is written in them alone, and they are why it keeps its digits where
q is small, scores are large or p is nearly zero:

    shift(u, gap)          f*'(f'(u) - gap): the ratio of a class whose score is lower by `gap`
    conjugate_of_ratio(u)  f*(f'(u)) + f(0)  (f(0) only where it is finite)
    elasticity(u)          d log u / dv = f*''(v) / u at v = f'(u), that is 1 / (u f''(u))
    f_centred(u)           f(u) - f(0)       (f(0) only where it is finite)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from fenchel import _derive
from fenchel._checks import looked
from fenchel.errors import InputError, nearest

Elementwise = Callable[[Tensor], Tensor]
Pairwise = Callable[[Tensor, Tensor], Tensor]

_ALI_SILVEY = "Ali and Silvey, 1966; Csiszár, 1967"
_ROULET = "Roulet, Liu, Vieillard, Sander and Blondel, 2025, arXiv 2501.18537, Table 1"


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
        >>> mine = FDivergence("square", lambda u: (u - 1) ** 2)
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> torch.testing.assert_close(mine(p, q), divergence("chi2")(p, q))
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

    def __post_init__(self) -> None:
        derived = _derive.missing_fields(self)
        for field, value in derived.items():
            object.__setattr__(self, field, value)
        if derived:
            self.check()

    def check(self) -> None:
        """Raise InputError unless f is a divergence generator and the other fields agree with it.

        Runs by itself when a field was derived; a record with every field written out is trusted.
        """
        _derive.check(self)

    def __repr__(self) -> str:
        return f"FDivergence({self.name!r})"

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
        return torch.where(inside, value, torch.where(v <= self.slope, -self.at_zero, math.inf))

    def conjugate_second_derivative(self, v: Tensor) -> Tensor:
        """f*''(v) = 1 / f''(u) at u = f*'(v); 0 for v <= f'(0)."""
        u = self.conjugate_derivative(v)
        inside = (u > 0) & (v < self.slope)
        safe = torch.where(inside, u, 1.0)
        return torch.where(inside, safe * self.elasticity(safe), 0.0)


def _times(x: Tensor, factor: float) -> Tensor:
    """x · factor with 0 · inf = 0, and no NaN in its gradient."""
    return x * factor if math.isfinite(factor) else torch.where(x > 0, factor, 0.0).to(x.dtype)


def _log(u: Tensor) -> Tensor:
    """log u, finite at 0 so that u log u is 0 there."""
    return u.clamp_min(torch.finfo(u.dtype).tiny).log()


def _power(
    name: str, a: float, *, scale: float = 1.0, tilt: float = 0.0, formula: str = "", ref: str = ""
) -> FDivergence:
    """scale · f_a(u) + tilt · (u - 1), where f_a is the α-divergence.

    Seven of the named divergences are this one. Every expression is written so that it loses no digits
    as a → 0 (first branch) or a → 1 (second).
    """
    k = a - 1.0

    def power_log(exponent: float, x: Tensor) -> Tensor:  # (e^(exponent x) - 1) / exponent
        return torch.expm1(exponent * x) / exponent if exponent else x

    def f(u: Tensor) -> Tensor:
        if a < 0.5:
            value = (power_log(a, u.log()) - (u - 1)) / k
        else:
            value = (u * (power_log(k, _log(u)) - 1) + 1) / a
        return scale * value + tilt * (u - 1)

    def f_centred(u: Tensor) -> Tensor:
        if a <= 0:
            return f(u)
        value = (u**a / a - u) / k if a < 0.5 else u * (power_log(k, _log(u)) - 1) / a
        return scale * value + tilt * u

    def conjugate_of_ratio(u: Tensor) -> Tensor:
        return scale * u**a / a if a > 0 else scale * power_log(a, u.log()) + tilt

    def shift(u: Tensor, gap: Tensor) -> Tensor:
        if 0.5 <= abs(k) <= 2:  # exact sums; outside, powers of u would lose digits or overflow
            return (u**k - (k / scale) * gap).clamp_min(0) ** (1 / k)
        if k == 0:
            return u * torch.exp(gap / -scale)
        drop = (k / scale) * gap * u**-k
        drop = torch.where(gap == 0, torch.zeros_like(drop), drop)  # u^-k may be inf
        return u * torch.exp(torch.log1p(-drop.clamp_max(1)) / k)

    def weighted_power_log(exponent: float, x: Tensor, weight: Tensor, log_weight: Tensor) -> Tensor:
        """weight (e^(exponent x) - 1) / exponent, finite wherever the product is."""
        if exponent == 0:
            return weight * x
        y = exponent * x
        near = weight * torch.expm1(y.clamp_max(1))
        return torch.where(y < 1, near, (log_weight + y).exp() - weight) / exponent

    def perspective(log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q, x = log_p.exp(), log_q.exp(), log_p - log_q
        if a == 1 and tilt == scale:
            return scale * p * x
        if a < 0.5:
            value = (weighted_power_log(a, x, q, log_q) - (p - q)) / k
        else:
            value = (weighted_power_log(k, x, p, log_p) - p + q) / a
        return scale * value if tilt == 0 else scale * value + tilt * (p - q)

    return FDivergence(
        name,
        f,
        derivative=lambda u: scale * power_log(k, u.log()) + tilt,
        shift=shift,
        conjugate_of_ratio=conjugate_of_ratio,
        elasticity=lambda u: u**-k / scale,
        f_centred=f_centred,
        perspective=perspective,
        at_zero=scale / a - tilt if a > 0 else math.inf,
        derivative_at_zero=-scale / k + tilt if a > 1 else -math.inf,
        slope=-scale / k + tilt if a < 1 else math.inf,
        kappa=k,
        formula=formula,
        reference=ref,
    )


@lru_cache(maxsize=256)
def alpha(a: float) -> FDivergence:
    """The α-divergence, f(u) = (u^a - 1 - a(u - 1)) / (a (a - 1)), for any finite a.

    α → 1 is generalised KL and α → 0 reverse KL; 2 is Pearson χ²/2, ½ twice squared Hellinger, -1
    Neyman χ²/2. With the unit reference measure, f-softargmax is sparsemax at α = 2 and 1.5-entmax at
    α = 1.5; it has exact zeros if and only if α > 1.

    Args:
        a: the order, a finite number.

    Returns:
        The record named `alpha:a`.

    Raises:
        InputError: a is not finite.

    Example:
        >>> import torch
        >>> u = torch.tensor([0.5, 2.0])
        >>> torch.testing.assert_close(2 * alpha(2.0).f(u), divergence("chi2").f(u))

    Reference:
        Cichocki and Amari, 2010, Entropy 12; Blondel, Martins and Niculae, 2020, arXiv 1901.02324
        (Tsallis); Roulet et al., 2025, arXiv 2501.18537.
    """
    if not math.isfinite(a):
        raise InputError(f"alpha must be a finite number, received {a}; for example 'alpha:1.5'")
    return _power(
        f"alpha:{a:g}",
        float(a),
        formula="(u^a - 1 - a(u - 1)) / (a(a - 1))",
        ref="Cichocki and Amari, 2010, Entropy 12; " + _ROULET,
    )


def _wright_omega(x: Tensor) -> Tensor:
    """ω(x), the root of ω + ln ω = x, to working precision (Fritsch's iteration, fourth order)."""
    guess = torch.where(x > 1, x - _log(x), (0.567 + 0.362 * x).clamp_min(0.1))
    omega = torch.where(x < -1, x.clamp_max(0).exp().clamp_min(torch.finfo(x.dtype).tiny), guess)
    for _ in range(3):
        residual = x - omega - omega.log()
        relative = residual / (1 + omega)
        t = 2 + relative * (4 / 3)
        second = relative / (1 + omega)
        omega = omega * (1 + relative * (t - second) / (t - 2 * second))
    return omega


def _jeffreys() -> FDivergence:
    def shift(u: Tensor, gap: Tensor) -> Tensor:
        inside = torch.isfinite(gap)
        x = 1 / u - u.log() + torch.where(inside, gap, 0.0)
        return torch.where(inside, 1 / _wright_omega(x), 0.0)

    return FDivergence(
        "jeffreys",
        lambda u: (u - 1) * u.log(),
        derivative=lambda u: u.log() + 1 - 1 / u,
        shift=shift,
        conjugate_of_ratio=lambda u: u - 1 + u.log(),
        elasticity=lambda u: u / (1 + u),
        f_centred=lambda u: (u - 1) * u.log(),
        perspective=lambda log_p, log_q: (log_p.exp() - log_q.exp()) * (log_p - log_q),
        at_zero=math.inf,
        derivative_at_zero=-math.inf,
        slope=math.inf,
        kappa=-1.0,
        formula="(u - 1) ln u",
        reference="Jeffreys, 1946; " + _ROULET,
    )


def _jensen_shannon() -> FDivergence:
    ln2 = math.log(2)

    def perspective(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_mean = torch.logaddexp(log_p, log_q) - ln2
        return log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)

    return FDivergence(
        "js",
        lambda u: torch.xlogy(u, u) - (u + 1) * (torch.log1p(u) - ln2),
        derivative=lambda u: ln2 - torch.log1p(1 / u),
        shift=lambda u, gap: 1 / torch.expm1(gap + torch.log1p(1 / u)),
        conjugate_of_ratio=lambda u: torch.log1p(u),
        elasticity=lambda u: 1 + u,
        f_centred=lambda u: u * (_log(u) + ln2) - (u + 1) * torch.log1p(u),
        perspective=perspective,
        at_zero=ln2,
        derivative_at_zero=-math.inf,
        slope=ln2,
        kappa=-1.0,
        formula="u ln u - (u + 1) ln((u + 1)/2)",
        reference="Lin, 1991; " + _ROULET,
    )


def _table() -> dict[str, FDivergence]:
    rows = [
        _power("kl", 1, tilt=1, formula="u ln u", ref="Kullback and Leibler, 1951; " + _ALI_SILVEY),
        _power("generalized-kl", 1, formula="u ln u - u + 1", ref="Csiszár, 1967"),
        _power("reverse-kl", 0, formula="u - 1 - ln u", ref="Kullback and Leibler, 1951; " + _ROULET),
        _jeffreys(),
        _jensen_shannon(),
        _power(
            "hellinger",
            0.5,
            scale=0.5,
            formula="(sqrt(u) - 1)^2",
            ref="Hellinger, 1909; " + _ROULET,
        ),
        _power("chi2", 2, scale=2, formula="(u - 1)^2", ref="Pearson, 1900; " + _ROULET),
        _power("neyman", -1, scale=2, formula="(u - 1)^2 / u", ref="Neyman, 1949"),
    ]
    return {row.name: row for row in rows}


TABLE: Mapping[str, FDivergence] = MappingProxyType(_table())
"""The named divergences; `divergence` also knows the family `alpha:<a>`."""


def divergence(name: str | FDivergence) -> FDivergence:
    """The record called `name`; a record is returned as it is.

    Args:
        name: one of `TABLE` ("kl", "generalized-kl", "reverse-kl", "jeffreys", "js", "hellinger",
            "chi2", "neyman"), or "alpha:<a>" for any finite a, for example "alpha:1.5".

    Returns:
        The frozen record.

    Raises:
        InputError: the name is unknown (the message lists the known ones) or a is not finite.

    Example:
        >>> divergence("alpha:1.5").is_sparse, divergence("js").is_sparse
        (True, False)
        >>> divergence("alpha:2").derivative_at_zero
        -1.0

    Reference:
        Roulet et al., 2025, arXiv 2501.18537, Table 1.
    """
    if isinstance(name, FDivergence):
        return name
    if not isinstance(name, str):
        raise InputError(f"a divergence is a name or an FDivergence record, received {type(name).__name__}")
    if name in TABLE:
        return TABLE[name]
    family, _, order = name.partition(":")
    if family == "alpha":
        try:
            return alpha(float(order))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"alpha must be a finite number, received {name!r}; write for example 'alpha:1.5'"
            ) from None
    raise InputError(
        f"unknown divergence {name!r}{nearest(name, TABLE)}; known: {', '.join(TABLE)}, alpha:<a>"
    )
