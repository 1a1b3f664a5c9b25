"""Towers from a CLIP or SigLIP checkpoint, inside AgriCLIP's own: any bands, any dates, several scales, numbers.

The vision transformer and the text transformer are transformers' own modules with their own weight names, so at one
scale, on red, green and blue, and without numbers, they answer what the checkpoint answers. Around them: bands are
mixed into the three that the patch kernel knows, plus a few kernels more whose part starts at nothing; what is masked
is kept out of attention; each scale of the pyramid goes through the same transformer; positions are interpolated.
"""

import copy
from collections.abc import Mapping
from os import PathLike
from typing import Any, cast

import torch
import transformers.initialization as init
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.siglip.modeling_siglip import SiglipTextModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .base_agriclip import key_bias, with_init_std
from .channels_agriclip import AgriClipChannelDescriber, AgriClipChannelEmbedding
from .configuration_agriclip import AgriClipConfig, AgriClipTextConfig, AgriClipVisionConfig
from .extractor_agriclip import AgriClipTemporalEncoder
from .heads_agriclip import AgriClipLogitScale

# What a checkpoint may be, by the `model_type` of its configuration.
FAMILIES = ("clip", "siglip")
BACKBONES = ("clip_vision_model", "siglip_vision_model")
# Positions of a text that stretching leaves alone (Long-CLIP): hardly a caption was longer, so these are well trained.
KEPT_POSITIONS = 20

_REFLECTANCE = 1  # the kind of channel, as the processor codes it
_EXTRA_KERNELS = 8
# Shares of the red, green and blue kernel by wavelength in nm, linear in between: within the range of a colour its own
# kernel alone, from the near infrared on all three alike, as for a grey picture.
_GREY = (1 / 3, 1 / 3, 1 / 3)
_COLOURS = (
    (515.0, (0.0, 0.0, 1.0)),
    (520.0, (0.0, 1.0, 0.0)),
    (590.0, (0.0, 1.0, 0.0)),
    (630.0, (1.0, 0.0, 0.0)),
    (690.0, (1.0, 0.0, 0.0)),
    (840.0, _GREY),
)
_BLUE_FROM = 450.0


class AgriClipLogitScaleUncapped(AgriClipLogitScale):
    """The similarity's scale without a ceiling: SigLIP's is above 100."""

    def forward(self) -> Tensor:
        """The scale itself."""
        return self.value.exp()


