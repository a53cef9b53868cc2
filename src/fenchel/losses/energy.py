"""Losses of energy-based models, p(y|x) = q(y) exp(g(x, y)) / Z(x), whose log-partition is learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.errors import InputError
from fenchel.losses.reduce import check_rows, reduce
from fenchel.operators import f_softmax
from fenchel.operators._inputs import check_axis, check_numbers

DEFAULT = "generalized-kl"


def joint_partition_loss(
    energy: Tensor,
    sampled_energies: Tensor,
    log_partition: Tensor,
    divergence: str | FDivergence = DEFAULT,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Energy and log-partition learned together: τ + (1/K) Σ_k f*(max(g_k - τ, f'(0))) - g.

    g = g(x, y) is the energy of the observed configuration, the higher the more probable; g_k = g(x, y_k)
    those of K configurations drawn from the reference q, such as the uniform one; τ = τ(x) is what a second
    network says. For "generalized-kl" this is τ + mean exp(g_k - τ) - 1 - g.

    It is minimised in g and τ at once. The expectation over the samples, and so its gradient, is exact for
    every K: no Markov chain, no bias. Its minimum over τ alone is `exact_partition_loss`, and there, by the
    envelope theorem, the gradient in g is that of the likelihood. The minimiser is
    `fenchel.f_threshold` of all energies with the reference q. For "generalized-kl" it is
    τ = log E_q exp(g), and, q being uniform, the usual log-partition is log Σ exp(g) = τ + log |Y|. For
    "alpha:2" the loss is sparsemax's over all configurations.

    A sample is not clipped: exp(g_k - τ) overflows in float32 where g_k is above τ by 89, and the loss is
    then inf, and its gradient too. Start τ at a sane value (`fenchel.nn.PartitionNetwork`), and mind that
    clipping the norm of gradients lowers τ where K is small. Where sup dom f* is finite ("reverse-kl",
    "js", "hellinger") the loss is inf as soon as one g_k - τ is above it: prefer other divergences for
    training by samples.

    Args:
        energy: g(x, y) of the observations, shape (...), any float dtype; half types are computed in
            float32.
        sampled_energies: g(x, y_k), shape (..., K); -inf for a configuration that is impossible.
        log_partition: τ(x), the shape of energy.
        divergence: a name or an `FDivergence`. Those with f'(0) finite give exact zeros.
        mask: observations that count, the shape of energy.
        reduction: "mean", "sum" or "none".

    Returns:
        The loss in nats, in the dtype of energy: a scalar, or the shape of energy for "none". It differs
        from the Fenchel-Young loss by D_f(δ_y, q), a constant that is left out, so that it may be negative.

    Raises:
        InputError: shapes that do not fit, no samples, or, on CPU, NaN or a τ that is not finite, quoting
            what was received.

    Example:
        >>> import math, torch
        >>> sampled = torch.tensor([[math.log(2.0), math.log(4.0)]])  # log of their mean exponential: log 3
        >>> loss = joint_partition_loss(torch.tensor([1.0]), sampled, torch.tensor([math.log(3.0)]))
        >>> round(float(loss), 4)  # log 3 - 1
        0.0986

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528 (the joint objective, and its extension to
        Fenchel-Young losses).
    """
    record = find(divergence)
    check_axis(sampled_energies, -1, name="sampled_energies")
    _check_rows_of(energy, sampled_energies, "sampled_energies")
    check_rows(log_partition, energy.shape, "log_partition")
    check_rows(mask, energy.shape, "mask")
    dtype = torch.promote_types(energy.dtype, torch.float32)
    g, sampled, tau = energy.to(dtype), sampled_energies.to(dtype), log_partition.to(dtype)
    if mask is not None:  # a row that does not count may hold anything, and gives no gradient
        kept = mask.bool()
        g, tau = torch.where(kept, g, 0.0), torch.where(kept, tau, 0.0)
        sampled = torch.where(kept.unsqueeze(-1), sampled, 0.0)
    check_numbers(g, "energy")
    check_numbers(sampled, "sampled_energies")
    check_numbers(tau, "log_partition", finite=True)
    expected = _conjugate(record, sampled - tau.unsqueeze(-1)).mean(-1)
    return reduce(tau + expected - g, reduction=reduction, mask=mask).to(energy.dtype)


