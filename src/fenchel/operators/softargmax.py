"""f-softargmax, its value and its threshold: the public faces of the engine."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.errors import BadScores
from fenchel.operators._inputs import check_axis, check_logits, class_last, prepare_reference, scale_by
from fenchel.operators.engine import solve


class Solved(NamedTuple):
    """What the faces below choose from; value and threshold are of logits / T, less the top."""

    scores: Tensor
    q: Tensor | None
    record: FDivergence
    scale: Tensor | float
    p: Tensor
    value: Tensor
    threshold: Tensor
    top: Tensor


def f_softargmax(
    logits: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    reference: float | Tensor = 1.0,
    dim: int = -1,
    temperature: float | Tensor = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Probabilities argmax_{p in simplex} <p, θ> - T D_f(p, q), the f-softargmax of θ / T.

    p_j = q_j f*'(max(θ_j / T - τ, f'(0))) with τ the root of Σ p = 1. It is softmax for "kl", sparsemax
    for "alpha:2" and 1.5-entmax for "alpha:1.5" with the unit reference measure. For α-divergences
    q → c q is the same as θ → c^(α-1) θ: the size of q acts as a temperature.

    Differentiable to second order in logits, reference and temperature by implicit differentiation
    (∂p/∂θ = diag(w) - w wᵀ / Σw with w_j = q_j f*''), under `torch.func` and `torch.compile` too.

    Args:
        logits: scores θ, shape (..., V, ...), any float dtype; float16 and bfloat16 are computed in
            float32. -inf removes a class: it gets p = 0 and does not count.
        divergence: a name such as "kl", "js", "alpha:1.5", or an `FDivergence`.
        reference: the measure q > 0: a number, shape (V,), or broadcastable to logits. It need not sum
            to one; the default is the unit measure.
        dim: the axis of the classes.
        temperature: T > 0: a number, or a tensor broadcastable to logits with size 1 along `dim`.
        impl: which implementation runs: "auto" (the fastest that can), "eager", "cpu" or "triton"; see
            `fenchel.which`.

    Returns:
        p, the shape and dtype of logits, summing to one along `dim`.

    Raises:
        InputError: no classes; NaN or +inf among the logits, or a row of all -inf; q or T not positive;
            shapes that do not broadcast; an `impl` that cannot run here, with the reason. Values are
            checked on CPU outside `torch.compile` only, since elsewhere a check would stall the device:
            there NaN in gives NaN out.

    Example:
        >>> import torch
        >>> f_softargmax(torch.tensor([1.0, 0.5, -2.0]), "alpha:2")
        tensor([0.7500, 0.2500, 0.0000])
        >>> f_softargmax(torch.tensor([0.0, 0.0]), "js", reference=torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500])

    Reference:
        Roulet, Liu, Vieillard, Sander and Blondel, 2025, arXiv 2501.18537 (f-softargmax);
        Jacobian: Blondel, Martins and Niculae, 2020, arXiv 1901.02324.
    """
    p = _solve(logits, divergence, reference, dim, temperature, impl, with_value=False).p
    return p.movedim(-1, dim).to(logits.dtype)


def f_softmax(
    logits: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    reference: float | Tensor = 1.0,
    dim: int = -1,
    temperature: float | Tensor = 1.0,
    impl: str = "auto",
) -> Tensor:
    """The value max_{p in simplex} <p, θ> - T D_f(p, q): logsumexp for "kl" and T = 1.

    Its gradient in θ is `f_softargmax`. For other divergences it differs from the classical value (that
    of a Tsallis entropy, say) by a constant, which cancels in the losses. Classes at -inf do not count.

    Args:
        logits: scores θ, shape (..., V, ...).
        divergence: a name or an `FDivergence`.
        reference: the measure q > 0, as in `f_softargmax`.
        dim: the axis of the classes.
        temperature: T > 0, as in `f_softargmax`.
        impl: as in `f_softargmax`.

    Returns:
        The value in the units of the logits, their shape without `dim`, their dtype.

    Raises:
        InputError: as `f_softargmax`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([1.0, 0.5, -2.0])
        >>> torch.testing.assert_close(f_softmax(logits, "kl"), torch.logsumexp(logits, -1))
        >>> round(float(f_softmax(logits, "chi2")), 4)
        -0.7188

    Reference:
        Roulet, Liu, Vieillard, Sander and Blondel, 2025, arXiv 2501.18537 (f-softmax).
    """
    found = _solve(logits, divergence, reference, dim, temperature, impl)
    value = found.value
    if found.record.gauge:
        present = torch.isfinite(found.scores)
        mass = present.to(value.dtype) if found.q is None else torch.where(present, found.q, 0.0)
        value = value - found.record.gauge * mass.sum(-1)
    return (found.scale * (value + found.top)).to(logits.dtype)


