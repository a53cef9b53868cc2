"""The trainings: an oracle, and for each seed a teacher, the students' start and a student of every way."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fenchel.reproductions.teacher_hacking import data
from fenchel.reproductions.teacher_hacking.divergences import Yardstick, generate
from fenchel.reproductions.teacher_hacking.recipe import FEWER, MORE, STUDENT, TEACHER, WAYS, Recipe
from fenchel.reproductions.trainings import Bench, begin, fixed
from fenchel.reproductions.units import Tell, kept, over_seeds, seeds_of
from fenchel.reproductions.workspace import Workspace
from fenchel.training.configs import DistillConfig, RolloutConfig, SFTConfig
from fenchel.training.fit import fit
from fenchel.training.objectives import Distillation, SupervisedFineTuning
from fenchel.training.packing import Collator
from fenchel.training.rollout import Rollout, Row, row_of
from fenchel.training.sampling import complete
from fenchel.training.teachers.local import LocalTeacher

DIGITS = 6
SAMPLES = 8


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Train and measure everything that an earlier run did not; returns all figures by seed."""
    seeds = seeds_of(recipe)
    first = Laboratory(recipe, workspace).train_oracle
    over_seeds(recipe, workspace, progress, _costs(recipe, seeds), first, run_seed)
    return {
        "recipe": {"evaluations": recipe.evaluations(), "early": recipe.early, "warmup": recipe.warmup},
        "seeds": [_read(workspace.path / f"seed-{seed}", seed) for seed in seeds],
    }


def run_seed(recipe: Recipe, workspace: Workspace, seed: int) -> None:
    """Everything of one seed."""
    laboratory = Laboratory(recipe, workspace, seed)
    laboratory.train_teacher_and_start()
    for way in WAYS:
        laboratory.train_student(way)


def unit_of(way: str) -> str:
    return way.replace(", ", "-").replace(" ", "-")


