"""Feature selection by learning: a linear model behind a soft top-k mask of its features."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.sparsefuncs import mean_variance_axis
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from fenchel.errors import InputError
from fenchel.operators import topk_mask
from fenchel.operators.topk import check_norm
from fenchel.sklearn._fitting import AT_LEAST_0, POSITIVE, check_options, minibatch, tensor_of, whole

Array = NDArray[Any]
LOSSES = ("auto", "softmax", "squared")


class SoftTopKSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Select the k features that a linear model does best with, all learned together by gradients.

    It minimises the loss of (m ⊙ x) W + b plus alpha / 2 ||W||² over W, b and the scores θ of the features,
    where m = topk_mask(θ, k) is between 0 and 1 with sum k. The regularization of the mask falls during
    the training, so that it begins with all features and ends with k. Mini-batches of standardised
    features, with AdamW.

    Unlike a test of one feature at a time, of two features that say the same it needs only one. Features
    that are of use only together, each hiding what the other says, may lose to features that are of use
    alone: all compete from the beginning, and the problem is not convex.

    Args:
        n_features_to_select: k, at least 1; half of the features by default.
        loss: "softmax" (cross-entropy, for classes), "squared" (for numbers, one or several a sample), or
            "auto", which takes whole numbers and names for classes.
        alpha: the weight of the L2 penalty, >= 0. It favours a mask of 1 where it is not 0.
        regularization: of the mask at the beginning and at the end; see `fenchel.topk_mask`.
        p: the order of its norm, in (1, 2].
        max_epochs: how many times all samples are seen.
        batch_size: samples a step.
        learning_rate: at the beginning; it falls to 0 along half a cosine.
        random_state: of the order of the samples.
        verbose: 1 prints the loss ten times, 2 after every epoch.

    Attributes:
        scores_: θ, (d,); -inf for a constant feature, which is never selected.
        n_features_to_select_: k.
        loss_curve_: the mean loss of every epoch.
        n_features_in_, feature_names_in_: of the features, as everywhere in scikit-learn.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(200, 6))
        >>> y = X[:, 1] - 2 * X[:, 4]
        >>> SoftTopKSelector(2, random_state=0).fit(X, y).get_support()
        array([False,  True, False, False,  True, False])

    Reference:
        Sander, Puigcerver, Djolonga, Peyré and Blondel, 2023, arXiv 2302.01425 (the mask).
    """

    def __init__(
        self,
        n_features_to_select: int | None = None,
        *,
        loss: str = "auto",
        alpha: float = 1e-3,
        regularization: tuple[float, float] = (1.0, 0.01),
        p: float = 4 / 3,
        max_epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 0.05,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_features_to_select = n_features_to_select
        self.loss = loss
        self.alpha = alpha
        self.regularization = regularization
        self.p = p
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the scores from features X (n, d), an array or a scipy sparse matrix, and targets y."""
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, ensure_min_samples=2
        )
        self._check_options()
        target, outputs = self._target(y)
        mean, scale, varies = _moments(X)
        k = self._number(X.shape[1], varies)
        seed = int(check_random_state(self.random_state).randint(2**31))
        generator = torch.Generator().manual_seed(seed)

        free = torch.zeros(int(varies.sum()), dtype=torch.float64, requires_grad=True)
        weight = torch.zeros(X.shape[1], outputs, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
        place = torch.from_numpy(np.flatnonzero(varies))
        masked = torch.full((X.shape[1],), -torch.inf, dtype=torch.float64)
        first, last = self.regularization
        strength = first

        def anneal(epoch: int) -> bool:
            nonlocal strength
            strength = first * (last / first) ** ((epoch + 1) / max(self.max_epochs - 1, 1))
            return False

        def loss(indices: Tensor) -> Tensor:
            mask = topk_mask(masked.index_put((place,), free), k, regularization=strength, p=self.p)
            table = (mask / scale).unsqueeze(-1) * weight
            predicted = tensor_of(X[indices.numpy()]) @ table + (bias - mean @ table)
            if target.is_floating_point():
                fit = 0.5 * (predicted - target[indices]).square().sum(-1).mean()
            else:
                fit = torch.nn.functional.cross_entropy(predicted, target[indices])
            return fit + 0.5 * self.alpha * weight.square().sum()

        with torch.no_grad():  # a small start of the weights, so that the scores have a gradient
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        self.loss_curve_ = minibatch(
            loss,
            [free, weight, bias],  # type: ignore[list-item]
            n_samples=X.shape[0],
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            generator=generator,
            verbose=self.verbose,
            name=type(self).__name__,
            after_epoch=anneal,
        )
        self.scores_ = masked.index_put((place,), free.detach()).numpy()
        self.n_features_to_select_ = k
        return self

    def _get_support_mask(self) -> Array:
        check_is_fitted(self)
        support = np.zeros(len(self.scores_), dtype=bool)
        support[np.argsort(-self.scores_, kind="stable")[: self.n_features_to_select_]] = True
        return support

    def _check_options(self) -> None:
        check_options(self, max_epochs=whole(1), batch_size=whole(1))
        check_options(self, alpha=AT_LEAST_0, learning_rate=POSITIVE, p=POSITIVE)
        try:
            first, last = (float(value) for value in self.regularization)
        except (TypeError, ValueError):  # not a pair, not of numbers
            raise InputError(
                f"regularization must be two numbers, at the beginning and at the end, received "
                f"{self.regularization!r}"
            ) from None
        for value in (first, last):
            check_norm(value, self.p, "threshold")
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, received {self.loss!r}")

    def _target(self, y: Array) -> tuple[Tensor, int]:
        """Classes (n,), or standardised numbers (n, t); and the number of outputs of the model."""
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        classes = kind in ("binary", "multiclass")
        if self.loss == "softmax" and not classes:
            raise InputError(f"loss='softmax' needs a class for each sample, received a {kind} target")
        if self.loss != "squared" and classes:
            names, index = np.unique(y, return_inverse=True)
            if len(names) < 2:
                raise InputError(
                    f"{type(self).__name__} needs samples of at least two classes, received one class: "
                    f"{names[0].item()!r}"
                )
            return torch.from_numpy(index.reshape(-1)), len(names)
        if self.loss == "auto" and not kind.startswith("continuous"):
            raise InputError(f"y must be classes (n,) or numbers, received a {kind} target; see `loss`")
        numbers = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        spread = numbers.std(0)
        if not (spread > 0).all():
            raise InputError(
                f"a target that is {numbers[0, spread.argmin()]:g} for all samples selects nothing"
            )
        return torch.from_numpy((numbers - numbers.mean(0)) / spread), numbers.shape[1]

    def _number(self, features: int, varies: Array) -> int:
        """k; raises InputError unless so many features can be selected."""
        k = self.n_features_to_select
        if k is None:
            k = max(1, min(features // 2, int(varies.sum())))
        if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= features:
            raise InputError(
                f"n_features_to_select must be an integer in [1, {features}], the number of features, "
                f"received {k!r}"
            )
        if k > varies.sum():
            constant = np.flatnonzero(~varies)
            raise InputError(
                f"{len(constant)} of {features} features are constant, such as column {constant[0]}, and "
                f"cannot be selected, but n_features_to_select is {k}"
            )
        return int(k)


def _moments(X: Any) -> tuple[Tensor, Tensor, Array]:
    """Mean and standard deviation of every feature (1 where it is constant), and whether it varies."""
    if sparse.issparse(X):
        mean, variance = mean_variance_axis(X, axis=0)
    else:
        mean, variance = X.mean(0), X.var(0)
    # What rounding makes of a constant is no variation.
    varies = variance > (X.shape[0] * np.finfo(np.float64).eps * np.abs(mean)) ** 2
    scale = np.where(varies, np.sqrt(variance), 1.0)
    return torch.from_numpy(np.asarray(mean)), torch.from_numpy(scale), varies
