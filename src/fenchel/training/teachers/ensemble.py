"""Several teachers as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fenchel.divergences.buckets import log_tail_of
from fenchel.errors import InputError
from fenchel.losses.truncated import TopK
from fenchel.training.teachers.base import Teacher


class Ensemble:
    """The weighted mean of the teachers' probabilities, or of their logits (a geometric mean).

    Where some teachers are top-k ones, the mean of probabilities is known exactly on the classes that all
    of them know; everything else is its tail. The mean of logits needs whole distributions.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Sequence[float] | None = None,
        *,
        mixture: str = "probabilities",
        temperature: float = 1.0,
    ) -> None:
        if not teachers:
            raise InputError("an ensemble needs at least one teacher")
        weights = [1.0] * len(teachers) if weights is None else weights
        if len(weights) != len(teachers) or not all(0 < w < math.inf for w in weights):
            raise InputError(f"expects {len(teachers)} positive weights, received {list(weights)}")
        self.teachers = list(teachers)
        for teacher in teachers:
            known_at = getattr(teacher, "temperature", temperature)
            if known_at != temperature:
                raise InputError(
                    f"a teacher is known at temperature {known_at:g} only, and the mixture is wanted at "
                    f"{temperature:g}; set the temperature to {known_at:g}"
                )
        self.weights = [w / sum(weights) for w in weights]
        self.mixture, self.temperature = mixture, temperature
        self.vocabulary = min(teacher.vocabulary for teacher in teachers)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], mask: Tensor) -> MixedScores | TopK:
        answers = [teacher(batch, mask).classes(self.vocabulary) for teacher in self.teachers]
        known = [each for each in answers if isinstance(each, TopK)]
        if not known:
            members = tuple(each for each in answers if not isinstance(each, TopK))
            return MixedScores(members, tuple(self.weights), self.mixture, self.temperature)
        if self.mixture == "logits":
            raise InputError(
                "a mean of logits needs whole distributions, and a teacher gives its top k; mix "
                "probabilities instead"
            )
        whole = [
            each if isinstance(each, TopK) else (each.logits() / self.temperature).log_softmax(-1)
            for each in answers
        ]
        return self._intersection(whole, known[0].indices)

    def _intersection(self, answers: Sequence[Tensor | TopK], indices: Tensor) -> TopK:
        """The mixture on the classes of `indices` that every top-k teacher knows."""
        columns, tails = [], []
        shared = indices >= 0
        for each in answers:
            if isinstance(each, TopK):
                shared = shared & (indices.unsqueeze(-1) == each.indices.unsqueeze(-2)).any(-1)
        chosen = torch.where(shared, indices, -1)
        for each in answers:
            if isinstance(each, TopK):
                match = (chosen.unsqueeze(-1) == each.indices.unsqueeze(-2)) & shared.unsqueeze(-1)
                spread = torch.where(match, each.log_probs.unsqueeze(-2), -torch.inf)
                columns.append(spread.amax(-1))
                left = torch.where(match.any(-2), -torch.inf, each.log_probs)
                tails.append(torch.cat([left, each.log_tail.unsqueeze(-1)], -1).logsumexp(-1))
            else:
                columns.append(torch.where(shared, each.gather(-1, chosen.clamp_min(0)), -torch.inf))
                tails.append(log_tail_of(each, chosen))
        return TopK(chosen, _log_mean(columns, self.weights), _log_mean(tails, self.weights))


class MixedScores(NamedTuple):
    """The logits of a mixture, not yet computed; see `fenchel.losses.linear.Scores`."""

    members: tuple[Any, ...]
    weights: tuple[float, ...]
    mixture: str
    temperature: float

    @property
    def n(self) -> int:
        """The number of rows."""
        return int(self.members[0].n)

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.members[0].vocabulary)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return torch.device(self.members[0].device)

    def logits(self) -> Tensor:
        """Logits whose softmax at the temperature is the mixture, (n, V), in float32 at least."""
        logits = [each.logits() for each in self.members]
        if self.mixture == "logits":
            return torch.stack([w * each for w, each in zip(self.weights, logits, strict=True)]).sum(0)
        log_probs = [(each / self.temperature).log_softmax(-1) for each in logits]
        return _log_mean(log_probs, self.weights) * self.temperature

    def rows(self, rows: slice) -> MixedScores:
        """Some of the rows."""
        return self._replace(members=tuple(each.rows(rows) for each in self.members))

    def classes(self, count: int) -> MixedScores:
        """The first `count` classes."""
        return self._replace(members=tuple(each.classes(count) for each in self.members))


def _log_mean(log_probs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """log Σ_i w_i p_i."""
    weighted = [each + math.log(w) for w, each in zip(weights, log_probs, strict=True)]
    return torch.stack(weighted).logsumexp(0)
