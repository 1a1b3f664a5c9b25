"""Leaks that are planted are found, and nothing else is."""

import math

import numpy as np
import pytest

from evaluation.splits import TrainTest, block_folds, check_leakage, fold_splits, random_folds, with_buffer
from processing.errors import AgriClipError


@pytest.fixture
def places():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1000, 500), rng.uniform(0, 1000, 500)


def _brute_force(x, y, folds):
    return np.array(
        [
            min(math.hypot(x[i] - x[j], y[i] - y[j]) for j in range(x.size) if folds[j] != folds[i])
            for k in np.unique(folds)
            for i in np.flatnonzero(folds == k)
        ]
    )


def test_distances_of_folds_against_loops(places):
    x, y = (axis[:80] for axis in places)
    folds = random_folds(80, 4)
    report = check_leakage(x, y, folds)
    assert report.distance == pytest.approx(_brute_force(x, y, folds))
    assert report.tested == 80 and report.faults == {} and report.identical_rows is None
    assert np.array_equal(check_leakage(x, y, fold_splits(folds)).distance, report.distance)
    one = next(iter(fold_splits(folds)))
    assert check_leakage(x, y, one).tested == one.test.sum()
    partly = folds.copy()
    partly[partly == 3] = -1  # fitted on, never tested
    assert check_leakage(x, y, partly).tested == (folds != 3).sum()


def test_planted_leaks_are_counted(places):
    x, y = (axis.copy() for axis in places)
    test = np.arange(500) < 50
    features = np.random.default_rng(1).normal(size=(500, 3))
    x[0], y[0] = x[400], y[400]  # the same place
    features[1] = features[401]  # the same predictors elsewhere
    features[2, 1] = features[402, 1] = np.nan
    features[2] = features[402]
    features[3] = features[4] = np.nan  # nothing known is no likeness
    features[403] = np.nan
    features[5] = features[6]  # twins within the test side are no leak
    report = check_leakage(x, y, TrainTest("planted", ~test, test), features=features, chip_extent=5.0)
    assert report.identical_places == 1 and report.identical_rows == 2
    chips = sum(min(max(abs(x[i] - x[j]), abs(y[i] - y[j])) for j in range(50, 500)) < 5.0 for i in range(50))
    assert report.overlapping_chips == chips >= 1
    assert report.verdict.startswith("The split leaks: of 50 test places 1 lie where a training place lies, 2 have")
    assert report.verdict.endswith(".") and ". " not in report.verdict
    with pytest.raises(AgriClipError, match="2 have the very predictors"):
        check_leakage(x, y, TrainTest("p", ~test, test), features=features, raise_on=["identical_rows"])
    # Asked for another fault only, this one is reported and not raised.
    fine = check_leakage(x, y, TrainTest("p", ~test, test), features=features, raise_on=["overlapping_chips"])
    assert fine.identical_rows == 2


def test_tolerance_joins_near_places(places):
    x, y = (axis.copy() for axis in places)
    test = np.arange(500) < 50
    x[0], y[0] = x[400] + 0.01, y[400]
    split = TrainTest("near", ~test, test)
    assert check_leakage(x, y, split).identical_places == 0
    assert check_leakage(x, y, split, tolerance=0.1).identical_places == 1


def test_a_buffer_takes_overlapping_chips_away(places):
    x, y = places
    folds = block_folds(x, y, 200.0, 4)
    without = check_leakage(x, y, folds, chip_extent=30.0)
    assert without.overlapping_chips > 0
    apart = [with_buffer(part, x, y, 30.0 * math.sqrt(2)) for part in fold_splits(folds)]
    report = check_leakage(x, y, apart, chip_extent=30.0, raise_on=["overlapping_chips"])
    assert report.overlapping_chips == 0 and report.distance.min() >= 30.0


def _area_between(a, b):
    """Area between two empirical distribution functions, by steps over a fine grid."""
    grid = np.linspace(0, max(a.max(), b.max()), 20001)
    gap = np.abs((a[:, None] <= grid).mean(axis=0) - (b[:, None] <= grid).mean(axis=0))
    return float(((gap[1:] + gap[:-1]) / 2).sum() * (grid[1] - grid[0]))


def test_distances_as_the_map_has_them():
    rng = np.random.default_rng(2)
    # Training places in clusters; the map is everywhere. Random folds flatter it, blocks come near it.
    centres = rng.uniform(0, 1000, (12, 2))
    table = np.repeat(centres, 25, axis=0) + rng.normal(0, 8, (300, 2))
    x, y = table.T
    map_x, map_y = rng.uniform(0, 1000, 400), rng.uniform(0, 1000, 400)
    random = check_leakage(x, y, random_folds(300, 5), map_x=map_x, map_y=map_y)
    assert random.wasserstein == pytest.approx(_area_between(random.distance, random.map_distance), rel=0.01)
    assert random.shift < 0 and "flatters" in random.verdict
    blocks = check_leakage(x, y, block_folds(x, y, 250.0, 5), map_x=map_x, map_y=map_y)
    assert blocks.wasserstein < random.wasserstein and "flatters" not in blocks.verdict
    # Mapped places among the training places: a test far away is severe.
    severe = check_leakage(x, y, block_folds(x, y, 250.0, 5), map_x=x + 1, map_y=y)
    assert severe.shift > 0 and "severer" in severe.verdict
    # Well spread places and random folds: the score speaks for the map.
    u, v = rng.uniform(0, 1000, 2000), rng.uniform(0, 1000, 2000)
    even = check_leakage(u, v, random_folds(2000, 10), map_x=map_x, map_y=map_y)
    assert "speaks for this map" in even.verdict


def test_places_in_degrees_are_measured_in_kilometres():
    lon, lat = np.array([-90.0, -90.0, -89.0]), np.array([40.0, 41.0, 45.0])
    report = check_leakage(lon, lat, np.array([0, 1, 1]), geographic=True)
    assert report.distance[0] == pytest.approx(111195, rel=0.001) and "km from training" in report.verdict


def test_bad_input_is_refused(places):
    x, y = places
    with pytest.raises(AgriClipError, match="did you mean 'identical_rows'"):
        check_leakage(x, y, random_folds(500, 5), raise_on=["identical_row"])
    with pytest.raises(AgriClipError, match="one value for each of the 500 places"):
        check_leakage(x, y, np.zeros(3, dtype=int))
    with pytest.raises(AgriClipError, match="1 rows of predictors for 500"):
        check_leakage(x, y, random_folds(500, 5), features=np.zeros((1, 2)))
