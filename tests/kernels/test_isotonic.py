"""Isotonic problems: plain PyTorch against the minimax formula and the KKT conditions, C++ against it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import InputError, which
from fenchel.kernels import eager
from fenchel.kernels.dispatch import implementation
from fenchel.kernels.isotonic import POOLED, depressed_root

optimize = pytest.importorskip("scipy.optimize")
special = pytest.importorskip("scipy.special")
compiled = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)
DTYPES = [torch.float32, torch.float64]
Optional = Tensor | None


def run(impl: str, kind: str, s: Tensor, a: Optional = None, b: Optional = None) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = implementation("isotonic", None, s, a, b, impl=impl)(kind, s, a, b)
    return found


def problem(kind: str, s: Tensor, seed: int = 0) -> tuple[Tensor, Optional, Optional]:
    """s with an a (and a b) that suit the kind, some of them zero where that is allowed."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, *s.shape, generator=generator, dtype=s.dtype)
    if kind == "mean":
        return s, a + 0.1, None
    if kind == "entropic":
        return s, 6 * a - 3, None
    return s, torch.where(a > 0.4, a, 0.0), torch.where(b > 0.4, b, 0.0)


def pressure(kind: str, v: Tensor, s: Tensor, a: Optional, b: Optional) -> Tensor:
    """-φ_i'(v_i): what pulls each v upward, relative to the size of its terms."""
    if kind == "entropic":
        other = 0.0 if a is None else a
        top = torch.maximum(s, v + other)
        return (s - top).exp() - (v + other - top).exp()
    if kind == "mean":
        return (s - v) if a is None else a * (s - v)
    a = torch.zeros_like(s) if a is None else a
    return (s - v) ** 3 - a - (0.0 if b is None else v * b)


def block_value(kind: str, s: np.ndarray, a: np.ndarray | None, b: np.ndarray | None) -> float:
    """The value of one block, by a general root-finder or a library function."""
    if kind == "mean":
        return float(np.average(s, weights=a))
    if kind == "entropic":
        return float(special.logsumexp(s) - special.logsumexp(np.zeros_like(s) if a is None else a))
    a, b = (np.zeros_like(s) if x is None else x for x in (a, b))
    reach = 10 + np.abs(s).max() + np.cbrt(a.sum()) + b.sum()

    def excess(v: float) -> float:
        return float(((s - v) ** 3).sum() - a.sum() - v * b.sum())

    return float(optimize.bisect(excess, -reach, reach, xtol=1e-15, rtol=1e-15, maxiter=200))


def minimax(kind: str, s: Tensor, a: Optional, b: Optional) -> Tensor:
    """v_i = min over j <= i of max over k >= i of the value of s_j ... s_k as one block."""
    rows = [None if x is None else x.numpy() for x in (s, a, b)]
    n = len(s)
    value = np.full((n, n), -np.inf)
    for j in range(n):
        for k in range(j, n):
            value[j, k] = block_value(kind, *(None if x is None else x[j : k + 1] for x in rows))
    return torch.tensor([value[: i + 1, i:].max(-1).min() for i in range(n)])


