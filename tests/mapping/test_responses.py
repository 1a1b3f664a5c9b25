"""Response curves and importance against scikit-learn's, against closed forms, and through a small network."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LogisticRegression

from mapping.explain_figures import importance_figure, response_figure
from mapping.responses import (
    HeldOut,
    SiteEstimator,
    exchange_blocks,
    held_out_sites,
    jackknife,
    permutation_importances,
    response_curves,
)
from processing.errors import AgriClipError
from tests.mapping.test_explain import make_explained_study

VARIABLES = [
    SimpleNamespace(name="warmth", title="warmth", canonical_unit="degC"),
    SimpleNamespace(name="rain", title="annual rain", canonical_unit="mm"),
    SimpleNamespace(name="idle", title="nothing", canonical_unit="1"),
]


class Logistic:
    """Knows warmth and rain and is blind for the third predictor; a missing number counts 0."""

    def predict_proba(self, X):
        table = np.nan_to_num(np.asarray(X))
        chance = 1 / (1 + np.exp(-(1.5 * table[:, 0] + 0.5 * table[:, 1])))
        return np.stack([1 - chance, chance], axis=1)


def simulated(count=1500, blocks=None, weight=None):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(count, 3))
    target = (rng.random(count) < Logistic().predict_proba(table)[:, 1]).astype(float)
    blocks = np.arange(count) if blocks is None else blocks
    return HeldOut(Logistic(), table, target, blocks, np.ones(count) if weight is None else weight)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_explained_study(tmp_path_factory.mktemp("responses"))


# -- curves ---------------------------------------------------------------------------------------------------------


def test_curves_of_a_known_function():
    table = np.array([[0.0, -1.0, 5.0], [1.0, 2.0, 6.0], [3.0, 0.0, 7.0]])
    warmth, rain, idle = response_curves(Logistic(), table, table, VARIABLES, points=5, beyond=0.5)
    np.testing.assert_allclose(warmth.values, [-1.5, 0, 1.5, 3, 4.5])
    expected = 1 / (1 + np.exp(-(1.5 * warmth.values[:, None] + 0.5 * table[None, :, 1])))
    np.testing.assert_allclose(warmth.mean, expected.mean(axis=1))
    np.testing.assert_allclose(warmth.median, np.median(expected, axis=1))
    np.testing.assert_allclose(warmth.low, np.percentile(expected, 10, axis=1))
    np.testing.assert_allclose(warmth.high, np.percentile(expected, 90, axis=1))
    assert warmth.training_range == (0.0, 3.0) and rain.training_range == (-1.0, 2.0)
    np.testing.assert_allclose(warmth.quantiles, np.percentile([0, 1, 3], np.arange(0, 101, 10)))
    # What the model ignores has a flat curve.
    assert np.ptp(idle.mean) == np.ptp(idle.low) == 0
    assert json.loads(json.dumps(idle.as_dict()))["name"] == "idle"


def test_curves_stop_at_the_end_of_a_scale():
    table = np.array([[1.0, 10.0, 0.0], [2.0, 110.0, 0.0]])
    warmth, rain, idle = response_curves(Logistic(), table, table, VARIABLES, points=3, beyond=2.0)
    assert warmth.values[0] == -1.0  # degrees go below 0
    assert rain.values[0] == 0.0 and rain.values[-1] == 310.0  # rain does not
    assert idle.values.tolist() == [-2.0, 0.0, 2.0]  # constant at the sites: a range of its own


def test_only_some_curves_and_gaps_in_the_training_table():
    table = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    training = np.array([[np.nan, 1.0, 2.0], [4.0, np.nan, 3.0], [8.0, 2.0, 1.0]])
    (found,) = response_curves(Logistic(), table, training, VARIABLES, points=2, beyond=0, only=["warmth"])
    assert found.name == "warmth" and found.values.tolist() == [4.0, 8.0]


def test_network_agrees_with_scikit_learns_partial_dependence(made):
    labels = made.data.labels()
    x, y = labels.x[:12], labels.y[:12]
    table = made.data.predictors(x, y)
    estimator = SiteEstimator(made.predictor, made.data, x, y)
    ours = response_curves(estimator, table, table, made.data.variables, points=6, beyond=0)
    for column, curve in enumerate(ours):
        options = {"kind": "both", "grid_resolution": 6, "percentiles": (0, 1), "response_method": "predict_proba"}
        theirs = partial_dependence(estimator, table, [column], **options)
        np.testing.assert_allclose(curve.values, theirs["grid_values"][0])
        np.testing.assert_allclose(curve.mean, theirs["average"][0], atol=1e-6)
        np.testing.assert_allclose(curve.median, np.median(theirs["individual"][0], axis=0), atol=1e-6)
        np.testing.assert_allclose(curve.high, np.percentile(theirs["individual"][0], 90, axis=0), atol=1e-6)


def test_estimator_is_the_predictor_with_the_images_held(made):
    labels = made.data.labels()
    x, y = labels.x[:3], labels.y[:3]
    estimator = SiteEstimator(made.predictor, made.data, x, y)
    table = made.data.predictors(x, y)
    found = estimator.predict_proba(np.concatenate([table, table[::-1]]))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for site in range(3):
        alone = SiteEstimator(made.predictor, made.data, x[[site]], y[[site]])
        assert found[site, 1] == pytest.approx(alone.predict_proba(table[[site]])[0, 1], abs=2e-6)
        # In the second copy the numbers are another site's, the image is this one's.
        assert found[3 + site, 1] == pytest.approx(alone.predict_proba(table[[2 - site]])[0, 1], abs=2e-6)
    assert estimator.predict(table).tolist() == (found[:3, 1] >= 0.5).astype(int).tolist()


# -- importance -----------------------------------------------------------------------------------------------------


def test_blocks_move_as_a_whole():
    blocks = np.array([3, 0, 0, 1, 3, 1, 1, 0, 5, 5])
    for seed in range(20):
        order = exchange_blocks(blocks, np.random.default_rng(seed))
        assert sorted(order) == list(range(10))
        # Along the sites in their order of blocks, the sources of one block stand together.
        sources = blocks[order[np.argsort(blocks, kind="stable")]]
        assert 1 + np.count_nonzero(np.diff(sources)) == 4
    orders = {tuple(exchange_blocks(blocks, np.random.default_rng(seed))) for seed in range(20)}
    assert len(orders) > 10


def test_importance_agrees_with_scikit_learn_where_every_site_is_a_block():
    part = simulated(4000)
    model = LogisticRegression(C=1e6).fit(part.table, part.target)
    part = HeldOut(model, part.table, part.target, part.blocks, part.weight)
    ours = permutation_importances([part], VARIABLES, repeats=8)
    theirs = permutation_importance(
        model, part.table, part.target, scoring="neg_log_loss", n_repeats=8, random_state=1
    )
    for one, mean, sd in zip(ours, theirs.importances_mean, theirs.importances_std, strict=True):
        assert one.increase == pytest.approx(mean, abs=4 * (sd + one.sd) / np.sqrt(8) + 1e-9)
        assert one.sd == pytest.approx(sd, abs=0.02)


def test_ignored_predictor_has_no_importance():
    warmth, rain, idle = jackknife([simulated(blocks=np.arange(1500) // 10)], VARIABLES, repeats=3)
    assert (idle.increase, idle.sd, idle.only) == (0.0, 0.0, 0.0)
    assert warmth.increase > rain.increase > 0.02
    # Without what is ignored nothing is lost.
    assert idle.without == pytest.approx(idle.everything)
    assert warmth.without < rain.without < warmth.everything == rain.everything
    assert warmth.only > rain.only > 0


def test_jackknife_of_missing_numbers_by_hand():
    part = simulated(200)

    def loss(columns):
        kept = np.zeros_like(part.table)
        kept[:, columns] = part.table[:, columns]
        chance = Logistic().predict_proba(kept)[:, 1]
        return -np.mean(part.target * np.log(chance) + (1 - part.target) * np.log(1 - chance))

    warmth, rain, idle = jackknife([part], VARIABLES, absent="missing", repeats=1)
    assert loss([]) == pytest.approx(np.log(2))
    assert warmth.only == pytest.approx(loss([]) - loss([0]))
    assert rain.without == pytest.approx(loss([]) - loss([0, 2]))
    assert idle.everything == pytest.approx(loss([]) - loss([0, 1, 2]))
    assert warmth.sd == 0.0


def test_weights_and_parts_are_pooled():
    part = simulated(300)
    weight = np.random.default_rng(2).uniform(0, 3, 300)
    losses = part.loss(part.table)
    parts = [
        HeldOut(Logistic(), part.table[cut], part.target[cut], part.blocks[cut], weight[cut])
        for cut in (slice(0, 100), slice(100, 300))
    ]
    only = jackknife(parts, VARIABLES, absent="missing", repeats=1)[0]
    expected = np.log(2) - np.average(losses, weights=weight)
    assert only.everything == pytest.approx(expected)


def test_members_answer_for_the_sites_they_left_out(made):
    parts = held_out_sites(made.model, made.data, made.predictor)
    labels = made.data.labels()
    assert [len(part.table) for part in parts] == [int((made.folds == fold).sum()) for fold in (0, 1)]
    for fold, part in enumerate(parts):
        rows = np.flatnonzero(made.folds == fold)
        np.testing.assert_array_equal(part.table, made.data.predictors(labels.x[rows], labels.y[rows]))
        assert [member.path.name for member in part.estimator.predictor.members] == [f"fold_{fold + 1}"]
        np.testing.assert_array_equal(part.target, labels.share[rows])  # a model of counts
        np.testing.assert_array_equal(part.weight, labels.total[rows])
        np.testing.assert_array_equal(part.blocks, made.data.blocks()[rows])
    assert len(made.predictor.members) == 2
    few = held_out_sites(made.model, made.data, made.predictor, most=9)
    assert [len(part.table) for part in few] == [9, 9]
    found = permutation_importances(few, made.data.variables, repeats=2)
    assert [one.name for one in found] == ["warmth", "rain"]
    assert found == permutation_importances(few, made.data.variables, repeats=2)
    assert found != permutation_importances(few, made.data.variables, repeats=2, seed=7)


def test_pictures(tmp_path):
    part = simulated(100)
    curves = response_curves(Logistic(), part.table[:9], part.table, VARIABLES, points=9)
    found = jackknife([part], VARIABLES, repeats=2)
    plain = permutation_importances([part], VARIABLES, repeats=2)
    for name, path in {
        "curves": response_figure(curves, tmp_path / "curves.png"),
        "jackknife": importance_figure(found, tmp_path / "jackknife.png"),
        "plain": importance_figure(plain, tmp_path / "plain.png"),
    }.items():
        assert path.stat().st_size > 10_000, name
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "jackknife.png", "plain.png"]
    for draw in (response_figure, importance_figure):
        with pytest.raises(AgriClipError, match="at least one predictor"):
            draw([], tmp_path / "none.png")


def test_bad_input(made, tmp_path):
    part = simulated(50)
    with pytest.raises(AgriClipError, match="did you mean 'rain'"):
        response_curves(Logistic(), part.table, part.table, VARIABLES, only=["rian"])
    with pytest.raises(AgriClipError, match="3 columns"):
        response_curves(Logistic(), part.table[:, :2], part.table, VARIABLES)
    with pytest.raises(AgriClipError, match="2 points or more"):
        response_curves(Logistic(), part.table, part.table, VARIABLES, points=1)
    with pytest.raises(AgriClipError, match="idle has no value"):
        gap = part.table.copy()
        gap[:, 2] = np.nan
        response_curves(Logistic(), part.table, gap, VARIABLES)
    with pytest.raises(AgriClipError, match="did you mean 'swapped'"):
        jackknife([part], VARIABLES, absent="swaped")
    with pytest.raises(AgriClipError, match="1 repeat or more"):
        permutation_importances([part], VARIABLES, repeats=0)
    with pytest.raises(AgriClipError, match="positive weight"):
        permutation_importances([], VARIABLES)
    with pytest.raises(AgriClipError, match="several folds"):
        held_out_sites(tmp_path, made.data, made.predictor)
    estimator = SiteEstimator(made.predictor, made.data, [-90.1, -90.2], [37.6, 37.7])
    with pytest.raises(AgriClipError, match="one row a site"):
        estimator.predict_proba(np.zeros((3, 2)))
    (tmp_path / "heldout_predictions.csv").write_text("id,x,y,fold\nnobody,0,0,1\n")
    with pytest.raises(AgriClipError, match="names the site nobody"):
        held_out_sites(tmp_path, made.data, made.predictor)
