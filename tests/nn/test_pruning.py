"""Pruning: what the parametrization computes and saves, and what is left when it is made permanent."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from fenchel import (
    InputError,
    MagnitudePruning,
    anneal_pruning,
    finish_pruning,
    prune_magnitude,
    topk_magnitude,
)


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 5)).double()


def inputs() -> Tensor:
    return torch.randn(6, 1, 4, 4, dtype=torch.float64)


def zeros(module: torch.nn.Module) -> list[int]:
    return [int((module[i].weight == 0).sum()) for i in (0, 2)]


def test_the_entries_of_a_whole_weight_compete() -> None:
    module = network()
    dense = [module[i].weight.detach().clone() for i in (0, 2)]
    prunings = prune_magnitude(module, 0.75, regularization=0.3, p=2.0)
    assert [pruning.k for pruning in prunings] == [9, 20]
    for i, weight, pruning in zip((0, 2), dense, prunings, strict=True):
        expected = topk_magnitude(weight.flatten(), pruning.k, regularization=0.3, p=2.0).view_as(weight)
        assert torch.equal(module[i].weight, expected)
        assert torch.equal(module[i].parametrizations.weight.original, weight)
    assert module[0].bias.dim() == 1 and not parametrize.is_parametrized(module[0], "bias")


def test_finishing_leaves_exactly_k_of_the_trained_entries() -> None:
    module = network()
    parameters = dict(module.named_parameters())
    originals = [parameters["0.weight"], parameters["2.weight"]]
    prunings = prune_magnitude(module, 0.9, regularization=5.0)
    before = [weight.detach().clone() for weight in originals]
    finish_pruning(module)
    assert zeros(module) == [36 - prunings[0].k, 80 - prunings[1].k] == [32, 72]
    for i, weight, dense in zip((0, 2), originals, before, strict=True):
        assert module[i].weight is weight  # the optimizer's
        kept = weight != 0
        assert torch.equal(weight[kept], dense[kept])
        assert dense[kept].abs().min() > dense[~kept].abs().max()
    assert set(module.state_dict()) == set(network().state_dict())


def test_annealing_ends_in_the_function_that_finishing_keeps() -> None:
    module, x = network(), inputs()
    prune_magnitude(module, 0.8, regularization=10.0)
    relaxed = module(x)
    anneal_pruning(module, 1e-9)
    hard = module(x)
    finish_pruning(module)
    assert torch.equal(module(x), hard)
    assert not torch.allclose(relaxed, hard)


def test_training_moves_what_is_kept_and_trades_places() -> None:
    """Least squares from a weight with a wrong start: the right two inputs of eight are found."""
    x = torch.randn(200, 8, dtype=torch.float64)
    target = 2 * x[:, 5:6] - 3 * x[:, 2:3]
    layer = torch.nn.Linear(8, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, 0.31, 0.2, 0.25, 0.1, 0.22, 0.3, 0.2]]))
    prune_magnitude(layer, 0.75, regularization=10.0, p=2.0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for step in range(300):
        anneal_pruning(layer, 10.0 * 0.98**step)
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    finish_pruning(layer)
    expected = torch.tensor([[0, 0, -3, 0, 0, 2, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-2)


def test_gradients_reach_the_dense_weight() -> None:
    layer = torch.nn.Linear(6, 3, bias=False).double()
    prune_magnitude(layer, 0.5, regularization=0.3, p=2.0)
    x = torch.randn(4, 6, dtype=torch.float64)
    original = layer.parametrizations.weight.original

    def call(weight: Tensor) -> Tensor:
        key = "parametrizations.weight.original"
        return torch.func.functional_call(layer, {key: weight}, (x,))

    assert torch.autograd.gradcheck(call, original.detach().clone().requires_grad_())
    gradient = torch.autograd.grad(layer(x).square().sum(), original)[0]
    dropped = layer.weight == 0
    assert bool(dropped.any()) and bool((gradient[dropped] == 0).all()) and bool((gradient != 0).any())


def test_state_round_trip_and_deepcopy() -> None:
    module, x = network(), inputs()
    prune_magnitude(module, 0.8, regularization=3.0)
    anneal_pruning(module, 0.7)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = network()
    prunings = prune_magnitude(other, 0.5, p=2.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert [(p.k, p.regularization, p.p) for p in prunings] == [(7, 0.7, 4 / 3), (16, 0.7, 4 / 3)]
    assert torch.equal(other(x), module(x))
    twin = copy.deepcopy(module)
    finish_pruning(twin)
    assert parametrize.is_parametrized(module[0]) and not parametrize.is_parametrized(twin[0])
    anneal_pruning(module, 1e-9)
    assert torch.equal(twin(x), module(x))


def test_a_sparse_weight_that_is_assigned_stays_as_it_is() -> None:
    layer = torch.nn.Linear(4, 2).double()
    prune_magnitude(layer, 0.75, regularization=9.0)
    weight = torch.tensor([[0.0, 1.0, 0, 0], [0, 0, -0.3, 0]], dtype=torch.float64)
    layer.weight = weight
    assert torch.equal(layer.weight, weight)


def test_which_weights() -> None:
    module = network()
    (pruning,) = prune_magnitude(module, 0.5, where=lambda name, weight: name == "2.weight")
    assert pruning.k == 40 and not parametrize.is_parametrized(module[0])


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 90, float("nan")])
def test_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(InputError, match=rf"sparsity must be in \[0, 1\), received {sparsity}"):
        prune_magnitude(network(), sparsity)


def test_other_errors_leave_the_module_as_it_was() -> None:
    module = network()
    with pytest.raises(InputError, match=r"sparsity=0.999 leaves none of the 36 entries of 0.weight"):
        prune_magnitude(module, 0.999)
    with pytest.raises(InputError, match="Sequential has no weight to prune"):
        prune_magnitude(module, 0.5, where=lambda name, weight: False)
    with pytest.raises(InputError, match="regularization must be positive and finite, received -1"):
        prune_magnitude(module, 0.5, regularization=-1)
    assert not parametrize.is_parametrized(module[0])
    with pytest.raises(InputError, match="no weight of Sequential is pruned; call prune_magnitude first"):
        finish_pruning(module)
    with pytest.raises(InputError, match="call prune_magnitude first"):
        anneal_pruning(module, 0.1)
    prune_magnitude(module, 0.5)
    with pytest.raises(InputError, match="has a parametrization already"):
        prune_magnitude(module, 0.5)
    with pytest.raises(InputError, match="received 0"):
        anneal_pruning(module, 0)
    tied = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match=r"1.weight and 0.weight are one weight, which two modules share"):
        prune_magnitude(tied, 0.5)
    with pytest.raises(InputError, match="k must be at least 0, received -3"):
        MagnitudePruning(-3)


def test_finishing_what_cannot_be_finished_finishes_nothing() -> None:
    module = network()
    prune_magnitude(module, 0.5)
    parametrize.register_parametrization(module[2], "weight", torch.nn.Identity())
    with pytest.raises(InputError, match="weight has 2 parametrizations, remove the others first"):
        finish_pruning(module)
    assert parametrize.is_parametrized(module[0])
