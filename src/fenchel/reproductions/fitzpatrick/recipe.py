"""What the experiment on Fitzpatrick losses fits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fenchel.reproductions.configs import at_scale

LOGISTIC, F_LOGISTIC = "logistic", "Fitzpatrick logistic"
SPARSEMAX, F_SPARSEMAX = "sparsemax", "Fitzpatrick sparsemax"
# The divergence and the loss of `fenchel.sklearn.ProportionRegressor`.
LOSSES = {
    LOGISTIC: ("kl", "fenchel-young"),
    F_LOGISTIC: ("kl", "fitzpatrick"),
    SPARSEMAX: ("alpha:2", "fenchel-young"),
    F_SPARSEMAX: ("alpha:2", "fitzpatrick"),
}
TWINS = ((LOGISTIC, F_LOGISTIC), (SPARSEMAX, F_SPARSEMAX))


@dataclass(frozen=True)
class Recipe:
    """The whole configuration; without `data` the sets are those that scikit-learn generates."""

    sets: tuple[str, ...] = ("emotions", "birds", "scene", "flags")
    data: str | None = None
    penalties: tuple[float, ...] = (1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    held_out: float = 0.25  # of the training examples, to choose the penalty
    max_iter: int = 300
    tol: float = 1e-5
    processes: int = 2
    first_seed: int = 0
    seeds: int = 5


def recipe(scale: str) -> Recipe:
    """The recipe of a scale; the larger ones have more splits, and are fitted longer."""
    small = Recipe()
    return at_scale(
        scale,
        {
            "small": small,
            "medium": replace(small, seeds=10, max_iter=1000, tol=1e-6),
            "large": replace(small, seeds=30, max_iter=5000, tol=1e-7),
        },
    )
