"""One image of any kind to named bands, physical values, or the colours that a model of photographs sees.

Two choices define this file. What the bands of an image are is decided by the file itself where it says so (names,
tags, number of bands). And the same pixels serve every model: as described bands for AgriCLIP, as reflectance for band
statistics, as 8-bit red, green and blue for CLIP and SigLIP, by one rule that is written down here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from processing.bands_agriclip import BandStack, _ground_sample_distance, from_array
from processing.errors import AgriClipError, named
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.sensors_agriclip import SENSORS, find_channel, get_sensor

try:
    import rasterio
    from PIL import Image as Picture
    from rasterio.io import MemoryFile
    from rasterio.warp import transform as warp_points
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Reading images needs rasterio and Pillow: pip install 'agriclip[maps]'.") from error

__all__ = ["PHOTOGRAPHS", "WHITE", "Image", "ImageRef", "physical", "read_codes", "read_image", "to_rgb"]

PHOTOGRAPHS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
WHITE = 0.3  # surface reflectance that a model of photographs sees as 255: farmland lies below it


@dataclass(frozen=True)
class ImageRef:
    """Where an image is.

    Attributes:
        key: Its name: the path from the folder, or the number in a data set.
        source: Path, bytes of a file, an array (C, H, W), or a function that returns one of them.
        group: Folder that holds it, where folders are classes.
        columns: Returns the further columns of a data set (label, captions, ...).
        window: Row, column, height and width of the part that is meant.
    """

    key: str
    source: Any
    group: str | None = None
    columns: Callable[[], dict[str, Any]] | None = None
    window: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Image:
    """One image, read.

    Attributes:
        key: Its name.
        stack: Its bands as stored; named where it is known what they are.
        sensor: Name of the sensor.
        photograph: Whether it is an 8-bit RGB picture.
        place: Longitude and latitude of its middle, or local coordinates; None where unknown.
        geographic: Whether `place` is in degrees.
        edge: Its height in the units of `place`.
    """

    key: str
    stack: BandStack
    sensor: str
    photograph: bool
    place: tuple[float, float] | None = None
    geographic: bool = False
    edge: float = math.nan

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.stack.values.shape[-2]), int(self.stack.values.shape[-1])


def read_image(
    ref: ImageRef, sensor: str | None = None, bands: Sequence[str] | None = None, default: str | None = None
) -> Image:
    """Read one image and decide what its bands are.

    Args:
        ref: Where it is.
        sensor: Name of its sensor; by default the file says.
        bands: Names of its bands in file order.
        default: Sensor to prefer where the file leaves several open.

    Raises:
        AgriClipError: It is not known what the bands are.
        OSError: It cannot be read.
    """
    source = ref.source() if callable(ref.source) else ref.source
    if isinstance(source, np.ndarray | list):
        stack = from_array(np.asarray(source), 0, "channels_first")
        return _described(ref, replace(stack, source=f"'{ref.key}'"), sensor, bands, default, "", False)
    photograph = isinstance(source, str) and source.lower().endswith(PHOTOGRAPHS)
    if isinstance(source, bytes):
        photograph = not source.startswith((b"II*", b"MM\x00*", b"II+", b"MM\x00+"))
    if photograph:
        return _photograph(ref, source)
    holder = MemoryFile(source) if isinstance(source, bytes) else None
    with holder.open() if holder else rasterio.open(source) as raster:
        window = Window(0, 0, raster.width, raster.height)
        if ref.window is not None:
            row, column, height, width = ref.window
            window = Window(column, row, width, height)
        values = torch.from_numpy(raster.read(window=window).astype(np.float32))
        valid = torch.from_numpy(raster.read_masks(window=window) > 0)
        scales = [(float(s), float(o)) for s, o in zip(raster.scales, raster.offsets, strict=True)]
        colours = [colour.name for colour in raster.colorinterp]
        eight_bit = set(raster.dtypes) == {"uint8"} and raster.count in (3, 4)
        names = [name or "" for name in raster.descriptions]
        stack = BandStack(
            values,
            valid,
            names if len(set(names)) == len(names) or not any(names) else [""] * len(names),
            scales if any(pair != (1.0, 0.0) for pair in scales) else None,
            _ground_sample_distance(raster),
            f"'{ref.key}'",
            colours.index("alpha") if "alpha" in colours else None,
        )
        place, geographic, edge = _placed(raster, window)
        tag = str(raster.tags().get("SENSOR", ""))
    image = _described(ref, stack, sensor, bands, default, tag, eight_bit and not any(stack.names))
    return replace(image, place=place, geographic=geographic, edge=edge)


def _photograph(ref: ImageRef, source: str | bytes) -> Image:
    with Picture.open(source if isinstance(source, str) else io.BytesIO(source)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    if ref.window is not None:
        row, column, height, width = ref.window
        pixels = pixels[row : row + height, column : column + width]
    stack = from_array(pixels, 3, "channels_last")
    stack = replace(stack, names=["red", "green", "blue"], source=f"'{ref.key}'")
    return Image(ref.key, stack, "rgb", True)


def _placed(raster: Any, window: Window) -> tuple[tuple[float, float] | None, bool, float]:
    """Middle of a window as longitude and latitude, or as the file's own coordinates; and its height in these."""
    column, row = window.col_off + window.width / 2, window.row_off + window.height / 2
    a, b, c, d, e, f = raster.transform[:6]
    middle = (a * column + b * row + c, d * column + e * row + f)
    edge = abs(e) * window.height or math.nan
    if raster.crs is not None:
        longitude, latitude = warp_points(raster.crs, "EPSG:4326", [middle[0]], [middle[1]])
        metres = 1.0 if raster.crs.is_geographic else raster.crs.linear_units_factor[1] / 111_320.0
        return (float(longitude[0]), float(latitude[0])), True, float(edge * metres)
    if raster.transform.is_identity:
        return None, False, math.nan
    return (float(middle[0]), float(middle[1])), False, float(edge)


