"""Runs a reproduction: its trainings, the verdicts on its claims, the record, and the report.

A reproduction is a module of this package, in a file or a directory of its own:

    NAME, TITLE, PAPER                      PAPER: authors, year, arXiv id
    CLAIMS: tuple[Claim, ...]
    recipe(scale) -> a frozen dataclass     the whole configuration; it has a field `seeds: int`, and if it
                                            reads published tables `data: str | None = None`, their directory
    measure(recipe, workspace, progress)    -> results, plain JSON; every training is a unit of the
                                            workspace, so that an interrupted run goes on
    claim(results) -> list[Verdict]         one for each of CLAIMS, in their order
    report(results, verdicts)               -> the sections of the page (`fenchel.report`): summary, setup,
                                            comparison, panels, operators, samples, and those it may have
"""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fenchel.errors import InputError
from fenchel.files import write_whole
from fenchel.reproductions import record
from fenchel.reproductions.claims import Claim, Verdict
from fenchel.reproductions.configs import NAMES, ReproduceConfig
from fenchel.reproductions.workspace import Workspace, provenance

SIGNS = {"supported": "yes", "not supported": "no", "inconclusive": "?"}


class Tell(Protocol):
    """How a reproduction says how far it is."""

    def __call__(self, share: float, what: str) -> None:
        """`share` of all the work, in [0, 1], is done; `what` comes next."""


class Reproduction(Protocol):
    """What the module of a reproduction has."""

    NAME: str
    TITLE: str
    PAPER: str
    CLAIMS: tuple[Claim, ...]

    def recipe(self, scale: str) -> Any: ...
    def measure(self, recipe: Any, workspace: Workspace, progress: Tell) -> dict[str, Any]: ...
    def claim(self, results: dict[str, Any]) -> list[Verdict]: ...
    def report(self, results: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]: ...


def reproduction(name: str) -> Reproduction:
    """The module of a reproduction."""
    module: Any = import_module(f"fenchel.reproductions.{name.replace('-', '_')}")
    return module  # type: ignore[no-any-return]


def run(config: ReproduceConfig) -> Path:
    """Run a reproduction, or go on with an interrupted one; returns the path of the report."""
    name, scale = str(config.name), config.scale
    paper = reproduction(name)
    recipe = paper.recipe(scale)
    if config.seeds is not None:
        recipe = replace(recipe, seeds=config.seeds)
    if config.data is not None:
        recipe = _with_data(recipe, name, config.data)
    directory = Path(config.out)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{config.out!r} is a file; name a directory with --out")
    # As JSON gives it back, so that an interrupted run is recognised.
    settings = {"name": name, "scale": scale, "recipe": json.loads(json.dumps(asdict(recipe)))}
    workspace = Workspace(directory / f"{name}-{scale}", settings, overwrite=config.overwrite)
    console = Console()
    results, seconds = _measured(paper, recipe, workspace, console)
    verdicts = paper.claim(results)
    _check(paper, verdicts)
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: round(value, 1) for name, value in seconds.items()},
        **provenance(),
    }
    found = {"verdicts": [verdict.as_json() for verdict in verdicts]}
    page = {
        "title": paper.TITLE,
        "command": _command(config),
        **facts,
        "claims": _claims(paper, verdicts),
        **paper.report(results, verdicts),
    }
    # Only a whole run leaves a record, and a report that cannot be drawn is seen before it does.
    from fenchel.report import render

    path = render(page, workspace.path / "report.html")
    record.append(directory, name, {**_portable(settings), **facts, **found, "results": results})
    workspace.finish(page)
    for claim, verdict in zip(paper.CLAIMS, verdicts, strict=True):
        console.print(f"{SIGNS[verdict.verdict]:<4}{claim.statement} ({verdict.figures})", highlight=False)
    return path


def _with_data(recipe: Any, name: str, data: str) -> Any:
    if getattr(recipe, "data", "") is not None:
        raise InputError(f"{name} reads no tables; run it without --data")
    if not Path(data).is_dir():
        raise InputError(f"--data must be a directory of tables, received {data!r}")
    return replace(recipe, data=data)


def _portable(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as a record has them: a directory by its name, for where it lies tells nobody anything."""
    recipe = settings["recipe"]
    if recipe.get("data") is None:
        return settings
    return {**settings, "recipe": {**recipe, "data": Path(recipe["data"]).resolve().name}}


def listing(out: str) -> None:
    """Print every claim of every reproduction with its last verdict: the user's, or else the project's."""
    table = Table("claim", "verdict", "figures", "run", show_lines=True)
    for name in NAMES:
        paper = reproduction(name)
        newest = record.latest(name, Path(out))
        verdicts = {each["claim"]: each for each in newest["verdicts"]} if newest else {}
        where = _origin(newest) if newest else ""
        for claim in paper.CLAIMS:
            found = verdicts.get(claim.id)
            verdict, figures = (found["verdict"], found["figures"]) if found else ("not run", "")
            table.add_row(f"{name}: {claim.statement}", verdict, figures, where if found else "")
    Console().print(table)


def _measured(
    paper: Reproduction, recipe: Any, workspace: Workspace, console: Console
) -> tuple[dict[str, Any], dict[str, float]]:
    """The results, and the seconds that they took in all, over interruptions."""
    clock = workspace.path / "seconds.json"
    before = json.loads(clock.read_text(encoding="utf-8")) if clock.is_file() else {}
    began = _clocks()
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)

        def tell(share: float, what: str) -> None:
            bar.update(task, completed=share, description=what)

        try:
            results = paper.measure(recipe, workspace, tell)
        finally:
            seconds = {name: before.get(name, 0.0) + now - began[name] for name, now in _clocks().items()}
            write_whole(clock, json.dumps(seconds))
    return results, seconds


def _clocks() -> dict[str, float]:
    """Time on the wall, and of processors, which other work on the computer does not lengthen."""
    used = os.times()
    processors = used.user + used.system + used.children_user + used.children_system
    return {"elapsed_seconds": time.monotonic(), "processor_seconds": processors}


def _check(paper: Reproduction, verdicts: list[Verdict]) -> None:
    expected, received = [claim.id for claim in paper.CLAIMS], [verdict.claim for verdict in verdicts]
    if expected != received:
        raise ValueError(f"{paper.NAME} has the claims {expected} but verdicts on {received}")


def _claims(paper: Reproduction, verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """The claims as the page shows them."""
    return [
        {"text": claim.statement, "holds": verdict.holds, "figures": f"{verdict.figures} ({claim.test})"}
        for claim, verdict in zip(paper.CLAIMS, verdicts, strict=True)
    ]


def _command(config: ReproduceConfig) -> str:
    words = ["fenchel", "reproduce", str(config.name), "--scale", config.scale, "--out", config.out]
    words += ["--data", config.data] if config.data is not None else []
    return shlex.join(words + (["--seeds", str(config.seeds)] if config.seeds is not None else []))


def _origin(run: dict[str, Any]) -> str:
    return f"{run['scale']}, {run['created'][:10]}, {run['commit'] or 'no commit'}"
