"""Loaders on tiny copies of each source's layout; what they write is read by training's own reader."""

import csv
import json
import struct

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import from_origin

from processing.errors import AgriClipError
from processing.public_data import converters_scenes as scenes
from processing.public_data import converters_series as series
from processing.public_data import converters_study as study
from processing.public_data.r_data import read_rda, to_grid
from processing.public_data.registry import get_source
from training.tile_dataset import load_tiles
from training.tile_reader import Tile, read_bands, read_codes
from training.tile_transform import TileTransform

RNG = np.random.default_rng(0)


def write(path, values, **said):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values if values.ndim == 3 else values[None]
    said.setdefault("driver", "GTiff")
    with rasterio.open(
        path, "w", count=len(values), height=values.shape[1], width=values.shape[2], dtype=values.dtype, **said
    ) as out:
        out.write(values)
    return values


def picture(path, size=8):
    """A PNG: JPEG would change the numbers."""
    return write(path, RNG.integers(0, 255, (3, size, size), dtype=np.uint8), driver="PNG")


def read(folder, **said):
    return {row["key"]: row for row in load_tiles(folder, **said)}


def pixels(row):
    return [stack.values.numpy() for stack in read_bands(Tile.from_row(row))]


def codes(row):
    return read_codes(Tile.from_row(row)).numpy()


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_ag_net(tmp_path):
    options = get_source("ag-net").options
    bands = {}
    for row, column in ((3, 4), (10, 11)):
        for band in range(1, 8):
            name = f"lc8_2015245_{row}_{column}_{band}.tif"
            bands[row, column, band] = write(
                tmp_path / "x" / "input_32bit" / name, RNG.integers(0, 900, (8, 8)).astype(np.int32)
            )
            write(tmp_path / "x" / "input" / name, np.zeros((8, 8), dtype=np.uint8))
        mask = RNG.choice([1, 5, 176], (8, 8)).astype(np.uint8)
        write(tmp_path / "x" / "target" / f"cdl_2015245_{row}_{column}.tif", mask)
    write(tmp_path / "x" / "input_32bit" / "lc8_2015245_9_9_2.tif", np.zeros((8, 8), dtype=np.int32))  # incomplete
    series.ag_net(tmp_path, tmp_path / "tiles", options)
    found = read(tmp_path / "tiles")
    assert sorted(found) == ["images/03_04", "images/10_11"]
    row = found["images/10_11"]
    assert (row["date"], row["block"], row["sensor"], row["gsd"]) == (["2015-09-02"], "1_1", "landsat8", 30.0)
    np.testing.assert_array_equal(pixels(row)[0], np.concatenate([bands[10, 11, band] for band in range(2, 8)]))
    np.testing.assert_array_equal(codes(row), mask)
    with rasterio.open(tmp_path / "tiles" / "images" / "10_11.tif") as source:
        assert source.descriptions == ("blue", "green", "red", "nir", "swir1", "swir2")
        assert set(source.scales) == {0.0008}


def test_eurosat_ms_names_its_bands_and_follows_the_lists(tmp_path):
    options = get_source("eurosat-ms").options
    for label in ("Forest", "AnnualCrop"):
        for i in (1, 2):
            values = np.arange(13, dtype=np.uint16)[:, None, None] * np.ones((1, 8, 8), dtype=np.uint16) + i
            write(tmp_path / "u" / "remote" / "tif" / label / f"{label}_{i}.tif", values)
    for split, names in (("train", "Forest_1.jpg\nAnnualCrop_1.jpg"), ("val", "Forest_2.jpg"), ("test", "")):
        (tmp_path / f"eurosat-{split}.txt").write_text(names)
    scenes.class_folders(tmp_path, tmp_path / "tiles", options)
    found = read(tmp_path / "tiles")
    assert {key: (row["label"], row["split"]) for key, row in found.items()} == {
        "images/Forest/Forest_1": (1, "train"),
        "images/AnnualCrop/AnnualCrop_1": (0, "train"),
        "images/Forest/Forest_2": (1, "val"),
    }
    assert json.loads((tmp_path / "tiles" / "classes.json").read_text()) == {"0": "AnnualCrop", "1": "Forest"}
    # The processor of the model finds each band by its name: band 8A, the last of the source, stands before B09.
    from processing.image_processing_agriclip import AgriClipImageProcessor
    from processing.sensors_agriclip import SENSORS

    processor = AgriClipImageProcessor(sensor="sentinel2_l1c", image_size=8, do_normalize=False, do_resize=False)
    read_out = TileTransform(processor).read(Tile.from_row(found["images/Forest/Forest_1"]))
    order = [options["bands"].index(name) for name in SENSORS["sentinel2_l1c"].channel_names]
    ranks = read_out["pixel_values"].numpy().reshape(13, -1)[:, 0].argsort().argsort()
    np.testing.assert_array_equal(ranks, order)


