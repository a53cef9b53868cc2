"""What is claimed about learned log-partitions, and what the figures say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from fenchel.diagnostics.statistics import paired_test
from fenchel.reproductions.claims import Claim, Verdict, all_of, tested, undecided
from fenchel.reproductions.joint_ebm.recipe import EXACT, RANKING_ENERGIES, SPARSEMAX

Figures = Callable[[dict[str, Any]], list[float]]  # of a table, one for each seed
PAIRED = "paired t-test over seeds, one-sided"
MARGIN, ONE_PER_CENT = 0.02, 0.01
SAMPLES = ("1", "10", "100")
F1 = "example-based F1 on the test part, mean over the tables of at most 12 labels"

CLAIMS = (
    *(
        Claim(
            f"f1-{k}",
            f"Trained jointly with {k} sample{'s' * (k != '1')}, the pairwise energy predicts at most .02 "
            "worse than by its exact likelihood.",
            f"{F1}: joint minus exact",
            -MARGIN,
            PAIRED,
        )
        for k in SAMPLES
    ),
    *(
        Claim(
            f"unseen-{more}",
            f"On unseen inputs the learned log-partition is closer to enumeration with {more} samples than "
            f"with {fewer}.",
            "mean |τ - log Z| on the test part, nats, mean over tables: fewer samples minus more",
            0.0,
            PAIRED,
        )
        for fewer, more in pairwise(SAMPLES)
    ),
    Claim(
        "one-per-cent",
        "After enough steps the learned log-partition is within 1 % of enumeration on the training inputs.",
        "0.01 minus the mean of |τ - log Z| / log Σ exp g over the training inputs",
        0.0,
        f"{PAIRED}, for each table of at most 12 labels; all must hold",
    ),
    Claim(
        "sparsemax",
        "The sparsemax loss over all sets of labels trains an energy that predicts from the features.",
        "example-based F1 on the test part: sparsemax minus the most frequent set",
        0.0,
        f"{PAIRED}, for each table of at most 12 labels; all must hold",
    ),
    *(
        Claim(
            f"ranking-{energy}",
            f"Label rankings are learned jointly, by the {energy} energy: better than one ranking for all.",
            "Kendall's τ on the test part: the energy minus the ranking by mean positions",
            0.0,
            f"{PAIRED}, for each table; all must hold",
        )
        for energy in RANKING_ENERGIES
    ),
    Claim(
        "ranking-exact",
        "Trained jointly, the linear energy ranks at most .02 worse than by its exact likelihood.",
        "Kendall's τ on the test part, mean over the tables of at most 6 items: joint minus exact",
        -MARGIN,
        PAIRED,
    ),
)


def claim(results: dict[str, Any]) -> list[Verdict]:
    """The verdicts, in the order of the claims."""
    seeds = len(results["seeds"])
    small = [table for table in results["multilabel"] if EXACT in table["seeds"][0]]
    claims = iter(CLAIMS)

    def mean(*path: str) -> list[float]:
        """A figure of each seed, the mean over the small tables."""
        return _means([_values(table, path) for table in small])

    def close(samples: str) -> Verdict:
        which, joint, exact = next(claims), mean("samples", samples, "f1"), mean(EXACT, "f1")
        figures = f"{samples}: {_mean(joint):.3f}, exact {_mean(exact):.3f}"
        return tested(which, seeds, lambda: paired_test(joint, exact, margin=-MARGIN), figures)

    def falls(fewer: str, more: str) -> Verdict:
        which = next(claims)
        high, low = (mean("samples", k, "test", "nats") for k in (fewer, more))
        figures = f"{more}: {_mean(low):.3f} nats, {fewer}: {_mean(high):.3f}"
        return tested(which, seeds, lambda: paired_test(high, low), figures)

    def per_table(tables: list[Any], larger: Figures, smaller: Figures, shown: str) -> Verdict:
        which = next(claims)
        parts, figures = [], []
        for table in tables:
            high, low = larger(table), smaller(table)
            figures.append(f"{table['name']} " + shown.format(_mean(high), _mean(low)))
            parts.append(tested(which, seeds, partial(paired_test, high, low), ""))
        return all_of(which, parts, "; ".join(figures))

    if not small:
        why = "no table has at most 12 labels"
        found = [undecided(next(claims), seeds, why) for _ in range(len(CLAIMS) - len(RANKING_ENERGIES) - 1)]
    else:
        found = [close(samples) for samples in SAMPLES]
        found += [falls(fewer, more) for fewer, more in pairwise(SAMPLES)]
        found.append(
            per_table(
                small,
                lambda table: [ONE_PER_CENT] * seeds,
                partial(_values, path=("longer", "train", "relative")),
                "{1:.4f}",
            )
        )
        found.append(
            per_table(
                small,
                partial(_values, path=(SPARSEMAX, "f1")),
                partial(_values, path=("nothing", "f1")),
                "{:.3f} against {:.3f}",
            )
        )
    for energy in RANKING_ENERGIES:
        found.append(
            per_table(
                results["rankings"],
                partial(_values, path=("tau", energy)),
                partial(_values, path=("nothing",)),
                "{:.3f} against {:.3f}",
            )
        )
    return [_with_p(verdict) for verdict in [*found, _ranked_exactly(next(claims), results, seeds)]]


def _ranked_exactly(which: Claim, results: dict[str, Any], seeds: int) -> Verdict:
    tables = [table for table in results["rankings"] if EXACT in table["seeds"][0]["tau"]]
    if not tables:
        return undecided(which, seeds, "no table has at most 6 items")
    joint, exact = (_means([_values(table, ("tau", way)) for table in tables]) for way in ("linear", EXACT))
    figures = f"{_mean(joint):.3f}, exact {_mean(exact):.3f}"
    return tested(which, seeds, lambda: paired_test(joint, exact, margin=-MARGIN), figures)


def _values(table: dict[str, Any], path: tuple[str, ...]) -> list[float]:
    found = []
    for seed in table["seeds"]:
        value: Any = seed
        for key in path:
            value = value[key]
        found.append(float(value))
    return found


def _means(tables: list[list[float]]) -> list[float]:
    return [_mean(list(seed)) for seed in zip(*tables, strict=True)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _with_p(verdict: Verdict) -> Verdict:
    if verdict.p_value is None:
        return verdict
    return replace(verdict, figures=f"{verdict.figures}; p = {verdict.p_value:.2g}")
