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
from fenchel.operators.topk import topk_magnitude, topk_mask
from fenchel.operators.topk_smooth import entropic_topk_mask, perturbed_topk_mask
from fenchel.operators.transport import Transport, entropic_transport, quadratic_transport, sparse_transport

__all__ = [
    "Transport",
    "entmax15",
    "entropic_topk_mask",
    "entropic_transport",
    "f_divergence",
    "f_softargmax",
    "f_softmax",
    "f_threshold",
    "isotonic_regression",
    "perturbed_topk_mask",
    "project_capped_simplex",
    "project_permutahedron",
    "project_simplex",
    "quadratic_transport",
    "sharded_f_softargmax",
    "soft_rank",
    "soft_sort",
    "softmax",
    "sparse_transport",
    "sparsemax",
    "topk_magnitude",
    "topk_mask",
]
