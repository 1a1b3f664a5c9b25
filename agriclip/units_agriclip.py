"""Units of the field and their conversion to one canonical unit each.

A unit may be written in any usual way ("lb/ac", "pounds per acre", "lb ac-1"); an unknown one is an error with the
nearest known spelling. A converted number keeps the precision it was written with and no more, so that "15.75 in" and
"400 mm" are the same number. Levels and changes of temperature are different units: `degF` and `delta_degF`.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

_ACRE = 0.40468564224  # ha
_POUND = 0.45359237  # kg
_INCH = 25.4  # mm
# Legal weights of a bushel in pounds (USDA): soybean and wheat 60, maize, sorghum and rye 56, barley 48, oats 32.
BUSHEL_POUNDS = {
    "soybean": 60,
    "wheat": 60,
    "corn": 56,
    "maize": 56,
    "sorghum": 56,
    "rye": 56,
    "barley": 48,
    "oats": 32,
}


@dataclass(frozen=True)
class _Unit:
    canonical: str
    factor: float = 1.0
    offset: float = 0.0  # canonical = value * factor + offset


def _plural(*words: str) -> list[str]:
    return [form for word in words for form in (word, word + "s")]


# Spellings of simple units; the first is the name used for the unit in messages and in `Measurement.unit`.
_NAMES: dict[str, list[str]] = {
    "mm": ["mm", *_plural("millimeter", "millimetre")],
    "cm": ["cm", *_plural("centimeter", "centimetre")],
    "m": ["m", *_plural("meter", "metre")],
    "km": ["km", *_plural("kilometer", "kilometre")],
    "in": ["in", "in.", "inch", "inches", '"', "″"],
    "ft": ["ft", "ft.", "foot", "feet", "′"],
    "yd": ["yd", *_plural("yard")],
    "mi": ["mi", *_plural("mile")],
    "kg": ["kg", *_plural("kilogram")],
    "g": ["g", *_plural("gram")],
    "lb": ["lb", "lb.", "lbs", *_plural("pound")],
    "t": ["t", *_plural("tonne", "metric ton")],
    "Mg": ["Mg", *_plural("megagram")],
    "bu": ["bu", "bu.", *_plural("bushel")],
    "ha": ["ha", *_plural("hectare")],
    "ac": ["ac", "ac.", *_plural("acre")],
    "m2": ["m2", "m²", "m^2", "sq m", *_plural("square meter", "square metre")],
    "km2": ["km2", "km²", "km^2", "sq km", *_plural("square kilometer", "square kilometre")],
    "day": ["day", "days", "d"],
    "week": ["week", "weeks", "wk"],
    "month": ["month", "months", "mo"],
    "year": ["year", "years", "yr", "yrs", "a", "annum"],
    "hour": ["hour", "hours", "h", "hr", "hrs"],
    "s": ["s", "sec", *_plural("second")],
}


def _per(numerator: str, denominator: str) -> list[str]:
    spellings = []
    for top in _NAMES[numerator]:
        for bottom in _NAMES[denominator]:
            spellings += [f"{top}/{bottom}", f"{top} per {bottom}"]
            if not bottom.endswith(("2", "²", ".")):
                spellings += [f"{top} {bottom}-1", f"{top} {bottom}^-1", f"{top} {bottom}⁻¹", f"{top} {bottom}−1"]
    if denominator == "m2":
        spellings += [f"{top} {bottom}" for top in _NAMES[numerator] for bottom in ("m-2", "m^-2", "m⁻²")]
    return spellings


_C = ["degC", "deg C", "deg_C", "°C", "° C", "º C", "ºC", "℃", "celsius", "degrees celsius", "degree celsius",
      "degrees C", "degree C", "degrees_C", "deg. C", "centigrade"]  # fmt: skip
_F = ["degF", "deg F", "deg_F", "°F", "° F", "º F", "ºF", "℉", "fahrenheit", "degrees fahrenheit",
      "degree fahrenheit", "degrees F", "degree F", "degrees_F", "deg. F"]  # fmt: skip
_DEGREE_DAYS = [*_plural("degree day", "degree-day", "growing degree day", "heat unit"), "GDD", "GDDs", "gdd"]


def _degree_days(scale: str, marks: list[str]) -> list[str]:
    spellings = [f"deg{scale} day", f"deg{scale} days", f"deg{scale} d", f"{scale}.d", f"{scale} d", f"{scale}·d"]
    spellings += [f"{mark}{join}{day}" for mark in marks for join in (" ", "-", "·", ".") for day in _NAMES["day"]]
    for name in _DEGREE_DAYS:
        spellings += [f"{name} {scale}", f"{name} ({scale})", f"{name} °{scale}", f"{name} (°{scale})"]
        spellings += [f"{scale} {name}", f"°{scale} {name}", f"GDD{scale}"]
    return spellings


def _build() -> dict[str, tuple[str, _Unit]]:
    """Map every spelling to the unit's name and its conversion."""
    table: dict[str, tuple[str, _Unit]] = {}

    def add(name: str, canonical: str, spellings: Iterable[str], factor: float = 1.0, offset: float = 0.0) -> None:
        for spelling in (name, *spellings):
            table.setdefault(spelling, (name, _Unit(canonical, factor, offset)))

    add("degC", "degC", _C)
    add("degF", "degC", _F, 1 / 1.8, -32 / 1.8)
    add("K", "degC", ["kelvin", "kelvins", "degK"], 1.0, -273.15)
    add("delta_degC", "degC", ["delta_C", "delta_K"])
    add("delta_degF", "degC", ["delta_F"], 1 / 1.8)
    add("C", "degC", [])
    add("F", "degC", [], 1 / 1.8, -32 / 1.8)
    add("degC day", "degC day", [*_degree_days("C", _C), *_DEGREE_DAYS])
    add("degF day", "degC day", _degree_days("F", _F), 1 / 1.8)
    for name, factor in (("mm", 1.0), ("cm", 10.0), ("in", _INCH)):
        add(name, "mm", _NAMES[name], factor)
        for period in ("year", "month", "day", "hour"):
            add(f"{name}/{period}", f"mm/{period}", _per(name, period), factor)
    for name, metres in (("m", 1.0), ("km", 1000.0), ("ft", 0.3048), ("yd", 0.9144), ("mi", 1609.344)):
        add(name, "m", _NAMES[name], metres)
    for top, millimetres in (("mm", 1.0), ("cm", 10.0), ("in", _INCH)):
        for bottom, metres in (("m", 1.0), ("ft", 0.3048)):
            add(f"{top}/{bottom}", "mm/m", _per(top, bottom), millimetres / metres)
    for name, hectares in (("ha", 1.0), ("ac", _ACRE), ("m2", 1e-4), ("km2", 100.0)):
        add(name, "ha", _NAMES[name], hectares)
    for name, kilograms in (("kg", 1.0), ("lb", _POUND), ("t", 1000.0), ("Mg", 1000.0)):
        add(name, "kg", _NAMES[name], kilograms)
        for area, hectares in (("ha", 1.0), ("ac", _ACRE)):
            add(f"{name}/{area}", "kg/ha", _per(name, area), kilograms / hectares)
    add("g/m2", "kg/ha", _per("g", "m2"), 10.0)
    add("kg/m2", "kg/m2", _per("kg", "m2"))
    for area, hectares in (("ac", _ACRE), ("ha", 1.0)):
        for crop, pounds in {"": 60, **BUSHEL_POUNDS}.items():
            spellings = [f"{spelling} {crop}".strip() for spelling in _per("bu", area)]
            add(f"bu/{area} {crop}".strip(), "kg/ha", spellings, pounds * _POUND / hectares)
    add("m/s", "m/s", _per("m", "s"))
    add("km/h", "m/s", [*_per("km", "hour"), "kmh", "kph"], 1 / 3.6)
    add("mph", "m/s", [*_per("mi", "hour")], 0.44704)
    add("knot", "m/s", ["knots", "kt", "kn"], 1852 / 3600)
    for name, kilopascals in (("kPa", 1.0), ("hPa", 0.1), ("mbar", 0.1), ("Pa", 0.001)):
        add(name, "kPa", ["mb"] if name == "mbar" else [], kilopascals)
    add("W/m2", "W/m2", ["W/m²", "W m-2", "W m^-2", "W/m^2", "W m⁻²"])
    add("MJ/m2/day", "W/m2", ["MJ/m²/day", "MJ m-2 day-1", "MJ m-2 d-1", "MJ/m2/d"], 1e6 / 86400)
    for name, days in (("day", 1.0), ("week", 7.0)):
        add(name, "day", _NAMES[name], days)
    for name in ("month", "year", "hour"):
        add(name, name, _NAMES[name])
    add("%", "%", ["percent", "per cent", "pct", "percentage points", "percentage point"])
    add("degree", "degree", ["degrees", "°", "deg", "arc degree", "arc_degree"])
    add("pH", "pH", ["pH units"])
    for name in ("dB", "g/kg", "mg/kg", "g/cm3", "cmol/kg", "dS/m", "ppm"):
        add(name, name, ["g/cm³", "g cm-3"] if name == "g/cm3" else [])
    add("1", "1", ["", "-", "unitless", "dimensionless", "index", "fraction", "ratio", "none", "count"])
    return table


