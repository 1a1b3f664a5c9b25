"""Scores of what a model says about its own doubt: prediction sets, rejection by confidence, spread against error.

Three choices define this file. Coverage is given for all places, for each group and for each class, because sets can
cover nine in ten places and miss most of a rare class. The rejection curve takes any loss (a Brier term, a wrong
class), and places of equal confidence are kept or rejected in random order, on average, never in the order of the
file. The calibration is asked for its sets, not recomputed, so that what is scored is what the map shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from processing.errors import AgriClipError

if TYPE_CHECKING:
    from modeling_agriclip.calibration_agriclip import Calibration

__all__ = [
    "EVERYWHERE",
    "RiskCoverageCurve",
    "SetScores",
    "calibration_sets",
    "risk_coverage_curve",
    "set_scores",
    "spread_error_correlation",
]

#: Name of the row that pools all groups.
EVERYWHERE = "all"


@dataclass(frozen=True)
class SetScores:
    """Prediction sets of one level on one group of places.

    Attributes:
        level: Share of places whose set should hold the true class.
        group: Name of the group, :data:`EVERYWHERE` for all places.
        count: Number of places.
        coverage: Share of places whose set holds the true class.
        class_coverage: (K,) the same among places of each class; NaN for a class without places.
        mean_size: Mean number of classes in a set; 1 would be a plain prediction.
        undecided: Share of places with more than one class in the set.
        empty: Share of places with no class in the set: unlike anything that was calibrated on.
    """

    level: float
    group: str
    count: int
    coverage: float
    class_coverage: tuple[float, ...]
    mean_size: float
    undecided: float
    empty: float


def calibration_sets(
    calibration: Calibration, probability: np.ndarray, group: np.ndarray | None = None
) -> dict[float, np.ndarray]:
    """The prediction sets of every level that a calibration was fitted for.

    Args:
        calibration: A fitted ``modeling_agriclip.calibration_agriclip.Calibration``.
        probability: (N,) calibrated probabilities of `suitable`.
        group: (N,) group of each place, if the thresholds differ between groups.

    Returns:
        Level (0.9 for an alpha of 0.1) -> (N, 2) bool, `unsuitable` and `suitable`.
    """
    import torch

    values = torch.as_tensor(np.asarray(probability, dtype=np.float64).ravel())
    groups = None if group is None else [str(name) for name in np.asarray(group).ravel()]
    return {
        round(1.0 - level.alpha, 9): calibration.prediction_sets(values, level.alpha, groups).numpy()
        for level in calibration.levels
    }


def set_scores(
    truth: np.ndarray,
    sets: Mapping[float, np.ndarray],
    group: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> list[SetScores]:
    """Coverage and size of prediction sets, for all places and for each group.

    Args:
        truth: (N,) true class, 0..K-1.
        sets: Level -> (N, K) bool, whether the class belongs to the set.
        group: (N,) group of each place, or None.
        weight: (N,) sample weights, or None.

    Returns:
        Levels in rising order; of each, all places first, then the groups by name.

    Raises:
        AgriClipError: Arrays of different length, classes without a column, or a level outside 0 to 1.
    """
    y = np.asarray(truth).ravel().astype(np.int64)
    w = _weights(weight, y.size)
    names = None if group is None else np.asarray(group).ravel().astype(str)
    if names is not None and names.size != y.size:
        raise AgriClipError(f"There are {names.size} groups for {y.size} places; give one per place.")
    rows = []
    for level in sorted(sets):
        members = np.asarray(sets[level], dtype=bool)
        if not 0 < level < 1:
            raise AgriClipError(f"The level of a prediction set must lie between 0 and 1, not {level:g}.")
        if members.ndim != 2 or len(members) != y.size:
            raise AgriClipError(
                f"The sets of level {level:g} have shape {members.shape}; they need one row per place ({y.size}) and "
                "one column per class."
            )
        if y.min() < 0 or y.max() >= members.shape[1]:
            raise AgriClipError(f"A true class lies outside 0 to {members.shape[1] - 1}, the columns of the sets.")
        rows.append(_score_sets(float(level), EVERYWHERE, y, members, w))
        for name in [] if names is None else np.unique(names):
            inside = names == name
            rows.append(_score_sets(float(level), str(name), y[inside], members[inside], w[inside]))
    return rows


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Mean loss of the places kept, as ever more are kept, the most confident first.

    Attributes:
        coverage: (N,) share of the weight kept, rising to 1.
        risk: (N,) weighted mean loss of what is kept.
        aurc: Area under the curve, the mean of ``risk`` over the places (Geifman and El-Yaniv 2017); lower is better.
        excess: ``aurc`` less that of the best possible order, by the loss itself (Geifman et al. 2019); 0 is best.
    """

    coverage: np.ndarray
    risk: np.ndarray
    aurc: float
    excess: float

    def at(self, coverage: np.ndarray | float) -> np.ndarray:
        """Risk when this share is kept: of the first point that keeps at least so much.

        Args:
            coverage: Shares above 0, up to 1.
        """
        wanted = np.asarray(coverage, dtype=np.float64)
        if not ((wanted > 0) & (wanted <= 1)).all():
            raise AgriClipError("The share of places that are kept must lie above 0 and not above 1.")
        place = np.searchsorted(self.coverage, wanted - 1e-12)
        return np.asarray(self.risk[np.minimum(place, self.risk.size - 1)])


