"""Other climate models: does the suitable land move the right way under climates that nothing was chosen on?

Two choices define this file. Each climate is checked and mapped by the code that makes the study's own maps, so that a
figure here is the figure of a map. And every figure is given with the image and without it, because an image of today
cannot know a later climate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.suitability.climate_files import FoundScenarios, find_scenarios
from processing.errors import AgriClipError

__all__ = [
    "ClimateModelResults",
    "ClimateRow",
    "PathwayOrder",
    "climate_markdown",
    "evaluate_climate_models",
    "pathway_orders",
    "southern_change",
]

_WITH, _WITHOUT = "probability", "probability_without_image"


@dataclass(frozen=True)
class ClimateRow:
    """What one climate does to the suitable land.

    Attributes:
        scenario: Name of the scenario.
        climate_model: Climate model.
        pathway: Pathway, such as `ssp585`.
        period: Year or years.
        with_image: Whether the image was shown.
        present_latitude: Latitude in degrees of the centroid of the land that is suitable now; None without any.
        future_latitude: The same in the scenario.
        shift_km: Distance between the two centroids.
        present_ha: Suitable land now.
        future_ha: Suitable land in the scenario.
        novel_share: Share of the land with a climate outside the range of the labelled places (MESS below 0).
        outside_share: Share of the land outside the area of applicability.
        gain_novel_share: Share of the land that becomes suitable, whose climate is novel or outside; None without any.
        south_suitable_now: Share of the land south of the present centroid that is suitable now.
        south_suitable_then: The same in the scenario.
        south_becomes: Share of that land that becomes suitable.
        south_loses: Share of that land that is no longer suitable.
    """

    scenario: str
    climate_model: str
    pathway: str
    period: str
    with_image: bool
    present_latitude: float | None
    future_latitude: float | None
    shift_km: float | None
    present_ha: float
    future_ha: float
    novel_share: float
    outside_share: float
    gain_novel_share: float | None
    south_suitable_now: float | None
    south_suitable_then: float | None
    south_becomes: float | None
    south_loses: float | None


@dataclass(frozen=True)
class PathwayOrder:
    """Whether stronger warming moves the suitable land farther from the equator.

    Attributes:
        climate_model: Climate model.
        period: Year or years.
        with_image: Whether the image was shown.
        latitudes: Pathway -> absolute latitude of the centroid, weakest warming first.
        ordered: Whether the latitudes rise strictly; None where one is unknown or there is one pathway only.
    """

    climate_model: str
    period: str
    with_image: bool
    latitudes: dict[str, float | None]
    ordered: bool | None


@dataclass(frozen=True)
class ClimateModelResults:
    """Everything about other climate models.

    Attributes:
        rows: One row a scenario, with the image and without it.
        orders: One row a climate model and period, with the image and without it.
        found: What was found in the folder.
    """

    rows: tuple[ClimateRow, ...]
    orders: tuple[PathwayOrder, ...]
    found: FoundScenarios

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text, for JSON."""
        return {
            "pairs": list(self.found.pairs),
            "left_out": list(self.found.left_out),
            "order": [asdict(order) for order in self.orders],
            "climates": [asdict(row) for row in self.rows],
        }


# -- maps -----------------------------------------------------------------------------------------------------------


