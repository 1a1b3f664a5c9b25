"""Fitting what is applied at prediction time: a map to honest probabilities, and conformal thresholds.

Everything here wants predictions for places that the network has not seen, and works block by block wherever it
judges itself: neighbouring places are alike, so a place says little about a method that was fitted on its neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import isotonic_regression
from sklearn.model_selection import StratifiedGroupKFold

from modeling_agriclip.calibration_agriclip import LOGIT_EPS, METHODS, MIN_STEP, Calibration, ConformalLevel
from processing.errors import AgriClipError, nearest

ALPHAS = (0.05, 0.1, 0.2)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """How prediction sets do on places whose class is known.

    Attributes:
        places: Number of places.
        pooled: Share of places whose set holds the true class; wanted is 1 - alpha or more.
        unsuitable: The same among unsuitable places; NaN without any.
        suitable: The same among suitable places.
        mean_size: Mean number of classes in a set.
        undecided: Share of places with both classes in their set.
        strange: Share of places with neither.
    """

    places: int
    pooled: float
    unsuitable: float
    suitable: float
    mean_size: float
    undecided: float
    strange: float


@dataclass(frozen=True)
class CrossFit:
    """Places calibrated by blocks other than their own.

    Attributes:
        probabilities: (N,) calibrated.
        sets: For each alpha (N, 2) bool, `unsuitable` and `suitable`.
        fold: (N,) number of the fold that a place was left out with.
        methods: Method of each fold.
    """

    probabilities: Floats
    sets: dict[float, NDArray[np.bool_]]
    fold: NDArray[np.int64]
    methods: list[str]


def fit_calibration(
    probabilities: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    method: str = "platt",
    groups: Sequence[object] | None = None,
    alphas: Sequence[float] = ALPHAS,
    *,
    blocks: ArrayLike | None = None,
    folds: int = 5,
    block_weights: bool = False,
    threshold: float | None = None,
) -> Calibration:
    """Fit a calibration to held-out predictions.

    `temperature` scales the network's logit (Guo et al. 2017) and leaves the places at 1/2 where they are; `platt`
    shifts it too. Both are fitted to Platt's smoothed targets, which keep them finite where the classes are separable.
    `isotonic` is centred isotonic regression (Oron and Flournoy 2017): each flat step of the ordinary one is a single
    knot, so that the order of places survives.

    The thresholds are split-conformal, for each class by itself: of n scores 1 - p_class number
    ceil((n + 1)(1 - alpha)) from below. Fitting the map on the same places does them no harm: it never reverses the
    order, on which alone they depend. Where there are too few places the threshold is 1, and the class is never ruled
    out.

    With `block_weights` each block counts once and not by its number of places: place i of a block with n_i places of
    the class weighs 1 / n_i, and the threshold is where the weights reach (B + 1)(1 - alpha) for B blocks
    (hierarchical conformal prediction, Lee, Barber and Willett 2023). That is the guarantee for a place in a *new*
    block, which is what a map needs; the plain one is for new places in the blocks at hand, and promises too much
    where places within a block are alike. It costs wider sets.

    Args:
        probabilities: (N,) predicted probability, of places the network has not seen.
        labels: (N,) 0 or 1, or observed shares between.
        weights: (N,) weight of each place in the map, such as its number of trials; thresholds count places.
        method: One of `METHODS`, or `auto`: the one with the lowest log loss on blocks left out.
        groups: (N,) names of groups that get thresholds of their own where they have places enough.
        alphas: Levels of the sets; empty for none.
        blocks: (N,) spatial block of each place; `auto` and `block_weights` need it.
        folds: Folds of blocks that `auto` leaves out in turn.
        block_weights: Each block counts once in the thresholds.
        threshold: A place is suitable where its label exceeds this; thresholds on shares need it.

    Raises:
        AgriClipError: The inputs do not belong together, are out of range or hold one class only.
    """
    data = _Places.check(probabilities, labels, weights, groups, blocks, threshold)
    if method != "auto" and method not in METHODS:
        raise AgriClipError(f"There is no method '{method}'; {nearest(method, ('auto', *METHODS))}")
    if block_weights and data.blocks is None:
        raise AgriClipError("`block_weights` counts each block once; pass `blocks`, one name a place.")
    if alphas and data.presence is None:
        raise AgriClipError("Conformal sets need labels of 0 or 1; give `threshold` for shares, or `alphas=()`.")
    wrong = [alpha for alpha in alphas if not 0 < alpha < 1]
    if wrong or len(set(alphas)) != len(alphas):
        raise AgriClipError(f"The levels of the sets must differ and lie between 0 and 1, got {list(alphas)}.")
    if method == "auto":
        method = _choose_method(data, folds)
    calibration = _fit_map(data, method)
    if not alphas:
        return calibration
    return _with_thresholds(calibration, data, tuple(float(alpha) for alpha in alphas), block_weights)


def conformal_coverage(
    calibration: Calibration,
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[object] | None = None,
    threshold: float | None = None,
) -> dict[float, Coverage]:
    """How the sets of a calibration do on other places than it was fitted on, for each of its levels.

    Args:
        calibration: With conformal thresholds.
        probabilities: (N,) as the network gave them, not calibrated yet.
        labels: (N,) 0 or 1, or shares with a `threshold`.
        groups: (N,) group of each place.
        threshold: A place is suitable where its label exceeds this.

    Raises:
        AgriClipError: The inputs do not belong together, or labels are neither 0 nor 1.
    """
    data = _Places.check(probabilities, labels, None, groups, None, threshold, one_class=True)
    if data.presence is None:
        raise AgriClipError("Coverage needs labels of 0 or 1; give `threshold` for shares.")
    return {
        level.alpha: coverage_of(_sets(calibration, data, level.alpha), data.presence) for level in calibration.levels
    }


def coverage_of(sets: NDArray[np.bool_], presence: ArrayLike) -> Coverage:
    """Coverage and size of prediction sets (N, 2) where the class (N,) is known to be 0 or 1."""
    truth = np.asarray(presence).astype(np.int64)
    hit = sets[np.arange(len(truth)), truth]
    size = sets.sum(axis=1)

    def share(of: NDArray[np.bool_]) -> float:
        return float(hit[of].mean()) if of.any() else math.nan

    return Coverage(
        places=len(truth),
        pooled=float(hit.mean()),
        unsuitable=share(truth == 0),
        suitable=share(truth == 1),
        mean_size=float(size.mean()),
        undecided=float((size == 2).mean()),
        strange=float((size == 0).mean()),
    )


def cross_fit(
    probabilities: ArrayLike,
    labels: ArrayLike,
    blocks: ArrayLike,
    folds: int = 5,
    weights: ArrayLike | None = None,
    method: str = "platt",
    groups: Sequence[object] | None = None,
    alphas: Sequence[float] = ALPHAS,
    *,
    block_weights: bool = False,
    threshold: float | None = None,
) -> CrossFit:
    """Calibrate each block by a fit to the others: what a calibration is worth, from the data at hand.

    Scores of the result are honest; those of places under the calibration they were fitted to are not. With `auto`
    the method too is chosen without the block.

    Args:
        probabilities: (N,) predicted probability, of places the network has not seen.
        labels: (N,) 0 or 1, or shares.
        blocks: (N,) spatial block of each place; a block is never split.
        folds: How many times blocks are left out.
        weights: As for [`fit_calibration`], like the rest.
        method: Method of the map.
        groups: Groups with thresholds of their own.
        alphas: Levels of the sets.
        block_weights: Each block counts once in the thresholds.
        threshold: A place is suitable where its label exceeds this.

    Raises:
        AgriClipError: As for [`fit_calibration`]; or the blocks cannot be divided.
    """
    data = _Places.check(probabilities, labels, weights, groups, blocks, threshold)
    fold = _block_folds(data, folds)
    calibrated = np.empty(len(data.probabilities))
    sets = {float(alpha): np.zeros((len(calibrated), 2), dtype=bool) for alpha in alphas}
    methods = []
    for k in range(int(fold.max()) + 1):
        others, own = data.where(fold != k), data.where(fold == k)
        calibration = fit_calibration(
            others.probabilities,
            others.labels,
            others.weights,
            method,
            others.groups,
            alphas,
            blocks=others.blocks,
            folds=folds,
            block_weights=block_weights,
            threshold=threshold,
        )
        methods.append(calibration.method)
        calibrated[fold == k] = _apply(calibration, own.probabilities)
        for alpha, found in sets.items():
            found[fold == k] = _sets(calibration, own, alpha)
    return CrossFit(calibrated, sets, fold, methods)


@dataclass(frozen=True)
class _Places:
    """Checked inputs of N places.

    Attributes:
        probabilities: (N,) in [0, 1].
        labels: (N,) in [0, 1].
        weights: (N,) with mean 1.
        presence: (N,) bool; None where labels are shares without a threshold.
        groups: Names of the places' groups, or None.
        blocks: (N,) number of each place's block, or None.
    """

    probabilities: Floats
    labels: Floats
    weights: Floats
    presence: NDArray[np.bool_] | None
    groups: list[str] | None
    blocks: NDArray[np.int64] | None

    @classmethod
    def check(
        cls,
        probabilities: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None,
        groups: Sequence[object] | None,
        blocks: ArrayLike | None,
        threshold: float | None,
        one_class: bool = False,
    ) -> _Places:
        """Refuse what cannot be calibrated, in one sentence."""
        p = np.asarray(probabilities, dtype=np.float64).ravel()
        y = np.asarray(labels, dtype=np.float64).ravel()
        w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
        numbers = None if blocks is None else np.unique(np.asarray(blocks), return_inverse=True)[1].ravel()
        parts: dict[str, Any] = {"labels": y, "weights": w, "groups": groups, "blocks": numbers}
        for name, part in parts.items():
            if part is not None and len(part) != len(p):
                raise AgriClipError(f"There are {len(p)} probabilities and {len(part)} {name}; give one a place.")
        if not len(p):
            raise AgriClipError("There are no places to calibrate on.")
        for name, values in (("probabilities", p), ("labels", y), ("weights", w)):
            bad = int((~np.isfinite(values)).sum())
            if bad:
                raise AgriClipError(f"{bad} {name} are NaN or infinite; leave these places out.")
        for name, values in (("Probabilities", p), ("Labels", y)):
            if values.min() < 0 or values.max() > 1:
                raise AgriClipError(
                    f"{name} must lie between 0 and 1, but reach from {values.min():g} to {values.max():g}."
                )
        if w.min() < 0 or w.sum() == 0:
            raise AgriClipError("Weights must not be negative, nor all 0.")
        presence = None
        if threshold is not None:
            presence = y > threshold
        elif np.isin(y, (0.0, 1.0)).all():
            presence = y == 1
        same = np.ptp(y[w > 0]) == 0 or (presence is not None and presence.all() == presence.any())
        if same and not one_class:
            raise AgriClipError(
                f"All {len(p)} places are of one class; a calibration needs suitable and unsuitable ones."
            )
        named = None if groups is None else [str(group) for group in groups]
        return cls(p, y, w / w.mean(), presence, named, numbers)

    def where(self, inside: NDArray[np.bool_]) -> _Places:
        """The places that are `inside`."""
        return _Places(
            self.probabilities[inside],
            self.labels[inside],
            self.weights[inside],
            None if self.presence is None else self.presence[inside],
            None if self.groups is None else [name for name, keep in zip(self.groups, inside, strict=True) if keep],
            None if self.blocks is None else self.blocks[inside],
        )


def _fit_map(data: _Places, method: str) -> Calibration:
    """The map alone, without thresholds."""
    if method == "none":
        return Calibration(fitted_on=len(data.labels))
    if method in ("temperature", "platt"):
        scale, shift = _fit_sigmoid(data, shifted=method == "platt")
        return Calibration(method, scale, shift, fitted_on=len(data.labels))
    x, y = _fit_isotonic(data)
    # A step of one class only is not certain. The rule of succession: after n failures in a row the next success has
    # probability 1 / (n + 2), here with the effective number of places.
    count = data.weights.sum() ** 2 / np.square(data.weights).sum()
    return Calibration(method, x=x, y=y, epsilon=float(1 / (count + 2)), fitted_on=len(data.labels))


def _fit_sigmoid(data: _Places, shifted: bool) -> tuple[float, float]:
    """Scale and shift of the logit with the lowest weighted log loss against Platt's smoothed targets; or no shift."""
    score = logit(np.clip(data.probabilities, LOGIT_EPS, 1 - LOGIT_EPS))
    total, positive = data.weights.sum(), (data.weights * data.labels).sum()
    low, high = 1 / (total - positive + 2), (positive + 1) / (positive + 2)
    target = low + data.labels * (high - low)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        value = parameters[0] * score + parameters[1]
        losses = np.logaddexp(0, value) - target * value
        slope = data.weights * (expit(value) - target)
        return float((data.weights * losses).sum() / total), np.array([(slope * score).sum(), slope.sum()]) / total

    # Convex, so any start will do. A scale of 0.01 is a network that knows nothing, not even in reverse.
    bounds = [(0.01, 100.0), (-50.0, 50.0) if shifted else (0.0, 0.0)]
    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9})
    return float(found.x[0]), float(found.x[1])


