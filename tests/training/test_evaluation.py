"""Every figure against what a reader would work out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training.tiny import llama, tokenizer_of
from transformers import PreTrainedTokenizerFast

from fenchel.errors import InputError
from fenchel.training.evaluation import evaluate_model
from fenchel.training.packing import Collator

VOCABULARY = 400


class Fixed(torch.nn.Module):
    """Scores the tokens of `probabilities` by their logarithms, the others far below."""

    def __init__(self, probabilities: dict[int, float], *, rest: float = -1e4) -> None:
        super().__init__()
        scores = torch.full((VOCABULARY,), rest)
        for token, p in probabilities.items():
            scores[token] = math.log(p)
        self.scores = torch.nn.Parameter(scores)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.scores.expand(*input_ids.shape, -1))


def batch(*rows: list[int], prompt: int = 0) -> dict[str, torch.Tensor]:
    return Collator(pad_token_id=0)(
        [{"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]} for ids in rows]
    )


def letters(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int, int]:
    a, b, c = (int(tokenizer.convert_tokens_to_ids(letter)) for letter in "abc")
    return a, b, c


def test_against_the_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b, c = letters(tokenizer)
    model = Fixed({a: 0.5, b: 0.25, c: 0.25})
    # Predicted are b, a, a in the first row and c in the second: 2 + 1 + 1 + 2 bits over 4 bytes.
    results = evaluate_model(model, tokenizer, [batch([a, b, a, a], [a, c])])
    assert results["tokens"] == 4
    assert results["bits_per_byte"] == pytest.approx(6 / 4)
    assert results["accuracy"] == 0.5
    assert results["calibration_error"] == pytest.approx(0.0, abs=1e-6)  # sure to 0.5, right half the time
    assert results["support_size"] == 3
    figures = {"tokens", "bits_per_byte", "ruled_out", "accuracy", "calibration_error", "support_size"}
    assert set(results) == figures


def test_calibration_error(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b, _ = letters(tokenizer)
    results = evaluate_model(Fixed({a: 0.9, b: 0.1}), tokenizer, [batch([a, a, b, b, b])])
    assert results["calibration_error"] == pytest.approx(0.9 - 0.25, abs=1e-6)


def test_bytes_are_of_the_text_and_prompts_do_not_count(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("the dog, é dog", add_special_tokens=False)["input_ids"]
    tail = tokenizer.decode(ids[2:])
    model = Fixed(dict.fromkeys(range(256), 1 / 256), rest=math.log(1 / 256))
    nats = (len(ids) - 2) * math.log(VOCABULARY)
    results = evaluate_model(model, tokenizer, [batch(ids, prompt=2)])
    assert results["tokens"] == len(ids) - 2
    assert results["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(tail.encode()))


def test_end_of_text_costs_bits_but_is_no_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b, _ = letters(tokenizer)
    model = Fixed({a: 0.5, b: 0.25, tokenizer.eos_token_id: 0.25})
    results = evaluate_model(model, tokenizer, [batch([a, a, tokenizer.eos_token_id])])
    assert results["bits_per_byte"] == pytest.approx(1 + 2)


def test_spaces_before_punctuation_are_bytes_too(trained: str) -> None:
    tokenizer = tokenizer_of(trained)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    ids = tokenizer("a , b .", add_special_tokens=False)["input_ids"]
    model = Fixed({}, rest=0.0)
    results = evaluate_model(model, tokenizer, [batch(ids)])
    expected = (len(ids) - 1) * math.log2(VOCABULARY) / 6
    assert results["bits_per_byte"] == pytest.approx(expected)


def test_a_sparse_model_that_rules_out_the_truth(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b, c = letters(tokenizer)
    model = Fixed({a: 0.6, b: 0.4, c: 1e-3})
    results = evaluate_model(model, tokenizer, [batch([a, b, c])], divergence="alpha:2")
    assert results["bits_per_byte"] == math.inf
    assert results["ruled_out"] == 0.5
    assert results["support_size"] == 2
    assert math.isfinite(evaluate_model(model, tokenizer, [batch([a, b, c])])["bits_per_byte"])


def test_against_a_teacher(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b, c = letters(tokenizer)
    p = torch.tensor([0.5, 0.3, 0.2]).double()  # teacher
    q = torch.tensor([0.2, 0.2, 0.6]).double()
    teacher, student = (Fixed(dict(zip((a, b, c), v.tolist(), strict=True))) for v in (p, q))
    results = evaluate_model(student, tokenizer, [batch([a, b, c], [b, a])], teacher=teacher)
    middle = (p + q) / 2
    assert results["kl_teacher_student"] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert results["kl_student_teacher"] == pytest.approx(float((q * (q / p).log()).sum()), rel=1e-5)
    js = (p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()
    assert results["js_teacher_student"] == pytest.approx(float(js), rel=1e-5)


def test_against_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    model = llama(len(tokenizer))
    rows = [batch([5, 9, 33], [7, 8])]
    results = evaluate_model(model, tokenizer, rows, teacher=model)
    for name in ("kl_teacher_student", "kl_student_teacher", "js_teacher_student"):
        assert results[name] == pytest.approx(0, abs=1e-6)


def test_batches_do_not_matter(tokenizer: PreTrainedTokenizerFast) -> None:
    model, teacher = llama(len(tokenizer)), llama(len(tokenizer), seed=1)
    rows = [[5, 9, 33, 70, 71], [7, 8], [100, 9, 9]]
    together = evaluate_model(model, tokenizer, [batch(*rows)], teacher=teacher)
    apart = evaluate_model(model, tokenizer, [batch(row) for row in rows], teacher=teacher)
    assert apart == pytest.approx(together, rel=1e-5)


def test_leaves_the_mode_of_the_model(tokenizer: PreTrainedTokenizerFast) -> None:
    model = llama(len(tokenizer)).train()
    evaluate_model(model, tokenizer, [batch([5, 9])])
    assert model.training


def test_nothing_to_evaluate(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="no token to evaluate on"):
        evaluate_model(llama(len(tokenizer)), tokenizer, [])