def test_eurosat_rgb_is_linked_and_read(tmp_path):
    for label in ("River", "SeaLake"):
        picture(tmp_path / "EuroSAT" / "2750" / label / f"{label}_1.png")
    for split in ("train", "val", "test"):
        (tmp_path / f"eurosat-{split}.txt").write_text("River_1.jpg" if split == "train" else "SeaLake_1.jpg")
    scenes.class_folders(tmp_path, tmp_path / "tiles", get_source("eurosat-rgb").options)
    made = tmp_path / "tiles" / "images" / "River" / "River_1.png"
    assert made.samefile(tmp_path / "EuroSAT" / "2750" / "River" / "River_1.png")
    assert [row["label"] for row in load_tiles(tmp_path / "tiles", split="train")] == [0]


def test_class_folders_without_lists_and_in_a_tree(tmp_path):
    for path in ("train/agriculture/arable/dry_field/a", "train/water/river/b"):
        picture(tmp_path / f"{path}.jpg".replace(".jpg", ".png"))
    scenes.class_folders(tmp_path, tmp_path / "tiles", {"sensor": "rgb", "inside": "train"})
    assert {row["class_name"] for row in rows(tmp_path / "tiles")} == {"dry_field", "river"}
    with pytest.raises(AgriClipError, match="no picture in folders by class"):
        scenes.class_folders(tmp_path / "tiles" / "none", tmp_path / "t2", {})
    with pytest.raises(AgriClipError, match="'lists.txt' of the split 'train' is not below"):
        scenes.class_folders(tmp_path / "train", tmp_path / "t2", {"splits": {"train": "lists.txt"}})
    assert not (tmp_path / "t2").exists()


def test_pastis(tmp_path):
    base, features, arrays = tmp_path / "PASTIS-R", [], {}
    for key, fold, dates in ((10000, 1, 3), (10001, 5, 4)):
        arrays[key] = RNG.integers(0, 9000, (dates, 10, 8, 8)).astype(np.int16)
        target = RNG.integers(0, 20, (3, 8, 8)).astype(np.uint8)
        target[0, 0, :2] = 19, 15
        for name, values in (("DATA_S2/S2", arrays[key]), ("ANNOTATIONS/TARGET", target)):
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(base / f"{name}_{key}.npy", values)
        days = {str(i): 20180924 + i for i in range(dates)}
        properties = {"ID_PATCH": key, "Fold": fold, "dates-S2": days if fold == 1 else json.dumps(days)}
        features.append({"type": "Feature", "properties": properties})
    (base / "metadata.geojson").write_text(json.dumps({"features": features}))
    series.pastis(tmp_path, tmp_path / "tiles", {"dates": None})
    found = read(tmp_path / "tiles")
    row = found["pastis_10001"]
    assert (row["split"], row["block"], row["date"][1]) == ("test", "fold5", "2018-09-25")
    for image, expected in zip(pixels(row), arrays[10001], strict=True):
        np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(codes(row), np.where(target[0] == 19, 255, target[0]))  # void is not scored
    series.pastis(tmp_path / "PASTIS-R", tmp_path / "few", {"dates": 2})
    assert read(tmp_path / "few")["pastis_10001"]["date"] == ["2018-09-24", "2018-09-27"]
    (base / "DATA_S2" / "S2_10000.npy").unlink()
    with pytest.raises(AgriClipError, match="names the patch 10000"):
        series.pastis(tmp_path, tmp_path / "tiles", {})


