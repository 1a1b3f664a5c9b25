"""The terms of the objective against sums done by hand."""

import math

import pytest
import torch
from scipy import stats

from modeling_agriclip.losses_agriclip import (
    alignment_loss,
    binomial_loss,
    censored_share_loss,
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


def test_alignment_by_hand():
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = -(logits.log_softmax(1).diag()).mean()
    columns = -(logits.log_softmax(0).diag()).mean()
    torch.testing.assert_close(alignment_loss(logits), (rows + columns) / 2)


def test_reconstruction_counts_hidden_pixels_only():
    predicted, target, weights = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1, 0, 1])
    assert reconstruction_loss(predicted, target, weights) == 2.5