def evaluate_climate_models(
    study: Any,
    model_dir: str | Path,
    folder: str | Path,
    output_dir: str | Path,
    *,
    quiet: bool = True,
    progress: Callable[[str], None] | None = None,
) -> ClimateModelResults:
    """Maps every climate found in a folder and says what becomes of the suitable land.

    Args:
        study: The study that the model was fitted to.
        model_dir: Folder of the model.
        folder: Folder of climate rasters.
        output_dir: The maps go to `maps` in it and the change classes beside them.
        quiet: No progress bar of the maps.
        progress: Called with what is being done.

    Returns:
        Rows, orders and what was found.

    Raises:
        AgriClipError: As :func:`find_scenarios`; or none of the layers fits the study's.
    """
    from mapping.predict import map_study
    from processing.study import PRESENT
    from processing.study_data import StudyData

    tell = progress or (lambda what: None)
    found = find_scenarios(study, folder)
    wider = study.model_copy(update={"scenarios": found.scenarios})
    found = _fitting(StudyData(wider), found)
    wider = study.model_copy(update={"scenarios": found.scenarios})
    tell(f"mapping {len(found.scenarios)} climates")
    maps = map_study(wider, model_dir, output_dir, restart=True, quiet=quiet)
    rows = []
    for scenario in found.scenarios:
        tell(scenario.title or scenario.name)
        given = (scenario, maps[PRESENT], maps[scenario.name], study.map.suitable_above, output_dir)
        rows += [_row(*given, layer) for layer in (_WITH, _WITHOUT) if layer in maps[PRESENT]]
    return ClimateModelResults(tuple(rows), tuple(pathway_orders(rows)), found)


def _fitting(data: Any, found: FoundScenarios) -> FoundScenarios:
    """Leave out the scenarios whose layers do not fit the present's."""
    from processing.scenario_checks import check_scenarios

    refused: dict[str, str] = {}
    for mismatch in check_scenarios(data):
        if mismatch.severity == "refuse":
            row = mismatch.problem()
            refused.setdefault(mismatch.scenario, f"{mismatch.scenario}: {row.problem}; {row.hint}.")
    kept = [i for i, scenario in enumerate(found.scenarios) if scenario.name not in refused]
    if not kept:
        raise AgriClipError(f"No climate fits the study's layers, {next(iter(refused.values()))}")
    return FoundScenarios(
        tuple(found.scenarios[i] for i in kept),
        tuple(found.pairs[i] for i in kept),
        (*found.left_out, *refused.values()),
    )


def _row(
    scenario: Any,
    present: Mapping[str, str],
    future: Mapping[str, str],
    threshold: float,
    output_dir: str | Path,
    layer: str,
) -> ClimateRow:
    from mapping.change import change_map

    suffix = "" if layer == _WITH else "_without_image"
    target = Path(output_dir) / f"change_{scenario.name}{suffix}.tif"
    summary = change_map(present[layer], future[layer], target, threshold=threshold, tags={"scenario": scenario.name})
    latitude = None if summary.centroid_present is None else summary.centroid_present[1]
    land = southern_change(present[layer], future, threshold, latitude, layer)
    return ClimateRow(
        scenario=scenario.name,
        climate_model=str(scenario.climate_model),
        pathway=str(scenario.ssp),
        period=str(scenario.period),
        with_image=layer == _WITH,
        present_latitude=latitude,
        future_latitude=None if summary.centroid_future is None else summary.centroid_future[1],
        shift_km=summary.shift_km,
        present_ha=summary.present_ha,
        future_ha=summary.future_ha,
        **land,
    )


