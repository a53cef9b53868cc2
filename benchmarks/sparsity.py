"""How sparse are the probabilities of alpha > 1 while a language model is trained?

    python benchmarks/sparsity.py [--divergence alpha:1.5 alpha:2] [--vocabulary 16384] [--text FILE ...]

Of held-out tokens at steps 0, 1, 2, 5, 10, ...: the size of the support of f-softargmax, and of the
candidates, the classes above θ_max - reach that a look at the top score alone leaves. Kernels are made for
what this shows: few classes at the end, thousands of candidates at the beginning.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from _record import record
from _trained import LENGTH, Spec, hidden_states, tokens, train
from torch import Tensor

import fenchel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--divergence", nargs="+", default=["alpha:1.5", "alpha:2"])
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--text", nargs="*", default=[], help="files in place of the documentation of Python")
    options = parser.parse_args()
    data = tokens(options.vocabulary, options.text)
    corpus = "+".join(Path(name).parent.name for name in options.text) or "documentation of Python"
    for name in options.divergence:
        rows: list[dict[str, float]] = []
        start = time.perf_counter()

        def watch(step: int, model: Any, held_out: Tensor, name: str = name, rows: Any = rows) -> None:
            rows.append({"step": step, **measured(name, model, held_out)})
            print({key: round(value, 3) for key, value in rows[-1].items()}, flush=True)

        spec = Spec(name, options.vocabulary, options.hidden, steps=options.steps)
        train(spec, data, watch)
        record(
            "sparsity",
            {
                "corpus": corpus,
                "tokens": len(data[0]),
                **spec._asdict(),
                "rows": 4 * (LENGTH - 1),
                "seconds": round(time.perf_counter() - start),
                "curve": rows,
            },
        )


@torch.no_grad()
def measured(name: str, model: Any, held_out: Tensor) -> dict[str, float]:
    """Means and 95th percentiles over the held-out tokens."""
    hidden = hidden_states(model, held_out)[:, :-1]
    logits = model.lm_head(hidden).flatten(0, 1)
    record = fenchel.divergence(name)
    one = torch.ones((), dtype=torch.float64)
    reach = float(record.derivative(one)) - record.derivative_at_zero
    p = fenchel.f_softargmax(logits, name)
    support = (p > 0).sum(-1).double()
    candidates = (logits > logits.amax(-1, keepdim=True) - reach).sum(-1).double()
    target = held_out[:, 1:].flatten()
    return {
        "loss": float(fenchel.fenchel_young_loss(logits, target, name)),
        "support": float(support.mean()),
        "support_95": float(support.quantile(0.95)),
        "candidates": float(candidates.mean()),
        "candidates_95": float(candidates.quantile(0.95)),
        "scale": float(logits.std(-1).mean()),
    }


if __name__ == "__main__":
    main()
