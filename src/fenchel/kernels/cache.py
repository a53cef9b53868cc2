"""Where generated kernels are kept: in memory, and in FENCHEL_CACHE or the user's cache folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def folder() -> Path:
    """The folder of the kernels; it need not exist yet."""
    root = os.environ.get("FENCHEL_CACHE")
    if root is None:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "fenchel")
    return Path(root) / "kernels"


def once(function: Callable[P, T]) -> Callable[P, T]:
    """`functools.cache` for functions whose failures last as long as their results."""

    def attempt(*arguments: P.args, **options: P.kwargs) -> tuple[Any, Exception | None]:
        try:
            return function(*arguments, **options), None
        except Exception as error:
            return None, error

    outcome: Any = functools.cache(attempt)

    @functools.wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        found, error = outcome(*arguments, **options)
        if error is not None:
            raise error.with_traceback(None)
        result: T = found
        return result

    return run
