"""The model behind the page: places, sliders, texts."""

import math

import numpy as np
import pytest

from processing.errors import AgriClipError
from spaces_demo.engine import Engine, check_report
from spaces_demo.screens.text import edit_report, number_rows, sentences_of
from spaces_demo.whatif import SLIDERS, Changes, change_predictors, out_of_range, sweep

BIO = [
    {"name": f"bio{i}", "title": f"bio {i}", "unit": "degC" if i in (1, 2, 4, 5, 6, 7, 8, 9, 10, 11) else "mm",
     "decimals": 1, "low": -100.0, "high": 5000.0}
    for i in range(1, 20)
]  # fmt: skip
PLACE = np.array([14.0, 12, 30, 9, 32, -8, 40, 24, 2, 25, 3, 1100, 130, 60, 20, 350, 200, 330, 210], dtype=float)


def value(table, name):
    return table[int(name[3:]) - 1]


def test_nothing_moves_where_no_slider_does():
    assert np.array_equal(change_predictors(PLACE, BIO, Changes()), PLACE)


def test_warming_moves_levels_and_not_ranges():
    moved = change_predictors(PLACE, BIO, Changes(warming=3))
    for name in ("bio1", "bio5", "bio6", "bio8", "bio9", "bio10", "bio11"):
        assert value(moved, name) == value(PLACE, name) + 3
    for name in ("bio2", "bio3", "bio4", "bio7", "bio12", "bio19"):
        assert value(moved, name) == pytest.approx(value(PLACE, name))


def test_winter_and_rain_keep_what_depends_on_them():
    moved = change_predictors(PLACE, BIO, Changes(winter_warming=4))
    assert value(moved, "bio7") == pytest.approx(value(moved, "bio5") - value(moved, "bio6"))
    assert value(moved, "bio11") == 7 and value(moved, "bio1") == 16 and value(moved, "bio10") == 25
    assert value(moved, "bio3") == pytest.approx(30 * 40 / 36)
    rain = change_predictors(PLACE, BIO, Changes(precipitation=-10, summer_rain=20))
    assert value(rain, "bio18") == pytest.approx(330 * 0.9 * 1.2)
    assert value(rain, "bio12") == pytest.approx(1100 * 0.9 + 330 * 0.9 * 0.2)
    assert value(rain, "bio19") == pytest.approx(210 * 0.9)
    assert value(rain, "bio16") >= value(rain, "bio18") >= value(rain, "bio17")


def test_other_predictors_move_by_title_and_unit(example):
    moved = change_predictors(np.array([10.0, 1000.0]), example.variables, Changes(warming=2, precipitation=10))
    assert moved.tolist() == pytest.approx([12.0, 1100.0])


def test_soil_water_is_no_rain():
    soil = [{"name": "awc", "title": "available soil water capacity", "unit": "mm", "decimals": 0}]
    assert change_predictors(np.array([150.0]), soil, Changes(precipitation=50)).tolist() == [150.0]


def test_sliders_have_ends():
    with pytest.raises(AgriClipError, match="goes from -2 to 8"):
        change_predictors(PLACE, BIO, Changes(warming=40))
    steps, table = sweep(PLACE, BIO, Changes(precipitation=5), "warming")
    _, _, low, high, _ = SLIDERS["warming"]
    assert (steps[0], steps[-1]) == (low, high)
    assert np.array_equal(table[3], change_predictors(PLACE, BIO, Changes(float(steps[3]), 0, 5, 0)))


def test_out_of_range_names_the_farthest_first():
    variables = [
        {"name": "a", "title": "heat", "unit": "degC", "decimals": 1, "low": 0.0, "high": 10.0},
        {"name": "b", "title": "rain", "unit": "mm", "decimals": 0, "low": 500.0, "high": 1000.0},
    ]
    said = out_of_range(np.array([11.0, 2000.0]), variables)
    assert said[0].startswith("rain 2000 mm") and "labelled sites: 500 to 1000" in said[0] and "heat 11.0" in said[1]
    assert out_of_range(np.array([10.0, 500.0]), variables) == []


def test_a_place_is_answered_as_its_report_is(engine, example):
    """The live answer is that of the report the cell tells: two ways to the same members."""
    values = engine.place_values(-86.2, 37.1)
    assert values.tolist() == pytest.approx([example.predictors[i][example.cell(-86.2, 37.1)] for i in (0, 1)])
    asked = engine.predict_place(-86.2, 37.1, values)
    told = engine.ask_texts([engine.report_of(values)])[0]
    assert told.probability == pytest.approx(float(asked.probability[0]), abs=1e-5)
    assert told.std == pytest.approx(float(asked.std[0]), abs=1e-5)
    assert told.low <= told.probability <= told.high and told.low < told.high


