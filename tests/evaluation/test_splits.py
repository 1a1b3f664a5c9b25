"""Splits against their definitions, checked place by place."""

import numpy as np
import pytest
from pyproj import Geod

from evaluation import splits
from evaluation.distances import box_distance, chip_neighbours, nearest_distance
from evaluation.splits import NEVER_TESTED, TrainTest
from processing.errors import AgriClipError
from processing.splits import block_ids, spatial_blocks


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return rng.uniform(-100, -80, 400), rng.uniform(30, 45, 400)


def test_random_folds():
    presence = (np.arange(200) < 30).astype(int)
    fold = splits.random_folds(200, 5, seed=1, presence=presence)
    assert np.bincount(fold).tolist() == [40] * 5
    assert np.bincount(fold[presence == 1]).tolist() == [6] * 5
    assert np.bincount(splits.random_folds(11, 3)).tolist() == [4, 4, 3]
    assert np.array_equal(splits.random_folds(50, 5, seed=3), splits.random_folds(50, 5, seed=3))
    assert not np.array_equal(splits.random_folds(50, 5, seed=3), splits.random_folds(50, 5, seed=4))


def test_block_folds_keep_blocks_whole(points):
    x, y = points
    assert np.array_equal(splits.block_folds(x, y, 2.0, 4, seed=5), spatial_blocks(x, y, 2.0, 4, seed=5))
    presence = (y > 40).astype(int)
    fold = splits.block_folds(x, y, 2.0, 4, seed=5, presence=presence)
    blocks = block_ids(x, y, 2.0)
    assert all(np.unique(fold[blocks == b]).size == 1 for b in np.unique(blocks)) and set(fold) == {0, 1, 2, 3}

    def unevenness(folds):
        return np.std([presence[folds == k].mean() for k in range(4)])

    plain = np.mean([unevenness(splits.block_folds(x, y, 2.0, 4, seed=s)) for s in range(5)])
    assert unevenness(fold) < plain / 2


def test_leave_one_state_out():
    geoid = np.array(["01001", "01003", "17019", "17021", "29001"])
    found = splits.group_folds(geoid, prefix=2)
    assert found.names == ("01", "17", "29") and found.fold.tolist() == [0, 0, 1, 1, 2]
    large = splits.group_folds(geoid, prefix=2, least=2)
    assert large.names == ("01", "17") and large.fold.tolist() == [0, 0, 1, 1, NEVER_TESTED]
    parts = list(splits.fold_splits(large.fold, large.names))
    assert [part.name for part in parts] == ["01", "17"]
    assert parts[0].train.tolist() == [False, False, True, True, True]  # Missouri is fitted on, never tested
    assert splits.group_folds(np.array(["Iowa", "Ohio", "Iowa"])).fold.tolist() == [0, 1, 0]
    with pytest.raises(AgriClipError, match="leading zeros"):
        splits.group_folds(np.array([1001, 17019]), prefix=2)
    with pytest.raises(AgriClipError, match="two groups"):
        splits.group_folds(np.array(["a", "a"]))


def test_edges_and_both_ways(points):
    x, y = points
    north = splits.edge_hold_out(x, y, "north", 39.5)
    assert np.array_equal(north.test, y >= 39.5) and np.array_equal(north.train, y < 39.5)
    east, west = splits.edge_hold_out(x, y, "east", -90), splits.edge_hold_out(x, y, "west", -90)
    assert np.array_equal(east.test, x >= -90) and np.array_equal(west.test, x < -90)
    assert np.array_equal(splits.edge_hold_out(x, y, "south", 39.5).test, ~north.test)
    there, back = splits.both_ways(north, "south of 39.5")
    assert there is north and np.array_equal(back.test, north.train) and np.array_equal(back.train, north.test)
    kept = splits.edge_hold_out(x, y, "east", -90, buffer=150e3, geographic=True)
    assert np.array_equal(kept.test, east.test) and kept.left_out > 0
    assert splits.both_ways(kept)[1].left_out == kept.left_out
    with pytest.raises(AgriClipError, match="has no test place"):
        splits.edge_hold_out(x, y, "north", 80)
    with pytest.raises(AgriClipError, match="did you mean 'north'"):
        splits.edge_hold_out(x, y, "nort", 39)


def test_periods():
    year = np.arange(2010, 2025)
    split = splits.period_hold_out(year, (2013, 2019), (2021, 2023))
    assert year[split.train].tolist() == list(range(2013, 2020)) and year[split.test].tolist() == [2021, 2022, 2023]
    assert split.left_out == 5 and split.name == "2021 to 2023"
    with pytest.raises(AgriClipError, match="overlap"):
        splits.period_hold_out(year, (2013, 2019), (2019, 2023))


