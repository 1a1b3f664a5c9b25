"""Any sensor: patch weights generated from the description of each channel.

A channel is described by kind, centre wavelength, month and named variable. A small network turns the description
into the weights that embed its pixels; a patch is the sum over its valid channels, so order, number and absence of
channels change nothing but the sum.
"""

import math

import torch
from torch import Tensor, nn

from .base_agriclip import fourier_features, log_spaced, with_init_std
from .configuration_agriclip import AgriClipVisionConfig

_WAVELENGTH_PERIODS = 10
_WAVELENGTH_FEATURES = 2 * _WAVELENGTH_PERIODS + 2
_MONTH_FEATURES = 5


class AgriClipChannelDescriber(nn.Module):
    """Description of channels (B, C, 4) to features (B, C, hidden)."""

    def __init__(self, config: AgriClipVisionConfig) -> None:
        super().__init__()
        size = config.channel_hidden_size
        self.num_kinds, self.num_variables = config.num_channel_kinds, config.num_channel_variables
        # Near unit scale, and most of it in wavelength and month: what two channels of a kind do not share must not
        # drown in what they do.
        num_features = _WAVELENGTH_FEATURES + _MONTH_FEATURES
        self.kind_embedding = with_init_std(nn.Embedding(config.num_channel_kinds, size), 0.5)
        self.variable_embedding = with_init_std(nn.Embedding(config.num_channel_variables, size), 0.7)
        self.features = with_init_std(nn.Linear(num_features, size), 2.5 * num_features**-0.5)
        self.hidden = with_init_std(nn.Linear(size, size), 1.4 * size**-0.5)
        self.activation = nn.GELU()

    def forward(self, channels: Tensor) -> Tensor:
        """Kind id, wavelength in nm (0 = none), month (0 = none) and variable id to (B, C, hidden)."""
        kind, wavelength, month, variable = channels.unbind(-1)
        dtype = self.features.weight.dtype
        # Periods of the decadic logarithm: the shortest, 0.02, separates bands 20 nm apart in the visible.
        has_wavelength = (wavelength > 0).float().unsqueeze(-1)
        decade = wavelength.clamp(min=1).float().log10()
        periods = log_spaced(0.02, 10.0, _WAVELENGTH_PERIODS, channels.device)
        spectral = torch.cat([fourier_features(decade, periods), decade.unsqueeze(-1) / 3], dim=-1) * has_wavelength
        has_month = (month > 0).float().unsqueeze(-1)
        angle = 2 * math.pi * (month.float() - 0.5) / 12
        seasonal = torch.stack([angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()], dim=-1) * has_month
        described = torch.cat([spectral, has_wavelength, seasonal, has_month], dim=-1).to(dtype)
        hidden = (
            self.features(described)
            + self.kind_embedding(kind.clamp(0, self.num_kinds - 1))
            + self.variable_embedding(variable.clamp(0, self.num_variables - 1))
        )
        return self.activation(self.hidden(self.activation(hidden)))


class AgriClipChannelEmbedding(nn.Module):
    """Pixels of any channels to cells: each channel's patch weights are generated from its description."""

    def __init__(self, config: AgriClipVisionConfig, size: int, patch_size: int) -> None:
        super().__init__()
        self.size, self.patch_size = size, patch_size
        self.describer = AgriClipChannelDescriber(config)
        hidden = config.channel_hidden_size
        # The describer leaves a mean square of about 4 a feature: patches of standardised pixels then give cells of
        # about unit variance.
        std = (4.0 * hidden * patch_size**2) ** -0.5
        self.to_weights = with_init_std(nn.Linear(hidden, patch_size**2 * size), std)
        self.to_token = with_init_std(nn.Linear(hidden, size), 0.25 * hidden**-0.5)

    def generate(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch weights (B, C, p*p, D) and channel tokens (B, C, D) for the descriptions (B, C, 4)."""
        hidden = self.describer(channels)
        return self.to_weights(hidden).unflatten(-1, (self.patch_size**2, self.size)), self.to_token(hidden)

    def forward(self, pixels: Tensor, valid: Tensor, generated: tuple[Tensor, Tensor]) -> Tensor:
        """Embed the cells of a dated image.

        Args:
            pixels: (B, T, C, H, W), 0 where not valid.
            valid: (B, T, C, H, W), 1 where a pixel counts, in the dtype of `pixels`.
            generated: What [`generate`] returned.

        Returns:
            Cells (B, T, h, w, D) with h = ceil(H / p), 0 where no pixel is valid.
        """
        weights, tokens = generated
        patches, coverage = self.patches(pixels), self.patches(valid).mean(dim=-1)  # (B,T,h,w,C,pp), (B,T,h,w,C)
        batch, dates, height, width, num_channels, pixels_in_patch = patches.shape
        flat = patches.reshape(batch, dates * height * width, num_channels * pixels_in_patch)
        cells = torch.bmm(flat, weights.flatten(1, 2))
        # A sum of n standardised channels has variance n: divide by its root, and average the channels' tokens.
        shares = coverage.reshape(batch, dates * height * width, num_channels)
        present = shares.sum(dim=-1, keepdim=True)
        described = torch.bmm(shares, tokens) / present.clamp(min=1e-6)
        cells = cells * present.clamp(min=1 / pixels_in_patch).rsqrt() + described
        cells = cells * (present > 0).to(cells.dtype)
        return cells.reshape(batch, dates, height, width, self.size)

    def cell_mask(self, valid: Tensor) -> Tensor:
        """Validity of pixels (B, T, C, H, W) to that of cells, (B, T, h, w) bool: one valid pixel is enough."""
        return self.patches(valid).flatten(4).any(dim=-1)

    def patches(self, image: Tensor) -> Tensor:
        """(B, T, C, H, W) to (B, T, h, w, C, p * p); what the last row and column lack is absent, that is 0."""
        p, (height, width) = self.patch_size, image.shape[-2:]
        image = nn.functional.pad(image, (0, -width % p, 0, -height % p))
        image = image.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # (B, T, C, h, p, w, p)
        return image.permute(0, 1, 3, 5, 2, 4, 6).flatten(-2)
