"""A cache says what its teacher said, survives being killed, and refuses whatever is not as it was made."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from training.fake_server import serving
from training.tiny import llama, tokenizer_of

from fenchel.errors import InputError
from fenchel.losses.linear import Scores
from fenchel.losses.truncated import TopK
from fenchel.training.objectives.predictions import scores_at, targets_of
from fenchel.training.packing import Collator, pack
from fenchel.training.teachers import cache as cache_module
from fenchel.training.teachers import cache_format
from fenchel.training.teachers.cache import CachedTeacher
from fenchel.training.teachers.completions import CompletionServer
from fenchel.training.teachers.server import ServerTeacher
from fenchel.training.teachers.teach import write_cache
from fenchel.training.teachers.top_k import shortened, top_k_of

VOCABULARY = 400
K = 7
MODEL = llama(VOCABULARY, seed=3)


class Local:
    """The model as a teacher that counts its calls and may fail at one of them."""

    vocabulary = VOCABULARY

    def __init__(self, *, failing: int | None = None) -> None:
        self.calls, self.failing = 0, failing

    def __call__(self, batch: dict[str, Tensor], mask: Tensor) -> Scores:
        if self.calls == self.failing:
            raise KeyboardInterrupt
        self.calls += 1
        with torch.no_grad():
            answer = scores_at(MODEL, batch, mask)
        return answer if isinstance(answer, Scores) else Scores(answer)


class Invented:
    """A teacher of any vocabulary: random top-k distributions that follow from nothing but the tokens."""

    def __init__(self, vocabulary: int, k: int) -> None:
        self.vocabulary, self.k = vocabulary, k

    def __call__(self, batch: dict[str, Tensor], mask: Tensor) -> TopK:
        n = int(mask.sum())
        generator = torch.Generator().manual_seed(int(batch["input_ids"].sum()))
        logits = torch.randn(n, self.k + 1, generator=generator).log_softmax(-1)
        indices = torch.randint(0, self.vocabulary, (n, self.k), generator=generator)
        return TopK(indices, logits[:, :-1].sort(-1, descending=True).values, logits[:, -1])


def rows_of(*lengths: int, seed: int = 1, prompt: int = 0) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(2, 40, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


ROWS = rows_of(9, 2, 6, 12, 5, 7, 3, 8, 4, 10, 11)
IDENTITY: dict[str, Any] = {
    "k": K,
    "teacher_name": "tiny",
    "data": {"dataset_name": "rows", "max_length": 12},
}


@pytest.fixture
def write(tmp_path: Path, trained: str) -> Callable[..., cache_format.Manifest]:
    def write(rows: Any = ROWS, teacher: Any = None, path: Path = tmp_path / "cache", **settings: Any) -> Any:
        settings = {
            "tokenizer": tokenizer_of(trained),
            "batch_size": 2,
            "shard_tokens": 20,
            **IDENTITY,
            **settings,
        }
        return write_cache(rows, teacher or Local(), path, **settings)

    return write


@pytest.fixture
def cache(write: Any, tmp_path: Path) -> Path:
    write()
    return tmp_path / "cache"


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def local(batch: dict[str, Tensor], mask: Tensor, k: int = K, **settings: Any) -> TopK:
    return top_k_of(Local()(batch, mask), k, **settings)


def check_close(found: TopK, expected: TopK) -> None:
    """Equal tokens, log-probabilities within half a step of float16, sums of 1."""
    assert torch.equal(found.indices, expected.indices)
    known = expected.log_probs > -torch.inf
    assert torch.equal(found.log_probs > -torch.inf, known)
    ours, theirs = (each.log_probs.where(known, torch.zeros(())) for each in (found, expected))
    # Scaling to a sum of 1 moves all of a row together, by no more than its likely ones were off.
    shift = 2.0**-11 * (theirs.exp() * theirs.abs() * known).sum(-1, keepdim=True) + 1e-6
    assert ((ours - theirs).abs() <= 2.0**-11 * theirs.abs() + shift).all()
    tails = found.log_tail.exp() - expected.log_tail.exp()
    assert (tails.abs() <= expected.log_tail.exp() * (shift[:, 0] + 1e-6)).all()
    total = found.log_probs.exp().sum(-1) + found.log_tail.exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


# What it says


def test_says_what_the_teacher_said_on_padded_rows(cache: Path) -> None:
    rows = [*ROWS[3:6], *rows_of(9, 2, 6, 12, prompt=1)[2:3]]
    batch = Collator(0)(rows)
    mask, _ = targets_of(batch)
    check_close(CachedTeacher(cache)(batch, mask), local(batch, mask))


def test_says_it_on_packed_rows_for_the_positions_of_the_mask(cache: Path) -> None:
    batch = Collator(0)(list(pack(datasets.Dataset.from_list(ROWS), 24)))
    mask, _ = targets_of(batch)
    mask = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    teacher = CachedTeacher(cache)
    check_close(teacher(batch, mask), local(batch, mask))
    assert len(teacher(batch, torch.zeros_like(mask)).log_tail) == 0


def test_packed_rows_and_streams_make_the_same_cache(write: Any, cache: Path, tmp_path: Path) -> None:
    packed = list(pack(datasets.Dataset.from_list(ROWS), 24))
    write(iter(packed), path=tmp_path / "packed", batch_size=1)
    write(iter(ROWS), path=tmp_path / "streamed")
    assert contents(tmp_path / "streamed") == contents(cache)
    batch = Collator(0)(ROWS)
    mask, _ = targets_of(batch)
    check_close(CachedTeacher(tmp_path / "packed")(batch, mask), local(batch, mask))


@pytest.mark.parametrize("k", [1, VOCABULARY])
def test_any_k_is_recorded(write: Any, tmp_path: Path, k: int) -> None:
    write(k=k)
    batch = Collator(0)(ROWS[:2])
    mask, _ = targets_of(batch)
    found = CachedTeacher(tmp_path / "cache")(batch, mask)
    expected = local(batch, mask, k)
    check_close(found._replace(indices=found.indices), expected)
    assert found.log_tail.isinf().all() == (k == VOCABULARY)


def test_a_temperature_is_recorded(write: Any, tmp_path: Path) -> None:
    write(temperature=2.0)
    teacher = CachedTeacher(tmp_path / "cache")
    assert teacher.temperature == 2.0
    batch = Collator(0)(ROWS[:2])
    mask, _ = targets_of(batch)
    check_close(teacher(batch, mask), local(batch, mask, temperature=2.0))


def test_a_server_is_recorded_as_the_local_model_is(write: Any, cache: Path, tmp_path: Path) -> None:
    with serving(MODEL) as running:
        teacher = ServerTeacher(CompletionServer(running.url), k=K, vocabulary=VOCABULARY)
        write(teacher=teacher, path=tmp_path / "server")
        with pytest.raises(InputError, match=r"at temperature 1.0 only, and 2.0 was asked for"):
            write(teacher=teacher, path=tmp_path / "warm", temperature=2.0)
    batch = Collator(0)(ROWS)
    mask, _ = targets_of(batch)
    check_close(CachedTeacher(tmp_path / "server")(batch, mask), local(batch, mask))


def test_equal_documents_are_recorded_once(write: Any, cache: Path, tmp_path: Path) -> None:
    teacher = Local()
    manifest = write([*ROWS, *ROWS[::-1], *ROWS], teacher, tmp_path / "thrice")
    assert contents(tmp_path / "thrice") == contents(cache)
    assert teacher.calls == 6  # 11 documents, 2 at a time
    assert (manifest.documents, manifest.tokens) == (11, sum(len(row["input_ids"]) - 1 for row in ROWS))


def test_documents_that_predict_nothing_are_left_out(write: Any, tmp_path: Path) -> None:
    assert write([*rows_of(1, 5, 1)]).documents == 1
    with pytest.raises(InputError, match="no row has a document of two tokens"):
        write(rows_of(1, 1), path=tmp_path / "empty")


def test_a_narrower_vocabulary_asked_for_changes_no_record(write: Any, tmp_path: Path) -> None:
    """Users of a cache set the vocabulary that they share with it, across a width of the format even."""
    write(teacher=Invented(70_000, K))
    teacher = CachedTeacher(tmp_path / "cache")
    batch = Collator(0)(ROWS[:2])
    mask, _ = targets_of(batch)
    expected = teacher(batch, mask)
    check_close(expected, Invented(70_000, K)(batch, mask))
    teacher.vocabulary = 65_000
    torch.testing.assert_close(teacher(batch, mask), expected)


def test_padding_rows_of_the_teacher_are_left_out(write: Any, tmp_path: Path) -> None:
    teacher = Local()
    teacher.vocabulary = 30  # of 400 that the model predicts
    write(teacher=teacher)
    batch = Collator(0)(ROWS[:2])
    mask, _ = targets_of(batch)
    check_close(CachedTeacher(tmp_path / "cache")(batch, mask), top_k_of(Local()(batch, mask).classes(30), K))


# The format


def test_a_record_has_the_bytes_that_the_format_says() -> None:
    known = TopK(
        torch.tensor([[0x2_1234, 0x1_0005, -1]]),
        torch.tensor([[-0.5, -1.0, -torch.inf]]),
        torch.tensor([-3.25]),
    )
    expected = struct.pack("<3HB3ef", 0x1234, 0x0005, 0, 0b00_01_10, -0.5, -1.0, -np.inf, -3.25)
    assert cache_format.encode(known, 2**18).tobytes() == expected
    narrow = TopK(torch.tensor([[7]]), torch.tensor([[-0.5]]), torch.tensor([-1.0]))
    assert cache_format.encode(narrow, 2**16).tobytes() == struct.pack("<Hef", 7, -0.5, -1.0)


def test_a_document_is_found_by_the_hash_that_the_format_says(cache: Path) -> None:
    ids = ROWS[0]["input_ids"]
    key = hashlib.blake2b(struct.pack(f"<{len(ids)}i", *ids), digest_size=16).digest()
    index = (cache / "index.bin").read_bytes()
    entries = [index[i : i + 32] for i in range(0, len(index), 32)]
    assert [entry[:16] for entry in entries] == sorted(entry[:16] for entry in entries)
    (entry,) = [entry for entry in entries if entry[:16] == key]
    assert struct.unpack("<IIQ", entry[16:]) == (0, len(ids) - 1, 0)


@pytest.mark.parametrize("vocabulary", [1 << 16, (1 << 16) + 1, 1 << 18, 151_936, 1 << 20, 1 << 24])
@pytest.mark.parametrize("k", [1, 5, 64])
def test_every_token_id_survives(vocabulary: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, vocabulary, (50, k), generator=generator)
    indices[0] = vocabulary - 1
    indices[1, -1] = -1
    scores = torch.randn(50, k + 1, generator=generator) * 4
    scores[1, -2] = -torch.inf
    log_probs = scores.log_softmax(-1)
    known = TopK(indices, log_probs[:, :-1], log_probs[:, -1])
    found = cache_format.decode(cache_format.encode(known, vocabulary), vocabulary)
    assert torch.equal(found.indices, indices)
    check_close(found, known)


def test_sure_teachers_keep_their_digits() -> None:
    """Tails of 1e-12 and of all but 1e-5, and no tail at all."""
    tail = torch.tensor([1e-12, 1 - 1e-5, 0.0], dtype=torch.float64)
    known = TopK(torch.tensor([[3], [3], [3]]), torch.log1p(-tail)[:, None].float(), tail.log().float())
    found = cache_format.decode(cache_format.encode(known, 40), 40)
    torch.testing.assert_close(found.log_tail, known.log_tail, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.log_probs.exp(), (1 - tail)[:, None].float(), rtol=0, atol=1e-7)


def test_a_vocabulary_beyond_the_format_is_an_error() -> None:
    with pytest.raises(InputError, match=r"up to 16,777,216 tokens, received 16,777,217"):
        cache_format.record_type(4, 2**24 + 1)


@pytest.mark.parametrize(("vocabulary", "most"), [(1 << 20, 300), (151_936, 284), (1 << 16, 268)])
def test_the_bytes_per_token_on_disk(write: Any, tmp_path: Path, vocabulary: int, most: int) -> None:
    rows = rows_of(*[32] * 64)
    manifest = write(rows, Invented(vocabulary, 64), k=64, batch_size=8, shard_tokens=1000)
    size = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
    assert manifest.tokens == 64 * 31
    assert size / manifest.tokens <= most


def test_files_are_mapped_and_few_are_open(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(*[8] * 60)
    write(rows, shard_tokens=1)
    monkeypatch.setattr(cache_module, "OPEN_SHARDS", 3)
    teacher = CachedTeacher(tmp_path / "cache")
    assert len(teacher.manifest.shards) == 30
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    batch = Collator(0)(rows[::-1])
    mask, _ = targets_of(batch)
    check_close(teacher(batch, mask), local(batch, mask))
    assert isinstance(teacher._index, np.memmap)
    assert isinstance(teacher._shard(0), np.memmap)
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 3


# Being ended


def replaces(monkeypatch: pytest.MonkeyPatch, fail_at: int, *, after: bool) -> None:
    """Let the process be ended at its n-th renaming of a file, before or after it."""
    count = iter(range(10_000))
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        now = next(count) == fail_at
        if after or not now:
            replace(source, target)
        if now:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", failing)


@pytest.mark.parametrize("call", range(6))
def test_goes_on_after_the_last_whole_shard(write: Any, cache: Path, tmp_path: Path, call: int) -> None:
    path = tmp_path / "ended"
    with pytest.raises(KeyboardInterrupt):
        write(teacher=Local(failing=call), path=path)
    with pytest.raises(InputError, match=r"is incomplete, with \d+ documents so far"):
        CachedTeacher(path)
    done = cache_format.Manifest.read(path).documents
    assert done == [0, 0, 4, 4, 4, 10][call]
    teacher = Local()
    write(teacher=teacher, path=path)
    assert contents(path) == contents(cache)
    assert teacher.calls == 6 - done // 2


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail_at", range(8))
def test_being_ended_at_any_renaming_changes_nothing(
    write: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int, after: bool
) -> None:
    path = tmp_path / "ended"
    # Nothing may tidy up, as after kill -9.
    monkeypatch.setattr(cache_format.PieceWriter, "abandon", lambda self: None)
    with monkeypatch.context() as patch:
        replaces(patch, fail_at, after=after)
        with pytest.raises(KeyboardInterrupt):
            write(path=path)
    write(path=path)
    assert contents(path) == contents(cache)


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from training.test_cache import Invented, IDENTITY, rows_of
from training.tiny import tokenizer_of, trained_bpe
from fenchel.training.teachers.teach import write_cache

class Slow(Invented):
    def __call__(self, batch, mask):
        time.sleep(0.01)
        return super().__call__(batch, mask)

tokenizer = tokenizer_of(trained_bpe())
print("ready", flush=True)
write_cache(
    rows_of(*[9] * 300), Slow(70_000, {k}), Path(sys.argv[1]), tokenizer=tokenizer,
    batch_size=2, shard_tokens=80, **IDENTITY,
)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    script = KILLED.format(paths=[str(Path(__file__).parents[1])], k=K)

    def run(path: Path, seconds: float | None) -> int:
        """Its exit status when it is killed after so long, or not at all."""
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
            return process.wait()

    assert run(tmp_path / "whole", None) == 0
    moments = random.Random(0)
    statuses = [run(tmp_path / "killed", moments.uniform(0.0, 0.3)) for _ in range(6)]
    assert statuses.count(-signal.SIGKILL) >= 3
    assert cache_format.Manifest.read(tmp_path / "killed").documents > 0
    assert run(tmp_path / "killed", None) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


# What is not as it was made


def test_another_identity_is_an_error_that_names_both(write: Any, cache: Path, bos_tokenizer: Any) -> None:
    before = contents(cache)
    other = tokenizer_of(other_vocabulary(bos_tokenizer))
    for settings, message in [
        ({"k": 5}, "k 7, and 5 was asked for"),
        ({"teacher_name": "big"}, "teacher 'tiny', and 'big' was asked for"),
        ({"temperature": 2.0}, "temperature 1.0, and 2.0 was"),
        ({"data": {"dataset_name": "rows", "max_length": 9}}, r"data \{.*12\}, and \{.*9\} was"),
        ({"tokenizer": other}, "tokenizer '[0-9a-f]{32}', and '[0-9a-f]{32}' was"),
        ({"teacher": Invented(500, K)}, "vocabulary 400, and 500 was"),
    ]:
        with pytest.raises(InputError, match=message):
            write(**settings)
    assert contents(cache) == before


def other_vocabulary(tokenizer: Any) -> str:
    """The tokenizer with two of its tokens changed about."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return Tokenizer.from_str(json.dumps(content)).to_str()


