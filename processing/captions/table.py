"""A folder of tiles and masks to a table of captions that training reads.

Two choices: tiles are read one after another and each row is written when it is known, under a temporary name until
the last; and what a caption needs is taken from the tile's own file as far as it is there (band names, scale, size of
a pixel, date, latitude of a georeferenced tile), so that options are only for what the file does not say.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from processing.bands_agriclip import _ground_sample_distance
from processing.captions.facts import NODATA, TileFacts, describe
from processing.captions.writing import write_captions
from processing.errors import AgriClipError, named, nearest
from processing.sensors_agriclip import SENSORS
from processing.whole_files import finished

try:
    import rasterio
    import yaml
    from rasterio.errors import RasterioError
    from rasterio.warp import transform as reproject
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("A table of captions needs rasterio; install it with: pip install 'agriclip[maps]'.") from error

METADATA = "metadata.jsonl"
_ENDINGS = (".tif", ".tiff")


@dataclass(frozen=True)
class CaptionTable:
    """What was written.

    Attributes:
        path: The table.
        tiles: Tiles with captions.
        captions: Captions in all.
        skipped: Tiles left out, each with the reason.
    """

    path: Path
    tiles: int
    captions: int
    skipped: tuple[tuple[str, str], ...]


def write_caption_table(
    folder: str | Path,
    classes: Mapping[int, str] | str | Path | None = None,
    *,
    masks: str | Path | None = None,
    output: str | Path | None = None,
    style: str | Sequence[str] = "mixed",
    count: int = 1,
    seed: int = 0,
    directions: bool = False,
    row_each: bool = False,
    date: str | None = None,
    latitude: float | None = None,
    gsd: float | None = None,
    sensor: str | None = None,
    dem: str | Path | None = None,
    nodata: Sequence[int] = NODATA,
    progress: Callable[[int, int], None] | None = None,
) -> CaptionTable:
    """Write captions for all tiles of a folder.

    Args:
        folder: A folder of GeoTIFFs; or one with the folders `images` and `masks`; or one with `metadata.jsonl`, whose
            rows say `file_name` and `mask_file` and keep all else they say.
        classes: Name of each code of the masks, or a file of them (see `read_classes`); the Cropland Data Layer if
            None.
        masks: Folder of the masks, by the names of the images.
        output: A folder for `metadata.jsonl`, or a `.csv` or `.jsonl` file; `folder` itself if None.
        style: As of `write_captions`.
        count: Captions a tile.
        seed: Which words; each tile draws its own.
        directions: Whether to name compass directions; false once a tile is mirrored or turned in training.
        row_each: Write a row for each caption, instead of one row a tile with the first caption as `text` and all of
            them as `captions`. A CSV always has a row for each.
        date: Date of all tiles, where neither their rows nor the tag `DATE` say it.
        latitude: Degrees north of all tiles, where they are not georeferenced.
        gsd: Metres per pixel, where the files do not say it.
        sensor: Name of a known sensor, for names and scale of bands where the files have none.
        dem: Folder of elevation in metres, by the names of the images.
        nodata: Codes that mean nothing is known.
        progress: Called with the tiles done and their number.

    Raises:
        AgriClipError: There are no tiles or masks, a file cannot be read, or nothing could be told of any tile.
    """
    if sensor is not None and sensor not in SENSORS:
        raise AgriClipError(f"There is no sensor '{sensor}'; {nearest(sensor, SENSORS)}")
    root = Path(folder)
    names = read_classes(classes) if isinstance(classes, str | Path) else classes
    path = _target(root if output is None else Path(output))
    rows = _rows(root, None if masks is None else Path(masks))
    elevation = None if dem is None else Path(dem)
    skipped: list[tuple[str, str]] = []
    tiles = captions = 0
    with finished(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        write = _writer(file, path.suffix == ".csv")
        for done, row in enumerate(rows, 1):
            key = str(row["key"])
            try:
                facts = _describe(row, names, date, latitude, gsd, sensor, elevation, nodata)
            except _Unknown as reason:
                skipped.append((key, str(reason)))
            else:
                texts = write_captions(facts, style, count, f"{seed}/{key}", directions=directions)
                for line in _lines(row, facts, texts, path, row_each or path.suffix == ".csv"):
                    write(line)
                tiles, captions = tiles + 1, captions + len(texts)
            if progress is not None:
                progress(done, len(rows))
        if not tiles:
            reasons = named(dict.fromkeys(reason for _, reason in skipped), 2)
            raise AgriClipError(
                f"None of the {len(rows)} tiles in '{root}' can be described ({reasons}); check the masks."
            )
    return CaptionTable(path, tiles, captions, tuple(skipped))


def read_classes(path: str | Path) -> dict[int, str] | None:
    """Read a class table.

    Args:
        path: YAML or JSON that maps codes to names or lists the names of codes 0, 1, ...; or CSV whose first two
            columns are code and name, a line without a number being a heading; or the word `cdl`.

    Returns:
        Name of each code; None for the Cropland Data Layer.

    Raises:
        AgriClipError: There is no such file, or it is no class table.
    """
    if str(path) == "cdl":
        return None
    file = Path(path)
    if not file.is_file():
        raise AgriClipError(f"There is no class table '{file}'; give a file that maps codes to names, or `cdl`.")
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix.lower() == ".csv":
            pairs = [line[:2] for line in csv.reader(text.splitlines()) if len(line) > 1 and line[0].strip().isdigit()]
            found = {int(code): name.strip() for code, name in pairs if name.strip()}
        else:
            said = yaml.safe_load(text)
            listed = dict(enumerate(said)) if isinstance(said, list) else said
            found = {int(code): str(name) for code, name in listed.items() if name is not None}
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise AgriClipError(f"'{file}' is no class table ({error}); write lines such as `5: soybean`.") from error
    if not found:
        raise AgriClipError(f"'{file}' names no class; write lines such as `5: soybean`.")
    return found


class _Unknown(Exception):
    """Why a tile cannot be described, though others can."""


def _target(output: Path) -> Path:
    return output if output.suffix in (".csv", ".jsonl") else output / METADATA


def _rows(root: Path, masks: Path | None) -> list[dict[str, Any]]:
    """One row a tile: `key`, absolute `file_name` and `mask_file`, and whatever a metadata file says beside them."""
    if masks is None and (root / METADATA).is_file():
        rows = [
            json.loads(line) for line in (root / METADATA).read_text(encoding="utf-8").splitlines() if line.strip()
        ]
        for row in rows:
            if not row.get("file_name") or not row.get("mask_file"):
                raise AgriClipError(
                    f"A row of '{root / METADATA}' has no file_name or no mask_file; every tile needs both."
                )
            row.setdefault("key", os.path.splitext(_last(row["file_name"]))[0])
            files = row["file_name"] if isinstance(row["file_name"], list) else [row["file_name"]]
            row["file_name"] = [str(root / name) for name in files] if len(files) > 1 else str(root / files[0])
            row["mask_file"] = str(root / row["mask_file"])
        return rows
    images = root if masks is not None or not (root / "images").is_dir() else root / "images"
    masks = masks if masks is not None else root / "masks"
    for place in (images, masks):
        if not place.is_dir():
            raise AgriClipError(
                f"There is no folder '{place}'; give the folder of the images and that of their masks."
            )
    files = sorted(
        path for path in images.iterdir() if path.suffix.lower() in _ENDINGS and not path.name.startswith(".")
    )
    if not files:
        raise AgriClipError(f"The folder '{images}' has no GeoTIFF; give the folder that holds the images.")
    missing = [path.name for path in files if not (masks / path.name).is_file()]
    if missing:
        raise AgriClipError(
            f"{len(missing)} of {len(files)} images have no mask of their name in '{masks}' ({named(missing, 3)}); "
            "give each image its mask."
        )
    return [
        {"key": path.stem, "file_name": str(path.resolve()), "mask_file": str((masks / path.name).resolve())}
        for path in files
    ]


def _describe(
    row: Mapping[str, Any],
    classes: Mapping[int, str] | None,
    date: str | None,
    latitude: float | None,
    gsd: float | None,
    sensor: str | None,
    dem: Path | None,
    nodata: Sequence[int],
) -> TileFacts:
    """Facts of the tile of a row; of several dates the last is described."""
    window = row.get("window")
    image, said = _read_image(_last(row["file_name"]), window, row.get("sensor") or sensor, row.get("bands"))
    codes = _read(row["mask_file"], window)[0][0]
    heights = None
    if dem is not None:
        file = dem / os.path.basename(_last(row["file_name"]))
        if not file.is_file():
            raise AgriClipError(f"There is no elevation '{file}'; give each tile its own, or leave out the folder.")
        heights = _read(str(file), window)[0][0].astype(np.float64)
    dates = row.get("date")
    when = (dates[-1] if isinstance(dates, list) and dates else dates) or date or said.date
    if not _any_known(codes, classes, nodata):
        raise _Unknown("no pixel of the mask is known")
    try:
        return describe(
            codes,
            classes,
            image,
            said.bands if image is not None else None,
            row.get("gsd") or said.gsd or gsd,
            when,
            said.latitude if said.latitude is not None else latitude,
            heights,
            nodata=nodata,
        )
    except AgriClipError as error:
        raise AgriClipError(f"The tile '{row['key']}' cannot be described: {error}") from error


@dataclass(frozen=True)
class _Said:
    """What a file says of itself."""

    bands: tuple[str, ...]
    gsd: float | None
    date: str | None
    latitude: float | None


def _read(path: str, window: Sequence[int] | None) -> tuple[np.ma.MaskedArray[Any, Any], Any]:
    """Bands (C, H, W), masked, within a window of row, column, height and width; and the open file's description."""
    try:
        with rasterio.open(path) as source:
            part = None if window is None else Window(window[1], window[0], window[3], window[2])
            values = source.read(window=part)
            hidden = source.read_masks(window=part) == 0
            centre = (source.bounds.left + source.bounds.right) / 2, (source.bounds.top + source.bounds.bottom) / 2
            latitude = None
            if source.crs is not None:
                latitude = float(reproject(source.crs, "EPSG:4326", [centre[0]], [centre[1]])[1][0])
            said = {
                "names": [name or "" for name in source.descriptions],
                "scales": [(float(s), float(o)) for s, o in zip(source.scales, source.offsets, strict=True)],
                "gsd": _ground_sample_distance(source),
                "date": source.tags().get("DATE"),
                "latitude": latitude,
            }
    except RasterioError as error:
        raise AgriClipError(f"'{path}' cannot be read as a raster ({error}); mend it or take it away.") from error
    return np.ma.masked_array(values, hidden), said


