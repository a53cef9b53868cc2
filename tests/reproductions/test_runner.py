"""Running a reproduction: interrupted, gone on with, refused, recorded and listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fenchel.cli import main
from fenchel.diagnostics.statistics import paired_test
from fenchel.reproductions import claims, configs, record, runner
from fenchel.reproductions.claims import Claim
from fenchel.reproductions.processes import each

NAME = "gkd"  # of which the toy takes the place
CLAIM = Claim("rises", "It rises.", "the figure", 0.0, "paired t test")


@dataclass(frozen=True)
class Recipe:
    figure: float = 1.0
    seeds: int = 3
    early: tuple[int, int] = (1, 2)


class Toy:
    """A reproduction whose trainings are files with one number each."""

    def __init__(self) -> None:
        self.trained: list[int] = []
        self.interrupt_at: int | None = None

    def measure(self, recipe: Recipe, workspace: Any, progress: Any) -> dict[str, Any]:
        figures = []
        for seed in range(recipe.seeds):
            with workspace.unit(f"seed-{seed}") as (path, done):
                if not done:
                    if seed == self.interrupt_at:
                        self.interrupt_at = None
                        raise KeyboardInterrupt
                    self.trained.append(seed)
                    (path / "figure").write_text(str(recipe.figure + seed / 10))
            figures.append(float((workspace.path / f"seed-{seed}" / "figure").read_text()))
            progress((seed + 1) / recipe.seeds, "seeds")
        return {"figures": figures}

    def claim(self, results: dict[str, Any]) -> list[Any]:
        figures = results["figures"]
        shown = f"on average {sum(figures) / len(figures):.2f}"
        test = lambda: paired_test(figures, [0.0] * len(figures))  # noqa: E731
        return [claims.tested(CLAIM, len(figures), test, shown)]

    def report(self, results: dict[str, Any], verdicts: list[Any]) -> dict[str, Any]:
        return {
            "summary": "A toy.",
            "setup": {},
            "comparison": {"caption": "", "columns": [], "rows": []},
            "panels": [],
            "operators": [],
            "samples": {"prompts": [], "rows": []},
        }


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Toy:
    found = Toy()
    module = SimpleNamespace(
        NAME=NAME,
        TITLE="Toy",
        PAPER="nobody",
        CLAIMS=(CLAIM,),
        recipe=lambda scale: Recipe({"small": 1.0, "medium": -1.0, "large": 0.0}[scale]),
        measure=found.measure,
        claim=found.claim,
        report=found.report,
    )
    monkeypatch.setattr(runner, "NAMES", (NAME,))
    monkeypatch.setattr(runner, "reproduction", lambda name: module)
    monkeypatch.setattr(record, "RECORDS", tmp_path / "of-the-project")
    monkeypatch.setenv("COLUMNS", "200")
    return found


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_a_report_and_a_record(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["reproduce", NAME, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "yes It rises. (on average 1.10)" in shown and f"report: {out}/gkd-small/report.html" in shown
    page = (out / "gkd-small" / "report.html").read_text()
    assert "✓ holds" in page and "on average 1.10 (paired t test)" in page
    (run,) = read(out / f"{NAME}.jsonl")
    assert run["recipe"] == {"figure": 1.0, "seeds": 3, "early": [1, 2]}
    assert run["results"] == {"figures": [1.0, 1.1, 1.2]}
    assert (run["name"], run["scale"]) == (NAME, "small")
    assert run["verdicts"][0]["verdict"] == "supported" and run["verdicts"][0]["p_value"] < 0.05
    assert {"commit", "versions", "created", "elapsed_seconds", "processor_seconds"} <= set(run)
    report = (out / "gkd-small" / "report.html").read_bytes()
    (out / "gkd-small" / "report.html").unlink()
    assert main(["report", str(out / "gkd-small")]) == 0
    assert (out / "gkd-small" / "report.html").read_bytes() == report


def test_verdicts_follow_the_figures(toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["reproduce", NAME, "--out", str(out), "--scale", "medium"]) == 0
    assert main(["reproduce", NAME, "--out", str(out), "--scale", "large", "--seeds", "2"]) == 0
    assert [run["verdicts"][0]["verdict"] for run in read(out / f"{NAME}.jsonl")] == [
        "not supported",
        "inconclusive",
    ]
    assert "✗ does not hold" in (out / "gkd-medium" / "report.html").read_text()
    assert "? inconclusive" in (out / "gkd-large" / "report.html").read_text()


def test_an_interrupted_run_goes_on(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["reproduce", NAME, "--out", str(whole)]) == 0
    toy.trained, toy.interrupt_at = [], 1
    command = ["reproduce", NAME, "--out", str(out)]
    assert main(command) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert not (out / f"{NAME}.jsonl").exists()
    assert main([*command, "--seeds", "4"]) == 2
    assert "interrupted run with other settings" in capsys.readouterr().err
    assert main(command) == 0
    assert toy.trained == [0, 1, 2]
    (run,), (other,) = read(out / f"{NAME}.jsonl"), read(whole / f"{NAME}.jsonl")
    assert run["results"] == other["results"] and run["verdicts"] == other["verdicts"]


def test_time_is_counted_over_interruptions(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 107.0, 500.0, 504.0])
    monkeypatch.setattr(
        runner, "_clocks", lambda: dict.fromkeys(("elapsed_seconds", "processor_seconds"), next(times))
    )
    toy.interrupt_at = 1
    command = ["reproduce", NAME, "--out", str(tmp_path)]
    assert [main(command), main(command)] == [130, 0]
    (run,) = read(tmp_path / f"{NAME}.jsonl")
    assert run["elapsed_seconds"] == run["processor_seconds"] == 11.0


def test_a_finished_run_is_kept_and_records_survive_overwriting(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", NAME, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    first = (tmp_path / "out" / f"{NAME}.jsonl").read_bytes()
    assert main(command) == 2
    assert "finished run; pass --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert (tmp_path / "out" / f"{NAME}.jsonl").read_bytes().startswith(first)
    assert len(read(tmp_path / "out" / f"{NAME}.jsonl")) == 2


def test_directories_of_others_are_refused(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["reproduce", NAME, "--out", str(tmp_path / "file")]) == 2
    assert "is a file; name a directory with --out" in capsys.readouterr().err
    mine = tmp_path / "mine" / "gkd-small"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    for more in ([], ["--overwrite"]):
        assert main(["reproduce", NAME, "--out", str(tmp_path / "mine"), *more]) == 2
        assert "holds other files" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "years of work" and toy.trained == []


def test_tables_reach_the_recipe_that_reads_some(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True)
    class Reader(Recipe):
        data: str | None = None

    command = ["reproduce", NAME, "--out", str(tmp_path / "out")]
    assert main([*command, "--data", str(tmp_path)]) == 2
    assert "gkd reads no tables; run it without --data" in capsys.readouterr().err
    monkeypatch.setattr(runner.reproduction(NAME), "recipe", lambda scale: Reader())
    assert main([*command, "--data", str(tmp_path / "nowhere")]) == 2
    assert "--data must be a directory of tables" in capsys.readouterr().err
    assert main([*command, "--data", str(tmp_path)]) == 0
    (run,) = read(tmp_path / "out" / f"{NAME}.jsonl")
    assert run["recipe"]["data"] == tmp_path.name, "where it lies is left out"
    page = json.loads((tmp_path / "out" / "gkd-small" / "results.json").read_text())
    assert f"--data {tmp_path}" in page["command"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "reproduce needs a name: teacher-hacking, gkd"),
        (["teacher-haking"], "unknown reproduction 'teacher-haking' (did you mean 'teacher-hacking'?)"),
        ([NAME, "--scale", "huge"], "scale must be one of small, medium, large, received 'huge'"),
        ([NAME, "--seeds", "0"], "seeds must be at least 1, received 0"),
        ([NAME, "--seeds", "x"], "--seeds expects an integer, received 'x'"),
        ([NAME, "again"], "unexpected argument 'again'"),
    ],
)
def test_bad_input(toy: Toy, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *argv]) == 2
    assert said in capsys.readouterr().err
    assert toy.trained == []


def test_the_list_shows_the_newest_verdict(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show = ["reproduce", "--list", "--out", str(tmp_path / "out")]
    assert main(show) == 0
    assert "not run" in capsys.readouterr().out
    assert main(["reproduce", NAME, "--out", str(tmp_path / "of-the-project")]) == 0
    capsys.readouterr()
    assert main(show) == 0
    shown = capsys.readouterr().out
    assert "gkd: It rises." in shown and "supported" in shown and "not supported" not in shown
    assert main(["reproduce", NAME, "--scale", "medium", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(show) == 0
    shown = capsys.readouterr().out
    assert "not supported" in shown and "on average -0.90" in shown and "medium" in shown


@pytest.mark.parametrize("claim", [None, "another"])
def test_a_verdict_must_be_on_a_claim(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str | None
) -> None:
    said = [] if claim is None else [claims.undecided(replace(CLAIM, id=claim), 3, "")]
    monkeypatch.setattr(runner.reproduction(NAME), "claim", lambda results: said)
    assert main(["reproduce", NAME, "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out" / f"{NAME}.jsonl").exists()


def test_the_help_names_every_reproduction(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ", ".join(configs.NAMES) in shown


class TestProcesses:
    def test_one_process_is_this_one(self) -> None:
        done: list[int] = []
        seen: list[int] = []
        each(done.append, [(1,), (2,)], 1, lambda: seen.append(len(done)))
        assert (done, seen) == ([1, 2], [1, 2])

    @pytest.mark.slow
    def test_several_do_all_jobs(self, tmp_path: Path) -> None:
        each(os.mkdir, [(tmp_path / name,) for name in "abc"], 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]

    @pytest.mark.slow
    def test_a_failure_ends_the_others(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="ended with status 1"):
            each(os.mkdir, [(tmp_path,), (tmp_path / "a",), (tmp_path / "b",)], 2)

    @pytest.mark.slow
    def test_a_kill_leaves_none_at_work(self) -> None:
        job = "print('at work', flush=True); import time; time.sleep(60)"
        call = f"from fenchel.reproductions.processes import each; each(exec, [({job!r},)] * 2, 2)"
        with subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()
            process.kill()
            process.communicate(timeout=20)  # the pipe is open as long as one of them has it
