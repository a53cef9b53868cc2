"""What do losses of logits that are there already cost, forward and backward?

    python benchmarks/losses.py

512 rows of 32,000 logits N(0, 3²) in float32 on a CPU. Token losses next to F.cross_entropy and the losses of
the entmax package; distillation losses next to TRL's generalised JSD and F.kl_div.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version

import entmax
import torch
import torch.nn.functional as F
from _compare import in_turns, ratio, summary
from _record import record
from torch import Tensor

import fenchel

ROWS, VOCABULARY, ROUNDS = 512, 32000, 9
NAMES = ("alpha:1.5", "alpha:2", "alpha:1.1", "js", "hellinger", "reverse-kl", "jeffreys", "kl")
DISTILLED = (*NAMES, "jsd:0.5", "skew:0.1:kl")


def main() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(ROWS, VOCABULARY) * 3).requires_grad_()
    teacher = torch.randn(ROWS, VOCABULARY) * 3
    target = (logits.detach() + torch.randn(ROWS, VOCABULARY)).argmax(-1)

    def both_ways(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss().backward()

        return run

    def kl_div() -> Tensor:
        log_p, log_q = teacher.log_softmax(-1), logits.log_softmax(-1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")

    tokens = {
        "F.cross_entropy": both_ways(lambda: F.cross_entropy(logits, target)),
        "entmax alpha:1.5": both_ways(lambda: entmax.entmax15_loss(logits, target).mean()),
        "entmax alpha:2": both_ways(lambda: entmax.sparsemax_loss(logits, target).mean()),
    }
    for name in NAMES:
        tokens[name] = both_ways(partial(fenchel.fenchel_young_loss, logits, target, name))
    measure("token losses", tokens, NAMES, "F.cross_entropy")

    gkd = import_module("trl.experimental.gkd").GKDTrainer  # not among the tools of development
    jsd: Callable[..., Tensor] = gkd.generalized_jsd_loss
    distilled = {
        "F.kl_div": both_ways(kl_div),
        "TRL generalised JSD": both_ways(lambda: jsd(logits[None], teacher[None], beta=0.5)),
    }
    for name in DISTILLED:
        distilled[name] = both_ways(partial(fenchel.distillation_loss, logits, teacher, name))
    measure("distillation losses", distilled, DISTILLED, "F.kl_div")


def measure(work: str, sides: dict[str, Callable[[], None]], names: tuple[str, ...], base: str) -> None:
    """Times the sides in turns, records and prints them."""
    slow = {side: 3 for side in sides if side.startswith(("entmax", "TRL"))}
    times = in_turns(sides, ROUNDS, rarely=slow)
    ratios = {side: ratio(seconds, times[base]) for side, seconds in times.items() if side != base}
    figures = {
        "work": work,
        "shape": [ROWS, VOCABULARY],
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("entmax", "trl")},
        "sides": {side: summary(seconds) for side, seconds in times.items()},
        "base": base,
        "ratios": ratios,
    }
    record("losses", figures)
    for side, value in ratios.items():
        print(f"{work}: {side}: {value} of {base}", flush=True)


if __name__ == "__main__":
    main()
