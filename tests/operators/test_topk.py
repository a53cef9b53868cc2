"""Sparse top-k: against quadratic programs, KKT conditions, its own peers, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from fenchel import InputError, topk_magnitude, topk_mask

OPERATORS = (topk_mask, topk_magnitude)
NORMS = (2.0, 4 / 3, 1.5, 1.2)
CLOSED = (2.0, 4 / 3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hard_mask(x: Tensor, k: int) -> Tensor:
    return torch.zeros_like(x).scatter(-1, x.topk(k, -1).indices, 1.0)


# --- what it solves --------------------------------------------------------------------------


def projection(z: np.ndarray, k: int) -> np.ndarray:
    """argmin |y - z|² over [0, 1]^n, Σ y = k: the best of all assignments to {0, between, 1}."""
    best, found = math.inf, z
    for states in product((0, 1, 2), repeat=len(z)):
        state = np.array(states)
        free = state == 1
        y = (state == 2).astype(float)
        if free.any():
            y[free] = z[free] + (k - y.sum() - z[free].sum()) / free.sum()
        if abs(y.sum() - k) < 1e-9 and y.min() > -1e-12 and y.max() < 1 + 1e-12:
            value = ((y - z) ** 2).sum()
            best, found = min((best, found), (value, y), key=lambda pair: pair[0])
    return found


@pytest.mark.parametrize("solver", ["threshold", "pav"])
@pytest.mark.parametrize("regularization", [0.05, 0.7, 3.0, 40.0])
def test_the_quadratic_mask_is_the_solution_of_its_quadratic_program(
    regularization: float, solver: str
) -> None:
    x = normal(3, 6)
    for k in range(7):
        y = topk_mask(x, k, regularization=regularization, p=2.0, solver=solver)
        expected = np.stack([projection(row.numpy() / regularization, k) for row in x])
        torch.testing.assert_close(y, torch.from_numpy(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("regularization", [0.05, 0.7, 3.0, 40.0])
def test_the_mask_satisfies_its_optimality_conditions(p: float, regularization: float) -> None:
    """x - l y^(p-1) is τ strictly inside, at least τ at 1 and at most τ at 0."""
    x = normal(20, 15, seed=1)
    for k in (1, 4, 14):
        y = topk_mask(x, k, regularization=regularization, p=p)
        torch.testing.assert_close(y.sum(-1), torch.full((20,), float(k)).double(), rtol=0, atol=1e-12)
        dual = x - regularization * y ** (p - 1)
        for row, multipliers in zip(y, dual, strict=True):
            inside = (row > 0) & (row < 1)
            low = multipliers[row < 1].max() if bool((row < 1).any()) else torch.tensor(-math.inf)
            assert low <= multipliers[row > 0].min() + 1e-11
            if bool(inside.any()):
                assert multipliers[inside].max() - multipliers[inside].min() < 1e-11


@pytest.mark.parametrize("p", CLOSED)
def test_the_magnitude_solves_its_saddle_problem(p: float) -> None:
    """With out = d + (d / l)^(q-1), v = s - d minimises Σ|s-v|^q/(q l^(q-1)) + ½ Σ_{i<=k} v_i², v falling."""
    q, k, regularization = p / (p - 1), 3, 0.8
    s = normal(7, seed=3).abs().sort(descending=True).values.numpy() + 0.2
    w = (np.arange(7) < k).astype(float)

    def objective(v: np.ndarray) -> float:
        gaps = np.abs(s - v) ** q / (q * regularization ** (q - 1))
        return float(gaps.sum() + 0.5 * (w * v**2).sum())

    def gradient(v: np.ndarray) -> np.ndarray:
        return -np.sign(s - v) * (np.abs(s - v) / regularization) ** (q - 1) + w * v

    falling = optimize.LinearConstraint(np.eye(7)[:-1] - np.eye(7)[1:], 0, np.inf)
    options = {"gtol": 1e-14, "xtol": 1e-15, "maxiter": 20_000, "barrier_tol": 1e-14}
    solved = optimize.minimize(
        objective, s * 0.5, jac=gradient, constraints=falling, method="trust-constr", options=options
    )
    out = topk_magnitude(torch.from_numpy(s), k, regularization=regularization, p=p).tolist()
    d = [
        optimize.brentq(lambda d, o=o: d + (d / regularization) ** (q - 1) - o, 0, o + 1, xtol=1e-15)
        for o in out
    ]
    v = s - np.array(d)
    assert np.diff(v).max() < 1e-12
    assert objective(v) <= solved.fun + 1e-12
    np.testing.assert_allclose(objective(v), solved.fun, rtol=1e-8)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("regularization", [0.02, 0.5, 5.0])
def test_the_magnitude_satisfies_its_equations(p: float, regularization: float) -> None:
    """Read τ off an entry between, out = s - τ + τ m; then m of every entry follows, and Σ m = k."""
    x = normal(30, 12, seed=2)
    k, between = 4, 0
    out = topk_magnitude(x, k, regularization=regularization, p=p)
    assert bool(((out == 0) | (out.sign() == x.sign())).all())
    for s, o in zip(x.abs(), out.abs(), strict=True):
        inside = (o > 0) & (o < s)
        if not bool(inside.any()):
            assert int((o > 0).sum()) == k and bool(((o == 0) | (o == s)).all())
            continue
        between += 1
        # o = s - τ + ((s - τ) / l)^(1/(p-1)), solved for τ by the first entry between.
        first_s, first_o = float(s[inside][0]), float(o[inside][0])

        def residual(tau: float, s: float = first_s, o: float = first_o) -> float:
            return s - tau + ((s - tau) / regularization) ** (1 / (p - 1)) - o

        tau = optimize.brentq(residual, 0.0, first_s, xtol=1e-15, rtol=1e-14)
        u = (((s - tau).clamp(min=0)) / regularization) ** (1 / (p - 1))
        m = (u / tau).clamp(max=1)
        assert float(m.sum()) == pytest.approx(k, abs=1e-8)
        expected = torch.where(m < 1, torch.where(m > 0, s - tau + u, 0.0), s)
        torch.testing.assert_close(o, expected, rtol=0, atol=1e-9)
    assert between > 0 or regularization < 0.1


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("p", CLOSED)
@pytest.mark.parametrize("regularization", [0.05, 0.5, 3.0, 30.0])
def test_the_solvers_agree(operator: Callable[..., Tensor], p: float, regularization: float) -> None:
    x, cotangent = normal(6, 11, seed=4).requires_grad_(), normal(6, 11, seed=5)
    for k in (0, 1, 4, 10, 11):
        found = {}
        for solver in ("threshold", "pav"):
            y = operator(x, k, regularization=regularization, p=p, solver=solver)
            found[solver] = (y.detach(), torch.autograd.grad(y, x, cotangent)[0])
        torch.testing.assert_close(found["pav"][0], found["threshold"][0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found["pav"][1], found["threshold"][1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("p", CLOSED)
def test_dykstra_converges_to_the_same(operator: Callable[..., Tensor], p: float) -> None:
    x = normal(4, 8, seed=6)
    exact = operator(x, 3, regularization=20.0, p=p)
    errors = [
        float((operator(x, 3, regularization=20.0, p=p, solver="dykstra", iterations=n) - exact).abs().max())
        for n in (2, 2000)
    ]
    assert errors[1] < 1e-6 and errors[1] < errors[0]


# --- sparsity --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", NORMS)
def test_the_mask_is_hard_exactly_when_the_gap_is_no_less_than_the_regularization(p: float) -> None:
    x = normal(50, 20, seed=7)
    ordered = x.sort(-1, descending=True).values
    gap = float((ordered[:, 4] - ordered[:, 5]).min())
    assert torch.equal(topk_mask(x, 5, regularization=0.99 * gap, p=p), hard_mask(x, 5))
    soft = topk_mask(x, 5, regularization=1.01 * gap, p=p)
    assert int(((soft > 0) & (soft < 1)).any(-1).sum()) == 1  # the one row with that gap


@pytest.mark.parametrize("p", NORMS)
def test_the_magnitude_keeps_exactly_k_untouched_once_the_regularization_is_small(p: float) -> None:
    x = normal(50, 20, seed=8)
    out = topk_magnitude(x, 5, regularization=1e-4, p=p)
    assert torch.equal(out, x * hard_mask(x.abs(), 5))


@pytest.mark.parametrize("operator", OPERATORS)
def test_nonzeros_fall_to_k(operator: Callable[..., Tensor]) -> None:
    x = normal(40, 30, seed=9)
    counts = torch.stack(
        [
            (operator(x, 6, regularization=strength) != 0).sum(-1)
            for strength in (100.0, 10.0, 1.0, 0.1, 0.01, 1e-5)
        ]
    )
    assert bool((counts.diff(dim=0) <= 0).all()) and bool((counts >= 6).all())
    assert bool((counts[-1] == 6).all()) and float(counts[0].double().mean()) > 20


@pytest.mark.parametrize("p", NORMS)
def test_a_strong_regularization_keeps_everything(p: float) -> None:
    x = normal(5, 9, seed=10)
    torch.testing.assert_close(topk_magnitude(x, 3, regularization=1e9, p=p), x, rtol=0, atol=1e-6)
    flat = topk_mask(x, 3, regularization=1e9, p=p)
    torch.testing.assert_close(flat, torch.full_like(x, 1 / 3), rtol=0, atol=1e-6)


def test_few_nonzeros_come_out_as_they_are() -> None:
    x = torch.tensor([[0.0, -2.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0], [1.0, -2.0, 3.0, 0.0]]).double()
    x.requires_grad_()
    out = topk_magnitude(x, 3, regularization=5.0)
    assert torch.equal(out, x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.isfinite(gradient).all()


# --- derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("regularization", [1.5, 20.0])
def test_gradients_to_second_order(operator: Callable[..., Tensor], p: float, regularization: float) -> None:
    x = normal(2, 6, seed=11).requires_grad_()

    def call(x: Tensor) -> Tensor:
        return operator(x, 2, regularization=regularization, p=p)

    inside = call(x)
    assert bool(((inside != 0) & (inside != 1) & (inside != x)).any())
    assert torch.autograd.gradcheck(call, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, x)


def test_the_jacobian_is_the_stated_one() -> None:
    """diag(w) - w wᵀ / Σ w, with w the derivative of the ramp strictly between 0 and 1."""
    x = normal(8, seed=12)
    y = topk_mask(x, 3, regularization=2.0)
    w = torch.where((y > 0) & (y < 1), 3 * y ** (2 / 3) / 2.0, 0.0)
    received = torch.autograd.functional.jacobian(lambda x: topk_mask(x, 3, regularization=2.0), x)
    torch.testing.assert_close(received, w.diag() - torch.outer(w, w) / w.sum())


@pytest.mark.parametrize("operator", OPERATORS)
def test_torch_func(operator: Callable[..., Tensor]) -> None:
    x, k = normal(4, 7, seed=13), torch.tensor([1, 2, 3, 6])

    def value(row: Tensor, k: int | Tensor = 3) -> Tensor:
        return operator(row, k, regularization=1.0).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(value))(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(value)(x), expected)
    each = torch.stack([operator(row, int(n), regularization=1.0) for row, n in zip(x, k, strict=True)])
    torch.testing.assert_close(operator(x, k, regularization=1.0), each)
    mapped = torch.func.vmap(lambda row, n: operator(row, n, regularization=1.0))(x, k)
    torch.testing.assert_close(mapped, each)


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiles_to_one_graph(operator: Callable[..., Tensor]) -> None:
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return operator(x, 3, regularization=1.0, p=2.0).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (received,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(received, expected)


# --- invariances -----------------------------------------------------------------------------

entries = st.lists(st.floats(-50, 50).map(lambda x: round(x, 2)), min_size=1, max_size=10)


@given(entries, st.data(), st.sampled_from(NORMS), st.floats(-3, 3))
def test_properties(row: list[float], data: st.DataObject, p: float, log: float) -> None:
    """With ties too: sums, order, permutations, shifts, signs and scales."""
    x, k, strength = torch.tensor(row).double(), data.draw(st.integers(0, len(row))), 10**log
    y = topk_mask(x, k, regularization=strength, p=p)
    assert float(y.sum()) == pytest.approx(k, abs=1e-11) and bool(((y >= 0) & (y <= 1)).all())
    order = x.argsort()
    assert bool((y[order].diff() >= -1e-13).all())
    permutation = torch.tensor(data.draw(st.permutations(range(len(row)))))
    torch.testing.assert_close(topk_mask(x[permutation], k, regularization=strength, p=p), y[permutation])
    shifted = topk_mask(x + 7.25, k, regularization=strength, p=p)
    torch.testing.assert_close(shifted, y, rtol=1e-6, atol=1e-6 + 1e-12 / strength)
    torch.testing.assert_close(topk_mask(3 * x, k, regularization=3 * strength, p=p), y, rtol=1e-8, atol=1e-9)

    out = topk_magnitude(x, k, regularization=strength, p=p)
    assert bool((out.abs() <= x.abs() * (1 + 1e-12)).all())
    assert bool((out * x >= 0).all())
    assert bool((out[x.abs().argsort()].abs().diff() >= -1e-11).all())
    torch.testing.assert_close(
        topk_magnitude(-x[permutation], k, regularization=strength, p=p),
        -out[permutation],
        rtol=1e-9,
        atol=1e-11,
    )
    scaled = topk_magnitude(3 * x, k, regularization=3 ** (2 - p) * strength, p=p)
    torch.testing.assert_close(scaled, 3 * out, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("operator", OPERATORS)
def test_axes_batches_dtypes_and_emptiness(operator: Callable[..., Tensor]) -> None:
    x = normal(2, 5, 3, seed=14)
    torch.testing.assert_close(operator(x, 2, dim=1), operator(x.movedim(1, -1), 2).movedim(-1, 1))
    for shape in [(0, 4), (3, 0, 4), (1,), (1, 1)]:
        empty = torch.zeros(shape, requires_grad=True)
        torch.autograd.grad(operator(empty, 1).sum(), empty)
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        assert torch.equal(operator(half, 2), operator(half.float(), 2).to(dtype))
    assert torch.equal(operator(x, 3, dim=-1), torch.ones_like(x) if operator is topk_mask else x)
    assert torch.equal(operator(x, 0), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", NORMS)
def test_huge_scores_and_ties(dtype: torch.dtype, p: float) -> None:
    x = torch.tensor([[1e4, -1e4, 0.0, 1.0], [1e4, 1e4, 1e4, -1e4]], dtype=dtype, requires_grad=True)
    y = topk_mask(x, 2, p=p)
    expected = torch.tensor([[1, 0, 0, 1], [2 / 3, 2 / 3, 2 / 3, 0]], dtype=dtype)
    torch.testing.assert_close(y, expected)
    out = topk_magnitude(x, 2, p=p)
    assert torch.equal(out[0], torch.tensor([1e4, -1e4, 0.0, 0.0], dtype=dtype))
    assert out[1, 0] == out[1, 1] == out[1, 2] == -out[1, 3]
    (gradient,) = torch.autograd.grad(y.square().sum() + out.square().sum(), x)
    assert torch.isfinite(gradient).all()


def test_masked_scores_are_never_chosen() -> None:
    x = normal(3, 6, seed=15)
    masked = torch.cat([x, torch.full((3, 2), -math.inf).double()], -1).requires_grad_()
    for solver in ("threshold", "pav"):
        y = topk_mask(masked, 6, regularization=9.0, solver=solver)
        torch.testing.assert_close(y[:, :6], torch.ones_like(x))
        y = topk_mask(masked, 2, regularization=1.0, solver=solver)
        assert bool((y[:, 6:] == 0).all())
        torch.testing.assert_close(y[:, :6], topk_mask(x, 2, regularization=1.0))
        (gradient,) = torch.autograd.grad(y.square().sum(), masked)
        assert torch.isfinite(gradient).all() and bool((gradient[:, 6:] == 0).all())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 4}, r"k must be in \[0, 3\] for 3 .* along dim=-1, received 4"),
        ({"k": -1}, "received -1"),
        ({"k": 1.5}, "k must be an integer, received 1.5"),
        ({"k": torch.tensor([1, 9])}, "received 9"),
        ({"k": torch.tensor([1])}, r"integers of shape \(2,\).*received torch.int64 of shape \(1,\)"),
        ({"k": torch.tensor([1.0, 2.0])}, "received torch.float32"),
        ({"regularization": 0.0}, "regularization must be positive and finite, received 0.0"),
        ({"regularization": math.nan}, "received nan"),
        ({"p": 1.0}, r"p must be in \(1, 2\], received 1.0"),
        ({"p": 2.5}, "received 2.5"),
        ({"solver": "newton"}, "solver must be one of threshold, pav, dykstra, received 'newton'"),
        ({"solver": "pav", "p": 1.5}, "solver='pav' needs p = 2 or p = 4/3, received p=1.5"),
        ({"x": torch.tensor([[0.0, math.nan, 1.0]])}, "must be below inf, received nan"),
        ({"x": torch.tensor([[0.0, math.inf, 1.0]])}, "received inf"),
        ({"x": torch.tensor([1, 2, 3])}, "floating-point tensor, received torch.int64"),
        ({"x": torch.zeros(2, 0)}, "have no classes"),
        ({"dim": 2}, "have no axis dim=2"),
    ],
)
@pytest.mark.parametrize("operator", OPERATORS)
def test_errors_quote_what_was_received(operator: Callable[..., Tensor], arguments: dict, words: str) -> None:
    arguments = {"x": torch.zeros(2, 3), "k": 2, **arguments}
    with pytest.raises(InputError, match=words):
        operator(arguments.pop("x"), arguments.pop("k"), **arguments)


def test_too_few_scores_to_choose_from() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, -math.inf, -math.inf]])
    with pytest.raises(InputError, match=r"row \(1,\) along dim=-1 has fewer finite ones than k"):
        topk_mask(x, 2)
    assert torch.equal(topk_mask(x, torch.tensor([2, 1]))[1], torch.tensor([1.0, 0.0, 0.0]))


def test_magnitudes_refuse_norms_that_hide_the_threshold_behind_rounding() -> None:
    with pytest.raises(InputError, match=r"p must be in \[1.2, 2\] for magnitudes, received 1.1"):
        topk_magnitude(torch.ones(3), 2, p=1.1)
    assert topk_mask(torch.tensor([3.0, 1.0, 0.0]), 1, p=1.1).tolist() == [1.0, 0.0, 0.0]
