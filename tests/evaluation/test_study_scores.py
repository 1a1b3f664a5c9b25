"""Scores of a study's predictions: the right rows, the right units, the right baselines."""

import numpy as np
import pytest

from evaluation import study_scores
from evaluation.metrics import brier
from processing.errors import AgriClipError
from processing.study_data import StudyData
from tests.mapping.toy_study import write_predictions


@pytest.fixture(scope="module")
def predictions(toy, tmp_path_factory):
    return write_predictions(toy, tmp_path_factory.mktemp("predictions") / "predictions.csv")


def with_objective(study, objective):
    changed = study.model_copy(update={"training": study.training.model_copy(update={"objective": objective})})
    changed._folder = study._folder
    return changed


def test_counts_are_scored_as_units(toy, predictions):
    rows = study_scores.compare_on_study(toy.study, predictions, baselines=False)
    ours = study_scores.read_predictions(predictions)
    units = np.concatenate([np.r_[np.ones(h), np.zeros(20 - h)] for h in toy.hits])
    assert len(rows) == 1
    assert rows[0]["brier"] == pytest.approx(brier(units, np.repeat(ours["probability"], 20)))


def test_shares_are_scored_as_presence(toy, predictions):
    rows = study_scores.compare_on_study(with_objective(toy.study, "share"), predictions, baselines=False)
    ours = study_scores.read_predictions(predictions)
    assert rows[0]["brier"] == pytest.approx(brier(ours["presence"], ours["probability"]))


def test_order_of_the_file_does_not_matter(toy, predictions, tmp_path):
    lines = predictions.read_text().splitlines()
    shuffled = tmp_path / "shuffled.csv"
    shuffled.write_text("\n".join([lines[0], *np.random.default_rng(0).permutation(lines[1:])]) + "\n")
    before = study_scores.compare_on_study(toy.study, predictions, baselines=False)[0]
    after = study_scores.compare_on_study(toy.study, shuffled, baselines=False)[0]
    assert {k: v for k, v in before.items() if k != "model"} == pytest.approx(
        {k: v for k, v in after.items() if k != "model"}
    )


def test_baseline_stands_beside_and_is_sensible(toy, predictions, monkeypatch):
    from sklearn.ensemble import RandomForestRegressor

    entry = study_scores.run_baselines.__globals__["BASELINES"]["random forest (share)"]
    monkeypatch.setattr(entry, "regressor", lambda seed: RandomForestRegressor(30, random_state=seed))
    rows = study_scores.compare_on_study(toy.study, predictions)
    assert [row["model"] for row in rows] == ["AgriCLIP", "random forest (share)"]
    assert all(0.8 < row["auc"] <= 1 and row["brier"] < 0.15 for row in rows)


def test_one_held_out_fold_is_enough(toy, predictions, tmp_path, monkeypatch):
    """A single model leaves one fold out: the baseline is fitted on the other folds and scored on that one."""
    from sklearn.ensemble import RandomForestRegressor

    entry = study_scores.run_baselines.__globals__["BASELINES"]["random forest (share)"]
    monkeypatch.setattr(entry, "regressor", lambda seed: RandomForestRegressor(30, random_state=seed))
    lines = predictions.read_text().splitlines()
    one = tmp_path / "one.csv"
    one.write_text("\n".join([lines[0], *(line for line in lines[1:] if line.split(",")[3] == "2")]) + "\n")
    rows = study_scores.compare_on_study(toy.study, one)
    assert len(rows) == 2 and all(0.6 < row["auc"] <= 1 for row in rows)
    shifted = tmp_path / "shifted.csv"
    shifted.write_text(one.read_text().replace(",2,", ",1,"))
    with pytest.raises(AgriClipError, match="folds"):
        study_scores.compare_on_study(toy.study, shifted)


def test_feature_table_of_predictors(toy):
    data = StudyData(toy.study)
    labels = data.labels()
    features, names = study_scores.feature_table(data, labels.x, labels.y)
    assert names == ["warmth", "rain"] and features.shape == (300, 2) and np.isfinite(features).all()


def test_feature_table_of_imagery_by_hand():
    class Data:
        class study:
            variables = ()
            imagery = (1,)

        class Channel:
            name = "ndvi"

        channels = [Channel]

        def predictors(self, x, y):
            return np.zeros((1, 0))

        def chips(self, x, y):
            pixels = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
            valid = np.ones_like(pixels, bool)
            valid[..., 0, 0] = False
            return pixels, valid

    features, names = study_scores.feature_table(Data(), np.zeros(1), np.zeros(1))
    # Pixel [2, 2] is 10; around it 5 6 7 9 10 11 13 14 15; all but pixel 0 are 1..15.
    assert features[0] == pytest.approx([10.0, 10.0, 8.0, np.std(np.arange(1, 16))])
    assert len(names) == 4


def test_reliability_picture(toy, predictions, tmp_path):
    (picture,) = study_scores.skill_pictures(toy.study, predictions, tmp_path)
    assert picture.png.stat().st_size > 5000
    assert study_scores.skill_pictures(toy.study, None, tmp_path) == []
    assert study_scores.skill_pictures(toy.study, tmp_path / "none.csv", tmp_path) == []


def test_predictions_of_other_labels_are_refused(toy, predictions, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(predictions.read_text().replace("s17,", "zz,", 1))
    with pytest.raises(AgriClipError, match="zz"):
        study_scores.compare_on_study(toy.study, other, baselines=False)
    broken = tmp_path / "broken.csv"
    broken.write_text("id,x\n1,2\n")
    with pytest.raises(AgriClipError, match="lack y, fold"):
        study_scores.read_predictions(broken)
