"""Multispectral sources to tiles: bands in separate files, series in arrays, whole scenes with masks.

Three choices: every GeoTIFF that is written names its bands, so the order of a source is stated here once; a date is
one file, as training expects; and a code that a source calls "no data" or "void" becomes the mask's nodata value,
which is not scored, while all other codes stay those of the source.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AgriClipError
from .tile_folder import TileFolder, files_in, import_rasterio, require

PASTIS_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
PASTIS_CLASSES = (
    "background", "meadow", "soft winter wheat", "corn", "winter barley", "winter rapeseed", "spring barley",
    "sunflower", "grapevine", "beet", "winter triticale", "winter durum wheat", "fruits, vegetables, flowers",
    "potatoes", "leguminous fodder", "soybeans", "orchard", "mixed cereal", "sorghum", "void",
)  # fmt: skip
HLS_BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
CROP_CLASSES = (
    "no data", "natural vegetation", "forest", "corn", "soybeans", "wetlands", "developed or barren", "open water",
    "winter wheat", "alfalfa", "fallow or idle cropland", "cotton", "sorghum", "other",
)  # fmt: skip
BIGEARTHNET_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_AG_NET = re.compile(r"^lc8_(\d{4})(\d{3})_(\d+)_(\d+)_(\d+)\.tif$")
_CHIP = re.compile(r"^(chip_\d+_\d+)_merged\.tif$")


def ag_net(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Ag-Net: one file a Landsat 8 band and tile to tiles of six named bands with a mask of CDL codes.

    Args:
        root: Unpacked data, with `input_32bit/lc8_YYYYDDD_ROW_COL_BAND.tif` and `target/cdl_YYYYDDD_ROW_COL.tif`.
        output: Folder of tiles to write. `block` is the square of `options["block"]` x `options["block"]` tiles that a
            tile lies in: neighbours touch, so they must be split by blocks.
        options: `folder` of the bands; `scale` from stored numbers to reflectance; `block` in tiles.
    """
    rasterio = import_rasterio()
    numbers = dict(zip(range(2, 8), HLS_BANDS, strict=True))  # Landsat 8: band 1 is coastal and is left out
    bands: dict[tuple[int, int, date], dict[int, Path]] = defaultdict(dict)
    for path in files_in(root, f"{options['folder']}/*.tif"):
        if match := _AG_NET.match(path.name):
            taken = date(int(match[1]), 1, 1) + timedelta(days=int(match[2]) - 1)
            bands[int(match[3]), int(match[4]), taken][int(match[5])] = path
    require(list(bands), f"'{options['folder']}/lc8_YYYYDDD_ROW_COL_BAND.tif'", root)
    targets = {path.name: path for path in files_in(root, "target/cdl_*.tif")}
    edge = int(options["block"])
    with TileFolder(output) as tiles:
        for (row, column, day), files in sorted(bands.items()):
            target = targets.get(f"cdl_{day:%Y%j}_{row}_{column}.tif")
            if target is None or not set(numbers) <= set(files):
                continue  # some tiles of the source lack a band or the target
            layers = []
            for number in numbers:
                with rasterio.open(files[number]) as source:
                    layers.append(source.read(1))
            with rasterio.open(target) as source:
                mask = source.read(1).astype(np.uint8)
            stem = f"{row:02d}_{column:02d}"
            stack = np.stack(layers)
            name = tiles.raster(f"images/{stem}.tif", stack, HLS_BANDS, scale=options["scale"])
            tiles.row(
                name,
                mask_file=tiles.raster(f"masks/{stem}.tif", mask, ["cdl"]),
                date=day.isoformat(),
                block=f"{row // edge}_{column // edge}",
                sensor="landsat8",
                bands=list(HLS_BANDS),
                gsd=30.0,
            )


