"""Rasters in, aligned arrays out: CRS, nodata, masks, scale and offset honoured.

Three choices define this file. Absence is NaN: every reader returns physical values as float32 with NaN where the
raster has nodata, a mask, or no cell at all, next to a boolean array that says the same. A raster that already lies on
the grid is copied, bit for bit; only others are warped, and then from NaN-filled windows, one band at a time, so that
the nodata of one band or cell never bleeds into its neighbours. Windows are read tile by tile: memory is set by the
window asked for and not by the raster, and thousands of points cost a few reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import AgriClipError, nearest
from .grids import ALIGNED
from .grids import Grid as Grid
from .grids import transform_points as transform_points

try:
    import rasterio
    import rasterio.warp
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.enums import Resampling
    from rasterio.errors import CRSError, RasterioIOError
    from rasterio.io import MemoryFile
    from rasterio.vrt import WarpedVRT
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Reading rasters needs rasterio; install it with: pip install 'agriclip[maps]'.") from error

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Bands = int | str | Sequence[int | str] | None

TILE = 1024  # edge, in pixels, of the tiles by which scattered points are grouped into reads
MOST_PIXELS = 16_000_000  # source pixels of one band held at once while warping
EXACT = (
    1e-9  # pixels of error in warped coordinates; GDAL's usual 0.125 makes cells depend on their neighbours' window
)


@dataclass(frozen=True)
class RasterInfo:
    """What a raster file says of itself, without its pixels; tuples have one entry per band."""

    path: Path
    crs: str | None
    transform: Affine
    width: int
    height: int
    count: int
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str | None, ...]
    units: tuple[str | None, ...]

    def band_number(self, band: int | str) -> int:
        """Return the 1-based number of a band given by number or description.

        Raises:
            AgriClipError: When the raster has no such band, or two that answer to the description.
        """
        if isinstance(band, int):
            if 1 <= band <= self.count:
                return band
            raise AgriClipError(f"'{self.path}' has no band {band}: it has {self.count} band{'s' * (self.count > 1)}.")
        names = [name for name in self.descriptions if name]
        hits = [n for n, name in enumerate(self.descriptions, 1) if name and name.lower() == band.lower()]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise AgriClipError(f"'{self.path}' has {len(hits)} bands called '{band}'; give its number instead.")
        advice = nearest(band, names) if names else f"its {self.count} bands have no names, give a band's number"
        raise AgriClipError(f"'{self.path}' has no band '{band}'; {advice}.")

    def band_numbers(self, bands: Bands) -> list[int]:
        """Return the 1-based numbers of several bands; None means all of them."""
        if bands is None:
            return list(range(1, self.count + 1))
        return [self.band_number(band) for band in ([bands] if isinstance(bands, int | str) else bands)]


def no_crs(path: str | Path) -> AgriClipError:
    """Return the error for a raster without a coordinate reference system."""
    return AgriClipError(f"'{path}' has no CRS, so it cannot be placed; set one with: rio edit-info --crs EPSG:4326.")


def open_raster(path: str | Path) -> Any:
    """Open a raster for reading, with one sentence when it is missing or is none."""
    # remote files and archives (/vsicurl/, s3://, zip://) are GDAL's to find
    if "://" not in str(path) and not str(path).startswith("/vsi") and not Path(path).is_file():
        folder = Path(path).parent
        near = nearest(Path(path).name, (p.name for p in folder.iterdir())) if folder.is_dir() else ""
        advice = near if near.startswith("did") else "check the path and the study's data folder"
        raise AgriClipError(f"The raster '{path}' does not exist; {advice}.")
    try:
        return rasterio.open(path)
    except RasterioIOError as error:
        raise AgriClipError(f"'{path}' cannot be read as a raster ({error}); is it whole, and a GeoTIFF?") from error


def read_band_info(path: str | Path) -> RasterInfo:
    """Read the header of a raster: placement, bands, nodata, scale, offset, units."""
    with open_raster(path) as source:
        return _info(source, path)


def read_to_grid(
    path: str | Path, bands: Bands, grid: Grid, rows: slice | None = None, resampling: str = "bilinear"
) -> tuple[FloatArray, BoolArray]:
    """Read bands of a raster onto a band of rows of a grid.

    A raster that lies on the grid already (same CRS and cell size, shifted by whole cells) is copied bit for bit.

    Args:
        path: Raster file.
        bands: Band numbers (from 1) or descriptions; None for all.
        grid: The grid to read onto.
        rows: Rows of the grid to fill; all by default. The result does not depend on how rows are cut.
        resampling: `nearest`, `bilinear`, `cubic`, `average`, `mode`, ... of GDAL.

    Returns:
        Physical values (C, h, w), stored value x scale + offset, NaN where there is none; and validity (C, h, w).

    Raises:
        AgriClipError: For a missing or unreadable file, an unknown band, no CRS, or no overlap with the grid.
    """
    part, method = grid.part(rows), _resampling(resampling)
    with open_raster(path) as source:
        info = _info(source, path)
        numbers = info.band_numbers(bands)
        require_overlap(info, grid)
        shift = _whole_shift(info, part)
        if shift is not None:
            values = _read_window(source, info, numbers, shift[0], shift[1], part.height, part.width)
        else:
            values = _warp(source, info, numbers, grid, grid.rows_of(rows), method)
    return values, np.isfinite(values)


def sample_points(
    path: str | Path, bands: Bands, x: ArrayLike, y: ArrayLike, crs: str
) -> tuple[FloatArray, BoolArray]:
    """Read the cell that holds each point.

    Args:
        path: Raster file.
        bands: Band numbers (from 1) or descriptions; None for all.
        x: (N,) eastings or longitudes in `crs`.
        y: (N,) northings or latitudes in `crs`.
        crs: CRS of the points; need not be the raster's.

    Returns:
        Physical values (N, C), NaN where there is none or the point lies outside; and validity (N, C).
    """
    values, valid = read_chips(path, bands, x, y, crs, 1)
    return values[:, :, 0, 0], valid[:, :, 0, 0]


def read_chips(
    path: str | Path, bands: Bands, x: ArrayLike, y: ArrayLike, crs: str, size: int
) -> tuple[FloatArray, BoolArray]:
    """Read a square window of pixels around each point, on the raster's own grid.

    Args:
        path: Raster file.
        bands: Band numbers (from 1) or descriptions; None for all.
        x: (N,) eastings or longitudes in `crs`.
        y: (N,) northings or latitudes in `crs`.
        crs: CRS of the points; need not be the raster's.
        size: Edge of the window in pixels; the pixel holding the point is at row and column `size // 2`.

    Returns:
        Physical values (N, C, size, size), NaN for nodata and outside the raster; and validity of the same shape.
    """
    if size < 1:
        raise AgriClipError(f"A chip needs a size of at least 1 pixel, not {size}.")
    with open_raster(path) as source:
        info = _info(source, path)
        numbers = info.band_numbers(bands)
        rows, columns = _pixels_of(info, x, y, crs)
        chips = np.full((len(rows), len(numbers), size, size), np.nan, dtype=np.float32)
        half = size // 2
        # a chip that cannot touch the raster stays NaN and must not stretch a window
        near = (rows >= -size) & (rows < info.height + size) & (columns >= -size) & (columns < info.width + size)
        for members in _tiles(rows, columns, near):
            top, left = int(rows[members].min()) - half, int(columns[members].min()) - half
            height = int(rows[members].max()) - half + size - top
            width = int(columns[members].max()) - half + size - left
            window = _read_window(source, info, numbers, top, left, height, width)
            views = np.lib.stride_tricks.sliding_window_view(window, (size, size), axis=(1, 2))  # (C, h', w', s, s)
            chips[members] = views[:, rows[members] - half - top, columns[members] - half - left].swapaxes(0, 1)
    return chips, np.isfinite(chips)


def read_overview(
    path: str | Path, bands: Bands, grid: Grid | None = None, most: int = 512
) -> tuple[FloatArray, BoolArray]:
    """Read a thinned copy of the part of a raster that lies under a grid, for checks and statistics.

    Args:
        path: Raster file.
        bands: Band numbers (from 1) or descriptions; None for all.
        grid: Restrict to the grid's extent; the whole raster by default.
        most: Longest edge of the copy in pixels; nearest-neighbour thinning, no mixing of values.

    Returns:
        Physical values (C, h, w) with NaN where there is none, and validity.
    """
    with open_raster(path) as source:
        info = _info(source, path)
        numbers = info.band_numbers(bands)
        top, left, bottom, right = 0, 0, info.height, info.width
        if grid is not None:
            require_overlap(info, grid)
            top, left, bottom, right = _source_window(info, grid, margin=0)
            top, left = max(0, top), max(0, left)
            bottom, right = max(top + 1, min(bottom, info.height)), max(left + 1, min(right, info.width))
        step = max(1, math.ceil(max(bottom - top, right - left) / most))
        shape = (math.ceil((bottom - top) / step), math.ceil((right - left) / step))
        values = _physical(source, info, numbers, Window(left, top, right - left, bottom - top), shape)
    return values, np.isfinite(values)


def has_valid(path: str | Path, band: int | str, grid: Grid | None = None) -> bool:
    """Whether a band holds any valid pixel (under the grid).

    A thinned copy is looked at first, and every block only if that is empty.
    """
    if read_overview(path, [band], grid)[1].any():
        return True
    with open_raster(path) as source:
        info = _info(source, path)
        number = info.band_number(band)
        top, left, bottom, right = 0, 0, info.height, info.width
        if grid is not None:
            top, left, bottom, right = _source_window(info, grid, margin=0)
        for row in range(top, bottom, TILE):
            for column in range(left, right, TILE):
                height, width = min(TILE, bottom - row), min(TILE, right - column)
                if np.isfinite(_read_window(source, info, [number], row, column, height, width)).any():
                    return True
    return False


def pixel_size_m(path: str | Path, grid: Grid | None = None) -> float:
    """Return the ground sample distance: the square root of a pixel's true area, in metres, mid-way up the grid."""
    own = Grid.from_raster(path)
    row, column = own.height // 2, own.width // 2
    if grid is not None:
        west, south, east, north = _bounds_in(grid, own.crs)
        rows, columns = own.cell_of([(west + east) / 2], [(south + north) / 2])
        row, column = (int(np.clip(rows[0], 0, own.height - 1)), int(np.clip(columns[0], 0, own.width - 1)))
    cell = Grid(own.crs, own.transform @ Affine.translation(column, row), 1, 1)
    return math.sqrt(float(cell.cell_areas_ha()[0, 0]) * 1e4)


