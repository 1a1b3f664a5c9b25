"""What visitors bring: checks, answers, and everything that should not be let in."""

import csv
import gzip
import io
import struct
import time
import zipfile

import numpy as np
import pytest
import rasterio

from mapping.outputs import read_map, write_cog
from processing.errors import AgriClipError
from processing.grids import Grid
from spaces_demo.answers import answer_upload, safe_cell, segment_upload
from spaces_demo.sessions import Session, remove_old, root_folder, safe_name
from spaces_demo.uploads import MOST_BYTES, check_table, look_at, take_file

PLACE = Grid.from_bounds((-90.0, 35.0, -88.0, 37.0), 0.25, "EPSG:4326")


@pytest.fixture
def session():
    visitor = Session()
    yield visitor
    visitor.remove()


def brought(path, session, variables, purpose="auto"):
    return look_at(*take_file(path, session), variables, purpose)


def raster_of(path, temperature=14.0, rain=1000.0, names=("temp", "rain"), units=("degC", "mm"), grid=PLACE):
    rows = np.arange(grid.height, dtype=np.float32)[:, None] * np.ones(grid.width, dtype=np.float32)
    values = np.stack([temperature + rows, np.full(grid.shape, rain, np.float32)])
    return write_cog(path, values.astype(np.float32), grid, band_names=list(names), units=list(units))


def states(upload):
    return {check.what: check.state for check in upload.checks}


# -- what is taken ----------------------------------------------------------------------------------------------------


def test_a_raster_of_predictors_is_checked_and_mapped(tmp_path, session, engine, example):
    path = raster_of(tmp_path / "mine.tif")
    upload = brought(path, session, example.variables)
    assert upload.kind == "predictors" and upload.usable, check_table(upload.checks)
    assert upload.path.is_relative_to(session.folder)
    answered = answer_upload(upload, engine, session.fresh("answers"))
    names = sorted(file.name for file in answered.files)
    assert names == ["mine_out_of_range.tif", "mine_probability.qml", "mine_probability.tif", "mine_std.qml",
                     "mine_std.tif"]  # fmt: skip
    chance = read_map(next(file for file in answered.files if file.name == "mine_probability.tif"))
    table = np.column_stack([(14.0 + np.arange(PLACE.height)), np.full(PLACE.height, 1000.0)])
    assert chance[:, 3] == pytest.approx(engine.predict_table(table).probability, abs=1e-6)
    with rasterio.open(answered.files[0]) as raster:
        assert raster.crs.to_epsg() == 4326 and raster.transform.almost_equals(PLACE.transform)
    assert answered.picture.is_file() and "without an image" in answered.sentence


def test_units_of_bands_are_converted(tmp_path, session, engine, example):
    kelvin = raster_of(tmp_path / "k.tif", 287.15, 1000 / 25.4, units=("K", "in"))
    celsius = raster_of(tmp_path / "c.tif")
    maps = []
    for path in (kelvin, celsius):
        upload = brought(path, session, example.variables)
        assert upload.usable, check_table(upload.checks)
        files = answer_upload(upload, engine, session.fresh("answers")).files
        maps.append(read_map(next(file for file in files if file.name.endswith("probability.tif"))))
    assert maps[0] == pytest.approx(maps[1], abs=2e-3)


def test_a_table_of_places_takes_the_maps(tmp_path, session, engine, example):
    path = tmp_path / "places.csv"
    path.write_text('name;lon;lat\n=HYPERLINK("x");-86.2;37.1\nsea;2;48\n')
    upload = brought(path, session, example.variables)
    assert upload.kind == "points" and upload.usable
    answered = answer_upload(upload, engine, session.fresh("answers"))
    rows = list(csv.DictReader(answered.files[0].open()))
    wanted = float(example.layer("present", "probability")[example.cell(-86.2, 37.1)])
    assert float(rows[0]["probability_present"]) == pytest.approx(wanted, abs=1e-4)
    assert rows[0]["name"].startswith("'=") and "outside the map" in rows[1]["note"]


