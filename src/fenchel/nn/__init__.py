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
from fenchel.nn.fenchel_young import FenchelYoungLoss

__all__ = [
    "AssignmentEnergy",
    "BilinearEnergy",
    "Energy",
    "FenchelYoungLoss",
    "JointEnergy",
    "OneHot",
    "PairwiseEnergy",
    "PartitionNetwork",
    "Permutations",
    "Subsets",
    "UnaryEnergy",
]
