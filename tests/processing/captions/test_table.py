import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import typer
from rasterio.transform import from_origin
from typer.testing import CliRunner

from processing.captions import describe, write_caption_table, write_captions
from processing.captions.command import caption
from processing.captions.table import read_classes
from processing.errors import AgriClipError
from tests.processing.captions.toy_tile import BANDS, CODES, spectra_of, toy_mask

SCALE = 2e-4


def _write(path, values, names=(), scale=None, crs=None, origin=(0, 0), **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.atleast_3d(values) if values.ndim == 2 else values
    values = values.transpose(2, 0, 1) if values.shape[-1] == 1 else values
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    transform = from_origin(*origin, 30, 30)
    with rasterio.open(path, "w", **profile, dtype=values.dtype, crs=crs, transform=transform) as file:
        file.write(values)
        for place, name in enumerate(names, 1):
            file.set_band_description(place, name)
        if scale is not None:
            file.scales = [scale] * len(values)
        file.update_tags(**tags)


@pytest.fixture
def tiles(tmp_path):
    """Three tiles: the toy tile, the same turned upside down, and one with nothing known."""
    masks = {"a": toy_mask(), "b": toy_mask()[::-1].copy(), "c": np.zeros((40, 40), np.uint8)}
    for name, mask in masks.items():
        stored = np.round(spectra_of(mask) / SCALE).astype(np.int16)
        _write(tmp_path / "images" / f"{name}.tif", stored, BANDS, SCALE, DATE="2015-09-02")
        _write(tmp_path / "masks" / f"{name}.tif", mask)
    (tmp_path / "classes.yaml").write_text("\n".join(f"{code}: {name}" for code, name in CODES.items()))
    return tmp_path


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_table_says_what_describe_says(tiles):
    seen = []
    result = write_caption_table(
        tiles, CODES, count=4, seed=3, latitude=46, progress=lambda done, total: seen.append((done, total))
    )
    assert (result.path, result.tiles, result.captions) == (tiles / "metadata.jsonl", 2, 8)
    assert result.skipped == (("c", "no pixel of the mask is known"),)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    rows = _lines(result.path)
    assert [row["file_name"] for row in rows] == ["images/a.tif", "images/b.tif"]
    mask = toy_mask()
    pixels = np.round(spectra_of(mask) / SCALE) * SCALE
    facts = describe(mask, CODES, pixels, BANDS, gsd=30, date="2015-09-02", latitude=46)
    assert rows[0]["captions"] == write_captions(facts, "mixed", 4, "3/a", directions=False)
    assert rows[0]["text"] == rows[0]["captions"][0]
    assert (rows[0]["date"], rows[0]["gsd"], rows[0]["key"]) == ("2015-09-02", 30.0, "a")


def test_training_reads_it(tiles):
    tile_dataset = pytest.importorskip("training.tile_dataset")
    output = tiles / "elsewhere"
    write_caption_table(tiles / "images", CODES, masks=tiles / "masks", output=output, count=2, row_each=True)
    table = tile_dataset.load_tiles(output)
    assert list(table["key"]) == ["a", "a.1", "b", "b.1"]
    assert list(table["text"]) == [row["text"] for row in _lines(output / "metadata.jsonl")]
    assert table[0]["date"] == ["2015-09-02"] and table[0]["gsd"] == 30.0


def test_rows_of_a_metadata_file_keep_what_they_say(tiles):
    row = {
        "key": "x",
        "file_name": "images/a.tif",
        "mask_file": "masks/a.tif",
        "label": 4,
        "block": "2",
        "text": "old",
    }
    window = row | {"key": "y", "window": [20, 0, 20, 20], "date": "2015-07-01"}
    (tiles / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, window)))
    result = write_caption_table(tiles, CODES, style="short", output=tiles / "new.jsonl")
    first, second = _lines(result.path)
    assert (first["label"], first["block"]) == (4, "2") and first["text"] != "old"
    assert second["window"] == [20, 0, 20, 20] and second["date"] == "2015-07-01"
    assert "soy" in second["text"].lower() and "wheat" not in second["text"].lower()  # the window is all soybean


def test_a_csv_has_a_row_for_each_caption(tiles):
    result = write_caption_table(tiles, CODES, count=3, output=tiles / "captions.csv")
    with result.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["a", "a.1", "a.2", "b", "b.1", "b.2"]
    assert all(row["text"] for row in rows)


def test_the_same_seed_writes_the_same_file(tiles):
    one, two, other = (
        write_caption_table(tiles, CODES, count=5, seed=seed, output=tiles / name).path.read_text()
        for seed, name in ((1, "1.jsonl"), (1, "2.jsonl"), (2, "3.jsonl"))
    )
    assert one == two != other


def test_latitude_of_a_georeferenced_tile_and_terrain(tmp_path):
    mask = toy_mask()
    # the same date is late summer in the north and late winter in the south
    for folder, northing in (("north", 5_100_000), ("south", 4_900_000)):
        crs = "EPSG:32614" if folder == "north" else "EPSG:32714"
        stored = np.round(spectra_of(mask) / SCALE).astype(np.int16)
        place = {"crs": crs, "origin": (500_000, northing)}
        _write(tmp_path / folder / "images" / "a.tif", stored, BANDS, SCALE, DATE="2015-09-02", **place)
        _write(tmp_path / folder / "masks" / "a.tif", mask, **place)
        dem = np.arange(40, dtype=np.float32)[None, :].repeat(40, axis=0) * 9
        _write(tmp_path / folder / "dem" / "a.tif", dem, **place)
        result = write_caption_table(tmp_path / folder, CODES, dem=tmp_path / folder / "dem", style="report", count=8)
        text = " ".join(_lines(result.path)[0]["captions"])
        assert "Steep terrain" in text
        assert ("late summer" in text) == (folder == "north")
        assert ("filling pods" in text) == (folder == "north")


