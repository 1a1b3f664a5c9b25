"""Areas against hand-worked numbers and against loops."""

import math

import numpy as np
import pytest

from evaluation.area_metrics import area_table, latitude_limit, latitude_limits, score_areas
from processing.errors import AgriClipError


def test_by_hand():
    observed, predicted = np.array([0.5, 0.0, 1.0, np.nan]), np.array([0.25, 0.5, 1.0, 0.9])
    land, unit = np.array([4.0, 2.0, 3.0, 100.0]), np.array(["b", "b", "a", "a"])
    table = area_table(observed, predicted, land, unit)
    assert table.unit.tolist() == ["a", "b"] and table.land.tolist() == [3.0, 6.0]
    assert table.observed.tolist() == [3.0, 2.0] and table.predicted.tolist() == [3.0, 2.0]
    whole = score_areas(observed, predicted, land, unit)
    assert (whole.bias, whole.relative_bias, whole.rmse, whole.r2, whole.units) == (0.0, 0.0, 0.0, 1.0, 2)
    places = score_areas(observed, predicted, land)
    assert places.rmse == pytest.approx(math.sqrt((1 + 1 + 0) / 3)) and places.units == 3
    # observed areas 2, 0, 3: mean 5/3, total sum of squares 14/3
    assert places.r2 == pytest.approx(1 - 2 / (14 / 3))


def test_against_loops():
    rng = np.random.default_rng(0)
    a, b, land, unit = rng.random(300), rng.random(300), rng.random(300) * 50, rng.integers(0, 20, 300)
    found = score_areas(a, b, land, unit)
    there, told = {}, {}
    for i in range(300):
        there[unit[i]] = there.get(unit[i], 0.0) + a[i] * land[i]
        told[unit[i]] = told.get(unit[i], 0.0) + b[i] * land[i]
    o, p = np.array([there[k] for k in there]), np.array([told[k] for k in there])
    assert found.observed == pytest.approx(o.sum()) and found.predicted == pytest.approx(p.sum())
    assert found.relative_bias == pytest.approx(p.sum() / o.sum() - 1)
    assert found.rmse == pytest.approx(math.sqrt(((o - p) ** 2).mean()))
    assert found.r2 == pytest.approx(1 - ((o - p) ** 2).sum() / ((o - o.mean()) ** 2).sum())


def test_a_calibrated_map_has_no_bias_and_its_thresholded_map_has_one():
    rng = np.random.default_rng(1)
    p = rng.random(40000) ** 3
    y = (rng.random(40000) < p).astype(float)
    assert abs(score_areas(y, p).relative_bias) < 0.03
    assert score_areas(y, (p >= 0.5).astype(float)).relative_bias < -0.1


def test_undefined_is_nan():
    none = score_areas(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert math.isnan(none.relative_bias) and math.isnan(none.r2) and none.bias == pytest.approx(0.6)
    assert math.isnan(score_areas(np.array([0.5, 0.2]), np.array([0.5, 0.2]), unit=np.array(["a", "a"])).r2)


@pytest.mark.parametrize("side", ["north", "south"])
def test_limit_of_a_logistic_edge(side):
    rng = np.random.default_rng(2)
    lat = rng.uniform(25, 49, 200000)
    sign = 1 if side == "north" else -1
    p = 1 / (1 + np.exp(sign * (lat - 39.3) / 1.5))
    assert latitude_limit(lat, p, side=side) == pytest.approx(39.3, abs=0.02)
    # Another level of the same edge, worked out from the logistic function.
    there = 39.3 + sign * 1.5 * math.log(3)
    assert latitude_limit(lat, p, level=0.25, side=side) == pytest.approx(there, abs=0.05)


def test_limit_by_hand_and_with_weights():
    lat, p = np.array([30.1, 30.2, 31.2, 32.4]), np.array([0.9, 0.7, 0.6, 0.2])
    # bands at 30 (mean 0.8), 31 (0.6), 32 (0.2): a quarter of the way from 31.2 to 32.4
    assert latitude_limit(lat, p, band=1.0) == pytest.approx(31.2 + 0.25 * 1.2)
    heavy = latitude_limit(np.append(lat, 31.2), np.append(p, 0.2), np.array([1, 1, 1, 1, 3.0]), band=1.0)
    assert heavy == pytest.approx(30.15 + (0.8 - 0.5) / (0.8 - 0.3) * (31.2 - 30.15))  # band 31 now has 0.3
    assert latitude_limit(lat, p, np.array([1, 1, 1, 0.0]), band=1.0) != latitude_limit(lat, p, band=1.0)


def test_a_limit_beyond_the_data_is_nan():
    lat = np.arange(30.0, 40.0)
    assert math.isnan(latitude_limit(lat, np.full(10, 0.9))) and math.isnan(latitude_limit(lat, np.full(10, 0.1)))
    assert math.isnan(latitude_limit(lat, np.full(10, np.nan)))
    # An outlying suitable belt beyond a gap counts: the limit is the outermost.
    belt = np.where((lat < 33) | (lat == 37), 0.9, 0.1)
    assert 37 < latitude_limit(lat, belt, band=1.0) < 38


def test_limits_along_a_map():
    lon, lat = (axis.ravel() for axis in np.meshgrid(np.arange(-100, -90, 0.1), np.arange(30, 46, 0.1)))
    edge = 38 + 0.2 * (np.floor(lon + 1e-9) + 95)
    p = 1 / (1 + np.exp((lat - edge) / 0.8))
    west, limits = latitude_limits(lat, lon + 1e-9, p)
    assert west.tolist() == list(range(-100, -90))
    assert limits == pytest.approx(38 + 0.2 * (west + 95), abs=0.05)
    gone = np.where(lon < -95 - 1e-6, 0.0, p)
    assert np.isnan(latitude_limits(lat, lon + 1e-9, gone)[1]).sum() == 5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: score_areas(np.zeros(2), np.zeros(3)), "one value per place"),
        (lambda: score_areas(np.array([0.5]), np.array([1.5])), "between 0 and 1"),
        (lambda: score_areas(np.array([0.5]), np.array([0.5]), np.array([-1.0])), "0 or more"),
        (lambda: score_areas(np.array([np.nan]), np.array([0.5])), "No place has both"),
        (lambda: latitude_limit(np.zeros(2), np.zeros(2), side="norht"), "did you mean 'north'"),
        (lambda: latitude_limit(np.zeros(2), np.zeros(3)), "2 latitudes, 3 probabilities"),
        (lambda: latitude_limit(np.zeros(2), np.zeros(2), band=0.0), "higher than 0"),
        (lambda: latitude_limits(np.zeros(2), np.zeros(3), np.zeros(2)), "one per place"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(AgriClipError, match=said):
        call()
