"""The convex linear model under the classifier and the regressor of proportions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.errors import InputError
from fenchel.losses import fenchel_young_loss, fitzpatrick_logistic_loss, fitzpatrick_sparsemax_loss
from fenchel.operators import f_softargmax
from fenchel.sklearn._fitting import AT_LEAST_0, POSITIVE, check_options, lbfgs, tensor_of, whole

Array = NDArray[Any]
NEWTON_SIZE = 128  # coefficients up to which a Hessian is made
NEWTON_STEPS = 8
FITZPATRICK = {"kl": fitzpatrick_logistic_loss, "alpha:2": fitzpatrick_sparsemax_loss}


def row_losses(loss: str, divergence: str | FDivergence) -> Callable[[Tensor, Tensor], Tensor]:
    """(scores (n, k), target) -> losses (n,), by name."""
    record = find(divergence)
    if loss == "fenchel-young":
        return partial(fenchel_young_loss, divergence=record, reduction="none")
    if loss != "fitzpatrick":
        raise InputError(f"loss must be 'fenchel-young' or 'fitzpatrick', received {loss!r}")
    if record.name not in FITZPATRICK:
        raise InputError(
            f"the Fitzpatrick loss is there for the divergences {', '.join(FITZPATRICK)}, received "
            f"{record.name!r}"
        )
    return partial(FITZPATRICK[record.name], reduction="none")


@dataclass
class _Problem:
    """The objective of a table of coefficients, (outputs, columns); columns past `features` are free."""

    losses: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    target: Tensor
    shares: Tensor
    alpha: float
    features: int

    def value(self, table: Tensor) -> Tensor:
        fit = self.shares @ self.losses(_two_columns(self.x @ table.T), self.target)
        return fit + 0.5 * self.alpha * table[:, : self.features].square().sum()

    def polished(self, table: Tensor) -> Tensor:
        """Newton's method from a solution, which it makes exact to rounding.

        So that the same data give the same model, whatever the order and the repetition of their samples.
        """
        x = self.x.to_dense()
        penalty = torch.full_like(table, self.alpha)
        penalty[:, self.features :] = 0
        gradient, curvature = self._derivatives(x, table, penalty)
        for _ in range(NEWTON_STEPS):
            # Of least norm: a shift of all intercepts changes nothing.
            step = torch.linalg.lstsq(curvature, gradient.reshape(-1, 1), driver="gelsd").solution
            moved = table - step.view_as(table)
            found = self._derivatives(x, moved, penalty)
            if not found[0].abs().max() < gradient.abs().max():
                break
            table, (gradient, curvature) = moved, found
        return table

    def _derivatives(self, x: Tensor, table: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (outputs, columns) and the Hessian of their number."""
        scores = (x @ table.T).requires_grad_()
        losses = self.losses(_two_columns(scores), self.target)
        (slope,) = torch.autograd.grad(losses.sum(), scores, create_graph=True)
        gradient = (self.shares.unsqueeze(-1) * slope.detach()).T @ x + penalty * table
        blocks = []
        for each in slope.unbind(-1):
            (second,) = torch.autograd.grad(each.sum(), scores, retain_graph=True)
            weights = (self.shares.unsqueeze(-1) * second).unbind(-1)
            blocks.append(torch.cat([x.T @ (w.unsqueeze(-1) * x) for w in weights], -1))
        return gradient, torch.cat(blocks) + penalty.flatten().diag()


class LinearModel(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A linear map from features to scores, fitted with a convex loss of the scores and an L2 penalty."""

    loss: str
    divergence: str | FDivergence
    alpha: float
    fit_intercept: bool
    max_iter: int
    tol: float
    warm_start: bool
    verbose: int
    coef_: Array
    intercept_: Array
    n_iter_: int

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _weights(self, sample_weight: Any, X: Any) -> Array:
        weights: Array = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return weights

    def _minimise(self, X: Any, target: Tensor, weights: Array, outputs: int) -> None:
        """Find coef_ (outputs, d) and intercept_: one output stands for two classes, of scores 0 and s."""
        check_options(self, alpha=AT_LEAST_0, max_iter=whole(1), tol=POSITIVE)
        features = X.shape[1]
        if self.fit_intercept:
            ones = np.ones((X.shape[0], 1))
            X = sparse.hstack([X, ones], format="csr") if sparse.issparse(X) else np.hstack([X, ones])
        shares = torch.from_numpy(weights / weights.sum())
        problem = _Problem(
            row_losses(self.loss, self.divergence), tensor_of(X), target, shares, self.alpha, features
        )
        start = torch.zeros(outputs, X.shape[1], dtype=torch.float64)
        if self.warm_start and getattr(self, "coef_", np.empty(0)).shape == (outputs, features):
            start[:, :features] = torch.from_numpy(self.coef_)
            start[:, features:] = torch.from_numpy(self.intercept_[:, None])
        solution, self.n_iter_ = lbfgs(
            lambda point: problem.value(point.view_as(start)),
            start.flatten(),
            max_iter=self.max_iter,
            tol=self.tol,
            verbose=self.verbose,
            name=type(self).__name__,
        )
        table = solution.view_as(start)
        if self.n_iter_ < self.max_iter and table.numel() <= NEWTON_SIZE:
            table = problem.polished(table)
        self.coef_ = table[:, :features].numpy().copy()
        self.intercept_ = table[:, features:].numpy().sum(1)  # of one column, or none

    def _scores(self, X: Any) -> Array:
        """X coef_ᵀ + intercept_, (n, outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        scores: Array = X @ self.coef_.T + self.intercept_
        return scores

    def _probabilities(self, X: Any) -> Array:
        """The f-softargmax of the scores, (n, k)."""
        scores = _two_columns(torch.from_numpy(self._scores(X)))
        probabilities: Array = f_softargmax(scores, self.divergence).numpy()
        return probabilities


def _two_columns(scores: Tensor) -> Tensor:
    """Scores (n, k); a single column s becomes (0, s)."""
    return torch.nn.functional.pad(scores, (1, 0)) if scores.shape[1] == 1 else scores
