"""Token choice against a plain loop, in closed form, and against the conditions of its plans."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fenchel
from fenchel import sinkhorn_token_choice, softmax_token_choice, sparse_token_choice, sparsemax
from fenchel.operators.transport import sparse_transport


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def by_hand(
    gates: Tensor, k: int, capacity: int, normalize: bool, priority: str, mask: Tensor
) -> tuple[list[list[float]], list[int]]:
    """Weights (T, E) and demand, one token and one expert at a time."""
    rows = gates.tolist()
    tokens, experts = gates.shape
    asked: list[list[tuple[float, int]]] = [[] for _ in range(experts)]
    weights = [[0.0] * experts for _ in range(tokens)]
    for t in range(tokens):
        if not mask[t]:
            continue
        chosen = sorted(range(experts), key=lambda e: (-rows[t][e], e))[:k]
        total = sum(rows[t][e] for e in chosen) if normalize else 1.0
        for rank, e in enumerate(chosen):
            asked[e].append((-rows[t][e] if priority == "probability" else rank, t))
            weights[t][e] = rows[t][e] / total
    for e in range(experts):
        for _, t in sorted(asked[e])[capacity:]:
            weights[t][e] = 0.0
    return weights, [len(each) for each in asked]


@given(
    tokens=st.integers(1, 12),
    experts=st.integers(1, 5),
    k=st.integers(1, 5),
    capacity=st.integers(0, 8),
    normalize=st.booleans(),
    priority=st.sampled_from(["probability", "order"]),
    ties=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_plain_loop(
    tokens: int, experts: int, k: int, capacity: int, normalize: bool, priority: str, ties: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    k = min(k, experts)
    logits = torch.randint(0, 3, (tokens, experts)).double() if ties else draw(tokens, experts)
    mask = torch.rand(tokens) < 0.8
    routing = softmax_token_choice(
        logits, k=k, capacity=capacity, normalize=normalize, priority=priority, mask=mask
    )
    # Rounded as the ties are: equal in float32.
    gates = logits.float().softmax(-1).double() if ties else logits.softmax(-1)
    weights, demand = by_hand(gates, k, capacity, normalize, priority, mask)
    expected = torch.tensor(weights, dtype=torch.float64)
    received = routing.combine.sum(-1)
    torch.testing.assert_close(received, expected, rtol=1e-6 if ties else 1e-12, atol=1e-15)
    assert torch.equal(routing.dispatch.sum(-1) > 0, expected > 0)
    assert routing.demand.tolist() == demand


def test_what_does_not_fit_is_dropped_by_priority() -> None:
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    gate = torch.sigmoid(torch.tensor([1.0, 3.0, 2.0]))
    by_probability = softmax_token_choice(logits, k=1, capacity=2)
    assert by_probability.token[0].tolist() == [1, 2]
    torch.testing.assert_close(by_probability.weight[0], gate[[1, 2]])
    assert by_probability.filled.tolist() == [[True, True], [True, False]]
    assert by_probability.demand.tolist() == [3, 1] and by_probability.load.tolist() == [2, 1]
    assert by_probability.dropped == 0.25
    by_order = softmax_token_choice(logits, k=1, capacity=2, priority="order")
    assert by_order.token[0].tolist() == [0, 1]
    torch.testing.assert_close(by_order.weight[0], gate[:2])


def test_first_choices_come_before_second_ones_by_order() -> None:
    # Expert 1 is the second choice of token 0 and the first one of token 1.
    logits = torch.tensor([[2.0, 1.9, 0.0], [0.0, 0.5, 0.1]])
    assert softmax_token_choice(logits, k=2, capacity=1, priority="order").token[1, 0] == 1
    # By probability .48 of token 0 comes before .43 of token 1.
    assert softmax_token_choice(logits, k=2, capacity=1).token[1, 0] == 0


def test_a_single_choice_is_not_normalized_unless_asked() -> None:
    logits = draw(5, 3).requires_grad_()
    free = softmax_token_choice(logits, k=1, capacity=5)
    torch.testing.assert_close(free.combine.sum((-1, -2)), logits.softmax(-1).amax(-1))
    fixed = softmax_token_choice(logits, k=1, capacity=5, normalize=True)
    torch.testing.assert_close(fixed.combine.sum((-1, -2)), torch.ones(5).double())
    (gradient,) = torch.autograd.grad(fixed.combine.square().sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)
    pair = softmax_token_choice(logits, k=2, capacity=5)
    torch.testing.assert_close(pair.combine.sum((-1, -2)), torch.ones(5).double())


def test_ties_go_to_the_earlier_token_and_expert() -> None:
    routing = softmax_token_choice(torch.zeros(6, 4), k=2, capacity=2)
    assert routing.token[:2].tolist() == [[0, 1], [0, 1]] and routing.load.tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("regularization", [0.3, 1.0])
def test_sinkhorn_routes_by_the_balanced_plan(regularization: float) -> None:
    """The plan of an independent loop, and the loads that it evens out."""
    logits = draw(200, 4) + torch.tensor([2.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    price = torch.zeros(4, dtype=torch.float64)
    for _ in range(3000):
        plan = ((logits + price) / regularization).softmax(-1)
        price = price - regularization * (plan.mean(0) * 4).log()
    torch.testing.assert_close(plan.mean(0), torch.full((4,), 0.25).double())
    routing = sinkhorn_token_choice(logits, k=1, capacity=200, regularization=regularization)
    chosen = routing.dispatch.sum(-1).argmax(-1)
    clear = (plan.topk(2).values.diff(dim=-1).abs() > 1e-2).squeeze(-1)  # the plan is exact to 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(chosen[clear], plan.argmax(-1)[clear])
    torch.testing.assert_close(
        routing.combine.sum((-1, -2)), logits.softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    )
    unbalanced = softmax_token_choice(logits, k=1, capacity=200)
    assert unbalanced.demand.double().std() > 4 * routing.demand.double().std()


def test_sinkhorn_keeps_the_largest_of_its_plan() -> None:
    logits = torch.tensor([[9.0, 0.0], [8.0, 0.0], [7.0, 0.0], [6.0, 0.0]])
    routing = sinkhorn_token_choice(logits, k=1, capacity=2)
    assert routing.dispatch.sum(-1).argmax(-1).tolist() == [0, 0, 1, 1] and routing.dropped == 0


@pytest.mark.parametrize("k", [1, 2, 4])
def test_sparse_plan_is_exact_for_tokens_and_even_over_experts(k: int) -> None:
    logits = draw(200, 4) + torch.tensor([1.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    routing = sparse_token_choice(logits, k=k, capacity=200, iterations=100)
    weights = routing.combine.sum(-1)
    assert ((weights > 0).sum(-1) <= k).all()
    assert torch.equal(routing.demand, (weights > 0).sum(0))
    torch.testing.assert_close(weights.sum(-1), torch.ones(200).double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.sum(0), torch.full((4,), 50.0).double(), rtol=0.03, atol=0)
    unbalanced = softmax_token_choice(logits, k=k, capacity=200).combine.sum((0, -1))
    assert unbalanced.std() > 10 * weights.sum(0).std()


def test_sparse_plan_is_the_transport_plan_where_that_is_unique() -> None:
    """With k = E the problem is convex, and `sparse_transport` solves it exactly."""
    logits = draw(40, 4)
    masses = torch.full((4,), 10.0).double(), torch.ones(40).double()
    found = sparse_transport(-logits.mT, *masses, k=4, regularization=0.7)
    routing = sparse_token_choice(logits, k=4, capacity=40, regularization=0.7, iterations=300)
    torch.testing.assert_close(routing.combine.sum(-1), found.plan.mT, rtol=0, atol=0.01)


def test_sparse_weights_are_the_sparsemax_of_priced_logits_with_its_gradient() -> None:
    """Differences of prices are read off the plan; with them weights and gradient follow."""
    logits, probe = draw(30, 3).requires_grad_(), draw(30, 3)
    weights = sparse_token_choice(logits, k=3, capacity=30, regularization=2.0).combine.sum(-1)
    inside = (weights > 0).all(-1)
    assert inside.sum() > 3
    gaps = (2.0 * weights - logits)[inside]
    prices = gaps[0] - gaps[0, :1]
    torch.testing.assert_close(gaps - gaps[:, :1], prices.expand_as(gaps))
    expected = sparsemax((logits + prices.detach()) / 2.0)
    torch.testing.assert_close(weights, expected)
    for mine, other in zip(
        torch.autograd.grad((weights * probe).sum(), logits),
        torch.autograd.grad((expected * probe).sum(), logits),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_sparse_choices_of_weight_zero_take_no_slot() -> None:
    logits = 5 * torch.eye(3, dtype=torch.float64)  # each token is at home with one expert
    routing = sparse_token_choice(logits, k=2, capacity=2)
    assert torch.equal(routing.filled, torch.tensor([[True, False]] * 3))
    torch.testing.assert_close(routing.combine.sum(-1), torch.eye(3).double())


def test_sinkhorn_needs_no_gradient_through_its_plan() -> None:
    logits = draw(7, 3).requires_grad_()
    routing = sinkhorn_token_choice(logits, k=2, capacity=7)
    chosen = routing.dispatch.sum(-1)
    weights = logits.softmax(-1) * chosen
    weights = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.combine.sum(-1), weights)
    probe = draw(7, 3)
    (mine,) = torch.autograd.grad((routing.combine.sum(-1) * probe).sum(), logits, retain_graph=True)
    (other,) = torch.autograd.grad((weights * probe).sum(), logits)
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("function", [sinkhorn_token_choice, sparse_token_choice])
@pytest.mark.parametrize("regularization", [0.0, -1.0, math.nan])
def test_regularization_must_be_positive(function: object, regularization: float) -> None:
    with pytest.raises(fenchel.InputError, match="regularization must be positive"):
        function(torch.zeros(4, 2), capacity=2, regularization=regularization)  # type: ignore[operator]
