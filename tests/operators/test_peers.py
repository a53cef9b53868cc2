"""Equality with independent implementations: torch, entmax, scipy's optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fenchel

entmax = pytest.importorskip("entmax")
optimize = pytest.importorskip("scipy.optimize")


def test_softmax_is_torch_softmax() -> None:
    logits = torch.randn(5, 40, dtype=torch.float64) * 5
    torch.testing.assert_close(fenchel.softmax(logits), torch.softmax(logits, -1), rtol=1e-14, atol=0)
    torch.testing.assert_close(fenchel.f_softmax(logits), torch.logsumexp(logits, -1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_entmax_package(scale: float) -> None:
    logits = (torch.randn(8, 200, dtype=torch.float64) * scale).requires_grad_()
    cotangent = torch.randn(8, 200, dtype=torch.float64)
    pairs = [
        (fenchel.sparsemax(logits), entmax.sparsemax(logits)),
        (fenchel.entmax15(logits), entmax.entmax15(logits)),
        (fenchel.f_softargmax(logits, "alpha:1.3"), entmax.entmax_bisect(logits, 1.3, n_iter=80)),
        (fenchel.f_softargmax(logits, "alpha:1.75"), entmax.entmax_bisect(logits, 1.75, n_iter=80)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        (mine,) = torch.autograd.grad(ours, logits, cotangent, retain_graph=True)
        (other,) = torch.autograd.grad(theirs, logits, cotangent, retain_graph=True)
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name, theirs", [("alpha:2", "sparsemax_loss"), ("alpha:1.5", "entmax15_loss")])
def test_entmax_losses(name: str, theirs: str) -> None:
    logits = torch.randn(9, 50, dtype=torch.float64) * 3
    target = torch.randint(0, 50, (9,))
    ours = fenchel.fenchel_young_loss(logits, target, name, reduction="none")
    torch.testing.assert_close(ours, getattr(entmax, theirs)(logits, target), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "kl",
        "generalized-kl",
        "reverse-kl",
        "jeffreys",
        "js",
        "hellinger",
        "chi2",
        "neyman",
        "alpha:1.5",
    ],
)
@pytest.mark.parametrize("unit", [True, False])
def test_scipy_solves_the_primal_problem(name: str, unit: bool) -> None:
    """max_{p in simplex} <p, θ> - D_f(p, q) by a general constrained optimiser."""
    rng = np.random.default_rng(3)
    theta = rng.standard_normal(5)
    q = np.ones(5) if unit else rng.random(5) + 0.2
    record, measure = fenchel.divergence(name), torch.tensor(q)

    def negative(p: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(np.maximum(p, 1e-12), requires_grad=True)
        value = (measure * record.f(x / measure)).sum() - (x * torch.tensor(theta)).sum()
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.numpy()

    solution = optimize.minimize(
        negative,
        np.full(5, 0.2),
        jac=True,
        method="SLSQP",
        bounds=[(1e-12, 1.0)] * 5,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones(5)},
        options={"ftol": 1e-16, "maxiter": 2000},
    )
    scores = torch.tensor(theta)
    p = fenchel.f_softargmax(scores, name, reference=measure).numpy()
    np.testing.assert_allclose(p, solution.x, atol=1e-5)
    value = float(fenchel.f_softmax(scores, name, reference=measure))
    assert value == pytest.approx(-solution.fun, abs=1e-7)
    assert value >= -solution.fun - 1e-9  # a maximum: nothing feasible is better
