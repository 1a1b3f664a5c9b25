"""Splits that ask different questions of a model: random, in blocks, by state, beyond an edge, in time, by climate.

Three choices define this file. A split is plain arrays, one value a place: a fold (-1 is never tested), or two masks.
Places that belong to neither side, such as those in a buffer, are in neither mask, so nothing is fitted on them by
accident. Random folds are here to show how much optimism they bring; blocks and edges are for the headline.
`check_leakage` says of any split how far its test places really are from training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.distances import box_distance, checked_points, nearest_distance
from evaluation.leakage import LeakageReport, check_leakage
from processing.errors import AgriClipError, named, nearest
from processing.splits import block_ids, spatial_blocks

__all__ = [
    "GroupFolds",
    "LeakageReport",
    "TrainTest",
    "block_folds",
    "both_ways",
    "check_leakage",
    "edge_hold_out",
    "environment_folds",
    "fold_splits",
    "group_folds",
    "period_hold_out",
    "random_folds",
    "with_buffer",
]

#: Fold of a place that is fitted on but never tested.
NEVER_TESTED = -1


@dataclass(frozen=True)
class TrainTest:
    """One division of the places.

    Attributes:
        name: What is tested, for tables.
        train: (N,) True for places that are fitted on.
        test: (N,) True for places that are scored.
    """

    name: str
    train: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        if self.train.shape != self.test.shape or self.train.ndim != 1:
            raise AgriClipError(f"The masks of the split '{self.name}' must have one value per place, both of them.")
        if not (self.train.any() and self.test.any()):
            side = "training" if self.test.any() else "test"
            raise AgriClipError(f"The split '{self.name}' has no {side} place; choose another line, group or buffer.")

    @property
    def left_out(self) -> int:
        """Number of places that are neither fitted on nor scored."""
        return int((~self.train & ~self.test).sum())


@dataclass(frozen=True)
class GroupFolds:
    """Folds of named groups.

    Attributes:
        fold: (N,) fold of each place; :data:`NEVER_TESTED` in groups too small to be scored.
        names: Name of the group of each fold.
    """

    fold: np.ndarray
    names: tuple[str, ...]


def random_folds(count: int, folds: int = 5, seed: int = 0, presence: np.ndarray | None = None) -> np.ndarray:
    """Folds drawn place by place, to show the optimism of doing so; never the headline.

    Args:
        count: Number of places.
        folds: Number of folds.
        seed: Seed of the draw.
        presence: (N,) 0 or 1, to give every fold the same prevalence, or None.

    Returns:
        (N,) fold of each place, 0..folds-1.

    Raises:
        AgriClipError: Fewer than two folds, or fewer places (of a class) than folds.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    y = np.zeros(count) if presence is None else np.asarray(presence).ravel()
    if y.size != count:
        raise AgriClipError(f"There are {y.size} labels for {count} places; give one per place.")
    least = int(np.unique(y, return_counts=True)[1].min()) if count else 0
    if folds < 2 or least < folds:
        what = "places" if presence is None else "places of the rarer class"
        raise AgriClipError(f"{folds} folds cannot be made of {least} {what}; use at least 2 folds and more places.")
    splitter = KFold if presence is None else StratifiedKFold
    fold = np.empty(count, dtype=np.int64)
    for k, (_, test) in enumerate(splitter(folds, shuffle=True, random_state=seed).split(np.zeros((count, 1)), y)):
        fold[test] = k
    return fold


def block_folds(
    x: np.ndarray,
    y: np.ndarray,
    size: float,
    folds: int = 5,
    seed: int = 0,
    presence: np.ndarray | None = None,
) -> np.ndarray:
    """Folds of whole square blocks; :func:`with_buffer` keeps their edges apart.

    Args:
        x: (N,) eastings or longitudes.
        y: (N,) northings or latitudes, same units.
        size: Edge of a block in those units: at least 100 km and the range of the residuals' variogram.
        folds: Number of folds.
        seed: Seed of the draw.
        presence: (N,) 0 or 1, to bring the prevalence of the folds as close as whole blocks allow; None balances the
            number of places only.

    Returns:
        (N,) fold of each place, 0..folds-1.

    Raises:
        AgriClipError: As ``processing.splits.spatial_blocks``.
    """
    plain = spatial_blocks(x, y, size, folds, seed)
    if presence is None:
        return plain
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.asarray(presence).ravel()
    if labels.size != plain.size:
        raise AgriClipError(f"There are {labels.size} labels for {plain.size} places; give one per place.")
    if np.unique(labels, return_counts=True)[1].min() < folds:
        raise AgriClipError(f"One class has fewer than {folds} places, one a fold; use fewer folds or no strata.")
    blocks = block_ids(x, y, size)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(plain.size, dtype=np.int64)
    for k, (_, test) in enumerate(splitter.split(np.zeros((plain.size, 1)), labels, blocks)):
        fold[test] = k
    return fold


