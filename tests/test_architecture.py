"""The shape of the code: who may import whom, what importing costs, and what docstrings hold."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import fenchel
import fenchel.sklearn

SOURCE = Path(__file__).parents[1] / "src" / "fenchel"
MAX_LINES = 400

# From the top down. A package imports from levels below its own; `fenchel` is the root module,
# which re-exports from what is below it and loads with torch alone.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"cli"}),
    frozenset({"reproductions"}),
    frozenset({"training"}),
    frozenset({"fenchel"}),
    frozenset({"report", "diagnostics", "sklearn"}),
    frozenset({"nn", "decoding", "merging", "optim"}),
    frozenset({"losses"}),
    frozenset({"operators"}),
    frozenset({"kernels"}),
    frozenset({"divergences", "thresholds"}),
    frozenset({"errors", "checks", "files"}),
)
LEVEL = {package: level for level, layer in enumerate(LAYERS) for package in layer}

# What `import fenchel` may load: module-level imports here are of torch alone.
TORCH_ONLY = LEVEL.keys() - {"cli", "reproductions", "training", "report", "sklearn"}
# Third-party libraries with one home, and the packages which may also import them in a function.
HOME = {
    **dict.fromkeys(["transformers", "accelerate", "datasets", "peft", "tokenizers"], "training"),
    **dict.fromkeys(["matplotlib", "jinja2"], "report"),
}
LAZY_GUESTS = {"training": frozenset({"cli", "reproductions"}), "report": frozenset[str]()}

# Packages whose public names are methods from papers, and the names there that are not.
METHODS = frozenset({"operators", "losses", "nn", "decoding", "merging", "optim", "sklearn"})
UTILITIES = frozenset({"reduce"})


class Import(NamedTuple):
    target: str
    line: int
    lazy: bool


def imports(module: str, source: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import of a module, resolved to a dotted name; lazy if importing does not run it."""
    package = module.split(".") if is_package else module.split(".")[:-1]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
            case ast.ImportFrom():
                anchor = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*anchor, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield Import(f"{base}.{alias.name}", node.lineno, lazy)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for child in node.body:
                    yield from walk(child, True)
                for child in node.orelse:
                    yield from walk(child, lazy)
            case _:
                inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for child in ast.iter_child_nodes(node):
                    yield from walk(child, inside)

    yield from walk(ast.parse(source), False)


def package_of(name: str) -> str:
    """`fenchel.losses.reduce` -> `losses`; a name that the root module exports -> `fenchel`."""
    part = [*name.split("."), "fenchel"][1]
    return part if part in LEVEL else "fenchel"


