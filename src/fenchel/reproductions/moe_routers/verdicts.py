"""What is claimed about the routers, and what the figures say about it."""

from __future__ import annotations

from typing import Any

from fenchel.diagnostics.statistics import paired_test
from fenchel.reproductions.claims import Claim, Verdict, all_of, tested
from fenchel.reproductions.moe_routers.recipe import (
    EXPERT_CHOICE,
    ROUTED,
    SINKHORN_TC,
    SOFT,
    SOFTMAX_EC,
    SOFTMAX_TC,
    SPARSE_EC,
    SPARSE_TC,
    TOKEN_CHOICE,
    UNBALANCED,
)

PAIRED = "paired t-test over seeds, one-sided"
SPREAD = "coefficient of variation of the experts' loads on test images"

CLAIMS = (
    Claim(
        "invariants",
        "Every routing of every router keeps its capacity, sends a token to an expert at most once, and "
        "has the sums that its router promises.",
        "violations, counted in every training step and test, of every seed",
        0.0,
        "a count, which must be zero",
    ),
    Claim(
        "expert-choice",
        "Experts that choose by softmax have equal loads, where tokens that choose by softmax without a "
        "balance loss load them unequally.",
        f"{SPREAD}: token choice minus expert choice",
        0.0,
        PAIRED,
    ),
    Claim(
        "transport-balances",
        "A transport plan evens out the choices of tokens, without a balance loss: Sinkhorn's and the "
        "sparse one each have a smaller spread than softmax.",
        f"{SPREAD}: softmax minus transport, both without balance loss",
        0.0,
        f"{PAIRED}, for each; all must hold",
    ),
    Claim(
        "transport-keeps",
        "So fewer choices of tokens find no room.",
        "share of choices without room on test images: softmax minus transport, both without balance loss",
        0.0,
        f"{PAIRED}, for each; all must hold",
    ),
    Claim(
        "nobody-left-out",
        "A sparse transport plan leaves fewer tokens without any expert than expert choice by softmax.",
        "share of test tokens that no expert takes: softmax minus sparse expert choice",
        0.0,
        PAIRED,
    ),
)


def claim(results: dict[str, Any]) -> list[Verdict]:
    """The verdicts, in the order of the claims."""
    invariants, expert_choice, balances, keeps, left_out = CLAIMS

    def above(which: Claim, figure: str, larger: str, smaller: str) -> Verdict:
        first, second = values(results, larger, figure), values(results, smaller, figure)
        figures = f"{larger} {mean(first):.4f}, {smaller} {mean(second):.4f}"
        return tested(which, len(first), lambda: paired_test(first, second), figures)

    def both(which: Claim, figure: str) -> Verdict:
        parts = [above(which, figure, UNBALANCED, name) for name in (SINKHORN_TC, SPARSE_TC)]
        return all_of(which, parts, "; ".join(part.figures for part in parts))

    return [
        counted(invariants, results),
        above(expert_choice, "spread", UNBALANCED, SOFTMAX_EC),
        both(balances, "spread"),
        both(keeps, "dropped_choices"),
        above(left_out, "left_out", SOFTMAX_EC, SPARSE_EC),
    ]


def counted(which: Claim, results: dict[str, Any]) -> Verdict:
    """A count needs no test: one violation refutes, none in all routings supports."""
    runs = results["seeds"]
    broken, checked = (
        sum(run["routers"][name][figure] for run in runs for name in ROUTED)
        for figure in ("violations", "routings")
    )
    figures = f"{broken} violations in {checked} routings of {len(ROUTED)} routers"
    name = "not supported" if broken else "supported"
    return Verdict(which.id, float(-broken), None, None, len(runs), name, figures)  # type: ignore[arg-type]


def findings(results: dict[str, Any]) -> list[str]:
    """The paper's comparisons of accuracy, which these images cannot decide."""

    def mean_of(*names: str) -> list[float]:
        columns = [values(results, name, "accuracy") for name in names]
        return [mean(list(seed)) for seed in zip(*columns, strict=True)]

    pairs = (
        ("expert choice", mean_of(*EXPERT_CHOICE), "token choice", mean_of(*TOKEN_CHOICE)),
        ("soft", mean_of(SOFT), "sparse routers", mean_of(*TOKEN_CHOICE, *EXPERT_CHOICE)),
        ("expert choice by softmax", mean_of(SOFTMAX_EC), SOFTMAX_TC, mean_of(SOFTMAX_TC)),
    )
    found = []
    for first, larger, second, smaller in pairs:
        differences = [a - b for a, b in zip(larger, smaller, strict=True)]
        spread = f"from {min(differences):+.4f} to {max(differences):+.4f} over seeds"
        found.append(
            f"{first}: accuracy {mean(larger):.4f}, {second} {mean(smaller):.4f}; difference "
            f"{mean(differences):+.4f} ({spread}). The paper finds the first better; not decided here."
        )
    return found


def values(results: dict[str, Any], name: str, figure: str) -> list[float]:
    """A figure of a router, by seed."""
    return [run["routers"][name][figure] for run in results["seeds"]]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
