"""The vision tower: channel embedding, pyramid, extractor and adaptive consistency (ACM, F7-F10).

The pyramid goes down from the input's own resolution by masked averaging; its scales share one extractor and meet on
the finest grid, where each cell weighs them. Everything masked gives a defined result, and says so (`image_valid`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults

from .base_agriclip import AgriClipPooling, AgriClipPreTrainedModel, with_init_std
from .channels_agriclip import AgriClipChannelEmbedding
from .clip_agriclip import AgriClipBackbone, AgriClipDateMean, AgriClipScalePooling
from .configuration_agriclip import AgriClipVisionConfig
from .extractor_agriclip import AgriClipFeatureExtractor, AgriClipTemporalEncoder, upsample_cells


@dataclass
class AgriClipVisionOutput(ModelOutput):
    """Output of the vision tower.

    Args:
        last_hidden_state: Features of the N = ceil(H/p) ceil(W/p) cells, row by row, 0 where masked: (B, N, D).
        pooler_output: One vector an image: (B, D).
        cell_mask: 1 where a cell has a valid pixel at any date: (B, N).
        image_valid: 1 where the image has a valid cell at all: (B,).
        scale_weights: Weight of each scale in each cell, finest first: (B, N, S).
        scale_states: Features of each scale on the finest grid: (B, N, S, D).
        scale_mask: 1 where a scale is valid in a cell: (B, N, S).
        hidden_states: Finest scale, before the first stage and after each: (B, h_i, w_i, D_i).
        channel_means: Mean of each channel's valid pixels over all dates, 0 where there are none: (B, C).
        channel_valid: 1 where a channel has a valid pixel: (B, C).
        channels: Their descriptions: (B, C, 4).
    """

    # All but the hidden states are always given; the defaults are what ModelOutput asks for.
    last_hidden_state: Tensor = None  # type: ignore[assignment]
    pooler_output: Tensor = None  # type: ignore[assignment]
    cell_mask: Tensor = None  # type: ignore[assignment]
    image_valid: Tensor = None  # type: ignore[assignment]
    scale_weights: Tensor = None  # type: ignore[assignment]
    scale_states: Tensor = None  # type: ignore[assignment]
    scale_mask: Tensor = None  # type: ignore[assignment]
    hidden_states: tuple[Tensor, ...] | None = None
    channel_means: Tensor | None = None
    channel_valid: Tensor | None = None
    channels: Tensor | None = None


def mean_of_channels(pixels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each channel over the valid pixels of all dates, 0 where there are none, and where there are any.

    Args:
        pixels: (B, T, C, H, W).
        valid: 1 = valid, same shape.

    Returns:
        Means (B, C) and bool (B, C).
    """
    counts = valid.sum(dim=(1, 3, 4))
    return (pixels * valid).sum(dim=(1, 3, 4)) / counts.clamp(min=1), counts > 0


