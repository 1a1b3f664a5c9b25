"""Scores of places: equal to their definitions, paired by draw, thresholds from elsewhere, units where units count."""

import math

import numpy as np
import pytest

from evaluation.metrics import average_precision, brier, log_loss
from evaluation.results import OURS
from evaluation.suitability.other_labels import rule_rows
from evaluation.suitability.places import Places, Predictions, calibrated_by_other_folds
from evaluation.suitability.scoring import (
    Setting,
    Truth,
    binary_by_other_folds,
    lead_sentence,
    score_ablations,
    score_applicability,
    score_details,
    score_headline,
    score_regions,
)
from evaluation.threshold_metrics import choose_threshold
from processing.errors import AgriClipError

SETTING = Setting("toy", "blocks", draws=40)


def make_places(count=240, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 10, count), rng.uniform(30, 40, count)
    total = rng.integers(5, 30, count).astype(float)
    positive = rng.binomial(total.astype(int), 1 / (1 + np.exp(-(35 - y)))).astype(float)
    share = positive / total
    return Places(
        ids=np.array([f"p{i}" for i in range(count)]),
        x=x,
        y=y,
        longitude=x,
        latitude=y,
        positive=positive,
        total=total,
        share=share,
        presence=(share > 0.5).astype(float),
        block=np.array([f"{int(a)}_{int(b)}" for a, b in zip(x // 2, y // 2, strict=True)]),
        region=np.where(y > 35, "north", "south"),
    )


def make_predictions(places, noise, seed=1):
    rng = np.random.default_rng(seed)
    probability = 1 / (1 + np.exp(-(35 - places.y + rng.normal(0, noise, len(places)))))
    sets = {0.9: np.stack([probability < 0.8, probability > 0.2], axis=1)}
    return Predictions(probability, probability, probability, spread=rng.uniform(0, 0.1, len(places)), sets=sets)


@pytest.fixture(scope="module")
def places():
    return make_places()


def value(scores, metric, model=OURS, against=None, split="blocks"):
    (found,) = [s for s in scores if (s.metric, s.model, s.against, s.split) == (metric, model, against, split)]
    return found


def test_headline_is_the_metric_and_the_lead_is_their_difference(places):
    models = {OURS: make_predictions(places, 0.5), "other": make_predictions(places, 3.0)}
    scores = score_headline(places, models, SETTING)
    for metric, function in (("ap", average_precision), ("brier", brier), ("log_loss", log_loss)):
        ours, other = (function(places.presence, models[name].probability) for name in models)
        assert value(scores, metric).value == pytest.approx(ours)
        lead = value(scores, metric, against="other")
        assert lead.value == pytest.approx(ours - other)
        assert lead.low <= lead.value <= lead.high
        # The better model leads in every draw: more precision, less error.
        assert (lead.low > 0) if metric == "ap" else (lead.high < 0)
    assert "best of 1 baselines (other) +" in lead_sentence(scores)
    assert "(other) -" in lead_sentence(scores, "brier")


def test_a_model_has_no_lead_over_itself_in_any_draw(places):
    ours = make_predictions(places, 0.5)
    scores = score_headline(places, {OURS: ours, "twin": ours}, SETTING)
    lead = value(scores, "ap", against="twin")
    assert (lead.low, lead.value, lead.high) == (0.0, 0.0, 0.0)


def test_counts_are_scored_as_units(places):
    ours = make_predictions(places, 0.5)
    units = np.concatenate(
        [np.r_[np.ones(int(p)), np.zeros(int(t - p))] for p, t in zip(places.positive, places.total, strict=True)]
    )
    chance = np.repeat(ours.probability, places.total.astype(int))
    scores = score_headline(places, {OURS: ours}, SETTING, counts=True)
    assert value(scores, "brier").value == pytest.approx(brier(units, chance))
    assert value(scores, "ap").value == pytest.approx(average_precision(units, chance))
    truth = Truth.of(places, counts=True)
    assert truth.weight.sum() == places.total.sum()
    assert (truth.block == places.block[truth.place]).all()


def test_threshold_of_a_fold_comes_from_the_others(places):
    folds = (np.arange(len(places)) % 3).astype(int)
    score = make_predictions(places, 2.0).probability
    found = binary_by_other_folds(Truth.of(places, False), score, folds)
    for fold in range(3):
        threshold = choose_threshold(places.presence[folds != fold], score[folds != fold])
        np.testing.assert_array_equal(found[folds == fold], score[folds == fold] >= threshold)
    # A fold whose scores are turned round keeps the threshold of the others.
    turned = np.where(folds == 0, 1 - score, score)
    again = binary_by_other_folds(Truth.of(places, False), turned, folds)
    threshold = choose_threshold(places.presence[folds != 0], score[folds != 0])
    np.testing.assert_array_equal(again[folds == 0], turned[folds == 0] >= threshold)


def test_details_are_their_definitions(places):
    ours = make_predictions(places, 0.5)
    scores = score_details(places, ours, SETTING, presence_shares=True)
    area = (ours.share * places.total).sum() / places.positive.sum() - 1
    assert value(scores, "area_bias").value == pytest.approx(area)
    held = ours.sets[0.9][np.arange(len(places)), places.presence.astype(int)]
    assert value(scores, "coverage_90").value == pytest.approx(held.mean())
    assert value(scores, "set_size_90").value == pytest.approx(ours.sets[0.9].sum(axis=1).mean())
    parts = [value(scores, f"brier_{name}").value for name in ("reliability", "resolution", "uncertainty")]
    assert parts[2] == pytest.approx(places.presence.mean() * (1 - places.presence.mean()))
    without = score_details(places, Predictions(ours.probability, ours.probability), SETTING)
    assert not [s for s in without if "coverage" in s.metric or "spread" in s.metric]


def test_regions_are_scored_apart(places):
    ours = make_predictions(places, 0.5)
    scores = score_regions(places, ours, SETTING, presence_shares=True)
    north = places.region == "north"
    found = value(scores, "area_bias", split="blocks, north")
    predicted, observed = (ours.share * places.total)[north].sum(), places.positive[north].sum()
    assert found.value == pytest.approx(predicted / observed - 1)
    assert found.n == north.sum()
    assert value(scores, "brier", split="blocks, south").value == pytest.approx(
        brier(places.presence[~north], ours.probability[~north])
    )


def test_a_part_of_one_class_has_an_error_and_no_interval(places):
    inside = places.presence == 1
    scores = score_applicability(places, {OURS: make_predictions(places, 0.5)}, inside, SETTING)
    found = value(scores, "brier", split="blocks, inside the area of applicability")
    assert found.low is None and math.isfinite(found.value)
    assert not [s for s in scores if s.metric == "ap"]


def test_an_ablation_is_the_whole_less_the_part(places):
    whole, part = make_predictions(places, 0.5).probability, np.full(len(places), 0.5)
    scores = score_ablations(places, {"all": whole, "nothing": part}, "all", SETTING)
    drop = value(scores, "auc", "all", "nothing", "blocks, parts of the input taken away")
    assert drop.value == pytest.approx(value(scores, "auc", "all", None, drop.split).value - 0.5)
    assert drop.low > 0
    # What orders the places may be given apart: it decides AUC and leaves the Brier score alone.
    turned = score_ablations(places, {"all": whole}, "all", SETTING, rankings={"all": -whole})
    found = {s.metric: s.value for s in turned}
    assert found["auc"] == pytest.approx(1 - value(scores, "auc", "all", None, drop.split).value)
    assert found["brier"] == pytest.approx(brier(places.presence, whole))


def test_calibration_of_a_fold_never_sees_it(places):
    folds = (np.arange(len(places)) % 4).astype(int)
    raw = make_predictions(places, 1.0).probability
    one = calibrated_by_other_folds(raw, folds, places.presence, "isotonic", {"a": raw})["a"]
    presence = np.where(folds == 2, 1 - places.presence, places.presence)
    two = calibrated_by_other_folds(raw, folds, presence, "isotonic", {"a": raw})["a"]
    np.testing.assert_array_equal(one[folds == 2], two[folds == 2])
    assert not np.array_equal(one[folds != 2], two[folds != 2])


def test_rules_pick_places(places):
    np.testing.assert_array_equal(rule_rows(places, "latitude >= 35.5"), places.latitude >= 35.5)
    np.testing.assert_array_equal(rule_rows(places, "region=north"), places.region == "north")
    for rule, said in (("lattitude>3", "latitude"), ("latitude>90", "30"), ("latitude", "rule like"), ("x=3", "x>3")):
        with pytest.raises(AgriClipError, match=said):
            rule_rows(places, rule)
