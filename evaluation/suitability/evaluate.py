"""The whole evaluation of a suitability model, from a study and a model folder to scores, tables and pictures.

Three choices define this file. What is scored is settled first (out of fold, an unseen fold, other places, or plainly
in sample), and everything after works on places and predictions alone. Baselines are fitted in the same run to the
very labels that the model was fitted to. And what could not be done (an ablation, a baseline, a climate) is told
beside what was, so that a short table is never taken for a complete one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.results import OURS, Score
from evaluation.suitability import ablations as parts
from evaluation.suitability.baseline_models import baseline_predictions
from evaluation.suitability.climate_files import find_scenarios
from evaluation.suitability.climate_models import ClimateModelResults, evaluate_climate_models
from evaluation.suitability.other_labels import leakage_of, read_other_labels, rule_rows
from evaluation.suitability.places import (
    HELD_OUT,
    IN_SAMPLE,
    OTHER_PLACES,
    UNSEEN_FOLD,
    PlaceInputs,
    Places,
    Predictions,
    Sitting,
    calibrated_by_other_folds,
    held_out_sittings,
    places_of,
    predict_places,
    read_held_out,
    read_place_inputs,
    sit,
)
from evaluation.suitability.scoring import (
    Setting,
    Truth,
    binary_by_other_folds,
    binary_by_threshold,
    score_ablations,
    score_applicability,
    score_details,
    score_headline,
    score_regions,
    set_table,
)
from evaluation.suitability.writing import describe_run, draw_pictures, read_summary, write_evaluation
from processing.errors import AgriClipError

__all__ = ["Evaluation", "evaluate_suitability"]

_FOLDS, _UNSEEN = "folds", "unseen"
_DIFFERS = 1e-3  # between what the members say now and what the fit wrote; more is another model or other data
_IN_SAMPLE_NOTE = (
    "In sample: the model was fitted on places that are scored here, so these figures do not tell what it is worth on "
    "other land."
)


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        scores: All scores of the main split; ablations, regions and parts of the area of applicability have splits of
            their own.
        split: Name of the main split.
        notes: Sentences that a reader must see.
        files: What was written -> what it is.
        details: Everything of `results.json` beside the scores.
        climates: Results of other climate models, or None.
    """

    scores: list[Score]
    split: str
    notes: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    climates: ClimateModelResults | None = None

    @property
    def main(self) -> list[Score]:
        """Scores of the main split."""
        return [score for score in self.scores if score.split == self.split]


@dataclass
class _Scored:
    """Places, predictions, and what is needed to ask the members again."""

    data: Any
    places: Places
    ours: Predictions
    split: str
    folds: np.ndarray | None
    inputs: PlaceInputs | None
    sittings: list[Sitting]
    told: dict[str, Any]
    notes: list[str]
    in_sample: bool = False

    def only(self, rows: np.ndarray) -> _Scored:
        """Some of the places; the members have to be asked again for them."""
        return replace(
            self,
            places=self.places.only(rows),
            ours=self.ours.only(rows),
            folds=None if self.folds is None else self.folds[rows],
            inputs=None,
            sittings=[],
        )


