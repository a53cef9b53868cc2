"""Transport plans with at most k nonzeros in every column."""

from __future__ import annotations

from torch import Tensor

from fenchel.errors import InputError
from fenchel.operators.transport.problem import Transport, prepare
from fenchel.operators.transport.quadratic import TopColumns, solve_quadratic


def sparse_transport(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    k: int,
    regularization: float = 0.1,
    semidual: bool = True,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Transport:
    """A plan of least cost with at most k nonzeros a column: min <T, C> + γ/2 ||T||², ||T_:j||_0 <= k.

    That minimum, over T >= 0 with T1 = a and Tᵀ1 = b, is not of a convex problem. Its dual is:

        max <f, a> + <g, b> - (1/2γ) Σ_j Σ_{i in top k of f - C_:j} max(f_i + g_j - C_ij, 0)².

    `value` is the maximum, a lower bound of the minimum. The plan is T_ij = max(f_i + g_j - C_ij, 0) / γ on
    the k largest f_i - C_ij of each column and zero elsewhere. Its columns sum to b, and `residual` says how
    far its rows are from a. Where the residual is zero the plan solves the problem and the bound is tight;
    that is so if and only if the selections of the k largest that the maximum leaves open can be made to
    fit a. Often they cannot, and no tolerance is then reached: with k = 1, for one, a column's mass lies in
    one cell. k = m is `quadratic_transport`, k = 1 an assignment of every column.

    Derivatives are those of `quadratic_transport` with the selection held fixed: exact where the residual is
    zero and the k largest are unique; else `value` has T as one of its supergradients in cost, and f and g
    of the marginals.

    Args:
        cost: C, (..., m, n), any float dtype; half types are computed in float32. +inf forbids a cell.
        a: masses of the rows, (..., m), at least 0; 1/m each by default.
        b: masses of the columns, (..., n), with the same sum; 1/n each by default. Batch axes broadcast.
        k: the most nonzeros of a column, 1 <= k <= m. For rows, transpose the cost.
        regularization: γ > 0, in units of cost per mass, as in `quadratic_transport`. A larger γ makes the
            maximum better conditioned, where k keeps the plan sparse.
        semidual: maximise over f alone, with g exact; otherwise over both. The maximum is the same; a step
            of the semi-dual costs more, and fewer are needed.
        iterations: the most steps of L-BFGS, and then of Adam where the maximum is at a kink.
        tolerance: stop when no marginal is violated by more than this share of M, over the whole batch.

    Returns:
        `Transport`: plan, value, potentials and residual, in the dtype of cost.

    Raises:
        InputError: k out of range, or as `entropic_transport`.

    Example:
        >>> import torch
        >>> cost = torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 1.0]])
        >>> found = sparse_transport(cost, b=torch.tensor([0.5, 0.25, 0.25]), k=1)
        >>> found.plan
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.2500, 0.2500]])

    Reference:
        Liu, Puigcerver and Blondel, 2023, arXiv 2209.15466.
    """
    problem = prepare(cost, a, b, regularization, iterations, tolerance)
    rows = cost.shape[-2]
    if not isinstance(k, int) or not 1 <= k <= rows:
        raise InputError(
            f"k must be an integer in [1, {rows}], the rows of cost {tuple(cost.shape)}, received {k}"
        )
    link = TopColumns(None if k == rows else k, semidual, iterations, tolerance)
    return solve_quadratic(problem, link, regularization, cost.dtype)
