"""Soft sort and soft rank: projections onto permutahedra, hard where the regularisation is small."""

from __future__ import annotations

from torch import Tensor

from fenchel.errors import InputError, nearest
from fenchel.operators._inputs import check_finite, class_last
from fenchel.operators.projections import onto_permutahedron, project_in_order, ranks

KINDS = {"quadratic": "mean", "entropic": "entropic"}


def soft_sort(
    x: Tensor,
    *,
    regularization: float = 1.0,
    kind: str = "quadratic",
    descending: bool = False,
    dim: int = -1,
) -> Tensor:
    """Differentiable sort: the projection of ρ / ε with ρ = (n, ..., 1) onto the permutahedron of x.

    It *is* the sorted x as soon as neighbours in it differ by at most 1 / ε; as ε → ∞ every entry tends to
    their mean (quadratic) or logmeanexp (entropic). The quadratic one keeps Σ x. The entropic one is the
    logarithm of the KL projection of exp(ρ / ε) onto the permutahedron of exp(x) and keeps Σ exp(x). To
    ascend, both are the negative of what descends in -x.

    Args:
        x: (..., n, ...), any float dtype; float16 and bfloat16 are computed in float32.
        regularization: ε > 0, in units of 1 / x.
        kind: "quadratic" or "entropic".
        descending: whether the largest comes first.
        dim: the axis to sort along.

    Returns:
        The sorted values, the shape and dtype of x.

    Raises:
        InputError: an empty axis, values that are not finite, ε not positive, an unknown kind.

    Example:
        >>> import torch
        >>> x = torch.tensor([3.0, 1.0, 2.0])
        >>> soft_sort(x)
        tensor([1., 2., 3.])
        >>> soft_sort(x, regularization=2.0)
        tensor([1.5000, 2.0000, 2.5000])

    Reference:
        Blondel, Teboul, Berthet and Djolonga, 2020, arXiv 2002.08871.
    """
    pooled = _check(x, regularization, kind, dim)
    rows = class_last(x, dim)
    sign = 1 if descending else -1
    w = (sign * rows).sort(-1, descending=True).values
    y = sign * project_in_order(pooled, ranks(rows.shape[-1], rows) / regularization, w)
    return y.movedim(-1, dim).to(x.dtype)


def soft_rank(
    x: Tensor,
    *,
    regularization: float = 1.0,
    kind: str = "quadratic",
    descending: bool = False,
    dim: int = -1,
) -> Tensor:
    """Differentiable ranks: the projection of x / ε onto the permutahedron of ρ = (n, ..., 1).

    They *are* the ranks 1 to n as soon as the values differ by at least ε (quadratic) or ε ln 2 (entropic);
    as ε → ∞ all tend to (n + 1) / 2. Ties share the mean of their ranks while ε is small. The entropic ranks
    are the KL projection of exp(x / ε) onto the same permutahedron. Both sum to n (n + 1) / 2.

    Args:
        x: (..., n, ...), any float dtype; float16 and bfloat16 are computed in float32.
        regularization: ε > 0, in the units of x.
        kind: "quadratic" or "entropic".
        descending: whether rank 1 is that of the largest; if not, of the smallest.
        dim: the axis to rank along.

    Returns:
        The ranks, the shape and dtype of x.

    Raises:
        InputError: as `soft_sort`.

    Example:
        >>> import torch
        >>> x = torch.tensor([3.0, 1.0, 2.0])
        >>> soft_rank(x)
        tensor([3., 1., 2.])
        >>> soft_rank(x, regularization=2.0)
        tensor([2.5000, 1.5000, 2.0000])

    Reference:
        Blondel, Teboul, Berthet and Djolonga, 2020, arXiv 2002.08871.
    """
    pooled = _check(x, regularization, kind, dim)
    rows = class_last(x, dim)
    z = rows / (-regularization if descending else regularization)
    w = ranks(rows.shape[-1], rows)
    y = onto_permutahedron(pooled, z, w) if pooled == "mean" else onto_permutahedron(pooled, z, w.log()).exp()
    return y.movedim(-1, dim).to(x.dtype)


def _check(x: Tensor, regularization: float, kind: str, dim: int) -> str:
    check_finite(x, dim)
    if not 0 < regularization < float("inf"):
        raise InputError(f"regularization must be positive and finite, received {regularization}")
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}{nearest(kind, KINDS)}; known: {', '.join(KINDS)}")
    return KINDS[kind]
