"""Every implementation of every operation against plain PyTorch in float64.

The error in float32 may be twice that of plain PyTorch in float32 on the same problem, or a few units in
the last place where that happens to be exact.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from catalogue import NAMES, STEEP
from torch import Tensor

import fenchel
from fenchel import InputError, TopK
from fenchel.errors import BadScores
from fenchel.kernels import eager
from fenchel.kernels.dispatch import OPERATIONS, implementation

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)
RECORDS = [*NAMES, *STEEP, "alpha:1.7", "alpha:0.3", "alpha:-1.5", "jsd:0.3"]
EPS = torch.finfo(torch.float32).eps


def problem(
    rows: int, classes: int, scale: float, measure: str, seed: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Scores and a measure: none, one for all rows, or one a row."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, classes, generator=generator) * scale
    if measure == "unit":
        return scores, None
    shape = (classes,) if measure == "shared" else (rows, classes)
    q = 10 ** (3 * torch.rand(shape, generator=generator) - 2)
    return scores, q.expand(rows, classes)


def close(received: Tensor, plain: Tensor, exact: Tensor, size: Tensor | float, what: str) -> None:
    """No worse than twice plain float32, or 16 units in the last place of `size`."""
    error = (received.double() - exact).abs().max()
    allowed = 2 * (plain.double() - exact).abs().max() + 16 * EPS * torch.as_tensor(size).max()
    assert error <= allowed, f"{what}: error {error:.2e}, allowed {allowed:.2e}"


def double(q: Tensor | None) -> Tensor | None:
    return None if q is None else q.double()


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("measure", ["unit", "shared", "each"])
@pytest.mark.parametrize(
    "classes, scale", [(1, 1.0), (3, 2.0), (700, 3.0), (9001, 0.3), (9001, 3.0), (9001, 30.0)]
)
def test_softargmax(name: str, measure: str, classes: int, scale: float) -> None:
    record = fenchel.divergence(name)
    scores, q = problem(3, classes, scale, measure)
    exact = eager.softargmax(scores.double(), double(q), record)
    plain = eager.softargmax(scores, q, record)
    received = implementation("softargmax", record, scores, q, impl="cpu")(scores, q, record)
    spread = float(scores.max() - scores.min()) + 1
    sizes = (exact[0].max(), exact[1].abs() + spread, exact[2].abs() + spread, 1.0)
    for which, *values in zip(("p", "value", "threshold", "top"), received, plain, exact, sizes, strict=True):
        close(*values, f"{which} of {name}")  # type: ignore[arg-type]
    assert ((received[0].double().sum(-1) - 1).abs() <= 1e-6).all()
    for impl in ("cpu", "eager"):
        run = implementation("softargmax", record, scores, q, impl=impl)
        found, wanted = run(scores, q, record, False), run(scores, q, record)
        assert all(torch.equal(found[i], wanted[i]) for i in (0, 2, 3)), (
            "p depends on whether the value is wanted"
        )
    if record.is_sparse and scale == 30:
        assert (received[0] == 0).any() or classes < 10


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("measure", ["unit", "each"])
def test_softargmax_gradient(name: str, measure: str) -> None:
    record = fenchel.divergence(name)
    scores, q = problem(3, 2500, 2.0, measure)
    p = eager.softargmax(scores, q, record)[0]
    generator = torch.Generator().manual_seed(1)
    every = (torch.randn(p.shape, generator=generator), *torch.randn(2, 3, generator=generator))
    for used in ((0, 1, 2), (0,), (1,), (2,), (0, 2)):
        grads = tuple(grad if i in used else None for i, grad in enumerate(every))
        doubles = tuple(None if grad is None else grad.double() for grad in grads)
        exact = eager.softargmax_gradient(p.double(), double(q), record, doubles)
        plain = eager.softargmax_gradient(p, q, record, grads)
        received = implementation("softargmax_gradient", record, p, q, impl="cpu")(p, q, record, grads)
        close(received, plain, exact, exact.abs().max(), f"gradients {used}")


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("measure, smoothing", [("unit", 0.0), ("unit", 0.1), ("shared", 0.0)])
@pytest.mark.parametrize("classes", [5, 9001])
def test_token_loss(name: str, measure: str, smoothing: float, classes: int) -> None:
    record = fenchel.divergence(name)
    scores, q = problem(6, classes, 2.0, measure)
    scores[2, 1] = scores[2, 3] = -torch.inf
    target = torch.tensor([0, 2, 4, -1, 1, 3])
    scores[3] = -torch.inf  # a row that does not count may be anything

    def run(run: Callable[..., Tensor], *tensors: Any) -> tuple[Tensor, Tensor]:
        x, measure = tensors
        out = torch.full_like(x, 7.0)
        return run(x, target, measure, record, smoothing, out), out

    exact = run(eager.token_loss, scores.double(), double(q))
    plain = run(eager.token_loss, scores, q)
    compiled = implementation("token_loss", record, scores, q, impl="cpu")
    received = run(compiled, scores, q)
    close(received[0], plain[0], exact[0], exact[0].abs().max() + 10, "loss")
    close(received[1], plain[1], exact[1], 1.0, "gradient")
    assert received[0][3] == 0 and (received[1][3] == 0).all()
    assert (received[1][2, [1, 3]] == 0).all()
    within = scores.clone()
    again = compiled(within, target, q, record, smoothing, within)
    assert torch.equal(again, received[0]) and torch.equal(within, received[1])


@pytest.mark.parametrize("name", [name for name in RECORDS if fenchel.divergence(name).is_sparse])
@pytest.mark.parametrize("impl", ["cpu", "eager"])
def test_token_support(name: str, impl: str) -> None:
    record = fenchel.divergence(name)
    scores, q = problem(6, 9001, 3.0, "shared")
    target = torch.tensor([0, 8000, 4, -1, 1, 9000])
    scores[4, 1] = 20.0  # all the mass on the target: its gradient is zero or a rounding error
    run = implementation("token_support", record, scores, q, impl=impl)
    found = run(scores, target, q, record, scores.numel())
    assert found is not None
    losses, classes, values, counts = found
    dense = torch.empty_like(scores)
    plain = eager.token_loss(scores, target, q, record, 0.0, dense)
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-5)
    received = torch.zeros_like(scores)
    rows = torch.arange(6).repeat_interleave(counts)
    received.index_put_((rows, classes), values)
    torch.testing.assert_close(received, dense, rtol=1e-4, atol=2e-6)
    assert counts[3] == 0 and int(counts.sum()) == len(values)
    assert len(set(zip(rows.tolist(), classes.tolist(), strict=True))) == len(values)
    assert run(scores, target, q, record, int(counts.sum()) - 1) is None


@pytest.mark.parametrize("name", [*RECORDS, "skew:0.1:kl", "reverse:skew:0.1:kl", "reverse:js"])
@pytest.mark.parametrize("classes, temperature", [(1, 1.0), (7, 2.0), (3001, 0.7)])
def test_distillation(name: str, classes: int, temperature: float) -> None:
    record = fenchel.divergence(name)
    student, _ = problem(6, classes, 2.0, "unit")
    teacher, _ = problem(6, classes, 2.0, "unit", seed=1)
    if classes > 1:
        teacher[2, 0] = -torch.inf
        student[3, 1] = teacher[3, 1] = -torch.inf

    def run(run: Callable[..., Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.full_like(x, 7.0)
        return run(x, t, record, temperature, out), out

    exact = run(eager.distillation, student.double(), teacher.double())
    plain = run(eager.distillation, student, teacher)
    received = run(implementation("distillation", record, student, teacher, impl="cpu"), student, teacher)
    finite = torch.isfinite(exact[0])
    assert torch.equal(torch.isinf(received[0]), torch.isinf(exact[0]))
    if finite.any():
        close(received[0][finite], plain[0][finite], exact[0][finite], 1.0 + exact[0][finite].max(), "loss")
        size = exact[1][finite].abs().max()
        close(received[1][finite], plain[1][finite], exact[1][finite], size + 1, "gradient")


@pytest.mark.parametrize("name", [*RECORDS, "skew:0.1:kl", "reverse:skew:0.1:kl", "reverse:js"])
@pytest.mark.parametrize(
    "classes, k, temperature", [(3, 2, 1.0), (9, 9, 2.0), (3001, 7, 0.7), (3001, 200, 1.0)]
)
def test_topk_distillation(name: str, classes: int, k: int, temperature: float) -> None:
    record = fenchel.divergence(name)
    student, _ = problem(6, classes, 2.0, "unit")
    teacher = TopK.of(problem(6, classes, 2.0, "unit", seed=1)[0].double().log_softmax(-1), k)
    teacher.indices[1, 1:] = -1  # empty slots
    teacher.log_probs[1, 1:] = -torch.inf
    teacher.log_probs[2, 0] = -torch.inf  # a class that the teacher excludes
    student[3, int(teacher.indices[3, 0])] = -torch.inf
    # The tail's mass is far below the resolution of 1 - Σ, and for KL below that of float32.
    student[4, int(teacher.indices[4, 0])] = 100.0 if name == "kl" else 25.0

    def run(run: Callable[..., Tensor], x: Tensor, *known: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.full_like(x, 7.0)
        return run(x, *known, record, temperature, out), out

    known = (teacher.indices, teacher.log_probs.float(), teacher.log_tail.float())
    exact = run(eager.topk_distillation, student.double(), known[0], known[1].double(), known[2].double())
    plain = run(eager.topk_distillation, student, *known)
    compiled = implementation("topk_distillation", record, student, *known, impl="cpu")
    received = run(compiled, student, *known)
    finite = torch.isfinite(exact[0]) & torch.isfinite(exact[1]).all(-1)
    assert torch.equal(torch.isinf(received[0]), torch.isinf(exact[0]))
    assert finite.any()
    close(received[0][finite], plain[0][finite], exact[0][finite], 1.0 + exact[0][finite].max(), "loss")
    size = exact[1][finite].abs().max()
    close(received[1][finite], plain[1][finite], exact[1][finite], size + 1, "gradient")
    within = student.clone()
    assert torch.equal(compiled(within, *known, record, temperature, within)[finite], received[0][finite])
    assert torch.equal(within[finite], received[1][finite])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_from_top_k_is_the_same_in_both(temperature: float) -> None:
    teacher = TopK.of(torch.randn(3, 2, 400).log_softmax(-1), 5)
    for order in (1, 2):
        found = []
        for impl in ("cpu", "eager"):
            student = problem(6, 400, 2.0, "unit")[0].view(3, 2, 400).requires_grad_()
            loss = fenchel.distillation_loss(student, teacher, "js", temperature=temperature, impl=impl)
            (grad,) = torch.autograd.grad(loss, student, create_graph=order == 2)
            if order == 2:
                (grad,) = torch.autograd.grad(grad.square().sum(), student)
            found.append((loss.detach(), grad))
        torch.testing.assert_close(*found, rtol=2e-4, atol=1e-7)


# --- measures of wide spread ---------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["cpu", "eager"])
@pytest.mark.parametrize("name", ["chi2", "alpha:1.1", "alpha:1.5", "alpha:1.7", "alpha:2", "alpha:3"])
def test_ratios_far_from_one(name: str, impl: str) -> None:
    """Where p / q is tiny, f'(u) - f'(0) cancels, and a support that is found by it is wrong."""
    scores, _ = problem(64, 2048, 1.0, "unit")
    spread = 10 ** (6 * torch.rand(2048, generator=torch.Generator().manual_seed(3)) - 3)
    wider = 10 ** (8 * torch.rand(2048, generator=torch.Generator().manual_seed(2)) - 4)
    for scale, q in ((1e-6, 1e6), (1e-8, 1e8), (1.0, spread), (1e-4, spread), (1.0, wider)):
        measure = torch.as_tensor(q).expand(2048)
        x = scores * scale
        exact = fenchel.f_softargmax(x.double(), name, reference=measure.double())
        received = fenchel.f_softargmax(x, name, reference=measure, impl=impl)
        assert (received - exact).abs().max() <= 3e-6, (scale, q)


def test_a_support_that_turns_out_to_be_large_again() -> None:
    """Candidates that were too few: the whole row is looked at once more, and written to its place."""
    scores, q = torch.full((1, 100_000), -1e-8), torch.full((100_000,), 1e-3)
    scores[0, 0], q[0], q[64] = 0.0, 3.125e7, 1.46e7
    p = fenchel.f_softargmax(scores, "alpha:2", reference=q, impl="cpu")
    exact = fenchel.f_softargmax(scores.double(), "alpha:2", reference=q.double())
    torch.testing.assert_close(p.double(), exact, rtol=1e-5, atol=1e-7)


# --- layouts and edges -------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["softargmax", "token_loss", "distillation"])
def test_views_are_read_where_they_lie(op: str) -> None:
    record = fenchel.divergence("js")
    wide = torch.randn(8, 600)
    columns = torch.randn(500, 8).T
    for view in (wide[::2, 50:550], columns[:4], wide[:4].flip(0)[:, :500]):
        if op == "softargmax":
            arguments: tuple[Any, ...] = (view, None, record)
        elif op == "token_loss":
            arguments = (view, torch.tensor([0, 1, -1, 3]), None, record)
        else:
            arguments = (view, wide[1::2, :500], record)
        run = implementation(op, record, view, impl="cpu")
        contiguous = tuple(x.contiguous() if isinstance(x, Tensor) else x for x in arguments)
        received, expected = run(*arguments), run(*contiguous)
        for mine, theirs in zip(
            *(x if isinstance(x, tuple) else (x,) for x in (received, expected)), strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_targets_of_any_integer_type(dtype: torch.dtype, impl: str) -> None:
    scores, _ = problem(700, 100, 2.0, "unit")
    target, hidden = torch.arange(700) % 100, torch.randn(700, 3)
    for name in ("js", "alpha:1.5"):
        wide, narrow = (
            fenchel.fenchel_young_loss(scores, y, name, impl=impl) for y in (target, target.to(dtype))
        )
        assert torch.equal(wide, narrow)
        weight = torch.randn(100, 3).requires_grad_()
        wide, narrow = (
            fenchel.linear_fenchel_young_loss(hidden, weight, y, name, impl=impl)
            for y in (target, target.to(dtype))
        )
        assert torch.equal(wide, narrow)


def test_views_that_are_negated_when_read() -> None:
    scores, target = torch.randn(64, 2048), torch.arange(64)
    view = torch._neg_view(scores)
    assert fenchel.which("token_loss", view).impl == "eager"
    expected = fenchel.fenchel_young_loss(-scores, target, "js")
    torch.testing.assert_close(fenchel.fenchel_young_loss(view, target, "js"), expected)


def test_forward_mode_and_maps_do_not_depend_on_the_size() -> None:
    scores, target, tangent = torch.randn(64, 2048), torch.arange(64), torch.randn(64, 2048)
    teacher = torch.randn(64, 2048)
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda x: fenchel.fenchel_young_loss(x, target, "js"),
        lambda x: fenchel.distillation_loss(x, teacher, "js"),
        lambda x: fenchel.linear_fenchel_young_loss(x, teacher, target, "js"),
    ]
    for loss in losses:
        leaf = scores.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        with torch.autograd.forward_ad.dual_level():
            made = loss(torch.autograd.forward_ad.make_dual(scores, tangent))
            received = torch.autograd.forward_ad.unpack_dual(made).tangent
        torch.testing.assert_close(received, (gradient * tangent).sum(), rtol=1e-4, atol=1e-5)
    many = torch.stack([target, (target + 1) % 64])
    mapped = torch.func.vmap(lambda y: fenchel.fenchel_young_loss(scores, y, "js"))(many)
    torch.testing.assert_close(mapped[1], fenchel.fenchel_young_loss(scores, many[1], "js"))
    mapped = torch.func.vmap(lambda y: fenchel.linear_fenchel_young_loss(scores, teacher, y, "js"))(many)
    torch.testing.assert_close(mapped[1], fenchel.linear_fenchel_young_loss(scores, teacher, many[1], "js"))


def test_a_teacher_whose_parts_do_not_fit() -> None:
    student = torch.randn(200, 2000)
    good = TopK.of(torch.randn(200, 2000).log_softmax(-1), 64)
    for bad in (good._replace(log_tail=torch.tensor(-1.0)), good._replace(log_probs=good.log_probs[:1])):
        for impl in ("auto", "eager"):
            with pytest.raises(InputError, match=r"log_probs \(..., k\) and log_tail"):
                fenchel.distillation_loss(student, bad, "js", impl=impl)
    for name in ("mask", "weight"):
        with pytest.raises(InputError, match=rf"{name} must have the shape of the rows \(200,\)"):
            fenchel.distillation_loss(student, good, "js", **{name: torch.ones(1)})  # type: ignore[arg-type]


def test_gradients_are_written_into_views() -> None:
    record = fenchel.divergence("alpha:1.5")
    scores, target = torch.randn(4, 300), torch.tensor([0, 1, -1, 3])
    run = implementation("token_loss", record, scores, impl="cpu")
    expected = torch.empty(4, 300)
    run(scores, target, None, record, 0.0, expected)
    for frame in (torch.zeros(8, 320)[::2, 10:310], torch.zeros(300, 4).T):
        run(scores, target, None, record, 0.0, frame)
        assert torch.equal(frame, expected)


@pytest.mark.parametrize("op", [op for op, impls in OPERATIONS.items() if "cpu" in impls])
def test_no_rows(op: str) -> None:
    record = fenchel.divergence("alpha:1.5")
    x, target = torch.empty(0, 300), torch.empty(0, dtype=torch.long)
    arguments: dict[str, tuple[Any, ...]] = {
        "softargmax": (x, None, record),
        "softargmax_gradient": (x, None, record, (x, target.float(), None)),
        "token_loss": (x, target, None, record, 0.0, x),
        "token_support": (x, target, None, record, 10),
        "distillation": (x, x, record, 1.0, x),
        "topk_distillation": (x, target.view(0, 1), x[:, :1], x[:, 0], record, 1.0, x),
        "isotonic": ("mean", x),
        "sinkhorn": (x.view(0, 30, 10), *(torch.empty(0, n) for n in (30, 10, 30, 10, 10)), 3),
        "topk_mask": (x, 7, 0.1, 3.0),
        "topk_magnitude": (x, torch.empty(0, 1, dtype=torch.long), 0.1, 3.0),
    }
    result = implementation(op, record, x, impl="cpu")(*arguments[op])
    assert all(len(part) == 0 for part in (result if isinstance(result, tuple) else (result,)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("position", [0, 63, 64, 8200])
def test_rows_that_cannot_be_normalised_are_named(bad: float, position: int) -> None:
    logits = torch.randn(5, 8201)
    logits[3, position] = bad
    if bad == -torch.inf:
        logits[3] = bad
    teacher = torch.randn(5, 8201)
    for name in ("js", "alpha:1.5", "alpha:3"):
        with pytest.raises(InputError, match=r"row \(3,\)"):
            fenchel.f_softargmax(logits, name, impl="cpu")
        with pytest.raises(InputError, match=r"row \(3,\)"):
            fenchel.fenchel_young_loss(logits, torch.arange(5), name, impl="cpu")
        with pytest.raises(InputError, match=r"student logits .*row \(3,\)"):
            fenchel.distillation_loss(logits, teacher, name, impl="cpu")
        with pytest.raises(InputError, match=r"teacher logits .*row \(3,\)"):
            fenchel.distillation_loss(teacher, logits, name, impl="cpu")
    masked, record = teacher.clone(), fenchel.divergence("js")
    masked[0, 5] = -torch.inf  # allowed, but not what the kernel itself takes
    for pair in ((logits, masked), (masked, logits)):
        with pytest.raises(BadScores) as caught:
            implementation("distillation", record, *pair, impl="cpu")(*pair, record)
        assert caught.value.row == 3


def test_a_row_does_not_depend_on_others_or_on_threads() -> None:
    scores, _ = problem(9, 9001, 1.0, "unit")
    threads = torch.get_num_threads()
    for name in ("js", "alpha:1.1", "alpha:1.5"):
        together = fenchel.f_softargmax(scores, name, impl="cpu")
        try:
            torch.set_num_threads(1)
            assert torch.equal(fenchel.f_softargmax(scores, name, impl="cpu"), together)
        finally:
            torch.set_num_threads(threads)
        for i in (0, 8):
            assert torch.equal(fenchel.f_softargmax(scores[i], name, impl="cpu"), together[i])


def test_offsets_beyond_two_to_the_31(tmp_path: Path) -> None:
    """Rows that lie 2^31 elements apart, in a file of 8 GiB that is a hole between them: nothing is there."""
    apart = 2**31 + 64
    size = apart + 4096
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(4 * size)
    memory = torch.from_file(str(path), shared=True, size=size)
    scores = memory.as_strided((2, 4096), (apart, 1))
    scores.copy_(torch.randn(2, 4096))
    for name in ("js", "alpha:1.5"):
        expected = fenchel.f_softargmax(scores.clone(), name, impl="cpu")
        assert torch.equal(fenchel.f_softargmax(scores, name, impl="cpu"), expected)
        record = fenchel.divergence(name)
        run = implementation("token_loss", record, scores, impl="cpu")
        kept = scores.clone()
        wanted = torch.empty_like(kept)
        run(kept, torch.tensor([1, 4000]), None, record, 0.0, wanted)
        run(scores, torch.tensor([1, 4000]), None, record, 0.0, scores)
        assert torch.equal(scores, wanted)
        scores.copy_(kept)


@pytest.mark.parametrize("name", ["js", "alpha:1.5", "reverse-kl"])
def test_public_faces_agree_to_second_order(name: str) -> None:
    """With kernels underneath, derivatives are those of plain PyTorch, the second ones too."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 300, generator=generator).requires_grad_()
    target, weight = torch.tensor([3, -100, 299, 0]), torch.rand(300, generator=generator)
    teacher, direction = torch.randn(2, 4, 300, generator=generator)
    faces: list[Callable[[str], Tensor]] = [
        lambda impl: (fenchel.f_softargmax(logits, name, impl=impl) * direction).sum(),
        lambda impl: fenchel.f_softmax(logits, name, temperature=0.7, impl=impl).sum(),
        lambda impl: fenchel.f_threshold(logits, name, impl=impl).sum(),
        lambda impl: fenchel.fenchel_young_loss(logits, target, name, impl=impl),
        lambda impl: fenchel.fenchel_young_loss(logits, target, name, weight=weight, impl=impl),
        lambda impl: fenchel.fenchel_young_loss(logits, target, name, label_smoothing=0.2, impl=impl),
        lambda impl: fenchel.fenchel_young_loss(logits, teacher.softmax(-1), name, impl=impl),
        lambda impl: fenchel.distillation_loss(logits, teacher, name, temperature=2.0, impl=impl),
    ]
    for face in faces:
        results = []
        for impl in ("cpu", "eager"):
            value = face(impl)
            (first,) = torch.autograd.grad(value, logits, create_graph=True)
            (second,) = torch.autograd.grad((first * direction).sum(), logits)
            results.append((value, first, second))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=1e-5 * float(theirs.abs().max()))
