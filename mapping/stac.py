"""Scenes of a STAC catalogue as GeoTIFFs on a study's grid: found, read, put into reflectance, freed of clouds.

Items come from an API by its address, or from a folder or catalogue on disk. Four choices: bands are asked for by
common name (`blue`, `nir`, `swir16`), whatever an archive calls them; Sentinel-2's offset is decided from the pixels
of each scene (`sentinel2_offset`), and scenes of one date are joined only after it; clouds, cloud shadows, snow and
defects of the scene classification are missing, with a rim of 60 m; and a grid is worked through by bands of rows, so
that memory does not grow with it. Needs `pip install 'agriclip[stac]'`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mapping.outputs import RowBandWriter, iterate_rows
from mapping.stac_search import import_extra, short_reason, time_of
from mapping.stac_search import search_items as search_items
from processing.errors import AgriClipError, nearest
from processing.rasters import Grid
from processing.sentinel2_offset import (
    CLEAR_CLASSES,
    SCALE,
    OffsetDecision,
    OffsetVerdict,
    decide_offset,
    offset_in_metadata,
)

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
Sign = Callable[[str], str]

CLOUDY = (1, 3, 8, 9, 10, 11)  # scene classification: defective, shadow, clouds, cirrus, snow
NO_DATA = 0  # of the scene classification: missing too, but the edge of a scene needs no rim
RIM_M = 60.0  # by which what is cloudy is widened
MOST_VALUES = 32_000_000  # numbers of imagery held at once
COARSE = 400  # edge, in cells, of the thinned copy on which the offset is decided
GDAL_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no listing of a bucket for each file
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_RETRY_DELAY": "0.5",  # doubled at each try
    "GDAL_HTTP_RETRY_CODES": "429,500,502,503,504",
    "VSI_CACHE": "TRUE",
}
# What Sentinel-2's bands are called in archives that give no common names.
_SENTINEL2 = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge": "B05", "rededge1": "B05",
    "rededge2": "B06", "rededge3": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09", "cirrus": "B10",
    "swir16": "B11", "swir22": "B12", "scl": "SCL",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A GeoTIFF that was written.

    Attributes:
        path: The file: float32 reflectance, NaN where there is none, one band for each name asked for.
        date: Date of the scenes in it (UTC); None for a composite.
        items: Ids of the items in it.
        valid: Share of the grid's cells with a value in every band.
        offsets: Decision on Sentinel-2's offset by item id.
    """

    path: Path
    date: str | None
    items: tuple[str, ...]
    valid: float
    offsets: dict[str, OffsetVerdict] = field(default_factory=dict)


# -- reading them -----------------------------------------------------------------------------------------------


