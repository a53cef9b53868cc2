"""Weight pruning by sparse differentiable top-k in magnitude, against hard top-k.

A perceptron is trained with the weights of every layer behind an operator that keeps a tenth of them or
fewer, and ends with exactly so many: the relaxed operator with p = 2 and 4/3, or the hard one. With the hard
operator only the kept weights have a gradient, so that the choice is hardly ever revised. Two further
comparisons are ours: hard top-k whose gradient goes straight through to all weights, and a dense training
whose largest weights are kept at the end, without training after that. So is the bound of ten points below
the dense network.

The paper prunes a perceptron on MNIST and finds its operator better than hard top-k. Its figures were not at
hand; its sizes, learning rates and schedule are not known to us, and the small scale takes scikit-learn's
digits. That the hard operator is the limit of the relaxed one, and that Dykstra's algorithm ends where
pooling of adjacent violators does, it states as mathematics; here it is measured on trained weights. All
weights of a layer compete, each layer by itself.

The regularization was found on seeds 900 and 901, which are not the recipe's, by accuracy in % on held-out
digits after 300 steps; l goes geometrically from the first to the second value in 80 % of the steps:

    l                        90 %         97 %
    hard top-k               90.6 90.2    24.6 20.4
    p = 2, 1 to 1e-3         92.0 92.8    69.0 66.0
    p = 2, 0.1               90.8 92.0    72.8 70.0
    p = 2, 10 to 1e-3        93.0 93.0    77.8 68.0     taken
    p = 4/3, 0.1             93.6 93.6    68.2 56.0     taken: the default of the paper's code
    p = 4/3, 0.1 to 1e-4     90.2 93.0    67.6 62.2
    p = 4/3, 1 to 1e-4       92.2 92.0    57.6 64.0
    p = 4/3, 0.01            91.6 92.8    55.6 56.0

At 99 % no way keeps much (hard 9, p = 2 about 33), and it is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fenchel.reproductions.sparse_topk.page import report, setup
from fenchel.reproductions.sparse_topk.recipe import Recipe, recipe
from fenchel.reproductions.sparse_topk.verdicts import CLAIMS, claim

if TYPE_CHECKING:
    from fenchel.reproductions.runner import Tell
    from fenchel.reproductions.workspace import Workspace

__all__ = ["CLAIMS", "NAME", "PAPER", "TITLE", "claim", "measure", "recipe", "report"]

NAME = "sparse-topk"
TITLE = "Pruning by sparse differentiable top-k"
PAPER = "Sander et al., 2023, arXiv 2302.01425"


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Train and measure; see `fenchel.reproductions.runner`."""
    # Here, so that the claims are known without the libraries of training.
    from fenchel.reproductions.sparse_topk import laboratory

    return laboratory.measure(recipe, workspace, progress) | {"setup": setup(recipe)}
