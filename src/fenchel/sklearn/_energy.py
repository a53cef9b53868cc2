"""What the estimators of energy-based models share: building, training, log-partition, decoding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor, nn

from fenchel.decoding import best_configuration, local_search
from fenchel.divergences import divergence as find
from fenchel.errors import InputError, nearest
from fenchel.losses import exact_partition_loss, joint_partition_loss
from fenchel.nn.energies import (
    AssignmentEnergy,
    BilinearEnergy,
    ConfigurationSpace,
    Energy,
    JointEnergy,
    OneHot,
    PairwiseEnergy,
    PartitionNetwork,
    Permutations,
    Subsets,
    UnaryEnergy,
    mlp,
)
from fenchel.operators import f_threshold
from fenchel.sklearn._fitting import AT_LEAST_0, POSITIVE, SHARE, check_options, lbfgs, minibatch, whole

Array = NDArray[Any]
EXPONENTIAL = ("kl", "generalized-kl")
FEW = 2**12  # configurations that are enumerated to train, to decode and for marginals
RESTARTS = 8  # of the local search
CELLS = 2**22  # energies that are computed together, or numbers that they are computed from
RANK = 8  # of the features of bilinear energies
DTYPE = torch.float64

# From inputs, widths of hidden layers and the space.
BUILDERS: dict[str, Callable[[int, tuple[int, ...], Any], Energy]] = {
    "linear": lambda d, _, space: UnaryEnergy(nn.Linear(d, space.width), space),
    "mlp": lambda d, hidden, space: UnaryEnergy(mlp(d, hidden, space.width), space),
    "pairwise": lambda d, hidden, space: PairwiseEnergy(mlp(d, hidden, space.width), space),
    "bilinear": lambda d, hidden, space: BilinearEnergy(
        nn.Linear(d, RANK), mlp(space.width, hidden, RANK), space
    ),
    "joint": lambda d, hidden, space: JointEnergy(mlp(d + space.width, hidden, 1), space),
}
RANKING_BUILDERS = BUILDERS | {
    "assignment": lambda d, hidden, space: AssignmentEnergy(mlp(d, hidden, space.width**2), space),
}


class EnergyEstimator(BaseEstimator):  # type: ignore[misc]
    """Training and questions of p(y|x) ∝ exp g(x, y), for the estimators whose `fit` checks the data."""

    energy: str | Callable[[int, ConfigurationSpace], Energy]
    divergence: str
    samples: int | None
    hidden_layer_sizes: tuple[int, ...]
    partition_layer_sizes: tuple[int, ...]
    alpha: float
    max_epochs: int
    partition_epochs: int
    batch_size: int
    learning_rate: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    random_state: Any
    verbose: int

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags

    # -- Training.

    def _train(self, X: Any, Y: Array, space: ConfigurationSpace) -> None:
        self._check_parameters()
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._seed = seed
        self.space_ = space
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.energy_ = self._build(X.shape[1], space).to(DTYPE)
            self.partition_ = (
                None
                if self.samples is None
                else PartitionNetwork(X.shape[1], self.partition_layer_sizes, self.divergence).to(DTYPE)
            )
        y = torch.tensor(Y, dtype=DTYPE)
        space.validate(y)
        if self.samples is None:
            self._check_exact()
        if self.samples is None and self.energy == "linear":
            self._fit_convex(_dense(X), y)
        else:
            self._fit_by_minibatches(X, y, torch.Generator().manual_seed(seed))
        self.energy_.requires_grad_(False)
        if self.partition_ is not None:
            self.partition_.requires_grad_(False)

    def _check_parameters(self) -> None:
        find(self.divergence)
        one = whole(1)
        check_options(self, max_epochs=one, partition_epochs=whole(0), batch_size=one, n_iter_no_change=one)
        check_options(self, alpha=AT_LEAST_0, learning_rate=POSITIVE, tol=POSITIVE)
        if self.samples is not None:
            check_options(self, samples=one._replace(said=f"{one.said}, or None for the exact loss"))
        if self.early_stopping:
            check_options(self, validation_fraction=SHARE)
        for name in ("hidden_layer_sizes", "partition_layer_sizes"):
            value = getattr(self, name)
            widths = value if isinstance(value, Sequence) else (0,)
            if not all(isinstance(width, Integral) and int(width) >= 1 for width in widths):
                raise InputError(f"{name} must be widths such as (64,), received {value!r}")

    def _check_exact(self) -> None:
        if not self._is_small and self._independent is None:
            raise InputError(
                f"samples=None enumerates all configurations, at most {FEW}, and {self.space_!r} has "
                f"2^{self.space_.log_size / math.log(2):.1f}; name a number of samples"
            )

    @property
    def _is_small(self) -> bool:
        return isinstance(self.space_, OneHot) or self.space_.log_size < math.log(FEW) + 1e-9

    @property
    def _independent(self) -> UnaryEnergy | None:
        """The energy, if labels are independent and so all is in closed form."""
        closed = find(self.divergence).name in EXPONENTIAL and isinstance(self.space_, Subsets)
        return self.energy_ if closed and isinstance(self.energy_, UnaryEnergy) else None

    def _build(self, features: int, space: ConfigurationSpace) -> Energy:
        if callable(self.energy):
            return self.energy(features, space)
        known = RANKING_BUILDERS if isinstance(space, Permutations) else BUILDERS
        if self.energy not in known:
            raise InputError(
                f"energy must be one of {', '.join(known)}, or a function of the number of features and the "
                f"space, received {self.energy!r}{nearest(str(self.energy), known)}"
            )
        return known[self.energy](features, tuple(self.hidden_layer_sizes), space)

    def _fit_convex(self, x: Tensor, y: Tensor) -> None:
        """The linear energy by its exact loss, to the optimum."""
        network: nn.Linear = self.energy_.network  # type: ignore[assignment]
        m, d = network.weight.shape

        def objective(flat: Tensor) -> Tensor:
            weight, bias = flat[: m * d].reshape(m, d), flat[m * d :]
            scores = x @ weight.T + bias
            observed = (scores * self.space_.unary(y)).sum(-1)
            if self._independent is not None:
                value = (self.space_.unary_log_partition(scores) - observed).mean()
            else:
                every, q = self._everything()
                value = exact_partition_loss(
                    observed, scores @ self.space_.unary(every).T, self.divergence, reference=q
                )
            return value + 0.5 * self.alpha * weight.square().sum()

        start = torch.zeros(m * d + m, dtype=DTYPE)
        found, self.n_iter_ = lbfgs(
            objective, start, max_iter=self.max_epochs, tol=self.tol, verbose=self.verbose, name=self._name
        )
        with torch.no_grad():
            network.weight.copy_(found[: m * d].reshape(m, d))
            network.bias.copy_(found[m * d :])
        self.loss_curve_ = [float(objective(found))]

    def _fit_by_minibatches(self, X: Any, y: Tensor, generator: torch.Generator) -> None:
        order = torch.randperm(X.shape[0], generator=generator)
        held = math.ceil(self.validation_fraction * len(order)) if self.early_stopping else 0
        if held >= len(order):
            raise InputError(
                f"early_stopping holds out {held} of {len(order)} samples, and none is left to train with"
            )
        validation, train = order[:held], order[held:]
        named = self.energy_.named_parameters()
        penalised = [weight for name, weight in named if not name.endswith("bias")]
        parameters = [*self.energy_.parameters()]
        if self.partition_ is not None:
            parameters += self.partition_.parameters()
            first = train[: self.batch_size]
            with torch.no_grad():
                drawn = self.space_.sample((len(first), 256), generator=generator, dtype=DTYPE)
                self.partition_.start_at(self.energy_(_dense(X, first), drawn))

        def loss(indices: Tensor) -> Tensor:
            rows = train[indices]
            value = self._loss(_dense(X, rows), y[rows], generator)
            if not torch.isfinite(value):
                bounded = self.samples is not None and math.isfinite(find(self.divergence).slope)
                raise InputError(
                    f"the loss became {value.item()}: energies rose where no sample fell. Give "
                    + (f"another divergence than {self.divergence!r}, whose f* is bounded, " * bounded)
                    + "more samples, a smaller learning_rate, a larger alpha, scaled features, or "
                    "energy='linear' or 'mlp'"
                )
            penalty = sum((weight.square().sum() for weight in penalised), start=value.new_zeros(()))
            return value + 0.5 * self.alpha * penalty

        stopper = _Stopper(self, X, y, validation) if held else None
        fit = partial(
            minibatch,
            n_samples=len(train),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            generator=generator,
            verbose=self.verbose,
        )
        self.loss_curve_ = fit(
            loss, parameters, max_epochs=self.max_epochs, name=self._name, after_epoch=stopper
        )
        self.n_iter_ = len(self.loss_curve_)
        if stopper is not None:
            stopper.restore()
        if self.partition_ is not None and self.partition_epochs:
            self.energy_.requires_grad_(False)
            fit(
                loss,
                self.partition_.parameters(),
                max_epochs=self.partition_epochs,
                name=f"{self._name}, log-partition",
            )

    def _loss(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        observed: Tensor = self.energy_(x, y)
        if self.partition_ is None:
            if self._independent is not None:
                return (self._independent.log_partition(x) - observed).mean()
            every, q = self._everything()
            return exact_partition_loss(observed, self.energy_(x, every[None]), self.divergence, reference=q)
        assert self.samples is not None
        drawn = self.space_.sample((len(x), self.samples), generator=generator, dtype=DTYPE)
        return joint_partition_loss(observed, self.energy_(x, drawn), self.partition_(x), self.divergence)

    @property
    def _name(self) -> str:
        return type(self).__name__

    # -- Questions.

    def _everything(self) -> tuple[Tensor, Tensor]:
        """All configurations, and their probabilities under the reference."""
        every = self.space_.enumerate(dtype=DTYPE)  # refuses too many
        return every, self.space_.log_reference(every).exp()

    def _log_density(self, x: Tensor, y: Tensor) -> Tensor:
        """log q(y) + g(x, y): what p(y|x) grows with."""
        found: Tensor = self.energy_(x, y) + self.space_.log_reference(y)
        return found

    def _parts(self, X: Any, cells: int) -> Iterator[Tensor]:
        """Rows of X, dense, so many that each with so many energies they fit the memory."""
        if isinstance(self.energy_, JointEnergy):  # which repeats the input for every configuration
            cells *= X.shape[1] + self.space_.width
        for rows in torch.arange(X.shape[0]).split(max(1, CELLS // max(1, cells))):
            yield _dense(X, rows)

    def _log_partition(self, X: Any) -> Array:
        if self.partition_ is None:
            return self._exact_log_partition(X)
        return _array([self.partition_(x) for x in self._parts(X, 1)])

    def _exact_log_partition(self, X: Any) -> Array:
        independent = self._independent
        if independent is not None:
            shift = 1.0 if find(self.divergence).name == "kl" else 0.0
            return _array([independent.log_partition(x) - shift for x in self._parts(X, 1)])
        every, q = self._everything()
        return _array(
            [
                f_threshold(self.energy_(x, every[None]), self.divergence, reference=q)
                for x in self._parts(X, len(every))
            ]
        )

    def _decode(self, X: Any) -> Array:
        """The most probable configuration for each row: exact, but for large spaces with couplings."""
        width = self.space_.width
        if isinstance(self.energy_, UnaryEnergy | AssignmentEnergy):
            found = [self.energy_.decode(x) for x in self._parts(X, width)]
        elif self._is_small:
            every = self.space_.enumerate(dtype=DTYPE)
            parts = self._parts(X, len(every))
            found = [best_configuration(partial(self._log_density, x), every) for x in parts]
        else:
            moves = width * (width - 1) // 2 + width
            found = [self._search(x) for x in self._parts(X, RESTARTS * moves)]
        return _array(found)

    def _search(self, x: Tensor) -> Tensor:
        # Every row has the same starts, so that its answer does not depend on the rows beside it.
        generator = torch.Generator().manual_seed(self._seed)
        # From a reference near the data all would climb to the same few sets: they are uniform.
        space = Subsets(self.space_.width) if isinstance(self.space_, Subsets) else self.space_
        start = space.sample((1, RESTARTS), generator=generator, dtype=DTYPE).expand(len(x), -1, -1)
        if isinstance(self.energy_, PairwiseEnergy):
            alone = self.space_.unary_mode(self.energy_.network(x)).unsqueeze(1)
            start = torch.cat([alone, start], 1)
        return local_search(partial(self._log_density, x), start, self.space_.neighbours)


class _Stopper:
    """Ends the training when the loss of held-out rows has no new minimum, and keeps the best weights."""

    def __init__(self, model: EnergyEstimator, X: Any, y: Tensor, rows: Tensor) -> None:
        self.model, self.x, self.y = model, _dense(X, rows), y[rows]
        self.best, self.since = math.inf, 0
        self.kept: list[dict[str, Tensor]] = []
        self.modules = [each for each in (model.energy_, model.partition_) if each is not None]

    @torch.no_grad()
    def __call__(self, epoch: int) -> bool:
        # The same samples at every epoch.
        generator = torch.Generator().manual_seed(self.model._seed)
        loss = float(self.model._loss(self.x, self.y, generator))
        self.since += 1
        if loss < self.best or not self.kept:
            self.best, self.since = loss, 0
            self.kept = [copy.deepcopy(module.state_dict()) for module in self.modules]
        return self.since >= self.model.n_iter_no_change

    def restore(self) -> None:
        for module, weights in zip(self.modules, self.kept, strict=True):
            module.load_state_dict(weights)


def _dense(X: Any, rows: Tensor | None = None) -> Tensor:
    part = X if rows is None else X[rows.numpy()]
    return torch.tensor(part.toarray() if sparse.issparse(part) else np.asarray(part), dtype=DTYPE)


def _array(parts: list[Tensor]) -> Array:
    found: Array = torch.cat(parts).detach().numpy()
    return found
