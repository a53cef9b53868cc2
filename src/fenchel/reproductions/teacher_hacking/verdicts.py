"""What the figures say about the paper's claims.

The distance that decides is the Jensen-Shannon divergence; the table has the others. Where a curve turns
is decided for each seed by the other seeds' mean curve, so that its own noise has no part in it. Each
claim is decided at the 5 % level by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fenchel.diagnostics.statistics import Evidence, paired_test, u_turn_test
from fenchel.reproductions.claims import Claim, Verdict, all_of, tested, undecided
from fenchel.reproductions.teacher_hacking.law import Course, course
from fenchel.reproductions.teacher_hacking.recipe import FEWER, MORE, OFFLINE, STUDENT, TEACHER

KIND = "js"
FLAT = 0.02  # a rise of so small a share of the minimum is none
NEAR = 2.0  # a departure within this factor of the turn is at the turn
ONLINE = (TEACHER, STUDENT)

HACKING = Claim(
    "offline-hacking",
    "On a fixed set of teacher samples the distance to the teacher goes on falling while the distance to "
    "the oracle, which fell at first, rises.",
    "golden JS at the end minus at its turn, and proxy JS at the golden turn minus at the end (nats)",
    0.0,
    "U-turn test of golden and paired t test of proxy over seeds, one-sided; both must hold",
)
NO_TURN = Claim(
    "online-no-turn",
    "With fresh samples, of the teacher or of the student, the distance to the oracle does not turn up.",
    f"{FLAT} minus the rise of golden JS from its turn to the end, as a share",
    0.0,
    f"paired t test over seeds that the rise is below {FLAT:.0%}, for both; both must hold",
)
CLOSER = Claim(
    "online-closer",
    "After equal steps, students of fresh samples are closer to the oracle than those of a fixed set.",
    "final golden JS offline minus online (nats per token)",
    0.0,
    "paired t test over seeds, one-sided, for both kinds of fresh samples; both must hold",
)
PROMPTS = Claim(
    "diverse-prompts",
    "Of as many sequences, fewer prompts with more generations each leave the student farther from the "
    "oracle.",
    "final golden JS with fewer prompts minus with one generation a prompt (nats per token)",
    0.0,
    "paired t test over seeds, one-sided",
)
GENERATIONS = Claim(
    "more-generations",
    "With several generations for every prompt the student ends closer to the oracle than with one.",
    "final golden JS with one generation minus with several (nats per token)",
    0.0,
    "paired t test over seeds, one-sided",
)
LAW = Claim(
    "leaves-power-law",
    "Offline, the distance to the teacher comes to lie above the power law of its early part; online it does "
    "not.",
    "excess of final proxy JS over the early law, offline minus online, as a share of the law",
    0.0,
    "paired t test over seeds, one-sided: offline above 0 and above both online ways; all must hold",
)
WHEN = Claim(
    "leaves-at-turn",
    "Offline, the distance to the teacher leaves its power law when the distance to the oracle turns.",
    f"ln {NEAR:g} minus |ln(step of the departure / step of the turn)|",
    0.0,
    f"paired t test over seeds that both are within a factor of {NEAR:g}",
)
CLAIMS = (HACKING, NO_TURN, CLOSER, PROMPTS, GENERATIONS, LAW, WHEN)


class Found:
    """The figures of a run, seed by seed."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.runs = results["seeds"]
        self.early = results["recipe"]["early"]
        self.seeds = len(self.runs)

    def steps(self) -> list[float]:
        steps: list[float] = self.runs[0]["curves"][OFFLINE]["step"]
        return steps

    def curves(self, way: str, name: str) -> list[list[float]]:
        return [run["curves"][way][name] for run in self.runs]

    def final(self, way: str, name: str = f"golden_{KIND}") -> list[float]:
        return [curve[-1] for curve in self.curves(way, name)]

    def turns(self, way: str, name: str = f"golden_{KIND}") -> list[int]:
        """For each seed, the evaluation at which the other seeds' mean is lowest, before the end."""
        curves = self.curves(way, name)
        found = []
        for i in range(self.seeds):
            others = [curve for j, curve in enumerate(curves) if j != i] or curves
            sums = [sum(values) for values in zip(*others, strict=True)][:-1]
            found.append(sums.index(min(sums)))
        return found

    def rises(self, way: str, name: str = f"golden_{KIND}") -> list[float]:
        """From the turn to the end, as a share of the curve at the turn."""
        pairs = zip(self.curves(way, name), self.turns(way, name), strict=True)
        return [curve[-1] / curve[turn] - 1 for curve, turn in pairs]

    def courses(self, way: str) -> list[Course]:
        """The proxy curves against their early laws."""
        return [
            course(self.steps()[1:], curve[1:], self.early) for curve in self.curves(way, f"proxy_{KIND}")
        ]


def claim(results: dict[str, Any]) -> list[Verdict]:
    """A verdict for each of `CLAIMS`."""
    found = Found(results)
    return [
        _hacking(found),
        _no_turn(found),
        _closer(found),
        _paired(found, PROMPTS, FEWER, OFFLINE),
        _paired(found, GENERATIONS, OFFLINE, MORE),
        _law(found),
        _when(found),
    ]


