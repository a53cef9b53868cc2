"""Operators: scores to probabilities, their value, their threshold; projections, sorts and ranks; D_f."""

from fenchel.operators.divergence import f_divergence
from fenchel.operators.isotonic import isotonic_regression
from fenchel.operators.projections import project_capped_simplex, project_permutahedron, project_simplex
from fenchel.operators.sharded import sharded_f_softargmax
from fenchel.operators.softargmax import (
    entmax15,
    f_softargmax,
    f_softmax,
    f_threshold,
    softmax,
    sparsemax,
)
from fenchel.operators.sorting import soft_rank, soft_sort

__all__ = [
    "entmax15",
    "f_divergence",
    "f_softargmax",
    "f_softmax",
    "f_threshold",
    "isotonic_regression",
    "project_capped_simplex",
    "project_permutahedron",
    "project_simplex",
    "sharded_f_softargmax",
    "soft_rank",
    "soft_sort",
    "softmax",
    "sparsemax",
]
