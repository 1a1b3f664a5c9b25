"""The terms of the objective. Each is a mean, so that its weight holds whatever the batch, the grid or the scales.

Where a source formula is unbounded or degenerate, the docstring says which form stands here in its place.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def scale_consistency_loss(states: Tensor, mask: Tensor) -> Tensor:
    """Squared distance between the shared halves of all pairs of scales (F7), after layer normalisation.

    Without the normalisation shrinking features would solve it. One scale gives 0.

    Args:
        states: (B, N, S, D); the first half of D is shared.
        mask: 1 where a scale is valid in a cell (B, N, S).
    """
    shared = states[..., : states.shape[-1] // 2]
    shared = nn.functional.layer_norm(shared.float(), shared.shape[-1:])
    return _mean_over_pairs(lambda a, b: (a - b).square().mean(dim=-1), shared, mask)


def scale_diversity_loss(states: Tensor, mask: Tensor) -> Tensor:
    """Squared cosine between the private halves of all pairs of scales (F10), bounded by 0 and 1.

    The paper's distance form is minus its F7 and unbounded below. One scale gives 0.

    Args:
        states: (B, N, S, D); the second half of D is private.
        mask: 1 where a scale is valid in a cell (B, N, S).
    """
    private = nn.functional.normalize(states[..., states.shape[-1] // 2 :].float(), dim=-1)
    return _mean_over_pairs(lambda a, b: (a * b).sum(dim=-1).square(), private, mask)


def _mean_over_pairs(distance: Callable[[Tensor, Tensor], Tensor], states: Tensor, mask: Tensor) -> Tensor:
    num_scales = states.shape[2]
    total = states.new_zeros(())
    if num_scales == 1:
        return total
    for first in range(num_scales):
        for second in range(first + 1, num_scales):
            both = (mask[:, :, first] * mask[:, :, second]).to(states.dtype)
            value = distance(states[:, :, first], states[:, :, second])
            total = total + (value * both).sum() / both.sum().clamp(min=1)
    return total * 2 / (num_scales * (num_scales - 1))


def alignment_loss(logits_per_image: Tensor) -> Tensor:
    """Symmetric InfoNCE over the similarity matrix (B, B) whose diagonal pairs belong together."""
    target = torch.arange(logits_per_image.shape[0], device=logits_per_image.device)
    forward = nn.functional.cross_entropy(logits_per_image, target)
    return (forward + nn.functional.cross_entropy(logits_per_image.t(), target)) / 2


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1e-12)


def label_weights(labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels with NaN set to 0, and their weights with 0 in its place: a missing label teaches nothing."""
    known = labels.isfinite()
    weights = torch.ones_like(labels, dtype=torch.float32) if weights is None else weights.float()
    return torch.where(known, labels, 0.0).float(), torch.where(known, weights, 0.0)


def binomial_loss(logits: Tensor, shares: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with soft labels (F17); with counts as weights the binomial likelihood, a mean over trials.

    Args:
        logits: Any shape.
        shares: Share of successes in [0, 1], same shape; NaN = no label.
        weights: Number of trials, or any weight; 1 if None.
    """
    shares, weights = label_weights(shares, weights)
    values = nn.functional.binary_cross_entropy_with_logits(logits.float(), shares, reduction="none")
    return _weighted_mean(values, weights)


def squared_error_loss(predicted: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean squared error; NaN = no label."""
    labels, weights = label_weights(labels, weights)
    return _weighted_mean((predicted.float() - labels).square(), weights)


def censored_share_loss(
    mean: Tensor, log_sd: Tensor, shares: Tensor, floor: float, weights: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of a log-normal share that is only known to be below `floor` where it is (Tobit).

    A share of land spans decades and is often 0; its logarithm orders it, and censoring takes the zeros for what they
    are.

    Args:
        mean: Mean of log share, any shape.
        log_sd: Logarithm of its standard deviation, same shape.
        shares: Observed share in [0, 1]; NaN = no label.
        floor: Shares at or below this are censored.
        weights: Weight of each label; 1 if None.
    """
    shares, weights = label_weights(shares, weights)
    mean, sd = mean.float(), log_sd.float().exp()
    observed = (shares.clamp(min=floor).log() - mean) / sd
    density = 0.5 * observed.square() + log_sd.float() + 0.5 * math.log(2 * math.pi)
    below = -torch.special.log_ndtr((math.log(floor) - mean) / sd)
    return _weighted_mean(torch.where(shares > floor, density, below), weights)


def reconstruction_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error over hidden, valid pixels (F18, on the original pixels and not on the masked image).

    Args:
        predicted: (B, N, K) values of each cell's pixels.
        target: Same shape, normalised a patch at a time.
        weights: 1 where a pixel is hidden and valid, same shape.
    """
    return _weighted_mean((predicted.float() - target.float()).square(), weights.float())
