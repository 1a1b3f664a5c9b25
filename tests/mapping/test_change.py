"""Change classes, true areas and the shift of the suitable land, against numbers worked out by hand."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Geod

from mapping.change import (
    CHANGE_CLASSES,
    area_units,
    change_classes,
    change_map,
    suitable_area,
    summarise_change,
)
from mapping.outputs import write_cog
from processing.errors import AgriClipError
from processing.rasters import Grid


@pytest.fixture
def hectare_grid():
    """2 x 3 cells of 1 km in an equal-area projection: 100 ha each."""
    return Grid("EPSG:5070", Affine(1000.0, 0.0, 0.0, 0.0, -1000.0, 1_500_000.0), 3, 2)


PRESENT = np.array([[0.9, 0.1, 0.7], [0.2, np.nan, 0.5]])
FUTURE = np.array([[0.8, 0.6, 0.3], [0.1, 0.9, np.nan]])


def test_classes_by_hand():
    np.testing.assert_array_equal(change_classes(PRESENT, FUTURE), [[1, 2, 3], [4, 0, 0]])


def test_the_threshold_itself_is_suitable():
    assert change_classes(np.array([0.5]), np.array([0.5])).tolist() == [1]
    assert change_classes(np.array([0.5]), np.array([0.4999])).tolist() == [3]


def test_areas_by_hand(hectare_grid):
    summary = summarise_change(PRESENT, FUTURE, hectare_grid)
    assert summary.areas_ha == pytest.approx(
        {"stable suitable": 100.0, "gain": 100.0, "loss": 100.0, "stable unsuitable": 100.0}
    )
    assert summary.present_ha == pytest.approx(200.0) and summary.future_ha == pytest.approx(200.0)
    assert summary.net_ha == pytest.approx(0.0)
    # Probability times area on the four cells known in both: 0.9 + 0.1 + 0.7 + 0.2 and 0.8 + 0.6 + 0.3 + 0.1.
    assert summary.expected_present_ha == pytest.approx(190.0) and summary.expected_future_ha == pytest.approx(180.0)


def test_area_units():
    assert area_units(100.0) == pytest.approx({"ha": 100.0, "km2": 1.0, "acres": 247.105381}, rel=1e-8)


def test_cells_shrink_towards_the_pole():
    grid = Grid("EPSG:4326", Affine(1.0, 0.0, 0.0, 0.0, -1.0, 61.0), 1, 61)
    north, south = np.full((61, 1), 0.0), np.full((61, 1), 0.0)
    north[0], south[60] = 1.0, 1.0
    by_row = summarise_change(north, south, grid)
    # The same two cells as geodesic polygons with many corners along their parallels.
    edge = np.linspace(0.0, 1.0, 400)
    for area, south_edge in ((by_row.future_ha, 0.0), (by_row.present_ha, 60.0)):
        x, y = np.r_[edge, edge[::-1]], np.r_[np.full(400, south_edge), np.full(400, south_edge + 1.0)]
        square_metres = abs(Geod(ellps="WGS84").polygon_area_perimeter(x, y)[0])
        assert area == pytest.approx(square_metres / 1e4, rel=1e-6)


def test_shift_by_hand():
    """One cell moves two degrees straight north along 90 W: 111.0 km per degree at 40 N."""
    grid = Grid("EPSG:4326", Affine(1.0, 0.0, -90.5, 0.0, -1.0, 41.5), 1, 3)
    present, future = np.array([[0.0], [0.0], [1.0]]), np.array([[1.0], [0.0], [0.0]])
    summary = summarise_change(present, future, grid)
    assert summary.centroid_present == pytest.approx((-90.0, 39.0), abs=1e-6)
    assert summary.centroid_future == pytest.approx((-90.0, 41.0), abs=1e-6)
    assert summary.shift_km == pytest.approx(222.07, abs=0.05)
    assert summary.bearing_degrees == pytest.approx(0.0, abs=1e-6) and summary.compass == "north"


def test_centroid_across_the_date_line():
    grid = Grid("EPSG:4326", Affine(1.0, 0.0, 178.0, 0.0, -1.0, 1.0), 4, 2)
    ones = np.ones((2, 4))
    longitude, latitude = summarise_change(ones, ones, grid).centroid_present
    assert abs(longitude) == pytest.approx(180.0, abs=1e-6) and latitude == pytest.approx(0.0, abs=1e-6)


def test_no_suitable_land_has_no_centroid(hectare_grid):
    nothing = np.zeros((2, 3))
    summary = summarise_change(nothing, FUTURE, hectare_grid)
    assert summary.centroid_present is None and summary.shift_km is None and summary.compass is None
    assert summary.present_ha == 0.0


def test_map_equals_memory_whatever_the_band(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    grid = Grid("EPSG:4326", Affine(0.1, 0.0, -100.0, 0.0, -0.1, 45.0), 31, 47)
    present, future = rng.random((2, 47, 31)).astype(np.float32)
    present[:5, :4] = np.nan
    write_cog(tmp_path / "p.tif", present, grid)
    write_cog(tmp_path / "f.tif", future, grid, nodata=-9999)
    whole = summarise_change(present, future, grid)
    for rows in (1, 10, 47):
        monkeypatch.setattr("mapping.change._ROWS", rows)
        summary = change_map(tmp_path / "p.tif", tmp_path / "f.tif", tmp_path / "c.tif")
        assert summary.areas_ha == pytest.approx(whole.areas_ha)
        assert summary.shift_km == pytest.approx(whole.shift_km)
        with rasterio.open(tmp_path / "c.tif") as dataset:
            np.testing.assert_array_equal(dataset.read(1), change_classes(present, future))
            assert dataset.nodata == 0 and dataset.colormap(1)[3] == (178, 24, 43, 255)
    assert (tmp_path / "c.qml").is_file()
    suitable = suitable_area(tmp_path / "p.tif")
    assert suitable == pytest.approx(float(grid.cell_areas_ha()[present >= 0.5].sum()))


def test_different_grids_are_refused(tmp_path, hectare_grid):
    write_cog(tmp_path / "p.tif", PRESENT.astype(np.float32), hectare_grid)
    other = Grid("EPSG:5070", Affine(1000.0, 0.0, 500.0, 0.0, -1000.0, 1_500_000.0), 3, 2)
    write_cog(tmp_path / "f.tif", FUTURE.astype(np.float32), other)
    with pytest.raises(AgriClipError, match="different grids"):
        change_map(tmp_path / "p.tif", tmp_path / "f.tif", tmp_path / "c.tif")
    assert not (tmp_path / "c.tif").exists()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, 50])
def test_a_threshold_outside_0_and_1_is_refused(threshold):
    with pytest.raises(AgriClipError, match="threshold"):
        change_classes(PRESENT, FUTURE, threshold)


def test_shapes_that_differ_are_refused():
    with pytest.raises(AgriClipError, match="one grid"):
        change_classes(PRESENT, FUTURE[:1])


def test_colours_are_the_fixed_ones():
    assert [colour for _, colour in CHANGE_CLASSES.values()] == ["#1b7837", "#92c5de", "#b2182b", "#e0e0e0"]
