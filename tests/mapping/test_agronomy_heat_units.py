"""The heat-unit rule: one year walked through by hand, its options, and what it refuses."""

import numpy as np
import pytest

from mapping.agronomy.heat_units import HeatUnitRule, growing_degree_days, heat_units
from processing.errors import AgriClipError


def plain_year(years=1, cells=1):
    """Winter at 5 degC (31 Oct - 31 Mar), 25 degC between; one cold night on day 300; 3 mm of rain a day."""
    mean = np.full(365, 25.0)
    mean[:90] = 5.0
    mean[304:] = 5.0
    low, high = mean - 5.0, mean + 5.0
    low[299] = -2.2
    rain = np.full(365, 3.0)
    return tuple(np.tile(v[None, :, None], (years, 1, cells)).astype(np.float32) for v in (low, high, rain))


def test_one_year_by_hand():
    low, high, rain = plain_year()
    result = heat_units(low, high, rain)
    # 90 days x 5 = 450; the other 1300 take 52 days of 25: ripe on day 142, sown a week later
    assert result.wheat_ripe[0, 0] == 142
    assert result.sowing[0, 0] == 149
    assert result.freeze[0, 0] == 300
    assert result.days_left[0, 0] == 151
    # each day has minimum 20 and maximum 30: 15 heat units above 10
    assert result.degree_days[0, 0] == pytest.approx(151 * 15)
    # 1 January to 31 March: 90 days at 5; from 31 October to 31 December (own autumn stands in): 61 days at 5
    assert result.chilling[0, 0] == 90 + 61
    assert result.coldest[0, 0] == pytest.approx(-2.2)
    assert result.rain[0, 0] == pytest.approx(3 * 365)
    assert not result.dry_sowing[0, 0]
    assert result.probability.tolist() == [1.0]
    assert result.limiting_factor().tolist() == [1]


def test_freeze_is_at_or_below_and_after_sowing():
    low, high, rain = plain_year()
    low[0, 148] = -10.0  # on the day of sowing itself: not after it
    low[0, 299] = -2.1  # not yet killing
    result = heat_units(low, high, rain)
    assert np.isnan(result.freeze[0, 0])
    # the mean of the two coldest nights moved the year's heat, so only the length is checked
    assert result.days_left[0, 0] == 365 - (result.sowing[0, 0] - 1)


def test_sowing_waits_for_rain_and_then_is_dry():
    low, high, rain = plain_year()
    rain[:] = 0.0
    rain[0, 152] = 10.0  # day 153, four days after the earliest sowing on day 149
    waited = heat_units(low, high, rain)
    assert waited.sowing[0, 0] == 153
    assert not waited.dry_sowing[0, 0]
    rain[0, 152] = 9.9
    dry = heat_units(low, high, rain)
    assert dry.sowing[0, 0] == 149 + 10
    assert dry.dry_sowing[0, 0]
    rain[0, 152], rain[0, 140] = 0.0, 10.0  # day 141: within the ten days up to day 149 (140-149)
    assert heat_units(low, high, rain).sowing[0, 0] == 149
    rain[0, 140], rain[0, 138] = 0.0, 10.0  # day 139: a day too early
    assert heat_units(low, high, rain).dry_sowing[0, 0]


def test_each_condition_is_the_limiting_factor_once():
    low, high, rain = plain_year(years=4, cells=6)
    low[:, 20, 1] = -25.0  # winter kill
    low[:, 170, 3] = -3.0  # 22 days after sowing: 330 of 1150 heat units, but only 22 of 90 days
    rain[:, :, 4] = 2.0  # 730 mm
    low[:, :, 5] = np.nan
    result = heat_units(low, high, rain, HeatUnitRule())
    assert result.probability[:5].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert np.isnan(result.probability[5])
    factor = result.limiting_factor()
    assert factor.dtype == np.uint8
    assert factor.tolist() == [1, 2, 1, 4, 5, 0]
    # 151 days of 15 heat units are 2265: too few for a crop that needs 2300, in a season long enough
    greedy = heat_units(low, high, rain, HeatUnitRule(soy_heat=2300.0))
    assert greedy.limiting_factor()[[0, 2]].tolist() == [3, 3]
    assert greedy.shortfalls[1, :, 0] == pytest.approx(1 - 2265 / 2300, abs=1e-6)
    watered = heat_units(low, high, rain, irrigated=np.array([False] * 4 + [True, False]))
    assert watered.limiting_factor()[4] == 1


