"""Rasters: aligned, bit-identical where nothing need move, and never a trace of nodata in a valid cell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from processing.errors import AgriClipError
from processing.rasters import (
    Grid,
    has_valid,
    pixel_size_m,
    read_band_info,
    read_chips,
    read_overview,
    read_to_grid,
    sample_points,
    transform_points,
)

Writer = Callable[..., Path]


def ramp(height: int, width: int) -> np.ndarray:
    """A band in which every cell differs."""
    return np.arange(height * width, dtype=np.float32).reshape(1, height, width) + 0.1


# -- grids ------------------------------------------------------------------------------------------------------


def test_grid_from_bounds_and_centres() -> None:
    grid = Grid.from_bounds([-125, 24, -66.5, 50], 0.5, "EPSG:4326")
    assert grid.shape == (52, 117)
    assert grid.bounds == (-125.0, 24.0, -66.5, 50.0)
    x, y = grid.cell_centres(slice(10, 12))
    assert x.shape == y.shape == (2, 117)
    assert (x[0, 0], y[0, 0], x[1, -1], y[1, -1]) == (-124.75, 44.75, -66.75, 44.25)
    rows, columns = grid.cell_of(x.ravel(), y.ravel())
    assert np.array_equal(rows.reshape(2, -1)[:, 0], [10, 11])
    assert np.array_equal(columns.reshape(2, -1)[0], np.arange(117))


def test_grid_reaches_past_bounds_that_are_no_whole_number_of_cells() -> None:
    grid = Grid.from_bounds([0, 0, 1.01, 1.0], 0.1, "EPSG:4326")
    assert grid.shape == (10, 11)


@pytest.mark.parametrize("bounds", [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, float("nan"), 1]])
def test_empty_bounds_are_refused(bounds: list[float]) -> None:
    with pytest.raises(AgriClipError, match="west, south, east, north"):
        Grid.from_bounds(bounds, 0.1, "EPSG:4326")


def test_unknown_crs_is_refused() -> None:
    with pytest.raises(AgriClipError, match="no known CRS"):
        Grid.from_bounds([0, 0, 1, 1], 0.1, "EPSG:999999")


def test_areas_of_all_cells_of_the_earth_add_up_to_the_ellipsoid() -> None:
    areas = Grid.from_bounds([-180, -90, 180, 90], 1.0, "EPSG:4326").cell_areas_ha()
    # surface of the WGS 84 ellipsoid, closed form
    a, f = 6378137.0, 1 / 298.257223563
    e = math.sqrt(f * (2 - f))
    surface = 2 * math.pi * a**2 * (1 + (1 - e**2) / e * math.atanh(e))
    assert areas.sum() * 1e4 == pytest.approx(surface, rel=1e-12)
    assert areas.shape == (180, 360)


@pytest.mark.parametrize(
    ("crs", "bounds", "resolution"),
    [
        ("EPSG:4326", (-90.0, 38.0, -89.5, 38.5), 0.5),
        ("EPSG:32615", (300_000.0, 4_500_000.0, 310_000.0, 4_510_000.0), 10_000.0),
        ("EPSG:3857", (-10_000_000.0, 4_000_000.0, -9_990_000.0, 4_010_000.0), 10_000.0),
        ("EPSG:5070", (0.0, 1_900_000.0, 10_000.0, 1_910_000.0), 10_000.0),
    ],
)
def test_areas_agree_with_geodesic_polygons(crs: str, bounds: tuple[float, ...], resolution: float) -> None:
    geod = pytest.importorskip("pyproj").Geod(ellps="WGS84")
    grid = Grid.from_bounds(bounds, resolution, crs)
    along = np.linspace(0.0, 1.0, 4001)
    columns = np.concatenate([along, np.ones(4001), along[::-1], np.zeros(4001)])
    rows = np.concatenate([np.zeros(4001), along, np.ones(4001), along[::-1]])
    x, y = grid.transform.a * columns + grid.transform.c, grid.transform.e * rows + grid.transform.f
    expected = abs(geod.polygon_area_perimeter(*transform_points(x, y, crs, "EPSG:4326"))[0]) / 1e4
    assert grid.cell_areas_ha()[0, 0] == pytest.approx(expected, rel=1e-6)


def test_areas_of_row_bands_are_rows_of_the_whole() -> None:
    for crs, bounds, resolution in (
        ("EPSG:4326", (-10, 30, -5, 35), 0.5),
        ("EPSG:32630", (4e5, 4e6, 5e5, 4.1e6), 2e4),
    ):
        grid = Grid.from_bounds(bounds, resolution, crs)
        assert np.allclose(grid.cell_areas_ha(slice(2, 4)), grid.cell_areas_ha()[2:4], rtol=1e-12)


# -- reading onto a grid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8"])
def test_a_raster_on_the_grid_is_copied_bit_for_bit(write_raster: Writer, dtype: str) -> None:
    stored = np.random.default_rng(0).integers(0, 200, (3, 9, 11)).astype(dtype)
    if dtype == "float32":
        stored += np.float32(1 / 3)
    path = write_raster("a.tif", stored)
    values, valid = read_to_grid(path, None, Grid.from_raster(path))
    assert values.dtype == np.float32
    assert np.array_equal(values, stored.astype(np.float32))
    assert valid.all()


def test_a_shift_by_whole_cells_is_copied_and_outside_is_missing(write_raster: Writer) -> None:
    path = write_raster("a.tif", ramp(6, 8))
    grid = Grid.from_bounds((9.0, 48.0, 12.0, 51.0), 0.5, "EPSG:4326")  # two rows and columns before the raster
    values, valid = read_to_grid(path, 1, grid)
    assert np.array_equal(values[0, 2:, 2:], ramp(6, 8)[0, :4, :4])
    assert not valid[0, :2].any()
    assert np.isnan(values[0, :, :2]).all()


def test_scale_and_offset_tags_give_physical_values(write_raster: Writer) -> None:
    stored = np.array([[[100, 200], [-32768, 400]]], dtype=np.int16)
    path = write_raster("a.tif", stored, scales=(0.01,), offsets=(-1.0,), nodata=-32768)
    values, valid = read_to_grid(path, 1, Grid.from_raster(path))
    assert np.allclose(values[valid], [0.0, 1.0, 3.0])
    assert not valid[0, 1, 0]


def test_bands_by_number_and_by_name(write_raster: Writer) -> None:
    stored = np.stack([np.full((2, 2), n, dtype=np.float32) for n in range(3)])
    path = write_raster("a.tif", stored, names=("bio1", "bio12", "bio15"))
    values, _ = read_to_grid(path, ["bio15", 1, "BIO12"], Grid.from_raster(path))
    assert values[:, 0, 0].tolist() == [2.0, 0.0, 1.0]
    with pytest.raises(AgriClipError, match="did you mean 'bio12'"):
        read_to_grid(path, "boi12", Grid.from_raster(path))
    with pytest.raises(AgriClipError, match="no band 4: it has 3 bands"):
        read_to_grid(path, 4, Grid.from_raster(path))


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "average"])
@pytest.mark.parametrize("how", ["tag", "nan", "mask", "nan beside a tag"])
def test_nodata_never_bleeds_into_valid_cells(write_raster: Writer, resampling: str, how: str) -> None:
    stored = np.full((2, 20, 20), 7.0, dtype=np.float32)
    gap = np.zeros((20, 20), dtype=bool)
    gap[6:11, 8:13] = True
    gap[2, 2] = True
    stored[0, gap] = {"tag": -9999.0, "nan": np.nan, "mask": 1e6, "nan beside a tag": np.nan}[how]
    path = write_raster(
        "a.tif",
        stored,
        nodata=-9999.0 if "tag" in how else None,
        mask=np.where(gap, 0, 255).astype(np.uint8) if how == "mask" else None,
    )
    for grid in (
        Grid.from_bounds((10.2, 41.1, 19.2, 49.7), 0.23, "EPSG:4326"),  # finer, shifted
        Grid.from_bounds((10.2, 41.1, 19.2, 49.7), 1.7, "EPSG:4326"),  # coarser
        Grid.from_bounds((300_000, 4_650_000, 800_000, 5_400_000), 37_000, "EPSG:32632"),
    ):
        values, valid = read_to_grid(path, None, grid, resampling=resampling)
        assert valid[1].any()
        assert np.allclose(values[valid], 7.0, atol=1e-4)
        if how != "mask":  # a file's mask is for all of its bands
            assert np.allclose(values[1][valid[1]], 7.0, atol=1e-4)
            assert valid[1].sum() >= valid[0].sum()
    # the middle of the gap stays a gap
    fine = Grid.from_bounds((15.0, 45.5, 15.5, 46.0), 0.1, "EPSG:4326")
    assert not read_to_grid(path, 1, fine, resampling=resampling)[1].any()


def test_bilinear_warp_follows_a_plane(write_raster: Writer) -> None:
    rows, columns = np.mgrid[0:40, 0:40]
    x, y = 10.0 + (columns + 0.5) * 0.5, 50.0 - (rows + 0.5) * 0.5
    path = write_raster("a.tif", (3 * x - 2 * y)[None].astype(np.float32))
    grid = Grid.from_bounds((13.1, 35.2, 25.3, 47.1), 0.31, "EPSG:4326")
    gx, gy = grid.cell_centres()
    values, valid = read_to_grid(path, 1, grid)
    assert valid.all()
    assert np.allclose(values[0], 3 * gx - 2 * gy, atol=1e-3)


@pytest.mark.parametrize("resampling", ["bilinear", "cubic", "average", "nearest"])
def test_row_bands_equal_the_whole(write_raster: Writer, resampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.random.default_rng(1).normal(size=(2, 60, 70)).astype(np.float32)
    stored[0, 10:14, 20:30] = np.nan
    path = write_raster("a.tif", stored, resolution=0.1)
    for grid in (
        Grid.from_bounds((9.9, 44.1, 16.9, 50.1), 0.33, "EPSG:4326"),
        Grid.from_bounds((3e5, 4.9e6, 8e5, 5.5e6), 7_000, "EPSG:32632"),
    ):
        whole, _ = read_to_grid(path, None, grid, resampling=resampling)
        for step in (1, grid.height - 1):
            cuts = [slice(top, min(grid.height, top + step)) for top in range(0, grid.height, step)]
            parts = [read_to_grid(path, None, grid, cut, resampling)[0] for cut in cuts]
            assert np.array_equal(np.concatenate(parts, axis=1), whole, equal_nan=True)
        with monkeypatch.context() as patch:  # small pieces in memory give the same
            patch.setattr("processing.rasters.MOST_PIXELS", 3000)
            assert np.array_equal(read_to_grid(path, None, grid, resampling=resampling)[0], whole, equal_nan=True)


def test_average_of_finer_pixels(write_raster: Writer) -> None:
    fine = ramp(8, 8)
    path = write_raster("a.tif", fine, resolution=0.25)
    grid = Grid.from_bounds((10.0, 48.0, 12.0, 50.0), 0.5, "EPSG:4326")
    values, _ = read_to_grid(path, 1, grid, resampling="average")
    assert np.allclose(values[0], fine[0].reshape(4, 2, 4, 2).mean(axis=(1, 3)))


def test_what_cannot_be_placed_is_refused_in_one_sentence(write_raster: Writer, tmp_path: Path) -> None:
    grid = Grid.from_bounds((10, 45, 15, 50), 0.5, "EPSG:4326")
    far = write_raster("far.tif", ramp(4, 4), origin=(100.0, 10.0))
    with pytest.raises(AgriClipError, match="does not overlap the grid"):
        read_to_grid(far, 1, grid)
    nowhere = write_raster("nowhere.tif", ramp(4, 4), crs=None)
    with pytest.raises(AgriClipError, match="has no CRS"):
        read_to_grid(nowhere, 1, grid)
    with pytest.raises(AgriClipError, match="has no CRS"):
        sample_points(nowhere, 1, [10.0], [50.0], "EPSG:4326")
    with pytest.raises(AgriClipError, match="does not exist; did you mean 'nowhere.tif'"):
        read_band_info(tmp_path / "nowere.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(AgriClipError, match="cannot be read as a raster"):
        read_band_info(tmp_path / "text.tif")
    with pytest.raises(AgriClipError, match="did you mean 'bilinear'"):
        read_to_grid(write_raster("b.tif", ramp(5, 5)), 1, grid, resampling="bilinaer")


# -- points and chips -------------------------------------------------------------------------------------------


def test_points_read_the_cell_that_holds_them_in_any_crs(write_raster: Writer) -> None:
    path = write_raster("a.tif", ramp(6, 8))
    rng = np.random.default_rng(2)
    x, y = rng.uniform(9.5, 14.5, 200), rng.uniform(46.5, 50.5, 200)
    rows, columns = np.floor((50.0 - y) / 0.5).astype(int), np.floor((x - 10.0) / 0.5).astype(int)
    inside = (rows >= 0) & (rows < 6) & (columns >= 0) & (columns < 8)
    values, valid = sample_points(path, 1, x, y, "EPSG:4326")
    assert np.array_equal(valid[:, 0], inside)
    assert np.array_equal(values[inside, 0], ramp(6, 8)[0, rows[inside], columns[inside]])
    moved = transform_points(x, y, "EPSG:4326", "EPSG:32632")
    assert np.array_equal(sample_points(path, 1, *moved, "EPSG:32632")[0], values, equal_nan=True)
    values, valid = sample_points(path, None, [np.nan, 10.1], [49.9, np.inf], "EPSG:4326")
    assert not valid.any()


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_chips_are_windows_with_the_point_at_half_the_size(write_raster: Writer, size: int) -> None:
    stored = np.random.default_rng(3).normal(size=(2, 30, 40)).astype(np.float32)
    path = write_raster("a.tif", stored)
    x, y = np.array([10.1, 20.2, 29.9, 15.0]), np.array([49.9, 42.6, 35.1, 47.5])
    chips, valid = read_chips(path, None, x, y, "EPSG:4326", size)
    assert chips.shape == valid.shape == (4, 2, size, size)
    padded = np.pad(stored, ((0, 0), (size, size), (size, size)), constant_values=np.nan)
    for n in range(4):
        top = int((50.0 - y[n]) / 0.5) - size // 2 + size
        left = int((x[n] - 10.0) / 0.5) - size // 2 + size
        assert np.array_equal(chips[n], padded[:, top : top + size, left : left + size], equal_nan=True)
    assert np.array_equal(valid, np.isfinite(chips))


def test_chips_do_not_depend_on_tiles_or_on_other_points(
    write_raster: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = np.random.default_rng(4).normal(size=(1, 50, 50)).astype(np.float32)
    path = write_raster("a.tif", stored, resolution=0.1)
    rng = np.random.default_rng(5)
    x, y = rng.uniform(9, 16, 60), rng.uniform(44, 51, 60)
    whole, _ = read_chips(path, 1, x, y, "EPSG:4326", 7)
    monkeypatch.setattr("processing.rasters.TILE", 8)
    assert np.array_equal(read_chips(path, 1, x, y, "EPSG:4326", 7)[0], whole, equal_nan=True)
    single = np.concatenate([read_chips(path, 1, [a], [b], "EPSG:4326", 7)[0] for a, b in zip(x, y, strict=True)])
    assert np.array_equal(single, whole, equal_nan=True)


def test_five_thousand_chips_take_under_two_seconds(write_raster: Writer) -> None:
    path = write_raster("a.tif", np.zeros((6, 400, 400), dtype=np.float32), resolution=0.05)
    rng = np.random.default_rng(6)
    x, y = rng.uniform(10, 30, 5000), rng.uniform(30, 50, 5000)
    begin = time.perf_counter()
    chips, _ = read_chips(path, None, x, y, "EPSG:4326", 16)
    assert chips.shape == (5000, 6, 16, 16)
    assert time.perf_counter() - begin < 2.0


# -- looks ------------------------------------------------------------------------------------------------------


def test_one_valid_pixel_is_found_however_thin_the_look(write_raster: Writer) -> None:
    stored = np.full((2, 1100, 1100), np.nan, dtype=np.float32)
    stored[0, 1051, 1033] = 1.0
    path = write_raster("a.tif", stored, resolution=0.01)
    assert not read_overview(path, [1], most=50)[1].any()
    assert has_valid(path, 1)
    assert not has_valid(path, 2)


def test_pixel_size_is_the_root_of_the_area(write_raster: Writer) -> None:
    metres = write_raster("m.tif", ramp(4, 4), crs="EPSG:5070", resolution=30.0, origin=(0.0, 1_900_000.0))
    assert pixel_size_m(metres) == pytest.approx(30.0, rel=1e-9)
    degrees = write_raster("d.tif", ramp(40, 40), resolution=0.1, origin=(10.0, 2.0))
    assert pixel_size_m(degrees) == pytest.approx(11_095, rel=2e-3)  # near the equator


def test_real_climate_is_copied_bit_for_bit(real_data: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = real_data / "climate_americas_05deg" / "bioclim_gswp3-w5e5_obsclim_2000.tif"
    values, _ = read_to_grid(path, None, Grid.from_bounds([-125, 24, -66.5, 50], 0.5, "EPSG:4326"))
    with rasterio.open(path) as source:
        assert np.array_equal(values, source.read()[:, 4:56, 2:119], equal_nan=True)
        assert source.transform @ Affine.identity() == source.transform
