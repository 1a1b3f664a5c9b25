"""The data of a study as arrays: labelled sites, predictors, imagery, scenarios.

Three choices: all coordinates are in the CRS of the study's grid (label coordinates are taken there once); values are
in canonical units and NaN where missing; and a file is looked at when it is first used, so that a layer in kelvin
called degC, an empty raster or a grid on another continent is an error in one sentence, not a strange map.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .climate_report import ReportTemplate
from .errors import AgriClipError
from .numbers_agriclip import to_canonical
from .rasters import (
    Grid,
    has_valid,
    pixel_size_m,
    pixels_per_cell,
    read_chips,
    read_overview,
    read_to_grid,
    sample_points,
)
from .sensors_agriclip import ChannelSpec
from .splits import block_ids, spatial_blocks
from .study import Imagery, Predictors, Reduce, Scenario, Study, StudyChannel, Variable
from .study_labels import LabelTable as LabelTable
from .study_labels import read_labels

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Reader = Callable[[Path, Predictors], NDArray[np.float32]]

# Values of land and its climate that can occur, in canonical units.
PLAUSIBLE: dict[str, tuple[float, float]] = {
    "degC": (-95.0, 100.0),  # levels, and the range between extremes of a year
    "degC day": (0.0, 15000.0),
    "mm": (-5000.0, 30000.0),  # water balances (rain less evaporation) are negative
    "mm/m": (0.0, 1000.0),
    "%": (0.0, 1000.0),  # coefficients of variation pass 100
    "pH": (0.0, 14.0),
    "m": (-500.0, 9000.0),
    "day": (-400.0, 800.0),
    "degree": (-360.0, 360.0),
    "kPa": (0.0, 120.0),
    "m/s": (0.0, 120.0),
    "W/m2": (-100.0, 1500.0),
    "kg/ha": (0.0, 1e6),
}
RATIOS = (0.2, 5.0)  # a climate model's ratio of amounts is held to these
LEAST_AMOUNT = 1.0  # mm; a ratio to less than this says nothing
LARGER = 1.5  # cells of predictors longer than the grid's by this count as larger: they are not blended
FAULTY_PART = 0.01  # more values than this outside the plausible range are a wrong unit, fewer are outliers


class StudyData:
    """Arrays of a study.

    Args:
        study: The study.

    Attributes:
        study: The study.
        grid: The cells to map.
        variables: Predictor variables, in the order of columns.
        template: The report's template.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        part = study.grid
        if part.like:
            self.grid = Grid.from_raster(study.path(part.like))
        else:
            assert part.bounds and part.crs and part.resolution  # the study file was validated
            self.grid = Grid.from_bounds(part.bounds, part.resolution, part.crs)
        self.variables: tuple[Variable, ...] = study.variables
        self.template = ReportTemplate(study.report.sentences, self.variables)
        self._labels: LabelTable | None = None
        self._channels: list[ChannelSpec] | None = None
        self._checked: set[tuple[Path, str]] = set()
        self._resampling: dict[str, str] = {}

    # -- labels -------------------------------------------------------------------------------------------------

    def labels(self) -> LabelTable:
        """Read the labelled sites.

        Raises:
            AgriClipError: For a missing column, and for values that are missing or out of range, named by id.
        """
        if self._labels is None:
            sites = read_labels(self.study, self.grid)
            self._labels = replace(sites, x=self.grid.unwrap(sites.x))
        return self._labels

    def folds(self) -> NDArray[np.int64]:
        """Return the fold, 0..folds-1, of each site of `labels()`."""
        splits = self.study.splits
        if splits is None:
            raise AgriClipError(f"The study '{self.study.name}' has no `splits`; add them to hold sites out.")
        sites = self.labels()
        if splits.kind == "random":
            order = np.random.default_rng(splits.seed).permutation(len(sites))
            folds = np.empty(len(sites), dtype=np.int64)
            folds[order] = np.arange(len(sites)) % splits.folds
            return folds
        assert splits.size is not None
        return spatial_blocks(sites.x, sites.y, splits.size, splits.folds, splits.seed)

    def blocks(self) -> NDArray[np.int64]:
        """Return the block of each site of `labels()`, for block bootstraps."""
        splits = self.study.splits
        if splits is None or splits.size is None:
            raise AgriClipError(f"The study '{self.study.name}' has no `splits.size`; add it to have blocks.")
        sites = self.labels()
        return block_ids(sites.x, sites.y, splits.size)

    # -- predictors ---------------------------------------------------------------------------------------------

    def predictors(self, x: ArrayLike, y: ArrayLike, scenario: str | Scenario | None = None) -> FloatArray:
        """Read predictors at points: the cell of each raster that holds the point.

        Args:
            x: (N,) eastings or longitudes in the grid's CRS.
            y: (N,) northings or latitudes.
            scenario: Scenario or its name; the observed climate by default.

        Returns:
            (N, M) values in canonical units, NaN where missing.
        """

        def read(path: Path, group: Predictors) -> NDArray[np.float32]:
            bands = [variable.source_band for variable in group.variables]
            return sample_points(path, bands, x, y, self.grid.crs)[0].T

        return self._assemble(read, scenario).T

    def predictor_grid(self, rows: slice | None = None, scenario: str | Scenario | None = None) -> FloatArray:
        """Read predictors on a band of rows of the grid.

        Args:
            rows: Rows; all by default.
            scenario: Scenario or its name; the observed climate by default.

        Returns:
            (M, h, w) values in canonical units, NaN where missing.
        """

        def read(path: Path, group: Predictors) -> NDArray[np.float32]:
            bands = [variable.source_band for variable in group.variables]
            return read_to_grid(path, bands, self.grid, rows, self.resampling(group))[0]

        return self._assemble(read, scenario)

    def resampling(self, group: Predictors) -> str:
        """Return how a group is brought to the grid; the files of its scenarios are brought there in the same way."""
        if group.resampling != "auto":
            return group.resampling
        if group.file not in self._resampling:
            larger = pixels_per_cell(self.study.path(group.file), self.grid) * LARGER <= 1.0
            self._resampling[group.file] = "nearest" if larger else "bilinear"
        return self._resampling[group.file]

    def _assemble(self, read: Reader, scenario: str | Scenario | None) -> FloatArray:
        """Read all groups, variables first, and put the scenario's change on."""
        change = self.study.scenario(scenario) if isinstance(scenario, str) else scenario
        stacks = []
        for group in self.study.predictors:
            if change is not None and group.file in change.replace:
                stacks.append(self._read(change.replace[group.file], group, read))
            elif change is not None and group.file in change.delta:
                delta = change.delta[group.file]
                observed, baseline, future = (
                    self._read(file, group, read) for file in (group.file, delta.baseline, delta.future)
                )
                stacks.append(_with_change(observed, baseline, future, group.variables))
            else:
                stacks.append(self._read(group.file, group, read))
        return np.concatenate(stacks)

    def _read(self, file: str, group: Predictors, read: Reader) -> FloatArray:
        path = self.study.path(file)
        self._check_predictors(path, file, group)
        values = read(path, group).astype(np.float64)
        for index, variable in enumerate(group.variables):
            values[index] = canonical_values(values[index], variable)
        return values

    def _check_predictors(self, path: Path, file: str, group: Predictors) -> None:
        if (path, group.file) in self._checked:
            return
        for variable in group.variables:
            seen, valid = read_overview(path, [variable.source_band], self.grid)
            if not valid.any() and not has_valid(path, variable.source_band, self.grid):
                raise AgriClipError(
                    f"Band '{variable.source_band}' of '{file}' is all nodata under the grid; check its nodata value "
                    "and the grid's bounds."
                )
            if valid.any():
                check_range(canonical_values(seen[valid].astype(np.float64), variable), variable, file)
        self._checked.add((path, group.file))

    # -- imagery ------------------------------------------------------------------------------------------------

    @property
    def channels(self) -> list[ChannelSpec]:
        """Channels of the chips; empty without imagery. Means and deviations not in the study are measured."""
        if self._channels is None:
            self._channels = [spec for image in self.study.imagery for spec in self._image_channels(image)]
        return self._channels

    @property
    def chip_size(self) -> int:
        """Edge of a chip in pixels."""
        return self.study.chip.size

    @property
    def gsd(self) -> float:
        """Ground sample distance of the chips in metres; 0 without imagery.

        Raises:
            AgriClipError: When rasters of imagery differ in pixel size.
        """
        sizes = [image.gsd or pixel_size_m(self.study.path(image.file), self.grid) for image in self.study.imagery]
        for image, size in zip(self.study.imagery, sizes, strict=True):
            if abs(size / sizes[0] - 1) > 0.05:
                raise AgriClipError(
                    f"'{image.file}' has pixels of {size:.6g} m but '{self.study.imagery[0].file}' of "
                    f"{sizes[0]:.6g} m; resample one of them, chips need one pixel size."
                )
        return float(sizes[0]) if sizes else 0.0

    def chips(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float32], BoolArray]:
        """Read a window of imagery around each point, on the imagery's own grid.

        Args:
            x: (N,) eastings or longitudes in the grid's CRS.
            y: (N,) northings or latitudes.

        Returns:
            Physical values (N, C, s, s), 0 where invalid, and validity of the same shape.
        """
        size, count = self.chip_size, len(np.atleast_1d(np.asarray(x)))
        parts = [np.empty((count, 0, size, size), dtype=np.float32)]
        for image in self.study.imagery:
            path = self.study.path(image.file)
            stored, _ = read_chips(path, [channel.band for channel in image.channels], x, y, self.grid.crs, size)
            parts.append(_reduced(_physical(stored, image.channels), image.reduce))
        values = np.concatenate(parts, axis=1)
        valid = np.isfinite(values)
        values[~valid] = 0.0
        return values, valid

    def _image_channels(self, image: Imagery) -> list[ChannelSpec]:
        path = self.study.path(image.file)
        bands = [channel.band for channel in image.channels]
        seen, valid = read_overview(path, bands, self.grid)
        for channel, any_valid in zip(image.channels, [bool(band.any()) for band in valid], strict=True):
            if not any_valid and not has_valid(path, channel.band, self.grid):
                raise AgriClipError(
                    f"Band '{channel.band}' of '{image.file}' is all nodata under the grid; check its nodata value "
                    "and the grid's bounds."
                )
        physical = _reduced(_physical(seen[None], image.channels), image.reduce)[0]
        specs = []
        for index, (name, channel) in enumerate(_channel_names(image)):
            found = physical[index][np.isfinite(physical[index])]
            if not len(found):
                raise AgriClipError(
                    f"Channel '{name}' of '{image.file}' has no value inside its valid range under the grid; check "
                    "its `scale` and `valid_range`."
                )
            measured = image.reduce is not None or channel.mean is None or channel.std is None
            mean = float(found.mean(dtype=np.float64)) if measured or channel.mean is None else channel.mean
            std = float(found.std(dtype=np.float64)) if measured or channel.std is None else channel.std
            specs.append(
                ChannelSpec(
                    name=name,
                    kind=channel.kind,
                    wavelength_nm=channel.wavelength_nm,
                    month=channel.month if image.reduce is None else None,
                    variable=name if image.reduce is not None else channel.variable,
                    mean=_significant(mean),
                    std=_significant(std) if std > 0 else 1.0,
                    valid_min=channel.valid_range[0] if channel.valid_range else None,
                    valid_max=channel.valid_range[1] if channel.valid_range else None,
                    unit=channel.unit,
                )
            )
        return specs


