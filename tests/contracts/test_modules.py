"""What every module, and every way of routing, must satisfy."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import fenchel
from fenchel import InputError
from fenchel.nn.energies import ConfigurationSpace, mlp

SETS, ORDERS = fenchel.Subsets(4), fenchel.Permutations(4)


def configurations(space: ConfigurationSpace) -> Tensor:
    return space.sample((3,), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "FenchelYoungLoss": (
        lambda: fenchel.FenchelYoungLoss("alpha:1.5", weight=torch.rand(5) + 0.1),
        lambda module, x: module(x, torch.tensor([0, 1, 4])),
    ),
    "UnaryEnergy": (
        lambda: fenchel.UnaryEnergy(mlp(5, [3], 4), SETS),
        lambda module, x: module(x, configurations(SETS).to(x.dtype)),
    ),
    "PairwiseEnergy": (
        lambda: fenchel.PairwiseEnergy(mlp(5, [3], 4), ORDERS),
        lambda module, x: module(x, configurations(ORDERS).to(x.dtype)),
    ),
    "BilinearEnergy": (
        lambda: fenchel.BilinearEnergy(mlp(5, [], 3), mlp(4, [3], 3), SETS),
        lambda module, x: module(x, configurations(SETS).to(x.dtype)),
    ),
    "JointEnergy": (
        lambda: fenchel.JointEnergy(mlp(9, [3], 1), SETS),
        lambda module, x: module(x, configurations(SETS).to(x.dtype)),
    ),
    "AssignmentEnergy": (
        lambda: fenchel.AssignmentEnergy(mlp(5, [], 16), ORDERS),
        lambda module, x: module(x, configurations(ORDERS).to(x.dtype)),
    ),
    "PartitionNetwork": (lambda: fenchel.PartitionNetwork(5, [3]), lambda module, x: module(x)),
    "MoEFeedForward": (
        lambda: fenchel.MoEFeedForward(5, 7, experts=3, capacity_factor=math.inf),
        lambda module, x: module(x),
    ),
    "SoftRouter": (lambda: fenchel.SoftRouter(5, 3), lambda module, x: module(x)[0].combine),
    "Router": (lambda: fenchel.Router(5, 3), lambda module, x: module(x)[0].combine),
    "MagnitudePruning": (
        lambda: fenchel.MagnitudePruning(6, regularization=0.5),
        lambda module, x: module(x),
    ),
}


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", MODULES)
def test_it_is_copied_and_saved(name: str) -> None:
    make, call = MODULES[name]
    torch.manual_seed(0)
    module, x = make(), inputs()
    expected = call(module, x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    torch.manual_seed(1)
    fresh = make()
    fresh.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False), fresh):
        torch.testing.assert_close(call(other, x), expected, rtol=0, atol=0)
    assert type(module).__name__ == name and repr(module)


@pytest.mark.parametrize("name", MODULES)
def test_it_moves_to_float64(name: str) -> None:
    make, call = MODULES[name]
    module = make()
    single = call(module, inputs())
    double = call(module.double(), inputs(torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("FenchelYoungLoss", "Router")])
def test_gradients_are_exact(name: str) -> None:
    make, call = MODULES[name]
    torch.manual_seed(0)
    module = make().double()
    for parameter in module.parameters():  # some begin at zero, where others have no gradient
        nn.init.normal_(parameter)
    x = inputs(torch.float64).requires_grad_()
    parameters = dict(module.named_parameters())

    def function(x: Tensor, *values: Tensor) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(
            module, dict(zip(parameters, values, strict=True))
        ):
            return call(module, x)

    assert torch.autograd.gradcheck(function, (x, *parameters.values()), atol=1e-6)


ROUTINGS = {
    "softmax_token_choice": partial(fenchel.softmax_token_choice, k=2, capacity=4),
    "sinkhorn_token_choice": partial(fenchel.sinkhorn_token_choice, k=2, capacity=4),
    "sparse_token_choice": partial(fenchel.sparse_token_choice, k=2, capacity=4),
    "softmax_expert_choice": partial(fenchel.softmax_expert_choice, capacity=4),
    "sparse_expert_choice": partial(fenchel.sparse_expert_choice, capacity=4),
    "soft_routing": lambda logits, **options: fenchel.soft_routing(
        torch.stack([logits, 2 * logits], -1), **options
    ),
}


def logits(*groups: int) -> Tensor:
    return torch.randn(*groups, 6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("name", ROUTINGS)
class TestRouting:
    """Routing and SoftRouting, by every function that makes them."""

    def test_send_and_collect_are_the_two_sums(self, name: str) -> None:
        routing = ROUTINGS[name](logits(2))
        assert isinstance(routing, fenchel.Routing | fenchel.SoftRouting)
        x = torch.randn(2, 6, 3, dtype=torch.float64)
        sent = torch.einsum("gtd,gtec->gecd", x, routing.dispatch)
        torch.testing.assert_close(routing.send(x), sent)
        y = torch.randn_like(sent)
        torch.testing.assert_close(routing.collect(y), torch.einsum("gecd,gtec->gtd", y, routing.combine))

    def test_groups_are_independent(self, name: str) -> None:
        both, x = ROUTINGS[name](logits(2)), logits(2)
        for i in range(2):
            alone = ROUTINGS[name](x[i])
            torch.testing.assert_close(both.combine[i], alone.combine, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(both.dispatch[i], alone.dispatch, rtol=1e-5, atol=1e-6)

    def test_padding_changes_nothing(self, name: str) -> None:
        x = logits()
        padded = torch.cat([x, torch.full((2, 4), math.nan, dtype=x.dtype)])
        mask = torch.arange(8) < 6
        found, alone = ROUTINGS[name](padded, mask=mask), ROUTINGS[name](x)
        torch.testing.assert_close(found.combine[:6], alone.combine, rtol=1e-5, atol=1e-6)
        assert (found.combine[6:] == 0).all() and (found.dispatch[6:] == 0).all()

    def test_tokens_are_alike(self, name: str) -> None:
        x, order = logits(), torch.tensor([3, 1, 5, 0, 2, 4])
        found, moved = ROUTINGS[name](x), ROUTINGS[name](x[order])
        for part in ("combine", "dispatch"):
            # The slots of an expert may be in another order; what a token sends and receives is not.
            torch.testing.assert_close(
                getattr(moved, part).sum(-1), getattr(found, part)[order].sum(-1), rtol=1e-5, atol=1e-6
            )

    def test_nan_is_named(self, name: str) -> None:
        x = logits()
        x[2, 1] = math.nan
        with pytest.raises(InputError, match="must be finite, received nan"):
            ROUTINGS[name](x)
