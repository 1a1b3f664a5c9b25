"""One HTML page to read, keep and send: maps, areas, scores, doubts, and the commands that make it again.

Three choices define this file. The page is one file without any link to the network: pictures are embedded, so it
opens from a stick in a field office. It says what the map must not be used for as prominently as what it shows. Every
number in it comes from the arguments; the template computes nothing.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapping.change import CHANGE_CLASSES, ChangeSummary, area_units
from mapping.score_titles import SCORE_TITLES, best_rows, column_title
from processing.whole_files import write_whole

__all__ = [
    "GENERAL_WARNINGS",
    "ModelRow",
    "Report",
    "ScenarioSection",
    "SkillPicture",
    "TruthRow",
    "change_sentence",
    "write_report",
]

#: Doubts that hold for every suitability map of this project.
GENERAL_WARNINGS: tuple[str, ...] = (
    "Suitable is not sown. Price, insurance, machinery and habit decide whether a second crop is planted; the map "
    "says where climate and land would allow it, learnt from where it is done now.",
    "The scenarios change the climate and nothing else. Land cover, soils, varieties and sowing dates stay as they "
    "are today; breeding and irrigation could move the limits in either direction.",
    "Below zero on the novelty map, at least one variable lies outside everything the model has seen. Read the "
    "probability there as a guess, whatever its colour.",
    "A cell is an average of its land. Do not decide on one field from it.",
)


@dataclass(frozen=True)
class ModelRow:
    """One climate model of a scenario.

    Attributes:
        climate_model: Its name.
        summary: Areas and shift against the present.
        novel_percent: Share of the area outside the training range, in percent, or None.
    """

    climate_model: str
    summary: ChangeSummary
    novel_percent: float | None = None


@dataclass(frozen=True)
class ScenarioSection:
    """One scenario in the report.

    Attributes:
        title: Name for readers.
        summary: Areas and shift against the present.
        png: Probability map of the scenario.
        change_png: Map of change classes.
        novelty_png: Map of novelty, or None.
        novel_percent: Share of the area outside the training range, in percent, or None.
        description: A sentence about the scenario, or an empty string.
        models: The climate models that it is the mean of; empty for a single one.
    """

    title: str
    summary: ChangeSummary
    png: Path
    change_png: Path
    novelty_png: Path | None = None
    novel_percent: float | None = None
    description: str = ""
    models: Sequence[ModelRow] = ()


@dataclass(frozen=True)
class SkillPicture:
    """A picture in the section on skill."""

    title: str
    png: Path
    caption: str


@dataclass(frozen=True)
class TruthRow:
    """Agreement of one map with a known truth (virtual landscapes only).

    Attributes:
        title: Name of the map.
        rmse: Root mean squared error of the probability, weighted by cell area.
        true_ha: True suitable area.
        mapped_ha: Mapped suitable area.
        change_agreement_percent: Share of the area whose change class is the true one, or None for the present.
        rmse_without_image: The same error of the map made without the image, or None.
        trusted_agreement_percent: Agreement of the change class where the map says that it may be trusted, or None.
        novel_flagged_percent: Share of the land whose climate occurs nowhere in the present landscape that the map
            flags as novel; None where there is no such land.
    """

    title: str
    rmse: float
    true_ha: float
    mapped_ha: float
    change_agreement_percent: float | None = None
    rmse_without_image: float | None = None
    trusted_agreement_percent: float | None = None
    novel_flagged_percent: float | None = None

    @property
    def area_error_percent(self) -> float:
        """Mapped minus true suitable area, in percent of the true one; NaN if there is none."""
        return 100.0 * (self.mapped_ha - self.true_ha) / self.true_ha if self.true_ha else math.nan


@dataclass
class Report:
    """Everything the page shows.

    Attributes:
        title: Title of the study.
        description: A paragraph about it.
        quantity: What the map holds, for example ``probability of suitability``.
        threshold: From this probability on, land is called suitable.
        present_png: Map of the present.
        present_ha: Suitable area of the present in ha.
        present_caption: Caption of the map.
        panel_png: Present and scenarios side by side, or None.
        scenarios: One section each.
        area_pictures: Pictures of areas by latitude and zone.
        rule_pictures: Pictures of what agronomic rules say.
        comparison: Rows of :func:`evaluation.baselines.compare`.
        skill_pictures: Reliability and so on.
        truth: Agreement with a known truth.
        truth_note: A sentence before that table.
        cards: More cards at the top, each ``{"what", "number", "also"}``.
        warnings: Doubts of this study; the general ones follow.
        commands: Shell commands that make the page again.
        files: (path relative to the page, what it is).
        inputs: Input files, hashed here.
        facts: Model and software, title -> text.
    """

    title: str
    present_png: Path
    present_ha: float
    description: str = ""
    quantity: str = "probability of suitability"
    threshold: float = 0.5
    present_caption: str = ""
    panel_png: Path | None = None
    scenarios: list[ScenarioSection] = field(default_factory=list)
    area_pictures: list[SkillPicture] = field(default_factory=list)
    rule_pictures: list[SkillPicture] = field(default_factory=list)
    comparison: Sequence[Mapping[str, Any]] = ()
    skill_pictures: list[SkillPicture] = field(default_factory=list)
    truth: list[TruthRow] = field(default_factory=list)
    truth_note: str = ""
    cards: list[Mapping[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    inputs: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_report(report: Report, path: str | Path) -> Path:
    """Renders the page.

    Args:
        report: What it shows; the pictures are read from disk and embedded.
        path: HTML file to write.

    Returns:
        The path.

    Raises:
        ImportError: If jinja2 is missing, with the extra to install.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("Writing the report needs jinja2: pip install 'agriclip[maps]'.") from error

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        embed=_embed,
        ha=lambda value, signed=False: _people(value, "ha", signed),
        acres=lambda value, signed=False: _people(value, "acres", signed),
        km2=lambda value, signed=False: _people(value, "km²", signed),
        km=lambda value: f"{value:,.0f} km" if value >= 10 else f"{value:.1f} km",
        number=lambda value: "–" if value is None or not math.isfinite(value) else f"{value:,.0f}",
        score=lambda value: "–" if value is None or not math.isfinite(value) else f"{value:.3f}",
        percent=_percent,
        score_title=column_title,
        score_meaning=lambda key: SCORE_TITLES[key][3] if key in SCORE_TITLES else "",
        larger_is_better=lambda key: SCORE_TITLES[key][2] if key in SCORE_TITLES else True,
    )
    rows = list(report.comparison)
    content = environment.get_template("report.html.j2").render(
        **{name: getattr(report, name) for name in ("title", "description", "quantity", "threshold", "present_png")},
        area_pictures=report.area_pictures,
        rule_pictures=report.rule_pictures,
        **{name: getattr(report, name) for name in ("present_caption", "panel_png", "skill_pictures", "truth")},
        **{name: getattr(report, name) for name in ("truth_note", "cards", "commands", "inputs", "facts")},
        present_area=area_units(report.present_ha),
        scenarios=[_scenario(section) for section in report.scenarios],
        class_colours={title: colour for title, colour in CHANGE_CLASSES.values()},
        comparison=[{"model": row["model"], "index": index, "scores": row} for index, row in enumerate(rows)],
        score_keys=[key for key in (rows[0] if rows else {}) if key != "model"],
        best=best_rows(rows),
        warnings=[*report.warnings, *GENERAL_WARNINGS],
        files=[{"href": href, "what": what} for href, what in report.files],
        version=_version(),
    )
    return write_whole(path, content)


