"""Unlabelled places of the grid, for what can be learnt without labels.

They lie between the sites, so they have blocks and folds too: one that lies in a block that is left out of a fit is
left out with it, or pre-training would have seen the land that the fit is scored on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from processing.study import Study
from processing.study_data import LabelTable, StudyData
from training.single_fit import FitJob

# A place whose block holds no site belongs to no fold.
NO_FOLD = -1


@dataclass(frozen=True)
class Unlabelled:
    """M places without a label.

    Attributes:
        x: (M,) eastings or longitudes in the grid's CRS.
        y: (M,) northings or latitudes.
        fold: (M,) fold of the block that holds each; `NO_FOLD` where it holds no site.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    fold: NDArray[np.int64]

    def seen_by(self, job: FitJob, folds: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(M,) True at the places that a fit may see: none in a fold whose sites it leaves out."""
        left_out = np.unique(folds[~job.inside])
        return ~np.isin(self.fold, left_out)


def unlabelled_count(study: Study, sites: int) -> int:
    """How many places a study asks for: `training.unlabelled`, or as many as sites where it pre-trains."""
    training = study.training
    share = training.unlabelled or (1.0 if training.pretraining_epochs else 0.0)
    return round(share * sites)


def sample_unlabelled(
    data: StudyData, table: LabelTable, folds: NDArray[np.int64], count: int, seed: int
) -> Unlabelled:
    """Draw cells of the grid at which every predictor is known, at most `count`."""
    empty = np.empty(0)
    if not count:
        return Unlabelled(empty, empty, np.empty(0, dtype=np.int64))
    x, y = (axis.ravel() for axis in data.grid.cell_centres(slice(0, data.grid.height)))
    known = np.flatnonzero(np.isfinite(data.predictor_grid()).all(axis=0).ravel())
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    x, y = x[chosen].astype(np.float64), y[chosen].astype(np.float64)
    splits = data.study.splits
    if splits is None or splits.size is None:
        return Unlabelled(x, y, np.full(len(x), NO_FOLD))
    corners = _corners(table.x, table.y, splits.size)
    fold_of = dict(zip(corners, folds.tolist(), strict=True))
    fold = [fold_of.get(corner, NO_FOLD) for corner in _corners(x, y, splits.size)]
    return Unlabelled(x, y, np.array(fold, dtype=np.int64))


def _corners(x: NDArray[np.float64], y: NDArray[np.float64], size: float) -> list[tuple[int, int]]:
    """Row and column of the block that holds each point, as in [`block_ids`](../processing/splits.py)."""
    rows, columns = np.floor(y / size).astype(int), np.floor(x / size).astype(int)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


__all__ = ["Unlabelled", "sample_unlabelled", "unlabelled_count"]
