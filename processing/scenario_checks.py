"""Do the layers of a scenario fit those of the present? Checked by name, unit and range before a map is made.

A projection that looks absurd is mostly a layer in kelvin, a band out of place or a month that is missing. Three
choices: every mismatch is told at once, as a row of a table that says what was expected, what was found and what to
do; what would make a wrong map is refused and what is only unusual is a warning; and files are looked at through
thinned copies of the part under the grid, so that a check takes seconds whatever their size.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import AgriClipError, Problem, named
from .numbers_agriclip import to_canonical
from .rasters import RasterInfo, file_of, has_valid, open_raster, read_band_info, read_overview, require_overlap
from .study import Predictors, Scenario, Variable
from .study_data import LEAST_AMOUNT, PLAUSIBLE, StudyData, canonical_values, check_range

WARMEST_SHIFT = 15.0  # degC between two medians; more is another unit
WETTEST_FACTOR = 5.0  # between two medians of amounts; more is another unit or another length of time
SMALL_AMOUNT = 10.0  # mm; medians that both lie below this may have any ratio
COVERED = 0.9  # share of the present's valid part that a layer should cover too
OVERVIEW = 256  # edge of the thinned copies in pixels

_MONTH = re.compile(r"^(?P<stem>.+?)(?:_(?P<two>0[1-9]|1[0-2])|_?(?:month|mon|m)_?(?P<any>0?[1-9]|1[0-2]))$", re.I)
# Climate models of CMIP6, as they are written in file names; longer names are looked for first.
_MODELS = """ACCESS-CM2 ACCESS-ESM1-5 AWI-CM-1-1-MR BCC-CSM2-MR BCC-ESM1 CAMS-CSM1-0 CanESM5 CanESM5-CanOE CESM2
CESM2-WACCM CIESM CMCC-CM2-SR5 CMCC-ESM2 CNRM-CM6-1 CNRM-CM6-1-HR CNRM-ESM2-1 E3SM-1-0 EC-Earth3 EC-Earth3-CC
EC-Earth3-Veg EC-Earth3-Veg-LR FGOALS-f3-L FGOALS-g3 FIO-ESM-2-0 GFDL-CM4 GFDL-ESM4 GISS-E2-1-G GISS-E2-1-H
HadGEM3-GC31-LL HadGEM3-GC31-MM IITM-ESM INM-CM4-8 INM-CM5-0 IPSL-CM6A-LR KACE-1-0-G KIOST-ESM MCM-UA-1-0 MIROC-ES2L
MIROC6 MPI-ESM-1-2-HAM MPI-ESM1-2-HR MPI-ESM1-2-LR MRI-ESM2-0 NESM3 NorESM2-LM NorESM2-MM SAM0-UNICON TaiESM1
UKESM1-0-LL""".split()
_MODEL_TAGS = ("source_id", "model_id", "climate_model", "NC_GLOBAL#source_id", "NC_GLOBAL#model_id")

Severity = Literal["refuse", "warn"]


@dataclass(frozen=True)
class Mismatch:
    """One way in which a layer of a scenario does not fit the present.

    Attributes:
        scenario: Name of the scenario.
        variable: Variable, or `all` where it concerns the file.
        file: File, as the study names it.
        expected: What the present has, or what is plausible.
        found: What the file has.
        todo: What to do about it.
        severity: `refuse`, where a map would be wrong; or `warn`.
    """

    scenario: str
    variable: str
    file: str
    expected: str
    found: str
    todo: str
    severity: Severity = "refuse"

    def problem(self) -> Problem:
        """Return it as a row of the table in which faults of a study are shown."""
        what = f"'{self.file}': expected {self.expected}, found {self.found}"
        return Problem(f"scenarios[{self.scenario}] {self.variable}", what, self.todo)


@dataclass(frozen=True)
class _Layers:
    """A file seen through a thinned copy: canonical values (M, h, w) of a group's variables, NaN where missing."""

    file: str
    info: RasterInfo
    values: NDArray[np.float64]


