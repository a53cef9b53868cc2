"""Energy-based models: spaces of configurations, energies over them, and the learned log-partition."""

from fenchel.nn.energies.configurations import ConfigurationSpace, OneHot, Permutations, Subsets
from fenchel.nn.energies.energies import (
    AssignmentEnergy,
    BilinearEnergy,
    Energy,
    JointEnergy,
    PairwiseEnergy,
    UnaryEnergy,
    mlp,
)
from fenchel.nn.energies.partition import PartitionNetwork

__all__ = [
    "AssignmentEnergy",
    "BilinearEnergy",
    "ConfigurationSpace",
    "Energy",
    "JointEnergy",
    "OneHot",
    "PairwiseEnergy",
    "PartitionNetwork",
    "Permutations",
    "Subsets",
    "UnaryEnergy",
    "mlp",
]
