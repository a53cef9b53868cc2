"""The layer: equal to a dense MLP where it must be, to its definition everywhere; a module among others."""

from __future__ import annotations

import copy
import io
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fenchel import InputError, MoEFeedForward, Router, SoftRouter, auxiliary_loss
from fenchel.nn.routers import METHODS

ALL = (*METHODS, "soft")


def mlp(gated: bool = False, bias: bool = True) -> list[torch.nn.Linear]:
    return [torch.nn.Linear(6, 10, bias=bias).double() for _ in range(1 + gated)] + [
        torch.nn.Linear(10, 6, bias=bias).double()
    ]


def dense(x: Tensor, linears: list[torch.nn.Linear]) -> Tensor:
    *first, down = linears
    hidden = F.silu(first[0](x))
    return down(hidden * first[1](x) if len(first) == 2 else hidden)


def upcycled(linears: list[torch.nn.Linear], **options: object) -> MoEFeedForward:
    *gate, up, down = linears
    return MoEFeedForward.upcycle(
        up,
        down,
        gate=gate[0] if gate else None,
        activation=F.silu,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_one_expert_is_the_dense_mlp(name: str, gated: bool, bias: bool) -> None:
    linears = mlp(gated, bias)
    layer = upcycled(linears, experts=1, router=name, k=1, capacity_factor=math.inf)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x, linears), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_equal_experts_are_the_dense_mlp_times_the_gates(name: str) -> None:
    linears = mlp()
    layer = upcycled(linears, experts=4, router=name, k=2, capacity_factor=0.7)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    y = layer(x)
    gates = layer.routing.combine.sum((-1, -2))
    torch.testing.assert_close(y, gates.unsqueeze(-1) * dense(x, linears), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("flatten", [False, True])
def test_the_layer_is_its_definition_with_gradients(name: str, flatten: bool) -> None:
    """Σ_ec combine_tec MLP_e(Σ_t dispatch_tec x_t), written with dense tensors."""
    layer = MoEFeedForward(6, 5, 3, router=name, activation=torch.tanh, flatten=flatten).double()
    x = torch.randn(2, 8, 6, dtype=torch.float64, requires_grad=True)
    mask = (torch.arange(8) < torch.tensor([[8], [5]])).expand(2, 8)
    inputs = [x, *layer.parameters()]
    y = layer(x, mask)
    received = torch.autograd.grad((y * y).sum(), inputs)

    rows, present = (x.reshape(16, 6), mask.reshape(16)) if flatten else (x, mask)
    routing, _ = layer.router(rows, present)
    sent = torch.einsum("...td,...tec->...ecd", rows, routing.dispatch)
    hidden = torch.tanh(torch.einsum("...ecd,edh->...ech", sent, layer.weight_in) + layer.bias_in[:, None])
    answers = torch.einsum("...ech,ehd->...ecd", hidden, layer.weight_out) + layer.bias_out[:, None]
    expected = torch.einsum("...ecd,...tec->...td", answers, routing.combine).reshape(x.shape)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for mine, other in zip(received, torch.autograd.grad((expected**2).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    assert all((gradient != 0).any() for gradient in received)
    assert (y[~mask] == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing_and_may_hold_anything(name: str) -> None:
    # Room for all, as the capacity counts padding too.
    k = 1 if name == "softmax-expert-choice" else 2
    layer = MoEFeedForward(6, 5, 3, router=name, k=k, capacity_factor=math.inf).double()
    if "expert" in name:
        layer.router.capacity = lambda tokens: 4
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    padded = torch.cat([x, torch.full((2, 3, 6), math.nan, dtype=torch.float64)], 1)
    mask = (torch.arange(10) < 7).expand(2, 10)
    y = layer(padded, mask)
    torch.testing.assert_close(y[:, :7], layer(x))
    assert (y[:, 7:] == 0).all()
    gradients = torch.autograd.grad(layer(padded, mask).square().sum(), list(layer.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_flatten_makes_one_group() -> None:
    layer = MoEFeedForward(6, 5, 3, flatten=True, capacity_factor=0.5)
    x = torch.randn(2, 3, 4, 6)
    together = layer(x)
    layer.flatten = False
    torch.testing.assert_close(together.reshape(1, 24, 6), layer(x.reshape(1, 24, 6)))
    assert layer.routing.load.shape == (1, 3)


@pytest.mark.parametrize("name", ALL)
def test_which_routers_are_causal(name: str) -> None:
    """With room for all a token does not see those after it where softmax chooses, and there alone."""
    torch.manual_seed(0)
    layer = MoEFeedForward(6, 5, 3, router=name, capacity_factor=math.inf).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    after = torch.cat([x[:5], 3 * torch.randn(4, 6, dtype=torch.float64)])
    unmoved = torch.allclose(layer(after)[:5], layer(x)[:5], rtol=0, atol=1e-12)
    assert unmoved == name.startswith("softmax")


def test_experts_begin_as_linear_layers_do() -> None:
    layer = MoEFeedForward(100, 400, 50)
    for weight, inputs in ((layer.weight_in, 100), (layer.weight_out, 400)):
        bound = inputs**-0.5
        assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


@pytest.mark.parametrize("name", ALL)
def test_it_can_be_copied_saved_and_loaded(name: str) -> None:
    layer = MoEFeedForward(6, 5, 3, router=name)
    x = torch.randn(2, 7, 6)
    y = layer(x)
    twin = copy.deepcopy(layer)
    assert twin.auxiliary_loss is None and twin.routing is None
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    other = MoEFeedForward(6, 5, 3, router=name)
    other.load_state_dict(layer.state_dict())
    for each in (twin, again, other):
        assert torch.equal(each(x), y)


@pytest.mark.parametrize("name", ["softmax-token-choice", "softmax-expert-choice", "soft"])
def test_it_compiles_with_its_losses(name: str) -> None:
    layer = MoEFeedForward(6, 5, 3, router=name)
    x = torch.randn(2, 7, 6)
    y = layer(x)
    loss = auxiliary_loss(layer)
    layer.auxiliary_loss = None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), y)
    torch.testing.assert_close(auxiliary_loss(layer), loss)


@pytest.mark.parametrize("name", ALL)
def test_dtypes(name: str) -> None:
    layer = MoEFeedForward(6, 5, 3, router=name)
    x = torch.randn(2, 7, 6)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.02)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    for shape in ((0, 7, 6), (2, 0, 6), (7, 6)):
        assert layer(torch.zeros(shape).bfloat16()).shape == shape


def test_dropout_is_of_training_alone() -> None:
    layer, x = MoEFeedForward(6, 50, 3, dropout=0.5), torch.randn(2, 7, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_auxiliary_losses_of_a_model_are_summed() -> None:
    model = torch.nn.Sequential(
        MoEFeedForward(6, 5, 3),
        torch.nn.LayerNorm(6),
        MoEFeedForward(6, 5, 4, router=SoftRouter(6, 4, slots=2)),
        MoEFeedForward(6, 5, 3, router=Router(6, 3, z_weight=0.1)),
    )
    with pytest.raises(InputError, match="has 3 mixture-of-experts layers, and none of them has been called"):
        auxiliary_loss(model)
    model(torch.randn(2, 7, 6))
    total = auxiliary_loss(model)
    assert total == model[0].auxiliary_loss + model[3].auxiliary_loss
    total.backward()
    assert all((model[i].router.weight.grad != 0).any() for i in (0, 3))
    with pytest.raises(InputError, match="has 0 mixture-of-experts layers"):
        auxiliary_loss(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", ALL)
def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    layer, x = MoEFeedForward(6, 5, 3, router=name), torch.randn(2, 7, 6, requires_grad=True)
    gradients = []
    for call in (layer, partial(checkpoint, layer, use_reentrant=False)):
        loss = call(x).square().sum() + auxiliary_loss(layer)
        gradients.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", ALL)
def test_parameters_without_work_have_a_gradient_of_zero(name: str) -> None:
    """Not none: DistributedDataParallel waits for that of every parameter."""
    layer = MoEFeedForward(6, 5, 8, router=name)
    for tokens in (0, 1):
        (layer(torch.randn(1, tokens, 6)).sum() + auxiliary_loss(layer)).backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MoEFeedForward(6, 5, 3, router="sof"), r"unknown router 'sof' \(did you mean 'soft'\?\)"),
        (lambda: MoEFeedForward(6, 5, 3, k=4), r"k must be an integer in 1 \.\.\. 3, .*received 4"),
        (lambda: MoEFeedForward(6, 0, 3), "d_hidden must be at least 1, received 0"),
        (lambda: MoEFeedForward(6, 5, 3, capacity_factor=-1.0), "must be positive, received -1.0"),
        (
            lambda: MoEFeedForward(6, 5, 3, router=Router(6, 4))(torch.zeros(2, 4, 6)),
            "the layer has 3 experts, and its router 4",
        ),
        (lambda: MoEFeedForward(6, 5, 3)(torch.zeros(2, 4, 7)), r"\(\.\.\., T, 6\), received \(2, 4, 7\)"),
        (
            lambda: MoEFeedForward.upcycle(
                torch.nn.Linear(6, 5), torch.nn.Linear(5, 6, bias=False), experts=2
            ),
            "must have a bias, or none",
        ),
        (
            lambda: MoEFeedForward.upcycle(torch.nn.Linear(6, 5), torch.nn.Linear(1, 6), experts=2),
            r"\(hidden, d\).*received \(5, 6\), \(6, 1\)",
        ),
        (
            lambda: MoEFeedForward.upcycle(
                torch.nn.Linear(6, 5), torch.nn.Linear(5, 6), gate=torch.nn.Linear(6, 4), experts=2
            ),
            r"received \(4, 6\), \(5, 6\), \(6, 5\)",
        ),
        (
            lambda: MoEFeedForward(6, 5, 3, flatten=True)(torch.zeros(2, 4, 6), torch.ones(4, 2)),
            r"mask must .*\(2, 4\), received \(4, 2\)",
        ),
        (
            lambda: MoEFeedForward(6, 5, 3)(torch.zeros(2, 4, 6), torch.ones(1, 2, 4)),
            r"mask must .*\(2, 4\), received \(1, 2, 4\)",
        ),
        (lambda: MoEFeedForward(6, 5, 3)(torch.zeros(2, 4, 6).long()), "received torch.int64"),
    ],
)
def test_errors(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
