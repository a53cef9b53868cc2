"""What every sparse router does: check logits, transport tokens to experts, fill slots."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.errors import InputError
from fenchel.losses.routing import check_choices
from fenchel.nn.routing import Routing, finite
from fenchel.operators import sparsemax
from fenchel.operators.transport import entropic_transport

FEW = 2  # so many of the largest of some dozens are found faster one after the other


def fill(standing: Tensor, weights: Tensor, capacity: int, mask: Tensor | None) -> Routing:
    """Each expert keeps the tokens of the highest standing; one of zero does not ask for it."""
    token, filled = largest(standing.mT, min(capacity, standing.shape[-2]))
    token = torch.where(filled, token, 0)
    weight = torch.where(filled, weights.mT.gather(-1, token), 0.0)
    present = torch.ones_like(weights[..., 0], dtype=torch.bool) if mask is None else mask.bool()
    return Routing(token, weight, filled, (standing > 0).sum(-2), present)


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the largest along the last axis of x >= 0, and whether they are positive.

    The first of equal ones, in float32, comes first on every device.
    """
    x = x.float()
    if 0 < count <= FEW:
        index = _first_of_largest(x, count)
        return index, x.gather(-1, index) > 0
    # Integers without ties, with the bits of x, which are ordered as the numbers are, above the index.
    last = x.shape[-1] - 1
    bits = x.view(torch.int32).long() << 32
    best = (bits + torch.arange(last, -1, -1, device=x.device)).topk(count, -1).values
    return last - (best & 0xFFFFFFFF), best >> 32 > 0


def _first_of_largest(x: Tensor, count: int) -> Tensor:
    """Indices of the largest along the last axis, as many as there are finite ones at most."""
    found = []
    for _ in range(count):
        found.append(x.argmax(-1, keepdim=True))
        x = x.scatter(-1, found[-1], -torch.inf)
    return torch.cat(found, -1)


def balancing_prices(scores: Tensor, mask: Tensor | None, regularization: float, iterations: int) -> Tensor:
    """What to add to the scores (..., T, E) of each expert, (..., E), to even out its load.

    With them softmax((scores + prices) / regularization) has the same sum for all experts.
    """
    check_transport(regularization, iterations)
    if scores.numel() == 0:
        return scores.new_zeros(*scores.shape[:-2], scores.shape[-1])
    tokens, experts = _masses(scores, mask)
    return _potentials(scores, tokens, experts, regularization, iterations)[1]


def sparse_plan(
    scores: Tensor, mask: Tensor | None, k: int, *, by_expert: bool, regularization: float, iterations: int
) -> Tensor:
    """A plan (..., T, E) with the masses of `_masses` and at most k nonzeros for each token, or expert.

    Those are the k largest of its scores plus prices, and its masses are met exactly: they are a sparsemax.
    The masses of the other side are met by the prices, nearly: from those of an entropic plan, subgradient
    ascent on the semi-dual takes so many steps. `sparse_transport` climbs to the top, in time that a layer
    has not, and until its whole batch is there; here a group does not depend on the others.
    """
    check_transport(regularization, iterations)
    if scores.numel() == 0 or k == 0:
        return scores * 0.0  # with a gradient: DistributedDataParallel waits for that of every parameter
    masses = _masses(scores, mask)
    with torch.no_grad():
        start = _potentials(scores.detach(), *masses, 0.3 * regularization, iterations)
    mass, other = masses[::-1] if by_expert else masses
    price = start[0] if by_expert else start[1]
    rows = scores.mT if by_expert else scores
    if mask is not None and by_expert:
        rows = rows.masked_fill(masses[0].unsqueeze(-2) == 0, -torch.inf)
    with torch.no_grad():
        for step in range(1, iterations + 1):
            met = _sparsemax_of_largest(rows.detach() + price.unsqueeze(-2), mass, k, regularization).sum(-2)
            excess = torch.where(other > 0, met / other.clamp_min(1e-12) - 1, 0.0)
            price = price - 0.5 * regularization / step * excess.clamp(-1, 1)
    plan = _sparsemax_of_largest(rows + price.unsqueeze(-2), mass, k, regularization)
    return without_padding(plan.mT if by_expert else plan, mask)


def _sparsemax_of_largest(scores: Tensor, mass: Tensor, k: int, regularization: float) -> Tensor:
    """argmax <p, scores> - γ/2 |p|² over p >= 0 with Σp = mass and at most k nonzeros, in each row."""
    index = _first_of_largest(scores.detach(), k) if k <= FEW else scores.topk(k, -1).indices
    top, mass = scores.gather(-1, index), mass.unsqueeze(-1)
    shares = sparsemax(top / (regularization * torch.where(mass > 0, mass, 1.0)))
    return torch.zeros_like(scores).scatter(-1, index, mass * shares)


def _masses(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """One for each token that counts, (..., T), and as much for each expert, (..., E)."""
    tokens = scores.new_ones(scores.shape[:-1])
    if mask is not None:
        present = mask.bool()
        # A group without tokens has a plan too, which is cut away in the end.
        tokens = (present | ~present.any(-1, keepdim=True)).to(scores.dtype)
    share = tokens.sum(-1, keepdim=True) / scores.shape[-1]
    return tokens, share.expand(*scores.shape[:-2], scores.shape[-1])


def _potentials(
    scores: Tensor, tokens: Tensor, experts: Tensor, regularization: float, iterations: int
) -> tuple[Tensor, Tensor]:
    # Without a tolerance, so that a group does not depend on the others.
    found = entropic_transport(
        -scores, tokens, experts, regularization=regularization, iterations=iterations, tolerance=0.0
    )
    return found.row_potential, found.column_potential


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (..., T, E), zero for padding."""
    return x if mask is None else x * mask.bool().unsqueeze(-1)


def check_transport(regularization: float, iterations: int) -> None:
    """Raise InputError where no plan can be made."""
    if not 0 < regularization < float("inf"):
        raise InputError(f"regularization must be positive and finite, received {regularization}")
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, received {iterations}")


def check_scores(logits: Tensor, mask: Tensor | None, capacity: int, k: int = 1) -> Tensor:
    """The logits in float32 or wider, zeros for padding."""
    if isinstance(capacity, float) or capacity < 0:
        raise InputError(f"capacity must be an integer >= 0, received {capacity}")
    scores = finite(logits, mask, 2)
    experts = scores.shape[-1]
    check_choices(k, experts)
    return scores
