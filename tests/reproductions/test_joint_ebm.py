from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from fenchel.reproductions import joint_ebm, runner, tabular
from fenchel.reproductions.configs import NAMES, ReproduceConfig
from fenchel.reproductions.joint_ebm import laboratory
from fenchel.reproductions.joint_ebm.recipe import (
    EXACT,
    FREQUENCIES,
    PAIRS,
    RANKING_ENERGIES,
    SMALL,
    SPARSEMAX,
)
from fenchel.reproductions.workspace import Workspace
from fenchel.sklearn import MultilabelEnergyClassifier

TINY = replace(
    SMALL,
    hidden=(4,),
    steps=2,
    partition_steps=2,
    partition_hidden=(4,),
    ranking_steps=2,
    processes=1,
    seeds=2,
)


@pytest.fixture(autouse=True)
def _small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets of labels, one of them too large for the exact likelihood, and one ranking."""
    rng = np.random.default_rng(0)

    def split(name: str, labels: int) -> tabular.Split:
        x = rng.normal(size=(60, 3))
        y = (x @ rng.normal(size=(3, labels)) > 0).astype(float)
        return tabular.Split(name, x[:40], y[:40], x[40:], y[40:], [str(i) for i in range(labels)])

    splits = [split("few", 3), split("many", 13)]
    x = rng.normal(size=(40, 3))
    ranking = tabular.Ranking("orders", x, (-x).argsort(1).argsort(1) + 1.0)
    monkeypatch.setattr(tabular, "multilabel", lambda data, names: splits)
    monkeypatch.setattr(tabular, "label_ranking", lambda data, names: [ranking])


def results_of(change: Any = lambda seed: None, seeds: int = 5) -> dict[str, Any]:
    """Figures in which every claim holds, but for what `change` makes of each seed's."""

    def one(seed: int) -> dict[str, Any]:
        noise = 0.001 * seed

        def scores(f1: float) -> dict[str, float]:
            return {"f1": f1 + noise, "micro_f1": 0.7, "accuracy": 0.3}

        def error(nats: float) -> dict[str, float]:
            return {"nats": nats + noise, "relative": 0.004 + noise / 10, "log_partition": 8.0}

        samples = {
            k: scores(0.69) | {"train": error(nats), "test": error(nats)}
            for k, nats in (("1", 1.0), ("10", 0.5), ("100", 0.3 + noise))
        }
        found = {
            "samples": samples,
            "energies": {"linear": scores(0.6), "mlp": scores(0.6)},
            EXACT: scores(0.69 + noise),
            SPARSEMAX: scores(0.6 + noise),
            "longer": {"train": error(0.05), "test": error(0.4)},
            "nothing": scores(0.2),
        }
        change(found)
        return found

    tau = [
        {"tau": dict.fromkeys(RANKING_ENERGIES, 0.8 + 0.01 * i) | {EXACT: 0.8 + 0.011 * i}, "nothing": 0.2}
        for i in range(seeds)
    ]
    return {
        "multilabel": [{"name": "a", "labels": 6, "sizes": [9, 9], "seeds": [one(i) for i in range(seeds)]}],
        "rankings": [{"name": "b", "items": 3, "sizes": [9], "seeds": tau}],
        "seeds": list(range(seeds)),
        "setup": joint_ebm.page.setup(SMALL),
    }


def verdicts(results: dict[str, Any]) -> dict[str, str]:
    return {verdict.claim: verdict.verdict for verdict in joint_ebm.claim(results)}


def test_every_claim_can_hold() -> None:
    found = verdicts(results_of())
    assert list(found) == [claim.id for claim in joint_ebm.CLAIMS]
    assert set(found.values()) == {"supported"}


@pytest.mark.parametrize(
    ("path", "factor", "claim"),
    [
        (("samples", "1", "f1"), 0.9, "f1-1"),
        (("samples", "10", "f1"), 0.9, "f1-10"),
        (("samples", "100", "f1"), 0.9, "f1-100"),
        (("samples", "10", "test", "nats"), 3.0, "unseen-10"),
        (("samples", "100", "test", "nats"), 3.0, "unseen-100"),
        (("longer", "train", "relative"), 10.0, "one-per-cent"),
        ((SPARSEMAX, "f1"), 0.1, "sparsemax"),
    ],
)
def test_every_claim_can_fail(path: tuple[str, ...], factor: float, claim: str) -> None:
    def change(seed: dict[str, Any]) -> None:
        place = seed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] *= factor

    assert verdicts(results_of(change))[claim] == "not supported"


def test_one_table_that_does_not_hold_refutes() -> None:
    results = results_of()
    worse = copy.deepcopy(results["multilabel"][0])
    for i, seed in enumerate(worse["seeds"]):
        seed["longer"]["train"]["relative"] = 0.03 + 0.001 * i
    results["multilabel"].append(worse | {"name": "worse"})
    assert verdicts(results)["one-per-cent"] == "not supported"
    for table in results["rankings"]:
        for i, seed in enumerate(table["seeds"]):
            seed["tau"]["mlp"] = 0.1 + 0.001 * i
    found = verdicts(results)
    assert found["ranking-mlp"] == "not supported" and found["ranking-linear"] == "supported"
    assert found["ranking-exact"] == "supported"
    for table in results["rankings"]:
        for i, seed in enumerate(table["seeds"]):
            seed["tau"]["linear"] -= 0.05 + 0.001 * i
    assert verdicts(results)["ranking-exact"] == "not supported"


