"""Units of an experiment: seeds, several at once, and figures that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fenchel.reproductions.processes import each
from fenchel.reproductions.workspace import Workspace

FIGURES = "figures.json"
Tell = Callable[[float, str], None]


class Settings(Protocol):
    """What every recipe has."""

    @property
    def processes(self) -> int: ...
    @property
    def first_seed(self) -> int: ...
    @property
    def seeds(self) -> int: ...


S = TypeVar("S", bound=Settings)
T = TypeVar("T")


def seeds_of(recipe: Settings) -> range:
    """The seeds of a run."""
    return range(recipe.first_seed, recipe.first_seed + recipe.seeds)


def over_seeds(
    recipe: S,
    workspace: Workspace,
    progress: Tell,
    costs: dict[str, float],
    first: Callable[[], T],
    run: Callable[[S, Workspace, int], Any],
) -> T:
    """Do `first`, then run every seed, several at once; returns what `first` does.

    `costs` has every unit of the work, by how long it takes.
    """

    def watch() -> None:
        done = sum((workspace.path / unit).is_dir() for unit in costs)
        progress(finished(workspace, costs), f"{done} of {len(costs)} trainings")

    watch()
    found = first()
    watch()
    each(run, [(recipe, workspace, seed) for seed in seeds_of(recipe)], recipe.processes, watch)
    return found


def kept(workspace: Workspace, unit: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a unit: `work` writes what it likes to the unit's directory and returns them, once."""
    with workspace.unit(unit) as (path, done):
        file = path / FIGURES
        if not done:
            file.write_text(json.dumps(work(path), allow_nan=False), encoding="utf-8")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found


def finished(workspace: Workspace, costs: dict[str, float]) -> float:
    """The share of the work that is done, by the cost of each unit."""
    done = sum(cost for unit, cost in costs.items() if (workspace.path / unit).is_dir())
    return done / sum(costs.values())
