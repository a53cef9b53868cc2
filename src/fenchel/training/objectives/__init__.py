"""Objectives: (model, batch) -> the losses of the tokens that count. One small file each."""

from fenchel.training.objectives.distill import Distillation
from fenchel.training.objectives.sft import SupervisedFineTuning

__all__ = ["Distillation", "SupervisedFineTuning"]
