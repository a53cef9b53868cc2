"""What every router must satisfy: slots and sums, the two-tensor formulation, padding, symmetries."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fenchel
from fenchel import InputError, Routing
from fenchel.nn.routers import EXPERT_CHOICE, METHODS, TOKEN_CHOICE

SOFT = "soft"
ALL = (*METHODS, SOFT)


def route(
    name: str, logits: Tensor, *, capacity: int = 3, k: int = 2, mask: Tensor | None = None
) -> Routing | fenchel.SoftRouting:
    """By any of the six; soft routing has `capacity` slots with nearly the same logits."""
    if name == SOFT:
        return fenchel.soft_routing(spread(logits, capacity), mask=mask)
    options = {"k": k} if name in TOKEN_CHOICE else {}
    return METHODS[name](logits, capacity=capacity, mask=mask, **options)


def spread(logits: Tensor, capacity: int) -> Tensor:
    slots = torch.linspace(0.5, 1.5, capacity, dtype=logits.dtype)
    return logits.unsqueeze(-1) * slots


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def dense(x: Tensor, routing: Routing | fenchel.SoftRouting, expert: Callable[[Tensor], Tensor]) -> Tensor:
    """The definition: what a mixture of experts computes by its two tensors."""
    sent = torch.einsum("...td,...tec->...ecd", x, routing.dispatch)
    return torch.einsum("...ecd,...tec->...td", expert(sent), routing.combine)


@pytest.mark.parametrize("name", METHODS)
@given(
    tokens=st.integers(1, 9),
    experts=st.integers(1, 4),
    k=st.integers(1, 4),
    capacity=st.integers(0, 10),
    ties=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25)
def test_slots_and_sums(
    name: str, tokens: int, experts: int, k: int, capacity: int, ties: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    k = min(k, experts)
    logits = torch.randint(-2, 3, (2, tokens, experts)).double() if ties else draw(2, tokens, experts)
    mask = torch.rand(2, tokens) < 0.8
    routing = route(name, logits, capacity=capacity, k=k, mask=mask)
    d, c = routing.dispatch, routing.combine
    slots = min(capacity, tokens)
    assert d.shape == c.shape == (2, tokens, experts, slots)
    assert ((d == 0) | (d == 1)).all()
    assert (d.sum(-3) <= 1).all(), "a slot holds one token"
    assert (d.sum(-1) <= 1).all(), "an expert takes a token once"
    assert (d[~mask] == 0).all() and (c[~mask] == 0).all(), "padding takes no slot"
    assert (c >= 0).all() and (c[d == 0] == 0).all()
    assert torch.equal(routing.load, d.sum((-3, -1)).long())
    assert (routing.load <= capacity).all() and (routing.load <= routing.demand).all()
    taken = d.sum((-1, -2))
    present = mask.sum(-1)
    lost = ((taken == 0) & mask).sum(-1) / present.clamp_min(1)
    torch.testing.assert_close(routing.dropped, lost)
    if name in TOKEN_CHOICE:
        assert (taken <= k).all()
        assert (c.sum((-1, -2)) <= 1 + 1e-6).all()
        if name != "sparse-token-choice":
            assert torch.equal(routing.demand.sum(-1), k * present)
    if name == "softmax-expert-choice":
        assert (routing.load == present.clamp_max(slots).unsqueeze(-1)).all()
        assert (routing.demand == present.unsqueeze(-1)).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_index_form_is_the_dense_one_with_its_gradients(name: str, batch: tuple[int, ...]) -> None:
    logits, x = draw(*batch, 7, 4), draw(*batch, 7, 5)
    maps, offset = draw(4, 5, 6), draw(4, 1, 6)

    def expert(sent: Tensor) -> Tensor:
        return torch.tanh(sent @ maps + offset)  # an empty slot has an answer too

    results = []
    for index_form in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (logits, x)]
        routing = route(name, leaves[0])
        if index_form:
            y = routing.collect(expert(routing.send(leaves[1])))
        else:
            y = dense(leaves[1], routing, expert)
        results.append((y, *torch.autograd.grad((y * y).sum(), leaves)))
    sent = torch.einsum("...td,...tec->...ecd", x, routing.dispatch)
    torch.testing.assert_close(routing.send(x), sent, rtol=1e-12, atol=1e-12)  # zeros in empty slots
    assert (results[0][1] != 0).any()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("sparse")])
def test_gradients_against_finite_differences(name: str) -> None:
    logits, x = draw(6, 3).requires_grad_(), draw(6, 2).requires_grad_()

    def layer(logits: Tensor, x: Tensor) -> Tensor:
        routing = route(name, logits)
        return routing.collect(torch.sin(routing.send(x)))

    assert torch.autograd.gradcheck(layer, (logits, x))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rubbish", [0.0, math.nan, math.inf, 1e30])
def test_padding_changes_nothing(name: str, rubbish: float) -> None:
    logits, x = draw(2, 6, 3), draw(2, 6, 4)
    places = torch.tensor([0, 2, 3, 5, 6, 8])  # of the tokens among those of the padded group
    mask = torch.zeros(9, dtype=torch.bool).index_fill(0, places, True).expand(2, 9)
    padded = torch.full((2, 9, 3), rubbish, dtype=torch.float64).index_copy(1, places, logits)
    wide = torch.zeros(2, 9, 4, dtype=torch.float64).index_copy(1, places, x)
    plain, masked = route(name, logits), route(name, padded, mask=mask)
    torch.testing.assert_close(masked.combine[:, places], plain.combine)
    torch.testing.assert_close(masked.dispatch[:, places], plain.dispatch)
    torch.testing.assert_close(masked.load, plain.load)
    torch.testing.assert_close(masked.demand, plain.demand)
    torch.testing.assert_close(masked.dropped, plain.dropped)
    torch.testing.assert_close(masked.send(wide), plain.send(x))
    y = plain.send(x)
    back = masked.collect(y)
    torch.testing.assert_close(back[:, places], plain.collect(y))
    assert (back[~mask] == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_a_group_that_is_all_padding(name: str) -> None:
    logits = draw(2, 5, 3).requires_grad_()
    mask = torch.tensor([[True] * 5, [False] * 5])
    routing = route(name, logits, mask=mask)
    (gradient,) = torch.autograd.grad(routing.combine.square().sum(), logits)
    assert (routing.combine[1] == 0).all() and (routing.load[1] == 0).all() and routing.dropped[1] == 0
    assert torch.isfinite(gradient).all() and (gradient[1] == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_permutations_of_tokens_and_experts(name: str) -> None:
    logits, x = draw(2, 8, 4), draw(2, 8, 3)
    tokens, experts = torch.randperm(8), torch.randperm(4)
    plain = route(name, logits)
    permuted = route(name, logits[:, tokens][..., experts])
    # Which slot of its expert a token has is of no consequence.
    expected = plain.combine.sum(-1)[:, tokens][..., experts]
    torch.testing.assert_close(permuted.combine.sum(-1), expected, rtol=1e-6, atol=1e-6)
    moved = permuted.collect(permuted.send(x[:, tokens]))
    torch.testing.assert_close(moved, plain.collect(plain.send(x))[:, tokens], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_groups_are_routed_one_by_one(name: str) -> None:
    logits = draw(2, 3, 7, 4)
    together = route(name, logits)
    for i in range(2):
        for j in range(3):
            alone = route(name, logits[i, j])
            torch.testing.assert_close(together.combine[i, j], alone.combine, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sparse-token-choice", "sparse-expert-choice"])
def test_a_plan_is_not_ready_sooner_among_easy_ones(name: str) -> None:
    logits = draw(2, 7, 4) * torch.tensor([2.0, 20.0]).double()[:, None, None]
    together = METHODS[name](logits, capacity=7, iterations=60)
    alone = METHODS[name](logits[0], capacity=7, iterations=60)
    torch.testing.assert_close(together.combine[0], alone.combine, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_one_expert_with_room_takes_everything(name: str) -> None:
    routing = route(name, draw(5, 1), k=1, capacity=5)
    if name == SOFT:
        torch.testing.assert_close(routing.combine.sum((-1, -2)), torch.ones(5).double())
    else:
        torch.testing.assert_close(routing.combine.sum(-1), torch.ones(5, 1).double())
        assert torch.equal(routing.dispatch.sum((-1, -2)), torch.ones(5).double())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_logits_of_any_size_in_float32(name: str, scale: float) -> None:
    logits = (torch.randn(12, 4) * scale).requires_grad_()
    routing = route(name, logits, capacity=8)
    (gradient,) = torch.autograd.grad(routing.weight.square().sum(), logits)
    assert torch.isfinite(routing.weight).all() and torch.isfinite(gradient).all()
    assert (routing.load > 0).any()


@pytest.mark.parametrize("name", ALL)
def test_half_types_are_routed_in_float32(name: str) -> None:
    logits = draw(9, 4).bfloat16()
    if name == SOFT:
        logits = draw(9, 4, 2).bfloat16()
        half, full = fenchel.soft_routing(logits), fenchel.soft_routing(logits.float())
    else:
        half, full = route(name, logits), route(name, logits.float())
    assert half.combine.dtype == torch.float32
    assert torch.equal(half.combine, full.combine)
    x = torch.randn(9, 3).bfloat16()
    assert half.send(x).dtype == torch.bfloat16 and half.collect(half.send(x)).dtype == torch.float32


@pytest.mark.parametrize("name", ALL)
def test_compiles_and_maps(name: str) -> None:
    logits, x = draw(3, 6, 4), draw(3, 6, 2)

    def layer(logits: Tensor, x: Tensor) -> Tensor:
        routing = route(name, logits)
        return routing.collect(routing.send(x))

    expected = layer(logits, x)
    mapped = torch.func.vmap(layer)(logits, x)
    torch.testing.assert_close(mapped, expected, rtol=1e-6, atol=1e-6)
    if name.startswith(("sinkhorn", "sparse")):
        return  # transport breaks the graph
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(logits, x)
    torch.testing.assert_close(compiled, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_route(name: str) -> None:
    for shape in ((0, 4, 3), (2, 0, 3)):
        routing = route(name, draw(*shape))
        x = draw(*shape[:2], 5)
        assert routing.collect(routing.send(x)).shape == x.shape
        assert routing.dropped.shape == shape[:1] and (routing.dropped == 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("logits", "mask", "words"),
    [
        (torch.full((4, 3), math.nan), None, "must be finite, received nan"),
        (torch.full((4, 3), math.inf), None, "must be finite, received inf"),
        (torch.zeros(4, 3), torch.ones(3), r"mask must .*\(4,\), received \(3,\)"),
        (torch.zeros(4, 3).long(), None, "floating-point tensor, received torch.int64"),
        (torch.zeros(4, 0), None, "have no classes"),
    ],
)
def test_errors_of_logits(name: str, logits: Tensor, mask: Tensor | None, words: str) -> None:
    function = fenchel.soft_routing if name == SOFT else METHODS[name]
    options = {} if name == SOFT else {"capacity": 2}
    logits = logits.unsqueeze(-1) if name == SOFT and logits.numel() else logits
    with pytest.raises(InputError, match=words):
        function(logits, mask=mask, **options)


@pytest.mark.parametrize("name", METHODS)
def test_errors_of_sizes(name: str) -> None:
    logits = torch.zeros(2, 4, 3)
    with pytest.raises(InputError, match="capacity must be an integer >= 0, received -1"):
        METHODS[name](logits, capacity=-1)
    with pytest.raises(InputError, match=r"capacity must be an integer >= 0, received 1\.5"):
        METHODS[name](logits, capacity=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"must have the shape \(\.\.\., T, E\), received \(3,\)"):
        METHODS[name](torch.zeros(3), capacity=1)
    if name in TOKEN_CHOICE:
        for k in (0, 4):
            with pytest.raises(InputError, match=rf"k must be an integer in 1 \.\.\. 3, .*received {k}"):
                METHODS[name](logits, k=k, capacity=1)
        with pytest.raises(InputError, match="one of probability, order, received 'luck'"):
            METHODS[name](logits, capacity=1, priority="luck")
    routing = METHODS[name](logits, capacity=2)
    with pytest.raises(InputError, match=r"\(2, 4, 'd'\), received \(2, 5, 3\)"):
        routing.send(torch.zeros(2, 5, 3))
    with pytest.raises(InputError, match=r"\(2, 3, 2, 'd'\), received \(2, 2, 3, 7\)"):
        routing.collect(torch.zeros(2, 2, 3, 7))


def test_every_public_router_is_named() -> None:
    public = {
        getattr(fenchel, name)
        for name in fenchel.__all__
        if name.endswith(("_token_choice", "_expert_choice"))
    }
    assert public == set(METHODS.values())
    assert set(EXPERT_CHOICE) | set(TOKEN_CHOICE) == set(METHODS)
