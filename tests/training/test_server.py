"""The server teacher agrees with the local model, outlives faults that pass, and ends clearly on others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.fake_server import FakeServer, serving
from training.tiny import llama

from fenchel.errors import InputError
from fenchel.losses.truncated import TopK
from fenchel.training.objectives.predictions import targets_of
from fenchel.training.packing import Collator, pack
from fenchel.training.teachers.completions import KEY, CompletionServer
from fenchel.training.teachers.server import ServerTeacher
from fenchel.training.teachers.top_k import shortened, top_k_of

VOCABULARY = 40
K = 5
MODEL = llama(VOCABULARY, seed=3)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(MODEL) as running:
        yield running


def client(server: FakeServer, **settings: Any) -> CompletionServer:
    settings = {"retries": 3, "backoff": 0.001, "read_timeout": 5.0, **settings}
    return CompletionServer(server.url, **settings)


def teacher(
    server: FakeServer, *, k: int = K, vocabulary: int = VOCABULARY, **settings: Any
) -> ServerTeacher:
    return ServerTeacher(client(server, **settings), k=k, vocabulary=vocabulary, documents_per_request=2)


def rows_of(*lengths: int, prompt: int = 0) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in lengths:
        ids = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


@torch.no_grad()
def dense(batch: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Log-probabilities of the local model at the positions under loss."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return MODEL(**inputs, use_cache=False).logits[:, :-1][mask].log_softmax(-1)


def as_dense(known: TopK) -> Tensor:
    """Probabilities by token, empty where unknown."""
    full = torch.zeros(len(known.indices), VOCABULARY + 1)
    slots = torch.where(known.indices < 0, VOCABULARY, known.indices)
    return full.scatter(-1, slots, known.log_probs.exp())[:, :-1]


def check_agrees(known: TopK, batch: dict[str, Tensor], mask: Tensor, k: int = K) -> None:
    """The k likeliest tokens are there, all is exact, and together they are a distribution."""
    expected = dense(batch, mask)
    local = top_k_of(expected, k)
    ours = shortened(known, k)
    assert torch.equal(ours.indices.sort(-1).values, local.indices.sort(-1).values)
    torch.testing.assert_close(ours.log_probs, local.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.log_tail, local.log_tail, atol=1e-5, rtol=0)
    present = known.indices >= 0
    exact = expected.gather(-1, known.indices.clamp_min(0))[present]
    torch.testing.assert_close(known.log_probs[present], exact, atol=1e-5, rtol=0)
    assert known.log_probs[~present].eq(-torch.inf).all()
    total = known.log_probs.exp().sum(-1) + known.log_tail.exp()
    torch.testing.assert_close(total, torch.ones_like(total))


def asked(server: FakeServer, *lengths: int, **settings: Any) -> TopK:
    """One call over documents of these lengths, two a request; by default three."""
    batch = Collator(0)(rows_of(*(lengths or (9, 4, 6))))
    return teacher(server, **settings)(batch, targets_of(batch)[0])


# What it says


def test_agrees_with_the_local_model_on_padded_rows(server: FakeServer) -> None:
    batch = Collator(0)(rows_of(9, 2, 6, 12, prompt=1))
    mask, targets = targets_of(batch)
    known = teacher(server)(batch, mask)
    check_agrees(known, batch, mask)
    assert (known.indices == targets[:, None]).any(-1).all()  # the token that is there, whatever its rank
    assert known.indices.shape == (len(targets), K + 1)


def test_agrees_on_packed_rows_and_asks_for_documents_with_a_loss_only(server: FakeServer) -> None:
    import datasets

    rows = rows_of(7, 5, 6, 3, 8)
    rows[2]["labels"] = [-100] * 6
    packed = list(pack(datasets.Dataset.from_list(rows), 16))
    batch = Collator(0)(packed)
    mask, _ = targets_of(batch)
    check_agrees(teacher(server)(batch, mask), batch, mask)
    prompts = [prompt for body in server.completions() for prompt in body["prompt"]]
    wanted = [row["input_ids"] for row in rows if row is not rows[2]]
    assert sorted(prompts) == sorted(wanted)


def test_answers_for_the_positions_of_the_mask_in_their_order(server: FakeServer) -> None:
    batch = Collator(0)(rows_of(9, 4, 6))
    mask, _ = targets_of(batch)
    mask = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    assert 0 < mask.sum() < 16
    check_agrees(teacher(server)(batch, mask), batch, mask)


def test_choices_may_come_in_any_order(server: FakeServer) -> None:
    expected = asked(server)
    server.always = lambda answer: answer["choices"].reverse()
    torch.testing.assert_close(asked(server), expected)


def test_the_whole_vocabulary_leaves_no_tail(server: FakeServer) -> None:
    batch = Collator(0)(rows_of(5))
    mask, _ = targets_of(batch)
    known = teacher(server, k=VOCABULARY)(batch, mask)
    assert known.log_tail.eq(-torch.inf).all()
    torch.testing.assert_close(as_dense(known), dense(batch, mask).exp(), atol=1e-6, rtol=0)


def test_nothing_is_asked_where_nothing_is_under_loss(server: FakeServer) -> None:
    batch = Collator(0)(rows_of(5))
    known = teacher(server)(batch, torch.zeros(1, 4, dtype=torch.bool))
    assert len(known.log_tail) == 0
    assert not server.completions()


def certain(answer: dict[str, Any]) -> None:
    """A teacher so sure that its other probabilities vanish in float32, and one that vLLM writes -9999."""
    for choice in answer["choices"]:
        for entry in choice["prompt_logprobs"][1:]:
            for rank, value in enumerate(entry.values()):
                value["logprob"] = 0.0 if rank == 0 else -9999.0


def test_a_tail_lost_in_rounding_is_small_but_not_zero(server: FakeServer) -> None:
    server.always = certain
    known = asked(server)
    torch.testing.assert_close(known.log_tail, torch.full_like(known.log_tail, -24 * math.log(2)))
    assert (known.indices >= 0).sum(-1).eq(1).all()
    assert known.log_probs.eq(-torch.inf).sum(-1).eq(K).all()


# Faults that pass


@pytest.mark.parametrize("fault", [500, 502, 503, 504, 429, "drop", "cut", "hang"])
def test_faults_that_pass_are_outlived(server: FakeServer, fault: Any) -> None:
    expected = asked(server)
    server.faults = [fault, fault]
    started = time.monotonic()
    patience = 0.1 if fault == "hang" else 60.0
    torch.testing.assert_close(asked(server, read_timeout=patience), expected)
    assert not server.faults
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (500, "status 500: fault 500"),
        ("hang", "ReadTimeout: nothing within 0.05 s"),
        ("cut", "ProtocolError"),
    ],
)
def test_a_server_that_stays_down_ends_the_run(server: FakeServer, fault: Any, cause: str) -> None:
    ready = teacher(server, read_timeout=0.05 if fault == "hang" else 60.0, retries=2)
    server.always = fault
    batch = Collator(0)(rows_of(4))
    with pytest.raises(InputError) as raised:
        ready(batch, targets_of(batch)[0])
    message = str(raised.value)
    for part in (
        server.url,
        "in 3 attempts over",
        cause,
        "checkpoints are kept",
        "start the server and resume",
    ):
        assert part in message
    assert "\n" not in message
    assert len(server.completions()) == 3


def test_a_server_that_is_gone_ends_the_run(server: FakeServer) -> None:
    ready = teacher(server)
    server.vanish()
    with pytest.raises(InputError, match=r"gave no answer .* 4 attempts .*ConnectError"):
        ready.score([[1, 2, 3]])
    with pytest.raises(InputError, match="gave no answer to /v1/models"):
        teacher(server)


def test_the_first_request_that_fails_ends_the_others(server: FakeServer) -> None:
    ready = teacher(server, backoff=60.0, max_backoff=60.0)
    server.faults = [503, 400]
    started = time.monotonic()
    with pytest.raises(InputError, match="status 400"):
        ready.score([[1, 2, 3]] * 4)
    assert time.monotonic() - started < 30
    ready.server.backoff = 0.001
    server.faults = [503]
    assert len(ready.score([[1, 2, 3]])) == 1  # and the next call retries again


class Waits:
    """In place of the event that attempts wait on: notes for how long, and returns at once."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False