def _significant(value: float) -> float:
    """Five significant digits: enough to standardise by, and the same on every machine."""
    return float(f"{value:.5g}")


def _channel_names(image: Imagery) -> list[tuple[str, StudyChannel]]:
    if image.reduce is None:
        return [(channel.label, channel) for channel in image.channels]
    first = image.channels[0]
    stem = first.variable or first.kind
    return [(f"{stem}_p{percentile:g}", first) for percentile in image.reduce.percentiles]


def _physical(stored: NDArray[np.float32], channels: tuple[StudyChannel, ...]) -> NDArray[np.float32]:
    """Apply scale, offset and valid range to (N, C, h, w); NaN stays NaN."""
    values = stored.astype(np.float32, copy=True)
    for index, channel in enumerate(channels):
        band = values[:, index]
        if (channel.scale, channel.offset) != (1.0, 0.0):
            band = (band.astype(np.float64) * channel.scale + channel.offset).astype(np.float32)
        if channel.valid_range is not None:
            low, high = channel.valid_range
            with np.errstate(invalid="ignore"):
                band = np.where((band >= low) & (band <= high), band, np.float32(np.nan))
        values[:, index] = band
    return values


def _reduced(values: NDArray[np.float32], reduce: Reduce | None) -> NDArray[np.float32]:
    """Replace (N, C, h, w) by percentiles over C, (N, P, h, w), linear between ranks, NaN where too few are valid."""
    if reduce is None:
        return values
    bands = values.shape[1]
    least = reduce.min_valid or (bands + 1) // 2
    ranked = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(values).sum(axis=1, keepdims=True)
    out = np.empty((len(values), len(reduce.percentiles), *values.shape[2:]), dtype=np.float32)
    for index, percentile in enumerate(reduce.percentiles):
        rank = np.maximum(count - 1, 0) * (percentile / 100.0)
        low = np.floor(rank).astype(np.int64)
        high = np.minimum(low + 1, np.maximum(count - 1, 0))
        below, above = (np.take_along_axis(ranked, at, axis=1)[:, 0] for at in (low, high))
        mixed = below + (above - below) * (rank - low)[:, 0]
        out[:, index] = np.where(count[:, 0] >= least, mixed, np.nan)
    return out


