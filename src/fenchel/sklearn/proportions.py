"""Linear regression of proportions: label distributions, and shares of a range."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from scipy import sparse
from sklearn.base import RegressorMixin
from sklearn.utils.validation import column_or_1d, validate_data

from fenchel.divergences import FDivergence
from fenchel.errors import InputError
from fenchel.sklearn._linear import Array, LinearModel

TOLERANCE = 1e-6  # of the sum of a row of proportions


class ProportionRegressor(RegressorMixin, LinearModel):  # type: ignore[misc]  # scikit-learn has no types
    """A linear regression of proportions, with the loss and the link of any f-divergence.

    It minimises Σ s_i L(y_i, W x_i + b) / Σ s_i + alpha / 2 ||W||², where L is the Fenchel-Young loss of the
    divergence, or its Fitzpatrick loss, and predicts the f-softargmax of W x + b. The problem is convex and
    is solved by L-BFGS in float64; Newton's method finishes small ones.

    Targets of shape (n, k), k >= 2, are proportions of k labels: rows >= 0 that sum to one. What is not is
    refused, never rescaled.

    A target of shape (n,) is a quantity between two bounds, of which the proportion is the share of the way
    from the lower to the upper one (fractional regression, Papke and Wooldridge); predictions are in the
    units of y and lie between the bounds. They are those you give, or the range of the training targets.

    Args:
        divergence: a name such as "kl" (predictions are positive), "alpha:2" (sparsemax: many are zero), or
            an `FDivergence`.
        loss: "fenchel-young", or "fitzpatrick" for "kl" and "alpha:2": tighter, with the same predictions
            where a target can be met.
        alpha: the weight of the L2 penalty, >= 0. The intercept is not penalised.
        fit_intercept: whether there is b.
        bounds: (lower, upper) of a target of shape (n,), such as (0, 1) for a proportion; None for the range
            of the training targets.
        max_iter: iterations of L-BFGS.
        tol: the largest entry of the gradient at which it stops.
        warm_start: begin with the coefficients of the fit before, if they fit.
        verbose: 1 prints every tenth iteration, 2 all.

    Attributes:
        coef_: W, (k, d), or (1, d) for a target of shape (n,).
        intercept_: b, (k,) or (1,).
        bounds_: (lower, upper), or None for a target of shape (n, k).
        n_iter_: iterations that it took.
        n_features_in_, feature_names_in_: of the features, as everywhere in scikit-learn.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.0], [1.0], [2.0]])
        >>> y = np.array([[0.0, 0.5, 0.5], [0.2, 0.4, 0.4], [0.4, 0.3, 0.3]])
        >>> model = ProportionRegressor("alpha:2", loss="fitzpatrick", alpha=1e-6).fit(X, y)
        >>> model.predict([[1.5], [-9.0]]).round(3) + 0.0
        array([[0.3 , 0.35, 0.35],
               [0.  , 0.5 , 0.5 ]])

    Reference:
        Rakotomandimby, Chancelier, de Lara and Blondel, 2024, arXiv 2405.14574 (label proportions); Blondel,
        Martins and Niculae, 2020, arXiv 1901.02324; Papke and Wooldridge, 1996, Journal of Applied
        Econometrics 11.
    """

    bounds_: tuple[float, float] | None

    def __init__(
        self,
        divergence: str | FDivergence = "kl",
        *,
        loss: str = "fenchel-young",
        alpha: float = 1e-4,
        fit_intercept: bool = True,
        bounds: tuple[float, float] | None = None,
        max_iter: int = 1000,
        tol: float = 1e-6,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.divergence = divergence
        self.loss = loss
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.bounds = bounds
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to features X (n, d), an array or a scipy sparse matrix, and targets y (n, k) or (n,)."""
        if sparse.issparse(y):
            raise InputError(
                f"y must be a dense array, received a {type(y).__name__} of shape {y.shape}; pass y.toarray()"
            )
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True
        )
        y = y.astype(np.float64)
        weights = self._weights(sample_weight, X)
        if y.ndim == 1 or y.shape[1] == 1:
            share = self._share(column_or_1d(y, warn=True), weights)
            target = np.stack([1 - share, share], 1)
        else:
            if self.bounds is not None:
                raise InputError(
                    f"bounds are those of a target of shape (n,), received bounds={self.bounds!r} and y of "
                    f"shape {y.shape}"
                )
            self.bounds_ = None
            _check_proportions(y)
            target = y
        self._minimise(X, torch.from_numpy(target), weights, 1 if self.bounds_ else y.shape[1])
        return self

    def predict(self, X: Any) -> Array:
        """Proportions (n, k) whose rows sum to one, or values between the bounds, (n,)."""
        proportions = self._probabilities(X)
        if self.bounds_ is None:
            return proportions
        lower, upper = self.bounds_
        return proportions[:, 0] * lower + proportions[:, 1] * upper

    def _share(self, y: Array, weights: Array) -> Array:
        """How far y is from the lower to the upper bound, in [0, 1]; half way where they are one."""
        counted = y[weights > 0]  # a sample without weight is as good as not there
        if self.bounds is None:
            lower, upper = float(counted.min()), float(counted.max())
        else:
            lower, upper = _checked_bounds(self.bounds)
            outside = np.flatnonzero((y < lower) | (y > upper))
            if len(outside):
                raise InputError(
                    f"y must lie in the bounds [{lower:g}, {upper:g}], received {y[outside[0]]:g} in row "
                    f"{outside[0]}"
                )
        self.bounds_ = lower, upper
        if lower == upper:
            return np.full_like(y, 0.5)
        return np.clip((y - lower) / (upper - lower), 0, 1)


def _checked_bounds(bounds: Any) -> tuple[float, float]:
    try:
        lower, upper = (float(bound) for bound in bounds)
    except (TypeError, ValueError):  # not a pair, not of numbers
        lower = upper = np.nan
    if not (np.isfinite([lower, upper]).all() and lower < upper):
        raise InputError(f"bounds must be (lower, upper) with lower < upper, received {bounds!r}")
    return lower, upper


def _check_proportions(y: Array) -> None:
    """Raise InputError unless every row is >= 0 and sums to one."""
    for row in np.flatnonzero((y < 0).any(1) | (np.abs(y.sum(1) - 1) > TOLERANCE))[:1]:
        raise InputError(
            f"y must hold proportions, rows >= 0 that sum to one; row {row} sums to {y[row].sum():.6g}, and "
            f"its least entry is {y[row].min():.6g}"
        )
