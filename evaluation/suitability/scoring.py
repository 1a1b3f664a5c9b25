"""Every score of a suitability model at labelled places, each with its interval, and its lead over other models.

Four choices define this file. All models are scored on the same places in the same draws of blocks, so a difference
has an interval of its own. A threshold is chosen on other places than those it is scored on: on the other folds, or on
the fit's own held-out places. Scores of counts are scores of units: a place with 3 of 20 counts as 3 presences and 17
absences. And a score that the data cannot give (a spread of one member, sets without thresholds) is left away, never
replaced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.area_metrics import score_areas
from evaluation.bootstrap import Interval, ModelInterval, bootstrap_models
from evaluation.metrics import brier, brier_parts, calibration_line, rmse, score_presence
from evaluation.presence_metrics import boyce_index
from evaluation.results import OURS, Score, metric_of
from evaluation.suitability.places import Places, Predictions
from evaluation.threshold_metrics import choose_threshold, threshold_scores
from evaluation.uncertainty_metrics import risk_coverage_curve, set_scores, spread_error_correlation

__all__ = [
    "HEADLINE",
    "Setting",
    "Truth",
    "binary_by_other_folds",
    "binary_by_threshold",
    "lead_sentence",
    "score_ablations",
    "score_applicability",
    "score_details",
    "score_headline",
    "score_regions",
    "set_table",
]

#: What every model is compared by.
HEADLINE = ("ap", "auc", "brier", "log_loss", "ece")
_LEAST_BLOCKS = 2


@dataclass(frozen=True)
class Setting:
    """What all scores of an evaluation have in common.

    Attributes:
        dataset: Name of the data.
        split: How the places were held out.
        draws: Draws of the bootstrap.
        level: Level of the intervals.
        seed: Seed of the draws.
        note: What a reader must know of all scores.
    """

    dataset: str
    split: str
    draws: int = 1000
    level: float = 0.95
    seed: int = 0
    note: str = ""

    def score(self, metric: str, interval: Interval, n: int, **more: Any) -> Score:
        """A score of this setting from an interval."""
        ends = [None if math.isnan(end) else float(end) for end in (interval.low, interval.high)]
        given = {"task": "suitability", "dataset": self.dataset, "split": self.split, "note": self.note, **more}
        return Score(metric=metric, value=interval.estimate, low=ends[0], high=ends[1], n=n, level=self.level, **given)

    def lead(self, metric: str, difference: Interval, n: int, model: str, against: str, **more: Any) -> Score:
        """The lead of the reference over another model, from the other's difference to it."""
        turned = Interval(
            -difference.estimate, -difference.high, -difference.low, difference.level, -difference.values
        )
        return self.score(metric, turned, n, model=model, against=against, **more)


@dataclass(frozen=True)
class Truth:
    """What is scored: places, or the units of places.

    Attributes:
        outcome: (M,) 0 or 1.
        weight: (M,) weight of each.
        place: (M,) index of the place that it belongs to.
        block: (M,) block of that place.
    """

    outcome: np.ndarray
    weight: np.ndarray
    place: np.ndarray
    block: np.ndarray

    @classmethod
    def of(cls, places: Places, counts: bool) -> Truth:
        """Places as they are, or split in presences and absences weighted by their counts."""
        index = np.arange(len(places))
        if not counts:
            return cls(places.presence, np.ones(len(places)), index, places.block)
        outcome, place = np.repeat([1.0, 0.0], len(places)), np.tile(index, 2)
        weight = np.concatenate([places.positive, places.total - places.positive])
        some = weight > 0
        return cls(outcome[some], weight[some], place[some], places.block[place[some]])


# -- thresholds -----------------------------------------------------------------------------------------------------


