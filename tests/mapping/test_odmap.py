"""The ODMAP protocol: every element there, facts as the files have them, the rest left to the author."""

import csv
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from mapping.odmap import ELEMENTS, TO_FILL, odmap_protocol
from processing.errors import AgriClipError

# Elements of each subsection, counted in the published checklist (Zurell et al. 2020, table 1 and its dictionary).
CHECKLIST = {
    ("Overview", "Authorship"): 4,
    ("Overview", "Model objective"): 2,
    ("Overview", "Focal Taxon"): 1,
    ("Overview", "Location"): 1,
    ("Overview", "Scale of Analysis"): 5,
    ("Overview", "Biodiversity data"): 2,
    ("Overview", "Predictors"): 1,
    ("Overview", "Hypotheses"): 1,
    ("Overview", "Assumptions"): 1,
    ("Overview", "Algorithms"): 3,
    ("Overview", "Workflow"): 1,
    ("Overview", "Software"): 3,
    ("Data", "Biodiversity data"): 12,
    ("Data", "Data partitioning"): 3,
    ("Data", "Predictor variables"): 10,
    ("Data", "Transfer data"): 8,
    ("Model", "Variable pre-selection"): 1,
    ("Model", "Multicollinearity"): 1,
    ("Model", "Model settings"): 2,
    ("Model", "Model estimates"): 3,
    ("Model", "Model selection - model averaging - ensembles"): 3,
    ("Model", "Analysis and Correction of non-independence"): 3,
    ("Model", "Threshold selection"): 1,
    ("Assessment", "Performance statistics"): 3,
    ("Assessment", "Plausibility check"): 2,
    ("Prediction", "Prediction output"): 2,
    ("Prediction", "Uncertainty quantification"): 5,
}


@pytest.fixture(scope="module")
def protocol(toy):
    return odmap_protocol(toy.study)


def said(protocol, *place):
    section, subsection, element = place
    return protocol.as_dict()[section][subsection][element]


def test_every_element_of_the_checklist_is_there_once(protocol):
    assert Counter(place[:2] for place in ELEMENTS) == CHECKLIST
    assert len(set(ELEMENTS)) == len(ELEMENTS) == 84
    assert [(entry.section, entry.subsection, entry.element) for entry in protocol.entries] == list(ELEMENTS)
    assert all(entry.value for entry in protocol.entries)


def test_facts_come_from_the_study(protocol, toy):
    assert said(protocol, "Overview", "Authorship", "Study title") == "A toy study"
    assert said(protocol, "Overview", "Model objective", "Model objective") == "Forecast and transfer"
    assert said(protocol, "Overview", "Scale of Analysis", "Spatial extent").startswith("-95, -85, 33, 42 (")
    assert said(protocol, "Overview", "Scale of Analysis", "Spatial resolution") == "0.25 x 0.25 degrees"
    present = int((toy.hits / 20 > 0.3).sum())
    expected = f"300 labelled sites, {present} of them present (prevalence {present / 300:.3f})"
    assert said(protocol, "Data", "Biodiversity data", "Sample size") == expected
    assert "4 folds of square spatial blocks of 2" in said(protocol, "Data", "Data partitioning", "Training data")
    assert said(protocol, "Data", "Transfer data", "Models and scenarios") == "Warm; Warm and dry"
    assert said(protocol, "Data", "Transfer data", "Temporal extent") == "2080"
    assert "replaced" in said(protocol, "Data", "Transfer data", "Data processing")
    # Warmth falls to the north and rain grows to the east, so the two have little in common.
    assert "0 of 1 pairs" in said(protocol, "Model", "Multicollinearity", "Multicollinearity")
    assert "Suitable above 0.5" in said(protocol, "Model", "Threshold selection", "Threshold selection")


