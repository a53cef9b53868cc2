from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fenchel.reproductions import runner, sparse_topk
from fenchel.reproductions.configs import ReproduceConfig
from fenchel.reproductions.sparse_topk import laboratory
from fenchel.reproductions.sparse_topk.recipe import (
    AFTER,
    CUBIC,
    DENSE,
    HARD,
    PRUNED,
    QUADRATIC,
    RELAXED,
    SMALL,
    THROUGH,
    figure,
)
from fenchel.reproductions.workspace import Workspace

TINY = replace(
    SMALL,
    hidden=(12,),
    sparsities=(0.5, 0.9),
    steps=12,
    batch=16,
    held_out=100,
    rows=2,
    dykstra=(1, 20),
    processes=1,
    first_seed=7,
    seeds=2,
)

# -- The verdicts.


def results_of(change: Callable[[str, dict[str, Any]], None] = lambda name, figures: None) -> dict[str, Any]:
    """Figures in which every claim holds, but for what `change` does."""
    accuracy = {DENSE: 0.96, AFTER: 0.5, HARD: 0.6, THROUGH: 0.7, QUADRATIC: 0.8, CUBIC: 0.9}
    path = [{"nonzeros": 10 + 5 * i, "distance": 0.1 * i} for i in range(6)]
    seeds = []
    for seed in range(5):
        figures: dict[str, Any] = {}
        for arm in (DENSE, *PRUNED):
            for sparsity in SMALL.sparsities:
                name = figure(arm, sparsity)
                noise = 0.001 * ((7 * len(name) + 3 * seed) % 5)
                figures[name] = {"accuracy": accuracy[arm] + noise, "curve": [[0, 0.1], [9, 0.5]]}
        figures[DENSE] |= {
            "k": 10,
            "path": {arm: [dict(point) for point in path] for arm in RELAXED},
            "dykstra": {arm: [0.1, 1e-12 * (1 + seed)] for arm in RELAXED},
        }
        for name, found in figures.items():
            change(name, found)
        seeds.append({"seed": seed, "figures": figures})
    return {"seeds": seeds, "setup": {}, "sparsities": list(SMALL.sparsities), "path": [0.0] * 6}


def test_clear_figures_support_every_claim() -> None:
    verdicts = sparse_topk.claim(results_of())
    assert {verdict.verdict for verdict in verdicts} == {"supported"}
    assert [verdict.claim for verdict in verdicts] == [claim.id for claim in sparse_topk.CLAIMS]


@pytest.mark.parametrize(
    ("claim", "name", "value"),
    [
        ("cubic", figure(HARD, 0.95), 0.95),
        ("quadratic", figure(HARD, 0.97), 0.85),
        ("after-training", figure(AFTER, 0.9), 0.95),
        ("straight-through", figure(THROUGH, 0.9), 0.95),
        ("nine-tenths", figure(CUBIC, 0.9), 0.8),
    ],
)
def test_one_sparsity_refutes_a_claim_about_all(claim: str, name: str, value: float) -> None:
    def change(received: str, figures: dict[str, Any]) -> None:
        if received == name:
            figures["accuracy"] = value + 0.1 * (figures["accuracy"] % 0.01)

    found = {verdict.claim: verdict.verdict for verdict in sparse_topk.claim(results_of(change))}
    assert found[claim] == "not supported"


def test_more_than_k_nonzeros_at_the_end_of_the_path_refute_the_bridge() -> None:
    def change(name: str, figures: dict[str, Any]) -> None:
        if name == DENSE:
            figures["path"][CUBIC][0]["nonzeros"] = 11

    found = {verdict.claim: verdict for verdict in sparse_topk.claim(results_of(change))}
    assert found["bridge"].verdict == "not supported"
    assert "k = 10 nonzeros, exactly for 0 of 5 seeds" in found["bridge"].figures


