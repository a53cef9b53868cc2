"""The reproduction of the routers: its checks catch what is broken, its verdicts turn, it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fenchel import Routing, SoftRouting, soft_routing, softmax_expert_choice, softmax_token_choice
from fenchel.reproductions import moe_routers, runner
from fenchel.reproductions.configs import ReproduceConfig
from fenchel.reproductions.moe_routers import laboratory, verdicts
from fenchel.reproductions.moe_routers.recipe import (
    DENSE,
    EXPERT_CHOICE,
    MODELS,
    ROUTED,
    SINKHORN_TC,
    SOFT,
    SOFTMAX_EC,
    SOFTMAX_TC,
    SPARSE_EC,
    SPARSE_TC,
    UNBALANCED,
    Recipe,
    recipe,
)
from fenchel.reproductions.workspace import Workspace

TINY = Recipe(width=8, hidden=8, heads=2, blocks=1, epochs=1, batch=500, processes=1, first_seed=3, seeds=1)

# -- The data and the layers.


def test_patches_are_the_images() -> None:
    from sklearn.datasets import load_digits

    x, y, test_x, test_y = laboratory.digits(TINY, 5)
    assert x.shape == (1437, 16, 4) and test_x.shape == (360, 16, 4) and len(y) == 1437
    images = torch.cat([x, test_x]).reshape(-1, 4, 4, 2, 2).transpose(2, 3).reshape(-1, 64) * 8 + 8
    pixels, classes = load_digits(return_X_y=True)
    found = sorted(map(tuple, torch.cat([images, torch.cat([y, test_y])[:, None]], 1).int().tolist()))
    assert found == sorted(tuple(map(int, (*row, c))) for row, c in zip(pixels, classes, strict=True))
    assert not torch.equal(laboratory.digits(TINY, 6)[3], test_y)


@pytest.mark.parametrize("name", ROUTED)
def test_every_router_has_the_slots_of_the_same_work(name: str) -> None:
    settings = recipe("small")
    layer = laboratory.feed_forward(settings, name)
    batch = torch.randn(settings.batch, laboratory.PATCHES, settings.width)
    layer(batch)
    routing = layer.routing
    slots = (routing.dispatch if name == SOFT else routing.token).shape
    assert routing.load.shape == ((settings.batch,) if name == SOFT else ()) + (settings.experts,)
    groups = settings.batch if name == SOFT else 1
    assert groups * settings.experts * slots[-1] == settings.k * settings.batch * laboratory.PATCHES


# -- The checks.


def broken(change: Callable[[Routing], dict[str, torch.Tensor]], routing: Routing) -> Routing:
    return routing._replace(**change(routing))


TOKENS = softmax_token_choice(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), k=2, capacity=8)
EXPERTS = softmax_expert_choice(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), capacity=8)


def test_sound_routings_pass() -> None:
    assert laboratory.violations(TOKENS, SOFTMAX_TC, 2) == 0
    assert laboratory.violations(EXPERTS, SOFTMAX_EC, 2) == 0
    assert laboratory.violations(soft_routing(torch.randn(4, 12, 3, 2)), SOFT, 2) == 0


@pytest.mark.parametrize(
    ("routing", "name", "change"),
    [
        (TOKENS, SOFTMAX_TC, lambda r: {"token": torch.where(r.filled, r.token[:, :1], 0)}),
        (TOKENS, SOFTMAX_TC, lambda r: {"weight": -r.weight}),
        (TOKENS, SOFTMAX_TC, lambda r: {"weight": 2 * r.weight}),
        (TOKENS, SOFTMAX_TC, lambda r: {"weight": r.weight + 0.1 * ~r.filled}),
        (EXPERTS, SOFTMAX_TC, lambda r: {}),  # some token has all three experts
        (EXPERTS, SOFTMAX_EC, lambda r: {"filled": r.filled & (torch.arange(8) < 7)}),
        (EXPERTS, SPARSE_EC, lambda r: {}),  # softmax weights are no plan
    ],
)
def test_broken_routings_are_caught(routing: Routing, name: str, change: Any) -> None:
    assert laboratory.violations(broken(change, routing), name, 2) > 0


def test_more_tokens_than_the_capacity_are_caught() -> None:
    wide = softmax_token_choice(torch.tensor([[1.0, 0.0, 0.0]]).expand(12, 3), k=1, capacity=12)
    assert laboratory.violations(wide, SOFTMAX_TC, 1) == 1


def test_soft_sums_are_checked() -> None:
    routing = soft_routing(torch.randn(2, 5, 3, 2))
    assert laboratory.violations(SoftRouting(1.01 * routing.dispatch, routing.combine), SOFT, 2) == 12
    assert laboratory.violations(SoftRouting(routing.dispatch, 1.01 * routing.combine), SOFT, 2) == 10


def test_division_in_closed_form() -> None:
    """Nine tokens ask for the first expert and three for the second, of six slots each."""
    logits = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]] * 3)
    routing = softmax_token_choice(logits, k=1, capacity=6)
    spread, refused, left_out = laboratory.division(routing, SOFTMAX_TC)
    assert (spread, refused, left_out) == pytest.approx((0.5, 0.25, 0.25))
    chosen = softmax_expert_choice(torch.zeros(12, 2), capacity=6)
    assert laboratory.division(chosen, SOFTMAX_EC) == pytest.approx((0.0, 0.0, 0.5))


def test_the_balance_loss_is_trained_on() -> None:
    """Both begin alike and see the same batches."""
    curves = [laboratory.train(TINY, name, 3)["curve"] for name in (SOFTMAX_TC, UNBALANCED, UNBALANCED)]
    assert curves[0] != curves[1] == curves[2]


# -- The verdicts.

SEEDS = 5


def results_of(change: dict[tuple[str, str], float] | None = None) -> dict[str, Any]:
    """Figures at which every claim holds, but for the changes."""
    figures: dict[str, dict[str, float]] = {name: {"accuracy": 0.9, "left_out": 0.0} for name in MODELS}
    for name in ROUTED:
        figures[name] |= {"spread": 0.05, "dropped_choices": 0.01, "violations": 0, "routings": 10}
    figures[UNBALANCED] |= {"spread": 0.3, "dropped_choices": 0.1}
    figures[SOFTMAX_EC]["spread"] = 0.0
    for (name, figure), value in (change or {}).items():
        figures[name][figure] = value
    counts = ("violations", "routings")

    def noisy(name: str, key: str, value: float, seed: int) -> float:
        return value if key in counts else value * (1 + 0.02 * ((seed + 2 * len(name)) % SEEDS - 2))

    return {
        "seeds": [
            {
                "seed": i,
                "routers": {
                    name: {key: noisy(name, key, value, i) for key, value in each.items()}
                    for name, each in figures.items()
                },
            }
            for i in range(SEEDS)
        ]
    }


def verdicts_of(results: dict[str, Any]) -> dict[str, str]:
    found = moe_routers.claim(results)
    assert [verdict.claim for verdict in found] == [claim.id for claim in moe_routers.CLAIMS]
    return {verdict.claim: verdict.verdict for verdict in found}


def test_all_claims_can_hold() -> None:
    assert set(verdicts_of(results_of()).values()) == {"supported"}


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("invariants", (SPARSE_TC, "violations", 1)),
        ("expert-choice", (SOFTMAX_EC, "spread", 0.5)),
        ("transport-balances", (SINKHORN_TC, "spread", 0.5)),
        ("transport-balances", (SPARSE_TC, "spread", 0.5)),
        ("transport-keeps", (SINKHORN_TC, "dropped_choices", 0.2)),
        ("transport-keeps", (SPARSE_TC, "dropped_choices", 0.2)),
    ],
)
def test_each_verdict_turns_with_its_figures(claim: str, change: tuple[str, str, float]) -> None:
    name, figure, value = change
    found = verdicts_of(results_of({(name, figure): value}))
    assert {each for each, verdict in found.items() if verdict != "supported"} == {claim}
    assert found[claim] == "not supported"


def test_one_seed_decides_nothing_but_a_count() -> None:
    results = results_of()
    results["seeds"] = results["seeds"][:1]
    found = verdicts_of(results)
    assert found.pop("invariants") == "supported" and set(found.values()) == {"inconclusive"}


def test_findings_compare_means_without_deciding() -> None:
    results = results_of({(name, "accuracy"): 0.8 for name in EXPERT_CHOICE})
    first, *rest = verdicts.findings(results)
    larger, smaller = (
        sum(sum(verdicts.values(results, name, "accuracy")) for name in names) / (SEEDS * len(names))
        for names in (EXPERT_CHOICE, (SOFTMAX_TC, SINKHORN_TC, SPARSE_TC))
    )
    assert f"{larger:.4f}" in first and f"{smaller:.4f}" in first and f"{larger - smaller:+.4f}" in first
    assert all("not decided here" in each for each in (first, *rest))


# -- The experiment.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole miniature run."""
    out = tmp_path_factory.mktemp("routers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moe_routers, "recipe", lambda scale: TINY)
        runner.run(ReproduceConfig(name="moe-routers", out=str(out)))
    return out


def test_a_run_leaves_record_verdicts_and_report(finished: Path) -> None:
    run = json.loads((finished / "moe-routers.jsonl").read_text().splitlines()[-1])
    assert [verdict["claim"] for verdict in run["verdicts"]] == [claim.id for claim in verdicts.CLAIMS]
    (seed,) = run["results"]["seeds"]
    assert tuple(seed["routers"]) == MODELS
    for name in ROUTED:
        figures = seed["routers"][name]
        assert figures["violations"] == 0 and figures["routings"] == 4  # three steps and a test
    assert seed["routers"][SOFTMAX_EC]["spread"] == pytest.approx(0, abs=1e-6)
    assert seed["routers"][DENSE]["routings"] == 0 and seed["routers"][DENSE]["spread"] is None
    html = (finished / "moe-routers-small" / "report.html").read_text()
    assert "<svg" in html and all(name in html for name in MODELS) and "not decided here" in html


def test_an_interrupted_run_goes_on_to_the_same_figures(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "moe-routers-small", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    workspace = Workspace(tmp_path / "run", json.loads((tmp_path / "run" / "run.json").read_text()))
    shutil.rmtree(workspace.path / laboratory.unit_of(3, SPARSE_TC))
    again = laboratory.run_seed(TINY, workspace, 3)
    run = json.loads((finished / "moe-routers.jsonl").read_text().splitlines()[-1])
    assert again == run["results"]["seeds"][0]


def test_scales() -> None:
    for scale in ("small", "medium", "large"):
        settings = recipe(scale)
        assert settings.seeds >= 5 and settings.width % settings.heads == 0
        assert (settings.k * laboratory.PATCHES) % settings.experts == 0
    assert replace(recipe("small"), seeds=2).seeds == 2
