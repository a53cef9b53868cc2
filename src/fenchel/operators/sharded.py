"""f-softargmax of classes that are divided over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.divergences.solution import sensitivities
from fenchel.kernels.dispatch import implementation
from fenchel.operators._inputs import check_axis, class_last
from fenchel.operators._shards import Group, Shards, local_of, number, only_once, reference_of


def sharded_f_softargmax(
    logits: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    group: Group = None,
    reference: float | Tensor = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """`f_softargmax` where each process holds some of the classes: every one gets its slice of p.

    p_j = q_j f*'(max(θ_j / T - τ, f'(0))) with one τ for all processes, the root of Σ_r Σ_j p_j = 1 over
    ranks r. The slices are never gathered: one all-reduce says the top score of every row, and each step
    of the solver adds two numbers a row over the processes, in float64. On a CPU the solver stops when it
    is done, elsewhere after a fixed number of steps, without looking.

    Every process of the group must call it, and must call backward (or none): the gradient
    w (g - Σ w g / Σ w), with w_j = q_j f*'', takes one all-reduce more. First derivatives only.

    Args:
        logits: the slice of this process, (..., V_r), classes last, in the order of the ranks; any float
            dtype, half types are computed in float32. V_r may differ between processes and may be 0. The
            other axes must be the same in all processes, which is not checked. Or a DTensor whose last
            axis is sharded by one dimension of its mesh.
        divergence: a name such as "kl", "js", "alpha:1.5", or an `FDivergence`.
        group: the processes, by default all; of a DTensor, those of the dimension of its mesh.
        reference: the measure q > 0: a number, (V_r,), or broadcastable to logits: the slice of this process.
        temperature: T > 0, a number.

    Returns:
        The slice of p, the shape and dtype of logits; a DTensor with the same placements for a DTensor.

    Raises:
        InputError: no process group; a DTensor whose last axis is not sharded; and what `f_softargmax`
            refuses. What is wrong with the values of one process raises in all of them (on CPU).
            The gradient is differentiated again.

    Example:
        >>> import torch
        >>> from torch import distributed  # here of one process; torchrun starts more
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> sharded_f_softargmax(torch.tensor([1.0, 0.5, -2.0]), "alpha:2")
        tensor([0.7500, 0.2500, 0.0000])
        >>> distributed.destroy_process_group()

    Reference:
        Shoeybi et al., 2019, arXiv 1909.08053 (cross-entropy of a divided vocabulary); Roulet, Liu,
        Vieillard, Sander and Blondel, 2025, arXiv 2501.18537 (f-softargmax).
    """
    record = find(divergence)
    check_axis(logits, -1, empty=True)
    local = local_of(logits, group, name="logits")
    shards = Shards(local.group)
    scores = class_last(local.x, -1) / number(temperature)
    q, problem = reference_of(reference, local.x)
    top = shards.meet(scores, problem).top
    p: Tensor = _Softargmax.apply(scores, q, record, shards, top)  # type: ignore[no-untyped-call]
    return local.back(p.to(local.x.dtype))


class _Softargmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, q: Tensor | None, record: FDivergence, shards: Shards, top: Tensor
    ) -> Tensor:
        run = implementation("shard_softargmax", record, scores, q, impl="eager")
        p: Tensor = run(scores, q, record, top, shards.total).p
        ctx.record, ctx.shards = record, shards
        ctx.save_for_backward(p, q)
        return p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, q = ctx.saved_tensors
        with torch.no_grad():
            w = sensitivities(p, q, ctx.record)[1]
            weight, moved = ctx.shards.total(w, w * grad)
            found = w * (grad - moved / weight)
        return *only_once((found,), p, grad), None, None, None, None
