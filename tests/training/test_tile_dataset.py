"""Three sources of tiles give the same tensors; damaged tiles are named, skipped, and refused when there are many."""

import io
import json
import logging
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from affine import Affine
from torch.utils.data import DataLoader, RandomSampler
from transformers import Trainer, TrainingArguments

from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.tokenizer import build_tokenizer
from training.augmentation import Augmentation
from training.progress import EpochTeller
from training.tile_checks import check_labels, check_tiles
from training.tile_dataset import load_tiles, prepare_tiles
from training.tile_reader import Tile, UnreadableTile, read_bands, read_codes
from training.tile_transform import TileTransform, collate_tiles

NAMES = ("blue", "green", "red", "nir", "swir1", "swir2")


def write(path, values, names=NAMES, scale=1e-4, nodata=-9999, **profile):
    values = np.asarray(values)
    count, height, width = values.shape
    settings = {
        "driver": "GTiff",
        "dtype": values.dtype.name,
        "count": count,
        "height": height,
        "width": width,
        "nodata": nodata,
        "crs": "EPSG:32614",
        "transform": Affine(30, 0, 500_000, 0, -30, 5_000_000),
        **profile,
    }
    with rasterio.open(path, "w", **settings) as raster:
        raster.write(values)
        if names:
            raster.descriptions = names
            raster.scales = (scale,) * count
    return path


def make_folder(folder, count=8, size=12, **extra):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        values = rng.integers(200, 4000, (6, size, size)).astype(np.int16)
        values[:, 0, i % size] = -9999
        write(folder / f"t{i}.tif", values)
        write(folder / f"t{i}_mask.tif", rng.integers(0, 4, (1, size, size)).astype(np.uint8), names=None, nodata=None)
        rows.append(
            {
                "file_name": f"t{i}.tif",
                "mask_file": f"t{i}_mask.tif",
                "label": i % 3,
                "date": f"2020-0{1 + i % 9}-15",
                "block": f"b{i // 2}",
                "split": "train" if i < 6 else "test",
                "sensor": "landsat8",
                "text": f"Tile {i} has 5 mm.",
                **extra,
            }
        )
    save_rows(folder, rows)
    return folder


def save_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def make_parquet(folder, path):
    rows = rows_of(folder)
    table = {
        "key": [row["file_name"][:-4] for row in rows],
        "image": [(folder / row["file_name"]).read_bytes() for row in rows],
        "mask": [(folder / row["mask_file"]).read_bytes() for row in rows],
        **{name: [row[name] for row in rows] for name in ("label", "date", "block", "split", "sensor", "text")},
    }
    pq.write_table(pa.table(table), path)
    return path


def make_shards(folder, out, per_shard=3, prefix="shard"):
    rows = rows_of(folder)
    out.mkdir()
    for start in range(0, len(rows), per_shard):
        with tarfile.open(out / f"{prefix}-{start // per_shard:04d}.tar", "w") as tar:
            for row in rows[start : start + per_shard]:
                key = row["file_name"][:-4]
                said = {name: value for name, value in row.items() if name not in ("file_name", "mask_file")}
                for ending, content in (
                    ("tif", (folder / row["file_name"]).read_bytes()),
                    ("mask.tif", (folder / row["mask_file"]).read_bytes()),
                    ("json", json.dumps(said).encode()),
                ):
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return out


def transform(labels="mask", **options):
    return TileTransform(AgriClipImageProcessor(sensor="landsat8"), labels=labels, **options)


def collected(tiles, **options):
    return list(prepare_tiles(tiles, transform(**options)))


def assert_same(samples, others):
    assert len(samples) == len(others)
    for sample, other in zip(samples, others, strict=True):
        assert sample.keys() == other.keys()
        for name in sample:
            torch.testing.assert_close(torch.as_tensor(sample[name]), torch.as_tensor(other[name]), rtol=0, atol=0)


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "tiles")


@pytest.fixture
def sources(folder, tmp_path):
    return {
        "folder": folder,
        "parquet": make_parquet(folder, tmp_path / "tiles.parquet"),
        "shards": make_shards(folder, tmp_path / "shards"),
    }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["parquet", "shards"])
