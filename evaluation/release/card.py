"""The model card: what a person must know before using the weights, and what the Hub reads of it.

Three choices define this file. Everything on the card is read from files beside the weights; what is not recorded is
said to be unknown. The code on the card is the code that is tested: it runs as pasted. And results stand on it with
their intervals, baselines included, from the `results.json` of an evaluation.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.release.folder import AUTO_OF, STUDY, SUMMARY, Release
from evaluation.release.sources import Source, sources_of, study_files
from evaluation.results import RESULTS, Score, card_section, eval_results, read_results, write_eval_results
from processing.whole_files import write_whole

__all__ = ["CardFacts", "Carbon", "environment", "find_results", "read_study", "write_card"]

#: Watts assumed for a machine of a few cores while it fits, where nobody says better.
WATTS = 100.0
#: Grams of CO2 equivalents per kWh, and where that is from.
INTENSITY = (480.0, "world average of 2023, Ember Global Electricity Review 2024")
_TAGS = ("remote-sensing", "agriculture", "climate", "vision-language", "geospatial", "custom_code")
_PIPELINE_TAGS = {
    "AgriClipForSuitability": "tabular-classification",
    "AgriClipForSemanticSegmentation": "image-segmentation",
    "AgriClipForImageClassification": "image-classification",
}
_OUTPUTS = {
    "binary": "the probability (0 to 1) that the labelled use is present.",
    "share": "the probability (0 to 1) that the labelled use covers more than {threshold:.3g} of the land that was "
    "counted, and that share (its median) itself.",
    "presence_only": "the probability (0 to 1) of suitable land, under the share of such land assumed in the study.",
    "regression": "a value, in the unit of the labels.",
}
_PICTURES = {
    "present": "Probability in the present climate",
    "scenarios": "Mean of the climate models by pathway and period",
    "reliability": "Forecast probability against observed frequency on land that was left out",
}
# What is usual where soybean follows wheat; a report for the card's example where no place of the study is at hand.
_TYPICAL = {
    **dict(zip((f"bio{n}" for n in range(1, 8)), (14.1, 12.2, 37, 8.6, 32.4, -4.9, 37.3), strict=True)),
    **dict(zip((f"bio{n}" for n in range(8, 12)), (17.6, 6.2, 24.8, 2.9), strict=True)),
    **dict(zip((f"bio{n}" for n in range(12, 20)), (1150, 118, 74, 14, 332, 254, 301, 268), strict=True)),
}


@dataclass(frozen=True)
class Carbon:
    """An estimate of what a fit emitted.

    Attributes:
        seconds: Measured duration.
        watts: Power assumed.
        intensity: Grams of CO2 equivalents per kWh.
        where: What that intensity is of.
    """

    seconds: float
    watts: float = WATTS
    intensity: float = INTENSITY[0]
    where: str = INTENSITY[1]

    @property
    def grams(self) -> float:
        """Grams of CO2 equivalents: seconds * watts / 3.6e6 kWh, times the intensity."""
        return self.seconds * self.watts / 3.6e6 * self.intensity


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from, beside the release folder.

    Attributes:
        scores: Scores of an evaluation.
        comparison: Rows of `fit.json` (model and metrics), where there is no evaluation.
        study: The study that the weights were fitted to.
        channels: `ChannelSpec`s of its images.
        gsd: Metres per pixel of these images.
        sources: Sources that the user tells of.
        report: A report of a labelled place, for the example.
        datasets: Data sets on the Hub that the weights were trained on.
        watts: Power assumed for the estimate of carbon.
    """

    scores: tuple[Score, ...] = ()
    comparison: tuple[Mapping[str, Any], ...] = ()
    study: Any = None
    channels: tuple[Any, ...] = ()
    gsd: float = 0.0
    sources: tuple[Source, ...] = ()
    report: str = ""
    datasets: tuple[str, ...] = ()
    watts: float = WATTS
    date: str = field(default_factory=lambda: dt.date.today().isoformat())


def write_card(release: Release, repo: str, facts: CardFacts | None = None) -> Path:
    """Write `README.md` and `.eval_results` into a release folder.

    Args:
        release: The release.
        repo: Name on the Hub, `owner/name`; the card's code loads it.
        facts: What is known beside the folder.

    Returns:
        The card.

    Raises:
        AgriClipError: A picture or table of the card cannot be made because a part of the folder is damaged.
        ImportError: jinja2 is missing, with the extra to install.
    """
    facts = facts or CardFacts()
    content = _content(release, repo, facts)
    text = environment().get_template("model_card.md.j2").render(**content)
    write_eval_results(release.path, facts.scores, date=f"{facts.date}T00:00:00Z")
    return write_whole(release.path / "README.md", text)