def binary_by_other_folds(truth: Truth, score: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Present or absent at each place by the threshold with the largest TSS on the other folds.

    Args:
        truth: What is scored.
        score: (N,) scores of places, out of fold.
        folds: (N,) fold of each place.

    Returns:
        (N,) 0 or 1; NaN where the other folds hold one class only.
    """
    found = np.full(len(score), np.nan)
    for fold in np.unique(folds):
        others = folds[truth.place] != fold
        if not others.any():
            continue
        threshold = choose_threshold(truth.outcome[others], score[truth.place[others]], truth.weight[others])
        if not math.isnan(threshold):
            found[folds == fold] = score[folds == fold] >= threshold
    return found


def binary_by_threshold(score: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) 1 where a score reaches a threshold, else 0."""
    return (score >= threshold).astype(np.float64)


# -- scores ---------------------------------------------------------------------------------------------------------


def score_headline(
    places: Places,
    models: Mapping[str, Predictions],
    setting: Setting,
    *,
    counts: bool = False,
    binary: Mapping[str, np.ndarray] | None = None,
) -> list[Score]:
    """Scores that all models share, ours first, and our lead over each of the others.

    Args:
        places: N places.
        models: Name -> predictions at them; :data:`evaluation.results.OURS` must be among them.
        setting: What the scores have in common.
        counts: Whether units are scored.
        binary: Name -> (N,) present or absent by a threshold from other places.

    Returns:
        Discrimination, calibration and error of each model; TSS, F1 and IoU of those in `binary`; differences are
        ours less the other's.
    """
    truth = Truth.of(places, counts)
    arrays = {name: (p.probability[truth.place], p.ranking[truth.place]) for name, p in models.items()}
    shared = (truth.outcome, truth.weight)
    given = {"draws": setting.draws, "level": setting.level, "seed": setting.seed, "reference": OURS}
    found = bootstrap_models(_headline, truth.block, shared, arrays, **given)
    chosen = {name: values for name, values in (binary or {}).items() if np.isfinite(values).all()}
    if OURS in chosen:
        cut = {name: (values[truth.place],) for name, values in chosen.items()}
        for name, extra in bootstrap_models(_binary, truth.block, shared, cut, **given).items():
            found[name] |= extra
    return _listed(found, setting, len(places), OURS)


def _headline(
    outcome: np.ndarray, probability: np.ndarray, ranking: np.ndarray, weight: np.ndarray
) -> dict[str, float]:
    return {**score_presence(outcome, probability, weight, ranking), "boyce": boyce_index(outcome, ranking, weight)}


def _binary(outcome: np.ndarray, present: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    cut = threshold_scores(outcome, present, 0.5, weight)
    names = ("tss", "kappa", "f1", "iou", "omission", "commission")
    return {name: float(getattr(cut, name)) for name in names}


def _listed(
    found: Mapping[str, Mapping[str, ModelInterval]], setting: Setting, n: int, reference: str, **more: Any
) -> list[Score]:
    """Scores of all models, then the lead of the reference over each other one."""
    scores = [
        setting.score(metric, one.score, n, model=name, **more)
        for name, intervals in found.items()
        for metric, one in intervals.items()
    ]
    for name, intervals in found.items():
        for metric, one in intervals.items():
            if one.difference is not None:
                scores.append(setting.lead(metric, one.difference, n, reference, name, **more))
    return scores


def score_details(
    places: Places, ours: Predictions, setting: Setting, *, counts: bool = False, presence_shares: bool = False
) -> list[Score]:
    """What is asked of our own model besides: calibration, areas, its knowledge of its own doubt.

    Args:
        places: N places.
        ours: Our predictions.
        setting: What the scores have in common.
        counts: Whether units are scored.
        presence_shares: Whether the model predicts a share beside the probability of presence.

    Returns:
        Parts of the Brier score, slope and intercept of calibration, area under the rejection curve, coverage and
        size of prediction sets; bias and fit of areas; correlation of spread and error where there is a spread.
    """
    truth = Truth.of(places, counts)
    levels = sorted(ours.sets)
    columns = [ours.probability[truth.place]]
    columns += [ours.sets[level][truth.place] for level in levels]

    def scored(outcome: np.ndarray, probability: np.ndarray, *rest: np.ndarray) -> dict[str, float]:
        *sets, weight = rest
        parts, line = brier_parts(outcome, probability, weight), calibration_line(outcome, probability, weight)
        curve = risk_coverage_curve((probability - outcome) ** 2, np.maximum(probability, 1 - probability), weight)
        result = {
            "brier_reliability": parts.reliability,
            "brier_resolution": parts.resolution,
            "brier_uncertainty": parts.uncertainty,
            "brier_skill": parts.skill,
            "calibration_slope": line.slope,
            "calibration_intercept": line.intercept,
            "calibration_in_the_large": line.in_the_large,
            "aurc": curve.aurc,
            "aurc_excess": curve.excess,
        }
        for level, members in zip(levels, sets, strict=True):
            covered = members[np.arange(len(members)), outcome.astype(int)]
            result[f"coverage_{100 * level:g}"] = float(np.average(covered, weights=weight))
            result[f"set_size_{100 * level:g}"] = float(np.average(members.sum(axis=1), weights=weight))
        return result

    given = {"draws": setting.draws, "level": setting.level, "seed": setting.seed}
    shared = (truth.outcome, truth.weight)
    found = dict(bootstrap_models(scored, truth.block, shared, {OURS: columns}, **given)[OURS])
    predicted = predicted_share(ours, counts, presence_shares)
    observed = places.share if counts or presence_shares else places.presence
    found |= bootstrap_models(_areas, places.block, (observed, places.total), {OURS: (predicted,)}, **given)[OURS]
    if ours.spread is not None:
        error = np.abs(ours.probability - (places.share if counts else places.presence))
        known = bootstrap_models(_spread, places.block, (error,), {OURS: (ours.spread,)}, **given)
        found |= known[OURS]
    return [setting.score(metric, one.score, len(places)) for metric, one in found.items()]


def predicted_share(ours: Predictions, counts: bool, presence_shares: bool) -> np.ndarray:
    """(N,) what areas are summed from: the predicted share, or the probability where none is predicted."""
    if presence_shares and not counts and ours.share is not None:
        return np.clip(ours.share, 0.0, 1.0)
    return ours.probability


def _areas(observed: np.ndarray, predicted: np.ndarray, land: np.ndarray) -> dict[str, float]:
    found = score_areas(observed, predicted, land)
    return {
        "area_bias": found.relative_bias,
        "area_r2": found.r2,
        "share_rmse": rmse(observed, predicted),
    }


def _spread(error: np.ndarray, spread: np.ndarray) -> dict[str, float]:
    return {"spread_error_correlation": spread_error_correlation(spread, error)}


def score_regions(
    places: Places, ours: Predictions, setting: Setting, *, counts: bool = False, presence_shares: bool = False
) -> list[Score]:
    """Bias of area, Brier score and coverage of each region; the region stands in the split.

    Args:
        places: N places.
        ours: Our predictions.
        setting: What the scores have in common.
        counts: As for :func:`score_details`.
        presence_shares: As for :func:`score_details`.
    """
    names = np.unique(places.region)
    if len(names) < 2:
        return []
    levels = sorted(ours.sets)
    predicted = predicted_share(ours, counts, presence_shares)
    observed = places.share if counts or presence_shares else places.presence
    _, region = np.unique(places.region, return_inverse=True)
    covered = [ours.sets[level][np.arange(len(places)), places.presence.astype(int)] for level in levels]

    def mean(values: np.ndarray, weight: np.ndarray, where: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.bincount(where, values * weight, len(names)) / np.bincount(where, weight, len(names))

    def scored(
        seen: np.ndarray, said: np.ndarray, land: np.ndarray, where: np.ndarray, loss: np.ndarray, *sets: np.ndarray
    ) -> dict[str, float]:
        one = np.ones(len(where))
        with np.errstate(invalid="ignore", divide="ignore"):
            bias = mean(said, land, where) / mean(seen, land, where) - 1.0
        bias[~np.isfinite(bias)] = math.nan
        table = {"area_bias": bias, "brier": mean(loss, one, where)}
        for level, held in zip(levels, sets, strict=True):
            table[f"coverage_{100 * level:g}"] = mean(held.astype(float), one, where)
        return {f"{k}/{metric}": float(values[k]) for metric, values in table.items() for k in range(len(names))}

    truth = places.share if counts else places.presence
    loss = (ours.probability - truth) ** 2
    if counts:  # the Brier score of units: what their own variance adds
        loss = loss + truth * (1.0 - truth)
    given = {"draws": setting.draws, "level": setting.level, "seed": setting.seed}
    # Region and land belong to the place; the prediction comes second in the order of a bootstrap.
    found = bootstrap_models(
        scored,
        places.block,
        (observed, places.total, region, loss, *covered),
        {OURS: (predicted,)},
        **given,
    )[OURS]
    scores = []
    for key, one in found.items():
        index, metric = key.split("/", 1)
        split = f"{setting.split}, {names[int(index)]}"
        scores.append(setting.score(metric, one.score, int((region == int(index)).sum()), split=split))
    return scores


def score_applicability(
    places: Places, models: Mapping[str, Predictions], inside: np.ndarray, setting: Setting, *, counts: bool = False
) -> list[Score]:
    """Scores inside and outside the area of applicability, where each part has blocks and classes enough.

    Args:
        places: N places.
        models: Name -> predictions.
        inside: (N,) bool.
        setting: What the scores have in common.
        counts: Whether units are scored.
    """
    scores = []
    for part, rows in (("inside", inside), ("outside", ~inside)):
        split = f"{setting.split}, {part} the area of applicability"
        few = places.only(rows)
        if not rows.any():
            continue
        truth = Truth.of(few, counts)
        kept = {name: predictions.only(rows) for name, predictions in models.items()}
        if len(np.unique(few.block)) < _LEAST_BLOCKS or len(np.unique(truth.outcome)) < 2:
            for name, predictions in kept.items():
                value = brier(truth.outcome, predictions.probability[truth.place], truth.weight)
                plain = Interval(value, math.nan, math.nan, setting.level, np.empty(0))
                scores.append(setting.score("brier", plain, len(few), model=name, split=split))
            continue
        arrays = {name: (p.probability[truth.place], p.ranking[truth.place]) for name, p in kept.items()}
        found = bootstrap_models(
            lambda y, p, r, w: score_presence(y, p, w, r),
            truth.block,
            (truth.outcome, truth.weight),
            arrays,
            draws=setting.draws,
            level=setting.level,
            seed=setting.seed,
        )
        scores += _listed(found, setting, len(few), OURS, split=split)
    return scores


def score_ablations(
    places: Places,
    variants: Mapping[str, np.ndarray],
    intact: str,
    setting: Setting,
    *,
    rankings: Mapping[str, np.ndarray] | None = None,
    counts: bool = False,
) -> list[Score]:
    """Scores of a model asked without parts of its input, and what each part is worth.

    Args:
        places: N places.
        variants: Name -> (N,) probabilities, the unchanged input among them.
        intact: Name of the unchanged input.
        setting: What the scores have in common; its split becomes the ablations' own.
        rankings: Name -> (N,) what orders the places, where calibrations of several folds would shuffle them.
        counts: Whether units are scored.

    Returns:
        Scores of each variant; differences are the unchanged input's less the variant's, so that a drop of average
        precision is positive and a drop of skill in a Brier score is negative.
    """
    truth, order = Truth.of(places, counts), rankings or variants
    found = bootstrap_models(
        lambda y, p, r, w: score_presence(y, p, w, r),
        truth.block,
        (truth.outcome, truth.weight),
        {name: (values[truth.place], order[name][truth.place]) for name, values in variants.items()},
        reference=intact,
        draws=setting.draws,
        level=setting.level,
        seed=setting.seed,
    )
    return _listed(found, setting, len(places), intact, split=f"{setting.split}, parts of the input taken away")


def set_table(places: Places, sets: Mapping[float, np.ndarray]) -> list[dict[str, Any]]:
    """Coverage of prediction sets in all and by region, with the coverage of each class.

    Args:
        places: N places.
        sets: Level -> (N, 2) bool.
    """
    rows = set_scores(places.presence, sets, places.region)
    return [
        {
            "level": row.level,
            "region": row.group,
            "places": row.count,
            "coverage": row.coverage,
            "unsuitable": row.class_coverage[0],
            "suitable": row.class_coverage[1],
            "mean_size": row.mean_size,
            "undecided": row.undecided,
            "empty": row.empty,
        }
        for row in rows
    ]


def lead_sentence(scores: Sequence[Score], metric: str = "ap") -> str:
    """One sentence on the lead over the best other model by a metric; empty where there is no other.

    Args:
        scores: Scores of one split.
        metric: One in which more is better, or less.
    """
    others = [s for s in scores if s.metric == metric and s.against is None and s.model != OURS]
    if not others:
        return ""
    sign = -1.0 if metric_of(metric).better == "lower" else 1.0
    best = max(others, key=lambda s: sign * s.value)
    lead = next((s for s in scores if s.metric == metric and s.against == best.model), None)
    if lead is None:
        return ""
    return f"{metric_of(metric).title}: {OURS} less the best of {len(others)} baselines ({best.model}) {lead.text}."
