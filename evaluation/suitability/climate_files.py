"""Climate rasters of other climate models, made into scenarios by what their names say.

Two choices define this file. What a raster is (climate model, pathway, period) is read from its name, by taking away
the words that the name of the study's own raster has too; what cannot be told or paired is named with its reason and
never guessed. And scenarios are made as the study makes its own: the change between the historical and the later run
of one climate model (the delta method), or a file in place of a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from processing.errors import AgriClipError

__all__ = ["ClimateFile", "FoundScenarios", "find_scenarios", "read_climate_name"]

_PATHWAY = re.compile(r"(?<![a-z0-9])(ssp[-_ ]?[1-5][-_. ]?\d[-_.]?\d|rcp[-_ ]?\d[-_.]?\d)(?!\d)", re.IGNORECASE)
_HISTORICAL = re.compile(r"(?<![a-z])(historical|hist|baseline|reference)(?![a-z])", re.IGNORECASE)
_YEARS = re.compile(r"(?<!\d)((?:18|19|20|21)\d\d)(?:[-_]((?:18|19|20|21)\d\d))?(?!\d)")
# A run of a climate model, and resolutions, as archives write them into names.
_NOISE = re.compile(
    r"^(r\d+i\d+p\d+f\d+|\d+([.p]\d+)?(m|s|min|sec|deg|km|arcmin|arcsec)|v\d+|g[nr]\d?)$", re.IGNORECASE
)
_RASTERS = (".tif", ".tiff", ".vrt", ".nc", ".nc4")


@dataclass(frozen=True)
class ClimateFile:
    """What the name of a raster says.

    Attributes:
        path: The file.
        climate_model: Name of the climate model as it is written; empty where none is.
        pathway: `historical`, or a pathway such as `ssp585`; None where the name tells neither.
        period: Year, or years such as `2041-2060`; None where there are none.
    """

    path: Path
    climate_model: str
    pathway: str | None
    period: int | str | None

    @property
    def year(self) -> float:
        """Middle of the period; NaN where there is none."""
        if self.period is None:
            return float("nan")
        return float(np.mean([int(year) for year in str(self.period).split("-")]))


@dataclass(frozen=True)
class FoundScenarios:
    """Scenarios made of a folder of rasters.

    Attributes:
        scenarios: ``processing.study.Scenario`` of each pair.
        pairs: What each is made of, in words.
        left_out: Files or combinations that could not be used, and why.
    """

    scenarios: tuple[Any, ...]
    pairs: tuple[str, ...]
    left_out: tuple[str, ...]


def read_climate_name(path: str | Path, shared: Iterable[str] = ()) -> ClimateFile:
    """Reads climate model, pathway and period from the name of a raster.

    `bioclim_gfdl-esm4_ssp126_2050.tif` is GFDL-ESM4, ssp126, 2050, where `bioclim` is shared with the study's files.

    Args:
        path: The file; only its name is read.
        shared: Words of the names of the study's own rasters, which say nothing about the climate model.

    Returns:
        What the name says.
    """
    rest = Path(path).stem
    pathway, period = None, None
    if match := _PATHWAY.search(rest):
        pathway = re.sub(r"[^a-z0-9]", "", match[1].lower())
        rest = rest[: match.start()] + "_" + rest[match.end() :]
    elif match := _HISTORICAL.search(rest):
        pathway = "historical"
        rest = rest[: match.start()] + "_" + rest[match.end() :]
    if match := _YEARS.search(rest):
        period = f"{match[1]}-{match[2]}" if match[2] else int(match[1])
        rest = rest[: match.start()] + "_" + rest[match.end() :]
    known = {word.lower() for word in shared}
    words = [word.strip("-. ") for word in rest.split("_")]
    model = "_".join(word for word in words if word and word.lower() not in known and not _NOISE.match(word))
    return ClimateFile(Path(path), model, pathway, period)


def find_scenarios(study: Any, folder: str | Path) -> FoundScenarios:
    """Makes scenarios of the rasters in a folder, as the study makes its own.

    A group of predictors that the study's scenarios replace is replaced; any other is changed by the difference
    between a later file and the historical file of the same climate model. Where there are several historical files,
    the one nearest in time to the study's own raster is taken.

    Args:
        study: The study.
        folder: Folder with rasters of other climate models, with the same layers.

    Returns:
        Scenarios, how they were paired, and what was left out.

    Raises:
        AgriClipError: There is no folder, or nothing in it can be used.
    """
    from processing.study import Scenario
    from processing.study_parts import Delta

    place = Path(folder)
    if not place.is_dir():
        raise AgriClipError(f"There is no folder '{folder}'; --scenarios takes a folder of climate rasters.")
    rasters = sorted(path for path in place.iterdir() if path.suffix.lower() in _RASTERS)
    groups, ways = _changed_groups(study)
    left_out: list[str] = []
    by_group: dict[str, list[ClimateFile]] = {group.file: [] for group in groups}
    for path in rasters:
        group = _group_of(path, groups)
        if group is None:
            left_out.append(f"{path.name}: it cannot be told which of the study's rasters it belongs to.")
            continue
        said = read_climate_name(path, _words(group.file))
        missing = _missing_bands(path, group)
        if missing:
            left_out.append(f"{path.name}: {missing}")
        elif not said.climate_model or said.pathway is None:
            what = "climate model" if not said.climate_model else "pathway (such as ssp585) and no `historical`"
            left_out.append(f"{path.name}: its name tells no {what}.")
        else:
            by_group[group.file].append(said)
    climates = sorted(
        {
            (file.climate_model, file.pathway, file.period)
            for files in by_group.values()
            for file in files
            if file.pathway not in (None, "historical")
        },
        key=str,
    )
    scenarios, pairs = [], []
    for model, pathway, period in climates:
        title = f"{model} {pathway} {period if period is not None else ''}".strip()
        made: dict[str, dict[str, Any]] = {"replace": {}, "delta": {}}
        told = []
        problem = None
        for group in groups:
            files = [file for file in by_group[group.file] if file.climate_model == model]
            future = next((f for f in files if (f.pathway, f.period) == (pathway, period)), None)
            before = _nearest_in_time([f for f in files if f.pathway == "historical"], group.file)
            if future is None:
                problem = f"{title}: there is no file in place of {Path(group.file).name}."
            elif ways[group.file] == "replace":
                made["replace"][group.file] = str(future.path.resolve())
                told.append(future.path.name)
            elif before is None:
                problem = f"{title}: {future.path.name} has no historical file of {model} beside it."
            else:
                made["delta"][group.file] = Delta(
                    baseline=str(before.path.resolve()), future=str(future.path.resolve())
                )
                told.append(f"{future.path.name} less {before.path.name}")
        if problem:
            left_out.append(problem)
            continue
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{pathway}_{period}_{model}" if period else f"{pathway}_{model}")
        scenarios.append(Scenario(name=name, title=title, ssp=pathway, period=period, climate_model=model, **made))
        pairs.append(f"{title}: {', '.join(told)}")
    if not scenarios:
        why = f" ({left_out[0]})" if left_out else ""
        raise AgriClipError(
            f"No raster in '{folder}' makes a scenario{why}; name files like <words>_<model>_ssp585_2080.tif and "
            "put the historical file of each climate model beside them."
        )
    return FoundScenarios(tuple(scenarios), tuple(pairs), tuple(left_out))


def _changed_groups(study: Any) -> tuple[list[Any], dict[str, str]]:
    """Groups of predictors that climates change, and how: those of the study's scenarios, or all where it has none."""
    ways: dict[str, str] = {}
    for scenario in study.scenarios:
        ways |= {file: "replace" for file in scenario.replace}
        ways |= {file: "delta" for file in scenario.delta}
    if not ways:
        ways = {group.file: "delta" for group in study.predictors}
    return [group for group in study.predictors if group.file in ways], ways


