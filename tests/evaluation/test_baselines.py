"""Baselines: out of fold for certain, calibrated without the test fold, and better than chance on a known rule."""

import io

import numpy as np
import pytest

from evaluation import baselines
from evaluation.metrics import auc, expected_calibration_error
from processing.errors import AgriClipError


@pytest.fixture(scope="module")
def places():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 4))
    share = 0.3 / (1 + np.exp(-(2 * features[:, 0] - features[:, 1]))) * rng.uniform(0.7, 1.3, 400)
    return features, share, share > 0.1, np.arange(400) % 4


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Fewer trees, a fixed kernel: the tests are about folds and calibration, not about the last percent."""
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    def forest(seed):
        return RandomForestRegressor(40, min_samples_leaf=3, random_state=seed)

    def extra(seed):
        return ExtraTreesRegressor(40, min_samples_leaf=3, random_state=seed)

    def process(seed):
        return GaussianProcessRegressor(RBF(2.0) + WhiteKernel(0.1), optimizer=None, normalize_y=True)

    for name, entry in baselines.BASELINES.items():
        if "process" in name:
            monkeypatch.setattr(entry, "regressor", process)
        elif "forest" in name:
            monkeypatch.setattr(entry, "regressor", forest)
        elif "trees" in name:
            monkeypatch.setattr(entry, "regressor", extra)


@pytest.mark.parametrize("name", list(baselines.BASELINES))
def test_each_baseline_learns_the_rule_and_is_calibrated(places, name):
    features, share, presence, folds = places
    result = baselines.out_of_fold(name, features, folds, presence=presence, share=share)
    assert auc(presence, result.ranking) > 0.93
    assert result.probability.min() >= 0 and result.probability.max() <= 1
    assert expected_calibration_error(presence, result.probability) < 0.13


@pytest.mark.parametrize("name", ["random forest (presence)", "extra trees (log share)"])
def test_labels_of_the_test_fold_do_not_reach_its_predictions(places, name):
    features, share, presence, folds = places
    before = baselines.out_of_fold(name, features, folds, presence=presence, share=share)
    held_out = folds == 2
    changed = np.where(held_out, 0.3 - np.minimum(share, 0.3), share)
    after = baselines.out_of_fold(
        name, features, folds, presence=np.where(held_out, ~presence, presence), share=changed
    )
    np.testing.assert_array_equal(before.ranking[held_out], after.ranking[held_out])
    np.testing.assert_array_equal(before.probability[held_out], after.probability[held_out])
    assert not np.array_equal(before.ranking[~held_out], after.ranking[~held_out])


def test_the_fold_of_a_place_is_its_whole_group():
    """Twins in one fold share a random label that only a leak could predict."""
    rng = np.random.default_rng(1)
    features = np.repeat(rng.normal(size=(100, 3)), 2, axis=0)
    presence = np.repeat(rng.integers(0, 2, 100), 2).astype(bool)
    together = np.repeat(np.arange(100) % 5, 2)
    apart = np.arange(200) % 5
    name = "random forest (presence)"
    honest = baselines.out_of_fold(name, features, together, presence=presence)
    leaky = baselines.out_of_fold(name, features, apart, presence=presence)
    assert auc(presence, honest.ranking) < 0.65 < 0.9 < auc(presence, leaky.ranking)


def test_missing_features_are_taken(places):
    features, share, presence, folds = places
    holed = features.copy()
    holed[::7, 0], holed[:, 3] = np.nan, np.nan
    for name in ("random forest (presence)", "Gaussian process (log share)"):
        result = baselines.out_of_fold(name, holed, folds, presence=presence, share=share)
        assert np.isfinite(result.probability).all() and auc(presence, result.ranking) > 0.85


def test_share_is_given_back_only_where_it_is_one(places):
    features, share, presence, folds = places
    results = baselines.run_baselines(
        features, folds, presence=presence, share=share, names=["random forest (share)", "random forest (sqrt share)"]
    )
    assert np.abs(results[0].share - share).mean() < 0.05 and results[1].share is None


def test_defaults_follow_objective_and_labels(places):
    features, share, presence, folds = places
    run = []
    baselines.run_baselines(features, folds, presence=presence, share=share, objective="binary", progress=run.append)
    baselines.run_baselines(features, folds, presence=presence, objective="share", progress=run.append)
    assert run == ["random forest (share)", "random forest (presence)"]


def test_comparison_rows_and_table(places):
    features, share, presence, folds = places
    results = baselines.run_baselines(features, folds, presence=presence, names=["random forest (presence)"])
    rows = baselines.compare(presence, {"perfect": {"probability": presence.astype(float)}}, results)
    assert [row["model"] for row in rows] == ["perfect", "random forest (presence)"]
    assert rows[0]["ap"] == 1.0 and rows[0]["brier"] == 0.0 and rows[1]["ap"] < 1.0
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(baselines.comparison_table(rows))
    text = console.export_text()
    assert "AP" in text and "1.000" in text and f"{rows[1]['brier']:.3f}" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "random forrest (presence)"}, "did you mean 'random forest \\(presence\\)'"),
        ({"name": "random forest (share)", "share": None}, "needs shares"),
        ({"folds": np.zeros(400)}, "at least two folds"),
        ({"presence": np.ones(3)}, "one row per place"),
    ],
)
def test_bad_input_is_refused(places, change, said):
    features, share, presence, folds = places
    given = {"name": "random forest (presence)", "presence": presence, "share": share, "folds": folds, **change}
    with pytest.raises(AgriClipError, match=said):
        baselines.out_of_fold(given.pop("name"), features, given.pop("folds"), **given)
