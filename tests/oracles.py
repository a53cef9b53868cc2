"""Independent references: textbook formulas in 80-bit or 50-digit arithmetic, solved by bisection.

Nothing here is shared with the package: the formulas are those of the divergences' definitions, and the
root is found by bisection (finished by a few guarded Newton steps in 80 bits, since that is slow).
"""

from __future__ import annotations

import mpmath
import numpy as np

LD = np.longdouble
LN2 = np.log(LD(2))


def parse(name: str) -> tuple[str, float]:
    limits = {"alpha:0": "reverse-kl", "alpha:1": "generalized-kl"}
    family, _, order = limits.get(name, name).partition(":")
    return (family, float(order)) if order else (family, 0.0)


def f(name: str, u: np.ndarray) -> np.ndarray:
    """f(u) for u > 0, from its definition."""
    family, a = parse(name)
    u = np.asarray(u, dtype=LD)
    ln = np.log(u)
    a = LD(a)
    match family:
        case "kl":
            return u * ln
        case "generalized-kl":
            return u * ln - u + 1
        case "reverse-kl":
            return u - 1 - ln
        case "jeffreys":
            return (u - 1) * ln
        case "js":
            return u * ln - (u + 1) * np.log((u + 1) / 2)
        case "hellinger":
            return (np.sqrt(u) - 1) ** 2
        case "chi2":
            return (u - 1) ** 2
        case "neyman":
            return (u - 1) ** 2 / u
    return (u**a - 1 - a * (u - 1)) / (a * (a - 1))


def f_at_zero(name: str) -> float:
    family, a = parse(name)
    finite = {"kl": 0.0, "generalized-kl": 1.0, "js": float(LN2), "hellinger": 1.0, "chi2": 1.0}
    if family == "alpha" and a > 0:
        return 1 / a
    return finite.get(family, float("inf"))


def f_prime(name: str, u: np.ndarray) -> np.ndarray:
    family, a = parse(name)
    u = np.asarray(u, dtype=LD)
    a = LD(a)
    match family:
        case "kl":
            return 1 + np.log(u)
        case "generalized-kl":
            return np.log(u)
        case "reverse-kl":
            return 1 - 1 / u
        case "jeffreys":
            return np.log(u) + 1 - 1 / u
        case "js":
            return np.log(2 * u / (u + 1))
        case "hellinger":
            return 1 - 1 / np.sqrt(u)
        case "chi2":
            return 2 * (u - 1)
        case "neyman":
            return 1 - u**-2
    return (u ** (a - 1) - 1) / (a - 1)


