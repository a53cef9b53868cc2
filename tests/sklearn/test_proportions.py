"""The regression of proportions: scikit-learn's own checks, known answers, and what it refuses."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fenchel import InputError, f_softargmax
from fenchel.sklearn import ProportionRegressor

KINDS = [
    ProportionRegressor(),
    ProportionRegressor("alpha:2", loss="fitzpatrick"),
    ProportionRegressor("alpha:2"),
    ProportionRegressor("kl", loss="fitzpatrick"),
]
EACH = pytest.mark.parametrize("kind", KINDS, ids=str)


@parametrize_with_checks(KINDS[:2])
def test_scikit_learn_checks(estimator: ProportionRegressor, check: object) -> None:
    check(estimator)  # type: ignore[operator]


@pytest.mark.slow
@parametrize_with_checks(KINDS[2:])
def test_scikit_learn_checks_of_the_other_losses(estimator: ProportionRegressor, check: object) -> None:
    check(estimator)  # type: ignore[operator]


def planted(divergence: str, n: int = 60, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, proportions of a linear model, and its coefficients."""
    generator = np.random.default_rng(0)
    x, coef = generator.normal(size=(n, 3)), generator.normal(size=(4, 3))
    scores = x @ coef.T + noise * generator.normal(size=(n, 4))
    return x, f_softargmax(torch.from_numpy(scores), divergence).numpy(), coef - coef.mean(0)


@EACH
def test_recovers_the_model_that_made_the_proportions(kind: ProportionRegressor) -> None:
    x, y, coef = planted(kind.divergence)
    model = clone(kind).set_params(alpha=1e-9, tol=1e-9).fit(x, y)
    np.testing.assert_allclose(model.predict(x), y, atol=1e-5)
    assert model.score(x, y) > 1 - 1e-8 and model.bounds_ is None
    if kind.divergence == "kl":
        np.testing.assert_allclose(model.coef_ - model.coef_.mean(0), coef, atol=1e-4)


@EACH
def test_predictions_are_proportions_and_the_score_is_r2(kind: ProportionRegressor) -> None:
    x, y, _ = planted(kind.divergence, noise=1.0)
    model = clone(kind).set_params(alpha=1e-2).fit(x, y)
    predicted = model.predict(3 * x)
    assert (predicted >= 0).all() and predicted.shape == y.shape
    np.testing.assert_allclose(predicted.sum(1), 1, atol=1e-12)
    assert ((predicted == 0).any()) == (kind.divergence == "alpha:2")
    assert model.score(x, y) == pytest.approx(r2_score(y, model.predict(x)), abs=1e-15)


def test_kl_on_one_hot_rows_is_logistic_regression() -> None:
    x, y, _ = planted("kl", noise=1.0)
    label = y.argmax(1)
    ours = ProportionRegressor(alpha=0.01).fit(x, np.eye(4)[label])
    theirs = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=5000).fit(x, label)
    np.testing.assert_allclose(ours.predict(x), theirs.predict_proba(x), atol=1e-5)


def test_sparsemax_inside_the_simplex_is_ridge_regression() -> None:
    """Where no probability is clipped the loss is the squared error of the centred scores, halved."""
    x, y, _ = planted("kl", noise=0.3)
    y = 0.25 + 0.2 * (y - 0.25)
    ours = ProportionRegressor("alpha:2", alpha=0.1).fit(x, y)
    theirs = Ridge(alpha=0.1 * len(x)).fit(x, y)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), atol=1e-8)
    # The Fitzpatrick loss is half of the squared one there, so that the penalty counts double.
    other = ProportionRegressor("alpha:2", loss="fitzpatrick", alpha=0.05).fit(x, y)
    np.testing.assert_allclose(other.predict(x), theirs.predict(x), atol=1e-8)


@EACH
def test_a_quantity_between_bounds_is_the_share_of_two_labels(kind: ProportionRegressor) -> None:
    x, y, _ = planted(kind.divergence, noise=1.0)
    share = y[:, 0] + y[:, 1]
    one = clone(kind).set_params(alpha=0.02, bounds=(0.0, 1.0)).fit(x, share)
    # Two scores ±s/2 have half the penalty of one score s.
    two = clone(kind).set_params(alpha=0.04).fit(x, np.column_stack([1 - share, share]))
    np.testing.assert_allclose(one.predict(x), two.predict(x)[:, 1], atol=1e-7)
    assert one.predict(x).shape == (60,) and one.coef_.shape == (1, 3)
    scaled = clone(kind).set_params(alpha=0.02, bounds=(-3.0, 7.0)).fit(x, -3 + 10 * share)
    np.testing.assert_allclose(scaled.predict(x), -3 + 10 * one.predict(x), atol=1e-8)


