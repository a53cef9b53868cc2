"""A small set of results, and a Chromium that says what a page logged and asked the network for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def results() -> dict[str, Any]:
    """Two methods and a baseline over three seeds, as a run would have written them."""

    def curve(name: str, *ys: float) -> dict[str, Any]:
        return {"name": name, "x": [1, 2, 3], "y": list(ys)}

    return {
        "title": "Two divergences",
        "summary": "Students of one teacher.",
        "command": "fenchel demo --out 'a b' --seeds 3",
        "created": "2025-01-02T03:04:05+00:00",
        "elapsed_seconds": 83.4,
        "commit": None,
        "versions": {"torch": "2.11.0"},
        "setup": {"steps": 600},
        "claims": [
            {"text": "Distillation helps.", "holds": True, "figures": "2 against 7"},
            {"text": "Sparse is free.", "holds": False, "figures": "4 against 2"},
        ],
        "comparison": {
            "caption": "Held-out text.",
            "columns": [
                {
                    "key": "kl",
                    "label": "KL",
                    "better": "lower",
                    "format": ".2f",
                    "help": "In nats.",
                },
                {
                    "key": "accuracy",
                    "label": "accuracy",
                    "better": "higher",
                    "format": ".1%",
                    "help": "Of the next token.",
                },
            ],
            "rows": [
                {
                    "name": "kl",
                    "baseline": False,
                    "values": {"kl": [1, 2, 3], "accuracy": [0.5, 0.5, 0.5]},
                },
                {
                    "name": "alpha:1.5",
                    "baseline": False,
                    "values": {"kl": [1.0, float("inf"), 2.0], "accuracy": [0.4, None, 0.6]},
                },
                {
                    "name": "hard labels",
                    "baseline": True,
                    "values": {"kl": [7.0], "accuracy": [None]},
                },
            ],
        },
        "panels": [
            {
                "title": "Loss",
                "xlabel": "step",
                "ylabel": "nats",
                "caption": "Each in its own unit.",
                "yscale": "log",
                "series": [
                    curve("kl", 3, 2, 1),
                    curve("kl", 4, 2, 1.5),
                    curve("alpha:1.5", 2, 1, 0.5),
                ],
            }
        ],
        "operators": ["kl", "alpha:1.5"],
        "samples": {
            "prompts": ["Once"],
            "rows": [{"name": "kl", "texts": ["<script>alert(1)</script> & so on"]}],
        },
    }


@dataclass(frozen=True)
class Visit:
    """What a page did in the browser."""

    console: list[str]
    requests: list[str]
    screenshot: Path


@pytest.fixture
def visit(tmp_path: Path) -> Callable[[Path], Visit]:
    """Open a file in headless Chromium; skip where there is none: pip cannot install one."""
    candidates = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, candidates)), None)
    if browser is None:
        # What a page says is tested without one; a browser is no Python package, and its absence no defect.
        pytest.skip(f"no browser: none of {', '.join(candidates)} is installed")

    def open_page(page: Path) -> Visit:
        log, screenshot = tmp_path / "net.json", tmp_path / "page.png"
        ran = subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
                *("--disable-component-update", "--disable-sync"),
                # The browser's own housekeeping must not leave the machine either.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"),
                *(f"--log-net-log={log}", f"--screenshot={screenshot}", "--window-size=1280,2000"),
                page.resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        console = re.findall(r"^\[.*\bCONSOLE\b.*$", ran.stderr, flags=re.MULTILINE)
        return Visit(console, _page_requests(json.loads(log.read_text())), screenshot)

    return open_page


def _page_requests(log: dict[str, Any]) -> list[str]:
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event.get("params", {}) for event in log["events"] if event["type"] == start]
    return [
        job["url"]
        for job in started
        # "not an origin" is the browser itself, which asks for updates; a page has an origin.
        if re.match("https?:", job.get("url", "")) and job.get("initiator") != "not an origin"
    ]