def _info(source: Any, path: str | Path) -> RasterInfo:
    return RasterInfo(
        path=Path(path),
        crs=source.crs.to_string() if source.crs else None,
        transform=source.transform,
        width=source.width,
        height=source.height,
        count=source.count,
        dtypes=tuple(source.dtypes),
        nodata=tuple(source.nodatavals),
        scales=tuple(float(scale) for scale in source.scales),
        offsets=tuple(float(offset) for offset in source.offsets),
        descriptions=tuple(source.descriptions),
        units=tuple(source.units),
    )


def _physical(
    source: Any, info: RasterInfo, numbers: list[int], window: Window, shape: tuple[int, int] | None = None
) -> FloatArray:
    """Read a window that lies inside the raster as physical float32 (C, h, w), NaN where masked."""
    out_shape = None if shape is None else (len(numbers), *shape)
    stored = source.read(numbers, window=window, out_shape=out_shape)
    masks = source.read_masks(numbers, window=window, out_shape=out_shape)
    if np.iscomplexobj(stored):
        raise AgriClipError(f"'{info.path}' holds complex numbers; write amplitude or intensity bands first.")
    values = np.empty(stored.shape, dtype=np.float32)
    for index, number in enumerate(numbers):
        scale, offset = info.scales[number - 1], info.offsets[number - 1]
        band = stored[index] if (scale, offset) == (1.0, 0.0) else stored[index].astype(np.float64) * scale + offset
        values[index] = band
    values[(masks == 0) | ~np.isfinite(values)] = np.nan
    return values