def test_bands_and_scale_of_a_sensor(tmp_path):
    mask = toy_mask()
    spectra = spectra_of(mask)
    seven = np.concatenate([spectra[:1], spectra, spectra[4:]])  # coastal and swir2 beside the five
    _write(tmp_path / "images" / "a.tif", np.round((seven + 0.2) / 2.75e-5).astype(np.uint16))
    _write(tmp_path / "masks" / "a.tif", mask)
    with_sensor = write_caption_table(tmp_path, CODES, style="report", sensor="landsat8", output=tmp_path / "1.jsonl")
    assert "NDVI 0.27" in _lines(with_sensor.path)[0]["text"]  # (0.28 - 0.16) / 0.44
    without = write_caption_table(tmp_path, CODES, style="report", output=tmp_path / "2.jsonl")
    assert "NDVI" not in _lines(without.path)[0]["text"]


def test_a_table_that_fails_leaves_the_old_one(tiles):
    (tiles / "metadata.csv").write_text("old")
    (tiles / "images" / "b.tif").write_bytes(b"II*\0broken")
    with pytest.raises(AgriClipError, match=r"b\.tif' cannot be read"):
        write_caption_table(tiles, CODES, output=tiles / "metadata.csv")
    assert (tiles / "metadata.csv").read_text() == "old"
    assert not list(tiles.glob(".*partial*"))


def test_class_tables_of_any_kind(tmp_path):
    tables = {
        "a.yaml": "5: soybean\n1: corn\n",
        "b.json": '{"5": "soybean", "1": "corn"}',
        "c.csv": "No.,Crop,,\n1,corn,,\n5,soybean,,\n40,,,\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        assert read_classes(tmp_path / name) == {5: "soybean", 1: "corn"}
    (tmp_path / "d.yaml").write_text("[corn, soybean]")
    assert read_classes(tmp_path / "d.yaml") == {0: "corn", 1: "soybean"}
    assert read_classes("cdl") is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: {"classes": folder / "none.yaml"}, "no class table"),
        (
            lambda folder: {"classes": (folder / "x.yaml", (folder / "x.yaml").write_text("just words"))[0]},
            "no class table",
        ),
        (lambda folder: {"sensor": "landsat99"}, "no sensor 'landsat99'"),
        (lambda folder: {"masks": folder / "nowhere"}, "no folder"),
        (lambda folder: {"masks": folder / "images", "folder": folder}, "has no GeoTIFF"),
        (lambda folder: {"dem": folder / "dem"}, "no elevation"),
        (lambda folder: (folder / "masks" / "b.tif").unlink() or {}, "1 of 3 images have no mask"),
        (lambda folder: {"nodata": (1, 5, 23, 111, 141, 0), "classes": {9: "rice"}}, "None of the 3 tiles"),
    ],
)
def test_bad_input_is_one_sentence(tiles, change, sentence):
    changed = change(tiles)
    arguments = {"folder": tiles, "classes": CODES} | changed
    with pytest.raises(AgriClipError, match=sentence):
        write_caption_table(**arguments)


def test_the_command(tiles):
    app = typer.Typer()
    app.command()(caption)
    run = CliRunner().invoke
    given = [str(tiles / "images"), str(tiles / "masks"), "--classes", str(tiles / "classes.yaml")]
    result = run(app, [*given, "-o", str(tiles / "out"), "-n", "2", "--style", "short", "--latitude", "46", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["tiles"], said["captions"], said["skipped"][0]["tile"]) == (2, 4, "c")
    assert len(_lines(tiles / "out" / "metadata.jsonl")) == 2
    plain = run(app, [*given, "-o", str(tiles / "out2"), "--quiet"])
    assert "2 of 2 tiles" in plain.output and "Left out  1 tiles" in plain.output
    assert isinstance(run(app, [*given, "--style", "haiku"]).exception, AgriClipError)


@pytest.mark.realdata
def test_real_tiles(tmp_path):
    default = Path(__file__).resolve().parents[4] / "shared" / "data"
    source = Path(os.environ.get("AGRICLIP_DATA", default)) / "landsat8_cdl"
    if not (source / "images").is_dir():
        pytest.skip(f"the Landsat tiles are not in {source}")
    for name in ("10_20.tif", "32_31.tif", "43_49.tif"):
        if not (source / "masks" / name).is_file():
            continue
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).symlink_to(source / folder / name)
    rows = _lines(write_caption_table(tmp_path, count=5, latitude=46).path)
    assert rows
    for row in rows:
        with rasterio.open(row["mask_file"]) as file:
            mask = file.read(1)
        largest = np.bincount(mask[mask > 0]).argmax()
        report = next(text for text in row["captions"] if "report" in text.lower())
        share = round(100 * float((mask[mask > 0] == largest).mean()))
        assert f": {share} % of the area" in report
        assert "2015" not in report and "latitude" not in report
