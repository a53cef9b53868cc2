"""Texts to learn to write, and completions to fine-tune on."""

from __future__ import annotations

import ast
import hashlib
import re
import string
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from fenchel.reproductions import corpus
from fenchel.reproductions.f_divergence_losses.recipe import NAMES, Recipe

ALPHABET = string.ascii_letters + string.digits + "_"
LEAST_NAMES = 8_000
HELD_OUT = 0.2
LEAST_LETTERS = 3  # nearly all shorter ones are words
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{2,23}")


class Data(NamedTuple):
    """Training and held-out halves of each; a text is a pair with an empty prompt."""

    texts: list[tuple[str, str]]
    held_out_texts: list[tuple[str, str]]
    pairs: list[tuple[str, str]]
    held_out_pairs: list[tuple[str, str]]


def load(recipe: Recipe) -> Data:
    """The data of the recipe.

    Names without an underscore are the texts of pretraining and distillation; fine-tuning is to complete
    a name in snake_case from its first word.
    """
    if recipe.texts == NAMES:
        found = names()
        texts = [("", name) for name in found if "_" not in name]
        snake = (name.partition("_") for name in found if "_" in name and name == name.lower())
        pairs = [(first + mark, rest) for first, mark, rest in snake]
    else:
        texts, pairs = _texts(recipe), _pairs(recipe)
    return Data(*_split(texts, recipe.held_out), *_split(pairs, recipe.held_out))


def names() -> list[str]:
    """The names in the sources of Python's library, each once, sorted, without outer underscores.

    Raises `InputError` when this Python came without its sources.
    """
    found = {name.strip("_") for _, tree in corpus.trees() for name in _names(tree)}
    chosen = sorted(name for name in found if _NAME.fullmatch(name))
    corpus.check_enough("names", len(chosen), LEAST_NAMES)
    return chosen


def words(text: str) -> list[str]:
    """The words of three letters or more, in lower case: camelCase, snake_case and spaces part them."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)
    return [word.lower() for word in found if len(word) >= LEAST_LETTERS]


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "name", "attr", "arg"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


def _split(pairs: list[tuple[str, str]], most: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(training, held-out); which is which depends on the text's hash alone, and so does the order."""
    parts: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for digest, pair in sorted((hashlib.sha256("".join(pair).encode()).digest(), pair) for pair in pairs):
        parts[digest[-1] < 256 * HELD_OUT].append(pair)
    return parts[0], parts[1][:most]


def _texts(recipe: Recipe) -> list[tuple[str, str]]:
    from fenchel.training.data import load as rows_of

    rows = islice(rows_of(recipe.texts, config=recipe.texts_config, streaming=True), recipe.most_texts)
    return [("", row["text"]) for row in rows if row["text"].strip()]


def _pairs(recipe: Recipe) -> list[tuple[str, str]]:
    from fenchel.training.data import load as rows_of

    rows = islice(rows_of(str(recipe.pairs), streaming=True), recipe.most_texts)
    return [(f"{row[recipe.prompt_column]}\n\n", str(row[recipe.completion_column])) for row in rows]