def find_results(folder: str | Path) -> tuple[tuple[Score, ...], tuple[Mapping[str, Any], ...]]:
    """Scores beside a fitted folder: those of an evaluation, and the comparison that every fit makes.

    Args:
        folder: Folder of the weights; looked into are the folder, the one above, and `evaluation` there.
    """
    here = Path(folder)
    scores: tuple[Score, ...] = ()
    for place in (here, here.parent, here.parent / "evaluation"):
        if (place / RESULTS).is_file():
            scores = tuple(read_results(place / RESULTS)[0])
            break
    comparison: list[Mapping[str, Any]] = []
    for place in (here, here.parent):
        if (place / "fit.json").is_file():
            told = json.loads((place / "fit.json").read_text(encoding="utf-8"))
            comparison = [row for row in told.get("comparison") or [] if isinstance(row, dict)]
            break
    return scores, tuple(comparison)


def read_study(release: Release) -> Any:
    """The study in a release folder, without its data; None where there is none.

    Raises:
        AgriClipError: It is not one that this version reads.
    """
    from processing.study import load_study

    file = release.path / STUDY
    return load_study(file, check_files=False) if file.is_file() else None


def environment() -> Any:
    """Templates of this package.

    Raises:
        ImportError: jinja2 is missing, with the extra to install.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("Writing a card needs jinja2: pip install 'agriclip[maps]'.") from error
    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, of the user's own files
    )
    found.filters |= {"number": _plain_number, "literal": _literal}
    return found


# -- content ----------------------------------------------------------------------------------------------------------


def _content(release: Release, repo: str, facts: CardFacts) -> dict[str, Any]:
    summary = release.read(SUMMARY) or {}
    config = release.read("config.json") or {}
    study = facts.study or read_study(release)
    channels = list(facts.channels)
    seconds = float(summary.get("seconds") or 0.0)
    carbon = Carbon(seconds, facts.watts) if seconds > 0 else None
    files = {} if study is None else study_files(study)
    processor = release.read("processor_config.json") or {}
    pictures = {
        name: text for name, text in _PICTURES.items() if (release.path / "pictures" / f"{name}.png").is_file()
    }
    likelihood = config.get("suitability_likelihood", "binary")
    outputs = ""
    if release.architecture == "AgriClipForSuitability" and config:
        outputs = _OUTPUTS.get(likelihood, "").format(threshold=config.get("share_threshold", 0.0))
    return {
        "metadata": _metadata(release, repo, facts, carbon),
        "title": _title(repo, study),
        "summary": _summary(release, study, summary),
        "repo": repo,
        "kind": release.kind,
        "base": release.base,
        "auto": AUTO_OF.get(release.architecture, "AutoModel"),
        "adapters": _adapter_names(release),
        "tasks": release.tasks,
        "pictures": pictures,
        "report": facts.report or _example_report(study),
        "channels": channels,
        "chip_size": study.chip.size if study is not None else 16,
        "gsd": facts.gsd,
        "image_names": summary.get("channels") or [],
        "variables": _variables(study),
        "max_tokens": processor.get("max_report_tokens", 512),
        "outputs": outputs,
        "study": None
        if study is None
        else {"name": study.name, "title": study.title, "description": study.description},
        "sites": summary.get("sites") or 0,
        "members": len(release.members),
        "sources": sources_of(files, facts.sources),
        "results": card_section(facts.scores, title="Results") if facts.scores else "",
        "comparison": _comparison(facts.comparison),
        "coverage": _coverage(summary.get("coverage") or {}),
        "label_unit": "a place of the study's labels, often a whole county" if study is None else _label_unit(study),
        "limits": _limits(release, summary, likelihood),
        "carbon": carbon,
        "year": facts.date[:4],
    }


def _metadata(release: Release, repo: str, facts: CardFacts, carbon: Carbon | None) -> str:
    """Head of the card, as `huggingface_hub` writes it."""
    from huggingface_hub import ModelCardData

    more: dict[str, Any] = {}
    if release.kind == "adapter":
        more |= {"base_model": release.base, "base_model_relation": "adapter"}
    if facts.datasets:
        more["datasets"] = list(facts.datasets)
    if carbon is not None:
        more["co2_eq_emissions"] = {
            "emissions": float(f"{carbon.grams:.3g}"),
            "source": f"{carbon.seconds:.0f} s measured, {carbon.watts:g} W assumed, {carbon.intensity:g} g/kWh",
            "training_type": "fine-tuning" if release.kind == "adapter" else "training",
        }
    kept = eval_results(facts.scores)
    if kept:
        more |= {"eval_results": kept, "metrics": list(dict.fromkeys(result.metric_type for result in kept))}
    tags = list(_TAGS) + (["ensemble"] if release.kind == "ensemble" else [])
    tags += ["peft", "lora"] if release.kind == "adapter" else []
    if facts.study is not None:
        tags.append(facts.study.name.replace("_", "-"))
    data = ModelCardData(
        license="apache-2.0",
        language="en",
        library_name="peft" if release.kind == "adapter" else "transformers",
        pipeline_tag=_PIPELINE_TAGS.get(release.architecture, "zero-shot-image-classification"),
        tags=tags,
        model_name=repo.rpartition("/")[2],
        **more,
    )
    return data.to_yaml().strip()


def _title(repo: str, study: Any) -> str:
    name = repo.rpartition("/")[2]
    return f"{name}: {study.title}" if study is not None and study.title else name


def _summary(release: Release, study: Any, summary: Mapping[str, Any]) -> str:
    what = {
        "AgriClipForSuitability": "Reads a plain-language report on climate and soil, a satellite image, or both, and "
        "says how likely the land is to be suitable",
        "AgriClipForSemanticSegmentation": "Maps what a text asks for on the pixels of a satellite image of any bands",
        "AgriClipForImageClassification": "Classifies satellite images of any bands",
    }.get(release.architecture, "Compares satellite images of any bands with texts in which numbers keep their value")
    if release.kind == "adapter":
        what = f"A low-rank adapter on [{release.base}](https://huggingface.co/{release.base}). {what}"
    parts = [f"{what}."]
    if release.kind == "ensemble":
        parts.append(
            f"{len(release.members)} members, each fitted without another part of the land, answer together: their "
            "mean, how far they disagree, and which answers cannot be ruled out."
        )
    if study is not None and summary.get("preset"):
        parts.append(f"Fitted from nothing with the preset `{summary['preset']}`.")
    return " ".join(parts)


def _adapter_names(release: Release) -> list[str]:
    from evaluation.release.folder import _adapters

    if release.kind != "adapter":
        return []
    names = [adapter.relative_to(release.path).as_posix() for adapter in _adapters(release.path)]
    return ["" if name == "." else name for name in names]


def _variables(study: Any) -> list[dict[str, str]]:
    if study is None:
        return []
    units = {"1": "no unit", "day": "days"}
    return [
        {"title": v.title, "unit": units.get(v.canonical_unit, v.canonical_unit), "name": v.name}
        for v in study.variables
    ]


def _example_report(study: Any) -> str:
    """The study's own sentences with usual values; what no usual value is known of is left as unknown."""
    generic = "Annual precipitation 45 in; annual mean temperature 14.1 degC; soil pH 6.4."
    if study is None:
        return generic
    from processing.climate_report import ReportTemplate

    values = [_TYPICAL.get(variable.name, math.nan) for variable in study.variables]
    if not any(math.isfinite(value) for value in values):
        return generic
    return ReportTemplate(study.report.sentences, study.variables).render(values)


