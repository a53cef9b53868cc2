"""What the teacher-hacking experiment trains, at three scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fenchel.reproductions.configs import at_scale

# How a student's sequences come about, and the name of each way on the page.
OFFLINE, FEWER, MORE, TEACHER, STUDENT = (
    "offline",
    "offline, fewer prompts",
    "offline, more generations",
    "online, teacher",
    "online, student",
)
WAYS = (OFFLINE, FEWER, MORE, TEACHER, STUDENT)
WORDS = "words of the Python library"


@dataclass(frozen=True)
class Recipe:
    """The whole configuration.

    A model is TYPE:key=value,... to make it from scratch, or a directory or Hub name. Without
    `oracle_steps` the oracle is taken as it is.
    """

    data: str
    oracle: str
    teacher: str
    student: str
    oracle_samples: int  # what the teacher and the student's start are trained on
    oracle_steps: int
    oracle_batch: int
    teacher_steps: int  # too many for the oracle's samples: the teacher must have mistakes of its own
    start_steps: int
    prompts: int  # of the distillation data
    generations: int  # how many times fewer prompts, or more generations a prompt, the other offline data has
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    validation_prompts: int
    max_new_tokens: int
    evaluation_batch: int
    early: tuple[int, int]  # the steps of the window in which the power law is fitted
    spacing: float = 1.2  # ratio of the steps of one evaluation and the one before
    first_evaluation: int = 10
    first_learning_rate: float = 3e-3  # of oracle, teacher and start
    tokenizer: str | None = None  # by default one token a character
    prompt_column: str | None = None
    completion_column: str | None = None
    max_prompt_tokens: int = 4
    processes: int = 2
    first_seed: int = 0
    seeds: int = 3

    def evaluations(self) -> tuple[int, ...]:
        """The steps at which a student is measured, evenly spaced on a logarithmic scale, and the end."""
        found, step = {0, self.steps}, float(self.first_evaluation)
        while step < self.steps / math.sqrt(self.spacing):
            found.add(round(step))
            step *= self.spacing
        return tuple(sorted(found))


_LLAMA = "llama:max_position_embeddings=32,tie_word_embeddings=true,num_attention_heads=4,num_hidden_layers=2"
SMALL = Recipe(
    data=WORDS,
    oracle=f"{_LLAMA},hidden_size=96,intermediate_size=256",
    teacher=f"{_LLAMA},hidden_size=64,intermediate_size=168",
    student=f"{_LLAMA},hidden_size=48,intermediate_size=128",
    oracle_samples=2000,
    oracle_steps=1200,
    oracle_batch=128,
    teacher_steps=650,
    start_steps=60,
    prompts=500,
    generations=5,
    steps=700,
    batch=64,
    learning_rate=1.5e-3,
    warmup=20,
    validation_prompts=256,
    max_new_tokens=12,
    evaluation_batch=256,
    early=(20, 150),
    # The search for the regime ran with seeds below this one.
    first_seed=100,
    seeds=6,
)
# XSum with models of one family, whose tokenizer they share. The figures of the training are the paper's.
MEDIUM = Recipe(
    data="EdinburghNLP/xsum",
    prompt_column="document",
    completion_column="summary",
    tokenizer="Qwen/Qwen2.5-0.5B",
    oracle="Qwen/Qwen2.5-7B-Instruct",
    teacher="Qwen/Qwen2.5-1.5B",
    student="Qwen/Qwen2.5-0.5B",
    oracle_samples=20_000,
    oracle_steps=0,
    oracle_batch=0,
    teacher_steps=2_000,
    start_steps=300,
    prompts=20_000,
    generations=5,
    steps=40_000,
    batch=32,
    learning_rate=1e-5,
    first_learning_rate=1e-5,
    warmup=100,
    validation_prompts=512,
    max_prompt_tokens=1024,
    max_new_tokens=128,
    evaluation_batch=8,
    first_evaluation=100,
    early=(200, 4_000),
    processes=1,
)
LARGE = Recipe(
    data="EdinburghNLP/xsum",
    prompt_column="document",
    completion_column="summary",
    tokenizer="Qwen/Qwen2.5-0.5B",
    oracle="Qwen/Qwen2.5-32B-Instruct",
    teacher="Qwen/Qwen2.5-3B",
    student="Qwen/Qwen2.5-0.5B",
    oracle_samples=100_000,
    oracle_steps=0,
    oracle_batch=0,
    teacher_steps=10_000,
    start_steps=3_000,
    prompts=200_000,
    generations=5,
    steps=390_625,
    batch=32,
    learning_rate=1e-5,
    first_learning_rate=1e-5,
    warmup=100,
    validation_prompts=1024,
    max_prompt_tokens=1024,
    max_new_tokens=128,
    evaluation_batch=8,
    first_evaluation=1_000,
    early=(2_000, 40_000),
    processes=1,
)


def recipe(scale: str) -> Recipe:
    """The recipe of a scale: small, medium or large."""
    return at_scale(scale, {"small": SMALL, "medium": MEDIUM, "large": LARGE})
