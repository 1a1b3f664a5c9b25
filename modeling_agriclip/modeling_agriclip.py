"""The AgriCLIP model classes: embeddings and fusion, pre-training, suitability, segmentation, classification.

Every class is built from the same named parts (`vision_model`, `text_model`, `fuser`), so one folder of weights
serves them all. Losses are computed only when labels ask for them, and a term of weight 0 not at all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults

from .base_agriclip import AgriClipPreTrainedModel
from .configuration_agriclip import AgriClipConfig
from .fusion_agriclip import AgriClipFuser
from .heads_agriclip import (
    AgriClipLanguageHead,
    AgriClipLogitScale,
    AgriClipPatchDecoder,
    AgriClipSegmentationHead,
    AgriClipSuitabilityHead,
)
from .losses_agriclip import (
    alignment_loss,
    binomial_loss,
    censored_share_loss,
    reconstruction_loss,
    scale_consistency_loss,
    scale_diversity_loss,
    squared_error_loss,
)
from .report_agriclip import AgriClipTextModel
from .vision_agriclip import AgriClipVisionModel, AgriClipVisionOutput


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


class _AgriClipTwoTowers(AgriClipPreTrainedModel):
    """The two towers, their fusion and the shared space: what several classes have in common."""

    def _build_towers(self, config: AgriClipConfig) -> None:
        self.vision_model = AgriClipVisionModel._from_config(config.vision_config)
        self.text_model = AgriClipTextModel._from_config(config.text_config)

    def _build_projections(self, config: AgriClipConfig) -> None:
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = AgriClipLogitScale(config.logit_scale_init_value)

    def get_input_embeddings(self) -> nn.Module:
        """The report encoder's word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the report encoder's word embeddings."""
        self.text_model.set_input_embeddings(value)

    def _similarity(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled image (B, D) and report (R, E) to unit embeddings and scaled similarity (B, R)."""
        image_embeds = nn.functional.normalize(self.visual_projection(image), dim=-1)
        text_embeds = nn.functional.normalize(self.text_projection(text), dim=-1)
        return image_embeds, text_embeds, image_embeds @ text_embeds.t() * self.logit_scale()

    def _scale_terms(self, vision: AgriClipVisionOutput) -> dict[str, Tensor]:
        """Consistency and diversity, as far as their weights are not 0."""
        terms = {}
        if self.config.consistency_weight:
            terms["consistency"] = scale_consistency_loss(vision.scale_states, vision.scale_mask)
        if self.config.diversity_weight:
            terms["diversity"] = scale_diversity_loss(vision.scale_states, vision.scale_mask)
        return terms

    def _weigh(self, terms: dict[str, Tensor]) -> Tensor:
        """Sum of the terms, each times the configuration's `<name>_weight`; `prediction` has weight 1."""
        weighted = [getattr(self.config, f"{name}_weight", 1.0) * term for name, term in terms.items()]
        return torch.stack(weighted).sum()


def _queries(vision: AgriClipVisionOutput) -> Tensor:
    """Site token and cells (B, 1 + N, D)."""
    return torch.cat([vision.pooler_output.unsqueeze(1), vision.last_hidden_state], dim=1)


