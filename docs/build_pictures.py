"""Draw the pictures of the guides into docs/images, from what the library computes: `make pictures`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

import fenchel
from fenchel.report.drawing import STYLE
from fenchel.report.palette import INK, SERIES

IMAGES = Path(__file__).with_name("images")
COLOURS = [light for light, _ in SERIES]
MUTED = INK["muted"][0]
DASHED = (0, (4, 2))


@contextmanager
def panels(name: str, titles: list[str], height: float = 3.2, width: float = 4.3) -> Iterator[list[Axes]]:
    """Axes side by side, saved as images/NAME.png."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width * len(titles), height), layout="constrained", facecolor="white")
        axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
        for one, title in zip(axes, titles, strict=True):
            one.set_title(title, loc="left", fontsize=9, color=MUTED)
        yield axes
        for one in axes:
            if one.get_xscale() == "log":
                one.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        figure.savefig(IMAGES / f"{name}.png", dpi=130)
    print(f"wrote images/{name}.png")


def fitzpatrick() -> None:
    """Losses of scores (s, 0) against s."""
    s = torch.linspace(-5, 6, 441, dtype=torch.float64)
    scores = torch.stack([s, torch.zeros_like(s)], -1)
    pairs: list[tuple[str, str, Callable[..., Tensor]]] = [
        ("logistic", "kl", fenchel.fitzpatrick_logistic_loss),
        ("sparsemax", "alpha:2", fenchel.fitzpatrick_sparsemax_loss),
    ]
    with panels("fitzpatrick", ["target (1, 0)", "target (0.3, 0.7)"]) as axes:
        for one, share in zip(axes, (1.0, 0.3), strict=True):
            target = torch.tensor([share, 1 - share], dtype=torch.float64).expand_as(scores)
            for colour, (name, divergence, tighter) in zip(COLOURS, pairs, strict=False):
                wide = fenchel.fenchel_young_loss(scores, target, divergence, reduction="none")
                tight = tighter(scores, target, reduction="none")
                one.plot(s, wide, color=colour, label=name)
                one.plot(s, tight, color=colour, linestyle=DASHED, label=f"Fitzpatrick {name}")
            one.set(xlabel="s", ylim=(0, 3.2))
            one.margins(x=0)
        axes[0].set_ylabel("loss")
        axes[0].legend()


def operators() -> None:
    """Where probabilities of three classes go as the scores grow."""
    direction = torch.tensor([1.0, 0.85, -0.1], dtype=torch.float64)
    sizes = torch.cat([torch.zeros(1), torch.logspace(-2, 3, 600)]).double()
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
    names = ("reverse-kl", "hellinger", "kl", "alpha:1.5", "alpha:2", "alpha:3")
    with panels("operators", ["paths over the simplex", "the smallest probability"], height=3.6) as (
        left,
        right,
    ):
        left.fill(*corners[[0, 1, 2]].T.numpy(), facecolor="none", edgecolor=MUTED, linewidth=0.8)
        for colour, name in zip(COLOURS, names, strict=False):
            # The measure 1/3 makes every path begin in the middle with one speed.
            p = fenchel.f_softargmax(sizes.unsqueeze(-1) * direction, name, reference=1 / 3)
            left.plot(*(p[:, [2, 0, 1]] @ corners).T.numpy(), color=colour, label=name)
            right.plot(sizes, p[:, 2], color=colour, label=name)
        for corner, label, shift in zip(
            corners,
            ("class 3", "class 1", "class 2"),
            ((-0.02, -0.07), (0.02, -0.07), (0, 0.03)),
            strict=True,
        ):
            left.annotate(
                label, (corner + torch.tensor(shift)).tolist(), ha="center", color=MUTED, fontsize=8.5
            )
        left.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.1, 0.97))
        left.axis("off")
        right.set(xlim=(0, 8), xlabel="size of the scores", ylim=(-0.01, 0.34))
        right.legend()


