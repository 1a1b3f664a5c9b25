"""Rasters in, aligned arrays out: CRS, nodata, masks, scale and offset honoured.

Three choices define this file. Absence is NaN: every reader returns physical values as float32 with NaN where the
raster has nodata, a mask, or no cell at all, next to a boolean array that says the same. A raster that already lies on
the grid is copied, bit for bit; only others are warped, and then from NaN-filled windows, one band at a time, so that
the nodata of one band or cell never bleeds into its neighbours. Windows are read tile by tile: memory is set by the
window asked for and not by the raster, and thousands of points cost a few reads.

Whatever GDAL opens is read: GeoTIFF, COG, VRT, and NetCDF or Zarr, of which a variable is named as `climate.nc:tas`.
Rows that run from south to north are turned; columns of degrees go round the Earth, so that longitudes from 0 to 360
and the antimeridian need no care.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import AgriClipError, nearest
from .grids import ALIGNED
from .grids import Grid as Grid
from .grids import transform_points as transform_points
from .raster_files import Bands, describe_raster
from .raster_files import RasterInfo as RasterInfo
from .raster_files import file_of as file_of
from .raster_files import no_crs as no_crs
from .raster_files import open_raster as open_raster
from .raster_files import raster_exists as raster_exists
from .raster_files import read_band_info as read_band_info
from .raster_files import split_variable as split_variable

try:
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.enums import Resampling
    from rasterio.io import MemoryFile
    from rasterio.vrt import WarpedVRT
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Reading rasters needs rasterio; install it with: pip install 'agriclip[maps]'.") from error

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

TILE = 1024  # edge, in pixels, of the tiles by which scattered points are grouped into reads
MOST_PIXELS = 16_000_000  # source pixels of one band held at once while warping
EXACT = (
    1e-9  # pixels of error in warped coordinates; GDAL's usual 0.125 makes cells depend on their neighbours' window
)


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
        info = describe_raster(source, path)
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
        info = describe_raster(source, path)
        if size > 1 and info.rotated:
            raise AgriClipError(
                f"'{path}' is rotated, so its chips would not look north; warp it first with: gdalwarp -t_srs "
                "EPSG:4326 in.tif out.tif."
            )
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
        info = describe_raster(source, path)
        numbers = info.band_numbers(bands)
        top, left, bottom, right = 0, 0, info.height, info.width
        if grid is not None:
            require_overlap(info, grid)
            top, left, bottom, right = _source_window(info, grid, margin=0)
        step = max(1, math.ceil(max(bottom - top, right - left) / most))
        rows = math.ceil((bottom - top) / step)
        parts = []
        for _, column, width in _turns(info, left, right):
            shape = (rows, math.ceil(width / step))
            parts.append(_physical(source, info, numbers, Window(column, top, width, bottom - top), shape))
        values = np.concatenate(parts, axis=2)
    return values, np.isfinite(values)


def has_valid(path: str | Path, band: int | str, grid: Grid | None = None) -> bool:
    """Whether a band holds any valid pixel (under the grid).

    A thinned copy is looked at first, and every block only if that is empty.
    """
    if read_overview(path, [band], grid)[1].any():
        return True
    with open_raster(path) as source:
        info = describe_raster(source, path)
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
    info = read_band_info(path)
    if info.crs is None:
        raise no_crs(path)
    t, row, column = info.transform, info.height // 2, info.width // 2
    if grid is not None:
        west, south, east, north = grid.bounds_in(info.crs)
        x, y = ~t @ ((west + east) / 2, (south + north) / 2)
        row, column = int(np.clip(math.floor(y), 0, info.height - 1)), int(np.clip(math.floor(x), 0, info.width - 1))
    x, y = t @ (column + 0.5, row + 0.5)
    # a cell of the same edges that looks north; rotation changes no area
    across, down = math.hypot(t.a, t.d), math.hypot(t.b, t.e)
    cell = Grid(info.crs, Affine(across, 0.0, x - across / 2, 0.0, -down, y + down / 2), 1, 1)
    return math.sqrt(float(cell.cell_areas_ha()[0, 0]) * 1e4)


def pixels_per_cell(path: str | Path, grid: Grid) -> float:
    """Return how many pixels of a raster lie side by side in a cell of the grid; below 1 where pixels are larger."""
    across, down = _ratios(read_band_info(path), grid)
    return math.sqrt(across * down)


def _turns(info: RasterInfo, left: int, right: int) -> list[tuple[int, int, int]]:
    """Cut a run of columns, which may go round the Earth, into runs that are stored.

    Returns:
        (place in the run, first stored column, number of columns), from west to east.
    """
    if info.period is None:
        turns = range(1)
    else:
        turns = range(math.floor((left - info.width) / info.period), math.ceil(right / info.period) + 1)
    runs, done = [], left
    for turn in turns:
        start = turn * (info.period or 0)
        # where the last column repeats the first, the first is taken
        first, last = max(done, start), min(right, start + info.width)
        if first < last:
            runs.append((first - left, first - start, last - first))
            done = last
    return runs


def _physical(
    source: Any, info: RasterInfo, numbers: list[int], window: Window, shape: tuple[int, int] | None = None
) -> FloatArray:
    """Read a window that lies inside the raster as physical float32 (C, h, w), NaN where masked."""
    out_shape = None if shape is None else (len(numbers), *shape)
    if info.turned:
        window = Window(window.col_off, info.height - window.row_off - window.height, window.width, window.height)
    stored = source.read(numbers, window=window, out_shape=out_shape)
    masks = source.read_masks(numbers, window=window, out_shape=out_shape)
    if info.turned:
        stored, masks = stored[:, ::-1], masks[:, ::-1]
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
    for place, column, count in _turns(info, left, left + width) if row0 < row1 else ():
        inside = _physical(source, info, numbers, Window(column, row0, count, row1 - row0))
        values[:, row0 - top : row1 - top, place : place + count] = inside
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
    known = np.isfinite(rows) & np.isfinite(columns)
    out = [np.floor(np.where(known, axis, nowhere)).astype(np.int64) for axis in (rows, columns)]
    if info.period is not None:  # the turn in which a point is nearest to the raster
        first = (info.width - info.period) // 2 if info.width < info.period else 0
        out[1][known] = (out[1][known] - first) % info.period + first
    return out[0], out[1]


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


def _source_window(
    info: RasterInfo, grid: Grid, margin: int, middle: float | None = None
) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the pixels that lie under a grid, clipped to the raster.

    Columns of a raster that can be followed round the Earth may be negative or pass its width. `middle` is the
    longitude about which they are counted; the grid's own count where it is None.
    """
    west, south, east, north = grid.bounds_in(info.crs or grid.crs)
    if middle is None and info.period is None and east > 180.0 and _is_geographic(info):
        middle = 0.0  # a raster that cannot be followed round the Earth may hold either side of the antimeridian
    if middle is not None:
        shift = 360.0 * math.floor(((west + east) / 2 - middle + 180.0) / 360.0)
        west, east = west - shift, east - shift
        if west < middle - 180.0 or east > middle + 180.0:  # across the far side: both ends of the turn are needed
            west, east = middle - 180.0, middle + 180.0
    inverse = ~info.transform
    corners = [inverse @ corner for corner in ((west, south), (west, north), (east, south), (east, north))]
    columns, rows = [corner[0] for corner in corners], [corner[1] for corner in corners]
    left, right = math.floor(min(columns)) - margin, math.ceil(max(columns)) + margin
    stored = _turns(info, left, right)
    if stored:
        left, right = left + stored[0][0], left + stored[-1][0] + stored[-1][2]
    else:
        right = left
    return max(0, math.floor(min(rows)) - margin), left, min(info.height, math.ceil(max(rows)) + margin), right


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
    across, down = _ratios(info, grid)
    margin = math.ceil(4 * max(across, down, 1.0)) + 2
    crs, middle = _turned_crs(info, grid)
    scales = {"XSCALE": 1.0 / across, "YSCALE": 1.0 / down}
    out = np.full((len(numbers), len(rows), grid.width), np.nan, dtype=np.float32)
    whole = (rows.start, rows.stop, 0, grid.width)
    for (row0, row1, column0, column1), (top, left, bottom, right) in _pieces(info, grid, whole, margin, middle):
        piece = _piece(grid, row0, row1, column0, column1)
        if top >= bottom or left >= right:
            continue
        extra = {}
        if info.period is not None and right - left >= info.period:
            # GDAL looks for the pixels it needs along the edges of a piece, and a pole lies inside
            extra = {"SOURCE_EXTRA": max(bottom - top, right - left)}
        placed = Affine.translation(-(middle or 0.0), 0.0) @ info.transform @ Affine.translation(left, top)
        for index, number in enumerate(numbers):
            window = _read_window(source, info, [number], top, left, bottom - top, right - left)[0]
            warped = _warp_window(window, placed, crs, piece, resampling, scales | extra)
            out[index, row0 - rows.start : row1 - rows.start, column0:column1] = warped
    return out


