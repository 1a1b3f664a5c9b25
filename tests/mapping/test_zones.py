"""Areas by zone and by latitude: against geodesic areas of the polygons and sums worked out by hand."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import rasterio
from pyproj import Geod

from mapping.change import ACRES_PER_HA, suitable_area, summarise_change
from mapping.outputs import write_cog
from mapping.scenario_ensemble import ScenarioGroup, combine_scenarios, scenario_groups
from mapping.zones import (
    Zones,
    latitude_areas,
    read_zones,
    write_csv,
    write_geopackage,
    write_parquet,
    zone_areas,
)
from processing.errors import AgriClipError
from processing.rasters import Grid

geopandas = pytest.importorskip("geopandas")
pytest.importorskip("exactextract")
shapely = pytest.importorskip("shapely")

US = Path(os.environ.get("AGRICLIP_DATA", "../shared/data")) / "us_counties" / "us-10m.json"
QUIRKY = shapely.Polygon(
    [(-99.7, 35.1), (-96.2, 34.6), (-95.1, 37.9), (-97.3, 36.2), (-99.2, 39.3)],
    [[(-98.5, 36.0), (-97.5, 35.8), (-98.0, 37.1)]],
)


def zones_of(*geometries, crs="EPSG:4326"):
    ids = tuple(f"z{i}" for i in range(len(geometries)))
    return Zones(ids, ids, geometries, crs)


def geodesic_ha(geometry):
    fine = shapely.orient_polygons(shapely.segmentize(geometry, 0.01))
    return abs(Geod(ellps="WGS84").geometry_area_perimeter(fine)[0]) / 1e4


def one_map(folder, grid, values=None, name="map", **tags):
    values = np.full(grid.shape, 0.6, np.float32) if values is None else values
    return {"probability": write_cog(folder / f"{name}.tif", values, grid, tags=tags)}


@pytest.fixture
def climates(tmp_path, cells):
    """The present, three climate models with novelty, and the study that groups them."""
    rng = np.random.default_rng(5)
    maps = {"present": one_map(tmp_path, cells, rng.uniform(0, 1, cells.shape).astype(np.float32), "present")}
    scenarios = []
    for model in ("A", "B", "C"):
        values = rng.uniform(0, 1, cells.shape).astype(np.float32)
        if model == "B":
            values[2, 3] = np.nan
        tags = {"ssp": "ssp585", "period": 2080, "climate_model": model}
        maps[model] = one_map(tmp_path, cells, values, model, **tags)
        mess = np.where(np.isfinite(values), rng.uniform(-50, 50, cells.shape), np.nan)
        maps[model]["mess"] = write_cog(tmp_path / f"{model}_mess.tif", mess, cells)
        scenarios.append(SimpleNamespace(name=model, title=None, ssp="ssp585", period=2080, climate_model=model))
    study = SimpleNamespace(scenarios=scenarios, map=SimpleNamespace(suitable_above=0.5))
    return SimpleNamespace(study=study, maps=maps, groups=scenario_groups(study), folder=tmp_path, grid=cells)


# Areas of zones


@pytest.mark.parametrize(
    ("crs", "bounds", "resolution"),
    [
        ("EPSG:4326", (-101, 33, -94, 41), 0.5),
        ("EPSG:4326", (-101, 33, -94, 41), 1.0),
        ("EPSG:5070", (-500_000, 1_000_000, 300_000, 2_000_000), 25_000),
        ("EPSG:32614", (200_000, 3_700_000, 1_000_000, 4_500_000), 25_000),
        ("EPSG:3857", (-11_300_000, 3_900_000, -10_400_000, 5_000_000), 30_000),
    ],
)
def test_covered_area_is_geodesic(tmp_path, crs, bounds, resolution):
    zones = zones_of(QUIRKY, shapely.box(-97.93, 37.21, -97.48, 37.44))
    grid = Grid.from_bounds(bounds, resolution, crs)
    table = zone_areas({"present": one_map(tmp_path, grid)}, zones)
    truth = [geodesic_ha(QUIRKY), geodesic_ha(zones.geometries[1])]
    np.testing.assert_allclose(table["covered_ha"], truth, rtol=1e-3)
    np.testing.assert_allclose(table["zone_ha"], truth, rtol=1e-5)
    np.testing.assert_allclose(table["expected_ha"], 0.6 * table["covered_ha"], rtol=1e-6)


def test_small_zones_in_tall_cells_of_the_north(tmp_path):
    """In a cell of 2 degrees at 68 N the upper half is 4 % smaller than the lower: strips make up for it."""
    grid = Grid.from_bounds((0, 60, 10, 70), 2.0, "EPSG:4326")
    halves = shapely.box(0, 66, 2, 67), shapely.box(0, 67, 2, 68)
    table = zone_areas({"present": one_map(tmp_path, grid)}, zones_of(*halves))
    np.testing.assert_allclose(table["covered_ha"], [geodesic_ha(half) for half in halves], rtol=1e-3)
    assert table["covered_ha"][0] > 1.03 * table["covered_ha"][1]


def test_zones_in_another_projection_are_bent(tmp_path):
    """A zone's straight edge in longitude and latitude is an arc in a conic projection, 600 km long here."""
    strip = shapely.box(-103, 36.9, -95, 37.1)
    grid = Grid.from_bounds((-800_000, 1_400_000, 200_000, 1_700_000), 5_000, "EPSG:5070")
    table = zone_areas({"present": one_map(tmp_path, grid)}, zones_of(strip))
    assert table["covered_ha"][0] == pytest.approx(geodesic_ha(strip), rel=1e-3)
    projected = geopandas.GeoSeries([shapely.segmentize(strip, 0.01)], crs=4326).to_crs(32614)
    again = zone_areas({"present": one_map(tmp_path, grid)}, zones_of(projected[0], crs="EPSG:32614"))
    assert again["covered_ha"][0] == pytest.approx(table["covered_ha"][0], rel=1e-5)


