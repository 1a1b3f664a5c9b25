"""Several climate models of one pathway and period as one answer: mean, two kinds of spread, and agreement.

Four choices define this file. Every climate model is mapped to the end and probabilities are averaged, never
climates. The spread is split by the law of total variance into what the members of the model disagree on and what the
climate models disagree on; all variances are population variances (divided by the count), because only then do the
two parts add up to the variance over all answers. A cell without data in any input has no data in any layer. A group
is two climate models or more: of a single one nobody knows the spread, so it stands alone, as a scenario does that
names no pathway, period or climate model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from mapping.change import CHANGE_CLASSES, change_classes
from mapping.outputs import RowBandWriter, class_raster_options, iterate_rows, read_map, write_qgis_style
from processing.errors import AgriClipError
from processing.rasters import Grid

__all__ = [
    "ScenarioGroup",
    "VarianceParts",
    "change_agreement",
    "combine_scenarios",
    "common_grid",
    "most_frequent_change",
    "pathway_title",
    "scenario_groups",
    "split_variance",
    "total_variance",
]

_CELLS = 1 << 20  # cells of all inputs together that are held at a time
_NO_COUNT = 255  # nodata of the count of models
_LAYERS = ("probability", "std", "mess")
_COPIED = ("study", "study_fingerprint", "model_sha256", "members", "software")


@dataclass(frozen=True)
class ScenarioGroup:
    """Scenarios of one pathway and period that differ in the climate model.

    Attributes:
        name: Name in file names, for example `ssp585_2080`.
        ssp: Pathway, as the study writes it.
        period: Year or years.
        scenarios: Names of the scenarios, in the order of the study.
        climate_models: Their climate models.
    """

    name: str
    ssp: str
    period: str
    scenarios: tuple[str, ...]
    climate_models: tuple[str, ...]

    @property
    def title(self) -> str:
        """Words for legends."""
        return f"{pathway_title(self.ssp)}, {self.period}, mean of {len(self.climate_models)} climate models"


@dataclass(frozen=True)
class VarianceParts:
    """A mean and its variance, split in two; `total` is the sum of the parts.

    Attributes:
        mean: Mean over all answers.
        within: Mean over climate models of the variance over members.
        between: Variance over climate models of the mean over members.
        total: Variance over all answers.
    """

    mean: np.ndarray
    within: np.ndarray
    between: np.ndarray
    total: np.ndarray


def pathway_title(ssp: str) -> str:
    """The usual spelling of a pathway: `ssp585` is SSP5-8.5; anything else is left as it is."""
    match = re.fullmatch(r"ssp(\d)(\d)(\d)", ssp.strip(), re.IGNORECASE)
    return "SSP{}-{}.{}".format(*match.groups()) if match else ssp


def total_variance(answers: np.ndarray) -> VarianceParts:
    """Splits the variance of a full table of answers.

    Var(p) = E_g[Var_k(p | g)] + Var_g(E_k[p | g]), the law of total variance (Weiss 2005, A Course in Probability,
    pages 385-386), exact for population variances when every climate model has as many members.

    Args:
        answers: (G, K, ...) probabilities of K members under G climate models.

    Returns:
        The parts, each of the remaining shape, float64.

    Raises:
        AgriClipError: If there is no climate model or no member.
    """
    table = np.asarray(answers, dtype=np.float64)
    if table.ndim < 2 or 0 in table.shape[:2]:
        raise AgriClipError(f"Answers must have shape (climate models, members, ...), not {table.shape}.")
    return split_variance(table.mean(axis=1), table.var(axis=1))


def split_variance(means: np.ndarray, variances: np.ndarray) -> VarianceParts:
    """Splits the variance where mean and variance over members are known for each climate model.

    Args:
        means: (G, ...) mean over members.
        variances: (G, ...) population variance over members.

    Returns:
        The parts, each of the remaining shape, float64.

    Raises:
        AgriClipError: If the shapes differ.
    """
    means, variances = np.asarray(means, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if means.shape != variances.shape:
        raise AgriClipError(f"Means have shape {means.shape} and variances {variances.shape}; give one of each.")
    within, between = variances.mean(axis=0), means.var(axis=0)
    return VarianceParts(means.mean(axis=0), within, between, within + between)


def scenario_groups(study: Any, names: Iterable[str] | None = None) -> dict[str, ScenarioGroup]:
    """Groups a study's scenarios by pathway and period.

    Args:
        study: The study (`processing.study.Study`).
        names: Only these scenarios, for example those that have been mapped.

    Returns:
        Group name -> group, in the order of the study. Scenarios without a pathway, a period or a climate model, and
        those that are alone with theirs, are in no group.

    Raises:
        AgriClipError: If a climate model comes twice in a group: it would count double.
    """
    wanted = None if names is None else set(names)
    gathered: dict[str, list[Any]] = {}
    for scenario in study.scenarios:
        known = bool(scenario.ssp) and scenario.period is not None and bool(scenario.climate_model)
        if known and (wanted is None or scenario.name in wanted):
            gathered.setdefault(_slug(f"{scenario.ssp}_{scenario.period}").lower(), []).append(scenario)
    taken = {scenario.name.lower() for scenario in study.scenarios}
    groups = {}
    for name, scenarios in gathered.items():
        seen: dict[str, str] = {}
        for scenario in scenarios:
            twin = seen.setdefault(scenario.climate_model.strip().lower(), scenario.name)
            if twin != scenario.name:
                raise AgriClipError(
                    f"The scenarios '{twin}' and '{scenario.name}' are both {scenario.climate_model} in "
                    f"{scenario.ssp}, {scenario.period}, which would count twice; map one, or name the models apart."
                )
        if len(scenarios) < 2:
            continue
        # A scenario may have the very name that its group would get.
        name = f"{name}_ensemble" if name in taken else name
        groups[name] = ScenarioGroup(
            name,
            scenarios[0].ssp,
            str(scenarios[0].period),
            tuple(scenario.name for scenario in scenarios),
            tuple(scenario.climate_model for scenario in scenarios),
        )
    return groups


def combine_scenarios(
    study: Any,
    maps: Mapping[str, Mapping[str, str | Path]],
    output_dir: str | Path,
    threshold: float | None = None,
) -> dict[str, dict[str, str]]:
    """Writes the maps of every group of climate models: mean, spread, agreement and novelty.

    Args:
        study: The study.
        maps: Map name -> layer -> path, as `mapping.predict.map_study` returns. Used are `probability`, `std`
            (standard deviation over members with divisor K - 1, 0 for a single member) and `mess`, where they are.
        output_dir: Maps go to the folder `maps` in it, as `<group>_<layer>.tif`.
        threshold: A cell is suitable where its probability is at least this; the study's if None.

    Returns:
        Group name -> layer -> path: `probability`, `std_climate`, `agreement`; `std_model` and `std_total` where every
        map of the group has `std`; `novel_models` where every one has `mess`.

    Raises:
        AgriClipError: If grids, models or numbers of members differ within a group, or a number of members is unknown.
    """
    threshold = _threshold(study, threshold)
    made = {}
    for group in scenario_groups(study, maps).values():
        inputs = _Inputs(group, maps)
        folder = Path(output_dir) / "maps"
        with ExitStack() as stack:
            writers = {
                layer: stack.enter_context(_writer(folder, inputs, layer, threshold)) for layer in inputs.outputs()
            }
            for rows in inputs.bands():
                for layer, values in _combine(inputs, inputs.read(rows), threshold).items():
                    writers[layer].write(rows.start, values)
        made[group.name] = {layer: str(writer.path) for layer, writer in writers.items()}
    return made


def change_agreement(
    study: Any,
    maps: Mapping[str, Mapping[str, str | Path]],
    output_dir: str | Path,
    threshold: float | None = None,
) -> dict[str, dict[str, str]]:
    """Writes, for every group, the change class that most climate models give and how many of them give it.

    Args:
        study: The study.
        maps: Map name -> layer -> path; `present` must be among them.
        output_dir: Maps go to the folder `maps` in it, with a QGIS style for the classes.
        threshold: A cell is suitable where its probability is at least this; the study's if None.

    Returns:
        Group name -> `change` (classes of `mapping.change.CHANGE_CLASSES`) and `change_agreement` (share of the
        climate models that give that class) -> path.

    Raises:
        AgriClipError: If there is no map of the present, or grids or models differ within a group.
    """
    if "probability" not in maps.get("present", {}):
        raise AgriClipError("Change needs the map of the present; run `agriclip map` without --scenario first.")
    threshold = _threshold(study, threshold)
    present = maps["present"]["probability"]
    made = {}
    for group in scenario_groups(study, maps).values():
        inputs = _Inputs(group, maps, beside=present)
        folder = Path(output_dir) / "maps"
        with (
            _writer(folder, inputs, "change", threshold) as classes,
            _writer(folder, inputs, "change_agreement", threshold) as agreement,
        ):
            for rows in inputs.bands():
                most, share = most_frequent_change(
                    read_map(present, rows), inputs.read(rows)["probability"], threshold
                )
                classes.write(rows.start, most)
                agreement.write(rows.start, share)
        write_qgis_style(classes.path, classes=CHANGE_CLASSES)
        made[group.name] = {"change": str(classes.path), "change_agreement": str(agreement.path)}
    return made


def most_frequent_change(
    present: np.ndarray, futures: np.ndarray, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """The change class that most climate models give.

    Args:
        present: (...) probabilities of the present; NaN = no data.
        futures: (G, ...) probabilities under G climate models.
        threshold: A cell is suitable where its probability is at least this.

    Returns:
        uint8 class, 0 without data in any input; where two classes have as many models, the class of their mean
        probability. float32 share of the models that give it, NaN without data.
    """
    futures = np.asarray(futures)
    known = np.isfinite(present) & np.isfinite(futures).all(axis=0)
    classes = np.stack([change_classes(present, future, threshold) for future in futures])
    votes = np.stack([(classes == value).sum(axis=0) for value in (0, *CHANGE_CLASSES)])
    of_mean = change_classes(present, _mean(futures), threshold)
    leads = np.take_along_axis(votes, of_mean[None].astype(np.intp), axis=0)[0] == votes.max(axis=0)
    most = np.where(leads, of_mean, votes.argmax(axis=0)).astype(np.uint8)
    share = (votes.max(axis=0) / len(futures)).astype(np.float32)
    return np.where(known, most, 0).astype(np.uint8), np.where(known, share, np.nan).astype(np.float32)


def common_grid(paths: Sequence[str | Path]) -> Grid:
    """The grid of several maps.

    Raises:
        AgriClipError: If they lie on different grids.
    """
    first = Grid.from_raster(paths[0])
    for path in paths[1:]:
        grid = Grid.from_raster(path)
        # A thousandth of a cell: the transform of a file may be rounded, a shift of a map is not.
        tolerance = 1e-3 * first.transform.a / max(first.width, first.height)
        same = grid.crs == first.crs and grid.shape == first.shape
        if not same or not first.transform.almost_equals(grid.transform, precision=tolerance):
            raise AgriClipError(
                f"{Path(paths[0]).name} and {Path(path).name} lie on different grids; map both with one study."
            )
    return first


class _Inputs:
    """The maps of one group, opened together.

    Args:
        group: The group.
        maps: All maps of the study.
        beside: One more map that must lie on the same grid.
    """

    def __init__(
        self, group: ScenarioGroup, maps: Mapping[str, Mapping[str, str | Path]], beside: str | Path | None = None
    ) -> None:
        self.group = group
        for name in group.scenarios:
            if "probability" not in maps[name]:
                raise AgriClipError(f"The scenario '{name}' of {group.name} has no map of the probability; map it.")
        self.paths = {
            layer: [maps[name][layer] for name in group.scenarios]
            for layer in _LAYERS
            if all(layer in maps[name] for name in group.scenarios)
        }
        every = [path for paths in self.paths.values() for path in paths]
        self.grid = common_grid([*every, *([] if beside is None else [beside])])
        self.per_map = [_tags(path) for path in self.paths["probability"]]
        self.count = len(group.scenarios)
        for key, what in (("model_sha256", "different models"), ("members", "different numbers of members")):
            values = {tags.get(key) for tags in self.per_map}
            if len(values) > 1:
                raise AgriClipError(f"The maps of {group.name} were made by {what}; map its scenarios anew with one.")
        members = self.per_map[0].get("members", "")
        if "std" in self.paths and not members.isdigit():
            raise AgriClipError(
                f"{Path(self.paths['std'][0]).name} does not say over how many members its standard deviation is "
                "(the tag `members` of the probability map); map it anew with `agriclip map`."
            )
        self.members = int(members) if members.isdigit() else None

    def outputs(self) -> list[str]:
        """Layers that the inputs allow."""
        spread = ["std_model", "std_climate", "std_total"] if "std" in self.paths else ["std_climate"]
        return ["probability", *spread, "agreement", *(["novel_models"] if "mess" in self.paths else [])]

    def bands(self) -> Iterable[slice]:
        """Bands of rows that keep all inputs of a band in memory."""
        return iterate_rows(self.grid.height, _CELLS // (self.grid.width * self.count * len(self.paths)))

    def read(self, rows: slice) -> dict[str, np.ndarray]:
        """Layer -> (G, h, w) float32; NaN in all where any is NaN."""
        stacks = {layer: np.stack([read_map(path, rows) for path in paths]) for layer, paths in self.paths.items()}
        known = np.logical_and.reduce([np.isfinite(stack).all(axis=0) for stack in stacks.values()])
        for stack in stacks.values():
            stack[:, ~known] = np.nan
        return stacks


def _combine(inputs: _Inputs, stacks: Mapping[str, np.ndarray], threshold: float) -> dict[str, np.ndarray]:
    """All layers of a band of rows, each (h, w)."""
    probability = stacks["probability"]
    known = np.isfinite(probability[0])
    variance = np.zeros(probability.shape)
    if "std" in stacks and inputs.members is not None:
        # The maps have divisor K - 1, the law of total variance K.
        variance = stacks["std"].astype(np.float64) ** 2 * ((inputs.members - 1) / inputs.members)
    parts = split_variance(probability, variance)
    suitable = (probability >= threshold).mean(axis=0)
    layers = {
        "probability": _mean(probability),
        "std_climate": np.sqrt(parts.between),
        "agreement": np.where(known, suitable, np.nan),
    }
    if "std" in stacks:
        layers |= {"std_model": np.sqrt(parts.within), "std_total": np.sqrt(parts.total)}
    if "mess" in stacks:
        layers["novel_models"] = np.where(known, (stacks["mess"] < 0).sum(axis=0), _NO_COUNT)
    return layers


def _writer(folder: Path, inputs: _Inputs, layer: str, threshold: float) -> RowBandWriter:
    group, source = inputs.group, inputs.per_map[0]
    what = source.get("long_name") or "probability of suitability"
    models = f"{inputs.count} climate models"
    told = {
        "probability": f"{what}, mean of {models}",
        "std_model": f"{what}: standard deviation over the ensemble's members, root of its mean square over {models}",
        "std_climate": f"{what}: standard deviation over {models}",
        "std_total": f"{what}: standard deviation over members and {models}",
        "agreement": f"share of {models} whose probability is at least {threshold:g}",
        "novel_models": f"number of {models} in which the cell is novel (MESS below 0)",
        "change": f"change class that most of {models} give",
        "change_agreement": f"share of {models} that give the change class",
    }
    tags: dict[str, Any] = {key: source[key] for key in _COPIED if key in source}
    tags |= {
        "scenario": group.name,
        "title": group.title,
        "ssp": group.ssp,
        "period": group.period,
        "climate_models": list(group.climate_models),
        "scenarios": list(group.scenarios),
        "long_name": told[layer],
        "units": "1",
    }
    if layer in ("agreement", "change", "change_agreement"):
        tags["threshold"] = threshold
    if layer.startswith("std"):
        tags["variance"] = "population (divided by the number of members and of climate models)"
    options: dict[str, Any] = {}
    if layer == "change":
        options = class_raster_options(CHANGE_CLASSES)
        tags = {**tags, **options.pop("tags"), "from": "present"}
    elif layer == "novel_models":
        options = {"dtype": "uint8", "nodata": _NO_COUNT}
    path = folder / f"{group.name}_{layer}.tif"
    return RowBandWriter(path, inputs.grid, band_names=[layer], units=["1"], tags=tags, **options)


def _mean(probability: np.ndarray) -> np.ndarray:
    """Mean over climate models as the file holds it, so that thresholds are met in memory as they are on disk."""
    return probability.mean(axis=0, dtype=np.float64).astype(np.float32)


def _threshold(study: Any, threshold: float | None) -> float:
    chosen = float(study.map.suitable_above if threshold is None else threshold)
    if not 0.0 < chosen < 1.0:
        raise AgriClipError(f"The threshold of suitability is {chosen}; give a probability between 0 and 1.")
    return chosen


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text.strip()).strip("-")


def _tags(path: str | Path) -> dict[str, str]:
    with rasterio.open(path) as dataset:
        return dict(dataset.tags())
