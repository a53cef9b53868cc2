"""The layer in models of Hugging Face, of language and of vision: upcycled, trained, saved, generating."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fenchel import MoEFeedForward, auxiliary_loss


def dense() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
    )


def upcycled(model: LlamaForCausalLM, noise: float = 0.0) -> LlamaForCausalLM:
    """With room for all; with noise the experts differ."""
    for block in model.model.layers:
        block.mlp = MoEFeedForward.upcycle(
            block.mlp.up_proj,
            block.mlp.down_proj,
            gate=block.mlp.gate_proj,
            experts=4,
            activation=block.mlp.act_fn,
            capacity_factor=math.inf,
        )
        with torch.no_grad():
            block.mlp.weight_out.add_(noise * torch.randn_like(block.mlp.weight_out))
    return model


def text(rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 50, (rows, 9))


def test_a_language_model_computes_what_it_did_and_then_trains() -> None:
    """With room for all and gates that sum to one."""
    model, tokens = dense(), text()
    expected = model(tokens).logits
    torch.testing.assert_close(upcycled(model)(tokens).logits, expected)
    (model(tokens, labels=tokens).loss + auxiliary_loss(model)).backward()
    for block in model.model.layers:
        assert (block.mlp.router.weight.grad != 0).any() and (block.mlp.weight_in.grad != 0).any()


def test_generation_with_a_cache_is_that_without_and_padding_on_the_left_is_nothing() -> None:
    model, tokens = upcycled(dense(), noise=0.3).eval(), text()
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    expected = model.generate(tokens, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(model.generate(tokens, attention_mask=mask, **options), expected)
    padded, mask = (torch.nn.functional.pad(x, (4, 0)) for x in (tokens, mask))
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 4:], expected)


def test_a_trainer_saves_what_can_be_loaded(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import Trainer, TrainingArguments

    class WithBalance(Trainer):
        def compute_loss(self, model, inputs, **_):  # type: ignore[no-untyped-def]
            return model(**inputs).loss + auxiliary_loss(model)

    rows = [{"input_ids": row, "labels": row} for row in text(4)]
    options = {"max_steps": 2, "save_steps": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    model, other = upcycled(dense()), upcycled(dense(), noise=0.3)
    WithBalance(model, TrainingArguments(str(tmp_path), **options), train_dataset=rows).train()
    other.load_state_dict(load_file(tmp_path / "checkpoint-2" / "model.safetensors"))
    tokens = text()
    assert torch.equal(model.eval()(tokens).logits, other.eval()(tokens).logits)


@pytest.mark.parametrize("name", ["ViT", "CLIPVision", "SiglipVision"])
def test_a_vision_tower_computes_what_it_did_and_then_trains(name: str) -> None:
    import transformers

    config = getattr(transformers, f"{name}Config")(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    model, pixels = getattr(transformers, f"{name}Model")(config), torch.randn(2, 3, 16, 16)
    expected = model(pixels).last_hidden_state
    blocks = [module for module in model.modules() if hasattr(module, "mlp")][:2]  # SigLIP's head has one too
    for block in blocks:
        fc1, fc2, activation = block.mlp.fc1, block.mlp.fc2, block.mlp.activation_fn
        block.mlp = MoEFeedForward.upcycle(
            fc1, fc2, experts=4, activation=activation, capacity_factor=math.inf
        )
    received = model(pixels).last_hidden_state
    torch.testing.assert_close(received, expected)
    (received.square().mean() + auxiliary_loss(model)).backward()
    for block in blocks:
        assert (block.mlp.router.weight.grad != 0).any() and (block.mlp.weight_in.grad != 0).any()