def _report_features(text: BaseModelOutputWithPooling) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, E) and pooled report (B, E)."""
    tokens, summary = text.last_hidden_state, text.pooler_output
    assert tokens is not None and summary is not None
    return tokens, summary


class AgriClipModel(_AgriClipTwoTowers):
    """Imagery and reports to embeddings, their similarity, and cells that have heard the report."""

    main_input_name = "input_ids"

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__(config)
        self._build_towers(config)
        self.fuser = AgriClipFuser._from_config(config.fuser_config)
        self._build_projections(config)
        self.post_init()

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        numeric_values: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Reports (B, L) to tokens (B, L, E) and, as `pooler_output`, projected embeddings (B, P), not normalised."""
        output = self.text_model(input_ids, attention_mask, numeric_values, **kwargs)
        output.pooler_output = self.text_projection(output.pooler_output)
        return output

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        channels: Tensor | None = None,
        gsd: Tensor | None = None,
        dates: Tensor | None = None,
        **kwargs: Any,
    ) -> AgriClipVisionOutput:
        """Images to cells (B, N, D) and, as `pooler_output`, projected embeddings (B, P), not normalised."""
        output = self.vision_model(pixel_values, pixel_mask, channels, gsd, dates, **kwargs)
        output.pooler_output = self.visual_projection(output.pooler_output)
        return output

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        numeric_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        channels: Tensor | None = None,
        gsd: Tensor | None = None,
        dates: Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Any,
    ) -> AgriClipOutput:
        """Compare images with reports and fuse them.

        Args:
            input_ids: Report tokens (R, L).
            pixel_values: Standardised pixels (B, T, C, H, W) or (B, C, H, W).
            attention_mask: 1 = a token (R, L).
            numeric_values: Value at each `[NUM]` token (R, L).
            pixel_mask: 1 = valid, like `pixel_values`.
            channels: Channel descriptions (B, C, 4).
            gsd: Ground sample distance in metres (B,).
            dates: Days from 1 January (B, T).
            return_loss: Return the contrastive loss; the reports must then be the images' own, in order.
            **kwargs: Passed on to both towers.
        """
        vision = self.vision_model(pixel_values, pixel_mask, channels, gsd, dates, **kwargs)
        text = self.text_model(input_ids, attention_mask, numeric_values, **kwargs)
        image_embeds, text_embeds, logits = self._similarity(vision.pooler_output, text.pooler_output)
        fused = None
        # Zero-shot pipelines send n reports for one image: there is no pair to fuse then.
        if image_embeds.shape[0] == text_embeds.shape[0]:
            mask = torch.ones_like(text.last_hidden_state[..., 0]) if attention_mask is None else attention_mask
            fused = self.fuser(_queries(vision), text.last_hidden_state, mask, text.pooler_output)
        return AgriClipOutput(
            loss=alignment_loss(logits) if return_loss else None,
            logits_per_image=logits,
            logits_per_text=logits.t(),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            fused_state=fused,
            cell_mask=vision.cell_mask,
            image_valid=vision.image_valid,
            text_model_output=text,
            vision_model_output=vision,
        )


