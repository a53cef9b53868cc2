"""What is claimed about pruning, and what the figures say about it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from fenchel.diagnostics.statistics import ordering_test, paired_test
from fenchel.reproductions.claims import Claim, Verdict, all_of, tested
from fenchel.reproductions.sparse_topk.recipe import (
    AFTER,
    CUBIC,
    DENSE,
    HARD,
    QUADRATIC,
    RELAXED,
    THROUGH,
    figure,
)

PAIRED = "paired t-test over seeds, one-sided"
ACCURACY = "accuracy on held-out images"
EVERY = f"{PAIRED}, for each sparsity; all must hold"
TOLERANCE = 1e-8  # of two solutions that are to be the same

CLAIMS = (
    Claim(
        "cubic",
        "The relaxed operator with p = 4/3 prunes better than hard top-k.",
        f"{ACCURACY}: relaxed minus hard",
        0.0,
        EVERY,
    ),
    Claim("quadratic", "So does the one with p = 2.", f"{ACCURACY}: relaxed minus hard", 0.0, EVERY),
    Claim(
        "after-training",
        "The relaxed operator with p = 4/3 prunes better than keeping the largest weights of a dense "
        "training.",
        f"{ACCURACY}: relaxed minus pruned after training",
        0.0,
        EVERY,
    ),
    Claim(
        "straight-through",
        "It prunes better than hard top-k with a straight-through gradient.",
        f"{ACCURACY}: relaxed minus straight-through",
        0.0,
        EVERY,
    ),
    Claim(
        "nine-tenths",
        "With nine weights in ten pruned by it, the network is less than ten points below the dense one.",
        f"{ACCURACY}: relaxed plus 0.1 minus dense",
        0.0,
        PAIRED,
    ),
    Claim(
        "bridge",
        "The regularization bridges hard and soft: the nonzeros fall to exactly k, and the operator becomes "
        "the hard one, as it falls.",
        "correlation of nonzeros and of the distance from hard top-k with the regularization",
        0.0,
        "exact ordering test over seeds, for p = 2 and 4/3; all must hold",
    ),
    Claim(
        "dykstra",
        "Dykstra's algorithm ends where pooling of adjacent violators does.",
        f"{TOLERANCE:g} minus the largest difference of the two",
        0.0,
        f"{PAIRED}, for p = 2 and 4/3; all must hold",
    ),
)


def claim(results: dict[str, Any]) -> list[Verdict]:
    """The verdicts, in the order of the claims."""
    runs = [run["figures"] for run in results["seeds"]]
    by_id = {each.id: each for each in CLAIMS}
    sparsities = results["sparsities"]

    def values(arm: str, sparsity: float) -> list[float]:
        return [run[figure(arm, sparsity)]["accuracy"] for run in runs]

    def better(which: Claim, arm: str, other: str) -> Verdict:
        parts, said = [], []
        for sparsity in sparsities:
            first, second = values(arm, sparsity), values(other, sparsity)
            parts.append(_paired(which, first, second))
            said.append(f"{sparsity:.0%}: {fmean(first):.3f} and {fmean(second):.3f}")
        return all_of(which, parts, "; ".join(said))

    def nine_tenths(which: Claim) -> Verdict:
        relaxed, dense = values(CUBIC, sparsities[0]), values(DENSE, sparsities[0])
        said = f"at {sparsities[0]:.0%} {fmean(relaxed):.3f}, dense {fmean(dense):.3f}"
        return replace(_paired(which, [value + 0.1 for value in relaxed], dense), figures=said)

    def bridge(which: Claim) -> Verdict:
        parts, said = [], []
        for arm in RELAXED:
            for key in ("nonzeros", "distance"):
                rising = [[point[key] for point in run[DENSE]["path"][arm]] for run in runs]
                parts.append(tested(which, len(runs), partial(ordering_test, rising), ""))
            ends = [run[DENSE]["path"][arm] for run in runs]
            exact = sum(path[0]["nonzeros"] == run[DENSE]["k"] for path, run in zip(ends, runs, strict=True))
            most, k = fmean(path[-1]["nonzeros"] for path in ends), runs[0][DENSE]["k"]
            said.append(
                f"{arm}: from {most:.0f} to k = {k} nonzeros, exactly for {exact} of {len(runs)} seeds"
            )
            parts.append(_paired(which, [k + 0.5] * len(runs), [path[0]["nonzeros"] for path in ends]))
        return all_of(which, parts, "; ".join(said))

    def dykstra(which: Claim) -> Verdict:
        parts, said = [], []
        for arm in RELAXED:
            errors = [run[DENSE]["dykstra"][arm] for run in runs]
            parts.append(_paired(which, [TOLERANCE] * len(runs), [error[-1] for error in errors]))
            shown = ", ".join(f"{max(error[i] for error in errors):.1g}" for i in range(len(errors[0])))
            said.append(f"{arm}: {shown} after more and more iterations")
        return all_of(which, parts, "; ".join(said))

    return [
        better(by_id["cubic"], CUBIC, HARD),
        better(by_id["quadratic"], QUADRATIC, HARD),
        better(by_id["after-training"], CUBIC, AFTER),
        better(by_id["straight-through"], CUBIC, THROUGH),
        nine_tenths(by_id["nine-tenths"]),
        bridge(by_id["bridge"]),
        dykstra(by_id["dykstra"]),
    ]


def _paired(which: Claim, larger: list[float], smaller: list[float]) -> Verdict:
    return tested(which, len(larger), lambda: paired_test(larger, smaller), "")
