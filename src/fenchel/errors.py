"""The one exception that says: the input was wrong, and here is what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """A mistake in what the caller passed: what was wrong, what was received, what to do.

    It is a `ValueError`, so library users catch it as one; the command line prints its single line
    and exits with status 2.
    """


class BadScores(InputError):
    """A row of scores that cannot be normalised, found while it was computed with."""

    def __init__(self, row: int, shape: Sequence[int]) -> None:
        self.row = row
        super().__init__(f"row {row} of scores {tuple(shape)} is all -inf, or holds NaN or inf")


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known word closest to `word`, or '' when none is close."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
