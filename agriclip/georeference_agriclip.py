"""Where the pixels of an image lie: read before its pixels are, and written beside what was found in them.

Reading and writing rasters needs rasterio; arrays, tensors and photographs have no place and need nothing.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import get_session

from .bands_agriclip import read_raster

try:
    import rasterio
except ImportError:  # arrays, tensors and photographs work without it
    rasterio = None

# Pixels that are read at once: more belong to a tool that maps by windows.
MAX_PIXELS = 2048 * 2048


def read_georeference(image: Any, max_pixels: int = MAX_PIXELS) -> dict[str, Any] | None:
    """Where the pixels of a raster file lie: `crs` (WKT), `transform` (a, b, c, d, e, f), `height`, `width`.

    Args:
        image: A path; anything else has no place.
        max_pixels: Most pixels (rows times columns) that are accepted.

    Returns:
        None where there is no file, no rasterio or no CRS.

    Raises:
        ValueError: The raster is larger; said before its pixels are read.
    """
    if not isinstance(image, str | os.PathLike):
        shape = getattr(image, "shape", None)
        if shape is not None and len(shape) >= 2 and int(np.prod(shape[-2:])) > max_pixels:
            raise ValueError(_too_large("The image", shape[-1], shape[-2], max_pixels))
        return None
    path = os.fspath(image)
    if rasterio is None or _is_address(path) or not os.path.isfile(path):
        return None  # the processor says what is wrong with it
    try:
        with rasterio.open(path) as source:
            if source.width * source.height > max_pixels:
                raise ValueError(_too_large(f"'{path}'", source.width, source.height, max_pixels))
            if source.crs is None:
                return None
            size = {"height": source.height, "width": source.width}
            return {"crs": source.crs.to_wkt(), "transform": [float(v) for v in source.transform[:6]], **size}
    except rasterio.errors.RasterioError:
        return None


def _too_large(what: str, width: int, height: int, limit: int) -> str:
    return (
        f"{what} has {width} x {height} pixels, more than {limit}; read a window of it, map it with `agriclip "
        "segment`, or raise max_pixels."
    )


def _is_address(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def fetched(image: Any) -> Any:
    """A GeoTIFF of the web as its bands; anything else as it is."""
    if not (isinstance(image, str) and _is_address(image) and image.lower().split("?")[0].endswith((".tif", ".tiff"))):
        return image
    if rasterio is None:
        raise ValueError(f"Reading '{image}' needs rasterio; install it with: pip install rasterio.")
    answer = get_session().get(image, follow_redirects=True)
    if answer.status_code != 200:
        raise ValueError(f"'{image}' answers with status {answer.status_code}; check the address.")
    with rasterio.MemoryFile(answer.content, ext=".tif") as file:
        return read_raster(file.name)


def write_geotiff(found: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """Write what [`AgriClipImageSegmentationPipeline`] found as a raster: a float32 band of probability a query.

    Args:
        found: The list of one image.
        path: Where to; written under another name first, and renamed.

    Returns:
        The path.

    Raises:
        ValueError: There is nothing to write, or rasterio is missing.
    """
    if rasterio is None:
        raise ValueError("Writing a GeoTIFF needs rasterio; install it with: pip install rasterio.")
    if not found:
        raise ValueError("There is no mask to write.")
    place = found[0]["georeference"] or {}
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial.tif")
    height, width = found[0]["probability"].shape
    profile = {"driver": "GTiff", "dtype": "float32", "count": len(found), "height": height, "width": width}
    profile |= {"nodata": math.nan, "compress": "deflate", "predictor": 3, "crs": place.get("crs")}
    if place:
        profile["transform"] = rasterio.Affine(*place["transform"])
    try:
        with rasterio.open(temporary, "w", **profile) as raster:
            for band, one in enumerate(found, start=1):
                raster.write(one["probability"], band)
                raster.set_band_description(band, one["label"])
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def resized(georeference: dict[str, Any] | None, height: int, width: int) -> dict[str, Any] | None:
    """The same place on a grid of other rows and columns."""
    if georeference is None:
        return None
    a, b, c, d, e, f = georeference["transform"]
    across, down = georeference["width"] / width, georeference["height"] / height
    scaled = [a * across, b * down, c, d * across, e * down, f]
    return {"crs": georeference["crs"], "transform": scaled, "height": height, "width": width}


__all__ = ["MAX_PIXELS", "fetched", "read_georeference", "resized", "write_geotiff"]
