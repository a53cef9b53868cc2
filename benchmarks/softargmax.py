"""How many times torch.softmax does an f-softargmax take on a CPU, and the entmax package?

    python benchmarks/softargmax.py

64 rows in float32. Logits: N(0, 3²), as sharp as those of a trained model; N(0, 0.3²), as flat as those of
a new one; and those of models trained here. The text has fewer tokens than their vocabularies (the training
says how many), as large vocabularies have many classes that a text never uses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import entmax
import torch
from _compare import in_turns, ratio, summary
from _record import record
from _trained import Spec, trained_head
from torch import Tensor

import fenchel

ROWS, ROUNDS = 64, 15
TRAINED = (Spec("alpha:1.5"), Spec("alpha:1.5", vocabulary=128256, hidden=128, steps=150))
NAMES = ("alpha:1.5", "alpha:2", "alpha:1.1", "js", "hellinger", "reverse-kl", "jeffreys", "kl")
PEERS = {"alpha:1.5": entmax.entmax15, "alpha:2": entmax.sparsemax}


def problems() -> list[tuple[str, int, Tensor]]:
    """(kind, V, logits)."""
    torch.manual_seed(0)
    found = []
    for vocabulary in (32000, 128256):
        found.append(("N(0, 3²)", vocabulary, torch.randn(ROWS, vocabulary) * 3))
        found.append(("N(0, 0.3²)", vocabulary, torch.randn(ROWS, vocabulary) * 0.3))
    for spec in TRAINED:
        hidden, weight, _ = trained_head(spec, 1024)
        found.append(("trained", len(weight), hidden[:: 1024 // ROWS] @ weight.T))
    return found


def main() -> None:
    for kind, vocabulary, logits in problems():
        for name in NAMES:
            sides: dict[str, Callable[[], object]] = {
                "fenchel": partial(fenchel.f_softargmax, logits, name),
                "torch.softmax": partial(torch.softmax, logits, -1),
            }
            if name in PEERS:
                sides["entmax"] = partial(PEERS[name], logits, -1)
            times = in_turns(sides, ROUNDS, rarely={"entmax": 3})
            figures = {
                "logits": kind,
                "shape": [ROWS, vocabulary],
                "dtype": "float32",
                "divergence": name,
                "implementation": str(fenchel.which("softargmax", logits, divergence=name).impl),
                "support": float((fenchel.f_softargmax(logits, name) > 0).sum(-1).float().mean()),
                "threads": torch.get_num_threads(),
                "entmax_version": entmax.__version__,
                "sides": {side: summary(seconds) for side, seconds in times.items()},
                "of_softmax": ratio(times["fenchel"], times["torch.softmax"]),
            }
            if "entmax" in times:
                figures["entmax_of_ours"] = ratio(times["entmax"], times["fenchel"])
            record("softargmax", figures)
            peer = f", entmax takes {figures['entmax_of_ours']} times ours" if "entmax" in times else ""
            print(f"V={vocabulary} {kind} {name}: {figures['of_softmax']} of torch.softmax{peer}", flush=True)


if __name__ == "__main__":
    main()
