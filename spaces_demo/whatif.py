"""Sliders to predictors: what a report says when the place is warmer, wetter or drier.

Two choices define this file. A slider moves every number that it would move in the world: warming in winter moves the
coldest quarter, the minimum and, because it is their difference, the range of the year. And where the predictors are
the nineteen bioclimatic variables, or those of the virtual landscape, these dependencies are kept exactly; of other
predictors, levels of temperature move by degrees and amounts of rain by percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from processing.errors import AgriClipError
from processing.virtual_landscape import VARIABLES, WAVE, Climate, heat_unit_rule, monthly_climate

__all__ = ["CURVES", "SLIDERS", "Changes", "change_predictors", "sweep"]


@dataclass(frozen=True)
class Changes:
    """Where the sliders stand.

    Attributes:
        warming: degC added to every temperature.
        winter_warming: degC added to the cold half on top.
        precipitation: Percent by which all rain changes.
        summer_rain: Percent by which the rain of the warmest quarter changes on top.
    """

    warming: float = 0.0
    winter_warming: float = 0.0
    precipitation: float = 0.0
    summer_rain: float = 0.0


#: Field of `Changes` -> title, unit, lowest, highest and step of its slider.
SLIDERS: dict[str, tuple[str, str, float, float, float]] = {
    "warming": ("Warmer all year", "°C", -2.0, 8.0, 0.5),
    "winter_warming": ("Winter warmer on top", "°C", -3.0, 5.0, 0.5),
    "precipitation": ("Rain of the year", "%", -50.0, 50.0, 5.0),
    "summer_rain": ("Rain of the warmest quarter on top", "%", -50.0, 50.0, 5.0),
}
#: Sliders that a curve can run over.
CURVES = {title: name for name, (title, *_) in SLIDERS.items()}

_BIOCLIM = tuple(f"bio{number}" for number in range(1, 20))
_RULED = tuple(name for name, *_ in VARIABLES)
_TEMPERATURES = tuple(name for name, _, unit, _ in VARIABLES if unit == "degC")
_SPREADS = ("range", "deviation", "seasonality", "isothermality", "variation")


def change_predictors(
    values: NDArray[np.float64], variables: Sequence[dict[str, Any]], changes: Changes
) -> NDArray[np.float64]:
    """Put changes on the predictors of a place.

    Args:
        values: (M,) predictors in canonical units.
        variables: Name, title and unit of each.
        changes: Where the sliders stand.

    Raises:
        AgriClipError: A change beyond what a slider offers.
    """
    for name, (title, unit, low, high, _) in SLIDERS.items():
        given = asdict(changes)[name]
        if not low <= given <= high:
            raise AgriClipError(f"'{title}' goes from {low:g} to {high:g} {unit}, not {given:g}; choose less.")
    names = [variable["name"] for variable in variables]
    if set(_BIOCLIM) <= set(names):
        return _change_bioclim(np.array(values, dtype=np.float64), names, changes)
    if set(_RULED) <= set(names):
        return _change_landscape(np.array(values, dtype=np.float64), names, changes)
    moved = np.array(values, dtype=np.float64)
    for column, variable in enumerate(variables):
        title, unit = variable["title"].lower(), variable["unit"]
        if any(word in title for word in _SPREADS) or "soil" in title:
            continue
        if unit == "degC":
            cold = any(word in title for word in ("winter", "cold", "january", "minimum"))
            moved[column] += changes.warming + (changes.winter_warming if cold else 0.0)
        elif unit in ("mm", "mm/day", "mm/month", "mm/year"):
            summer = any(word in title for word in ("summer", "warm", "july"))
            factor = (1 + changes.precipitation / 100) * (1 + changes.summer_rain / 100 if summer else 1.0)
            moved[column] *= factor
    return moved


def _change_bioclim(values: NDArray[np.float64], names: list[str], changes: Changes) -> NDArray[np.float64]:
    """The nineteen variables, with what depends on what."""
    at = {name: names.index(name) for name in _BIOCLIM}
    old = {name: float(values[place]) for name, place in at.items()}
    new = dict(old)
    warm, cold = changes.warming, changes.winter_warming
    for name in ("bio1", "bio5", "bio6", "bio8", "bio9", "bio10", "bio11"):
        new[name] += warm
    # The cold half of the year: the coldest quarter moves wholly, the year by half of it.
    new["bio11"] += cold
    new["bio6"] += cold
    new["bio1"] += cold / 2
    # A wet or dry quarter moves as far as it is a winter quarter.
    span = max(old["bio10"] - old["bio11"], 1e-6)
    for name in ("bio8", "bio9"):
        new[name] += cold * min(max((old["bio10"] - old[name]) / span, 0.0), 1.0)
    # The year's course is stretched with its two ends.
    new["bio4"] = max(old["bio4"] * (new["bio10"] - new["bio11"]) / span, 0.0)
    # By differences and ratios of what the place has, so that nothing moves where no slider does.
    new["bio7"] = max(old["bio7"] + (new["bio5"] - old["bio5"]) - (new["bio6"] - old["bio6"]), 0.1)
    new["bio3"] = old["bio3"] * old["bio7"] / new["bio7"]
    wetter = 1 + changes.precipitation / 100
    for name in ("bio12", "bio13", "bio14", "bio16", "bio17", "bio18", "bio19"):
        new[name] *= wetter
    gained = new["bio18"] * changes.summer_rain / 100
    new["bio18"] += gained
    new["bio12"] += gained
    wettest_is_warmest = old["bio8"] >= old["bio10"] - 0.05
    if wettest_is_warmest:
        new["bio16"] += gained
        new["bio13"] *= 1 + changes.summer_rain / 100
    if old["bio9"] >= old["bio10"] - 0.05:  # the driest quarter is the warmest: summer-dry
        new["bio17"] += gained
        new["bio14"] *= 1 + changes.summer_rain / 100
    if gained:
        new["bio16"] = max(new["bio16"], new["bio18"])
        new["bio17"] = min(new["bio17"], new["bio18"])
    for name, place in at.items():
        values[place] = new[name]
    return values


def _change_landscape(values: NDArray[np.float64], names: list[str], changes: Changes) -> NDArray[np.float64]:
    """The variables of the virtual landscape: its months are changed, and its own rule derives the rest from them."""
    at = {name: names.index(name) for name in _RULED}
    before = monthly_climate({name: values[[[place]]] for name, place in at.items()})
    wetter = 1 + changes.precipitation / 100
    after = before.changed(changes.warming, wetter, wetter * (1 + changes.summer_rain / 100))
    # January moves wholly, July not at all, the year by half.
    winter = changes.winter_warming * (1 - WAVE) / 2
    after = Climate(after.mean + winter, after.minimum + winter, after.rain)
    old, new = heat_unit_rule(before), heat_unit_rule(after)
    # By differences to what the place has, so that nothing moves where no slider does.
    for name, place in at.items():
        moved = values[place] + float(new[name][0, 0] - old[name][0, 0])
        values[place] = moved if name in _TEMPERATURES else max(moved, 0.0)
    return values


def sweep(
    values: NDArray[np.float64], variables: Sequence[dict[str, Any]], changes: Changes, over: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One slider from end to end while the others stand.

    Args:
        values: (M,) predictors of the place.
        variables: Name, title and unit of each.
        changes: Where the sliders stand.
        over: Field of `Changes`.

    Returns:
        (N,) positions of the slider, and (N, M) predictors.
    """
    _, _, low, high, _ = SLIDERS[over]
    steps = np.linspace(low, high, 21)
    rows = [change_predictors(values, variables, Changes(**{**asdict(changes), over: float(s)})) for s in steps]
    return steps, np.stack(rows)


def out_of_range(values: NDArray[np.float64], variables: Sequence[dict[str, Any]]) -> list[str]:
    """Variables that leave the range of the labelled sites, in words, those that leave it farthest first."""
    left = []
    for value, variable in zip(values, variables, strict=True):
        width = max(variable["high"] - variable["low"], 1e-9)
        beyond = max(variable["low"] - value, value - variable["high"]) / width
        if beyond > 1e-6:
            unit = "" if variable["unit"] == "1" else f" {variable['unit']}"
            said = f"{variable['title']} {value:.{variable['decimals']}f}{unit}"
            ends = f"{variable['low']:.{variable['decimals']}f} to {variable['high']:.{variable['decimals']}f}"
            left.append((beyond, f"{said} (labelled sites: {ends})"))
    return [words for _, words in sorted(left, reverse=True)]