def f_threshold(
    logits: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    reference: float | Tensor = 1.0,
    dim: int = -1,
    temperature: float | Tensor = 1.0,
    impl: str = "auto",
) -> Tensor:
    """The threshold T τ, with τ the root of Σ_j q_j f*'(max(θ_j / T - τ, f'(0))) = 1.

    It is the multiplier of the constraint Σ p = 1 and the analogue of logsumexp: logsumexp itself for
    "generalized-kl", one less for "kl". Under a sparse divergence a class has p > 0 if and only if
    θ_j > T (τ + f'(0)). Its gradient in θ is w / Σw, with w_j = q_j f*''.

    Args:
        logits: scores θ, shape (..., V, ...).
        divergence: a name or an `FDivergence`.
        reference: the measure q > 0, as in `f_softargmax`.
        dim: the axis of the classes.
        temperature: T > 0, as in `f_softargmax`.
        impl: as in `f_softargmax`.

    Returns:
        The threshold in the units of the logits, their shape without `dim`, their dtype.

    Raises:
        InputError: as `f_softargmax`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([1.0, 0.5, -2.0])
        >>> lse = torch.logsumexp(logits, -1)
        >>> torch.testing.assert_close(f_threshold(logits, "generalized-kl"), lse)
        >>> f_threshold(logits, "alpha:2")
        tensor(1.2500)

    Reference:
        Roulet, Liu, Vieillard, Sander and Blondel, 2025, arXiv 2501.18537 (the root τ).
    """
    found = _solve(logits, divergence, reference, dim, temperature, impl, with_value=False)
    return (found.scale * (found.threshold + found.top)).to(logits.dtype)


def softmax(logits: Tensor, *, dim: int = -1, temperature: float | Tensor = 1.0) -> Tensor:
    """Softmax, p_j = exp(θ_j / T) / Σ exp(θ / T): `f_softargmax` with "kl" and the unit measure.

    Args:
        logits: scores, shape (..., V, ...).
        dim: the axis of the classes.
        temperature: T > 0.

    Returns:
        Probabilities, all positive, the shape and dtype of logits.

    Example:
        >>> import torch
        >>> softmax(torch.tensor([0.0, 0.0]))
        tensor([0.5000, 0.5000])

    Reference:
        Boltzmann, 1868; Bridle, 1990.
    """
    return f_softargmax(logits, "kl", dim=dim, temperature=temperature)


def sparsemax(logits: Tensor, *, dim: int = -1, temperature: float | Tensor = 1.0) -> Tensor:
    """Sparsemax, p_j = max(θ_j / T - τ, 0), the projection of θ / T onto the simplex.

    `f_softargmax` with "alpha:2" and the unit measure.

    Args:
        logits: scores, shape (..., V, ...).
        dim: the axis of the classes.
        temperature: T > 0.

    Returns:
        Probabilities, many exactly zero, the shape and dtype of logits.

    Example:
        >>> import torch
        >>> sparsemax(torch.tensor([1.0, 0.5, -2.0]))
        tensor([0.7500, 0.2500, 0.0000])

    Reference:
        Martins and Astudillo, 2016, arXiv 1602.02068.
    """
    return f_softargmax(logits, "alpha:2", dim=dim, temperature=temperature)


def entmax15(logits: Tensor, *, dim: int = -1, temperature: float | Tensor = 1.0) -> Tensor:
    """1.5-entmax, p_j = max(θ_j / (2T) - τ, 0)²: `f_softargmax` with "alpha:1.5", unit measure.

    Args:
        logits: scores, shape (..., V, ...).
        dim: the axis of the classes.
        temperature: T > 0.

    Returns:
        Probabilities, some exactly zero, the shape and dtype of logits.

    Example:
        >>> import torch
        >>> entmax15(torch.tensor([1.0, 0.0, -2.0]))
        tensor([0.8307, 0.1693, 0.0000])

    Reference:
        Peters, Niculae and Martins, 2019, arXiv 1905.05702.
    """
    return f_softargmax(logits, "alpha:1.5", dim=dim, temperature=temperature)


def _solve(
    logits: Tensor,
    divergence: str | FDivergence,
    reference: float | Tensor,
    dim: int,
    temperature: float | Tensor,
    impl: str,
    *,
    with_value: bool = True,
) -> Solved:
    record = find(divergence)
    check_axis(logits, dim)
    scores, scale = scale_by(class_last(logits, dim), temperature, logits, dim)
    q = prepare_reference(reference, logits, dim, scores)
    try:
        return Solved(scores, q, record, scale, *solve(scores, q, record, impl, with_value))
    except BadScores:
        check_logits(logits, dim)  # says it of the logits as they were given
        raise
