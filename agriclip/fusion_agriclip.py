"""Cross-modality fusion (CMFL, F11-F15): cells ask, the report answers.

The paper's F15 leaves only text values in the fused feature; here the answer is added to the cell through a gate, a
null token lets a cell decline to listen, and the pooled report shifts and scales the result (FiLM). A site token, the
pooled image, asks along with the cells: it stands for the whole image, and alone when there is no image.
"""

from typing import Any

import torch
import transformers.initialization as init
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .base_agriclip import AgriClipAttention, AgriClipPreTrainedModel, key_bias, with_init_std
from .configuration_agriclip import AgriClipFuserConfig


class AgriClipFusionLayer(GradientCheckpointingLayer):
    """One round of gated cross-attention and FiLM."""

    def __init__(self, config: AgriClipFuserConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.gate_init_value = config.gate_init_value
        self.norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.attention = AgriClipAttention(config, size, config.num_attention_heads, config.report_size)
        self.gate = nn.Parameter(torch.zeros(size))
        self.norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        # FiLM starts as the identity.
        self.film = with_init_std(nn.Linear(config.report_size, 2 * size), 0.0) if config.use_film else None

    def init_weights(self, std: float) -> None:
        """Start with a small gate."""
        init.constant_(self.gate, self.gate_init_value)

    def forward(self, hidden_states: Tensor, report: Tensor, bias: Tensor, summary: Tensor, **kwargs: Any) -> Tensor:
        """Cells (B, M, D) ask tokens (B, L + 1, E) under a bias (B, 1, 1, L + 1); `summary` is (B, E)."""
        answer, _ = self.attention(self.norm1(hidden_states), report, bias, **kwargs)
        hidden_states = hidden_states + self.gate * answer
        hidden_states = self.norm2(hidden_states)
        if self.film is None:
            return hidden_states
        scale, shift = self.film(summary).unsqueeze(1).chunk(2, dim=-1)
        return (1 + scale) * hidden_states + shift


class AgriClipFuser(AgriClipPreTrainedModel):
    """The fusion as a model of its own, shared by all heads."""

    config: AgriClipFuserConfig  # type: ignore[assignment]
    base_model_prefix = "fuser"

    def __init__(self, config: AgriClipFuserConfig) -> None:
        super().__init__(config)
        self.null_token = nn.Parameter(torch.zeros(1, 1, config.report_size))
        self.no_report = nn.Parameter(torch.zeros(1, config.report_size))
        self.layers = nn.ModuleList(AgriClipFusionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AgriClipFuser):
            init.normal_(module.null_token, std=self.config.initializer_range)
            init.normal_(module.no_report, std=self.config.initializer_range)

    def forward(
        self,
        cells: Tensor,
        report: Tensor | None = None,
        report_mask: Tensor | None = None,
        summary: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Fuse a batch.

        Args:
            cells: Queries, site token first (B, 1 + N, D).
            report: Token features (B, L, E); None for no report, as for the next two.
            report_mask: 1 = a token (B, L).
            summary: Pooled report (B, E).
            **kwargs: Passed on to attention.

        Returns:
            (B, 1 + N, D). A report without a token equals no report.
        """
        batch = cells.shape[0]
        null = self.null_token.repeat(batch, 1, 1)
        if report is None or report_mask is None or summary is None:
            report = null
            summary = self.no_report.repeat(batch, 1)
            valid = torch.ones(batch, 1, dtype=torch.bool, device=cells.device)
        else:
            given = report_mask.bool()
            report = torch.cat([null, report], dim=1)
            summary = torch.where(given.any(dim=1, keepdim=True), summary, self.no_report)
            # Without a null token it answers only where nobody else does.
            null_valid = torch.full_like(given[:, :1], self.config.use_null_token) | ~given.any(dim=1, keepdim=True)
            valid = torch.cat([null_valid, given], dim=1)
        bias = key_bias(valid[:, None], cells.dtype)
        for layer in self.layers:
            cells = layer(cells, report, bias, summary, **kwargs)
        return cells
