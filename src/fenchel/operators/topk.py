"""Sparse differentiable top-k, in value and in magnitude: p-norm regularised, with few nonzeros."""

from __future__ import annotations

import operator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import BadScores, InputError
from fenchel.operators._inputs import check_axis, class_last
from fenchel.operators._relaxed import relaxed
from fenchel.operators.isotonic import pool, put_back
from fenchel.thresholds import around_cut, ramp

SOLVERS = ("threshold", "pav", "dykstra")
LEAST_NORM = 1.2  # of magnitudes


class Rows(NamedTuple):
    """What both operators work on, the axis of choice last; the scores around the cut have no gradient."""

    x: Tensor
    k: int | Tensor  # a tensor is (..., 1)
    kth: Tensor  # the k-th largest score, (..., 1); the largest for k = 0
    following: Tensor  # the one after it, -inf for k = n; the largest for k = 0


def topk_mask(
    scores: Tensor,
    k: int | Tensor,
    *,
    regularization: float = 0.1,
    p: float = 4 / 3,
    solver: str = "threshold",
    iterations: int = 500,
    dim: int = -1,
    impl: str = "auto",
) -> Tensor:
    """The soft mask argmax_y <x, y> - l/p Σ y_i^p over 0 <= y <= 1, Σ y = k: most of it exactly 0 or 1.

    y_i = min(1, (max(x_i - τ, 0) / l)^(1/(p-1))) with τ the root of Σ y = k. As l → 0 it becomes the hard
    mask of the k largest scores, and it *is* that mask, with zero gradient, as soon as l is below the gap
    between the k-th score and the next. Whatever is further than l from the k-th score is exactly 0 or 1.

    Continuous, and differentiable wherever no score lies on the border of 0 or 1; there to second order,
    under `torch.func` too, and in one graph of `torch.compile`. A number added to all scores changes
    nothing; (c x, c l) gives what (x, l) gives.

    Args:
        scores: x, shape (..., n, ...), any float dtype; float16 and bfloat16 are computed in float32. A
            score of -inf is never chosen.
        k: how many to choose, 0 <= k <= n: a number, or an integer tensor of the shape of scores without
            `dim`.
        regularization: l > 0, in the units of the scores.
        p: the order of the norm, in (1, 2]: with p = 2 this is the projection of x / l onto the capped
            simplex, with p = 4/3 the power is a cube and the mask is differentiable at 0 too.
        solver: "threshold" finds τ itself, for any p; "pav" and "dykstra" go by isotonic regression, as
            the paper does, for p = 2 and 4/3.
        iterations: of Dykstra's algorithm.
        dim: the axis to choose along.
        impl: which implementation of "threshold" runs: "auto", "eager" or "cpu"; see `fenchel.which`.

    Returns:
        y in [0, 1], the shape and dtype of scores, with sum k along `dim`.

    Raises:
        InputError: k, l, p or the solver out of range; a row with fewer than k scores above -inf; NaN or
            +inf among the scores. Values of tensors are looked at on CPU only.

    Example:
        >>> import torch
        >>> scores = torch.tensor([3.0, 1.0, 0.5, -2.0])
        >>> topk_mask(scores, 2, regularization=0.4)
        tensor([1., 1., 0., 0.])
        >>> topk_mask(scores, 2, regularization=1.0, p=2.0)
        tensor([1.0000, 0.7500, 0.2500, 0.0000])

    Reference:
        Sander, Puigcerver, Djolonga, Peyré and Blondel, 2023, arXiv 2302.01425.
    """
    exponent = check_norm(regularization, p, solver)
    if solver == "threshold":
        x, k = to_rows(scores, k, dim)
        try:
            y = relaxed("topk_mask", x, k, regularization, exponent, impl)
        except BadScores:
            around(scores, k, dim)  # says it of the scores as they were given
            raise
    else:
        rows = around(scores, k, dim)
        kth = torch.where(torch.isfinite(rows.kth), rows.kth, 0.0)
        # In units of l from the k-th score: beyond 1 all is settled, and far beyond it no digit is needed.
        z, order = ((rows.x - kth) / regularization).clamp(-2, 2).sort(-1, descending=True)
        chosen = _first(z, rows.k)
        solve = partial(pool, solver=solver, iterations=iterations, impl=impl)
        v = solve("mean", z - chosen) if exponent == 1 else solve("cubic", z, chosen)
        y = put_back(ramp(z - v, exponent)[0], order)
    return y.movedim(-1, dim).to(scores.dtype)


