"""What the model classes return."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from .vision_agriclip import AgriClipVisionOutput


@dataclass
class AgriClipOutput(ModelOutput):
    """Output of [`AgriClipModel`].

    Args:
        loss: Contrastive loss, when `return_loss` is set.
        logits_per_image: Scaled similarity (images, reports).
        logits_per_text: Its transpose.
        text_embeds: Unit vectors (reports, P).
        image_embeds: Unit vectors (images, P).
        fused_state: Site token and cells after the report has answered (B, 1 + N, D), when counts match.
        cell_mask: 1 where a cell has a valid pixel (B, N).
        image_valid: 1 where an image has a valid cell at all (B,).
        text_model_output: Output of the report encoder.
        vision_model_output: Output of the vision tower.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    fused_state: Tensor | None = None
    cell_mask: Tensor | None = None
    image_valid: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: AgriClipVisionOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """All outputs, the two towers' as tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class AgriClipPreTrainingOutput(ModelOutput):
    """Output of [`AgriClipForPreTraining`].

    Args:
        loss: Weighted sum of the terms.
        loss_dict: Each raw term by name.
        reconstruction: Predicted pixels of every cell (B, T, N, C, p * p), normalised a patch at a time.
        patch_mask: 1 where a cell was hidden (B, N).
        logits_per_image: Scaled similarity (images, reports).
        text_embeds: Unit vectors (B, P).
        image_embeds: Unit vectors (B, P).
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    reconstruction: Tensor | None = None
    patch_mask: Tensor | None = None
    logits_per_image: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


@dataclass
class AgriClipSuitabilityOutput(ModelOutput):
    """Output of [`AgriClipForSuitability`].

    Args:
        loss: Weighted sum of the terms, when labels are given.
        loss_dict: Each raw term by name.
        logits: Score of suitability (B,).
        probabilities: Probability that the place is suitable (B,); the predicted value for `regression`.
        report_probabilities: The same from the report alone (B,); equal to `probabilities` without an image.
        share: Predicted (median) share of land (B,), for `share`.
        cell_logits: The same a cell (B, N); absent without an image.
        cell_probabilities: (B, N).
        cell_mask: 1 where a cell has a valid pixel (B, N).
        image_valid: 1 where an image has a valid cell (B,); 0 also says that the answer rests on the report alone.
        detection_logits: Score that the field was double-cropped in the image's year (B,), from the image alone.
        fused_state: Site token and cells (B, 1 + N, D).
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    probabilities: Tensor | None = None
    report_probabilities: Tensor | None = None
    share: Tensor | None = None
    cell_logits: Tensor | None = None
    cell_probabilities: Tensor | None = None
    cell_mask: Tensor | None = None
    image_valid: Tensor | None = None
    detection_logits: Tensor | None = None
    fused_state: Tensor | None = None


@dataclass
class AgriClipSegmentationOutput(ModelOutput):
    """Output of [`AgriClipForSemanticSegmentation`].

    Args:
        loss: Cross-entropy over classes, or binary for a single prompt, when labels are given.
        logits: (B, K, H, W).
        pixel_valid: 1 where a pixel has a valid channel (B, H, W).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pixel_valid: Tensor | None = None
