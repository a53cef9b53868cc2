"""Timings of several sides in turns, A B C A B C ..., in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Sides = Mapping[str, Callable[[], object]]


def in_turns(
    sides: Sides, rounds: int, *, rarely: Mapping[str, int] | None = None, least: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of a call of each side in each round, after one that does not count.

    `rarely` says of sides that take long in how many of the rounds, from the first, they take part. A turn
    calls its side as often as fits into `least` seconds, and once at least: a call much shorter than the
    turns of the others would be timed with their data in the caches.
    """
    rarely = rarely or {}
    times: dict[str, list[float]] = {name: [] for name in sides}
    calls = {}
    for name, side in sides.items():
        side()
        start = time.perf_counter()
        side()
        calls[name] = max(1, int(least / (time.perf_counter() - start)))
    for i in range(rounds):
        for name, side in sides.items():
            if i < rarely.get(name, rounds):
                start = time.perf_counter()
                for _ in range(calls[name]):
                    side()
                times[name].append((time.perf_counter() - start) / calls[name])
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
