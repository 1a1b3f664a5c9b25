"""A made-up landscape whose suitability is known: the study that needs no data, no network and no trust.

Monthly climate, terrain and soil are smooth random fields over a north-south gradient. A short heat-unit rule walks
through the crops' year (wheat ripe, soybean sown, first killing freeze) and gives the variables of the report; the
true probability p* is a product of four limits on them: heat left for soybean, summer water, winter cold for wheat,
soil. Three choices: a scenario changes the monthly climate and everything follows by the same rule, so its truth is
known too; warmth helps in the north and harms in the far south, where wheat lacks winter; imagery knows of p* through
crop cover and phenology, as satellites do, and is therefore of the present only.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import yaml
from affine import Affine
from numpy.typing import NDArray

from .errors import AgriClipError

FloatArray = NDArray[np.float64]

CRS = "EPSG:5070"  # metres, equal area
CELL = 10_000.0  # metres
FINE = 2  # imagery pixels per cell edge
NODATA = -9999.0
MONTH_LENGTHS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
MID_DAYS = np.cumsum(MONTH_LENGTHS) - MONTH_LENGTHS / 2.0
# The year's warmth lags the sun: coldest about 15 January, warmest about 16 July. Rain has a ripple of half a year.
WAVE = -np.cos(2.0 * np.pi * (MID_DAYS - 15.5) / 365.0)[:, None, None]
RIPPLE = (1.0 + 0.12 * np.cos(2.0 * np.pi * (np.arange(12) - 4) / 6.0))[:, None, None]
SUMMER = slice(5, 9)  # June to September

# Constants of the heat-unit rule, as used for winter wheat and soybean in the United States.
WHEAT_HEAT = 1750.0  # degC day above 0 from 1 January until wheat is harvested
SOWING_DELAY = 7  # days from harvest to sowing
SOY_BASE, SOY_CAP = 10.0, 30.0  # degC
KILLING_FREEZE = -2.2  # degC, daily minimum
SAFETY = 4.0  # degC: a single night falls this far below a month's mean minimum
NO_FREEZE = 365  # day of year when a place has no freeze

SCENARIOS = {
    "warm": ("2 degC warmer", 2.0, 1.02, 0.97),
    "hot": ("4 degC warmer, drier summers", 4.0, 1.0, 0.86),
}  # name: title, warming in degC, factor on rain of October to May, factor on rain of June to September

# name, title, unit, decimals
VARIABLES = (
    ("annual_temperature", "annual mean temperature", "degC", 1),
    ("coldest_minimum", "mean daily minimum of the coldest month", "degC", 1),
    ("warmest_quarter", "mean temperature of the warmest quarter", "degC", 1),
    ("wheat_harvest", "day of the year of wheat harvest", "1", 0),
    ("season_days", "time from sowing to the first freeze of -2.2 degC", "day", 0),
    ("heat_left", "heat units between wheat harvest and that freeze", "degC day", 0),
    ("annual_rain", "annual precipitation", "mm", 0),
    ("summer_rain", "precipitation from June to September", "mm", 0),
)
LAND = (
    ("soil_water", "available soil water capacity", "mm", 0),
    ("soil_ph", "soil pH", "pH", 1),
    ("elevation", "elevation", "m", 0),
    ("slope", "slope", "degree", 1),
)
SENTENCES = (
    "Heat: annual mean temperature {annual_temperature}; warmest quarter {warmest_quarter}; mean daily minimum of the "
    "coldest month {coldest_minimum}.",
    "Season: wheat is harvested on day {wheat_harvest} of the year; after it {season_days} and {heat_left} remain "
    "before the first killing freeze.",
    "Water: annual precipitation {annual_rain}; from June to September {summer_rain}.",
    "Land: soil holds {soil_water} of available water; soil pH {soil_ph}; elevation {elevation}; slope {slope}.",
)


@dataclass(frozen=True)
class Climate:
    """Monthly climate of a landscape, each (12, height, width).

    Attributes:
        mean: Mean temperature in degC.
        minimum: Mean daily minimum temperature in degC.
        rain: Precipitation in mm.
    """

    mean: FloatArray
    minimum: FloatArray
    rain: FloatArray

    def changed(self, warming: float, winter_rain: float, summer_rain: float) -> Climate:
        """Return this climate under a scenario: warming in degC, factors on rain of October-May and June-September."""
        factor = np.full(12, winter_rain)
        factor[SUMMER] = summer_rain
        return Climate(self.mean + warming, self.minimum + warming, self.rain * factor[:, None, None])


def make_virtual_landscape(
    folder: str | Path, seed: int = 0, height: int = 96, width: int = 144, sites: int | None = None
) -> Path:
    """Write a virtual landscape: rasters, labels, truth and the study file that ties them together.

    Args:
        folder: Where to write; made if absent.
        seed: Seed of everything random; the same seed gives the same bytes of data.
        height: Rows of 10 km cells, at least 16. The climate gradient always spans the whole height.
        width: Columns of 10 km cells, at least 16.
        sites: Labelled sites; 1500 by default, or one cell in nine on small landscapes.

    Returns:
        Path of `study.yaml`. Beside it: `climate_present.tif` and one for each scenario, `land.tif`,
        `ndvi_monthly.tif`, `crop_cover.tif`, `labels.csv`, `truth_present.tif` and one for each scenario.

    Raises:
        AgriClipError: For a landscape smaller than 16 x 16 cells.
    """
    if height < 16 or width < 16:
        raise AgriClipError(f"A virtual landscape needs at least 16 x 16 cells, not {height} x {width}.")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    land = _land(rng, height, width)
    present = _climate(rng, land["elevation"])
    climates = {"present": present}
    for name, (_, warming, winter, summer) in SCENARIOS.items():
        climates[name] = present.changed(warming, winter, summer)
    transform = Affine(CELL, 0.0, -CELL * (width // 2), 0.0, -CELL, 2_000_000.0 + CELL * (height // 2))
    names = [name for name, *_ in VARIABLES]
    truth = {}
    for name, climate in climates.items():
        derived = heat_unit_rule(climate)
        truth[name] = suitability(derived, land)
        _write(target / f"climate_{name}.tif", np.stack([derived[v] for v in names]), transform, names)
        _write(target / f"truth_{name}.tif", truth[name][None], transform, ["p_true"])
    _write(target / "land.tif", np.stack([land[name] for name, *_ in LAND]), transform, [name for name, *_ in LAND])
    fine = transform @ Affine.scale(1.0 / FINE)
    ndvi, cover = _imagery(rng, present, truth["present"])
    _write(target / "ndvi_monthly.tif", ndvi, fine, [f"ndvi_{month:02d}" for month in range(1, 13)])
    _write(target / "crop_cover.tif", cover[None], fine, ["crop_cover"])
    _write_labels(target / "labels.csv", rng, truth["present"], transform, sites)
    path = target / "study.yaml"
    _write_text(path, yaml.safe_dump(_study(seed, height, width), sort_keys=False, allow_unicode=True, width=110))
    return path


def heat_unit_rule(climate: Climate) -> dict[str, FloatArray]:
    """Derive the report's climate variables from monthly climate by following the crops' year day by day.

    Monthly means are spread over days by interpolation between mid-months. Wheat is harvested when 1750 degC day above
    0 degC have passed since 1 January; soybean is sown 7 days later and grows until the first day of autumn whose
    minimum, less 4 degC for a single cold night, reaches -2.2 degC; its heat units have base 10 and cap 30 degC.

    Args:
        climate: Monthly climate.

    Returns:
        Variable name -> (height, width), in the units of `VARIABLES`.
    """
    days = np.arange(1, 366, dtype=np.float64) - 0.5
    mean, minimum = _daily(climate.mean, days), _daily(climate.minimum, days)
    heat = np.cumsum(np.maximum(mean, 0.0), axis=0)
    harvest = _first(heat >= WHEAT_HEAT, NO_FREEZE)
    day = np.arange(1, 366)[:, None, None]
    sowing = np.minimum(harvest + SOWING_DELAY, NO_FREEZE)
    freeze = _first((minimum - SAFETY <= KILLING_FREEZE) & (day > 196) & (day > sowing), NO_FREEZE)
    growing = (day >= sowing) & (day < freeze)
    units = np.clip(mean, SOY_BASE, SOY_CAP) - SOY_BASE
    lengths = MONTH_LENGTHS[:, None, None] / 365.0
    quarters = [(climate.mean[m - 1] + climate.mean[m] + climate.mean[(m + 1) % 12]) / 3.0 for m in range(12)]
    return {
        "annual_temperature": (climate.mean * lengths).sum(axis=0),
        "coldest_minimum": climate.minimum.min(axis=0),
        "warmest_quarter": np.max(quarters, axis=0),
        "wheat_harvest": harvest.astype(np.float64),
        "season_days": np.maximum(freeze - sowing, 0).astype(np.float64),
        "heat_left": (units * growing).sum(axis=0),
        "annual_rain": climate.rain.sum(axis=0),
        "summer_rain": climate.rain[SUMMER].sum(axis=0),
    }


def monthly_climate(derived: dict[str, FloatArray]) -> Climate:
    """Return the months that `heat_unit_rule` made variables of.

    A year of this landscape has five degrees of freedom (a mean, a swing, how far nights are colder, rain in summer
    and rain otherwise), and five variables tell them, as exactly as they are written.

    Args:
        derived: Variable name -> (height, width), of any climate or scenario of a virtual landscape.
    """
    lengths = MONTH_LENGTHS[:, None, None] / 365.0
    quarter = max(float(np.mean([WAVE[m - 1], WAVE[m], WAVE[(m + 1) % 12]])) for m in range(12))
    middle = float((WAVE * lengths).sum())
    swing = (derived["warmest_quarter"] - derived["annual_temperature"]) / (quarter - middle)
    mean = derived["annual_temperature"] + swing * (WAVE - middle)
    minimum = mean - (mean.min(axis=0) - derived["coldest_minimum"])
    rain = np.repeat((derived["annual_rain"] - derived["summer_rain"])[None], 12, axis=0)
    rain[SUMMER] = derived["summer_rain"]
    share = np.repeat(RIPPLE.sum() - RIPPLE[SUMMER].sum(), 12)[:, None, None]
    share[SUMMER] = RIPPLE[SUMMER].sum()
    return Climate(mean=mean, minimum=minimum, rain=rain * RIPPLE / share)


def suitability(climate: dict[str, FloatArray], land: dict[str, FloatArray]) -> FloatArray:
    """Return the true probability p*: a product of four limits, each a logistic curve in (0, 1).

    Args:
        climate: Variables from `heat_unit_rule`.
        land: Soil and terrain.

    Returns:
        (height, width) probability that a field can carry soybean after wheat.
    """
    heat = _logistic((climate["heat_left"] - 1150.0) / 160.0) * _logistic((climate["season_days"] - 90.0) / 9.0)
    # soil that stores water makes up for some missing rain
    water = _logistic((climate["summer_rain"] + 0.6 * (land["soil_water"] - 150.0) - 285.0) / 32.0)
    # wheat sets no ears without a cold spell
    winter = _logistic((3.0 - climate["coldest_minimum"]) / 0.9)
    soil = _logistic((land["soil_ph"] - 5.1) / 0.2) * _logistic((11.0 - land["slope"]) / 1.5)
    return heat * water * winter * soil


def _logistic(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _first(true: NDArray[np.bool_], otherwise: int) -> NDArray[np.int64]:
    """Return the first day of year (1-365) on which something is true along the first axis."""
    return np.where(true.any(axis=0), true.argmax(axis=0) + 1, otherwise).astype(np.int64)


def _daily(monthly: FloatArray, days: FloatArray) -> FloatArray:
    """Interpolate (12, h, w) between mid-months, the year closed upon itself: (365, h, w)."""
    knots = np.concatenate([[MID_DAYS[-1] - 365.0], MID_DAYS, [MID_DAYS[0] + 365.0]])
    values = np.concatenate([monthly[-1:], monthly, monthly[:1]])
    right = np.searchsorted(knots, days)
    part = ((days - knots[right - 1]) / (knots[right] - knots[right - 1]))[:, None, None]
    return np.asarray(values[right - 1] * (1.0 - part) + values[right] * part)


def _field(rng: np.random.Generator, height: int, width: int, scale: float) -> FloatArray:
    """Return a smooth random field of mean 0 and deviation 1; `scale` is its wavelength in cells."""
    pad = int(np.ceil(scale)) * 2  # cut from a larger periodic field, so that opposite edges do not match
    noise = rng.standard_normal((height + pad, width + pad))
    rows, columns = np.fft.fftfreq(height + pad)[:, None], np.fft.rfftfreq(width + pad)[None, :]
    keep = np.exp(-0.5 * (rows**2 + columns**2) * scale**2 * 4.0)
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * keep, s=noise.shape)[:height, :width]
    return np.asarray((smooth - smooth.mean()) / smooth.std())


def _land(rng: np.random.Generator, height: int, width: int) -> dict[str, FloatArray]:
    """Make terrain and soil; scales follow the landscape's size, so that small ones are not flat."""
    unit = min(height, width) / 96.0
    relief = _field(rng, height, width, 22.0 * unit) + 0.35 * _field(rng, height, width, 6.0 * unit)
    elevation = 260.0 + 190.0 * np.logaddexp(0.0, 1.6 * relief - 0.6)
    rough = np.hypot(*np.gradient(elevation)) * unit
    slope = 0.6 + 9.0 * rough / (rough.mean() * 3.0) + 0.5 * np.abs(_field(rng, height, width, 4.0 * unit))
    water = np.clip(165.0 + 38.0 * _field(rng, height, width, 12.0 * unit) - 3.0 * slope, 40.0, 280.0)
    ph = np.clip(6.4 + 0.55 * _field(rng, height, width, 16.0 * unit), 4.3, 8.4)
    return {"elevation": elevation, "slope": slope, "soil_water": water, "soil_ph": ph}


