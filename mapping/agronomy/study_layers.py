"""The agronomic layers of a study: the present, and every scenario whose climate the rules can be asked about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mapping.agronomy.heat_units import HeatUnitResult, HeatUnitRule, heat_units
from mapping.agronomy.layers import (
    AgronomyInputs,
    BioclimChange,
    MonthlyChange,
    MonthlyClimate,
    MonthlyLayer,
    read_climate,
    write_agronomy_layers,
)
from mapping.agronomy.two_peaks import NdviSeries
from mapping.agronomy.weather import draw_weather
from processing.errors import AgriClipError
from processing.rasters import transform_points
from processing.study import PRESENT, Study
from processing.study_data import StudyData

__all__ = ["agronomy_inputs", "calendar_at", "write_study_layers"]


def agronomy_inputs(study: Study, scenario: str | None = None) -> AgronomyInputs | None:
    """What the rules are asked about in one climate of a study.

    Args:
        study: A study with a part `agronomy`.
        scenario: Name of a scenario; the present if None.

    Returns:
        Files and assumptions; None where the scenario says nothing of the months.

    Raises:
        AgriClipError: The study has no such part.
    """
    part = study.agronomy
    if part is None:
        raise AgriClipError(f"The study '{study.name}' has no part `agronomy`; add its monthly temperature and rain.")
    layers = {
        name: MonthlyLayer(str(study.path(given.file)), given.unit, given.bands, given.scale)
        for name, given in part.monthly().items()
    }
    climate, change = MonthlyClimate(**layers), None
    if scenario is not None:
        change = _change(study, scenario, layers)
        if change is None:
            return None
    ndvi = None
    if part.ndvi is not None and scenario is None:
        ndvi = NdviSeries(str(study.path(part.ndvi.file)), scale=part.ndvi.scale, valid_range=part.ndvi.valid_range)
    return AgronomyInputs(climate, change, part.diurnal_range, part.irrigated, ndvi)


def _change(study: Study, scenario: str, layers: dict[str, MonthlyLayer]) -> MonthlyChange | BioclimChange | None:
    """How a scenario changes the months: by its own months, or by bioclimatic variables; None if by neither."""
    part, deltas = study.agronomy, study.scenario(scenario).delta
    assert part is not None
    given = part.monthly()
    if all(one.file in deltas for one in given.values()):
        ends = []
        for end in ("baseline", "future"):
            files = {name: str(study.path(getattr(deltas[one.file], end))) for name, one in given.items()}
            changed = {
                name: MonthlyLayer(file, layers[name].unit, layers[name].bands, layers[name].scale)
                for name, file in files.items()
            }
            ends.append(MonthlyClimate(**changed))
        return MonthlyChange(*ends)
    if part.bioclim is not None and part.bioclim.file in deltas:
        delta = deltas[part.bioclim.file]
        return BioclimChange(str(study.path(delta.baseline)), str(study.path(delta.future)), part.bioclim.bands)
    return None


def write_study_layers(
    study: Study,
    output_dir: str | Path,
    *,
    scenarios: list[str] | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, dict[str, Path]]:
    """Write the agronomic layers of the present and the scenarios to `maps/`.

    Args:
        study: A study with a part `agronomy`.
        output_dir: Folder of the outputs.
        scenarios: Names of scenarios besides the present; all of the study's if None.
        progress: Called with the name of each climate.
        **options: Of [`write_agronomy_layers`].

    Returns:
        Files by climate and layer; scenarios that say nothing of the months are left out.
    """
    grid = StudyData(study).grid
    names = [scenario.name for scenario in study.scenarios] if scenarios is None else scenarios
    written = {}
    for name in [None, *names]:
        inputs = agronomy_inputs(study, name)
        if inputs is None:
            continue
        title = name or PRESENT
        if progress:
            progress(title)
        tags = {"study": study.name, "study_fingerprint": study.fingerprint()}
        written[title] = write_agronomy_layers(
            grid, inputs, Path(output_dir) / "maps", scenario=title, tags=tags, **options
        )
    return written


def calendar_at(study: Study, x: float, y: float, scenario: str | None = None) -> HeatUnitResult | None:
    """The heat-unit rule's years at the cell of a place.

    Args:
        study: A study with a part `agronomy`.
        x: Easting or longitude in the CRS of the study's grid.
        y: Northing or latitude.
        scenario: Name of a scenario; the present if None.

    Returns:
        The years of one cell; None where the scenario says nothing of the months.

    Raises:
        AgriClipError: The place lies outside the grid.
    """
    inputs, grid = agronomy_inputs(study, scenario), StudyData(study).grid
    if inputs is None:
        return None
    row, column = (int(index) for index in grid.cell_of(x, y))
    if not (0 <= row < grid.height and 0 <= column < grid.width):
        raise AgriClipError(f"The place {x:g}, {y:g} lies outside the grid of '{study.name}'; choose one inside.")
    climate = [values[:, column : column + 1] for values in read_climate(inputs, grid, slice(row, row + 1))]
    weather = draw_weather(*climate, np.array([row]), np.array([column]))
    latitude = transform_points([x], [y], grid.crs, "EPSG:4326")[1]
    rule = HeatUnitRule(hemisphere="south" if latitude[0] < 0 else "north")
    return heat_units(weather.minimum, weather.maximum, weather.rain, rule, irrigated=inputs.irrigated)
