"""The command `fenchel`: parse, call, print. Its help loads neither transformers nor datasets."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from fenchel.cli.parsing import parse
from fenchel.cli.verbs import GROUPS, VERBS, Verb
from fenchel.errors import InputError

_OK, _UNEXPECTED, _BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130

# The extras of modules that may be missing, beside `train`, to which every other belongs.
_EXTRAS = {"matplotlib": "report", "jinja2": "report", "sklearn": "sklearn", "scipy": "sklearn"}
_USER_OS_ERRORS = {
    errno.ENOENT: "no such file or directory",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "no permission, the file system is read-only",
    errno.EEXIST: "exists already",
    errno.EISDIR: "is a directory, a file was expected",
    errno.ENOTDIR: "is not a directory",
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk full, the quota is used up",
}
# safetensors and torch.save do not keep the errno.
_DISK_FULL_SIGNS = ("No space left on device", "unexpected pos")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 done; 2 bad input, told in one line; 130 interrupted; 1 an error nobody foresaw.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return _OK
    if arguments == ["--version"]:
        from fenchel import __version__

        print(f"fenchel {__version__}")
        return _OK
    name, debug = arguments[0], "--debug" in arguments
    verb = VERBS.get(name)
    try:
        if verb is None:
            raise InputError(_unknown_verb(name))
        _quiet(debug)
        verb.run(*parse(name, verb, arguments[1:]))
        return _OK
    except SystemExit as stop:  # argparse stops so after printing the help
        return _UNEXPECTED if stop.code else _OK
    except KeyboardInterrupt:
        hint = f"; {verb.after_interrupt}" if verb and verb.after_interrupt else ""
        print(f"fenchel: interrupted{hint}", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = _user_message(error)
        if message is not None:
            print(f"fenchel: error: {message}", file=sys.stderr)
            return _BAD_INPUT
        kind, text = type(error).__name__, _one_line(error)
        hint = "" if debug else " (--debug shows where)"
        print(f"fenchel: unexpected error: {kind}: {text}{hint}", file=sys.stderr)
        return _UNEXPECTED


def _user_message(error: Exception) -> str | None:
    """Return the line for an error that the user can mend, None for any other."""
    if isinstance(error, InputError):
        return _one_line(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        module = error.name.partition(".")[0]
        if module == "fenchel":
            return None
        extras = ",".join(["train", *([_EXTRAS[module]] if module in _EXTRAS else [])])
        return f'{module} is not installed; pip install "fenchel[{extras}]"'
    if isinstance(error, OSError) and error.errno in _USER_OS_ERRORS:
        where = f": {str(error.filename)!r}" if error.filename is not None else ""
        return f"{_USER_OS_ERRORS[error.errno]}{where}"
    if any(sign in str(error) for sign in _DISK_FULL_SIGNS):
        return f"a file could not be written, is the disk full? ({_one_line(error)})"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _quiet(debug: bool) -> None:
    """Keep what others log out of what is printed here; must come before they are imported."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fenchel").setLevel(logging.INFO)
    if not debug:
        for library in ("TRANSFORMERS", "DATASETS", "HF_HUB"):
            os.environ.setdefault(f"{library}_VERBOSITY", "critical")
        if not sys.stderr.isatty():  # bars are for the eye, a log gets lines
            for library in ("HF_HUB", "HF_DATASETS"):
                os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
        # peft imports it wherever it is installed, and it warns of what would only be faster.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")


def _unknown_verb(name: str) -> str:
    if name.startswith("-"):
        return f"expects a verb before {name}; see fenchel --help"
    nearest = difflib.get_close_matches(name, VERBS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "the verbs are " + ", ".join(VERBS)
    return f"unknown verb {name!r}; {hint}"


def _help() -> str:
    lines = ["usage: fenchel VERB [options]", "", "Train models with any f-divergence."]
    for group, verbs in GROUPS.items():
        lines += ["", f"{group}:", *(_help_line(name, verb) for name, verb in verbs.items())]
    lines += [
        "",
        "fenchel VERB --help shows the options of a verb, fenchel --version the version.",
        "",
        "Example:",
        "  fenchel demo --quick",
        "  fenchel sft --model_name_or_path DIR --dataset_name chats.jsonl --output_dir tuned",
    ]
    return "\n".join(lines)


def _help_line(name: str, verb: Verb) -> str:
    return f"  {name:<10}{verb.summary}"