class Laboratory(Bench[Recipe]):
    """The data, models and trainings of one seed."""

    alphabet = data.ALPHABET

    @property
    def directory(self) -> Path:
        return self.workspace.path / f"seed-{self.seed}"

    @cached_property
    def prompts(self) -> data.Prompts:
        return data.load(self.recipe, self.tokenizer)

    @cached_property
    def oracle(self) -> Any:
        trained = self.workspace.path / "oracle"
        return fixed(trained if self.recipe.oracle_steps else self.recipe.oracle)

    @cached_property
    def teacher(self) -> Any:
        return fixed(self.directory / "teacher")

    @cached_property
    def yardstick(self) -> Yardstick:
        recipe = self.recipe
        prompts = data.choose(self.prompts.validation, recipe.validation_prompts, self.seed)
        return Yardstick(self.oracle, self.teacher, prompts, self.tokenizer, recipe)

    # -- Trainings: each a unit, complete or absent.

    def train_oracle(self) -> None:
        recipe = self.recipe
        if not recipe.oracle_steps:
            return
        with self.workspace.unit("oracle") as (path, done):
            if not done:
                rows = [row_of(prompt, completion) for prompt, completion in self.prompts.pairs]
                self._fine_tune(recipe.oracle, rows, path, recipe.oracle_steps, recipe.oracle_batch, 0)

    def train_teacher_and_start(self) -> None:
        """Both are trained on the same samples of the oracle."""
        recipe, seed = self.recipe, self.seed
        if all((self.directory / name).is_dir() for name in ("teacher", "start")):
            return
        prompts = data.choose(self.prompts.train, recipe.oracle_samples, seed)
        rows = self._generate(self.oracle, prompts, seed, "oracle")
        for name, model, steps in (
            ("teacher", recipe.teacher, recipe.teacher_steps),
            ("start", recipe.student, recipe.start_steps),
        ):
            with self.workspace.unit(f"seed-{seed}/{name}") as (path, done):
                if not done:
                    self._fine_tune(model, rows, path, steps, recipe.batch, seed + (name == "start"))

    def train_student(self, way: str) -> None:
        kept(self.workspace, f"seed-{self.seed}/{unit_of(way)}", lambda _: self._student(way))

    def _student(self, way: str) -> dict[str, Any]:
        """The figures of a student of this kind."""
        recipe, seed = self.recipe, self.seed
        student = begin(str(self.directory / "start"), self.tokenizer_name, seed)
        curve: list[dict[str, float]] = []
        evaluations = set(recipe.evaluations())

        def look(step: int) -> None:
            if step in evaluations:
                found = self.yardstick(student)
                curve.append({"step": step} | {k: _rounded(v) for k, v in found.items()})

        look(0)
        fit(
            student,
            Distillation(LocalTeacher(self.teacher), DistillConfig()),
            self.rows(way),
            self.tokenizer,
            steps=recipe.steps,
            batch=recipe.batch,
            learning_rate=recipe.learning_rate,
            seed=seed,
            scheduler="constant_with_warmup",
            warmup=recipe.warmup,
            weight_decay=0.0,
            rollout=self.rollout() if way == STUDENT else None,
            on_step=look,
        )
        return {
            "curve": curve,
            "teacher_error": _rounded(self.yardstick.teacher_error()),
            "samples": self.samples(student),
        }

    def rows(self, way: str) -> Any:
        """What a student is trained on; for `STUDENT` only the prompts of it are used."""
        import datasets

        recipe, seed = self.recipe, self.seed
        prompts = data.choose_distinct(self.prompts.train, recipe.prompts, seed)
        if way == FEWER:
            prompts = prompts[: math.ceil(recipe.prompts / recipe.generations)] * recipe.generations
            prompts = prompts[: recipe.prompts]
        elif way == MORE:
            prompts = prompts * recipe.generations
        elif way == TEACHER:  # as many sequences as training will see, each once
            prompts = data.choose(prompts, recipe.steps * recipe.batch, seed)
        return datasets.Dataset.from_list(self._generate(self.teacher, prompts, seed, "teacher"))

    def rollout(self) -> Rollout:
        """Puts the student's own sequences in the place of all of the data's."""
        recipe, tokenizer = self.recipe, self.tokenizer

        def generate(student: Any, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
            limit = recipe.max_new_tokens
            return complete(student, prompts, seeds, tokenizer=tokenizer, max_new_tokens=limit)

        config = RolloutConfig(lmbda=1.0, max_new_tokens=recipe.max_new_tokens)
        collator = Collator(tokenizer.pad_token_id)
        return Rollout(config, collator, generate, None, seed=self.seed, eos=tokenizer.eos_token_id)

    def samples(self, model: Any) -> list[str]:
        """What a model makes of the first validation prompts."""
        rows = self._generate(model, self.yardstick.prompts[:SAMPLES], self.seed, "samples")
        return [self.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]

    def _generate(self, model: Any, prompts: Sequence[list[int]], *keys: int | str) -> list[Row]:
        limit, batch = self.recipe.max_new_tokens, 4 * self.recipe.evaluation_batch
        return generate(model, prompts, self.tokenizer, limit, *keys, batch=batch)

    def _fine_tune(self, model: str, rows: list[Row], path: Path, steps: int, batch: int, seed: int) -> None:
        """Train on the rows' own tokens and save."""
        import datasets

        trained = begin(model, self.tokenizer_name, seed)
        fit(
            trained,
            SupervisedFineTuning(SFTConfig()),
            datasets.Dataset.from_list(rows),
            self.tokenizer,
            steps=steps,
            batch=batch,
            learning_rate=self.recipe.first_learning_rate,
            seed=seed,
        )
        trained.save_pretrained(path)


def _costs(recipe: Recipe, seeds: Iterable[int]) -> dict[str, float]:
    """How long each training takes, in steps of distillation on a fixed set."""
    costs = {way: recipe.steps * (2.0 if way in (STUDENT, TEACHER) else 1.0) for way in WAYS}
    costs |= {"teacher": recipe.teacher_steps, "start": recipe.start_steps}
    each = {f"seed-{seed}/{unit_of(name)}": cost for seed in seeds for name, cost in costs.items()}
    return {"oracle": 3.0 * recipe.oracle_steps, **each} if recipe.oracle_steps else each


def _read(directory: Path, seed: int) -> dict[str, Any]:
    """The figures of one seed: for every way its curves, as columns."""
    found: dict[str, Any] = {"seed": seed, "curves": {}, "samples": {}}
    for way in WAYS:
        figures = json.loads((directory / unit_of(way) / "figures.json").read_text(encoding="utf-8"))
        names = figures["curve"][0]
        found["curves"][way] = {name: [point[name] for point in figures["curve"]] for name in names}
        found["samples"][way] = figures["samples"]
        found["teacher_error"] = figures["teacher_error"]
    return found


def _rounded(value: float) -> float:
    """To the digits that a record needs."""
    return float(f"{value:.{DIGITS}g}")
