"""Label ranking by an energy-based model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from fenchel.errors import InputError
from fenchel.nn.energies import ConfigurationSpace, Energy, Permutations
from fenchel.sklearn._energy import Array, EnergyEstimator


class LabelRanker(EnergyEstimator):
    """Rankings of k items for each input: p(y|x) ∝ exp g(x, y) over permutations, log-partition learned.

    As `MultilabelEnergyClassifier`, with permutations in the place of sets. Scale the features first.

    The target Y (n, k) has the position of each item: each row a permutation of 1, ..., k, 1 for the item
    that comes first. A table that is not of whole numbers holds values to be ranked instead, the smallest
    first; ties are refused. (One item alone has no order: any column does.)

    It is no regressor in scikit-learn's sense, for the values of Y are an order: `score` is Kendall's τ.

    Args:
        energy: g: "linear" (a score for each item, linear in x), "mlp" (the same with a network), "pairwise"
            (a network, and a coupling for each pair of items: which comes first), "assignment" (a score
            for each item at each position), "bilinear", "joint", or a function of (number of features,
            space) that makes a `fenchel.nn.Energy`.
        divergence: of the loss; "generalized-kl" is the likelihood.
        samples: K, permutations drawn for each example and step; None for the exact loss by enumeration, for
            at most 6 items. With "linear" it is convex and is minimised by L-BFGS.
        hidden_layer_sizes: of the networks of the energy.
        partition_layer_sizes: of the network τ; () is linear.
        alpha: the penalty α/2 ||W||² on the weights of the energy.
        max_epochs: passes over the data; of L-BFGS, iterations.
        partition_epochs: further passes for τ alone, the energy being fixed: they bring log_partition closer
            to the exact one and leave the predictions as they are.
        batch_size: examples in a step.
        learning_rate: the first; it falls to zero along half a cosine. The linear energy wants more, 5e-2.
        early_stopping: hold out examples, end when their loss has no new minimum, and keep the best.
        validation_fraction: the share that is held out.
        n_iter_no_change: how many epochs without a new minimum end the training.
        tol: of L-BFGS, the largest entry of the gradient at which it ends.
        random_state: seed of the networks, the samples and the order.
        verbose: 0 is silent, 1 prints some epochs, 2 prints all.

    Attributes:
        energy_: g, a module.
        partition_: τ, a module; None with samples=None.
        space_: the permutations.
        loss_curve_: the mean loss of each epoch.
        n_iter_: epochs, or iterations.
        n_features_in_: the number of features.

    Example:
        >>> import numpy as np
        >>> X = np.array([[-1.0], [1.0]] * 20)
        >>> Y = np.array([[1, 2, 3], [3, 2, 1]] * 20)
        >>> ranker = LabelRanker("linear", samples=None, alpha=0.1).fit(X, Y)
        >>> ranker.predict([[-1.0], [1.0]])
        array([[1, 2, 3],
               [3, 2, 1]])
        >>> ranker.score(X, Y)
        1.0

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528.
    """

    def __init__(
        self,
        energy: str | Callable[[int, ConfigurationSpace], Energy] = "mlp",
        *,
        divergence: str = "generalized-kl",
        samples: int | None = 100,
        hidden_layer_sizes: tuple[int, ...] = (64,),
        partition_layer_sizes: tuple[int, ...] = (64,),
        alpha: float = 1e-4,
        max_epochs: int = 100,
        partition_epochs: int = 0,
        batch_size: int = 32,
        learning_rate: float = 2e-2,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-6,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.energy = energy
        self.divergence = divergence
        self.samples = samples
        self.hidden_layer_sizes = hidden_layer_sizes
        self.partition_layer_sizes = partition_layer_sizes
        self.alpha = alpha
        self.max_epochs = max_epochs
        self.partition_epochs = partition_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.two_d_labels = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags

    def fit(self, X: Any, y: Any) -> LabelRanker:
        """Train on X (n, d), dense or sparse, and the positions y (n, k).

        Raises:
            InputError: a parameter, or a row of y, that does not fit; ValueError where scikit-learn finds it.
        """
        _refuse_sparse(y)
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True
        )
        positions = positions_of(y)
        self._train(X, positions, Permutations(positions.shape[1]))
        return self

    def predict(self, X: Any) -> Array:
        """The position of each item in the ranking of highest energy, (n, k), from 1.

        Exact for "linear", "mlp" and "assignment" and for at most 6 items, else by local search.
        """
        return self._decode(self._checked(X)).astype(np.int64)

    def log_partition(self, X: Any) -> Array:
        """τ(x), (n,), as learned; with samples=None the exact one.

        For "generalized-kl" it is log E_q exp g(x, y) with q uniform, and log Σ_y exp g is τ + log k!.
        """
        return self._log_partition(self._checked(X))

    def exact_log_partition(self, X: Any) -> Array:
        """The τ(x) that the energy calls for, (n,), by enumeration, for at most 9 items."""
        return self._exact_log_partition(self._checked(X))

    def score(self, X: Any, y: Any) -> float:
        """The mean over examples of Kendall's τ: the share of pairs in the right order less the others'.

        Raises:
            InputError: y does not rank the items of fit.
        """
        _refuse_sparse(y)
        X = self._checked(X)
        positions = positions_of(check_array(y, dtype=np.float64, ensure_2d=False))
        if positions.shape != (X.shape[0], self.space_.width):
            raise InputError(
                f"y must rank {self.space_.width} items for {X.shape[0]} rows of X, received shape "
                f"{positions.shape}"
            )
        pairs = self.space_.pairs(torch.tensor(positions))
        found = self.space_.pairs(torch.tensor(self._decode(X)))
        return float((pairs * found).mean()) if pairs.shape[1] else 1.0

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)


def _refuse_sparse(y: Any) -> None:
    if sparse.issparse(y):
        raise InputError(
            f"y must be a dense table of positions, received a sparse one of shape {y.shape}; y.toarray() is "
            "dense"
        )


def positions_of(y: Array) -> Array:
    """Positions 1, ..., k from positions, or from values without ties, of which the smallest is first.

    Raises:
        InputError: not a table, or a row that is no ranking; the row is quoted.
    """
    if y.ndim != 2:
        raise InputError(f"y must have one row of positions for each example, (n, k), received {y.shape}")
    y = np.asarray(y, dtype=np.float64)
    k = y.shape[1]
    if k == 1:
        return np.ones_like(y)
    ordered = np.sort(y, axis=1)
    whole = bool((y == np.round(y)).all())
    wrong = (ordered != np.arange(1, k + 1)).any(1) if whole else (np.diff(ordered, axis=1) == 0).any(1)
    if wrong.any():
        row = int(wrong.argmax())
        wanted = f"a permutation of 1, ..., {k}" if whole else "values without ties"
        raise InputError(
            f"row {row} of y must be {wanted}, received {y[row].tolist()}: a position is repeated or missing"
        )
    return y.argsort(axis=1).argsort(axis=1) + 1.0
