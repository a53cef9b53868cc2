"""What every sparse router does: check logits, transport tokens to experts, fill slots."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fenchel.errors import InputError
from fenchel.nn.routing import Routing, finite
from fenchel.operators import Transport


def fill(standing: Tensor, weights: Tensor, capacity: int, mask: Tensor | None) -> Routing:
    """Each expert keeps the tokens of the highest standing; one of zero does not ask for it."""
    token, filled = largest(standing.mT, min(capacity, standing.shape[-2]))
    token = torch.where(filled, token, 0)
    weight = torch.where(filled, weights.mT.gather(-1, token), 0.0)
    present = torch.ones_like(weights[..., 0], dtype=torch.bool) if mask is None else mask.bool()
    return Routing(token, weight, filled, (standing > 0).sum(-2), present)


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the largest along the last axis of x >= 0, and whether they are positive.

    They are found among integers without ties, which hold the bits of x in float32 above the index, so
    that the first of equal ones comes first on every device.
    """
    bits = x.float().view(torch.int32).long()  # ordered as the numbers are, where these are >= 0
    last = x.shape[-1] - 1
    best = ((bits << 32) + torch.arange(last, -1, -1, device=x.device)).topk(count, -1).values
    return last - (best & 0xFFFFFFFF), best >> 32 > 0


def transport_plan(transport: Callable[..., Transport], scores: Tensor, mask: Tensor | None) -> Tensor:
    """The plan (..., T, E) of most score, with mass one for each token and the same for each expert."""
    if scores.numel() == 0:
        return scores
    tokens = scores.new_ones(scores.shape[:-1])
    if mask is not None:
        present = mask.bool()
        # A group without tokens has a plan too, which is cut away below.
        tokens = (present | ~present.any(-1, keepdim=True)).to(scores.dtype)
    share = tokens.sum(-1, keepdim=True) / scores.shape[-1]
    experts = share.expand(*scores.shape[:-2], scores.shape[-1])
    return without_padding(transport(-scores, tokens, experts).plan, mask)


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (..., T, E), zero for padding."""
    return x if mask is None else x * mask.bool().unsqueeze(-1)


def check_scores(logits: Tensor, mask: Tensor | None, capacity: int, k: int = 1) -> Tensor:
    if capacity < 0:
        raise InputError(f"capacity must be >= 0, received {capacity}")
    scores = finite(logits, mask, 2)
    experts = scores.shape[-1]
    if not 1 <= k <= experts:
        raise InputError(f"k must be in 1 ... {experts}, the number of experts, received {k}")
    return scores
