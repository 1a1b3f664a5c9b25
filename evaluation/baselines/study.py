"""Baselines of a study: what they may look at is read from the study itself, on its own folds or any hold-out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.baselines.inputs import BaselineInputs, BaselineResult, Predictions, reason_to_skip
from evaluation.baselines.registry import STANDARD
from evaluation.baselines.rules import flat_coordinates, rule_scores
from evaluation.baselines.runner import fit_predict, out_of_fold
from processing.errors import AgriClipError

__all__ = ["StudyBaselines", "monthly_climate", "representativeness", "run_study_baselines", "study_inputs"]


@dataclass(frozen=True)
class StudyBaselines:
    """Results of a comparison.

    Attributes:
        results: One per baseline that was run; of all places, or of the test places of a hold-out.
        skipped: Baseline -> why it was not run.
        seconds: Baseline -> seconds it took.
    """

    results: tuple[BaselineResult, ...]
    skipped: dict[str, str]
    seconds: dict[str, float]


def study_inputs(
    data: Any,
    *,
    embeddings: np.ndarray | None = None,
    brought: Mapping[str, Predictions] | None = None,
) -> BaselineInputs:
    """All that baselines may look at, for the labelled places of a study.

    Args:
        data: ``processing.study_data.StudyData``.
        embeddings: (N, D) frozen embeddings of ``data.labels()``, computed by the caller.
        brought: Name -> predictions for ``data.labels()``, such as those of the network without its images.

    Returns:
        Features, predictors, coordinates, scores of rules, errors of predictors and months; with reasons for what the
        study does not have.
    """
    from evaluation.study_scores import feature_table

    labels = data.labels()
    features, names = feature_table(data, labels.x, labels.y)
    predictors, imagery = np.split(features, [len(data.study.variables)], axis=1)
    errors = np.zeros_like(features)
    errors[:, : predictors.shape[1]] = representativeness(data, labels.x, labels.y)
    rules, reasons = rule_scores(data, labels.x, labels.y)
    months = monthly_climate(data, labels.x, labels.y)
    if months is None:
        reasons["predictors+imagery+monthly"] = f"the study '{data.study.name}' names no monthly climate"
    if not imagery.shape[1]:
        reasons["imagery"] = f"the study '{data.study.name}' has no imagery"
    return BaselineInputs(
        features=features,
        predictors=predictors if predictors.shape[1] else None,
        imagery=imagery if imagery.shape[1] else None,
        xy=flat_coordinates(labels.x, labels.y, data.grid.is_geographic),
        rules=rules,
        errors=errors,
        monthly=months,
        embeddings=embeddings,
        brought=brought or {},
        reasons=reasons,
    )


def monthly_climate(data: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """(N, 12 per layer) values of the study's monthly rasters at places, as stored; None if it names none."""
    from processing.rasters import sample_points

    part = data.study.agronomy
    if part is None:
        return None
    columns = []
    for layer in part.monthly().values():
        bands = list(layer.bands) if layer.bands is not None else list(range(1, 13))
        columns.append(sample_points(data.study.path(layer.file), bands, x, y, data.grid.crs)[0])
    return np.concatenate(columns, axis=1).astype(np.float64)


def representativeness(data: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far a predictor at a place may be off because the place stands for an area of the size of a cell.

    Across a plane with slope g per cell, values at a random point of the cell deviate from the centre's by
    g / sqrt(12) in each direction, and the values of the 3 x 3 cells around it by g sqrt(2 / 3): the ratio is
    sqrt(1 / 8).

    Args:
        data: ``processing.study_data.StudyData``.
        x: (N,) eastings or longitudes in the grid's CRS.
        y: (N,) northings or latitudes.

    Returns:
        (N, M) standard deviations in canonical units; 0 where the neighbours are not known.
    """
    if not data.study.variables:
        return np.zeros((len(x), 0))
    step_x, step_y = abs(data.grid.transform.a), abs(data.grid.transform.e)
    moves = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    cells = np.stack([data.predictors(x + i * step_x, y + j * step_y) for i, j in moves])
    known = np.isfinite(cells)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, cells, 0.0).sum(axis=0) / count
    variance = (np.where(known, cells - mean, 0.0) ** 2).sum(axis=0) / count
    return np.sqrt(variance / 8.0)


def run_study_baselines(
    data: Any,
    names: Iterable[str] | None = None,
    *,
    inputs: BaselineInputs | None = None,
    holdout: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> StudyBaselines:
    """Runs baselines on the labels of a study: on its folds, or fitted on some places and scored on others.

    Args:
        data: ``processing.study_data.StudyData``.
        names: Baselines; :data:`STANDARD` and whatever was brought if None.
        inputs: Result of :func:`study_inputs`, if it was made before.
        holdout: (N,) bool masks of training and of test places, instead of the study's folds.
        seed: Seed of the estimators.
        progress: Called with the name before each baseline.

    Returns:
        Results, and what was skipped for which reason.

    Raises:
        AgriClipError: For labels without absences.
    """
    study, labels = data.study, data.labels()
    if study.labels.kind == "presence_only" or np.unique(labels.presence).size < 2:
        raise AgriClipError(
            f"Baselines of '{study.name}' cannot be scored: its labels have presences or absences only."
        )
    inputs = study_inputs(data) if inputs is None else inputs
    counts = study.predicts_counts
    share = labels.share if study.labels.kind == "share" else None
    chosen = list(dict.fromkeys([*STANDARD, *inputs.brought] if names is None else names))
    folds = data.folds() if study.splits is not None else None
    if folds is None and holdout is None:
        folds = data.folds()  # says what is missing
    given = {
        "presence": labels.presence,
        "share": share,
        "weight": labels.weight * (labels.total if counts else 1.0),
        "seed": seed,
        "calibrate": not counts,
    }
    results, skipped, seconds = [], {}, {}
    for name in chosen:
        reason = reason_to_skip(name, inputs, share is not None)
        if reason is not None:
            skipped[name] = reason
            continue
        if progress is not None:
            progress(name)
        start = time.perf_counter()
        if holdout is None:
            results.append(out_of_fold(name, inputs, folds, **given))
        else:
            results.append(fit_predict(name, inputs, *holdout, **given, groups=folds))
        seconds[name] = time.perf_counter() - start
    return StudyBaselines(tuple(results), skipped, seconds)
