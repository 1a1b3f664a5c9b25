"""Scores of probabilities of presence: discrimination, calibration and error, each with sample weights.

Three choices define this file. Everything takes NumPy arrays and weights and returns a plain number, so a score in a
report and the same score in a test come from one line. Where scikit-learn has the metric it is used; what it lacks
(calibration error with equal-mass bins, the parts of the Brier score, weighted RMSE) is written out here. A score that
is not defined, such as an AUC with one class only, is NaN and not a number that looks like a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from processing.errors import AgriClipError

__all__ = [
    "BrierParts",
    "CalibrationLine",
    "ReliabilityCurve",
    "auc",
    "average_precision",
    "brier",
    "brier_parts",
    "calibration_line",
    "checked_pairs",
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

    y, s, w = checked_pairs(presence, score, weight)
    return float(average_precision_score(y, s, sample_weight=w)) if y.any() else math.nan


def auc(presence: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve; NaN if only one class occurs.

    Args:
        presence: (N,) 0 or 1.
        score: (N,) any score, larger = more likely present.
        weight: (N,) sample weights, or None.
    """
    from sklearn.metrics import roc_auc_score

    y, s, w = checked_pairs(presence, score, weight)
    return float(roc_auc_score(y, s, sample_weight=w)) if 0 < y.sum() < y.size else math.nan


