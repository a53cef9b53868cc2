"""Are the Triton kernels right on this GPU, and what share of its memory bandwidth do they reach?

    python benchmarks/gpu.py [check|rows|heads ...]

`check` compares every operation of every record with plain PyTorch in float64 and ends the run where one is
wrong. `rows` times the operations on logits as a share of the speed of a copy, `heads` the loss of a language
model's head against its peers, those that are installed. Sides take turns, and the L2 cache is flushed
before each. Where there is no CUDA device, nothing is measured.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from _record import record as append
from torch import Tensor

import fenchel
from fenchel import FDivergence, divergence
from fenchel.divergences import TABLE
from fenchel.divergences.buckets import log_tail_of
from fenchel.kernels import eager
from fenchel.kernels.dispatch import implementation

NAMES = (*TABLE, "alpha:0.9", "alpha:1.1", "alpha:1.5", "alpha:3", "jsd:0.3")
CHECKED = ((64, 3), (64, 1000), (64, 16384), (16, 50257), (16, 131072))
OPERATIONS = ("softargmax", "softargmax_gradient", "token_loss", "distillation", "topk_distillation")
ROWS, CLASSES, TOP = 16384, 131072, 64
TOKENS, HIDDEN, VOCABULARY = 4096, 4096, 128256
ROUNDS, WARM_UP = 15, 3
EPSILON = torch.finfo(torch.float32).eps

Sides = Mapping[str, Callable[[], object]]
Outputs = Sequence[Tensor]


def device() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "triton": version("triton"),
    }


# --- check -------------------------------------------------------------------------------------


def logits(rows: int, classes: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    made = torch.empty(rows, classes, device="cuda", dtype=dtype)
    return made.normal_(generator=generator).mul_(3)


def teacher_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, log-probabilities and log-tail."""
    log_p = scores.log_softmax(-1)
    known, indices = log_p.topk(min(k, scores.shape[-1]), -1)
    return indices, known, log_tail_of(log_p, indices)


def outputs(op: str, impl: str, name: str, scores: Tensor, teacher: Tensor) -> Outputs:
    """What an operation returns and writes, on float32 or, as the reference, float64."""
    record = divergence(name)
    run = getattr(eager, op) if impl == "eager" else implementation(op, record, scores, impl=impl)
    target = torch.arange(len(scores), device=scores.device) % scores.shape[-1]
    target[1] = -1
    out = torch.empty_like(scores)
    match op:
        case "softargmax":
            found: Outputs = run(scores, None, record)
        case "softargmax_gradient":
            p = eager.softargmax(scores.float(), None, record)[0].to(scores.dtype)
            found = [run(p, None, record, (teacher, teacher[:, 0], teacher[:, -1]))]
        case "token_loss":
            found = [run(scores, target, teacher.abs() + 0.1, record, 0.0, out), out]
        case "distillation":
            found = [run(scores, teacher, record, 1.5, out), out]
        case _:
            buckets = (
                part.to(scores.dtype if part.is_floating_point() else part.dtype)
                for part in teacher_of(teacher.float(), TOP)
            )
            found = [run(scores, *buckets, record, 1.5, out), out]
    return found


def check() -> None:
    """Errors in float32 as shares of what is allowed: twice plain PyTorch's and 16 units of the largest."""
    print(f"{'record':16}{'operation':22}{'worst error / allowed':>24}")
    wrong, figures = [], []
    for name in NAMES:
        for op in OPERATIONS:
            worst = 0.0
            for rows, classes in CHECKED:
                scores, teacher = logits(rows, classes, 0), logits(rows, classes, 1)
                ours = outputs(op, "triton", name, scores, teacher)
                plain = outputs(op, "eager", name, scores, teacher)
                exact = outputs(op, "eager", name, scores.double(), teacher.double())
                worst = max(worst, *map(excess, ours, plain, exact))
            print(f"{name:16}{op:22}{worst:>24.3f}{'' if worst <= 1 else '   WRONG'}")
            figures.append({"record": name, "op": op, "error_over_allowed": round(worst, 4)})
            if not worst <= 1:
                wrong.append(f"{op} of {name}")
    append("gpu", {"what": "check", **device(), "checks": figures})
    if wrong:
        raise SystemExit(f"wrong on this device: {', '.join(wrong)}")


def excess(ours: Tensor, plain: Tensor, exact: Tensor) -> float:
    allowed = 2 * (plain.double() - exact).abs().max() + 16 * EPSILON * exact.abs().max().clamp_min(1e-30)
    return float((ours.double() - exact).abs().max() / allowed)


# --- timing ------------------------------------------------------------------------------------


def in_turns(sides: Sides) -> dict[str, list[float]]:
    """Milliseconds of each side in each round, A B A B ..."""
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")  # several times any L2
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(WARM_UP + ROUNDS):
        for name, side in sides.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            side()
            end.record()
            end.synchronize()
            if i >= WARM_UP:
                times[name].append(start.elapsed_time(end))
    return times


