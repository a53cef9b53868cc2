"""What follows from a solution: its derivatives, written in p and q, and constants of the losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fenchel.divergences.record import FDivergence


def sensitivities(p: Tensor, q: Tensor | None, record: FDivergence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u = p/q, w = q f*'' (0 where clipped), ρ = w / Σw and 1 / Σw, differentiable in p and q."""
    u = p if q is None else p / q
    active = p > 0
    w = torch.where(active, p * record.elasticity(torch.where(active, u, 1.0)), 0.0)
    inverse = 1 / w.sum(-1, keepdim=True)
    return u, w, w * inverse, inverse


def conjugate(u: Tensor, record: FDivergence) -> Tensor:
    """f*(v) + f(0) at v = f'(u), 0 for a class at zero."""
    active = u > 0
    return torch.where(active, record.conjugate_of_ratio(torch.where(active, u, 1.0)), 0.0)


def with_constant(losses: Tensor, target: Tensor, q: Tensor | None, record: FDivergence) -> Tensor:
    """losses + D_f(e_y, q) + f(0) Σq of the rows with a target y >= 0; others stay as they are."""
    constant = one_hot_constant(record, q, target.clamp_min(0).unsqueeze(-1))
    return losses + torch.where(target >= 0, constant, 0.0)


def one_hot_constant(record: FDivergence, q: Tensor | None, index: Tensor) -> Tensor | float:
    """D_f(e_y, q) + f(0) Σq, or 0 where it is infinite."""
    if not math.isfinite(record.at_zero):
        return 0.0
    if q is None:
        return float(record.f_centred(torch.ones((), dtype=torch.float64)))
    q_y = q.gather(-1, index).squeeze(-1)
    return q_y * record.f_centred(1 / q_y)
