"""D_f between probability tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.errors import InputError


def f_divergence(p: Tensor, q: Tensor, divergence: str | FDivergence = "kl", *, dim: int = -1) -> Tensor:
    """The f-divergence D_f(p, q) = Σ_j q_j f(p_j / q_j) along `dim`.

    Zeros follow the literature: 0 · f(0/0) = 0; a class with p = 0 adds q f(0); a class with q = 0 adds
    p times the slope of f at infinity. Differentiable in p and in q where both are positive.

    Args:
        p: non-negative weights, shape (..., V, ...), usually probabilities along `dim`.
        q: the same, broadcastable to p.
        divergence: a name or an `FDivergence`.
        dim: the axis of the classes.

    Returns:
        D_f(p, q) in nats, without the axis `dim`; half types are computed in float32. It is >= 0 when p
        and q have the same sum, and may be inf.

    Raises:
        InputError: the shapes do not broadcast, or the divergence is unknown.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.25, 0.25])
        >>> round(float(f_divergence(p, q, "chi2")), 4)
        0.5
        >>> float(f_divergence(p, q, "reverse-kl"))
        inf

    Reference:
        Csiszár, 1967; Liese and Vajda, 2006, IEEE Transactions on Information Theory 52(10).
    """
    record = find(divergence)
    try:
        p, q = torch.broadcast_tensors(p, q)
    except RuntimeError:
        raise InputError(
            f"p and q must broadcast, received shapes {tuple(p.shape)} and {tuple(q.shape)}"
        ) from None
    dtype = torch.promote_types(p.dtype, q.dtype)
    work = dtype if dtype == torch.float64 else torch.float32
    return record(p.to(work), q.to(work), dim=dim).to(dtype)
