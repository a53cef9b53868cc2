"""Losses: per-element values, and one `reduce` for all of them."""

from fenchel.losses.distillation import distillation_loss
from fenchel.losses.fenchel_young import fenchel_young_loss
from fenchel.losses.reduce import reduce

__all__ = ["distillation_loss", "fenchel_young_loss", "reduce"]
