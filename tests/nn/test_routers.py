"""The routers as modules: capacity, dtypes, noise, auxiliary losses, bad options."""

from __future__ import annotations

import math

import pytest
import torch

from fenchel import (
    InputError,
    Router,
    SoftRouter,
    importance_loss,
    load_balance_loss,
    router_z_loss,
    soft_routing,
)
from fenchel.nn.routers import METHODS


@pytest.mark.parametrize(
    ("k", "factor", "tokens", "expected"),
    [
        (2, 1.0, 64, 32),
        (2, 1.25, 64, 40),
        (1, 1.0, 10, 3),
        (1, 1.1, 400, 110),
        (4, 2.0, 10, 10),
        (1, math.inf, 7, 7),
    ],
)
def test_capacity(k: int, factor: float, tokens: int, expected: int) -> None:
    """⌈k T / E · factor⌉ and at most T; 1.1 · 100 is 110, though in floating point it is more."""
    assert Router(8, 4, k=k, capacity_factor=factor).capacity(tokens) == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_router_is_its_function_of_linear_logits(method: str) -> None:
    router = Router(6, 4, method, k=2, capacity_factor=1.0)
    x = torch.randn(2, 8, 6)
    mask = torch.rand(2, 8) < 0.9
    routing, _ = router(x, mask)
    options = {"k": 2} if "token" in method else {}
    expected = METHODS[method](x @ router.weight.T, capacity=4, mask=mask, **options)
    for received, wanted in zip(routing, expected, strict=True):
        torch.testing.assert_close(received, wanted)


def test_options_reach_the_function() -> None:
    x = torch.randn(9, 6)
    plain = Router(6, 3, k=2, normalize=False, capacity_factor=math.inf)
    weights = plain(x)[0].combine.sum((-1, -2))
    torch.testing.assert_close(weights, (x @ plain.weight.T).softmax(-1).topk(2).values.sum(-1))
    assert "k=2" in repr(plain) and "softmax-token-choice" in repr(plain)


def test_auxiliary_loss() -> None:
    x, mask = torch.randn(2, 9, 6), torch.rand(2, 9) < 0.8
    router = Router(6, 3, k=2, balance_weight=0.5, z_weight=0.1, capacity_factor=0.5)
    routing, loss = router(x, mask)
    assert (routing.demand > routing.load).any(), "what is dropped was asked for too"
    logits = x @ router.weight.T
    expected = 0.5 * load_balance_loss(logits, k=2, mask=mask) + 0.1 * router_z_loss(logits, mask=mask)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, router.weight)
    (other,) = torch.autograd.grad(expected, router.weight)
    torch.testing.assert_close(gradient, other)
    torch.testing.assert_close(
        load_balance_loss(logits, load=routing.demand, mask=mask), load_balance_loss(logits, k=2, mask=mask)
    )
    assert Router(6, 3)(x)[1] > 0
    for method in ("sinkhorn-token-choice", "softmax-expert-choice"):
        assert Router(6, 3, method)(x)[1] == 0


def test_the_balance_loss_balances() -> None:
    """Descent on it alone evens out the loads of a router that prefers one expert."""
    x = torch.randn(256, 8) + 1
    router = Router(8, 4, k=1, balance_weight=1.0, capacity_factor=math.inf)
    with torch.no_grad():
        router.weight[0] += 0.5
    before = router(x)[0]
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        router(x)[1].backward()
        optimizer.step()
    after = router(x)[0]
    spread = [importance_loss(r.dispatch.sum(-1)).item() for r in (before, after)]
    assert spread[0] > 1 and spread[1] < 0.1 * spread[0]


def test_noise_is_of_training_alone() -> None:
    router, x = Router(6, 4, jitter=0.5), torch.randn(12, 6)
    quiet = router.eval()(x)[0]
    assert torch.equal(quiet.weight, router(x)[0].weight)
    noisy = router.train()(x)[0]
    assert not torch.equal(noisy.weight, quiet.weight)
    torch.manual_seed(3)
    one = router(x)[0].weight
    torch.manual_seed(3)
    assert torch.equal(router(x)[0].weight, one)


@pytest.mark.parametrize("method", METHODS)
def test_half_types_and_autocast_route_in_float32(method: str) -> None:
    router = Router(64, 8, method)
    x = torch.randn(40, 64).bfloat16()
    expected, _ = router(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        received, loss = router(x)
    assert received.weight.dtype == loss.dtype == torch.float32
    for mine, other in zip(received, expected, strict=True):
        assert torch.equal(mine, other)


def test_soft_router_is_scaled_cosine_similarity() -> None:
    router, x = SoftRouter(6, 3, slots=2).double(), torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        router.scale.fill_(3.0)
    cosine = torch.nn.functional.cosine_similarity(x[:, None, None], router.weight[None], dim=-1)
    routing, loss = router(x)
    expected = soft_routing(3 * cosine)
    torch.testing.assert_close(routing.dispatch, expected.dispatch)
    torch.testing.assert_close(routing.combine, expected.combine)
    assert loss == 0 and "slots=2" in repr(router)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Router(6, 4, "softmax-token-chioce"), r"did you mean 'softmax-token-choice'\?"),
        (lambda: Router(6, 4, "soft"), "unknown router 'soft' here, make it by SoftRouter"),
        (lambda: Router(6, 4, k=5), r"k must be an integer in 1 \.\.\. 4, .*received 5"),
        (lambda: Router(6, 4, k=1.5), "must be an integer .* received 1.5"),
        (lambda: Router(6, 4, capacity=3), "no option 'capacity'"),
        (lambda: Router(6, 4, mask=None), "no option 'mask'"),
        (lambda: Router(6, 4, capacity_factor=0.0), "capacity_factor must be positive, received 0.0"),
        (lambda: Router(6, 4, capacity_factor=math.nan), "capacity_factor must be positive, received nan"),
        (lambda: Router(6, 4, jitter=1.0), r"jitter must be in \[0, 1\), received 1.0"),
        (lambda: Router(6, 0), "experts must be at least 1, received 0"),
        (lambda: Router(6, 4, prioritty="order"), "no option 'prioritty'.*did you mean 'priority'"),
        (lambda: Router(6, 4, "softmax-expert-choice", normalize=True), "no option 'normalize'"),
        (lambda: SoftRouter(6, 4, slots=0), "slots must be at least 1, received 0"),
        (lambda: Router(6, 4)(torch.zeros(3, 5)), r"\(\.\.\., T, 6\), received \(3, 5\)"),
        (lambda: SoftRouter(6, 4)(torch.zeros(6)), r"\(\.\.\., T, 6\), received \(6,\)"),
        (lambda: Router(6, 4)(torch.full((3, 6), math.nan)), "must be finite, received nan"),
    ],
)
def test_errors(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
