"""Write `docs/methods.md` from the docstrings of the public API; with `--check`, only compare."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from fenchel.divergences import TABLE, alpha, divergence

PAGE = Path(__file__).with_name("methods.md")

# The packages of the library in reading order; training and reports are explained by the guides.
PACKAGES = (
    "divergences",
    "operators",
    "losses",
    "nn",
    "decoding",
    "merging",
    "optim",
    "diagnostics",
    "kernels",
    "sklearn",
    "errors",
)

HEADER = """\
# Methods

<!-- Written by docs/build_methods.py from the docstrings: run `make docs`, do not edit. -->

Every public function and class, with the paper that it comes from. The divergences are data, and
each of them works wherever a `divergence` argument is accepted.
"""

SECTION = re.compile(r"^([A-Z][A-Za-z ]*):(?:\s+(.*))?$")
SECTIONS = {"Args", "Attributes", "Example", "Raises", "Reference", "Returns", "Yields"}
ITEM = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*):\s*(.*)$")
ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
MAX_WIDTH = 88


class Entry(NamedTuple):
    """One public name: `fenchel.nn.Loss`, its package, the object and its parsed docstring."""

    name: str
    package: str
    value: object
    sections: dict[str, str]

    @property
    def summary(self) -> str:
        return " ".join(self.sections[""].split("\n\n")[0].split())

    @property
    def anchor(self) -> str:
        return self.name.lower().replace(".", "-")


def parse(docstring: str) -> dict[str, str]:
    """Split a docstring at its section headings; the key of the text before the first is ""."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in inspect.cleandoc(docstring).splitlines():
        heading = SECTION.match(line)
        if heading and heading[1] in SECTIONS:
            current = heading[1]
            sections[current] = [heading[2] or ""]
        else:
            sections[current].append(line)
    return {name: inspect.cleandoc("\n".join(lines)) for name, lines in sections.items()}


def entries() -> list[Entry]:
    """The public API by package: what the root module exports, then what only a package does."""
    found: dict[int, Entry] = {}
    for prefix in ("fenchel", *(f"fenchel.{package}" for package in PACKAGES)):
        if find_spec(prefix) is None:
            continue
        module = importlib.import_module(prefix)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))):
                continue
            package = value.__module__.split(".")[1]
            if package not in PACKAGES:
                raise SystemExit(f"{prefix}.{name} is defined in fenchel.{package}: {PACKAGES=}")
            sections = parse(value.__doc__ or "")
            found.setdefault(id(value), Entry(f"{prefix}.{name}", package, value, sections))
    return sorted(found.values(), key=lambda entry: (PACKAGES.index(entry.package), entry.name))


def prose(text: str) -> str:
    """Escape what Markdown would take for markup, outside of code spans."""
    spans = re.split(r"(`[^`]*`)", text)
    spans[::2] = [re.sub(r"([*_\[\]|])", r"\\\1", s).replace("<", "&lt;") for s in spans[::2]]
    return "".join(spans)


def cell(text: str) -> str:
    """One line of Markdown for a table, where a bar ends the cell even inside of a code span."""
    return re.sub(r"(?<!\\)\|", r"\\|", linked(" ".join(text.split())))


def linked(text: str) -> str:
    """Prose in which every arXiv identifier is a link."""
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", prose(text))


def blocks(text: str) -> Iterator[str]:
    """Paragraphs as Markdown: indented ones are formulas, doctests are sessions, others prose."""
    for block in re.split(r"\n\s*\n", text):
        if block.startswith(">>>"):
            yield f"```pycon\n{block}\n```"
        elif block.startswith(" "):
            yield f"```text\n{inspect.cleandoc(block)}\n```"
        else:
            # A formula may follow its sentence without a blank line between them.
            for indented, lines in _runs(block.splitlines()):
                chunk = "\n".join(lines)
                yield f"```text\n{inspect.cleandoc(chunk)}\n```" if indented else linked(chunk)


