"""Probes: what a simple classifier can read from frozen embeddings, against band statistics in the same run.

Three choices define this file. Logistic regression and nearest neighbours see the embeddings and, on the same folds,
the statistics of the bands, so the claim is the difference. Whole blocks of land are held out together, and the
strength of the regularisation is chosen within the training blocks. And the classifiers are scikit-learn's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.classes import IGNORE
from evaluation.vision.images import track
from evaluation.vision.scores import group_blocks, pair_counts, paired_interval, score_counts
from evaluation.vision.units import OURS, Units
from processing.errors import AgriClipError, named
from processing.splits import block_ids

__all__ = ["FOREST", "LINEAR", "NEIGHBOURS", "Probe", "run_probe", "split_units"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
LINEAR, NEIGHBOURS, FOREST = "linear", "nearest neighbours", "random forest"
STRENGTHS = (
    0.001,
    0.01,
    0.1,
    1.0,
    10.0,
)  # inverse penalties of the logistic regression, chosen within the training blocks
NEIGHBOUR_COUNT = 20


@dataclass
class Probe:
    """What the probes found.

    Attributes:
        units: What was classified.
        test: Units that were scored (n,).
        predicted: (classifier, features) -> class found of each of them.
        result: (classifier, features) -> scores with intervals.
        confusion: (classifier, features) -> counts (K, K).
        differences: Classifier -> metric -> embeddings less what they are compared with, with its interval.
        split: How units were held out, in words.
        strength: Chosen inverse penalties, by features.
        warnings: What a reader must know.
    """

    units: Units
    test: IntArray
    predicted: dict[tuple[str, str], IntArray]
    result: dict[tuple[str, str], dict[str, Any]]
    confusion: dict[tuple[str, str], NDArray[np.int64]]
    differences: dict[str, dict[str, tuple[float, float | None, float | None]]]
    split: str
    strength: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def run_probe(
    units: Units, folds: int = 5, block: float | None = None, forest: bool = False, seed: int = 0, quiet: bool = True
) -> Probe:
    """Fit and score the probes.

    Args:
        units: What is classified.
        folds: Folds of blocks, where the labels give no split.
        block: Edge of a block in the units' coordinates; five images by default.
        forest: Also a random forest on what the embeddings are compared with.
        seed: Seed of folds and fits.
        quiet: No progress bar.

    Raises:
        AgriClipError: There are fewer than two classes, or too few blocks.
    """
    if len(np.unique(units.index)) < 2:
        raise AgriClipError("The labels hold one class only; a probe needs something to tell apart.")
    parts, blocks, told, warnings = split_units(units, folds, block, seed)
    kinds = list(units.features)
    asked = [(name, kind) for kind in kinds for name in (LINEAR, NEIGHBOURS)]
    asked += [(FOREST, kind) for kind in kinds if forest and kind != OURS]
    predicted = {key: np.full(len(units.index), IGNORE, dtype=np.int64) for key in asked}
    strength: dict[str, list[float]] = {kind: [] for kind in kinds}
    for train, test in track(parts, "Folds", quiet):
        for kind in kinds:
            x, scaled = units.features[kind], _scaled(units.features[kind], train)
            y = units.index
            best = _choose_strength(scaled, y, blocks, train, seed)
            strength[kind].append(best)
            predicted[LINEAR, kind][test] = _linear(scaled[train], y[train], best).predict(scaled[test])
            predicted[NEIGHBOURS, kind][test] = _neighbours(scaled[train], y[train]).predict(scaled[test])
            if (FOREST, kind) in predicted:
                predicted[FOREST, kind][test] = _forest(x[train], y[train], seed).predict(x[test])
    scored = np.unique(np.concatenate([test for _, test in parts]))
    groups = group_blocks(blocks[scored])
    counts = {
        key: pair_counts(units.index[scored], values[scored], len(units.names), groups)
        for key, values in predicted.items()
    }
    result = {key: score_counts(value, seed) for key, value in counts.items()}
    other = next((kind for kind in kinds if kind != OURS), None)
    differences = {
        f"{name} against {against} on {other}": {
            metric: paired_interval(result[name, OURS], result[against, other], metric)
            for metric in ("accuracy", "balanced_accuracy", "macro_f1")
        }
        for name, against in ((LINEAR, LINEAR), (NEIGHBOURS, NEIGHBOURS), (LINEAR, FOREST))
        if other is not None and (against, other) in result
    }
    unseen = sorted({
        units.names[k] for train, test in parts for k in set(units.index[test]) - set(units.index[train])
    })  # fmt: skip
    if unseen:
        warnings.append(f"classes that the training part of a fold lacks count as errors there: {named(unseen)}")
    return Probe(
        units,
        scored,
        {key: values[scored] for key, values in predicted.items()},
        result,
        {key: value.sum(axis=0) for key, value in counts.items()},
        differences,
        told,
        strength,
        warnings,
    )


def split_units(
    units: Units, folds: int, block: float | None, seed: int
) -> tuple[list[tuple[IntArray, IntArray]], NDArray[Any], str, list[str]]:
    """Training and test units of each fold, the block of each unit, how it was done, and warnings.

    A split or fold of the labels comes first, then blocks of land, then whole images.
    """
    count = len(units.index)
    every = np.arange(count)
    blocks, told = _blocks(units, block)
    if units.split is not None and {"test"} < set(units.split):
        names = np.array(units.split)
        train = np.flatnonzero((names != "test") & (names != ""))
        return [(train, np.flatnonzero(names == "test"))], blocks, "the split that the labels give", []
    if units.fold is not None and len(set(units.fold)) > 1:
        names = np.array(units.fold)
        parts = [(every[names != name], every[names == name]) for name in dict.fromkeys(units.fold)]
        return parts, blocks, f"the {len(parts)} folds that the labels give", []
    number = len(np.unique(blocks.astype(str)))
    if number < 2:
        raise AgriClipError(f"All units lie in one block ({told}); give a smaller --block or more images.")
    fold = _fill(blocks, min(folds, number), seed)
    parts = [(every[fold != k], every[fold == k]) for k in range(fold.max() + 1)]
    warnings = [] if units.place is not None else ["places are not known: neighbouring images may be in both parts"]
    return parts, blocks, f"{len(parts)} folds of {told}", warnings


def _blocks(units: Units, block: float | None) -> tuple[NDArray[Any], str]:
    size = block or 5 * units.edge
    if units.place is not None and np.isfinite(units.place).all() and np.isfinite(size) and size > 0:
        ids = block_ids(units.place[:, 0], units.place[:, 1], size)
        if len(np.unique(ids)) > 1:
            return ids, f"{len(np.unique(ids))} blocks of {size:.4g} x {size:.4g} in the images' coordinates"
    return units.group, f"{len(np.unique(units.group))} whole images"


def _fill(blocks: NDArray[Any], folds: int, seed: int) -> IntArray:
    """Blocks to folds, the largest first, each to the fold that holds fewest units."""
    _, ids = np.unique(blocks.astype(str), return_inverse=True)
    counts = np.bincount(ids)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    fold, filled = np.zeros(len(counts), dtype=np.int64), np.zeros(folds)
    for one in shuffled[np.argsort(-counts[shuffled], kind="stable")]:
        fold[one] = int(np.argmin(filled))
        filled[fold[one]] += counts[one]
    return fold[ids]


def _scaled(x: FloatArray, train: IntArray) -> FloatArray:
    mean, std = x[train].mean(axis=0), x[train].std(axis=0)
    return ((x - mean) / np.where(std > 1e-8, std, 1.0)).astype(np.float32)


def _linear(x: FloatArray, y: IntArray, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=1000).fit(x, y)


def _neighbours(x: FloatArray, y: IntArray) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(min(NEIGHBOUR_COUNT, len(x)), metric="cosine", weights="distance").fit(x, y)


def _forest(x: FloatArray, y: IntArray, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(300, random_state=seed).fit(x, y)


def _choose_strength(x: FloatArray, y: IntArray, blocks: NDArray[Any], train: IntArray, seed: int) -> float:
    """The inverse penalty that does best on blocks set aside from the training part."""
    if len(np.unique(blocks[train].astype(str))) < 3:
        return STRENGTHS[len(STRENGTHS) // 2]
    inner = _fill(blocks[train], 3, seed) == 0
    fit, check = train[~inner], train[inner]
    if len(np.unique(y[fit])) < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    right = [float((_linear(x[fit], y[fit], c).predict(x[check]) == y[check]).mean()) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(right))]
