"""How sparse are the probabilities of alpha > 1 while a language model is trained?

    python benchmarks/sparsity.py [--divergence alpha:1.5 alpha:2] [--vocabulary 16384] [--text FILE ...]
    python benchmarks/sparsity.py --plot     # of what is recorded: docs/images/sparsity.png

Of held-out tokens at steps 0, 1, 2, 5, 10, ...: the size of the support of f-softargmax, and of the
candidates, the classes above θ_max - reach that a look at the top score alone leaves. Kernels are made for
what this shows: few classes at the end, thousands of candidates at the beginning.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.style
import torch
from _record import RESULTS, ROOT, record
from _trained import LENGTH, Spec, hidden_states, tokens, train
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

import fenchel
from fenchel.report.drawing import STYLE
from fenchel.report.palette import INK, SERIES

PICTURE = ROOT / "docs" / "images" / "sparsity.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--divergence", nargs="+", default=["alpha:1.5", "alpha:2"])
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--text", nargs="*", default=[], help="files in place of the documentation of Python")
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    if options.plot:
        plot()
        return
    data = tokens(options.vocabulary, options.text)
    corpus = "+".join(Path(name).parent.name for name in options.text) or "documentation of Python"
    for name in options.divergence:
        rows: list[dict[str, float]] = []
        start = time.perf_counter()

        def watch(step: int, model: Any, held_out: Tensor, name: str = name, rows: Any = rows) -> None:
            rows.append({"step": step, **measured(name, model, held_out)})
            print({key: round(value, 3) for key, value in rows[-1].items()}, flush=True)

        spec = Spec(name, options.vocabulary, options.hidden, steps=options.steps, batch=8)
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


def plot() -> None:
    """One panel a corpus, of the newest records: support and candidates of each divergence."""
    panels: dict[tuple[str, int], dict[str, Any]] = {}
    for line in (RESULTS / "sparsity.jsonl").read_text(encoding="utf-8").splitlines():
        figures = json.loads(line)["figures"]
        panels.setdefault((figures["corpus"], figures["vocabulary"]), {})[figures["divergence"]] = figures
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(8.6, 3.4), layout="constrained", facecolor="white")
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, ((corpus, vocabulary), lines) in zip(every, panels.items(), strict=True):
            for (light, _), (name, figures) in zip(SERIES, lines.items(), strict=False):
                step = [row["step"] for row in figures["curve"]]
                for what, dashes in (("support", "-"), ("candidates", (0, (4, 2)))):
                    values = [row[what] for row in figures["curve"]]
                    axes.plot(step, values, color=light, linestyle=dashes, label=f"{name}, {what}")
                axes.fill_between(
                    step,
                    [row["support"] for row in figures["curve"]],
                    [row["support_95"] for row in figures["curve"]],
                    color=light,
                    alpha=0.15,
                    linewidth=0,
                )
            ink = INK["baseline"][0]
            axes.axhline(vocabulary, color=ink, linewidth=1, linestyle=":", label="all classes")
            axes.set(xscale="symlog", yscale="log", xlabel="step", xlim=(0, None))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.set_title(f"V = {vocabulary:,}\n{corpus.replace('+', ', ')}", fontsize=9)
        every[0].set_ylabel("classes a token")
        handles, labels = every[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(PICTURE, dpi=130)
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
