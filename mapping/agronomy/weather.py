"""Daily weather where only monthly means are known: a smooth year, weather around it, and the change of a scenario.

Three choices define this file. The curve of a year is the smoothest one with the given monthly means, which it keeps
exactly, unlike a line between mid-months. Around it lies weather: a smooth curve alone has no cold night in a mild
week and so moves the first autumn freeze late by weeks. The weather of a cell is drawn from random numbers that are
keyed by its row and column (Philox, counter-based: Salmon et al. 2011, SC11, doi 10.1145/2063384.2063405): it does not
depend on the band of rows, the process or the order, and it is the same under every scenario, so that two maps differ
by climate alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from processing.errors import AgriClipError

__all__ = [
    "BIOCLIM_NOTE",
    "MONTH_LENGTHS",
    "DailyWeather",
    "WeatherSettings",
    "bioclim_change",
    "change_monthly",
    "check_monthly",
    "daily_curve",
    "draw_weather",
]

MONTH_LENGTHS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_STARTS = np.concatenate([[0], np.cumsum(MONTH_LENGTHS)[:-1]])
_MONTH_OF_DAY = np.repeat(np.arange(12), MONTH_LENGTHS)
_DAYS = 365

#: What is approximate about monthly values changed by bioclimatic variables; goes into the tags of maps.
BIOCLIM_NOTE = (
    "Months are shifted by the change of bio10 (warmest quarter) and bio11 (coldest quarter), interpolated over the "
    "rank of the month's temperature; rain of every month by the ratio of bio12. Changes of the diurnal range, of the "
    "seasons between and of the rain's season are not known from these variables and are left out."
)


@dataclass(frozen=True)
class WeatherSettings:
    """How daily weather is drawn.

    Attributes:
        years: Independent years.
        seed: Seed of all cells.
        daily_sd: Standard deviation of a day's temperature about the curve, degC (mem.: 3.5 from April to October).
        persistence: Correlation of a day with the day before (mem.: 0.7, mid-latitudes).
        wet_day_rain: Mean rain of a wet day, mm (mem.: 8); sets how many days are wet.
        gamma_shape: Shape of the gamma distribution of a wet day's rain (mem.: 0.75; below 1 most days are light).
        monthly_rain_cv: Coefficient of variation of a month's total between years. 0: each year has the given total;
            above, totals are gamma distributed and the mean over the drawn years is the given total.
    """

    years: int = 20
    seed: int = 0
    daily_sd: float = 3.5
    persistence: float = 0.7
    wet_day_rain: float = 8.0
    gamma_shape: float = 0.75
    monthly_rain_cv: float = 0.0

    def __post_init__(self) -> None:
        if self.years < 1 or not 0 <= self.seed < 2**32:
            raise AgriClipError("Drawn weather needs at least one year, and a seed from 0 to 2^32 - 1.")
        if self.daily_sd < 0 or not 0 <= self.persistence < 1 or self.monthly_rain_cv < 0:
            raise AgriClipError(
                "Drawn weather needs daily_sd and monthly_rain_cv of at least 0, and persistence from 0 to below 1."
            )
        if not (self.wet_day_rain > 0 and self.gamma_shape > 0):
            raise AgriClipError("wet_day_rain and gamma_shape of drawn weather must be above 0.")


@dataclass(frozen=True)
class DailyWeather:
    """Daily weather, each float32 (years, 365, cells); NaN where a cell has no climate.

    Attributes:
        minimum: Minimum temperature, degC.
        maximum: Maximum temperature, degC.
        rain: Precipitation, mm.
    """

    minimum: np.ndarray
    maximum: np.ndarray
    rain: np.ndarray


def check_monthly(
    values: np.ndarray, quantity: Literal["temperature", "rain"], where: str, *, whole: bool = False
) -> np.ndarray:
    """Refuse monthly values that are not twelve months of degC or mm.

    Args:
        values: (12, ...) monthly means in degC or totals in mm.
        quantity: What they are.
        where: File or array, for the message.
        whole: The values are those of a whole region, of which some part must be wet; without it a desert passes.

    Returns:
        The values as float64.

    Raises:
        AgriClipError: If months are missing, or the values look like kelvin, tenths of a degree, metres or a rate.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 1 or array.shape[0] != 12:
        raise AgriClipError(f"{where} has {array.shape[:1]} in place of 12 months; give January to December.")
    seen = array[np.isfinite(array)]
    if not seen.size:
        return array
    low, high = float(seen.min()), float(seen.max())
    if quantity == "temperature" and (high > 60.0 or low < -80.0):
        hint = "degC"
        if low > 150.0:
            hint = "degC: they look like kelvin, use offset -273.15"
        elif max(high, -low) > 100.0:
            hint = "degC: they look like tenths of a degree, use scale 0.1"
        raise AgriClipError(f"Monthly temperatures of {where} reach from {low:g} to {high:g}; give {hint}.")
    if quantity == "rain":
        if low < 0.0 or high > 3000.0:
            raise AgriClipError(
                f"Monthly rain of {where} reaches from {low:g} to {high:g} mm; give totals in mm, NaN where missing."
            )
        if whole and 0.0 < high < 3.0:
            raise AgriClipError(
                f"The wettest month of {where} has {high:g} mm; it looks like metres or a rate, give monthly totals "
                "in mm."
            )
    return array