class AgriClipForPreTraining(_AgriClipTwoTowers):
    """Masked image modelling, image-text contrast, scale consistency and diversity, and masked language by option."""

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__(config)
        self._build_towers(config)
        self.fuser = AgriClipFuser._from_config(config.fuser_config)
        self._build_projections(config)
        self.decoder = AgriClipPatchDecoder(config)
        if config.use_masked_language:
            self.language_head = AgriClipLanguageHead(config)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        numeric_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        channels: Tensor | None = None,
        gsd: Tensor | None = None,
        dates: Tensor | None = None,
        noise: Tensor | None = None,
        language_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> AgriClipPreTrainingOutput:
        """Hide patches, encode the rest with the report, and predict what was hidden.

        Args:
            pixel_values: Standardised pixels (B, T, C, H, W) or (B, C, H, W).
            input_ids: The images' own reports (B, L).
            attention_mask: 1 = a token (B, L).
            numeric_values: Value at each `[NUM]` token (B, L).
            pixel_mask: 1 = valid, like `pixel_values`.
            channels: Channel descriptions (B, C, 4).
            gsd: Ground sample distance in metres (B,).
            dates: Days from 1 January (B, T).
            noise: Random numbers (B, N) whose smallest hide their cell; drawn if None.
            language_labels: Tokens to predict (B, L), -100 elsewhere.
            **kwargs: Passed on to both towers.
        """
        tower = self.vision_model
        pixels, valid, channels, gsd, dates = tower.prepare(pixel_values, pixel_mask, channels, gsd, dates)
        patch = self.config.vision_config.patch_size
        grid = (-(-pixels.shape[-2] // patch), -(-pixels.shape[-1] // patch))
        weights = tower.embeddings.patches(valid)  # (B, T, h, w, C, pp)
        present = weights.flatten(4).any(dim=-1).any(dim=1).flatten(1)  # (B, N)
        hidden = self._choose_hidden(present, noise)
        visible = (~hidden).view(-1, 1, 1, *grid).to(valid.dtype)
        visible = visible.repeat_interleave(patch, dim=-2).repeat_interleave(patch, dim=-1)
        seen = valid * visible[..., : valid.shape[-2], : valid.shape[-1]]

        vision = tower(pixels, seen, channels, gsd, dates, **kwargs)
        text = self.text_model(input_ids, attention_mask, numeric_values, **kwargs)
        image_embeds, text_embeds, logits = self._similarity(vision.pooler_output, text.pooler_output)
        mask = torch.ones_like(text.last_hidden_state[..., 0]) if attention_mask is None else attention_mask
        fused = self.fuser(_queries(vision), text.last_hidden_state, mask, text.pooler_output)
        predicted = self.decoder(fused[:, 1:], hidden, present, gsd * patch, dates, channels, grid)

        terms = {}
        if self.config.reconstruction_weight:
            weights = weights.flatten(2, 3)  # (B, T, N, C, pp)
            target = _normalise_patches(tower.embeddings.patches(pixels).flatten(2, 3), weights)
            terms["reconstruction"] = reconstruction_loss(predicted, target, weights * hidden[:, None, :, None, None])
        if self.config.alignment_weight:
            terms["alignment"] = alignment_loss(logits)
        terms.update(self._scale_terms(vision))
        if self.config.use_masked_language and language_labels is not None:
            words = self.language_head(text.last_hidden_state, self.get_input_embeddings().weight)
            words = words.flatten(0, 1).float()
            terms["masked_language"] = nn.functional.cross_entropy(words, language_labels.flatten())
        return AgriClipPreTrainingOutput(
            loss=self._weigh(terms),
            loss_dict={name: term.detach() for name, term in terms.items()},
            reconstruction=predicted,
            patch_mask=hidden.long(),
            logits_per_image=logits,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )

    def _choose_hidden(self, present: Tensor, noise: Tensor | None) -> Tensor:
        """Hide `mask_ratio` of the cells that exist, those with the least noise; (B, N) bool."""
        noise = torch.rand(present.shape, device=present.device) if noise is None else noise.to(present.device)
        noise = noise.float().masked_fill(~present, torch.inf)
        rank = noise.argsort(dim=1).argsort(dim=1)
        return (rank < (present.sum(dim=1, keepdim=True) * self.config.mask_ratio).long()) & present


def _normalise_patches(patches: Tensor, valid: Tensor) -> Tensor:
    """Zero mean and unit variance over the valid pixels and channels of each dated patch (B, T, N, C, pp)."""
    count = valid.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    mean = (patches * valid).sum(dim=(-2, -1), keepdim=True) / count
    variance = ((patches - mean).square() * valid).sum(dim=(-2, -1), keepdim=True) / count
    return (patches - mean) / (variance + 1e-4).sqrt()


class AgriClipForSuitability(_AgriClipTwoTowers):
    """Probability that a place, and each of its cells, is suitable; from report, imagery, or either alone.

    The image's effect is a term added to the score that the report alone gives, and small unless the labels ask for
    more. So another climate always moves the answer: an image that gives today's answer away cannot silence it.
    """

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__(config)
        self._build_towers(config)
        self.fuser = AgriClipFuser._from_config(config.fuser_config)
        self.suitability_head = AgriClipSuitabilityHead(config)
        self.image_effect_head = AgriClipSuitabilityHead(config, additive=True)
        if config.use_detection_head:
            self.detection_head = nn.Linear(config.vision_config.hidden_size, 1)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        numeric_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        channels: Tensor | None = None,
        gsd: Tensor | None = None,
        dates: Tensor | None = None,
        labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        detection_labels: Tensor | None = None,
        text_model_output: BaseModelOutputWithPooling | None = None,
        vision_model_output: AgriClipVisionOutput | None = None,
        **kwargs: Any,
    ) -> AgriClipSuitabilityOutput:
        """Predict suitability.

        Args:
            pixel_values: Standardised pixels (B, T, C, H, W) or (B, C, H, W); None drops the image.
            input_ids: Reports (B, L); None drops the report.
            attention_mask: 1 = a token (B, L).
            numeric_values: Value at each `[NUM]` token (B, L).
            pixel_mask: 1 = valid, like `pixel_values`.
            channels: Channel descriptions (B, C, 4).
            gsd: Ground sample distance in metres (B,).
            dates: Days from 1 January (B, T).
            labels: Share or presence of a place (B,), or of each cell (B, N); NaN = no label.
            label_weights: Weight of each label, such as its number of trials; same shape.
            detection_labels: 1 where the field was double-cropped in the image's year (B,); NaN = no label.
            text_model_output: What the report encoder returned before, so that a report is encoded once.
            vision_model_output: What the vision tower returned before, so that an image is encoded once.
            **kwargs: Passed on to both towers.

        Raises:
            ValueError: There is neither an image nor a report.
        """
        text, vision = text_model_output, vision_model_output
        if text is None and input_ids is not None:
            text = self.text_model(input_ids, attention_mask, numeric_values, **kwargs)
        if vision is None and pixel_values is not None:
            vision = self.vision_model(pixel_values, pixel_mask, channels, gsd, dates, **kwargs)
        report: tuple[Tensor, ...] = ()
        if text is not None:
            tokens, summary = _report_features(text)
            mask = torch.ones_like(tokens[..., 0]) if attention_mask is None else attention_mask
            report = (tokens, mask, summary)
            batch = tokens.shape[0]
        elif vision is not None:
            batch = vision.pooler_output.shape[0]
        else:
            raise ValueError("Give an image (`pixel_values`), a report (`input_ids`), or both.")

        empty_site = self.vision_model.pooling.empty.repeat(batch, 1).unsqueeze(1)
        fused = self.fuser(empty_site, *report)
        parameters = alone = self.suitability_head(fused)  # (B, 1, 1 or 2)
        effect = None
        if vision is not None:
            fused = self.fuser(_queries(vision), *report)
            keep = torch.cat([vision.image_valid.unsqueeze(1), vision.cell_mask], dim=1).to(alone.dtype)
            effect = self.image_effect_head(fused) * keep.unsqueeze(-1)  # (B, 1 + N, 1 or 2)
            parameters = alone + effect
        scores, probabilities = self.suitability_head.interpret(parameters)
        detection = None
        if self.config.use_detection_head and vision is not None:
            detection = self.detection_head(vision.pooler_output)[:, 0]
        terms = self._prediction_terms(parameters, alone, effect, labels, label_weights, vision)
        if detection_labels is not None and detection is not None and self.config.detection_weight:
            terms["detection"] = binomial_loss(detection, detection_labels)
        if terms and vision is not None:
            terms.update(self._scale_terms(vision))
        share = None
        if self.config.suitability_likelihood == "share":
            share = self.suitability_head.split(parameters[:, 0])[0].exp().clamp(max=1.0)
        image_valid = torch.zeros_like(fused[:, 0, 0], dtype=torch.long) if vision is None else vision.image_valid
        return AgriClipSuitabilityOutput(
            loss=self._weigh(terms) if terms else None,
            loss_dict={name: term.detach() for name, term in terms.items()} or None,
            logits=scores[:, 0],
            probabilities=probabilities[:, 0],
            report_probabilities=self.suitability_head.interpret(alone)[1][:, 0],
            share=share,
            cell_logits=None if vision is None else scores[:, 1:] * vision.cell_mask,
            cell_probabilities=None if vision is None else probabilities[:, 1:] * vision.cell_mask,
            cell_mask=None if vision is None else vision.cell_mask,
            image_valid=image_valid,
            detection_logits=detection,
            fused_state=fused,
        )

    def _prediction_terms(
        self,
        parameters: Tensor,
        alone: Tensor,
        effect: Tensor | None,
        labels: Tensor | None,
        weights: Tensor | None,
        vision: AgriClipVisionOutput | None,
    ) -> dict[str, Tensor]:
        """The prediction with the image, the one without it, and the price of their difference."""
        if labels is None:
            return {}
        of_cells = labels.dim() == 2
        if of_cells:
            if vision is None:
                raise ValueError("Labels a cell need an image: give `pixel_values`, or one label a place.")
            known = vision.cell_mask.to(parameters.dtype)
            weights = known if weights is None else weights * known
        terms = {"prediction": self._likelihood(parameters[:, 1:] if of_cells else parameters[:, 0], labels, weights)}
        if effect is not None and self.config.report_only_weight:
            report_alone = alone.expand(-1, labels.shape[1], -1) if of_cells else alone[:, 0]
            terms["report_only"] = self._likelihood(report_alone, labels, weights)
        if effect is not None and self.config.image_effect_weight:
            terms["image_effect"] = effect.float().square().mean()
        return terms

    def _likelihood(self, parameters: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Loss of parameters (..., 1 or 2) under the configured likelihood."""
        if self.config.suitability_likelihood == "share":
            mean, log_sd = self.suitability_head.split(parameters)
            return censored_share_loss(mean, log_sd, labels, self.config.share_floor, weights)
        if self.config.suitability_likelihood == "regression":
            return squared_error_loss(parameters[..., 0], labels, weights)
        return binomial_loss(parameters[..., 0], labels, weights)


class AgriClipForSemanticSegmentation(_AgriClipTwoTowers):
    """Segmentation by language: every pixel against the embedding of any prompt."""

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__(config)
        self._build_towers(config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.segmentation_head = AgriClipSegmentationHead(config)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        numeric_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        channels: Tensor | None = None,
        gsd: Tensor | None = None,
        dates: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> AgriClipSegmentationOutput:
        """Score each pixel for each prompt.

        Args:
            pixel_values: Standardised pixels (B, T, C, H, W) or (B, C, H, W).
            input_ids: Prompts (K, L), the same for all images, or (B, K, L), each image's own.
            attention_mask: 1 = a token, like `input_ids`.
            numeric_values: Value at each `[NUM]` token, like `input_ids`.
            pixel_mask: 1 = valid, like `pixel_values`.
            channels: Channel descriptions (B, C, 4).
            gsd: Ground sample distance in metres (B,).
            dates: Days from 1 January (B, T).
            labels: Index of the prompt at each pixel (B, H, W), 255 = ignore; 0 or 1 for a single prompt.
            **kwargs: Passed on to both towers.

        Raises:
            ValueError: `pixel_values` or `input_ids` is missing.
        """
        if pixel_values is None or input_ids is None:
            missing = "pixel_values" if pixel_values is None else "input_ids"
            raise ValueError(f"`{missing}` is required: segmentation compares an image with prompts.")
        own = input_ids.dim() == 3
        flat = [x.flatten(0, 1) if own and x is not None else x for x in (input_ids, attention_mask, numeric_values)]
        pixels, valid, channels, gsd, dates = self.vision_model.prepare(pixel_values, pixel_mask, channels, gsd, dates)
        vision = self.vision_model(pixels, valid, channels, gsd, dates, **kwargs)
        prompts = self.text_projection(self.text_model(*flat, **kwargs).pooler_output)
        batch = vision.last_hidden_state.shape[0]
        prompts = prompts.unflatten(0, (batch, -1)) if own else prompts.expand(batch, -1, -1)
        logits, keep = self.segmentation_head(
            vision.last_hidden_state, vision.pooler_output, pixels, valid, channels, prompts
        )
        loss = None if labels is None else _segmentation_loss(logits, labels, keep)
        return AgriClipSegmentationOutput(loss=loss, logits=logits, pixel_valid=keep.long())


def _segmentation_loss(logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Cross-entropy over prompts, binary for one, over labelled valid pixels; 0 where there is none."""
    known = keep & (labels != 255)
    if logits.shape[1] == 1:
        values = nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], labels.clamp(0, 1).to(logits.dtype), reduction="none"
        )
    else:
        values = nn.functional.cross_entropy(logits, labels.masked_fill(~known, 0).long(), reduction="none")
    return (values * known).sum() / known.sum().clamp(min=1)


