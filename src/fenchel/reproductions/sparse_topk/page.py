"""The report of the experiment on pruning."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from fenchel.reproductions.claims import Verdict
from fenchel.reproductions.sparse_topk.recipe import DENSE, PRUNED, RELAXED, Recipe, figure


def report(results: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    """The sections of the page."""
    runs = results["seeds"]
    sparsities = results["sparsities"]
    held = sum(verdict.verdict == "supported" for verdict in verdicts)
    dense = fmean(run["figures"][DENSE]["accuracy"] for run in runs)
    return {
        "summary": (
            "A perceptron is trained with the weights of every layer behind top-k in magnitude, relaxed or "
            f"hard, and ends with exactly k of them. The dense network recognises {dense:.1%} of held-out "
            f"images. {held} of {len(verdicts)} claims are supported here."
        ),
        "setup": {
            **results["setup"],
            "seeds": ", ".join(str(run["seed"]) for run in runs),
            "seeds change": "which images are held out, the start of the network, and the batches",
        },
        "comparison": {
            "caption": "Accuracy on held-out images at the end, with exactly k weights.",
            "columns": [
                {
                    "key": f"{sparsity:.0%}",
                    "label": f"{sparsity:.0%} zeros",
                    "better": "higher",
                    "format": ".3f",
                    "help": f"accuracy with {sparsity:.0%} of the weights of each layer zero",
                }
                for sparsity in sparsities
            ],
            "rows": [_row(arm, runs, sparsities) for arm in (DENSE, *PRUNED)],
        },
        "panels": [
            {
                "title": f"Training at {sparsities[-1]:.0%} zeros",
                "xlabel": "step",
                "ylabel": "accuracy",
                "caption": "On held-out images, with the operator as it is at the step.",
                "yscale": "linear",
                "series": [
                    {"name": arm, "x": [x for x, _ in curve], "y": [y for _, y in curve]}
                    for arm in PRUNED
                    for run in runs
                    if (curve := run["figures"][figure(arm, sparsities[-1])]["curve"])
                ],
            },
            {
                "title": "Between hard and soft",
                "xlabel": "regularization, log10",
                "ylabel": "nonzeros",
                "caption": "Of the first weight of the dense network behind the relaxed operator.",
                "yscale": "log",
                "series": [
                    {
                        "name": arm,
                        "x": results["path"],
                        "y": [float(point["nonzeros"]) for point in run["figures"][DENSE]["path"][arm]],
                    }
                    for arm in RELAXED
                    for run in runs
                ],
            },
        ],
        "operators": [],
        "samples": {"prompts": [], "rows": []},
    }


def setup(recipe: Recipe) -> dict[str, str]:
    """The recipe in words."""
    annealing = {
        name: f"l from {each.first:g} to {each.last:g}" if each.first != each.last else f"l = {each.first:g}"
        for name, each in RELAXED.items()
    }
    return {
        "images": f"{recipe.images}, {recipe.held_out} held out",
        "network": f"perceptron with {' and '.join(map(str, recipe.hidden))} hidden units",
        "training": f"{recipe.steps} steps of {recipe.batch} images, Adam at {recipe.learning_rate:g}",
        **annealing,
    }


def _row(arm: str, runs: list[dict[str, Any]], sparsities: list[float]) -> dict[str, Any]:
    values = {
        f"{sparsity:.0%}": [run["figures"][figure(arm, sparsity)]["accuracy"] for run in runs]
        for sparsity in sparsities
    }
    return {"name": arm, "baseline": arm not in RELAXED, "values": values}
