"""Collections of pictures to tiles: folders by class, captions in JSON or Parquet, ships in COCO, farmland with texts.

Three choices: pictures are linked and never recompressed; `text` holds the first caption of a picture and `captions`
all of them, since a tile has one text but retrieval is scored on five; and a mask that uses 255 is written anew,
because 255 means "not scored" wherever masks are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AgriClipError, named
from .tile_folder import TileFolder, files_in, images_in, import_rasterio, require

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NAMES = ("filename", "file_name", "image", "image_id", "img", "image_name", "imagename")
_CAPTIONS = ("sentences", "captions", "caption", "raw", "text_output", "description", "text", "value")


def class_folders(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """One folder a class (EuroSAT, RESISC45, UC Merced, AID, Million-AID) to labelled tiles.

    Labels count the classes in the order of their names, as `torchvision.datasets.ImageFolder` does.

    Args:
        root: Unpacked data; the class of a picture is the name of its folder.
        output: Folder of tiles to write.
        options: `sensor`; `bands`, the order of the channels in files that do not name them (they are written anew
            with names); `inside`, the folder under which the classes lie; `splits`, the list file of each split;
            `ending`, of the pictures; `gsd`.
    """
    inside = options.get("inside")
    places = [path for path in root.rglob(inside) if path.is_dir()] if inside else [root]
    base = places[0] if places else root
    ending = options.get("ending")
    pictures = [path for path in images_in(base) if ending is None or path.suffix == ending]
    require(pictures, "picture in folders by class", base)
    names = sorted({path.parent.name for path in pictures})
    split_of = _split_lists(root, options.get("splits", {}))
    bands = options.get("bands")
    with TileFolder(output) as tiles:
        tiles.classes(dict(enumerate(names)))
        for path in pictures:
            label = path.parent.name
            name = f"images/{label}/{path.name}"
            split = split_of.get(path.stem) if split_of else _split_in(path.relative_to(base))
            if split_of and split is None:
                continue  # the lists say which pictures belong to the benchmark
            if bands:
                values, profile = _read(path)
                tiles.raster(name, values, bands, profile=profile)
            else:
                tiles.take(path, name)
            tiles.row(
                name,
                label=names.index(label),
                class_name=label,
                split=split,
                sensor=options.get("sensor"),
                gsd=options.get("gsd"),
            )


def captions(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Captions in one JSON file beside a folder of pictures (RSICD, RSITMD, RSICap, RSIEval) to tiles with texts.

    Args:
        root: Unpacked data: a JSON with a list of records under `images` or `annotations` (each with a file name, and
            `sentences` of `raw` texts, or `caption`), and the pictures anywhere below.
        output: Folder of tiles to write.
        options: `sensor`; `json`, the name of the JSON file.
    """
    found = files_in(root, options.get("json", "*.json"))
    documents = [(path, records) for path in found if (records := _records(path))]
    require(documents, "JSON file with captions", root)
    pictures = {path.name: path for path in images_in(root)}
    with TileFolder(output) as tiles:
        missing = []
        for _, records in documents:
            for record in records:
                file = str(next(record[key] for key in _NAMES if record.get(key)))
                picture = pictures.get(Path(file).name)
                texts = _texts(record)
                if picture is None or not texts:
                    missing.append(file)
                    continue
                name = f"images/{picture.name}"
                tiles.take(picture, name)
                tiles.row(
                    name,
                    text=texts[0],
                    captions=texts,
                    split=_SPLITS.get(str(record.get("split", "")).lower()),
                    sensor=options.get("sensor"),
                )
        if missing and len(missing) > 0.01 * (tiles.count + len(missing)):
            raise AgriClipError(
                f"{len(missing)} records in '{documents[0][0]}' have no picture or no text ({named(missing, 3)}); put "
                "the pictures into the same folder."
            )


