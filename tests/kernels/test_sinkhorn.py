"""Sinkhorn's scaling: what an update is, and the kernel in C++ against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fenchel.kernels.dispatch import implementation, which

SIZES = [(1, 1), (1, 7), (7, 1), (5, 4), (64, 65), (300, 257), (600, 511), (3, 4, 5), (2, 3, 40, 30)]


def problem(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """A kernel, marginals with empty rows and columns where there is room, and t to begin with."""
    generator = torch.Generator().manual_seed(0)
    kernel = (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.01).to(dtype)
    a, b = kernel.sum(-1).roll(1, -1), kernel.sum(-2).roll(1, -1)
    spare_a, spare_b = torch.zeros_like(a), torch.zeros_like(b)
    if min(shape[-2:]) > 3:
        for axis, mass, spare in ((-2, a, spare_a), (-1, b, spare_b)):
            kernel.select(axis, 1).zero_()
            mass[..., 1], spare[..., 1] = 1.0, 1.0
    t = torch.rand(b.shape, generator=generator, dtype=torch.float64).to(dtype) + 0.5
    return kernel, a, b, spare_a, spare_b, t


def test_an_update_is_its_definition() -> None:
    kernel, a, b, spare_a, spare_b, t = problem(5, 4)
    s, after, reached = implementation("sinkhorn", None, kernel, impl="eager")(
        kernel, a, b, spare_a, spare_b, t, 1
    )
    torch.testing.assert_close(s * (kernel @ t + spare_a), a)
    torch.testing.assert_close(after * (s @ kernel + spare_b), b)
    torch.testing.assert_close(reached, kernel @ after + spare_a)
    assert s[1] == 1 and after[1] == 1  # of an empty row and an empty column


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("updates", [0, 1, 12])
def test_both_implementations_agree(shape: tuple[int, ...], dtype: torch.dtype, updates: int) -> None:
    arguments = problem(*shape, dtype=dtype)
    kept = [x.clone() for x in arguments]
    found = implementation("sinkhorn", None, arguments[0], impl="cpu")(*arguments, updates)
    expected = implementation("sinkhorn", None, arguments[0], impl="eager")(*arguments, updates)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-13
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
    for before, after in zip(kept, arguments, strict=True):
        assert torch.equal(before, after)


def test_a_kernel_may_be_transposed() -> None:
    kernel, a, b, *rest = problem(40, 50)
    transposed = kernel.mT.contiguous().mT
    run = implementation("sinkhorn", None, kernel, impl="cpu")
    torch.testing.assert_close(run(transposed, a, b, *rest, 5), run(kernel, a, b, *rest, 5))


def test_auto_takes_it_where_it_is_worth_it() -> None:
    assert which("sinkhorn", torch.rand(64, 64)).impl == "cpu"
    assert which("sinkhorn", torch.rand(4, 4)).impl == "eager"
