"""The facts of a tile that a caption may tell, measured once and kept apart from the words.

The five attributes are those of FarmSeg-VL (Tao et al. 2025, doi 10.5194/essd-17-4835-2025): inherent properties
(shape, size, greenness, outline), phenology, spatial distribution, terrain and surroundings. Two choices: what was not
given is None and never guessed, so that a caption without a date says nothing of stages and one without elevation
nothing of terrain; and a place is never among the facts.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from processing.captions.crops import Crop, cdl_classes, find_crop, parse_date, season_of, stage_of
from processing.captions.measures import (
    Patches,
    Quantiles,
    border_contrast,
    class_indices,
    count_borders,
    find_patches,
    place_of,
    quantiles,
    slope_degrees,
    spectral_layers,
)
from processing.errors import AgriClipError
from processing.sensors_agriclip import ChannelSpec

NODATA = (0, 81, 255)  # background and clouds of the Cropland Data Layer, and what segmentation does not score
SMALLEST_PATCH = 5  # pixels
# Slope classes of FAO, Guidelines for soil description, 2006, table 7: to 5 % level or gentle, from 15 % steep.
_ROLLING, _STEEP = (math.degrees(math.atan(percent / 100)) for percent in (5, 15))
_GREENNESS = ((0.2, "bare or dry"), (0.4, "sparsely green"), (0.6, "moderately green"), (1.01, "densely green"))


@dataclass(frozen=True)
class ClassFacts:
    """What is known of one class of a tile.

    Attributes:
        name: As in the class table.
        crop: Its words, None if crops.yaml has none.
        pixels: Pixels of it.
        share: Share of the tile's known pixels, 0 to 1.
        area: Hectares, None without a ground sample distance.
        patches: Its patches.
        place: Where it lies, see `measures.place_of`.
        neighbours: Classes that border on it and their shares of its border with known pixels, largest first; what is
            in no class of the table has its share but is not named.
        ndvi: Quantiles of NDVI, None where not measured.
        ndwi: Of NDWI.
        moisture: Of NDMI.
        brightness: Of the mean visible reflectance.
        contrast: Median step of NDVI across its border, NaN if unknown.
        stage: Stage of growth by calendar and NDVI, None if unknown.
    """

    name: str
    crop: Crop | None
    pixels: int
    share: float
    area: float | None
    patches: Patches
    place: str | None
    neighbours: tuple[tuple[str, float], ...]
    ndvi: Quantiles | None = None
    ndwi: Quantiles | None = None
    moisture: Quantiles | None = None
    brightness: Quantiles | None = None
    contrast: float = math.nan
    stage: str | None = None

    @property
    def largest_share(self) -> float:
        """Share of the class that lies in its largest patch."""
        return self.patches.largest / self.pixels

    @property
    def unnamed_border(self) -> float:
        """Share of its border that lies along what is in no class of the table."""
        return 1 - sum(share for _, share in self.neighbours) if self.neighbours else 0.0

    @property
    def dispersion(self) -> str | None:
        """`contiguous` (three quarters in one patch) or `scattered` (five patches or more, none of a quarter)."""
        if self.largest_share >= 0.75:
            return "contiguous"
        return "scattered" if self.patches.count >= 5 and self.largest_share < 0.25 else None

    @property
    def shape(self) -> str | None:
        """`rectangular`, `irregular` or `branching`, by shape index and filled share of the bounding box."""
        index, extent = self.patches.shape_index, self.patches.extent
        if self.patches.count == 0:
            return None
        if index <= 1.35 and extent >= 0.75:
            return "rectangular"
        return "branching" if index >= 3 else "irregular" if index >= 1.5 else None

    @property
    def greenness(self) -> str | None:
        """`bare or dry` to `densely green` by the median NDVI; `water` where NDWI says so."""
        if self.ndvi is None:
            return None
        if self.ndwi is not None and self.ndwi.median > 0:
            return "water"
        return next(word for most, word in _GREENNESS if self.ndvi.median < most)

    @property
    def outline(self) -> str | None:
        """`sharp` or `faint`, by the step of NDVI across the border."""
        return "sharp" if self.contrast >= 0.08 else "faint" if self.contrast < 0.03 else None


@dataclass(frozen=True)
class Terrain:
    """Slope in degrees (mean and 90th percentile) and relief in metres (98th less 2nd percentile of elevation)."""

    slope: float
    steepest: float
    relief: float

    @property
    def word(self) -> str:
        """`flat` below a mean slope of 5 %, `rolling`, or `steep` from 15 % (FAO 2006)."""
        return "flat" if self.slope < _ROLLING else "rolling" if self.slope < _STEEP else "steep"


@dataclass(frozen=True)
class TileFacts:
    """What is known of a tile.

    Attributes:
        classes: Classes of at least one pixel, largest first.
        absent: Names of the table of which there is no pixel.
        unlisted: Share of known pixels in no class of the table.
        known: Share of pixels whose class is known.
        area: Hectares of the known pixels, None without a ground sample distance.
        gsd: Metres per pixel, None if unknown.
        smallest: Pixels of the smallest patch that counts.
        date: When it was seen, None if unknown.
        season: One of `crops.SEASONS`, None without a date.
        ndvi: Quantiles of NDVI over all known pixels, None where not measured.
        terrain: None without elevation.
    """

    classes: tuple[ClassFacts, ...]
    absent: tuple[str, ...]
    unlisted: float
    known: float
    area: float | None
    gsd: float | None
    smallest: int
    date: datetime.date | None = None
    season: str | None = None
    ndvi: Quantiles | None = None
    terrain: Terrain | None = None

    @property
    def farmed(self) -> float:
        """Share of known pixels that are sown or mown."""
        return sum(one.share for one in self.classes if one.crop is not None and one.crop.is_farmed)

    def of(self, name: str) -> ClassFacts | None:
        """The facts of a class, None if there is no pixel of it."""
        return next((one for one in self.classes if one.name == name), None)


def describe(
    mask: ArrayLike,
    classes: Mapping[int, str] | None = None,
    pixels: Any = None,
    bands: Sequence[str | ChannelSpec] | None = None,
    gsd: float | None = None,
    date: str | datetime.date | None = None,
    latitude: float | None = None,
    dem: ArrayLike | None = None,
    *,
    nodata: Sequence[int] = NODATA,
    smallest: int = SMALLEST_PATCH,
) -> TileFacts:
    """Measure what a caption may tell of a tile.

    Args:
        mask: (H, W) class codes; masked where unknown.
        classes: Name of each code, codes of one name being one class; the Cropland Data Layer if None.
        pixels: (C, H, W) surface reflectance, 0 to 1, NaN or masked where nothing was measured.
        bands: Name or channel of each band; needed with `pixels`.
        gsd: Metres per pixel.
        date: Date of the pixels.
        latitude: Degrees north; used for season and stages only and never told. If None, a date is read in the
            calendar's own latitude, 45 degrees north.
        dem: (H, W) elevation in metres; needs `gsd`.
        nodata: Codes that mean nothing is known, unless they are classes.
        smallest: Pixels of the smallest patch that counts.

    Raises:
        AgriClipError: Shapes disagree, nothing is known of the tile, or a value is out of its range.
    """
    table = cdl_classes() if classes is None else {int(code): str(name) for code, name in classes.items()}
    codes: np.ma.MaskedArray[Any, Any] = np.ma.asarray(mask)
    if codes.ndim != 2 or 0 in codes.shape:
        raise AgriClipError(f"A mask has rows and columns, not the shape {codes.shape}; give one code a pixel.")
    if gsd is not None and not (math.isfinite(gsd) and gsd > 0):
        raise AgriClipError(f"The ground sample distance is {gsd} m; give the metres of a pixel, above 0.")
    if latitude is not None and not -90 <= latitude <= 90:
        raise AgriClipError(f"The latitude is {latitude}; give degrees between -90 and 90.")
    indices, names = class_indices(codes, table, nodata)
    counts = np.bincount(indices[indices >= 0].ravel(), minlength=len(names) + 1)
    total = int(counts.sum())
    if not total:
        raise AgriClipError("No pixel of the mask is known: all its codes mean no data; leave this tile out.")
    layers = _layers(pixels, bands, indices.shape)
    when = parse_date(date)
    borders = count_borders(indices, len(names) + 1)
    np.fill_diagonal(borders, 0)
    hectares = None if gsd is None else gsd * gsd / 1e4

    def facts(index: int) -> ClassFacts:
        inside = indices == index
        crop = find_crop(names[index])
        of_layer = {name: quantiles(layer, inside) for name, layer in layers.items()}
        ndvi = of_layer.get("ndvi")
        outer = int(borders[index].sum())
        beside = sorted(((int(borders[index, i]), i) for i in range(len(names)) if borders[index, i]), reverse=True)
        return ClassFacts(
            name=names[index],
            crop=crop,
            pixels=int(counts[index]),
            share=float(counts[index] / total),
            area=None if hectares is None else float(counts[index]) * hectares,
            patches=find_patches(inside, smallest),
            place=place_of(inside),
            neighbours=tuple((names[i], edges / outer) for edges, i in beside),
            ndvi=ndvi,
            ndwi=of_layer.get("ndwi"),
            moisture=of_layer.get("ndmi"),
            brightness=of_layer.get("brightness"),
            contrast=border_contrast(indices, index, layers["ndvi"]) if "ndvi" in layers else math.nan,
            stage=None
            if crop is None or when is None
            else stage_of(crop, when, latitude, None if ndvi is None else ndvi.median),
        )

    order = sorted((i for i in range(len(names)) if counts[i]), key=lambda i: (-counts[i], i))
    return TileFacts(
        classes=tuple(facts(index) for index in order),
        absent=tuple(name for i, name in enumerate(names) if not counts[i]),
        unlisted=float(counts[len(names)] / total),
        known=total / indices.size,
        area=None if hectares is None else total * hectares,
        gsd=gsd,
        smallest=smallest,
        date=when,
        season=None if when is None else season_of(when, latitude),
        ndvi=quantiles(layers["ndvi"], indices >= 0) if "ndvi" in layers else None,
        terrain=_terrain(dem, gsd, indices.shape),
    )


def _layers(
    pixels: Any, bands: Sequence[str | ChannelSpec] | None, shape: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    if pixels is None:
        return {}
    if bands is None:
        raise AgriClipError("Pixels were given without the names of their bands; give `bands`, e.g. red and nir.")
    layers = spectral_layers(pixels, bands)
    found = layers["ndvi"].shape
    if found != shape:
        raise AgriClipError(f"The mask has {shape} pixels and the image {found}; cut both alike.")
    return layers


def _terrain(dem: ArrayLike | None, gsd: float | None, shape: tuple[int, ...]) -> Terrain | None:
    if dem is None:
        return None
    heights = np.ma.filled(np.ma.asarray(dem, dtype=np.float64), np.nan)
    if heights.shape != shape or min(shape) < 3:
        raise AgriClipError(
            f"The elevation has {heights.shape} pixels and the mask {shape}; cut both alike, 3 x 3 or more."
        )
    if gsd is None:
        raise AgriClipError("A slope needs the metres of a pixel; give `gsd` with the elevation.")
    slopes = slope_degrees(heights, gsd)
    slopes = slopes[np.isfinite(slopes)]
    if not len(slopes):
        return None
    low, high = np.nanquantile(heights, (0.02, 0.98))
    return Terrain(float(slopes.mean()), float(np.quantile(slopes, 0.9)), float(high - low))


__all__ = ["NODATA", "SMALLEST_PATCH", "ClassFacts", "Terrain", "TileFacts", "describe"]
