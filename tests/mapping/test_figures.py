"""Pictures: they open, they show the data in the right place and colour, and outlines are read right."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluation.metrics import reliability_curve
from mapping import figures, skill_figures
from mapping.change import CHANGE_CLASSES, change_map
from mapping.outputs import write_cog
from processing.errors import AgriClipError


def picture_of(path):
    with Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("RGB")).astype(int)


def share_of(pixels, colour, tolerance=12):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(pixels - wanted).max(axis=-1) <= tolerance).mean())


def centre_of(pixels, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = np.nonzero(np.abs(pixels - wanted).max(axis=-1) <= 12)
    return rows.mean() / pixels.shape[0], columns.mean() / pixels.shape[1]


def test_probability_is_drawn_north_up_with_low_dark_and_high_bright(tmp_path, cells):
    values = np.zeros((6, 8), np.float32)
    values[:2, 6:] = 1.0  # north-east
    path = write_cog(tmp_path / "p.tif", values, cells)
    pixels = picture_of(figures.probability_figure(path, tmp_path / "p.png", title="North-east", threshold=0.5))
    row, column = centre_of(pixels, "#fee838")
    assert row < 0.45 and column > 0.6
    assert share_of(pixels, "#00224e") > 0.3


def test_no_data_is_neither_low_nor_high(tmp_path, cells):
    path = write_cog(tmp_path / "p.tif", np.full((6, 8), np.nan, np.float32), cells)
    pixels = picture_of(figures.probability_figure(path, tmp_path / "p.png", title="Nothing", threshold=0.5))
    # Only the colour bar itself may hold the colours of data.
    assert share_of(pixels, "#fee838") < 0.02 and share_of(pixels, "#00224e") < 0.02


def test_change_picture_has_the_fixed_colours_and_areas(tmp_path, cells):
    present, future = np.zeros((2, 6, 8), np.float32)
    present[:3, :4], present[3:, :4] = 1, 1
    future[:3, :4], future[:3, 4:] = 1, 1
    write_cog(tmp_path / "p.tif", present, cells)
    write_cog(tmp_path / "f.tif", future, cells)
    summary = change_map(tmp_path / "p.tif", tmp_path / "f.tif", tmp_path / "c.tif")
    pixels = picture_of(figures.change_figure(tmp_path / "c.tif", tmp_path / "c.png", title="Four", summary=summary))
    for _, colour in CHANGE_CLASSES.values():
        assert share_of(pixels, colour, 2) > 0.08
    row, column = centre_of(pixels, CHANGE_CLASSES[3][1])  # loss: south-west
    assert row > 0.4 and column < 0.5


def test_panel_signed_reliability_and_scatter_open(tmp_path, toy):
    maps = {name: layers["probability"] for name, layers in toy.maps.items()}
    panel = picture_of(figures.scenario_panel(maps, tmp_path / "a.png", title="All"))
    assert panel.shape[1] > 1.5 * panel.shape[0] * 0.9  # three side by side
    figures.signed_figure(toy.maps["warm"]["mess"], tmp_path / "b.png", title="Novelty", label="MESS, %")
    rng = np.random.default_rng(0)
    probability = rng.random(500)
    curve = reliability_curve(rng.random(500) < probability, probability, bins=10)
    skill_figures.reliability_figure(curve, probability, tmp_path / "c.png")
    skill_figures.scatter_figure(probability, probability, tmp_path / "d.png", title="Same", note="RMSE 0.000")
    for name in "bcd":
        assert picture_of(tmp_path / f"{name}.png").std() > 5
    assert not list(tmp_path.glob(".*"))


def test_losses_are_drawn_for_every_fit(tmp_path):
    steps = range(1, 21)
    rows = [
        {"epoch": e, "loss": 1 / e, "weighted/prediction": 0.8 / e, "weighted/consistency": 0.2 / e} for e in steps
    ]
    watched = [{"epoch": e, "eval_log_loss": 0.9 / e} for e in steps]
    drawn = skill_figures.loss_figure({"fold 1": rows + watched, "fold 2": rows[:15]}, tmp_path / "losses.png")
    assert picture_of(drawn).std() > 5
    # A run that was killed before its first log has nothing to show.
    assert skill_figures.loss_figure({"fold 1": [{"train_runtime": 1.0}]}, tmp_path / "none.png") is None
    assert [path.name for path in tmp_path.iterdir()] == ["losses.png"]


def test_projected_maps_are_labelled_and_drawn(tmp_path):
    from affine import Affine

    from processing.rasters import Grid

    grid = Grid("EPSG:5070", Affine(10_000.0, 0.0, 0.0, 0.0, -10_000.0, 1_500_000.0), 30, 20)
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    path = write_cog(tmp_path / "p.tif", values, grid)
    assert picture_of(figures.probability_figure(path, tmp_path / "p.png", title="km")).std() > 20


def test_an_empty_panel_is_refused(tmp_path):
    with pytest.raises(AgriClipError, match="at least one map"):
        figures.scenario_panel({}, tmp_path / "a.png")


TOPOLOGY = {
    "type": "Topology",
    "transform": {"scale": [0.5, 0.25], "translate": [-100.0, 30.0]},
    "arcs": [[[0, 0], [2, 0], [0, 4]], [[2, 4], [-2, 0], [0, -4]], [[9, 9], [1, 1]]],
    "objects": {
        "states": {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "arcs": [[0, -2]]}]},
        "roads": {"type": "LineString", "arcs": [2]},
    },
}


def test_topojson_arcs_are_decoded_and_used_once(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(TOPOLOGY))
    lines = figures.read_outlines(path, "states")
    assert len(lines) == 2
    np.testing.assert_allclose(lines[0], [[-100, 30], [-99, 30], [-99, 31]])
    np.testing.assert_allclose(lines[1], [[-99, 31], [-100, 31], [-100, 30]])
    np.testing.assert_allclose(figures.read_outlines(path, "roads")[0], [[-95.5, 32.25], [-95, 32.5]])


def test_geojson_of_every_kind(tmp_path):
    ring = [[0, 0], [1, 0], [1, 1], [0, 0]]
    parts = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring, ring]}},
        {"type": "Feature", "properties": {}, "geometry": {"type": "MultiPolygon", "coordinates": [[ring], [ring]]}},
        {"type": "Feature", "properties": {}, "geometry": {"type": "LineString", "coordinates": ring[:2]}},
        {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [0, 0]}},
        {"type": "Feature", "properties": {}, "geometry": None},
    ]
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": parts}))
    lines = figures.read_outlines(path)
    assert [len(line) for line in lines] == [4, 4, 4, 4, 2]
    projected = figures.read_outlines(path, crs="EPSG:3857")
    assert projected[0][1] == pytest.approx([111_319.49, 0.0], abs=0.01)


@pytest.mark.parametrize(
    ("text", "layer", "said"),
    [
        ("{", None, "not JSON"),
        ('{"a": 1}', None, "neither GeoJSON nor TopoJSON"),
        ("[1, 2]", None, "neither GeoJSON nor TopoJSON"),
        (json.dumps(TOPOLOGY), "stats", "did you mean 'states'"),
    ],
)
def test_bad_outlines_are_refused(tmp_path, text, layer, said):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(AgriClipError, match=said):
        figures.read_outlines(path, layer)
