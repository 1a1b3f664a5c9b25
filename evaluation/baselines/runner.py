"""Runs baselines on the folds or the hold-out that the model was scored on, and sets the scores side by side.

Three choices define this file. Every prediction comes from a fit that never saw the fold of the place. Whatever turns
a score into a probability of presence is learnt within the training rows, on predictions of an inner cross-validation
over whole folds. And a baseline whose inputs a study does not have is left out for a reason that can be read, never
replaced by another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from evaluation.baselines.inputs import BaselineInputs, BaselineResult, Predictions, reason_to_skip
from evaluation.baselines.registry import ALL, BASELINES, DEFAULTS, REGISTRY, STANDARD, Baseline
from evaluation.baselines.share import isotonic_probability
from evaluation.metrics import score_presence
from processing.errors import AgriClipError, nearest

__all__ = [
    "ALL",
    "BASELINES",
    "DEFAULTS",
    "REGISTRY",
    "STANDARD",
    "BaselineInputs",
    "BaselineResult",
    "Predictions",
    "compare",
    "comparison_table",
    "fit_predict",
    "out_of_fold",
    "reason_to_skip",
    "run_baselines",
]

_INNER_GROUPS = 5  # most inner folds; a state or a region that was left out alone does not need forty


def fit_predict(
    name: str,
    features: np.ndarray | BaselineInputs,
    train: np.ndarray,
    test: np.ndarray,
    *,
    presence: np.ndarray,
    share: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
    calibrate: bool = True,
) -> BaselineResult:
    """Fits one baseline to some places and predicts others: for hold-outs of any shape.

    Args:
        name: Key of :data:`REGISTRY`, or of the predictions brought.
        features: (N, F) table, NaN = missing; or all inputs.
        train: (N,) bool, places that are fitted.
        test: (N,) bool, places that are predicted.
        presence: (N,) 0 or 1.
        share: (N,) share between 0 and 1; needed by the baselines on shares.
        weight: (N,) weights used in fitting.
        groups: (N,) folds or blocks: the calibration's inner folds are whole groups of the training places. Without
            them every other place is one of two.
        seed: Seed of the estimator.
        calibrate: As in :func:`out_of_fold`.

    Returns:
        Predictions of the test places only, in their order.

    Raises:
        AgriClipError: For an unknown name, missing inputs, arrays of different length, or places that are fitted and
            predicted at once.
    """
    job = _Job(name, features, presence, share, weight, seed)
    train, test = np.asarray(train, dtype=bool).ravel(), np.asarray(test, dtype=bool).ravel()
    if not train.size == test.size == job.size:
        raise AgriClipError("Masks of training and test must have one value per place.")
    if not train.any() or not test.any() or (train & test).any():
        raise AgriClipError("Training and test places must both be there and share none; check the masks.")
    if job.brought is not None:
        return job.brought_at(test)
    fold = np.zeros(job.size, dtype=int) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    if fold.size != job.size:
        raise AgriClipError("Groups of a baseline must have one value per place.")
    return job.result(train, test, lambda: job.inner(train, fold), calibrate)


def out_of_fold(
    name: str,
    features: np.ndarray | BaselineInputs,
    folds: np.ndarray,
    *,
    presence: np.ndarray,
    share: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    seed: int = 0,
    calibrate: bool = True,
    only: Collection[int] | None = None,
) -> BaselineResult:
    """Predictions of one baseline for every place, each by a fit that never saw the place's fold.

    Args:
        name: Key of :data:`REGISTRY`, or of the predictions brought.
        features: (N, F) table, NaN = missing; or all inputs.
        folds: (N,) fold of each place.
        presence: (N,) 0 or 1.
        share: (N,) share between 0 and 1; needed by the baselines on shares.
        weight: (N,) weights used in fitting.
        seed: Seed of the estimator.
        calibrate: Whether a score is turned into a probability of presence (the costly part). Without it the
            probability is the predicted share or score, which is right where units are scored and not places.
        only: Folds to predict; places of other folds are fitted on as always and their predictions are NaN.

    Returns:
        The predictions.

    Raises:
        AgriClipError: For an unknown name, missing inputs, arrays of different length, or a single fold.
    """
    job = _Job(name, features, presence, share, weight, seed)
    fold = np.asarray(folds).ravel()
    if fold.size != job.size:
        raise AgriClipError("Features, folds, labels and weights of a baseline must have one row per place.")
    names = np.unique(fold)
    if names.size < 2:
        raise AgriClipError("A baseline needs at least two folds; set splits.folds to 2 or more.")
    wanted = [one for one in names if only is None or one in only]
    if job.brought is not None:
        return job.brought_at(np.isin(fold, wanted), whole=True)
    ranking, probability = np.full(job.size, np.nan), np.full(job.size, np.nan)
    predicted = np.full(job.size, np.nan)
    pairs: dict[frozenset[Any], np.ndarray] = {}
    for one in wanted:
        test = fold == one
        # The fit that leaves out folds a and b serves the calibration of both.
        few = 3 <= names.size <= _INNER_GROUPS + 1
        inner = (lambda one=one: _paired(job, fold, names, one, pairs)) if few else None
        found = job.result(~test, test, inner or (lambda test=test: job.inner(~test, fold)), calibrate)
        ranking[test], probability[test] = found.ranking, found.probability
        if found.share is not None:
            predicted[test] = found.share
    return BaselineResult(name, ranking, probability, predicted if job.entry.gives_share else None)


def run_baselines(
    features: np.ndarray | BaselineInputs,
    folds: np.ndarray,
    *,
    presence: np.ndarray,
    share: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    objective: str = "share",
    names: Iterable[str] | None = None,
    seed: int = 0,
    calibrate: bool = True,
    only: Collection[int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[BaselineResult]:
    """Several baselines on the same folds.

    Args:
        features: (N, F) table, NaN = missing; or all inputs.
        folds: (N,) fold of each place.
        presence: (N,) 0 or 1.
        share: (N,) shares, if the labels have them.
        weight: (N,) weights used in fitting (number of trials, for counts).
        objective: ``share`` or ``binary``: chooses the default baselines.
        names: Keys of :data:`REGISTRY`, to choose others; :data:`STANDARD` and :data:`ALL` are such lists.
        seed: Seed of the estimators.
        calibrate: As in :func:`out_of_fold`.
        only: As in :func:`out_of_fold`.
        progress: Called with the name before each baseline.

    Returns:
        One result per baseline; by default those of predictions brought as well.
    """
    if names is None:
        if objective not in DEFAULTS:
            raise AgriClipError(f"There is no objective '{objective}'; {nearest(objective, DEFAULTS)}")
        names = DEFAULTS[objective] if share is not None else ("random forest (presence)",)
        names = [*names, *(features.brought if isinstance(features, BaselineInputs) else ())]
    results = []
    for name in names:
        if progress is not None:
            progress(name)
        given = {"presence": presence, "share": share, "weight": weight, "seed": seed}
        results.append(out_of_fold(name, features, folds, **given, calibrate=calibrate, only=only))
    return results


def compare(
    presence: np.ndarray,
    models: Mapping[str, Mapping[str, np.ndarray]],
    baselines: Iterable[BaselineResult] = (),
    weight: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Scores of our predictions and of the baselines, on the same places.

    Args:
        presence: (N,) 0 or 1.
        models: Name -> ``{"probability": (N,), "ranking": (N,) optional}``.
        baselines: Results of :func:`run_baselines`.
        weight: (N,) weights of the scores, or None.

    Returns:
        Rows ``{model, ap, auc, brier, log_loss, ece}``, ours first.
    """
    rows: list[dict[str, Any]] = []
    for name, predictions in models.items():
        scores = score_presence(presence, predictions["probability"], weight, predictions.get("ranking"))
        rows.append({"model": name, **scores})
    for result in baselines:
        scores = score_presence(presence, result.probability, weight, result.ranking)
        rows.append({"model": result.name, **scores})
    return rows


