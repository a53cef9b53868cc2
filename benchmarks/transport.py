"""How many times our optimal transport does POT's take on a CPU, to the same residual?

    pip install pot
    python benchmarks/transport.py

Squared distances of points drawn uniformly from the unit square, divided by the largest; uniform marginals;
float64, as POT computes. Each side stops by its own rule, and the residual that it reached is recorded:
entropic transport after as many updates on both sides, the others where they stop. With few nonzeros a
column no plan may have the marginals, and then the residual of both sides stays large.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from io import StringIO
from typing import Any

import numpy as np
import torch
from _compare import in_turns, ratio, summary
from _record import record
from torch import Tensor

import fenchel

ROUNDS, UPDATES = 7, 100
Solve = Callable[[], Any]


def problem(*shape: int) -> Tensor:
    """Costs (..., n, n) in [0, 1]."""
    torch.manual_seed(0)
    x, y = (torch.rand(*shape, 2, dtype=torch.float64) for _ in range(2))
    cost = torch.cdist(x, y).square()
    return cost / cost.amax((-1, -2), keepdim=True)


def missed(found: Any) -> float:
    """The largest violation of a marginal, relative to 1/n."""
    plan = found.plan if isinstance(found, fenchel.Transport) else torch.as_tensor(np.asarray(found))
    size = plan.shape[-1]
    violated = ((plan.sum(axis) - 1 / size).abs().max() for axis in (-1, -2))
    return float(size * max(violated))


def quietly(solve: Solve) -> Any:
    """POT prints a line for every evaluation of its sparse dual."""
    with redirect_stdout(StringIO()):
        return solve()


def compare(question: str, sides: dict[str, Solve], rounds: int, **facts: object) -> None:
    """Time, record and print."""
    residuals = {name: missed(solve()) for name, solve in sides.items()}
    times = in_turns(sides, rounds, least=0.02)
    peers = [name for name in sides if name != "fenchel"]
    of_ours = {name: ratio(times[name], times["fenchel"]) for name in peers}
    figures = {
        "question": question,
        **facts,
        "dtype": "float64",
        "threads": torch.get_num_threads(),
        "sides": {name: summary(seconds) for name, seconds in times.items()},
        "residual_of_mass": residuals,
        "peer_of_ours": of_ours,
    }
    record("transport", figures)
    print(question, facts, of_ours, {name: f"{x:.0e}" for name, x in residuals.items()}, flush=True)


def entropic(ot: Any, epsilon: float) -> None:
    options = {"regularization": epsilon, "iterations": UPDATES, "tolerance": 0.0}
    for size in (64, 256, 1024):
        cost = problem(size)
        a = np.full(size, 1 / size)
        peer = {"reg": epsilon, "numItermax": UPDATES, "stopThr": 0.0, "warn": False}
        sides: dict[str, Solve] = {
            "fenchel": partial(fenchel.entropic_transport, cost, **options),  # type: ignore[arg-type]
            "ot.sinkhorn": partial(ot.sinkhorn, a, a, cost.numpy(), **peer),
            "ot.bregman.sinkhorn_log": partial(ot.bregman.sinkhorn_log, a, a, cost.numpy(), **peer),
        }
        compare("entropic", sides, ROUNDS, shape=[size, size], regularization=epsilon, updates=UPDATES)
    batch, size = 64, 64
    costs = problem(batch, size)
    a = np.full(size, 1 / size)

    def loop() -> Any:
        return np.stack([ot.sinkhorn(a, a, cost, **peer) for cost in costs.numpy()])

    sides = {"fenchel": partial(fenchel.entropic_transport, costs, **options), "ot.sinkhorn": loop}  # type: ignore[arg-type]
    compare("entropic", sides, ROUNDS, shape=[batch, size, size], regularization=epsilon, updates=UPDATES)


def sparse(ot: Any, gamma: float) -> None:
    for size in (64, 256):
        cost, a = problem(size), np.full(size, 1 / size)
        peer = {"reg": gamma, "numItermax": 5000, "stopThr": 1e-12}
        options = {"regularization": gamma, "tolerance": 1e-6 / size}
        sides: dict[str, Solve] = {
            "fenchel": partial(fenchel.quadratic_transport, cost, **options),  # type: ignore[arg-type]
            "ot.smooth.smooth_ot_dual": partial(
                ot.smooth.smooth_ot_dual, a, a, cost.numpy(), reg_type="l2", **peer
            ),
        }
        compare("quadratic", sides, 3, shape=[size, size], regularization=gamma)
        for k in (2, 8):
            semi = partial(ot.smooth.smooth_ot_semi_dual, a, a, cost.numpy(), max_nz=k, **peer)
            sides = {
                "fenchel": partial(fenchel.sparse_transport, cost, k=k, **options),  # type: ignore[arg-type]
                "ot.smooth.smooth_ot_semi_dual": partial(
                    quietly, partial(semi, reg_type="sparsity_constrained")
                ),
            }
            compare("sparse", sides, 3, shape=[size, size], regularization=gamma, k=k)


def main() -> None:
    try:
        ot = import_module("ot")
    except ImportError:
        raise SystemExit("the peer is missing: pip install pot") from None
    for epsilon in (0.1, 0.01):
        entropic(ot, epsilon)
    for gamma in (1.0, 0.1):
        sparse(ot, gamma)


if __name__ == "__main__":
    main()
