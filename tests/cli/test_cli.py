"""What a user types gets to the library as typed, and every mistake gets one clear line."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fenchel
from fenchel.cli import main
from fenchel.cli.options import COMMON_TRAINING, training_options
from fenchel.cli.verbs import VERBS
from fenchel.errors import InputError
from fenchel.reproductions.configs import DemoConfig
from fenchel.training.configs import (
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    GenerateConfig,
    ModelConfig,
    RolloutConfig,
    SFTConfig,
    TeacherConfig,
    WatchConfig,
)

SFT = ["sft", "--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]


class Library:
    """Stands in for `training.run` and `.distilling`: keeps what it was called with, does what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.results: dict[str, Any] = {
            "generate": ["one", "two"],
            "evaluate": {"bits per byte": 1.25, "tokens": 7},
        }
        self.error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, arguments))
            if self.error is not None:
                raise self.error
            return self.results.get(name, Path("o"))

        return call

    @property
    def received(self) -> tuple[Any, ...]:
        ((_, arguments),) = self.calls
        return arguments


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    stand_in = Library()
    import fenchel.training

    for name in ("run", "distilling"):
        monkeypatch.setitem(sys.modules, f"fenchel.training.{name}", stand_in)
        monkeypatch.setattr(fenchel.training, name, stand_in, raising=False)
    return stand_in


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*argv: str, code: int = 2) -> str:
        assert main(argv) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return captured.err

    return run


def in_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


