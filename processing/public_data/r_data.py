"""Data files of R packages (.rda) without R: tables and rasters of plain numbers, and nothing that could be run.

Written from the format's description in "R Internals", section 1.8 (serialization formats), versions 2 and 3 in XDR
form. Two choices: only data is read (vectors, lists, data frames, S4 objects of the package raster), so functions and
environments are passed over or refused and no code can come in; and missing numbers are NaN.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgriClipError

_NIL, _GLOBAL, _BASE, _EMPTY, _MISSING, _UNBOUND = 254, 253, 241, 242, 251, 252
_NA_INTEGER = -(2**31)


@dataclass(frozen=True)
class RObject:
    """A value of R with its attributes.

    Attributes:
        value: A NumPy array, a list (of RObject or text), a text, or None.
        attributes: Names, dimensions, class, slots.
    """

    value: Any
    attributes: dict[str, RObject] = field(default_factory=dict)

    def texts(self, name: str) -> list[str]:
        """An attribute that is a vector of texts, empty where there is none."""
        found = self.attributes.get(name)
        return list(found.value) if found is not None and isinstance(found.value, list) else []

    def slot(self, name: str) -> RObject:
        """A slot of an S4 object.

        Raises:
            KeyError: It has none of this name.
        """
        return self.attributes[name]


@dataclass(frozen=True)
class RGrid:
    """Layers on a regular grid in degrees.

    Attributes:
        values: (layers, rows, columns) float32, north up, NaN where missing.
        names: Name of each layer.
        west: Western edge in degrees.
        north: Northern edge in degrees.
        step: Width and height of a cell in degrees.
    """

    values: NDArray[np.float32]
    names: tuple[str, ...]
    west: float
    north: float
    step: tuple[float, float]


def read_rda(path: Path) -> dict[str, RObject]:
    """Read the objects of an .rda file, by name.

    Raises:
        AgriClipError: It is no such file, damaged, or holds more than data.
    """
    raw = path.read_bytes()
    try:
        for magic, expand in (
            (b"\x1f\x8b", gzip.decompress),
            (b"BZh", bz2.decompress),
            (b"\xfd7zXZ", lzma.decompress),
        ):
            if raw.startswith(magic):
                raw = expand(raw)
        if raw[:5] not in (b"RDX2\n", b"RDX3\n") or raw[5:7] != b"X\n":
            raise ValueError("it does not begin as one")
        reader = _Reader(raw, 7)
        version, _, _ = reader.integers(3)
        if version == 3:
            reader.text(int(reader.integers(1)[0]))
        return dict(reader.pairs(reader.item()))
    except (
        ValueError,
        KeyError,
        IndexError,
        struct.error,
        OSError,
        EOFError,
        lzma.LZMAError,
        RecursionError,
    ) as error:
        raise AgriClipError(f"'{path}' is no data file of R that can be read ({error}); fetch it again.") from error


def to_grid(thing: RObject, name: str) -> RGrid:
    """Bring a data frame with `x` and `y`, or an object of the package raster, to a grid.

    Args:
        thing: What `read_rda` returned under `name`.
        name: Its name, for layers without names of their own.

    Raises:
        AgriClipError: It is neither, or its cells lie on no regular grid.
    """
    columns = thing.texts("names")
    if "x" in columns and "y" in columns:
        return _grid_of_table(dict(zip(columns, thing.value, strict=True)), name)
    if "extent" in thing.attributes or "layers" in thing.attributes:
        return _grid_of_raster(thing, name)
    raise AgriClipError(
        f"'{name}' is no table with x and y and no raster; it holds {', '.join(columns) or 'no names'}."
    )


def _grid_of_table(columns: dict[str, RObject], name: str) -> RGrid:
    x, y = (np.asarray(columns.pop(axis).value, dtype=np.float64) for axis in ("x", "y"))
    steps = []
    for axis in (x, y):
        gaps = np.diff(np.unique(np.round(axis, 6)))
        if not len(gaps):
            raise AgriClipError(f"The cells of '{name}' lie in one row or column, so their size is not known.")
        steps.append(float(gaps.min()))
    column, row = (x - x.min()) / steps[0], (y.max() - y) / steps[1]
    if max(np.abs(column - np.round(column)).max(), np.abs(row - np.round(row)).max()) > 1e-2:
        raise AgriClipError(f"The cells of '{name}' lie on no regular grid in degrees.")
    places = np.round(row).astype(int), np.round(column).astype(int)
    numbers = {key: part.value for key, part in columns.items() if isinstance(part.value, np.ndarray)}
    values = np.full((len(numbers), places[0].max() + 1, places[1].max() + 1), np.nan, dtype=np.float32)
    for layer, part in zip(values, numbers.values(), strict=True):
        layer[places] = part
    west, north = float(x.min()) - steps[0] / 2, float(y.max()) + steps[1] / 2
    return RGrid(values, tuple(numbers), west, north, (steps[0], steps[1]))


def _grid_of_raster(thing: RObject, name: str) -> RGrid:
    layers = thing.slot("layers").value if "layers" in thing.attributes else [thing]
    extent = layers[0].slot("extent")
    west, east, south, north = (float(extent.slot(edge).value[0]) for edge in ("xmin", "xmax", "ymin", "ymax"))
    rows, columns = (int(layers[0].slot(axis).value[0]) for axis in ("nrows", "ncols"))
    parts: list[NDArray[np.float32]] = []
    names: list[str] = []
    for layer in layers:
        data = layer.slot("data")
        values = np.asarray(data.slot("values").value, dtype=np.float32)
        if values.size == 0 or values.size % (rows * columns):
            raise AgriClipError(f"The raster '{name}' keeps its cells in another file, which is not here.")
        parts.append(values.reshape(-1, rows, columns))  # a matrix of R is stored column by column: layer by layer
        names += data.texts("names") or list(data.attributes["names"].value if "names" in data.attributes else [])
    stack = np.concatenate(parts)
    if len(names) != len(stack) or not all(names):
        names = [f"{name}_{i + 1}" for i in range(len(stack))] if len(stack) > 1 else [name]
    return RGrid(stack, tuple(names), west, north, ((east - west) / columns, (north - south) / rows))


class _Reader:
    """Reads items one after another."""

    def __init__(self, raw: bytes, start: int) -> None:
        self.raw = raw
        self.at = start
        self.references: list[RObject] = []

    def integers(self, count: int) -> NDArray[np.int32]:
        return self._numbers(">i4", count)

    def text(self, length: int) -> str:
        if length == -1:
            return ""
        self.at += length
        if self.at > len(self.raw):
            raise ValueError("it ends early")
        return self.raw[self.at - length : self.at].decode("utf-8", "replace")

    def pairs(self, thing: RObject) -> list[tuple[str, RObject]]:
        """The tagged values of a pair list."""
        return thing.value if isinstance(thing.value, list) else []

    def item(self) -> RObject:
        flags = int(self.integers(1)[0])
        kind, has_attributes, has_tag = flags & 0xFF, bool(flags & 0x200), bool(flags & 0x400)
        if kind in (_NIL, _GLOBAL, _BASE, _EMPTY, _MISSING, _UNBOUND):
            return RObject(None)
        if kind == 255:  # a reference to an earlier symbol or environment
            index = flags >> 8 or int(self.integers(1)[0])
            return self.references[index - 1]
        if kind == 1:
            symbol = self.item()
            self.references.append(symbol)
            return symbol
        if kind in (2, 6):
            return self._pair_list(has_attributes, has_tag)
        if kind == 4:
            return self._environment()
        if kind == 9:
            return RObject(self.text(int(self.integers(1)[0])))
        if kind in (249, 250, 248):  # the name of a namespace or package
            self.integers(1)
            named = RObject([self.item().value for _ in range(int(self.integers(1)[0]))])
            self.references.append(named)
            return named
        if kind == 238:
            return self._compact()
        value = self._vector(kind)
        return RObject(value, dict(self.pairs(self.item())) if has_attributes else {})

    def _vector(self, kind: int) -> Any:
        if kind == 25:  # an S4 object is all attributes
            return None
        length = int(self.integers(1)[0])
        if length == -1:
            high, low = (int(part) for part in self.integers(2))
            length = (high << 32) + low
        if kind in (10, 13):
            whole = self._numbers(">i4", length).astype(np.int64)
            return np.where(whole == _NA_INTEGER, np.nan, whole) if (whole == _NA_INTEGER).any() else whole
        if kind == 14:
            return self._numbers(">f8", length).astype(np.float64)
        if kind == 24:
            return self._numbers("u1", length)
        if kind == 16:
            return [self.item().value for _ in range(length)]
        if kind in (19, 20):
            return [self.item() for _ in range(length)]
        raise ValueError(f"it holds an object of type {kind}, which is no data")

    def _pair_list(self, has_attributes: bool, has_tag: bool) -> RObject:
        pairs: list[tuple[str, RObject]] = []
        while True:
            if has_attributes:
                self.item()
            tag = self.item().value if has_tag else ""
            pairs.append((str(tag), self.item()))
            flags = int(self.integers(1)[0])
            if flags & 0xFF != 2:
                self.at -= 4
                self.item()
                return RObject(pairs)
            has_attributes, has_tag = bool(flags & 0x200), bool(flags & 0x400)

    def _environment(self) -> RObject:
        self.integers(1)
        empty = RObject(None)
        self.references.append(empty)
        for _ in range(4):  # enclosure, frame, hash table, attributes: passed over
            self.item()
        return empty

    def _compact(self) -> RObject:
        """A vector that is stored as a recipe: a range, or a vector in a wrapper."""
        name, state, attributes = str(self.pairs(self.item())[0][1].value), self.item(), self.item()
        known = dict(self.pairs(attributes))
        if name in ("compact_intseq", "compact_realseq"):
            count, start, step = (float(part) for part in state.value)
            return RObject(start + step * np.arange(int(count)), known)
        if name.startswith("wrap_"):
            inner = state.value[0]
            wrapped = inner[1] if isinstance(inner, tuple) else inner
            return RObject(wrapped.value, known or wrapped.attributes)
        raise ValueError(f"it holds a vector of the kind '{name}'")

    def _numbers(self, kind: str, count: int) -> NDArray[Any]:
        size = np.dtype(kind).itemsize * count
        if count < 0 or self.at + size > len(self.raw):
            raise ValueError("it ends early")
        self.at += size
        return np.frombuffer(self.raw, dtype=kind, count=count, offset=self.at - size)


__all__ = ["RGrid", "RObject", "read_rda", "to_grid"]
