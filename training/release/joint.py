"""One network under all heads, and its loss on each kind of batch.

The heads of several model classes share one pair of towers: what is saved is the union of their weights, from which
`AgriClipModel`, `AgriClipForSuitability`, `AgriClipForSemanticSegmentation` and `AgriClipForPreTraining` each take
their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modeling_agriclip import AgriClipConfig, AgriClipForSuitability
from modeling_agriclip.heads_agriclip import AgriClipPatchDecoder, AgriClipSegmentationHead
from modeling_agriclip.losses_agriclip import alignment_loss, scale_consistency_loss, scale_diversity_loss
from modeling_agriclip.masking_agriclip import hide_patches
from modeling_agriclip.modeling_agriclip import AgriClipForSemanticSegmentation
from training.release.phrases import PhraseTask
from training.release.series import TARGETS

IGNORE = 255
# Weight of each term; `suitability` is a sum of its own, weighed by the configuration.
WEIGHTS = {
    "suitability": 0.3,
    "segmentation": 1.0,
    "codes": 0.5,
    "zero_shot": 0.3,
    "captions": 0.2,
    "phrases": 0.3,
    "reconstruction": 0.1,
    "consistency": 0.1,
    "diversity": 0.01,
    "seasons": 3.0,
    "detection": 0.3,
}
# The Cropland Data Layer is right on some 90 to 95 % of soybean and corn, and on less of grass and wetland.
SMOOTHING = 0.03
# Shares of classes to this power, scaled to a sum of 1, are what the whole image is asked for: mostly its main class.
SHARPNESS = 2.0


class JointModel(nn.Module):
    """Towers and heads.

    Args:
        config: `suitability_likelihood` and the weights of the suitability terms are those of the study.
        classes: Classes that phrases are about.
        codes: Classes of pixels.
    """

    def __init__(self, config: AgriClipConfig, classes: int, codes: int) -> None:
        super().__init__()
        self.config = config
        self.suitability = AgriClipForSuitability(config)
        other = AgriClipForSemanticSegmentation(config)
        self.segmentation_head: AgriClipSegmentationHead = other.segmentation_head
        self.suitability._build_projections(config)
        for part in (self.suitability.visual_projection, self.suitability.text_projection):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
        nn.init.constant_(self.suitability.logit_scale.value, config.logit_scale_init_value)
        self.decoder = AgriClipPatchDecoder(config)
        self.decoder.apply(self.suitability._init_weights)
        # Only here, and then thrown away: they make the pooled image tell the season, phrases their class, and pixels
        # theirs without waiting for words.
        self.season_head = nn.Linear(config.vision_config.hidden_size, TARGETS)
        self.phrase_task = PhraseTask(classes, config.projection_dim)
        self.code_head = nn.Conv2d(config.vision_config.pixel_size, codes, kernel_size=1)

    def forward(self, task: str, batch: dict[str, Tensor], masked: bool = False) -> dict[str, Tensor]:
        """Terms of the loss of one batch, raw.

        Args:
            task: `tiles`, `sites`, `series` or `phrases`.
            batch: Inputs of that task.
            masked: Also hide patches of tiles and predict them.
        """
        if task == "sites":
            return {"suitability": self.suitability(**batch).loss}
        if task == "phrases":
            return {"phrases": self.phrase_task(self.read(batch), batch["classes"])}
        return self._tiles(batch, masked) if task == "tiles" else self._series(batch)

    def read(self, batch: dict[str, Tensor]) -> Tensor:
        """Texts to embeddings (B, P), not normalised."""
        tokens = (batch[name] for name in ("input_ids", "attention_mask", "numeric_values"))
        return self.suitability.text_projection(self.suitability.text_model(*tokens).pooler_output)

    def _image(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Pixels, their validity, channels, ground distance and dates, as the vision tower takes them."""
        names = ("pixel_values", "pixel_mask", "channels", "gsd", "dates")
        return self.suitability.vision_model.prepare(*(batch[name] for name in names))

    def _series(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        names = ("pixel_values", "pixel_mask", "channels", "gsd", "dates")
        pooled = self.suitability.vision_model(**{name: batch[name] for name in names}).pooler_output
        seasons = nn.functional.smooth_l1_loss(self.season_head(pooled).float(), batch["targets"], beta=0.1)
        twice = self.suitability.detection_head(pooled)[:, 0].float()
        detection = nn.functional.binary_cross_entropy_with_logits(twice, batch["detection_labels"])
        return {"seasons": seasons, "detection": detection}

    def _tiles(self, batch: dict[str, Tensor], masked: bool) -> dict[str, Tensor]:
        towers, count = self.suitability, int(batch["prompts"])
        inputs = self._image(batch)
        pixels, valid, channels, gsd, dates = inputs
        vision = towers.vision_model(*inputs)
        texts = self.read(batch)
        prompts, captions = texts[:count], texts[count:]
        seen = (vision.last_hidden_state, vision.pooler_output, pixels, valid, channels)
        features, keep = self.segmentation_head.pixels(*seen)
        logits = self.segmentation_head.compare(features, keep, prompts.expand(len(pixels), -1, -1))
        labels, codes = (batch[name].masked_fill(~keep[:, 0], IGNORE) for name in ("labels", "codes"))
        terms = {"segmentation": _pixel_loss(logits, labels), "codes": _pixel_loss(self.code_head(features), codes)}
        unit = nn.functional.normalize
        image = unit(towers.visual_projection(vision.pooler_output).float(), dim=-1)
        scale = towers.logit_scale()
        terms["zero_shot"] = _image_loss(image @ unit(prompts.float(), dim=-1).t() * scale, labels)
        terms["captions"] = alignment_loss(image, unit(captions.float(), dim=-1), scale, valid=vision.image_valid)
        terms["consistency"] = scale_consistency_loss(vision.scale_states, vision.scale_mask)
        terms["diversity"] = scale_diversity_loss(vision.scale_states, vision.scale_mask)
        if masked:
            hidden = hide_patches(towers.vision_model, pixels, valid, self.config.mask_ratio, None)
            part = towers.vision_model(pixels, hidden.seen, channels, gsd, dates)
            metres = gsd * self.config.vision_config.patch_size
            cells = (part.last_hidden_state, hidden.hidden, hidden.present, metres, dates, channels, hidden.grid)
            terms["reconstruction"] = hidden.loss(self.decoder(*cells))
        return terms

    def segment(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of the pixels of one batch of tiles, for the head alone: the towers are asked without gradients."""
        towers, count = self.suitability, int(batch["prompts"])
        with torch.no_grad():
            pixels, valid, channels, *_ = inputs = self._image(batch)
            vision = towers.vision_model(*inputs)
            names = ("input_ids", "attention_mask", "numeric_values")
            prompts = self.read({name: batch[name][:count] for name in names})
        seen = (vision.last_hidden_state, vision.pooler_output, pixels, valid, channels)
        features, keep = self.segmentation_head.pixels(*seen)
        logits = self.segmentation_head.compare(features, keep, prompts.expand(len(pixels), -1, -1))
        return _pixel_loss(logits, batch["labels"].masked_fill(~keep[:, 0], IGNORE))

    def weights_to_save(self) -> dict[str, Tensor]:
        """Weights by the names that the model classes know."""
        own = dict(self.suitability.state_dict())
        for part in ("segmentation_head", "decoder"):
            own |= {f"{part}.{name}": value for name, value in getattr(self, part).state_dict().items()}
        return own

    def segmenter(self) -> Any:
        """The segmentation model on these very weights."""
        model = AgriClipForSemanticSegmentation(self.config)
        model.vision_model, model.text_model = self.suitability.vision_model, self.suitability.text_model
        model.text_projection = self.suitability.text_projection
        model.segmentation_head = self.segmentation_head
        return model


def total(terms: dict[str, Tensor]) -> Tensor:
    """Weighted sum of terms."""
    return torch.stack([WEIGHTS.get(name, 1.0) * term for name, term in terms.items()]).sum()


def _pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over prompts, with smoothed labels; 0 where nothing is labelled."""
    known = labels != IGNORE
    values = nn.functional.cross_entropy(
        logits.float(), labels.masked_fill(~known, 0), reduction="none", label_smoothing=SMOOTHING
    )
    return (values * known).sum() / known.sum().clamp(min=1)


def _image_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of whole images (B, K) against the sharpened shares of the classes in their labels (B, H, W)."""
    count = logits.shape[1]
    shares = torch.stack([(labels == k).flatten(1).sum(dim=1) for k in range(count)], dim=1).float()
    seen = shares.sum(dim=1) > 0
    target = (shares / shares.sum(dim=1, keepdim=True).clamp(min=1)) ** SHARPNESS
    target = target / target.sum(dim=1, keepdim=True).clamp(min=1e-6)
    values = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    return (values * seen).sum() / seen.sum().clamp(min=1)