def summary(times: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_ms": round(middle, 4), "quartile_ms": round(low, 4), "third_quartile_ms": round(high, 4)}


def show(name: str, figures: Mapping[str, object]) -> None:
    print(f"{name:38}" + "  ".join(f"{key} {value}" for key, value in figures.items()))


def time_rows() -> None:
    """Operations at 16,384 x 131,072 in bfloat16; the copy is of one such matrix, read and written."""
    scores, teacher = (logits(ROWS, CLASSES, seed, torch.bfloat16) for seed in (0, 1))
    out = torch.empty_like(scores)
    target = torch.randint(CLASSES, (ROWS,), device="cuda")
    known = torch.randint(CLASSES, (ROWS, TOP), device="cuda")
    log_probs = torch.full((ROWS, TOP), -5.0, device="cuda")
    log_tail = torch.log1p(-log_probs.exp().sum(-1))
    matrix = scores.numel() * scores.element_size()
    for name in NAMES:
        record = divergence(name)
        runs = operations(record, scores)
        buckets = (known, log_probs, log_tail)
        p = runs["softargmax"](scores, None, record)[0]
        grads = (teacher, None, None)
        sides: dict[str, tuple[int, Callable[[], object]]] = {
            "softargmax": (2, partial(runs["softargmax"], scores, None, record)),
            "softargmax_gradient": (3, partial(runs["softargmax_gradient"], p, None, record, grads)),
            "token_loss": (2, partial(runs["token_loss"], scores, target, None, record, 0.0, out)),
            "distillation": (3, partial(runs["distillation"], scores, teacher, record, 1.0, out)),
            "topk_distillation": (2, partial(runs["topk_distillation"], scores, *buckets, record, 1.0, out)),
        }
        for op, (matrices, side) in sides.items():
            times = in_turns({"copy": partial(out.copy_, scores), op: side})
            copied = 2 * matrix / statistics.median(times["copy"])
            share = matrices * matrix / statistics.median(times[op]) / copied
            figures = {
                **summary(times[op]),
                "copy_GB_per_s": round(copied / 1e6, 1),
                "share_of_copy_bandwidth": round(share, 3),
            }
            show(f"{op} of {name}", figures)
            shape = {"rows": ROWS, "classes": CLASSES, "dtype": "bfloat16"}
            append("gpu", {"what": op, "record": name, **device(), **shape, **figures})


def operations(record: FDivergence, scores: Tensor) -> dict[str, Callable[..., Any]]:
    return {op: implementation(op, record, scores, impl="triton") for op in OPERATIONS}


# --- heads -------------------------------------------------------------------------------------


def time_linear_heads() -> None:
    """Forward and backward of the loss of a head, 4096 tokens x 4096 x 128,256 classes in bfloat16."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, device="cuda", generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, device="cuda", generator=generator).mul_(HIDDEN**-0.5)
    weight = weight.bfloat16().requires_grad_()
    target = torch.randint(VOCABULARY, (TOKENS,), device="cuda", generator=generator)
    losses = head_losses(hidden, weight, target)

    def both(loss: Callable[[], Tensor]) -> Callable[[], object]:
        def side() -> object:
            hidden.grad = weight.grad = None
            return loss().backward()

        return side

    peaks = {}
    for name, loss in losses.items():
        hidden.grad = weight.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both(loss)()
        peaks[name] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    times = in_turns({name: both(loss) for name, loss in losses.items()})
    for name, each in times.items():
        figures = {**summary(each), "peak_MiB": peaks[name]}
        show(name, figures)
        shape = {"tokens": TOKENS, "hidden": HIDDEN, "classes": VOCABULARY, "dtype": "bfloat16"}
        append("gpu", {"what": "head", "side": name, **device(), **shape, **figures})


def head_losses(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ours, PyTorch's, and those of the peers that can be imported."""
    functional: Any = torch.nn.functional
    found: dict[str, Callable[[], Tensor]] = {
        f"fenchel {name}": partial(fenchel.linear_fenchel_young_loss, hidden, weight, target, name)
        for name in ("kl", "js", "alpha:1.5")
    }
    found["cross_entropy(h @ W.T)"] = lambda: functional.cross_entropy(hidden @ weight.T, target)
    if hasattr(functional, "linear_cross_entropy"):
        found["linear_cross_entropy"] = lambda: functional.linear_cross_entropy(hidden, weight, target)
    try:
        liger: Any = import_module("liger_kernel.transformers")
        fused = liger.LigerFusedLinearCrossEntropyLoss()
        found["liger_kernel"] = lambda: fused(weight, hidden, target)
    except ImportError as error:
        print(f"without liger_kernel: {error}")
    try:
        quack: Any = import_module("quack.linear_cross_entropy")
        found["quack"] = lambda: quack.chunked_linear_cross_entropy(hidden, weight, target)
    except ImportError as error:
        print(f"without quack: {error}")
    return found


def main() -> None:
    parts: dict[str, Callable[[], None]] = {"check": check, "rows": time_rows, "heads": time_linear_heads}
    chosen = sys.argv[1:] or list(parts)
    if unknown := [name for name in chosen if name not in parts]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(parts)}")
    if not torch.cuda.is_available():
        print("gpu: skipped, there is no CUDA device")
        return
    print(", ".join(f"{key} {value}" for key, value in device().items()))
    for name in chosen:
        parts[name]()


if __name__ == "__main__":
    main()
