"""The trainings: for each seed one dense network, and one for every way of pruning and every sparsity."""

from __future__ import annotations

import math
import re
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from fenchel.nn import MagnitudePruning, anneal_pruning, finish_pruning, prune_magnitude
from fenchel.operators import topk_magnitude
from fenchel.reproductions.sparse_topk.recipe import (
    AFTER,
    DENSE,
    DIGITS,
    PRUNED,
    RELAXED,
    THROUGH,
    Recipe,
    figure,
)
from fenchel.reproductions.units import Tell, kept, over_seeds, seeds_of
from fenchel.reproductions.workspace import Workspace

CURVE_POINTS = 10
WEIGHTS = "weights.pt"


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Train and measure what an earlier run did not; returns all figures by seed."""
    seeds = seeds_of(recipe)
    costs = {unit_of(seed, name): 1.0 for seed in seeds for name in names_of(recipe)}
    over_seeds(recipe, workspace, progress, costs, lambda: None, run_seed)
    return {
        "sparsities": list(recipe.sparsities),
        "path": [math.log10(each) for each in recipe.path],
        "seeds": [run_seed(recipe, workspace, seed) for seed in seeds],  # reads what is there
    }


def names_of(recipe: Recipe) -> list[str]:
    """The trainings of a seed; the dense one first, for others take its weights."""
    return [DENSE, *(figure(arm, sparsity) for sparsity in recipe.sparsities for arm in PRUNED)]


def unit_of(seed: int, name: str) -> str:
    return f"seed-{seed}/{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}"


def run_seed(recipe: Recipe, workspace: Workspace, seed: int) -> dict[str, Any]:
    """The figures of one seed, by the name of the training."""
    torch.set_num_threads(1)
    laboratory = Laboratory(recipe, workspace, seed)
    found = {DENSE: kept(workspace, unit_of(seed, DENSE), laboratory.train_dense)}
    for sparsity in recipe.sparsities:
        for arm in PRUNED:
            name = figure(arm, sparsity)
            work = partial(laboratory.train_pruned, arm=arm, sparsity=sparsity)
            found[name] = kept(workspace, unit_of(seed, name), work)
    return {"seed": seed, "figures": found}


class Laboratory:
    """The data and the trainings of one seed, which all begin alike and see the same batches."""

    def __init__(self, recipe: Recipe, workspace: Workspace, seed: int) -> None:
        self.recipe, self.workspace, self.seed = recipe, workspace, seed
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        return tuple(part.to(self.device) for part in images(self.recipe.images))  # type: ignore[return-value]

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:
        """Which images are for training and which are held out."""
        order = torch.randperm(len(self.data[0]), generator=torch.Generator().manual_seed(self.seed))
        return order[self.recipe.held_out :], order[: self.recipe.held_out]

    def network(self) -> torch.nn.Sequential:
        """As it begins in every training of the seed."""
        torch.manual_seed(self.seed)
        sizes = [self.data[0].shape[1], *self.recipe.hidden, int(self.data[1].max()) + 1]
        layers: list[torch.nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1]).to(self.device)

    def train_dense(self, directory: Path) -> dict[str, Any]:
        network = self.network()
        figures = self._train(network) | self._solvers(network)
        torch.save(network.state_dict(), directory / WEIGHTS)
        return figures

    def train_pruned(self, _: Path, arm: str, sparsity: float) -> dict[str, Any]:
        network = self.network()
        if arm == AFTER:
            path = self.workspace.path / unit_of(self.seed, DENSE) / WEIGHTS
            network.load_state_dict(torch.load(path, weights_only=True))
            prune_magnitude(network, sparsity)
            finish_pruning(network)
            return {"accuracy": self.accuracy(network), "curve": []} | nonzeros(network, sparsity)
        if arm in RELAXED:
            prune_magnitude(network, sparsity, regularization=RELAXED[arm].first, p=RELAXED[arm].p)
        else:
            for layer in linear(network):
                k = share(layer.weight, sparsity)
                parametrize.register_parametrization(layer, "weight", HardTopK(k, through=arm == THROUGH))
        figures = self._train(network, arm)
        if arm in RELAXED:
            figures["relaxed_accuracy"] = figures["accuracy"]
            finish_pruning(network)
        else:
            for layer in linear(network):
                parametrize.remove_parametrizations(layer, "weight")
        return figures | {"accuracy": self.accuracy(network)} | nonzeros(network, sparsity)

    def _train(self, network: torch.nn.Sequential, arm: str = DENSE) -> dict[str, Any]:
        recipe, (x, y), (train, _) = self.recipe, self.data, self.split
        batches = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
        every = max(1, recipe.steps // CURVE_POINTS)
        curve = [[0, self.accuracy(network)]]
        for step in range(recipe.steps):
            if arm in RELAXED:
                anneal_pruning(network, regularization_at(step, recipe, arm))
            chosen = train[torch.randint(len(train), (recipe.batch,), generator=batches)]
            loss = torch.nn.functional.cross_entropy(network(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (step + 1) % every == 0:
                curve.append([step + 1, self.accuracy(network)])
        return {"accuracy": self.accuracy(network), "curve": curve}

    def accuracy(self, network: torch.nn.Sequential) -> float:
        """The share of held-out images that are recognised."""
        (x, y), (_, test) = self.data, self.split
        with torch.no_grad():
            return float((network(x[test]).argmax(-1) == y[test]).double().mean())

    def _solvers(self, network: torch.nn.Sequential) -> dict[str, Any]:
        """On the first weight: nonzeros as the regularization grows, and Dykstra's distance from pooling."""
        recipe = self.recipe
        weight = linear(network)[0].weight.detach().double().cpu()
        flat = weight.flatten()
        k = share(weight, recipe.sparsities[0])
        order = flat.abs().sort(descending=True).values
        hard = torch.where(flat.abs() >= order[k - 1], flat, 0.0)
        found: dict[str, Any] = {"path": {}, "dykstra": {}, "k": k}
        for arm, relaxation in RELAXED.items():
            outputs = [topk_magnitude(flat, k, regularization=each, p=relaxation.p) for each in recipe.path]
            found["path"][arm] = [
                {"nonzeros": int((out != 0).sum()), "distance": float((out - hard).abs().max())}
                for out in outputs
            ]
            rows, few = weight[: recipe.rows], share(weight[0], recipe.sparsities[0])
            exact = topk_magnitude(rows, few, p=relaxation.p, solver="pav")
            found["dykstra"][arm] = [
                float((exact - each).abs().max())
                for n in recipe.dykstra
                for each in [topk_magnitude(rows, few, p=relaxation.p, solver="dykstra", iterations=n)]
            ]
        return found


