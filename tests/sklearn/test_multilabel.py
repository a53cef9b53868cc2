from __future__ import annotations

import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from fenchel import divergence, f_softargmax
from fenchel.errors import InputError
from fenchel.nn import PairwiseEnergy, Subsets
from fenchel.sklearn import MultilabelEnergyClassifier, _energy
from fenchel.sklearn._energy import _Stopper


def problem(n: int = 200, d: int = 5, m: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels that depend on x, and the last on the first two."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    Y = (X @ rng.normal(size=(d, m)) + 0.5 * rng.normal(size=(n, m)) > 0).astype(int)
    Y[:, -1] = Y[:, 0] ^ Y[:, 1]
    return X, Y


def quick(energy: Any = "pairwise", **options: Any) -> MultilabelEnergyClassifier:
    settings = {"max_epochs": 5, "hidden_layer_sizes": (8,), "partition_layer_sizes": (8,), "random_state": 0}
    return MultilabelEnergyClassifier(energy, **settings | options)


def seed_of(random_state: int) -> int:
    return int(np.random.RandomState(random_state).randint(2**31 - 1))


# -- scikit-learn's own requirements.


@pytest.mark.parametrize(
    "energy",
    ["linear", pytest.param("pairwise", marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)],
)
def test_check_estimator(energy: str | None) -> None:
    model = MultilabelEnergyClassifier() if energy is None else quick(energy, max_epochs=30)
    found = check_estimator(model, on_skip=None, on_fail=None)
    assert {
        (each["check_name"], str(each["exception"])) for each in found if each["status"] == "failed"
    } == set()
    skipped = {each["check_name"] for each in found if each["status"] == "skipped"}
    assert skipped <= {
        "check_array_api_input",
        "check_classifiers_multilabel_output_format_decision_function",
    }
    assert len(found) > 50


def test_in_pipelines_searches_and_pickles() -> None:
    X, Y = problem()
    pipeline = make_pipeline(StandardScaler(), quick("linear", samples=None, max_epochs=200))
    assert cross_val_score(pipeline, X, Y, cv=3).mean() > 0.3
    search = GridSearchCV(quick("linear", samples=None, max_epochs=200), {"alpha": [1e-3, 1e3]}, cv=3)
    assert search.fit(X, Y).best_params_ == {"alpha": 1e-3}
    model = quick().fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(clone(model).fit(X, Y).predict_proba(X), model.predict_proba(X))


def test_sparse_input_is_dense_input() -> None:
    X, Y = problem()
    X[np.abs(X) < 0.5] = 0
    for options in ({}, {"energy": "linear", "samples": None, "max_epochs": 100}):
        dense, thin = (
            quick(**options).fit(X, Y),
            quick(**options).fit(sparse.csr_array(X), sparse.csr_array(Y)),
        )
        np.testing.assert_array_equal(thin.predict_proba(sparse.csr_matrix(X)), dense.predict_proba(X))
        np.testing.assert_array_equal(thin.log_partition(sparse.csc_array(X)), dense.log_partition(X))


# -- Right answers.


def test_the_exact_linear_model_is_logistic_regression_of_each_label() -> None:
    X, Y = problem(n=150, m=3)
    alpha = 0.01
    ours = MultilabelEnergyClassifier("linear", samples=None, alpha=alpha, max_epochs=500, tol=1e-9).fit(X, Y)
    for i in range(3):
        peer = LogisticRegression(C=1 / (alpha * len(X)), tol=1e-10, max_iter=10_000).fit(X, Y[:, i])
        np.testing.assert_allclose(ours.energy_.network.weight[i].numpy(), peer.coef_[0], atol=1e-6)
        np.testing.assert_allclose(ours.predict_proba(X)[:, i], peer.predict_proba(X)[:, 1], atol=1e-6)
        np.testing.assert_array_equal(ours.predict(X)[:, i], peer.predict(X))
    np.testing.assert_allclose(ours.log_partition(X), ours.exact_log_partition(X))


def test_the_exact_linear_model_of_classes_is_multinomial_logistic_regression() -> None:
    X, _ = problem(n=150)
    y = np.array(["b", "a", "c"])[np.argmax(X[:, :3], 1)]
    ours = MultilabelEnergyClassifier("linear", samples=None, alpha=0.02, max_epochs=500, tol=1e-9).fit(X, y)
    peer = LogisticRegression(C=1 / (0.02 * len(X)), tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), peer.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(ours.predict(X), peer.predict(X))
    assert ours.classes_.tolist() == ["a", "b", "c"] and ours.score(X, y) == peer.score(X, y)


@pytest.mark.parametrize("energy", ["linear", "mlp", "pairwise", "bilinear", "joint"])
@pytest.mark.parametrize("name", ["generalized-kl", "alpha:2"])
def test_predictions_are_those_of_enumeration(energy: str, name: str) -> None:
    X, Y = problem()
    model = quick(energy, divergence=name).fit(X, Y)
    every = Subsets(4).enumerate(dtype=torch.float64)
    g = model.energy_(torch.tensor(X), every.unsqueeze(0))
    p = f_softargmax(g, name, reference=1 / 16)
    np.testing.assert_allclose(model.predict_proba(X), (p @ every).numpy(), atol=1e-12)
    reached = model.energy_(torch.tensor(X), torch.tensor(model.predict(X), dtype=torch.float64))
    torch.testing.assert_close(reached, g.amax(-1))
    if name == "generalized-kl":
        exact = torch.logsumexp(g, -1).numpy() - math.log(16)
        np.testing.assert_allclose(model.exact_log_partition(X), exact, atol=1e-10)
    tau = model.partition_(torch.tensor(X)).numpy()
    np.testing.assert_array_equal(model.log_partition(X), tau)


def test_the_learned_log_partition_is_within_one_per_cent_of_enumeration() -> None:
    X, Y = problem(n=120)
    options = {"samples": 64, "max_epochs": 60, "partition_epochs": 300, "partition_layer_sizes": (32, 32)}
    model = quick(learning_rate=5e-3, alpha=1e-2, **options).fit(X, Y)
    exact, learned = model.exact_log_partition(X), model.log_partition(X)
    relative = np.abs(learned - exact) / (exact + Subsets(4).log_size)  # of log Σ exp g
    assert relative.mean() < 0.01
    assert exact.std() > 0.3  # it is a function, not a constant


def test_passes_for_the_log_partition_leave_the_predictions() -> None:
    X, Y = problem()
    short, long = quick().fit(X, Y), quick(partition_epochs=40).fit(X, Y)
    np.testing.assert_array_equal(short.predict_proba(X), long.predict_proba(X))
    errors = [np.abs(each.log_partition(X) - each.exact_log_partition(X)).mean() for each in (short, long)]
    assert errors[1] < errors[0]


def test_joint_training_approaches_the_exact_one() -> None:
    X, Y = problem(n=300)
    options = {"max_epochs": 60, "hidden_layer_sizes": (32,), "learning_rate": 1e-2}
    exact, joint = (quick(samples=samples, **options).fit(X, Y).score(X, Y) for samples in (None, 100))
    assert exact > 0.65  # of 16 sets
    assert abs(exact - joint) < 0.06


@pytest.mark.parametrize("name", ["generalized-kl", "alpha:2"])
def test_more_labels_than_can_be_enumerated(name: str) -> None:
    X, Y = problem(n=100, m=14)
    model = quick(divergence=name, hidden_layer_sizes=(), max_epochs=20).fit(X, Y)
    x, found = torch.tensor(X[:20]), model.predict(X[:20])
    every = model.space_.enumerate(dtype=torch.float64)
    best = model.energy_(x, every.unsqueeze(0)).amax(-1)
    reached = model.energy_(x, torch.tensor(found, dtype=torch.float64))
    assert (reached <= best + 1e-9).all() and (reached >= best - 1e-9).double().mean() >= 0.9
    marginals = model.predict_proba(X[:4])
    assert ((marginals >= 0) & (marginals <= 1)).all()
    np.testing.assert_allclose(model.predict_proba(X[2:4]), marginals[2:], atol=1e-12)
    tau = torch.tensor(model.log_partition(X[:4])).unsqueeze(-1)
    p = divergence(name).conjugate_derivative(model.energy_(x[:4], every.unsqueeze(0)) - tau)
    expected = p @ every / p.sum(-1, keepdim=True)
    assert np.abs(marginals - expected.numpy()).mean() < 0.05
    if name == "generalized-kl":
        np.testing.assert_allclose(
            model.exact_log_partition(X[:4]),
            (torch.logsumexp(model.energy_(x[:4], every.unsqueeze(0)), -1) - 14 * math.log(2)).numpy(),
        )


def test_independent_labels_need_no_enumeration() -> None:
    X, Y = problem(n=100, m=30)
    for name in ("generalized-kl", "kl"):
        model = quick("linear", samples=None, divergence=name, max_epochs=300).fit(X, Y)
        logits = torch.tensor(X) @ model.energy_.network.weight.T + model.energy_.network.bias
        np.testing.assert_allclose(model.predict_proba(X), logits.sigmoid().numpy())
        value = (nn.functional.softplus(logits) - logits / 2 - math.log(2)).sum(-1) - float(name == "kl")
        np.testing.assert_allclose(model.log_partition(X), value.numpy(), atol=1e-10)
    shallow = quick("mlp", samples=None).fit(X, Y)
    assert shallow.partition_ is None and shallow.score(X, Y) <= 1


# -- A reference near the data.


def rare_problem(n: int = 500, m: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a sixth are there; every other one comes with its neighbour."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, m))
    Y = (X + 0.3 * rng.normal(size=(n, m)) > 1.0).astype(int)
    Y[:, 1::2] = Y[:, ::2]
    return X, Y


def test_independent_labels_are_the_same_with_either_reference() -> None:
    X, Y = problem(n=100, m=20)
    options = {"samples": None, "max_epochs": 1000, "alpha": 0.01, "tol": 1e-9}
    for labels in (3, 20):
        one = quick("linear", **options).fit(X, Y[:, :labels])
        other = quick("linear", reference="frequencies", **options).fit(X, Y[:, :labels])
        np.testing.assert_allclose(other.predict_proba(X), one.predict_proba(X), atol=1e-6)
        np.testing.assert_array_equal(other.predict(X), one.predict(X))
        np.testing.assert_allclose(other.log_partition(X), other.exact_log_partition(X), atol=1e-10)


@pytest.mark.parametrize("energy", ["pairwise", "joint", "mlp"])
@pytest.mark.parametrize("samples", [20, None])
def test_predictions_with_frequencies_are_those_of_enumeration(energy: str, samples: int | None) -> None:
    X, Y = rare_problem(m=6)
    model = quick(energy, reference="frequencies", samples=samples, max_epochs=20).fit(X, Y)
    x, every = torch.tensor(X), Subsets(6).enumerate(dtype=torch.float64)
    pi = torch.tensor((Y.sum(0) + 0.5) / (len(Y) + 1))
    log_q = (every * pi.log() + (1 - every) * (1 - pi).log()).sum(-1)
    g = model.energy_(x, every[None]) + log_q
    np.testing.assert_allclose(model.predict_proba(X), (g.softmax(-1) @ every).numpy(), atol=1e-12)
    np.testing.assert_array_equal(model.predict(X), every[g.argmax(-1)].numpy())
    np.testing.assert_allclose(model.exact_log_partition(X), g.logsumexp(-1).numpy(), atol=1e-10)
    if samples is None:
        y = torch.tensor(Y).double()
        likelihood = (g.logsumexp(-1) - model.energy_(x, y)).mean()
        torch.testing.assert_close(model._loss(x, y, torch.Generator()), likelihood)


def test_rare_labels_need_samples_near_the_data() -> None:
    X, Y = rare_problem()
    options = {"max_epochs": 40, "samples": 20, "hidden_layer_sizes": (), "learning_rate": 1e-2}
    model = quick("pairwise", reference="frequencies", **options).fit(X[:400], Y[:400])
    x, every = torch.tensor(X[400:]), model.space_.enumerate(dtype=torch.float64)
    found = f1_score(Y[400:], model.predict(X[400:]), average="micro", zero_division=0.0)
    uniform = quick("pairwise", **options).fit(X[:400], Y[:400]).predict(X[400:])
    assert found > 0.4 > 0.2 > f1_score(Y[400:], uniform, average="micro", zero_division=0.0)
    # Single flips part no pair that comes together, so that starts near the data would find 59 %.
    density = model.energy_(x, every[None]) + model.space_.log_reference(every)
    best = every[density.argmax(-1)].numpy()
    assert (model.predict(X[400:]) == best).all(1).mean() > 0.7
    marginals = (density.softmax(-1) @ every).numpy()
    assert np.abs(model.predict_proba(X[400:]) - marginals).mean() < 0.05


def fixed(score: float, coupling: float) -> Any:
    """A maker of energies x ↦ score x for every label and one coupling for all pairs."""

    def make(features: int, space: Subsets) -> PairwiseEnergy:
        energy = PairwiseEnergy(nn.Linear(features, space.width), space)
        nn.init.constant_(energy.network.weight, score)
        nn.init.zeros_(energy.network.bias)
        nn.init.constant_(energy.constant, coupling)
        return energy

    return make


def test_the_search_begins_at_the_mode_without_couplings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start at random ends where most of its labels are: all in or all out, whatever the input says."""
    monkeypatch.setattr(_energy, "RESTARTS", 1)
    X, Y = np.array([[1.0], [-1.0]] * 4), np.eye(8, 14, dtype=int)
    model = quick(fixed(0.1, 1.0), max_epochs=1, learning_rate=1e-12).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X[:2]), [[1] * 14, [0] * 14])


def test_the_log_partition_begins_at_the_best_constant() -> None:
    X, Y = np.ones((8, 1)), np.eye(8, 4, dtype=int)
    model = quick(fixed(3.0, 0.0), max_epochs=1, learning_rate=1e-12).fit(X, Y)
    exact = model.exact_log_partition(X)
    np.testing.assert_allclose(exact, 4 * math.log(math.cosh(1.5)))
    np.testing.assert_allclose(model.log_partition(X), exact, atol=0.3)


def test_early_stopping_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = problem(n=80, d=20)
    stoppers = []

    class Kept(_Stopper):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            stoppers.append(self)

    monkeypatch.setattr(_energy, "_Stopper", Kept)
    options = {"max_epochs": 100, "samples": None, "alpha": 0.0, "learning_rate": 0.05}
    model = quick(early_stopping=True, validation_fraction=0.3, n_iter_no_change=5, **options).fit(X, Y)
    assert model.n_iter_ == len(model.loss_curve_) < 100
    stopper = stoppers[0]
    assert float(model._loss(stopper.x, stopper.y, torch.Generator().manual_seed(seed_of(0)))) == stopper.best
    assert quick(**options).fit(X, Y).n_iter_ == 100


def test_the_weights_of_the_least_held_out_loss_come_back() -> None:
    losses = iter([3.0, 1.0, 2.0, 2.5])

    class Model:
        energy_, partition_, _seed, n_iter_no_change = nn.Linear(1, 1), None, 0, 2

        def _loss(self, *_: Any) -> torch.Tensor:
            return torch.tensor(next(losses))

    model = Model()
    stopper = _Stopper(model, np.zeros((2, 1)), torch.zeros(2, 1), torch.tensor([0]))  # type: ignore[arg-type]
    ended = []
    for epoch in range(4):
        nn.init.constant_(model.energy_.weight, float(epoch))
        ended.append(stopper(epoch))
    stopper.restore()
    assert ended == [False, False, False, True] and model.energy_.weight.item() == 1.0


def test_a_held_out_loss_that_is_never_finite_keeps_the_first_weights() -> None:
    X, Y = problem(n=40)
    X[torch.randperm(40, generator=torch.Generator().manual_seed(seed_of(0)))[0]] = 1e8
    model = quick("mlp", early_stopping=True, n_iter_no_change=2, partition_layer_sizes=())
    assert model.fit(X, Y).n_iter_ == 3


def test_couplings_are_penalised_and_biases_are_not() -> None:
    X, Y = problem(n=100)
    Y[:, 0] = 1
    model = quick("pairwise", alpha=100.0, samples=None, max_epochs=100, hidden_layer_sizes=()).fit(X, Y)
    assert model.energy_.constant.abs().max() < 0.05
    assert model.energy_.network[0].bias[0] > 0.3


def test_classes_are_enumerated_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_energy, "FEW", 4)
    X, _ = problem()
    model = quick("pairwise").fit(X, np.argmax(X, 1))
    p = model.energy_.network(torch.tensor(X)).softmax(-1).numpy()
    np.testing.assert_allclose(model.predict_proba(X), p)
    np.testing.assert_array_equal(model.predict(X), p.argmax(1))


def test_inputs_that_a_joint_energy_repeats_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = problem(n=60, d=20)
    model = quick("joint", max_epochs=1).fit(X, Y)
    expected, seen = model.predict_proba(X), []
    model.energy_.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    monkeypatch.setattr(_energy, "CELLS", 2**12)
    np.testing.assert_allclose(model.predict_proba(X), expected)
    model.predict(X), model.exact_log_partition(X)
    assert max(seen) <= 2**12


def test_an_energy_of_ones_own() -> None:
    X, Y = problem()
    model = quick(lambda d, space: PairwiseEnergy(nn.Linear(d, space.width), space)).fit(X, Y)
    assert isinstance(model.energy_.network, nn.Linear) and model.energy_.constant.abs().sum() > 0


def test_it_says_how_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    X, Y = problem(n=40)
    quick(verbose=2, max_epochs=3, partition_epochs=1).fit(X, Y)
    lines = capsys.readouterr().out.splitlines()
    assert [
        bool(re.match(r"\[MultilabelEnergyClassifier\] epoch \d of 3: loss", line)) for line in lines
    ] == [
        True,
        True,
        True,
        False,
    ]
    assert lines[3].startswith("[MultilabelEnergyClassifier, log-partition] epoch 1 of 1")


def test_the_global_generator_is_left_alone() -> None:
    X, Y = problem(n=40)
    before = torch.random.get_rng_state()
    quick(max_epochs=1).fit(X, Y)
    assert torch.equal(before, torch.random.get_rng_state())


# -- What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"energy": "pairwize"},
            r"energy must be one of linear, .*received 'pairwize' \(did you mean 'pairwise'",
        ),
        ({"energy": "assignment"}, "received 'assignment'"),
        ({"divergence": "klx"}, "klx"),
        ({"samples": 0}, "samples must be an integer, at least 1, or None for the exact loss, received 0"),
        ({"max_epochs": 0}, "max_epochs must be an integer, at least 1, received 0"),
        ({"partition_epochs": -1}, "partition_epochs must be an integer, at least 0, received -1"),
        ({"alpha": -1.0}, "alpha must be a number, at least 0 and finite, received -1.0"),
        ({"alpha": math.nan}, "alpha must be a number, at least 0 and finite, received nan"),
        ({"learning_rate": math.inf}, "learning_rate must be a number, positive and finite, received inf"),
        ({"learning_rate": None}, "learning_rate must be a number, positive and finite, received None"),
        ({"tol": 0.0}, "tol must be a number, positive and finite, received 0.0"),
        ({"batch_size": True}, "batch_size must be an integer, at least 1, received True"),
        ({"samples": 2.5}, r"samples must be an integer, at least 1, or None .* received 2\.5"),
        ({"batch_size": 2.5}, r"batch_size must be an integer, at least 1, received 2\.5"),
        ({"hidden_layer_sizes": 64}, r"hidden_layer_sizes must be widths such as \(64,\), received 64"),
        ({"partition_layer_sizes": (0,)}, r"partition_layer_sizes must be widths .* received \(0,\)"),
        ({"reference": "frequency"}, "reference must be one of uniform, frequencies, received 'frequency'"),
        (
            {"reference": "frequencies", "divergence": "alpha:2"},
            "reference='frequencies' needs a divergence of kl, generalized-kl, received 'alpha:2'",
        ),
        ({"energy": None}, "energy must be one of .* received None"),
        ({"early_stopping": True, "validation_fraction": 1.5}, r"in \(0, 1\), received 1.5"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    X, Y = problem(n=20)
    with pytest.raises(InputError, match=message):
        quick(**options).fit(X, Y)


def test_an_energy_that_diverges_is_said_so() -> None:
    X, Y = problem(n=20)
    with pytest.raises(InputError, match=r"the loss became inf: .* Give more samples"):
        quick("linear", learning_rate=1e6).fit(X, Y)
    with pytest.raises(InputError, match=r"the loss became inf: .* another divergence than 'js'"):
        quick(divergence="js").fit(X, Y)


def test_bad_data() -> None:
    X, Y = problem(n=20)
    model = quick(max_epochs=1)
    with pytest.raises(InputError, match="y has one class, 1; at least two"):
        model.fit(X, np.ones(20, int))
    with pytest.raises(InputError, match=r"y must hold 0 and 1, one column a label, received the row"):
        model.fit(X, Y + 1 + np.arange(4))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(X > 2, np.nan, X) * np.nan, Y)
    with pytest.raises(ValueError, match="Unknown label type"):
        model.fit(X, Y + 0.5)
    with pytest.raises(InputError, match=r"at most 4096, and Subsets\(width=13\) has 2\^13.0"):
        quick(samples=None).fit(X, np.tile(Y, 4)[:, :13])
    with pytest.raises(InputError, match=r"is for sets of labels, and y has one dimension"):
        quick(reference="frequencies").fit(X, Y[:, 0])
    model.fit(X, Y)
    with pytest.raises(InputError, match=r"row \(0,\) must be a row of 0 and 1, received \["):
        model.score(X, Y + 5)
    with pytest.raises(ValueError, match=r"4 features, but .* expecting 5 features"):
        model.predict(X[:, :4])
    with pytest.raises(InputError, match=r"the 4 labels of fit, received shape \(20, 3\)"):
        model.score(X, Y[:, :3])
    with pytest.raises(InputError, match=r"y has the class 'z'; fit saw \['a', 'b'\]"):
        quick(max_epochs=1).fit(X, np.array(["a", "b"] * 10)).score(X, np.array(["a", "z"] * 10))
    with pytest.raises(InputError, match=r"2\^21.0 configurations, and at most 2\^20"):
        quick(max_epochs=1).fit(X, np.tile(Y, 6)[:, :21]).exact_log_partition(X)
