"""Running baselines: hold-outs, calibration within the training places, inputs, skips, brought predictions, rules."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation import baselines
from evaluation.baselines.rules import ENVELOPE, HEAT_UNITS, flat_coordinates
from evaluation.baselines.share import isotonic_probability
from evaluation.baselines.study import monthly_climate, representativeness
from evaluation.metrics import auc, average_precision
from evaluation.study_scores import feature_table
from mapping.agronomy.study_layers import write_study_layers
from mapping.outputs import read_map, write_cog
from processing.errors import AgriClipError
from processing.rasters import Grid
from processing.study import load_study
from processing.study_data import StudyData

US = Path(__file__).parents[2] / "studies" / "us_double_crop_soybean.yaml"


@pytest.fixture(scope="module")
def places():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(240, 4))
    share = 0.3 / (1 + np.exp(-(2 * features[:, 0] - features[:, 1]))) * rng.uniform(0.7, 1.3, 240)
    xy = np.column_stack([features[:, 0] * 3 + rng.normal(0, 0.2, 240), features[:, 1] * 3])
    inputs = baselines.BaselineInputs(
        features,
        predictors=features[:, :2],
        imagery=features[:, :2] ** 3,
        xy=xy,
        rules={HEAT_UNITS: np.clip(features[:, 0] / 4 + 0.5, 0, 1), ENVELOPE: np.clip(0.5 - features[:, 1] / 4, 0, 1)},
        errors=np.full_like(features, 0.1),
        monthly=features[:, :1] + 10,
        embeddings=features @ rng.normal(size=(4, 6)),
    )
    return inputs, {"presence": share > 0.1, "share": share}, np.arange(240) // 5 % 4


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer trees and a fixed kernel: these tests are about who sees what."""
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    for name, entry in baselines.REGISTRY.items():
        if "process" in name or "kriging" in name:
            process = GaussianProcessRegressor(RBF(1.0) + WhiteKernel(0.1), optimizer=None, normalize_y=True)
            monkeypatch.setattr(entry, "regressor", lambda seed, process=process: process)
        elif "boosting" in name:
            few = entry.regressor(0).set_params(max_iter=15, learning_rate=0.3)
            monkeypatch.setattr(entry, "regressor", lambda seed, few=few: few)
        elif "forest" in name or "trees" in name:
            kind = RandomForestRegressor if "forest" in name else ExtraTreesRegressor
            monkeypatch.setattr(entry, "regressor", lambda seed, kind=kind: kind(15, random_state=seed))


FITTED = [name for name, entry in baselines.REGISTRY.items() if isinstance(entry, baselines.Baseline)]


@pytest.mark.parametrize("name", FITTED)
def test_labels_that_are_predicted_reach_nothing(places, name):
    inputs, labels, folds = places
    test = folds == 1
    before = baselines.fit_predict(name, inputs, ~test, test, **labels, groups=folds)
    turned = {"presence": labels["presence"] ^ test, "share": np.where(test, 0.4 - labels["share"], labels["share"])}
    after = baselines.fit_predict(name, inputs, ~test, test, **turned, groups=folds)
    np.testing.assert_array_equal(before.ranking, after.ranking)
    np.testing.assert_array_equal(before.probability, after.probability)
    assert before.ranking.shape == (test.sum(),)
    assert before.probability.min() >= 0 and before.probability.max() <= 1
    if name not in ("prevalence", "percentile envelope", HEAT_UNITS, ENVELOPE):
        assert auc(labels["presence"][test], before.ranking) > 0.85


@pytest.mark.parametrize("name", FITTED)
def test_a_fold_out_is_a_hold_out(places, name):
    """Fits shared between folds change nothing: each fold is predicted as a hold-out of its own would be."""
    inputs, labels, folds = places
    whole = baselines.out_of_fold(name, inputs, folds, **labels)
    for fold in (0, 3):
        test = folds == fold
        alone = baselines.fit_predict(name, inputs, ~test, test, **labels, groups=folds)
        np.testing.assert_array_equal(whole.ranking[test], alone.ranking)
        np.testing.assert_array_equal(whole.probability[test], alone.probability)


