from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fenchel import best_configuration, gibbs_marginals, local_search
from fenchel.errors import InputError
from fenchel.nn import Energy, PairwiseEnergy, Permutations, Subsets, UnaryEnergy
from fenchel.nn.energies import ConfigurationSpace

SPACES = [Subsets(7), Permutations(5)]


def coupled(space: ConfigurationSpace, rows: int) -> tuple[Energy, Tensor]:
    """A rugged energy, with couplings as large as the scores."""
    energy = (
        PairwiseEnergy(nn.Linear(3, space.width), space, couplings=nn.Linear(3, 2), rank=2)
        .double()
        .requires_grad_(False)
    )
    for weight in energy.parameters():
        nn.init.normal_(weight)
    return energy, torch.randn(rows, 3, dtype=torch.float64)


@pytest.mark.parametrize("space", SPACES, ids=repr)
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_brute_force(space: ConfigurationSpace, chunk: int) -> None:
    energy, x = coupled(space, 9)
    every = space.enumerate(dtype=torch.float64)
    found = best_configuration(partial(energy, x), every, chunk=chunk)
    torch.testing.assert_close(found, every[energy(x, every.unsqueeze(0)).argmax(-1)])
    tied = best_configuration(lambda y: torch.zeros(y.shape[:-1]), every, chunk=chunk)
    torch.testing.assert_close(tied, every[:1])  # at ties the first


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_the_search_climbs_to_a_local_maximum(space: ConfigurationSpace) -> None:
    energy, x = coupled(space, 40)
    for restarts in (1, 4):
        start = space.sample((40, restarts), dtype=torch.float64)
        found = local_search(partial(energy, x), start, space.neighbours)
        space.validate(found)
        reached = energy(x, found)
        assert (reached >= energy(x, start).amax(-1) - 1e-12).all()
        assert (reached >= energy(x, space.neighbours(found)).amax(-1) - 1e-12).all()
    # With a step at a time it climbs as well, and with enough of them arrives at the same place.
    y, last = start[:, :1], energy(x, start[:, 0])
    for _ in range(50):
        y = local_search(partial(energy, x), y, space.neighbours, max_steps=1).unsqueeze(1)
        value = energy(x, y).squeeze(1)
        assert (value >= last - 1e-12).all()
        last = value
    torch.testing.assert_close(y.squeeze(1), local_search(partial(energy, x), start[:, :1], space.neighbours))


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_with_restarts_it_finds_the_best(space: ConfigurationSpace) -> None:
    energy, x = coupled(space, 60)
    every = space.enumerate(dtype=torch.float64)
    best = energy(x, best_configuration(partial(energy, x), every))
    start = space.sample((60, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = energy(x, local_search(partial(energy, x), start, space.neighbours))
    assert (found <= best + 1e-12).all()
    assert (found >= best - 1e-12).double().mean() >= 0.95


def test_single_flips_reach_the_mode_of_independent_labels() -> None:
    energy, space = UnaryEnergy(nn.Linear(3, 30), Subsets(30)).double(), Subsets(30)
    x = torch.randn(10, 3).double()
    found = local_search(partial(energy, x), space.sample((10, 1), dtype=torch.float64), space.neighbours)
    torch.testing.assert_close(found, energy.decode(x))


def test_one_item_has_nowhere_to_go() -> None:
    start = torch.ones(3, 2, 1)
    found = local_search(lambda y: y.sum(-1), start, Permutations(1).neighbours)
    torch.testing.assert_close(found, torch.ones(3, 1))


def test_marginals_of_coupled_labels() -> None:
    space = Subsets(4)
    energy, x = coupled(space, 5)
    every = space.enumerate(dtype=torch.float64)
    expected = (energy(x, every.unsqueeze(0)) / 8).softmax(-1) @ every
    start = space.sample((5, 100), dtype=torch.float64)

    def estimate(rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return gibbs_marginals(
            lambda y: energy(x[rows], y) / 8, start[rows], sweeps=300, warm_up=50, generator=generator
        )

    found = estimate(slice(None))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert (expected - 0.5).abs().max() > 0.1  # the labels are not left to chance
    # A row alone has the estimate that it has among others.
    torch.testing.assert_close(estimate(slice(2, 3)), found[2:3])


def test_marginals_where_some_sets_are_impossible() -> None:
    """At least one of three labels: probability zero is never entered."""

    def log_density(y: Tensor) -> Tensor:
        return torch.where(y.sum(-1) >= 1, 0.0, -torch.inf)

    found = gibbs_marginals(
        log_density, torch.ones(1, 200, 3), sweeps=400, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found, torch.full((1, 3), 4 / 7), rtol=0, atol=0.02)


def test_energies_that_are_no_numbers() -> None:
    def nan_at_one(y: Tensor) -> Tensor:
        return torch.where(y.sum(-1) == 1, torch.nan, 0.0)

    space, start = Subsets(2), torch.zeros(1, 1, 2)
    message = r"energies of shape \(1, \d\) holds nan at \(0, [01]\)"
    with pytest.raises(InputError, match=message):
        best_configuration(nan_at_one, space.enumerate())
    with pytest.raises(InputError, match=message):
        local_search(nan_at_one, start, space.neighbours)
    with pytest.raises(InputError, match=message):
        gibbs_marginals(nan_at_one, start)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="chunk must be at least 1, received 0"):
        best_configuration(lambda y: y.sum(-1), torch.zeros(1, 2), chunk=0)
    with pytest.raises(InputError, match=r"configurations must be \(.Y., m\), received \(0, 2\)"):
        best_configuration(lambda y: y.sum(-1), torch.zeros(0, 2))
    with pytest.raises(InputError, match=r"start must be \(rows, restarts, m\), received \(3, 2\)"):
        local_search(lambda y: y.sum(-1), torch.zeros(3, 2), Subsets(2).neighbours)
    with pytest.raises(InputError, match=r"start must be \(rows, chains, m\), received \(3, 2\)"):
        gibbs_marginals(lambda y: y.sum(-1), torch.zeros(3, 2))
    with pytest.raises(InputError, match="sweeps must be at least 1"):
        gibbs_marginals(lambda y: y.sum(-1), torch.zeros(1, 1, 2), sweeps=0)