def brier(presence: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean squared difference of probability and outcome (Brier 1950); lower is better.

    Args:
        presence: (N,) 0 or 1.
        probability: (N,) probabilities.
        weight: (N,) sample weights, or None.
    """
    y, p, w = checked_pairs(presence, probability, weight, probabilities=True)
    return float(np.average((p - y) ** 2, weights=w))


def log_loss(presence: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean negative log likelihood in nats, probabilities kept 1e-7 away from 0 and 1; lower is better.

    Args:
        presence: (N,) 0 or 1.
        probability: (N,) probabilities.
        weight: (N,) sample weights, or None.
    """
    y, p, w = checked_pairs(presence, probability, weight, probabilities=True)
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
        bins: Number of bins; bins that would be empty, and bins split inside a tie, are merged. Places of weight zero
            are left out.

    Returns:
        The curve.
    """
    y, p, w = checked_pairs(observed, probability, weight, probabilities=True, shares=True)
    if w is None:
        w = np.ones_like(p)
    else:
        y, p, w = y[w > 0], p[w > 0], w[w > 0]
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


@dataclass(frozen=True)
class BrierParts:
    """The Brier score taken apart: ``brier = reliability - resolution + uncertainty + within_bins``.

    Attributes:
        reliability: Squared distance of the predicted probabilities from the observed frequencies; lower is better.
        resolution: Squared distance of the observed frequencies of the bins from the prevalence; higher is better.
        uncertainty: Variance of the outcome, ``prevalence * (1 - prevalence)``: what no forecast can change.
        within_bins: What bins hide, the variance of the predictions inside a bin less twice their covariance with the
            outcome; 0 without bins, and where each bin holds one probability.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float

    @property
    def brier(self) -> float:
        """The score that the parts add up to."""
        return self.reliability - self.resolution + self.uncertainty + self.within_bins

    @property
    def skill(self) -> float:
        """Share of the uncertainty that the forecast removes (Brier skill score); NaN if one class only occurs."""
        return 1.0 - self.brier / self.uncertainty if self.uncertainty > 0 else math.nan


def brier_parts(
    presence: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None, bins: int | None = 15
) -> BrierParts:
    """Reliability, resolution and uncertainty of the Brier score.

    With bins: Murphy (1973, J. Appl. Meteorol. 12:595), the remainder of Stephenson et al. (2008, Weather and
    Forecasting 23:752) kept apart. Without bins: the isotonic regression of the outcome on the probability stands for
    the observed frequency (Dimitriadis, Gneiting and Jordan 2021, PNAS 118:e2016191118), so that no choice of bins
    enters and nothing remains.

    Args:
        presence: (N,) 0 or 1.
        probability: (N,) probabilities.
        weight: (N,) sample weights, or None.
        bins: Number of equal-mass bins, those of :func:`reliability_curve`; None for none.

    Returns:
        The parts.
    """
    y, p, w = checked_pairs(presence, probability, weight, probabilities=True)
    total, prevalence = brier(y, p, w), float(np.average(y, weights=w))
    uncertainty = prevalence * (1.0 - prevalence)
    if bins is None:
        from sklearn.isotonic import IsotonicRegression

        recalibrated = IsotonicRegression(y_min=0.0, y_max=1.0).fit(p, y, sample_weight=w).predict(p)
        calibrated = brier(y, np.clip(recalibrated, 0.0, 1.0), w)
        return BrierParts(total - calibrated, uncertainty - calibrated, uncertainty, 0.0)
    curve = reliability_curve(y, p, w, bins)
    reliability = float((curve.weight * (curve.predicted - curve.observed) ** 2).sum())
    resolution = float((curve.weight * (curve.observed - prevalence) ** 2).sum())
    return BrierParts(reliability, resolution, uncertainty, total - (reliability - resolution + uncertainty))


@dataclass(frozen=True)
class CalibrationLine:
    """Logistic recalibration of probabilities: ``logit P(present) = intercept + slope * logit(probability)``.

    Attributes:
        slope: 1 if calibrated; below 1 the probabilities are too extreme, above 1 too timid. NaN where no line exists:
            one class only, one probability only, or the probability separates the classes.
        intercept: 0 if calibrated, at that slope.
        in_the_large: Intercept at slope 1; above 0 the crop is found more often than predicted. NaN for one class.
    """

    slope: float
    intercept: float
    in_the_large: float


def calibration_line(
    presence: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None
) -> CalibrationLine:
    """Slope and intercept of calibration by maximum likelihood (Cox 1958, Biometrika 45:562; Van Calster et al. 2019).

    Args:
        presence: (N,) 0 or 1.
        probability: (N,) probabilities; kept 1e-7 away from 0 and 1 before their logit is taken.
        weight: (N,) sample weights, or None.

    Returns:
        The line.
    """
    from scipy.optimize import brentq
    from scipy.special import expit, logit
    from sklearn.linear_model import LogisticRegression

    y, p, w = checked_pairs(presence, probability, weight, probabilities=True)
    w = np.ones_like(p) if w is None else w
    y, x, w = y[w > 0], logit(np.clip(p[w > 0], _TINY, 1.0 - _TINY)), w[w > 0]
    present, absent = x[y == 1], x[y == 0]
    if not (present.size and absent.size):
        return CalibrationLine(math.nan, math.nan, math.nan)
    # Logits lie within 16.2 of 0, so at +-60 every place is surely present, or surely absent.
    large = float(brentq(lambda shift: float((w * (y - expit(x + shift))).sum()), -60.0, 60.0, xtol=1e-12))
    if absent.max() <= present.min() or present.max() <= absent.min():
        return CalibrationLine(math.nan, math.nan, large)
    # Weights of mean 1 and a standardised logit: the tolerance then means the same for every table.
    middle, spread = float(np.average(x, weights=w)), float(x.std())
    fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9, max_iter=500)
    fit.fit(((x - middle) / spread)[:, None], y, sample_weight=w / w.mean())
    slope = float(fit.coef_[0, 0]) / spread
    return CalibrationLine(slope, float(fit.intercept_[0]) - slope * middle, large)


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


def checked_pairs(
    observed: np.ndarray,
    score: np.ndarray,
    weight: np.ndarray | None,
    *,
    probabilities: bool = False,
    shares: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Flat float64 arrays of one length without NaN, or a sentence that says what is wrong.

    Args:
        observed: (N,) outcomes, 0 or 1 unless ``shares``.
        score: (N,) predictions.
        weight: (N,) sample weights, or None.
        probabilities: Whether the predictions must lie between 0 and 1.
        shares: Whether the outcomes are shares between 0 and 1.

    Returns:
        Outcomes, predictions and weights (None if none were given).

    Raises:
        AgriClipError: Empty arrays, lengths that differ, values that are not finite or out of range.
    """
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