def test_calibration_by_hand(places):
    inputs, labels, folds = places
    name = "extra trees (log share)"
    test = folds == 2
    found = baselines.fit_predict(name, inputs, ~test, test, **labels, groups=folds)

    def fitted(rows):
        estimator = baselines.REGISTRY[name].estimator(0)
        return estimator.fit(inputs.features[rows], labels["share"][rows])

    inner = np.full(folds.size, np.nan)
    for fold in (0, 1, 3):
        inner[folds == fold] = fitted(~test & (folds != fold)).transformed(inputs.features[folds == fold])
    ranking = fitted(~test).transformed(inputs.features[test])
    np.testing.assert_allclose(found.ranking, ranking)
    expected = isotonic_probability(inner[~test], labels["presence"][~test], ranking)
    np.testing.assert_allclose(found.probability, expected)


def test_many_folds_need_few_inner_fits(places, monkeypatch):
    inputs, labels, _ = places
    count = []
    entry = baselines.REGISTRY["percentile envelope"]

    class Counting(baselines.PercentileEnvelope):
        def fit(self, X, y, sample_weight=None):
            count.append(len(X))
            return super().fit(X, y, sample_weight)

    monkeypatch.setattr(entry, "regressor", lambda seed: Counting())
    baselines.out_of_fold("percentile envelope", inputs, np.arange(240) % 20, **labels)
    assert len(count) == 20 * (1 + 5)
    count.clear()
    baselines.out_of_fold("percentile envelope", inputs, np.arange(240) % 5, **labels)
    assert len(count) == 5 + 10  # each pair of folds is left out once
    count.clear()
    baselines.out_of_fold("percentile envelope", inputs, np.arange(240) % 2, **labels)
    assert len(count) == 2 * (1 + 2)


def test_prevalence_orders_nothing_and_knows_the_rate(places):
    inputs, labels, folds = places
    found = baselines.out_of_fold("prevalence", inputs, folds, **labels)
    assert auc(labels["presence"], found.ranking) == 0.5
    assert average_precision(labels["presence"], found.ranking) == pytest.approx(labels["presence"].mean())
    for fold in range(4):
        rate = labels["presence"][folds != fold].mean()
        np.testing.assert_allclose(found.probability[folds == fold], rate)


def test_a_rule_keeps_its_own_order(places):
    inputs, labels, folds = places
    for rule in (HEAT_UNITS, ENVELOPE):
        found = baselines.out_of_fold(rule, inputs, folds, **labels)
        np.testing.assert_allclose(found.ranking, inputs.rules[rule])


def test_inputs_are_what_they_say(places):
    """A baseline does not move when what it may not look at changes."""
    inputs, labels, folds = places
    test = folds == 0
    noise = np.random.default_rng(9).normal(size=inputs.features.shape)
    changed = {
        "coordinates only (kriging)": replace(inputs, features=noise, predictors=None, embeddings=noise),
        "percentile envelope": replace(inputs, features=noise, xy=inputs.xy + 5),
        "quadratic logistic": replace(inputs, predictors=noise, xy=inputs.xy * 0, monthly=noise),
        "gradient boosting on embeddings (presence)": replace(inputs, features=noise),
    }
    for name, other in changed.items():
        before = baselines.fit_predict(name, inputs, ~test, test, **labels, groups=folds)
        after = baselines.fit_predict(name, other, ~test, test, **labels, groups=folds)
        np.testing.assert_array_equal(before.ranking, after.ranking)
    for name, other in {
        "Bayesian quadratic discriminant": replace(inputs, errors=inputs.errors * 8),
        "Gaussian process (log share, monthly climate)": replace(inputs, monthly=noise),
    }.items():
        before = baselines.fit_predict(name, inputs, ~test, test, **labels, calibrate=False)
        after = baselines.fit_predict(name, other, ~test, test, **labels, calibrate=False)
        assert np.abs(before.ranking - after.ranking).max() > 1e-3


