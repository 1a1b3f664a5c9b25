"""Sets, rejection and spread against loops, scikit-learn's neighbours in SciPy, and sets of a real calibration."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from evaluation.uncertainty_metrics import (
    EVERYWHERE,
    calibration_sets,
    risk_coverage_curve,
    set_scores,
    spread_error_correlation,
)
from modeling_agriclip.calibration_agriclip import Calibration, ConformalLevel
from processing.errors import AgriClipError


def test_sets_by_hand():
    truth = np.array([0, 0, 1, 1])
    sets = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=bool)
    (row,) = set_scores(truth, {0.9: sets})
    assert (row.level, row.group, row.count) == (0.9, EVERYWHERE, 4)
    assert row.coverage == 0.5 and row.class_coverage == (0.5, 0.5) and row.mean_size == 1.0
    assert row.undecided == 0.25 and row.empty == 0.25
    (weighted,) = set_scores(truth, {0.9: sets}, weight=np.array([1, 0, 3, 0]))
    assert weighted.coverage == 1.0 and weighted.mean_size == pytest.approx((1 + 3 * 2) / 4)


def test_groups_against_loops():
    rng = np.random.default_rng(0)
    truth, group, weight = rng.integers(0, 3, 300), rng.choice(["east", "west"], 300), rng.random(300)
    sets = {0.95: rng.random((300, 3)) < 0.8, 0.8: rng.random((300, 3)) < 0.6}
    rows = set_scores(truth, sets, group, weight)
    assert [(row.level, row.group) for row in rows] == [
        (level, name) for level in (0.8, 0.95) for name in (EVERYWHERE, "east", "west")
    ]
    for row in rows:
        inside = [i for i in range(300) if row.group in (EVERYWHERE, group[i])]
        total = sum(weight[i] for i in inside)
        assert row.coverage == pytest.approx(sum(weight[i] * sets[row.level][i, truth[i]] for i in inside) / total)
        assert row.mean_size == pytest.approx(sum(weight[i] * sets[row.level][i].sum() for i in inside) / total)
        for k in range(3):
            mine = [i for i in inside if truth[i] == k]
            expected = sum(weight[i] * sets[row.level][i, k] for i in mine) / sum(weight[i] for i in mine)
            assert row.class_coverage[k] == pytest.approx(expected)


def test_a_class_without_places_has_no_coverage():
    (row,) = set_scores(np.zeros(3, dtype=int), {0.8: np.ones((3, 2), dtype=bool)})
    assert row.class_coverage[0] == 1 and math.isnan(row.class_coverage[1])


def test_sets_of_a_calibration_keep_their_promise():
    rng = np.random.default_rng(1)
    p = rng.random(4000)
    y = (rng.random(4000) < p).astype(int)
    fitted, kept = np.arange(4000) < 2000, np.arange(4000) >= 2000
    levels = []
    for alpha in (0.05, 0.2):
        limits = []
        for k, score in ((0, p), (1, 1 - p)):
            scores = np.sort(score[fitted & (y == k)])
            limits.append(float(scores[math.ceil((scores.size + 1) * (1 - alpha)) - 1]))
        levels.append(ConformalLevel(alpha, (limits[0], limits[1]), {"dry": (1.0, 1.0)}))
    calibration = Calibration(levels=tuple(levels))
    sets = calibration_sets(calibration, p[kept])
    assert sorted(sets) == [0.8, 0.95]
    for row in set_scores(y[kept], sets):
        assert row.coverage == pytest.approx(row.level, abs=0.035)
        assert row.class_coverage == pytest.approx([row.level] * 2, abs=0.05)
    dry = calibration_sets(calibration, p[kept], np.full(2000, "dry"))
    assert dry[0.8].all() and not sets[0.8].all()


def _area_by_shuffles(loss, confidence, rng, times=3000):
    """Mean over random orders of ties of the mean risk."""
    areas = []
    for _ in range(times):
        order = np.lexsort((rng.random(loss.size), -confidence))
        areas.append((np.cumsum(loss[order]) / np.arange(1, loss.size + 1)).mean())
    return np.mean(areas)


def test_rejection_by_hand_and_ties():
    curve = risk_coverage_curve(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.1, 0.9, 0.5, 0.7]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert curve.aurc == pytest.approx((1 / 3 + 1 / 2) / 4) and curve.excess == pytest.approx(0.0)
    assert curve.at(0.75) == pytest.approx(1 / 3) and curve.at([0.5, 0.51, 1.0]) == pytest.approx([0, 1 / 3, 0.5])
    rng = np.random.default_rng(2)
    loss, confidence = rng.random(12), rng.integers(0, 3, 12).astype(float)
    tied = risk_coverage_curve(loss, confidence)
    assert tied.aurc == pytest.approx(_area_by_shuffles(loss, confidence, rng), abs=0.01)
    order = rng.permutation(12)
    assert risk_coverage_curve(loss[order], confidence[order]).aurc == pytest.approx(tied.aurc)


def test_rejection_by_confidence_beats_chance_and_not_the_oracle():
    rng = np.random.default_rng(3)
    p, weight = rng.random(2000), rng.random(2000)
    loss = ((rng.random(2000) < p) - p) ** 2
    sure = risk_coverage_curve(loss, np.maximum(p, 1 - p), weight)
    none = risk_coverage_curve(loss, np.zeros(2000), weight)
    assert 0 < sure.excess and sure.aurc < none.aurc
    assert none.aurc == pytest.approx(np.average(loss, weights=weight)) == pytest.approx(sure.risk[-1])
    assert risk_coverage_curve(loss, -loss, weight).excess == pytest.approx(0.0)
    # Places of weight zero are not there.
    weight[:1000] = 0
    assert risk_coverage_curve(loss, p, weight).aurc == pytest.approx(
        risk_coverage_curve(loss[1000:], p[1000:], weight[1000:]).aurc
    )


def test_spread_and_error():
    rng = np.random.default_rng(4)
    spread = rng.random(200).round(1)
    error = rng.normal(0, spread + 0.01)
    assert spread_error_correlation(spread, error) == pytest.approx(spearmanr(spread, np.abs(error)).statistic)
    times = rng.integers(0, 4, 200)
    repeated = spearmanr(np.repeat(spread, times), np.repeat(np.abs(error), times)).statistic
    assert spread_error_correlation(spread, error, times) == pytest.approx(repeated)
    assert spread_error_correlation(spread, -(spread**3)) == pytest.approx(1.0)
    assert math.isnan(spread_error_correlation(np.ones(3), np.arange(3.0)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: set_scores(np.array([0, 2]), {0.9: np.ones((2, 2))}), "outside 0 to 1"),
        (lambda: set_scores(np.array([0, 1]), {90: np.ones((2, 2))}), "level of a prediction set"),
        (lambda: set_scores(np.array([0, 1]), {0.9: np.ones(2)}), "one row per place"),
        (lambda: set_scores(np.array([0, 1]), {0.9: np.ones((2, 2))}, np.array(["a"])), "1 groups for 2"),
        (lambda: set_scores(np.array([], dtype=int), {0.9: np.ones((0, 2))}), "nothing to score"),
        (lambda: risk_coverage_curve(np.ones(2), np.ones(3)), "2 losses but 3 confidences"),
        (lambda: risk_coverage_curve(np.array([np.nan]), np.ones(1)), "NaN or infinite"),
        (lambda: risk_coverage_curve(np.ones(2), np.ones(2), np.array([-1, 2])), "not negative"),
        (lambda: risk_coverage_curve(np.ones(2), np.ones(2)).at(0.0), "above 0"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(AgriClipError, match=said):
        call()
