"""What a fit of an ensemble leaves: honest means, calibration, and answers for a fold that nobody saw."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mapping.predict import SuitabilityPredictor
from modeling_agriclip import AgriClipEnsemble, Calibration
from processing.errors import AgriClipError
from processing.study import load_study
from processing.study_data import StudyData
from training.fit import build_processor, fit_study, make_jobs
from training.fit_results import FitResults, calibrate
from training.single_fit import FitJob
from training.study_dataset import SuitabilityDataset, read_sites


@pytest.fixture(scope="module")
def study(landscape):
    """The landscape with shares as labels, so that places have a class."""
    study = load_study(landscape)
    training = {"objective": "share", "members": 3, "epochs": 2, "calibration": "platt", "learning_rate": 3e-3}
    return study.model_copy(update={"training": study.training.model_copy(update=training)})


@pytest.fixture(scope="module")
def ensemble(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    return Path(fit_study(study, folder, leave_out=4, quiet=True)["model_dir"])


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_members_leave_out_folds_in_turn_and_nobody_sees_the_unseen():
    folds = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    unseen = folds == 2
    jobs = make_jobs(folds, 5, 10, Path("result"), Path("scratch"), unseen)
    assert [job.folder.name for job in jobs] == ["fold_1", "fold_2", "fold_4", "fold_1_2", "fold_2_2", "result"]
    assert len({job.seed for job in jobs}) == 6
    assert not any(job.inside[unseen].any() for job in jobs)
    for job, left_out in zip(jobs, (0, 1, 3, 0, 1), strict=False):
        assert (~job.inside == (folds == left_out) | unseen).all()
    assert (jobs[-1].inside == ~unseen).all()


def test_means_count_members_that_left_a_site_out_and_no_others():
    inside = [np.array([False, True, False, True]), np.array([False, False, True, True]), np.array([True] * 4)]
    jobs = [FitJob("", mask, 0, Path(), Path()) for mask in inside]
    found = [{"probability": np.array(p), "share": np.array(p)} for p in ([0.2, 0.9], [0.4, 0.6], [])]
    results = FitResults.gather(jobs, found, [True, True, False], np.zeros(4, dtype=bool))
    np.testing.assert_allclose(results.held_out(), [0.3, 0.6, 0.9, np.nan])
    unseen = FitResults.gather(jobs, found, [True, True, False], np.array([True, False, False, False]))
    assert np.isnan(unseen.held_out()[0])


def test_the_unseen_fold_is_answered_by_the_whole_ensemble(study, ensemble):
    data = StudyData(study)
    table, folds = data.labels(), data.folds()
    rows = rows_of(ensemble / "unseen_predictions.csv")
    index = np.flatnonzero(folds == 3)
    assert [row["id"] for row in rows] == [table.ids[i] for i in index]
    assert not {row["fold"] for row in rows_of(ensemble / "heldout_predictions.csv")} & {"3"}

    models = AgriClipEnsemble.from_pretrained(ensemble)
    assert len(models) == 3
    sites = read_sites(data, build_processor(), table.x, table.y)
    dataset = SuitabilityDataset(sites, table.share, table.weight, index)
    batch = {key: torch.stack([row[key] for row in dataset]) for key in dataset[0] if "label" not in key}
    answer = models.predict(**batch)
    for column, values in (
        ("probability", answer.probabilities),
        ("std", answer.std),
        ("mutual_information", answer.mutual_information),
    ):
        np.testing.assert_allclose([float(row[column]) for row in rows], values, atol=1e-4)
    sets = models.prediction_sets(answer, 0.1)
    names = {(True, True): "undecided", (True, False): "unsuitable", (False, True): "suitable"}
    assert [row["set_90%"] for row in rows] == [names[tuple(chosen)] for chosen in sets.tolist()]


def test_maps_are_made_of_calibrated_members(ensemble):
    predictor = SuitabilityPredictor(ensemble)
    assert all(member.calibration is not None for member in predictor.members)
    member = Calibration.load(ensemble / "members" / "fold_1")
    assert member.method == "platt" and (member.scale, member.shift) != (1.0, 0.0)
    assert predictor.members[0].calibration == member


def test_the_summary_tells_what_was_calibrated(ensemble):
    summary = json.loads((ensemble / "training_summary.json").read_text())
    assert summary["calibration"] == "platt"
    assert summary["terms"]["consistency"] == 0.1
    held_out = rows_of(ensemble / "heldout_predictions.csv")
    assert all(0 < float(row["calibrated"]) < 1 for row in held_out)
    assert any(row["calibrated"] != row["probability"] for row in held_out)
    history = json.loads((ensemble / "members" / "fold_1" / "history.json").read_text())
    terms = next(entry for entry in history if "loss" in entry)
    assert terms["weighted/consistency"] == pytest.approx(0.1 * terms["terms/consistency"])


def test_labels_of_one_class_are_not_calibrated(study, ensemble):
    table = StudyData(study).labels()
    inside = np.ones(len(table), dtype=bool)
    inside[:20] = False
    found = {"probability": np.linspace(0.1, 0.9, 20), "share": np.linspace(0.1, 0.9, 20)}
    job = FitJob("", inside, 0, Path(), Path())
    results = FitResults.gather([job], [found], [True], np.zeros(len(table), dtype=bool))
    for value, expected in ((True, None), (False, None)):
        table.presence[:20] = value
        assert calibrate(study, table, results, np.arange(len(table))) is expected
    table.presence[:10] = True
    assert calibrate(study, table, results, np.arange(len(table))) is not None


def test_a_fold_that_does_not_exist_is_refused(study, tmp_path):
    with pytest.raises(AgriClipError, match=r"Fold 9 cannot be left out: the study has \d folds"):
        fit_study(study, tmp_path, leave_out=9, quiet=True)
    assert not any(tmp_path.iterdir())
