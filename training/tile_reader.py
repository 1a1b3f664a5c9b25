"""One row of a tile table to named, masked bands: from a path, from bytes or from an array.

Two choices: pixels are read only here, when a row is asked for, and of a larger raster only the row's window; and what
cannot be read raises `UnreadableTile`, which names the tile, so that callers can count and skip it, while a row that
contradicts itself is the user's to mend and stays an ordinary `AgriClipError`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from processing.bands_agriclip import BandStack, _ground_sample_distance, from_array
from processing.errors import AgriClipError

try:
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.io import MemoryFile
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Reading tiles needs rasterio; install it with: pip install 'agriclip[maps]'.") from error

IGNORE = 255  # what segmentation does not score

# A path, the bytes of a raster file, or an array (C, H, W).
Source = str | bytes | NDArray[Any]


class UnreadableTile(AgriClipError):
    """A tile whose file is damaged; the message is one sentence that names it."""


@dataclass(frozen=True)
class Tile:
    """One row of a tile table, its pixels not yet read.

    Attributes:
        key: What tells this tile from others, whatever it is stored in: its file name without the ending.
        images: One source a date, oldest first.
        mask: Source of the class codes of the pixels, or None.
        label: Class index or value of the whole tile, or None.
        text: Report on the tile, or None.
        dates: Date of each image (ISO), None where unknown.
        sensor: Name of the sensor, or None for the processor's own.
        bands: Names of the channels in the order of the model, or None for all of the sensor that the file names.
        gsd: Metres per pixel, or None for the file's.
        window: Row, column, height and width in pixels of the part that is the tile, or None for all.
    """

    key: str
    images: tuple[Source, ...]
    mask: Source | None = None
    label: int | float | None = None
    text: str | None = None
    dates: tuple[str | None, ...] = ()
    sensor: str | None = None
    bands: tuple[str, ...] | None = None
    gsd: float | None = None
    window: tuple[int, int, int, int] | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Tile:
        """Understand one row of a data set.

        Args:
            row: `image` (bytes, `{bytes, path}`, an array, or a list of them, one a date) and, as far as known, `key`,
                `mask`, `label`, `text`, `date`, `sensor`, `bands`, `gsd`, `window`.

        Raises:
            AgriClipError: There is no image, the dates do not number the images, or the window is no window.
        """
        images = tuple(_sources(row.get("image")))
        key = str(row.get("key") or _key_of(images))
        if not images:
            raise AgriClipError(f"The tile '{key}' has no image; give each row an 'image' (bytes or an array).")
        given = row.get("date")
        dates = tuple(given) if isinstance(given, list | tuple) else (given,)
        if any(dates) and len(dates) != len(images):
            raise AgriClipError(f"The tile '{key}' has {len(images)} images but {len(dates)} dates; give one each.")
        bands = row.get("bands")
        return cls(
            key=key,
            images=images,
            mask=next(iter(_sources(row.get("mask"), of_mask=True)), None),
            label=row.get("label"),
            text=row.get("text"),
            dates=dates if any(dates) else (None,) * len(images),
            sensor=row.get("sensor") or None,
            bands=tuple(bands) if bands else None,
            gsd=row.get("gsd"),
            window=_window(row.get("window"), key),
        )

    @property
    def name(self) -> str:
        """What messages call the tile: its path where it has one."""
        return next((image for image in self.images if isinstance(image, str)), self.key)


def read_bands(tile: Tile) -> list[BandStack]:
    """Read the bands of every date of a tile, within its window.

    Raises:
        UnreadableTile: An image is damaged, or the window does not lie in it.
    """
    return [_read_image(image, tile) for image in tile.images]


def read_codes(tile: Tile) -> Tensor | None:
    """Read the class codes (H, W) int64 of a tile within its window, `IGNORE` where there are none.

    Raises:
        UnreadableTile: The mask is damaged, or the window does not lie in it.
    """
    if tile.mask is None:
        return None
    if isinstance(tile.mask, np.ndarray):
        codes = tile.mask.astype(np.int64).reshape(tile.mask.shape[-2:])
        return torch.from_numpy(np.ascontiguousarray(_cut(codes, tile)))
    with _opened(tile.mask, tile, "mask") as source:
        window = _rio_window(source, tile)
        codes = source.read(1, window=window).astype(np.int64)
        codes[source.read_masks(1, window=window) == 0] = IGNORE
    return torch.from_numpy(codes)


def probe_tile(tile: Tile, thorough: bool = False) -> None:
    """Read the headers of a tile's files and one block each, or all blocks.

    The last block is read: a file that was cut short lacks its end.

    Raises:
        UnreadableTile: A file is damaged, or sizes of image, mask and window disagree.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for what, content in [*(("image", image) for image in tile.images), ("mask", tile.mask)]:
        if content is None:
            continue
        if isinstance(content, np.ndarray):
            sizes[what] = content.shape[-2:]
            _cut(content, tile)
            continue
        with _opened(content, tile, what) as source:
            _rio_window(source, tile)
            sizes[what] = source.shape
            if thorough:
                source.read()
            else:
                height, width = source.block_shapes[-1]
                row, column = (source.height - 1) // height * height, (source.width - 1) // width * width
                window = Window(column, row, min(width, source.width - column), min(height, source.height - row))
                source.read(source.count, window=window)
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{what} {height} x {width}" for what, (height, width) in sizes.items())
        raise UnreadableTile(f"The sizes in tile '{tile.name}' disagree ({told}); cut image and mask alike.")


