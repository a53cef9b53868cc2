from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.stats import kendalltau, rankdata
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from fenchel.errors import InputError
from fenchel.nn import Permutations
from fenchel.sklearn import LabelRanker
from fenchel.sklearn.ranker import positions_of

ENERGIES = ["linear", "mlp", "pairwise", "assignment", "bilinear", "joint"]


def problem(n: int = 200, d: int = 4, k: int = 4, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d))
    scores = X @ rng.normal(size=(d, k)) + noise * rng.normal(size=(n, k))
    return X, rankdata(-scores, axis=1).astype(int)


def quick(energy: Any = "mlp", **options: Any) -> LabelRanker:
    settings = {"max_epochs": 5, "hidden_layer_sizes": (8,), "partition_layer_sizes": (8,), "random_state": 0}
    return LabelRanker(energy, **settings | options)


@pytest.mark.parametrize("energy", ["mlp", pytest.param(None, marks=pytest.mark.slow)])
def test_check_estimator(energy: str | None) -> None:
    found = check_estimator(LabelRanker() if energy is None else quick(energy), on_skip=None, on_fail=None)
    assert {
        (each["check_name"], str(each["exception"])) for each in found if each["status"] == "failed"
    } == set()
    assert {each["check_name"] for each in found if each["status"] == "skipped"} <= {"check_array_api_input"}
    assert len(found) > 30


