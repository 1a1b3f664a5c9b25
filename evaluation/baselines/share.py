"""Regressors of a share, and how a predicted share becomes a probability of presence.

Three choices define this file. The share is fitted on a scale on which its error is even (square root, or logarithm
with a small offset), and places are ranked on that scale. Missing values become the median of the rows that were
fitted, which leaks nothing and suits kernels as well as trees. And the probability that the crop is present comes from
an isotonic map (Zadrozny & Elkan 2002) of predictions that an inner cross-validation made within the training rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from processing.errors import AgriClipError, nearest

__all__ = [
    "LINKS",
    "OFFSET",
    "GaussianProcessOnSubset",
    "ShareRegressor",
    "fill",
    "isotonic_probability",
    "medians",
]

#: Added to a share before its logarithm: half of the presence threshold's order of magnitude.
OFFSET = 0.001

#: Scale on which a share is fitted: forward and back.
LINKS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "identity": (lambda share: share, lambda value: value),
    "sqrt": (np.sqrt, lambda value: np.maximum(value, 0.0) ** 2),
    "log": (lambda share: np.log(share + OFFSET), lambda value: np.exp(value) - OFFSET),
}


def medians(table: np.ndarray) -> np.ndarray:
    """(F,) median of the known values of each column of (N, F); 0 where none is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column that is missing everywhere
        middle = np.nanmedian(np.where(np.isfinite(table), table, np.nan), axis=0)
    return np.where(np.isfinite(middle), middle, 0.0)


