"""The trainings: for each seed and table every energy, by the exact likelihood and jointly."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from fenchel.reproductions import tabular
from fenchel.reproductions.joint_ebm.recipe import (
    ENERGIES,
    EXACT,
    FREQUENCIES,
    PAIRS,
    RANKING_ENERGIES,
    SPARSEMAX,
    Recipe,
)
from fenchel.reproductions.processes import each
from fenchel.reproductions.units import FIGURES, Tell, seeds_of
from fenchel.reproductions.workspace import Workspace
from fenchel.sklearn import LabelRanker, MultilabelEnergyClassifier

Array = NDArray[np.float64]


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Train and measure everything that an earlier run did not; returns all figures by seed."""
    splits = tabular.multilabel(recipe.data, recipe.multilabel)
    rankings = tabular.label_ranking(recipe.data, recipe.rankings)
    jobs = [("multilabel", i, seed) for seed in seeds_of(recipe) for i in range(len(splits))]
    jobs += [("ranking", i, seed) for seed in seeds_of(recipe) for i in range(len(rankings))]

    def watch() -> None:
        done = sum((workspace.path / _unit(*job)).is_dir() for job in jobs)
        progress(done / len(jobs), f"{done} of {len(jobs)} tables and seeds")

    watch()
    waiting = [(recipe, workspace, *job) for job in jobs if not (workspace.path / _unit(*job)).is_dir()]
    # Several to a process: to start one takes as long as a training.
    parts = [waiting[i :: recipe.processes] for i in range(recipe.processes)]
    each(_run, [(part,) for part in parts if part], recipe.processes, watch)

    def figures(kind: str, table: int) -> list[dict[str, Any]]:
        return [_figures(workspace, (kind, table, seed)) for seed in seeds_of(recipe)]

    return {
        "multilabel": [
            {
                "name": split.name,
                "labels": split.train_y.shape[1],
                "sizes": [len(split.train_x), len(split.test_x)],
                "seeds": figures("multilabel", i),
            }
            for i, split in enumerate(splits)
        ],
        "rankings": [
            {
                "name": table.name,
                "items": table.y.shape[1],
                "sizes": [len(table.x)],
                "seeds": figures("ranking", i),
            }
            for i, table in enumerate(rankings)
        ],
        "seeds": list(seeds_of(recipe)),
    }


def _unit(kind: str, table: int, seed: int) -> str:
    return f"seed-{seed}/{kind}-{table}"


def _figures(workspace: Workspace, job: tuple[str, int, int]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.path / _unit(*job) / FIGURES).read_text(encoding="utf-8"))
    return found


