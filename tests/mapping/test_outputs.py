"""Rasters written by row bands: whole, placed, cloud-optimised, or not there at all."""

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from mapping.outputs import (
    RowBandWriter,
    class_raster_options,
    file_sha256,
    iterate_rows,
    read_map,
    write_cog,
    write_qgis_style,
)
from processing.errors import AgriClipError
from processing.rasters import Grid


def bands_of(values, step):
    return [(rows.start, values[..., rows, :]) for rows in iterate_rows(values.shape[-2], step)]


def test_values_nodata_crs_and_transform_are_exact(tmp_path, cells):
    values = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    values[2, 3] = np.nan
    path = write_cog(tmp_path / "a.tif", values, cells, tags={"scenario": "warm", "models": [1, 2]}, units=["1"])
    with rasterio.open(path) as dataset:
        assert dataset.transform == Affine(1.0, 0.0, -100.0, 0.0, -1.0, 40.0)
        assert dataset.crs == CRS.from_epsg(4326)
        assert dataset.shape == (6, 8) and dataset.dtypes == ("float32",)
        assert math.isnan(dataset.nodata)
        assert dataset.tags()["scenario"] == "warm" and json.loads(dataset.tags()["models"]) == [1, 2]
        assert dataset.units == ("1",)
        assert dataset.compression.name == "deflate"
        np.testing.assert_array_equal(dataset.read(1), values)
    np.testing.assert_array_equal(read_map(path), values)


def test_projected_grid_keeps_its_crs(tmp_path):
    grid = Grid("EPSG:5070", Affine(10_000.0, 0.0, -300_000.0, 0.0, -10_000.0, 1_500_000.0), 5, 4)
    path = write_cog(tmp_path / "a.tif", np.ones((4, 5), np.float32), grid)
    with rasterio.open(path) as dataset:
        assert dataset.crs == CRS.from_epsg(5070) and dataset.transform == grid.transform


@pytest.mark.parametrize("shape", [(1, 1), (511, 3), (513, 520), (1300, 1100)])
@pytest.mark.parametrize("step", [1, 64, 5000])
def test_row_bands_equal_one_array_and_the_file_is_cloud_optimised(tmp_path, shape, step):
    if step == 1 and shape[0] > 600:
        step = 7
    cogeo = pytest.importorskip("rio_cogeo")
    grid = Grid("EPSG:4326", Affine(0.01, 0.0, 0.0, 0.0, -0.01, 50.0), shape[1], shape[0])
    values = np.random.default_rng(1).random((2, *shape)).astype(np.float32)
    path = write_cog(tmp_path / "b.tif", iter(bands_of(values, step)), grid, count=2, band_names=["p", "q"])
    valid, errors, warnings = cogeo.cog_validate(path)
    assert valid and not errors and not warnings
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert dataset.descriptions == ("p", "q")
        assert bool(dataset.overviews(1)) == (max(shape) > 512)


def test_bands_may_come_in_any_order(tmp_path, cells):
    values = np.arange(48, dtype=np.float32).reshape(6, 8)
    path = write_cog(tmp_path / "c.tif", reversed(bands_of(values, 2)), cells)
    np.testing.assert_array_equal(read_map(path), values)


def test_number_nodata_takes_the_place_of_nan(tmp_path, cells):
    values = np.ones((6, 8), np.float32)
    values[0, 0] = np.nan
    path = write_cog(tmp_path / "d.tif", values, cells, nodata=-9999)
    with rasterio.open(path) as dataset:
        assert dataset.nodata == -9999 and dataset.read(1)[0, 0] == -9999
    assert np.isnan(read_map(path)[0, 0]) and np.isfinite(read_map(path)).sum() == 47


