"""Tables for experiments: sets of labels, and rankings of labels.

With a directory they are read from files in their published formats:

    DIR/multilabel_NAME/NAME-train.arff, NAME-test.arff, NAME.xml      Mulan's: the XML lists the labels
    DIR/label_ranking/NAME.csv       first line n,d,k; then d features and the rank positions of k labels

Without one they are made from what scikit-learn ships, so that an experiment runs anywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fenchel.errors import InputError

Array = NDArray[np.float64]

GENERATED = ("generated-6", "generated-12")
SHIPPED = ("iris", "wine", "digits")
_CELL = re.compile(r"(?:^|(?<=,))(?:\s*(?:'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\")\s*(?=,|$)|[^,]*)")
_ATTRIBUTE = re.compile(r"@attribute\s+('(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\S+)\s+(.+)", re.IGNORECASE)


class Split(NamedTuple):
    """Features (n, d) and sets of labels (n, m) in {0, 1}, for training and for the test."""

    name: str
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    labels: list[str]


class Ranking(NamedTuple):
    """Features (n, d), and the position of each of k labels, from 1 (first) to k: (n, k)."""

    name: str
    x: Array
    y: Array


def multilabel(directory: str | None, names: Sequence[str]) -> list[Split]:
    """The sets of those names, in their published splits; generated ones where there is no directory."""
    if directory is None:
        return [_generated(name) for name in GENERATED]
    return [_mulan(Path(directory) / f"multilabel_{name}", name) for name in names]


def label_ranking(directory: str | None, names: Sequence[str]) -> list[Ranking]:
    """The sets of those names; made from sets of classes where there is no directory."""
    if directory is None:
        return [_ranked_classes(name) for name in SHIPPED]
    return [_read_ranking(Path(directory) / "label_ranking" / f"{name}.csv", name) for name in names]


def resplit(split: Split, seed: int) -> Split:
    """All examples of a split, parted again at random into parts of the same sizes."""
    x, y = np.concatenate([split.train_x, split.test_x]), np.concatenate([split.train_y, split.test_y])
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = np.split(order, [len(split.train_x)])
    return Split(split.name, x[train], y[train], x[test], y[test], split.labels)


def _mulan(folder: Path, name: str) -> Split:
    listed = _text(folder / f"{name}.xml")
    try:
        found = [str(node.get("name")) for node in ElementTree.fromstring(listed).iter() if node.get("name")]
    except ElementTree.ParseError as error:
        raise InputError(f"{folder / name}.xml is not XML: {error}") from None
    if not found:
        raise InputError(f"{folder / name}.xml lists no labels")
    parts: list[Array] = []
    features: list[list[str]] = []
    for part in ("train", "test"):
        table, columns = _arff(folder / f"{name}-{part}.arff")
        missing = [label for label in found if label not in columns]
        if missing:
            raise InputError(f"{folder / name}-{part}.arff has no attribute for the label {missing[0]!r}")
        is_label = np.array([column in found for column in columns])
        order = [columns.index(label) for label in found]
        parts += [table[:, ~is_label], table[:, order]]
        for label, values in zip(found, parts[-1].T, strict=True):
            if not np.isin(values, (0, 1)).all():
                wrong = values[~np.isin(values, (0, 1))][0]
                raise InputError(
                    f"{folder / name}-{part}.arff: the label {label!r} must be 0 or 1, received {wrong:g}"
                )
        features.append([column for column in columns if column not in found])
    if features[0] != features[1]:
        differ = sorted(set(features[0]) ^ set(features[1])) or ["their order"]
        raise InputError(f"{folder}: the training and test parts have different attributes: {differ[0]}")
    train_x, train_y, test_x, test_y = parts
    return Split(name, train_x, train_y, test_x, test_y, found)


def _arff(path: Path) -> tuple[Array, list[str]]:
    """A dense ARFF file as numbers, one column for each value of a nominal attribute of three or more."""
    names: list[str] = []
    values: list[list[str] | None] = []  # of nominal attributes, None for numbers
    rows: list[list[float]] = []
    data = False
    for number, raw in enumerate(_text(path).splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("%"):
            continue
        if data:
            rows.append(_row(line, names, values, f"{path}:{number}"))
        elif line.lower().startswith("@data"):
            data = True
        elif line.lower().startswith("@attribute"):
            match = _ATTRIBUTE.match(line)
            kind = match[2].strip() if match else ""
            nominal = kind.startswith("{") and kind.endswith("}")
            if match is None or not (nominal or kind.lower() in ("numeric", "real", "integer")):
                raise InputError(f"{path}:{number} is not a numeric or nominal attribute: {line!r}")
            names.append(_unquoted(match[1]))
            if names[-1] in names[:-1]:
                raise InputError(f"{path}:{number} has the attribute {names[-1]!r} a second time")
            values.append(_cells(kind[1:-1]) if nominal else None)
    if not rows:
        raise InputError(f"{path} holds no rows of data after a line @data")
    return _one_hot(np.array(rows), names, values)


def _row(line: str, names: list[str], values: list[list[str] | None], where: str) -> list[float]:
    cells = _cells(line)
    if len(cells) != len(names):
        raise InputError(f"{where} has {len(cells)} values for {len(names)} attributes: {line[:60]!r}")
    row = []
    for cell, name, nominal in zip(cells, names, values, strict=True):
        try:
            row.append(_finite(cell) if nominal is None else float(nominal.index(cell)))
        except ValueError:
            allowed = "a finite number" if nominal is None else "one of " + ", ".join(nominal)
            raise InputError(f"{where}: {name} must be {allowed}, received {cell!r}") from None
    return row


def _one_hot(table: Array, names: list[str], values: list[list[str] | None]) -> tuple[Array, list[str]]:
    columns: list[Array] = []
    found: list[str] = []
    for i, (name, nominal) in enumerate(zip(names, values, strict=True)):
        if nominal is None:
            columns.append(table[:, i])
            found.append(name)
        elif sorted(nominal) == ["0", "1"]:
            columns.append((table[:, i] == nominal.index("1")).astype(np.float64))
            found.append(name)
        else:
            for j, value in enumerate(nominal):
                columns.append((table[:, i] == j).astype(np.float64))
                found.append(f"{name}={value}")
    return np.stack(columns, 1), found


def _cells(line: str) -> list[str]:
    """The values between the commas that are not in quotes."""
    return [_unquoted(cell.strip()) for cell in _CELL.findall(line)]


def _finite(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError
    return value


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return re.sub(r"\\(.)", r"\1", text)


def _read_ranking(path: Path, name: str) -> Ranking:
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    try:
        n, d, k = (int(cell) for cell in lines[0].split(","))
    except (ValueError, IndexError):
        said = lines[0][:60] if lines else ""
        raise InputError(f"{path}:1 must hold the three numbers n,d,k, received {said!r}") from None
    if n < 1 or d < 1 or k < 2:
        raise InputError(f"{path}:1 must count at least 1 row, 1 feature and 2 labels, received {lines[0]!r}")
    if len(lines) != n + 1:
        raise InputError(f"{path} says that it has {n} rows, and has {len(lines) - 1}")
    table = np.empty((n, d + k))
    for number, line in enumerate(lines[1:], 2):
        cells = line.split(",")
        try:
            row = [_finite(cell) for cell in cells]
        except ValueError:
            raise InputError(f"{path}:{number} holds what is no finite number: {line[:60]!r}") from None
        if len(row) != d + k:
            raise InputError(f"{path}:{number} has {len(row)} values, not {d} features and {k} ranks")
        if sorted(row[d:]) != list(range(1, k + 1)):
            raise InputError(f"{path}:{number}: {row[d:]} is not a ranking of {k} labels from 1 to {k}")
        table[number - 2] = row
    return Ranking(name, table[:, :d], table[:, d:])


def _generated(name: str) -> Split:
    from sklearn.datasets import make_multilabel_classification

    labels = int(name.rpartition("-")[2])
    x, y = make_multilabel_classification(
        n_samples=900, n_features=40, n_classes=labels, n_labels=3, length=40, random_state=labels
    )
    x, y = x.astype(np.float64), y.astype(np.float64)
    return Split(name, x[:600], y[:600], x[600:], y[600:], [f"label {i}" for i in range(labels)])


def _ranked_classes(name: str) -> Ranking:
    """The classes of an example in the order of their probabilities under Gaussian naive Bayes.

    So Cheng, Hühn and Hüllermeier (2009) made rankings from sets of classes.
    """
    from sklearn import datasets
    from sklearn.naive_bayes import GaussianNB

    loaded: Any = getattr(datasets, f"load_{name}")()
    x = loaded.data.astype(np.float64)
    model = GaussianNB(var_smoothing=1e-3).fit(x, loaded.target)
    # Ties are broken by the order of the classes, as there.
    order = np.argsort(-model.predict_joint_log_proba(x), axis=1, kind="stable")
    y = np.empty_like(order, dtype=np.float64)
    np.put_along_axis(y, order, np.arange(1.0, order.shape[1] + 1), axis=1)
    return Ranking(name, x, y)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"there is no file {str(path)!r}; name the directory of the data with --data"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: {error}") from None
