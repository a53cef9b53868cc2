"""The Fitzpatrick logistic loss of a head: that of its logits, which are never held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fenchel import InputError, fitzpatrick_logistic_loss, linear_fitzpatrick_logistic_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["labels", "smoothed", "soft"])
@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_is_that_of_the_logits(chunk: int, reduction: str, kind: str, impl: str) -> None:
    leaves = [normal(2, 3, 4), normal(9, 4, seed=1), normal(9, seed=2)]
    for leaf in leaves:
        leaf.requires_grad_()
    h, w, b = leaves
    target = torch.tensor([[0, 8, -100], [3, -100, 1]])
    if kind == "soft":
        target = normal(2, 3, 9, seed=3).softmax(-1)
    options = {
        "label_smoothing": 0.1 if kind == "smoothed" else 0.0,
        "temperature": 0.7,
        "reduction": reduction,
    }
    plain = fitzpatrick_logistic_loss(h @ w.T + b, target, **options)
    ours = linear_fitzpatrick_logistic_loss(h, w, target, bias=b, chunk=chunk, impl=impl, **options)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)
    factor = torch.arange(1.0, 1 + plain.numel()).double().view_as(plain)  # rows of unequal weight
    for mine, theirs in zip(
        torch.autograd.grad((factor * ours).sum(), leaves),
        torch.autograd.grad((factor * plain).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_derivatives_to_second_order() -> None:
    h, w = normal(5, 3).requires_grad_(), normal(6, 3, seed=1).requires_grad_()
    target = torch.tensor([0, 5, -100, 2, 1])

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return linear_fitzpatrick_logistic_loss(h, w, target, chunk=2)

    assert torch.autograd.gradcheck(loss, (h, w))
    assert torch.autograd.gradgradcheck(loss, (h, w))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 40.0, 1e3])
def test_labels_right_and_wrong_by_far(scale: float) -> None:
    """Cross-entropies from 0 to thousands, in float32 against the logits in float64."""
    h, w = (scale * normal(12, 4)).float().requires_grad_(), normal(30, 4, seed=1).float()
    logits = (h.detach().double() @ w.double().T).requires_grad_()
    target = torch.cat([logits[:6].argmax(-1), logits[6:].argmin(-1)])
    exact = fitzpatrick_logistic_loss(logits, target, reduction="none")
    losses = linear_fitzpatrick_logistic_loss(h, w, target, reduction="none")
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), h)
    expected = torch.autograd.grad(exact.sum(), logits)[0] @ w.double()
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_a_label_that_is_masked_is_infinite_and_harms_no_other_row(impl: str) -> None:
    h, w, b = normal(3, 4).requires_grad_(), normal(6, 4, seed=1), torch.zeros(6).double()
    b[1] = -torch.inf
    target = torch.tensor([0, 1, 2])
    losses = linear_fitzpatrick_logistic_loss(h, w, target, bias=b, reduction="none", impl=impl)
    assert torch.equal(losses.isinf(), target == 1)
    (gradient,) = torch.autograd.grad(losses.sum(), h)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["labels", "smoothed", "weighed"])
def test_no_more_than_a_chunk_of_logits_is_ever_made(kind: str) -> None:
    rows, classes, chunk = 64, 512, 8
    h, w = normal(rows, 4).requires_grad_(), normal(classes, 4, seed=1).requires_grad_()
    target = torch.arange(rows)
    sizes: list[int] = []

    def step() -> None:
        if kind == "weighed":  # rows of unequal gradients
            losses = linear_fitzpatrick_logistic_loss(h, w, target, chunk=chunk, reduction="none")
            (losses * normal(rows, seed=2)).sum().backward()
            return
        smoothing = 0.1 if kind == "smoothed" else 0.0
        linear_fitzpatrick_logistic_loss(h, w, target, chunk=chunk, label_smoothing=smoothing).backward()

    class Sizes(TorchDispatchMode):
        """Of every tensor that is made, forward and backward."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.untyped_storage().size() for x in tree_leaves(out) if isinstance(x, Tensor))
            return out

    with Sizes():
        step()
    assert max(sizes) <= 8 * chunk * classes


def test_transformed_and_compiled() -> None:
    h, w, target = normal(5, 3), normal(6, 3, seed=1), torch.tensor([0, 5, -100, 2, 1])
    leaf = h.clone().requires_grad_()
    expected = linear_fitzpatrick_logistic_loss(leaf, w, target)
    (gradient,) = torch.autograd.grad(expected, leaf)
    mapped = torch.func.grad(lambda h: linear_fitzpatrick_logistic_loss(h, w, target))(h)
    torch.testing.assert_close(mapped, gradient)
    compiled = torch.compile(linear_fitzpatrick_logistic_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(leaf, w, target), expected)


def test_half_precision_and_nothing_under_loss() -> None:
    h, w = normal(6, 4).bfloat16(), normal(9, 4, seed=1).bfloat16()
    loss = linear_fitzpatrick_logistic_loss(h, w, torch.arange(6), chunk=2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, fitzpatrick_logistic_loss((h @ w.T).float(), torch.arange(6)))
    leaf = normal(3, 4).requires_grad_()
    loss = linear_fitzpatrick_logistic_loss(leaf, normal(9, 4), torch.full((3,), -100), chunk=2)
    loss.backward()
    assert loss == 0 and (leaf.grad == 0).all()


def test_bad_input() -> None:
    h, w, y = normal(3, 4), normal(9, 4), torch.zeros(3, dtype=torch.long)
    with pytest.raises(InputError, match=r"\(3, 4\) and \(9, 5\)"):
        linear_fitzpatrick_logistic_loss(h, normal(9, 5), y)
    with pytest.raises(InputError, match=r"target must be class indices \(3,\) or probabilities \(3, 9\)"):
        linear_fitzpatrick_logistic_loss(h, w, y[:2])
    with pytest.raises(InputError, match="target must be a tensor, received list"):
        linear_fitzpatrick_logistic_loss(h, w, [0, 0, 0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="target 9 is not a class"):
        linear_fitzpatrick_logistic_loss(h, w, y + 9)
    with pytest.raises(InputError, match="temperature must be positive"):
        linear_fitzpatrick_logistic_loss(h, w, y, temperature=0.0)
    with pytest.raises(InputError, match="sum of 2"):
        linear_fitzpatrick_logistic_loss(h, w, torch.full((3, 9), 2 / 9, dtype=torch.float64))
