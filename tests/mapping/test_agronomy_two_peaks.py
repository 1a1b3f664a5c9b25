"""The two-peak rule on curves that are known, and against SciPy's peaks and smoothing."""

from dataclasses import replace

import numpy as np
import pytest

from mapping.agronomy.two_peaks import ANY_TWO_CROPS, WHEAT_SOYBEAN, _peaks, regular_series, two_peaks
from processing.errors import AgriClipError

DAYS = np.arange(5, 365, 10.0)


def bumps(*peaks, days=DAYS, floor=0.25):
    """Sum of bumps (day, height, width) over bare soil."""
    return floor + sum(h * np.exp(-0.5 * ((days - d) / w) ** 2) for d, h, w in peaks)


DOUBLE = bumps((120, 0.5, 22), (238, 0.5, 22))
SINGLE = bumps((215, 0.6, 25))
COVER_CROP = bumps((105, 0.10, 15), (225, 0.55, 22))
WEEDS = bumps((120, 0.5, 22), (235, 0.10, 15))
SPRING_AND_AUTUMN = bumps((60, 0.5, 15), (150, 0.5, 15))


def test_two_crops_are_told_from_their_neighbours():
    series = np.stack([DOUBLE, SINGLE, COVER_CROP, WEEDS, SPRING_AND_AUTUMN])
    result = two_peaks(series, DAYS)
    assert result.double.tolist() == [True, False, False, False, False]
    assert result.peaks.tolist() == [2, 1, 1, 1, 2]
    assert abs(result.first_day[0] - 120) <= 10 and abs(result.second_day[0] - 238) <= 10
    assert result.days_between[0] == result.second_day[0] - result.first_day[0]
    assert 165 <= result.trough_day[0] <= 195 and result.trough[0] == pytest.approx(0.27, abs=0.04)
    assert result.amplitude[0] == pytest.approx(0.45, abs=0.07)
    assert np.isnan(result.days_between[1])
    # two crops all the same, if not wheat and soybean
    assert two_peaks(series, DAYS, ANY_TWO_CROPS).double.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    "change",
    [{"peak": 0.85}, {"prominence": 0.6}, {"separation": 150}, {"trough": 0.2}, {"amplitude": 0.6}],
)
def test_each_constant_can_refuse(change):
    assert not two_peaks(DOUBLE[None], DAYS, replace(ANY_TWO_CROPS, **change)).double[0]


def test_windows_can_refuse():
    for change in ({"trough_days": (190, 215)}, {"second_days": (260, 275)}):
        assert not two_peaks(DOUBLE[None], DAYS, replace(WHEAT_SOYBEAN, **change)).double[0]


def test_short_gaps_are_filled_and_long_ones_are_not():
    holes = DOUBLE.copy()
    holes[[5, 6, 20]] = np.nan
    assert two_peaks(holes[None], DAYS).double[0]
    gap = DOUBLE.copy()
    gap[14:20] = np.nan  # sixty days without a value
    steps, filled = regular_series(gap[None], DAYS)
    assert np.isnan(filled[0, 14:20]).all() and np.isfinite(filled[0, :14]).all() and np.isfinite(filled[0, 20:]).all()
    empty = np.full_like(DOUBLE, np.nan)
    empty[:5] = 0.3
    result = two_peaks(np.stack([DOUBLE, empty]), DAYS)
    assert result.known.tolist() == [True, False] and result.double.tolist() == [True, False]


def test_irregular_dates_and_monthly_means_give_the_same_verdict():
    rng = np.random.default_rng(0)
    days = np.sort(rng.choice(np.arange(1, 365), 60, replace=False)).astype(float)
    own = np.stack([days, days + 0.5])
    series = np.stack([bumps((120, 0.5, 22), (238, 0.5, 22), days=own[0]), bumps((215, 0.6, 25), days=own[1])])
    assert two_peaks(series, own).double.tolist() == [True, False]
    middles = np.cumsum([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) - 15.0
    monthly = np.stack([bumps((120, 0.6, 25), (238, 0.6, 25), days=middles), bumps((215, 0.6, 25), days=middles)])
    rule = replace(WHEAT_SOYBEAN, window=3, order=1)
    assert two_peaks(monthly, middles, rule, cyclic=True).double.tolist() == [True, False]


def test_a_mean_year_closes_on_itself():
    days = np.arange(5, 365, 10.0)
    turn = lambda d: np.minimum(np.abs(days - d), 365 - np.abs(days - d))  # noqa: E731
    winter = 0.25 + 0.5 * np.exp(-0.5 * (turn(2) / 22) ** 2) + 0.5 * np.exp(-0.5 * (turn(180) / 22) ** 2)
    assert two_peaks(winter[None], days, ANY_TWO_CROPS).peaks[0] == 1
    # the peak on New Year's Day is whole only where December joins January, and the first step is not its top alone
    steps, series = regular_series(winter[None], days, ANY_TWO_CROPS, cyclic=True)
    assert np.isfinite(series).all() and steps[0] == 0.0 and steps[-1] < 365.0
    assert abs(series[0, 0] - series[0, -1]) < 0.1


def test_peaks_are_those_of_scipy():
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(3)
    series = np.clip(0.4 + np.cumsum(rng.normal(0, 0.08, (200, 37)), axis=1), 0, 1)
    rule = ANY_TWO_CROPS
    ours = _peaks(series, rule)
    for row, found in zip(series, ours, strict=True):
        # SciPy removes by distance before it looks at prominence; ours keeps to prominent peaks first
        tops, _ = signal.find_peaks(row, height=rule.peak, prominence=rule.prominence)
        kept = []
        for top in tops[np.argsort(-row[tops], kind="stable")]:
            if all(abs(top - other) * rule.step >= rule.separation for other in kept):
                kept.append(top)
        plateau = len(np.unique(row)) < len(row)  # of a flat top SciPy takes the middle
        assert plateau or sorted(kept) == np.flatnonzero(found).tolist()


def test_smoothing_is_that_of_scipy():
    signal = pytest.importorskip("scipy.signal")
    series = np.random.default_rng(4).uniform(0.2, 0.8, (5, 36))
    _, ours = regular_series(series, DAYS)
    assert ours == pytest.approx(signal.savgol_filter(series, 7, 2, axis=1, mode="interp"), abs=1e-10)


@pytest.mark.parametrize(
    ("values", "days", "message"),
    [
        (DOUBLE[None] * 10000, DAYS, "0.0001"),
        (DOUBLE[None], DAYS[::-1], "ascend"),
        (DOUBLE[None], DAYS[:-1], "need days"),
        (DOUBLE, DAYS, "series"),
    ],
)
def test_bad_series_are_refused(values, days, message):
    with pytest.raises(AgriClipError, match=message):
        two_peaks(values, days)
    with pytest.raises(AgriClipError, match="odd"):
        replace(WHEAT_SOYBEAN, window=4)
