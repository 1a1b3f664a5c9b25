"""The multi-scale feature extractor (MSFE, F2-F6) and its temporal encoder.

One shared hierarchical transformer runs over each resolution of the pyramid in turn: early stages attend in
varied-size windows, the last one globally, and a neck brings all stages back to the resolution's own grid. Positions
are metres from the image's corner and each cell knows its own size, so scale is physical.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .base_agriclip import AgriClipAttention, AgriClipMLP, fourier_features, key_bias, log_spaced
from .configuration_agriclip import AgriClipVisionConfig
from .windows_agriclip import AgriClipWindowAttention

_POSITION_PERIODS = 48
_CELL_SIZE_PERIODS = (1.0, 2.0, 4.0, 8.0, 16.0)
_YEAR = 365.25
DATE_FEATURES = 11


def date_features(dates: Tensor) -> Tensor:
    """Days from 1 January of the reference year (B, T) to season and elapsed years (B, T, 11); 0 where undated."""
    phase = (dates.float() - 0.5) / _YEAR
    harmonics = fourier_features(phase, 1.0 / torch.arange(1, 5, device=dates.device))
    dated = (dates != 0).float().unsqueeze(-1)
    years = torch.stack([phase, phase.square()], dim=-1)
    return torch.cat([harmonics, years, torch.ones_like(dated)], dim=-1) * dated


def harmonic_regression(states: Tensor, seen: Tensor, dates: Tensor, harmonics: int, ridge: float = 0.1) -> Tensor:
    """Least-squares fit of a yearly cycle to each feature of a series (harmonic analysis, Jakubauskas et al. 2001).

    Args:
        states: (B, T, D).
        seen: 1 where a date counts (B, T).
        dates: Days from 1 January of the reference year (B, T), 0 = undated: such dates tell of the mean only, as does
            an image of a single date.
        harmonics: Cycles a year of the fastest wave.
        ridge: Penalty of the waves, not of the mean; it makes up for gaps.

    Returns:
        Mean, sines and cosines of the waves: (B, 1 + 2 harmonics, D) in float32; 0 where nothing is seen.
    """
    weight = seen.float().unsqueeze(-1)
    waves = torch.arange(1, harmonics + 1, device=dates.device)
    codes = fourier_features((dates.float() - 0.5) / _YEAR, 1.0 / waves)
    several = (seen.bool() & (dates != 0)).sum(dim=1).gt(1)[:, None, None]
    basis = torch.cat([torch.ones_like(weight), codes * (dates != 0).unsqueeze(-1) * several], dim=-1) * weight
    penalty = torch.full((basis.shape[-1],), ridge, device=dates.device)
    penalty[0] = 1e-4
    normal = basis.transpose(1, 2) @ basis + penalty.diag()
    return torch.linalg.solve(normal, basis.transpose(1, 2) @ states.float())


class AgriClipTemporalLayer(GradientCheckpointingLayer):
    """Transformer block over the dates of a cell."""

    def __init__(self, config: AgriClipVisionConfig, size: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.attention = AgriClipAttention(config, size, num_heads)
        self.norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.mlp = AgriClipMLP(size, int(size * config.mlp_ratio), config.hidden_act, config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, bias: Tensor, **kwargs: Any) -> Tensor:
        """(B * cells, T, D) with a bias (B * cells, 1, 1, T) to (B * cells, T, D)."""
        hidden_states = hidden_states + self.attention(self.norm1(hidden_states), bias=bias, **kwargs)[0]
        return hidden_states + self.mlp(self.norm2(hidden_states))


class AgriClipTemporalEncoder(nn.Module):
    """Dates of each cell to one state: the weighted mean of the dates plus what attention over them adds.

    Where a cell has a single valid date the result is that date's state, unchanged.
    """

    def __init__(self, config: AgriClipVisionConfig, size: int, num_heads: int) -> None:
        super().__init__()
        self.date_code = nn.Linear(DATE_FEATURES, size)
        layers = [AgriClipTemporalLayer(config, size, num_heads) for _ in range(config.temporal_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.score = nn.Linear(size, 1)
        self.update = nn.Linear(size, size)

    def encode_dates(self, dates: Tensor) -> Tensor:
        """Days from 1 January of the reference year (B, T), 0 = undated, to (B, T, D)."""
        return self.date_code(date_features(dates).to(self.date_code.weight.dtype))

    def forward(self, cells: Tensor, cell_mask: Tensor, dates: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(B, T, h, w, D), (B, T, h, w) and (B, T) to (B, h, w, D) and (B, h, w)."""
        batch, num_dates, height, width, size = cells.shape
        # In training the long way is taken even so, with the same result: DDP wants every parameter in the graph.
        if num_dates == 1 and not self.training:
            return cells[:, 0], cell_mask[:, 0]
        series = cells.permute(0, 2, 3, 1, 4).flatten(0, 2)  # (B * h * w, T, D)
        valid = cell_mask.permute(0, 2, 3, 1).flatten(0, 2)
        code = self.encode_dates(dates)[:, None].expand(-1, height * width, -1, -1).flatten(0, 1)
        states, bias = series + code, key_bias(valid[:, None], cells.dtype)
        for layer in self.layers:
            states = layer(states, bias, **kwargs)
        states = self.norm(states)
        weights = (self.score(states) + bias[:, 0].transpose(1, 2)).float().softmax(dim=1)
        weights = (weights * valid.unsqueeze(-1)).to(cells.dtype)
        several = (valid.sum(dim=1, keepdim=True) > 1).to(cells.dtype)
        pooled = (weights * series).sum(dim=1) + several * self.update((weights * states).sum(dim=1))
        return pooled.unflatten(0, (batch, height, width)), cell_mask.any(dim=1)


