"""The trainings: one teacher, and for each seed a student of every loss at every stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from fenchel.diagnostics.text import distinct_n
from fenchel.reproductions.f_divergence_losses.data import ALPHABET, Data, load, words
from fenchel.reproductions.f_divergence_losses.decoding import (
    accuracy,
    fitted_temperature,
    ngram_divergence,
    real_words,
    surprise,
)
from fenchel.reproductions.f_divergence_losses.recipe import (
    DIVERGENCES,
    FINE_TUNING,
    HARD,
    KL,
    LOSSES,
    MATCHED,
    OWN_START,
    PRETRAINING,
    STAGES,
    SWITCHED,
    Recipe,
)
from fenchel.reproductions.trainings import Bench, begin, fixed
from fenchel.reproductions.units import Tell, kept, over_seeds, seeds_of
from fenchel.reproductions.workspace import Workspace
from fenchel.training.configs import DistillConfig, SFTConfig
from fenchel.training.evaluation import evaluate_model
from fenchel.training.fit import fit
from fenchel.training.objectives import Distillation, SupervisedFineTuning
from fenchel.training.packing import Collator
from fenchel.training.rollout import Row, row_of
from fenchel.training.sampling import complete, seed_of
from fenchel.training.teachers.local import LocalTeacher
from fenchel.training.trainer import Objective

FITTED = 512  # texts to fit a temperature on
SHOWN = 6
MATCHING, SOFTMAX, FITTED_SOFTMAX = "matching", "softmax", "softmax, fitted temperature"
KEPT = (
    "accuracy",
    "ruled_out",
    "support_size",
    "calibration_error",
    "js_teacher_student",
)


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Train and measure everything that an earlier run did not; returns all figures by seed."""
    seeds = seeds_of(recipe)
    costs = {"teacher": 2.0 * recipe.teacher_steps + 1}
    for seed in seeds:
        costs[unit_of(seed, HARD, KL)] = recipe.distillation_steps
        for divergence in DIVERGENCES:
            costs[unit_of(seed, PRETRAINING, divergence)] = recipe.pretraining_steps
            for stage in (FINE_TUNING, SWITCHED):
                costs[unit_of(seed, stage, divergence)] = recipe.fine_tuning_steps
            for loss in LOSSES:
                costs[unit_of(seed, loss, divergence)] = 1.5 * recipe.distillation_steps

    first = Laboratory(recipe, workspace).train_teacher
    teacher = over_seeds(recipe, workspace, progress, costs, first, run_seed)
    return {"teacher": teacher, "seeds": [run_seed(recipe, workspace, seed) for seed in seeds]}


def run_seed(recipe: Recipe, workspace: Workspace, seed: int) -> dict[str, Any]:
    """The figures of one seed: by stage, and within by divergence."""
    laboratory = Laboratory(recipe, workspace, seed)
    stages = {stage: {d: laboratory.train(stage, d) for d in DIVERGENCES} for stage in STAGES}
    return {"seed": seed, "stages": stages | {HARD: {KL: laboratory.train(HARD, KL)}}}


def unit_of(seed: int, stage: str, divergence: str) -> str:
    return f"seed-{seed}/{stage.lower().replace(' ', '-')}/{divergence.replace(':', '-')}"


