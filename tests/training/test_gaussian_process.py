"""The Gaussian process beside the network: answers of scikit-learn, silence about other words, saved and loaded."""

import copy
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from modeling_agriclip import AgriClipConfig, AgriClipEnsemble, AgriClipForSuitability
from processing.sensors_agriclip import get_sensor
from tests.training.small_model import model_of
from training.gaussian_process import add_gaussian_process
from training.study_dataset import SiteTensors

NUMBER = 5
CHANNELS = torch.tensor([channel.code() for channel in get_sensor("landsat8").channels])
COUNT = 60


def make_sites(images=True):
    """Sites with three numbers, of which the share follows the first, and images of which one has no valid pixel."""
    torch.manual_seed(3)
    ids = torch.tensor([2, 7, NUMBER, 8, NUMBER, 9, NUMBER, 3])
    values = torch.zeros(COUNT, len(ids))
    values[:, ids == NUMBER] = torch.randn(COUNT, 3) * torch.tensor([3.0, 1.0, 200.0]) + torch.tensor([12, 0.0, 900])
    values[5, 4] = torch.nan
    sites = SiteTensors(ids, torch.ones_like(ids), values, number_token_id=NUMBER)
    if images:
        sites.pixel_values = torch.randn(COUNT, len(CHANNELS), 8, 8)
        sites.pixel_mask = torch.rand(COUNT, len(CHANNELS), 8, 8) > 0.2
        sites.pixel_mask[4] = False
        sites.channels, sites.gsd = CHANNELS, 30.0
    score = (values[:, 2] - 12) / 3 + 0.1 * torch.randn(COUNT)
    return sites, (0.1 * score.exp()).clamp(max=1.0).double().numpy()


def batch_of(sites, rows):
    batch = {
        "input_ids": sites.input_ids.expand(len(rows), -1),
        "attention_mask": sites.attention_mask.expand(len(rows), -1),
        "numeric_values": sites.numeric_values[rows],
    }
    if sites.pixel_values is not None:
        batch |= {"pixel_values": sites.pixel_values[rows], "pixel_mask": sites.pixel_mask[rows]}
        batch |= {"channels": CHANNELS, "gsd": torch.full((len(rows),), 30.0)}
    return batch


@pytest.fixture
def fitted():
    model = model_of("light", suitability_likelihood="share").eval()
    sites, shares = make_sites()
    alone = copy.deepcopy(model)
    assert add_gaussian_process(model, sites, np.arange(40), shares)
    return model, alone, sites, shares


@torch.no_grad()
def test_the_posterior_of_scikit_learn(fitted):
    model, _, sites, shares = fitted
    process = model.gaussian_process
    rows = np.arange(40, COUNT)
    vision = model.vision_model(**{k: v for k, v in batch_of(sites, rows).items() if k[:3] in ("pix", "cha", "gsd")})
    text = model.text_model(
        sites.input_ids.expand(len(rows), -1), sites.attention_mask.expand(len(rows), -1), sites.numeric_values[rows]
    )
    valid = sites.pixel_mask
    means = (sites.pixel_values * valid).sum((-2, -1)) / valid.sum((-2, -1))
    inputs = torch.cat([sites.numeric_values[:, sites.input_ids == NUMBER], means], dim=1).double().numpy()
    targets = np.log(shares[:40] + 0.001)
    for size, seen in ((3, None), (3 + len(CHANNELS), vision)):
        part = inputs[:, :size]
        part = np.nan_to_num((part - np.nanmean(part[:40], 0)) / np.nanstd(part[:40], 0))
        amplitude, length, noise = process.kernels[0 if seen is None else 1].double().exp().tolist()
        kernel = ConstantKernel(amplitude) * Matern(length, nu=1.5) + WhiteKernel(noise)
        peer = GaussianProcessRegressor(kernel, optimizer=None)
        peer.fit(part[:40], (targets - targets.mean()) / targets.std())
        mean, sd = peer.predict(part[40:], return_std=True)
        near, alone = process(text, None, seen)
        np.testing.assert_allclose(near.mean, mean * targets.std() + targets.mean(), atol=2e-4)
        np.testing.assert_allclose(near.sd, sd * targets.std(), rtol=1e-4)
        assert near.speaks.all()
        torch.testing.assert_close(alone.mean, process(text, None)[0].mean)


