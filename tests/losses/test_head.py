"""The fused head: gradients made in the forward pass are those of the logits held as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fenchel
from fenchel import InputError, fenchel_young_loss, linear_distillation_loss, linear_fenchel_young_loss
from fenchel.losses import head
from fenchel.losses.head import Differentiated, Distilled, Tokens, head_losses

NAMES = ["kl", "js", "reverse-kl", "chi2", "alpha:1.1", "alpha:1.5", "alpha:2"]
ROWS, CLASSES, WIDTH = 11, 40, 6


def leaves(dtype: torch.dtype = torch.float64, classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return normal(ROWS, WIDTH), normal(classes, WIDTH), normal(classes)


def targets(classes: int = CLASSES) -> Tensor:
    target = torch.arange(ROWS) * 7 % classes
    target[3] = target[10] = -1
    return target


def plainly(name: str, target: Tensor, grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Losses and gradients through logits that are held."""
    hidden, weight, bias = inputs
    logits = hidden @ weight.T + bias
    losses = fenchel_young_loss(logits, target, name, ignore_index=-1, reduction="none", impl="eager")
    return [losses, *torch.autograd.grad((losses * grad).sum(), inputs)]


@pytest.fixture(params=["sparse", "dense", "as it comes"])
def density(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    share = {"sparse": 1.0, "dense": 0.0}.get(request.param)
    if share is not None:
        monkeypatch.setattr(head, "SPARSE_BELOW", share)
    return str(request.param)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("rows", ["equal", "unequal"])
def test_gradients_are_exact(name: str, chunk: int, rows: str, density: str) -> None:
    inputs, target = leaves(), targets()
    grad = torch.full((ROWS,), 0.3) if rows == "equal" else torch.linspace(-1, 2, ROWS)
    criterion = Tokens(target, fenchel.divergence(name))
    losses = head_losses(*inputs, criterion, chunk)
    received = [losses, *torch.autograd.grad((losses * grad).sum(), inputs)]
    for mine, theirs in zip(received, plainly(name, target, grad, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["js", "alpha:1.5"])
def test_a_graph_may_be_used_again(name: str, density: str) -> None:
    inputs, target = leaves(), targets()
    losses = head_losses(*inputs, Tokens(target, fenchel.divergence(name)), 4)
    for grad in (torch.full((ROWS,), 2.0), torch.linspace(0, 1, ROWS), torch.full((ROWS,), 0.5)):
        received = torch.autograd.grad((losses * grad).sum(), inputs, retain_graph=True)
        for mine, theirs in zip(received, plainly(name, target, grad, inputs)[1:], strict=True):
            torch.testing.assert_close(mine, theirs)


class Counted(Differentiated):
    calls = 0

    def dense(self, logits: Tensor, rows: slice, gradient: bool) -> Tensor:
        Counted.calls += 1
        return super().dense(logits, rows, gradient)


@pytest.mark.parametrize(
    "reduced, calls",
    [
        (torch.sum, 3),
        (torch.mean, 3),
        (lambda x: fenchel.reduce(x, count=7), 3),
        (lambda x: (x * 0.5).sum(), 3),
        (lambda x: (x * torch.arange(11)).sum(), 6),
    ],
)
def test_logits_are_computed_again_only_for_rows_of_unequal_weight(
    reduced: Callable[[Tensor], Tensor], calls: int
) -> None:
    hidden, weight, _ = leaves()
    target, Counted.calls = targets().clamp_min(0), 0
    criterion = Counted(lambda logits, rows: fenchel_young_loss(logits, target[rows], "js", reduction="none"))
    reduced(head_losses(hidden, weight, None, criterion, 4)).backward()  # type: ignore[no-untyped-call]
    assert Counted.calls == calls
    with torch.no_grad():
        head_losses(hidden, weight, None, criterion, 4)
    assert Counted.calls == calls + 3


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_asked_for_is_differentiated(wanted: tuple[bool, ...], density: str) -> None:
    inputs, target = leaves(), targets()
    grad = torch.ones(ROWS)
    expected = plainly("alpha:1.5", target, grad, inputs)[1:]
    fixed = tuple(x.detach().requires_grad_(w) for x, w in zip(inputs, wanted, strict=True))
    head_losses(*fixed, Tokens(target, fenchel.divergence("alpha:1.5")), 4).sum().backward()  # type: ignore[no-untyped-call]
    for x, w, theirs in zip(fixed, wanted, expected, strict=True):
        assert (x.grad is None) != w
        if w:
            torch.testing.assert_close(x.grad, theirs)


@pytest.mark.parametrize("name", ["js", "alpha:1.5"])
def test_logits_of_a_model_that_has_no_linear_head(name: str, density: str) -> None:
    hidden, weight, bias = leaves()
    target, logits = targets(), (hidden @ weight.T + bias).detach().requires_grad_()
    losses = head_losses(logits, None, None, Tokens(target, fenchel.divergence(name)), 4)
    (received,) = torch.autograd.grad(losses.sum(), logits)
    plain = fenchel_young_loss(logits, target, name, ignore_index=-1, reduction="sum", impl="eager")
    torch.testing.assert_close(received, torch.autograd.grad(plain, logits)[0])


@pytest.mark.parametrize("name", ["kl", "js", "alpha:1.1", "alpha:1.5"])
def test_kernels_give_what_plain_pytorch_gives(name: str) -> None:
    classes = 30_000
    inputs, target = leaves(torch.float32, classes), targets(classes)
    assert fenchel.which("token_support", torch.empty(4, classes), divergence=name).impl == "cpu"
    grad = torch.full((ROWS,), 1.0)
    losses = head_losses(*inputs, Tokens(target, fenchel.divergence(name)), 4)
    received = [losses, *torch.autograd.grad(losses.sum(), inputs)]
    for mine, theirs in zip(received, plainly(name, target, grad, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6)


def test_dense_chunks_are_not_searched_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    original = head.implementation

    def spied(op: str, *rest: Any, **options: Any) -> Any:
        searched.append(op)
        return original(op, *rest, **options)

    monkeypatch.setattr(head, "implementation", spied)
    flat = torch.zeros(40, 3).requires_grad_()
    target = torch.zeros(40, dtype=torch.long)
    head_losses(flat, torch.randn(200, 3), None, Tokens(target, fenchel.divergence("alpha:1.5")), 1)
    assert searched.count("token_support") == 3 and searched.count("token_loss") == 40


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_half_types_accumulate_in_float32(reduction: str) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(64, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(300, 32, generator=generator).bfloat16().requires_grad_()
    target = torch.randint(300, (64,), generator=generator)
    loss = linear_fenchel_young_loss(hidden, weight, target, "js", chunk=1, reduction=reduction)
    assert loss.dtype == torch.float32
    received = torch.autograd.grad(loss.sum(), weight)[0]
    assert received.dtype == torch.bfloat16
    logits = (hidden @ weight.T).float()  # rounded once, as the head computes them
    p = fenchel.f_softargmax(logits, "js")
    p[torch.arange(64), target] -= 1
    exact = p.double().T @ hidden.double() / (64 if reduction == "mean" else 1)
    # One rounding to bfloat16 at the end; 64 chunks added up in it would lose more digits.
    assert (received.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_autocast_multiplies_in_its_type() -> None:
    hidden, weight, bias = leaves(torch.float32)
    target = targets()
    with torch.autocast("cpu", torch.bfloat16):
        losses = head_losses(hidden, weight, bias, Tokens(target, fenchel.divergence("js")), 4)
    grads = torch.autograd.grad(losses.sum(), (hidden, weight, bias))
    assert losses.dtype == torch.float32 and all(grad.dtype == torch.float32 for grad in grads)
    rounded = torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()
    expected = fenchel_young_loss(rounded, target, "js", ignore_index=-1, reduction="none")
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("chunk", [4, 100])
def test_a_backward_pass_within_autocast_keeps_its_digits(chunk: int) -> None:
    hidden, weight, _ = leaves(torch.float32)
    found = []
    for within in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            losses = head_losses(hidden, weight, None, Tokens(targets(), fenchel.divergence("js")), chunk)
        total = (losses * torch.arange(ROWS)).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            found.append(torch.autograd.grad(total, (hidden, weight)))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


def test_nothing_is_differentiated_where_gradients_are_off() -> None:
    hidden, weight, bias = leaves()

    class Losses(Differentiated):
        def dense(self, logits: Tensor, rows: slice, gradient: bool) -> Tensor:
            assert not gradient
            return super().dense(logits, rows, gradient)

    criterion = Losses(lambda logits, rows: logits.sum(-1))
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            head_losses(hidden, weight, bias, criterion, 4)


def test_a_measure_keeps_the_digits_of_a_float64_head() -> None:
    hidden, weight, _ = (x.detach() for x in leaves())
    target, q = targets().clamp_min(0), torch.rand(CLASSES, dtype=torch.float64) + 0.1
    for reference in (0.1, q):
        pair = [
            linear_fenchel_young_loss(hidden, weight, target, "js", reference=reference, impl=impl)
            for impl in ("auto", "eager")
        ]
        torch.testing.assert_close(*pair, rtol=1e-14, atol=0)


def test_reference_measures_of_a_head() -> None:
    hidden, weight, bias = leaves()
    q, target = torch.rand(CLASSES, dtype=torch.float64) + 0.1, targets()
    for name in ("js", "alpha:1.5"):
        for smoothing in (0.0, 0.1):
            options: dict[str, Any] = {"reference": q, "ignore_index": -1, "label_smoothing": smoothing}
            plain = fenchel_young_loss(hidden @ weight.T + bias, target, name, **options)
            ours = linear_fenchel_young_loss(hidden, weight, target, name, bias=bias, chunk=3, **options)
            torch.testing.assert_close(ours, plain)
            pairs = zip(*(torch.autograd.grad(x, (hidden, weight, bias)) for x in (ours, plain)), strict=True)
            for mine, theirs in pairs:
                torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["js", "alpha:1.5"])
def test_second_derivatives(name: str, density: str) -> None:
    inputs, target = leaves(), targets()
    hidden, weight, bias = inputs

    def second(losses: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(losses.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), inputs)

    ours = head_losses(*inputs, Tokens(target, fenchel.divergence(name)), 4)
    logits = hidden @ weight.T + bias
    plain = fenchel_young_loss(logits, target, name, ignore_index=-1, reduction="none")
    for mine, theirs in zip(second(ours), second(plain), strict=True):
        torch.testing.assert_close(mine, theirs)
    teacher = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    mask = target >= 0
    criterion = Distilled(lambda rows: teacher[rows], fenchel.divergence(name), 2.0, 4.0, mask)
    ours = head_losses(*inputs, criterion, 4)
    options: dict[str, Any] = {"temperature": 2.0, "squared_temperature": True, "mask": mask}
    plain = fenchel.distillation_loss(hidden @ weight.T + bias, teacher, name, reduction="none", **options)
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(second(ours), second(plain), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_transformations_take_the_plain_path() -> None:
    hidden, weight, _ = (x.detach() for x in leaves())
    target = targets().clamp_min(0)

    def loss(h: Tensor) -> Tensor:
        return linear_fenchel_young_loss(h, weight, target, "alpha:1.5")

    expected = torch.autograd.functional.jacobian(loss, hidden)
    torch.testing.assert_close(torch.func.grad(loss)(hidden), expected)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_bad_row_is_named_by_its_place_in_the_batch(chunk: int) -> None:
    hidden, weight, _ = (x.detach().clone() for x in leaves())
    hidden[6] = torch.nan
    for name in ("js", "alpha:1.5"):
        with pytest.raises(InputError, match=rf"row 6 of scores \({ROWS}, {CLASSES}\)"):
            linear_fenchel_young_loss(
                hidden.requires_grad_(), weight, targets().clamp_min(0), name, chunk=chunk
            )
    with pytest.raises(InputError, match="row 6"):
        linear_distillation_loss(hidden, weight, hidden.detach().nan_to_num(), weight, "js", chunk=chunk)


def test_memory_is_that_of_a_chunk() -> None:
    """Of what autograd keeps and of the largest tensor made, in elements."""
    rows, classes, chunk = 64, 4096, 4
    hidden, weight = torch.randn(rows, 8).requires_grad_(), torch.randn(classes, 8).requires_grad_()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.untyped_storage().nbytes() // 4)
            return out

    for name in ("js", "alpha:1.5"):
        largest = 0
        with Watch():
            loss = linear_fenchel_young_loss(hidden, weight, torch.arange(rows), name, chunk=chunk)
            loss.backward()  # type: ignore[no-untyped-call]
        assert largest <= max(4 * chunk * classes, weight.numel()), name
