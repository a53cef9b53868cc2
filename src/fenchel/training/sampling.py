"""Sampling that depends on the sequence alone: not on the batch around it, its padding or the process.

Every sequence has its own numbers, drawn from a seed, the step and its prompt. One of them picks one token
by the inverse of the distribution function, so that generation needs no random state of its own.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fenchel.divergences import FDivergence
from fenchel.training.generation import MatchingLogitsProcessor


def seed_of(tokens: Sequence[int], *keys: int | str) -> int:
    """A 63-bit number that depends on all of the tokens and keys."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8)
    digest.update(array("q", tokens).tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """`count` numbers in [0, 1) for each seed, (len(seeds), count), in float64."""
    rows = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows)


class InverseTransformSampler(LogitsProcessor):
    """Leaves of each row's scores the one token that the row's next number picks."""

    def __init__(self, numbers: Tensor, prompt_length: int) -> None:
        self.numbers = numbers
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        threshold = self.numbers[:, step, None].to(scores.device) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, threshold, right=True).clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


class StopTexts(StoppingCriteria):
    """Ends a sequence as soon as one of the texts occurs in its completion."""

    def __init__(self, stop: Sequence[str], tokenizer: Any, prompt_length: int) -> None:
        self.stop, self.tokenizer, self.prompt_length = tuple(stop), tokenizer, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        recent = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self._window) :]
        texts = self.tokenizer.batch_decode(recent, skip_special_tokens=False)
        ended = [any(stop in text for stop in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)

    def until_end(self, tokens: list[int]) -> list[int]:
        """A completion without what follows the text that ended it."""
        for count in range(1, len(tokens)):
            text = self.tokenizer.decode(tokens[max(0, count - self._window) : count])
            if any(stop in text for stop in self.stop):
                return tokens[:count]
        return tokens

    @property
    def _window(self) -> int:
        """How many tokens may hold a text: the last is part of it, and each of its bytes is one at most."""
        return max((len(text.encode()) for text in self.stop), default=0) + 1


@torch.no_grad()
def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    tokenizer: Any,
    max_new_tokens: int,
    divergence: str | FDivergence = "kl",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[str] = (),
    batch_size: int = 64,
    synchronise: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """A completion of each prompt, as token ids: up to and with the eos token, if it came.

    Prompts of like length are generated together. With `synchronise`, all processes take part in each step
    (sharded models need that) and must call this together.
    """
    was_training = model.training
    model.eval()
    found: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    eos = tokenizer.eos_token_id
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        longest = max(len(prompts[i]) for i in chosen)
        padding = [longest - len(prompts[i]) for i in chosen]
        ids = torch.tensor(
            [[tokenizer.pad_token_id] * p + list(prompts[i]) for i, p in zip(chosen, padding, strict=True)]
        )
        steps = torch.arange(longest)
        mask = (steps >= torch.tensor(padding)[:, None]).long()
        device = next(model.parameters()).device
        processors: list[LogitsProcessor] = [MatchingLogitsProcessor(divergence, temperature)]
        if top_k is not None:
            processors.append(TopKLogitsWarper(top_k))
        if top_p is not None:
            processors.append(TopPLogitsWarper(top_p))
        numbers = uniforms([seeds[i] for i in chosen], max_new_tokens)
        processors.append(InverseTransformSampler(numbers, longest))
        stops = StopTexts(stop, tokenizer, longest)
        produced = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([stops] if stop else []),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=eos,
            synced_gpus=synchronise,
        )
        for i, tokens in zip(chosen, produced[:, longest:].tolist(), strict=True):
            # `generate` pads a sequence that has ended while others go on.
            ended = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
            found[i] = stops.until_end(ended) if stop else ended
        if on_batch is not None:
            on_batch(len(chosen))
    model.train(was_training)
    return [found[i] for i in range(len(prompts))]
