"""What the experiment on sparse transport computes, at three scales."""

from __future__ import annotations

from dataclasses import dataclass

from fenchel.reproductions.configs import at_scale


@dataclass(frozen=True)
class Recipe:
    """The whole configuration: colours of one photograph are carried to those of another."""

    colours: int  # of either palette, found by k-means
    pixels: int  # of either photograph, drawn by the seed
    regularization: float  # γ, for squared distances of colours in the unit cube
    weakest: float  # γ of the quadratic transport that is as sparse as γ alone makes it
    nonzeros: tuple[int, ...] = (1, 2, 4, 8, 16)
    iterations: int = 1000
    seeds: int = 5


SMALL = Recipe(colours=64, pixels=2000, regularization=10.0, weakest=1e-3)
MEDIUM = Recipe(colours=256, pixels=20_000, regularization=40.0, weakest=4e-3)
LARGE = Recipe(colours=512, pixels=100_000, regularization=80.0, weakest=8e-3)


def recipe(scale: str) -> Recipe:
    """The recipe of a scale: small, medium or large."""
    return at_scale(scale, {"small": SMALL, "medium": MEDIUM, "large": LARGE})
