"""Sparse transport: its columns, its bound against every choice of supports, and where it is tight."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from transports import linear_program, problem, quadratic_program

from fenchel import quadratic_transport, sparse_transport

EXACT = {"tolerance": 1e-12}


def brute_force(cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float) -> float:
    """The least value over all supports of k cells a column."""
    m, n = cost.shape
    best = np.inf
    for supports in itertools.product(itertools.combinations(range(m), k), repeat=n):
        allowed = np.zeros((m, n), dtype=bool)
        for column, rows in enumerate(supports):
            allowed[list(rows), column] = True
        value = quadratic_program(cost, a, b, gamma, allowed)
        best = best if value is None else min(best, value)
    return best


@pytest.mark.parametrize("semidual", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_at_most_k_in_a_column(k: int, semidual: bool) -> None:
    cost, a, b = problem(7, 9, 3, mass=2.0)
    found = sparse_transport(cost, a, b, k=k, regularization=1.0, semidual=semidual)
    assert ((found.plan > 0).sum(-2) <= k).all()
    torch.testing.assert_close(found.plan.sum(-2), b, rtol=1e-9, atol=0)
    missed = (found.plan.sum(-1) - a).abs().amax(-1)
    torch.testing.assert_close(found.residual, missed, rtol=0, atol=1e-9)


@pytest.mark.parametrize("semidual", [True, False])
def test_k_of_all_rows_is_quadratic_transport(semidual: bool) -> None:
    cost, a, b = problem(6, 9)
    expected = quadratic_transport(cost, a, b, regularization=0.5, **EXACT)
    for k in (5, 6):  # no column of the plan has six nonzeros
        assert ((expected.plan > 0).sum(-2) <= 5).all()
        found = sparse_transport(cost, a, b, k=k, regularization=0.5, semidual=semidual, **EXACT)
        torch.testing.assert_close(found.plan, expected.plan, rtol=0, atol=1e-11)
        torch.testing.assert_close(found.value, expected.value)


def test_a_plan_which_the_bound_makes_sparse() -> None:
    """Tight, and not that of quadratic transport: dual value, primal value and brute force are one."""
    cost = torch.tensor([[0.0, 0.4, 0.9], [0.3, 0.0, 0.8], [0.6, 0.5, 0.0]], dtype=torch.float64)
    a = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    gamma = 2.0
    dense = quadratic_transport(cost, a, a, regularization=gamma, **EXACT)
    assert ((dense.plan > 0).sum(-2) > 1).any()
    for semidual in (True, False):
        found = sparse_transport(cost, a, a, k=1, regularization=gamma, semidual=semidual, **EXACT)
        torch.testing.assert_close(found.plan, a.diag(), rtol=0, atol=1e-12)
        primal = float((found.plan * cost).sum() + gamma / 2 * found.plan.square().sum())
        assert float(found.value) == pytest.approx(primal, abs=1e-11)
        assert primal == pytest.approx(brute_force(cost, a, a, 1, gamma), abs=1e-9)


def test_value_bounds_every_sparse_plan_from_below() -> None:
    tight = 0
    for seed in range(6):
        torch.manual_seed(seed)
        cost, a, b = problem(3, 3)
        value = brute_force(cost, a, b, 2, 0.2)
        found = sparse_transport(cost, a, b, k=2, regularization=0.2, **EXACT)
        dense = quadratic_transport(cost, a, b, regularization=0.2, **EXACT)
        assert float(dense.value) - 1e-9 <= float(found.value) <= value + 1e-9
        if found.residual < 1e-9:
            tight += 1
            assert float(found.value) == pytest.approx(value, abs=1e-8)
    assert tight >= 2


@pytest.mark.parametrize("semidual", [True, False])
@pytest.mark.parametrize("gamma", [0.01, 1.0])
def test_value_of_one_nonzero_is_unregularised_transport(gamma: float, semidual: bool) -> None:
    """With k = 1 the norm of a column is b_j, so that only the transport cost is left to optimise."""
    cost, a, b = problem(12, 15)
    found = sparse_transport(cost, a, b, k=1, regularization=gamma, semidual=semidual)
    expected = linear_program(cost, a, b) + gamma / 2 * float(b.square().sum())
    assert expected * (1 - 1e-3) <= float(found.value) <= expected + 1e-10


@pytest.mark.parametrize("k", [1, 2, 3])
def test_value_falls_with_k_and_is_the_same_of_both_duals(k: int) -> None:
    cost, a, b = problem(8, 12)
    values = {}
    for semidual in (True, False):
        for each in (k, k + 1):
            options = {"k": each, "regularization": 1.0, "semidual": semidual}
            values[semidual, each] = float(sparse_transport(cost, a, b, **options).value)
    assert values[True, k] > values[True, k + 1] - 1e-9
    assert values[True, k] == pytest.approx(values[False, k], rel=5e-3)


def test_dual_value_is_below_that_of_any_feasible_plan() -> None:
    """Weak duality on a kink, where no plan of the selection has the marginals."""
    cost, _, b = problem(6, 6)
    found = sparse_transport(cost, b, b, k=1, regularization=1.0)
    matched = float((b * cost.diagonal()).sum() + 0.5 * b.square().sum())
    assert float(found.value) <= matched


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_float32(scale: float) -> None:
    cost = scale * torch.rand(10, 12)
    found = sparse_transport(cost, k=3, regularization=scale)
    assert ((found.plan > 0).sum(0) <= 3).all()
    torch.testing.assert_close(found.plan.sum(0), torch.full((12,), 1 / 12), rtol=2e-5, atol=0)
    exact = sparse_transport(cost.double(), k=3, regularization=scale)
    assert float(found.value) == pytest.approx(float(exact.value), rel=1e-3)


@pytest.mark.parametrize("semidual", [True, False])
def test_float32_costs_whose_rounding_is_larger_than_a_cell(semidual: bool) -> None:
    torch.manual_seed(0)
    cost = 1e8 * torch.rand(6, 4)
    options = {"k": 2, "regularization": 3.0, "semidual": semidual}
    found = sparse_transport(cost, **options)
    assert found.residual < 2e-6
    exact = sparse_transport(cost.double(), **options)
    assert float(found.value) == pytest.approx(float(exact.value), rel=1e-6)


def test_ties_keep_the_bound() -> None:
    found = sparse_transport(torch.zeros(5, 5).double(), k=2)
    assert ((found.plan > 0).sum(0) <= 2).all()
    torch.testing.assert_close(found.plan.sum(0), torch.full((5,), 0.2).double())


def test_batch_is_a_loop_where_it_is_tight() -> None:
    cost, a, b = problem(6, 8, 4)
    together = sparse_transport(cost, a, b, k=5, regularization=0.3, **EXACT)
    assert (together.residual < 1e-11).all()
    for i in range(4):
        alone = sparse_transport(cost[i], a[i], b[i], k=5, regularization=0.3, **EXACT)
        torch.testing.assert_close(together.plan[i], alone.plan, rtol=0, atol=1e-11)
