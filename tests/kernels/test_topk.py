"""Relaxed choices of k: C++ against plain PyTorch in float64, on rows that are hard to cut."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import InputError, topk_magnitude, topk_mask, which
from fenchel.kernels import eager
from fenchel.kernels.dispatch import implementation

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)
OPERATIONS = ("topk_mask", "topk_magnitude")
EXPONENTS = (1.0, 3.0, 2.0, 5.0, 1.3)
STRENGTHS = (1e-6, 0.01, 0.3, 1.0, 4.0, 1e3)
OF_TYPE = {torch.float32: 3e-7, torch.float64: 2e-13}


def run(op: str, impl: str, x: Tensor, k: int | Tensor, strength: float, exponent: float) -> Tensor:
    found: Tensor = implementation(op, None, x, impl=impl)(x, k, strength, exponent)
    return found


def result(op: str, found: Tensor, x: Tensor, strength: float, exponent: float) -> Tensor:
    """What comes of it: the mask itself, and magnitudes as they are, between, or 0."""
    if op == "topk_mask":
        return found
    above = torch.where(found == math.inf, 0.0, found)
    return torch.where(found == math.inf, x, above + (above / strength) ** exponent)


def rows(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 700, generator=generator, dtype=torch.float64)
    ramp = torch.linspace(-3, 3, 700, dtype=torch.float64).expand(6, 700)
    wide = noise * 10.0 ** (20 * torch.rand(6, 700, generator=generator, dtype=torch.float64) - 10)
    found = {
        "noise": noise,
        "ties": noise.round(),
        "all equal": torch.ones(2, 700).double(),
        "wide": wide,
        "an outlier": torch.cat([noise, torch.full((6, 1), 1e30).double()], -1),
        "sorted": ramp,
        "short": noise[:, :3],
        "single": noise[:, :1],
        "mostly zero": torch.where(noise > 1.5, noise, 0.0),
    }
    return {name: x.to(dtype) for name, x in found.items()}


@pytest.mark.parametrize("dtype", OF_TYPE)
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("op", OPERATIONS)
def test_as_plain_pytorch_in_double_precision(op: str, exponent: float, dtype: torch.dtype) -> None:
    for name, x in rows(dtype).items():
        x = x.abs() if op == "topk_magnitude" else x
        n = x.shape[-1]
        for k in {0, 1, n // 10, n // 2, max(n - 1, 0), n}:
            for strength in STRENGTHS:
                found = run(op, "cpu", x, k, strength, exponent)
                expected = run(op, "eager", x.double(), k, strength, exponent)
                received, wanted = (
                    result(op, y.double(), x.double(), strength, exponent) for y in (found, expected)
                )
                # A score is known to the resolution of its type, in units of l; of a magnitude, to its own.
                size = 1.0 if op == "topk_mask" else x.double().abs().amax(-1, keepdim=True)
                error = ((received - wanted).abs() / size).max()
                assert error < OF_TYPE[dtype], (name, k, strength, float(error))
                if op == "topk_mask":
                    torch.testing.assert_close(
                        received.sum(-1), torch.full((len(x),), float(k)).double(), rtol=1e-6, atol=1e-6
                    )


numbers = st.floats(-1e6, 1e6, width=32).map(lambda x: round(x, 3)) | st.just(-math.inf)


@given(
    st.lists(numbers, min_size=1, max_size=30),
    st.integers(0, 30),
    st.floats(-6, 6),
    st.sampled_from(EXPONENTS),
    st.sampled_from(OPERATIONS),
)
def test_any_row(row: list[float], k: int, log: float, exponent: float, op: str) -> None:
    x, strength = torch.tensor([row]).double(), 10.0**log
    if op == "topk_magnitude":
        x = torch.where(x.isinf(), 0.0, x.abs())
    elif k > int(x.isfinite().sum()):
        for impl in ("cpu", "eager"):
            with pytest.raises(InputError):
                run(op, impl, x, min(k, len(row)), strength, exponent)
        return
    k = min(k, len(row))
    received, expected = (
        result(op, run(op, impl, x, k, strength, exponent), x, strength, exponent)
        for impl in ("cpu", "eager")
    )
    size = 1.0 if op == "topk_mask" else float(x.max())
    torch.testing.assert_close(received, expected, rtol=0, atol=1e-11 * max(size, 1e-300))


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_number_for_each_row_and_strides(op: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5, 8, 40, generator=generator, dtype=torch.float64)
    k = torch.randint(0, 41, (5, 8, 1), generator=generator)
    expected = run(op, "eager", x, k, 0.3, 3.0)
    torch.testing.assert_close(run(op, "cpu", x, k, 0.3, 3.0), expected)
    torch.testing.assert_close(run(op, "cpu", x.mT.contiguous().mT, k, 0.3, 3.0), expected)
    wide = torch.rand(40, 90, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        run(op, "cpu", wide[:, 10:50], 7, 0.3, 3.0), run(op, "eager", wide[:, 10:50], 7, 0.3, 3.0)
    )
    assert run(op, "cpu", x[:0], 3, 0.3, 3.0).shape == (0, 8, 40)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_row_that_has_no_choice(op: str, value: float) -> None:
    x = torch.rand(50, 100)
    x[[7, 30, 31], 5] = value
    for impl in ("cpu", "eager"):
        with pytest.raises(InputError, match=r"row 7 of scores \(50, 100\)"):
            run(op, impl, x, 3, 0.3, 3.0)


@pytest.mark.parametrize("operator", [topk_mask, topk_magnitude])
@pytest.mark.parametrize("p", [2.0, 4 / 3, 1.5])
def test_public_faces_agree_to_second_order(operator: object, p: float) -> None:
    x = torch.randn(20, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    direction, other = torch.randn(
        2, 20, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    found = []
    for impl in ("cpu", "eager"):
        leaf = x.clone().requires_grad_()
        y = operator(leaf, 9, regularization=0.5, p=p, impl=impl)  # type: ignore[operator]
        (first,) = torch.autograd.grad((y * direction).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * other).sum(), leaf)
        found.append((y.detach(), first.detach(), second))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_large_rows_run_in_cpp_and_others_do_not() -> None:
    for op in OPERATIONS:
        assert which(op, torch.rand(64, 64)).impl == "cpu"
        assert which(op, torch.rand(8, 8)).impl == "eager"
        assert "float16" in which(op, torch.rand(64, 64).half()).refusals["cpu"]
        assert hasattr(eager, op)
    with pytest.raises(InputError, match="impl='triton' cannot run topk_mask"):
        topk_mask(torch.rand(64, 64), 3, impl="triton")


def test_errors_of_large_rows_say_where() -> None:
    x = torch.randn(4, 5, 100)
    x[1, 2, 50] = math.nan
    with pytest.raises(InputError, match=r"scores of shape \(4, 5, 100\) must be below inf, received nan"):
        topk_mask(x, 3)
    with pytest.raises(InputError, match="magnitudes of shape"):
        topk_magnitude(x, 3)
    x[1, 2] = -math.inf
    x[1, 2, :2] = 0.0
    with pytest.raises(InputError, match=r"row \(1, 2\) along dim=-1 has fewer finite ones than k"):
        topk_mask(x, 3)
