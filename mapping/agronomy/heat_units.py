"""The heat-unit rule: does wheat ripen early enough for soybean to ripen before the killing freeze, in how many years?

Three choices define this file. The rule is a calendar that an agronomist can follow by hand (wheat ripe, sown, frozen)
and every year is judged alone: risk over the years, not the mean year, decides whether a second crop is insurable. The
constants stand in one frozen dataclass, each with its unit and its source, and those taken from memory say so. Heat
units of soybean are the 86/50 units of the United States: base and cap are put on minimum and maximum before the mean
is taken (method 2 of McMaster & Wilhelm 1997, Agricultural and Forest Meteorology 87:291-300, which shows that the two
methods differ by up to 83 %); method 1 is an option. Wheat's heat units from 1 January are taken of the daily mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from processing.errors import AgriClipError

__all__ = ["DAYS", "LIMITING_CLASSES", "HeatUnitResult", "HeatUnitRule", "growing_degree_days", "heat_units"]

#: Days of every year; 29 February is left out of daily records.
DAYS = 365
_JULY = 181  # days before 1 July
_SPRING, _AUTUMN = 90, 273  # days before 1 April and before 1 October

#: Classes of the limiting factor: value -> (title, colour of the Okabe-Ito set, safe for the colour-blind).
LIMITING_CLASSES: dict[int, tuple[str, str]] = {
    1: ("nothing: suitable", "#009e73"),
    2: ("winter: too cold for wheat, or too little cold", "#0072b2"),
    3: ("heat: too few heat units left for soybean", "#d55e00"),
    4: ("frost: too few days left before the killing freeze", "#56b4e9"),
    5: ("water: too little rain in the year", "#e69f00"),
}


def _constant(default: Any, unit: str, source: str) -> Any:
    return field(default=default, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class HeatUnitRule:
    """The constants of the rule; unit and source of each are in the field's metadata, see :meth:`table`.

    Attributes:
        chilling_low: Lower bound of the daily mean on a chilling day.
        chilling_high: Upper bound of the daily mean on a chilling day.
        chilling_days: Chilling days that winter wheat needs from October to March.
        winter_minimum: Wheat dies when a night from October to March is this cold or colder.
        wheat_heat: Sum of max(0, daily mean) from 1 January at which wheat is ripe.
        sowing_delay: Days from ripe wheat to the sowing of soybean.
        sowing_rain: Rain over `sowing_rain_days` that makes the soil fit for sowing.
        sowing_rain_days: Days, up to and with the day of sowing, over which that rain is summed.
        sowing_wait: Days that sowing waits for that rain; then soybean is sown dry.
        killing_freeze: Daily minimum that kills soybean.
        soy_base: Base temperature of soybean's heat units.
        soy_cap: Temperature above which no more heat units are counted.
        gdd_method: 1: base and cap on the daily mean; 2: on minimum and maximum (McMaster & Wilhelm 1997).
        soy_heat: Heat units from sowing to ripe soybean.
        season_days: Days from sowing to the killing freeze.
        annual_rain: Rain of the year below which two crops are not grown without irrigation.
        suitable_above: Share of years from which a place counts as suitable.
        hemisphere: `north`, or `south` to begin the year on 1 July.
    """

    chilling_low: float = _constant(-1.0, "degC", "mem.: range of vernalising temperatures; tune")
    chilling_high: float = _constant(9.0, "degC", "mem.: range of vernalising temperatures; tune")
    chilling_days: float = _constant(40.0, "day", "mem.: tune")
    winter_minimum: float = _constant(-25.0, "degC", "mem.: kill of hardened wheat under little snow; tune")
    wheat_heat: float = _constant(
        1750.0, "degC day", "no published source: calibrate on harvest dates of the region (USDA Crop Progress)"
    )
    sowing_delay: int = _constant(7, "day", "mem.: a week from ripe wheat through harvest to sowing")
    sowing_rain: float = _constant(10.0, "mm", "mem.: moist seedbed")
    sowing_rain_days: int = _constant(10, "day", "mem.: moist seedbed")
    sowing_wait: int = _constant(10, "day", "mem.: growers sow dry rather than lose a bushel an acre a day")
    killing_freeze: float = _constant(-2.2, "degC", "28 F; University of Missouri Extension, June 2024")
    soy_base: float = _constant(10.0, "degC", "mem.: 50 F, usual in the United States")
    soy_cap: float = _constant(30.0, "degC", "mem.: 86 F, usual in the United States")
    gdd_method: int = _constant(2, "1", "McMaster & Wilhelm 1997; method 2 is the 86/50 unit of the United States")
    soy_heat: float = _constant(
        1150.0,
        "degC day",
        "relative maturity 1.1, North Dakota State University 2016, its 2058 units read as degF day",
    )
    season_days: float = _constant(90.0, "day", "emergence to maturity; University of Missouri Extension, June 2024")
    annual_rain: float = _constant(750.0, "mm", "Seifert & Lobell 2015, Environmental Research Letters 10:024002")
    suitable_above: float = _constant(0.75, "1", "Seifert & Lobell 2015: both crops ripen in three years of four")
    hemisphere: Literal["north", "south"] = _constant("north", "1", "of the place")

    def __post_init__(self) -> None:
        if self.gdd_method not in (1, 2):
            raise AgriClipError(f"gdd_method must be 1 or 2 of McMaster & Wilhelm 1997, not {self.gdd_method!r}.")
        if self.hemisphere not in ("north", "south"):
            raise AgriClipError(f"hemisphere must be 'north' or 'south', not {self.hemisphere!r}.")
        if not self.soy_base < self.soy_cap or not self.chilling_low < self.chilling_high:
            raise AgriClipError("The rule's base must lie below its cap, and chilling_low below chilling_high.")
        if not self.sowing_delay >= 0 <= self.sowing_wait or self.sowing_rain_days < 1:
            raise AgriClipError("Delays of the rule are whole days of at least 0, and sowing_rain_days at least 1.")
        for name in ("chilling_days", "wheat_heat", "soy_heat", "season_days", "annual_rain"):
            if not getattr(self, name) > 0:
                raise AgriClipError(f"{name} of the heat-unit rule must be above 0, not {getattr(self, name)}.")

    def table(self) -> list[tuple[str, Any, str, str]]:
        """Name, value, unit and source of every constant."""
        return [(f.name, getattr(self, f.name), f.metadata["unit"], f.metadata["source"]) for f in fields(self)]


@dataclass(frozen=True)
class HeatUnitResult:
    """The rule's calendar, year by year; arrays are (years, cells), NaN where a cell has no data.

    Days are numbered from 1 = 1 January (1 July for a southern rule).

    Attributes:
        rule: The constants used.
        known: bool (cells,), cells with data.
        wheat_ripe: Day on which wheat is ripe; NaN where it does not ripen within the year.
        sowing: Day on which soybean is sown; NaN where it is not.
        freeze: Day of the first killing freeze after sowing; NaN where none comes before the year ends.
        days_left: Days from sowing to the freeze, or to the end of the year; 0 where nothing is sown.
        degree_days: Heat units in those days, degC day.
        rain: Rain of the year, mm.
        chilling: Chilling days of the winter that ends in the year.
        coldest: Lowest minimum of that winter, degC.
        dry_sowing: bool, soybean was sown into dry soil.
        conditions: bool (4, years, cells): winter, heat, frost and water are met, in the order of the classes 2 to 5.
        shortfalls: (4, years, cells): how far each is missed, as a share of what is needed; 0 where it is met.
    """

    rule: HeatUnitRule
    known: np.ndarray
    wheat_ripe: np.ndarray
    sowing: np.ndarray
    freeze: np.ndarray
    days_left: np.ndarray
    degree_days: np.ndarray
    rain: np.ndarray
    chilling: np.ndarray
    coldest: np.ndarray
    dry_sowing: np.ndarray
    conditions: np.ndarray
    shortfalls: np.ndarray

    @property
    def survives(self) -> np.ndarray:
        """Bool (years, cells): wheat had its cold and was not killed by it."""
        return self.conditions[0]

    @property
    def ok(self) -> np.ndarray:
        """Bool (years, cells): both crops are harvested."""
        return self.conditions.all(axis=0) & self.known

    @property
    def probability(self) -> np.ndarray:
        """float32 (cells,): share of the years in which both crops are harvested."""
        return np.where(self.known, self.ok.mean(axis=0), np.nan).astype(np.float32)

    def limiting_factor(self, by: Literal["count", "margin"] = "count") -> np.ndarray:
        """What stands in the way of a cell, as a class of :data:`LIMITING_CLASSES`.

        Args:
            by: `count`: the condition missed in most years, ties broken by the mean shortfall; `margin`: the one with
                the largest mean shortfall, as a share of what is needed.

        Returns:
            uint8 (cells,): 1 where at least `suitable_above` of the years succeed, 2-5 otherwise, 0 without data.
        """
        if by not in ("count", "margin"):
            raise AgriClipError(f"The limiting factor is found by 'count' or 'margin', not {by!r}.")
        margin = np.minimum(self.shortfalls, 1.0).mean(axis=1)  # (4, cells)
        weight = margin if by == "margin" else (~self.conditions).sum(axis=1) + 0.5 * margin
        classes = np.where(self.probability >= self.rule.suitable_above, 1, 2 + np.argmax(weight, axis=0))
        return np.where(self.known, classes, 0).astype(np.uint8)

    def median(self, name: str) -> np.ndarray:
        """float32 (cells,): median over the years of `days_left`, `degree_days` or another field; NaN if unknown."""
        values = np.where(self.known, getattr(self, name), np.nan)
        out = np.full(values.shape[1], np.nan, dtype=np.float32)
        seen = np.isfinite(values).any(axis=0)
        out[seen] = np.nanmedian(values[:, seen], axis=0)
        return out


def growing_degree_days(
    minimum: np.ndarray, maximum: np.ndarray, base: float, cap: float = np.inf, method: int = 2
) -> np.ndarray:
    """Heat units of each day: ((maximum + minimum) / 2) - base.

    McMaster & Wilhelm 1997. Method 1 sets the mean to the base where it is below and to the cap where it is above;
    method 2 does so with minimum and maximum each, before the mean. Where only the minimum is below the base, method 1
    counts fewer units.

    Args:
        minimum: Daily minimum temperature in degC.
        maximum: Daily maximum temperature in degC, of the same shape.
        base: Base temperature in degC.
        cap: Upper threshold in degC.
        method: 1 or 2.

    Returns:
        Heat units in degC day, of the same shape.
    """
    if method == 1:
        return np.clip(0.5 * (minimum + maximum), base, cap) - base
    if method == 2:
        return 0.5 * (np.clip(minimum, base, cap) + np.clip(maximum, base, cap)) - base
    raise AgriClipError(f"Heat units are counted by method 1 or 2 of McMaster & Wilhelm 1997, not {method!r}.")


def heat_units(
    minimum: np.ndarray,
    maximum: np.ndarray,
    rain: np.ndarray,
    rule: HeatUnitRule | None = None,
    *,
    irrigated: bool | np.ndarray = False,
    latitude: np.ndarray | None = None,
) -> HeatUnitResult:
    """Walks through each year of each cell by the rule.

    A winter reaches from October of the year before to March; the autumn before the first year is not known, so the
    first year's own stands in for it. For a southern rule the year begins on 1 July, and the first half of the last
    year stands in for that of the year after it in the same way.

    Args:
        minimum: Daily minimum temperature (years, 365, cells), degC, from 1 January; without 29 February.
        maximum: Daily maximum temperature, likewise.
        rain: Daily precipitation in mm, likewise.
        rule: Constants; the defaults if None.
        irrigated: True, or bool (cells,): rain is not asked for.
        latitude: Degrees north (cells,); if given, cells in the other hemisphere than the rule's are refused.

    Returns:
        The calendar and the verdict of each year; a cell with a missing day has no data.

    Raises:
        AgriClipError: For shapes that differ, years that are not 365 days, values that cannot be degC or mm, or cells
            in the other hemisphere.
    """
    rule = rule or HeatUnitRule()
    minimum, maximum, rain = (np.asarray(values) for values in (minimum, maximum, rain))
    _check_daily(minimum, maximum, rain)
    _check_hemisphere(latitude, rule)
    known = np.isfinite(minimum).all(axis=(0, 1)) & np.isfinite(maximum).all(axis=(0, 1))
    known &= np.isfinite(rain).all(axis=(0, 1))
    if rule.hemisphere == "south":
        minimum, maximum, rain = (_from_july(values) for values in (minimum, maximum, rain))
    if not known.all():  # so that nothing below meets a NaN; put back as NaN at the end
        minimum, maximum, rain = (np.where(known, values, np.float32(0.0)) for values in (minimum, maximum, rain))
    mean = 0.5 * (minimum + maximum)

    chilling, coldest = _winter(mean, minimum, rule)
    wheat_sum = np.cumsum(np.maximum(mean, 0.0), axis=1, dtype=np.float64)
    reached = wheat_sum >= rule.wheat_heat
    ripens = reached.any(axis=1)
    ripe = np.where(ripens, reached.argmax(axis=1), DAYS)  # index of the day, from 0
    sowing, dry = _sowing(ripe, rain, rule)
    sown = sowing < DAYS
    freezes = (minimum <= rule.killing_freeze) & (np.arange(DAYS)[:, None] > sowing[:, None, :])
    frozen = freezes.any(axis=1) & sown
    end = np.where(frozen, freezes.argmax(axis=1), DAYS)
    units = growing_degree_days(minimum, maximum, rule.soy_base, rule.soy_cap, rule.gdd_method)
    total = np.cumsum(units, axis=1, dtype=np.float64)
    degree_days = np.where(sown, _up_to(total, end) - _up_to(total, sowing), 0.0)
    days_left = np.where(sown, end - sowing, 0)
    year_rain = rain.sum(axis=1, dtype=np.float64)

    shortfalls = np.stack(
        [
            np.maximum(
                1.0 - chilling / rule.chilling_days, _colder(coldest, rule.winter_minimum) / abs(rule.winter_minimum)
            ),
            1.0 - degree_days / rule.soy_heat,
            1.0 - days_left / rule.season_days,
            np.where(np.asarray(irrigated, dtype=bool), 0.0, 1.0 - year_rain / rule.annual_rain),
        ]
    ).clip(min=0.0)
    conditions = np.stack(
        [
            (chilling >= rule.chilling_days) & (coldest > rule.winter_minimum),
            degree_days >= rule.soy_heat,
            days_left >= rule.season_days,
            (year_rain >= rule.annual_rain) | np.asarray(irrigated, dtype=bool),
        ]
    )

    def told(values: np.ndarray, where: np.ndarray | bool = True) -> np.ndarray:
        return np.where(known & where, values, np.nan).astype(np.float32)

    return HeatUnitResult(
        rule=rule,
        known=known,
        wheat_ripe=told(ripe + 1, ripens),
        sowing=told(sowing + 1, sown),
        freeze=told(end + 1, frozen),
        days_left=told(days_left),
        degree_days=told(degree_days),
        rain=told(year_rain),
        chilling=told(chilling),
        coldest=told(coldest),
        dry_sowing=dry & known,
        conditions=conditions & known,
        shortfalls=shortfalls.astype(np.float32),
    )


def _winter(mean: np.ndarray, minimum: np.ndarray, rule: HeatUnitRule) -> tuple[np.ndarray, np.ndarray]:
    """Chilling days and lowest minimum of the winter that ends in each year, both (years, cells)."""
    chilled = (mean >= rule.chilling_low) & (mean <= rule.chilling_high)
    autumn, autumn_low = chilled[:, _AUTUMN:].sum(axis=1), minimum[:, _AUTUMN:].min(axis=1)
    before = np.maximum(np.arange(len(mean)) - 1, 0)  # the first year's own autumn stands in for the one before
    chilling = chilled[:, :_SPRING].sum(axis=1) + autumn[before]
    coldest = np.minimum(minimum[:, :_SPRING].min(axis=1), autumn_low[before])
    return chilling, coldest


def _sowing(ripe: np.ndarray, rain: np.ndarray, rule: HeatUnitRule) -> tuple[np.ndarray, np.ndarray]:
    """Index of the day of sowing (365 where none) and whether the soil was dry, both (years, cells)."""
    total = np.cumsum(rain, axis=1, dtype=np.float64)
    trailing = total.copy()
    trailing[:, rule.sowing_rain_days :] -= total[:, : -rule.sowing_rain_days]
    earliest = ripe + rule.sowing_delay
    sowing = np.full_like(ripe, DAYS)
    for wait in range(rule.sowing_wait + 1):
        day = earliest + wait
        fallen = np.take_along_axis(trailing, np.minimum(day, DAYS - 1)[:, None], axis=1)[:, 0]
        moist = (fallen >= rule.sowing_rain - 1e-6) & (day < DAYS) & (sowing == DAYS)
        sowing = np.where(moist, day, sowing)
    dry = (sowing == DAYS) & (earliest < DAYS)
    return np.where(dry, np.minimum(earliest + rule.sowing_wait, DAYS - 1), sowing), dry


def _up_to(total: np.ndarray, day: np.ndarray) -> np.ndarray:
    """What has been summed before a day; `total` is cumulative (years, 365, cells), `day` an index (years, cells)."""
    before = np.take_along_axis(total, np.maximum(day - 1, 0)[:, None], axis=1)[:, 0]
    return np.where(day > 0, before, 0.0)


def _colder(coldest: np.ndarray, limit: float) -> np.ndarray:
    return np.maximum(limit - coldest, 0.0)


def _from_july(values: np.ndarray) -> np.ndarray:
    """Years from 1 July to 30 June; the last year's own first half ends it."""
    after = np.minimum(np.arange(len(values)) + 1, len(values) - 1)
    return np.concatenate([values[:, _JULY:], values[after, :_JULY]], axis=1)


