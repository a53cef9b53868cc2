"""Runs the Triton kernels in Triton's interpreter and prints what was found as JSON, a line a finding.

`python triton_job.py errors NAME...` measures errors against eager in float64, beside those of eager in
float32; `thorough` is the same over more cases and longer rows; `edges` prints what should be true. It is a
process of its own because TRITON_INTERPRET=1, which test_triton.py sets, counts when triton is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from catalogue import OWN
from torch import Tensor

import fenchel
from fenchel import FDivergence, divergence
from fenchel.divergences.buckets import log_tail_of
from fenchel.divergences.solution import sensitivities
from fenchel.kernels import eager
from fenchel.kernels import triton as kernels

EPSILON = torch.finfo(torch.float32).eps
INFINITY = float("inf")
MASKS = [(True, True, True), (False, True, False), (True, False, False), (False, False, True)]
# Rows of 100 classes are whole, those of 600 three blocks.
kernels.LARGEST_WHOLE = kernels.BLOCK = 256


def normal(*shape: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator) * scale


def measures(rows: int, n: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(n)
    each = torch.rand(rows, n, generator=generator) + 0.1
    return {"unit": None, "shared": each[0].expand(rows, n), "rows": each}


def finding(what: str, ours: Tensor, wanted: Tensor, plain: Tensor, scale: float) -> dict[str, object]:
    """The error and its bound: twice that of eager, and what rounding to the output adds."""
    ours, plain = ours.double(), plain.double()
    same = (ours == wanted) | (ours.isnan() & wanted.isnan())
    error = float(torch.where(same, 0.0, (ours - wanted).abs()).max())
    of_eager = float(torch.where(plain == wanted, 0.0, (plain - wanted).abs()).max())
    return {"what": what, "error": error, "bound": 2 * of_eager + scale}


def rounding(x: Tensor, out: Tensor) -> float:
    """A few units in the last place of the largest of x, kept in the dtype of `out`.

    The interpreter truncates to half types, where a device rounds.
    """
    epsilon = 4 * EPSILON if out.dtype == torch.float32 else 4 * EPSILON + torch.finfo(out.dtype).eps
    return epsilon * float(x.abs().max())


def solution(
    record: FDivergence, x: Tensor, q: Tensor | None, case: str, *, thorough: bool
) -> Iterator[dict[str, object]]:
    exact, measure = x.double(), None if q is None else q.double()
    wanted = eager.softargmax(exact, measure, record)
    plain = eager.softargmax(x.float(), q, record)
    ours = kernels.softargmax(x, q, record)
    assert [part.dtype for part in ours] == [x.dtype, *[torch.float32] * 3]
    yield finding(f"p {case}", ours[0], wanted[0], plain[0], rounding(wanted[0], ours[0]))
    terms = 4 * EPSILON * float((wanted[1].abs() + wanted[2].abs()).max())
    yield finding(f"value {case}", ours[1], wanted[1], plain[1], terms)
    yield finding(f"threshold {case}", ours[2], wanted[2], plain[2], terms)
    yield finding(f"top {case}", ours[3], wanted[3], plain[3], 0.0)

    p = plain[0].contiguous()
    grads = (normal(*x.shape), normal(len(x)), normal(len(x)))
    _, w, rho, _ = sensitivities(p.double(), measure, record)
    spread, *rest = (grad.abs().double() for grad in grads)
    terms = w * (spread + (rho * spread).sum(-1, keepdim=True))
    terms = terms + p * rest[0].unsqueeze(-1) + rho * rest[1].unsqueeze(-1)
    for mask in MASKS if thorough else MASKS[:1]:
        given = tuple(grad if kept else None for grad, kept in zip(grads, mask, strict=True))
        doubled = tuple(None if grad is None else grad.double() for grad in given)
        exact_gradient = eager.softargmax_gradient(p.double(), measure, record, doubled)
        plain_gradient = eager.softargmax_gradient(p, q, record, given)
        ours_gradient = kernels.softargmax_gradient(p, q, record, given)
        scale = rounding(terms, p)
        yield finding(f"gradient {mask} {case}", ours_gradient, exact_gradient, plain_gradient, scale)


def with_gradient(
    run: Callable[..., Tensor], x: Tensor, *, widen: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The losses of run(x, out), and what it wrote to `out`."""
    x = widen(x)
    out = torch.empty_like(x)
    return run(x, widen, out), out