def canonical_values(values: FloatArray, variable: Variable) -> FloatArray:
    """Take stored values to the canonical unit; outside `valid_range` is missing."""
    stated = values * variable.scale + variable.offset
    if variable.valid_range is not None:
        low, high = variable.valid_range
        with np.errstate(invalid="ignore"):
            stated = np.where((stated >= low) & (stated <= high), stated, np.nan)
    # conversions are linear, so two points give them
    zero, _ = to_canonical(0.0, variable.unit)
    thousand, _ = to_canonical(1000.0, variable.unit)
    if (zero, thousand) == (0.0, 1000.0):
        return stated
    return stated * ((thousand - zero) / 1000.0) + zero


def _with_change(
    observed: FloatArray, baseline: FloatArray, future: FloatArray, variables: tuple[Variable, ...]
) -> FloatArray:
    """Put a climate model's change on observed values (M, ...): the delta method.

    A difference is added. Amounts (rain) are multiplied by the ratio, held to 0.2-5: a model that is too wet would
    otherwise dry a region below zero. Where the model's baseline is below 1 mm a ratio says nothing, and the
    difference is added, to no less than 0. Results stay within `valid_range`, and do not pass zero where the unit
    knows no negative values.

    Raises:
        AgriClipError: An amount that is to be changed by a ratio is negative.
    """
    out = np.empty_like(observed)
    for index, variable in enumerate(variables):
        now, before, after = observed[index], baseline[index], future[index]
        changed = now + (after - before)
        floor = PLAUSIBLE.get(variable.canonical_unit, (-np.inf,))[0]
        if variable.changed_by == "ratio":
            for values in (now, before, after):
                # a little below zero is rounding of whoever made the file
                if (values < -LEAST_AMOUNT).any():
                    raise AgriClipError(
                        f"Variable '{variable.name}' is negative in places ({np.nanmin(values):.6g} "
                        f"{variable.canonical_unit}), so its change is no ratio; write `change: difference` for it."
                    )
            some = before >= LEAST_AMOUNT
            ratio = np.clip(after / np.where(some, before, 1.0), *RATIOS)
            changed = np.where(some, now * ratio, changed)
            changed[np.isnan(before)] = np.nan
            floor = 0.0
        if floor == 0.0:
            changed = np.maximum(changed, 0.0)
        if variable.valid_range is not None:
            low, high = (_canonical_number(bound, variable) for bound in variable.valid_range)
            changed = np.clip(changed, min(low, high), max(low, high))
        out[index] = changed
    return out


