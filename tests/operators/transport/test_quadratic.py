"""Quadratic transport against a quadratic program, its optimality conditions, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transports import linear_program, problem, quadratic_program

from fenchel import Transport, quadratic_transport, sparsemax

EXACT = {"tolerance": 1e-13}


def check_optimal(found: Transport, cost: Tensor, a: Tensor, b: Tensor, gamma: float, slack: float) -> None:
    """KKT: marginals; C + γT = f + g where T > 0, and at least that elsewhere; no duality gap."""
    assert (found.plan >= 0).all()
    assert (found.residual <= slack).all()
    reduced = cost - found.row_potential.unsqueeze(-1) - found.column_potential.unsqueeze(-2)
    excess = reduced + gamma * found.plan
    assert (excess.abs()[found.plan > 0] < slack).all()
    assert (excess[found.plan == 0] > -slack).all()
    primal = (found.plan * cost).sum((-1, -2)) + gamma / 2 * found.plan.square().sum((-1, -2))
    torch.testing.assert_close(found.value, primal, rtol=0, atol=10 * slack)


@pytest.mark.parametrize("gamma", [0.02, 0.3, 5.0])
@pytest.mark.parametrize(("m", "n"), [(3, 4), (5, 3), (4, 6)])
def test_against_a_quadratic_program(m: int, n: int, gamma: float) -> None:
    cost, a, b = problem(m, n)
    found = quadratic_transport(cost, a, b, regularization=gamma, **EXACT)
    expected = quadratic_program(cost, a, b, gamma)
    assert expected is not None and math.isclose(found.value, expected, abs_tol=1e-9)
    check_optimal(found, cost, a, b, gamma, 1e-12)


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 9), (9, 1), (20, 33), (33, 20)])
def test_conditions_of_optimality(m: int, n: int, gamma: float) -> None:
    cost, a, b = problem(m, n, 2, mass=3.0)
    found = quadratic_transport(cost, a, b, regularization=gamma, **EXACT)
    check_optimal(found, cost, a, b, gamma, 1e-11 * max(1.0, gamma))


def test_one_row_of_mass_each_is_sparsemax() -> None:
    """With equal columns nothing couples them: n copies of min <t, c> + γ/2 ||t||² over the simplex."""
    cost = torch.rand(5, 1, dtype=torch.float64).expand(5, 4)
    t = sparsemax(-cost[:, 0] / 0.7)
    found = quadratic_transport(cost, 4 * t, torch.ones(4).double(), regularization=0.7, **EXACT)
    torch.testing.assert_close(found.plan, t[:, None].expand(5, 4), rtol=0, atol=1e-12)


def test_limits_are_the_linear_program_and_the_closest_plan() -> None:
    cost, a, b = problem(6, 8)
    sharp = quadratic_transport(cost, a, b, regularization=1e-3, **EXACT)
    assert math.isclose(float((sharp.plan * cost).sum()), linear_program(cost, a, b), abs_tol=1e-10)
    blunt = quadratic_transport(cost, a, b, regularization=1e7, **EXACT)
    closest = a[:, None] / 8 + b / 6 - 1 / 48  # of least norm: affine in rows and columns
    assert (closest > 0).all()
    torch.testing.assert_close(blunt.plan, closest, rtol=0, atol=1e-7)


def test_sparser_as_the_regularisation_falls() -> None:
    cost, a, b = problem(12, 12)
    counts = [
        int((quadratic_transport(cost, a, b, regularization=gamma).plan > 0).sum())
        for gamma in (1e4, 10.0, 1.0, 0.1, 1e-3)
    ]
    assert counts[0] == 144 and counts == sorted(counts, reverse=True) and counts[-1] <= 12 + 12 - 1


@pytest.mark.parametrize(("scale", "gamma"), [(1e4, 1e4), (1e4, 100.0), (1e-3, 1.0)])
def test_float32_costs_of_any_size(scale: float, gamma: float) -> None:
    cost = scale * problem(8, 10)[0].float()
    found = quadratic_transport(cost, regularization=gamma)
    exact = quadratic_transport(cost.double(), regularization=gamma)
    assert found.residual < 3e-6
    torch.testing.assert_close(found.plan.double(), exact.plan, rtol=0, atol=2e-6 + 4e-7 * scale / gamma)


@pytest.mark.parametrize(("m", "n"), [(6, 4), (4, 6)])
@pytest.mark.parametrize("size", [1e6, 1e8, 1e30])
def test_float32_costs_whose_rounding_is_larger_than_a_cell(size: float, m: int, n: int) -> None:
    """The marginals are met as long as eps² of the cost is small beside γ T, and the mass kept beyond."""
    cost = size * torch.rand(m, n)
    found = quadratic_transport(cost, regularization=3.0)
    exact = quadratic_transport(cost.double(), regularization=3.0)
    assert found.residual < (1 if size == 1e30 else 2e-6)
    assert float(found.plan.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float((found.plan * cost).sum()) == pytest.approx(
        float(exact.value), rel=1.0 if size == 1e30 else 1e-5
    )


def test_zero_masses_and_forbidden_cells() -> None:
    cost = torch.rand(3, 4, dtype=torch.float64)
    a = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    b = torch.tensor([0.25, 0.0, 0.25, 0.5], dtype=torch.float64)
    found = quadratic_transport(cost, a, b, **EXACT)
    check_optimal(found, cost, a, b, 0.1, 1e-12)
    step = 1e-7
    da = torch.tensor([-step, step, 0.0], dtype=torch.float64)
    moved = quadratic_transport(cost, a + da, b, **EXACT).value - found.value
    assert math.isclose(moved, float((found.row_potential * da).sum()), rel_tol=1e-4)
    cost, a, b = problem(3, 4)
    cost[0, 1] = cost[2, 2] = torch.inf
    blocked = quadratic_transport(cost, a, b, regularization=1.0, **EXACT)
    assert blocked.plan[0, 1] == blocked.plan[2, 2] == 0
    expensive = quadratic_transport(cost.clamp(max=50.0), a, b, regularization=1.0, **EXACT)
    torch.testing.assert_close(blocked.plan, expensive.plan, rtol=0, atol=1e-11)


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.5, 5.0]))
def test_equivariance(seed: int, gamma: float) -> None:
    torch.manual_seed(seed)
    cost, a, b = problem(4, 6)
    found = quadratic_transport(cost, a, b, regularization=gamma, **EXACT)
    rows, columns = torch.randperm(4), torch.randperm(6)
    shuffled = quadratic_transport(cost[rows][:, columns], a[rows], b[columns], regularization=gamma, **EXACT)
    torch.testing.assert_close(shuffled.plan, found.plan[rows][:, columns], rtol=0, atol=1e-11)
    u, v = torch.randn(4).double(), torch.randn(6).double()
    moved = quadratic_transport(cost + u[:, None] + v, a, b, regularization=gamma, **EXACT)
    torch.testing.assert_close(moved.plan, found.plan, rtol=0, atol=1e-11)
    scaled = quadratic_transport(3 * cost, 2 * a, 2 * b, regularization=1.5 * gamma, **EXACT)
    torch.testing.assert_close(scaled.plan, 2 * found.plan, rtol=0, atol=1e-11)
    turned = quadratic_transport(cost.mT, b, a, regularization=gamma, **EXACT)
    torch.testing.assert_close(turned.plan.mT, found.plan, rtol=0, atol=1e-11)


def test_ties_everywhere() -> None:
    """Equal costs: the plan is the closest one, although every piece of the dual meets there."""
    found = quadratic_transport(torch.zeros(4, 4).double(), **EXACT)
    torch.testing.assert_close(found.plan, torch.full((4, 4), 1 / 16).double())
    identity = quadratic_transport(1 - torch.eye(4).double(), regularization=1e-3, **EXACT)
    torch.testing.assert_close(identity.plan, torch.eye(4).double() / 4)
