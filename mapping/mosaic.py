"""A scene of one raster or of many tiles, as one raster.

Two choices define this file. Tiles are laid side by side in a virtual raster (VRT), so that nothing is read or copied
before its window is mapped. And what differs between tiles (CRS, pixel size, bands, scale, nodata, units) is refused
instead of being warped or guessed, because a map keeps the pixels of its scene.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from processing.errors import AgriClipError
from processing.rasters import open_raster

__all__ = ["build_mosaic", "open_scene"]

_ENDINGS = (".tif", ".tiff", ".vrt")
_GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}


@contextmanager
def open_scene(images: str | Path | Sequence[str | Path]) -> Iterator[Path]:
    """One raster for whatever a scene is: itself, or a virtual raster of its tiles that exists meanwhile.

    Raises:
        AgriClipError: There are no tiles, or they do not fit together.
    """
    if isinstance(images, str | Path):
        folder = Path(images)
        files = [folder]
        if folder.is_dir():
            files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
            if not files:
                raise AgriClipError(f"There are no tiles ({', '.join(_ENDINGS)}) in the folder '{folder}'.")
    else:
        files = [Path(image) for image in images]
        if not files:
            raise AgriClipError("No image was given; name a raster, several tiles or a folder of tiles.")
    if len(files) == 1:
        yield files[0]
        return
    with tempfile.TemporaryDirectory() as place:
        mosaic = Path(place) / "mosaic.vrt"
        mosaic.write_text(build_mosaic(files))
        yield mosaic


def build_mosaic(files: Sequence[str | Path]) -> str:
    """A GDAL virtual raster (VRT) that lays tiles side by side; where they overlap the later one is seen.

    Args:
        files: Tiles of one CRS, pixel size, type and set of bands, on one raster of pixels.

    Returns:
        Its XML. Holes between the tiles are nodata.

    Raises:
        AgriClipError: A tile differs from the first.
    """
    tiles: list[tuple[str, int, int, int, int, tuple[int, int], bool]] = []
    first: dict[str, Any] = {}
    for file in files:
        with open_raster(file) as source:
            t = source.transform
            said = {
                "CRS": source.crs,
                "pixel size": (t.a, t.b, t.d, t.e),
                "bands": (source.descriptions, source.dtypes),
                "scale and offset": (source.scales, source.offsets),
                "nodata value": tuple(map(repr, source.nodatavals)),
                "units": source.units,
            }
            first = first or {**said, "origin": (t.c, t.f)}
            for what, value in said.items():
                if value != first[what]:
                    raise AgriClipError(f"'{file}' and '{files[0]}' differ in {what}; give tiles that are cut alike.")
            column, row = (t.c - first["origin"][0]) / t.a, (t.f - first["origin"][1]) / t.e
            if max(abs(column - round(column)), abs(row - round(row))) > 1e-3 or t.b or t.d:
                raise AgriClipError(f"'{file}' does not lie on the pixels of '{files[0]}'; warp it onto them first.")
            flags = {flag.name for band in source.mask_flag_enums for flag in band}
            masked = bool(flags - {"all_valid"})
            place = (round(column), round(row), source.width, source.height)
            tiles.append((str(Path(file).absolute()), *place, source.block_shapes[0], masked))
    left, top = min(tile[1] for tile in tiles), min(tile[2] for tile in tiles)
    width = max(tile[1] + tile[3] for tile in tiles) - left
    height = max(tile[2] + tile[4] for tile in tiles) - top
    return _mosaic_xml(
        first, [(tile[0], tile[1] - left, tile[2] - top, *tile[3:]) for tile in tiles], (left, top), (width, height)
    )


def _mosaic_xml(first: dict[str, Any], tiles: list[Any], corner: tuple[int, int], size: tuple[int, int]) -> str:
    root = ElementTree.Element("VRTDataset", rasterXSize=str(size[0]), rasterYSize=str(size[1]))
    if first["CRS"] is not None:
        ElementTree.SubElement(root, "SRS").text = first["CRS"].to_wkt()
    a, _, _, e = first["pixel size"]
    x, y = first["origin"][0] + a * corner[0], first["origin"][1] + e * corner[1]
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in (x, a, 0, y, 0, e))
    names, dtypes = first["bands"]
    for number, (name, dtype) in enumerate(zip(names, dtypes, strict=True), start=1):
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType=_GDAL_TYPES[dtype], band=str(number))
        if name:
            ElementTree.SubElement(band, "Description").text = name
        nodata = first["nodata value"][number - 1]
        if nodata != "None":
            ElementTree.SubElement(band, "NoDataValue").text = nodata
        for key, value in zip(
            ("Scale", "Offset"), (part[number - 1] for part in first["scale and offset"]), strict=True
        ):
            ElementTree.SubElement(band, key).text = repr(value)
        for tile in tiles:
            _add_source(band, tile, str(number), nodata)
    if "None" in first["nodata value"]:
        # No number says what was not measured, so a mask says it: that of the tiles, and nothing between them.
        mask = ElementTree.SubElement(ElementTree.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        for tile in tiles:
            _add_source(mask, tile, "mask,1", "None")
    return ElementTree.tostring(root, encoding="unicode")


def _add_source(band: Any, tile: Any, number: str, nodata: str) -> None:
    path, column, row, width, height, block, masked = tile
    source = ElementTree.SubElement(band, "ComplexSource" if nodata != "None" or masked else "SimpleSource")
    ElementTree.SubElement(source, "SourceFilename", relativeToVRT="0").text = path
    ElementTree.SubElement(source, "SourceBand").text = number
    shape = {"RasterXSize": width, "RasterYSize": height, "BlockXSize": block[1], "BlockYSize": block[0]}
    dtype = band.get("dataType")
    ElementTree.SubElement(source, "SourceProperties", {key: str(v) for key, v in shape.items()}, DataType=dtype)
    size = {"xSize": str(width), "ySize": str(height)}
    ElementTree.SubElement(source, "SrcRect", xOff="0", yOff="0", **size)
    ElementTree.SubElement(source, "DstRect", xOff=str(column), yOff=str(row), **size)
    if nodata != "None":
        ElementTree.SubElement(source, "NODATA").text = nodata
    elif masked:
        ElementTree.SubElement(source, "UseMaskBand").text = "true"
