"""Over-confident predictions become honest, sets cover what they promise, and bad input is told in one sentence."""

import json

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from evaluation.metrics import expected_calibration_error, log_loss
from modeling_agriclip.calibration_agriclip import Calibration, ConformalLevel
from processing.errors import AgriClipError
from training.calibration import conformal_coverage, coverage_of, cross_fit, fit_calibration


def landscape(count, seed, sharpness=2.5, base=-0.5, block_size=20, block_effect=0.0):
    """Places whose true logit is known; the network's is `sharpness` times as large, and shifted."""
    rng = np.random.default_rng(seed)
    blocks = np.arange(count) // block_size
    truth = rng.normal(base, 1.5, count)
    shift = block_effect * rng.normal(size=blocks.max() + 1)[blocks]
    labels = (rng.random(count) < expit(truth + shift)).astype(float)
    return expit(sharpness * truth + 0.7), labels, blocks


@pytest.mark.parametrize("method", ["platt", "isotonic", "auto"])
def test_over_confident_predictions_become_honest_on_fresh_places(method):
    p, y, blocks = landscape(20_000, seed=0)
    fresh, truth, _ = landscape(20_000, seed=1)
    calibration = fit_calibration(p, y, method=method, blocks=blocks)
    after = calibration.apply(torch.from_numpy(fresh)).numpy()
    assert expected_calibration_error(truth, fresh) > 0.05
    assert expected_calibration_error(truth, after) < 0.02
    assert log_loss(truth, after) < log_loss(truth, fresh)
    assert after.min() > 0
    assert after.max() < 1
    # Calibration keeps the order of places.
    assert (np.diff(after[np.argsort(fresh)]) >= 0).all()


def test_platt_finds_the_scale_and_shift_that_were_put_in():
    p, y, _ = landscape(200_000, seed=2)
    calibration = fit_calibration(p, y, alphas=())
    # logit = 2.5 truth + 0.7, so truth = 0.4 logit - 0.28
    assert calibration.scale == pytest.approx(0.4, abs=0.01)
    assert calibration.shift == pytest.approx(-0.28, abs=0.03)
    assert calibration.fitted_on == 200_000


def test_temperature_finds_the_scale_and_never_shifts():
    p, y, blocks = landscape(200_000, seed=2)
    centred = expit(logit(p) - 0.7)
    calibration = fit_calibration(centred, y, method="temperature", alphas=())
    assert calibration.scale == pytest.approx(0.4, abs=0.01)
    # Where a shift is wanted it has none, and `auto` takes what has.
    assert fit_calibration(p, y, method="temperature", alphas=()).shift == 0.0
    assert fit_calibration(p, y, method="auto", blocks=blocks, alphas=()).method == "platt"


def test_isotonic_mends_what_no_sigmoid_can():
    rng = np.random.default_rng(3)
    p = rng.random(20_000)
    true = np.where(p < 0.5, 0.1 + 0.2 * p, 0.6 + 0.3 * p)  # a jump in the middle
    y = (rng.random(len(p)) < true).astype(float)
    blocks = np.arange(len(p)) // 50
    fitted = fit_calibration(p, y, method="auto", blocks=blocks, alphas=())
    assert fitted.method == "isotonic"
    grid = np.array([0.1, 0.3, 0.45, 0.55, 0.8])
    after = fitted.apply(torch.from_numpy(grid)).numpy()
    np.testing.assert_allclose(after, np.where(grid < 0.5, 0.1 + 0.2 * grid, 0.6 + 0.3 * grid), atol=0.03)


def test_auto_keeps_an_honest_network_and_judges_by_blocks_left_out():
    p, y, blocks = landscape(3000, seed=4, sharpness=1.0)
    honest = expit(logit(p) - 0.7)
    assert fit_calibration(honest, y, method="auto", blocks=blocks, alphas=()).method != "isotonic"
    # Few blocks whose labels are all alike: within them isotonic regression fits best, beyond them it does not.
    rng = np.random.default_rng(5)
    of_block = rng.random(12)
    blocks = np.repeat(np.arange(12), 100)
    labels = (rng.random(12) < 0.5).astype(float)
    labels[:2] = 0, 1
    score = np.clip(of_block[blocks] + rng.normal(0, 0.001, 1200), 0.01, 0.99)
    chosen = fit_calibration(score, labels[blocks], method="auto", blocks=blocks, alphas=()).method
    alone = fit_calibration(score, labels[blocks], method="auto", blocks=np.arange(1200), alphas=()).method
    assert alone == "isotonic"
    assert chosen != "isotonic"