def test_what_cannot_be_run_says_why(places):
    bare = baselines.BaselineInputs(places[0].features, reasons={HEAT_UNITS: "there is no climate"})
    assert baselines.reason_to_skip(HEAT_UNITS, bare) == "there is no climate"
    assert "embeddings" in baselines.reason_to_skip("gradient boosting on embeddings (presence)", bare)
    assert "coordinates" in baselines.reason_to_skip("coordinates only (kriging)", bare)
    assert "needs imagery" in baselines.reason_to_skip("image statistics only (extra trees, log share)", bare)
    assert "brought" in baselines.reason_to_skip("image only", bare)
    assert "needs shares" in baselines.reason_to_skip("random forest (share)", bare, share=False)
    assert baselines.reason_to_skip("random forest (presence)", bare, share=False) is None
    with pytest.raises(AgriClipError, match="'heat-unit rule' cannot be run: there is no climate"):
        baselines.out_of_fold(HEAT_UNITS, bare, places[2], **places[1])
    large = baselines.BaselineInputs(np.zeros((3001, 1)))
    assert "too much memory" in baselines.reason_to_skip("Gaussian process (log share)", large)


def test_predictions_of_the_caller_stand_in_the_same_table(places):
    inputs, labels, folds = places
    chance = np.where(labels["presence"], 0.8, 0.1)
    brought = {
        "image only": baselines.Predictions(chance, ranking=labels["share"]),
        "our old model": baselines.Predictions(np.where(folds == 3, np.nan, chance)),
    }
    inputs = replace(inputs, brought=brought)
    results = baselines.run_baselines(inputs, folds, **labels, names=["prevalence", "image only"])
    rows = baselines.compare(labels["presence"], {}, results)
    assert [row["model"] for row in rows] == ["prevalence", "image only"] and rows[1]["ap"] == 1.0
    some = baselines.out_of_fold("our old model", inputs, folds, **labels, only=[0, 1])
    assert np.isnan(some.probability[folds > 1]).all() and np.isfinite(some.probability[folds < 2]).all()
    with pytest.raises(AgriClipError, match="'our old model' must have a number"):
        baselines.out_of_fold("our old model", inputs, folds, **labels)
    defaults = baselines.run_baselines(replace(inputs, brought={"image only": brought["image only"]}), folds, **labels)
    assert [result.name for result in defaults] == [*baselines.DEFAULTS["share"], "image only"]
    wrong = replace(inputs, brought={"x": baselines.Predictions(chance * 2)})
    with pytest.raises(AgriClipError, match="between 0 and 1"):
        baselines.out_of_fold("x", wrong, folds, **labels)


def test_training_places_of_one_class(places):
    inputs, labels, folds = places
    test = folds == 0
    nowhere = {"presence": labels["presence"] & test, "share": labels["share"] * test}
    for name in ("MaxEnt", "quadratic logistic", "gradient boosting (presence)", "prevalence"):
        found = baselines.fit_predict(name, inputs, ~test, test, **nowhere, groups=folds)
        assert found.probability.max() < 0.02


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (np.ones(240, bool), np.ones(240, bool), "share none"),
        (np.zeros(240, bool), np.ones(240, bool), "both be there"),
        (np.ones(3, bool), np.ones(240, bool), "one value per place"),
    ],
)
def test_bad_masks_are_refused(places, train, test, said):
    with pytest.raises(AgriClipError, match=said):
        baselines.fit_predict("prevalence", places[0], train, test, **places[1])


def test_lists_of_names():
    assert set(baselines.STANDARD) | set(baselines.COSTLY) == set(baselines.ALL) == set(baselines.REGISTRY)
    assert set(baselines.BASELINES) < set(baselines.REGISTRY)
    for names in baselines.DEFAULTS.values():
        assert set(names) <= set(baselines.BASELINES)


# -- from a study ---------------------------------------------------------------------------------------------------