def evaluate_suitability(
    study: Any,
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    labels: str | Path | None = None,
    scenarios: str | Path | None = None,
    baselines: bool | Sequence[str] = True,
    holdout: str = _FOLDS,
    in_sample: bool = False,
    ablations: bool = True,
    regions: str | None = None,
    draws: int = 1000,
    seed: int = 0,
    dataset_id: str | None = None,
    command: str = "",
    quiet: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Scores a suitability model and writes `results.json`, `results.md`, pictures and metadata of the card.

    Args:
        study: The study (`processing.study.Study`).
        model_dir: Folder of an ensemble, or of one model.
        output_dir: Everything is written here.
        labels: Table of other places with the columns of the study's; None scores the fit's own held-out places.
        scenarios: Folder of rasters of other climate models.
        baselines: Whether to fit and score baselines, or which.
        holdout: `folds`, `unseen` (the fold that no member saw), or a rule such as `longitude>-90` that picks the
            places to score.
        in_sample: Score places that the model was fitted on too; the results say so.
        ablations: Whether to ask the model without parts of its input.
        regions: As for :func:`evaluation.suitability.places.places_of`.
        draws: Draws of the bootstrap.
        seed: Seed of draws, shuffles and baselines.
        dataset_id: Id of the labels on the Hub, for the card.
        command: The command that is run, for the results.
        quiet: No progress bars of maps.
        progress: Called with what is being done.

    Returns:
        The evaluation.

    Raises:
        AgriClipError: There is nothing that may be scored, in a sentence that says what to do.
    """
    from mapping.predictor import SuitabilityPredictor
    from processing.study_data import StudyData

    tell = progress or (lambda what: None)
    if study.labels is None or study.labels.kind == "presence_only":
        raise AgriClipError(
            f"The labels of '{study.name}' hold no absences, so nothing can be scored; give a study with "
            "`kind: share` or `presence_absence`."
        )
    if isinstance(baselines, Sequence) and not baselines:
        baselines = False
    if scenarios is not None:
        find_scenarios(study, scenarios)  # a wrong folder shows before anything is scored
    data, folder = StudyData(study), Path(output_dir)

    @cache
    def model() -> Any:
        tell("reading the model")
        return SuitabilityPredictor(model_dir)

    rule = None if holdout in (_FOLDS, _UNSEEN) else holdout
    if labels is not None:
        scored = _other_places(data, model, model_dir, labels, regions, in_sample, tell)
    elif in_sample:
        scored = _fitted_places(data, model(), regions, tell)
    else:
        scored = _held_out_places(data, model_dir, regions, holdout == _UNSEEN)
    if rule is not None:
        scored = scored.only(rule_rows(scored.places, rule))
        scored.split = f"{scored.split}, {rule}"
    counts = study.predicts_counts
    truth = Truth.of(scored.places, counts)
    if len(np.unique(truth.outcome)) < 2:
        raise AgriClipError(
            f"All {len(scored.places)} places that are scored are of one class; scores need presences and absences."
        )

    predictor = model()  # what may not be scored was refused before the model was read
    models = {OURS: scored.ours}
    failed: dict[str, str] = {}
    if baselines and not scored.in_sample:
        names = None if baselines is True else list(baselines)
        found, failed = baseline_predictions(
            data, scored.data, scored.places, scored.folds, predictor, names=names, seed=seed, progress=tell
        )
        models |= found
    elif baselines:
        scored.notes.append("Baselines are not scored in sample.")

    setting = Setting(study.name, scored.split, draws, seed=seed, note="in sample" if scored.in_sample else "")
    tell(f"intervals of {len(models)} models")
    binary, thresholds = _binary(data, model_dir, scored, models, truth)
    scores = score_headline(scored.places, models, setting, counts=counts, binary=binary)
    shares = study.labels.kind == "share" and scored.ours.share is not None
    tell("calibration, areas, doubt")
    kinds = {"counts": counts, "presence_shares": shares}
    scores += score_details(scored.places, scored.ours, setting, **kinds)
    scores += score_regions(scored.places, scored.ours, setting, **kinds)
    inside = _inside(data, scored)
    if inside is not None:
        scores += score_applicability(scored.places, {OURS: scored.ours}, inside, setting, counts=counts)
    details: dict[str, Any] = {
        "in_sample": scored.in_sample,
        "places": len(scored.places),
        "presences": int(scored.places.presence.sum()),
        "blocks": len(np.unique(scored.places.block)),
        "leakage": scored.told,
        "thresholds": thresholds,
        "inside_applicability": None if inside is None else int(inside.sum()),
        "baselines_not_run": failed,
        "prediction_sets": set_table(scored.places, scored.ours.sets) if scored.ours.sets else [],
    }
    if ablations:
        variants, raw, impossible = _ablations(study, scored, predictor, seed, tell)
        details["ablations_not_possible"] = impossible
        if variants:
            scores += score_ablations(scored.places, variants, parts.INTACT, setting, rankings=raw, counts=counts)
    fitted = read_summary(model_dir).get("study_fingerprint")
    if fitted is not None and fitted != study.fingerprint():
        scored.notes.append("The model was fitted to another version of this study; its places may be others.")
    result = Evaluation(scores, scored.split, scored.notes, details=details)
    if scenarios is not None:
        result.climates = evaluate_climate_models(
            study, model_dir, scenarios, folder / "climate_models", quiet=quiet, progress=tell
        )
        details["climate_models"] = result.climates.as_dict()
    tell("tables and pictures")
    draw_pictures(result, truth, models, folder)
    about = describe_run(study, model_dir, predictor, labels, command, setting, in_sample=scored.in_sample)
    write_evaluation(result, about, folder, dataset_id)
    return result


# -- what is scored -------------------------------------------------------------------------------------------------


def _held_out_places(data: Any, model_dir: str | Path, regions: str | None, unseen: bool) -> _Scored:
    """The fit's own places, each by members that left it out."""
    everything = places_of(data, regions)
    rows, ours, folds = read_held_out(data.study, model_dir, everything, unseen=unseen)
    places = everything.only(rows)
    splits = data.study.splits
    split = UNSEEN_FOLD if unseen else f"held-out {splits.kind.replace('_', ' ') if splits else 'places'}"
    if unseen:
        told = leakage_of(data, everything.only(~np.isin(np.arange(len(everything)), rows)), places)
    else:
        told = leakage_of(data, places, folds=folds)
    return _Scored(data, places, ours, split, None if unseen else folds, None, [], told, [])


def _fitted_places(data: Any, predictor: Any, regions: str | None, tell: Callable[[str], None]) -> _Scored:
    """The fit's own places, by members that saw them."""
    places = places_of(data, regions)
    scored = _ask(data, predictor, places, IN_SAMPLE, {}, tell)
    scored.in_sample, scored.notes = True, [_IN_SAMPLE_NOTE]
    return scored


def _other_places(
    data: Any,
    model: Callable[[], Any],
    model_dir: str | Path,
    labels: str | Path,
    regions: str | None,
    in_sample: bool,
    tell: Callable[[str], None],
) -> _Scored:
    """Places of another table."""
    other = read_other_labels(data, labels, model_dir=model_dir, regions=regions, keep_fitted=in_sample)
    scored = _ask(other.data, model(), other.places, OTHER_PLACES, other.told, tell)
    if other.left_out:
        scored.notes.append(f"{len(other.left_out)} of {other.told['places']} places were fitted and are not scored.")
    if in_sample and other.fitted.any():
        scored.in_sample = True
        scored.notes.append(_IN_SAMPLE_NOTE)
    if not (Path(model_dir) / HELD_OUT).is_file():
        scored.notes.append("Which places were fitted is taken from the study's table; the model folder does not say.")
    return scored


def _ask(
    data: Any, predictor: Any, places: Places, split: str, told: dict[str, Any], tell: Callable[[str], None]
) -> _Scored:
    """All members together, at places about which something is known."""
    tell(f"predicting {len(places)} places")
    inputs = read_place_inputs(data, predictor, places.x, places.y)
    known = np.isfinite(inputs.table).any(axis=1)
    if not known.any():
        raise AgriClipError("None of the places has a predictor; check that they lie on the study's rasters.")
    notes = []
    if not known.all():
        notes.append(f"{int((~known).sum())} places have no predictor and are not scored.")
        places, inputs = places.only(known), read_place_inputs(data, predictor, places.x[known], places.y[known])
    ours = predict_places(predictor, inputs)
    sittings = [sit(predictor, predictor.members, np.arange(len(places)))]
    return _Scored(data, places, ours, split, None, inputs, sittings, dict(told), notes)


def _binary(
    data: Any, model_dir: str | Path, scored: _Scored, models: dict[str, Predictions], truth: Truth
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Present or absent by thresholds from other places than those that are scored, and the thresholds."""
    from evaluation.threshold_metrics import choose_threshold

    counts = data.study.predicts_counts
    if scored.folds is not None and len(np.unique(scored.folds)) > 1:
        cut = {name: binary_by_other_folds(truth, p.probability, scored.folds) for name, p in models.items()}
        return cut, {}
    everything = places_of(data)
    others = everything.only(~np.isin(everything.ids, scored.places.ids))
    if not len(others):
        return {}, {}
    known = Truth.of(others, counts)
    # Of calibrated probabilities, the TSS is largest near the prevalence of what was fitted (Liu et al. 2005).
    prevalence = float(np.average(known.outcome, weights=known.weight))
    thresholds = dict.fromkeys(models, prevalence)
    if scored.folds is None and (Path(model_dir) / HELD_OUT).is_file():
        rows, held_out, _ = read_held_out(data.study, model_dir, everything)
        new = ~np.isin(everything.ids[rows], scored.places.ids)
        own = Truth.of(everything.only(rows).only(new), counts)
        found = choose_threshold(own.outcome, held_out.probability[new][own.place], own.weight)
        thresholds[OURS] = prevalence if np.isnan(found) else found
    cut = {name: binary_by_threshold(p.probability, thresholds[name]) for name, p in models.items()}
    return cut, thresholds


def _inside(data: Any, scored: _Scored) -> np.ndarray | None:
    """Which places lie inside the area of applicability of what was fitted for them."""
    from mapping.applicability import ApplicabilityReference

    if scored.in_sample or data.study.splits is None:
        return None
    table = scored.data.predictors(scored.places.x, scored.places.y)
    names = [variable.name for variable in data.variables]
    if scored.folds is None or len(np.unique(scored.folds)) < 3:
        known = data.labels()
        fitted = ~np.isin(np.asarray(known.ids), scored.places.ids)
        folds = data.folds()[fitted]
        if len(np.unique(folds)) < 2:
            return None
        predictors = data.predictors(known.x[fitted], known.y[fitted])
        return ApplicabilityReference(predictors, folds, names=names).score(table).inside
    inside = np.zeros(len(table), dtype=bool)
    for fold in np.unique(scored.folds):
        own = scored.folds == fold
        reference = ApplicabilityReference(table[~own], scored.folds[~own], names=names)
        inside[own] = reference.score(table[own]).inside
    return inside


def _ablations(
    study: Any, scored: _Scored, predictor: Any, seed: int, tell: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
    """The model asked without parts of its input, by the members that may be asked about each place.

    Probabilities, what orders the places, and what was not possible.
    """
    places, folds = scored.places, scored.folds
    sittings = scored.sittings
    if not sittings:
        rows = np.arange(len(places))
        sittings = (
            held_out_sittings(predictor, folds) if folds is not None else [sit(predictor, predictor.members, rows)]
        )
        if not sittings:
            return {}, {
                name: "the folder does not tell which member left out which place." for name in parts.ABLATIONS
            }
    inputs = scored.inputs or read_place_inputs(scored.data, predictor, places.x, places.y)
    raw, impossible = parts.ask_without(inputs, sittings, scored.data.template, seed=seed, progress=tell)
    if folds is not None:
        apart = float(np.abs(raw[parts.INTACT] - scored.ours.ranking).max())
        if apart > _DIFFERS:
            scored.notes.append(
                f"What the members say now differs from what the fit wrote by up to {apart:.3f}: the study's data or "
                "the model have changed since."
            )
        method = study.training.calibration if not study.predicts_counts else "none"
        variants = calibrated_by_other_folds(raw[parts.INTACT], folds, places.presence, method, raw)
        return variants, raw, impossible
    return raw, raw, impossible
