"""Bayesian quadratic discriminant analysis that knows how wrong its inputs are.

Three choices define this file. Each class is a Gaussian with a Normal-Inverse-Wishart prior, so that its posterior
predictive is a Student t and small classes are uncertain by themselves (Murphy 2012, section 4.6.3; Geisser 1964).
What is measured is the true value plus a Gaussian error of known covariance U, a different one in each row if need be
(Bilson et al. 2025, arXiv 2503.21510): the errors of the training rows are taken out of the scatter, and that of a new
row is put on the predictive. And a t convolved with a Gaussian is computed, not replaced: a t is a mixture of
Gaussians over one scale, which Gauss-Laguerre nodes integrate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from evaluation.baselines.share import fill, medians
from processing.errors import AgriClipError

__all__ = ["BayesianDiscriminant", "student_with_error"]

_LEAST_VARIANCE = 1e-3  # of a standardised variable, left when the errors of measurement are taken out
_ROWS = 256  # rows whose covariances are factorised at a time


class BayesianDiscriminant(ClassifierMixin, BaseEstimator):
    """Quadratic discriminant with a Normal-Inverse-Wishart prior and errors of measurement.

    The prior of a class has the mean of all rows, counted as ``mean_rows`` observations, and the covariance within
    classes, counted as ``covariance_rows``: few rows shrink towards a linear discriminant.

    Args:
        measurement: How errors are known: None for exact inputs; a number or (F,) standard deviations of all rows; or
            ``"columns"``, when X is (N, 2 F) and its second half holds the standard deviations of the first.
        mean_rows: Rows that the prior mean counts for (kappa_0).
        covariance_rows: Rows that the prior covariance counts for (nu_0 - F - 1).
        student: Whether the predictive is the Student t; without it the Gaussian of the same mean and covariance, the
            plug-in ``N(x; m_k, c_k S_k + U)``.
        nodes: Nodes of the integral over the scale of the t, used where rows have errors.

    Attributes:
        classes_: Classes.
        prior_: (K,) share of each class in the training weights.
        location_: (K, F) posterior mean of each class, of standardised variables.
        scale_: (K, F, F) scale matrix of its Student t.
        freedom_: (K,) degrees of freedom.
    """

    def __init__(
        self,
        measurement: Any = None,
        mean_rows: float = 0.1,
        covariance_rows: float = 10.0,
        student: bool = True,
        nodes: int = 5,
    ) -> None:
        self.measurement, self.mean_rows, self.covariance_rows = measurement, mean_rows, covariance_rows
        self.student, self.nodes = student, nodes

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> BayesianDiscriminant:
        """Fits.

        Args:
            X: (N, F) features, or (N, 2 F) with ``measurement="columns"``; NaN = missing.
            y: (N,) classes.
            sample_weight: (N,) weights; scaled to a mean of 1.

        Returns:
            Itself.

        Raises:
            AgriClipError: For settings or standard deviations that cannot be.
        """
        if not (self.mean_rows > 0 and self.covariance_rows > 0 and self.nodes >= 1):
            raise AgriClipError("mean_rows and covariance_rows of the discriminant must be above 0, nodes at least 1.")
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=False)
        check_classification_targets(y)
        self.classes_, label = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("A discriminant needs samples of at least two classes, not of one class only.")
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        weight = weight * len(weight) / weight.sum()
        values, error = self._parts(X)
        self.middle_ = medians(values)
        values = fill(values, self.middle_)
        self.mean_, spread = values.mean(axis=0), values.std(axis=0)
        self.spread_ = np.where(spread > 0, spread, 1.0)
        values = (values - self.mean_) / self.spread_
        variance = None if error is None else (error / self.spread_) ** 2
        members = [label == index for index in range(len(self.classes_))]
        self.prior_ = np.array([weight[member].sum() for member in members]) / weight.sum()
        scatters = [_scatter(values[m], weight[m], None if variance is None else variance[m]) for m in members]
        within = sum(scatter for _, scatter, _ in scatters) / weight.sum()
        within = _positive(within)
        self._posterior(scatters, within)
        return self

    def _posterior(self, scatters: list[tuple[np.ndarray, np.ndarray, float]], within: np.ndarray) -> None:
        """Updates the prior by mean, scatter and weight of each class (Murphy 2012, equations 4.209 to 4.214)."""
        features = len(within)
        freedom_0 = self.covariance_rows + features + 1.0
        psi_0 = self.covariance_rows * within  # so that the prior covariance has the mean `within`
        location, scale, freedom = [], [], []
        for mean, scatter, count in scatters:
            kappa, nu = self.mean_rows + count, freedom_0 + count
            # the prior mean is that of all rows: 0 of standardised values
            psi = psi_0 + scatter + self.mean_rows * count / kappa * np.outer(mean, mean)
            degrees = nu - features + 1.0
            location.append(count / kappa * mean)
            scale.append(_positive(psi) * (kappa + 1.0) / (kappa * degrees))
            freedom.append(degrees)
        self.location_, self.scale_, self.freedom_ = np.array(location), np.array(scale), np.array(freedom)

    def _parts(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(N, F) values and (N, F) standard deviations of their errors, None if there are none."""
        if self.measurement is None:
            return X, None
        if isinstance(self.measurement, str):
            if self.measurement != "columns" or X.shape[1] % 2:
                raise AgriClipError(
                    "measurement is None, standard deviations, or 'columns' with errors beside values."
                )
            values, error = np.split(X, 2, axis=1)
            error = np.where(np.isfinite(error), error, 0.0)
        else:
            try:
                values, error = X, np.broadcast_to(np.asarray(self.measurement, dtype=np.float64), X.shape)
            except ValueError as fault:
                raise AgriClipError(
                    f"measurement has {np.size(self.measurement)} standard deviations for {X.shape[1]} features."
                ) from fault
        if (error < 0).any() or not np.isfinite(error).all():
            raise AgriClipError("Standard deviations of measurement must be known and not negative; check the errors.")
        return values, error

    def log_likelihood(self, X: np.ndarray) -> np.ndarray:
        """(N, K) log density of each row as measured, given the class (of standardised variables)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite=False, reset=False)
        values, error = self._parts(X)
        values = (fill(values, self.middle_) - self.mean_) / self.spread_
        variance = None if error is None else (error / self.spread_) ** 2
        columns = []
        for location, scale, freedom in zip(self.location_, self.scale_, self.freedom_, strict=True):
            if self.student:
                columns.append(student_with_error(values - location, scale, freedom, variance, self.nodes))
            else:
                covariance = scale * freedom / (freedom - 2.0)
                columns.append(_gaussian(values - location, covariance, np.ones(1), variance)[:, 0])
        return np.column_stack(columns)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(N, K) probability of each class."""
        joint = self.log_likelihood(X) + np.log(np.maximum(self.prior_, 1e-300))
        joint = np.exp(joint - joint.max(axis=1, keepdims=True))
        return joint / joint.sum(axis=1, keepdims=True)

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """(N,) log odds of the second of two classes, or (N, K) log of likelihood and prior."""
        joint = self.log_likelihood(X) + np.log(np.maximum(self.prior_, 1e-300))
        return joint[:, 1] - joint[:, 0] if len(self.classes_) == 2 else joint

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(N,) most probable classes."""
        chance = self.predict_proba(X)
        return self.classes_[chance.argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def student_with_error(
    difference: np.ndarray, scale: np.ndarray, freedom: float, variance: np.ndarray | None = None, nodes: int = 5
) -> np.ndarray:
    """Log density of a multivariate Student t plus an independent Gaussian error.

    A t is Gaussian given w ~ Gamma(nu / 2, nu / 2) with covariance scale / w. With an error of covariance U the
    density is the mean of N(x; m, scale / w + U) over w, computed at the nodes of generalised Gauss-Laguerre
    quadrature (Golub & Welsch 1969).

    Args:
        difference: (N, F) values less the location.
        scale: (F, F) scale matrix.
        freedom: Degrees of freedom nu.
        variance: (N, F) variances of the errors; None for none.
        nodes: Nodes of the quadrature.

    Returns:
        (N,) log densities.
    """
    from scipy.special import gammaln, logsumexp

    features = difference.shape[1]
    if variance is None or not variance.any():
        factor = np.linalg.cholesky(scale)
        distance = (np.linalg.solve(factor, difference.T) ** 2).sum(axis=0)
        constant = gammaln(0.5 * (freedom + features)) - gammaln(0.5 * freedom)
        constant -= 0.5 * features * np.log(np.pi * freedom) + np.log(np.diag(factor)).sum()
        return constant - 0.5 * (freedom + features) * np.log1p(distance / freedom)
    # Weight t^alpha exp(-t), alpha = nu / 2 - 1; the eigenvectors' first entries give weights that sum to 1, and no
    # gamma function overflows.
    alpha, step = 0.5 * freedom - 1.0, np.arange(nodes)
    side = np.sqrt(step[1:] * (step[1:] + alpha))
    places, vectors = np.linalg.eigh(np.diag(2.0 * step + 1.0 + alpha) + np.diag(side, 1) + np.diag(side, -1))
    logs = _gaussian(difference, scale, places / (0.5 * freedom), variance)
    return logsumexp(logs + 2.0 * np.log(np.abs(vectors[0])), axis=1)


def _gaussian(
    difference: np.ndarray, covariance: np.ndarray, precision: np.ndarray, variance: np.ndarray | None
) -> np.ndarray:
    """(N, Q) log densities of (N, F) under N(0, covariance / precision_q + diag(variance_n))."""
    rows, features = difference.shape
    out = np.empty((rows, len(precision)))
    diagonal = np.arange(features)
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        count = len(difference[part])
        for column, factor in enumerate(precision):
            if variance is None:
                lower = np.linalg.cholesky(covariance / factor)
                whitened = np.linalg.solve(lower, difference[part].T).T
                logs = np.full(count, np.log(np.diag(lower)).sum())
            else:
                matrix = np.repeat((covariance / factor)[None], count, axis=0)
                matrix[:, diagonal, diagonal] += variance[part]
                lower = np.linalg.cholesky(matrix)
                whitened = np.linalg.solve(lower, difference[part][..., None])[..., 0]
                logs = np.log(lower[:, diagonal, diagonal]).sum(axis=1)
            out[part, column] = -0.5 * (whitened**2).sum(axis=1) - logs - 0.5 * features * np.log(2.0 * np.pi)
    return out


def _scatter(
    values: np.ndarray, weight: np.ndarray, variance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, scatter without the errors of measurement, and total weight of a class."""
    count = float(weight.sum())
    mean = weight @ values / count if count > 0 else np.zeros(values.shape[1])
    centred = values - mean
    scatter = (weight[:, None] * centred).T @ centred
    if variance is not None:
        scatter = _positive((scatter - np.diag(weight @ variance)) / max(count, 1e-12)) * count
    return mean, scatter, count


def _positive(matrix: np.ndarray) -> np.ndarray:
    """The matrix with its eigenvalues no lower than a small positive number: what is left is a covariance."""
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    return (vectors * np.maximum(values, _LEAST_VARIANCE)) @ vectors.T