def _read_window(
    source: Any, info: RasterInfo, numbers: list[int], top: int, left: int, height: int, width: int
) -> FloatArray:
    """Read a window that may reach outside the raster; what is outside is NaN."""
    values = np.full((len(numbers), height, width), np.nan, dtype=np.float32)
    row0, row1 = max(top, 0), min(top + height, info.height)
    column0, column1 = max(left, 0), min(left + width, info.width)
    if row0 < row1 and column0 < column1:
        inside = _physical(source, info, numbers, Window(column0, row0, column1 - column0, row1 - row0))
        values[:, row0 - top : row1 - top, column0 - left : column1 - left] = inside
    return values


def _pixels_of(info: RasterInfo, x: ArrayLike, y: ArrayLike, crs: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of the pixel that holds each point; points that cannot be placed are far outside."""
    if info.crs is None:
        raise no_crs(info.path)
    xs, ys = transform_points(x, y, crs, info.crs)
    inverse = ~info.transform
    xs, ys = (np.where(np.isfinite(axis), axis, np.nan) for axis in (xs, ys))
    columns = inverse.a * xs + inverse.b * ys + inverse.c
    rows = inverse.d * xs + inverse.e * ys + inverse.f
    nowhere = -float(2**40)
    out = [np.floor(np.nan_to_num(axis, nan=nowhere, posinf=nowhere, neginf=nowhere)) for axis in (rows, columns)]
    return out[0].astype(np.int64), out[1].astype(np.int64)


def _tiles(rows: NDArray[np.int64], columns: NDArray[np.int64], keep: BoolArray) -> Iterator[NDArray[np.int64]]:
    """Yield the positions of points, grouped by the tile that they fall in."""
    kept = np.flatnonzero(keep)
    if not len(kept):
        return
    keys = np.stack([rows[kept] // TILE, columns[kept] // TILE], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = np.asarray(group).reshape(-1)
    order = np.argsort(group, kind="stable")
    yield from np.split(kept[order], np.flatnonzero(np.diff(group[order])) + 1)


def _whole_shift(info: RasterInfo, grid: Grid) -> tuple[int, int] | None:
    """Return (row, column) of the grid's first cell in a raster that lies on the same cells, else None."""
    if info.crs is None or CRS.from_user_input(info.crs) != CRS.from_user_input(grid.crs):
        return None
    a, b = info.transform, grid.transform
    # edges must agree so well that the far corner of the grid is still on the raster's cell edges
    far = ALIGNED / max(grid.width, grid.height)
    if a.b or a.d or abs(a.a - b.a) > far * abs(a.a) or abs(a.e - b.e) > far * abs(a.e):
        return None
    row, column = (b.f - a.f) / a.e, (b.c - a.c) / a.a
    if abs(row - round(row)) > ALIGNED * 10 or abs(column - round(column)) > ALIGNED * 10:
        return None
    return round(row), round(column)


def _bounds_in(grid: Grid, crs: str) -> tuple[float, float, float, float]:
    """Return the grid's bounds in another CRS."""
    if CRS.from_user_input(crs) == CRS.from_user_input(grid.crs):
        return grid.bounds
    try:
        moved = rasterio.warp.transform_bounds(grid.crs, crs, *grid.bounds, densify_pts=21)
    except CRSError as error:
        bounds = list(grid.bounds)
        raise AgriClipError(f"The grid's bounds {bounds} cannot be placed in {crs[:40]} ({error}).") from error
    return moved[0], moved[1], moved[2], moved[3]


def _source_window(info: RasterInfo, grid: Grid, margin: int) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the pixels that lie under a grid, clipped to the raster."""
    west, south, east, north = _bounds_in(grid, info.crs or grid.crs)
    inverse = ~info.transform
    corners = [inverse @ corner for corner in ((west, south), (west, north), (east, south), (east, north))]
    columns, rows = [corner[0] for corner in corners], [corner[1] for corner in corners]
    return (
        max(0, math.floor(min(rows)) - margin),
        max(0, math.floor(min(columns)) - margin),
        min(info.height, math.ceil(max(rows)) + margin),
        min(info.width, math.ceil(max(columns)) + margin),
    )


def require_overlap(info: RasterInfo, grid: Grid) -> None:
    """Refuse a raster of which no pixel lies on the grid, or that has no CRS."""
    if info.crs is None:
        raise no_crs(info.path)
    top, left, bottom, right = _source_window(info, grid, margin=0)
    if top >= bottom or left >= right:
        t = info.transform
        own = [t.c, t.f + t.e * info.height, t.c + t.a * info.width, t.f]
        raise AgriClipError(
            f"'{info.path}' (bounds {[round(b, 4) for b in own]} in {info.crs[:40]}) does not overlap the grid "
            f"(bounds {[round(b, 4) for b in grid.bounds]} in {grid.crs[:40]}); check the grid's bounds and both CRSs."
        )


def _resampling(name: str) -> Resampling:
    try:
        return Resampling[name]
    except KeyError:
        known = [item.name for item in Resampling]
        raise AgriClipError(f"'{name}' is no resampling method; {nearest(name, known)}.") from None


def _warp(
    source: Any, info: RasterInfo, numbers: list[int], grid: Grid, rows: range, resampling: Resampling
) -> FloatArray:
    """Warp bands onto rows of the grid, in pieces whose source window stays small."""
    # One ratio for the whole grid: GDAL would otherwise estimate it for each piece, and pieces would differ.
    west, south, east, north = _bounds_in(grid, info.crs or grid.crs)
    across = abs((east - west) / (info.transform.a or info.transform.b)) / grid.width
    down = abs((north - south) / (info.transform.e or info.transform.d)) / grid.height
    margin = math.ceil(4 * max(across, down, 1.0)) + 2
    out = np.full((len(numbers), len(rows), grid.width), np.nan, dtype=np.float32)
    for row0, row1, column0, column1 in _pieces(info, grid, rows.start, rows.stop, 0, grid.width, margin):
        piece = _piece(grid, row0, row1, column0, column1)
        top, left, bottom, right = _source_window(info, piece, margin)
        if top >= bottom or left >= right:
            continue
        for index, number in enumerate(numbers):
            window = _read_window(source, info, [number], top, left, bottom - top, right - left)[0]
            placed = info.transform @ Affine.translation(left, top)
            scales = {"XSCALE": 1.0 / across, "YSCALE": 1.0 / down}
            warped = _warp_window(window, placed, info.crs, piece, resampling, scales)
            out[index, row0 - rows.start : row1 - rows.start, column0:column1] = warped
    return out


def _warp_window(
    window: FloatArray,
    transform: Affine,
    crs: str | None,
    piece: Grid,
    resampling: Resampling,
    scales: dict[str, float],
) -> FloatArray:
    """Warp one band held in memory, NaN for nodata, onto a piece of the grid."""
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": window.shape[0], "width": window.shape[1]}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=crs, transform=transform, nodata=np.nan) as held:
            held.write(window, 1)
        with (
            memory.open() as held,
            WarpedVRT(
                held,
                crs=piece.crs,
                transform=piece.transform,
                width=piece.width,
                height=piece.height,
                src_nodata=np.nan,
                nodata=np.nan,
                resampling=resampling,
                tolerance=EXACT,
                **scales,
            ) as warped,
        ):
            return np.asarray(warped.read(1), dtype=np.float32)


def _piece(grid: Grid, row0: int, row1: int, column0: int, column1: int) -> Grid:
    return Grid(grid.crs, grid.transform @ Affine.translation(column0, row0), column1 - column0, row1 - row0)


def _pieces(
    info: RasterInfo, grid: Grid, row0: int, row1: int, column0: int, column1: int, margin: int
) -> Iterator[tuple[int, int, int, int]]:
    """Halve a block of cells until the pixels under each piece fit in memory."""
    top, left, bottom, right = _source_window(info, _piece(grid, row0, row1, column0, column1), margin)
    height, width = row1 - row0, column1 - column0
    if (bottom - top) * (right - left) <= MOST_PIXELS or height * width == 1:
        yield row0, row1, column0, column1
    elif height >= width:
        middle = (row0 + row1) // 2
        yield from _pieces(info, grid, row0, middle, column0, column1, margin)
        yield from _pieces(info, grid, middle, row1, column0, column1, margin)
    else:
        middle = (column0 + column1) // 2
        yield from _pieces(info, grid, row0, row1, column0, middle, margin)
        yield from _pieces(info, grid, row0, row1, middle, column1, margin)
