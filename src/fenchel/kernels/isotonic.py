"""Isotonic problems in plain PyTorch: min over v_1 >= ... >= v_n of Σ φ_i(v_i), by blocks of equal v.

A problem is known by what a set of entries would be if it were one block (`POOLED`). Two entries that are
neighbours in the wrong order share a block of the solution, and so do the blocks of solved halves; all else
follows from that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fenchel.checks import looked

Optional = Tensor | None


class Problem(NamedTuple):
    """s, a and b (..., n); what they mean is said in `isotonic`."""

    s: Tensor
    a: Optional
    b: Optional

    def map(self, function: Callable[[Tensor], Tensor]) -> Problem:
        """`function` of each that is given."""
        a, b = (None if x is None else function(x) for x in (self.a, self.b))
        return Problem(function(self.s), a, b)

    def at(self, index: Any) -> Problem:
        """The part at an index."""
        return self.map(lambda x: x[index])

    def rows(self, length: int) -> Problem:
        """The same entries in rows of this length."""
        return self.map(lambda x: x.view(-1, length))


class Sets(NamedTuple):
    """What may be asked of sets of entries: the sum and the largest of a tensor's values over each."""

    total: Callable[[Tensor], Tensor]
    top: Callable[[Tensor], Tensor]


def isotonic(kind: str, s: Tensor, a: Optional = None, b: Optional = None) -> tuple[Tensor, Tensor]:
    """The decreasing v (..., n) and the number of the block that each entry lies in, from 0 on.

    In every block B the common value v satisfies, by kind,

        mean      Σ_B a_i (s_i - v) = 0                         a > 0, by default 1
        cubic     Σ_B (s_i - v)³ = Σ_B a_i + v Σ_B b_i           b >= 0, both by default 0
        entropic  v = logsumexp(s_B) - logsumexp(a_B)            a by default 0

    Halves of halves are solved first; where two do not fit, one block straddles the seam. Its ends are found
    by bisection: a block of the left half belongs to it if and only if what would straddle at that block's
    value would move above it. So the work is O(n log² n), and the order of operations does not depend on the
    values except where looking at them is free.

    Args:
        kind: a name above.
        s: (..., n) in float32 or float64, finite.
        a: None, or the shape of s.
        b: None, or the shape of s.

    Returns:
        v in the dtype of s, and the blocks in int64; both (..., n).
    """
    n = s.shape[-1]
    size = 1 << (n - 1).bit_length()
    problem = Problem(s, a, b).map(lambda x: pad(x.detach(), (0, size - n), value=1.0).reshape(-1))
    v = POOLED[kind](problem, Sets(lambda x: x, lambda x: x))
    v.view(*s.shape[:-1], size)[..., n:] = -torch.inf  # fits behind any other
    joined = torch.zeros_like(v, dtype=torch.bool)
    for length in (2 << level for level in range(size.bit_length() - 1)):
        rows, links = v.view(-1, length), joined.view(-1, length)
        half = length // 2
        violated = rows[:, half - 1] < rows[:, half]
        fits = looked(~violated)
        if fits:
            continue
        pairs = problem.rows(length)
        if fits is None:
            found, inside, linked = _merge(kind, pairs, rows)
            inside, linked = inside & violated.unsqueeze(-1), linked & violated.unsqueeze(-1)
            rows.copy_(torch.where(inside, found, rows))
            links.logical_or_(linked)
        else:
            some = violated.nonzero().squeeze(-1)
            few = rows[some]
            found, inside, linked = _merge(kind, pairs.at(some), few)
            rows[some] = torch.where(inside, found, few)
            links[some] |= linked
    v, joined = (x.view(*s.shape[:-1], size)[..., :n] for x in (v, joined))
    # Neighbours may be in the wrong order by what rounding left of their difference.
    return v.cummin(-1).values if n else v.clone(), _numbers(joined)


def dykstra(
    kind: str, s: Tensor, a: Optional = None, b: Optional = None, iterations: int = 500
) -> tuple[Tensor, Tensor]:
    """`isotonic` of kind "mean" or "cubic" by Dykstra's alternating projections, a fixed number of them.

    The constraints v_i >= v_{i+1} with i odd do not touch each other, nor do those with i even, so each half
    of them is met at once, in closed form, given the multipliers λ of the other half. At the end neighbours
    with λ > 0 share a block, and each block takes its own value: exact once the blocks are found.
    """
    n = s.shape[-1]
    step = {"mean": _mean_pair, "cubic": _cubic_pair}[kind]
    problem = Problem(s, a, b)
    multiplier = s.new_zeros(*s.shape[:-1], n + 1)  # of the constraint before each entry, and after the last
    halves = []
    for start in (0, 1):
        left, right = slice(start, n - 1, 2), slice(start + 1, n, 2)
        first, second = problem.at((..., left)), problem.at((..., right))
        halves.append((step(first, second), left, right, slice(start + 2, n + 1, 2)))
    for _ in range(iterations):
        for update, before, between, after in halves:
            multiplier[..., between] = update(multiplier[..., before], multiplier[..., after])
    joined = multiplier[..., :n] > 0
    blocks = _numbers(joined)
    return POOLED[kind](problem, _blockwise(blocks)), blocks


