"""Baselines beside a fitted model: on its own folds, or fitted to what it was fitted to and asked about other places.

Two choices define this file. Everything is run by `evaluation.baselines`; here it is only given the same places. And
trees on our own embeddings never see an embedding of a network that was fitted to the place: on folds each is embedded
by the member that left its fold out, at other places by the first member, and all places of one fit by the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from evaluation.suitability.places import (
    PlaceInputs,
    Places,
    Predictions,
    held_out_sittings,
    read_place_inputs,
    sit,
)
from processing.errors import AgriClipError, nearest
from processing.study_data import LabelTable, StudyData

__all__ = ["EMBEDDINGS", "baseline_predictions", "embed_places", "standard_baselines"]

#: Baselines that look at our own embeddings.
EMBEDDINGS = ("gradient boosting on embeddings (presence)", "gradient boosting on embeddings (sqrt share)")
#: Asked for by every reviewer of a map of shares, and worth its minutes.
_WORTH_IT = "Gaussian process (log share)"
_BATCH = 256


class _Joined(StudyData):
    """A study's data with the labels of two tables, those that are fitted first."""

    def __init__(self, study: Any, table: LabelTable) -> None:
        super().__init__(study)
        self._joined = table

    def labels(self) -> LabelTable:
        """Both tables."""
        return self._joined


def standard_baselines() -> list[str]:
    """What is run where nothing else is asked for."""
    from evaluation.baselines import STANDARD

    return list(dict.fromkeys([*STANDARD, _WORTH_IT]))


def baseline_predictions(
    data: Any,
    scored: Any,
    places: Places,
    folds: np.ndarray | None,
    predictor: Any,
    *,
    names: Iterable[str] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, Predictions], dict[str, str]]:
    """Fits baselines to the labels that the model was fitted to, and predicts the places that it is scored on.

    Args:
        data: ``processing.study_data.StudyData`` of the study.
        scored: The same with the table that is scored.
        places: The places that are scored, among those of `scored`.
        folds: (N,) fold of each where they are the study's own, out of fold; None for places that nothing was fitted
            to.
        predictor: The model, for its embeddings.
        names: Baselines; :func:`standard_baselines` by default.
        seed: Seed of the estimators.
        progress: Called with the name of each.

    Returns:
        Name -> predictions at the places, and name -> why it was not run.

    Raises:
        AgriClipError: An unknown name.
    """
    from evaluation.baselines import REGISTRY, run_study_baselines, study_inputs

    tell = progress or (lambda what: None)
    chosen = standard_baselines() if names is None else list(names)
    unknown = [name for name in chosen if name not in REGISTRY]
    if unknown:
        raise AgriClipError(f"There is no baseline '{unknown[0]}'; {nearest(unknown[0], REGISTRY)}.")
    own = np.asarray(data.labels().ids)
    if folds is not None:
        joint, holdout = data, None
        rows = _rows(own, places.ids)
        if not np.array_equal(data.folds()[rows], folds):
            raise AgriClipError(
                "The folds of the fit are not those of the study; fit again after a change of `splits`."
            )
    else:
        joint, holdout, rows = _joined(data, scored, places)
    tell("inputs of the baselines")
    inputs = study_inputs(joint)
    plain = [name for name in chosen if name not in EMBEDDINGS]
    done = run_study_baselines(joint, plain, inputs=inputs, holdout=holdout, seed=seed, progress=tell)
    # A hold-out's results are of its test places alone, in their order; those of folds are of all places.
    found = {result.name: _predictions(result if holdout else result.at(rows), data) for result in done.results}
    failed = dict(done.skipped)
    for name in [name for name in chosen if name in EMBEDDINGS]:
        tell(name)
        try:
            found[name] = _on_embeddings(name, data, joint, places, folds, holdout, rows, inputs, predictor, seed)
        except AgriClipError as error:
            failed[name] = str(error)
    return {name: found[name] for name in chosen if name in found}, failed