def test_solutions_that_differ_refute_the_limit() -> None:
    def change(name: str, figures: dict[str, Any]) -> None:
        if name == DENSE:
            figures["dykstra"][QUADRATIC][-1] = 1e-3

    found = {verdict.claim: verdict.verdict for verdict in sparse_topk.claim(results_of(change))}
    assert found["dykstra"] == "not supported" and found["cubic"] == "supported"


# -- The experiment.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole miniature run."""
    out = tmp_path_factory.mktemp("sparse-topk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_topk, "recipe", lambda scale: TINY)
        runner.run(ReproduceConfig(name="sparse-topk", out=str(out)))
    return out


def test_a_run_leaves_record_verdicts_and_report(finished: Path) -> None:
    run = json.loads((finished / "sparse-topk.jsonl").read_text().splitlines()[-1])
    assert [verdict["claim"] for verdict in run["verdicts"]] == [claim.id for claim in sparse_topk.CLAIMS]
    assert [seed["seed"] for seed in run["results"]["seeds"]] == [7, 8]
    for seed in run["results"]["seeds"]:
        figures = seed["figures"]
        assert list(figures) == laboratory.names_of(TINY)
        for sparsity in TINY.sparsities:
            expected = sum(round((1 - sparsity) * n) for n in (64 * 12, 12 * 10))
            for arm in PRUNED:
                found = figures[figure(arm, sparsity)]
                assert found["nonzeros"] == found["k"] == expected
        starts = {figures[figure(arm, 0.9)]["curve"][0][1] for arm in (HARD, THROUGH)}
        assert len(starts) == 1  # the same network behind the same hard operator
        for arm in RELAXED:
            counts = [point["nonzeros"] for point in figures[DENSE]["path"][arm]]
            assert counts == sorted(counts) and counts[0] == figures[DENSE]["k"] == 384
    page = (finished / "sparse-topk-small" / "report.html").read_text()
    assert page.count("<svg") >= 2 and "straight-through" in page


def test_what_has_a_gradient_behind_the_hard_operators() -> None:
    weight = torch.tensor([[3.0, -1.0], [0.5, 2.0]], requires_grad=True)
    for through, expected in ((False, [[1.0, 0.0], [0.0, 1.0]]), (True, [[1.0, 1.0], [1.0, 1.0]])):
        out = laboratory.HardTopK(2, through=through)(weight)
        torch.testing.assert_close(out, torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        (gradient,) = torch.autograd.grad(out.sum(), weight)
        assert gradient.tolist() == expected


def test_the_regularization_falls_and_stays() -> None:
    recipe = replace(SMALL, steps=100, annealed=0.5)
    path = [laboratory.regularization_at(step, recipe, QUADRATIC) for step in range(100)]
    first, last = RELAXED[QUADRATIC].first, RELAXED[QUADRATIC].last
    assert path[0] == first and path[25] == pytest.approx((first * last) ** 0.5)
    assert path[50:] == pytest.approx([last] * 50)


def test_seeds_hold_out_other_images_and_share_starts_and_batches(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "run", {})
    first, again, other = (laboratory.Laboratory(TINY, workspace, seed) for seed in (1, 1, 2))
    assert torch.equal(first.split[1], again.split[1]) and not torch.equal(first.split[1], other.split[1])
    train, test = first.split
    assert len(test) == 100 and not set(train.tolist()) & set(test.tolist())
    assert torch.equal(first.network()[0].weight, again.network()[0].weight)
    assert not torch.equal(first.network()[0].weight, other.network()[0].weight)


def test_what_is_pruned_after_training_is_the_dense_network(tmp_path: Path) -> None:
    one = laboratory.Laboratory(TINY, Workspace(tmp_path / "run", {}), 1)
    with one.workspace.unit(laboratory.unit_of(1, DENSE)) as (directory, _):
        trained = one.train_dense(directory)
    assert trained["accuracy"] != one.accuracy(one.network())
    assert one.train_pruned(tmp_path, AFTER, sparsity=0.0)["accuracy"] == trained["accuracy"]