def waited(server: FakeServer, **settings: Any) -> list[float]:
    ready = client(server, **settings)
    ready._stop = waits = Waits()  # type: ignore[assignment]
    ready.complete([[1, 2]], max_tokens=1)
    return waits.seconds


def test_attempts_back_off_exponentially_with_jitter(server: FakeServer) -> None:
    server.faults = [500] * 6
    seconds = waited(server, retries=6, backoff=1.0, max_backoff=8.0)
    for second, most in zip(seconds, [1, 2, 4, 8, 8, 8], strict=True):
        assert most / 2 <= second <= most
    assert len(set(seconds)) == 6


@pytest.mark.parametrize("date", [False, True])
def test_attempts_wait_as_long_as_the_server_asks(server: FakeServer, date: bool) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=7), usegmt=True)
    server.headers = {"Retry-After": later if date else "7"}
    server.faults = [429, 503]
    assert all(5 < second <= 7 for second in waited(server))
    server.headers = {"Retry-After": "soon"}
    server.faults = [429]
    assert waited(server)[0] < 1


def test_jitter_leaves_the_random_numbers_of_the_training_alone(server: FakeServer) -> None:
    import random

    random.seed(0)
    expected = random.Random(0).random()
    server.faults = [500, 500]
    waited(server)
    assert random.random() == expected


