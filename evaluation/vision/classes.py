"""Classes and the codes that stand for them, from whatever file says so, and the masks that hold the codes.

A code of a mask belongs to a class only if the classes file says so: what is left over is not scored, and its share is
told, unless the file has a class for all the rest (code `*`).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.images import ImageTable
from processing.errors import AgriClipError

__all__ = ["IGNORE", "ClassTable", "commonest", "mask_files", "read_classes", "read_rows"]

IGNORE = -1
REST = "*"
_CODE = ("code", "value", "id", "no.", "no", "number", "index", "class_id", "pixel", "label")
_NAME = ("name", "class", "class_name", "label", "crop", "description", "title", "category", "text")


def read_rows(path: str | Path, what: str) -> list[dict[str, Any]]:
    """Rows of a CSV, TSV, JSON or JSON-lines file.

    Args:
        path: The file. JSON may be a list of records, or a mapping, whose entries become `key` and `value`.
        what: What the file is for messages.

    Raises:
        AgriClipError: It does not exist, is empty, or is none of these.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise AgriClipError(f"The {what} file '{file}' does not exist; check the path.")
    text = _decoded(file)
    kind = file.suffix.lower()
    try:
        if kind in (".json", ".yaml", ".yml"):
            content = json.loads(text) if kind == ".json" else _yaml(text)
        elif kind in (".jsonl", ".ndjson"):
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            tabs = kind == ".tsv" or text.split("\n", 1)[0].count("\t") > text.split("\n", 1)[0].count(",")
            content = list(csv.DictReader(io.StringIO(text), delimiter="\t" if tabs else ","))
    except ValueError as error:
        raise AgriClipError(f"The {what} file '{file}' cannot be read ({error}); give CSV or JSON.") from error
    if isinstance(content, Mapping) and isinstance(content.get("images"), list):
        content = content["images"]  # RSICD, RSITMD, UCM captions and COCO put their records there
    if isinstance(content, Mapping):
        content = [{"key": key, "value": value} for key, value in content.items()]
    rows = [dict(row) for row in content if isinstance(row, Mapping)] if isinstance(content, list) else []
    if not rows:
        raise AgriClipError(f"The {what} file '{file}' holds no records; write one row for each image or class.")
    return [{str(key).strip().lower(): value for key, value in row.items() if key is not None} for row in rows]