PLAINS = """
name: plains
grid: {bounds: [-95, 34, -85, 42], crs: "EPSG:4326", resolution: 1.0}
labels: {table: labels.csv, id: id, x: x, y: y, kind: share, positive: hits, total: n, presence_above: 0.3}
predictors:
  - file: warmth.tif
    variables:
      - {name: january, title: warmth in January, unit: degC, band: 1}
      - {name: july, title: warmth in July, unit: degC, band: 7}
imagery:
  - file: cover.tif
    channels:
      - {band: 1, name: crops, kind: cover_fraction, variable: crops, unit: "%"}
      - {band: 2, name: ndvi, kind: index, variable: ndvi}
chip: {size: 4}
report: {sentences: ["January {january}, July {july}."]}
splits: {kind: spatial_blocks, size: 2.0, folds: 4}
training: {objective: share}
agronomy:
  mean_temperature: {file: warmth.tif, unit: degC}
  precipitation: {file: rain.tif, unit: mm}
"""


@pytest.fixture(scope="module")
def plains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plains")
    rng = np.random.default_rng(1)
    grid = Grid.from_bounds((-95, 34, -85, 42), 1.0, "EPSG:4326")
    north = np.linspace(0.0, 8.0, grid.height)[::-1, None] * np.ones((1, grid.width))
    months = -12.0 * np.cos(2 * np.pi * (np.arange(12) - 0.5) / 12)[:, None, None] + 16.0 - 1.1 * north
    months[:, 0, 0] = np.nan
    write_cog(folder / "warmth.tif", months.astype(np.float32), grid)
    write_cog(folder / "rain.tif", np.full((12, grid.height, grid.width), 95.0, np.float32), grid)
    fine = Grid.from_bounds((-97, 32, -83, 44), 0.25, "EPSG:4326")
    cover = np.stack([rng.uniform(0, 100, fine.shape), rng.uniform(0, 1, fine.shape)]).astype(np.float32)
    write_cog(folder / "cover.tif", cover, fine)
    x, y = rng.uniform(-94.9, -85.1, 160), rng.uniform(34.1, 41.9, 160)
    hits = rng.binomial(20, 1 / (1 + np.exp(1.2 * (y - 38))))
    rows = [f"s{i},{x[i]},{y[i]},{hits[i]},20" for i in range(160)]
    (folder / "labels.csv").write_text("\n".join(["id,x,y,hits,n", *rows]) + "\n")
    (folder / "plains.yaml").write_text(PLAINS)
    return StudyData(load_study(folder / "plains.yaml")), cover[0], fine


def test_rules_score_a_place_as_the_map_does(plains, tmp_path):
    data = plains[0]
    labels = data.labels()
    scores, reasons = baselines.rule_scores(data, labels.x, labels.y)
    maps = write_study_layers(data.study, tmp_path, layers=["heat_unit_probability", "envelope"])["present"]
    row, column = data.grid.cell_of(labels.x, labels.y)
    np.testing.assert_array_equal(scores[HEAT_UNITS], read_map(maps["heat_unit_probability"])[row, column])
    np.testing.assert_array_equal(scores[ENVELOPE], read_map(maps["envelope"])[row, column])
    assert reasons == {} and np.nanmin(scores[HEAT_UNITS]) < 0.2 < 0.8 < np.nanmax(scores[HEAT_UNITS])
    outside = baselines.rule_scores(data, np.array([-120.0]), np.array([38.0]))[0]
    assert np.isnan(outside[HEAT_UNITS]).all() and np.isnan(outside[ENVELOPE]).all()


@pytest.mark.parametrize("kind", ["report's numbers", "image statistics"])
def test_one_kind_of_input_alone(plains, kind):
    data = plains[0]
    inputs, labels = baselines.study_inputs(data), data.labels()
    count = len(data.study.variables)
    columns = slice(count) if kind == "report's numbers" else slice(count, None)
    name = f"{kind} only (extra trees, log share)"
    np.testing.assert_array_equal(inputs.table(baselines.REGISTRY[name]), inputs.features[:, columns])
    train = data.folds() > 0
    given = {"presence": labels.presence, "share": labels.share, "weight": labels.weight, "calibrate": False}
    found = baselines.fit_predict(name, inputs, train, ~train, **given)
    # Warmth decides in this land, and its imagery is noise.
    score = auc(labels.presence[~train], found.ranking)
    assert score > 0.9 if kind == "report's numbers" else score < 0.75


