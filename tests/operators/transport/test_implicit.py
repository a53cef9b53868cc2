"""Derivatives of all transport operators: finite differences, torch.func, compiled graphs, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transports import problem

from fenchel import Transport, entropic_transport, quadratic_transport, sparse_transport
from fenchel.operators.transport.implicit import coupled

EXACT = {"tolerance": 1e-13, "iterations": 3000}
Operator = Callable[..., Transport]


def sparse(*problem: Tensor, **options: float) -> Transport:
    return sparse_transport(*problem, k=3, **options)


def sparse_dual(*problem: Tensor, **options: float) -> Transport:
    return sparse_transport(*problem, k=3, semidual=False, **options)


OPERATORS = [entropic_transport, quadratic_transport, sparse, sparse_dual]


def inputs(m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    values = torch.rand(m, n).double(), torch.randn(m).double() / 3, torch.randn(n).double() / 3
    return tuple(x.requires_grad_() for x in values)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (entropic_transport, (3, 4)),
        (entropic_transport, (4, 3)),
        (quadratic_transport, (4, 3)),
        (sparse, (4, 4)),
        (sparse_dual, (4, 4)),
    ],
)
def test_derivatives_to_second_order(operator: Operator, shape: tuple[int, int]) -> None:
    """In cost and in marginals of mass 2, by finite differences, reverse and forward."""

    def solved(cost: Tensor, x: Tensor, y: Tensor) -> Transport:
        found = operator(cost, 2 * x.softmax(-1), 2 * y.softmax(-1), regularization=0.7, **EXACT)
        assert found.residual < 1e-12
        return found

    def value(*args: Tensor) -> Tensor:
        return solved(*args).value

    def others(*args: Tensor) -> tuple[Tensor, ...]:
        found = solved(*args)
        return found.plan, found.row_potential, found.column_potential

    arguments = inputs(*shape)
    assert torch.autograd.gradcheck(value, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value, arguments)
    assert torch.autograd.gradcheck(others, arguments, check_forward_ad=True)
    if operator is entropic_transport:  # the other plans are linear in pieces
        assert torch.autograd.gradgradcheck(others, arguments)


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients_of_the_value_are_plan_and_potentials(operator: Operator) -> None:
    cost, a, b = (x.requires_grad_() for x in problem(4, 5, 2))
    found = operator(cost, a, b, regularization=0.5, iterations=100)
    received = torch.autograd.grad(found.value.sum(), (cost, a, b))
    for gradient, expected in zip(received, (found.plan, *found[2:4]), strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_disconnected_plans(operator: Operator) -> None:
    """Two blocks: the system of derivatives is singular twice over, and the plan's are unique still."""
    blocks = torch.full((5, 5), torch.inf, dtype=torch.float64)
    blocks[:2, :2] = blocks[2:, 2:] = 0

    def plan(cost: Tensor) -> Tensor:
        return operator(cost + blocks, regularization=2.0, **EXACT).plan

    assert torch.autograd.gradcheck(plan, (torch.rand(5, 5).double().requires_grad_(),))


@pytest.mark.parametrize("operator", OPERATORS)
def test_torch_func(operator: Operator) -> None:
    cost = torch.rand(2, 3, 3, dtype=torch.float64)

    def solved(x: Tensor) -> Transport:
        return operator(x, regularization=0.5, **EXACT)

    def value(x: Tensor) -> Tensor:
        return solved(x).value

    def plan(x: Tensor) -> Tensor:
        return solved(x).plan

    for mapped, whole in zip(torch.func.vmap(solved)(cost), solved(cost), strict=True):
        torch.testing.assert_close(mapped, whole)
    gradient = torch.func.vmap(torch.func.grad(value))(cost)
    torch.testing.assert_close(gradient, plan(cost), rtol=1e-10, atol=1e-13)
    hessian = torch.func.vmap(torch.func.hessian(value))(cost)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        expected = torch.stack([jacobian(plan)(x) for x in cost])
        torch.testing.assert_close(hessian, expected, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(torch.func.vmap(jacobian(plan))(cost), expected, rtol=1e-8, atol=1e-11)


def test_entropic_transport_compiles_to_one_graph() -> None:
    cost = torch.rand(3, 4, 5, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        found = entropic_transport(x, regularization=1.0, iterations=4, tolerance=0.0)
        return found.value.sum() + found.plan.square().sum() + found.row_potential.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(cost), loss(cost))
    (received,) = torch.autograd.grad(compiled(cost), cost)
    (expected,) = torch.autograd.grad(loss(cost), cost)
    torch.testing.assert_close(received, expected, rtol=1e-6, atol=1e-9)


def test_backward_does_not_grow_with_the_iterations() -> None:
    cost, a, b = problem(5, 6)

    def saved(iterations: int) -> int:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            entropic_transport(cost.requires_grad_(), a, b, iterations=iterations, tolerance=0.0).plan.sum()
        return sum(kept)

    assert saved(300) == saved(3)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_the_linear_system(shape: tuple[int, int]) -> None:
    """Against a pseudo-inverse of the whole matrix, for weights with an empty row and two blocks."""
    m, n = shape
    weight = torch.rand(m, n, dtype=torch.float64)
    weight[0] = 0
    weight[1:3, 2:] = weight[3:, :2] = 0
    matrix = torch.zeros(m + n, m + n, dtype=torch.float64)
    matrix[:m, m:], matrix[m:, :m] = weight, weight.mT
    matrix += torch.cat([weight.sum(1), weight.sum(0)]).diag()
    right = matrix @ torch.randn(m + n, dtype=torch.float64)
    x, y = coupled(weight, right[:m], right[m:])
    expected = torch.linalg.pinv(matrix) @ right
    sums = expected[:m, None] + expected[m:]
    torch.testing.assert_close((x[:, None] + y)[weight > 0], sums[weight > 0], rtol=1e-9, atol=1e-9)


def test_the_linear_system_of_blocks_that_hardly_touch() -> None:
    """Where the multiple of the identity would be felt, were it not for the refinement."""
    weight = torch.rand(6, 6, dtype=torch.float64)
    weight[:3, 3:] *= 1e-8
    weight[3:, :3] *= 1e-8
    x, y = torch.randn(6).double(), torch.randn(6).double()
    sums = weight * (x[:, None] + y)
    found = coupled(weight, sums.sum(1), sums.sum(0))
    torch.testing.assert_close(found[0][:, None] + found[1], x[:, None] + y, rtol=0, atol=1e-5)
