"""Pictures by zone, latitude and pathway: what is drawn, taken from the figures before they are saved."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from mapping import zone_figures
from mapping.outputs import write_cog
from mapping.scenario_ensemble import combine_scenarios, scenario_groups
from mapping.zone_figures import ensemble_panel, latitude_figure, zone_figure
from mapping.zones import Zones, latitude_areas, zone_areas
from processing.errors import AgriClipError
from processing.grids import Grid

pytest.importorskip("geopandas")
pytest.importorskip("exactextract")
shapely = pytest.importorskip("shapely")

COLUMNS, ROWS = 24, 16
GRID = Grid.from_bounds((-100, 32, -88, 40), 0.5, "EPSG:4326")


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """Suitability in the south that moves north, by three climate models that disagree on how far."""
    folder = tmp_path_factory.mktemp("zone_figures")
    x, y = GRID.cell_centres()

    def write(name, limit, novel_above=99.0, **tags):
        probability = (1 / (1 + np.exp((y - limit) / 0.4))).astype(np.float32)
        probability[-2:, :4] = np.nan
        mess = np.where(np.isnan(probability), np.nan, np.where(x > novel_above, -20.0, 20.0))
        return {
            layer: write_cog(folder / f"{name}_{layer}.tif", values, GRID, tags=tags)
            for layer, values in (("probability", probability), ("mess", mess))
        }

    maps, scenarios = {"present": write("present", 34.0)}, []
    for ssp, period, limits in (
        ("ssp126", 2050, (35.0, 35.0, 35.0)),
        ("ssp585", 2050, (35.0, 35.6, 36.0)),
        ("ssp585", 2080, (36.0, 37.0, 39.0)),
    ):
        for model, limit in zip("ABC", limits, strict=True):
            name = f"{ssp}_{period}_{model}"
            told = {"ssp": ssp, "period": period, "climate_model": model}
            maps[name] = write(name, limit, -92.0 if ssp == "ssp585" and model != "A" else 99.0, **told)
            scenarios.append(SimpleNamespace(name=name, title=None, **told))
    study = SimpleNamespace(scenarios=scenarios, map=SimpleNamespace(suitable_above=0.5))
    groups = scenario_groups(study, maps)
    west, east = shapely.box(-99, 33, -95, 38), shapely.box(-95, 33, -90, 38)
    shapes = west, east, shapely.box(-100, 32, -98.1, 32.9)
    zones = Zones(("w", "e", "none"), ("West", "East", "No data"), shapes, "EPSG:4326")
    return SimpleNamespace(
        folder=folder,
        maps=maps,
        groups=groups,
        combined=combine_scenarios(study, maps, folder),
        zones=zones,
        areas=zone_areas(maps, zones, groups=groups),
        latitudes=latitude_areas(maps, groups=groups),
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, newest last."""
    figures, save = [], zone_figures.save_figure

    def keep(figure, output):
        figures.append(figure)
        return save(figure, output)

    monkeypatch.setattr(zone_figures, "save_figure", keep)
    return figures


def words(figure):
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def test_latitude_lines_and_shades(mapped, drawn):
    png = latitude_figure(mapped.latitudes, mapped.folder / "latitude.png", quantity="suitable")
    with Image.open(png) as image:
        assert min(image.size) > 500
    panels = drawn[0].axes
    assert [panel.get_title(loc="left") for panel in panels] == ["2050", "2080"]
    rows = mapped.latitudes[mapped.latitudes["map"] == "ssp585_2080"]
    present, line = panels[1].lines
    np.testing.assert_allclose(line.get_xdata(), rows["suitable_median_km2"] / 1000)
    np.testing.assert_allclose(line.get_ydata(), rows["south"] + 0.25)
    of_present = mapped.latitudes[mapped.latitudes["map"] == "present"]["suitable_km2"]
    np.testing.assert_allclose(present.get_xdata(), of_present / 1000)
    shade = panels[1].collections[0].get_paths()[0].vertices
    assert shade[:, 0].max() == pytest.approx(rows["suitable_high_km2"].max() / 1000)
    assert len(panels[0].lines) == 3 and panels[0].get_xlim()[1] > shade[:, 0].max()
    assert panels[0].get_xlabel() == "suitable area per 0.5°, thousand km²"
    assert words(drawn[0]) == {"present", "SSP1-2.6", "SSP5-8.5", "5–95 % of 3 climate models (line: median)"}
    styles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in panels[0].lines}
    assert len(set(styles.values())) == 3


def test_latitude_of_the_present_alone(mapped, drawn):
    latitude_figure(mapped.latitudes[mapped.latitudes["map"] == "present"], mapped.folder / "alone.png")
    assert len(drawn[0].axes) == 1 and words(drawn[0]) == {"present"}


def test_bad_latitude_tables(mapped):
    with pytest.raises(AgriClipError, match="did you mean 'suitable'"):
        latitude_figure(mapped.latitudes, mapped.folder / "x.png", quantity="suitible")
    single = mapped.latitudes[mapped.latitudes["map"] == "ssp585_2080_A"]
    with pytest.raises(AgriClipError, match="neither the present nor a group"):
        latitude_figure(single, mapped.folder / "x.png")
    assert not (mapped.folder / "x.png").exists()


