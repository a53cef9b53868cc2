"""Transport plans with at most k nonzeros a column, for the transfer of colours between photographs.

The paper maximises a dual and a semi-dual by L-BFGS or Adam, and shows that k interpolates between
unregularised transport (k = 1) and quadratic transport (k = m). With k = 1 the norm of a column is its mass,
so that the maximum is the transport cost plus a constant; that and the rest is tested here against a linear
program. What is claimed about the marginals, about weak regularisation and about the carried colours is ours.

The regime was found on seed 0. The weight of a colour is its share of pixels; a heavy colour must go to
several lighter ones, so that no plan with the marginals has k = 1, 2 or 4, and mass is missed: 25 %, 16 %
and 6 % of it with γ = 10 (2 % with k = 8). At γ = 1 quadratic transport has 3.8 nonzeros a column and 14
at most; at γ = 10 they are 8.7 and 30.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fenchel.reproductions.sparse_ot.page import report, setup
from fenchel.reproductions.sparse_ot.recipe import Recipe, recipe
from fenchel.reproductions.sparse_ot.verdicts import CLAIMS, claim

if TYPE_CHECKING:
    from fenchel.reproductions.runner import Tell
    from fenchel.reproductions.workspace import Workspace

__all__ = ["CLAIMS", "NAME", "PAPER", "TITLE", "claim", "measure", "recipe", "report"]

NAME = "sparse-ot"
TITLE = "Transport plans with few nonzeros"
PAPER = "Liu, Puigcerver and Blondel, 2023, arXiv 2209.15466"


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Solve and measure; see `fenchel.reproductions.runner`."""
    # Here, so that the claims are known without scikit-learn.
    from fenchel.reproductions.sparse_ot import laboratory

    return laboratory.measure(recipe, workspace, progress) | {"setup": setup(recipe)}
