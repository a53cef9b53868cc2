"""Looking at the values of a tensor, where that is free."""

from __future__ import annotations

import torch
from torch import Tensor


def looked(condition: Tensor) -> bool | None:
    """Whether `condition` is true everywhere, or None where looking would not be free.

    Looking would stall an accelerator, break a compiled graph, and is impossible under `torch.func.vmap`.
    """
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    try:
        return bool(condition.all())
    except RuntimeError:  # vmap: this tensor stands for many
        return None


def holds(condition: Tensor) -> bool:
    """Whether `condition` is true everywhere; taken on trust where looking is not free."""
    return looked(condition) is not False


def is_plain(tensor: Tensor) -> bool:
    """Whether `tensor` is memory that may be read and written.

    That is no subclass, no trace, no transformation, no view that is negated when it is read, and nothing
    with a tangent of forward-mode differentiation.
    """
    if torch.compiler.is_compiling() or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    try:
        if tensor.is_neg() or torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
            return False
        return tensor.numel() == 0 or tensor.data_ptr() != 0
    except RuntimeError:
        return False
