"""Records written down: the expressions compute what the functions do, and so do their derivatives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from catalogue import NAMES, OWN, STEEP
from torch import Tensor

import fenchel
from fenchel.kernels.expression import (
    FUNCTIONS,
    NotTraceable,
    Symbol,
    exponent,
    infix,
    slope,
    statements,
    trace,
)

RECORDS = [*NAMES, *STEEP, "alpha:1.7", "alpha:0.3", "jsd:0.3"]


def write(op: str, arguments: list[str]) -> str:
    """Python on tensors."""
    if op == "number":
        return f"torch.tensor(float('{arguments[0]}'), dtype=torch.float64)"
    sign = infix(op)
    if sign:
        return f"({arguments[0]} {sign} {arguments[1]})"
    return f"torch.{ {'neg': 'negative', 'invert': 'logical_not'}.get(op, op) }({', '.join(arguments)})"


def evaluate(expression: Symbol, **values: Tensor) -> Tensor:
    lines, (result,) = statements([expression], write)
    names: dict[str, Any] = {"torch": torch, **values}
    for name, text in lines:
        names[name] = eval(text, names)
    found: Tensor = eval(result, names)
    return found.expand(next(iter(values.values())).shape)


def points(arguments: tuple[str, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(200, dtype=torch.float64, generator=generator)

    ranges = {"u": (-12, 3), "gap": (-3, 3), "log_p": (-15, 0), "log_q": (-15, 0)}
    drawn = {name: uniform(*ranges[name]) for name in arguments}
    return {name: x.exp() if name in ("u", "gap") else x for name, x in drawn.items()}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_expressions_compute_what_the_functions_do(name: str, function: str) -> None:
    record = fenchel.divergence(name)
    values = points(FUNCTIONS[function])
    expression = trace(record, (function,), torch.float64)[function]
    expected = getattr(record, function)(*values.values())
    torch.testing.assert_close(evaluate(expression, **values), expected.expand(200), rtol=1e-12, atol=1e-300)


def test_powers_of_powers() -> None:
    u = Symbol("argument", ("u",), torch.float64)
    values = torch.linspace(0.05, 3, 60, dtype=torch.float64)
    for function in (
        lambda u: ((u - 1) ** 4) ** 0.25,  # |u - 1|
        lambda u: (u * (u + 1) ** 3) ** (1 / 3),
        lambda u: (u / (u + 1) ** 10) ** 0.2,
        lambda u: (u * torch.exp(torch.log1p(u) / 0.1)) ** 0.1,
        lambda u: torch.exp(torch.log1p(u) / -0.1),
        lambda u: (u - 2) ** 7 + (u - 1) ** 16 + (u - 1) ** 6,
    ):
        expression = function(u)
        torch.testing.assert_close(evaluate(expression, u=values), function(values), rtol=1e-11, atol=1e-12)


# The inverse of a skewed record is found numerically, and so is all that follows from it.
SKEWED = [(name, "perspective") for name in ("skew:0.1:kl", "reverse:skew:0.3:js")]
SLOPES = [
    (name, function) for name in RECORDS for function in ("elasticity", "perspective", "conjugate_of_ratio")
]


@pytest.mark.parametrize("name, function", [*SLOPES, *SKEWED])
def test_slopes_are_those_of_automatic_differentiation(name: str, function: str) -> None:
    record = fenchel.divergence(name)
    values = points(FUNCTIONS[function])
    expression = trace(record, (function,), torch.float64)[function]
    for argument in FUNCTIONS[function]:
        leaves = {key: x.clone().requires_grad_() for key, x in values.items()}
        result = getattr(record, function)(*leaves.values()).sum()
        found = None
        if result.requires_grad:
            (found,) = torch.autograd.grad(result, leaves[argument], allow_unused=True)
        expected = torch.zeros(200, dtype=torch.float64) if found is None else found
        received = evaluate(slope(expression, argument), **values)
        torch.testing.assert_close(received, expected, rtol=1e-9, atol=1e-12)


def test_powers_keep_their_exponents() -> None:
    u = Symbol("argument", ("u",), torch.float64)
    assert exponent(3.0 / u**0.5, "u") == -0.5
    assert exponent(u * u**2.5 / 7.0, "u") == 3.5
    assert exponent(u + 1.0, "u") is None and exponent(u.log(), "u") is None
    shift = trace(fenchel.divergence("alpha:1.1"), ("shift",), torch.float64)["shift"]
    gap = torch.linspace(0, 5, 200, dtype=torch.float64)
    values = {"u": torch.full((200,), 0.5, dtype=torch.float64), "gap": gap}
    ratio = evaluate(shift, **values)
    torch.testing.assert_close(evaluate(shift**-0.1, **values), ratio**-0.1, rtol=1e-12, atol=0)


def test_what_cannot_be_written_down_says_why() -> None:
    with pytest.raises(NotTraceable, match=r"perspective of own|shift of own"):
        trace(OWN, ("shift",), torch.float64)
    peeking = fenchel.FDivergence("peeking", lambda u: (u - 1) ** 2)
    object.__setattr__(peeking, "elasticity", lambda u: u if u > 0 else -u)
    with pytest.raises(
        NotTraceable, match="elasticity of peeking cannot be written down: it looks at values"
    ):
        trace(peeking, ("elasticity",), torch.float64)
    object.__setattr__(peeking, "elasticity", lambda u: u.cumsum(0))
    with pytest.raises(NotTraceable, match=r"it uses \.cumsum"):
        trace(peeking, ("elasticity",), torch.float64)
    object.__setattr__(peeking, "elasticity", lambda u: torch.special.erf(u))
    with pytest.raises(NotTraceable, match="it uses"):
        trace(peeking, ("elasticity",), torch.float64)


def test_own_elementwise_records_have_kernels() -> None:
    """Written in elementwise operations, a user's divergence reaches the kernels unaided."""
    chi2 = fenchel.divergence("chi2")
    fields = {name: getattr(chi2, name) for name in FUNCTIONS}
    mine = fenchel.FDivergence(
        "mine", chi2.f, **fields, at_zero=1.0, derivative_at_zero=-2.0, slope=math.inf, kappa=1.0
    )
    logits = torch.randn(40, 2000)
    assert fenchel.which("softargmax", logits, divergence=mine).impl == "cpu"
    torch.testing.assert_close(fenchel.f_softargmax(logits, mine), fenchel.f_softargmax(logits, "chi2"))
