"""Losses: per-element values, and one `reduce` for all of them."""

from fenchel.losses.balanced import balanced_divergence_loss
from fenchel.losses.binary_fitzpatrick import (
    binary_fitzpatrick_logistic_loss,
    binary_fitzpatrick_sparsemax_loss,
)
from fenchel.losses.distillation import distillation_loss
from fenchel.losses.early_learning import early_learning_regularization, update_ema_target
from fenchel.losses.energy import exact_partition_loss, joint_partition_loss
from fenchel.losses.fenchel_young import fenchel_young_loss
from fenchel.losses.fitzpatrick import fitzpatrick_logistic_loss, fitzpatrick_sparsemax_loss
from fenchel.losses.linear import linear_distillation_loss, linear_fenchel_young_loss
from fenchel.losses.linear_fitzpatrick import linear_fitzpatrick_logistic_loss
from fenchel.losses.normalized import normalized_distillation_loss, uskd_loss
from fenchel.losses.plackett_luce import plackett_luce_loss
from fenchel.losses.progressive import progressive_self_distillation_loss, progressive_weight
from fenchel.losses.reduce import reduce
from fenchel.losses.routing import importance_loss, load_balance_loss, router_z_loss
from fenchel.losses.sharded import sharded_fenchel_young_loss, sharded_linear_fenchel_young_loss
from fenchel.losses.sinkhorn import sinkhorn_loss
from fenchel.losses.transport import sinkhorn_divergence
from fenchel.losses.truncated import TopK

__all__ = [
    "TopK",
    "balanced_divergence_loss",
    "binary_fitzpatrick_logistic_loss",
    "binary_fitzpatrick_sparsemax_loss",
    "distillation_loss",
    "early_learning_regularization",
    "exact_partition_loss",
    "fenchel_young_loss",
    "fitzpatrick_logistic_loss",
    "fitzpatrick_sparsemax_loss",
    "importance_loss",
    "joint_partition_loss",
    "linear_distillation_loss",
    "linear_fenchel_young_loss",
    "linear_fitzpatrick_logistic_loss",
    "load_balance_loss",
    "normalized_distillation_loss",
    "plackett_luce_loss",
    "progressive_self_distillation_loss",
    "progressive_weight",
    "reduce",
    "router_z_loss",
    "sharded_fenchel_young_loss",
    "sharded_linear_fenchel_young_loss",
    "sinkhorn_divergence",
    "sinkhorn_loss",
    "update_ema_target",
    "uskd_loss",
]
