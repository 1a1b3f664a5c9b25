"""The planting-window card of a place: wheat ripe, soybean sown, killing freeze, what is left between, years in ten.

Two choices define this file. The card speaks in dates and years in ten, as growers and insurers do, and every number
has its spread over the years beside it. One plain sentence says the verdict and what stands in the way, from the same
numbers as the table, so that the two cannot disagree.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapping.agronomy.heat_units import DAYS, LIMITING_CLASSES, HeatUnitResult
from processing.errors import AgriClipError
from processing.whole_files import write_whole

__all__ = ["PlantingCard", "Spread", "date_of", "in_ten", "planting_card", "write_card"]

_MONTHS = (
    ("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31), ("June", 30), ("July", 31),
    ("August", 31), ("September", 30), ("October", 31), ("November", 30), ("December", 31),
)  # fmt: skip
_JULY = 181

#: Class of the limiting factor -> what the sentence says of it.
_BECAUSE = {
    2: "the winter is too cold for wheat, or not cold enough",
    3: "too little warmth is left for soybean after wheat",
    4: "too few days are left before the killing freeze",
    5: "too little rain falls in the year",
}


@dataclass(frozen=True)
class Spread:
    """A number over the years.

    Attributes:
        low: 10th percentile.
        median: Median.
        high: 90th percentile.
        years: Years in which there was such a number.
    """

    low: float
    median: float
    high: float
    years: int


@dataclass(frozen=True)
class PlantingCard:
    """The card. Days are numbered from 1 = 1 January, or 1 July in the southern hemisphere; see :meth:`date`.

    Attributes:
        place: Name or coordinates.
        scenario: Climate.
        years: Years looked at.
        hemisphere: `north` or `south`.
        wheat_ripe: Day on which wheat is ripe; None if it never is.
        sowing: Day on which soybean is sown; None if it never is.
        freeze: Day of the first killing freeze after that; None if no year has one.
        days_left: Days from sowing to the freeze.
        degree_days: Heat units in those days, degC day.
        degree_days_needed: Heat units that soybean needs, degC day.
        rain: Rain of the year, mm.
        years_in_ten: Years in ten in which both crops are harvested.
        dry_sowing_in_ten: Years in ten in which the soil is dry at sowing.
        suitable: At least the rule's share of the years succeeds.
        limiting_class: Class of `LIMITING_CLASSES`.
        limiting: Its title.
        sentence: The verdict in plain words.
    """

    place: str
    scenario: str
    years: int
    hemisphere: str
    wheat_ripe: Spread | None
    sowing: Spread | None
    freeze: Spread | None
    days_left: Spread
    degree_days: Spread
    degree_days_needed: float
    rain: Spread
    years_in_ten: float
    dry_sowing_in_ten: float
    suitable: bool
    limiting_class: int
    limiting: str
    sentence: str

    def date(self, day: float) -> str:
        """A day of this card as `21 June`."""
        return date_of(day, self.hemisphere)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON; dates as text beside the days."""
        told = asdict(self)
        for name in ("wheat_ripe", "sowing", "freeze"):
            spread = getattr(self, name)
            if spread is not None:
                told[name]["dates"] = [self.date(day) for day in (spread.low, spread.median, spread.high)]
        return told

    def text(self, width: int = 88) -> str:
        """The card as a table for a terminal or a text file, without colours."""
        from rich.console import Console
        from rich.table import Table

        table = Table(
            title=f"Planting window: {self.place} ({self.scenario}, {self.years} years)", title_justify="left"
        )
        for column in ("", "median", "8 years in 10"):
            table.add_column(column, justify="left" if not column else "right")
        for title, name in (
            ("wheat ripe", "wheat_ripe"),
            ("soybean sown", "sowing"),
            ("killing freeze", "freeze"),
        ):
            table.add_row(title, *self._dates(getattr(self, name), "never" if name != "freeze" else "none"))
        for title, spread, unit in (
            ("days left", self.days_left, "d"),
            ("heat units left", self.degree_days, "degC d"),
            ("rain of the year", self.rain, "mm"),
        ):
            table.add_row(title, f"{spread.median:,.0f} {unit}", f"{spread.low:,.0f} to {spread.high:,.0f} {unit}")
        table.add_row("both crops ripen", in_ten(self.years_in_ten), "")
        table.add_row("soil dry at sowing", in_ten(self.dry_sowing_in_ten), "")
        table.add_row("limiting factor", self.limiting.partition(":")[0], "")
        stream = io.StringIO()
        console = Console(file=stream, width=width, color_system=None, legacy_windows=False)
        console.print(table)
        console.print(self.sentence)
        return stream.getvalue()

    def _dates(self, spread: Spread | None, absent: str) -> tuple[str, str]:
        if spread is None:
            return absent, ""
        few = "" if spread.years == self.years else f" ({spread.years} of {self.years} years)"
        return self.date(spread.median) + few, f"{self.date(spread.low)} to {self.date(spread.high)}"


