"""What trainings of language models share: a laboratory for each seed, and how a model begins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from fenchel.reproductions.units import Settings
from fenchel.reproductions.workspace import Workspace
from fenchel.training.configs import ModelConfig
from fenchel.training.fit import character_tokenizer, prepare_process
from fenchel.training.models import load_model, load_tokenizer, prepare
from fenchel.training.rollout import Row, row_of


class LanguageSettings(Settings, Protocol):
    """What a recipe with language models has."""

    @property
    def tokenizer(self) -> str | None: ...  # by default one token a character


R = TypeVar("R", bound=LanguageSettings)


class Bench(Generic[R]):
    """The data and models of one seed; what several trainings share is made once."""

    alphabet: str  # of the tokenizer, where the recipe names none

    def __init__(self, recipe: R, workspace: Workspace, seed: int = 0) -> None:
        torch.set_flush_denormal(True)
        if recipe.processes > 1:
            torch.set_num_threads(1)
        self.recipe, self.workspace, self.seed = recipe, workspace, seed

    @cached_property
    def tokenizer_name(self) -> str:
        if self.recipe.tokenizer is not None:
            return self.recipe.tokenizer
        with self.workspace.unit("tokenizer") as (path, done):
            if not done:
                character_tokenizer(self.alphabet).save_pretrained(str(path))
        return str(self.workspace.path / "tokenizer")

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer_name)


def begin(model: str, tokenizer: str, seed: int) -> Any:
    """A model to train: TYPE:key=value,... from scratch, else a directory or Hub name."""
    prepare_process(seed)
    scratch = ":" in model
    config = ModelConfig(
        model_name_or_path=None if scratch else model,
        model_config=model if scratch else None,
        tokenizer_name_or_path=tokenizer,
    )
    return prepare(config)[0]


def fixed(directory: str | Path) -> Any:
    """A trained model to ask, on the accelerator if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(str(directory)).requires_grad_(False).eval().to(device)


def rows_of(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> list[Row]:
    """Rows of (prompt, completion), with an end token, under loss where the completion is."""
    prompts, completions = (
        tokenizer([pair[i] for pair in pairs], add_special_tokens=False)["input_ids"] for i in (0, 1)
    )
    return [row_of(p, [*c, tokenizer.eos_token_id]) for p, c in zip(prompts, completions, strict=True)]
