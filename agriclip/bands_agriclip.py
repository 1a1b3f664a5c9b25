"""One image as named, masked bands: from a raster file by its own tags, or from an array by an explicit channel axis.

The order of bands is taken by name where the file names them; where names contradict the expected order and do not
settle it, the file is refused. Reading files needs rasterio; arrays, tensors and photographs do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .sensors_agriclip import ChannelSpec, SensorSpec, find_channel

try:
    import rasterio
except ImportError:  # arrays, tensors and photographs work without it
    rasterio = None


@dataclass
class BandStack:
    """Bands of one image at one date, as stored.

    Attributes:
        values: Stored numbers (C, H, W), float32.
        valid: Where something was measured (C, H, W), bool.
        names: Band names, empty where the source has none.
        scales: Scale and offset tags per band, or None where the source has none.
        gsd: Metres per pixel, or None where unknown.
        source: For messages.
        alpha: Place of a band that the file calls alpha, or None.
    """

    values: Tensor
    valid: Tensor
    names: list[str]
    scales: list[tuple[float, float]] | None
    gsd: float | None
    source: str
    alpha: int | None = None

    def take(self, bands: Sequence[int]) -> "BandStack":
        """Return these bands, in this order."""
        places = list(bands)
        scales = None if self.scales is None else [self.scales[i] for i in places]
        names = [self.names[i] for i in places]
        return BandStack(self.values[places], self.valid[places], names, scales, self.gsd, self.source)

    def without_alpha(self, count: int) -> "BandStack":
        """Drop an alpha band, or keep it as data when it is named or `count` bands are expected with it.

        GDAL calls the fourth band of an 8-bit GeoTIFF alpha unless told otherwise, although it is often near infrared.
        """
        if self.alpha is None:
            return self
        if len(self.names) == count or self.names[self.alpha]:
            # What it would have hidden was measured.
            return BandStack(self.values, torch.ones_like(self.valid), self.names, self.scales, self.gsd, self.source)
        return self.take([i for i in range(len(self.names)) if i != self.alpha])


def names_of(specs: Sequence[ChannelSpec]) -> str:
    """Names of the channels, for messages."""
    return ", ".join(spec.name for spec in specs)


def read_raster(path: str) -> BandStack:
    """Read all bands of a raster file, with their masks, names, scale and offset tags and the size of a pixel.

    Raises:
        ValueError: If rasterio is not installed or the file cannot be read.
    """
    if rasterio is None:
        raise ValueError(f"Reading '{path}' needs rasterio; install it with: pip install 'agriclip[maps]'.")
    try:
        with rasterio.open(path) as source:
            # read_masks() knows nodata values, masks beside the data and alpha bands.
            values = torch.from_numpy(source.read().astype(np.float32))
            valid = torch.from_numpy(source.read_masks() > 0)
            names = [name or "" for name in source.descriptions]
            scales = [(float(s), float(o)) for s, o in zip(source.scales, source.offsets, strict=True)]
            colours = [colour.name for colour in source.colorinterp]
            gsd = _ground_sample_distance(source)
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"'{path}' cannot be read as a raster ({error}); give a GeoTIFF or a photograph.") from error
    tagged = any(pair != (1.0, 0.0) for pair in scales)
    alpha = colours.index("alpha") if "alpha" in colours else None
    return BandStack(values, valid, names, scales if tagged else None, gsd, f"'{path}'", alpha)


def _ground_sample_distance(source: Any) -> float | None:
    """Metres per pixel: the geometric mean of both axes; degrees are measured at the middle of the raster."""
    x, y = abs(source.transform.a) or abs(source.transform.b), abs(source.transform.e) or abs(source.transform.d)
    if source.crs is None:
        # Files without a CRS carry metres or nothing; one unit per pixel is nothing.
        return None if x == 1.0 else math.sqrt(x * y)
    if source.crs.is_geographic:
        latitude = math.radians((source.bounds.top + source.bounds.bottom) / 2)
        return math.sqrt(x * y * max(math.cos(latitude), 1e-3)) * 111_320.0  # metres per degree of a great circle
    return math.sqrt(x * y) * float(source.crs.linear_units_factor[1])


def from_array(image: Any, count: int, layout: Any) -> BandStack:
    """Bring a Pillow image, array or tensor to channels-first.

    Args:
        image: The image, (C, H, W), (H, W, C) or, for one band, (H, W). Masked arrays keep their mask.
        count: Number of bands expected; 0 for any.
        layout: `channels_first` or `channels_last`, where the shape does not tell; channels-first wins a tie.

    Raises:
        ValueError: For anything that is not an image.
    """
    valid = None
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        if count == 3 and image.mode != "RGB":  # palettes, greys and alpha become the colours one sees
            image = image.convert("RGB")
        image, layout = np.array(image), "channels_last"
        if image.ndim == 2:
            image = image[..., None]
    if isinstance(image, np.ma.MaskedArray):
        valid = torch.from_numpy(~np.ma.getmaskarray(image))
        image = image.filled(0)
    if isinstance(image, np.ndarray):
        # float64 first: torch knows neither uint16 arithmetic nor big-endian arrays
        image = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    if not isinstance(image, Tensor):
        raise ValueError(
            f"An image is a path, array, tensor or Pillow image, not {type(image).__name__}; convert it first."
        )
    image = image.detach().cpu().float()
    source = f"an array of shape {tuple(image.shape)}"
    if image.ndim == 2 and count in (0, 1):
        image = image[None]
        valid = None if valid is None else valid[None]
    elif image.ndim != 3:
        raise ValueError(f"Expected an image of {count or 'any number of'} bands with 3 axes, found {source}.")
    elif _is_channels_last(tuple(image.shape), count, layout):
        image = image.permute(2, 0, 1)
        valid = None if valid is None else valid.permute(2, 0, 1)
    if valid is None:
        valid = torch.ones_like(image, dtype=torch.bool)
    return BandStack(image, valid, [""] * image.shape[0], None, None, source)


def _is_channels_last(shape: tuple[int, ...], count: int, layout: Any) -> bool:
    if layout is not None:
        return str(getattr(layout, "value", layout)) == "channels_last"
    if count:
        return shape[0] != count and shape[-1] == count
    return shape[-1] < min(shape[:2])  # undescribed bands: fewer bands than rows or columns


def order_by_name(names: list[str], specs: Sequence[ChannelSpec]) -> list[int] | None:
    """Return the place of each channel among the named bands, or None if not all are named.

    Raises:
        ValueError: If some names say that the order is not that of the channels and others say nothing.
    """
    places = {name.strip().lower(): place for place, name in reversed(list(enumerate(names))) if name.strip()}
    order: list[int | None] = []
    for spec in specs:
        known = (spec.name, *spec.aliases)
        order.append(next((places[name.lower()] for name in known if name.lower() in places), None))
    if all(place is not None for place in order):
        return [place for place in order if place is not None]
    misplaced = [i for i, place in enumerate(order) if place is not None and place != i]
    if misplaced and len(names) == len(specs):
        i = misplaced[0]
        raise ValueError(
            f"Band {names.index(names[order[i] or 0]) + 1} is named '{names[order[i] or 0]}' but channel {i + 1} of "
            f"{len(specs)} is '{specs[i].name}', and not all bands are named; name them all or reorder them."
        )
    return None


def subset_by_name(
    names: list[str], sensor: SensorSpec, specs: tuple[ChannelSpec, ...]
) -> tuple[tuple[ChannelSpec, ...], list[int] | None]:
    """Return the sensor's channels that a file holds, and their places in it.

    Only when the file names all of its bands and the sensor knows every name; otherwise all channels and None.
    """
    try:
        found = {find_channel(sensor, name).name: place for place, name in enumerate(names)}
    except ValueError:
        return specs, None
    if len(found) != len(names):
        return specs, None
    present = tuple(spec for spec in specs if spec.name in found)
    return present, [found[spec.name] for spec in present]