def test_in_pipelines_searches_and_pickles() -> None:
    X, Y = problem()
    pipeline = make_pipeline(StandardScaler(), quick("linear", samples=None, max_epochs=200))
    assert cross_val_score(pipeline, X, Y, cv=3).mean() > 0.85
    search = GridSearchCV(quick("linear", samples=None, max_epochs=200), {"alpha": [1e-3, 1e3]}, cv=3)
    assert search.fit(X, Y).best_params_ == {"alpha": 1e-3}
    model = quick().fit(X, Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    np.testing.assert_array_equal(clone(model).fit(X, Y).log_partition(X), model.log_partition(X))
    thin = quick().fit(sparse.csr_array(X), Y)
    np.testing.assert_array_equal(thin.predict(sparse.csr_array(X)), model.predict(X))


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("samples", [None, 20])
def test_every_energy_learns_the_order(energy: str, samples: int | None) -> None:
    X, Y = problem()
    model = quick(energy, samples=samples, max_epochs=40, hidden_layer_sizes=(16,), learning_rate=1e-2)
    model.fit(X[:150], Y[:150])
    assert model.score(X[150:], Y[150:]) > 0.6
    found = model.predict(X)
    model.space_.validate(torch.tensor(found, dtype=torch.float64))
    every = Permutations(4).enumerate(dtype=torch.float64)
    g = model.energy_(torch.tensor(X), every.unsqueeze(0))
    torch.testing.assert_close(model.energy_(torch.tensor(X), torch.tensor(found).double()), g.amax(-1))
    exact = torch.logsumexp(g, -1) - np.log(24)
    np.testing.assert_allclose(model.exact_log_partition(X), exact.numpy(), atol=1e-10)


def test_the_convex_fit_is_the_optimum() -> None:
    X, Y = problem(n=60, noise=2.0)
    model = quick("linear", samples=None, max_epochs=500, alpha=0.1, tol=1e-8).fit(X, Y)
    x, y = torch.tensor(X), torch.tensor(Y).double()
    features = Permutations(4).unary(Permutations(4).enumerate(dtype=torch.float64))
    weight = model.energy_.network.weight.clone().requires_grad_()
    scores = x @ weight.T + model.energy_.network.bias
    nll = torch.logsumexp(scores @ features.T, -1) - (scores * Permutations(4).unary(y)).sum(-1)
    (gradient,) = torch.autograd.grad(nll.mean() + 0.05 * weight.square().sum(), weight)
    assert gradient.abs().max() < 1e-7


def test_the_score_is_kendalls_tau() -> None:
    X, Y = problem(k=5, noise=3.0)
    model = quick().fit(X, Y)
    found = model.predict(X)
    expected = np.mean([kendalltau(a, b).statistic for a, b in zip(Y, found, strict=True)])
    assert model.score(X, Y) == pytest.approx(expected, abs=1e-12)
    assert model.score(X, found) == 1.0 and model.score(X, 6 - found) == -1.0


@pytest.mark.parametrize("energy", ["pairwise", "bilinear"])
def test_more_items_than_can_be_enumerated(energy: str) -> None:
    X, Y = problem(n=80, k=8)
    model = quick(energy, hidden_layer_sizes=(), max_epochs=30).fit(X, Y)
    x, found = torch.tensor(X[:10]), torch.tensor(model.predict(X[:10])).double()
    model.space_.validate(found)
    reached = model.energy_(x, found)
    best = model.energy_(x, Permutations(8).enumerate(dtype=torch.float64).unsqueeze(0)).amax(-1)
    assert (reached <= best + 1e-9).all() and (reached >= best - 1e-9).double().mean() >= 0.8


def test_renaming_the_items_renames_the_predictions() -> None:
    X, Y = problem()
    order = [2, 0, 3, 1]
    options = {"samples": None, "max_epochs": 500, "alpha": 0.01, "tol": 1e-9}
    one, other = quick("linear", **options).fit(X, Y), quick("linear", **options).fit(X, Y[:, order])
    np.testing.assert_array_equal(other.predict(X), one.predict(X)[:, order])


# -- Targets.


def test_values_are_ranked_with_the_smallest_first() -> None:
    values = np.array([[0.5, -2.0, 9.25], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(positions_of(values), [[2, 1, 3], [1, 2, 3]])
    np.testing.assert_array_equal(positions_of(values), rankdata(values, axis=1))
    np.testing.assert_array_equal(positions_of(np.array([[3.0, 1.0, 2.0]])), [[3, 1, 2]])
    np.testing.assert_array_equal(positions_of(np.array([[7.0], [-1.0]])), [[1], [1]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 2, 2], r"row 1 of y must be a permutation of 1, ..., 3, received \[1.0, 2.0, 2.0\]: .*repeated"),
        ([1, 2, 4], r"received \[1.0, 2.0, 4.0\]: a position is repeated or missing"),
        ([0, 1, 2], r"received \[0.0, 1.0, 2.0\]"),
        ([0.5, 0.5, 1], r"row 1 of y must be values without ties, received \[0.5, 0.5, 1.0\]"),
    ],
)
def test_bad_rankings_are_quoted(row: list[float], message: str) -> None:
    X, _ = problem(n=2)
    with pytest.raises(InputError, match=message):
        quick().fit(X, np.array([[3, 1, 2], row]))


def test_bad_data() -> None:
    X, Y = problem(n=30)
    with pytest.raises(
        InputError, match=r"one row of positions for each example, \(n, k\), received \(30,\)"
    ):
        quick().fit(X, Y[:, 0])
    with pytest.raises(ValueError, match="NaN"):
        quick().fit(X, np.where(Y == 1, np.nan, Y))
    for refused in (quick().fit, quick(max_epochs=1).fit(X, Y).score):
        with pytest.raises(
            InputError, match=r"dense table of positions, received a sparse one of shape \(30, 3\)"
        ):
            refused(X, sparse.csr_array(np.tile([1, 2, 3], (30, 1))))
    with pytest.raises(InputError, match=r"at most 4096, and Permutations\(width=7\)"):
        quick(samples=None).fit(X, np.tile(np.arange(1, 8), (30, 1)))
    model = quick(max_epochs=1).fit(X, Y)
    with pytest.raises(InputError, match=r"must rank 4 items for 30 rows of X, received shape \(30, 3\)"):
        model.score(X, np.tile([1, 2, 3], (30, 1)))
    with pytest.raises(ValueError, match="expecting 4 features"):
        model.predict(X[:, :2])
    with pytest.raises(InputError, match="received 'assignmint'"):
        quick("assignmint").fit(X, Y)
