"""What a good modeller would have done without us: tree ensembles and a Gaussian process on the same folds.

Three choices define this file. Every baseline is scored out of fold on the very folds the model was scored on. A
baseline that predicts a share gets its probability of presence from an isotonic map fitted inside the training folds
(predictions of an inner cross-validation over whole folds), never on the fold that is scored. Each baseline is a small
estimator with `fit` and `predict`, so a better one can be added in a few lines.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics import score_presence
from processing.errors import AgriClipError, nearest

__all__ = ["BASELINES", "BaselineResult", "compare", "comparison_table", "out_of_fold", "run_baselines"]

_OFFSET = 0.001  # added to a share before its logarithm: half of the presence threshold's order of magnitude
_MAX_GAUSSIAN_PROCESS = 3000


class _Baseline:
    """A regressor with a transformed target. ``predict`` returns a ranking score, larger = more suitable.

    Args:
        regressor: Factory of a scikit-learn regressor, given the seed.
        forward: Transform of the target before fitting.
        target: ``presence`` or ``share``.
        weighted: Whether ``fit`` passes sample weights on (a Gaussian process of scikit-learn takes none).
        scale: Whether the features are standardised first.
    """

    def __init__(
        self,
        regressor: Callable[[int], Any],
        *,
        target: str,
        forward: Callable[[np.ndarray], np.ndarray] = lambda y: y,
        weighted: bool = True,
        scale: bool = False,
    ) -> None:
        self.regressor, self.target, self.forward = regressor, target, forward
        self.weighted, self.scale = weighted, scale

    def fit_predict(
        self, features: np.ndarray, y: np.ndarray, weight: np.ndarray, new: np.ndarray, seed: int
    ) -> np.ndarray:
        """Fits on (n, F) features and predicts the (m, F) ``new`` ones; returns (m,)."""
        from sklearn.exceptions import ConvergenceWarning

        # Trees of scikit-learn take NaN, kernels do not; the median of the training rows is plain and leaks nothing.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a feature that is missing everywhere: 0 below
            middle = np.nanmedian(np.where(np.isfinite(features), features, np.nan), axis=0)
        middle = np.where(np.isfinite(middle), middle, 0.0)
        train = np.where(np.isfinite(features), features, middle)
        test = np.where(np.isfinite(new), new, middle)
        if self.scale:
            mean, std = train.mean(axis=0), train.std(axis=0)
            std[std == 0] = 1.0
            train, test = (train - mean) / std, (test - mean) / std
        model = self.regressor(seed)
        keywords = {"sample_weight": weight} if self.weighted else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a kernel at its bound still predicts
            model.fit(train, self.forward(y), **keywords)
        return np.asarray(model.predict(test), dtype=np.float64)


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(300, min_samples_leaf=2, max_features=0.4, n_jobs=-1, random_state=seed)


def _extra_trees(seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(300, min_samples_leaf=2, max_features=0.4, n_jobs=-1, random_state=seed)


def _gaussian_process(seed: int) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, RationalQuadratic, WhiteKernel

    kernel = ConstantKernel(1.0) * RationalQuadratic(3.0, 1.0) + ConstantKernel(0.5) * RBF(10.0) + WhiteKernel(0.3)
    return GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=0, random_state=seed)


def _log_share(share: np.ndarray) -> np.ndarray:
    return np.log(share + _OFFSET)


#: Name -> estimator. The names are what tables and reports show.
BASELINES: dict[str, _Baseline] = {
    "random forest (presence)": _Baseline(_forest, target="presence"),
    "random forest (share)": _Baseline(_forest, target="share"),
    "random forest (sqrt share)": _Baseline(_forest, target="share", forward=np.sqrt),
    "extra trees (log share)": _Baseline(_extra_trees, target="share", forward=_log_share),
    "Gaussian process (log share)": _Baseline(
        _gaussian_process, target="share", forward=_log_share, weighted=False, scale=True
    ),
}

#: What is run for each training objective of a study when nothing else is asked for.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "share": ("random forest (presence)", "random forest (sqrt share)", "extra trees (log share)"),
    "binary": ("random forest (share)",),
    "presence_only": ("random forest (presence)",),
}


@dataclass(frozen=True)
class BaselineResult:
    """Out-of-fold predictions of one baseline.

    Attributes:
        name: Key of :data:`BASELINES`.
        ranking: (N,) raw prediction: orders the places.
        probability: (N,) calibrated probability of presence.
        share: (N,) predicted share for the baselines whose target is the share itself, else None.
    """

    name: str
    ranking: np.ndarray
    probability: np.ndarray
    share: np.ndarray | None

    def at(self, rows: np.ndarray) -> BaselineResult:
        """The predictions of some places only.

        Args:
            rows: Indices of the places.
        """
        share = None if self.share is None else self.share[rows]
        return BaselineResult(self.name, self.ranking[rows], self.probability[rows], share)


def out_of_fold(
    name: str,
    features: np.ndarray,
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
        name: Key of :data:`BASELINES`.
        features: (N, F) table; NaN = missing.
        folds: (N,) fold of each place.
        presence: (N,) 0 or 1.
        share: (N,) share between 0 and 1; needed by the baselines on shares.
        weight: (N,) weights used in fitting.
        seed: Seed of the estimator.
        calibrate: Whether a predicted share is turned into a probability of presence (the costly part). Without it the
            probability is the predicted share, which is right where units are scored and not places.
        only: Folds to predict; places of other folds are fitted on as always and their predictions are NaN.

    Returns:
        The predictions.

    Raises:
        AgriClipError: For an unknown name, arrays of different length, or a single fold.
    """
    baseline = BASELINES.get(name)
    if baseline is None:
        raise AgriClipError(f"There is no baseline '{name}'; {nearest(name, BASELINES)}")
    table = np.asarray(features, dtype=np.float64)
    fold = np.asarray(folds).ravel()
    present = np.asarray(presence, dtype=np.float64).ravel()
    weights = np.ones(fold.size) if weight is None else np.asarray(weight, dtype=np.float64).ravel()
    if baseline.target == "share" and share is None:
        raise AgriClipError(f"The baseline '{name}' needs shares, and these labels have none; use one on presence.")
    target = present if baseline.target == "presence" else np.asarray(share, dtype=np.float64).ravel()
    if table.ndim != 2 or not len(table) == fold.size == present.size == target.size == weights.size:
        raise AgriClipError("Features, folds, labels and weights of a baseline must have one row per place.")
    if np.unique(fold).size < 2:
        raise AgriClipError("A baseline needs at least two folds; set splits.folds to 2 or more.")
    if "Gaussian process" in name and fold.size > _MAX_GAUSSIAN_PROCESS:
        raise AgriClipError(
            f"A Gaussian process on {fold.size} places needs too much memory; give it at most {_MAX_GAUSSIAN_PROCESS}."
        )
    ranking, probability = np.full(fold.size, np.nan), np.full(fold.size, np.nan)
    for test_fold in np.unique(fold):
        if only is not None and test_fold not in only:
            continue
        test = fold == test_fold
        train = ~test
        ranking[test] = baseline.fit_predict(table[train], target[train], weights[train], table[test], seed)
        if baseline.target == "presence" or not calibrate:
            probability[test] = np.clip(ranking[test], 0.0, 1.0)
        else:
            inner = _inner_predictions(baseline, table[train], target[train], weights[train], fold[train], seed)
            probability[test] = _isotonic(inner, present[train], ranking[test])
    is_share = baseline.target == "share" and baseline.forward(np.array([0.25]))[0] == 0.25
    return BaselineResult(name, ranking, probability, np.clip(ranking, 0.0, 1.0) if is_share else None)