def check_scenarios(data: StudyData, names: Iterable[str] | None = None) -> list[Mismatch]:
    """Compare every layer of scenarios with the present's.

    Args:
        data: Data of the study.
        names: Names of scenarios; all of the study's by default.

    Returns:
        Mismatches, those to refuse and those to warn of, in the order of the study; empty when all fit.

    Raises:
        AgriClipError: An unknown scenario, or a layer of the present that cannot be read.
    """
    study = data.study
    chosen = list(study.scenarios) if names is None else [study.scenario(name) for name in names]
    present: dict[str, _Layers] = {}
    found: list[Mismatch] = []
    for scenario in chosen:
        for group in study.predictors:
            if group.file not in scenario.replace and group.file not in scenario.delta:
                continue
            if group.file not in present:
                info = read_band_info(study.path(group.file))
                present[group.file] = _Layers(group.file, info, _read(data, group.file, group))
            found += _group(data, scenario, group, present[group.file])
    return list(dict.fromkeys(found))


def require_scenarios(data: StudyData, names: Iterable[str] | None = None) -> list[Mismatch]:
    """Refuse scenarios whose layers do not fit the present; warn of what is only unusual.

    Args:
        data: Data of the study.
        names: Names of scenarios; all of the study's by default.

    Returns:
        The mismatches that were warned of.

    Raises:
        AgriClipError: One sentence on the first mismatch and the count of others; all of them in `.problems`.
    """
    found = check_scenarios(data, names)
    refused = [mismatch for mismatch in found if mismatch.severity == "refuse"]
    if refused:
        first, more = refused[0].problem(), f" ({len(refused) - 1} more)" if len(refused) > 1 else ""
        raise AgriClipError(
            f"A layer does not fit the present, {first.where}: {first.problem}; {first.hint}{more}.",
            [mismatch.problem() for mismatch in refused],
        )
    for mismatch in found:
        where, problem, hint = mismatch.problem()
        warnings.warn(f"{where}: {problem}; {hint}.", UserWarning, stacklevel=2)
    return found


def mismatch_table(mismatches: Iterable[Mismatch]) -> str:
    """Return mismatches as a table in plain text, one line each below a line of titles."""
    rows = [("scenario", "variable", "file", "expected", "found", "what to do")]
    rows += [(m.scenario, m.variable, m.file, m.expected, m.found, m.todo) for m in mismatches]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _group(data: StudyData, scenario: Scenario, group: Predictors, present: _Layers) -> Iterator[Mismatch]:
    """Check the files that a scenario gives for one group of variables."""
    if group.file in scenario.replace:
        file = scenario.replace[group.file]
        if file == group.file:
            todo = "name the file of the scenario, or leave `replace` away to hold these variables constant"
            yield Mismatch(scenario.name, "all", file, "another file than the present's", "the same", todo, "warn")
        else:
            yield from _layers(data, scenario, group, file, present, present)
            yield from _models(data, scenario, (file,))
        return
    delta = scenario.delta[group.file]
    if delta.baseline == delta.future:
        todo = "give the historical run of the same climate model as `baseline`"
        yield Mismatch(scenario.name, "all", delta.baseline, "a historical run", "the future's own file", todo)
        return
    before = yield from _layers(data, scenario, group, delta.baseline, present, present)
    yield from _layers(data, scenario, group, delta.future, present, before or present)
    yield from _models(data, scenario, (delta.baseline, delta.future))


def _layers(
    data: StudyData, scenario: Scenario, group: Predictors, file: str, present: _Layers, compared: _Layers
) -> Generator[Mismatch, None, _Layers | None]:
    """Check one file: bands, names and units against the present, values against those of `compared`.

    Yields:
        Mismatches.

    Returns:
        The file's layers, where they can be read.
    """

    def told(variable: str, expected: str, found: str, todo: str, severity: Severity = "refuse") -> Mismatch:
        return Mismatch(scenario.name, variable, file, expected, found, todo, severity)

    try:
        info = read_band_info(data.study.path(file))
        require_overlap(info, data.grid)
    except AgriClipError as error:
        what, _, hint = str(error).rstrip(".").partition("; ")
        yield told("all", "a raster under the study's grid", what, hint or "check the file")
        return None
    if info.count != present.info.count:
        numbered = any(isinstance(variable.source_band, int) for variable in group.variables)
        yield told(
            "all",
            _bands(present.info.count),
            _bands(info.count),
            "give a file with the same bands in the same order, or name bands by description",
            "refuse" if numbered else "warn",
        )
    absent, where = _absent(info, group)
    yield from (told(*row) for row in where)
    if absent:
        return None
    for variable in group.variables:
        yield from (told(variable.name, *row) for row in _names_and_units(info, present.info, variable))
    try:
        layers = _Layers(file, info, _read(data, file, group))
    except AgriClipError as error:  # pragma: no cover - a file that breaks between header and pixels
        yield told("all", "readable bands", str(error).rstrip("."), "write the file again")
        return None
    for index, variable in enumerate(group.variables):
        is_change = group.file in scenario.delta
        for row in _values(data, layers, compared, present, index, variable, is_change):
            yield told(variable.name, *row)
    return layers