def test_sources_give_equal_tensors(sources, source, streaming, tmp_path):
    options = {"augmentation": Augmentation(), "seed": 3}
    expected = collected(load_tiles(sources["folder"]), **options)
    found = collected(load_tiles(sources[source], streaming=streaming, cache_dir=tmp_path / "hf"), **options)
    assert len(expected) == 8
    assert_same(found, expected)


def test_streamed_folder_equals_table(folder):
    assert_same(collected(load_tiles(folder, streaming=True)), collected(load_tiles(folder)))


def test_tensors_are_what_the_processor_makes_of_the_file(folder):
    sample = collected(load_tiles(folder))[2]
    expected = AgriClipImageProcessor(sensor="landsat8")(
        str(folder / "t2.tif"), dates="2020-03-15", return_tensors="pt"
    )
    for name in ("pixel_values", "channels", "gsd", "dates"):
        torch.testing.assert_close(sample[name], expected[name][0], rtol=0, atol=0)
    assert torch.equal(sample["pixel_mask"].long(), expected["pixel_mask"][0])
    assert not sample["pixel_mask"][:, :, 0, 2].any()
    assert sample["gsd"] == 30


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["folder", "parquet", "shards"])
def test_splits(sources, source, streaming, tmp_path):
    tiles = load_tiles(sources[source], "test", streaming, cache_dir=tmp_path / "hf")
    assert [row["key"] for row in tiles] == ["t6", "t7"]


def test_split_by_file_name(folder, tmp_path):
    shards = make_shards(folder, tmp_path / "named", prefix="train")
    assert len(list(load_tiles(shards, "train", streaming=True))) == 8
    with pytest.raises(AgriClipError, match="did you mean 'train'"):
        load_tiles(shards, "trains", streaming=True)


