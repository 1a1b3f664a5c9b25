"""The report encoder: any Hugging Face text encoder, with numbers that count.

Every number of a report is one `[NUM]` token whose embedding is computed from its value: sine and cosine at periods
from 0.1 to 10^5, plus asinh, so that near values are near and 40 mm is not 400 mm. The result goes into the wrapped
encoder through `inputs_embeds`, which is why any encoder will do.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import transformers.initialization as init
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .base_agriclip import AgriClipPreTrainedModel, fourier_features, log_spaced
from .clip_agriclip import TEXT_ENCODERS, pool_tokens
from .configuration_agriclip import AgriClipTextConfig


class AgriClipNumberEmbedding(nn.Module):
    """Value of a number, in its canonical unit, to an embedding; a missing number (NaN) has one of its own."""

    def __init__(self, config: AgriClipTextConfig) -> None:
        super().__init__()
        self.shortest, self.longest = (float(period) for period in config.number_periods)
        self.num_periods = config.num_number_periods
        self.projection = nn.Linear(2 * self.num_periods + 1, config.hidden_size)
        self.missing = nn.Parameter(torch.zeros(config.hidden_size))

    def init_weights(self, std: float) -> None:
        """Start the missing number like a word."""
        init.normal_(self.missing, std=std)

    @torch.no_grad()
    def start(self, std: float) -> None:
        """Start at a spread that suits words of spread `std`."""
        init.normal_(self.projection.weight, std=0.3 * std)
        # asinh reaches 7 where sine and cosine stay within 1.
        self.projection.weight[:, -1] *= 0.2

    def forward(self, values: Tensor) -> Tensor:
        """Values (B, L) to embeddings (B, L, D)."""
        present = values.isfinite()
        known = torch.where(present, values, 0.0).float()
        periods = log_spaced(self.shortest, self.longest, self.num_periods, values.device)
        features = torch.cat([fourier_features(known, periods), known.asinh().unsqueeze(-1)], dim=-1)
        embedded = self.projection(features.to(self.projection.weight.dtype))
        return torch.where(present.unsqueeze(-1), embedded, self.missing)


@dataclass
class AgriClipTextOutput(BaseModelOutputWithPooling):
    """Output of the report encoder, and what it was given.

    Args:
        last_hidden_state: States of the tokens, 0 at padding (B, L, D).
        pooler_output: One vector a report (B, D).
        hidden_states: Those of each layer, if asked for.
        attentions: Those of each layer, if asked for.
        input_ids: Tokens (B, L).
        numeric_values: Value at each `[NUM]` token (B, L).
    """

    input_ids: Tensor | None = None
    numeric_values: Tensor | None = None


class AgriClipTextModel(AgriClipPreTrainedModel):
    """Reports to token features and one vector each."""

    config: AgriClipTextConfig  # type: ignore[assignment]
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ["text"]

    def __init__(self, config: AgriClipTextConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config.encoder_config)
        self.number_embedding = AgriClipNumberEmbedding(config)
        self.post_init()
        if config.embedding_init_std is not None:
            self._start_embeddings(config.embedding_init_std)

    @torch.no_grad()
    def _start_embeddings(self, std: float) -> None:
        """Start words, positions and numbers at a spread of `std`, so that a number can be told by its place.

        Only for an encoder that is trained from nothing: the spread of a pretrained one is its own.
        """
        for module in self.encoder.modules():
            if isinstance(module, nn.Embedding):
                init.normal_(module.weight, std=std)
        self.number_embedding.start(std)

    def get_input_embeddings(self) -> nn.Module:
        """The wrapped encoder's word embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the wrapped encoder's word embeddings."""
        self.encoder.set_input_embeddings(value)

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        numeric_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> AgriClipTextOutput:
        """Encode a batch of reports.

        Args:
            input_ids: Tokens (B, L).
            attention_mask: 1 = a token, 0 = padding (B, L); all tokens if None.
            numeric_values: Value at each `[NUM]` token, in canonical units (B, L); NaN = missing. A report with
                `[NUM]` tokens and no values reads them all as missing.
            inputs_embeds: Token embeddings (B, L, D) in place of `input_ids`, numbers already put in.
            **kwargs: Passed on to the wrapped encoder.

        Returns:
            `last_hidden_state` (B, L, D), 0 at padding, `pooler_output` (B, D), pooled as the configuration says, and
            the tokens and values themselves.

        Raises:
            ValueError: Neither or both of `input_ids` and `inputs_embeds` are given.
        """
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, numeric_values)
        elif input_ids is not None or inputs_embeds is None:
            raise ValueError("Give a report as exactly one of `input_ids` and `inputs_embeds`.")
        batch, length = inputs_embeds.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(batch, length, dtype=torch.long, device=inputs_embeds.device)
        # A report without any token attends to its padding, so that softmax has something to share out; the
        # multiplication below takes the result away again.
        empty = attention_mask.sum(dim=1, keepdim=True) == 0
        for name in ("output_hidden_states", "output_attentions"):
            kwargs.setdefault(name, getattr(self.config, name))
        output = self.encoder(inputs_embeds=inputs_embeds, attention_mask=attention_mask | empty.long(), **kwargs)
        keep = attention_mask.unsqueeze(-1).to(inputs_embeds.dtype)
        return AgriClipTextOutput(
            last_hidden_state=output.last_hidden_state * keep,
            pooler_output=pool_tokens(output.last_hidden_state, attention_mask, input_ids, self.config),
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
            input_ids=input_ids,
            numeric_values=numeric_values,
        )

    def embed(self, input_ids: Tensor, numeric_values: Tensor | None) -> Tensor:
        """Word embeddings (B, L, D) with the value's embedding added at each `[NUM]` token."""
        words = self.get_input_embeddings()(input_ids)
        if numeric_values is None:
            numeric_values = torch.full(input_ids.shape, torch.nan, device=input_ids.device)
        is_number = (input_ids == self.config.number_token_id).unsqueeze(-1)
        return words + torch.where(is_number, self.number_embedding(numeric_values), 0.0).to(words.dtype)


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """The base model of any text-encoder configuration, without the pooler that nothing here would train."""
    if config.model_type in TEXT_ENCODERS:
        return TEXT_ENCODERS[config.model_type]._from_config(config)
    encoder_class: Any = MODEL_MAPPING[type(config)]
    if "add_pooling_layer" in inspect.signature(encoder_class.__init__).parameters:
        return encoder_class._from_config(config, add_pooling_layer=False)
    return encoder_class._from_config(config)
