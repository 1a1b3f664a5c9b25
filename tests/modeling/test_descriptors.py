"""Descriptors: statistics of embedded pixels that forget nothing of a series or of a sensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modeling_agriclip import AgriClipConfig, AgriClipForSemanticSegmentation
from modeling_agriclip.extractor_agriclip import harmonic_regression
from processing.sensors_agriclip import get_sensor

YEAR = 365.25


@pytest.fixture(scope="module")
def model() -> AgriClipForSemanticSegmentation:
    torch.manual_seed(0)
    return AgriClipForSemanticSegmentation(AgriClipConfig.from_size("tiny")).eval()


def test_a_yearly_cycle_is_found_whatever_the_dates() -> None:
    rng = np.random.default_rng(0)
    days = torch.from_numpy(np.sort(rng.choice(np.arange(1, 366), size=(4, 40)), axis=1))
    phase = 2 * np.pi * (days.double() - 0.5) / YEAR
    truth = torch.tensor([0.4, -0.3, 0.2, 0.1, 0.05])  # mean, sine of one and of two waves a year, cosines
    waves = [torch.ones_like(phase), phase.sin(), (2 * phase).sin(), phase.cos(), (2 * phase).cos()]
    values = sum(a * w for a, w in zip(truth, waves, strict=True)).float().unsqueeze(-1)
    found = harmonic_regression(values, torch.ones(4, 40), days, harmonics=2, ridge=1e-6)
    torch.testing.assert_close(found[..., 0], truth.expand(4, -1), atol=1e-4, rtol=0)


def test_dates_that_are_not_seen_count_for_nothing_and_undated_ones_for_the_mean() -> None:
    days = torch.tensor([[10, 80, 150, 220, 300, 340]])
    values, seen = torch.randn(1, 6, 3), torch.tensor([[1, 1, 0, 1, 1, 1]])
    other = values.clone()
    other[:, 2] = 99.0
    whole = harmonic_regression(values, seen, days, 2)
    torch.testing.assert_close(harmonic_regression(other, seen, days, 2), whole)
    undated = harmonic_regression(values, seen, torch.zeros_like(days), 2)
    torch.testing.assert_close(undated[:, 0], values[seen.bool()].mean(dim=0, keepdim=True), atol=1e-4, rtol=1e-3)
    assert not undated[:, 1:].any()
    # One date says nothing of a season, whether it is known or not.
    single = harmonic_regression(values[:, :1], seen[:, :1], days[:, :1], 2)
    assert not single[:, 1:].any()
    assert not harmonic_regression(values, torch.zeros_like(seen), days, 2).any()


def test_descriptors_are_linear_in_the_mean_spectrum_and_blind_to_places_order_and_padding(
    model: AgriClipForSemanticSegmentation,
) -> None:
    codes = torch.tensor([channel.code() for channel in get_sensor("sentinel2_l2a").channels])
    pixels = torch.randn(2, 1, len(codes), 9, 7)
    found = model.get_image_descriptors(pixels, channels=codes)
    assert found.shape == (2, 14 * model.config.vision_config.pixel_size)
    places = torch.randperm(63)
    shuffled = pixels.flatten(-2)[..., places].unflatten(-1, (9, 7))
    torch.testing.assert_close(model.get_image_descriptors(shuffled, channels=codes), found, atol=1e-5, rtol=1e-4)
    order = torch.randperm(len(codes))
    turned = model.get_image_descriptors(pixels[:, :, order], channels=codes[order])
    torch.testing.assert_close(turned, found, atol=1e-5, rtol=1e-4)
    padded = torch.nn.functional.pad(pixels, (0, 3, 0, 2))
    mask = torch.nn.functional.pad(torch.ones_like(pixels), (0, 3, 0, 2))
    torch.testing.assert_close(
        model.get_image_descriptors(padded, pixel_mask=mask, channels=codes), found, atol=1e-5, rtol=1e-4
    )
    # As many numbers as the pixel's embedding has, of which the mean spectrum can be read back.
    size = model.config.vision_config.pixel_size
    flat = torch.randn(60, 1, len(codes), 1, 1)
    means = model.get_image_descriptors(flat, channels=codes)[:, :size].detach()
    assert np.linalg.matrix_rank((means - means.mean(dim=0)).numpy(), tol=1e-3) == len(codes)


def test_nothing_seen_gives_a_defined_answer(model: AgriClipForSemanticSegmentation) -> None:
    codes = torch.tensor([channel.code() for channel in get_sensor("landsat8").channels])
    pixels = torch.full((1, 2, len(codes), 4, 4), float("nan"))
    found = model.get_image_descriptors(pixels, channels=codes, dates=torch.tensor([[30, 200]]))
    assert found.isfinite().all() and found.abs().max() < 1e-5