def topk_magnitude(
    x: Tensor,
    k: int | Tensor,
    *,
    regularization: float = 0.1,
    p: float = 4 / 3,
    solver: str = "threshold",
    iterations: int = 500,
    dim: int = -1,
    impl: str = "auto",
) -> Tensor:
    """x where |x| is among the k largest, 0 elsewhere, with what lies around the cut shrunk continuously.

    With s = |x|, an entry that is clearly chosen comes out as exactly x_i, one with s_i <= τ as exactly 0,
    and those between as sign(x_i) (s_i - τ + τ m_i). Here m_i = min(1, ((s_i - τ) / l)^(1/(p-1)) / τ),
    and τ is the root of Σ m = k. As l → 0 exactly k entries are left, as they are; as l → ∞ all are left.

    With f(s) half the sum of the k largest s², u = τ m where m < 1 is argmax_u <u, s> - f*(u) - l/p Σ u^p,
    and u + l u^(p-1) undoes the shrinkage by l. Differentiable as `topk_mask` is, to second order too.
    (c x, c^(2-p) l) gives c times what (x, l) gives, so that for p = 2 l is relative to the magnitudes.

    Args:
        x: shape (..., n, ...), any float dtype; float16 and bfloat16 are computed in float32.
        k: how many to keep, 0 <= k <= n: a number, or an integer tensor of the shape of x without `dim`.
            Rows with k nonzeros or fewer come out as they are.
        regularization: l > 0, in the units of x to the power 2 - p.
        p: the order of the norm, in [1.2, 2].
        solver: as in `topk_mask`.
        iterations: of Dykstra's algorithm.
        dim: the axis to choose along.
        impl: as in `topk_mask`.

    Returns:
        The sparse x, in its shape and dtype.

    Raises:
        InputError: k, l, p or the solver out of range; NaN or inf in x (looked at on CPU only).

    Example:
        >>> import torch
        >>> x = torch.tensor([-3.0, 1.0, 0.9, 0.5])
        >>> topk_magnitude(x, 2, regularization=0.1, p=2.0)
        tensor([-3.,  1.,  0.,  0.])
        >>> topk_magnitude(x, 2, regularization=0.25, p=2.0)  # τ = 1.9 / 2.25
        tensor([-3.0000,  0.7778,  0.2778,  0.0000])

    Reference:
        Sander, Puigcerver, Djolonga, Peyré and Blondel, 2023, arXiv 2302.01425.
    """
    exponent = check_magnitude_norm(regularization, p, solver)
    check_axis(x, dim, name="x")
    if solver == "threshold":
        s, k = to_rows(x.abs(), k, dim, name="magnitudes")
        try:
            above = relaxed("topk_magnitude", s, k, regularization, exponent, impl)
        except BadScores:
            around(x.abs(), k, dim, name="magnitudes")  # says it of all magnitudes
            raise
        kept = above == torch.inf
        above = torch.where(kept, 0.0, above)
    else:
        rows = around(x.abs(), k, dim, name="magnitudes")
        kept, above = _pooled_magnitude(rows, regularization, exponent, solver, iterations, impl)
    entries = class_last(x, dim)
    shrunk = above + (above / regularization) ** exponent
    found = torch.where(kept, entries, entries.sign() * shrunk)
    return found.movedim(-1, dim).to(x.dtype)


def check_magnitude_norm(regularization: float, p: float, solver: str = "threshold") -> float:
    """The same for magnitudes, where a large exponent hides τ behind rounding."""
    exponent = check_norm(regularization, p, solver)
    if p < LEAST_NORM:
        raise InputError(f"p must be in [{LEAST_NORM}, 2] for magnitudes, received {p}")
    return exponent


