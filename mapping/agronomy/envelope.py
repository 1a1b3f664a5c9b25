"""A climate envelope after EcoCrop: where monthly temperature and rain lie within what wheat and soybean tolerate.

Three choices define this file. The model is EcoCrop (Hijmans et al. 2001, in DIVA-GIS; Ramirez-Villegas, Jarvis &
Laderach 2013, Agricultural and Forest Meteorology 170:67-78): plateau-shaped responses, the minimum over the factors
(law of the minimum, after Hackett 1991), the maximum over the dates on which a season may begin, in half-months as in
its later form. Limits are the values of FAO's EcoCrop data sheets and nothing is fitted. And for two crops a year one
season must follow the other: wheat's spring growth, then soybean, then what is left of the year for wheat's rest over
winter; the best pair of dates counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mapping.agronomy.weather import check_monthly
from processing.errors import AgriClipError

__all__ = [
    "ENVELOPE_FACTORS",
    "SOYBEAN",
    "WINTER_WHEAT",
    "CropNeeds",
    "EnvelopeResult",
    "SequenceRule",
    "crop_envelope",
    "sequence_envelope",
    "trapezoid",
]

_STEPS = 24  # half-months in a year
_STEP_DAYS = 365.0 / _STEPS
_KILL_MARGIN = 4.0  # degC (mem.): a month with this mean minimum above the killing temperature has a night that kills

#: What limits a cell: value -> (title, colour).
ENVELOPE_FACTORS: dict[int, tuple[str, str]] = {
    1: ("nothing: fully within the envelope", "#009e73"),
    2: ("temperature of wheat's growth", "#f0e442"),
    3: ("winter: cold that kills wheat, or too little of it", "#0072b2"),
    4: ("rain for wheat", "#e69f00"),
    5: ("temperature of soybean's growth", "#d55e00"),
    6: ("frost that kills soybean", "#56b4e9"),
    7: ("rain for soybean", "#cc79a7"),
}


@dataclass(frozen=True)
class CropNeeds:
    """What one crop tolerates (zero), and likes (one), of temperature and rain.

    Attributes:
        name: Crop.
        temperature: Lowest, lower optimal, upper optimal and highest mean temperature of growth, degC.
        rain: Likewise of rain, mm.
        kill: Killing temperature, degC.
        season_days: Days of growth.
        rain_period: `year` or `season`: over what the rain's limits are meant.
    """

    name: str
    temperature: tuple[float, float, float, float]
    rain: tuple[float, float, float, float]
    kill: float
    season_days: float
    rain_period: Literal["year", "season"] = "year"

    def __post_init__(self) -> None:
        for what, limits in (("temperature", self.temperature), ("rain", self.rain)):
            if len(limits) != 4 or list(limits) != sorted(limits):
                raise AgriClipError(f"The {what} limits of {self.name} must be four ascending numbers, not {limits}.")
        if not 0 < self.season_days <= 365 or self.rain_period not in ("year", "season"):
            raise AgriClipError(f"{self.name} needs season_days of 1 to 365 and a rain_period of 'year' or 'season'.")

    @property
    def steps(self) -> int:
        """Half-months of growth."""
        return min(_STEPS, max(1, round(self.season_days / _STEP_DAYS)))


# FAO EcoCrop data sheets 1150 (Glycine max) and 2114 (Triticum aestivum): TMIN, TOPMN, TOPMX, TMAX; RMIN, ROPMN,
# ROPMX, RMAX; GMIN, to which the EcoCrop model adds a month (Recocrop's manual). The rain of a season of 105 days
# reaches 450 mm hardly anywhere in the Corn Belt, where soybean lives on stored water too; so the limits are read as
# those of a year, as the sheets' wide range of cycles (75-180 and 90-250 days) suggests. `rain_period="season"` reads
# them as the model in DIVA-GIS does.
#: Soybean. The sheet has no killing temperature; -2.2 degC (28 F) is University of Missouri Extension's.
SOYBEAN = CropNeeds("soybean", (10.0, 20.0, 33.0, 38.0), (450.0, 600.0, 1500.0, 1800.0), kill=-2.2, season_days=105.0)
#: Winter wheat: growth in spring; the killing temperature is that of the sheet for a crop at rest.
WINTER_WHEAT = CropNeeds(
    "winter wheat", (5.0, 15.0, 23.0, 27.0), (300.0, 750.0, 900.0, 1600.0), kill=-20.0, season_days=120.0
)


@dataclass(frozen=True)
class SequenceRule:
    """Two crops in a year: a winter crop, then soybean.

    Attributes:
        first: The crop that rests over winter and grows in spring.
        second: The crop that follows it.
        turnaround_days: Days between the two, rounded to half-months.
        rest_days: Days of rest, at least, between the second crop and the spring growth of the first.
        chill_full: The coldest half-month of the rest must have this mean temperature or less, degC (mem.: upper
            bound of vernalising temperatures).
        chill_none: From here on there is no vernalisation, degC (mem.).
    """

    first: CropNeeds = WINTER_WHEAT
    second: CropNeeds = SOYBEAN
    turnaround_days: float = 0.0
    rest_days: float = 90.0
    chill_full: float = 9.0
    chill_none: float = 13.0

    def __post_init__(self) -> None:
        if not self.chill_full < self.chill_none or min(self.turnaround_days, self.rest_days) < 0:
            raise AgriClipError("The sequence needs chill_full below chill_none, and days of at least 0.")
        if self.first.steps + self.second.steps + self.turnaround + self.rest > _STEPS:
            raise AgriClipError(
                f"{self.first.name}, {self.second.name}, turnaround and rest do not fit in one year; shorten a season."
            )

    @property
    def turnaround(self) -> int:
        """Half-months between the crops."""
        return round(self.turnaround_days / _STEP_DAYS)

    @property
    def rest(self) -> int:
        """Half-months of rest, at least."""
        return round(self.rest_days / _STEP_DAYS)


@dataclass(frozen=True)
class EnvelopeResult:
    """Suitability of each cell.

    Attributes:
        score: float32 (cells,), 0 to 1; NaN without data.
        start: float32 (cells,), month in which the (first) growth begins, 1.0 = 1 January, 1.5 = mid January; NaN
            where the score is 0.
        second_start: Likewise of the second crop; NaN for a single crop.
        limiting: uint8 (cells,), class of :data:`ENVELOPE_FACTORS`: the lowest factor at the best dates; 0 without
            data.
    """

    score: np.ndarray
    start: np.ndarray
    second_start: np.ndarray
    limiting: np.ndarray


def trapezoid(values: np.ndarray, limits: tuple[float, float, float, float]) -> np.ndarray:
    """Plateau response: 0 outside the outer limits, 1 between the inner ones, linear between.

    Args:
        values: Any shape.
        limits: Lowest, lower optimal, upper optimal, highest; two equal neighbours make a step.

    Returns:
        0 to 1, NaN where the value is.
    """
    low, best_low, best_high, high = limits
    values = np.asarray(values, dtype=np.float64)
    up = (values - low) / (best_low - low) if best_low > low else np.where(values >= low, 1.0, 0.0)
    down = (high - values) / (high - best_high) if high > best_high else np.where(values <= high, 1.0, 0.0)
    return np.where(np.isfinite(values), np.clip(np.minimum(up, down), 0.0, 1.0), np.nan)


def crop_envelope(
    mean: np.ndarray, minimum: np.ndarray, rain: np.ndarray, crop: CropNeeds, *, irrigated: bool | np.ndarray = False
) -> EnvelopeResult:
    """Suitability of one crop whose growth may begin in any half-month.

    Args:
        mean: (12, cells) monthly mean temperature, degC.
        minimum: (12, cells) mean daily minimum of each month, degC.
        rain: (12, cells) monthly rain, mm.
        crop: Its limits.
        irrigated: True, or bool (cells,): rain is not asked for.

    Returns:
        Score, best start and limiting factor (classes 5 to 7, whatever the crop).
    """
    mean, minimum, rain, known = _half_months(mean, minimum, rain)
    factors = _growth(mean, minimum, rain, crop, irrigated)  # (3, 24, cells)
    score = factors.min(axis=0)
    start = _rank(factors).argmax(axis=0)
    best = np.take_along_axis(score, start[None], axis=0)[0]
    at_best = np.take_along_axis(factors, start[None, None], axis=1)[:, 0]
    limiting = np.where(best >= 1.0, 1, 5 + at_best.argmin(axis=0))
    return _result(best, start, np.full(start.shape, -1), limiting, known)


def sequence_envelope(
    mean: np.ndarray,
    minimum: np.ndarray,
    rain: np.ndarray,
    rule: SequenceRule | None = None,
    *,
    irrigated: bool | np.ndarray = False,
) -> EnvelopeResult:
    """Suitability of two crops in one year, by the best pair of dates.

    Args:
        mean: (12, cells) monthly mean temperature, degC.
        minimum: (12, cells) mean daily minimum of each month, degC.
        rain: (12, cells) monthly rain, mm.
        rule: Crops and how they follow each other.
        irrigated: True, or bool (cells,): rain is not asked for.

    Returns:
        Score, best dates of both crops and limiting factor.
    """
    rule = rule or SequenceRule()
    mean, minimum, rain, known = _half_months(mean, minimum, rain)
    wheat = _growth(mean, minimum, rain, rule.first, irrigated)
    soy = _growth(mean, minimum, rain, rule.second, irrigated)
    cells = mean.shape[1]
    best, best_rank = np.zeros(cells), np.full(cells, -1.0)
    starts = np.zeros((2, cells), dtype=int)
    limiting = np.zeros(cells, dtype=int)
    chill = (-np.inf, -np.inf, rule.chill_full, rule.chill_none)
    nearest = rule.first.steps + rule.turnaround
    for first in range(_STEPS):
        for offset in range(nearest, _STEPS - rule.second.steps - rule.rest + 1):
            second = (first + offset) % _STEPS
            ripe = second + rule.second.steps
            rest = (ripe + np.arange(_STEPS - offset - rule.second.steps)) % _STEPS
            alive = _alive(minimum[rest].min(axis=0), rule.first)
            cold = _step_down(mean[rest].min(axis=0), chill) if len(rest) else np.ones(cells)
            winter = np.minimum(np.minimum(alive, cold), wheat[1, first])
            factors = np.stack([wheat[0, first], winter, wheat[2, first], *soy[:, second]])
            score, rank = factors.min(axis=0), _rank(factors)
            better = rank > best_rank
            best, best_rank = np.where(better, score, best), np.where(better, rank, best_rank)
            starts = np.where(better, np.array([[first], [second]]), starts)
            limiting = np.where(better, np.where(score >= 1.0, 1, 2 + factors.argmin(axis=0)), limiting)
    return _result(best, starts[0], starts[1], limiting, known)


def _rank(factors: np.ndarray) -> np.ndarray:
    """Order of dates: by the lowest factor, and where that is equal by their mean.

    So the limiting factor of a place without any good date is that of the date which fails least.
    """
    return factors.min(axis=0) + 1e-9 * factors.mean(axis=0)


def _half_months(
    mean: np.ndarray, minimum: np.ndarray, rain: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values of 24 half-months on the line between mid-months; the year's rain is kept. And which cells are known."""
    mean = check_monthly(mean, "temperature", "the mean temperature")
    minimum = check_monthly(minimum, "temperature", "the minimum temperature")
    rain = check_monthly(rain, "rain", "the rain")
    if mean.ndim != 2 or not mean.shape == minimum.shape == rain.shape:
        raise AgriClipError(
            f"Mean and minimum temperature and rain must have one shape (12, cells), not {mean.shape}, "
            f"{minimum.shape} and {rain.shape}."
        )
    known = np.isfinite(mean).all(axis=0) & np.isfinite(minimum).all(axis=0) & np.isfinite(rain).all(axis=0)

    def halves(months: np.ndarray) -> np.ndarray:
        months = np.where(known, months, 0.0)
        early = 0.75 * months + 0.25 * np.roll(months, 1, axis=0)
        late = 0.75 * months + 0.25 * np.roll(months, -1, axis=0)
        return np.stack([early, late], axis=1).reshape(_STEPS, -1)

    return halves(mean), halves(minimum), 0.5 * halves(rain), known


