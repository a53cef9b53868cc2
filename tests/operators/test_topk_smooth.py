"""The dense relaxations of the top-k mask: exact sums and optimality; unbiased gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import InputError, entropic_topk_mask, perturbed_topk_mask


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- by entropy ------------------------------------------------------------------------------

entries = st.lists(st.floats(-30, 30).map(lambda x: round(x, 2)), min_size=2, max_size=9)


@given(entries, st.data(), st.floats(-2, 2))
def test_the_entropic_mask_is_optimal(row: list[float], data: st.DataObject, log: float) -> None:
    """x - T logit(y) is the same τ for every entry, and Σ y = k."""
    x, k, temperature = torch.tensor(row).double(), data.draw(st.integers(1, len(row) - 1)), 10**log
    y = entropic_topk_mask(x, k, temperature=temperature)
    assert float(y.sum()) == pytest.approx(k, abs=1e-12)
    seen = (y > 1e-5) & (y < 1 - 1e-5)
    if int(seen.sum()) > 1:
        tau = (x - temperature * torch.logit(y))[seen]
        assert float(tau.max() - tau.min()) < 1e-8 * (1 + temperature)


def test_the_entropic_mask_of_one_is_near_softmax_when_scores_are_low() -> None:
    """With k = 1 of many equal-sized choices each y is small, and 1 / (1 + e^-z) is e^z."""
    x = normal(4000, seed=1) * 0.1
    torch.testing.assert_close(entropic_topk_mask(x, 1, temperature=1.0), x.softmax(-1), rtol=1e-3, atol=0)


def test_the_entropic_mask_tends_to_the_hard_one() -> None:
    x = normal(6, 9, seed=2)
    hard = torch.zeros_like(x).scatter(-1, x.topk(4).indices, 1.0)
    torch.testing.assert_close(entropic_topk_mask(x, 4, temperature=1e-4), hard, rtol=0, atol=1e-8)
    flat = entropic_topk_mask(x, 3, temperature=1e9)
    torch.testing.assert_close(flat, torch.full_like(x, 1 / 3), rtol=0, atol=1e-8)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 30.0])
def test_entropic_gradients_to_second_order(temperature: float) -> None:
    x = normal(2, 6, seed=3).requires_grad_()

    def call(x: Tensor) -> Tensor:
        return entropic_topk_mask(x, 2, temperature=temperature)

    assert torch.autograd.gradcheck(call, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, x)
    y = call(x.detach())[0]
    w = y * (1 - y) / temperature
    received = torch.func.jacrev(call)(x.detach()[0])
    torch.testing.assert_close(received, w.diag() - torch.outer(w, w) / w.sum(), rtol=1e-6, atol=1e-10)


def test_entropic_edges() -> None:
    x = torch.tensor([[1e4, -1e4, 0.0, 1.0, -math.inf], [2.0, 1.0, -math.inf, -math.inf, -math.inf]])
    x.requires_grad_()
    y = entropic_topk_mask(x, 2, temperature=0.01)
    torch.testing.assert_close(y, torch.tensor([[1.0, 0, 0, 1, 0], [1, 1, 0, 0, 0]]))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.isfinite(gradient).all()
    finite = normal(3, 4)
    assert torch.equal(entropic_topk_mask(finite, 0), torch.zeros_like(finite))
    assert torch.equal(entropic_topk_mask(finite, 4), torch.ones_like(finite))
    each = torch.stack([entropic_topk_mask(row, n) for row, n in zip(finite, (0, 2, 4), strict=True)])
    torch.testing.assert_close(entropic_topk_mask(finite, torch.tensor([0, 2, 4])), each)
    torch.testing.assert_close(entropic_topk_mask(finite, 2, dim=0), entropic_topk_mask(finite.T, 2).T)


# --- by noise --------------------------------------------------------------------------------


def test_perturbed_masks_average_hard_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    x = normal(3, 5, seed=4)
    y = perturbed_topk_mask(x, 2, sigma=0.5, samples=40, generator=generator)
    torch.testing.assert_close(y.sum(-1), torch.full((3,), 2.0).double())
    torch.testing.assert_close((y * 40).round(), y * 40)
    again = perturbed_topk_mask(x, 2, sigma=0.5, samples=40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(y, again)


def test_the_perturbed_mask_estimates_a_probability() -> None:
    """With two scores and k = 1, E[y_1] = Φ((x_1 - x_2) / (σ √2)), and its derivative is the density."""
    gap, sigma, samples = 0.3, 0.4, 400_000
    x = torch.tensor([gap, 0.0], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(1)
    y = perturbed_topk_mask(x, 1, sigma=sigma, samples=samples, generator=generator)
    z = gap / (sigma * math.sqrt(2))
    expected = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    assert float(y[0].detach()) == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(samples))
    (gradient,) = torch.autograd.grad(y[0], x)
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / (sigma * math.sqrt(2))
    # A term of the covariance has a standard deviation of at most ½ / σ.
    torch.testing.assert_close(
        gradient,
        torch.tensor([density, -density]).double(),
        rtol=0,
        atol=4 * 0.5 / sigma / math.sqrt(samples),
    )


def test_perturbed_gradients_are_unbiased_with_few_samples() -> None:
    """The mean of 20,000 gradients from 3 samples each is the finite difference of the expectation."""
    row = torch.tensor([0.5, 0.1, -0.2, 0.4], dtype=torch.float64)
    x = row.expand(20_000, 4).clone().requires_grad_()
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    y = perturbed_topk_mask(x, 2, sigma=0.5, samples=3, generator=generator)
    (each,) = torch.autograd.grad((y * weight).sum(), x)

    def expectation(row: Tensor) -> Tensor:
        common = torch.Generator().manual_seed(3)
        return (perturbed_topk_mask(row, 2, sigma=0.5, samples=1_000_000, generator=common) * weight).sum()

    step = 0.05
    expected = torch.stack(
        [
            (expectation(row + step * unit) - expectation(row - step * unit)) / (2 * step)
            for unit in torch.eye(4).double()
        ]
    )
    error = each.std(0) / math.sqrt(len(x)) + 0.02  # and that of the finite differences
    assert bool(((each.mean(0) - expected).abs() < 4 * error).all()), (each.mean(0), expected, error)


def test_perturbed_masks_never_choose_what_is_masked() -> None:
    x = torch.tensor([1.0, -math.inf, 0.0, 0.5], requires_grad=True)
    y = perturbed_topk_mask(x, 2, sigma=10.0)
    assert float(y[1]) == 0
    (gradient,) = torch.autograd.grad((y * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), x)
    assert torch.isfinite(gradient).all()


def test_perturbed_masks_under_torch_func() -> None:
    x = normal(5, seed=6)

    def value(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        return (perturbed_topk_mask(x, 2, generator=generator) * x.detach()).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(value)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(value, randomness="same")(x), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 4}, r"k must be in \[0, 3\]"),
        ({"k": torch.tensor([1, 1])}, "the same for every row, received a tensor"),
        ({"sigma": 0.0}, "sigma must be positive and finite, received 0.0"),
        ({"samples": 1}, "samples must be at least 2, for their covariance, received 1"),
        ({"scores": torch.tensor([[math.nan, 0.0, 0.0]])}, "received nan"),
    ],
)
def test_perturbed_errors(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        perturbed_topk_mask(**{"scores": torch.zeros(2, 3), "k": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 4}, r"k must be in \[0, 3\]"),
        ({"temperature": -1.0}, "temperature must be positive and finite, received -1.0"),
        ({"scores": torch.tensor([[math.nan, 0.0, 0.0]])}, "received nan"),
        ({"scores": torch.full((1, 3), -math.inf)}, r"row \(0,\).*fewer finite ones than k"),
    ],
)
def test_entropic_errors(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        entropic_topk_mask(**{"scores": torch.zeros(2, 3), "k": 1, **arguments})