def risk_coverage_curve(
    loss: np.ndarray, confidence: np.ndarray, weight: np.ndarray | None = None
) -> RiskCoverageCurve:
    """Rejection curve: how the loss falls as the least confident places are left out.

    Args:
        loss: (N,) loss of each place: (p - y)^2, 0 or 1 for a wrong class, an absolute error.
        confidence: (N,) larger = surer; for a probability max(p, 1 - p), for an ensemble minus its spread.
        weight: (N,) sample weights, or None.

    Returns:
        The curve, over the places of weight above zero.

    Raises:
        AgriClipError: Arrays of different length, empty, or with values that are not finite.
    """
    values, sure = _finite_pair(loss, confidence, "losses", "confidences")
    w = _weights(weight, values.size)
    values, sure, w = values[w > 0], sure[w > 0], w[w > 0]
    coverage, risk = _curve(values, sure, w)
    aurc = float(np.average(risk, weights=np.diff(coverage, prepend=0.0)))
    ideal_coverage, ideal = _curve(values, -values, w)
    best = float(np.average(ideal, weights=np.diff(ideal_coverage, prepend=0.0)))
    return RiskCoverageCurve(coverage, risk, aurc, aurc - best)


def spread_error_correlation(spread: np.ndarray, error: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Spearman's rank correlation of predicted spread and absolute error; 1 would be a model that knows its errors.

    With weights the ranks are mid-ranks of cumulated weight, so that whole numbers equal repetition.

    Args:
        spread: (N,) predicted standard deviation, interval width or set size.
        error: (N,) error; its sign is ignored.
        weight: (N,) sample weights, or None.

    Returns:
        The correlation; NaN if either is constant or fewer than two places have weight.

    Raises:
        AgriClipError: Arrays of different length, empty, or with values that are not finite.
    """
    a, b = _finite_pair(spread, np.abs(np.asarray(error, dtype=np.float64)), "spreads", "errors")
    w = _weights(weight, a.size)
    a, b, w = a[w > 0], b[w > 0], w[w > 0]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    x, y = _mid_ranks(a, w), _mid_ranks(b, w)
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    return float((w * x * y).sum() / math.sqrt((w * x * x).sum() * (w * y * y).sum()))


def _score_sets(level: float, group: str, y: np.ndarray, members: np.ndarray, w: np.ndarray) -> SetScores:
    covered, size = members[np.arange(y.size), y], members.sum(axis=1)
    by_class = [_mean(covered[y == k], w[y == k]) for k in range(members.shape[1])]
    return SetScores(
        level=level,
        group=group,
        count=int(y.size),
        coverage=_mean(covered, w),
        class_coverage=tuple(by_class),
        mean_size=_mean(size, w),
        undecided=_mean(size > 1, w),
        empty=_mean(size == 0, w),
    )


def _curve(loss: np.ndarray, confidence: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk, (N,) each; within a tie every place has the mean loss of the tie."""
    _, tie = np.unique(-confidence, return_inverse=True)
    mean = np.bincount(tie, weights=w * loss) / np.bincount(tie, weights=w)
    order = np.argsort(tie, kind="stable")
    kept = np.cumsum(w[order])
    return kept / kept[-1], np.cumsum(w[order] * mean[tie[order]]) / kept


def _mid_ranks(values: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(N,) weight below a value plus half the weight at it."""
    _, tie = np.unique(values, return_inverse=True)
    mass = np.bincount(tie, weights=w)
    return np.asarray((np.cumsum(mass) - 0.5 * mass)[tie])


def _mean(values: np.ndarray, w: np.ndarray) -> float:
    return float(np.average(values, weights=w)) if w.sum() > 0 else math.nan


def _weights(weight: np.ndarray | None, size: int) -> np.ndarray:
    """(N,) weights, ones if none were given."""
    if not size:
        raise AgriClipError("There is nothing to score: the arrays are empty.")
    w = np.ones(size) if weight is None else np.asarray(weight, dtype=np.float64).ravel()
    if w.size != size:
        raise AgriClipError(f"There are {w.size} weights for {size} places; give one per place.")
    if not np.isfinite(w).all() or w.min() < 0 or w.sum() <= 0:
        raise AgriClipError("Sample weights must be finite, not negative and not all zero.")
    return w


def _finite_pair(first: np.ndarray, second: np.ndarray, name: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(values, dtype=np.float64).ravel() for values in (first, second))
    if a.size != b.size:
        raise AgriClipError(f"There are {a.size} {name} but {b.size} {other}; give one of each per place.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AgriClipError(f"Some {name} or {other} are NaN or infinite; remove these places.")
    return a, b