def isotonic_gradient(
    kind: str, s: Tensor, a: Optional, b: Optional, v: Tensor, blocks: Tensor, grad: Tensor
) -> tuple[Tensor, Optional, Optional]:
    """The gradients in s, a and b from that in v, with the blocks held; differentiable in all.

    Where a block's equation has no derivative (cubic, with s = v throughout) that in s is the limit, and
    those in a and b are taken as 0.
    """
    sets = _blockwise(blocks)
    grad = sets.total(grad)
    return SENSITIVITIES[kind](Problem(s, a, b), v, sets).map(lambda x: x * grad)


def isotonic_tangent(
    kind: str,
    s: Tensor,
    a: Optional,
    b: Optional,
    v: Tensor,
    blocks: Tensor,
    tangents: tuple[Optional, Optional, Optional],
) -> Tensor:
    """The tangent of v from those of s, a and b, as `isotonic_gradient`."""
    sets = _blockwise(blocks)
    moved = torch.zeros_like(v)
    for each, tangent in zip(SENSITIVITIES[kind](Problem(s, a, b), v, sets), tangents, strict=True):
        if each is not None and tangent is not None:
            moved = moved + each * tangent
    return sets.total(moved)


def _blockwise(blocks: Tensor) -> Sets:
    """Sums and largest values over the blocks of rows, for each entry that of its own block."""

    def total(x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter_add(-1, blocks, x).gather(-1, blocks)

    def top(x: Tensor) -> Tensor:
        lowest = torch.full_like(x, -torch.inf)
        return lowest.scatter_reduce(-1, blocks, x, "amax").gather(-1, blocks)

    return Sets(total, top)


def depressed_root(p: Tensor, q: Tensor) -> Tensor:
    """The real root of u³ + p u + q = 0 with p >= 0.

    Cardano's, as the quotient t³ - w³ = (t - w)(t² + t w + w²) of |q| that subtracts nothing, in units in
    which the larger of its two terms is one.
    """
    third, half = p / 3, q.abs() / 2
    unit = torch.maximum(third.sqrt(), _cube_root(half))
    unit = torch.where(unit > 0, unit, 1.0)
    third, half = third / unit.square(), half / unit**3
    t = _cube_root(half + (half.square() + third**3).sqrt())
    t = torch.where(t > 0, t, 1.0)
    return -q.sign() * unit * (2 * half / (t.square() + third + (third / t).square()))


# --- the kinds -------------------------------------------------------------------------------------


def _mean(problem: Problem, sets: Sets) -> Tensor:
    s, a, _ = problem
    if a is None:
        return sets.total(s) / sets.total(torch.ones_like(s))
    return sets.total(a * s) / sets.total(a)


def _mean_sensitivities(problem: Problem, v: Tensor, sets: Sets) -> Problem:
    s, a, _ = problem
    if a is None:
        return Problem(1 / sets.total(torch.ones_like(s)), None, None)
    mass = sets.total(a)
    return Problem(a / mass, (s - v) / mass, None)


def _cubic(problem: Problem, sets: Sets) -> Tensor:
    """u = v - mean solves n u³ + (3 C2 + Σb) u + Σa + mean Σb - C3 = 0, with C2, C3 the central moments."""
    s, a, b = problem
    count = sets.total(torch.ones_like(s))
    mean = sets.total(s) / count
    from_mean = s - mean
    slope, constant = 3 * sets.total(from_mean.square()), -sets.total(from_mean**3)
    if a is not None:
        constant = constant + sets.total(a)
    if b is not None:
        mass = sets.total(b)
        slope, constant = slope + mass, constant + mean * mass
    return mean + depressed_root(slope / count, constant / count)


def _cubic_sensitivities(problem: Problem, v: Tensor, sets: Sets) -> Problem:
    s, a, b = problem
    slopes = 3 * (s - v).square()
    slope = sets.total(slopes if b is None else slopes + b)
    flat = slope == 0
    slope = torch.where(flat, 1.0, slope)
    in_s = torch.where(flat, 1 / sets.total(torch.ones_like(s)), slopes / slope)
    in_a = torch.where(flat, 0.0, -1 / slope)
    return Problem(in_s, None if a is None else in_a, None if b is None else in_a * v)


def _entropic(problem: Problem, sets: Sets) -> Tensor:
    s, a, _ = problem
    a = torch.zeros_like(s) if a is None else a
    top_s, top_a = sets.top(s), sets.top(a)
    masses = sets.total((s - top_s).exp()) / sets.total((a - top_a).exp())
    return (top_s - top_a) + masses.log()


def _entropic_sensitivities(problem: Problem, v: Tensor, sets: Sets) -> Problem:
    def softmax(x: Tensor) -> Tensor:
        powers = (x - sets.top(x.detach())).exp()
        return powers / sets.total(powers)

    return Problem(softmax(problem.s), None if problem.a is None else -softmax(problem.a), None)


POOLED: Mapping[str, Callable[[Problem, Sets], Tensor]] = MappingProxyType(
    {"mean": _mean, "cubic": _cubic, "entropic": _entropic}
)
"""Of each kind, the value of a set of entries that would be a block."""

SENSITIVITIES: Mapping[str, Callable[[Problem, Tensor, Sets], Problem]] = MappingProxyType(
    {"mean": _mean_sensitivities, "cubic": _cubic_sensitivities, "entropic": _entropic_sensitivities}
)
"""Of each kind, the derivatives of a block's value in the s, a and b of each of its entries."""


# --- halves ------------------------------------------------------------------------------------------


def _merge(kind: str, problem: Problem, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row, the value of the block across the seam, who belongs to it, and who with the one before."""
    length = v.shape[-1]
    half = length // 2
    place = torch.arange(length, device=v.device)
    left = place < half

    def value(inside: Tensor) -> Tensor:
        def total(x: Tensor) -> Tensor:
            return torch.where(inside, x, 0.0).sum(-1, keepdim=True)

        def top(x: Tensor) -> Tensor:
            return torch.where(inside, x, -torch.inf).amax(-1, keepdim=True)

        return POOLED[kind](problem, Sets(total, top))

    def straddling(level: Tensor) -> Tensor:
        """What would straddle if the block had this value: all that it would have to move."""
        return value(torch.where(left, v < level, v > level))

    def bisect(low: int, towards: int) -> Tensor:
        """The last place from the seam on, in the direction `towards`, that belongs to the block."""
        least = torch.full_like(v[:, :1], low, dtype=torch.int64)
        width = half
        while width > 1:
            width //= 2
            level = v.gather(-1, least + towards * width)
            moved = (level - straddling(level)) * towards > 0
            least = torch.where(moved, least + towards * width, least)
        return least

    first, last = bisect(half - 1, -1), bisect(half, 1)
    inside = (place >= first) & (place <= last)
    return value(inside), inside, inside & (place > first)


def _numbers(joined: Tensor) -> Tensor:
    """The number of each entry's block, from whether it shares that of the entry before."""
    return (~joined).cumsum(-1) - 1


def _cube_root(x: Tensor) -> Tensor:
    """Of x >= 0, exact to the last places by one Newton step on the power."""
    root = x ** (1 / 3)
    safe = torch.where(root > 0, root, 1.0)
    return root - (root - x / safe.square()) / 3


# --- pairs -------------------------------------------------------------------------------------------

Update = Callable[[Tensor, Tensor], Tensor]
"""λ of v_1 >= v_2 from the multipliers before and after it."""


def _mean_pair(first: Problem, second: Problem) -> Update:
    """a_1 (s_1 - v) - before + λ = 0 where it binds."""
    weight, other = (torch.ones_like(x.s) if x.a is None else x.a for x in (first, second))
    share = weight / (weight + other)
    # With v put in, so that only the difference of the entries counts.
    pull = share * other * (second.s - first.s)
    return lambda before, after: (before + share * (after - before) + pull).clamp_min(0)


def _cubic_pair(first: Problem, second: Problem) -> Update:
    """(s_1 - v)³ - a_1 - v b_1 - before + λ = 0 where it binds."""
    mean, apart = (first.s + second.s) / 2, (first.s - second.s) / 2
    a, b = first.a, first.b
    slope, constant = 3 * apart.square(), torch.zeros_like(mean)
    if a is not None and second.a is not None:
        constant = (a + second.a) / 2
    if b is not None and second.b is not None:
        slope, constant = slope + (b + second.b) / 2, constant + mean * (b + second.b) / 2

    def update(before: Tensor, after: Tensor) -> Tensor:
        u = depressed_root(slope, constant + (before - after) / 2)
        pull = -((apart - u) ** 3)
        pull = pull if a is None else pull + a
        pull = pull if b is None else pull + (mean + u) * b
        return (before + pull).clamp_min(0)

    return update
