"""Expert choice against a plain loop and the conditions of its plan."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import softmax_expert_choice, sparse_expert_choice
from fenchel.operators.transport import sparse_transport


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 10), st.booleans(), st.integers(0, 10**6))
def test_it_is_the_plain_loop(tokens: int, experts: int, capacity: int, ties: bool, seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randint(0, 2, (tokens, experts)).double() if ties else draw(tokens, experts)
    gates = logits.float().softmax(-1).double() if ties else logits.softmax(-1)
    mask = torch.rand(tokens) < 0.8
    expected = torch.zeros(tokens, experts, dtype=torch.float64)
    for e in range(experts):
        order = sorted((t for t in range(tokens) if mask[t]), key=lambda t: (-gates[t, e].item(), t))
        for t in order[:capacity]:
            expected[t, e] = gates[t, e]
    routing = softmax_expert_choice(logits, capacity=capacity, mask=mask)
    torch.testing.assert_close(routing.combine.sum(-1), expected, rtol=1e-6 if ties else 1e-12, atol=1e-15)
    assert torch.equal(routing.dispatch.sum(-1) > 0, expected > 0)


def test_loads_are_equal_and_tokens_may_be_left_out() -> None:
    logits = torch.tensor([[5.0, 5.0], [0.0, 0.0], [4.0, 6.0], [-3.0, -2.0]])
    routing = softmax_expert_choice(logits, capacity=2)
    assert routing.load.tolist() == [2, 2] and routing.demand.tolist() == [4, 4]
    # Probabilities of expert 0: .5, .5, .12, .27; of expert 1 the rest.
    assert routing.token.tolist() == [[0, 1], [2, 3]] and routing.dropped == 0
    assert softmax_expert_choice(logits, capacity=1).dropped == 0.5


@pytest.mark.parametrize("capacity", [8, 12, 24])
def test_sparse_plan_has_its_marginals_and_few_tokens_an_expert(capacity: int) -> None:
    logits = draw(24, 3)
    routing = sparse_expert_choice(logits, capacity=capacity, iterations=100)
    weights = routing.combine.sum(-1)
    assert (routing.load <= capacity).all() and routing.dropped == 0
    assert torch.equal((weights > 0).sum(0), routing.load) and torch.equal(routing.demand, routing.load)
    torch.testing.assert_close(weights.sum(0), torch.full((3,), 8.0).double(), rtol=1e-12, atol=1e-12)
    # A bound that binds leaves sums of tokens open to the size of one entry.
    allowed = 0.02 if capacity == 24 else 0.5
    torch.testing.assert_close(weights.sum(1), torch.ones(24).double(), rtol=0, atol=allowed)


def test_sparse_plan_is_the_transport_plan_where_that_is_unique() -> None:
    logits = draw(24, 3)
    found = sparse_transport(
        -logits, torch.ones(24).double(), torch.full((3,), 8.0).double(), k=24, regularization=1.0
    )
    weights = sparse_expert_choice(logits, capacity=24, iterations=300).combine.sum(-1)
    torch.testing.assert_close(weights, found.plan, rtol=0, atol=0.01)


def test_no_token_is_left_out_where_softmax_leaves_some() -> None:
    """Tokens without a strong preference lose against others, unless a price makes up for it."""
    logits = draw(64, 4) * torch.linspace(0.1, 4, 64, dtype=torch.float64).unsqueeze(-1)
    assert softmax_expert_choice(logits, capacity=16).dropped > 0.1
    assert sparse_expert_choice(logits, capacity=32).dropped == 0


def test_prices_are_constants_of_the_gradient() -> None:
    """∂p/∂θ of a sparsemax with the support of the plan: (I - 1 1ᵀ / n) / γ for each expert."""
    logits, probe = draw(12, 3).requires_grad_(), draw(12, 3)
    weights = sparse_expert_choice(logits, capacity=6, regularization=0.5).combine.sum(-1)
    (gradient,) = torch.autograd.grad((weights * probe).sum(), logits)
    support = (weights > 0).double()
    mean = (support * probe).sum(0) / support.sum(0)
    torch.testing.assert_close(gradient, support * (probe - mean) / 0.5)
