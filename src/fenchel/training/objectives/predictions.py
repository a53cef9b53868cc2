"""What every objective needs: the scores at the positions that are under loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100


def targets_of(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(mask, targets): which positions predict a token under loss, (B, T - 1), and these tokens, (n,)."""
    labels = batch["labels"][:, 1:]
    mask = labels != IGNORE_INDEX
    return mask, labels[mask]


def scores_at(model: torch.nn.Module, batch: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Next-token logits where `mask` holds, (n, V), in float32.

    The cache is off: with it, transformers would not keep packed documents apart.
    """
    inputs: dict[str, Any] = {k: v for k, v in batch.items() if k != "labels"}
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[:, :-1][mask].float()
