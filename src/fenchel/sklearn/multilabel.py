"""Multilabel classification by an energy-based model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from fenchel.decoding import gibbs_marginals
from fenchel.divergences import divergence as find
from fenchel.errors import InputError
from fenchel.nn.energies import ConfigurationSpace, Energy, OneHot, Subsets
from fenchel.operators import f_softargmax
from fenchel.sklearn._energy import EXPONENTIAL, Array, EnergyEstimator, _array

REFERENCES = ("uniform", "frequencies")
CHAINS, SWEEPS = 8, 50  # of the estimate of marginals where there are too many sets


class MultilabelEnergyClassifier(ClassifierMixin, EnergyEstimator):  # type: ignore[misc]
    """Sets of labels with dependencies between them: p(y|x) ∝ exp g(x, y), log-partition learned.

    An energy g scores whole sets of labels, and a second network τ(x) learns its log-partition; both
    minimise E[τ(x) - g(x, y)] + E[exp(g(x, y') - τ(x))] - 1 over sets y' drawn uniformly, by AdamW on
    mini-batches. Scale the features first.

    Sets drawn uniformly seldom resemble those of the data where labels are many and most of them absent: the
    energy then rises where no sample fell, and may end in an error. reference="frequencies" draws the labels
    as often as they occur instead, and the model is p(y|x) ∝ q(y) exp g(x, y).

    A one-dimensional y gives an ordinary classifier: the configurations are then the single labels, of
    which exactly one holds, not the sets.

    Args:
        energy: g: "linear" <Wx + b, y> (independent labels), "mlp" (the same with a network), "pairwise" (a
            network, and a coupling for each pair of labels), "bilinear" (features of x against features
            of y), "joint" (a network of both), or a function of (number of features, space) that makes a
            `fenchel.nn.Energy`.
        divergence: of the loss; "generalized-kl" is the likelihood, "alpha:2" sparsemax's over the sets.
        reference: q, that sets are drawn from: "uniform", or "frequencies", where each label is drawn by
            itself as often as it occurs in y (its count plus one half, of n + 1). The latter is for sets of
            labels and the likelihood ("kl", "generalized-kl").
        samples: K, sets drawn for each example and step; None for the exact loss, by enumeration (at most
            2^12 sets) or in closed form ("linear", "mlp"). With "linear" the exact loss is convex and is
            minimised by L-BFGS.
        hidden_layer_sizes: of the networks of the energy.
        partition_layer_sizes: of the network τ; () is linear.
        alpha: the penalty α/2 ||W||² on the weights of the energy.
        max_epochs: passes over the data; of L-BFGS, iterations.
        partition_epochs: further passes for τ alone, the energy being fixed: they bring log_partition closer
            to the exact one and leave the predictions as they are.
        batch_size: examples in a step.
        learning_rate: the first; it falls to zero along half a cosine.
        early_stopping: hold out examples, end when their loss has no new minimum, and keep the best.
        validation_fraction: the share that is held out.
        n_iter_no_change: how many epochs without a new minimum end the training.
        tol: of L-BFGS, the largest entry of the gradient at which it ends.
        random_state: seed of the networks, the samples and the order.
        verbose: 0 is silent, 1 prints some epochs, 2 prints all.

    Attributes:
        classes_: the labels: their columns, or the values of a one-dimensional y.
        energy_: g, a module.
        partition_: τ, a module; None with samples=None.
        space_: the configurations.
        loss_curve_: the mean loss of each epoch.
        n_iter_: epochs, or iterations.
        n_features_in_: the number of features.

    Example:
        >>> import numpy as np
        >>> X = np.repeat([[-1.0], [1.0]], 50, axis=0)
        >>> Y = np.repeat([[0, 1], [1, 0]], 50, axis=0)  # exactly one of the two labels
        >>> model = MultilabelEnergyClassifier("linear", samples=None, alpha=0.1).fit(X, Y)
        >>> model.predict([[-1.0], [1.0]])
        array([[0, 1],
               [1, 0]])
        >>> bool(np.allclose(model.log_partition(X), model.exact_log_partition(X)))
        True

    Reference:
        Sander, Roulet, Liu and Blondel, 2025, arXiv 2501.18528.
    """

    def __init__(
        self,
        energy: str | Callable[[int, ConfigurationSpace], Energy] = "pairwise",
        *,
        divergence: str = "generalized-kl",
        reference: str = "uniform",
        samples: int | None = 10,
        hidden_layer_sizes: tuple[int, ...] = (64,),
        partition_layer_sizes: tuple[int, ...] = (64,),
        alpha: float = 1e-4,
        max_epochs: int = 100,
        partition_epochs: int = 0,
        batch_size: int = 32,
        learning_rate: float = 5e-3,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-6,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.energy = energy
        self.divergence = divergence
        self.reference = reference
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
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any) -> MultilabelEnergyClassifier:
        """Train on X (n, d), dense or sparse, and y: indicators (n, m), or one label of several, (n,).

        Raises:
            InputError: a parameter, or y, that does not fit; ValueError where scikit-learn finds it.
        """
        y = y.toarray() if sparse.issparse(y) else y
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True)
        check_classification_targets(y)
        if self.reference not in REFERENCES:
            raise InputError(f"reference must be one of {', '.join(REFERENCES)}, received {self.reference!r}")
        self._multilabel = type_of_target(y) == "multilabel-indicator"
        if self._multilabel:
            self.classes_ = np.arange(y.shape[1])
            self._train(X, y, self._subsets(y))
            return self
        if self.reference != "uniform":
            raise InputError(f"reference={self.reference!r} is for sets of labels, and y has one dimension")
        if y.ndim == 2 and y.shape[1] > 1:
            raise InputError(f"y must hold 0 and 1, one column a label, received the row {y[0].tolist()}")
        self.classes_, indices = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y has one class, {self.classes_[0]}; at least two are needed")
        self._train(X, np.eye(len(self.classes_))[indices], OneHot(len(self.classes_)))
        return self

    def _subsets(self, y: Array) -> Subsets:
        if self.reference == "uniform":
            return Subsets(y.shape[1])
        if find(self.divergence).name not in EXPONENTIAL:
            raise InputError(
                f"reference={self.reference!r} needs a divergence of {', '.join(EXPONENTIAL)}, received "
                f"{self.divergence!r}"
            )
        frequencies = ((y != 0).sum(0) + 0.5) / (len(y) + 1)
        return Subsets(y.shape[1], tuple(frequencies.tolist()))

    def predict(self, X: Any) -> Array:
        """The most probable set, (n, m) of 0 and 1; for a one-dimensional y the label, (n,).

        Exact for "linear" and "mlp" and for at most 2^12 sets, else by local search from several starts.
        """
        found = self._decode(self._checked(X))
        return found.astype(np.int64) if self._multilabel else self.classes_[found.argmax(1)]

    def predict_proba(self, X: Any) -> Array:
        """P(label | x), (n, m): the marginals of p(y|x); for a one-dimensional y each row sums to 1.

        Exact for at most 2^12 sets and for independent labels, else an estimate by Gibbs sampling.
        """
        X = self._checked(X)
        if self._is_small:
            every, q = self._everything()
            return _array(
                [
                    f_softargmax(self.energy_(x, every[None]), self.divergence, reference=q) @ every
                    for x in self._parts(X, len(every))
                ]
            )
        independent = self._independent
        if independent is not None:
            assert isinstance(self.space_, Subsets)
            return _array([self.space_.marginals(independent.network(x)) for x in self._parts(X, 1)])
        return _array([self._gibbs(x) for x in self._parts(X, 2 * CHAINS * self.space_.width)])

    def log_partition(self, X: Any) -> Array:
        """τ(x), (n,), as learned; with samples=None the exact one.

        For "generalized-kl" it is log E_q exp g(x, y), and with q uniform log Σ_y exp g is τ + log |Y|.
        """
        return self._log_partition(self._checked(X))

    def exact_log_partition(self, X: Any) -> Array:
        """The τ(x) that the energy calls for, (n,), by enumeration of at most 2^20 sets."""
        return self._exact_log_partition(self._checked(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of examples whose whole set, or label, is right.

        Raises:
            InputError: y has another number of labels than the training, a class that it had not, or what is
                neither 0 nor 1.
        """
        y = y.toarray() if sparse.issparse(y) else np.asarray(y)
        check_is_fitted(self)
        if self._multilabel:
            if y.shape[1:] != self.classes_.shape:
                raise InputError(
                    f"y must have the {len(self.classes_)} labels of fit, received shape {y.shape}"
                )
            self.space_.validate(torch.tensor(y.astype(np.float64)))
        elif len(unseen := np.setdiff1d(y, self.classes_)):
            raise InputError(f"y has the class {unseen.tolist()[0]!r}; fit saw {self.classes_.tolist()}")
        return float(super().score(X, y, sample_weight))

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)

    def _gibbs(self, x: Tensor) -> Tensor:
        record = find(self.divergence)
        tau = None if self.partition_ is None else self.partition_(x).unsqueeze(-1)

        def log_density(y: Tensor) -> Tensor:
            if record.name in EXPONENTIAL or tau is None:
                return self._log_density(x, y)
            return record.conjugate_derivative(self.energy_(x, y) - tau).log()  # q is uniform

        start = self._search(x).unsqueeze(1).expand(-1, CHAINS, -1)
        generator = torch.Generator().manual_seed(self._seed)
        return gibbs_marginals(log_density, start, sweeps=SWEEPS, generator=generator)
