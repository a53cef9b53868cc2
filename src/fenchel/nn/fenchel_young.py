"""The module face of `fenchel_young_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.losses import fenchel_young_loss


class FenchelYoungLoss(torch.nn.Module):
    """softmax_f(θ; q) + D_f(y, q) - <θ, y>, where `torch.nn.CrossEntropyLoss` stood.

    `FenchelYoungLoss()` on logits (N, V) is `CrossEntropyLoss()`; for logits (N, V, d1, ...) pass dim=1.
    The weight and a tensor reference are buffers: they move with the module and are saved with it.

    Args:
        divergence: a name or an `FDivergence`.
        reference: the measure q > 0: a number, or a tensor (V,) or broadcastable to the logits.
        weight: weights of the classes, (V,).
        ignore_index: an index target that adds nothing.
        label_smoothing: ε in [0, 1).
        reduction: "mean", "sum" or "none".
        dim: the axis of the classes.
        temperature: T > 0.

    Returns:
        On call with (logits, target), the loss; see `fenchel.fenchel_young_loss`.

    Example:
        >>> import torch
        >>> loss = FenchelYoungLoss("alpha:1.5")
        >>> round(loss(torch.tensor([[1.0, 0.0, -2.0]]), torch.tensor([0])).item(), 4)
        0.0617

    Reference:
        Blondel, Martins and Niculae, 2020, arXiv 1901.02324; Roulet et al., 2025, arXiv 2501.18537.
    """

    weight: Tensor | None

    def __init__(
        self,
        divergence: str | FDivergence = "kl",
        *,
        reference: float | Tensor = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        dim: int = -1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.divergence = find(divergence)
        self.register_buffer("weight", weight)
        if isinstance(reference, Tensor):
            self.register_buffer("reference", reference)
        else:
            self.reference = reference
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.dim = dim
        self.temperature = temperature

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return fenchel_young_loss(
            logits,
            target,
            self.divergence,
            reference=self.reference,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            dim=self.dim,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        return f"{self.divergence.name!r}, reduction={self.reduction!r}, dim={self.dim}"
