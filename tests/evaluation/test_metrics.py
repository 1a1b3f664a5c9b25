"""Scores against hand-worked numbers and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation import metrics
from processing.errors import AgriClipError

Y = np.array([0, 0, 1, 1])
P = np.array([0.1, 0.4, 0.35, 0.8])


def test_by_hand():
    assert metrics.auc(Y, P) == pytest.approx(0.75)  # 3 of 4 pairs in order
    assert metrics.average_precision(Y, P) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.brier(Y, P) == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    assert metrics.log_loss(Y, P) == pytest.approx(-np.log([0.9, 0.6, 0.35, 0.8]).mean())
    assert metrics.rmse([0.0, 2.0, np.nan], [1.0, 0.0, 5.0]) == pytest.approx(math.sqrt(2.5))
    assert metrics.rmse([0.0, 2.0], [1.0, 0.0], [3.0, 1.0]) == pytest.approx(math.sqrt(7 / 4))


def test_weights_equal_repetition():
    rng = np.random.default_rng(0)
    y, p, times = rng.integers(0, 2, 200), rng.random(200).round(2), rng.integers(1, 5, 200)
    long_y, long_p = np.repeat(y, times), np.repeat(p, times)
    for score in (metrics.auc, metrics.average_precision, metrics.brier, metrics.log_loss):
        assert score(y, p, times) == pytest.approx(score(long_y, long_p))


def test_against_scikit_learn():
    rng = np.random.default_rng(1)
    p = rng.random(500)
    y, w = (rng.random(500) < p).astype(int), rng.random(500)
    assert metrics.auc(y, p, w) == pytest.approx(reference.roc_auc_score(y, p, sample_weight=w))
    assert metrics.brier(y, p, w) == pytest.approx(reference.brier_score_loss(y, p, sample_weight=w))
    assert metrics.log_loss(y, p, w) == pytest.approx(reference.log_loss(y, p, sample_weight=w))


def test_calibration_error_by_hand():
    probability = np.array([0.2] * 5 + [0.8] * 5)
    observed = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    assert metrics.expected_calibration_error(observed, probability, bins=2) == pytest.approx(0.2)
    shares = np.array([0.2] * 5 + [0.9] * 5)
    assert metrics.expected_calibration_error(shares, probability, bins=2) == pytest.approx(0.05)


def test_bins_hold_equal_weight_and_ties_stay_together():
    rng = np.random.default_rng(2)
    probability, weight = rng.random(3000), rng.random(3000)
    curve = metrics.reliability_curve((rng.random(3000) < probability).astype(int), probability, weight, bins=10)
    assert curve.weight == pytest.approx(np.full(10, 0.1), abs=0.005) and curve.count.sum() == 3000
    assert np.all(np.diff(curve.predicted) > 0) and curve.calibration_error < 0.06
    tied = metrics.reliability_curve(rng.integers(0, 2, 100), np.full(100, 0.3), bins=10)
    assert tied.count.tolist() == [100]
    order = rng.permutation(3000)
    ties = probability.round(1)
    observed = rng.integers(0, 2, 3000)
    assert metrics.expected_calibration_error(observed, ties) == pytest.approx(
        metrics.expected_calibration_error(observed[order], ties[order])
    )


def test_a_calibrated_forecast_beats_an_overconfident_one():
    rng = np.random.default_rng(3)
    p = rng.uniform(0.05, 0.95, 5000)
    y = (rng.random(5000) < p).astype(int)
    sharp = p**3 / (p**3 + (1 - p) ** 3)
    good, bad = metrics.score_presence(y, p), metrics.score_presence(y, sharp)
    assert good["ece"] < 0.03 < bad["ece"] and good["brier"] < bad["brier"] and good["log_loss"] < bad["log_loss"]
    assert good["auc"] == pytest.approx(bad["auc"], abs=1e-6)  # the order is the same


def test_ranking_is_used_for_order_only():
    flat = np.full(4, 0.5)
    scores = metrics.score_presence(Y, flat, ranking=P)
    assert scores["auc"] == pytest.approx(0.75) and scores["brier"] == pytest.approx(0.25)


def test_undefined_scores_are_nan():
    assert math.isnan(metrics.auc(np.ones(3), np.array([0.1, 0.2, 0.3])))
    assert math.isnan(metrics.average_precision(np.zeros(3), np.array([0.1, 0.2, 0.3])))
    assert math.isnan(metrics.rmse([np.nan], [1.0]))


@pytest.mark.parametrize(
    ("y", "p", "w", "said"),
    [
        ([], [], None, "nothing to score"),
        ([0, 1], [0.5], None, "one prediction per observation"),
        ([0, 1], [0.5, np.nan], None, "1 predictions are NaN"),
        ([0, 1], [0.5, 1.5], None, "between 0 and 1"),
        ([0, 0.3], [0.5, 0.5], None, "must be 0 or 1"),
        ([0, 1], [0.5, 0.5], [-1, 1], "not be negative"),
        ([0, 1], [0.5, 0.5], [1, 1, 1], "3 weights"),
    ],
)
def test_bad_input_is_refused(y, p, w, said):
    with pytest.raises(AgriClipError, match=said):
        metrics.brier(np.array(y), np.array(p), None if w is None else np.array(w))


def test_brier_parts_by_hand():
    probability = np.array([0.2] * 5 + [0.8] * 5)
    observed = np.array([0, 0, 0, 0, 1, 1, 1, 0, 0, 1])
    parts = metrics.brier_parts(observed, probability, bins=2)
    assert parts.reliability == pytest.approx(0.5 * 0.0 + 0.5 * 0.2**2)
    assert parts.resolution == pytest.approx(0.5 * 0.2**2 + 0.5 * 0.2**2)
    assert parts.uncertainty == pytest.approx(0.24) and parts.within_bins == pytest.approx(0.0)
    assert parts.skill == pytest.approx(1 - parts.brier / 0.24)


def _stephenson(y, p, w, curve_bins):
    """Within-bin variance less covariance, by loops over bins found from the sorted table."""
    order = np.argsort(p, kind="stable")
    middle = (np.cumsum(w[order]) - 0.5 * w[order]) / w.sum()
    bins = np.empty(p.size, dtype=int)
    bins[order] = np.minimum((middle * curve_bins).astype(int), curve_bins - 1)
    total = 0.0
    for k in set(bins):
        rows = np.flatnonzero(bins == k)
        mass = sum(w[i] for i in rows)
        mean_p, mean_y = sum(w[i] * p[i] for i in rows) / mass, sum(w[i] * y[i] for i in rows) / mass
        for i in rows:
            total += w[i] * ((p[i] - mean_p) ** 2 - 2 * (y[i] - mean_y) * (p[i] - mean_p))
    return total / w.sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_brier_parts_add_up(weighted):
    rng = np.random.default_rng(4)
    p, w = rng.random(400), rng.random(400) if weighted else np.ones(400)
    y = (rng.random(400) < p**2).astype(float)
    for bins in (5, 15, None):
        parts = metrics.brier_parts(y, p, w, bins)
        assert parts.brier == pytest.approx(metrics.brier(y, p, w), abs=1e-12)
        assert parts.reliability > 0 and parts.resolution > 0
    assert metrics.brier_parts(y, p, w, 5).within_bins == pytest.approx(_stephenson(y, p, w, 5), abs=1e-12)


def test_parts_without_bins_know_a_calibrated_forecast():
    # Frequencies equal the forecasts, so nothing is left to recalibrate and the resolution is Murphy's.
    probability = np.repeat([0.25, 0.75], 40)
    observed = np.concatenate([np.repeat([1, 0], [10, 30]), np.repeat([1, 0], [30, 10])])
    parts = metrics.brier_parts(observed, probability, bins=None)
    assert parts.reliability == pytest.approx(0.0, abs=1e-12) and parts.resolution == pytest.approx(0.25**2)
    assert metrics.brier_parts(np.ones(4), P, bins=None).uncertainty == 0
    assert math.isnan(metrics.brier_parts(np.ones(4), P).skill)


@pytest.mark.parametrize("weighted", [False, True])
def test_calibration_line_solves_the_likelihood_equations(weighted):
    rng = np.random.default_rng(5)
    p = rng.uniform(0.02, 0.98, 3000)
    true_slope, true_shift = 0.5, 0.3
    logit = np.log(p / (1 - p))
    y = (rng.random(3000) < 1 / (1 + np.exp(-(true_shift + true_slope * logit)))).astype(int)
    w = rng.uniform(0.1, 9.0, 3000) if weighted else np.ones(3000)
    line = metrics.calibration_line(y, p, w if weighted else None)
    assert line.slope == pytest.approx(true_slope, abs=0.12) and line.intercept == pytest.approx(true_shift, abs=0.15)
    residual = y - 1 / (1 + np.exp(-(line.intercept + line.slope * logit)))
    assert abs((w * residual).sum()) < 1e-4 and abs((w * residual * logit).sum()) < 1e-4
    large = y - 1 / (1 + np.exp(-(line.in_the_large + logit)))
    assert abs((w * large).sum()) < 1e-6


def test_calibration_line_of_weights_equals_repetition():
    rng = np.random.default_rng(6)
    p, times = rng.random(150).round(2), rng.integers(0, 4, 150)
    y = (rng.random(150) < p).astype(int)
    weighted, repeated = (
        metrics.calibration_line(y, p, times),
        metrics.calibration_line(np.repeat(y, times), np.repeat(p, times)),
    )
    assert weighted.slope == pytest.approx(repeated.slope, rel=1e-6)
    assert weighted.intercept == pytest.approx(repeated.intercept, abs=1e-6)
    assert weighted.in_the_large == pytest.approx(repeated.in_the_large, abs=1e-9)


def test_calibration_line_that_does_not_exist():
    assert math.isnan(metrics.calibration_line(np.ones(3), np.array([0.1, 0.2, 0.3])).in_the_large)
    separated = metrics.calibration_line(np.array([0, 0, 1]), np.array([0.1, 0.4, 0.4]))
    assert math.isnan(separated.slope) and math.isfinite(separated.in_the_large)
    one = metrics.calibration_line(np.array([0, 0, 0, 1]), np.full(4, 0.5))
    assert math.isnan(one.slope) and one.in_the_large == pytest.approx(np.log(1 / 3))


def test_places_without_weight_do_not_make_a_bin():
    curve = metrics.reliability_curve(np.array([1, 0, 1]), np.array([0.1, 0.5, 0.9]), np.array([0.0, 1.0, 1.0]))
    assert curve.count.sum() == 2 and math.isfinite(curve.calibration_error)
    assert curve.calibration_error == pytest.approx(0.5 * 0.5 + 0.5 * 0.1)