def test_multi_temporal_crop(tmp_path):
    placed = {"crs": "EPSG:5070", "transform": from_origin(0, 0, 30, 30)}
    chips = {}
    for folder, key in (("training_chips", "chip_000_014"), ("validation_chips", "chip_045_123")):
        chips[key] = write(tmp_path / folder / f"{key}_merged.tif", RNG.integers(0, 5000, (18, 8, 8)).astype(np.int16),
                           nodata=-9999, **placed)  # fmt: skip
        mask = write(tmp_path / folder / f"{key}.mask.tif", RNG.integers(0, 14, (8, 8)).astype(np.uint8), **placed)
    with (tmp_path / "chips_df.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["chip_id", "first_img_date", "middle_img_date", "last_img_date"])
        table.writerow(["chip_045_123", "2022-03-11", "2022-05-20", "2022-09-07"])
    series.multi_temporal_crop(tmp_path, tmp_path / "tiles", {"block": 20})
    row = read(tmp_path / "tiles", split="val")["chip_045_123"]
    assert row["date"] == ["2022-03-11", "2022-05-20", "2022-09-07"] and row["block"] == "2_6"
    np.testing.assert_array_equal(np.concatenate(pixels(row)), chips["chip_045_123"])
    np.testing.assert_array_equal(codes(row), np.where(mask[0] == 0, 255, mask[0]))
    assert read(tmp_path / "tiles")["chip_000_014"]["split"] == "train"
    (tmp_path / "training_data.txt").write_text("chip_045_123\n")
    series.multi_temporal_crop(tmp_path, tmp_path / "tiles", {})
    assert read(tmp_path / "tiles")["chip_045_123"]["split"] == "train"  # lists come before folders


def test_farmseg_vl(tmp_path):
    masks = {}
    for split, stem in (("train", "a1"), ("test", "b2")):
        picture(tmp_path / split / "img" / f"{stem}.png")
        masks[stem] = write(tmp_path / split / "lbl" / f"{stem}.png", RNG.choice([0, 255], (8, 8)).astype(np.uint8),
                            driver="PNG")  # fmt: skip
    (tmp_path / "train" / "json").mkdir()
    (tmp_path / "train" / "json" / "a1.json").write_text(json.dumps({"text": ["Strips of  wheat near a river."]}))
    (tmp_path / "test" / "json").mkdir()
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Terraces in spring."}]
    (tmp_path / "test" / "json" / "b2.json").write_text(json.dumps([{"image": "b2.png", "conversations": turns}]))
    scenes.farmseg_vl(tmp_path, tmp_path / "tiles", {"sensor": "rgb"})
    found = read(tmp_path / "tiles")
    assert {key: (row["text"], row["split"]) for key, row in found.items()} == {
        "images/train/a1": ("Strips of wheat near a river.", "train"),
        "images/test/b2": ("Terraces in spring.", "test"),
    }
    np.testing.assert_array_equal(codes(found["images/test/b2"]), masks["b2"][0] > 0)
    (tmp_path / "test" / "lbl" / "b2.png").unlink()
    with pytest.raises(AgriClipError, match="has no mask"):
        scenes.farmseg_vl(tmp_path, tmp_path / "tiles", {})


def test_captions_of_rsicd_and_of_rsicap(tmp_path):
    for name in ("airport_1", "farm_2"):
        picture(tmp_path / "RSICD_images" / f"{name}.png")
    sentences = [{"raw": " many planes "}, {"raw": ""}, {"raw": "an airport"}]
    content = {"images": [{"filename": "airport_1.png", "split": "val", "sentences": sentences},
                          {"filename": "farm_2.png", "split": "test", "sentences": [{"raw": "fields"}]}]}  # fmt: skip
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps(content))
    scenes.captions(tmp_path, tmp_path / "tiles", {"sensor": "rgb"})
    assert rows(tmp_path / "tiles")[0]["captions"] == ["many planes", "an airport"]
    assert read(tmp_path / "tiles", split="val")["images/airport_1"]["text"] == "many planes"
    other = {"annotations": [{"filename": "farm_2.png", "caption": "Green fields."}]}
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps(other))
    scenes.captions(tmp_path, tmp_path / "two", {})
    assert [row["text"] for row in rows(tmp_path / "two")] == ["Green fields."]
    content["images"].append({"filename": "lost.png", "sentences": [{"raw": "x"}]})
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps(content))
    with pytest.raises(AgriClipError, match=r"1 records .* \(lost.png\)"):
        scenes.captions(tmp_path, tmp_path / "three", {})


def test_captions_in_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    picture(tmp_path / "a.png")
    image = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    record = {"filename": "rsicd_images/port_3.png", "captions": ["ships", " "], "image": image}
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.Table.from_pylist([record]), tmp_path / "data" / "valid-00000-of-00001.parquet")
    scenes.captions_parquet(tmp_path, tmp_path / "tiles", {"sensor": "rgb"})
    row = read(tmp_path / "tiles", split="val")["images/port_3"]
    assert row["text"] == "ships" and pixels(row)[0].shape == (3, 8, 8)


