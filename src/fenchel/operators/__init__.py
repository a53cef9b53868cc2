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
from fenchel.operators.transport import Transport, entropic_transport

__all__ = [
    "Transport",
    "entmax15",
    "entropic_transport",
    "f_divergence",
    "f_softargmax",
    "f_softmax",
    "f_threshold",
    "sharded_f_softargmax",
    "softmax",
    "sparsemax",
]
