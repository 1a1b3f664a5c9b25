"""The two-peak rule: was a place double-cropped in a year, as told by its NDVI series alone?

Two choices define this file. A series of any dates is first brought to regular ten-day steps, short gaps filled on the
line between neighbours and long ones left missing, and smoothed (Savitzky & Golay 1964, Analytical Chemistry
36:1627-1639), so that the constants mean the same for daily composites and for monthly means. And the rule looks for
the trough as much as for the peaks: between two crops the field is bare. Dates are days since the series began or days
of the year, as the caller gives them; windows on dates belong to a crop system and are part of the constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mapping.agronomy.weather import MONTH_LENGTHS
from processing.errors import AgriClipError
from processing.rasters import Grid, read_band_info, read_overview, read_to_grid

__all__ = [
    "ANY_TWO_CROPS",
    "PEAK_CLASSES",
    "WHEAT_SOYBEAN",
    "NdviSeries",
    "TwoPeakResult",
    "TwoPeakRule",
    "check_ndvi",
    "peak_classes",
    "regular_series",
    "two_peaks",
]


@dataclass(frozen=True)
class TwoPeakRule:
    """Constants of the rule. NDVI has no unit; days are days.

    Attributes:
        step: Days between the regular steps.
        max_gap: Longest missing stretch that is filled, beyond the usual distance of two dates.
        window: Steps in a smoothing window, odd; 1 for no smoothing.
        order: Order of the smoothing polynomial.
        peak: Lowest NDVI of a peak.
        prominence: How far a peak stands above the higher of the two lows that part it from higher ground.
        separation: Days between two peaks, at least.
        trough: Highest NDVI of the low between the two peaks.
        amplitude: Second peak less the trough, at least.
        trough_days: First and last day on which the trough may fall; None for any.
        second_days: First and last day on which the second peak may fall; None for any.
    """

    step: int = 10
    max_gap: int = 31
    window: int = 7
    order: int = 2
    peak: float = 0.45
    prominence: float = 0.15
    separation: int = 60
    trough: float = 0.40
    amplitude: float = 0.20
    trough_days: tuple[int, int] | None = (150, 215)
    second_days: tuple[int, int] | None = (205, 275)

    def __post_init__(self) -> None:
        if self.window % 2 == 0 or self.window < 1 or not 0 <= self.order < max(self.window, 1):
            raise AgriClipError(
                f"The smoothing window must be odd and longer than the order, not {self.window} and {self.order}."
            )
        if self.step < 1 or self.max_gap < 0 or self.separation < self.step:
            raise AgriClipError("step must be at least 1 day, max_gap 0 and separation one step.")


#: Winter wheat, then soybean, in the northern hemisphere; days of the year.
WHEAT_SOYBEAN = TwoPeakRule()
#: Classes of the two-peak rule: value -> (title, colour).
PEAK_CLASSES: dict[int, tuple[str, str]] = {1: ("one crop, or none", "#d9d2c5"), 2: ("two crops", "#1b7837")}
#: Any two crops in a year: no windows on dates.
ANY_TWO_CROPS = TwoPeakRule(trough_days=None, second_days=None)


@dataclass(frozen=True)
class TwoPeakResult:
    """What was found in each series, arrays of shape (n,).

    Where several neighbouring peaks form a pair, the one that meets the rule counts, else the one with the largest
    second cycle; NaN where there are fewer than two peaks.

    Attributes:
        known: bool, the series has enough values to be judged.
        double: bool, two crops.
        peaks: uint8, number of peaks.
        first_day: float32, day of the first peak of the pair.
        second_day: float32, day of the second.
        days_between: float32, days between them.
        trough: float32, lowest NDVI between them.
        trough_day: float32, day of that low.
        amplitude: float32, second peak less that low.
    """

    known: np.ndarray
    double: np.ndarray
    peaks: np.ndarray
    first_day: np.ndarray
    second_day: np.ndarray
    days_between: np.ndarray
    trough: np.ndarray
    trough_day: np.ndarray
    amplitude: np.ndarray


def check_ndvi(values: np.ndarray, where: str = "the series") -> None:
    """Refuses values that cannot be NDVI.

    Args:
        values: Any shape; NaN is passed over.
        where: File or array, for the message.

    Raises:
        AgriClipError: If some lie well outside -1 to 1.
    """
    seen = values[np.isfinite(values)]
    if seen.size and (seen.max() > 1.2 or seen.min() < -1.2):
        raise AgriClipError(
            f"NDVI of {where} reaches from {seen.min():g} to {seen.max():g}, outside -1 to 1; give the product's "
            "scale (often 0.0001), and mark its fill values as missing."
        )


def regular_series(
    values: np.ndarray, days: np.ndarray, rule: TwoPeakRule | None = None, *, cyclic: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Series at regular steps, gap-filled and smoothed.

    Args:
        values: (n, t) NDVI, NaN where missing.
        days: (t,) or (n, t) day of each value, ascending.
        rule: Constants.
        cyclic: The series is a mean year: the end joins the beginning, and the result spans 365 days.

    Returns:
        Days of the steps (T,), and NDVI (n, T) float64, NaN where nothing is known.

    Raises:
        AgriClipError: If values cannot be NDVI, or dates do not ascend.
    """
    rule = rule or WHEAT_SOYBEAN
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 4:
        raise AgriClipError(f"Peaks are sought in series (n, t) of at least 4 dates, not in shape {table.shape}.")
    dates = np.asarray(days, dtype=np.float64)
    if dates.shape not in (table.shape, table.shape[1:]):
        raise AgriClipError(f"Series of shape {table.shape} need days of that shape or ({table.shape[1]},).")
    if not (np.diff(dates, axis=-1) > 0).all():
        raise AgriClipError("The days of a series must ascend; sort the dates, and count on from 365 past the year.")
    check_ndvi(table)
    usual = float(np.median(np.diff(dates, axis=-1)))
    each = dates.ndim == 2
    first = float(dates[..., 0].min())
    last = float(dates[..., -1].max())
    if cyclic:
        if last - first >= 365.0:
            raise AgriClipError("A mean year spans less than 365 days; leave `cyclic` away for a longer series.")
        steps = np.linspace(0.0, 365.0, round(365.0 / rule.step), endpoint=False)  # the year closes on itself
    else:
        steps = np.arange(first, last + 1e-6, rule.step)
    out = np.full((len(table), len(steps)), np.nan)
    valid = np.isfinite(table)
    whole = valid.all(axis=1) & (not each)
    if whole.any():  # on shared dates the line is one linear map of all whole series
        lines = [_line(steps, dates, unit, usual, rule, cyclic) for unit in np.eye(table.shape[1])]
        weights = np.stack(lines)  # (t, T), NaN columns where a step is in a gap
        filled = np.isfinite(weights[0])
        out[np.ix_(whole, filled)] = table[whole] @ weights[:, filled]
    for i in np.flatnonzero(~whole & (valid.sum(axis=1) >= 2)):
        days_seen = (dates[i] if each else dates)[valid[i]]
        out[i] = _line(steps, days_seen, table[i, valid[i]], usual, rule, cyclic)
    return steps, _smooth(out, rule, cyclic)