def test_data_given_with_tuples_is_the_same_data(write: Any, tmp_path: Path) -> None:
    write(data={"columns": ("a", "b")})
    assert write(data={"columns": ["a", "b"]}).complete


def test_a_complete_cache_is_not_made_again(
    write: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = Local()
    with caplog.at_level("INFO"):
        manifest = write(iter([]), teacher)
    assert (teacher.calls, manifest.documents) == (0, 11)
    assert "is complete, with 11 documents" in caplog.text


def test_a_cache_is_overwritten_if_asked(write: Any, cache: Path, tmp_path: Path) -> None:
    write(ROWS[:3], k=5, overwrite=True)
    write(ROWS[:3], k=5, path=tmp_path / "fresh")
    assert contents(cache) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("name", ["notes.txt", "shard-00000.bin", "index.bin"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_other_things_is_left_alone(
    write: Any, tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(InputError, match=f"other files than those of a teacher cache .{name}."):
        write(path=tmp_path / "mine", overwrite=overwrite)
    assert contents(tmp_path / "mine") == {name: b"mine"}
    with pytest.raises(InputError, match="is a file; a teacher cache is a directory"):
        write(path=tmp_path / "mine" / name)


def test_resuming_on_a_damaged_shard_is_an_error(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        write(teacher=Local(failing=5))
    flip(path / "shard-00000.bin")
    with pytest.raises(InputError, match=r"shard-00000\.bin .* is corrupted"):
        write()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be from 1 to the 400 tokens of the teacher, received 0"),
        ({"k": 401}, "received 401"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"shard_tokens": 0}, "shard_tokens must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_errors(
    write: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(**settings)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_teacher_that_says_nonsense_is_not_recorded(write: Any, tmp_path: Path, value: float) -> None:
    class Broken(Local):
        def __call__(self, batch: dict[str, Tensor], mask: Tensor) -> Scores:
            return Scores(torch.full((int(mask.sum()), VOCABULARY), value))

    with pytest.raises(InputError, match=r"no distribution.*nan"):
        write(teacher=Broken())
    assert list(contents(tmp_path / "cache")) == ["manifest.json"]


def flip(file: Path, at: int = 5) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "no teacher cache at .* fenchel teach"),
    "no shard": (lambda path: (path / "shard-00001.bin").unlink(), r"lacks its file shard-00001\.bin"),
    "no index": (lambda path: (path / "index.bin").unlink(), r"lacks its file index\.bin"),
    "shard cut": (lambda path: cut(path / "shard-00002.bin"), r"shard-00002\.bin .* cut short"),
    "index cut": (
        lambda path: cut(path / "index.bin"),
        r"index\.bin .* 351 bytes instead of 352.* cut short",
    ),
    "shard changed": (lambda path: flip(path / "shard-00000.bin"), r"shard-00000\.bin .* is corrupted"),
    "index changed": (lambda path: flip(path / "index.bin"), r"index\.bin .* is corrupted"),
    "manifest cut": (lambda path: cut(path / "manifest.json") or cut(path / "manifest.json"), "is damaged"),
    "other JSON": (lambda path: (path / "manifest.json").write_text("[1]"), "is damaged"),
    "other file": (edit(format="lock"), "is damaged or not that of a teacher cache"),
    "missing field": (edit(shards=[{}]), "is damaged"),
    "later version": (edit(version=2), "has format version 2, this release reads 1"),
    "incomplete": (edit(index=None), "is incomplete, with 11 documents so far"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_an_error_that_says_which(cache: Path, name: str) -> None:
    change, message = DAMAGE[name]
    CachedTeacher(cache)
    change(cache)
    with pytest.raises(InputError, match=message) as raised:
        CachedTeacher(cache)
    assert str(cache) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_verification_can_be_left_to_another_process(cache: Path) -> None:
    flip(cache / "shard-00000.bin")
    CachedTeacher(cache, verify=False)
    cut(cache / "shard-00000.bin")
    with pytest.raises(InputError, match="cut short"):
        CachedTeacher(cache, verify=False)


def test_another_tokenizer_is_an_error(cache: Path, tokenizer: Any, bos_tokenizer: Any) -> None:
    CachedTeacher(cache, tokenizer=tokenizer)
    with pytest.raises(InputError, match="made with another tokenizer"):
        CachedTeacher(cache, tokenizer=tokenizer_of(other_vocabulary(bos_tokenizer)))


def test_a_document_that_is_not_there_is_an_error(cache: Path) -> None:
    teacher = CachedTeacher(cache)
    ids = ROWS[3]["input_ids"]
    for other in (ids[:-1], [*ids, 3], [ids[1], ids[0], *ids[2:]]):
        batch = Collator(0)([{"input_ids": other, "labels": other}])
        with pytest.raises(
            InputError, match=f"of {len(other)} tokens .{other[0]}, .*not in teacher cache"
        ) as raised:
            teacher(batch, targets_of(batch)[0])
        assert "dataset_name=rows, max_length=12" in str(raised.value)


def test_rows_are_checked_up_front(cache: Path) -> None:
    teacher = CachedTeacher(cache)
    teacher.check_covers(ROWS)
    teacher.check_covers(pack(datasets.Dataset.from_list(ROWS), 24))
    silent = {"input_ids": [9, 9, 9], "labels": [9, -100, -100]}
    with pytest.raises(
        InputError, match=r"row 13 has a document of 4 tokens .30, 30, 31, 32. that is not in"
    ):
        teacher.check_covers(
            [*ROWS, silent, {"input_ids": [30, 30, 31, 32], "labels": [30, 30, 31, 32]}, silent]
        )


def test_progress_is_told(write: Any) -> None:
    told: list[tuple[int, int]] = []
    write(on_progress=lambda documents, tokens: told.append((documents, tokens)))
    assert [documents for documents, _ in told] == [2, 4, 6, 8, 10, 11]
    assert told[-1][1] == sum(len(row["input_ids"]) - 1 for row in ROWS)


# Top-k lists


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_top_k_in_chunks_is_top_k(chunk: int | None) -> None:
    """Against sorting in float64; the tail of a sure row is far below what 1 minus the rest can tell."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 5, generator=generator), torch.randn(30, 5, generator=generator)
    hidden[0] *= 40
    bias = torch.randn(30, generator=generator)
    logits = hidden.double() @ weight.double().T + bias.double()
    log_probs, order = (logits / 1.5).log_softmax(-1).sort(-1, descending=True)
    for scores in (Scores(hidden, weight, bias), logits.float()):
        known = top_k_of(scores, 4, temperature=1.5, chunk=chunk)
        assert torch.equal(known.indices, order[:, :4])
        torch.testing.assert_close(known.log_probs.double(), log_probs[:, :4], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            known.log_tail.double(), log_probs[:, 4:].logsumexp(-1), rtol=1e-5, atol=1e-5
        )
    assert known.log_tail.min() < -20


def test_no_rows_have_no_top_k() -> None:
    assert top_k_of(torch.zeros(0, 9), 3).indices.shape == (0, 3)
    with pytest.raises(InputError, match="received 10"):
        top_k_of(torch.zeros(2, 9), 10)


def test_a_list_is_shortened_into_its_tail() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.0, 0.2], [0.25, 0.25, 0.25, 0.0]])
    known = TopK(
        torch.tensor([[4, 5, -1, 6], [9, 8, 7, -1]]), probabilities.log(), torch.tensor([0.3, 0.25]).log()
    )
    short = shortened(known, 2)
    assert short.indices.tolist() == [[5, 6], [9, 8]]  # equals stay in their order
    torch.testing.assert_close(short.log_probs.exp(), torch.tensor([[0.4, 0.2], [0.25, 0.25]]))
    torch.testing.assert_close(short.log_tail.exp(), torch.tensor([0.4, 0.5]))
    longer = shortened(known, 6)
    assert longer.indices.tolist() == [[5, 6, 4, -1, -1, -1], [9, 8, 7, -1, -1, -1]]
    torch.testing.assert_close(longer.log_tail, known.log_tail)
