"""The estimators behind the baselines: scikit-learn's contract, and formulas against independent computations."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import check_estimator

from evaluation import baselines
from evaluation.baselines.bayes import student_with_error
from evaluation.baselines.share import OFFSET, isotonic_probability
from processing.errors import AgriClipError

WEIGHTS = {"check_sample_weight_equivalence_on_dense_data": "weights say how much a row counts; medians are of rows"}


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (baselines.Prevalence(), {}),
        (baselines.RuleScore(), {}),
        (baselines.PercentileEnvelope(), {}),
        (baselines.QuadraticLogistic(), WEIGHTS),
        (baselines.MaxEnt(features=("linear", "quadratic")), WEIGHTS),
        (baselines.MaxEnt(knots=3, absences="observed"), WEIGHTS),
        (baselines.BayesianDiscriminant(), WEIGHTS),
        (baselines.ShareRegressor(), {}),
        (baselines.GaussianProcessOnSubset(RBF(1.0, "fixed") + WhiteKernel(0.1), 25), {}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_contract_of_scikit_learn(estimator, expected):
    check_estimator(estimator, expected_failed_checks=expected)


def test_every_entry_clones_and_tells_its_settings():
    for name, entry in baselines.REGISTRY.items():
        if isinstance(entry, baselines.Baseline):
            made = entry.estimator(3)
            assert repr(clone(made).get_params()) == repr(made.get_params()), name
            assert entry.inputs in baselines.INPUTS and entry.target in ("presence", "share")


# -- shares ---------------------------------------------------------------------------------------------------------


class Column:
    """Predicts its first feature and remembers what it was fitted to."""

    def get_params(self, deep=True):
        return {}

    def fit(self, X, y):
        self.seen, self.target = X, y
        return self

    def predict(self, X):
        return X[:, 0]


@pytest.mark.parametrize(
    ("link", "forward"), [("identity", lambda s: s), ("sqrt", np.sqrt), ("log", lambda s: np.log(s + 0.001))]
)
def test_share_is_fitted_on_its_scale_and_taken_back(link, forward):
    share = np.array([0.0, 0.01, 0.3, 0.7])
    model = baselines.ShareRegressor(Column(), link=link).fit(forward(share)[:, None], share)
    np.testing.assert_allclose(model.regressor_.target, forward(share))
    np.testing.assert_allclose(model.transformed(forward(share)[:, None]), forward(share))
    np.testing.assert_allclose(model.predict(forward(share)[:, None]), share, atol=1e-12)
    assert OFFSET == 0.001


def test_features_are_filled_by_training_medians_and_scaled():
    X = np.array([[1.0, 10.0], [3.0, np.nan], [np.inf, 30.0], [5.0, 50.0]])
    each = baselines.ShareRegressor(Column(), scale=True).fit(X, np.ones(4))
    filled = np.array([[1.0, 10.0], [3.0, 30.0], [3.0, 30.0], [5.0, 50.0]])
    np.testing.assert_allclose(each.regressor_.seen, (filled - filled.mean(0)) / filled.std(0))
    common = baselines.ShareRegressor(Column(), scale="common").fit(X, np.ones(4))
    one = np.sqrt((filled.std(0) ** 2).mean())
    np.testing.assert_allclose(common.regressor_.seen, (filled - filled.mean(0)) / one)
    np.testing.assert_allclose(
        each.transformed(np.array([[np.nan, 0.0]])), [(3.0 - filled.mean(0)[0]) / filled.std(0)[0]]
    )


def test_gaussian_process_learns_on_a_subset_and_knows_all_rows():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (200, 1))
    y = np.sin(2 * X[:, 0])
    model = baselines.GaussianProcessOnSubset(rows=40).fit(X, y)
    assert model.process_.X_train_.shape[0] == 200
    assert np.abs(model.predict(X) - y).max() < 0.05
    assert model.predict(np.array([[30.0]]), return_std=True)[1] > 5 * model.predict(X[:1], return_std=True)[1]
    with pytest.raises(AgriClipError, match="too much memory"):
        baselines.GaussianProcessOnSubset(most=100).fit(X, y)


def test_isotonic_map_stays_off_certainty():
    score, presence = np.arange(8.0), np.array([0, 0, 0, 1, 0, 1, 1, 1])
    mapped = isotonic_probability(score, presence, np.array([-5.0, 3.4, 99.0]))
    np.testing.assert_allclose(mapped, [0.1, 0.5, 0.9])


# -- niche models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def niche():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(300, 3))
    logit = 1.5 * X[:, 0] - 2.0 * X[:, 1] ** 2
    return X, (rng.random(300) < 1 / (1 + np.exp(-logit))).astype(int)


@pytest.mark.parametrize("absences", ["background", "observed"])
def test_maxent_meets_the_conditions_of_its_optimum(niche, absences):
    """At the optimum no coefficient gains: |gradient| <= lambda where it is zero, equal and opposite where not."""
    X, y = niche
    model = baselines.MaxEnt(knots=4, absences=absences, max_iter=5000).fit(X, y)
    values, here = model.expand(X), y == 1
    if absences == "background":
        raw = np.exp(values @ model.coef_)
        gradient = raw @ values / raw.sum() - values[here].mean(axis=0)
    else:
        rate = np.exp(values @ model.coef_ + model.intercept_)
        pull = np.where(here, rate / np.expm1(rate), -rate)
        gradient = -(pull @ values) / here.sum()
        assert abs(pull.sum()) / here.sum() < 1e-3
    used = np.abs(model.coef_) > 1e-6
    assert 0 < used.sum() < used.size
    slack = 0.02 * model.penalty_
    assert (np.abs(gradient) <= model.penalty_ + slack).all()
    assert (np.abs(gradient + np.sign(model.coef_) * model.penalty_)[used] <= slack[used]).all()


def test_maxent_equals_logistic_regression_against_a_heavy_background(niche):
    """Fithian & Hastie 2013: logistic regression with infinitely weighted background is the Poisson process."""
    X, y = niche
    model = baselines.MaxEnt(("linear", "quadratic"), regularization=1e-6, max_iter=5000)
    model.fit(X, y)
    values = model.expand(X)
    here = y == 1
    both = np.concatenate([values[here], values])
    label = np.r_[np.ones(here.sum()), np.zeros(len(y))]
    weight = np.where(label == 1, 1.0, 1e5)
    logistic = LogisticRegression(C=1e12, max_iter=20000, tol=1e-12, solver="newton-cholesky")
    logistic.fit(both, label, sample_weight=weight)
    ours, theirs = values @ model.coef_, values @ logistic.coef_[0]
    np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), atol=0.02)


def test_cloglog_output_of_maxent_by_hand(niche):
    X, y = niche
    model = baselines.MaxEnt(knots=3).fit(X, y)
    eta = model.expand(X) @ model.coef_
    raw = np.exp(eta - logsumexp(eta))  # sums to 1 over the background
    entropy = -(raw * np.log(raw)).sum()
    chance = model.predict_proba(X)[:, 1]
    np.testing.assert_allclose(chance, 1 - np.exp(-raw * np.exp(entropy)), rtol=1e-9)
    np.testing.assert_allclose(model.decision_function(X), np.log(chance / (1 - chance)), atol=1e-6)
    assert np.average(np.exp(model.log_intensity(X))) == pytest.approx(1.0)


def test_hinges_and_clamping():
    model = baselines.MaxEnt(("hinge",), knots=3).fit(np.array([[0.0], [2.0], [1.0], [4.0]]), [0, 1, 1, 0])
    # knots at 0, 1/2 and 1 of the range: forward from 0 and 1/2, reverse from 1/2 and 1
    np.testing.assert_allclose(model.expand(np.array([[1.0], [3.0]])), [[0.25, 0, 0.5, 0.75], [0.75, 0.5, 0, 0.25]])
    np.testing.assert_array_equal(model.expand(np.array([[9.0]])), model.expand(np.array([[4.0]])))


def test_percentile_envelope_by_hand():
    X = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0], [9.0, 0.0]])
    y = [1, 1, 1, 1, 0]
    model = baselines.PercentileEnvelope().fit(X, y)
    new = np.array([[2.5, 5.0], [1.0, 5.0], [0.9, 5.0], [3.0, 5.0], [2.5, 4.9]])
    # half below and half above; the lowest presence has 1/8 below it counting half of itself; outside; 3/8; outside
    np.testing.assert_allclose(model.predict_proba(new)[:, 1], [1.0, 0.25, 0.0, 0.75, 0.0])
    heavy = baselines.PercentileEnvelope().fit(X, y, sample_weight=[1, 1, 1, 3, 1])
    assert heavy.predict_proba(np.array([[3.5, 5.0]]))[0, 1] == pytest.approx(1.0)


def test_quadratic_logistic_equals_the_regression_on_squares(niche):
    X, y = niche
    model = baselines.QuadraticLogistic(C=0.7).fit(X, y)
    unit = (X - X.mean(axis=0)) / X.std(axis=0)
    plain = LogisticRegression(C=0.7, max_iter=1000).fit(np.c_[unit, unit**2], y)
    np.testing.assert_allclose(model.predict_proba(X), plain.predict_proba(np.c_[unit, unit**2]), atol=1e-6)
    more = baselines.QuadraticLogistic(interactions=True).fit(X, y)
    assert more.model_.coef_.shape == (1, 9)


# -- discriminant with errors of measurement ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classes():
    rng = np.random.default_rng(5)
    first = rng.multivariate_normal([0, 0], [[1.0, 0.5], [0.5, 1.0]], 40)
    second = rng.multivariate_normal([2, 1], [[0.5, -0.2], [-0.2, 2.0]], 25)
    return np.concatenate([first, second]), np.repeat([0, 1], [40, 25])


def posterior_by_hand(X, y, kappa_0, rows):
    """Murphy 2012, section 4.6.3, for standardised values and the prior of the class."""
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    d = Z.shape[1]
    within = sum((Z[y == k] - Z[y == k].mean(0)).T @ (Z[y == k] - Z[y == k].mean(0)) for k in (0, 1)) / len(Z)
    tables = []
    for k in (0, 1):
        members, n = Z[y == k], (y == k).sum()
        mean = members.mean(axis=0)
        kappa, nu = kappa_0 + n, rows + d + 1 + n
        psi = rows * within + (members - mean).T @ (members - mean) + kappa_0 * n / kappa * np.outer(mean, mean)
        freedom = nu - d + 1
        tables.append((n * mean / kappa, psi * (kappa + 1) / (kappa * freedom), freedom, n / len(Z)))
    return Z, tables


def test_posterior_predictive_is_the_student_t(classes):
    X, y = classes
    model = baselines.BayesianDiscriminant(mean_rows=2.0, covariance_rows=5.0).fit(X, y)
    Z, tables = posterior_by_hand(X, y, 2.0, 5.0)
    logs = np.stack([stats.multivariate_t.logpdf(Z, m, s, df=f) + np.log(p) for m, s, f, p in tables], axis=1)
    expected = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-8)
    assert (model.predict(X) == y).mean() > 0.85


def test_plug_in_adds_the_error_to_the_covariance(classes):
    """p(k | x, U) ~ pi_k N(x; m_k, c_k S_k + U), each row with its own U."""
    X, y = classes
    sd = np.random.default_rng(0).uniform(0.0, 1.5, X.shape)
    model = baselines.BayesianDiscriminant("columns", mean_rows=2.0, covariance_rows=5.0, student=False)
    model.fit(np.c_[X, np.zeros_like(X)], y)
    Z, tables = posterior_by_hand(X, y, 2.0, 5.0)
    logs = [
        [stats.multivariate_normal.logpdf(z, m, s * f / (f - 2) + np.diag(u**2)) + np.log(p) for m, s, f, p in tables]
        for z, u in zip(Z, sd / X.std(axis=0), strict=True)
    ]
    expected = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    np.testing.assert_allclose(model.predict_proba(np.c_[X, sd]), expected, rtol=1e-8)


@pytest.mark.parametrize("freedom", [6.0, 40.0, 900.0])
def test_student_with_error_equals_the_convolution(freedom):
    scale, error = 0.8, 1.3
    for value in (0.0, 1.0, 4.0):

        def density(e, value=value):
            t = stats.t.pdf(value - e, freedom, scale=scale**0.5)
            return t * stats.norm.pdf(e, scale=error**0.5)

        exact = quad(density, -30, 30, points=[0.0, value], epsabs=1e-13)[0]
        got = student_with_error(np.array([[value]]), np.array([[scale]]), freedom, np.array([[error]]), nodes=12)
        assert np.exp(got[0]) == pytest.approx(exact, rel=5e-3 if freedom < 10 else 1e-5)


def test_student_with_a_vanishing_error_is_the_student():
    rng = np.random.default_rng(1)
    difference, root = rng.normal(size=(7, 4)), rng.normal(size=(4, 4))
    scale = root @ root.T + np.eye(4)
    plain = student_with_error(difference, scale, 25.0)
    np.testing.assert_allclose(plain, stats.multivariate_t.logpdf(difference, np.zeros(4), scale, df=25.0))
    nearly = student_with_error(difference, scale, 25.0, np.full((7, 4), 1e-9), nodes=5)
    np.testing.assert_allclose(nearly, plain, atol=1e-3)


def test_errors_of_training_rows_are_taken_out():
    """Values measured with a large error are predicted for exact ones as if the error had not been."""
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1], 3000)
    true = rng.normal(size=(6000, 1)) * np.where(y == 0, 1.0, 0.5)[:, None] + 2.0 * y[:, None]
    sd = 1.2
    measured = true + rng.normal(0, sd, true.shape)
    exact = baselines.BayesianDiscriminant().fit(true, y)
    noisy = baselines.BayesianDiscriminant("columns").fit(np.c_[measured, np.full_like(measured, sd)], y)
    naive = baselines.BayesianDiscriminant().fit(measured, y)
    new = np.linspace(-1, 3, 9)[:, None]
    wanted = exact.predict_proba(new)[:, 1]
    known = np.abs(noisy.predict_proba(np.c_[new, np.zeros_like(new)])[:, 1] - wanted).max()
    assert known < 0.07 < 0.15 < np.abs(naive.predict_proba(new)[:, 1] - wanted).max()


def test_a_useless_measurement_gives_the_prior(classes):
    X, y = classes
    model = baselines.BayesianDiscriminant("columns").fit(np.c_[X, np.zeros_like(X)], y)
    chance = model.predict_proba(np.array([[2.0, 1.0, 1e4, 1e4]]))
    np.testing.assert_allclose(chance, [[40 / 65, 25 / 65]], atol=1e-3)
    assert model.predict_proba(np.array([[2.0, 1.0, 0.0, 0.0]]))[0, 1] > 0.7


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (baselines.MaxEnt(features=("hinges",)), "did you mean 'hinge'"),
        (baselines.MaxEnt(absences="none"), "'background' or 'observed'"),
        (baselines.MaxEnt(knots=1), "at least 2 knots"),
        (baselines.BayesianDiscriminant(covariance_rows=0.0), "above 0"),
        (baselines.BayesianDiscriminant([0.1, 0.2, 0.3]), "3 standard deviations for 2 features"),
        (baselines.BayesianDiscriminant(-1.0), "not negative"),
        (baselines.BayesianDiscriminant("errors"), "'columns'"),
        (baselines.ShareRegressor(link="logit"), "no link 'logit'"),
    ],
)
def test_bad_settings_are_refused(classes, estimator, said):
    with pytest.raises(AgriClipError, match=said):
        estimator.fit(*classes)


def test_shares_below_zero_are_refused():
    with pytest.raises(AgriClipError, match="not negative"):
        baselines.ShareRegressor(link="log").fit(np.ones((3, 1)), [0.1, -0.1, 0.2])
