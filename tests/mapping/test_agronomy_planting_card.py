"""The planting-window card: dates, years in ten, the sentence, and the picture."""

import json

import numpy as np
import pytest

from mapping.agronomy.figures import planting_window_figure
from mapping.agronomy.heat_units import HeatUnitRule, heat_units
from mapping.agronomy.planting_card import date_of, planting_card, write_card
from processing.errors import AgriClipError


def years_of(ok, bad, **rule):
    """Years of 25 degC from April to October, ripe on day 142; bad ones freeze on 20 June."""
    years = ok + bad
    mean = np.full((years, 365, 2), 25.0)
    mean[:, :90] = mean[:, 304:] = 5.0
    low, high, rain = mean - 5.0, mean + 5.0, np.full(mean.shape, 3.0)
    low[:, 299] = -3.0
    low[ok:, 170] = -3.0
    low[..., 1] = np.nan
    return heat_units(low, high, rain, HeatUnitRule(**rule))


def test_dates():
    assert [date_of(d) for d in (1, 31, 32, 59, 60, 172, 365)] == [
        "1 January", "31 January", "1 February", "28 February", "1 March", "21 June", "31 December",
    ]  # fmt: skip
    assert date_of(171.5) == "21 June"
    assert [date_of(d, "south") for d in (1, 184, 185, 365)] == ["1 July", "31 December", "1 January", "30 June"]
    for day in (0, 366):
        with pytest.raises(AgriClipError, match="does not lie in a year"):
            date_of(day)


def test_card_of_a_good_place():
    card = planting_card(years_of(8, 2), place="Princeton", scenario="2050")
    assert (card.years, card.years_in_ten, card.suitable, card.limiting_class) == (10, 8.0, True, 1)
    assert (card.wheat_ripe.median, card.sowing.median, card.freeze.median) == (142, 149, 300)
    assert card.freeze.low == pytest.approx(np.percentile([171] * 2 + [300] * 8, 10))
    assert card.sentence == (
        "Wheat is ripe about 22 May, soybean is sown about 29 May and the first killing freeze comes about "
        "27 October; both crops are harvested in 8 years in ten, and in the others too few days are left before "
        "the killing freeze: double-cropping is a fair bet here."
    )
    text = card.text()
    for part in ("Princeton (2050, 10 years)", "22 May", "27 October", "151 d", "2,265 degC d", "8 years in 10"):
        assert part in text
    assert "\x1b" not in text
    told = json.loads(json.dumps(card.as_dict()))
    assert told["sowing"]["dates"] == ["29 May", "29 May", "29 May"] and told["degree_days"]["median"] == 2265.0


def test_card_of_bad_places():
    risky = planting_card(years_of(5, 5))
    assert (risky.years_in_ten, risky.suitable, risky.limiting_class) == (5.0, False, 4)
    assert "5 years in ten" in risky.sentence and risky.sentence.endswith("double-cropping is not safe here.")
    hopeless = planting_card(years_of(10, 0, soy_heat=2300.0))
    assert "harvested in no year, because too little warmth is left for soybean after wheat" in hopeless.sentence
    unripe = planting_card(years_of(10, 0, wheat_heat=9000.0))
    assert unripe.wheat_ripe is None and unripe.sentence.startswith("Wheat does not ripen in time")
    assert "never" in unripe.text() and unripe.as_dict()["wheat_ripe"] is None
    mild = planting_card(years_of(10, 0, killing_freeze=-20.0))
    assert mild.freeze is None and "no killing freeze comes before the year ends" in mild.sentence
    assert "harvested in every year: " in mild.sentence and "none" in mild.text()
    with pytest.raises(AgriClipError, match="no climate data"):
        planting_card(years_of(3, 0), 1, place="the lake")
    with pytest.raises(AgriClipError, match="no cell 2"):
        planting_card(years_of(3, 0), 2)


def test_card_files(tmp_path):
    result = years_of(6, 4)
    card = planting_card(result, place="a place")
    assert write_card(card, tmp_path / "cards/a.txt").read_text().startswith("Planting window: a place")
    png = planting_window_figure(result, card, tmp_path / "a.png")
    assert png.read_bytes()[:4] == b"\x89PNG" and png.stat().st_size > 5000
    for rule in ({"wheat_heat": 9000.0}, {"killing_freeze": -20.0}):
        odd = years_of(1, 0, **rule)
        planting_window_figure(odd, planting_card(odd), tmp_path / "odd.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "cards", "odd.png"]
    with pytest.raises(AgriClipError, match="10 years and the result of 3"):
        planting_window_figure(years_of(3, 0), card, tmp_path / "b.png")
