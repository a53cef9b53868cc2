"""What f-softargmax, its value and its threshold must satisfy, for every record and measure."""

from __future__ import annotations

import math

import pytest
import torch
from catalogue import NAMES, OWN, SPARSE, STEEP
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fenchel
from fenchel import InputError, f_softargmax, f_softmax, f_threshold

ALL = [*NAMES, *STEEP, OWN]
OPERATORS = (f_softargmax, f_softmax, f_threshold)


def scores(*shape: int, scale: float = 1.5) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * scale


def measures(size: int) -> list[Tensor]:
    spread = 10 ** (6 * torch.rand(size, dtype=torch.float64) - 3)
    return [torch.ones(size).double(), torch.full((size,), 1 / size).double(), spread]


# --- derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", NAMES)
@pytest.mark.parametrize("function", OPERATORS)
def test_gradients_to_second_order(divergence: str, function: object) -> None:
    """Finite differences in scores, measure and temperature, at a point off the kinks."""
    logits = scores(2, 5).requires_grad_()
    q = (torch.rand(5, dtype=torch.float64) + 0.3).requires_grad_()
    temperature = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, measure: Tensor, t: Tensor) -> Tensor:
        return function(x, divergence, reference=measure, temperature=t)  # type: ignore[operator]

    assert torch.autograd.gradcheck(call, (logits, q, temperature))
    assert torch.autograd.gradgradcheck(call, (logits, q, temperature))


@pytest.mark.parametrize("divergence", ALL)
def test_jacobian_is_the_stated_one(divergence: str) -> None:
    logits, q = scores(6), torch.rand(6, dtype=torch.float64) + 0.5
    record = fenchel.divergence(divergence)
    tau = f_threshold(logits, record, reference=q)
    p = f_softargmax(logits, record, reference=q)
    w = torch.where(p > 0, q * record.conjugate_second_derivative(logits - tau), 0.0)
    expected = w.diag() - torch.outer(w, w) / w.sum()
    received = torch.autograd.functional.jacobian(lambda x: f_softargmax(x, record, reference=q), logits)
    torch.testing.assert_close(received, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("divergence", NAMES)
def test_torch_func(divergence: str) -> None:
    """grad of the value is p, its Hessian is the Jacobian of p, and vmap is a loop, all nested."""
    x, q = scores(3, 5), torch.rand(3, 5, dtype=torch.float64) + 0.5

    def value(row: Tensor, measure: Tensor) -> Tensor:
        return f_softmax(row, divergence, reference=measure)

    p = f_softargmax(x, divergence, reference=q)
    gradient = torch.func.vmap(torch.func.grad(value))(x, q)
    torch.testing.assert_close(gradient, p)
    hessian = torch.func.vmap(torch.func.hessian(value))(x, q)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda r, m: f_softargmax(r, divergence, reference=m)))(x, q)
    torch.testing.assert_close(hessian, jacobian, rtol=1e-10, atol=1e-12)
    shared = torch.func.vmap(value, in_dims=(0, None))(x, q[0])
    torch.testing.assert_close(shared, f_softmax(x, divergence, reference=q[0]))
    columns = torch.func.vmap(lambda r: f_softargmax(r, divergence), in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(columns, f_softargmax(x, divergence, dim=0))


@pytest.mark.parametrize("divergence", NAMES)
def test_compiles_to_one_graph(divergence: str) -> None:
    """fullgraph=True raises on any graph break; reading a value from a tensor would be one."""
    x = scores(4, 9).requires_grad_()
    q = torch.rand(9, dtype=torch.float64) + 0.5

    def loss(logits: Tensor, measure: Tensor) -> Tensor:
        p = f_softargmax(logits, divergence, reference=measure)
        return (p.square().sum(-1) + f_softmax(logits, divergence, reference=measure)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(x, q), x)
    (received,) = torch.autograd.grad(compiled(x, q), x)
    torch.testing.assert_close(received, expected)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["kl", "js", "alpha:1.5"])
def test_compiles_with_inductor(divergence: str) -> None:
    x = torch.randn(4, 100, requires_grad=True)
    compiled = torch.compile(lambda t: f_softargmax(t, divergence), fullgraph=True)
    torch.testing.assert_close(compiled(x), f_softargmax(x, divergence), rtol=1e-5, atol=1e-6)
    (received,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (expected,) = torch.autograd.grad(f_softargmax(x, divergence).square().sum(), x)
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-6)


