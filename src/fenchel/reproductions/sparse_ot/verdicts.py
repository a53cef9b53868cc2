"""What is claimed about sparse transport, and what the figures say about it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from fenchel.diagnostics.statistics import paired_test
from fenchel.reproductions.claims import Claim, Verdict, all_of, tested

PAIRED = "paired t-test over seeds, one-sided"
FEW, SOME, MANY = "2", "4", "8"  # the k that claims speak of
CLOSE, SAME, AGREE = 0.01, 1e-6, 1e-3

CLAIMS = (
    Claim(
        "columns",
        "Every column of the plan has at most k nonzeros, for every k, from the dual and the semi-dual.",
        "k minus the nonzeros of the fullest column, the least over k",
        -0.5,
        PAIRED,
    ),
    Claim(
        "interpolates",
        "k leads from transport without regularisation (k = 1, within 1 %) to quadratic transport (k as many "
        "as its fullest column has, plans equal to 1e-6), and the optimal value falls as k grows.",
        "slack of each of the three",
        0.0,
        f"{PAIRED}; all must hold",
    ),
    Claim(
        "control",
        "The regularisation alone does not bound the nonzeros of a column: however weak, quadratic transport "
        f"has columns with more than {SOME}.",
        f"nonzeros of the fullest column of weakly quadratic transport minus {SOME}",
        0.0,
        PAIRED,
    ),
    Claim(
        "duals",
        "The dual and the semi-dual have the same maximum, to 0.1 % for every k.",
        "0.001 minus the largest relative difference of the two values",
        0.0,
        PAIRED,
    ),
    Claim(
        "marginals",
        f"More nonzeros serve the row marginals better: k = {MANY} misses less mass than k = {FEW}.",
        f"share of mass missed: k = {FEW} minus k = {MANY}",
        0.0,
        PAIRED,
    ),
    Claim(
        "crisp",
        f"Colours carried with k = {SOME} are nearer to the wanted palette than those of quadratic transport "
        "of the same regularisation, which averages over more.",
        f"Sinkhorn divergence to the palette: quadratic minus k = {SOME}",
        0.0,
        PAIRED,
    ),
)


def claim(results: dict[str, Any]) -> list[Verdict]:
    """The verdicts, in the order of the claims."""
    runs = results["seeds"]
    seeds = len(runs)
    columns, interpolates, control, duals, marginals, crisp = CLAIMS

    def above(which: Claim, larger: list[float], smaller: list[float] | float, figures: str) -> Verdict:
        against = smaller if isinstance(smaller, list) else [smaller] * seeds
        return tested(which, seeds, lambda: paired_test(larger, against), figures)

    def of(k: str, what: str) -> list[float]:
        return [run["sparse"][k]["semi-dual"][what] for run in runs]

    def quadratic(kind: str, what: str) -> list[float]:
        return [run[kind][what] for run in runs]

    room = [
        min(int(k) - each["most_nonzeros"] for k, both in run["sparse"].items() for each in both.values())
        for run in runs
    ]
    exact = [run["unregularised"] + run["one_column_each"] for run in runs]
    gaps = [abs(x - y) / y for x, y in zip(of("1", "value"), exact, strict=True)]
    plans = [run["widest"]["gap"] for run in runs]
    falls = [_least_fall([each["semi-dual"]["value"] for each in run["sparse"].values()]) for run in runs]
    differences = [
        max(
            abs(both["dual"]["value"] - both["semi-dual"]["value"]) / abs(both["semi-dual"]["value"])
            for both in run["sparse"].values()
        )
        for run in runs
    ]
    fullest = quadratic("weakly quadratic", "most_nonzeros")
    parts = [
        above(interpolates, [CLOSE - gap for gap in gaps], 0.0, ""),
        above(interpolates, [SAME - gap for gap in plans], 0.0, ""),
        above(interpolates, falls, 0.0, ""),
    ]
    return [
        above(columns, room, -0.5, f"{sum(x < 0 for x in room)} of {seeds} seeds with a column above k"),
        all_of(
            interpolates,
            parts,
            f"k = 1 is {max(gaps):.2%} off at most; plans differ by {max(plans):.1e} at most; the value "
            f"falls by {min(falls):.1e} at least from one k to the next",
        ),
        above(control, fullest, float(SOME), f"fullest columns {', '.join(f'{x:.0f}' for x in fullest)}"),
        above(duals, [AGREE - x for x in differences], 0.0, f"largest difference {max(differences):.1e}"),
        above(
            marginals,
            of(FEW, "missed"),
            of(MANY, "missed"),
            f"missed {_mean(of(FEW, 'missed')):.4f} and {_mean(of(MANY, 'missed')):.4f}",
        ),
        above(
            crisp,
            quadratic("quadratic", "divergence"),
            of(SOME, "divergence"),
            f"quadratic {_mean(quadratic('quadratic', 'divergence')):.5f}, k = {SOME} "
            f"{_mean(of(SOME, 'divergence')):.5f}",
        ),
    ]


def _least_fall(values: list[float]) -> float:
    return min(x - y for x, y in pairwise(values))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
