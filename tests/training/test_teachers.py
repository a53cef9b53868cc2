"""Teachers in this process: local models, ensembles, and the student's own past."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.tiny import gpt2, llama, save_model, trainer_of
from transformers import PreTrainedTokenizerFast, TrainerCallback

from fenchel import InputError, TopK, distillation_loss
from fenchel.losses.linear import Scores
from fenchel.training.configs import DistillConfig, TeacherConfig
from fenchel.training.objectives import Distillation
from fenchel.training.objectives.predictions import scores_at, targets_of
from fenchel.training.packing import Collator
from fenchel.training.teachers.build import follow_student, teacher_of
from fenchel.training.teachers.ensemble import Ensemble
from fenchel.training.teachers.local import LocalTeacher, SelfTeacher

VOCABULARY = 40


def batch_of(prompt: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in (9, 4, 6):
        ids = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return Collator(pad_token_id=0)(rows)


def sharp(seed: int, vocabulary: int = VOCABULARY) -> Any:
    model = llama(vocabulary, seed=seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    return model


def log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """By the model's own logits, without anything of ours."""
    mask, _ = targets_of(batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1][mask].log_softmax(-1)


class Known:
    """A teacher that knows k classes of a model."""

    temperature = 1.0

    def __init__(self, model: Any, k: int) -> None:
        self.model, self.k, self.vocabulary = model, k, VOCABULARY

    def __call__(self, batch: dict[str, Tensor], mask: Tensor) -> TopK:
        return TopK.of(log_probs(self.model, batch), self.k)


class TestScores:
    @pytest.mark.parametrize("make", [llama, gpt2])
    def test_are_the_models_own_logits(self, make: Any) -> None:
        model, batch = make(VOCABULARY), batch_of()
        scores = scores_at(model, batch, targets_of(batch)[0])
        assert scores.weight is not None  # not multiplied out
        torch.testing.assert_close(scores.logits().log_softmax(-1), log_probs(model, batch))

    def test_of_a_head_that_is_not_linear_are_its_logits(self) -> None:
        model, batch = llama(VOCABULARY), batch_of()
        plain = model.forward

        def doubled(*arguments: Any, logits_to_keep: int = 0, **options: Any) -> Any:
            output = plain(*arguments, logits_to_keep=logits_to_keep, **options)
            output.logits = 2 * output.logits
            return output

        model.forward = doubled
        scores = scores_at(model, batch, targets_of(batch)[0])
        assert scores.weight is None
        torch.testing.assert_close(scores.logits().log_softmax(-1), log_probs(model, batch))

    def test_of_capped_logits_are_its_logits(self) -> None:
        """A cap hardly shows while logits are small, so the configuration is asked."""
        model, batch = llama(VOCABULARY), batch_of()
        model.config.final_logit_softcapping = 30.0
        assert scores_at(model, batch, targets_of(batch)[0]).weight is None

    def test_gradients_pass_the_head(self) -> None:
        model, batch = llama(VOCABULARY).train(), batch_of()
        mask, _ = targets_of(batch)
        parameters = list(model.parameters())
        mine = torch.autograd.grad(scores_at(model, batch, mask).logits().square().mean(), parameters)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        theirs = torch.autograd.grad(logits[:, :-1][mask].square().mean(), parameters)
        torch.testing.assert_close(mine, theirs)


