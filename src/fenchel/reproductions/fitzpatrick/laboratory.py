"""The fits: four losses on every split of every set."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from fenchel.errors import InputError
from fenchel.losses import fenchel_young_loss, fitzpatrick_logistic_loss, fitzpatrick_sparsemax_loss
from fenchel.reproductions.fitzpatrick.recipe import LOGISTIC, LOSSES, SPARSEMAX, Recipe
from fenchel.reproductions.processes import each
from fenchel.reproductions.tabular import Array, Split, multilabel, resplit
from fenchel.reproductions.units import Tell, finished, kept
from fenchel.reproductions.workspace import Workspace
from fenchel.sklearn import ProportionRegressor

PUBLISHED = "published"
LEAST = 3  # examples, of which one is held out
ROUNDING = 1e-12  # by which a loss may be above its bound
# (loss, bound) by the loss whose scores they are compared at.
PAIRS = {
    LOGISTIC: (fitzpatrick_logistic_loss, "kl"),
    SPARSEMAX: (fitzpatrick_sparsemax_loss, "alpha:2"),
}
Figures = dict[str, Any]


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Fit what an earlier run did not; returns all figures, by split, set and loss."""
    splits = multilabel(recipe.data, recipe.sets)
    sets = {split.name: described(split) for split in splits}
    parts: list[int | None] = [None, *range(recipe.first_seed, recipe.first_seed + recipe.seeds)]
    costs = {unit_of(part, split.name): float(split.train_x.size) for part in parts for split in splits}

    def watch() -> None:
        done = sum((workspace.path / unit).is_dir() for unit in costs)
        progress(finished(workspace, costs), f"{done} of {len(costs)} splits")

    watch()
    each(run_split, [(recipe, workspace, part) for part in parts], recipe.processes, watch)
    found = [run_split(recipe, workspace, part) for part in parts]
    return {
        "sets": sets,
        "settings": {
            "penalties": ", ".join(f"{penalty:g}" for penalty in recipe.penalties),
            "held out to choose the penalty": f"{recipe.held_out:.0%} of the training examples",
            "solver": f"L-BFGS, at most {recipe.max_iter} iterations, gradient below {recipe.tol:g}",
        },
        PUBLISHED: found[0],
        "seeds": [{"seed": seed, "sets": sets} for seed, sets in zip(parts[1:], found[1:], strict=True)],
    }


def unit_of(part: int | None, name: str) -> str:
    return f"{PUBLISHED if part is None else f'seed-{part}'}/{name}"


def run_split(recipe: Recipe, workspace: Workspace, part: int | None) -> dict[str, dict[str, Figures]]:
    """The figures of the published split, or of the one of a seed: by set, and within by loss."""
    torch.set_num_threads(1)
    found = {}
    for published in multilabel(recipe.data, recipe.sets):
        split = published if part is None else resplit(published, part)
        fit = partial(_fit_unit, split=split, recipe=recipe, seed=part or 0)
        found[split.name] = kept(workspace, unit_of(part, split.name), fit)
    return found


def _fit_unit(_: Path, split: Split, recipe: Recipe, seed: int) -> dict[str, Figures]:
    return fit_all(split, recipe, seed)


def described(split: Split) -> str:
    """The sizes of a set, in words."""
    (train_x, train_y), (test_x, _) = parts_of(split)
    left = len(split.train_x) + len(split.test_x) - len(train_x) - len(test_x)
    return (
        f"{len(train_x)} and {len(test_x)} examples of {train_x.shape[1]} features and {train_y.shape[1]} "
        f"labels; {left} without labels left out"
    )


def parts_of(split: Split) -> Iterator[tuple[Array, Array]]:
    """Features and label proportions of both parts, less the examples without labels."""
    parts = {"training": (split.train_x, split.train_y), "test": (split.test_x, split.test_y)}
    for part, (x, labels) in parts.items():
        count = labels.sum(1)
        keep = count > 0
        if keep.sum() < LEAST:
            raise InputError(
                f"the {part} part of {split.name} must have at least {LEAST} examples with labels, has "
                f"{keep.sum()} among {len(x)}"
            )
        yield x[keep], labels[keep] / count[keep, None]


def fit_all(split: Split, recipe: Recipe, seed: int) -> dict[str, Figures]:
    """The figures of every loss on one split."""
    (x, y), (test_x, test_y) = parts_of(split)
    scaler = StandardScaler().fit(x)
    x, test_x = scaler.transform(x), scaler.transform(test_x)
    order = np.random.default_rng(seed).permutation(len(x))
    held, rest = np.split(order, [round(recipe.held_out * len(x))])
    found = {}
    for name in LOSSES:
        chosen = path(name, recipe, x[rest], y[rest])
        errors = [error(model.predict(x[held]), y[held]) for model in chosen]
        best = int(np.argmin(errors))
        (model,) = path(name, recipe, x, y, recipe.penalties[best : best + 1])
        found[name] = {
            "mse": error(model.predict(test_x), test_y),
            "penalty": recipe.penalties[best],
            "held_out_mse": errors,
            "iterations": model.n_iter_,
            "zeros": float((model.predict(test_x) == 0).mean()),
        }
        if name in PAIRS:
            scores = test_x @ model.coef_.T + model.intercept_
            found[name]["twins"] = compare(name, torch.from_numpy(scores), torch.from_numpy(test_y))
    return found


def path(
    name: str, recipe: Recipe, x: Array, y: Array, penalties: tuple[float, ...] | None = None
) -> list[ProportionRegressor]:
    """A model for each penalty, each begun where the one before ended."""
    divergence, loss = LOSSES[name]
    model = ProportionRegressor(
        divergence, loss=loss, max_iter=recipe.max_iter, tol=recipe.tol, warm_start=True
    )
    found: list[ProportionRegressor] = []
    with warnings.catch_warnings():  # how many iterations there were is in the figures
        warnings.simplefilter("ignore", ConvergenceWarning)
        for penalty in penalties or recipe.penalties:
            found.append(copy.deepcopy(model.set_params(alpha=penalty).fit(x, y)))
    return found


def error(predicted: Array, y: Array) -> float:
    """The mean over examples and labels of the squared error."""
    return float(np.square(predicted - y).mean())


def compare(name: str, scores: Tensor, y: Tensor) -> dict[str, float]:
    """The loss and its Fitzpatrick twin at the same scores of test examples."""
    tighter, divergence = PAIRS[name]
    bound = fenchel_young_loss(scores, y, divergence, reduction="none")
    loss = tighter(scores, y, reduction="none")
    return {
        "fenchel_young": float(bound.mean()),
        "fitzpatrick": float(loss.mean()),
        "largest_excess": float((loss - bound).max()),
        "share_below": float((loss <= bound + ROUNDING).double().mean()),
    }
