"""What an evaluation leaves behind: scores with intervals as JSON, as tables, and as metadata of a model card.

Three choices define this file. A score is one flat record (what was asked of which model, on which data, split how,
with what result), so suitability, segmentation and retrieval share one file format and one set of tables. An interval
stands beside a value wherever there is one, and a difference between two models is a score of its own (`against`).
What goes to the Hub is made by `huggingface_hub` itself: `model-index` for the card and `.eval_results/*.yaml` for
leaderboards; both hold our own scores only, never those of baselines.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError
from processing.whole_files import write_whole

__all__ = [
    "EVAL_RESULTS",
    "METRICS",
    "OURS",
    "TASKS",
    "Metric",
    "Score",
    "card_data",
    "card_section",
    "differences_markdown",
    "eval_results",
    "metric_of",
    "model_index",
    "read_results",
    "scores_markdown",
    "write_eval_results",
    "write_results",
]

#: Name under which our own scores stand.
OURS = "AgriCLIP"
#: Folder of the Hub's newer form of evaluation results.
EVAL_RESULTS = ".eval_results"
#: File of all scores.
RESULTS = "results.json"
_FORMAT = "agriclip-results-1"

#: Task -> (task type as the Hub writes it, title).
TASKS: dict[str, tuple[str, str]] = {
    "suitability": ("tabular-classification", "Crop suitability"),
    "segmentation": ("image-segmentation", "Segmentation by language"),
    "zero-shot": ("zero-shot-image-classification", "Zero-shot image classification"),
    "retrieval": ("image-text-retrieval", "Image-text retrieval"),
    "probe": ("image-classification", "Linear and nearest-neighbour probe"),
}


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        title: Words for tables.
        better: `higher`, `lower`, `zero`, `one` (closest to it is best) or `none` (a description, not a score).
        decimals: Digits after the point.
    """

    title: str
    better: str = "higher"
    decimals: int = 3


#: Key -> how it is shown. Others may add theirs; a key that is not here is shown as it is written.
METRICS: dict[str, Metric] = {
    "ap": Metric("Average precision"),
    "auc": Metric("AUC-ROC"),
    "brier": Metric("Brier score", "lower", 4),
    "brier_reliability": Metric("Brier: reliability", "lower", 4),
    "brier_resolution": Metric("Brier: resolution", "higher", 4),
    "brier_uncertainty": Metric("Brier: uncertainty", "none", 4),
    "brier_skill": Metric("Brier skill"),
    "log_loss": Metric("Log loss", "lower"),
    "ece": Metric("Calibration error", "lower"),
    "calibration_slope": Metric("Calibration slope", "one"),
    "calibration_intercept": Metric("Calibration intercept", "zero"),
    "calibration_in_the_large": Metric("Calibration in the large", "zero"),
    "threshold": Metric("Threshold", "none"),
    "tss": Metric("TSS"),
    "kappa": Metric("Kappa"),
    "f1": Metric("F1"),
    "iou": Metric("IoU"),
    "omission": Metric("Omission", "lower"),
    "commission": Metric("Commission", "lower"),
    "boyce": Metric("Continuous Boyce index"),
    "area_bias": Metric("Area bias", "zero"),
    "area_rmse": Metric("Area RMSE", "lower"),
    "area_r2": Metric("Area R2"),
    "share_rmse": Metric("RMSE of the share", "lower", 4),
    "aurc": Metric("Area under the rejection curve", "lower", 4),
    "aurc_excess": Metric("Excess area under the rejection curve", "lower", 4),
    **{f"coverage_{level}": Metric(f"Coverage of sets of {level} %", "none") for level in (80, 90, 95)},
    **{f"set_size_{level}": Metric(f"Mean size of sets of {level} %", "lower") for level in (80, 90, 95)},
    "spread_error_correlation": Metric("Rank correlation of spread and error"),
    "accuracy": Metric("Accuracy"),
    "mean_iou": Metric("Mean IoU"),
    "recall_at_1": Metric("R@1"),
    "recall_at_5": Metric("R@5"),
    "recall_at_10": Metric("R@10"),
}


