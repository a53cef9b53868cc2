"""Who goes where, and with which weight: the dispatch and combine tensors of a mixture of experts."""

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
        >>> from fenchel.nn import softmax_expert_choice
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
        _check_answers(y, self.token.shape)
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
        _check_answers(y, self.combine.shape[:-3] + self.combine.shape[-2:])
        return torch.einsum("...ecd,...tec->...td", y.to(self.combine.dtype), self.combine)


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
    theta = finite(logits, mask, 3)
    combine = theta.flatten(-2).softmax(-1).reshape(theta.shape)
    if mask is None:
        return SoftRouting(theta.softmax(-3), combine)
    present = mask.bool()[..., None, None]
    # The lowest number and not -inf: a group may have no token.
    dispatch = theta.masked_fill(~present, torch.finfo(theta.dtype).min).softmax(-3)
    return SoftRouting(dispatch * present, combine * present)


def finite(logits: Tensor, mask: Tensor | None, axes: int) -> Tensor:
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
    if scores.numel() and not holds(torch.stack(torch.aminmax(scores.detach())).isfinite()):
        wrong = scores.detach()[~torch.isfinite(scores)]
        raise InputError(f"logits of shape {tuple(logits.shape)} must be finite, received {float(wrong[0])}")
    return scores


def _check_tokens(x: Tensor, rows: torch.Size) -> None:
    if x.shape[:-1] != rows:
        raise InputError(f"tokens must have the shape {(*rows, 'd')}, received {tuple(x.shape)}")


def _check_answers(y: Tensor, slots: torch.Size) -> None:
    if y.shape[:-1] != slots:
        raise InputError(f"answers must have the shape {(*slots, 'd')}, received {tuple(y.shape)}")
