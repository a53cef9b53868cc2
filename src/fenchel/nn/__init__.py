"""Modules, only where there is state to hold."""

from fenchel.nn.energies import (
    AssignmentEnergy,
    BilinearEnergy,
    Energy,
    JointEnergy,
    OneHot,
    PairwiseEnergy,
    PartitionNetwork,
    Permutations,
    Subsets,
    UnaryEnergy,
)
from fenchel.nn.expert_choice import softmax_expert_choice, sparse_expert_choice
from fenchel.nn.fenchel_young import FenchelYoungLoss
from fenchel.nn.moe import MoEFeedForward, auxiliary_loss
from fenchel.nn.pruning import MagnitudePruning, anneal_pruning, finish_pruning, prune_magnitude
from fenchel.nn.routers import Router, SoftRouter
from fenchel.nn.routing import Routing, SoftRouting, soft_routing
from fenchel.nn.token_choice import sinkhorn_token_choice, softmax_token_choice, sparse_token_choice

__all__ = [
    "AssignmentEnergy",
    "BilinearEnergy",
    "Energy",
    "FenchelYoungLoss",
    "JointEnergy",
    "MagnitudePruning",
    "MoEFeedForward",
    "OneHot",
    "PairwiseEnergy",
    "PartitionNetwork",
    "Permutations",
    "Router",
    "Routing",
    "SoftRouter",
    "SoftRouting",
    "Subsets",
    "UnaryEnergy",
    "anneal_pruning",
    "auxiliary_loss",
    "finish_pruning",
    "prune_magnitude",
    "sinkhorn_token_choice",
    "soft_routing",
    "softmax_expert_choice",
    "softmax_token_choice",
    "sparse_expert_choice",
    "sparse_token_choice",
]
