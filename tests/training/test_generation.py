"""What is drawn has the probabilities of f-softargmax, and nothing else in the process notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training.tiny import llama
from transformers import LogitsProcessorList

import fenchel
from fenchel.training.generation import MatchingLogitsProcessor, sample

LOGITS = torch.tensor([2.0, 1.7, 1.0, 0.4, -0.5, -3.0])
DRAWS = 6000


class Words:
    """A tokenizer whose tokens are digits."""

    pad_token_id, eos_token_id = 0, None

    def __call__(self, text: str, return_tensors: str | None = None) -> Any:
        from transformers import BatchEncoding

        ids = torch.tensor([[int(c) for c in text]])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return ["".join(str(int(token)) for token in row) for row in rows]


@pytest.fixture(scope="module")
def fixed() -> Any:
    """A model that scores the next token LOGITS whatever came before."""
    model = llama(len(LOGITS), layers=1)
    model.generation_config.eos_token_id = None
    head = torch.nn.Linear(16, len(LOGITS))
    torch.nn.init.zeros_(head.weight)
    head.bias.data = LOGITS.clone()
    model.lm_head = head
    return model.eval()


def drawn(model: Any, **options: Any) -> torch.Tensor:
    options = {"max_new_tokens": 3, "num_return_sequences": DRAWS // 3, "do_sample": True, **options}
    texts = sample(model, Words(), ["1"], **options)
    counts = torch.zeros(len(LOGITS))
    for character in "".join(texts):
        counts[int(character)] += 1
    return counts / counts.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("name", ["kl", "alpha:1.5", "chi2", "js"])
def test_draws_have_the_matching_probabilities(fixed: Any, name: str, temperature: float) -> None:
    p = fenchel.f_softargmax(LOGITS / temperature, name)
    frequencies = drawn(fixed, divergence=name, temperature=temperature)
    # Total variation is 3 standard deviations of each cell away at most.
    assert 0.5 * (frequencies - p).abs().sum() < 0.5 * (3 * (p * (1 - p) / DRAWS).sqrt()).sum() + 1e-9
    assert (frequencies[p == 0] == 0).all()
    if name in ("alpha:1.5", "chi2"):
        assert (p == 0).any()


def test_temperature_acts_before_the_operator() -> None:
    processor = MatchingLogitsProcessor("alpha:2", temperature=2.0)
    produced = processor(torch.zeros(1, 1, dtype=torch.long), LOGITS[None]).exp()
    torch.testing.assert_close(produced[0], fenchel.f_softargmax(LOGITS / 2, "alpha:2"))
    after = (fenchel.f_softargmax(LOGITS, "alpha:2").log() / 2).softmax(-1)
    assert (produced[0] - after).abs().max() > 0.05


def test_works_inside_plain_generate(fixed: Any) -> None:
    produced = fixed.generate(
        torch.ones(2000, 1, dtype=torch.long),
        logits_processor=LogitsProcessorList([MatchingLogitsProcessor("alpha:2")]),
        do_sample=True,
        max_new_tokens=1,
        pad_token_id=0,
    )[:, 1]
    assert set(produced.tolist()) == set(fenchel.f_softargmax(LOGITS, "alpha:2").nonzero()[:, 0].tolist())


def test_settings_saved_with_the_model_do_not_act_on_top(fixed: Any) -> None:
    saved = fixed.generation_config.to_dict()
    try:
        fixed.generation_config.update(temperature=0.1, top_k=1, top_p=0.1, do_sample=True)
        p = fenchel.f_softargmax(LOGITS, "kl")
        assert (drawn(fixed) - p).abs().max() < 0.05
    finally:
        fixed.generation_config.update(**saved)


def test_greedy_takes_the_largest(fixed: Any) -> None:
    options = {"do_sample": False, "max_new_tokens": 5}
    assert sample(fixed, Words(), ["1", "234"], divergence="alpha:1.5", **options) == ["00000"] * 2


def test_top_k_acts_on_the_matching_probabilities(fixed: Any) -> None:
    frequencies = drawn(fixed, divergence="alpha:1.5", top_k=2)
    p = fenchel.f_softargmax(LOGITS, "alpha:1.5")
    assert frequencies[2:].sum() == 0
    assert frequencies[0] == pytest.approx(float(p[0] / p[:2].sum()), abs=0.03)


def test_seed_decides_and_the_random_state_outside_is_left_alone(fixed: Any) -> None:
    options = {"max_new_tokens": 40, "do_sample": True}
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (sample(fixed, Words(), ["1"], seed=s, **options) for s in (3, 3, 4))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_random_state_survives_an_error(fixed: Any) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="max_new_tokens"):
        sample(fixed, Words(), ["1"], max_new_tokens=-1)
    assert torch.equal(torch.get_rng_state(), before)


def test_prompts_do_not_touch_one_another() -> None:
    model = llama(10, layers=1)
    options = {"max_new_tokens": 8, "do_sample": False}
    together = sample(model, Words(), ["12345", "6"], **options)
    assert together == [sample(model, Words(), [p], **options)[0] for p in ("12345", "6")]
