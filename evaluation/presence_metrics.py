"""Scores that need presences and the available land, but no absences: the continuous Boyce index.

Three choices define this file. The index follows Hirzel et al. (2006): a window slides over the range of the score,
and the share of presences inside it is divided by the share of available land inside it; a good map has a ratio that
rises with the score. The settings are the customary ones: a window of a tenth of the range, 100 windows, Spearman's
correlation, and neighbouring windows of equal ratio counted once. The curve is kept, because its shape says where the
score stops to tell anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import checked_pairs
from processing.errors import AgriClipError

__all__ = ["BoyceCurve", "boyce_curve", "boyce_index"]


@dataclass(frozen=True)
class BoyceCurve:
    """Predicted-to-expected ratio along the score.

    Attributes:
        index: Spearman's correlation of ratio and score, from -1 (presences avoid high scores) over 0 (no better than
            chance) to 1; NaN if fewer than three windows differ or the ratio is the same everywhere.
        centre: (W,) middle of each window that holds available land.
        ratio: (W,) share of presences over share of available land in it; 1 is chance.
        used: (W,) False where a window repeats the ratio of the one before it.
        window: Width of a window.
    """

    index: float
    centre: np.ndarray
    ratio: np.ndarray
    used: np.ndarray
    window: float


def boyce_curve(
    present: np.ndarray,
    available: np.ndarray,
    present_weight: np.ndarray | None = None,
    available_weight: np.ndarray | None = None,
    *,
    window: float | None = None,
    foci: int = 100,
    remove_duplicates: bool = True,
) -> BoyceCurve:
    """Continuous Boyce index and its curve (Hirzel et al. 2006, Ecological Modelling 199:142, eq. 4).

    Args:
        present: (P,) scores at presences that were not fitted.
        available: (A,) scores of the land where the crop could have been found: all mapped cells or a random sample of
            them, presences included.
        present_weight: (P,) weights, or None.
        available_weight: (A,) weights (cell areas, for example), or None.
        window: Width of a window in units of the score; None for a tenth of the range.
        foci: Number of windows, evenly spaced over the range.
        remove_duplicates: Whether neighbouring windows of equal ratio count once.

    Returns:
        The curve.

    Raises:
        AgriClipError: For empty or unequal arrays, values that are not finite, or a window that does not fit.
    """
    from scipy.stats import spearmanr

    p, p_weight = _scores(present, present_weight, "presences")
    a, a_weight = _scores(available, available_weight, "available land")
    low, high = min(p.min(), a.min()), max(p.max(), a.max())
    width = 0.1 * (high - low) if window is None else float(window)
    if foci < 3:
        raise AgriClipError(f"The Boyce index needs 3 windows or more, not {foci}.")
    if high == low:  # one score everywhere: nothing can rise
        return BoyceCurve(math.nan, np.array([low]), np.ones(1), np.ones(1, dtype=bool), 0.0)
    if not 0 < width < high - low:
        raise AgriClipError(
            f"The window of the Boyce index ({width:g}) must be wider than 0 and narrower than the range of the score "
            f"({high - low:g}); leave it out for a tenth of the range."
        )
    start = np.linspace(low, high - width, foci)
    predicted, expected = _inside(p, p_weight, start, width), _inside(a, a_weight, start, width)
    known = expected > 0
    centre, ratio = start[known] + width / 2, predicted[known] / expected[known]
    ratio *= a_weight.sum() / p_weight.sum()
    # Ratios that differ by rounding are one ratio, to the ranks as well as to the search for repeats.
    rank = np.round(ratio / max(ratio.max(), 1e-300), 12)
    used = np.ones(ratio.size, dtype=bool)
    if remove_duplicates:
        used[1:] = rank[1:] != rank[:-1]
    index = math.nan
    if used.sum() >= 3 and np.ptp(rank[used]) > 0:
        index = float(spearmanr(centre[used], rank[used]).statistic)
    return BoyceCurve(index, centre, ratio, used, width)


def boyce_index(
    presence: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, *, foci: int = 100
) -> float:
    """Continuous Boyce index of labelled places, all of them taken as the available land.

    Args:
        presence: (N,) 0 or 1; absences and background points are used alike, as land.
        score: (N,) any score, larger = more likely present.
        weight: (N,) sample weights, or None.
        foci: Number of windows.

    Returns:
        The index; NaN if there is no presence, or :attr:`BoyceCurve.index` is.
    """
    y, s, w = checked_pairs(presence, score, weight)
    w = np.ones_like(s) if w is None else w
    if not (w[y == 1] > 0).any():
        return math.nan
    return boyce_curve(s[y == 1], s, w[y == 1], w, foci=foci).index


def _scores(scores: np.ndarray, weight: np.ndarray | None, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores in rising order and their weights; places of weight zero are left out."""
    values = np.asarray(scores, dtype=np.float64).ravel()
    weights = np.ones_like(values) if weight is None else np.asarray(weight, dtype=np.float64).ravel()
    if not values.size:
        raise AgriClipError(f"The Boyce index needs scores of {what}, and there are none.")
    if weights.shape != values.shape:
        raise AgriClipError(f"There are {values.size} scores of {what} but {weights.size} weights; give one for each.")
    if not (np.isfinite(values).all() and np.isfinite(weights).all()):
        raise AgriClipError(f"Scores or weights of {what} are NaN or infinite; remove these places.")
    if weights.min() < 0 or weights.sum() <= 0:
        raise AgriClipError(f"Weights of {what} must not be negative and not all zero.")
    values, weights = values[weights > 0], weights[weights > 0]
    order = np.argsort(values, kind="stable")
    return values[order], weights[order]


def _inside(values: np.ndarray, weight: np.ndarray, start: np.ndarray, width: float) -> np.ndarray:
    """(W,) weight in the closed windows from ``start`` to ``start + width``."""
    total = np.concatenate([[0.0], np.cumsum(weight)])
    # The last window ends at the largest score, which rounding of the sum must not leave outside.
    edge = 1e-12 * max(abs(start[0]), abs(start[-1] + width))
    first = np.searchsorted(values, start - edge, side="left")
    last = np.searchsorted(values, start + width + edge, side="right")
    return np.where(last > first, total[last] - total[first], 0.0)