@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("given_all", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11])
def test_the_minimax_formula(kind: str, given_all: bool, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    random = torch.randn(4, n, generator=generator, dtype=torch.float64) * 2
    for rows in (random, random.round(), random.sort(-1).values):  # with ties, and all in the wrong order
        full = problem(kind, rows) if given_all else (rows, None, None)
        v, blocks = run("eager", kind, *full)
        for i in range(len(rows)):
            expected = minimax(kind, *(None if x is None else x[i] for x in full))
            torch.testing.assert_close(v[i], expected, rtol=1e-12, atol=1e-12)
        assert (v.diff() <= 0).all()
        assert (blocks[:, 0] == 0).all() and set(blocks.diff().flatten().tolist()) <= {0, 1}
        assert (v.diff()[blocks.diff() == 0] == 0).all()


numbers = st.floats(-1e4, 1e4, allow_nan=False).map(lambda x: round(x, 2))


@given(st.lists(numbers, min_size=1, max_size=40), st.sampled_from(sorted(POOLED)), st.booleans())
def test_optimality(row: list[float], kind: str, given_all: bool) -> None:
    """KKT: v falls, and the multipliers -Σ_{i<=j} pressure_i are >= 0, and 0 at the ends of the blocks."""
    s = torch.tensor(row, dtype=torch.float64)
    if kind == "entropic":
        s = s / 100
    full = problem(kind, s) if given_all else (s, None, None)
    v, blocks = run("eager", kind, *full)
    assert (v.diff() <= 0).all()
    for block in blocks.unique():
        inside = blocks == block
        parts = [None if x is None else x[inside] for x in full]
        level = v[inside]
        pulls = pressure(kind, level, *parts)  # type: ignore[arg-type]
        if kind == "entropic":  # in units of the largest of the block
            other = torch.zeros_like(level) if parts[1] is None else parts[1]
            terms = torch.maximum(parts[0], level + other)  # type: ignore[operator]
            pulls = pulls * (terms - terms.max()).exp()
        size = pulls.abs().sum() + (len(pulls) if kind == "entropic" else 1 + s.abs().max())
        multipliers = -pulls.cumsum(0)
        slack = 1e-11 * size
        assert (multipliers >= -slack).all() and abs(float(multipliers[-1])) <= slack


@given(st.floats(0, 1e12), st.floats(-1e12, 1e12))
def test_the_depressed_cubic(p: float, q: float) -> None:
    u = float(depressed_root(*torch.tensor([p, q], dtype=torch.float64)))
    size = abs(u) ** 3 + p * abs(u) + abs(q)
    assert abs(u**3 + p * u + q) <= 4e-15 * size + 1e-290


def test_the_depressed_cubic_at_its_ends() -> None:
    """u = -q / p to all digits where p rules, and -∛q where q does; far beyond the range of their cubes."""
    p = [0.0, 0.0, 0.0, 1.0, 1e12, 1e200, 1e-200, 1e-300]
    q = [0.0, 8.0, -27e60, 1e-12, 1e-300, 1e100, 0.0, 1e300]
    expected = [0.0, -2.0, 3e20, -1e-12, 0.0, -1e-100, 0.0, -1e100]
    roots = depressed_root(*torch.tensor([p, q], dtype=torch.float64))
    torch.testing.assert_close(roots, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-300)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    st.integers(1, 70),
    st.sampled_from(sorted(POOLED)),
    st.booleans(),
    st.sampled_from(["random", "rising", "falling", "ties", "sawtooth", "one huge", "large"]),
    st.integers(0, 10**6),
)
def test_compiled_is_eager(
    dtype: torch.dtype, n: int, kind: str, given_all: bool, form: str, seed: int
) -> None:
    """Both against eager in float64; the C++ in float32 computes in float64 and is at least as exact."""
    s = rows_of(form, n, seed).to(dtype)
    full = problem(kind, s, seed) if given_all else (s, None, None)
    exact, wide = run("eager", kind, *(None if x is None else x.double() for x in full))
    v, blocks = run("cpu", kind, *full)
    size = 1 + s.double().abs().amax(-1, keepdim=True)
    assert ((v.double() - exact).abs() <= (4e-15 if dtype == torch.float64 else 1e-7) * size).all()
    assert v.dtype == dtype and (v.diff() <= 0).all()
    assert (v.diff()[blocks.diff() == 0] == 0).all()
    if form in ("random", "sawtooth"):  # elsewhere neighbours may be equal, in one block or in two
        assert torch.equal(blocks, wide)
    if dtype == torch.float32:
        plain, _ = run("eager", kind, *full)
        assert ((plain.double() - exact).abs() <= 2e-6 * size).all()


