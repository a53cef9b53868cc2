"""Linear classification with the loss of any f-divergence."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from fenchel.divergences import FDivergence
from fenchel.errors import InputError
from fenchel.sklearn._linear import Array, LinearModel


class FenchelYoungClassifier(ClassifierMixin, LinearModel):  # type: ignore[misc]  # scikit-learn has no types
    """A linear classifier, with the loss and the probabilities of any f-divergence.

    It minimises Σ s_i L(y_i, W x_i + b) / Σ s_i + alpha / 2 ||W||², where L is the Fenchel-Young loss of the
    divergence, or its Fitzpatrick loss, and s_i are the weights of samples and classes. The problem is convex
    and is solved by L-BFGS in float64; Newton's method finishes small ones.

    With "kl" it is multinomial logistic regression: `sklearn.linear_model.LogisticRegression` with
    C = 1 / (alpha Σ s_i). As there, two classes have one score, and the other's is 0. With "alpha:2",
    "alpha:1.5" and "chi2" many probabilities are exactly zero.

    Args:
        divergence: a name such as "kl", "js", "alpha:1.5", or an `FDivergence`.
        loss: "fenchel-young", or "fitzpatrick" for "kl" and "alpha:2": tighter, with the same probabilities.
        alpha: the weight of the L2 penalty, >= 0. The intercept is not penalised.
        fit_intercept: whether there is b.
        class_weight: None, "balanced", or weights by class.
        max_iter: iterations of L-BFGS.
        tol: the largest entry of the gradient at which it stops.
        warm_start: begin with the coefficients of the fit before, if they fit.
        verbose: 1 prints every tenth iteration, 2 all.

    Attributes:
        classes_: the classes, sorted, (k,).
        coef_: W, (k, d), or (1, d) for two classes.
        intercept_: b, (k,) or (1,).
        n_iter_: iterations that it took.
        n_features_in_, feature_names_in_: of the features, as everywhere in scikit-learn.

    Example:
        >>> import numpy as np
        >>> X, y = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]]), ["a", "a", "b", "c", "c"]
        >>> model = FenchelYoungClassifier("alpha:2", alpha=0.1).fit(X, y)
        >>> model.predict([[-3.0], [3.0]])
        array(['a', 'c'], dtype='<U1')
        >>> model.predict_proba([[-3.0]]).round(2)
        array([[1., 0., 0.]])

    Reference:
        Blondel, Martins and Niculae, 2020, arXiv 1901.02324; Roulet et al., 2025, arXiv 2501.18537;
        Rakotomandimby, Chancelier, de Lara and Blondel, 2024, arXiv 2405.14574 (Fitzpatrick losses).
    """

    classes_: Array

    def __init__(
        self,
        divergence: str | FDivergence = "kl",
        *,
        loss: str = "fenchel-young",
        alpha: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: Any = None,
        max_iter: int = 1000,
        tol: float = 1e-6,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.divergence = divergence
        self.loss = loss
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to features X (n, d), an array or a scipy sparse matrix, and classes y (n,)."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        weights = self._weights(sample_weight, X)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"{type(self).__name__} needs samples of at least two classes, received one class: "
                f"{self.classes_[0].item()!r}"
            )
        if self.class_weight is not None:
            of_class = compute_sample_weight(self.class_weight, y)
            weights = weights * of_class
            if not (np.isfinite(of_class).all() and (of_class >= 0).all() and weights.sum() > 0):
                raise InputError(
                    "class_weight must be >= 0 and finite, and leave a sample of positive weight, received "
                    f"{self.class_weight!r}"
                )
        outputs = 1 if len(self.classes_) == 2 else len(self.classes_)
        self._minimise(X, torch.from_numpy(index), weights, outputs)
        return self

    def decision_function(self, X: Any) -> Array:
        """Scores (n, k); for two classes those of the second, (n,)."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X: Any) -> Array:
        """The f-softargmax of the scores, (n, k), in the order of `classes_`."""
        return self._probabilities(X)

    def predict(self, X: Any) -> Array:
        """The classes of the highest scores, (n,)."""
        scores = self.decision_function(X)
        best = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        predicted: Array = self.classes_[best]
        return predicted