def test_what_nobody_knows_is_left_to_the_author(protocol):
    for place in (("Overview", "Authorship", "Author names"), ("Data", "Biodiversity data", "Sampling design")):
        assert said(protocol, *place) == f"{TO_FILL}."
    assert said(protocol, "Overview", "Hypotheses", "Hypotheses") == (
        f"{TO_FILL}. Description of the study: Rain and warmth decide."
    )
    assert {entry.element for entry in protocol.open} >= {"Author names", "Contact", "Response shapes"}
    # Nothing was fitted, scored or mapped: nothing may be said of it.
    assert said(protocol, "Overview", "Workflow", "Model workflow").startswith(TO_FILL)
    assert said(protocol, "Assessment", "Performance statistics", "Performance on validation data").startswith(TO_FILL)
    assert said(protocol, "Prediction", "Uncertainty quantification", "Novel environments").startswith(TO_FILL)


def test_fit_scores_and_maps_fill_more(toy, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    summary = {"study_fingerprint": toy.study.fingerprint(), "members": 3, "calibration": "isotonic", "epochs": 7}
    (model / "training_summary.json").write_text(json.dumps(summary))
    (tmp_path / "fit.json").write_text(json.dumps({"comparison": [{"model": "AgriCLIP", "auc": 0.9123}]}))
    importance = [SimpleNamespace(title="annual rain", increase=0.25, sd=0.01)]
    known = {("Overview", "Authorship", "Author names"): "A. Grower"}
    maps = {"present": {"probability": "p.tif", "std": "s.tif", "mess": "m.tif"}}
    found = odmap_protocol(toy.study, model, importances=importance, maps=maps, known=known)
    assert said(found, "Overview", "Authorship", "Author names") == "A. Grower"
    assert said(found, "Overview", "Algorithms", "Model averaging") == "Unweighted mean over 3 networks"
    assert "calibrated" in said(found, "Overview", "Workflow", "Model workflow")
    assert "changed since" not in said(found, "Overview", "Workflow", "Model workflow")
    assert "epochs 7" in said(found, "Model", "Model settings", "Model settings (fitting)")
    assert "annual rain 0.25 (sd 0.01)" in said(found, "Model", "Model estimates", "Variable importance")
    scores = said(found, "Assessment", "Performance statistics", "Performance on validation data")
    assert scores == "AgriCLIP: auc 0.912"
    assert "mapped as `std`" in said(found, "Prediction", "Uncertainty quantification", "Algorithmic uncertainty")
    novelty = said(found, "Prediction", "Uncertainty quantification", "Novel environments")
    assert "MESS" in novelty and "dissimilarity" not in novelty  # only what was mapped
    assert len(found.open) < len(odmap_protocol(toy.study).open)


def test_another_study_file_than_that_of_the_fit_is_told(toy, tmp_path):
    (tmp_path / "training_summary.json").write_text(json.dumps({"study_fingerprint": "of old", "members": 1}))
    workflow = said(odmap_protocol(toy.study, tmp_path), "Overview", "Workflow", "Model workflow")
    assert "changed since the model was fitted" in workflow


def test_csv_is_that_of_the_application(protocol, tmp_path):
    path = protocol.write_csv(tmp_path / "deep" / "odmap.csv")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["section", "subsection", "element", "Value"]
    assert [tuple(row) for row in rows[1:]] == [
        (e.section, e.subsection, e.element, e.value) for e in protocol.entries
    ]
    assert [file.name for file in path.parent.iterdir()] == ["odmap.csv"]


def test_markdown_has_every_element_and_marks_the_open_ones(protocol, tmp_path):
    text = protocol.write_markdown(tmp_path / "odmap.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("- **")]
    assert [line.split("**")[1] for line in lines] == [element for *_, element in ELEMENTS]
    assert sum(f"*{TO_FILL}" in line for line in lines) == len(protocol.open) > 0
    assert f"{len(protocol.open)} of 84 elements are left to the author" in text


def test_bad_input(toy, tmp_path):
    with pytest.raises(AgriClipError, match="agriclip fit"):
        odmap_protocol(toy.study, tmp_path)
    with pytest.raises(AgriClipError, match="Overview / Authorship / Shoe size"):
        odmap_protocol(toy.study, known={("Overview", "Authorship", "Shoe size"): "44"})
