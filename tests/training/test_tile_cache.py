"""A cached tile equals the tile that was read, until a file or a setting changes."""

import multiprocessing
import os

import numpy as np
import pytest
import rasterio
import torch
from torch.utils.data import DataLoader

from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from training.augmentation import Augmentation
from training.tile_cache import TileCache
from training.tile_dataset import load_tiles, prepare_tiles
from training.tile_reader import Tile
from training.tile_transform import TileTransform, collate_tiles


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    rng = np.random.default_rng(0)
    folder = tmp_path / "tiles"
    folder.mkdir()
    lines = []
    for i in range(6):
        write(folder / f"t{i}.tif", rng.integers(1, 250, (3, 10, 10)))
        write(folder / f"m{i}.tif", rng.integers(0, 3, (1, 10, 10)))
        lines.append(f'{{"file_name": "t{i}.tif", "mask_file": "m{i}.tif", "date": "2020-05-0{i + 1}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    return load_tiles(folder)


def write(path, values):
    profile = {"driver": "GTiff", "dtype": "uint8", "count": len(values), "height": 10, "width": 10, "nodata": 0}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(values.astype(np.uint8))


def transform(folder=None, **options):
    processor = AgriClipImageProcessor(**options)
    cache = None if folder is None else TileCache(folder, processor.to_dict())
    return TileTransform(processor, labels="mask", cache=cache)


def assert_same(rows, others):
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert row[name].dtype == other[name].dtype, name
            assert torch.equal(row[name], other[name]), name


def test_cached_tile_equals_the_tile_that_was_read(tiles, tmp_path, monkeypatch):
    plain = list(prepare_tiles(tiles, transform()))
    cached = prepare_tiles(tiles, transform(tmp_path / "cache"))
    assert_same(list(cached), plain)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 6
    monkeypatch.setattr("training.tile_transform.read_bands", lambda tile: pytest.fail("read again"))
    assert_same(list(cached), plain)


def test_augmentation_comes_after_the_cache(tiles, tmp_path):
    made = transform(tmp_path / "cache")
    made.augmentation = Augmentation(noise=1.0)
    prepared = prepare_tiles(tiles, made)
    first = prepared[0]["pixel_values"]
    made.set_epoch(1)
    assert not torch.equal(prepared[0]["pixel_values"], first)
    made.set_epoch(0)
    assert torch.equal(prepared[0]["pixel_values"], first)


def test_a_changed_file_or_setting_is_read_anew(tiles, tmp_path):
    tile = Tile.from_row(tiles[0])
    cache = TileCache(tmp_path, {"a": 1})
    before = cache.path(tile)
    assert TileCache(tmp_path, {"a": 1}).path(tile) == before
    assert TileCache(tmp_path, {"a": 2}).path(tile) != before
    assert cache.path(Tile(tile.key, tile.images, tile.mask, window=(0, 0, 2, 2))) != before
    status = os.stat(tile.images[0])
    os.utime(tile.images[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1_000))
    assert cache.path(tile) != before


def test_content_decides_where_there_is_no_file(tmp_path):
    cache = TileCache(tmp_path, {})
    paths = {cache.path(Tile("t", (content,))) for content in (b"a", b"b", np.zeros((1, 2, 2)), np.ones((1, 2, 2)))}
    assert len(paths) == 4
    assert cache.path(Tile("other", (b"a",))) == cache.path(Tile("t", (b"a",)))


def test_a_damaged_record_is_replaced(tiles, tmp_path):
    made = transform(tmp_path / "cache")
    plain = prepare_tiles(tiles, made)[0]
    path = made.cache.path(Tile.from_row(tiles[0]))
    path.write_bytes(path.read_bytes()[:50])
    assert_same([prepare_tiles(tiles, made)[0]], [plain])
    assert made.cache.read(Tile.from_row(tiles[0])) is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_a_cache(tiles, tmp_path, workers):
    prepared = prepare_tiles(tiles, transform(tmp_path / "cache"))
    plain = list(DataLoader(prepare_tiles(tiles, transform()), 2, collate_fn=collate_tiles))
    for _ in range(2):
        assert_same(list(DataLoader(prepared, 2, num_workers=workers, collate_fn=collate_tiles)), plain)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 6 and not [path for path in files if path.suffix == ".partial"]


def _write_many(folder, seed):
    cache, value = TileCache(folder, {}), torch.full((1, 1, 64, 64), float(seed))
    for _ in range(50):
        cache.write(Tile("t", (b"same",)), {"pixel_values": value})


def test_writers_of_one_tile_never_leave_a_mixture(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    cache, seen = TileCache(tmp_path, {}), 0
    while any(writer.is_alive() for writer in writers):
        found = cache.read(Tile("t", (b"same",)))
        if found is not None:
            seen += 1
            assert len(found["pixel_values"].unique()) == 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen and len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_too_small_a_disk_is_told_before_the_first_tile(tiles, tmp_path):
    class Disk:
        free = 3000

    made = transform()
    made.cache = TileCache(tmp_path / "cache", {}, disk_usage=lambda folder: Disk)
    with pytest.raises(AgriClipError, match=r"cache of 6 tiles .* needs about .* kB, but only 3 kB are free"):
        prepare_tiles(tiles, made)
    assert not (tmp_path / "cache").exists()
    Disk.free = 10**9
    assert len(list(prepare_tiles(tiles, made))) == 6
