"""The operations in C++ on a CPU, compiled for a record at its first use on a large tensor."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fenchel.checks import is_plain
from fenchel.divergences import FDivergence
from fenchel.divergences.solution import with_constant
from fenchel.errors import BadScores
from fenchel.kernels import eager
from fenchel.kernels.cache import once
from fenchel.kernels.cpu import pool, source
from fenchel.kernels.cpu import sinkhorn as scaling
from fenchel.kernels.cpu import topk as choices
from fenchel.kernels.cpu.build import CannotCompile, library
from fenchel.kernels.cpu.pool import DTYPES
from fenchel.kernels.cpu.pool import isotonic as isotonic
from fenchel.kernels.cpu.sinkhorn import sinkhorn as sinkhorn
from fenchel.kernels.cpu.topk import topk_magnitude as topk_magnitude
from fenchel.kernels.cpu.topk import topk_mask as topk_mask
from fenchel.kernels.expression import NotTraceable
from fenchel.kernels.rows import as_rows, copy_back, writable

_WORTH = 2**16  # elements from which "auto" compiles a record: below, plain PyTorch takes a millisecond
_COMPILED = {
    "isotonic": pool.compiled,
    "sinkhorn": scaling.compiled,
    "topk_mask": choices.compiled,
    "topk_magnitude": choices.compiled,
}
_WORTH_WITHOUT_RECORD = 2**10  # one compilation serves all, and plain PyTorch takes many small steps


class _Batch(ctypes.Structure):
    """`Batch` of kernels.cpp."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("q", ctypes.c_void_p),
        ("q_stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("n", ctypes.c_int64),
    )


def refusal(op: str, record: FDivergence | None, tensors: Sequence[Tensor], *, auto: bool) -> str | None:
    """Why `op` cannot run here on such tensors, or None. With `auto` also why it would not be worth it."""
    dtypes = (torch.float32,) if record else DTYPES
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device.type}"
        if tensor.is_floating_point() and tensor.dtype not in dtypes:
            names = [str(dtype).removeprefix("torch.") for dtype in (*dtypes, tensor.dtype)]
            return f"it computes in {' and '.join(names[:-1])}, and a tensor is {names[-1]}"
        if not is_plain(tensor):
            return "a tensor has no memory of its own (a subclass, a trace or a transformation)"
    size = tensors[0].numel()
    if auto and size < (_WORTH if record else _WORTH_WITHOUT_RECORD):
        return f"{size} elements are too few to be worth a compilation"
    if size and tensors[0].shape[-1] >= 2**31:
        return "rows must be shorter than 2^31"
    try:
        if record:
            _library(record, op.endswith("distillation"))
        else:
            _COMPILED[op]()
    except (NotTraceable, CannotCompile) as error:
        return str(error)
    return None


@once
def _source(record: FDivergence, distillation: bool) -> str:
    return source.distillation(record) if distillation else source.solver(record)


def _library(record: FDivergence, distillation: bool = False) -> ctypes.CDLL:
    return library(_source(record, distillation))