class AgriClipForImageClassification(AgriClipPreTrainedModel):
    """The vision tower with a linear classifier on the pooled image."""

    input_modalities = ["image"]

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__(config)
        self.vision_model = AgriClipVisionModel._from_config(config.vision_config)
        self.classifier = nn.Linear(config.vision_config.hidden_size, config.num_labels or 0)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The vision tower's channel embedding."""
        return self.vision_model.get_input_embeddings()

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        channels: Tensor | None = None,
        gsd: Tensor | None = None,
        dates: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: Standardised pixels (B, T, C, H, W) or (B, C, H, W).
            pixel_mask: 1 = valid, like `pixel_values`.
            channels: Channel descriptions (B, C, 4).
            gsd: Ground sample distance in metres (B,).
            dates: Days from 1 January (B, T).
            labels: Class indices (B,), or (B, K) for several labels an image, or values for regression.
            **kwargs: Passed on to the vision tower.
        """
        vision = self.vision_model(pixel_values, pixel_mask, channels, gsd, dates, **kwargs)
        logits = self.classifier(vision.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=vision.hidden_states)


__all__ = [
    "AgriClipForImageClassification",
    "AgriClipForPreTraining",
    "AgriClipForSemanticSegmentation",
    "AgriClipForSuitability",
    "AgriClipModel",
    "AgriClipPreTrainedModel",
    "AgriClipTextModel",
    "AgriClipVisionModel",
]