def test_study_without_climate_gives_the_reason(toy):
    data = StudyData(toy.study)
    run = baselines.run_study_baselines(
        data, ["prevalence", HEAT_UNITS, "Gaussian process (log share, monthly climate)"]
    )
    assert [result.name for result in run.results] == ["prevalence"]
    assert "no monthly temperature" in run.skipped[HEAT_UNITS]
    assert "no monthly climate" in run.skipped["Gaussian process (log share, monthly climate)"]


def test_errors_of_a_plane_are_those_of_its_slope(plains):
    """January warms by 1.1 * 8 / 7 degrees a cell to the south and nothing to the east."""
    found = representativeness(plains[0], np.array([-90.5]), np.array([38.5]))
    np.testing.assert_allclose(found, [[1.1 * 8 / 7 / np.sqrt(12)] * 2], rtol=1e-5)


def test_months_and_coordinates(plains):
    data = plains[0]
    months = monthly_climate(data, np.array([-90.5]), np.array([38.5]))
    assert months.shape == (1, 24) and (months == 95.0).sum() == 12
    warmth = np.sort(months[months != 95.0])
    assert warmth[-1] - warmth[0] == pytest.approx(24 * np.cos(np.pi / 12), rel=1e-3)
    flat = flat_coordinates(np.array([10.0, 12.0]), np.array([59.0, 61.0]), geographic=True)
    np.testing.assert_allclose(flat, [[5.0, 59.0], [6.0, 61.0]])
    np.testing.assert_array_equal(flat_coordinates(np.ones(1), np.ones(1), geographic=False), [[1.0, 1.0]])


def test_land_cover_around_a_place(plains):
    data, cover, fine = plains
    x, y = np.array([-90.1, -88.3]), np.array([38.2, 36.9])
    features, names = feature_table(data, x, y)
    assert names[-1] == "crops, mean of 9 x 9" and sum("9 x 9" in name for name in names) == 1
    row, column = fine.cell_of(x, y)
    for place, (r, c) in enumerate(zip(row, column, strict=True)):
        wide, near = cover[r - 4 : r + 5, c - 4 : c + 5], cover[r - 1 : r + 2, c - 1 : c + 2]
        assert features[place, -1] == pytest.approx(wide.mean(), rel=1e-5)
        assert features[place, names.index("crops, mean of 3 x 3")] == pytest.approx(near.mean(), rel=1e-5)
    assert data.chip_size == 4


def test_study_by_folds_and_by_hold_out(plains):
    data = plains[0]
    labels, folds = data.labels(), data.folds()
    inputs = baselines.study_inputs(data)
    names = ["coordinates only (nearest neighbours)", HEAT_UNITS, "quadratic logistic", "extra trees (log share)"]
    said = []
    run = baselines.run_study_baselines(data, names, inputs=inputs, progress=said.append)
    assert said == names and set(run.seconds) == set(names) and not run.skipped
    for result in run.results:
        assert auc(labels.presence, result.ranking) > 0.8, result.name
    west = labels.x < -90
    held = baselines.run_study_baselines(data, names, inputs=inputs, holdout=(west, ~west))
    alone = baselines.fit_predict(
        names[3], inputs, west, ~west, presence=labels.presence, share=labels.share, weight=labels.weight, groups=folds
    )
    np.testing.assert_array_equal(held.results[3].probability, alone.probability)


@pytest.mark.realdata
def test_counties_of_the_united_states():
    study = load_study(US)
    if not study.path(study.labels.table).is_file():
        pytest.skip("the county table is not there; set AGRICLIP_DATA to the folder of public data")
    data = StudyData(study)
    presence = data.labels().presence
    names = ["prevalence", HEAT_UNITS, "coordinates only (nearest neighbours)", "quadratic logistic"]
    run = baselines.run_study_baselines(data, names)
    scores = {row["model"]: row for row in baselines.compare(presence, {}, run.results)}
    assert scores[HEAT_UNITS]["auc"] > 0.92 and scores["quadratic logistic"]["ap"] > 0.9
    assert scores["prevalence"]["auc"] == 0.5
    assert all(row["ece"] < 0.1 for row in scores.values())
