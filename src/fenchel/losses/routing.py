"""Losses that keep the experts of a mixture evenly loaded and the logits of its router small."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import InputError
from fenchel.losses.reduce import check_rows, reduce
from fenchel.operators._inputs import check_axis, check_logits


def load_balance_loss(
    logits: Tensor,
    *,
    k: int = 1,
    load: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """E Σ_e f_e P_e: how unevenly the tokens of a group choose among E experts.

    f_e is the share of the group's choices that fall on expert e, P_e the mean over tokens of
    softmax(logits)_e. It is 1 for uniform probabilities, and at most E / k, where all tokens choose the
    same k experts with certainty and probability 1 / k each. Only P has a gradient: where an expert
    has more than its share, its logits are pushed down.

    Args:
        logits: of the router, shape (..., T, E): groups of T tokens, E experts. Half types are computed
            in float32.
        k: experts that each token chooses, those of its largest logits.
        load: choices that fall on each expert, shape (..., E); by default counted from the logits.
        mask: tokens that count, shape (..., T); the others are padding and may hold anything.
        reduction: "mean" and "sum" are over groups; a group without tokens does not count.

    Returns:
        The loss, in the dtype of logits; with "none" one for each group, shape (...).

    Raises:
        InputError: k is not in 1 ... E; NaN or inf among logits that count, or a negative load (looked at
            on CPU only); shapes that differ.

    Example:
        >>> import torch
        >>> load_balance_loss(torch.zeros(6, 4), k=2)
        tensor(1.)
        >>> load_balance_loss(torch.tensor([[90.0, 0.0, 0.0]]).expand(6, 3))
        tensor(3.)

    Reference:
        Fedus, Zoph and Shazeer, 2021, arXiv 2101.03961, equations 4 to 6 (k = 1).
    """
    scores = _logits(logits, mask)
    experts = scores.shape[-1]
    check_choices(k, experts)
    present = scores.new_ones(scores.shape[:-1]) if mask is None else mask.to(scores.dtype)
    if load is None:
        chosen = torch.zeros_like(scores).scatter(-1, scores.detach().topk(k, -1).indices, 1.0)
        load = (chosen * present.unsqueeze(-1)).sum(-2)
    else:
        check_rows(load, (*scores.shape[:-2], experts), "load")
        if not holds(load >= 0):
            raise InputError(f"load must be >= 0, received {float(load.detach().min())}")
    share = _shares(load.to(scores.dtype).detach())
    probability = torch.einsum("...te,...t->...e", scores.softmax(-1), present)
    tokens = present.sum(-1)
    values = experts * (share * probability).sum(-1) / tokens.clamp_min(1)
    return reduce(values, reduction=reduction, mask=tokens > 0).to(logits.dtype)


def router_z_loss(logits: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """(log Σ_e exp(logits_e))², which keeps the logits of a router small.

    Args:
        logits: of the router, shape (..., T, E). Half types are computed in float32.
        mask: tokens that count, shape (..., T).
        reduction: "mean" and "sum" are over the tokens that count; "none" has one value for each token.

    Returns:
        The loss, in the dtype of logits.

    Raises:
        InputError: NaN or inf among logits that count (looked at on CPU only); shapes that differ.

    Example:
        >>> import torch
        >>> router_z_loss(torch.zeros(5, 4)) == torch.tensor(4.0).log() ** 2
        tensor(True)

    Reference:
        Zoph et al., 2022, arXiv 2202.08906 (ST-MoE), equation 5.
    """
    values = torch.logsumexp(_logits(logits, mask), -1).square()
    return reduce(values, reduction=reduction, mask=mask).to(logits.dtype)


def importance_loss(gates: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """CV(Σ_t gates_t)², the squared coefficient of variation of the experts' total gates.

    With importance I_e = Σ_t gates_te it is E Σ_e I_e² / (Σ_e I_e)² - 1: zero where all experts matter
    alike, E - 1 where only one does.

    Args:
        gates: non-negative weights of the experts, shape (..., T, E), such as softmax probabilities or
            those of the chosen experts with zeros elsewhere. Half types are computed in float32.
        mask: tokens that count, shape (..., T).
        reduction: "mean" and "sum" are over groups; a group without any gate does not count.

    Returns:
        The loss, in the dtype of gates; with "none" one for each group, shape (...).

    Raises:
        InputError: negative gates or NaN (looked at on CPU only); shapes that differ.

    Example:
        >>> import torch
        >>> importance_loss(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor(0.2500)

    Reference:
        Shazeer et al., 2017, arXiv 1701.06538, equations 6 and 7.
    """
    kept = _kept(gates, mask, "gates")
    if not holds(kept >= 0):
        raise InputError(f"gates must be >= 0, received {float(kept.detach().min())}")
    importance = kept.sum(-2)
    values = importance.shape[-1] * _shares(importance).square().sum(-1) - 1
    return reduce(values, reduction=reduction, mask=importance.sum(-1) > 0).to(gates.dtype)


def check_choices(k: int, experts: int) -> None:
    """Raise InputError unless a token can choose k of the experts."""
    if not isinstance(k, int) or not 1 <= k <= experts:
        raise InputError(f"k must be an integer in 1 ... {experts}, the number of experts, received {k}")


def _shares(x: Tensor) -> Tensor:
    """x / Σ x over the last axis; zeros stay zeros."""
    total = x.sum(-1, keepdim=True)
    return x / torch.where(total > 0, total, 1.0)


def _logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits in float32 or wider, zeros for padding."""
    kept = _kept(logits, mask, "logits")
    if kept.numel():
        check_logits(kept, -1)
    return kept


def _kept(x: Tensor, mask: Tensor | None, name: str) -> Tensor:
    check_axis(x, -1, name=name)
    if x.dim() < 2:
        raise InputError(f"{name} must have the shape (..., tokens, experts), received {tuple(x.shape)}")
    check_rows(mask, x.shape[:-1], "mask")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide if mask is None else torch.where(mask.bool().unsqueeze(-1), wide, 0.0)
