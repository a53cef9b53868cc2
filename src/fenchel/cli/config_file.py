"""YAML files of `--config`: a flat mapping from flag names to values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fenchel.errors import InputError


def read(path: str) -> dict[str, tuple[Any, str]]:
    """Return, for each key, its value and where it stands: `run.yaml, line 3`.

    Raises `InputError` for a file that is not a YAML mapping, or that sets a key twice.
    """
    import yaml

    source = Path(path).expanduser()
    if not source.is_file():
        raise InputError(f"no such configuration file: {path!r}")
    try:
        loader = yaml.SafeLoader(source.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path}, line 1: expects lines of 'key: value'")
        entries: dict[str, tuple[Any, str]] = {}
        for key_node, value_node in root.value:
            where = f"{path}, line {key_node.start_mark.line + 1}"
            key = str(key_node.value).replace("-", "_")
            if key in entries:
                raise InputError(f"{where}: {key} was set before, at {entries[key][1]}")
            entries[key] = (loader.construct_object(value_node, deep=True), where)
        return entries
    except yaml.MarkedYAMLError as error:
        # A line without its colon is found out on the next line, but begins at the context.
        lost_colon = error.context == "while scanning a simple key"
        mark = error.context_mark if lost_colon else error.problem_mark
        where = f"{path}, line {mark.line + 1}" if mark else path
        raise InputError(f"{where}: not valid YAML ({error.problem})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