def _decoded(file: Path) -> str:
    """Text of a file in UTF-8, or else in GB 18030, as RSICD's table of captions is."""
    raw = file.read_bytes()
    for encoding in ("utf-8-sig", "gb18030", "latin-1"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 decodes anything")  # pragma: no cover


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def find_column(rows: Sequence[Mapping[str, Any]], names: Sequence[str], but: Iterable[str] = ()) -> str | None:
    """The first of some names that the rows have as a column."""
    found = [name for name in names if name in rows[0] and name not in but]
    return found[0] if found else None


def as_number(value: Any) -> float:
    """A value as a number, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


@dataclass(frozen=True)
class ClassTable:
    """Classes and the codes that stand for them.

    Attributes:
        names: What each class is called, which may be a whole phrase.
        codes: Class index of each code.
        rest: Class index of every code that is not listed, or None.
        understood: How the file was read, in a sentence.
        labels: What labels call each class, where the file tells it apart from the name.
    """

    names: list[str]
    codes: dict[int, int]
    rest: int | None = None
    understood: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    def index(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class index of each code of a mask, -1 where it is not scored."""
        least = 0 if self.rest is None else self.rest
        table = np.full(max([*self.codes, int(codes.max(initial=0))]) + 1, IGNORE if self.rest is None else least)
        for code, index in self.codes.items():
            table[code] = index
        return np.where(codes < 0, IGNORE, table[np.maximum(codes, 0)]).astype(np.int64)


def read_classes(path: str | Path) -> ClassTable:
    """Read classes: CSV of code and name, a JSON or YAML mapping, or a text file of one name a line.

    A code may be a number, a label, a list of them (JSON) or several rows of one name (CSV); `*` stands for all codes
    that are not listed, and an empty name, `ignore` or `-` for codes that are not scored.

    Args:
        path: The file.

    Raises:
        AgriClipError: It names no class.
    """
    file = Path(path).expanduser()
    pairs: list[tuple[Any, str]] = []
    if file.suffix.lower() == ".txt" and file.is_file():
        lines = [line.strip() for line in _decoded(file).splitlines() if line.strip()]
        pairs, told = list(enumerate(lines)), "names of one line each, numbered from 0"
    else:
        rows = read_rows(file, "classes")
        if set(rows[0]) == {"key", "value"}:
            pairs, told = _of_mapping(rows)
        else:
            code = find_column(rows, _CODE)
            name = find_column(rows, _NAME, but=[code or ""])
            if name is None and code is not None and code in _NAME:
                code, name = None, code
            if name is None:
                raise AgriClipError(f"The classes file '{file}' has the columns {', '.join(rows[0])}; use code,name.")
            pairs = [(i if code is None else row[code], str(row[name] or "")) for i, row in enumerate(rows)]
            told = f"names from column '{name}', codes from {'the order' if code is None else repr(code)}"
    names: list[str] = []
    codes: dict[int, int] = {}
    labels: dict[str, str] = {}
    rest: int | None = None
    for code, said in pairs:
        name = said.strip()
        if name.lower() in ("", "ignore", "-"):
            if str(code).strip().lstrip("-").isdigit():
                codes[int(code)] = IGNORE
            continue
        if name not in names:
            names.append(name)
        index = names.index(name)
        text = str(code).strip()
        if text == REST:
            rest = index
        elif as_number(text).is_integer():
            codes[int(float(text))] = index
            labels[text] = name
        else:
            labels[text] = name
    if not names:
        raise AgriClipError(f"The classes file '{file}' names no class; write rows of code,name.")
    codes = {code: index for code, index in codes.items() if code >= 0}
    return ClassTable(names, codes, rest, f"{len(names)} classes from '{file}': {told}", labels)


def _of_mapping(rows: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[Any, str]], str]:
    """Code to name, name to code or name to codes, or label to description."""
    pairs: list[tuple[Any, str]] = []
    for row in rows:
        key, value = row["key"], row["value"]
        if isinstance(value, list):
            pairs += [(code, str(key)) for code in value]
        elif isinstance(value, int) or (str(value).strip() == REST):
            pairs.append((value, str(key)))
        else:
            pairs.append((key, str(value)))
    return pairs, "a mapping of codes and names"


def mask_files(table: ImageTable, masks: str | Path) -> list[Path | None]:
    """The mask of each image: the raster of the same path or name in another folder.

    Raises:
        AgriClipError: There is no such folder, or it has no mask for any image.
    """
    folder = Path(masks).expanduser()
    if not folder.is_dir():
        raise AgriClipError(f"There is no folder of masks '{masks}'; check the path.")
    known: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in (".tif", ".tiff", ".png"):
            path = file.relative_to(folder)
            for name in (path.with_suffix("").as_posix(), path.stem):
                known.setdefault(name, file)
    found = []
    for ref in table.refs:
        names = (Path(ref.key).with_suffix("").as_posix(), Path(ref.key).stem)
        found.append(next((known[name] for name in names if name in known), None))
    if not any(found):
        raise AgriClipError(
            f"'{folder}' has no mask for any image of {table.origin} (such as '{table.refs[0].key}'); name masks as "
            "their images are."
        )
    return found


def commonest(codes: NDArray[np.int64], classes: ClassTable) -> int:
    """The commonest class among codes, those of one class together; -1 where it is of no listed class."""
    index = classes.index(codes)
    listed = np.bincount(index[index >= 0].ravel(), minlength=len(classes.names))
    others = np.bincount(codes[(index < 0) & (codes >= 0)].ravel(), minlength=1)
    if listed.max() == 0 or listed.max() < others.max():
        return IGNORE
    return int(listed.argmax())
