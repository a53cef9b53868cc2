"""A language-model head and its loss in one pass: each chunk of logits becomes its gradient in place.

The logits of a chunk are multiplied out, a `Criterion` puts the gradient of its losses where they were, and
the gradients of hidden states and head are made of it at once, so that nothing is computed twice. Where the
gradient is sparse, its few numbers are kept instead, and the two products become sums over the support.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.errors import BadScores
from fenchel.kernels.dispatch import implementation
from fenchel.losses.distillation import distillation_loss, operation
from fenchel.losses.fenchel_young import fenchel_young_loss
from fenchel.losses.truncated import TopK

# Share of a chunk's logits under gradient up to which sums over the support are faster than products of
# matrices (benchmarks/head.py measures both).
SPARSE_BELOW = 1 / 12


class Support(NamedTuple):
    """A sparse gradient of n rows of logits, the rows one after the other."""

    classes: Tensor  # (total,), int64
    values: Tensor  # (total,)
    counts: Tensor  # (n,), int64


class Criterion(Protocol):
    """Losses of rows of logits and their gradient."""

    def dense(self, logits: Tensor, rows: slice, gradient: bool) -> Tensor:
        """The losses (n,); with `gradient`, the logits become theirs."""
        ...

    def sparse(self, logits: Tensor, rows: slice) -> tuple[Tensor, Support] | None:
        """The losses and their gradient where it has few numbers; the logits stay as they are."""
        ...

    def plain(self, logits: Tensor, rows: slice) -> Tensor:
        """The losses in differentiable steps."""
        ...


@dataclass
class Tokens:
    """The Fenchel-Young loss of tokens; negative targets do not count."""

    target: Tensor  # (n,)
    record: FDivergence
    q: Tensor | None = None  # (V,)
    label_smoothing: float = 0.0
    impl: str = "auto"
    _dense_for: int = field(default=0, init=False)

    def dense(self, logits: Tensor, rows: slice, gradient: bool) -> Tensor:
        q = None if self.q is None else self.q.expand_as(logits)
        run = implementation("token_loss", self.record, logits, q, impl=self.impl)
        out = logits if gradient else None
        losses: Tensor = run(logits, self.target[rows], q, self.record, self.label_smoothing, out)
        return losses

    def sparse(self, logits: Tensor, rows: slice) -> tuple[Tensor, Support] | None:
        if not self.record.is_sparse or self.label_smoothing or logits.device.type != "cpu":
            return None
        if self._dense_for > 0:  # what a chunk was, the next ones mostly are as well
            self._dense_for -= 1
            return None
        q = None if self.q is None else self.q.expand_as(logits)
        run = implementation("token_support", self.record, logits, q, impl=self.impl)
        found = run(logits, self.target[rows], q, self.record, int(logits.numel() * SPARSE_BELOW))
        if found is None:
            self._dense_for = 15
            return None
        losses, classes, values, counts = found
        return losses, Support(classes, values, counts)

    def plain(self, logits: Tensor, rows: slice) -> Tensor:
        return fenchel_young_loss(
            logits,
            self.target[rows],
            self.record,
            reference=1.0 if self.q is None else self.q,
            ignore_index=-1,
            label_smoothing=self.label_smoothing,
            reduction="none",
            impl="eager",
        )


@dataclass(frozen=True)
class Distilled:
    """D_f(p_T, p_S) against a teacher, multiplied by `scale`."""

    teacher: Callable[[slice], Tensor | TopK]  # its logits (n, V) of some rows, or what is known of p_T
    record: FDivergence
    temperature: float = 1.0
    scale: float = 1.0
    mask: Tensor | None = None  # (n,): rows that count
    impl: str = "auto"

    def dense(self, logits: Tensor, rows: slice, gradient: bool) -> Tensor:
        op, known = operation(self.teacher(rows))
        run = implementation(op, self.record, logits, *known, impl=self.impl)
        losses: Tensor = run(logits, *known, self.record, self.temperature, logits if gradient else None)
        if gradient and self.scale != self.temperature:
            logits *= self.scale / self.temperature
        if self.mask is not None:
            mask = self.mask[rows]
            losses = torch.where(mask, losses, 0.0)
            if gradient:
                logits.masked_fill_(~mask.unsqueeze(-1), 0.0)
        return losses * self.scale

    def sparse(self, logits: Tensor, rows: slice) -> None:
        return None

    def plain(self, logits: Tensor, rows: slice) -> Tensor:
        teacher = self.teacher(rows)
        options: dict[str, Any] = {"temperature": self.temperature, "reduction": "none", "impl": "eager"}
        mask = None if self.mask is None else self.mask[rows]
        return self.scale * distillation_loss(logits, teacher, self.record, mask=mask, **options)


@dataclass(frozen=True)
class Differentiated:
    """Any function (logits, rows) -> losses (n,) whose rows do not depend on each other."""

    loss: Callable[[Tensor, slice], Tensor]

    def dense(self, logits: Tensor, rows: slice, gradient: bool) -> Tensor:
        if not gradient:
            return self.loss(logits, rows)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = self.loss(leaf, rows)
            found = (
                torch.autograd.grad(losses.sum(), leaf)[0] if losses.requires_grad else torch.zeros_like(leaf)
            )
        logits.copy_(found)
        return losses.detach()

    def sparse(self, logits: Tensor, rows: slice) -> None:
        return None

    def plain(self, logits: Tensor, rows: slice) -> Tensor:
        return self.loss(logits, rows)


def head_losses(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, criterion: Criterion, chunk: int
) -> Tensor:
    """The losses (n,) of the logits hidden @ weight.T + bias, `chunk` rows at a time.

    Gradients flow to hidden (n, d), weight (V, d) and bias (V,). They are made in the forward pass, which
    is all there is to do if every row's loss then has the same gradient, as in a sum or a mean; for rows of
    unequal gradients the logits of dense chunks are computed a second time. A backward pass that is itself
    to be differentiated holds all logits. Without a weight, hidden are the logits themselves.
    """
    if weight is not None and torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if not torch.is_grad_enabled():  # a parameter asks for its gradient all the same
        hidden = hidden.detach()
        weight, bias = (None if x is None else x.detach() for x in (weight, bias))
    losses: Tensor = _Head.apply(hidden, weight, bias, criterion, chunk)  # type: ignore[no-untyped-call]
    return losses


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        criterion: Criterion,
        chunk: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        ctx.criterion, ctx.chunk = criterion, chunk
        gradients = _Gradients(hidden, weight, bias, wanted)
        losses: list[Tensor] = []
        supports: list[Support] = []
        ctx.sparse, ctx.dense = [], []
        with torch.autocast(hidden.device.type, enabled=False):
            logits = _Logits(hidden, weight, bias, chunk)
            for start in range(0, len(hidden), chunk):
                rows = slice(start, min(start + chunk, len(hidden)))
                scores = logits(rows)
                try:
                    found = criterion.sparse(scores, rows) if any(wanted) else None
                    if found is None:
                        losses.append(criterion.dense(scores, rows, any(wanted)))
                except BadScores as error:
                    raise BadScores(start + error.row, (len(hidden), scores.shape[-1])) from None
                if found is not None:
                    losses.append(found[0])
                    supports.append(found[1])
                    ctx.sparse.append(rows)
                elif any(wanted):
                    gradients.add(rows, scores)
                    ctx.dense.append(rows)
        ctx.gradients = gradients
        ctx.save_for_backward(hidden, weight, bias, *(part for support in supports for part in support))
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *parts = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            if torch.is_grad_enabled():  # the gradient is to be differentiated again
                wanted = ctx.needs_input_grad
                return (*_differentiably(hidden, weight, bias, ctx.criterion, wanted, grad), None, None)
            supports = [Support(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
            return (*_gradients_of(ctx, hidden, weight, bias, supports, grad), None, None)


def _gradients_of(
    ctx: Any,
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    supports: Sequence[Support],
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    gradients: _Gradients | None = ctx.gradients
    ctx.gradients = None
    if ctx.dense:
        factor = _common(grad)
        if factor is not None and gradients is not None:
            gradients.scale(factor)
        else:  # rows of unequal weight, or a second backward pass through the same graph
            gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad[:3])
            logits = _Logits(hidden, weight, bias, ctx.chunk)
            for rows in ctx.dense:
                scores = logits(rows)
                ctx.criterion.dense(scores, rows, True)
                scores *= grad[rows].unsqueeze(-1)
                gradients.add(rows, scores)
    gradients = gradients or _Gradients(hidden, weight, bias, ctx.needs_input_grad[:3])
    gradients.add_supports(list(zip(ctx.sparse, supports, strict=True)), grad)
    return gradients.results()


def _differentiably(
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    criterion: Criterion,
    wanted: tuple[bool, ...],
    grad: Tensor,
) -> list[Tensor | None]:
    logits = hidden if weight is None else torch.nn.functional.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    inputs = [x if w else None for x, w in zip((hidden, weight, bias), wanted, strict=False)]
    leaves = [x for x in inputs if x is not None]
    losses = criterion.plain(logits, slice(0, len(hidden)))
    found = iter(torch.autograd.grad(losses, leaves, grad, create_graph=True))
    return [None if x is None else next(found) for x in inputs]


def _common(grad: Tensor) -> Tensor | None:
    """The one number that all rows have, or None. Looking at values would stall an accelerator."""
    if grad.numel() == 0 or grad.stride(0) == 0:
        return grad[:1].sum()
    if grad.device.type == "cpu" and bool((grad == grad[0]).all()):
        return grad[0]
    return None


class _Logits:
    """hidden @ weight.T + bias of some rows, in float32 at least; each call overwrites the last one's."""

    def __init__(self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, chunk: int) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.buffer: Tensor | None = None
        if weight is not None and self.dtype == hidden.dtype == weight.dtype:
            self.buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight))

    def __call__(self, rows: slice) -> Tensor:
        part = self.hidden[rows]
        if self.weight is None:
            return part.to(self.dtype, copy=True)
        if self.buffer is None:
            return torch.nn.functional.linear(part, self.weight, self.bias).to(self.dtype)
        out = self.buffer[: len(part)]
        if self.bias is None:
            return torch.mm(part, self.weight.T, out=out)
        return torch.addmm(self.bias, part, self.weight.T, out=out)


