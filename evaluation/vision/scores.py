"""Scores from confusion counts, with intervals from resampling whole blocks.

Three choices define this file. Every score is a function of counts of truth against prediction, so a bootstrap draw is
a weighted sum of the blocks' counts and 2,000 draws cost one matrix product. Whole blocks of land are drawn, never
pixels or single images that touch (block bootstrap; Lahiri 2003). And classes that do not occur in the truth are left
out of means over classes instead of counting as 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "METRICS",
    "confusion_scores",
    "group_blocks",
    "interval",
    "pair_counts",
    "paired_interval",
    "score_counts",
    "sum_blocks",
]

Counts = NDArray[np.int64]

DRAWS = 2000
MOST_BLOCKS = 2000
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "mean_iou")


def confusion_scores(confusion: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Scores of counts (..., K, K).

    Returns:
        `accuracy`, `balanced_accuracy` (mean recall), `macro_f1`, `mean_iou` (...,), and `recall`, `precision`, `f1`,
        `iou` (..., K), NaN for a class that the truth does not have.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    truth, said = counts.sum(axis=-1), counts.sum(axis=-2)
    there = truth > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(there, right / truth, np.nan)
        precision = np.where(there, np.where(said > 0, right / said, 0.0), np.nan)
        f1 = np.where(there, 2 * right / (truth + said), np.nan)
        iou = np.where(there, right / (truth + said - right), np.nan)
        accuracy = right.sum(axis=-1) / counts.sum(axis=(-2, -1))
    return {
        "accuracy": accuracy,
        "balanced_accuracy": _mean(recall),
        "macro_f1": _mean(f1),
        "mean_iou": _mean(iou),
        "recall": recall,
        "precision": precision,
        "f1": f1,
        "iou": iou,
    }


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without NaN, NaN where there is nothing."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0.0).sum(axis=-1) / count


def group_blocks(blocks: Sequence[Any], most: int = MOST_BLOCKS, seed: int = 0) -> NDArray[np.int64]:
    """Numbers 0..G-1 of blocks; where there are more than `most`, they are joined at random."""
    _, ids = np.unique(np.asarray(blocks).astype(str), return_inverse=True)
    count = int(ids.max(initial=-1)) + 1
    if count > most:
        ids = np.random.default_rng(seed).permutation(np.arange(count) % most)[ids]
    return np.asarray(ids, dtype=np.int64).reshape(-1)


def pair_counts(truth: NDArray[Any], predicted: NDArray[Any], classes: int, groups: NDArray[np.int64]) -> Counts:
    """Counts (G, K, K) of truth (rows) against prediction in each group of units; a truth below 0 is left out."""
    known = truth >= 0
    cells = (groups[known] * classes + truth[known]) * classes + predicted[known]
    size = (int(groups.max(initial=0)) + 1) * classes * classes
    return np.bincount(cells, minlength=size).reshape(-1, classes, classes)


def sum_blocks(counts: Counts, blocks: Sequence[Any]) -> Counts:
    """Counts of units (N, K, K) to counts of their blocks (G, K, K)."""
    groups = group_blocks(blocks)
    total = np.zeros((int(groups.max(initial=0)) + 1, *counts.shape[1:]), dtype=np.int64)
    np.add.at(total, groups, counts)
    return total


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile interval of draws, or None twice."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def score_counts(counts: Counts, seed: int = 0) -> dict[str, Any]:
    """Scores with intervals of whole blocks drawn with replacement.

    Args:
        counts: Counts of each block (G, K, K); of a single block no interval can be told.
        seed: Seed of the draws, the same for results that are to be compared.

    Returns:
        Per metric `value`, `low`, `high` (lists for those of classes), and `draws`, the metrics of the draws.
    """
    blocks, classes = len(counts), counts.shape[-1]
    values = confusion_scores(counts.sum(axis=0))
    times = np.zeros((0, blocks), dtype=np.int64)
    if blocks > 1:
        times = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=DRAWS)
    drawn = times.astype(np.float64) @ counts.reshape(blocks, -1)
    draws = confusion_scores(drawn.reshape(-1, classes, classes))
    found: dict[str, Any] = {"draws": {name: draws[name] for name in METRICS}, "blocks": blocks}
    for name, value in values.items():
        if np.ndim(value) == 0:
            low, high = interval(draws[name])
            found[name] = {"value": float(value), "low": low, "high": high}
        else:
            ends = [interval(draws[name][:, k]) for k in range(classes)]
            found[name] = {"value": value.tolist(), "low": [e[0] for e in ends], "high": [e[1] for e in ends]}
    return found


def paired_interval(
    ours: dict[str, Any], theirs: dict[str, Any], name: str
) -> tuple[float, float | None, float | None]:
    """Difference of a metric between two results of `score_counts` on the same units and seed, with its interval."""
    low, high = interval(ours["draws"][name] - theirs["draws"][name])
    return ours[name]["value"] - theirs[name]["value"], low, high