def test_isotonic_is_never_certain():
    p = np.linspace(0.01, 0.99, 50)
    calibration = fit_calibration(p, (p > 0.5).astype(float), method="isotonic", alphas=())
    after = calibration.apply(torch.tensor([0.0, 0.2, 0.8, 1.0]))
    np.testing.assert_allclose(after.numpy(), [1 / 52, 1 / 52, 51 / 52, 51 / 52], rtol=1e-5)


def test_separable_and_useless_predictions_stay_finite():
    p = np.linspace(0.01, 0.99, 50)
    separable = fit_calibration(p, (p > 0.5).astype(float), alphas=())
    assert 0 < separable.apply(torch.tensor([0.0, 1.0]))[0] < 1e-3
    backwards = fit_calibration(p, (p < 0.5).astype(float), alphas=())
    after = backwards.apply(torch.from_numpy(p))
    assert (after - 0.5).abs().max() < 0.02
    constant = fit_calibration(np.full(50, 0.3), (np.arange(50) % 5 == 0).astype(float), method="isotonic", alphas=())
    assert constant.apply(torch.tensor([0.0, 0.3, 1.0])).tolist() == pytest.approx([0.2, 0.2, 0.2])


def test_few_separable_places_do_not_make_it_certain():
    calibration = fit_calibration([0.4, 0.45, 0.55, 0.6], [0, 0, 1, 1], alphas=())
    after = calibration.apply(torch.tensor([0.4, 0.6]))
    # Platt's targets for two places of each class are 1/4 and 3/4.
    assert 0.15 < after[0] < 0.3
    assert 0.7 < after[1] < 0.85


def test_weights_count_like_repeated_places():
    rng = np.random.default_rng(6)
    p, y, _ = landscape(400, seed=6)
    times = rng.integers(0, 4, 400)
    for method in ("temperature", "platt", "isotonic"):
        weighted = fit_calibration(p, y, weights=times, method=method, alphas=())
        repeated = fit_calibration(np.repeat(p, times), np.repeat(y, times), method=method, alphas=())
        grid = torch.linspace(0.05, 0.95, 20, dtype=torch.float64)
        # Smoothing counts places, so the two differ by a hair.
        assert (weighted.apply(grid) - repeated.apply(grid)).abs().max() < 0.01
    moved = fit_calibration(p, y, weights=np.where(y == 1, 5.0, 1.0), alphas=())
    assert moved.shift > fit_calibration(p, y, alphas=()).shift + 1


def test_shares_are_calibrated_as_shares():
    rng = np.random.default_rng(7)
    p = rng.random(5000)
    shares = np.clip(0.3 * p + rng.normal(0, 0.02, len(p)), 0, 1)
    for method in ("platt", "isotonic"):
        calibration = fit_calibration(p, shares, method=method, alphas=())
        after = calibration.apply(torch.from_numpy(p)).numpy()
        assert after.mean() == pytest.approx(shares.mean(), abs=0.002)
    with pytest.raises(AgriClipError, match="give `threshold` for shares"):
        fit_calibration(p, shares)
    with_sets = fit_calibration(p, shares, threshold=0.15)
    assert with_sets.counts == (int((shares <= 0.15).sum()), int((shares > 0.15).sum()))


@pytest.mark.parametrize("method", ["none", "temperature", "platt", "isotonic"])
def test_each_class_is_covered_as_promised_on_exchangeable_places(method):
    p, y, _ = landscape(20_000, seed=8)
    calibration = fit_calibration(p, y, method=method)
    assert calibration.counts == (int((y == 0).sum()), int((y == 1).sum()))
    fresh, truth, _ = landscape(30_000, seed=9)
    keep = np.concatenate([np.flatnonzero(truth == label)[:5000] for label in (0, 1)])
    for alpha, found in conformal_coverage(calibration, fresh[keep], truth[keep]).items():
        assert found.places == 10_000
        for share in (found.unsuitable, found.suitable, found.pooled):
            assert share == pytest.approx(1 - alpha, abs=0.02)
        assert found.mean_size == pytest.approx(1 + found.undecided - found.strange)


