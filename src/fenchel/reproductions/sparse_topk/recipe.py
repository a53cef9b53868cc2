"""What the experiment on pruning trains, at three scales."""

from __future__ import annotations

from dataclasses import dataclass

from fenchel.reproductions.configs import at_scale

DENSE, AFTER, HARD, THROUGH = "dense", "pruned after training", "hard top-k", "straight-through"
QUADRATIC, CUBIC = "relaxed, p = 2", "relaxed, p = 4/3"


@dataclass(frozen=True)
class Relaxation:
    """How one relaxed operator is annealed: geometrically, over the first part of the training."""

    p: float
    first: float
    last: float


RELAXED = {QUADRATIC: Relaxation(2.0, 10.0, 1e-3), CUBIC: Relaxation(4 / 3, 0.1, 0.1)}
PRUNED = (AFTER, HARD, THROUGH, *RELAXED)


@dataclass(frozen=True)
class Recipe:
    """The whole configuration."""

    images: str  # DIGITS, or a data set of images (`image`, `label`) of the Hub
    hidden: tuple[int, ...]
    sparsities: tuple[float, ...]
    steps: int
    batch: int
    learning_rate: float
    held_out: int  # images
    annealed: float = 0.8  # the share of the steps after which the regularization stays
    path: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # of the regularization, for the nonzeros
    rows: int = 32  # of the first weight, on which the solvers are compared
    dykstra: tuple[int, ...] = (1, 10, 100, 1000)  # iterations
    processes: int = 2
    first_seed: int = 100  # those of the search were 900 and 901
    seeds: int = 6


DIGITS = "scikit-learn's digits"
SMALL = Recipe(
    images=DIGITS,
    hidden=(128, 64),
    sparsities=(0.9, 0.95, 0.97),
    steps=300,
    batch=64,
    learning_rate=3e-3,
    held_out=500,
)
MEDIUM = Recipe(
    images="ylecun/mnist",
    hidden=(300, 100),
    sparsities=(0.9, 0.95, 0.98),
    steps=5_000,
    batch=128,
    learning_rate=1e-3,
    held_out=10_000,
    processes=1,
)
LARGE = Recipe(
    images="zalando-datasets/fashion_mnist",
    hidden=(1024, 1024),
    sparsities=(0.9, 0.98, 0.99),
    steps=20_000,
    batch=256,
    learning_rate=1e-3,
    held_out=10_000,
    processes=1,
)


def recipe(scale: str) -> Recipe:
    """The recipe of a scale: small, medium or large."""
    return at_scale(scale, {"small": SMALL, "medium": MEDIUM, "large": LARGE})


def figure(arm: str, sparsity: float) -> str:
    """The key of the figures of one training."""
    return arm if arm == DENSE else f"{arm}, {sparsity:.0%}"
