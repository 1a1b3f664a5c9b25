"""From the probability maps of a study to everything a person is handed: changes, areas, pictures and the report.

Three choices define this file. It takes the dictionary of map paths that prediction returns and needs no model, so the
products can be made again without predicting again. All file names are fixed and plain (`change_<scenario>.tif`,
`areas.csv`, `pictures/`, `report.html`), so scripts can rely on them. Several climate models of one pathway and period
are shown as one answer with its spread, and each of them stands in the tables; what goes wrong in a scenario stops the
whole: a report with a missing scenario would be read as complete.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from mapping import figures
from mapping.agronomy.layers import LAYERS as RULES
from mapping.change import ChangeSummary, area_units, change_map, suitable_area
from mapping.layers import PROBABILITY_STOPS
from mapping.outputs import iterate_rows, read_map, write_qgis_style
from mapping.provenance import describe_files, input_files, software, write_manifest
from mapping.provenance import plain as plain
from mapping.provenance import write_json as write_json
from mapping.report import ModelRow, Report, ScenarioSection, SkillPicture, TruthRow, write_report
from mapping.scenario_ensemble import ScenarioGroup, change_agreement, combine_scenarios, scenario_groups
from mapping.zone_figures import ensemble_panel, latitude_figure, zone_figure
from mapping.zones import Zones, latitude_areas, write_csv, write_geopackage, write_parquet, zone_areas
from processing.errors import AgriClipError
from processing.rasters import Grid
from processing.study import PRESENT
from processing.whole_files import finished

__all__ = ["Products", "input_files", "layer_title", "make_products", "novel_percent"]

#: Agronomic layers that are drawn -> caption.
_RULE_CAPTIONS = {
    "heat_unit_probability": "The heat-unit rule asks daily weather, year by year, whether wheat and then soybean "
    "ripen in time. It has never seen the labels. The line is at three years in four.",
    "limiting_factor": "What the rule fails by, where it fails.",
}

#: Layer of a map -> what it is, in the words of the file table and of the colour bars.
LAYERS: dict[str, str] = {
    "probability": "probability of suitability",
    "probability_without_image": "probability of suitability without the image",
    "image_effect": "probability with the image minus without it",
    "std": "standard deviation across the ensemble",
    "mutual_information": "what the ensemble's disagreement leaves open (nat)",
    "share": "expected share of the crop",
    "mess": "novelty (MESS, %)",
    "mess_variable": "number of the most unusual variable",
    "out_of_range": "number of variables outside the training range",
    "dissimilarity": "dissimilarity to the training places",
    "applicability": "area of applicability",
    "prediction_set": "conformal prediction set",
    "std_model": "standard deviation of the model's members",
    "std_climate": "standard deviation of the climate models",
    "std_total": "standard deviation of all answers",
    "agreement": "share of climate models that call it suitable",
    "novel_models": "number of climate models in which the climate is novel",
    "change": "change that most climate models give",
    "change_agreement": "share of climate models that give it",
}


@dataclass
class Products:
    """What was made.

    Attributes:
        report: The HTML page.
        changes: Scenario -> areas and shift.
        present_ha: Suitable area of the present in ha.
        novel_percent: Map name -> share of the area outside the training range, in percent.
        files: Every file made or described, path -> what it is.
    """

    report: Path
    changes: dict[str, ChangeSummary]
    present_ha: float
    novel_percent: dict[str, float]
    files: dict[Path, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "report": str(self.report),
            "suitable_present": area_units(self.present_ha),
            "changes": {name: summary.as_dict() for name, summary in self.changes.items()},
            "novel_percent": self.novel_percent,
            "files": {str(path): what for path, what in self.files.items()},
        }


def make_products(
    study: Any,
    maps: Mapping[str, Mapping[str, str | Path]],
    output_dir: str | Path,
    *,
    comparison: Sequence[Mapping[str, Any]] = (),
    skill_pictures: Sequence[SkillPicture] = (),
    truth: Sequence[TruthRow] = (),
    truth_note: str = "",
    cards: Sequence[Mapping[str, str]] = (),
    warnings: Sequence[str] = (),
    commands: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    outlines: str | Path | None = None,
    outline_layer: str | None = None,
    zones: Zones | None = None,
    agronomy: Mapping[str, Mapping[str, Path]] | None = None,
    more_files: Mapping[Path, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Products:
    """Makes change maps, areas, pictures and the report of a mapped study.

    Args:
        study: The study (``processing.study.Study``).
        maps: Map name -> layer -> path, as ``mapping.predict.map_study`` returns; ``present`` must be among them.
        output_dir: Folder for everything.
        comparison: Rows of scores, ours and the baselines'.
        skill_pictures: Pictures of reliability and the like.
        truth: Agreement with a known truth, if there is one.
        truth_note: A sentence before that table.
        cards: More cards at the top of the report.
        warnings: Doubts of this study.
        commands: Shell commands that make it again.
        facts: Model and software for the report.
        outlines: GeoJSON or TopoJSON with boundaries to draw.
        outline_layer: Object of a TopoJSON file.
        zones: Administrative units to sum areas over.
        agronomy: Layers of the agronomic rules by climate, as ``mapping.agronomy.study_layers`` returns.
        more_files: Files that others made for the same report, path -> what it is.
        progress: Called with what is being made.

    Returns:
        What was made.

    Raises:
        AgriClipError: If there is no map of the present, or grids differ.
    """
    if "probability" not in maps.get(PRESENT, {}):
        raise AgriClipError(
            "There is no map of the present to report on; run `agriclip map` without --scenario first."
        )
    tell = progress or (lambda what: None)
    present = Path(maps[PRESENT]["probability"])
    lines = None
    if outlines is not None:
        lines = figures.read_outlines(outlines, outline_layer, crs=Grid.from_raster(present).crs)
    maker = _Maker(study, maps, Path(output_dir), _quantity(present), lines, tell)
    maker.present()
    groups = scenario_groups(study, maps)
    grouped = {name for group in groups.values() for name in group.scenarios}
    single = [name for name in maps if name not in (PRESENT, *grouped)]
    sections = [maker.group(group, layers) for group, layers in maker.combine(groups)]
    sections += [maker.scenario(name) for name in single]
    panel = maker.panel(groups, single)
    pictures = maker.tables(groups, zones)
    rules = maker.rules(agronomy or {})

    tell("report")
    for picture in skill_pictures:
        maker.made[picture.png] = f"picture: {picture.title}"
    maker.made |= dict(more_files or {})
    inputs = describe_files(input_files(study))
    report = Report(
        title=study.title or study.name,
        description=study.description or "",
        quantity=maker.quantity,
        threshold=maker.threshold,
        present_png=maker.present_png,
        present_ha=maker.present_ha,
        present_caption=_present_caption(present, maker.novelty.get(PRESENT)),
        panel_png=panel,
        scenarios=sections,
        area_pictures=pictures,
        rule_pictures=rules,
        comparison=comparison,
        skill_pictures=list(skill_pictures),
        truth=list(truth),
        truth_note=truth_note,
        cards=list(cards),
        warnings=list(warnings),
        commands=list(commands),
        files=[(Path(os.path.relpath(path, maker.folder)).as_posix(), what) for path, what in maker.made.items()],
        inputs=inputs,
        facts=_facts(facts or {}, present),
    )
    page = write_report(report, maker.folder / "report.html")
    made = {page: "the report; open it in a browser", **maker.made}
    manifest = write_manifest(
        study, maker.folder, made, inputs=inputs, model_sha256=_tag(present, "model_sha256"), commands=commands
    )
    made[manifest] = "hashes of every input, of the model and of every file made"
    return Products(page, maker.changes, maker.present_ha, maker.novelty, made)


class _Maker:
    """The products of one study, made one after another; what was made is remembered."""

    def __init__(
        self,
        study: Any,
        maps: Mapping[str, Mapping[str, str | Path]],
        folder: Path,
        quantity: str,
        outlines: Any,
        tell: Callable[[str], None],
    ) -> None:
        self.study, self.maps, self.folder, self.quantity, self.tell = study, maps, folder, quantity, tell
        self.threshold = float(study.map.suitable_above)
        self.pictures = folder / "pictures"
        self.titles = {scenario.name: scenario.title or scenario.name for scenario in study.scenarios}
        self.outlines = outlines
        self.made: dict[Path, str] = {}
        self.changes: dict[str, ChangeSummary] = {}
        self.novelty: dict[str, float] = {}
        self.combined: dict[str, dict[str, str]] = {}
        for name, layers in maps.items():
            for layer, path in layers.items():
                self.made[Path(path)] = f"{layer_title(layer)}, {self.titles.get(name, name)}"
            if "mess" in layers:
                self.novelty[name] = novel_percent(layers["mess"])

    def present(self) -> None:
        """Area and picture of the present."""
        self.tell(PRESENT)
        path = Path(self.maps[PRESENT]["probability"])
        self.present_ha = suitable_area(path, self.threshold)
        self.present_png = self._map_picture(path, PRESENT, "Present")

    def combine(self, groups: Mapping[str, ScenarioGroup]) -> list[tuple[ScenarioGroup, dict[str, str]]]:
        """The maps of groups of climate models: mean, spreads, agreement, most frequent change."""
        if not groups:
            return []
        self.tell("climate models together")
        self.combined = combine_scenarios(self.study, self.maps, self.folder)
        for name, layers in change_agreement(self.study, self.maps, self.folder).items():
            self.combined[name] |= layers
        for name, layers in self.combined.items():
            self.titles[name] = groups[name].title
            for layer, path in layers.items():
                self.made[Path(path)] = f"{layer_title(layer)}, {groups[name].title}"
            write_qgis_style(layers["probability"], stops=PROBABILITY_STOPS)
        return [(groups[name], layers) for name, layers in self.combined.items()]

    def group(self, group: ScenarioGroup, layers: Mapping[str, str]) -> ScenarioSection:
        """Change, areas and pictures of the mean of several climate models; and of each of them in a row."""
        summary = self._change(group.name, Path(layers["probability"]))
        rows = []
        for name, model in zip(group.scenarios, group.climate_models, strict=True):
            one = self._change(name, Path(self.maps[name]["probability"]))
            rows.append(ModelRow(model, one, self.novelty.get(name)))
        known = [row.novel_percent for row in rows if row.novel_percent is not None]
        novel = float(np.mean(known)) if known else None
        if novel is not None:
            self.novelty[group.name] = novel
        told = f"Mean of {len(rows)} climate models: {', '.join(group.climate_models)}."
        return self._section(group.name, Path(layers["probability"]), summary, None, novel, told, rows)

    def scenario(self, name: str) -> ScenarioSection:
        """Change, areas and pictures of a scenario that stands alone."""
        layers = self.maps[name]
        path = Path(layers["probability"])
        summary, novelty = self._change(name, path), None
        if "mess" in layers:
            novelty = figures.signed_figure(
                layers["mess"],
                self.pictures / f"novelty_{name}.png",
                title=f"Novelty: {self.titles.get(name, name)}",
                label="MESS, %: below 0 the model extrapolates",
                limit=100.0,
                outlines=self.outlines,
            )
            self.made[novelty] = f"picture: novelty, {self.titles.get(name, name)}"
        return self._section(name, path, summary, novelty, self.novelty.get(name), _describe(self.study, name), [])

    def panel(self, groups: Mapping[str, ScenarioGroup], single: Sequence[str]) -> Path | None:
        """Present and scenarios side by side: pathways by periods where there are groups."""
        target = self.pictures / "scenarios.png"
        if groups:
            self.tell("panel")
            ensemble_panel(
                self.combined,
                groups,
                target,
                present=self.maps[PRESENT]["probability"],
                threshold=self.threshold,
                label=f"{self.quantity}, mean of the climate models",
                outlines=self.outlines,
            )
        elif len(single) > 1:
            self.tell("panel")
            shown = {"Present": Path(self.maps[PRESENT]["probability"])}
            shown |= {self.titles.get(name, name): Path(self.maps[name]["probability"]) for name in single}
            figures.scenario_panel(shown, target, label=self.quantity, outlines=self.outlines)
        else:
            return None
        self.made[target] = "picture: present and scenarios side by side"
        return target

    def tables(self, groups: Mapping[str, ScenarioGroup], zones: Zones | None) -> list[SkillPicture]:
        """Areas by change class, by latitude and by zone; their pictures."""
        self.tell("areas")
        areas = _write_areas(self.folder / "areas.csv", self.present_ha, self.changes, self.threshold)
        self.made[areas] = "areas of each change class in ha, km2 and acres, and shift of the centre"
        given = {"threshold": self.threshold, "groups": groups}
        latitudes = latitude_areas(self.maps, width=self.study.map.latitude_band, **given)
        path = write_csv(latitudes, self.folder / "areas_by_latitude.csv")
        self.made[path] = "areas by band of latitude, with intervals over the climate models"
        pictures = []
        if groups:
            png = latitude_figure(latitudes, self.pictures / "latitudes.png", quantity="expected")
            told = "Expected area by latitude. Shades are intervals over the climate models."
            pictures.append(SkillPicture("Areas by latitude", png, told))
        if zones is not None:
            pictures += self._zones(groups, zones, given)
        for picture in pictures:
            self.made[picture.png] = f"picture: {picture.title}"
        return pictures

    def _zones(
        self, groups: Mapping[str, ScenarioGroup], zones: Zones, given: Mapping[str, Any]
    ) -> list[SkillPicture]:
        self.tell("zones")
        table = zone_areas(self.maps, zones, **given)
        grouped = {name for group in groups.values() for name in group.scenarios}
        # Every climate model of every zone is a long table: it goes to Parquet, what people open has the groups.
        short = table[~table["map"].isin(grouped)]
        stem = self.folder / "areas_by_zone"
        self.made[write_parquet(table, stem.with_suffix(".parquet"))] = "areas by zone, every map"
        self.made[write_csv(short, stem.with_suffix(".csv"))] = "areas by zone, present and scenarios"
        self.made[write_geopackage(short, zones, stem.with_suffix(".gpkg"))] = "the same with the zones' shapes"
        told = "Mean probability of each zone, weighted by true area."
        png = zone_figure(table, zones, self.pictures / "zones_present.png", outlines=self.outlines)
        pictures = [SkillPicture("Zones, present", png, told)]
        for name in [name for name in table["map"].unique() if name not in (PRESENT, *grouped)]:
            title = f"Zones: {self.titles.get(name, name)}"
            target = self.pictures / f"zones_{name}.png"
            png = zone_figure(
                table, zones, target, name=name, value="net_change", title=title, limit=100.0, outlines=self.outlines
            )
            pictures.append(SkillPicture(title, png, "Gain less loss of suitable land in each zone."))
        return pictures

    def rules(self, agronomy: Mapping[str, Mapping[str, Path]]) -> list[SkillPicture]:
        """Pictures of what the agronomic rules say of the present; their layers of all climates are listed."""
        for name, layers in agronomy.items():
            for layer, path in layers.items():
                self.made[path] = f"{RULES[layer].title}, {self.titles.get(name, name)}"
        shown = []
        for layer, told in _RULE_CAPTIONS.items():
            path = agronomy.get(PRESENT, {}).get(layer)
            if path is None:
                continue
            self.tell("rules")
            kind, target = RULES[layer], self.pictures / f"{layer}.png"
            given: dict[str, Any] = {"title": kind.title.capitalize(), "outlines": self.outlines}
            if kind.classes:
                figures.class_figure(path, target, classes=kind.classes, **given)
            else:
                figures.probability_figure(path, target, label=kind.title, threshold=0.75, **given)
            self.made[target] = f"picture: {kind.title}"
            shown.append(SkillPicture(kind.title, target, told))
        return shown

    def _change(self, name: str, path: Path) -> ChangeSummary:
        self.tell(self.titles.get(name, name))
        target = self.folder / f"change_{name}.tif"
        tags = {"scenario": name, "from": PRESENT}
        present = self.maps[PRESENT]["probability"]
        self.changes[name] = change_map(present, path, target, threshold=self.threshold, tags=tags)
        self.made[target] = f"change classes from the present to {self.titles.get(name, name)}"
        return self.changes[name]

    def _section(
        self,
        name: str,
        path: Path,
        summary: ChangeSummary,
        novelty: Path | None,
        novel: float | None,
        told: str,
        rows: list[ModelRow],
    ) -> ScenarioSection:
        title = self.titles.get(name, name)
        png = self._map_picture(path, name, title)
        change = figures.change_figure(
            self.folder / f"change_{name}.tif",
            self.pictures / f"change_{name}.png",
            title=f"From the present to: {title}",
            summary=summary,
            outlines=self.outlines,
        )
        self.made[change] = f"picture: change to {title}"
        return ScenarioSection(title, summary, png, change, novelty, novel, told, rows)

    def _map_picture(self, path: Path, name: str, title: str) -> Path:
        target = self.pictures / f"{name}.png"
        figures.probability_figure(
            path, target, title=title, label=self.quantity, threshold=self.threshold, outlines=self.outlines
        )
        self.made[target] = f"picture: {self.quantity}, {title}"
        return target


def layer_title(layer: str) -> str:
    """What a layer of a map holds, in words."""
    return LAYERS.get(layer, layer.replace("_", " "))


def novel_percent(path: str | Path) -> float:
    """Share of a novelty map's area where the score is below 0, in percent; NaN for a map without data."""
    grid = Grid.from_raster(path)
    total = novel = 0.0
    for rows in iterate_rows(grid.height, 256):
        score, area = read_map(path, rows), grid.cell_areas_ha(rows)
        total += float(area[np.isfinite(score)].sum())
        novel += float(area[score < 0].sum())
    return 100.0 * novel / total if total else float("nan")


