"""Distributions of which some classes are known by name and the others by their sum: k + 1 buckets a row."""

from __future__ import annotations

import torch
from torch import Tensor


def log_tail_of(log_probs: Tensor, indices: Tensor) -> Tensor:
    """log Σ p over the classes that `indices` does not name, (...): a sum, so small tails keep their digits.

    A tail without a class is -inf, with zero gradient.
    """
    listed = torch.zeros_like(log_probs, dtype=torch.bool)
    # Empty slots (-1) must mark nothing: they go to one more class, which is dropped.
    listed = torch.nn.functional.pad(listed, (0, 1))
    classes = log_probs.shape[-1]
    listed = listed.scatter(-1, torch.where(indices < 0, classes, indices), True)[..., :-1]
    rest = torch.where(listed, -torch.inf, log_probs)
    empty = torch.isinf(rest.detach().amax(-1))
    tail = torch.where(empty.unsqueeze(-1), 0.0, rest).logsumexp(-1)
    return torch.where(empty, -torch.inf, tail)


def log_buckets(log_probs: Tensor, indices: Tensor) -> Tensor:
    """Log-probabilities (..., k + 1): the classes that `indices` names, -inf in empty slots; the tail."""
    known = torch.where(indices >= 0, log_probs.gather(-1, indices.clamp_min(0)), -torch.inf)
    return torch.cat([known, log_tail_of(log_probs, indices).unsqueeze(-1)], -1)