def _line(
    steps: np.ndarray, days: np.ndarray, values: np.ndarray, usual: float, rule: TwoPeakRule, cyclic: bool
) -> np.ndarray:
    """Values at the steps on the line between neighbouring dates, NaN in gaps and beyond the ends."""
    if cyclic:
        days, values = np.concatenate([days - 365.0, days, days + 365.0]), np.tile(values, 3)
    line = np.interp(steps, days, values, left=np.nan, right=np.nan)
    after = np.searchsorted(days, steps).clip(1, len(days) - 1)
    # a step on a date is known, however far the next one is
    on = np.isclose(days[after - 1], steps) | np.isclose(days[after], steps)
    line[(days[after] - days[after - 1] - usual > rule.max_gap) & ~on] = np.nan
    return line


def two_peaks(
    values: np.ndarray, days: np.ndarray, rule: TwoPeakRule | None = None, *, cyclic: bool = False
) -> TwoPeakResult:
    """Looks for two crops in series of one year.

    Args:
        values: (n, t) NDVI, NaN where missing.
        days: (t,) or (n, t) day of each value, ascending: days of the year, or days since the season began if the
            rule has no windows on dates.
        rule: Constants; :data:`WHEAT_SOYBEAN` if None.
        cyclic: The series is a mean year.

    Returns:
        Peaks, days between them and the verdict. A series of which less than half of the steps is known is unknown.
    """
    rule = rule or WHEAT_SOYBEAN
    steps, series = regular_series(values, days, rule, cyclic=cyclic)
    n, length = series.shape
    known = np.isfinite(series).mean(axis=1) >= 0.5
    peak = _peaks(np.where(known[:, None], series, np.nan), rule)

    double = np.zeros(n, dtype=bool)
    best = np.full(n, -np.inf)
    told = {name: np.full(n, np.nan) for name in ("first_day", "second_day", "trough", "trough_day", "amplitude")}
    first = np.full(n, -1)  # step of the last peak met
    low, low_at = np.full(n, np.inf), np.zeros(n, dtype=int)
    for t in range(length):
        here = series[:, t]
        lower = here < low  # NaN is not lower
        low, low_at = np.where(lower, here, low), np.where(lower, t, low_at)
        pair = peak[:, t] & (first >= 0)
        height = here - low
        fits = pair & (low <= rule.trough) & (height >= rule.amplitude)
        fits &= _within(steps[low_at], rule.trough_days) & _within(steps[t], rule.second_days)
        better = pair & (
            np.where(fits, height + 10.0, height) > best
        )  # a pair that fits goes before one that does not
        best = np.where(better, np.where(fits, height + 10.0, height), best)
        found = {
            "first_day": steps[first],
            "second_day": np.full(n, steps[t]),
            "trough": low,
            "trough_day": steps[low_at],
            "amplitude": height,
        }
        for name, value in found.items():
            told[name] = np.where(better, value, told[name])
        double |= fits
        first = np.where(peak[:, t], t, first)
        low = np.where(peak[:, t], np.inf, low)
    return TwoPeakResult(
        known=known,
        double=double & known,
        peaks=peak.sum(axis=1).astype(np.uint8),
        days_between=(told["second_day"] - told["first_day"]).astype(np.float32),
        **{name: value.astype(np.float32) for name, value in told.items()},
    )