def topk() -> None:
    """The mask of seven scores as the regularisation grows."""
    scores = torch.tensor([2.0, 1.4, 1.1, 0.8, 0.1, -0.5, -1.2], dtype=torch.float64)
    strengths = torch.logspace(-1.5, 1.5, 200).tolist()
    ways: list[tuple[str, Callable[[float], Tensor]]] = [
        ("topk_mask, p = 2", lambda x: fenchel.topk_mask(scores, 3, regularization=x, p=2.0)),
        ("topk_mask, p = 4/3", lambda x: fenchel.topk_mask(scores, 3, regularization=x, p=4 / 3)),
        ("entropic_topk_mask", lambda x: fenchel.entropic_topk_mask(scores, 3, temperature=x)),
    ]
    with panels("topk", [name for name, _ in ways], width=3.5) as axes:
        for one, (_, call) in zip(axes, ways, strict=True):
            masks = torch.stack([call(x) for x in strengths])
            for i, colour in enumerate(COLOURS):
                one.plot(strengths, masks[:, i], color=colour, label=f"{scores[i]:.1f}")
            one.plot(
                strengths, (masks > 0).sum(-1) / 7, color=INK["baseline"][0], linestyle=":", linewidth=1.2
            )
            one.set(xscale="log", xlabel="regularization", ylim=(-0.03, 1.05))
        axes[2].set_xlabel("temperature")
        axes[0].set_ylabel("mask (dotted: share of nonzeros)")
        axes[2].legend(title="score", fontsize=7.5, loc="upper right")


def projections() -> None:
    """Isotonic regression of noise, and soft ranks as the regularisation grows."""
    generator = torch.Generator().manual_seed(3)
    x = torch.linspace(0, 1, 60, dtype=torch.float64)
    y = x**2 + 0.25 * torch.randn(60, generator=generator, dtype=torch.float64)
    values = torch.tensor([0.3, -1.2, 2.1, 0.9, 1.0], dtype=torch.float64)
    strengths = torch.logspace(-2, 1.5, 200).tolist()
    titles = ["isotonic_regression", "soft_rank, quadratic", "soft_rank, entropic"]
    with panels("projections", titles, width=3.5) as axes:
        axes[0].plot(x, y, ".", color=MUTED, markersize=4)
        axes[0].plot(x, fenchel.isotonic_regression(y), color=COLOURS[0])
        for one, kind in zip(axes[1:], ("quadratic", "entropic"), strict=True):
            ranks = torch.stack([fenchel.soft_rank(values, regularization=r, kind=kind) for r in strengths])
            for i, colour in zip(range(5), COLOURS, strict=False):
                one.plot(strengths, ranks[:, i], color=colour, label=f"{values[i]:.1f}")
            one.set(xscale="log", xlabel="regularization")
        axes[1].set_ylabel("rank")
        axes[2].legend(title="value", fontsize=7.5, loc="upper right")


def transport() -> None:
    """Plans between the same masses under three regularisers."""
    n = 40
    x = torch.linspace(0, 1, n, dtype=torch.float64)

    def bump(centre: float, width: float) -> Tensor:
        return (-((x - centre) ** 2) / (2 * width**2)).exp()

    a = bump(0.3, 0.1) + 0.7 * bump(0.75, 0.06) + 0.02
    b = bump(0.5, 0.13) + 0.4 * bump(0.2, 0.05) + 0.02
    a, b = a / a.sum(), b / b.sum()
    cost = (x.unsqueeze(1) - x) ** 2
    plans = {
        "entropic": fenchel.entropic_transport(cost, a, b, regularization=0.01).plan,
        "quadratic": fenchel.quadratic_transport(cost, a, b, regularization=5.0).plan,
        "sparse, k = 2": fenchel.sparse_transport(cost, a, b, k=2, regularization=5.0).plan,
    }
    # Less than a millionth of a column's mass is nothing that one could see.
    titles = []
    for name, plan in plans.items():
        nonzero = plan > 1e-6 * b
        titles.append(f"{name}: {int(nonzero.sum())} nonzeros,\nat most {int(nonzero.sum(0).max())} a column")
    with panels("transport", titles, width=3.2, height=3.5) as axes:
        for one, plan in zip(axes, plans.values(), strict=True):
            shown = torch.where(plan > 1e-6 * b, plan, float("nan"))
            one.imshow(shown.numpy() ** 0.5, cmap="viridis_r", aspect="auto")
            one.set(xlabel="target", xticks=[], yticks=[])
            one.grid(visible=False)
        axes[0].set_ylabel("source")


