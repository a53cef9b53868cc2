"""Expert choice: each expert takes its best tokens, so that loads are equal by construction."""

from __future__ import annotations

from torch import Tensor

from fenchel.nn._assignment import check_scores, fill, sparse_plan, without_padding
from fenchel.nn.routing import Routing


def softmax_expert_choice(logits: Tensor, *, capacity: int, mask: Tensor | None = None) -> Routing:
    """Each expert takes the C tokens with the largest softmax(logits) over experts for it.

    Loads are equal by construction; a token may be taken by any number of experts, and by none.

    Args:
        logits: of the router, shape (..., T, E).
        capacity: the tokens C that each expert takes from each group, or T where there are fewer.
        mask: tokens that count, shape (..., T).

    Returns:
        A `Routing` whose weights are the probabilities.

    Raises:
        InputError: as `softmax_token_choice`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> softmax_expert_choice(logits, capacity=2).token
        tensor([[0, 1],
                [2, 1]])

    Reference:
        Zhou et al., 2022, arXiv 2202.09368.
    """
    gates = without_padding(check_scores(logits, mask, capacity).softmax(-1), mask)
    return fill(gates.detach(), gates, capacity, mask)


def sparse_expert_choice(
    logits: Tensor,
    *,
    capacity: int,
    regularization: float = 1.0,
    iterations: int = 10,
    mask: Tensor | None = None,
) -> Routing:
    """Each expert takes the tokens of a transport plan with at most C nonzeros for each expert.

    The plan is that of `sparse_token_choice`, but for the side that is sparse: each expert divides T / E
    among at most C tokens, as the sparsemax of its C largest of (logits + price) / γ, with a price for
    each token that keeps it from being left out. An expert's sum is exact, a token's is near one where
    the slots suffice. The entries are the weights; prices are constants of their gradient.

    Args:
        logits: of the router, shape (..., T, E).
        capacity: the tokens C that each expert takes at most from each group.
        regularization: γ > 0, in the units of the logits: the smaller, the fewer tokens.
        iterations: of the prices, as in `sparse_token_choice`.
        mask: tokens that count, shape (..., T).

    Returns:
        A `Routing`, with weights in float32 or wider.

    Raises:
        InputError: as `softmax_token_choice`; regularization or iterations not positive.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
        >>> sparse_expert_choice(logits, capacity=2).combine.sum(-1)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])

    Reference:
        Liu, Puigcerver and Blondel, 2023, arXiv 2209.15466; Liu, Blondel, Riquelme and Puigcerver, 2024,
        arXiv 2401.15969.
    """
    scores = check_scores(logits, mask, capacity)
    most = min(capacity, scores.shape[-2])
    plan = sparse_plan(
        scores, mask, most, by_expert=True, regularization=regularization, iterations=iterations
    )
    return fill(plan.detach(), plan, capacity, mask)
