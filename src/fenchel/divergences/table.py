"""The table: the named divergences, the α family, and the names that resolve to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor

from fenchel.divergences import families
from fenchel.divergences.record import FDivergence
from fenchel.errors import InputError, nearest

_ALI_SILVEY = "Ali and Silvey, 1966; Csiszár, 1967"
_ROULET = "Roulet, Liu, Vieillard, Sander and Blondel, 2025, arXiv 2501.18537"


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
    a = float(a)
    if a not in _ALPHAS:
        _ALPHAS[a] = _alpha(a)
    return _ALPHAS[a]


_ALPHAS: dict[float, FDivergence] = {}


def _alpha(a: float) -> FDivergence:
    return _power(
        f"alpha:{a:.12g}",
        a,
        formula="(u^a - 1 - a(u - 1)) / (a(a - 1))",
        ref="Cichocki and Amari, 2010, Entropy 12; " + _ROULET,
    )


def wright_omega(x: Tensor) -> Tensor:
    """ω(x), the root of ω + ln ω = x, to working precision (Fritsch's iteration, fourth order)."""
    # Padé's approximant of ω in e^x, Taylor's of ω in x, and the asymptotic series: 4 % at most, of which one
    # iteration leaves 4e-9.
    power = x.clamp_max(0).exp().clamp_min(torch.finfo(x.dtype).tiny)
    small = power * (1 + 0.5 * power) / (1 + 1.5 * power)
    middle = _OMEGA + x * (0.36189625663488917 + x * (0.07367780517637273 - x * 0.0013428596549900872))
    log = _log(x)
    omega = torch.where(x < -1, small, torch.where(x > 3, x - log + log / x.clamp_min(1), middle))
    for _ in range(1 if x.dtype == torch.float32 else 2):
        scale = 1 / (1 + omega)
        relative = (x - omega - omega.log()) * scale
        t = 2 + relative * (4 / 3)
        second = relative * scale
        omega = omega * (1 + relative * (t - second) / (t - 2 * second))
    return omega


_OMEGA = 0.5671432904097838  # ω(0)


def _jeffreys() -> FDivergence:
    def shift(u: Tensor, gap: Tensor) -> Tensor:
        inside = torch.isfinite(gap)
        x = 1 / u - u.log() + torch.where(inside, gap, 0.0)
        return torch.where(inside, 1 / wright_omega(x), 0.0)

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
"""The named divergences; `divergence` also knows the families alpha, jsd, skew and reverse."""
_FAMILIES = "alpha:A, jsd:B, skew:W:NAME, reverse:NAME"


def divergence(name: str | FDivergence) -> FDivergence:
    """The record called `name`; a record is returned as it is.

    Args:
        name: one of `TABLE` ("kl", "generalized-kl", "reverse-kl", "jeffreys", "js", "hellinger",
            "chi2", "neyman"), or a member of a family, which may be nested:
            "alpha:<a>", for any finite a, for example "alpha:1.5";
            "jsd:<b>", β KL(p, m) + (1 - β) KL(q, m) with m = β p + (1 - β) q, for β in [0, 1]; the ends
            are KL(p, q) and KL(q, p), as in TRL's generalised JSD;
            "skew:<w>:<name>", D_f(p, w p + (1 - w) q), for example "skew:0.1:kl" (DistiLLM's skewed KL);
            "reverse:<name>", D_f(q, p), for example "reverse:skew:0.1:kl" (its skewed reverse KL).

    Returns:
        The frozen record.

    Raises:
        InputError: the name is unknown (the message lists the known ones) or a number is out of range.

    Example:
        >>> divergence("alpha:1.5").is_sparse, divergence("js").is_sparse
        (True, False)
        >>> divergence("alpha:2").derivative_at_zero
        -1.0
        >>> import torch
        >>> p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> round(float(divergence("skew:0.5:kl")(p, q)), 4)  # ln 2, where KL is infinite
        0.6931

    Reference:
        Roulet et al., 2025, arXiv 2501.18537; Agarwal et al., 2024, arXiv 2306.13649 (generalised JSD);
        Ko et al., 2024, arXiv 2402.03898 (skewed KL).
    """
    if isinstance(name, FDivergence):
        return name
    if not isinstance(name, str):
        raise InputError(f"a divergence is a name or an FDivergence record, received {type(name).__name__}")
    return TABLE[name] if name in TABLE else _member(name)


@cache
def _member(name: str) -> FDivergence:
    family, _, rest = name.partition(":")
    if family == "alpha":
        return alpha(_number(name, rest, "alpha", "alpha:1.5"))
    if family == "jsd":
        beta = _number(name, rest, "beta", "jsd:0.5")
        if not 0 <= beta <= 1:
            raise InputError(f"beta of jsd must be in [0, 1], received {beta:g}")
        ends = {0.0: "kl", 1.0: "reverse-kl"}
        return TABLE[ends[beta]] if beta in ends else families.jensen_shannon(beta)
    if family == "skew":
        weight, _, inner = rest.partition(":")
        return families.skew(divergence(inner), _number(name, weight, "the weight", "skew:0.1:kl"))
    if family == "reverse":
        return families.reverse(divergence(rest))
    raise InputError(
        f"unknown divergence {name!r}{nearest(name, TABLE)}; known: {', '.join(TABLE)}, {_FAMILIES}"
    )


def _number(name: str, text: str, what: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{what} must be a finite number, received {name!r}; write {example!r}") from None
