"""Routing as pure functions: the logits of a router to who goes where, and with which weight.

A token choice router lets each token take its k best experts, an expert choice router each expert its
best tokens. Both come down to the same step: every expert keeps the `capacity` first of a list of keys.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import InputError
from fenchel.losses.reduce import check_rows
from fenchel.operators._inputs import check_axis

PRIORITIES = ("probability", "order")


class Routing(NamedTuple):
    """Which token each expert takes in each of its slots, and the weight of its answer.

    The tensors of the two-tensor formulation are `dispatch` and `combine`, both (..., T, E, C): expert e
    computes on Σ_t dispatch_tec x_t in its slot c, and token t receives Σ_ec combine_tec y_ec. `send` and
    `collect` are these two sums without the dense tensors, in time and memory O(E C d).

    Attributes:
        token: the token in each slot, int64 (..., E, C); 0 in an empty slot.
        weight: the gate of each slot, (..., E, C); 0 in an empty slot. It carries the gradient.
        filled: which slots hold a token, bool (..., E, C).
        demand: tokens that asked for each expert before its capacity was looked at, int64 (..., E).
        present: tokens that are not padding, bool (..., T).

    Example:
        >>> import torch
        >>> routing = softmax_expert_choice(torch.zeros(3, 2), capacity=1)
        >>> routing.combine[..., 0]
        tensor([[0.5000, 0.5000],
                [0.0000, 0.0000],
                [0.0000, 0.0000]])
        >>> routing.load, round(routing.dropped.item(), 4)
        (tensor([1, 1]), 0.6667)

    Reference:
        Shazeer et al., 2017, arXiv 1701.06538; Liu, Blondel, Riquelme and Puigcerver, 2024,
        arXiv 2401.15969 (dispatch and combine).
    """

    token: Tensor
    weight: Tensor
    filled: Tensor
    demand: Tensor
    present: Tensor

    @property
    def dispatch(self) -> Tensor:
        """One where slot (e, c) holds token t, (..., T, E, C)."""
        ones = F.one_hot(self.token, max(self.present.shape[-1], 1)) * self.filled.unsqueeze(-1)
        return ones[..., : self.present.shape[-1]].movedim(-1, -3).to(self.weight.dtype)

    @property
    def combine(self) -> Tensor:
        """The gate of token t in slot (e, c), (..., T, E, C)."""
        return self.dispatch * self.weight.unsqueeze(-3)

    @property
    def load(self) -> Tensor:
        """Tokens that each expert takes, (..., E)."""
        return self.filled.sum(-1)

    @property
    def dropped(self) -> Tensor:
        """The share of the tokens that no expert takes, (...); 0 without tokens."""
        taken = torch.zeros_like(self.present, dtype=torch.int64)
        taken = taken.scatter_add(-1, self.token.flatten(-2), self.filled.flatten(-2).long())
        lost = (taken == 0) & self.present
        return lost.sum(-1) / self.present.sum(-1).clamp_min(1)

    def send(self, x: Tensor) -> Tensor:
        """Tokens (..., T, d) to the slots of the experts (..., E, C, d); zeros in empty slots."""
        _check_tokens(x, self.present.shape)
        rows = x.reshape(-1, x.shape[-1]).index_select(0, self._rows())
        rows = rows.masked_fill(~self._expert_major(self.filled).unsqueeze(-1), 0.0)
        # Experts first in memory, so that their batched products need no copy.
        groups, experts, capacity = self._sizes()
        by_expert = rows.reshape(experts, groups, capacity, x.shape[-1])
        return by_expert.transpose(0, 1).reshape(*self.token.shape, x.shape[-1])

    def collect(self, y: Tensor) -> Tensor:
        """Answers (..., E, C, d) of the experts to the tokens (..., T, d), each times its gate.

        The sum has the wider of the dtypes of the answers and of the gates.
        """
        if y.shape[:-1] != self.token.shape:
            expected = (*self.token.shape, "d")
            raise InputError(f"answers must have the shape {expected}, received {tuple(y.shape)}")
        width = y.shape[-1]
        by_expert = y.reshape(*self._sizes(), width).transpose(0, 1).reshape(-1, width)
        rows = by_expert * self._expert_major(self.weight).unsqueeze(-1)
        tokens = rows.new_zeros(self.present.numel(), width).index_add(0, self._rows(), rows)
        return tokens.reshape(*self.present.shape, width)

    def _rows(self) -> Tensor:
        """The row of each slot among the tokens of all groups, experts first."""
        groups, tokens = self._sizes()[0], self.present.shape[-1]
        first = torch.arange(groups, device=self.token.device) * tokens
        return self._expert_major(self.token.reshape(self._sizes()) + first[:, None, None])

    def _expert_major(self, x: Tensor) -> Tensor:
        return x.reshape(self._sizes()).transpose(0, 1).reshape(-1)

    def _sizes(self) -> tuple[int, int, int]:
        """Groups, experts, slots of an expert."""
        *groups, experts, capacity = self.token.shape
        return math.prod(groups), experts, capacity


class SoftRouting(NamedTuple):
    """Slots that hold averages of tokens: `dispatch` and `combine` without zeros.

    Attributes:
        dispatch: (..., T, E, C); each slot's weights sum to one over the tokens.
        combine: (..., T, E, C); each token's weights sum to one over all slots of all experts.

    Example:
        >>> import torch
        >>> routing = soft_routing(torch.zeros(4, 2, 1))
        >>> routing.send(torch.tensor([[0.0], [0.0], [4.0], [4.0]])).flatten()
        tensor([2., 2.])

    Reference:
        Puigcerver et al., 2023, arXiv 2308.00951.
    """

    dispatch: Tensor
    combine: Tensor

    @property
    def load(self) -> Tensor:
        """The mass of tokens that each expert takes, (..., E): its number of slots."""
        return self.dispatch.sum((-3, -1))

    @property
    def demand(self) -> Tensor:
        """As `load`: nothing is refused."""
        return self.load

    @property
    def dropped(self) -> Tensor:
        """The share of the tokens that no expert takes, (...): 0."""
        return self.dispatch.new_zeros(self.dispatch.shape[:-3])

    def send(self, x: Tensor) -> Tensor:
        """Tokens (..., T, d) to the slots of the experts (..., E, C, d)."""
        _check_tokens(x, self.dispatch.shape[:-2])
        return torch.einsum("...td,...tec->...ecd", x.to(self.dispatch.dtype), self.dispatch).to(x.dtype)

    def collect(self, y: Tensor) -> Tensor:
        """Answers (..., E, C, d) of the experts to the tokens (..., T, d)."""
        return torch.einsum("...ecd,...tec->...td", y.to(self.combine.dtype), self.combine)


def softmax_token_choice(
    logits: Tensor,
    *,
    k: int = 2,
    capacity: int,
    normalize: bool | None = None,
    priority: str = "probability",
    mask: Tensor | None = None,
) -> Routing:
    """Each token takes the k experts of its largest softmax(logits), as long as they have room.

    Where more tokens ask for an expert than it has slots, it keeps the first of them by `priority` and
    drops the others, whose weight is lost. Ties (of float32) go to the earlier token and expert, and a
    choice of weight zero takes no slot. The choice itself has no gradient, its weight has.

    Args:
        logits: of the router, shape (..., T, E): groups of T tokens, E experts; tokens of a group compete
            with each other. Half types are computed in float32.
        k: experts for each token.
        capacity: slots C of each expert, for each group; more than T are never used.
        normalize: whether a token's k weights are divided by their sum, before any is dropped. By default
            where k > 1: with k = 1 the weight would be one, and the router without gradient.
        priority: "probability" (what an expert keeps are its largest probabilities) or "order" (first
            choices before second ones, then earlier tokens before later ones).
        mask: tokens that count, shape (..., T). Padding takes no slot and may hold anything.

    Returns:
        A `Routing`, with weights in float32 or wider.

    Raises:
        InputError: k or capacity out of range; NaN or inf among logits that count (looked at on CPU
            only); shapes that differ.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> routing = softmax_token_choice(logits, k=1, capacity=1)
        >>> routing.token, routing.demand  # experts take tokens 0 and 2, token 1 is dropped
        (tensor([[0],
                [2]]), tensor([2, 1]))

    Reference:
        Shazeer et al., 2017, arXiv 1701.06538; Fedus, Zoph and Shazeer, 2021, arXiv 2101.03961; priority
        by probability after Riquelme et al., 2021, arXiv 2106.05974.
    """
    gates = _gates(logits, capacity, mask)
    return _token_choice(gates, gates, k, capacity, normalize, priority, mask)


def softmax_expert_choice(logits: Tensor, *, capacity: int, mask: Tensor | None = None) -> Routing:
    """Each expert takes the C tokens with the largest softmax(logits) over experts for it.

    Loads are equal by construction; a token may be taken by any number of experts, and by none.

    Args:
        logits: of the router, shape (..., T, E).
        capacity: the tokens C that each expert takes from each group, or T where there are fewer.
        mask: tokens that count, shape (..., T).

    Returns:
        A `Routing` whose weights are the probabilities.

    Raises:
        InputError: as `softmax_token_choice`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> softmax_expert_choice(logits, capacity=2).token
        tensor([[0, 1],
                [2, 1]])

    Reference:
        Zhou et al., 2022, arXiv 2202.09368.
    """
    gates = _gates(logits, capacity, mask)
    return _fill(gates.detach(), gates, capacity, mask)


def soft_routing(logits: Tensor, *, mask: Tensor | None = None) -> SoftRouting:
    """Slots are averages of tokens, and tokens receive averages of slots.

    dispatch_tec = exp(θ_tec) / Σ_t exp(θ_tec), combine_tec = exp(θ_tec) / Σ_ec exp(θ_tec).

    Nothing is dropped, loads are equal, and everything is differentiable; the cost does not depend on
    the number of experts, only on that of the slots.

    Args:
        logits: θ, shape (..., T, E, C): one for each token and slot.
        mask: tokens that count, shape (..., T); the others enter no slot and receive zeros.

    Returns:
        A `SoftRouting`, in float32 or wider.

    Raises:
        InputError: NaN or inf among logits that count (looked at on CPU only); shapes that differ.

    Example:
        >>> import torch
        >>> routing = soft_routing(torch.tensor([[[0.0], [0.0]], [[0.0], [1.0986123]]]))
        >>> routing.dispatch[..., 0], routing.combine[..., 0]
        (tensor([[0.5000, 0.2500],
                [0.5000, 0.7500]]), tensor([[0.5000, 0.5000],
                [0.2500, 0.7500]]))

    Reference:
        Puigcerver et al., 2023, arXiv 2308.00951.
    """
    theta = _finite(logits, mask, 3)
    combine = theta.flatten(-2).softmax(-1).reshape(theta.shape)
    if mask is None:
        return SoftRouting(theta.softmax(-3), combine)
    present = mask.bool()[..., None, None]
    # The lowest number and not -inf: a group may have no token.
    dispatch = theta.masked_fill(~present, torch.finfo(theta.dtype).min).softmax(-3)
    return SoftRouting(dispatch * present, combine * present)


def _token_choice(
    scores: Tensor,
    gates: Tensor,
    k: int,
    capacity: int,
    normalize: bool | None,
    priority: str,
    mask: Tensor | None,
) -> Routing:
    """By `scores` >= 0, (..., T, E), with the weights of `gates`; a score of zero is no choice."""
    tokens, experts = scores.shape[-2:]
    if not 1 <= k <= experts:
        raise InputError(f"k must be in 1 ... {experts}, the number of experts, received {k}")
    if priority not in PRIORITIES:
        raise InputError(f"priority must be one of {', '.join(PRIORITIES)}, received {priority!r}")
    expert, taken = _largest(scores.detach(), k)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, expert, taken)
    weights = torch.where(chosen, gates, 0.0)
    if normalize or (normalize is None and k > 1):
        total = weights.sum(-1, keepdim=True)
        weights = weights / torch.where(total > 0, total, 1.0)
    if priority == "probability":
        standing = torch.where(chosen, scores.detach(), 0.0)
    else:
        place = torch.arange(tokens, device=scores.device).unsqueeze(-1)
        place = place + tokens * torch.arange(k, device=scores.device)
        standing = torch.zeros_like(scores, dtype=torch.int64)
        standing = standing.scatter(-1, expert, torch.where(taken, k * tokens - place, 0))
    return _fill(standing, weights, capacity, mask)


def _fill(standing: Tensor, weights: Tensor, capacity: int, mask: Tensor | None) -> Routing:
    """Each expert keeps the tokens of the highest standing; one of zero does not ask for it."""
    token, filled = _largest(standing.mT, min(capacity, standing.shape[-2]))
    token = torch.where(filled, token, 0)
    weight = torch.where(filled, weights.mT.gather(-1, token), 0.0)
    present = torch.ones_like(weights[..., 0], dtype=torch.bool) if mask is None else mask.bool()
    return Routing(token, weight, filled, (standing > 0).sum(-2), present)


def _largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the largest along the last axis of x >= 0, and whether they are positive.

    They are found among integers without ties, which hold the bits of x in float32 above the index, so
    that the first of equal ones comes first on every device.
    """
    bits = x.float().view(torch.int32).long()  # ordered as the numbers are, where these are >= 0
    last = x.shape[-1] - 1
    best = ((bits << 32) + torch.arange(last, -1, -1, device=x.device)).topk(count, -1).values
    return last - (best & 0xFFFFFFFF), best >> 32 > 0


