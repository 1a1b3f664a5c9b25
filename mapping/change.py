"""Gain, loss and stability between the present and a scenario, with true areas and the shift of the suitable land.

Three choices define this file. A cell is suitable where its probability reaches the threshold, and only cells with
data in both maps count. Areas are true areas of the cells on the ellipsoid, never counted pixels or degrees, in
hectares, square kilometres and international acres. Centroids are means of directions on the sphere weighted by area,
so a study that crosses the date line or reaches a pole still gets a sensible one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mapping.outputs import RowBandWriter, class_raster_options, iterate_rows, read_map, write_qgis_style
from processing.errors import AgriClipError
from processing.rasters import Grid, transform_points

__all__ = [
    "CHANGE_CLASSES",
    "ACRES_PER_HA",
    "ChangeSummary",
    "area_units",
    "change_classes",
    "change_map",
    "suitable_area",
    "summarise_change",
]

#: Class value -> (title, colour). The colours stay apart in the common forms of colour blindness and in grey.
CHANGE_CLASSES: dict[int, tuple[str, str]] = {
    1: ("stable suitable", "#1b7837"),
    2: ("gain", "#92c5de"),
    3: ("loss", "#b2182b"),
    4: ("stable unsuitable", "#e0e0e0"),
}

#: International acres in one hectare (1 acre = 4046.8564224 m2).
ACRES_PER_HA = 10_000.0 / 4046.8564224

_ROWS = 256


def change_classes(present: np.ndarray, future: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Class of change of each cell.

    Args:
        present: Probabilities of the present, any shape; NaN = no data.
        future: Probabilities of the scenario, same shape.
        threshold: A cell is suitable where its probability is at least this.

    Returns:
        uint8 of the same shape: 1 stable suitable, 2 gain, 3 loss, 4 stable unsuitable, 0 no data in either map.

    Raises:
        AgriClipError: If the shapes differ or the threshold is not between 0 and 1.
    """
    before, after = np.asarray(present), np.asarray(future)
    if before.shape != after.shape:
        raise AgriClipError(f"The two maps have shapes {before.shape} and {after.shape}; put them on one grid.")
    _check_threshold(threshold)
    was, becomes = before >= threshold, after >= threshold
    classes = np.select([was & becomes, ~was & becomes, was & ~becomes], [1, 2, 3], default=4).astype(np.uint8)
    classes[~(np.isfinite(before) & np.isfinite(after))] = 0
    return classes


def area_units(hectares: float) -> dict[str, float]:
    """One area in the three units that readers use.

    Args:
        hectares: Area in ha.

    Returns:
        ``{"ha": ..., "km2": ..., "acres": ...}``.
    """
    return {"ha": float(hectares), "km2": float(hectares) / 100.0, "acres": float(hectares) * ACRES_PER_HA}


