"""The agronomic rules as layers of a study's map: heat units, envelope, limiting factor and NDVI peaks, per climate.

Three choices define this file. Whatever the climate comes as (mean temperature, or minimum and maximum; a scenario as
months or as bioclimatic variables), it becomes mean, diurnal range and rain of twelve months on the study's grid, and
everything follows from these. Maps are made by bands of rows, and cells in small groups within a band, so memory is
set by neither the map nor the years; the weather of a cell is keyed by its place in the grid, so bands do not show.
What is assumed (drawn weather, a constant diurnal range, shifted months) is written in the tags of every file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mapping.agronomy.envelope import ENVELOPE_FACTORS, SequenceRule, sequence_envelope
from mapping.agronomy.heat_units import LIMITING_CLASSES, HeatUnitRule, heat_units
from mapping.agronomy.two_peaks import PEAK_CLASSES, WHEAT_SOYBEAN, NdviSeries, TwoPeakRule, peak_classes
from mapping.agronomy.weather import (
    BIOCLIM_NOTE,
    WeatherSettings,
    bioclim_change,
    change_monthly,
    check_monthly,
    draw_weather,
)
from mapping.layers import PROBABILITY_STOPS
from mapping.outputs import RowBandWriter, class_raster_options, iterate_rows, write_qgis_style
from processing.errors import AgriClipError, nearest
from processing.rasters import Grid, read_band_info, read_overview, read_to_grid, transform_points
from processing.units_agriclip import to_canonical

__all__ = [
    "LAYERS",
    "AgronomyInputs",
    "BioclimChange",
    "MonthlyChange",
    "MonthlyClimate",
    "MonthlyLayer",
    "read_climate",
    "write_agronomy_layers",
]

#: Cells walked through at a time: 20 years of daily weather of these are about 60 MB.
_GROUP = 256


@dataclass(frozen=True)
class LayerKind:
    """A layer: what it is, its unit, and its classes or the values between which its colours run."""

    title: str
    unit: str
    classes: Mapping[int, tuple[str, str]] | None = None
    limits: tuple[float, float] = (0.0, 1.0)


#: Layers that can be written; `two_peaks` needs an NDVI series and is of the present only.
LAYERS: dict[str, LayerKind] = {
    "heat_unit_probability": LayerKind("share of years in which wheat and soybean both ripen", "1"),
    "heat_unit_days_left": LayerKind("days from sowing to the killing freeze, median of years", "day", None, (0, 180)),
    "heat_unit_degree_days": LayerKind("heat units left for soybean, median of years", "degC day", None, (0, 2000)),
    "limiting_factor": LayerKind("what limits two crops a year, by the heat-unit rule", "1", LIMITING_CLASSES),
    "envelope": LayerKind("climate envelope of winter wheat followed by soybean (EcoCrop)", "1"),
    "envelope_limiting_factor": LayerKind("what limits two crops a year, by the envelope", "1", ENVELOPE_FACTORS),
    "two_peaks": LayerKind("crops in the year, by the NDVI two-peak rule", "1", PEAK_CLASSES),
}


@dataclass(frozen=True)
class MonthlyLayer:
    """Twelve bands of a raster, January to December.

    Attributes:
        file: Raster.
        unit: Unit of the stored values: degC, K, degF, mm, in, ...
        bands: Band numbers or descriptions of the months; the first twelve, of a file that has twelve, if None.
        scale: Factor on the stored values, on top of the raster's own scale tag.
    """

    file: str
    unit: str
    bands: tuple[int | str, ...] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class MonthlyClimate:
    """A climate as monthly rasters: mean temperature, or minimum and maximum, or all three; and precipitation."""

    precipitation: MonthlyLayer
    mean_temperature: MonthlyLayer | None = None
    minimum_temperature: MonthlyLayer | None = None
    maximum_temperature: MonthlyLayer | None = None

    def __post_init__(self) -> None:
        if (self.minimum_temperature is None) != (self.maximum_temperature is None):
            raise AgriClipError("A monthly climate has minimum and maximum temperature, or neither; give the other.")
        if self.mean_temperature is None and self.minimum_temperature is None:
            raise AgriClipError("A monthly climate needs mean temperature, or minimum and maximum; give either.")


@dataclass(frozen=True)
class MonthlyChange:
    """A scenario as two monthly climates of one climate model, put on the observed one by the delta method."""

    baseline: MonthlyClimate
    future: MonthlyClimate


@dataclass(frozen=True)
class BioclimChange:
    """A scenario of which only bioclimatic variables are known, baseline and future of one climate model.

    Attributes:
        baseline: Raster of the model's baseline.
        future: Raster of the scenario.
        bands: Bands of bio10, bio11 (degC) and bio12 (mm).
    """

    baseline: str
    future: str
    bands: tuple[int | str, int | str, int | str] = ("bio10", "bio11", "bio12")


@dataclass(frozen=True)
class AgronomyInputs:
    """Files and assumptions of the agronomic layers of one climate.

    Attributes:
        climate: Observed climate.
        change: Change put on it; None for the present.
        diurnal_range: Mean of daily maximum less minimum, degC, where minimum and maximum are not given (mem.: 11,
            humid mid-latitudes).
        irrigated: Rain is not asked for.
        ndvi: NDVI of the present.
        resampling: How rasters on other grids are brought to the study's.
    """

    climate: MonthlyClimate
    change: MonthlyChange | BioclimChange | None = None
    diurnal_range: float = 11.0
    irrigated: bool = False
    ndvi: NdviSeries | None = None
    resampling: str = "bilinear"

    def __post_init__(self) -> None:
        if not 0.0 < self.diurnal_range <= 25.0:
            raise AgriClipError(f"The diurnal range must lie between 0 and 25 degC, not {self.diurnal_range:g}.")


@dataclass(frozen=True)
class _Rules:
    heat: HeatUnitRule = field(default_factory=HeatUnitRule)
    sequence: SequenceRule = field(default_factory=SequenceRule)
    peaks: TwoPeakRule = WHEAT_SOYBEAN
    weather: WeatherSettings = field(default_factory=WeatherSettings)


def write_agronomy_layers(
    grid: Grid,
    inputs: AgronomyInputs,
    output_dir: str | Path,
    *,
    scenario: str = "present",
    layers: Sequence[str] | None = None,
    rule: HeatUnitRule | None = None,
    sequence: SequenceRule | None = None,
    peaks: TwoPeakRule | None = None,
    weather: WeatherSettings | None = None,
    rows_per_band: int | None = None,
    tags: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Writes agronomic layers as cloud-optimised GeoTIFFs with QGIS styles, `<scenario>_<layer>.tif`.

    Cells south of the equator are judged by a year that begins on 1 July.

    Args:
        grid: Grid of the study.
        inputs: Climate, its change and NDVI.
        output_dir: Folder of the maps.
        scenario: Name of the climate, in file names and tags.
        layers: Names among :data:`LAYERS`; by default all that the inputs allow.
        rule: Constants of the heat-unit rule; its hemisphere is set by each cell's latitude.
        sequence: Crops and dates of the envelope.
        peaks: Constants of the two-peak rule.
        weather: How daily weather is drawn.
        rows_per_band: Rows of cells at a time; by default about 4,096 cells.
        tags: More tags for every file.
        progress: Called with rows done and rows in all.

    Returns:
        Layer -> file.

    Raises:
        AgriClipError: For unknown layers, files that lack months, or values that are not in the stated unit.
    """
    chosen = _chosen(layers, inputs)
    rules = _Rules(
        rule or HeatUnitRule(), sequence or SequenceRule(), peaks or WHEAT_SOYBEAN, weather or WeatherSettings()
    )
    _check_files(inputs, grid, chosen)
    folder = Path(output_dir)
    written = {}
    with ExitStack() as stack:
        writers = {}
        for name in chosen:
            kind = LAYERS[name]
            options = class_raster_options(kind.classes) if kind.classes else {"units": [kind.unit]}
            told = {**_tags(inputs, rules, name, scenario), **options.pop("tags", {}), **(tags or {})}
            written[name] = folder / f"{scenario}_{name}.tif"
            writer = RowBandWriter(written[name], grid, tags=told, band_names=[name], **options)
            writers[name] = stack.enter_context(writer)
        for rows in iterate_rows(grid.height, rows_per_band or max(1, 4096 // grid.width)):
            for name, values in _band(grid, rows, inputs, rules, chosen).items():
                writers[name].write(rows.start, values)
            if progress:
                progress(rows.stop, grid.height)
    for name, path in written.items():
        kind = LAYERS[name]
        if kind.classes:
            write_qgis_style(path, classes=kind.classes)
        else:
            low, high = kind.limits
            stops = [(low + share * (high - low), colour) for share, colour in PROBABILITY_STOPS]
            write_qgis_style(path, stops=stops, unit=kind.unit.strip("1"))
    return written


def read_climate(
    inputs: AgronomyInputs, grid: Grid, rows: slice | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the climate of a band of rows, with the change of the scenario put on.

    Args:
        inputs: Files and assumptions.
        grid: Grid of the study.
        rows: Rows to read; all if None.

    Returns:
        Mean temperature (degC), diurnal range (degC) and precipitation (mm), each (12, cells) float64, cells in the
        order of the flattened band, NaN where there is no data.
    """
    mean, spread, rain = _read_monthly(inputs.climate, inputs, grid, rows)
    change = inputs.change
    if isinstance(change, MonthlyChange):
        before = _read_monthly(change.baseline, inputs, grid, rows)
        after = _read_monthly(change.future, inputs, grid, rows)
        mean = change_monthly(mean, before[0], after[0], "difference")
        rain = change_monthly(rain, before[2], after[2], "ratio")
        if change.baseline.minimum_temperature and change.future.minimum_temperature:
            # a model may narrow the range by more than the place has
            spread = np.maximum(change_monthly(spread, before[1], after[1], "difference"), 1.0)
    elif isinstance(change, BioclimChange):
        before, after = (
            read_to_grid(file, list(change.bands), grid, rows, inputs.resampling)[0].reshape(3, -1).astype(np.float64)
            for file in (change.baseline, change.future)
        )
        mean, rain = bioclim_change(mean, rain, before, after)
    return mean, spread, rain


def _read_monthly(
    climate: MonthlyClimate, inputs: AgronomyInputs, grid: Grid, rows: slice | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def read(layer: MonthlyLayer) -> np.ndarray:
        values, _ = read_to_grid(layer.file, _bands(layer), grid, rows, inputs.resampling)
        return _physical(values.reshape(12, -1), layer)

    rain = read(climate.precipitation)
    if climate.minimum_temperature is None or climate.maximum_temperature is None:
        assert climate.mean_temperature is not None  # refused when the climate was made
        mean = read(climate.mean_temperature)
        return mean, np.where(np.isfinite(mean), inputs.diurnal_range, np.nan), rain
    low, high = read(climate.minimum_temperature), read(climate.maximum_temperature)
    if (high < low).any():
        raise AgriClipError(
            f"'{climate.minimum_temperature.file}' is warmer than '{climate.maximum_temperature.file}' somewhere; are "
            "minimum and maximum swapped?"
        )
    mean = read(climate.mean_temperature) if climate.mean_temperature else 0.5 * (low + high)
    return mean, high - low, rain


def _bands(layer: MonthlyLayer) -> list[int | str]:
    return list(layer.bands) if layer.bands is not None else list(range(1, 13))


def _physical(values: np.ndarray, layer: MonthlyLayer) -> np.ndarray:
    """Stored values in degC or mm."""
    try:
        zero, one = to_canonical(0.0, layer.unit)[0], to_canonical(1.0, layer.unit)[0]
    except ValueError as error:
        raise AgriClipError(f"The unit of '{layer.file}' is not known: {error}") from error
    return values.astype(np.float64) * layer.scale * (one - zero) + zero


def _band(
    grid: Grid, rows: slice, inputs: AgronomyInputs, rules: _Rules, chosen: Sequence[str]
) -> dict[str, np.ndarray]:
    """All layers of a band of rows, each (h, w)."""
    height = len(grid.rows_of(rows))
    out: dict[str, np.ndarray] = {}
    for name in chosen:
        empty = np.uint8(0) if LAYERS[name].classes else np.float32(np.nan)
        out[name] = np.full(height * grid.width, empty)
    if "two_peaks" in chosen:
        assert inputs.ndvi is not None  # refused when the layers were chosen
        out["two_peaks"] = peak_classes(inputs.ndvi, grid, rows, rules.peaks, inputs.resampling)
    if any(name != "two_peaks" for name in chosen):
        mean, spread, rain = read_climate(inputs, grid, rows)
        known = np.isfinite(mean).all(axis=0) & np.isfinite(spread).all(axis=0) & np.isfinite(rain).all(axis=0)
        if any(name.startswith("envelope") for name in chosen) and known.any():
            monthly = mean[:, known], mean[:, known] - 0.5 * spread[:, known], rain[:, known]
            result = sequence_envelope(*monthly, rules.sequence, irrigated=inputs.irrigated)
            for name, values in (("envelope", result.score), ("envelope_limiting_factor", result.limiting)):
                if name in out:
                    out[name][known] = values
        if any(name.startswith(("heat_unit", "limiting")) for name in chosen):
            for cells, rule in _groups(grid, rows, known, rules.heat):
                _heat_group(out, cells, rule, (mean, spread, rain), grid, rows, inputs, rules.weather)
    return {name: values.reshape(height, grid.width) for name, values in out.items()}


def _heat_group(
    out: dict[str, np.ndarray],
    cells: np.ndarray,
    rule: HeatUnitRule,
    climate: tuple[np.ndarray, np.ndarray, np.ndarray],
    grid: Grid,
    rows: slice,
    inputs: AgronomyInputs,
    settings: WeatherSettings,
) -> None:
    """Fills in the layers of the heat-unit rule for some cells of a band."""
    mean, spread, rain = (values[:, cells] for values in climate)
    row, column = rows.start + cells // grid.width, cells % grid.width
    weather = draw_weather(mean, spread, rain, row, column, settings)
    result = heat_units(weather.minimum, weather.maximum, weather.rain, rule, irrigated=inputs.irrigated)
    for name, values in (
        ("heat_unit_probability", lambda: result.probability),
        ("heat_unit_days_left", lambda: result.median("days_left")),
        ("heat_unit_degree_days", lambda: result.median("degree_days")),
        ("limiting_factor", result.limiting_factor),
    ):
        if name in out:
            out[name][cells] = values()


def _groups(
    grid: Grid, rows: slice, known: np.ndarray, rule: HeatUnitRule
) -> Iterator[tuple[np.ndarray, HeatUnitRule]]:
    """Cells of a band in small groups of one hemisphere, with the rule of that hemisphere."""
    x, y = grid.cell_centres(rows)
    latitude = transform_points(x.ravel(), y.ravel(), grid.crs, "EPSG:4326")[1]
    for hemisphere, here in (("north", latitude >= 0), ("south", latitude < 0)):
        cells = np.flatnonzero(known & here)
        for first in range(0, len(cells), _GROUP):
            yield cells[first : first + _GROUP], replace(rule, hemisphere=hemisphere)


def _chosen(layers: Sequence[str] | None, inputs: AgronomyInputs) -> list[str]:
    """The layers to write; what cannot be made is refused if asked for by name."""
    allowed = [name for name in LAYERS if name != "two_peaks" or (inputs.ndvi is not None and inputs.change is None)]
    for name in layers or ():
        if name not in LAYERS:
            raise AgriClipError(f"There is no agronomic layer '{name}'; {nearest(name, LAYERS)}.")
        if name not in allowed:
            raise AgriClipError("The layer 'two_peaks' needs an NDVI series and is of the present; leave it out.")
    return allowed if layers is None else list(dict.fromkeys(layers))


def _check_files(inputs: AgronomyInputs, grid: Grid, chosen: Sequence[str]) -> None:
    """Months, bands and units of every file that is read, from thinned copies, before anything is written."""
    climates = [inputs.climate]
    if isinstance(inputs.change, MonthlyChange):
        climates += [inputs.change.baseline, inputs.change.future]
    for climate in climates if any(name != "two_peaks" for name in chosen) else []:
        for name in ("mean_temperature", "minimum_temperature", "maximum_temperature", "precipitation"):
            layer = getattr(climate, name)
            if layer is None:
                continue
            count = read_band_info(layer.file).count if layer.bands is None else len(layer.bands)
            if count != 12:
                hint = "list the bands of January to December" if layer.bands is None else "list twelve bands"
                raise AgriClipError(f"'{layer.file}' gives {count} bands for 12 months; {hint}.")
            values = _physical(read_overview(layer.file, _bands(layer), grid, most=256)[0], layer)
            quantity = "rain" if name == "precipitation" else "temperature"
            check_monthly(values, quantity, f"'{layer.file}' (unit {layer.unit})", whole=True)
    if isinstance(inputs.change, BioclimChange):
        for file in (inputs.change.baseline, inputs.change.future):
            values = read_overview(file, list(inputs.change.bands), grid, most=256)[0]
            seen = values[:2][np.isfinite(values[:2])]
            if seen.size and (seen.max() > 60.0 or seen.min() < -80.0):
                raise AgriClipError(
                    f"bio10 and bio11 of '{file}' reach from {seen.min():g} to {seen.max():g}, which cannot be degC; "
                    "check the bands and their unit."
                )
    if "two_peaks" in chosen and inputs.ndvi is not None:
        inputs.ndvi.check(grid)


def _tags(inputs: AgronomyInputs, rules: _Rules, layer: str, scenario: str) -> dict[str, Any]:
    """What a map was made from and what is assumed."""
    tags: dict[str, Any] = {"scenario": scenario, "long_name": LAYERS[layer].title, "units": LAYERS[layer].unit}
    if layer == "two_peaks":
        return {**tags, "rule": asdict(rules.peaks), "ndvi": _named(asdict(inputs.ndvi)) if inputs.ndvi else {}}
    tags["climate"] = _named(asdict(inputs.climate))
    if inputs.change is not None:
        tags["change"] = _named(asdict(inputs.change))
    if isinstance(inputs.change, BioclimChange):
        tags["change_note"] = BIOCLIM_NOTE
    if inputs.climate.minimum_temperature is None:
        tags["diurnal_range"] = f"{inputs.diurnal_range:g} degC everywhere and in every month: assumed"
    tags["irrigated"] = inputs.irrigated
    if layer.startswith("envelope"):
        return {**tags, "rule": asdict(rules.sequence)}
    constants = {name: value for name, value, _, _ in rules.heat.table() if name != "hemisphere"}
    note = "daily weather is drawn around monthly means, not observed; years are independent"
    return {**tags, "rule": constants, "weather": asdict(rules.weather), "weather_note": note}


def _named(told: Any) -> Any:
    """Files by their names alone, so that no machine's folders enter a map; what is not given is left out."""
    if not isinstance(told, dict):
        return told
    files = ("file", "baseline", "future")
    return {
        key: Path(value).name if key in files and isinstance(value, str) else _named(value)
        for key, value in told.items()
        if value is not None
    }
