"""Masked image modelling (F18): which patches are hidden, what stays to be seen, and what is to be predicted.

The target is the original image, never the masked one, a patch at a time at zero mean and unit variance; only valid
pixels count. The paper's wording has the masked image as target, which would teach zeros.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .losses_agriclip import reconstruction_loss
from .vision_agriclip import AgriClipVisionModel


@dataclass
class HiddenPatches:
    """Images of which some cells are hidden.

    Attributes:
        seen: Valid pixels that stay, in the dtype of the pixels (B, T, C, H, W).
        hidden: True where a cell is hidden (B, N).
        present: True where a cell has a valid pixel, hidden or not (B, N).
        target: Pixels of every cell, normalised a dated patch at a time (B, T, N, C, p * p).
        valid: 1 where a target is a valid pixel, same shape.
        grid: Rows and columns of the N cells.
    """

    seen: Tensor
    hidden: Tensor
    present: Tensor
    target: Tensor
    valid: Tensor
    grid: tuple[int, int]

    def loss(self, predicted: Tensor) -> Tensor:
        """Mean squared error over hidden, valid pixels, of a prediction shaped like `target`."""
        return reconstruction_loss(predicted, self.target, self.valid * self.hidden[:, None, :, None, None])


def hide_patches(
    tower: AgriClipVisionModel, pixels: Tensor, valid: Tensor, ratio: float, noise: Tensor | None = None
) -> HiddenPatches:
    """Hide a share of the cells that exist, at all dates and in all channels.

    Args:
        tower: Its patch size and its cutting of images into patches are used.
        pixels: (B, T, C, H, W), 0 where not valid.
        valid: 1 where a pixel is valid, same shape and dtype.
        ratio: Share of the cells to hide.
        noise: Random numbers (B, N) or longer, whose smallest hide their cell; drawn if None.
    """
    patch = tower.config.patch_size
    grid = (-(-pixels.shape[-2] // patch), -(-pixels.shape[-1] // patch))
    weights = tower.embeddings.patches(valid)  # (B, T, h, w, C, pp)
    present = weights.flatten(4).any(dim=-1).any(dim=1).flatten(1)
    hidden = _choose(present, ratio, noise)
    visible = (~hidden).view(-1, 1, 1, *grid).to(valid.dtype)
    visible = visible.repeat_interleave(patch, dim=-2).repeat_interleave(patch, dim=-1)
    weights = weights.flatten(2, 3)
    return HiddenPatches(
        seen=valid * visible[..., : valid.shape[-2], : valid.shape[-1]],
        hidden=hidden,
        present=present,
        target=_normalise(tower.embeddings.patches(pixels).flatten(2, 3), weights),
        valid=weights,
        grid=grid,
    )


def _choose(present: Tensor, ratio: float, noise: Tensor | None) -> Tensor:
    """The cells with the least noise among those present; (B, N) bool."""
    if noise is None:
        noise = torch.rand(present.shape, device=present.device)
    noise = noise[:, : present.shape[1]].to(present.device, torch.float32).masked_fill(~present, torch.inf)
    rank = noise.argsort(dim=1).argsort(dim=1)
    return (rank < (present.sum(dim=1, keepdim=True) * ratio).long()) & present


def _normalise(patches: Tensor, valid: Tensor) -> Tensor:
    """Zero mean and unit variance over the valid pixels and channels of each dated patch (B, T, N, C, pp)."""
    count = valid.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    mean = (patches * valid).sum(dim=(-2, -1), keepdim=True) / count
    variance = ((patches - mean).square() * valid).sum(dim=(-2, -1), keepdim=True) / count
    return (patches - mean) / (variance + 1e-4).sqrt()
