"""Small language models trained for the benchmarks: real hidden states and logits, on any machine.

The text is the documentation of Python's own library, as in `fenchel demo`, or files that are named. What
was trained is kept in `build/benchmarks`, so that benchmarks that follow each other share it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _record import ROOT
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import fenchel
from fenchel.reproductions.corpus import documents, split
from fenchel.training.fit import train_tokenizer

LENGTH, BATCH = 128, 8
Watch = Callable[[int, Any, Tensor], None]
"""(step, model, held-out tokens (rows, LENGTH)), called before some of the steps."""


class Spec(NamedTuple):
    """What is trained."""

    divergence: str
    vocabulary: int = 32000
    hidden: int = 512
    layers: int = 2
    steps: int = 300
    learning_rate: float = 1e-3


def tokens(vocabulary: int, files: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """(training, held-out) token ids of the corpus, in one row each; the tokenizer is of the first."""
    if files:
        texts = [Path(name).read_text(encoding="utf-8") for name in files]
        cut = [len(text) * 9 // 10 for text in texts]
        parts = [text[:n] for text, n in zip(texts, cut, strict=True)]
        rest = [text[n:] for text, n in zip(texts, cut, strict=True)]
    else:
        parts, rest = split(documents())
    tokenizer = train_tokenizer(parts, vocabulary)
    if len(tokenizer) < vocabulary:
        print(f"the text gives {len(tokenizer)} tokens, not {vocabulary}", file=sys.stderr)
    encode = tokenizer.backend_tokenizer.encode
    ids = [torch.tensor([i for text in some for i in encode(text).ids]) for some in (parts, rest)]
    return ids[0], ids[1]


def train(spec: Spec, data: tuple[Tensor, Tensor], watch: Watch | None = None) -> Any:
    """A Llama of `spec`, trained on one corpus; `watch` is called at steps 0, 1, 2, 5, 10, 20, ..."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=spec.vocabulary,
            hidden_size=spec.hidden,
            intermediate_size=2 * spec.hidden,
            num_hidden_layers=spec.layers,
            num_attention_heads=8,
            num_key_value_heads=8,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    ids, rest = data
    held_out = rest[: 4 * LENGTH].view(4, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.1)
    warm = max(1, spec.steps // 20)
    for step in range(spec.steps + 1):
        if watch is not None and (step == spec.steps or str(step).strip("0") in ("", "1", "2", "5")):
            watch(step, model, held_out)
        if step == spec.steps:
            break
        starts = torch.randint(len(ids) - LENGTH, (BATCH,))
        rows = torch.stack([ids[start : start + LENGTH] for start in starts.tolist()])
        decay = 1 - 0.9 * step / spec.steps
        optimizer.param_groups[0]["lr"] = spec.learning_rate * min((step + 1) / warm, decay)
        hidden = hidden_states(model, rows)[:, :-1]
        loss = fenchel.linear_fenchel_young_loss(hidden, model.lm_head.weight, rows[:, 1:], spec.divergence)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(
                f"  training {spec.divergence}: step {step} of {spec.steps}, loss {loss.item():.3f}",
                flush=True,
            )
    return model


def hidden_states(model: Any, rows: Tensor) -> Tensor:
    """The last hidden states, (rows, tokens, d)."""
    hidden: Tensor = model.model(input_ids=rows, use_cache=False).last_hidden_state
    return hidden


def trained_head(spec: Spec, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden (rows, d), weight (V, d), target (rows,)) of held-out text; trained at the first call."""
    key = hashlib.sha256(json.dumps([*spec, rows, torch.__version__]).encode()).hexdigest()[:16]
    path = ROOT / "build" / "benchmarks" / f"{key}.pt"
    if not path.exists():
        data = tokens(spec.vocabulary)
        model = train(spec, data)
        windows = -(-rows // (LENGTH - 1))
        text = data[1][: windows * LENGTH].view(windows, LENGTH)
        with torch.no_grad():
            hidden = hidden_states(model, text)[:, :-1].reshape(-1, spec.hidden)[:rows]
        found = (
            hidden.clone(),
            model.lm_head.weight.detach().clone(),
            text[:, 1:].reshape(-1)[:rows].clone(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
    hidden, weight, target = torch.load(path)
    return hidden, weight, target