def test_parquet_of_arrays(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.integers(8000, 20000, (6, 8, 8)).astype(np.uint16)
    row = {"image": values.tolist(), "mask": np.ones((8, 8), int).tolist(), "bands": list(NAMES), "sensor": "landsat8"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    sample = collected(load_tiles(tmp_path / "a.parquet"))[0]
    expected = AgriClipImageProcessor()(values, sensor="landsat8", channels=list(NAMES), return_tensors="pt")
    torch.testing.assert_close(sample["pixel_values"], expected["pixel_values"][0])
    assert (sample["labels"] == 1).all() and sample["labels"].shape == (8, 8)


def test_workers_give_the_same_batches(folder):
    def batches(workers, epochs=2):
        made = transform(augmentation=Augmentation(), seed=5)
        tiles = prepare_tiles(load_tiles(folder), made)
        loader = DataLoader(
            tiles,
            batch_size=3,
            # a generator of its own: DataLoader draws other numbers from its own with and without workers
            sampler=RandomSampler(tiles, generator=torch.Generator().manual_seed(0)),
            num_workers=workers,
            collate_fn=collate_tiles,
            persistent_workers=workers > 0,
        )
        found = []
        for epoch in range(epochs):
            made.set_epoch(epoch)
            found += list(loader)
        return found

    alone, together = batches(0), batches(2)
    assert_same(alone, together)
    assert not torch.equal(alone[0]["pixel_values"], alone[3]["pixel_values"]), "the epochs do not differ"


def test_stream_with_workers_has_the_same_tiles(sources):
    made = transform(augmentation=Augmentation(), seed=5)
    tiles = prepare_tiles(load_tiles(sources["shards"], streaming=True), made)
    alone = {float(row["pixel_values"].sum()) for row in tiles}
    loader = DataLoader(tiles, batch_size=None, num_workers=2)
    assert {float(row["pixel_values"].sum()) for row in loader} == alone
    assert len(alone) == 8


def test_only_the_window_is_read(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(200, 4000, (6, 256, 256)).astype(np.int16)
    write(tmp_path / "big.tif", values, tiled=True, blockxsize=64, blockysize=64)
    write(tmp_path / "codes.tif", values[:1].astype(np.uint8), names=None, nodata=None)
    row = {"file_name": "big.tif", "mask_file": "codes.tif", "sensor": "landsat8", "window": [64, 128, 32, 48]}
    save_rows(tmp_path, [row])
    asked = []
    real = rasterio.open

    class Spy:
        def __init__(self, source):
            self.source = source

        def __getattr__(self, name):
            return getattr(self.source, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.source.close()

        def read(self, *args, window=None, **kwargs):
            asked.append((window.height, window.width))
            return self.source.read(*args, window=window, **kwargs)

    tiles = load_tiles(tmp_path)
    monkeypatch.setattr(rasterio, "open", lambda path: Spy(real(path)))
    sample = collected(tiles)[0]
    assert asked == [(32, 48), (32, 48)]
    monkeypatch.undo()
    assert sample["pixel_values"].shape == (1, 6, 32, 48)
    expected = AgriClipImageProcessor(sensor="landsat8")(str(tmp_path / "big.tif"), return_tensors="pt")
    torch.testing.assert_close(sample["pixel_values"], expected["pixel_values"][0][..., 64:96, 128:176])
    assert torch.equal(sample["labels"], torch.tensor(values[0, 64:96, 128:176].astype(np.uint8).astype(int)))


def test_window_outside_is_a_damaged_tile(folder):
    tile = Tile("t", (str(folder / "t0.tif"),), mask=str(folder / "t0_mask.tif"), window=(8, 0, 8, 8))
    for read in (read_bands, read_codes):
        with pytest.raises(UnreadableTile, match="reaches outside"):
            read(tile)


def test_series_of_different_sizes_are_padded_and_masked(tmp_path):
    folder = make_folder(tmp_path / "series", count=4)
    small = np.random.default_rng(3).integers(200, 4000, (4, 8, 8)).astype(np.int16)
    write(folder / "small.tif", small, names=("blue", "green", "red", "nir"))
    rows = rows_of(folder)
    series = {**rows[0], "file_name": ["t0.tif", "t1.tif"], "date": ["2020-01-15", "2020-06-15"], "mask_file": None}
    save_rows(folder, [series, {"file_name": "small.tif", "label": 1, "date": "2020-05-01", "sensor": "landsat8"}])
    batch = collate_tiles(collected(load_tiles(folder), labels="label"))
    assert batch["pixel_values"].shape == (2, 2, 6, 12, 12)
    assert batch["dates"].tolist() == [[15, 167], [122, 0]]
    assert not batch["pixel_mask"][1, 1].any() and not batch["pixel_mask"][1, 0, 4:].any()
    assert not batch["pixel_mask"][1, 0, :, 8:].any() and batch["pixel_mask"][1, 0, :4, :8, :8].all()
    assert not batch["channels"][1, 4:].any()
    assert batch["labels"].tolist() == [0, 1]


def test_labels_of_pixels_are_padded_with_ignore():
    small = {"pixel_values": torch.ones(1, 1, 2, 2), "labels": torch.zeros(2, 2, dtype=torch.long)}
    large = {"pixel_values": torch.ones(1, 1, 3, 3), "labels": torch.zeros(3, 3, dtype=torch.long)}
    batch = collate_tiles([small, large], shared={"input_ids": torch.ones(6, 4)})
    assert (batch["labels"][0] == 255).sum() == 5
    assert batch["input_ids"].shape == (6, 4)


def test_codes_become_classes(folder):
    tiles = load_tiles(folder)
    plain, mapped = collected(tiles)[0]["labels"], collected(tiles, codes={1: 0, 2: 1}, unlisted=7)[0]["labels"]
    assert set(mapped.unique().tolist()) == {0, 1, 7}
    assert ((mapped == 0) == (plain == 1)).all() and ((mapped == 1) == (plain == 2)).all()


def test_label_of_a_crop_is_its_own(folder):
    codes = np.zeros((1, 12, 12), np.uint8)
    codes[0, :, 7:] = 1
    codes[0, :6, :6] = 9
    write(folder / "t0_mask.tif", codes, names=None, nodata=None)
    tiles = load_tiles(folder)
    assert collected(tiles, labels="dominant")[0]["labels"] == 1 - (codes == 0).sum() // (codes == 1).sum()
    left = collected(tiles, labels="dominant", codes={1: 1, 9: 0})[0]["labels"]
    assert left == 1
    nothing = collected(tiles, labels="dominant", codes={77: 0})[0]["labels"]
    assert nothing == rows_of(folder)[0]["label"]


def test_text_is_tokenised_beside_the_image(folder):
    processor = AgriClipProcessor(AgriClipImageProcessor(sensor="landsat8"), build_tokenizer())
    samples = list(prepare_tiles(load_tiles(folder), TileTransform(processor)))
    expected = processor(text=[f"Tile {i} has 5 mm." for i in range(8)], return_tensors="pt")
    batch = collate_tiles(samples)
    for name in ("input_ids", "attention_mask", "numeric_values"):
        torch.testing.assert_close(batch[name], expected[name])


@pytest.mark.parametrize("streaming", [False, True])
def test_trainer_draws_anew_each_epoch(folder, tmp_path, streaming):
    heard = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values, pixel_mask, channels, gsd, dates, labels):
            heard.append(pixel_values.clone())
            return {"loss": (self.weight * pixel_values.mean()).sum()}

    made = transform(labels="label", augmentation=Augmentation(noise=1.0))
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=8,
        max_steps=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    tiles = prepare_tiles(load_tiles(folder, streaming=streaming), made)
    Trainer(Model(), arguments, collate_tiles, train_dataset=tiles, callbacks=[EpochTeller(made)]).train()
    first, second = (torch.sort(batch.sum(dim=(1, 2, 3, 4))).values for batch in heard)
    assert made.epoch == 1
    assert not torch.equal(first, second)
    made.set_epoch(0)
    again = torch.stack([row["pixel_values"] for row in tiles]).sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(torch.sort(again).values, first)


def damage(folder, name, keep=0.6):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def heard():
    handler = Heard()
    logger = logging.getLogger("training.tile_checks")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["folder", "parquet", "shards"])
def test_damaged_tile_is_named_and_skipped_then_refused(tmp_path, source, streaming, heard):
    folder = make_folder(tmp_path / "tiles", count=12)
    damage(folder, "t4.tif")
    made = {
        "folder": lambda: folder,
        "parquet": lambda: make_parquet(folder, tmp_path / "t.parquet"),
        "shards": lambda: make_shards(folder, tmp_path / "s"),
    }[source]()
    tiles = load_tiles(made, streaming=streaming, max_corrupt=0.1, cache_dir=tmp_path / "hf")
    kept = list(prepare_tiles(tiles, transform(), max_corrupt=0.1))
    assert len(kept) == 11
    assert sum("t4" in line and "left out" in line for line in heard) == 1
    damage(folder, "t7.tif")


@pytest.mark.parametrize(("streaming", "share", "told"), [(False, 0.1, "2 of 12"), (True, 0.01, "2 of the first 8")])
def test_too_many_damaged_tiles_are_refused(tmp_path, streaming, share, told):
    folder = make_folder(tmp_path / "tiles", count=12)
    damage(folder, "t4.tif")
    damage(folder, "t7.tif")
    with pytest.raises(
        AgriClipError, match=rf"{told} tiles are damaged, more than max_corrupt={share} .*t4.tif, .*t7.tif"
    ):
        tiles = load_tiles(folder, streaming=streaming, max_corrupt=share)
        list(prepare_tiles(tiles, transform(), max_corrupt=share))


def test_shards_are_streamed_from_an_address(sources):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=str(sources["shards"]))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addresses = [
            f"http://127.0.0.1:{server.server_port}/{path.name}" for path in sorted(sources["shards"].iterdir())
        ]
        found = collected(load_tiles(addresses, streaming=True))
        server.shutdown()
    assert_same(found, collected(load_tiles(sources["folder"])))


def test_check_is_remembered_until_a_file_changes(folder, tmp_path, monkeypatch):
    tiles = load_tiles(folder, check=False)
    assert len(check_tiles(tiles, cache_dir=tmp_path / "found")) == 8
    probed = []
    monkeypatch.setattr("training.tile_checks.probe_tile", lambda tile, thorough: probed.append(tile.key))
    check_tiles(tiles, cache_dir=tmp_path / "found")
    assert probed == []
    damage(folder, "t1.tif")
    check_tiles(tiles, cache_dir=tmp_path / "found")
    assert probed == ["t1"]


def test_thorough_check_reads_every_block(folder, tmp_path):
    path = folder / "t3.tif"
    values = np.random.default_rng(0).integers(0, 4000, (6, 12, 12)).astype(np.int16)
    write(path, values, interleave="band", compress="deflate")
    with rasterio.open(path) as source:
        offset = int(source.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    tiles = load_tiles(folder, check=False)
    assert len(check_tiles(tiles, cache_dir=tmp_path / "a")) == 8
    assert len(check_tiles(tiles, thorough=True, max_corrupt=0.2, cache_dir=tmp_path / "a")) == 7
    with pytest.raises(UnreadableTile, match=r"t3\.tif"):
        collected(tiles)


def no_metadata(folder):
    (folder / "metadata.jsonl").unlink()


def empty(folder):
    (folder / "metadata.jsonl").write_text("\n")


def no_json(folder):
    (folder / "metadata.jsonl").write_text("{'file_name': 1}\n")


def nameless(folder):
    (folder / "metadata.jsonl").write_text('{"label": 1}\n')


def absent(folder):
    save_rows(folder, [{"file_name": "t00.tif"}])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_metadata, "has no metadata.jsonl"),
        (empty, "is empty"),
        (no_json, "Line 1 of .* is no JSON"),
        (nameless, "no 'file_name'"),
        (absent, r"1 files that do not exist \(t00.tif\); did you mean 't0.tif'"),
    ],
)
def test_bad_folder_is_told_in_one_sentence(folder, spoil, message):
    spoil(folder)
    with pytest.raises(AgriClipError, match=message) as error:
        load_tiles(folder)
    assert "\n" not in str(error.value)


