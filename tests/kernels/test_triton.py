"""The Triton kernels in Triton's interpreter: their errors beside those of plain PyTorch, and their edges."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from catalogue import NAMES, STEEP

pytest.importorskip("triton")

TESTS = Path(__file__).parents[1]
FAMILIES = ["jsd:0.3"]


def job(cache: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a run of triton_job.py found."""
    environment = os.environ | {
        "FENCHEL_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TRITON_INTERPRET": "1",
    }
    # numpy warns of infinities that are meant
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("triton_job.py")), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


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
