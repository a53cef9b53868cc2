"""The page is whole, safe, self-contained and the same every time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fenchel.errors import InputError
from fenchel.report import render

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements and attributes of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outside(html: str) -> list[str]:
    """Everything in a page that would make a browser fetch something."""
    loading = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"}
    found = [
        f"{tag} {name}={value}"
        for tag, attributes in Page(html).tags
        for name, value in attributes.items()
        if name in loading and not re.match(r"#|data:", value or "")
    ]
    found += re.findall(r"url\((?!#)[^)]*\)", html)
    found += re.findall(r"@import[^;]*", html)
    return found


@pytest.fixture
def html(results: dict[str, Any], tmp_path: Path) -> str:
    return render(results, tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_parses_and_ids_are_unique(html: str) -> None:
    tags = Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    links = [a["href"] or "" for tag, a in tags if tag == "use" and "href" in a]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)
    clips = re.findall(r"url\(#([^)]*)\)", html)
    assert clips and set(clips) <= set(ids)


def test_page_loads_nothing(html: str) -> None:
    assert outside(html) == []
    assert "script" not in {tag for tag, _ in Page(html).tags}


@pytest.mark.parametrize(
    "sample",
    [
        '<img src="https://x.y/z.png">',
        '<link href="//x.y/z.css">',
        '<svg><use xlink:href="http://x.y/z#a"></use></svg>',
        "<style>@import 'x.css';</style>",
        "<p style='background: url(http://x.y)'></p>",
    ],
)
def test_the_check_for_outside_references_finds_them(sample: str) -> None:
    assert outside(sample)


def test_user_text_is_escaped_everywhere(results: dict[str, Any], tmp_path: Path) -> None:
    attack = "</text></svg><script>alert(1)</script>\"'$x_1$"
    results["title"] = results["summary"] = results["command"] = attack
    results["claims"][0]["text"] = results["setup"][attack] = attack
    results["comparison"]["columns"][0]["label"] = attack
    results["comparison"]["rows"][0]["name"] = attack
    results["panels"][0]["title"] = results["panels"][0]["ylabel"] = attack
    results["panels"][0]["series"][2]["name"] = attack
    html = render(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "script" not in {tag for tag, _ in Page(html).tags}
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in html
    assert "$x_1$</text>" in html  # as written, not set as mathematics


def test_every_picture_says_what_it_shows(html: str) -> None:
    pictures = [attributes for tag, attributes in Page(html).tags if tag == "svg"]
    assert len(pictures) == 2 + 1 + 2  # columns, panels, operators
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    assert any("support sizes: kl 30, alpha:1.5 " in (p["aria-label"] or "") for p in pictures)


def test_sections_come_in_order_with_their_content(html: str) -> None:
    parts = [
        "Two divergences</h1>",
        "Students of one teacher.",
        "✓ holds",
        "✗ does not hold",
        "Held-out text.",
        "In nats.",
        "Each in its own unit.",
        "Operators</h2>",
        ">Once<",
        "fenchel demo --out &#39;a b&#39; --seeds 3",
        "2025-01-02T03:04:05+00:00",
        "1 min 23 s",
        "2.11.0",
    ]
    places = [html.index(part) for part in parts]
    assert sorted(places[:10]) == places[:10]
    assert min(places[10:]) > places[8]


def test_table_has_mean_spread_best_and_infinity(html: str) -> None:
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    rows = re.findall(r"<tr.*?</tr>", body, flags=re.DOTALL)
    cells = [re.findall(r"<td>(.*?)</td>", row, flags=re.DOTALL) for row in rows]
    assert cells == [
        [
            '<strong>2.00</strong> <span class="spread">± 1.00</span>',
            '<strong>50.0%</strong> <span class="spread">± 0.0%</span>',
        ],
        ["∞", '<strong>50.0%</strong> <span class="spread">± 14.1%</span>'],
        ["7.00", "—"],
    ]
    assert "Mean over 3 seeds ± sample standard deviation." in html


def test_one_seed_shows_no_spread(results: dict[str, Any], tmp_path: Path) -> None:
    for row in results["comparison"]["rows"]:
        row["values"] = {key: values[:1] for key, values in row["values"].items()}
    html = render(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "±" not in html and 'class="spread"' not in html


def test_one_name_has_one_colour(html: str) -> None:
    swatches = dict(re.findall(r'background: var\((--[^)]*)\)"></span>([^<]*?) ?<', html))
    assert swatches["--series-0"] == "kl" and swatches["--series-1"] == "alpha:1.5"
    assert swatches["--baseline"] == "hard labels"
    curves = html[html.index('id="curves-0') : html.index("Operators</h2>")]
    assert {"var(--series-0)", "var(--series-1)"} <= set(re.findall(r"var\(--s[^)]*\)", curves))
    assert "#0072b2" not in curves


def test_same_results_give_the_same_bytes(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = render(results, tmp_path / "first.html").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert render(results, tmp_path / "second.html").read_bytes() == first


def test_the_users_matplotlib_style_does_not_reach_the_page(results: dict[str, Any], tmp_path: Path) -> None:
    import matplotlib

    first = render(results, tmp_path / "first.html").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.spines.top": True, "axes.grid": False}):
        assert render(results, tmp_path / "second.html").read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 30


def test_empty_lists_drop_their_sections(results: dict[str, Any], tmp_path: Path) -> None:
    for key in ("claims", "panels", "operators"):
        results[key] = []
    results["comparison"] |= {"columns": [], "rows": []}
    results["samples"] = {"prompts": [], "rows": []}
    html = render(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["How to reproduce"]


def test_awkward_numbers_and_names_still_draw(results: dict[str, Any], tmp_path: Path) -> None:
    results["panels"][0]["series"] = [
        {"name": "diverged", "x": [1, 2], "y": [float("inf"), None]},
        {"name": "touches zero", "x": [1, 2], "y": [1.0, 0.0]},
        {"name": "one point", "x": [1], "y": [1.0]},
        {"name": "not started", "x": [], "y": []},
        *({"name": f"series {i}", "x": [1, 2], "y": [1.0, 1.0]} for i in range(12)),
    ]
    for row in results["comparison"]["rows"]:
        row["values"] = {"kl": [float("inf")], "accuracy": [None]}
    results["comparison"]["rows"][0]["name"] = "名前 " * 40
    results["samples"]["rows"][0]["texts"] = ["half a pair: \ud83d"]
    html = render(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("∞") >= 6 and "half a pair: ?" in html


def test_the_old_report_survives_a_failed_write(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"report\.html: No space left on device"):
        render(results, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_parent_directories_are_made(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.html"
    assert render(results, path) == path and path.exists()


def test_headless_browser_finds_no_error_and_no_request(
    results: dict[str, Any], tmp_path: Path, visit: Callable[[Path], Any]
) -> None:
    seen = visit(render(results, tmp_path / "report.html"))
    assert seen.console == []
    assert seen.requests == []
    assert seen.screenshot.stat().st_size > 20_000  # a blank page has about 10 kB


def test_headless_browser_sees_errors_and_requests(tmp_path: Path, visit: Callable[[Path], Any]) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><img src=\"http://127.0.0.1:9/x.png\"><script>console.error('boom')</script>"
    )
    seen = visit(page)
    assert any("boom" in line for line in seen.console)
    assert "http://127.0.0.1:9/x.png" in seen.requests
