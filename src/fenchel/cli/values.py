"""A value from the command line or a YAML file, turned into what a type hint asks for.

Text is read the same from both, so that YAML's `1e-4`, which is text to YAML, is a number here.
"""

from __future__ import annotations

import json
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fenchel.errors import InputError

_BOOLEANS = {"true": True, "false": False}
_MISFITS = (ValueError, TypeError, KeyError, StopIteration)


def convert(label: str, value: Any, hint: Any) -> Any:
    """Return `value` as `hint`, or raise an `InputError` that begins with `label`."""
    try:
        return _convert(value, hint)
    except _MISFITS as error:
        raise InputError(f"{label} expects {expected(hint)}, received {received(value)}") from error


def members(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, the most particular first, or the hint alone.

    Text comes late because it takes anything, a list last because it takes a single item.
    """
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(_is_enum(member) for member in alternatives):
        # `Enum | str` means the names of the members, not any text.
        alternatives = tuple(member for member in alternatives if member is not str)
    return tuple(sorted(alternatives, key=_rank))


def takes_list(hint: Any) -> bool:
    return any(get_origin(member) is list for member in members(hint))


def takes_bool(hint: Any) -> bool:
    return bool in members(hint)


def expected(hint: Any) -> str:
    """Return the hint in the words of an error or of a help text."""
    names = [_name(member) for member in members(hint) if member is not NoneType]
    return " or ".join(names)


def received(value: Any) -> str:
    if value is None:
        return "nothing"
    return repr(value) if isinstance(value, str) else f"{value!r} ({type(value).__name__})"


def _convert(value: Any, hint: Any) -> Any:
    alternatives = members(hint)
    if len(alternatives) == 1:
        return _convert_one(value, alternatives[0])
    for member in alternatives:
        try:
            return _convert_one(value, member)
        except _MISFITS:
            continue
    raise ValueError


def _convert_one(value: Any, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_convert(item, get_args(hint)[0]) for item in items]
    if origin is Literal:
        return next(choice for choice in get_args(hint) if str(choice).lower() == str(value).lower())
    if hint is dict or origin is dict:
        loaded = json.loads(value) if isinstance(value, str) else value
        return _instance(loaded, dict)
    if _is_enum(hint):
        return hint(value).value
    if hint is bool and isinstance(value, str):
        return _BOOLEANS[value.lower()]
    if hint in (int, float) and isinstance(value, str):
        return hint(value)
    if hint is float:
        return float(_instance(value, int, float))
    return _instance(value, hint)


def _rank(member: Any) -> tuple[bool, bool]:
    return get_origin(member) is list, member is str


def _instance(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError
    return value


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _name(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is list:
        return f"a list of {_name(get_args(hint)[0])}"
    if origin is Literal:
        return " or ".join(str(choice).lower() for choice in get_args(hint))
    if hint is dict or origin is dict:
        return "a JSON object"
    if _is_enum(hint):
        return "one of " + ", ".join(str(member.value) for member in hint)
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
