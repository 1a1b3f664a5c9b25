"""Georeferenced outputs: cloud-optimised GeoTIFFs written by row bands, and the QGIS style that belongs to each.

Three choices define this file. A raster is written band of rows by band of rows into a plain GeoTIFF in the target's
own folder, turned into a cloud-optimised one by GDAL's COG driver and only then given its name, so a reader never
meets half a map. A row that nobody wrote is an error, never silent nodata. One quantity goes in one file, with its
unit, its scenario and the model that made it in the tags, because that is how a person in QGIS opens it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from xml.sax.saxutils import quoteattr

import numpy as np

from processing.errors import AgriClipError
from processing.whole_files import write_whole

try:
    import rasterio
    import rasterio.shutil
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Writing maps needs rasterio: pip install 'agriclip[maps]'.") from error

if TYPE_CHECKING:
    from processing.rasters import Grid

__all__ = [
    "RowBandWriter",
    "class_raster_options",
    "file_sha256",
    "iterate_rows",
    "read_map",
    "write_cog",
    "write_qgis_style",
]

_BLOCK = 512


class RowBandWriter:
    """Writes one raster by bands of rows and leaves a cloud-optimised GeoTIFF, or nothing.

    Use it as a context manager. Inside, call :meth:`write` with the first row and the values. When the block ends
    without an error and every row has been written, the file is converted and renamed; otherwise nothing remains.

    Args:
        path: Where the finished file goes, for example ``out/present_probability.tif``.
        grid: CRS, affine transform, width and height of the raster.
        count: Number of bands.
        dtype: NumPy type of the file, for example ``float32`` or ``uint8``.
        nodata: Value that means "no data". Default: NaN for floating-point files, 0 for integers.
        tags: Metadata of the whole file. Values that are not strings are stored as JSON.
        band_names: One description per band.
        units: One unit per band (``"1"`` for a probability).
        colours: For ``uint8`` class rasters: class value -> (red, green, blue) or (red, green, blue, alpha), 0-255.
        overview_resampling: How overviews are made. Default: ``average`` for floats, ``nearest`` for integers.

    Raises:
        AgriClipError: On exit, if a row was never written; on entry, if the options contradict each other.
    """

    def __init__(
        self,
        path: str | Path,
        grid: Grid,
        *,
        count: int = 1,
        dtype: str = "float32",
        nodata: float | None = None,
        tags: Mapping[str, Any] | None = None,
        band_names: Sequence[str] | None = None,
        units: Sequence[str] | None = None,
        colours: Mapping[int, Sequence[int]] | None = None,
        overview_resampling: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.grid = grid
        self.count = count
        self.dtype = np.dtype(dtype)
        self.nodata = _default_nodata(self.dtype) if nodata is None else nodata
        self.tags = dict(tags or {})
        self.band_names = list(band_names or [])
        self.units = list(units or [])
        self.colours = colours
        floating = np.issubdtype(self.dtype, np.floating)
        self.overview_resampling = overview_resampling or ("average" if floating else "nearest")
        if colours is not None and (self.dtype != np.uint8 or count != 1):
            raise AgriClipError(f"{self.path.name} has a colour table, so it must be one uint8 band; make it one.")
        for given, what in ((self.band_names, "band names"), (self.units, "units")):
            if given and len(given) != count:
                raise AgriClipError(f"{self.path.name} has {count} bands but {len(given)} {what}; give one per band.")
        if not floating and not _fits(self.nodata, self.dtype):
            raise AgriClipError(f"Nodata {self.nodata} does not fit {self.dtype} of {self.path.name}; choose another.")
        # A leading dot and the process number: hidden, and safe when two processes write the same map.
        self._raw = self.path.with_name(f".{self.path.stem}.{os.getpid()}.rows.partial")
        self._cog = self.path.with_name(f".{self.path.stem}.{os.getpid()}.cog.partial")
        self._written = np.zeros(grid.height, dtype=bool)
        self._dataset: Any = None

    def __enter__(self) -> Self:
        """Opens the temporary file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._dataset = rasterio.open(
            self._raw,
            "w",
            driver="GTiff",
            width=self.grid.width,
            height=self.grid.height,
            count=self.count,
            dtype=self.dtype.name,
            crs=self.grid.crs,
            transform=self.grid.transform,
            nodata=self.nodata,
            # Uncompressed strips: bands of any height can be written in any order without rewriting a block.
            tiled=False,
            BIGTIFF="IF_SAFER",
            sparse_ok=True,
        )
        try:
            self._describe(self._dataset)
        except BaseException:
            self._dataset.close()
            self._raw.unlink(missing_ok=True)
            raise
        return self

    def _describe(self, dataset: Any) -> None:
        """Tags, names, units and colours. First of all: a colour table cannot be set after the first row."""
        if self.colours is not None:
            dataset.write_colormap(1, {int(value): _rgba(colour) for value, colour in self.colours.items()})
        dataset.update_tags(**{key: _as_text(value) for key, value in self.tags.items()})
        for band, name in enumerate(self.band_names, start=1):
            dataset.set_band_description(band, name)
        for band, unit in enumerate(self.units, start=1):
            dataset.set_band_unit(band, unit)

    def write(self, first_row: int, values: np.ndarray) -> None:
        """Writes rows ``first_row`` and following.

        Args:
            first_row: Index of the first row, counted from the top.
            values: (h, width) or (count, h, width). NaN becomes nodata.

        Raises:
            AgriClipError: If the shape does not fit or a row has been written before.
        """
        if self._dataset is None:
            raise AgriClipError(f"{self.path.name} is not open; write inside the `with` block.")
        block = np.asarray(values)
        if block.ndim == 2:
            block = block[None]
        height = block.shape[1] if block.ndim == 3 else -1
        expected = (self.count, height, self.grid.width)
        if block.shape != expected or first_row < 0 or first_row + height > self.grid.height:
            raise AgriClipError(
                f"Rows from {first_row} of shape {np.shape(values)} do not fit {self.path.name}, which has "
                f"{self.count} bands of {self.grid.height} x {self.grid.width}; check the row bands."
            )
        rows = slice(first_row, first_row + height)
        if self._written[rows].any():
            raise AgriClipError(f"Rows {first_row}-{rows.stop - 1} of {self.path.name} were written twice.")
        if np.issubdtype(block.dtype, np.floating) and not _is_nan(self.nodata):
            block = np.where(np.isnan(block), self.nodata, block)
        self._dataset.write(block.astype(self.dtype), window=Window(0, first_row, self.grid.width, height))
        self._written[rows] = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Converts and renames, or removes what was written if something went wrong."""
        try:
            if kind is None:
                self._finish()
        finally:
            if self._dataset is not None and not self._dataset.closed:
                self._dataset.close()
            self._dataset = None
            for left in (self._raw, self._cog):
                for name in (left, Path(f"{left}.aux.xml")):
                    name.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self._written.all():
            missing = np.flatnonzero(~self._written)
            raise AgriClipError(
                f"{self.path.name}: {missing.size} of {self.grid.height} rows were never written (the first is row "
                f"{missing[0]}); nothing was saved."
            )
        self._dataset.close()
        rasterio.shutil.copy(
            self._raw,
            self._cog,
            driver="COG",
            COMPRESS="DEFLATE",
            PREDICTOR="YES",
            BLOCKSIZE=_BLOCK,
            OVERVIEW_RESAMPLING=self.overview_resampling.upper(),
            BIGTIFF="IF_SAFER",
        )
        os.replace(self._cog, self.path)


def write_cog(
    path: str | Path,
    values: np.ndarray | Iterable[tuple[int, np.ndarray]],
    grid: Grid,
    *,
    dtype: str = "float32",
    nodata: float | None = None,
    tags: Mapping[str, Any] | None = None,
    band_names: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    colours: Mapping[int, Sequence[int]] | None = None,
    count: int | None = None,
) -> Path:
    """Writes a cloud-optimised GeoTIFF from an array or from bands of rows.

    Args:
        path: Where the finished file goes.
        values: (height, width), (bands, height, width), or an iterable of (first row, rows) pairs.
        grid: CRS, transform and size.
        dtype: NumPy type of the file.
        nodata: Default: NaN for floats, 0 for integers.
        tags: Metadata of the whole file.
        band_names: One description per band.
        units: One unit per band.
        colours: Colour table of a ``uint8`` class raster.
        count: Number of bands; needed only for an iterable of more than one band.

    Returns:
        The path written.

    Raises:
        AgriClipError: If shapes do not fit the grid or rows are missing; nothing is left behind then.
    """
    bands: Iterable[tuple[int, np.ndarray]]
    if isinstance(values, np.ndarray):
        array = values[None] if values.ndim == 2 else values
        count, bands = array.shape[0], [(0, array)]
    else:
        count, bands = count or 1, values
    with RowBandWriter(
        path,
        grid,
        count=count,
        dtype=dtype,
        nodata=nodata,
        tags=tags,
        band_names=band_names,
        units=units,
        colours=colours,
    ) as writer:
        for first_row, rows in bands:
            writer.write(first_row, rows)
    return Path(path)


def read_map(path: str | Path, rows: slice | None = None, max_size: int | None = None) -> np.ndarray:
    """Reads the first band of a map as float32 with NaN where there is no data.

    Args:
        path: A raster.
        rows: Only these rows.
        max_size: Read at most this many pixels along the longer side (from the overviews), for pictures.

    Returns:
        (height, width) float32.
    """
    with rasterio.open(path) as dataset:
        window, shape = None, None
        if rows is not None:
            first, last, _ = rows.indices(dataset.height)
            window = Window(0, first, dataset.width, last - first)
        elif max_size is not None and max(dataset.shape) > max_size:
            factor = max_size / max(dataset.shape)
            shape = (max(1, round(dataset.height * factor)), max(1, round(dataset.width * factor)))
        band = dataset.read(1, window=window, out_shape=shape, masked=True)
    values = band.filled(0).astype(np.float32)
    values[np.ma.getmaskarray(band)] = np.nan
    return values


def iterate_rows(height: int, rows_per_band: int) -> Iterator[slice]:
    """Slices that cover ``height`` rows, top to bottom, at most ``rows_per_band`` each."""
    for first in range(0, height, max(1, rows_per_band)):
        yield slice(first, min(first + max(1, rows_per_band), height))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def class_raster_options(classes: Mapping[int, tuple[str, str]]) -> dict[str, Any]:
    """Options of :func:`write_cog` for a class raster.

    Args:
        classes: Class value -> (title, colour as ``#rrggbb``). 0 is nodata and must not be among them.

    Returns:
        Keyword arguments: dtype, nodata, colours (0 transparent), and the legend as a tag.
    """
    if 0 in classes:
        raise AgriClipError("Class 0 means no data in a class raster; number the classes from 1.")
    colours: dict[int, Sequence[int]] = {0: (0, 0, 0, 0)}
    for value, (_, colour) in classes.items():
        colours[value] = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    legend = {str(value): title for value, (title, _) in classes.items()}
    return {"dtype": "uint8", "nodata": 0, "colours": colours, "tags": {"classes": legend}}


def write_qgis_style(
    raster: str | Path,
    *,
    classes: Mapping[int, tuple[str, str]] | None = None,
    stops: Sequence[tuple[float, str]] | None = None,
    unit: str = "",
) -> Path:
    """Writes ``name.qml`` beside ``name.tif``: QGIS loads a style of the same stem by itself.

    Args:
        raster: The map.
        classes: Class value -> (title, ``#rrggbb``) for a class raster.
        stops: (value, ``#rrggbb``) pairs, ascending, for a continuous raster; colours between are interpolated.
        unit: Added to the labels of ``stops``.

    Returns:
        Path of the style file.
    """
    if (classes is None) == (stops is None):
        raise AgriClipError("A style needs either classes or stops; give one of the two.")
    if classes is not None:
        entries = "".join(
            f'<paletteEntry value="{value}" color="{colour}" alpha="255" label={quoteattr(title)}/>'
            for value, (title, colour) in classes.items()
        )
        body = f'<rasterrenderer type="paletted" band="1" opacity="1"><colorPalette>{entries}</colorPalette>'
    else:
        assert stops is not None
        low, high = stops[0][0], stops[-1][0]
        entries = "".join(
            f'<item value="{value:g}" color="{colour}" alpha="255" label={quoteattr(f"{value:g} {unit}".strip())}/>'
            for value, colour in stops
        )
        body = (
            f'<rasterrenderer type="singlebandpseudocolor" band="1" opacity="1" '
            f'classificationMin="{low:g}" classificationMax="{high:g}"><rastershader>'
            f'<colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" '
            f'minimumValue="{low:g}" maximumValue="{high:g}">{entries}</colorrampshader></rastershader>'
        )
    text = (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        f'<qgis version="3.28" styleCategories="Symbology"><pipe>{body}</rasterrenderer></pipe></qgis>\n'
    )
    return write_whole(Path(raster).with_suffix(".qml"), text)


def _default_nodata(dtype: np.dtype) -> float:
    return math.nan if np.issubdtype(dtype, np.floating) else 0


def _is_nan(value: float) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _fits(value: float, dtype: np.dtype) -> bool:
    limits = np.iinfo(dtype)
    return not _is_nan(value) and float(value).is_integer() and limits.min <= value <= limits.max


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _rgba(colour: Sequence[int]) -> tuple[int, int, int, int]:
    red, green, blue, *alpha = (int(part) for part in colour)
    return red, green, blue, alpha[0] if alpha else 255