def metric_of(key: str) -> Metric:
    """How a metric is shown; an unknown key is shown as it is written."""
    return METRICS.get(key, Metric(key.replace("_", " ")))


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        task: Key of :data:`TASKS`.
        dataset: What was scored on: the name of a study, of a folder or of a dataset on the Hub.
        split: How it was held out, such as `spatial blocks` or `other places`.
        metric: Key of :data:`METRICS`.
        value: The number; NaN where it is not defined.
        low: Lower end of its interval, or None.
        high: Upper end of its interval, or None.
        n: Places, images or pairs behind it.
        model: Whose score it is.
        against: The other model, where the value is the score of `model` less that of `against`.
        level: Level of the interval.
        note: What a reader must know of it.
    """

    task: str
    dataset: str
    split: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    model: str = OURS
    against: str | None = None
    level: float = 0.95
    note: str = ""

    @property
    def text(self) -> str:
        """Value and interval for a table."""
        decimals = metric_of(self.metric).decimals
        sign = "+" if self.against is not None else ""
        if not math.isfinite(self.value):
            return "-"
        shown = f"{self.value:{sign}.{decimals}f}"
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return shown
        return f"{shown} ({self.low:{sign}.{decimals}f} to {self.high:{sign}.{decimals}f})"


def write_results(
    folder: str | Path,
    scores: Iterable[Score],
    *,
    about: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
    name: str = RESULTS,
) -> Path:
    """Writes scores as JSON.

    Args:
        folder: Where the file goes.
        scores: The scores.
        about: What they were taken with: command, versions, hashes.
        details: Everything else that the task has to tell, such as curves and tables.
        name: Name of the file.

    Returns:
        The file.
    """
    from mapping.provenance import write_json

    content = {
        "format": _FORMAT,
        "about": dict(about or {}),
        "scores": [asdict(score) for score in scores],
        "details": dict(details or {}),
    }
    return write_json(Path(folder) / name, content)


def read_results(path: str | Path) -> tuple[list[Score], dict[str, Any]]:
    """Reads what :func:`write_results` wrote.

    Args:
        path: The file, or the folder that holds `results.json`.

    Returns:
        The scores, and the whole content.

    Raises:
        AgriClipError: There is no such file, or it holds something else.
    """
    file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise AgriClipError(f"There are no results in '{path}'; make them with `agriclip evaluate`.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise AgriClipError(f"'{file}' is not JSON ({error}); run the evaluation again.") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise AgriClipError(f"'{file}' holds no results of an evaluation; name a results.json of `agriclip evaluate`.")
    known = {field.name for field in fields(Score)}
    scores = []
    for row in content["scores"]:
        numbers = {key: math.nan if key == "value" and row[key] is None else row[key] for key in row if key in known}
        scores.append(Score(**numbers))
    return scores, content


def scores_markdown(scores: Iterable[Score], metrics: Sequence[str] | None = None) -> str:
    """A Markdown table, a row for each model and a column for each metric, the best of each column in bold.

    Args:
        scores: Scores of one task, dataset and split; differences are left away.
        metrics: Columns; all that occur by default.
    """
    plain = [score for score in scores if score.against is None]
    keys = _columns(plain, metrics)
    cells = {(score.model, score.metric): score for score in plain}
    rows = [["model", *(metric_of(key).title for key in keys)]]
    best = {key: _best(key, [score for score in plain if score.metric == key]) for key in keys}
    for model in dict.fromkeys(score.model for score in plain):
        row = [model]
        for key in keys:
            score = cells.get((model, key))
            text = "" if score is None else score.text
            row.append(f"**{text}**" if text and model in best[key] else text)
        rows.append(row)
    return _markdown(rows)


def differences_markdown(scores: Iterable[Score], metrics: Sequence[str] | None = None) -> str:
    """A Markdown table of differences: a row for what ours is compared with, a column for each metric.

    Args:
        scores: Scores with `against`; others are left away.
        metrics: Columns; all that occur by default.
    """
    paired = [score for score in scores if score.against is not None]
    keys = [
        key for key in (metrics or dict.fromkeys(s.metric for s in paired)) if any(s.metric == key for s in paired)
    ]
    cells = {(score.model, score.against, score.metric): score for score in paired}
    rows = [["difference", *(metric_of(key).title for key in keys)]]
    for model, against in dict.fromkeys((score.model, score.against) for score in paired):
        found = [cells.get((model, against, key)) for key in keys]
        rows.append([f"{model} less {against}", *("" if score is None else score.text for score in found)])
    return _markdown(rows)


def _best(key: str, scores: Sequence[Score]) -> set[str]:
    """Names of the models with the best value of a metric; none where there is no better."""
    known = [score for score in scores if math.isfinite(score.value)]
    better = metric_of(key).better
    if len(known) < 2 or better == "none":
        return set()
    goal = {"zero": 0.0, "one": 1.0}
    worth = {
        score.model: -abs(score.value - goal[better])
        if better in goal
        else score.value * (1 if better == "higher" else -1)
        for score in known
    }
    return {model for model, value in worth.items() if value == max(worth.values())}


def _worth(value: float, better: str) -> float:
    """A number that is larger the better a value is."""
    if better in ("zero", "one"):
        return -abs(value - (1.0 if better == "one" else 0.0))
    return value if better == "higher" else -value


def _columns(scores: Sequence[Score], metrics: Sequence[str] | None) -> list[str]:
    """The metrics that occur, in the order asked for."""
    found = dict.fromkeys(score.metric for score in scores)
    return [key for key in metrics or found if key in found]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" + " ---: |" * (len(rows[0]) - 1))
    return "\n".join(lines) + "\n"


# -- the Hub --------------------------------------------------------------------------------------------------------


def _own(scores: Iterable[Score]) -> list[Score]:
    """Scores that a card may claim: of our own model, absolute, and defined."""
    return [s for s in scores if s.model == OURS and s.against is None and math.isfinite(s.value)]


def eval_results(scores: Iterable[Score], dataset_ids: Mapping[str, str] | None = None) -> list[Any]:
    """Our own scores as `huggingface_hub.EvalResult`, for the `model-index` of a card.

    Args:
        scores: Scores of any tasks; baselines and differences are left away.
        dataset_ids: Dataset of a score -> its id on the Hub; the name of the dataset itself by default.

    Returns:
        One record each, with the interval in `metric_args`.
    """
    from huggingface_hub import EvalResult

    found = []
    for score in _own(scores):
        kind, title = TASKS.get(score.task, ("other", score.task))
        arguments: dict[str, Any] = {"n": score.n}
        if score.low is not None and score.high is not None:
            arguments |= {"low": _rounded(score.low), "high": _rounded(score.high), "level": score.level}
        found.append(
            EvalResult(
                task_type=kind,
                task_name=title,
                dataset_type=(dataset_ids or {}).get(score.dataset, _slug(score.dataset)),
                dataset_name=score.dataset,
                dataset_split=score.split,
                metric_type=score.metric,
                metric_name=metric_of(score.metric).title,
                metric_value=_rounded(score.value),
                metric_args=arguments,
            )
        )
    return found


def model_index(
    name: str, scores: Iterable[Score], dataset_ids: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The `model-index` of a card.

    Args:
        name: Name of the model.
        scores: As for :func:`eval_results`.
        dataset_ids: As for :func:`eval_results`.
    """
    from huggingface_hub.repocard_data import eval_results_to_model_index

    return eval_results_to_model_index(name, eval_results(scores, dataset_ids))


