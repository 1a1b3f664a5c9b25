"""The envelope: plateaus, the law of the minimum, and one season after the other."""

from dataclasses import replace

import numpy as np
import pytest

from mapping.agronomy.envelope import (
    ENVELOPE_FACTORS,
    SOYBEAN,
    WINTER_WHEAT,
    CropNeeds,
    SequenceRule,
    crop_envelope,
    sequence_envelope,
    trapezoid,
)
from processing.errors import AgriClipError

RAIN = np.full((12, 1), 75.0)  # 900 mm: within both optima
#: A year of which both crops ask nothing better: mild winter, spring at 19, summer at 26 degC.
KIND = np.array([6, 8, 15, 17, 19, 22, 26, 26, 25, 22, 14, 8.0])[:, None]


def test_trapezoid_plateaus():
    values = np.array([9.0, 10.0, 15.0, 20.0, 25.0, 33.0, 35.5, 38.0, 40.0, np.nan])
    expected = [0, 0, 0.5, 1, 1, 1, 0.5, 0, 0, np.nan]
    assert trapezoid(values, (10, 20, 33, 38)) == pytest.approx(expected, nan_ok=True)
    assert trapezoid(np.array([1.0, 2.0, 3.0]), (2, 2, 2, 2)).tolist() == [0, 1, 0]


def test_constants_are_those_of_the_data_sheets():
    assert SOYBEAN.temperature == (10, 20, 33, 38) and SOYBEAN.rain == (450, 600, 1500, 1800)
    assert WINTER_WHEAT.temperature == (5, 15, 23, 27) and WINTER_WHEAT.rain == (300, 750, 900, 1600)
    assert SOYBEAN.steps == 7 and WINTER_WHEAT.steps == 8


def test_one_crop_takes_the_best_start_and_the_lowest_factor():
    mean = np.full((12, 3), 25.0)
    mean[:, 1] = 15.0  # half way up
    mean[:8, 2] = 0.0  # warm from September to December only
    rain = np.repeat(RAIN, 3, 1)
    result = crop_envelope(mean, mean - 5, rain, SOYBEAN)
    assert result.score[:2] == pytest.approx([1.0, 0.5])
    assert result.limiting.tolist()[:2] == [1, 5]
    # of eight warm half-months the first and the last are at 18.75 degC, and seven are needed
    assert result.score[2] == pytest.approx(0.875) and 9.0 <= result.start[2] <= 9.5
    dry = crop_envelope(mean, mean - 5, rain * 0.7, SOYBEAN)  # 630 -> 450..600 passed
    assert dry.score[0] == pytest.approx(1.0)
    arid = crop_envelope(mean, mean - 5, np.full((12, 3), 525 / 12), SOYBEAN)
    assert arid.score[0] == pytest.approx(0.5) and arid.limiting[0] == 7
    assert crop_envelope(mean, mean - 5, np.full((12, 3), 525 / 12), SOYBEAN, irrigated=True).score[0] == 1.0
    frost = crop_envelope(mean, np.full((12, 3), 1.0), rain, SOYBEAN)  # 1.0 is below -2.2 + 4
    assert frost.score.tolist() == [0, 0, 0] and np.isnan(frost.start).all() and set(frost.limiting) == {6}


def test_rain_of_a_season():
    mean = np.full((12, 1), 25.0)
    season = replace(SOYBEAN, rain_period="season")
    wet = np.zeros((12, 1))
    wet[5:9] = 160.0  # June to September
    result = crop_envelope(mean, mean - 5, wet, season)
    # 3.5 months within the four: at most 6.5 or 7 half-months of about 80 mm
    assert result.score[0] == pytest.approx((result_rain(wet, result.start[0], 7) - 450) / 150, abs=1e-5)
    assert 5.5 <= result.start[0] <= 7.0
    assert crop_envelope(mean, mean - 5, RAIN, season).score[0] == 0.0  # 262 mm in 3.5 months


