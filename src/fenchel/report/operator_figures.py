"""The figures of the operators: what softargmax_f of each divergence makes of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from fenchel.operators import f_softargmax
from fenchel.report.drawing import Picture, draw
from fenchel.report.palette import INK, Mark

MUTED = INK["muted"][0]
CARD = INK["card"][0]
NUMBER_OF_SCORES = 30


def operator_pictures(divergences: Sequence[str], marks: Mapping[str, Mark]) -> list[Picture]:
    """Return two pictures of softargmax_f: probability against score, and sorted probabilities."""
    supports = {name: int((p > 0).sum()) for name, p in _sorted_probabilities(divergences).items()}
    listed = ", ".join(f"{name} {support}" for name, support in supports.items())
    return [
        Picture(
            "Probability against score",
            draw(
                partial(_paint_probability, divergences=divergences, marks=marks),
                identifier="operator-score",
                alt="Probability of the first of three classes against its score.",
                size=(4.7, 3.1),
            ),
            "Probability of the first class when the scores are (t, 0, -1).",
        ),
        Picture(
            "Sorted probabilities and their support",
            draw(
                partial(_paint_sorted, divergences=divergences, marks=marks),
                identifier="operator-support",
                alt=f"Sorted probabilities of {NUMBER_OF_SCORES} classes; support sizes: {listed}.",
                size=(4.7, 3.1),
            ),
            f"One fixed draw of {NUMBER_OF_SCORES} scores from N(0, 2²). The support is the number "
            "of strictly positive probabilities; a hollow dot on the line “0” is an exact zero.",
        ),
    ]


def _paint_probability(axes: Axes, divergences: Sequence[str], marks: Mapping[str, Mark]) -> None:
    t = torch.linspace(-5, 5, 201, dtype=torch.float64)
    logits = torch.stack([t, torch.zeros_like(t), -torch.ones_like(t)], dim=-1)
    for name in divergences:
        p = f_softargmax(logits, name)[:, 0]
        _plot_name(axes, t.tolist(), p.tolist(), name, marks[name])
    axes.margins(x=0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("score t of the first class")
    axes.set_title("probability of the first class", loc="left", fontsize=9, color=MUTED)
    axes.legend(loc="upper left")


def _sorted_probabilities(divergences: Sequence[str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(NUMBER_OF_SCORES, generator=generator, dtype=torch.float64)
    return {name: f_softargmax(logits, name).sort(descending=True).values for name in divergences}


def _paint_sorted(axes: Axes, divergences: Sequence[str], marks: Mapping[str, Mark]) -> None:
    probabilities = _sorted_probabilities(divergences)
    smallest = min(float(p[p > 0].min()) for p in probabilities.values())
    decade = math.floor(math.log10(smallest))
    zero = 10.0 ** (decade - 0.6)
    axes.set_yscale("log")
    axes.axhline(zero, color=MUTED, linewidth=0.7)
    for name, p in probabilities.items():
        support = int((p > 0).sum())
        label = f"{name}: {support}"
        ranks = list(range(1, NUMBER_OF_SCORES + 1))
        _plot_name(axes, ranks[:support], p[:support].tolist(), label, marks[name], marker="o")
        axes.plot(
            ranks[support:],
            [zero] * (NUMBER_OF_SCORES - support),
            marker="o",
            linestyle="",
            markersize=4.5,
            markerfacecolor=CARD,
            markeredgecolor=marks[name].colour,
            clip_on=False,
            zorder=3,
        )
    axes.set_ylim(zero, 1.3)
    exponents = range(decade, 1)
    decades = [10.0**exponent for exponent in exponents]
    axes.set_yticks([zero, *decades], ["0", *(_power_of_ten(exponent) for exponent in exponents)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([1, *range(5, NUMBER_OF_SCORES + 1, 5)])
    axes.set_xlabel("rank of the class")
    axes.set_title("probability, log scale", loc="left", fontsize=9, color=MUTED)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1, 1.02),
        title=f"support, of {NUMBER_OF_SCORES}",
        alignment="left",
    )


def _plot_name(
    axes: Axes, x: list[float] | list[int], y: list[float], label: str, mark: Mark, marker: str = ""
) -> None:
    axes.plot(
        x,
        y,
        color=mark.colour,
        linestyle=mark.dashes,
        label=label,
        marker=marker,
        markersize=3,
    )


def _power_of_ten(exponent: int) -> str:
    if exponent == 0:
        return "1"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
