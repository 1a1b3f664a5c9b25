"""Labels and rasters to what a study file names: the blocks `labels`, `predictors` and `scenarios`, ready to paste.

Three choices: a block in the registry names files as their source does, and is printed only with files that are
there; double crops are counted per cell and never resampled, because a share of pixels is what a study learns from;
and tables of R become GeoTIFFs once, so that nothing later needs R.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import AgriClipError, nearest
from ..whole_files import finished
from .r_data import read_rda, to_grid
from .tile_folder import files_in, import_rasterio, require

# Cropland Data Layer: crops proper, without pasture, forest, water, wetland, developed land and idle cropland (61).
CROP_CODES = (*range(1, 61), *range(66, 78), *range(204, 255))
_FILE_KEYS = ("file", "table", "baseline", "future", "like")
_MAPS_OF_FILES = ("delta", "replace")


def resolve_block(block: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Return a study block whose files are given as they lie below a folder.

    Args:
        block: Block of the registry; a file is named by its base name, or by the end of its path.
        root: Folder with the files; becomes `data` of the block.

    Raises:
        AgriClipError: A file is not there.
    """
    there = files_in(root, "*")

    def place(name: str) -> str:
        found = [path for path in there if path == root / name or path.as_posix().endswith("/" + name)]
        if not found:
            raise AgriClipError(
                f"The file '{name}' is not below '{root}'; {nearest(Path(name).name, (p.name for p in there))}"
            )
        return found[0].relative_to(root).as_posix()

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            named = key in _MAPS_OF_FILES
            return {
                place(part) if named else part: walk(item, "file" if named else part) for part, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [walk(item, key) for item in value]
        return place(value) if key in _FILE_KEYS and isinstance(value, str) else value

    return {"data": str(root), **walk(block)}


def snippet(block: Mapping[str, Any]) -> str:
    """A block as YAML, to paste into a study file."""
    return yaml.safe_dump(dict(block), sort_keys=False, allow_unicode=True, width=110)


def r_tables(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Tables and rasters in .rda files to GeoTIFFs in degrees, one a file.

    Args:
        root: Folder with the .rda files.
        output: Folder to write into.
        options: `rename`, the name of the GeoTIFF for each .rda; `drop`, an ending to leave away from names.
    """
    rasterio = import_rasterio()
    from rasterio.transform import from_origin

    files = files_in(root, "*.rda")
    require(files, "'.rda' file", root)
    for file in files:
        for name, thing in read_rda(file).items():
            grid = to_grid(thing, name)
            stem = options.get("rename", {}).get(file.name, file.stem.removesuffix(options.get("drop", "")))
            values = grid.values
            with (
                finished(output / f"{stem}.tif") as temporary,
                rasterio.open(
                    temporary,
                    "w",
                    driver="GTiff",
                    count=len(values),
                    height=values.shape[1],
                    width=values.shape[2],
                    dtype="float32",
                    nodata=float("nan"),
                    crs="EPSG:4326",
                    transform=from_origin(grid.west, grid.north, *grid.step),
                    compress="deflate",
                    predictor=3,
                    tiled=True,
                ) as out,
            ):
                out.write(values)
                out.descriptions = grid.names


def cdl_counts(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Cropland Data Layers to a table of counts per square cell, as labels of the kind `share`.

    Args:
        root: Unpacked data: one `YYYY_30m_cdls.tif` a year, all on one grid; the years are pooled.
        output: Folder to write `labels.csv` into: `id, x, y` (centre, in the CRS of the layer), `crop_total`, and one
            column for each of `options["columns"]`.
        options: `cell`, the edge of a cell in pixels; `columns`, the codes that each column counts.

    Raises:
        AgriClipError: The layers lie on different grids.
    """
    rasterio = import_rasterio()
    from rasterio.windows import Window

    files = files_in(root, "*_30m_cdls.tif")
    require(files, "'YYYY_30m_cdls.tif'", root)
    edge = int(options["cell"])
    columns = {"crop_total": CROP_CODES, **options["columns"]}
    tables = {}
    for name, codes in columns.items():
        tables[name] = np.zeros(256, dtype=np.uint8)
        tables[name][list(codes)] = 1
    counts: np.ndarray[Any, Any] | None = None
    grid: tuple[Any, Any] | None = None
    for file in files:
        with rasterio.open(file) as source:
            down, across = -(-source.height // edge), -(-source.width // edge)
            if grid is None:
                grid = (source.transform, source.shape)
                counts = np.zeros((len(columns), down, across), dtype=np.int64)
            assert counts is not None
            if grid != (source.transform, source.shape):
                raise AgriClipError(f"'{file}' lies on another grid than '{files[0]}'; count their years apart.")
            starts = np.arange(0, source.width, edge)
            for i in range(down):
                window = Window(0, i * edge, source.width, min(edge, source.height - i * edge))
                pixels = source.read(1, window=window).astype(np.uint8)
                for j, table in enumerate(tables.values()):
                    per_column = table[pixels].sum(axis=0, dtype=np.int64)
                    counts[j, i] += np.add.reduceat(per_column, starts)
            transform = source.transform
    assert counts is not None
    output.mkdir(parents=True, exist_ok=True)
    with finished(output / "labels.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "x", "y", *columns])
        for i, j in np.argwhere(counts[0] > 0):
            x, y = transform * ((j + 0.5) * edge, (i + 0.5) * edge)
            writer.writerow([f"{i}_{j}", round(x, 3), round(y, 3), *counts[:, i, j].tolist()])


__all__ = ["CROP_CODES", "cdl_counts", "r_tables", "resolve_block", "snippet"]
