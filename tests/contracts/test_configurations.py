"""What every space of configurations, every decoder and the helpers of modules must satisfy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fenchel
from fenchel import InputError, OneHot, PairwiseEnergy, Permutations, Subsets
from fenchel.nn.energies import ConfigurationSpace, mlp

SPACES = [
    Subsets(4),
    Subsets(3, reference=(0.2, 0.5, 0.9)),
    OneHot(5),
    Permutations(4),
    Subsets(1),
    OneHot(1),
]


def everything(space: ConfigurationSpace) -> Tensor:
    return space.enumerate(dtype=torch.float64)


def reference(space: ConfigurationSpace) -> Tensor:
    """q of every configuration."""
    listed = everything(space)
    return space.log_reference(listed).exp().expand(len(listed))


@pytest.mark.parametrize("space", SPACES, ids=repr)
class TestSpaces:
    def test_enumeration_has_every_configuration_once(self, space: ConfigurationSpace) -> None:
        listed = everything(space)
        space.validate(listed)
        assert len(listed) == len(listed.unique(dim=0)) == round(math.exp(space.log_size))
        torch.testing.assert_close(reference(space).sum(), torch.ones((), dtype=torch.float64))

    def test_samples_follow_the_reference(self, space: ConfigurationSpace) -> None:
        drawn = space.sample((20_000,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        space.validate(drawn)
        found = (drawn.unsqueeze(1) == everything(space)).all(-1).double().mean(0)
        spread = (reference(space) / len(drawn)).sqrt()
        assert ((found - reference(space)).abs() <= 5 * spread).all()

    def test_features_have_mean_zero(self, space: ConfigurationSpace) -> None:
        q, listed = reference(space).unsqueeze(-1), everything(space)
        for features in (space.unary(listed), space.pairs(listed)):
            torch.testing.assert_close(
                (q * features).sum(0), features.new_zeros(features.shape[1]), atol=1e-12, rtol=0
            )

    def test_neighbours_are_configurations_and_mutual(self, space: ConfigurationSpace) -> None:
        for y in everything(space):
            near = space.neighbours(y)
            if len(near):
                space.validate(near)
                assert all((space.neighbours(one) == y).all(-1).any() for one in near)

    def test_the_mode_of_scores_is_their_best(self, space: ConfigurationSpace) -> None:
        scores = torch.randn(20, space.width, dtype=torch.float64)
        listed = everything(space)
        values = scores @ space.unary(listed).mT + space.log_reference(listed)
        mode = space.unary_mode(scores)
        space.validate(mode)
        found = (scores * space.unary(mode)).sum(-1) + space.log_reference(mode)
        torch.testing.assert_close(found, values.amax(-1))

    def test_what_is_no_configuration_is_quoted(self, space: ConfigurationSpace) -> None:
        with pytest.raises(InputError, match=r"row \(0,\) must be .*received \[7"):
            space.validate(torch.full((1, space.width), 7.0))


@pytest.mark.parametrize("space", [Subsets(5), Permutations(4)], ids=repr)
class TestDecoders:
    """best_configuration, local_search and gibbs_marginals against all energies."""

    def energies(self, space: ConfigurationSpace) -> tuple[PairwiseEnergy, Tensor, Tensor]:
        torch.manual_seed(0)
        energy = PairwiseEnergy(mlp(3, [4], space.width), space).double().requires_grad_(False)
        nn.init.normal_(energy.constant, std=0.3)  # weak enough for the chains to mix
        x = torch.randn(6, 3, dtype=torch.float64)
        return energy, x, energy(x, everything(space).unsqueeze(0))

    def test_enumeration_finds_the_best(self, space: ConfigurationSpace) -> None:
        energy, x, values = self.energies(space)
        best = fenchel.best_configuration(lambda y: energy(x, y), everything(space), chunk=7)
        torch.testing.assert_close(energy(x, best), values.amax(-1))

    def test_search_ends_where_no_neighbour_is_better(self, space: ConfigurationSpace) -> None:
        energy, x, values = self.energies(space)
        start = space.sample((6, 3), dtype=torch.float64)
        found = fenchel.local_search(lambda y: energy(x, y), start, space.neighbours)
        height = energy(x, found)
        assert (height >= energy(x, start).amax(-1)).all() and (height <= values.amax(-1) + 1e-12).all()
        assert (energy(x, space.neighbours(found)) <= height.unsqueeze(-1)).all()

    def test_marginals(self, space: ConfigurationSpace) -> None:
        if not isinstance(space, Subsets):
            return  # of subsets alone
        energy, x, values = self.energies(space)
        exact = values.softmax(-1) @ everything(space)
        found = fenchel.gibbs_marginals(
            lambda y: energy(x, y),
            torch.zeros(6, 8, space.width, dtype=torch.float64),
            sweeps=400,
            generator=torch.Generator().manual_seed(0),
        )
        torch.testing.assert_close(found, exact, atol=0.05, rtol=0)


def test_an_energy_of_your_own() -> None:
    class Size(fenchel.Energy):
        def energies(self, x: Tensor, y: Tensor) -> Tensor:
            return x * y.sum(-1)

    energy, x = Size(Subsets(3)), torch.tensor([[2.0], [-1.0]])
    assert energy(x, torch.ones(2, 3)).tolist() == [6.0, -3.0]
    best = fenchel.best_configuration(lambda y: energy(x, y), Subsets(3).enumerate())
    assert best.sum(-1).tolist() == [3.0, 0.0]
    with pytest.raises(InputError, match=r"must have shape \(2, 3\)"):
        energy(x, torch.ones(2, 4))


@pytest.mark.parametrize("p", [2.0, 4 / 3])
def test_pruning_from_the_first_to_the_last_step(p: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 5))
    fenchel.prune_magnitude(model, 0.75, regularization=0.1, p=p)
    fenchel.anneal_pruning(model, 1e-9)
    x = torch.randn(4, 10)
    soft = model(x)
    fenchel.finish_pruning(model)
    torch.testing.assert_close(model(x), soft, atol=1e-5, rtol=1e-4)
    assert [int((model[i].weight != 0).sum()) for i in (0, 2)] == [20, 10]
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_the_auxiliary_loss_is_the_sum_over_layers() -> None:
    layers = [fenchel.MoEFeedForward(4, 6, experts=3) for _ in range(2)]
    model, x = nn.Sequential(*layers), torch.randn(2, 9, 4)
    with pytest.raises(InputError, match="none of them has been called"):
        fenchel.auxiliary_loss(model)
    model(x)
    expected = sum(layer.router(inputs)[1] for layer, inputs in zip(layers, (x, layers[0](x)), strict=True))
    torch.testing.assert_close(fenchel.auxiliary_loss(model), expected)


def test_a_transport_is_its_parts() -> None:
    cost = torch.rand(3, 4, dtype=torch.float64)
    found = fenchel.entropic_transport(cost, tolerance=1e-12)
    assert isinstance(found, fenchel.Transport)
    plan, value, f, g, residual = found
    rows, columns = (plan.sum(-1) - 1 / 3).abs().max(), (plan.sum(-2) - 1 / 4).abs().max()
    torch.testing.assert_close(residual, torch.maximum(rows, columns))
    torch.testing.assert_close(f.mean(), g.mean())
    torch.testing.assert_close(value, f.mean() + g.mean())
