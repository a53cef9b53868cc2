"""Tensors as rows whose classes lie next to each other, which is what kernels take by pointer and stride."""

from __future__ import annotations

import torch
from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """(rows, V) with the classes of a row next to each other; a view where that is possible."""
    x = x.detach()
    if x.dim() != 2:
        x = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return x if _is_rows(x) else x.contiguous()


def writable(out: Tensor | None) -> Tensor | None:
    """What a kernel writes to in place of `out` (rows, V): `out` itself where it is rows."""
    if out is None or _is_rows(out):
        return out
    return torch.empty_like(out, memory_format=torch.contiguous_format)


def copy_back(written: Tensor | None, out: Tensor | None) -> None:
    """Gives `out` what `writable` of it received."""
    if out is not None and written is not None and written is not out:
        out.copy_(written)


def _is_rows(x: Tensor) -> bool:
    return x.shape[-1] == 1 or x.stride(-1) == 1
