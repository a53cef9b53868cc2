"""Sampling a model with the operator that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from fenchel.decoding import matching_logits
from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find


class MatchingLogitsProcessor(LogitsProcessor):
    """Turns scores into log f-softargmax(scores / T) inside `model.generate`.

    Leave generate's own temperature at 1: it would act after the operator instead of before it.
    """

    def __init__(self, divergence: str | FDivergence, temperature: float = 1.0) -> None:
        self.divergence = find(divergence)
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return matching_logits(scores.float(), self.divergence, temperature=self.temperature)


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    divergence: str | FDivergence = "kl",
    temperature: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> list[str]:
    """Continuations of the prompts (without them), each prompt's own ones together.

    `options` go to `model.generate`: max_new_tokens, do_sample, top_k, top_p, num_return_sequences.
    The random state outside is left as it was.
    """
    # What the model's generation_config.json says would act after the operator, or twice.
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    device = next(model.parameters()).device
    texts: list[str] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for prompt in prompts:  # one by one: a prompt's text must not depend on the others' padding
            encoded = tokenizer(prompt, return_tensors="pt").to(device)
            if encoded["input_ids"].shape[1] == 0:
                encoded["input_ids"] = torch.tensor([[tokenizer.eos_token_id]], device=device)
                encoded["attention_mask"] = torch.ones_like(encoded["input_ids"])
            produced = model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                logits_processor=LogitsProcessorList([MatchingLogitsProcessor(divergence, temperature)]),
                pad_token_id=tokenizer.pad_token_id,
                **options,
            )
            start = encoded["input_ids"].shape[1]
            texts += tokenizer.batch_decode(produced[:, start:], skip_special_tokens=True)
    return texts
