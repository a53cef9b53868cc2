"""Which implementation of an operation runs: one table, and the reasons.

An operation has the same signature in every implementation; `eager` is plain PyTorch, covers everything, and
in float64 is what the others are measured against. The others are loaded when they are first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fenchel.divergences import FDivergence
from fenchel.divergences import divergence as find
from fenchel.errors import InputError, nearest
from fenchel.kernels import eager

MODULES: Mapping[str, str] = MappingProxyType(
    {
        "triton": "fenchel.kernels.triton",
        "cpu": "fenchel.kernels.cpu",
        "eager": "fenchel.kernels.eager",
    }
)
"""The implementations in the order in which `impl="auto"` tries them."""

OPERATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "softargmax": ("triton", "cpu", "eager"),
        "softargmax_gradient": ("triton", "cpu", "eager"),
        "shard_softargmax": ("eager",),
        "shard_probabilities": ("eager",),
        "token_loss": ("triton", "cpu", "eager"),
        "token_support": ("cpu", "eager"),
        "distillation": ("triton", "cpu", "eager"),
        "topk_distillation": ("triton", "cpu", "eager"),
        "isotonic": ("cpu", "eager"),
        "isotonic_gradient": ("eager",),
        "isotonic_tangent": ("eager",),
        "dykstra": ("eager",),
        "sinkhorn": ("cpu", "eager"),
        "topk_mask": ("cpu", "eager"),
        "topk_magnitude": ("cpu", "eager"),
    }
)
"""The operations, and who implements them."""

OF_NO_DIVERGENCE = frozenset(
    {
        "isotonic",
        "isotonic_gradient",
        "isotonic_tangent",
        "dykstra",
        "sinkhorn",
        "topk_mask",
        "topk_magnitude",
    }
)
"""The operations that no record belongs to."""


class Choice(NamedTuple):
    """Which implementation runs, and why those before it in the order do not.

    Args:
        impl: "eager", "cpu" or "triton".
        refusals: of each implementation that was tried in vain, the reason.

    Example:
        >>> import torch
        >>> from fenchel import which
        >>> which("softargmax", torch.zeros(2, 3, dtype=torch.float64)).impl
        'eager'
    """

    impl: str
    refusals: Mapping[str, str]

    def __str__(self) -> str:
        others = "".join(f"; not {name}: {reason}" for name, reason in self.refusals.items())
        return f"{self.impl}{others}"


def which(
    op: str, *tensors: Tensor | None, divergence: str | FDivergence = "kl", impl: str = "auto"
) -> Choice:
    """The implementation of an operation that would run on such tensors, and the reasons against others.

    Args:
        op: one of `fenchel.kernels.dispatch.OPERATIONS`, such as "softargmax" or "token_loss".
        tensors: its tensors, the scores first, then the reference measure if there is one.
        divergence: the divergence: a name or a record; not looked at where the operation has none.
        impl: what was asked for: "auto", "eager", "cpu" or "triton".

    Returns:
        A `Choice`; its text is one line for a log.

    Raises:
        InputError: no such operation or implementation, or one asked for by name that cannot run.

    Example:
        >>> import torch
        >>> print(which("softargmax", torch.zeros(2, 3)))  # doctest: +ELLIPSIS
        eager; not triton: ...; not cpu: ...
    """
    if op not in OPERATIONS:
        raise InputError(f"unknown operation {op!r}{nearest(op, OPERATIONS)}; known: {', '.join(OPERATIONS)}")
    return _choose(op, None if op in OF_NO_DIVERGENCE else find(divergence), tensors, impl)


def implementation(
    op: str, record: FDivergence | None, *tensors: Tensor | None, impl: str = "auto"
) -> Callable[..., Any]:
    """The function that runs `op` on such tensors; `record` is None for one of no divergence."""
    function: Callable[..., Any]
    if impl == "eager" or torch.compiler.is_compiling():  # a compiler makes kernels of its own
        function = getattr(eager, op)
    else:
        function = getattr(_module(_choose(op, record, tensors, impl).impl), op)
    return function


def _choose(op: str, record: FDivergence | None, tensors: tuple[Tensor | None, ...], impl: str) -> Choice:
    if impl != "auto" and impl not in MODULES:
        raise InputError(f"impl must be auto, {', '.join(MODULES)}, received {impl!r}")
    present = tuple(tensor for tensor in tensors if tensor is not None)
    refusals: dict[str, str] = {}
    for name in MODULES if impl == "auto" else (impl,):
        if name not in OPERATIONS[op]:
            refusals[name] = f"it has no {op}"
            continue
        reason = None if name == "eager" else _module(name).refusal(op, record, present, auto=impl == "auto")
        if reason is None:
            return Choice(name, MappingProxyType(refusals))
        refusals[name] = reason
    name = f"{op} of {record.name}" if record else op
    raise InputError(f"impl={impl!r} cannot run {name}: {refusals[impl]}")


def _module(name: str) -> ModuleType:
    return importlib.import_module(MODULES[name])
