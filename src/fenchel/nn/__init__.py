"""Modules, only where there is state to hold."""

from fenchel.nn.fenchel_young import FenchelYoungLoss
from fenchel.nn.moe import MoEFeedForward, auxiliary_loss
from fenchel.nn.routers import Router, SoftRouter
from fenchel.nn.routing import (
    Routing,
    SoftRouting,
    soft_routing,
    softmax_expert_choice,
    softmax_token_choice,
)

__all__ = [
    "FenchelYoungLoss",
    "MoEFeedForward",
    "Router",
    "Routing",
    "SoftRouter",
    "SoftRouting",
    "auxiliary_loss",
    "soft_routing",
    "softmax_expert_choice",
    "softmax_token_choice",
]