def _joined(data: Any, scored: Any, places: Places) -> tuple[StudyData, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Data with both tables, masks of what is fitted and what is predicted, and the rows of the latter."""
    fitted, other = data.labels(), scored.labels()
    if scored is data:  # a fold that no member saw: fitted on the others
        test = np.isin(np.asarray(fitted.ids), places.ids)
        return data, (~test, test), _rows(np.asarray(fitted.ids), places.ids)
    chosen = _rows(np.asarray(other.ids), places.ids)
    columns = {name: np.concatenate([getattr(fitted, name), getattr(other, name)[chosen]]) for name in vars(fitted)}
    train = np.arange(len(columns["ids"])) < len(fitted)
    return _Joined(data.study, LabelTable(**columns)), (train, ~train), np.flatnonzero(~train)


def _rows(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of each wanted name."""
    place = {name: index for index, name in enumerate(ids.tolist())}
    return np.array([place[name] for name in wanted.tolist()])


def _predictions(result: Any, data: Any) -> Predictions:
    """A baseline's result as predictions; of counts it is the share that is scored."""
    probability, share = np.asarray(result.probability, dtype=np.float64), result.share
    if data.study.predicts_counts and share is not None:
        probability = np.clip(share, 0.001, 0.999)
        return Predictions(probability, probability, share)
    return Predictions(np.clip(probability, 0.0, 1.0), np.asarray(result.ranking, dtype=np.float64), share)


# -- trees on our own embeddings ------------------------------------------------------------------------------------


@torch.inference_mode()
def embed_places(predictor: Any, inputs: PlaceInputs) -> np.ndarray:
    """(N, D) state of each place after report and image were fused, of the first member.

    Args:
        predictor: The model.
        inputs: The places.
    """
    alone = sit(predictor, predictor.members[:1], np.arange(len(inputs.values))).predictor
    model, device = alone.members[0].model, alone.device
    numbers = inputs.tokens.numeric_values(inputs.values)
    found = []
    for start in range(0, len(numbers), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(numbers)))
        asked = {
            "input_ids": torch.from_numpy(inputs.tokens.input_ids).to(device).expand(len(rows), -1),
            "attention_mask": torch.from_numpy(inputs.tokens.attention_mask).to(device).expand(len(rows), -1),
            "numeric_values": torch.from_numpy(numbers[rows]).to(device),
        }
        images = inputs.images_at(rows)
        if images is not None:
            asked["vision_model_output"] = alone.look(images)[0]
        found.append(model(**asked).fused_state[:, 0].double().cpu().numpy())
    return np.concatenate(found)


def _on_embeddings(
    name: str,
    data: Any,
    joint: Any,
    places: Places,
    folds: np.ndarray | None,
    holdout: tuple[np.ndarray, np.ndarray] | None,
    rows: np.ndarray,
    inputs: Any,
    predictor: Any,
    seed: int,
) -> Predictions:
    """A baseline on frozen embeddings, each fit on those of one member that never saw what is predicted."""
    from evaluation.baselines import fit_predict, reason_to_skip

    study, labels = data.study, joint.labels()
    share = labels.share if study.labels.kind == "share" else None
    reason = reason_to_skip(name, replace(inputs, embeddings=np.zeros((len(labels), 1))), share is not None)
    if reason is not None:
        raise AgriClipError(f"{reason}.")
    counts = study.predicts_counts
    given = {
        "presence": labels.presence,
        "share": share,
        "weight": labels.weight * (labels.total if counts else 1.0),
        "seed": seed,
        "calibrate": not counts,
        "groups": joint.folds() if study.splits is not None else None,
    }
    seen = read_place_inputs(joint, predictor, labels.x, labels.y)
    if holdout is not None:
        table = replace(inputs, embeddings=embed_places(predictor, seen))
        return _predictions(fit_predict(name, table, *holdout, **given), data)
    assert folds is not None
    everywhere = np.full(len(labels), -1)
    everywhere[rows] = folds
    sittings = held_out_sittings(predictor, folds)
    if not sittings:
        raise AgriClipError("the folder does not tell which member left out which place.")
    parts = {key: np.full(len(labels), np.nan) for key in ("probability", "ranking", "share")}
    for sitting, fold in zip(sittings, np.unique(folds), strict=True):
        table = replace(inputs, embeddings=embed_places(sitting.predictor, seen))
        test = everywhere == fold
        one = _predictions(fit_predict(name, table, ~test, test, **given), data)
        for key, values in parts.items():
            if getattr(one, key) is not None:
                values[test] = getattr(one, key)
    shares = parts["share"][rows]
    return Predictions(
        parts["probability"][rows], parts["ranking"][rows], shares if np.isfinite(shares).all() else None
    )
