"""Generated sequences: which rows give way, what they become, and that nothing else decides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from training.tiny import llama
from transformers import PreTrainedTokenizerFast

from fenchel import InputError, f_softargmax
from fenchel.training.configs import DataConfig, DistillConfig, RolloutConfig
from fenchel.training.objectives import Distillation
from fenchel.training.objectives.predictions import targets_of
from fenchel.training.packing import Collator
from fenchel.training.rollout import Rollout, check_rollout, prompt_of, rows_of
from fenchel.training.sampling import complete, seed_of, uniforms
from fenchel.training.teachers.local import LocalTeacher

EOS = 1


def rows(count: int = 64) -> list[Any]:
    return [
        {"input_ids": [5 + i % 16, 6 + i // 16, 7, 8], "labels": [-100, -100, 7, 8]} for i in range(count)
    ]


def rollout(record: list[Any] | None = None, teacher: bool = False, **settings: Any) -> Rollout:
    """Students write 20, 21, ... and teachers 30; no model is needed."""

    def write(first: int) -> Any:
        def generate(_: Any, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
            if record is not None:
                record.append((first, prompts, seeds))
            return [[first, seed % 7, EOS] for seed in seeds]

        return generate

    return Rollout(
        RolloutConfig(**settings),
        Collator(pad_token_id=0),
        write(20),
        write(30) if teacher else None,
        seed=3,
        eos=EOS,
    )


def sources(batches: list[Any]) -> Counter[str]:
    names = {20: "student", 30: "teacher", 7: "data"}
    return Counter(names[row["input_ids"][2]] for batch in batches for row in rows_of(batch))


class TestRollout:
    def batches(self, count: int = 64, size: int = 16) -> list[Any]:
        data = rows(count)
        return [Collator(pad_token_id=0)(data[i : i + size]) for i in range(0, count, size)]

    def test_offline_and_fully_on_policy(self) -> None:
        assert sources(rollout(lmbda=0.0)(None, self.batches(), 0)) == {"data": 64}
        assert sources(rollout(lmbda=1.0)(None, self.batches(), 0)) == {"student": 64}

    def test_share_of_each_source(self) -> None:
        total: Counter[str] = Counter()
        made = rollout(lmbda=0.3, seq_kd=True, teacher=True)
        for step in range(40):
            total += sources(made(None, self.batches(), step))
        assert total["data"] == 0
        assert total["student"] / (40 * 64) == pytest.approx(0.3, abs=0.03)  # 3 standard deviations

    def test_generated_rows_are_prompt_and_completion(self) -> None:
        (batch,) = rollout(lmbda=1.0)(None, self.batches(4, 4), 0)
        for row, original in zip(rows_of(batch), rows(4), strict=True):
            assert row["input_ids"][:2] == original["input_ids"][:2]
            assert row["labels"][:2] == [-100, -100]
            assert row["labels"][2:] == row["input_ids"][2:]
            assert row["input_ids"][-1] == EOS

    def test_the_students_own_rows_are_told_and_are_no_labels(self) -> None:
        (batch,) = rollout(lmbda=0.5)(None, self.batches(16, 16), 0)
        wrote = [row["input_ids"][2] == 20 for row in rows_of(batch)]
        assert batch["own"].tolist() == wrote and 0 < sum(wrote) < 16
        student, teacher = llama(40, seed=1), llama(40, seed=2)
        mask, _ = targets_of(batch)
        own = batch["own"].unsqueeze(-1).expand_as(mask)[mask]
        plain = {name: value for name, value in batch.items() if name != "own"}

        def losses(weight: float, batch: Any) -> Any:
            return Distillation(LocalTeacher(teacher), DistillConfig(hard_label_weight=weight))(
                student, batch
            )

        torch.testing.assert_close(losses(0.25, batch)[own], losses(0.0, plain)[own])
        torch.testing.assert_close(losses(0.25, batch)[~own], losses(0.25, plain)[~own])
        torch.testing.assert_close(losses(1.0, batch)[own], losses(0.0, plain)[own])
        torch.testing.assert_close(losses(1.0, batch)[~own], losses(1.0, plain)[~own])

    def test_all_batches_of_a_step_are_generated_at_once(self) -> None:
        record: list[Any] = []
        rollout(record, lmbda=1.0)(None, self.batches(64, 4), 0)
        assert [len(prompts) for _, prompts, _ in record] == [64]

    def test_does_not_depend_on_the_split(self) -> None:
        whole = rollout(lmbda=0.5)(None, self.batches(64, 64), 7)
        split = rollout(lmbda=0.5)(None, self.batches(64, 4), 7)
        assert [r for b in whole for r in rows_of(b)] == [r for b in split for r in rows_of(b)]
        later = rollout(lmbda=0.5)(None, self.batches(64, 64), 8)
        assert [r for b in later for r in rows_of(b)] != [r for b in whole for r in rows_of(b)]

    def test_equal_prompts_are_sampled_apart(self) -> None:
        record: list[Any] = []
        rollout(record, lmbda=1.0)(None, [Collator(0)(rows(1) * 5)], 0)
        assert len(set(record[0][2])) == 5

    def test_replay(self) -> None:
        record: list[Any] = []
        made = rollout(record, lmbda=1.0, replay_size=80, replay_share=0.5)
        made(None, self.batches(), 0)
        assert len(made.buffer) == 64
        generated = len(record[0][1])
        batches = made(None, self.batches(), 1)
        assert generated == 64 and 20 <= len(record[1][1]) <= 44
        assert len(made.buffer) == 80
        assert sources(batches) == {"student": 64}
        again = rollout(lmbda=1.0, replay_size=80, replay_share=0.5)
        again.load_state_dict(made.state_dict())
        resumed, straight = (each(None, self.batches(), 2) for each in (again, made))
        assert [rows_of(b) for b in resumed] == [rows_of(b) for b in straight]

    def test_degenerate_completions_are_counted(self) -> None:
        outputs = [[EOS], [9, 9, 9, 9, 9, 9, 9, 9], [3, 4, EOS], [3, 4, 5, 6, 7, 8, 9, 10]]
        made = Rollout(
            RolloutConfig(lmbda=1.0, max_new_tokens=8),
            Collator(0),
            lambda *_: outputs,
            None,
            seed=0,
            eos=EOS,
        )
        made(None, self.batches(4, 4), 0)
        found = made.metrics()
        assert found["on_policy/empty"] == 0.25
        assert found["on_policy/unfinished"] == 0.5
        assert found["on_policy/repeating"] == 0.25
        assert found["on_policy/length"] == 20 / 4
        assert made.metrics() == {}

    def test_an_empty_generation_learns_to_end(self) -> None:
        made = Rollout(RolloutConfig(lmbda=1.0), Collator(0), lambda *_: [[]], None, seed=0, eos=EOS)
        (batch,) = made(None, self.batches(1, 1), 0)
        assert rows_of(batch)[0]["labels"] == [-100, -100, EOS]
        made.eos = None
        with pytest.raises(InputError, match="no eos token"):
            made(None, self.batches(1, 1), 0)


class TestPrompts:
    def test_of_the_last_turn(self) -> None:
        row = {"input_ids": list(range(9)), "labels": [-100, 1, 2, -100, -100, 5, 6, -100, -100]}
        assert prompt_of(row) == [0, 1, 2, 3, 4]
        assert prompt_of({"input_ids": [1, 2], "labels": [-100, -100]}) == [1, 2]

    def test_bad_input(self) -> None:
        text = [{"input_ids": [1, 2], "labels": [1, 2]}]
        data, config = DataConfig(max_length=16), RolloutConfig(lmbda=1.0, max_new_tokens=8)
        with pytest.raises(InputError, match="row 1 has no prompt to generate from"):
            check_rollout(text, data, config)
        long = [{"input_ids": list(range(12)), "labels": [-100] * 9 + [9, 10, 11]}]
        with pytest.raises(InputError, match="prompt of 9 tokens and max_new_tokens 8 exceed max_length 16"):
            check_rollout(long, data, config)
        with pytest.raises(InputError, match="packing"):
            check_rollout(long, DataConfig(max_length=32, packing=True), config)

    @pytest.mark.parametrize("lmbda", [-0.1, 1.1, float("nan")])
    def test_share_outside_its_range(self, lmbda: float) -> None:
        with pytest.raises(InputError, match=r"lmbda must be in \[0, 1\]"):
            RolloutConfig(lmbda=lmbda)


class TestSampling:
    def model(self, vocabulary: int, seed: int = 0) -> Any:
        model = llama(vocabulary, hidden=32, layers=2, seed=seed)
        with torch.no_grad():
            model.lm_head.weight.mul_(15)
        return model

    def test_a_sequence_does_not_depend_on_the_batch(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.pad_token = tokenizer.eos_token
        model = self.model(len(tokenizer))
        prompts, seeds = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]], [3, 1, 4, 15]
        options: Any = {"tokenizer": tokenizer, "max_new_tokens": 12}
        together = complete(model, prompts, seeds, **options)
        for size in (1, 2):
            assert complete(model, prompts, seeds, batch_size=size, **options) == together
        backwards = complete(model, prompts[::-1], seeds[::-1], **options)
        assert backwards[::-1] == together
        assert complete(model, prompts, [s + 1 for s in seeds], **options) != together

    def test_leaves_the_random_state_and_the_mode(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.pad_token = tokenizer.eos_token
        model = self.model(len(tokenizer)).train()
        state = torch.random.get_rng_state()
        complete(model, [[5]], [0], tokenizer=tokenizer, max_new_tokens=3)
        assert torch.equal(torch.random.get_rng_state(), state) and model.training

    @pytest.mark.parametrize(("divergence", "temperature"), [("kl", 1.0), ("kl", 0.5), ("alpha:1.5", 1.0)])
    def test_frequencies_are_the_operators_probabilities(
        self, tokenizer: PreTrainedTokenizerFast, divergence: str, temperature: float
    ) -> None:
        tokenizer.pad_token = tokenizer.eos_token
        model, count = self.model(len(tokenizer)), 4000
        drawn = complete(
            model,
            [[5, 6]] * count,
            list(range(count)),
            tokenizer=tokenizer,
            max_new_tokens=1,
            divergence=divergence,
            temperature=temperature,
            batch_size=count,
        )
        logits = model(torch.tensor([[5, 6]])).logits[0, -1]
        p = f_softargmax(logits / temperature, divergence).double()
        observed = torch.bincount(torch.tensor([t[0] for t in drawn]), minlength=len(p)).double()
        assert (observed[p == 0] == 0).all()
        expected = p[p > 0] * count
        statistic = float(((observed[p > 0] - expected) ** 2 / expected).sum())
        freedom = int((p > 0).sum()) - 1
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5  # the chi-squared statistic's 5 sigma

    def test_top_k_and_stop_texts(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.pad_token = tokenizer.eos_token
        model = self.model(len(tokenizer))
        options: Any = {"tokenizer": tokenizer, "max_new_tokens": 20}
        greedy = complete(model, [[5, 6]], [0], top_k=1, **options)
        assert greedy == complete(model, [[5, 6]], [1], top_k=1, **options)
        free = complete(model, [[5, 6]] * 8, list(range(8)), **options)
        stop = tokenizer.decode(free[0][3])
        stopped = complete(model, [[5, 6]] * 8, list(range(8)), stop=[stop], **options)
        for cut, whole in zip(stopped, free, strict=True):
            assert whole[: len(cut)] == cut
            if len(cut) < len(whole):
                assert stop in tokenizer.decode(cut) and stop not in tokenizer.decode(cut[:-1])
        assert len(stopped[0]) <= 4
        # A window of tokens may begin within a character and read otherwise than the whole.
        texts = tokenizer.batch_decode(free)
        broken = sorted({text[i : i + 2] for text in texts for i in range(18) if text[i] == "\ufffd"})[:8]
        assert broken
        for stop in broken:
            stopped = complete(model, [[5, 6]] * 8, list(range(8)), stop=[stop], **options)
            assert all(whole[: len(cut)] == cut for cut, whole in zip(stopped, free, strict=True))

    def test_ends_at_eos(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.pad_token = tokenizer.eos_token
        model = self.model(len(tokenizer))
        with torch.no_grad():
            model.lm_head.weight.mul_(0)  # uniform: an end now and then
        eos = tokenizer.eos_token_id
        found = complete(model, [[5]] * 400, list(range(400)), tokenizer=tokenizer, max_new_tokens=30)
        ended = [tokens for tokens in found if eos in tokens]
        assert ended and all(tokens.index(eos) == len(tokens) - 1 for tokens in ended)
        assert all(len(tokens) == 30 for tokens in found if eos not in tokens)
        rate = 1 - (1 - 1 / len(tokenizer)) ** 30
        assert len(ended) / 400 == pytest.approx(rate, abs=0.06)

    def test_numbers_are_uniform_and_their_own(self) -> None:
        numbers = uniforms([seed_of([i], "test") for i in range(200)], 50)
        assert numbers.shape == (200, 50)
        assert abs(float(numbers.mean()) - 0.5) < 0.02
        assert len({seed_of([i], 0, k) for i in range(50) for k in range(50)}) == 2500
