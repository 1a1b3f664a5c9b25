"""Zones: polygons with an identifier each, read from any vector file, and brought to the grid of a map.

Two choices define this file. Edges are cut short before another projection bends them, so a zone keeps its area; and
what is not clear, such as an edge that jumps half-way round the globe, is refused rather than guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pyproj import CRS, Geod, Transformer

from processing.errors import AgriClipError, nearest
from processing.rasters import Grid

if TYPE_CHECKING:
    import geopandas

__all__ = ["Zones", "import_geopandas", "place_zones", "read_zones"]

_SEGMENT = 0.1  # degrees: edges are cut this short before they are bent by another projection


@dataclass(frozen=True)
class Zones:
    """Polygons with an identifier each.

    Attributes:
        ids: Identifiers, each once.
        names: Words for people.
        geometries: Valid polygons and multipolygons in `crs`.
        crs: Coordinate reference system.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    geometries: tuple[Any, ...]
    crs: str

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def areas_ha(self) -> np.ndarray:
        """Geodesic area of each zone in ha on the WGS 84 ellipsoid (Karney 2013, Journal of Geodesy 87:43-55)."""
        import shapely

        geod, areas = Geod(ellps="WGS84"), []
        for geometry in self.lonlat("EPSG:4326"):
            # Between the corners of a file an edge is straight in longitude and latitude, not a geodesic.
            fine = shapely.orient_polygons(shapely.segmentize(geometry, _SEGMENT))
            areas.append(abs(geod.geometry_area_perimeter(fine)[0]) / 1e4)
        return np.asarray(areas)

    def lonlat(self, crs: str) -> list[Any]:
        """The zones in a geographic CRS; longitudes may go on beyond 180 degrees.

        Raises:
            AgriClipError: If a zone jumps across the antimeridian, holds a pole, or cannot be transformed.
        """
        source, target = CRS(self.crs), CRS(crs)
        pairs = zip(self.geometries, self.ids, strict=True)
        return [_to_lonlat(geometry, source, target, one) for geometry, one in pairs]

    def frame(self) -> geopandas.GeoDataFrame:
        """The zones as a table `zone`, `name`, geometry in EPSG:4326."""
        columns = {"zone": self.ids, "name": self.names}
        return import_geopandas().GeoDataFrame(columns, geometry=self.lonlat("EPSG:4326"), crs="EPSG:4326")


def read_zones(
    path: str | Path,
    *,
    layer: str | None = None,
    id_field: str | None = None,
    name_field: str | None = None,
    crs: str | None = None,
) -> Zones:
    """Reads zones from GeoJSON, TopoJSON, GeoPackage, Shapefile or anything else GDAL knows.

    Args:
        path: File with polygons. Polygons of one identifier are one zone; lines and points are left out.
        layer: Layer, or object of a TopoJSON file. Default: the first.
        id_field: Field of the identifier. Default: `id`, else the number of the row, from 1.
        name_field: Field of the name. Default: `name`, else the identifier.
        crs: CRS of a file that does not say; JSON files are in longitude and latitude.

    Returns:
        The zones.

    Raises:
        AgriClipError: If the file cannot be read, has no such layer or field, no CRS, or no polygon.
    """
    geopandas = import_geopandas()
    import pyogrio
    import shapely

    path = Path(path)
    if not path.is_file():
        raise AgriClipError(f"There is no file of zones '{path}'; check the path.")
    try:
        layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
        if layer is not None and layer not in layers:
            raise AgriClipError(f"{path.name} has no layer '{layer}'; {nearest(layer, layers)}")
        table = geopandas.read_file(path, layer=layer or layers[0])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, IndexError) as error:
        raise AgriClipError(
            f"{path.name} cannot be read as zones; give GeoJSON, TopoJSON, GeoPackage or Shapefile."
        ) from error
    ids = _column(table, id_field, ("id",), path) or [str(number) for number in range(1, len(table) + 1)]
    names = _column(table, name_field, ("name", "NAME", "Name"), path) or ids
    if not isinstance(table, geopandas.GeoDataFrame):
        raise AgriClipError(f"{path.name} has no polygons; give a file of zones.")
    told = crs or (table.crs.to_wkt() if table.crs is not None else None)
    if told is None and path.suffix.lower() in (".json", ".geojson", ".topojson"):
        told = "EPSG:4326"
    if told is None:
        raise AgriClipError(f"{path.name} does not say in which CRS it is; give one, for example EPSG:4326.")
    gathered: dict[str, tuple[str, list[Any]]] = {}
    for one, name, geometry in zip(ids, names, table.geometry, strict=True):
        polygons = _polygons(geometry)
        if polygons is not None:
            gathered.setdefault(one, (name, []))[1].append(polygons)
    if not gathered:
        raise AgriClipError(f"{path.name} has no polygons; give a file of zones.")
    return Zones(
        tuple(gathered),
        tuple(name for name, _ in gathered.values()),
        tuple(parts[0] if len(parts) == 1 else shapely.union_all(parts) for _, parts in gathered.values()),
        told,
    )


