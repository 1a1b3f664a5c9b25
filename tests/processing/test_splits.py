"""Spatial blocks: whole, balanced, and the same whoever asks."""

from __future__ import annotations

import numpy as np
import pytest

from processing.errors import AgriClipError
from processing.splits import block_ids, spatial_blocks


@pytest.fixture
def points() -> tuple[np.ndarray, np.ndarray]:
    """Clustered points, as counties are."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(-90, 4, 800), rng.uniform(-120, -70, 400)]), rng.uniform(25, 49, 1200)


def test_blocks_are_squares_and_no_fold_shares_one(points: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = points
    ids, folds = block_ids(x, y, 3.0), spatial_blocks(x, y, 3.0, 5, seed=0)
    for block in np.unique(ids):
        members = ids == block
        assert len(set(folds[members])) == 1
        assert np.ptp(np.floor(x[members] / 3)) == 0
        assert np.ptp(np.floor(y[members] / 3)) == 0
    assert sorted(np.unique(ids)) == list(range(ids.max() + 1))


def test_folds_are_balanced(points: tuple[np.ndarray, np.ndarray]) -> None:
    counts = np.bincount(spatial_blocks(*points, 3.0, 5, seed=0))
    assert len(counts) == 5
    assert counts.max() - counts.min() <= 0.02 * counts.sum()


def test_seed_decides_and_order_of_points_does_not(points: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = points
    folds = spatial_blocks(x, y, 3.0, 5, seed=0)
    assert np.array_equal(folds, spatial_blocks(x, y, 3.0, 5, seed=0))
    assert not np.array_equal(folds, spatial_blocks(x, y, 3.0, 5, seed=1))
    order = np.random.default_rng(1).permutation(len(x))
    assert np.array_equal(folds[order], spatial_blocks(x[order], y[order], 3.0, 5, seed=0))


@pytest.mark.parametrize(
    ("x", "y", "size", "folds", "said"),
    [
        ([0.0, np.nan], [0.0, 1.0], 1.0, 2, "no finite coordinates"),
        ([0.0, 1.0], [0.0], 1.0, 2, "same length"),
        ([0.0, 5.0], [0.0, 5.0], 1.0, 3, "too few for 3 folds"),
        ([0.0, 5.0], [0.0, 5.0], 0.0, 2, "positive length"),
        ([0.0, 5.0], [0.0, 5.0], 1.0, 1, "at least 2 folds"),
    ],
)
def test_bad_input_is_told(x: list[float], y: list[float], size: float, folds: int, said: str) -> None:
    with pytest.raises(AgriClipError, match=said):
        spatial_blocks(x, y, size, folds)