def test_what_decides_nothing() -> None:
    assert set(verdicts(results_of(seeds=1)).values()) == {"inconclusive"}
    large = results_of()
    for seed in large["multilabel"][0]["seeds"]:
        del seed[EXACT]
        seed["samples"] = {}
    found = verdicts(large)
    assert found["f1-10"] == found["one-per-cent"] == "inconclusive" and found["ranking-mlp"] == "supported"
    for seed in large["rankings"][0]["seeds"]:
        del seed["tau"][EXACT]
    assert verdicts(large)["ranking-exact"] == "inconclusive"


# -- The figures.


def test_scores_of_sets() -> None:
    y = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]])
    predicted = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1]])
    found = laboratory.set_scores(y, predicted)
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["accuracy"] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(laboratory.commonest(y[[0, 2, 2]], 2), [[0, 1, 0], [0, 1, 0]])


def test_the_error_is_relative_to_the_log_partition() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 2))
    model = MultilabelEnergyClassifier("mlp", max_epochs=2, random_state=0).fit(x, (x > 0).astype(int))
    found = laboratory.errors(model, x)
    logits = model.energy_.network(laboratory.torch.tensor(x)).numpy()
    exact = np.log1p(np.exp(logits)).sum(1) - logits.sum(1) / 2  # log Σ exp <logits, y - 1/2>
    error = np.abs(model.log_partition(x) + 2 * math.log(2) - exact)
    assert found["nats"] == pytest.approx(error.mean())
    assert found["relative"] == pytest.approx((error / exact).mean())
    assert found["log_partition"] == pytest.approx(exact.mean())


def test_one_ranking_for_all() -> None:
    train = np.array([[1.0, 2, 3], [1, 3, 2], [2, 1, 3]])  # mean positions 4/3, 2, 8/3
    test = np.array([[1.0, 2, 3], [3, 2, 1], [1, 3, 2]])
    expected = np.mean([kendalltau(row, [1, 2, 3]).statistic for row in test])
    assert laboratory.mean_ranking_score(train, test) == pytest.approx(expected)


def test_constraint_classification_of_linear_scores() -> None:
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(400, 3)), rng.normal(size=(3, 4))
    y = (x @ weight).argsort(1).argsort(1) + 1.0
    found = laboratory.constraint_classification(x[:300], y[:300], x[300:])
    assert laboratory.ranking_score(y[300:], found) > 0.97
    assert laboratory.ranking_score(y[300:], x[300:] @ weight) == 1.0


def test_constant_features_and_steps() -> None:
    train, test = laboratory.standardised(np.array([[1.0, 5], [3, 5]]), np.array([[2.0, 6]]))
    np.testing.assert_allclose(train, [[-1, 0], [1, 0]])
    np.testing.assert_allclose(test, [[0, 0]])
    assert laboratory.epochs(600, 391, 32) == 46 and laboratory.epochs(1, 391, 32) == 1


# -- The whole.


def test_a_run_is_resumed_and_repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    settings = json.loads(json.dumps(asdict(TINY)))

    def run(name: str) -> dict[str, Any]:
        told.clear()
        workspace = Workspace(tmp_path / name, settings)
        return joint_ebm.measure(TINY, workspace, lambda share, _: told.append(share))

    first = run("a")
    assert told[0] == 0.0 and told[-1] == 1.0
    few, many = first["multilabel"]
    assert EXACT in few["seeds"][0] and EXACT not in many["seeds"][0]
    assert few["seeds"][0]["samples"].keys() == {"1", "10", "100"} and not many["seeds"][0]["samples"]
    assert many["seeds"][0][FREQUENCIES].keys() == {"f1", "micro_f1", "accuracy"}
    assert few["seeds"][0] != few["seeds"][1]
    assert first["rankings"][0]["seeds"][0]["tau"].keys() == {*RANKING_ENERGIES, EXACT, PAIRS}
    assert run("b") == first
    monkeypatch.setattr(laboratory, "_sets", None)  # nothing is trained twice
    monkeypatch.setattr(laboratory, "_orders", None)
    assert run("a") == first


def test_the_command_leaves_a_report_and_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "joint-ebm" in NAMES
    monkeypatch.setattr(joint_ebm, "recipe", lambda scale: TINY)
    page = runner.run(ReproduceConfig(name="joint-ebm", out=str(tmp_path / "out"), data=str(tmp_path)))
    text = page.read_text(encoding="utf-8")
    assert "pairwise, exact likelihood" in text and "few, F1" in text
    assert "pairwise, reference of frequencies" in text
    assert (tmp_path / "out" / "joint-ebm.jsonl").read_text(encoding="utf-8").count("\n") == 1