def test_coco_outlines_become_masks(tmp_path):
    picture(tmp_path / "JPEGImages" / "P1.png", 16)
    picture(tmp_path / "JPEGImages" / "P2.png", 16)
    for split, name, ring in (("train2017", "P1", [[2, 3, 6, 3, 6, 9, 2, 9]]), ("test2017", "P2", None)):
        content = {"categories": [{"id": 1, "name": "ship"}], "annotations": [],
                   "images": [{"id": 7, "file_name": f"{name}.png", "height": 16, "width": 16}]}  # fmt: skip
        if ring:
            content["annotations"].append({"image_id": 7, "category_id": 1, "segmentation": ring})
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(content))
    scenes.coco_masks(tmp_path, tmp_path / "tiles", get_source("hrsid").options)
    found = read(tmp_path / "tiles")
    expected = np.zeros((16, 16))
    expected[3:9, 2:6] = 1
    np.testing.assert_array_equal(codes(found["images/P1"]), expected)
    assert codes(found["images/P2"]).max() == 0 and found["images/P2"]["split"] == "test"


def test_terramind_modalities(tmp_path):
    placed = {"crs": "EPSG:32632", "transform": from_origin(500000, 5200000, 10, 10)}
    image = write(tmp_path / "S2L2A" / "p.tif", RNG.integers(0, 5000, (12, 8, 8)).astype(np.int16), **placed)
    mask = write(tmp_path / "LULC" / "p.tif", RNG.integers(0, 10, (8, 8)).astype(np.uint8), **placed)
    write(tmp_path / "S1RTC" / "p.tif", np.zeros((2, 8, 8), dtype=np.float32), **placed)
    series.paired_tiles(tmp_path, tmp_path / "tiles", get_source("terramind-examples").options)
    row = read(tmp_path / "tiles")["images/p"]
    np.testing.assert_array_equal(pixels(row)[0], image)
    np.testing.assert_array_equal(codes(row), np.where(mask[0] == 0, 255, mask[0]))
    with rasterio.open(tmp_path / "tiles" / "images" / "p.tif") as source:
        assert source.crs == "EPSG:32632" and source.descriptions[8] == "B8A"


def test_scenes_with_masks_are_cut(tmp_path):
    options = get_source("gf1-wfv").options | {"size": 8}
    image = write(tmp_path / "GF1_A.tiff", RNG.integers(0, 900, (4, 20, 16)).astype(np.int16))
    mask = np.full((20, 16), 255, dtype=np.uint8)
    mask[:8, :8] = 0  # no value: this window is left out
    mask[8:16, :4], mask[8:16, 4:8] = 1, 128
    write(tmp_path / "GF1_A_ReferenceMask.tif", mask)
    series.scene_masks(tmp_path, tmp_path / "tiles", options)
    found = read(tmp_path / "tiles")
    assert sorted(found) == ["images/GF1_A/0_8", "images/GF1_A/8_0", "images/GF1_A/8_8"]
    np.testing.assert_array_equal(pixels(found["images/GF1_A/8_0"])[0], image[:, 8:16, :8])
    assert set(np.unique(codes(found["images/GF1_A/8_0"]))) == {0, 1}
    assert (codes(found["images/GF1_A/8_8"]) == 2).all()


def test_bigearthnet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    tile, key = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    sizes = dict.fromkeys(series.BIGEARTHNET_BANDS, 60) | dict.fromkeys(("B02", "B03", "B04", "B08"), 120)
    for i, (band, size) in enumerate((sizes | {"B01": 20, "B09": 20}).items()):
        write(tmp_path / "BigEarthNet-S2" / tile / key / f"{key}_{band}.tif",
              np.full((size, size), 100 * i, dtype=np.uint16), crs="EPSG:32633",
              transform=from_origin(3e5, 5e6, 1200 / size, 1200 / size))  # fmt: skip
    records = [{"patch_id": key, "labels": ["Arable land", "Pastures"], "split": "validation"},
               {"patch_id": "absent", "labels": ["Pastures"], "split": "train"}]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "metadata.parquet")
    series.bigearthnet(tmp_path, tmp_path / "tiles", {})
    (row,) = read(tmp_path / "tiles").values()
    assert (row["text"], row["split"], row["date"]) == ("arable land, pastures", "val", ["2017-06-13"])
    values = pixels(row)[0]
    assert values.shape == (12, 120, 120) and row["block"] == tile
    order = list(series.BIGEARTHNET_BANDS)
    np.testing.assert_array_equal(values[:, 0, 0], [100 * order.index(band) for band in order])