def test_neighbours_add_up_to_the_map(tmp_path, cells):
    values = np.random.default_rng(0).uniform(0, 1, cells.shape).astype(np.float32)
    values[0, 0] = np.nan
    maps = {"present": one_map(tmp_path, cells, values)}
    west, south, east, north = cells.bounds
    cut = shapely.LineString([(west, south + 0.3), (-96.7, 36.9), (east, north - 1.7)])
    parts = shapely.get_parts(shapely.ops.split(shapely.box(west, south, east, north), cut))
    table = zone_areas(maps, zones_of(*parts), threshold=0.4)
    area = cells.cell_areas_ha()
    assert len(table) == 2
    assert table["suitable_ha"].sum() == pytest.approx(suitable_area(maps["present"]["probability"], 0.4), rel=2e-4)
    assert table["data_ha"].sum() == pytest.approx(area[np.isfinite(values)].sum(), rel=2e-4)
    assert table["covered_ha"].sum() == pytest.approx(area.sum(), rel=2e-4)


def test_a_zone_of_whole_cells_by_hand(climates):
    """Rows 1-3 and columns 2-4 of the grid: cells of one degree from 100 W and 40 N."""
    table = zone_areas(climates.maps, zones_of(shapely.box(-98, 36, -95, 39)), threshold=0.5).set_index("map")
    area = climates.grid.cell_areas_ha()[1:4, 2:5]
    before, after = (read(climates.maps[name]["probability"])[1:4, 2:5] for name in ("present", "B"))
    known = np.isfinite(after)
    row = table.loc["B"]
    assert row["data_ha"] == pytest.approx(area[known].sum(), rel=1e-6)
    assert row["suitable_ha"] == pytest.approx(area[after >= 0.5].sum(), rel=1e-6)
    assert row["expected_ha"] == pytest.approx((area * after)[known].sum(), rel=1e-6)
    assert row["mean_probability"] == pytest.approx(row["expected_ha"] / row["data_ha"])
    score = read(climates.maps["B"]["mess"])[1:4, 2:5]
    assert row["novel_share"] == pytest.approx(area[score < 0].sum() / area[known].sum(), rel=1e-6)
    patch = Grid(climates.grid.crs, climates.grid.transform @ type(climates.grid.transform).translation(2, 1), 3, 3)
    summary = summarise_change(before, after, patch)
    for title, hectares in summary.areas_ha.items():
        assert row[f"{title.replace(' ', '_')}_ha"] == pytest.approx(hectares, rel=1e-6, abs=1e-9)
    assert np.isnan(table.loc["present", "gain_ha"]) and np.isnan(table.loc["present", "novel_share"])
    assert row["suitable_km2"] == pytest.approx(row["suitable_ha"] / 100)
    assert row["suitable_acres"] == pytest.approx(row["suitable_ha"] * ACRES_PER_HA)
    assert (row["ssp"], row["period"], row["climate_model"], row["climate_models"]) == ("ssp585", "2080", "B", 1)


