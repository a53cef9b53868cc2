"""Sinkhorn's scaling in C++."""

from __future__ import annotations

import ctypes
from importlib.resources import files

import torch
from torch import Tensor

from fenchel.kernels.cache import once
from fenchel.kernels.cpu.build import library


@once
def compiled() -> ctypes.CDLL:
    """The operation of sinkhorn.cpp; raises CannotCompile with the reason."""
    return library((files(__package__) / "sinkhorn.cpp").read_text(encoding="utf-8"))


def sinkhorn(
    kernel: Tensor, a: Tensor, b: Tensor, spare_a: Tensor, spare_b: Tensor, t: Tensor, updates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fenchel.kernels.sinkhorn.sinkhorn`."""
    given = [x.contiguous() for x in (kernel, a, b, spare_a, spare_b)]  # kept while C++ reads them
    s, t, reached = (
        torch.ones_like(given[1]),
        t.clone(memory_format=torch.contiguous_format),
        given[1].clone(),
    )
    sizes = (kernel.shape[:-2].numel(), *kernel.shape[-2:], updates)
    run = getattr(compiled(), f"sinkhorn_{str(kernel.dtype).removeprefix('torch.')}")
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (*given, s, t, reached))
    run(*pointers, *map(ctypes.c_int64, sizes))
    return s, t, reached