def _read_image(image: Source, tile: Tile) -> BandStack:
    if isinstance(image, np.ndarray):
        stack = from_array(image, len(tile.bands or ()), "channels_first")
        values, valid = (_cut(part, tile) for part in (stack.values, stack.valid))
        return replace(stack, values=values, valid=valid, source=f"'{tile.name}'")
    with _opened(image, tile, "image") as source:
        window = _rio_window(source, tile)
        values = torch.from_numpy(source.read(window=window).astype(np.float32))
        valid = torch.from_numpy(source.read_masks(window=window) > 0)
        scales = [(float(s), float(o)) for s, o in zip(source.scales, source.offsets, strict=True)]
        colours = [colour.name for colour in source.colorinterp]
        return BandStack(
            values,
            valid,
            names=[name or "" for name in source.descriptions],
            scales=scales if any(pair != (1.0, 0.0) for pair in scales) else None,
            gsd=_window_gsd(source, window),
            source=f"'{tile.name}'",
            alpha=colours.index("alpha") if "alpha" in colours else None,
        )


def _window_gsd(source: Any, window: Window) -> float | None:
    """Metres per pixel at the window: of a raster in degrees they shrink towards the poles."""
    rows, columns = (window.row_off, window.row_off + window.height), window.col_off + window.width / 2
    top, bottom = (source.transform.d * columns + source.transform.e * row + source.transform.f for row in rows)
    placed = SimpleNamespace(bottom=bottom, top=top)
    return _ground_sample_distance(SimpleNamespace(transform=source.transform, crs=source.crs, bounds=placed))


@contextmanager
def _opened(content: str | bytes, tile: Tile, what: str) -> Iterator[Any]:
    """Open a raster; whatever fails while it is open is said of the tile."""
    path = content if isinstance(content, str) else tile.name
    try:
        if isinstance(content, str):
            with rasterio.open(content) as source:
                yield source
        else:
            with MemoryFile(content) as memory, memory.open() as source:
                yield source
    except (RasterioError, OSError) as error:
        raise UnreadableTile(f"The {what} of tile '{path}' cannot be read ({error}); replace it.") from error


def _rio_window(source: Any, tile: Tile) -> Window:
    if tile.window is None:
        return Window(0, 0, source.width, source.height)
    row, column, height, width = tile.window
    _require_inside(tile, source.height, source.width)
    return Window(column, row, width, height)


def _cut(array: Any, tile: Tile) -> Any:
    """The window of an array (..., H, W)."""
    if tile.window is None:
        return array
    row, column, height, width = tile.window
    _require_inside(tile, *array.shape[-2:])
    return array[..., row : row + height, column : column + width]


def _require_inside(tile: Tile, height: int, width: int) -> None:
    assert tile.window is not None
    row, column, high, wide = tile.window
    if row + high > height or column + wide > width:
        raise UnreadableTile(
            f"The window (row {row}, column {column}, {high} x {wide}) reaches outside '{tile.name}', which has "
            f"{height} x {width} pixels; move it inside."
        )


def _window(window: Any, key: str) -> tuple[int, int, int, int] | None:
    if not window:
        return None
    numbers = [int(number) for number in window]
    if len(numbers) != 4 or min(numbers[:2]) < 0 or min(numbers[2:]) < 1:
        raise AgriClipError(
            f"The window of tile '{key}' is {numbers}; give row, column, height and width in pixels, from 0 on."
        )
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _sources(value: Any, of_mask: bool = False) -> Iterator[Source]:
    """One source a date, from whatever a cell of a table holds."""
    if value is None:
        return
    if isinstance(value, str | os.PathLike):
        yield os.fspath(value)  # type: ignore[misc]
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, Mapping):
        if value.get("bytes") or value.get("path"):
            yield value.get("bytes") or value["path"]
    elif isinstance(value, Sequence) and value and isinstance(value[0], str | bytes | Mapping):
        for item in value:
            yield from _sources(item)
    else:
        array = np.asarray(value)
        yield from array if array.ndim == 4 and not of_mask else [array]


def _key_of(images: Sequence[Source]) -> str:
    """A key for a row that has none: the path's, or a digest of the content."""
    if not images:
        return ""
    first = images[0]
    if isinstance(first, str):
        return os.path.splitext(os.path.basename(first))[0]
    content = first if isinstance(first, bytes) else np.ascontiguousarray(first).tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()
