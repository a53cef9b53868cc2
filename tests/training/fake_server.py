"""A small real HTTP server that answers as vLLM's completions server does, and can be told to misbehave."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM

Answer = dict[str, Any]


class FakeServer(ThreadingHTTPServer):
    """`faults` are used up, one a completion request; `always` spoils every one.

    A fault is a status, a function of the answer that spoils it, or one of "hang", "cut" (the connection
    drops in the middle of the answer), "drop" (before it) and "text" (no JSON).
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, model: Any, *, name: str = "teacher", key: str = "", dev: bool = False, tokenizer: Any = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.key, self.dev, self.tokenizer = model, key, dev, tokenizer
        self.names = [name]
        self.answering = name
        self.faults: list[Any] = []
        self.always: Any = None
        self.headers: dict[str, str] = {}  # sent with every fault that is a status
        self.delay = 0.0
        self.requests: list[tuple[str, Any]] = []
        self.reloaded: list[str] = []
        self.under_way = self.most_under_way = 0
        self.connections: list[socket.socket] = []
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def completions(self) -> list[Any]:
        return [body for path, body in self.requests if path == "/v1/completions"]

    def next_fault(self) -> Any:
        with self.lock:
            return self.faults.pop(0) if self.faults else self.always

    def vanish(self) -> None:
        """End as a process that is killed does: nobody listens, and open connections are closed."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the tests."""

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> Answer:
        with self.lock:
            choices = [self.choice(i, prompt, body) for i, prompt in enumerate(body["prompt"])]
        return {"id": "cmpl-1", "object": "text_completion", "model": self.answering, "choices": choices}

    def choice(self, index: int, prompt: list[int], body: dict[str, Any]) -> Answer:
        log_probs = self.model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
        choice: Answer = {"index": index, "text": "", "finish_reason": "length"}
        if (k := body.get("prompt_logprobs")) is not None:
            choice["prompt_logprobs"] = [None] + [
                entry(row, k, token) for row, token in zip(log_probs[:-1], prompt[1:], strict=True)
            ]
        if body.get("return_token_ids"):
            choice["prompt_token_ids"] = prompt
            choice["token_ids"] = self.sampled(prompt, body)
        return choice

    def sampled(self, prompt: list[int], body: dict[str, Any]) -> list[int]:
        generator = torch.Generator().manual_seed(body["seed"])
        produced: list[int] = []
        while len(produced) < body["max_tokens"]:
            logits = self.model(input_ids=torch.tensor([prompt + produced])).logits[0, -1]
            if body["top_k"] > 0:
                logits = torch.where(logits >= logits.topk(body["top_k"]).values[-1], logits, -torch.inf)
            if body["temperature"] == 0:
                token = int(logits.argmax())
            else:
                probabilities = (logits / body["temperature"]).softmax(-1)
                token = int(torch.multinomial(probabilities, 1, generator=generator))
            produced.append(token)
            if token in body["stop_token_ids"]:
                break
            if body["stop"] and any(text in self.tokenizer.decode(produced) for text in body["stop"]):
                break
        return produced

    def reload(self, path: str) -> None:
        self.reloaded.append(path)
        if os.path.isdir(path):
            self.model = AutoModelForCausalLM.from_pretrained(path).eval()


def entry(log_probs: torch.Tensor, k: int, token: int) -> Answer:
    """The k likeliest tokens and the one that is there, as vLLM writes them."""
    values, indices = log_probs.topk(k)
    known = {int(i): float(value) for i, value in zip(indices, values, strict=True)}
    known.setdefault(token, float(log_probs[token]))
    return {
        str(i): {"logprob": value, "rank": rank + 1, "decoded_token": "?"}
        for rank, (i, value) in enumerate(known.items())
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, None))
        if not self.allowed():
            return
        models = [{"id": name, "object": "model", "max_model_len": 64} for name in self.server.names]
        self.send(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(text) if text else None
        with self.server.lock:
            self.server.requests.append((self.path, body))
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            if self.allowed():
                self.post(body)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def post(self, body: Any) -> None:
        if self.path != "/v1/completions":
            return self.manage(body)
        time.sleep(self.server.delay)
        fault = self.server.next_fault()
        if isinstance(fault, int):
            self.send(fault, {"error": {"message": f"fault {fault}", "code": fault}}, self.server.headers)
        elif body["model"] not in self.server.names:
            self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        elif fault == "hang":
            self.server.released.wait(10)
        elif fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            answer = self.server.complete(body)
            if isinstance(fault, Callable):  # type: ignore[arg-type]
                answer = fault(answer) or answer
            self.send(200, "<html>busy</html>" if fault == "text" else answer, cut=fault == "cut")

    def manage(self, body: Any) -> None:
        if not self.server.dev:
            self.send(404, {"detail": "Not Found"})
        elif self.path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.server.reload(body["kwargs"]["weights_path"])
            self.send(200, {"results": [None]})
        else:
            self.send(200, "")

    def allowed(self) -> bool:
        if not self.server.key or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return True
        said = f"no good key: {self.headers.get('Authorization')}"
        self.send(401, {"error": {"message": said}})
        return False

    def send(
        self, status: int, body: Any, headers: dict[str, str] | None = None, *, cut: bool = False
    ) -> None:
        text = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text[: len(text) // 2] if cut else text)
        if cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(model: Any, **settings: Any) -> Iterator[FakeServer]:
    """A server in a thread of its own, on loopback."""
    with FakeServer(model, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