def _ratios(info: RasterInfo, grid: Grid) -> tuple[float, float]:
    """Return how many pixels a cell of the grid reaches across columns and down rows; the median over the grid."""
    if info.crs is None:
        raise no_crs(info.path)
    if CRS.from_user_input(info.crs) == CRS.from_user_input(grid.crs):
        columns, rows = np.zeros(1), np.zeros(1)
    else:
        columns, rows = (
            axis.ravel() for axis in np.meshgrid(*(np.linspace(0, n, 9) for n in (grid.width, grid.height)))
        )
    # half a cell to each side of every place
    steps = ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))
    x = np.concatenate([grid.transform.a * (columns + dx) + grid.transform.c for dx, _ in steps])
    y = np.concatenate([grid.transform.e * (rows + dy) + grid.transform.f for _, dy in steps])
    xs, ys = transform_points(x, y, grid.crs, info.crs)
    inverse, (x_east, x_west, x_south, x_north) = ~info.transform, np.split(xs, 4)
    y_east, y_west, y_south, y_north = np.split(ys, 4)
    sides = []
    for x_side, y_side in ((x_east - x_west, y_east - y_west), (x_south - x_north, y_south - y_north)):
        if info.period is not None:
            x_side = x_side - 360.0 * np.round(x_side / 360.0)
        sides.append((inverse.a * x_side + inverse.b * y_side, inverse.d * x_side + inverse.e * y_side))
    ratios = [np.hypot(sides[0][axis], sides[1][axis]) for axis in (0, 1)]
    found = [float(np.median(ratio[np.isfinite(ratio)])) if np.isfinite(ratio).any() else 1.0 for ratio in ratios]
    return found[0] or 1.0, found[1] or 1.0