def change_sentence(summary: ChangeSummary, title: str) -> str:
    """What a scenario does, in one or two sentences with numbers.

    Args:
        summary: Areas and shift.
        title: Name of the scenario.
    """
    if summary.present_ha == 0 and summary.future_ha == 0:
        return f"No land is suitable, neither now nor under {title}."
    if summary.areas_ha["gain"] == 0 and summary.areas_ha["loss"] == 0:
        return f"Suitable land stays the same: {_people(summary.present_ha, 'ha')}."
    grows = "grows" if summary.net_ha >= 0 else "shrinks"
    share = f" ({100 * summary.net_ha / summary.present_ha:+.0f} %)" if summary.present_ha else ""
    text = (
        f"Suitable land {grows} by {_people(abs(summary.net_ha), 'ha')}{share}: "
        f"{_people(summary.areas_ha['gain'], 'ha')} are gained and {_people(summary.areas_ha['loss'], 'ha')} lost."
    )
    if summary.compass is not None and summary.shift_km is not None:
        text += f" Its centre moves {summary.shift_km:,.0f} km to the {summary.compass}."
    return text


def _scenario(section: ScenarioSection) -> dict[str, Any]:
    sentence = change_sentence(section.summary, section.title)
    return {
        "title": section.title,
        "sentence": f"{section.description} {sentence}".strip(),
        "change": section.summary.as_dict(),
        "png": section.png,
        "change_png": section.change_png,
        "novelty_png": section.novelty_png,
        "novel_percent": section.novel_percent,
        "models": [
            {"name": row.climate_model, "change": row.summary.as_dict(), "novel_percent": row.novel_percent}
            for row in section.models
        ],
    }


def _embed(path: str | Path) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    return f"data:image/png;base64,{data}"


def _people(value: float, unit: str, signed: bool = False) -> str:
    """A quantity for people: 1.23 million ha, 45,600 ha; three figures."""
    sign = "+" if signed and value > 0 else "−" if value < 0 else ""
    size = abs(value)
    if size >= 1e6:
        return f"{sign}{size / 1e6:.3g} million {unit}"
    if size >= 1000:
        step = 10 ** max(0, math.floor(math.log10(size)) - 2)
        size = round(size / step) * step
    return f"{sign}{size:,.0f} {unit}"


def _percent(value: float | None, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.1f} %" if signed else f"{value:.1f} %"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("agriclip")
    except PackageNotFoundError:  # a checkout that was never installed
        return "(not installed)"
