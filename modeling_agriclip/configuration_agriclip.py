"""Configurations of AgriCLIP: vision tower, report encoder, fuser, and the whole model.

One dial, `AgriClipConfig.from_size("tiny" | "small" | "base")`, sets every width and depth; any field can still be
overridden. The report encoder wraps the configuration of any Hugging Face text encoder (BERT by default), so a
pretrained sentence encoder takes its place without a change of code.
"""

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class AgriClipVisionConfig(PreTrainedConfig):
    r"""Configuration of the multi-scale, any-sensor vision tower.

    Args:
        hidden_size: Width D of the cell features that the tower returns.
        stage_sizes: Channel width of each stage; a stage after the first halves the grid.
        stage_depths: Transformer blocks in each stage. All stages but the last attend in windows, the last globally.
        stage_heads: Attention heads in each stage.
        patch_size: Edge p of a cell, in pixels.
        num_scales: Resolutions of the pyramid: 1, 1/2, 1/4, ... of the input.
        window_size: Edge of an attention window, in cells.
        varied_size_windows: Let every head predict size and offset of its windows (F5); plain windows if False.
        scale_attention: Let every cell weigh its scales (F8); a plain mean of them if False.
        temporal_layers: Transformer blocks over the dates of a cell.
        channel_hidden_size: Width of the network that turns a channel description into patch weights.
        pixel_size: Width of the per-pixel features that the segmentation head adds to the cells.
        pixel_levels: How often the pixels' own path halves the resolution; it meets the cells at the last.
        num_channel_kinds: Number of channel kinds that the processor knows.
        num_channel_variables: Number of buckets for named variables (`vv`, `ndvi`, `woody_cover`, ...).
        default_gsd: Ground sample distance in metres that is assumed when none is given.
        position_periods: Shortest and longest period of the position code, in metres.
        transformer_config: Configuration of a CLIP or SigLIP vision transformer that takes the place of the stages;
            width, depth and patch size are then its own.
    """

    model_type = "agriclip_vision_model"
    base_config_key = "vision_config"
    sub_configs_defaults = {
        "transformer_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model", optional=True)
    }

    if TYPE_CHECKING:
        transformer_config: PreTrainedConfig | None
    else:
        transformer_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    stage_sizes: list[int] | tuple[int, ...] = (96, 192, 320)
    stage_depths: list[int] | tuple[int, ...] = (2, 4, 2)
    stage_heads: list[int] | tuple[int, ...] = (3, 6, 10)
    patch_size: int = 4
    num_scales: int = 3
    window_size: int = 8
    varied_size_windows: bool = True
    scale_attention: bool = True
    temporal_layers: int = 1
    channel_hidden_size: int = 128
    pixel_size: int = 32
    pixel_levels: int = 2
    num_channel_kinds: int = 16
    num_channel_variables: int = 256
    mlp_ratio: int | float = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: int | float = 0.0
    attention_probs_dropout_prob: int | float = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    default_gsd: int | float = 10.0
    position_periods: list[int | float] | tuple[int | float, ...] = (2.0, 2e7)

    def __post_init__(self, **kwargs: Any) -> None:
        """Derive the two figures that the rest of transformers reads."""
        self.num_hidden_layers = sum(self.stage_depths)
        self.num_attention_heads = self.stage_heads[-1]
        super().__post_init__(**kwargs)
        backbone: Any = self.transformer_config
        if backbone is not None:
            self.hidden_size, self.patch_size = backbone.hidden_size, backbone.patch_size
            self.num_hidden_layers, self.num_attention_heads = backbone.num_hidden_layers, backbone.num_attention_heads

    def validate_architecture(self) -> None:
        """Refuse widths that the heads do not divide and lists of different lengths."""
        if not len(self.stage_sizes) == len(self.stage_depths) == len(self.stage_heads):
            raise ValueError(
                "`stage_sizes`, `stage_depths` and `stage_heads` must have one entry a stage, "
                f"got {len(self.stage_sizes)}, {len(self.stage_depths)} and {len(self.stage_heads)}."
            )
        for size, heads in zip(self.stage_sizes, self.stage_heads, strict=True):
            if size % heads:
                raise ValueError(f"The stage size ({size}) is not a multiple of its number of heads ({heads}).")
        if self.hidden_size % 4:
            raise ValueError(f"`hidden_size` ({self.hidden_size}) must be a multiple of 4.")
        if self.num_scales < 1 or self.patch_size < 1 or self.window_size < 1:
            raise ValueError("`num_scales`, `patch_size` and `window_size` must be at least 1.")


