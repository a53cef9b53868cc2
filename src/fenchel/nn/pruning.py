"""Pruning while training: weights behind the relaxed top-k in magnitude, made permanent at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from fenchel.errors import InputError
from fenchel.operators.topk import check_magnitude_norm, topk_magnitude


class MagnitudePruning(torch.nn.Module):
    """A parametrization for `torch.nn.utils.parametrize`: a weight is `topk_magnitude` of what is trained.

    All entries of a weight compete for its k places, whatever its shape. Those dropped clearly are exactly
    0 and get no gradient, those kept clearly are as they are, and those around the cut are shrunk and have
    a gradient through the cut as well, so that they can change places. As the regularization falls, the
    pruning becomes hard.

    `k` and `regularization` are attributes, which may be set, and are saved in `state_dict`.

    Args:
        k: how many entries of a weight are kept.
        regularization: l > 0, in the units of the weight to the power 2 - p.
        p: the order of the norm, in [1.2, 2]. With p = 2 the regularization does not depend on the scale of
            the weight.

    Returns:
        On call with a weight, the sparse weight.

    Example:
        >>> import torch
        >>> pruning = MagnitudePruning(2, regularization=0.1, p=2.0)
        >>> pruning(torch.tensor([[-3.0, 0.5], [1.0, 0.2]]))
        tensor([[-3.,  0.],
                [ 1.,  0.]])

    Reference:
        Sander, Puigcerver, Djolonga, Peyré and Blondel, 2023, arXiv 2302.01425.
    """

    def __init__(self, k: int, *, regularization: float = 0.1, p: float = 4 / 3) -> None:
        super().__init__()
        check_magnitude_norm(regularization, p)
        if k < 0:
            raise InputError(f"k must be at least 0, received {k}")
        self.k = k
        self.regularization = regularization
        self.p = p

    def forward(self, weight: Tensor) -> Tensor:
        kept = topk_magnitude(weight.flatten(), self.k, regularization=self.regularization, p=self.p)
        return kept.view_as(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained when a weight is assigned: itself, which comes out unchanged if it is k-sparse."""
        return weight

    def hard(self, weight: Tensor) -> Tensor:
        """The limit as the regularization falls to 0: exactly k entries, as they are."""
        flat = weight.flatten()
        chosen = flat.abs().topk(self.k).indices
        return torch.zeros_like(flat).scatter(0, chosen, flat[chosen]).view_as(weight)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.k, self.regularization, self.p], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        k, self.regularization, self.p = state.tolist()
        self.k = int(k)

    def extra_repr(self) -> str:
        return f"k={self.k}, regularization={self.regularization}, p={self.p:.4g}"


