"""One thread, one cache of data sets per test, one tiny tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, processors
from training.tiny import tokenizer_of, trained_bpe
from transformers import PreTrainedTokenizerFast


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def trained() -> str:
    return trained_bpe()


@pytest.fixture
def tokenizer(trained: str) -> PreTrainedTokenizerFast:
    return tokenizer_of(trained)


@pytest.fixture
def bos_tokenizer(trained: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer.from_str(trained)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
