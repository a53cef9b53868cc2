"""Losses against a teacher of whom k probabilities a row are known: k + 1 buckets, the tail being one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences.buckets import log_buckets, log_tail_of
from fenchel.errors import InputError
from fenchel.operators.engine import solve


class TopK(NamedTuple):
    """A distribution known on k classes a row; everything else is one bucket, the tail.

    Σ exp(log_probs) + exp(log_tail) = 1 in each row.

    Args:
        indices: the known classes, (..., k), int64; -1 marks an empty slot.
        log_probs: their log-probabilities, (..., k); -inf in empty slots.
        log_tail: log of the mass of all other classes, (...); -inf where there is none.

    Example:
        >>> import torch
        >>> p = TopK.of(torch.tensor([[2.0, 0.0, 0.0, 0.0]]).log_softmax(-1), 1)
        >>> p.indices.tolist(), torch.allclose(p.log_probs.exp() + p.log_tail.exp(), torch.ones(1))
        ([[0]], True)

    Reference:
        Csiszár, 1967 (merging classes never increases an f-divergence).
    """

    indices: Tensor
    log_probs: Tensor
    log_tail: Tensor

    def rows(self, rows: slice) -> TopK:
        """Some of the rows, of (n, k)."""
        return TopK(*(part[rows] for part in self))

    def classes(self, count: int) -> TopK:
        """Given that the class is one of the first `count`: known others are left out, the rest scaled.

        What the tail holds of the others cannot be told and stays.
        """
        beyond = self.indices >= count
        log_probs = torch.where(beyond, -torch.inf, self.log_probs)
        total = torch.cat([log_probs, self.log_tail.unsqueeze(-1)], -1).logsumexp(-1)
        indices = torch.where(beyond, -1, self.indices)
        return TopK(indices, log_probs - total.unsqueeze(-1), self.log_tail - total)

    @staticmethod
    def of(log_probs: Tensor, k: int) -> TopK:
        """The k most likely classes of whole distributions (..., V), and the mass of the others."""
        if not 0 < k <= log_probs.shape[-1]:
            raise InputError(f"k must be from 1 to the {log_probs.shape[-1]} classes, received {k}")
        known, indices = log_probs.topk(k, -1)
        return TopK(indices, known, log_tail_of(log_probs, indices))


def bucketed(log_probs: Tensor, teacher: TopK) -> tuple[Tensor, Tensor]:
    """(teacher, student): log-probabilities of the k + 1 buckets, (..., k + 1) each."""
    student = log_buckets(log_probs, teacher.indices)
    return torch.cat([teacher.log_probs, teacher.log_tail.unsqueeze(-1)], -1).to(student.dtype), student


def check_fits(student: Tensor, teacher: TopK) -> None:
    """Raise InputError unless `teacher` has a row for each row of the student's logits, (..., V)."""
    indices, log_probs, log_tail = (part.shape for part in teacher)
    if log_probs != indices or log_tail != indices[:-1]:
        raise InputError(
            "a TopK has indices (..., k), log_probs (..., k) and log_tail (...), received "
            f"{tuple(indices)}, {tuple(log_probs)} and {tuple(log_tail)}"
        )
    if teacher.indices.shape[:-1] != student.shape[:-1]:
        raise InputError(
            f"the teacher's top-k has rows {tuple(teacher.indices.shape[:-1])}, the student's logits "
            f"{tuple(student.shape)} have {tuple(student.shape[:-1])}"
        )


def truncated_fenchel_young(scores: Tensor, teacher: TopK, record: FDivergence) -> Tensor:
    """The least Fenchel-Young loss over all targets with the teacher's k probabilities and tail mass.

    min_y softmax_f(θ) + D_f(y, 1) - <θ, y> over y that agree with the teacher: with t the tail mass, y
    spreads t over the tail as t · f-softargmax(θ_tail; q = 1/t), which gives

        softmax_f(θ; 1) + Σ_K [f(y_j) - θ_j y_j] + D_f of absent classes - t softmax_f(θ_tail; 1/t).

    A lower bound of the loss against the whole teacher, 0 where the student agrees with all that is known.
    """
    p, value, _, top = solve(scores, None, record)
    del p
    indices, present = teacher.indices, teacher.indices >= 0
    gap = top.unsqueeze(-1) - scores
    y = teacher.log_probs.to(scores.dtype).exp()
    known_gap = torch.where(present & (y > 0), gap.gather(-1, indices.clamp_min(0)), 0.0)
    entropy = torch.where(y > 0, record.f_centred(torch.where(y > 0, y, 1.0)), 0.0)
    losses = value + (y * known_gap + entropy).sum(-1)

    classes = scores.shape[-1]
    listed = torch.nn.functional.pad(torch.zeros_like(scores, dtype=torch.bool), (0, 1))
    listed = listed.scatter(-1, torch.where(present, indices, classes), True)[..., :-1]
    absent = listed | torch.isinf(scores)
    mass = teacher.log_tail.to(scores.dtype).exp()
    counts = (mass > 0) & ~absent.all(-1)
    tail = torch.where(absent & counts.unsqueeze(-1), -torch.inf, scores)
    q = torch.where(counts, 1 / mass.clamp_min(torch.finfo(mass.dtype).tiny), 1.0)
    _, tail_value, _, tail_top = solve(tail, q.unsqueeze(-1).expand_as(tail).contiguous(), record)
    # value is relative to the top score, so that <top - θ, y> replaces <θ, y>.
    return losses - torch.where(counts, mass * (tail_value + (tail_top - top)), 0.0)