def _bands(count: int) -> str:
    return f"{count} band{'s' * (count != 1)}"


def _absent(info: RasterInfo, group: Predictors) -> tuple[list[str], list[tuple[str, str, str, str]]]:
    """Return variables whose band the file lacks, and rows about them; months of one series make one row."""
    lost: dict[str, str] = {}
    for variable in group.variables:
        try:
            info.band_number(variable.source_band)
        except AgriClipError as error:
            what, _, hint = str(error).rstrip(".").partition("; ")
            lost[variable.name] = hint or what
    rows, told = [], set()
    for stem, months in _series(variable.name for variable in group.variables).items():
        gone = [month for month, name in months.items() if name in lost]
        if gone:
            told |= {months[month] for month in gone}
            expected = f"{len(months)} months"
            todo = "give a file with every month; a year with gaps is no year"
            rows.append((stem, expected, f"no month {named(gone, 12)} among {_bands(info.count)}", todo))
    for variable in group.variables:
        if variable.name in lost and variable.name not in told:
            todo = lost[variable.name]
            rows.append((variable.name, f"a band '{variable.source_band}'", "no such band", todo))
    return list(lost), rows


def _series(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Return monthly series among names: stem -> month -> name; a series has more than half of the months."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        match = _MONTH.match(name)
        if match:
            found.setdefault(match["stem"], {})[int(match["two"] or match["any"])] = name
    return {stem: dict(sorted(months.items())) for stem, months in found.items() if len(months) > 6}


def _names_and_units(
    info: RasterInfo, present: RasterInfo, variable: Variable
) -> Iterator[tuple[str, str, str, Severity]]:
    """Compare the description and the unit of a variable's band with the present's."""
    here, there = info.band_number(variable.source_band) - 1, present.band_number(variable.source_band) - 1
    name, expected = info.descriptions[here], present.descriptions[there]
    if name and expected and name.lower() != expected.lower():
        # the name of a NetCDF variable differs from archive to archive; one that belongs elsewhere does not
        elsewhere = name.lower() in {(other or "").lower() for other in present.descriptions}
        free = file_of(info.path).suffix.lower() in (".nc", ".nc4", ".cdf") and not elsewhere
        yield (
            f"band {here + 1} to be '{expected}'",
            f"'{name}'",
            f"take the band by name (band: {expected}) or put the bands in the present's order",
            "warn" if free else "refuse",
        )
    unit, other = info.units[here] or "", present.units[there] or ""
    if not unit:
        return
    own_scale = (variable.scale, variable.offset) != (1.0, 0.0)
    if other and not _same_unit(unit, other):
        yield f"unit {other}", f"unit {unit}", f"convert the file's band to {other}", "refuse"
    elif not other and not own_scale and not _same_unit(unit, variable.unit):
        todo = f"convert the file's band to {variable.unit}, or correct its unit tag"
        yield f"unit {variable.unit}", f"unit {unit}", todo, "refuse"


def _same_unit(first: str, second: str) -> bool:
    """Whether two spellings convert numbers alike; unknown spellings are the same only if they are equal."""
    if " ".join(first.split()).lower() == " ".join(second.split()).lower():
        return True
    try:
        return [to_canonical(x, first) for x in (0.0, 1000.0)] == [to_canonical(x, second) for x in (0.0, 1000.0)]
    except ValueError:
        return False


def _read(data: StudyData, file: str, group: Predictors) -> NDArray[np.float64]:
    """Read a thinned copy of a group's bands, in canonical units."""
    bands = [variable.source_band for variable in group.variables]
    seen, _ = read_overview(data.study.path(file), bands, data.grid, most=OVERVIEW)
    return np.stack(
        [canonical_values(band.astype(np.float64), v) for band, v in zip(seen, group.variables, strict=True)]
    )


def _values(
    data: StudyData,
    layers: _Layers,
    compared: _Layers,
    present: _Layers,
    index: int,
    variable: Variable,
    is_change: bool,
) -> Iterator[tuple[str, str, str, Severity]]:
    """Compare the values of a variable with those of the present, or of the climate model's own baseline."""
    unit = variable.canonical_unit
    values, reference = layers.values[index], compared.values[index]
    if not np.isfinite(values).any():
        if not has_valid(data.study.path(layers.file), variable.source_band, data.grid):
            todo = "check its nodata value, `valid_range` and the grid's bounds"
            yield "values under the grid", "nodata throughout", todo, "refuse"
        return
    seen = values[np.isfinite(values)]
    low, high = float(seen.min()), float(seen.max())
    median, told = float(np.median(seen)), f"{low:.4g} to {high:.4g} {unit}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # outliers are told when the file is read for a map
            check_range(seen, variable, layers.file)
    except AgriClipError as error:
        bounds = PLAUSIBLE[unit]
        yield f"{bounds[0]:g} to {bounds[1]:g} {unit}", told, str(error).rstrip(".").partition("; ")[2], "refuse"
        return
    if is_change and variable.changed_by == "ratio" and low < -LEAST_AMOUNT:
        todo = "write `change: difference` for a balance, or set `valid_range`"
        yield f"no negative {unit} where a ratio is taken", told, todo, "refuse"
    before = reference[np.isfinite(reference)]
    if not len(before):
        return
    was = float(np.median(before))
    whose = "present" if compared is present else "baseline"
    if unit == "degC" and abs(median - was) > WARMEST_SHIFT:
        expected = f"a median within {WARMEST_SHIFT:g} degC of the {whose}'s {was:.4g}"
        yield expected, f"{median:.4g} degC", "check its unit: kelvin, degF or tenths of a degree", "refuse"
    larger, smaller = max(median, was), min(median, was)
    if unit == "mm" and smaller >= 0 and larger >= SMALL_AMOUNT and larger > WETTEST_FACTOR * smaller:
        expected = f"a median within a factor {WETTEST_FACTOR:g} of the {whose}'s {was:.4g}"
        todo = "check its unit (kg m-2 s-1 is 86,400 mm a day) and whether sums are of a month or a year"
        yield expected, f"{median:.4g} {unit}", todo, "refuse"
    if values.shape == present.values[index].shape:
        valid = np.isfinite(present.values[index])
        covered = float(np.isfinite(values[valid]).mean()) if valid.any() else 1.0
        if covered < COVERED:
            todo = "the map will be nodata there; give a layer that covers the grid"
            yield "values wherever the present has some", f"{covered:.0%} of them", todo, "warn"


def _models(data: StudyData, scenario: Scenario, files: tuple[str, ...]) -> Iterator[Mismatch]:
    """Warn when files of one change come from different climate models, as far as their names or tags tell."""
    models = {file: _model_of(data, file) for file in files}
    known = {file: model for file, model in models.items() if model}
    if len(set(known.values())) > 1:
        baseline, future = files
        todo = "take baseline and future from one climate model"
        expected = f"the baseline's {known[baseline]}"
        yield Mismatch(scenario.name, "all", future, expected, known[future], todo, "warn")
        return
    stated = _model_in(scenario.climate_model or "")
    for file, model in known.items():
        if stated and model != stated:
            todo = "correct `climate_model` or the file"
            yield Mismatch(scenario.name, "all", file, stated, model, todo, "warn")


def _model_of(data: StudyData, file: str) -> str | None:
    """Name of the climate model in the tags of a file or in its name."""
    path = data.study.path(file)
    try:
        with open_raster(path) as source:
            tags = source.tags()
    except AgriClipError:
        tags = {}
    stated = next((str(tags[key]) for key in _MODEL_TAGS if tags.get(key)), None)
    return (_model_in(stated) or stated) if stated else _model_in(file_of(path).stem)


def _model_in(text: str) -> str | None:
    """Name of the CMIP6 model that a text mentions; the longest name that fits, whatever joins its parts."""
    folded = f"-{re.sub(r'[^a-z0-9]+', '-', text.lower())}-"
    for model in sorted(_MODELS, key=len, reverse=True):
        if f"-{model.lower()}-" in folded:
            return model
    return None
