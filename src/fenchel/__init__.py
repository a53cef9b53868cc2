"""Fenchel: train models, language models first, with any f-divergence."""

from fenchel.decoding import matching_logits
from fenchel.diagnostics import (
    HackingWatch,
    PowerLaw,
    departure,
    distinct_n,
    expected_calibration_error,
    fit_power_law,
    self_overlap,
)
from fenchel.divergences import FDivergence, alpha, divergence
from fenchel.errors import InputError
from fenchel.kernels.dispatch import Choice, which
from fenchel.losses import (
    TopK,
    balanced_divergence_loss,
    distillation_loss,
    early_learning_regularization,
    fenchel_young_loss,
    linear_distillation_loss,
    linear_fenchel_young_loss,
    normalized_distillation_loss,
    plackett_luce_loss,
    progressive_self_distillation_loss,
    progressive_weight,
    reduce,
    sharded_fenchel_young_loss,
    sharded_linear_fenchel_young_loss,
    sinkhorn_loss,
    update_ema_target,
    uskd_loss,
)
from fenchel.nn import FenchelYoungLoss
from fenchel.operators import (
    Transport,
    entmax15,
    entropic_transport,
    f_divergence,
    f_softargmax,
    f_softmax,
    f_threshold,
    sharded_f_softargmax,
    softmax,
    sparsemax,
)

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "FDivergence",
    "FenchelYoungLoss",
    "HackingWatch",
    "InputError",
    "PowerLaw",
    "TopK",
    "Transport",
    "alpha",
    "balanced_divergence_loss",
    "departure",
    "distillation_loss",
    "distinct_n",
    "divergence",
    "early_learning_regularization",
    "entmax15",
    "entropic_transport",
    "expected_calibration_error",
    "f_divergence",
    "f_softargmax",
    "f_softmax",
    "f_threshold",
    "fenchel_young_loss",
    "fit_power_law",
    "linear_distillation_loss",
    "linear_fenchel_young_loss",
    "matching_logits",
    "normalized_distillation_loss",
    "plackett_luce_loss",
    "progressive_self_distillation_loss",
    "progressive_weight",
    "reduce",
    "self_overlap",
    "sharded_f_softargmax",
    "sharded_fenchel_young_loss",
    "sharded_linear_fenchel_young_loss",
    "sinkhorn_loss",
    "softmax",
    "sparsemax",
    "update_ema_target",
    "uskd_loss",
    "which",
]
