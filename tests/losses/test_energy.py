from __future__ import annotations

import math

import pytest
import torch
from catalogue import NAMES, OWN, SPARSE, STEEP
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import (
    InputError,
    OneHot,
    Permutations,
    Subsets,
    divergence,
    exact_partition_loss,
    f_divergence,
    f_softargmax,
    f_threshold,
    fenchel_young_loss,
    joint_partition_loss,
)
from fenchel.nn.energies import ConfigurationSpace

ALL = [*NAMES, *STEEP, OWN]
# Without a bound of f*: these train from samples.
UNBOUNDED = ["kl", "generalized-kl", "chi2", "alpha:1.5", "alpha:2", "alpha:3"]


def energies(*shape: int, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * scale


# -- The least value over τ is the exact loss.


@pytest.mark.parametrize("name", ALL, ids=str)
def test_minimised_over_the_log_partition_it_is_the_exact_loss(name: str) -> None:
    every = energies(5, 16).requires_grad_()
    y = torch.tensor([0, 3, 7, 15, 3])
    observed = every[torch.arange(5), y]
    tau = f_threshold(every.detach(), name, reference=1 / 16).requires_grad_()
    joint = joint_partition_loss(observed, every, tau, name, reduction="none")
    exact = exact_partition_loss(observed, every, name, reduction="none")
    torch.testing.assert_close(joint, exact, rtol=1e-10, atol=1e-10)
    slope, at_tau = torch.autograd.grad(joint.sum(), (tau, every), retain_graph=True)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)
    for step in (-1e-3, 1e-3):
        other = joint_partition_loss(observed, every, tau + step, name, reduction="none")
        assert (other > joint).all()
    # At the best τ the gradient in the energies is that of maximum likelihood, p - e_y.
    (likelihood,) = torch.autograd.grad(exact.sum(), every)
    p = f_softargmax(every, name, reference=1 / 16)
    torch.testing.assert_close(at_tau, likelihood, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(at_tau, p - torch.eye(16).double()[y], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ALL, ids=str)
def test_the_exact_loss_is_fenchel_young_less_a_constant(name: str) -> None:
    every, y = energies(4, 8), torch.tensor([0, 3, 7, 3])
    observed = every[torch.arange(4), y]
    ours = exact_partition_loss(observed, every, name, reduction="none")
    theirs = fenchel_young_loss(every, y, name, reference=1 / 8, reduction="none")
    constant = theirs - ours
    torch.testing.assert_close(constant, constant[:1].expand(4), rtol=0, atol=1e-10)
    if math.isfinite(divergence(name).at_zero if isinstance(name, str) else name.at_zero):
        one_hot, q = torch.eye(8).double()[0], torch.full((8,), 1 / 8).double()
        torch.testing.assert_close(constant[0], f_divergence(one_hot, q, name))


def test_closed_forms() -> None:
    g, sampled, tau = energies(6), energies(6, 3), energies(6)
    gap = sampled - tau.unsqueeze(-1)
    likelihood = tau + gap.exp().mean(-1) - 1 - g
    torch.testing.assert_close(joint_partition_loss(g, sampled, tau), likelihood.mean())
    sparse = tau + ((1 + gap).clamp(min=0) ** 2 / 2 - 0.5).mean(-1) - g
    torch.testing.assert_close(joint_partition_loss(g, sampled, tau, "alpha:2"), sparse.mean())
    every = energies(6, 32)
    nll = -(every[:, 4] - every.logsumexp(-1)) - math.log(32)
    for name in ("kl", "generalized-kl"):
        torch.testing.assert_close(exact_partition_loss(every[:, 4], every, name), nll.mean())


@pytest.mark.parametrize("name", ALL, ids=str)
def test_another_reference_weighs_the_configurations(name: str) -> None:
    every, q = energies(5, 8), torch.rand(8).double().softmax(-1)
    tau = f_threshold(every, name, reference=q)
    conjugates = divergence(name).conjugate(every - tau.unsqueeze(-1))
    exact = exact_partition_loss(every[:, 2], every, name, reference=q, reduction="none")
    torch.testing.assert_close(exact, tau + conjugates @ q - every[:, 2], rtol=1e-9, atol=1e-9)
    if name in ("kl", "generalized-kl"):
        torch.testing.assert_close(exact, torch.logsumexp(every + q.log(), -1) - every[:, 2])


# -- Unbiased over samples.


@pytest.mark.parametrize("name", UNBOUNDED)
def test_each_single_sample_is_unbiased_in_value_and_gradient(name: str) -> None:
    """The mean over every possible sample is the expectation: no simulation is needed."""
    every = energies(3, 8).requires_grad_()
    tau = energies(3).requires_grad_()
    whole = joint_partition_loss(every[:, 2], every, tau, name, reduction="sum")
    single = torch.stack(
        [joint_partition_loss(every[:, 2], every[:, [i]], tau, name, reduction="sum") for i in range(8)]
    ).mean()
    torch.testing.assert_close(single, whole, rtol=1e-12, atol=1e-12)
    one, other = (torch.autograd.grad(value, (every, tau)) for value in (single, whole))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["generalized-kl", "alpha:2"])