def _fit_isotonic(data: _Places) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of centred isotonic regression: each flat step stands at the weighted mean of its probabilities."""
    used = data.weights > 0
    # Ties are one place with the sum of their weights.
    grid, place = np.unique(np.round(data.probabilities[used] / MIN_STEP / 2), return_inverse=True)
    mass = np.bincount(place, weights=data.weights[used])
    centre = np.bincount(place, weights=data.weights[used] * data.probabilities[used]) / mass
    label = np.bincount(place, weights=data.weights[used] * data.labels[used]) / mass
    fitted = np.clip(isotonic_regression(label, sample_weight=mass, y_min=0.0, y_max=1.0), 0.0, 1.0)
    _, step = np.unique(fitted, return_inverse=True)
    weight = np.bincount(step, weights=mass)
    x = np.bincount(step, weights=mass * centre) / weight
    y = np.bincount(step, weights=mass * fitted) / weight
    keep = np.append(np.diff(x) >= MIN_STEP, True)
    if keep.sum() == 1:  # predictions without any order
        mean = float((weight * y).sum() / weight.sum())
        return (0.0, 1.0), (mean, mean)
    return tuple(x[keep].tolist()), tuple(y[keep].tolist())


def _choose_method(data: _Places, folds: int) -> str:
    """The method with the lowest log loss on blocks that it was not fitted on; the simpler one of equals."""
    if data.blocks is None:
        raise AgriClipError("`method='auto'` compares methods on blocks left out; pass `blocks`, one name a place.")
    fold = _block_folds(data, folds)
    losses = {}
    for method in METHODS:
        total = 0.0
        for k in range(int(fold.max()) + 1):
            own = data.where(fold == k)
            p = np.clip(_apply(_fit_map(data.where(fold != k), method), own.probabilities), LOGIT_EPS, 1 - LOGIT_EPS)
            total -= float((own.weights * (own.labels * np.log(p) + (1 - own.labels) * np.log1p(-p))).sum())
        losses[method] = total
    return min(losses, key=lambda method: losses[method])


def _block_folds(data: _Places, folds: int) -> NDArray[np.int64]:
    """(N,) fold of each place: blocks stay whole, and both classes are spread as evenly as they allow."""
    assert data.blocks is not None
    count = len(np.unique(data.blocks))
    if folds < 2 or count < 2:
        raise AgriClipError(f"Leaving blocks out needs 2 folds and 2 blocks or more, got {folds} and {count}.")
    # Shares without a threshold are high or low about their median, which is never all there is.
    high = data.labels > np.median(data.labels) if data.presence is None else data.presence
    if high.all() == high.any():
        high = data.labels >= data.labels.mean()
    folds = min(folds, count, int(high.sum()), int((~high).sum()))
    fold = np.zeros(len(data.labels), dtype=np.int64)
    if folds >= 2:
        splits = StratifiedGroupKFold(folds).split(data.probabilities, high, data.blocks)
        for k, (_, own) in enumerate(splits):
            fold[own] = k
        # A fold can stay empty where blocks are few and uneven.
        fold = np.unique(fold, return_inverse=True)[1].ravel()
    for k in range(int(fold.max()) + 1):
        rest = high[fold != k]
        if rest.size == 0 or rest.all() == rest.any():
            raise AgriClipError(
                f"One class lies in too few of the {count} blocks: without some of them only the other is left."
            )
    return fold


def _with_thresholds(
    calibration: Calibration, data: _Places, alphas: tuple[float, ...], block_weights: bool
) -> Calibration:
    """The calibration with conformal thresholds, pooled and of each group."""
    assert data.presence is not None
    p, presence = _apply(calibration, data.probabilities), data.presence
    scores = [(p, ~presence), (1 - p, presence)]
    names = np.asarray([] if data.groups is None else data.groups)

    def level(alpha: float) -> ConformalLevel:
        def pair(inside: NDArray[np.bool_]) -> list[float]:
            found = []
            for score, of_class in scores:
                chosen = inside & of_class
                blocks = data.blocks[chosen] if block_weights and data.blocks is not None else None
                found.append(_quantile(score[chosen], alpha, blocks))
            return found

        everywhere = pair(np.ones(len(p), dtype=bool))
        groups = {}
        for name in sorted(set(names.tolist())):
            own = pair(names == name)
            # inf: too few places for a threshold of its own.
            if not all(map(math.isinf, own)):
                both = [a if math.isinf(b) else b for a, b in zip(everywhere, own, strict=True)]
                groups[name] = (min(both[0], 1.0), min(both[1], 1.0))
        return ConformalLevel(alpha, (min(everywhere[0], 1.0), min(everywhere[1], 1.0)), groups)

    def count(inside: NDArray[np.bool_]) -> tuple[int, int]:
        return int((~presence & inside).sum()), int((presence & inside).sum())

    return replace(
        calibration,
        levels=tuple(level(alpha) for alpha in alphas),
        counts=count(np.ones(len(p), dtype=bool)),
        group_counts={name: count(names == name) for name in sorted(set(names.tolist()))},
    )


def _quantile(scores: Floats, alpha: float, blocks: NDArray[np.int64] | None) -> float:
    """Smallest score at which the weights reach (total + 1)(1 - alpha); inf where they never do."""
    order = np.argsort(scores, kind="stable")
    weights = np.ones(len(scores))
    if blocks is not None and len(blocks):
        _, block, size = np.unique(blocks, return_inverse=True, return_counts=True)
        weights = 1 / size[block.ravel()]
    reached = np.cumsum(weights[order])
    total = reached[-1] if len(reached) else 0.0
    # The tolerance keeps (n + 1)(1 - alpha) a whole number where it is one.
    place = int(np.searchsorted(reached, (total + 1) * (1 - alpha) - 1e-9))
    return float(scores[order[place]]) if place < len(scores) else math.inf


def _apply(calibration: Calibration, probabilities: Floats) -> Floats:
    return calibration.apply(torch.from_numpy(probabilities)).numpy()


def _sets(calibration: Calibration, data: _Places, alpha: float) -> NDArray[np.bool_]:
    values = calibration.apply(torch.from_numpy(data.probabilities))
    return calibration.prediction_sets(values, alpha, data.groups).numpy()


__all__ = ["Coverage", "CrossFit", "conformal_coverage", "coverage_of", "cross_fit", "fit_calibration"]
