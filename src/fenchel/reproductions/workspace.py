"""A directory of results that survives interruption: units of work, each complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fenchel.errors import InputError
from fenchel.files import write_whole

_SETTINGS, _RESULTS = "run.json", "results.json"


class Workspace:
    """The directory of one run.

    Opening it refuses a finished run unless `overwrite`, continues an interrupted one with the same
    settings, and refuses one with others. It never touches a directory that it did not make.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        marker = path / _SETTINGS
        if path.exists() and not path.is_dir():
            raise InputError(f"{str(path)!r} is a file; name a directory with --out")
        if path.is_dir() and any(path.iterdir()) and not marker.is_file():
            raise InputError(f"{str(path)!r} holds other files; name a new or empty directory with --out")
        if overwrite and marker.is_file():
            shutil.rmtree(path)
        if (path / _RESULTS).is_file():
            raise InputError(
                f"{str(path)!r} holds a finished run; pass --overwrite to replace it, or another --out"
            )
        if marker.is_file():
            found = json.loads(marker.read_text(encoding="utf-8"))
            if found != settings:
                raise InputError(
                    f"{str(path)!r} holds an interrupted run with other settings ({found}); repeat these to "
                    "continue it, or pass --overwrite or another --out"
                )
        path.mkdir(parents=True, exist_ok=True)
        self.write(_SETTINGS, settings)

    def write(self, name: str, content: dict[str, Any]) -> Path:
        """Write JSON; the file is whole or as it was."""
        return write_whole(self.path / name, json.dumps(content, indent=1) + "\n")

    def finish(self, results: dict[str, Any]) -> None:
        self.write(_RESULTS, results)

    @contextmanager
    def unit(self, name: str) -> Iterator[tuple[Path, bool]]:
        """(directory, done): do the work in the directory unless done; it counts only when whole."""
        final, partial = self.path / name, self.path / f"{name}.part"
        if final.is_dir():
            yield final, True
            return
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial, False
        os.replace(partial, final)


def provenance() -> dict[str, Any]:
    """The versions and the commit that produced a result."""
    names = ("fenchel", "torch", "transformers", "datasets", "tokenizers", "accelerate")
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """The commit of the sources, marked when they were changed since; None outside a checkout."""
    here = Path(__file__).parent
    try:
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=here, capture_output=True
        )
        if tracked.returncode:
            return None
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
