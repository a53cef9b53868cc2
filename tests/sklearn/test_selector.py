"""Feature selection: scikit-learn's own checks, features that are known, and clear errors."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from fenchel import InputError, topk_mask
from fenchel.sklearn import SoftTopKSelector, selector

FEW = {"max_epochs": 20, "random_state": 0}


@parametrize_with_checks([SoftTopKSelector(max_epochs=10)])
def test_scikit_learn_accepts_it(estimator: Any, check: Any) -> None:
    check(estimator)


def regression(seed: int, n: int = 128, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Three of the features make the target, on very different scales."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.logspace(-3, 3, d) + 5
    y = 2 * x[:, 1] / x[:, 1].std() - x[:, 6] / x[:, 6].std() + 1.5 * x[:, 11] / x[:, 11].std()
    return x, y + 0.1 * rng.normal(size=n)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_features_of_a_linear_target(seed: int) -> None:
    x, y = regression(seed)
    model = SoftTopKSelector(3, random_state=0).fit(x, y)
    assert model.get_support(indices=True).tolist() == [1, 6, 11]
    assert np.array_equal(model.transform(x), x[:, [1, 6, 11]])
    assert model.n_features_to_select_ == 3
    assert model.loss_curve_[-1] < 0.05 < model.loss_curve_[0]


def test_of_two_features_that_say_the_same_it_takes_one() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 400))
    x = np.stack([a, a + 1e-3 * rng.normal(size=400), 0.6 * b, *rng.normal(size=(3, 400))], 1)
    support = SoftTopKSelector(2, random_state=0).fit(x, a + 0.6 * b).get_support()
    assert support[2] and support[:2].sum() == 1


def test_several_classes_and_several_targets() -> None:
    x, y = make_classification(
        500,
        10,
        n_informative=3,
        n_redundant=0,
        n_classes=3,
        n_clusters_per_class=1,
        shuffle=False,
        random_state=3,
    )
    names = np.array(["a", "b", "c"])[y]
    assert SoftTopKSelector(3, max_epochs=50, random_state=0).fit(x, names).get_support(
        indices=True
    ).tolist() == [0, 1, 2]
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 6))
    both = np.stack([x[:, 5], 2 * x[:, 2]], 1)
    assert SoftTopKSelector(2, max_epochs=50, random_state=0).fit(x, both).get_support(
        indices=True
    ).tolist() == [2, 5]
    counts = np.round(3 * x[:, 4]).astype(int)
    model = SoftTopKSelector(1, loss="squared", max_epochs=50, random_state=0).fit(x, counts)
    assert model.get_support(indices=True).tolist() == [4]


def test_sparse_features_give_the_same_scores() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(120, 15)) * (rng.random((120, 15)) < 0.2) + 0.0
    y = x[:, 3] - x[:, 9] > 0
    dense = SoftTopKSelector(2, **FEW).fit(x, y)
    for form in (sparse.csr_array, sparse.csc_matrix, sparse.coo_array):
        model = SoftTopKSelector(2, **FEW).fit(form(x), y)
        np.testing.assert_allclose(model.scores_, dense.scores_, rtol=1e-7, atol=1e-9)
    assert sparse.issparse(model.transform(sparse.csr_array(x)))


def test_scales_and_shifts_of_features_change_nothing() -> None:
    x, y = regression(4)
    first = SoftTopKSelector(3, **FEW).fit(x, y)
    moved = SoftTopKSelector(3, **FEW).fit(x * np.linspace(0.5, 2, 12) - 3, 7 * y + 1)
    np.testing.assert_allclose(moved.scores_, first.scores_, rtol=1e-5, atol=1e-7)


def test_pipelines_searches_clones_and_pickles() -> None:
    x, y = make_classification(
        128, 12, n_informative=4, n_redundant=0, n_clusters_per_class=1, shuffle=False, random_state=0
    )
    pipeline = make_pipeline(SoftTopKSelector(4, **FEW), LogisticRegression())
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.8
    search = GridSearchCV(pipeline, {"softtopkselector__n_features_to_select": [1, 4]}, cv=3).fit(x, y)
    assert search.best_params_ == {"softtopkselector__n_features_to_select": 4}
    model = SoftTopKSelector(4, **FEW).fit(x, y)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).get_support(), model.get_support())
    again = clone(model).fit(x, y)
    assert np.array_equal(again.scores_, model.scores_)
    kept = model.get_feature_names_out([f"f{i}" for i in range(12)])
    assert kept.tolist() == [f"f{i}" for i in model.get_support(indices=True)]


def test_constant_features_are_never_selected() -> None:
    x, y = regression(5)
    x[:, [0, 4, 8]] = [0.0, 0.1, 1e6]
    model = SoftTopKSelector(9, **FEW).fit(x, y)
    assert np.isneginf(model.scores_[[0, 4, 8]]).all() and np.isfinite(model.scores_).sum() == 9
    assert not model.get_support()[[0, 4, 8]].any()
    assert model.fit(sparse.csr_array(x), y).get_support().sum() == 9
    with pytest.raises(
        InputError, match=r"3 of 12 features are constant, such as column 0, and cannot .* is 10"
    ):
        SoftTopKSelector(10, **FEW).fit(x, y)


def test_the_regularization_falls_from_the_first_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def spied(scores: Any, k: int, *, regularization: float, p: float) -> Any:
        seen.append(regularization)
        return topk_mask(scores, k, regularization=regularization, p=p)

    monkeypatch.setattr(selector, "topk_mask", spied)
    x, y = regression(0)
    SoftTopKSelector(3, regularization=(1.0, 0.01), max_epochs=5, batch_size=128, random_state=0).fit(x, y)
    np.testing.assert_allclose(seen, np.geomspace(1.0, 0.01, 5))


def test_verbose_tells_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = regression(6, n=40)
    model = SoftTopKSelector(3, max_epochs=4, verbose=2, random_state=0).fit(x, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and f"loss {model.loss_curve_[-1]:.6g}" in lines[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_features_to_select": 0}, r"in \[1, 3\], the number of features, received 0"),
        ({"n_features_to_select": 4}, "received 4"),
        ({"n_features_to_select": 1.5}, "received 1.5"),
        ({"alpha": -1.0}, "alpha must be a number, at least 0 and finite, received -1.0"),
        ({"max_epochs": 0}, "max_epochs must be an integer, at least 1, received 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer, at least 1, received 2.5"),
        ({"learning_rate": 0.0}, "learning_rate must be a number, positive and finite, received 0.0"),
        ({"alpha": "x"}, "alpha must be a number, at least 0 and finite, received 'x'"),
        ({"loss": "hinge"}, "loss must be one of auto, softmax, squared, received 'hinge'"),
        ({"p": 3.0}, r"p must be in \(1, 2\], received 3.0"),
        ({"p": "x"}, "p must be a number, positive and finite, received 'x'"),
        ({"regularization": (1.0, 0.1, 0.1)}, r"must be two numbers, .* received \(1.0, 0.1, 0.1\)"),
        ({"regularization": "ab"}, "must be two numbers, .* received 'ab'"),
        ({"regularization": (1.0, 0.0)}, "regularization must be positive and finite, received 0.0"),
        ({"regularization": (1.0, -0.5)}, "regularization must be positive and finite, received -0.5"),
        ({"regularization": 0.1}, "regularization must be two numbers, .* received 0.1"),
        ({"y": ["a", "a", "a", "a"]}, "needs samples of at least two classes, received one class: 'a'"),
        ({"y": [2.5, 2.5, 2.5, 2.5]}, "a target that is 2.5 for all samples selects nothing"),
        (
            {"y": [0.5, 1.5, 2.5, 3.5], "loss": "softmax"},
            "needs a class for each sample, received a continuous",
        ),
    ],
)
def test_errors_quote_what_was_received(options: dict[str, Any], words: str) -> None:
    x = np.arange(12.0).reshape(4, 3) % 5
    y = options.pop("y", [0, 1, 0, 1])
    with pytest.raises(InputError, match=words):
        SoftTopKSelector(**options).fit(x, y)
