"""Scores of a map of presence and absence: what is left of a probability once a threshold is set.

Three choices define this file. Present is where the score is at or above the threshold. A threshold is chosen on data
other than those it is scored on, so choosing and scoring are two functions. All scores come from one table of four
weighted counts, which is kept, so that a reader can work out any other score; a score that divides by zero is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import checked_pairs
from processing.errors import AgriClipError, nearest

__all__ = ["RULES", "ThresholdScores", "choose_threshold", "threshold_scores"]

# Rounding in sums of weights must not push a presence over the share that may be omitted.
_ROUNDING = 1e-9


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


@dataclass(frozen=True)
class ThresholdScores:
    """Weighted counts of a binary map against observations, and the scores that follow from them.

    Attributes:
        threshold: Present is predicted where the score is at or above it.
        hits: Weight of presences predicted present.
        false_alarms: Weight of absences predicted present.
        misses: Weight of presences predicted absent.
        correct_negatives: Weight of absences predicted absent.
    """

    threshold: float
    hits: float
    false_alarms: float
    misses: float
    correct_negatives: float

    @property
    def total(self) -> float:
        """Weight of all places."""
        return self.hits + self.false_alarms + self.misses + self.correct_negatives

    @property
    def accuracy(self) -> float:
        """Share of places predicted rightly."""
        return _ratio(self.hits + self.correct_negatives, self.total)

    @property
    def sensitivity(self) -> float:
        """Share of presences predicted present (recall, producer's accuracy of presence)."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def specificity(self) -> float:
        """Share of absences predicted absent."""
        return _ratio(self.correct_negatives, self.correct_negatives + self.false_alarms)

    @property
    def omission(self) -> float:
        """Share of presences predicted absent, ``1 - sensitivity``."""
        return _ratio(self.misses, self.hits + self.misses)

    @property
    def commission(self) -> float:
        """Share of what is predicted present that is absent (1 - user's accuracy, the word's meaning for land cover).

        Distribution models often call ``1 - specificity`` by the same name; see :attr:`false_positive_rate`.
        """
        return _ratio(self.false_alarms, self.hits + self.false_alarms)

    @property
    def false_positive_rate(self) -> float:
        """Share of absences predicted present, ``1 - specificity``."""
        return _ratio(self.false_alarms, self.correct_negatives + self.false_alarms)

    @property
    def tss(self) -> float:
        """True skill statistic, ``sensitivity + specificity - 1`` (Allouche, Tsoar and Kadmon 2006)."""
        return self.sensitivity + self.specificity - 1.0

    @property
    def kappa(self) -> float:
        """Agreement beyond chance (Cohen 1960)."""
        n = self.total
        present = (self.hits + self.misses) * (self.hits + self.false_alarms)
        absent = (self.correct_negatives + self.misses) * (self.correct_negatives + self.false_alarms)
        chance = (present + absent) / n**2
        # 1 up to rounding where map and observations hold one class, and the same
        return (self.accuracy - chance) / (1.0 - chance) if 1.0 - chance > 1e-12 else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall of presence."""
        return _ratio(2.0 * self.hits, 2.0 * self.hits + self.false_alarms + self.misses)

    @property
    def iou(self) -> float:
        """Intersection over union of predicted and observed presence (Jaccard 1912)."""
        return _ratio(self.hits, self.hits + self.false_alarms + self.misses)

    def as_dict(self) -> dict[str, float]:
        """``{threshold, tss, kappa, f1, iou, accuracy, sensitivity, specificity, omission, commission}``."""
        names = ("threshold", "tss", "kappa", "f1", "iou", "accuracy", "sensitivity", "specificity", "omission")
        return {name: float(getattr(self, name)) for name in (*names, "commission")}


def threshold_scores(
    presence: np.ndarray, score: np.ndarray, threshold: float, weight: np.ndarray | None = None
) -> ThresholdScores:
    """Counts and scores of the binary map that a threshold makes.

    Args:
        presence: (N,) 0 or 1.
        score: (N,) any score, larger = more likely present.
        threshold: Present is predicted where ``score >= threshold``; chosen on other data (:func:`choose_threshold`).
        weight: (N,) sample weights (cell areas, for example), or None.

    Returns:
        The scores.

    Raises:
        AgriClipError: For arrays that do not fit together, or a threshold that is NaN.
    """
    from sklearn.metrics import confusion_matrix

    y, s, w = checked_pairs(presence, score, weight)
    if math.isnan(threshold):
        raise AgriClipError("The threshold is NaN: the data it was chosen on hold one class only; give a number.")
    (tn, fp), (fn, tp) = confusion_matrix(y == 1, s >= threshold, labels=[False, True], sample_weight=w)
    return ThresholdScores(float(threshold), float(tp), float(fp), float(fn), float(tn))


def choose_threshold(
    presence: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, rule: str = "max_tss"
) -> float:
    """A threshold from data that are not scored afterwards (validation blocks, training presences).

    Args:
        presence: (N,) 0 or 1; the rules on presences need no absences.
        score: (N,) any score, larger = more likely present.
        weight: (N,) sample weights, or None.
        rule: ``max_tss``: the observed score with the largest TSS, the highest of equals (Liu et al. 2005).
            ``p10``: the highest observed score of a presence that omits at most a tenth of the presences.
            ``mtp``: the lowest score of a presence, which omits none (Pearson et al. 2007).

    Returns:
        The threshold; NaN where the rule has nothing to go by (no presence; for ``max_tss`` also no absence).

    Raises:
        AgriClipError: For an unknown rule or arrays that do not fit together.
    """
    chosen = RULES.get(rule)
    if chosen is None:
        raise AgriClipError(f"There is no rule '{rule}' for a threshold; {nearest(rule, RULES)}.")
    y, s, w = checked_pairs(presence, score, weight)
    w = np.ones_like(s) if w is None else w
    return chosen(y[w > 0], s[w > 0], w[w > 0])


def _max_tss(y: np.ndarray, s: np.ndarray, w: np.ndarray) -> float:
    from sklearn.metrics import roc_curve

    if not 0 < y.sum() < y.size:
        return math.nan
    false_positive, true_positive, thresholds = roc_curve(y, s, sample_weight=w, drop_intermediate=False)
    # The first point is "nowhere present", at no observed score.
    gain = (true_positive - false_positive)[1:]
    return float(thresholds[1:][np.argmax(gain >= gain.max() - _ROUNDING)])


def _omitting(most: float) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """The rule that omits at most this share of the presences."""

    def rule(y: np.ndarray, s: np.ndarray, w: np.ndarray) -> float:
        if not y.any():
            return math.nan
        scores, place = np.unique(s[y == 1], return_inverse=True)
        mass = np.bincount(place, weights=w[y == 1])
        omitted = (np.cumsum(mass) - mass) / mass.sum()
        return float(scores[np.flatnonzero(omitted <= most + _ROUNDING)[-1]])

    return rule


#: Name -> rule on (presence, score, weight), each (N,), weights above zero.
RULES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "max_tss": _max_tss,
    "p10": _omitting(0.1),
    "mtp": _omitting(0.0),
}
