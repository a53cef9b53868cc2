"""The trainings: every router on the same digits, and what its routings are checked for."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from fenchel.losses import importance_loss
from fenchel.nn import MoEFeedForward, Router, Routing, SoftRouter, SoftRouting, auxiliary_loss
from fenchel.reproductions.moe_routers.recipe import (
    DENSE,
    EXPERT_CHOICE,
    MODELS,
    SOFT,
    SPARSE,
    SPARSE_EC,
    Recipe,
)
from fenchel.reproductions.units import Tell, kept, over_seeds, seeds_of
from fenchel.reproductions.workspace import Workspace

PATCH, PATCHES = 2, 16
ROUNDING = 1e-5  # of sums of float32
Figures = dict[str, Any]


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Train what an earlier run did not; returns all figures, by seed and router."""
    seeds = seeds_of(recipe)
    costs = {unit_of(seed, name): 1.0 for seed in seeds for name in MODELS}
    over_seeds(recipe, workspace, progress, costs, lambda: None, run_seed)
    return {
        "seeds": [run_seed(recipe, workspace, seed) for seed in seeds],
        "setup": {
            "images": f"digits of scikit-learn, {recipe.test_size} of them for the test",
            "tokens": f"{PATCHES} patches of {PATCH} by {PATCH} pixels; a batch is one group, an image where "
            "routing is soft",
            "model": f"{recipe.blocks} blocks of width {recipe.width}, {recipe.experts} experts of "
            f"{recipe.hidden}, {recipe.k} for each token, capacity factor 1",
            "training": f"{recipe.epochs} epochs, batches of {recipe.batch}, Adam {recipe.learning_rate:g}",
        },
    }


def unit_of(seed: int, name: str) -> str:
    return f"seed-{seed}/{name.lower().replace(' ', '-').replace(',', '')}"


def run_seed(recipe: Recipe, workspace: Workspace, seed: int) -> dict[str, Any]:
    """The figures of one seed, by router."""
    torch.set_num_threads(1)
    found = {
        name: kept(workspace, unit_of(seed, name), partial(_train, recipe=recipe, name=name, seed=seed))
        for name in MODELS
    }
    return {"seed": seed, "routers": found}


def _train(_: Path, recipe: Recipe, name: str, seed: int) -> Figures:
    return train(recipe, name, seed)


def digits(recipe: Recipe, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training patches (n, 16, 4) and classes, then those of the test; the split is the seed's."""
    images, classes = load_digits(return_X_y=True)
    pixels = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 8, 8) / 8 - 1
    patches = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(-2).flatten(1, 2)
    train, test = train_test_split(
        range(len(classes)), test_size=recipe.test_size, stratify=classes, random_state=seed
    )
    labels = torch.as_tensor(classes)
    return patches[train], labels[train], patches[test], labels[test]


class Block(torch.nn.Module):
    """Attention, then the feed-forward layer under study, each on what a norm gives it."""

    def __init__(self, recipe: Recipe, feed_forward: torch.nn.Module) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(recipe.width) for _ in range(2))
        self.attention = torch.nn.MultiheadAttention(recipe.width, recipe.heads, batch_first=True)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        answer: Tensor = self.feed_forward(self.norms[1](x))
        return x + answer


