"""Numbers and units in report text."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.numbers_agriclip import (
    CANONICAL_UNITS,
    NUM_TOKEN,
    canonical_unit,
    canonicalise,
    find_measurements,
    to_canonical,
)


def values(text: str) -> list[float]:
    return canonicalise(text)[1]


def test_inches_and_millimetres_are_the_same_number() -> None:
    assert canonicalise("15.75 in") == canonicalise("400 mm") == ("[NUM] mm", [400.0])
    assert canonicalise("59 F") == canonicalise("15 C") == ("[NUM] degC", [15.0])


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("1,168 mm", "mm", 1168.0),
        ("1\u202f168 mm", "mm", 1168.0),
        ("1 168 mm", "mm", 1168.0),
        ("\u221212.5 °C", "degC", -12.5),
        ("-4 F", "degC", -20.0),
        ("300 K", "degC", 27.0),
        ("1.5e3 mm", "mm", 1500.0),
        (".5 m", "m", 0.5),
        ("1 1/2 inches", "mm", 38.0),
        ("½ in", "mm", 13.0),
        ('3.8" of rain', "mm", 97.0),
        ("12 cm", "mm", 120.0),
        ("500 ft", "m", 152.4),
        ("3 mi", "m", 4828.0),
        ("120 acres", "ha", 48.6),
        ("a 2-acre field", "ha", 0.8),
        ("55 bu/ac", "kg/ha", 3699.0),
        ("100 pounds per acre", "kg/ha", 112.0),
        ("3.5 t/ha", "kg/ha", 3500.0),
        ("3.5 Mg ha-1", "kg/ha", 3500.0),
        ("20 mph", "m/s", 9.0),
        ("36 km/h", "m/s", 10.0),
        ("12 %", "%", 12.0),
        ("12 percent", "%", 12.0),
        ("131 days", "day", 131.0),
        ("2 weeks", "day", 14.0),
        ("1,560 C.d", "degC day", 1560.0),
        ("1800 degree days F", "degC day", 1000.0),
        ("1,560 growing degree days", "degC day", 1560.0),
        ("2.5 in/yr", "mm/year", 64.0),
        ("212 mm/m", "mm/m", 212.0),
        ("1013 hPa", "kPa", 101.3),
        ("6.5 pH", "pH", 6.5),
    ],
)
def test_units(text: str, unit: str, value: float) -> None:
    (found,) = find_measurements(text)
    assert (found.canonical_unit, found.canonical_value) == (unit, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("+9 F", 5.0),
        ("9 F warmer", 5.0),
        ("9 °F above normal", 5.0),
        ("warmed by 9 F", 5.0),
        ("an increase of 9 F", 5.0),
        ("an anomaly of -9 F", -5.0),
        ("a diurnal range of 18 F", 10.0),
        ("2 K", 2.0),
        ("+2 C", 2.0),
        ("temperatures rise to 59 F", 15.0),
        ("above 59 F", 15.0),
        ("down to 5 F", -15.0),
    ],
)
def test_a_change_of_temperature_is_not_a_level(text: str, value: float) -> None:
    assert values(text) == [value]


def test_ranges_share_unit_and_change() -> None:
    assert canonicalise("10-15 mm") == ("[NUM] mm-[NUM] mm", [10.0, 15.0])
    assert canonicalise("50 to 59 F") == ("[NUM] degC to [NUM] degC", [10.0, 15.0])
    assert canonicalise("between 50 and 59 F")[1] == [10.0, 15.0]
    assert values("warmed by 9-18 F") == [5.0, 10.0]
    assert values("9 F to 18 F warmer") == [5.0, 10.0]
    assert values("10 C-15 C") == [10.0, 15.0]
    assert values("-5 to -3 C") == [-5.0, -3.0]
    assert canonicalise("model range 1.1 to 2.3") == ("model range [NUM] to [NUM]", [1.1, 2.3])
    assert canonicalise("9 of 10 years") == ("[NUM] of [NUM] year", [9.0, 10.0])


@pytest.mark.parametrize("text", ["3.5 in the north", "5 in June", "30 in 2050", "3 in Iowa", "20 in and around town"])
def test_in_as_a_preposition(text: str) -> None:
    assert find_measurements(text)[0].canonical_unit == "1"
    assert " in " in canonicalise(text)[0]


@pytest.mark.parametrize(
    "text", ["15 in", "15 in.", "15 in of rain", "15 inches", "15 in. of rain", "15 in, then", "15in"]
)
def test_in_as_inches(text: str) -> None:
    assert values(text) == [381.0]


@pytest.mark.parametrize(
    "text",
    [
        "SSP2-4.5 and RCP8.5",
        "2041-2060",
        "in 2050",
        "by June 2050",
        "Oct 15",
        "sown on 15 October 2020",
        "October 3rd",
        "2024-06-30",
        "6/30/2024 at 8:30",
        "C3 crop, B04, bio12, B8A",
        "GFDL-ESM4, CMIP6",
        "Landsat 8",
        "the 1990s, the 3rd",
        "version 5.23.0",
    ],
)
def test_what_is_not_a_measurement(text: str) -> None:
    assert canonicalise(text) == (text, [])


def test_numbers_with_units_after_months_and_years_are_measurements() -> None:
    assert values("June 402 mm") == [402.0]
    assert values("1850-2050 GDD") == [1850.0, 2050.0]
    assert values("SPEI August -0.3") == [-0.3]


def test_a_bushel_weighs_what_its_crop_weighs() -> None:
    assert values("soybean 55 bu/ac and corn 180 bu/ac") == [3699.0, 11298.0]
    assert canonicalise("180 bu/ac corn") == ("[NUM] kg/ha corn", [11298.0])
    # The crop of another sentence is not this one's.
    assert values("Corn was poor. Yield 55 bu/ac") == [3699.0]
    assert to_canonical(1, "bu/ac corn") == (pytest.approx(62.77, abs=0.01), "kg/ha")


def test_a_report() -> None:
    text = (
        "[HEAT] mean annual temperature 14.1 C (+1.6). Wheat heat units (base 0 C, from 1 Jan) reach 1750 on day 163 "
        "(9 days earlier). [WATER] rain 1,168 mm/yr (+3 %), June-September 402 mm; pH 6.5."
    )
    canonical, found = canonicalise(text)
    assert found == [14.1, 1.6, 0.0, 1750.0, 163.0, 9.0, 1168.0, 3.0, 402.0, 6.5]
    assert "from 1 Jan" in canonical
    assert canonical.endswith("rain [NUM] mm/year ([NUM] %), June-September [NUM] mm; pH [NUM].")


def test_a_literal_slot_is_a_missing_number() -> None:
    text, found = canonicalise("rain [NUM] mm, 5 mm")
    assert text == "rain [NUM] mm, [NUM] mm"
    assert math.isnan(found[0])
    assert found[1] == 5.0


def test_rounding_keeps_the_precision_written() -> None:
    assert to_canonical(15.75, "in", "15.75") == (400.0, "mm")
    assert to_canonical(15.7500, "in", "15.7500") == (400.05, "mm")
    assert to_canonical(15.75, "in")[0] == pytest.approx(400.05)
    assert to_canonical(400, "mm", "400") == (400.0, "mm")
    assert to_canonical(2, "delta_degF")[0] == pytest.approx(2 / 1.8)


def test_canonical_units_and_suggestions() -> None:
    assert canonical_unit("degF") == canonical_unit("delta_degF") == canonical_unit("kelvin") == "degC"
    assert canonical_unit("") == "1"
    assert canonical_unit("W m-2") == "W/m2"
    assert {canonical_unit(unit) for unit in CANONICAL_UNITS} == set(CANONICAL_UNITS)
    with pytest.raises(ValueError, match="did you mean 'millimeters'"):
        canonical_unit("milimeters")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_and_slots_match_values(text: str) -> None:
    canonical, found = canonicalise(text)
    items = find_measurements(text)
    assert canonical.count(NUM_TOKEN) == len(found) == len(items)
    assert all(a.end <= b.start for a, b in zip(items, items[1:], strict=False))
    # Text outside the measurements is untouched.
    position, kept = 0, []
    for item in items:
        kept.append(text[position : item.start])
        position = item.end
    assert all(piece in canonical for piece in [*kept, text[position:]])


@settings(max_examples=100, deadline=None)
@given(
    st.decimals(min_value=-5000, max_value=5000, places=2, allow_nan=False),
    st.sampled_from([unit for unit in CANONICAL_UNITS if unit not in ("1", "pH")]),
)
def test_canonical_numbers_are_read_back_exactly(number, unit: str) -> None:  # noqa: ANN001
    text, found = canonicalise(f"Sum {number} {unit}; end.")
    assert (text, found) == (f"Sum [NUM] {unit}; end.", [float(number)])


@settings(max_examples=200, deadline=None)
@given(
    st.decimals(min_value=0, max_value=999, places=1), st.sampled_from(["in", "degF", "lb/ac", "acres", "mph", "ft"])
)
def test_conversion_errs_by_at_most_a_quarter_digit(number, unit: str) -> None:  # noqa: ANN001
    exact, _ = to_canonical(float(number), unit)
    one_digit = to_canonical(float(number) + 0.1, unit)[0] - exact
    rounded, _ = to_canonical(float(number), unit, str(number))
    assert abs(rounded - exact) <= one_digit / 4 * 1.001
