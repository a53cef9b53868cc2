"""Append what a benchmark measured, and where, to `benchmarks/results/<name>.jsonl`."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def record(name: str, figures: Mapping[str, object]) -> Path:
    """Append one line to the results of benchmark `name`; returns the file."""
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *map(_portable, sys.argv[1:])]),
        **_revision(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "figures": dict(figures),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return path


def _portable(argument: str) -> str:
    """A file by its folder and name: where it lies on this machine tells nobody anything."""
    path = Path(argument)
    return "/".join(path.parts[-2:]) if path.is_absolute() else argument


def _revision() -> dict[str, object]:
    """The commit, and whether the code differs from it; both None outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        # The results are left out: one benchmark's line must not make the next one's tree dirty.
        changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()
