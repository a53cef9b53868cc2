from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training.tiny import llama

from fenchel import distillation_loss, fenchel_young_loss
from fenchel.errors import InputError
from fenchel.reproductions import f_divergence_losses, runner
from fenchel.reproductions.configs import ReproduceConfig
from fenchel.reproductions.f_divergence_losses import data, decoding, laboratory, page, verdicts
from fenchel.reproductions.f_divergence_losses.recipe import (
    DIVERGENCES,
    FAVOURITE,
    FENCHEL_YOUNG,
    FINE_TUNING,
    HARD,
    KL,
    MATCHED,
    PRETRAINING,
    SMALL,
    STAGES,
    SWITCHED,
)
from fenchel.reproductions.workspace import Workspace

MODEL = "llama:hidden_size=16,intermediate_size=16,num_hidden_layers=1,num_attention_heads=2"
TINY = replace(
    SMALL,
    teacher=MODEL,
    student=MODEL,
    teacher_steps=3,
    pretraining_steps=4,
    fine_tuning_steps=2,
    distillation_steps=2,
    batch=4,
    held_out=8,
    curve_texts=4,
    samples=6,
    max_new_tokens=6,
    curve_points=2,
    processes=1,
    first_seed=7,
    seeds=1,
)
FEW = (KL, FAVOURITE)

# -- The data.


def test_names_are_those_of_the_library() -> None:
    found = data.names()
    assert found == sorted(set(found)) and len(found) > data.LEAST_NAMES
    assert {"JSONDecoder", "getdefaultencoding", "ensure_ascii"} <= set(found)
    assert all(3 <= len(name) <= 24 and set(name) <= set(data.ALPHABET) for name in found)


def test_a_python_without_its_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    (tmp_path / "one.py").write_text("a_name = 1")
    with pytest.raises(InputError, match="has 1 names, and the experiment needs 8000"):
        data.names()


def test_texts_pairs_and_held_out_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"Name{i}" for i in range(400)] + [f"get_the_{i}" for i in range(400)] + ["A_B"]
    monkeypatch.setattr(data, "names", lambda: names)
    found = data.load(SMALL)
    assert sorted(found.texts + found.held_out_texts) == sorted(("", f"Name{i}") for i in range(400))
    assert sorted(found.pairs + found.held_out_pairs) == sorted(("get_", f"the_{i}") for i in range(400))
    for train, held_out in (found[:2], found[2:]):
        assert not set(train) & set(held_out)
        assert 0.12 < len(held_out) / 400 < 0.28
    few = data.load(replace(SMALL, held_out=5))
    assert few.held_out_texts == found.held_out_texts[:5] and few.texts == found.texts


def test_words() -> None:
    assert data.words("getHTTPResponse_of2lines is_it") == ["get", "http", "response", "lines"]


# -- The metrics.


def test_ngram_divergence_in_closed_form() -> None:
    assert decoding.ngram_divergence(["ab", "cd"], ["cd", "ab"]) == 0.0
    # Unigrams with the end mark: (1/2, 0, 1/2) and (0, 1/2, 1/2).
    half = decoding.ngram_divergence(["a"], ["b"], n=1)
    assert half == pytest.approx(0.5 * math.log(2), abs=1e-12)
    # p = (2/3, 1/3), q = (1/2, 1/2), over a and the end.
    expected = 0.0
    for p, q in ((2 / 3, 1 / 2), (1 / 3, 1 / 2)):
        m = (p + q) / 2
        expected += 0.5 * (p * math.log(p / m) + q * math.log(q / m))
    assert decoding.ngram_divergence(["aa"], ["a"], n=1) == pytest.approx(expected, abs=1e-12)
    assert decoding.ngram_divergence(["a"] * 9 + ["b"], ["a", "b"]) > decoding.ngram_divergence(
        ["a", "a", "b"], ["a", "b"]
    )


def test_real_words() -> None:
    assert decoding.real_words(["readLines", "read_xyz", "??"], {"read", "lines"}) == 3 / 5


