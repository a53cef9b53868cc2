# ruff: noqa: F821
# mypy: ignore-errors
"""Elementwise functions that Triton has not, or not to working precision where results are near zero.

This file is text: `source` puts it, with a head that imports triton, before the functions of a record. The
polynomials are those of Cephes, |r| <= ln 2 / 2. The hardware's logarithm loses all digits near 1. In
float64 the library's own functions are exact, and Kahan's formulas make the others of them.
"""


@triton.jit
def log(x):
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        small = x < 1.17549435e-38
        y = tl.where(small, x * 8388608.0, x)
        bits = y.to(tl.int32, bitcast=True) - 0x3F3504F3  # the mantissa in [sqrt ½, sqrt 2)
        e = (bits >> 23).to(tl.float32) - tl.where(small, 23.0, 0.0)
        m = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
        p = m * 7.0376836292e-2 - 1.1514610310e-1
        p = p * m + 1.1676998740e-1
        p = p * m - 1.2420140846e-1
        p = p * m + 1.4249322787e-1
        p = p * m - 1.6668057665e-1
        p = p * m + 2.0000714765e-1
        p = p * m - 2.4999993993e-1
        p = p * m + 3.3333331174e-1
        m2 = m * m
        r = e * 0.693359375 + (m + (m2 * -0.5 + (e * -2.12194440e-4 + p * m * m2)))
        r = tl.where(x < float("inf"), r, x)  # inf and NaN
        return tl.where(x > 0, r, tl.where(x == 0, float("-inf"), float("nan")))


@triton.jit
def log1p(x):
    # the error of 1 + x cancels in the quotient
    u = x + 1.0
    d = u - 1.0
    near = tl.where(d == 0, x, log(u) * (x / tl.where(d == 0, 1.0, d)))
    return tl.where(x > 1e30, log(x), near)


@triton.jit
def expm1(x):
    if x.dtype == tl.float64:
        u = tl.exp(x)
        inside = (u != 1) & (u > 1e-17) & (u < 1e300)
        near = (u - 1.0) * (x / tl.log(tl.where(inside, u, 2.0)))
        return tl.where(inside, near, tl.where(u == 1, x, u - 1.0))
    else:
        bounded = tl.where(x > 88.8, 88.8, tl.where(x < -86.6, -86.6, x))
        shifted = bounded * 1.44269504 + 12582912.0
        whole = shifted - 12582912.0
        r = whole * 2.12194440e-4 + (whole * -0.693359375 + bounded)
        p = r * 1.98756915e-4 + 1.39819995e-3
        p = p * r + 8.33345205e-3
        p = p * r + 4.16657962e-2
        p = p * r + 1.66666657e-1
        p = p * r + 5.00000000e-1
        p = p * (r * r) + r
        n = shifted.to(tl.int32, bitcast=True) - 0x4B400000
        half = ((n + 126) << 23).to(tl.float32, bitcast=True)
        value = tl.where(n > 64, (p + 1.0) * half * 2.0 - 1.0, half * p * 2.0 + (half * 2.0 - 1.0))
        return tl.where(x > 88.72, float("inf"), value)


@triton.jit
def pow(x, y):
    return tl.exp(y * log(x))


@triton.jit
def isfinite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def add_exp(high, mass, x):
    """(high, mass) that stands for mass · e^high, with e^x added: one exponential whichever is larger."""
    up = x > high
    factor = tl.exp(-tl.abs(x - high))
    added = tl.where(up, mass * factor + 1.0, mass + factor)
    absent = x == float("-inf")
    return tl.where(up, x, high), tl.where(absent, mass, added)
