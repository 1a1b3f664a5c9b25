"""The picture of a planting window: three dates over the years on one axis, and what is left between them.

Two choices define this file. Every year is a dot, so that a reader sees the late harvest and the early freeze that
decide about risk, with the median and the span of eight years in ten drawn over them. Years in which both crops are
harvested are filled and the others hollow, which needs no colour to be told apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mapping.agronomy.heat_units import HeatUnitResult
from mapping.agronomy.planting_card import PlantingCard, Spread, in_ten
from mapping.figures import INK, STYLE, save_figure
from processing.errors import AgriClipError

try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Drawing planting windows needs matplotlib: pip install 'agriclip[maps]'.") from error

__all__ = ["planting_window_figure"]

#: Row of the picture: field of the result, title, colour (Okabe-Ito).
_ROWS = (
    ("wheat_ripe", "wheat ripe", "#c98a00"),
    ("sowing", "soybean sown", "#00795a"),
    ("freeze", "killing freeze", "#0072b2"),
)
_FIRST_DAYS = np.array([1, 32, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335])
_LETTERS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def planting_window_figure(result: HeatUnitResult, card: PlantingCard, output: str | Path, cell: int = 0) -> Path:
    """Draws the planting window of one cell.

    Args:
        result: The rule's calendar.
        card: The card of the same cell.
        output: PNG to write.
        cell: Which of the result's cells.

    Returns:
        The PNG.

    Raises:
        AgriClipError: If result and card are not of the same years.
    """
    if len(result.ok) != card.years:
        raise AgriClipError(f"The card is of {card.years} years and the result of {len(result.ok)}; give the same.")
    ok = result.ok[:, cell]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 3.5))
        FigureCanvasAgg(figure)
        axes, bars = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3.4, 1.0], "wspace": 0.27})
        # the same years at the same height in every row, so that one year can be followed
        heights = np.linspace(-0.26, 0.26, len(ok)) if len(ok) > 1 else np.zeros(1)
        for level, (name, _, colour) in zip((2, 1, 0), _ROWS, strict=True):
            _row(axes, getattr(result, name)[:, cell], ok, level + heights, level, colour)
            _date_label(axes, card, getattr(card, name), name, level, colour)
        _year_axis(axes, card)
        _heat(bars, result.degree_days[:, cell], ok, card)
        figure.suptitle(f"{card.place}, {card.scenario}", x=0.125, y=1.03, ha="left", fontsize=12, fontweight="bold")
        figure.text(
            0.125,
            0.95,
            f"both crops are harvested in {in_ten(card.years_in_ten)}"
            + ("" if card.limiting_class == 1 else f"; limiting factor: {card.limiting}"),
            fontsize=9,
            color="#5a645f",
        )
        return save_figure(figure, output)


def _row(axes: Any, days: np.ndarray, ok: np.ndarray, heights: np.ndarray, level: int, colour: str) -> None:
    seen = np.isfinite(days)
    if not seen.any():
        return
    low, median, high = np.percentile(days[seen], [10, 50, 90])
    axes.plot([low, high], [level, level], color=colour, linewidth=9, alpha=0.22, solid_capstyle="butt", zorder=1)
    axes.plot([median, median], [level - 0.3, level + 0.3], color=colour, linewidth=2, zorder=1)
    for chosen, face in ((seen & ok, colour), (seen & ~ok, "white")):
        axes.scatter(
            days[chosen],
            heights[chosen],
            s=15,
            facecolor=face,
            edgecolor=colour,
            linewidth=0.9,
            zorder=2,
            clip_on=False,
        )


def _date_label(axes: Any, card: PlantingCard, spread: Spread | None, name: str, level: int, colour: str) -> None:
    """The median's date above a row, at the edge where it would run out of the picture."""
    place = {"va": "bottom", "fontsize": 9, "color": colour}
    if spread is None:
        words = "none before the year ends" if name == "freeze" else "never"
        axes.annotate(words, (1.0, level), xycoords=axes.get_yaxis_transform(), ha="right", **place)
        return
    few = "" if spread.years == card.years else f" (in {spread.years} of {card.years} years)"
    late = spread.median > 320.0
    at = 366.0 if late else spread.median
    axes.annotate(card.date(spread.median) + few, (at, level + 0.32), ha="right" if late else "center", **place)


def _year_axis(axes: Any, card: PlantingCard) -> None:
    starts, names = _FIRST_DAYS, _LETTERS
    if card.hemisphere == "south":
        starts = np.sort((_FIRST_DAYS - 182) % 365 + 1)
        names = _LETTERS[6:] + _LETTERS[:6]
    seen = [spread for spread in (card.wheat_ripe, card.sowing, card.freeze) if spread is not None]
    # from the month before the first of the dates; the year's end stays in sight
    first = 1 if len(seen) < 3 else int(np.searchsorted(starts, min(s.low for s in seen) - 15.0, side="right"))
    axes.set_xlim(starts[max(first - 1, 0)], 366)
    axes.set_xticks([*starts, 366], minor=False)
    axes.set_xticklabels([""] * 13)
    ends = np.append(starts[1:], 366)
    axes.set_xticks(0.5 * (starts + ends), minor=True)
    axes.set_xticklabels(names, minor=True)
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xlim(starts[max(first - 1, 0)], 366)
    axes.set_yticks([2, 1, 0])
    axes.set_yticklabels([title for _, title, _ in _ROWS])
    axes.set_ylim(-0.6, 2.75)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e6e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _heat(axes: Any, units: np.ndarray, ok: np.ndarray, card: PlantingCard) -> None:
    """Heat units left, year by year, against what soybean needs."""
    places = np.linspace(-0.3, 0.3, len(units)) if len(units) > 1 else np.zeros(1)
    for chosen, face in ((ok, INK), (~ok, "white")):
        axes.scatter(places[chosen], units[chosen], s=15, facecolor=face, edgecolor=INK, linewidth=0.9, zorder=2)
    axes.axhline(card.degree_days_needed, color="#d55e00", linewidth=1.4, zorder=1)
    axes.set_title(f"needed: {card.degree_days_needed:,.0f}", fontsize=8.5, fontweight="normal", color="#b34f00")
    top = max(float(units.max()), card.degree_days_needed)
    bottom = min(float(units.min()), card.degree_days_needed)
    room = 0.12 * max(top - bottom, 100.0)
    axes.set_ylim(max(0.0, bottom - room) if bottom > room else -0.05 * top, top + 1.5 * room)
    axes.set_xlim(-0.6, 0.6)
    axes.set_xticks([])
    axes.set_ylabel("heat units left, °C d", fontsize=9)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=4, color=INK, label="succeeds"),
        Line2D([], [], marker="o", linestyle="", markersize=4, markerfacecolor="white", color=INK, label="fails"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), fontsize=8, frameon=False, ncols=2)
