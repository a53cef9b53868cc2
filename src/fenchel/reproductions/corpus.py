"""Real text without a download: the documentation that ships with the interpreter.

Every docstring of the standard library (one document a module) and the topics of `help()`.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fenchel.errors import InputError

_LEAST_BYTES = 2_000_000
_LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
_HELD_OUT_SHARE = 0.1


def sources() -> Iterator[tuple[str, str]]:
    """(dotted name, source) of every module of Python's library, in the order of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if _LEFT_OUT.intersection(inside.parts) or inside.parts[0].startswith("config-"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield ".".join(inside.with_suffix("").parts), text


def trees() -> Iterator[tuple[str, ast.Module]]:
    """(dotted name, syntax tree) of every module of Python's library that can be parsed."""
    for name, text in sources():
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        yield name, tree


def check_enough(what: str, found: int, least: int) -> None:
    """Raise `InputError` where Python came without the sources of its library, or with too few."""
    if found < least:
        raise InputError(
            f"the library of this Python has {found} {what}, and the experiment needs {least}; run it with "
            "a Python that has the sources of its library"
        )


def documents() -> dict[str, str]:
    """Every document by name, in the order of the names: modules and topics of `help()`.

    Raises `InputError` when this Python came without its sources or with too few of them.
    """
    found = dict(_modules()) | dict(_topics())
    size = sum(len(text.encode()) for text in found.values())
    if size < _LEAST_BYTES:
        raise InputError(
            f"the documentation of this Python is {size / 1e6:.1f} MB, and the demo needs "
            f"{_LEAST_BYTES / 1e6:.0f} MB; run it with a Python that has the sources of its library"
        )
    return dict(sorted(found.items()))


def split(texts: dict[str, str]) -> tuple[list[str], list[str]]:
    """(training, held-out) documents; which is which depends on the text's hash alone."""
    parts: tuple[list[str], list[str]] = ([], [])
    for text in texts.values():
        digest = hashlib.sha256(text.encode()).digest()
        parts[digest[0] < 256 * _HELD_OUT_SHARE].append(text)
    return parts


def _modules() -> Iterator[tuple[str, str]]:
    for name, tree in trees():
        entries = [f"{name}.{owner}\n\n{text}" if owner else text for owner, text in _docstrings(tree, "")]
        if entries:
            yield name, f"{name}\n\n" + "\n\n\n".join(entries)


def _docstrings(node: ast.AST, owner: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of a module and, depth first, of what it defines."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield owner, text
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", None)
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and name is not None:
            yield from _docstrings(child, f"{owner}.{name}" if owner else name)


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data import topics

    for name, text in topics.topics.items():
        yield f"help({name})", text
