"""The classes divided over the processes of a group: what each must know of the others, and DTensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from fenchel.checks import holds
from fenchel.errors import InputError
from fenchel.operators._inputs import prepare_reference

Group = Any  # torch.distributed.ProcessGroup, which a torch without distributed lacks


class Meeting(NamedTuple):
    """What the first collective of a call tells: max θ over all processes, and the size of each slice."""

    top: Tensor
    sizes: Tensor

    def offset(self, rank: int) -> Tensor:
        """The first class of a process, as a tensor: reading it would stall an accelerator."""
        return self.sizes[:rank].sum()


class Shards:
    """The processes that hold slices of the classes, in the order of their ranks.

    Every decision is taken on sums and maxima over the group, so that no process waits for another that
    has raised or stopped.
    """

    def __init__(self, group: Group = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError(
                "there is no process group: start the processes with torchrun and call "
                "torch.distributed.init_process_group() in each of them"
            )
        self.group = dist.group.WORLD if group is None else group
        self.rank = dist.get_rank(self.group)
        if self.rank < 0:
            raise InputError(f"process {dist.get_rank()} is not in the group that holds the classes")

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Sums over the classes of all processes, (..., 1) each, in one all-reduce of float64."""
        sums = torch.stack([part.sum(-1, keepdim=True, dtype=torch.float64) for part in parts])
        dist.all_reduce(sums, group=self.group)
        return tuple(sums.to(parts[0].dtype))

    def meet(self, scores: Tensor, problem: InputError | None = None) -> Meeting:
        """One all-reduce: the top of every row, the sizes, and whether a process has a problem.

        Args:
            scores: (..., V_r), classes last.
            problem: what is wrong with the arguments of this process alone: raised here, and told to others.

        Raises:
            InputError: on every process (on CPU), if one has a problem or a row cannot be normalised.
        """
        rows, classes = scores.shape[:-1], scores.shape[-1]
        world = dist.get_world_size(self.group)
        told = scores.new_full((rows.numel() + world,), -torch.inf, dtype=torch.float64)
        if classes:
            top = scores.detach().amax(-1).flatten()
            # A maximum over processes may or may not keep NaN; inf is as wrong, and stays.
            told[: rows.numel()] = torch.where(torch.isnan(top), torch.inf, top)
        told[rows.numel() + self.rank] = -1 if problem else classes
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.group)
        top, sizes = told[: rows.numel()].view(rows), told[rows.numel() :].long()
        if problem:
            raise problem
        if not holds(sizes >= 0):
            culprit = int((sizes < 0).nonzero()[0])
            raise InputError(f"rank {culprit} of the group received an argument that is wrong: see its error")
        if not holds(torch.isfinite(top)):
            row = tuple((~torch.isfinite(top)).nonzero()[0].tolist())
            what = "is all -inf: every class of every rank is masked"
            if top[row] > 0:
                what = "holds NaN or inf on a rank"
            raise InputError(f"logits of rows {tuple(rows)}, {int(sizes.sum())} classes: row {row} {what}")
        return Meeting(top.to(scores.dtype), sizes)


class Local(NamedTuple):
    """The slice of this process, the group that divides the classes, and the way back to a DTensor."""

    x: Tensor
    group: Group
    back: Callable[[Tensor], Tensor]


def local_of(x: Tensor, group: Group, *, name: str, dim: int = -1) -> Local:
    """What a tensor of slices is here: itself, or the local part of a DTensor sharded along `dim`.

    Raises:
        InputError: a DTensor whose classes are not sharded along exactly one dimension of its mesh, that is
            a partial sum, or with which a group was given.
    """
    if not is_dtensor(x):
        return Local(x, group, lambda p: p)
    if group is not None:
        raise InputError(f"{name} are a DTensor, whose mesh says the group: leave out group")
    mesh, placements = x.device_mesh, x.placements  # type: ignore[attr-defined]
    along = [i for i, placement in enumerate(placements) if placement.is_shard(dim % x.dim())]
    if len(along) != 1 or any(placement.is_partial() for placement in placements):
        raise InputError(
            f"{name}, a DTensor of shape {tuple(x.shape)}, must be sharded along its classes, "
            f"Shard({dim % x.dim()}), by one dimension of its mesh, received {placements}"
        )

    def back(p: Tensor) -> Tensor:
        made: Tensor = type(x).from_local(  # type: ignore[attr-defined]
            p, mesh, placements, run_check=False, shape=x.shape, stride=x.stride()
        )
        return made

    return Local(plain(x), mesh.get_group(along[0]), back)


def plain(x: Tensor) -> Tensor:
    """The local part of a DTensor, anything else as it is."""
    if not is_dtensor(x):
        return x
    part: Tensor = x.to_local()  # type: ignore[attr-defined]
    return part


def is_dtensor(x: object) -> bool:
    """Whether x is a DTensor, without loading what only they need."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def reference_of(reference: float | Tensor, logits: Tensor) -> tuple[Tensor | None, InputError | None]:
    """The measure of a slice, or what is wrong with it: `Shards.meet` tells that to all processes."""
    like = logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32))
    try:
        if not isinstance(reference, Tensor):
            q = prepare_reference(reference, logits, -1, like)
            return None if q is None else q.expand(logits.shape), None
        if reference.requires_grad:
            raise InputError("the reference measure has no gradient where classes are sharded: detach it")
        return prepare_reference(plain(reference), logits, -1, like.expand(logits.shape)), None
    except InputError as problem:
        return None, problem


def number(temperature: float) -> float:
    """The temperature, if it is a number: the gradient of a tensor would lack the other processes' part."""
    if isinstance(temperature, Tensor) or not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be a number, positive and finite, received {temperature}")
    return temperature


def only_once(grads: tuple[Tensor | None, ...], *through: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients that raise if they are themselves differentiated in what `through` depends on."""
    if not torch.is_grad_enabled():
        return grads
    return tuple(None if grad is None else _Once.apply(grad, *through) for grad in grads)  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    # `once_differentiable` lets a gradient through as a constant where the incoming one needs no gradient,
    # and a sum with other terms would silently lack its second derivatives.

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *through: Tensor | None) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise InputError(
            "operators and losses of sharded classes have first derivatives only, since second ones would "
            "need collectives that autograd may run in another order on each process; gather the logits and "
            "use f_softargmax or fenchel_young_loss for second ones"
        )
