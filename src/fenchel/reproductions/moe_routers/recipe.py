"""What the experiment on routers trains."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fenchel.reproductions.configs import at_scale

DENSE, UNBALANCED = "dense MLP", "softmax token choice, no balance loss"
SOFTMAX_TC, SINKHORN_TC, SPARSE_TC = "softmax token choice", "Sinkhorn token choice", "sparse token choice"
SOFTMAX_EC, SPARSE_EC, SOFT = "softmax expert choice", "sparse expert choice", "soft"
TOKEN_CHOICE = (SOFTMAX_TC, SINKHORN_TC, SPARSE_TC)
EXPERT_CHOICE = (SOFTMAX_EC, SPARSE_EC)
# The method of `fenchel.Router` and the weight of its balance loss.
SPARSE = {
    UNBALANCED: ("softmax-token-choice", 0.0),
    SOFTMAX_TC: ("softmax-token-choice", 0.01),
    SINKHORN_TC: ("sinkhorn-token-choice", 0.0),
    SPARSE_TC: ("sparse-token-choice", 0.0),
    SOFTMAX_EC: ("softmax-expert-choice", 0.0),
    SPARSE_EC: ("sparse-expert-choice", 0.0),
}
ROUTED = (*SPARSE, SOFT)
MODELS = (DENSE, *ROUTED)


@dataclass(frozen=True)
class Recipe:
    """The whole configuration."""

    width: int = 32
    hidden: int = 32  # of each expert
    heads: int = 4
    blocks: int = 2
    experts: int = 4
    k: int = 2
    epochs: int = 10
    batch: int = 100
    learning_rate: float = 3e-3
    test_size: int = 360
    processes: int = 2
    first_seed: int = 100
    seeds: int = 5


def recipe(scale: str) -> Recipe:
    """The recipe of a scale; the larger ones have more experts, and are trained longer."""
    small = Recipe()
    return at_scale(
        scale,
        {
            "small": small,
            "medium": replace(small, width=64, hidden=64, experts=8, epochs=50, seeds=10),
            "large": replace(small, width=128, hidden=128, blocks=4, experts=16, epochs=100, seeds=20),
        },
    )