def _climate(rng: np.random.Generator, elevation: FloatArray) -> Climate:
    """Make monthly climate: colder and more seasonal to the north and inland, wetter to the east."""
    height, width = elevation.shape
    unit = min(height, width) / 96.0
    north = np.linspace(1.0, 0.0, height)[:, None]
    east = np.linspace(0.0, 1.0, width)[None, :]
    annual = 18.3 - 13.5 * north - 0.0060 * (elevation - 300.0) + 0.7 * _field(rng, height, width, 18.0 * unit)
    swing = 8.5 + 5.5 * north + 2.5 * (1.0 - east) + 0.5 * _field(rng, height, width, 24.0 * unit)
    mean = annual + swing * WAVE
    minimum = mean - (5.2 + 0.8 * (1.0 - east))
    total = 560.0 + 640.0 * east + 120.0 * (1.0 - north) + 85.0 * _field(rng, height, width, 20.0 * unit)
    summer = np.clip(0.39 + 0.05 * (1.0 - east) + 0.035 * _field(rng, height, width, 26.0 * unit), 0.22, 0.60)
    share = np.where((np.arange(12) >= 5) & (np.arange(12) < 9), 1.0, 0.0)[:, None, None]
    rain = np.maximum(total, 250.0) * (share * summer / 4.0 + (1.0 - share) * (1.0 - summer) / 8.0)
    return Climate(mean=mean, minimum=minimum, rain=rain * RIPPLE)


