"""One optimiser step of several set-ups, under torchrun or alone; rank 0 writes loss, norm and weights.

python -m torch.distributed.run --nproc_per_node=2 invariance_job.py RESULT ACCUMULATION [fsdp]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from training.tiny import llama, tokenizer_of, trained_bpe, trainer_of

from fenchel.training.configs import DistillConfig, RolloutConfig, SFTConfig, TeacherConfig
from fenchel.training.generators import rollout_of
from fenchel.training.objectives import Distillation, SupervisedFineTuning
from fenchel.training.packing import Collator, pack
from fenchel.training.teachers.build import follow_student, teacher_of
from fenchel.training.teachers.local import LocalTeacher

VOCABULARY = 40
ROWS = 8
ANSWERS = (9, 1, 5, 2, 14, 3, 4, 11)


def documents(answers: tuple[int, ...] = ANSWERS) -> list[Any]:
    """Eight rows with prompts of unlike length, and answers of the lengths given."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(ROWS):
        prompt = torch.randint(2, VOCABULARY, (2 + i % 3,), generator=generator).tolist()
        answer = torch.randint(2, VOCABULARY, (20,), generator=generator).tolist()[: answers[i]]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def teacher(seed: int = 5) -> Any:
    model = llama(VOCABULARY, seed=seed, hidden=32)
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    return model


def student() -> Any:
    model = llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    return model


def sft(_: Any) -> Any:
    return SupervisedFineTuning(SFTConfig(divergence="alpha:1.5"))


def distill(**settings: Any) -> Callable[[Any], Any]:
    top_k = settings.pop("top_k", None)

    def objective(_: Any) -> Any:
        return Distillation(LocalTeacher(teacher()), DistillConfig(**settings), top_k=top_k)

    return objective


def moving_average(model: Any) -> Any:
    config = TeacherConfig(self_teacher="ema", ema_decay=0.5)
    made = teacher_of(
        config,
        student=model,
        tokenizer=None,
        device=torch.device("cpu"),
        max_length=32,
        temperature=1.0,
    )
    return Distillation(made, DistillConfig(hard_label_weight=0.5))


# name: (objective, rollout, packed)
CASES: dict[str, tuple[Callable[[Any], Any], dict[str, Any] | None, bool]] = {
    "sft": (sft, None, False),
    "sft packed": (sft, None, True),
    "distillation": (distill(divergence="js", hard_label_weight=0.25), None, False),
    "distillation packed": (distill(divergence="js", hard_label_weight=0.25), None, True),
    "distillation in chunks": (distill(divergence="js", hard_label_weight=0.25, loss_chunk=3), None, False),
    "top-k": (distill(divergence="kl", top_k=4), None, False),
    "on-policy": (distill(divergence="reverse-kl"), {"lmbda": 1.0}, False),
    "mixed": (distill(divergence="jsd:0.5"), {"lmbda": 0.5, "seq_kd": True}, False),
    "moving average": (moving_average, None, False),
}
# A moving average is of whole parameters.
NOT_SHARDED = ("moving average",)


def step(
    name: str, accumulation: int, output: Path, *, rows: list[Any] | None = None, **settings: Any
) -> list[Any]:
    """[loss, gradient norm, sums of the weights after two steps, figures of what was generated]."""
    make, generation, packed = CASES[name]
    rows = documents() if rows is None else rows
    if packed:
        rows = [dict(row) for row in pack(Dataset.from_list(rows), 19)]
        assert len(rows) == 4
    model = student()
    objective = make(model)
    tokenizer = tokenizer_of(trained_bpe())
    tokenizer.pad_token = tokenizer.eos_token
    collator = Collator(pad_token_id=1)
    config = RolloutConfig(max_new_tokens=6, **generation) if generation is not None else None
    world = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = min(accumulation, len(rows) // world)
    trainer = trainer_of(
        output,
        model,
        objective,
        rows,
        collator,
        per_device_train_batch_size=len(rows) // (world * accumulation),
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        num_train_epochs=2,
        optim="sgd",
        learning_rate=0.05,
        **settings,
    )
    if config is not None:
        trainer.rollout = rollout_of(config, objective, tokenizer, collator, trainer.args)
    follow_student(trainer, getattr(objective, "teacher", None))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    weights = [
        (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().double().sum().item()
        for p in trainer.model.parameters()
    ]
    figures = [log.get(f"on_policy/{name}") for log in logs for name in ("share", "length", "unfinished")]
    return [[log["loss"] for log in logs], [log["grad_norm"] for log in logs], weights, figures]


def main(result: str, accumulation: str, *rest: str) -> None:
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}
    names = list(CASES)
    if "fsdp" in rest:
        layers = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
        settings |= {"fsdp": "full_shard", "fsdp_config": layers}
        names = [name for name in names if name not in NOT_SHARDED]
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as output:
            found[name] = step(name, int(accumulation), Path(output), **settings)
    if os.environ.get("RANK", "0") == "0":
        Path(result).write_text(json.dumps(found))
    if "WORLD_SIZE" in os.environ:
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads may meet the end of the interpreter


if __name__ == "__main__":
    main(*sys.argv[1:])