def softargmax(
    scores: Tensor, q: Tensor | None, record: FDivergence, with_value: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fenchel.kernels.eager.softargmax`."""
    flat, measure = as_rows(scores), None if q is None else as_rows(q)
    p = torch.empty_like(flat, memory_format=torch.contiguous_format)
    value = flat.new_full((len(flat),), math.nan)
    threshold, top = torch.empty_like(value), torch.empty_like(value)
    status = torch.empty(len(flat), dtype=torch.int32)
    _library(record).softargmax(
        _batch(flat, measure), *_pointers(p, value if with_value else None, threshold, top, status)
    )
    _raise_if(status, scores)
    shape = scores.shape[:-1]
    return p.view(scores.shape), value.view(shape), threshold.view(shape), top.view(shape)


def softargmax_gradient(
    p: Tensor,
    q: Tensor | None,
    record: FDivergence,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Tensor:
    """See `fenchel.kernels.eager.softargmax_gradient`."""
    flat, measure = as_rows(p), None if q is None else as_rows(q)
    grad_p, *grad_rows = grads
    inputs = [
        None if grad_p is None else as_rows(grad_p).contiguous(),
        *(None if grad is None else grad.reshape(-1).contiguous() for grad in grad_rows),
    ]
    out = torch.empty_like(flat, memory_format=torch.contiguous_format)
    _library(record).softargmax_gradient(_batch(flat, measure), *_pointers(*inputs, out))
    return out.view(p.shape)


def token_loss(
    scores: Tensor,
    target: Tensor,
    q: Tensor | None,
    record: FDivergence,
    label_smoothing: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """See `fenchel.kernels.eager.token_loss`."""
    flat, measure = as_rows(scores), None if q is None else as_rows(q)
    losses = scores.new_empty(len(scores))
    status = torch.empty(len(scores), dtype=torch.int32)
    target = target.long().contiguous()
    written = writable(out)
    stride = 0 if written is None else written.stride(0)
    _library(record).token_loss(
        _batch(flat, measure),
        *_pointers(target, written),
        ctypes.c_int64(stride),
        ctypes.c_float(label_smoothing),
        *_pointers(losses, status),
    )
    _raise_if(status, scores)
    copy_back(written, out)
    return with_constant(losses, target, q, record)


def token_support(
    scores: Tensor, target: Tensor, q: Tensor | None, record: FDivergence, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """See `fenchel.kernels.eager.token_support`."""
    flat, measure = as_rows(scores), None if q is None else as_rows(q)
    n = len(flat)
    # A row may have more than its share, at a cost of memory: what is not written is not touched.
    capacity = min(flat.shape[-1], 4 * max(1, most // max(1, n)))
    losses = flat.new_empty(n)
    index, gradient = torch.empty(n, capacity, dtype=torch.int32), flat.new_empty(n, capacity)
    count, status = torch.empty(n, dtype=torch.int32), torch.empty(n, dtype=torch.int32)
    target = target.long().contiguous()
    run = _library(record)
    run.token_support(
        _batch(flat, measure),
        *_pointers(target),
        ctypes.c_int64(capacity),
        *_pointers(index, gradient, count, losses, status),
    )
    _raise_if(status, scores)
    counts = count.long()
    total = int(counts.sum())
    if total > most or bool((counts < 0).any()):
        return None
    classes, numbers = torch.empty(total, dtype=torch.int64), flat.new_empty(total)
    run.pack(
        *_pointers(index, gradient, count), *map(ctypes.c_int64, (n, capacity)), *_pointers(classes, numbers)
    )
    return with_constant(losses, target, q, record), classes, numbers, counts


def distillation(
    student: Tensor,
    teacher: Tensor,
    record: FDivergence,
    temperature: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """See `fenchel.kernels.eager.distillation`."""
    t = as_rows(teacher)
    strided = (*_pointers(t), ctypes.c_int64(t.stride(0)))
    return _distil("distillation", student, (t,), strided, record, temperature, out)


def topk_distillation(
    student: Tensor,
    indices: Tensor,
    log_probs: Tensor,
    log_tail: Tensor,
    record: FDivergence,
    temperature: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """See `fenchel.kernels.eager.topk_distillation`."""
    teacher = tuple(part.detach().contiguous() for part in (indices.long(), log_probs, log_tail))
    given = (*_pointers(*teacher), ctypes.c_int64(indices.shape[-1]))
    return _distil("topk_distillation", student, teacher, given, record, temperature, out)


def _distil(
    op: str,
    student: Tensor,
    teacher: tuple[Tensor, ...],
    given: Sequence[object],
    record: FDivergence,
    temperature: float,
    out: Tensor | None,
) -> Tensor:
    """Runs `op` on a teacher that C++ knows as `given`."""
    x = as_rows(student)
    losses = x.new_empty(len(x))
    status = torch.empty(len(x), dtype=torch.int32)
    written = writable(out)
    getattr(_library(record, True), op)(
        *_pointers(x),
        ctypes.c_int64(x.stride(0)),
        *given,
        *map(ctypes.c_int64, x.shape),
        ctypes.c_float(1 / temperature),
        *_pointers(written),
        ctypes.c_int64(0 if written is None else written.stride(0)),
        *_pointers(losses, status),
    )
    if bool(status.any()):  # rows with classes at -inf, or with an error
        odd = status.nonzero().squeeze(-1)
        part = None if written is None else torch.empty_like(x[odd])
        run = getattr(eager, op)
        try:
            losses[odd] = run(x[odd], *(each[odd] for each in teacher), record, temperature, part)
        except BadScores as error:
            raise BadScores(int(odd[error.row]), student.shape) from None
        if written is not None and part is not None:
            written[odd] = part
    copy_back(written, out)
    return losses


def _batch(x: Tensor, q: Tensor | None) -> object:
    rows, n = x.shape
    pointer, stride = (None, 0) if q is None else (q.data_ptr(), q.stride(0))
    return ctypes.byref(_Batch(x.data_ptr(), x.stride(0), pointer, stride, rows, n))


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def _raise_if(status: Tensor, scores: Tensor) -> None:
    if bool(status.any()):
        raise BadScores(int(status.nonzero()[0]), scores.shape)
