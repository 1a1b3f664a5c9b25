"""Scores of probabilities of presence: discrimination, calibration and error, each with sample weights.

Three choices define this file. Everything takes NumPy arrays and weights and returns a plain number, so a score in a
report and the same score in a test come from one line. Where scikit-learn has the metric it is used; what it lacks
(calibration error with equal-mass bins, weighted RMSE) is written out here. A score that is not defined, such as an
AUC with one class only, is NaN and not a number that looks like a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from processing.errors import AgriClipError

__all__ = [
    "ReliabilityCurve",
    "auc",
    "average_precision",
    "brier",
    "expected_calibration_error",
    "log_loss",
    "reliability_curve",
    "rmse",
    "score_presence",
]

_TINY = 1e-7


def average_precision(presence: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the precision-recall curve by steps (average precision).

    Args:
        presence: (N,) 0 or 1.
        score: (N,) any score, larger = more likely present.
        weight: (N,) sample weights, or None.

    Returns:
        A number between 0 and 1; NaN if there is no presence.
    """
    from sklearn.metrics import average_precision_score

    y, s, w = _checked(presence, score, weight)
    return float(average_precision_score(y, s, sample_weight=w)) if y.any() else math.nan


def auc(presence: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve; NaN if only one class occurs.

    Args:
        presence: (N,) 0 or 1.
        score: (N,) any score, larger = more likely present.
        weight: (N,) sample weights, or None.
    """
    from sklearn.metrics import roc_auc_score

    y, s, w = _checked(presence, score, weight)
    return float(roc_auc_score(y, s, sample_weight=w)) if 0 < y.sum() < y.size else math.nan


def brier(presence: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean squared difference of probability and outcome (Brier 1950); lower is better.

    Args:
        presence: (N,) 0 or 1.
        probability: (N,) probabilities.
        weight: (N,) sample weights, or None.
    """
    y, p, w = _checked(presence, probability, weight, probabilities=True)
    return float(np.average((p - y) ** 2, weights=w))


def log_loss(presence: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean negative log likelihood in nats, probabilities kept 1e-7 away from 0 and 1; lower is better.

    Args:
        presence: (N,) 0 or 1.
        probability: (N,) probabilities.
        weight: (N,) sample weights, or None.
    """
    y, p, w = _checked(presence, probability, weight, probabilities=True)
    p = np.clip(p, _TINY, 1.0 - _TINY)
    return float(np.average(-(y * np.log(p) + (1.0 - y) * np.log1p(-p)), weights=w))


def rmse(observed: np.ndarray, predicted: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Root mean squared error of two arrays of any shape; pairs with a NaN are left out.

    Args:
        observed: True values.
        predicted: Predictions, same shape.
        weight: Weights of the same shape (cell areas, for example), or None.
    """
    a, b = np.asarray(observed, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.shape != b.shape:
        raise AgriClipError(f"Observed values have shape {a.shape}, predictions {b.shape}; they must be pairs.")
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return math.nan
    weights = None if weight is None else np.broadcast_to(weight, a.shape)[known]
    return float(np.sqrt(np.average((a[known] - b[known]) ** 2, weights=weights)))


@dataclass(frozen=True)
class ReliabilityCurve:
    """Observed frequency against predicted probability, in bins of equal weight.

    Attributes:
        predicted: (bins,) mean predicted probability.
        observed: (bins,) observed frequency.
        weight: (bins,) share of the total weight, sums to 1.
        count: (bins,) number of places.
    """

    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray
    count: np.ndarray

    @property
    def calibration_error(self) -> float:
        """Weighted mean of the absolute differences (ECE)."""
        return float((self.weight * np.abs(self.predicted - self.observed)).sum())


def reliability_curve(
    observed: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None, bins: int = 15
) -> ReliabilityCurve:
    """Reliability in equal-mass bins: places sorted by probability and cut where the weight reaches k / bins.

    Args:
        observed: (N,) outcomes 0 or 1, or observed shares between 0 and 1.
        probability: (N,) predictions.
        weight: (N,) sample weights, or None.
        bins: Number of bins; bins that would be empty, and bins split inside a tie, are merged.

    Returns:
        The curve.
    """
    y, p, w = _checked(observed, probability, weight, probabilities=True, shares=True)
    w = np.ones_like(p) if w is None else w
    order = np.argsort(p, kind="stable")
    y, p, w = y[order], p[order], w[order]
    middle = (np.cumsum(w) - 0.5 * w) / w.sum()
    label = np.minimum((middle * bins).astype(int), bins - 1)
    # Equal predictions belong in one bin, otherwise the order of the file would decide the error.
    first_of_tie = np.searchsorted(p, p, side="left")
    label = label[first_of_tie]
    _, label = np.unique(label, return_inverse=True)
    mass = np.bincount(label, weights=w)
    return ReliabilityCurve(
        predicted=np.bincount(label, weights=w * p) / mass,
        observed=np.bincount(label, weights=w * y) / mass,
        weight=mass / mass.sum(),
        count=np.bincount(label),
    )


def expected_calibration_error(
    observed: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None, bins: int = 15
) -> float:
    """Expected calibration error with equal-mass bins; lower is better.

    Args:
        observed: (N,) outcomes 0 or 1, or shares.
        probability: (N,) predictions.
        weight: (N,) sample weights, or None.
        bins: Number of bins.
    """
    return reliability_curve(observed, probability, weight, bins).calibration_error


def score_presence(
    presence: np.ndarray,
    probability: np.ndarray,
    weight: np.ndarray | None = None,
    ranking: np.ndarray | None = None,
) -> dict[str, float]:
    """The scores that every table of this project shows.

    Args:
        presence: (N,) 0 or 1.
        probability: (N,) calibrated probabilities of presence.
        weight: (N,) sample weights, or None.
        ranking: (N,) score used for AP and AUC if it is not the probability (a predicted share, for example: isotonic
            calibration makes ties, which would hide its order).

    Returns:
        ``{"ap", "auc", "brier", "log_loss", "ece"}``.
    """
    order = probability if ranking is None else ranking
    return {
        "ap": average_precision(presence, order, weight),
        "auc": auc(presence, order, weight),
        "brier": brier(presence, probability, weight),
        "log_loss": log_loss(presence, probability, weight),
        "ece": expected_calibration_error(presence, probability, weight),
    }


def _checked(
    observed: np.ndarray,
    score: np.ndarray,
    weight: np.ndarray | None,
    *,
    probabilities: bool = False,
    shares: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Flat float64 arrays of one length without NaN, or a sentence that says what is wrong."""
    y = np.asarray(observed, dtype=np.float64).ravel()
    s = np.asarray(score, dtype=np.float64).ravel()
    w = None if weight is None else np.asarray(weight, dtype=np.float64).ravel()
    if y.size == 0:
        raise AgriClipError("There is nothing to score: the arrays are empty.")
    if y.shape != s.shape or (w is not None and w.shape != y.shape):
        sizes = f"{y.size} observations, {s.size} predictions" + ("" if w is None else f", {w.size} weights")
        raise AgriClipError(f"Scores need one prediction per observation, but there are {sizes}.")
    for values, what in ((y, "observations"), (s, "predictions"), (w, "weights")):
        if values is not None and not np.isfinite(values).all():
            raise AgriClipError(
                f"{int((~np.isfinite(values)).sum())} {what} are NaN or infinite; remove these places."
            )
    if w is not None and (w.min() < 0 or w.sum() <= 0):
        raise AgriClipError("Sample weights must not be negative and not all zero.")
    if not shares and not np.isin(y, (0.0, 1.0)).all():
        raise AgriClipError("Presence must be 0 or 1; for shares, set a threshold first (labels.presence_above).")
    if (probabilities and (s.min() < 0 or s.max() > 1)) or (shares and (y.min() < 0 or y.max() > 1)):
        raise AgriClipError("Probabilities and shares must lie between 0 and 1; check the columns.")
    return y, s, w