def prune_magnitude(
    module: torch.nn.Module,
    sparsity: float,
    *,
    regularization: float = 0.1,
    p: float = 4 / 3,
    where: Callable[[str, Tensor], bool] | None = None,
) -> list[MagnitudePruning]:
    """Put `MagnitudePruning` on the weights of a module, each with its own share of zeros.

    From then on the module computes with the sparse weights, and an optimizer trains the dense ones behind
    them (create it as usual, before or after). `anneal_pruning` lowers the regularization on the way,
    `finish_pruning` makes the result permanent. The sparse weight is computed at each use; in
    `torch.nn.utils.parametrize.cached()` once.

    Args:
        module: changed in place.
        sparsity: the share of the entries of each weight to drop, in [0, 1).
        regularization: l > 0, as in `MagnitudePruning`.
        p: the order of the norm, in [1.2, 2].
        where: (name, weight) → whether to prune it; by default all weights of two axes or more.

    Returns:
        The parametrizations, in the order of `module.named_parameters()`.

    Raises:
        InputError: a sparsity out of range, or one that leaves no entry of a weight; no weight to prune; a
            weight that two modules share, or that has a parametrization already.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(10, 4)
        >>> prune_magnitude(layer, 0.9, p=2.0)
        [MagnitudePruning(k=4, regularization=0.1, p=2)]
        >>> finish_pruning(layer)
        >>> int((layer.weight != 0).sum())
        4

    Reference:
        Sander, Puigcerver, Djolonga, Peyré and Blondel, 2023, arXiv 2302.01425.
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity must be in [0, 1), received {sparsity}")
    chosen = []
    for path, owner in module.named_modules():
        for name, weight in owner.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if weight.dim() > 1 if where is None else where(full, weight):
                chosen.append((full, owner, name, weight))
    if not chosen:
        raise InputError(f"{type(module).__name__} has no weight to prune, as `where` has it")
    seen: dict[int, str] = {}
    for full, owner, _, weight in chosen:
        wrong = None
        if id(weight) in seen:
            wrong = f"{full} and {seen[id(weight)]} are one weight, which two modules share"
        elif isinstance(owner, parametrize.ParametrizationList):
            wrong = f"{full} has a parametrization already"
        elif round((1 - sparsity) * weight.numel()) == 0:
            wrong = f"sparsity={sparsity} leaves none of the {weight.numel()} entries of {full}"
        if wrong:
            raise InputError(f"{wrong}; leave it out by `where`")
        seen[id(weight)] = full
    found = []
    for _, owner, name, weight in chosen:
        k = round((1 - sparsity) * weight.numel())
        found.append(MagnitudePruning(k, regularization=regularization, p=p))
        parametrize.register_parametrization(owner, name, found[-1])
    return found


def anneal_pruning(module: torch.nn.Module, regularization: float) -> None:
    """Set the regularization of every `MagnitudePruning` in a module: on the way to a hard pruning, lower it.

    Args:
        module: with weights behind `prune_magnitude`.
        regularization: l > 0.

    Returns:
        Nothing; the parametrizations are changed in place.

    Raises:
        InputError: a regularization that is not positive, or nothing to set it of.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(10, 4)
        >>> (pruning,) = prune_magnitude(layer, 0.9)
        >>> anneal_pruning(layer, 0.01)
        >>> pruning.regularization
        0.01

    Reference:
        Sander, Puigcerver, Djolonga, Peyré and Blondel, 2023, arXiv 2302.01425 (the operator); the
        schedule is the user's.
    """
    for _, _, pruning in _pruned(module):
        check_magnitude_norm(regularization, pruning.p)
        pruning.regularization = regularization


def finish_pruning(module: torch.nn.Module) -> None:
    """Make the pruning of `prune_magnitude` permanent: plain weights, each with its k largest entries.

    The kept entries come out as they are, without the shrinkage around the cut, so that the function of the
    module changes by what the relaxation still was; with a low regularization, by nothing. Training goes on
    with dense weights if it goes on.

    Args:
        module: with weights behind `prune_magnitude`; changed in place.

    Returns:
        Nothing. The parameters are the same objects as before, so that an optimizer still holds them.

    Raises:
        InputError: nothing in the module is pruned, or a pruned weight has other parametrizations as well.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(10, 4)
        >>> _ = prune_magnitude(layer, 0.75)
        >>> finish_pruning(layer)
        >>> int((layer.weight != 0).sum())
        10

    Reference:
        Sander, Puigcerver, Djolonga, Peyré and Blondel, 2023, arXiv 2302.01425.
    """
    pruned = _pruned(module)
    for owner, name, _ in pruned:
        behind: Any = owner.parametrizations[name]  # type: ignore[index]
        if len(behind) > 1:
            raise InputError(f"{name} has {len(behind)} parametrizations, remove the others first")
    for owner, name, pruning in pruned:
        behind = owner.parametrizations[name]  # type: ignore[index]
        with torch.no_grad():
            behind.original.copy_(pruning.hard(behind.original))
        # What follows deletes a property of the class, which a deepcopy of the module would miss.
        shared = type(owner)
        owner.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(owner, name, leave_parametrized=False)


def _pruned(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str, MagnitudePruning]]:
    """(module, name of the weight, its pruning) for every pruned weight; raises InputError for none."""

    def each() -> Iterator[tuple[torch.nn.Module, str, MagnitudePruning]]:
        for owner in module.modules():
            if parametrize.is_parametrized(owner):
                for name, behind in owner.parametrizations.items():  # type: ignore[union-attr, operator]
                    for one in behind:
                        if isinstance(one, MagnitudePruning):
                            yield owner, name, one

    found = list(each())
    if not found:
        raise InputError(f"no weight of {type(module).__name__} is pruned; call prune_magnitude first")
    return found
