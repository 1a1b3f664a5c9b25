"""A fit holds out what it says, leaves a loadable folder or nothing, and maps in bands what it maps at once."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from mapping.predict import SuitabilityPredictor, map_study
from modeling_agriclip import AgriClipForSuitability
from processing.errors import AgriClipError
from processing.study import load_study
from processing.study_data import StudyData
from training.fit import build_processor, fit_study
from training.study_dataset import SiteNoise, SuitabilityDataset, read_sites


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def study_of(landscape, **training):
    study = load_study(landscape)
    return study.model_copy(
        update={"training": study.training.model_copy(update={"members": 2, "preset": "light", **training})}
    )


def test_held_out_predictions_are_of_the_folds_left_out(landscape, fitted):
    _, result = fitted
    data = StudyData(load_study(landscape))
    rows, folds = rows_of(result["predictions"]), data.folds()
    assert len(rows) == (folds < 2).sum() == result["scores"]["held_out_sites"]
    assert {int(row["fold"]) for row in rows} == {0, 1}
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)


def test_folder_loads_and_predicts_like_the_member_that_was_held_out(landscape, fitted):
    folder, result = fitted
    model_dir = Path(result["model_dir"])
    assert model_dir == folder / "model"
    assert not list(folder.glob(".*")), "scratch files are left"
    data = StudyData(load_study(landscape))
    table = data.labels()
    processor = AutoProcessor.from_pretrained(model_dir)
    sites = read_sites(data, processor, table.x, table.y)
    model = AgriClipForSuitability.from_pretrained(model_dir / "members" / "fold_1").eval()
    index = np.flatnonzero(data.folds() == 0)
    rows = [SuitabilityDataset(sites, table.share, table.weight, index)[item] for item in range(len(index))]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if not key.startswith("label")}
    with torch.no_grad():
        probability = model(**batch).probabilities
    expected = [float(row["probability"]) for row in rows_of(result["predictions"]) if row["fold"] == "0"]
    np.testing.assert_allclose(probability.numpy(), expected, atol=1e-5)


def test_summary_says_what_was_fitted(landscape, fitted):
    summary = json.loads((Path(fitted[1]["model_dir"]) / "training_summary.json").read_text())
    assert summary["members"] == 2
    assert summary["predictors"][0] == "annual_temperature"


def test_image_and_number_noise_only_in_training(landscape):
    data = StudyData(load_study(landscape))
    table = data.labels()
    sites = read_sites(data, build_processor(), table.x, table.y)
    index = np.arange(20)
    plain = SuitabilityDataset(sites, table.share, table.weight, index)
    assert torch.equal(plain[3]["numeric_values"], sites.numeric_values[3])
    assert torch.equal(plain[3]["pixel_values"], sites.pixel_values[3])
    noise = torch.zeros(sites.numeric_values.shape[1])
    slot = int(sites.numeric_values[0].nonzero()[0])
    noise[slot] = 5.0
    noise = SiteNoise(image_dropout=1.0, number_noise=noise)
    noisy = SuitabilityDataset(sites, table.share, table.weight, index, noise)
    moved = noisy[3]["numeric_values"] != sites.numeric_values[3]
    assert moved.nonzero().flatten().tolist() == [slot]
    assert not noisy[3]["pixel_mask"].any()


def test_map_matches_the_models_and_the_grid(landscape, fitted, tmp_path):
    study = load_study(landscape)
    data = StudyData(study)
    maps = map_study(study, fitted[1]["model_dir"], tmp_path, scenarios=["warm"], quiet=True)
    assert set(maps) == {"present", "warm"}
    with rasterio.open(maps["present"]["probability"]) as source:
        probability = source.read(1)
        assert source.crs == rasterio.crs.CRS.from_user_input(data.grid.crs)
        assert source.transform == data.grid.transform
        assert source.tags()["scenario"] == "present"
        assert source.tags()["members"] == "2"
    layers = {name: rasterio.open(path).read(1) for name, path in maps["present"].items()}
    effect = layers["probability"] - layers["probability_without_image"]
    np.testing.assert_allclose(layers["image_effect"], effect, atol=1e-6)
    assert (layers["std"][np.isfinite(layers["std"])] >= 0).all()

    # One cell by hand: both members, its own report and chip.
    row, column = map(int, np.argwhere(np.isfinite(probability))[37])
    x, y = (axis[row, column] for axis in data.grid.cell_centres(slice(0, data.grid.height)))
    predictor = SuitabilityPredictor(fitted[1]["model_dir"])
    sites = read_sites(data, predictor.processor, np.array([x]), np.array([y]))
    one = SuitabilityDataset(sites, np.zeros(1), np.ones(1), np.zeros(1, dtype=int))[0]
    batch = {key: value[None] for key, value in one.items() if not key.startswith("label")}
    with torch.no_grad():
        answers = [float(member.model(**batch).probabilities) for member in predictor.members]
    assert probability[row, column] == pytest.approx(np.mean(answers), abs=1e-5)
    assert layers["std"][row, column] == pytest.approx(np.std(answers, ddof=1), abs=1e-5)


def test_bands_do_not_matter(landscape, fitted, tmp_path):
    study = load_study(landscape)
    read = []
    for rows in (5, 24):
        banded = study.model_copy(update={"map": study.map.model_copy(update={"block_rows": rows})})
        maps = map_study(banded, fitted[1]["model_dir"], tmp_path / str(rows), scenarios=[], quiet=True)
        read.append(rasterio.open(maps["present"]["probability"]).read(1))
    np.testing.assert_allclose(read[0], read[1], atol=1e-6)


def test_bad_folders_and_labels_are_refused(landscape, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.docx").write_text("years of work")
    with pytest.raises(AgriClipError, match="holds something other than a model"):
        fit_study(landscape, tmp_path, quiet=True)
    assert (tmp_path / "model" / "thesis.docx").exists()
    with pytest.raises(AgriClipError, match="There is no model in"):
        map_study(landscape, tmp_path / "nowhere", tmp_path, quiet=True)


def test_processes_do_not_change_the_answer(landscape, fitted, tmp_path):
    # One thread on both sides: products are summed in the same order, and the answer is the same to the last digit.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        beside = fit_study(study_of(landscape), tmp_path, epochs=1, processes=2, quiet=True)
        alone = fit_study(study_of(landscape), tmp_path / "alone", epochs=1, quiet=True)
    finally:
        torch.set_num_threads(threads)
    first, second = rows_of(beside["predictions"]), rows_of(alone["predictions"])
    assert [row["id"] for row in first] == [row["id"] for row in second]
    np.testing.assert_allclose(
        [float(row["probability"]) for row in first], [float(row["probability"]) for row in second], atol=1e-5
    )


def test_a_process_that_fails_tells_and_leaves_nothing(landscape, tmp_path):
    study = study_of(landscape, learning_rate=1e30)
    with pytest.raises(AgriClipError, match=r"became nan in the terms? .*prediction.* in step \d+ .*learning_rate"):
        fit_study(study, tmp_path / "fit", epochs=2, processes=2, quiet=True)
    # Nothing but what it failed at: the batch and the weights.
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["failed"]
    failed = next((tmp_path / "fit" / "failed").glob("*/failed_step_*"))
    assert "numeric_values" in load_file(failed / "batch.safetensors")
    assert (failed / "model.safetensors").exists()


def test_trackers_that_are_not_there_are_refused_first(landscape, tmp_path, monkeypatch):
    with pytest.raises(AgriClipError, match="no tracker 'tensorbord'; did you mean 'tensorboard'"):
        fit_study(landscape, tmp_path, report_to=("tensorbord",), quiet=True)
    monkeypatch.setattr("training.fit.find_spec", lambda module: None)
    with pytest.raises(AgriClipError, match="pip install trackio"):
        fit_study(landscape, tmp_path, report_to=("trackio",), quiet=True)
    assert not any(tmp_path.iterdir())
