"""Operators: scores to probabilities, their value, their threshold; D_f between probabilities."""

from fenchel.operators.divergence import f_divergence
from fenchel.operators.sharded import sharded_f_softargmax
from fenchel.operators.softargmax import (
    entmax15,
    f_softargmax,
    f_softmax,
    f_threshold,
    softmax,
    sparsemax,
)
from fenchel.operators.topk import topk_magnitude, topk_mask
from fenchel.operators.topk_smooth import entropic_topk_mask, perturbed_topk_mask

__all__ = [
    "entmax15",
    "entropic_topk_mask",
    "f_divergence",
    "f_softargmax",
    "f_softmax",
    "f_threshold",
    "perturbed_topk_mask",
    "sharded_f_softargmax",
    "softmax",
    "sparsemax",
    "topk_magnitude",
    "topk_mask",
]
