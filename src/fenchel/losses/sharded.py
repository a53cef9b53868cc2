"""Fenchel-Young losses of classes that are divided over processes: of logits, and of a head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fenchel.checks import holds, looked
from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.divergences.solution import one_hot_constant
from fenchel.errors import InputError
from fenchel.kernels.dispatch import implementation
from fenchel.losses.linear import chunk_rows
from fenchel.losses.reduce import reduce
from fenchel.operators._inputs import check_axis
from fenchel.operators._shards import Group, Shards, local_of, number, only_once, plain, reference_of

Optional = Tensor | None


def sharded_fenchel_young_loss(
    logits: Tensor,
    target: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    group: Group = None,
    reference: float | Tensor = 1.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """`fenchel_young_loss` where each process holds some of the classes: every one gets the same loss.

    softmax_f(θ; q) + D_f(y, q) - <θ, y> with θ = logits / T, its sums over classes added over the processes
    as in `sharded_f_softargmax`. The gradient of a process is (p - y) / T on its own slice, that of the loss
    once, however many processes there are: each calls backward on its own copy of the loss, which takes no
    communication. First derivatives only. With "kl" it is the vocabulary-parallel cross-entropy.

    Args:
        logits: the slice of this process, (..., V_r), classes last, in the order of the ranks; V_r may
            differ between processes and may be 0; the other axes must be the same in all processes, which
            is not checked. Or a DTensor whose last axis is sharded by one dimension of its mesh; other
            dimensions may shard rows, and the loss is then of the rows here.
        target: class indices (...) among all V = Σ_r V_r classes, the same in all processes.
        divergence: a name or an `FDivergence`.
        group: the processes, by default all; of a DTensor, those of the dimension of its mesh.
        reference: the measure q > 0: a number, (V_r,), or broadcastable to logits: the slice of this process.
        ignore_index: a target that adds nothing to the loss, whatever its row holds.
        label_smoothing: ε in [0, 1), spread over the classes of all processes that are not at -inf.
        temperature: T > 0, a number.
        reduction: "mean" (over targets that count), "sum" or "none".

    Returns:
        The loss in nats, in the dtype of logits, equal on every process: a scalar, or the shape of target.

    Raises:
        InputError: no process group; a target that is no class of any process; and what
            `fenchel_young_loss` refuses. What is wrong with the values of one process raises in all (on CPU).
            The gradient is differentiated again.

    Example:
        >>> import torch
        >>> from torch import distributed  # here of one process; torchrun starts more
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> logits = torch.tensor([[1.0, 0.0, -2.0], [0.0, 1.0, 0.0]])
        >>> round(sharded_fenchel_young_loss(logits, torch.tensor([0, -100]), "alpha:1.5").item(), 4)
        0.0617
        >>> distributed.destroy_process_group()

    Reference:
        Shoeybi et al., 2019, arXiv 1909.08053 (cross-entropy of a divided vocabulary); Blondel, Martins and
        Niculae, 2020, arXiv 1901.02324; Roulet et al., 2025, arXiv 2501.18537.
    """
    check_axis(logits, -1, empty=True)
    local = local_of(logits, group, name="logits")
    rows, classes = local.x.shape[:-1], local.x.shape[-1]
    task = _Task(find(divergence), Shards(local.group), ignore_index, label_smoothing, temperature)
    q, problem = reference_of(reference, local.x)
    index = _flat_target(target, rows, "logits")
    flat = local.x.reshape(index.numel(), classes)
    q = None if q is None else q.reshape(flat.shape)
    losses: Tensor = _Losses.apply(flat, None, None, index, q, task, max(len(flat), 1), problem)  # type: ignore[no-untyped-call]
    counts = (index != ignore_index).view(rows)
    return reduce(losses.view(rows), reduction=reduction, mask=counts).to(local.x.dtype)


def sharded_linear_fenchel_young_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    group: Group = None,
    bias: Tensor | None = None,
    reference: float | Tensor = 1.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    chunk: int | None = None,
) -> Tensor:
    """`linear_fenchel_young_loss` of a head whose classes are divided over processes.

    The loss of the logits hidden @ weight.T + bias, of which a process holds its own classes of `chunk`
    rows at a time, and computes them a second time in the backward pass. From the first one it keeps three
    numbers a row, so that the second communicates nothing but the gradient of hidden: the sum over processes
    of (p - y) @ weight / T, in one all-reduce. Gradients of weight and bias are those of the slice.
    First derivatives only; every process must call backward.

    Args:
        hidden: last hidden states, (..., d), the same in all processes.
        weight: the slice of the head, (V_r, d), in the order of the ranks; V_r may differ and may be 0. Or a
            DTensor whose first axis is sharded by one dimension of its mesh.
        target: class indices (...) among all V = Σ_r V_r classes, the same in all processes.
        divergence: a name or an `FDivergence`.
        group: the processes, by default all; of a DTensor, those of the dimension of its mesh.
        bias: the slice of the bias, (V_r,).
        reference: the measure q > 0: a number, or (V_r,): the slice of this process.
        ignore_index, label_smoothing, temperature: as in `sharded_fenchel_young_loss`.
        reduction: "mean" (over targets that count), "sum" or "none".
        chunk: rows whose logits are held at a time, the same in all processes; by default 2^23 / max V_r on a
            CPU. To know that maximum takes a collective and a look at its result.

    Returns:
        The loss in nats, in float32 at least, equal on every process; for "none" the shape of target.

    Raises:
        InputError: as `sharded_fenchel_young_loss`, and shapes that do not fit, quoting what was received.
            The gradient is differentiated again.

    Example:
        >>> import torch
        >>> from torch import distributed  # here of one process; torchrun starts more
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> hidden, target = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> loss = sharded_linear_fenchel_young_loss(hidden, torch.eye(2), target, "kl", chunk=1)
        >>> torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(hidden, target))
        >>> distributed.destroy_process_group()

    Reference:
        Shoeybi et al., 2019, arXiv 1909.08053 (cross-entropy of a divided vocabulary); Wijmans et al., 2024,
        arXiv 2411.09009 (losses without the logits); Roulet et al., 2025, arXiv 2501.18537.
    """
    if weight.dim() != 2 or hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise InputError(
            f"hidden must be (..., d) and weight (V_r, d), received {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk must be at least 1 row, received {chunk}")
    local = local_of(weight, group, name="weight", dim=0)
    states, head = plain(hidden), local.x
    rows, classes = states.shape[:-1], len(head)
    slope = None if bias is None else plain(bias)
    task = _Task(find(divergence), Shards(local.group), ignore_index, label_smoothing, temperature)
    index = _flat_target(target, rows, "hidden")
    # A row stands for all: a number as the measure would otherwise be as large as the logits.
    row = states.new_empty((1, classes))
    q, problem = reference_of(reference, row)
    if slope is not None and tuple(slope.shape) != (classes,):
        problem = InputError(f"the bias must be ({classes},), received {tuple(slope.shape)}")
        slope = None
    if chunk is None:
        sizes = task.shards.meet(row[:0], problem).sizes
        chunk = chunk_rows(max(int(sizes.max()), 1), states.device)
    states, head, slope = _as_autocast(states, head, slope)
    q = None if q is None else q.expand(index.numel(), classes)
    flat = states.reshape(index.numel(), states.shape[-1])
    losses: Tensor = _Losses.apply(flat, head, slope, index, q, task, chunk, problem)  # type: ignore[no-untyped-call]
    return reduce(losses.view(rows), reduction=reduction, mask=(index != ignore_index).view(rows))


@dataclass(frozen=True)
class _Task:
    """Which loss of which classes."""

    record: FDivergence
    shards: Shards
    ignore_index: int
    label_smoothing: float
    temperature: float

    def __post_init__(self) -> None:
        number(self.temperature)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be in [0, 1), received {self.label_smoothing}")

    def scores(self, hidden: Tensor, weight: Optional, bias: Optional, target: Tensor) -> Tensor:
        """θ of some rows, 0 in those that are ignored."""
        logits = hidden if weight is None else torch.nn.functional.linear(hidden, weight, bias)
        scores = logits.to(_at_least_single(logits)) / self.temperature
        counts = target != self.ignore_index
        return scores if looked(counts) else torch.where(counts.unsqueeze(-1), scores, 0.0)

    def own(self, target: Tensor, offset: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """The indices of the targets in the slice of this process, 0 where `mine` says that they are not."""
        local = target - offset
        mine = (target != self.ignore_index) & (local >= 0) & (local < classes)
        return torch.where(mine, local, 0).unsqueeze(-1), mine

    def losses(
        self, scores: Tensor, target: Tensor, q: Optional, problem: InputError | None
    ) -> tuple[Tensor, ...]:
        """Losses of rows, the first class here, and what `gradient` needs: top, U, rest, classes present."""
        classes = scores.shape[-1]
        top, sizes = meeting = self.shards.meet(scores, problem)
        whole = sizes.sum()
        counts = target != self.ignore_index
        if not holds(~counts | ((target >= 0) & (target < whole))):
            bad = target[counts & ((target < 0) | (target >= whole))]
            raise InputError(
                f"target {int(bad[0])} is not a class: the slices of the logits have {int(whole)} in all, "
                f"and ignore_index is {self.ignore_index}"
            )
        run = implementation("shard_softargmax", self.record, scores, q, impl="eager")
        root = run(scores, q, self.record, top, self.shards.total)
        gap = top.unsqueeze(-1) - scores
        offset = meeting.offset(self.shards.rank)
        index, mine = self.own(target, offset, classes)
        cost = torch.zeros_like(top)
        if classes:
            cost = gap.gather(-1, index).squeeze(-1) + one_hot_constant(self.record, q, index)
        parts = [torch.where(mine, cost, 0.0).unsqueeze(-1)]
        if self.label_smoothing:
            present = torch.isfinite(scores)
            alone = torch.zeros_like(scores, dtype=torch.long).unsqueeze(-1)  # every class is the target once
            constants = one_hot_constant(self.record, None if q is None else q.unsqueeze(-1), alone)
            parts += [torch.where(present, gap + constants, 0.0), present.to(scores.dtype)]
        cost, *smooth = self.shards.total(*parts)
        number_present = torch.ones_like(cost)
        if smooth:
            spread, number_present = smooth
            cost = (1 - self.label_smoothing) * cost + self.label_smoothing * spread / number_present
        losses = torch.where(counts, root.value + cost.squeeze(-1), 0.0)
        return losses, offset, top, root.ratio, root.rest, number_present

    def gradient(
        self, scores: Tensor, target: Tensor, q: Optional, offset: Tensor, state: tuple[Tensor, ...]
    ) -> Tensor:
        """(p - y) / T of rows, from what `losses` found, without communication."""
        top, ratio, rest, number_present = state
        run = implementation("shard_probabilities", self.record, scores, q, impl="eager")
        found: Tensor = run(scores, q, self.record, top, ratio, rest)
        if self.label_smoothing:
            found = found - self.label_smoothing * torch.isfinite(scores).to(found.dtype) / number_present
        index, mine = self.own(target, offset, scores.shape[-1])
        if scores.shape[-1]:
            less = (self.label_smoothing - 1) * mine.to(found.dtype)
            found = found.scatter_add(-1, index, less.unsqueeze(-1))
        return torch.where((target != self.ignore_index).unsqueeze(-1), found / self.temperature, 0.0)


class _Losses(torch.autograd.Function):
    """Logits (n, V_r), or hidden states and a head, to losses (n,); some rows at a time, twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Optional,
        bias: Optional,
        target: Tensor,
        q: Optional,
        task: _Task,
        chunk: int,
        problem: InputError | None,
    ) -> Tensor:
        pieces = []
        for rows in _chunks(len(hidden), chunk):
            scores = task.scores(hidden[rows], weight, bias, target[rows])
            pieces.append(task.losses(scores, target[rows], None if q is None else q[rows], problem))
        losses, offsets, *state = zip(*pieces, strict=True)
        ctx.task, ctx.chunk = task, chunk
        ctx.save_for_backward(
            hidden, weight, bias, target, q, offsets[0], *(torch.cat(each) for each in state)
        )
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional, ...]:
        hidden, weight, bias, target, q, offset, *state = ctx.saved_tensors
        task: _Task = ctx.task
        needed = ctx.needs_input_grad
        dtype = _at_least_single(hidden)
        with torch.no_grad():
            of_hidden = torch.empty_like(hidden, dtype=dtype) if needed[0] else None
            of_weight = torch.zeros_like(weight, dtype=dtype) if needed[1] else None
            of_bias = torch.zeros_like(bias, dtype=dtype) if needed[2] else None
            for rows in _chunks(len(hidden), ctx.chunk):
                scores = task.scores(hidden[rows], weight, bias, target[rows])
                part = tuple(each[rows] for each in state)
                found = task.gradient(scores, target[rows], None if q is None else q[rows], offset, part)
                found = found * grad[rows].unsqueeze(-1)
                if of_bias is not None:
                    of_bias += found.sum(0)
                found = found.to(hidden.dtype)
                if of_hidden is not None:
                    of_hidden[rows] = found if weight is None else found @ weight
                if of_weight is not None:
                    of_weight += found.T @ hidden[rows]
            if of_hidden is not None and weight is not None:
                dist.all_reduce(of_hidden, group=task.shards.group)
            grads = tuple(
                None if each is None else each.to(x.dtype)
                for each, x in ((of_hidden, hidden), (of_weight, weight), (of_bias, bias))
            )
        return *only_once(grads, hidden, weight, bias, grad), *[None] * 5


def _chunks(n: int, chunk: int) -> Iterator[slice]:
    """At least one, so that a problem is told where there are no rows."""
    return (slice(start, start + chunk) for start in range(0, max(n, 1), chunk))


def _flat_target(target: Tensor, rows: torch.Size, name: str) -> Tensor:
    index = plain(target)
    if index.is_floating_point() or index.shape != rows:
        raise InputError(
            f"target must hold class indices for {name} of rows {tuple(rows)}, received {index.dtype} of "
            f"shape {tuple(index.shape)}"
        )
    return index.reshape(-1)


def _at_least_single(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _as_autocast(*tensors: Optional) -> tuple[Any, ...]:
    """Cast as autocast would: the backward pass, where it is off, must see the same logits."""
    device = next(each.device.type for each in tensors if each is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)
