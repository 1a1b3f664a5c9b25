"""Intervals by blocks: against theory, against a plain loop, and what happens at the edges."""

import math

import numpy as np
import pytest

from evaluation import metrics
from evaluation.bootstrap import (
    block_bootstrap,
    bootstrap_models,
    paired_block_bootstrap,
    quick_presence_scores,
)
from processing.errors import AgriClipError


def _mean(values):
    return float(np.mean(values))


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 30, 300)
    p = rng.random(300)
    return blocks, (rng.random(300) < p).astype(float), p


def test_against_a_plain_loop(table):
    blocks, y, p = table
    names = np.unique(blocks)
    chosen = np.random.default_rng(7).integers(names.size, size=(50, names.size))
    expected = []
    for drawn in chosen:
        rows = [i for b in drawn for i in range(300) if blocks[i] == names[b]]
        expected.append(metrics.brier(y[rows], p[rows]))
    found = block_bootstrap(metrics.brier, blocks, y, p, draws=50, seed=7)
    assert found.values == pytest.approx(expected)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    assert found.estimate == metrics.brier(y, p) and found.undefined == 0
    assert str(found) == f"{found.estimate:.3f} ({found.low:.3f} to {found.high:.3f})"


def test_standard_error_of_a_mean_of_blocks():
    # Equal blocks of equal values: the error is that of the mean of block values.
    rng = np.random.default_rng(1)
    value = rng.normal(size=60)
    blocks, values = np.repeat(np.arange(60), 5), np.repeat(value, 5)
    blocked = block_bootstrap(_mean, blocks, values, draws=3000)
    assert blocked.standard_error == pytest.approx(value.std() / math.sqrt(60), rel=0.06)
    single = block_bootstrap(_mean, np.arange(300), values, draws=3000)
    assert single.standard_error == pytest.approx(blocked.standard_error / math.sqrt(5), rel=0.08)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(2)
    inside = 0
    for trial in range(150):
        effect = rng.normal(size=40)
        blocks = np.repeat(np.arange(40), 4)
        values = effect[blocks] + rng.normal(0, 0.5, 160)
        found = block_bootstrap(_mean, blocks, values, draws=200, level=0.9, seed=trial)
        inside += found.low <= 0 <= found.high
    assert 0.82 < inside / 150 < 0.96


def test_pairs_keep_what_both_models_share(table):
    blocks, y, p = table
    other = np.clip(p + np.random.default_rng(3).normal(0, 0.02, 300), 0, 1)
    difference = paired_block_bootstrap(metrics.brier, blocks, (y,), p, other, draws=200, seed=5)
    one = block_bootstrap(metrics.brier, blocks, y, p, draws=200, seed=5)
    two = block_bootstrap(metrics.brier, blocks, y, other, draws=200, seed=5)
    assert difference.values == pytest.approx(one.values - two.values)
    assert difference.estimate == pytest.approx(one.estimate - two.estimate)
    assert difference.high - difference.low < 0.3 * (one.high - one.low)
    same = paired_block_bootstrap(metrics.brier, blocks, (y,), p, p, draws=20)
    assert (same.low, same.high, same.above_zero) == (0.0, 0.0, 0.5)


def test_weights_follow_their_places(table):
    blocks, y, p = table
    weight = np.random.default_rng(4).integers(1, 4, 300)
    weighted = paired_block_bootstrap(metrics.brier, blocks, (y, weight), p, p**2, draws=30)
    repeated = paired_block_bootstrap(
        metrics.brier, np.repeat(blocks, weight), (np.repeat(y, weight),), np.repeat(p, weight),
        np.repeat(p**2, weight), draws=30,
    )  # fmt: skip
    assert weighted.values == pytest.approx(repeated.values)


def test_draws_with_one_class_are_counted():
    # Presence in one block of four: it is missing from a draw with probability (3/4)^4, alone with (1/4)^4.
    blocks = np.repeat(np.arange(4), 5)
    y, p = (blocks == 0).astype(float), np.linspace(0.1, 0.9, 20)
    found = block_bootstrap(metrics.average_precision, blocks, y, p, draws=2000)
    assert found.undefined / 2000 == pytest.approx(0.75**4 + 0.25**4, abs=0.03)
    assert math.isfinite(found.low) and found.values.size == 2000
    # Presence in one block of forty: missing from a draw with probability (39/40)^40 = 0.36.
    rare = np.repeat(np.arange(40), 2)
    seldom = block_bootstrap(metrics.brier, rare, (rare == 0).astype(float), np.full(80, 0.1), draws=400)
    assert 0.3 < seldom.undefined / 400 < 0.45


def test_no_interval_where_most_draws_have_no_score():
    blocks = np.repeat(np.arange(40), 2)
    presence = (blocks == 0).astype(float)
    few = block_bootstrap(lambda y: math.nan if y.sum() < 4 else 1.0, blocks, presence, draws=400)
    assert few.undefined > 200 and math.isnan(few.low) and math.isnan(few.high)


def test_several_models_and_scores_on_the_same_draws(table):
    blocks, y, p = table
    models = {"ours": (p,), "forest": (p**2,), "null": (np.full(300, y.mean()),)}
    found = bootstrap_models(quick_presence_scores, blocks, (y,), models, reference="forest", draws=100, seed=9)
    assert set(found) == set(models) and set(found["ours"]) == {"ap", "auc", "brier", "log_loss", "ece"}
    assert found["forest"]["ap"].difference is None
    alone = paired_block_bootstrap(metrics.log_loss, blocks, (y,), p, p**2, draws=100, seed=9)
    assert found["ours"]["log_loss"].difference.values == pytest.approx(alone.values)
    assert found["null"]["auc"].score.values == pytest.approx(np.full(100, 0.5))
    assert found["ours"]["brier"].difference.above_zero < 0.05 < found["null"]["brier"].difference.above_zero


@pytest.mark.parametrize("weighted", [False, True])
def test_quick_scores_are_the_scores(weighted):
    rng = np.random.default_rng(6)
    for digits in (1, 2, 12):
        p = rng.random(400).round(digits)
        y = (rng.random(400) < p).astype(int)
        w = rng.random(400) * (rng.random(400) > 0.1) if weighted else None
        assert quick_presence_scores(y, p, w) == pytest.approx(metrics.score_presence(y, p, w), rel=1e-9)


def test_seeds(table):
    blocks, y, p = table
    first, again, other = (block_bootstrap(metrics.brier, blocks, y, p, draws=20, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.values, again.values) and not np.array_equal(first.values, other.values)
    named = block_bootstrap(metrics.brier, np.array([f"block {b:02d}" for b in blocks]), y, p, draws=20, seed=1)
    assert np.array_equal(first.values, named.values)


@pytest.mark.parametrize(
    ("blocks", "keywords", "said"),
    [
        (np.zeros(4), {}, "two blocks or more"),
        (np.arange(3), {}, "3 blocks but arrays of 4, 4"),
        (np.arange(4), {"level": 95}, "level between 0 and 1"),
        (np.arange(4), {"draws": 0}, "at least 1 draw"),
    ],
)
def test_bad_input_is_refused(blocks, keywords, said):
    with pytest.raises(AgriClipError, match=said):
        block_bootstrap(metrics.brier, blocks, np.array([0, 1, 0, 1]), np.full(4, 0.5), **keywords)


def test_an_unknown_reference_is_refused(table):
    blocks, y, p = table
    with pytest.raises(AgriClipError, match="did you mean 'forest'"):
        bootstrap_models(quick_presence_scores, blocks, (y,), {"forest": (p,)}, reference="forrest")
