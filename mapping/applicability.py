"""Where a map may be trusted: the area of applicability of a model, and conformal sets as map classes.

Three choices define this file. The dissimilarity index is that of Meyer and Pebesma (2021), Methods in Ecology and
Evolution 12:1620-1633, from the formulas of the paper: distance to the nearest training place in the space of
standardised and weighted predictors, over the mean distance between training places. What counts as too far is learnt
from the same folds that the model was scored on, so the threshold means "no farther than the places it was tested at".
And unlike MESS it sees new combinations of values that are each within range; so both layers belong beside a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from processing.errors import AgriClipError

try:
    from scipy.spatial import cKDTree
    from scipy.spatial.distance import cdist
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("The area of applicability needs SciPy: pip install 'agriclip[eval]'.") from error

__all__ = [
    "APPLICABILITY_CLASSES",
    "SET_CLASSES",
    "Applicability",
    "ApplicabilityReference",
    "prediction_set_layer",
]

#: Class value -> (title, colour) of the area of applicability.
APPLICABILITY_CLASSES: dict[int, tuple[str, str]] = {
    1: ("inside the area of applicability", "#d9d9d9"),
    2: ("outside: unlike every training place", "#e66101"),
}

#: Class value -> (title, colour) of conformal prediction sets.
SET_CLASSES: dict[int, tuple[str, str]] = {
    1: ("unsuitable", "#d9d9d9"),
    2: ("suitable", "#1b7837"),
    3: ("undecided: both are possible", "#fdb863"),
    4: ("strange: neither fits", "#762a83"),
}

_EXACT_PLACES = 4000  # mean pairwise distance from all places up to here, from a sample of as many beyond
_CHUNK = 512


@dataclass(frozen=True)
class Applicability:
    """Applicability of a model at places, each field of the shape of the places.

    Attributes:
        dissimilarity: float32 dissimilarity index, 0 at a training place; NaN where a predictor is missing.
        inside: bool, whether the index is at most the threshold; False where it is unknown.
    """

    dissimilarity: NDArray[np.float32]
    inside: NDArray[np.bool_]

    @property
    def classes(self) -> NDArray[np.uint8]:
        """The classes of `APPLICABILITY_CLASSES` as uint8, 0 where unknown."""
        known = np.isfinite(self.dissimilarity)
        return np.where(known, np.where(self.inside, 1, 2), 0).astype(np.uint8)


class ApplicabilityReference:
    """The training places that dissimilarity is measured from.

    Args:
        training: (N, M) predictors at the training places. Places with a missing value are left out.
        folds: (N,) fold of each place in the cross-validation that the model was scored by; None = every place is a
            fold of its own.
        weights: (M,) importance of the predictors, for example from `mapping.responses.permutation_importances`; 1
            each by default. A negative importance is chance and counts as 0.
        names: M names, for messages.
        seed: Seed of the sample of places where there are too many for all pairs.

    Attributes:
        names: Names of the predictors.
        used: (M,) bool, predictors that count: of positive weight, and not the same at all training places.
        mean_distance: Mean distance between two training places, in weighted standard deviations.
        sampled: Places that `mean_distance` is from, or 0 where it is from all of them.
        training_dissimilarity: (N',) index of each complete training place to the nearest one of another fold.
        threshold: Largest of those indices that is not above the third quartile by more than 1.5 interquartile
            ranges, i.e. the upper whisker of their box plot.

    Raises:
        AgriClipError: The table, folds or weights do not fit each other, or say nothing.
    """

    def __init__(
        self,
        training: ArrayLike,
        folds: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        table = np.asarray(training, dtype=np.float64)
        if table.ndim != 2:
            raise AgriClipError(f"Applicability needs a training table (places, predictors), not shape {table.shape}.")
        count, width = table.shape
        self.names = [f"predictor {i}" for i in range(width)] if names is None else list(names)
        if len(self.names) != width:
            raise AgriClipError(f"The training table has {width} predictors but {len(self.names)} names.")
        groups = np.arange(count) if folds is None else np.asarray(folds).reshape(-1)
        if len(groups) != count:
            raise AgriClipError(f"There are {count} training places but {len(groups)} folds; give one fold a place.")
        weight = self._check_weights(weights)
        complete = np.isfinite(table).all(axis=1)
        table, groups = table[complete], groups[complete]
        if len(np.unique(groups)) < 2:
            raise AgriClipError(
                f"The {len(table)} complete training places lie in {len(np.unique(groups))} fold; a threshold needs "
                "places of at least 2 folds."
            )
        mean, spread = table.mean(axis=0), table.std(axis=0, ddof=1)
        # A constant predictor has no standard deviation to measure by; MESS tells where it is left.
        self.used = (weight > 0) & (spread > 1e-12 * np.maximum(np.abs(mean), 1e-300))
        if not self.used.any():
            raise AgriClipError(
                "No predictor of positive weight varies between the training places, so nothing can be unlike them."
            )
        self._mean = mean[self.used]
        self._scale = (weight / np.where(self.used, spread, 1.0))[self.used]
        places = (table[:, self.used] - self._mean) * self._scale
        self._tree = cKDTree(places)
        self.sampled = _EXACT_PLACES if len(places) > _EXACT_PLACES else 0
        chosen = places
        if self.sampled:
            chosen = places[np.random.default_rng(seed).choice(len(places), self.sampled, replace=False)]
        self.mean_distance = _mean_pairwise_distance(chosen)
        nearest = np.empty(len(places))
        for fold in np.unique(groups):
            own = groups == fold
            nearest[own] = cKDTree(places[~own]).query(places[own])[0]
        self.training_dissimilarity = nearest / self.mean_distance
        low, high = np.quantile(self.training_dissimilarity, [0.25, 0.75])
        # A place on the fence is no outlier, however the processor rounds.
        fence = (high + 1.5 * (high - low)) * (1 + 1e-9)
        self.threshold = float(self.training_dissimilarity[self.training_dissimilarity <= fence].max())

    @classmethod
    def of_study(cls, data: Any, weights: ArrayLike | None = None) -> ApplicabilityReference:
        """Reference of a study: predictors and folds of its labelled sites.

        Args:
            data: ``processing.study_data.StudyData``.
            weights: (M,) importance of its predictors; 1 each by default.
        """
        sites = data.labels()
        folds = None if data.study.splits is None else data.folds()
        names = [variable.name for variable in data.variables]
        return cls(data.predictors(sites.x, sites.y), folds, weights, names)

    def _check_weights(self, weights: ArrayLike | None) -> NDArray[np.float64]:
        if weights is None:
            return np.ones(len(self.names))
        given = np.asarray(weights, dtype=np.float64).reshape(-1)
        if len(given) != len(self.names):
            raise AgriClipError(f"There are {len(self.names)} predictors but {len(given)} weights; give one for each.")
        if not np.isfinite(given).all():
            name = self.names[int(np.flatnonzero(~np.isfinite(given))[0])]
            raise AgriClipError(f"The weight of predictor {name} is not a number; give its importance, or 0.")
        return np.maximum(given, 0.0)

    def score(self, values: ArrayLike) -> Applicability:
        """Dissimilarity of places from the training places, and whether the model may be applied there.

        Args:
            values: (..., M) predictors in the units of the training table.

        Returns:
            Index and verdict, each of shape (...). A predictor of no weight may be missing.

        Raises:
            AgriClipError: The places have another number of predictors.
        """
        places = np.asarray(values, dtype=np.float64)
        if places.shape[-1:] != (len(self.names),):
            raise AgriClipError(
                f"Applicability was set up with {len(self.names)} predictors, so places of shape {places.shape} do "
                "not fit; give them in the last dimension."
            )
        flat = (places.reshape(-1, len(self.names))[:, self.used] - self._mean) * self._scale
        index = np.full(len(flat), np.nan, dtype=np.float32)
        known = np.isfinite(flat).all(axis=1)
        if known.any():
            index[known] = self._tree.query(flat[known])[0] / self.mean_distance
        shaped = index.reshape(places.shape[:-1])
        with np.errstate(invalid="ignore"):
            # In single precision on both sides: the place that sets the threshold is inside.
            inside = shaped <= np.float32(self.threshold)
        return Applicability(shaped, inside)


def _mean_pairwise_distance(places: NDArray[np.float64]) -> float:
    """Mean Euclidean distance between two different rows of (N, M), a chunk of rows at a time."""
    total = 0.0
    for start in range(0, len(places), _CHUNK):
        total += float(cdist(places[start : start + _CHUNK], places[start:]).sum())
        # Pairs within the chunk were counted twice, and every other pair once.
        total -= float(cdist(places[start : start + _CHUNK], places[start : start + _CHUNK]).sum()) / 2
    return total / (len(places) * (len(places) - 1) / 2)


def prediction_set_layer(
    calibration: Any, probability: ArrayLike, level: float = 0.9, group: str | Sequence[str] | None = None
) -> NDArray[np.uint8]:
    """Conformal prediction set of each cell as a class of `SET_CLASSES`.

    Of places like those that the thresholds were fitted on, of either class at least a share `level` have a set that
    holds the truth. Outside the area of applicability, and in another climate, nothing is guaranteed.

    Args:
        calibration: The ensemble's ``modeling_agriclip.Calibration``.
        probability: (...) calibrated probabilities as in the map; NaN = no data.
        level: Share of places whose set holds the truth, such as 0.9.
        group: Group of all cells, or of each, where thresholds were fitted by group.

    Returns:
        uint8 (...): 1 unsuitable, 2 suitable, 3 undecided (both), 4 strange (neither), 0 no data.

    Raises:
        AgriClipError: The level was not fitted, or the probabilities are none.
    """
    import torch

    values = np.asarray(probability, dtype=np.float64)
    known = np.isfinite(values)
    if ((values[known] < 0) | (values[known] > 1)).any():
        raise AgriClipError("Prediction sets need probabilities between 0 and 1; give the layer `probability`.")
    if not 0 < level < 1:
        raise AgriClipError(f"The level of a prediction set must lie between 0 and 1, not {level:g}; 0.9 is usual.")
    try:
        sets = calibration.prediction_sets(torch.from_numpy(values), 1.0 - level, group).numpy()
    except ValueError as error:
        raise AgriClipError(str(error)) from error
    unsuitable, suitable = sets[..., 0], sets[..., 1]
    classes = np.select([unsuitable & suitable, suitable, unsuitable], [3, 2, 1], default=4)
    return np.where(known, classes, 0).astype(np.uint8)