def losses(record: FDivergence, x: Tensor, case: str, *, thorough: bool) -> Iterator[dict[str, object]]:
    """token_loss of hard targets, one row not counted, and both distillations, with classes at -inf."""
    rows, n = x.shape
    target = torch.arange(rows) % n
    target[-1] = -1
    if n > 8:
        x = x.clone()
        x[0, 5] = -INFINITY
    teacher = x.roll(1, 0) / 2
    log_p, indices = teacher.float().log_softmax(-1).topk(min(7, n), -1)
    log_tail = log_tail_of(log_p.new_tensor(teacher.float().log_softmax(-1).tolist()), indices)
    indices[0, 3:], log_p[0, 3:] = -1, -INFINITY

    def token(module: object, smoothing: float, q: Tensor | None) -> Callable[..., Tensor]:
        return lambda x, widen, out: module.token_loss(
            x, target, None if q is None else widen(q), record, smoothing, out
        )

    def whole(module: object) -> Callable[..., Tensor]:
        return lambda x, widen, out: module.distillation(x, widen(teacher), record, 1.7, out)

    def top_k(module: object) -> Callable[..., Tensor]:
        return lambda x, widen, out: module.topk_distillation(
            x, indices, widen(log_p), widen(log_tail), record, 1.7, out
        )

    unit = torch.finfo(x.dtype).eps if x.dtype != torch.float32 else 0.0
    solved = eager.softargmax(x.double(), None, record)
    gap = (solved[3].unsqueeze(-1) - x.double()).clamp_max(99)
    depth = float((solved[1].abs() + solved[2].abs()).max() + gap.max())
    makers: dict[str, tuple[Callable[[object], Callable[..., Tensor]], float]] = {
        "smoothed": (lambda module: token(module, 0.1, None), depth),
        "measured": (lambda module: token(module, 0.0, measures(rows, n)["rows"]), 10 * depth),
        "distillation": (whole, 1.0),
        "top-k": (top_k, 1.0),
    }
    if thorough:
        makers["token"] = (lambda module: token(module, 0.0, None), depth)
    for what, (make, scale) in makers.items():
        wanted, wanted_gradient = with_gradient(make(eager), x, widen=Tensor.double)
        plain, plain_gradient = with_gradient(make(eager), x, widen=Tensor.float)
        ours, gradient = with_gradient(make(kernels), x, widen=lambda part: part)
        finite = wanted[torch.isfinite(wanted)]
        scale = max(scale, float(finite.abs().max()) if len(finite) else 0.0)
        # Rounded log-probabilities cost more the higher the powers of p / q.
        units = (16 if make in (whole, top_k) else 4) * EPSILON
        yield finding(f"{what} {case}", ours, wanted, plain, units * scale)
        largest = max(1.0, float(wanted_gradient.abs().max()))
        bound = (units + unit) * largest
        yield finding(f"{what} gradient {case}", gradient, wanted_gradient, plain_gradient, bound)
        if thorough:
            bare = make(kernels)(x, lambda part: part, None)
            yield finding(f"{what} without gradient {case}", bare, ours.double(), bare, 0.0)


def errors(names: list[str], *, thorough: bool) -> Iterator[dict[str, object]]:
    few = [(1, "rows", torch.float32), (100, "unit", torch.bfloat16), (100, "shared", torch.float32)]
    few += [(600, "unit", torch.float32), (600, "rows", torch.float32)]
    cases = [
        (n, kind, dtype)
        for n in (1, 3, 100, 1000, 5000)
        for kind in ("unit", "shared", "rows")
        for dtype in (torch.float32, torch.bfloat16)
    ]
    cases.append((100, "unit", torch.float16))
    for name in names:
        record = divergence(name)
        for n, kind, dtype in cases if thorough else few:
            kernels.LARGEST_WHOLE = kernels.BLOCK = 1024 if n == 5000 else 256
            rows, case = 2 if thorough else 1, f"V={n} q={kind} {dtype}"
            x, q = normal(rows, n).to(dtype), measures(rows, n)[kind]
            for found in solution(record, x, q, case, thorough=thorough):
                yield {"name": name, **found}
            if kind == "unit":
                for found in losses(record, normal(3, n).to(dtype), case, thorough=thorough):
                    yield {"name": name, **found}


