"""The metrics as the `evaluate` library loads them from their folders, without a network."""

import ast
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference

evaluate = pytest.importorskip("evaluate", reason="needs the extra `eval`")

from evaluation import metrics  # noqa: E402
from evaluation.area_metrics import score_areas  # noqa: E402
from evaluation.hub_metrics import METRICS, metric_path  # noqa: E402
from evaluation.presence_metrics import boyce_index  # noqa: E402
from processing.errors import AgriClipError  # noqa: E402


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``evaluate.load`` that writes nothing outside the test's folder and asks no server."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def forget():
        for name in [n for n in sys.modules if n.split(".")[0] == "evaluate_modules"]:
            del sys.modules[name]

    forget()
    yield lambda path: evaluate.load(str(path), cache_dir=str(tmp_path / "cache"))
    forget()


@pytest.mark.parametrize("name", METRICS)
def test_each_loads_from_a_copy_of_its_folder_and_describes_itself(load, name, tmp_path):
    folder = tmp_path / "elsewhere" / name
    shutil.copytree(metric_path(name), folder, ignore=shutil.ignore_patterns("__pycache__"))
    metric = load(folder)
    assert metric.description.strip() and "@article" in metric.citation and "Returns" in metric.inputs_description
    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    assert set(features) == {"predictions", "references"}


@pytest.mark.parametrize("name", ["pixel_segmentation", "area_bias"])
def test_what_need_not_import_us_does_not(name):
    tree = ast.parse((Path(metric_path(name)) / f"{name}.py").read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {"math", "datasets", "evaluate", "numpy"}


def test_without_agriclip_the_message_says_what_to_install(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluation.presence_metrics", None)
    with pytest.raises(ImportError, match="install the package `agriclip`"):
        load(metric_path("suitability"))


def test_suitability(load):
    rng = np.random.default_rng(0)
    p, w = rng.random(300), rng.random(300)
    y = (rng.random(300) < p).astype(int)
    metric = load(metric_path("suitability"))
    found = metric.compute(predictions=p, references=y, sample_weight=w, threshold=0.4)
    assert found["ap"] == pytest.approx(reference.average_precision_score(y, p, sample_weight=w))
    assert found["auc"] == pytest.approx(reference.roc_auc_score(y, p, sample_weight=w))
    assert found["brier"] == pytest.approx(reference.brier_score_loss(y, p, sample_weight=w))
    assert found["log_loss"] == pytest.approx(reference.log_loss(y, p, sample_weight=w))
    assert found["kappa"] == pytest.approx(reference.cohen_kappa_score(y, p >= 0.4, sample_weight=w))
    assert found["f1"] == pytest.approx(reference.f1_score(y, p >= 0.4, sample_weight=w))
    assert found["ece"] == metrics.expected_calibration_error(y, p, w)
    assert found["boyce"] == boyce_index(y, p, w)
    assert found["brier_uncertainty"] == pytest.approx(np.average(y, weights=w) * (1 - np.average(y, weights=w)))
    ranked = metric.compute(predictions=np.full(300, 0.5), references=y, ranking=p)
    assert ranked["auc"] == pytest.approx(reference.roc_auc_score(y, p)) and ranked["brier"] == pytest.approx(0.25)
    # Batches are what a loop over a data loader gives.
    for start in range(0, 300, 100):
        metric.add_batch(predictions=p[start : start + 100], references=y[start : start + 100])
    assert metric.compute()["ap"] == pytest.approx(reference.average_precision_score(y, p))


def test_suitability_with_one_class_is_nan(load):
    found = load(metric_path("suitability")).compute(predictions=[0.2, 0.7, 0.9], references=[1, 1, 1])
    assert all(math.isnan(found[name]) for name in ("auc", "calibration_slope", "tss", "boyce"))
    assert found["ap"] == 1.0 and found["brier"] == pytest.approx((0.64 + 0.09 + 0.01) / 3)


def test_pixel_segmentation(load):
    rng = np.random.default_rng(1)
    truth, told = rng.integers(0, 4, (3, 8, 9)), rng.integers(0, 4, (3, 8, 9))
    truth[rng.random(truth.shape) < 0.1] = 255
    metric = load(metric_path("pixel_segmentation"))
    names = ["soybean", "maize", "wheat", "other"]
    found = metric.compute(predictions=told, references=truth, num_classes=4, class_names=names)
    known = truth != 255
    expected = reference.jaccard_score(truth[known], told[known], average=None)
    assert list(found["per_class_iou"]) == names
    assert list(found["per_class_iou"].values()) == pytest.approx(expected)
    assert found["mean_iou"] == pytest.approx(expected.mean()) and found["pixels"] == known.sum()
    assert found["accuracy"] == pytest.approx((truth == told)[known].mean())
    flat = metric.compute(
        predictions=[told[0].ravel(), told[1, :2].ravel()], references=[truth[0].ravel(), truth[1, :2].ravel()],
        num_classes=4,
    )  # fmt: skip
    assert flat["pixels"] == (truth[0] != 255).sum() + (truth[1, :2] != 255).sum()


def test_images_of_different_size_and_classes_that_do_not_occur(load):
    metric = load(metric_path("pixel_segmentation"))
    found = metric.compute(
        predictions=[[[0, 1]], [[1, 1, 1], [0, 0, 0]]], references=[[[0, 1]], [[1, 1, 0], [0, 0, 9]]], num_classes=3,
        ignore_index=9,
    )  # fmt: skip
    assert found["pixels"] == 7 and found["accuracy"] == pytest.approx(6 / 7)
    assert found["per_class_iou"]["0"] == 3 / 4 and found["per_class_iou"]["1"] == 3 / 4
    assert math.isnan(found["per_class_iou"]["2"]) and found["mean_iou"] == 0.75
    nothing = metric.compute(predictions=[[[0, 1]]], references=[[[255, 255]]], num_classes=2)
    assert math.isnan(nothing["accuracy"]) and math.isnan(nothing["mean_iou"])
    with pytest.raises(ValueError, match="class outside 0 to 1"):
        metric.compute(predictions=[[[0, 7]]], references=[[[0, 1]]], num_classes=2)
    with pytest.raises(ValueError, match="3 class names for 2"):
        metric.compute(predictions=[[[0]]], references=[[[0]]], num_classes=2, class_names=["a", "b", "c"])


def test_area_bias_is_that_of_our_tables(load):
    rng = np.random.default_rng(2)
    told, there, land = rng.random(60), rng.random(60), rng.random(60) * 9
    unit = rng.choice(["Iowa", "Ohio", "Missouri"], 60)
    metric = load(metric_path("area_bias"))
    found = metric.compute(predictions=told, references=there, land=land, unit=unit)
    ours = score_areas(there, told, land, unit)
    assert found["area_bias"] == pytest.approx(ours.bias)
    assert found["relative_area_bias"] == pytest.approx(ours.relative_bias)
    assert found["area_rmse"] == pytest.approx(ours.rmse) and found["area_r2"] == pytest.approx(ours.r2)
    assert found["predicted_area"] == pytest.approx((told * land).sum())
    empty = metric.compute(predictions=[0.5, 0.5], references=[0.0, 0.0])
    assert math.isnan(empty["relative_area_bias"]) and math.isnan(empty["area_r2"]) and empty["area_bias"] == 1.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        metric.compute(predictions=[1.5], references=[0.5])
    with pytest.raises(ValueError, match="1 areas of land"):
        metric.compute(predictions=[0.5, 0.1], references=[0.5, 0.1], land=[1.0])


def test_names_of_metrics():
    with pytest.raises(AgriClipError, match="did you mean 'area_bias'"):
        metric_path("areabias")
