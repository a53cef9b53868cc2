"""The pictures and tables of the report."""

from __future__ import annotations

from typing import Any

import torch

from fenchel.losses import (
    fenchel_young_loss,
    fitzpatrick_logistic_loss,
    fitzpatrick_sparsemax_loss,
)
from fenchel.reproductions.claims import Verdict
from fenchel.reproductions.fitzpatrick.recipe import (
    F_LOGISTIC,
    F_SPARSEMAX,
    LOGISTIC,
    LOSSES,
    SPARSEMAX,
)


def report(results: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    """The sections of the page."""
    held = sum(verdict.verdict == "supported" for verdict in verdicts)
    names = list(results["sets"])
    return {
        "summary": (
            "A linear model of label proportions is fitted with the logistic and the sparsemax loss, and "
            f"with the Fitzpatrick loss of each. {held} of {len(verdicts)} claims are supported here."
        ),
        "setup": {
            **results["sets"],
            **results["settings"],
            "random splits": ", ".join(str(run["seed"]) for run in results["seeds"]),
        },
        "comparison": {
            "caption": "Mean squared error of label proportions on the test part: of random splits, and of "
            "the published one.",
            "columns": [
                _column(f"{name}, {split}", f"{name}, {split}", f"test MSE on {what} of {name}")
                for name in names
                for split, what in (("random", "random splits"), ("published", "the published split"))
            ],
            "rows": [_row(loss, results) for loss in LOSSES],
        },
        "panels": [_margins(), *(_penalties(name, results) for name in names)],
        "operators": ["kl", "alpha:2"],
        "samples": {"prompts": [], "rows": []},
    }


def _column(key: str, label: str, help: str) -> dict[str, Any]:
    return {"key": key, "label": label, "better": "lower", "format": ".4f", "help": help}


def _row(loss: str, results: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for name in results["sets"]:
        values[f"{name}, random"] = [run["sets"][name][loss]["mse"] for run in results["seeds"]]
        values[f"{name}, published"] = [results["published"][name][loss]["mse"]]
    return {"name": loss, "baseline": loss in (LOGISTIC, SPARSEMAX), "values": values}


def _margins() -> dict[str, Any]:
    """The losses of a label out of two, against its margin."""
    margins = torch.linspace(-4, 4, 161, dtype=torch.float64)
    logits = torch.stack([margins, torch.zeros_like(margins)], -1)
    label = torch.zeros(len(margins), dtype=torch.int64)
    curves = {
        LOGISTIC: fenchel_young_loss(logits, label, "kl", reduction="none"),
        F_LOGISTIC: fitzpatrick_logistic_loss(logits, label, reduction="none"),
        SPARSEMAX: fenchel_young_loss(logits, label, "alpha:2", reduction="none"),
        F_SPARSEMAX: fitzpatrick_sparsemax_loss(logits, label, reduction="none"),
    }
    return {
        "title": "The losses",
        "xlabel": "margin of the label, of two classes",
        "ylabel": "loss",
        "caption": "Each Fitzpatrick loss lies below its twin, and is zero where that is.",
        "yscale": "linear",
        "series": [{"name": name, "x": margins.tolist(), "y": y.tolist()} for name, y in curves.items()],
    }


def _penalties(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """How the penalty is chosen."""
    penalties = [float(each) for each in results["settings"]["penalties"].split(", ")]
    exponents = torch.tensor(penalties, dtype=torch.float64).log10().tolist()
    return {
        "title": f"Penalty, {name}",
        "xlabel": "log10 of the L2 penalty",
        "ylabel": "MSE",
        "caption": "On the part of the training examples that was held out to choose the penalty.",
        "yscale": "linear",
        "series": [
            {"name": loss, "x": exponents, "y": run["sets"][name][loss]["held_out_mse"]}
            for loss in LOSSES
            for run in results["seeds"]
        ],
    }