# --- properties ------------------------------------------------------------------------------

finite = st.floats(-1e4, 1e4, allow_nan=False).map(lambda x: round(x, 3))
rows = st.lists(finite, min_size=1, max_size=12)
positive = st.floats(-3, 3).map(lambda e: 10**e)


@given(rows, st.sampled_from(NAMES), st.data())
def test_optimality(row: list[float], divergence: str, data: st.DataObject) -> None:
    """KKT: p sums to one, θ - f'(p/q) is τ on the support and at most τ off it; the value is attained."""
    q = torch.tensor(data.draw(st.lists(positive, min_size=len(row), max_size=len(row)))).double()
    x = torch.tensor(row, dtype=torch.float64)
    record = fenchel.divergence(divergence)
    p, value, tau = (f(x, record, reference=q) for f in OPERATORS)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12) and (p >= 0).all()
    support = p > 1e-12
    u = (p / q)[support]
    # f' amplifies the rounding of u by f''(u) u = 1 / elasticity.
    slack = 1e-9 * (1 + x.abs().max() + record.derivative(u).abs()) + 1e-12 / record.elasticity(u)
    assert ((x[support] - record.derivative(u) - tau).abs() <= slack).all()
    if record.is_sparse:
        assert (x[p == 0] - tau <= record.derivative_at_zero + 1e-9 * (1 + x.abs().max())).all()
    attained = (p * x).sum() - fenchel.f_divergence(p, q, record)
    assert float(value) == pytest.approx(float(attained), rel=1e-9, abs=1e-9 * (1 + float(x.abs().max())))


@given(rows, st.sampled_from(NAMES), finite)
def test_shift_and_permutation(row: list[float], divergence: str, shift: float) -> None:
    x = torch.tensor(row, dtype=torch.float64)
    p = f_softargmax(x, divergence)
    torch.testing.assert_close(f_softargmax(x.flip(0), divergence), p.flip(0), rtol=1e-9, atol=1e-12)
    moved = torch.tensor([a + shift for a in row], dtype=torch.float64)
    torch.testing.assert_close(f_softargmax(moved, divergence), p, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        f_softmax(moved, divergence), f_softmax(x, divergence) + shift, rtol=1e-9, atol=1e-6
    )


@pytest.mark.parametrize("a", [-1.0, 0.0, 0.5, 1.5, 2.0])
def test_size_of_the_measure_is_a_temperature(a: float) -> None:
    """q -> c q equals θ -> c^(α-1) θ."""
    x, c = scores(4, 7), 3.7
    torch.testing.assert_close(
        f_softargmax(x, f"alpha:{a}", reference=c), f_softargmax(x * c ** (a - 1), f"alpha:{a}")
    )


@pytest.mark.parametrize("divergence", ALL)
def test_temperature_scales_the_problem(divergence: str) -> None:
    """Value and threshold are T times those of θ / T, per row too; the gradient of the value is p."""
    x = scores(3, 6).requires_grad_()
    t = torch.tensor([[0.5], [1.0], [4.0]], dtype=torch.float64)
    for function, factor in zip(OPERATORS, (1.0, t.squeeze(-1), t.squeeze(-1)), strict=True):
        torch.testing.assert_close(
            function(x, divergence, temperature=t), factor * function(x / t, divergence)
        )
    (gradient,) = torch.autograd.grad(f_softmax(x, divergence, temperature=t).sum(), x)
    torch.testing.assert_close(gradient, f_softargmax(x, divergence, temperature=t))


@pytest.mark.parametrize("divergence", ALL)
def test_dims_shapes_and_broadcast_measures(divergence: str) -> None:
    x = scores(2, 5, 3)
    q = torch.rand(5, dtype=torch.float64) + 0.5
    expected = f_softargmax(x.transpose(1, 2).contiguous(), divergence, reference=q).transpose(1, 2)
    torch.testing.assert_close(f_softargmax(x, divergence, reference=q, dim=1), expected)
    torch.testing.assert_close(f_softargmax(x, divergence, reference=q.view(5, 1), dim=1), expected)
    torch.testing.assert_close(
        f_softargmax(x, divergence, reference=q.view(1, 5, 1).expand(2, 5, 1), dim=-2), expected
    )
    assert f_softmax(x, divergence, dim=1).shape == (2, 3)
    for shape in [(0, 4), (3, 0, 4), (1,), (1, 1)]:
        empty = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        assert f_softargmax(empty, divergence).shape == shape
        assert f_threshold(empty, divergence).shape == shape[:-1]
        torch.autograd.grad(f_softargmax(empty, divergence).sum(), empty)


