"""A model of a few thousand parameters and a batch for it."""

import torch
from torch import nn

from modeling_agriclip import AgriClipConfig, AgriClipForPreTraining, AgriClipForSuitability
from processing.sensors_agriclip import get_sensor
from training.objective import Objective, get_objective

SENSOR = get_sensor("landsat8")
SMALL = {
    "vision_config": {"stage_depths": (1, 1), "stage_sizes": (12, 24), "stage_heads": (2, 4), "hidden_size": 24},
    "text_config": {"encoder_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}},
    "projection_dim": 16,
    "decoder_size": 16,
}


def model_of(preset: str | Objective, **fields):
    """A small model of an objective, none of whose parameters starts at nothing."""
    objective = get_objective(preset) if isinstance(preset, str) else preset
    torch.manual_seed(0)
    kind = AgriClipForPreTraining if preset == "pretraining" else AgriClipForSuitability
    model = kind(AgriClipConfig.from_size("tiny", vocab_size=64, **{**objective.fields(), **SMALL, **fields}))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model.train()


def make_batch():
    """Four places, one without a label, with holes in their images."""
    torch.manual_seed(1)
    channels = torch.tensor([channel.code() for channel in SENSOR.channels])
    tokens = torch.randint(6, 64, (4, 9))
    tokens[:, ::3] = 5
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "numeric_values": torch.randn(4, 9),
        "pixel_values": torch.randn(4, len(channels), 8, 8),
        "pixel_mask": torch.rand(4, len(channels), 8, 8) > 0.1,
        "channels": channels.expand(4, -1, -1),
        "gsd": torch.full((4,), 30.0),
        "labels": torch.tensor([1.0, 0.0, 0.25, torch.nan]),
        "label_weights": torch.tensor([1.0, 2.0, 4.0, 1.0]),
        "detection_labels": torch.tensor([1.0, 0.0, 0.0, 1.0]),
        "noise": torch.rand(4, 64),
    }
