"""The operations in Triton on an accelerator, written for a record at its first use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fenchel.checks import is_plain
from fenchel.divergences import FDivergence
from fenchel.divergences.solution import with_constant
from fenchel.kernels.cache import once
from fenchel.kernels.expression import NotTraceable
from fenchel.kernels.rows import as_rows, copy_back, writable
from fenchel.kernels.triton import source
from fenchel.kernels.triton.build import CannotWrite, module

# Register files hold no more without spilling: the longest row that the solver keeps on chip, and the part of
# others that is looked at at a time, of which each thread has 8 classes.
LARGEST_WHOLE, BLOCK = 16384, 4096
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(op: str, record: FDivergence, tensors: Sequence[Tensor], *, auto: bool) -> str | None:
    """Why `op` cannot run here on such tensors, or None. With `auto` not in Triton's interpreter."""
    if not _is_installed():
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and not auto
    for tensor in tensors:
        if tensor.device.type not in ("cuda", "xpu") and not (interpreted and tensor.device.type == "cpu"):
            return f"a tensor is on {tensor.device.type}"
        if tensor.is_floating_point() and tensor.dtype not in _DTYPES:
            return f"it computes in float32, and a tensor is {str(tensor.dtype).removeprefix('torch.')}"
        if not is_plain(tensor):
            return "a tensor has no memory of its own (a subclass, a trace or a transformation)"
    if tensors[0].dim() and tensors[0].shape[-1] >= 2**30:
        return "rows must be shorter than 2^30"
    try:
        _kernels(record, op.endswith("distillation"))
    except (NotTraceable, CannotWrite) as error:
        return str(error)
    return None


@cache
def _is_installed() -> bool:
    return find_spec("triton") is not None


@once
def _source(record: FDivergence, distillation: bool) -> str:
    return source.distillation(record) if distillation else source.solver(record)


def _kernels(record: FDivergence, distillation: bool = False) -> ModuleType:
    return module(_source(record, distillation))


