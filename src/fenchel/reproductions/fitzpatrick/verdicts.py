"""What is claimed about Fitzpatrick losses, and what the figures say about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fenchel.diagnostics.statistics import paired_test
from fenchel.reproductions.claims import Claim, Verdict, all_of, tested
from fenchel.reproductions.fitzpatrick.recipe import F_LOGISTIC, F_SPARSEMAX, LOGISTIC, SPARSEMAX, TWINS

PAIRED = "paired t-test over random splits, one-sided"
MARGIN = 0.07
EVERYWHERE = 1e-9

CLAIMS = (
    Claim(
        "tighter",
        "The Fitzpatrick losses lie below the Fenchel-Young losses of the same links, at every test example.",
        "share of test examples at which the Fitzpatrick loss is at most its twin's plus 1e-12",
        1 - EVERYWHERE,
        "sign test over random splits",
    ),
    Claim(
        "sparsemax",
        "The Fitzpatrick sparsemax loss predicts label proportions at least as well as the sparsemax loss.",
        "test MSE: sparsemax minus Fitzpatrick sparsemax",
        0.0,
        f"{PAIRED}, for each set; all must hold",
    ),
    Claim(
        "logistic",
        f"The Fitzpatrick logistic loss predicts as well as the logistic loss, within {MARGIN:.0%}.",
        f"test MSE: {1 + MARGIN:.2f} times logistic minus Fitzpatrick logistic",
        0.0,
        f"{PAIRED}, for each set; all must hold",
    ),
)


def claim(results: dict[str, Any]) -> list[Verdict]:
    """The verdicts, in the order of the claims."""
    tighter, sparsemax, logistic = CLAIMS
    return [
        _with_p(verdict)
        for verdict in (
            _tighter(tighter, results),
            _compared(sparsemax, results, SPARSEMAX, F_SPARSEMAX, 1.0),
            _compared(logistic, results, LOGISTIC, F_LOGISTIC, 1 + MARGIN),
        )
    ]


def _tighter(which: Claim, results: dict[str, Any]) -> Verdict:
    runs = results["seeds"]
    twins = [[found[name]["twins"] for found in run["sets"].values() for name, _ in TWINS] for run in runs]
    shares = [min(each["share_below"] for each in run) for run in twins]
    every = [each for run in twins for each in run]
    ratio = sum(each["fitzpatrick"] / each["fenchel_young"] for each in every) / len(every)
    figures = (
        f"largest difference {max(each['largest_excess'] for each in every):.2g}, mean ratio of the losses "
        f"{ratio:.2f}"
    )
    return tested(which, len(runs), lambda: paired_test(shares, [which.threshold] * len(runs)), figures)


def _compared(which: Claim, results: dict[str, Any], bound: str, loss: str, factor: float) -> Verdict:
    runs = results["seeds"]
    parts, figures = [], []
    for name in results["sets"]:
        theirs, ours = ([run["sets"][name][each]["mse"] for run in runs] for each in (bound, loss))
        allowed = [factor * value for value in theirs]
        parts.append(
            tested(which, len(runs), lambda a=allowed, b=ours: paired_test(a, b), "")  # type: ignore[misc]
        )
        held = {True: "", False: " (refuted)", None: " (undecided)"}[parts[-1].holds]
        change = sum(ours) / sum(theirs) - 1
        figures.append(f"{name}: {_mean(ours):.4f} against {_mean(theirs):.4f}, {change:+.1%}{held}")
    return all_of(which, parts, "; ".join(figures))


def _with_p(verdict: Verdict) -> Verdict:
    if verdict.p_value is None:
        return verdict
    return replace(verdict, figures=f"{verdict.figures}; p = {verdict.p_value:.2g}")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