def test_a_table_of_predictors_and_of_reports(tmp_path, session, engine, example):
    path = tmp_path / "p.csv"
    path.write_text("lon,lat,temp (F),rain (in)\n-86,37,57.2,40\n-86,37,,\n")
    upload = brought(path, session, example.variables)
    answered = answer_upload(upload, engine, session.fresh("answers"))
    rows = list(csv.DictReader(answered.files[0].open()))
    wanted = engine.predict_table([[14.0, 1016.0]]).probability[0]
    assert float(rows[0]["probability"]) == pytest.approx(float(wanted), abs=2e-4)
    assert rows[1]["probability"] == "" and rows[1]["note"] == "no numbers"
    path = tmp_path / "r.csv"
    path.write_text('site,report\na,"Rain 400 mm."\nb,\n')
    answered = answer_upload(brought(path, session, example.variables), engine, session.fresh("answers"))
    assert answered.rows[0][2] == pytest.approx(engine.ask_texts(["Rain 400 mm."])[0].probability, abs=1e-4)
    assert "There is no text" in answered.rows[1][-1]


def test_an_image_is_searched_by_text(tmp_path, session, engine, example):
    utm = Grid.from_bounds((600000, 5290000, 600480, 5290480), 10, "EPSG:32633")
    bands = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
    values = np.random.default_rng(0).integers(300, 3000, (len(bands), *utm.shape)).astype(np.float32)
    path = write_cog(tmp_path / "s2.tif", values, utm, dtype="uint16", band_names=bands)
    upload = brought(path, session, example.variables)
    assert upload.kind == "image" and upload.usable
    with pytest.raises(AgriClipError, match="Nothing was asked"):
        segment_upload(upload, [" "], engine, session.fresh("answers"))
    with pytest.raises(AgriClipError, match="by a text"):
        answer_upload(upload, engine, session.fresh("answers"))
    try:
        answered = segment_upload(upload, ["soybean fields"], engine, session.fresh("answers"))
    except AgriClipError as error:
        assert str(session.folder) not in str(error)
        raise
    with rasterio.open(next(file for file in answered.files if file.suffix == ".tif")) as raster:
        assert raster.crs.to_epsg() == 32633 and raster.shape == utm.shape


# -- what is not ------------------------------------------------------------------------------------------------------


