"""The Sinkhorn divergence against transport solved by other means, and where it is zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog, minimize
from torch import Tensor

from fenchel import InputError
from fenchel.losses.sinkhorn import _dual, _log_uniform, _potentials, sinkhorn_loss


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * 2


def distances(x: Tensor, y: Tensor, norm: float = 1.0) -> np.ndarray:
    difference = (x.unsqueeze(1) - y.unsqueeze(0)).abs().numpy()
    return (difference**norm).sum(-1) ** (1 / norm)


def wasserstein(cost: np.ndarray) -> float:
    """Unregularised transport, as a linear program."""
    n = len(cost)
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    plan = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.full(2 * n, 1 / n))
    return float(plan.fun)


def entropic(cost: np.ndarray, epsilon: float) -> float:
    """min <P, C> + ε KL(P, 1/n²), by direct search over the (n - 1)² free entries of the plan."""
    n = len(cost)

    def objective(free: np.ndarray) -> float:
        plan = np.empty((n, n))
        plan[:-1, :-1] = free.reshape(n - 1, n - 1)
        plan[:-1, -1] = 1 / n - plan[:-1, :-1].sum(1)
        plan[-1] = 1 / n - plan[:-1].sum(0)
        if plan.min() <= 0:
            return math.inf
        return float((plan * cost).sum() + epsilon * (plan * np.log(plan * n**2)).sum())

    options = {"xatol": 1e-11, "fatol": 1e-13, "maxiter": 20_000, "maxfev": 20_000, "adaptive": True}
    found = minimize(objective, np.full((n - 1) ** 2, 1 / n**2), method="Nelder-Mead", options=options)
    assert found.success
    return float(found.fun)


@pytest.mark.parametrize("norm", [1.0, 1.5, 2.0])
def test_one_row_is_the_distance(norm: float) -> None:
    student, teacher = logits(1, 5), logits(1, 5)
    expected = distances(student.softmax(-1), teacher.softmax(-1), norm).item()
    assert math.isclose(sinkhorn_loss(student, teacher, norm=norm).item(), expected, rel_tol=1e-12)


def test_temperature_softens_both() -> None:
    student, teacher = logits(4, 5), logits(4, 5)
    softer = sinkhorn_loss(student, teacher, temperature=3.0)
    torch.testing.assert_close(softer, sinkhorn_loss(student / 3, teacher / 3))


def test_two_rows_in_closed_form() -> None:
    """Plans of 2 x 2 have one free number, x / 2 on the diagonal, with x a logistic function."""
    student, teacher, epsilon = logits(2, 4), logits(2, 4), 0.3

    def transport(a: Tensor, b: Tensor) -> float:
        cost = distances(a, b)
        straight, crossed = cost[0, 0] + cost[1, 1], cost[0, 1] + cost[1, 0]
        x = 1 / (1 + math.exp((straight - crossed) / (2 * epsilon)))
        entropy = x * math.log(2 * x) + (1 - x) * math.log(2 * (1 - x))
        return 0.5 * (x * straight + (1 - x) * crossed) + epsilon * entropy

    p, q = student.softmax(-1), teacher.softmax(-1)
    expected = transport(p, q) - 0.5 * transport(p, p) - 0.5 * transport(q, q)
    loss = sinkhorn_loss(student, teacher, regularization=epsilon, iterations=500)
    assert math.isclose(loss.item(), expected, rel_tol=1e-10)


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_against_direct_search_over_plans(epsilon: float) -> None:
    student, teacher = logits(3, 4), logits(3, 4)
    p, q = student.softmax(-1), teacher.softmax(-1)
    expected = (
        entropic(distances(p, q), epsilon)
        - 0.5 * entropic(distances(p, p), epsilon)
        - 0.5 * entropic(distances(q, q), epsilon)
    )
    loss = sinkhorn_loss(student, teacher, regularization=epsilon, iterations=2000)
    assert math.isclose(loss.item(), expected, abs_tol=1e-8)


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_small_regularization_is_the_linear_program(norm: float) -> None:
    student, teacher = logits(6, 5), logits(6, 5)
    cost = distances(student.softmax(-1), teacher.softmax(-1), norm)
    expected = wasserstein(cost)
    rows, columns = linear_sum_assignment(cost)  # a vertex of the plans is a permutation
    assert math.isclose(expected, cost[rows, columns].mean(), rel_tol=1e-9)
    own = cost.diagonal().mean()
    assert own - expected > 0.05  # the rows are not best matched one to one
    loss = sinkhorn_loss(student, teacher, norm=norm, regularization=2e-3, iterations=4000)
    assert math.isclose(loss.item(), expected, abs_tol=2e-3)


def test_plan_has_the_marginals_it_must() -> None:
    p, q = logits(7, 5).softmax(-1), logits(7, 5).softmax(-1)
    mask = torch.tensor([True, False, True, True, True, False, True])
    cost, log_mass = torch.cdist(p, q, p=1), _log_uniform(p, mask)
    f, g = _potentials(cost, log_mass, 0.1, 500)
    plan = ((f[:, None] + g - cost) / 0.1 + log_mass[:, None] + log_mass).exp()
    mass = mask.double() / 5
    torch.testing.assert_close(plan.sum(0), mass, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(plan.sum(1), mass, rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_value_is_optimal_by_duality(epsilon: float) -> None:
    """Any plan costs at least OT, and any potentials at most: where the two meet, both are OT."""
    cost = torch.cdist(logits(6, 5).softmax(-1), logits(6, 5).softmax(-1), p=1)
    log_mass = _log_uniform(cost, None)
    f, g = _potentials(cost, log_mass, epsilon, 5000)
    plan = ((f[:, None] + g - cost) / epsilon).exp() / 36
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-9, atol=0)
    primal = (plan * cost).sum() + epsilon * (plan * (36 * plan).log()).sum()
    dual = _dual(cost, log_mass, epsilon, 5000).mean()
    torch.testing.assert_close(dual, primal, rtol=1e-9, atol=0)
    torch.testing.assert_close(dual, _dual(cost, log_mass, epsilon, 100).mean(), rtol=0, atol=1e-3)


def test_gradient_at_the_default_number_of_iterations() -> None:
    student, teacher = logits(6, 5), logits(6, 5)
    student.requires_grad_()
    (received,) = torch.autograd.grad(sinkhorn_loss(student, teacher), student)
    (exact,) = torch.autograd.grad(sinkhorn_loss(student, teacher, iterations=5000), student)
    assert (received - exact).norm() < 0.02 * exact.norm()


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.1, 1.0]), st.sampled_from([1.0, 1.5, 2.0]))
def test_zero_where_the_rows_are_the_same_in_any_order(seed: int, epsilon: float, norm: float) -> None:
    torch.manual_seed(seed)
    student, n = logits(4, 5), 4
    options = {"regularization": epsilon, "norm": norm, "iterations": 400}
    assert sinkhorn_loss(student, student, **options) == 0
    shuffled = sinkhorn_loss(student, student[torch.randperm(n)], **options)
    assert abs(shuffled) < 1e-6
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_loss(student, student.detach(), **options), student)
    assert gradient.abs().max() < 1e-4
    assert sinkhorn_loss(student.detach(), logits(4, 5), **options) > 1e-3


def test_gradient_where_the_classes_are_disjoint() -> None:
    """KL is infinite there; descent must move mass to the teacher's classes."""
    student = torch.tensor([[1.0, 0.0, -6.0, -6.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-torch.inf, -torch.inf, 1.0, 0.0]], dtype=torch.float64)
    loss = sinkhorn_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert 1.9 < loss < 2
    assert (gradient[0, :2] > 0).all() and (gradient[0, 2:] < -1e-3).all()


