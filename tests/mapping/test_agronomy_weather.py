"""Drawn weather: months are kept, cells are their own, scenarios change what they should."""

import numpy as np
import pytest

from mapping.agronomy.heat_units import heat_units
from mapping.agronomy.weather import (
    MONTH_LENGTHS,
    WeatherSettings,
    bioclim_change,
    change_monthly,
    check_monthly,
    daily_curve,
    draw_weather,
)
from processing.errors import AgriClipError

STARTS = np.concatenate([[0], np.cumsum(MONTH_LENGTHS)[:-1]])
ILLINOIS = np.array([-4, -2, 4, 11, 17, 22, 23, 22, 19, 12, 5, -1.0])
RAIN = np.array([48, 48, 81, 99, 101, 102, 113, 97, 81, 69, 78, 71.0])


def by_month(daily, axis):
    return np.add.reduceat(daily, STARTS, axis=axis)


def test_curve_keeps_months_and_is_smooth():
    monthly = np.random.default_rng(1).normal(10, 12, (12, 7))
    curve = daily_curve(monthly)
    assert curve.shape == (365, 7)
    assert np.abs(by_month(curve, 0) / MONTH_LENGTHS[:, None] - monthly).max() < 1e-9
    assert daily_curve(np.full(12, 3.5)) == pytest.approx(np.full(365, 3.5))
    # the smoothest: any other curve with the same months bends more
    bend = lambda c: (np.diff(c, 2, axis=0, append=c[:2]) ** 2).sum()  # noqa: E731
    other = curve[:, 0].copy()
    other[100], other[101] = other[100] + 0.1, other[101] - 0.1
    assert bend(curve[:, 0]) < bend(other)
    # periodic: no step between December and January
    assert np.abs(curve[0] - curve[-1]).max() < 2 * np.abs(np.diff(curve, axis=0)).max()
    with pytest.raises(AgriClipError, match="12 monthly means"):
        daily_curve(np.zeros(11))


def test_weather_keeps_rain_exactly_and_temperature_on_average():
    mean, rain = np.stack([ILLINOIS, ILLINOIS + 5], 1), np.stack([RAIN, RAIN * 0], 1)
    drawn = draw_weather(mean, 11.0, rain, np.array([3, 4]), np.array([7, 7]), WeatherSettings(years=300))
    assert drawn.minimum.shape == drawn.rain.shape == (300, 365, 2)
    assert drawn.rain.dtype == np.float32
    assert by_month(drawn.rain.astype(float), 1) == pytest.approx(np.broadcast_to(rain, (300, 12, 2)), abs=1e-3)
    middle = 0.5 * (drawn.minimum + drawn.maximum)
    assert np.abs(by_month(middle.mean(axis=0), 0) / MONTH_LENGTHS[:, None] - mean).max() < 0.5
    assert (drawn.maximum - drawn.minimum) == pytest.approx(11.0, abs=1e-4)
    residual = (middle - daily_curve(mean)[None])[:, :, 0]
    assert residual.std() == pytest.approx(3.5, rel=0.03)
    assert np.corrcoef(residual[:, :-1].ravel(), residual[:, 1:].ravel())[0, 1] == pytest.approx(0.7, abs=0.02)
    wet = (drawn.rain[..., 0] > 0).mean()
    assert wet == pytest.approx(RAIN.sum() / 8.0 / 365, rel=0.1)


def test_rain_between_years_varies_when_asked_and_keeps_its_mean():
    settings = WeatherSettings(years=50, monthly_rain_cv=0.5)
    drawn = draw_weather(ILLINOIS[:, None], 11.0, RAIN[:, None], np.array([0]), np.array([0]), settings)
    totals = by_month(drawn.rain[..., 0].astype(float), 1)
    assert totals.mean(axis=0) == pytest.approx(RAIN, rel=1e-4)
    assert (totals.std(axis=0) / RAIN).mean() == pytest.approx(0.5, abs=0.08)


def test_a_cell_has_its_weather_whatever_else_is_drawn():
    rng = np.random.default_rng(2)
    mean, rain = ILLINOIS[:, None] + rng.normal(0, 1, (1, 6)), np.repeat(RAIN[:, None], 6, 1)
    rows, columns = np.array([0, 0, 1, 1, 70000, 5]), np.array([0, 1, 0, 1, 70000, 9])
    whole = draw_weather(mean, 11.0, rain, rows, columns)
    some = np.array([4, 2])
    part = draw_weather(mean[:, some], 11.0, rain[:, some], rows[some], columns[some])
    for name in ("minimum", "maximum", "rain"):
        assert np.array_equal(getattr(whole, name)[..., some], getattr(part, name))
    # neighbours, and (0, 1) and (1, 0), differ; so does another seed
    same = draw_weather(mean[:, [0, 0, 0]], 11.0, rain[:, :3], rows[:3], columns[:3])
    assert len({same.minimum[..., i].tobytes() for i in range(3)}) == 3
    other = draw_weather(mean[:, some], 11.0, rain[:, some], rows[some], columns[some], WeatherSettings(seed=1))
    assert not np.array_equal(other.minimum, part.minimum)
    # a scenario meets the same weather
    warm = draw_weather(mean[:, some] + 3.0, 11.0, rain[:, some], rows[some], columns[some])
    assert (warm.minimum - part.minimum) == pytest.approx(3.0, abs=1e-4)