@torch.no_grad()
def test_the_answer_is_the_mean_of_both_scores(fitted):
    model, alone, sites, _ = fitted
    batch = batch_of(sites, np.arange(40, 50))
    both, network = model(**batch), alone(**batch)
    near, _ = model.gaussian_process(
        model.text_model(batch["input_ids"], batch["attention_mask"], batch["numeric_values"]),
        batch["attention_mask"],
        model.vision_model(**{k: v for k, v in batch.items() if k[:3] in ("pix", "cha", "gsd")}),
    )
    score = (near.mean - math.log(0.021)) / near.sd
    torch.testing.assert_close(both.logits, (network.logits + score) / 2)
    torch.testing.assert_close(both.probabilities, torch.special.ndtr(both.logits))
    torch.testing.assert_close(both.cell_logits, (network.cell_logits + score[:, None]) / 2)
    share = (((network.share + 0.001).log() + near.mean) / 2).exp() - 0.001
    torch.testing.assert_close(both.share, share.clamp(0, 1))
    torch.testing.assert_close(both.fused_state, network.fused_state)
    assert not torch.allclose(both.report_probabilities, network.report_probabilities)
    without = {name: value for name, value in batch.items() if name in ("input_ids", "numeric_values")}
    torch.testing.assert_close(model(**without).probabilities, both.report_probabilities, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_of_other_words_and_without_numbers_the_network_speaks_alone(fitted):
    model, alone, sites, _ = fitted
    batch = batch_of(sites, np.arange(40, 44))
    told = batch["input_ids"].clone()
    told[0, 1] = 11  # another word
    masked = batch["attention_mask"].clone()
    masked[1] = (told[1] != NUMBER).long()  # no number at all
    batch |= {"input_ids": told, "attention_mask": masked}
    both, network = model(**batch), alone(**batch)
    same = (both.probabilities == network.probabilities).tolist()
    assert same == [True, True, False, False]
    pixels = {name: value for name, value in batch.items() if name[:3] in ("pix", "cha", "gsd")}
    torch.testing.assert_close(model(**pixels).probabilities, alone(**pixels).probabilities)
    shorter = {name: batch[name][:, :-1] for name in ("input_ids", "attention_mask", "numeric_values")}
    torch.testing.assert_close(model(**shorter).probabilities, alone(**shorter).probabilities)


@torch.no_grad()
def test_padding_and_other_bands_change_nothing_that_they_should_not(fitted):
    model, alone, sites, _ = fitted
    batch = batch_of(sites, np.arange(40, 44))
    padded = batch | {
        name: torch.nn.functional.pad(batch[name], (0, 3))
        for name in ("input_ids", "attention_mask", "numeric_values")
    }
    torch.testing.assert_close(model(**padded).probabilities, model(**batch).probabilities, atol=1e-5, rtol=1e-5)
    # Of a sensor that was not fitted the numbers alone are compared.
    others = batch | {"channels": CHANNELS.flip(0)}
    near = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "numeric_values")}).logits
    report = alone(**{name: batch[name] for name in ("input_ids", "attention_mask", "numeric_values")}).logits
    torch.testing.assert_close(2 * model(**others).logits - alone(**others).logits, 2 * near - report)


@torch.no_grad()
def test_far_from_all_places_it_says_what_they_have_in_common(fitted):
    model, _, sites, shares = fitted
    values = sites.numeric_values[40:41].clone()
    values[:, sites.input_ids == NUMBER] += 1e5
    text = model.text_model(sites.input_ids[None], sites.attention_mask[None], values)
    near, _ = model.gaussian_process(text, None)
    targets = np.log(shares[:40] + 0.001)
    amplitude, _, noise = model.gaussian_process.kernels[0].exp().tolist()
    assert near.mean.item() == pytest.approx(targets.mean(), abs=1e-4)
    assert near.sd.item() == pytest.approx((amplitude + noise) ** 0.5 * targets.std(), rel=1e-4)


def test_slopes_are_finite_at_a_place_that_was_fitted(fitted):
    model, _, sites, _ = fitted
    batch = batch_of(sites, np.arange(2))
    with torch.inference_mode():
        model(**batch)  # what it solves then is used below
    batch["numeric_values"] = batch["numeric_values"].clone().requires_grad_()
    model(**batch).logits.sum().backward()
    assert batch["numeric_values"].grad.isfinite().all()


@torch.no_grad()
def test_saved_loaded_and_asked_in_an_ensemble(fitted, tmp_path):
    model, _, sites, _ = fitted
    batch = batch_of(sites, np.arange(40, 50))
    expected = model(**batch).probabilities
    model.save_pretrained(tmp_path)
    loaded, told = AgriClipForSuitability.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert torch.equal(loaded.eval()(**batch).probabilities, expected)
    answer = AgriClipEnsemble([model, loaded])(**batch)
    torch.testing.assert_close(answer.probabilities, expected)
    # Other weights in the same module: what was solved for the old ones is forgotten.
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["gaussian_process.targets"] += 1
    loaded.load_state_dict(state)
    assert (loaded(**batch).probabilities > expected).any()


def test_what_gets_none(fitted):
    sites, shares = make_sites(images=False)
    for likelihood in ("binary", "regression"):
        assert not add_gaussian_process(
            model_of("light", suitability_likelihood=likelihood), sites, np.arange(40), shares
        )
    model = model_of("light", suitability_likelihood="share")
    assert not add_gaussian_process(model, sites, np.arange(10), shares)  # too few
    assert not add_gaussian_process(model, sites, np.arange(40), np.full(COUNT, np.nan))
    assert model.config.gp_places == 0
    assert add_gaussian_process(model, sites, np.arange(40), shares)
    assert model.gaussian_process.places.shape == (40, 3)
    with pytest.raises(StrictDataclassClassValidationError, match="gp_places"):
        AgriClipConfig(gp_places=3, suitability_likelihood="binary")


def test_of_many_places_some_are_remembered(monkeypatch):
    monkeypatch.setattr("training.gaussian_process.MOST", 30)
    sites, shares = make_sites()
    model = model_of("light", suitability_likelihood="share").eval()
    assert add_gaussian_process(model, sites, np.arange(COUNT), shares)
    assert len(model.gaussian_process.places) == 30
    assert model(**batch_of(sites, np.arange(4))).probabilities.isfinite().all()