def load_scene(
    items: Iterable[Any],
    bands: Sequence[str],
    output: str | Path,
    grid: Grid | None = None,
    *,
    resolution: float | None = None,
    crs: str | None = None,
    composite: Literal["dates", "median"] = "dates",
    mask_clouds: bool = True,
    resampling: str = "bilinear",
    sign: Sign | None = None,
    retries: int = 3,
    block_rows: int | None = None,
) -> list[Scene]:
    """Write scenes as cloud-optimised GeoTIFFs on a grid: one for each date, or the median of all dates.

    Args:
        items: Items of `search_items`, or any `pystac.Item`s.
        bands: Common names, e.g. `blue`, `red`, `nir`, `rededge1`, `swir16`; or names of assets.
        output: Folder; files are called `2023-06-01.tif`, or `median.tif`.
        grid: The grid; or give `resolution` and `crs`, and the extent of the items is taken.
        resolution: Edge of a cell in units of `crs`.
        crs: Coordinate reference system.
        composite: `dates` or `median`.
        mask_clouds: Leave out what the scene classification (`scl`) calls cloud, shadow, snow or defect, and 60 m
            around it. It is read at the grid's cells, which should not be much larger than the imagery's.
        resampling: How imagery is brought to the grid: `nearest`, `bilinear`, `average`, ...
        sign: Function that turns the address of a file into one that may be read (a SAS token, for example). It is
            asked again for every band of rows and after a refusal, as tokens run out.
        retries: Further tries when a server is busy.
        block_rows: Rows of the grid held at once; from their width and the number of bands by default.

    Returns:
        The files, by date.

    Raises:
        AgriClipError: For no items, bands that an item has not, and addresses that do not answer; no half-written
            file is left.
    """
    chosen = list(items)
    if not chosen:
        raise AgriClipError("There are no items to load; widen the bbox, the dates or `max_cloud` of the search.")
    if not bands:
        raise AgriClipError("No bands are asked for; name some, for example blue, green, red, nir.")
    target = grid or _grid_of(chosen, resolution, crs)
    reader = _Reader(target, tuple(bands), mask_clouds, resampling, sign, retries)
    assets = {item.id: reader.assets(item) for item in chosen}  # told before anything is read
    verdicts = _decide_offsets(reader, chosen)
    dates: dict[str, list[Any]] = {}
    for item in chosen:
        dates.setdefault(time_of(item)[:10] or "undated", []).append(item)
    held = len(chosen) if composite == "median" else 1
    rows = block_rows or max(1, min(512, MOST_VALUES // (target.width * (len(bands) + 1) * (held + 2))))
    jobs = {"median": list(dates.values())} if composite == "median" else {day: [dates[day]] for day in sorted(dates)}
    written = []
    for name, groups in jobs.items():
        members = [item for group in groups for item in group]
        offsets = {item.id: verdicts[item.id] for item in members if item.id in verdicts}
        tags = {
            "items": [item.id for item in members],
            "dates": sorted({time_of(item)[:10] for item in members}),
            "offsets": {i: f"{v.decision.value}, P1 {v.percentile:.0f}: {v.reason}" for i, v in offsets.items()},
            "long_name": "surface reflectance",
        }
        path, count = Path(output) / f"{name}.tif", 0
        writer = RowBandWriter(
            path, target, count=len(bands), band_names=list(bands), units=["1"] * len(bands), tags=tags
        )
        with writer:
            for block in iterate_rows(target.height, rows):
                layers = [reader.read(group, assets, offsets, block) for group in groups]
                values = layers[0] if composite == "dates" else _median(layers)
                writer.write(block.start, values)
                count += int(np.isfinite(values).all(axis=0).sum())
        share = count / (target.height * target.width)
        written.append(
            Scene(path, None if composite == "median" else name, tuple(i.id for i in members), share, offsets)
        )
        logger.info("%s: %d items, %.0f %% of cells with values.", path, len(members), 100 * share)
    return written


def _median(layers: list[FloatArray]) -> FloatArray:
    """Median over dates, (D, C, h, w) to (C, h, w), NaN where no date has a value."""
    stack = np.sort(np.stack(layers), axis=0)  # NaN last
    count = np.isfinite(stack).sum(axis=0)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    high = np.minimum(high, np.maximum(count - 1, 0))
    middle = [np.take_along_axis(stack, at[None], axis=0)[0] for at in (low, high)]
    return np.asarray((middle[0] + middle[1]) / 2, dtype=np.float32)


def _grid_of(items: list[Any], resolution: float | None, crs: str | None) -> Grid:
    """Lay a grid over the items, its cells on whole multiples of the resolution."""
    if resolution is None or crs is None:
        raise AgriClipError("Give a `grid`, or both `resolution` and `crs`.")
    boxes = [item.bbox for item in items if item.bbox]
    if not boxes:
        raise AgriClipError("The items do not say where they lie (bbox); give a `grid`.")
    # boxes of three dimensions have six numbers
    west, south, east, north = (
        limit(box[side if side < 2 else side - 2 + len(box) // 2] for box in boxes)
        for side, limit in enumerate((min, min, max, max))
    )
    from rasterio.warp import transform_bounds

    bounds = transform_bounds("EPSG:4326", crs, west, south, east, north, densify_pts=21)
    west, south = (math.floor(bound / resolution) * resolution for bound in bounds[:2])
    east, north = (math.ceil(bound / resolution) * resolution for bound in bounds[2:])
    return Grid.from_bounds((west, south, east, north), resolution, crs)


@dataclass(frozen=True)
class _Asset:
    """A band of an item: the asset's key, and what turns stored numbers into reflectance where that is said."""

    key: str
    nodata: float
    scale: float | None
    offset: float | None


@dataclass
class _Reader:
    """Reads bands of items onto a grid."""

    grid: Grid
    bands: tuple[str, ...]
    mask_clouds: bool
    resampling: str
    sign: Sign | None
    retries: int

    def assets(self, item: Any) -> dict[str, _Asset]:
        """Find the assets of the bands, and of the scene classification where clouds are masked."""
        wanted = (*self.bands, "scl") if self.mask_clouds else self.bands
        found = {band: _asset_of(item, band) for band in wanted}
        for band, asset in found.items():
            if asset is None and band == "scl" and band not in self.bands:
                raise AgriClipError(
                    f"The item '{item.id}' has no scene classification (scl) to find clouds by; load it with "
                    "mask_clouds=False."
                )
            if asset is None:
                known = nearest(band, [*_common_names(item), *item.assets])
                raise AgriClipError(f"The item '{item.id}' has no band '{band}'; {known}.")
            if not _is_sentinel2(item) and band != "scl" and asset.scale is None:
                raise AgriClipError(
                    f"The band '{band}' of '{item.id}' does not say its scale (raster:bands), so its numbers cannot "
                    "be read as reflectance; add it to the item."
                )
        return {band: asset for band, asset in found.items() if asset is not None}

    def read(
        self,
        items: list[Any],
        assets: Mapping[str, Mapping[str, _Asset]],
        offsets: Mapping[str, OffsetVerdict],
        rows: slice,
    ) -> FloatArray:
        """Read rows of the grid from the items of a date, (C, h, w) reflectance; the first that is clear counts."""
        rim = _rim(self.grid) if self.mask_clouds else 0
        height = rows.stop - rows.start
        out = np.full((len(self.bands), height, self.grid.width), np.nan, dtype=np.float32)
        inner = (slice(rim, rim + height), slice(rim, rim + self.grid.width))
        for item in items:
            known = assets[item.id]
            stored = self.stored(item, {band: known[band] for band in self.bands}, rows, 0)
            cloudy = None
            if self.mask_clouds:
                scl = self.stored(item, {"scl": known["scl"]}, rows, rim)["scl"]
                classes = np.nan_to_num(scl)
                cloudy = (_widened(np.isin(classes, CLOUDY), rim) | (classes == NO_DATA))[inner]
            for index, band in enumerate(self.bands):
                verdict, asset = offsets.get(item.id), known[band]
                if band == "scl":  # classes are no reflectance
                    values = stored[band]
                elif verdict is not None:
                    values = (stored[band] + verdict.added) * SCALE
                else:
                    values = stored[band] * (asset.scale or SCALE) + (asset.offset or 0.0)
                if cloudy is not None:
                    values[cloudy] = np.nan
                out[index] = np.where(np.isnan(out[index]), values, out[index])
        return out

    def stored(self, item: Any, assets: Mapping[str, _Asset], rows: slice, rim: int) -> dict[str, NDArray[np.float64]]:
        """Read stored numbers of rows of the grid and a rim around them, NaN for nodata."""
        from affine import Affine

        transform = self.grid.transform @ Affine.translation(-rim, rows.start - rim)
        return self.load(item, assets, (rows.stop - rows.start + 2 * rim, self.grid.width + 2 * rim), transform)

    def load(
        self, item: Any, assets: Mapping[str, _Asset], shape: tuple[int, int], transform: Any, coarse: bool = False
    ) -> dict[str, NDArray[np.float64]]:
        """Read assets of an item onto cells, with retries."""
        odc, box = import_extra("odc.stac"), import_extra("odc.geo.geobox").GeoBox(shape, transform, self.grid.crs)
        rasterio = import_extra("rasterio")
        out: dict[str, NDArray[np.float64]] = {}
        # GDAL itself tries again when a server is busy; a refusal is asked once more with a new token
        options = GDAL_OPTIONS | {"GDAL_HTTP_MAX_RETRY": str(self.retries)}
        for band, asset in assets.items():
            for last in (self.sign is None, True):
                try:
                    with rasterio.Env(**options):
                        loaded = odc.load(
                            [item],
                            bands=[asset.key],
                            geobox=box,
                            resampling="nearest" if coarse or band == "scl" else self.resampling,
                            dtype="float32",
                            nodata=asset.nodata,
                            patch_url=self.sign,
                        )
                    break
                except (rasterio.errors.RasterioError, OSError) as error:
                    if last:
                        raise AgriClipError(
                            f"The band '{band}' of '{item.id}' cannot be read from {item.assets[asset.key].href} "
                            f"({short_reason(error)}); check that the address answers, and whether it needs `sign`."
                        ) from error
                    logger.warning("%s of %s: %s; trying again with a new token.", band, item.id, short_reason(error))
            values = np.full(shape, np.nan)
            if asset.key in loaded and loaded[asset.key].shape[0]:
                values = loaded[asset.key].values[0].astype(np.float64)
            values[values == asset.nodata] = np.nan
            out[band] = values
        return out


def _decide_offsets(reader: _Reader, items: list[Any]) -> dict[str, OffsetVerdict]:
    """Decide on the offset of every Sentinel-2 scene, from a thinned copy of it under the grid.

    Scenes whose darkest land lies between the limits are held against the median of those that are sure.
    """
    from affine import Affine

    seen: dict[str, tuple[NDArray[np.float64], NDArray[np.float64] | None]] = {}
    step = max(1, math.ceil(max(reader.grid.shape) / COARSE))
    shape = (math.ceil(reader.grid.height / step), math.ceil(reader.grid.width / step))
    transform = reader.grid.transform @ Affine.scale(step)
    verdicts: dict[str, OffsetVerdict] = {}
    medians: list[float] = []
    scenes = [item for item in items if _is_sentinel2(item)]
    for item in scenes:
        found = {band: _asset_of(item, band) for band in ("blue", "scl")}
        known = {band: asset for band, asset in found.items() if asset is not None}
        read = reader.load(item, known, shape, transform, coarse=True)
        blue = np.nan_to_num(read["blue"]) if "blue" in read else np.zeros(shape)
        scl = np.nan_to_num(read["scl"]) if "scl" in read else None
        seen[item.id] = (blue, scl)
        verdicts[item.id] = decide_offset(blue, scl, scene=item.id)
        if verdicts[item.id].decision is not OffsetDecision.UNKNOWN:
            clear = (blue > 0) if scl is None else (blue > 0) & np.isin(scl, CLEAR_CLASSES)
            medians.append(float(np.median(blue[clear])) + verdicts[item.id].added)
    for item in scenes:
        if verdicts[item.id].decision is OffsetDecision.UNKNOWN:
            asset = _asset_of(item, "blue")
            said = offset_in_metadata(item.properties, asset.offset if asset else None)
            series = float(np.median(medians)) if medians else None
            verdicts[item.id] = decide_offset(*seen[item.id], series_median=series, metadata=said, scene=item.id)
    return verdicts


def _asset_of(item: Any, band: str) -> _Asset | None:
    """Find the asset of a band: by its key, by its common name, or by what Sentinel-2 calls it."""
    keys = {key.lower(): key for key in item.assets}
    key = keys.get(band.lower()) or _common_names(item).get(band.lower())
    if key is None and _is_sentinel2(item):
        key = keys.get(_SENTINEL2.get(band.lower(), "").lower())
    if key is None:
        return None
    fields = item.assets[key].extra_fields
    said = {**fields, **((fields.get("bands") or [{}])[0]), **((fields.get("raster:bands") or [{}])[0])}
    scale, offset = (said.get(name, said.get(f"raster:{name}")) for name in ("scale", "offset"))
    nodata = said.get("nodata")
    return _Asset(
        key,
        float(nodata) if isinstance(nodata, int | float) else 0.0,
        None if scale is None else float(scale),
        None if offset is None else float(offset),
    )


def _common_names(item: Any) -> dict[str, str]:
    """Common names of the assets that hold one band each; the first asset of a name counts."""
    names: dict[str, str] = {}
    for key, asset in item.assets.items():
        bands = asset.extra_fields.get("eo:bands") or asset.extra_fields.get("bands") or []
        if len(bands) == 1 and "thumbnail" not in (asset.roles or ()) and "overview" not in (asset.roles or ()):
            name = bands[0].get("common_name") or bands[0].get("eo:common_name")
            if name:
                names.setdefault(str(name).lower(), key)
    return names


def _is_sentinel2(item: Any) -> bool:
    told = (item.properties.get(key) for key in ("constellation", "platform"))
    words = " ".join(str(word) for word in (*told, item.collection_id) if word).lower()
    # HLS has no offset, and its scale is in its metadata
    return ("sentinel-2" in words and "hls" not in words) or any(key.startswith("s2:") for key in item.properties)


def _rim(grid: Grid) -> int:
    """Cells that 60 m reach."""
    middle = grid.part(slice(grid.height // 2, grid.height // 2 + 1))
    cell = Grid(middle.crs, middle.transform, 1, 1)
    return round(RIM_M / math.sqrt(float(cell.cell_areas_ha()[0, 0]) * 1e4))


def _widened(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Widen a mask by a disk: row by row of the disk, a running count over its width."""
    if radius < 1:
        return mask
    height, width = mask.shape
    out = mask.copy()
    for down in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - down * down)
        counted = np.zeros((height, width + 1), dtype=np.int32)
        np.cumsum(mask, axis=1, out=counted[:, 1:])
        columns = np.arange(width)
        near = counted[:, np.minimum(columns + half + 1, width)] > counted[:, np.maximum(columns - half, 0)]
        top, bottom = max(0, down), min(height, height + down)
        out[top:bottom] |= near[top - down : bottom - down]
    return out
