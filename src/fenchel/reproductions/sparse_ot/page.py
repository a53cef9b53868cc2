"""The pictures and tables of the report."""

from __future__ import annotations

from typing import Any

from fenchel.reproductions.claims import Verdict
from fenchel.reproductions.sparse_ot.recipe import Recipe

COLUMNS = (
    ("cost", "cost", "lower", ".4f", "<T, C>; below the optimum where mass is missed"),
    ("value", "value", None, ".4f", "of the dual: regularised cost, or its lower bound"),
    ("mean_nonzeros", "nonzeros", None, ".2f", "of a column, on average"),
    ("most_nonzeros", "most nonzeros", None, ".0f", "of any column"),
    ("missed", "mass missed", "lower", ".4f", "total variation between the rows of the plan and a"),
    ("divergence", "divergence", "lower", ".5f", "Sinkhorn divergence, carried colours to the palette"),
    ("seconds", "seconds", None, ".2f", "on the computer of this run"),
)


def report(results: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    """The sections of the page."""
    runs = results["seeds"]
    held = sum(verdict.verdict == "supported" for verdict in verdicts)
    budgets = list(runs[0]["sparse"])
    rows = [
        _row("quadratic", [run["quadratic"] for run in runs], baseline=True),
        _row("quadratic, weak", [run["weakly quadratic"] for run in runs], baseline=True),
    ]
    for k in budgets:
        for dual in ("semi-dual", "dual"):
            rows.append(_row(f"k = {k}, {dual}", [run["sparse"][k][dual] for run in runs]))
    return {
        "summary": (
            "The colours of one photograph are carried to those of another by transport plans with at most k "
            f"nonzeros a column. {held} of {len(verdicts)} claims are supported here."
        ),
        "setup": {**results["setup"], "seeds": ", ".join(str(run["seed"]) for run in runs)},
        "comparison": {
            "caption": "A column of the plan says where one colour goes. Where no plan of k nonzeros has the "
            "row marginals, some mass is missed.",
            "columns": [
                {"key": key, "label": label, "better": better, "format": form, "help": help}
                for key, label, better, form, help in COLUMNS
            ],
            "rows": rows,
        },
        "panels": [
            _panel("Nonzeros", "mean_nonzeros", "nonzeros of a column", runs, budgets),
            _panel("Mass missed", "missed", "share of mass in the wrong row", runs, budgets),
        ],
        "operators": [],
        "samples": {"prompts": [], "rows": []},
    }


def setup(recipe: Recipe) -> dict[str, str]:
    """The recipe in words."""
    return {
        "photographs": "china.jpg to flower.jpg, which come with scikit-learn",
        "palettes": f"{recipe.colours} colours by k-means on {recipe.pixels} pixels",
        "cost": "squared distance of colours in the unit cube",
        "regularisation": f"γ = {recipe.regularization:g}; weak: {recipe.weakest:g}",
    }


def _row(name: str, found: list[dict[str, float]], *, baseline: bool = False) -> dict[str, Any]:
    values = {key: [each[key] for each in found] for key, *_ in COLUMNS}
    return {"name": name, "baseline": baseline, "values": values}


def _panel(
    title: str, key: str, label: str, runs: list[dict[str, Any]], budgets: list[str]
) -> dict[str, Any]:
    series = [
        {
            "name": dual,
            "x": [float(k) for k in budgets],
            "y": [run["sparse"][k][dual][key] for k in budgets],
        }
        for dual in ("semi-dual", "dual")
        for run in runs
    ]
    return {
        "title": title,
        "xlabel": "k",
        "ylabel": label,
        "caption": "By the bound on the nonzeros of a column; a line a seed.",
        "yscale": "linear",
        "series": series,
    }
