"""Energies g(x, y) as modules: the higher, the more probable the configuration y of the input x.

Each takes x of shape (..., d), and y either one configuration for each input, (..., m), or K of them,
(..., K, m); the answer has the shape of y without its last axis. Configurations that all inputs share are
given once, as (1, K, m).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fenchel.errors import InputError
from fenchel.nn.energies.configurations import ConfigurationSpace, Permutations
from fenchel.operators._inputs import check_numbers


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with softplus between them; one linear map where `hidden` is empty."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.Softplus()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class Energy(nn.Module, ABC):
    """g(x, y) over a space of configurations: what every energy is; a new one defines `energies`.

    Attributes:
        space: the configurations.

    Example:
        >>> import torch
        >>> from fenchel.nn import Subsets
        >>> class Size(Energy):  # |y| times x
        ...     def energies(self, x, y):
        ...         return x * y.sum(-1)
        >>> Size(Subsets(2))(torch.tensor([[3.0]]), Subsets(2).enumerate().unsqueeze(0))
        tensor([[0., 3., 3., 6.]])

    Reference:
        LeCun, Chopra, Hadsell, Ranzato and Huang, 2006 (energy-based learning); the sign is that of Sander,
        Roulet, Liu and Blondel, 2025, arXiv 2501.18528: a higher g is more probable.
    """

    def __init__(self, space: ConfigurationSpace) -> None:
        super().__init__()
        self.space = space

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if y.shape[-1:] != (self.space.width,) or y.dim() - x.dim() not in (0, 1):
            raise InputError(
                f"configurations of {self.space!r} for inputs {tuple(x.shape)} must have shape "
                f"{(*x.shape[:-1], self.space.width)} or {(*x.shape[:-1], 'K', self.space.width)}, received "
                f"{tuple(y.shape)}"
            )
        if not y.is_floating_point():
            y = y.to(torch.promote_types(x.dtype, y.dtype))
        if y.dim() == x.dim():
            return self.energies(x, y.unsqueeze(-2)).squeeze(-1)
        return self.energies(x, y)

    @abstractmethod
    def energies(self, x: Tensor, y: Tensor) -> Tensor:
        """g(x, y) for K configurations (..., K, m) of each input."""


class UnaryEnergy(Energy):
    """g(x, y) = <h(x), u(y)>: a score for each label, or for each item of a ranking.

    u(y) is y - 1/2 for subsets, so that h(x) are the logits of independent labels (y - π with a reference π,
    and h(x) is added to its logits); for permutations the positions from 1 (first) to -1 (last), so that the
    most probable ranking sorts h(x).

    Args:
        network: h, a module from (..., d) to (..., m): `torch.nn.Linear` for the linear energy.
        space: the configurations.

    Example:
        >>> import torch
        >>> from fenchel.nn import Subsets
        >>> energy = UnaryEnergy(torch.nn.Identity(), Subsets(2))
        >>> energy(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([1.5000])
        >>> energy.decode(torch.tensor([[2.0, -1.0]]))
        tensor([[1., 0.]])

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528 (linear and MLP energies).
    """

    def __init__(self, network: nn.Module, space: ConfigurationSpace) -> None:
        super().__init__(space)
        self.network = network

    def energies(self, x: Tensor, y: Tensor) -> Tensor:
        return _products(self.network(x), self.space.unary(y))

    def decode(self, x: Tensor) -> Tensor:
        """argmax_y q(y) e^g(x, y), exactly, (..., m): with q uniform, the configuration of highest energy.

        Raises:
            InputError: a score is NaN (on CPU).
        """
        return self.space.unary_mode(check_numbers(self.network(x), "scores"))

    def log_partition(self, x: Tensor) -> Tensor:
        """log E_q exp g(x, y) in closed form, (...), for subsets and single labels.

        Raises:
            InputError: the space has no closed form.
        """
        return self.space.unary_log_partition(self.network(x))


class PairwiseEnergy(Energy):
    """g(x, y) = <h(x), u(y)> + <J + B c(x), w(y)>: scores of labels, and couplings of pairs of them.

    w(y) has one entry for each pair i < j: for subsets 1 where both labels are in or both out and -1
    otherwise (4 (y_i - π_i) (y_j - π_j) with a reference π), for permutations 1 where i comes before j and -1
    otherwise. The couplings J do not depend on the input; a network c adds some of low rank that do. Both
    begin at zero.

    Args:
        network: h, a module from (..., d) to (..., m).
        space: the configurations.
        couplings: c, a module from (..., d) to (..., rank); by default there is none.
        rank: how many outputs `couplings` has.

    Example:
        >>> import torch
        >>> from fenchel.nn import Subsets
        >>> energy = PairwiseEnergy(torch.nn.Identity(), Subsets(2))
        >>> with torch.no_grad():
        ...     _ = energy.constant.fill_(3.0)
        >>> energy(torch.zeros(1, 2), torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])).tolist()
        [[3.0, -3.0]]

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528 (pairwise energies).
    """

    def __init__(
        self,
        network: nn.Module,
        space: ConfigurationSpace,
        *,
        couplings: nn.Module | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__(space)
        if (couplings is None) != (rank == 0):
            raise InputError(f"couplings need a rank above 0, and no rank without them; received {rank}")
        pairs = space.pairs(torch.ones(1, space.width)).shape[-1]
        self.network, self.couplings = network, couplings
        self.constant = nn.Parameter(torch.zeros(pairs))
        self.spread = nn.Parameter(torch.zeros(rank, pairs)) if rank else None

    def energies(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = self.space.pairs(y)
        value = _products(self.network(x), self.space.unary(y)) + pairs @ self.constant
        if self.couplings is not None:
            value = value + _products(self.couplings(x) @ self.spread, pairs)
        return value


class BilinearEnergy(Energy):
    """g(x, y) = <a(x), b(u(y))>: features of the input against features of the configuration.

    Its rank is the number of these features. With a linear b it is a `UnaryEnergy` of low rank; with an
    MLP it couples the labels.

    Args:
        inputs: a, a module from (..., d) to (..., r).
        configurations: b, a module from (..., m) to (..., r).
        space: the configurations.

    Example:
        >>> import torch
        >>> from fenchel.nn import Subsets
        >>> energy = BilinearEnergy(torch.nn.Identity(), torch.nn.Softplus(), Subsets(1))
        >>> y = torch.tensor([[[0.0], [1.0]]])
        >>> round(energy(torch.tensor([[2.0]]), y).diff().item(), 4)  # 2 (log(1+√e) - log(1+1/√e))
        1.0

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528.
    """

    def __init__(self, inputs: nn.Module, configurations: nn.Module, space: ConfigurationSpace) -> None:
        super().__init__(space)
        self.inputs, self.configurations = inputs, configurations

    def energies(self, x: Tensor, y: Tensor) -> Tensor:
        return _products(self.inputs(x), self.configurations(self.space.unary(y)))


class JointEnergy(Energy):
    """g(x, y) = h([x, u(y)]), a network of input and configuration together: the freest, and the slowest.

    Args:
        network: h, a module from (..., d + m) to (..., 1).
        space: the configurations.

    Example:
        >>> import torch
        >>> from fenchel.nn import Subsets
        >>> energy = JointEnergy(torch.nn.Linear(3, 1, bias=False), Subsets(2))
        >>> with torch.no_grad():
        ...     _ = energy.network.weight.fill_(1.0)
        >>> energy(torch.tensor([[2.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([3.], grad_fn=<SqueezeBackward1>)

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528.
    """

    def __init__(self, network: nn.Module, space: ConfigurationSpace) -> None:
        super().__init__(space)
        self.network = network

    def energies(self, x: Tensor, y: Tensor) -> Tensor:
        features = self.space.unary(y)
        batch = torch.broadcast_shapes(x.shape[:-1], features.shape[:-2])
        features = features.expand(*batch, -1, -1)
        inputs = x.unsqueeze(-2).expand(*batch, features.shape[-2], -1)
        value: Tensor = self.network(torch.cat([inputs, features], -1)).squeeze(-1)
        return value


class AssignmentEnergy(Energy):
    """g(x, y) = <Θ(x), P(y)> - mean: a score for each item at each position, P(y) the permutation matrix.

    Args:
        network: a module from (..., d) to (..., k²), Θ flat: rows are items, columns positions.
        space: the permutations.

    Raises:
        InputError: the space is another.

    Example:
        >>> import torch
        >>> from fenchel.nn import Permutations
        >>> energy = AssignmentEnergy(torch.nn.Identity(), Permutations(2))
        >>> scores = torch.tensor([[0.0, 3.0, 1.0, 0.0]])  # item 1 second, item 2 first
        >>> energy(scores, torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])).tolist()
        [[2.0, -2.0]]
        >>> energy.decode(scores)
        tensor([[2., 1.]])

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528; Kuhn, 1955 (the Hungarian method).
    """

    space: Permutations

    def __init__(self, network: nn.Module, space: Permutations) -> None:
        if not isinstance(space, Permutations):
            raise InputError(f"an AssignmentEnergy needs Permutations, received {space!r}")
        super().__init__(space)
        self.network = network

    def energies(self, x: Tensor, y: Tensor) -> Tensor:
        return _products(self.network(x), self.space.assignment(y))

    def decode(self, x: Tensor) -> Tensor:
        """The ranking of highest energy, exactly, (..., k), by SciPy's assignment solver on the CPU.

        Raises:
            ImportError: SciPy is not installed; `fenchel.local_search` needs none.
            InputError: a score is NaN.
        """
        from scipy.optimize import linear_sum_assignment

        k = self.space.width
        scores = check_numbers(self.network(x).detach(), "scores")
        rows = scores.reshape(-1, k, k).to("cpu", torch.float64).numpy()
        positions = [torch.from_numpy(linear_sum_assignment(row, maximize=True)[1] + 1) for row in rows]
        if not positions:
            return scores.new_empty(*scores.shape[:-1], k)
        found: Tensor = torch.stack(positions).to(scores).reshape(*scores.shape[:-1], k)
        return found


def _products(scores: Tensor, features: Tensor) -> Tensor:
    """<scores, features>, (..., f) and (..., K, f) -> (..., K)."""
    return torch.einsum("...f,...kf->...k", scores, features)
