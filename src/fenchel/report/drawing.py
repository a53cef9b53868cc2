"""From a function that paints on matplotlib axes to SVG that sits in the page.

The page's style sheet, not the picture, decides colours and fonts: the colours of the palette
become CSS variables, and text stays text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fenchel.report.palette import INK, VARIABLES

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fenchel",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK["ink"][0],
    "axes.labelsize": 9,
    "axes.labelcolor": INK["muted"][0],
    "axes.edgecolor": INK["muted"][0],
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": INK["grid"][0],
    "grid.linewidth": 0.7,
    "xtick.color": INK["muted"][0],
    "ytick.color": INK["muted"][0],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "legend.handlelength": 1.8,
    "legend.labelspacing": 0.35,
}
_NO_METADATA: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its heading, its SVG and the caption below."""

    title: str
    svg: Markup
    caption: str


def draw(paint: Callable[[Axes], None], *, identifier: str, alt: str, size: tuple[float, float]) -> Markup:
    """Return inline SVG of what `paint` draws.

    Args:
        identifier: unique on the page; it keeps the ids of two pictures apart.
        alt: what the picture shows, for those who cannot see it.
        size: width and height in inches.
    """
    # The user's own matplotlib style must not reach the report.
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        # The browser draws the text with its own fonts; ours only measure it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return _inline(buffer.getvalue(), identifier, alt)


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Return `positions` in [0, 1] moved, in least squares, to be at least `gap` apart."""
    # Position minus rank times gap must not decrease: isotonic regression, by pooling neighbours.
    order = sorted(range(len(positions)), key=positions.__getitem__)
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([positions[i] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    ceiling = 1 - (len(positions) - 1) * gap
    levels = [max(0.0, min(fmean(pool), ceiling)) for pool in pools for _ in pool]
    moved = {i: level + rank * gap for rank, (i, level) in enumerate(zip(order, levels, strict=True))}
    return [moved[i] for i in range(len(positions))]


def shorten(name: str, length: int = 28) -> str:
    """Return `name` cut to what a figure has room for; the table has it whole."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _inline(svg: str, identifier: str, alt: str) -> Markup:
    opening = re.search(r'<svg [^>]*viewBox="(?P<box>[^"]*)"[^>]*>', svg)
    assert opening is not None  # FigureCanvasSVG always writes a viewBox
    body = svg[opening.end() :]
    body = re.sub(r'\bid="', f'id="{identifier}-', body)
    body = body.replace("url(#", f"url(#{identifier}-")
    body = body.replace('xlink:href="#', f'href="#{identifier}-')
    for variable, (colour, _) in VARIABLES.items():
        body = body.replace(f": {colour}", f": var(--{variable})")
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}">')
    return head.format(alt, opening["box"]) + Markup(body)
