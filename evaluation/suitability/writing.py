"""What an evaluation of a suitability model writes: pictures, `results.json`, tables, and what a card needs."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.results import OURS, card_data, card_section, write_eval_results, write_results
from evaluation.suitability import figures
from evaluation.suitability.ablations import INTACT
from evaluation.suitability.places import Predictions
from evaluation.suitability.scoring import Setting, Truth
from evaluation.suitability.tables import results_markdown

if TYPE_CHECKING:
    from evaluation.suitability.evaluate import Evaluation

__all__ = ["describe_run", "draw_pictures", "read_summary", "write_evaluation"]

_SHOWN = ("ap", "brier", "log_loss")


def draw_pictures(result: Evaluation, truth: Truth, models: Mapping[str, Predictions], folder: Path) -> None:
    """Draws the pictures and lists them in the result.

    Args:
        result: The evaluation.
        truth: What was scored.
        models: Name -> predictions.
        folder: Folder of the evaluation.
    """
    rows = [s for s in result.main if s.metric == "ap" and s.against is None and s.model != OURS]
    best = max(rows, key=lambda s: s.value).model if rows else None
    place = folder / "pictures"
    made = {
        "reliability": figures.reliability_figure(truth, models, place / "reliability.png", best),
        "curves": figures.curves_figure(truth, models, place / "roc_pr.png", best),
        "rejection": figures.rejection_figure(truth, models, place / "rejection.png", best),
        "leads": figures.lead_figure(
            result.main, place / "leads.png", f"{OURS} less each baseline: {result.split}", _SHOWN
        ),
    }
    removed = [score for score in result.scores if score.model == INTACT]
    title = f"{OURS} with all inputs less without"
    made["ablations"] = figures.lead_figure(removed, place / "ablations.png", title, _SHOWN)
    if result.climates is not None:
        made["climate_models"] = figures.climate_figure(result.climates, place / "climate_models.png")
    result.files |= {name: path for name, path in made.items() if path is not None}


def describe_run(
    study: Any,
    model_dir: str | Path,
    predictor: Any,
    labels: str | Path | None,
    command: str,
    setting: Setting,
    *,
    in_sample: bool,
) -> dict[str, Any]:
    """What the scores were taken with: command, model, labels, versions.

    Args:
        study: The study.
        model_dir: Folder of the model.
        predictor: The model.
        labels: Table of other places, or None.
        command: The command that was run.
        setting: What the scores have in common.
        in_sample: Whether places were scored that the model was fitted on.
    """
    from mapping.provenance import describe_files, software

    tables = [study.path(study.labels.table)] + ([Path(labels)] if labels is not None else [])
    return {
        "task": "suitability",
        "command": command,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "study": study.name,
        "study_fingerprint": study.fingerprint(),
        "in_sample": in_sample,
        "model": str(model_dir),
        "model_sha256": predictor.hash,
        "members": len(predictor.members),
        "fitted": read_summary(model_dir),
        "labels": describe_files(tables),
        "draws": setting.draws,
        "interval_level": setting.level,
        "seed": setting.seed,
        "software": software() | _versions("scikit-learn", "scipy"),
    }


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}


def read_summary(model_dir: str | Path) -> dict[str, Any]:
    """What the fit said of itself; nothing where it did not.

    Args:
        model_dir: Folder of the model.
    """
    path = Path(model_dir) / "training_summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_evaluation(result: Evaluation, about: dict[str, Any], folder: Path, dataset_id: str | None = None) -> None:
    """Writes `results.json`, `results.md`, and the card's section and metadata; lists them in the result.

    Args:
        result: The evaluation.
        about: What it was taken with, of :func:`describe_run`.
        folder: Folder of the evaluation.
        dataset_id: Id of the labels on the Hub.
    """
    from processing.whole_files import write_whole

    name = str(about["study"])
    ids = {name: dataset_id} if dataset_id else None
    result.files["results"] = write_results(
        folder, result.scores, about=about | {"notes": result.notes}, details=result.details
    )
    result.files["table"] = write_whole(folder / "results.md", results_markdown(result, about))
    if result.details["in_sample"]:
        return  # a card makes no claim from places that were fitted
    card = card_data(f"agriclip-{name}", result.main, ids)
    result.files["card_metadata"] = write_whole(folder / "card.yaml", card.to_yaml() + "\n")
    result.files["card_section"] = write_whole(
        folder / "card_section.md", card_section(result.main, notes=result.notes)
    )
    for path in write_eval_results(folder, result.main, ids, date=str(about["date"])):
        result.files["eval_results"] = path
