"""The sharded operator, loss and head equal the unsharded ones, in processes with slices of the classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from operators import sharded_job

from fenchel import InputError, sharded_f_softargmax, sharded_fenchel_young_loss

TESTS = Path(__file__).parents[1]


@cache
def results(processes: int) -> list[dict[str, str]]:
    """Of each process, what failed in each check; started once for all checks."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory() as directory:
        store, result = f"{directory}/store", f"{directory}/result"
        job = [sys.executable, str(TESTS / "operators" / "sharded_job.py")]
        started = [
            subprocess.Popen(
                [*job, str(rank), str(processes), store, result],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        try:
            errors = [process.communicate(timeout=400)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        assert not any(process.returncode for process in started), errors
        return [json.loads(Path(f"{result}.{rank}").read_text()) for rank in range(processes)]


def verdict(processes: int, check: str) -> None:
    for rank, found in enumerate(results(processes)):
        assert check in found, f"process {rank} stopped before, at {list(found)[-1]}"
        assert not found[check], f"process {rank}: {found[check]}"


@pytest.mark.parametrize("check", sharded_job.checks())
def test_two_processes(check: str) -> None:
    verdict(2, check)


@pytest.mark.slow
@pytest.mark.parametrize("check", sharded_job.checks())
def test_four_processes(check: str) -> None:
    verdict(4, check)


def test_no_process_group() -> None:
    for call in (
        lambda: sharded_f_softargmax(torch.zeros(3)),
        lambda: sharded_fenchel_young_loss(torch.zeros(1, 3), torch.tensor([0])),
    ):
        with pytest.raises(InputError, match=r"no process group: .*torchrun.*init_process_group"):
            call()
