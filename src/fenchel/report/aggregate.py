"""Seeds to statistics: what the comparison says, for the page and the terminal alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fenchel.report.schema import Column, Comparison, Row

ARROWS = {"lower": "↓", "higher": "↑", None: ""}


@dataclass(frozen=True)
class Cell:
    """One row in one column: the measured seeds, their mean, and both as text.

    `spread` is the sample standard deviation as text, empty for a single seed.
    """

    values: tuple[float, ...]
    mean: float | None
    text: str
    spread: str
    best: bool


def cells(comparison: Comparison) -> list[list[Cell]]:
    """Return the cells of `comparison`, row by row, in the order of its columns."""
    by_column = [_column_cells(column, comparison["rows"]) for column in comparison["columns"]]
    return [list(row) for row in zip(*by_column, strict=True)]


def spread_note(comparison: Comparison) -> str:
    """Return the sentence that says what ± is, or an empty string where nothing has a spread."""
    seeds = max((len(values) for row in comparison["rows"] for values in row["values"].values()), default=0)
    if seeds < 2:
        return ""
    return f"Mean over {seeds} seeds ± sample standard deviation."


def _column_cells(column: Column, rows: Sequence[Row]) -> list[Cell]:
    measured = [
        tuple(float(value) for value in row["values"][column["key"]] if value is not None) for row in rows
    ]
    means = [sum(values) / len(values) if values else None for values in measured]
    texts = [_number(mean, column["format"]) for mean in means]
    best = _best_text(means, texts, column)
    return [
        Cell(values, mean, text, _spread(values, column["format"]), best=text == best)
        for values, mean, text in zip(measured, means, texts, strict=True)
    ]


def _best_text(means: Sequence[float | None], texts: Sequence[str], column: Column) -> str | None:
    """The text, not the number, so that two rows that print alike are marked alike."""
    candidates = [
        (mean, text)
        for mean, text in zip(means, texts, strict=True)
        if mean is not None and math.isfinite(mean)
    ]
    if column["better"] is None or len(candidates) < 2:
        return None
    choose = min if column["better"] == "lower" else max
    return choose(candidates, key=lambda candidate: candidate[0])[1]


def _number(value: float | None, spec: str) -> str:
    if value is None:
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return format(value, spec)


def _spread(values: Sequence[float], spec: str) -> str:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return ""
    return format(statistics.stdev(values), spec)
