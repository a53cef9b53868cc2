"""Write the table of ratios into README.md and docs/performance.md, from the newest lines of the results.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _record import RESULTS, ROOT

README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- {}: written by `make bench` -->", "<!-- end of {} -->"
_FACTS = ("work", "logits", "shape", "divergence", "problem", "dtype", "question", "regularization", "k")
_KINDS = {"trained": "of trained models"}
Row = tuple[str, str, str]
"""What is timed, next to what, and the ratio."""


def lines_of(name: str) -> list[dict[str, Any]]:
    """All lines of a benchmark, the oldest first."""
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def newest(name: str) -> list[dict[str, Any]]:
    """The lines of the last run of a benchmark."""
    lines = lines_of(name)
    last = lines[-1]
    run = [line for line in lines if line["commit"] == last["commit"] and line["command"] == last["command"]]
    keys: dict[str, dict[str, Any]] = {}
    for line in run:  # of several runs at one commit, the last
        figures = line["figures"]
        keys[str([figures.get(key) for key in _FACTS])] = line
    return list(keys.values())


def softargmax() -> Iterator[Row]:
    """f-softargmax next to softmax and entmax."""
    lines = [line["figures"] for line in newest("softargmax")]
    for kind in dict.fromkeys(figures["logits"] for figures in lines):
        for names, what in (
            (("alpha:1.5", "alpha:2"), "alpha 1.5 and 2"),
            (("js", "hellinger", "reverse-kl", "jeffreys", "alpha:1.1"), "dense f"),
        ):
            some = [x for x in lines if x["logits"] == kind and x["divergence"] in names]
            sizes = sorted({x["shape"][1] for x in some})
            logits, vocabularies = _KINDS.get(kind, kind), " and ".join(f"{n:,}" for n in sizes)
            work = f"f-softargmax, {what}, logits {logits}, V = {vocabularies}"
            yield work, "torch.softmax", span([x["of_softmax"] for x in some])
            inverse = [1 / x["entmax_of_ours"] for x in some if "entmax_of_ours" in x]
            if inverse:
                yield (
                    work,
                    f"entmax {some[0]['entmax_version']}",
                    f"1/{1 / max(inverse):.0f} to 1/{1 / min(inverse):.0f}",
                )


def losses() -> Iterator[Row]:
    """Losses of logits."""
    for line in newest("losses"):
        figures = line["figures"]
        ours = {k: v for k, v in figures["ratios"].items() if not k.startswith(("entmax", "TRL"))}
        work = f"{figures['work']}, forward and backward, {len(ours)} divergences"
        yield work, figures["base"], span(list(ours.values()))
        for peer, value in figures["ratios"].items():
            if peer in ours:
                continue
            mine = ours[peer.split()[-1]] if peer.startswith("entmax") else max(ours.values())
            yield (
                f"the same, {peer.split()[-1] if peer.startswith('entmax') else 'the slowest'}",
                peer,
                f"{mine / value:.3f}",
            )


def head() -> Iterator[Row]:
    """The head with its loss."""
    figures = newest("head")[0]["figures"]
    ratios = figures["of_the_faster_peer"]
    model = figures["model"]
    work = f"head and loss, forward and backward, V = {model['vocabulary']:,}, d = {model['hidden']}"
    for name in ("alpha:1.5", "alpha:2"):
        support = figures["support"][name]
        yield f"{work}, {name} (support {support:.0f})", "the faster cross-entropy", f"{ratios[name]:.2f}"
    others = ("alpha:1.5", "alpha:2", "h @ W.T alone", "fitzpatrick")
    dense = [ratios[name] for name in ratios if name not in others]
    yield f"{work}, dense f and kl", "the faster cross-entropy", span(dense)
    if "fitzpatrick" in ratios:
        yield f"{work}, Fitzpatrick logistic", "the faster cross-entropy", f"{ratios['fitzpatrick']:.2f}"
    yield "of that, the product of hidden states and head alone", "", f"{ratios['h @ W.T alone']:.2f}"


def memory() -> Iterator[Row]:
    """The peak of a step of distillation."""
    found = [
        x["figures"]["found"] for x in lines_of("distillation_trl") if x["figures"]["question"] == "memory"
    ]
    peer = "DistillationTrainer"
    for side, what in (("fenchel offline", "distillation"), ("fenchel on-policy", "on-policy distillation")):
        ratio = found[-1][f"default, ratio to {peer}"][side]
        yield f"peak memory of a step of {what}, V = 151,936, B = 4, T = 128", f"TRL's {peer}", f"{ratio:.2f}"


def projections() -> Iterator[Row]:
    """Isotonic regression and top-k next to loops over rows."""
    for figures in (line["figures"] for line in newest("projections")):
        if figures["problem"].startswith("dykstra") or figures["dtype"] != "float32":
            continue
        rows, length = figures["shape"]
        work = f"{figures['problem']}, {rows} rows of {length:,}"
        for peer, times in figures["others_take"].items():
            if not peer.startswith("fenchel") and not peer.endswith("both ways"):
                how = "" if peer == "torchsort" else ", row by row"
                yield work, f"{peer}{how}", f"1/{times:.0f}" if times >= 2 else f"{1 / times:.2f}"


def transport() -> Iterator[Row]:
    """Transport next to POT."""
    for figures in (line["figures"] for line in newest("transport")):
        shape = " x ".join(f"{n:,}" for n in figures["shape"])
        name = "regularization"
        work = f"{figures['question']} transport, {shape}, {name} {figures[name]:g}"
        work += f", k = {figures['k']}" if "k" in figures else ""
        for peer, times in figures["peer_of_ours"].items():
            missed = figures["residual_of_mass"]
            what = f"{peer} (misses {missed[peer]:.0e} of a mass, ours {missed['fenchel']:.0e})"
            yield work, what, f"{1 / times:.2f}"


def routers() -> Iterator[Row]:
    """The mixture-of-experts layer under each router."""
    for figures in (line["figures"] for line in newest("routers")):
        shape = figures["shape"]
        work = f"{figures['work']}, {shape['tokens']:,} tokens, {shape['experts']} experts"
        for router, times in figures["of_plain"].items():
            yield f"{work}: {router}", "a plain top-2 softmax router", f"{times:.2f}"


def dykstra() -> Iterator[tuple[str, ...]]:
    """Dykstra's algorithm next to PAV over n."""
    for figures in (line["figures"] for line in newest("projections")):
        if figures["problem"].startswith("dykstra"):
            rows, length = figures["shape"]
            problem = figures["problem"].removeprefix("dykstra, ")
            pav, other = (figures["sides"][name]["median_ms"] for name in ("pav", "dykstra"))
            error = figures["errors"]["dykstra"]
            yield problem, f"{rows} x {length:,}", f"{pav:.2f}", f"{other:.1f}", f"{error:.0e}"


