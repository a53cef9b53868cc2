"""From the arguments of a verb, and its `--config` file, to its filled dataclasses."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any

from fenchel.cli import config_file
from fenchel.cli.options import (
    COMMON_TRAINING,
    TRAINING_NOTE,
    Option,
    Parser,
    add_options,
    dataclass_options,
    training_options,
)
from fenchel.cli.values import convert
from fenchel.cli.verbs import Verb
from fenchel.errors import InputError

_FLAG = re.compile(r"--[A-Za-z][\w-]*")

Given = dict[str, tuple[Any, str]]  # the value of each option, and how an error names it


def parse(name: str, verb: Verb, argv: Sequence[str]) -> list[Any]:
    """Return what `verb.run` takes: its dataclasses, and the training arguments if it trains.

    Flags win over the `--config` file. Raises `InputError` for what is unknown, missing or of
    another type; `SystemExit` after printing the help.
    """
    options = {
        key: option
        for config in verb.configs
        for key, option in dataclass_options(config, verb.positional).items()
    }
    namespace, rest = build_parser(name, verb).parse_known_args(_underscored(argv))
    flags = vars(namespace)
    del flags["debug"]
    path = flags.pop("config", None)
    from_file = config_file.read(path) if path is not None else {}
    set_in_file = {key for key, (value, _) in from_file.items() if value is not None}
    _check_needed(name, verb, {*flags, *set_in_file})

    trained: dict[str, Option] = {}
    if verb.training:
        trained = training_options()
        extra = Parser(prog=f"fenchel {name}", add_help=False, allow_abbrev=False)
        add_options(extra, trained)
        more, rest = extra.parse_known_args(rest)
        flags |= vars(more)
    known = options | trained
    if rest:
        unknown = _flag_names(rest)
        if not unknown:
            raise InputError(f"unexpected argument {rest[0]!r}; see fenchel {name} --help")
        raise InputError(f"unknown flag --{unknown[0]}{_nearest(unknown[0], [*known, 'config'], '--')}")

    given: Given = {}
    for key, (value, where) in from_file.items():
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}{_nearest(key, known)}")
        given[key] = (value, f"{where}: {key}")
    for key, value in flags.items():
        single = isinstance(value, list) and len(value) == 1
        given[key] = (value[0] if single else value, f"--{key}")
    values = {key: convert(label, value, known[key].hint) for key, (value, label) in given.items()}
    filled: list[Any] = [
        config(**{f.name: values[f.name] for f in fields(config) if f.name in values})
        for config in verb.configs
    ]
    if verb.training:
        filled.append({key: value for key, value in values.items() if key in trained})
    return filled


def build_parser(name: str, verb: Verb) -> Parser:
    """Return the parser of a verb, whose help shows the verb's own options and common others."""
    positional = f" {verb.positional.upper()}" if verb.positional else ""
    parser = Parser(
        prog=f"fenchel {name}",
        usage=f"fenchel {name}{positional} [options]",
        description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
        epilog="Example:\n" + textwrap.indent("\n".join(verb.examples), "  "),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    for config in verb.configs:
        heading = (config.__doc__ or "").strip().rstrip(".")
        add_options(parser.add_argument_group(heading), dataclass_options(config, verb.positional))
    if verb.training:
        common = {key: Option(hint, text) for key, (hint, text) in COMMON_TRAINING.items()}
        add_options(parser.add_argument_group("Training", TRAINING_NOTE), common)
    group = parser.add_argument_group("Command")
    group.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file of options, one 'flag: value' a line; flags given here win",
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def _underscored(argv: Sequence[str]) -> list[str]:
    """Write `--learning-rate` as `--learning_rate`, leaving values alone."""
    renamed = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if _FLAG.fullmatch(flag):
            flag = "--" + flag[2:].replace("-", "_")
        renamed.append(flag + equals + value)
    return renamed


def _flag_names(arguments: Sequence[str]) -> list[str]:
    return [a[2:].partition("=")[0] for a in arguments if a.startswith("--")]


def _check_needed(name: str, verb: Verb, given: Collection[str]) -> None:
    required = [
        f.name
        for config in verb.configs
        for f in fields(config)
        if f.default is MISSING and f.name != verb.positional
    ]
    missing = []
    for need in (*required, *verb.needs):
        alternatives = (need,) if isinstance(need, str) else need
        if not any(flag in given for flag in alternatives):
            missing.append(" or ".join(f"--{flag}" for flag in alternatives))
    if missing:
        raise InputError(f"{name} needs {', '.join(missing)}; see fenchel {name} --help")


def _nearest(key: str, known: Iterable[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""
