"""The configuration of highest energy, and its marginals: exact for few, else by search."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fenchel.errors import InputError
from fenchel.operators._inputs import check_numbers

Energies = Callable[[Tensor], Tensor]


def best_configuration(energies: Energies, configurations: Tensor, *, chunk: int = 4096) -> Tensor:
    """argmax_y g(y) over listed configurations, by looking at all of them.

    Args:
        energies: from configurations (1, K, m), the same for every row, to their energies (N, K).
        configurations: (|Y|, m), such as `fenchel.nn.Subsets(m).enumerate()`.
        chunk: how many are looked at together.

    Returns:
        The best configuration of each row, (N, m); at ties the first.

    Raises:
        InputError: there are no configurations, or an energy is NaN (on CPU).

    Example:
        >>> import torch
        >>> from fenchel.nn import Subsets
        >>> scores = torch.tensor([[1.0, -2.0]])
        >>> best_configuration(lambda y: (y * scores.unsqueeze(1)).sum(-1), Subsets(2).enumerate())
        tensor([[1., 0.]])

    Reference:
        Enumeration; Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528 (the energies).
    """
    if configurations.dim() != 2 or not len(configurations):
        raise InputError(f"configurations must be (|Y|, m), received {tuple(configurations.shape)}")
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, received {chunk}")
    best: Tensor | None = None
    top: Tensor | None = None
    for part in configurations.split(chunk):
        value, index = check_numbers(energies(part.unsqueeze(0)), "energies").max(-1)
        if best is None or top is None:
            best, top = part[index], value
        else:
            better = value > top
            best, top = torch.where(better.unsqueeze(-1), part[index], best), torch.where(better, value, top)
    assert best is not None
    return best


@torch.no_grad()
def local_search(
    energies: Energies, start: Tensor, neighbours: Callable[[Tensor], Tensor], *, max_steps: int = 1000
) -> Tensor:
    """Steepest ascent of the energy: move to the best neighbour until none is better.

    The energy never falls, and the result is a local maximum unless `max_steps` end the search. All rows
    and restarts are searched together; the best restart of each row is returned.

    Args:
        energies: from configurations (N, K, m) to their energies (N, K), for any K.
        start: where to begin, (N, R, m): R restarts for each row.
        neighbours: from (..., m) to (..., moves, m), such as `fenchel.nn.Subsets(m).neighbours`: single
            flips for subsets, exchanges of two items for permutations.
        max_steps: moves at most.

    Returns:
        The best configuration found for each row, (N, m).

    Raises:
        InputError: `start` has no axis of restarts, or an energy is NaN (on CPU).

    Example:
        >>> import torch
        >>> from fenchel.nn import Subsets
        >>> scores = torch.tensor([[1.0, -2.0, 3.0]])
        >>> start = torch.zeros(1, 1, 3)
        >>> local_search(lambda y: (y * scores.unsqueeze(1)).sum(-1), start, Subsets(3).neighbours)
        tensor([[1., 0., 1.]])

    Reference:
        Besag, 1986 (iterated conditional modes, for single flips); Sander, Roulet, Liu and Blondel, 2025,
        arXiv 2501.18528 (the energies).
    """
    if start.dim() != 3 or not start.shape[1]:
        raise InputError(f"start must be (rows, restarts, m), received {tuple(start.shape)}")
    y, value = start, check_numbers(energies(start), "energies")
    rows, restarts, width = y.shape
    for _ in range(max_steps):
        near = neighbours(y)
        if not near.shape[-2]:
            break
        found = check_numbers(energies(near.reshape(rows, -1, width)), "energies").reshape(rows, restarts, -1)
        best, index = found.max(-1)
        better = best > value
        if not better.any():
            break
        move = near.gather(-2, index[..., None, None].expand(-1, -1, 1, width)).squeeze(-2)
        y, value = torch.where(better.unsqueeze(-1), move, y), torch.where(better, best, value)
    return y[torch.arange(rows, device=y.device), value.argmax(-1)]


@torch.no_grad()
def gibbs_marginals(
    log_density: Energies,
    start: Tensor,
    *,
    sweeps: int = 100,
    warm_up: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """P(y_i = 1) of random subsets, estimated by Gibbs sampling where they are too many to enumerate.

    Each sweep draws every label from its distribution given the others; the estimate is the mean of these
    conditional probabilities, which varies less than the mean of the draws. The rows share their random
    numbers, so that the estimate of a row does not depend on the rows beside it. Where strong couplings
    part the sets into groups, a chain stays long in the group of its start.

    Args:
        log_density: from indicators (N, K, m) to log p(y) up to a constant of the row, (N, K): the energy,
            or log f*'(g - τ). -inf is allowed, but for the start.
        start: indicators (N, C, m): C chains for each row.
        sweeps: those that count.
        warm_up: those before, which do not.
        generator: of the draws.

    Returns:
        The marginals, (N, m).

    Raises:
        InputError: shapes or counts that do not fit, or a log-density that is NaN (on CPU).

    Example:
        >>> import math, torch
        >>> scores = torch.tensor([[0.0, math.log(3.0)]])
        >>> independent = lambda y: (y * scores.unsqueeze(1)).sum(-1)
        >>> gibbs_marginals(independent, torch.zeros(1, 1, 2), sweeps=5)
        tensor([[0.5000, 0.7500]])

    Reference:
        Geman and Geman, 1984; Gelfand and Smith, 1990 (means of conditional probabilities).
    """
    if start.dim() != 3 or not start.shape[1]:
        raise InputError(f"start must be (rows, chains, m), received {tuple(start.shape)}")
    if sweeps < 1 or warm_up < 0:
        raise InputError(f"sweeps must be at least 1 and warm_up at least 0, received {sweeps}, {warm_up}")
    y = start.clone()
    total = torch.zeros_like(y[:, 0])
    chains = y.shape[1]
    for sweep in range(warm_up + sweeps):
        for i in range(y.shape[-1]):
            states = y.repeat(1, 2, 1)
            states[:, :chains, i], states[:, chains:, i] = 0.0, 1.0
            out, within = check_numbers(log_density(states), "energies").split(chains, 1)
            p = torch.sigmoid(within - out)
            p = torch.where(torch.isnan(p), y[..., i], p)  # neither is possible: it stays
            y[..., i] = (torch.rand(chains, generator=generator, dtype=p.dtype, device=p.device) < p).to(
                y.dtype
            )
            if sweep >= warm_up:
                total[:, i] += p.mean(-1)
    return total / sweeps