def exact_partition_loss(
    energy: Tensor,
    all_energies: Tensor,
    divergence: str | FDivergence = DEFAULT,
    *,
    reference: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The loss with the log-partition from enumeration: softmax_f(g(x, ·); q) - g(x, y).

    For "kl" and "generalized-kl" it is the negative log-likelihood plus log q(y), which without a reference
    is -log |Y|. It is then `joint_partition_loss` at the best τ with every configuration as a sample.

    Args:
        energy: g(x, y) of the observations, shape (...).
        all_energies: the energies of every configuration, shape (..., |Y|).
        divergence: a name or an `FDivergence`.
        reference: q, the probability of every configuration, positive, shape (|Y|,); None is uniform.
        mask: observations that count, the shape of energy.
        reduction: "mean", "sum" or "none".

    Returns:
        The loss in nats, in the dtype of energy, without the constant D_f(δ_y, q).

    Raises:
        InputError: shapes that do not fit, or NaN (on CPU).

    Example:
        >>> import math, torch
        >>> energies = torch.tensor([[math.log(2.0), math.log(4.0)]])
        >>> round(float(exact_partition_loss(torch.tensor([1.0]), energies)), 4)  # log 3 - 1
        0.0986

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528; Blondel, Martins and Niculae, 2020,
        arXiv 1901.02324 (Fenchel-Young losses).
    """
    check_axis(all_energies, -1, name="all_energies")
    _check_rows_of(energy, all_energies, "all_energies")
    check_rows(mask, energy.shape, "mask")
    dtype = torch.promote_types(energy.dtype, torch.float32)
    g, energies = energy.to(dtype), all_energies.to(dtype)
    if mask is not None:
        g = torch.where(mask.bool(), g, 0.0)
        energies = torch.where(mask.bool().unsqueeze(-1), energies, 0.0)
    check_numbers(g, "energy")
    check_numbers(energies, "all_energies")
    q = 1 / energies.shape[-1] if reference is None else reference
    value = f_softmax(energies, divergence, reference=q)
    return reduce(value - g, reduction=reduction, mask=mask).to(energy.dtype)


def _conjugate(record: FDivergence, v: Tensor) -> Tensor:
    """f*(v), with the first and second derivatives of the record.

    They are asked for by name, for a record that is derived from f inverts f' by bisection, which has none.
    """
    at = v.detach()
    value = record.conjugate(at)
    finite = torch.isfinite(value)
    smooth = finite & torch.isfinite(at)  # at -inf, an impossible configuration, f* is flat
    inside = torch.where(smooth, at, 0.0)
    first, second = record.conjugate_derivative(inside), record.conjugate_second_derivative(inside)
    step = torch.where(smooth, v, 0.0) - inside  # zero, but for its derivative
    # Where f* is infinite v is positive, and the derivative is infinite as well.
    beyond = torch.where(finite, 1.0, v) * math.inf
    return torch.where(finite, value + step * (first + 0.5 * step * second), beyond)


def _check_rows_of(energy: Tensor, energies: Tensor, name: str) -> None:
    if not isinstance(energy, Tensor) or not energy.is_floating_point():
        received = energy.dtype if isinstance(energy, Tensor) else type(energy).__name__
        raise InputError(f"energy must be a floating-point tensor, received {received}")
    if energies.shape[:-1] != energy.shape:
        raise InputError(
            f"{name} must have the shape of energy and one more axis, {(*energy.shape, '*')}, received "
            f"{tuple(energies.shape)}"
        )