def _comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """Scores of a fit beside baselines, as the project's tables show them."""
    from evaluation.results import METRICS, scores_markdown

    scores = [
        Score("suitability", "study", "spatial blocks", key, float(value), model=str(row["model"]))
        for row in rows
        for key, value in row.items()
        if key in METRICS and isinstance(value, int | float)
    ]
    return scores_markdown(scores).rstrip() if scores else ""


def _coverage(coverage: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    return [
        {
            "promised": f"{float(level):.0%}",
            "pooled": f"{row['pooled']:.1%}",
            "suitable": f"{row['suitable']:.1%}",
            "undecided": f"{row['undecided']:.1%}",
        }
        for level, row in coverage.items()
        if all(isinstance(row.get(key), int | float) for key in ("pooled", "suitable", "undecided"))
    ]


def _label_unit(study: Any) -> str:
    table = Path(str(study.labels.table)).parent.name.lower() if study.labels is not None else ""
    return "a county" if "count" in table else "a place of the study's labels"


def _limits(release: Release, summary: Mapping[str, Any], likelihood: str) -> list[str]:
    limits = [
        "Suitable is not sown: prices, insurance, water rights and habit decide what is planted and labelled.",
        "English reports only. A number in a unit that is not known is read without one.",
    ]
    if release.architecture == "AgriClipForSuitability":
        limits += [
            "Fitted to one way of telling a report, the study's sentences. Other words are read, but were not scored."
            if release.read(SUMMARY)
            else "How reports were worded in the fit is not recorded.",
            "An image of today knows where the crop grows today; for another climate ask without it "
            "(`report_probability`).",
            "Probabilities were calibrated on places like those of the study. In another region or a warmer climate "
            "neither they nor the prediction sets promise anything."
            if (release.path / "calibration.json").is_file()
            else "Probabilities were not calibrated.",
        ]
    if likelihood == "share":
        limits.append("A share that is 0 in the labels may be land that nobody tried.")
    if summary.get("sites"):
        limits.append(f"{summary['sites']:,} labelled places are few; neighbours among them are alike.")
    if release.kind == "model" and release.architecture == "AgriClipForSuitability":
        limits.append("One model has no spread: `std` is None. Fit an ensemble (`--members`) to have one.")
    return limits


def _literal(text: str) -> str:
    """A text as Python writes it, over several lines where it is long."""
    pieces = textwrap.wrap(text, 100, drop_whitespace=False, break_on_hyphens=False)
    if len(pieces) < 2:
        return json.dumps(text, ensure_ascii=False)
    return "(\n" + "".join(f"    {json.dumps(piece, ensure_ascii=False)}\n" for piece in pieces) + ")"


def _plain_number(value: float) -> str:
    """Three significant digits and no exponent for what a person would write out."""
    value = float(value)
    return f"{value:,.0f}".replace(",", "") if abs(value) >= 1000 else f"{value:.3g}"