def _imagery(rng: np.random.Generator, climate: Climate, truth: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Make monthly NDVI (12, FINE h, FINE w) with clouds as nodata, and crop cover in % (FINE h, FINE w)."""

    def finer(cells: FloatArray) -> FloatArray:
        return np.asarray(np.repeat(np.repeat(cells, FINE, axis=-2), FINE, axis=-1))

    mean, rain, p = finer(climate.mean), finer(climate.rain.sum(axis=0)), finer(truth)
    height, width = p.shape
    unit = min(height, width) / (96.0 * FINE)
    # farmers crop good land more, but not only good land and not all of it
    wish = 1.6 * (p - 0.35) * 2.0 + 0.9 * _field(rng, height, width, 10.0 * unit) - 0.2
    cover = np.clip(100.0 * _logistic(wish) + 3.0 * rng.standard_normal(p.shape), 0.0, 100.0)
    # green where it is warm and wet; on cropped land that can carry two crops a dip at wheat harvest, green before it
    warmth = _logistic((mean - 8.0) / 3.0)
    base = 0.12 + 0.58 * warmth * _logistic((rain - 520.0) / 160.0)
    double = (cover / 100.0) * p
    month = np.arange(12)[:, None, None]
    spring, dip = np.exp(-0.5 * ((month - 3.5) / 1.1) ** 2), np.exp(-0.5 * ((month - 6.0) / 0.8) ** 2)
    ndvi = base + double * (0.22 * spring - 0.30 * dip) + 0.025 * rng.standard_normal(base.shape)
    cloudy = np.stack([_field(rng, height, width, 8.0 * unit) for _ in range(12)]) > 1.75
    cloudy |= mean < -9.0  # snow
    return np.where(cloudy, NODATA, np.clip(ndvi, -0.2, 1.0)), cover


def _write_labels(
    path: Path, rng: np.random.Generator, truth: FloatArray, transform: Affine, sites: int | None
) -> None:
    """Draw sites and count double-cropped fields at each: Binomial(total, p*)."""
    cells = truth.size
    count = min(cells, sites) if sites is not None else min(1500, max(64, cells // 9))
    chosen = np.sort(rng.choice(cells, size=count, replace=False))
    rows, columns = np.unravel_index(chosen, truth.shape)
    total = rng.integers(20, 61, size=count)
    positive = rng.binomial(total, truth[rows, columns])
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with half.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "x", "y", "positive", "total"])
        for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
            x, y = transform @ (float(column) + 0.5, float(row) + 0.5)
            writer.writerow([f"site_{index:04d}", f"{x:.0f}", f"{y:.0f}", positive[index], total[index]])
    os.replace(half, path)


def _write(path: Path, values: FloatArray, transform: Affine, names: list[str]) -> None:
    """Write bands as a tiled float32 GeoTIFF."""
    half = path.with_name(f".{path.stem}.{os.getpid()}.tmp.tif")
    profile = {
        "driver": "GTiff",
        "dtype": "float32",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "crs": CRS,
        "transform": transform,
        "nodata": NODATA,
        "compress": "deflate",
        "predictor": 3,
    }
    with rasterio.open(half, "w", **profile) as raster:
        raster.write(values.astype(np.float32))
        raster.descriptions = tuple(names)
    os.replace(half, path)


def _write_text(path: Path, text: str) -> None:
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


def _study(seed: int, height: int, width: int) -> dict[str, object]:
    """Return the study file's content."""

    def variables(rows: tuple[tuple[str, str, str, int], ...]) -> list[dict[str, object]]:
        return [{"name": name, "title": title, "unit": unit, "decimals": digits} for name, title, unit, digits in rows]

    months = [
        {"band": month, "kind": "index", "variable": "ndvi", "month": month, "mean": 0.4, "std": 0.2}
        for month in range(1, 13)
    ]
    blocks = 120_000.0 if min(height, width) >= 48 else 4 * CELL
    return {
        "name": "virtual_landscape",
        "title": "Virtual landscape with a known answer",
        "description": f"Made by processing.virtual_landscape with seed {seed}, {height} x {width} cells of 10 km.",
        "data": ".",
        "grid": {"like": "climate_present.tif"},
        "labels": {
            "table": "labels.csv",
            "id": "id",
            "x": "x",
            "y": "y",
            "crs": CRS,
            "kind": "share",
            "positive": "positive",
            "total": "total",
            "presence_above": 0.5,
        },
        "predictors": [
            {"file": "climate_present.tif", "variables": variables(VARIABLES)},
            {"file": "land.tif", "variables": variables(LAND)},
        ],
        "imagery": [
            {
                "file": "ndvi_monthly.tif",
                "gsd": CELL / FINE,
                "channels": months,
                "reduce": {"percentiles": [10, 50, 90]},
            },
            {
                "file": "crop_cover.tif",
                "gsd": CELL / FINE,
                "channels": [
                    {
                        "band": 1,
                        "name": "crop_cover",
                        "kind": "cover_fraction",
                        "variable": "crop_cover",
                        "mean": 45.0,
                        "std": 25.0,
                        "unit": "%",
                    }
                ],
            },
        ],
        "chip": {"size": 16},
        "report": {"sentences": list(SENTENCES)},
        "splits": {"kind": "spatial_blocks", "size": blocks, "folds": 5, "seed": 0},
        "scenarios": [
            {"name": name, "title": title, "replace": {"climate_present.tif": f"climate_{name}.tif"}}
            for name, (title, *_) in SCENARIOS.items()
        ],
        "model": {"size": "tiny"},
        "training": {"objective": "binary", "epochs": 12, "batch_size": 16, "learning_rate": 0.001, "seed": 0},
        "map": {"suitable_above": 0.5},
    }
