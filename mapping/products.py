"""From the probability maps of a study to everything a person is handed: change maps, areas, pictures and the report.

Three choices define this file. It takes the dictionary of map paths that prediction returns and needs no model, so the
products can be made again without predicting again. All file names are fixed and plain (`change_<scenario>.tif`,
`areas.csv`, `pictures/`, `report.html`), so scripts can rely on them. What goes wrong in a scenario stops the whole: a
report with a missing scenario would be read as complete.
"""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mapping import figures
from mapping.change import ChangeSummary, area_units, change_map, suitable_area
from mapping.outputs import file_sha256, iterate_rows, read_map, write_qgis_style
from mapping.report import Report, ScenarioSection, SkillPicture, TruthRow, write_report
from processing.errors import AgriClipError
from processing.rasters import Grid

__all__ = ["Products", "input_files", "layer_title", "make_products", "novel_percent"]

#: Layer of a map -> what it is, in the words of the file table and of the colour bars.
LAYERS: dict[str, str] = {
    "probability": "probability of suitability",
    "probability_without_image": "probability of suitability without the image",
    "image_effect": "probability with the image minus without it",
    "std": "standard deviation across the ensemble",
    "share": "expected share of the crop",
    "mess": "novelty (MESS, %)",
    "mess_variable": "number of the most unusual variable",
}

