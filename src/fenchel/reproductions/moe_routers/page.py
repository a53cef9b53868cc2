"""The pictures and tables of the report."""

from __future__ import annotations

from typing import Any

from fenchel.reproductions.claims import Verdict
from fenchel.reproductions.moe_routers.recipe import DENSE, MODELS, ROUTED, UNBALANCED
from fenchel.reproductions.moe_routers.verdicts import findings, values

COLUMNS = (
    ("accuracy", "accuracy", "higher", "share of test images that are classified right"),
    ("spread", "load spread", "lower", "coefficient of variation of the experts' loads, before capacity"),
    ("dropped_choices", "no room", "lower", "share of the choices of tokens that find no room"),
    ("left_out", "left out", "lower", "share of the tokens that no expert takes"),
)


def report(results: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    """The sections of the page."""
    held = sum(verdict.verdict == "supported" for verdict in verdicts)
    return {
        "summary": (
            "A small vision transformer with mixtures of experts is trained with each of six routers, at "
            f"the same capacity. {held} of {len(verdicts)} claims are supported here. Accuracies are "
            "reported without a claim: on these images routers differ by less than seeds do."
        ),
        "setup": {**results["setup"], "seeds": ", ".join(str(run["seed"]) for run in results["seeds"])},
        "comparison": {
            "caption": "On test images, all patches of which are one group; means over the layers.",
            "columns": [
                {"key": key, "label": label, "better": better, "format": ".4f", "help": what}
                for key, label, better, what in COLUMNS
            ],
            "rows": [_row(name, results) for name in MODELS],
        },
        "panels": [
            _panel(results, 2, ROUTED, "Load spread", "coefficient of variation"),
            _panel(results, 1, MODELS, "Accuracy", "share of test images"),
        ],
        "findings": findings(results),
        "operators": [],
        "samples": {"prompts": [], "rows": []},
    }


def _row(name: str, results: dict[str, Any]) -> dict[str, Any]:
    columns = {key: values(results, name, key) for key, *_ in COLUMNS}
    return {"name": name, "baseline": name in (DENSE, UNBALANCED), "values": columns}


def _panel(
    results: dict[str, Any], column: int, names: tuple[str, ...], title: str, ylabel: str
) -> dict[str, Any]:
    return {
        "title": title,
        "xlabel": "epoch",
        "ylabel": ylabel,
        "caption": "On test images, after each epoch.",
        "yscale": "linear",
        "series": [
            {"name": name, "x": [row[0] for row in curve], "y": [row[column] for row in curve]}
            for name in names
            for run in results["seeds"]
            for curve in (run["routers"][name]["curve"],)
        ],
    }