def test_backward_does_not_grow_with_the_iterations() -> None:
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4)

    def nodes(iterations: int) -> int:
        seen, ahead = set(), [sinkhorn_loss(student, teacher, iterations=iterations).grad_fn]
        while ahead:
            node = ahead.pop()
            if node is not None and node not in seen:
                seen.add(node)
                ahead += [function for function, _ in node.next_functions]
        return len(seen)

    assert nodes(50) == nodes(1)


def test_second_derivatives_are_refused() -> None:
    student = logits(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_loss(student, logits(2, 3)), student, create_graph=True)
    # The potentials are constants of the gradient, so that of the gradient would be wrong; torch has none
    # for cdist. Should it ever have one, the loss must refuse by itself.
    with pytest.raises(NotImplementedError, match="_cdist_backward"):
        gradient.sum().backward()


def test_close_rows_keep_their_digits_in_float32() -> None:
    student = torch.randn(64, 50)
    teacher = student + 1e-4 * torch.randn(64, 50)
    exact = sinkhorn_loss(student.double(), teacher.double(), norm=2.0)
    torch.testing.assert_close(sinkhorn_loss(student, teacher, norm=2.0).double(), exact, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regularization": 0.0}, "regularization must be positive and finite, received 0.0"),
        ({"iterations": 0}, "iterations must be at least 1, received 0"),
        ({"norm": 3.0}, r"norm must be in \[1, 2\], received 3.0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, received 0.0"),
    ],
)
def test_options_out_of_range(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sinkhorn_loss(torch.zeros(2, 3), torch.zeros(2, 3), **options)