@dataclass(frozen=True)
class ChangeSummary:
    """What changes between two maps.

    Attributes:
        areas_ha: Class title -> area in ha, in the order of :data:`CHANGE_CLASSES`.
        present_ha: Suitable area in the present, on cells with data in both maps.
        future_ha: Suitable area in the scenario, on the same cells.
        expected_present_ha: Sum of probability times area: needs no threshold.
        expected_future_ha: The same in the scenario.
        centroid_present: (longitude, latitude) of the suitable land in degrees, or None if there is none.
        centroid_future: The same in the scenario.
        shift_km: Geodesic distance between the two centroids, or None.
        bearing_degrees: Direction of the shift, clockwise from north, 0-360, or None.
        threshold: The threshold used.
    """

    areas_ha: Mapping[str, float]
    present_ha: float
    future_ha: float
    expected_present_ha: float
    expected_future_ha: float
    centroid_present: tuple[float, float] | None
    centroid_future: tuple[float, float] | None
    shift_km: float | None
    bearing_degrees: float | None
    threshold: float

    @property
    def net_ha(self) -> float:
        """Suitable area of the scenario minus that of the present."""
        return self.future_ha - self.present_ha

    @property
    def compass(self) -> str | None:
        """Bearing as one of eight compass points, or None without a shift."""
        if self.bearing_degrees is None or not self.shift_km:
            return None
        points = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
        return points[round(self.bearing_degrees / 45.0) % 8]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and strings, areas in the three units, for JSON and the report."""
        return {
            "threshold": self.threshold,
            "classes": {title: area_units(area) for title, area in self.areas_ha.items()},
            "suitable_present": area_units(self.present_ha),
            "suitable_future": area_units(self.future_ha),
            "net_change": area_units(self.net_ha),
            "expected_present": area_units(self.expected_present_ha),
            "expected_future": area_units(self.expected_future_ha),
            "centroid_present": self.centroid_present,
            "centroid_future": self.centroid_future,
            "shift_km": self.shift_km,
            "bearing_degrees": self.bearing_degrees,
            "compass": self.compass,
        }


@dataclass
class _Sums:
    """Running sums over row bands; two half-done sums could be added."""

    class_ha: np.ndarray = field(default_factory=lambda: np.zeros(5))
    expected: np.ndarray = field(default_factory=lambda: np.zeros(2))
    direction: np.ndarray = field(default_factory=lambda: np.zeros((2, 3)))

    def add(
        self,
        before: np.ndarray,
        after: np.ndarray,
        classes: np.ndarray,
        area: np.ndarray,
        lonlat: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Adds one band of rows; all arrays (h, w)."""
        self.class_ha += np.bincount(classes.ravel(), weights=area.ravel(), minlength=5)
        known = classes > 0
        for index, (probability, members) in enumerate(((before, (1, 3)), (after, (1, 2)))):
            self.expected[index] += float((probability[known] * area[known]).sum())
            chosen = np.isin(classes, members)
            longitude, latitude = np.radians(lonlat[0][chosen]), np.radians(lonlat[1][chosen])
            unit = np.stack(
                [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
            )
            self.direction[index] += (unit * area[chosen]).sum(axis=1)

    def summary(self, threshold: float) -> ChangeSummary:
        """The finished summary."""
        centroids = [_centroid(vector) for vector in self.direction]
        shift, bearing = None, None
        if centroids[0] is not None and centroids[1] is not None:
            shift, bearing = _geodesic(centroids[0], centroids[1])
        return ChangeSummary(
            areas_ha={title: float(self.class_ha[value]) for value, (title, _) in CHANGE_CLASSES.items()},
            present_ha=float(self.class_ha[1] + self.class_ha[3]),
            future_ha=float(self.class_ha[1] + self.class_ha[2]),
            expected_present_ha=float(self.expected[0]),
            expected_future_ha=float(self.expected[1]),
            centroid_present=centroids[0],
            centroid_future=centroids[1],
            shift_km=shift,
            bearing_degrees=bearing,
            threshold=threshold,
        )


def summarise_change(present: np.ndarray, future: np.ndarray, grid: Grid, threshold: float = 0.5) -> ChangeSummary:
    """Areas and shift between two maps held in memory.

    Args:
        present: (height, width) probabilities; NaN = no data.
        future: (height, width) probabilities of the scenario.
        grid: Grid of both.
        threshold: A cell is suitable where its probability is at least this.

    Returns:
        The summary.

    Raises:
        AgriClipError: If a shape does not fit the grid.
    """
    if np.shape(present) != (grid.height, grid.width):
        raise AgriClipError(f"The map has shape {np.shape(present)}, its grid {grid.height} x {grid.width}.")
    classes = change_classes(present, future, threshold)
    rows = slice(0, grid.height)
    sums = _Sums()
    sums.add(np.asarray(present), np.asarray(future), classes, grid.cell_areas_ha(rows), _lonlat(grid, rows))
    return sums.summary(threshold)


def change_map(
    present: str | Path,
    future: str | Path,
    output: str | Path,
    *,
    threshold: float = 0.5,
    tags: Mapping[str, Any] | None = None,
) -> ChangeSummary:
    """Writes the change classes of two probability maps as a cloud-optimised GeoTIFF and returns their summary.

    The maps are read band by band, so memory does not grow with their height.

    Args:
        present: Probability map of the present.
        future: Probability map of the scenario, on the same grid.
        output: Where the class raster goes; a QGIS style of the same stem is written beside it.
        threshold: A cell is suitable where its probability is at least this.
        tags: More metadata for the file.

    Returns:
        The summary.

    Raises:
        AgriClipError: If the grids differ.
    """
    _check_threshold(threshold)
    grid = _common_grid(present, future)
    options = class_raster_options(CHANGE_CLASSES)
    options["tags"] = {**options["tags"], "quantity": "change of suitability", "threshold": threshold, **(tags or {})}
    sums = _Sums()
    with RowBandWriter(output, grid, band_names=["change class"], **options) as writer:
        for rows in iterate_rows(grid.height, _ROWS):
            before, after = read_map(present, rows), read_map(future, rows)
            classes = change_classes(before, after, threshold)
            sums.add(before, after, classes, grid.cell_areas_ha(rows), _lonlat(grid, rows))
            writer.write(rows.start, classes)
    write_qgis_style(output, classes=CHANGE_CLASSES)
    return sums.summary(threshold)


def suitable_area(
    path: str | Path, threshold: float = 0.5, where: Callable[[slice], np.ndarray] | None = None
) -> float:
    """Area in ha where a probability map reaches the threshold.

    Args:
        path: Probability map.
        threshold: At least this probability.
        where: Optional function of a slice of rows that returns a boolean (h, width): only these cells count.

    Returns:
        Area in ha.
    """
    _check_threshold(threshold)
    grid = Grid.from_raster(path)
    total = 0.0
    for rows in iterate_rows(grid.height, _ROWS):
        chosen = read_map(path, rows) >= threshold
        if where is not None:
            chosen &= where(rows)
        total += float(grid.cell_areas_ha(rows)[chosen].sum())
    return total


def _check_threshold(threshold: float) -> None:
    if not 0.0 < threshold < 1.0:
        raise AgriClipError(f"The threshold of suitability is {threshold}; give a probability between 0 and 1.")


def _common_grid(first: str | Path, second: str | Path) -> Grid:
    grids = Grid.from_raster(first), Grid.from_raster(second)
    same = grids[0].crs == grids[1].crs and (grids[0].width, grids[0].height) == (grids[1].width, grids[1].height)
    if not same or not grids[0].transform.almost_equals(grids[1].transform, precision=1e-9):
        raise AgriClipError(
            f"{Path(first).name} and {Path(second).name} lie on different grids; map both with one study."
        )
    return grids[0]


def _lonlat(grid: Grid, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of the cell centres in degrees, each (h, width)."""
    x, y = grid.cell_centres(rows)
    longitude, latitude = transform_points(x.ravel(), y.ravel(), grid.crs, "EPSG:4326")
    return np.reshape(longitude, x.shape), np.reshape(latitude, x.shape)


def _centroid(vector: np.ndarray) -> tuple[float, float] | None:
    length = float(np.linalg.norm(vector))
    if length == 0.0:
        return None
    x, y, z = vector / length
    return float(np.degrees(np.arctan2(y, x))), float(np.degrees(np.arcsin(np.clip(z, -1.0, 1.0))))


def _geodesic(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Distance in km and bearing in degrees from ``start`` to ``end`` on the WGS 84 ellipsoid."""
    from pyproj import Geod

    azimuth, _, metres = Geod(ellps="WGS84").inv(*start, *end)
    return metres / 1000.0, azimuth % 360.0
