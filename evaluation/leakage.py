"""What a test set shares with its training set, and whether it lies as far from it as the map does.

Three choices define this file. It looks at the places that were used, not at how they were chosen, so it holds for
any split. Folds are pooled: each test place is held against the training places of its own fold. Leaks (the same
place, the same row of predictors, pixels seen in training) are told apart from a score that is too near or too far for
the map, because the first is a fault and the second a matter of what one wants to know (Wadoux et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.distances import checked_points, chip_neighbours, nearest_distance
from processing.errors import AgriClipError, nearest

if TYPE_CHECKING:
    from evaluation.splits import TrainTest

__all__ = ["FAULTS", "LeakageReport", "check_leakage"]

#: Fault -> how the verdict says it of a number of test places.
FAULTS: dict[str, str] = {
    "identical_places": "lie where a training place lies",
    "identical_rows": "have the very predictors of a training place",
    "overlapping_chips": "share image pixels with a training place",
}

# Test places count as like the map if the two distributions of distance lie nearer than this share of the map's mean.
_ALIKE = 0.25


@dataclass(frozen=True)
class LeakageReport:
    """What test places share with training places, and how far apart they are.

    Attributes:
        tested: Number of test places, all folds together.
        identical_places: Test places within the tolerance of a training place.
        identical_rows: Test places whose predictors all equal those of a training place; None if not asked for.
        overlapping_chips: Test places whose image chip overlaps that of a training place; None if not asked for.
        distance: (tested,) distance of each test place to the nearest training place.
        map_distance: (M,) the same of the places to be mapped; None if not asked for.
        wasserstein: Area between the two distributions of distance, the statistic W that kNNDM minimises (Linnenbrink
            et al. 2024, Geosci. Model Dev. 17:5897); NaN without places to be mapped.
        metric: Whether distances are metres (else units of the coordinates).
    """

    tested: int
    identical_places: int
    identical_rows: int | None
    overlapping_chips: int | None
    distance: np.ndarray
    map_distance: np.ndarray | None
    wasserstein: float
    metric: bool

    @property
    def faults(self) -> dict[str, int]:
        """Faults that occur -> number of test places."""
        return {name: count for name in FAULTS if (count := getattr(self, name))}

    @property
    def shift(self) -> float:
        """Mean distance of test places less that of the map; below 0 the score flatters, above 0 it is severe."""
        if self.map_distance is None:
            return math.nan
        return float(self.distance.mean() - self.map_distance.mean())

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.faults:
            told = [f"{count} {FAULTS[name]}" for name, count in self.faults.items()]
            return (
                f"The split leaks: of {self.tested} test places {', '.join(told)}; "
                "use larger blocks or a buffer, or remove duplicates."
            )
        there = f"lie {self._length(float(np.median(self.distance)))} from training in the median"
        if self.map_distance is None:
            return f"No leak was found among {self.tested} test places, which {there}."
        mapped = f"mapped places {self._length(float(np.median(self.map_distance)))}"
        if self.wasserstein <= _ALIKE * float(self.map_distance.mean()):
            meaning = "so the score speaks for this map"
        elif self.shift < 0:
            meaning = "so the score flatters this map"
        else:
            meaning = "so the score is of transfer, severer than this map"
        return f"No leak was found; test places {there}, {mapped}, {meaning}."

    def _length(self, value: float) -> str:
        return f"{value / 1000:.3g} km" if self.metric else f"{value:.3g} units"


def check_leakage(
    x: np.ndarray,
    y: np.ndarray,
    split: TrainTest | Iterable[TrainTest] | np.ndarray,
    *,
    features: np.ndarray | None = None,
    chip_extent: float | None = None,
    map_x: np.ndarray | None = None,
    map_y: np.ndarray | None = None,
    geographic: bool = False,
    tolerance: float = 0.0,
    raise_on: Collection[str] = (),
) -> LeakageReport:
    """Looks for what test and training places have in common.

    Args:
        x: (N,) eastings or longitudes.
        y: (N,) northings or latitudes.
        split: One split, several, or an (N,) array of folds.
        features: (N, F) predictors, to look for rows that are equal in all of them (in single precision; NaN equals
            NaN, rows of NaN only are not compared); None to leave it.
        chip_extent: Edge of the image chip around a place, in units of x and y or in metres if ``geographic``.
        map_x: (M,) places to be mapped (a sample of the map's cells), to compare distances as kNNDM does; each is held
            against all training places of the splits together, which is what the final model is fitted on.
        map_y: (M,) likewise.
        geographic: Whether coordinates are degrees; distances are then metres.
        tolerance: Places nearer than this or at it are the same place.
        raise_on: Names of :data:`FAULTS` that are raised and not only reported.

    Returns:
        The report.

    Raises:
        AgriClipError: For a fault named in ``raise_on``, an unknown name there, or arrays that do not fit together.
    """
    for name in raise_on:
        if name not in FAULTS:
            raise AgriClipError(f"There is no fault '{name}' of a split; {nearest(name, FAULTS)}.")
    points = checked_points(x, y)
    masks = _masks(split)
    if not masks or any(test.size != len(points) for _, test in masks):
        raise AgriClipError(f"The split must have one value for each of the {len(points)} places, and a test side.")
    rows = None if features is None else _row_keys(features, len(points))
    distances, same_rows, chips = [], 0, 0
    fitted = np.zeros(len(points), dtype=bool)
    for fitted_on, tested in masks:
        train, test = points[fitted_on], points[tested]
        distances.append(nearest_distance(test, train, geographic=geographic))
        if rows is not None:
            same_rows += int((np.isin(rows[tested], rows[fitted_on]) & (rows[tested] >= 0)).sum())
        if chip_extent is not None:
            chips += int(chip_neighbours(test, train, chip_extent, geographic=geographic).sum())
        fitted |= fitted_on
    distance = np.concatenate(distances)
    map_distance = None
    if map_x is not None and map_y is not None:
        map_distance = nearest_distance(checked_points(map_x, map_y), points[fitted], geographic=geographic)
    report = LeakageReport(
        tested=int(distance.size),
        identical_places=int((distance <= tolerance).sum()),
        identical_rows=None if rows is None else same_rows,
        overlapping_chips=None if chip_extent is None else chips,
        distance=distance,
        map_distance=map_distance,
        wasserstein=_area_between(distance, map_distance),
        metric=geographic,
    )
    if any(name in report.faults for name in raise_on):
        raise AgriClipError(report.verdict)
    return report


def _masks(split: TrainTest | Iterable[TrainTest] | np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test mask of each split; of folds, those below 0 are never tested."""
    if isinstance(split, np.ndarray):
        fold = split.ravel()
        return [(fold != k, fold == k) for k in np.unique(fold[fold >= 0])]
    parts = [split] if hasattr(split, "train") else split
    return [(part.train, part.test) for part in parts]


def _row_keys(features: np.ndarray, count: int) -> np.ndarray:
    """(N,) number of each different row of predictors; -1 where all are missing."""
    table = np.asarray(features, dtype=np.float32).reshape(len(features), -1)
    if len(table) != count:
        raise AgriClipError(f"There are {len(table)} rows of predictors for {count} places; give one per place.")
    known = np.isfinite(table)
    # one bit pattern for every kind of missing value, and for zero of either sign
    table = np.where(known, table, np.float32("nan")) + np.float32(0.0)
    as_bytes = np.ascontiguousarray(table).view(np.dtype((np.void, table.shape[1] * table.itemsize))).ravel()
    _, key = np.unique(as_bytes, return_inverse=True)
    return np.where(known.any(axis=1), key.ravel(), -1)


def _area_between(distance: np.ndarray, map_distance: np.ndarray | None) -> float:
    if map_distance is None or not map_distance.size:
        return math.nan
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(distance, map_distance))