def comparison_table(rows: Iterable[Mapping[str, Any]], title: str = "Scores on places that were not fitted") -> Any:
    """The rows of :func:`compare` as a table for the terminal (a ``rich.table.Table``), the best of each column bold.

    Args:
        rows: Rows with ``model`` and any number of scores.
        title: Title of the table.
    """
    from rich.table import Table

    from mapping.score_titles import best_rows, column_title

    listed = list(rows)
    best = best_rows(listed)
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    columns = [key for key in (listed[0] if listed else {}) if key != "model"]
    for key in columns:
        table.add_column(column_title(key, short=True), justify="right")
    for index, row in enumerate(listed):
        cells = [f"{row[key]:.3f}" if np.isfinite(row[key]) else "-" for key in columns]
        marked = [f"[bold]{cell}[/]" if index in best[key] else cell for cell, key in zip(cells, columns, strict=True)]
        table.add_row(str(row["model"]), *marked)
    return table


class _Job:
    """One baseline with its checked inputs and labels."""

    def __init__(
        self,
        name: str,
        features: np.ndarray | BaselineInputs,
        presence: np.ndarray,
        share: np.ndarray | None,
        weight: np.ndarray | None,
        seed: int,
    ) -> None:
        inputs = features if isinstance(features, BaselineInputs) else BaselineInputs(np.asarray(features))
        reason = reason_to_skip(name, inputs, share is not None)
        if reason is not None:
            raise AgriClipError(f"The baseline '{name}' cannot be run: {reason}.")
        self.name, self.seed = name, seed
        self.brought = inputs.brought.get(name)
        self.presence = np.asarray(presence, dtype=np.float64).ravel()
        self.size = self.presence.size
        if self.brought is not None:
            return
        entry = REGISTRY[name]
        assert isinstance(entry, Baseline)  # a name of Brought is a reason to skip
        self.entry = entry
        self.table = inputs.table(entry)
        self.target = self.presence if entry.target == "presence" else np.asarray(share, dtype=np.float64).ravel()
        self.weight = np.ones(self.size) if weight is None else np.asarray(weight, dtype=np.float64).ravel()
        if self.table.ndim != 2 or not len(self.table) == self.size == self.target.size == self.weight.size:
            raise AgriClipError("Features, folds, labels and weights of a baseline must have one row per place.")

    def fit(self, train: np.ndarray) -> Any:
        """The estimator fitted to (N,) bool places; a number where presence never varies among them."""
        target = self.target[train]
        if self.entry.target == "presence":
            target = target.astype(int) if self.entry.link is None else target
            if self.entry.link is None and np.unique(target).size < 2 and self.entry.inputs != "nothing":
                return float(target[0])
        return self.entry.estimator(self.seed).fit(self.table[train], target, sample_weight=self.weight[train])

    def score(self, fitted: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What orders (N,) bool places, and the predicted probability or share of each."""
        table = self.table[rows]
        if isinstance(fitted, float):
            return np.full(len(table), fitted), np.full(len(table), fitted)
        if hasattr(fitted, "transformed"):
            return fitted.transformed(table), np.clip(fitted.predict(table), 0.0, 1.0)
        chance = fitted.predict_proba(table)
        chance = chance[:, 1] if chance.shape[1] > 1 else np.full(len(table), float(fitted.classes_[0]))
        # A decision function keeps the order of places whose probabilities are rounded to 0 or 1.
        return (fitted.decision_function(table) if hasattr(fitted, "decision_function") else chance), chance

    def result(
        self, train: np.ndarray, test: np.ndarray, inner: Callable[[], np.ndarray], calibrate: bool
    ) -> BaselineResult:
        """Predictions of the test places; ``inner`` gives (N,) scores of training places for the calibration."""
        ranking, plain = self.score(self.fit(train), test)
        probability = plain
        if calibrate and not self.entry.own_probability:
            probability = isotonic_probability(inner()[train], self.presence[train], ranking)
        return BaselineResult(self.name, ranking, probability, plain if self.entry.gives_share else None)

    def inner(self, train: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """(N,) scores of the training places by fits without their fold, NaN elsewhere."""
        _, group = np.unique(fold[train], return_inverse=True)
        group = np.ravel(group) % _INNER_GROUPS if group.max() > 0 else np.arange(group.size) % 2
        whole = np.full(self.size, -1)
        whole[train] = group
        scores = np.full(self.size, np.nan)
        for one in np.unique(group):
            held_out = whole == one
            scores[held_out] = self.score(self.fit(train & ~held_out), held_out)[0]
        return scores

    def brought_at(self, rows: np.ndarray, whole: bool = False) -> BaselineResult:
        """Predictions of the caller at (N,) bool places, of all places with NaN elsewhere if ``whole``."""
        given = self.brought
        assert given is not None
        arrays: list[np.ndarray | None] = []
        for values in (given.probability if given.ranking is None else given.ranking, given.probability, given.share):
            if values is None:
                arrays.append(None)
                continue
            values = np.asarray(values, dtype=np.float64).ravel()
            if values.size != self.size or not np.isfinite(values[rows]).all():
                raise AgriClipError(
                    f"The predictions brought as '{self.name}' must have a number for each of the {self.size} places "
                    "that is scored."
                )
            arrays.append(np.where(rows, values, np.nan) if whole else values[rows])
        ranking, probability, share = arrays
        assert ranking is not None and probability is not None
        if np.nanmin(probability) < 0 or np.nanmax(probability) > 1:
            raise AgriClipError(f"The probabilities brought as '{self.name}' must lie between 0 and 1.")
        return BaselineResult(self.name, ranking, probability, share)


def _paired(
    job: _Job, fold: np.ndarray, names: np.ndarray, left_out: Any, pairs: dict[frozenset[Any], np.ndarray]
) -> np.ndarray:
    """(N,) scores of all places outside a fold, by fits that left out that fold and the place's own."""
    scores = np.full(job.size, np.nan)
    for other in names:
        if other == left_out:
            continue
        key = frozenset((left_out, other))
        if key not in pairs:
            both = np.isin(fold, list(key))
            pairs[key] = np.full(job.size, np.nan)
            pairs[key][both] = job.score(job.fit(~both), both)[0]
        scores[fold == other] = pairs[key][fold == other]
    return scores
