"""The baselines by name: what each is fitted to, which inputs it takes, and how its score becomes a probability.

Three choices define this file. A baseline is an estimator of scikit-learn and a few words about it, so that a better
one is added in a few lines. What it may look at is stated (coordinates, predictors, imagery, a rule's score), for a
comparison is only as fair as its inputs. And predictions that were made elsewhere, such as those of a network without
its images, have names here as well, so that they stand in the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sklearn.base import BaseEstimator

from evaluation.baselines.bayes import BayesianDiscriminant
from evaluation.baselines.niche import MaxEnt, PercentileEnvelope, QuadraticLogistic
from evaluation.baselines.rules import ENVELOPE, HEAT_UNITS, Prevalence, RuleScore
from evaluation.baselines.share import GaussianProcessOnSubset, ShareRegressor, kriging_kernel

__all__ = ["ALL", "BASELINES", "COSTLY", "DEFAULTS", "INPUTS", "REGISTRY", "STANDARD", "Baseline", "Brought"]

#: Inputs of baselines: name -> what it is.
INPUTS: dict[str, str] = {
    "nothing": "nothing but the labels",
    "xy": "coordinates of the places",
    "rules": "the score of a rule of agronomy",
    "predictors": "the predictors of the study",
    "imagery": "statistics of imagery alone",
    "predictors+imagery": "predictors and statistics of imagery: all that the network gets",
    "predictors+imagery+errors": "the same with standard deviations of their errors, where known",
    "predictors+imagery+monthly": "the same with monthly temperature and rain",
    "embeddings": "frozen embeddings, computed by the caller",
    "predictions": "predictions, brought by the caller",
}


@dataclass
class Baseline:
    """A baseline that is fitted.

    Attributes:
        regressor: Factory of its estimator, given a seed.
        target: What it is fitted to: ``presence`` or ``share``.
        inputs: Key of :data:`INPUTS`.
        link: Scale on which a share is fitted, key of ``share.LINKS``; with it the estimator is put into a
            :class:`ShareRegressor`, which fills missing values. None for an estimator that is complete.
        scale: As in :class:`ShareRegressor`.
        weighted: As in :class:`ShareRegressor`.
        own_probability: Whether its output is a probability of presence already; otherwise an isotonic map of inner
            folds makes it one.
        columns: Names of the columns wanted of the rules.
    """

    regressor: Callable[[int], Any]
    target: str = "presence"
    inputs: str = "predictors+imagery"
    link: str | None = None
    scale: bool | str = False
    weighted: bool = True
    own_probability: bool = False
    columns: tuple[str, ...] = ()

    def estimator(self, seed: int = 0) -> BaseEstimator:
        """The estimator, not fitted: ``fit(X, y, sample_weight)``, and ``predict`` or ``predict_proba``."""
        made = self.regressor(seed)
        if self.link is None:
            return made
        return ShareRegressor(made, link=self.link, scale=self.scale, weighted=self.weighted)

    @property
    def gives_share(self) -> bool:
        """Whether what it predicts is the expected share itself: neither a median nor a square of a mean."""
        return self.target == "share" and self.link == "identity"


@dataclass(frozen=True)
class Brought:
    """Predictions that the caller brings, by the name under which they stand in the table.

    Attributes:
        about: What was fitted to make them.
    """

    about: str
    inputs: str = "predictions"


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(300, min_samples_leaf=2, max_features=0.4, n_jobs=-1, random_state=seed)


def _extra_trees(seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(300, min_samples_leaf=2, max_features=0.4, n_jobs=-1, random_state=seed)


_BOOSTING = {"learning_rate": 0.1, "max_iter": 100, "max_leaf_nodes": 15, "min_samples_leaf": 10}


def _boosting(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(**_BOOSTING, l2_regularization=1.0, random_state=seed)


def _boosting_classifier(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(**_BOOSTING, l2_regularization=1.0, random_state=seed)


def _gaussian_process(seed: int) -> Any:
    return GaussianProcessOnSubset(random_state=seed)


def _kriging(seed: int) -> Any:
    return GaussianProcessOnSubset(kriging_kernel(), random_state=seed)


def _neighbours(seed: int) -> Any:
    from sklearn.neighbors import KNeighborsRegressor

    return KNeighborsRegressor(15, weights="distance")


def _process(inputs: str) -> Baseline:
    return Baseline(_gaussian_process, "share", inputs, "log", scale=True, weighted=False)


def _trees(
    factory: Callable[[int], Any], target: str, link: str = "identity", inputs: str = "predictors+imagery"
) -> Baseline:
    return Baseline(factory, target, inputs, link, own_probability=target == "presence")


#: Baselines fitted to all that the network gets, as a table: they need nothing but features.
BASELINES: dict[str, Baseline] = {
    "MaxEnt": Baseline(lambda seed: MaxEnt()),
    "MaxEnt features (presence and absence)": Baseline(lambda seed: MaxEnt(absences="observed"), own_probability=True),
    "quadratic logistic": Baseline(lambda seed: QuadraticLogistic(), own_probability=True),
    "random forest (presence)": _trees(_forest, "presence"),
    "random forest (share)": _trees(_forest, "share"),
    "random forest (sqrt share)": _trees(_forest, "share", "sqrt"),
    "random forest (log share)": _trees(_forest, "share", "log"),
    "extra trees (presence)": _trees(_extra_trees, "presence"),
    "extra trees (share)": _trees(_extra_trees, "share"),
    "extra trees (sqrt share)": _trees(_extra_trees, "share", "sqrt"),
    "extra trees (log share)": _trees(_extra_trees, "share", "log"),
    "gradient boosting (presence)": Baseline(_boosting_classifier),
    "gradient boosting (sqrt share)": Baseline(_boosting, "share", link="sqrt"),
    "Bayesian quadratic discriminant": Baseline(
        lambda seed: BayesianDiscriminant("columns"), inputs="predictors+imagery+errors"
    ),
    "Gaussian process (log share)": _process("predictors+imagery"),
}

#: All baselines, from what knows least to what knows most.
REGISTRY: dict[str, Baseline | Brought] = {
    "prevalence": Baseline(lambda seed: Prevalence(), inputs="nothing", own_probability=True),
    "coordinates only (nearest neighbours)": Baseline(
        _neighbours, "share", "xy", "sqrt", scale="common", weighted=False
    ),
    "coordinates only (kriging)": Baseline(_kriging, "share", "xy", "log", scale="common", weighted=False),
    HEAT_UNITS: Baseline(lambda seed: RuleScore(), inputs="rules", columns=(HEAT_UNITS,)),
    ENVELOPE: Baseline(lambda seed: RuleScore(), inputs="rules", columns=(ENVELOPE,)),
    "percentile envelope": Baseline(lambda seed: PercentileEnvelope(), inputs="predictors"),
    **BASELINES,
    "Gaussian process (log share, monthly climate)": _process("predictors+imagery+monthly"),
    "report's numbers only (extra trees, log share)": _trees(_extra_trees, "share", "log", "predictors"),
    "image statistics only (extra trees, log share)": _trees(_extra_trees, "share", "log", "imagery"),
    "gradient boosting on embeddings (presence)": Baseline(_boosting_classifier, inputs="embeddings"),
    "gradient boosting on embeddings (sqrt share)": Baseline(_boosting, "share", "embeddings", "sqrt"),
    "image only": Brought("the network without predictors and report"),
    "report only": Brought("the network without image, and without the numbers beside the report"),
    "digits as text": Brought("the network with the report's numbers written out as text"),
}

#: Every name.
ALL: tuple[str, ...] = tuple(REGISTRY)

#: Left out of :data:`STANDARD`: what adds little beside a sibling, and Gaussian processes, whose cost grows with the
#: cube of the number of places.
COSTLY: tuple[str, ...] = (
    "MaxEnt features (presence and absence)",
    "random forest (share)",
    "random forest (log share)",
    "extra trees (presence)",
    "extra trees (share)",
    "extra trees (sqrt share)",
    "Gaussian process (log share)",
    "Gaussian process (log share, monthly climate)",
)

#: A whole comparison in a few minutes.
STANDARD: tuple[str, ...] = tuple(name for name in ALL if name not in COSTLY)

#: What is scored beside every fit, by training objective.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "share": ("random forest (presence)", "random forest (sqrt share)", "extra trees (log share)"),
    "binary": ("random forest (share)",),
    "presence_only": ("random forest (presence)",),
}