def softargmax(
    scores: Tensor, q: Tensor | None, record: FDivergence, with_value: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fenchel.kernels.eager.softargmax`; the last three are in float32."""
    x, measure = as_rows(scores), _measure(q, scores)
    p = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    value, threshold, top = (_floats(x) for _ in range(3))
    _solve(x, measure, record, None, 0.0, p, value, threshold, top, with_value=with_value)
    shape = scores.shape[:-1]
    return p.view(scores.shape), value.view(shape), threshold.view(shape), top.view(shape)


def softargmax_gradient(
    p: Tensor,
    q: Tensor | None,
    record: FDivergence,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Tensor | None:
    """See `fenchel.kernels.eager.softargmax_gradient`."""
    if all(grad is None for grad in grads):
        return None
    x, measure = as_rows(p), _measure(q, p)
    given = x if grads[0] is None else as_rows(grads[0].expand_as(p))
    per_row = [x if grad is None else grad.detach().reshape(-1) for grad in grads[1:]]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, n = x.shape
    if rows:
        with _on(x):
            _kernels(record).differentiate_rows[(rows,)](
                *_strided(x),
                *_strided(x if measure is None else measure),
                n,
                *_strided(given),
                *(grad.contiguous() for grad in per_row),
                *_strided(out),
                Q=measure is not None,
                GRAD_P=grads[0] is not None,
                GRAD_VALUE=grads[1] is not None,
                GRAD_THRESHOLD=grads[2] is not None,
                **_shape(n),
            )
    return out.view(p.shape)


def token_loss(
    scores: Tensor,
    target: Tensor,
    q: Tensor | None,
    record: FDivergence,
    label_smoothing: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """See `fenchel.kernels.eager.token_loss`; the losses are in float32."""
    x, measure = as_rows(scores), _measure(q, scores)
    losses = _floats(x)
    written = writable(out)
    _solve(x, measure, record, target.contiguous(), label_smoothing, written, losses)
    copy_back(written, out)
    return with_constant(losses, target, measure, record)


def distillation(
    student: Tensor,
    teacher: Tensor,
    record: FDivergence,
    temperature: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """See `fenchel.kernels.eager.distillation`; the losses are in float32."""
    x, t, written = as_rows(student), as_rows(teacher), writable(out)
    losses = _floats(x)
    rows, n = x.shape
    if rows:
        with _on(x):
            _kernels(record, True).distil_rows[(rows,)](
                *_strided(x),
                *_strided(t),
                n,
                1 / temperature,
                *_strided(x if written is None else written),
                losses,
                STORE=written is not None,
                **_shape(n),
            )
    copy_back(written, out)
    return losses


def topk_distillation(
    student: Tensor,
    indices: Tensor,
    log_probs: Tensor,
    log_tail: Tensor,
    record: FDivergence,
    temperature: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """See `fenchel.kernels.eager.topk_distillation`; the losses are in float32."""
    x, written = as_rows(student), writable(out)
    losses = _floats(x)
    rows, n = x.shape
    k = indices.shape[-1]
    listed = torch.zeros(rows, -(-n // 32), dtype=torch.int32, device=x.device)
    if rows:
        with _on(x):
            _kernels(record, True).distil_buckets[(rows,)](
                *_strided(x),
                *(part.detach().contiguous() for part in (indices, log_probs, log_tail)),
                *_strided(listed),
                n,
                k,
                1 / temperature,
                *_strided(x if written is None else written),
                losses,
                SLOTS=_power_of_two(k),
                STORE=written is not None,
                **_shape(n),
            )
    copy_back(written, out)
    return losses


def _solve(
    x: Tensor,
    q: Tensor | None,
    record: FDivergence,
    target: Tensor | None,
    smoothing: float,
    out: Tensor | None,
    value: Tensor,
    *others: Tensor,
    with_value: bool = True,
) -> None:
    """Runs `solve_rows` of solver.py; what is absent stands for nothing that the kernel looks at."""
    rows, n = x.shape
    if not rows:
        return
    with _on(x):
        _kernels(record).solve_rows[(rows,)](
            *_strided(x),
            *_strided(x if q is None else q),
            n,
            value if target is None else target,
            smoothing,
            *_strided(x if out is None else out),
            value,
            *(others or (value, value)),
            Q=q is not None,
            HARD=target is not None,
            SMOOTH=smoothing > 0,
            STORE=out is not None,
            VALUE=with_value,
            **_solver_shape(n, record),
        )


def _shape(n: int) -> dict[str, Any]:
    """Launch options for rows of n classes that are read as often as they are needed."""
    block = min(_power_of_two(n), BLOCK)
    return _launch(BLOCK=block, num_warps=max(block // 256, 1))


def _solver_shape(n: int, record: FDivergence) -> dict[str, Any]:
    """Launch options for the solver, which keeps a row that is short enough on chip."""
    scale = 4 if record.kappa > 1 else 1  # what float64 takes, with its sums
    if n * scale > LARGEST_WHOLE:
        return _launch(BLOCK=BLOCK // scale, WHOLE=False, num_warps=BLOCK // 256)
    block = _power_of_two(n)
    return _launch(BLOCK=block, WHOLE=True, num_warps=max(block * scale // 512, 1))


def _launch(**options: Any) -> dict[str, Any]:
    """Triton 3.10 fuses multiplications with additions only where that is asked for."""
    return {"enable_fp_fusion": True, **options}


def _power_of_two(n: int) -> int:
    """At least 64: a warp with nothing to do is no slower than a short row."""
    return max(1 << (n - 1).bit_length(), 64)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    device: AbstractContextManager[Any] = nullcontext()
    if x.device.type != "cpu":
        device = torch.get_device_module(x.device).device(x.device)
    return device


def _floats(x: Tensor) -> Tensor:
    return torch.empty(len(x), dtype=torch.float32, device=x.device)


def _measure(q: Tensor | None, scores: Tensor) -> Tensor | None:
    """Rows of q; one that is the same for all keeps its stride of 0."""
    return None if q is None else as_rows(q.expand_as(scores))


def _strided(x: Tensor) -> tuple[Tensor, int]:
    return x, x.stride(0)
