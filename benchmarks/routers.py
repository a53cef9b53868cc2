"""What does each router cost in a mixture-of-experts layer, next to a plain top-2 softmax router?

    python benchmarks/routers.py

One group of 4096 tokens of width 512 and 64 experts of width 1024, two for each token, in float32 on a CPU:
the layer forward and backward, and the router alone from its logits to the gradient of its weights. The plain
layer is written below as in most models: top-2 of softmax, and a loop over experts that gather their tokens
and add their answers, without capacity. The others have capacity factor 1, and drop what does not fit (how
much is recorded); soft routing has as many slots. It is there a second time in groups, as of images or
sequences, since the cost of its weights grows with the square of the tokens in a group.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _compare import in_turns, ratio, summary
from _record import record
from torch import Tensor

from fenchel import MoEFeedForward, Router, SoftRouter, SoftRouting
from fenchel.nn.routers import METHODS

K, PLAIN, SOFT = 2, "plain top-2 softmax", "soft"


class PlainLayer(torch.nn.Module):
    """Top-2 of softmax, normalised, then one expert after the other."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = torch.nn.Linear(width, experts, bias=False)
        self.experts = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(width, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, width)
            )
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        gates, chosen = plain_router(self.router(x))
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == e)
            y = y.index_add(0, token, expert(x[token]) * gates[token, rank, None])
        return y


def plain_router(logits: Tensor) -> tuple[Tensor, Tensor]:
    gates, chosen = logits.softmax(-1).topk(K, -1)
    return gates / gates.sum(-1, keepdim=True), chosen


def both_ways(module: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Forward and backward, to the input and the parameters."""

    def run() -> None:
        x.grad = None
        if isinstance(module, torch.nn.Module):
            module.zero_grad()
        module(x).backward(gradient)

    return run


def made(name: str, width: int, experts: int, tokens: int) -> Router | SoftRouter:
    """A router of the work of the plain one, for groups of so many tokens."""
    if name in METHODS:
        return Router(width, experts, name, k=K, capacity_factor=1.0)
    return SoftRouter(width, experts, slots=K * tokens // experts)


def weights_of(router: Router | SoftRouter, logits: Tensor) -> Tensor:
    """What carries the gradient of a routing, as one number."""
    routing = router.route(logits)
    return routing.combine.sum() if isinstance(routing, SoftRouting) else routing.weight.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    sizes = {"tokens": 4096, "experts": 64, "width": 512, "hidden": 1024, "group": 256, "rounds": 7}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    asked = parser.parse_args()
    tokens, experts, width = asked.tokens, asked.experts, asked.width
    torch.manual_seed(0)
    x, gradient = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    logits = F.linear(x, torch.empty(experts, width).uniform_(-(width**-0.5), width**-0.5)).detach()

    layers = {PLAIN: both_ways(PlainLayer(width, asked.hidden, experts), x, gradient)}
    scores = logits.clone().requires_grad_()
    alone = {PLAIN: both_ways(lambda scores: plain_router(scores)[0].sum(), scores, torch.ones(()))}
    dropped = {PLAIN: 0.0}
    group_of = dict.fromkeys((*METHODS, SOFT), tokens) | {f"{SOFT}, groups of {asked.group}": asked.group}
    for name, size in group_of.items():
        router = made(name, width, experts, size)
        groups = x.detach().unflatten(0, (-1, size)).requires_grad_()
        scores = logits.unflatten(0, (-1, size))
        if isinstance(router, SoftRouter):
            scores = scores.unsqueeze(-1).repeat(1, 1, 1, router.weight.shape[1])
        alone[name] = both_ways(partial(weights_of, router), scores.requires_grad_(), torch.ones(()))
        layer = MoEFeedForward(width, asked.hidden, experts, router=router)
        layers[name] = both_ways(layer, groups, gradient.view_as(groups))
        dropped[name] = float(router(groups)[0].dropped.mean())
    for work, sides in (("router", alone), ("layer", layers)):
        times = in_turns(sides, asked.rounds)
        figures = {
            "work": f"{work}, forward and backward",
            "shape": {name: getattr(asked, name) for name in sizes if name != "rounds"},
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "sides": {side: summary(seconds) for side, seconds in times.items()},
            "of_plain": {side: ratio(times[side], times[PLAIN]) for side in sides if side != PLAIN},
            "dropped_tokens": dropped,
        }
        record("routers", figures)
        for side, seconds in times.items():
            of_plain = f", {ratio(seconds, times[PLAIN])} of plain" if side != PLAIN else ""
            print(f"{work}, {side}: {summary(seconds)['median_ms']} ms{of_plain}", flush=True)


if __name__ == "__main__":
    main()
