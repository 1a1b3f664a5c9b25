"""The planting-window card of a place in any climate of the example, from its monthly climate; no model is needed."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cached_property
from html import escape
from typing import Any

import numpy as np

from processing.errors import AgriClipError
from spaces_demo.example import PRESENT, Example

__all__ = ["Planting", "card_html"]


class Planting:
    """Cards of the example's places.

    Args:
        example: The example.
    """

    def __init__(self, example: Example) -> None:
        self.example = example
        self._lock = threading.Lock()

    @cached_property
    def study(self) -> Any:
        """The example as a study."""
        from processing.study import load_study

        return load_study(self.example.folder / "study.yaml", data_root=self.example.folder)

    @property
    def possible(self) -> bool:
        """Whether the example has the monthly climate that a card needs."""
        return self.study.agronomy is not None

    @property
    def climates(self) -> list[tuple[str, str]]:
        """(title, key) of the climates that have a card: the present, and scenarios of a single climate model."""
        found = []
        for climate in self.example.climates.values():
            there = (self.example.folder / "changes" / f"{climate.key}.tif").is_file()
            if climate.key == PRESENT or (there and not climate.members):
                found.append((climate.title, climate.key))
        return found

    def card(self, longitude: float, latitude: float, key: str = PRESENT) -> Any:
        """The card of a place, a `mapping.agronomy.planting_card.PlantingCard`.

        Raises:
            AgriClipError: The place has no data, or the example no monthly climate.
        """
        from mapping.agronomy.heat_units import HeatUnitRule, heat_units
        from mapping.agronomy.layers import BioclimChange, read_climate
        from mapping.agronomy.planting_card import planting_card
        from mapping.agronomy.study_layers import agronomy_inputs
        from mapping.agronomy.weather import draw_weather

        row, column = self.example.cell(longitude, latitude)
        climate = self.example.climate(key)
        with self._lock:
            study = self.study
        if study.agronomy is None:
            raise AgriClipError("This example has no monthly climate, so there is no planting window.")
        inputs = agronomy_inputs(study)
        assert inputs is not None  # the present always has some
        if key != PRESENT:
            changes = self.example.folder / "changes"
            if not (changes / f"{key}.tif").is_file():
                raise AgriClipError(f"There are no months of {climate.title}; choose a single climate model.")
            inputs = replace(inputs, change=BioclimChange(str(changes / "none.tif"), str(changes / f"{key}.tif")))
        grid = self.example.grid
        months = [part[:, column : column + 1] for part in read_climate(inputs, grid, slice(row, row + 1))]
        weather = draw_weather(*months, np.array([row]), np.array([column]))
        rule = HeatUnitRule(hemisphere="south" if latitude < 0 else "north")
        calendar = heat_units(weather.minimum, weather.maximum, weather.rain, rule, irrigated=inputs.irrigated)
        return planting_card(calendar, place=f"{longitude:.2f}, {latitude:.2f}", scenario=climate.title)


def card_html(card: Any) -> str:
    """The card for the page."""
    from mapping.agronomy.planting_card import in_ten

    def dates(spread: Any, absent: str) -> tuple[str, str]:
        if spread is None:
            return absent, ""
        return card.date(spread.median), f"{card.date(spread.low)} to {card.date(spread.high)}"

    rows = [
        ("Wheat ripe", *dates(card.wheat_ripe, "never")),
        ("Soybean sown", *dates(card.sowing, "never")),
        ("Killing freeze", *dates(card.freeze, "none")),
        ("Days left", f"{card.days_left.median:,.0f}", f"{card.days_left.low:,.0f} to {card.days_left.high:,.0f}"),
        (
            f"Heat units left (needs {card.degree_days_needed:,.0f})",
            f"{card.degree_days.median:,.0f} °C d",
            f"{card.degree_days.low:,.0f} to {card.degree_days.high:,.0f}",
        ),
        ("Both crops ripen", in_ten(card.years_in_ten), ""),
        ("Soil dry at sowing", in_ten(card.dry_sowing_in_ten), ""),
        ("Limiting factor", card.limiting.partition(":")[0], ""),
    ]
    body = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td><td>{escape(c)}</td></tr>" for a, b, c in rows)
    mood = "ac-good" if card.suitable else "ac-bad"
    return (
        f'<div class="ac-card {mood}"><h4>Planting window <small>{escape(card.scenario)}, {card.years} years drawn '
        f"</small></h4><table class='ac-table'><thead><tr><th></th><th>median</th><th>8 years in 10</th></tr></thead>"
        f"<tbody>{body}</tbody></table><p>{escape(card.sentence)}</p>"
        '<p class="ac-note">By the heat-unit rule, beside the network: it knows climate only.</p></div>'
    )