class AgriClipAdaptiveConsistency(nn.Module):
    """Scales to one feature a cell (F8, F9): masked softmax over the scales present in the cell."""

    def __init__(self, config: AgriClipVisionConfig) -> None:
        super().__init__()
        # Narrow on purpose: the whole module must not cost what a second scale costs.
        self.hidden = nn.Linear(config.hidden_size, 16)
        self.attends = config.scale_attention
        # All scales weigh the same at the start.
        self.score = with_init_std(nn.Linear(16, 1, bias=False), 0.0)

    def forward(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fuse scales (B, h_s, w_s, D), finest first, with masks (B, h_s, w_s).

        Returns:
            Fused cells (B, N, D), weights (B, N, S), the aligned scales (B, N, S, D) and their mask (B, N, S) bool.
        """
        height, width = features[0].shape[1:3]
        aligned, scores, valid = [], [], []
        for level, (feature, mask) in enumerate(zip(features, masks, strict=True)):
            both = torch.cat([feature, self.score(torch.tanh(self.hidden(feature)))], dim=-1)
            both, grown = upsample_cells(both, mask, 2**level, height, width)
            both, grown = both.flatten(1, 2), (grown & masks[0]).flatten(1, 2)
            aligned.append(both[..., :-1])
            scores.append(both[..., -1])
            valid.append(grown)
        states, scale_mask = torch.stack(aligned, dim=2), torch.stack(valid, dim=2)
        keep = scale_mask.to(states.dtype)
        logits = torch.stack(scores, dim=2).float() * self.attends
        logits = logits.masked_fill(~scale_mask, -1e9)
        weights = logits.softmax(dim=-1).to(states.dtype) * keep
        states = states * keep.unsqueeze(-1)
        return (weights.unsqueeze(-1) * states).sum(dim=2), weights, states, scale_mask


class AgriClipVisionModel(AgriClipPreTrainedModel):
    """Imagery of any sensor, any number of channels and dates, to cell features and one vector an image."""

    config: AgriClipVisionConfig  # type: ignore[assignment]
    base_model_prefix = "vision_model"
    input_modalities = ["image"]

    def __init__(self, config: AgriClipVisionConfig) -> None:
        super().__init__(config)
        # A backbone embeds, extracts and normalises by itself; what it shares are pyramid, dates and consistency.
        self.has_backbone = config.transformer_config is not None
        if self.has_backbone:
            self.embeddings: Any = AgriClipBackbone(config)
            self.temporal: Any = AgriClipDateMean(config, config.hidden_size, config.num_attention_heads)
        else:
            size, heads = config.stage_sizes[0], config.stage_heads[0]
            self.embeddings = AgriClipChannelEmbedding(config, size, config.patch_size)
            self.temporal = AgriClipTemporalEncoder(config, size, heads)
            self.extractor = AgriClipFeatureExtractor(config)
        self.consistency = AgriClipAdaptiveConsistency(config)
        if self.has_backbone:
            self.pooling: Any = AgriClipScalePooling(config.hidden_size)
        else:
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.pooling = AgriClipPooling(config, config.hidden_size, 4)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The channel embedding."""
        return self.embeddings

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        channels: Tensor | None = None,
        gsd: Tensor | None = None,
        dates: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> AgriClipVisionOutput:
        """Encode a batch of images.

        Args:
            pixel_values: Standardised pixels (B, T, C, H, W), or (B, C, H, W) for one date.
            pixel_mask: 1 = valid, same shape or broadcastable to it; all valid if None. NaN is never valid.
            channels: (B, C, 4), or (C, 4) for all: kind id, centre wavelength in nm, month, variable id.
            gsd: Ground sample distance in metres (B,); the configuration's default if None.
            dates: Days from 1 January of the reference year (B, T); 0 = undated.
            output_hidden_states: Return the finest scale's states before the first stage and after each.
            **kwargs: Passed on to attention.

        Raises:
            ValueError: `pixel_values` or `channels` is missing, or their number of channels differs.
        """
        pixels, valid, channels, gsd, dates = self.prepare(pixel_values, pixel_mask, channels, gsd, dates)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        generated = self.embeddings.generate(channels)
        means, present = mean_of_channels(pixels, valid)
        features, masks, vectors, hidden_states = [], [], [], None
        for level in range(self.config.num_scales):
            if level:
                pixels, valid = halve(pixels, valid)
            cells, cell_mask = self.embeddings(pixels, valid, generated), self.embeddings.cell_mask(valid)
            cells, cell_mask = self.temporal(cells, cell_mask, dates, **kwargs)
            if self.has_backbone:
                feature, states, vector = self.embeddings.extract(cells, cell_mask, **kwargs)
                vectors.append(vector)
            else:
                metres = gsd * (self.config.patch_size * 2**level)
                feature, states = self.extractor(cells, cell_mask, metres, **kwargs)
            hidden_states = states if level == 0 else hidden_states
            features.append(feature)
            masks.append(cell_mask)
        fused, weights, scale_states, scale_mask = self.consistency(features, masks)
        cell_mask = masks[0].flatten(1)
        if self.has_backbone:
            pooled = self.pooling(torch.stack(vectors, dim=1), weights, cell_mask)
        else:
            fused = self.norm(fused) * cell_mask.unsqueeze(-1)
            pooled = self.pooling(fused, cell_mask)
        return AgriClipVisionOutput(
            last_hidden_state=fused,
            pooler_output=pooled,
            cell_mask=cell_mask.long(),
            image_valid=cell_mask.any(dim=1).long(),
            scale_weights=weights,
            scale_states=scale_states,
            scale_mask=scale_mask.long(),
            hidden_states=hidden_states if output_hidden_states else None,
            channel_means=means,
            channel_valid=present.long(),
            channels=channels,
        )

    def prepare(
        self,
        pixel_values: Tensor | None,
        pixel_mask: Tensor | None,
        channels: Tensor | None,
        gsd: Tensor | None,
        dates: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Bring the inputs to (B, T, C, H, W), (B, C, 4), (B,) and (B, T), with zeros where nothing is valid."""
        if pixel_values is None or channels is None:
            missing = "pixel_values" if pixel_values is None else "channels"
            raise ValueError(f"`{missing}` is required: AgriClipProcessor makes it from an image and its band names.")
        pixels = prepare_pixels(pixel_values, self.embeddings.to_weights.weight.dtype)
        batch, num_dates, num_channels = pixels.shape[:3]
        if channels.shape[-2] != num_channels:
            raise ValueError(
                f"`channels` describes {channels.shape[-2]} channels, but `pixel_values` has {num_channels}: "
                "give one description a channel."
            )
        valid = prepare_mask(pixel_mask, pixels)
        pixels = torch.where(valid, pixels, 0.0)
        channels = channels.long().expand(batch, -1, -1)
        gsd = torch.tensor(self.config.default_gsd, device=pixels.device) if gsd is None else gsd
        gsd = torch.where(gsd > 0, gsd, self.config.default_gsd).to(pixels.device).expand(batch)
        if dates is None:
            dates = torch.zeros(batch, num_dates, dtype=torch.long, device=pixels.device)
        return pixels, valid.to(pixels.dtype), channels, gsd, dates.view(-1, num_dates).expand(batch, -1)


def prepare_pixels(pixel_values: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) or (B, T, C, H, W) to (B, T, C, H, W) of `dtype`."""
    return (pixel_values.unsqueeze(1) if pixel_values.dim() == 4 else pixel_values).to(dtype)


def prepare_mask(pixel_mask: Tensor | None, pixels: Tensor) -> Tensor:
    """Validity (B, T, C, H, W) bool of `pixels`: the mask given, less what is not finite."""
    finite = pixels.isfinite()
    if pixel_mask is None:
        return finite
    pixel_mask = pixel_mask.unsqueeze(1) if pixel_mask.dim() == 4 else pixel_mask
    return finite & pixel_mask.bool().expand_as(pixels)


def halve(pixels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Half the resolution: mean over the valid ones of two by two pixels; valid where one of the four is."""
    height, width = pixels.shape[-2:]
    pad = (0, width % 2, 0, height % 2)

    def sums(image: Tensor) -> Tensor:
        image = nn.functional.pad(image, pad)
        return image.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).sum(dim=(-3, -1))

    count = sums(valid)
    return sums(pixels * valid) / count.clamp(min=1), (count > 0).to(pixels.dtype)
