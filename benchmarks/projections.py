"""What do batched isotonic regression and soft top-k take next to a loop over rows, and Dykstra next to PAV?

    python benchmarks/projections.py
    python benchmarks/projections.py --rows 8 --length 256 --rounds 2     a trial, recorded as such

On a CPU. Isotonic regression of rows N(0, 1) next to scipy's and scikit-learn's, row by row, and next to pool
adjacent violators in plain Python and numpy. Soft top-k (p = 2 and 4/3) next to the same done in numpy. Soft
ranks and sorting next to torchsort, in C++ too, where it is installed (pip builds it where there is no nvcc).
Dykstra's 500 iterations next to PAV over n: the time, and the largest error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version

import numpy as np
import torch
from _compare import in_turns, ratio, summary
from _record import record
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression as scipy_regression
from sklearn.isotonic import isotonic_regression as sklearn_regression
from torch import Tensor

import fenchel
from fenchel.operators.isotonic import SOLVERS, pool

Row = NDArray[np.float64]
REGULARIZATION, ITERATIONS = 0.1, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(chosen.rows, chosen.length, dtype=dtype)
        regression(x, chosen.rounds)
        for p in (2.0, 4 / 3):
            topk(x, max(1, chosen.length // 16), p, chosen.rounds)
        ranks(x, chosen.rounds)
    length = 64
    while length <= chosen.length:
        dykstra(torch.randn(chosen.rows, length), chosen.rounds)
        length *= 4


def regression(x: Tensor, rounds: int) -> None:
    numbers = x.double().numpy()
    exact = torch.from_numpy(np.stack([scipy_regression(row).x for row in numbers]))
    sides: dict[str, Callable[[], object]] = {
        "fenchel": partial(fenchel.isotonic_regression, x),
        "fenchel eager": partial(fenchel.isotonic_regression, x, impl="eager"),
        "fenchel both ways": both_ways(x, fenchel.isotonic_regression),
        "scipy": lambda: [scipy_regression(row).x for row in numbers],
        "scikit-learn": lambda: [sklearn_regression(row) for row in numbers],
        "numpy": lambda: [-falling(-row) for row in numbers],
    }
    errors = {
        "fenchel": float((fenchel.isotonic_regression(x).double() - exact).abs().max()),
        "numpy": max(
            float(np.abs(-falling(-row) - one).max()) for row, one in zip(numbers, exact.numpy(), strict=True)
        ),
    }
    report("isotonic regression", x, sides, rounds, errors, "fenchel")


def topk(x: Tensor, k: int, p: float, rounds: int) -> None:
    numbers = x.double().numpy()
    exact = torch.from_numpy(np.stack([topk_row(row, k, p) for row in numbers]))
    operators = {
        f"fenchel {solver}": partial(
            fenchel.topk_mask, k=k, regularization=REGULARIZATION, p=p, solver=solver
        )
        for solver in ("threshold", "pav")
    }
    sides: dict[str, Callable[[], object]] = {name: partial(mask, x) for name, mask in operators.items()}
    sides |= {f"{name} both ways": both_ways(x, mask) for name, mask in operators.items()}
    magnitude = partial(fenchel.topk_magnitude, k=k, regularization=REGULARIZATION, p=p)
    sides["fenchel magnitude"] = partial(magnitude, x)
    sides["fenchel magnitude both ways"] = both_ways(x, magnitude)
    sides["numpy"] = lambda: [topk_row(row, k, p) for row in numbers]
    errors = {name: float((mask(x).double() - exact).abs().max()) for name, mask in operators.items()}
    report(f"soft top-{k}, p = {'2' if p == 2 else '4/3'}", x, sides, rounds, errors, "fenchel threshold")


def ranks(x: Tensor, rounds: int) -> None:
    try:
        torchsort = import_module("torchsort")
    except ImportError:
        print("torchsort is not installed: soft ranks are not compared")
        return
    for problem, ours, theirs in (
        ("soft ranks", fenchel.soft_rank, torchsort.soft_rank),
        ("soft sorting", fenchel.soft_sort, torchsort.soft_sort),
    ):
        sides: dict[str, Callable[[], object]] = {
            "fenchel": partial(ours, x),
            "torchsort": partial(theirs, x),
            "fenchel both ways": both_ways(x, ours),
            "torchsort both ways": both_ways(x, theirs),
        }
        exact = ours(x.double())
        errors = {
            name: float((function(x).double() - exact).abs().max())
            for name, function in (("fenchel", ours), ("torchsort", theirs))
        }
        report(problem, x, sides, rounds, errors, "fenchel")


def dykstra(x: Tensor, rounds: int) -> None:
    """On noise, whose blocks are long, and on sorted scores of which a few near the cut are pooled."""
    cut = (torch.arange(x.shape[-1]) < x.shape[-1] // 16).to(x.dtype)
    for problem, s in (
        ("noise", x),
        ("top-k", x.sort(-1, descending=True).values - REGULARIZATION * cut),
    ):
        exact = pool("mean", s.double())
        solvers = {name: partial(pool, "mean", s, solver=name, iterations=ITERATIONS) for name in SOLVERS}
        errors = {name: float((solve().double() - exact).abs().max()) for name, solve in solvers.items()}
        sides: dict[str, Callable[[], object]] = {**solvers}
        report(f"dykstra, {problem}", s, sides, rounds, errors, "pav")


def report(
    problem: str,
    x: Tensor,
    sides: dict[str, Callable[[], object]],
    rounds: int,
    errors: dict[str, float],
    ours: str,
) -> None:
    """Times in turns, what the others take of ours, and the largest error of each that was measured."""
    times = in_turns(sides, rounds, rarely={"numpy": min(rounds, 3)})
    others = {name: ratio(seconds, times[ours]) for name, seconds in times.items() if name != ours}
    figures = {
        "problem": problem,
        "shape": list(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "implementation": fenchel.which("isotonic", x).impl,
        "versions": {name: version(name) for name in ("scipy", "scikit-learn", "numpy")},
        "sides": {name: summary(seconds) for name, seconds in times.items()},
        "times_of": ours,
        "others_take": others,
        "errors": errors,
    }
    record("projections", figures)
    told = ", ".join(f"{name} {times} times" for name, times in others.items())
    print(f"{problem} {tuple(x.shape)} {figures['dtype']}: of {ours}, {told}; errors {errors}", flush=True)


def both_ways(x: Tensor, function: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    leaf = x.clone().requires_grad_()
    direction = torch.randn_like(x)

    def run() -> None:
        leaf.grad = None
        function(leaf).backward(direction)

    return run


def falling(s: Row) -> Row:
    """The falling sequence nearest to s: pool adjacent violators as the textbooks have it."""
    means: list[float] = []
    sizes: list[int] = []
    for value in s.tolist():
        mean, size = value, 1
        while means and means[-1] < mean:
            other, count = means.pop(), sizes.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        means.append(mean)
        sizes.append(size)
    return np.repeat(means, sizes)


def falling_quartic(s: Row, pull: Row) -> Row:
    """The falling v of least Σ (s - v)⁴ / 4 + pull · v: the same, each block by its cubic equation."""
    values: list[float] = []
    blocks: list[tuple[int, float, float, float, float]] = []
    for value, weight in zip(s.tolist(), pull.tolist(), strict=True):
        block, level = (1, value, value**2, value**3, weight), value - weight ** (1 / 3)
        while values and values[-1] < level:
            values.pop()
            block = tuple(map(sum, zip(blocks.pop(), block, strict=True)))  # type: ignore[assignment]
            level = cubic_root(*block)
        values.append(level)
        blocks.append(block)
    return np.repeat(values, [block[0] for block in blocks])


def cubic_root(n: int, first: float, second: float, third: float, pull: float) -> float:
    """v with Σ (s - v)³ = pull, from the sums of s, s² and s³: Cardano's."""
    mean = first / n
    p = 3 * max(second / n - mean**2, 0.0)
    q = (pull - third) / n + 3 * mean * second / n - 2 * mean**3
    root = math.sqrt((q / 2) ** 2 + (p / 3) ** 3)
    return mean + math.cbrt(-q / 2 + root) + math.cbrt(-q / 2 - root)


def topk_row(x: Row, k: int, p: float) -> Row:
    """The relaxed mask of one row: sorted, pooled, put back."""
    order = np.argsort(-x)
    s, chosen = x[order], (np.arange(len(x)) < k).astype(float)
    mask = np.empty_like(x)
    if p == 2:
        mask[order] = (s - falling(s - REGULARIZATION * chosen)) / REGULARIZATION
    else:
        v = falling_quartic(s, REGULARIZATION**3 * chosen)
        mask[order] = ((s - v) / REGULARIZATION) ** 3
    return mask


if __name__ == "__main__":
    main()
