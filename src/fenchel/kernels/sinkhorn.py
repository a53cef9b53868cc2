"""Sinkhorn's scaling in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn(
    kernel: Tensor, a: Tensor, b: Tensor, spare_a: Tensor, spare_b: Tensor, t: Tensor, updates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """So many updates of s and t, from a given t, towards the marginals a and b of diag(s) K diag(t).

        s = a / (spare_a + K t),    t = b / (spare_b + Kᵀ s).

    Args:
        kernel: K > 0, (..., m, n).
        a: wanted of the rows, (..., m), with what is spare.
        b: wanted of the columns, (..., n), with what is spare.
        spare_a: what an empty row adds to both sides, so that its s is 1; else 0.
        spare_b: the same of the columns.
        t: (..., n), to begin with.
        updates: their number; with none s is 1.

    Returns:
        s (..., m), t (..., n), and spare_a + K t (..., m) for the last t.
    """
    s = torch.ones_like(a)
    reached = _product(spare_a, kernel, t)
    for _ in range(updates):
        s = a / reached
        t = b / _product(spare_b, kernel.mT, s)
        reached = _product(spare_a, kernel, t)
    return s, t, reached


def _product(start: Tensor, matrix: Tensor, vector: Tensor) -> Tensor:
    """start + matrix vector."""
    if matrix.dim() == 2:
        return torch.addmv(start, matrix, vector)
    if matrix.dim() == 3:
        return torch.baddbmm(start.unsqueeze(-1), matrix, vector.unsqueeze(-1)).squeeze(-1)
    return start + (matrix @ vector.unsqueeze(-1)).squeeze(-1)
