"""Importing a generated module: triton.jit reads the sources of functions from files."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from functools import cache as memoize
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from fenchel.files import write_whole
from fenchel.kernels import cache


@memoize
def module(source: str) -> ModuleType:
    """`source` as a module, from a file named by its contents in the cache."""
    name = f"fenchel_kernels_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
    spec = spec_from_file_location(name, _written(source, f"{name}.py"))
    assert spec is not None and spec.loader is not None
    made = module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def _written(source: str, name: str) -> Path:
    for folder in (cache.folder(), Path(tempfile.gettempdir(), "fenchel")):
        path = folder / name
        try:
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(path, source)
            return path
        except OSError as error:  # a home directory may be read-only
            reason = error
    raise reason
