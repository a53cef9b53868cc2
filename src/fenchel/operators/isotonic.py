"""Isotonic regression, and `pool`: the differentiable isotonic problem behind projections and top-k."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fenchel.checks import holds
from fenchel.errors import InputError, nearest
from fenchel.kernels.dispatch import implementation
from fenchel.operators._inputs import check_finite, class_last

Optional = Tensor | None

SOLVERS = ("pav", "dykstra")


def isotonic_regression(
    y: Tensor,
    weight: Tensor | None = None,
    *,
    increasing: bool = True,
    solver: str = "pav",
    iterations: int = 500,
    dim: int = -1,
    impl: str = "auto",
) -> Tensor:
    """The monotone sequence nearest to y: argmin Σ w_i (y_i - v_i)² over v_1 <= ... <= v_n.

    v is the mean of y in each of some blocks of neighbours. Its Jacobian takes these means, so that the
    derivative is exact, and of every order, wherever the blocks do not change.

    Args:
        y: (..., n, ...), any float dtype; float16 and bfloat16 are computed in float32.
        weight: w > 0, broadcastable to y; one by default. Gradients flow into it too.
        increasing: whether v rises; if not, it falls.
        solver: "pav" pools adjacent violators: exact, in linear time on a CPU. "dykstra" takes a fixed number
            of alternating projections onto neighbours in order, whatever the values: nothing is waited for
            on an accelerator. It is exact once they have found the blocks, for which a block of m entries
            needs in the order of m² of them.
        iterations: of "dykstra".
        dim: the axis of the sequence.
        impl: which implementation of "pav" runs: "auto", "eager" or "cpu"; see `fenchel.which`.

    Returns:
        v, the shape and dtype of y.

    Raises:
        InputError: an empty axis, values that are not finite, weights that are not positive and finite or
            do not broadcast, an unknown solver. Values are looked at on a CPU outside of `torch.compile`
            only.

    Example:
        >>> import torch
        >>> isotonic_regression(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
        >>> isotonic_regression(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([1.0, 1.0, 3.0]))
        tensor([1.0000, 2.2500, 2.2500])

    Reference:
        Ayer, Brunk, Ewing, Reid and Silverman, 1955 (pool adjacent violators); Dykstra, 1983.
    """
    check_finite(y, dim, name="y")
    s = class_last(y, dim)
    a = None if weight is None else _weight(weight, y, dim).to(s.dtype)
    if increasing:
        s, a = s.flip(-1), None if a is None else a.flip(-1)
    v = pool("mean", s, a, solver=solver, iterations=iterations, impl=impl)
    return (v.flip(-1) if increasing else v).movedim(-1, dim).to(y.dtype)


def pool(
    kind: str,
    s: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    solver: str = "pav",
    iterations: int = 500,
    impl: str = "auto",
) -> Tensor:
    """The decreasing v of a separable convex problem, constant in blocks, with derivatives of every order.

    In every block B of the solution, by kind,

        mean      Σ_B a_i (s_i - v) = 0                         a > 0, None for ones
        cubic     Σ_B (s_i - v)³ = Σ_B a_i + v Σ_B b_i           b >= 0, None for zeros
        entropic  v = logsumexp(s_B) - logsumexp(a_B)            a None for zeros

    Derivatives are those of this equation with the blocks held; where it has none (cubic, with s = v
    throughout a block) that in s is the limit, and those in a and b are taken as 0. Under `torch.compile`
    the solver is one opaque operation.

    Args:
        kind: a name above.
        s: (..., n) in float32 or float64, finite.
        a: broadcastable to s.
        b: broadcastable to s; of "cubic" alone.
        solver: "pav", or for "mean" and "cubic" also "dykstra"; see `isotonic_regression`.
        iterations: of "dykstra".
        impl: which implementation of "pav" runs.

    Returns:
        v, the shape and dtype of s.

    Raises:
        InputError: an unknown solver, or one that cannot solve this kind.
    """
    if solver not in SOLVERS:
        raise InputError(f"unknown solver {solver!r}{nearest(solver, SOLVERS)}; known: {', '.join(SOLVERS)}")
    if solver == "dykstra" and kind == "entropic":
        raise InputError("solver='dykstra' solves problems of kind mean or cubic, received 'entropic'")
    if solver == "dykstra" and iterations < 1:
        raise InputError(f"iterations must be at least 1, received {iterations}")
    a, b = (None if part is None else part.to(s.dtype).expand(s.shape) for part in (a, b))
    function = _Pooled if torch.compiler.is_compiling() else _TransformablePooled
    v: Tensor = function.apply(kind, s, a, b, solver, iterations, impl)[0]  # type: ignore[no-untyped-call]
    return v


def put_back(ordered: Tensor, order: Tensor) -> Tensor:
    """Sorted values (..., n) in the places that `order` of `torch.sort` says they came from."""
    return torch.zeros_like(ordered).scatter(-1, order, ordered)


def _weight(weight: Tensor, y: Tensor, dim: int) -> Tensor:
    good = (weight > 0) & (weight < torch.inf)
    if not holds(good):
        raise InputError(
            f"weight must be positive and finite, received {float(weight.detach()[~good].flatten()[0])}"
        )
    try:
        return weight.expand(y.shape).movedim(dim, -1)
    except RuntimeError:
        raise InputError(
            f"weight must broadcast to y {tuple(y.shape)}, received shape {tuple(weight.shape)}"
        ) from None


# --- derivatives ----------------------------------------------------------------------------------


class _Pooled(torch.autograd.Function):
    """s, a, b → v and the blocks, with derivatives written in what is saved.

    v is itself an output, so differentiating `backward` again reaches this function again, and not the
    solver.
    """

    @staticmethod
    def forward(
        kind: str, s: Tensor, a: Optional, b: Optional, solver: str, iterations: int, impl: str
    ) -> tuple[Tensor, Tensor]:
        run = _opaque if torch.compiler.is_compiling() else _solve
        found: tuple[Tensor, Tensor] = run(kind, s, a, b, solver, iterations, impl)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.kind, s, a, b, *_ = inputs
        v, blocks = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(blocks)
        ctx.save_for_backward(s, a, b, v, blocks)
        ctx.save_for_forward(s, a, b, v, blocks)

    @staticmethod
    def backward(ctx: Any, grad: Optional, _: None) -> tuple[Optional, ...]:
        if grad is None:
            return (None,) * 7
        run = implementation("isotonic_gradient", None, grad)
        grads = run(ctx.kind, *ctx.saved_tensors, grad)
        return None, *grads, None, None, None


class _TransformablePooled(_Pooled):
    """The same with rules for `torch.func`, apart because `torch.compile` refuses such functions."""

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Tensor, None]:
        run = implementation("isotonic_tangent", None, ctx.saved_tensors[0])
        return run(ctx.kind, *ctx.saved_tensors, tangents[:3]), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], kind: str, *arguments: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        # Rows are independent, so a mapped axis is just one more batch axis.
        parts = []
        for x, dim in zip(arguments[:3], in_dims[1:4], strict=True):
            mapped = x is not None and dim is not None
            parts.append(x.movedim(dim, 0) if mapped else x)
        some = next(x for x, dim in zip(parts, in_dims[1:4], strict=True) if dim is not None)
        parts = [None if x is None else x.expand(some.shape) for x in parts]
        return _TransformablePooled.apply(kind, *parts, *arguments[3:]), (0, 0)  # type: ignore[no-untyped-call]


def _solve(
    kind: str, s: Tensor, a: Optional, b: Optional, solver: str, iterations: int, impl: str
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor]
    if solver == "dykstra":
        found = implementation("dykstra", None, s)(kind, s, a, b, iterations)
    else:
        found = implementation("isotonic", None, s, a, b, impl=impl)(kind, s, a, b)
    return found


_SCHEMA = (
    "(str kind, Tensor s, Tensor? a, Tensor? b, str solver, int iterations, str impl) -> (Tensor, Tensor)"
)
_opaque = torch.library.custom_op("fenchel::pool", _solve, mutates_args=(), schema=_SCHEMA)


@_opaque.register_fake
def _(kind: str, s: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    v = torch.empty_like(s, memory_format=torch.contiguous_format)
    return v, torch.empty_like(v, dtype=torch.int64)
