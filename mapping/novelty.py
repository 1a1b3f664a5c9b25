"""Where a map leaves what its model has seen: multivariate environmental similarity surfaces (MESS).

Three choices define this file. The score is that of Elith, Kearney and Phillips (2010), Methods in Ecology and
Evolution 1:330-342: negative means that at least one variable lies outside the range of the training places, by that
percentage of the range. The most dissimilar variable and the number of variables out of range stand beside the score,
because "novel" without "in what" helps nobody. A missing value says nothing about novelty: it is left out, and a cell
without any value has no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from processing.errors import AgriClipError

__all__ = ["MessReference", "MessResult", "mess"]


@dataclass(frozen=True)
class MessResult:
    """Novelty of places, each field of the shape of the places.

    Attributes:
        mess: float32, at most 100; below 0 where a variable is out of the training range; NaN where nothing is known.
        variable: int16 index of the most dissimilar variable (the one that gives the minimum); -1 where unknown.
        out_of_range: uint8 number of variables outside the training range.
    """

    mess: np.ndarray
    variable: np.ndarray
    out_of_range: np.ndarray


class MessReference:
    """The training places that novelty is measured against.

    Args:
        training: (N, M) values of M variables at N training places; NaN = missing.
        names: M names, for messages and tags.

    Raises:
        AgriClipError: If the table is not two-dimensional or a variable has no value at all.
    """

    def __init__(self, training: np.ndarray, names: Sequence[str] | None = None) -> None:
        table = np.asarray(training, dtype=np.float64)
        if table.ndim != 2 or table.shape[0] == 0:
            raise AgriClipError(f"Novelty needs a training table (places, variables), not shape {table.shape}.")
        self.names = list(names) if names is not None else [f"variable {i}" for i in range(table.shape[1])]
        if len(self.names) != table.shape[1]:
            raise AgriClipError(f"The training table has {table.shape[1]} variables but {len(self.names)} names.")
        self._sorted: list[np.ndarray] = []
        for name, column in zip(self.names, table.T, strict=True):
            known = np.sort(column[np.isfinite(column)])
            if known.size == 0:
                raise AgriClipError(f"Variable {name} is missing at every training place; remove it from the study.")
            self._sorted.append(known)

    def similarity(self, values: np.ndarray) -> np.ndarray:
        """Similarity of each variable, before the minimum is taken.

        With f the percentage of training values below p: 100 (p - min) / (max - min) if f = 0; 2 f if 0 < f <= 50;
        2 (100 - f) if 50 < f < 100; 100 (max - p) / (max - min) if f = 100. A variable that is constant in training
        has no range; its own magnitude (or 1 if it is 0) stands in for it.

        Args:
            values: (..., M).

        Returns:
            (..., M) float64, NaN where the value is missing.
        """
        places = np.asarray(values, dtype=np.float64)
        if places.shape[-1] != len(self._sorted):
            raise AgriClipError(f"Novelty was set up with {len(self._sorted)} variables, not {places.shape[-1]}.")
        result = np.empty(places.shape)
        for index, known in enumerate(self._sorted):
            value = places[..., index]
            low, high = known[0], known[-1]
            width = high - low if high > low else (abs(low) or 1.0)
            below = 100.0 * np.searchsorted(known, value, side="left") / known.size
            score = np.where(below <= 50.0, 2.0 * below, 2.0 * (100.0 - below))
            score = np.where(below == 0.0, 100.0 * (value - low) / width, score)
            score = np.where(below == 100.0, 100.0 * (high - value) / width, score)
            result[..., index] = np.where(np.isfinite(value), score, np.nan)
        return result

    def score(self, values: np.ndarray) -> MessResult:
        """Novelty of places.

        Args:
            values: (..., M).

        Returns:
            Score, most dissimilar variable and number of variables out of range, each of shape (...).
        """
        similarity = self.similarity(values)
        known = np.isfinite(similarity)
        filled = np.where(known, similarity, np.inf)
        variable = filled.argmin(axis=-1)
        minimum = np.take_along_axis(filled, variable[..., None], axis=-1)[..., 0]
        anything = known.any(axis=-1)
        return MessResult(
            mess=np.where(anything, minimum, np.nan).astype(np.float32),
            variable=np.where(anything, variable, -1).astype(np.int16),
            out_of_range=(known & (similarity < 0)).sum(axis=-1).astype(np.uint8),
        )


def mess(training: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Novelty score alone.

    Args:
        training: (N, M) values at the training places.
        values: (..., M) values at the places to judge.

    Returns:
        (...) float32; negative = outside the training range.
    """
    return MessReference(training).score(values).mess