@strict
class AgriClipTextConfig(PreTrainedConfig):
    r"""Configuration of the report encoder: a text encoder plus the number embedding.

    Args:
        encoder_config: Configuration of any Hugging Face text encoder that accepts `inputs_embeds`; BERT by default.
        number_token_id: Id of the `[NUM]` token, at which a value is embedded.
        number_periods: Shortest and longest period of the sine and cosine features of a value.
        num_number_periods: How many periods, spaced evenly in the logarithm.
        embedding_init_std: Spread at which words, positions and numbers start, for an encoder that is trained from
            nothing on little data; the encoder's own if None.
        pooling: How tokens become one vector: their `mean`, the `first`, the end-of-text token (`eos`, as in CLIP) or
            the `last` (as in SigLIP).
    """

    model_type = "agriclip_text_model"
    base_config_key = "text_config"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(
            AutoConfig,
            model_type="bert",
            init_kwargs={
                "vocab_size": 8192,
                "hidden_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 6,
                "intermediate_size": 1536,
                "max_position_embeddings": 512,
            },
        )
    }

    if TYPE_CHECKING:
        encoder_config: PreTrainedConfig  # what the field holds once built
    else:
        encoder_config: dict | PreTrainedConfig | None = None
    number_token_id: int = 5
    number_periods: list[int | float] | tuple[int | float, ...] = (0.1, 1e5)
    num_number_periods: int = 13
    embedding_init_std: int | float | None = None
    pooling: str = "mean"
    initializer_range: float = 0.02

    def validate_architecture(self) -> None:
        """Refuse a pooling that does not exist."""
        if self.pooling not in ("mean", "first", "eos", "last"):
            raise ValueError(f"`pooling` must be one of mean, first, eos, last, got {self.pooling}.")

    # The sizes live in the encoder's own configuration; here they are only passed through.
    @property
    def vocab_size(self) -> int:
        """Number of tokens, from the wrapped encoder."""
        return self.encoder_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.encoder_config.vocab_size = value

    @property
    def hidden_size(self) -> int:
        """Width of the report's token features, from the wrapped encoder."""
        return self.encoder_config.hidden_size

    @hidden_size.setter
    def hidden_size(self, value: int) -> None:
        self.encoder_config.hidden_size = value

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers, from the wrapped encoder."""
        return self.encoder_config.num_hidden_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        self.encoder_config.num_hidden_layers = value

    @property
    def num_attention_heads(self) -> int:
        """Number of attention heads, from the wrapped encoder."""
        return self.encoder_config.num_attention_heads

    @num_attention_heads.setter
    def num_attention_heads(self, value: int) -> None:
        self.encoder_config.num_attention_heads = value


@strict
class AgriClipFuserConfig(PreTrainedConfig):
    r"""Configuration of the cross-modality fusion (F11-F15).

    Args:
        hidden_size: Width of the cells; the vision tower's `hidden_size`.
        report_size: Width of the report's tokens; the report encoder's `hidden_size`.
        num_hidden_layers: Rounds in which the cells ask the report.
        gate_init_value: Start of the gate on what the report answers.
        use_null_token: Let a cell decline to listen.
        use_film: Let the pooled report shift and scale what was fused.
    """

    model_type = "agriclip_fuser"
    base_config_key = "fuser_config"

    hidden_size: int = 256
    report_size: int = 384
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_probs_dropout_prob: int | float = 0.0
    gate_init_value: float = 0.1
    use_null_token: bool = True
    use_film: bool = True
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02


# Every class that a saved folder can be loaded as: all stand in one file, whichever of them was saved.
AUTO_MAP: dict[str, str] = {
    "AutoConfig": "configuration_agriclip.AgriClipConfig",
    "AutoModel": "modeling_agriclip.AgriClipModel",
    "AutoModelForImageClassification": "modeling_agriclip.AgriClipForImageClassification",
    "AutoModelForPreTraining": "modeling_agriclip.AgriClipForPreTraining",
    "AutoModelForSemanticSegmentation": "modeling_agriclip.AgriClipForSemanticSegmentation",
    "AutoModelForSequenceClassification": "modeling_agriclip.AgriClipForSuitability",
    "AutoModelForZeroShotImageClassification": "modeling_agriclip.AgriClipModel",
}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision_config": {
            "hidden_size": 96,
            "stage_sizes": (48, 96),
            "stage_depths": (1, 2),
            "stage_heads": (3, 6),
            "window_size": 4,
            "channel_hidden_size": 48,
            "pixel_size": 16,
            # 0.02 suits a width of 768; a narrow network that starts there hardly hears its own input.
            "initializer_range": 0.06,
        },
        "text_config": {
            "initializer_range": 0.06,
            "embedding_init_std": 1.0,
            "encoder_config": {
                "initializer_range": 0.06,
                "model_type": "bert",
                "vocab_size": 8192,
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 128,
                "max_position_embeddings": 512,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
        },
        "fuser_config": {
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "gate_init_value": 1.0,
            "initializer_range": 0.06,
        },
        "projection_dim": 96,
        "initializer_range": 0.06,
    },
    "small": {},
    "base": {
        "vision_config": {
            "hidden_size": 384,
            "stage_sizes": (192, 384, 576),
            "stage_depths": (2, 6, 4),
            "stage_heads": (6, 12, 9),
            "channel_hidden_size": 128,
            "pixel_size": 48,
        },
        "text_config": {
            "encoder_config": {
                "model_type": "bert",
                "vocab_size": 16384,
                "hidden_size": 384,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 1536,
                "max_position_embeddings": 512,
            }
        },
        "fuser_config": {"num_hidden_layers": 3, "num_attention_heads": 12},
        "projection_dim": 512,
    },
}


@strict
class AgriClipConfig(PreTrainedConfig):
    r"""Configuration of AgriCLIP as a whole.

    Args:
        vision_config: [`AgriClipVisionConfig`] or its fields.
        text_config: [`AgriClipTextConfig`] or its fields.
        fuser_config: [`AgriClipFuserConfig`] or its fields; the two widths follow from the towers.
        projection_dim: Width of the shared image-text space.
        segmentation_dim: Width of the space in which pixels meet prompts.
        logit_scale_init_value: Start of the logarithm of the similarity's scale; log(1 / 0.07).
        logit_scale_capped: Hold that scale at 100 or less.
        text_projection_bias: Give the report's projection a bias, as SigLIP's has.
        alignment_loss: `softmax` (InfoNCE) or `sigmoid` (SigLIP: every pair by itself, with a learned bias).
        alignment_key_width: Reports whose keys differ by this count as much the same; in the keys' own unit.
        logit_bias_init_value: Start of the bias, for `sigmoid`.
        suitability_likelihood: What the suitability head is fitted to: `binary` (Bernoulli, or binomial when weights
            are counts), `regression` (squared error), `share` (censored log-normal share of land) or `presence_only`
            (found or unlabelled, at the non-negative risk).
        presence_prior: Share of all places that are suitable, for `presence_only`.
        share_floor: Shares at or below this count as censored, for `share`.
        share_threshold: A place is suitable where its share exceeds this, for `share`.
        use_pretraining_heads: Add to the suitability model what masked image modelling and alignment need, so that
            both go on while it is fitted.
        use_detection_head: Add the head that asks the image alone whether a field was double-cropped.
        use_masked_language: Add the masked-language head to the pre-training model.
        mask_ratio: Share of valid patches that masked image modelling hides.
        decoder_size: Width of the masked-patch decoder.
        reconstruction_weight: Weight of masked image modelling (F18).
        alignment_weight: Weight of the image-text contrast.
        consistency_weight: Weight of scale consistency (F7).
        diversity_weight: Weight of inter-scale diversity (F10).
        report_only_weight: Weight of the prediction made from the report alone, beside the one with the image.
        image_effect_weight: Weight of the squared image effect, so that the image adds only what it is worth.
        detection_weight: Weight of the detection loss.
        masked_language_weight: Weight of masked language modelling.
        adversarial_weight: Weight of the prediction on attacked inputs (F20); the attack is the trainer's.
        gp_places: Places that the suitability model's Gaussian process remembers; 0 = it has none. For `share`.
        gp_numbers: Numbers of the report that it compares.
        gp_channels: Channels of the image whose means it compares.
        gp_tokens: Tokens of the report that it was fitted with.
    """

    model_type = "agriclip"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": AgriClipVisionConfig,
        "text_config": AgriClipTextConfig,
        "fuser_config": AgriClipFuserConfig,
    }
    # Trainer.predict must not gather these: they differ in shape from batch to batch, or are large.
    keys_to_ignore_at_inference = [
        "loss_dict",
        "logits_per_image",
        "logits_per_text",
        "vision_model_output",
        "text_model_output",
        "fused_state",
        "cell_logits",
        "cell_probabilities",
        "cell_mask",
        "patch_mask",
        "reconstruction",
    ]

    if TYPE_CHECKING:  # what the fields hold once built
        vision_config: AgriClipVisionConfig
        text_config: AgriClipTextConfig
        fuser_config: AgriClipFuserConfig
    else:
        vision_config: dict | AgriClipVisionConfig | None = None
        text_config: dict | AgriClipTextConfig | None = None
        fuser_config: dict | AgriClipFuserConfig | None = None
    projection_dim: int = 256
    segmentation_dim: int = 64
    logit_scale_init_value: float = 2.6592
    logit_scale_capped: bool = True
    text_projection_bias: bool = False
    alignment_loss: str = "softmax"
    alignment_key_width: int | float = 0.1
    logit_bias_init_value: int | float = -10.0
    suitability_likelihood: str = "binary"
    share_floor: float = 0.001
    share_threshold: float = 0.02
    presence_prior: float = 0.3
    use_pretraining_heads: bool = False
    use_detection_head: bool = False
    use_masked_language: bool = False
    mask_ratio: float = 0.5
    decoder_size: int = 128
    reconstruction_weight: int | float = 1.0
    alignment_weight: int | float = 0.1
    consistency_weight: int | float = 0.1
    diversity_weight: int | float = 0.01
    report_only_weight: int | float = 1.0
    image_effect_weight: int | float = 0.5
    detection_weight: int | float = 0.5
    masked_language_weight: int | float = 0.0
    adversarial_weight: int | float = 0.0
    gp_places: int = 0
    gp_numbers: int = 0
    gp_channels: int = 0
    gp_tokens: int = 0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the parts and let the fuser take its widths from the towers."""
        super().__post_init__(**kwargs)
        # A copy: the object passed in may belong to another model.
        self.fuser_config = copy.deepcopy(self.fuser_config)
        self.fuser_config.hidden_size = self.vision_config.hidden_size
        self.fuser_config.report_size = self.text_config.hidden_size

    def validate_architecture(self) -> None:
        """Refuse values that no part of the model could act on."""
        likelihoods = ("binary", "regression", "share", "presence_only")
        if self.suitability_likelihood not in likelihoods:
            raise ValueError(
                f"`suitability_likelihood` must be one of {', '.join(likelihoods)}, got {self.suitability_likelihood}."
            )
        if not 0 < self.share_floor < self.share_threshold < 1:
            raise ValueError(
                f"`share_floor` ({self.share_floor}) and `share_threshold` ({self.share_threshold}) must satisfy "
                "0 < floor < threshold < 1."
            )
        if self.gp_places and self.suitability_likelihood != "share":
            raise ValueError(
                f"A Gaussian process (`gp_places` {self.gp_places}) answers for `share`, not for "
                f"`{self.suitability_likelihood}`: set `gp_places` to 0."
            )
        if self.alignment_loss not in ("softmax", "sigmoid"):
            raise ValueError(f"`alignment_loss` must be `softmax` or `sigmoid`, got {self.alignment_loss}.")
        if not 0 < self.presence_prior < 1:
            raise ValueError(f"`presence_prior` ({self.presence_prior}) must lie between 0 and 1.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` ({self.mask_ratio}) must lie between 0 and 1.")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The wrapped text encoder's own configuration, where vocabulary and width are kept."""
        return self.text_config.encoder_config

    @classmethod
    def from_size(cls, size: str = "small", vocab_size: int | None = None, **overrides: Any) -> "AgriClipConfig":
        """Configuration of a named size.

        Args:
            size: `tiny` (tests and quick fits), `small` (the released one) or `base` (for GPUs).
            vocab_size: Number of tokens of the tokenizer in use; the size's own default if None.
            **overrides: Fields of [`AgriClipConfig`]; a dict for a sub-configuration is merged into the size's.

        Raises:
            ValueError: The size is not one of the three.
        """
        if size not in SIZES:
            raise ValueError(f"There is no size {size!r}: choose one of {', '.join(SIZES)}.")
        fields = _merge(SIZES[size], overrides)
        if vocab_size is not None:
            default = AgriClipTextConfig.sub_configs_defaults["encoder_config"].init_kwargs
            encoder = {"model_type": "bert", **default} if size == "small" else {}
            fields = _merge({"text_config": {"encoder_config": encoder}}, fields)
            fields["text_config"]["encoder_config"]["vocab_size"] = vocab_size
        return cls(**fields)


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra` laid over it, nested dicts merged; neither is changed."""
    merged = {key: _merge(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


__all__ = ["AgriClipConfig", "AgriClipFuserConfig", "AgriClipTextConfig", "AgriClipVisionConfig"]
