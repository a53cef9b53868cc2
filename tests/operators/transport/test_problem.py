"""What the transport operators accept, and what they say of what they do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transports import problem

from fenchel import InputError, Transport, entropic_transport, quadratic_transport, sparse_transport


def sparse(*arguments: Any, **options: Any) -> Transport:
    return sparse_transport(*arguments, **{"k": 1} | options)


OPERATORS = [entropic_transport, quadratic_transport, sparse]
COST = torch.zeros(2, 3)
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((torch.zeros(3),), {}, r"cost must be \(\.\.\., m, n\) with m, n >= 1, received shape \(3,\)"),
        ((torch.zeros(0, 3),), {}, r"received shape \(0, 3\)"),
        ((torch.zeros(2, 3, dtype=torch.int64),), {}, "floating-point tensor, received torch.int64"),
        (([[0.0]],), {}, "floating-point tensor, received list"),
        ((COST, torch.ones(3)), {}, r"a must be \(\.\.\., 2\) for cost \(2, 3\), received shape \(3,\)"),
        ((COST, torch.ones(2).int()), {}, "a must be a floating-point tensor, received torch.int32"),
        ((torch.zeros(4, 2, 3), torch.ones(5, 2)), {}, r"cost \(4, 2, 3\), a \(5, 2\) and b \(3,\) do not"),
        ((torch.tensor([[0.0, NAN]]),), {}, r"cost of shape \(1, 2\) holds nan"),
        ((torch.tensor([[0.0, -INF]]),), {}, "holds -inf; it must be a number, or \\+inf"),
        ((COST, torch.tensor([1.5, -0.5])), {}, "marginal a must be at least 0 and finite, received -0.5"),
        ((COST, None, torch.tensor([NAN, 0.5, 0.5])), {}, "marginal b must be at least 0 .* received nan"),
        ((COST, torch.zeros(2)), {}, r"marginal a of shape \(2,\) has no mass"),
        ((COST, torch.tensor([0.5, 1.0])), {}, "received a with sum 1.5 and b with sum 1"),
        (
            (COST.double(), torch.tensor([0.9, 0.1]).double()),
            {},
            r"received a with sum 0\.9999999\d+ and b with sum 1; divide each by its sum, in torch.float64",
        ),
        ((torch.tensor([[0.0, 0.0], [INF, INF]]),), {}, r"row \(1,\) has mass 0.5, but cost \+inf"),
        (
            (torch.tensor([[0.0, INF], [0.0, 0.0]]), torch.tensor([1.0, 0.0])),
            {},
            r"column \(1,\) has mass 0.5, but cost \+inf to all mass",
        ),
        ((COST,), {"regularization": 0.0}, "regularization must be positive and finite, received 0.0"),
        ((COST,), {"regularization": NAN}, "regularization must be positive and finite, received nan"),
        ((COST,), {"iterations": 0}, "iterations must be at least 1, received 0"),
        ((COST,), {"tolerance": -1.0}, "tolerance must be at least 0 and finite, received -1.0"),
    ],
)
def test_bad_input(operator: Any, arguments: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        operator(*arguments, **options)


@pytest.mark.parametrize("k", [0, 3, 1.0, -1])
def test_k_out_of_range(k: Any) -> None:
    with pytest.raises(InputError, match=rf"k must be an integer in \[1, 2\].*\(2, 3\), received {k}"):
        sparse_transport(COST, k=k)


@pytest.mark.parametrize("operator", OPERATORS)
def test_batch_axes_broadcast_and_are_a_loop(operator: Any) -> None:
    cost, _, _ = problem(4, 5, 3)
    a = (torch.rand(2, 1, 4).double() + 1).softmax(-1)
    options = {"regularization": 2.0, "tolerance": 1e-13, "iterations": 3000}
    if operator is sparse:
        options["k"] = 4
    found = operator(cost, a, **options)
    assert found.plan.shape == (2, 3, 4, 5) and found.value.shape == found.residual.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = operator(cost[j], a[i, 0], **options)
            for together, one in zip(found, alone, strict=True):
                torch.testing.assert_close(together[i, j], one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_in_nothing_out(operator: Any) -> None:
    empty: Tensor = torch.zeros(0, 2, 3, requires_grad=True)
    found = operator(empty)
    assert found.plan.shape == (0, 2, 3) and found.value.shape == (0,)
    found.value.sum().backward()
    assert empty.grad is not None and empty.grad.shape == (0, 2, 3)


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_cell(operator: Any) -> None:
    found = operator(torch.tensor([[2.5]]), regularization=0.5)
    assert found.plan.item() == pytest.approx(1)
    square = 0.0 if operator is entropic_transport else 0.25  # γ/2
    assert found.value.item() == pytest.approx(2.5 + square)
