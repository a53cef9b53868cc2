"""Distillation on the data's own sequences: the student is pulled towards the teacher's next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fenchel.losses import distillation_loss, fenchel_young_loss
from fenchel.training.configs import DistillConfig
from fenchel.training.objectives.predictions import scores_at, targets_of


@dataclass(frozen=True)
class Distillation:
    """(1 - w) · (D_f(teacher, student), or Fenchel-Young loss of the teacher) + w · loss of the data.

    The loss of the data's own tokens is cross-entropy for `loss="divergence"`, whose student is a
    softmax, and the Fenchel-Young loss of the same divergence for `loss="fenchel-young"`.
    """

    teacher: torch.nn.Module
    config: DistillConfig

    def __call__(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        mask, targets = targets_of(batch)
        student = scores_at(model, batch, mask)
        matching = self.config.loss == "fenchel-young"
        weight, temperature = self.config.hard_label_weight, self.config.temperature
        losses = student.new_zeros(len(student))
        if weight < 1:
            with torch.no_grad():
                teacher = scores_at(self.teacher, batch, mask)
            losses = (1 - weight) * (
                fenchel_young_loss(
                    student,
                    (teacher / temperature).softmax(-1),
                    self.config.divergence,
                    temperature=temperature,
                    reduction="none",
                )
                if matching
                else distillation_loss(
                    student,
                    teacher,
                    self.config.divergence,
                    temperature=temperature,
                    reduction="none",
                )
            )
        if weight:
            divergence = self.config.divergence if matching else "kl"
            losses = losses + weight * fenchel_young_loss(student, targets, divergence, reduction="none")
        return losses