def test_environment_folds_find_clusters_whatever_their_units():
    rng = np.random.default_rng(1)
    cluster = rng.permutation(np.repeat([0, 1, 2], [60, 30, 10]))
    centre = np.array([[0.0, 0.0], [0.0, 9000.0], [5.0, 0.0]])
    table = centre[cluster] + rng.normal(0, [0.2, 300.0], (100, 2))
    table[3, 0] = np.nan
    known = np.arange(100) != 3
    assert np.array_equal(splits.environment_folds(table, 3)[known], cluster[known])
    with pytest.raises(AgriClipError, match="3 clusters"):
        splits.environment_folds(np.zeros((10, 2)), 3)


def test_buffer_against_brute_force():
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, 10, 300), rng.uniform(0, 10, 300)
    folds = splits.block_folds(x, y, 2.0, 5)
    for part in splits.fold_splits(folds):
        kept = splits.with_buffer(part, x, y, 0.5)
        boxed = splits.with_buffer(part, x, y, 0.5, block_size=2.0)
        assert np.array_equal(kept.test, part.test)
        for i in np.flatnonzero(part.train):
            near = min(np.hypot(x[i] - x[j], y[i] - y[j]) for j in np.flatnonzero(part.test))
            assert kept.train[i] == (near >= 0.5)
            corners = {(x[j] // 2 * 2, y[j] // 2 * 2) for j in np.flatnonzero(part.test)}
            edge = min(np.hypot(max(a - x[i], 0, x[i] - a - 2), max(b - y[i], 0, y[i] - b - 2)) for a, b in corners)
            assert boxed.train[i] == (edge >= 0.5)
        assert boxed.train.sum() <= kept.train.sum() < part.train.sum()
    with pytest.raises(AgriClipError, match="leaves no training place"):
        splits.with_buffer(part, x, y, 100.0)
    with pytest.raises(AgriClipError, match="0 or more"):
        splits.with_buffer(part, x, y, -1.0)


def test_distances_on_the_globe(points):
    lon, lat = points
    here, there = np.stack([lon[:50], lat[:50]], axis=1), np.stack([lon[50:80], lat[50:80]], axis=1)
    found = nearest_distance(here, there, geographic=True)
    for i, (a, b) in enumerate(here):
        metres = Geod(ellps="WGS84").inv([a] * 30, [b] * 30, there[:, 0], there[:, 1])[2]
        assert found[i] == pytest.approx(min(metres), rel=0.006)
    across = nearest_distance(np.array([[179.9, 0.0]]), np.array([[-179.9, 0.0], [170.0, 0.0]]), geographic=True)
    assert across[0] == pytest.approx(22239, rel=0.001)
    inside = box_distance(np.array([[-89.5, 39.5], [-87.5, 39.5]]), np.array([[-90.0, 39.0]]), 1.0, geographic=True)
    assert inside[0] == 0 and inside[1] == pytest.approx(1.5 * 111195 * np.cos(np.radians(39.5)), rel=0.001)


def test_chips_that_overlap():
    places = np.array([[0.0, 0.0], [10.0, 0.0], [9.9, 9.9], [0.0, 30.0]])
    found = chip_neighbours(places[1:], places[:1], 10.0)
    assert found.tolist() == [False, True, False]  # touching, sharing a corner's pixels, far
    lat, lon = 36.0, -93.0
    north, east = 1 / 111195, 1 / (111195 * np.cos(np.radians(lat)))
    near = np.array(
        [[lon + 7900 * east, lat], [lon + 8100 * east, lat], [lon, lat + 7900 * north], [lon, lat + 8100 * north]]
    )
    found = chip_neighbours(near, np.array([[lon, lat]]), 8000.0, geographic=True)
    assert found.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: splits.random_folds(3, 5), "5 folds cannot be made of 3 places"),
        (lambda: splits.random_folds(9, 3, presence=np.eye(1, 9)[0]), "rarer class"),
        (lambda: splits.random_folds(9, 3, presence=np.ones(8)), "8 labels for 9"),
        (lambda: splits.block_folds(np.arange(9), np.arange(9), 1.0, 3, presence=np.eye(1, 9)[0]), "fewer than 3"),
        (lambda: TrainTest("x", np.array([True]), np.array([False])), "no test place"),
        (lambda: TrainTest("x", np.array([True]), np.array([False, True])), "one value per place"),
        (lambda: splits.edge_hold_out([np.nan, 1], [0, 1], "east", 0.5), "no finite coordinates"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(AgriClipError, match=said):
        call()
