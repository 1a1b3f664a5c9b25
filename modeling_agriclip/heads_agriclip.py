"""Heads: suitability, text-queried segmentation, masked-patch decoder, masked language.

The decoder generates its pixel-side weights from channel descriptions, like the embeddings do, so it too takes any
sensor.
"""

import math
from typing import Any

import torch
import transformers.initialization as init
from torch import Tensor, nn

from .base_agriclip import AgriClipAttention, AgriClipMLP, key_bias, with_init_std
from .channels_agriclip import AgriClipChannelDescriber
from .configuration_agriclip import AgriClipConfig
from .extractor_agriclip import DATE_FEATURES, AgriClipMetricPosition, date_features
from .pixels_agriclip import AgriClipPixelDecoder


class AgriClipLogitBias(nn.Module):
    """Learned bias of a pair's logit (SigLIP), which starts where nearly all pairs count as strangers.

    A module and not a bare parameter, so that PEFT can keep it trainable.
    """

    def __init__(self, init_value: float) -> None:
        super().__init__()
        self.init_value = init_value
        self.value = nn.Parameter(torch.tensor(init_value))

    def init_weights(self, std: float) -> None:
        """Start at the configured value."""
        init.constant_(self.value, self.init_value)

    def forward(self) -> Tensor:
        """The bias itself."""
        return self.value


class AgriClipLogitScale(AgriClipLogitBias):
    """Learned logarithm of the similarity's scale, at most log 100."""

    def forward(self) -> Tensor:
        """The scale itself."""
        return self.value.clamp(max=math.log(100)).exp()


