"""Whoever generates, this process or a server, the training is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training.fake_server import FakeServer, serving
from training.tiny import TEXT, save_model, tokenizer_of, trained_bpe, write_jsonl
from transformers import AutoModelForCausalLM, TrainingArguments

from fenchel.cli import main
from fenchel.training.configs import DistillConfig, RolloutConfig
from fenchel.training.generators import rollout_of
from fenchel.training.models import load_tokenizer
from fenchel.training.objectives import Distillation
from fenchel.training.packing import Collator
from fenchel.training.sampling import complete
from fenchel.training.teachers.completions import CompletionServer
from fenchel.training.teachers.local import LocalTeacher

RUN = ["distill", "--model_name_or_path", "student", "--dataset_name", "pairs.jsonl", "--max_length", "64"]
RUN += ["--use_cpu", "--disable_tqdm", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4"]
RUN += ["--logging_steps", "1", "--save_strategy", "no", "--max_steps", "4", "--max_new_tokens", "8"]
RUN += ["--sampling_top_k", "1"]  # the likeliest tokens: the two have no random numbers in common
LOCAL = ["--teacher_model_name_or_path", "teacher"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = tokenizer_of(trained_bpe())
    save_model(tmp_path / "student", tokenizer, max_position_embeddings=64)
    save_model(tmp_path / "teacher", tokenizer, hidden=32, seed=1, max_position_embeddings=64)
    words = TEXT.split()
    pairs = [{"prompt": " ".join(words[i : i + 5]), "completion": f" {words[i]}"} for i in range(12)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(place: Path) -> Iterator[FakeServer]:
    model = AutoModelForCausalLM.from_pretrained(place / "teacher").eval()
    with serving(model, dev=True, tokenizer=load_tokenizer("student")) as running:
        yield running


def logs(output: str, *argv: str) -> list[dict[str, Any]]:
    assert main([*RUN, *argv, "--output_dir", output]) == 0
    history = json.loads((Path(output) / "trainer_state.json").read_text())["log_history"]
    kept = {"loss", "on_policy/share", "on_policy/length", "on_policy/unfinished"}
    return [{name: log[name] for name in kept & set(log)} for log in history if "loss" in log]


def test_a_server_generates_for_the_student_of_each_step(server: FakeServer) -> None:
    """Also that the weights are new: at this learning rate an old student writes something else."""
    served = logs("a", *LOCAL, "--lmbda", "1", "--generation_server", server.url)
    local = logs("b", *LOCAL, "--lmbda", "1")
    assert len(served) == 4
    for mine, theirs in zip(served, local, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert len(set(server.reloaded)) == 4
    assert not Path("a", "_served").exists()


def test_a_server_writes_the_teachers_sequences(server: FakeServer) -> None:
    weight = ["--seq_kd", "--hard_label_weight", "1"]  # so that the sequences alone decide
    served = logs("a", "--teacher_server", server.url, "--top_k", "8", *weight)
    assert served == [pytest.approx(log, rel=1e-4) for log in logs("b", *LOCAL, *weight)]


def test_a_server_stops_where_generate_does(server: FakeServer) -> None:
    tokenizer, model = load_tokenizer("student"), server.model
    prompts = [tokenizer(text).input_ids for text in TEXT.split()[:6]]
    settings: dict[str, Any] = {"max_new_tokens": 12, "top_k": 1}
    whole = complete(model, prompts, [0] * 6, tokenizer=tokenizer, **settings)
    stop = [tokenizer.decode(whole[0])[-5:-3]]
    local = complete(model, prompts, [0] * 6, tokenizer=tokenizer, stop=stop, **settings)
    assert len(local[0]) < len(whole[0])
    ready = CompletionServer(server.url)
    stops = {"stop": stop, "stop_token_ids": [tokenizer.eos_token_id]}
    assert ready.generate(prompts, seed=[0] * 6, **stops, **settings) == local


def test_a_tokenizer_without_an_end_names_no_token_to_stop_at(server: FakeServer, tmp_path: Path) -> None:
    objective = Distillation(LocalTeacher(server.model), DistillConfig())
    config = RolloutConfig(lmbda=1.0, max_new_tokens=3, generation_server=server.url)
    settings: Any = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    endless: Any = SimpleNamespace(eos_token_id=None)
    made = rollout_of(config, objective, endless, Collator(0), settings)
    student = AutoModelForCausalLM.from_pretrained("student")
    (completion,) = made.generators["student"](student, [[5, 6]], [0])
    assert len(completion) == 3
    assert server.completions()[-1]["stop_token_ids"] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--loss", "fenchel-young", "--divergence", "alpha:1.5"], "samples from softmax"),
        (["--use_peft"], "the student is an adapter"),
    ],
)
def test_students_that_no_server_can_stand_for(
    server: FakeServer, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    run = [*RUN, *LOCAL, "--lmbda", "1", "--generation_server", server.url, *flags, "--output_dir", "out"]
    assert main(run) == 2
    assert said in capsys.readouterr().err
    assert not server.completions()