class Laboratory(Bench[Recipe]):
    """The data, models and trainings of one seed."""

    alphabet = ALPHABET

    @cached_property
    def data(self) -> Data:
        return load(self.recipe)

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """The same as token rows, which begin and end with the end token."""
        parts = self.data._asdict().items()
        return {name: [self._row(*pair) for pair in part] for name, part in parts}

    @cached_property
    def known(self) -> set[str]:
        """The words of all training texts."""
        return {word for _, text in self.data.texts for word in words(text)}

    @cached_property
    def teacher(self) -> Any:
        return fixed(self.workspace.path / "teacher" if self.recipe.teacher_steps else self.recipe.teacher)

    def _row(self, prompt: str, completion: str) -> Row:
        ids = self.tokenizer([prompt, completion], add_special_tokens=False)["input_ids"]
        end, length = [self.tokenizer.eos_token_id], self.recipe.max_length
        return row_of(end + ids[0][:length], ids[1][:length] + end)

    # -- Trainings.

    def train_teacher(self) -> dict[str, Any]:
        """Pretrain the teacher by cross-entropy, unless it came trained; it judges samples as well."""
        recipe = self.recipe

        def work(path: Path) -> dict[str, Any]:
            if recipe.teacher_steps:
                model = begin(recipe.teacher, self.tokenizer_name, self.seed)
                steps, rate = recipe.teacher_steps, recipe.teacher_learning_rate
                self._fit(model, SupervisedFineTuning(SFTConfig()), self.rows["texts"], steps, rate)
                model.save_pretrained(path)
            else:
                model = fixed(recipe.teacher)
            return {
                "accuracy": self._accuracy(model, self.rows["held_out_texts"]),
                "samples": self._decoded(model, KL, 1.0)[:SHOWN],
            }

        return kept(self.workspace, "teacher", work)

    def train(self, stage: str, divergence: str) -> dict[str, Any]:
        """The figures of one student, trained unless it was."""
        unit = unit_of(self.seed, stage, divergence)
        if stage == PRETRAINING:
            return kept(self.workspace, unit, lambda path: self._pretrain(divergence, path))
        return kept(self.workspace, unit, lambda _: self._go_on(stage, divergence))

    def _pretrain(self, divergence: str, path: Path) -> dict[str, Any]:
        recipe = self.recipe
        student = begin(recipe.student, self.tokenizer_name, self.seed)
        curve: list[tuple[int, float]] = []
        points = recipe.curve_points

        def look(step: int) -> None:
            if step * points // recipe.pretraining_steps > (step - 1) * points // recipe.pretraining_steps:
                rows = self.rows["held_out_texts"][: recipe.curve_texts]
                curve.append((step, self._accuracy(student, rows)))

        look(0)
        objective = SupervisedFineTuning(SFTConfig(divergence=divergence))
        steps, rate = recipe.pretraining_steps, recipe.learning_rate
        self._fit(student, objective, self.rows["texts"], steps, rate, look)
        student.save_pretrained(path)
        return {
            "curve": curve,
            **self._figures(student, divergence, self.rows["held_out_texts"]),
            "decoding": self._decoding(student, divergence),
        }

    def _go_on(self, stage: str, divergence: str) -> dict[str, Any]:
        """Fine-tune or distil a pretrained student of the same seed."""
        recipe, rows = self.recipe, self.rows
        origin = divergence if stage in OWN_START else KL
        start = self.workspace.path / unit_of(self.seed, PRETRAINING, origin)
        student = begin(str(start), self.tokenizer_name, self.seed)
        objective: Objective
        if stage in LOSSES:
            config = DistillConfig(divergence=divergence, loss=LOSSES[stage])
            objective = Distillation(LocalTeacher(self.teacher), config)
        else:
            objective = SupervisedFineTuning(SFTConfig(divergence=divergence))
        tuning = stage in (FINE_TUNING, SWITCHED)
        train, held_out = (
            (rows["pairs"], rows["held_out_pairs"]) if tuning else (rows["texts"], rows["held_out_texts"])
        )
        steps = recipe.fine_tuning_steps if tuning else recipe.distillation_steps
        self._fit(student, objective, train, steps, recipe.second_learning_rate)
        # A student matched by D_f between softmax distributions is a softmax.
        decoded = KL if stage == MATCHED else divergence
        return self._figures(student, decoded, held_out)

    def _fit(
        self,
        model: Any,
        objective: Objective,
        rows: list[Row],
        steps: int,
        learning_rate: float,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        import datasets

        fit(
            model,
            objective,
            datasets.Dataset.from_list(rows),
            self.tokenizer,
            steps=steps,
            batch=self.recipe.batch,
            learning_rate=learning_rate,
            seed=self.seed,
            on_step=on_step,
        )

    # -- Figures.

    def _figures(self, model: Any, divergence: str, rows: list[Row]) -> dict[str, float]:
        """On held-out rows; JS is between the teacher and the model's f-softargmax."""
        batches: DataLoader[Any] = DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=self.recipe.evaluation_batch,
            collate_fn=Collator(self.tokenizer.pad_token_id),
        )
        found = evaluate_model(model, self.tokenizer, batches, divergence=divergence, teacher=self.teacher)
        return {name: found[name] for name in KEPT}

    def _accuracy(self, model: Any, rows: list[Row]) -> float:
        return accuracy(model, rows, self.tokenizer, self.recipe.evaluation_batch)

    def _decoding(self, model: Any, divergence: str) -> dict[str, dict[str, Any]]:
        """Samples by the operator of the loss, by softmax, and by softmax at the temperature that fits."""
        temperature = fitted_temperature(model, self.rows["texts"][:FITTED], self.tokenizer)
        ways = {MATCHING: (divergence, 1.0), SOFTMAX: (KL, 1.0), FITTED_SOFTMAX: (KL, temperature)}
        held_out = [text for _, text in self.data.held_out_texts]
        found: dict[str, dict[str, Any]] = {}
        for way, (operator, divided) in ways.items():
            samples = self._decoded(model, operator, divided)
            rows = [self._row("", text) for text in samples]
            found[way] = {
                "ngram_divergence": ngram_divergence(samples, held_out),
                "real_words": real_words(samples, self.known),
                "surprise": surprise(self.teacher, rows, self.tokenizer, self.recipe.evaluation_batch),
                "distinct": distinct_n([row["input_ids"] for row in rows], 4),
                "temperature": divided,
                "samples": samples[:SHOWN],
            }
        return found

    def _decoded(self, model: Any, divergence: str, temperature: float) -> list[str]:
        """Texts from nothing; the same random numbers for every model and way."""
        prompt = [self.tokenizer.eos_token_id]
        count = self.recipe.samples
        found = complete(
            model,
            [prompt] * count,
            [seed_of(prompt, i, self.seed) for i in range(count)],
            tokenizer=self.tokenizer,
            max_new_tokens=self.recipe.max_new_tokens,
            divergence=divergence,
            temperature=temperature,
            batch_size=self.recipe.evaluation_batch,
        )
        return [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found]