def routers() -> None:
    """Loads of the experts under every router, from logits that favour some experts."""
    from fenchel import nn

    tokens, experts, k = 1024, 16, 2
    generator = torch.Generator().manual_seed(0)
    bias = torch.linspace(1.2, -1.2, experts)
    logits = torch.randn(tokens, experts, generator=generator) + bias
    capacity = math.ceil(1.25 * k * tokens / experts)
    equal = k * tokens // experts
    found: dict[str, nn.Routing | nn.SoftRouting] = {
        "softmax token choice": nn.softmax_token_choice(logits, k=k, capacity=capacity),
        "Sinkhorn token choice": nn.sinkhorn_token_choice(logits, k=k, capacity=capacity),
        "sparse token choice": nn.sparse_token_choice(logits, k=k, capacity=capacity),
        "softmax expert choice": nn.softmax_expert_choice(logits, capacity=equal),
        "sparse expert choice": nn.sparse_expert_choice(logits, capacity=equal),
        "soft": nn.soft_routing(logits.unsqueeze(-1).repeat(1, 1, equal)),
    }
    titles = [f"{name}\ndropped {100 * float(each.dropped):.1f} %" for name, each in found.items()]
    with panels("routers", titles, width=2.15, height=2.9) as axes:
        for one, (name, each) in zip(axes, found.items(), strict=True):
            at = list(range(experts))
            if name.endswith("token choice"):
                one.bar(at, each.demand.tolist(), color=INK["grid"][0], width=0.8)
            one.bar(at, each.load.tolist(), color=COLOURS[0], width=0.8)
            one.set(xlabel="expert", ylim=(0, 1.05 * float(found["softmax token choice"].demand.max())))
            one.set_xticks([])
        axes[0].set_ylabel("tokens")


def energies() -> None:
    """The learned log-partition against enumeration, on inputs that were not trained on."""
    from fenchel.nn import PairwiseEnergy, PartitionNetwork, Subsets
    from fenchel.nn.energies import mlp

    space, inputs = Subsets(8), 5
    everything = space.enumerate().unsqueeze(0)
    torch.manual_seed(0)
    truth = PairwiseEnergy(mlp(inputs, [], 8), space)
    with torch.no_grad():
        truth.constant.normal_(0, 0.4)
        truth.network[0].weight.mul_(3)  # type: ignore[index]
    x = torch.randn(1400, inputs)
    with torch.no_grad():
        chosen = torch.distributions.Categorical(logits=truth(x, everything)).sample()
    y = everything[0, chosen]
    seen, unseen = slice(0, 1000), slice(1000, 1400)
    counts = (1, 10, 100)
    found = {}
    for samples in counts:
        torch.manual_seed(1)
        energy, partition = PairwiseEnergy(mlp(inputs, [32], 8), space), PartitionNetwork(inputs, [32])
        optimizer = torch.optim.AdamW([*energy.parameters(), *partition.parameters()], lr=3e-3)
        for step in range(1500):
            rows = torch.randint(0, 1000, (128,))
            sampled = energy(x[seen][rows], space.sample((128, samples)))
            value = fenchel.joint_partition_loss(
                energy(x[seen][rows], y[seen][rows]), sampled, partition(x[seen][rows])
            )
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_([*energy.parameters(), *partition.parameters()], 5.0)
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 1500)
            optimizer.step()
        with torch.no_grad():
            exact = torch.logsumexp(energy(x[unseen], everything), -1) - space.log_size
            found[samples] = exact, partition(x[unseen])
    titles = [
        f"{n} sample{'s' * (n > 1)}: mean error {float((a - b).abs().mean()):.2f}"
        for n, (a, b) in found.items()
    ]
    with panels("energies", titles, width=3.3) as axes:
        for one, (exact, learned) in zip(axes, found.values(), strict=True):
            one.plot(exact, learned, ".", color=COLOURS[0], markersize=3)
            ends = [float(exact.min()), float(exact.max())]
            one.plot(ends, ends, color=MUTED, linewidth=0.8)
            one.set(xlabel="log E exp g, by enumeration")
        axes[0].set_ylabel("learned τ(x)")


PICTURES = (fitzpatrick, operators, topk, projections, transport, routers, energies)


def main(names: list[str]) -> None:
    """Draw the pictures of those names, or all."""
    known = [picture.__name__ for picture in PICTURES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"there is no picture {unknown[0]!r}; there are {', '.join(known)}")
    IMAGES.mkdir(exist_ok=True)
    for picture in PICTURES:
        if not names or picture.__name__ in names:
            picture()


if __name__ == "__main__":
    main(sys.argv[1:])
