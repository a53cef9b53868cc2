"""A run's directory: never lost, never mixed, continued where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fenchel.errors import InputError
from fenchel.reproductions.workspace import Workspace, provenance

SETTINGS = {"seed": 0}


def test_units_count_only_when_whole(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "run", SETTINGS)
    with pytest.raises(KeyboardInterrupt), workspace.unit("a/b") as (path, done):
        assert not done
        (path / "half").write_text("x")
        raise KeyboardInterrupt
    again = Workspace(tmp_path / "run", SETTINGS)
    with again.unit("a/b") as (path, done):
        assert not done and not list(path.iterdir())
        (path / "whole").write_text("y")
    with again.unit("a/b") as (path, done):
        assert done and (path / "whole").read_text() == "y"


def test_a_finished_run_is_kept(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "run", SETTINGS)
    workspace.finish({"answer": 42})
    with pytest.raises(InputError, match="finished run; pass --overwrite"):
        Workspace(tmp_path / "run", SETTINGS)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"answer": 42}
    Workspace(tmp_path / "run", SETTINGS, overwrite=True)
    assert not (tmp_path / "run" / "results.json").exists()


def test_other_settings_do_not_mix(tmp_path: Path) -> None:
    Workspace(tmp_path / "run", SETTINGS)
    with pytest.raises(InputError, match="interrupted run with other settings"):
        Workspace(tmp_path / "run", {"seed": 1})


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_directories_are_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        Workspace(tmp_path / "mine", SETTINGS, overwrite=overwrite)
    with pytest.raises(InputError, match="is a file"):
        Workspace(tmp_path / "file", SETTINGS, overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_provenance_names_the_versions() -> None:
    assert {"torch", "transformers"} <= set(provenance()["versions"])
