from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch

from fenchel.errors import InputError
from fenchel.nn import OneHot, Permutations, Subsets
from fenchel.nn.energies import ConfigurationSpace

RARE = Subsets(3, (0.1, 0.6, 0.95))
SPACES = [
    Subsets(1),
    Subsets(4),
    RARE,
    OneHot(1),
    OneHot(5),
    Permutations(1),
    Permutations(4),
    Permutations(5),
]


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_enumeration_is_every_configuration_once(space: ConfigurationSpace) -> None:
    every = space.enumerate(dtype=torch.float64)
    assert len(every) == round(math.exp(space.log_size)) == len(every.unique(dim=0))
    space.validate(every)
    if isinstance(space, Permutations):
        found = sorted(map(tuple, every.long().tolist()))
        assert found == sorted(itertools.permutations(range(1, space.width + 1)))


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_samples_are_of_the_reference(space: ConfigurationSpace) -> None:
    draws = space.sample((100, 200), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert draws.shape == (100, 200, space.width) and draws.dtype == torch.float64
    space.validate(draws)
    found, counts = draws.flatten(0, 1).unique(dim=0, return_counts=True)
    size = round(math.exp(space.log_size))
    assert len(found) == size
    expected = 20_000 * space.log_reference(found).exp()
    assert expected.sum().item() == pytest.approx(20_000)
    if space is not RARE:
        torch.testing.assert_close(expected, torch.full_like(expected, 20_000 / size))
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert chi2 < size - 1 + 4.5 * math.sqrt(2 * size)
    again = space.sample((100, 200), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(draws, again)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_features_have_mean_zero(space: ConfigurationSpace) -> None:
    every = space.enumerate(dtype=torch.float64)
    q = space.log_reference(every).exp()
    for features in (space.unary(every), space.pairs(every)):
        torch.testing.assert_close(q @ features, torch.zeros_like(features[0]), rtol=0, atol=1e-12)
    if isinstance(space, Permutations):
        torch.testing.assert_close(
            space.assignment(every).mean(0), torch.zeros(space.width**2).double(), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_the_mode_of_scores_is_that_of_enumeration(space: ConfigurationSpace) -> None:
    scores = torch.randn(3, 20, space.width, dtype=torch.float64)
    every = space.enumerate(dtype=torch.float64)
    best = every[(scores @ space.unary(every).T + space.log_reference(every)).argmax(-1)]
    if isinstance(space, Permutations) and space.width == 1:
        best = torch.ones_like(best)
    torch.testing.assert_close(space.unary_mode(scores), best)


@pytest.mark.parametrize("space", [Subsets(6), RARE, OneHot(5)], ids=repr)
def test_the_closed_log_partition_is_that_of_enumeration(space: ConfigurationSpace) -> None:
    scores = torch.randn(4, space.width, dtype=torch.float64) * 3
    sets = space.enumerate(dtype=torch.float64)
    every, log_q = space.unary(sets), space.log_reference(sets)
    expected = torch.logsumexp(scores @ every.T + log_q, -1)
    torch.testing.assert_close(space.unary_log_partition(scores), expected)
    # Scores of zero, with which training may begin, are no kink.
    zeros = torch.zeros(space.width, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(space.unary_log_partition, zeros)
    torch.testing.assert_close(hessian, every.T @ (every * log_q.exp().unsqueeze(-1)))
    if isinstance(space, Subsets):
        p = (scores @ every.T + log_q).softmax(-1)
        torch.testing.assert_close(space.marginals(scores), p @ sets)
    huge = space.unary_log_partition(torch.full((space.width,), 1e4, dtype=torch.float32))
    assert torch.isfinite(huge)
    with pytest.raises(InputError, match=r"Permutations\(width=3\) has no closed form"):
        Permutations(3).unary_log_partition(scores[:, :3])


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_neighbours_are_one_move_away(space: ConfigurationSpace) -> None:
    y = space.sample((3, 2), dtype=torch.float64)
    near = space.neighbours(y)
    space.validate(near)
    changed = (near != y.unsqueeze(-2)).sum(-1)
    k = space.width
    moves, differ = {
        Subsets: (k, {1}),
        OneHot: (k, {0, 2} if k > 1 else {0}),
        Permutations: (k * (k - 1) // 2, {2}),
    }[type(space)]
    assert near.shape == (3, 2, moves, k)
    assert set(changed.unique().tolist()) <= differ
    assert all(len(row.unique(dim=0)) == moves for row in near.flatten(0, 1))


@pytest.mark.parametrize(
    ("space", "y", "message"),
    [
        (Subsets(2), [[0.0, 1.0], [0.5, 1.0]], r"row \(1,\) must be a row of 0 and 1, received \[0.5, 1.0\]"),
        (Subsets(2), [[0.0, 1.0, 0.0]], r"have 2 numbers, received shape \(1, 3\)"),
        (OneHot(2), [[1.0, 1.0]], r"must be one-hot, received \[1.0, 1.0\]"),
        (Permutations(3), [[1.0, 2.0, 2.0]], r"every position once\), received \[1.0, 2.0, 2.0\]"),
        (Permutations(3), [[0.0, 1.0, 2.0]], r"received \[0.0, 1.0, 2.0\]"),
        (Subsets(1), [[math.nan]], r"received \[nan\]"),
    ],
)
def test_validation_quotes_the_row(space: ConfigurationSpace, y: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        space.validate(torch.tensor(y))


def test_a_reference_of_one_half_is_the_uniform_one() -> None:
    one, other = Subsets(4), Subsets(4, [0.5] * 4)  # type: ignore[arg-type]
    every = one.enumerate(dtype=torch.float64)
    for name in ("unary", "pairs", "log_reference"):
        assert torch.equal(getattr(one, name)(every), getattr(other, name)(every))
    assert hash(other) == hash(Subsets(4, (0.5,) * 4)) and pickle.loads(pickle.dumps(RARE)) == RARE


def test_what_is_refused() -> None:
    for reference in ((0.5,), (0.5, 1.0), (0.0, 0.5), (math.nan, 0.5)):
        with pytest.raises(InputError, match=r"2 probabilities inside of \(0, 1\), received \("):
            Subsets(2, reference)
    with pytest.raises(InputError, match=r"width=21\) has 2\^21.0 configurations, and at most 2\^20"):
        Subsets(21).enumerate()
    with pytest.raises(InputError, match="Permutations"):
        Permutations(10).enumerate()
    for kind in (Subsets, OneHot, Permutations):
        with pytest.raises(InputError, match="width must be a whole number of at least 1, received 0"):
            kind(0)
        with pytest.raises(InputError, match=r"a whole number of at least 1, received 2\.5"):
            kind(2.5)
        with pytest.raises(InputError, match="a whole number of at least 1, received True"):
            kind(True)
        assert kind(np.int64(3)) == kind(3) and kind(np.int64(3)).enumerate().shape[1] == 3
