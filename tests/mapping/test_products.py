"""Change maps, areas, pictures and the report of a mapped study."""

import base64
import csv
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mapping.change import change_classes
from mapping.demo import check_file, compare_with_truth
from mapping.outputs import read_map, write_cog
from mapping.products import input_files, make_products, novel_percent, plain, write_json
from mapping.report import TruthRow, _people, change_sentence
from processing.errors import AgriClipError

ROWS = [
    {"model": "AgriCLIP", "ap": 0.93, "auc": 0.97, "brier": 0.05, "log_loss": 0.2, "ece": 0.01},
    {"model": "random <forest>", "ap": 0.89, "auc": 0.98, "brier": 0.06, "log_loss": math.nan, "ece": 0.02},
]


class Page(HTMLParser):
    """Collects what a browser would load, the text and the open tags."""

    def __init__(self):
        super().__init__()
        self.sources, self.links, self.text, self.stack, self.ids = [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        if tag == "img":
            assert values["alt"]
        self.sources += [values[key] for key in ("src", "srcset", "data") if key in values]
        self.links += [values["href"]] if "href" in values else []
        if tag not in ("img", "meta", "link", "input", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("products")
    products = make_products(
        toy.study,
        toy.maps,
        folder,
        comparison=ROWS,
        truth=[TruthRow("present", 0.041, 1000.0, 1100.0), TruthRow("Warm", 0.05, 2000.0, 2100.0, 97.0)],
        truth_note="The truth is known.",
        warnings=["Only a toy."],
        commands=["agriclip map toy.yaml"],
    )
    return folder, products


def test_every_file_named_exists_and_opens(made):
    folder, products = made
    assert {path.name for path in products.files} >= {"report.html", "areas.csv", "change_warm.tif", "change_dry.tif"}
    for path in products.files:
        check_file(path)
    assert not [path for path in folder.rglob(".*")]


def test_areas_add_up_to_the_land_with_data(made, toy):
    folder, products = made
    with open(folder / "areas.csv", newline="") as stream:
        rows = {(row["map"], row["class"]): row for row in csv.DictReader(stream)}
    land = toy.grid.cell_areas_ha()[np.isfinite(read_map(toy.maps["present"]["probability"]))].sum()
    for name in ("warm", "dry"):
        classes = ("stable suitable", "gain", "loss", "stable unsuitable")
        assert sum(float(rows[name, title]["ha"]) for title in classes) == pytest.approx(land, rel=1e-6)
        assert float(rows[name, "gain"]["km2"]) == pytest.approx(float(rows[name, "gain"]["ha"]) / 100, abs=0.01)
    assert products.changes["warm"].present_ha == pytest.approx(products.present_ha)


def test_warmth_moves_the_crop_north(made):
    _, products = made
    assert products.changes["warm"].net_ha > 0 and products.changes["warm"].compass.startswith("north")
    assert products.changes["dry"].future_ha < products.changes["warm"].future_ha


def test_report_is_one_whole_page_without_the_network(made):
    folder, products = made
    text = products.report.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.stack == []
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    for source in page.sources:
        assert base64.b64decode(source.split(",", 1)[1]).startswith(b"\x89PNG")
    assert not re.search(r"https?://", text)
    assert "width=device-width" in text
    for link in page.links:
        assert (link[1:] in page.ids) if link.startswith("#") else (folder / link).is_file()


def test_report_says_areas_scores_doubts_and_commands(made, toy):
    _, products = made
    page = Page()
    page.feed(products.report.read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert "A toy study" in text and "Only a toy." in text and "Suitable is not sown" in text
    assert change_sentence(products.changes["warm"], "Warm") in text
    assert f"{products.changes['dry'].areas_ha['loss']:,.0f}" in text
    assert "0.930" in text and "random <forest>" in text and "–" in text  # NaN is a dash
    assert "+10.0 %" in text and "97.0 %" in text
    assert "agriclip map toy.yaml" in text
    for path in input_files(toy.study):
        assert path.name in text


def test_best_scores_are_marked(made):
    _, products = made
    text = products.report.read_text(encoding="utf-8")
    assert re.findall(r'<td class="best">([\d.]+)</td>', text) == ["0.930", "0.050", "0.010", "0.980"]


def test_input_files_are_those_of_the_study(toy):
    names = [path.name for path in input_files(toy.study)]
    assert names == ["labels.csv", "climate.tif", "warm.tif", "dry.tif"]


def test_novel_percent_by_hand(tmp_path, cells):
    values = np.full((6, 8), 5.0, np.float32)
    values[:, 0], values[:, 1] = np.nan, -1.0  # one column unknown, one of the other seven is novel
    path = write_cog(tmp_path / "m.tif", values, cells)
    assert novel_percent(path) == pytest.approx(100 / 7)


def test_a_map_of_the_present_is_needed(toy, tmp_path):
    with pytest.raises(AgriClipError, match="no map of the present"):
        make_products(toy.study, {"warm": toy.maps["warm"]}, tmp_path)


def test_truth_compared_with_itself_is_perfect(toy):
    truth = {name: layers["probability"] for name, layers in toy.maps.items()}
    rows = compare_with_truth(toy.maps, truth, toy.study)
    assert [row.rmse for row in rows] == [0.0, 0.0, 0.0]
    assert [row.area_error_percent for row in rows] == [0.0, 0.0, 0.0]
    assert [row.change_agreement_percent for row in rows] == [None, 100.0, 100.0]


def test_truth_comparison_sees_an_error(toy, tmp_path):
    shifted = {name: dict(layers) for name, layers in toy.maps.items()}
    values = read_map(toy.maps["warm"]["probability"])
    shifted["warm"]["probability"] = write_cog(tmp_path / "s.tif", np.clip(values - 0.3, 0, 1), toy.grid)
    truth = {name: layers["probability"] for name, layers in toy.maps.items()}
    row = compare_with_truth(shifted, truth, toy.study)[1]
    area = toy.grid.cell_areas_ha()
    error = np.clip(values - 0.3, 0, 1) - values
    known = np.isfinite(values)
    assert row.rmse == pytest.approx(np.sqrt(np.average(error[known] ** 2, weights=area[known])), rel=1e-4)
    assert row.area_error_percent < -1
    present = read_map(toy.maps["present"]["probability"])
    same = change_classes(present, values) == change_classes(present, values - 0.3)
    assert row.change_agreement_percent == pytest.approx(100 * area[known & same].sum() / area[known].sum())


def test_broken_files_are_noticed(tmp_path):
    for name, content in (("a.tif", b"II*\0nonsense"), ("b.png", b"\x89PNG"), ("c.json", b"{"), ("d.csv", b"x\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AgriClipError, match="cannot be read back"):
            check_file(tmp_path / name)


def test_json_has_no_nan_and_reads_back(tmp_path):
    content = {"a": math.nan, "b": [np.float32(0.5), np.int64(3)], "c": tmp_path, "d": np.arange(2), "e": True}
    path = write_json(tmp_path / "x.json", content)
    assert json.loads(path.read_text()) == {"a": None, "b": [0.5, 3], "c": str(tmp_path), "d": [0, 1], "e": True}
    assert plain({1: math.inf}) == {"1": None}


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.0, False, "0 ha"),
        (123.4, True, "+123 ha"),
        (45_678.0, False, "45,700 ha"),
        (-1_234_567.0, True, "−1.23 million ha"),
    ],
)
def test_areas_for_people(value, signed, text):
    assert _people(value, "ha", signed) == text
