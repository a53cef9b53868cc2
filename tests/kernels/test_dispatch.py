"""Which implementation runs, the reasons against the others, and machines without a compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from catalogue import OWN

import fenchel
from fenchel import InputError, which
from fenchel.kernels.cpu.build import CannotCompile, library

LARGE = torch.zeros(64, 2048)


def test_auto_compiles_where_it_is_worth_it() -> None:
    assert which("softargmax", LARGE, divergence="js").impl == "cpu"
    small = which("softargmax", torch.zeros(4, 8), divergence="js")
    assert small.impl == "eager" and "32 elements are too few" in small.refusals["cpu"]
    assert str(small).startswith("eager; not triton: ")


@pytest.mark.parametrize(
    "tensors, divergence, reason",
    [
        ((LARGE.double(),), "js", "computes in float32, and a tensor is float64"),
        ((LARGE.to("meta"),), "js", "a tensor is on meta"),
        ((torch.nn.utils.parametrize.Tensor(LARGE.double()),), "js", "float64"),
        ((LARGE,), "skew:0.1:kl", "shift of skew:0.1:kl cannot be written down"),
        ((LARGE,), OWN, "of own cannot be written down"),
    ],
)
def test_what_a_kernel_does_not_cover_falls_back_with_the_reason(
    tensors: tuple[torch.Tensor, ...], divergence: str, reason: str
) -> None:
    choice = which("softargmax", *tensors, divergence=divergence)
    assert choice.impl == "eager" and reason in choice.refusals["cpu"]
    with pytest.raises(InputError, match="impl='cpu' cannot run softargmax of"):
        which("softargmax", *tensors, divergence=divergence, impl="cpu")


def test_subclasses_and_traces_have_no_memory() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert "no memory" in which("softargmax", torch.zeros(64, 2048)).refusals["cpu"]
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(which("softargmax", x))
        return x

    torch.func.vmap(look)(LARGE)
    assert seen[0].impl == "eager" and "no memory" in seen[0].refusals["cpu"]


def test_asked_for_by_name_it_runs_or_says_why() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64)
    target = torch.tensor([0, 1])
    with pytest.raises(InputError, match="impl='cpu' cannot run softargmax of js: it computes in float32"):
        fenchel.f_softargmax(logits, "js", impl="cpu")
    with pytest.raises(InputError, match="impl='cpu' cannot run token_loss of js"):
        fenchel.fenchel_young_loss(logits, target, "js", impl="cpu")
    with pytest.raises(InputError, match="impl='cpu' cannot run distillation of js"):
        fenchel.distillation_loss(logits, logits, "js", impl="cpu")
    with pytest.raises(InputError, match=r"impl='cpu' cannot run token_loss of js"):
        fenchel.linear_fenchel_young_loss(logits, torch.randn(7, 5).double(), target, "js", impl="cpu")
    teacher = fenchel.TopK.of(logits.log_softmax(-1), 2)
    with pytest.raises(InputError, match=r"impl='cpu' cannot run topk_distillation.*float32"):
        fenchel.distillation_loss(logits.float(), teacher, "js", impl="cpu")
    learned = logits.float().requires_grad_()
    with pytest.raises(InputError, match=r"impl='cpu' cannot run distillation.*gradient"):
        fenchel.distillation_loss(logits.float(), learned, "js", impl="cpu")
    for bad in ("cuda", "AUTO", ""):
        with pytest.raises(InputError, match="impl must be auto, triton, cpu, eager, received"):
            fenchel.f_softargmax(logits, impl=bad)
    with pytest.raises(InputError, match="unknown operation 'softmax'"):
        which("softmax", logits)


def run(code: str, tmp_path: Path, **environment: str) -> str:
    """What a fresh process prints."""
    variables = {"PATH": "/usr/bin:/bin", "FENCHEL_CACHE": str(tmp_path / "cache"), **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import torch, fenchel
x = torch.randn(64, 2048)
print(fenchel.which("softargmax", x, divergence="js"))
p = fenchel.f_softargmax(x, "js")
print(float((p - fenchel.f_softargmax(x, "js", impl="eager")).abs().max()) < 1e-6)
"""


def test_without_a_compiler_plain_pytorch_runs(tmp_path: Path) -> None:
    printed = run(ASK, tmp_path, PATH=str(tmp_path))
    assert "eager" in printed and "there is no C++ compiler" in printed and "True" in printed
    printed = run(ASK, tmp_path, CXX="no-such-compiler")
    assert "CXX names 'no-such-compiler', which is not there" in printed and "True" in printed


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'fatal error: no standard library' >&2\nexit 1\n")
    broken.chmod(0o755)
    printed = run(ASK, tmp_path, CXX=str(broken))
    assert "eager" in printed and "fatal error: no standard library" in printed and "True" in printed


def test_a_compiler_that_fails_is_asked_once(tmp_path: Path) -> None:
    calls, broken = tmp_path / "calls", tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\necho $@ >> {calls}\nexit 1\n")
    broken.chmod(0o755)
    run(ASK, tmp_path, CXX=str(broken))
    once = calls.read_text().count("-o")
    calls.unlink()
    run(ASK + "for _ in range(5): fenchel.f_softargmax(x, 'js')", tmp_path, CXX=str(broken))
    assert calls.read_text().count("-o") == once


def test_cxx_may_have_arguments(tmp_path: Path) -> None:
    printed = run(ASK, tmp_path, CXX=f"env LC_ALL=C {shutil.which('g++') or 'c++'} -O1")
    assert printed.startswith("cpu") and "True" in printed


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    printed = run(ASK, tmp_path, FENCHEL_CACHE=str(tmp_path / "file"))
    assert "eager" in printed and "cannot be written" in printed and "True" in printed


SOURCE = 'extern "C" int answer() { return %d; }'


def test_compiled_once_and_mended_where_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENCHEL_CACHE", str(tmp_path))
    build = library.__wrapped__
    assert build(SOURCE % 41).answer() == 41
    (path,) = (tmp_path / "kernels").iterdir()
    before = path.stat().st_mtime_ns
    assert build(SOURCE % 41).answer() == 41 and path.stat().st_mtime_ns == before
    build(SOURCE % 42)
    damaged = next(each for each in (tmp_path / "kernels").iterdir() if each != path)
    copy = tmp_path / "kernels" / damaged.name
    copy.unlink()  # another file, since the loaded one may not be written to
    copy.write_bytes(b"not a library")
    assert build(SOURCE % 42).answer() == 42
    with pytest.raises(CannotCompile, match="error"):
        build("this is not C++")
    assert not [each for each in (tmp_path / "kernels").iterdir() if each.is_dir()]


def test_several_may_compile_the_same_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENCHEL_CACHE", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(library.__wrapped__, [SOURCE % 7] * 4))
    assert [each.answer() for each in found] == [7] * 4
    assert len(list((tmp_path / "kernels").iterdir())) == 1
