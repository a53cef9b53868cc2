"""Every objective is its formula at the positions that are under loss, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from training.tiny import llama

import fenchel
from fenchel import InputError
from fenchel.training.configs import DistillConfig, SFTConfig
from fenchel.training.objectives import Distillation, SupervisedFineTuning
from fenchel.training.packing import Collator
from fenchel.training.teachers.local import LocalTeacher

VOCABULARY = 40
# f(u) written out here, so that the table of the library is not its own witness.
F = {
    "kl": lambda u: u * u.log(),
    "reverse-kl": lambda u: u - 1 - u.log(),
    "js": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "hellinger": lambda u: (u.sqrt() - 1) ** 2,
    "chi2": lambda u: (u - 1) ** 2,
    "alpha:1.5": lambda u: (u**1.5 - 1 - 1.5 * (u - 1)) / 0.75,
}


def batch_of(*, prompt: int = 0) -> dict[str, Tensor]:
    """Three rows of unlike lengths, the first `prompt` tokens of each without loss."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in (9, 4, 6):
        ids = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return Collator(pad_token_id=0)(rows)


def sft(**settings: Any) -> SupervisedFineTuning:
    return SupervisedFineTuning(SFTConfig(**settings))


def predictions(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and targets under loss, picked out token by token."""
    full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logits, targets = [], []
    for row, labels in zip(full, batch["labels"], strict=True):
        for position in range(1, len(labels)):
            if labels[position] != -100:
                logits.append(row[position - 1])
                targets.append(labels[position])
    return torch.stack(logits), torch.stack(targets)


@pytest.fixture
def student() -> Any:
    return llama(VOCABULARY, seed=1)


@pytest.fixture
def teacher() -> Any:
    model = llama(VOCABULARY, hidden=32, seed=2)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform, or every divergence looks alike
    return model


class TestSupervisedFineTuning:
    @pytest.mark.parametrize("prompt", [0, 3])
    def test_kl_is_the_loss_of_transformers(self, student: Any, prompt: int) -> None:
        batch = batch_of(prompt=prompt)
        losses = sft()(student, batch)
        assert losses.shape == (sum(length - max(prompt, 1) for length in (9, 4, 6)),)
        torch.testing.assert_close(losses.mean(), student(**batch).loss, atol=1e-5, rtol=0)

    def test_gradient_is_that_of_transformers(self, student: Any) -> None:
        batch = batch_of(prompt=2)
        parameters = list(student.parameters())
        mine = torch.autograd.grad(sft()(student, batch).mean(), parameters)
        theirs = torch.autograd.grad(student(**batch).loss, parameters)
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize(
        "settings",
        [
            {"divergence": "alpha:1.5"},
            {"divergence": "js", "temperature": 0.5},
            {"divergence": "alpha:1.5", "label_smoothing": 0.1},
        ],
    )
    def test_is_the_fenchel_young_loss(self, student: Any, settings: dict[str, Any]) -> None:
        batch = batch_of(prompt=2)
        logits, targets = predictions(student, batch)
        expected = fenchel.fenchel_young_loss(logits, targets, **settings, reduction="none")
        torch.testing.assert_close(sft(**settings)(student, batch), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("label", [VOCABULARY, 10**8, -5])
    def test_labels_that_the_head_does_not_know(self, student: Any, label: int) -> None:
        batch = batch_of()
        batch["labels"][0, 2] = label
        with pytest.raises(InputError, match=f"target {label} is not a class: logits have {VOCABULARY}"):
            sft()(student, batch)

    def test_half_precision_logits_are_scored_in_float32(self, student: Any) -> None:
        assert sft()(student.to(torch.bfloat16), batch_of()).dtype == torch.float32


class TestDistillation:
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    @pytest.mark.parametrize("name", F)
    def test_divergence_is_of_teacher_from_student(
        self, student: Any, teacher: Any, name: str, temperature: float
    ) -> None:
        batch = batch_of(prompt=2)
        p = (predictions(teacher, batch)[0].double() / temperature).softmax(-1)
        q = (predictions(student, batch)[0].double() / temperature).softmax(-1)
        expected = (q * F[name](p / q)).sum(-1)
        config = DistillConfig(divergence=name, temperature=temperature)
        losses = Distillation(LocalTeacher(teacher), config)(student, batch)
        assert expected.min() > 0.01
        torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_fenchel_young_has_the_teacher_as_target(
        self, student: Any, teacher: Any, temperature: float
    ) -> None:
        batch = batch_of()
        config = DistillConfig(divergence="alpha:1.5", loss="fenchel-young", temperature=temperature)
        target = (predictions(teacher, batch)[0] / temperature).softmax(-1)
        expected = fenchel.fenchel_young_loss(
            predictions(student, batch)[0],
            target,
            "alpha:1.5",
            temperature=temperature,
            reduction="none",
        )
        losses = Distillation(LocalTeacher(teacher), config)(student, batch)
        torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("loss", "hard"), [("divergence", {}), ("fenchel-young", {"divergence": "alpha:1.5"})]
    )
    def test_hard_labels_are_mixed_in(
        self, student: Any, teacher: Any, loss: str, hard: dict[str, str]
    ) -> None:
        batch = batch_of(prompt=2)

        def losses(weight: float) -> Tensor:
            config = DistillConfig(divergence="alpha:1.5", loss=loss, hard_label_weight=weight)
            return Distillation(LocalTeacher(teacher), config)(student, batch)

        torch.testing.assert_close(losses(1.0), sft(**hard)(student, batch))
        torch.testing.assert_close(losses(0.3), 0.7 * losses(0.0) + 0.3 * losses(1.0))

    def test_hard_labels_alone_do_not_run_the_teacher(self, student: Any) -> None:
        class Absent:
            vocabulary = VOCABULARY

            def __call__(self, batch: Any, mask: Any) -> Any:
                raise AssertionError("the teacher ran")

        Distillation(Absent(), DistillConfig(hard_label_weight=1.0))(student, batch_of())

    @pytest.mark.parametrize("loss", ["divergence", "fenchel-young"])
    def test_no_gradient_reaches_the_teacher(self, student: Any, teacher: Any, loss: str) -> None:
        config = DistillConfig(divergence="js", loss=loss)
        Distillation(LocalTeacher(teacher), config)(student, batch_of()).mean().backward()
        assert all(p.grad is None for p in teacher.parameters())
        assert any(p.grad is not None and p.grad.abs().max() > 1e-4 for p in student.parameters())

    @pytest.mark.parametrize("name", F)
    def test_a_student_equal_to_its_teacher_has_nothing_to_learn(self, teacher: Any, name: str) -> None:
        student = llama(VOCABULARY, hidden=32)
        student.load_state_dict(teacher.state_dict())
        losses = Distillation(LocalTeacher(teacher), DistillConfig(divergence=name))(student, batch_of())
        losses.mean().backward()
        assert losses.abs().max() < 1e-5
        assert max(p.grad.abs().max() for p in student.parameters()) < 1e-5


@pytest.mark.parametrize(("divergence", "said"), [("reverse-kl", True), ("alpha:1.5", False)])
def test_infinite_divergences_of_hard_labels_are_told(
    divergence: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="fenchel"):
        SupervisedFineTuning(SFTConfig(divergence=divergence))
    assert ("f(0) is infinite for reverse-kl" in caplog.text) == said