def test_cdl_is_counted_per_cell(tmp_path):
    options = get_source("cdl").options | {"cell": 5}
    placed = {"crs": "EPSG:5070", "transform": from_origin(1000, 9000, 30, 30)}
    years = [RNG.choice([0, 1, 5, 24, 26, 61, 176, 254], (13, 12)).astype(np.uint8) for _ in range(2)]
    for year, pixels_of_year in zip((2021, 2022), years, strict=True):
        write(tmp_path / f"{year}_30m_cdls.tif", pixels_of_year, **placed)
    study.cdl_counts(tmp_path, tmp_path / "out", options)
    with (tmp_path / "out" / "labels.csv").open() as stream:
        table = {row["id"]: row for row in csv.DictReader(stream)}
    assert len(table) == 3 * 3
    pooled = np.concatenate([year[5:10, 10:12].ravel() for year in years])
    row = table["1_2"]
    assert int(row["dc26"]) == (pooled == 26).sum()
    assert int(row["double_crop_soy"]) == np.isin(pooled, (26, 254)).sum()
    assert int(row["crop_total"]) == np.isin(pooled, (1, 5, 24, 26, 254)).sum()
    assert (float(row["x"]), float(row["y"])) == (1000 + 12.5 * 30, 9000 - 7.5 * 30)
    block = study.resolve_block(get_source("cdl").study, tmp_path / "out")
    assert yaml.safe_load(study.snippet(block))["labels"]["table"] == "labels.csv"
    write(tmp_path / "2020_30m_cdls.tif", years[0][:5], **placed)
    with pytest.raises(AgriClipError, match="on another grid"):
        study.cdl_counts(tmp_path, tmp_path / "out", options)


def test_a_block_names_files_as_they_lie(tmp_path):
    for name in ("a/now.tif", "a/then.tif", "b/labels.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    block = {"labels": {"table": "labels.csv", "id": "id"},
             "predictors": [{"file": "now.tif", "variables": [{"name": "t", "title": "file"}]}],
             "scenarios": [{"name": "s", "delta": {"now.tif": {"baseline": "now.tif", "future": "then.tif"}}}],
             }  # fmt: skip
    found = study.resolve_block(block, tmp_path)
    assert found["labels"]["table"] == "b/labels.csv" and found["data"] == str(tmp_path)
    assert found["scenarios"][0]["delta"] == {"a/now.tif": {"baseline": "a/now.tif", "future": "a/then.tif"}}
    with pytest.raises(AgriClipError, match="'nov.tif' is not below .*did you mean 'now.tif'"):
        study.resolve_block({"predictors": [{"file": "nov.tif"}]}, tmp_path)


class R:
    """Writes what R's serialization holds (XDR, version 2), item by item."""

    @staticmethod
    def text(word):
        return struct.pack(">ii", 9, len(word)) + word.encode()

    @classmethod
    def texts(cls, words):
        return struct.pack(">ii", 16, len(words)) + b"".join(map(cls.text, words))

    @classmethod
    def pairs(cls, **items):
        symbols = b"".join(struct.pack(">ii", 2 | 0x400, 1) + cls.text(k) + v for k, v in items.items())
        return symbols + struct.pack(">i", 254)

    @staticmethod
    def reals(values, attributes=b""):
        flags = 14 | (0x200 if attributes else 0)
        return struct.pack(">ii", flags, len(values)) + np.asarray(values, ">f8").tobytes() + attributes

    @staticmethod
    def integers(values):
        return struct.pack(">ii", 13, len(values)) + np.asarray(values, ">i4").tobytes()

    @classmethod
    def frame(cls, **columns):
        body = struct.pack(">ii", 19 | 0x300, len(columns)) + b"".join(columns.values())
        return body + cls.pairs(names=cls.texts(list(columns)), **{"class": cls.texts(["data.frame"])})

    @classmethod
    def s4(cls, **slots):
        return struct.pack(">i", 25 | 0x300) + cls.pairs(**slots)

    @classmethod
    def file(cls, path, compress, **objects):
        header = b"RDX2\nX\n" + struct.pack(">iii", 2, 0x30600, 0x20300)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(compress(header + cls.pairs(**objects)))


