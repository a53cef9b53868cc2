"""What does a language-model head with its loss cost, forward and backward, next to cross-entropy?

    python benchmarks/head.py

1,024 held-out tokens of a model that was trained here with alpha:1.5 (V = 32,000, d = 512), float32 on a
CPU. Peers: F.cross_entropy(h @ W.T) and F.linear_cross_entropy; the product h @ W.T alone is the limit. The
Fitzpatrick logistic loss is timed next to that of the logits as a whole, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _compare import in_turns, ratio, summary
from _record import record
from _trained import Spec, trained_head
from torch import Tensor

import fenchel

SPEC, ROWS, ROUNDS = Spec("alpha:1.5"), 1024, 9
NAMES = ("alpha:1.5", "alpha:2", "alpha:1.1", "js", "hellinger", "reverse-kl", "jeffreys", "kl")
FITZPATRICK = "fitzpatrick"


def main() -> None:
    hidden, weight, target = trained_head(SPEC, ROWS)
    hidden.requires_grad_()
    weight.requires_grad_()

    def both_ways(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            hidden.grad = weight.grad = None
            loss().backward()

        return run

    def product() -> None:
        with torch.no_grad():
            hidden @ weight.T

    sides: dict[str, Callable[[], None]] = {
        "F.cross_entropy": both_ways(lambda: F.cross_entropy(hidden @ weight.T, target)),
        "F.linear_cross_entropy": both_ways(lambda: F.linear_cross_entropy(hidden, weight, target)),
        "h @ W.T alone": product,
    }
    for name in NAMES:
        sides[name] = both_ways(partial(fenchel.linear_fenchel_young_loss, hidden, weight, target, name))
    sides[FITZPATRICK] = both_ways(partial(fenchel.linear_fitzpatrick_logistic_loss, hidden, weight, target))
    sides["fitzpatrick of h @ W.T"] = both_ways(
        lambda: fenchel.fitzpatrick_logistic_loss(hidden @ weight.T, target)
    )
    times = in_turns(sides, ROUNDS)
    peers = [times[name] for name in ("F.cross_entropy", "F.linear_cross_entropy")]
    with torch.no_grad():
        logits = hidden @ weight.T
        support = {
            name: float((fenchel.f_softargmax(logits, name) > 0).sum(-1).float().mean()) for name in NAMES
        }
        loss = float(fenchel.fenchel_young_loss(logits, target, SPEC.divergence))
    ours = ("h @ W.T alone", *NAMES, FITZPATRICK)
    ratios = {name: max(ratio(times[name], peer) for peer in peers) for name in ours}
    record(
        "head",
        {
            "model": SPEC._asdict(),
            "held_out_loss": loss,
            "tokens": ROWS,
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "support": support,
            "sides": {side: summary(seconds) for side, seconds in times.items()},
            "of_the_faster_peer": ratios,
        },
    )
    for name, value in ratios.items():
        print(f"{name}: {value} of the faster cross-entropy", flush=True)


if __name__ == "__main__":
    main()