def southern_change(
    present: str | Path,
    future: Mapping[str, str | Path],
    threshold: float,
    latitude: float | None,
    layer: str = _WITH,
) -> dict[str, Any]:
    """Novelty of a scenario, and what becomes of the land on the warm side of the present centroid.

    The warm side is the one nearer the equator. Areas are those of cells with data in both maps.

    Args:
        present: Probability map of the present.
        future: Layers of the scenario: `layer`, `mess` and `applicability`.
        threshold: A cell is suitable where its probability is at least this.
        latitude: Latitude of the present centroid in degrees; None for no warm side.
        layer: Which layer is the probability.

    Returns:
        The last seven fields of :class:`ClimateRow`.
    """
    from mapping.change import change_classes
    from mapping.outputs import iterate_rows, read_map
    from processing.grids import transform_points
    from processing.rasters import Grid

    grid = Grid.from_raster(present)
    land = novel = outside = gain = gain_novel = 0.0
    south = np.zeros(5)
    for rows in iterate_rows(grid.height, 256):
        before, after = read_map(present, rows), read_map(future[layer], rows)
        classes, area = change_classes(before, after, threshold), grid.cell_areas_ha(rows)
        known = classes > 0
        far, strange = read_map(future["applicability"], rows) == 2, read_map(future["mess"], rows) < 0
        land += float(area[known].sum())
        novel += float(area[known & strange].sum())
        outside += float(area[known & far].sum())
        gain += float(area[classes == 2].sum())
        gain_novel += float(area[(classes == 2) & (far | strange)].sum())
        if latitude is not None:
            x, y = grid.cell_centres(rows)
            _, north = transform_points(x.ravel(), y.ravel(), grid.crs, "EPSG:4326")
            place = np.reshape(north, x.shape)
            warm = place < latitude if latitude >= 0 else place > latitude
            south += np.bincount(classes[warm], weights=area[warm], minlength=5)
    total = south[1:].sum()

    def share(*members: int) -> float | None:
        return float(south[list(members)].sum() / total) if total > 0 else None

    return {
        "novel_share": novel / land if land else float("nan"),
        "outside_share": outside / land if land else float("nan"),
        "gain_novel_share": gain_novel / gain if gain else None,
        "south_suitable_now": share(1, 3),
        "south_suitable_then": share(1, 2),
        "south_becomes": share(2),
        "south_loses": share(3),
    }


def pathway_orders(rows: Iterable[ClimateRow]) -> list[PathwayOrder]:
    """Compares the centroids of the pathways of each climate model and period.

    Pathways are ordered by their forcing, the last two digits of their name (SSP5-8.5 reaches 8.5 W/m2 in 2100).

    Args:
        rows: Rows of several pathways.
    """
    groups: dict[tuple[str, str, bool], list[ClimateRow]] = {}
    for row in rows:
        groups.setdefault((row.climate_model, row.period, row.with_image), []).append(row)
    orders = []
    for (model, period, with_image), members in groups.items():
        latitudes = {
            row.pathway: None if row.future_latitude is None else abs(row.future_latitude)
            for row in sorted(members, key=lambda row: int(re.sub(r"\D", "", row.pathway)[-2:] or 0))
        }
        values = list(latitudes.values())
        known = [value for value in values if value is not None]
        ordered = None
        if len(known) == len(values) > 1:
            ordered = all(low < high for low, high in zip(known, known[1:], strict=False))
        orders.append(PathwayOrder(model, period, with_image, latitudes, ordered))
    return orders


def climate_markdown(results: ClimateModelResults) -> str:
    """Tables of other climate models: the order of pathways, and what becomes of the land.

    Args:
        results: The results.
    """
    lines = [
        "| climate model | period | image | centroid latitude by pathway | in order |",
        "| --- | --- | --- | --- | --- |",
    ]
    for order in results.orders:
        told = ", ".join(f"{name} {'-' if v is None else f'{v:.2f}'}" for name, v in order.latitudes.items())
        answer = {None: "-", True: "yes", False: "no"}[order.ordered]
        image = "with" if order.with_image else "without"
        lines.append(f"| {order.climate_model} | {order.period} | {image} | {told} | {answer} |")
    lines += [
        "",
        "| climate | image | latitude now | then | suitable now, Mha | then, Mha | novel | outside "
        "| of the gain novel | south: suitable now | then | becomes | loses |",
        "| --- |" + " ---: |" * 12,
    ]

    def percent(value: float | None) -> str:
        return "-" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %"

    for row in results.rows:
        places = ["-" if v is None else f"{v:.2f}" for v in (row.present_latitude, row.future_latitude)]
        shares = (
            row.novel_share,
            row.outside_share,
            row.gain_novel_share,
            row.south_suitable_now,
            row.south_suitable_then,
            row.south_becomes,
            row.south_loses,
        )
        cells = [
            f"{row.climate_model} {row.pathway} {row.period}",
            "with" if row.with_image else "without",
            *places,
            f"{row.present_ha / 1e6:.2f}",
            f"{row.future_ha / 1e6:.2f}",
            *map(percent, shares),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