def violation(module: str, imported: Import) -> str | None:
    """What is wrong with one import of one module of fenchel."""
    package = package_of(module)
    library, *rest = imported.target.split(".")
    if library == "fenchel":
        target = package_of(imported.target)
        if target == package:
            return None
        if LEVEL[target] <= LEVEL[package]:
            direction = "sideways" if LEVEL[target] == LEVEL[package] else "upward"
            return f"{direction} import of {imported.target}"
        if target == "kernels" and rest[1:2] != ["dispatch"]:
            return f"{imported.target} is reached through fenchel.kernels.dispatch"
    elif library in HOME:
        home = HOME[library]
        if package != home and not (imported.lazy and package in LAZY_GUESTS[home]):
            return f"{library} belongs to fenchel.{home}"
    elif package in TORCH_ONLY and not imported.lazy and library not in sys.stdlib_module_names | {"torch"}:
        return f"module-level import of {library}; here torch is the only dependency"
    return None


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Every breach of the rules in one source file, each as `module:line: what`."""
    found = []
    if module.split(".")[1:2] and module.split(".")[1] not in LEVEL:
        found.append(f"{module}: not in the table of layers")
    lines = len(source.splitlines())
    if lines > MAX_LINES:
        found.append(f"{module}: {lines} lines, at most {MAX_LINES}")
    for imported in imports(module, source, is_package=is_package):
        if what := violation(module, imported):
            found.append(f"{module}:{imported.line}: {what}")
    return found


def docstring_gaps(name: str, value: object) -> list[str]:
    """What the docstring of one public name lacks."""
    if not callable(value) and not isinstance(value, ModuleType):
        return []
    text = value.__doc__ or ""
    if not text.strip():
        return [f"{name}: no docstring"]
    if isinstance(value, ModuleType) or (inspect.isclass(value) and issubclass(value, BaseException)):
        return []
    wanted = {"a doctest": r">>> ", "Args:": r"(Args|Attributes):$"}
    if not inspect.isclass(value):
        wanted["Args:"] = r"Args:$"
        wanted["Returns:"] = r"Returns:"
    if package_of(value.__module__) in METHODS and name not in UTILITIES:
        wanted["Reference:"] = r"Reference:"
    return [
        f"{name}: lacks {section}"
        for section, pattern in wanted.items()
        if not re.search(rf"^\s*{pattern}", text, re.MULTILINE)
    ]


def test_every_source_file_keeps_the_rules() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(module, path.read_text(encoding="utf-8"), is_package=is_package)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", fenchel.__all__)
def test_public_docstrings_are_complete(name: str) -> None:
    gaps = docstring_gaps(name, getattr(fenchel, name))
    assert not gaps, "\n".join(gaps)


@pytest.mark.parametrize("name", fenchel.sklearn.__all__)
def test_docstrings_of_estimators_are_complete(name: str) -> None:
    gaps = docstring_gaps(name, getattr(fenchel.sklearn, name))
    assert not gaps, "\n".join(gaps)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a statement loads in a fresh interpreter, after `import torch`."""
    code = (
        "import json, sys, torch; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_importing_fenchel_loads_torch_and_nothing_heavier() -> None:
    loaded = loaded_by("import fenchel")
    assert "fenchel" in loaded
    assert not loaded - sys.stdlib_module_names - {"fenchel", "torch"}


@pytest.mark.parametrize("module", ["fenchel.cli", "fenchel.training.configs"])
def test_the_command_answers_before_the_training_stack_loads(module: str) -> None:
    assert not loaded_by(f"import {module}") & HOME.keys()


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("fenchel.losses.a", "from fenchel.nn import Loss", "upward import of fenchel.nn.Loss"),
        ("fenchel.losses.a", "from fenchel import nn", "upward import of fenchel.nn"),
        ("fenchel.losses.a", "from ..nn import Loss", "upward import of fenchel.nn.Loss"),
        ("fenchel.losses.a", "def f():\n    import fenchel.nn", ":2: upward import"),
        ("fenchel.losses.a", "from fenchel import divergence", "upward import"),
        ("fenchel.nn.a", "import fenchel.decoding", "sideways import of fenchel.decoding"),
        ("fenchel.errors", "import fenchel.divergences", "upward import"),
        ("fenchel.losses.a", "from fenchel.kernels import cpu", "through fenchel.kernels.dispatch"),
        ("fenchel.losses.a", "import transformers", "transformers belongs to fenchel.training"),
        ("fenchel.losses.a", "def f():\n    import transformers", "belongs to fenchel.training"),
        ("fenchel.cli.a", "from datasets import Dataset", "datasets belongs to fenchel.training"),
        ("fenchel.cli.a", "class A:\n    import peft", "peft belongs to fenchel.training"),
        (
            "fenchel.cli.a",
            "def f():\n    import matplotlib",
            "matplotlib belongs to fenchel.report",
        ),
        ("fenchel.training.a", "import jinja2", "jinja2 belongs to fenchel.report"),
        ("fenchel.operators.a", "try:\n    import numpy\nfinally:\n    pass", "import of numpy"),
        ("fenchel.errors", "x = 1\n" * (MAX_LINES + 1), f"{MAX_LINES + 1} lines"),
        ("fenchel.novelty.a", "", "not in the table of layers"),
    ],
)
def test_the_checker_catches(module: str, source: str, message: str) -> None:
    (found,) = violations(module, source)
    assert message in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fenchel.losses.a", "from .reduce import reduce"),
        ("fenchel.losses.a", "import math\nimport torch\nfrom fenchel.errors import InputError"),
        ("fenchel.losses.a", "from fenchel.kernels.dispatch import run"),
        ("fenchel.losses.a", "def f():\n    import numpy"),
        ("fenchel.cli.a", "def f():\n    import transformers"),
        ("fenchel.cli.a", "if TYPE_CHECKING:\n    import transformers"),
        ("fenchel.training.a", "import transformers\nfrom fenchel import f_softargmax"),
        ("fenchel.report.a", "import matplotlib\nimport jinja2"),
        ("fenchel.errors", "x = 1\n" * MAX_LINES),
    ],
)
def test_the_checker_allows(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_relative_imports_of_a_package_resolve_from_the_package_itself() -> None:
    assert [i.target for i in imports("fenchel.nn", "from .a import b", is_package=True)] == [
        "fenchel.nn.a.b"
    ]


def test_the_docstring_check_names_every_missing_section() -> None:
    def bare() -> None: ...

    def terse() -> None:
        """One line."""

    def whole() -> None:
        """One line.

        Args:
            none: nothing.

        Returns:
            Nothing.

        Example:
            >>> whole()

        Reference:
            Nobody, 2025.
        """

    terse.__module__ = whole.__module__ = "fenchel.losses.a"
    assert docstring_gaps("bare", bare) == ["bare: no docstring"]
    assert docstring_gaps("terse", terse) == [
        "terse: lacks a doctest",
        "terse: lacks Args:",
        "terse: lacks Returns:",
        "terse: lacks Reference:",
    ]
    assert docstring_gaps("whole", whole) == []
