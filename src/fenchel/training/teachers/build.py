"""From the configuration to the teacher."""

from __future__ import annotations

import copy
import importlib.util
import logging
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from fenchel.errors import InputError
from fenchel.training.configs import TeacherConfig
from fenchel.training.models import check_length, load_model, load_tokenizer
from fenchel.training.resumable import ResumableTrainer
from fenchel.training.teachers.base import Teacher
from fenchel.training.teachers.cache import CachedTeacher
from fenchel.training.teachers.completions import CompletionServer
from fenchel.training.teachers.ensemble import Ensemble
from fenchel.training.teachers.local import LocalTeacher, SelfTeacher
from fenchel.training.teachers.server import ServerTeacher
from fenchel.training.teachers.vocabulary import shared_vocabulary

logger = logging.getLogger(__name__)

_SERVER_TOP_K = 64


def teacher_of(
    config: TeacherConfig,
    *,
    student: Any | None,
    tokenizer: Any,
    device: torch.device,
    max_length: int,
    temperature: float,
    trust_remote_code: bool = False,
) -> Teacher | None:
    """The teacher that `config` describes, an `Ensemble` where there are several; None where there is none.

    Its `vocabulary` is what it shares with the student; without one (`fenchel teach`), all that it has.
    Raises `InputError` for a teacher that cannot be
    reached, loaded or understood.
    """
    size: int | None = None
    if student is not None:
        size = student.get_output_embeddings().weight.shape[0]
    teachers: list[Teacher] = []
    for name in config.teacher_model_name_or_path or ():
        local = LocalTeacher(_load(name, config, max_length, device, trust_remote_code))
        own = local.vocabulary
        local.vocabulary = shared_vocabulary(size or own, own, tokenizer, tokenizer_beside(name))
        teachers.append(local)
    for url in config.teacher_server or ():
        server = CompletionServer(
            url,
            model=config.teacher_server_model,
            read_timeout=config.teacher_timeout,
            retries=config.teacher_retries,
        )
        vocabulary = size or 1 + max(tokenizer.get_vocab().values())
        teachers.append(ServerTeacher(server, k=config.top_k or _SERVER_TOP_K, vocabulary=vocabulary))
        logger.info("teacher %s of the server %s, top %d", server.model, url, config.top_k or _SERVER_TOP_K)
    for directory in config.teacher_cache or ():
        cached = CachedTeacher(directory, tokenizer=tokenizer)
        own = cached.vocabulary
        cached.vocabulary = shared_vocabulary(size or own, own, tokenizer)
        teachers.append(cached)
    if config.self_teacher != "none":
        assert student is not None
        if hasattr(student, "peft_config"):
            raise InputError(
                "a self-teacher of an adapter is not supported; train the whole model, or name a checkpoint "
                "as --teacher_model_name_or_path"
            )
        other = copy.deepcopy(student).to(device)
        teachers.append(SelfTeacher(student, other, kind=config.self_teacher, decay=config.ema_decay))
    if len(teachers) <= 1:
        return teachers[0] if teachers else None
    return Ensemble(teachers, config.teacher_weights, mixture=config.teacher_mixture, temperature=temperature)


def follow_student(trainer: ResumableTrainer, teacher: Teacher | None) -> None:
    """Have a teacher that is the student's past follow it, and be part of its checkpoints."""
    for each in members_of(teacher):
        if isinstance(each, SelfTeacher):
            trainer.stateful["self_teacher"] = each
            trainer.add_callback(_Following(each))


class _Following(transformers.TrainerCallback):
    def __init__(self, teacher: SelfTeacher) -> None:
        self.teacher = teacher

    def on_step_end(self, *_: Any, **objects: Any) -> None:
        self.teacher.after_step(objects["model"])

    def on_epoch_end(self, *_: Any, **objects: Any) -> None:
        self.teacher.after_epoch(objects["model"])


def check_cached(teacher: Teacher | None, rows: Any, *, generated: bool) -> None:
    """Raise `InputError` unless caches among the teachers hold all that will be asked of them."""
    for each in members_of(teacher):
        if not isinstance(each, CachedTeacher):
            continue
        if generated:
            raise InputError(
                "a teacher cache knows the documents it was made from, not those that are generated; name a "
                "model or a server as teacher, or leave out what generates"
            )
        if not isinstance(rows, datasets.IterableDataset):
            each.check_covers(rows)


def members_of(teacher: Teacher | None) -> list[Teacher]:
    """The teachers of an ensemble, or the one there is."""
    if isinstance(teacher, Ensemble):
        return teacher.teachers
    return [] if teacher is None else [teacher]


def _load(
    name: str, config: TeacherConfig, max_length: int, device: torch.device, trust_remote_code: bool
) -> Any:
    place = torch.device(config.teacher_device or device)
    options: dict[str, Any] = {}
    if config.teacher_quantization != "none":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                f"teacher_quantization {config.teacher_quantization} needs the package bitsandbytes; pip "
                'install "fenchel[quantize]", or name a teacher that was saved quantised'
            )
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            **{f"load_in_{config.teacher_quantization}": True}
        )
        options["device_map"] = {"": place}  # quantised models cannot all be moved
    model: Any = load_model(name, dtype=config.teacher_dtype, trust_remote_code=trust_remote_code, **options)
    check_length(model, max_length, "max_length")
    return model if options else model.to(place)


def tokenizer_beside(name: str) -> Any:
    """The tokenizer saved with a model, or None: some are saved without."""
    path = Path(name).expanduser()
    if path.is_dir() and not any(
        (path / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    ):
        return None
    return load_tokenizer(name)