class Fixed(torch.nn.Module):
    """A model whose next-token scores depend on the last token alone."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return type("Output", (), {"logits": self.scores[input_ids]})()


class Padding:
    pad_token_id = 0


def rows_with(transitions: torch.Tensor, count: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        tokens = [0]
        for _ in range(12):
            tokens.append(int(torch.multinomial(transitions[tokens[-1]], 1, generator=generator)))
        rows.append({"input_ids": tokens, "labels": [-100, *tokens[1:]]})
    return rows


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_fitted_temperature_undoes_a_scaling(temperature: float) -> None:
    log_p = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).mul(2).log_softmax(-1)
    rows = rows_with(log_p.exp(), 400)
    found = decoding.fitted_temperature(Fixed(log_p * temperature), rows, Padding)
    assert found == pytest.approx(temperature, rel=1e-6)


def test_accuracy_and_surprise_are_means_over_tokens() -> None:
    model = llama(9, hidden=16, layers=1)
    rows = [
        {"input_ids": [0, 3, 5, 8], "labels": [-100, 3, 5, 8]},
        {"input_ids": [0, 7], "labels": [-100, 7]},
        {"input_ids": [0, 2, 4], "labels": [-100, -100, 4]},
    ]
    right, nats = [], []
    for row in rows:
        log_p = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for i, label in enumerate(row["labels"][1:]):
            if label != -100:
                right.append(float(log_p[i].argmax() == label))
                nats.append(-log_p[i, label].item())
    for size in (1, 2, 3):
        assert decoding.accuracy(model, rows, Padding, size) == sum(right) / len(right)
        assert decoding.surprise(model, rows, Padding, size) == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_generalized_kl_is_kl() -> None:
    """Why the experiment leaves it out."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    target = torch.arange(5)
    for loss in (
        lambda name: fenchel_young_loss(student, target, name, reduction="none"),
        lambda name: fenchel_young_loss(student, teacher.softmax(-1), name, reduction="none"),
        lambda name: distillation_loss(student, teacher, name, reduction="none"),
    ):
        one, other = loss("kl"), loss("generalized-kl")
        assert torch.allclose(one - other, (one - other)[0], atol=1e-12)
        gradients = [torch.autograd.grad(each.sum(), student)[0] for each in (one, other)]
        assert torch.allclose(*gradients, atol=1e-12)


# -- The verdicts.


def results_of(change: Callable[[str, str, int], float | None] = lambda *_: None) -> dict[str, Any]:
    """Figures in which every claim holds, but for the accuracies that `change` says."""

    def figures(stage: str, name: str, seed: int) -> dict[str, Any]:
        accuracy = {KL: 0.40, FAVOURITE: 0.42, "alpha:1.1": 0.43}.get(name, 0.30)
        accuracy -= 0.05 * (stage == HARD) + 0.03 * (stage == MATCHED and name == FAVOURITE)
        accuracy += 0.001 * ((3 * seed + len(name) + len(stage)) % 4)
        changed = change(stage, name, seed)
        ways = {"matching": 0.1, "softmax": 0.5, "softmax, fitted temperature": 0.2}
        decoded = {
            way: {"ngram_divergence": value * (1 + 0.01 * seed), "real_words": 0.5, "samples": ["a", "b"]}
            for way, value in ways.items()
        }
        return {
            "accuracy": accuracy if changed is None else changed,
            "ruled_out": 0.0,
            "curve": [[0, 0.1], [4, 0.2]],
            "decoding": decoded,
        }

    def stages(seed: int) -> dict[str, Any]:
        found = {stage: {name: figures(stage, name, seed) for name in DIVERGENCES} for stage in STAGES}
        return found | {HARD: {KL: figures(HARD, KL, seed)}}

    return {
        "teacher": {"accuracy": 0.5, "samples": ["a", "b"]},
        "setup": {},
        "seeds": [{"seed": seed, "stages": stages(seed)} for seed in range(4)],
    }


def verdicts_of(results: dict[str, Any]) -> dict[str, str]:
    return {verdict.claim: verdict.verdict for verdict in f_divergence_losses.claim(results)}


def test_clear_figures_support_every_claim() -> None:
    results = results_of()
    assert verdicts_of(results) == {claim.id: "supported" for claim in verdicts.CLAIMS}
    assert verdicts.rank(results, PRETRAINING, FAVOURITE) == 2
    assert verdicts.rank(results, PRETRAINING, "alpha:1.1") == 1


@pytest.mark.parametrize(
    ("claim", "stage", "name", "accuracy"),
    [
        ("pretraining", PRETRAINING, FAVOURITE, 0.39),
        ("fine-tuning", FINE_TUNING, FAVOURITE, 0.39),
        ("switching", SWITCHED, FAVOURITE, 0.39),
        ("distillation", FENCHEL_YOUNG, KL, 0.45),
        ("works-well", FINE_TUNING, FAVOURITE, 0.20),
        ("distils", HARD, KL, 0.41),
        ("fenchel-young", MATCHED, FAVOURITE, 0.44),
    ],
)
def test_each_verdict_turns_with_its_figures(claim: str, stage: str, name: str, accuracy: float) -> None:
    def change(at: str, who: str, seed: int) -> float | None:
        return accuracy + 0.001 * (seed % 2) if (at, who) == (stage, name) else None

    found = verdicts_of(results_of(change))
    assert found[claim] == "not supported"
    turned = {each for each, verdict in found.items() if verdict != "supported"}
    # Below the median of the others is below cross-entropy as well.
    assert turned == {claim} | ({"fine-tuning"} if claim == "works-well" else set())


def test_works_well_is_against_the_median_of_the_others() -> None:
    results = results_of(lambda stage, name, seed: 0.3 + 0.01 * DIVERGENCES.index(name))
    verdict = next(each for each in f_divergence_losses.claim(results) if each.claim == "works-well")
    # Places 1 to 8 and 10 of ten: the median is the fifth, alpha:1.5 is the ninth.
    assert DIVERGENCES.index(FAVOURITE) == 8 and verdict.estimate == pytest.approx(0.04)


