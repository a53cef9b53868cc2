"""The formulas of a record as source code: one trace of its functions, printed in C++ or in Triton.

A record says its functions in elementwise torch operations. Called with `Symbol`s in place of tensors they
write themselves down, so that kernels are made of the record itself and a new divergence needs no other
text. Functions that look at values, or find them numerically, cannot be traced; they have no kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fenchel.divergences import FDivergence

FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "derivative": ("u",),
    "shift": ("u", "gap"),
    "elasticity": ("u",),
    "conjugate_of_ratio": ("u",),
    "f_centred": ("u",),
    "perspective": ("log_p", "log_q"),
}
"""The functions of a record that kernels use, and their arguments."""


class NotTraceable(Exception):
    """A function of a record that is more than elementwise operations known here."""


def _method(name: str, *, swapped: bool = False) -> Any:
    def method(self: Symbol, *others: Any) -> Any:
        return _apply(name, (*others, self) if swapped else (self, *others), {})

    return method


class Symbol:
    """An elementwise expression in the making: an operation and its arguments, Symbols or numbers."""

    def __init__(self, op: str, arguments: Sequence[Any], dtype: torch.dtype) -> None:
        self.op, self.arguments, self.dtype = op, tuple(arguments), dtype

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        return _apply(getattr(function, "__name__", str(function)), arguments, options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in _CALLS:
            raise NotTraceable(f"it uses .{name}")
        return lambda *arguments, **options: _apply(name, (self, *arguments), options)

    def __bool__(self) -> bool:
        raise NotTraceable("it looks at values")

    __float__ = __int__ = __len__ = __iter__ = __bool__
    __hash__ = object.__hash__

    __add__, __radd__ = _method("add"), _method("add", swapped=True)
    __sub__, __rsub__ = _method("sub"), _method("sub", swapped=True)
    __mul__, __rmul__ = _method("mul"), _method("mul", swapped=True)
    __truediv__, __rtruediv__ = _method("truediv"), _method("truediv", swapped=True)
    __pow__, __rpow__ = _method("pow"), _method("pow", swapped=True)
    __lt__, __le__, __gt__, __ge__ = _method("lt"), _method("le"), _method("gt"), _method("ge")
    __eq__, __ne__ = _method("eq"), _method("ne")
    __and__, __or__, __invert__, __neg__ = _method("and"), _method("or"), _method("invert"), _method("neg")


_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "and": "&", "or": "|", **_COMPARISONS}
_UNARY = ("exp", "expm1", "log", "log1p", "sqrt", "abs", "isfinite", "neg", "invert")
_CALLS = {
    *_INFIX,
    *_UNARY,
    *("pow", "where", "xlogy", "logaddexp", "clamp_min", "clamp_max", "clamp", "reciprocal", "square"),
    *("maximum", "minimum", "zeros_like", "ones_like", "new_full", "logical_not"),
}
_SAME = {"rsub": "sub", "div": "truediv", "true_divide": "truediv", "float_power": "pow", "negative": "neg"}


def _apply(name: str, arguments: Sequence[Any], options: Mapping[str, Any] | None) -> Any:
    """One operation, in the few that the printers know."""
    name = name.strip("_")
    if name == "rsub":
        arguments = arguments[::-1]
    name = _SAME.get(name, name)
    dtype = next(x.dtype for x in arguments if isinstance(x, Symbol))
    options = dict(options or {})

    def make(op: str, *parts: Any) -> Symbol:
        return Symbol(op, parts, dtype)

    match name, tuple(arguments):
        case ("zeros_like", _):
            return make("number", 0.0)
        case ("ones_like", _):
            return make("number", 1.0)
        case ("new_full", (_, (), value)):
            return make("number", float(value))
        case ("reciprocal", (x,)):
            return make("truediv", 1.0, x)
        case ("square", (x,)):
            return make("mul", x, x)
        case ("clamp_min" | "maximum", (x, bound)):
            return make("maximum", x, bound)
        case ("clamp_max" | "minimum", (x, bound)):
            return make("minimum", x, bound)
        case ("clamp", (x, *bounds)):
            low, high = (*bounds, None, None)[:2]
            low, high = options.get("min", low), options.get("max", high)
            x = x if low is None else make("maximum", x, low)
            return x if high is None else make("minimum", x, high)
        case ("xlogy", (x, y)):  # 0 log 0 = 0
            log = make("log", y) if isinstance(y, Symbol) else math.log(y)
            return make("where", make("eq", x, 0.0), 0.0, make("mul", x, log))
        case ("logaddexp", (x, y)):
            spread = make("neg", make("abs", make("sub", x, y)))
            return make("add", make("maximum", x, y), make("log1p", make("exp", spread)))
        case ("pow", (x, exponent)) if isinstance(exponent, int | float):
            return _power(x, float(exponent), make)
        case ("where", _) | ("pow", (_, _)) if not options:
            return make(name, *arguments)
        case ("mul", (int() | float() as a, Symbol(op="truediv", arguments=(x, float() as b)))) if a == b:
            return x
        case ("exp", (Symbol(op="log1p") as x,)):
            return make("add", x.arguments[0], 1.0)
        # Not of growing powers: the rounding of x + 1, which counts 1 / k times, would be of large numbers.
        case ("exp", (Symbol(op="truediv", arguments=(Symbol(op="log1p") as x, float() as k)),)) if (
            k > 0 and _whole(1 / k)
        ):
            return _power(make("add", x.arguments[0], 1.0), round(1 / k), make)
        case _ if (name in _INFIX or name in _UNARY) and not options:
            return make(name, *arguments)
    raise NotTraceable(f"it uses {name}")


def _power(x: Any, exponent: float, make: Callable[..., Symbol]) -> Any:
    """x^e by multiplications and roots where that is exact, or nearly; whole e > 2 until they are printed."""
    if exponent == 0:
        return make("number", 1.0)
    if exponent < 0:
        return make("truediv", 1.0, _power(x, -exponent, make))
    if _whole(exponent) and exponent > 2.5:
        return make("pow", x, float(round(exponent)))
    exponent = round(exponent, 12) if _whole(exponent) else exponent
    whole, half = divmod(exponent, 1)
    if exponent > 4 or half not in (0, 0.5):
        simpler = _of_product(x, exponent, make)
        return make("pow", x, exponent) if simpler is None else simpler
    power = make("sqrt", x) if half else None
    for _ in range(int(whole)):
        power = x if power is None else make("mul", power, x)
    return power


def _of_product(x: Any, exponent: float, make: Callable[..., Symbol]) -> Symbol | None:
    """x^e of an x = s g as s^e g^e where that is simpler, as it is for g = e^y and powers; else None."""
    match x:
        case Symbol(op="mul", arguments=(scale, Symbol(op="exp", arguments=(y,)))):
            return make("mul", make("pow", scale, exponent), _apply("exp", (exponent * y,), {}))
        case Symbol(op="mul", arguments=(scale, Symbol(op="truediv" | "pow") as factor)):
            root = _of_power(factor, exponent, make)
            return None if root is None else make("mul", make("pow", scale, exponent), root)
    return _of_power(x, exponent, make)


def _of_power(x: Any, exponent: float, make: Callable[..., Symbol]) -> Symbol | None:
    """(b^n)^e, or (1 / b^n)^e, where n e is whole; else None."""
    match x:
        case Symbol(op="pow", arguments=(base, float() as n)) if _whole(n * exponent):
            if _whole(n) and round(n) % 2 == 0:
                base = make("abs", base)
            power: Symbol = _power(base, n * exponent, make)
            return power
        case Symbol(op="truediv", arguments=(float() as one, Symbol(op="pow") as below)) if one == 1:
            root = _of_power(below, exponent, make)
            return None if root is None else make("truediv", 1.0, root)
    return None


def _whole(exponent: float) -> bool:
    """Whether x^e is a product of few factors, but for the rounding of e."""
    return 1 <= abs(round(exponent)) <= 16 and math.isclose(exponent, round(exponent), rel_tol=1e-12)


def _product(x: Symbol, n: int) -> Symbol:
    """x^n by squaring."""
    if n == 1:
        return x
    half = _product(x, n // 2)
    product: Symbol = half * half * x if n % 2 else half * half
    return product


def trace(record: FDivergence, functions: Sequence[str], dtype: torch.dtype) -> dict[str, Symbol]:
    """Some functions of `record` as expressions of Symbols; raises NotTraceable with the reason."""
    traced = {}
    for name in functions:
        symbols = [Symbol("argument", (argument,), dtype) for argument in FUNCTIONS[name]]
        try:
            result = getattr(record, name)(*symbols)
        except Exception as error:  # a user's function may do anything with what is not a tensor
            message = str(error).partition("\n")[0]
            raise NotTraceable(f"{name} of {record.name} cannot be written down: {message}") from None
        traced[name] = result if isinstance(result, Symbol) else _number_of(float(result), dtype)
    return traced


def response(record: FDivergence, shift: Symbol) -> tuple[Symbol, Symbol]:
    """u = f*'(f'(U) - gap) and its elasticity, which written in U and gap shares powers and exponentials."""
    found: Any = record.elasticity(shift)  # type: ignore[arg-type]
    return shift, found if isinstance(found, Symbol) else _number_of(float(found), shift.dtype)


def _number_of(x: float, dtype: torch.dtype) -> Symbol:
    return Symbol("number", (x,), dtype)


def slope(expression: Symbol, argument: str) -> Symbol:
    """The derivative of an expression in one of its arguments, by the chain rule."""
    done: dict[int, Any] = {}

    def visit(x: Any) -> Any:
        """The derivative of x; 0.0 itself where there is none, which the products then leave out."""
        if not isinstance(x, Symbol) or x.op == "number" or is_truth(x.op):
            return 0.0
        if id(x) not in done:
            done[id(x)] = 1.0 if x.op == "argument" and x.arguments[0] == argument else rule(x)
        return done[id(x)]

    def rule(x: Symbol) -> Any:
        a: Any
        b: Any
        a, b, *_ = (*x.arguments, None, None)
        match x.op:
            case "argument":
                return 0.0
            case "add":
                return _plus(visit(a), visit(b))
            case "sub":
                return _plus(visit(a), _times(-1.0, visit(b)))
            case "neg":
                return _times(-1.0, visit(a))
            case "mul":
                return _plus(_times(b, visit(a)), _times(a, visit(b)))
            case "truediv":
                top, bottom = visit(a), visit(b)
                return _plus(_over(top, b), _over(_times(_times(-1.0, x), bottom), b))
            case "exp":
                return _times(x, visit(a))
            case "expm1":
                return _times(x + 1.0, visit(a))
            case "log":
                return _over(visit(a), a)
            case "log1p":
                return _over(visit(a), a + 1.0)
            case "sqrt":
                return _over(visit(a), 2.0 * x)
            case "abs":
                return _times(_where(a < 0, -1.0, 1.0), visit(a))
            case "where":
                return _where(a, visit(b), visit(x.arguments[2]))
            case "maximum":
                return _where(_compared("ge", a, b), visit(a), visit(b))
            case "minimum":
                return _where(_compared("le", a, b), visit(a), visit(b))
            case "pow" if not isinstance(b, Symbol):
                return _times(_times(b, _apply("pow", (a, b - 1.0), {})), visit(a))
        raise NotTraceable(f"the derivative of {x.op} is not known here")

    found = visit(expression)
    return found if isinstance(found, Symbol) else _number_of(found, expression.dtype)


def exponent(expression: Any, argument: str) -> float | None:
    """The e of an expression that is c x^e, else None."""
    if not isinstance(expression, Symbol) or expression.op == "number":
        return 0.0
    if expression.op == "argument":
        return 1.0 if expression.arguments[0] == argument else None
    found = [exponent(part, argument) for part in expression.arguments]
    a, b = (found[0], found[1] if len(found) > 1 else 0.0)
    if a is None or b is None:
        return None
    match expression.op:
        case "mul":
            return a + b
        case "truediv":
            return a - b
        case "neg":
            return a
        case "sqrt":
            return a / 2
        case "pow" if not isinstance(expression.arguments[1], Symbol):
            return a * float(expression.arguments[1])
    return None


def bend(elasticity: Symbol, known: Symbol | None = None) -> Symbol:
    """e + u e'(u) of the elasticity e of u: u e (e + u e') is the second derivative of f*'.

    `known` stands for the value of e where that is all it takes.
    """
    power = exponent(elasticity, "u")
    if power is not None:  # e = c u^power
        found: Any = (elasticity if known is None else known) * (1 + power)
    else:
        found = elasticity + Symbol("argument", ("u",), elasticity.dtype) * slope(elasticity, "u")
    return found if isinstance(found, Symbol) else _number_of(float(found), elasticity.dtype)


def _plus(a: Any, b: Any) -> Any:
    return b if _is(a, 0) else a if _is(b, 0) else a + b


def _times(a: Any, b: Any) -> Any:
    if _is(a, 0) or _is(b, 0):
        return 0.0
    return b if _is(a, 1) else a if _is(b, 1) else a * b


def _over(a: Any, b: Any) -> Any:
    return 0.0 if _is(a, 0) else a / b


def _is(x: Any, number: float) -> bool:
    return isinstance(x, float) and x == number


def _where(condition: Any, a: Any, b: Any) -> Any:
    return 0.0 if _is(a, 0) and _is(b, 0) else _apply("where", (condition, a, b), {})


def _compared(op: str, a: Any, b: Any) -> Symbol:
    return Symbol(op, (a, b), next(x.dtype for x in (a, b) if isinstance(x, Symbol)))


def statements(
    results: Sequence[Symbol], write: Callable[[str, list[str]], str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Assignments (name, expression) in order, each operation once, and the names of the results.

    `write(op, arguments)` prints one operation of one language.
    """
    names: dict[int, str] = {}
    products: list[Symbol] = []  # kept, since names go by identity
    seen: dict[str, str] = {}
    lines: list[tuple[str, str]] = []

    def visit(x: Any) -> str:
        if not isinstance(x, Symbol):
            return write("number", [_number(float(x))])
        if id(x) in names:
            return names[id(x)]
        if x.op == "argument":
            name = str(x.arguments[0])
        elif x.op == "number":
            name = write("number", [_number(x.arguments[0])])
        elif x.op == "pow" and isinstance(x.arguments[1], float) and _whole(x.arguments[1]):
            products.append(_product(x.arguments[0], round(x.arguments[1])))
            name = visit(products[-1])
        else:
            text = write(x.op, [visit(argument) for argument in x.arguments])
            if text not in seen:
                seen[text] = f"x{len(lines)}"
                lines.append((seen[text], text))
            name = seen[text]
        names[id(x)] = name
        return name

    return lines, [visit(result) for result in results]


def _number(x: float) -> str:
    return "inf" if x == math.inf else "-inf" if x == -math.inf else repr(float(x))


def infix(op: str) -> str | None:
    """The sign of an operation between two arguments, or None."""
    return _INFIX.get(op)


def is_truth(op: str) -> bool:
    """Whether the result is a truth value."""
    return op in _COMPARISONS or op in ("and", "or", "invert", "isfinite", "logical_not")
