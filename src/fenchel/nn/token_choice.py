"""Token choice: each token takes its k best experts, as long as they have room."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.errors import InputError
from fenchel.nn._assignment import balancing_prices, check_scores, fill, largest, sparse_plan, without_padding
from fenchel.nn.routing import Routing

PRIORITIES = ("probability", "order")


def softmax_token_choice(
    logits: Tensor,
    *,
    k: int = 2,
    capacity: int,
    normalize: bool | None = None,
    priority: str = "probability",
    mask: Tensor | None = None,
) -> Routing:
    """Each token takes the k experts of its largest softmax(logits), as long as they have room.

    Where more tokens ask for an expert than it has slots, it keeps the first of them by `priority` and
    drops the others, whose weight is lost. Ties (of float32) go to the earlier token and expert, and a
    choice of weight zero takes no slot. The choice itself has no gradient, its weight has.

    Args:
        logits: of the router, shape (..., T, E): groups of T tokens, E experts; tokens of a group compete
            with each other. Half types are computed in float32.
        k: experts for each token.
        capacity: slots C of each expert, for each group; more than T are never used.
        normalize: whether a token's k weights are divided by their sum, before any is dropped. By default
            where k > 1: with k = 1 the weight would be one, and the router without gradient.
        priority: "probability" (what an expert keeps are its largest probabilities) or "order" (first
            choices before second ones, then earlier tokens before later ones).
        mask: tokens that count, shape (..., T). Padding takes no slot and may hold anything.

    Returns:
        A `Routing`, with weights in float32 or wider.

    Raises:
        InputError: k or capacity out of range; NaN or inf among logits that count (looked at on CPU
            only); shapes that differ.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> routing = softmax_token_choice(logits, k=1, capacity=1)
        >>> routing.token, routing.demand  # experts take tokens 0 and 2, token 1 is dropped
        (tensor([[0],
                [2]]), tensor([2, 1]))

    Reference:
        Shazeer et al., 2017, arXiv 1701.06538; Fedus, Zoph and Shazeer, 2021, arXiv 2101.03961; priority
        by probability after Riquelme et al., 2021, arXiv 2106.05974.
    """
    gates = without_padding(check_scores(logits, mask, capacity, k).softmax(-1), mask)
    return _token_choice(gates, gates, k, capacity, normalize, priority, mask)


def sinkhorn_token_choice(
    logits: Tensor,
    *,
    k: int = 2,
    capacity: int,
    regularization: float = 1.0,
    iterations: int = 20,
    normalize: bool | None = None,
    priority: str = "probability",
    mask: Tensor | None = None,
) -> Routing:
    """Each token takes the k experts of the largest entries of a plan that loads all experts alike.

    The plan Π maximises <Π, logits> + ε H(Π), with sums of one over experts and T / E over tokens: it is
    softmax((logits + price) / ε), with a price for each expert that evens the loads out. The loads are
    those of the plan; the k largest entries of each token have them nearly. The weights are those of
    softmax(logits), which the plan does not enter, so that it needs no gradient.

    Args:
        logits: of the router, shape (..., T, E).
        k: experts for each token.
        capacity: slots C of each expert, for each group.
        regularization: ε > 0, in the units of the logits.
        iterations: of Sinkhorn.
        normalize: as in `softmax_token_choice`.
        priority: as in `softmax_token_choice`, by the plan.
        mask: tokens that count, shape (..., T).

    Returns:
        A `Routing`, with weights in float32 or wider.

    Raises:
        InputError: as `softmax_token_choice`; regularization or iterations not positive.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])  # both prefer the first expert
        >>> sinkhorn_token_choice(logits, k=1, capacity=1).demand
        tensor([1, 1])

    Reference:
        Lewis et al., 2021, arXiv 2103.16716 (BASE layers); Clark et al., 2022, arXiv 2202.01169
        (Sinkhorn); Liu, Blondel, Riquelme and Puigcerver, 2024, arXiv 2401.15969.
    """
    scores = check_scores(logits, mask, capacity, k)
    prices = balancing_prices(scores.detach(), mask, regularization, iterations)
    plan = ((scores.detach() + prices.unsqueeze(-2)) / regularization).softmax(-1)
    gates = without_padding(scores.softmax(-1), mask)
    return _token_choice(without_padding(plan, mask), gates, k, capacity, normalize, priority, mask)


def sparse_token_choice(
    logits: Tensor,
    *,
    k: int = 2,
    capacity: int,
    regularization: float = 1.0,
    iterations: int = 10,
    priority: str = "probability",
    mask: Tensor | None = None,
) -> Routing:
    """Each token takes the experts of a transport plan with at most k nonzeros for each token.

    The plan Π is to maximise <Π, logits> - γ/2 |Π|², with sums of one over experts and T / E over tokens:
    it is sparsemax of the k largest of (logits + price) / γ, with a price for each expert that evens out
    the loads. Sums over experts are exactly one; those over tokens are as even as the prices become in
    `iterations` (`sparse_transport` solves the same problem to its end). The entries are the weights;
    prices are constants of their gradient. With k = 1 weights are one, and the router has no gradient.

    Args:
        logits: of the router, shape (..., T, E).
        k: the most experts for each token.
        capacity: slots C of each expert, for each group.
        regularization: γ > 0, in the units of the logits: the smaller, the fewer experts.
        iterations: of the prices, first by Sinkhorn, then by steps up the semi-dual.
        priority: as in `softmax_token_choice`, by the plan.
        mask: tokens that count, shape (..., T).

    Returns:
        A `Routing`, with weights in float32 or wider.

    Raises:
        InputError: as `softmax_token_choice`; regularization or iterations not positive.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])  # the price of the first expert is 1.5
        >>> sparse_token_choice(logits, capacity=2).combine.sum(-1)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])

    Reference:
        Liu, Puigcerver and Blondel, 2023, arXiv 2209.15466; Liu, Blondel, Riquelme and Puigcerver, 2024,
        arXiv 2401.15969.
    """
    scores = check_scores(logits, mask, capacity, k)

    plan = sparse_plan(scores, mask, k, by_expert=False, regularization=regularization, iterations=iterations)
    return _token_choice(plan.detach(), plan, k, capacity, False, priority, mask)


def _token_choice(
    scores: Tensor,
    gates: Tensor,
    k: int,
    capacity: int,
    normalize: bool | None,
    priority: str,
    mask: Tensor | None,
) -> Routing:
    """By `scores` >= 0, (..., T, E), with the weights of `gates`; a score of zero is no choice."""
    tokens = scores.shape[-2]
    if priority not in PRIORITIES:
        raise InputError(f"priority must be one of {', '.join(PRIORITIES)}, received {priority!r}")
    scores = scores.detach()
    expert, taken = largest(scores, k)
    chosen = torch.where(taken, gates.gather(-1, expert), 0.0)
    if normalize or (normalize is None and k > 1):
        total = chosen.sum(-1, keepdim=True)
        chosen = chosen / torch.where(total > 0, total, 1.0)
    weights = torch.zeros_like(gates).scatter(-1, expert, chosen)
    if priority == "probability":
        standing = torch.where(taken, scores.gather(-1, expert), 0.0)
    else:
        place = torch.arange(tokens, device=scores.device).unsqueeze(-1)
        place = place + tokens * torch.arange(k, device=scores.device)
        standing = torch.where(taken, k * tokens - place, 0)
    standing = torch.zeros_like(scores, dtype=standing.dtype).scatter(-1, expert, standing)
    return fill(standing, weights, capacity, mask)