class AgriClipCausalText(CLIPTextModel):
    """CLIP's text transformer, fed with embeddings."""

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(  # type: ignore[override]
        self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Token embeddings (B, L, D) and mask (B, L) to token features (B, L, D); a token sees what precedes it."""
        states = self.embeddings(inputs_embeds=inputs_embeds)
        mask = create_causal_mask(
            config=self.config, inputs_embeds=states, attention_mask=attention_mask, past_key_values=None
        )
        kwargs.pop("is_causal", None)
        states = self.encoder(inputs_embeds=states, attention_mask=mask, is_causal=True, **kwargs).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.final_layer_norm(states))


class AgriClipSiglipText(SiglipTextModel):
    """SigLIP's text transformer, fed with embeddings; its head is AgriCLIP's `text_projection`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.head: nn.Module = nn.Identity()  # type: ignore[assignment]

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(  # type: ignore[override]
        self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Token embeddings (B, L, D) and mask (B, L) to token features (B, L, D)."""
        states = self.embeddings(inputs_embeds=inputs_embeds)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=attention_mask)
        states = self.encoder(inputs_embeds=states, attention_mask=mask, **kwargs).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.final_layer_norm(states))


# Text encoders that transformers' own class does not let us feed with embeddings.
TEXT_ENCODERS: Mapping[str, type[PreTrainedModel]] = {
    "clip_text_model": AgriClipCausalText,
    "siglip_text_model": AgriClipSiglipText,
}


def pool_tokens(hidden: Tensor, mask: Tensor, input_ids: Tensor | None, config: AgriClipTextConfig) -> Tensor:
    """Token features (B, L, D), mask (B, L) and ids (B, L) to one vector each (B, D), as `config.pooling` says.

    A report without any token gives 0. Without ids the end is the last token that the mask keeps.
    """
    keep = mask.unsqueeze(-1).to(hidden.dtype)
    if config.pooling == "mean":
        return (hidden * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
    if config.pooling in ("first", "last"):
        pooled = hidden[:, 0 if config.pooling == "first" else -1]
    else:
        end = getattr(config.encoder_config, "eos_token_id", None)
        if input_ids is None:
            place = (mask.int() * torch.arange(mask.shape[1], device=mask.device, dtype=torch.int)).argmax(dim=-1)
        elif end == 2:
            # Configurations of old have a wrong end token; the end is then the highest id, `[NUM]` aside.
            place = input_ids.int().masked_fill(input_ids == config.number_token_id, -1).argmax(dim=-1)
        else:
            place = torch.eq(input_ids, cast(int, end)).int().argmax(dim=-1)
        pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), place]
    return pooled * keep.any(dim=1)


def colour_mixture(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the red, green and blue kernel in each channel's, from its description.

    Args:
        channels: Kind id, wavelength in nm, month, variable id (B, C, 4).

    Returns:
        Shares (B, C, 3), and whether the channel is a plain red, green or blue (B, C) bool.
    """
    kind, wavelength = channels[..., 0], channels[..., 1].float()
    knots = torch.tensor([knot for knot, _ in _COLOURS], device=channels.device)
    shares = torch.tensor([share for _, share in _COLOURS], device=channels.device)
    right = torch.searchsorted(knots, wavelength.contiguous()).clamp(1, len(_COLOURS) - 1)
    left = right - 1
    step = ((wavelength - knots[left]) / (knots[right] - knots[left])).clamp(0, 1).unsqueeze(-1)
    mixed = shares[left] + step * (shares[right] - shares[left])
    mixed = torch.where((wavelength > 0).unsqueeze(-1), mixed, torch.tensor(_GREY, device=channels.device))
    plain = (kind == _REFLECTANCE) & (mixed == 1).any(dim=-1) & (wavelength >= _BLUE_FROM)
    return mixed, plain


class AgriClipBackbone(nn.Module):
    """The vision transformer of CLIP or SigLIP, from pixels of any channels to cells.

    Stands in for the channel embedding and for the extractor. A patch kernel is generated for every channel: shares of
    the checkpoint's three, and of a few more, by its description. Red, green and blue have the checkpoint's, always.
    """

    def __init__(self, config: AgriClipVisionConfig) -> None:
        super().__init__()
        backbone = cast(PreTrainedConfig, config.transformer_config)
        backbone_class: Any = MODEL_MAPPING[type(backbone)]
        self.model = backbone_class._from_config(backbone)
        self.has_class_token = hasattr(self.model.embeddings, "class_embedding")
        self.patch_size, size = config.patch_size, config.hidden_size
        self.describer = AgriClipChannelDescriber(config)
        self.extra_embedding = nn.Conv2d(_EXTRA_KERNELS, size, self.patch_size, self.patch_size, bias=False)
        self.to_weights = with_init_std(nn.Linear(config.channel_hidden_size, _EXTRA_KERNELS), 0.0)
        self.to_token = with_init_std(nn.Linear(config.channel_hidden_size, size), 0.0)

    def generate(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptions (B, C, 4) to shares of the kernels (B, C, 3 + extra) and channel tokens (B, C, D)."""
        hidden = self.describer(channels)
        mixture, plain = colour_mixture(channels)
        free = (~plain).unsqueeze(-1).to(hidden.dtype)
        shares = torch.cat([mixture.to(hidden.dtype), self.to_weights(hidden) * free], dim=-1)
        return shares, self.to_token(hidden) * free

    def forward(self, pixels: Tensor, valid: Tensor, generated: tuple[Tensor, Tensor]) -> Tensor:
        """Embed the cells of a dated image.

        Args:
            pixels: (B, T, C, H, W), 0 where not valid.
            valid: (B, T, C, H, W), 1 where a pixel counts, in the dtype of `pixels`.
            generated: What [`generate`] returned.

        Returns:
            Cells (B, T, h, w, D) with h = ceil(H / p), 0 where no pixel is valid.
        """
        shares, tokens = generated
        (height, width), p = pixels.shape[-2:], self.patch_size
        pad = (0, -width % p, 0, -height % p)
        # To mix pixels and then embed the mixture is to embed each channel with the mixed kernel.
        mixed = torch.einsum("btchw,bck->btkhw", nn.functional.pad(pixels, pad), shares)
        original = self.model.embeddings.patch_embedding
        kernels = torch.cat([original.weight, self.extra_embedding.weight], dim=1)
        cells = nn.functional.conv2d(mixed.flatten(0, 1), kernels, stride=p)
        cells = cells.permute(0, 2, 3, 1).unflatten(0, pixels.shape[:2])  # (B, T, h, w, D)
        coverage = self.patches(valid).mean(dim=-1)  # (B, T, h, w, C)
        present = coverage.sum(dim=-1, keepdim=True)
        # Up to three channels weigh as the checkpoint's own; more of them share out what three would weigh.
        cells = cells * (3 / present.clamp(min=3)).sqrt()
        cells = cells + torch.einsum("bthwc,bcd->bthwd", coverage, tokens) / present.clamp(min=1e-6)
        if original.bias is not None:
            cells = cells + original.bias
        return cells * (present > 0)

    def cell_mask(self, valid: Tensor) -> Tensor:
        """Validity of pixels (B, T, C, H, W) to that of cells, (B, T, h, w) bool: one valid pixel is enough."""
        return self.patches(valid).flatten(4).any(dim=-1)

    def patches(self, image: Tensor) -> Tensor:
        """(B, T, C, H, W) to (B, T, h, w, C, p * p); what the last row and column lack is absent, that is 0."""
        return AgriClipChannelEmbedding.patches(cast(Any, self), image)

    def extract(self, cells: Tensor, cell_mask: Tensor, **kwargs: Any) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Run one resolution through the transformer.

        Args:
            cells: Embedded cells (B, h, w, D).
            cell_mask: (B, h, w) bool.
            **kwargs: Passed on to attention.

        Returns:
            Features (B, h, w, D), 0 where masked; the states (B, h, w, D) before the first block and after each; and
            the checkpoint's pooled vector (B, D).
        """
        batch, height, width, _ = cells.shape
        states, valid = cells.flatten(1, 2), cell_mask.flatten(1)
        embeddings, first = self.model.embeddings, int(self.has_class_token)
        if self.has_class_token:
            states = torch.cat([embeddings.class_embedding.expand(batch, 1, -1), states], dim=1)
            valid = nn.functional.pad(valid, (1, 0), value=True)
        edges = (height * self.patch_size, width * self.patch_size)
        states = states + embeddings.interpolate_pos_encoding(states, *edges).to(states.dtype)
        if self.has_class_token:
            states = self.model.pre_layrnorm(states)
        bias = key_bias(valid[:, None], states.dtype)
        collected = [states]
        for layer in self.model.encoder.layers:
            states = layer(states, bias, **kwargs)
            collected.append(states)
        states = self.model.post_layernorm(states)
        vector = states[:, 0] if self.has_class_token else self._attend(states, bias[:, 0, 0])

        def grid(tokens: Tensor) -> Tensor:
            return tokens[:, first:].unflatten(1, (height, width)) * cell_mask.unsqueeze(-1)

        return grid(states), tuple(grid(tokens) for tokens in collected), vector

    def _attend(self, states: Tensor, bias: Tensor) -> Tensor:
        """SigLIP's attention pooling of (B, N, D) under a key bias (B, N), which its own forward does not take."""
        head = self.model.head
        probe = head.probe.repeat(states.shape[0], 1, 1)
        pooled = head.attention(probe, states, states, key_padding_mask=bias, need_weights=False)[0]
        return (pooled + head.mlp(head.layernorm(pooled)))[:, 0]


class AgriClipScalePooling(nn.Module):
    """One pooled vector a scale to one an image, by the mean weight of each scale; `empty` where nothing is valid."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(1, size))

    def init_weights(self, std: float) -> None:
        """Start the vector small and random."""
        init.normal_(self.empty, std=std)

    def forward(self, vectors: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """Vectors (B, S, D), the cells' weights (B, N, S) and their validity (B, N) to (B, D)."""
        share = weights.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1).to(weights.dtype)
        pooled = (share.unsqueeze(-1) * vectors).sum(dim=1)
        return torch.where(valid.any(dim=1, keepdim=True), pooled, self.empty)


class AgriClipDateMean(AgriClipTemporalEncoder):
    """The temporal encoder, started as the plain mean over the valid dates of a cell."""

    def __init__(self, config: AgriClipVisionConfig, size: int, num_heads: int) -> None:
        super().__init__(config, size, num_heads)
        with_init_std(self.score, 0.0)
        with_init_std(self.update, 0.0)


def stretch_positions(positions: Tensor, length: int, keep: int = KEPT_POSITIONS) -> Tensor:
    """Positions (L, D) to (length, D): the first `keep` as they are, the rest interpolated (Long-CLIP).

    From 77 to 248 each of the rest is stretched four times, the last ones carried on in a straight line.

    Raises:
        ValueError: `length` is less than L, or there is nothing to interpolate.
    """
    count = positions.shape[0]
    if length == count:
        return positions
    if length < count or count < keep + 2:
        raise ValueError(
            f"`text_positions` ({length}) cannot be made of the checkpoint's {count} positions: it takes more than "
            f"those, and at least {keep + 2} of them; give None to keep them as they are."
        )
    place = keep + torch.arange(length - keep, dtype=torch.float64) * (count - keep) / (length - keep)
    left = place.floor().long().clamp(max=count - 2)
    step = (place - left).unsqueeze(-1).to(positions)
    return torch.cat([positions[:keep], positions[left] + step * (positions[left + 1] - positions[left])])


def load_clip(source: str | PathLike[str] | PreTrainedModel) -> PreTrainedModel:
    """The CLIP or SigLIP model itself, or that of a folder or of a name on the Hub.

    Raises:
        OSError: There is no checkpoint at `source`.
        ValueError: It is of another family, or AgriCLIP cannot take it.
    """
    accepted = "`from_clip` takes a CLIPModel or SiglipModel with both towers"
    model: Any = source
    if not isinstance(source, PreTrainedModel):
        try:
            config = AutoConfig.from_pretrained(source)
        except OSError as error:
            raise OSError(
                f"No checkpoint was found at '{source}': give a local folder, a name on the Hub (when online), or a "
                "loaded CLIPModel or SiglipModel."
            ) from error
        except ValueError as error:
            raise ValueError(f"'{source}' is no known checkpoint of transformers; {accepted}.") from error
        if config.model_type not in FAMILIES:
            raise ValueError(f"'{source}' is of model type '{config.model_type}'; {accepted}.")
        model_class: Any = MODEL_MAPPING[type(config)]
        try:
            model, report = model_class.from_pretrained(source, output_loading_info=True)
        except OSError as error:
            raise OSError(f"'{source}' has a configuration but no weights that can be read; {accepted}.") from error
        if report["missing_keys"]:
            lacking = sorted(report["missing_keys"])
            raise ValueError(f"'{source}' lacks {len(lacking)} weights, such as '{lacking[0]}'; {accepted}.")
    config = model.config
    if config.model_type not in FAMILIES or not hasattr(model, "logit_scale"):
        raise ValueError(f"The model given is a {type(model).__name__}; {accepted}.")
    vision = config.vision_config
    if vision.num_channels != 3 or not isinstance(vision.patch_size, int) or not isinstance(vision.image_size, int):
        raise ValueError(
            f"The vision tower reads {vision.num_channels} channels of {vision.image_size} pixels in patches of "
            f"{vision.patch_size}; `from_clip` takes 3 channels, square images and square patches."
        )
    if config.model_type == "siglip" and not vision.vision_use_head:
        raise ValueError("The SigLIP vision tower has no pooling head; `from_clip` takes one with `vision_use_head`.")
    return cast(PreTrainedModel, model)


def _plain_copy(config: Any) -> Any:
    """A copy of a tower's configuration that says nothing of how it was loaded."""
    config = copy.deepcopy(config)
    config.dtype, config.architectures, config._attn_implementation = None, None, None
    return config


def config_from_clip(
    clip: Any, num_scales: int, text_positions: int | None, number_token_id: int | None, **overrides: Any
) -> AgriClipConfig:
    """Configuration of AgriCLIP around the towers of a loaded CLIP or SigLIP model."""
    siglip = clip.config.model_type == "siglip"
    vision, text = _plain_copy(clip.config.vision_config), _plain_copy(clip.config.text_config)
    number_token_id = text.vocab_size if number_token_id is None else number_token_id
    text.vocab_size = max(text.vocab_size, number_token_id + 1)
    text.max_position_embeddings = text_positions or text.max_position_embeddings
    fields: dict[str, Any] = {
        "vision_config": {"transformer_config": vision, "num_scales": num_scales},
        "text_config": {
            "encoder_config": text,
            "number_token_id": number_token_id,
            "pooling": "last" if siglip else "eos",
        },
        "projection_dim": vision.hidden_size if siglip else clip.config.projection_dim,
        "logit_scale_init_value": float(clip.logit_scale),
        "logit_scale_capped": False,
    }
    if siglip:
        fields |= {
            "text_projection_bias": True,
            "alignment_loss": "sigmoid",
            "logit_bias_init_value": float(clip.logit_bias),
        }
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(fields.get(key), dict)
        fields[key] = fields[key] | value if nested else value
    return AgriClipConfig(**fields)


@torch.no_grad()
def start_from_clip(
    model_class: Any,
    source: str | PathLike[str] | PreTrainedModel,
    num_scales: int = 3,
    text_positions: int | None = 248,
    number_token_id: int | None = None,
    **overrides: Any,
) -> Any:
    """An [`AgriClipModel`] whose towers are those of a CLIP or SigLIP checkpoint; its `from_clip` says how."""
    clip: Any = load_clip(source)
    config = config_from_clip(clip, num_scales, text_positions, number_token_id, **overrides)
    model = model_class(config)
    model.vision_model.embeddings.model.load_state_dict(clip.vision_model.state_dict())

    text = {key: value for key, value in clip.text_model.state_dict().items() if not key.startswith("head.")}
    place, words = "embeddings.position_embedding.weight", "embeddings.token_embedding.weight"
    text[place] = stretch_positions(text[place], config.text_config.encoder_config.max_position_embeddings)
    # A new word, `[NUM]`, starts as the mean of all; what its value adds starts at the spread of a word.
    new = config.text_config.vocab_size - text[words].shape[0]
    text[words] = torch.cat([text[words], text[words].mean(dim=0, keepdim=True).expand(new, -1)])
    model.text_model.encoder.load_state_dict(text)
    model.text_model.number_embedding.start(float(text[words].float().std()))

    if config.text_projection_bias:
        # SigLIP's pooled image is its embedding already.
        init.eye_(model.visual_projection.weight)
        model.text_projection.load_state_dict(clip.text_model.head.state_dict())
        model.logit_bias.value.fill_(float(clip.logit_bias))
    else:
        model.visual_projection.load_state_dict(clip.visual_projection.state_dict())
        model.text_projection.load_state_dict(clip.text_projection.state_dict())
    model.logit_scale.value.fill_(float(clip.logit_scale))
    return model.eval()
