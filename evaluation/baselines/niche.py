"""Niche models of ecology: MaxEnt, a percentile envelope, and a quadratic logistic regression.

Three choices define this file. MaxEnt is solved as what it is, a Poisson point process with an L1 penalty (Phillips,
Anderson, Dudik, Schapire & Blair 2017, Ecography 40:887-893; Renner & Warton 2013, Biometrics 69:274-281), by a convex
solver and without sampling; where absences were observed, the same features enter the binomial likelihood with the
link that this process implies. Its features and their penalties are the published defaults (Phillips & Dudik 2008,
Ecography 31:161-175). And all three are classifiers of scikit-learn that take missing values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from evaluation.baselines.share import fill, medians
from processing.errors import AgriClipError, nearest

__all__ = ["MaxEnt", "PercentileEnvelope", "QuadraticLogistic"]

# Phillips & Dudik 2008, table 3: penalty by number of presences.
_PENALTIES = {
    "linear": ((10, 30, 100), (1.0, 0.2, 0.05)),
    "quadratic": ((0, 10, 17, 30, 100), (1.3, 0.8, 0.5, 0.25, 0.05)),
    "hinge": ((0,), (0.5,)),
}
_LARGEST = 50.0  # of a linear predictor: beyond it a probability is 1


class _Presence(ClassifierMixin, BaseEstimator):
    """What classifiers of two classes share: checked input, missing values filled, the larger class is presence.

    Weights say how much a place counts, not how often it was seen: medians and ranges are those of the rows.
    """

    def _start(
        self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Checked and filled (N, F) features, (N,) presence 0 or 1, (N,) weights."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=False)
        check_classification_targets(y)
        if type_of_target(y) not in ("binary", "multiclass"):
            raise ValueError(f"Unknown label type: {type_of_target(y)}")
        self.classes_, present = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(
                f"Only binary classification is supported: there are {len(self.classes_)} classes, not presence and "
                "absence."
            )
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of two classes, presence and absence, not of one class only."
            )
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.middle_ = medians(X)
        return fill(X, self.middle_), present.astype(np.float64), weight

    def _table(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        return fill(validate_data(self, X, dtype=np.float64, ensure_all_finite=False, reset=False), self.middle_)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(N,) classes: presence where its probability reaches one half."""
        reached = self.predict_proba(X)[:, 1] >= 0.5
        return self.classes_[reached.astype(int)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.multi_class = False
        return tags


class MaxEnt(_Presence):
    """Maximum entropy distribution with linear, quadratic and hinge features, L1 penalty and cloglog output.

    With ``absences="background"`` places without the crop are background, and so are those with it: the penalised log
    likelihood of a Poisson process, ``mean over presences of eta - log mean over all places of exp(eta) - sum of
    lambda_j |beta_j|``, is maximised, which is MaxEnt. The probability of presence is ``1 - exp(-exp(H + log raw))``
    with the distribution's entropy H (Phillips et al. 2017, equation 5). With ``"observed"`` absences count as such:
    presence is binomial with ``P = 1 - exp(-exp(alpha + eta))``, the chance of at least one point of that process, and
    the same features and penalties.

    Args:
        features: Any of ``linear``, ``quadratic``, ``hinge``.
        knots: Hinges begin at this many values spread evenly over the range of each variable.
        regularization: Multiplies the penalties.
        absences: ``background`` or ``observed``.
        max_iter: Most steps of the solver.

    Attributes:
        coef_: (K,) coefficients of the features of :meth:`expand`.
        penalty_: (K,) lambda of each.
        intercept_: alpha, or minus the log of the normaliser.
    """

    def __init__(
        self,
        features: tuple[str, ...] = ("linear", "quadratic", "hinge"),
        knots: int = 10,
        regularization: float = 1.0,
        absences: str = "background",
        max_iter: int = 500,
    ) -> None:
        self.features, self.knots, self.regularization = features, knots, regularization
        self.absences, self.max_iter = absences, max_iter

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> MaxEnt:
        """Fits (N, F) features to (N,) presence and absence.

        Raises:
            AgriClipError: For unknown features or kinds of absence.
        """
        unknown = [name for name in self.features if name not in _PENALTIES]
        if unknown or not self.features:
            raise AgriClipError(f"MaxEnt has no feature '{''.join(unknown[:1])}'; {nearest(unknown[:1], _PENALTIES)}.")
        if self.absences not in ("background", "observed"):
            raise AgriClipError(f"Absences of MaxEnt are 'background' or 'observed', not '{self.absences}'.")
        if self.knots < 2 or not self.regularization > 0:
            raise AgriClipError("MaxEnt needs at least 2 knots and a regularization above 0.")
        table, present, weight = self._start(X, y, sample_weight)
        self.low_, high = table.min(axis=0), table.max(axis=0)
        self.span_ = np.where(high > self.low_, high - self.low_, 1.0)
        values = self.expand(table)
        here = present > 0
        self.penalty_ = self.regularization * _penalties(values[here], weight[here], self._kinds(table.shape[1]))
        smooth = _poisson if self.absences == "background" else _binomial
        share = present * weight / (present * weight).sum()
        # Features divided by their penalties have one penalty, which also suits the solver's steps.
        scaled = values / self.penalty_
        free = int(self.absences == "observed")
        start = np.array([_link(np.average(present, weights=weight))] if free else [])
        solution, self.n_iter_ = _solve_l1(
            smooth(scaled, present, weight / weight.sum(), share), scaled.shape[1], start, self.max_iter
        )
        self.coef_ = solution[free:] / self.penalty_
        eta = values @ self.coef_
        if free:
            self.intercept_, self.entropy_ = float(solution[0]), 0.0
        else:
            total = eta.max() + np.log(np.average(np.exp(eta - eta.max()), weights=weight))
            self.intercept_ = -float(total)
            density = np.exp(eta - total)  # relative to the background's, mean 1
            # log n plus the entropy of the raw distribution over n places; log raw lacks the same log n
            self.entropy_ = -float(np.average(density * (eta - total), weights=weight))
        return self

    def expand(self, table: np.ndarray) -> np.ndarray:
        """(N, K) features of (N, F) complete variables: by kind, each for all variables; held to the fitted range."""
        unit = np.clip((table - self.low_) / self.span_, 0.0, 1.0)
        parts = []
        for kind in self.features:
            if kind == "linear":
                parts.append(unit)
            elif kind == "quadratic":
                parts.append(unit**2)
            else:
                knots = np.linspace(0.0, 1.0, self.knots)
                parts += [np.maximum(unit - knot, 0.0) / (1.0 - knot) for knot in knots[:-1]]
                parts += [np.maximum(knot - unit, 0.0) / knot for knot in knots[1:]]
        return np.concatenate(parts, axis=1)

    def _kinds(self, variables: int) -> list[str]:
        each = {"linear": 1, "quadratic": 1, "hinge": 2 * (self.knots - 1)}
        return [kind for kind in self.features for _ in range(each[kind] * variables)]

    def log_intensity(self, X: np.ndarray) -> np.ndarray:
        """(N,) log of the intensity of presences relative to its mean over the background."""
        return self.expand(self._table(X)) @ self.coef_ + self.intercept_

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """(N,) log odds of presence."""
        link = np.minimum(self.log_intensity(X) + self.entropy_, _LARGEST)
        # log(exp(r) - 1) with r = exp(link); for a small r that is its logarithm
        rate = np.exp(np.maximum(link, -_LARGEST))
        return np.where(link < -20.0, link, rate + np.log(-np.expm1(-rate)))

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(N, 2) probability of absence and of presence, cloglog."""
        absent = np.exp(-np.exp(np.minimum(self.log_intensity(X) + self.entropy_, _LARGEST)))
        return np.column_stack([absent, 1.0 - absent])


class PercentileEnvelope(_Presence):
    """The envelope of the presences (BIOCLIM: Nix 1986; Busby 1991): how central a place is in its least central way.

    For each variable the percentile p of the place among the presences; its score is 2 min(p, 1 - p), 0 outside their
    range, and the lowest over the variables counts. Absences are not used.
    """

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> PercentileEnvelope:
        """Keeps the sorted values of the presences."""
        table, present, weight = self._start(X, y, sample_weight)
        here = (present > 0) & (weight > 0)
        if not here.any():
            raise AgriClipError("An envelope needs presences with a weight above 0.")
        order = np.argsort(table[here], axis=0, kind="stable")
        self.values_ = np.take_along_axis(table[here], order, axis=0)
        self.below_ = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(weight[here][order], axis=0)])
        self.below_ /= self.below_[-1]
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(N, 2): 1 - score and score. The score is an index of suitability, no frequency."""
        table = self._table(X)
        score = np.ones(len(table))
        for index, values in enumerate(self.values_.T):
            under = self.below_[np.searchsorted(values, table[:, index], side="left"), index]
            over = 1.0 - self.below_[np.searchsorted(values, table[:, index], side="right"), index]
            # a value that a presence has lies inside: half of its own step on either side
            half = 0.5 * (1.0 - under - over)
            inside = (table[:, index] >= values[0]) & (table[:, index] <= values[-1])
            score = np.minimum(score, np.where(inside, 2.0 * np.minimum(under, over) + 2.0 * half, 0.0))
        score = np.clip(score, 0.0, 1.0)
        return np.column_stack([1.0 - score, score])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # an index: one half of it is no boundary
        return tags


class QuadraticLogistic(_Presence):
    """Logistic regression on standardised variables and their squares, with a ridge penalty.

    The form in which suitability of double cropping was fitted before (Lant et al. 2016; Gammans et al. 2024): a
    response per variable that may rise and fall again.

    Args:
        C: Inverse strength of the penalty.
        interactions: Whether products of variables are added.
        max_iter: Most steps of the solver.
    """

    def __init__(self, C: float = 1.0, interactions: bool = False, max_iter: int = 1000) -> None:
        self.C, self.interactions, self.max_iter = C, interactions, max_iter

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> QuadraticLogistic:
        """Fits (N, F) features to (N,) presence and absence."""
        from sklearn.linear_model import LogisticRegression

        table, present, weight = self._start(X, y, sample_weight)
        self.mean_, spread = table.mean(axis=0), table.std(axis=0)
        self.spread_ = np.where(spread > 0, spread, 1.0)
        self.model_ = LogisticRegression(C=self.C, max_iter=self.max_iter)
        self.model_.fit(self._squares(table), present, sample_weight=weight)
        self.n_iter_ = int(self.model_.n_iter_[0])
        return self

    def _squares(self, table: np.ndarray) -> np.ndarray:
        # a place far outside must not be judged by a square of ten thousand
        unit = np.clip((table - self.mean_) / self.spread_, -5.0, 5.0)
        parts = [unit, unit**2]
        if self.interactions:
            first, second = np.triu_indices(unit.shape[1], 1)
            parts.append(unit[:, first] * unit[:, second])
        return np.concatenate(parts, axis=1)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(N, 2) probability of absence and of presence."""
        table = self._table(X)
        return self.model_.predict_proba(self._squares(table))

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """(N,) log odds of presence."""
        table = self._table(X)
        return self.model_.decision_function(self._squares(table))


Smooth = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _penalties(values: np.ndarray, weight: np.ndarray, kinds: list[str]) -> np.ndarray:
    """(K,) penalties of features (n, K) at the presences: a multiple of the error of their mean."""
    count = weight.sum() ** 2 / (weight**2).sum()  # effective number of presences
    mean = np.average(values, axis=0, weights=weight)
    spread = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
    multiple = np.array([np.interp(count, *_PENALTIES[kind]) for kind in kinds])
    # a hinge that no presence reaches has no spread, yet is not free
    least = np.where(np.array(kinds) == "hinge", 1.0 / np.sqrt(count), 1e-3 * np.sqrt(count))
    return np.maximum(multiple * np.maximum(spread, least), 1e-3) / np.sqrt(count)


def _poisson(values: np.ndarray, present: np.ndarray, weight: np.ndarray, share: np.ndarray) -> Smooth:
    """Log of the mean intensity less the mean log intensity at presences, and its gradient."""
    at_presences = share @ values

    def smooth(beta: np.ndarray) -> tuple[float, np.ndarray]:
        eta = values @ beta
        top = eta.max()
        mass = weight * np.exp(eta - top)
        total = mass.sum()
        return float(top + np.log(total) - at_presences @ beta), (mass / total) @ values - at_presences

    return smooth


def _binomial(values: np.ndarray, present: np.ndarray, weight: np.ndarray, share: np.ndarray) -> Smooth:
    """Negative log likelihood with the complementary log-log link, per presence, and its gradient; intercept first."""
    per_presence = 1.0 / (weight * present).sum()

    def smooth(theta: np.ndarray) -> tuple[float, np.ndarray]:
        eta = np.clip(theta[0] + values @ theta[1:], -_LARGEST, 30.0)
        rate = np.exp(eta)
        log_present = np.log(-np.expm1(-rate))
        loss = -(weight * (present * log_present - (1.0 - present) * rate)).sum() * per_presence
        # d log(1 - exp(-r)) / d eta = r / (exp(r) - 1)
        slope = np.where(rate > 700.0, 0.0, rate / np.expm1(np.minimum(rate, 700.0)))
        pull = -weight * (present * slope - (1.0 - present) * rate) * per_presence
        return float(loss), np.concatenate([[pull.sum()], pull @ values])

    return smooth


def _link(probability: float) -> float:
    return float(np.log(-np.log1p(-np.clip(probability, 1e-6, 1.0 - 1e-6))))


def _solve_l1(smooth: Smooth, count: int, free: np.ndarray, max_iter: int) -> tuple[np.ndarray, int]:
    """Minimises a smooth convex function plus the sum of |beta|; ``free``: start of unpenalised parameters, put first.

    Each coefficient is the difference of two that are not negative, so the penalty is linear and the problem is one of
    bounds (Schmidt, Fung & Rosales 2007).
    """
    from scipy.optimize import minimize

    lead = len(free)

    def split(point: np.ndarray) -> tuple[float, np.ndarray]:
        plus, minus = point[lead : lead + count], point[lead + count :]
        value, gradient = smooth(np.concatenate([point[:lead], plus - minus]))
        slope = gradient[lead:]
        return value + plus.sum() + minus.sum(), np.concatenate([gradient[:lead], slope + 1.0, 1.0 - slope])

    start = np.concatenate([free, np.zeros(2 * count)])
    bounds = [(None, None)] * lead + [(0.0, None)] * (2 * count)
    options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "maxcor": 30, "ftol": 1e-14, "gtol": 2e-3}
    found = minimize(split, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    point = found.x
    return np.concatenate([point[:lead], point[lead : lead + count] - point[lead + count :]]), max(1, int(found.nit))
