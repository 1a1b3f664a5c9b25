"""Varied-size window attention against plain window attention, and against its own formula."""

import pytest
import torch

from modeling_agriclip import AgriClipConfig
from modeling_agriclip.windows_agriclip import AgriClipWindowAttention


def pair(window: int = 4):
    """The same weights with and without varied windows."""
    found = []
    for varied in (True, False):
        overrides = {"window_size": window, "varied_size_windows": varied}
        config = AgriClipConfig.from_size("tiny", vision_config=overrides).vision_config
        config._attn_implementation = "sdpa"
        found.append(AgriClipWindowAttention(config, 48, 3).eval())
    for layer in found:
        torch.nn.init.normal_(layer.q_proj.weight, std=0.2)
    torch.nn.init.zeros_(found[0].window_head.weight)
    torch.nn.init.zeros_(found[0].window_head.bias)
    found[1].load_state_dict(found[0].state_dict(), strict=False)
    return found


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (13, 21), (1, 1), (7, 3)])
def test_zero_offsets_equal_plain_windows(size):
    varied, plain = pair()
    cells, valid = torch.randn(2, *size, 48), torch.rand(2, *size) > 0.3
    with torch.no_grad():
        difference = (varied(cells, valid) - plain(cells, valid)) * valid.unsqueeze(-1)
    assert difference.abs().max() <= 1e-6


def test_offset_of_one_window_reads_the_next_window():
    varied, plain = pair()
    cells, valid = torch.randn(1, 8, 8, 48), torch.ones(1, 8, 8, dtype=torch.bool)
    with torch.no_grad():
        # Outputs are scale_y, scale_x, offset_y, offset_x for each head: every head looks one window to the right.
        varied.window_head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(3))
        shifted = varied(cells, valid)[:, :, :4]
        # The same by hand: queries of the left windows, keys and values of the right ones.
        query = plain._split_windows(plain.q_proj(cells[:, :, :4]))
        key = plain._split_windows(plain.k_proj(cells[:, :, 4:]))
        value = plain._split_windows(plain.v_proj(cells[:, :, 4:]))
        expected, _ = plain.attend(query, key, value, None)
        expected = plain.out_proj(expected).reshape(1, 2, 4, 4, 48).reshape(1, 8, 4, 48)
    torch.testing.assert_close(shifted, expected, atol=1e-5, rtol=0)


def test_windows_far_outside_stay_finite():
    varied, _ = pair()
    with torch.no_grad():
        varied.window_head.bias.fill_(50.0)
        output = varied(torch.randn(1, 8, 8, 48), torch.ones(1, 8, 8, dtype=torch.bool))
    assert output.isfinite().all()


def test_offsets_learn():
    varied, _ = pair()
    output = varied(torch.randn(1, 8, 8, 48), torch.ones(1, 8, 8, dtype=torch.bool))
    output.square().sum().backward()
    assert varied.window_head.weight.grad.abs().max() > 0