def _run(jobs: list[tuple[Recipe, Workspace, str, int, int]]) -> None:
    torch.set_flush_denormal(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for recipe, workspace, kind, table, seed in jobs:
            with workspace.unit(_unit(kind, table, seed)) as (path, done):
                if not done:
                    figures = (_sets if kind == "multilabel" else _orders)(recipe, table, seed)
                    (path / FIGURES).write_text(json.dumps(figures, allow_nan=False), encoding="utf-8")
    finally:
        torch.set_num_threads(threads)


# -- Sets of labels.


def _sets(recipe: Recipe, table: int, seed: int) -> dict[str, Any]:
    """The first seed has the published split, the others random ones of the same sizes."""
    split = tabular.multilabel(recipe.data, recipe.multilabel)[table]
    if seed != recipe.first_seed:
        split = tabular.resplit(split, seed)
    train_x, test_x = standardised(split.train_x, split.test_x)
    small = split.train_y.shape[1] <= recipe.most_labels
    found: dict[str, Any] = {"samples": {}}

    def fit(energy: str, samples: int | None, **options: Any) -> MultilabelEnergyClassifier:
        model = MultilabelEnergyClassifier(
            energy,
            samples=samples,
            hidden_layer_sizes=recipe.hidden,
            partition_layer_sizes=recipe.partition_hidden,
            alpha=recipe.alpha,
            max_epochs=epochs(recipe.steps, len(train_x), recipe.batch),
            batch_size=recipe.batch,
            learning_rate=recipe.learning_rate,
            random_state=seed,
            **options,
        )
        return model.fit(train_x, split.train_y.astype(int))

    def scores(model: MultilabelEnergyClassifier) -> dict[str, float]:
        return set_scores(split.test_y, model.predict(test_x))

    most = recipe.samples[-1]
    found["energies"] = {e: scores(fit(e, most)) for e in ENERGIES if e != "pairwise"}
    if small:
        for samples in recipe.samples:
            model = fit("pairwise", samples)
            figures = {"train": errors(model, train_x), "test": errors(model, test_x)}
            found["samples"][str(samples)] = scores(model) | figures
        found[EXACT] = scores(fit("pairwise", None))
        found[SPARSEMAX] = scores(fit("pairwise", most, divergence="alpha:2"))
        longer = epochs(recipe.partition_steps, len(train_x), recipe.batch)
        model = fit("pairwise", most, partition_epochs=longer)
        found["longer"] = {"train": errors(model, train_x), "test": errors(model, test_x)}
    else:
        found[FREQUENCIES] = scores(fit("pairwise", most, reference="frequencies"))
    found["nothing"] = set_scores(split.test_y, commonest(split.train_y, len(test_x)))
    return found


def set_scores(y: Array, predicted: Array) -> dict[str, float]:
    """Example-based F1 (1 where both sets are empty), micro F1, and the share of sets that are right."""
    return {
        "f1": float(f1_score(y, predicted, average="samples", zero_division=1.0)),
        "micro_f1": float(f1_score(y, predicted, average="micro", zero_division=1.0)),
        "accuracy": float((y == predicted).all(1).mean()),
    }


def commonest(y: Array, rows: int) -> Array:
    """The set that is most frequent in training, for every row: what needs no features."""
    sets, counts = np.unique(y, axis=0, return_counts=True)
    return np.repeat(sets[counts.argmax()][None], rows, axis=0)


def errors(model: MultilabelEnergyClassifier, x: Array) -> dict[str, float]:
    """Of the learned log-partition against enumeration: in nats, and relative to log Σ exp g."""
    exact, learned = model.exact_log_partition(x), model.log_partition(x)
    error = np.abs(learned - exact)
    size = math.log(2) * len(model.classes_)
    return {
        "nats": float(error.mean()),
        "relative": float((error / np.abs(exact + size)).mean()),
        "log_partition": float((exact + size).mean()),
    }


# -- Rankings.


def _orders(recipe: Recipe, table: int, seed: int) -> dict[str, Any]:
    data = tabular.label_ranking(recipe.data, recipe.rankings)[table]
    order = np.random.default_rng(seed).permutation(len(data.x))
    test, train = np.split(order, [round(recipe.test_share * len(order))])
    train_x, test_x = standardised(data.x[train], data.x[test])
    found = {}
    for energy, learning_rate in RANKING_ENERGIES.items():
        model = LabelRanker(
            energy,
            samples=recipe.ranking_samples,
            hidden_layer_sizes=recipe.hidden,
            partition_layer_sizes=recipe.hidden,
            alpha=recipe.alpha,
            max_epochs=epochs(recipe.ranking_steps, len(train), recipe.batch),
            batch_size=recipe.batch,
            learning_rate=learning_rate,
            random_state=seed,
        )
        model.fit(train_x, data.y[train])
        found[energy] = model.score(test_x, data.y[test])
    if data.y.shape[1] <= recipe.most_items:
        model = LabelRanker("linear", samples=None, alpha=recipe.alpha, max_epochs=1000)
        found[EXACT] = model.fit(train_x, data.y[train]).score(test_x, data.y[test])
    found[PAIRS] = ranking_score(data.y[test], constraint_classification(train_x, data.y[train], test_x))
    return {"tau": found, "nothing": mean_ranking_score(data.y[train], data.y[test])}


def constraint_classification(train_x: Array, train_y: Array, test_x: Array) -> Array:
    """Scores of items, linear in x, of which the lowest comes first: a peer of the linear energy.

    Constraint classification (Har-Peled, Roth and Zimak, 2003) by scikit-learn's logistic regression on all
    pairs.
    """
    (n, k), x = train_y.shape, np.hstack([train_x, np.ones((len(train_x), 1))])
    first, second = np.triu_indices(k, 1)
    pairs = np.zeros((n, len(first), k, x.shape[1]))
    each = np.arange(len(first))
    pairs[:, each, first], pairs[:, each, second] = x[:, None], -x[:, None]
    model = LogisticRegression(C=1e4 / n, fit_intercept=False, max_iter=1000)
    model.fit(pairs.reshape(-1, k * x.shape[1]), (train_y[:, first] > train_y[:, second]).ravel())
    weight = model.coef_.reshape(k, -1)
    scores: Array = np.hstack([test_x, np.ones((len(test_x), 1))]) @ weight.T
    return scores


def ranking_score(y: Array, scores: Array) -> float:
    """Kendall's τ of positions and scores, (n, k) each, the mean over rows."""
    i, j = np.triu_indices(y.shape[1], 1)
    return float((np.sign(y[:, i] - y[:, j]) * np.sign(scores[:, i] - scores[:, j])).mean())


def mean_ranking_score(train: Array, test: Array) -> float:
    """Kendall's τ of one ranking for all, by the mean positions (Borda): what needs no features."""
    order = train.mean(0).argsort(kind="stable").argsort() + 1.0
    return ranking_score(test, np.broadcast_to(order, test.shape))


# -- What both need.


def standardised(train: Array, test: Array) -> tuple[Array, Array]:
    """Columns of mean 0 and deviation 1 in training; constant ones become 0."""
    mean, deviation = train.mean(0), train.std(0)
    scale = np.where(deviation > 1e-12, deviation, np.inf)
    return (train - mean) / scale, (test - mean) / scale


def epochs(steps: int, rows: int, batch: int) -> int:
    """The passes over the data that make about so many steps."""
    return max(1, round(steps / math.ceil(rows / batch)))