def rows_of(form: str, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(3, n, generator=generator, dtype=torch.float64)
    place = torch.arange(n, dtype=torch.float64)
    if form == "rising":
        return s.sort(-1).values
    if form == "falling":
        return s.sort(-1, descending=True).values
    if form == "ties":
        return s.round()
    if form == "sawtooth":
        return s * 0.01 + place % 7 - place / 10
    if form == "one huge":
        s[:, n // 2] = 1e4
    return s * 1e4 if form == "large" else s


@pytest.mark.parametrize("impl", ["eager", pytest.param("cpu", marks=compiled)])
@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("form", ["random", "rising", "falling", "sawtooth", "one huge"])
def test_long_rows(impl: str, kind: str, form: str) -> None:
    """Multipliers of 3000 entries; a falling row keeps every entry its own block, a rising one is one."""
    s = rows_of(form, 3000, 7)
    v, blocks = run(impl, kind, s)
    if form == "rising":
        assert (blocks == 0).all()
    if form == "falling":
        torch.testing.assert_close(v, s, rtol=0, atol=0)
    multipliers = -pressure(kind, v, s, None, None).cumsum(-1)
    size = pressure(kind, v, s, None, None).abs().sum(-1, keepdim=True) + 1
    if kind != "entropic":  # whose pressures are in units of their own block
        assert (multipliers >= -1e-11 * size).all() and (multipliers[:, -1:].abs() <= 1e-11 * size).all()
    assert (v.diff() <= 0).all()


@compiled
def test_views_rows_and_threads() -> None:
    wide = torch.randn(8, 3, 600, dtype=torch.float64)
    shared = torch.rand(500, dtype=torch.float64).expand(4, 3, 500) + 0.1
    view = wide[::2, :, 50:550]
    v, blocks = run("cpu", "mean", view, shared)
    for received, expected in zip((v, blocks), run("eager", "mean", view, shared), strict=True):
        torch.testing.assert_close(received, expected, rtol=1e-14, atol=1e-14)
    alone, _ = run("cpu", "mean", view[1, 2], shared[1, 2])
    assert torch.equal(v[1, 2], alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run("cpu", "mean", view, shared)[0], v)
    finally:
        torch.set_num_threads(threads)


def test_what_runs_where() -> None:
    assert which("isotonic", torch.zeros(1, 8)).impl == "eager"
    assert which("dykstra", torch.zeros(64, 2048)).impl == "eager"
    with pytest.raises(
        InputError, match="impl='cpu' cannot run isotonic: it computes in float32 and float64"
    ):
        which("isotonic", torch.zeros(64, 2048, dtype=torch.bfloat16), impl="cpu")
    with pytest.raises(InputError, match="impl='triton' cannot run isotonic: it has no isotonic"):
        which("isotonic", torch.zeros(64, 2048), impl="triton")


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_auto_compiles_where_it_is_worth_it(dtype: torch.dtype) -> None:
    assert which("isotonic", torch.zeros(64, 2048, dtype=dtype)).impl == "cpu"


# --- Dykstra ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "cubic"])
@pytest.mark.parametrize("given_all", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_dykstra_is_exact_once_it_has_the_blocks(kind: str, given_all: bool, scale: float) -> None:
    """The number of iterations does not depend on the scale."""
    s = rows_of("random", 24, 3) * scale
    full = problem(kind, s, 3) if given_all else (s, None, None)
    exact, expected = run("eager", kind, *full)
    v, blocks = eager.dykstra(kind, *full, iterations=1000)
    assert torch.equal(blocks, expected)
    torch.testing.assert_close(v, exact, rtol=1e-13, atol=1e-13 * scale)


@pytest.mark.parametrize("kind", ["mean", "cubic"])
def test_dykstra_approaches_with_its_iterations(kind: str) -> None:
    s = rows_of("random", 24, 5)
    exact, _ = run("eager", kind, s)

    def error(iterations: int) -> float:
        return float((eager.dykstra(kind, s, iterations=iterations)[0] - exact).abs().max())

    first, second, last = map(error, (2, 10, 1000))
    assert first > second > 0.01 and last <= 1e-12


@pytest.mark.parametrize("n", [1, 2, 3])
def test_dykstra_on_few_entries_takes_one_round(n: int) -> None:
    """One constraint is met at once; two need only settle."""
    s = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]], dtype=torch.float64)[:, :n]
    v, _ = eager.dykstra("mean", s, iterations=1 if n < 3 else 60)
    torch.testing.assert_close(v, run("eager", "mean", s)[0], rtol=1e-14, atol=0)
