"""Importing a generated module: triton.jit reads the sources of functions from files."""

from __future__ import annotations

import hashlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from fenchel.files import write_whole
from fenchel.kernels import cache


class CannotWrite(Exception):
    """Why there is no file for a generated module."""


@cache.once
def module(source: str) -> ModuleType:
    """`source` as a module, from a file in the cache; raises CannotWrite."""
    name = f"fenchel_kernels_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
    path = cache.folder() / f"{name}.py"
    try:
        _write(path, source)
    except OSError as error:
        raise CannotWrite(f"the cache {path.parent} cannot be written: {error}") from None
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def _write(path: Path, source: str) -> None:
    """Other processes may be writing the same; a damaged file is written again."""
    if not path.exists() or path.read_bytes() != source.encode():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, source)
