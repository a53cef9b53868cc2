"""Relaxed choices of the k largest in C++."""

from __future__ import annotations

import ctypes
from importlib.resources import files

import torch
from torch import Tensor

from fenchel.errors import BadScores
from fenchel.kernels.cache import once
from fenchel.kernels.cpu.build import library
from fenchel.kernels.rows import as_rows


@once
def compiled() -> ctypes.CDLL:
    """The operations of topk.cpp; raises CannotCompile with the reason."""
    return library((files(__package__) / "topk.cpp").read_text(encoding="utf-8"))


def topk_mask(x: Tensor, k: int | Tensor, regularization: float, exponent: float) -> Tensor:
    """See `fenchel.kernels.topk.topk_mask`."""
    return _run("mask", x, k, regularization, exponent)


def topk_magnitude(s: Tensor, k: int | Tensor, regularization: float, exponent: float) -> Tensor:
    """See `fenchel.kernels.topk.topk_magnitude`."""
    return _run("magnitude", s, k, regularization, exponent)


def _run(kind: str, x: Tensor, k: int | Tensor, regularization: float, exponent: float) -> Tensor:
    flat = as_rows(x)
    rows, n = flat.shape
    wanted = torch.as_tensor(k).detach().reshape(-1).contiguous()  # one, or one for each row
    y, bad = torch.empty_like(flat, memory_format=torch.contiguous_format), ctypes.c_int64()
    run = getattr(compiled(), f"{kind}_{str(x.dtype).removeprefix('torch.')}")
    run(
        ctypes.c_void_p(flat.data_ptr()),
        ctypes.c_int64(flat.stride(0)),
        ctypes.c_void_p(wanted.data_ptr()),
        *map(ctypes.c_int64, (int(isinstance(k, Tensor)), rows, n)),
        *map(ctypes.c_double, (regularization, exponent)),
        ctypes.c_void_p(y.data_ptr()),
        ctypes.byref(bad),
    )
    if bad.value < rows:
        raise BadScores(bad.value, x.shape)
    return y.view(x.shape)
