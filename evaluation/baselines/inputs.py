"""What baselines may look at, what they give back, and why one cannot be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evaluation.baselines.registry import REGISTRY, Baseline, Brought
from processing.errors import AgriClipError, nearest

__all__ = ["BaselineInputs", "BaselineResult", "Predictions", "reason_to_skip"]

_MAX_GAUSSIAN_PROCESS = 3000


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model that was fitted elsewhere, on the same folds.

    Attributes:
        probability: (N,) probability of presence; NaN where none was made.
        ranking: (N,) what orders the places; the probability if None.
        share: (N,) predicted share, or None.
    """

    probability: np.ndarray
    ranking: np.ndarray | None = None
    share: np.ndarray | None = None


@dataclass(frozen=True)
class BaselineInputs:
    """What baselines may look at, one row per place; NaN = missing.

    Attributes:
        features: (N, F) all that the network gets, as a table.
        predictors: (N, M) predictors alone; the features if None.
        imagery: (N, F - M) statistics of imagery alone.
        xy: (N, 2) coordinates on which distances mean the same in both directions.
        rules: Rule -> (N,) score between 0 and 1.
        errors: (N, F) standard deviations of the features' errors; 0 if None.
        monthly: (N, 24) monthly temperature and rain, or whatever months there are.
        embeddings: (N, D) frozen embeddings.
        brought: Name -> predictions of the caller.
        reasons: Name of an input or a rule -> why it is not there.
    """

    features: np.ndarray
    predictors: np.ndarray | None = None
    imagery: np.ndarray | None = None
    xy: np.ndarray | None = None
    rules: Mapping[str, np.ndarray] = field(default_factory=dict)
    errors: np.ndarray | None = None
    monthly: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    brought: Mapping[str, Predictions] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def table(self, entry: Baseline) -> np.ndarray:
        """(N, F) float64 input of a baseline, NaN where missing."""
        features = np.asarray(self.features, dtype=np.float64)
        if entry.inputs == "nothing":
            return np.zeros((len(features), 1))
        if entry.inputs == "rules":
            return np.column_stack([np.asarray(self.rules[name], dtype=np.float64) for name in entry.columns])
        if entry.inputs == "predictors+imagery+errors":
            errors = np.zeros_like(features) if self.errors is None else np.asarray(self.errors, dtype=np.float64)
            if errors.shape != features.shape:
                raise AgriClipError(f"Errors of inputs have shape {errors.shape}, the features {features.shape}.")
            table = np.concatenate([features, errors], axis=1)
        elif entry.inputs == "predictors+imagery+monthly":
            table = np.concatenate([features, np.asarray(self.monthly, dtype=np.float64)], axis=1)
        else:
            own = ("xy", "predictors", "imagery", "embeddings")
            given = getattr(self, entry.inputs) if entry.inputs in own else None
            table = features if given is None else np.asarray(given, dtype=np.float64)
        return np.where(np.isfinite(table), table, np.nan)


@dataclass(frozen=True)
class BaselineResult:
    """Predictions of one baseline for places that it was not fitted to.

    Attributes:
        name: Key of :data:`REGISTRY`, or a name of the caller's.
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


def reason_to_skip(name: str, inputs: BaselineInputs, share: bool = True) -> str | None:
    """Why a baseline cannot be run.

    Args:
        name: Key of :data:`REGISTRY`, or of the predictions brought.
        inputs: What there is.
        share: Whether the labels are shares.

    Returns:
        Part of a sentence; None if it can be run.

    Raises:
        AgriClipError: For an unknown name.
    """
    if name in inputs.brought:
        return None
    entry = REGISTRY.get(name)
    if entry is None:
        raise AgriClipError(f"There is no baseline '{name}'; {nearest(name, [*REGISTRY, *inputs.brought])}")
    if isinstance(entry, Brought):
        return f"no predictions of it were brought ({entry.about})"
    if entry.target == "share" and not share:
        return "it needs shares, and these labels have none; use one on presence"
    for rule in entry.columns:
        if rule not in inputs.rules:
            return inputs.reasons.get(rule, "the score of the rule was not given")
    needed = {
        "xy": (inputs.xy, "coordinates"),
        "imagery": (inputs.imagery, "imagery"),
        "embeddings": (inputs.embeddings, "frozen embeddings"),
        "predictors+imagery+monthly": (inputs.monthly, "a monthly climate"),
    }
    given, missing = needed.get(entry.inputs, (inputs.features, ""))
    if given is None:
        return inputs.reasons.get(entry.inputs, f"it needs {missing}, not given here")
    if "Gaussian process" in name and len(inputs.features) > _MAX_GAUSSIAN_PROCESS:
        count = len(inputs.features)
        return f"a Gaussian process on {count} places needs too much memory; give it at most {_MAX_GAUSSIAN_PROCESS}"
    return None