def test_groups_and_their_intervals(climates):
    zones = zones_of(shapely.box(-98, 36, -95, 39), shapely.box(-99.5, 35, -96.2, 37.7))
    table = zone_areas(climates.maps, zones, groups=climates.groups).set_index(["map", "zone"])
    # The same from the map of the mean on disk, and from the models where all have data.
    paths = combine_scenarios(climates.study, climates.maps, climates.folder)["ssp585_2080"]
    mean = {"present": climates.maps["present"], "mean": {"probability": paths["probability"]}}
    from_disk = zone_areas(mean, zones).set_index(["map", "zone"])
    lost = read(paths["probability"])
    own = {}
    for model in "ABC":
        values = np.where(np.isfinite(lost), read(climates.maps[model]["probability"]), np.nan)
        own[model] = one_map(climates.folder, climates.grid, values, f"own_{model}")
    by_model = zone_areas(own, zones).set_index(["map", "zone"])
    for zone in zones.ids:
        row = table.loc[("ssp585_2080", zone)]
        for column in ("suitable_ha", "expected_ha", "data_ha", "gain_ha", "stable_unsuitable_ha"):
            assert row[column] == pytest.approx(from_disk.loc[("mean", zone), column], rel=1e-6), column
        for quantity in ("suitable", "expected"):
            draws = [by_model.loc[(model, zone), f"{quantity}_ha"] for model in "ABC"]
            ends = [row[f"{quantity}_{end}_ha"] for end in ("low", "median", "high")]
            np.testing.assert_allclose(ends, np.quantile(draws, [0.05, 0.5, 0.95]), rtol=1e-6)
        assert row["interval"].startswith("5-95 % over 3 climate models") and row["climate_models"] == 3
        assert np.isnan(table.loc[("A", zone), "suitable_low_ha"]) and table.loc[("A", zone), "interval"] == ""


def test_novel_share_of_a_group_is_the_mean_over_models(tmp_path, cells):
    maps = {}
    for model, score in (("A", -1.0), ("B", 1.0), ("C", 1.0), ("D", -5.0)):
        maps[model] = one_map(tmp_path, cells, name=model)
        mess = np.full(cells.shape, score)
        maps[model]["mess"] = write_cog(tmp_path / f"{model}_mess.tif", mess, cells)
    group = ScenarioGroup("g", "ssp585", "2080", tuple("ABCD"), tuple("ABCD"))
    table = zone_areas(maps, zones_of(shapely.box(-99, 36, -97, 38)), groups={"g": group}).set_index("map")
    assert table["novel_share"].to_dict() == pytest.approx({"A": 1, "B": 0, "C": 0, "D": 1, "g": 0.5})


def test_bands_of_rows_give_the_same_table(climates, monkeypatch):
    zones = zones_of(QUIRKY)
    whole = zone_areas(climates.maps, zones, groups=climates.groups), latitude_areas(climates.maps)
    monkeypatch.setattr("mapping.zones._CELLS", 1)
    by_row = zone_areas(climates.maps, zones, groups=climates.groups), latitude_areas(climates.maps)
    for one, other in zip(whole, by_row, strict=True):
        # Strips depend on the latitude of the band, so parts of cells may differ by their small error.
        pd.testing.assert_frame_equal(one, other, rtol=2e-4)


def test_zones_off_the_map_are_left_out(climates):
    table = zone_areas(climates.maps, zones_of(shapely.box(-98, 36, -95, 39), shapely.box(10, 45, 12, 47)))
    assert set(table["zone"]) == {"z0"} and len(table) == len(climates.maps)
    with pytest.raises(AgriClipError, match="None of the zones"):
        zone_areas(climates.maps, zones_of(shapely.box(10, 45, 12, 47)))


# The antimeridian and the poles


def test_zones_across_the_antimeridian(tmp_path):
    """As two parts, or going on beyond 180 degrees: the same zone."""
    split = shapely.MultiPolygon([shapely.box(176.3, 50, 180, 55.2), shapely.box(-180, 50, -177.1, 55.2)])
    beyond, before = shapely.box(176.3, 50, 182.9, 55.2), shapely.box(-183.7, 50, -177.1, 55.2)
    truth = geodesic_ha(beyond)
    grids = {
        "whole": Grid.from_bounds((-180, 45, 180, 60), 1.0, "EPSG:4326"),
        "pacific": Grid.from_bounds((0, 45, 360, 60), 1.0, "EPSG:4326"),
        "here": Grid.from_bounds((-7e5, 7e5, 7e5, 2.4e6), 20_000, "+proj=laea +lat_0=38 +lon_0=180"),
    }
    for name, grid in grids.items():
        table = zone_areas({"present": one_map(tmp_path, grid, name=name)}, zones_of(split, beyond, before))
        np.testing.assert_allclose(table["covered_ha"], truth, rtol=1e-3, err_msg=name)