def _read_image(
    path: str, window: Sequence[int] | None, sensor: str | None, bands: Sequence[str] | None
) -> tuple[NDArray[np.float64] | None, _Said]:
    """Reflectance (C, H, W), NaN where not measured; None where red and near infrared are not known to be there."""
    values, said = _read(path, window)
    names, scales = said["names"], said["scales"]
    spec = SENSORS.get(sensor) if sensor else None
    if not all(names):
        if bands and len(bands) == len(names):
            names = list(bands)
        elif spec is not None and len(spec.channels) == len(names):
            names = spec.channel_names
    # A scale in the file goes before the sensor's own.
    if spec is not None and all(scale == (1.0, 0.0) for scale in scales):
        known = {alias.lower(): c for c in spec.channels for alias in (c.name, *c.aliases)}
        if all(name.lower() in known for name in names):
            scales = [(known[name.lower()].scale, known[name.lower()].offset) for name in names]
    lower = {name.lower() for name in names}
    told = _Said(tuple(names), said["gsd"], said["date"], said["latitude"])
    if not (lower & {"red", "b04"} and lower & {"nir", "nir08", "b08", "b8a", "b08a"}):
        return None, told
    factor, offset = (np.array(part)[:, None, None] for part in zip(*scales, strict=True))
    return np.ma.filled(values.astype(np.float64) * factor + offset, np.nan), told


