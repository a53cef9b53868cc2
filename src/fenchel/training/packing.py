"""Packing: several tokenised documents in one row, and the batches that keep them apart.

A row carries `position_ids` that begin at 0 in every document and no attention mask. From these
transformers makes a block-diagonal causal mask (eager, sdpa and flex attention, with the cache off;
flash attention wants one row a batch), so that no document attends to another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor

from fenchel.errors import InputError
from fenchel.training.data import AnyDataset
from fenchel.training.objectives.predictions import IGNORE_INDEX
from fenchel.training.tokenization import CODE, TOKENS


def pack(dataset: AnyDataset, max_length: int) -> AnyDataset:
    """Return tokenised documents in rows of at most `max_length` tokens, with `position_ids`.

    Each thousand documents are packed by best fit, longest first, so streams pack as well. The
    first label of each document is -100: the document before must not predict it. Raises
    `InputError` for a document longer than a row.
    """
    return dataset.map(
        _pack_batch,
        batched=True,
        batch_size=1000,
        remove_columns=list(next(iter(dataset))),
        fn_kwargs={"max_length": max_length, "code": CODE},
        features=datasets.Features(input_ids=TOKENS, labels=TOKENS, position_ids=TOKENS),
    )


def _pack_batch(batch: dict[str, list[Any]], *, max_length: int, code: str) -> dict[str, list[Any]]:
    packed: dict[str, list[Any]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in best_fit([len(ids) for ids in batch["input_ids"]], max_length):
        documents = [(batch["input_ids"][i], batch["labels"][i]) for i in row]
        packed["input_ids"].append([token for ids, _ in documents for token in ids])
        packed["labels"].append([label for _, labels in documents for label in [IGNORE_INDEX, *labels[1:]]])
        packed["position_ids"].append([p for ids, _ in documents for p in range(len(ids))])
    return packed


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return which documents share each row of `size` tokens: best fit, longest first.

    Rows and the documents in them come in order of arrival, so that a stream is not sorted by
    length. Raises `InputError` for a length above `size`.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] > size:
            raise InputError(f"a document has {lengths[i]} tokens and does not fit a row of {size}")
        at = bisect_left(spaces, (lengths[i], 0))
        if at == len(spaces):
            free, row = size, len(rows)
            rows.append([])
        else:
            free, row = spaces.pop(at)
        rows[row].append(i)
        insort(spaces, (free - lengths[i], row))
    return sorted(sorted(row) for row in rows)


@dataclass(frozen=True)
class Collator:
    """Makes a batch of tokenised rows, padded on the right with labels of -100.

    Rows with `position_ids` are packed ones: they get no attention mask, and their padding is a
    document of its own. Other rows get an attention mask.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(lengths)
        batch = {
            "input_ids": self._padded(rows, "input_ids", [self.pad_token_id] * longest),
            "labels": self._padded(rows, "labels", [IGNORE_INDEX] * longest),
        }
        if "position_ids" in rows[0]:
            batch["position_ids"] = self._padded(rows, "position_ids", list(range(longest)))
        else:
            steps = torch.arange(longest)
            batch["attention_mask"] = (steps < torch.tensor(lengths)[:, None]).long()
        return batch

    @staticmethod
    def _padded(rows: Sequence[dict[str, Any]], name: str, padding: list[int]) -> Tensor:
        cells = [list(row[name]) for row in rows]
        return torch.tensor([cell + padding[: len(padding) - len(cell)] for cell in cells])
