"""Scores at a threshold against scikit-learn, and thresholds against brute force."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation.threshold_metrics import ThresholdScores, choose_threshold, threshold_scores
from processing.errors import AgriClipError


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    score = rng.random(300).round(2)
    presence = (rng.random(300) < score**2).astype(int)
    return presence, score, rng.random(300)


def test_against_scikit_learn(table):
    y, s, w = table
    found = threshold_scores(y, s, 0.6, w)
    binary = (s >= 0.6).astype(int)
    assert found.kappa == pytest.approx(reference.cohen_kappa_score(y, binary, sample_weight=w))
    assert found.f1 == pytest.approx(reference.f1_score(y, binary, sample_weight=w))
    assert found.iou == pytest.approx(reference.jaccard_score(y, binary, sample_weight=w))
    assert found.accuracy == pytest.approx(reference.accuracy_score(y, binary, sample_weight=w))
    assert found.sensitivity == pytest.approx(reference.recall_score(y, binary, sample_weight=w))
    assert 1 - found.commission == pytest.approx(reference.precision_score(y, binary, sample_weight=w))
    balanced = reference.balanced_accuracy_score(y, binary, sample_weight=w, adjusted=True)
    assert found.tss == pytest.approx(balanced)
    assert found.omission == pytest.approx(1 - found.sensitivity)
    assert found.false_positive_rate == pytest.approx(1 - found.specificity)
    assert found.total == pytest.approx(w.sum())


def test_by_hand():
    found = ThresholdScores(0.5, hits=20, false_alarms=10, misses=5, correct_negatives=15)
    assert found.kappa == pytest.approx((0.7 - 0.5) / (1 - 0.5))  # chance: 25/50 * 30/50 + 25/50 * 20/50
    assert found.tss == pytest.approx(20 / 25 + 15 / 25 - 1) and found.iou == pytest.approx(20 / 35)
    assert found.omission == pytest.approx(0.2) and found.commission == pytest.approx(1 / 3)
    assert set(found.as_dict()) == {
        "threshold", "tss", "kappa", "f1", "iou", "accuracy", "sensitivity", "specificity", "omission", "commission",
    }  # fmt: skip


def test_the_threshold_itself_is_present():
    found = threshold_scores(np.array([1, 0]), np.array([0.5, 0.4]), 0.5)
    assert (found.hits, found.correct_negatives, found.misses) == (1.0, 1.0, 0.0)


def test_scores_that_divide_by_zero_are_nan():
    nothing = threshold_scores(np.zeros(3), np.zeros(3), 0.5)
    for name in ("tss", "kappa", "f1", "iou", "sensitivity", "omission", "commission"):
        assert math.isnan(getattr(nothing, name)), name
    assert nothing.specificity == 1 and nothing.accuracy == 1


def _tss(y, s, w, threshold):
    told = s >= threshold
    return w[told & (y == 1)].sum() / w[y == 1].sum() - w[told & (y == 0)].sum() / w[y == 0].sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_max_tss_against_every_threshold(table, weighted):
    y, s, w = table
    w = w if weighted else np.ones_like(w)
    chosen = choose_threshold(y, s, w if weighted else None)
    gains = {t: _tss(y, s, w, t) for t in np.unique(s)}
    assert chosen in gains and gains[chosen] == pytest.approx(max(gains.values()))
    assert all(gain < gains[chosen] - 1e-12 for t, gain in gains.items() if t > chosen)
    assert threshold_scores(y, s, chosen, w).tss == pytest.approx(gains[chosen])


@pytest.mark.parametrize("count", [5, 10, 15, 37])
def test_tenth_percentile_of_presences(count):
    rng = np.random.default_rng(count)
    scores = rng.permutation(np.arange(1, count + 1) / 100)
    y, s = np.concatenate([np.ones(count), np.zeros(8)]), np.concatenate([scores, rng.random(8)])
    chosen = choose_threshold(y, s, rule="p10")
    # Allowed: the largest threshold whose omission is a tenth or less, tried one by one.
    allowed = [t for t in scores if (scores < t).mean() <= 0.1 + 1e-12]
    assert chosen == max(allowed)
    assert choose_threshold(y, s, rule="mtp") == scores.min()
    assert threshold_scores(y, s, choose_threshold(y, s, rule="mtp")).omission == 0


def test_weights_move_the_percentile_and_weightless_places_do_not():
    y, s = np.ones(4), np.array([0.1, 0.2, 0.3, 0.4])
    assert choose_threshold(y, s, np.array([1, 9, 50, 40]), "p10") == 0.3
    assert choose_threshold(y, s, np.array([0, 9, 50, 40]), "mtp") == 0.2


def test_nothing_to_go_by():
    y, s = np.zeros(3), np.array([0.1, 0.2, 0.3])
    assert all(math.isnan(choose_threshold(y, s, rule=rule)) for rule in ("max_tss", "p10", "mtp"))
    assert math.isnan(choose_threshold(np.ones(3), s))
    # A score that ranks the wrong way round: no threshold beats "present everywhere".
    assert choose_threshold(np.array([1, 1, 0]), s) == 0.1


def test_bad_input_is_refused():
    with pytest.raises(AgriClipError, match="did you mean 'max_tss'"):
        choose_threshold(np.array([0, 1]), np.array([0.1, 0.2]), rule="maxtss")
    with pytest.raises(AgriClipError, match="threshold is NaN"):
        threshold_scores(np.array([0, 1]), np.array([0.1, 0.2]), math.nan)
    with pytest.raises(AgriClipError, match="one prediction per observation"):
        threshold_scores(np.array([0, 1]), np.array([0.1]), 0.5)
