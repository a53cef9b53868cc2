"""On-policy data: at each step, some of the data's completions give way to generated ones.

Which rows do, and what is sampled for them, depends on the seed, the step and the prompt alone (and, of
equal prompts in the global batch, which one it is), so that the global batch is the same however it is split
over processes and accumulation steps.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import datasets
import torch
from torch import Tensor

from fenchel.diagnostics.text import degenerate
from fenchel.errors import InputError
from fenchel.training.configs import DataConfig, RolloutConfig
from fenchel.training.objectives.predictions import IGNORE_INDEX, OWN
from fenchel.training.packing import Collator
from fenchel.training.sampling import seed_of

T = TypeVar("T")
Row = dict[str, list[int]]
Generate = Callable[[Any, list[list[int]], list[int]], list[list[int]]]
"""(student, prompts, seeds) -> completions, with their eos token where it came."""


_OBSERVED = ("length", "empty", "unfinished", "repeating")
_FIGURES = ("rows", "student_rows", "generated_tokens", "observed", *_OBSERVED)


class Rollout:
    """Turns the batches of one optimiser step into those that are learnt from.

    A row becomes the student's with probability λ; else the teacher's, if there is one to generate; else it
    stays. All rows of the step are generated together. Of the student's rows, a share may come from its
    earlier ones instead (the replay buffer, each process its own), which saves generating them.

    Args:
        config: λ, lengths and replay.
        collator: makes batches of rows.
        student: generates for the student.
        teacher: generates for the teacher, or None.
        seed: of the choices and the samples.
        eos: the token that ends a completion.
    """

    def __init__(
        self,
        config: RolloutConfig,
        collator: Collator,
        student: Generate,
        teacher: Generate | None,
        *,
        seed: int,
        eos: int | None,
    ) -> None:
        self.config, self.collator, self.seed, self.eos = config, collator, seed, eos
        self.generators = {"student": student, "teacher": teacher}
        self.buffer: deque[Row] = deque(maxlen=config.replay_size)
        self.sums: dict[str, float] = {}

    def __call__(
        self, student: Any, batches: Sequence[dict[str, Tensor]], step: int, *, together: bool = False
    ) -> list[dict[str, Tensor]]:
        """The batches with generated rows in place of some; all labels of those are on completions.

        The entry "own" tells which rows the student wrote, now or earlier, (B,).
        With `together`, every process generates at least once, because sharded models need all of them.
        """
        parts = [rows_of(batch) for batch in batches]
        rows = [row for part in parts for row in part]
        keys = _keys([prompt_of(row) for row in rows], self.seed, step)
        sources = [self._source(key) for key in keys]
        for i in (i for i, source in enumerate(sources) if source == "replay"):
            rows[i] = self.buffer[int(_number(keys[i], "which") * len(self.buffer))]
        for source, generate in self.generators.items():
            chosen = [i for i, each in enumerate(sources) if each == source]
            if generate is None or not (chosen or (together and source == "student")):
                continue
            prompts = [prompt_of(rows[i]) for i in chosen] or [prompt_of(rows[0])]
            seeds = [keys[i] for i in chosen] or [0]
            began = time.perf_counter()
            completions = generate(student, prompts, seeds)
            self._add("seconds", time.perf_counter() - began)
            for i, prompt, completion in zip(chosen, prompts, completions, strict=False):
                rows[i] = row_of(prompt, completion or [self._end()])
                self._add("generated_tokens", len(completion))
                if source == "student":
                    self._observe(completion)
                    self.buffer.append(rows[i])
        self._add("rows", len(rows))
        self._add("student_rows", sum(source in ("student", "replay") for source in sources))
        rebuilt = iter(zip(rows, sources, strict=True))
        made = []
        for part, batch in zip(parts, batches, strict=True):
            new, of = zip(*(next(rebuilt) for _ in part), strict=True)
            own = torch.tensor([source in ("student", "replay") for source in of])
            made.append(_to(self.collator(new) | {OWN: own}, batch))
        return made

    def metrics(self) -> dict[str, float]:
        """What all processes generated since the last call: shares, mean length, tokens per second.

        Every process must call this.
        """
        everyone, self.sums = _of_all_processes(self.sums), {}
        sums = {name: sum(each.get(name, 0.0) for each in everyone) for name in _FIGURES}
        if not sums["rows"]:
            return {}
        found = {"on_policy/share": sums["student_rows"] / sums["rows"]}
        if seconds := max(each.get("seconds", 0.0) for each in everyone):
            found["on_policy/tokens_per_second"] = sums["generated_tokens"] / seconds
        if count := sums["observed"]:
            for name in _OBSERVED:
                found[f"on_policy/{name}"] = sums[name] / count
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": list(self.buffer), "sums": dict(self.sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer = deque(state["buffer"], maxlen=self.config.replay_size)
        self.sums = dict(state["sums"])

    def _source(self, key: int) -> str:
        if _number(key, "source") >= self.config.lmbda:
            return "teacher" if self.generators["teacher"] is not None else "data"
        replays = self.buffer and _number(key, "replay") < self.config.replay_share
        return "replay" if replays else "student"

    def _observe(self, completion: list[int]) -> None:
        eos = () if self.eos is None else self.eos
        found = degenerate(completion, eos=eos, max_new_tokens=self.config.max_new_tokens)
        self._add("observed", 1)
        self._add("length", len(completion))
        for name, value in found._asdict().items():
            self._add(name, value)

    def _end(self) -> int:
        if self.eos is None:
            raise InputError(
                "a server generated nothing, and the tokenizer has no eos token to learn instead"
            )
        return self.eos

    def _add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value


def _keys(prompts: list[list[int]], seed: int, step: int) -> list[int]:
    """A number for each row: of its prompt, and of how many equal prompts of the step come before it."""
    own = [seed_of(prompt) for prompt in prompts]
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    before = Counter(key for keys in _of_all_processes(own)[:rank] for key in keys)
    found = []
    for key in own:
        found.append(seed_of([key, before[key]], seed, step))
        before[key] += 1
    return found


def _of_all_processes(value: T) -> list[T]:
    """What each process has, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def _number(key: int, question: str) -> float:
    """A number in [0, 1) that belongs to the key and the question."""
    return seed_of([key], question) / 2**63