class Classifier(torch.nn.Module):
    """Patches to the logits of ten digits."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(PATCH**2, recipe.width)
        self.places = torch.nn.Parameter(0.02 * torch.randn(PATCHES, recipe.width))
        self.blocks = torch.nn.Sequential(
            *(Block(recipe, feed_forward(recipe, name)) for _ in range(recipe.blocks))
        )
        self.head = torch.nn.Sequential(torch.nn.LayerNorm(recipe.width), torch.nn.Linear(recipe.width, 10))

    def forward(self, patches: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(patches) + self.places).mean(1))
        return logits


def feed_forward(recipe: Recipe, name: str) -> torch.nn.Module:
    """The layer under study; all of them do the same work for each token of a training batch."""
    width, experts, k = recipe.width, recipe.experts, recipe.k
    if name == DENSE:
        hidden = k * recipe.hidden
        return torch.nn.Sequential(
            torch.nn.Linear(width, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, width)
        )
    router: torch.nn.Module
    if name == SOFT:
        router = SoftRouter(width, experts, slots=k * PATCHES // experts)
    else:
        method, balance = SPARSE[name]
        router = Router(width, experts, method, k=k, capacity_factor=1.0, balance_weight=balance)
    return MoEFeedForward(width, recipe.hidden, experts, router=router, flatten=name != SOFT)


def train(recipe: Recipe, name: str, seed: int) -> Figures:
    """The figures of one training; every routing on the way is checked."""
    x, y, test_x, test_y = digits(recipe, seed)
    torch.manual_seed(seed)
    model = Classifier(recipe, name)
    layers = [module for module in model.modules() if isinstance(module, MoEFeedForward)]
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    order = torch.Generator().manual_seed(seed)  # the same batches for every router
    curve: list[list[float | None]] = []
    violated = checked = 0

    def check() -> None:
        nonlocal violated, checked
        for layer in layers:
            if layer.routing is not None:
                violated += violations(layer.routing, name, recipe.k)
                checked += 1

    for epoch in range(recipe.epochs):
        for batch in torch.randperm(len(x), generator=order).split(recipe.batch):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            (loss + auxiliary_loss(model) if layers else loss).backward()
            optimizer.step()
            check()
        figures = evaluate(model, layers, name, test_x, test_y)
        check()
        curve.append([epoch + 1, figures["accuracy"], figures["spread"]])
    return {**figures, "violations": violated, "routings": checked, "curve": curve}


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, layers: list[MoEFeedForward], name: str, x: Tensor, y: Tensor
) -> Figures:
    """Accuracy, and in the mean over layers how a router divided the tokens of all images."""
    model.eval()
    accuracy = float((model(x).argmax(-1) == y).float().mean())
    model.train()
    divided = [division(layer.routing, name) for layer in layers if layer.routing is not None]
    means = torch.tensor(divided).mean(0).tolist() if divided else [None] * 3
    return {"accuracy": accuracy, **dict(zip(("spread", "dropped_choices", "left_out"), means, strict=True))}


def division(routing: Routing | SoftRouting, name: str) -> tuple[float, float, float]:
    """How a router divided tokens among experts.

    The coefficient of variation over experts of the tokens that ask for each, or that it takes where
    experts choose; the share of what was asked that there was no room for; and the share of the tokens
    that no expert takes.
    """
    chosen_by_tokens = name not in (*EXPERT_CHOICE, SOFT)
    load = routing.load.float().reshape(-1, routing.load.shape[-1])
    asked = routing.demand.float().reshape(load.shape) if chosen_by_tokens else load
    refused = 1 - float(load.sum() / asked.sum())
    spread = float(importance_loss(asked).clamp_min(0).sqrt())
    return spread, refused, float(routing.dropped.mean())


@torch.no_grad()
def violations(routing: Routing | SoftRouting, name: str, k: int) -> int:
    """How often a routing, of one group unless it is soft, breaks what its router promises."""
    if isinstance(routing, SoftRouting):
        sums = (routing.dispatch.sum(-3), routing.combine.sum((-1, -2)))
        return sum(int(((each - 1).abs() > ROUNDING).sum()) for each in sums)
    tokens, experts = len(routing.present), len(routing.load)
    capacity = math.ceil(k * tokens / experts)
    times = torch.zeros(experts, tokens).scatter_add(-1, routing.token, routing.filled.float())
    weights = torch.zeros(experts, tokens).scatter_add(-1, routing.token, routing.weight)
    broken = [
        routing.load > capacity,
        times > 1,  # a token is sent to an expert once
        routing.weight < 0,
        (routing.weight != 0) & ~routing.filled,
    ]
    if name in EXPERT_CHOICE:
        if name == SPARSE_EC:
            broken.append((weights.sum(-1) * experts / tokens - 1).abs() > ROUNDING)
        else:
            broken.append(routing.load != min(capacity, tokens))
    else:
        broken += [times.sum(0) > k, weights.sum(0) > 1 + ROUNDING]
    return sum(int(each.sum()) for each in broken)