def span(values: list[float]) -> str:
    """From the least to the largest."""
    low, high = min(values), max(values)
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def table(head: Row | tuple[str, ...], rows: list[tuple[str, ...]], benchmark: str) -> str:
    """The Markdown between the marks; `benchmark` says where the versions are."""
    last = newest(benchmark)[-1]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    kind = last["figures"].get("dtype", "float32")
    made = f"{kind}, {last['figures']['threads']} threads, torch {last['torch']}, commit {last['commit'][:7]}"
    note = f"{made}; medians of turns in one process."
    return "\n".join([*lines, "", note])


def main() -> None:
    ratios = ("work", "next to", "a multiple of its time, or memory")
    first: list[tuple[str, ...]] = [*softargmax(), *losses(), *head(), *memory()]
    over_n = ("problem", "rows", "PAV, ms", "Dykstra, ms", "largest error of Dykstra")
    places = (
        (README, "benchmarks", table(ratios, first, "head")),
        (PERFORMANCE, "benchmarks", table(ratios, first, "head")),
        (PERFORMANCE, "projections", table(ratios, [*projections()], "projections")),
        (PERFORMANCE, "dykstra", table(over_n, [*dykstra()], "projections")),
        (PERFORMANCE, "transport", table(ratios, [*transport()], "transport")),
        (PERFORMANCE, "routers", table(ratios, [*routers()], "routers")),
    )
    for page, name, text in places:
        write(page, name, text)
        print(f"{text}\n")


def write(page: Path, name: str, text: str) -> None:
    """Put the table between the marks of its name."""
    old, begin, end = page.read_text(encoding="utf-8"), BEGIN.format(name), END.format(name)
    mark = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not mark.search(old):
        raise SystemExit(f"{page.name} has no place for the table: {begin} ... {end}")
    page.write_text(mark.sub(lambda _: f"{begin}\n{text}\n{end}", old), encoding="utf-8")


if __name__ == "__main__":
    main()
