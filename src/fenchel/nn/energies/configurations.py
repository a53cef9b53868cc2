"""Finite sets of configurations: subsets of labels, single labels, permutations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import InputError

LARGEST_ENUMERATION = 20  # log2 of the most configurations that are listed


class ConfigurationSpace(ABC):
    """What an energy needs to know of its configurations y, rows of `width` numbers.

    Attributes:
        width: how many numbers describe a configuration.
        log_size: log |Y|, nats.
    """

    width: int

    @property
    @abstractmethod
    def log_size(self) -> float: ...

    @abstractmethod
    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Independent configurations from the reference q, (*shape, width)."""

    def log_reference(self, y: Tensor) -> Tensor:
        """log q(y), (...): the configurations are equally probable unless a space says otherwise."""
        return y.new_full(y.shape[:-1], -self.log_size)

    @abstractmethod
    def unary(self, y: Tensor) -> Tensor:
        """What the scores of single labels are multiplied with, (..., width); of mean 0 under q."""

    @abstractmethod
    def pairs(self, y: Tensor) -> Tensor:
        """One feature for each pair i < j, (..., width (width - 1) / 2), of mean 0 under q."""

    @abstractmethod
    def unary_mode(self, scores: Tensor) -> Tensor:
        """argmax_y q(y) exp <scores, unary(y)>, (..., width); at ties, one of them."""

    def unary_log_partition(self, scores: Tensor) -> Tensor:
        """log E_q exp <scores, unary(y)>, (...), for the spaces that have it in closed form."""
        raise InputError(f"{self!r} has no closed form of the log-partition; enumerate it, or learn it")

    @abstractmethod
    def neighbours(self, y: Tensor) -> Tensor:
        """Every configuration that is one move away, (..., moves, width)."""

    @abstractmethod
    def _list(self) -> Tensor: ...

    @abstractmethod
    def _belongs(self, y: Tensor) -> Tensor:
        """Whether each row is a configuration."""

    @abstractmethod
    def _described(self) -> str: ...

    def enumerate(self, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Every configuration once, (|Y|, width).

        Raises:
            InputError: there are more than 2^20.
        """
        if self.log_size > (LARGEST_ENUMERATION + 1e-9) * math.log(2):
            raise InputError(
                f"{self!r} has 2^{self.log_size / math.log(2):.1f} configurations, and at most "
                f"2^{LARGEST_ENUMERATION} are enumerated; sample them instead"
            )
        return self._list().to(dtype)

    def validate(self, y: Tensor) -> None:
        """Raise InputError unless every row of y is a configuration; values are looked at on CPU."""
        if y.dim() == 0 or y.shape[-1] != self.width:
            raise InputError(
                f"configurations of {self!r} have {self.width} numbers, received shape {tuple(y.shape)}"
            )
        fits = self._belongs(y)
        if not holds(fits):
            row = tuple(torch.nonzero(~fits)[0].tolist())
            raise InputError(f"row {row} must be {self._described()}, received {y[row].tolist()}")


@dataclass(frozen=True)
class Subsets(ConfigurationSpace):
    """The subsets of a set of labels, as indicators y in {0, 1}^m, with a reference q = ∏ Bernoulli(π_i).

    Args:
        width: the number of labels m.
        reference: π, the probability of each label under q, m numbers in (0, 1); None is 1/2 for each, so
            that q is uniform. Where labels are many and rare, their frequencies bring the samples near the
            data.

    Raises:
        InputError: there are no labels, or π does not fit.

    Example:
        >>> space = Subsets(2)
        >>> space.enumerate().tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
        >>> space.neighbours(space.enumerate()[3]).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
        >>> rare = Subsets(2, reference=(0.1, 0.2))
        >>> round(rare.log_reference(rare.enumerate()[0]).exp().item(), 4)  # 0.9 · 0.8
        0.72

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528 (multilabel classification).
    """

    width: int
    reference: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _whole(self.width))
        if self.reference is None:
            return
        object.__setattr__(self, "reference", tuple(map(float, self.reference)))
        if len(self.reference) != self.width or not all(0 < p < 1 for p in self.reference):
            raise InputError(
                f"reference must be {self.width} probabilities inside of (0, 1), received {self.reference}"
            )

    @property
    def log_size(self) -> float:
        return self.width * math.log(2)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        size = (*shape, self.width)
        if self.reference is None:
            return torch.randint(0, 2, size, generator=generator, device=device).to(dtype)
        draws = torch.rand(size, generator=generator, device=device)
        return (draws < self._probabilities(draws)).to(dtype)

    def log_reference(self, y: Tensor) -> Tensor:
        p = self._probabilities(y)
        return torch.where(y > 0.5, p.log(), torch.log1p(-p)).sum(-1)

    def unary(self, y: Tensor) -> Tensor:
        """y - π. With π = 1/2 the scores are the logits of independent labels."""
        return y - self._probabilities(y)

    def unary_log_partition(self, scores: Tensor) -> Tensor:
        """log E_q exp <scores, unary(y)> = Σ log(π e^((1-π) s) + (1-π) e^(-π s)), for independent labels."""
        p = self._probabilities(scores)
        return torch.logaddexp(p.log() + (1 - p) * scores, torch.log1p(-p) - p * scores).sum(-1)

    def pairs(self, y: Tensor) -> Tensor:
        """4 (y_i - π_i) (y_j - π_j): with π = 1/2, 1 if both are in or both out, else -1."""
        i, j = _pairs(self.width, y.device)
        spins = 2 * self.unary(y)
        return spins[..., i] * spins[..., j]

    def marginals(self, scores: Tensor) -> Tensor:
        """P(y_i = 1) under q(y) exp <scores, unary(y)>, of independent labels: sigmoid(scores + logit π)."""
        return torch.sigmoid(scores + self._probabilities(scores).logit())

    def unary_mode(self, scores: Tensor) -> Tensor:
        return (scores + self._probabilities(scores).logit() > 0).to(scores.dtype)

    def _probabilities(self, like: Tensor) -> Tensor:
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return torch.tensor(self.reference or (0.5,) * self.width, dtype=dtype, device=like.device)

    def neighbours(self, y: Tensor) -> Tensor:
        flip = torch.eye(self.width, dtype=torch.bool, device=y.device)
        rows = y.unsqueeze(-2)
        return torch.where(flip, 1 - rows, rows)

    def _list(self) -> Tensor:
        return torch.arange(2**self.width).unsqueeze(-1).bitwise_right_shift(torch.arange(self.width)) & 1

    def _belongs(self, y: Tensor) -> Tensor:
        return ((y == 0) | (y == 1)).all(-1)

    def _described(self) -> str:
        return "a row of 0 and 1"


@dataclass(frozen=True)
class OneHot(ConfigurationSpace):
    """Exactly one of m labels, as one-hot rows: with them the model is an ordinary softmax classifier.

    Args:
        width: the number of labels m.

    Raises:
        InputError: there are no labels.

    Example:
        >>> OneHot(3).enumerate().tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528.
    """

    width: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _whole(self.width))

    @property
    def log_size(self) -> float:
        return math.log(self.width)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        label = torch.randint(0, self.width, tuple(shape), generator=generator, device=device)
        return F.one_hot(label, self.width).to(dtype)

    def unary(self, y: Tensor) -> Tensor:
        return y - 1 / self.width

    def pairs(self, y: Tensor) -> Tensor:
        """None: two labels are never together."""
        return y[..., :0]

    def unary_mode(self, scores: Tensor) -> Tensor:
        return F.one_hot(scores.argmax(-1), self.width).to(scores.dtype)

    def unary_log_partition(self, scores: Tensor) -> Tensor:
        return torch.logsumexp(scores - scores.mean(-1, keepdim=True), -1) - self.log_size

    def neighbours(self, y: Tensor) -> Tensor:
        return torch.eye(self.width, dtype=y.dtype, device=y.device).expand(*y.shape[:-1], -1, -1)

    def _list(self) -> Tensor:
        return torch.eye(self.width)

    def _belongs(self, y: Tensor) -> Tensor:
        return ((y == 0) | (y == 1)).all(-1) & (y.sum(-1) == 1)

    def _described(self) -> str:
        return "one-hot"


@dataclass(frozen=True)
class Permutations(ConfigurationSpace):
    """The rankings of k items: y_i in {1, ..., k} is the position of item i, 1 for the first.

    Args:
        width: the number of items k.

    Raises:
        InputError: there are no items.

    Example:
        >>> import torch
        >>> space = Permutations(3)
        >>> len(space.enumerate())
        6
        >>> space.unary_mode(torch.tensor([0.1, 0.9, 0.3])).tolist()  # the highest score comes first
        [3.0, 1.0, 2.0]
        >>> space.unary(torch.tensor([3.0, 1.0, 2.0])).tolist()
        [-1.0, 1.0, 0.0]

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528 (label ranking).
    """

    width: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _whole(self.width))

    @property
    def log_size(self) -> float:
        return math.lgamma(self.width + 1)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        keys = torch.rand((*shape, self.width), generator=generator, device=device)
        return (keys.argsort(-1) + 1).to(dtype)

    def unary(self, y: Tensor) -> Tensor:
        """1 for the first position, falling in equal steps to -1 for the last."""
        return (self.width + 1 - 2 * y) / max(self.width - 1, 1)

    def pairs(self, y: Tensor) -> Tensor:
        """1 where i comes before j, else -1."""
        i, j = _pairs(self.width, y.device)
        return torch.sign(y[..., j] - y[..., i])

    def assignment(self, y: Tensor) -> Tensor:
        """The permutation matrix less its mean, rows for items and columns for positions, flat."""
        positions = torch.arange(1, self.width + 1, dtype=y.dtype, device=y.device)
        return ((y.unsqueeze(-1) == positions).to(y.dtype) - 1 / self.width).flatten(-2)

    def unary_mode(self, scores: Tensor) -> Tensor:
        order = scores.argsort(dim=-1, descending=True, stable=True)
        return (order.argsort(-1) + 1).to(scores.dtype)

    def neighbours(self, y: Tensor) -> Tensor:
        return y[..., _swaps(self.width, y.device)]

    def _list(self) -> Tensor:
        found = torch.ones(1, 1, dtype=torch.long)
        for n in range(2, self.width + 1):
            last = torch.full((len(found), 1), n)
            found = torch.cat([torch.cat([found[:, :i], last, found[:, i:]], 1) for i in range(n)])
        return found

    def _belongs(self, y: Tensor) -> Tensor:
        positions = torch.arange(1, self.width + 1, dtype=y.dtype, device=y.device)
        return (y.sort(-1).values == positions).all(-1)

    def _described(self) -> str:
        return f"a permutation of 1, ..., {self.width} (every position once)"


def _whole(width: int) -> int:
    if not isinstance(width, Integral) or isinstance(width, bool) or width < 1:
        raise InputError(f"width must be a whole number of at least 1, received {width!r}")
    return int(width)


def _pairs(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    i, j = torch.triu_indices(width, width, 1, device=device)
    return i, j


def _swaps(width: int, device: torch.device) -> Tensor:
    """For each pair of items the identity with the two exchanged, (pairs, width)."""
    i, j = _pairs(width, device)
    moves = torch.arange(width, device=device).repeat(len(i), 1)
    row = torch.arange(len(i), device=device)
    moves[row, i], moves[row, j] = j, i
    return moves