def _described(
    ref: ImageRef,
    stack: BandStack,
    sensor: str | None,
    bands: Sequence[str] | None,
    default: str | None,
    tag: str,
    eight_bit: bool,
) -> Image:
    """Name the bands of an image."""
    count = stack.values.shape[0]
    if bands is not None:
        if len(bands) != count:
            raise AgriClipError(f"{len(bands)} bands are named but {stack.source} has {count}; name each of them.")
        stack = replace(stack, names=list(bands))
    photograph = False
    if sensor is None and eight_bit and bands is None:
        stack = stack.without_alpha(3)
        sensor, photograph = "rgb", stack.values.shape[0] == 3
        if photograph:
            stack = replace(stack, names=["red", "green", "blue"])
    chosen = sensor or _guess_sensor(stack, tag, default)
    spec = get_sensor(chosen)
    if not any(stack.names) and stack.values.shape[0] == len(spec.channels):
        stack = replace(stack, names=spec.channel_names)
    floats = bool((stack.values != stack.values.round()).any())
    scaled = any(channel.scale <= 0.01 for channel in spec.channels)
    if stack.scales is None and scaled and not photograph and floats and float(stack.values.abs().max()) <= 2.0:
        # Fractions up to 2 are reflectance already.
        stack = replace(stack, scales=[(1.0, 0.0)] * stack.values.shape[0])
    return Image(ref.key, stack, spec.name, photograph or (spec.name == "rgb" and eight_bit))


def _guess_sensor(stack: BandStack, tag: str, default: str | None) -> str:
    """The sensor that names or number of bands speak for."""
    names = [name for name in stack.names if name]
    count = stack.values.shape[0]
    tagged = [name for name in SENSORS if tag and tag.lower().replace("-", "_").startswith(name)]
    order = [*tagged, *([default] if default else []), "landsat8", "sentinel2_l2a", *SENSORS]
    if len(names) == count:
        for name in order:
            if _knows(name, tuple(names)):
                return name
    numbered = {13: "sentinel2_l1c", 12: "sentinel2_l2a"}
    if tagged:
        return tagged[0]
    if default is not None and len(get_sensor(default).channels) == count:
        return default
    if count in numbered:
        return numbered[count]
    said = f"bands called {named(names)}" if names else f"{count} bands without names"
    raise AgriClipError(
        f"It is not known what {stack.source} holds ({said}); give --sensor, or --bands with their names in order."
    )


@lru_cache(maxsize=256)
def _knows(sensor: str, names: tuple[str, ...]) -> bool:
    try:
        return len({find_channel(sensor, name).name for name in names}) == len(names)
    except ValueError:
        return False


@lru_cache(maxsize=1)
def _physics() -> AgriClipImageProcessor:
    return AgriClipImageProcessor(do_normalize=False)


def physical(image: Image, channels: Sequence[str] | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Physical values of an image (C, H, W), such as reflectance, and where they were measured.

    Args:
        image: The image.
        channels: Names of the bands wanted, in order; all by default.

    Raises:
        AgriClipError: It has no such bands.
    """
    options = {} if channels is None else {"channels": list(channels)}
    try:
        batch = _physics()([image.stack], sensor=image.sensor, return_tensors="np", **options)
    except ValueError as error:
        raise AgriClipError(str(error)) from error
    return batch["pixel_values"][0, 0], batch["pixel_mask"][0, 0] > 0


def to_rgb(image: Image) -> NDArray[np.uint8]:
    """An image as a model of photographs sees it (H, W, 3), uint8.

    A photograph is left as it is. Of any other image the bands named red, green and blue are taken, as reflectance x
    255 / 0.3, cut to 0..255; what was not measured is black.

    Raises:
        AgriClipError: It has no red, green and blue band.
    """
    if image.photograph:
        return image.stack.values.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    try:
        values, known = physical(image, ("red", "green", "blue"))
    except AgriClipError as error:
        raise AgriClipError(
            f"A model of RGB photographs needs red, green and blue, but of {image.stack.source}: {error}"
        ) from error
    shown = np.where(known, values, 0.0) * (255.0 / (1.0 if image.sensor == "rgb" else WHITE))
    return np.clip(np.round(shown), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def read_codes(path: str | Path, window: tuple[int, int, int, int] | None = None) -> NDArray[np.int64]:
    """Class codes of a mask (H, W), -1 where it has no data.

    Raises:
        RasterioError: It cannot be read.
    """
    with rasterio.open(path) as raster:
        part = None if window is None else Window(window[1], window[0], window[3], window[2])
        codes = raster.read(1, window=part).astype(np.int64)
        codes[raster.read_masks(1, window=part) == 0] = -1
    return codes
