"""Who generates: the student or a teacher in this process, or a server."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.distributed.fsdp import FSDPModule

from fenchel.errors import InputError
from fenchel.training.configs import RolloutConfig
from fenchel.training.objectives import Distillation
from fenchel.training.packing import Collator
from fenchel.training.rollout import Generate, Rollout
from fenchel.training.sampling import complete
from fenchel.training.teachers.build import members_of
from fenchel.training.teachers.completions import CompletionServer
from fenchel.training.teachers.local import LocalTeacher
from fenchel.training.teachers.server import ServerTeacher

logger = logging.getLogger(__name__)


def rollout_of(
    config: RolloutConfig,
    objective: Distillation,
    tokenizer: Any,
    collator: Collator,
    settings: transformers.TrainingArguments,
) -> Rollout | None:
    """The rollout that `config` describes, or None where nothing is generated."""
    if not config.generates:
        return None
    student = student_generator(config, objective, tokenizer)
    if config.generation_server is not None:
        if not objective.matching.softmax:
            raise InputError(
                "a generation_server samples from softmax, with which a student of --loss "
                f"{objective.config.loss} is not decoded; leave generation_server out"
            )
        directory = Path(str(settings.output_dir)) / "_served"
        student = ServedStudent(config, directory, settings, tokenizer.eos_token_id)
    teacher = _teacher_generator(config, objective, tokenizer) if config.seq_kd else None
    return Rollout(config, collator, student, teacher, seed=settings.seed, eos=tokenizer.eos_token_id)


def student_generator(config: RolloutConfig, objective: Distillation, tokenizer: Any) -> Generate:
    """Generation by the student itself, with the operator that its loss is for."""
    divergence = "kl" if objective.matching.softmax else objective.config.divergence
    return _in_process(config, tokenizer, divergence)


def _in_process(config: RolloutConfig, tokenizer: Any, divergence: str, model: Any = None) -> Generate:
    """Generation by `model.generate`: of the student that is passed, or of `model`."""

    def generate(student: Any, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        generator = student if model is None else model
        return complete(
            generator,
            prompts,
            seeds,
            tokenizer=tokenizer,
            max_new_tokens=config.max_new_tokens,
            divergence=divergence,
            temperature=config.sampling_temperature,
            top_k=config.sampling_top_k,
            top_p=config.sampling_top_p,
            stop=config.stop or (),
            batch_size=config.generation_batch_size,
            synchronise=isinstance(generator, FSDPModule),
        )

    return generate


def _served(config: RolloutConfig, server: CompletionServer, eos: int | None) -> Generate:
    def generate(_: Any, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        return server.generate(
            prompts,
            seed=seeds,
            max_new_tokens=config.max_new_tokens,
            temperature=config.sampling_temperature,
            top_k=config.sampling_top_k or 0,
            top_p=config.sampling_top_p or 1.0,
            stop_token_ids=[] if eos is None else [eos],
            stop=config.stop or (),
        )

    return generate


def _teacher_generator(config: RolloutConfig, objective: Distillation, tokenizer: Any) -> Generate:
    for teacher in members_of(objective.teacher):
        if isinstance(teacher, ServerTeacher):
            return _served(config, teacher.server, tokenizer.eos_token_id)
        if isinstance(teacher, LocalTeacher):
            return _in_process(config, tokenizer, "kl", teacher.model)
    raise InputError(
        "seq_kd needs a teacher that can generate: a model in this process or a server; with a cache, "
        "generate the sequences first"
    )


class ServedStudent:
    """A student that a server generates for: its weights are written out and reloaded there before."""

    def __init__(
        self,
        config: RolloutConfig,
        directory: Path,
        settings: transformers.TrainingArguments,
        eos: int | None,
    ) -> None:
        if settings.world_size > 1:
            raise InputError(
                f"generation_server works with one training process, received {settings.world_size}"
            )
        self.server = CompletionServer(str(config.generation_server))
        self.directory, self.versions = directory, 0
        self.generate = _served(config, self.server, eos)

    @torch.no_grad()
    def __call__(self, student: Any, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        if hasattr(student, "peft_config"):
            raise InputError(
                "a generation_server reloads whole models, and the student is an adapter; leave out "
                "generation_server or use_peft"
            )
        # A directory of its own for each version: a server may not read again what it has read before.
        shutil.rmtree(self.directory, ignore_errors=True)
        self.versions += 1
        path = self.directory / str(self.versions)
        student.save_pretrained(path)
        self.server.reload(path)
        found = self.generate(student, prompts, seeds)
        shutil.rmtree(self.directory, ignore_errors=True)
        return found
