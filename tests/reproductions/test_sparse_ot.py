"""The reproduction of sparse transport: its figures on a tiny run, and verdicts that figures can refute."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transports import linear_program

from fenchel.report import render
from fenchel.reproductions import sparse_ot
from fenchel.reproductions.sparse_ot import laboratory
from fenchel.reproductions.workspace import Workspace

TINY = replace(
    sparse_ot.recipe("small"), colours=6, pixels=200, nonzeros=(1, 2, 4, 5), iterations=300, seeds=2
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    told: list[float] = []
    workspace = Workspace(tmp_path_factory.mktemp("run") / "sparse-ot", {})
    found = sparse_ot.measure(TINY, workspace, lambda share, _: told.append(share))
    assert told == sorted(told) and told[-1] == 1
    again = sparse_ot.measure(TINY, workspace, lambda *_: None)
    assert again == found  # the seconds too: nothing is computed twice
    return found


def test_figures(results: dict[str, Any]) -> None:
    for run in results["seeds"]:
        palettes = laboratory.palettes_of(TINY, run["seed"])
        a, b = palettes.target_mass, palettes.source_mass
        assert math.isclose(float(a.sum()), 1) and math.isclose(float(b.sum()), 1)
        assert math.isclose(run["unregularised"], linear_program(palettes.cost, a, b), rel_tol=1e-8)
        assert run["weakly quadratic"]["cost"] == pytest.approx(run["unregularised"], rel=1e-4)
        assert run["quadratic"]["missed"] < 1e-8
        for k, both in run["sparse"].items():
            for figures in both.values():
                assert 1 <= figures["mean_nonzeros"] <= figures["most_nonzeros"] <= int(k)
        values = [[both[way]["value"] for both in run["sparse"].values()] for way in ("dual", "semi-dual")]
        assert values[0] != values[1] and values[0] == pytest.approx(values[1], rel=1e-3)  # two ways up
        assert run["widest"]["gap"] < 1e-6


def test_carried_colours_are_averages_of_the_targets() -> None:
    """A plan that splits every column in two halves carries each colour to a midpoint."""
    target = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]).double()
    palettes = laboratory.Palettes(target, torch.ones(2).double() / 2, target, torch.ones(2).double() / 2)
    plan = torch.full((2, 2), 0.25).double()
    value = torch.tensor(0.0)
    solved = laboratory.Transport(plan, value, value, value, value)
    _, figures = laboratory._timed(lambda: solved, palettes)
    assert figures["cost"] == pytest.approx(0.5) and figures["mean_nonzeros"] == 2
    assert figures["missed"] == pytest.approx(0)
    assert figures["divergence"] == pytest.approx(0.25, abs=0.01)  # of the midpoint to both ends
    _, figures = laboratory._timed(
        lambda: solved._replace(plan=plan * torch.tensor([[2.0], [0.0]])), palettes
    )
    assert figures["missed"] == pytest.approx(0.5)  # of a mass of 1, all of which is in one row


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("columns", lambda run: run["sparse"]["2"]["dual"].update(most_nonzeros=3.0)),
        ("interpolates", lambda run: run["sparse"]["1"]["semi-dual"].update(value=run["unregularised"] / 2)),
        ("interpolates", lambda run: run["widest"].update(gap=1e-3)),
        ("control", lambda run: run["weakly quadratic"].update(most_nonzeros=3.0)),
        ("duals", lambda run: run["sparse"]["4"]["dual"].update(value=0.0)),
        ("marginals", lambda run: run["sparse"]["8"]["semi-dual"].update(missed=0.9)),
        ("crisp", lambda run: run["quadratic"].update(divergence=0.0)),
    ],
)
def test_figures_refute_the_claims(claim: str, change: Any) -> None:
    def figures(k: int, seed: int) -> dict[str, float]:
        return {
            "value": 1.0 + 1 / k + seed / 100,
            "most_nonzeros": float(k),
            "mean_nonzeros": float(k),
            "missed": 0.5 / k + seed / 1000,
            "divergence": 0.01 + seed / 1000,
            "cost": 1.0,
            "seconds": 1.0,
        }

    runs = [
        {
            "seed": seed,
            "unregularised": 1.5 + seed / 100,
            "one_column_each": 0.5,
            "quadratic": figures(30, seed) | {"divergence": 0.02 + seed / 500},
            "weakly quadratic": figures(8 + seed, seed),
            "widest": {"k": 30, "gap": 1e-9},
            "sparse": {
                str(k): {name: figures(k, seed) for name in laboratory.DUALS} for k in (1, 2, 4, 8, 16)
            },
        }
        for seed in range(5)
    ]
    good = {verdict.claim: verdict.verdict for verdict in sparse_ot.claim({"seeds": runs})}
    assert set(good.values()) == {"supported"}
    worse = copy.deepcopy(runs)
    for run in worse:
        change(run)
    bad = {verdict.claim: verdict.verdict for verdict in sparse_ot.claim({"seeds": worse})}
    assert bad[claim] == "not supported"


def test_report(results: dict[str, Any], tmp_path: Path) -> None:
    page = sparse_ot.report(results | {"seeds": results["seeds"]}, [])
    assert [row["name"] for row in page["comparison"]["rows"]][:3] == [
        "quadratic",
        "quadratic, weak",
        "k = 1, semi-dual",
    ]
    facts = {"created": "2025-01-01", "elapsed_seconds": 1.0, "commit": None, "versions": {}}
    path = render({"title": "t", "command": "c", "claims": [], **facts, **page}, tmp_path / "report.html")
    assert "Mass missed" in path.read_text(encoding="utf-8")
