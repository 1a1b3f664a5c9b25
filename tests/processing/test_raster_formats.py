"""Formats and odd rasters: NetCDF, Zarr, VRT, COG; south-up, rotated, 0 to 360, across the antimeridian, at a pole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import yaml
from affine import Affine

from processing.errors import AgriClipError
from processing.rasters import (
    Grid,
    file_of,
    pixel_size_m,
    pixels_per_cell,
    read_band_info,
    read_chips,
    read_overview,
    read_to_grid,
    sample_points,
    split_variable,
    transform_points,
)
from processing.study import load_study
from processing.study_data import StudyData

Writer = Callable[..., Path]
netcdf_file = pytest.importorskip("scipy.io", reason="NetCDF files are written with scipy").netcdf_file
FILL = -32768


def field(longitude: Any, latitude: Any) -> np.ndarray:
    """A smooth field that is the same on both sides of every meridian."""
    return 10.0 * np.sin(np.deg2rad(longitude)) + 0.2 * np.asarray(latitude)


def write_netcdf(
    path: Path,
    names: tuple[str, ...] = ("tas",),
    *,
    longitudes: np.ndarray,
    latitudes: np.ndarray,
    steps: int = 1,
    packed: bool = False,
    units: str = "degC",
    named_axes: bool = True,
) -> Path:
    """Write a CF file of `field` plus the step; row and column 0 of a packed file are missing."""
    with netcdf_file(str(path), "w") as file:
        file.Conventions = "CF-1.6"
        for name, values, unit in (("lat", latitudes, "degrees_north"), ("lon", longitudes, "degrees_east")):
            file.createDimension(name, len(values))
            axis = file.createVariable(name, "f8", (name,))
            axis[:] = values
            if named_axes:
                axis.units = unit
        file.createDimension("time", steps)
        time = file.createVariable("time", "f8", ("time",))
        time[:] = np.arange(steps)
        time.units = "days since 2000-01-01"
        for name in names:
            values = field(longitudes[None, :], latitudes[:, None])[None] + np.arange(steps)[:, None, None]
            variable = file.createVariable(name, "i2" if packed else "f4", ("time", "lat", "lon"))
            if packed:
                variable.scale_factor, variable.add_offset = 0.01, 5.0
                variable._FillValue = np.int16(FILL)
                stored = np.round((values - 5.0) / 0.01).astype(np.int16)
                stored[:, 0, 0] = FILL
                values = stored
            variable[:] = values
            variable.units = units
    return path


def centres(start: float, step: float, count: int) -> np.ndarray:
    """Middles of `count` cells."""
    return start + step * (np.arange(count) + 0.5)


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "file", "variable"),
    [
        ("climate.nc:tas", "climate.nc", "tas"),
        ('NETCDF:"climate.nc":tas', "climate.nc", "tas"),
        ("netcdf:/data/climate.nc:tas", "/data/climate.nc", "tas"),
        ("a.zarr:/group/tas", "a.zarr", "/group/tas"),
        ("climate.nc", "climate.nc", None),
        ("climate.tif", "climate.tif", None),
        ("https://host:80/climate.tif", "https://host:80/climate.tif", None),
        ("C:\\data\\climate.nc:tas", "C:\\data\\climate.nc", "tas"),
    ],
)
def test_variables_are_named_after_a_colon(text: str, file: str, variable: str | None) -> None:
    assert split_variable(text) == (file, variable)
    assert file_of(text) == Path(file)


# -- formats ----------------------------------------------------------------------------------------------------


def test_vrt_and_cog_read_as_the_geotiff_they_were_made_of(write_raster: Writer, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-500, 500, (2, 30, 40)).astype(np.int16)
    path = write_raster(
        "a.tif", stored, scales=(0.1, 0.5), offsets=(2.0, 0.0), names=("u", "v"), nodata=-7, resolution=0.1
    )
    grid = Grid.from_bounds((10.13, 47.1, 13.9, 49.7), 0.17, "EPSG:4326")
    expected = read_to_grid(path, ["v", "u"], grid)[0]
    for driver in ("VRT", "COG"):
        copy = tmp_path / f"a.{driver.lower()}"
        rasterio.shutil.copy(path, copy, driver=driver)
        assert np.array_equal(read_to_grid(copy, ["v", "u"], grid)[0], expected, equal_nan=True)


@pytest.mark.parametrize("ascending", [True, False])
def test_netcdf_is_placed_and_unpacked_by_its_conventions(tmp_path: Path, ascending: bool) -> None:
    lon, lat = centres(-100.0, 0.5, 12), centres(40.0, 0.5, 8)
    path = write_netcdf(
        tmp_path / "a.nc", longitudes=lon, latitudes=lat if ascending else lat[::-1], steps=3, packed=True, units="K"
    )
    info = read_band_info(path)
    assert (info.crs, info.count, info.units[0]) == ("EPSG:4326", 3, "K")
    assert info.descriptions == ("tas_01", "tas_02", "tas_03")
    grid = Grid.from_bounds((-100.0, 40.0, -94.0, 44.0), 0.5, "EPSG:4326")
    values, valid = read_to_grid(path, ["tas_01", "tas_03"], grid)
    x, y = grid.cell_centres()
    assert np.allclose(values[0][valid[0]], field(x, y)[valid[0]], atol=0.0051)
    assert np.allclose(values[1][valid[1]], field(x, y)[valid[1]] + 2.0, atol=0.0051)
    # the one gap of the file lies in its first row, which is the southernmost where latitudes ascend
    assert np.argwhere(~valid[0]).tolist() == [[7 if ascending else 0, 0]]
    assert sample_points(path, 1, [x[2, 3]], [y[2, 3]], "EPSG:4326")[0][0, 0] == values[0, 2, 3]


def test_one_variable_of_several_is_named_and_bounds_of_cells_are_none(tmp_path: Path) -> None:
    lon, lat = centres(0.0, 1.0, 5), centres(40.0, 1.0, 4)
    several = write_netcdf(tmp_path / "several.nc", ("tas", "pr"), longitudes=lon, latitudes=lat)
    with pytest.raises(AgriClipError, match=r"holds several variables \(tas, pr\); name one, .* 'several.nc:tas'"):
        read_band_info(several)
    assert read_band_info(f"{several}:pr").descriptions == ("pr",)
    assert read_band_info(f'NETCDF:"{several}":pr').count == 1
    assert read_to_grid(f"{several}:pr", "pr", Grid.from_bounds((0, 40, 5, 44), 1.0, "EPSG:4326"))[1].all()
    with pytest.raises(AgriClipError, match="has no variable 'pre'; did you mean 'pr'"):
        read_band_info(f"{several}:pre")
    bounded = write_netcdf(tmp_path / "one.nc", ("tas", "lat_bnds"), longitudes=lon, latitudes=lat)
    assert read_band_info(bounded).descriptions == ("tas",)
    with pytest.raises(AgriClipError, match="does not exist; did you mean 'several.nc'"):
        read_band_info(f"{tmp_path}/severla.nc:tas")


def test_netcdf_without_a_regular_grid_is_refused(tmp_path: Path) -> None:
    lat = np.array([40.0, 41.0, 43.5, 50.0])
    path = write_netcdf(tmp_path / "a.nc", longitudes=centres(0.0, 1.0, 5), latitudes=lat)
    with pytest.raises(AgriClipError, match="on no regular grid"):
        read_to_grid(path, 1, Grid.from_bounds((0, 40, 5, 44), 1.0, "EPSG:4326"))
    plain = write_netcdf(
        tmp_path / "b.nc", longitudes=centres(0.0, 1.0, 5), latitudes=centres(40, 1, 4), named_axes=False
    )
    with pytest.raises(AgriClipError, match="axes have no units"):
        Grid.from_raster(plain)


def test_zarr_folders_are_read(tmp_path: Path) -> None:
    with rasterio.Env() as environment:
        if "Zarr" not in environment.drivers():
            pytest.skip("this GDAL has no Zarr driver")
    stored = np.arange(30, dtype=np.float32).reshape(1, 5, 6)
    profile: dict[str, Any] = {"dtype": "float32", "count": 1, "height": 5, "width": 6, "crs": "EPSG:4326"}
    with rasterio.open(tmp_path / "x.zarr", "w", driver="Zarr", transform=Affine(1, 0, 0, 0, -1, 50), **profile) as z:
        z.write(stored)
    for name in (tmp_path / "x.zarr", f"{tmp_path}/x.zarr:x"):
        assert np.array_equal(read_to_grid(name, 1, Grid.from_raster(name))[0], stored)


def test_a_study_reads_variables_of_netcdf_files(tmp_path: Path) -> None:
    lon, lat = centres(0.0, 1.0, 6), centres(40.0, 1.0, 4)
    write_netcdf(tmp_path / "now.nc", ("tas", "pr"), longitudes=lon, latitudes=lat)
    write_netcdf(tmp_path / "later.nc", ("tas", "pr"), longitudes=lon, latitudes=lat, steps=2)
    content = {
        "name": "cf",
        "grid": {"like": "now.nc:tas"},
        "predictors": [
            {"file": "now.nc:tas", "variables": [{"name": "tas", "title": "t", "unit": "degC"}]},
            {"file": 'NETCDF:"now.nc":pr', "variables": [{"name": "pr", "title": "p", "unit": "degC"}]},
        ],
        "scenarios": [{"name": "later", "replace": {"now.nc:tas": "later.nc:tas"}}],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(AgriClipError, match="no band 'tas'"):  # the later file has two steps
        load_study(path)
    content["scenarios"] = [{"name": "later", "replace": {"now.nc:tas": "now.nc:pr"}}]
    content["predictors"][0]["variables"][0]["band"] = 1  # type: ignore[index]
    path.write_text(yaml.safe_dump(content))
    data = StudyData(load_study(path))
    x, y = data.grid.cell_centres()
    assert data.grid.shape == (4, 6)
    for scenario in (None, "later"):
        values = data.predictor_grid(scenario=scenario)
        assert np.allclose(values, field(x, y)[None], atol=1e-5)
    content["grid"] = {"like": "nwo.nc:tas"}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(AgriClipError, match="'nwo.nc:tas' does not exist; did you mean 'now.nc'"):
        load_study(path)


# -- south-up and rotated ---------------------------------------------------------------------------------------


def write_placed(path: Path, values: np.ndarray, transform: Affine, crs: str = "EPSG:4326") -> Path:
    """Write an array (C, h, w) wherever a transform says."""
    profile = {"driver": "GTiff", "dtype": "float32", "count": len(values), "crs": crs, "transform": transform}
    with rasterio.open(path, "w", height=values.shape[1], width=values.shape[2], **profile) as raster:
        raster.write(values.astype(np.float32))
    return path


def test_south_up_rasters_are_turned(write_raster: Writer, tmp_path: Path) -> None:
    stored = np.random.default_rng(1).normal(size=(2, 12, 14)).astype(np.float32)
    stored[0, 3, 4] = np.nan
    north = write_raster("north.tif", stored)
    south = write_placed(tmp_path / "south.tif", stored[:, ::-1], Affine(0.5, 0, 10.0, 0, 0.5, 44.0))
    assert Grid.from_raster(south) == Grid.from_raster(north)
    for grid in (Grid.from_raster(north), Grid.from_bounds((10.2, 44.9, 15.2, 49.3), 0.31, "EPSG:4326")):
        a, b = read_to_grid(south, None, grid)[0], read_to_grid(north, None, grid)[0]
        assert np.array_equal(a, b, equal_nan=True)
    x, y = [10.3, 12.9, 16.8], [49.8, 46.1, 44.1]
    chips = [read_chips(path, None, x, y, "EPSG:4326", 5)[0] for path in (south, north)]
    assert np.array_equal(*chips, equal_nan=True)
    assert np.array_equal(read_overview(south, 1)[0], read_overview(north, 1)[0], equal_nan=True)
    assert pixel_size_m(south) == pixel_size_m(north)


def test_rotated_rasters_are_warped_and_their_chips_refused(tmp_path: Path) -> None:
    turned = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(100, -100)
    columns, rows = np.meshgrid(np.arange(80) + 0.5, np.arange(80) + 0.5)
    x, y = turned @ (columns, rows)
    path = write_placed(tmp_path / "turned.tif", (0.001 * x - 0.002 * y)[None], turned, "EPSG:32632")
    grid = Grid.from_bounds((502_000, 4_996_000, 512_000, 5_004_000), 150, "EPSG:32632")
    gx, gy = grid.cell_centres()
    values, valid = read_to_grid(path, 1, grid)
    inverse = ~turned
    column, row = inverse @ (gx, gy)
    inner = (column > 1.5) & (column < 78.5) & (row > 1.5) & (row < 78.5)
    assert 0.3 < inner.mean() < 0.9
    assert valid[0][inner].all()
    # numbers of a size of 10,000 have steps of 0.001 in float32
    assert np.allclose(values[0][inner], (0.001 * gx - 0.002 * gy)[inner], atol=0.02)
    assert not valid[0][(column < -1) | (row < -1) | (column > 81) | (row > 81)].any()
    sampled = sample_points(path, 1, [x[7, 9]], [y[7, 9]], "EPSG:32632")[0]
    assert sampled[0, 0] == np.float32(0.001 * x[7, 9] - 0.002 * y[7, 9])
    with pytest.raises(AgriClipError, match="is rotated, .* gdalwarp"):
        read_chips(path, 1, [x[7, 9]], [y[7, 9]], "EPSG:32632", 4)
    with pytest.raises(AgriClipError, match="north-up"):
        Grid.from_raster(path)
    assert pixel_size_m(path) == pytest.approx(100, rel=2e-3)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "average"])
def test_one_pixel_is_a_raster(write_raster: Writer, resampling: str) -> None:
    path = write_raster("one.tif", np.full((1, 1, 1), 4.0, dtype=np.float32))
    assert read_to_grid(path, 1, Grid.from_raster(path), resampling=resampling)[0].tolist() == [[[4.0]]]
    values, valid = read_to_grid(
        path, 1, Grid.from_bounds((10.0, 49.5, 10.5, 50.0), 0.125, "EPSG:4326"), resampling=resampling
    )
    assert valid.all() and (values == 4.0).all()
    around, valid = read_to_grid(
        path, 1, Grid.from_bounds((9.0, 48.5, 11.5, 51.0), 0.5, "EPSG:4326"), resampling=resampling
    )
    assert np.argwhere(valid[0]).tolist() == [[2, 2]]
    assert pixels_per_cell(path, Grid.from_bounds((9, 48, 12, 51), 1.0, "EPSG:4326")) == pytest.approx(2.0)


# -- round the Earth --------------------------------------------------------------------------------------------


@pytest.fixture
def globes(tmp_path: Path) -> dict[str, Path]:
    """`field` on the whole Earth by whole degrees: from -180, from 0, with a repeated column, and 100 to 300 only."""
    globes = {}
    for name, west, columns in (("west", -180, 360), ("east", 0, 360), ("cyclic", 0, 361), ("pacific", 100, 200)):
        x, y = np.meshgrid(west + 0.5 + np.arange(columns), 89.5 - np.arange(180))
        globes[name] = write_placed(tmp_path / f"{name}.tif", field(x, y)[None], Affine(1, 0, west, 0, -1, 90))
    return globes


@pytest.mark.parametrize(
    "bounds", [(-125, 24, -66, 50), (170, -50, 190, -30), (-195, -50, -165, -30), (-10, 0, 10, 9)]
)
@pytest.mark.parametrize("step", [1.0, 0.4, 2.5])
def test_longitudes_may_be_counted_from_anywhere(
    globes: dict[str, Path], bounds: tuple[float, ...], step: float
) -> None:
    grid = Grid.from_bounds(bounds, step, "EPSG:4326")
    x, y = grid.cell_centres()
    read = {name: read_to_grid(globes[name], 1, grid)[0][0] for name in ("west", "east", "cyclic")}
    for name, values in read.items():
        assert np.allclose(values, field(x, y), atol=0.02), name
    if step == 1.0:
        assert np.array_equal(read["west"], read["east"])  # copied, not warped
    inside = np.mod(x - 100.0, 360.0) < 200.0  # all of a grid or nothing
    if inside.all():
        assert np.allclose(read_to_grid(globes["pacific"], 1, grid)[0][0], read["west"], atol=0.02)
    else:
        assert not inside.any()
        with pytest.raises(AgriClipError, match="does not overlap"):
            read_to_grid(globes["pacific"], 1, grid)
    thin = {name: read_overview(globes[name], 1, grid)[0] for name in ("west", "east")}
    assert np.array_equal(thin["west"], thin["east"])


@pytest.mark.parametrize(
    ("crs", "bounds", "step"),
    [
        ("EPSG:32601", (-200_000, 5_000_000, 800_000, 5_600_000), 50_000),  # Fiji's zone, across the antimeridian
        ("EPSG:3832", (2_500_000, 1_000_000, 6_500_000, 4_000_000), 200_000),  # a Mercator about 150 E
        ("EPSG:3413", (-2_000_000, -2_000_000, 2_000_000, 2_000_000), 200_000),  # the pole in the middle
        ("EPSG:3413", (-1_000_000, 500_000, 1_000_000, 1_500_000), 100_000),  # across the antimeridian, without it
        ("EPSG:5041", (1_000_000, 1_000_000, 3_000_000, 3_000_000), 90_000),
        ("EPSG:4258", (168, 10, 193, 30), 0.7),
    ],
)
def test_grids_across_the_antimeridian_and_at_a_pole(
    globes: dict[str, Path], crs: str, bounds: tuple[float, ...], step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid.from_bounds(bounds, step, crs)
    longitude, latitude = transform_points(*grid.cell_centres(), crs, "EPSG:4326")
    expected = field(longitude, latitude).reshape(grid.shape)
    # bilinear between pixels of a degree is off by half a pixel's bend, and by more within a degree of the pole
    near = (np.abs(latitude) < 88.5).reshape(grid.shape)
    for name in ("west", "east"):
        values, valid = read_to_grid(globes[name], 1, grid)
        assert valid[0].mean() > 0.999, name
        assert np.abs(values[0] - expected)[near & valid[0]].max() < 0.05, name
    whole = read_to_grid(globes["west"], 1, grid)[0]
    parts = [read_to_grid(globes["west"], 1, grid, slice(top, top + 3))[0] for top in range(0, grid.height, 3)]
    assert np.allclose(np.concatenate(parts, axis=1), whole, atol=1e-5, equal_nan=True)
    monkeypatch.setattr("processing.rasters.MOST_PIXELS", 3000)
    assert np.allclose(read_to_grid(globes["west"], 1, grid)[0], whole, atol=1e-5, equal_nan=True)


def test_points_and_chips_go_round_the_earth(globes: dict[str, Path]) -> None:
    x, y = np.array([-90.2, 179.7, -179.7, 0.3, 359.9, 185.5]), np.array([40.1, 10.2, 10.2, -4.9, -4.9, 10.2])
    expected = field(np.floor(x) + 0.5, np.floor(y) + 0.5)
    for name in ("west", "east", "cyclic"):
        assert np.allclose(sample_points(globes[name], 1, x, y, "EPSG:4326")[0][:, 0], expected, atol=1e-5)
        chips, valid = read_chips(globes[name], 1, x, y, "EPSG:4326", 6)
        assert valid.all()
        assert np.allclose(
            chips[:, 0, 3], field(np.floor(x)[:, None] + np.arange(-3, 3) + 0.5, np.floor(y)[:, None] + 0.5), atol=1e-5
        )
    # a regional raster still ends at its edges
    _, valid = read_chips(globes["pacific"], 1, [100.5, -60.5, 99.5], [0.5, 0.5, 0.5], "EPSG:4326", 4)
    assert valid[:, 0, 0].tolist() == [[False, False, True, True], [True, True, True, False], [False] * 3 + [True]]


def test_a_netcdf_from_0_to_360_lines_up_with_a_grid_in_the_west(tmp_path: Path) -> None:
    path = write_netcdf(
        tmp_path / "globe.nc", longitudes=np.arange(0, 360, 2.5), latitudes=centres(-90, 2.5, 72), packed=True
    )
    grid = Grid.from_bounds((-125, 25, -65, 50), 2.5, "EPSG:4326")
    x, y = grid.cell_centres()
    values, valid = read_to_grid(path, "tas", grid)
    assert valid.all()
    assert np.allclose(values[0], field(x, y), atol=0.03)


def test_bounds_that_turn_back_are_explained_and_labels_find_their_cell() -> None:
    with pytest.raises(AgriClipError, match="write 190 for -170"):
        Grid.from_bounds((170, -50, -170, -30), 1.0, "EPSG:4326")
    grid = Grid.from_bounds((170, -50, 190, -30), 1.0, "EPSG:4326")
    rows, columns = grid.cell_of([-175.5, 184.5, 171.5], [-30.5, -30.5, -30.5])
    assert columns.tolist() == [14, 14, 1]
    assert rows.tolist() == [0, 0, 0]
    assert grid.unwrap([-175.5, 171.5]).tolist() == [184.5, 171.5]
    assert Grid.from_bounds((-120, 20, -60, 50), 1.0, "EPSG:4326").unwrap([200.0]).tolist() == [200.0]
