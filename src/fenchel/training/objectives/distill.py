"""Distillation: the student is pulled towards a teacher's next-token distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fenchel.divergences import divergence
from fenchel.errors import InputError
from fenchel.losses import TopK, fenchel_young_loss
from fenchel.losses.head import Criterion, Differentiated, Distilled
from fenchel.losses.linear import Rows, Scores, in_chunks, losses_of, may_fuse
from fenchel.training.configs import DistillConfig
from fenchel.training.objectives.matching import MATCHINGS, Inputs, Matching
from fenchel.training.objectives.predictions import (
    OWN,
    scores_at,
    targets_of,
    tell_if_infinite,
    tell_implementation,
)
from fenchel.training.teachers.base import Teacher


@dataclass
class Distillation:
    """(1 - w) · loss against the teacher (a row of `MATCHINGS`) + w · loss of the data's tokens.

    Sequences that the student wrote are no labels: there w is 0.
    The loss of the tokens is cross-entropy where the student is a softmax, and the Fenchel-Young loss of
    the same divergence where it is a softargmax_f (`loss="fenchel-young"`).

    Args:
        teacher: who teaches; None where the loss needs nobody.
        config: loss, divergence, temperature and weights.
        vocabulary: how many classes both speak of, where one has padding rows; by default all.
        top_k: cut whole teacher distributions to their k most likely classes and the rest.
    """

    teacher: Teacher | None
    config: DistillConfig
    vocabulary: int | None = None
    top_k: int | None = None
    progress: float = 0.0

    def __post_init__(self) -> None:
        name = self.config.loss
        if self.matching.teacher and self.teacher is None and self.config.hard_label_weight < 1:
            raise InputError(f"the loss {name!r} needs a teacher")
        if self.config.hard_label_weight and not self.matching.softmax:
            tell_if_infinite(self.config.divergence)
        if self.top_k is not None and not self.matching.truncated:
            raise InputError(
                f"the loss {name!r} needs whole distributions; leave out --top_k, or use divergence or "
                "fenchel-young"
            )

    @property
    def matching(self) -> Matching:
        """The row of the table."""
        return MATCHINGS[self.config.loss]

    def __call__(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        mask, targets = targets_of(batch)
        student: Rows = scores_at(model, batch, mask)
        own = batch[OWN].unsqueeze(-1).expand_as(mask)[mask] if OWN in batch else None
        teacher: Rows | TopK | None = None
        if (
            self.teacher is not None
            and self.matching.teacher
            and (self.config.hard_label_weight < 1 or own is not None)
        ):
            with torch.no_grad():
                teacher = self.teacher(batch, mask)
            self._check(teacher)
        if self.vocabulary is not None:
            student = student.classes(self.vocabulary)
            teacher = teacher.classes(self.vocabulary) if teacher is not None else None
        chunk = max(1, len(targets)) if self.matching.coupled else self.config.loss_chunk
        if self.matching.coupled or not isinstance(student, Scores) or not may_fuse(student):
            return in_chunks(self.losses, student, teacher, targets, own, chunk=chunk)
        return losses_of(student, self._criterion(student, teacher, targets, own), chunk)

    def _criterion(
        self, student: Scores, teacher: Rows | TopK | None, targets: Tensor, own: Tensor | None
    ) -> Criterion:
        config = self.config
        if config.loss == "divergence" and not config.hard_label_weight and teacher is not None:
            record = divergence(config.divergence)
            whole = self.top_k is None and not isinstance(teacher, TopK)
            tell_implementation("distillation" if whole else "topk_distillation", record, student)
            scale = config.temperature**2 if config.squared_temperature else 1.0
            return Distilled(lambda rows: self._known(teacher, rows), record, config.temperature, scale)

        def losses(logits: Tensor, rows: slice) -> Tensor:
            known = None if teacher is None else self._known(teacher, rows)
            return self.losses(logits, known, targets[rows], None if own is None else own[rows])

        return Differentiated(losses)

    def _known(self, teacher: Rows | TopK, rows: slice) -> Tensor | TopK:
        """Logits of some rows, or what is known of their probabilities."""
        part = teacher.rows(rows)
        return part if isinstance(part, TopK) else self._cut(part.logits())

    def _cut(self, logits: Tensor) -> Tensor | TopK:
        if self.top_k is None:
            return logits
        return TopK.of((logits / self.config.temperature).log_softmax(-1), self.top_k)

    def losses(self, student: Tensor, teacher: Any, targets: Tensor, own: Tensor | None = None) -> Tensor:
        """The loss of each row of logits, (n,); `own` rows are tokens that the student wrote."""
        weight: Any = self.config.hard_label_weight
        if weight and own is not None:
            weight = torch.where(own, 0.0, weight)
        losses = student.new_zeros(len(student))
        if isinstance(weight, Tensor) or weight < 1:
            if isinstance(teacher, Tensor):
                teacher = self._cut(teacher)
            matched = self.matching.loss(Inputs(student, teacher, targets, self.config, self.progress))
            losses = (1 - weight) * matched
        if self.config.hard_label_weight:
            divergence = "kl" if self.matching.softmax else self.config.divergence
            losses = losses + weight * fenchel_young_loss(student, targets, divergence, reduction="none")
        return losses

    def _check(self, teacher: Rows | TopK) -> None:
        if not isinstance(teacher, TopK):
            return
        if not self.matching.truncated:
            raise InputError(
                f"the loss {self.config.loss!r} needs whole distributions, and the teacher gives its top k; "
                "use divergence or fenchel-young, or a teacher in this process"
            )
        known_at = getattr(self.teacher, "temperature", self.config.temperature)
        if known_at != self.config.temperature:
            raise InputError(
                f"the teacher's top k are probabilities at temperature {known_at:g}, and the loss has "
                f"{self.config.temperature:g}: their tail at another temperature is unknown; set "
                f"--temperature {known_at:g}"
            )