def linear(network: torch.nn.Sequential) -> list[torch.nn.Linear]:
    """The layers with weights."""
    return [layer for layer in network if isinstance(layer, torch.nn.Linear)]


class HardTopK(torch.nn.Module):
    """The k largest in magnitude, with the gradient of those alone, or of all as if all were kept."""

    def __init__(self, k: int, *, through: bool) -> None:
        super().__init__()
        self.pruning, self.through = MagnitudePruning(k), through

    def forward(self, weight: Tensor) -> Tensor:
        hard = self.pruning.hard(weight)
        return weight + (hard - weight).detach() if self.through else hard

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def regularization_at(step: int, recipe: Recipe, arm: str) -> float:
    """Geometric from the first to the last, which it keeps from a share of the steps on."""
    relaxation = RELAXED[arm]
    way = min(1.0, step / (recipe.annealed * recipe.steps))
    return float(relaxation.first * (relaxation.last / relaxation.first) ** way)


def share(weight: Tensor, sparsity: float) -> int:
    """How many entries are left, as `prune_magnitude` counts them."""
    return round((1 - sparsity) * weight.numel())


def nonzeros(network: torch.nn.Sequential, sparsity: float) -> dict[str, int]:
    """The nonzeros of the weights, and how many there should be."""
    weights = [layer.weight for layer in linear(network)]
    return {
        "nonzeros": sum(int((weight != 0).sum()) for weight in weights),
        "k": sum(share(weight, sparsity) for weight in weights),
    }


def images(name: str) -> tuple[Tensor, Tensor]:
    """Images (n, pixels) in [0, 1] and their classes (n,)."""
    if name == DIGITS:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    import numpy as np
    from datasets import concatenate_datasets, load_dataset

    parts = load_dataset(name)
    rows = concatenate_datasets([parts["train"], parts["test"]])
    pixels = np.stack([np.asarray(image, dtype=np.float32).reshape(-1) for image in rows["image"]])
    return torch.from_numpy(pixels) / 255, torch.tensor(rows["label"])
