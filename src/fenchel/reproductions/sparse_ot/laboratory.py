"""Colour transfer between the two photographs of scikit-learn, with every kind of transport."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from torch import Tensor

from fenchel import Transport, quadratic_transport, sinkhorn_divergence, sparse_transport
from fenchel.reproductions.sparse_ot.recipe import Recipe
from fenchel.reproductions.units import Tell, kept
from fenchel.reproductions.workspace import Workspace

DUALS = {"semi-dual": True, "dual": False}
_BLUR = 0.01  # of the divergence between carried and wanted colours


class Palettes(NamedTuple):
    """Colours (m, 3) in the unit cube and the share of pixels that each stands for."""

    target: Tensor
    target_mass: Tensor
    source: Tensor
    source_mass: Tensor

    @property
    def cost(self) -> Tensor:
        """(target, source): every column of a plan says where one colour goes."""
        return torch.cdist(self.target, self.source).square()


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """All figures, by seed."""
    found = []
    for seed in range(recipe.seeds):
        progress(seed / recipe.seeds, f"seed {seed}")
        figures = kept(workspace, f"seed-{seed}", partial(_unit, recipe, seed))
        found.append({"seed": seed, **figures})
    progress(1.0, "done")
    return {"seeds": found}


def _unit(recipe: Recipe, seed: int, _: Path) -> dict[str, Any]:
    return run_seed(recipe, seed)


def run_seed(recipe: Recipe, seed: int) -> dict[str, Any]:
    """The figures of one seed: of transport without regularisation, quadratic, and sparse by k and dual."""
    palettes = palettes_of(recipe, seed)
    cost, a, b = palettes.cost, palettes.target_mass, palettes.source_mass
    options = {"iterations": recipe.iterations, "tolerance": 1e-9}

    def quadratic(regularization: float) -> Transport:
        return quadratic_transport(cost, a, b, regularization=regularization, **options)  # type: ignore[arg-type]

    def sparse(k: int, semidual: bool) -> Transport:
        return sparse_transport(
            cost,
            a,
            b,
            k=k,
            regularization=recipe.regularization,
            semidual=semidual,
            **options,  # type: ignore[arg-type]
        )

    dense, figures = _timed(partial(quadratic, recipe.regularization), palettes)
    widest = int((dense.plan > 0).sum(0).max())
    return {
        "unregularised": linear_program(cost, a, b),
        "one_column_each": 0.5 * recipe.regularization * float(b.square().sum()),
        "quadratic": figures,
        "weakly quadratic": _timed(partial(quadratic, recipe.weakest), palettes)[1],
        "widest": {"k": widest, "gap": float((sparse(widest, True).plan - dense.plan).abs().max())},
        "sparse": {
            str(k): {name: _timed(partial(sparse, k, dual), palettes)[1] for name, dual in DUALS.items()}
            for k in recipe.nonzeros
        },
    }


def palettes_of(recipe: Recipe, seed: int) -> Palettes:
    """The colours of some pixels of each photograph, by k-means."""
    found: list[Tensor] = []
    for image in reversed(load_sample_images().images):
        generator = np.random.default_rng(seed)
        pixels = image.reshape(-1, 3)
        chosen = pixels[generator.choice(len(pixels), recipe.pixels, replace=False)] / 255.0
        means = KMeans(recipe.colours, n_init=1, random_state=seed).fit(chosen)
        mass = np.bincount(means.labels_, minlength=recipe.colours) / recipe.pixels
        found += [torch.from_numpy(means.cluster_centers_), torch.from_numpy(mass)]
    return Palettes(*found)


def linear_program(cost: Tensor, a: Tensor, b: Tensor) -> float:
    """min <T, C> over plans, without regularisation."""
    from scipy import sparse

    m, n = cost.shape
    rows = sparse.kron(sparse.eye(m), np.ones((1, n)))
    columns = sparse.kron(np.ones((1, m)), sparse.eye(n))
    equal = sparse.vstack([rows, columns]).tocsr()
    found = linprog(cost.numpy().ravel(), A_eq=equal, b_eq=torch.cat([a, b]).numpy(), method="highs")
    return float(found.fun)


def _timed(solve: Callable[[], Transport], palettes: Palettes) -> tuple[Transport, dict[str, float]]:
    started = time.perf_counter()
    found = solve()
    seconds = time.perf_counter() - started
    cost, a, b = palettes.cost, palettes.target_mass, palettes.source_mass
    counts = (found.plan > 0).sum(0)
    carried = (found.plan.mT @ palettes.target) / found.plan.sum(0).unsqueeze(-1)
    return found, {
        "value": float(found.value),
        "cost": float((found.plan * cost).sum()),
        "mean_nonzeros": float(counts.double().mean()),
        "most_nonzeros": float(counts.max()),
        "missed": 0.5 * float((found.plan.sum(1) - a).abs().sum()),
        "divergence": float(
            sinkhorn_divergence(carried, palettes.target, b, a, regularization=_BLUR, iterations=5000)
        ),
        "seconds": seconds,
    }