def test_a_rare_class_is_covered_like_a_common_one():
    p, y, _ = landscape(40_000, seed=10, base=-4.0)
    fresh, truth, _ = landscape(400_000, seed=11, base=-4.0)
    found = conformal_coverage(fit_calibration(p, y), fresh, truth)[0.1]
    assert y.mean() < 0.06
    assert found.suitable == pytest.approx(0.9, abs=0.02)
    assert found.unsuitable == pytest.approx(0.9, abs=0.02)


def test_threshold_is_the_finite_sample_order_statistic():
    # 19 unsuitable places: ceil(20 * 0.9) = 18th smallest; 8 suitable: ceil(9 * 0.9) = 9 > 8, so none is ruled out.
    p = np.concatenate([np.arange(1, 20) / 100, np.full(8, 0.9)])
    y = np.concatenate([np.zeros(19), np.ones(8)])
    level = fit_calibration(p, y, method="none", alphas=(0.1,)).levels[0]
    assert level.pooled == (pytest.approx(0.18), 1.0)
    sets = fit_calibration(p, y, method="none", alphas=(0.1,)).prediction_sets(torch.tensor([0.18, 0.19, 0.0]), 0.1)
    assert sets.tolist() == [[True, True], [False, True], [True, True]]


def test_ties_with_the_threshold_belong_to_the_set_in_single_precision():
    labels = np.append(np.zeros(19), np.ones(19))
    for value in np.linspace(0.05, 0.9, 60):
        calibration = fit_calibration(np.append(np.full(19, value), np.linspace(0.3, 0.99, 19)), labels)
        after = calibration.apply(torch.tensor([value], dtype=torch.float32))
        assert calibration.prediction_sets(after, 0.1)[0, 0]


def test_a_group_with_one_class_borrows_the_other_threshold():
    p, y, _ = landscape(2000, seed=21)
    groups = np.where((y == 0) & (np.arange(2000) < 500), "bare", "mixed").tolist()
    level = fit_calibration(p, y, groups=groups, alphas=(0.1,)).levels[0]
    assert level.groups["bare"][1] == level.pooled[1] < 1
    assert level.groups["bare"][0] != level.pooled[0]


def test_groups_have_their_own_thresholds_and_strangers_the_pooled_ones():
    easy, easy_y, _ = landscape(4000, seed=12, sharpness=1.0)
    hard, hard_y, _ = landscape(4000, seed=13, sharpness=1.0)
    hard = expit(-logit(hard))  # turned round: high where it is unsuitable
    p, y = np.concatenate([easy, hard, [0.4] * 3]), np.concatenate([easy_y, hard_y, [0, 0, 1]])
    groups = ["plain"] * 4000 + ["hills"] * 4000 + ["islet"] * 3
    calibration = fit_calibration(p, y, groups=groups, method="none", alphas=(0.1,))
    assert set(calibration.levels[0].groups) == {"plain", "hills"}
    assert calibration.group_counts["islet"] == (2, 1)
    fresh, truth, _ = landscape(20_000, seed=14, sharpness=1.0)
    turned = expit(-logit(fresh))
    for name, values in (("plain", fresh), ("hills", turned)):
        found = conformal_coverage(calibration, values, truth, groups=[name] * len(truth))[0.1]
        assert found.suitable == pytest.approx(0.9, abs=0.025)
        assert found.unsuitable == pytest.approx(0.9, abs=0.025)
    pooled = conformal_coverage(calibration, turned, truth)[0.1]
    assert min(pooled.suitable, pooled.unsuitable) < 0.87
    some = torch.tensor([0.1, 0.5, 0.9])
    unknown = calibration.prediction_sets(some, 0.1, group="moon")
    assert torch.equal(unknown, calibration.prediction_sets(some, 0.1))
    one_each = calibration.prediction_sets(some, 0.1, group=["plain", "hills", "moon"])
    for row, name in enumerate(("plain", "hills", "moon")):
        assert torch.equal(one_each[row], calibration.prediction_sets(some[row], 0.1, group=name))


