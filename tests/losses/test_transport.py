"""The Sinkhorn divergence against its closed forms, its limits, and the properties that define it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transports import linear_program

from fenchel import InputError, sinkhorn_divergence, sinkhorn_loss

EXACT = {"tolerance": 1e-13, "iterations": 3000}


def points(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("norm", "power"), [(2.0, 2.0), (2.0, 1.0), (1.5, 1.2), (1.0, 0.5)])
def test_two_points_are_their_distance(norm: float, power: float) -> None:
    x, y = points(1, 3), points(1, 3)
    expected = float((x - y).abs().pow(norm).sum() ** (power / norm))
    assert math.isclose(sinkhorn_divergence(x, y, norm=norm, power=power), expected, rel_tol=1e-12)


def test_a_shift_costs_its_square() -> None:
    """With squared distances T ↦ C changes by |s|² + 2<s, x - y>, a constant of every plan."""
    x, shift = points(9, 2), torch.tensor([0.7, -2.0], dtype=torch.float64)
    found = sinkhorn_divergence(x, x + shift, **EXACT)
    assert math.isclose(found, float(shift.square().sum()), rel_tol=1e-10)


def test_one_variance_in_closed_form() -> None:
    """x = ±s and y = 0: OT(α, β) = s² and OT(β, β) = 0; OT(α, α) has one free number."""
    s, epsilon = 0.6, 0.5
    x = torch.tensor([[-s], [s]], dtype=torch.float64)
    same = 1 / (1 + math.exp(-4 * s**2 / epsilon))  # share of mass that stays
    entropy = same * math.log(2 * same) + (1 - same) * math.log(2 * (1 - same))
    own = (1 - same) * 4 * s**2 + epsilon * entropy
    found = sinkhorn_divergence(x, torch.zeros(1, 1).double(), regularization=epsilon, **EXACT)
    assert math.isclose(found, s**2 - own / 2, rel_tol=1e-11)


def test_limits() -> None:
    """Transport cost as ε → 0, an energy distance as ε → ∞."""
    x, y = points(5, 2), points(7, 2)
    cost = torch.cdist(x, y)
    a, b = torch.ones(5).double() / 5, torch.ones(7).double() / 7
    sharp = sinkhorn_divergence(x, y, power=1.0, regularization=1e-3, iterations=50_000)
    assert math.isclose(sharp, linear_program(cost, a, b), abs_tol=2e-3)
    blunt = sinkhorn_divergence(x, y, power=1.0, regularization=1e7)
    energy = cost.mean() - torch.cdist(x, x).mean() / 2 - torch.cdist(y, y).mean() / 2
    assert math.isclose(blunt, energy, rel_tol=1e-5)


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.5]), st.sampled_from([(2.0, 2.0), (1.0, 1.0)]))
def test_positive_unless_the_measures_are_equal(seed: int, epsilon: float, kind: tuple[float, float]) -> None:
    torch.manual_seed(seed)
    x, y, a = points(4, 2), points(5, 2), torch.rand(4).double().softmax(0)
    options = {"regularization": epsilon, "norm": kind[0], "power": kind[1]}
    assert sinkhorn_divergence(x, y, a, **options) > 1e-3 * epsilon
    order = torch.randperm(4)
    assert abs(sinkhorn_divergence(x, x[order], a, a[order], **options)) < 1e-6
    # A point in two halves, and one without mass, change nothing.
    split = torch.cat([x, x[:1], points(1, 2)])
    halves = torch.cat([a[:1] / 2, a[1:], a[:1] / 2, torch.zeros(1).double()])
    assert abs(sinkhorn_divergence(x, split, a, halves, **options)) < 1e-6
    forth, back = sinkhorn_divergence(x, y, a, **options), sinkhorn_divergence(y, x, None, a, **options)
    assert math.isclose(forth, back, abs_tol=1e-5)


@pytest.mark.parametrize(("norm", "power"), [(2.0, 2.0), (1.5, 1.2)])
def test_gradients_in_points_and_masses(norm: float, power: float) -> None:
    arguments = [z.requires_grad_() for z in (points(2, 3, 2), points(2, 4, 2), points(2, 3), points(2, 4))]

    def loss(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        options = {"norm": norm, "power": power, "reduction": "none", **EXACT}
        return sinkhorn_divergence(x, y, 3 * a.softmax(-1), 3 * b.softmax(-1), **options)

    assert torch.autograd.gradcheck(loss, arguments)


def test_gradient_is_zero_at_equal_measures() -> None:
    x = points(6, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_divergence(x, x.detach().flip(0), **EXACT), x)
    assert gradient.abs().max() < 1e-10


def test_descent_finds_the_target() -> None:
    x, y = points(8, 2).requires_grad_(), points(8, 2) + 1
    for _ in range(100):
        (gradient,) = torch.autograd.grad(sinkhorn_divergence(x, y, regularization=0.05), x)
        x = (x - 4.0 * gradient).detach().requires_grad_()
    nearest = torch.cdist(x.detach(), y)
    assert nearest.amin(0).max() < 0.05 and nearest.amin(1).max() < 0.05


def test_sinkhorn_loss_is_the_divergence_between_rows() -> None:
    student, teacher = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    clouds = student.softmax(-1), teacher.softmax(-1)
    expected = sinkhorn_divergence(*clouds, norm=1.0, power=1.0, **EXACT)
    torch.testing.assert_close(sinkhorn_loss(student, teacher, iterations=3000), expected)


def test_reductions_and_types() -> None:
    x, y = points(3, 4, 2), points(3, 5, 2)
    each = sinkhorn_divergence(x, y, reduction="none")
    assert each.shape == (3,)
    torch.testing.assert_close(sinkhorn_divergence(x, y, reduction="sum"), each.sum())
    torch.testing.assert_close(sinkhorn_divergence(x, y), each.mean())
    torch.testing.assert_close(sinkhorn_divergence(x[1], y[1]), each[1], rtol=1e-5, atol=1e-7)
    half = sinkhorn_divergence(x.half(), y.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, sinkhorn_divergence(x.half().float(), y.half().float()).half())


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((torch.zeros(3), torch.zeros(3, 2)), {}, r"received \(3,\) and \(3, 2\)"),
        (
            (torch.zeros(3, 2), torch.zeros(3, 4)),
            {},
            r"same batch axes and d, received \(3, 2\) and \(3, 4\)",
        ),
        ((torch.zeros(3, 2).int(), torch.zeros(3, 2)), {}, "x must be a floating-point tensor of points"),
        ((torch.zeros(3, 2), torch.zeros(3, 2)), {"norm": 3.0}, r"norm must be in \[1, 2\], received 3.0"),
        (
            (torch.zeros(3, 2), torch.zeros(3, 2)),
            {"norm": 1.0},
            r"power must be in \(0, norm\] .*received 2.0",
        ),
        ((torch.zeros(3, 2), torch.full((3, 2), math.nan)), {}, "cost of shape .* holds nan"),
        ((torch.zeros(3, 2), torch.zeros(3, 2)), {"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_bad_input(arguments: tuple[Tensor, Tensor], options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sinkhorn_divergence(*arguments, **options)