class AgriClipMetricPosition(nn.Module):
    """Code of a cell's place, in metres from the upper left corner, and of its size in metres."""

    def __init__(self, config: AgriClipVisionConfig, size: int) -> None:
        super().__init__()
        self.periods = tuple(float(period) for period in config.position_periods)
        self.rows = nn.Linear(2 * _POSITION_PERIODS, size, bias=False)
        self.columns = nn.Linear(2 * _POSITION_PERIODS, size, bias=False)
        self.cell_size = nn.Linear(2 * len(_CELL_SIZE_PERIODS) + 1, size)

    def forward(self, cell_metres: Tensor, height: int, width: int) -> Tensor:
        """Edge of a cell in metres (B,) and the grid to (B, h, w, D)."""
        periods = log_spaced(self.periods[0], self.periods[1], _POSITION_PERIODS, cell_metres.device)
        rows = self._axis(cell_metres, height, periods, self.rows)
        columns = self._axis(cell_metres, width, periods, self.columns)
        decade = cell_metres.float().log10()
        sizes = fourier_features(decade, torch.tensor(_CELL_SIZE_PERIODS, device=cell_metres.device))
        sizes = torch.cat([sizes, decade.unsqueeze(-1) / 4], dim=-1).to(self.cell_size.weight.dtype)
        return rows[:, :, None] + columns[:, None] + self.cell_size(sizes)[:, None, None]

    @staticmethod
    def _axis(cell_metres: Tensor, count: int, periods: Tensor, projection: nn.Linear) -> Tensor:
        metres = cell_metres.float()[:, None] * (torch.arange(count, device=cell_metres.device) + 0.5)
        # A period shorter than two cells only aliases: it fades out between four cells and two.
        fade = (periods / (2 * cell_metres.float()[:, None])).log2().clamp(0, 1)  # (B, P)
        code = fourier_features(metres, periods) * fade.repeat(1, 2)[:, None]
        return projection(code.to(projection.weight.dtype))


class AgriClipVisionLayer(GradientCheckpointingLayer):
    """Transformer block over cells (F6): windows of varied size, or global."""

    def __init__(self, config: AgriClipVisionConfig, size: int, num_heads: int, windowed: bool) -> None:
        super().__init__()
        self.windowed = windowed
        self.norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        attention = AgriClipWindowAttention if windowed else AgriClipAttention
        self.attention = attention(config, size, num_heads)
        self.norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.mlp = AgriClipMLP(size, int(size * config.mlp_ratio), config.hidden_act, config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, cell_mask: Tensor, **kwargs: Any) -> Tensor:
        """Cells (B, h, w, D) and their mask (B, h, w) to cells (B, h, w, D)."""
        normed = self.norm1(hidden_states)
        if self.windowed:
            attended = self.attention(normed, cell_mask, **kwargs)
        else:
            bias = key_bias(cell_mask.flatten(1)[:, None], normed.dtype)
            attended = self.attention(normed.flatten(1, 2), bias=bias, **kwargs)[0].view_as(normed)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.norm2(hidden_states))