class TestHelp:
    def test_loads_neither_transformers_nor_datasets(self) -> None:
        calls = [["--help"], *([verb, "--help"] for verb in VERBS)]
        heavy = "{'transformers', 'datasets', 'yaml', 'rich'}"
        code = (
            "import sys; from fenchel.cli import main\n"
            f"assert [main(argv) for argv in {calls}] == [0] * {len(calls)}\n"
            f"print('heavy:', sorted({heavy} & set(sys.modules)))"
        )
        assert in_python(code).endswith("heavy: []\n")

    def test_names_every_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in VERBS)
        assert main([]) == 0
        assert capsys.readouterr().out == shown

    @pytest.mark.parametrize("name", VERBS)
    def test_of_a_verb(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        verb = VERBS[name]
        for field in (f for config in verb.configs for f in fields(config)):
            written = field.name.upper() if field.name == verb.positional else f"--{field.name} "
            assert written in shown
        assert "Example:\n  fenchel " + name in shown
        assert ("transformers.TrainingArguments" in shown) is verb.training
        assert all(len(line) <= 100 for line in shown.splitlines() if "https://" not in line)

    def test_common_training_options_are_as_told(self) -> None:
        from transformers import TrainingArguments

        defaults = {f.name: f.default for f in fields(TrainingArguments)} | {"logging_steps": 10}
        for name, (_, text) in COMMON_TRAINING.items():
            assert name in training_options()
            if "(default: " in text:
                assert text.endswith(f"(default: {defaults[name]})".replace(".0)", ")"))

    def test_no_name_means_two_things(self) -> None:
        training = {*training_options(), "debug"}
        for verb in VERBS.values():
            names = [f.name for config in verb.configs for f in fields(config)]
            assert len(names) == len(set(names))
            assert not verb.training or training.isdisjoint(names)

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"fenchel {fenchel.__version__}\n"


class TestParsing:
    def test_training(self, library: Library, capsys: pytest.CaptureFixture[str]) -> None:
        argv = ["--divergence", "alpha:1.5", "--packing", "--use-peft", "true", "--lora_r", "4"]
        argv += ["--completion-only-loss=false", "--learning-rate=1e-4", "--max_steps", "-1"]
        argv += ["--bf16", "false", "--adam_beta1", "0.8", "--eval_steps", "5"]
        argv += ["--lr_scheduler_type", "cosine", "--resume_from_checkpoint"]
        argv += ["--report_to", "none", "--lr_scheduler_kwargs", '{"num_cycles": 2}']
        argv += ["--optim_target_modules", "q", "v", "--label_names", "labels"]
        assert main([*SFT, *argv]) == 0
        model, data, objective, arguments = library.received
        assert model == ModelConfig(model_name_or_path="m", use_peft=True, lora_r=4)
        assert data == DataConfig(dataset_name="d", packing=True, completion_only_loss=False)
        assert objective == SFTConfig(divergence="alpha:1.5")
        assert arguments == {
            "output_dir": "o",
            "learning_rate": 1e-4,
            "max_steps": -1,
            "bf16": False,
            "adam_beta1": 0.8,
            "eval_steps": 5.0,
            "lr_scheduler_type": "cosine",
            "resume_from_checkpoint": True,
            "report_to": "none",
            "lr_scheduler_kwargs": {"num_cycles": 2},
            "optim_target_modules": ["q", "v"],
            "label_names": ["labels"],
        }
        assert type(arguments["eval_steps"]) is float
        assert capsys.readouterr().out == "model saved in o\n"

    def test_checkpoint_by_name(self, library: Library) -> None:
        assert main([*SFT, "--resume_from_checkpoint", "o/checkpoint-5"]) == 0
        assert library.received[3]["resume_from_checkpoint"] == "o/checkpoint-5"

    def test_arguments_are_those_of_transformers(self, library: Library, tmp_path: Path) -> None:
        from transformers import TrainingArguments

        argv = [*SFT[:-1], str(tmp_path), "--use_cpu", "--warmup_steps", "0.1"]
        assert main([*argv, "--optim", "adamw_torch", "--save_strategy", "no"]) == 0
        made = TrainingArguments(**library.received[3])
        assert (made.warmup_steps, made.optim, made.save_strategy) == (0.1, "adamw_torch", "no")

    def test_distill(self, library: Library) -> None:
        argv = ["--teacher_model_name_or_path", "t", "--model_config", "llama:hidden_size=8"]
        argv += ["--dataset_name", "d", "--output_dir", "o", "--loss", "fenchel-young"]
        assert main(["distill", *argv, "--hard_label_weight", "1"]) == 0
        model, _, objective, teachers, rollout, watch, _ = library.received
        assert model.model_config == "llama:hidden_size=8"
        assert objective == DistillConfig(loss="fenchel-young", hard_label_weight=1.0)
        assert teachers == TeacherConfig(teacher_model_name_or_path=["t"])
        assert rollout == RolloutConfig()
        assert watch == WatchConfig()

    def test_distill_in_the_words_of_trl(self, library: Library, tmp_path: Path) -> None:
        path = tmp_path / "gkd.yaml"
        path.write_text(
            "model_name_or_path: m\nteacher_model_name_or_path: t\ndataset_name: d\noutput_dir: o\n"
            "lmbda: 0.5\nbeta: 0.1\nseq_kd: true\nmax_new_tokens: 32\ntemperature: 0.9\n"
        )
        assert main(["distill", "--config", str(path)]) == 0
        _, _, objective, _, rollout, _, _ = library.received
        assert (objective.divergence, objective.temperature) == ("jsd:0.1", 0.9)
        assert (rollout.lmbda, rollout.seq_kd, rollout.max_new_tokens) == (0.5, True, 32)

    def test_config_file_and_flags_that_win(self, library: Library, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(
            "model_name_or_path: m\ndataset-name: d  # dashes are fine\noutput_dir: o\n"
            "learning_rate: 1e-4\npacking: true\nmax_length: 16\ntemperature: 2\n"
            "report_to: [none]\ndataset_test_split: null\ngradient_checkpointing: true\n"
        )
        assert main(["sft", "--config", str(path), "--max_length", "32"]) == 0
        _, data, objective, arguments = library.received
        assert data == DataConfig(dataset_name="d", packing=True, max_length=32)
        assert objective == SFTConfig(temperature=2.0)
        assert arguments == {
            "output_dir": "o",
            "learning_rate": 1e-4,
            "report_to": ["none"],
            "gradient_checkpointing": True,
        }

    def test_generate(self, library: Library, capsys: pytest.CaptureFixture[str]) -> None:
        argv = ["--model_name_or_path", "m", "--prompt", "a b", "-- c-d", "--top_k", "3"]
        assert main(["generate", *argv, "--do_sample", "False"]) == 0
        assert library.received == (
            GenerateConfig(model_name_or_path="m", prompt=["a b", "-- c-d"], top_k=3, do_sample=False),
        )
        assert capsys.readouterr().out == "one\n\ntwo\n"

    def test_one_prompt_in_yaml(self, library: Library, tmp_path: Path) -> None:
        (tmp_path / "g.yaml").write_text("model_name_or_path: m\nprompt: once\n")
        assert main(["generate", "--config", str(tmp_path / "g.yaml")]) == 0
        assert library.received[0].prompt == ["once"]

    def test_evaluate(self, library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "figures.json"
        argv = ["--model_name_or_path", "m", "--dataset_name", "d", "--output", str(output)]
        assert main(["evaluate", *argv]) == 0
        assert library.received == (EvaluateConfig("m", "d", output=str(output)),)
        assert json.loads(output.read_text()) == library.results["evaluate"]
        assert "bits per byte" in capsys.readouterr().out
        assert list(tmp_path.iterdir()) == [output]

    def test_demo(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        import fenchel.reproductions

        seen: list[DemoConfig] = []
        demo = SimpleNamespace(run=lambda config: seen.append(config) or "out/report.html")
        monkeypatch.setitem(sys.modules, "fenchel.reproductions.demo", demo)
        monkeypatch.setattr(fenchel.reproductions, "demo", demo, raising=False)
        assert main(["demo", "--quick", "--out", "out", "--seed", "3"]) == 0
        assert seen == [DemoConfig(out="out", seed=3, quick=True)]
        assert capsys.readouterr().out == "report: out/report.html\n"

    def test_report(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        import fenchel.report

        calls: list[tuple[Any, Path]] = []

        def render(results: Any, path: Path) -> Path:
            calls.append((results, path))
            return path

        monkeypatch.setattr(fenchel.report, "render", render)
        (tmp_path / "results.json").write_text('{"a": 1}')
        assert main(["report", str(tmp_path)]) == 0
        assert calls == [({"a": 1}, tmp_path / "report.html")]
        assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"


class TestBadInput:
    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (["distil"], "unknown verb 'distil'; did you mean distill?"),
            (["xyz"], "unknown verb 'xyz'; the verbs are demo, pretrain"),
            (["--quick"], "expects a verb before --quick"),
            (
                ["distill", "--divergence", "kl"],
                "distill needs --model_name_or_path or "
                "--model_config, --dataset_name, --output_dir; see fenchel distill --help",
            ),
            (["evaluate", "--model_name_or_path", "m"], "evaluate needs --dataset_name; see"),
            (["demo", "--sede", "3"], "unknown flag --sede; did you mean --seed?"),
            ([*SFT, "--lerning-rate", "3"], "unknown flag --lerning_rate; did you mean --learning"),
            ([*SFT, "stray"], "unexpected argument 'stray'"),
            (["demo", "--out"], "argument --out: expected one argument; see fenchel demo --help"),
            (["report"], "required: DIRECTORY"),
            (["demo", "--seed", "x"], "--seed expects an integer, received 'x'"),
            (["demo", "--quick", "maybe"], "--quick expects true or false, received 'maybe'"),
            ([*SFT, "--learning_rate", "fast"], "--learning_rate expects a number, received 'fast"),
            ([*SFT, "--max_steps", "1.5"], "--max_steps expects an integer, received '1.5'"),
            ([*SFT, "--eval_strategy", "often"], "expects one of no, steps, epoch, received 'oft"),
            ([*SFT, "--config", "no.yaml"], "no such configuration file: 'no.yaml'"),
            (["report", "nowhere"], "no results.json in 'nowhere'"),
        ],
    )
    def test_usage(self, argv: list[str], said: str, fail: Any, library: Library) -> None:
        message = fail(*argv)
        assert message.startswith("fenchel: error: ")
        assert said in message
        assert library.calls == []

    @pytest.mark.parametrize(
        ("yaml", "said"),
        [
            ("max_lenght: 3", "line 1: unknown key 'max_lenght'; did you mean max_length?"),
            ("seed: 1\nlora_r: [4]", "line 2: lora_r expects an integer, received [4] (list)"),
            ("lora_r: true", "line 1: lora_r expects an integer, received True (bool)"),
            ("lora_r: 4.0", "line 1: lora_r expects an integer, received 4.0 (float)"),
            ("lora_r:", "line 1: lora_r expects an integer, received nothing"),
            ("packing: 1", "line 1: packing expects true or false, received 1 (int)"),
            ("dtype: 16", "line 1: dtype expects text, received 16 (int)"),
            ("seed: 1\n\nseed: 2", "line 3: seed was set before, at "),
            ("seed: 1\nseed 2\nlora_r: 3", "line 2: not valid YAML"),
            ("- seed", "line 1: expects lines of 'key: value'"),
            ("seed: !!python/name:os.system x", "line 1: not valid YAML"),
        ],
    )
    def test_config_file(self, yaml: str, said: str, fail: Any, tmp_path: Path, library: Library) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(yaml)
        message = fail(*SFT, "--config", str(path))
        assert message.startswith(f"fenchel: error: {path}, line ")
        assert said in message
        assert library.calls == []

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("max_length", "1"),
            ("temperature", "0"),
            ("temperature", "nan"),
            ("temperature", "inf"),
            ("label_smoothing", "1"),
            ("lora_r", "0"),
            ("lora_alpha", "-1"),
            ("lora_dropout", "1"),
            ("dtype", "int8"),
        ],
    )
    def test_out_of_domain(self, flag: str, value: str, fail: Any, library: Library) -> None:
        assert f"error: {flag} must be " in fail(*SFT, f"--{flag}", value)
        assert library.calls == []

    @pytest.mark.parametrize("name", ["klx", "alpha:x", "alpha:"])
    def test_unknown_divergence(self, name: str, fail: Any) -> None:
        assert name.partition(":")[0] in fail(*SFT, "--divergence", name)

    def test_two_models(self, fail: Any) -> None:
        message = fail(*SFT, "--model_config", "llama:hidden_size=8")
        assert "model_name_or_path and model_config were both given" in message

    def test_results_that_do_not_parse(self, fail: Any, tmp_path: Path) -> None:
        (tmp_path / "results.json").write_text("{")
        assert "results.json is not valid JSON" in fail("report", str(tmp_path))

    def test_output_without_a_directory(self, fail: Any, library: Library, tmp_path: Path) -> None:
        output = str(tmp_path / "no" / "figures.json")
        argv = ["--model_name_or_path", "m", "--dataset_name", "d", "--output", output]
        assert "its directory does not exist" in fail("evaluate", *argv)
        assert library.calls == []


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (
                InputError("teacher has 5 tokens,\nstudent 6"),
                "error: teacher has 5 tokens, student",
            ),
            (FileNotFoundError(errno.ENOENT, "", "m/x"), "no such file or directory: 'm/x'"),
            (PermissionError(errno.EACCES, "", "o"), "no permission: 'o'"),
            (OSError(errno.ENOSPC, "No space left on device", "o/x"), "disk full"),
            (OSError(errno.EROFS, "", "o"), "the file system is read-only: 'o'"),
            (RuntimeError("I/O error: No space left on device (os error 28)"), "is the disk full?"),
            # What torch.save says of a full disk.
            (RuntimeError("[enforce fail] . unexpected pos 704 vs 598"), "is the disk full?"),
            (
                ModuleNotFoundError("", name="transformers.models"),
                'transformers is not installed; pip install "fenchel[train]"',
            ),
            (
                ModuleNotFoundError("", name="matplotlib"),
                'matplotlib is not installed; pip install "fenchel[train,report]"',
            ),
            (
                ModuleNotFoundError("", name="sklearn.datasets"),
                'sklearn is not installed; pip install "fenchel[train,sklearn]"',
            ),
        ],
    )
    def test_that_the_user_can_mend(self, error: Exception, said: str, fail: Any, library: Library) -> None:
        library.error = error
        message = fail(*SFT)
        assert message.startswith("fenchel: error: ")
        assert said in message

    def test_nobody_foresaw(self, fail: Any, library: Library) -> None:
        library.error = ZeroDivisionError("division\nby zero")
        assert fail(*SFT, code=1) == (
            "fenchel: unexpected error: ZeroDivisionError: division by zero (--debug shows where)\n"
        )

    def test_a_module_of_ours_that_is_missing_is_no_missing_extra(self, fail: Any, library: Library) -> None:
        library.error = ModuleNotFoundError("no fenchel.x", name="fenchel.x")
        assert "unexpected error" in fail(*SFT, code=1)

    @pytest.mark.parametrize(("error", "code"), [(InputError("a"), 2), (ZeroDivisionError(), 1)])
    def test_debug_shows_the_traceback(
        self, error: Exception, code: int, library: Library, capsys: pytest.CaptureFixture[str]
    ) -> None:
        library.error = error
        assert main([*SFT, "--debug"]) == code
        shown = capsys.readouterr().err
        assert "Traceback (most recent call last)" in shown
        assert shown.splitlines()[-1].startswith("fenchel: ")

    def test_interrupted_training_says_how_to_go_on(self, fail: Any, library: Library) -> None:
        library.error = KeyboardInterrupt()
        assert fail(*SFT, code=130) == (
            "fenchel: interrupted; run the same command with --resume_from_checkpoint to go on "
            "from the last checkpoint\n"
        )
        assert fail("generate", "--model_name_or_path", "m", "--prompt", "a", code=130) == (
            "fenchel: interrupted\n"
        )
