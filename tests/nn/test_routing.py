"""Soft routing in closed form; what a routing says of itself is in the contract of all routers."""

from __future__ import annotations

import pytest
import torch

import fenchel
from fenchel import InputError, soft_routing


def test_soft_routing_is_two_softmaxes() -> None:
    theta = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    routing = soft_routing(theta)
    weight = theta.exp()
    torch.testing.assert_close(routing.dispatch, weight / weight.sum(1, keepdim=True))
    torch.testing.assert_close(routing.combine, weight / weight.sum((-1, -2), keepdim=True))
    torch.testing.assert_close(routing.load, torch.full((2, 3), 4.0).double())
    assert torch.equal(routing.demand, routing.load) and (routing.dropped == 0).all()
    x, y = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    for g in range(2):
        for e in range(3):
            slots = routing.dispatch[g, :, e].T @ x[g]
            torch.testing.assert_close(routing.send(x)[g, e], slots)
        answers = routing.combine[g].flatten(1) @ y[g].flatten(0, 1)
        torch.testing.assert_close(routing.collect(y)[g], answers)


def test_soft_routing_of_masked_tokens_is_that_of_the_others() -> None:
    theta = torch.randn(5, 3, 2, dtype=torch.float64)
    mask = torch.tensor([1, 0, 1, 1, 0])
    routing, alone = soft_routing(theta, mask=mask), soft_routing(theta[mask.bool()])
    torch.testing.assert_close(routing.dispatch[mask.bool()], alone.dispatch)
    torch.testing.assert_close(routing.combine[mask.bool()], alone.combine)
    assert (routing.combine[1] == 0).all() and (routing.dispatch[4] == 0).all()


def test_soft_errors() -> None:
    with pytest.raises(InputError, match=r"\(\.\.\., T, E, C\), received \(4, 3\)"):
        soft_routing(torch.zeros(4, 3))
    with pytest.raises(InputError, match=r"\(4, 'd'\), received \(5, 7\)"):
        soft_routing(torch.zeros(4, 3, 2)).send(torch.zeros(5, 7))
    for shape in ((3, 1, 7), (1, 3, 2, 7)):  # einsum would broadcast both
        with pytest.raises(InputError, match=r"\(3, 2, 'd'\), received \("):
            soft_routing(torch.zeros(4, 3, 2)).collect(torch.zeros(shape))


def test_slots_lie_expert_by_expert_in_memory() -> None:
    """So that the batched products of the experts copy nothing."""
    routing = fenchel.softmax_expert_choice(torch.randn(3, 8, 4), capacity=2)
    assert routing.send(torch.randn(3, 8, 5)).movedim(-3, 0).is_contiguous()
