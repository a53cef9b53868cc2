"""The reproduction of the Fitzpatrick losses: data, figures, verdicts, and a whole small run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from fenchel import InputError, fenchel_young_loss
from fenchel.reproductions import fitzpatrick, runner
from fenchel.reproductions.configs import ReproduceConfig
from fenchel.reproductions.fitzpatrick import laboratory
from fenchel.reproductions.fitzpatrick.recipe import (
    F_LOGISTIC,
    F_SPARSEMAX,
    LOGISTIC,
    LOSSES,
    SPARSEMAX,
    recipe,
)
from fenchel.reproductions.tabular import Split
from fenchel.reproductions.workspace import Workspace
from fenchel.sklearn import ProportionRegressor

SMALL = replace(recipe("small"), penalties=(1e-1, 1e-3), max_iter=30, processes=1, seeds=2)


def split() -> Split:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 5)) * 7 + 3
    y = (generator.normal(size=(60, 4)) + 0.1 * x[:, :4] > 0.5).astype(float)
    y[::7] = 0  # without labels
    return Split("made", x[:40], y[:40], x[40:], y[40:], ["a", "b", "c", "d"])


def test_sets_of_labels_become_proportions_and_empty_ones_are_left_out() -> None:
    made = split()
    (x, y), (test_x, test_y) = laboratory.parts_of(made)
    kept = made.train_y.sum(1) > 0
    np.testing.assert_array_equal(x, made.train_x[kept])
    np.testing.assert_allclose(y.sum(1), 1)
    for row, labels in zip(y, made.train_y[kept], strict=True):
        np.testing.assert_allclose(row, labels / labels.sum())
    left = 60 - len(x) - len(test_x)
    assert left >= 9 and f"{left} without labels left out" in laboratory.described(made)
    assert len(test_x) == len(test_y)


@pytest.mark.parametrize("part", ["training", "test"])
def test_a_part_without_labels_is_named_before_anything_is_fitted(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = split()
    labels = made.train_y if part == "training" else made.test_y
    labels[2:] = 0  # a view of the set
    count = int((labels.sum(1) > 0).sum())
    monkeypatch.setattr(laboratory, "multilabel", lambda data, names: [made])
    said = (
        f"the {part} part of made must have at least 3 examples with labels, has {count} among {len(labels)}"
    )
    with pytest.raises(InputError, match=said):
        laboratory.measure(replace(SMALL, processes=2), Workspace(tmp_path / "run", {}), lambda *_: None)


def test_the_penalty_is_chosen_on_held_out_examples_and_the_model_fitted_again() -> None:
    found = laboratory.fit_all(split(), SMALL, seed=3)
    (x, y), (test_x, test_y) = laboratory.parts_of(split())
    scaler = StandardScaler().fit(x)
    x, test_x = scaler.transform(x), scaler.transform(test_x)
    order = np.random.default_rng(3).permutation(len(x))
    held, rest = order[: round(len(x) / 4)], order[round(len(x) / 4) :]
    for name, (divergence, loss) in LOSSES.items():

        def fitted(
            penalty: float, rows: np.ndarray, divergence: str = divergence, loss: str = loss
        ) -> ProportionRegressor:
            return ProportionRegressor(divergence, loss=loss, alpha=penalty).fit(x[rows], y[rows])

        errors = [((fitted(a, rest).predict(x[held]) - y[held]) ** 2).mean() for a in SMALL.penalties]
        best = SMALL.penalties[int(np.argmin(errors))]
        expected = ((fitted(best, np.arange(len(x))).predict(test_x) - test_y) ** 2).mean()
        assert found[name]["penalty"] == best
        assert found[name]["mse"] == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(found[name]["held_out_mse"], errors, rtol=1e-3)
        if "twins" in found[name]:
            model = fitted(best, np.arange(len(x)))
            scores = test_x @ model.coef_.T + model.intercept_
            loss = fenchel_young_loss(torch.from_numpy(scores), torch.from_numpy(test_y), divergence)
            assert found[name]["twins"]["fenchel_young"] == pytest.approx(loss.item(), rel=1e-3)
    assert found[LOGISTIC]["zeros"] == 0 <= found[SPARSEMAX]["zeros"]


def test_twins_are_compared_at_the_same_scores() -> None:
    scores, y = torch.randn(30, 4).double(), torch.rand(30, 4).double().softmax(-1)
    for name in (LOGISTIC, SPARSEMAX):
        found = laboratory.compare(name, scores, y)
        assert found["share_below"] == 1 and found["largest_excess"] < 0
        assert 0 < found["fitzpatrick"] < found["fenchel_young"]


# -- The verdicts.


def results_of(seeds: int = 5) -> dict[str, Any]:
    """Figures in which every claim holds."""

    def figures(name: str, seed: int) -> dict[str, Any]:
        mse = {LOGISTIC: 0.050, F_LOGISTIC: 0.052, SPARSEMAX: 0.053, F_SPARSEMAX: 0.051}[name]
        twins = {"fenchel_young": 0.4, "fitzpatrick": 0.2, "largest_excess": 0.0, "share_below": 1.0}
        own = {"twins": twins} if name in (LOGISTIC, SPARSEMAX) else {}
        return {
            "mse": mse * (1 + 0.02 * seed) + 1e-4 * ((seed + len(name)) % 3),
            "penalty": 0.1,
            "held_out_mse": [0.06, 0.05],
            "iterations": 9,
            "zeros": 0.1,
            **own,
        }

    def sets(seed: int) -> dict[str, Any]:
        return {name: {loss: figures(loss, seed) for loss in LOSSES} for name in ("one", "two")}

    return {
        "sets": {"one": "", "two": ""},
        "settings": {"penalties": "0.1, 0.001"},
        "published": sets(0),
        "seeds": [{"seed": seed, "sets": sets(seed)} for seed in range(seeds)],
    }


def verdicts_of(results: dict[str, Any]) -> dict[str, str]:
    return {verdict.claim: verdict.verdict for verdict in fitzpatrick.claim(results)}


def test_every_claim_can_be_supported() -> None:
    assert set(verdicts_of(results_of()).values()) == {"supported"}


@pytest.mark.parametrize(
    ("loss", "factor", "refuted"), [(F_SPARSEMAX, 1.1, "sparsemax"), (F_LOGISTIC, 1.1, "logistic")]
)
def test_one_set_refutes_a_claim_on_errors(loss: str, factor: float, refuted: str) -> None:
    results = results_of()
    for run in results["seeds"]:
        run["sets"]["two"][loss]["mse"] *= factor
    expected = dict.fromkeys(("tighter", "sparsemax", "logistic"), "supported") | {refuted: "not supported"}
    assert verdicts_of(results) == expected
    (figures,) = (v.figures for v in fitzpatrick.claim(results) if v.claim == refuted)
    assert "two: " in figures and figures.count("(refuted)") == 1


def test_one_example_above_its_bound_is_seen() -> None:
    results = results_of()
    results["seeds"][2]["sets"]["one"][SPARSEMAX]["twins"]["share_below"] = 0.999
    assert verdicts_of(results)["tighter"] != "supported"


def test_one_split_decides_nothing() -> None:
    assert set(verdicts_of(results_of(1)).values()) == {"inconclusive"}


# -- The page and the run.


def test_the_page_shows_both_splits_and_the_losses_against_the_margin() -> None:
    results = results_of()
    page = fitzpatrick.report(results, fitzpatrick.claim(results))
    rows = {row["name"]: row for row in page["comparison"]["rows"]}
    assert rows[F_SPARSEMAX]["values"]["one, published"] == [results["published"]["one"][F_SPARSEMAX]["mse"]]
    assert len(rows[LOGISTIC]["values"]["two, random"]) == 5
    curves = {series["name"]: np.array(series["y"]) for series in page["panels"][0]["series"]}
    for bound, loss in ((LOGISTIC, F_LOGISTIC), (SPARSEMAX, F_SPARSEMAX)):
        assert (curves[loss] <= curves[bound] + 1e-12).all() and (curves[loss] >= 0).all()
    assert curves[LOGISTIC][80] == pytest.approx(np.log(2)) and curves[SPARSEMAX][80] == pytest.approx(0.25)


def test_scales() -> None:
    assert recipe("small").seeds >= 5 and recipe("large").seeds > recipe("medium").seeds
    assert set(recipe("small").penalties) == {10.0**k for k in range(-4, 3)}


def test_a_whole_run_leaves_a_record_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitzpatrick, "recipe", lambda scale: SMALL)
    monkeypatch.setattr(laboratory, "multilabel", lambda data, names: [split(), split()._replace(name="b")])
    page = runner.run(ReproduceConfig("fitzpatrick", out=str(tmp_path)))
    text = page.read_text(encoding="utf-8")
    assert "Fitzpatrick losses for label proportions" in text and F_SPARSEMAX in text
    (line,) = (tmp_path / "fitzpatrick.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert [each["claim"] for each in found["verdicts"]] == ["tighter", "sparsemax", "logistic"]
    results = found["results"]
    assert set(results["sets"]) == {"made", "b"} and len(results["seeds"]) == 2
    # The published split is not one of the random ones, and those differ.
    errors = [run["sets"]["made"][LOGISTIC]["mse"] for run in results["seeds"]]
    errors.append(results["published"]["made"][LOGISTIC]["mse"])
    assert len(set(errors)) == 3
    assert fitzpatrick.claim(results)[0].figures.startswith("largest difference ")