def _hacking(found: Found) -> Verdict:
    golden, proxy = (found.curves(OFFLINE, f"{side}_{KIND}") for side in ("golden", "proxy"))
    turns = found.turns(OFFLINE)
    at_turn = [curve[turn] for curve, turn in zip(proxy, turns, strict=True)]
    lowest = _mean([curve[turn] for curve, turn in zip(golden, turns, strict=True)])
    figures = (
        f"golden {lowest:.4f} at step {_at(found, turns)}, {_mean(found.final(OFFLINE)):.4f} at the end "
        f"({_mean(found.rises(OFFLINE)):+.1%}); proxy "
        f"{_mean(at_turn):.4f}, then {_mean(found.final(OFFLINE, f'proxy_{KIND}')):.4f}"
    )
    parts = [
        tested(HACKING, found.seeds, lambda: u_turn_test(golden), figures),
        tested(
            HACKING,
            found.seeds,
            lambda: paired_test(at_turn, found.final(OFFLINE, f"proxy_{KIND}")),
            figures,
        ),
    ]
    return all_of(HACKING, parts, _with_p(figures, parts, ("golden", "proxy")))


def _no_turn(found: Found) -> Verdict:
    rises = {way: found.rises(way) for way in ONLINE}
    figures = "; ".join(f"{way}: {_mean(each):+.1%} after the turn" for way, each in rises.items())
    figures += f"; {OFFLINE}: {_mean(found.rises(OFFLINE)):+.1%}"
    parts = [_above(NO_TURN, [FLAT] * found.seeds, each, figures) for each in rises.values()]
    return all_of(NO_TURN, parts, _with_p(figures, parts, ONLINE))


def _closer(found: Found) -> Verdict:
    ends = {way: found.final(way) for way in (OFFLINE, *ONLINE)}
    figures = ", ".join(f"{way} {_mean(each):.4f}" for way, each in ends.items())
    parts = [_above(CLOSER, ends[OFFLINE], ends[way], figures) for way in ONLINE]
    return all_of(CLOSER, parts, _with_p(figures, parts, ONLINE))


def _paired(found: Found, claim: Claim, farther: str, closer: str) -> Verdict:
    ends = {way: found.final(way) for way in (farther, closer)}
    figures = ", ".join(
        f"{way} {_mean(each):.4f} (turn at step {_at(found, found.turns(way))})" for way, each in ends.items()
    )
    verdict = _above(claim, ends[farther], ends[closer], figures)
    return all_of(claim, [verdict], _with_p(figures, [verdict], ("difference",)))


def _law(found: Found) -> Verdict:
    courses = {way: found.courses(way) for way in (OFFLINE, *ONLINE)}
    missing = [way for way, each in courses.items() if any(course.law is None for course in each)]
    if missing:
        return undecided(LAW, found.seeds, f"no early power law: {', '.join(missing)}")
    excess = {way: [course.excess for course in each] for way, each in courses.items()}
    figures = ", ".join(f"{way} {_mean(each):+.0%}" for way, each in excess.items()) + " of the law"
    parts = [
        _above(LAW, excess[OFFLINE], [0.0] * found.seeds, figures),
        *(_above(LAW, excess[OFFLINE], excess[way], figures) for way in ONLINE),
    ]
    return all_of(LAW, parts, _with_p(figures, parts, (OFFLINE, *(f"against {way}" for way in ONLINE))))


def _when(found: Found) -> Verdict:
    departures = [course.departure for course in found.courses(OFFLINE)]
    turns = [found.steps()[turn] for turn in found.turns(OFFLINE)]
    known = ["none" if step is None else f"{step:g}" for step in departures]
    shown = ", ".join(f"{step} / {turn}" for step, turn in zip(known, turns, strict=True))
    figures = f"step of the departure / of the turn, by seed: {shown}"
    # Where the curve never left the law, the end is the earliest that it could have.
    ends = [float(left or found.steps()[-1]) for left in departures]
    apart = [abs(math.log(left / max(turn, 1))) for left, turn in zip(ends, turns, strict=True)]
    verdict = _above(WHEN, [math.log(NEAR)] * found.seeds, apart, figures)
    return all_of(WHEN, [verdict], _with_p(figures, [verdict], ("within the factor",)))


def _above(claim: Claim, larger: Sequence[float], smaller: Sequence[float], figures: str) -> Verdict:
    def test() -> Evidence:
        return paired_test(larger, smaller)

    return tested(claim, len(larger), test, figures)


def _with_p(figures: str, parts: Sequence[Verdict], names: Sequence[str]) -> str:
    """The figures and the p-value of every part."""
    if any(part.p_value is None for part in parts):
        return f"{figures}; one seed decides nothing"
    values = ", ".join(f"{name} {part.p_value:.2g}" for name, part in zip(names, parts, strict=True))
    return f"{figures}; p: {values}"


def _at(found: Found, turns: Sequence[int]) -> str:
    steps = sorted({found.steps()[turn] for turn in turns})
    return f"{steps[0]:g}" if len(steps) == 1 else f"{steps[0]:g} to {steps[-1]:g}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
