"""Losses of a language-model head, in chunks of rows: the (tokens, V) logits are never held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fenchel.checks import is_plain
from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.errors import InputError
from fenchel.losses.distillation import distillation_loss
from fenchel.losses.fenchel_young import check_smoothing, check_tensor, class_indices, fenchel_young_loss
from fenchel.losses.head import Criterion, Differentiated, Distilled, Tokens, head_losses
from fenchel.losses.reduce import check_rows, reduce
from fenchel.operators._inputs import check_temperature, prepare_reference


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of a chunk where nobody says otherwise: 2^23 logits on a CPU, 32 MiB of float32; else 2^26.

    Smaller ones leave an accelerator without work. On a CPU, what is smaller than 32 MiB comes from the
    heap of the C library, which fragments; so the rows are rounded up.
    """
    return -(-(2 ** (23 if device.type == "cpu" else 26)) // vocabulary)


class Scores(NamedTuple):
    """Logits hidden @ weight.T + bias, (n, V), not yet multiplied out; without a weight, hidden itself."""

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.hidden)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.hidden.shape[-1] if self.weight is None else self.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.hidden.device

    def logits(self) -> Tensor:
        """The logits, (n, V), in float32 at least."""
        scores = self.hidden
        if self.weight is not None:
            scores = torch.nn.functional.linear(scores, self.weight, self.bias)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def rows(self, rows: slice) -> Scores:
        """Some of the rows."""
        return self._replace(hidden=self.hidden[rows])

    def over(self, temperature: float) -> Scores:
        """The logits divided by a temperature."""
        if temperature == 1:
            return self
        bias = None if self.bias is None else self.bias / temperature
        return self._replace(hidden=self.hidden / temperature, bias=bias)

    def classes(self, count: int) -> Scores:
        """The first `count` classes."""
        if self.weight is None:
            return Scores(self.hidden[:, :count])
        return Scores(self.hidden, self.weight[:count], None if self.bias is None else self.bias[:count])