@triton.jit
def _apply(x, out, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    tl.store(out + lanes, FUNCTION(tl.load(x + lanes)))


def functions() -> Iterator[tuple[str, bool]]:
    """log, log1p and expm1 within 3 units in the last place, and at the ends of their domains."""
    module = kernels._kernels(divergence("kl"))
    spread = torch.logspace(-30, 30, 4096, dtype=torch.float64).float()
    points = {
        "log": torch.cat([spread, 1 + torch.linspace(-0.5, 1, 4096)]),
        "log1p": torch.cat([spread, -torch.logspace(-30, -0.01, 4096)]),
        "expm1": torch.cat([torch.logspace(-30, 1.94, 4096), -torch.logspace(-30, 2, 4096)]),
    }
    edges = {"log": [0.0, INFINITY], "log1p": [-1.0, 0.0, INFINITY], "expm1": [-INFINITY, 0.0, INFINITY]}
    for name, x in points.items():
        x = torch.cat([x, torch.tensor(edges[name]), torch.ones(8192)])[:8192]
        x[-len(edges[name]) :] = torch.tensor(edges[name])
        out = torch.empty_like(x)
        _apply[(1,)](x, out, FUNCTION=getattr(module, name), BLOCK=8192)
        wanted = getattr(torch, name)(x.double())
        unit = EPSILON * wanted.abs().clamp_min(1e-38)
        yield f"{name} is exact", bool(((out == wanted) | ((out - wanted).abs() <= 3 * unit)).all())


def odd_rows(record: FDivergence) -> Iterator[tuple[str, bool]]:
    """Rows that cannot be normalised end, and leave the others alone."""
    for n in (100, 300):
        x = normal(5, n)
        good = kernels.softargmax(x[4:], None, record)[0]
        x[0], x[1, 7], x[2, 7], x[3, :-1] = -INFINITY, float("nan"), INFINITY, -INFINITY
        p, value, *_ = kernels.softargmax(x, None, record)
        yield f"bad rows have no value, V={n}", not bool(torch.isfinite(value[:3]).any())
        yield f"one class of {n} takes all", bool(torch.isclose(p[3, -1], torch.ones(())))
        yield f"others are as they were, V={n}", torch.equal(p[4:], good)


def memory(record: FDivergence) -> Iterator[tuple[str, bool]]:
    """Views, in-place gradients, empty batches, and offsets beyond 2^31."""
    for n in (100, 300):
        x, target = normal(3, n), torch.tensor([1, -1, n - 1])
        out = torch.empty_like(x)
        loss = kernels.token_loss(x, target, None, record, 0.0, out)
        yield f"a row not counted is 0, V={n}", loss[1] == 0 and not bool(out[1].any())
        place = x.clone()
        again = kernels.token_loss(place, target, None, record, 0.0, place)
        yield f"in place, V={n}", torch.equal(place, out) and torch.equal(again, loss)
        view = torch.zeros(3, 2 * n + 1)[:, :n].copy_(x)
        target_view = torch.zeros(3, 2 * n)[:, ::2]
        again = kernels.token_loss(view, target, None, record, 0.0, target_view)
        yield f"views, V={n}", torch.equal(target_view, out) and torch.equal(again, loss)
        turned = kernels.softargmax(x.T.contiguous().T.view(3, 1, n), None, record)[0]
        yield f"classes apart, V={n}", torch.equal(turned.view(3, n), kernels.softargmax(x, None, record)[0])
        teacher = normal(3, n).flip(0)
        wanted = torch.empty_like(x)
        kernels.distillation(x, teacher, record, 1.0, wanted)
        place = x.clone()
        kernels.distillation(place, teacher, record, 1.0, place)
        yield f"distillation in place, V={n}", torch.equal(place, wanted)
        log_p, indices = teacher.log_softmax(-1).topk(4, -1)
        arguments = (indices, log_p, log_tail_of(teacher.log_softmax(-1), indices), record, 1.0)
        kernels.topk_distillation(x, *arguments, wanted)
        place = x.clone()
        kernels.topk_distillation(place, *arguments, place)
        yield f"top-k in place, V={n}", torch.equal(place, wanted)
        place.scatter_(1, indices[:, :1], 100.0)
        exact = torch.empty(3, n, dtype=torch.float64)
        eager.topk_distillation(
            place.double(), indices, log_p.double(), arguments[2].double(), record, 1.0, exact
        )
        kernels.topk_distillation(place, *arguments, wanted)
        yield f"a tail of e^-100, V={n}", torch.allclose(wanted.double(), exact, rtol=1e-5, atol=1e-7)
        beyond = kernels.token_loss(x, torch.tensor([n, 0, -1]), None, record)
        yield f"no such class, V={n}", beyond.isnan().tolist() == [True, False, False]
        indices[1, 0] = n
        beyond = kernels.topk_distillation(x, *arguments, wanted)
        yield f"no such index, V={n}", beyond.isnan().tolist() == [False, True, False]
    none, labels = torch.empty(0, 9), torch.empty(0, dtype=torch.int64)
    yield "no rows", kernels.softargmax(none, None, record)[0].shape == (0, 9)
    yield "no losses", kernels.token_loss(none, labels, None, record, 0.0, none).shape == (0,)
    yield "no pairs", kernels.distillation(none, none, record, 1.0, none).shape == (0,)
    yield "no gradients", kernels.softargmax_gradient(none, None, record, (none, None, None)).shape == (0, 9)
    # Only the pages that are touched take memory.
    far = torch.empty(2**31 + 100, dtype=torch.bfloat16).as_strided((3, 100), (2**30, 1))
    far.copy_(normal(3, 100))
    near = kernels.softargmax(far.contiguous(), None, record)[0]
    yield "rows 2^30 apart", torch.equal(kernels.softargmax(far, None, record)[0], near)


def faces() -> Iterator[tuple[str, bool]]:
    """By name through the public functions, and what is refused."""
    x, target = normal(4, 300).requires_grad_(), torch.tensor([0, 5, -100, 7])
    for name in ("js", "alpha:1.5"):
        results = []
        for impl in ("triton", "eager"):
            loss = fenchel.fenchel_young_loss(x, target, name, impl=impl)
            probabilities = fenchel.f_softargmax(x, name, impl=impl)
            total = loss + (probabilities * torch.linspace(0, 1, 300)).sum()
            results.append((loss, *torch.autograd.grad(total, x)))
        close = [torch.allclose(a, b, atol=1e-6, rtol=1e-5) for a, b in zip(*results, strict=True)]
        yield f"{name} through the public functions", all(close)
    which, refused = fenchel.which, kernels.refusal
    yield "auto leaves tensors on a CPU alone", which("softargmax", x).impl == "eager"
    yield "by name", which("softargmax", x, impl="triton").impl == "triton"
    kl = divergence("kl")
    reasons = {
        "float64": refused("softargmax", kl, [x.double()], auto=False),
        "on meta": refused("softargmax", kl, [x.to("meta")], auto=False),
        "cannot be written down": refused("softargmax", OWN, [x], auto=False),
        "on cpu": refused("softargmax", kl, [x], auto=True),
    }
    for words, reason in reasons.items():
        yield f"refused: {words}", words in str(reason)

    def transformed(row: Tensor) -> Tensor:
        assert "no memory" in str(refused("softargmax", kl, [row], auto=False))
        return row

    torch.func.vmap(transformed)(x)
    skewed = refused("distillation", divergence("skew:0.1:kl"), [x], auto=False)
    yield "a skewed record distils", skewed is None


def edges() -> Iterator[dict[str, object]]:
    checks = [functions(), faces()]
    checks += [odd_rows(divergence(name)) for name in ("kl", "js", "alpha:1.5", "alpha:3")]
    checks += [memory(divergence(name)) for name in ("js", "alpha:1.5")]
    for check in checks:
        for what, true in check:
            yield {"what": what, "true": bool(true)}


if __name__ == "__main__":
    kind, *names = sys.argv[1:]
    found = edges() if kind == "edges" else errors(names, thorough=kind == "thorough")
    for line in found:
        print(json.dumps(line))