def test_answers_do_not_depend_on_company(engine):
    reports = ["Rain 500 mm.", "Rain 500 mm. Annual mean temperature 12 degC; frost on 90 days."]
    together = engine.ask_texts(reports)
    alone = [engine.ask_texts([report])[0] for report in reports]
    assert [a.probability for a in together] == pytest.approx([a.probability for a in alone], abs=1e-5)


def test_units_do_not_matter(engine):
    inches, millimetres = engine.ask_texts(["Annual precipitation 15.75 in.", "Annual precipitation 400 mm."])
    assert inches.probability == pytest.approx(millimetres.probability, abs=1e-6)


def test_long_and_empty_reports_are_refused_in_a_sentence(engine):
    with pytest.raises(AgriClipError, match="20,000 words"):
        engine.ask_texts(["rain " * 20_000])
    with pytest.raises(AgriClipError, match="no text"):
        check_report("  \n ")
    with pytest.raises(AgriClipError, match=r"more than the 512 that the model reads"):
        engine.ask_texts(["rain 12 mm " * 900])


def test_html_in_a_report_is_text(engine):
    answer = engine.ask_texts(["<img src=x onerror=alert(1)> rain 400 mm"])[0]
    assert 0 <= answer.probability <= 1


def test_explanation_of_a_place(engine):
    explained = engine.explain(-86.2, 37.1)
    assert {part.kind for part in explained.contributions} >= {"number", "sentence"}


def test_no_model_is_told_and_asked_only_once(example, tmp_path):
    engine = Engine(example, tmp_path)
    for _ in range(2):
        with pytest.raises(AgriClipError, match="no model behind this page"):
            engine.ask_texts(["Rain 400 mm."])
    assert not engine.ready
    engine.warm()  # does not raise


def test_broken_weights_keep_the_servers_folders_to_themselves(example, study_output, tmp_path):
    import shutil

    shutil.copytree(study_output / "model", tmp_path / "secret")
    (tmp_path / "secret" / "members" / "fold_1" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(AgriClipError) as caught:
        Engine(example, tmp_path / "secret").ask_texts(["Rain 400 mm."])
    assert "secret" not in str(caught.value) and "could not be loaded" in str(caught.value)


def test_segmentation_is_known_from_the_weights(engine, example, study_output):
    member = study_output / "model" / "members" / "fold_1"
    assert engine.can_segment() and engine.segment_dir == engine.model_dir
    assert not Engine(example, member, member).can_segment()
    assert Engine(example, member, engine.model_dir).can_segment()


def test_numbers_and_edits():
    text = "Rain 46 in a year; warmest quarter 77 F, 2.5 degC warmer than before. pH 6.5."
    rows = number_rows(text)
    assert [row[1:3] for row in rows] == [["46", "in"], ["77", "degF"], ["2.5", "degC"], ["6.5", "pH"]]
    assert rows[0][3] == "1168 mm" and rows[1][3] == "25 degC"
    rows[0][1] = "40"
    assert edit_report(text, rows).startswith("Rain 40 in a year; warmest quarter 77 F")
    rows[1][1:3] = ["24", "degC"]
    edited = edit_report(text, rows)
    assert "warmest quarter 24 degC," in edited
    assert number_rows(edited)[1][3] == "24 degC"
    assert edit_report(text, number_rows(text)) == text


@pytest.mark.parametrize(
    ("column", "given", "words"),
    [(1, "many", "is no number"), (1, "nan", "no number"), (2, "furlong", "Unknown unit"), (1, "1e40", "no number")],
)
def test_edits_that_cannot_be(column, given, words):
    rows = number_rows("Rain 46 in a year.")
    rows[0][column] = given
    with pytest.raises(AgriClipError, match=words):
        edit_report("Rain 46 in a year.", rows)


def test_edits_of_another_text_are_refused():
    with pytest.raises(AgriClipError, match="no longer fits"):
        edit_report("Rain 46 in a year.", [])


def test_sentences_keep_their_numbers():
    assert sentences_of("Rain 12.5 mm; dry. Heat 3.2 degC.\nEnd") == ["Rain 12.5 mm;", "dry.", "Heat 3.2 degC.", "End"]
    assert math.isfinite(float(number_rows("a 5 mm")[0][1]))
