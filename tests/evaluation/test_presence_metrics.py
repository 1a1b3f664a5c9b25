"""Boyce index against a brute-force loop and against maps whose index is known."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata

from evaluation.presence_metrics import boyce_curve, boyce_index
from processing.errors import AgriClipError


def _brute_force(present, available, p_weight, a_weight, foci=100):
    """Hirzel et al. (2006) word by word: windows, ratios, repeats dropped, rank correlation."""
    low, high = min(present.min(), available.min()), max(present.max(), available.max())
    width = (high - low) / 10
    pairs = []
    for k in range(foci):
        start = low + k * (high - low - width) / (foci - 1)
        end = start + width if k < foci - 1 else high
        inside = sum(w for v, w in zip(available, a_weight, strict=True) if start <= v <= end) / a_weight.sum()
        found = sum(w for v, w in zip(present, p_weight, strict=True) if start <= v <= end) / p_weight.sum()
        if inside > 0:
            pairs.append((start, found / inside))
    kept = [pairs[0]] + [b for a, b in zip(pairs, pairs[1:], strict=False) if abs(a[1] - b[1]) > 1e-12 * abs(b[1])]
    x, r = rankdata([a for a, _ in kept]), rankdata([round(b, 10) for _, b in kept])
    return float(np.corrcoef(x, r)[0, 1]), len(pairs)


@pytest.mark.parametrize("weighted", [False, True])
def test_against_brute_force(weighted):
    rng = np.random.default_rng(0)
    available = rng.random(200)
    present = rng.choice(available, 40, p=available / available.sum())
    p_weight = rng.random(40) + 0.1 if weighted else np.ones(40)
    a_weight = rng.random(200) + 0.1 if weighted else np.ones(200)
    curve = boyce_curve(present, available, p_weight if weighted else None, a_weight if weighted else None)
    index, windows = _brute_force(present, available, p_weight, a_weight)
    assert curve.centre.size == windows == 100
    assert curve.index == pytest.approx(index, abs=1e-9)
    assert curve.window == pytest.approx(np.ptp(available) / 10)


def test_known_maps():
    rng = np.random.default_rng(1)
    land = rng.random(200000)
    good = land[rng.random(200000) < 0.2 * land]
    assert boyce_curve(good, land).index > 0.98
    assert boyce_curve(1 - good, 1 - land).index < -0.98
    chance = [boyce_curve(rng.choice(land, 400), land).index for _ in range(12)]
    assert abs(np.mean(chance)) < 0.35
    ratio = boyce_curve(good, land).ratio
    assert ratio[0] == pytest.approx(0.1, abs=0.08) and ratio[-1] == pytest.approx(1.9, abs=0.15)


def test_only_the_order_of_equally_spread_scores_counts():
    rng = np.random.default_rng(2)
    land = rng.random(500)
    present = land[land > 0.4]
    assert boyce_curve(present, land).index == pytest.approx(boyce_curve(3 * present - 7, 3 * land - 7).index)


def test_repeats_are_counted_once():
    land = np.repeat(np.linspace(0, 1, 11), 5)
    present = land[land >= 0.5]
    curve = boyce_curve(present, land)
    assert not curve.used.all() and curve.used[0]
    same = np.isclose(curve.ratio[1:], curve.ratio[:-1])
    assert np.array_equal(curve.used[1:], ~same)
    everything = boyce_curve(present, land, remove_duplicates=False)
    assert everything.used.all() and everything.index != curve.index


def test_windows_without_land_are_left_out():
    land = np.concatenate([np.linspace(0, 0.2, 50), np.linspace(0.8, 1.0, 50)])
    curve = boyce_curve(land[land > 0.85], land)
    assert curve.centre.size < 100 and np.isfinite(curve.ratio).all()


def test_labelled_places():
    rng = np.random.default_rng(3)
    score = rng.random(400)
    presence = (rng.random(400) < score).astype(int)
    assert boyce_index(presence, score) == boyce_curve(score[presence == 1], score).index
    times = rng.integers(0, 4, 400)
    assert boyce_index(presence, score, times) == pytest.approx(
        boyce_index(np.repeat(presence, times), np.repeat(score, times)), abs=1e-9
    )


def test_undefined_is_nan():
    assert math.isnan(boyce_index(np.zeros(5), np.arange(5.0)))
    assert math.isnan(boyce_index(np.ones(5), np.full(5, 0.3)))
    assert math.isnan(boyce_index(np.ones(50), np.linspace(0, 1, 50)))  # presence everywhere: ratio 1 throughout
    assert math.isnan(boyce_index(np.array([1, 0]), np.array([0.1, 0.9]), np.array([0.0, 1.0])))


@pytest.mark.parametrize(
    ("present", "available", "keywords", "said"),
    [
        ([], [0.1, 0.2], {}, "scores of presences"),
        ([0.1], [0.1, np.nan], {}, "NaN or infinite"),
        ([0.1], [0.1, 0.9], {"window": 2.0}, "narrower than the range"),
        ([0.1], [0.1, 0.9], {"foci": 2}, "3 windows"),
        ([0.1], [0.1, 0.9], {"available_weight": [1.0]}, "give one for each"),
        ([0.1], [0.1, 0.9], {"available_weight": [1.0, -1.0]}, "not be negative"),
    ],
)
def test_bad_input_is_refused(present, available, keywords, said):
    with pytest.raises(AgriClipError, match=said):
        boyce_curve(np.array(present), np.array(available), **keywords)
