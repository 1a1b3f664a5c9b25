"""Out-of-fold predictions of a study, scored beside baselines that saw the same data on the same folds.

Three choices define this file. The baselines get everything the network gets, as a plain table: each predictor, and of
each imagery channel the cell itself and the means of its surroundings. Folds are read from the file of predictions, so
they cannot differ. Objective and kind of label choose the baselines: counts are fitted as counts, shares as shares,
presence as presence.
"""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.baselines import compare, run_baselines
from evaluation.metrics import reliability_curve
from mapping.report import SkillPicture
from processing.errors import AgriClipError

__all__ = ["compare_on_study", "feature_table", "read_predictions", "skill_pictures"]

OURS = "AgriCLIP"
_LAND_COVER = "cover_fraction"
_WIDE = 9  # pixels: a county and its neighbours, where pixels are 10 arc minutes


def read_predictions(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a CSV of out-of-fold predictions.

    Args:
        path: CSV with the columns id, x, y, fold, observed, weight, presence, probability, share.

    Returns:
        Column -> (N,) array; ``id`` as text, ``fold`` as integers, all else float64 with NaN where empty.

    Raises:
        AgriClipError: If a column is missing or the file is empty.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    wanted = ("id", "x", "y", "fold", "observed", "weight", "presence", "probability")
    missing = [column for column in wanted if not rows or column not in rows[0]]
    if missing:
        raise AgriClipError(f"The predictions {path} lack {', '.join(missing)}; run `agriclip fit` again.")
    columns: dict[str, np.ndarray] = {"id": np.array([row["id"] for row in rows])}
    for name in (*wanted[1:], "share"):
        values = [(row.get(name) or "nan").strip().lower() for row in rows]
        numbers = [{"true": 1.0, "false": 0.0}.get(value) for value in values]
        columns[name] = np.array([float(v) if n is None else n for v, n in zip(values, numbers, strict=True)])
    columns["fold"] = columns["fold"].astype(int)
    return columns


def feature_table(data: Any, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Predictors and imagery statistics of places, for models that take a table.

    Args:
        data: ``processing.study_data.StudyData``.
        x: (N,) eastings or longitudes in the grid's CRS.
        y: (N,) northings or latitudes in the grid's CRS.

    Returns:
        (N, F) float64 with NaN where missing, and F names. Of each imagery channel: the pixel that holds the place,
        the mean of the 3 x 3 pixels around it, the mean and the standard deviation of the whole window; of land cover
        (channels of kind ``cover_fraction``) the mean of 9 x 9 pixels as well, whatever the window's size.
    """
    columns = [np.asarray(data.predictors(x, y), dtype=np.float64)]
    names = [variable.name for variable in data.study.variables]
    if data.study.imagery:
        pixels, valid = data.chips(x, y)
        chips = np.where(valid, pixels, np.nan).astype(np.float64)
        middle = chips.shape[-1] // 2
        near = slice(max(0, middle - 1), middle + 2)
        columns += [
            chips[:, :, middle, middle],
            _mean(chips[:, :, near, near]),
            _mean(chips),
            np.sqrt(np.maximum(_mean(chips**2) - _mean(chips) ** 2, 0.0)),
        ]
        for what in ("pixel", "mean of 3 x 3", "mean of window", "sd of window"):
            names += [f"{channel.name}, {what}" for channel in data.channels]
        cover = [index for index, channel in enumerate(data.channels) if getattr(channel, "kind", "") == _LAND_COVER]
        if cover and chips.shape[-1] != _WIDE:
            chip = data.study.chip.model_copy(update={"size": _WIDE})
            wide = copy.copy(data)
            wide.study = data.study.model_copy(update={"chip": chip})
            pixels, valid = wide.chips(x, y)
            columns.append(_mean(np.where(valid, pixels, np.nan).astype(np.float64)[:, cover]))
            names += [f"{data.channels[index].name}, mean of {_WIDE} x {_WIDE}" for index in cover]
    return np.concatenate(columns, axis=1), names


def compare_on_study(
    study: Any, predictions: str | Path, *, baselines: bool = True, seed: int = 0
) -> list[dict[str, Any]]:
    """Scores of the model and of baselines on places that were not fitted.

    A model of counts (labels of kind ``share``, objective ``binary``) predicts the chance of one unit, so it is scored
    on units: a place with 3 of 20 counts as 3 presences and 17 absences. Every other model predicts whether the crop
    is present in a place, and is scored on places.

    Args:
        study: The study.
        predictions: CSV of out-of-fold predictions of the model.
        baselines: Whether to fit and score baselines as well.
        seed: Seed of the baselines.

    Returns:
        Rows ``{model, ap, auc, brier, log_loss, ece}``, ours first. Empty where the labels hold no absences.
    """
    from processing.study_data import StudyData

    ours = read_predictions(predictions)
    if study.labels.kind == "presence_only" or np.unique(ours["presence"]).size < 2:
        return []
    data = StudyData(study)
    labels = data.labels()
    place = {name: index for index, name in enumerate(labels.ids)}
    unknown = [name for name in ours["id"] if name not in place]
    if unknown:
        raise AgriClipError(f"The predictions {predictions} name {unknown[0]}, which is not in the labels; fit again.")
    rows = np.array([place[name] for name in ours["id"]])
    positive, total = labels.positive[rows], labels.total[rows]
    counts = study.predicts_counts
    results = []
    if baselines:
        folds = data.folds()
        if not np.array_equal(folds[rows], ours["fold"]):
            raise AgriClipError(
                f"The folds in {predictions} are not those of the study; fit again after a change of it."
            )
        features, _ = feature_table(data, labels.x, labels.y)
        everywhere = run_baselines(
            features,
            folds,
            presence=labels.presence,
            share=labels.share if study.labels.kind == "share" else None,
            # A share of many units is known better than one of few: the likelihood of counts weighs it so.
            weight=labels.weight * (labels.total if counts else 1.0),
            objective=study.training.objective,
            seed=seed,
            calibrate=not counts,
            only=set(ours["fold"].tolist()),
        )
        results = [result.at(rows) for result in everywhere]
    if not counts:
        return compare(ours["presence"], {OURS: {"probability": ours["probability"]}}, results)
    units = np.repeat([1.0, 0.0], len(rows))
    models = {OURS: {"probability": np.tile(ours["probability"], 2)}}
    for result in results:
        chance = result.probability if result.share is None else np.clip(result.share, 0.001, 0.999)
        models[result.name] = {"probability": np.tile(chance, 2)}
    return compare(units, models, weight=np.concatenate([positive, total - positive]))


def skill_pictures(study: Any, predictions: str | Path | None, folder: str | Path) -> list[SkillPicture]:
    """Draws the reliability of out-of-fold predictions, and how the fits went.

    Args:
        study: The study.
        predictions: CSV of predictions, or None or a missing file for no picture.
        folder: Where the PNG goes.

    Returns:
        Pictures for the report, possibly none.
    """
    from mapping.skill_figures import reliability_figure

    if predictions is None or not Path(predictions).is_file():
        return []
    ours = read_predictions(predictions)
    observed = ours["observed"] if study.predicts_counts else ours["presence"]
    curve = reliability_curve(observed, ours["probability"], bins=10)
    png = reliability_figure(curve, ours["probability"], Path(folder) / "reliability.png")
    caption = (
        "Places that were not fitted, sorted by probability into ten equal groups. On the dashed line the crop is "
        "found seven times in ten where the map says 0.7."
    )
    pictures = [SkillPicture("reliability", png, caption)]
    losses = draw_losses(Path(predictions).parent, folder)
    if losses is not None:
        caption = "How the fits went: the loss of each, and the weighted terms that it is the sum of."
        pictures.append(SkillPicture("losses", losses, caption))
    return pictures


def draw_losses(model_dir: Path, folder: str | Path) -> Path | None:
    """Draws the losses of all fits in a model folder.

    Args:
        model_dir: Folder of a fit.
        folder: Where the PNG goes.

    Returns:
        The PNG; None where no fit left its history.
    """
    from mapping.skill_figures import loss_figure

    files = {path.parent.name.replace("_", " "): path for path in sorted(model_dir.glob("members/*/history.json"))}
    if (model_dir / "history.json").exists():
        files["all sites" if files else "fit"] = model_dir / "history.json"
    return loss_figure(
        {name: json.loads(path.read_text()) for name, path in files.items()}, Path(folder) / "losses.png"
    )


def _mean(chips: np.ndarray) -> np.ndarray:
    """(N, C) mean of the known pixels of (N, C, h, w); NaN where none is known."""
    known = np.isfinite(chips)
    count = known.sum(axis=(2, 3))
    total = np.where(known, chips, 0.0).sum(axis=(2, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
