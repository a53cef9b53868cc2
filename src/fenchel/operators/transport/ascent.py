"""Batched maximisation of concave functions that are quadratic in pieces, smooth or not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MEMORY, _TRIALS = 10, 20
_DECREASE, _CURVATURE = 1e-4, 0.9

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


def lbfgs(objective: Objective, x: Tensor, *, iterations: int, enough: Callable[[Tensor], bool]) -> Tensor:
    """argmax of a concave function by L-BFGS with a weak Wolfe line search, for every row of x (B, d).

    `objective` gives the values (B,) and supergradients (B, d). It ends where `enough(gradient)`, or where
    no value has risen by more than rounding for some steps. The weak Wolfe conditions are those under which
    the method also works on functions with kinks (Lewis and Overton, 2013).
    """
    value, gradient = objective(x)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    best, best_value, idle = x, value, 0
    for _ in range(iterations):
        if enough(gradient):
            return x
        if idle == _MEMORY:
            break
        direction = _two_loops(gradient, steps)
        ascends = (direction * gradient).sum(-1, keepdim=True) > 0
        direction = torch.where(ascends, direction, gradient)
        moved, value, ahead = _line_search(objective, x, value, gradient, direction)
        idle = 0 if bool((value > best_value + _slack(value)).any()) else idle + 1
        best = torch.where((value >= best_value).unsqueeze(-1), moved, best)
        best_value = torch.maximum(value, best_value)
        change, turn = moved - x, gradient - ahead
        curvature = (change * turn).sum(-1, keepdim=True)
        good = curvature > 1e-14 * turn.norm(dim=-1, keepdim=True) * change.norm(dim=-1, keepdim=True)
        inverse = torch.where(good, 1 / torch.where(good, curvature, 1.0), 0.0)
        steps = [*steps[1 - _MEMORY :], (change, turn, inverse)]
        if not bool(change.any()):
            break
        x, gradient = moved, ahead
    return best


def adam(
    objective: Objective, x: Tensor, *, size: Tensor, iterations: int, enough: Callable[[Tensor], bool]
) -> Tensor:
    """The best point of Adam with steps that shrink from `size` (B,) to zero, for every row of x (B, d).

    At a kink, where no direction of L-BFGS ascends, such steps still come nearer.
    """
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    best, best_value = x, torch.full_like(size, -torch.inf)
    for i in range(1, iterations + 1):
        value, gradient = objective(x)
        best = torch.where((value > best_value).unsqueeze(-1), x, best)
        best_value = torch.maximum(value, best_value)
        if enough(gradient):
            break
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        scale = (second / (1 - 0.999**i)).sqrt() + torch.finfo(x.dtype).tiny
        step = size * (1 - (i - 1) / iterations) / (1 - 0.9**i)
        x = x + step.unsqueeze(-1) * first / scale
    return best


def _two_loops(gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian of the last steps times the gradient."""
    q, weights = gradient, []
    for change, turn, inverse in reversed(steps):
        weights.append(inverse * (change * q).sum(-1, keepdim=True))
        q = q - weights[-1] * turn
    if steps:
        _, turn, inverse = steps[-1]
        scale = inverse * turn.square().sum(-1, keepdim=True)
        q = q / torch.where(scale > 0, scale, float(gradient.shape[-1]))
    else:
        q = q / gradient.shape[-1]
    for (change, turn, inverse), weight in zip(steps, reversed(weights), strict=True):
        q = q + (weight - inverse * (turn * q).sum(-1, keepdim=True)) * change
    return q


def _line_search(
    objective: Objective, x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A step along the direction that raises the value enough and far enough, by bisection; or none."""
    slope = (direction * gradient).sum(-1)
    slack = _slack(value)
    low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    step = torch.ones_like(slope)
    best, best_value, best_gradient = x, value, gradient
    settled = torch.zeros_like(slope, dtype=torch.bool)
    for _ in range(_TRIALS):
        trial = x + step.unsqueeze(-1) * direction
        trial_value, trial_gradient = objective(trial)
        raised = trial_value >= value + _DECREASE * step * slope - slack
        far = (trial_gradient * direction).sum(-1) <= _CURVATURE * slope
        take = (raised & ~settled).unsqueeze(-1)
        best = torch.where(take, trial, best)
        best_gradient = torch.where(take, trial_gradient, best_gradient)
        best_value = torch.where(take.squeeze(-1), trial_value, best_value)
        settled = settled | (raised & far)
        if bool(settled.all()):
            break
        low, high = torch.where(raised, step, low), torch.where(raised, high, step)
        step = torch.where(high < torch.inf, 0.5 * (low + high), 2 * step)
    return best, best_value, best_gradient


def _slack(value: Tensor) -> Tensor:
    """By how much rounding may move a value."""
    return 4 * torch.finfo(value.dtype).eps * value.abs()
