"""What the Fenchel-Young and distillation losses must satisfy, for every record."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from catalogue import NAMES, OWN, STEEP
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fenchel
from fenchel import InputError, distillation_loss, f_divergence, f_softargmax, fenchel_young_loss

ALL = [*NAMES, *STEEP, OWN]


def scores(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * 2


# --- the face of cross_entropy ----------------------------------------------------------------


@given(
    st.sampled_from(["mean", "sum", "none"]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.booleans(),
    st.sampled_from([-100, 3]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([(5,), (4, 3), (2, 3, 2)]),
    st.integers(0, 10**6),
)
def test_kl_is_cross_entropy(
    reduction: str,
    smoothing: float,
    weighted: bool,
    ignored: int,
    dtype: torch.dtype,
    shape: tuple,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    classes = 6
    logits = torch.randn(*shape, classes, dtype=dtype)
    target = torch.randint(0, classes, shape)
    target.view(-1)[::2] = ignored
    target.view(-1)[1] = (ignored + 1) % classes  # at least one counts
    options = {
        "weight": torch.rand(classes, dtype=dtype) + 0.1 if weighted else None,
        "ignore_index": ignored,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours = fenchel_young_loss(a, target, **options)
    theirs = F.cross_entropy(b.movedim(-1, 1) if len(shape) > 1 else b, target, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    (mine,) = torch.autograd.grad(ours.sum(), a)
    (other,) = torch.autograd.grad(theirs.sum(), b)
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    moved = fenchel_young_loss(logits.movedim(-1, 1), target, dim=1, **options) if len(shape) > 1 else ours
    torch.testing.assert_close(moved, ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_targets_differ_from_cross_entropy_by_a_constant(weighted: bool, smoothing: float) -> None:
    logits, target = scores(4, 6).requires_grad_(), scores(4, 6).softmax(-1)
    weight = torch.rand(6, dtype=torch.float64) + 0.1 if weighted else None
    ours = fenchel_young_loss(logits, target, weight=weight, label_smoothing=smoothing)
    theirs = F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)
    for a, b in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True):
        torch.testing.assert_close(a, b)
    if not weighted and not smoothing:
        torch.testing.assert_close(ours, theirs + (target * target.log()).sum(-1).mean())


def test_module_is_a_drop_in() -> None:
    weight = torch.rand(6) + 0.1
    ours = fenchel.FenchelYoungLoss("kl", weight=weight, label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    logits, target = torch.randn(5, 6), torch.tensor([0, 1, -100, 3, 4])
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))
    assert set(ours.state_dict()) == set(theirs.state_dict())
    reference = torch.rand(6) + 0.5
    other = fenchel.FenchelYoungLoss("alpha:1.5", reference=reference, temperature=2.0)
    torch.testing.assert_close(
        other(logits, target),
        fenchel_young_loss(logits, target, "alpha:1.5", reference=reference, temperature=2.0),
    )
    assert "alpha:1.5" in repr(other) and other.double().reference.dtype == torch.float64


# --- what makes it a Fenchel-Young loss --------------------------------------------------------


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("unit", [True, False])
def test_definition_gradient_and_zero(divergence: str, unit: bool) -> None:
    logits, target = scores(5, 7).requires_grad_(), scores(5, 7).softmax(-1)
    q = torch.ones(7).double() if unit else torch.rand(7, dtype=torch.float64) + 0.3
    loss = fenchel_young_loss(logits, target, divergence, reference=q, reduction="none")
    defined = (
        fenchel.f_softmax(logits, divergence, reference=q)
        + f_divergence(target, q, divergence)
        - (logits * target).sum(-1)
    )
    torch.testing.assert_close(loss, defined, rtol=1e-9, atol=1e-9)
    assert (loss > 0).all()
    p = f_softargmax(logits, divergence, reference=q)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, p - target, rtol=1e-9, atol=1e-12)
    at_optimum = fenchel_young_loss(logits, p.detach(), divergence, reference=q, reduction="none")
    torch.testing.assert_close(at_optimum, torch.zeros(5).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("divergence", ALL)
def test_index_and_one_hot_agree(divergence: str) -> None:
    logits, target = scores(6, 5), torch.randint(0, 5, (6,))
    q = torch.rand(5, dtype=torch.float64) + 0.3
    for reference in (1.0, q):
        for smoothing in (0.0, 0.3):
            options = {"reference": reference, "label_smoothing": smoothing, "reduction": "none"}
            torch.testing.assert_close(
                fenchel_young_loss(logits, target, divergence, **options),
                fenchel_young_loss(logits, F.one_hot(target, 5).double(), divergence, **options),
            )


@pytest.mark.parametrize("divergence", NAMES)
def test_second_derivatives(divergence: str) -> None:
    logits = scores(3, 5).requires_grad_()
    q = (torch.rand(5, dtype=torch.float64) + 0.3).requires_grad_()
    t = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    hard, soft = torch.tensor([0, -100, 4]), scores(3, 5).softmax(-1).requires_grad_()

    def with_hard(x: Tensor, measure: Tensor, temperature: Tensor) -> Tensor:
        return fenchel_young_loss(
            x, hard, divergence, reference=measure, temperature=temperature, label_smoothing=0.1
        )

    def with_soft(x: Tensor, y: Tensor, measure: Tensor) -> Tensor:
        return fenchel_young_loss(x, y, divergence, reference=measure)

    assert torch.autograd.gradcheck(with_hard, (logits, q, t))
    assert torch.autograd.gradgradcheck(with_hard, (logits, q, t))
    assert torch.autograd.gradcheck(with_soft, (logits, soft, q))
    assert torch.autograd.gradgradcheck(with_soft, (logits, soft, q))


@pytest.mark.parametrize("divergence", ALL)
def test_value_keeps_its_digits_at_large_vocabulary(divergence: str) -> None:
    """In float32 Σ q f(0) alone would have an error of 1e-2 at this size."""
    logits = torch.randn(4, 131072) * 3
    target = logits.argsort(descending=True)[:, 2]
    exact = fenchel_young_loss(logits.double(), target, divergence, reduction="none")
    received = fenchel_young_loss(logits, target, divergence, reduction="none")
    torch.testing.assert_close(received.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("divergence", NAMES)
def test_loss_compiles_and_maps(divergence: str) -> None:
    logits, target = scores(4, 6), torch.tensor([0, 3, -100, 5])
    expected = fenchel_young_loss(logits, target, divergence)
    compiled = torch.compile(fenchel_young_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, target, divergence), expected)
    per_row = torch.func.vmap(
        torch.func.grad(lambda x, y: fenchel_young_loss(x, y, divergence, reduction="sum"))
    )(logits, target)
    p = f_softargmax(logits, divergence)
    want = p - F.one_hot(target.clamp_min(0), 6)
    want[2] = 0
    torch.testing.assert_close(per_row, want)


# --- edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_ignored_gives_zero(divergence: str, reduction: str) -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = fenchel_young_loss(logits, torch.full((3,), -100), divergence, reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (loss == 0).all() and (gradient == 0).all()


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_classes(divergence: str, smoothing: float) -> None:
    logits, target = scores(3, 5), torch.tensor([0, 2, 4])
    masked = torch.cat([logits, torch.full((3, 2), -math.inf).double()], -1).requires_grad_()
    for y, wide in (
        (target, target),
        (soft := scores(3, 5).softmax(-1), torch.cat([soft, torch.zeros(3, 2).double()], -1)),
    ):
        options = {"divergence": divergence, "label_smoothing": smoothing}
        loss = fenchel_young_loss(masked, wide, **options)
        torch.testing.assert_close(loss, fenchel_young_loss(logits, y, **options))
        (gradient,) = torch.autograd.grad(loss, masked)
        assert torch.isfinite(gradient).all() and (gradient[:, 5:] == 0).all()
    assert fenchel_young_loss(masked, torch.tensor([5, 0, 0]), divergence).isinf()


@pytest.mark.parametrize("divergence", ALL)
def test_half_types(divergence: str) -> None:
    logits = (torch.randn(4, 300) * 3).bfloat16()
    target = torch.randint(0, 300, (4,))
    loss, probs = fenchel_young_loss(logits, target, divergence, return_probs=True)
    assert loss.dtype == probs.dtype == torch.bfloat16
    assert torch.equal(loss, fenchel_young_loss(logits.float(), target, divergence).bfloat16())
    assert torch.equal(probs, f_softargmax(logits, divergence))


@pytest.mark.parametrize(
    "logits, target, options, words",
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), {}, "target 3 is not a class: logits have 3"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), {}, "target -1 is not a class"),
        (torch.zeros(2, 3), torch.tensor([0]), {}, r"must have shape \(2,\), received \(1,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 4), {}, r"\(2, 3\), received \(2, 4\)"),
        (torch.zeros(2, 3), -torch.ones(2, 3), {}, "must be >= 0"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"reduction": "avg"}, "received 'avg'"),
        (
            torch.zeros(2, 3),
            torch.tensor([0, 1]),
            {"label_smoothing": 1.0},
            r"in \[0, 1\), received 1.0",
        ),
        (
            torch.zeros(2, 3),
            torch.tensor([0, 1]),
            {"weight": torch.ones(2)},
            r"\(3,\), received \(2,\)",
        ),
        (torch.full((1, 3), math.nan), torch.tensor([0]), {}, "holds nan"),
    ],
)
def test_errors(logits: Tensor, target: Tensor, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fenchel_young_loss(logits, target, "js", **options)


# --- distillation ------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ALL)
def test_distillation_is_the_divergence_of_the_softmaxes(divergence: str) -> None:
    student, teacher = scores(4, 6).requires_grad_(), scores(4, 6)
    loss = distillation_loss(student, teacher, divergence, temperature=2.0, reduction="none")
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    torch.testing.assert_close(loss, f_divergence(p, q, divergence), rtol=1e-10, atol=1e-12)
    mask = torch.tensor([True, False, True, True])
    mean = distillation_loss(student, teacher, divergence, temperature=2.0, mask=mask)
    torch.testing.assert_close(mean, loss[mask].mean())
    zero = distillation_loss(student, student.detach(), divergence)
    (gradient,) = torch.autograd.grad(zero, student)
    torch.testing.assert_close(zero, torch.zeros(()).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(student), atol=1e-12, rtol=0)


@pytest.mark.parametrize("divergence", NAMES)
def test_distillation_gradients(divergence: str) -> None:
    student, teacher = scores(2, 5).requires_grad_(), scores(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: distillation_loss(s, t, divergence), (student, teacher))


def test_distillation_against_kl_div() -> None:
    student, teacher = scores(4, 6), scores(4, 6)
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    for name, expected in {
        "kl": F.kl_div(log_s, log_t, log_target=True, reduction="batchmean"),
        "reverse-kl": F.kl_div(log_t, log_s, log_target=True, reduction="batchmean"),
    }.items():
        torch.testing.assert_close(distillation_loss(student, teacher, name), expected)


@pytest.mark.parametrize("divergence", ["kl", "reverse-kl", "js", "hellinger", "jeffreys"])
def test_confident_disagreement_is_finite_in_float32(divergence: str) -> None:
    student = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    loss = distillation_loss(student, -student.detach(), divergence)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_vocabulary_mismatch_quotes_both() -> None:
    with pytest.raises(InputError, match=r"received \(2, 5\) and \(2, 6\)"):
        distillation_loss(torch.zeros(2, 5), torch.zeros(2, 6))


@pytest.mark.parametrize("name", ["kl", "js", "alpha:1.5"])
def test_weights_and_squared_temperature_of_distillation(name: str) -> None:
    student, teacher = scores(5, 6), scores(5, 6)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    mask = torch.tensor([True, True, False, True, True])
    each = distillation_loss(student, teacher, name, temperature=3.0, reduction="none")
    options = {"temperature": 3.0, "squared_temperature": True, "weight": weight, "mask": mask}
    expected = 9 * (weight * each)[mask].sum() / weight[mask].sum()
    torch.testing.assert_close(distillation_loss(student, teacher, name, **options), expected)


@pytest.mark.parametrize("impl", ["eager", "auto"])
@pytest.mark.parametrize("rubbish", [-math.inf, math.nan, math.inf])
def test_an_ignored_row_may_hold_anything(impl: str, rubbish: float) -> None:
    logits = torch.randn(40, 2000)
    logits[3] = rubbish
    logits.requires_grad_()
    target = torch.arange(40)
    target[3] = -100
    for smoothing in (0.0, 0.1):
        loss = fenchel_young_loss(logits, target, "js", label_smoothing=smoothing, impl=impl)
        (grad,) = torch.autograd.grad(loss, logits)
        keep = torch.arange(40) != 3
        expected = fenchel_young_loss(logits[keep], target[keep], "js", label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)
        assert (grad[3] == 0).all() and torch.isfinite(grad).all()


def test_reduce_counts_what_is_unmasked() -> None:
    values = torch.tensor([1.0, math.nan, 4.0], requires_grad=True)
    mask, weight = torch.tensor([True, False, True]), torch.tensor([3.0, 5.0, 1.0])
    for options, expected in (
        ({"reduction": "sum"}, 5.0),
        ({}, 2.5),
        ({"weight": weight}, 5.0 / 4.0),
        ({"count": 10}, 0.5),
        ({"mask": torch.zeros(3, dtype=torch.bool)}, 0.0),
    ):
        found = fenchel.reduce(values, **{"mask": mask, **options})
        assert found.item() == expected
        (gradient,) = torch.autograd.grad(found, values)
        assert torch.isfinite(gradient).all() and gradient[1] == 0