def rows_of(batch: dict[str, Tensor]) -> list[Row]:
    """The rows of a batch, without their padding."""
    lengths = batch["attention_mask"].sum(-1).tolist()
    return [
        {name: batch[name][i, :length].tolist() for name in ("input_ids", "labels")}
        for i, length in enumerate(lengths)
    ]


def prompt_of(row: Row) -> list[int]:
    """The tokens before the last stretch under loss: what the last completion answers to."""
    labels = row["labels"]
    end = len(labels)
    while end and labels[end - 1] == IGNORE_INDEX:
        end -= 1
    start = end
    while start and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return row["input_ids"][:start] if end else row["input_ids"]


def row_of(prompt: list[int], completion: list[int]) -> Row:
    """A prompt with a completion that is under loss."""
    return {
        "input_ids": prompt + completion,
        "labels": [IGNORE_INDEX] * len(prompt) + completion,
    }


def check_rollout(rows: Any, data: DataConfig, config: RolloutConfig) -> None:
    """Raise `InputError` unless every row has a prompt, and room for a completion after it."""
    if data.packing:
        raise InputError("packing puts several prompts in one row; on-policy training needs one a row")
    if isinstance(rows, datasets.IterableDataset):
        rows = rows.take(1)  # of a stream, the kind of its columns is told by any row
    for number, row in enumerate(rows, start=1):
        length = len(prompt_of(row))
        if length == 0:
            raise InputError(
                f"row {number} has no prompt to generate from; on-policy training needs the columns prompt "
                "(and completion), or messages"
            )
        if length + config.max_new_tokens > data.max_length:
            raise InputError(
                f"row {number}: its prompt of {length} tokens and max_new_tokens {config.max_new_tokens} "
                f"exceed max_length {data.max_length}; lower --max_new_tokens, raise --max_length or shorten "
                "the prompt"
            )


def _to(batch: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(iter(like.values())).device
    return {name: value.to(device) for name, value in batch.items()}
