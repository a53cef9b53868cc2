"""Isotonic regression against scipy and scikit-learn; derivatives of every kind of block; the two solvers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import InputError, isotonic_regression
from fenchel.operators.isotonic import pool

optimize = pytest.importorskip("scipy.optimize")
sklearn = pytest.importorskip("sklearn.isotonic")

KINDS = ["mean", "cubic", "entropic"]
SOLVED = [("mean", "pav"), ("mean", "dykstra"), ("cubic", "pav"), ("cubic", "dykstra"), ("entropic", "pav")]
GIVEN = [(kind, given) for kind in KINDS for given in ("s", "sa", "sab") if given != "sab" or kind == "cubic"]
numbers = st.floats(-1e4, 1e4, allow_nan=False).map(lambda x: round(x, 2))


# --- values ----------------------------------------------------------------------------------------


@given(st.lists(numbers, min_size=1, max_size=60), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_scipy_and_sklearn(row: list[float], increasing: bool, weighted: bool, seed: int) -> None:
    y = np.array(row)
    weight = np.random.default_rng(seed).random(len(y)) * 5 + 0.01 if weighted else None
    received = isotonic_regression(
        torch.tensor(y), None if weight is None else torch.tensor(weight), increasing=increasing
    )
    theirs = optimize.isotonic_regression(y, weights=weight, increasing=increasing).x
    others = sklearn.isotonic_regression(y, sample_weight=weight, increasing=increasing)
    size = 1 + np.abs(y).max()
    np.testing.assert_allclose(received.numpy(), theirs, rtol=0, atol=1e-12 * size)
    np.testing.assert_allclose(received.numpy(), others, rtol=0, atol=1e-12 * size)
    assert (received.diff() * (1 if increasing else -1) >= 0).all()


ADVERSARIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "falling": lambda i: -i,
    "sawtooth": lambda i: i % 7,
    "steps": lambda i: (i // 9) * (-1.0) ** i,
    "one huge": lambda i: torch.where(i == 100, 1e12, i),
    "geometric": lambda i: 0.5**i,
    "one late violation": lambda i: torch.where(i == 499, -1.0, i),
    "ties": lambda i: torch.zeros_like(i),
}


@pytest.mark.parametrize("form", ADVERSARIAL)
@pytest.mark.parametrize("impl", ["eager", "auto"])
def test_adversarial_rows(form: str, impl: str) -> None:
    y = ADVERSARIAL[form](torch.arange(500, dtype=torch.float64)).expand(4, 500)
    expected = optimize.isotonic_regression(y[0].numpy()).x
    received = isotonic_regression(y, impl=impl)
    size = float(np.abs(expected).max())
    for each in received:
        np.testing.assert_allclose(each.numpy(), expected, rtol=1e-12, atol=1e-15 * size)


@pytest.mark.parametrize("shape", [(7,), (1,), (3, 7), (2, 3, 7), (0, 7), (2, 0, 3)])
def test_batches_are_loops(shape: tuple[int, ...]) -> None:
    y = torch.randn(shape, dtype=torch.float64)
    together = isotonic_regression(y)
    assert together.shape == shape and together.dtype == y.dtype
    rows = zip(together.reshape(-1, shape[-1]), y.reshape(-1, shape[-1]), strict=True)
    for received, row in rows:
        torch.testing.assert_close(received, isotonic_regression(row), rtol=0, atol=0)


def test_the_axis_and_the_weights_that_broadcast() -> None:
    y, weight = torch.randn(3, 9, 2, dtype=torch.float64), torch.rand(9, 1, dtype=torch.float64) + 0.1
    received = isotonic_regression(y, weight, dim=1)
    expected = isotonic_regression(y.movedim(1, -1), weight.squeeze(-1))
    torch.testing.assert_close(received, expected.movedim(-1, 1))


def test_whole_weights_are_repetitions() -> None:
    y, times = torch.randn(6, dtype=torch.float64), torch.tensor([1, 3, 2, 1, 4, 2])
    repeated = isotonic_regression(y.repeat_interleave(times))
    torch.testing.assert_close(isotonic_regression(y, times.double()).repeat_interleave(times), repeated)


@given(st.lists(numbers, min_size=1, max_size=30), numbers, st.floats(0.1, 100))
def test_invariances(row: list[float], shift: float, scale: float) -> None:
    """v(c y + d) = c v(y) + d, v(v) = v, the mean is kept, and falling is rising read backwards."""
    y = torch.tensor(row, dtype=torch.float64)
    v = isotonic_regression(y)
    tolerance = 1e-11 * float((y.abs().max() + 1) * scale + abs(shift))
    torch.testing.assert_close(
        isotonic_regression(y * scale + shift), v * scale + shift, rtol=0, atol=tolerance
    )
    torch.testing.assert_close(isotonic_regression(v), v, rtol=0, atol=tolerance)
    torch.testing.assert_close(v.mean(), y.mean(), rtol=0, atol=tolerance)
    falling = isotonic_regression(y, increasing=False)
    torch.testing.assert_close(falling, isotonic_regression(y.flip(0)).flip(0), rtol=0, atol=tolerance)


@given(st.lists(numbers, min_size=6, max_size=6), st.lists(numbers, min_size=6, max_size=6), st.booleans())
def test_it_is_a_projection(first: list[float], second: list[float], increasing: bool) -> None:
    """Firm nonexpansiveness: ||Px - Py||² <= <Px - Py, x - y>."""
    x, y = torch.tensor([first, second], dtype=torch.float64)
    px, py = isotonic_regression(torch.stack([x, y]), increasing=increasing)
    inner = ((px - py) * (x - y)).sum()
    assert (px - py).square().sum() <= inner + 1e-11 * (x.abs().max() + y.abs().max() + 1) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_short_types(dtype: torch.dtype, scale: float) -> None:
    y = (torch.randn(4, 300) * scale).to(dtype)
    received = isotonic_regression(y)
    assert received.dtype == dtype
    exact = isotonic_regression(y.double())
    error = (received.double() - exact).abs().max() / exact.abs().max()
    assert error <= torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", ["mean", "cubic"])
def test_solvers_agree_where_blocks_are_short(kind: str) -> None:
    """Neighbours that are swapped, as where a sorted row is disturbed a little."""
    s = torch.arange(4096, 0, -1, dtype=torch.float64) + 2 * torch.randn(3, 4096, dtype=torch.float64)
    torch.testing.assert_close(pool(kind, s, solver="dykstra"), pool(kind, s), rtol=0, atol=1e-12)
    rising = isotonic_regression(s.flip(-1), solver="dykstra")
    torch.testing.assert_close(rising, isotonic_regression(s.flip(-1)), rtol=0, atol=1e-11)


# --- derivatives -----------------------------------------------------------------------------------


def problem(kind: str, given: str, *rows: int) -> list[Tensor]:
    s = torch.randn(*rows, 7, dtype=torch.float64)
    a, b = torch.rand(2, 7, dtype=torch.float64) + 0.3
    return [x.requires_grad_() for x in (s, a, b)[: len(given)]]


@pytest.mark.parametrize(
    "kind, given, solver", [(k, g, solver) for k, g in GIVEN for kind, solver in SOLVED if kind == k]
)
def test_gradients_to_second_order(kind: str, given: str, solver: str) -> None:
    """Finite differences in every argument, forward and backward, in batches of tangents too."""
    arguments = problem(kind, given, 2)
    assert len(pool(kind, *arguments).unique()) < 14  # some entries are pooled

    def call(*tensors: Tensor) -> Tensor:
        return pool(kind, *tensors, solver=solver, iterations=30)

    assert torch.autograd.gradcheck(call, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, arguments, check_batched_grad=True)


@pytest.mark.parametrize("kind, given", GIVEN)
def test_torch_func(kind: str, given: str) -> None:
    s, *others = problem(kind, given, 3)

    def value(row: Tensor, *rest: Tensor) -> Tensor:
        return pool(kind, row, *rest).square().sum()

    none = (None,) * len(others)
    mapped = torch.func.vmap(lambda row, *rest: pool(kind, row, *rest), in_dims=(0, *none))(s, *others)
    torch.testing.assert_close(mapped, pool(kind, s, *others), rtol=0, atol=0)
    columns = torch.func.vmap(lambda row: pool(kind, row, *others), in_dims=1, out_dims=1)(s.T.contiguous())
    torch.testing.assert_close(columns, pool(kind, s, *others).T, rtol=0, atol=0)
    if others:  # the row is the same, what is mapped is a
        many = torch.stack([others[0], others[0] + 0.5])
        over_a = torch.func.vmap(lambda a: pool(kind, s[0], a, *others[1:]))(many)
        torch.testing.assert_close(over_a[1], pool(kind, s[0], many[1], *others[1:]), rtol=0, atol=0)
    gradients = torch.func.vmap(torch.func.grad(value), in_dims=(0, *none))(s, *others)
    torch.testing.assert_close(gradients, torch.autograd.grad(value(s, *others), s)[0])
    hessian = torch.func.hessian(value)(s[0], *others)
    expected = torch.autograd.functional.hessian(lambda row: value(row, *others), s[0])
    torch.testing.assert_close(hessian, expected)


@pytest.mark.parametrize("kind, solver", SOLVED)
def test_compiles_to_one_graph(kind: str, solver: str) -> None:
    s, *others = problem(kind, "sa" if kind == "mean" else "s", 3)

    def loss(x: Tensor) -> Tensor:
        return pool(kind, x, *others, solver=solver).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(s), loss(s), rtol=0, atol=0)
    received, expected = (torch.autograd.grad(f(s), s)[0] for f in (compiled, loss))
    torch.testing.assert_close(received, expected)


def test_the_jacobian_takes_means_over_blocks() -> None:
    y = torch.tensor([1.0, 3.0, 2.0, 5.5, 6.0, 4.0], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(isotonic_regression, y)
    mean = torch.ones(3, 3, dtype=torch.float64) / 3
    expected = torch.block_diag(torch.ones(1, 1).double(), torch.full((2, 2), 0.5).double(), mean)
    torch.testing.assert_close(jacobian, expected, rtol=1e-15, atol=0)


def test_kernels_have_the_same_derivatives() -> None:
    """On a tensor large enough for C++, against plain PyTorch, to second order."""
    s = torch.randn(8, 400, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(400, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(8, 400, dtype=torch.float64)
    found = []
    for impl in ("auto", "eager"):
        value = (isotonic_regression(s, weight + 0.1, impl=impl) * direction).square().sum()
        first = torch.autograd.grad(value, (s, weight), create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), (s, weight))
        found.append((value, *first, *second))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_a_flat_cubic_has_finite_derivatives() -> None:
    """Where a = b = 0 an entry alone has v = s: the derivative in s is 1, those in a and b are none."""
    s = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    a, b = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    v = pool("cubic", s, a, b)
    torch.testing.assert_close(v, s, rtol=0, atol=0)
    in_s, in_a, in_b = torch.autograd.grad(v.sum(), (s, a, b), create_graph=True)
    assert (in_s == 1).all() and (in_a == 0).all() and (in_b == 0).all()
    for second in torch.autograd.grad(in_s.square().sum() + in_a.sum() + in_b.sum(), (s, a, b)):
        assert torch.isfinite(second).all()


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"y": torch.tensor([[0.0, 1.0], [math.nan, 0.0]])}, r"y of shape \(2, 2\).* holds nan at \(1, 0\)"),
        ({"y": torch.tensor([0.0, math.inf])}, r"must be finite, holds inf at \(1,\)"),
        ({"y": torch.zeros(2, 0)}, r"y of shape \(2, 0\) have no classes along dim=-1"),
        ({"y": torch.zeros(3), "dim": 1}, r"no axis dim=1"),
        ({"y": torch.tensor([1, 2])}, "y must be a floating-point tensor, received torch.int64"),
        ({"y": [1.0, 2.0]}, "y must be a floating-point tensor, received list"),
        ({"weight": torch.tensor([1.0, 0.0, 2.0])}, "weight must be positive and finite, received 0.0"),
        ({"weight": torch.tensor([1.0, math.nan, 2.0])}, "weight must be positive and finite, received nan"),
        ({"weight": torch.tensor([1.0, math.inf, 2.0])}, "weight must be positive and finite, received inf"),
        ({"weight": torch.ones(4)}, r"weight must broadcast to y \(2, 3\), received shape \(4,\)"),
        ({"solver": "pool"}, "unknown solver 'pool'; known: pav, dykstra"),
        ({"solver": "dikstra"}, r"unknown solver 'dikstra' \(did you mean 'dykstra'\?\)"),
        ({"solver": "dykstra", "iterations": 0}, "iterations must be at least 1, received 0"),
        ({"impl": "cuda"}, "impl must be auto, triton, cpu, eager, received 'cuda'"),
    ],
)
def test_errors_quote_what_was_received(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        isotonic_regression(**{"y": torch.zeros(2, 3), **arguments})


def test_dykstra_has_no_entropic_problem() -> None:
    with pytest.raises(InputError, match="kind mean or cubic, received 'entropic'"):
        pool("entropic", torch.zeros(3), solver="dykstra")
