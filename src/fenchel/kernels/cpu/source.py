"""The C++ source of the kernels of one record: a generated head, then vector.h and kernels.cpp."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import torch

from fenchel.divergences import FDivergence
from fenchel.kernels.expression import Symbol, bend, infix, response, slope, statements, trace

SOLVER = ("derivative", "shift", "elasticity", "conjugate_of_ratio")


def solver(record: FDivergence) -> str:
    """The source of `kernels.cpp` for `record`; raises NotTraceable."""
    # α > 2 needs more digits than float32 has, near the threshold
    double = record.kappa > 1
    traced = trace(record, SOLVER, torch.float64 if double else torch.float32)
    constants = {
        "double KAPPA": repr(float(record.kappa)),
        "bool SPARSE": _truth(record.is_sparse),
        "bool KEEP": _truth(not double and _costs(traced["elasticity"])),  # w in float32 might be inf
        "bool CLOSED": _truth(record.is_power and record.kappa == 0),
        "double DERIVATIVE_AT_ZERO": repr(record.derivative_at_zero) if record.is_sparse else "0.0",
    }
    functions = [
        _function(name, ("u",), expression) for name, expression in traced.items() if name != "shift"
    ]
    known = Symbol("argument", ("e",), traced["elasticity"].dtype)
    functions.append(_function("bend", ("u", "e"), bend(traced["elasticity"], known)))
    return _assemble(
        "double" if double else "float",
        constants,
        [*functions, _shift(record, traced["shift"])],
        "kernels.cpp",
    )


def distillation(record: FDivergence) -> str:
    """The source of `distillation.cpp` for `record`; raises NotTraceable."""
    arguments = ("log_p", "log_q")
    divergence = trace(record, ("perspective",), torch.float32)["perspective"]
    functions = [
        _function(name, arguments, expression)
        for name, expression in {
            "perspective": divergence,
            "slope_in_q": slope(divergence, "log_q"),
        }.items()
    ]
    return _assemble("float", {}, functions, "distillation.cpp")


def _assemble(real: str, constants: Mapping[str, str], functions: Sequence[str], body: str) -> str:
    here = files(__package__)
    lines = [
        f"using real = {real};",
        (here / "vector.h").read_text(encoding="utf-8"),
        *(f"constexpr {name} = {value};" for name, value in constants.items()),
        "namespace f {",
        *functions,
        "}",
        "using namespace f;",
        (here / body).read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)


def _function(name: str, arguments: Sequence[str], expression: Symbol) -> str:
    lines, (result,) = statements([expression], _write)
    types = ", ".join(f"class T{argument}" for argument in arguments)
    declared = ", ".join(f"T{argument} {argument}" for argument in arguments)
    body = "".join(f"  const auto {target} = {value};\n" for target, value in lines)
    return f"template <{types}>\nINLINE auto {name}({declared}) {{\n{body}  return {result};\n}}"


def _shift(record: FDivergence, shift: Symbol) -> str:
    """u = f*'(f'(U) - gap) and its elasticity, as a struct: what depends on U alone is found once a row."""
    lines, names = statements(response(record, shift), _write)
    moving = {"gap"}
    for target, value in lines:
        if moving & set(re.findall(r"\w+", value)):
            moving.add(target)
    fixed = [(target, value) for target, value in lines if target not in moving]
    members = "".join(f" real {target};" for target, _ in fixed)
    start = "".join(f" {target} = {value};" for target, value in fixed)
    body = "".join(f"    const auto {target} = {value};\n" for target, value in lines if target in moving)
    return (
        f"struct Shift {{\n  real u;{members}\n  explicit Shift(real at) : u(at) {{{start} }}\n"
        f"  INLINE void operator()(vec gap, vec& ratio, vec& slope) const {{\n{body}"
        f"    ratio = {names[0]};\n    slope = {names[1]};\n  }}\n}};"
    )


def _costs(x: Any) -> bool:
    """Whether an expression has more than arithmetic, so that its value is worth keeping."""
    if not isinstance(x, Symbol):
        return False
    return x.op in ("exp", "expm1", "log", "log1p", "pow") or any(map(_costs, x.arguments))


def _truth(value: bool) -> str:
    return "true" if value else "false"


_NAMED: Mapping[str, Callable[..., str]] = {
    "number": lambda x: {"inf": "INF", "-inf": "(-INF)"}.get(x, f"real({x})"),
    "neg": lambda x: f"(-{x})",
    "where": lambda c, a, b: f"select({c}, {a}, {b})",
    "maximum": lambda a, b: f"maximum({a}, {b})",
    "minimum": lambda a, b: f"minimum({a}, {b})",
    "invert": lambda x: f"invert({x})",
    "logical_not": lambda x: f"invert({x})",
}


_NUMBER = re.compile(r"real\((.+)\)")


def _write(op: str, arguments: list[str]) -> str:
    sign = infix(op)
    divisor = _NUMBER.fullmatch(arguments[1]) if sign == "/" else None
    if divisor and 1e-30 < abs(float(divisor[1])) < 1e30:
        return f"({arguments[0]} * real({1 / float(divisor[1])!r}))"
    if sign:
        return f"({arguments[0]} {sign} {arguments[1]})"
    if op in _NAMED:
        return _NAMED[op](*arguments)
    return f"f::{op}({', '.join(arguments)})"