def captions_parquet(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Parquet files with `filename`, `captions` and `image` (RSICD on the Hub) to tiles with texts.

    Args:
        root: Folder with the Parquet files; their names say the split.
        output: Folder of tiles to write.
        options: `sensor`.
    """
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("Reading Parquet needs pyarrow; install it with: pip install 'agriclip[zones]'.") from error
    files = files_in(root, "*.parquet")
    require(files, "Parquet file", root)
    with TileFolder(output) as tiles:
        for file in files:
            split = _SPLITS.get(re.split(r"[-_.]", file.name)[0].lower())
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    texts = [text for text in record["captions"] if text and text.strip()]
                    image = record["image"]
                    content = image["bytes"] if isinstance(image, Mapping) else image
                    picture = Path(record.get("filename") or image.get("path") or f"{tiles.count:06d}.jpg").name
                    name = f"images/{picture}"
                    tiles.write(content, name)
                    tiles.row(name, text=texts[0], captions=texts, split=split, sensor=options.get("sensor"))


def coco_masks(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Objects outlined in COCO JSON (HRSID) to tiles with a mask: 0 background, then the category.

    Args:
        root: Unpacked data, with `annotations/*.json` and the pictures.
        output: Folder of tiles to write.
        options: `sensor`; `splits`, the JSON file of each split.
    """
    from rasterio.features import rasterize

    splits: Mapping[str, str] = options["splits"]
    pictures = {path.name: path for path in images_in(root)}
    with TileFolder(output) as tiles:
        for split, file in splits.items():
            found = files_in(root, file)
            require(found, f"'{file}'", root)
            content = json.loads(found[0].read_text(encoding="utf-8"))
            tiles.classes({0: "background", **{int(c["id"]): str(c["name"]) for c in content["categories"]}})
            outlines: dict[int, list[tuple[dict[str, Any], int]]] = {}
            for annotation in content["annotations"]:
                for ring in annotation["segmentation"]:
                    points = [(ring[i], ring[i + 1]) for i in range(0, len(ring) - 1, 2)]
                    shape = {"type": "Polygon", "coordinates": [[*points, points[0]]]}
                    outlines.setdefault(annotation["image_id"], []).append((shape, int(annotation["category_id"])))
            for image in content["images"]:
                picture = pictures.get(Path(image["file_name"]).name)
                if picture is None:
                    raise AgriClipError(f"'{found[0]}' names '{image['file_name']}', which is not there; unpack all.")
                shapes = outlines.get(image["id"], [])
                size = (int(image["height"]), int(image["width"]))
                mask = rasterize(shapes, size, dtype="uint8") if shapes else np.zeros(size, dtype=np.uint8)
                name = tiles.take(picture, f"images/{picture.name}")
                mask_file = tiles.raster(f"masks/{picture.stem}.tif", mask, ["category"])
                tiles.row(name, mask_file=mask_file, split=split, sensor=options.get("sensor"), objects=len(shapes))


def farmseg_vl(root: Path, output: Path, options: Mapping[str, Any]) -> None:
    """FarmSeg-VL: `SPLIT/img`, `SPLIT/lbl` and `SPLIT/json` to tiles with a farmland mask (1) and a text.

    Args:
        root: Unpacked data. A JSON file tells one picture (same stem), or is a list of records with file names.
        output: Folder of tiles to write.
        options: `sensor`; `gsd`.
    """
    pictures = [path for path in images_in(root) if path.parent.name.lower() in ("img", "image", "images")]
    require(pictures, "picture in a folder `img`", root)
    texts = {path.stem: _texts_of_file(path) for path in files_in(root, "*.json", "*.txt")}
    for path in files_in(root, "*.json"):
        for record in _records(path):
            texts[Path(str(next(record[key] for key in _NAMES if record.get(key)))).stem] = _texts(record)
    with TileFolder(output) as tiles:
        tiles.classes({0: "background", 1: "farmland"})
        for path in pictures:
            label = _beside(path, ("lbl", "label", "labels", "mask", "masks"))
            if label is None:
                raise AgriClipError(f"The picture '{path}' has no mask in a folder `lbl` beside it; unpack all.")
            split = _split_in(path.relative_to(root))
            values, profile = _read(label)
            stem = f"{split or 'all'}/{path.stem}"
            name = tiles.take(path, f"images/{stem}{path.suffix}")
            mask_file = tiles.raster(
                f"masks/{stem}.tif", (values[0] > 0).astype(np.uint8), ["farmland"], profile=profile
            )
            said = texts.get(path.stem)
            tiles.row(
                name,
                mask_file=mask_file,
                text=said[0] if said else None,
                split=split,
                sensor=options.get("sensor"),
                gsd=options.get("gsd"),
            )


def _records(path: Path) -> list[Mapping[str, Any]]:
    """The records of a JSON file that name a picture, wherever their list hangs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AgriClipError(f"'{path}' is no JSON ({error}); fetch it again.") from error
    lists = [content] if isinstance(content, list) else []
    if isinstance(content, Mapping):
        lists = [content[key] for key in ("images", "annotations", "data") if isinstance(content.get(key), list)]
    for records in lists:
        named_ones = [r for r in records if isinstance(r, Mapping) and any(r.get(key) for key in _NAMES)]
        if named_ones:
            return named_ones
    return []


def _texts_of_file(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return [text.strip()] if text.strip() else []
    content = json.loads(text)
    return _texts(content) if isinstance(content, Mapping) else []


def _texts(content: Any) -> list[str]:
    """All captions in a record: the values of the keys that hold texts, blank ones left out."""
    if isinstance(content, str):
        return [" ".join(content.split())] if content.strip() else []
    if isinstance(content, Mapping):
        if content.get("from") == "human":  # the question of a dialogue
            return []
        if isinstance(content.get("conversations"), Sequence):
            return _texts(content["conversations"])
        return next((found for key in _CAPTIONS if (found := _texts(content.get(key)))), [])
    if isinstance(content, Sequence):
        return [text for item in content for text in _texts(item)]
    return []


def _split_lists(root: Path, lists: Mapping[str, str]) -> dict[str, str]:
    """Split of each picture by its stem (the lists name `.jpg` where the files are `.tif`)."""
    splits: dict[str, str] = {}
    for split, file in lists.items():
        found = files_in(root, file)
        if not found:
            raise AgriClipError(f"The list '{file}' of the split '{split}' is not below '{root}'; fetch it too.")
        for line in found[0].read_text(encoding="utf-8").split():
            splits[Path(line).stem] = split
    return splits


def _split_in(path: Path) -> str | None:
    return next((_SPLITS[part.lower()] for part in path.parts[:-1] if part.lower() in _SPLITS), None)


def _beside(path: Path, folders: Sequence[str]) -> Path | None:
    """The file of the same stem in a sister folder."""
    for folder in _siblings(path.parent):
        if folder.name.lower() in folders:
            found = [file for file in images_in(folder) if file.stem == path.stem]
            if found:
                return found[0]
    return None


def _siblings(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.parent.iterdir()) if path.is_dir())


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    rasterio = import_rasterio()
    with rasterio.open(path) as source:
        identity = source.transform.is_identity
        return source.read(), {"crs": source.crs, "transform": None if identity else source.transform}


__all__ = ["captions", "captions_parquet", "class_folders", "coco_masks", "farmseg_vl"]