def test_smooth_curve_alone_freezes_weeks_later():
    climate = ILLINOIS[:, None], 11.0, RAIN[:, None], np.array([0]), np.array([0])
    smooth = draw_weather(*climate, WeatherSettings(years=40, daily_sd=0.0))
    drawn = draw_weather(*climate, WeatherSettings(years=40))
    first = [heat_units(w.minimum, w.maximum, w.rain).median("freeze")[0] for w in (smooth, drawn)]
    assert first[0] - first[1] > 10


def test_cells_without_climate_stay_empty():
    mean = np.stack([ILLINOIS, np.where(np.arange(12) == 3, np.nan, ILLINOIS)], 1)
    drawn = draw_weather(mean, 11.0, np.stack([RAIN, RAIN], 1), np.arange(2), np.arange(2), WeatherSettings(years=2))
    assert np.isfinite(drawn.minimum[..., 0]).all() and np.isnan(drawn.minimum[..., 1]).all()
    assert np.isnan(drawn.rain[..., 1]).all()


def test_changes_are_capped_and_dry_months_make_no_flood():
    observed = np.array([100.0, 100.0, 100.0, 0.0])
    baseline, future = np.array([50.0, 50.0, 0.0, 50.0]), np.array([75.5, 0.0, 200.0, 500.0])
    changed = change_monthly(observed, baseline, future, "ratio")
    assert changed == pytest.approx([150.0, 20.0, 500.0, 0.0])
    assert change_monthly(observed, baseline, future, "difference") == pytest.approx([125.5, 50.0, 300.0, 450.0])
    with pytest.raises(AgriClipError, match="'difference' or 'ratio'"):
        change_monthly(observed, baseline, future, "factor")


def test_bioclim_change_moves_both_quarters_by_their_differences():
    mean = np.array([1, 2, 5, 11, 17, 22, 25, 24, 20, 13, 6, 3.0])[:, None]
    rain = np.full((12, 1), 100.0)
    baseline, future = np.array([[23.0], [2.0], [1199.0]]), np.array([[28.0], [4.0], [599.0]])
    warm, wet = bioclim_change(mean, rain, baseline, future)
    order = mean[:, 0].argsort()
    change = (warm - mean)[:, 0]
    assert change[order[-3:]].mean() == pytest.approx(5.0)
    assert change[order[:3]].mean() == pytest.approx(2.0)
    assert (np.diff(change[order]) > 0).all()
    assert wet == pytest.approx(50.0)
    tied = np.full((12, 1), 10.0)  # all months alike: each gets the same
    assert np.ptp(bioclim_change(tied, rain, baseline, future)[0]) == 0.0
    with pytest.raises(AgriClipError, match="bio10, bio11 and bio12"):
        bioclim_change(mean, rain, baseline[:2], future[:2])


@pytest.mark.parametrize(
    ("values", "quantity", "message"),
    [
        (ILLINOIS[:11], "temperature", "in place of 12 months"),
        (ILLINOIS + 273.15, "temperature", "look like kelvin"),
        (ILLINOIS * 10, "temperature", "tenths of a degree"),
        (-RAIN, "rain", "totals in mm"),
        (RAIN / 1000, "rain", "metres or a rate"),
    ],
)
def test_units_that_look_wrong_are_refused(values, quantity, message):
    with pytest.raises(AgriClipError, match=message):
        check_monthly(values, quantity, "file.tif", whole=True)


def test_a_desert_is_no_unit_error_and_settings_are_checked():
    check_monthly(np.full((12, 3), 0.5), "rain", "a band of rows")
    with pytest.raises(AgriClipError, match="diurnal range"):
        draw_weather(ILLINOIS[:, None], 30.0, RAIN[:, None], np.array([0]), np.array([0]))
    for wrong in ({"years": 0}, {"persistence": 1.0}, {"wet_day_rain": 0.0}, {"daily_sd": -1.0}):
        with pytest.raises(AgriClipError):
            WeatherSettings(**wrong)
