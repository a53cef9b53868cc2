"""The losses of routers: closed forms, bounds, padding, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import InputError, importance_loss, load_balance_loss, router_z_loss

LOSSES = (load_balance_loss, router_z_loss, importance_loss)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * 2


def gates(*shape: int) -> Tensor:
    return draw(*shape).softmax(-1)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("experts", [3, 5])
def test_balance_is_one_for_uniform_probabilities_and_at_most_experts_over_k(k: int, experts: int) -> None:
    uniform = torch.zeros(7, experts, dtype=torch.float64)
    assert load_balance_loss(uniform, k=k).item() == pytest.approx(1, abs=1e-15)
    collapsed = torch.full((7, experts), -800.0, dtype=torch.float64)
    collapsed[:, :k] = 0
    assert load_balance_loss(collapsed, k=k).item() == pytest.approx(experts / k, abs=1e-12)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 10**6))
def test_balance_is_the_sum_over_experts_of_its_definition(k: int, tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, experts = draw(tokens, 4), 4
    probabilities = logits.softmax(-1)
    expected = 0.0
    for e in range(experts):
        chose = sum(e in sorted(range(experts), key=lambda i: -row[i])[:k] for row in logits.tolist())
        expected += experts * chose / (k * tokens) * probabilities[:, e].mean().item()
    received = load_balance_loss(logits, k=k).item()
    assert received == pytest.approx(expected, abs=1e-12)
    assert received <= experts / k + 1e-12


def test_balance_of_a_given_load_and_its_gradient() -> None:
    logits, load = draw(6, 3).requires_grad_(), torch.tensor([6, 2, 4])
    loss = load_balance_loss(logits, load=load)
    probabilities = logits.softmax(-1)
    share = load.double() / 12
    torch.testing.assert_close(loss, 3 * (share * probabilities.mean(0)).sum())
    (gradient,) = torch.autograd.grad(loss, logits)
    p = probabilities.detach()
    expected = 3 * p * (share - (p * share).sum(-1, keepdim=True)) / 6
    torch.testing.assert_close(gradient, expected)
    shares = (load.double() / 100).requires_grad_()
    scaled = load_balance_loss(logits, load=shares)
    torch.testing.assert_close(scaled, loss)
    assert torch.autograd.grad(scaled, [logits, shares], allow_unused=True)[1] is None


def test_z_loss_in_closed_form() -> None:
    logits = draw(2, 5, 4)
    each = router_z_loss(logits, reduction="none")
    torch.testing.assert_close(each, logits.exp().sum(-1).log() ** 2)
    torch.testing.assert_close(router_z_loss(logits), each.mean())
    assert router_z_loss(torch.full((1, 3, 8), 1e4)).item() == pytest.approx((1e4 + math.log(8)) ** 2)


def test_importance_is_the_squared_coefficient_of_variation() -> None:
    weights = gates(2, 9, 5)
    total = weights.sum(-2)
    expected = (total.std(-1, correction=0) / total.mean(-1)) ** 2
    torch.testing.assert_close(importance_loss(weights, reduction="none"), expected)
    one = torch.zeros(4, 5).index_fill(1, torch.tensor([2]), 0.3)
    assert importance_loss(one).item() == pytest.approx(4, abs=1e-6)
    assert importance_loss(torch.full((4, 5), 0.3)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_padding_changes_nothing(loss: object, rubbish: float) -> None:
    x = gates(3, 6, 4)
    padded = torch.cat([x, torch.full((3, 2, 4), rubbish, dtype=torch.float64)], -2).requires_grad_()
    mask = torch.arange(8) < 6
    received = loss(padded, mask=mask.expand(3, 8))  # type: ignore[operator]
    torch.testing.assert_close(received, loss(x))  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(received, padded)
    assert (gradient[:, 6:] == 0).all() and (gradient[:, :6] != 0).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_group_without_tokens_does_not_count(loss: object) -> None:
    x = gates(2, 5, 3).requires_grad_()
    mask = torch.tensor([[True] * 5, [False] * 5])
    torch.testing.assert_close(loss(x, mask=mask), loss(x[:1]))  # type: ignore[operator]
    none = loss(x, mask=torch.zeros(2, 5, dtype=torch.bool))  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(none, x)
    assert none == 0 and (gradient == 0).all()
    assert loss(x[:0]) == 0 and loss(x[:, :0]) == 0  # type: ignore[operator]


@pytest.mark.parametrize("loss", [load_balance_loss, importance_loss])
def test_groups_are_taken_one_by_one(loss: object) -> None:
    x = gates(2, 3, 5, 4)
    each = loss(x, reduction="none")  # type: ignore[operator]
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(each[i, j], loss(x[i, j]))  # type: ignore[operator]
    torch.testing.assert_close(loss(x, reduction="sum"), each.sum())  # type: ignore[operator]
    torch.testing.assert_close(torch.func.vmap(loss)(x[0]), each[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_compile_and_half(loss: object) -> None:
    x = gates(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, (x,))
    assert torch.autograd.gradgradcheck(loss, (x,))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # type: ignore[arg-type]
    torch.testing.assert_close(compiled(x), loss(x))  # type: ignore[operator]
    half = x.detach().bfloat16()
    received = loss(half)  # type: ignore[operator]
    assert received.dtype == torch.bfloat16
    assert torch.equal(received, loss(half.float()).bfloat16())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: load_balance_loss(torch.zeros(4, 3), k=4),
            r"k must be .* in 1 \.\.\. 3.*received 4",
        ),
        (lambda: load_balance_loss(torch.zeros(4, 3), load=torch.ones(4)), r"load must .*\(3,\).*\(4,\)"),
        (lambda: load_balance_loss(torch.zeros(4, 3), k=1.5), "received 1.5"),
        (lambda: load_balance_loss(torch.zeros(4, 3), load=-torch.ones(3)), "load must be >= 0, received -1"),
        (lambda: load_balance_loss(torch.full((4, 3), math.nan)), "holds nan"),
        (lambda: router_z_loss(torch.full((4, 3), math.inf)), "holds inf"),
        (lambda: router_z_loss(torch.zeros(3)), r"\(\.\.\., tokens, experts\), received \(3,\)"),
        (lambda: router_z_loss(torch.zeros(4, 3), mask=torch.ones(3)), r"mask must .*\(4,\).*\(3,\)"),
        (lambda: router_z_loss(torch.zeros(4, 3).long()), "floating-point tensor, received torch.int64"),
        (lambda: importance_loss(-torch.ones(4, 3)), "gates must be >= 0, received -1.0"),
        (lambda: importance_loss(torch.full((4, 3), math.nan)), "received nan"),
        (lambda: importance_loss(torch.ones(4, 3), reduction="avg"), "received 'avg'"),
    ],
)
def test_errors(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
