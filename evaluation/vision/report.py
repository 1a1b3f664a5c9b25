"""What an evaluation of images leaves behind: `results.json`, pictures, and a table for the terminal.

Every score is a record of `evaluation.results`, so that model cards and comparisons read all tasks alike. Beside the
scores stands what a sceptical reader asks for: how files were understood, what was not read, what was not scored, how
units were held out, which prompts were used, and where the protocol itself is uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.results import METRICS, OURS, Metric, Score, write_results
from evaluation.vision.encoders import Encoder
from evaluation.vision.images import ImageTable
from evaluation.vision.probe import Probe
from evaluation.vision.protocols import Protocol
from evaluation.vision.retrieval import Retrieval, protocol_told
from evaluation.vision.segmentation import BASELINE, Segmentation
from evaluation.vision.units import OURS as EMBEDDINGS
from evaluation.vision.units import class_sizes
from evaluation.vision.zero_shot import ZeroShot
from mapping.provenance import software

__all__ = ["Report", "dataset_name", "report_probe", "report_retrieval", "report_segmentation", "report_zero_shot"]

METRICS.update(
    {
        "balanced_accuracy": Metric("Balanced accuracy"),
        "macro_f1": Metric("Macro F1"),
        "mean_recall": Metric("Mean recall"),
        **{
            f"{way}_recall_at_{k}": Metric(f"{title} R@{k}")
            for way, title in (("image_to_text", "Image to text"), ("text_to_image", "Text to image"))
            for k in (1, 5, 10, 100)
        },
    }
)
_PLAIN = ("images", "image", "test", "val", "train", "data", "tiles", "img")
_SHARED = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        scores: The scores.
        files: Title -> file.
        content: What `results.json` holds beside the scores.
        lines: Sentences for the terminal.
        rows: Title -> text of each score, for the terminal, by model.
        per_class: Class, and its figures, for the terminal.
    """

    scores: list[Score]
    files: dict[str, Path]
    content: dict[str, Any]
    lines: list[str]
    rows: dict[str, dict[str, str]]
    per_class: list[tuple[str, dict[str, str]]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scores": [score.__dict__ for score in self.scores],
            "files": {name: str(path) for name, path in self.files.items()},
            **self.content,
        }

    def show(self, console: Any) -> None:
        """Prints tables and sentences."""
        from rich.table import Table

        models = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        alone = len(models) == 1
        table = Table("score", *models) if alone else Table("model", *self.rows)
        for title, row in self.rows.items() if alone else ():
            table.add_row(title, *row.values())
        for name in () if alone else models:
            table.add_row(name, *(row.get(name, "") for row in self.rows.values()))
        console.print(table)
        if self.per_class:
            columns = list(self.per_class[0][1])
            table = Table("class", *columns)
            for name, figures in self.per_class:
                table.add_row(name, *(figures[column] for column in columns))
            console.print(table)
        for line in self.lines:
            console.print(line, highlight=False, markup=False)
        for name, path in self.files.items():
            console.print(f"{name:<12} {path}", highlight=False, markup=False)


def dataset_name(source: str | Path, name: str | None = None) -> str:
    """What scores call a data set: the name given, a Hub id, or the folder's name; its parent's if it says nothing."""
    if name:
        return name
    path = Path(source).expanduser()
    if not path.exists():
        return str(source)
    path = path.resolve()
    return path.parent.name if path.name.lower() in _PLAIN and path.parent.name else path.name


def _model(encoder: Encoder) -> str:
    return OURS if encoder.family == "agriclip" else encoder.name


def _about(command: str, encoder: Encoder, table: ImageTable | None) -> dict[str, Any]:
    told = {"command": command, "software": software(), **encoder.told()}
    return told if table is None else {**told, "images": table.told()}


