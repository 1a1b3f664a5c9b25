"""Cells back to pixels: a small U-shaped network over the pixels, with the transformer's cells at its bottom.

A field's edge is finer than a cell. The pixels' own path keeps it: embedded at full resolution like any channel, it
goes down by halves to the grid of the cells, meets them there, and comes back up past what it left at each resolution
(U-Net, Ronneberger et al. 2015). Nothing masked reaches anything else: features are zeroed where no pixel is valid.
"""

import math

import torch
from torch import Tensor, nn

from .base_agriclip import with_init_std
from .channels_agriclip import AgriClipChannelEmbedding
from .configuration_agriclip import AgriClipVisionConfig
from .extractor_agriclip import harmonic_regression


class AgriClipPixelBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which they start as nothing to.

    No normalisation: over channels it would take a pixel's brightness away, which tells grass from soybean, and over a
    tile or a batch it would make a pixel depend on others. Starting spreads that keep the variance do in its place (He
    et al. 2015; Zhang et al. 2019, Fixup).
    """

    def __init__(self, in_size: int, size: int) -> None:
        super().__init__()
        self.conv1 = with_init_std(nn.Conv2d(in_size, size, kernel_size=3, padding=1), (2 / (9 * in_size)) ** 0.5)
        self.conv2 = with_init_std(nn.Conv2d(size, size, kernel_size=3, padding=1), 0.0)
        self.shortcut: nn.Module = nn.Identity()
        if in_size != size:
            self.shortcut = with_init_std(nn.Conv2d(in_size, size, kernel_size=1), (2 / in_size) ** 0.5)
        self.activation = nn.GELU()

    def forward(self, hidden_states: Tensor, keep: Tensor) -> Tensor:
        """(B, C, h, w) and its mask (B, 1, h, w) to (B, C', h, w), 0 where masked."""
        changed = self.conv1(hidden_states)
        # Under autocast convolutions answer in half precision, and the rest follows them.
        keep = keep.to(changed.dtype)
        changed = self.conv2(self.activation(changed) * keep)
        return self.activation(self.shortcut(hidden_states).to(changed.dtype) + changed) * keep


class AgriClipPixelDecoder(nn.Module):
    """Cells and pixels to one feature a pixel."""

    def __init__(self, config: AgriClipVisionConfig) -> None:
        super().__init__()
        sizes = [config.pixel_size * 2**level for level in range(config.pixel_levels + 1)]
        self.patch_size, self.levels, self.size = config.patch_size, config.pixel_levels, sizes[0]
        self.embedding = AgriClipChannelEmbedding(config, sizes[0], patch_size=1)
        self.down = nn.ModuleList(
            AgriClipPixelBlock(sizes[max(level - 1, 0)], sizes[level]) for level in range(len(sizes))
        )
        # At the start the pixels answer alone.
        self.cells = with_init_std(nn.Linear(config.hidden_size, sizes[-1]), 0.0)
        self.context = with_init_std(nn.Linear(config.hidden_size, sizes[-1]), 0.0)
        self.join = AgriClipPixelBlock(2 * sizes[-1], sizes[-1])
        self.up = nn.ModuleList(
            AgriClipPixelBlock(sizes[level + 1] + sizes[level], sizes[level]) for level in reversed(range(self.levels))
        )

    def forward(
        self, cells: Tensor, pooled: Tensor, pixels: Tensor, valid: Tensor, channels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features of all pixels.

        Args:
            cells: Cell features (B, N, D).
            pooled: The whole image (B, D), which tells a cell where it lies: in farmland, in a city.
            pixels: (B, T, C, H, W), 0 where not valid.
            valid: (B, T, C, H, W), in the dtype of `pixels`.
            channels: Descriptions (B, C, 4).

        Returns:
            Features (B, d, H, W) and the mask of pixels with a valid channel (B, 1, H, W) bool.
        """
        height, width = pixels.shape[-2:]
        keeps, state = [], self._embed(pixels, valid, channels)
        keep = (self.embedding.cell_mask(valid).any(dim=1)).unsqueeze(1)
        # Sides that do not halve evenly are filled up with what is masked.
        edge = 2**self.levels
        fill = (0, -width % edge, 0, -height % edge)
        state, grown = nn.functional.pad(state, fill), nn.functional.pad(keep, fill).to(state.dtype)
        left = []
        for level, block in enumerate(self.down):
            if level:
                state, grown = (nn.functional.max_pool2d(x, 2) for x in (state, grown))
            state = block(state, grown)
            left.append(state)
            keeps.append(grown)
        rows, columns = (math.ceil(side / self.patch_size) for side in (height, width))
        heard = self.cells(cells) + self.context(pooled).unsqueeze(1)
        heard = heard.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        if self.patch_size != edge:
            scale = self.patch_size / edge
            heard = nn.functional.interpolate(heard, scale_factor=scale, mode="bilinear", align_corners=False)
            lack = [state.shape[axis] - heard.shape[axis] for axis in (-1, -2)]
            heard = nn.functional.pad(heard, (0, lack[0], 0, lack[1]))  # a negative lack cuts
        state = self.join(torch.cat([state, heard * keeps[-1]], dim=1), keeps[-1])
        for level, block in zip(reversed(range(self.levels)), self.up, strict=True):
            state = nn.functional.interpolate(state, scale_factor=2.0, mode="nearest")
            state = block(torch.cat([state, left[level]], dim=1), keeps[level])
        return state[..., :height, :width], keep

    def describe(self, pixels: Tensor, valid: Tensor, channels: Tensor, dates: Tensor, harmonics: int = 6) -> Tensor:
        """What the pixels are like, without regard to their places: means by season, and the spread.

        A network that was made for one task forgets what others need. The embedding of single pixels is linear in
        their values and has not forgotten anything yet, whatever the sensor.

        Args:
            pixels: (B, T, C, H, W), 0 where not valid.
            valid: (B, T, C, H, W), in the dtype of `pixels`.
            channels: Descriptions (B, C, 4).
            dates: Days from 1 January of the reference year (B, T), 0 = undated.
            harmonics: Waves a year of the seasonal cycle.

        Returns:
            Mean and waves over the dates of the mean pixel, and standard deviation over pixels and dates:
            (B, (2 + 2 harmonics) d) in float32.
        """
        states = self.embedding(pixels, valid, self.embedding.generate(channels)).float()  # (B, T, H, W, d)
        keep = self.embedding.cell_mask(valid).unsqueeze(-1).float()
        count = keep.sum(dim=(2, 3))
        means = (states * keep).sum(dim=(2, 3)) / count.clamp(min=1)
        cycle = harmonic_regression(means, count[..., 0] > 0, dates, harmonics)
        every = keep.sum(dim=(1, 2, 3)).clamp(min=1)
        apart = states - ((states * keep).sum(dim=(1, 2, 3)) / every)[:, None, None, None]
        spread = ((apart.square() * keep).sum(dim=(1, 2, 3)) / every).clamp(min=1e-12).sqrt()
        return torch.cat([cycle.flatten(1), spread], dim=1)

    def _embed(self, pixels: Tensor, valid: Tensor, channels: Tensor) -> Tensor:
        """Mean over the valid dates of the embedded pixels, (B, d, H, W)."""
        embedded = self.embedding(pixels, valid, self.embedding.generate(channels))  # (B, T, H, W, d)
        if embedded.shape[1] > 1:
            count = self.embedding.cell_mask(valid).sum(dim=1, keepdim=True)
            embedded = embedded.sum(dim=1, keepdim=True) / count.clamp(min=1).unsqueeze(-1).to(embedded.dtype)
        return embedded[:, 0].permute(0, 3, 1, 2)
