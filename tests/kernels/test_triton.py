"""The Triton kernels in Triton's interpreter: their errors beside those of plain PyTorch, and their edges."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from catalogue import NAMES, STEEP

pytest.importorskip("triton")

TESTS = Path(__file__).parents[1]
FAMILIES = ["jsd:0.3"]


def run(script: str, cache: Path, *arguments: str, **variables: str) -> str:
    """What a script beside this file prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {
        "FENCHEL_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        **variables,
    }
    # numpy warns of infinities that are meant
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def job(cache: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a run of triton_job.py found."""
    found = run("triton_job.py", cache, *arguments, TRITON_INTERPRET="1")
    return [json.loads(line) for line in found.splitlines()]


def assert_small(found: list[dict[str, Any]]) -> None:
    assert found
    wrong = [each for each in found if not each["error"] <= each["bound"] or math.isnan(each["bound"])]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return job(tmp_path_factory.mktemp("cache"), "errors", *NAMES, *STEEP, *FAMILIES)


@pytest.mark.parametrize("name", [*NAMES, *STEEP, *FAMILIES])
def test_errors_are_those_of_eager_in_float32(name: str, errors: list[dict[str, Any]]) -> None:
    assert_small([each for each in errors if each["name"] == name])


def test_edges(tmp_path: Path) -> None:
    found = job(tmp_path, "edges")
    wrong = [each["what"] for each in found if not each["true"]]
    assert found and not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *STEEP, *FAMILIES])
def test_errors_in_all_cases(name: str, tmp_path: Path) -> None:
    assert_small(job(tmp_path, "thorough", name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *STEEP, *FAMILIES])
def test_kernels_compile_for_a_device(name: str, tmp_path: Path) -> None:
    """What the interpreter allows a compiler may not."""
    if not (Path(find_spec("triton").submodule_search_locations[0]) / "backends" / "nvidia" / "bin").is_dir():
        # Triton's wheels for Linux bring it; one built from source, or for other devices, need not.
        pytest.skip("this triton has no compiler for NVIDIA's devices")
    assert int(run("triton_compile.py", tmp_path, name)) == 24
