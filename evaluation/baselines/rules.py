"""What needs no learner: prevalence, coordinates alone, and the rules of agronomy.

Three choices define this file. A rule's score enters as a column and nothing is fitted to it: its order of the places
is the rule's own, and only the map from score to probability of presence is learnt, inside the training folds. The
rules are asked through `mapping.agronomy`, at the cells of the study's grid that hold the places, with the weather the
maps are drawn with. And a rule that a study has no data for is left out with the reason, in one sentence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from evaluation.baselines.share import fill, medians
from processing.errors import AgriClipError

__all__ = ["ENVELOPE", "HEAT_UNITS", "Prevalence", "RuleScore", "flat_coordinates", "rule_scores"]

#: Names of the rules, as columns and as baselines.
HEAT_UNITS = "heat-unit rule"
ENVELOPE = "EcoCrop envelope"

_GROUP = 256  # cells whose daily weather is held at a time


class Prevalence(ClassifierMixin, BaseEstimator):
    """The share of presences in the training rows, for every place: what any model must beat."""

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Prevalence:
        """Counts the classes of (N,) y; X is not looked at."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=False)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.classes_, label = np.unique(y, return_inverse=True)
        self.prior_ = np.bincount(label, weights=weight) / weight.sum()
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(N, K) share of each class."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite=False, reset=False)
        return np.tile(self.prior_, (len(X), 1))

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Zeros, (N,) or (N, K): it orders nothing, also where folds of different prevalence are put together."""
        chance = self.predict_proba(X)
        return np.zeros_like(chance if chance.shape[1] > 2 else chance[:, 0])

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(N,) the most frequent class."""
        chance = self.predict_proba(X)
        return self.classes_[chance.argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.poor_score = True
        return tags


class RuleScore(ClassifierMixin, BaseEstimator):
    """A score between 0 and 1 that comes ready-made as a column; nothing is fitted to the labels.

    Args:
        column: The column that holds the score; a place without one gets the median of the training rows.
    """

    def __init__(self, column: int = 0) -> None:
        self.column = column

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> RuleScore:
        """Remembers the classes and the median score; labels decide nothing."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=False)
        check_classification_targets(y)
        _check_sample_weight(sample_weight, X)
        self.classes_ = np.unique(y)
        if len(self.classes_) > 2:
            raise ValueError(f"Only binary classification is supported: there are {len(self.classes_)} classes.")
        self.middle_ = medians(X)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(N, 2): 1 - score and score."""
        check_is_fitted(self)
        X = fill(validate_data(self, X, dtype=np.float64, ensure_all_finite=False, reset=False), self.middle_)
        score = np.clip(X[:, self.column], 0.0, 1.0)
        return np.column_stack([1.0 - score, score])

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(N,) classes: presence where the score reaches one half."""
        reached = self.predict_proba(X)[:, 1] >= 0.5
        return self.classes_[reached.astype(int) * (len(self.classes_) - 1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.poor_score = True
        return tags


def flat_coordinates(x: np.ndarray, y: np.ndarray, geographic: bool) -> np.ndarray:
    """(N, 2) coordinates on which a distance means the same in both directions.

    Args:
        x: (N,) eastings or longitudes.
        y: (N,) northings or latitudes.
        geographic: Whether they are degrees: longitudes are then shortened by the cosine of the mean latitude.
    """
    shrink = np.cos(np.deg2rad(np.mean(y))) if geographic else 1.0
    return np.column_stack([np.asarray(x, dtype=np.float64) * shrink, np.asarray(y, dtype=np.float64)])


def rule_scores(data: Any, x: np.ndarray, y: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Scores of the agronomic rules at places.

    Args:
        data: ``processing.study_data.StudyData``.
        x: (N,) eastings or longitudes in the grid's CRS.
        y: (N,) northings or latitudes.

    Returns:
        Rule -> (N,) score between 0 and 1, NaN where the climate is not known; and rule -> why it was left out.
        The heat-unit rule's score is the share of drawn years in which both crops ripen; the envelope's is EcoCrop's.
    """
    from mapping.agronomy.envelope import sequence_envelope
    from mapping.agronomy.heat_units import HeatUnitRule, heat_units
    from mapping.agronomy.study_layers import agronomy_inputs
    from mapping.agronomy.weather import draw_weather
    from processing.rasters import transform_points

    if data.study.agronomy is None:
        why = f"the study '{data.study.name}' names no monthly temperature and rain (part `agronomy`)"
        return {}, dict.fromkeys((HEAT_UNITS, ENVELOPE), why)
    inputs = agronomy_inputs(data.study)
    if inputs is None:
        raise AgriClipError(f"The study '{data.study.name}' has no monthly climate of the present; check `agronomy`.")
    row, column, mean, spread, rain = _climate_at(data, inputs, x, y)
    heat, envelope = np.full(len(row), np.nan), np.full(len(row), np.nan)
    known = np.isfinite(mean).all(axis=0) & np.isfinite(spread).all(axis=0) & np.isfinite(rain).all(axis=0)
    place = data.grid.transform
    centre_x, centre_y = place.c + (column + 0.5) * place.a, place.f + (row + 0.5) * place.e
    latitude = transform_points(centre_x, centre_y, data.grid.crs, "EPSG:4326")[1]
    for hemisphere, here in (("north", latitude >= 0), ("south", latitude < 0)):
        cells = np.flatnonzero(known & here)
        rule = replace(HeatUnitRule(), hemisphere=hemisphere)
        for start in range(0, len(cells), _GROUP):
            group = cells[start : start + _GROUP]
            weather = draw_weather(mean[:, group], spread[:, group], rain[:, group], row[group], column[group])
            result = heat_units(weather.minimum, weather.maximum, weather.rain, rule, irrigated=inputs.irrigated)
            heat[group] = result.probability
    if known.any():
        monthly = mean[:, known], mean[:, known] - 0.5 * spread[:, known], rain[:, known]
        envelope[known] = sequence_envelope(*monthly, irrigated=inputs.irrigated).score
    _, index, inside = _unique_cells(data, x, y)
    return {HEAT_UNITS: np.where(inside, heat[index], np.nan), ENVELOPE: np.where(inside, envelope[index], np.nan)}, {}


def _unique_cells(data: Any, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(2, cells) rows and columns that hold places, (N,) which of them is whose, (N,) whether inside the grid."""
    row, column = data.grid.cell_of(x, y)
    inside = (row >= 0) & (row < data.grid.height) & (column >= 0) & (column < data.grid.width)
    held = np.stack([np.clip(row, 0, data.grid.height - 1), np.clip(column, 0, data.grid.width - 1)])
    cells, index = np.unique(held, axis=1, return_inverse=True)
    return cells, np.ravel(index), inside


def _climate_at(
    data: Any, inputs: Any, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, column (cells,) and mean temperature, diurnal range, rain (12, cells) of the cells that hold places."""
    from mapping.agronomy.layers import read_climate

    row, column = _unique_cells(data, x, y)[0]
    parts: list[list[np.ndarray]] = [[], [], []]
    for number in np.unique(row):  # a row of the grid at a time: rows without places are not read
        here = column[row == number]
        for part, values in zip(
            parts, read_climate(inputs, data.grid, slice(int(number), int(number) + 1)), strict=True
        ):
            part.append(values[:, here])
    mean, spread, rain = (np.concatenate(part, axis=1) for part in parts)
    return row, column, mean, spread, rain