def tiff_that_claims(width, height, bands=1):
    """A little TIFF whose header claims a size that the file does not hold."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, width * height)]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (
        b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + body + struct.pack("<I", 0) + b"\x00" * 64
    )


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.tif", b"\x00" * 5_000_000)
    return stream.getvalue()


VRT = b"""<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("photo.tif", b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "neither a GeoTIFF nor a text table"),
        ("words.tif", b"these are words", "called a raster but holds text"),
        ("bomb.zip", zipped(), "is an archive"),
        ("bomb.tif", zipped(), "is an archive"),
        ("bomb.csv", gzip.compress(b"lon,lat\n" * 100000), "is an archive"),
        ("point_elsewhere.tif", VRT, "called a raster but holds text"),
        ("point_elsewhere.csv", VRT, "neither a GeoTIFF nor a CSV"),
        ("empty.csv", b"", "is empty"),
        ("half.tif", b"II*\x00\x08\x00\x00\x00", "cannot be read as a GeoTIFF"),
        ("only_names.csv", b"lon,lat\n", "no rows"),
        ("wide.csv", b",".join([b"a"] * 1000) + b"\n1\n", "columns"),
    ],
)
def test_hostile_files_end_in_a_sentence(tmp_path, session, example, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(AgriClipError, match=words) as caught:
        upload = brought(path, session, example.variables)
        raise AgriClipError(upload.refusal or "taken")
    assert time.perf_counter() - start < 5 and str(tmp_path) not in str(caught.value)


def test_two_gigabytes_by_size_and_by_claim(tmp_path, session, example):
    large = tmp_path / "large.tif"
    with large.open("wb") as stream:  # a file with a hole: nothing is written to the disk
        stream.write(b"II*\x00")
        stream.truncate(2 * 2**30)
    with pytest.raises(AgriClipError, match=f"2,048 MB, more than the {MOST_BYTES >> 20}"):
        take_file(large, session)
    claim = tmp_path / "claim.tif"
    claim.write_bytes(tiff_that_claims(60_000, 36_000))
    upload = brought(claim, session, example.variables)
    assert not upload.usable and "60,000 x 36,000" in upload.refusal and "at most" in upload.refusal


def test_faults_of_rasters_are_rows_of_the_table(tmp_path, session, example):
    flat = tmp_path / "flat.tif"
    with rasterio.open(flat, "w", driver="GTiff", width=4, height=4, count=1, dtype="float32") as raster:
        raster.write(np.ones((1, 4, 4), np.float32))
    upload = brought(flat, session, example.variables)
    assert not upload.usable and states(upload)["CRS"] == "stop" and upload.refusal.startswith("CRS: none; give it")
    wrong = brought(raster_of(tmp_path / "w.tif", names=("temp", "snow")), session, example.variables)
    assert states(wrong)["Bands"] == "stop" and "rain missing" in wrong.refusal
    kelvin = brought(raster_of(tmp_path / "k.tif", 287.0, units=("", "")), session, example.variables)
    assert "kelvin" in kelvin.refusal
    unit = brought(raster_of(tmp_path / "u.tif", units=("furlong", "mm")), session, example.variables)
    assert states(unit)["Unit of temp"] == "stop"
    nothing = brought(raster_of(tmp_path / "n.tif", np.nan, np.nan), session, example.variables)
    assert states(nothing)["Nodata"] == "stop"
    with pytest.raises(AgriClipError):
        answer_upload(nothing, None, tmp_path)


def test_wrong_tables(tmp_path, session, example):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    assert "name columns lon and lat" in brought(path, session, example.variables).refusal
    path.write_text("lon,lat\n" + "1,2\n" * 5001)
    assert "at most 5,000" in brought(path, session, example.variables).refusal
    path.write_text("report\n" + "rain 4 mm\n" * 201)
    assert "at most 200" in brought(path, session, example.variables).refusal
    path.write_text("lon,lat\n1000,2\n")
    assert not brought(path, session, example.variables).usable


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\windows\\system32\\evil.tif", "evil.tif"),
        ("..", "file"),
        (".bashrc", "bashrc"),
        ("a\x00b\n<script>.tif", "a_b_script_.tif"),
        ("x" * 300 + ".tif", "x" * 76 + ".tif"),
        ("", "file"),
    ],
)
def test_names_lead_nowhere(given, kept):
    assert safe_name(given) == kept


def test_a_name_cannot_leave_the_visitors_folder(tmp_path, session, example):
    path = raster_of(tmp_path / "mine.tif")
    target, called, _ = take_file(path, session, "../../../tmp/owned.tif")
    assert called == "owned.tif" and target.parent.parent == session.folder


def test_cells_are_no_formulas():
    assert [safe_cell(text) for text in ("=1+1", "@x", "+cmd|' /C calc'", "-12.5", "rain", "\t=1")] == [
        "'=1+1", "'@x", "'+cmd|' /C calc'", "-12.5", "rain", "'\t=1",
    ]  # fmt: skip


# -- visitors ---------------------------------------------------------------------------------------------------------


def test_every_visitor_has_a_folder_of_his_own():
    import copy

    first = Session()
    second = copy.deepcopy(first)
    try:
        (first.fresh("work") / "mine.txt").write_text("secret")
        assert first.name != second.name and not list(second.folder.rglob("*.txt"))
        assert first.folder.stat().st_mode & 0o077 == 0
        assert not list(first.fresh("work").iterdir())
    finally:
        first.remove()
        second.remove()
    assert not (root_folder() / first.name).exists()


def test_old_folders_go():
    old = Session()
    (old.fresh("work") / "mine.txt").write_text("secret")
    assert remove_old(age=3600) == 0 or (root_folder() / old.name).exists()
    remove_old(age=3600, now=time.time() + 7200)
    assert not (root_folder() / old.name).exists()