def test_a_ring_around_the_pole(tmp_path):
    grid = Grid.from_bounds((-1_500_000, -1_500_000, 1_500_000, 1_500_000), 25_000, "EPSG:3413")
    ring, sector = shapely.box(-180, 80, 180, 85), shapely.box(150, 80, 200, 85)
    table = zone_areas({"present": one_map(tmp_path, grid)}, zones_of(ring, sector))
    np.testing.assert_allclose(table["covered_ha"], [geodesic_ha(ring), geodesic_ha(sector)], rtol=1e-3)
    bands = latitude_areas({"present": one_map(tmp_path, grid)}, width=1.0).set_index("south")
    np.testing.assert_allclose(bands.loc[80:84, "covered_ha"].sum(), geodesic_ha(ring), rtol=5e-3)


def test_an_edge_around_the_globe_is_refused(climates):
    jump = shapely.Polygon([(179, 0), (-179, 0), (-179, 5), (179, 5)])
    with pytest.raises(AgriClipError, match="'z0'.*antimeridian"):
        zone_areas(climates.maps, zones_of(jump))
    around_the_pole = shapely.Point(0, 0).buffer(500_000)
    with pytest.raises(AgriClipError, match="antimeridian"):
        zones_of(around_the_pole, crs="EPSG:3413").lonlat("EPSG:4326")


# Latitude


def test_bands_of_latitude_add_up(climates):
    table = latitude_areas(climates.maps, groups=climates.groups)
    maps = table.groupby("map")
    for name in climates.maps:
        assert maps.get_group(name)["suitable_ha"].sum() == pytest.approx(
            suitable_area(climates.maps[name]["probability"]), rel=1e-9
        )
    rows = maps.get_group("present")
    assert rows["south"].tolist() == [34 + 0.5 * i for i in range(12)]
    # A degree of latitude is two bands: both halves of each cell hold its value.
    values, area = read(climates.maps["present"]["probability"]), climates.grid.cell_areas_ha()
    halves = rows["expected_ha"].to_numpy()[::-1].reshape(6, 2)
    np.testing.assert_allclose(halves.sum(axis=1), (values * area).sum(axis=1), rtol=1e-6)
    assert np.all(halves[:, 0] < halves[:, 1])  # the northern half is smaller
    strip = shapely.box(-100, 36.5, -92, 37)
    assert rows.set_index("south").loc[36.5, "covered_ha"] == pytest.approx(geodesic_ha(strip), rel=1e-4)


def test_one_band_is_the_whole_map(climates):
    table = latitude_areas(climates.maps, width=180, groups=climates.groups).set_index("map")
    whole = zone_areas(climates.maps, zones_of(shapely.box(*climates.grid.bounds)), groups=climates.groups)
    whole = whole.set_index("map")
    for column in ("data_ha", "suitable_ha", "gain_ha", "expected_low_ha", "suitable_high_ha", "novel_share"):
        np.testing.assert_allclose(table[column], whole.loc[table.index, column], rtol=1e-4, err_msg=column)


def test_latitudes_of_a_projected_map_are_true(tmp_path):
    """In a conic projection rows of the raster run across latitudes."""
    grid = Grid.from_bounds((-2_000_000, 700_000, 2_000_000, 2_400_000), 10_000, "EPSG:5070")
    x, y = grid.cell_centres()
    _, latitude = rasterio.warp.transform(grid.crs, "EPSG:4326", x.ravel(), y.ravel())
    north_of_38 = (np.reshape(latitude, grid.shape) >= 38).astype(np.float32)
    table = latitude_areas({"present": one_map(tmp_path, grid, north_of_38)}).set_index("south")
    assert table.loc[:37.5, "suitable_ha"].sum() == pytest.approx(0, abs=2e-3 * table["covered_ha"].sum())
    np.testing.assert_allclose(table.loc[38:, "suitable_ha"], table.loc[38:, "covered_ha"], rtol=0.05)
    assert table["covered_ha"].sum() == pytest.approx(grid.cell_areas_ha().sum())