def coverage_in_new_blocks(block_weights):
    """Mean coverage over places of new blocks, when blocks are unlike each other and of uneven size."""
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sizes = rng.choice([2, 100], 40)
        blocks = np.repeat(np.arange(40), sizes)
        # Small blocks are hard, so counting places makes too little of them.
        centre = np.where(sizes == 2, 0.6, 0.2) + rng.normal(0, 0.1, 40)
        score = np.clip(centre[blocks] + rng.normal(0, 0.02, len(blocks)), 0.001, 0.999)
        y = np.zeros(len(blocks))
        p, labels = np.append(score, [0.9] * 50), np.append(y, [1.0] * 50)
        every = np.append(blocks, 1000 + np.arange(50))
        calibration = fit_calibration(
            p, labels, method="none", alphas=(0.2,), blocks=every, block_weights=block_weights
        )
        new = np.where(rng.random(400) < 0.5, 0.6, 0.2) + rng.normal(0, 0.1, 400) + rng.normal(0, 0.02, 400)
        sets = calibration.prediction_sets(torch.from_numpy(np.clip(new, 0.001, 0.999)), 0.2)
        covered.append(float(sets[:, 0].float().mean()))
    return np.mean(covered)


def test_counting_blocks_once_covers_new_blocks():
    assert coverage_in_new_blocks(block_weights=True) == pytest.approx(0.8, abs=0.04)
    assert coverage_in_new_blocks(block_weights=False) < 0.7


def test_block_weights_of_single_places_change_nothing():
    p, y, _ = landscape(300, seed=15)
    plain = fit_calibration(p, y)
    assert fit_calibration(p, y, blocks=np.arange(300), block_weights=True).levels == plain.levels


def test_cross_fit_calibrates_a_block_by_the_others():
    p, y, blocks = landscape(4000, seed=16, block_effect=0.5)
    result = cross_fit(p, y, blocks, folds=4, alphas=(0.1,))
    assert set(result.fold.tolist()) == {0, 1, 2, 3}
    assert all(len(set(result.fold[blocks == block])) == 1 for block in range(200))
    assert expected_calibration_error(y, result.probabilities) < 0.04 < expected_calibration_error(y, p)
    assert coverage_of(result.sets[0.1], y).pooled == pytest.approx(0.9, abs=0.02)
    # What else its fold holds does not touch a place; what the other folds hold does.
    own = np.flatnonzero(result.fold == 2)
    changed = p.copy()
    changed[own[1:]] = 1 - p[own[1:]]
    again = cross_fit(changed, y, blocks, folds=4, alphas=(0.1,))
    assert again.probabilities[own[0]] == result.probabilities[own[0]]
    assert (again.sets[0.1][own[0]] == result.sets[0.1][own[0]]).all()
    assert (again.probabilities[result.fold != 2] != result.probabilities[result.fold != 2]).all()


def test_saved_and_loaded_are_equal(tmp_path):
    p, y, blocks = landscape(500, seed=17)
    groups = np.where(blocks % 2, "Kansas", "黑龙江").tolist()
    for method in ("none", "temperature", "platt", "isotonic"):
        calibration = fit_calibration(p, y, method=method, groups=groups)
        assert calibration.save(tmp_path).name == "calibration.json"
        loaded = Calibration.load(tmp_path)
        assert loaded == calibration
        values = torch.linspace(0, 1, 101)
        assert torch.equal(loaded.apply(values), calibration.apply(values))
        sets = loaded.prediction_sets(values, 0.1, "黑龙江")
        assert torch.equal(sets, calibration.prediction_sets(values, 0.1, "黑龙江"))


def test_tensors_of_any_shape_and_type():
    p, y, _ = landscape(500, seed=18)
    for method in ("temperature", "isotonic"):
        calibration = fit_calibration(p, y, method=method)
        grid = torch.tensor([[0.0, 0.25], [1.0, torch.nan]], dtype=torch.bfloat16)
        after = calibration.apply(grid)
        assert after.dtype == torch.float32
        assert after.shape == grid.shape
        assert after[1, 1].isnan()
        assert ((after[0] > 0) & (after[0] < 1)).all()
        sets = calibration.prediction_sets(after, 0.05)
        assert sets.shape == (2, 2, 2)
        assert not sets[1, 1].any()
    gradient = torch.tensor([0.3], requires_grad=True)
    fit_calibration(p, y).apply(gradient).sum().backward()
    assert gradient.grad > 0


def test_sets_need_fitted_levels():
    calibration = Calibration(levels=(ConformalLevel(0.1, (0.5, 0.5)),))
    with pytest.raises(ValueError, match="alpha 0.2; use one of: 0.1"):
        calibration.prediction_sets(torch.tensor([0.5]), 0.2)
    with pytest.raises(ValueError, match="labels of 0 and 1"):
        Calibration().prediction_sets(torch.tensor([0.5]), 0.1)
    with pytest.raises(ValueError, match="1 groups for 2 places"):
        calibration.prediction_sets(torch.tensor([0.5, 0.6]), 0.1, group=["plain"])


