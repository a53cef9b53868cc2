"""Soft sort and rank: hard where the regularisation is small, known limits, an independent implementation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import InputError, soft_rank, soft_sort

optimize = pytest.importorskip("scipy.optimize")
special = pytest.importorskip("scipy.special")

KINDS = ["quadratic", "entropic"]
kinds = pytest.mark.parametrize("kind", KINDS)
directions = pytest.mark.parametrize("descending", [False, True])
functions = pytest.mark.parametrize("function", [soft_sort, soft_rank])
numbers = st.floats(-20, 20, allow_nan=False).map(lambda x: round(x, 2))
rows = st.lists(numbers, min_size=1, max_size=8)


def hard_rank(x: Tensor) -> Tensor:
    return x.argsort(-1).argsort(-1).to(x.dtype) + 1


def projected(z: np.ndarray, w: np.ndarray, kind: str) -> np.ndarray:
    """z on the permutahedron of w by the minimax formula; in logarithms for the entropic kind."""
    order, w = np.argsort(-z, kind="stable"), np.sort(w)[::-1]
    s, n = z[order], len(z)
    value = np.full((n, n), -np.inf)
    for j in range(n):
        for k in range(j, n):
            part, weights = s[j : k + 1], w[j : k + 1]
            if kind == "quadratic":
                value[j, k] = (part - weights).mean()
            else:
                value[j, k] = special.logsumexp(part) - special.logsumexp(weights)
    y = np.empty(n)
    y[order] = s - [value[: i + 1, i:].max(-1).min() for i in range(n)]
    return y


# --- values ----------------------------------------------------------------------------------------


@given(rows, st.sampled_from(KINDS), st.floats(0.1, 10))
def test_the_definition(row: list[float], kind: str, regularization: float) -> None:
    """Sort: ρ / ε onto the permutahedron of x. Rank: x / ε onto that of ρ."""
    x, n = np.array(row), len(row)
    rho = np.arange(n, 0, -1.0)
    options = {"regularization": regularization, "kind": kind}
    received = soft_sort(torch.tensor(x), descending=True, **options).numpy()
    np.testing.assert_allclose(received, projected(rho / regularization, x, kind), rtol=1e-10, atol=1e-10)
    ranks = soft_rank(torch.tensor(x), **options).numpy()
    if kind == "quadratic":
        expected = projected(x / regularization, rho, kind)
    else:
        expected = np.exp(projected(x / regularization, np.log(rho), kind))
    np.testing.assert_allclose(ranks, expected, rtol=1e-10, atol=1e-10)


@given(st.lists(numbers, min_size=2, max_size=12, unique=True), st.sampled_from(KINDS), st.booleans())
def test_they_are_hard_below_a_threshold(row: list[float], kind: str, descending: bool) -> None:
    """Ranks up to ε = the least gap, or that over ln 2; the sort up to ε = 1 / the largest gap. Not above."""
    x = torch.tensor(row, dtype=torch.float64)
    gaps, sign = x.sort().values.diff(), -1 if descending else 1
    least, n = float(gaps.min()), len(row)
    # The threshold below which no pair is pooled, and that above which the closest pair is.
    low, high = (
        (least, least) if kind == "quadratic" else (least / math.log(2), least / math.log(n / (n - 1)))
    )
    ranks = soft_rank(x, regularization=0.999 * low, kind=kind, descending=descending)
    torch.testing.assert_close(ranks, hard_rank(sign * x), rtol=0 if kind == "quadratic" else 1e-14, atol=0)
    soft = soft_rank(x, regularization=1.01 * high, kind=kind, descending=descending)
    assert not torch.allclose(soft, ranks, rtol=0, atol=1e-4)
    hard = x.sort(descending=descending).values
    low = 1 / float(gaps.max())
    assert torch.equal(soft_sort(x, regularization=0.999 * low, kind=kind, descending=descending), hard)
    soft = soft_sort(x, regularization=1.01 * low, kind=kind, descending=descending)
    assert not torch.allclose(soft, hard, rtol=0, atol=1e-6)


@kinds
def test_strong_regularization_tells_nothing_apart(kind: str) -> None:
    x = torch.randn(7, dtype=torch.float64)
    ranks = soft_rank(x, regularization=1e9, kind=kind)
    torch.testing.assert_close(ranks, torch.full((7,), 4.0).double(), rtol=0, atol=1e-7)
    mean = x.mean() if kind == "quadratic" else torch.logsumexp(x, -1) - math.log(7)
    values = soft_sort(x, regularization=1e9, kind=kind, descending=True)
    torch.testing.assert_close(values, mean.expand(7), rtol=0, atol=1e-7)


@given(rows, st.sampled_from(KINDS), st.floats(0.05, 20), st.booleans())
def test_sums_order_and_range(row: list[float], kind: str, regularization: float, descending: bool) -> None:
    """Σ ranks, Σ x or Σ exp(±x) are kept; ranks rise with x, sorted values with their place, in its range."""
    x, n = torch.tensor(row, dtype=torch.float64), len(row)
    options = {"regularization": regularization, "kind": kind, "descending": descending}
    ranks, values = soft_rank(x, **options), soft_sort(x, **options)
    sign = -1 if descending else 1
    assert float(ranks.sum()) == pytest.approx(n * (n + 1) / 2, rel=1e-12)
    assert (ranks[(sign * x).argsort()].diff() >= -1e-9).all() and ranks.min() >= 1 - 1e-9
    assert ((sign * values).diff() >= -1e-9).all()
    assert values.min() >= x.min() - 1e-9 and values.max() <= x.max() + 1e-9
    if kind == "quadratic":
        torch.testing.assert_close(values.sum(), x.sum(), rtol=0, atol=1e-9)
    else:
        kept = [torch.logsumexp(-sign * each, -1) for each in (values, x)]
        torch.testing.assert_close(*kept, rtol=0, atol=1e-9)


@functions
@kinds
@given(st.permutations(range(6)), numbers, st.floats(0.2, 5))
def test_invariances(
    function: Callable[..., Tensor], kind: str, order: list[int], shift: float, scale: float
) -> None:
    """The sort does not see the order of x, the ranks follow it; shifts, and scales with ε."""
    x = torch.tensor([0.3, -1.2, 0.7, 0.71, 2.5, -0.4], dtype=torch.float64)
    y, permuted = function(x, kind=kind), function(x[order], kind=kind)
    is_rank = function is soft_rank
    torch.testing.assert_close(permuted, y[order] if is_rank else y, rtol=0, atol=1e-12)
    moved = function(x + shift, kind=kind)
    torch.testing.assert_close(moved, y if is_rank else y + shift, rtol=0, atol=1e-11)
    if is_rank:
        scaled = function(x * scale, kind=kind, regularization=scale)
        torch.testing.assert_close(scaled, y, rtol=0, atol=1e-11)
    elif kind == "quadratic":
        scaled = function(x * scale, kind=kind, regularization=1 / scale)
        torch.testing.assert_close(scaled, y * scale, rtol=0, atol=1e-11)


@kinds
def test_ties_share_their_rank(kind: str) -> None:
    x = torch.tensor([1.0, 5.0, 1.0, 1.0, 9.0], dtype=torch.float64)
    for descending, expected in ((False, [2.0, 4.0, 2.0, 2.0, 5.0]), (True, [4.0, 2.0, 4.0, 4.0, 1.0])):
        ranks = soft_rank(x, regularization=1e-3, kind=kind, descending=descending)
        torch.testing.assert_close(ranks, torch.tensor(expected).double(), rtol=0, atol=1e-9)


def test_spearman_is_differentiable() -> None:
    """An application: a gradient step on the correlation of ranks raises it, where hard ranks are flat."""
    target = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    scores = torch.tensor([0.5, 0.1, 0.3, 0.2, 0.4], dtype=torch.float64, requires_grad=True)

    def correlation(x: Tensor) -> Tensor:
        ranks = soft_rank(x, regularization=1.0)
        return torch.corrcoef(torch.stack([ranks, target]))[0, 1]

    before = correlation(scores)
    (gradient,) = torch.autograd.grad(before, scores)
    assert gradient.norm() > 0.1
    assert correlation(scores + 0.1 * gradient) > before


# --- derivatives and types -------------------------------------------------------------------------


@functions
@kinds
@directions
def test_gradients_to_second_order(function: Callable[..., Tensor], kind: str, descending: bool) -> None:
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)

    def call(scores: Tensor) -> Tensor:
        return function(scores, regularization=0.8, kind=kind, descending=descending)

    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, x)


@functions
@kinds
def test_torch_func_and_compile(function: Callable[..., Tensor], kind: str) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    mapped = torch.func.vmap(lambda row: function(row, kind=kind))(x)
    torch.testing.assert_close(mapped, function(x, kind=kind))

    def value(row: Tensor) -> Tensor:
        return function(row, kind=kind).square().sum()

    gradients = torch.func.vmap(torch.func.grad(value))(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradients, torch.autograd.grad(value(leaf), leaf)[0])
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], gradients)


def test_the_gradient_of_a_hard_sort_is_the_permutation() -> None:
    x = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: soft_sort(x, regularization=0.1), x)
    assert torch.equal(jacobian, torch.eye(3).double()[[1, 2, 0]])
    ranks = torch.autograd.functional.jacobian(lambda x: soft_rank(x, regularization=0.1), x)
    assert (ranks == 0).all()


@functions
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_short_types(function: Callable[..., Tensor], kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 50).to(dtype)
    received = function(x, kind=kind, regularization=0.1)
    assert received.dtype == dtype
    exact = function(x.double(), kind=kind, regularization=0.1)
    error = (received.double() - exact).abs().max() / exact.abs().max()
    assert error <= torch.finfo(dtype).eps * (20 if dtype == torch.float32 else 1)


@functions
@kinds
def test_tiny_regularization_in_float32(function: Callable[..., Tensor], kind: str) -> None:
    """ρ / ε and x / ε of 1e8 and more: entries that are not pooled are exact all the same."""
    x = torch.randperm(1000).float()
    received = function(x, kind=kind, regularization=1e-6)
    expected = hard_rank(x) if function is soft_rank else x.sort().values
    torch.testing.assert_close(received, expected, rtol=1e-6, atol=0)


@functions
@pytest.mark.parametrize("shape, dim", [((0, 4), -1), ((2, 0, 4), 2), ((4, 3), 0), ((2, 4, 3), 1)])
def test_axes_and_batches(function: Callable[..., Tensor], shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    y = function(x, dim=dim)
    assert y.shape == shape
    for received, row in zip(
        y.movedim(dim, -1).reshape(-1, 4), x.movedim(dim, -1).reshape(-1, 4), strict=True
    ):
        torch.testing.assert_close(received, function(row), rtol=0, atol=1e-14)
    assert function(torch.tensor([3.0])).tolist() == [1.0 if function is soft_rank else 3.0]


@functions
@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"x": torch.tensor([0.0, math.nan])}, r"x of shape \(2,\) must be finite, holds nan at \(1,\)"),
        ({"x": torch.zeros(2, 0)}, "have no classes along dim=-1"),
        ({"x": torch.tensor([1, 2])}, "floating-point tensor, received torch.int64"),
        ({"dim": 3}, "no axis dim=3"),
        ({"regularization": 0.0}, "regularization must be positive and finite, received 0.0"),
        ({"regularization": math.nan}, "received nan"),
        ({"kind": "l2"}, "unknown kind 'l2'; known: quadratic, entropic"),
        ({"kind": "quadratc"}, r"did you mean 'quadratic'\?"),
    ],
)
def test_errors_quote_what_was_received(function: Callable[..., Tensor], arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        function(**{"x": torch.zeros(2, 3), **arguments})
