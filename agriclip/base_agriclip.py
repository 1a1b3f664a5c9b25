"""What every part of AgriCLIP stands on: the pretrained base class, attention, masks and Fourier features.

Choices: one attention class whose q, k, v and out are separate Linear layers (LoRA finds them by name); masks enter
attention as an additive bias over keys, so that absent cells weigh exactly nothing and a row without any valid key
stays finite; a layer that starts at another spread says so in `init_std`, and a module that owns bare parameters says
how they start in `init_weights`. Both are read layer by layer, because transformers passes over a module of custom
code that has no parameters of its own: a parent cannot start its children.
"""

import math
from collections.abc import Callable
from itertools import chain
from os import PathLike
from typing import Any, Unpack

import torch
import transformers.initialization as init
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import TransformersKwargs

from .configuration_agriclip import AUTO_MAP, AgriClipConfig

# Bytes to whose multiples torch aligns the memory that it allocates.
ALIGNMENT = 64


class AgriClipPreTrainedModel(PreTrainedModel):
    """Base of all AgriCLIP models: weight initialisation, loading and the features that transformers may use."""

    config: AgriClipConfig
    base_model_prefix = "agriclip"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    # The loss is a plain mean over the batch; Trainer must not rescale it by the number of items.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["AgriClipVisionLayer", "AgriClipTemporalLayer", "AgriClipFusionLayer"]
    # One folder may hold the weights of every head; each class takes its own.
    _keys_to_ignore_on_load_unexpected = [
        r"^(vision_model|text_model|fuser)\.",
        r"^(visual_projection|text_projection|logit_scale|logit_bias)",
        r"^(suitability_head|image_effect_head|detection_head|classifier|segmentation_head|decoder|language_head)\.",
    ]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, and give every weight the alignment that a fresh tensor has.

        In a safetensors file weights lie anywhere, and some processors round a product otherwise when its operands are
        not aligned: without this, a loaded model can differ from the saved one in the last bit.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()
        return loaded

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; code that is saved along is entered for every class it defines."""
        if self._auto_class is not None and self.config.model_type == AgriClipConfig.model_type:
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start the weights of `module`; called again after loading, for whatever the checkpoint lacks."""
        std = getattr(module, "init_std", getattr(self.config, "initializer_range", 0.02))
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif hasattr(module, "init_weights") and not isinstance(module, PreTrainedModel):
            module.init_weights(std)  # type: ignore[operator]


def with_init_std(layer: Any, std: float) -> Any:
    """The layer, whose weights will start with a standard deviation of `std`."""
    layer.init_std = std
    return layer


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """Attention written out (F3): softmax(q k^T * scaling + bias) v.

    Args:
        module: The attention module that calls.
        query: (B, heads, L, d).
        key: (B, heads, M, d).
        value: (B, heads, M, d).
        attention_mask: Additive bias, broadcastable to (B, heads, L, M).
        scaling: Factor on the scores.
        dropout: Probability of dropping a weight in training.
        **kwargs: Ignored.

    Returns:
        Output (B, L, heads, d) and weights (B, heads, L, M).
    """
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights, value).transpose(1, 2).contiguous()
    return output, weights


def key_bias(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention bias (..., 1, M) from a validity mask (..., M): 0 where valid, lowest finite value where not.

    Finite, so a row in which nothing is valid attends evenly instead of giving NaN; its result is masked later.
    """
    bias = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return bias.masked_fill(~valid.bool(), torch.finfo(dtype).min).unsqueeze(-2)


class AgriClipAttention(nn.Module):
    """Multi-head attention of `size`-wide queries over a source of width `source_size` (F3, F12-F15)."""

    def __init__(self, config: Any, size: int, num_heads: int, source_size: int | None = None) -> None:
        super().__init__()
        source_size = size if source_size is None else source_size
        self.config = config
        self.num_heads = num_heads
        self.head_dim = size // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(source_size, size)
        self.v_proj = nn.Linear(source_size, size)
        self.out_proj = nn.Linear(size, size)

    def split_heads(self, states: Tensor) -> Tensor:
        """(B, L, D) to (B, heads, L, d)."""
        return states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention between split heads through the interface; returns (B, L, D) and the weights if there are any."""
        interface: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = interface(self, query, key, value, bias, dropout=dropout, scaling=self.scaling, **kwargs)
        return output.flatten(-2), weights

    def forward(
        self, hidden_states: Tensor, source: Tensor | None = None, bias: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (B, L, D) over `source` (B, M, E), itself if None; `bias` broadcastable to (B, heads, L, M)."""
        source = hidden_states if source is None else source
        query = self.split_heads(self.q_proj(hidden_states))
        key, value = self.split_heads(self.k_proj(source)), self.split_heads(self.v_proj(source))
        output, weights = self.attend(query, key, value, bias, **kwargs)
        return self.out_proj(output), weights


class AgriClipMLP(nn.Module):
    """Feed-forward network (F4), with GELU in place of the paper's ReLU."""

    def __init__(self, size: int, hidden_size: int, activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, hidden_size)
        self.activation = ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_size, size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.dropout(self.fc2(self.activation(self.fc1(hidden_states))))


class AgriClipPooling(nn.Module):
    """Attention pooling with one learned query; an input without a valid cell gives a learned `empty` vector."""

    def __init__(self, config: Any, size: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, size))
        self.empty = nn.Parameter(torch.zeros(1, size))
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.attention = AgriClipAttention(config, size, num_heads)

    def init_weights(self, std: float) -> None:
        """Start both vectors small and random."""
        init.normal_(self.query, std=std)
        init.normal_(self.empty, std=std)

    def forward(self, hidden_states: Tensor, valid: Tensor) -> Tensor:
        """Cells (B, N, D) and their validity (B, N) to one vector (B, D)."""
        query = self.query.repeat(hidden_states.shape[0], 1, 1)
        bias = key_bias(valid[:, None], hidden_states.dtype)
        pooled = self.attention(query, self.norm(hidden_states), bias)[0][:, 0]
        return torch.where(valid.bool().any(dim=1, keepdim=True), pooled, self.empty)


def fourier_features(values: Tensor, periods: Tensor) -> Tensor:
    """Sine and cosine of `values` (...) at each of P `periods`: (..., 2 P), in float32."""
    angles = 2 * math.pi * values.float().unsqueeze(-1) / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def log_spaced(shortest: float, longest: float, count: int, device: torch.device) -> Tensor:
    """`count` periods from `shortest` to `longest`, evenly spaced in the logarithm; made at call time, no buffer."""
    exponents = torch.linspace(math.log10(shortest), math.log10(longest), count, device=device, dtype=torch.float32)
    return torch.pow(10.0, exponents)