class TestEnsemble:
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_mean_of_probabilities(self, temperature: float) -> None:
        models, batch = [sharp(1), sharp(2)], batch_of()
        mask, _ = targets_of(batch)
        mixed = Ensemble([LocalTeacher(m) for m in models], [1.0, 3.0], temperature=temperature)(batch, mask)
        first, second = ((log_probs(m, batch) / temperature).softmax(-1) for m in models)
        received = (mixed.logits() / temperature).softmax(-1)
        torch.testing.assert_close(received, 0.25 * first + 0.75 * second)
        torch.testing.assert_close(mixed.rows(slice(2, 5)).logits(), mixed.logits()[2:5])

    def test_mean_of_logits(self) -> None:
        models, batch = [sharp(1), sharp(2)], batch_of()
        mixed = Ensemble([LocalTeacher(m) for m in models], mixture="logits")(batch, targets_of(batch)[0])
        geometric = (log_probs(models[0], batch) + log_probs(models[1], batch)) / 2
        torch.testing.assert_close(mixed.logits().log_softmax(-1), geometric.log_softmax(-1))

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
    def test_of_truncated_teachers_is_exact_where_all_know(self, order: tuple[int, ...]) -> None:
        models, batch = [sharp(1), sharp(2), sharp(3)], batch_of()
        members = [LocalTeacher(models[0]), Known(models[1], 20), Known(models[2], 25)]
        weights = [0.2, 0.3, 0.5]
        ensemble = Ensemble([members[i] for i in order], [weights[i] for i in order])
        answer = ensemble(batch, targets_of(batch)[0])
        mixture = sum(w * log_probs(m, batch).exp() for w, m in zip(weights, models, strict=True))
        present = answer.indices >= 0
        assert 0 < present.sum() < present.numel()
        known = mixture.gather(-1, answer.indices.clamp_min(0))
        torch.testing.assert_close(answer.log_probs.exp(), torch.where(present, known, 0.0))
        everything = answer.log_probs.exp().sum(-1) + answer.log_tail.exp()
        torch.testing.assert_close(everything, torch.ones_like(everything))
        both = [
            set(log_probs(m, batch)[0].topk(k).indices.tolist())
            for m, k in ((models[1], 20), (models[2], 25))
        ]
        assert set(answer.indices[0][present[0]].tolist()) == both[0] & both[1]

    def test_bad_input(self) -> None:
        batch = batch_of()
        known = Known(sharp(1), 5)
        with pytest.raises(InputError, match="mean of logits needs whole distributions"):
            Ensemble([LocalTeacher(sharp(2)), known], mixture="logits")(batch, targets_of(batch)[0])
        with pytest.raises(InputError, match="expects 2 positive weights"):
            Ensemble([known, known], [1.0])
        with pytest.raises(InputError, match=r"known at temperature 1 only.*at 2"):
            Ensemble([known, known], temperature=2.0)


class TestSelfTeacher:
    def test_moving_average(self, tmp_path: Path) -> None:
        rows = [{"input_ids": [2, 3, 4, 5], "labels": [2, 3, 4, 5]}] * 4
        model = llama(VOCABULARY)
        expected = {name: p.detach().clone() for name, p in model.named_parameters()}
        teacher = self.teacher(model, self_teacher="ema", ema_decay=0.75)
        objective = Distillation(teacher, DistillConfig(hard_label_weight=0.5))
        trainer = trainer_of(
            tmp_path, model, objective, rows, Collator(0), max_steps=3, per_device_train_batch_size=4
        )
        follow_student(trainer, teacher)
        seen = []
        trainer.add_callback(_Seen(seen))
        trainer.train()
        for weights in seen:
            for name in expected:
                expected[name] = 0.75 * expected[name] + 0.25 * weights[name]
        assert len(seen) == 3
        for name, parameter in teacher._teacher.model.named_parameters():
            torch.testing.assert_close(parameter, expected[name])
        assert trainer.stateful == {"self_teacher": teacher}

    def test_of_the_last_epoch(self, tmp_path: Path) -> None:
        rows = [{"input_ids": [2, 3, 4, 5], "labels": [2, 3, 4, 5]}] * 4
        model = llama(VOCABULARY)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        teacher = self.teacher(model, self_teacher="epoch")
        objective = Distillation(teacher, DistillConfig(loss="progressive"))
        trainer = trainer_of(
            tmp_path, model, objective, rows, Collator(0), max_steps=3, per_device_train_batch_size=2
        )
        follow_student(trainer, teacher)
        seen, taught = [], []
        trainer.add_callback(_Seen(seen))
        trainer.add_callback(_Seen(taught, teacher._teacher.model))
        trainer.train()
        for name in start:
            assert torch.equal(taught[0][name], start[name])
            assert torch.equal(taught[2][name], seen[1][name])  # two steps are an epoch
        assert not torch.equal(taught[2]["lm_head.weight"], start["lm_head.weight"])
        assert objective.progress == pytest.approx(2 / 3)

    def test_state_comes_back(self) -> None:
        teacher = self.teacher(llama(VOCABULARY), self_teacher="ema", ema_decay=0.5)
        teacher.after_step(llama(VOCABULARY, seed=4))
        other = self.teacher(llama(VOCABULARY), self_teacher="ema", ema_decay=0.5)
        other.load_state_dict(teacher.state_dict())
        batch = batch_of()
        mask, _ = targets_of(batch)
        assert torch.equal(other(batch, mask).logits(), teacher(batch, mask).logits())

    @staticmethod
    def teacher(model: Any, **settings: Any) -> SelfTeacher:
        made = teacher_of(
            TeacherConfig(**settings),
            student=model,
            tokenizer=None,
            device=torch.device("cpu"),
            max_length=16,
            temperature=1.0,
        )
        assert isinstance(made, SelfTeacher)
        return made


