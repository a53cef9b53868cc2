"""Work in several processes at once, such as the seeds of an experiment."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

_POLL_SECONDS = 0.5


def each(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    processes: int,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Call `function(*job)` for every job, so many at a time, each in a process of its own.

    What comes of it is left on disk by the function. `watch` is called now and then. One process means
    this one. When a job fails or this process is interrupted or killed, the others are ended.
    """
    processes = min(processes, len(jobs), os.cpu_count() or 1)
    if processes <= 1:
        for job in jobs:
            function(*job)
            watch()
        return
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                process = context.Process(target=_call, args=(function, waiting.pop(0)), daemon=True)
                process.start()
                running.append(process)
            time.sleep(_POLL_SECONDS)
            watch()
            for process in [one for one in running if not one.is_alive()]:
                running.remove(process)
                if process.exitcode:
                    raise RuntimeError(f"a process of the experiment ended with status {process.exitcode}")
    finally:
        for process in running:
            process.terminate()
            process.join()


def _call(function: Callable[..., Any], job: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function(*job)
    except KeyboardInterrupt:  # the first process says so for all
        raise SystemExit(130) from None


def _end_with_parent() -> None:
    """A parent that is killed ends no process, and one left over would work on what a new run works on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