def _check_daily(minimum: np.ndarray, maximum: np.ndarray, rain: np.ndarray) -> None:
    """Refuse shapes and units with which the rule would quietly be wrong."""
    if minimum.ndim != 3 or not minimum.shape == maximum.shape == rain.shape:
        raise AgriClipError(
            f"Daily minimum, maximum and rain must have one shape (years, 365, cells), not {minimum.shape}, "
            f"{maximum.shape} and {rain.shape}; align them first."
        )
    if minimum.shape[1] != DAYS or not minimum.shape[0]:
        raise AgriClipError(
            f"A year of daily weather has 365 days, not {minimum.shape[1]}, and there must be one at least; leave out "
            "29 February and start on 1 January."
        )
    seen = np.isfinite(minimum) & np.isfinite(maximum)
    if not seen.any():
        return
    high, low = float(np.max(maximum, where=seen, initial=-np.inf)), float(np.min(minimum, where=seen, initial=np.inf))
    if high > 70.0 or low < -90.0:
        hint = "they look like kelvin, subtract 273.15" if low > 150.0 else "give degC"
        raise AgriClipError(f"Daily temperatures reach from {low:g} to {high:g}, which cannot be degC; {hint}.")
    if bool((minimum > maximum + 0.01)[seen].any()):
        raise AgriClipError("Some daily minima lie above the maxima; are the two swapped?")
    if float(np.min(rain, where=np.isfinite(rain), initial=np.inf)) < 0.0:
        raise AgriClipError("Some daily rain is negative; mark missing days as NaN.")


def _check_hemisphere(latitude: np.ndarray | None, rule: HeatUnitRule) -> None:
    if latitude is None:
        return
    degrees = np.asarray(latitude, dtype=np.float64)
    other = degrees < 0 if rule.hemisphere == "north" else degrees > 0
    if other.any():
        to_use = "south" if rule.hemisphere == "north" else "north"
        raise AgriClipError(
            f"{int(other.sum())} cells do not lie in the {rule.hemisphere}ern hemisphere, whose year the heat-unit "
            f"rule was given; use HeatUnitRule(hemisphere='{to_use}') for them."
        )