def check_norm(regularization: float, p: float, solver: str) -> float:
    """1/(p-1), the exponent of the ramp from 0 to 1; raises InputError for options out of range."""
    if not 0 < regularization < float("inf"):
        raise InputError(f"regularization must be positive and finite, received {regularization}")
    if not 1 < p <= 2:
        raise InputError(f"p must be in (1, 2], received {p}")
    if solver not in SOLVERS:
        raise InputError(f"solver must be one of {', '.join(SOLVERS)}, received {solver!r}")
    exponent = 1 / (p - 1)
    if abs(exponent - round(exponent)) < 1e-9 * exponent:  # 4/3 has no float of its own
        exponent = float(round(exponent))
    if solver != "threshold" and exponent not in (1, 3):
        raise InputError(
            f"solver={solver!r} needs p = 2 or p = 4/3, received p={p}; solver='threshold' takes any p"
        )
    return exponent


def to_rows(
    scores: Tensor, k: int | Tensor, dim: int, *, name: str = "scores"
) -> tuple[Tensor, int | Tensor]:
    """The scores with the axis of choice last, and k as a number or (..., 1); raises InputError."""
    check_axis(scores, dim, name=name)
    x, n = class_last(scores, dim), scores.shape[dim]
    if isinstance(k, Tensor):
        rows = tuple(x.shape[:-1])
        if k.is_floating_point() or k.dtype == torch.bool or tuple(k.shape) != rows:
            raise InputError(
                f"k must be an integer, or integers of shape {rows}, one for each row of {name} "
                f"{tuple(scores.shape)}; received {k.dtype} of shape {tuple(k.shape)}"
            )
        k = k.long().unsqueeze(-1)
        if not holds((k >= 0) & (k <= n)):
            bad = int(k[(k < 0) | (k > n)][0])
            raise InputError(f"k must be in [0, {n}] for {n} {name} along dim={dim}, received {bad}")
        return x, k
    try:
        k = operator.index(k)
    except TypeError:
        raise InputError(f"k must be an integer, received {k!r}") from None
    if not 0 <= k <= n:
        raise InputError(f"k must be in [0, {n}] for {n} {name} along dim={dim}, received {k}")
    return x, k


def around(scores: Tensor, k: int | Tensor, dim: int, *, name: str = "scores") -> Rows:
    """The same, and the scores around the cut; raises InputError."""
    x, k = to_rows(scores, k, dim, name=name)
    if not holds(scores < torch.inf):
        bad = float(scores.detach()[~(scores < torch.inf)][0])
        raise InputError(f"{name} of shape {tuple(scores.shape)} must be below inf, received {bad}")
    kth, following = around_cut(x, k)
    present = kth > -torch.inf
    if not holds(present | torch.as_tensor(k == 0, device=x.device)):
        row = tuple(torch.nonzero(~present.squeeze(-1))[0].tolist())
        raise InputError(
            f"{name} of shape {tuple(scores.shape)}: row {row} along dim={dim} has fewer finite ones than k"
        )
    return Rows(x, k, kth, following)


def _pooled_magnitude(
    rows: Rows, regularization: float, exponent: float, solver: str, iterations: int, impl: str
) -> tuple[Tensor, Tensor]:
    """Which magnitudes are kept as they are, and how far the others lie above τ.

    From v = argmin_{v1 >= ... >= vn} Σ |s - v|^q / (q l^(q-1)) + Σ_{i <= k} v_i² / 2.
    """
    # With a weak l the digits of s - v count: all is then relative to the k-th magnitude.
    weak = regularization < rows.kth ** (1 - 1 / exponent)
    origin = torch.where(weak, rows.kth, 0.0)
    s, order = (rows.x - origin).sort(-1, descending=True)
    chosen = _first(s, rows.k)
    pull = regularization**exponent * chosen
    solve = partial(pool, solver=solver, iterations=iterations, impl=impl)
    if exponent == 1:
        v = solve("mean", (s - pull * origin) / (1 + pull), 1 + pull)
    else:
        v = solve("cubic", s, pull * origin, pull)
    # What shares no block with an entry after the k-th has m = 1.
    kept = (chosen > 0) & (v > torch.where(chosen > 0, -torch.inf, v).amax(-1, keepdim=True))
    above = torch.where(kept, 0.0, (s - v).clamp(min=0))
    return put_back(kept, order), put_back(above, order)


def _first(ordered: Tensor, k: int | Tensor) -> Tensor:
    """1 in the first k places of every row, 0 in the others."""
    place = torch.arange(ordered.shape[-1], device=ordered.device)
    return (place < k).to(ordered.dtype).expand(ordered.shape)
