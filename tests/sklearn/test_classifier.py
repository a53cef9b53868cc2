"""The linear classifier: scikit-learn's own checks, logistic regression, and the conditions of a minimum."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import optimize, sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fenchel import (
    InputError,
    f_softargmax,
    fenchel_young_loss,
    fitzpatrick_logistic_loss,
    fitzpatrick_sparsemax_loss,
)
from fenchel.sklearn import FenchelYoungClassifier

KINDS = [
    FenchelYoungClassifier(),
    FenchelYoungClassifier("alpha:2", loss="fitzpatrick"),
    FenchelYoungClassifier("alpha:2"),
    FenchelYoungClassifier("kl", loss="fitzpatrick"),
]
LOSSES = {
    ("kl", "fitzpatrick"): fitzpatrick_logistic_loss,
    ("alpha:2", "fitzpatrick"): fitzpatrick_sparsemax_loss,
}


@parametrize_with_checks(KINDS[:2])
def test_scikit_learn_checks(estimator: FenchelYoungClassifier, check: object) -> None:
    check(estimator)  # type: ignore[operator]


@pytest.mark.slow
@parametrize_with_checks(KINDS[2:])
def test_scikit_learn_checks_of_the_other_losses(estimator: FenchelYoungClassifier, check: object) -> None:
    check(estimator)  # type: ignore[operator]


def iris() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_kl_is_logistic_regression(classes: int, fit_intercept: bool, weighted: bool) -> None:
    X, y = iris()
    X, y = X[y < classes], np.array(["a", "b", "c"])[y[y < classes]]
    weight = np.random.default_rng(0).random(len(y)) + 0.1 if weighted else np.ones(len(y))
    class_weight = {"a": 2.0, "b": 1.0, "c": 0.5} if weighted else None
    scale = {"a": 2.0, "b": 1.0, "c": 0.5}
    total = sum(w * (scale[label] if weighted else 1.0) for w, label in zip(weight, y, strict=True))
    alpha = 0.02
    ours = FenchelYoungClassifier(alpha=alpha, fit_intercept=fit_intercept, class_weight=class_weight)
    ours.fit(X, y, weight)
    theirs = LogisticRegression(
        C=1 / (alpha * total),
        fit_intercept=fit_intercept,
        class_weight=class_weight,
        tol=1e-10,
        max_iter=5000,
    ).fit(X, y, weight)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
    assert (ours.predict(X) == theirs.predict(X)).all() and list(ours.classes_) == list(theirs.classes_)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-4)


@pytest.mark.parametrize(
    ("divergence", "loss"),
    [(d, "fenchel-young") for d in ("js", "alpha:1.5", "chi2", "reverse-kl")]
    + [(d, "fitzpatrick") for d in ("kl", "alpha:2")],
)
@pytest.mark.parametrize("classes", [2, 3])
def test_reaches_the_minimum_of_its_objective(divergence: str, loss: str, classes: int) -> None:
    """Against an objective that is written again, and minimised by another method."""
    X, y = iris()
    X, y = X[y < classes, :2], y[y < classes]
    alpha, outputs = 0.05, 1 if classes == 2 else 3
    model = FenchelYoungClassifier(divergence, loss=loss, alpha=alpha).fit(X, y)
    x, target = torch.from_numpy(X), torch.from_numpy(y)

    def objective(flat: np.ndarray) -> float:
        table = torch.from_numpy(flat).view(outputs, 3)
        scores = x @ table[:, :2].T + table[:, 2]
        if outputs == 1:
            scores = torch.cat([torch.zeros_like(scores), scores], 1)
        if loss == "fitzpatrick":
            mean = LOSSES[divergence, loss](scores, target)
        else:
            mean = fenchel_young_loss(scores, target, divergence)
        return float(mean + alpha / 2 * table[:, :2].square().sum())

    ours = np.column_stack([model.coef_, model.intercept_]).ravel()
    best = optimize.minimize(objective, ours + 0.05, method="BFGS", options={"gtol": 1e-7})
    assert objective(ours) <= best.fun + 1e-12
    slopes = optimize.approx_fprime(ours, objective, 1e-6)
    np.testing.assert_allclose(slopes, 0, atol=1e-5)
    p = f_softargmax(torch.from_numpy(np.atleast_2d(model.decision_function(X))), divergence)
    if classes == 3:
        np.testing.assert_allclose(model.predict_proba(X), p.numpy(), atol=1e-12)


def test_probabilities_of_a_sparse_divergence_are_sparse() -> None:
    X, y = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), FenchelYoungClassifier("alpha:2", alpha=1e-2)).fit(X, y)
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    assert (p >= 0).all() and (p == 0).mean() > 0.6
    assert model.score(X, y) > 0.95
    dense = make_pipeline(StandardScaler(), FenchelYoungClassifier("kl", alpha=1e-2)).fit(X, y)
    assert (dense.predict_proba(X) > 0).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_sparse_features_give_the_same_model(kind: FenchelYoungClassifier) -> None:
    X, y = iris()
    X = np.where(np.abs(X) < 0.7, 0.0, X)
    dense = clone(kind).set_params(alpha=0.01).fit(X, y)
    for form in (sparse.csr_matrix, sparse.csc_array, sparse.coo_array):
        model = clone(kind).set_params(alpha=0.01).fit(form(X), y)
        np.testing.assert_allclose(model.coef_, dense.coef_, atol=1e-8)
        np.testing.assert_allclose(model.predict_proba(form(X)), dense.predict_proba(X), atol=1e-8)


def test_works_with_the_tools_of_scikit_learn() -> None:
    X, y = iris()
    pipeline = make_pipeline(StandardScaler(), FenchelYoungClassifier("alpha:1.5"))
    assert cross_val_score(pipeline, X, y, cv=4).mean() > 0.9
    grid = {"fenchelyoungclassifier__alpha": [1e-3, 1e-1], "fenchelyoungclassifier__divergence": ["kl", "js"]}
    search = GridSearchCV(pipeline, grid, cv=3, scoring="neg_log_loss").fit(X, y)
    assert search.best_score_ > -0.3
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert (again.predict(X) == search.predict(X)).all()
    assert clone(pipeline).get_params()["fenchelyoungclassifier__divergence"] == "alpha:1.5"


def test_balanced_classes_and_constant_features() -> None:
    X, y = iris()
    keep = np.r_[0:50, 50:60]
    X, y = np.column_stack([X[keep, :2], np.ones(60)]), y[keep]
    balanced = FenchelYoungClassifier("js", class_weight="balanced", alpha=0.1).fit(X, y)
    by_hand = FenchelYoungClassifier("js", alpha=0.1).fit(X, y, np.where(y == 0, 60 / 100, 60 / 20))
    np.testing.assert_allclose(balanced.coef_, by_hand.coef_, atol=1e-9)
    # The intercept is free, so that a constant feature has nothing to do.
    np.testing.assert_allclose(balanced.coef_[:, 2], 0, atol=1e-7)


def test_warm_start_begins_where_the_last_fit_ended() -> None:
    X, y = iris()
    model = FenchelYoungClassifier("alpha:1.5", alpha=1e-3, warm_start=True).fit(X, y)
    cold, coef = model.n_iter_, model.coef_.copy()
    model.fit(X, y)
    assert model.n_iter_ <= 2 < cold
    np.testing.assert_allclose(model.coef_, coef, atol=1e-9)
    model.fit(X[y < 2], y[y < 2])  # of another shape: begins anew
    assert model.coef_.shape == (1, 4)


def test_progress_and_what_did_not_converge(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = iris()
    FenchelYoungClassifier(verbose=1).fit(X, y)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("[FenchelYoungClassifier] iteration 1: objective 0.")
    assert printed[1].startswith("[FenchelYoungClassifier] iteration 11: objective 0.")
    with pytest.warns(ConvergenceWarning, match="did not converge in max_iter=2"):
        FenchelYoungClassifier(max_iter=2).fit(X, y)
    with pytest.warns(ConvergenceWarning, match="did not converge after 0 steps"):  # no step goes down
        FenchelYoungClassifier().fit(1e150 * X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FenchelYoungClassifier().fit(X, y)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "hinge"}, "loss must be 'fenchel-young' or 'fitzpatrick', received 'hinge'"),
        ({"divergence": "js", "loss": "fitzpatrick"}, "there for the divergences kl, alpha:2, received 'js'"),
        ({"divergence": "k1"}, "unknown divergence 'k1'"),
        ({"alpha": -1.0}, "alpha must be a number, at least 0 and finite, received -1.0"),
        ({"alpha": math.inf}, "alpha must be a number, at least 0 and finite, received inf"),
        ({"max_iter": 0}, "max_iter must be an integer, at least 1, received 0"),
        ({"max_iter": True}, "max_iter must be an integer, at least 1, received True"),
        ({"max_iter": 2.5}, r"max_iter must be an integer, at least 1, received 2\.5"),
        ({"alpha": "auto"}, "alpha must be a number, at least 0 and finite, received 'auto'"),
        ({"tol": None}, "tol must be a number, positive and finite, received None"),
        ({"class_weight": {0: -1.0, 1: 1.0, 2: 1.0}}, r"class_weight must be >= 0 .* \{0: -1\.0, 1"),
        ({"class_weight": {0: math.nan, 1: 1.0, 2: 1.0}}, r"class_weight must be >= 0 .* \{0: nan, 1"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, "leave a sample of positive weight, received {0: 0, 1"),
        ({"tol": 0.0}, "tol must be a number, positive and finite, received 0.0"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    X, y = iris()
    with pytest.raises(InputError, match=words):
        FenchelYoungClassifier(**options).fit(X, y)


def test_bad_data() -> None:
    X, y = iris()
    with pytest.raises(InputError, match="at least two classes, received one class: 'a'"):
        FenchelYoungClassifier().fit(X, np.full(len(X), "a"))
    broken = X.copy()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        FenchelYoungClassifier().fit(broken, y)
    with pytest.raises(ValueError, match="X has 3 features, but FenchelYoungClassifier is expecting 4"):
        FenchelYoungClassifier().fit(X, y).predict(X[:, :3])
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        FenchelYoungClassifier().fit(X, y, -np.ones(len(y)))
