"""Every record x measure x size x scale against 80-bit and 50-digit references.

`python tests/operators/test_accuracy.py` prints the error table (worst case over scales).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracles
from catalogue import NAMES, OWN, STEEP

import fenchel
from fenchel import FDivergence
from fenchel.kernels.eager import find_root

MEASURES = ("unit", "uniform", "spread")
SCALES = (1e-3, 1e-1, 1.0, 30.0, 1e4)


def problem(size: int, measure: str, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and a measure that float32 represents exactly; 'spread' covers six decades."""
    rng = np.random.default_rng([seed, size])
    theta = (rng.standard_normal(size) * scale).astype(np.float32).astype(np.float64)
    q = {
        "unit": np.ones(size),
        "uniform": np.full(size, 1 / size),
        "spread": 10 ** (6 * rng.random(size) - 3),
    }[measure]
    return theta, q.astype(np.float32).astype(np.float64)


def errors(name: str, theta: np.ndarray, q: np.ndarray) -> dict[str, float]:
    """fp64: relative error of p (of the largest p for sparse records, whose small probabilities are
    differences of nearly equal numbers), of the value, and |Σp - 1|; fp32: KKT residual and |Σp - 1|.
    The KKT residual is max |p_j - q_j f*'(max(θ_j - τ, f'(0)))| at the exact threshold."""
    p, value = oracles.solve(name, theta, q)
    scores, measure = torch.tensor(theta), torch.tensor(q)
    received = fenchel.f_softargmax(scores, name, reference=measure).numpy().astype(oracles.LD)
    received_value = float(fenchel.f_softmax(scores, name, reference=measure))
    single = fenchel.f_softargmax(scores.float(), name, reference=measure.float())
    single = single.numpy().astype(oracles.LD)
    sparse = fenchel.divergence(name).is_sparse
    tiny = np.finfo(np.float64).tiny
    linear = (p * theta).sum()
    size = abs(theta).max() + abs(linear) + abs(value - linear)
    return {
        "p": float((abs(received - p) / (p.max() if sparse else np.maximum(p, tiny))).max()),
        "value": float(abs(received_value - value) / size),
        "sum": float(abs(received.sum() - 1)),
        "kkt32": float(abs(single - p).max()),
        "sum32": float(abs(single.sum() - 1)),
    }


def check(name: str, size: int, measure: str, scale: float) -> None:
    found = errors(name, *problem(size, measure, scale))
    assert found["p"] <= 1e-12, found
    assert found["value"] <= 1e-12, found
    assert found["sum"] <= 1e-14, found
    assert found["kkt32"] <= 1e-6, found
    assert found["sum32"] <= 1e-6, found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
def test_against_80_bits(name: str, measure: str, size: int) -> None:
    for scale in SCALES:
        check(name, size, measure, scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("measure, scale", [("unit", 1.0), ("uniform", 1e-3), ("spread", 1e4)])
def test_large_vocabulary(name: str, measure: str, scale: float) -> None:
    check(name, 131072, measure, scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("scale", SCALES)
def test_large_vocabulary_everywhere(name: str, measure: str, scale: float) -> None:
    check(name, 131072, measure, scale)


@pytest.mark.parametrize("name", STEEP)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
def test_steep_records(name: str, measure: str, size: int) -> None:
    """Above α = 2 the derivative of p is unbounded at the threshold, which costs digits there."""
    for scale in SCALES:
        found = errors(name, *problem(size, measure, scale))
        assert found["p"] <= 1e-10 and found["sum"] <= 1e-14, found
        assert found["kkt32"] <= 1e-6 and found["sum32"] <= 1e-6, found


@pytest.mark.parametrize("name", NAMES)
def test_against_50_digits(name: str) -> None:
    """The 80-bit reference itself against f*' as the definitions state it, in 50 digits."""
    for measure, scale in (("unit", 1.0), ("spread", 30.0), ("uniform", 1e-3)):
        theta, q = problem(5, measure, scale)
        exact = np.array(oracles.solve_mp(name, theta.tolist(), q.tolist()))
        p, _ = oracles.solve(name, theta, q)
        np.testing.assert_allclose(p.astype(np.float64), exact, rtol=1e-14, atol=1e-300)
        received = fenchel.f_softargmax(torch.tensor(theta), name, reference=torch.tensor(q))
        sparse = fenchel.divergence(name).is_sparse
        atol = 1e-13 * exact.max() if sparse else 1e-300
        np.testing.assert_allclose(received.numpy(), exact, rtol=1e-13, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_fixed_number_of_steps_is_enough(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled graphs and accelerators take all the steps without looking; so does this."""
    theta, q = problem(1000, "spread", 30.0)
    scores, measure = torch.tensor(theta), torch.tensor(q)
    looked = fenchel.f_softargmax(scores, name, reference=measure)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    blind, _, _ = find_root(scores.amax(-1, keepdim=True) - scores, measure, fenchel.divergence(name))
    torch.testing.assert_close(blind, looked, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_types_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    scores = (torch.randn(4, 333) * 3).to(dtype)
    for function in (fenchel.f_softargmax, fenchel.f_softmax, fenchel.f_threshold):
        received = function(scores, name)
        assert received.dtype == dtype
        assert torch.equal(received, function(scores.float(), name).to(dtype))


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("measure", MEASURES)
def test_sorted_closed_form(alpha: float, measure: str) -> None:
    for scale in SCALES:
        theta, q = problem(50, measure, scale)
        received = fenchel.f_softargmax(torch.tensor(theta), f"alpha:{alpha}", reference=torch.tensor(q))
        np.testing.assert_allclose(
            received.numpy(), oracles.sparse_closed_form(alpha, theta, q), rtol=1e-9, atol=1e-9
        )


def table() -> None:
    columns = ("p", "value", "sum", "kkt32", "sum32")
    print(f"{'divergence':>16} {'V':>7} " + " ".join(f"{c:>8}" for c in columns))
    for name in NAMES:
        for size in (10, 1000, 131072):
            cases = SCALES if size < 131072 else (1e-3, 1.0, 1e4)
            rows = [errors(name, *problem(size, m, s)) for m in MEASURES for s in cases]
            worst = (f"{max(row[c] for row in rows):8.0e}" for c in columns)
            print(f"{name:>16} {size:7d} " + " ".join(worst), flush=True)


@pytest.mark.parametrize("kappa", [-1.0, 0.0, 0.5, 1.0])
def test_records_of_ones_own_under_any_coordinate(kappa: float) -> None:
    """The coordinate is a hint: Newton's steps may go to and fro in a bad one, the root stays the same."""
    own = FDivergence("own", OWN.f, kappa=kappa)
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        scores = 3 * torch.randn(60, dtype=torch.float64, generator=generator)
        q = 10 ** (4 * torch.rand(60, dtype=torch.float64, generator=generator) - 2)
        p, tau = (call(scores, own, reference=q) for call in (fenchel.f_softargmax, fenchel.f_threshold))
        assert abs(float(p.sum()) - 1) <= 1e-12
        torch.testing.assert_close(p, q * own.conjugate_derivative(scores - tau), rtol=1e-8, atol=1e-12)


if __name__ == "__main__":
    table()
