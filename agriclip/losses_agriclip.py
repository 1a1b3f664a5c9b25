"""The terms of the objective. Each is a mean, so that its weight holds whatever the batch, the grid or the scales.

Where a source formula is unbounded or degenerate, the docstring says which form stands here in its place. Means are
taken over all processes of a run: see `scope_agriclip.py`.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .scope_agriclip import current_scope


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
            total = total + (value * both).sum() / current_scope().total(both.sum()).clamp(min=1)
    return total * 2 / (num_scales * (num_scales - 1))


def alignment_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    keys: Tensor | None = None,
    key_width: float = 0.1,
) -> Tensor:
    """Image-text contrast: symmetric InfoNCE, or a sigmoid a pair when a bias is given (SigLIP).

    Neighbouring places have near-identical reports, which a hard target would push apart. With `keys` the target of a
    pair is exp(-d^2 / (2 w^2)), d being the root mean square distance of its keys: 1 for the same report, 0 for
    another.

    Args:
        image: Unit embeddings of images (B, P).
        text: Unit embeddings of the reports that belong to them (B, P).
        scale: Scale of the similarity.
        bias: Added to a pair's logit.
        valid: 1 where a pair has an image at all (B,); the others take no part.
        keys: What tells reports apart, such as standardised numbers (B, K); None for a target of 1 on the diagonal.
        key_width: The width w.
    """
    known = torch.ones_like(image[:, 0]) if valid is None else valid
    facts = known.float().unsqueeze(1)
    if keys is not None:
        facts = torch.cat([facts, keys.float()], dim=1)
    learnt = (scale,) if bias is None else (scale, bias)
    return current_scope().alignment(image, text, facts, learnt, partial(_contrast, key_width))


def _contrast(
    key_width: float,
    image: Tensor,
    text: Tensor,
    images: Tensor,
    texts: Tensor,
    facts: Tensor,
    first: int,
    scale: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Contrast of some rows within all: their share of the mean over all pairs."""
    rows = torch.arange(first, first + len(image), device=image.device)
    known, keys = facts[:, 0], facts[:, 1:]
    targets = nn.functional.one_hot(rows, len(images)).float()
    if keys.shape[1]:
        distance = (keys[rows].unsqueeze(1) - keys).square().mean(dim=-1)
        targets = torch.maximum(targets, (-distance / (2 * key_width**2)).exp())
    targets, weights = targets * known, known[rows]
    of_images, of_texts = (image @ texts.t() * scale).float(), (text @ images.t() * scale).float()
    count = current_scope().total(weights.sum()).clamp(min=1)
    if bias is not None:
        pairs = nn.functional.binary_cross_entropy_with_logits(of_images + bias, targets, reduction="none")
        return (pairs * known * weights.unsqueeze(1)).sum() / count
    targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=1e-12)
    absent = (known == 0) & (torch.arange(len(known), device=known.device) != rows.unsqueeze(1))
    # A row's own pair stays, so that the row of an absent image is finite; its weight is 0.
    values = [
        -(targets * x.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, 0.0)).sum(dim=1)
        for x in (of_images, of_texts)
    ]
    return ((values[0] + values[1]) * weights).sum() / (2 * count)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of `values` under `weights` of the same shape, over all that the scope in force covers."""
    return (values * weights).sum() / current_scope().total(weights.sum()).clamp(min=1e-12)


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
    return weighted_mean(values, weights)


def positive_unlabelled_loss(logits: Tensor, labels: Tensor, prior: float, weights: Tensor | None = None) -> Tensor:
    """Non-negative risk of presence-only labels (Kiryo et al. 2017): where nothing was found, nothing is known.

    Of the unlabelled places a share `prior` is taken to be positive; what that leaves of their risk as negatives is
    kept from falling below 0, which is where such a fit would begin to learn its positives by heart.

    Args:
        logits: Any shape.
        labels: 1 = found, 0 = unlabelled, NaN = no place; same shape.
        prior: Share of all places that are positive.
        weights: Weight of each place; 1 if None.
    """
    labels, weights = label_weights(labels, weights)
    scope, logits = current_scope(), logits.float()
    found, open_ = weights * labels, weights * (1 - labels)
    found_count, open_count = (scope.total(part.sum()).clamp(min=1e-12) for part in (found, open_))
    risk_found = (found * nn.functional.softplus(-logits)).sum()
    false_found = (found * nn.functional.softplus(logits)).sum()
    false_open = (open_ * nn.functional.softplus(logits)).sum()
    whole = scope.total(false_open) / open_count - prior * scope.total(false_found) / found_count
    negative = (false_open / open_count - prior * false_found / found_count) * (whole >= 0)
    return prior * risk_found / found_count + negative


def squared_error_loss(predicted: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean squared error; NaN = no label."""
    labels, weights = label_weights(labels, weights)
    return weighted_mean((predicted.float() - labels).square(), weights)


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
    return weighted_mean(torch.where(shares > floor, density, below), weights)


def reconstruction_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error over hidden, valid pixels (F18, on the original pixels and not on the masked image).

    Args:
        predicted: (B, N, K) values of each cell's pixels.
        target: Same shape, normalised a patch at a time.
        weights: 1 where a pixel is hidden and valid, same shape.
    """
    return weighted_mean((predicted.float() - target.float()).square(), weights.float())
