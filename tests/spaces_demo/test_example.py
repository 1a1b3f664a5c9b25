"""The example, its pictures and downloads: what the page says without the model."""

import base64
import csv
import io
import json
import zipfile

import numpy as np
import pytest
import rasterio

from mapping.change import ACRES_PER_HA
from processing.errors import AgriClipError
from spaces_demo import pictures, snippets
from spaces_demo.build_example import build_example
from spaces_demo.downloads import area_rows, export_zip, write_layer
from spaces_demo.example import MEAN, Example, percent, verdict
from spaces_demo.planting import Planting, card_html
from tests.spaces_demo.conftest import GRID


def column_of(longitude):
    return int((longitude + 92.0) / 0.5)


def test_layers_are_those_of_the_maps(example, study_output):
    from mapping.outputs import read_map

    for key in example.climates:
        original = read_map(study_output / "maps" / f"{key}_probability.tif")
        assert np.nanmax(np.abs(example.layer(key, "probability") - original)) <= 0.5e-4 + 1e-7
        assert np.array_equal(np.isnan(example.layer(key, "probability")), np.isnan(original))


def test_lists_and_finding(example):
    assert example.pathways == ["SSP5-8.5"] and example.periods("SSP5-8.5") == ["2080"]
    assert example.models("SSP5-8.5", "2080") == [MEAN, "A-1", "B-2"]
    assert example.find("SSP5-8.5", "2080", "B-2").key == "ssp585_2080_b-2"
    assert example.find("SSP5-8.5", "2080", MEAN).key == "ssp585_2080"
    assert example.find("").key == "present"
    with pytest.raises(AgriClipError, match="no climate 'ssp9'"):
        example.climate("ssp9")


def test_a_place_has_the_numbers_of_its_cell(example):
    point = example.point(-86.2, 37.1)
    column = column_of(-86.2)
    now = column / (GRID.width - 1)
    assert point["present"]["probability"] == pytest.approx(now, abs=1e-4)
    scenario = point["scenarios"][0]
    assert scenario["low"] == pytest.approx(now * 0.5, abs=1e-4)
    assert scenario["high"] == pytest.approx(min(now * 1.25, 1), abs=1e-4)
    assert scenario["mean"] == pytest.approx((now * 0.5 + min(now * 1.25, 1)) / 2, abs=1e-4)
    assert percent(now) in point["sentence"] and "SSP5-8.5 by 2080" in point["sentence"]
    assert "resembles" in point["trust"]
    assert example.point(-91.8, 37.0)["trust"].startswith("Do not trust")
    assert point["cell_ha"] == pytest.approx(GRID.cell_areas_ha()[point["row"], point["column"]])


@pytest.mark.parametrize(
    ("longitude", "latitude", "words"),
    [
        (float("nan"), 1.0, "needs a longitude"),
        (500.0, 1.0, "is no place"),
        (2.35, 48.8, "outside the map"),
        (-91.9, 39.9, "no data at"),
    ],
)
def test_places_without_an_answer(example, longitude, latitude, words):
    with pytest.raises(AgriClipError, match=words) as caught:
        example.point(longitude, latitude)
    assert str(caught.value).count(".") <= 6


def test_areas_follow_the_threshold_and_add_up(example):
    loose, strict = example.areas("ssp585_2080", 0.3), example.areas("ssp585_2080", 0.8)
    assert loose.present_ha > strict.present_ha > 0
    chance, areas = example.layer("present", "probability"), GRID.cell_areas_ha()
    assert loose.present_ha == pytest.approx(areas[chance >= 0.3].sum(), rel=1e-12)
    known = areas[np.isfinite(chance)].sum()
    assert sum(loose.areas_ha.values()) == pytest.approx(known, rel=1e-12)
    outside = example.layer("present", "applicability") == 2
    assert example.outside_share("present") == pytest.approx(areas[outside].sum() / areas.sum(), rel=1e-6)


def test_words_for_probabilities():
    assert [verdict(p) for p in (0.05, 0.2, 0.5, 0.8, 0.95)] == [
        "very unlikely to suit",
        "unlikely to suit",
        "borderline",
        "likely to suit",
        "very likely to suit",
    ]
    assert percent(0.004) == "below 1 %" and percent(0.999) == "above 99 %" and percent(0.426) == "43 %"


def decode(url):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))


def test_overlay_pixels_lie_where_their_cells_lie(example):
    overlay = pictures.draw_overlay(example, "present", "probability", 0.5, hatch=False, outline=False)
    south, west, north, east = overlay.bounds
    assert (west, south, east, north) == pytest.approx(GRID.bounds)
    picture = decode(overlay.url)
    height, width = picture.shape[:2]

    def mercator(latitude):
        return np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2))

    for longitude, latitude in ((-90.25, 35.25), (-84.3, 39.3), (-87.6, 36.9)):
        x = int((longitude - west) / (east - west) * width)
        y = int((mercator(north) - mercator(latitude)) / (mercator(north) - mercator(south)) * height)
        value = example.layer("present", "probability")[example.cell(longitude, latitude)]
        wanted = pictures.stop_colours(np.array([[value]]), pictures.PROBABILITY_STOPS)[0, 0]
        # The picture has a palette of 128 colours.
        assert np.abs(picture[y, x].astype(int) - wanted.astype(int)).max() <= 12
    assert picture[2, 2, 3] == 0  # the cell without data