@pytest.mark.parametrize("codec", ["gzip", "bz2", "lzma"])
def test_a_table_of_r_becomes_a_raster(tmp_path, codec):
    from importlib import import_module

    x, y = [-90.25, -89.75, -90.25, -89.75, -89.25], [40.25, 40.25, 39.75, 39.75, 39.75]
    frame = R.frame(
        x=R.reals(x), y=R.reals(y), bio1=R.reals([1, 2, 3, 4, 5]), bio12=R.integers([10, 20, 30, -(2**31), 50])
    )
    name = "bioclim_gswp3-w5e5_obsclim_2000_landonly"
    R.file(tmp_path / "in" / f"{name}.rda", import_module(codec).compress, **{name: frame})
    study.r_tables(tmp_path / "in", tmp_path / "out", get_source("isimip-bioclim").options)
    with rasterio.open(tmp_path / "out" / "bioclim_gswp3-w5e5_obsclim_2000.tif") as source:
        assert source.descriptions == ("bio1", "bio12") and source.crs == "EPSG:4326"
        assert source.bounds == (-90.5, 39.5, -89.0, 40.5)
        nan = np.nan
        np.testing.assert_array_equal(source.read(1), [[1, 2, nan], [3, 4, 5]])
        np.testing.assert_array_equal(source.read(2), [[10, 20, nan], [30, nan, 50]])


def test_a_raster_of_r(tmp_path):
    extent = R.s4(xmin=R.reals([-100]), xmax=R.reals([-98]), ymin=R.reals([30]), ymax=R.reals([31]))
    values = np.arange(16.0)  # two layers of 2 x 4 cells
    dims = R.pairs(dim=R.integers([8, 2]))
    data = R.s4(values=R.reals(values, dims), names=R.texts(["jan", "feb"]))
    brick = R.s4(data=data, extent=extent, nrows=R.integers([2]), ncols=R.integers([4]))
    R.file(tmp_path / "temp_NA.rda", bytes, temp_NA=brick)
    grid = to_grid(read_rda(tmp_path / "temp_NA.rda")["temp_NA"], "temp_NA")
    np.testing.assert_array_equal(grid.values, values.reshape(2, 2, 4))
    assert (grid.names, grid.west, grid.north, grid.step) == (("jan", "feb"), -100.0, 31.0, (0.5, 0.5))


def test_ranges_and_references_of_newer_r(tmp_path):
    """Version 3 stores 1:4 as a recipe, and a symbol that came before as a reference to it."""
    symbol = struct.pack(">i", 1) + R.text("compact_intseq")
    information = struct.pack(">i", 2) + symbol + struct.pack(">i", 254)
    recipe = struct.pack(">i", 238) + information + R.reals([4, 1, 1]) + struct.pack(">i", 254)
    named = lambda tag, value: struct.pack(">i", 2 | 0x400) + tag + value  # noqa: E731
    first = struct.pack(">i", 1) + R.text("a")
    again = struct.pack(">i", 255 | 1 << 8)  # the first symbol once more
    body = named(first, recipe) + named(again, R.integers([7])) + struct.pack(">i", 254)
    header = b"RDX3\nX\n" + struct.pack(">iiii", 3, 0x40000, 0x30500, 5) + b"UTF-8"
    (tmp_path / "x.rda").write_bytes(header + named(first, recipe) + struct.pack(">i", 254))
    np.testing.assert_array_equal(read_rda(tmp_path / "x.rda")["a"].value, [1, 2, 3, 4])
    (tmp_path / "x.rda").write_bytes(header + body)
    np.testing.assert_array_equal(read_rda(tmp_path / "x.rda")["a"].value, [7])  # the same name: the last one counts


def test_damaged_or_foreign_files_of_r(tmp_path):
    path = tmp_path / "x.rda"
    frame = R.frame(x=R.reals([0, 1]), y=R.reals([0, 1]), a=R.reals([1, 2]))
    R.file(path, bytes, a=frame)
    whole = path.read_bytes()
    closure = b"RDX2\nX\n" + struct.pack(">iii", 2, 0, 0) + R.pairs(f=struct.pack(">i", 3))
    for content in (b"hello", whole[:-40], b"\x1f\x8b" + b"0" * 30, closure):
        path.write_bytes(content)
        with pytest.raises(AgriClipError, match="no data file of R that can be read"):
            read_rda(path)
    R.file(path, bytes, a=R.frame(x=R.reals([0, 1, 2.5]), y=R.reals([0, 1, 2]), a=R.reals([1, 2, 3])))
    with pytest.raises(AgriClipError, match="no regular grid"):
        to_grid(read_rda(path)["a"], "a")
    R.file(path, bytes, a=R.frame(b=R.reals([0])))
    with pytest.raises(AgriClipError, match="no table with x and y"):
        to_grid(read_rda(path)["a"], "a")
