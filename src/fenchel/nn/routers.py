"""Routers with state: the linear maps whose logits the functions of routing route by."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fenchel.errors import InputError, nearest
from fenchel.losses import load_balance_loss, router_z_loss
from fenchel.losses.routing import check_choices
from fenchel.nn.expert_choice import softmax_expert_choice, sparse_expert_choice
from fenchel.nn.routing import Routing, SoftRouting, soft_routing
from fenchel.nn.token_choice import sinkhorn_token_choice, softmax_token_choice, sparse_token_choice

TOKEN_CHOICE: dict[str, Callable[..., Routing]] = {
    "softmax-token-choice": softmax_token_choice,
    "sinkhorn-token-choice": sinkhorn_token_choice,
    "sparse-token-choice": sparse_token_choice,
}
EXPERT_CHOICE: dict[str, Callable[..., Routing]] = {
    "softmax-expert-choice": softmax_expert_choice,
    "sparse-expert-choice": sparse_expert_choice,
}
METHODS = TOKEN_CHOICE | EXPERT_CHOICE
SOFT = "soft"


class Router(torch.nn.Module):
    """Routes tokens by a linear map and one of the methods of sparse routing.

    The logits and all that follows are computed in float32 or wider, whatever the dtype of the tokens and
    under autocast too: half types would choose other experts. `torch.compile` breaks its graph at the
    transport of the Sinkhorn and sparse methods, not at softmax.

    Args:
        d_model: the width d of the tokens.
        experts: their number E.
        method: "softmax-token-choice", "sinkhorn-token-choice", "sparse-token-choice",
            "softmax-expert-choice" or "sparse-expert-choice"; see the functions of these names.
        k: experts for each token; under expert choice in the mean.
        capacity_factor: each expert has C = ⌈k T / E · capacity_factor⌉ slots in a group of T tokens
            (padding included), and at most T. `math.inf` gives room for every token.
        jitter: in training the router sees its tokens times uniform noise in 1 ± jitter.
        balance_weight: of `load_balance_loss` in the auxiliary loss; by default 0.01 for
            softmax-token-choice and 0 for the others, which balance loads by themselves.
        z_weight: of `router_z_loss` in the auxiliary loss; 0.001 is usual.
        options: what else the function of the method takes, such as `normalize` or `regularization`.

    Returns:
        On call with tokens (..., T, d) and optionally a mask (..., T) of those that count, the `Routing`
        and the auxiliary loss, a scalar.

    Raises:
        InputError: an unknown method or option, or a number out of range.

    Example:
        >>> import torch
        >>> router = Router(8, 4, "softmax-expert-choice", k=1, capacity_factor=1.0)
        >>> routing, loss = router(torch.randn(2, 12, 8))
        >>> routing.load, loss
        (tensor([[3, 3, 3, 3],
                [3, 3, 3, 3]]), tensor(0.))

    Reference:
        Liu, Blondel, Riquelme and Puigcerver, 2024, arXiv 2401.15969; jitter: Fedus, Zoph and Shazeer,
        2021, arXiv 2101.03961.
    """

    def __init__(
        self,
        d_model: int,
        experts: int,
        method: str = "softmax-token-choice",
        *,
        k: int = 2,
        capacity_factor: float = 1.25,
        jitter: float = 0.0,
        balance_weight: float | None = None,
        z_weight: float = 0.0,
        **options: bool | float | str,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            known = (*METHODS, SOFT)
            hint = " here, make it by SoftRouter" if method == SOFT else nearest(method, known)
            raise InputError(f"unknown router {method!r}{hint}; there are {', '.join(known)}")
        _check_sizes(d_model=d_model, experts=experts)
        check_choices(k, experts)
        if not capacity_factor > 0:
            raise InputError(f"capacity_factor must be positive, received {capacity_factor}")
        if not 0 <= jitter < 1:
            raise InputError(f"jitter must be in [0, 1), received {jitter}")
        taken = inspect.signature(METHODS[method]).parameters.keys() - {"logits", "k", "capacity", "mask"}
        for option in options:
            if option not in taken:
                raise InputError(f"{method} has no option {option!r}{nearest(option, sorted(taken))}")
        self.method, self.k, self.capacity_factor, self.jitter = method, k, capacity_factor, jitter
        if balance_weight is None:
            balance_weight = 0.01 if method == "softmax-token-choice" else 0.0
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.options = options
        self.weight = torch.nn.Parameter(torch.empty(experts, d_model))
        torch.nn.init.uniform_(self.weight, -(d_model**-0.5), d_model**-0.5)

    def capacity(self, tokens: int) -> int:
        """Slots of each expert for a group of so many tokens."""
        wanted = self.k * tokens / len(self.weight) * self.capacity_factor
        # A product that is whole but for rounding is not a slot more.
        return tokens if wanted > tokens else math.ceil(wanted * (1 - 1e-12))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Routing, Tensor]:
        _check_width(x, self.weight.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            tokens = _wide(x)
            if self.training and self.jitter:
                noise = torch.empty_like(tokens).uniform_(1 - self.jitter, 1 + self.jitter)
                tokens = tokens * noise
            logits = F.linear(tokens, self.weight.to(tokens.dtype))
            routing = self.route(logits, mask)
            return routing, self._auxiliary_loss(logits, routing, mask)

    def route(self, logits: Tensor, mask: Tensor | None = None) -> Routing:
        """The routing of logits (..., T, E)."""
        k = {"k": self.k} if self.method in TOKEN_CHOICE else {}
        capacity = self.capacity(logits.shape[-2])
        return METHODS[self.method](logits, capacity=capacity, mask=mask, **k, **self.options)

    def _auxiliary_loss(self, logits: Tensor, routing: Routing, mask: Tensor | None) -> Tensor:
        loss = logits.new_zeros(())
        if self.balance_weight:
            balance = load_balance_loss(logits, k=self.k, load=routing.demand, mask=mask)
            loss = loss + self.balance_weight * balance
        if self.z_weight:
            loss = loss + self.z_weight * router_z_loss(logits, mask=mask)
        return loss

    def extra_repr(self) -> str:
        experts, d_model = self.weight.shape
        return f"{d_model}, {experts}, {self.method!r}, k={self.k}, capacity_factor={self.capacity_factor}"


class SoftRouter(torch.nn.Module):
    """Soft mixture of experts: every slot is an average of all tokens.

    The logits are s <x_t, φ_ec> / (|x_t| |φ_ec|) with a learned scale s, in float32 or wider.

    Args:
        d_model: the width d of the tokens.
        experts: their number E.
        slots: the slots C of each expert, whatever the number of tokens. With k T / E slots the experts
            cost as much as k for each of T tokens; logits, dispatch and combine cost 3 T / 2 h of that
            on top, h the width of an expert, so that groups are to be images or sequences, not batches.

    Returns:
        On call with tokens (..., T, d) and optionally a mask (..., T) of those that count, the
        `SoftRouting` and the auxiliary loss, which is 0.

    Raises:
        InputError: a number out of range.

    Example:
        >>> import torch
        >>> routing, _ = SoftRouter(8, 4, slots=3)(torch.randn(2, 12, 8))
        >>> routing.dispatch.shape
        torch.Size([2, 12, 4, 3])

    Reference:
        Puigcerver et al., 2023, arXiv 2308.00951 (the normalised logits: section 2.3).
    """

    def __init__(self, d_model: int, experts: int, *, slots: int = 1) -> None:
        super().__init__()
        _check_sizes(d_model=d_model, experts=experts, slots=slots)
        self.weight = torch.nn.Parameter(torch.randn(experts, slots, d_model) * d_model**-0.5)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[SoftRouting, Tensor]:
        experts, slots, d_model = self.weight.shape
        _check_width(x, d_model)
        with torch.autocast(x.device.type, enabled=False):
            tokens = F.normalize(_wide(x), dim=-1)
            keys = self.scale.to(tokens.dtype) * F.normalize(self.weight.to(tokens.dtype), dim=-1)
            logits = F.linear(tokens, keys.flatten(0, 1)).unflatten(-1, (experts, slots))
            return self.route(logits, mask), logits.new_zeros(())

    def route(self, logits: Tensor, mask: Tensor | None = None) -> SoftRouting:
        """The routing of logits (..., T, E, C)."""
        return soft_routing(logits, mask=mask)

    def extra_repr(self) -> str:
        experts, slots, d_model = self.weight.shape
        return f"{d_model}, {experts}, slots={slots}"


def named(method: str, d_model: int, experts: int, *, k: int, capacity_factor: float) -> Router | SoftRouter:
    """The router of a name, with one slot for each expert where it is soft."""
    if method == SOFT:
        return SoftRouter(d_model, experts)
    return Router(d_model, experts, method, k=k, capacity_factor=capacity_factor)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_width(x: Tensor, d_model: int) -> None:
    if x.dim() < 2 or x.shape[-1] != d_model:
        raise InputError(f"tokens must have the shape (..., T, {d_model}), received {tuple(x.shape)}")
    if not x.is_floating_point():
        raise InputError(f"tokens must be a floating-point tensor, received {x.dtype}")


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, received {size}")
