"""The terms of the objective against sums done by hand."""

import math

import pytest
import torch
from scipy import stats

from modeling_agriclip.losses_agriclip import (
    alignment_loss,
    binomial_loss,
    censored_share_loss,
    positive_unlabelled_loss,
    reconstruction_loss,
    scale_consistency_loss,
    scale_diversity_loss,
)


def test_binomial_loss_is_the_likelihood_of_the_counts():
    logits, positive, total = torch.tensor([0.3, -1.2]), torch.tensor([4.0, 1.0]), torch.tensor([10.0, 30.0])
    probability = logits.sigmoid()
    by_hand = -(positive * probability.log() + (total - positive) * (1 - probability).log()).sum() / total.sum()
    torch.testing.assert_close(binomial_loss(logits, positive / total, total), by_hand)


def test_censored_share_is_the_likelihood_of_scipy():
    mean, sd, floor = -4.0, 0.8, 0.001
    shares = torch.tensor([0.05, 0.0004, 0.0])
    density = -stats.norm.logpdf(math.log(0.05), mean, sd)
    below = -stats.norm.logcdf(math.log(floor), mean, sd)
    loss = censored_share_loss(torch.full((3,), mean), torch.full((3,), math.log(sd)), shares, floor)
    assert loss.item() == pytest.approx((density + 2 * below) / 3, rel=1e-5)


def test_no_label_at_all_is_zero():
    nothing = torch.full((3,), torch.nan)
    assert binomial_loss(torch.zeros(3), nothing) == 0
    assert censored_share_loss(torch.zeros(3), torch.zeros(3), nothing, 0.001) == 0


def test_consistency_is_zero_for_equal_scales_and_blind_to_private_halves():
    states, mask = torch.randn(2, 5, 1, 8).repeat(1, 1, 3, 1), torch.ones(2, 5, 3)
    states[..., 4:] = torch.randn(2, 5, 3, 4)
    assert scale_consistency_loss(states, mask) == 0


def test_consistency_cannot_be_bought_by_shrinking_the_features():
    states, mask = torch.randn(2, 5, 3, 8), torch.ones(2, 5, 3)
    loss = scale_consistency_loss(states, mask)
    assert loss > 0.1
    torch.testing.assert_close(scale_consistency_loss(states * 1000, mask), loss, rtol=1e-3, atol=0)


def test_diversity_is_bounded():
    same, mask = torch.randn(2, 5, 1, 8).repeat(1, 1, 3, 1), torch.ones(2, 5, 3)
    torch.testing.assert_close(scale_diversity_loss(same, mask), torch.tensor(1.0))
    assert 0 <= scale_diversity_loss(torch.randn(2, 5, 3, 8), mask) <= 1


@pytest.mark.parametrize("loss", [scale_consistency_loss, scale_diversity_loss])
def test_one_scale_and_masked_scales(loss):
    assert loss(torch.randn(2, 5, 1, 8), torch.ones(2, 5, 1)) == 0
    assert loss(torch.randn(2, 5, 3, 8), torch.zeros(2, 5, 3)) == 0


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def test_alignment_by_hand():
    image, text, scale = unit(5, 8), unit(5, 8), torch.tensor(4.0)
    logits = image @ text.t() * scale
    rows = -(logits.log_softmax(1).diag()).mean()
    columns = -(logits.log_softmax(0).diag()).mean()
    torch.testing.assert_close(alignment_loss(image, text, scale), (rows + columns) / 2)


def test_alignment_with_a_bias_judges_every_pair_by_itself():
    image, text, scale, bias = unit(4, 8), unit(4, 8), torch.tensor(4.0), torch.tensor(-2.0)
    logits = image @ text.t() * scale + bias
    sign = 2 * torch.eye(4) - 1
    expected = torch.nn.functional.softplus(-sign * logits).sum() / 4
    torch.testing.assert_close(alignment_loss(image, text, scale, bias), expected)


@pytest.mark.parametrize("bias", [None, torch.tensor(-1.0)])
def test_pairs_without_an_image_take_no_part_in_the_alignment(bias):
    image, text, scale = unit(5, 8), unit(5, 8), torch.tensor(4.0)
    valid = torch.tensor([1, 0, 1, 1, 0])
    keys = torch.randn(5, 3)
    kept = valid.bool()
    alone = alignment_loss(image[kept], text[kept], scale, bias, keys=keys[kept], key_width=1.0)
    torch.testing.assert_close(alignment_loss(image, text, scale, bias, valid, keys, 1.0), alone)
    assert alignment_loss(image, text, scale, bias, torch.zeros(5)) == 0


def test_near_identical_reports_are_no_strangers():
    image, text, scale = unit(3, 8), unit(3, 8), torch.tensor(4.0)
    keys = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    target = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    logits = image @ text.t() * scale
    expected = -(target * logits.log_softmax(1) + target * logits.t().log_softmax(1)).sum() / 6
    torch.testing.assert_close(alignment_loss(image, text, scale, keys=keys), expected)


def test_positive_unlabelled_risk_by_hand():
    logits, labels = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    softplus = torch.nn.functional.softplus
    found, unlabelled = logits[:2], logits[2:]
    negative = softplus(unlabelled).mean() - 0.2 * softplus(found).mean()
    expected = 0.2 * softplus(-found).mean() + negative
    torch.testing.assert_close(positive_unlabelled_loss(logits, labels, 0.2), expected)
    # A prior so high that the rest of the risk would be negative: that rest is 0, and teaches nothing.
    logits.requires_grad_()
    loss = positive_unlabelled_loss(logits, labels, 0.9)
    torch.testing.assert_close(loss, 0.9 * softplus(-logits[:2]).mean())
    loss.backward()
    assert logits.grad[2:].abs().max() == 0


def test_a_missing_place_is_neither_found_nor_unlabelled():
    logits, labels = torch.randn(6), torch.tensor([1.0, 0.0, torch.nan, 1.0, 0.0, 0.0])
    known = labels.isfinite()
    assert positive_unlabelled_loss(logits, labels, 0.3) == positive_unlabelled_loss(logits[known], labels[known], 0.3)


def test_reconstruction_counts_hidden_pixels_only():
    predicted, target, weights = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1, 0, 1])
    assert reconstruction_loss(predicted, target, weights) == 2.5