def fill(table: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """(N, F) table with what is missing replaced by (F,) values."""
    return np.where(np.isfinite(table), table, middle)


class ShareRegressor(RegressorMixin, BaseEstimator):
    """A regressor of a share on a transformed scale; features may be missing.

    Args:
        regressor: Any scikit-learn regressor; least squares if None.
        link: Scale on which the share is fitted, key of :data:`LINKS`.
        scale: Whether features are standardised: each by its own deviation (True), all by one (``"common"``, which
            keeps distances of coordinates), or not at all.
        weighted: Whether sample weights are handed on (a Gaussian process of scikit-learn takes none).

    Attributes:
        regressor_: The fitted regressor.
        middle_: (F,) medians of the training rows.
    """

    def __init__(
        self, regressor: Any = None, link: str = "identity", scale: bool | str = False, weighted: bool = True
    ) -> None:
        self.regressor, self.link, self.scale, self.weighted = regressor, link, scale, weighted

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> ShareRegressor:
        """Fits.

        Args:
            X: (N, F) features; NaN and infinite = missing.
            y: (N,) shares (for ``identity``, any numbers).
            sample_weight: (N,) weights.

        Returns:
            Itself.

        Raises:
            AgriClipError: For an unknown link, or shares that it is not defined for.
        """
        if self.link not in LINKS:
            raise AgriClipError(f"There is no link '{self.link}' of a share; {nearest(self.link, LINKS)}")
        X, y = validate_data(
            self, X, y, dtype=np.float64, ensure_all_finite=False, y_numeric=True, ensure_min_samples=2
        )
        y = np.asarray(y, dtype=np.float64)
        if not np.isfinite(y).all() or (self.link != "identity" and (y < 0).any()):
            raise AgriClipError(
                "Shares must be known and not negative; remove these places or fit them untransformed."
            )
        self.middle_ = medians(X)
        table = fill(X, self.middle_)
        self.mean_, self.spread_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.scale:
            self.mean_, spread = table.mean(axis=0), table.std(axis=0)
            spread = np.full_like(spread, np.sqrt((spread**2).mean())) if self.scale == "common" else spread
            self.spread_ = np.where(spread > 0, spread, 1.0)
            table = (table - self.mean_) / self.spread_
        if self.regressor is None:
            from sklearn.linear_model import LinearRegression

            self.regressor_ = LinearRegression()
        else:
            self.regressor_ = clone(self.regressor)
        keywords = {"sample_weight": sample_weight} if self.weighted and sample_weight is not None else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a kernel at its bound still predicts
            self.regressor_.fit(table, LINKS[self.link][0](y), **keywords)
        return self

    def transformed(self, X: np.ndarray) -> np.ndarray:
        """(N,) predictions on the scale that was fitted: what places are ranked by."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite=False, reset=False)
        return np.asarray(
            self.regressor_.predict((fill(X, self.middle_) - self.mean_) / self.spread_), dtype=np.float64
        )

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(N,) predicted shares: the prediction taken back to the scale of shares, which for ``log`` is a median."""
        return LINKS[self.link][1](self.transformed(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class GaussianProcessOnSubset(RegressorMixin, BaseEstimator):
    """A Gaussian process whose kernel is learnt on some rows by marginal likelihood and then conditioned on all.

    The marginal likelihood costs a Cholesky factor at each step of the search (Rasmussen & Williams 2006, section
    5.4.1); a few hundred rows settle a handful of hyperparameters, and all rows then need one factor.

    Args:
        kernel: Kernel of scikit-learn. If None, Matern with nu = 3/2 and noise. On counties of the United States a
            rational quadratic kernel and a sum of exponential and squared exponential kernels are as good (average
            precision within 0.003) and take two to four times as long to learn.
        rows: Rows that the hyperparameters are learnt on, drawn at random; all if there are fewer.
        most: Largest number of rows that is fitted.
        random_state: Seed of the draw.

    Attributes:
        process_: The fitted `GaussianProcessRegressor`.
        kernel_: Its kernel.
    """

    def __init__(self, kernel: Any = None, rows: int = 600, most: int = 5000, random_state: int | None = 0) -> None:
        self.kernel, self.rows, self.most, self.random_state = kernel, rows, most, random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> GaussianProcessOnSubset:
        """Fits (N, F) standardised features to (N,) targets.

        Raises:
            AgriClipError: For more rows than memory and patience allow.
        """
        from sklearn.gaussian_process import GaussianProcessRegressor

        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        if len(X) > self.most:
            raise AgriClipError(
                f"A Gaussian process on {len(X)} places needs too much memory; give it at most {self.most}."
            )
        rows = np.random.default_rng(self.random_state).permutation(len(X))[: self.rows]
        kernel = smooth_kernel() if self.kernel is None else clone(self.kernel)
        learnt = GaussianProcessRegressor(kernel, normalize_y=True, random_state=self.random_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            learnt.fit(X[rows], y[rows])
            self.process_ = learnt
            if len(rows) < len(X):
                self.process_ = GaussianProcessRegressor(learnt.kernel_, optimizer=None, normalize_y=True).fit(X, y)
        self.kernel_ = self.process_.kernel_
        return self

    def predict(self, X: np.ndarray, return_std: bool = False) -> Any:
        """(N,) means, and with ``return_std`` (N,) standard deviations as well."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.process_.predict(X, return_std=return_std)


def smooth_kernel() -> Any:
    """A Matern kernel, once differentiable, and noise; lengths suit standardised features."""
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    return ConstantKernel(1.0, (1e-3, 1e3)) * Matern(10.0, (1.0, 1e3), nu=1.5) + WhiteKernel(0.1, (1e-5, 1e1))


def kriging_kernel() -> Any:
    """The exponential variogram with a nugget, as in kriging (Cressie 1993); lengths in deviations of the places."""
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    return ConstantKernel(1.0, (1e-3, 1e3)) * Matern(0.5, (1e-2, 1e2), nu=0.5) + WhiteKernel(0.1, (1e-5, 1e1))


def isotonic_probability(score: np.ndarray, presence: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Isotonic map from score to probability, kept off 0 and 1 by the number of places it was fitted on.

    Args:
        score: (N,) scores of places that were not fitted.
        presence: (N,) 0 or 1.
        new: (M,) scores to map.

    Returns:
        (M,) probabilities.
    """
    from sklearn.isotonic import IsotonicRegression

    # A step that saw no presence among n places does not prove that there is none: Laplace's rule at the ends.
    edge = 1.0 / (score.size + 2.0)
    model = IsotonicRegression(y_min=edge, y_max=1.0 - edge, out_of_bounds="clip")
    return np.asarray(model.fit(score, presence).predict(new))
