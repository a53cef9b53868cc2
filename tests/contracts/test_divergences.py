"""What every record of the table, every alpha and every user's record must satisfy."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import oracles
import pytest
import torch
from catalogue import NAMES, OWN, STEEP
from hypothesis import given
from hypothesis import strategies as st

import fenchel
from fenchel import FDivergence, InputError, divergence, f_divergence
from fenchel.divergences import TABLE

ALL = [*NAMES, *STEEP]
GRID = torch.logspace(-6, 6, 121, dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
def test_record_is_the_textbook_definition(name: str) -> None:
    record, u = divergence(name), GRID.numpy()
    np.testing.assert_allclose(
        record.f(GRID).numpy(), oracles.f(name, u).astype(float), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        record.derivative(GRID).numpy(),
        oracles.f_prime(name, u).astype(float),
        rtol=1e-12,
        atol=1e-12,
    )
    assert record.at_zero == pytest.approx(oracles.f_at_zero(name))


@pytest.mark.parametrize("name", ALL)
def test_fields_agree_with_each_other(name: str) -> None:
    divergence(name).check()


@pytest.mark.parametrize("name", ALL)
def test_conjugate_is_a_supremum(name: str) -> None:
    record = divergence(name)
    low = record.derivative_at_zero if record.is_sparse else -8.0
    high = min(record.slope, 6.0)
    v = torch.linspace(low - 1, high - 1e-3, 40, dtype=torch.float64)
    u = torch.logspace(-9, 9, 40001, dtype=torch.float64)
    brute = (u * v.unsqueeze(-1) - record.f(u)).amax(-1)
    brute = torch.maximum(brute, torch.full_like(brute, -record.at_zero))
    torch.testing.assert_close(record.conjugate(v), brute, rtol=1e-5, atol=1e-5)
    assert torch.isinf(record.conjugate(torch.tensor([record.slope + 1]))).all() or record.slope == math.inf


@pytest.mark.parametrize("name", ALL)
def test_conjugate_derivatives(name: str) -> None:
    record = divergence(name)
    v = record.derivative(torch.logspace(-2, 2, 21, dtype=torch.float64))
    h = 1e-6 * (1 + v.abs())
    h = torch.minimum(h, (record.slope - v) * 1e-4) if math.isfinite(record.slope) else h
    first = (record.conjugate(v + h) - record.conjugate(v - h)) / (2 * h)
    torch.testing.assert_close(record.conjugate_derivative(v), first, rtol=1e-4, atol=1e-7)
    second = (record.conjugate_derivative(v + h) - record.conjugate_derivative(v - h)) / (2 * h)
    torch.testing.assert_close(record.conjugate_second_derivative(v), second, rtol=1e-3, atol=1e-7)


def test_special_cases_of_alpha() -> None:
    u = GRID
    for a, scale, name in (("0.5", 2, "hellinger"), ("2", 0.5, "chi2"), ("-1", 0.5, "neyman")):
        torch.testing.assert_close(divergence(f"alpha:{a}").f(u), scale * divergence(name).f(u))
    for a, name in ((1.0, "generalized-kl"), (0.0, "reverse-kl")):
        for near in (a, a + 1e-9, a - 1e-9):
            torch.testing.assert_close(
                fenchel.alpha(near).f(u[20:100]),
                divergence(name).f(u[20:100]),
                rtol=1e-6,
                atol=1e-9,
            )


@pytest.mark.parametrize("name", list(TABLE))
def test_from_f_alone_equals_the_table(name: str) -> None:
    record = divergence(name)
    own = FDivergence("own", record.f)
    assert own.at_zero == pytest.approx(record.at_zero)
    assert own.derivative_at_zero == pytest.approx(record.derivative_at_zero)
    assert own.slope == pytest.approx(record.slope)
    logits, q = torch.randn(3, 6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.1
    for function in (fenchel.f_softargmax, fenchel.f_softmax, fenchel.f_threshold):
        torch.testing.assert_close(
            function(logits, own, reference=q),
            function(logits, record, reference=q),
            rtol=1e-9,
            atol=1e-9,
        )


def test_own_record_has_exact_gradients() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fenchel.f_softargmax(x, OWN), (logits,))
    assert torch.autograd.gradgradcheck(lambda x: fenchel.f_softmax(x, OWN), (logits,))


@pytest.mark.parametrize(
    "f, words",
    [
        (lambda u: (u - 1) ** 2 + 1, "f(1) must be 0"),
        (lambda u: -((u - 1) ** 2), "not strictly convex"),
        (lambda u: u - 1, "not strictly convex"),
        (lambda u: (u - 2).log() - (u * 0), "not finite"),
        (lambda u: u.sum(), "elementwise"),
    ],
)
def test_bad_generators_are_refused(f: object, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        FDivergence("bad", f)  # type: ignore[arg-type]


def test_a_field_that_contradicts_f_is_refused() -> None:
    with pytest.raises(InputError, match="derivative disagrees"):
        FDivergence("bad", lambda u: (u - 1) ** 2, derivative=lambda u: u - 1)


def test_names() -> None:
    with pytest.raises(InputError, match=r"unknown divergence 'helinger' \(did you mean 'hellinger'\?\)"):
        divergence("helinger")
    for bad in ("alpha:", "alpha:x", "alpha:nan", "alpha:inf"):
        with pytest.raises(InputError, match="alpha must be a finite number"):
            divergence(bad)
    assert divergence("alpha:1.5") is divergence("alpha:1.50")
    assert divergence(divergence("js")) is divergence("js")


probabilities = st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda x: sum(x) > 1e-3)


@given(probabilities, st.randoms(use_true_random=False), st.sampled_from(NAMES))
def test_divergence_is_nonnegative_and_zero_at_equality(p: list[float], random: object, name: str) -> None:
    q = [random.random() + 1e-3 for _ in p]  # type: ignore[attr-defined]
    a = torch.tensor(p, dtype=torch.float64) / sum(p)
    b = torch.tensor(q, dtype=torch.float64) / sum(q)
    assert float(f_divergence(a, b, name)) >= -1e-12
    assert float(f_divergence(b, b, name)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_data_processing_inequality(name: str) -> None:
    """Merging classes never increases D_f."""
    p, q = torch.rand(2, 50, 8, dtype=torch.float64).softmax(-1)
    merged = [torch.cat([x[:, :4], x[:, 4:].sum(-1, keepdim=True)], -1) for x in (p, q)]
    assert (f_divergence(*merged, name) <= f_divergence(p, q, name) + 1e-13).all()


@pytest.mark.parametrize("name", NAMES)
def test_conventions_at_zero(name: str) -> None:
    record = divergence(name)
    half = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    other = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    expected = 0.5 * record.at_zero + 0.5 * record.slope
    assert float(f_divergence(half, other, name)) == pytest.approx(expected)
    assert float(f_divergence(half, half, name)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_that_underflow(name: str) -> None:
    """Ratios of e^±300 at double precision; the reference is 80-bit."""
    log_p = torch.tensor([-300.0, -1e-3, -5.0], dtype=torch.float64)
    log_q = torch.tensor([-2.0, -3.0, -300.0], dtype=torch.float64)
    p, q = np.exp(log_p.numpy().astype(oracles.LD)), np.exp(log_q.numpy().astype(oracles.LD))
    expected = (q * oracles.f(name, p / q)).sum()
    assert float(divergence(name).from_log_probs(log_p, log_q)) == pytest.approx(float(expected), rel=1e-12)


def test_nan_is_not_hidden() -> None:
    p = torch.tensor([0.5, float("nan")])
    assert math.isnan(float(f_divergence(p, torch.tensor([0.5, 0.5]), "js")))


def test_shapes_that_do_not_broadcast() -> None:
    with pytest.raises(InputError, match=r"\(3,\) and \(4,\)"):
        f_divergence(torch.ones(3), torch.ones(4))


@pytest.mark.parametrize("name", [*NAMES, "jsd:0.3", "skew:0.1:chi2", "reverse:kl"])
def test_a_divergence_with_a_name_is_pickled_by_it(name: str) -> None:
    record = divergence(name)
    assert pickle.loads(pickle.dumps(record)) is record and copy.deepcopy(record) is record


def test_one_of_your_own_is_not_taken_for_another() -> None:
    impostor = FDivergence("kl", lambda u: (u - 1) ** 2)
    assert copy.deepcopy(impostor) is not divergence("kl")
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(impostor)
