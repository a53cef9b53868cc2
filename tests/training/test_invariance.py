"""Loss and gradient are those of the global batch: over processes, accumulation, packing and chunks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from training import invariance_job
from training.invariance_job import CASES, documents, step

from fenchel.training.objectives import Distillation

HERE = Path(__file__).parent


@cache
def whole(name: str) -> Any:
    """The global batch in one piece."""
    import tempfile

    with tempfile.TemporaryDirectory() as output:
        return step(name, 1, Path(output), use_cpu=True)


def assert_same(received: Any, expected: Any) -> None:
    for mine, theirs in zip(received[:2], expected[:2], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert received[2] == pytest.approx(expected[2], abs=1e-5)
    assert received[3] == expected[3]


@pytest.mark.parametrize("accumulation", [2, 8])
@pytest.mark.parametrize("name", CASES)
def test_accumulation(tmp_path: Path, name: str, accumulation: int) -> None:
    assert_same(step(name, accumulation, tmp_path), whole(name))


@pytest.mark.parametrize("name", ["sft", "distillation"])
def test_packing(name: str) -> None:
    assert_same(whole(f"{name} packed"), whole(name))


def test_chunks() -> None:
    assert_same(whole("distillation in chunks"), whole("distillation"))


def test_on_policy_loss_does_not_depend_on_the_answers_in_the_data(tmp_path: Path) -> None:
    def losses(name: str, answers: int) -> Any:
        return step(name, 2, tmp_path, rows=documents((answers,) * 8))[0]

    assert losses("on-policy", 1) == losses("on-policy", 20)
    assert losses("distillation", 1) != pytest.approx(losses("distillation", 20), rel=1e-3)


def test_on_policy_loss_is_the_mean_over_the_generated_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    inner = Distillation.__call__

    def remember(self: Distillation, model: Any, batch: Any) -> Any:
        seen.append(inner(self, model, batch))
        return seen[-1]

    monkeypatch.setattr(Distillation, "__call__", remember)
    first, second = step("on-policy", 2, tmp_path)[0]
    assert len(seen) == 4
    assert first == pytest.approx(torch.cat(seen[:2]).mean().item(), rel=1e-5)
    assert second == pytest.approx(torch.cat(seen[2:]).mean().item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "accumulation"), [(2, 2), (4, 1), (4, 2)])
def test_processes(tmp_path: Path, processes: int, accumulation: int) -> None:
    found = launch(tmp_path, processes, accumulation)
    assert found.keys() == CASES.keys()
    for name, received in found.items():
        assert_same(received, whole(name))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (2, 4)])
def test_sharded_parameters(tmp_path: Path, processes: int, accumulation: int) -> None:
    found = launch(tmp_path, processes, accumulation, "fsdp")
    assert found.keys() == CASES.keys() - set(invariance_job.NOT_SHARDED)
    for name, received in found.items():
        assert_same(received, whole(name))


def launch(tmp_path: Path, processes: int, accumulation: int, *rest: str) -> Any:
    result = tmp_path / "result.json"
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1] / "src")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    job = [str(HERE / "invariance_job.py"), str(result), str(accumulation), *rest]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *job],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(result.read_text())
