"""Timings of several sides in turns, A B C A B C ..., in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Sides = Mapping[str, Callable[[], object]]


def in_turns(sides: Sides, rounds: int, *, rarely: Mapping[str, int] | None = None) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one call that does not count.

    `rarely` says of sides that take long in how many of the rounds, from the first, they take part.
    """
    rarely = rarely or {}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for i in range(rounds):
        for name, side in sides.items():
            if i < rarely.get(name, rounds):
                start = time.perf_counter()
                side()
                times[name].append(time.perf_counter() - start)
    return times


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the median, and the fastest and slowest of the rounds."""
    values = [1e3 * x for x in seconds]
    return {
        "median_ms": round(statistics.median(values), 3),
        "min_ms": round(min(values), 3),
        "max_ms": round(max(values), 3),
        "rounds": len(values),
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Of the medians."""
    return round(statistics.median(ours) / statistics.median(theirs), 3)