@pytest.mark.parametrize("width", [0.0, -1.0, 181.0])
def test_bad_bands_are_refused(climates, width):
    with pytest.raises(AgriClipError, match="degrees high"):
        latitude_areas(climates.maps, width=width)


# Reading zones

TOPOLOGY = {
    "type": "Topology",
    "transform": {"scale": [0.5, 0.5], "translate": [-100.0, 35.0]},
    "objects": {
        "other": {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "id": 9, "arcs": [[1, 0]]}]},
        "units": {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "Polygon", "id": 1001, "properties": {"name": "West"}, "arcs": [[0, 1]]},
                {"type": "Polygon", "id": 1003, "properties": {"name": "East"}, "arcs": [[~0, 2]]},
                {"type": "Polygon", "id": 1003, "properties": {"name": "East"}, "arcs": [[3]]},
                {"type": "MultiPolygon", "id": 1005, "properties": {"name": "Nothing"}, "arcs": []},
            ],
        },
    },
    # Shared border from (-98, 35) to (-98, 37), then the outer borders, then an island; coded by differences.
    "arcs": [
        [[4, 0], [0, 4]],
        [[4, 4], [-4, 0], [0, -4], [4, 0]],
        [[4, 0], [4, 0], [0, 4], [-4, 0]],
        [[10, 0], [2, 0], [0, 2], [-2, 0], [0, -2]],
    ],
}


def test_topojson(tmp_path):
    path = tmp_path / "units.json"
    path.write_text(json.dumps(TOPOLOGY))
    zones = read_zones(path, layer="units")
    assert zones.ids == ("1001", "1003") and zones.names == ("West", "East") and zones.crs == "EPSG:4326"
    assert zones.geometries[0].equals(shapely.box(-100, 35, -98, 37))
    east = shapely.union_all([shapely.box(-98, 35, -96, 37), shapely.box(-95, 35, -94, 36)])
    assert zones.geometries[1].equals(east)
    assert read_zones(path).ids == ("9",)


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".geojson"])
def test_other_files(tmp_path, suffix):
    frame = geopandas.GeoDataFrame(
        {"FIPS": [20.0, 31.0], "label": ["Kansas", "Nebraska"]},
        geometry=[shapely.box(-102, 37, -95, 40), shapely.box(-104, 40, -96, 43)],
        crs="EPSG:4326",
    )
    path = tmp_path / f"states{suffix}"
    (frame if suffix == ".geojson" else frame.to_crs("EPSG:5070")).to_file(path)
    zones = read_zones(path, id_field="FIPS", name_field="label")
    assert zones.ids == ("20", "31") and zones.names == ("Kansas", "Nebraska")
    assert zones.areas_ha[0] == pytest.approx(geodesic_ha(frame.geometry[0]), rel=0.01)
    assert read_zones(path).ids == ("1", "2")
    with pytest.raises(AgriClipError, match="did you mean 'FIPS'"):
        read_zones(path, id_field="FIP")


def test_files_that_are_no_zones(tmp_path):
    with pytest.raises(AgriClipError, match="no file"):
        read_zones(tmp_path / "none.gpkg")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(AgriClipError, match="cannot be read"):
        read_zones(tmp_path / "text.json")
    (tmp_path / "units.json").write_text(json.dumps(TOPOLOGY))
    with pytest.raises(AgriClipError, match="did you mean 'units'"):
        read_zones(tmp_path / "units.json", layer="unit")
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=4326)
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(AgriClipError, match="no polygons"):
        read_zones(tmp_path / "points.gpkg")
    bare = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)])
    with pytest.warns(UserWarning, match="crs"):
        bare.to_file(tmp_path / "bare.shp")
    with pytest.raises(AgriClipError, match="in which CRS"):
        read_zones(tmp_path / "bare.shp")
    assert read_zones(tmp_path / "bare.shp", crs="EPSG:4326").areas_ha[0] == pytest.approx(1.2309e6, rel=1e-3)


def test_a_bow_tie_keeps_both_halves(tmp_path):
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    geopandas.GeoDataFrame(geometry=[bow], crs=4326).to_file(tmp_path / "bow.gpkg")
    assert read_zones(tmp_path / "bow.gpkg").geometries[0].area == pytest.approx(2.0)


# Tables