def _ratio(name: str, s: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """f*'(v_top - gap), where s places v_top relative to the edge of the domain of f*."""
    family, a = parse(name)
    a = gap.dtype.type(a)
    below = s + gap  # distance below sup dom f*
    above = np.maximum(s - gap, 0)  # distance above f'(0)
    match family:
        case "kl":
            return np.exp(s - gap - 1)
        case "generalized-kl":
            return np.exp(s - gap)
        case "reverse-kl":
            return 1 / below
        case "js":
            return 1 / np.expm1(below)
        case "hellinger":
            return below ** LD(-2)
        case "neyman":
            return below ** LD(-0.5)
        case "chi2":
            return above / 2
        case "jeffreys":  # r + ln r = 1 - v with r = 1/u, by Newton in log r
            x = 1 - (s - gap)
            y = np.where(x > 1, np.log(np.maximum(x, 1)), x)
            for _ in range(8):
                power = np.exp(y)
                y = y - (power + y - x) / (power + 1)
            return np.exp(-y)
    if a > 1:
        return ((a - 1) * above) ** (1 / (a - 1))
    return ((1 - a) * below) ** (1 / (a - 1))


def _direction(name: str) -> int:
    """+1 where the ratio grows with s, -1 where it falls."""
    family, a = parse(name)
    grows = family in ("kl", "generalized-kl", "jeffreys", "chi2") or (family == "alpha" and a > 1)
    return 1 if grows else -1


def solve(name: str, theta: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, LD]:
    """(p, softmax_f) of one row, in 80-bit arithmetic."""
    theta, q = np.asarray(theta, dtype=LD), np.asarray(q, dtype=LD)
    gap = theta.max() - theta
    sign = _direction(name)

    def excess(s: LD, measure: np.ndarray, distance: np.ndarray) -> LD:
        with np.errstate(over="ignore"):
            return (measure * _ratio(name, s, distance)).sum() - 1

    positive_only = parse(name)[0] not in ("kl", "generalized-kl", "jeffreys")
    low, high = (LD("1e-12"), LD("1e12")) if positive_only else (LD(-1e12), LD(1e12))
    narrow = 0
    for kind, resolution in ((np.float64, 1e-13), (LD, 3e-19)):  # most of the bisection in 64 bits
        measure, distance = q.astype(kind), gap.astype(kind)
        if kind is LD:  # the 64-bit root, widened, and widened more if it does not hold the root
            low, high = kind(low), kind(high)
            width = LD(1e-12) * max(abs(low), abs(high), LD(1e-3))
            while True:
                low, high = low - width, high + width
                if positive_only:
                    low = max(low, LD("1e-13"))
                below, above = excess(low, measure, distance), excess(high, measure, distance)
                if below * above <= 0 or narrow > 12:
                    break
                width, narrow = width * 100, narrow + 1
        while high - low > resolution * max(abs(low), abs(high)):
            geometric = positive_only and high > 4 * low
            middle = np.sqrt(low * high) if geometric else (low + high) / 2
            if middle in (low, high):
                break
            if (excess(middle, measure, distance) > 0) == (sign > 0):
                high = middle
            else:
                low = middle
    u = _ratio(name, (low + high) / 2, gap)
    p = q * u
    positive = u > 0
    entropy = (q[positive] * f(name, u[positive])).sum()
    if not positive.all():
        entropy = entropy + q[~positive].sum() * LD(f_at_zero(name))
    return p, (p * theta).sum() - entropy


def solve_mp(name: str, theta: list[float], q: list[float], digits: int = 50) -> list[float]:
    """p of one short row in `digits`-digit arithmetic, from f*' as the definition states it."""
    family, order = parse(name)
    with mpmath.workdps(digits):
        mp, a = mpmath, mpmath.mpf(order)

        def conjugate_derivative(v: mpmath.mpf) -> mpmath.mpf:
            match family:
                case "kl":
                    return mp.e ** (v - 1)
                case "generalized-kl":
                    return mp.e**v
                case "reverse-kl":
                    return 1 / (1 - v) if v < 1 else mp.inf
                case "jeffreys":
                    return 1 / mp.lambertw(mp.e ** (1 - v)).real
                case "js":
                    return mp.e**v / (2 - mp.e**v) if v < mp.log(2) else mp.inf
                case "hellinger":
                    return (1 - v) ** -2 if v < 1 else mp.inf
                case "neyman":
                    return (1 - v) ** mp.mpf("-0.5") if v < 1 else mp.inf
                case "chi2":
                    return max(1 + v / 2, mp.mpf(0))
            base = 1 + (a - 1) * v
            if base <= 0:
                return mp.mpf(0) if a > 1 else mp.inf
            return base ** (1 / (a - 1))

        scores = [mp.mpf(x) for x in theta]
        measure = [mp.mpf(x) for x in q]
        top = max(scores)
        low, high = top - mp.mpf(10) ** 9, top + mp.mpf(10) ** 9
        for _ in range(int(digits * 3.4) + 40):
            tau = (low + high) / 2
            total = mp.fsum(w * conjugate_derivative(x - tau) for w, x in zip(measure, scores, strict=True))
            low, high = (tau, high) if total > 1 else (low, tau)
        return [float(w * conjugate_derivative(x - high)) for w, x in zip(measure, scores, strict=True)]


def sparse_closed_form(alpha: float, theta: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Sort-based f-softargmax for α = 2 or 1.5 and any measure q, one row."""
    order = np.argsort(-theta)
    h, w = (theta.max() - theta[order]) * (alpha - 1), q[order]
    mass, first, second = np.cumsum(w), np.cumsum(w * h), np.cumsum(w * h * h)
    if alpha == 2:
        base = (1 + first) / mass
    else:
        base = (first + np.sqrt(np.maximum(first**2 - mass * (second - 1), 0))) / mass
    support = np.nonzero(base > h)[0][-1]
    return q * np.maximum(base[support] - (theta.max() - theta) * (alpha - 1), 0) ** (1 / (alpha - 1))