@pytest.mark.parametrize(
    "space", [Subsets(5), Subsets(4, (0.1, 0.3, 0.5, 0.9)), OneHot(5), Permutations(4)], ids=repr
)
def test_samples_of_a_space_are_unbiased_in_value_and_gradient(name: str, space: ConfigurationSpace) -> None:
    """Each of many samples as a row of its own, against the sum over all configurations under q."""
    rows, record = 20_000, divergence(name)
    scores, tau = energies(space.width, scale=1.0).requires_grad_(), torch.tensor(0.3).double()
    drawn = space.unary(space.sample((rows, 1), dtype=torch.float64))
    sampled = drawn @ scores
    values = joint_partition_loss(
        sampled.new_zeros(rows), sampled, tau.expand(rows), name, reduction="none"
    ).detach()
    slopes = record.conjugate_derivative(sampled.detach() - tau) * drawn.squeeze(1)
    mean = joint_partition_loss(sampled.new_zeros(rows), sampled, tau.expand(rows), name)
    torch.testing.assert_close(torch.autograd.grad(mean, scores)[0], slopes.mean(0))
    every = space.enumerate(dtype=torch.float64)
    expected = tau + space.log_reference(every).exp() @ record.conjugate(space.unary(every) @ scores - tau)
    (gradient,) = torch.autograd.grad(expected, scores)
    for found, exact in ((values, expected.detach()), (slopes, gradient)):
        assert ((found.mean(0) - exact).abs() < 4.5 * found.std(0) / math.sqrt(rows)).all()


# -- Derivatives and transformations.


@pytest.mark.parametrize("name", [*NAMES, *STEEP, pytest.param(OWN, marks=pytest.mark.slow)], ids=str)
def test_first_and_second_derivatives(name: str) -> None:
    g, sampled = energies(3).requires_grad_(), energies(3, 5, scale=1.0).requires_grad_()
    tau = (sampled.detach().amax(-1) + 0.1).requires_grad_()  # inside of every domain

    def loss(*inputs: Tensor) -> Tensor:
        return joint_partition_loss(*inputs, name)

    assert torch.autograd.gradcheck(loss, (g, sampled, tau))
    assert torch.autograd.gradgradcheck(loss, (g, sampled, tau))
    assert torch.autograd.gradcheck(lambda a, b: exact_partition_loss(a, b, name), (g, sampled))


@pytest.mark.parametrize("name", ["generalized-kl", "alpha:2", "alpha:1.5"])
def test_under_transformations(name: str) -> None:
    g, sampled, tau = energies(4), energies(4, 6), energies(4)
    rows = joint_partition_loss(g, sampled, tau, name, reduction="none")
    mapped = torch.func.vmap(lambda a, b, c: joint_partition_loss(a, b, c, name))(g, sampled, tau)
    torch.testing.assert_close(mapped, rows)
    gradient = torch.func.grad(lambda t: joint_partition_loss(g, sampled, t, name))(tau)
    expected = (1 - divergence(name).conjugate_derivative(sampled - tau[:, None]).mean(-1)) / 4
    torch.testing.assert_close(gradient, expected)
    compiled = torch.compile(
        lambda *each: joint_partition_loss(*each, name, reduction="none"), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(g, sampled, tau), rows)


# -- Edges.