def _warned(table: ImageTable | None, encoder: Encoder) -> list[str]:
    lines = []
    if table is not None:
        lines += [f"Read as {sensor}: {count} images" for sensor, count in table.decided.items()]
        if table.unreadable:
            lines.append(f"{len(table.unreadable)} images could not be read and were left out, see results.json")
    if encoder.truncated:
        lines.append(f"{encoder.truncated} texts were longer than the model reads and were cut")
    if encoder.resized:
        lines.append(f"{encoder.resized} images were reduced to 512 pixels along their longer edge")
    return lines


def _figures(result: Mapping[str, Any], names: Sequence[str], confusion: Any, keys: Sequence[str]) -> list[Any]:
    """Per class: figures as text, with the interval of the first."""
    rows = []
    for k, name in enumerate(names):
        figures = {key: _text(result[key]["value"][k]) for key in keys}
        low, high = (result[keys[0]][end][k] for end in ("low", "high"))
        if low is not None and math.isfinite(result[keys[0]]["value"][k]):
            figures[keys[0]] += f" ({low:.3f} to {high:.3f})"
        rows.append((name, {**figures, "n": f"{int(confusion[k].sum()):,}"}))
    return rows


def _text(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _classes(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Per class scores for JSON."""
    return {
        name: {
            key: {end: result[key][end][k] for end in ("value", "low", "high")}
            for key in ("recall", "precision", "f1", "iou")
        }
        for k, name in enumerate(names)
    }


def _rows(scores: Sequence[Score]) -> dict[str, dict[str, str]]:
    """Texts of scores by title and model; a difference stands as a model of its own."""
    rows: dict[str, dict[str, str]] = {}
    for score in scores:
        title = METRICS[score.metric].title if score.metric in METRICS else score.metric.replace("_", " ")
        who = score.model if score.against is None else f"{score.model} less {score.against}"
        rows.setdefault(title, {})[who] = score.text
    return rows


def _scored(
    result: Mapping[str, Any], metrics: Sequence[str], task: str, dataset: str, split: str, n: int, model: str
) -> list[Score]:
    return [
        Score(task, dataset, split, m, result[m]["value"], result[m]["low"], result[m]["high"], n, model)
        for m in metrics
    ]


def report_zero_shot(
    found: ZeroShot,
    encoder: Encoder,
    table: ImageTable,
    protocol: Protocol,
    understood: str,
    folder: Path,
    dataset: str,
    command: str,
) -> Report:
    """Writes what a zero-shot classification found."""
    from evaluation.vision.figures import confusion_figure

    names, texts = list(found.texts.names), found.texts
    split = f"zero-shot, protocol {protocol.name}"
    scores = _scored(found.result, _SHARED, "zero-shot", dataset, split, len(found.truth), _model(encoder))
    picture = confusion_figure(
        found.confusion, names, folder / "confusion.png", title=f"{dataset}: zero-shot, protocol {protocol.name}"
    )
    details = {
        "protocol": {
            "name": protocol.name,
            "source": protocol.source,
            "pooling": protocol.pooling,
            "benchmark": texts.dataset,
            "templates": list(texts.templates),
            "class_strings": dict(zip(names, texts.strings, strict=True)),
            "notes": list(texts.notes),
        },
        "labels": understood,
        "unlabelled": found.unlabelled,
        "compared_by": found.by,
        "other_land_beside": list(found.beside),
        "intervals": f"95 %, {found.blocks}",
        "per_class": _classes(found.result, names),
        "confusion": {"classes": names, "counts": found.confusion.tolist()},
    }
    lines = [
        f"Labels: {understood}",
        f"Protocol {protocol.name}: {len(texts.templates)} templates, such as '{texts.prompts()[0][0]}'"
        + (f"; classes of {texts.dataset}" if texts.dataset else ""),
        *(f"Note: {note}" for note in texts.notes),
        f"Intervals: {found.blocks}",
        *_warned(table, encoder),
    ]
    if found.beside:
        lines.append("Other land stood beside the classes: pixels that are likelier of none have no vote")
    if found.unlabelled:
        lines.append(f"{found.unlabelled} of {len(table)} images have no label of a listed class and are not scored")
    results = write_results(folder, scores, about=_about(command, encoder, table), details=details)
    per_class = _figures(found.result, names, found.confusion, ("recall", "precision", "f1"))
    return Report(scores, {"results": results, "confusion": picture}, details, lines, _rows(scores), per_class)


def report_retrieval(
    found: Retrieval,
    encoder: Encoder,
    table: ImageTable,
    protocol: Protocol,
    understood: str,
    folder: Path,
    dataset: str,
    command: str,
) -> Report:
    """Writes what a retrieval found."""
    from evaluation.vision.figures import recall_figure

    split = f"retrieval, protocol {protocol.name}"
    scores = [
        Score(
            "retrieval",
            dataset,
            split,
            key,
            value["value"] if value["value"] is not None else math.nan,
            value["low"],
            value["high"],
            found.images if key.startswith("image") else found.texts,
            _model(encoder),
        )
        for key, value in found.scores.items()
    ]
    picture = recall_figure(
        {"image to text": found.image_ranks, "text to image": found.text_ranks},
        {"image to text": found.texts, "text to image": found.images},
        folder / "recall.png",
    )
    details = {
        "protocol": protocol_told(protocol),
        "captions": understood,
        "images": found.images,
        "texts": found.texts,
        "repeated_captions": found.repeated,
        "images_without_captions": found.without,
        "median_rank": {
            "image_to_text": int(sorted(found.image_ranks)[len(found.image_ranks) // 2]) + 1,
            "text_to_image": int(sorted(found.text_ranks)[len(found.text_ranks) // 2]) + 1,
        },
        "ranks": {"image_to_text": found.image_ranks.tolist()},
        "intervals": "95 %, images drawn with their texts",
    }
    alike = "one text" if protocol.unique_texts else "texts of their own"
    lines = [
        f"Captions: {understood}",
        f"{found.images} images, {found.texts} texts; {found.repeated} captions repeat another, which under protocol "
        f"{protocol.name} are {alike}",
        *(f"Note: {note}" for note in protocol.caption_notes),
        *_warned(table, encoder),
    ]
    results = write_results(folder, scores, about=_about(command, encoder, table), details=details)
    return Report(scores, {"results": results, "recall": picture}, details, lines, _rows(scores), [])


def report_segmentation(
    found: Segmentation, encoder: Encoder, table: ImageTable, folder: Path, dataset: str, command: str
) -> Report:
    """Writes what a segmentation found."""
    from evaluation.vision.figures import confusion_figure, tiles_figure

    metrics = ("accuracy", "mean_iou", "macro_f1", "balanced_accuracy")
    names, who = found.classes.names, _model(encoder)
    split = "given tiles"
    scores = _scored(found.result, metrics, "segmentation", dataset, split, found.tiles, who)
    for k, name in enumerate(names):
        value = {end: found.result["iou"][end][k] for end in ("value", "low", "high")}
        key = f"iou_{name}"
        scores.append(Score("segmentation", dataset, split, key, *value.values(), n=found.tiles, model=who))
    if found.baseline is not None:
        scores += _scored(found.baseline, metrics, "segmentation", dataset, split, found.tiles, BASELINE)
        for k, name in enumerate(names):
            own = [found.baseline["iou"][end][k] for end in ("value", "low", "high")]
            scores.append(Score("segmentation", dataset, split, f"iou_{name}", *own, n=found.tiles, model=BASELINE))
        scores += [
            Score("segmentation", dataset, split, m, *value, n=found.tiles, model=who, against=BASELINE)
            for m, value in found.differences.items()
        ]
    files = {
        "confusion": confusion_figure(
            found.confusion, names, folder / "confusion.png", title=f"{dataset}: pixels", unit="pixels"
        ),
        "tiles": tiles_figure(found.examples, names, folder / "tiles.png", title=f"{dataset}: {found.method}"),
    }
    details = {
        "method": found.method,
        "prompts": dict(zip(names, found.prompts, strict=True)),
        "classes": found.classes.understood,
        "tiles": found.tiles,
        "pixels": found.pixels,
        "share_ignored": round(found.share_ignored, 6),
        "share_unmeasured": round(found.share_unmeasured, 6),
        "intervals": f"95 %, {found.blocks}",
        "per_class": _classes(found.result, names),
        "confusion": {"classes": names, "counts": found.confusion.tolist()},
        "by_tile": found.by_tile,
    }
    if found.baseline is not None and found.baseline_confusion is not None:
        details["baseline"] = {
            "name": BASELINE,
            "per_class": _classes(found.baseline, names),
            "confusion": {"classes": names, "counts": found.baseline_confusion.tolist()},
        }
    lines = [
        f"Classes: {found.classes.understood}",
        f"{found.tiles} tiles, {found.pixels:,} pixels scored by {found.method}; {found.share_ignored:.1%} of the "
        f"masks is of no listed class and {found.share_unmeasured:.1%} has no data in the image",
        f"Intervals: {found.blocks}",
        *_warned(table, encoder),
    ]
    files = {"results": write_results(folder, scores, about=_about(command, encoder, table), details=details), **files}
    per_class = _figures(found.result, names, found.confusion, ("iou", "recall", "precision", "f1"))
    if found.baseline is not None:
        for (_, figures), value in zip(per_class, found.baseline["iou"]["value"], strict=True):
            figures["iou of the baseline"] = _text(value)
    shown = _rows([score for score in scores if not score.metric.startswith("iou_")])
    return Report(scores, files, details, lines, shown, per_class)


def report_probe(
    found: Probe, encoder: Encoder, table: ImageTable | None, understood: str, folder: Path, dataset: str, command: str
) -> Report:
    """Writes what the probes found."""
    from evaluation.vision.figures import confusion_figure, scores_figure

    names, who, scores = found.units.names, _model(encoder), []
    called = {}
    for (classifier, kind), result in found.result.items():
        model = f"{who}, {classifier}" if kind == EMBEDDINGS else f"{kind}, {classifier}"
        called[classifier, kind] = model
        # The linear probe is the score that the card shows.
        shown = who if (classifier, kind) == ("linear", EMBEDDINGS) else model
        scores += _scored(result, _SHARED, "probe", dataset, found.split, len(found.test), shown)
        called[classifier, kind] = shown
    for title, metrics in found.differences.items():
        ours, rest = title.split(" against ")
        against, kind = rest.split(" on ")
        scores += [
            Score(
                "probe",
                dataset,
                found.split,
                metric,
                *value,
                n=len(found.test),
                model=called[ours, EMBEDDINGS],
                against=called[against, kind],
            )
            for metric, value in metrics.items()
        ]
    best = ("linear", EMBEDDINGS)
    bars = [
        (called[key], r["accuracy"]["value"], r["accuracy"]["low"], r["accuracy"]["high"])
        for key, r in found.result.items()
    ]
    files = {
        "confusion": confusion_figure(
            found.confusion[best], names, folder / "confusion.png", title=f"{dataset}: linear probe", unit="units"
        ),
        "scores": scores_figure(bars, folder / "scores.png", title=f"{dataset}: accuracy"),
    }
    details = {
        "units": found.units.told,
        "labels": understood,
        "classes": class_sizes(found.units),
        "features": {kind: int(x.shape[1]) for kind, x in found.units.features.items()},
        "split": found.split,
        "inverse_penalties": found.strength,
        "warnings": found.warnings,
        "per_class": {called[key]: _classes(result, names) for key, result in found.result.items()},
        "confusion": {
            "classes": names,
            **{called[key]: counts.tolist() for key, counts in found.confusion.items()},
        },
    }
    lines = [
        f"Labels: {understood}",
        f"{found.units.told}; {len(found.test)} scored, held out as {found.split}",
        *(f"Note: {warning}" for warning in found.warnings),
        *_warned(table, encoder),
    ]
    files = {"results": write_results(folder, scores, about=_about(command, encoder, table), details=details), **files}
    per_class = _figures(found.result[best], names, found.confusion[best], ("recall", "precision", "f1"))
    return Report(scores, files, details, lines, _rows(scores), per_class)