def date_of(day: float, hemisphere: str = "north") -> str:
    """A day of the rule's year as a date, such as `21 June`; the year has 365 days.

    Args:
        day: 1 = 1 January, or 1 July in the southern hemisphere; rounded to whole days.
        hemisphere: `north` or `south`.

    Raises:
        AgriClipError: For a day outside the year.
    """
    number = int(np.floor(day + 0.5))
    if not 1 <= number <= DAYS:
        raise AgriClipError(f"Day {day:g} does not lie in a year of {DAYS} days.")
    number = (number - 1 + (_JULY if hemisphere == "south" else 0)) % DAYS + 1
    for month, length in _MONTHS:
        if number <= length:
            return f"{number} {month}"
        number -= length
    raise AssertionError("unreachable: months sum to 365")


def planting_card(
    result: HeatUnitResult, cell: int = 0, *, place: str = "this cell", scenario: str = "present climate"
) -> PlantingCard:
    """Makes the card of one cell.

    Args:
        result: The rule's calendar.
        cell: Which of its cells.
        place: Name or coordinates.
        scenario: Climate.

    Returns:
        The card.

    Raises:
        AgriClipError: If there is no such cell, or it has no data.
    """
    cells = result.known.size
    if not 0 <= cell < cells:
        raise AgriClipError(f"There is no cell {cell}: the result has {cells}, numbered from 0.")
    if not result.known[cell]:
        raise AgriClipError(f"{place} has no climate data, so it has no planting window; choose a cell on land.")
    rule = result.rule
    ok = result.ok[:, cell]
    share = float(ok.mean())
    suitable = share >= rule.suitable_above
    chosen = int(result.limiting_factor()[cell])
    spreads = {name: _spread(getattr(result, name)[:, cell]) for name in ("wheat_ripe", "sowing", "freeze")}
    days_left, heat, rain = (_spread(getattr(result, name)[:, cell]) for name in ("days_left", "degree_days", "rain"))
    assert days_left is not None and heat is not None and rain is not None  # a known cell has them in every year
    return PlantingCard(
        place=place,
        scenario=scenario,
        years=len(ok),
        hemisphere=rule.hemisphere,
        **spreads,
        days_left=days_left,
        degree_days=heat,
        degree_days_needed=rule.soy_heat,
        rain=rain,
        years_in_ten=10.0 * share,
        dry_sowing_in_ten=10.0 * float(result.dry_sowing[:, cell].mean()),
        suitable=suitable,
        limiting_class=chosen,
        limiting=LIMITING_CLASSES[chosen][0],
        sentence=_sentence(spreads, share, suitable, _cause(result, cell), rule.hemisphere),
    )


def _cause(result: HeatUnitResult, cell: int) -> int | None:
    """The condition missed in most of the years that fail, as a class; None if none fails."""
    missed = (~result.conditions[:, :, cell]).sum(axis=1) + 0.5 * result.shortfalls[:, :, cell].clip(max=1.0).mean(1)
    return None if result.ok[:, cell].all() else 2 + int(missed.argmax())


def _sentence(
    spreads: Mapping[str, Spread | None], share: float, suitable: bool, cause: int | None, hemisphere: str
) -> str:
    ripe, sowing, freeze = spreads["wheat_ripe"], spreads["sowing"], spreads["freeze"]
    if ripe is None or sowing is None:
        start = "Wheat does not ripen in time for a second crop"
    else:
        start = f"Wheat is ripe about {date_of(ripe.median, hemisphere)}, soybean is sown about "
        start += date_of(sowing.median, hemisphere)
        if freeze is not None and 2 * freeze.years >= ripe.years:
            start += f" and the first killing freeze comes about {date_of(freeze.median, hemisphere)}"
        else:
            start += " and in most years no killing freeze comes before the year ends"
    verdict = f"both crops are harvested in {_in_ten(share)}"
    because = "" if cause is None else f", {'and in the others' if share > 0 else 'because'} {_BECAUSE[cause]}"
    good = "double-cropping is a fair bet here" if suitable else "double-cropping is not safe here"
    return f"{start}; {verdict}{because}: {good}."


def _in_ten(share: float) -> str:
    if share >= 1.0:
        return "every year"
    if share <= 0.0:
        return "no year"
    number = round(10.0 * share)
    if number in (0, 10):
        return "fewer than one year in ten" if number == 0 else "nearly every year"
    return f"{number} {'year' if number == 1 else 'years'} in ten"


def in_ten(years: float) -> str:
    """`1 year in 10`, `8.5 years in 10`."""
    number = round(years, 1)
    return f"{number:g} year{'' if number == 1 else 's'} in 10"


def _spread(values: np.ndarray) -> Spread | None:
    seen = values[np.isfinite(values)]
    if not seen.size:
        return None
    low, median, high = np.percentile(seen, [10, 50, 90])
    return Spread(float(low), float(median), float(high), int(seen.size))


def write_card(card: PlantingCard, path: str | Path) -> Path:
    """Writes the card as a text file, whole or not at all."""
    return write_whole(path, card.text())