@pytest.mark.parametrize("value", ["mean_probability", "suitable_share", "net_change", "novel_share"])
def test_zones_are_coloured_by_their_value(mapped, drawn, value):
    png = zone_figure(mapped.areas, mapped.zones, mapped.folder / f"{value}.png", name="ssp585_2080", value=value)
    assert png.stat().st_size > 10_000
    rows = mapped.areas[mapped.areas["map"] == "ssp585_2080"].set_index("zone").loc[["w", "e"]]
    expected = {
        "mean_probability": rows["expected_ha"] / rows["data_ha"],
        "suitable_share": 100 * rows["suitable_ha"] / rows["data_ha"],
        "net_change": 100 * (rows["gain_ha"] - rows["loss_ha"]) / rows["data_ha"],
        "novel_share": 100 * rows["novel_share"],
    }[value]
    filled, empty = (c for c in drawn[0].axes[0].collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(filled.get_array(), expected)
    assert len(empty.get_paths()) == 1 and empty.get_hatch()  # the third zone lies where there is no data
    assert drawn[0].axes[1].get_xlabel() == zone_figures._ZONE_VALUES[value]


def test_holes_stay_open():
    ring = shapely.box(0, 0, 4, 4).difference(shapely.box(1, 1, 3, 3))
    both = shapely.MultiPolygon([*shapely.get_parts(ring), shapely.box(5, 5, 6, 6)])
    figure = Figure(figsize=(1, 1), dpi=60)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.add_collection(PathCollection([zone_figures._outline(both)], facecolors="black"))
    axes.set(xlim=(0, 6), ylim=(0, 6))
    axes.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[::-1, :, 0]  # ten pixels a unit, from the south
    assert [int(picture[int(10 * y), int(10 * x)]) for x, y in ((0.5, 0.5), (2, 2), (5.5, 5.5), (4.5, 4.5))] == [
        0,
        255,
        0,
        255,
    ]


def test_bad_zone_figures(mapped):
    with pytest.raises(AgriClipError, match="did you mean 'net_change'"):
        zone_figure(mapped.areas, mapped.zones, mapped.folder / "x.png", value="net_chnge")
    with pytest.raises(AgriClipError, match="did you mean 'ssp585_2080'"):
        zone_figure(mapped.areas, mapped.zones, mapped.folder / "x.png", name="ssp585_208")


def test_panel_of_pathways_and_periods(mapped, drawn):
    png = ensemble_panel(
        mapped.combined,
        mapped.groups,
        mapped.folder / "panel.png",
        present=mapped.maps["present"]["probability"],
        title="All",
    )
    assert png.exists()
    maps = [axes for axes in drawn[0].axes if axes.get_label() != "<colorbar>"]
    assert [axes.get_title(loc="center") for axes in maps] == ["2050", "2080", "", ""]
    texts = [[text.get_text() for text in axes.texts] for axes in maps]
    assert texts == [["SSP1-2.6"], ["not mapped"], ["SSP5-8.5"], []]
    assert words(drawn[0]) == {
        "fewer than 80 % of the models agree",
        "novel in half of the models or more",
        "0.5 in the present",
    }
    hatched = [[c for c in axes.collections if isinstance(c, PolyCollection)] for axes in maps]
    assert [len(found) for found in hatched] == [0, 0, 1, 1]  # under SSP1-2.6 the models are the same
    # Suitable up to 36, 37 and 39 N: of three models one or two say so between 36 and 39 N.
    corners = np.concatenate([path.vertices for path in hatched[3][0].get_paths()])
    assert (corners[:, 1].min(), corners[:, 1].max()) == (36.0, 39.0)
    assert (corners[:, 0].min(), corners[:, 0].max()) == (-100.0, -88.0)
    dots = [c.get_offsets() for c in maps[3].collections if isinstance(c, PathCollection)]
    assert len(dots) == 1 and dots[0][:, 0].min() > -92.0 and len(dots[0]) == 8 * ROWS
    assert not [c for c in maps[0].collections if isinstance(c, PathCollection)]


def test_panel_without_doubts_has_no_legend(mapped, drawn):
    groups = {"ssp126_2050": mapped.groups["ssp126_2050"]}
    ensemble_panel(mapped.combined, groups, mapped.folder / "sure.png")
    assert not drawn[0].legends


def test_bad_panels(mapped):
    with pytest.raises(AgriClipError, match="no group"):
        ensemble_panel({}, {}, mapped.folder / "x.png")
    with pytest.raises(AgriClipError, match="'ssp126_2050' has no map"):
        ensemble_panel({}, mapped.groups, mapped.folder / "x.png")


def test_runs_and_boxes():
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=bool)
    assert zone_figures._runs(mask) == [(0, 0, 2), (0, 3, 4), (2, 1, 4)]
    picture = SimpleNamespace(values=mask, extent=(0.0, 8.0, 0.0, 3.0))
    assert zone_figures._box(picture, (2, 1, 4)) == [(2.0, 1.0), (8.0, 1.0), (8.0, 0.0), (2.0, 0.0)]