def group_folds(groups: np.ndarray, *, prefix: int | None = None, least: int = 1) -> GroupFolds:
    """Leave one group out: each group is a fold of its own.

    Args:
        groups: (N,) names: a column of states, or codes such as GEOID, as text.
        prefix: Number of leading characters that name the group: 2 of a county's GEOID are its state.
        least: Groups with fewer places are never tested (they are still fitted on).

    Returns:
        The folds, groups sorted by name.

    Raises:
        AgriClipError: Fewer than two groups remain, or codes to be cut that differ in length (a GEOID read as a number
            has lost its leading zero).
    """
    names = np.asarray(groups).ravel().astype(str)
    if prefix is not None:
        lengths = np.unique(np.char.str_len(names))
        if lengths.size > 1:
            raise AgriClipError(
                f"The codes have {named(lengths)} characters, so their first {prefix} do not name groups; "
                "read the column as text, which keeps leading zeros."
            )
        names = np.array([name[:prefix] for name in names])
    found, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    large = counts >= least
    if large.sum() < 2:
        raise AgriClipError(
            f"Leaving one group out needs two groups or more with {least} places, and there are {int(large.sum())}."
        )
    fold_of_group = np.where(large, np.cumsum(large) - 1, NEVER_TESTED)
    return GroupFolds(fold_of_group[place].astype(np.int64), tuple(str(name) for name in found[large]))


def edge_hold_out(
    x: np.ndarray, y: np.ndarray, side: str, line: float, *, buffer: float = 0.0, geographic: bool = False
) -> TrainTest:
    """Fit on one side of a straight line and test beyond it: the analogue in space of a change of climate.

    Args:
        x: (N,) eastings or longitudes.
        y: (N,) northings or latitudes.
        side: What is tested: ``north`` or ``south`` of a value of y, ``east`` or ``west`` of a value of x. The line
            itself belongs to the north and the east.
        line: That value: 39.5 for 39.5 N, -90 for 90 W.
        buffer: Training places nearer than this to the nearest test place are left out, in units of x and y, or in
            metres if ``geographic``.
        geographic: Whether x and y are degrees.

    Returns:
        The split; :func:`both_ways` gives the reverse as well.

    Raises:
        AgriClipError: An unknown side, or no place on one side.
    """
    if side not in ("north", "south", "east", "west"):
        raise AgriClipError(f"There is no side '{side}'; {nearest(side, ('north', 'south', 'east', 'west'))}.")
    points = checked_points(x, y)
    beyond = points[:, 1 if side in ("north", "south") else 0] >= line
    test = beyond if side in ("north", "east") else ~beyond
    split = TrainTest(f"{side} of {line:g}", ~test, test)
    return with_buffer(split, x, y, buffer, geographic=geographic) if buffer > 0 else split


def both_ways(split: TrainTest, name: str | None = None) -> tuple[TrainTest, TrainTest]:
    """A split and its reverse: what was tested is fitted on. Left-out places stay left out.

    Args:
        split: The split.
        name: Name of the reverse, None for "reverse of ...".
    """
    return split, TrainTest(name or f"reverse of {split.name}", split.test, split.train)