def _canonical_number(value: float, variable: Variable) -> float:
    """Take a number in the variable's stated unit to the canonical one."""
    return float(to_canonical(value, variable.unit)[0])


def check_range(values: FloatArray, variable: Variable, file: str) -> None:
    """Refuse values that cannot have the stated unit; warn of a few outliers."""
    values = values[np.isfinite(values)]
    bounds = PLAUSIBLE.get(variable.canonical_unit)
    if bounds is None or not len(values):
        return
    outside = float(((values < bounds[0]) | (values > bounds[1])).mean())
    if outside == 0.0:
        return
    unit = variable.canonical_unit
    told = (
        f"Variable '{variable.name}' of '{file}' is given as {variable.unit} but ranges from {values.min():.6g} to "
        f"{values.max():.6g} {unit}"
    )
    if outside > FAULTY_PART:
        raise AgriClipError(f"{told}; {_guess(float(np.median(values)), variable)}.")
    warnings.warn(
        f"{told}; {outside:.2%} of it is outside {bounds[0]:g}..{bounds[1]:g}, set `valid_range` if those are gaps.",
        UserWarning,
        stacklevel=2,
    )


def _guess(median: float, variable: Variable) -> str:
    """Say what the numbers look like instead."""
    if variable.canonical_unit == "degC":
        if variable.unit == "degC" and 180.0 <= median <= 340.0:
            return "that looks like kelvin, write `unit: K`"
        if -950.0 <= median <= 700.0:
            return "that looks like tenths of a degree or a gap value, set `scale: 0.1` or `valid_range`"
    if variable.canonical_unit == "pH" and 14.0 < median <= 140.0:
        return "that looks like tenths of pH, set `scale: 0.1`"
    return "check its `unit`, `scale` and nodata value, or set `valid_range`"
