"""The grid of a map: where its cells lie and how large they truly are.

Three choices: a grid is always north-up, so that bands of rows are bands of the map; longitudes of a grid in degrees
run on past 180, so that one across the antimeridian (170 to 190) is one grid; and areas are true areas on the
ellipsoid, in closed form where there is one, since an area in ha is what a ministry reads from a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import AgriClipError
from .raster_files import no_crs, read_band_info

try:
    import rasterio.warp
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.errors import CRSError
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Reading rasters needs rasterio; install it with: pip install 'agriclip[maps]'.") from error

WGS84_A = 6378137.0  # equatorial radius in metres
WGS84_F = 1.0 / 298.257223563  # flattening
ALIGNED = 1e-6  # a shift below this part of a cell is rounding in the file, not a shift


@dataclass(frozen=True)
class Grid:
    """A north-up grid of cells: the frame of every map of a study.

    Attributes:
        crs: Coordinate reference system, as `EPSG:4326` or WKT.
        transform: Affine map from (column, row) to the coordinates of a cell's upper left corner.
        width: Number of columns.
        height: Number of rows.
    """

    crs: str
    transform: Affine
    width: int
    height: int

    def __post_init__(self) -> None:
        parse_crs(self.crs, "the grid")
        if self.width < 1 or self.height < 1:
            raise AgriClipError(f"A grid needs at least one row and one column, not {self.height} x {self.width}.")
        if self.transform.b or self.transform.d or self.transform.a <= 0 or self.transform.e >= 0:
            raise AgriClipError("The grid must be north-up and not rotated; warp the raster it is taken from first.")

    @classmethod
    def from_bounds(cls, bounds: Sequence[float], resolution: float | Sequence[float], crs: str) -> Grid:
        """Lay a grid over bounds, starting at the upper left corner.

        Args:
            bounds: West, south, east, north.
            resolution: Edge of a cell in CRS units, or (x, y) edges.
            crs: Coordinate reference system.

        Returns:
            The grid; it reaches past the east and south bounds when they are not a whole number of cells away.
        """
        west, south, east, north = (float(bound) for bound in bounds)
        if not all(map(math.isfinite, (west, south, east, north))) or west >= east or south >= north:
            hint = across_antimeridian((west, south, east, north), crs)
            raise AgriClipError(
                f"The grid's bounds must be west, south, east, north with west < east and south < north, "
                f"not {[west, south, east, north]}{hint and '; ' + hint}."
            )
        edges = (resolution, resolution) if isinstance(resolution, int | float) else tuple(resolution)
        if len(edges) != 2 or not all(math.isfinite(edge) and edge > 0 for edge in edges):
            raise AgriClipError(f"The grid's resolution must be one or two positive numbers, not {resolution!r}.")
        width = max(1, math.ceil((east - west) / edges[0] - ALIGNED))
        height = max(1, math.ceil((north - south) / edges[1] - ALIGNED))
        return cls(crs, Affine(edges[0], 0.0, west, 0.0, -edges[1], north), width, height)

    @classmethod
    def from_raster(cls, path: str | Path) -> Grid:
        """Take the grid of a raster file."""
        info = read_band_info(path)
        if info.crs is None:
            raise no_crs(info.path)
        return cls(info.crs, info.transform, info.width, info.height)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north."""
        t = self.transform
        return t.c, t.f + t.e * self.height, t.c + t.a * self.width, t.f

    @property
    def is_geographic(self) -> bool:
        """Whether coordinates are degrees of longitude and latitude."""
        return bool(CRS.from_user_input(self.crs).is_geographic)

    def rows_of(self, rows: slice | None) -> range:
        """Return the rows that a slice selects, clipped to the grid; only steps of 1 are rows of a raster."""
        selected = range(*(slice(None) if rows is None else rows).indices(self.height))
        if selected.step != 1 or not len(selected):
            raise AgriClipError(f"{rows} selects no run of rows from a grid of {self.height} rows.")
        return selected

    def unwrap(self, x: ArrayLike) -> NDArray[np.float64]:
        """Count longitudes as this grid does: -175 is 185 in a grid from 170 to 190; other coordinates stay."""
        xs = np.asarray(x, dtype=np.float64)
        west, _, east, _ = self.bounds
        if not self.is_geographic or (west >= -180.0 and east <= 180.0):
            return xs.copy()
        return xs - 360.0 * np.floor((xs - (west + east) / 2.0 + 180.0) / 360.0)

    def bounds_in(self, crs: str) -> tuple[float, float, float, float]:
        """Return the bounds in another CRS; the east passes 180 where the grid lies across the antimeridian."""
        target = CRS.from_user_input(crs)
        if target == CRS.from_user_input(self.crs):
            return self.bounds
        try:
            west, south, east, north = rasterio.warp.transform_bounds(self.crs, crs, *self.bounds, densify_pts=21)
        except CRSError as error:
            raise AgriClipError(
                f"The grid's bounds {list(self.bounds)} cannot be placed in {crs[:40]} ({error})."
            ) from error
        return west, south, east + 360.0 if target.is_geographic and east < west else east, north

    def part(self, rows: slice | None) -> Grid:
        """Return the grid of a band of rows."""
        selected = self.rows_of(rows)
        return Grid(self.crs, self.transform @ Affine.translation(0, selected.start), self.width, len(selected))

    def cell_centres(self, rows: slice | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x and y of the cell centres of a band of rows, each (h, w), in CRS units."""
        selected = np.asarray(self.rows_of(rows), dtype=np.float64)
        x = self.transform.c + self.transform.a * (np.arange(self.width) + 0.5)
        y = self.transform.f + self.transform.e * (selected + 0.5)
        return np.broadcast_to(x, (len(y), len(x))).copy(), np.broadcast_to(y[:, None], (len(y), len(x))).copy()

    def cell_of(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column of the cell that holds each point; they may lie outside the grid."""
        columns = np.floor((self.unwrap(x) - self.transform.c) / self.transform.a)
        rows = np.floor((np.asarray(y, dtype=np.float64) - self.transform.f) / self.transform.e)
        return rows.astype(np.int64), columns.astype(np.int64)

    def cell_areas_ha(self, rows: slice | None = None) -> NDArray[np.float64]:
        """Return the true area of each cell of a band of rows, (h, w), in hectares.

        Geographic cells: closed form on the WGS 84 ellipsoid. Equal-area projections: width times height. Any other
        projection: corners and three points along each edge are taken to an equal-area cylinder on the ellipsoid, and
        the polygon's area there is exact to better than 1e-6 for cells below 100 km.
        """
        part = self.part(rows)
        crs = CRS.from_user_input(self.crs)
        t = part.transform
        if crs.is_geographic:
            latitudes = np.deg2rad(np.clip(t.f + t.e * np.arange(part.height + 1), -90.0, 90.0))
            strips = -np.diff(_authalic_height(latitudes)) * math.radians(t.a)
            return np.repeat(strips[:, None] / 1e4, part.width, axis=1)
        if "equal area" in crs.to_wkt(version="WKT2_2019").replace("_", " ").lower():
            metres = float(crs.linear_units_factor[1])
            return np.full(part.shape, abs(t.a * t.e) * metres**2 / 1e4)
        return _projected_areas(part, crs) / 1e4


def parse_crs(crs: str, where: str) -> CRS:
    """Read a coordinate reference system or say which one cannot be read."""
    try:
        return CRS.from_user_input(crs)
    except CRSError as error:
        raise AgriClipError(f"'{crs}' of {where} is no known CRS; write it as EPSG:4326, for example.") from error


def across_antimeridian(bounds: Sequence[float], crs: str) -> str:
    """Say how bounds in degrees that go from east longitudes to west longitudes are written; empty for others."""
    west, _, east, _ = bounds
    try:
        geographic = bool(CRS.from_user_input(crs).is_geographic)
    except CRSError:  # told where it belongs
        return ""
    if not (geographic and 180.0 >= west > east >= -180.0):
        return ""
    return f"across the antimeridian the east runs on past 180: write {east + 360.0:g} for {east:g}"


def transform_points(
    x: ArrayLike, y: ArrayLike, source_crs: str, target_crs: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Take points from one CRS to another; what cannot be transformed becomes NaN."""
    xs, ys = np.asarray(x, dtype=np.float64).reshape(-1), np.asarray(y, dtype=np.float64).reshape(-1)
    if len(xs) != len(ys):
        raise AgriClipError(f"x has {len(xs)} entries and y has {len(ys)}; give one of each per point.")
    source, target = parse_crs(source_crs, "the points"), parse_crs(target_crs, "the target")
    if source == target or not len(xs):
        return xs.copy(), ys.copy()
    out = [np.full(len(xs), np.nan), np.full(len(xs), np.nan)]
    finite = np.isfinite(xs) & np.isfinite(ys)
    if finite.any():
        for axis, moved in zip(out, rasterio.warp.transform(source, target, xs[finite], ys[finite]), strict=False):
            axis[finite] = moved
    for axis in out:
        axis[~np.isfinite(axis)] = np.nan
    return out[0], out[1]


def _authalic_height(latitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area per radian of longitude between the equator and a latitude (radians) on WGS 84, in m2.

    Snyder 1987, Map Projections: A Working Manual, equation 3-12 (q), times a^2 / 2.
    """
    e2 = WGS84_F * (2.0 - WGS84_F)
    e = math.sqrt(e2)
    sine = np.sin(latitude)
    q: NDArray[np.float64] = (1.0 - e2) * (sine / (1.0 - e2 * sine**2) + np.arctanh(e * sine) / e)
    return WGS84_A**2 / 2.0 * q


def _projected_areas(grid: Grid, crs: CRS) -> NDArray[np.float64]:
    """Return areas in m2 of the cells of a projected grid: parts of cells as polygons on an equal-area cylinder."""
    cuts = 4
    step = Affine.scale(1.0 / cuts)
    height, width = grid.height * cuts + 1, grid.width * cuts + 1
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    fine = grid.transform @ step
    x, y = fine.a * columns + fine.c, fine.e * rows + fine.f
    longitude, latitude = transform_points(x, y, crs.to_wkt(), "EPSG:4326")
    lon = np.deg2rad(longitude).reshape(height, width)
    z = _authalic_height(np.deg2rad(latitude)).reshape(height, width)

    def corner(array: NDArray[np.float64], down: int, right: int) -> NDArray[np.float64]:
        return array[down : height - 1 + down, right : width - 1 + right]

    # diagonals of each small quadrilateral; half their cross product is its area
    u = [corner(lon, 1, 1) - corner(lon, 0, 0), corner(lon, 1, 0) - corner(lon, 0, 1)]
    u = [np.mod(side + np.pi, 2 * np.pi) - np.pi for side in u]  # across the antimeridian
    v = [corner(z, 1, 1) - corner(z, 0, 0), corner(z, 1, 0) - corner(z, 0, 1)]
    small = 0.5 * np.abs(u[0] * v[1] - u[1] * v[0])
    areas: NDArray[np.float64] = small.reshape(grid.height, cuts, grid.width, cuts).sum(axis=(1, 3))
    return areas
