"""Sparse top-k where digits are lost easily: single precision, strong regularization, k of short types."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fenchel import topk_magnitude, topk_mask

OPERATORS = (topk_mask, topk_magnitude)
CLOSED = (2.0, 4 / 3)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_k_of_any_integer_type(operator: Callable[..., Tensor], dtype: torch.dtype) -> None:
    x, k = normal(4, 3, seed=20), torch.tensor([0, 1, 2, 3])
    for solver in ("threshold", "pav"):
        assert torch.equal(operator(x, k.to(dtype), solver=solver), operator(x, k, solver=solver))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [2.0, 4 / 3, 1.2])
def test_of_no_places_nothing_is_kept(p: float, dtype: torch.dtype) -> None:
    x = (normal(5, 4, seed=21) * 10.0 ** torch.arange(-12, 3, 3).double().unsqueeze(-1)).to(dtype)
    for regularization in (1e-3, 1.0, 1e4):
        for k in (0, torch.zeros(5, dtype=torch.int64)):
            out = topk_magnitude(x, k, regularization=regularization, p=p)
            assert torch.equal(out, torch.zeros_like(x))


@pytest.mark.parametrize("p", CLOSED)
@pytest.mark.parametrize("regularization", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_pooling_keeps_the_digits_of_single_precision(p: float, regularization: float, size: float) -> None:
    x = (size * normal(20, 8, seed=22)).float()
    x[10:] += 1e4 * x[10:].sign()  # so that all are close to each other
    for k in (1, 3, 8):
        out = topk_magnitude(x, k, regularization=regularization, p=p, solver="pav")
        exact = topk_magnitude(x.double(), k, regularization=regularization, p=p)
        assert float(((out - exact).abs() / x.abs().amax(-1, keepdim=True)).max()) < 2e-6
        if k == 8:
            assert torch.equal(out, x)


def test_a_strong_regularization_of_small_entries() -> None:
    x = torch.tensor([3.9e-8, -6.1e-8, 1.5e-7], dtype=torch.float64)
    torch.testing.assert_close(topk_magnitude(x, 2, regularization=170.0, p=1.25), x, rtol=0, atol=1e-20)
    x = torch.tensor([137.0, 0.0037, 2.5e-5])
    expected = torch.tensor([137.0, 0.0, 0.0])
    assert torch.equal(topk_magnitude(x, 1, regularization=129.0), expected)