class AgriClipSuitabilityHead(nn.Module):
    """Fused state to the parameters of the likelihood: a logit or a value; or mean and log sd of a log share.

    With `additive` it is the image's part, which starts at nothing and is added to what the report alone says.
    """

    def __init__(self, config: AgriClipConfig, additive: bool = False) -> None:
        super().__init__()
        size = config.vision_config.hidden_size
        self.likelihood = config.suitability_likelihood
        self.log_threshold = math.log(config.share_threshold)
        self.norm = nn.LayerNorm(size, eps=config.vision_config.layer_norm_eps)
        self.dense = nn.Linear(size, size)
        self.activation = nn.GELU()
        self.out_proj = nn.Linear(size, 2 if self.likelihood == "share" else 1)
        if additive:
            with_init_std(self.out_proj, 0.0)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) to (..., 1 or 2)."""
        return self.out_proj(self.activation(self.dense(self.norm(states))))

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and bounded log sd of log share, from what [`forward`] returned for `share`."""
        mean, log_sd = parameters.float().unbind(-1)
        # The mean starts at the threshold, where an untrained head belongs.
        return mean + self.log_threshold, log_sd.clamp(-3, 2)

    def interpret(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Logit (or score) and probability (or value) of suitability, each (...).

        For `share` the score is (mean - log threshold) / sd, and the probability that the share exceeds the threshold
        is its normal distribution function.
        """
        if self.likelihood == "share":
            mean, log_sd = self.split(parameters)
            score = (mean - self.log_threshold) / log_sd.exp()
            return score, torch.special.ndtr(score)
        logits = parameters[..., 0].float()
        return logits, logits if self.likelihood == "regression" else logits.sigmoid()


class AgriClipSegmentationHead(nn.Module):
    """Cells and pixels to a feature a pixel, compared with prompt embeddings."""

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__()
        size = config.vision_config.pixel_size
        self.pixels = AgriClipPixelDecoder(config.vision_config)
        self.out_proj = nn.Conv2d(size, config.segmentation_dim, kernel_size=1)
        self.prompt_proj = nn.Linear(config.projection_dim, config.segmentation_dim)
        self.prompt_bias = nn.Linear(config.projection_dim, 1)
        self.scale = AgriClipLogitScale(config.logit_scale_init_value)

    def forward(
        self, cells: Tensor, pooled: Tensor, pixels: Tensor, valid: Tensor, channels: Tensor, prompts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score every pixel against every prompt.

        Args:
            cells: Cell features (B, N, D).
            pooled: The whole image (B, D).
            pixels: (B, T, C, H, W), 0 where not valid.
            valid: (B, T, C, H, W), in the dtype of `pixels`.
            channels: Descriptions (B, C, 4).
            prompts: Prompt embeddings (B, K, P).

        Returns:
            Logits (B, K, H, W) and the mask of pixels with a valid channel (B, H, W) bool.
        """
        features, keep = self.pixels(cells, pooled, pixels, valid, channels)
        return self.compare(features, keep, prompts), keep[:, 0]

    def compare(self, features: Tensor, keep: Tensor, prompts: Tensor) -> Tensor:
        """Features (B, d, H, W) under a mask (B, 1, H, W) and prompts (B, K, P) to logits (B, K, H, W).

        Cosines of projected pixels and projected prompts, worked out without projecting a pixel: with x a pixel with
        a 1 below it, W the projection with its bias, q a prompt of length 1, q Wx is (W'q) x and |Wx|^2 is x (W'W) x.
        """
        height, width = features.shape[-2:]
        # In full precision, whatever runs around it: the length is a difference of larger numbers.
        with torch.autocast(features.device.type, enabled=False):
            weight, bias = self.out_proj.weight.flatten(1), self.out_proj.bias
            assert bias is not None  # torch's own type leaves it open
            projection = torch.cat([weight, bias[:, None]], dim=1).float()
            pixels = nn.functional.pad(features.float().flatten(2), (0, 0, 0, 1), value=1.0)  # (B, d + 1, H * W)
            prompts = prompts.to(self.prompt_proj.weight.dtype)
            queries = nn.functional.normalize(self.prompt_proj(prompts).float(), dim=-1)
            squares = (projection.t() @ projection).expand(len(pixels), -1, -1)
            products = torch.bmm(torch.cat([queries @ projection, squares], dim=1), pixels)
            asked, turned = products.split([queries.shape[1], len(projection.t())], dim=1)
            length = (turned * pixels).sum(dim=1, keepdim=True)
            cosines = (asked * length.clamp(min=1e-12).rsqrt()).unflatten(2, (height, width))
            # Zero where nothing is seen, as the tower's own cells are.
            logits = cosines * keep * self.scale()
            return logits + self.prompt_bias(prompts).float().unsqueeze(-1)


class AgriClipDecoderLayer(nn.Module):
    """Transformer block of the decoder, global over cells."""

    def __init__(self, config: Any, size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.attention = AgriClipAttention(config, size, 4)
        self.norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.mlp = AgriClipMLP(size, 2 * size, config.hidden_act)

    def forward(self, hidden_states: Tensor, bias: Tensor) -> Tensor:
        """(B, N, D) under a key bias to (B, N, D)."""
        hidden_states = hidden_states + self.attention(self.norm1(hidden_states), bias=bias)[0]
        return hidden_states + self.mlp(self.norm2(hidden_states))


class AgriClipPatchDecoder(nn.Module):
    """Fused visible cells to the pixels of the hidden ones, at every date and channel."""

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__()
        vision, size = config.vision_config, config.decoder_size
        self.patch_size, self.size = vision.patch_size, size
        self.embed = nn.Linear(vision.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.position = AgriClipMetricPosition(vision, size)
        self.layers = nn.ModuleList(AgriClipDecoderLayer(vision, size) for _ in range(2))
        self.norm = nn.LayerNorm(size, eps=vision.layer_norm_eps)
        self.date_code = nn.Linear(DATE_FEATURES, size)
        self.describer = AgriClipChannelDescriber(vision)
        self.to_weights = nn.Linear(vision.channel_hidden_size, self.patch_size**2 * size)

    def init_weights(self, std: float) -> None:
        """Start the mask token like a word embedding."""
        init.normal_(self.mask_token, std=std)

    def forward(
        self,
        cells: Tensor,
        hidden: Tensor,
        present: Tensor,
        cell_metres: Tensor,
        dates: Tensor,
        channels: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Predict pixels.

        Args:
            cells: Fused cells (B, N, D).
            hidden: True where a cell is to be predicted (B, N).
            present: True where a cell exists at all, hidden or not (B, N).
            cell_metres: Edge of a cell in metres (B,).
            dates: Days (B, T).
            channels: Descriptions (B, C, 4).
            grid: Rows and columns of the N cells.

        Returns:
            (B, T, N, C, p * p).
        """
        states = torch.where(hidden.unsqueeze(-1), self.mask_token, self.embed(cells))
        states = states + self.position(cell_metres, *grid).flatten(1, 2)
        bias = key_bias(present[:, None], states.dtype)
        for layer in self.layers:
            states = layer(states, bias)
        dated = self.date_code(date_features(dates).to(states.dtype))
        states = self.norm(states)[:, None] + dated[:, :, None]  # (B, T, N, d)
        weights = self.to_weights(self.describer(channels)).unflatten(-1, (self.patch_size**2, self.size))
        return torch.einsum("btnd,bckd->btnck", states, weights)


class AgriClipLanguageHead(nn.Module):
    """Token features to the vocabulary, through the word embeddings themselves."""

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__()
        size = config.text_config.hidden_size
        self.dense = nn.Linear(size, size)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(size, eps=config.vision_config.layer_norm_eps)

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """(B, L, D) and (V, D) to logits (B, L, V)."""
        return nn.functional.linear(self.norm(self.activation(self.dense(states))), word_embeddings)
