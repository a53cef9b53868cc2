"""What the documentation says, runs: doctests, the code blocks of the pages, the methods page."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fenchel

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
DOCTESTS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def modules_with_examples() -> Iterator[str]:
    for path in sorted((SOURCE / "fenchel").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
            yield name.removesuffix(".__init__")


def run_doctests(module: ModuleType) -> tuple[int, str]:
    """Run every docstring example of a module; returns how many ran and the report of failures."""
    runner = doctest.DocTestRunner(optionflags=DOCTESTS)
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    return runner.tries, "".join(report)


def run_blocks(page: Path) -> int:
    """Run the ```python blocks of a page in one namespace; returns how many ran."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": page.stem}
    ran = 0
    for block in FENCE.finditer(text):
        if block[1].startswith("# not run"):
            continue
        # Blank lines in front put the line numbers of the page into a traceback.
        above = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(above + block[1], str(page), "exec"), namespace)
        ran += 1
    return ran


@pytest.fixture
def build_methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("build_methods")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_docstring_examples_give_what_they_show(name: str) -> None:
    tries, report = run_doctests(importlib.import_module(name))
    assert not report, report
    assert tries > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_the_pages_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


def test_the_readme_has_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_blocks(ROOT / "README.md") > 0


def test_the_methods_page_is_fresh(build_methods: ModuleType) -> None:
    assert build_methods.main(["--check"]) == 0


def test_a_stale_or_missing_methods_page_is_refused(
    build_methods: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "methods.md"
    monkeypatch.setattr(build_methods, "PAGE", page)
    assert build_methods.main(["--check"]) == 1
    assert build_methods.main([]) == 0
    assert build_methods.main(["--check"]) == 0
    page.write_text(page.read_text(encoding="utf-8") + "edited by hand\n", encoding="utf-8")
    assert build_methods.main(["--check"]) == 1
    assert "run `make docs`" in capsys.readouterr().err


def test_the_methods_page_holds_every_public_callable(build_methods: ModuleType) -> None:
    documented = {entry.name for entry in build_methods.entries()}
    public = {f"fenchel.{name}" for name in fenchel.__all__ if callable(getattr(fenchel, name))}
    assert public <= documented


def test_a_docstring_becomes_markdown(build_methods: ModuleType) -> None:
    sections = build_methods.parse(
        """Line one of the summary,
        and line two.

            p = f*'(x)

        Args:
            logits: scores, a < b
                and more.
            dim: the axis.

        Returns: x_j * y.

        Reference:
            Someone, 2025, arXiv 2501.18537.
        """
    )
    assert build_methods.items(sections["Args"]) == (
        "- `logits`: scores, a &lt; b and more.\n- `dim`: the axis."
    )
    assert list(build_methods.blocks(sections[""])) == [
        "Line one of the summary,\nand line two.",
        "```text\np = f*'(x)\n```",
    ]
    assert list(build_methods.blocks(sections["Returns"])) == [r"x\_j \* y."]
    assert build_methods.cell(sections["Reference"]) == (
        "Someone, 2025, [arXiv 2501.18537](https://arxiv.org/abs/2501.18537)."
    )


def test_a_wrong_docstring_example_is_reported() -> None:
    module = ModuleType("wrong", ">>> 1 + 1\n3\n")
    tries, report = run_doctests(module)
    assert tries == 1
    assert "Got:\n    2" in report


def test_a_failing_block_is_reported_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\n# not run\n1 / 0\n```\n\n```python\nx = 1\n```\n")
    assert run_blocks(page) == 1
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as failure:
        run_blocks(page)
    assert failure.traceback[-1].lineno == 5