def run_baselines(
    features: np.ndarray,
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
        features: (N, F) table; NaN = missing.
        folds: (N,) fold of each place.
        presence: (N,) 0 or 1.
        share: (N,) shares, if the labels have them.
        weight: (N,) weights used in fitting (number of trials, for counts).
        objective: ``share`` or ``binary``: chooses the default baselines.
        names: Keys of :data:`BASELINES`, to choose others.
        seed: Seed of the estimators.
        calibrate: As in :func:`out_of_fold`.
        only: As in :func:`out_of_fold`.
        progress: Called with the name before each baseline.

    Returns:
        One result per baseline.
    """
    if names is None:
        if objective not in DEFAULTS:
            raise AgriClipError(f"There is no objective '{objective}'; {nearest(objective, DEFAULTS)}")
        names = DEFAULTS[objective] if share is not None else ("random forest (presence)",)
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


def _inner_predictions(
    baseline: _Baseline, features: np.ndarray, target: np.ndarray, weight: np.ndarray, fold: np.ndarray, seed: int
) -> np.ndarray:
    """Out-of-fold predictions within the training folds: what the calibration map is fitted on."""
    groups = fold if np.unique(fold).size > 1 else np.arange(fold.size) % 2
    predictions = np.empty(fold.size)
    for held_out in np.unique(groups):
        test = groups == held_out
        train = ~test
        predictions[test] = baseline.fit_predict(features[train], target[train], weight[train], features[test], seed)
    return predictions


def _isotonic(score: np.ndarray, presence: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Isotonic map from score to probability, kept off 0 and 1 by the number of places it was fitted on."""
    from sklearn.isotonic import IsotonicRegression

    # A step that saw no presence among n places does not prove that there is none: Laplace's rule at the ends.
    edge = 1.0 / (score.size + 2.0)
    model = IsotonicRegression(y_min=edge, y_max=1.0 - edge, out_of_bounds="clip")
    return np.asarray(model.fit(score, presence).predict(new))
