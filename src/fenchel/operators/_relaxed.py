"""Relaxed choices of k with their derivatives, whichever implementation finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fenchel.kernels.dispatch import implementation


def relaxed(
    op: str, x: Tensor, k: int | Tensor, regularization: float, exponent: float, impl: str = "auto"
) -> Tensor:
    """The operation "topk_mask" or "topk_magnitude" of `fenchel.kernels.topk`, with all derivatives.

    Under `torch.compile` it is one opaque operation.

    Args:
        op: its name.
        x: (..., n) in float32 or float64.
        k: a number, or integers (..., 1).
        regularization: l > 0.
        exponent: e >= 1.
        impl: which implementation runs.

    Returns:
        y, the shape and dtype of x.

    Raises:
        BadScores: a row that has no such choice.
    """
    count, counts = (0, k) if isinstance(k, Tensor) else (k, None)
    function = _Relaxed if torch.compiler.is_compiling() else _TransformableRelaxed
    y: Tensor = function.apply(op, x, count, counts, regularization, exponent, impl)  # type: ignore[no-untyped-call]
    return y


class _Relaxed(torch.autograd.Function):
    """Derivatives are written in y, which is itself an output, so that they can be differentiated again."""

    @staticmethod
    def forward(
        op: str, x: Tensor, k: int, ks: Tensor | None, regularization: float, exponent: float, impl: str
    ) -> Tensor:
        run = _opaque if torch.compiler.is_compiling() else _solve
        y: Tensor = run(op, x, k, ks, regularization, exponent, impl)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op, _, ctx.k, ks, ctx.regularization, ctx.exponent, _ = inputs
        ctx.save_for_backward(output, ks)
        ctx.save_for_forward(output, ks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, DERIVATIVES[ctx.op].backward(_found(ctx), grad), *(None,) * 5


class _TransformableRelaxed(_Relaxed):
    """The same with rules for `torch.func`, apart because `torch.compile` refuses such functions."""

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor, *others: None) -> Tensor:
        return DERIVATIVES[ctx.op].forward(_found(ctx), tangent)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], op: str, x: Tensor, k: int, ks: Tensor | None, *options: Any
    ) -> tuple[Tensor, int]:
        # Rows are independent, so a mapped axis is just one more batch axis.
        size, (_, in_x, _, in_k, *_) = info.batch_size, in_dims
        x = x.expand(size, *x.shape) if in_x is None else x.movedim(in_x, 0)
        if ks is not None:
            ks = ks.expand(size, *ks.shape) if in_k is None else ks.movedim(in_k, 0)
        return _TransformableRelaxed.apply(op, x, k, ks, *options), 0  # type: ignore[no-untyped-call]


# --- derivatives ----------------------------------------------------------------------------------


class Found(NamedTuple):
    """What the derivatives are written in."""

    y: Tensor
    k: int | Tensor
    regularization: float
    exponent: float


class Derivatives(NamedTuple):
    """The Jacobian, transposed and as it is, times a direction."""

    backward: Callable[[Found, Tensor], Tensor]
    forward: Callable[[Found, Tensor], Tensor]


def _of_mask(found: Found, direction: Tensor) -> Tensor:
    """(diag(w) - w wᵀ / Σ w) / l, with w the derivative of the ramp, strictly between 0 and 1."""
    y, _, regularization, exponent = found
    inside = (y > 0) & (y < 1)
    w = torch.where(inside, exponent * torch.where(inside, y, 1.0) ** (1 - 1 / exponent), 0.0)
    mass = _sum(w)
    return w * (direction - _sum(w * direction) / torch.where(mass > 0, mass, 1.0)) / regularization


def _backward_of_magnitude(found: Found, direction: Tensor) -> Tensor:
    between, weight = _pull(found)
    direction = torch.where(between, direction, 0.0)
    return direction - weight * _sum(direction)


def _forward_of_magnitude(found: Found, direction: Tensor) -> Tensor:
    between, weight = _pull(found)
    return torch.where(between, direction - _sum(weight * direction), 0.0)


def _pull(found: Found) -> tuple[Tensor, Tensor]:
    """Which entries lie between, and the derivative of τ in each: that of Σ u = τ (k - kept)."""
    y, k, regularization, exponent = found
    kept = y == torch.inf
    between = (y > 0) & ~kept
    ratio = torch.where(between, y, regularization) / regularization
    growth = torch.where(between, exponent * ratio ** (exponent - 1), 0.0)
    total = regularization * (k - _sum(kept)) + _sum(growth)
    return between, growth / torch.where(total > 0, total, 1.0)


DERIVATIVES: Mapping[str, Derivatives] = MappingProxyType(
    {
        "topk_mask": Derivatives(_of_mask, _of_mask),
        "topk_magnitude": Derivatives(_backward_of_magnitude, _forward_of_magnitude),
    }
)


def _found(ctx: Any) -> Found:
    y, ks = ctx.saved_tensors
    return Found(y, ctx.k if ks is None else ks, ctx.regularization, ctx.exponent)


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


# --- one opaque operation -------------------------------------------------------------------------


def _solve(
    op: str, x: Tensor, k: int, ks: Tensor | None, regularization: float, exponent: float, impl: str
) -> Tensor:
    run = implementation(op, None, x, impl=impl)
    y: Tensor = run(x, k if ks is None else ks, regularization, exponent)
    return y


_SCHEMA = "(str op, Tensor x, int k, Tensor? ks, float regularization, float exponent, str impl) -> Tensor"
_opaque = torch.library.custom_op("fenchel::relaxed", _solve, mutates_args=(), schema=_SCHEMA)


@_opaque.register_fake
def _(op: str, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