def _is_geographic(info: RasterInfo) -> bool:
    return info.crs is not None and bool(CRS.from_user_input(info.crs).is_geographic)


def _turned_crs(info: RasterInfo, grid: Grid) -> tuple[str | None, float | None]:
    """Return the CRS in which a raster in degrees is warped, and the longitude that is 0 there.

    PROJ gives longitudes from -180 to 180, so that a grid across the antimeridian would be torn apart. Counted from a
    meridian in the middle of the grid they run on. None for rasters and grids that need no such care.
    """
    assert info.crs is not None
    if not _is_geographic(info) or CRS.from_user_input(info.crs) == CRS.from_user_input(grid.crs):
        return info.crs, None
    west, _, east, _ = grid.bounds_in(info.crs)
    if info.period is None or (west >= -180.0 and east <= 180.0):
        return info.crs, 0.0
    middle = round((west + east) / 2, 3)
    return f"{CRS.from_user_input(info.crs).to_proj4()} +pm={middle}", middle


def _warp_window(
    window: FloatArray,
    transform: Affine,
    crs: str | None,
    piece: Grid,
    resampling: Resampling,
    options: dict[str, float],
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
                **options,
            ) as warped,
        ):
            return np.asarray(warped.read(1), dtype=np.float32)


def _piece(grid: Grid, row0: int, row1: int, column0: int, column1: int) -> Grid:
    return Grid(grid.crs, grid.transform @ Affine.translation(column0, row0), column1 - column0, row1 - row0)


def _pieces(
    info: RasterInfo, grid: Grid, cells: tuple[int, int, int, int], margin: int, middle: float | None
) -> Iterator[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]:
    """Halve a block of cells until the pixels under each piece fit in memory; yield cells and pixels of each."""
    row0, row1, column0, column1 = cells
    top, left, bottom, right = window = _source_window(info, _piece(grid, *cells), margin, middle)
    height, width = row1 - row0, column1 - column0
    if (bottom - top) * (right - left) <= MOST_PIXELS or height * width == 1:
        yield cells, window
        return
    if height >= width:
        half = (row0 + row1) // 2
        halves = (row0, half, column0, column1), (half, row1, column0, column1)
    else:
        half = (column0 + column1) // 2
        halves = (row0, row1, column0, half), (row0, row1, half, column1)
    for part in halves:
        yield from _pieces(info, grid, part, margin, middle)
