"""Fitzpatrick losses: their definition, what they lie under, and the face of cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fenchel import (
    InputError,
    f_softargmax,
    fenchel_young_loss,
    fitzpatrick_logistic_loss,
    fitzpatrick_sparsemax_loss,
)
from fenchel.losses.fitzpatrick import of_cross_entropy


class Case(NamedTuple):
    """A loss, the divergence of its Fenchel-Young twin, and θ of y' on the graph of the subgradient."""

    loss: Callable[..., Tensor]
    divergence: str
    dual: Callable[[Tensor], Tensor]


LOGISTIC = Case(fitzpatrick_logistic_loss, "kl", torch.log)
SPARSEMAX = Case(fitzpatrick_sparsemax_loss, "alpha:2", lambda y: y)
CASES = pytest.mark.parametrize("case", [LOGISTIC, SPARSEMAX], ids=["logistic", "sparsemax"])
seeds = st.integers(0, 10**6)


def normal(*shape: int, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * scale


def targets(kind: str, logits: Tensor, divergence: str) -> Tensor:
    """Soft targets (n, V) that are easy and that are not."""
    n, classes = logits.shape
    if kind == "one-hot":
        return F.one_hot(torch.randint(0, classes, (n,)), classes).double()
    if kind == "link":
        return f_softargmax(logits, divergence)
    if kind == "near":
        near = f_softargmax(logits + 1e-7 * torch.randn_like(logits), divergence)
        return near / near.sum(-1, keepdim=True)
    if kind == "sparse":
        return f_softargmax(normal(n, classes), "alpha:2")
    return normal(n, classes, scale=5.0).softmax(-1)


# -- The definition.


@CASES
def test_is_the_supremum_of_its_definition_over_a_grid(case: Case) -> None:
    torch.manual_seed(0)
    if case is SPARSEMAX:  # even, with the edges
        side = torch.linspace(0, 1, 501, dtype=torch.float64)
        a, b = torch.meshgrid(side, side, indexing="ij")
        a, b = a[a + b < 1 + 1e-9], b[a + b < 1 + 1e-9]
    else:  # even in log-odds
        side = torch.linspace(-15, 15, 601, dtype=torch.float64).sigmoid()
        a, share = (x.flatten() for x in torch.meshgrid(side, side, indexing="ij"))
        b = (1 - a) * share
    grid = torch.stack([a, b, (1 - a - b).clamp_min(0)], -1)
    for kind in ("dense", "one-hot", "sparse"):
        logits = normal(20, 3)
        y = targets(kind, logits, case.divergence)
        found = ((grid - y[:, None]) * (logits[:, None] - case.dual(grid))).sum(-1).amax(-1)
        loss = case.loss(logits, y, reduction="none")
        assert (found <= loss + 1e-12).all()
        torch.testing.assert_close(loss, found, rtol=2e-3, atol=1e-4)


@CASES
@pytest.mark.parametrize("kind", ["dense", "one-hot", "sparse", "link", "near"])
@pytest.mark.parametrize("classes", [2, 7, 1000])
def test_lies_between_zero_and_the_fenchel_young_loss(case: Case, kind: str, classes: int) -> None:
    torch.manual_seed(1)
    for scale in (1e-12, 1e-6, 1.0, 30.0, 1e3, 1e8, 1e30):
        logits = normal(300 if classes < 10 else 20, classes, scale=scale)
        logits[::3] = logits[::3].round()  # ties
        y = targets(kind, logits, case.divergence)
        loss = case.loss(logits, y, reduction="none")
        twin = fenchel_young_loss(logits, y, case.divergence, reduction="none")
        assert (loss >= 0).all()
        assert (loss <= twin + (1e-12 if scale <= 1e3 else 1e-15 * scale)).all()  # what rounding of θ does


def exact_logistic(logits: list[float], y: list[float]) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """The loss and its gradient, by bisection for λ in high precision."""
    pairs = [(mpmath.mpf(t), mpmath.mpf(p)) for t, p in zip(logits, y, strict=True)]
    top = max(t for t, _ in pairs)
    lse = top + mpmath.log(sum(mpmath.e ** (t - top) for t, _ in pairs))

    def omega(x: mpmath.mpf) -> mpmath.mpf:
        """W(e^x)."""
        if x < 300:
            return mpmath.lambertw(mpmath.e**x).real
        w = x - mpmath.log(x)
        for _ in range(8):
            w -= (w + mpmath.log(w) - x) / (1 + 1 / w)
        return w

    def best(shift: mpmath.mpf) -> list[mpmath.mpf]:
        return [p / omega(mpmath.log(p) + shift - t) if p else mpmath.e ** (t - shift) for t, p in pairs]

    low, high = lse, lse + 1
    for _ in range(180):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(best(middle)) > 1 else (low, middle)
    gradient = [v - p for v, (_, p) in zip(best(low), pairs, strict=True)]
    return sum(g**2 / v for g, v in zip(gradient, best(low), strict=True)), gradient


@pytest.mark.parametrize("scale", [1e-9, 1.0, 800.0, 1e30])
def test_logistic_of_proportions_is_that_of_high_precision(scale: float) -> None:
    torch.manual_seed(11)
    for y in ([0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.0, 1e-200, 0.0], [1e-9, 0.0, 1 - 1e-9]):
        logits = normal(3, scale=scale)
        if y[1] == y[0]:
            logits[1] = logits[0]
        logits.requires_grad_()
        loss = fitzpatrick_logistic_loss(logits, torch.tensor(y, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(loss, logits)
        with mpmath.workdps(80):
            exact, slopes = exact_logistic(logits.tolist(), y)
        assert loss.item() == pytest.approx(float(exact), rel=1e-12, abs=1e-14)
        assert gradient.tolist() == pytest.approx([float(g) for g in slopes], rel=1e-12, abs=1e-14)


@CASES
def test_is_zero_where_its_twin_is_and_nowhere_else(case: Case) -> None:
    torch.manual_seed(2)
    logits = normal(500, 6)
    link = f_softargmax(logits, case.divergence)
    zero = case.loss(logits, link, reduction="none")
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-15)
    for size in (1.0, 1e-1, 1e-3, 1e-6):
        y = (1 - size) * link + size / 6
        loss = case.loss(logits, y, reduction="none")
        assert (loss >= 0.1 * (y - link).square().sum(-1)).all() and (loss > 0).all()


@CASES
@pytest.mark.parametrize("kind", ["dense", "one-hot", "sparse"])
def test_the_gradient_is_the_dual_distribution_less_the_target(case: Case, kind: str) -> None:
    torch.manual_seed(3)
    logits = normal(200, 5).requires_grad_()
    y = targets(kind, logits.detach(), case.divergence)
    loss = case.loss(logits, y, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    best = gradient + y
    torch.testing.assert_close(best.sum(-1), torch.ones(200).double(), rtol=0, atol=1e-13)
    assert (best >= -1e-15).all()
    safe = best.clamp_min(1e-300)
    attained = ((best - y) * (logits - case.dual(safe))).sum(-1)
    torch.testing.assert_close(loss, attained, rtol=1e-10, atol=1e-12)
    if case is SPARSEMAX:
        torch.testing.assert_close(best, f_softargmax((y + logits) / 2, "alpha:2"), rtol=0, atol=1e-14)
    else:  # log y* - y / y* + λ = θ
        residual = best.log() - y / best - logits.detach()
        torch.testing.assert_close(residual, residual[:, :1].expand_as(residual), rtol=1e-9, atol=1e-11)


@CASES
def test_the_gradient_in_the_target_is_that_of_the_envelope(case: Case) -> None:
    torch.manual_seed(4)
    logits = normal(50, 5).requires_grad_()
    y = targets("sparse", logits.detach(), case.divergence).requires_grad_()
    loss = case.loss(logits, y, reduction="sum")
    by_scores, by_target = torch.autograd.grad(loss, (logits, y))
    best = (by_scores + y).detach()
    expected = case.dual(best) - logits.detach()
    difference = by_target - expected  # a constant in every row
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=1e-9, atol=1e-11)


@CASES
def test_derivatives_to_second_order(case: Case) -> None:
    torch.manual_seed(5)
    logits = normal(3, 5).requires_grad_()
    y = normal(3, 5).softmax(-1).requires_grad_()
    t = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64) + 0.2
    hard = torch.tensor([0, -100, 4])

    def of_label(x: Tensor, t: Tensor) -> Tensor:
        return case.loss(x, hard, temperature=t, weight=weight)

    def smoothed(x: Tensor) -> Tensor:
        return case.loss(x, hard, label_smoothing=0.2)

    assert torch.autograd.gradcheck(case.loss, (logits, y))
    assert torch.autograd.gradgradcheck(case.loss, (logits, y))
    assert torch.autograd.gradcheck(of_label, (logits, t))
    assert torch.autograd.gradgradcheck(of_label, (logits, t))
    assert torch.autograd.gradcheck(smoothed, logits)
    assert torch.autograd.gradgradcheck(smoothed, logits)


def test_third_derivatives_of_the_logistic_loss() -> None:
    torch.manual_seed(6)
    logits, y = normal(4, scale=1.0).requires_grad_(), normal(4).softmax(-1)
    for target in (y, torch.tensor(2)):

        def curvature(x: Tensor, target: Tensor = target) -> Tensor:
            return torch.autograd.functional.hessian(
                lambda x: fitzpatrick_logistic_loss(x, target), x, create_graph=True
            )

        assert torch.autograd.gradcheck(curvature, logits)


@CASES
@given(seed=seeds, share=st.floats(0, 1), scale=st.sampled_from([0.1, 3.0, 100.0]))
def test_convex_in_scores_and_in_targets(case: Case, seed: int, share: float, scale: float) -> None:
    torch.manual_seed(seed)
    a, b = normal(8, 4, scale=scale), normal(8, 4, scale=scale)
    y, z = targets("sparse", a, case.divergence), targets("dense", a, case.divergence)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return case.loss(logits, y, reduction="none")

    bound = 1e-12 * (1 + scale)
    chord = share * loss(a, y) + (1 - share) * loss(b, y)
    assert (loss(share * a + (1 - share) * b, y) <= chord + bound).all()
    chord = share * loss(a, y) + (1 - share) * loss(a, z)
    assert (loss(a, share * y + (1 - share) * z) <= chord + bound).all()


@CASES
@given(seed=seeds, shift=st.floats(-1e3, 1e3))
def test_does_not_see_a_shift_nor_an_order(case: Case, seed: int, shift: float) -> None:
    torch.manual_seed(seed)
    logits, y, order = normal(4, 5), normal(4, 5).softmax(-1), torch.randperm(5)
    loss = case.loss(logits, y, reduction="none")
    torch.testing.assert_close(case.loss(logits + shift, y, reduction="none"), loss, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(case.loss(logits[:, order], y[:, order], reduction="none"), loss)


@CASES
def test_the_gradient_where_a_class_enters_the_support(case: Case) -> None:
    """Both branches of the loss have the same slope there."""
    logits = torch.tensor([[0.0, 3.0], [3.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(case.loss(logits, torch.zeros(4).long(), reduction="sum"), logits)
    step = 1e-6
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 1)):
        move = torch.zeros_like(logits)
        move[i, j] = step
        up, down = (case.loss(logits + d, torch.zeros(4).long(), reduction="sum") for d in (move, -move))
        torch.testing.assert_close(gradient[i, j], (up - down).detach() / (2 * step), rtol=0, atol=1e-6)


# -- Labels.


@CASES
@pytest.mark.parametrize("scale", [0.1, 3.0, 1e3])
def test_label_and_one_hot_agree(case: Case, scale: float) -> None:
    torch.manual_seed(7)
    logits, target = normal(40, 6, scale=scale), torch.randint(0, 6, (40,))
    torch.testing.assert_close(
        case.loss(logits, target, reduction="none"),
        case.loss(logits, F.one_hot(target, 6).double(), reduction="none"),
        rtol=1e-12,
        atol=1e-300,
    )


@pytest.mark.parametrize("margin", [-1e5, -800.0, -30.0, -1.0, 0.0, 2.0, 30.0, 600.0])
def test_logistic_of_a_label_is_lambert_w_of_the_margin(margin: float) -> None:
    with mpmath.workdps(60):
        x = mpmath.e ** (-1 - mpmath.mpf(margin))
        exact = mpmath.lambertw(x).real
        slope = -exact / (1 + exact)
    # Two ways to have the margin: the other classes are one, or five.
    others = torch.randn(5, dtype=torch.float64).log_softmax(-1)
    for logits in (torch.tensor([margin, 0.0]), torch.cat([torch.tensor([margin]), others])):
        logits = logits.double().requires_grad_()
        loss = fitzpatrick_logistic_loss(logits, torch.tensor(0))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(float(exact), rel=3e-13, abs=0)
        assert gradient[0].item() == pytest.approx(float(slope), rel=3e-13, abs=0)
        shares = logits[1:].detach().softmax(-1)
        torch.testing.assert_close(gradient[1:], -float(slope) * shares, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_epilogue_on_cross_entropy_keeps_its_digits(dtype: torch.dtype) -> None:
    values = [0.0, 1e-38, 1e-20, 1e-7, 1e-3, 0.5, 3.0, 80.0, 1e4]
    entropies = torch.tensor(values, dtype=dtype)
    losses, slopes = of_cross_entropy(entropies)
    with mpmath.workdps(60):
        for c, loss, slope in zip(entropies.tolist(), losses.tolist(), slopes.tolist(), strict=True):
            w = mpmath.lambertw(mpmath.expm1(mpmath.mpf(c)) / mpmath.e).real
            derivative = w / (1 + w) / -mpmath.expm1(-mpmath.mpf(c)) if c else 1 / mpmath.e
            # The argument of ω is about -90 at the least: so many units in the last place.
            rel = 200 * torch.finfo(dtype).eps
            assert loss == pytest.approx(float(w), rel=rel, abs=0)
            assert slope == pytest.approx(float(derivative), rel=rel)


# -- Precision.


@CASES
@pytest.mark.parametrize("soft", [False, True])
def test_float32_keeps_its_digits_at_a_large_vocabulary(case: Case, soft: bool) -> None:
    torch.manual_seed(8)
    logits = torch.randn(4, 131072) * 3
    target = logits.argsort(descending=True)[:, 2]
    if soft:
        target = (torch.randn(4, 131072) * 3).softmax(-1)
        target = target / target.sum(-1, keepdim=True)
    # The target is given to both as it is, so that its own rounding is not counted.
    exact_target = target.double() / target.double().sum(-1, keepdim=True) if soft else target
    exact = case.loss(logits.double(), exact_target, reduction="none")
    received = case.loss(logits, target, reduction="none")
    torch.testing.assert_close(received.double(), exact, rtol=5e-6, atol=1e-6)


@CASES
def test_large_scores_in_float32(case: Case) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 9999.0], [1e30, 0.0, -1e30]], requires_grad=True)
    y = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    loss = case.loss(logits, y, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    exact_logits = logits.detach().double().requires_grad_()
    exact = case.loss(exact_logits, y.double(), reduction="none")
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(
        gradient.double(), torch.autograd.grad(exact.sum(), exact_logits)[0], rtol=1e-5, atol=1e-6
    )


@CASES
@pytest.mark.parametrize("level", [-1e30, 1e8, 1e17])
def test_ties_far_from_zero_are_ties(case: Case, level: float) -> None:
    """The target keeps its digits beside scores of any size."""
    y = torch.tensor([0.2, 0.7, 0.1])
    for dtype in (torch.float32, torch.float64):
        found = case.loss(torch.full((3,), level, dtype=dtype), y.to(dtype))
        torch.testing.assert_close(found, case.loss(torch.zeros(3, dtype=dtype), y.to(dtype)))


def test_the_fixed_number_of_steps_is_enough() -> None:
    """For targets and scores that disagree as much as they can."""
    torch.manual_seed(9)
    for classes in (2, 3, 50):
        for scale in (1e-3, 1.0, 10.0, 300.0, 1e6):
            for sharp in (0.1, 3.0, 50.0):
                logits = normal(300, classes, scale=scale).requires_grad_()
                y = normal(300, classes, scale=sharp).softmax(-1)
                loss = fitzpatrick_logistic_loss(logits, y, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, logits)
                assert gradient.sum(-1).abs().max() < 5e-15


# -- The face of cross-entropy.


@CASES
@given(
    st.sampled_from(["mean", "sum", "none"]),
    st.sampled_from([0.0, 0.2]),
    st.booleans(),
    st.sampled_from([-100, 3]),
    st.sampled_from([(5,), (4, 3), (2, 3, 2)]),
    seeds,
)
def test_options_are_those_of_cross_entropy(
    case: Case, reduction: str, smoothing: float, weighted: bool, ignored: int, shape: tuple, seed: int
) -> None:
    """Against the sum over targets, each with its row of logits alone."""
    torch.manual_seed(seed)
    classes = 6
    logits, target = normal(*shape, classes), torch.randint(0, classes, shape)
    target.view(-1)[::2] = ignored
    target.view(-1)[1] = (ignored + 1) % classes
    weight = torch.rand(classes, dtype=torch.float64) + 0.1 if weighted else torch.ones(classes).double()
    each, count = [], 0.0
    for row, label in zip(logits.view(-1, classes), target.view(-1).tolist(), strict=True):
        if label == ignored:
            each.append(torch.zeros(()).double())
            continue
        y = torch.full((classes,), smoothing / classes).double()
        y[label] += 1 - smoothing
        mass = (weight * y).sum()
        each.append(mass * case.loss(row, weight * y / mass))
        count += float(weight[label])
    losses = torch.stack(each).view(shape)
    expected = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / count}[reduction]
    options = {
        "weight": weight if weighted else None,
        "ignore_index": ignored,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    torch.testing.assert_close(case.loss(logits, target, **options), expected)
    moved = logits.movedim(-1, 1) if len(shape) > 1 else logits
    torch.testing.assert_close(case.loss(moved, target, dim=1 if len(shape) > 1 else -1, **options), expected)


@CASES
def test_temperature_divides_the_scores(case: Case) -> None:
    logits, y = normal(4, 5), normal(4, 5).softmax(-1)
    torch.testing.assert_close(case.loss(logits, y, temperature=2.5), case.loss(logits / 2.5, y))
    t = torch.rand(4, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(case.loss(logits, y, temperature=t), case.loss(logits / t, y))


@CASES
def test_compiles_and_maps(case: Case) -> None:
    torch.manual_seed(10)
    logits, target, y = normal(4, 6), torch.tensor([0, 3, -100, 5]), normal(4, 6).softmax(-1)
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    for each in (target, y):
        leaf = logits.clone().requires_grad_()
        expected = case.loss(leaf, each, reduction="sum")
        (gradient,) = torch.autograd.grad(expected, leaf)
        torch.testing.assert_close(compiled(leaf, each, reduction="sum"), expected)
        torch.testing.assert_close(
            torch.autograd.grad(compiled(leaf, each, reduction="sum"), leaf)[0], gradient
        )

        def one(x: Tensor, z: Tensor) -> Tensor:
            return case.loss(x, z, reduction="sum")

        torch.testing.assert_close(torch.func.vmap(torch.func.grad(one))(logits, each), gradient)
        forward = torch.func.vmap(torch.func.jacfwd(one))(logits, each)
        torch.testing.assert_close(forward, gradient)
        hessian = torch.func.hessian(one)(logits, each)
        other = torch.autograd.functional.hessian(lambda x, z=each: one(x, z), logits)
        torch.testing.assert_close(hessian, other)


@CASES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_that_counts_gives_zero(case: Case, reduction: str) -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = case.loss(logits, torch.full((3,), -100), reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (loss == 0).all() and (gradient == 0).all()
    assert case.loss(torch.zeros(0, 4), torch.zeros(0).long()) == 0
    assert case.loss(torch.zeros(0, 4), torch.zeros(0, 4)) == 0
    assert (case.loss(torch.randn(3, 1), torch.zeros(3).long(), reduction="none") == 0).all()


@CASES
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_classes(case: Case, smoothing: float) -> None:
    logits, target = normal(3, 5), torch.tensor([0, 2, 4])
    masked = torch.cat([logits, torch.full((3, 2), -math.inf).double()], -1).requires_grad_()
    soft = normal(3, 5).softmax(-1)
    for y, wide in ((target, target), (soft, torch.cat([soft, torch.zeros(3, 2).double()], -1))):
        loss = case.loss(masked, wide, label_smoothing=smoothing)
        torch.testing.assert_close(loss, case.loss(logits, y, label_smoothing=smoothing))
        (gradient,) = torch.autograd.grad(loss, masked)
        assert torch.isfinite(gradient).all() and (gradient[:, 5:] == 0).all()
    assert case.loss(masked, torch.tensor([5, 0, 0])).isinf()
    alone = torch.tensor([[0.0, -math.inf]], requires_grad=True)
    loss = case.loss(alone, torch.tensor([0]))
    assert loss == 0 and (torch.autograd.grad(loss, alone)[0] == 0).all()


@CASES
@pytest.mark.parametrize("rubbish", [-math.inf, math.nan, math.inf])
def test_an_ignored_row_may_hold_anything(case: Case, rubbish: float) -> None:
    logits = torch.randn(6, 9)
    logits[3] = rubbish
    logits.requires_grad_()
    target = torch.arange(6)
    target[3] = -100
    keep = torch.arange(6) != 3
    for smoothing in (0.0, 0.1):
        loss = case.loss(logits, target, label_smoothing=smoothing)
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(loss, case.loss(logits[keep], target[keep], label_smoothing=smoothing))
        assert (gradient[3] == 0).all() and torch.isfinite(gradient).all()


@CASES
def test_half_types_are_computed_in_float32(case: Case) -> None:
    logits, target = (torch.randn(4, 300) * 3).bfloat16(), torch.randint(0, 300, (4,))
    loss = case.loss(logits, target)
    assert loss.dtype == torch.bfloat16
    assert torch.equal(loss, case.loss(logits.float(), target).bfloat16())
    soft = logits.float().softmax(-1).bfloat16()  # whose sum is far from one in float32
    assert torch.isfinite(case.loss(logits, soft))
    many = torch.zeros(1, 100_000)
    subnormal = many.softmax(-1).half()
    assert subnormal.float().sum() > 1.001
    torch.testing.assert_close(case.loss(many, subnormal), torch.zeros(()), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"sum of 1\.00977"):
        case.loss(many[:, :2], torch.tensor([[0.5, 0.51]]).half())


@CASES
@pytest.mark.parametrize(
    ("logits", "target", "options", "words"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), {}, "target 3 is not a class: logits have 3"),
        (torch.zeros(2, 3), torch.tensor([0]), {}, r"must have shape \(2,\), received \(1,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 4), {}, r"\(2, 3\), received \(2, 4\)"),
        (torch.zeros(1, 2), torch.tensor([[2.0, -1.0]]), {}, r">= 0, received -1 at \(0, 1\)"),
        (torch.zeros(1, 2), torch.tensor([[math.nan, 1.0]]), {}, r">= 0, received nan at \(0, 0\)"),
        (torch.zeros(1, 2), [0], {}, "target must be a tensor, received list"),
        (torch.zeros(2, 2), torch.tensor([[0.5, 0.5], [0.5, 0.25]]), {}, r"sum of 0.75 in row \(1,\)"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"reduction": "avg"}, "received 'avg'"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"label_smoothing": 1.0}, r"in \[0, 1\), received 1.0"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"weight": torch.ones(2)}, r"\(3,\), received \(2,\)"),
        (
            torch.zeros(1, 2),
            torch.tensor([[0.5, 0.5]]),
            {"weight": torch.tensor([1.0, -2.0])},
            "-2.0 for class 1",
        ),
        (
            torch.zeros(1, 2),
            torch.tensor([0]),
            {"weight": torch.tensor([1.0, math.nan])},
            "received nan for class 1",
        ),
        (
            torch.zeros(1, 2),
            torch.tensor([0]),
            {"weight": [1.0, 1.0]},
            "weight must be a tensor, received list",
        ),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"temperature": 0.0}, "temperature must be positive"),
        (torch.full((1, 3), math.nan), torch.tensor([0]), {}, "holds nan"),
        (torch.full((1, 3), -math.inf), torch.tensor([0]), {}, "every class is masked"),
        (torch.zeros(2, 3).long(), torch.tensor([0, 1]), {}, "floating-point tensor, received torch.int64"),
    ],
)
def test_bad_input(case: Case, logits: Tensor, target: Tensor, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        case.loss(logits, target, **options)
