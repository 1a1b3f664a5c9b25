"""What is measured on a tile of class codes and reflectance: patches, borders, neighbours, greenness, slope.

Two choices: a patch is a group of pixels of one class that touch at an edge or a corner, and patches of a few pixels
are left out of what is said of fields (they are noise of the map); everything is counted on pixels, so that it can be
counted again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from processing.errors import AgriClipError
from processing.sensors_agriclip import ChannelSpec

try:
    from scipy import ndimage  # type: ignore[import-untyped]
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Captions need SciPy; install it with: pip install 'agriclip[maps]'.") from error

QUANTILES = (0.1, 0.5, 0.9)
_QUARTER = 0.15  # share of a class in each quarter of the tile from which on it is everywhere
_HALF = 0.75  # share in one half of the tile from which on it lies there
_INNER, _OUTER = 0.6, 0.1  # share in the inner quarter of the area that is "the middle", and that is "the edges"

# Names of bands and the part of the spectrum they are; Sentinel-2 with its leading zero, which no other sensor writes.
_ROLES = {
    "blue": ("blue", "b02"),
    "green": ("green", "b03"),
    "red": ("red", "b04"),
    "nir": ("nir", "nir08", "b08", "b8a", "b08a"),
    "swir1": ("swir1", "swir16", "swir", "b11"),
}
# nm: least, most and best wavelength of each part.
_WAVELENGTHS = {
    "blue": (450, 520, 485),
    "green": (520, 600, 560),
    "red": (620, 690, 660),
    "nir": (760, 900, 850),
    "swir1": (1500, 1750, 1610),
}


@dataclass(frozen=True)
class Quantiles:
    """The 10th, 50th and 90th percentile of an index over the pixels of a class."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Patches:
    """Patches of one class.

    Attributes:
        count: Patches of at least the smallest size that counts.
        largest: Pixels of the largest patch.
        median: Median of the pixels of the patches counted, 0 if none is.
        shape_index: Mean of perimeter / (4 sqrt(area)) of the patches counted, weighted by area: 1 for a square, more
            the more winding the outline (McGarigal and Marks 1995, FRAGSTATS, index SHAPE, raster form). NaN if none.
        extent: Mean share of its bounding box that a patch fills, weighted by area: 1 for a field of straight sides
            along the image. NaN if none.
    """

    count: int
    largest: int
    median: float
    shape_index: float
    extent: float


def find_patches(inside: NDArray[np.bool_], smallest: int) -> Patches:
    """Measure the patches of a class.

    Args:
        inside: (H, W) where the class is.
        smallest: Pixels of the smallest patch that counts.
    """
    labels, found = ndimage.label(inside, structure=np.ones((3, 3)))
    if not found:
        return Patches(0, 0, 0.0, math.nan, math.nan)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    padded = np.pad(labels, 1)
    perimeter = np.zeros(found + 1)
    core = padded[1:-1, 1:-1]
    for shifted in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        perimeter += np.bincount(core[core != shifted], minlength=found + 1)
    boxes = np.array([(s[0].stop - s[0].start) * (s[1].stop - s[1].start) for s in ndimage.find_objects(labels)])
    kept = sizes >= smallest
    if not kept.any():
        return Patches(0, int(sizes.max()), 0.0, math.nan, math.nan)
    area = sizes[kept].astype(np.float64)
    shape = perimeter[1:][kept] / (4 * np.sqrt(area))
    return Patches(
        count=int(kept.sum()),
        largest=int(sizes.max()),
        median=float(np.median(area)),
        shape_index=float(np.average(shape, weights=area)),
        extent=float(np.average(area / boxes[kept], weights=area)),
    )


