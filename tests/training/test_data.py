"""Rows become the right tokens, under the right loss, apart from one another."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from training.tiny import TEXT, gpt2, llama, write_jsonl
from transformers import PreTrainedTokenizerFast

from fenchel.errors import InputError
from fenchel.training.configs import DataConfig
from fenchel.training.data import load
from fenchel.training.packing import Collator, best_fit, pack
from fenchel.training.tokenization import tokenize

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
# Turns of the assistant before the last lose their content once another turn follows.
FORGETFUL_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "why the dog?"},
    {"role": "assistant", "content": "so the fox"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "over."},
]


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in dataset]


def under_loss(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> str:
    """Decode the tokens under loss; every other label must be -100."""
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (token, -100)
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def dataset_of(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def documents_in(row: dict[str, Any]) -> list[slice]:
    starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True)]


class TestLoad:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
    def test_formats_agree(self, tmp_path: Path, kind: str, streaming: bool) -> None:
        rows = [{"text": "one, two"}, {"text": 'thr"ee'}]
        path = tmp_path / f"data [1].{kind}"
        table = datasets.Dataset.from_list(rows)
        {
            "jsonl": lambda: write_jsonl(path, rows),
            "json": lambda: path.write_text(json.dumps(rows)),
            "parquet": lambda: table.to_parquet(path),
            "csv": lambda: table.to_csv(path),
        }[kind]()
        assert rows_of(load(str(path), streaming=streaming)) == rows

    def test_text_file_is_one_document_with_all_its_line_breaks(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n\n\ntwo\n")
        assert rows_of(load(str(tmp_path / "a.txt"))) == [{"text": "one\n\n\ntwo\n"}]

    def test_directory_with_splits(self, tmp_path: Path) -> None:
        (tmp_path / "train.txt").write_text("a\n\nb")
        (tmp_path / "test.txt").write_text("c\n\nd")
        (tmp_path / "README.md").write_text("notes")
        assert rows_of(load(str(tmp_path), split="test")) == [{"text": "c\n\nd"}]

    def test_directory_of_two_formats(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a")
        write_jsonl(tmp_path / "b.jsonl", [{"text": "b"}])
        with pytest.raises(InputError, match=r"one format .* found \.jsonl, \.txt"):
            load(str(tmp_path))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_saved_to_disk(self, tmp_path: Path, streaming: bool) -> None:
        dataset_of(text=["a"]).save_to_disk(tmp_path / "one")
        assert rows_of(load(str(tmp_path / "one"), streaming=streaming)) == [{"text": "a"}]
        datasets.DatasetDict({"dev": dataset_of(text=["b"])}).save_to_disk(tmp_path / "many")
        assert rows_of(load(str(tmp_path / "many"), split="dev")) == [{"text": "b"}]
        with pytest.raises(InputError, match="no split 'train'; it has: dev"):
            load(str(tmp_path / "many"), streaming=streaming)

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        ("line", "what"),
        [
            (b'{"text": "b', "not valid JSON"),
            (b"[1, 2]", "must be a JSON object, got list"),
            (b'{"text": "caf\xe9"}', "not UTF-8"),
        ],
    )
    def test_bad_line(self, tmp_path: Path, line: bytes, what: str, streaming: bool) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "d"}\n')
        with pytest.raises(InputError, match=rf"a\.jsonl, line 3: {what}"):
            load(str(path), streaming=streaming)

    @pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.json"])
    def test_unreadable_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b'"\xff\x00{')
        with pytest.raises(InputError, match=f"{name}.* cannot be read: .") as caught:
            load(str(tmp_path / name))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", ["", "\n\n"])
    def test_empty(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "a.jsonl").write_text(content)
        with pytest.raises(InputError, match="is empty"):
            load(str(tmp_path / "a.jsonl"))

    def test_missing_file_names_the_nearest(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
        with pytest.raises(InputError, match=r"no such file.*did you mean '.*/train\.jsonl'"):
            load(str(tmp_path / "trian.jsonl"))
        with pytest.raises(InputError, match=r"no such file or directory: '/nowhere/x'$"):
            load("/nowhere/x")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_missing_split_lists_those_there_are(self, tmp_path: Path, streaming: bool) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
        with pytest.raises(InputError, match=r"dev.*\['train'\]"):
            load(str(path), split="dev", streaming=streaming)

    def test_hub_name_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="'someone/something' is neither a file here nor"):
            load("someone/something")

    def test_disk_full_stays_an_os_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: Any, **kwargs: Any) -> None:
            raise datasets.exceptions.DatasetGenerationError from OSError(28, "No space left")

        monkeypatch.setattr(datasets, "load_dataset", full)
        path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
        with pytest.raises(OSError, match="No space left"):
            load(str(path))


class TestText:
    @pytest.mark.parametrize("size", [2, 3, 7, 1000])
    def test_windows_are_the_document(self, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
        text = TEXT
        while len(encode(tokenizer, text)) % size == 1 % size or len(encode(tokenizer, text)) % 2:
            text += " dog"  # with eos, no whole number of windows
        whole = [*encode(tokenizer, text), tokenizer.eos_token_id]
        rows = rows_of(tokenize(dataset_of(text=[text]), tokenizer, DataConfig(max_length=size)))
        assert all(2 <= len(row["input_ids"]) <= size for row in rows)
        assert all(row["labels"] == row["input_ids"] for row in rows)
        joined = [token for row in rows for token in row["input_ids"]]
        # Windows of two leave an odd last token alone: nothing could predict it, so it is dropped.
        assert joined == (whole[:-1] if size == 2 else whole)

    def test_no_token_is_left_alone(self, tokenizer: PreTrainedTokenizerFast) -> None:
        whole = [*encode(tokenizer, TEXT), tokenizer.eos_token_id]
        size = len(whole) - 1
        rows = rows_of(tokenize(dataset_of(text=[TEXT]), tokenizer, DataConfig(max_length=size)))
        assert [row["input_ids"] for row in rows] == [whole[:-2], whole[-2:]]

    def test_special_tokens_once(self, bos_tokenizer: PreTrainedTokenizerFast) -> None:
        data = dataset_of(text=["the dog", "the fox</s>"])
        first, second = rows_of(tokenize(data, bos_tokenizer, DataConfig()))
        assert first["input_ids"] == [0, *encode(bos_tokenizer, "the dog"), 1]
        assert second["input_ids"] == [0, *encode(bos_tokenizer, "the fox"), 1]

    def test_no_eos(self, trained: str) -> None:
        bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained))
        (row,) = rows_of(tokenize(dataset_of(text=["the dog"]), bare, DataConfig()))
        assert row["input_ids"] == encode(bare, "the dog")

    def test_other_column(self, tokenizer: PreTrainedTokenizerFast) -> None:
        data = dataset_of(body=["the dog"], text=["no"])
        (row,) = rows_of(tokenize(data, tokenizer, DataConfig(text_column="body")))
        assert tokenizer.decode(row["input_ids"]) == "the dog</s>"

    def test_empty_rows_are_dropped_and_counted(
        self, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = dataset_of(text=["", "the dog", ""])
        with caplog.at_level(logging.INFO, "fenchel"):
            assert len(tokenize(data, tokenizer, DataConfig())) == 1
        assert "dropped 2 of 3 rows" in caplog.text

    def test_nothing_left(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(InputError, match="no row has a token to learn from"):
            tokenize(dataset_of(text=["", ""]), tokenizer, DataConfig())


class TestColumns:
    def test_unknown(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(InputError, match=r"columns question, reply.*text, or prompt and comp"):
            tokenize(dataset_of(question=["a"], reply=["b"]), tokenizer, DataConfig())

    def test_named_but_missing(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(InputError, match="no column 'body' in the data; it has: text"):
            tokenize(dataset_of(text=["a"]), tokenizer, DataConfig(text_column="body"))

    def test_completion_only_loss_needs_completions(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(InputError, match="completion_only_loss needs"):
            tokenize(dataset_of(text=["a"]), tokenizer, DataConfig(completion_only_loss=True))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_cell_of_another_type(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, streaming: bool
    ) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}, {"text": 5}])
        data = load(str(path), streaming=streaming)
        with pytest.raises(InputError, match="row 2: 'text' must be text, got int 5"):
            rows_of(tokenize(data, tokenizer, DataConfig()))

    def test_missing_cell_in_a_later_batch(self, tokenizer: PreTrainedTokenizerFast) -> None:
        data = dataset_of(text=["the dog"] * 1500 + [None])
        with pytest.raises(InputError, match="row 1501: 'text' must be text, got NoneType"):
            tokenize(data, tokenizer, DataConfig())


class TestCompletions:
    def test_loss_on_the_completion_and_eos(self, bos_tokenizer: PreTrainedTokenizerFast) -> None:
        data = dataset_of(prompt=["Question: why?"], completion=[" Answer: so."])
        (row,) = rows_of(tokenize(data, bos_tokenizer, DataConfig()))
        prompt = [0, *encode(bos_tokenizer, "Question: why?")]
        completion = [*encode(bos_tokenizer, " Answer: so."), 1]
        assert row["input_ids"] == prompt + completion
        assert row["labels"] == [-100] * len(prompt) + completion

    def test_boundary_inside_a_token(self, tokenizer: PreTrainedTokenizerFast) -> None:
        prompt, completion = "the qu", "ick dog"
        alone = encode(tokenizer, prompt)
        assert encode(tokenizer, prompt + completion)[: len(alone)] != alone
        data = dataset_of(prompt=[prompt], completion=[completion])
        (row,) = rows_of(tokenize(data, tokenizer, DataConfig()))
        assert row["input_ids"][: len(alone)] == alone
        assert tokenizer.decode(row["input_ids"]) == "the quick dog</s>"
        assert under_loss(tokenizer, row) == "ick dog</s>"

    def test_loss_on_all(self, bos_tokenizer: PreTrainedTokenizerFast) -> None:
        data = dataset_of(prompt=["the"], completion=[" dog"])
        (row,) = rows_of(tokenize(data, bos_tokenizer, DataConfig(completion_only_loss=False)))
        assert row["labels"] == row["input_ids"] == [0, *encode(bos_tokenizer, "the dog"), 1]

    def test_too_long(self, tokenizer: PreTrainedTokenizerFast) -> None:
        data = dataset_of(prompt=["the", "the"], completion=[" dog", TEXT])
        length = len(encode(tokenizer, "the" + TEXT)) + 1
        with pytest.raises(InputError, match=f"row 2 has {length} tokens, more than max_length 8"):
            tokenize(data, tokenizer, DataConfig(max_length=8))
        rows = rows_of(tokenize(data, tokenizer, DataConfig(max_length=8, truncation=True)))
        assert rows[1]["input_ids"] == encode(tokenizer, "the" + TEXT)[:8]

    def test_a_prompt_that_fills_the_row_is_dropped(
        self, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = dataset_of(prompt=[TEXT, "the"], completion=[" dog", " dog"])
        with caplog.at_level(logging.INFO, "fenchel"):
            rows = rows_of(tokenize(data, tokenizer, DataConfig(max_length=8, truncation=True)))
        assert [under_loss(tokenizer, row) for row in rows] == [" dog</s>"]
        assert "dropped 1 of 2 rows" in caplog.text

    def test_of_messages(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = TEMPLATE
        data = dataset_of(prompt=[CHAT[:2]], completion=[CHAT[2:3]])
        (row,) = rows_of(tokenize(data, tokenizer, DataConfig()))
        assert tokenizer.decode(row["input_ids"]) == (
            "<|system|>be brief<|end|><|user|>why the dog?<|end|><|assistant|>so the fox<|end|>"
        )
        assert under_loss(tokenizer, row) == "so the fox<|end|>"

    def test_mixed_kinds(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = TEMPLATE
        data = dataset_of(prompt=[CHAT[:2]], completion=["so the fox"])
        with pytest.raises(InputError, match="row 1: 'completion' must be a list of messages"):
            tokenize(data, tokenizer, DataConfig())


class TestChats:
    @pytest.mark.parametrize("template", [TEMPLATE, MARKED_TEMPLATE])
    def test_loss_on_the_assistant(self, tokenizer: PreTrainedTokenizerFast, template: str) -> None:
        tokenizer.chat_template = template
        (row,) = rows_of(tokenize(dataset_of(messages=[CHAT]), tokenizer, DataConfig()))
        assert tokenizer.decode(row["input_ids"]) == (
            "<|system|>be brief<|end|><|user|>why the dog?<|end|><|assistant|>so the fox<|end|>"
            "<|user|>and?<|end|><|assistant|>over.<|end|>"
        )
        assert under_loss(tokenizer, row) == "so the fox<|end|>over.<|end|>"

    def test_loss_on_all(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = TEMPLATE
        config = DataConfig(completion_only_loss=False)
        (row,) = rows_of(tokenize(dataset_of(messages=[CHAT]), tokenizer, config))
        assert row["labels"] == row["input_ids"]

    def test_template_that_rewrites_earlier_turns(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = FORGETFUL_TEMPLATE
        (row,) = rows_of(tokenize(dataset_of(messages=[CHAT[:3]]), tokenizer, DataConfig()))
        assert under_loss(tokenizer, row) == "so the fox<|end|>"
        with pytest.raises(InputError, match="row 2: the chat template renders earlier turns"):
            tokenize(dataset_of(messages=[CHAT[:3], CHAT]), tokenizer, DataConfig())

    def test_no_template(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(InputError, match="no chat template; pass --tokenizer_name_or_path"):
            tokenize(dataset_of(messages=[CHAT]), tokenizer, DataConfig())

    def test_template_that_refuses(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = "{{ raise_exception('roles must\nalternate') }}"
        with pytest.raises(InputError, match=r"row 1: .* refuses .*: roles must alternate"):
            tokenize(dataset_of(messages=[CHAT]), tokenizer, DataConfig())

    @pytest.mark.parametrize(
        ("cell", "what"),
        [
            ([], "must be a list of messages, got list"),
            ([{"role": "user", "content": None}], "content .* must be text, got NoneType"),
            ([{"content": "a"}], "must have a role and a content"),
        ],
    )
    def test_malformed(self, tokenizer: PreTrainedTokenizerFast, cell: Any, what: str) -> None:
        tokenizer.chat_template = TEMPLATE
        with pytest.raises(InputError, match=f"row 1: .*{what}"):
            tokenize(dataset_of(messages=[cell]), tokenizer, DataConfig())


class TestPacking:
    @given(lengths=st.lists(st.integers(0, 20), max_size=60), size=st.integers(20, 50))
    def test_best_fit_keeps_every_document_once(self, lengths: list[int], size: int) -> None:
        rows = best_fit(lengths, size)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        filled = [sum(lengths[i] for i in row) for row in rows]
        assert all(used <= size for used in filled)
        # A row is opened only when no other has room, so no two could be one.
        assert all(a + b > size for i, a in enumerate(filled) for b in filled[:i])

    @pytest.mark.parametrize("streaming", [False, True])
    def test_every_token_once_and_none_across_a_boundary(
        self, tokenizer: PreTrainedTokenizerFast, streaming: bool
    ) -> None:
        words = TEXT.split()
        texts = [" ".join(words[i : i + 3]) for i in range(len(words) - 3)]
        data: Any = dataset_of(text=texts)
        if streaming:
            data = data.to_iterable_dataset()
        tokens = tokenize(data, tokenizer, DataConfig(max_length=32))
        before = Counter(tuple(row["input_ids"]) for row in tokens)
        after: Counter[tuple[int, ...]] = Counter()
        packed = rows_of(pack(tokens, 32))
        for row in packed:
            assert len(row["input_ids"]) <= 32
            for place in documents_in(row):
                document = row["input_ids"][place]
                assert row["position_ids"][place] == list(range(len(document)))
                assert row["labels"][place] == [-100, *document[1:]]
                after[tuple(document)] += 1
        assert after == before
        assert len(packed) < len(texts) / 2

    def test_document_longer_than_a_row(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokens = tokenize(dataset_of(text=[TEXT]), tokenizer, DataConfig())
        with pytest.raises(InputError, match="does not fit a row of 8"):
            pack(tokens, 8)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_logits_are_those_of_the_documents_alone(
        self, tokenizer: PreTrainedTokenizerFast, family: str, attention: str
    ) -> None:
        make = {"llama": llama, "gpt2": gpt2}[family]
        model = make(len(tokenizer), hidden=32, layers=2, attn_implementation=attention)
        texts = ["the dog", "why? so.", "The quick brown fox jumps", "the lazy dog sleeps", "over"]
        tokens = tokenize(dataset_of(text=texts), tokenizer, DataConfig(max_length=16))
        packed = rows_of(pack(tokens, 16))
        assert len(documents_in(packed[0])) > 1
        assert len({len(row["input_ids"]) for row in packed}) > 1  # so that the batch has padding
        batch = Collator(pad_token_id=0)(packed)
        seen = 0
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
            for row, row_logits in zip(packed, logits, strict=True):
                for place in documents_in(row):
                    alone = model(torch.tensor([row["input_ids"][place]])).logits[0]
                    torch.testing.assert_close(row_logits[place], alone, atol=1e-5, rtol=0)
                    seen += 1
        assert seen == len(texts)


class TestCollator:
    def test_pads_on_the_right(self) -> None:
        rows = [
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
            {"input_ids": [8], "labels": [8]},
        ]
        batch = Collator(pad_token_id=3)(rows)
        assert {name: tensor.tolist() for name, tensor in batch.items()} == {
            "input_ids": [[5, 6, 7], [8, 3, 3]],
            "labels": [[-100, 6, 7], [8, -100, -100]],
            "attention_mask": [[1, 1, 1], [1, 0, 0]],
        }
        assert all(tensor.dtype == torch.long for tensor in batch.values())

    def test_padding_of_packed_rows_is_a_document(self) -> None:
        rows = [
            {"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "position_ids": [0, 1, 0]},
            {"input_ids": [8], "labels": [-100], "position_ids": [0]},
        ]
        batch = Collator(pad_token_id=3)(rows)
        assert {name: tensor.tolist() for name, tensor in batch.items()} == {
            "input_ids": [[5, 6, 7], [8, 3, 3]],
            "labels": [[-100, 6, -100], [-100, -100, -100]],
            "position_ids": [[0, 1, 0], [0, 0, 1]],
        }
