"""Entropic transport against closed forms, a plain loop on logarithms, a linear program, and duality."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transports import linear_program, problem

from fenchel import entropic_transport
from fenchel.kernels.eager import sinkhorn
from fenchel.operators.transport import entropic

EXACT = {"tolerance": 1e-14, "iterations": 20_000}


def plain_loop(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The textbook's: one problem, potentials without stabilisation, plan from them."""
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(iterations):
        f = epsilon * (a.log() - torch.logsumexp((g - cost) / epsilon, 1))
        g = epsilon * (b.log() - torch.logsumexp((f[:, None] - cost) / epsilon, 0))
    return ((f[:, None] + g - cost) / epsilon).exp()


def entropy(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """KL(T, a bᵀ / M)."""
    independent = a.unsqueeze(-1) * b.unsqueeze(-2) / a.sum(-1)[..., None, None]
    return torch.special.xlogy(plan, plan / independent.where(independent > 0, 1.0)).sum((-1, -2))


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 5.0])
def test_two_by_two_in_closed_form(epsilon: float) -> None:
    """T = [[t, a - t], [b - t, 1 - a - b + t]], with cross ratio exp(-(C11 + C22 - C12 - C21) / ε)."""
    cost = torch.rand(2, 2, dtype=torch.float64)
    a, b = 0.3, 0.6
    odds = math.exp(-float(cost[0, 0] + cost[1, 1] - cost[0, 1] - cost[1, 0]) / epsilon)
    # t (1 - a - b + t) = odds (a - t) (b - t)
    square, linear, constant = 1 - odds, 1 - a - b + odds * (a + b), -odds * a * b
    t = 2 * -constant / (linear + math.sqrt(linear**2 - 4 * square * constant))
    expected = torch.tensor([[t, a - t], [b - t, 1 - a - b + t]], dtype=torch.float64)
    marginals = (torch.tensor([x, 1 - x], dtype=torch.float64) for x in (a, b))
    found = entropic_transport(cost, *marginals, regularization=epsilon, **EXACT)
    torch.testing.assert_close(found.plan, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 10.0])
@pytest.mark.parametrize("mass", [1.0, 7.0])
def test_against_a_plain_loop(epsilon: float, mass: float) -> None:
    cost, a, b = problem(6, 9, mass=mass)
    found = entropic_transport(cost, a, b, regularization=epsilon, **EXACT)
    torch.testing.assert_close(found.plan, plain_loop(cost, a, b, epsilon, 20_000), rtol=1e-9, atol=1e-13)
    assert found.residual < 1e-12 * mass


def test_value_is_the_minimum_and_the_dual() -> None:
    cost, a, b = problem(5, 7, 3, mass=2.0)
    found = entropic_transport(cost, a, b, regularization=0.2, **EXACT)
    primal = (found.plan * cost).sum((-1, -2)) + 0.2 * entropy(found.plan, a, b)
    torch.testing.assert_close(found.value, primal, rtol=1e-12, atol=0)
    halves = [(found.row_potential * a).sum(-1), (found.column_potential * b).sum(-1)]
    for half in halves:
        torch.testing.assert_close(half, found.value / 2, rtol=1e-11, atol=0)
    for _ in range(20):  # any other plan with these marginals costs more
        other = plain_loop(torch.rand(5, 7).double(), a[0], b[0], 0.5, 500)
        assert (other * cost[0]).sum() + 0.2 * entropy(other, a[0], b[0]) > found.value[0]


def test_value_is_of_second_order_in_the_residual() -> None:
    cost, a, b = problem(8, 8)
    exact = entropic_transport(cost, a, b, regularization=0.05, **EXACT).value
    rough = entropic_transport(cost, a, b, regularization=0.05, iterations=5)
    assert rough.residual > 1e-4
    assert (rough.value - exact).abs() < 20 * rough.residual**2 / 0.05


