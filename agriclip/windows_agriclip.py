"""Varied-size window attention (F5, F6), written from the formula, for any grid size and with masks.

Every head of every window predicts a size S and an offset O from the window's mean; keys and values are read by
bilinear interpolation at centre + r (1 + S) + w O, queries stay in the plain window. S = O = 0 at the start, and then
it equals plain window attention exactly, because the sampling positions are whole numbers in floating point.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .base_agriclip import AgriClipAttention, key_bias, with_init_std
from .configuration_agriclip import AgriClipVisionConfig


class AgriClipWindowAttention(AgriClipAttention):
    """Attention within windows of `window_size` cells, whose size and place each head may vary."""

    def __init__(self, config: AgriClipVisionConfig, size: int, num_heads: int) -> None:
        super().__init__(config, size, num_heads)
        self.window_size = config.window_size
        self.varied = config.varied_size_windows
        if self.varied:
            self.window_activation = nn.LeakyReLU()
            # No change of size and no offset at the start: plain windows.
            self.window_head = with_init_std(nn.Linear(size, 4 * num_heads), 0.0)

    def forward(self, hidden_states: Tensor, valid: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Cells (B, h, w, D) and their mask (B, h, w) to cells (B, h, w, D)."""
        ws, (batch, height, width, size) = self.window_size, hidden_states.shape
        pad = (0, 0, 0, -width % ws, 0, -height % ws)
        keep = valid.unsqueeze(-1).to(hidden_states.dtype)
        # Project before padding: the padding then costs nothing but attention.
        maps = [nn.functional.pad(layer(hidden_states), pad) for layer in (self.q_proj, self.k_proj, self.v_proj)]
        padded_keep = nn.functional.pad(keep, pad)
        query = self._split_windows(maps[0])
        if self.varied:
            windows, mask = nn.functional.pad(hidden_states * keep, pad), padded_keep
            key, value, bias = self._sample(maps[1], maps[2], windows, mask)
        else:
            key, value = self._split_windows(maps[1]), self._split_windows(maps[2])
            inside = self._partition(padded_keep)[..., 0]  # (B * nw, ws * ws)
            bias = key_bias(inside[:, None] > 0, query.dtype)
        output, _ = self.attend(query, key, value, bias, **kwargs)
        rows, columns = padded_keep.shape[1] // ws, padded_keep.shape[2] // ws
        output = output.reshape(batch, rows, columns, ws, ws, size).transpose(2, 3)
        output = output.reshape(batch, rows * ws, columns * ws, size)[:, :height, :width]
        return self.out_proj(output)

    def _partition(self, cells: Tensor) -> Tensor:
        """(B, rows * ws, columns * ws, D) to (B * rows * columns, ws * ws, D)."""
        cells = cells.unflatten(1, (-1, self.window_size)).unflatten(3, (-1, self.window_size))
        return cells.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def _split_windows(self, cells: Tensor) -> Tensor:
        return self.split_heads(self._partition(cells))

    def _sample(self, key: Tensor, value: Tensor, cells: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B * nw, heads, ws * ws, d) at the predicted positions, and their bias.

        Interpolation runs over valid cells only and is divided by the weight found there; that weight's logarithm is
        the bias, so that a position half outside counts half, and one wholly outside not at all.
        """
        ws, heads, batch = self.window_size, self.num_heads, cells.shape[0]
        height, width = cells.shape[1:3]
        rows, columns = height // ws, width // ws
        sums, counts = self._partition(cells).sum(1), self._partition(keep).sum(1)
        pooled = sums / counts.clamp(min=1)  # (B * nw, D)
        change = self.window_head(self.window_activation(pooled)).float().reshape(batch, rows, columns, heads, 4)
        scale_y, scale_x, offset_y, offset_x = change.unbind(-1)  # each (B, rows, columns, heads)

        device = cells.device
        reach = torch.arange(ws, device=device, dtype=torch.float32) - (ws - 1) / 2
        centre_y = (torch.arange(rows, device=device) * ws + (ws - 1) / 2).view(1, rows, 1, 1)
        centre_x = (torch.arange(columns, device=device) * ws + (ws - 1) / 2).view(1, 1, columns, 1)
        y = (centre_y + ws * offset_y).unsqueeze(-1) + reach * (1 + scale_y).unsqueeze(-1)
        x = (centre_x + ws * offset_x).unsqueeze(-1) + reach * (1 + scale_x).unsqueeze(-1)
        y = y.unsqueeze(-1).expand(-1, -1, -1, -1, ws, ws).flatten(-2)  # (B, rows, columns, heads, ws * ws)
        x = x.unsqueeze(-2).expand(-1, -1, -1, -1, ws, ws).flatten(-2)

        # One table of rows [key, value, valid] for all images, heads and cells, looked up at the four neighbours.
        dim = self.head_dim
        per_head = torch.cat([key.unflatten(-1, (heads, dim)), value.unflatten(-1, (heads, dim))], dim=-1)
        table = torch.cat([per_head * keep.unsqueeze(-1), keep.unsqueeze(-2).expand(*per_head.shape[:-1], 1)], dim=-1)
        table = table.reshape(batch * height * width * heads, 2 * dim + 1)
        first = torch.arange(batch, device=device).view(batch, 1, 1, 1, 1) * (height * width)
        head = torch.arange(heads, device=device).view(1, 1, 1, heads, 1)
        top, left = y.floor(), x.floor()
        sampled = torch.zeros((), dtype=table.dtype, device=device)
        for step_y in (0, 1):
            for step_x in (0, 1):
                row, column = top + step_y, left + step_x
                weight = (1 - (y - row).abs()) * (1 - (x - column).abs())
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                # Weights that have diverged must end in a loss that is no number, not in an index out of range.
                row = row.clamp(0, height - 1).nan_to_num().long()
                column = column.clamp(0, width - 1).nan_to_num().long()
                index = (first + row * width + column) * heads + head
                weight = torch.where(inside, weight, 0.0).to(table.dtype)
                sampled = sampled + nn.functional.embedding(index, table) * weight.unsqueeze(-1)
        sampled = sampled.flatten(0, 2)  # (B * nw, heads, ws * ws, 2 d + 1)
        found = sampled[..., -1:]
        key, value = (sampled[..., :-1] / found.clamp(min=1e-6)).chunk(2, dim=-1)
        bias = found.float().clamp(min=1e-30).log().transpose(-1, -2).to(key.dtype)  # (B * nw, heads, 1, ws * ws)
        return key, value, bias