def _runs(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Consecutive lines that are indented, or not, together."""
    start = 0
    for end in range(1, len(lines) + 1):
        indented = lines[start].startswith("    ")
        if end == len(lines) or lines[end].startswith("    ") != indented:
            yield indented, lines[start:end]
            start = end


def items(text: str) -> str:
    """`name: what it is` lines, with their continuations, as a list."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if item := ITEM.match(line):
            found.append((item[1], item[2]))
        elif found:
            name, so_far = found[-1]
            found[-1] = (name, f"{so_far} {line.strip()}".rstrip())
        else:
            return linked(text)
    return "\n".join(f"- `{name}`: {linked(what)}" for name, what in found)


class _Bare(str):
    """An annotation that shows without the quotes of a string."""

    def __repr__(self) -> str:
        return str(self)


def signature(entry: Entry) -> str:
    """The call as one would write it, one parameter a line where it is long."""
    if inspect.isclass(entry.value) and issubclass(entry.value, BaseException):
        return entry.name  # raised by us, not called by users
    call = inspect.signature(entry.value)  # type: ignore[arg-type]
    parameters = [
        p if p.annotation is p.empty else p.replace(annotation=_Bare(p.annotation))
        for p in call.parameters.values()
    ]
    returns = call.return_annotation
    if inspect.isclass(entry.value):
        returns = call.empty
    elif returns is not call.empty:
        returns = _Bare(returns)
    line = f"{entry.name}{call.replace(parameters=parameters, return_annotation=returns)}"
    if " at 0x" in line:  # differs from one run to the next, and tells a reader nothing
        raise SystemExit(f"{entry.name} has a default that is known by its address alone: {line}")
    if len(line) <= MAX_WIDTH:
        return line
    kinds = [p.kind for p in parameters]
    shown = [str(p) for p in parameters]
    if inspect.Parameter.VAR_POSITIONAL not in kinds and inspect.Parameter.KEYWORD_ONLY in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    if positional := kinds.count(inspect.Parameter.POSITIONAL_ONLY):
        shown.insert(positional, "/")
    arrow = "" if returns is call.empty else f" -> {returns}"
    return f"{entry.name}(\n" + "".join(f"    {p},\n" for p in shown) + f"){arrow}"


def article(entry: Entry) -> str:
    """One entry of the reference: signature, then the docstring."""
    parts = [f'### <a id="{entry.anchor}"></a>`{entry.name}`']
    parts.append(f"```text\n{signature(entry)}\n```")
    for name, text in entry.sections.items():
        if name in ("Args", "Attributes", "Raises"):
            parts += [f"**{name}**", items(text)]
        else:
            parts += [*([f"**{name}**"] if name else []), *blocks(text)]
    return "\n\n".join(parts)


def build() -> str:
    """The whole page."""
    api = entries()
    documented = {entry.package for entry in api}
    families = {"jsd:<b>": "jsd:0.5", "skew:<w>:<name>": "skew:0.5:kl", "reverse:<name>": "reverse:kl"}
    named = {name: divergence(member) for name, member in families.items()}
    records = {**TABLE, "alpha:<a>": alpha(1.5), **named}
    page = [HEADER, "## The divergences", "| name | f(u) | reference |\n|---|---|---|"]
    for name, record in records.items():
        page[-1] += f"\n| `{name}` | `{record.formula}` | {cell(record.reference)} |"
    for package in (package for package in PACKAGES if package in documented):
        members = [entry for entry in api if entry.package == package]
        page += [f"## fenchel.{package}", "| method | what it is | paper |\n|---|---|---|"]
        for entry in members:
            paper = cell(entry.sections.get("Reference", ""))
            page[-1] += f"\n| [`{entry.name}`](#{entry.anchor}) | {cell(entry.summary)} | {paper} |"
        page += [article(entry) for entry in members]
    return "\n\n".join(part.strip("\n") for part in page) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or with `--check` say whether it is fresh; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when stale")
    check = parser.parse_args(arguments).check
    page = build()
    if not check:
        PAGE.write_text(page, encoding="utf-8")
        print(f"wrote {PAGE.name}")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        print("docs/methods.md is stale: run `make docs` and commit the result", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
