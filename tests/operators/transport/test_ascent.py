"""Ascent ends where rounding stops it."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.operators.transport.ascent import lbfgs


def test_lbfgs_ends_where_no_value_rises_by_more_than_rounding() -> None:
    """Around the kink at 1 values differ by a few roundings of float32, and no gradient is ever small."""
    calls = 0

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return 1e6 - 0.1 * (x - 1).abs().sum(-1), -0.1 * (x - 1).sign()

    start = 1 + 30 * torch.randn(3, 5)
    found = lbfgs(objective, start, iterations=1000, enough=lambda gradient: False)
    assert calls < 150
    assert (objective(found)[0] >= 1e6 - 0.5).all() and (objective(start)[0] < 1e6 - 1).all()