@lru_cache(maxsize=1)
def _curve_matrix() -> np.ndarray:
    """(365, 12) matrix from monthly means to the smoothest periodic daily curve that has them."""
    second = np.roll(np.eye(_DAYS), 1, axis=1) - 2.0 * np.eye(_DAYS) + np.roll(np.eye(_DAYS), -1, axis=1)
    months = np.zeros((12, _DAYS))
    months[_MONTH_OF_DAY, np.arange(_DAYS)] = 1.0 / MONTH_LENGTHS[_MONTH_OF_DAY]
    # minimise |second x|^2 under months x = m: the Lagrange equations
    system = np.block([[second.T @ second, months.T], [months, np.zeros((12, 12))]])
    right = np.concatenate([np.zeros((_DAYS, 12)), np.eye(12)])
    return np.linalg.solve(system, right)[:_DAYS]


def daily_curve(monthly: np.ndarray) -> np.ndarray:
    """Daily values of a year whose monthly means are exactly the given ones.

    The curve is periodic and has the least sum of squared second differences of all curves with these means: a
    discrete mean-preserving spline. It serves the purpose of Rymes & Myers 2001 (Solar Energy 71:225-231), who smooth
    and correct in turns; here the answer is one linear map, so that a change of climate put on months or on days is
    the same change.

    Args:
        monthly: (12, ...) monthly means.

    Returns:
        (365, ...) float64.
    """
    months = np.asarray(monthly, dtype=np.float64)
    if months.ndim < 1 or months.shape[0] != 12:
        raise AgriClipError(f"A year's curve is drawn from 12 monthly means, not from shape {months.shape}.")
    matrix = _curve_matrix()
    # month by month and not as one product, whose last digits depend on how many cells there are
    curve = np.zeros((_DAYS, *months.shape[1:]))
    for month, values in enumerate(months):
        curve += matrix[:, month].reshape(-1, *[1] * values.ndim) * values
    return curve