def test_class_raster_has_colours_and_legend(tmp_path, cells):
    options = class_raster_options({1: ("yes", "#1b7837"), 2: ("no", "#e0e0e0")})
    values = np.ones((6, 8), np.uint8)
    values[0] = 0
    path = write_cog(tmp_path / "e.tif", values, cells, **options)
    with rasterio.open(path) as dataset:
        colours = dataset.colormap(1)
        assert colours[1] == (27, 120, 55, 255) and colours[0][3] == 0
        assert dataset.nodata == 0 and dataset.dtypes == ("uint8",)
        assert json.loads(dataset.tags()["classes"]) == {"1": "yes", "2": "no"}
    assert np.isnan(read_map(path)[0]).all()


def test_missing_rows_are_an_error_and_leave_nothing(tmp_path, cells):
    with pytest.raises(AgriClipError, match="2 of 6 rows were never written"):
        write_cog(tmp_path / "f.tif", [(0, np.ones((4, 8), np.float32))], cells)
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_leaves_the_old_file_untouched(tmp_path, cells):
    path = write_cog(tmp_path / "g.tif", np.zeros((6, 8), np.float32), cells)
    before = file_sha256(path)
    with pytest.raises(RuntimeError, match="stop"), RowBandWriter(path, cells) as writer:
        writer.write(0, np.ones((3, 8), np.float32))
        raise RuntimeError("stop")
    assert [file.name for file in tmp_path.iterdir()] == ["g.tif"] and file_sha256(path) == before


@pytest.mark.parametrize(
    ("rows", "shape"), [(0, (3, 7)), (5, (2, 8)), (-1, (1, 8)), (0, (2, 6, 8))], ids=["width", "end", "start", "bands"]
)
def test_rows_that_do_not_fit_are_refused(tmp_path, cells, rows, shape):
    with pytest.raises(AgriClipError, match="do not fit"):
        write_cog(tmp_path / "h.tif", [(rows, np.zeros(shape, np.float32))], cells)


def test_rows_written_twice_are_refused(tmp_path, cells):
    with pytest.raises(AgriClipError, match="written twice"):
        write_cog(tmp_path / "i.tif", [(0, np.zeros((6, 8))), (5, np.zeros((1, 8)))], cells)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"colours": {1: (0, 0, 0)}}, "one uint8 band"),
        ({"band_names": ["a", "b"]}, "one per band"),
        ({"dtype": "uint8", "nodata": math.nan}, "does not fit uint8"),
        ({"dtype": "uint8", "nodata": 256}, "does not fit uint8"),
    ],
)
def test_contradicting_options_are_refused(tmp_path, cells, options, said):
    with pytest.raises(AgriClipError, match=said):
        RowBandWriter(tmp_path / "j.tif", cells, **options)


def test_class_zero_is_reserved():
    with pytest.raises(AgriClipError, match="Class 0"):
        class_raster_options({0: ("nothing", "#000000")})


def test_read_map_rows_and_thinned(tmp_path, cells):
    values = np.arange(48, dtype=np.float32).reshape(6, 8)
    path = write_cog(tmp_path / "k.tif", values, cells)
    np.testing.assert_array_equal(read_map(path, slice(2, 4)), values[2:4])
    assert read_map(path, max_size=4).shape == (3, 4)


def test_qgis_style_is_xml_with_the_class_colours(tmp_path):
    style = write_qgis_style(tmp_path / "l.tif", classes={1: ('a "quoted" & odd title', "#1b7837")})
    root = ElementTree.fromstring(style.read_text().split("\n", 1)[1])
    entry = root.find(".//paletteEntry")
    assert style.name == "l.qml" and entry.get("color") == "#1b7837" and entry.get("label") == 'a "quoted" & odd title'
    ramp = write_qgis_style(tmp_path / "m.tif", stops=[(0.0, "#000000"), (1.0, "#ffffff")], unit="%")
    items = ElementTree.fromstring(ramp.read_text().split("\n", 1)[1]).findall(".//item")
    assert [item.get("label") for item in items] == ["0 %", "1 %"]
    with pytest.raises(AgriClipError, match="either classes or stops"):
        write_qgis_style(tmp_path / "n.tif")