class AgriClipPatchMerging(nn.Module):
    """Two by two cells to one, wider."""

    def __init__(self, config: AgriClipVisionConfig, size: int, next_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * size, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * size, next_size)

    def forward(self, cells: Tensor, cell_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, D), 0 where masked, to (B, ceil(h / 2), ceil(w / 2), D'), with the mask."""
        height, width = cells.shape[1:3]
        cells = nn.functional.pad(cells, (0, 0, 0, width % 2, 0, height % 2))
        cell_mask = nn.functional.pad(cell_mask, (0, width % 2, 0, height % 2))
        cells = cells.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).transpose(2, 3).flatten(3, 5)
        cell_mask = cell_mask.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).any(dim=4).any(dim=2)
        return self.reduction(self.norm(cells)), cell_mask


def upsample_cells(cells: Tensor, cell_mask: Tensor, factor: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Bilinear enlargement over valid cells only, cut to (h, w); the mask marks cells with a valid neighbour."""
    if factor == 1:
        return cells, cell_mask
    keep = cell_mask.unsqueeze(-1).to(cells.dtype)
    both = torch.cat([cells * keep, keep], dim=-1).permute(0, 3, 1, 2)
    both = nn.functional.interpolate(both, scale_factor=float(factor), mode="bilinear", align_corners=False)
    both = both[..., :height, :width].permute(0, 2, 3, 1)
    weight = both[..., -1:]
    return both[..., :-1] / weight.clamp(min=1e-6), weight[..., 0] > 0


class AgriClipFeatureExtractor(nn.Module):
    """The shared tower: one resolution's cells through all stages, and back to its own grid."""

    def __init__(self, config: AgriClipVisionConfig) -> None:
        super().__init__()
        sizes, last = config.stage_sizes, len(config.stage_sizes) - 1
        self.position = AgriClipMetricPosition(config, sizes[0])
        self.stages = nn.ModuleList(
            nn.ModuleList(AgriClipVisionLayer(config, size, heads, windowed=i < last) for _ in range(depth))
            for i, (size, depth, heads) in enumerate(zip(sizes, config.stage_depths, config.stage_heads, strict=True))
        )
        self.merges = nn.ModuleList(AgriClipPatchMerging(config, a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.norms = nn.ModuleList(nn.LayerNorm(size, eps=config.layer_norm_eps) for size in sizes)
        self.necks = nn.ModuleList(nn.Linear(size, config.hidden_size) for size in sizes)
        # The stages' sum keeps the variance of one.
        self.neck_scale = 1 / math.sqrt(len(sizes))

    def forward(
        self, cells: Tensor, cell_mask: Tensor, cell_metres: Tensor, **kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one resolution.

        Args:
            cells: Embedded cells (B, h, w, D0).
            cell_mask: (B, h, w) bool.
            cell_metres: Edge of a cell in metres (B,).
            **kwargs: Passed on to attention.

        Returns:
            Features (B, h, w, D), 0 where masked, and the states (B, h_i, w_i, D_i) that enter the first stage and
            leave each one.
        """
        height, width = cells.shape[1:3]
        hidden = (cells + self.position(cell_metres, height, width)) * cell_mask.unsqueeze(-1)
        mask, output = cell_mask, torch.zeros((), dtype=cells.dtype, device=cells.device)
        states: tuple[Tensor, ...] = (hidden,)
        for i, stage in enumerate(self.stages):
            if i:
                hidden, mask = self.merges[i - 1](hidden, mask)
            for layer in cast(nn.ModuleList, stage):
                hidden = layer(hidden, mask, **kwargs)
            hidden = hidden * mask.unsqueeze(-1)
            states = (*states, hidden)
            grown, _ = upsample_cells(self.necks[i](self.norms[i](hidden)), mask, 2**i, height, width)
            output = output + grown
        return output * self.neck_scale * cell_mask.unsqueeze(-1), states