def _words(file: str) -> set[str]:
    """Words in the name of a raster of the study."""
    return {word.strip("-. ").lower() for word in Path(file).stem.split("_")}


def _group_of(path: Path, groups: Sequence[Any]) -> Any | None:
    """The group whose raster shares most words with the file; the only one where there is one."""
    if len(groups) == 1:
        return groups[0]
    shared = [len(_words(path.name) & _words(group.file)) for group in groups]
    best = max(shared)
    return groups[shared.index(best)] if best and shared.count(best) == 1 else None


def _missing_bands(path: Path, group: Any) -> str:
    """What is wrong with the bands of a file, in a sentence; nothing where they are all there."""
    from processing.rasters import read_band_info

    try:
        info = read_band_info(path)
        for variable in group.variables:
            info.band_number(variable.source_band)
    except AgriClipError as error:
        return str(error)
    return ""


def _nearest_in_time(files: Sequence[ClimateFile], observed: str) -> ClimateFile | None:
    """The historical file nearest to the observed raster's year; the last one where the raster names none."""
    if not files:
        return None
    year = read_climate_name(observed).year
    if np.isnan(year):
        return max(files, key=lambda file: -np.inf if np.isnan(file.year) else file.year)
    return min(files, key=lambda file: np.inf if np.isnan(file.year) else abs(file.year - year))