@given(st.sampled_from(["generalized-kl", *SPARSE]), st.integers(0, 10**6), st.floats(-1e4, 1e4))
def test_a_shift_of_all_energies_is_one_of_the_log_partition(name: str, seed: int, shift: float) -> None:
    torch.manual_seed(seed)
    g, sampled, tau = energies(3), energies(3, 4), energies(3)
    one = joint_partition_loss(g, sampled, tau, name, reduction="none")
    other = joint_partition_loss(g + shift, sampled + shift, tau + shift, name, reduction="none")
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_an_impossible_configuration_is_the_limit_of_unlikely_ones(name: str) -> None:
    values, gradients = [], []
    for low in (-1e12, -torch.inf):
        sampled = torch.tensor([[0.3, low], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
        zeros = torch.zeros(2, dtype=torch.float64)
        loss = joint_partition_loss(zeros, sampled, zeros, name)
        values.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, sampled)[0])
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)


def test_huge_energies_in_float32() -> None:
    g, sampled = torch.tensor([1e4]), torch.tensor([[1e4, -1e4]])
    low = joint_partition_loss(g, sampled, torch.tensor([1e4]))
    assert low.item() == pytest.approx(0.5 - 1)  # τ + (1 + 0)/2 - 1 - g
    tau = torch.zeros(1, requires_grad=True)
    loss = joint_partition_loss(g, sampled, tau)  # inf, and so is the gradient, as is documented
    assert torch.isinf(loss) and torch.autograd.grad(loss, tau)[0].item() == -torch.inf
    assert exact_partition_loss(g, sampled).item() == pytest.approx(-math.log(2), abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    g, sampled, tau = (x.to(dtype) for x in (energies(4), energies(4, 64), energies(4)))
    ours = joint_partition_loss(g, sampled, tau)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, joint_partition_loss(g.float(), sampled.float(), tau.float()).to(dtype))


def test_masked_rows_hold_anything_and_get_no_gradient() -> None:
    g, sampled, tau = energies(3), energies(3, 4), energies(3)
    sampled[1], tau[1] = torch.nan, torch.inf
    inputs = [x.requires_grad_() for x in (g, sampled, tau)]
    mask = torch.tensor([True, False, True])
    loss = joint_partition_loss(*inputs, mask=mask)
    kept = joint_partition_loss(*(x[mask] for x in inputs))
    torch.testing.assert_close(loss, kept)
    for gradient, other in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(kept, inputs), strict=True
    ):
        torch.testing.assert_close(gradient, other)
    every = exact_partition_loss(g, sampled, mask=mask)
    torch.testing.assert_close(every, exact_partition_loss(g[mask], sampled[mask]))
    assert joint_partition_loss(g[:0], sampled[:0], tau[:0]).item() == 0.0


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (4, 2), (3,)), r"\(3, '\*'\), received \(4, 2\)"),
        (((3,), (3,), (3,)), r"received \(3,\)"),
        (((3,), (3, 2), (1,)), r"log_partition must have the shape of the rows \(3,\), received \(1,\)"),
        (((3,), (3, 0), (3,)), "no classes"),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        joint_partition_loss(*(torch.zeros(shape) for shape in shapes))


def test_values_that_do_not_fit() -> None:
    g, sampled, tau = energies(2), energies(2, 3), energies(2)
    for i, name in enumerate(("energy", "sampled_energies", "log_partition")):
        bad = [g.clone(), sampled.clone(), tau.clone()]
        bad[i].view(-1)[-1] = torch.nan
        with pytest.raises(InputError, match=rf"{name} of shape .* holds nan at \(1"):
            joint_partition_loss(*bad)
    with pytest.raises(InputError, match=r"floating-point tensor, received torch\.int64"):
        joint_partition_loss(torch.zeros(2).long(), sampled, tau)
    with pytest.raises(InputError, match="mask must have the shape"):
        joint_partition_loss(g, sampled, tau, mask=torch.ones(3))
    with pytest.raises(InputError, match=r"energy .* holds nan"):
        exact_partition_loss(g * torch.nan, sampled)
    with pytest.raises(InputError, match=r"all_energies of shape \(2, 3\) holds nan at \(0, 0\)"):
        exact_partition_loss(g, sampled * torch.nan)
    for infinite in (torch.inf, -torch.inf):
        with pytest.raises(InputError, match=rf"log_partition of shape \(2,\) holds {infinite} at \(0,\)"):
            joint_partition_loss(g, sampled, torch.full_like(tau, infinite))
    with pytest.raises(InputError, match="floating-point tensor, received list"):
        joint_partition_loss([0.0, 1.0], sampled, tau)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["alpha:1.5", "alpha:3"])
def test_the_conjugate_below_its_kink_has_all_digits(name: str) -> None:
    record = divergence(name)
    below = record.conjugate(torch.tensor([-50.0], dtype=torch.float64))
    assert below.item() == -record.at_zero