def count_borders(codes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Count the pixel edges between classes.

    Args:
        codes: (H, W) class indices, -1 where nothing is known.
        count: Number of classes.

    Returns:
        (count, count) symmetric; entry (a, b) is the number of edges where a pixel of a lies beside one of b.
    """
    table = np.zeros((count, count), dtype=np.int64)
    for one, other in ((codes[:, :-1], codes[:, 1:]), (codes[:-1], codes[1:])):
        known = (one >= 0) & (other >= 0)
        np.add.at(table, (one[known], other[known]), 1)
    return table + table.T - np.diag(np.diag(table))


def border_contrast(codes: NDArray[np.int64], index: int, layer: NDArray[np.float64]) -> float:
    """Median step of a layer across the borders of a class, NaN if it has none that was measured."""
    steps = []
    for one, other, left, right in (
        (codes[:, :-1], codes[:, 1:], layer[:, :-1], layer[:, 1:]),
        (codes[:-1], codes[1:], layer[:-1], layer[1:]),
    ):
        border = ((one == index) != (other == index)) & (one >= 0) & (other >= 0)
        steps.append(np.abs(left - right)[border])
    found = np.concatenate(steps)
    found = found[np.isfinite(found)]
    return float(np.median(found)) if len(found) else math.nan


def place_of(inside: NDArray[np.bool_]) -> str | None:
    """Where in the tile a class lies: `north`, `south-east`, ..., `middle`, `edges`, `throughout`, or None.

    A side is named if three quarters of the class lie in that half of the tile (row 0 is north); the middle if most of
    it lies in the inner box of half the edge; the edges if next to nothing does; throughout if every quarter of the
    tile has its part.
    """
    height, width = inside.shape
    total = int(inside.sum())
    if not total:
        return None
    north = float(inside[: height // 2].sum()) / total
    west = float(inside[:, : width // 2].sum()) / total
    sides = [word for share, word in ((north, "north"), (1 - north, "south")) if share >= _HALF]
    sides += [word for share, word in ((west, "west"), (1 - west, "east")) if share >= _HALF]
    if sides:
        return "-".join(sides)
    middle = inside[height // 4 : height - height // 4, width // 4 : width - width // 4]
    inner = float(middle.sum()) / total
    if inner >= _INNER:
        return "middle"
    if inner <= _OUTER:
        return "edges"
    quarters = (part.sum() for rows in np.array_split(inside, 2, axis=0) for part in np.array_split(rows, 2, axis=1))
    return "throughout" if min(quarters) >= _QUARTER * total else None


def quantiles(layer: NDArray[np.float64], inside: NDArray[np.bool_]) -> Quantiles | None:
    """Quantiles of a layer over a class, None where nothing was measured."""
    values = layer[inside]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, median, high = (float(value) for value in np.quantile(values, QUANTILES))
    return Quantiles(low, median, high)


def spectral_layers(pixels: Any, bands: Sequence[str | ChannelSpec]) -> dict[str, NDArray[np.float64]]:
    """Indices of reflectance.

    NDVI (nir - red) / (nir + red), Rouse et al. 1974; NDWI (green - nir) / (green + nir), McFeeters 1996, above 0 on
    open water; NDMI (nir - swir1) / (nir + swir1), Gao 1996 with the 1.6 um band, the moisture of leaves and soil;
    brightness, the mean of the visible bands. An index whose bands are absent is absent.

    Args:
        pixels: (C, H, W) reflectance, 0 to 1; NaN or masked where nothing was measured.
        bands: Name of each band (`red`, `nir`, `B04`), or its channel.

    Raises:
        AgriClipError: Bands and pixels disagree, red or near infrared is missing, or the pixels are no reflectance.
    """
    values = np.ma.filled(np.ma.asarray(pixels, dtype=np.float64), np.nan)
    if values.ndim != 3 or len(values) != len(bands):
        raise AgriClipError(
            f"The pixels have the shape {values.shape} but {len(bands)} bands are named; give (bands, height, width)."
        )
    found = _roles(bands)
    if not {"red", "nir"} <= found.keys():
        names = ", ".join(band if isinstance(band, str) else band.name for band in bands)
        raise AgriClipError(f"Neither red and near infrared are among the bands {names}; name them 'red' and 'nir'.")
    sample = values[[found["red"], found["nir"]]]
    sample = sample[np.isfinite(sample)]
    if len(sample) and float(np.median(sample)) > 2:
        raise AgriClipError(
            f"The pixels are no reflectance (median {np.median(sample):.0f}); multiply them by the product's scale."
        )
    layer = {role: values[place] for role, place in found.items()}
    layers = {"ndvi": _ratio(layer["nir"], layer["red"])}
    if "green" in layer:
        layers["ndwi"] = _ratio(layer["green"], layer["nir"])
    if "swir1" in layer:
        layers["ndmi"] = _ratio(layer["nir"], layer["swir1"])
    if {"blue", "green"} <= layer.keys():
        layers["brightness"] = (layer["blue"] + layer["green"] + layer["red"]) / 3
    return layers


def _roles(bands: Sequence[str | ChannelSpec]) -> dict[str, int]:
    """Place of the band of each part of the spectrum."""
    found: dict[str, int] = {}
    for role, (least, most, best) in _WAVELENGTHS.items():
        places = []
        for place, band in enumerate(bands):
            if isinstance(band, str):
                if band.lower() in _ROLES[role]:
                    places.append((_ROLES[role].index(band.lower()), place))
            elif band.wavelength_nm is not None and least <= band.wavelength_nm <= most:
                places.append((round(abs(band.wavelength_nm - best)), place))
        if places:
            found[role] = min(places)[1]
    return found


def _ratio(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalised difference within -1 and 1, NaN where the sum is not positive."""
    total = one + other
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(total > 0, (one - other) / total, np.nan)
    return np.clip(ratio, -1.0, 1.0)


def slope_degrees(dem: NDArray[np.float64], gsd: float) -> NDArray[np.float64]:
    """Slope in degrees from elevation in metres: Horn 1981, third-order differences of the eight neighbours.

    Args:
        dem: (H, W) elevation in metres, at least 3 x 3.
        gsd: Metres per pixel.

    Returns:
        (H - 2, W - 2): the outermost pixels lack neighbours.
    """
    z = np.asarray(dem, dtype=np.float64)
    weights = {-1: 1.0, 0: 2.0, 1: 1.0}
    height, width = z.shape

    def at(row: int, column: int) -> NDArray[np.float64]:
        return z[1 + row : height - 1 + row, 1 + column : width - 1 + column]

    east = sum(weight * (at(step, 1) - at(step, -1)) for step, weight in weights.items()) / (8 * gsd)
    south = sum(weight * (at(1, step) - at(-1, step)) for step, weight in weights.items()) / (8 * gsd)
    return np.asarray(np.degrees(np.arctan(np.hypot(east, south))), dtype=np.float64)


def class_indices(
    mask: NDArray[Any], classes: Mapping[int, str], nodata: Sequence[int]
) -> tuple[NDArray[np.int64], list[str]]:
    """Codes to indices of names.

    Returns:
        (H, W) indices into the names; `len(names)` where the code is not among the classes; -1 where nothing is known.
        And the names, each once: codes of one name are one class.
    """
    names = list(dict.fromkeys(classes.values()))
    codes = np.ma.asarray(mask)
    values, places = np.unique(np.ma.filled(codes, 0).astype(np.int64), return_inverse=True)
    unknown = set(nodata) - set(classes)
    lookup = np.array(
        [
            -1 if int(value) in unknown else names.index(classes[int(value)]) if int(value) in classes else len(names)
            for value in values
        ],
        dtype=np.int64,
    )
    indices = lookup[places].reshape(codes.shape)
    indices[np.ma.getmaskarray(codes)] = -1
    return indices, names


__all__ = [
    "Patches",
    "Quantiles",
    "border_contrast",
    "class_indices",
    "count_borders",
    "find_patches",
    "place_of",
    "quantiles",
    "slope_degrees",
    "spectral_layers",
]
