"""What the estimators share: data as tensors, and two ways to minimise, which say how they go."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import optimize, sparse
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fenchel.errors import InputError

GRADIENT_NORM = 5.0  # the clip of mini-batch steps
LINES = 10  # that a fit prints with verbose=1


class Rule(NamedTuple):
    """What an option of an estimator must be."""

    kind: type
    allows: Callable[[Any], bool]
    said: str


AT_LEAST_0 = Rule(Real, lambda x: x >= 0, "a number, at least 0 and finite")
POSITIVE = Rule(Real, lambda x: x > 0, "a number, positive and finite")
SHARE = Rule(Real, lambda x: 0 < x < 1, "a number in (0, 1)")


def whole(least: int) -> Rule:
    """An integer that is not below `least`."""
    return Rule(Integral, lambda x: x >= least, f"an integer, at least {least}")


def check_options(model: object, **rules: Rule) -> None:
    """Raise InputError unless the attributes of these names are what they must be."""
    for name, rule in rules.items():
        value = getattr(model, name)
        fits = isinstance(value, rule.kind) and not isinstance(value, bool)
        if not (fits and np.isfinite(value) and rule.allows(value)):
            raise InputError(f"{name} must be {rule.said}, received {value!r}")


def tensor_of(X: Any) -> Tensor:
    """X (n, d), an array or a scipy sparse matrix, in float64: strided, or sparse CSR."""
    if not sparse.issparse(X):
        # A copy: torch knows no read-only arrays.
        return torch.tensor(np.asarray(X, dtype=np.float64))
    rows = sparse.csr_array(X)
    rows.sum_duplicates()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(rows.indptr.astype(np.int64)),
            torch.from_numpy(rows.indices.astype(np.int64)),
            torch.from_numpy(rows.data.astype(np.float64)),
            size=rows.shape,
            check_invariants=True,
        )


def lbfgs(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    max_iter: int,
    tol: float,
    verbose: int = 0,
    name: str,
) -> tuple[Tensor, int]:
    """Minimise a convex `objective` of one flat float64 tensor; returns the solution and the iterations.

    It stops when no entry of the gradient is above `tol`, as scikit-learn's linear models do.
    """
    iterations = 0

    def value_and_gradient(x: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        point = torch.tensor(x, requires_grad=True)
        value = objective(point)
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.numpy()

    def tell(intermediate_result: Any) -> None:
        nonlocal iterations
        iterations += 1
        if verbose and (verbose > 1 or iterations % LINES == 1):
            print(f"[{name}] iteration {iterations}: objective {intermediate_result.fun:.6g}")

    found = optimize.minimize(
        value_and_gradient,
        start.detach().numpy(),
        jac=True,
        method="L-BFGS-B",
        callback=tell,
        options={
            "maxiter": max_iter,
            "maxls": 50,
            "maxfun": 51 * max_iter,
            "gtol": tol,
            # This rule, on the change of the value, stops short of small tolerances.
            "ftol": 64 * np.finfo(float).eps,
        },
    )
    if verbose:
        print(f"[{name}] {found.nit} iterations: objective {found.fun:.6g}")
    if not found.success:
        where = f"in max_iter={max_iter} iterations" if found.nit >= max_iter else f"after {found.nit} steps"
        warnings.warn(
            f"{name} did not converge {where} (largest gradient {np.abs(found.jac).max():.2g}, tol={tol}); "
            "increase max_iter, or scale the features",
            ConvergenceWarning,
            stacklevel=3,
        )
    return torch.from_numpy(found.x), int(found.nit)


def minibatch(
    loss: Callable[[Tensor], Tensor],
    parameters: Iterable[torch.nn.Parameter],
    *,
    n_samples: int,
    max_epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    generator: torch.Generator,
    verbose: int = 0,
    name: str,
    after_epoch: Callable[[int], bool] | None = None,
) -> list[float]:
    """Minimise the mean of `loss(indices)` over mini-batches with AdamW; returns the mean loss of each epoch.

    Steps are clipped and the learning rate falls to zero along half a cosine. `after_epoch(epoch)` may
    end the training by returning True.
    """
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_epochs)
    curve: list[float] = []
    for epoch in range(max_epochs):
        total = 0.0
        for indices in torch.randperm(n_samples, generator=generator).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            value = loss(indices)
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, GRADIENT_NORM)
            optimizer.step()
            total += float(value.detach()) * len(indices)
        schedule.step()
        curve.append(total / n_samples)
        if verbose and (verbose > 1 or epoch % max(1, max_epochs // LINES) == 0 or epoch == max_epochs - 1):
            print(f"[{name}] epoch {epoch + 1} of {max_epochs}: loss {curve[-1]:.6g}")
        if after_epoch is not None and after_epoch(epoch):
            break
    return curve
