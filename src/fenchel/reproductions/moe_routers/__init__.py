"""Routers of a vision mixture of experts, at the same capacity, on handwritten digits.

The digits that scikit-learn ships, 8 by 8 pixels, become 16 patches of 2 by 2. A transformer of two blocks,
whose MLPs are mixtures of four experts, is trained with each of the six routers; beside them with a dense
MLP of the same work for each token, and with token choice by softmax without its balance loss. All patches
of a batch are one group, those of an image where routing is soft. Two experts for each token, and exactly as
many slots: capacity factor 1.

The paper trains on JFT-300M and finds that expert choice beats token choice, and that soft routing beats
sparse routing, at the same compute. On digits such differences are within the noise of a few images, so
that accuracies are reported without a claim. What is claimed here is what routers promise whatever the data:
capacities and sums hold exactly, and transport evens loads out. These claims are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fenchel.reproductions.moe_routers.page import report
from fenchel.reproductions.moe_routers.recipe import Recipe, recipe
from fenchel.reproductions.moe_routers.verdicts import CLAIMS, claim

if TYPE_CHECKING:
    from fenchel.reproductions.runner import Tell
    from fenchel.reproductions.workspace import Workspace

__all__ = ["CLAIMS", "NAME", "PAPER", "TITLE", "claim", "measure", "recipe", "report"]

NAME = "moe-routers"
TITLE = "Routers of a vision mixture of experts"
PAPER = "Liu, Blondel, Riquelme and Puigcerver, 2024, arXiv 2401.15969"


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Train and measure; see `fenchel.reproductions.runner`."""
    # Here, so that the claims are known without scikit-learn.
    from fenchel.reproductions.moe_routers import laboratory

    return laboratory.measure(recipe, workspace, progress)