def test_limits_are_the_linear_program_and_independence() -> None:
    cost, a, b = problem(6, 8)
    sharp = entropic_transport(cost, a, b, regularization=5e-4, tolerance=1e-8, iterations=100_000)
    assert math.isclose(float((sharp.plan * cost).sum()), linear_program(cost, a, b), abs_tol=1e-5)
    blunt = entropic_transport(cost, a, b, regularization=1e8)
    torch.testing.assert_close(blunt.plan, a[:, None] * b, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("largest", [1e-3, 1.0])
def test_absorption_changes_nothing(largest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a range so narrow that scalings are always absorbed, the updates are those on logarithms."""
    cost, a, b = problem(6, 7, 2)
    wide = entropic_transport(cost, a, b, regularization=0.05, **EXACT)
    within = entropic._within
    monkeypatch.setattr(entropic, "_within", lambda _, *scalings: within(largest, *scalings))
    narrow = entropic_transport(cost, a, b, regularization=0.05, **EXACT)
    torch.testing.assert_close(narrow.plan, wide.plan, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [20.0, 200.0])
def test_huge_costs(dtype: torch.dtype, epsilon: float) -> None:
    """exp(-C/ε) underflows everywhere; the marginals must hold all the same."""
    cost = (torch.rand(6, 9, dtype=dtype) - 0.5) * 2e4
    found = entropic_transport(cost, regularization=epsilon, iterations=20_000)
    assert found.residual < 1e-5
    assert float((found.plan * cost).sum()) < float(found.value) + 1e-3 * epsilon
    lower = linear_program(cost.double(), torch.ones(6).double() / 6, torch.ones(9).double() / 9)
    assert lower - 0.1 < float((found.plan * cost).sum()) < lower + epsilon * math.log(54)


def test_zero_masses_have_no_plan_and_the_gradient_as_potential() -> None:
    cost = torch.rand(3, 4, dtype=torch.float64)
    a = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    b = torch.tensor([0.25, 0.0, 0.25, 0.5], dtype=torch.float64)
    found = entropic_transport(cost, a, b, **EXACT)
    assert (found.plan[1] == 0).all() and (found.plan[:, 1] == 0).all()
    kept = entropic_transport(cost[::2][:, [0, 2, 3]], a[::2], b[[0, 2, 3]], **EXACT)
    torch.testing.assert_close(found.plan[::2][:, [0, 2, 3]], kept.plan, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.value, kept.value)
    # The value grows by <f, da> + <g, db> where mass comes to the empty row.
    step = 1e-6
    da = torch.tensor([-step, step, 0.0], dtype=torch.float64)
    moved = entropic_transport(cost, a + da, b, **EXACT).value - found.value
    assert math.isclose(moved, float((found.row_potential * da).sum()), rel_tol=1e-3)


def test_forbidden_cells() -> None:
    cost, a, b = problem(3, 4)
    cost[0, 1] = cost[2, 2] = torch.inf
    found = entropic_transport(cost, a, b, **EXACT)
    assert found.plan[0, 1] == found.plan[2, 2] == 0 and found.residual < 1e-12
    expensive = entropic_transport(cost.clamp(max=10.0), a, b, **EXACT)
    torch.testing.assert_close(found.plan, expensive.plan, rtol=1e-10, atol=1e-14)


def test_half_types_are_computed_in_float32() -> None:
    cost = torch.rand(4, 5).to(torch.bfloat16)
    found = entropic_transport(cost)
    assert {x.dtype for x in found} == {torch.bfloat16}
    torch.testing.assert_close(found.plan, entropic_transport(cost.float()).plan.to(torch.bfloat16))


@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.2, 2.0]))
def test_equivariance(seed: int, epsilon: float) -> None:
    """Permutations permute; C + u_i + v_j has the same plan; masses and costs scale."""
    torch.manual_seed(seed)
    cost, a, b = problem(4, 6)
    options = {"regularization": epsilon, "tolerance": 1e-12, "iterations": 20_000}
    found = entropic_transport(cost, a, b, **options)
    rows, columns = torch.randperm(4), torch.randperm(6)
    shuffled = entropic_transport(cost[rows][:, columns], a[rows], b[columns], **options)
    torch.testing.assert_close(shuffled.plan, found.plan[rows][:, columns], rtol=1e-7, atol=1e-11)
    u, v = torch.randn(4).double(), torch.randn(6).double()
    moved = entropic_transport(cost + u[:, None] + v, a, b, **options)
    torch.testing.assert_close(moved.plan, found.plan, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(moved.value, found.value + (u * a).sum() + (v * b).sum())
    scaled = entropic_transport(3 * cost, 2 * a, 2 * b, **options | {"regularization": 3 * epsilon})
    torch.testing.assert_close(scaled.plan, 2 * found.plan, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(scaled.value, 6 * found.value, rtol=1e-8, atol=1e-12)
    turned = entropic_transport(cost.mT, b, a, **options)
    torch.testing.assert_close(turned.plan.mT, found.plan, rtol=1e-6, atol=1e-10)


def test_tolerance_ends_the_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    cost, a, b = problem(8, 9)
    updates = []

    def counting(*chosen: object) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            updates.append(arguments[-1])
            return sinkhorn(*arguments)

        return run

    monkeypatch.setattr(entropic, "implementation", counting)
    loose = entropic_transport(cost, a, b, tolerance=1e-3)
    few = sum(updates)
    tight = entropic_transport(cost, a, b, tolerance=1e-9)
    assert tight.residual < 1e-9 < loose.residual < 1e-3
    assert few < sum(updates) - few < 1000
