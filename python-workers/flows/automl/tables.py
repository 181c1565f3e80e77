"""Tables: from scikit-learn or a CSV file, as arrays of numbers, and their seeded split.

A table is ``{name, kind, columns, target, classes, x, y, notes}``. ``kind`` is ``binary``, ``multiclass`` or
``regression``. ``x`` is float64 with NaN where a value is missing; ``y`` holds class indexes or numbers.
"""

from __future__ import annotations

import csv
import difflib
import math
import pathlib
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

from eclosion import TaskError

# With the name of what there is to predict.
BUNDLED: dict[str, tuple[Any, str]] = {
    "breast_cancer": (datasets.load_breast_cancer, "diagnosis"),
    "diabetes": (datasets.load_diabetes, "progression"),
    "digits": (datasets.load_digits, "digit"),
    "iris": (datasets.load_iris, "species"),
    "wine": (datasets.load_wine, "cultivar"),
}
# A text column with more distinct values than this is a name or a comment and not a category.
CATEGORIES_MAX = 20
# Whole numbers with at most so many distinct values are classes.
CLASSES_MAX = 20
ROWS_MIN = 20
HELD_OUT = 0.25


def load(data: str, target: str) -> dict[str, Any]:
    """Reads a table. Raises :class:`TaskError` that says what there would be."""
    if data in BUNDLED:
        if target not in ("", "target", BUNDLED[data][1]):
            known = f"its target is `{BUNDLED[data][1]}`"
            raise _refused(f"data set `{data}` has no target `{target}`", f"{known}; leave the parameter `target` out")
        return _bundled(data)
    path = pathlib.Path(data)
    if path.is_file():
        return _csv(path, target)
    near = difflib.get_close_matches(data, BUNDLED, n=1)
    hint = f"did you mean `{near[0]}`? " if near and path.suffix == "" else ""
    raise _refused(
        f"there is no data set and no file `{data}`",
        f"{hint}data sets: {', '.join(BUNDLED)}; or the absolute path of a CSV file",
    )


def split(table: dict[str, Any], seed: int) -> dict[str, Any]:
    """Row numbers: ``{train, held_out}``."""
    classes = table["y"] if table["classes"] else None
    fit, held_out = train_test_split(
        np.arange(len(table["y"])), test_size=HELD_OUT, random_state=seed, stratify=classes
    )
    return {"train": np.sort(fit), "held_out": np.sort(held_out)}


def _bundled(name: str) -> dict[str, Any]:
    loader, target = BUNDLED[name]
    bunch: Any = loader()
    names = getattr(bunch, "target_names", None)
    classes = [] if name == "diabetes" or names is None else [str(entry) for entry in names]
    x, y = np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target)
    return _table(name, [str(column) for column in bunch.feature_names], target, x, y, classes, [])


def _csv(path: pathlib.Path, target: str) -> dict[str, Any]:
    header, rows = _read_csv(path)
    wanted = target or "target"
    if wanted not in header:
        near = difflib.get_close_matches(wanted, header, n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        what = f"no column `{wanted}`" if target else "no column `target`, and the parameter `target` names no other"
        raise _refused(f"{path} has {what}", f"{hint}columns: {', '.join(header)}")
    at = header.index(wanted)
    rows = [row for row in rows if row[at].strip()]
    if len(rows) < ROWS_MIN:
        raise _refused(f"{path} has {len(rows)} rows with a `{wanted}`", f"at least {ROWS_MIN} are needed")
    y, classes = _target([row[at].strip() for row in rows], wanted)
    features, columns, notes = _features(header, rows, skip=at)
    if not columns:
        raise _refused(f"{path} has no usable column beside `{wanted}`", "add columns with numbers or categories")
    return _table(path.stem, columns, wanted, np.column_stack(features), y, classes, notes)


def _read_csv(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as why:
        raise _refused(f"{path} cannot be read as CSV: {why}", "it must be UTF-8 text with a header line") from why
    if not lines:
        raise _refused(f"{path} is empty", "it must have a header line and rows")
    header, rows = [name.strip() for name in lines[0]], lines[1:]
    for n, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise _refused(
                f"row {n} of {path} has {len(row)} fields where the header has {len(header)}",
                "quote fields that contain a comma",
            )
    return header, rows


def _target(texts: list[str], name: str) -> tuple[Any, list[str]]:
    numbers = [_number(text) for text in texts]
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    distinct = sorted(set(texts))
    whole = len(known) == len(texts) and all(number.is_integer() for number in known)
    if len(known) == len(texts) and not (whole and len(distinct) <= CLASSES_MAX):
        return np.asarray(known, dtype=np.float64), []
    if len(distinct) > CLASSES_MAX:
        raise _refused(
            f"column `{name}` has {len(distinct)} distinct texts",
            f"a target has numbers, or at most {CLASSES_MAX} classes",
        )
    if whole:
        distinct.sort(key=float)
    return np.asarray([distinct.index(text) for text in texts]), distinct


def _features(header: list[str], rows: list[list[str]], *, skip: int) -> tuple[list[Any], list[str], list[str]]:
    features: list[Any] = []
    columns: list[str] = []
    notes: list[str] = []
    for at, name in enumerate(header):
        texts = [row[at].strip() for row in rows]
        present = {text for text in texts if text}
        if at == skip or not present:
            continue
        numbers = [_number(text) if text else math.nan for text in texts]
        if None not in numbers:
            features.append(np.asarray(numbers, dtype=np.float64))
            columns.append(name)
        elif len(present) <= CATEGORIES_MAX:
            for value in sorted(present):
                features.append(np.asarray([float(text == value) for text in texts]))
                columns.append(f"{name} = {value}")
        else:
            notes.append(f"column `{name}` was left out: {len(present)} distinct texts")
    return features, columns, notes


def _table(
    name: str, columns: list[str], target: str, x: Any, y: Any, classes: list[str], notes: list[str]
) -> dict[str, Any]:
    if classes:
        present, counts = np.unique(y, return_counts=True)
        if len(present) < 2:
            raise _refused(f"the target `{target}` of `{name}` has one class only", "there is nothing to tell apart")
        if counts.min() < 4:
            rare = classes[int(present[counts.argmin()])]
            raise _refused(f"class `{rare}` of `{target}` has {counts.min()} rows", "each class needs at least 4")
    kind = "regression" if not classes else "binary" if len(classes) == 2 else "multiclass"
    x = np.where(np.isfinite(x), x, np.nan)
    return {
        "name": name,
        "kind": kind,
        "columns": columns,
        "target": target,
        "classes": classes,
        "x": x,
        "y": np.asarray(y, dtype=np.float64 if kind == "regression" else np.int64),
        "notes": notes,
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _refused(message: str, help: str) -> TaskError:
    # Another attempt would read the same.
    return TaskError(message, help=help, retry=False)