def _quantity(path: Path) -> str:
    return _tag(path, "long_name") or LAYERS["probability"]


def _tag(path: Path, name: str) -> str | None:
    with rasterio.open(path) as dataset:
        found: str | None = dataset.tags().get(name)
    return found


def _describe(study: Any, name: str) -> str:
    for scenario in study.scenarios:
        if scenario.name == name:
            parts = (getattr(scenario, "ssp", None), getattr(scenario, "period", None))
            model = getattr(scenario, "climate_model", None)
            text = ", ".join(str(part) for part in (*parts, f"climate model {model}" if model else None) if part)
            return f"{text}." if text else ""
    return ""


def _present_caption(path: Path, novel: float | None) -> str:
    grid = Grid.from_raster(path)
    known = sum(int(np.isfinite(read_map(path, rows)).sum()) for rows in iterate_rows(grid.height, 256))
    text = f"{known:,} cells with data on a grid of {grid.width} x {grid.height}."
    if novel is not None:
        text += f" {novel:.1f} % of the area lies outside the range of the places the model was fitted on."
    return text


def _facts(facts: Mapping[str, str], present: Path) -> dict[str, str]:
    grid = Grid.from_raster(present)
    crs = grid.crs if len(grid.crs) < 40 else "see the file"
    return {
        **facts,
        "grid": f"{crs}, cell {grid.transform.a:g} x {-grid.transform.e:g} in units of the CRS",
        "software": ", ".join(f"{name} {version}" for name, version in software().items()),
    }


def _write_areas(path: Path, present_ha: float, changes: Mapping[str, ChangeSummary], threshold: float) -> Path:
    shift = ["centre_longitude", "centre_latitude", "shift_km", "bearing_degrees"]
    with finished(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["map", "class", "threshold", "ha", "km2", "acres", *shift])

        def add(name: str, what: str, hectares: float, moved: Sequence[float | None] = ()) -> None:
            area = area_units(hectares)
            told = ["" if value is None else f"{value:.4f}" for value in moved] or [""] * len(shift)
            writer.writerow([name, what, threshold, *(f"{area[unit]:.2f}" for unit in ("ha", "km2", "acres")), *told])

        centre = next((summary.centroid_present for summary in changes.values()), None)
        add(PRESENT, "suitable", present_ha, [*(centre or (None, None)), None, None])
        for name, summary in changes.items():
            for title, hectares in summary.areas_ha.items():
                add(name, title, hectares)
            place = summary.centroid_future or (None, None)
            add(name, "suitable", summary.future_ha, [*place, summary.shift_km, summary.bearing_degrees])
            add(name, "expected", summary.expected_future_ha)
    return path