class _Seen(TrainerCallback):
    """Keeps the weights after each step: the student's, or those of `model`."""

    def __init__(self, seen: list[Any], model: Any = None) -> None:
        self.seen, self.model = seen, model

    def on_step_end(self, *_: Any, **objects: Any) -> None:
        model = objects["model"] if self.model is None else self.model
        self.seen.append({name: p.detach().clone() for name, p in model.named_parameters()})


class TestBuilding:
    def build(self, tokenizer: Any, student: Any, **settings: Any) -> Any:
        return teacher_of(
            TeacherConfig(**settings),
            student=student,
            tokenizer=tokenizer,
            device=torch.device("cpu"),
            max_length=16,
            temperature=1.0,
        )

    def test_several_models_are_an_ensemble(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        names = [str(save_model(tmp_path / name, tokenizer, seed=i)) for i, name in enumerate("ab")]
        made = self.build(
            tokenizer, llama(len(tokenizer)), teacher_model_name_or_path=names, teacher_weights=[1.0, 3.0]
        )
        assert made.weights == [0.25, 0.75] and len(made.teachers) == 2
        assert self.build(tokenizer, llama(len(tokenizer))) is None

    def test_padding_rows_are_aligned_and_said(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
    ) -> None:
        size = len(tokenizer)
        padded = llama(size + 24, seed=3)
        padded.save_pretrained(tmp_path / "padded")
        tokenizer.save_pretrained(tmp_path / "padded")
        student = llama(size)
        with caplog.at_level("INFO", logger="fenchel"):
            teacher = self.build(tokenizer, student, teacher_model_name_or_path=[str(tmp_path / "padded")])
        assert teacher.vocabulary == size
        assert "24 rows" in caplog.text
        batch = batch_of()
        losses = Distillation(teacher, DistillConfig(), vocabulary=size)(student, batch)
        mask, _ = targets_of(batch)
        cut = padded(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[..., :size]
        own = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = distillation_loss(own[:, :-1][mask], cut[:, :-1][mask], reduction="none")
        torch.testing.assert_close(losses, expected)

    def test_other_vocabularies_are_refused(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        llama(len(tokenizer) - 10).save_pretrained(tmp_path / "small")
        with pytest.raises(InputError, match=rf"has {len(tokenizer)} tokens and the teacher's"):
            self.build(tokenizer, llama(len(tokenizer)), teacher_model_name_or_path=[str(tmp_path / "small")])

    def test_a_teacher_in_another_dtype(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        name = str(save_model(tmp_path / "a", tokenizer))
        teacher = self.build(
            tokenizer,
            llama(len(tokenizer)),
            teacher_model_name_or_path=[name],
            teacher_dtype="bfloat16",
            teacher_device="cpu",
        )
        assert {p.dtype for p in teacher.model.parameters()} == {torch.bfloat16}
        student = llama(len(tokenizer), seed=3)
        losses = Distillation(teacher, DistillConfig())(student, batch_of())
        full = self.build(tokenizer, student, teacher_model_name_or_path=[name])
        assert losses.dtype == torch.float32
        torch.testing.assert_close(
            losses, Distillation(full, DistillConfig())(student, batch_of()), atol=0.02, rtol=0.2
        )

    @pytest.mark.parametrize("bits", ["8bit", "4bit"])
    def test_quantised(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, bits: str) -> None:
        name = str(save_model(tmp_path / "a", tokenizer, hidden=64))
        student = llama(len(tokenizer), seed=3)
        whole = self.build(tokenizer, student, teacher_model_name_or_path=[name])
        small = self.build(
            tokenizer,
            student,
            teacher_model_name_or_path=[name],
            teacher_quantization=bits,
            teacher_device="cpu",
        )
        layer = small.model.model.layers[0].mlp.up_proj
        assert layer.weight.dtype in (torch.int8, torch.uint8)
        batch = batch_of()
        mask, _ = targets_of(batch)
        exact, rounded = (each(batch, mask).logits().softmax(-1) for each in (whole, small))
        assert not torch.equal(exact, rounded)
        torch.testing.assert_close(rounded, exact, atol=0.005, rtol=0.3)
        losses = Distillation(small, DistillConfig())(student, batch)
        torch.testing.assert_close(
            losses, Distillation(whole, DistillConfig())(student, batch), atol=0.02, rtol=0.2
        )

    def test_quantised_without_the_package(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        name = str(save_model(tmp_path / "a", tokenizer))
        with pytest.raises(InputError, match="needs the package bitsandbytes"):
            self.build(
                tokenizer,
                llama(len(tokenizer)),
                teacher_model_name_or_path=[name],
                teacher_quantization="8bit",
            )


class TestTruncation:
    def test_top_k_of_a_local_teacher(self) -> None:
        student, teacher, batch = llama(VOCABULARY, seed=7), sharp(1), batch_of()
        config = DistillConfig(divergence="js")
        here = Distillation(LocalTeacher(teacher), config, top_k=5)(student, batch)
        there = Distillation(Known(teacher, 5), config)(student, batch)
        torch.testing.assert_close(here, there)
        assert (here <= Distillation(LocalTeacher(teacher), config)(student, batch) + 1e-6).all()

    def test_needs_its_own_temperature(self) -> None:
        objective = Distillation(Known(sharp(1), 5), DistillConfig(temperature=2.0))
        with pytest.raises(InputError, match="at temperature 1, and the loss has 2"):
            objective(llama(VOCABULARY), batch_of())

    def test_losses_that_need_the_whole(self) -> None:
        with pytest.raises(InputError, match="'plackett-luce' needs whole distributions"):
            Distillation(Known(sharp(1), 5), DistillConfig(loss="plackett-luce"))(
                llama(VOCABULARY), batch_of()
            )
        with pytest.raises(InputError, match="leave out --top_k"):
            Distillation(LocalTeacher(sharp(1)), DistillConfig(loss="sinkhorn"), top_k=5)
        with pytest.raises(InputError, match="'divergence' needs a teacher"):
            Distillation(None, DistillConfig())

    def test_restricting_classes(self) -> None:
        scores = Scores(torch.randn(3, 9))
        whole = scores.logits().log_softmax(-1)
        cut = TopK.of(whole, 9).classes(6)
        dense = scores.classes(6).logits().log_softmax(-1)
        rebuilt = torch.full((3, 10), -torch.inf).scatter(
            -1, cut.indices.where(cut.indices >= 0, 9), cut.log_probs
        )
        torch.testing.assert_close(rebuilt[:, :6], dense)
