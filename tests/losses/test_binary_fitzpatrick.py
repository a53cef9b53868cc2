"""Fitzpatrick losses of yes-or-no targets: those of two classes with the scores s and 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fenchel import (
    InputError,
    binary_fitzpatrick_logistic_loss,
    binary_fitzpatrick_sparsemax_loss,
    fenchel_young_loss,
    fitzpatrick_logistic_loss,
    fitzpatrick_sparsemax_loss,
)

PAIRS = pytest.mark.parametrize(
    ("binary", "of_classes"),
    [
        (binary_fitzpatrick_logistic_loss, fitzpatrick_logistic_loss),
        (binary_fitzpatrick_sparsemax_loss, fitzpatrick_sparsemax_loss),
    ],
    ids=["logistic", "sparsemax"],
)
Loss = Callable[..., Tensor]


def points() -> tuple[Tensor, Tensor]:
    s = torch.tensor([-1e4, -30.0, -3.0, -1.0, -0.2, 0.0, 1e-9, 0.7, 1.0, 3.0, 40.0, 1e4]).double()
    y = torch.tensor([0.0, 1e-12, 0.1, 0.5, 0.75, 1 - 1e-9, 1.0]).double()
    return (x.contiguous() for x in torch.meshgrid(s, y, indexing="ij"))


@PAIRS
def test_is_that_of_two_classes(binary: Loss, of_classes: Loss) -> None:
    s, y = (x.requires_grad_() for x in points())
    ours = binary(s, y, reduction="none")
    two = of_classes(torch.stack([s, torch.zeros_like(s)], -1), torch.stack([y, 1 - y], -1), reduction="none")
    torch.testing.assert_close(ours, two, rtol=1e-9, atol=1e-15)
    for mine, theirs in zip(
        torch.autograd.grad(ours.sum(), (s, y)), torch.autograd.grad(two.sum(), (s, y)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


@PAIRS
def test_labels_are_the_closed_form_of_the_margin(binary: Loss, of_classes: Loss) -> None:
    s = torch.linspace(-50, 50, 101, dtype=torch.float64)
    logits = torch.stack([s, torch.zeros_like(s)], -1)
    for label in (0, 1):
        y = torch.full_like(s, 1.0 - label)
        expected = of_classes(logits, torch.full((101,), label), reduction="none")
        torch.testing.assert_close(binary(s, y, reduction="none"), expected, rtol=1e-12, atol=1e-30)


def test_logistic_lies_between_zero_and_binary_cross_entropy() -> None:
    s, y = points()
    loss = binary_fitzpatrick_logistic_loss(s, y, reduction="none")
    entropy = F.binary_cross_entropy(y, y, reduction="none")
    twin = F.binary_cross_entropy_with_logits(s, y, reduction="none") - entropy
    assert (loss >= 0).all() and (loss <= twin + 1e-12 * (1 + s.abs())).all()
    at_link = binary_fitzpatrick_logistic_loss(s, s.sigmoid(), reduction="none")
    torch.testing.assert_close(at_link, torch.zeros_like(s), rtol=0, atol=1e-15)


def test_sparsemax_lies_under_its_twin_and_is_zero_on_its_link_alone() -> None:
    s, y = points()
    loss = binary_fitzpatrick_sparsemax_loss(s, y, reduction="none")
    scores, proportions = torch.stack([s, torch.zeros_like(s)], -1), torch.stack([y, 1 - y], -1)
    twin = fenchel_young_loss(scores, proportions, "alpha:2", reduction="none")
    assert (loss >= 0).all() and (loss <= twin + 1e-12 * (1 + s.abs())).all()
    link = ((s + 1) / 2).clamp(0, 1)
    assert torch.equal(loss == 0, y == link)


@PAIRS
def test_derivatives_to_second_order(binary: Loss, of_classes: Loss) -> None:
    s = torch.tensor([[-1.2, 0.4], [2.1, -5.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.2, 0.5], [0.9, 0.35]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(binary, (s, y))
    assert torch.autograd.gradgradcheck(binary, (s, y))
    compiled = torch.compile(binary, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(s, y), binary(s, y))
    hessian = torch.func.vmap(torch.func.hessian(binary))(s.detach().view(-1), y.detach().view(-1))
    (gradient,) = torch.autograd.grad(binary(s, y, reduction="sum"), s, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), s)
    torch.testing.assert_close(hessian, second.view(-1))


@PAIRS
def test_the_gradient_at_the_bounds(binary: Loss, of_classes: Loss) -> None:
    """At q = 0 and q = 1 the square meets the line: q - y on both sides."""
    s = torch.tensor([3.0, 1.0, -3.0, -1.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(binary(s, y, reduction="sum"), s)
    up, down = (binary(s.detach() + d, y, reduction="none") for d in (1e-6, -1e-6))
    torch.testing.assert_close(gradient, (up - down) / 2e-6, rtol=0, atol=1e-6)


@PAIRS
def test_reductions_weights_and_types(binary: Loss, of_classes: Loss) -> None:
    s, y = torch.randn(4, 3), torch.rand(4, 3)
    each = binary(s, y, reduction="none")
    weight = torch.tensor([1.0, 0.0, 2.0])
    torch.testing.assert_close(binary(s, y, weight=weight), (each * weight).mean())
    torch.testing.assert_close(binary(s, y, weight=weight, reduction="sum"), (each * weight).sum())
    assert binary(s.half(), y.half()).dtype == torch.float16
    assert binary(s[:0], y[:0]) == 0
    assert torch.equal(binary(s, y > 0.5), binary(s, (y > 0.5).float()))


@PAIRS
@pytest.mark.parametrize(
    ("s", "y", "options", "words"),
    [
        (torch.zeros(3), torch.zeros(2), {}, r"shape of logits \(3,\), received \(2,\)"),
        (torch.zeros(2), torch.tensor([0.5, 1.5]), {}, r"target must be in \[0, 1\], received 1.5"),
        (torch.zeros(2), torch.tensor([0.5, math.nan]), {}, r"in \[0, 1\], received nan"),
        (torch.zeros(2), [0.0, 1.0], {}, "target must be a tensor, received list"),
        (torch.zeros(2), torch.zeros(2), {"weight": 2.0}, "weight must be a tensor, received float"),
        (
            torch.zeros(2),
            torch.zeros(2),
            {"weight": torch.tensor([1.0, -2.0])},
            ">= 0 and finite, received -2",
        ),
        (torch.zeros(2), torch.zeros(2), {"weight": torch.tensor(math.nan)}, ">= 0 and finite, received nan"),
        (torch.tensor([math.nan]), torch.zeros(1), {}, "logits must be finite, received nan"),
        (torch.zeros(2).long(), torch.zeros(2), {}, "received torch.int64"),
        (torch.zeros(2), torch.zeros(2), {"weight": torch.ones(3)}, r"broadcast to logits \(2,\)"),
        (torch.zeros(2), torch.zeros(2), {"reduction": "avg"}, "received 'avg'"),
    ],
)
def test_bad_input(binary: Loss, of_classes: Loss, s: Tensor, y: Tensor, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        binary(s, y, **options)