def draw_weather(
    mean: np.ndarray,
    diurnal_range: np.ndarray | float,
    rain: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    settings: WeatherSettings | None = None,
) -> DailyWeather:
    """Draws years of daily weather around a monthly climate.

    Temperature is the mean-preserving curve plus a first-order autoregressive residual that minimum and maximum share;
    the monthly means of single years differ, as they do, and agree on average. Wet days are Bernoulli trials, their
    amounts gamma distributed and then scaled, so that every month has its total (Richardson 1981, Water Resources
    Research 17:182-190, without the persistence of wet days).

    Args:
        mean: (12, cells) monthly mean temperature, degC.
        diurnal_range: (12, cells), or one number: mean of daily maximum less minimum, degC.
        rain: (12, cells) monthly precipitation, mm.
        rows: (cells,) row of each cell in the study's grid, from 0.
        columns: (cells,) column, likewise.
        settings: How weather is drawn.

    Returns:
        Daily weather; the same for a cell whatever other cells are drawn with it.

    Raises:
        AgriClipError: For shapes that differ or values that cannot be degC or mm.
    """
    settings = settings or WeatherSettings()
    mean, rain = check_monthly(mean, "temperature", "the climate"), check_monthly(rain, "rain", "the climate")
    cells = mean.shape[1] if mean.ndim == 2 else -1
    spread = np.broadcast_to(np.asarray(diurnal_range, dtype=np.float64), mean.shape)
    rows, columns = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
    if mean.ndim != 2 or rain.shape != mean.shape or rows.shape != (cells,) or columns.shape != (cells,):
        raise AgriClipError(
            f"Temperature {mean.shape}, rain {rain.shape}, rows {rows.shape} and columns {columns.shape} must be "
            "(12, cells), (12, cells), (cells,) and (cells,)."
        )
    if np.nanmin(spread, initial=1.0) < 0.0 or np.nanmax(spread, initial=1.0) > 25.0:
        raise AgriClipError(
            "The diurnal range must lie between 0 and 25 degC in every month; is it the range of the extremes?"
        )
    known = np.isfinite(mean).all(axis=0) & np.isfinite(rain).all(axis=0) & np.isfinite(spread).all(axis=0)
    residual, wet, amount, months = _draws(rows, columns, known, settings)
    smooth = daily_curve(np.where(known, mean, 0.0)).T[:, None, :]  # (cells, 1, 365)
    half = 0.5 * np.maximum(daily_curve(np.where(known, spread, 0.0)), 0.0).T[:, None, :]
    middle = smooth + residual
    totals = np.where(known, rain, 0.0).T[:, None, :] * months  # (cells, years, 12)
    daily_rain = _rain(totals, wet, amount, settings)

    def told(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        values[~known] = np.nan
        return np.moveaxis(values, 0, -1)  # a view: days stay beside each other in memory

    return DailyWeather(told(middle - half), told(middle + half), told(daily_rain))


def _draws(
    rows: np.ndarray, columns: np.ndarray, known: np.ndarray, settings: WeatherSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random numbers of each cell: residuals, uniforms, amounts (cells, years, 365), monthly factors (.., .., 12)."""
    shape = (len(rows), settings.years, _DAYS)
    noise, wet, amount = (np.zeros(shape, dtype=np.float32) for _ in range(3))
    months = np.ones((len(rows), settings.years, 12))
    for i in np.flatnonzero(known):
        place = np.array([settings.seed, (int(rows[i]) << 32) | int(columns[i])], dtype=np.uint64)
        random = np.random.Generator(np.random.Philox(key=place))
        random.standard_normal(dtype=np.float32, out=noise[i])
        random.random(dtype=np.float32, out=wet[i])
        random.standard_gamma(settings.gamma_shape, dtype=np.float32, out=amount[i])
        if settings.monthly_rain_cv > 0:
            drawn = random.standard_gamma(settings.monthly_rain_cv**-2, size=(settings.years, 12))
            months[i] = drawn / np.maximum(drawn.mean(axis=0), 1e-12)
    # stationary from the first day on
    keep, fresh = np.float32(settings.persistence), np.float32((1.0 - settings.persistence**2) ** 0.5)
    for day in range(1, _DAYS):
        noise[:, :, day] = keep * noise[:, :, day - 1] + fresh * noise[:, :, day]
    noise *= np.float32(settings.daily_sd)
    return noise, wet, amount, months


def _rain(totals: np.ndarray, wet: np.ndarray, amount: np.ndarray, settings: WeatherSettings) -> np.ndarray:
    """Daily rain (cells, years, 365) whose monthly sums are `totals` (cells, years, 12)."""
    out = np.zeros(wet.shape, dtype=np.float64)
    for month, (start, length) in enumerate(zip(_STARTS, MONTH_LENGTHS, strict=True)):
        days, total = slice(start, start + length), totals[:, :, month, None]
        chance = np.clip(total / settings.wet_day_rain / length, 0.0, 0.95)
        uniform = wet[:, :, days]
        # a month with rain has a wet day: the one nearest to it
        rains = (uniform < chance) | (uniform == uniform.min(axis=2, keepdims=True))
        # the small number keeps a month whose amounts all round to zero from losing its rain
        shares = np.where(rains, amount[:, :, days].astype(np.float64) + 1e-6, 0.0)
        out[:, :, days] = total * shares / shares.sum(axis=2, keepdims=True)
    return out


def change_monthly(
    observed: np.ndarray, baseline: np.ndarray, future: np.ndarray, kind: Literal["difference", "ratio"]
) -> np.ndarray:
    """Puts the change of a climate model on observed monthly values (delta method).

    Args:
        observed: (12, ...) observed values.
        baseline: (12, ...) the model's values of the same years.
        future: (12, ...) the model's values of the scenario.
        kind: `difference` for temperature; `ratio` for precipitation in mm, held to 0.2-5.

    Returns:
        observed + (future - baseline), or observed x ratio. One mm is added to both sides of a ratio, so that a dry
        month in the model does not make a flood.
    """
    if kind == "difference":
        return observed + (future - baseline)
    if kind == "ratio":
        return observed * np.clip((future + 1.0) / (baseline + 1.0), 0.2, 5.0)
    raise AgriClipError(f"A change is put on as 'difference' or 'ratio', not {kind!r}.")


def bioclim_change(
    mean: np.ndarray, rain: np.ndarray, baseline: np.ndarray, future: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Changes monthly values by what three bioclimatic variables tell of a scenario; an approximation.

    Months are ranked by temperature. The middle of the three warmest changes by the difference of bio10 and the middle
    of the three coldest by that of bio11; others lie on the line through the two, so that both quarters change by
    exactly their differences. Months of equal temperature share their rank. Rain changes by the ratio of bio12 (one mm
    added to both sides, held to 0.2-5) in every month. What this leaves out is in :data:`BIOCLIM_NOTE`.

    Args:
        mean: (12, cells) observed monthly mean temperature, degC.
        rain: (12, cells) observed monthly precipitation, mm.
        baseline: (3, cells) bio10, bio11 in degC and bio12 in mm of the climate model's baseline.
        future: (3, cells) likewise of the scenario.

    Returns:
        Temperature and rain of the scenario, each (12, cells).
    """
    mean, rain = np.asarray(mean, dtype=np.float64), np.asarray(rain, dtype=np.float64)
    if np.shape(baseline) != (3, mean.shape[1]) or np.shape(future) != np.shape(baseline):
        raise AgriClipError(
            f"A bioclimatic change needs bio10, bio11 and bio12, (3, {mean.shape[1]}), of baseline and future, not "
            f"{np.shape(baseline)} and {np.shape(future)}."
        )
    below = (mean[None] < mean[:, None]).sum(axis=1)
    equal = (mean[None] == mean[:, None]).sum(axis=1)
    rank = below + 0.5 * (equal - 1)  # 0 coldest to 11 warmest
    weight = (rank - 1.0) / 9.0  # the three coldest have the mean rank 1, the three warmest 10
    warmest, coldest = future[0] - baseline[0], future[1] - baseline[1]
    warmed = mean + weight * warmest + (1.0 - weight) * coldest
    return warmed, change_monthly(rain, baseline[2], future[2], "ratio")
