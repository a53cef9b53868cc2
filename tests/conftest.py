"""Settings shared by all tests: offline, reproducible, no example database on disk."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What is compiled is kept between runs, away from the user's own cache.
os.environ.setdefault("FENCHEL_CACHE", str(Path(__file__).parents[1] / "build" / "kernels"))

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fenchel",
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fenchel")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # experiments set it for their process, which tests share
    torch._dynamo.reset()  # every record is a recompilation, and their number is limited
