"""transformers' own common tests, run on every model class."""

from typing import Any

import torch
from harness import ModelSpec, floats_tensor, ids_tensor, model_tests

from modeling_agriclip import (  # isort: skip
    AgriClipConfig,
    AgriClipForImageClassification,
    AgriClipForPreTraining,
    AgriClipForSemanticSegmentation,
    AgriClipForSuitability,
    AgriClipModel,
    AgriClipTextConfig,
    AgriClipTextModel,
    AgriClipVisionConfig,
    AgriClipVisionModel,
)
from modeling_agriclip.channels_agriclip import AgriClipChannelEmbedding

BATCH, DATES, CHANNELS, EDGE, LENGTH = 3, 2, 4, 20, 9
NUMBER = 5
VISION = {
    "hidden_size": 32,
    "stage_sizes": (16, 32),
    "stage_depths": (1, 1),
    "stage_heads": (2, 4),
    "window_size": 4,
    "channel_hidden_size": 16,
    "pixel_size": 8,
}
TEXT = {
    "encoder_config": {
        "model_type": "bert",
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
}


def whole_config() -> AgriClipConfig:
    return AgriClipConfig(
        vision_config=dict(VISION),
        text_config=dict(TEXT),
        fuser_config={"num_hidden_layers": 1, "num_attention_heads": 4},
        projection_dim=24,
        decoder_size=16,
    )


def image_inputs(config: Any) -> dict[str, torch.Tensor]:
    channels = torch.zeros(BATCH, CHANNELS, 4, dtype=torch.long)
    channels[..., 0], channels[..., 1] = 1, torch.tensor([490, 560, 665, 842])
    return {
        "pixel_values": floats_tensor([BATCH, DATES, CHANNELS, EDGE, EDGE]),
        "channels": channels,
        "gsd": torch.full((BATCH,), 30.0),
        "dates": torch.tensor([[100, 200]]).repeat(BATCH, 1),
    }


def report_inputs(config: Any, prompts: int | None = None) -> dict[str, torch.Tensor]:
    shape = [BATCH, LENGTH] if prompts is None else [BATCH, prompts, LENGTH]
    ids = ids_tensor(shape, 93) + 6
    ids[..., 2] = NUMBER
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "numeric_values": floats_tensor(shape)}


def word_inputs(config: Any) -> dict[str, torch.Tensor]:
    """A report without numbers: its word embeddings alone are its `inputs_embeds`."""
    ids = ids_tensor([BATCH, LENGTH], 93) + 6
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def both_inputs(config: Any) -> dict[str, torch.Tensor]:
    return {**image_inputs(config), **report_inputs(config)}


HIERARCHICAL = "the tower is hierarchical: its states shrink and widen; tests/modeling/test_vision.py looks at them"
IN_PARTS = "the states belong to the towers and are tested there"
TOWER_FLAGS = {"has_attentions": False, "test_resize_embeddings": False}

vision_spec = ModelSpec(
    name="PeerVisionTest",
    config=lambda: AgriClipVisionConfig(**VISION),
    model_classes=(AgriClipVisionModel,),
    base_classes=(AgriClipVisionModel,),
    inputs=image_inputs,
    batch_size=BATCH,
    has_text_modality=False,
    input_embeddings=AgriClipChannelEmbedding,
    flags=TOWER_FLAGS,
    skip={"test_hidden_states_output": HIERARCHICAL},
)
text_spec = ModelSpec(
    name="PeerTextTest",
    config=lambda: AgriClipTextConfig(**TEXT),
    model_classes=(AgriClipTextModel,),
    base_classes=(AgriClipTextModel,),
    inputs=word_inputs,
    batch_size=BATCH,
    seq_length=LENGTH,
)
PeerVisionTest = model_tests(vision_spec)
PeerTextTest = model_tests(text_spec)


def whole_tests(name: str, model_class: type, inputs: Any, labels: Any = None, **options: Any) -> type:
    """The common tests on one of the classes that hold both towers."""
    skip = {"test_hidden_states_output": IN_PARTS, "test_retain_grad_hidden_states_attentions": IN_PARTS}
    spec = ModelSpec(
        name=name,
        config=whole_config,
        model_classes=(model_class,),
        base_classes=(model_class,) if model_class is AgriClipModel else (),
        inputs=inputs,
        labels=labels or (lambda *_: {}),
        batch_size=BATCH,
        composite=True,
        has_text_modality=False,
        config_common_properties=["projection_dim"],
        flags=TOWER_FLAGS,
        skip={**skip, **options.pop("skip", {})},
        **options,
    )
    return model_tests(spec)


PeerModelTest = whole_tests(
    "PeerModelTest",
    AgriClipModel,
    both_inputs,
    vision_tester=vision_spec,
    text_tester=text_spec,
    skip={"test_get_image_features_hidden_states": HIERARCHICAL},
)
PeerPreTrainingTest = whole_tests(
    "PeerPreTrainingTest",
    AgriClipForPreTraining,
    lambda config: {**both_inputs(config), "noise": floats_tensor([BATCH, 25])},
)
PeerSuitabilityTest = whole_tests(
    "PeerSuitabilityTest", AgriClipForSuitability, both_inputs, lambda *_: {"labels": torch.linspace(0, 1, BATCH)}
)
PeerSegmentationTest = whole_tests(
    "PeerSegmentationTest",
    AgriClipForSemanticSegmentation,
    lambda config: {**image_inputs(config), **report_inputs(config, prompts=2)},
    lambda *_: {"labels": torch.ones(BATCH, EDGE, EDGE, dtype=torch.long)},
)
PeerClassificationTest = whole_tests(
    "PeerClassificationTest",
    AgriClipForImageClassification,
    image_inputs,
    lambda *_: {"labels": torch.zeros(BATCH, dtype=torch.long)},
)
