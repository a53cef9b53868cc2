"""Isotonic problems in C++: one source for all of them, of no divergence."""

from __future__ import annotations

import ctypes
from importlib.resources import files

import torch
from torch import Tensor

from fenchel.kernels.cache import once
from fenchel.kernels.cpu.build import library
from fenchel.kernels.rows import as_rows

DTYPES = (torch.float32, torch.float64)


@once
def compiled() -> ctypes.CDLL:
    """The operations of pool.cpp; raises CannotCompile with the reason."""
    return library((files(__package__) / "pool.cpp").read_text(encoding="utf-8"))


def isotonic(kind: str, s: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `fenchel.kernels.isotonic.isotonic`."""
    parts = [None if part is None else as_rows(part) for part in (s, a, b)]  # kept while C++ reads them
    given: list[object] = []
    for part in parts:
        given.append(ctypes.c_void_p(None if part is None else part.data_ptr()))
        given.append(ctypes.c_int64(0 if part is None else part.stride(0)))
    size = (s.shape[:-1].numel(), s.shape[-1])
    v, blocks = torch.empty(size, dtype=s.dtype), torch.empty(size, dtype=torch.int64)
    run = getattr(compiled(), f"{kind}_{str(s.dtype).removeprefix('torch.')}")
    run(*given, *map(ctypes.c_int64, size), *(ctypes.c_void_p(x.data_ptr()) for x in (v, blocks)))
    return v.view(s.shape), blocks.view(s.shape)
