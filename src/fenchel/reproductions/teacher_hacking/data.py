"""Prompts and real completions: words of the Python library, or a data set of prompts and completions."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from fenchel.errors import InputError
from fenchel.reproductions import corpus
from fenchel.reproductions.teacher_hacking.recipe import WORDS, Recipe

ALPHABET = string.ascii_lowercase + "_"
LENGTHS = range(5, 13)
LEAST_WORDS = 10_000


class Prompts(NamedTuple):
    """Prompts as token ids, each as often as it occurs, and what the oracle is trained on."""

    train: list[list[int]]
    validation: list[list[int]]
    pairs: list[tuple[list[int], list[int]]]  # (prompt, completion with its end token)


def words() -> list[str]:
    """The words and identifiers in the sources of Python's library, in lower case, each once, sorted.

    Raises `InputError` when this Python came without its sources.
    """
    parts = (re.findall(r"[A-Za-z_]+", text) for _, text in corpus.sources())
    found = {word.lower().strip("_") for words in parts for word in words}
    chosen = sorted(word for word in found if len(word) in LENGTHS)
    corpus.check_enough("words", len(chosen), LEAST_WORDS)
    return chosen


def load(recipe: Recipe, tokenizer: Any) -> Prompts:
    """The prompts of the recipe; no prompt for validation is one for training."""
    if recipe.data == WORDS:
        length = recipe.max_prompt_tokens
        pairs = [(word[:length], word[length:]) for word in words()]
    else:
        pairs = _data_set(recipe)
    end = [tokenizer.eos_token_id]
    prompts = _tokens(tokenizer, [prompt for prompt, _ in pairs])
    completions = _tokens(tokenizer, [completion for _, completion in pairs])
    rows = [(p[: recipe.max_prompt_tokens], c + end) for p, c in zip(prompts, completions, strict=True)]
    distinct = sorted({tuple(prompt) for prompt, _ in rows})
    random.Random(0).shuffle(distinct)
    held_out = set(distinct[: len(distinct) // 5])
    parts: tuple[list[list[int]], list[list[int]]] = ([], [])
    for prompt, _ in rows:
        parts[tuple(prompt) in held_out].append(prompt)
    if min(map(len, parts)) == 0 or len(distinct) - len(held_out) < recipe.prompts:
        raise InputError(
            f"{recipe.data!r} has {len(distinct)} different prompts, too few for {recipe.prompts} to train "
            "on and a fifth held out"
        )
    return Prompts(*parts, rows)


def choose(prompts: Sequence[list[int]], count: int, seed: int) -> list[list[int]]:
    """So many prompts at random, as often as they occur."""
    return random.Random(seed).choices(prompts, k=count)


def choose_distinct(prompts: Sequence[list[int]], count: int, seed: int) -> list[list[int]]:
    """So many different prompts at random."""
    distinct = sorted({tuple(prompt) for prompt in prompts})
    return [list(prompt) for prompt in random.Random(seed).sample(distinct, count)]


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def _data_set(recipe: Recipe) -> list[tuple[str, str]]:
    from datasets import load_dataset

    rows = load_dataset(recipe.data, split="train")
    columns = (recipe.prompt_column, recipe.completion_column)
    return [(f"{row[columns[0]]}\n\nTL;DR:", f" {row[columns[1]]}") for row in rows]
