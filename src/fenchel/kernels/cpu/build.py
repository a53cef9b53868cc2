"""Compiling a source once a machine: `g++` or what CXX names, into the user's cache; loaded with ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache as memoize
from pathlib import Path

from fenchel.kernels import cache

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
# From the most to the least wanted: not every compiler knows all of them.
_OPTIONAL = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ())


class CannotCompile(Exception):
    """Why there is no compiled kernel: no compiler, or what it said."""


@cache.once
def library(source: str) -> ctypes.CDLL:
    """`source` as a loaded library; raises CannotCompile with the reason."""
    compiler = _compiler()
    key = "\n".join([source, *compiler, _version(compiler), _machine(), repr((_FLAGS, _OPTIONAL))])
    path = cache.folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged, or of another system: made again
            path.unlink(missing_ok=True)
    _compile(compiler, source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotCompile(f"{path} cannot be loaded: {error}") from None


def _compiler() -> tuple[str, ...]:
    wanted = os.environ.get("CXX")  # a command, which may have arguments
    for command in [wanted] if wanted else ["g++", "clang++", "c++"]:
        name, *arguments = shlex.split(command) or [command]
        found = shutil.which(name)
        if found:
            return (found, *arguments)
    raise CannotCompile(
        f"CXX names {wanted!r}, which is not there"
        if wanted
        else "there is no C++ compiler (g++, clang++ or c++)"
    )


@memoize
def _version(compiler: tuple[str, ...]) -> str:
    run = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return run.stdout.partition("\n")[0]


@memoize
def _machine() -> str:
    """What -march=native depends on: a home directory may be shared by different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _compile(compiler: tuple[str, ...], source: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file, built = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
            file.write_text(source, encoding="utf-8")
            said = ""
            for optional in _OPTIONAL:
                command = [*compiler, *_FLAGS, *optional, str(file), "-o", str(built)]
                run = subprocess.run(command, capture_output=True, text=True, check=False)
                if run.returncode == 0:
                    # Whole or not at all: other processes may be compiling the same.
                    os.replace(built, path)
                    return
                said = said or run.stderr.strip()
    except OSError as error:
        raise CannotCompile(f"the cache {path.parent} cannot be written: {error}") from None
    first = next((line for line in said.splitlines() if "error" in line), said.partition("\n")[0])
    raise CannotCompile(f"{shlex.join(compiler)} failed: {first}")
