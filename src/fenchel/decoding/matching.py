"""Sample from a model with the operator that it was trained with."""

from __future__ import annotations

from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.operators import f_softargmax


def matching_logits(
    logits: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    reference: float | Tensor = 1.0,
    temperature: float = 1.0,
    dim: int = -1,
) -> Tensor:
    """log f-softargmax(θ / T), so that softmax of the result samples from f-softargmax.

    Any sampler that ends in a softmax then decodes a model trained with `fenchel_young_loss` by the
    distribution that the loss fitted. Classes of probability zero come out as -inf: they are never drawn.

    Args:
        logits: next-token scores, shape (..., V, ...).
        divergence: the divergence of the training loss.
        reference: its reference measure.
        temperature: T > 0, applied before the operator, where the loss would apply it.
        dim: the axis of the classes.

    Returns:
        Log-probabilities, the shape and dtype of logits.

    Raises:
        InputError: as `fenchel.f_softargmax`.

    Example:
        >>> import torch
        >>> matching_logits(torch.tensor([1.0, 0.5, -2.0]), "alpha:2").exp()
        tensor([0.7500, 0.2500, 0.0000])

    Reference:
        Roulet, Liu, Vieillard, Sander and Blondel, 2025, arXiv 2501.18537 (f-softargmax).
    """
    return f_softargmax(logits, divergence, reference=reference, temperature=temperature, dim=dim).log()
