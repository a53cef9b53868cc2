"""Sinkhorn distillation: optimal transport between the student's and the teacher's rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.errors import InputError
from fenchel.losses._pairs import prepare_pair
from fenchel.losses.reduce import reduce
from fenchel.operators._inputs import scale_by
from fenchel.operators.transport import entropic_transport


def sinkhorn_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    regularization: float = 0.1,
    iterations: int = 100,
    norm: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
    dim: int = -1,
) -> Tensor:
    """The Sinkhorn divergence between the batch of student rows and the batch of teacher rows.

    S(α, β) = OT(α, β) - OT(α, α) / 2 - OT(β, β) / 2, where
    OT(α, β) = min_P Σ_ij P_ij C_ij + ε KL(P, 1/n²) over P >= 0 with all row and column sums 1/n.

    α puts mass 1/n on each of the n rows p_i = softmax(student_i / T), β on each q_j = softmax(teacher_j
    / T), and C_ij = ||p_i - q_j||. All leading axes are rows of one batch; rows outside of `mask` take no
    part.

    It couples the rows. S >= 0, and S = 0 if and only if student and teacher have the same rows in *any*
    order: a row is compared with every row of the batch, not with its own alone, so that the loss is an
    addition to one that compares row by row. The value depends on which rows share a batch; a batch
    computed in parts gives another value. With n = 1 it is ||p - q||. It stays finite where KL is infinite,
    for rows of disjoint classes, and its gradient in p does not vanish there; in the logits it is in
    proportion to the student's mass on the teacher's classes.

    SinKD takes Σ P C alone, which is positive for student = teacher and has its minimum elsewhere; here
    the two self-transport terms remove this bias. The potentials come from log-domain Sinkhorn
    iterations, and the loss is the dual objective at these potentials: its gradient is that of S up to
    the error of the marginals after `iterations`, in memory that does not grow with them. First
    derivatives only. Time O(n² (V + iterations)), memory O(n² + n V).

    Args:
        student: logits (..., V, ...).
        teacher: logits of the same shape; gradients flow into it unless you detach it.
        temperature: T > 0, for both. SinKD uses 2.
        regularization: ε > 0, in the units of C, which lies in [0, 2]. As ε falls the loss tends to the
            Wasserstein distance, and the iterations it needs grow fast.
        iterations: updates of both potentials; the default suits ε >= 0.1.
        norm: the order of the norm in C, in [1, 2]: S >= 0 needs exp(-C/ε) positive definite.
        mask: rows that count, the shape of student without `dim`.
        reduction: "mean" is S; "sum" is S times the number of rows that count; "none" is the share of
            each row (student row i and teacher row i), whose mean is S. A share alone may be negative, and
            its gradient is that with the transport plan held fixed.
        dim: the axis of the classes.

    Returns:
        The loss, in the dtype of student; half types are computed in float32.

    Raises:
        InputError: the shapes differ (both are quoted), logits that cannot be normalised, or an option
            out of its range.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])  # rows (1/2, 1/2) and (1, 0)
        >>> round(float(sinkhorn_loss(student[:1], student[1:])), 4)
        1.0
        >>> round(float(sinkhorn_loss(student, student.flip(0))), 4)  # the same rows in another order
        0.0

    Reference:
        Cui et al., 2024, arXiv 2402.17110 (SinKD); Cuturi, 2013, arXiv 1306.0895; Feydy et al., 2019,
        arXiv 1810.08278 (the divergence).
    """
    if not 0 < regularization < float("inf"):
        raise InputError(f"regularization must be positive and finite, received {regularization}")
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, received {iterations}")
    if not 1 <= norm <= 2:
        raise InputError(f"norm must be in [1, 2], received {norm}")
    student_scores, teacher_scores = prepare_pair(student, teacher, mask, dim)
    shape, classes = student_scores.shape[:-1], student_scores.shape[-1]
    p = scale_by(student_scores, temperature, student, dim)[0].softmax(-1).reshape(-1, classes)
    q = scale_by(teacher_scores, temperature, teacher, dim)[0].softmax(-1).reshape(-1, classes)

    # One solver for all three problems, so that their errors cancel where student = teacher.
    cost = torch.stack([_distances(p, q, norm), _distances(p, p, norm), _distances(q, q, norm)])
    log_mass = _log_uniform(p, mask)
    between, of_student, of_teacher = _dual(cost, log_mass, regularization, iterations)
    shares = between - 0.5 * of_student - 0.5 * of_teacher
    return reduce(shares.reshape(shape), reduction=reduction, mask=mask).to(student.dtype)


def _distances(x: Tensor, y: Tensor, norm: float) -> Tensor:
    """||x_i - y_j||, (n, n); not by matrix products, which lose the digits of small distances."""
    return torch.cdist(x, y, p=norm, compute_mode="donot_use_mm_for_euclid_dist")


def _log_uniform(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The logarithm of the mass of every row: 1/n for the n that count (all of them where none does)."""
    counted = rows.new_ones(len(rows), dtype=torch.bool) if mask is None else mask.reshape(-1).bool()
    counted = counted | ~counted.any()
    return torch.where(counted, 0.0, -torch.inf).to(rows.dtype) - counted.sum().to(rows.dtype).log()


def _dual(cost: Tensor, log_mass: Tensor, regularization: float, iterations: int) -> Tensor:
    """The dual objective of transport by rows, (..., n): its mean over the rows with mass is OT."""
    f, g = _potentials(cost.detach(), log_mass, regularization, iterations)
    # By the envelope theorem the potentials are constants of the gradient, which is the plan.
    exponent = (f.unsqueeze(-1) + g.unsqueeze(-2) - cost) / regularization
    row_mass = (exponent + log_mass).exp().sum(-1)
    return f + g - regularization * (row_mass - 1)


def _potentials(
    cost: Tensor, log_mass: Tensor, regularization: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Sinkhorn's f and g, (..., n): exp((f_i + g_j - C_ij) / ε) m_i m_j has the column sums m exactly."""
    if not len(log_mass):  # no rows, no problem
        return cost.new_empty(cost.shape[:-1]), cost.new_empty(cost.shape[:-1])
    mass = log_mass.exp()
    found = entropic_transport(
        cost, mass, mass, regularization=regularization, iterations=iterations, tolerance=0.0
    )
    return found.row_potential, found.column_potential
