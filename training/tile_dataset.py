"""Tiles as a Hugging Face data set: a folder of GeoTIFFs, Parquet files or WebDataset shards, always the same columns.

Three choices: a table holds paths or stored bytes and never pixels, which are read when a row is asked for
(`prepare_tiles`); the three sources give the same columns, so whatever follows need not know where a tile came from;
and what is wrong with a source is said in one sentence before the first batch.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from processing.errors import AgriClipError, named, nearest
from training.augmentation import Augmentation
from training.tile_cache import TileCache, require_disk
from training.tile_checks import MAX_CORRUPT, check_labels, check_tiles
from training.tile_files import find_source, require_whole, split_files
from training.tile_reader import Tile
from training.tile_transform import SkipCorrupt, TileTransform, collate_tiles

METADATA = "metadata.jsonl"
_FILE = {"bytes": Value("binary"), "path": Value("string")}
# What a row may say beside its image and mask; numbers of classes are whole, shares are not.
_FIELDS: dict[str, Any] = {
    "label": Value("int64"),
    "text": Value("string"),
    "date": List(Value("string")),
    "block": Value("string"),
    "split": Value("string"),
    "sensor": Value("string"),
    "bands": List(Value("string")),
    "gsd": Value("float64"),
    "window": List(Value("int64")),
}
COLUMNS = ("key", "image", "mask", *_FIELDS)

Tiles: TypeAlias = Dataset | IterableDataset


def load_tiles(
    source: str | Path | Sequence[str | Path],
    split: str | None = None,
    streaming: bool = False,
    *,
    check: bool = True,
    max_corrupt: float = MAX_CORRUPT,
    shards: int = 16,
    cache_dir: str | Path | None = None,
    disk_usage: Callable[[Any], Any] = shutil.disk_usage,
) -> Tiles:
    """Open a table of tiles; no pixel is kept.

    Args:
        source: A folder with `metadata.jsonl`, one JSON object a line: `file_name` (or a list of them, one a date) and
            as far as known `mask_file`, `label`, `text`, `date`, `block`, `split`, `sensor`, `bands`, `gsd`,
            `window` (row, column, height, width). Or Parquet files with `image` and `mask` (bytes or arrays) and the
            same columns; or WebDataset shards with `key.tif`, `key.mask.tif` and `key.json`. Files are given as a
            folder, a path, an address, a pattern or a list.
        split: Only rows whose `split` this is, or, where files are called by splits (`train-0001.tar`), only those
            files; all if None.
        streaming: Return an `IterableDataset`, which reads as it goes and stores nothing.
        check: Leave out damaged tiles by `check_tiles`; a stream does so on the way instead.
        max_corrupt: Largest share of damaged tiles.
        shards: Into how many parts a streamed folder is cut; workers share them.
        cache_dir: Where `datasets` keeps what it unpacks, and what `check_tiles` found.
        disk_usage: Asked for free bytes, as `shutil.disk_usage` is.

    Returns:
        A data set with the columns `key, image, mask, label, text, date, block, split, sensor, bands, gsd, window`; of
        Parquet files those that they have.

    Raises:
        AgriClipError: There is no such source or split, a file named in it does not exist, it is empty, the disk is
            too small, or too many tiles are damaged.
    """
    kind, files = find_source(source)
    if kind == "folder":
        table = _from_folder(files[0], split)
        tiles: Tiles = table.to_iterable_dataset(min(shards, len(table))) if streaming else table
    else:
        files, rest = split_files(files, split)
        require_whole(kind, files)
        if not streaming:
            size = sum(os.path.getsize(file) for file in files if os.path.exists(file))
            folder = cache_dir or datasets.config.HF_DATASETS_CACHE
            require_disk(folder, size, f"Unpacking {len(files)} files of tiles into '{folder}'", disk_usage)
        cache = None if cache_dir is None else str(cache_dir)
        try:
            tiles = (_from_parquet if kind == "parquet" else _from_shards)(files, streaming, cache)
            if rest is not None:
                tiles = _of_split(tiles, rest, files)
            _require_rows(tiles, files)
        except (DatasetGenerationError, tarfile.ReadError) as error:
            reason = error.__cause__ or error
            raise AgriClipError(
                f"The tiles in {named(files, 3)} cannot be read ({reason}); fetch them again."
            ) from error
    if check and isinstance(tiles, Dataset):
        tiles = check_tiles(tiles, max_corrupt=max_corrupt, cache_dir=cache_dir)
    return tiles


def prepare_tiles(tiles: Tiles, transform: TileTransform, *, max_corrupt: float = MAX_CORRUPT) -> Tiles:
    """Let a table of tiles give the model's inputs, each read when it is asked for.

    Args:
        tiles: What `load_tiles` returned, filtered or shuffled at will.
        transform: Makes tensors of a row.
        max_corrupt: Largest share of damaged tiles in a stream; a table was checked when it was opened.

    Raises:
        AgriClipError: The transform's cache would not fit on its disk.
    """
    if isinstance(tiles, IterableDataset):
        return tiles.map(
            SkipCorrupt(transform, max_corrupt), batched=True, batch_size=1, remove_columns=tiles.column_names
        )
    plain = tiles.with_format(None)
    if transform.cache is not None and len(plain):
        transform.cache.require_space(len(plain), transform.read(Tile.from_row(plain[0])))
    return tiles.with_transform(transform)


def _from_folder(folder: str, split: str | None) -> Dataset:
    rows = _read_metadata(Path(folder) / METADATA)
    if split is not None:
        known = dict.fromkeys(str(row["split"]) for row in rows if row.get("split"))
        rows = [row for row in rows if row.get("split") == split]
        if not rows:
            raise _no_split(split, known, f"'{folder}'")
    images = [row["file_name"] if isinstance(row["file_name"], list) else [row["file_name"]] for row in rows]
    masks = [row.get("mask_file") for row in rows]
    _require_files(folder, [name for names in [*images, [mask for mask in masks if mask]] for name in names])
    labels = [row.get("label") for row in rows]
    columns: dict[str, list[Any]] = {
        "key": [row.get("key") or os.path.splitext(names[0])[0] for row, names in zip(rows, images, strict=True)],
        "image": [[{"bytes": None, "path": os.path.join(folder, name)} for name in names] for names in images],
        "mask": [{"bytes": None, "path": os.path.join(folder, mask)} if mask else None for mask in masks],
    }
    columns |= {name: [_cell(name, row.get(name)) for row in rows] for name in _FIELDS}
    return Dataset.from_dict(columns, features=_features(labels))


def _read_metadata(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise AgriClipError(
            f"The folder '{path.parent}' has no {METADATA}; write one JSON object a line, such as "
            '{"file_name": "a.tif", "label": 0}.'
        )
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise AgriClipError(f"Line {number} of '{path}' is no JSON ({error}); write one object a line.") from error
        if not isinstance(row, dict) or not row.get("file_name"):
            raise AgriClipError(f"Line {number} of '{path}' has no 'file_name'; every tile needs one.")
        rows.append(row)
    if not rows:
        raise AgriClipError(f"'{path}' is empty; write one JSON object a tile.")
    return rows


def _require_files(folder: str, names: list[str]) -> None:
    missing = [name for name in dict.fromkeys(names) if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        place = os.path.dirname(os.path.join(folder, missing[0]))
        near = nearest(os.path.basename(missing[0]), os.listdir(place) if os.path.isdir(place) else [])
        advice = near if near.startswith("did") else "check the name"
        raise AgriClipError(
            f"{METADATA} in '{folder}' names {len(missing)} files that do not exist ({named(missing, 3)}); {advice}."
        )


def _from_parquet(files: list[str], streaming: bool, cache_dir: str | None) -> Tiles:
    tiles = load_dataset("parquet", data_files=files, split="train", streaming=streaming, cache_dir=cache_dir)
    # Pillow opens few of the TIFFs that remote sensing writes: bytes stay bytes.
    for name, feature in (tiles.features or {}).items():
        if isinstance(feature, datasets.Image):
            tiles = tiles.cast_column(name, datasets.Image(decode=False))
    if "image" not in (tiles.column_names or []):
        raise AgriClipError(
            f"'{files[0]}' has no column 'image' (it has {', '.join(tiles.column_names or [])}); name it so."
        )
    if "file_name" in tiles.column_names and "key" not in tiles.column_names:
        tiles = tiles.rename_column("file_name", "key")
    unknown = [name for name in tiles.column_names if name not in COLUMNS]
    return tiles.remove_columns(unknown) if unknown else tiles


def _from_shards(files: list[str], streaming: bool, cache_dir: str | None) -> Tiles:
    if streaming:
        return _stream(files)
    # One copy on disk, in the common columns; a shard that changed is another copy.
    stamps = [f"{os.path.getsize(file)} {os.stat(file).st_mtime_ns}" if os.path.exists(file) else "" for file in files]
    table = Dataset.from_generator(
        _rows, features=_features(), cache_dir=cache_dir, gen_kwargs={"files": tuple(files), "stamps": tuple(stamps)}
    )
    assert isinstance(table, Dataset)
    return table


def _stream(files: list[str]) -> IterableDataset:
    """The shards through the WebDataset reader of `datasets`, its fields brought to the common columns."""
    fields = Features({
        "__key__": Value("string"),
        "__url__": Value("string"),
        "tif": datasets.Image(decode=False),
        "mask.tif": datasets.Image(decode=False),
        "json": datasets.Json(),
    })  # fmt: skip
    shards = load_dataset("webdataset", data_files=files, split="train", streaming=True, features=fields)
    return shards.map(_row_of_shard, remove_columns=list(fields), features=_features())


def _rows(files: tuple[str, ...], stamps: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    # The stamps are there for `datasets`, which names its copy after all arguments.
    yield from _stream(list(files))


def _row_of_shard(fields: Mapping[str, Any]) -> dict[str, Any]:
    said = fields["json"]
    said = json.loads(said) if isinstance(said, str | bytes) else dict(said or {})
    image = fields["tif"] or {}
    place = f"{os.path.basename(fields['__url__'])}::{fields['__key__']}.tif"
    mask = fields["mask.tif"] or {}
    row = {name: _cell(name, said.get(name)) for name in _FIELDS}
    row["key"] = said.get("key") or fields["__key__"]
    row["image"] = [{"bytes": image.get("bytes"), "path": place}]
    row["mask"] = {"bytes": mask["bytes"], "path": None} if mask.get("bytes") else None
    return row


def _features(labels: Sequence[Any] = ()) -> Features:
    fields = dict(_FIELDS)
    if any(isinstance(label, float) for label in labels):
        fields["label"] = Value("float64")
    return Features({"key": Value("string"), "image": List(_FILE), "mask": _FILE, **fields})


def _cell(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in ("date", "bands") and isinstance(value, str):
        return [value]
    return str(value) if name in ("block", "split") else value


def _of_split(tiles: Tiles, split: str, files: list[str]) -> Tiles:
    """Rows of one split, by the column `split`."""
    has_column = "split" in (tiles.column_names or [])
    if isinstance(tiles, Dataset) or not has_column:
        found = tiles.unique("split") if has_column else []
        if split not in found:
            raise _no_split(split, found, f"'{files[0]}'")
    return tiles.filter(_Split(split), input_columns="split")


class _Split:
    """Whether a row is of a split; a class, so that it can be sent to workers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, split: str | None) -> bool:
        return split == self.name


def _require_rows(tiles: Tiles, files: list[str]) -> None:
    empty = not len(tiles) if isinstance(tiles, Dataset) else next(iter(tiles), None) is None
    if empty:
        raise AgriClipError(
            f"There are no tiles in {named(files, 3)} (of the split asked for); check files and split."
        )


def _no_split(split: str, known: Any, where: str) -> AgriClipError:
    splits = [str(name) for name in known if name]
    if not splits:
        return AgriClipError(f"The tiles in {where} are not split, so there is no split '{split}'; leave it away.")
    return AgriClipError(f"There is no split '{split}' in {where}; {nearest(split, splits)}")


__all__ = [
    "COLUMNS",
    "Augmentation",
    "TileCache",
    "TileTransform",
    "check_labels",
    "check_tiles",
    "collate_tiles",
    "load_tiles",
    "prepare_tiles",
]