@pytest.mark.parametrize(("claim", "way"), [("decoding", 1), ("decoding-fitted", 2)])
def test_the_verdict_on_decoding_turns(claim: str, way: int) -> None:
    results = results_of()
    for run in results["seeds"]:
        found = run["stages"][PRETRAINING][FAVOURITE]["decoding"]
        name = ("matching", "softmax", "softmax, fitted temperature")[way]
        found[name]["ngram_divergence"] = 0.05 + 0.002 * run["seed"]
    assert [each for each, verdict in verdicts_of(results).items() if verdict != "supported"] == [claim]


def test_noise_and_single_seeds_decide_nothing() -> None:
    def change(stage: str, name: str, seed: int) -> float | None:
        noise = 0.01 * (-1) ** (seed // 2 + (name == KL))
        return 0.4 + noise if stage == PRETRAINING and name in (KL, FAVOURITE) else None

    assert verdicts_of(results_of(change))["pretraining"] == "inconclusive"
    results = results_of()
    results["seeds"] = results["seeds"][:1]
    assert set(verdicts_of(results).values()) == {"inconclusive"}


# -- The experiment.


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two divergences and a small library."""
    _patch(monkeypatch)


def _patch(patch: pytest.MonkeyPatch) -> None:
    for module in (laboratory, verdicts, page):
        patch.setattr(module, "DIVERGENCES", FEW)
    words = ("get", "set", "read", "line", "name", "file", "text", "close")
    names = [f"{a}{b}" for a in words for b in words] + [f"{a}_{b}" for a in words for b in words]
    patch.setattr(data, "names", lambda: sorted(names))
    patch.setattr(f_divergence_losses, "recipe", lambda scale: TINY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole miniature run."""
    out = tmp_path_factory.mktemp("losses")
    with pytest.MonkeyPatch.context() as patch:
        _patch(patch)
        runner.run(ReproduceConfig(name="f-divergence-losses", out=str(out)))
    return out


def results_in(out: Path) -> dict[str, Any]:
    lines = (out / "f-divergence-losses.jsonl").read_text().splitlines()
    run: dict[str, Any] = json.loads(lines[-1])
    return run


def test_a_run_leaves_record_verdicts_and_report(finished: Path) -> None:
    run = results_in(finished)
    assert [verdict["claim"] for verdict in run["verdicts"]] == [claim.id for claim in verdicts.CLAIMS]
    (seed,) = run["results"]["seeds"]
    assert {stage: tuple(seed["stages"][stage]) for stage in STAGES} == dict.fromkeys(STAGES, FEW)
    pretrained = seed["stages"][PRETRAINING]
    assert [x for x, _ in pretrained[KL]["curve"]] == [0, 2, 4]
    assert len({tuple(pretrained[name]["curve"][0]) for name in FEW}) == 1
    html = (finished / "f-divergence-losses-small" / "report.html").read_text()
    assert "<svg" in html and all(name in html for name in FEW)


def test_losses_of_one_name_are_the_same_at_both_stages_of_kl(finished: Path) -> None:
    """For kl the Fenchel-Young loss is D_f, and both begin alike: so they end alike."""
    stages = results_in(finished)["results"]["seeds"][0]["stages"]
    for one, other in ((MATCHED, FENCHEL_YOUNG), (FINE_TUNING, SWITCHED)):
        for key, value in stages[one][KL].items():
            assert stages[other][KL][key] == pytest.approx(value, rel=1e-4)
        assert stages[one][FAVOURITE] != stages[other][FAVOURITE]


@pytest.mark.usefixtures("few")
def test_an_interrupted_run_goes_on_to_the_same_figures(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "f-divergence-losses-small", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    workspace = Workspace(tmp_path / "run", json.loads((tmp_path / "run" / "run.json").read_text()))
    missing = [(FINE_TUNING, FAVOURITE), (SWITCHED, FAVOURITE), (MATCHED, FAVOURITE)]
    for stage, name in missing:
        shutil.rmtree(workspace.path / laboratory.unit_of(7, stage, name))
    begun: list[str] = []
    begin = laboratory.begin

    def watched(model: str, *rest: Any) -> Any:
        begun.append(Path(model).name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return begin(model, *rest)

    monkeypatch.setattr(laboratory, "begin", watched)
    decoded: list[str] = []
    evaluate = laboratory.evaluate_model

    def evaluated(*arguments: Any, divergence: str, **options: Any) -> Any:
        decoded.append(divergence)
        return evaluate(*arguments, divergence=divergence, **options)

    monkeypatch.setattr(laboratory, "evaluate_model", evaluated)
    with pytest.raises(KeyboardInterrupt):
        laboratory.run_seed(TINY, workspace, 7)
    assert laboratory.run_seed(TINY, workspace, 7) == results_in(finished)["results"]["seeds"][0]
    # Fine-tuning goes on from what the same loss pretrained, the others from cross-entropy's.
    assert begun == ["alpha-1.5", "kl", "kl", "kl"]
    assert decoded == [FAVOURITE, FAVOURITE, KL]