def tile_pairs(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Folders `images` and `masks` with the same file names to tiles, the files as they are.

    Args:
        root: Folder with the two.
        output: Folder of tiles to write.
        options: `images`, `masks`, `sensor`, `bands`, `date`, `gsd`; `block`, where names are `ROW_COL.tif`.
    """
    images = files_in(root, f"{options.get('images', 'images')}/*.tif")
    require(images, f"'{options.get('images', 'images')}/*.tif'", root)
    masks = {path.name: path for path in files_in(root, f"{options.get('masks', 'masks')}/*.tif")}
    edge = options.get("block")
    with TileFolder(output) as tiles:
        for path in images:
            block = None
            if edge:
                row, column = (int(part) for part in path.stem.split("_"))
                block = f"{row // edge}_{column // edge}"
            mask = masks.get(path.name)
            tiles.row(
                tiles.take(path, f"images/{path.name}"),
                mask_file=tiles.take(mask, f"masks/{path.name}") if mask else None,
                block=block,
                **{key: options.get(key) for key in ("sensor", "bands", "date", "gsd")},
            )


def paired_tiles(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """One folder a modality with the same file names (TerraMind) to tiles: one modality as image, one as mask.

    Args:
        root: Folder with the modalities.
        output: Folder of tiles to write.
        options: `image`, `mask` (names of folders), `sensor`, `bands`, `classes`, `nodata` (code that means nothing).
    """
    rasterio = import_rasterio()
    images = files_in(root, f"{options['image']}/*.tif")
    require(images, f"'{options['image']}/*.tif'", root)
    masks = {path.name: path for path in files_in(root, f"{options['mask']}/*.tif")}
    with TileFolder(output) as tiles:
        tiles.classes({int(code): str(name) for code, name in options.get("classes", {}).items()})
        for path in images:
            with rasterio.open(path) as source:
                name = tiles.raster(f"images/{path.name}", source.read(), options["bands"], profile=source.profile)
            mask = None
            if path.name in masks:
                with rasterio.open(masks[path.name]) as source:
                    mask = tiles.raster(
                        f"masks/{path.name}",
                        source.read(1),
                        ["class"],
                        nodata=options.get("nodata"),
                        profile=source.profile,
                    )
            # One place, one block: the other modalities of a place must not stand on the other side of a split.
            tiles.row(name, mask_file=mask, block=path.stem, sensor=options["sensor"], bands=list(options["bands"]))


def pastis(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """PASTIS(-R): Sentinel-2 series in arrays (T, 10, H, W) to tiles of one file a date with a crop mask.

    The five official folds are the blocks; the first official setting (train on folds 1-3, validate on 4, test on 5)
    is the split. The void label is not scored.

    Args:
        root: Unpacked data, with `metadata.geojson`, `DATA_S2/S2_ID.npy` and `ANNOTATIONS/TARGET_ID.npy`.
        output: Folder of tiles to write.
        options: `dates`, the most dates to keep of a series, evenly spaced; all if null.
    """
    found = files_in(root, "metadata.geojson")
    require(found, "'metadata.geojson'", root)
    base = found[0].parent
    void = PASTIS_CLASSES.index("void")
    with TileFolder(output) as tiles:
        tiles.classes(dict(enumerate(PASTIS_CLASSES)))
        for feature in json.loads(found[0].read_text(encoding="utf-8"))["features"]:
            said = feature["properties"]
            key = said["ID_PATCH"]
            arrays = [base / "DATA_S2" / f"S2_{key}.npy", base / "ANNOTATIONS" / f"TARGET_{key}.npy"]
            for path in arrays:
                if not path.is_file():
                    raise AgriClipError(f"'{found[0]}' names the patch {key}, but '{path}' is not there; unpack all.")
            series, target = (np.load(path, mmap_mode="r", allow_pickle=False) for path in arrays)
            listed = said["dates-S2"]
            days = list((json.loads(listed) if isinstance(listed, str) else listed).values())
            if len(days) != len(series):
                raise AgriClipError(
                    f"The patch {key} has {len(series)} images but {len(days)} dates; unpack it again."
                )
            kept = _spread(len(series), options.get("dates"))
            names = [tiles.raster(f"images/{key}/{days[i]}.tif", np.asarray(series[i]), PASTIS_BANDS) for i in kept]
            fold = int(said["Fold"])
            tiles.row(
                names,
                key=f"pastis_{key}",
                mask_file=tiles.raster(
                    f"masks/{key}.tif", np.asarray(target[0]).astype(np.uint8), ["crop"], nodata=void
                ),
                date=[_iso(days[i]) for i in kept],
                block=f"fold{fold}",
                split={4: "val", 5: "test"}.get(fold, "train"),
                sensor="sentinel2_l2a",
                bands=list(PASTIS_BANDS),
                gsd=10.0,
            )


def multi_temporal_crop(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """IBM/NASA multi-temporal crop classification: 18 stacked bands to tiles of three dates with a crop mask.

    Args:
        root: Unpacked data, with `chip_XXX_YYY_merged.tif` and `chip_XXX_YYY.mask.tif`; the split comes from
            `training_data.txt` and `validation_data.txt`, or from folders `training_chips` and `validation_chips`.
        output: Folder of tiles to write. The grid columns XXX and YYY of a chip tell where it lies; `block` is a
            square of `options["block"]` of them.
        options: `block`, in chips.
    """
    rasterio = import_rasterio()
    chips = [path for path in files_in(root, "chip_*_merged.tif") if _CHIP.match(path.name)]
    require(chips, "'chip_XXX_YYY_merged.tif'", root)
    masks = {path.name: path for path in files_in(root, "chip_*.mask.tif")}
    lists = {
        line.strip(): split
        for split, patterns in (("train", ("training_data.txt", "train_data.txt")), ("val", ("validation_data.txt",)))
        for file in files_in(root, *patterns)
        for line in file.read_text(encoding="utf-8").split()
    }
    days = _chip_dates(root)
    edge = int(options.get("block", 20))
    with TileFolder(output) as tiles:
        tiles.classes(dict(enumerate(CROP_CLASSES)))
        for path in chips:
            key = path.name.removesuffix("_merged.tif")
            mask = masks.get(f"{key}.mask.tif")
            if mask is None:
                raise AgriClipError(f"The chip '{path}' has no mask '{key}.mask.tif'; unpack all.")
            with rasterio.open(path) as source:
                values, profile, nodata = source.read(), source.profile, source.nodata
            if len(values) != 18:
                raise AgriClipError(f"The chip '{path}' has {len(values)} bands instead of 3 x 6; fetch it again.")
            with rasterio.open(mask) as source:
                codes = source.read(1).astype(np.uint8)
            folder = next((p.split("_")[0] for p in path.parts if p in ("training_chips", "validation_chips")), "")
            x, y = (int(part) for part in key.split("_")[1:])
            names = [
                tiles.raster(f"images/{key}/{i + 1}.tif", part, HLS_BANDS, nodata=nodata, profile=profile)
                for i, part in enumerate(np.split(values, 3))
            ]
            tiles.row(
                names,
                key=key,
                mask_file=tiles.raster(f"masks/{key}.tif", codes, ["crop"], nodata=0, profile=profile),
                date=days.get(key),
                block=f"{x // edge}_{y // edge}",
                split=lists.get(key) or {"training": "train", "validation": "val"}.get(folder),
                sensor="hls",
                bands=list(HLS_BANDS),
                gsd=30.0,
            )


def scene_masks(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Whole scenes with masks (GF-1 WFV) to windows, each written as a tile.

    Args:
        root: Unpacked data; the mask of a scene has its name and `options["mask"]` before the ending.
        output: Folder of tiles to write; the scene is the block.
        options: `mask`, `size` of a window in pixels, `bands`, `sensor`, `codes` (new code of each code in the mask;
            what is not listed becomes 255, not scored), `classes`, `gsd`.
    """
    rasterio = import_rasterio()
    from rasterio.windows import Window

    suffix, size = str(options["mask"]), int(options["size"])
    table = np.full(256, 255, dtype=np.uint8)
    for old, new in options["codes"].items():
        table[int(old)] = int(new)
    files = files_in(root, "*.tif", "*.tiff")
    scenes = {path.stem: path for path in files if not path.stem.endswith(suffix)}
    masks = {path.stem.removesuffix(suffix): path for path in files if path.stem.endswith(suffix)}
    pairs = [(scenes[stem], mask) for stem, mask in sorted(masks.items()) if stem in scenes]
    require(pairs, f"scene with a mask '*{suffix}.tif'", root)
    with TileFolder(output) as tiles:
        tiles.classes({int(code): str(name) for code, name in options["classes"].items()})
        for scene, mask in pairs:
            with rasterio.open(scene) as image, rasterio.open(mask) as codes:
                if image.shape != codes.shape:
                    raise AgriClipError(f"'{scene}' and its mask differ in size; unpack them again.")
                for top in range(0, image.height - size + 1, size):
                    for left in range(0, image.width - size + 1, size):
                        window = Window(left, top, size, size)
                        coded = table[codes.read(1, window=window).astype(np.uint8)]
                        if (coded == 255).all():
                            continue
                        stem = f"{scene.stem}/{top}_{left}"
                        placed = {"crs": image.crs, "transform": image.window_transform(window)}
                        values = image.read(window=window)
                        tiles.row(
                            tiles.raster(f"images/{stem}.tif", values, options["bands"], profile=placed),
                            mask_file=tiles.raster(f"masks/{stem}.tif", coded, ["class"], nodata=255, profile=placed),
                            block=scene.stem,
                            sensor=options["sensor"],
                            gsd=options.get("gsd"),
                        )


def bigearthnet(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """BigEarthNet v2 (reBEN): one file a Sentinel-2 band and patch to tiles of 12 bands at 10 m.

    A patch has several of the 19 classes: they stand in `labels`, and as a list of words in `text`.

    Args:
        root: Unpacked data, with `TILE/PATCH/PATCH_BAND.tif` and `metadata.parquet`.
        output: Folder of tiles to write; the Sentinel-2 tile is the block, the split the official one.
        options: None.
    """
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("Reading Parquet needs pyarrow; install it with: pip install 'agriclip[zones]'.") from error
    rasterio = import_rasterio()
    from rasterio.enums import Resampling

    tables = files_in(root, "metadata.parquet")
    require(tables, "'metadata.parquet'", root)
    folders = {path.parent.name: path.parent for path in files_in(root, "*_B02.tif")}
    with TileFolder(output) as tiles:
        for batch in parquet.ParquetFile(tables[0]).iter_batches(columns=["patch_id", "labels", "split"]):
            for said in batch.to_pylist():
                key = said["patch_id"]
                if key not in folders:
                    continue  # a part of the archive may have been unpacked
                layers = []
                for band in BIGEARTHNET_BANDS:
                    with rasterio.open(folders[key] / f"{key}_{band}.tif") as source:
                        layers.append(source.read(1, out_shape=(120, 120), resampling=Resampling.bilinear))
                        if band == "B02":
                            profile = source.profile
                name = tiles.raster(f"images/{key}.tif", np.stack(layers), BIGEARTHNET_BANDS, profile=profile)
                tiles.row(
                    name,
                    text=", ".join(said["labels"]).lower(),
                    labels=list(said["labels"]),
                    date=_iso(key.split("_")[2][:8]),
                    split={"validation": "val"}.get(said["split"], said["split"]),
                    block=folders[key].parent.name,
                    sensor="sentinel2_l2a",
                    bands=list(BIGEARTHNET_BANDS),
                    gsd=10.0,
                )


def _spread(count: int, most: int | None) -> list[int]:
    """Evenly spaced places of at most `most` of `count`, the first and the last among them."""
    if most is None or most >= count:
        return list(range(count))
    return sorted({int(round(place)) for place in np.linspace(0, count - 1, most)})


def _iso(day: int | str) -> str:
    text = str(day)
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}"


def _chip_dates(root: Path) -> dict[str, list[str]]:
    """Dates of the chips from `chips_df.csv`, where it has three columns of dates."""
    for file in files_in(root, "chips_df.csv"):
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = [name for name in reader.fieldnames or () if name.endswith("_date")]
            if len(columns) != 3 or "chip_id" not in (reader.fieldnames or ()):
                return {}
            return {
                row["chip_id"] if row["chip_id"].startswith("chip_") else f"chip_{row['chip_id']}": [
                    row[column][:10] for column in columns
                ]
                for row in reader
            }
    return {}


__all__ = ["ag_net", "bigearthnet", "multi_temporal_crop", "paired_tiles", "pastis", "scene_masks", "tile_pairs"]