def _gates(logits: Tensor, capacity: int, mask: Tensor | None) -> Tensor:
    """softmax(logits) over experts, zero for padding."""
    probabilities = _scores(logits, capacity, mask).softmax(-1)
    return probabilities if mask is None else probabilities * mask.unsqueeze(-1)


def _scores(logits: Tensor, capacity: int, mask: Tensor | None) -> Tensor:
    if capacity < 0:
        raise InputError(f"capacity must be >= 0, received {capacity}")
    return _finite(logits, mask, 2)


def _finite(logits: Tensor, mask: Tensor | None, axes: int) -> Tensor:
    """Logits in float32 or wider, zeros for padding; the last `axes` axes are those of one group."""
    check_axis(logits, -1)
    if logits.dim() < axes:
        expected = "(..., T, E, C)" if axes == 3 else "(..., T, E)"
        raise InputError(f"logits must have the shape {expected}, received {tuple(logits.shape)}")
    check_rows(mask, logits.shape[: logits.dim() - axes + 1], "mask")
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask is not None:
        present = mask.bool().reshape(*mask.shape, *(1,) * (axes - 1))
        scores = torch.where(present, scores, 0.0)
    if not holds(torch.isfinite(scores)):
        wrong = scores.detach()[~torch.isfinite(scores)]
        raise InputError(f"logits of shape {tuple(logits.shape)} must be finite, received {float(wrong[0])}")
    return scores


def _check_tokens(x: Tensor, rows: torch.Size) -> None:
    if x.shape[:-1] != rows:
        raise InputError(f"tokens must have the shape {(*rows, 'd')}, received {tuple(x.shape)}")