def test_unknown_split_and_source(sources, tmp_path):
    with pytest.raises(AgriClipError, match="no split 'trian' .*did you mean 'train'"):
        load_tiles(sources["folder"], "trian")
    with pytest.raises(AgriClipError, match="no split 'trian' .*did you mean 'train'"):
        load_tiles(sources["parquet"], "trian")
    with pytest.raises(AgriClipError, match="did you mean 'tiles.parquet'"):
        load_tiles(tmp_path / "tile.parquet")
    with pytest.raises(AgriClipError, match="is no source of tiles"):
        load_tiles(tmp_path / "tiles.csv")
    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "other.parquet")
    with pytest.raises(AgriClipError, match="no column 'image' .*picture"):
        load_tiles(tmp_path / "other.parquet")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("spoil", [lambda content: content[:-300], lambda content: b"", lambda content: b"x" * 1024])
def test_damaged_shards_and_tables_are_named(sources, spoil, streaming):
    for path in (sources["parquet"], sources["shards"] / "shard-0001.tar"):
        path.write_bytes(spoil(path.read_bytes()))
    for source, name in (("parquet", "tiles.parquet"), ("shards", "shard-0001.tar")):
        with pytest.raises(AgriClipError, match=f"{name}' is damaged"):
            load_tiles(sources[source], streaming=streaming)


