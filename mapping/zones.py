"""Areas by zone and by latitude: how much of each county, state or half degree is suitable, gained, lost or new.

Four choices define this file. Zones are weighed cell by cell with the exact part of each cell that they cover
(exactextract), times the true area of the cell on the ellipsoid, so the areas of neighbours add up and nothing is
counted by centres. Cells of a geographic grid are cut into strips first where they are so high that the area differs
between their upper and lower half. A group of climate models is averaged cell by cell for its areas, and its
intervals are quantiles over the climate models: each model's area is one draw. The members of the network are no part
of these intervals, because a map of their standard deviation does not say how cells go together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from pyproj import CRS

from mapping.change import CHANGE_CLASSES, area_units, change_classes
from mapping.outputs import iterate_rows, read_map
from mapping.scenario_ensemble import ScenarioGroup, common_grid
from mapping.zone_shapes import Zones as Zones
from mapping.zone_shapes import place_zones
from mapping.zone_shapes import read_zones as read_zones
from processing.errors import AgriClipError, named
from processing.rasters import Grid, transform_points
from processing.study import PRESENT
from processing.whole_files import finished

if TYPE_CHECKING:
    import geopandas

__all__ = [
    "Zones",
    "latitude_areas",
    "read_zones",
    "write_csv",
    "write_geopackage",
    "write_parquet",
    "zone_areas",
]

Maps = Mapping[str, Mapping[str, str | Path]]

_CELLS = 1 << 20  # cells, or strips of cells, weighed at a time
_STRIP_ERROR = 5e-4  # largest relative error of the area of a part of a strip
_CLASSES = tuple(title.replace(" ", "_") for title, _ in CHANGE_CLASSES.values())
_SUMMED = ("data", "suitable", "expected", "scored", "novel", *_CLASSES)
_AREAS = ("data", "suitable", "expected", *_CLASSES)


def zone_areas(
    maps: Maps,
    zones: Zones,
    *,
    threshold: float = 0.5,
    groups: Mapping[str, ScenarioGroup] | None = None,
    interval: float = 0.9,
) -> pd.DataFrame:
    """Areas of every zone in every map, and in every group of climate models.

    Args:
        maps: Map name -> layer -> path, as `mapping.predict.map_study` returns. Used are `probability` and, where it
            is, `mess`; change is told against `present`.
        zones: The zones.
        threshold: A cell is suitable where its probability is at least this.
        groups: Groups of `mapping.scenario_ensemble.scenario_groups`; each becomes one more map.
        interval: Probability of the intervals over climate models.

    Returns:
        One row for each zone that the maps reach, and map: `zone`, `name`, `map`, `ssp`, `period`, `climate_model`,
        `climate_models` (how many are averaged), `threshold`; `mean_probability` by area; `novel_share` of the area
        with a MESS below 0 (mean over the climate models of a group); `interval`, what the intervals are over; and in
        `_ha`, `_km2` and `_acres`: `zone` (the whole polygon), `covered` (the part on the grid), `data`, `suitable`,
        `expected` (sum of probability times area), the change classes, and for groups the lower end, median and upper
        end over the climate models, `suitable_low`, `suitable_median`, `suitable_high` and the same of `expected`.
        `suitable` of a group is that of its mean probability, which need not lie between the models' own areas.
        Areas add up over zones, ends of intervals do not.

    Raises:
        AgriClipError: If a map has no probability, grids differ, or no zone lies on the grid.
    """
    grid = _check(maps, groups, threshold, interval)
    placed = place_zones(zones, grid)
    if placed.empty:
        raise AgriClipError("None of the zones lies on the maps; check the zones' CRS and region.")
    sums = _sum(maps, groups or {}, threshold, grid, len(zones), _strips(grid), partial(_zone_weights, placed))
    keys = pd.DataFrame({"zone": zones.ids, "name": zones.names})
    for unit, values in _in_units(zones.areas_ha):
        keys[f"zone_{unit}"] = values
    for unit, values in _in_units(sums.covered):
        keys[f"covered_{unit}"] = values
    return _table(keys, sums, maps, groups or {}, threshold, interval)


def latitude_areas(
    maps: Maps,
    *,
    width: float = 0.5,
    threshold: float = 0.5,
    groups: Mapping[str, ScenarioGroup] | None = None,
    interval: float = 0.9,
) -> pd.DataFrame:
    """Areas by band of latitude, whatever the projection of the maps.

    Cells higher than an eighth of a band are cut into parts; each part counts in the band of its centre.

    Args:
        maps: As in :func:`zone_areas`.
        width: Height of a band in degrees, counted from the south pole; 180 gives the whole map in one row.
        threshold: A cell is suitable where its probability is at least this.
        groups: Groups of climate models.
        interval: Probability of the intervals over climate models.

    Returns:
        As :func:`zone_areas`, with `south` and `north` in degrees in place of the zone.

    Raises:
        AgriClipError: If a map has no probability, grids differ, or the width is not above 0 and up to 180 degrees.
    """
    if not 0.0 < width <= 180.0:
        raise AgriClipError(f"A band of latitude cannot be {width} degrees high; give a width above 0 and up to 180.")
    grid = _check(maps, groups, threshold, interval)
    bands = math.ceil(180.0 / width - 1e-9)
    sums = _sum(
        maps, groups or {}, threshold, grid, bands, _latitude_cuts(grid, width) ** 2, partial(_latitude_weights, width)
    )
    south = -90.0 + width * np.arange(bands)
    keys = pd.DataFrame({"south": south, "north": np.minimum(south + width, 90.0)})
    for unit, values in _in_units(sums.covered):
        keys[f"covered_{unit}"] = values
    return _table(keys, sums, maps, groups or {}, threshold, interval)


def _check(maps: Maps, groups: Mapping[str, ScenarioGroup] | None, threshold: float, interval: float) -> Grid:
    """The common grid of the maps, once everything is known to be there."""
    if not 0.0 < threshold < 1.0 or not 0.0 < interval < 1.0:
        raise AgriClipError(f"Threshold {threshold} and interval {interval} must both lie between 0 and 1.")
    for name in maps:
        if "probability" not in maps[name]:
            raise AgriClipError(f"The map '{name}' has no probability; map it with `agriclip map`.")
    for name, group in (groups or {}).items():
        missing = [scenario for scenario in group.scenarios if scenario not in maps]
        if missing or name in maps:
            raise AgriClipError(
                f"The group '{name}' needs the maps of {named(group.scenarios)} and a name of its own; "
                "give the maps that it was made from, without its own."
            )
    return common_grid([layers["probability"] for layers in maps.values()])


@dataclass
class _Weights:
    """How much of which cell belongs to which zone: zone, cell of the flattened band and hectares, each (E,)."""

    zone: np.ndarray
    cell: np.ndarray
    hectares: np.ndarray


def _zone_weights(placed: geopandas.GeoDataFrame, part: Grid) -> _Weights:
    """Exact part of each cell of a band that each zone covers, times the true area of the cell."""
    try:
        from exactextract import exact_extract
        from exactextract.raster import NumPyRasterSource
    except ImportError as error:
        raise ImportError("Areas by zone need exactextract: pip install 'agriclip[zones]'.") from error
    import shapely

    west, south, east, north = part.bounds
    here = placed.iloc[np.sort(placed.sindex.query(shapely.box(west, south, east, north)))]
    if here.empty:
        return _Weights(*(np.zeros(0, dtype=kind) for kind in (np.int64, np.int64, np.float64)))
    cuts = _strips(part)
    fine = _cut(part, 1, cuts)
    raster = NumPyRasterSource(
        np.zeros(fine.shape, dtype=np.uint8), west, south, east, north, srs_wkt=here.crs.to_wkt()
    )
    covered = exact_extract(raster, here, ["cell_id", "coverage"], include_cols=["zone"], output="pandas")
    lengths = [len(cells) for cells in covered["cell_id"]]
    zone = np.repeat(covered["zone"].to_numpy(dtype=np.int64), lengths)
    strip = np.concatenate(covered["cell_id"].to_list()).astype(np.int64)
    coverage = np.concatenate(covered["coverage"].to_list())
    row, column = np.divmod(strip, part.width)
    return _Weights(zone, row // cuts * part.width + column, coverage * _areas(fine).ravel()[strip])


def _latitude_weights(width: float, part: Grid) -> _Weights:
    """Cells of a band of rows, or parts of them, and the band of latitude that each lies in."""
    down = _latitude_cuts(part, width)
    across = 1 if part.is_geographic else down
    fine = _cut(part, across, down)
    x, y = fine.cell_centres()
    _, latitude = transform_points(x.ravel(), y.ravel(), fine.crs, "EPSG:4326")
    row, column = np.divmod(np.arange(latitude.size), fine.width)
    on_earth = np.isfinite(latitude)
    band = np.floor((latitude[on_earth] + 90.0) / width + 1e-9).astype(np.int64)
    cell = (row // down * part.width + column // across)[on_earth]
    return _Weights(np.minimum(band, math.ceil(180.0 / width - 1e-9) - 1), cell, _areas(fine).ravel()[on_earth])


def _latitude_cuts(grid: Grid, width: float) -> int:
    """Parts that the height of a cell is cut into, so that eight or more fill a band of latitude."""
    degrees = 1.0 if grid.is_geographic else CRS(grid.crs).axis_info[0].unit_conversion_factor / 111_195.0
    return min(64, max(1, math.ceil(-grid.transform.e * degrees / (width / 8.0) - 1e-9)))


def _strips(part: Grid) -> int:
    """Strips that a cell is cut into: area falls with the cosine of latitude, by tan(latitude) per radian."""
    if not part.is_geographic:
        return 1
    latitude = min(89.0, max(abs(part.bounds[1]), abs(part.bounds[3])))
    drop = math.tan(math.radians(latitude)) * math.radians(-part.transform.e) / 2.0
    return min(32, max(1, math.ceil(drop / _STRIP_ERROR)))


def _cut(part: Grid, across: int, down: int) -> Grid:
    """The grid of the parts of cells."""
    transform = part.transform @ Affine.scale(1.0 / across, 1.0 / down)
    return Grid(part.crs, transform, part.width * across, part.height * down)


def _areas(grid: Grid) -> np.ndarray:
    """True areas in ha, (h, w); a few rows at a time, since areas in a projection take 16 points a cell."""
    return np.concatenate([grid.cell_areas_ha(rows) for rows in iterate_rows(grid.height, _CELLS // 16 // grid.width)])


@dataclass
class _Sums:
    """Areas in ha: `covered` (Z,), `maps` name -> (Z, quantities), `models` group -> (G, Z, suitable and expected)."""

    covered: np.ndarray
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    models: dict[str, np.ndarray] = field(default_factory=dict)


def _sum(
    maps: Maps,
    groups: Mapping[str, ScenarioGroup],
    threshold: float,
    grid: Grid,
    zones: int,
    cuts: int,
    weigh: Callable[[Grid], _Weights],
) -> _Sums:
    """All areas of all maps, a band of rows at a time; `weigh` cuts each cell of a band into at most `cuts` parts."""
    sums = _Sums(np.zeros(zones))
    for name in (*maps, *groups):
        sums.maps[name] = np.zeros((zones, len(_SUMMED)))
    for name, group in groups.items():
        sums.models[name] = np.zeros((len(group.scenarios), zones, 2))
    for rows in iterate_rows(grid.height, _CELLS // (grid.width * cuts)):
        weights = weigh(grid.part(rows))
        if not len(weights.zone):
            continue

        def add(quantity: np.ndarray, weights: _Weights = weights) -> np.ndarray:
            return np.bincount(weights.zone, weights.hectares * quantity.ravel()[weights.cell], minlength=zones)

        sums.covered += add(np.ones((rows.stop - rows.start, grid.width)))
        layers = {name: _read(maps[name], rows) for name in maps}
        present = layers[PRESENT][0] if PRESENT in layers else None
        for name, (probability, mess) in layers.items():
            quantities = _quantities(probability, mess, None if name == PRESENT else present, threshold)
            sums.maps[name] += np.stack([add(quantity) for quantity in quantities], axis=1)
        for name, group in groups.items():
            probability = np.stack([layers[scenario][0] for scenario in group.scenarios])
            known = np.isfinite(probability).all(axis=0)
            mean = np.where(known, probability.mean(axis=0, dtype=np.float64).astype(np.float32), np.nan)
            scores = [layers[scenario][1] for scenario in group.scenarios]
            quantities = _quantities(mean, None, present, threshold)
            if all(score is not None for score in scores):
                novelty = np.stack(scores)
                scored = known & np.isfinite(novelty).all(axis=0)
                quantities[3], quantities[4] = scored, np.where(scored, (novelty < 0).mean(axis=0), 0.0)
            sums.maps[name] += np.stack([add(quantity) for quantity in quantities], axis=1)
            for number, one in enumerate(probability):
                own = np.where(known, one, 0.0)
                sums.models[name][number] += np.stack([add(known & (one >= threshold)), add(own)], axis=1)
    return sums


def _quantities(
    probability: np.ndarray, mess: np.ndarray | None, present: np.ndarray | None, threshold: float
) -> list[np.ndarray]:
    """What every hectare of a cell adds to each of `_SUMMED`, each (h, w)."""
    known = np.isfinite(probability)
    nothing = np.zeros(probability.shape)
    scored, novel = (nothing, nothing) if mess is None else (known & np.isfinite(mess), known & (mess < 0))
    classes = nothing if present is None else change_classes(present, probability, threshold)
    return [
        known,
        probability >= threshold,
        np.where(known, probability, 0.0),
        scored,
        novel,
        *(classes == value for value in CHANGE_CLASSES),
    ]


def _read(layers: Mapping[str, str | Path], rows: slice) -> tuple[np.ndarray, np.ndarray | None]:
    return read_map(layers["probability"], rows), read_map(layers["mess"], rows) if "mess" in layers else None


def _table(
    keys: pd.DataFrame,
    sums: _Sums,
    maps: Maps,
    groups: Mapping[str, ScenarioGroup],
    threshold: float,
    interval: float,
) -> pd.DataFrame:
    """The finished table: zones that the grid reaches, times maps."""
    reached = sums.covered > 0
    tables = []
    for name, areas in sums.maps.items():
        group = groups.get(name)
        summed = dict(zip(_SUMMED, areas.T, strict=True))
        novel = bool(np.any(summed["scored"]))
        changes = PRESENT in maps and name != PRESENT
        with np.errstate(invalid="ignore", divide="ignore"):
            columns: dict[str, Any] = {
                "map": name,
                **_labels(group, None if group else maps[name]["probability"]),
                "threshold": threshold,
                "mean_probability": summed["expected"] / summed["data"],
                "novel_share": summed["novel"] / summed["scored"] if novel else np.nan,
            }
        for quantity in _AREAS:
            unknown = quantity in _CLASSES and not changes
            for unit, values in _in_units(summed[quantity]):
                columns[f"{quantity}_{unit}"] = np.full(len(keys), np.nan) if unknown else values
        tail = (1.0 - interval) / 2.0
        for number, quantity in enumerate(("suitable", "expected")):
            ends = np.full((3, len(keys)), np.nan)
            if group is not None:
                ends = np.quantile(sums.models[name][..., number], [tail, 0.5, 1.0 - tail], axis=0)
            for end, hectares in zip(("low", "median", "high"), ends, strict=True):
                for unit, values in _in_units(hectares):
                    columns[f"{quantity}_{end}_{unit}"] = values
        columns["interval"] = ""
        if group is not None:
            columns["interval"] = (
                f"{100 * tail:g}-{100 * (1 - tail):g} % over {len(group.climate_models)} climate models, "
                "without the spread over the model's members"
            )
        tables.append(keys.assign(**columns)[reached])
    return pd.concat(tables, ignore_index=True)


def _labels(group: ScenarioGroup | None, path: str | Path | None) -> dict[str, Any]:
    """Pathway, period and climate model of a map: of a group, or as its file says."""
    if group is not None:
        models = ", ".join(group.climate_models)
        return {
            "ssp": group.ssp,
            "period": group.period,
            "climate_model": models,
            "climate_models": len(group.climate_models),
        }
    with rasterio.open(path) as dataset:
        tags = dataset.tags()
    told = {key: tags.get(key, "") for key in ("ssp", "period", "climate_model")}
    return {**told, "climate_models": int(bool(told["climate_model"]))}


def _in_units(hectares: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """An area in each of the three units."""
    for unit, factor in area_units(1.0).items():
        yield unit, hectares * factor


def write_csv(table: pd.DataFrame, path: str | Path) -> Path:
    """Writes a table as CSV with every digit. Read identifiers back as text: `dtype={"zone": str}`."""
    with finished(path) as temporary:
        table.to_csv(temporary, index=False)
    return Path(path)


def write_parquet(table: pd.DataFrame, path: str | Path) -> Path:
    """Writes a table as Parquet."""
    try:
        import pyarrow  # noqa: F401 - pandas' own message names no extra
    except ImportError as error:
        raise ImportError("Writing Parquet needs pyarrow: pip install 'agriclip[zones]'.") from error
    with finished(path) as temporary:
        table.to_parquet(temporary, engine="pyarrow", index=False)
    return Path(path)


def write_geopackage(table: pd.DataFrame, zones: Zones, path: str | Path) -> Path:
    """Writes a table of :func:`zone_areas` with the shapes of the zones, one layer a map, in EPSG:4326.

    Args:
        table: The table, or the maps of it that are wanted.
        zones: Its zones.
        path: GeoPackage to write.

    Returns:
        The path.

    Raises:
        AgriClipError: If the table names a zone that is not among the zones.
    """
    shapes = zones.frame()[["zone", "geometry"]]
    strange = [one for one in table["zone"].unique() if one not in set(zones.ids)]
    if strange:
        raise AgriClipError(f"The table has zones that the shapes have not ({named(strange)}); give its own zones.")
    with finished(path) as temporary:
        for name, rows in table.groupby("map", sort=False):
            layer = shapes.merge(rows, on="zone", how="inner")
            layer.to_file(temporary, layer=str(name), driver="GPKG", engine="pyogrio", promote_to_multi=True)
    return Path(path)
