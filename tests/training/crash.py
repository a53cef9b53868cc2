"""Kill a command at random moments, go on with it, and see whether it ends as if nobody had killed it.

`Server` is a process that has imported everything and forks a child for each run, which so takes as long
as its work. A child is killed (SIGKILL) when its time is up, or at its n-th access to a file of the
directory that is watched, which hits every step of a save in turn.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
KILLED = -signal.SIGKILL
TIMES = ("runtime", "per_second", "train_loss", "preparation_time")  # of a session, not of a run


@dataclass(frozen=True)
class Moment:
    """When a child is killed, if it has not ended before; never, if both are None."""

    seconds: float | None = None
    access: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit status or -9, its duration, its accesses to the watched directory, stderr."""

    status: int
    seconds: float
    accesses: int
    errors: str


@dataclass(frozen=True)
class Command:
    """A command to be killed.

    Args:
        argv: what `fenchel` is called with.
        resume: added to it after a kill.
        watched: the directory, below the working directory, whose accesses are counted.
        outcome: from the working directory to whatever must be equal.
        pause: seconds that each access takes longer, so that more moments fall into it.
        environment: variables of the child.
    """

    argv: list[str]
    resume: list[str]
    watched: str
    outcome: Callable[[Path], Any]
    pause: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)


class Server:
    """Forks the children; a context manager."""

    def __init__(self, cache: Path) -> None:
        environment = os.environ | {
            "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(cache),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "training.crash"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its input is its end

    def run(
        self, command: Command, cwd: Path, *, resume: bool = False, moment: Moment | None = None
    ) -> Ended:
        job = {
            "argv": command.argv + (command.resume if resume else []),
            "cwd": str(cwd),
            "environment": command.environment,
            "watched": str(cwd / command.watched),
            "pause": command.pause,
            **asdict(moment or Moment()),
        }
        (cwd / "stderr.txt").write_text("")  # the child may be killed before it opens the file
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Ended(**answer, errors=(cwd / "stderr.txt").read_text())


def outlive(server: Server, command: Command, cwd: Path, moments: Iterable[Moment]) -> list[Moment]:
    """Kill the command at each moment, go on, and let it end; returns the moments at which it still ran."""
    hit = []
    begun = False
    for moment in itertools.chain(moments, [None]):  # one at a time: what is left is for the next run
        ended = server.run(command, cwd, resume=begun, moment=moment)
        if ended.status == 2 and "nothing to resume" in ended.errors:  # it was killed before its first save
            ended = server.run(command, cwd, moment=moment)
        if ended.status == 0:
            return hit
        assert ended.status == KILLED and moment is not None, ended.errors
        hit.append(moment)
        begun = True
    raise AssertionError("unreachable")


def moments_of(seed: int, whole: Ended) -> Iterator[Moment]:
    """Random moments of a run like `whole`, by time and by access in turn, without end."""
    generator = random.Random(seed)
    while True:
        yield Moment(access=generator.randint(1, whole.accesses))
        yield Moment(seconds=generator.uniform(0, whole.seconds))


def assert_outlived(
    server: Server,
    command: Command,
    place: Path,
    moments: Callable[[Ended], Iterable[Moment]],
    *,
    kills: int,
    per_run: int = 3,
) -> None:
    """Run the command in new directories of `place`, once whole and then with so many kills, and compare."""
    whole = Path(tempfile.mkdtemp(dir=place))
    ended = server.run(command, whole)
    assert ended.status == 0, ended.errors
    ahead = iter(moments(ended))
    for _ in range(2 * kills):  # runs; by time a new run may be missed, and by access the next is then hit
        killed = Path(tempfile.mkdtemp(dir=place))
        hit = outlive(server, command, killed, itertools.islice(ahead, min(per_run, kills)))
        assert command.outcome(killed) == command.outcome(whole), f"after kills at {hit}"
        shutil.rmtree(killed)
        kills -= len(hit)
        if kills <= 0:
            return
    raise AssertionError(f"{kills} kills too few: the command ended before")


def history(output: Path) -> list[dict[str, Any]]:
    """All figures that were logged, but for those of speed."""
    logs = json.loads((output / "trainer_state.json").read_text())["log_history"]
    kept = [{k: v for k, v in log.items() if not k.endswith(TIMES)} for log in logs]
    return [log for log in kept if log.keys() - {"epoch", "step", "total_flos"}]


def trained(output: Path) -> tuple[list[dict[str, Any]], dict[str, bytes], list[str]]:
    """What two equal trainings have in common, bit for bit."""
    # A kill between a save and the removal of an old checkpoint leaves that until the next save.
    names = sorted(path.name for path in output.iterdir() if not path.name.startswith("checkpoint-"))
    tensors = {path.name: path.read_bytes() for path in output.glob("*.safetensors")}
    assert tensors
    return history(output), tensors, names


# -- the server's side


def _serve() -> None:
    import fenchel.cli
    import fenchel.training.run

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        begin = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(job, writer, fenchel.cli.main)
        os.close(writer)
        patience = job["seconds"] if job["seconds"] is not None else 240.0
        if signal.sigtimedwait({signal.SIGCHLD}, patience) is None:
            os.kill(pid, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, 60)
        _, status = os.waitpid(pid, 0)
        seconds = time.monotonic() - begin
        with os.fdopen(reader) as pipe:
            accesses = int(pipe.read() or 0)
        answer = {"status": os.waitstatus_to_exitcode(status), "seconds": seconds, "accesses": accesses}
        print(json.dumps(answer), flush=True)


def _child(job: dict[str, Any], writer: int, main: Callable[[list[str]], int]) -> None:
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.chdir(job["cwd"])
        os.environ.update(job["environment"])
        for name, stream in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.fsync = lambda handle: None  # what the system has, it keeps after a kill
        gc.collect = lambda *_: 0  # a collection takes longer than the training
        _forget()
        watch = _Watch(job)
        sys.addaudithook(watch)
        status = main(job["argv"])
        os.write(writer, str(watch.count).encode())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _forget() -> None:
    """Begin with random states unlike those of any other child."""
    import numpy
    import torch

    seed = int.from_bytes(os.urandom(4), "big")
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


class _Watch:
    """Counts accesses to the watched directory, delays them, and kills this process at one of them."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.directory, self.pause, self.fatal = job["watched"], job["pause"], job["access"]
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if (event == "open" or event.startswith("os.")) and self._concerns(event, arguments):
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.pause)

    def _concerns(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:
            return True  # named within an open directory, by the removal of a tree
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            path = arguments[0]
            return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.directory)
        return False


if __name__ == "__main__":
    _serve()
    os._exit(0)  # all that it imported need not be taken apart
