"""Losses of a head in chunks: equal to those of its logits, which are never held."""

from __future__ import annotations

import math

import pytest
import torch
from catalogue import SPARSE
from torch import Tensor

from fenchel import (
    InputError,
    distillation_loss,
    fenchel_young_loss,
    linear_distillation_loss,
    linear_fenchel_young_loss,
)
from fenchel.losses.linear import Scores, in_chunks

NAMES = ["kl", "js", "reverse-kl", "jsd:0.3", *SPARSE]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_distillation_is_that_of_the_logits(name: str, chunk: int, reduction: str) -> None:
    leaves = [normal(7, 4), normal(9, 4, seed=1), normal(9, seed=2), normal(7, 5, seed=3)]
    leaves += [normal(9, 5, seed=4), normal(9, seed=5)]
    mask = torch.tensor([True, False, True, True, True, False, True])
    options = {"temperature": 1.5, "squared_temperature": True, "mask": mask, "reduction": reduction}

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((loss * torch.arange(1, 1 + loss.numel())).sum(), leaves)

    for leaf in leaves:
        leaf.requires_grad_()
    h, w, b, th, tw, tb = leaves
    plain = distillation_loss(h @ w.T + b, th @ tw.T + tb, name, **options)
    ours = linear_distillation_loss(
        h, w, th, tw, name, student_bias=b, teacher_bias=tb, chunk=chunk, **options
    )
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(gradients(ours), gradients(plain), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("soft", [False, True])
def test_fenchel_young_is_that_of_the_logits(name: str, chunk: int, soft: bool) -> None:
    h, w, b = normal(2, 3, 4).requires_grad_(), normal(9, 4, seed=1).requires_grad_(), normal(9, seed=2)
    target = normal(2, 3, 9, seed=3).softmax(-1) if soft else torch.tensor([[0, 8, -100], [3, -100, 1]])
    options = {"label_smoothing": 0.1, "temperature": 0.7}
    plain = fenchel_young_loss(h @ w.T + b, target, name, **options)
    ours = linear_fenchel_young_loss(h, w, target, name, bias=b, chunk=chunk, **options)
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (h, w)), torch.autograd.grad(plain, (h, w)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    each = linear_fenchel_young_loss(h, w, target, name, bias=b, chunk=chunk, reduction="none")
    assert each.shape == (2, 3)


def test_gradient_by_finite_differences() -> None:
    h, w, th = normal(5, 3).requires_grad_(), normal(6, 3, seed=1).requires_grad_(), normal(5, 2, seed=2)
    tw = normal(6, 2, seed=3)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_distillation_loss(h, w, th, tw, "alpha:1.5", chunk=2, reduction="none"), (h, w)
    )


def test_no_more_than_a_chunk_of_logits_is_saved() -> None:
    rows, classes, chunk = 64, 512, 8
    h, w = normal(rows, 4).requires_grad_(), normal(classes, 4, seed=1).requires_grad_()
    held = []

    def pack(x: Tensor) -> Tensor:
        held.append(x.numel())
        return x

    target = torch.arange(rows)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        linear_fenchel_young_loss(h, w, target, "js", chunk=chunk)
    assert max(held) < rows * classes // 4
    held.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        linear_fenchel_young_loss(h, w, target, "js", chunk=rows, impl="eager")
    assert max(held) >= rows * classes  # the hook sees what a whole computation keeps


def test_half_precision_heads_give_float32_losses() -> None:
    h, w = normal(6, 4).bfloat16(), normal(9, 4, seed=1).bfloat16()
    target = torch.arange(6)
    loss = linear_fenchel_young_loss(h, w, target, "js", chunk=2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, fenchel_young_loss((h @ w.T).float(), target, "js"))


def test_nothing_under_loss() -> None:
    h, w = normal(3, 4).requires_grad_(), normal(9, 4, seed=1)
    loss = linear_fenchel_young_loss(h, w, torch.full((3,), -100), chunk=2)
    loss.backward()
    assert loss == 0 and (h.grad == 0).all()
    empty = linear_distillation_loss(h[:0], w, h[:0], w)
    assert empty == 0


def test_bad_input() -> None:
    h, w = normal(3, 4), normal(9, 4)
    with pytest.raises(InputError, match=r"\(3, 4\) and \(9, 5\)"):
        linear_fenchel_young_loss(h, normal(9, 5), torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match=r"rows of 9 classes and \(3,\) rows of 8|9 classes"):
        linear_distillation_loss(h, w, h, normal(8, 4))
    with pytest.raises(InputError, match="bias of weight must be"):
        linear_fenchel_young_loss(h, w, torch.zeros(3, dtype=torch.long), bias=normal(8))
    y = torch.zeros(3, dtype=torch.long)
    for target in (y[:2], y[:, None], torch.rand(3, 8)):
        with pytest.raises(
            InputError, match=r"target must be class indices \(3,\) or probabilities \(3, 9\)"
        ):
            linear_fenchel_young_loss(h, w, target)
    with pytest.raises(InputError, match="target 9 is not a class"):
        linear_fenchel_young_loss(h, w, y + 9)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="temperature must be positive"):
            linear_fenchel_young_loss(h, w, y, temperature=temperature)
        with pytest.raises(InputError, match="temperature must be positive"):
            linear_distillation_loss(h, w, h, w, temperature=temperature)
    with pytest.raises(InputError, match=r"label_smoothing must be in \[0, 1\)"):
        linear_fenchel_young_loss(h, w, y, label_smoothing=1.5)
    with pytest.raises(InputError, match=r"mask must have the shape of the rows \(3,\), received \(1,\)"):
        linear_distillation_loss(h, w, h, w, mask=torch.ones(1, dtype=torch.bool))
    with pytest.raises(InputError, match="impl='nonsense' cannot run"):
        linear_distillation_loss(h, w, h.clone().requires_grad_(), w, impl="nonsense")
    with pytest.raises(InputError, match=r"\(0, 4\)"):
        linear_fenchel_young_loss(h, w[:0], y)
    with pytest.raises(InputError, match="chunk must be at least 1"):
        in_chunks(lambda x: x.sum(-1), Scores(h, w), chunk=0)
