"""The places that are scored, and what the model says of them: out of fold, or at places it has never seen.

Three choices define this file. A place keeps its counts, so that a model of counts is scored on units and every other
model on places. Predictions of a fit's own places are those of the members that left them out, and nothing else: a
model that saw a place is not asked about it unless that is said. And the prediction that is scored is the one that a
map would show, calibrated and averaged over the members.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.study_scores import read_predictions
from processing.errors import AgriClipError

__all__ = [
    "HELD_OUT",
    "IN_SAMPLE",
    "OTHER_PLACES",
    "UNSEEN",
    "UNSEEN_FOLD",
    "PlaceInputs",
    "Places",
    "Predictions",
    "Sitting",
    "calibrated_by_other_folds",
    "held_out_sittings",
    "places_of",
    "predict_places",
    "read_held_out",
    "read_place_inputs",
    "sit",
]

#: How places were held out, as it stands in the results.
OTHER_PLACES = "other places"
UNSEEN_FOLD = "fold that no member saw"
IN_SAMPLE = "in sample"
#: What a fit leaves of places that it held out, and of a fold that no member saw.
HELD_OUT, UNSEEN = "heldout_predictions.csv", "unseen_predictions.csv"
_SET = {"unsuitable": (True, False), "suitable": (False, True), "undecided": (True, True), "strange": (False, False)}


@dataclass(frozen=True)
class Places:
    """Labelled places; every field has one entry a place.

    Attributes:
        ids: Names.
        x: Eastings or longitudes in the grid's CRS.
        y: Northings or latitudes in the grid's CRS.
        longitude: Degrees.
        latitude: Degrees.
        positive: Positive units.
        total: Units looked at.
        share: positive / total.
        presence: 0 or 1.
        block: Square of land that holds the place, numbered as text; intervals resample these.
        region: Region that the place is reported in.
    """

    ids: np.ndarray
    x: np.ndarray
    y: np.ndarray
    longitude: np.ndarray
    latitude: np.ndarray
    positive: np.ndarray
    total: np.ndarray
    share: np.ndarray
    presence: np.ndarray
    block: np.ndarray
    region: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, rows: np.ndarray) -> Places:
        """Some of the places, by index or mask."""
        return Places(**{part.name: getattr(self, part.name)[rows] for part in fields(self)})


@dataclass(frozen=True)
class Predictions:
    """What one model says of N places.

    Attributes:
        probability: (N,) calibrated probability of presence, or of one counted unit.
        ranking: (N,) what orders the places for AP and AUC.
        share: (N,) predicted share, or None.
        without_image: (N,) probability from the report alone, or None.
        spread: (N,) standard deviation over members, or None for single ones.
        sets: Level -> (N, 2) bool, conformal sets of `unsuitable` and `suitable`.
    """

    probability: np.ndarray
    ranking: np.ndarray
    share: np.ndarray | None = None
    without_image: np.ndarray | None = None
    spread: np.ndarray | None = None
    sets: dict[float, np.ndarray] = field(default_factory=dict)

    def only(self, rows: np.ndarray) -> Predictions:
        """The predictions of some of the places."""
        given = {name: getattr(self, name) for name in ("probability", "ranking", "share", "without_image", "spread")}
        kept = {name: None if value is None else value[rows] for name, value in given.items()}
        return Predictions(**kept, sets={level: members[rows] for level, members in self.sets.items()})


def places_of(data: Any, regions: str | None = None) -> Places:
    """The labelled places of a study.

    Args:
        data: ``processing.study_data.StudyData``.
        regions: `id:2` for the first two characters of the names (a county's state in the United States), or a number
            of degrees for bands of latitude; bands of 5 degrees by default.

    Raises:
        AgriClipError: The regions are neither.
    """
    from processing.grids import transform_points

    table, splits = data.labels(), data.study.splits
    longitude, latitude = transform_points(table.x, table.y, data.grid.crs, "EPSG:4326")
    if splits is not None and splits.size is not None:
        cells = np.floor(np.stack([table.x, table.y]) / splits.size).astype(int)
        # Named by where it lies and not by a running number, so that two tables agree on what a block is.
        block = np.array([f"{column}_{row}" for column, row in cells.T])
    else:
        block = np.array([str(i) for i in range(len(table))])
    return Places(
        ids=np.asarray(table.ids),
        x=table.x,
        y=table.y,
        longitude=np.asarray(longitude),
        latitude=np.asarray(latitude),
        positive=table.positive,
        total=table.total,
        share=table.share,
        presence=table.presence.astype(np.float64),
        block=block,
        region=_regions(np.asarray(table.ids), np.asarray(latitude), regions),
    )


def _regions(ids: np.ndarray, latitude: np.ndarray, regions: str | None) -> np.ndarray:
    if match := re.fullmatch(r"id:(\d+)", regions or ""):
        return np.array([name[: int(match[1])] for name in ids.astype(str)])
    try:
        width = 5.0 if regions is None else float(regions)
    except ValueError:
        width = 0.0
    if not 0 < width <= 180:
        raise AgriClipError(
            f"Regions are given as 'id:2' (the first characters of the names) or as degrees of latitude, not "
            f"'{regions}'."
        )
    low = np.floor(latitude / width) * width
    return np.array([f"latitude {edge:+06.1f} to {edge + width:+06.1f}" for edge in low])


# -- inputs and members ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlaceInputs:
    """Everything that a model is shown of N places.

    Attributes:
        tokens: The tokenised report.
        table: (N, M) predictors in canonical units.
        values: (N, n_slots) numbers of the reports.
        images: `pixel_values`, `pixel_mask` (N, ...), `channels` and `gsd`; None without imagery.
    """

    tokens: Any
    table: np.ndarray
    values: np.ndarray
    images: dict[str, torch.Tensor] | None

    def images_at(self, rows: np.ndarray) -> dict[str, torch.Tensor] | None:
        """The images of some places."""
        if self.images is None:
            return None
        chosen = torch.from_numpy(np.asarray(rows))
        return {key: value[chosen] if key.startswith("pixel") else value for key, value in self.images.items()}


@dataclass(frozen=True)
class Sitting:
    """Places that are asked of the same members.

    Attributes:
        predictor: A `mapping.predictor.SuitabilityPredictor` of these members.
        rows: Indices of the places.
    """

    predictor: Any
    rows: np.ndarray


def read_place_inputs(data: Any, predictor: Any, x: np.ndarray, y: np.ndarray) -> PlaceInputs:
    """Reads reports and images at places, as the fit read them.

    Args:
        data: ``processing.study_data.StudyData``.
        predictor: The model.
        x: (N,) eastings or longitudes in the grid's CRS.
        y: (N,) northings or latitudes.
    """
    table = data.predictors(x, y)
    images = None
    if data.channels:
        chips, valid = data.chips(x, y)
        pixels, mask = predictor.processor.image_processor.normalize_values(chips, data.channels, valid)
        images = {
            "pixel_values": torch.as_tensor(pixels, dtype=torch.float32).to(predictor.device),
            "pixel_mask": torch.as_tensor(mask).bool().to(predictor.device),
            "channels": torch.tensor([channel.code() for channel in data.channels], device=predictor.device),
            "gsd": torch.tensor([data.gsd], device=predictor.device),
        }
    return PlaceInputs(data.template.tokenise(predictor.processor), table, data.template.values(table), images)


def sit(predictor: Any, members: list[Any], rows: np.ndarray) -> Sitting:
    """Some members of a model as a model of their own.

    Args:
        predictor: The model.
        members: Some of its members.
        rows: The places they are asked about.
    """
    asked = copy.copy(predictor)
    asked.members = members
    return Sitting(asked, rows)


def held_out_sittings(predictor: Any, folds: np.ndarray) -> list[Sitting]:
    """Each place asked of the members that left out its fold, uncalibrated: their calibration saw its label.

    Args:
        predictor: The model with its members.
        folds: (N,) fold of each place, from 0.

    Returns:
        One sitting a fold; empty where the folder does not tell which member left out which fold.
    """
    by_fold: dict[int, list[Any]] = {}
    for member in predictor.members:
        match = re.fullmatch(r"fold_(\d+)(_\d+)?", member.path.name)
        if match is None and len(np.unique(folds)) == 1:  # a single model, fitted outside its one fold
            by_fold.setdefault(int(folds[0]), []).append(replace(member, calibration=None))
        elif match is not None:
            by_fold.setdefault(int(match[1]) - 1, []).append(replace(member, calibration=None))
    if not set(np.unique(folds).tolist()) <= set(by_fold):
        return []
    return [sit(predictor, by_fold[fold], np.flatnonzero(folds == fold)) for fold in np.unique(folds).tolist()]


def calibrated_by_other_folds(
    raw: np.ndarray, folds: np.ndarray, presence: np.ndarray, method: str, variants: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Calibrates predictions of each fold by a fit to the unchanged predictions of the other folds.

    Args:
        raw: (N,) uncalibrated predictions, out of fold.
        folds: (N,) fold of each place.
        presence: (N,) 0 or 1.
        method: Method of the study.
        variants: Name -> (N,) predictions to calibrate, from the same members.

    Returns:
        The same names, calibrated.
    """
    from training.calibration import fit_calibration

    if method == "none":
        return dict(variants)
    done = {name: np.empty_like(values) for name, values in variants.items()}
    for fold in np.unique(folds):
        own = folds == fold
        if own.all() or np.ptp(presence[~own]) == 0:
            return dict(variants)
        fitted = fit_calibration(raw[~own], presence[~own], None, method, alphas=(), blocks=folds[~own])
        for name, values in variants.items():
            done[name][own] = fitted.apply(torch.from_numpy(values[own].astype(np.float64))).numpy()
    return done


def predict_places(predictor: Any, inputs: PlaceInputs) -> Predictions:
    """What all members together say of places: what a map would show there.

    Args:
        predictor: The model.
        inputs: The places.
    """
    from evaluation.uncertainty_metrics import calibration_sets

    seen = None if inputs.images is None else predictor.look(inputs.images)
    answer = predictor.predict(inputs.tokens, inputs.values, seen)
    probability = np.clip(answer.probability.astype(np.float64), 0.0, 1.0)
    sets = {}
    if predictor.calibration is not None and predictor.calibration.levels:
        # The thresholds are those of single members, so the sets are of the median member.
        sets = calibration_sets(predictor.calibration, np.clip(answer.median.astype(np.float64), 0.0, 1.0))
    return Predictions(
        probability=probability,
        ranking=probability,
        share=None if answer.share is None else answer.share.astype(np.float64),
        without_image=np.clip(answer.without_image.astype(np.float64), 0.0, 1.0)
        if inputs.images is not None
        else None,
        spread=answer.std.astype(np.float64) if len(predictor.members) > 1 else None,
        sets=sets,
    )


# -- what a fit left ------------------------------------------------------------------------------------------------


def read_held_out(
    study: Any, model_dir: str | Path, places: Places, *, unseen: bool = False
) -> tuple[np.ndarray, Predictions, np.ndarray]:
    """Predictions that a fit made of its own places without having seen them.

    Probabilities are calibrated by other blocks where the fit left such a column; the order of places is that of the
    members' own probabilities, because several calibrations side by side would shuffle it.

    Args:
        study: The study that was fitted.
        model_dir: Folder of the model.
        places: The study's places.
        unseen: Those of the fold that no member saw, by the whole ensemble, in place of the held-out ones.

    Returns:
        (n,) indices of the predicted places, the predictions, and (n,) the fold of each.

    Raises:
        AgriClipError: The folder holds no such predictions, or they are of another study.
    """
    path = Path(model_dir) / (UNSEEN if unseen else HELD_OUT)
    if not path.is_file():
        if unseen:
            raise AgriClipError(
                f"'{model_dir}' holds no predictions of an unseen fold; fit with --leave-out, or leave --holdout away."
            )
        raise AgriClipError(
            f"'{model_dir}' holds no out-of-fold predictions, and the study's places were fitted; give other places "
            "with --labels, or --in-sample to score it on places that it was fitted on."
        )
    found = read_predictions(path)
    place = {name: index for index, name in enumerate(places.ids)}
    unknown = [name for name in found["id"] if name not in place]
    if unknown:
        raise AgriClipError(
            f"The predictions {path} name {unknown[0]}, which is not in the study's labels; fit again."
        )
    rows = np.array([place[name] for name in found["id"]])
    if not np.allclose(found["observed"], places.share[rows], atol=1e-5):
        raise AgriClipError(f"The labels in {path} are not those of the study; fit again after a change of the table.")
    raw = found["probability"]
    if unseen:
        return rows, Predictions(raw, raw, spread=_column(path, "std"), sets=_named_sets(path)), found["fold"]
    calibrated = _column(path, "calibrated")
    probability = raw if calibrated is None else calibrated
    share = found["share"] if np.isfinite(found["share"]).all() else None
    sets = {}
    if study.labels.kind != "presence_only" and not study.predicts_counts and calibrated is not None:
        sets = _cross_fitted_sets(study, raw, places.only(rows))
    return rows, Predictions(probability, raw, share, sets=sets), found["fold"]


def _cross_fitted_sets(study: Any, raw: np.ndarray, places: Places) -> dict[float, np.ndarray]:
    """Conformal sets of each block by thresholds from other blocks, as the fit scored them."""
    from training.calibration import ALPHAS, cross_fit

    _, blocks = np.unique(places.block, return_inverse=True)
    if len(np.unique(blocks)) < 5 or np.ptp(places.presence) == 0:
        return {}
    found = cross_fit(raw, places.presence, blocks, method=study.training.calibration, alphas=ALPHAS)
    return {round(1.0 - alpha, 9): members for alpha, members in found.sets.items()}


def _column(path: Path, name: str) -> np.ndarray | None:
    """A column of numbers, or None where it is missing or has gaps."""
    import csv

    with path.open(newline="", encoding="utf-8") as stream:
        texts = [row.get(name) for row in csv.DictReader(stream)]
    try:
        values = np.array([float(text) for text in texts if text])
    except ValueError:
        return None
    return values if len(values) == len(texts) and np.isfinite(values).all() else None


def _named_sets(path: Path) -> dict[float, np.ndarray]:
    """Conformal sets as the fit wrote them, in words."""
    import csv

    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in (rows[0] if rows else {}) if re.fullmatch(r"set_\d+%", name)]
    return {int(name[4:-1]) / 100: np.array([_SET[row[name]] for row in rows]) for name in names}
