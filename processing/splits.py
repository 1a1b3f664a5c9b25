"""Spatial splits: whole square blocks are held out together, never single points.

Neighbouring sites share climate, soil and often the same pixel, so a random split scores memory. Two choices: blocks
are squares anchored at the origin of the coordinate system (the same point always falls in the same block, whatever
else is in the table), and folds are balanced by the number of points, largest blocks first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import AgriClipError


def block_ids(x: ArrayLike, y: ArrayLike, size: float) -> NDArray[np.int64]:
    """Number the square block that holds each point.

    Args:
        x: (N,) eastings or longitudes.
        y: (N,) northings or latitudes, same units.
        size: Edge of a block in those units.

    Returns:
        (N,) block numbers 0..B-1, ordered by row of blocks from south to north, then from west to east.

    Raises:
        AgriClipError: For lengths that differ, coordinates that are not finite, or a size that is not positive.
    """
    points = [np.asarray(axis, dtype=np.float64) for axis in (x, y)]
    if points[0].ndim != 1 or points[0].shape != points[1].shape:
        raise AgriClipError(
            f"x and y must be two lists of the same length, not shapes {points[0].shape} and {points[1].shape}."
        )
    if not (np.isfinite(size) and size > 0):
        raise AgriClipError(f"The block size must be a positive length in coordinate units, not {size!r}.")
    bad = ~(np.isfinite(points[0]) & np.isfinite(points[1]))
    if bad.any():
        raise AgriClipError(
            f"{int(bad.sum())} of {bad.size} points have no finite coordinates (first at position "
            f"{int(np.flatnonzero(bad)[0])}); remove or repair them before splitting."
        )
    cells = np.stack([np.floor(points[1] / size), np.floor(points[0] / size)], axis=1).astype(np.int64)
    if not len(cells):
        return np.zeros(0, dtype=np.int64)
    _, ids = np.unique(cells, axis=0, return_inverse=True)
    return np.asarray(ids, dtype=np.int64).reshape(-1)


def spatial_blocks(x: ArrayLike, y: ArrayLike, size: float, folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Assign each point to a fold so that no block is shared by two folds.

    Blocks are shuffled by `seed`, then given, largest first, to the fold that holds the fewest points so far.

    Args:
        x: (N,) eastings or longitudes.
        y: (N,) northings or latitudes, same units.
        size: Edge of a block in those units.
        folds: Number of folds, at least 2.
        seed: Seed of the shuffle.

    Returns:
        (N,) fold of each point, 0..folds-1.

    Raises:
        AgriClipError: As `block_ids`, and when there are fewer blocks than folds.
    """
    if folds < 2:
        raise AgriClipError(f"A split needs at least 2 folds, not {folds}.")
    ids = block_ids(x, y, size)
    counts = np.bincount(ids)
    if len(counts) < folds:
        raise AgriClipError(
            f"The points lie in {len(counts)} blocks of size {size:g}, too few for {folds} folds; "
            "use smaller blocks or fewer folds."
        )
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    fold_of_block = np.zeros(len(counts), dtype=np.int64)
    filled = np.zeros(folds, dtype=np.int64)
    for block in order:
        # argmin takes the first of equals, so empty folds are filled before any fold gets a second block
        fold = int(np.argmin(filled))
        fold_of_block[block] = fold
        filled[fold] += counts[block]
    return fold_of_block[ids]


def hold_out_blocks(blocks: ArrayLike, share: float, seed: int = 0) -> NDArray[np.bool_]:
    """Choose whole blocks that hold about a share of the points.

    Args:
        blocks: (N,) block of each point.
        share: Share of the points, above 0 and below 1.
        seed: Seed of the choice.

    Returns:
        (N,) True in the chosen blocks; at least one block is chosen and one is not.

    Raises:
        AgriClipError: All points lie in one block.
    """
    ids = np.asarray(blocks)
    names, counts = np.unique(ids, return_counts=True)
    if len(names) < 2:
        raise AgriClipError("All sites lie in one block, so none can be set aside; use smaller blocks.")
    order = np.random.default_rng(seed).permutation(len(names))
    enough = int(np.searchsorted(np.cumsum(counts[order]), share * len(ids))) + 1
    return np.isin(ids, names[order[: min(enough, len(names) - 1)]])