def place_zones(zones: Zones, grid: Grid) -> geopandas.GeoDataFrame:
    """The zones in the CRS of the grid, as pieces with the number of their zone; only what lies near the grid."""
    import shapely

    target = CRS(grid.crs)
    west, south, east, north = grid.bounds
    if not target.is_geographic and CRS(zones.crs).equals(target, ignore_axis_order=True):
        pieces = list(enumerate(zones.geometries))
    else:
        project = None
        if not target.is_geographic:
            # Far from its region a projection yields nonsense, so zones are cut to the surroundings of the grid.
            back = Transformer.from_crs(target, "EPSG:4326", always_xy=True)
            west, south, east, north = back.transform_bounds(west, south, east, north, densify_pts=101)
            east += 360.0 if east < west else 0.0
            whole = east - west > 358.0
            west, east = (-180.0, 180.0) if whole else (west - 0.5, east + 0.5)
            south, north = max(south - 0.5, -90.0), min(north + 0.5, 90.0)
            project = Transformer.from_crs("EPSG:4326", target, always_xy=True)
        box = shapely.box(west, south, east, north)
        pieces = []
        for number, geometry in enumerate(zones.lonlat(grid.crs if project is None else "EPSG:4326")):
            for turn in (-360.0, 0.0, 360.0):
                turned = shapely.transform(geometry, lambda points, turn=turn: points + (turn, 0.0))
                if not turned.intersects(box):
                    continue
                if project is not None:
                    cut = shapely.segmentize(turned.intersection(box), _SEGMENT)
                    turned = _projected(cut, project, zones.ids[number])
                if turned is not None:
                    pieces.append((number, turned))
    frame = import_geopandas().GeoDataFrame(
        {"zone": [number for number, _ in pieces]}, geometry=[g for _, g in pieces]
    )
    frame = frame.set_crs(target, allow_override=True)
    return frame[frame.intersects(shapely.box(*grid.bounds))]


def _projected(geometry: Any, project: Transformer, one: str) -> Any | None:
    """A geometry in another CRS, or None if no polygon is left of it."""
    import shapely

    moved = shapely.transform(geometry, lambda points: np.column_stack(project.transform(points[:, 0], points[:, 1])))
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise AgriClipError(
            f"The zone '{one}' cannot be put into the CRS of the maps; leave it out, or map in a CRS of its region."
        )
    return _polygons(moved)


def _to_lonlat(geometry: Any, source: CRS, target: CRS, one: str) -> Any:
    """A zone in a geographic CRS; longitudes of a zone that goes on beyond 180 degrees are kept as they are."""
    import shapely

    move = Transformer.from_crs(source, target, always_xy=True)

    def moved(points: np.ndarray) -> np.ndarray:
        x, y = move.transform(points[:, 0], points[:, 1])
        turns = np.round((points[:, 0] - x) / 360.0) if source.is_geographic else 0.0
        return np.column_stack([x + 360.0 * turns, y])

    if not source.is_geographic:
        geometry = shapely.segmentize(geometry, 10_000.0 / source.axis_info[0].unit_conversion_factor)
    if not source.equals(target, ignore_axis_order=True):
        geometry = shapely.transform(geometry, moved)
    if any(_jumps(ring) for ring in shapely.get_rings(shapely.get_parts(geometry))):
        raise AgriClipError(
            f"The zone '{one}' has an edge across more than 180 degrees of longitude or none at all, so it is not "
            "clear which way round it goes; cut it at the antimeridian and give it in longitude and latitude."
        )
    return _polygons(geometry)


def _jumps(ring: Any) -> bool:
    """Whether an edge spans more than half the globe; one from -180 to 180 is the border of a map, and meant."""
    import shapely

    x = shapely.get_coordinates(ring)[:, 0]
    far = np.abs(np.diff(x)) > 180.0
    border = np.isclose(np.abs(x), 180.0, atol=1e-6)
    return not np.isfinite(x).all() or bool((far & ~(border[1:] & border[:-1])).any())


def _polygons(geometry: Any) -> Any | None:
    """The valid polygons of a geometry, or None without any."""
    import shapely

    if geometry is None or geometry.is_empty:
        return None
    geometry = shapely.force_2d(geometry)
    if not geometry.is_valid:
        geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type in ("Polygon", "MultiPolygon")]
    parts = [part for part in shapely.get_parts(parts) if not part.is_empty]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _column(table: Any, wanted: str | None, usual: Sequence[str], path: Path) -> list[str] | None:
    """A field as text; whole numbers without a point. None if none is wanted and none of the usual is there."""
    fields = [str(name) for name in table.columns if name != "geometry"]
    if wanted is not None and wanted not in fields:
        raise AgriClipError(f"{path.name} has no field '{wanted}'; {nearest(wanted, fields)}")
    wanted = wanted or next((name for name in usual if name in fields), None)
    if wanted is None:
        return None
    values = table[wanted]
    if values.isna().any():
        raise AgriClipError(
            f"{path.name}: {int(values.isna().sum())} zones have no '{wanted}'; fill it or name another."
        )
    if pd.api.types.is_float_dtype(values) and bool((values % 1 == 0).all()):
        values = values.astype(np.int64)
    return [str(value) for value in values]


def import_geopandas() -> Any:
    """The library, or a sentence that says which extra to install."""
    try:
        import geopandas
    except ImportError as error:
        raise ImportError("Areas by zone need geopandas: pip install 'agriclip[zones]'.") from error
    return geopandas
