"""Tiny models and inputs for the tests of the network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling_agriclip import AgriClipConfig

WAVELENGTHS = (443, 490, 560, 665, 842, 1610, 2200)


def image_inputs(batch: int = 2, dates: int = 2, bands: int = 6, height: int = 32, width: int = 40) -> dict[str, Any]:
    """Random reflectances of `bands` described channels at `dates` dates."""
    channels = torch.zeros(batch, bands, 4, dtype=torch.long)
    channels[..., 0] = 1
    channels[..., 1] = torch.tensor(WAVELENGTHS[:bands])
    return {
        "pixel_values": torch.randn(batch, dates, bands, height, width),
        "channels": channels,
        "gsd": torch.full((batch,), 10.0),
        "dates": torch.arange(1, dates + 1).repeat(batch, 1) * 50,
    }


def report_inputs(batch: int = 2, length: int = 12) -> dict[str, Any]:
    """Random tokens with a number in every fourth place."""
    ids = torch.randint(6, 200, (batch, length))
    ids[:, ::4] = 5
    values = torch.where(ids == 5, torch.rand(batch, length) * 100, 0.0)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "numeric_values": values}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with everything that starts at zero moved off it, so that no part hides behind its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def build() -> Callable[..., Any]:
    """A shaken tiny model of any class: `build(AgriClipModel, vision_config={...})`."""

    def make(cls: Any, **overrides: Any) -> Any:
        config = AgriClipConfig.from_size("tiny", vocab_size=200, **overrides)
        part = {"AgriClipVisionModel": config.vision_config, "AgriClipTextModel": config.text_config}
        return shaken(cls(part.get(cls.__name__, config)))

    return make
