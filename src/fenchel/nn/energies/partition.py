"""The network that learns the log-partition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.losses.energy import DEFAULT
from fenchel.nn.energies.energies import mlp
from fenchel.operators import f_threshold


class PartitionNetwork(nn.Module):
    """τ(x), a linear function or an MLP, for `joint_partition_loss`.

    It begins at -f'(1), the exact τ of an energy that is zero everywhere (0 for "generalized-kl"), or,
    after `start_at`, at the best constant for a first batch.

    Args:
        features: the number of inputs d.
        hidden: the widths of the hidden layers; empty for a linear function.
        divergence: that of the loss.

    Example:
        >>> import math, torch
        >>> network = PartitionNetwork(3, [8])
        >>> network(torch.ones(2, 3)).tolist()
        [0.0, 0.0]
        >>> network.start_at(torch.tensor([[math.log(2.0), math.log(4.0)]]))
        >>> round(network(torch.ones(1, 3)).item(), 4)  # log 3
        1.0986

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528.
    """

    def __init__(
        self, features: int, hidden: Sequence[int] = (), divergence: str | FDivergence = DEFAULT
    ) -> None:
        super().__init__()
        self.divergence = divergence
        self.network = mlp(features, hidden, 1)
        last = self.network[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        one = torch.ones((), dtype=torch.float64)
        nn.init.constant_(last.bias, -float(find(divergence).derivative(one)))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.network(x).squeeze(-1)
        return value

    @torch.no_grad()
    def start_at(self, sampled_energies: Tensor) -> None:
        """Make the constant the mean over rows of the best τ for sampled energies (N, K)."""
        best = f_threshold(sampled_energies, self.divergence, reference=1 / sampled_energies.shape[-1])
        last: nn.Linear = self.network[-1]  # type: ignore[assignment]
        last.bias.fill_(best.mean())
