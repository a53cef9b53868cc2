"""A mixture-of-experts feed-forward layer, where the MLP of a transformer stood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fenchel.errors import InputError
from fenchel.losses.reduce import check_rows
from fenchel.nn.routers import named
from fenchel.nn.routing import Routing, SoftRouting


class MoEFeedForward(torch.nn.Module):
    """E expert MLPs and a router, where the feed-forward layer of a transformer stood.

    Expert e computes act(x W_e + b_e) V_e + c_e, with a gate act(x G_e) * (x W_e) where `gated`. A token
    that no expert takes receives zeros, so that the residual connection carries it on.

    Tokens of one group (the T of one leading index) compete for the slots of the experts. Softmax token
    choice with `capacity_factor=math.inf` routes a token regardless of those after it, as no transport
    plan does: for a language model that generates, use it, at least after training
    (`layer.router.capacity_factor = math.inf`).

    Every call leaves the auxiliary loss of its router in `auxiliary_loss`, and the routing, with the
    `load` of the experts and the share of `dropped` tokens, in `routing`; add `auxiliary_loss(model)`
    to the loss that is trained on. Under activation checkpointing this needs `use_reentrant=False`.

    Into a Hugging Face Llama, every expert a copy of the dense MLP (sparse upcycling):

        for block in model.model.layers:
            mlp = block.mlp
            block.mlp = MoEFeedForward.upcycle(
                mlp.up_proj, mlp.down_proj, gate=mlp.gate_proj, experts=8, activation=mlp.act_fn
            )

    and into a SigLIP or CLIP vision tower, whose block has `mlp.fc1` and `mlp.fc2`, the same with
    `upcycle(mlp.fc1, mlp.fc2, experts=8, activation=mlp.activation_fn)`. Such a block calls it without a
    mask: padding is routed as tokens are, takes slots, and counts in the auxiliary loss.

    Args:
        d_model: the width d of the tokens.
        d_hidden: the width of each expert.
        experts: their number E.
        router: a name, one of those of `Router` or "soft" (one slot an expert); or a module such as
            `Router` or `SoftRouter`, called with tokens and mask.
        k: experts for each token, where the router is named.
        capacity_factor: as in `Router`, where the router is named.
        activation: elementwise.
        gated: whether experts are gated, as in SwiGLU.
        bias: whether experts have biases.
        dropout: probability of a hidden unit to be dropped in training.
        flatten: whether all tokens form one group; by default each leading index is one.

    Returns:
        On call with x (..., T, d) and optionally a mask (..., T) of the tokens that count, the sum over
        experts of gate times answer, the shape and dtype of x; zeros for padding.

    Raises:
        InputError: an unknown router, a number out of range, a wrong width.

    Example:
        >>> import torch
        >>> layer = MoEFeedForward(8, 16, experts=4, k=1)
        >>> layer(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])

    Reference:
        Shazeer et al., 2017, arXiv 1701.06538; Liu, Blondel, Riquelme and Puigcerver, 2024,
        arXiv 2401.15969; upcycling: Komatsuzaki et al., 2022, arXiv 2212.05055.
    """

    bias_in: Tensor | None
    bias_out: Tensor | None
    auxiliary_loss: Tensor | None
    routing: Routing | SoftRouting | None

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        experts: int,
        *,
        router: str | torch.nn.Module = "softmax-token-choice",
        k: int = 2,
        capacity_factor: float = 1.25,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        flatten: bool = False,
    ) -> None:
        super().__init__()
        if d_hidden < 1:
            raise InputError(f"d_hidden must be at least 1, received {d_hidden}")
        if isinstance(router, str):
            router = named(router, d_model, experts, k=k, capacity_factor=capacity_factor)
        self.router: torch.nn.Module = router
        self.activation, self.gated, self.flatten = activation, gated, flatten
        self.dropout = torch.nn.Dropout(dropout)
        inner = d_hidden * (2 if gated else 1)  # gated: the gate comes first
        self.weight_in = torch.nn.Parameter(torch.empty(experts, d_model, inner))
        self.weight_out = torch.nn.Parameter(torch.empty(experts, d_hidden, d_model))
        for name, width in (("bias_in", inner), ("bias_out", d_model)):
            self.register_parameter(name, torch.nn.Parameter(torch.empty(experts, width)) if bias else None)
        self.reset_parameters()
        self.auxiliary_loss = self.routing = None

    def reset_parameters(self) -> None:
        """Draw the experts as `torch.nn.Linear` does: uniform in ± 1 / √(its inputs)."""
        for weight, bias in ((self.weight_in, self.bias_in), (self.weight_out, self.bias_out)):
            bound = weight.shape[1] ** -0.5
            for parameter in (weight, bias):
                if parameter is not None:
                    torch.nn.init.uniform_(parameter, -bound, bound)

    @classmethod
    def upcycle(
        cls,
        up: torch.nn.Linear,
        down: torch.nn.Linear,
        *,
        gate: torch.nn.Linear | None = None,
        experts: int,
        **options: Any,
    ) -> Self:
        """A layer whose experts are all copies of a dense MLP down(act(up(x))).

        With gates that sum to one, and room for every token, it computes what the MLP did.

        Args:
            up: the first linear map.
            down: the second.
            gate: the linear map of a gated MLP, down(act(gate(x)) * up(x)).
            experts: the number of copies.
            options: of `MoEFeedForward`, such as `router` and `activation`.

        Raises:
            InputError: maps that do not fit each other, or of which only some have a bias.
        """
        first = [up] if gate is None else [gate, up]
        biased = [linear.bias is not None for linear in (*first, down)]
        if any(biased) != all(biased):
            raise InputError("either all linear maps of the MLP must have a bias, or none")
        wide, narrow = tuple(up.weight.shape), tuple(down.weight.shape)
        if narrow != wide[::-1] or tuple(first[0].weight.shape) != wide:
            received = ", ".join(str(tuple(linear.weight.shape)) for linear in (*first, down))
            raise InputError(
                "the weights of the MLP must be (hidden, d), for each of its first maps, and (d, hidden), "
                f"received {received}"
            )
        layer = cls(
            up.in_features, up.out_features, experts, gated=gate is not None, bias=all(biased), **options
        )
        layer.to(up.weight.device, up.weight.dtype)
        with torch.no_grad():
            layer.weight_in.copy_(torch.cat([linear.weight for linear in first]).mT)
            layer.weight_out.copy_(down.weight.mT)
            if layer.bias_in is not None and layer.bias_out is not None:
                layer.bias_in.copy_(torch.cat([linear.bias for linear in first]))
                layer.bias_out.copy_(down.bias)
        return layer

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        check_rows(mask, x.shape[:-1], "mask")
        grouped = x
        if self.flatten:
            grouped = x.reshape(-1, x.shape[-1])
            mask = None if mask is None else mask.reshape(-1)
        if mask is not None:  # whatever padding holds: zero times NaN is NaN
            grouped = torch.where(mask.bool().unsqueeze(-1), grouped, 0.0)
        routing: Routing | SoftRouting
        routing, self.auxiliary_loss = self.router(grouped, mask)
        self.routing = routing
        y = routing.collect(self._experts(routing.send(grouped)))
        return y.reshape(x.shape).to(x.dtype)

    def _experts(self, x: Tensor) -> Tensor:
        """(..., E, C, d) to the same shape, expert e on its own slots."""
        by_expert = x.movedim(-3, 0)
        if len(by_expert) != len(self.weight_in):
            raise InputError(f"the layer has {len(self.weight_in)} experts, and its router {len(by_expert)}")
        rows = by_expert.flatten(1, -2)
        hidden = _linear(rows, self.weight_in, self.bias_in)
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = self.activation(gate) * value
        else:
            hidden = self.activation(hidden)
        answers = _linear(self.dropout(hidden), self.weight_out, self.bias_out)
        return answers.reshape(by_expert.shape).movedim(0, -3)

    def extra_repr(self) -> str:
        experts, d_model, _ = self.weight_in.shape
        return f"{d_model}, {self.weight_out.shape[1]}, experts={experts}, gated={self.gated}"

    def __getstate__(self) -> dict[str, Any]:
        # What a call left belongs to a graph, which can be neither copied nor saved.
        return {**self.__dict__, "routing": None, "auxiliary_loss": None}


def auxiliary_loss(model: torch.nn.Module) -> Tensor:
    """The sum of the auxiliary losses of all mixture-of-experts layers, of their last calls.

    Args:
        model: any module with `MoEFeedForward` layers inside, or one itself.

    Returns:
        A scalar to add to the loss of the task.

    Raises:
        InputError: the model has no such layer, or none has been called.

    Example:
        >>> import torch
        >>> layer = MoEFeedForward(8, 16, experts=4, router="softmax-expert-choice")
        >>> y = layer(torch.randn(2, 10, 8))
        >>> auxiliary_loss(layer)  # expert choice has none
        tensor(0.)

    Reference:
        Fedus, Zoph and Shazeer, 2021, arXiv 2101.03961 (the losses of all layers are summed).
    """
    layers = [module for module in model.modules() if isinstance(module, MoEFeedForward)]
    losses = [layer.auxiliary_loss for layer in layers if layer.auxiliary_loss is not None]
    if not losses:
        raise InputError(
            f"the model has {len(layers)} mixture-of-experts layers, and none of them has been called"
        )
    return torch.stack([loss.to(losses[0].device) for loss in losses]).sum()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(E, N, d) times (E, d, h), plus (E, h)."""
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight)
