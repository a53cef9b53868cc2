"""Fitzpatrick losses for the estimation of label proportions.

Sets of labels become proportions: every label of an example has the same share, and examples without labels,
which have no proportions, are left out (in birds they are about half). A linear model is fitted with the
logistic loss, the sparsemax loss, and the Fitzpatrick loss of each, to standardised features; its L2 penalty
has the least error on a part of the training examples that was held out, and the model is fitted again to all
of them. The published splits make the table, splits at random the tests.

The paper says that Fitzpatrick losses are competitive with their twins. Its own table of test errors was not
at hand, and is not repeated here; how it scales features, weighs the penalty against the loss, and treats
examples without labels is not known to us. What is claimed here about either pair is what a pilot on the
published splits found: logistic, Fitzpatrick logistic, sparsemax and Fitzpatrick sparsemax had the errors

    emotions .0524 .0532 .0528 .0518        birds .0275 .0269 .0271 .0266
    scene    .0572 .0598 .0626 .0588        flags .0209 .0223 .0214 .0207

Near its minimum the Fitzpatrick sparsemax loss is half as curved as the sparsemax loss, so that the same
penalty weighs twice as much. Penalties a decade apart, chosen on a quarter of few examples, do not match the
two: the order of the pair changes from split to split, most on birds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fenchel.reproductions.fitzpatrick.page import report
from fenchel.reproductions.fitzpatrick.recipe import Recipe, recipe
from fenchel.reproductions.fitzpatrick.verdicts import CLAIMS, claim

if TYPE_CHECKING:
    from fenchel.reproductions.runner import Tell
    from fenchel.reproductions.workspace import Workspace

__all__ = ["CLAIMS", "NAME", "PAPER", "TITLE", "claim", "measure", "recipe", "report"]

NAME = "fitzpatrick"
TITLE = "Fitzpatrick losses for label proportions"
PAPER = "Rakotomandimby et al., 2024, arXiv 2405.14574"


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Fit and measure; see `fenchel.reproductions.runner`."""
    # Here, so that the claims are known without scikit-learn.
    from fenchel.reproductions.fitzpatrick import laboratory

    return laboratory.measure(recipe, workspace, progress)