# Faults that do not pass


def spoiled(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """A fault that changes the distribution of the first document's third token."""

    def spoil(answer: dict[str, Any]) -> None:
        change(answer["choices"][0]["prompt_logprobs"][2])

    return spoil


def set_first(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(entry: dict[str, Any]) -> None:
        entry[next(iter(entry))] = value

    return spoiled(change)


GARBAGE: dict[str, tuple[Any, str]] = {
    "no JSON": ("text", "no JSON but '<html>busy</html>'"),
    "no object": (lambda answer: [1], r"no JSON object but \[1\]"),
    "no choices": (lambda answer: answer.pop("choices") and None, "no list of choices but None"),
    "too few choices": (lambda answer: answer["choices"].pop() and None, "1 choices for 2 prompts"),
    "one index twice": (lambda answer: answer["choices"][1].update(index=0), "2 choices for 2 prompts"),
    "no model": (lambda answer: answer.pop("model") and None, "an answer of no model but None"),
    "no log-probs": (
        lambda answer: answer["choices"][0].pop("prompt_logprobs") and None,
        "no prompt_logprobs",
    ),
    "wrong length": (
        lambda answer: answer["choices"][0]["prompt_logprobs"].pop() and None,
        "prompt_logprobs of 8 tokens for a document of 9",
    ),
    "a hole": (
        lambda answer: answer["choices"][0]["prompt_logprobs"].__setitem__(3, None),
        r"None in place of the log-probabilities of token 3",
    ),
    "empty": (spoiled(lambda entry: entry.clear()), "no log-probability of token 2 itself"),
    "too few tokens": (
        spoiled(lambda entry: [entry.pop(next(iter(entry))) for _ in range(2)] and None),
        "[34] log-probabilities of token 2, for which 5 were asked",
    ),
    "no number": (set_first({"rank": 1}), "in place of the log-probability of"),
    "text": (set_first({"logprob": "-1.0"}), "in place of the log-probability of"),
    "true": (set_first({"logprob": True}), "in place of the log-probability of"),
    "NaN": (set_first({"logprob": math.nan}), "log-probability nan of"),
    "positive": (set_first({"logprob": 0.5}), "log-probability 0.5 of"),
    "too likely": (set_first({"logprob": 0.0}), r"probabilities that sum to 1\.\d+ \(token 2\)"),
    "another vocabulary": (
        spoiled(lambda entry: entry.update({"40": entry.pop(next(iter(entry)))})),
        "token '40' .token 2., which is outside the vocabulary of 40",
    ),
    "a negative token": (
        spoiled(lambda entry: entry.update({"-1": entry.pop(next(iter(entry)))})),
        "token '-1'",
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_an_error_that_says_what_it_is(server: FakeServer, name: str) -> None:
    fault, message = GARBAGE[name]
    server.always = fault
    with pytest.raises(InputError, match=message) as raised:
        asked(server, 9, 4)
    assert server.url in str(raised.value)
    assert len(server.completions()) == 1  # garbage is not asked for again


def test_probabilities_within_rounding_of_one_are_kept(server: FakeServer) -> None:
    def rounded(answer: dict[str, Any]) -> None:
        for choice in answer["choices"]:
            for entry in choice["prompt_logprobs"][1:]:
                total = sum(math.exp(value["logprob"]) for value in entry.values())
                for value in entry.values():
                    value["logprob"] += math.log(1.0001 / total)

    server.always = rounded
    known = asked(server)
    total = known.log_probs.exp().sum(-1) + known.log_tail.exp()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_a_model_that_changes_in_mid_run_is_an_error(server: FakeServer) -> None:
    ready = teacher(server)
    ready.score([[1, 2, 3]])
    server.answering = "student"
    with pytest.raises(InputError, match="changed from 'teacher' to 'student' in mid-run"):
        ready.score([[1, 2, 3]])


def test_a_model_that_is_gone_is_an_error(server: FakeServer) -> None:
    ready = teacher(server)
    server.names = ["student"]
    with pytest.raises(InputError, match=r"status 404: The model `teacher` does not exist.*began with model"):
        ready.score([[1, 2, 3]])


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_is_quoted_and_not_repeated(server: FakeServer, status: int) -> None:
    server.always = status
    with pytest.raises(InputError, match=f"status {status}: fault {status}"):
        teacher(server).score([[1, 2, 3]])
    assert len(server.completions()) == 1


# The model, the key, the window


def test_the_model_is_found_or_its_choice_explained(server: FakeServer) -> None:
    assert client(server).model == "teacher"
    server.names = ["teacher", "student"]
    assert client(server, model="student").model == "student"
    with pytest.raises(InputError, match=r"2 models .teacher, student.; name one"):
        client(server)
    with pytest.raises(
        InputError, match=r"no model 'studen' .did you mean 'student'.*it has: teacher, student"
    ):
        client(server, model="studen")


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_as_people_write_it(server: FakeServer, suffix: str) -> None:
    assert CompletionServer(server.url + suffix).url == server.url


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://[::1"])
def test_what_is_no_url_is_an_error(url: str) -> None:
    with pytest.raises(InputError, match=r"http://host:8000"):
        CompletionServer(url)


def test_the_key_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(MODEL, key="sk-right") as server:
        with pytest.raises(InputError, match=f"status 401.*{KEY}"):
            client(server)
        monkeypatch.setenv(KEY, "sk-wrong")
        with caplog.at_level(0), pytest.raises(InputError, match="status 401: no good key") as raised:
            client(server)
        monkeypatch.setenv(KEY, "sk-right")
        with caplog.at_level(0):
            client(server).complete([[1, 2]], max_tokens=1)
        assert "sk-" not in str(raised.value) + caplog.text
    monkeypatch.setenv(KEY, "sk-ri\nght")
    with pytest.raises(InputError, match="no header can hold") as raised:
        client(server)
    with pytest.raises(InputError, match="user or password") as secret:
        CompletionServer("http://user:sk-1@host")
    assert "sk-" not in str(raised.value) + str(secret.value)


def test_documents_longer_than_the_window_are_an_error_before_anything_is_sent(server: FakeServer) -> None:
    ready = teacher(server)
    ready.score([[2] * 63])
    with pytest.raises(InputError, match="64 tokens and 1 to generate do not fit the window of 64 tokens"):
        ready.score([[2, 3], [2] * 64])
    assert len(server.completions()) == 1


@pytest.mark.parametrize("k", [0, VOCABULARY + 1])
def test_a_k_that_no_teacher_has_is_an_error(server: FakeServer, k: int) -> None:
    with pytest.raises(InputError, match=f"received {k}"):
        teacher(server, k=k)


def test_requests_run_at_the_same_time_up_to_a_bound(server: FakeServer) -> None:
    server.delay = 0.05
    teacher(server, concurrency=3).score([[1, 2, 3]] * 16)
    assert server.most_under_way == 3
    assert {len(body["prompt"]) for body in server.completions()} == {2}


# Generation and reloading

PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7], [3]]
SAMPLING = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stop_token_ids": [1]}


def test_completions_do_not_depend_on_the_other_prompts(server: FakeServer) -> None:
    ready = client(server)
    together = ready.generate(PROMPTS, seed=4, **SAMPLING)
    assert [len(tokens) <= 6 for tokens in together] == [True] * 4
    apart = [ready.generate([prompt], seed=4, **SAMPLING)[0] for prompt in PROMPTS]
    assert [together[i] for i in (0, 1, 3)] == [apart[i] for i in (0, 1, 3)]
    assert together[0] != together[2]  # a prompt asked twice has two completions
    assert ready.generate(PROMPTS, seed=5, **SAMPLING) != together
    given = ready.generate(PROMPTS, seed=[7, 7, 8, 9], **SAMPLING)
    assert given[1] == ready.generate(PROMPTS[1:2], seed=[7], **SAMPLING)[0]
    seeds = [body["seed"] for body in server.completions()]
    assert len(set(seeds)) == 4 + 4 + 3  # the calls for one prompt repeat seeds of the first call


def test_greedy_completions_are_the_models_own(server: FakeServer) -> None:
    (tokens,) = client(server).generate([[5, 6, 7]], **{**SAMPLING, "temperature": 0})
    with torch.no_grad():
        expected = MODEL.generate(
            input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False, eos_token_id=1
        )[0, 3:]
    assert tokens == expected.tolist()


def test_the_whole_of_the_sampling_is_said(server: FakeServer) -> None:
    client(server).generate([[5]], **SAMPLING)
    (body,) = server.completions()
    assert (body["top_k"], body["top_p"], body["min_p"], body["repetition_penalty"]) == (-1, 1.0, 0.0, 1.0)
    assert body["return_token_ids"] is True
    assert 0 <= body["seed"] < 2**63


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda choice: choice.pop("token_ids"), "no token_ids"),
        (lambda choice: choice.update(token_ids=["a"]), r"token_ids \['a'\]"),
        (lambda choice: choice.update(token_ids=[-1]), r"token_ids \[-1\]"),
        (lambda choice: choice.update(token_ids=[2] * 7), "7 tokens where 6"),
        (lambda choice: choice.update(prompt_token_ids=[1]), "another prompt"),
        (lambda choice: choice.update(finish_reason="abort"), "ended in 'abort'"),
    ],
)
def test_garbage_in_completions_is_an_error(server: FakeServer, change: Any, message: str) -> None:
    def fault(answer: dict[str, Any]) -> None:
        change(answer["choices"][0])

    server.always = fault
    with pytest.raises(InputError, match=message):
        client(server).generate([[5, 6]], **SAMPLING)


def test_an_empty_completion_is_one(server: FakeServer) -> None:
    server.always = lambda answer: answer["choices"][0].update(token_ids=[], finish_reason="stop")
    assert client(server).generate([[5, 6]], **SAMPLING) == [[]]


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "empty prompt"), ([2] * 60, "6 to generate do not fit")]
)
def test_prompts_that_cannot_be_completed_are_errors(
    server: FakeServer, prompt: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        client(server).generate([[5], prompt], **SAMPLING)
    assert not server.completions()


def test_weights_are_reloaded_where_the_server_can(tmp_path: Path) -> None:
    with serving(MODEL, dev=True) as server:
        client(server).reload(tmp_path / "step-1")
        assert server.reloaded == [str(tmp_path / "step-1")]
        assert [path for path, _ in server.requests][-2:] == ["/collective_rpc", "/reset_prefix_cache"]
    with serving(MODEL) as server, pytest.raises(InputError, match="VLLM_SERVER_DEV_MODE=1"):
        client(server).reload(tmp_path)
