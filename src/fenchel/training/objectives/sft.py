"""Supervised fine-tuning and pretraining: the Fenchel-Young loss of the data's own tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fenchel.divergences import divergence
from fenchel.losses import fenchel_young_loss
from fenchel.losses.fenchel_young import class_indices
from fenchel.losses.head import Tokens
from fenchel.losses.linear import in_chunks, losses_of, may_fuse
from fenchel.training.configs import SFTConfig
from fenchel.training.objectives.predictions import (
    IGNORE_INDEX,
    scores_at,
    targets_of,
    tell_if_infinite,
    tell_implementation,
)


@dataclass(frozen=True)
class SupervisedFineTuning:
    """-log-likelihood and its generalisations: softmax_f(θ) - θ_y + constant, token by token."""

    config: SFTConfig

    def __post_init__(self) -> None:
        tell_if_infinite(self.config.divergence)

    def __call__(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        mask, targets = targets_of(batch)
        scores = scores_at(model, batch, mask)
        if not may_fuse(scores):
            return in_chunks(self.losses, scores, targets)
        record = divergence(self.config.divergence)
        tell_implementation("token_loss", record, scores)
        counted = class_indices(targets, scores.vocabulary, IGNORE_INDEX)
        criterion = Tokens(counted, record, label_smoothing=self.config.label_smoothing)
        return losses_of(scores.over(self.config.temperature), criterion)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row of logits, (n,)."""
        return fenchel_young_loss(
            logits,
            targets,
            self.config.divergence,
            temperature=self.config.temperature,
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