@dataclass(frozen=True)
class NdviSeries:
    """An NDVI series of one year.

    Attributes:
        file: Raster, one band per date.
        days: Day of the year of each band; the middle of the months if None, for twelve bands.
        bands: Bands; all if None.
        scale: Factor on the stored values, on top of the raster's own scale tag.
        valid_range: NDVI outside, after scaling, counts as missing; for files whose fill values are not marked.
        mean_year: The series is a mean year, whose end joins its beginning.
    """

    file: str
    days: tuple[float, ...] | None = None
    bands: tuple[int | str, ...] | None = None
    scale: float = 1.0
    valid_range: tuple[float, float] | None = None
    mean_year: bool = True

    @property
    def band_days(self) -> np.ndarray:
        """Day of the year of each band."""
        if self.days is not None:
            return np.asarray(self.days, dtype=np.float64)
        return np.cumsum(MONTH_LENGTHS) - MONTH_LENGTHS / 2.0 + 0.5  # middle of each month, 1 = 1 January

    @property
    def _band_list(self) -> list[int | str] | None:
        return None if self.bands is None else list(self.bands)

    def check(self, grid: Grid) -> None:
        """Refuses a file whose bands do not fit the days, or whose values cannot be NDVI, from a thinned copy."""
        count = read_band_info(self.file).count if self.bands is None else len(self.bands)
        if count != len(self.band_days):
            raise AgriClipError(
                f"'{self.file}' gives {count} bands for {len(self.band_days)} days; give one day per band."
            )
        check_ndvi(self._valid(read_overview(self.file, self._band_list, grid, most=256)[0]), f"'{self.file}'")

    def read(self, grid: Grid, rows: slice | None, resampling: str) -> np.ndarray:
        """NDVI of a band of rows, (cells, bands), NaN where missing."""
        values = self._valid(read_to_grid(self.file, self._band_list, grid, rows, resampling)[0])
        return values.reshape(len(values), -1).T

    def _valid(self, values: np.ndarray) -> np.ndarray:
        scaled = values.astype(np.float64) * self.scale
        if self.valid_range is None:
            return scaled
        return np.where((scaled >= self.valid_range[0]) & (scaled <= self.valid_range[1]), scaled, np.nan)