def test_parquet_equals_csv(climates):
    table = zone_areas(climates.maps, zones_of(QUIRKY), groups=climates.groups)
    csv = pd.read_csv(write_csv(table, climates.folder / "t/areas.csv"), dtype={"period": str}, keep_default_na=True)
    parquet = pd.read_parquet(write_parquet(table, climates.folder / "t/areas.parquet"))
    pd.testing.assert_frame_equal(parquet, table)
    texts = [column for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    assert set(texts) == {"zone", "name", "map", "ssp", "period", "climate_model", "interval"}
    csv[texts] = csv[texts].fillna("")
    pd.testing.assert_frame_equal(csv, parquet, check_dtype=False, check_exact=True)
    assert sorted(path.name for path in (climates.folder / "t").iterdir()) == ["areas.csv", "areas.parquet"]


def test_geopackage_reads_back(climates):
    shape = geopandas.GeoSeries([QUIRKY], crs=4326).to_crs(5070)[0]
    zones = zones_of(shape, crs="EPSG:5070")
    table = zone_areas(climates.maps, zones, groups=climates.groups)
    path = write_geopackage(table, zones, climates.folder / "g/areas.gpkg")
    assert list(geopandas.list_layers(path)["name"]) == ["present", "A", "B", "C", "ssp585_2080"]
    for name in ("present", "ssp585_2080"):
        layer = geopandas.read_file(path, layer=name)
        row = table[table["map"] == name].iloc[0]
        assert layer.crs.to_epsg() == 4326 and len(layer) == 1
        assert layer["suitable_ha"][0] == row["suitable_ha"] and layer["zone"][0] == "z0"
        assert geodesic_ha(layer.geometry[0]) == pytest.approx(row["zone_ha"], rel=1e-3)
    assert [entry.name for entry in path.parent.iterdir()] == ["areas.gpkg"]
    with pytest.raises(AgriClipError, match="z0"):
        write_geopackage(table, Zones(("other",), ("other",), (shape,), "EPSG:5070"), path)


# Bad input


def test_bad_maps_are_refused(climates, tmp_path):
    zones = zones_of(QUIRKY)
    with pytest.raises(AgriClipError, match="no probability"):
        zone_areas({"present": {}}, zones)
    with pytest.raises(AgriClipError, match="between 0 and 1"):
        zone_areas(climates.maps, zones, threshold=1.0)
    with pytest.raises(AgriClipError, match="needs the maps"):
        zone_areas({"A": climates.maps["A"]}, zones, groups=climates.groups)
    other = one_map(tmp_path, Grid.from_bounds((-100, 34, -92, 40), 0.5, "EPSG:4326"), name="other")
    with pytest.raises(AgriClipError, match="different grids"):
        zone_areas({**climates.maps, "other": other}, zones)


def test_missing_libraries_name_the_extra(climates, monkeypatch):
    monkeypatch.setitem(sys.modules, "exactextract", None)
    with pytest.raises(ImportError, match=r"agriclip\[zones\]"):
        zone_areas(climates.maps, zones_of(QUIRKY))
    monkeypatch.setitem(sys.modules, "geopandas", None)
    with pytest.raises(ImportError, match=r"agriclip\[zones\]"):
        read_zones("zones.gpkg")
    assert len(latitude_areas({"present": climates.maps["present"]})) == 12  # needs neither


@pytest.mark.realdata
@pytest.mark.skipif(not US.exists(), reason="the county shapes are not here; set AGRICLIP_DATA")
def test_us_states_and_counties(tmp_path):
    grid = Grid.from_bounds((-125, 24, -66.5, 50), 0.5, "EPSG:4326")
    maps = {"present": one_map(tmp_path, grid)}
    states, counties = (zone_areas(maps, read_zones(US, layer=layer)) for layer in ("states", "counties"))
    inside = states[states["covered_ha"] > 0.5 * states["zone_ha"]]
    assert len(inside) == 49  # 48 states and the District of Columbia
    np.testing.assert_allclose(inside["covered_ha"], inside["zone_ha"], rtol=1e-3)
    kansas = states.set_index("zone").loc["20"]
    assert kansas["zone_km2"] == pytest.approx(213_100, rel=0.002)  # US Census: 213,100 km2 of land and water
    of_kansas = counties[counties["zone"].str.fullmatch(r"20\d{3}")]
    assert len(of_kansas) == 105 and of_kansas["covered_ha"].sum() == pytest.approx(kansas["covered_ha"], rel=1e-4)


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)