DAMAGE = {
    "not JSON": lambda c: "{" + json.dumps(c),
    "not an object": lambda c: "[1]",
    "`method` must be one of": lambda c: json.dumps(c | {"method": "magic"}),
    "`scale` is not a number": lambda c: json.dumps(c | {"scale": True}),
    "`scale` .* must be positive": lambda c: json.dumps(c | {"scale": 0}),
    "holds NaN": lambda c: json.dumps(c | {"shift": float("nan")}),
    "`x` must rise": lambda c: json.dumps(c | {"method": "isotonic", "x": [0.5, 0.5], "y": [0.1, 0.2]}),
    "`y` must not fall": lambda c: json.dumps(c | {"method": "isotonic", "x": [0.1, 0.5], "y": [0.3, 0.2]}),
    "isotonic needs two": lambda c: json.dumps(c | {"method": "isotonic"}),
    "`x` is not a number": lambda c: json.dumps(c | {"x": ["0.1"]}),
    "`fitted_on` is not a whole number": lambda c: json.dumps(c | {"fitted_on": 1.5}),
    "`levels` is missing": lambda c: json.dumps({k: v for k, v in c.items() if k != "levels"}),
    "unknown field `sale`": lambda c: json.dumps(c | {"sale": 1}),
    "`pooled` is not a list of 2": lambda c: json.dumps(c | {"levels": [c["levels"][0] | {"pooled": [0.1]}]}),
    "two numbers in": lambda c: json.dumps(c | {"levels": [c["levels"][0] | {"pooled": [0.1, 7]}]}),
    "alpha twice": lambda c: json.dumps(c | {"levels": c["levels"][:1] * 2}),
    "`format` is not": lambda c: json.dumps(c | {"format": "agriclip-calibration-99"}),
    "cannot be negative": lambda c: json.dumps(c | {"counts": [-1, 2]}),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_files_are_told_in_one_sentence(what, tmp_path):
    p, y, _ = landscape(200, seed=19)
    path = fit_calibration(p, y).save(tmp_path)
    path.write_text(DAMAGE[what](json.loads(path.read_text())))
    with pytest.raises(ValueError, match=rf"calibration\.json' is not a calibration: .*{what}") as caught:
        Calibration.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"There is no calibration\.json in"):
        Calibration.load(tmp_path)
    (tmp_path / "calibration.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a calibration: it is not JSON text"):
        Calibration.load(tmp_path)


def test_bad_input_is_refused():
    p, y, blocks = landscape(100, seed=20)
    refused = [
        ("1 probabilities are NaN", {"probabilities": np.append(p[:-1], np.nan)}),
        ("1 labels are NaN", {"labels": np.append(y[:-1], np.nan)}),
        ("Labels must lie between 0 and 1", {"labels": y * 2}),
        ("Probabilities must lie between 0 and 1", {"probabilities": p - 1}),
        ("All 100 places are of one class", {"labels": np.ones(100)}),
        ("All 100 places are of one class", {"labels": y * 0.3, "threshold": 0.5}),
        ("100 probabilities and 3 labels", {"labels": y[:3]}),
        ("100 probabilities and 2 groups", {"groups": ["a", "b"]}),
        ("no places", {"probabilities": [], "labels": []}),
        ("must not be negative", {"weights": -np.ones(100)}),
        ("no method 'isotonik'; did you mean 'isotonic'", {"method": "isotonik"}),
        ("compares methods on blocks left out; pass `blocks`", {"method": "auto"}),
        ("2 folds and 2 blocks or more, got 5 and 1", {"method": "auto", "blocks": np.zeros(100)}),
        ("One class lies in too few of the 2 blocks", {"method": "auto", "blocks": y}),
        ("counts each block once; pass `blocks`", {"block_weights": True}),
        ("must differ and lie between 0 and 1", {"alphas": (0.1, 0.1)}),
        ("must differ and lie between 0 and 1", {"alphas": (1.0,)}),
    ]
    for message, changed in refused:
        with pytest.raises(AgriClipError, match=message) as caught:
            fit_calibration(**{"probabilities": p, "labels": y} | changed)
        assert "\n" not in str(caught.value)
    with pytest.raises(AgriClipError, match="give `threshold` for shares"):
        conformal_coverage(fit_calibration(p, y), p, p)
    with pytest.raises(AgriClipError, match="One class lies in too few"):
        cross_fit(p, y, y)