def period_hold_out(year: np.ndarray, train: tuple[int, int], test: tuple[int, int]) -> TrainTest:
    """Fit on the labels of some years and test on later (or earlier) ones.

    Args:
        year: (N,) year of each label.
        train: First and last year that are fitted on.
        test: First and last year that are scored; years between the two are a gap.

    Raises:
        AgriClipError: Periods that overlap, or hold no label.
    """
    years = np.asarray(year).ravel()
    if max(train[0], test[0]) <= min(train[1], test[1]):
        raise AgriClipError(f"Training years {train} and test years {test} overlap; leave a gap between them.")
    inside = [(years >= first) & (years <= last) for first, last in (train, test)]
    return TrainTest(f"{test[0]} to {test[1]}", inside[0], inside[1])


def environment_folds(
    features: np.ndarray, folds: int = 5, seed: int = 0, weight: np.ndarray | None = None
) -> np.ndarray:
    """Folds that are clusters of climate: each is tested by a model that has seen other climates only.

    Args:
        features: (N, F) predictors, NaN = missing (the median stands in); standardised here.
        folds: Number of clusters (k-means).
        seed: Seed of the clustering.
        weight: (N,) sample weights, or None.

    Returns:
        (N,) fold of each place, 0..folds-1, the largest cluster first.

    Raises:
        AgriClipError: Fewer different rows than clusters.
    """
    from sklearn.cluster import KMeans

    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2 or len(np.unique(table, axis=0)) < folds or folds < 2:
        raise AgriClipError(
            f"{folds} clusters cannot be made of a table of shape {table.shape}; it needs one row per place and more "
            "different rows than clusters, of which there must be 2 or more."
        )
    known = np.isfinite(table)
    columns = zip(table.T, known.T, strict=True)
    middle = np.array([np.median(column[ok]) if ok.any() else 0.0 for column, ok in columns])
    table = np.where(known, table, middle)
    spread = table.std(axis=0)
    table = (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    label = KMeans(folds, n_init=10, random_state=seed).fit_predict(table, sample_weight=weight)
    rank = np.empty(folds, dtype=np.int64)
    rank[np.argsort(-np.bincount(label, minlength=folds), kind="stable")] = np.arange(folds)
    return rank[label]


def with_buffer(
    split: TrainTest,
    x: np.ndarray,
    y: np.ndarray,
    buffer: float,
    *,
    block_size: float | None = None,
    geographic: bool = False,
) -> TrainTest:
    """Takes training places near the test side out of a split.

    Args:
        split: The split.
        x: (N,) eastings or longitudes.
        y: (N,) northings or latitudes.
        buffer: Training places nearer than this are left out, in units of x and y, or in metres if ``geographic``. A
            quarter of a block plus the reach of an image chip is customary.
        block_size: With it the distance is to the nearest square block that holds a test place (as numbered by
            ``processing.splits.block_ids``); without it, to the nearest test place.
        geographic: Whether x and y are degrees.

    Returns:
        The split with fewer training places.

    Raises:
        AgriClipError: A negative buffer, or no training place left.
    """
    points = checked_points(x, y)
    if not buffer >= 0:
        raise AgriClipError(f"A buffer must be a distance of 0 or more, not {buffer!r}.")
    if len(points) != split.test.size:
        raise AgriClipError(f"The split has {split.test.size} places and there are {len(points)} coordinates.")
    rows = np.flatnonzero(split.train)
    if block_size is None:
        far = nearest_distance(points[rows], points[split.test], geographic=geographic)
    else:
        corners = np.unique(np.floor(points[split.test] / block_size), axis=0) * block_size
        far = box_distance(points[rows], corners, block_size, geographic=geographic)
    train = np.zeros_like(split.train)
    train[rows[far >= buffer]] = True
    if not train.any():
        raise AgriClipError(f"A buffer of {buffer:g} leaves no training place in the split '{split.name}'; narrow it.")
    return TrainTest(split.name, train, split.test)


def fold_splits(folds: np.ndarray, names: Sequence[str] | None = None) -> Iterator[TrainTest]:
    """The splits that an array of folds stands for, one per fold.

    Args:
        folds: (N,) fold of each place; :data:`NEVER_TESTED` is fitted on always.
        names: Name of each fold, or None for "fold 0", "fold 1", ...

    Yields:
        The splits, by number of the fold.
    """
    fold = np.asarray(folds).ravel()
    for k in np.unique(fold[fold != NEVER_TESTED]):
        yield TrainTest(f"fold {k}" if names is None else names[int(k)], fold != k, fold == k)