@EACH
def test_the_bounds_are_by_default_the_range_of_the_targets(kind: ProportionRegressor) -> None:
    x, y, _ = planted(kind.divergence, noise=1.0)
    values = 5 * y[:, 0] - 1
    model = clone(kind).set_params(alpha=0.02).fit(x, values)
    assert model.bounds_ == (values.min(), values.max())
    given_bounds = clone(kind).set_params(alpha=0.02, bounds=model.bounds_).fit(x, values)
    np.testing.assert_allclose(model.predict(x), given_bounds.predict(x), atol=1e-12)
    inside = model.predict(100 * x)
    assert inside.min() >= values.min() - 1e-12 and inside.max() <= values.max() + 1e-12
    constant = clone(kind).fit(x, np.full(60, 4.0))
    np.testing.assert_array_equal(constant.predict(x), np.full(60, 4.0))
    # A sample without weight is as good as not there.
    below = (values < values.max()).astype(float)
    assert clone(kind).fit(x, values, below).bounds_[1] == values[below > 0].max()
    with pytest.warns(DataConversionWarning, match="column-vector"):
        clone(kind).fit(x, values[:, None])


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_the_order_of_labels_and_samples_does_not_matter(seed: int) -> None:
    x, y, _ = planted("alpha:2", noise=1.0)
    generator = np.random.default_rng(seed)
    rows, labels = generator.permutation(60), generator.permutation(4)
    model = ProportionRegressor("alpha:2", loss="fitzpatrick", alpha=1e-2).fit(x, y)
    moved = ProportionRegressor("alpha:2", loss="fitzpatrick", alpha=1e-2).fit(x[rows], y[rows][:, labels])
    np.testing.assert_allclose(moved.predict(x), model.predict(x)[:, labels], atol=1e-8)


@EACH
def test_sparse_features_give_the_same_model(kind: ProportionRegressor) -> None:
    x, y, _ = planted(kind.divergence, noise=1.0)
    x = np.where(np.abs(x) < 0.7, 0.0, x)
    dense = clone(kind).set_params(alpha=0.01).fit(x, y)
    model = clone(kind).set_params(alpha=0.01).fit(sparse.csr_array(x), y)
    np.testing.assert_allclose(model.predict(sparse.csc_array(x)), dense.predict(x), atol=1e-8)


def test_works_with_the_tools_of_scikit_learn() -> None:
    x, y, _ = planted("alpha:2", noise=0.5)
    pipeline = make_pipeline(StandardScaler(), ProportionRegressor("alpha:2", loss="fitzpatrick"))
    assert cross_val_score(pipeline, x, y, cv=4).mean() > 0.5
    grid = {"proportionregressor__alpha": [1e-3, 1e2], "proportionregressor__loss": ["fenchel-young"]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(x, y)
    assert search.best_params_["proportionregressor__alpha"] == 1e-3
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(x), search.predict(x))


@pytest.mark.parametrize(
    ("y", "options", "words"),
    [
        ([[0.5, 0.5], [0.5, 0.25]], {}, "row 1 sums to 0.75, and its least entry is 0.25"),
        ([[0.5, 0.5], [1.5, -0.5]], {}, "row 1 sums to 1, and its least entry is -0.5"),
        ([[1, 1], [1, 0]], {}, "row 0 sums to 2"),
        ([0.5, 1.5], {"bounds": (0, 1)}, r"in the bounds \[0, 1\], received 1.5 in row 1"),
        ([0.5, 0.6], {"bounds": (1, 0)}, r"lower < upper, received \(1, 0\)"),
        ([0.5, 0.6], {"bounds": (0, 1, 2)}, r"lower < upper, received \(0, 1, 2\)"),
        ([0.5, 0.6], {"bounds": 1.0}, r"lower < upper, received 1\.0"),
        ([0.5, 0.6], {"bounds": "ab"}, "lower < upper, received 'ab'"),
        ([[0.5, 0.5]] * 2, {"bounds": (0, 1)}, r"received bounds=\(0, 1\) and y of shape \(2, 2\)"),
        (sparse.csr_array(np.eye(2)), {}, r"must be a dense array, received a csr_array of shape \(2, 2\)"),
        ([0.5, 0.6], {"loss": "squared"}, "received 'squared'"),
        ([0.5, 0.6], {"divergence": "js", "loss": "fitzpatrick"}, "received 'js'"),
        ([0.5, 0.6], {"alpha": -1}, "alpha must be a number, at least 0 and finite, received -1"),
    ],
)
def test_what_is_refused(y: list, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ProportionRegressor(**options).fit([[0.0], [1.0]], y)


def test_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ProportionRegressor().fit([[0.0], [1.0]], [[0.5, math.nan], [0.5, 0.5]])