def _any_known(codes: Any, classes: Mapping[int, str] | None, nodata: Sequence[int]) -> bool:
    unknown = sorted(set(nodata) - set(classes or ()))
    return bool((~np.isin(np.ma.filled(codes, 0), unknown) & ~np.ma.getmaskarray(codes)).any())


def _lines(
    row: Mapping[str, Any], facts: TileFacts, texts: Sequence[str], path: Path, row_each: bool
) -> Iterator[dict[str, Any]]:
    """Rows of the table for one tile, its files named from the table's folder where they lie in it."""
    known = {name: value for name, value in row.items() if name not in ("text", "captions")}
    files = row["file_name"]
    known["file_name"] = [_from(path, one) for one in files] if isinstance(files, list) else _from(path, files)
    known["mask_file"] = _from(path, row["mask_file"])
    if facts.date is not None and not known.get("date"):
        known["date"] = facts.date.isoformat()
    if facts.gsd is not None and not known.get("gsd"):
        known["gsd"] = facts.gsd
    if not row_each:
        yield {**known, "text": texts[0], "captions": list(texts)}
        return
    for place, text in enumerate(texts):
        yield {**known, "key": f"{row['key']}.{place}" if place else row["key"], "text": text}


def _writer(file: Any, as_csv: bool) -> Callable[[Mapping[str, Any]], None]:
    if not as_csv:
        return lambda line: file.write(json.dumps(line, ensure_ascii=False) + "\n")
    table = csv.DictWriter(file, ("key", "file_name", "mask_file", "date", "text"), extrasaction="ignore")
    table.writeheader()
    return table.writerow


def _from(path: Path, file: str) -> str:
    folder = path.parent.resolve()
    found = Path(file).resolve()
    return found.relative_to(folder).as_posix() if found.is_relative_to(folder) else str(found)


def _last(files: str | Sequence[str]) -> str:
    return files if isinstance(files, str) else files[-1]


__all__ = ["METADATA", "CaptionTable", "read_classes", "write_caption_table"]