@pytest.mark.parametrize("divergence", ALL)
def test_rows_do_not_see_each_other(divergence: str) -> None:
    x = torch.cat([scores(2, 8), scores(2, 8, scale=1e4), torch.zeros(1, 8).double()])
    together = f_softargmax(x, divergence)
    for i, row in enumerate(x):
        torch.testing.assert_close(together[i], f_softargmax(row, divergence), rtol=1e-12, atol=1e-14)


# --- edges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_classes_do_not_count(divergence: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, dtype=dtype)
    masked = torch.cat([x, torch.full((4, 3), -math.inf, dtype=dtype)], -1).requires_grad_()
    p = f_softargmax(masked, divergence)
    assert (p[:, 6:] == 0).all()
    torch.testing.assert_close(p[:, :6], f_softargmax(x, divergence))
    for function in (f_softmax, f_threshold):
        torch.testing.assert_close(function(masked, divergence), function(x, divergence))
    (gradient,) = torch.autograd.grad(
        (p * torch.randn_like(p)).sum() + f_softmax(masked, divergence).sum(), masked
    )
    assert torch.isfinite(gradient).all() and (gradient[:, 6:] == 0).all()


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_scores(divergence: str, dtype: torch.dtype, size: float) -> None:
    x = torch.tensor([[size, -size, 0.0], [-size, -size, -size], [size, size, -size]], dtype=dtype)
    p = f_softargmax(x.requires_grad_(), divergence)
    expected = torch.tensor([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]], dtype=dtype)
    # The heaviest tail is neyman's, u = (U^-2 + gap)^(-1/2): 1e-2 at a gap of 1e4.
    tail = 2e-2 if size == 1e4 else 1e-9
    torch.testing.assert_close(p, expected, rtol=0, atol=tail)
    (gradient,) = torch.autograd.grad(p.square().sum() + f_softmax(x, divergence).sum(), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("divergence", ALL)
def test_ties_and_single_classes(divergence: str) -> None:
    torch.testing.assert_close(f_softargmax(torch.zeros(2, 7), divergence), torch.full((2, 7), 1 / 7))
    assert torch.equal(f_softargmax(torch.tensor([[3.0]]), divergence), torch.ones(1, 1))
    q = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(f_softargmax(torch.zeros(3), divergence, reference=q), q / 6)


@pytest.mark.parametrize("divergence", SPARSE)
def test_sparse_records_give_exact_zeros(divergence: str) -> None:
    p = f_softargmax(torch.randn(20, 500) * 20, divergence)
    assert (p == 0).float().mean() > 0.9
    below = torch.tensor([0.0, -fenchel.divergence(divergence).conjugate(torch.tensor(0.0)).item() - 40])
    assert f_softargmax(below, divergence)[1] == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            {"logits": torch.tensor([[0.0, 1.0], [math.nan, 0.0]])},
            r"row \(1,\) along dim=-1 holds nan",
        ),
        ({"logits": torch.tensor([math.inf, 0.0])}, "holds inf"),
        ({"logits": torch.full((2, 3), -math.inf)}, "every class is masked"),
        ({"logits": torch.zeros(2, 0)}, r"\(2, 0\) have no classes"),
        ({"logits": torch.zeros(2, 3), "dim": 2}, "no axis dim=2"),
        ({"logits": torch.tensor([1, 2])}, "floating-point tensor, received torch.int64"),
        ({"reference": -1.0}, "must be positive, received -1.0"),
        ({"reference": torch.tensor([1.0, 0.0, 2.0])}, "received 0.0"),
        ({"reference": torch.ones(4)}, r"received shape \(4,\)"),
        ({"temperature": 0.0}, "temperature must be positive and finite, received 0.0"),
        ({"temperature": torch.tensor(-1.0)}, "temperature must be positive, received -1.0"),
        ({"temperature": torch.ones(2, 3)}, r"size 1 along dim=-1, received shape \(2, 3\)"),
        ({"divergence": "nope"}, "unknown divergence 'nope'"),
        ({"divergence": 3}, "received int"),
    ],
)
@pytest.mark.parametrize("function", OPERATORS)
def test_errors_quote_what_was_received(function: object, arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        function(**{"logits": torch.zeros(2, 3), **arguments})  # type: ignore[operator]