def test_limiting_by_count_and_by_margin_can_differ():
    low, high, rain = plain_year(years=10)
    rain[:6] = 2.0  # six years miss the rain by 20 of 750 mm
    low[6:, 150] = -3.0  # four years freeze two days after sowing, and miss 88 of 90 days
    result = heat_units(low, high, rain)
    assert result.probability[0] == 0.0
    assert result.limiting_factor("count")[0] == 5
    assert result.limiting_factor("margin")[0] == 4
    with pytest.raises(AgriClipError, match="'count' or 'margin'"):
        result.limiting_factor("most")


def test_wheat_that_never_ripens():
    low, high, rain = plain_year()
    result = heat_units(low - 22.0, high - 22.0, rain)
    assert np.isnan(result.wheat_ripe[0, 0]) and np.isnan(result.sowing[0, 0])
    assert result.days_left[0, 0] == 0 and result.degree_days[0, 0] == 0
    assert result.probability[0] == 0


def test_probability_counts_years_and_autumn_is_of_the_year_before():
    low, high, rain = plain_year(years=4)
    low[1, 310] = -30.0  # November of the second year kills the wheat that is harvested in the third
    result = heat_units(low, high, rain)
    assert result.survives[:, 0].tolist() == [True, True, False, True]
    assert result.probability[0] == 0.75
    assert result.limiting_factor()[0] == 1  # three of four years are enough
    assert result.median("days_left")[0] == 151


def test_two_methods_of_heat_units():
    low, high = np.array([5.0, 15.0, 20.0]), np.array([25.0, 25.0, 40.0])
    assert growing_degree_days(low, high, 10.0, 30.0, method=1).tolist() == [5.0, 10.0, 20.0]
    assert growing_degree_days(low, high, 10.0, 30.0, method=2).tolist() == [7.5, 10.0, 15.0]
    cold = np.full((1, 365, 1), 0.0), np.full((1, 365, 1), 20.0), np.full((1, 365, 1), 3.0)
    rule = HeatUnitRule(wheat_heat=1750)
    # ripe on day 175, sown on day 182: 184 days to the end of the year
    first = heat_units(*cold, HeatUnitRule(gdd_method=1))
    second = heat_units(*cold, rule)
    assert first.sowing[0, 0] == second.sowing[0, 0] == 182
    assert first.degree_days[0, 0] == 0.0
    assert second.degree_days[0, 0] == pytest.approx(184 * 5.0)


def test_southern_year_begins_in_july():
    low, high, rain = plain_year(years=2)
    turned = [np.roll(v, 181, axis=1) for v in (low, high, rain)]  # what falls on 1 January now falls on 1 July
    north = heat_units(low, high, rain)
    south = heat_units(*turned, HeatUnitRule(hemisphere="south"))
    for name in ("wheat_ripe", "sowing", "freeze", "degree_days", "chilling"):
        assert np.array_equal(getattr(north, name), getattr(south, name)), name
    with pytest.raises(AgriClipError, match="1 cells do not lie in the northern hemisphere.*'south'"):
        heat_units(low, high, rain, latitude=np.array([-30.0]))


def test_cells_and_years_are_independent():
    rng = np.random.default_rng(0)
    low, high, rain = plain_year(years=3, cells=5)
    noise = rng.normal(0, 4, low.shape).astype(np.float32)
    low, high = low + noise, high + noise
    rain = rng.gamma(0.3, 8.0, rain.shape).astype(np.float32)
    whole = heat_units(low, high, rain)
    for cell in range(5):
        part = slice(cell, cell + 1)
        alone = heat_units(low[..., part], high[..., part], rain[..., part])
        for name in ("wheat_ripe", "sowing", "freeze", "days_left", "degree_days"):
            assert np.array_equal(getattr(whole, name)[:, part], getattr(alone, name), equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, c: (a + 273.15, b + 273.15, c), "look like kelvin"),
        (lambda a, b, c: (b, a, c), "swapped"),
        (lambda a, b, c: (a, b, -c), "negative"),
        (lambda a, b, c: (a[:, :360], b[:, :360], c[:, :360]), "365 days, not 360"),
        (lambda a, b, c: (a[0], b[0], c[0]), "one shape"),
        (lambda a, b, c: (a, b, c[:, :, :0]), "one shape"),
    ],
)
def test_bad_weather_is_refused(change, message):
    with pytest.raises(AgriClipError, match=message):
        heat_units(*change(*plain_year()))


def test_rule_says_units_and_sources_and_refuses_nonsense():
    table = {name: (value, unit, source) for name, value, unit, source in HeatUnitRule().table()}
    assert table["wheat_heat"][:2] == (1750.0, "degC day")
    assert all(unit and source for _, unit, source in table.values())
    for wrong in (
        {"gdd_method": 3},
        {"soy_cap": 5.0},
        {"hemisphere": "east"},
        {"soy_heat": 0.0},
        {"sowing_delay": -1},
    ):
        with pytest.raises(AgriClipError):
            HeatUnitRule(**wrong)
