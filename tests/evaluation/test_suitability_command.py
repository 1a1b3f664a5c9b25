"""The whole evaluation on a small landscape: only unseen places, the members' own answers, everything written."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer import Typer
from typer.testing import CliRunner

from evaluation.results import OURS, read_results
from evaluation.suitability import evaluate
from evaluation.suitability.ablations import DIGITS, INTACT, NO_IMAGE, NO_REPORT, SHUFFLED, ask_without, digit_reports
from evaluation.suitability.baseline_models import baseline_predictions
from evaluation.suitability.command import suitability
from evaluation.suitability.evaluate import evaluate_suitability
from evaluation.suitability.places import (
    HELD_OUT,
    held_out_sittings,
    places_of,
    predict_places,
    read_place_inputs,
    sit,
)
from mapping.predictor import SuitabilityPredictor
from modeling_agriclip import AgriClipForSuitability
from processing.errors import AgriClipError
from processing.study import load_study
from processing.study_data import StudyData
from processing.virtual_landscape import make_virtual_landscape
from training.fit import build_config, build_processor
from training.study_dataset import read_sites

SMALL = {
    "vision_config": {"stage_depths": (1, 1), "stage_sizes": (12, 24), "stage_heads": (2, 4), "hidden_size": 24},
    "text_config": {"encoder_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}},
    "projection_dim": 16,
    "decoder_size": 16,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = make_virtual_landscape(tmp_path_factory.mktemp("landscape"), seed=2, height=20, width=20, sites=90)
    loaded = load_study(path)
    training = loaded.training.model_copy(update={"objective": "share", "calibration": "platt"})
    labels = loaded.labels.model_copy(update={"presence_above": 0.4})
    model = loaded.model.model_copy(update={"overrides": SMALL})
    return loaded.model_copy(update={"training": training, "labels": labels, "model": model})


def forward(model, sites, rows):
    batch = {"pixel_values": sites.pixel_values[rows], "pixel_mask": sites.pixel_mask[rows]}
    batch |= {"channels": sites.channels, "gsd": torch.tensor([sites.gsd])}
    batch |= {"input_ids": sites.input_ids.expand(len(rows), -1), "numeric_values": sites.numeric_values[rows]}
    batch["attention_mask"] = sites.attention_mask.expand(len(rows), -1)
    with torch.no_grad():
        return model.eval()(**batch)


@pytest.fixture(scope="module")
def model_dir(study, tmp_path_factory):
    """An ensemble that was never fitted, and the held-out predictions that a fit would have left."""
    folder = tmp_path_factory.mktemp("model")
    data, processor = StudyData(study), build_processor()
    table, folds = data.labels(), data.folds()
    sites = read_sites(data, processor, table.x, table.y)
    probability, share = np.empty(len(table)), np.empty(len(table))
    config = build_config(study, processor)
    for fold in range(int(folds.max()) + 1):
        torch.manual_seed(fold)
        member = AgriClipForSuitability(config)
        with torch.no_grad():
            # Fresh heads start at nothing, so that every place would get the same answer.
            for weight in member.parameters():
                if not weight.any():
                    torch.nn.init.normal_(weight, std=0.3)
        member.save_pretrained(folder / "members" / f"fold_{fold + 1}")
        answer = forward(member, sites, np.flatnonzero(folds == fold))
        probability[folds == fold], share[folds == fold] = answer.probabilities, answer.share
    member.save_pretrained(folder)
    processor.save_pretrained(folder)
    with (folder / HELD_OUT).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "x", "y", "fold", "observed", "weight", "presence", "probability", "share"])
        for i in range(len(table)):
            place = [table.ids[i], f"{table.x[i]:.6f}", f"{table.y[i]:.6f}", folds[i], table.share[i], 1]
            writer.writerow([*place, int(table.presence[i]), f"{probability[i]:.8f}", f"{share[i]:.8f}"])
    return folder


@pytest.fixture(scope="module")
def other(study, tmp_path_factory):
    """Ten fitted places (five of them renamed) and forty new ones."""
    rows = list(csv.DictReader(study.path("labels.csv").open()))
    rng = np.random.default_rng(1)
    taken = {(row["x"], row["y"]) for row in rows}
    table = [dict(row) for row in rows[:10]]
    for row in table[5:]:
        row["id"] = f"again_{row['id']}"
    west, south, east, north = StudyData(study).grid.bounds
    while len(table) < 50:
        row = {
            **rows[0],
            "id": f"new_{len(table)}",
            "x": str(rng.uniform(west, east)),
            "y": str(rng.uniform(south, north)),
        }
        if (row["x"], row["y"]) not in taken:
            table.append(row | {"positive": str(rng.integers(0, int(row["total"]) + 1))})
    path = tmp_path_factory.mktemp("other") / "other.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(table)
    return path


def test_members_answer_for_the_places_they_left_out(study, model_dir):
    data, predictor = StudyData(study), SuitabilityPredictor(model_dir)
    places, folds = places_of(data), data.folds()
    inputs = read_place_inputs(data, predictor, places.x, places.y)
    found, impossible = ask_without(inputs, held_out_sittings(predictor, folds), data.template)
    left = [float(row["probability"]) for row in csv.DictReader((model_dir / HELD_OUT).open())]
    np.testing.assert_allclose(found[INTACT], left, atol=1e-5)
    assert not impossible and set(found) == {INTACT, NO_IMAGE, NO_REPORT, SHUFFLED, DIGITS}
    for name in (NO_IMAGE, NO_REPORT, SHUFFLED, DIGITS):
        assert not np.allclose(found[name], found[INTACT], atol=1e-4), name


def test_all_members_answer_for_other_places(study, model_dir):
    data, predictor = StudyData(study), SuitabilityPredictor(model_dir)
    places = places_of(data).only(np.arange(12))
    inputs = read_place_inputs(data, predictor, places.x, places.y)
    answer = predict_places(predictor, inputs)
    sites = read_sites(data, predictor.processor, places.x, places.y)
    each = [forward(member.model, sites, np.arange(12)) for member in predictor.members]
    np.testing.assert_allclose(answer.probability, np.mean([e.probabilities for e in each], axis=0), atol=1e-5)
    np.testing.assert_allclose(
        answer.without_image, np.mean([e.report_probabilities for e in each], axis=0), atol=1e-5
    )
    found, _ = ask_without(inputs, [sit(predictor, predictor.members, np.arange(12))], data.template)
    np.testing.assert_allclose(found[INTACT], answer.probability, atol=1e-6)
    np.testing.assert_allclose(found[NO_IMAGE], answer.without_image, atol=1e-6)


def test_digits_say_what_the_report_says(study, model_dir):
    data, predictor = StudyData(study), SuitabilityPredictor(model_dir)
    places = places_of(data).only(np.arange(3))
    inputs = read_place_inputs(data, predictor, places.x, places.y)
    texts = digit_reports(inputs, data.template, predictor.processor)
    assert "[NUM]" not in texts[0] and f"{inputs.table[0][0]:.1f} degC" in texts[0]
    inputs.values[1, 0] = np.nan
    assert "unknown" in digit_reports(inputs, data.template, predictor.processor)[1]


def test_held_out_places_are_scored_and_everything_is_written(study, model_dir, tmp_path):
    names = ["prevalence", "quadratic logistic", "image only"]
    result = evaluate_suitability(study, model_dir, tmp_path, baselines=names, draws=20, command="agriclip evaluate")
    scores, content = read_results(tmp_path)
    rows = list(csv.DictReader((model_dir / HELD_OUT).open()))
    presence, probability = (np.array([float(row[key]) for row in rows]) for key in ("presence", "probability"))
    (found,) = [
        s for s in scores if s.metric == "brier" and s.model == OURS and s.against is None and s.split == result.split
    ]
    assert found.value == pytest.approx(np.mean((presence - probability) ** 2), abs=1e-6)
    assert found.split == "held-out spatial blocks" and found.low < found.value < found.high
    assert {s.against for s in scores if s.split == result.split} == {None, "prevalence", "quadratic logistic"}
    assert "brought" in content["details"]["baselines_not_run"]["image only"]
    assert content["about"]["model_sha256"] == SuitabilityPredictor(model_dir).hash
    assert content["about"]["in_sample"] is False and content["about"]["command"] == "agriclip evaluate"
    assert not [note for note in result.notes if "differs" in note]
    for name in ("reliability.png", "roc_pr.png", "rejection.png", "leads.png", "ablations.png"):
        assert (tmp_path / "pictures" / name).stat().st_size > 5000
    assert "| AgriCLIP less prevalence |" in (tmp_path / "results.md").read_text()
    assert yaml.safe_load((tmp_path / "card.yaml").read_text())["model-index"]
    assert list((tmp_path / ".eval_results").glob("*.yaml"))


def test_fitted_places_are_left_out_of_another_table(study, model_dir, other, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "draw_pictures", lambda *given: None)
    quick = {"baselines": ["prevalence"], "ablations": False, "draws": 12, "labels": other}
    result = evaluate_suitability(study, model_dir, tmp_path / "new", **quick)
    assert result.details["places"] == 40 and result.details["leakage"]["fitted"] == 10
    assert result.notes == ["10 of 50 places were fitted and are not scored."]
    assert result.split == "other places" and "overlapping_chips" in result.details["leakage"]

    west = StudyData(study).grid.bounds[0]
    rule = {"in_sample": True, "holdout": f"x>{west}"}
    seen = evaluate_suitability(study, model_dir, tmp_path / "seen", **rule, **quick)
    assert seen.details["places"] == 50 and seen.details["in_sample"] is True
    assert seen.split == f"other places, x>{west}"
    assert any("In sample" in note for note in seen.notes)
    assert {score.note for score in seen.scores} == {"in sample"}
    assert not (tmp_path / "seen" / "card.yaml").exists()


def test_baselines_of_other_places_are_fitted_to_the_studys_own(study, model_dir, other):
    data, predictor = StudyData(study), SuitabilityPredictor(model_dir)
    labels = study.labels.model_copy(update={"table": str(other)})
    scored = StudyData(study.model_copy(update={"labels": labels}))
    places = places_of(scored).only(np.arange(10, 50))
    names = ["prevalence", "gradient boosting on embeddings (presence)"]
    found, failed = baseline_predictions(data, scored, places, None, predictor, names=names)
    assert not failed
    np.testing.assert_allclose(found["prevalence"].probability, data.labels().presence.mean(), atol=0.02)
    assert len(found[names[1]].probability) == 40
    with pytest.raises(AgriClipError, match="random forest"):
        baseline_predictions(data, scored, places, None, predictor, names=["random forst (presence)"])


def test_what_may_not_be_scored_is_refused_in_a_sentence(study, model_dir, tmp_path):
    own = study.path("labels.csv")
    with pytest.raises(AgriClipError, match="All 90 places of 'labels.csv' were fitted"):
        evaluate_suitability(study, model_dir, tmp_path, labels=own)
    with pytest.raises(AgriClipError, match="--leave-out"):
        evaluate_suitability(study, model_dir, tmp_path, holdout="unseen")
    left = (model_dir / HELD_OUT).rename(model_dir / "elsewhere.csv")
    try:
        with pytest.raises(AgriClipError, match="no out-of-fold predictions.*--in-sample"):
            evaluate_suitability(study, model_dir, tmp_path)
    finally:
        left.rename(model_dir / HELD_OUT)
    with pytest.raises(AgriClipError, match="does not exist"):
        evaluate_suitability(study, model_dir, tmp_path, labels=tmp_path / "no.csv")


def test_the_command_prints_json(study, model_dir, tmp_path, monkeypatch):
    path = study.save(tmp_path / "study.yaml")
    # Pictures are another test's matter.
    monkeypatch.setattr(evaluate, "draw_pictures", lambda *given: None)
    app = Typer()
    app.command()(suitability)
    options = ["--model", str(model_dir), "--no-baselines", "--no-ablations", "--draws", "10", "--json"]
    options += ["--data", str(Path(study.path("labels.csv")).parent), "-o", str(tmp_path / "out")]
    said = CliRunner().invoke(app, [str(path), *options])
    assert said.exit_code == 0, said.output
    content = json.loads(said.stdout)
    assert content["details"]["places"] == 90 and content["files"]["results"].endswith("results.json")