def test_shards_without_tiles(sources, tmp_path):
    (tmp_path / "empty").mkdir()
    tarfile.open(tmp_path / "empty" / "a.tar", "w").close()
    with pytest.raises(AgriClipError, match="There are no tiles"):
        load_tiles(tmp_path / "empty", streaming=True)
    with pytest.raises(AgriClipError, match="There are no tiles"):
        load_tiles(sources["shards"], "nowhere", streaming=True)


def test_too_little_disk(sources):
    class Full:
        free = 10

    with pytest.raises(AgriClipError, match="needs about .* only 10 bytes are free"):
        load_tiles(sources["shards"], disk_usage=lambda folder: Full)


def test_labels_are_checked():
    assert check_labels([0, 1, 1, None, 255], 3).tolist() == [1, 2, 0]
    for labels, message in (
        ([0, 3, -1], "2 of 3 labels are no class index from 0 to 2 .*3 at row 1"),
        ([0.5, 1], "1 of 2"),
        ([1, 1], "All 2 labels are class 1"),
        ([None], "No tile has a label"),
    ):
        with pytest.raises(AgriClipError, match=message):
            check_labels(labels, 3)


def test_missing_labels_and_wrong_sensor_are_told(folder):
    tiles = load_tiles(folder)
    with pytest.raises(AgriClipError, match="does not fit the processor"):
        collected(tiles.map(lambda row: {"sensor": "sentinel1"}))
    rows = [{**row, "mask_file": None, "label": None} for row in rows_of(folder)]
    save_rows(folder, rows)
    for labels in ("mask", "label"):
        with pytest.raises(AgriClipError, match=f"has no {labels}"):
            collected(load_tiles(folder), labels=labels)