def test_change_has_the_four_colours_and_follows_the_threshold(example):
    from mapping.change import CHANGE_CLASSES

    def seen(at):
        picture = decode(pictures.draw_overlay(example, "ssp585_2080_a-1", "change", at, hatch=False).url)
        return {tuple(int(c) for c in colour[:3]) for colour in picture.reshape(-1, 4) if colour[3]}

    allowed = {pictures._rgb(colour) for _, colour in CHANGE_CLASSES.values()}
    assert seen(0.5) <= allowed and seen(0.5) == {pictures._rgb(CHANGE_CLASSES[i][1]) for i in (3, 4)} | (
        {pictures._rgb(CHANGE_CLASSES[1][1])} & seen(0.5)
    )
    assert seen(0.4) >= {pictures._rgb(CHANGE_CLASSES[1][1])}


def test_legends_and_charts_escape_what_they_quote(example):
    html = pictures.legend_html("probability", True, "<script>alert(1)</script>", 0.5)
    assert "<script>" not in html and "50 % or more" in html
    chart = pictures.ranges_svg(example.point(-86.2, 37.1))
    assert chart.count("<circle") == 4 and "SSP5-8.5, 2080" in chart


def test_planting_card_in_two_climates(example, study_output):
    planting = Planting(example)
    card = planting.card(-86.2, 36.1)
    assert card.scenario == "Present climate" and card.sentence.endswith(".")
    assert card.sentence in card_html(card)
    with pytest.raises(AgriClipError, match="no months"):
        planting.card(-86.2, 36.1, "ssp585_2080_a-1")


def test_export_is_whole_and_georeferenced(example, tmp_path):
    path = export_zip(example, ["present", "ssp585_2080"], ["probability", "change"], 0.5, tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("manifest.json"))
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("areas.csv"))))
    assert names == {
        "present_probability.tif", "present_probability.qml", "ssp585_2080_probability.tif",
        "ssp585_2080_probability.qml", "ssp585_2080_change.tif", "ssp585_2080_change.qml", "areas.csv",
        "manifest.json",
    }  # fmt: skip
    assert set(manifest["files"]) == names - {"manifest.json"}
    first = rows[0]
    assert float(first["acres"]) == pytest.approx(float(first["ha"]) * ACRES_PER_HA, rel=1e-6)
    with rasterio.open(tmp_path / "ssp585_2080_change.tif") as raster:
        assert raster.crs.to_epsg() == 4326 and raster.tags()["threshold"] == "0.5"
        assert raster.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
    assert area_rows(example, ["present"], 0.5)[0]["class"] == "suitable"


def test_export_refuses_what_is_nothing(example, tmp_path):
    for keys, layers, threshold, words in (
        ([], ["probability"], 0.5, "Nothing was chosen"),
        (["present"], ["probability"], 1.5, "threshold"),
        (["../../etc"], ["probability"], 0.5, "no climate"),
        (["present"], ["passwd"], 0.5, "no layer"),
    ):
        with pytest.raises(AgriClipError, match=words):
            export_zip(example, keys, layers, threshold, tmp_path)
    with pytest.raises(AgriClipError, match="against itself"):
        write_layer(example, "present", "change", 0.5, tmp_path)


def test_building_again_gives_the_same_files(study_output, example_dir, tmp_path):
    build_example(study_output, tmp_path / "again")
    for file in example_dir.rglob("*.tif"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(example_dir)).read_bytes()
    assert not list(tmp_path.glob(".again*"))


def test_building_needs_maps(tmp_path):
    with pytest.raises(AgriClipError, match="holds no map.json"):
        build_example(tmp_path, tmp_path / "example")
    with pytest.raises(AgriClipError, match="no example"):
        Example(tmp_path)


@pytest.mark.parametrize(
    ("pathway", "period", "words"),
    [
        ("SSP5-8.5", "2080", "under SSP5-8.5 by 2080."),
        ("SSP5-8.5", "", "under SSP5-8.5."),
        ("4 degC warmer, drier summers", "", "under the scenario “4 degC warmer, drier summers”."),
        ("warmer, drier", "2050", "under the scenario “warmer, drier” by 2050."),
    ],
)
def test_any_title_makes_a_sentence(example, pathway, period, words):
    from dataclasses import replace

    told = Example(example.folder)
    told.climates = {
        key: replace(climate, pathway=pathway, period=period) if climate.pathway else climate
        for key, climate in told.climates.items()
    }
    assert told.point(-86.2, 37.1)["sentence"].endswith(words)


def test_snippets_cannot_be_left():
    text = snippets.for_text("rain ``` <script> \" '")
    assert text.count("```") == 4
    assert "out/us/maps/ssp585_2080_probability.tif" in snippets.for_areas("ssp585_2080", 0.4)
    assert "'; rm -rf /'" in snippets.for_segment("; rm -rf /", ["a"])
