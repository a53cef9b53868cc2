"""Random transport problems, and transport solved by scipy."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor


def problem(m: int, n: int, *batch: int, mass: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances of points in the unit square, and marginals of one mass."""
    x, y = (torch.rand(*batch, size, 2, dtype=torch.float64) for size in (m, n))
    a, b = (torch.rand(*batch, size, dtype=torch.float64) + 1.0 for size in (m, n))
    return torch.cdist(x, y).square(), *(mass * z / z.sum(-1, keepdim=True) for z in (a, b))


def marginal_matrix(m: int, n: int) -> np.ndarray:
    """The matrix whose product with T.ravel() is the row sums, then the column sums."""
    return np.vstack([np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))])


def linear_program(cost: Tensor, a: Tensor, b: Tensor) -> float:
    """min <T, C>, unregularised."""
    right = torch.cat([a, b]).numpy()
    return float(linprog(cost.numpy().ravel(), A_eq=marginal_matrix(*cost.shape), b_eq=right).fun)


def quadratic_program(
    cost: Tensor, a: Tensor, b: Tensor, gamma: float, allowed: np.ndarray | None = None
) -> float | None:
    """min <T, C> + γ/2 ||T||² over the allowed cells, by SLSQP; None where there is no such plan."""
    m, n = cost.shape
    c, matrix, right = cost.numpy().ravel(), marginal_matrix(m, n), torch.cat([a, b]).numpy()
    upper = np.ones(m * n) if allowed is None else allowed.ravel().astype(float)
    limits = [(0.0, float(u) * float(a.sum())) for u in upper]
    start = linprog(c, A_eq=matrix, b_eq=right, bounds=limits)
    if not start.success:
        return None
    found = minimize(
        lambda t: c @ t + 0.5 * gamma * t @ t,
        start.x,
        jac=lambda t: c + gamma * t,
        bounds=limits,
        constraints={"type": "eq", "fun": lambda t: (matrix @ t - right)[:-1], "jac": lambda _: matrix[:-1]},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert found.success or "ositive directional" in found.message
    return float(found.fun)