#: Colours of probability maps in QGIS: cividis at five stops.
_CIVIDIS = ((0.0, "#00224e"), (0.25, "#434e6c"), (0.5, "#7d7c78"), (0.75, "#bcae6c"), (1.0, "#fee838"))
_PURPLE_ORANGE = ((-100.0, "#7f3b08"), (-20.0, "#fdb863"), (0.0, "#f7f7f7"), (20.0, "#b2abd2"), (100.0, "#2d004b"))


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
        progress: Called with what is being made.

    Returns:
        What was made.

    Raises:
        AgriClipError: If there is no map of the present, or grids differ.
    """
    if "probability" not in maps.get("present", {}):
        raise AgriClipError(
            "There is no map of the present to report on; run `agriclip map` without --scenario first."
        )
    tell = progress or (lambda what: None)
    folder = Path(output_dir)
    threshold = float(study.map.suitable_above)
    titles = {scenario.name: scenario.title or scenario.name for scenario in study.scenarios}
    present = Path(maps["present"]["probability"])
    quantity = _quantity(present)
    lines = None
    if outlines is not None:
        lines = figures.read_outlines(outlines, outline_layer, crs=Grid.from_raster(present).crs)
    drawing: dict[str, Any] = {"outlines": lines}
    made: dict[Path, str] = {}
    pictures = folder / "pictures"

    tell("present")
    for name, layers in maps.items():
        for layer, path in layers.items():
            made[Path(path)] = f"{layer_title(layer)}, {titles.get(name, name)}"
            _style(layer, Path(path))
    present_ha = suitable_area(present, threshold)
    present_png = figures.probability_figure(
        present, pictures / "present.png", title="Present", label=quantity, threshold=threshold, **drawing
    )
    made[present_png] = f"picture: {quantity}, present"
    novelty: dict[str, float] = {}
    if "mess" in maps["present"]:
        novelty["present"] = novel_percent(maps["present"]["mess"])

    sections, changes, panel = [], {}, {"Present": present}
    for name in (name for name in maps if name != "present"):
        title = titles.get(name, name)
        tell(title)
        path = Path(maps[name]["probability"])
        panel[title] = path
        change = folder / f"change_{name}.tif"
        summary = change_map(present, path, change, threshold=threshold, tags={"scenario": name, "from": "present"})
        changes[name] = summary
        made[change] = f"change classes from the present to {title}"
        png = figures.probability_figure(
            path, pictures / f"{name}.png", title=title, label=quantity, threshold=threshold, **drawing
        )
        change_png = figures.change_figure(
            change, pictures / f"change_{name}.png", title=f"From the present to: {title}", summary=summary, **drawing
        )
        made[png], made[change_png] = f"picture: {quantity}, {title}", f"picture: change to {title}"
        novelty_png = None
        if "mess" in maps[name]:
            novelty[name] = novel_percent(maps[name]["mess"])
            novelty_png = figures.signed_figure(
                maps[name]["mess"],
                pictures / f"novelty_{name}.png",
                title=f"Novelty: {title}",
                label="MESS, %: below 0 the model extrapolates",
                limit=100.0,
                **drawing,
            )
            made[novelty_png] = f"picture: novelty, {title}"
        sections.append(
            ScenarioSection(title, summary, png, change_png, novelty_png, novelty.get(name), _describe(study, name))
        )
    panel_png = None
    if sections:
        tell("panel")
        panel_png = figures.scenario_panel(panel, pictures / "scenarios.png", label=quantity, **drawing)
        made[panel_png] = "picture: present and scenarios side by side"

    tell("areas")
    areas = _write_areas(folder / "areas.csv", present_ha, changes, threshold)
    made[areas] = "areas of each change class in ha, km2 and acres"
    tell("report")
    for picture in skill_pictures:
        made[picture.png] = f"picture: {picture.title}"
    report_path = folder / "report.html"
    report = Report(
        title=study.title or study.name,
        description=study.description or "",
        quantity=quantity,
        threshold=threshold,
        present_png=present_png,
        present_ha=present_ha,
        present_caption=_present_caption(present, novelty.get("present")),
        panel_png=panel_png if len(sections) > 1 else None,
        scenarios=sections,
        comparison=comparison,
        skill_pictures=list(skill_pictures),
        truth=list(truth),
        truth_note=truth_note,
        cards=list(cards),
        warnings=list(warnings),
        commands=list(commands),
        files=[(Path(os.path.relpath(path, folder)).as_posix(), what) for path, what in made.items()],
        inputs=[
            {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in input_files(study)
        ],
        facts=_facts(facts or {}, present),
    )
    made = {write_report(report, report_path): "the report; open it in a browser", **made}
    return Products(report_path, changes, present_ha, novelty, made)


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


def input_files(study: Any) -> list[Path]:
    """Every local file that a study names, each once, in the order of the study."""
    places = (study.path(file) for _, file in study.files() if "://" not in file)
    return [path for path in dict.fromkeys(places) if path.is_file()]


def _style(layer: str, path: Path) -> None:
    if layer in ("probability", "probability_without_image", "share"):
        write_qgis_style(path, stops=_CIVIDIS)
    elif layer == "mess":
        write_qgis_style(path, stops=_PURPLE_ORANGE, unit="%")


def _quantity(path: Path) -> str:
    import rasterio

    with rasterio.open(path) as dataset:
        return dataset.tags().get("long_name") or LAYERS["probability"]


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
    import rasterio
    import torch
    import transformers

    grid = Grid.from_raster(present)
    crs = grid.crs if len(grid.crs) < 40 else "see the file"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, rasterio {rasterio.__version__}"
    return {
        **facts,
        "grid": f"{crs}, cell {grid.transform.a:g} x {-grid.transform.e:g} in units of the CRS",
        "software": f"Python {platform.python_version()}, {versions}",
    }


def _write_areas(path: Path, present_ha: float, changes: Mapping[str, ChangeSummary], threshold: float) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["map", "class", "threshold", "ha", "km2", "acres"])

        def add(name: str, what: str, hectares: float) -> None:
            area = area_units(hectares)
            writer.writerow([name, what, threshold, *(f"{area[unit]:.2f}" for unit in ("ha", "km2", "acres"))])

        add("present", "suitable", present_ha)
        for name, summary in changes.items():
            for title, hectares in summary.areas_ha.items():
                add(name, title, hectares)
            add(name, "suitable", summary.future_ha)
            add(name, "expected", summary.expected_future_ha)
    os.replace(temporary, path)
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Writes JSON under a temporary name first; paths become text and NaN becomes null.

    Args:
        path: File to write.
        content: Mappings, sequences, numbers, strings, paths, NumPy scalars.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, target)
    return target


def plain(value: Any) -> Any:
    """The same content in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
