"""Labels and captions of images from whatever file holds them, and a sentence that says how it was understood.

Two choices define this file. Columns are found by the names people use, and what was found is told, so that a wrong
guess is seen. And images are matched by path, file name or stem, and labels without an image and images without a
label are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.classes import (
    IGNORE,
    ClassTable,
    as_number,
    commonest,
    find_column,
    mask_files,
    read_rows,
)
from evaluation.vision.images import ImageTable, names_of_ref
from evaluation.vision.protocols import plain
from evaluation.vision.reading import read_codes
from processing.errors import AgriClipError, named, nearest

__all__ = [
    "Captions",
    "Labels",
    "image_captions",
    "image_labels",
    "mask_labels",
    "read_captions",
    "relabel",
]

_FILE = tuple("file filename file_name filepath path image img image_path key name tile id".split())
_LABEL = ("label", "class", "category", "class_name", "label_name", "target", "y", "code")
_X, _Y = ("lon", "longitude", "x", "easting"), ("lat", "latitude", "y", "northing")
_CAPTION = ("caption", "captions", "title", "text", "sentence", "sentences", "raw", "report")


@dataclass(frozen=True)
class Labels:
    """Labels of images, in the order of a table.

    Attributes:
        index: Class of each image (N,), -1 where it has none.
        names: Class names.
        split: Split of each image as the file says, or None.
        fold: Fold of each image as the file says, or None.
        place: Coordinates (N, 2) as the file says, NaN where it does not, or None.
        understood: How the file was read, in a sentence.
    """

    index: NDArray[np.int64]
    names: list[str]
    split: list[str] | None = None
    fold: list[str] | None = None
    place: NDArray[np.float64] | None = None
    understood: str = ""


def image_labels(table: ImageTable, source: str | Path | None, column: str | None = None) -> Labels:
    """Labels of the images of a table.

    Args:
        table: The images.
        source: CSV or JSON of file and label, or None for the names of folders or the column of a data set.
        column: Column of the labels; found by default.

    Raises:
        AgriClipError: There are no labels, or none of them belongs to an image.
    """
    if source is None:
        return _own_labels(table, column)
    rows = read_rows(source, "labels")
    if set(rows[0]) == {"key", "value"}:
        rows = [{"file": row["key"], "label": row["value"]} for row in rows]
    by = column.lower() if column else find_column(rows, _LABEL)
    file = find_column(rows, _FILE, but=[by or ""])
    if file is None or by is None or by not in rows[0]:
        raise AgriClipError(
            f"The labels file '{source}' has the columns {', '.join(rows[0])}; it needs one of files ({_FILE[0]}) and "
            f"one of labels ({by or _LABEL[0]})."
        )
    matched, lost = _match(table, rows, file, source)
    found = [None if row is None else row.get(by) for row in matched]
    texts = [None if value is None or str(value).strip() == "" else str(value).strip() for value in found]
    names = _ordered({text for text in texts if text is not None})
    index = np.array([IGNORE if text is None else names.index(text) for text in texts], dtype=np.int64)
    told = (
        f"labels from column '{by}' of '{source}', files from '{file}': {int((index >= 0).sum())} of {len(table)} "
        f"images have one, {lost} labels have no image, {len(names)} classes"
    )
    x, y = find_column(rows, _X, but=[by]), find_column(rows, _Y, but=[by])
    place = None
    if x and y:
        place = np.array([[as_number(None if row is None else row[c]) for c in (x, y)] for row in matched])
        told += f"; places from '{x}' and '{y}'"
    parts = {name: _texts(matched, name) for name in ("split", "fold") if name in rows[0]}
    return Labels(index, names, parts.get("split"), parts.get("fold"), place, told)


def _own_labels(table: ImageTable, column: str | None) -> Labels:
    """Labels from the folders of the images, or from a column of their data set."""
    if table.refs[0].columns is not None:
        rows = [ref.columns() if ref.columns else {} for ref in table.refs]
        by = column or find_column(rows, _LABEL)
        if by is None or by not in rows[0]:
            raise AgriClipError(f"{table.origin} has no column of labels (it has {', '.join(rows[0])}).")
        texts = [None if row.get(by) is None else str(row[by]) for row in rows]
        told = f"labels from column '{by}' of {table.origin}"
    else:
        texts, told = [ref.group for ref in table.refs], f"labels from the names of the folders in {table.origin}"
    names = _ordered({text for text in texts if text is not None})
    if len(names) < 2:
        raise AgriClipError(
            f"{table.origin} has no folder for each class; give --labels with a CSV of file and label."
        )
    index = np.array([IGNORE if text is None else names.index(text) for text in texts], dtype=np.int64)
    return Labels(index, names, understood=f"{told}, {len(names)} classes")


def _match(
    table: ImageTable, rows: Sequence[dict[str, Any]], file: str, source: Any
) -> tuple[list[dict[str, Any] | None], int]:
    """The row of each image, and how many rows belong to none.

    Raises:
        AgriClipError: No row belongs to an image.
    """
    known: dict[str, dict[str, Any]] = {}
    for row in rows:
        text = str(row[file]).strip()
        path = Path(text)
        for name in (text, path.name, path.with_suffix("").as_posix(), path.stem):
            known.setdefault(name, row)
    matched: list[dict[str, Any] | None] = []
    for ref in table.refs:
        matched.append(next((known[name] for name in names_of_ref(ref) if name in known), None))
    used = {id(row) for row in matched if row is not None}
    if not used:
        raise AgriClipError(
            f"None of the {len(rows)} files in '{source}' (such as '{rows[0][file]}') is an image of {table.origin} "
            f"(such as '{table.refs[0].key}'); check the names."
        )
    return matched, sum(id(row) not in used for row in rows)


def _texts(rows: Sequence[Mapping[str, Any] | None], name: str) -> list[str]:
    return ["" if row is None else str(row.get(name, "")).strip() for row in rows]


def _ordered(names: Iterable[str]) -> list[str]:
    """Names by number where all are numbers, else by letter."""
    texts = list(names)
    return sorted(texts, key=float if all(not math.isnan(as_number(text)) for text in texts) else None)


def relabel(labels: Labels, classes: ClassTable) -> tuple[Labels, float]:
    """Labels by a classes file: merged, named in words, and without those that the file does not list.

    Args:
        labels: Labels as their own file tells them.
        classes: The classes; a label is found by its code, by its text, or by the name of a class.

    Returns:
        The labels, and the share of labelled images that are not scored.

    Raises:
        AgriClipError: No label is listed.
    """
    wanted = {plain(name): i for i, name in enumerate(classes.names)}
    wanted |= {plain(text): classes.names.index(name) for text, name in classes.labels.items()}
    rest = IGNORE if classes.rest is None else classes.rest
    table = np.array([wanted.get(plain(name), rest) for name in labels.names])
    if not (table >= 0).any():
        raise AgriClipError(
            f"None of the labels ({named(labels.names, 4)}) is in the classes file ({named(classes.names, 4)})."
        )
    index = np.where(labels.index >= 0, table[np.maximum(labels.index, 0)], IGNORE)
    had = labels.index >= 0
    left = float(((index < 0) & had).sum() / max(1, had.sum()))
    told = f"{labels.understood}; {classes.understood}, {left:.1%} of the labelled images are of no listed class"
    return replace(labels, index=index, names=list(classes.names), understood=told), left


def mask_labels(table: ImageTable, masks: str | Path, classes: ClassTable) -> Labels:
    """The commonest class of each image's mask; -1 where the commonest code is of no listed class.

    Args:
        table: The images.
        masks: Folder of masks.
        classes: Codes and names.
    """
    found = []
    for file in mask_files(table, masks):
        codes = np.zeros(0, dtype=np.int64) if file is None else read_codes(file)
        found.append(IGNORE if file is None else commonest(codes, classes))
    index = np.array(found, dtype=np.int64)
    told = f"commonest class of the masks in '{masks}': {int((index >= 0).sum())} of {len(table)} images have one"
    return Labels(index, list(classes.names), understood=f"{told}; {classes.understood}")


@dataclass(frozen=True)
class Captions:
    """Captions of images.

    Attributes:
        texts: Captions of each image of the table.
        understood: How the file was read, in a sentence.
    """

    texts: list[list[str]]
    understood: str


def image_captions(table: ImageTable, source: str | Path | None, split: str | None = None) -> Captions:
    """Captions of the images of a table.

    Args:
        table: The images.
        source: JSON of RSICD, RSITMD or UCM captions, CSV of file and caption, or None for the columns of a data set.
        split: Split of the JSON to take; `test` where it has one.

    Raises:
        AgriClipError: No caption belongs to an image.
    """
    if source is None:
        if table.refs[0].columns is None:
            raise AgriClipError(f"{table.origin} has no captions of its own; give --captions with a CSV or JSON file.")
        rows = [ref.columns() if ref.columns else {} for ref in table.refs]
        names = [name for name in rows[0] if name.lower().rstrip("0123456789_") in _CAPTION]
        if not names:
            raise AgriClipError(f"{table.origin} has no column of captions (it has {', '.join(rows[0])}).")
        texts = [[text for name in names for text in _sentences(row.get(name))] for row in rows]
        return Captions(texts, f"captions from {', '.join(names)} of {table.origin}")
    by_file, told = read_captions(source, split)
    rows = [{"file": name, "texts": texts} for name, texts in by_file.items()]
    matched, lost = _match(table, rows, "file", source)
    texts = [[] if row is None else row["texts"] for row in matched]
    without = sum(not one for one in texts)
    return Captions(texts, f"{told}; {without} of {len(table)} images have none, {lost} files have no image")


def read_captions(source: str | Path, split: str | None = None) -> tuple[dict[str, list[str]], str]:
    """Captions of each file.

    Args:
        source: The file.
        split: Split to take; `test` where there is one.

    Raises:
        AgriClipError: The file has no captions, or not of that split.
    """
    rows = read_rows(source, "captions")
    if set(rows[0]) == {"key", "value"}:
        rows = [{"file": row["key"], "caption": row["value"]} for row in rows]
    file = find_column(rows, _FILE)
    columns = [name for name in rows[0] if name.rstrip("0123456789_") in _CAPTION and name != file]
    if file is None or not columns:
        raise AgriClipError(
            f"The captions file '{source}' has {', '.join(rows[0])}; it needs a column of files and one of captions."
        )
    splits = sorted({str(row.get("split", "")) for row in rows})
    chosen = split or ("test" if "test" in splits else None)
    if chosen is not None:
        if chosen not in splits:
            raise AgriClipError(f"There is no split '{chosen}' in '{source}'; {nearest(chosen, splits)}.")
        rows = [row for row in rows if str(row.get("split", "")) == chosen]
    found: dict[str, list[str]] = {}
    for row in rows:
        texts = [text for name in columns for text in _sentences(row[name])]
        found.setdefault(str(row[file]).strip(), []).extend(texts)
    told = f"captions from {named(columns)} of '{source}'" + (f", split {chosen}" if chosen else "")
    return found, f"{told}: {sum(map(len, found.values()))} of {len(found)} files"


def _sentences(value: Any) -> list[str]:
    """Captions in a cell: a text, a list of texts, or records with `raw`."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return _sentences(value.get("raw") or value.get("caption"))
    if isinstance(value, list | tuple):
        return [text for item in value for text in _sentences(item)]
    text = str(value).strip()
    return [text] if text else []