class _Gradients:
    """Sums over chunks of the gradients that are wanted, in float32 at least."""

    def __init__(
        self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, wanted: tuple[bool, ...]
    ) -> None:
        self.inputs = (hidden, weight, bias)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.wanted = wanted
        self.dtype = dtype
        self.hidden = torch.empty_like(hidden, dtype=dtype) if wanted[0] else None
        self._weight: Tensor | None = None  # made when there is something to add
        self.bias = torch.zeros_like(bias, dtype=dtype) if wanted[2] and bias is not None else None

    def add(self, rows: slice, logits: Tensor) -> None:
        """The gradients that follow from `logits`, the gradient of a chunk's logits."""
        hidden, weight, _ = self.inputs
        if self.hidden is not None and weight is None:
            self.hidden[rows] = logits
        elif self.hidden is not None and weight is not None:
            torch.mm(logits, weight.to(self.dtype), out=self.hidden[rows])
        if self.wanted[1]:
            part = hidden[rows].to(self.dtype)
            if self._weight is None:
                self._weight = logits.T @ part
            else:
                self._weight.addmm_(logits.T, part)
        if self.bias is not None:
            self.bias += logits.sum(0)

    def add_supports(self, supports: Sequence[tuple[slice, Support]], grad: Tensor) -> None:
        """The same of sparse gradients of some chunks, times the gradient of each row's loss."""
        if not supports:
            return
        hidden, weight, _ = self.inputs
        device = hidden.device
        rows = torch.cat([torch.arange(part.start, part.stop, device=device) for part, _ in supports])
        classes, values, counts = (torch.cat(parts) for parts in zip(*(s for _, s in supports), strict=True))
        of = rows.repeat_interleave(counts)
        values = values * grad[of]
        bag = torch.nn.functional.embedding_bag
        if self.hidden is not None and weight is None:
            self.hidden[rows] = 0
            self.hidden.index_put_((of, classes), values)
        elif self.hidden is not None and weight is not None:
            starts, table = counts.cumsum(0) - counts, weight.to(self.dtype)
            self.hidden[rows] = bag(classes, table, starts, mode="sum", per_sample_weights=values)
        if self.bias is not None:
            self.bias.index_add_(0, classes, values)
        if self.wanted[1] and weight is not None:
            # Sorted by class, a row of the head is a bag of hidden states. All chunks at once: what a sum
            # costs is then shared by the rows that a class has in any of them.
            order = classes.argsort(stable=True)
            found, sizes = classes[order].unique_consecutive(return_counts=True)
            starts, table = sizes.cumsum(0) - sizes, hidden.to(self.dtype)
            sums = bag(of[order], table, starts, mode="sum", per_sample_weights=values[order])
            if self._weight is None:
                self._weight = torch.zeros_like(weight, dtype=self.dtype)
            self._weight.index_add_(0, found, sums)

    def scale(self, factor: Tensor) -> None:
        """Multiplies everything by a number."""
        for each in (self.hidden, self._weight, self.bias):
            if each is not None:
                each *= factor

    def results(self) -> tuple[Tensor | None, ...]:
        """The gradients, in the types of what they are gradients of."""
        hidden, weight, bias = self.inputs
        if self.wanted[1] and self._weight is None and weight is not None:
            self._weight = torch.zeros_like(weight)
        return (
            None if self.hidden is None else self.hidden.to(hidden.dtype),
            None if self._weight is None or weight is None else self._weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )
