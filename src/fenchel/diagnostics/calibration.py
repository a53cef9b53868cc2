"""Whether a model's confidence can be believed."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.errors import InputError


def expected_calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> Tensor:
    """Σ_b (n_b / n) |accuracy_b - confidence_b| over bins of equal width in confidence.

    Args:
        confidence: the probability of each prediction, in [0, 1], shape (N,).
        correct: whether it was right, shape (N,), boolean or 0/1.
        bins: the number of bins, >= 1.

    Returns:
        The error in [0, 1], a float64 scalar; 0 for no predictions.

    Raises:
        InputError: the shapes differ, or bins < 1.

    Example:
        >>> import torch
        >>> confidence = torch.tensor([0.9, 0.9, 0.6, 0.6])
        >>> correct = torch.tensor([True, True, True, False])
        >>> round(float(expected_calibration_error(confidence, correct)), 4)
        0.1

    Reference:
        Naeini, Cooper and Hauskrecht, 2015, AAAI; Guo, Pleiss, Sun and Weinberger, 2017,
        arXiv 1706.04599.
    """
    if confidence.shape != correct.shape or confidence.dim() != 1 or bins < 1:
        raise InputError(
            f"confidence and correct must have the same shape (N,) and bins be >= 1, received "
            f"{tuple(confidence.shape)}, {tuple(correct.shape)} and {bins}"
        )
    confidence, correct = confidence.double(), correct.double()
    which = (confidence * bins).long().clamp(0, bins - 1)
    surplus = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    surplus.index_add_(0, which, correct - confidence)
    return surplus.abs().sum() / max(1, confidence.numel())
