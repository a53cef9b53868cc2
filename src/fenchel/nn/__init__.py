"""Modules, only where there is state to hold."""

from fenchel.nn.fenchel_young import FenchelYoungLoss
from fenchel.nn.pruning import MagnitudePruning, anneal_pruning, finish_pruning, prune_magnitude

__all__ = ["FenchelYoungLoss", "MagnitudePruning", "anneal_pruning", "finish_pruning", "prune_magnitude"]