def result_rain(monthly, start, steps):
    """Rain of half-months, by hand: each half is three parts its month and one part its neighbour."""
    halves = []
    for month in range(12):
        for neighbour in (month - 1, (month + 1) % 12):
            halves.append(0.5 * (0.75 * monthly[month, 0] + 0.25 * monthly[neighbour, 0]))
    first = int(round((start - 1.0) * 2))
    return sum(halves[(first + i) % 24] for i in range(steps))


def test_sequence_fits_in_one_kind_year_and_crops_do_not_overlap():
    result = sequence_envelope(KIND, KIND - 5, RAIN)
    assert result.score[0] > 0.8
    wheat, soy = result.start[0], result.second_start[0]
    assert (soy - wheat) % 12 >= WINTER_WHEAT.steps / 2
    assert (wheat - soy) % 12 >= SOYBEAN.steps / 2 + 3.0  # three months of rest
    # never better than either crop alone
    for crop in (SOYBEAN, WINTER_WHEAT):
        assert result.score[0] <= crop_envelope(KIND, KIND - 5, RAIN, crop).score[0] + 1e-6


def test_sequence_falls_to_the_north_and_to_the_winterless_south():
    cold, hot = KIND - 9.0, np.full((12, 1), 26.0)
    siberia = KIND - np.where(np.arange(12)[:, None] % 11 < 2, 35.0, 0.0)  # December to February below -16
    score = [sequence_envelope(c, c - 5, RAIN) for c in (KIND, cold, hot, siberia)]
    assert score[0].score > score[1].score and score[2].score[0] == 0.0
    assert score[1].limiting[0] in (2, 5)
    assert score[2].limiting[0] == 3 and score[3].score[0] == 0.0 and score[3].limiting[0] == 3
    assert set(np.concatenate([s.limiting for s in score])) <= set(ENVELOPE_FACTORS)


def test_sequence_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    cells = 4
    mean = KIND + rng.normal(0, 2, (12, cells))
    rain = rng.uniform(40, 90, (12, cells))
    result = sequence_envelope(mean, mean - 6, rain)

    def halves(months):
        return np.array([0.75 * months[m] + 0.25 * months[n % 12] for m in range(12) for n in (m - 1, m + 1)])

    for cell in range(cells):
        warm, low = halves(mean[:, cell]), halves(mean[:, cell] - 6)
        best = 0.0
        for first in range(24):
            for second in range(first + 8, first + 24 - 7 - 6 + 1):
                grown = [i % 24 for i in range(first, first + 8)]
                beans = [i % 24 for i in range(second, second + 7)]
                rest = [i % 24 for i in range(second + 7, first + 24)]
                score = min(
                    trapezoid(warm[grown], WINTER_WHEAT.temperature).min(),
                    trapezoid(warm[beans], SOYBEAN.temperature).min(),
                    trapezoid(rain[:, cell].sum(), WINTER_WHEAT.rain),
                    trapezoid(rain[:, cell].sum(), SOYBEAN.rain),
                    float(low[grown + rest].min() >= -16.0),
                    float(low[beans].min() >= 1.8),
                    np.clip((13 - warm[rest].min()) / 4, 0, 1),
                )
                best = max(best, score)
        assert result.score[cell] == pytest.approx(best, abs=1e-6)


def test_missing_cells_and_bad_input():
    holes = np.concatenate([KIND, KIND], axis=1)
    holes[3, 1] = np.nan
    result = sequence_envelope(holes, holes - 5, np.repeat(RAIN, 2, 1))
    assert np.isfinite(result.score[0]) and np.isnan(result.score[1]) and result.limiting[1] == 0
    with pytest.raises(AgriClipError, match="kelvin"):
        sequence_envelope(KIND + 273.15, KIND, RAIN)
    with pytest.raises(AgriClipError, match="12 months"):
        crop_envelope(KIND[:6], KIND[:6], RAIN[:6], SOYBEAN)
    with pytest.raises(AgriClipError, match="four ascending"):
        CropNeeds("oats", (10, 5, 20, 30), (1, 2, 3, 4), 0.0, 90)
    with pytest.raises(AgriClipError, match="do not fit in one year"):
        SequenceRule(first=replace(WINTER_WHEAT, season_days=250))
