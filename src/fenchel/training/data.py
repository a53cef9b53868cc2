"""Where rows come from: `load` reads local files, directories and the Hub.

A `.txt` file is one document: nothing is guessed about where a document ends, and no line break
is lost.
"""

from __future__ import annotations

import difflib
import errno
import glob
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from fenchel.errors import InputError

AnyDataset: TypeAlias = "datasets.Dataset | datasets.IterableDataset"

_FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
}
_NOT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_UNREADABLE = (
    datasets.exceptions.DatasetsError,
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    StopIteration,
)


def load(
    name: str, *, config: str | None = None, split: str = "train", streaming: bool = False
) -> AnyDataset:
    """Return one split of a local file, a directory (of files, or of `save_to_disk`) or a Hub name.

    A single file, and a single data set saved to disk, is the split `train`. Raises `InputError`
    when there is nothing to read, it does not parse, it has no rows, or the split does not exist.
    """
    path = Path(name).expanduser()
    read = _reader(name, path, config)
    # Before anything is read: what reads the file tells no line, and passes some damage on.
    _check_jsonl([path] if path.is_file() else sorted(path.rglob("*.jsonl")))
    try:
        dataset = read(split=split, streaming=streaming)
        first = next(iter(dataset), None)
    except InputError:
        raise
    except _UNREADABLE as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise cause from error
        reason = " ".join(str(cause).split())
        if "corresponds to no data" in reason:  # a file of blank lines, or a header alone
            raise InputError(f"data set {name!r} is empty: no rows in it") from error
        raise InputError(f"data set {name!r} cannot be read: {reason}") from error
    if first is None:
        raise InputError(f"data set {name!r} is empty: split {split!r} has no rows")
    return dataset


def _reader(name: str, path: Path, config: str | None) -> Callable[..., AnyDataset]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return partial(_load_saved, path)
    if path.is_dir():
        options = _options(_directory_format(path))
        return partial(datasets.load_dataset, str(path), config, **options)
    if path.is_file():
        if path.suffix not in _FORMATS:
            raise InputError(
                f"cannot tell the format of {name!r} from its name; rename it to end in one of "
                + ", ".join(_FORMATS)
            )
        _check_not_empty(path)
        kind = _FORMATS[path.suffix]
        files = {"train": glob.escape(str(path))}
        return partial(datasets.load_dataset, kind, data_files=files, **_options(kind))
    if name.startswith(("/", ".", "~")) or path.suffix in _FORMATS or name.count("/") > 1:
        raise InputError(f"no such file or directory: {name!r}{_nearest_sibling(path)}")
    return partial(_load_from_hub, name, config)


def _load_from_hub(name: str, config: str | None, **options: Any) -> AnyDataset:
    try:
        return datasets.load_dataset(name, config, **options)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise InputError(
            f"data set {name!r} is neither a file here nor within reach on the Hub "
            f"({' '.join(str(error).split())}); check the name and the connection"
        ) from error


def _load_saved(path: Path, *, split: str, streaming: bool) -> AnyDataset:
    saved = datasets.load_from_disk(str(path))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if split not in splits:
        raise InputError(f"{str(path)!r} has no split {split!r}; it has: {', '.join(splits)}")
    return splits[split].to_iterable_dataset() if streaming else splits[split]


def _options(format: str) -> dict[str, str]:
    return {"sample_by": "document"} if format == "text" else {}


def _directory_format(path: Path) -> str:
    files = [f for f in path.rglob("*") if f.suffix in _FORMATS and f.name not in _NOT_DATA]
    suffixes = {f.suffix for f in files}
    kinds = {_FORMATS[suffix] for suffix in suffixes}
    if len(kinds) != 1:
        found = ", ".join(sorted(suffixes)) or "none"
        raise InputError(
            f"directory {str(path)!r} must hold data files of one format "
            f"({', '.join(_FORMATS)}), found {found}"
        )
    for file in files:
        _check_not_empty(file)
    return kinds.pop()


def _check_not_empty(file: Path) -> None:
    if file.stat().st_size == 0:
        raise InputError(f"data file {str(file)!r} is empty; fill it or take it away")


def _nearest_sibling(path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    nearest = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {str(path.parent / nearest[0])!r}?" if nearest else ""


def _check_jsonl(files: Iterable[Path]) -> None:
    """Raise `InputError` at the first line that is not a JSON object, reading line by line."""
    for path in files:
        if path.suffix != ".jsonl":
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    what = f"not valid JSON ({error.msg} at column {error.colno})"
                    raise InputError(f"{path}, line {number}: {what}") from error
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}, line {number}: not UTF-8 text") from error
                if not isinstance(row, dict):
                    kind = type(row).__name__
                    raise InputError(f"{path}, line {number}: must be a JSON object, got {kind}")