def _growth(
    mean: np.ndarray, minimum: np.ndarray, rain: np.ndarray, crop: CropNeeds, irrigated: bool | np.ndarray
) -> np.ndarray:
    """Factors temperature, survival and rain of growth that begins in each half-month, (3, 24, cells)."""
    warm = trapezoid(mean, crop.temperature)
    alive = _alive(minimum, crop)
    seasons = np.stack([np.roll(np.arange(_STEPS), -start)[: crop.steps] for start in range(_STEPS)])
    fallen = (
        rain[seasons].sum(axis=1) if crop.rain_period == "season" else np.broadcast_to(rain.sum(axis=0), rain.shape)
    )
    water = np.where(np.asarray(irrigated, dtype=bool), 1.0, trapezoid(fallen, crop.rain))
    return np.stack([warm[seasons].min(axis=1), alive[seasons].min(axis=1), water])


def _alive(minimum: np.ndarray, crop: CropNeeds) -> np.ndarray:
    """1 where a mean minimum promises no killing night, else 0."""
    return np.where(minimum < crop.kill + _KILL_MARGIN, 0.0, 1.0)


def _step_down(values: np.ndarray, limits: tuple[float, float, float, float]) -> np.ndarray:
    """The falling half of a plateau."""
    return np.clip((limits[3] - values) / (limits[3] - limits[2]), 0.0, 1.0)


def _result(
    best: np.ndarray, start: np.ndarray, second: np.ndarray, limiting: np.ndarray, known: np.ndarray
) -> EnvelopeResult:
    grown = known & (best > 0)
    return EnvelopeResult(
        score=np.where(known, best, np.nan).astype(np.float32),
        start=np.where(grown, 1.0 + start / 2.0, np.nan).astype(np.float32),
        second_start=np.where(grown & (second >= 0), 1.0 + second / 2.0, np.nan).astype(np.float32),
        limiting=np.where(known, limiting, 0).astype(np.uint8),
    )