def peak_classes(
    ndvi: NdviSeries, grid: Grid, rows: slice | None, rule: TwoPeakRule, resampling: str = "bilinear"
) -> np.ndarray:
    """The rule on a band of rows of a map.

    Args:
        ndvi: The series.
        grid: Grid of the study.
        rows: Rows to judge; all if None.
        rule: Constants.
        resampling: How the series is brought to the grid.

    Returns:
        uint8 (cells,), class of :data:`PEAK_CLASSES`; 0 where too little is known.
    """
    series = ndvi.read(grid, rows, resampling)
    out = np.zeros(len(series), dtype=np.uint8)
    some = np.isfinite(series).any(axis=1)
    if some.any():
        result = two_peaks(series[some], ndvi.band_days, rule, cyclic=ndvi.mean_year)
        out[some] = np.where(result.known, np.where(result.double, 2, 1), 0)
    return out


def _within(day: np.ndarray | float, window: tuple[int, int] | None) -> np.ndarray | bool:
    return True if window is None else (day >= window[0]) & (day <= window[1])


def _smooth(series: np.ndarray, rule: TwoPeakRule, cyclic: bool) -> np.ndarray:
    """Least-squares polynomial in a moving window; within half a window of an end or a gap, that of the window there.

    Near a missing step the polynomial is fitted to what is known in the window, if that is enough, so that one long
    gap does not eat its surroundings.
    """
    if rule.window == 1:
        return series
    half = rule.window // 2
    length = series.shape[1]
    if length < rule.window:
        raise AgriClipError(
            f"The series has {length} steps of {rule.step} days, fewer than the smoothing window of {rule.window}; "
            "give a longer one or a shorter window."
        )
    out = np.full_like(series, np.nan)
    for t in range(length):
        if cyclic:
            at, places = (np.arange(t - half, t + half + 1)) % length, np.arange(-half, half + 1)
        else:
            start = min(max(t - half, 0), length - rule.window)
            at = np.arange(start, start + rule.window)
            places = at - t
        window = series[:, at]
        valid = np.isfinite(window)
        powers = np.vander(places.astype(np.float64), rule.order + 1, increasing=True)
        whole = valid.all(axis=1)
        out[whole, t] = window[whole] @ np.linalg.pinv(powers)[0]
        for i in np.flatnonzero(~whole & np.isfinite(series[:, t]) & (valid.sum(axis=1) > rule.order)):
            out[i, t] = window[i, valid[i]] @ np.linalg.pinv(powers[valid[i]])[0]
    return out


def _peaks(series: np.ndarray, rule: TwoPeakRule) -> np.ndarray:
    """Bool (n, T): local maxima that are high, prominent and far enough apart, the highest kept first."""
    n, length = series.shape
    filled = np.where(np.isfinite(series), series, -np.inf)
    left = np.concatenate([np.full((n, 1), np.inf), filled[:, :-1]], axis=1)  # an end of the series is no peak
    right = np.concatenate([filled[:, 1:], np.full((n, 1), np.inf)], axis=1)
    # of a flat top the first step counts
    top = (filled > left) & (filled >= right) & np.isfinite(left) & np.isfinite(right) & (filled >= rule.peak)
    for t in np.flatnonzero(top.any(axis=0)):
        rows = np.flatnonzero(top[:, t])
        height = filled[rows, t]
        part = filled[rows]
        lows = []
        for side in (part[:, t::-1], part[:, t:]):
            higher = np.maximum.accumulate(side > height[:, None], axis=1)
            # missing steps are no lows
            lows.append(np.where(higher | ~np.isfinite(side), np.inf, side).min(axis=1))
        top[rows, t] = height - np.maximum(*lows) >= rule.prominence
    reach = -(-rule.separation // rule.step)  # steps nearer than this are too near
    kept = np.zeros_like(top)
    left_over = np.where(top, filled, -np.inf)
    while True:
        at = left_over.argmax(axis=1)
        rows = np.flatnonzero(np.isfinite(left_over[np.arange(n), at]))
        if not len(rows):
            return kept
        kept[rows, at[rows]] = True
        near = np.abs(np.arange(length)[None] - at[rows, None]) < reach
        left_over[rows] = np.where(near, -np.inf, left_over[rows])
