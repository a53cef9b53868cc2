"""Models, tokenizers and data small enough to train in a test; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from fenchel.training.trainer import FenchelTrainer

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps. Question: why? Answer: so."


def trained_bpe() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT] * 20,
        trainers.BpeTrainer(
            vocab_size=350,
            special_tokens=["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer.to_str()


def tokenizer_of(trained: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained), eos_token="</s>")


def llama(
    vocabulary: int, *, hidden: int = 16, layers: int = 1, seed: int = 0, **settings: Any
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(vocabulary: int, *, hidden: int = 16, layers: int = 1, **settings: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=hidden,
        n_layer=layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=1,
        **settings,
    )
    return GPT2LMHeadModel(config).eval()


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_model(path: Path, tokenizer: Any, **settings: Any) -> Path:
    """A directory with a tiny llama and the tokenizer."""
    llama(len(tokenizer), **settings).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def trainer_of(
    output: Path, model: Any, objective: Any, rows: Sequence[Any], collator: Any, **settings: Any
) -> FenchelTrainer:
    """A trainer of `rows`, in their order, that saves nothing and shows nothing."""
    arguments = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 1,
        "max_grad_norm": 1e9,  # none is clipped, yet the norm is logged
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "prediction_loss_only": True,
    }
    return FenchelTrainer(
        objective=objective,
        model=model,
        args=TrainingArguments(output_dir=str(output), **{**arguments, **settings}),
        train_dataset=list(rows),
        data_collator=collator,
    )
