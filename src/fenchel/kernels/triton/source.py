"""The Triton source of the kernels of one record: a head, its functions, and the files of the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

import torch

from fenchel.divergences import FDivergence
from fenchel.kernels.expression import (
    FUNCTIONS,
    Symbol,
    bend,
    exponent,
    infix,
    response,
    slope,
    statements,
    trace,
)

_STAGES = 3  # blocks of a row that are on their way at a time
_SOLVER = ("derivative", "shift", "elasticity", "conjugate_of_ratio")


def solver(record: FDivergence) -> str:
    """The source of `solver.py` and `gradient.py` for `record`; raises NotTraceable."""
    # α > 2 needs more digits than float32 has, near the threshold
    double = record.kappa > 1
    dtype = torch.float64 if double else torch.float32
    traced = trace(record, _SOLVER, dtype)
    # Where the support changes, u = (U^κ - κ gap)^(1/κ) has a kink, the sharper the larger κ; no derivative
    # tells of it, so the last step is of first order and as short as the resolution allows.
    steep = record.is_sparse and record.kappa > 0.25
    constants = {
        "REAL": "tl.float64" if double else "tl.float32",
        "KAPPA": repr(float(record.kappa)),
        "SPARSE": repr(record.is_sparse),
        "CLOSED": repr(exponent(traced["elasticity"], "u") == 0),  # f' is a logarithm
        "STEEP": repr(steep),
        "SETTLED": repr(1e-9 if double else 2e-6 if steep else 1e-2),
        "RESOLUTION": repr(torch.finfo(dtype).eps),
        "MOST_STEPS": "80",
        "CHANCES": "0" if double else "10",
    }
    functions = [_function(name, FUNCTIONS[name], [expression]) for name, expression in traced.items()]
    functions.append(_function("response", ("u", "gap"), response(record, traced["shift"])))
    known = Symbol("argument", ("e",), traced["elasticity"].dtype)
    functions.append(_function("bend", ("u", "e"), [bend(traced["elasticity"], known)]))
    return _assemble(constants, functions, ("solver.py", "gradient.py"))


def distillation(record: FDivergence) -> str:
    """The source of `distillation.py` for `record`; raises NotTraceable."""
    divergence = trace(record, ("perspective",), torch.float32)["perspective"]
    arguments = FUNCTIONS["perspective"]
    constants = {"AT_ZERO": _number(repr(record.at_zero)), "SLOPE": _number(repr(record.slope))}
    functions = [
        _function("perspective", arguments, [divergence]),
        _function("slope_in_q", arguments, [slope(divergence, "log_q")]),
    ]
    return _assemble(constants, functions, ("distillation.py",))


def _assemble(constants: Mapping[str, str], functions: Sequence[str], bodies: Sequence[str]) -> str:
    here = files(__package__)
    mathematics, *texts = ((here / name).read_text(encoding="utf-8") for name in ("mathematics.py", *bodies))
    head = [
        "import triton",
        "import triton.language as tl",
        f"STAGES = tl.constexpr({_STAGES})",
        *(f"{name} = tl.constexpr({value})" for name, value in constants.items()),
    ]
    return "\n\n".join(["\n".join(head), mathematics, *functions, *texts])


def _function(name: str, arguments: Sequence[str], results: Sequence[Symbol]) -> str:
    lines, names = statements(results, _write)
    body = "".join(f"    {target} = {value}\n" for target, value in lines)
    return f"@triton.jit\ndef {name}({', '.join(arguments)}):\n{body}    return {', '.join(names)}\n"


def _number(x: str) -> str:
    return f'float("{x}")' if x in ("inf", "-inf") else x


def _pow(x: str, y: str) -> str:
    try:
        return f"tl.exp({y} * {math.log(float(x))!r})"
    except ValueError:  # not a number
        return f"pow({x}, {y})"


_NAMED: Mapping[str, Callable[..., str]] = {
    "number": _number,
    "neg": lambda x: f"(-{x})",
    "where": lambda c, a, b: f"tl.where({c}, {a}, {b})",
    "maximum": lambda a, b: f"tl.maximum({a}, {b})",
    "minimum": lambda a, b: f"tl.minimum({a}, {b})",
    "invert": lambda x: f"({x} == 0)",
    "logical_not": lambda x: f"({x} == 0)",
    "exp": lambda x: f"tl.exp({x})",
    "sqrt": lambda x: f"tl.sqrt({x})",
    "abs": lambda x: f"tl.abs({x})",
    "pow": _pow,
}


def _write(op: str, arguments: list[str]) -> str:
    sign = infix(op)
    if sign:
        return f"({arguments[0]} {sign} {arguments[1]})"
    if op in _NAMED:
        return _NAMED[op](*arguments)
    return f"{op}({', '.join(arguments)})"