def card_data(name: str, scores: Iterable[Score], dataset_ids: Mapping[str, str] | None = None, **more: Any) -> Any:
    """Metadata of a model card with our own scores.

    Args:
        name: Name of the model.
        scores: As for :func:`eval_results`.
        dataset_ids: As for :func:`eval_results`.
        **more: Other metadata, such as `license` or `library_name`.

    Returns:
        ``huggingface_hub.ModelCardData``; its `to_yaml()` is the head of the card.
    """
    from huggingface_hub import ModelCardData

    kept = _own(scores)
    metrics = list(dict.fromkeys(score.metric for score in kept))
    return ModelCardData(model_name=name, eval_results=eval_results(kept, dataset_ids), metrics=metrics, **more)


def write_eval_results(
    folder: str | Path,
    scores: Iterable[Score],
    dataset_ids: Mapping[str, str] | None = None,
    *,
    date: str | None = None,
    source_url: str | None = None,
) -> list[Path]:
    """Writes `.eval_results/<dataset>_<task>.yaml` as the Hub reads it.

    Args:
        folder: Root of the repository that the model lies in.
        scores: As for :func:`eval_results`.
        dataset_ids: As for :func:`eval_results`.
        date: When it was scored, ISO 8601; now by default.
        source_url: Where the evaluation can be seen.

    Returns:
        The files, one for each dataset and task.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    when = date or dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    groups: dict[tuple[str, str], list[Any]] = {}
    for score in _own(scores):
        dataset = (dataset_ids or {}).get(score.dataset, _slug(score.dataset))
        interval = ""
        if score.low is not None and score.high is not None:
            interval = f"; {score.level:.0%} interval {score.low:.4f} to {score.high:.4f}"
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=f"{_slug(score.task)}_{score.metric}",
            value=_rounded(score.value),
            date=when,
            source_url=source_url,
            notes=f"{metric_of(score.metric).title}, {score.split}, n = {score.n}{interval}",
        )
        groups.setdefault((dataset, score.task), []).append(entry)
    files = []
    for (dataset, task), entries in groups.items():
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        files.append(write_whole(Path(folder) / EVAL_RESULTS / f"{_slug(dataset)}_{_slug(task)}.yaml", text))
    return files


def card_section(scores: Iterable[Score], title: str = "Evaluation", notes: Sequence[str] = ()) -> str:
    """A section of a model card: a table of scores for each task, dataset and split, and one of differences.

    Args:
        scores: Scores of any tasks, baselines among them.
        title: Heading.
        notes: Sentences below the heading.
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.task, score.dataset, score.split), []).append(score)
    lines = [f"## {title}\n", *(f"{note}\n" for note in notes)]
    for (task, dataset, split), rows in groups.items():
        places = max(score.n for score in rows)
        lines.append(f"### {TASKS.get(task, (task, task))[1]}: {dataset}, {split} (n = {places:,})\n")
        plain = [score for score in rows if score.against is None]
        several = {s.metric for s in plain if any(o.metric == s.metric and o.model != s.model for o in plain)}
        shared = [score for score in plain if score.metric in several]
        if shared:
            lines.append(scores_markdown(shared))
        single = [score for score in plain if score.metric not in several]
        if single:
            lines.append(_markdown([["metric", "value"], *([metric_of(s.metric).title, s.text] for s in single)]))
        if any(score.against is not None for score in rows):
            lines.append(differences_markdown(rows))
    return "\n".join(lines)


def _slug(text: str) -> str:
    """A name that files and the Hub accept; a Hub id keeps its slash where it is asked for as one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.").lower() or "unnamed"


def _rounded(value: float) -> float:
    return round(float(value), 6)