UNITS = _build()
FOLDED = {spelling.lower(): entry for spelling, entry in reversed(UNITS.items())}
FOLDED["mg/kg"] = UNITS["mg/kg"]
CANONICAL_UNITS = tuple(dict.fromkeys(unit.canonical for _, unit in UNITS.values()))


def canonical_unit(unit: str) -> str:
    """Return the canonical unit that `unit` is converted to.

    Raises:
        ValueError: For an unknown unit; names the nearest known one.
    """
    return _lookup(unit)[1].canonical


def _lookup(unit: str) -> tuple[str, _Unit]:
    text = " ".join(str(unit).split())
    entry = UNITS.get(text) or FOLDED.get(text.lower())
    if entry is None:
        spellings = {spelling.lower(): spelling for spelling in reversed(UNITS)}
        near = difflib.get_close_matches(text.lower(), list(spellings), n=1, cutoff=0.5)
        hint = f"did you mean '{spellings[near[0]]}'?" if near else f"use one of: {', '.join(CANONICAL_UNITS)}."
        raise ValueError(f"Unknown unit '{unit}'; {hint}")
    return entry


def to_canonical(value: float, unit: str, written: str | None = None) -> tuple[float, str]:
    """Convert a number to its canonical unit.

    Args:
        value: The number.
        unit: Its unit in any spelling, e.g. `degF`, `in`, `bu/ac corn`; `delta_degF` for a change of temperature.
        written: The number as it was written, e.g. `15.75`. If given, a converted number is rounded to the fewest
            decimals that stay within a quarter of the last written digit; otherwise it is converted exactly.

    Returns:
        The value and the canonical unit.

    Raises:
        ValueError: For an unknown unit.
    """
    _, conversion = _lookup(unit)
    if conversion.factor == 1.0 and conversion.offset == 0.0:
        return float(value), conversion.canonical
    converted = value * conversion.factor + conversion.offset
    if not math.isfinite(converted):
        return converted, conversion.canonical
    if written is None:
        return float(f"{converted:.12g}"), conversion.canonical
    return _round_as_written(converted, _last_digit(written) * conversion.factor / 4), conversion.canonical


def _round_as_written(value: float, tolerance: float) -> float:
    for decimals in range(16):
        rounded = round(value, decimals)
        # A hair of slack, so that a number exactly on the edge does not depend on binary rounding.
        if abs(rounded - value) <= tolerance * (1 + 1e-9):
            return rounded + 0.0  # no negative zero
    return value


def _last_digit(written: str) -> float:
    """Worth of the last digit of a number as written: `15.75` gives 0.01, `2e3` 1000, `1 1/2` a half."""
    text = written.strip().lstrip("+-−")
    if "½" in text or "¼" in text or "¾" in text:
        return 0.5 if "½" in text else 0.25
    if "/" in text:
        return 1 / float(text.rsplit("/", 1)[1])
    mantissa, _, exponent = text.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    return float(10.0 ** (int(exponent.replace("−", "-") or 0) - decimals))
