"""What does `import fenchel` add to `import torch`?

Fresh interpreters import torch alone and torch with fenchel, in turns, so that a drift of the
machine reaches both alike. `-X importtime` then says which of fenchel's modules take the time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from _record import record

PAIRS = 7
TRACES = 3
TIMER = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
TORCH = "import torch"
BOTH = "import torch; import fenchel"


def milliseconds(statement: str) -> float:
    """Time of a statement in a fresh interpreter, without the interpreter's own start."""
    command = [sys.executable, "-c", TIMER.format(statement)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1e3 * float(run.stdout)


def trace() -> dict[str, float]:
    """Cumulative milliseconds of each of fenchel's modules, in the order of loading."""
    command = [sys.executable, "-X", "importtime", "-c", BOTH]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = (line.split("|") for line in run.stderr.splitlines() if line.count("|") == 2)
    return {
        name.strip(): float(cumulative) / 1e3
        for _, cumulative, name in rows
        if name.strip().partition(".")[0] == "fenchel"
    }


def main() -> None:
    milliseconds(BOTH)
    pairs = [(milliseconds(TORCH), milliseconds(BOTH)) for _ in range(PAIRS)]
    traces = [trace() for _ in range(TRACES)]
    torch_alone = statistics.median(alone for alone, _ in pairs)
    with_fenchel = statistics.median(both for _, both in pairs)
    added = statistics.median(both - alone for alone, both in pairs)
    ratio = statistics.median(both / alone for alone, both in pairs)
    modules = {name: statistics.median(t[name] for t in traces) for name in traces[0]}

    print(f"{'import torch':<36}{torch_alone:>10.1f} ms   median of {PAIRS}")
    print(f"{'import torch; import fenchel':<36}{with_fenchel:>10.1f} ms")
    print(f"{'added (median of paired differences)':<36}{added:>10.1f} ms")
    print(f"{'ratio':<36}{ratio:>10.3f}")
    print(f"\n-X importtime, cumulative, median of {TRACES}")
    for name, time in sorted(modules.items(), key=lambda item: -item[1]):
        print(f"{name:<36}{time:>10.1f} ms")
    path = record(
        "import_time",
        {
            "torch_ms": round(torch_alone, 2),
            "with_fenchel_ms": round(with_fenchel, 2),
            "added_ms": round(added, 2),
            "ratio": round(ratio, 4),
            "pairs_ms": [[round(alone, 2), round(both, 2)] for alone, both in pairs],
            "importtime_cumulative_ms": {name: round(time, 2) for name, time in modules.items()},
        },
    )
    print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