class Rows(Protocol):
    """Logits of n rows that are not computed yet."""

    @property
    def n(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def logits(self) -> Tensor: ...
    def rows(self, rows: slice) -> Rows: ...
    def classes(self, count: int) -> Rows: ...


def in_chunks(loss: Callable[..., Tensor], scores: Rows, *arguments: Any, chunk: int | None = None) -> Tensor:
    """loss(logits, *arguments), (n,), `chunk` rows at a time.

    `arguments` are `Rows`, which become logits, `TopK` and tensors of n rows, or None. Each chunk's logits
    are computed again in the backward pass instead of being kept. `chunk_rows`
    says how many by default; if there is only one chunk, nothing is computed twice.
    """
    everything = (scores, *arguments)
    chunk = _checked(chunk, scores)

    def piece(*parts: Any) -> Tensor:
        return loss(*(part.logits() if hasattr(part, "logits") else part for part in parts))

    n = scores.n
    if n <= chunk:
        return piece(*everything)
    pieces = []
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        parts = [_rows(argument, rows) for argument in everything]
        pieces.append(checkpoint(piece, *parts, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(pieces)


def may_fuse(scores: Rows, *others: Tensor | None) -> bool:
    """Whether `losses_of` can take these rows: a head on plain tensors, neither traced nor transformed."""
    return isinstance(scores, Scores) and all(x is None or is_plain(x) for x in (*scores, *others))


def losses_of(scores: Scores, criterion: Criterion, chunk: int | None = None) -> Tensor:
    """The losses (n,) of a criterion, `chunk` rows at a time; gradients flow to hidden, weight and bias."""
    return head_losses(*scores, criterion, _checked(chunk, scores))


def _checked(chunk: int | None, scores: Rows) -> int:
    if chunk is None:
        return chunk_rows(scores.vocabulary, scores.device)
    if chunk < 1:
        raise InputError(f"chunk must be at least 1 row, received {chunk}")
    return chunk


def _rows(argument: Any, rows: slice) -> Any:
    if isinstance(argument, Tensor):
        return argument[rows]
    return None if argument is None else argument.rows(rows)


def linear_fenchel_young_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    bias: Tensor | None = None,
    reference: float | Tensor = 1.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    chunk: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """`fenchel_young_loss` of the logits hidden @ weight.T + bias, which are never held as a whole.

    The gradients are made in the forward pass, chunk by chunk, in float32 at least. Under a sparse
    divergence ("chi2", "alpha:1.5", every α > 1) most numbers of p - y are zero once a model is trained;
    then two of the three products of matrices become sums over the support, exactly, which on a CPU takes
    less than half the time of cross-entropy. It falls back to the products where the support is large.

    Args:
        hidden: last hidden states, (..., d).
        weight: the head, (V, d).
        target: class indices (...), or probabilities (..., V).
        divergence: a name or an `FDivergence`.
        bias: of the head, (V,).
        reference: the measure q > 0: a number or (V,).
        ignore_index, label_smoothing: as in `fenchel_young_loss`.
        temperature: T > 0, a number.
        reduction: "mean" (over targets that count), "sum" or "none". Where the rows' losses then have
            gradients that differ, as "none" allows, logits are computed a second time in the backward pass.
        chunk: rows whose logits are held at a time; by default 2^23 / V on a CPU.
        impl: which implementation runs, see `fenchel.which`; "eager" is plain PyTorch, and what runs under
            `torch.compile` and `torch.func`.

    Returns:
        The loss in nats, in float32 at least; for "none" the shape of hidden without d.

    Raises:
        InputError: shapes or values that do not fit, quoting what was received.

    Example:
        >>> import torch
        >>> hidden, weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2)
        >>> loss = linear_fenchel_young_loss(hidden, weight, torch.tensor([0, 0]), chunk=1)
        >>> torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(hidden, torch.tensor([0, 0])))

    Reference:
        Blondel, Martins and Niculae, 2020, arXiv 1901.02324; Wijmans et al., 2024, arXiv 2411.09009
        (losses without the logits).
    """
    scores, shape = head_of(hidden, weight, bias, "hidden", "weight")
    check_temperature(temperature)
    check_smoothing(label_smoothing)
    flat = flat_target(target, hidden, scores)
    soft = flat.is_floating_point()
    measure = isinstance(reference, Tensor) and reference.requires_grad

    def loss(logits: Tensor, part: Tensor) -> Tensor:
        return fenchel_young_loss(
            logits,
            part,
            divergence,
            reference=reference,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            temperature=temperature,
            reduction="none",
            impl=impl,
        )

    others = (flat, reference if isinstance(reference, Tensor) else None)
    if impl == "eager" or soft or measure or not may_fuse(scores, *others):
        losses = in_chunks(loss, scores, flat, chunk=chunk).view(shape)
        mask = None if soft else target != ignore_index
        return reduce(losses, reduction=reduction, mask=mask)
    counted = class_indices(flat, scores.vocabulary, ignore_index)
    q = None
    if isinstance(reference, Tensor) or reference != 1:
        like = weight[:, 0].to(torch.promote_types(weight.dtype, torch.float32))
        q = prepare_reference(reference, like, -1, like)
    if label_smoothing and q is not None:
        criterion: Criterion = Differentiated(lambda logits, rows: loss(logits, flat[rows]))
        scaled = scores
    else:
        criterion = Tokens(counted, find(divergence), q, label_smoothing, impl)
        scaled = scores.over(temperature)
    losses = losses_of(scaled, criterion, chunk).view(shape)
    return reduce(losses, reduction=reduction, count=(counted >= 0).sum())


def linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    divergence: str | FDivergence = "kl",
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float = 1.0,
    squared_temperature: bool = False,
    mask: Tensor | None = None,
    reduction: str = "mean",
    chunk: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """`distillation_loss` between two heads, hidden @ weight.T + bias; no (rows, V) tensor is held.

    The student's gradients are made in the forward pass, chunk by chunk, in float32 at least.

    Args:
        student_hidden: last hidden states of the student, (..., d_S).
        student_weight: its head, (V, d_S).
        teacher_hidden: last hidden states of the teacher, (..., d_T).
        teacher_weight: its head, (V, d_T).
        divergence: a name or an `FDivergence`; D_f(p_T, p_S).
        student_bias, teacher_bias: of the heads, (V,).
        temperature, squared_temperature: as in `distillation_loss`.
        mask: positions that count, (...).
        reduction: "mean" (over the positions that count), "sum" or "none". Where the rows' losses then have
            gradients that differ, as "none" allows, logits are computed a second time in the backward pass.
        chunk: rows whose logits are held at a time; by default 2^23 / V on a CPU.
        impl: which implementation runs, see `fenchel.which`; "eager" is plain PyTorch, and what runs under
            `torch.compile` and `torch.func`, and where the teacher is to have gradients.

    Returns:
        The loss in nats, in float32 at least; for "none" the shape (...).

    Raises:
        InputError: shapes that do not fit, quoting what was received.

    Example:
        >>> import torch
        >>> hidden = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss = linear_distillation_loss(hidden, weight, 2 * hidden, weight, "js", chunk=1)
        >>> round(float(loss), 4)
        0.0223

    Reference:
        Hinton, Vinyals and Dean, 2015, arXiv 1503.02531; Wijmans et al., 2024, arXiv 2411.09009 (losses
        without the logits).
    """
    student, shape = head_of(student_hidden, student_weight, student_bias, "student_hidden", "student_weight")
    teacher, rows = head_of(teacher_hidden, teacher_weight, teacher_bias, "teacher_hidden", "teacher_weight")
    if shape != rows or student.vocabulary != teacher.vocabulary:
        raise InputError(
            f"student and teacher must agree on rows and classes, received {tuple(shape)} rows of "
            f"{student.vocabulary} classes and {tuple(rows)} rows of {teacher.vocabulary}"
        )
    check_temperature(temperature)
    check_rows(mask, shape, "mask")
    taught = any(x is not None and x.requires_grad for x in teacher)
    if impl == "eager" or taught or not may_fuse(student, *teacher, mask):

        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            return distillation_loss(
                student,
                teacher,
                divergence,
                temperature=temperature,
                squared_temperature=squared_temperature,
                reduction="none",
                impl=impl,
            )

        losses = in_chunks(loss, student, teacher, chunk=chunk).view(shape)
        return reduce(losses, reduction=reduction, mask=mask)
    scale = temperature**2 if squared_temperature else 1.0
    keep = None if mask is None else mask.reshape(-1).bool()
    criterion = Distilled(
        lambda part: teacher.rows(part).logits(), find(divergence), temperature, scale, keep, impl
    )
    losses = losses_of(student, criterion, chunk).view(shape)
    return reduce(losses, reduction=reduction, count=None if keep is None else keep.sum())


def flat_target(target: Tensor, hidden: Tensor, scores: Scores) -> Tensor:
    """Class indices (n,) or probabilities (n, V); raises InputError where target is neither."""
    check_tensor(target, "target")
    shape = hidden.shape[:-1]
    probabilities = (*shape, scores.vocabulary)
    if target.shape != (probabilities if target.is_floating_point() else shape):
        raise InputError(
            f"target must be class indices {tuple(shape)} or probabilities {probabilities} for "
            f"hidden {tuple(hidden.shape)}, received {target.dtype} of shape {tuple(target.shape)}"
        )
    return target.reshape(-1, *target.shape[len(shape) :])


def head_of(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, hidden_name: str, weight_name: str
) -> tuple[Scores, torch.Size]:
    """The head on rows, and the shape of the rows."""
    if weight.dim() != 2 or hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1] or 0 in weight.shape:
        raise InputError(
            f"{hidden_name} must be (..., d) and {weight_name} (V, d), received {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (len(weight),):
        raise InputError(f"the bias of {weight_name} must be ({len(weight)},), received {tuple(bias.shape)}")
    return Scores(hidden.reshape(-1, hidden.shape[-1]), weight, bias), hidden.shape[:-1]
