"""The trainings: one teacher, and for each seed a fine-tuned student and every way to go on from it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fenchel.diagnostics.text import self_overlap
from fenchel.reproductions.gkd.recipe import ARMS, Arm, Recipe
from fenchel.reproductions.gkd.tasks import TASKS, Example
from fenchel.reproductions.trainings import Bench, begin, fixed, rows_of
from fenchel.reproductions.units import Tell, kept, over_seeds, seeds_of
from fenchel.reproductions.workspace import Workspace
from fenchel.training.configs import DistillConfig, RolloutConfig, SFTConfig
from fenchel.training.fit import fit
from fenchel.training.objectives import Distillation, SupervisedFineTuning
from fenchel.training.packing import Collator
from fenchel.training.rollout import Rollout, Row, prompt_of, row_of
from fenchel.training.sampling import complete, seed_of
from fenchel.training.teachers.local import LocalTeacher

NGRAM = 4
SHOWN = 4
TEACHER_SEED = 1_000_003  # of its data; no seed of a student


def measure(recipe: Recipe, workspace: Workspace, progress: Tell) -> dict[str, Any]:
    """Train and measure everything that an earlier run did not; returns all figures by seed."""
    seeds = seeds_of(recipe)
    costs = {"teacher": 2.0 * recipe.teacher_steps}
    for seed in seeds:
        costs[f"seed-{seed}/start"] = recipe.start_steps
        for arm in ARMS:
            costs[unit_of(seed, arm)] = recipe.steps * (1 + arm.on_policy)

    first = Laboratory(recipe, workspace).train_teacher
    teacher = over_seeds(recipe, workspace, progress, costs, first, run_seed)
    return {
        "teacher": teacher,
        "prompts": [example.prompt for example in TASKS[recipe.task].test(SHOWN)],
        "seeds": [run_seed(recipe, workspace, seed) for seed in seeds],  # reads what is there
    }


def run_seed(recipe: Recipe, workspace: Workspace, seed: int) -> dict[str, Any]:
    """The figures of one seed, by the name of the arm."""
    laboratory = Laboratory(recipe, workspace, seed)
    figures = {"start": laboratory.train_start()}
    return {"seed": seed, "figures": figures | {arm.name: laboratory.train(arm) for arm in ARMS}}


def unit_of(seed: int, arm: Arm) -> str:
    return f"seed-{seed}/{re.sub('[^a-z]+', '-', arm.name.lower())}"


class Laboratory(Bench[Recipe]):
    """The data, models and trainings of one seed."""

    def __init__(self, recipe: Recipe, workspace: Workspace, seed: int = 0) -> None:
        super().__init__(recipe, workspace, seed)
        self.task = TASKS[recipe.task]
        self.alphabet = str(self.task.alphabet)

    @cached_property
    def teacher(self) -> Any:
        return fixed(self.workspace.path / "teacher")

    @cached_property
    def rows(self) -> list[Row]:
        """The students' data."""
        return rows_of(self.task.train(self.recipe.examples, self.seed), self.tokenizer)

    @cached_property
    def test(self) -> list[tuple[Example, list[int]]]:
        """The test examples, with the tokens of their prompts."""
        examples = self.task.test(self.recipe.test_prompts)
        return list(zip(examples, map(prompt_of, rows_of(examples, self.tokenizer)), strict=True))

    # -- Trainings.

    def train_teacher(self) -> dict[str, Any]:
        recipe = self.recipe
        rows = rows_of(self.task.train(recipe.teacher_examples, TEACHER_SEED), self.tokenizer)
        return kept(
            self.workspace,
            "teacher",
            lambda path: self._fine_tune(
                path,
                recipe.teacher,
                rows,
                recipe.teacher_steps,
                recipe.teacher_batch,
                recipe.teacher_learning_rate,
            ),
        )

    def train_start(self) -> dict[str, Any]:
        """The student after supervised fine-tuning, from which all arms go on."""
        recipe = self.recipe
        return kept(
            self.workspace,
            f"seed-{self.seed}/start",
            lambda path: self._fine_tune(
                path, recipe.student, self.rows, recipe.start_steps, recipe.batch, recipe.start_learning_rate
            ),
        )

    def train(self, arm: Arm) -> dict[str, Any]:
        """Go on from the start in the way of the arm."""
        return kept(self.workspace, unit_of(self.seed, arm), lambda _: self._go_on(arm))

    def _fine_tune(
        self, path: Path, name: str, rows: list[Row], steps: int, batch: int, learning_rate: float
    ) -> dict[str, Any]:
        import datasets

        model = begin(name, self.tokenizer_name, self.seed)
        fit(
            model,
            SupervisedFineTuning(SFTConfig()),
            datasets.Dataset.from_list(rows),
            self.tokenizer,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            weight_decay=0.0,
            seed=self.seed,
        )
        model.save_pretrained(path)
        return self.figures(model)

    def _go_on(self, arm: Arm) -> dict[str, Any]:
        import datasets

        recipe = self.recipe
        student = begin(str(self.workspace.path / f"seed-{self.seed}/start"), self.tokenizer_name, self.seed)
        curve: list[tuple[int, float]] = []

        def look(step: int) -> None:
            if step * recipe.curve_points // recipe.steps > (step - 1) * recipe.curve_points // recipe.steps:
                curve.append((step, self.exact_match(student, recipe.curve_prompts, greedy=True)))

        look(0)
        losses = fit(
            student,
            self.objective(arm),
            datasets.Dataset.from_list(self.rows_for(arm)),
            self.tokenizer,
            steps=recipe.steps,
            batch=recipe.batch,
            learning_rate=recipe.learning_rate,
            weight_decay=0.0,
            seed=self.seed,
            rollout=self.rollout(arm),
            on_step=look,
        )
        return {"curve": curve, "losses": losses, **self.figures(student)}

    def objective(self, arm: Arm) -> Any:
        if arm.divergence is None:
            return SupervisedFineTuning(SFTConfig())
        return Distillation(LocalTeacher(self.teacher), DistillConfig(divergence=arm.divergence))

    def rows_for(self, arm: Arm) -> list[Row]:
        """The data that an arm begins from; of a row that the student generates only the prompt counts."""
        rows = self.rows
        if arm.few:
            rows = rows[: math.ceil(len(rows) * self.recipe.few_share)]
        if arm.teacher_sequences:
            prompts = [prompt_of(row) for row in rows]
            completions = self._complete(self.teacher, prompts, "teacher")
            rows = [row_of(*pair) for pair in zip(prompts, completions, strict=True)]
        return rows

    def rollout(self, arm: Arm) -> Rollout | None:
        if not arm.on_policy:
            return None
        config = RolloutConfig(lmbda=arm.on_policy, max_new_tokens=self.recipe.max_new_tokens)

        def generate(student: Any, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
            limit = self.recipe.max_new_tokens
            return complete(student, prompts, seeds, tokenizer=self.tokenizer, max_new_tokens=limit)

        eos = self.tokenizer.eos_token_id
        return Rollout(config, Collator(self.tokenizer.pad_token_id), generate, None, seed=self.seed, eos=eos)

    # -- Figures.

    def figures(self, model: Any) -> dict[str, Any]:
        """Exact match of greedy and of sampled completions, how like its samples are, and some of them."""
        recipe = self.recipe
        chosen = self.test[: recipe.diverse_prompts]
        prompts = [prompt for _, prompt in chosen for _ in range(recipe.samples)]
        found = self._complete(model, prompts, "diversity")
        groups = [found[i : i + recipe.samples] for i in range(0, len(found), recipe.samples)]
        return {
            "greedy": self.exact_match(model, recipe.test_prompts, greedy=True),
            "sampled": self.exact_match(model, recipe.test_prompts, greedy=False),
            "overlap": sum(self_overlap(group, NGRAM) for group in groups) / len(groups),
            "samples": [self._text(group[0]) for group in groups[:SHOWN]],
        }

    def exact_match(self, model: Any, count: int, *, greedy: bool) -> float:
        """The share of the test prompts whose completion is right."""
        test = self.test[:count]
        prompts = [prompt for _, prompt in test]
        found = self._complete(model, prompts, "test", top_k=1 if greedy else None)
        pairs = zip(test, found, strict=True)
        return sum(self.task.correct(example, self._text(c)) for (example, _), c in pairs) / len(test)

    def _complete(
        self, model: Any, prompts: Sequence[list[int]], key: str, top_k: int | None = None
    ) -> list[list[int]]:
        return complete(
            model,
            prompts,
            [seed_of(prompt, i, self.seed, key) for i, prompt in enumerate(prompts)],
            tokenizer=self.tokenizer,
            max_new_tokens=self.recipe.max_new_tokens,
            top_k=top_k,
            batch_size=self.recipe.evaluation_batch,
        )

    def _text(self, completion: list[int]) -> str:
        return str(self.tokenizer.decode(completion, skip_special_tokens=True))
