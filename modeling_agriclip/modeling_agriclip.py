"""The AgriCLIP model classes: embeddings and fusion, pre-training, suitability, segmentation, classification.

Every class is built from the same named parts (`vision_model`, `text_model`, `fuser`), so one folder of weights
serves them all. Losses are computed only when labels ask for them, and a term of weight 0 not at all.
"""

import math
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .base_agriclip import AgriClipPreTrainedModel
from .clip_agriclip import AgriClipLogitScaleUncapped, start_from_clip
from .configuration_agriclip import AgriClipConfig
from .fusion_agriclip import AgriClipFuser
from .gaussian_process_agriclip import AgriClipGaussianProcess, AgriClipNeighbours
from .heads_agriclip import (
    AgriClipLanguageHead,
    AgriClipLogitBias,
    AgriClipLogitScale,
    AgriClipPatchDecoder,
    AgriClipSegmentationHead,
    AgriClipSuitabilityHead,
)
from .losses_agriclip import (
    alignment_loss,
    binomial_loss,
    censored_share_loss,
    positive_unlabelled_loss,
    scale_consistency_loss,
    scale_diversity_loss,
    squared_error_loss,
    weighted_mean,
)
from .masking_agriclip import HiddenPatches, hide_patches
from .outputs_agriclip import (
    AgriClipOutput,
    AgriClipPreTrainingOutput,
    AgriClipSegmentationOutput,
    AgriClipSuitabilityOutput,
)
from .report_agriclip import AgriClipTextModel
from .scope_agriclip import current_scope
from .vision_agriclip import AgriClipVisionModel, AgriClipVisionOutput


class _AgriClipTwoTowers(AgriClipPreTrainedModel):
    """The two towers, their fusion and the shared space: what several classes have in common."""

    decoder: AgriClipPatchDecoder

    def _build_towers(self, config: AgriClipConfig) -> None:
        self.vision_model = AgriClipVisionModel._from_config(config.vision_config)
        self.text_model = AgriClipTextModel._from_config(config.text_config)

    def _build_projections(self, config: AgriClipConfig) -> None:
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self._build_text_projection(config)
        scale = AgriClipLogitScale if config.logit_scale_capped else AgriClipLogitScaleUncapped
        self.logit_scale = scale(config.logit_scale_init_value)
        self.logit_bias: AgriClipLogitBias | None = None
        if config.alignment_loss == "sigmoid":
            self.logit_bias = AgriClipLogitBias(float(config.logit_bias_init_value))

    def _build_text_projection(self, config: AgriClipConfig) -> None:
        sizes = (config.text_config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(*sizes, bias=config.text_projection_bias)

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
        logits = image_embeds @ text_embeds.t() * self.logit_scale()
        return image_embeds, text_embeds, logits if self.logit_bias is None else logits + self.logit_bias()

    def _scale_terms(self, vision: AgriClipVisionOutput) -> dict[str, Tensor]:
        """Consistency and diversity, as far as their weights are not 0."""
        terms = {}
        if self.config.consistency_weight:
            terms["consistency"] = scale_consistency_loss(vision.scale_states, vision.scale_mask)
        if self.config.diversity_weight:
            terms["diversity"] = scale_diversity_loss(vision.scale_states, vision.scale_mask)
        return terms

    def _alignment_term(
        self, image: Tensor, text: Tensor, image_valid: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """Contrast of unit embeddings (B, P) of images and of their own reports."""
        bias = None if self.logit_bias is None else self.logit_bias()
        width = float(self.config.alignment_key_width)
        return alignment_loss(image, text, self.logit_scale(), bias, image_valid, keys, width)

    def _reconstruct(
        self, hidden: HiddenPatches, cells: Tensor, gsd: Tensor, dates: Tensor, channels: Tensor
    ) -> Tensor:
        """Fused cells of what was seen (B, N, D) to the pixels of every cell (B, T, N, C, p * p)."""
        metres = gsd * self.config.vision_config.patch_size
        return self.decoder(cells, hidden.hidden, hidden.present, metres, dates, channels, hidden.grid)

    def _weigh(self, terms: dict[str, Tensor]) -> Tensor:
        """Sum of the terms, each times the configuration's `<name>_weight`; `prediction` has weight 1."""
        weighted = [getattr(self.config, f"{name}_weight", 1.0) * term for name, term in terms.items()]
        return torch.stack(weighted).sum()


def _queries(vision: AgriClipVisionOutput) -> Tensor:
    """Site token and cells (B, 1 + N, D)."""
    return torch.cat([vision.pooler_output.unsqueeze(1), vision.last_hidden_state], dim=1)


def _report(text: BaseModelOutputWithPooling | None, attention_mask: Tensor | None) -> tuple[Tensor, ...]:
    """Tokens (B, L, E), their mask (B, L) and the pooled report (B, E), as the fuser takes them; () without one."""
    if text is None:
        return ()
    tokens, summary = text.last_hidden_state, text.pooler_output
    assert tokens is not None and summary is not None
    return tokens, torch.ones_like(tokens[..., 0]) if attention_mask is None else attention_mask, summary


class AgriClipModel(_AgriClipTwoTowers):
    """Imagery and reports to embeddings, their similarity, and cells that have heard the report."""

    main_input_name = "input_ids"

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__(config)
        self._build_towers(config)
        self.fuser = AgriClipFuser._from_config(config.fuser_config)
        self._build_projections(config)
        self.post_init()

    @classmethod
    def from_clip(
        cls,
        source: str | PathLike[str] | PreTrainedModel,
        num_scales: int = 3,
        text_positions: int | None = 248,
        number_token_id: int | None = None,
        **overrides: Any,
    ) -> "AgriClipModel":
        """Start from a CLIP or SigLIP checkpoint: its two transformers, its projections and its scale.

        At one scale, embeddings and similarities are the checkpoint's, for pixels standardised as its own processor
        does (`image_mean` and `image_std` of [`AgriClipImageProcessor`]). Texts for CLIP may be padded to any length;
        those for SigLIP to 64 tokens without an attention mask, as it was trained. Bands that are not red, green or
        blue, further dates, further scales and numbers start near to what the checkpoint would make of them.

        Args:
            source: Folder, name on the Hub, or a loaded `CLIPModel` or `SiglipModel`.
            num_scales: Resolutions of the pyramid.
            text_positions: Longest text in tokens: positions after the twentieth are stretched to it, and texts of
                more than 20 tokens read differently at first. None keeps the checkpoint's length and its reading.
            number_token_id: Id of `[NUM]`; by default the first free one, which a tokenizer of the checkpoint gives
                it when `AgriClipProcessor` adds it.
            **overrides: Fields of [`AgriClipConfig`]; a dict for a sub-configuration is merged into what follows from
                the checkpoint.

        Raises:
            OSError: There is no checkpoint at `source`.
            ValueError: It is neither CLIP nor SigLIP, or of a form that cannot be taken.
        """
        options = (num_scales, text_positions, number_token_id)
        model: AgriClipModel = start_from_clip(cls, source, *options, **overrides)
        return model

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
            fused = self.fuser(_queries(vision), *_report(text, attention_mask))
        return AgriClipOutput(
            loss=self._alignment_term(image_embeds, text_embeds, vision.image_valid) if return_loss else None,
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
        report_keys: Tensor | None = None,
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
            report_keys: What tells reports apart (B, K), such as standardised numbers; reports with near keys are no
                strangers to each other's images.
            **kwargs: Passed on to both towers.
        """
        tower = self.vision_model
        pixels, valid, channels, gsd, dates = tower.prepare(pixel_values, pixel_mask, channels, gsd, dates)
        hidden = hide_patches(tower, pixels, valid, self.config.mask_ratio, noise)
        vision = tower(pixels, hidden.seen, channels, gsd, dates, **kwargs)
        text = self.text_model(input_ids, attention_mask, numeric_values, **kwargs)
        image_embeds, text_embeds, logits = self._similarity(vision.pooler_output, text.pooler_output)
        fused = self.fuser(_queries(vision), *_report(text, attention_mask))
        predicted = None
        terms = {}
        if self.config.reconstruction_weight:
            predicted = self._reconstruct(hidden, fused[:, 1:], gsd, dates, channels)
            terms["reconstruction"] = hidden.loss(predicted)
        if self.config.alignment_weight:
            terms["alignment"] = self._alignment_term(image_embeds, text_embeds, vision.image_valid, report_keys)
        terms.update(self._scale_terms(vision))
        if self.config.use_masked_language and self.config.masked_language_weight and language_labels is not None:
            terms["masked_language"] = self._masked_language_term(text.last_hidden_state, language_labels)
        return AgriClipPreTrainingOutput(
            loss=self._weigh(terms),
            loss_dict={name: term.detach() for name, term in terms.items()},
            reconstruction=predicted,
            patch_mask=hidden.hidden.long(),
            logits_per_image=logits,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )

    def _masked_language_term(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the words that were masked; tokens (B, L, E), labels (B, L) with -100 elsewhere."""
        words = self.language_head(tokens, self.get_input_embeddings().weight)
        values = nn.functional.cross_entropy(words.flatten(0, 1).float(), labels.flatten(), reduction="none")
        return weighted_mean(values, (labels.flatten() != -100).float())


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
        # A head that no term of the objective reaches would stall processes that wait for its gradient.
        if config.use_pretraining_heads and config.alignment_weight:
            self._build_projections(config)
        if config.use_pretraining_heads and config.reconstruction_weight:
            self.decoder = AgriClipPatchDecoder(config)
        if config.use_detection_head:
            self.detection_head = nn.Linear(config.vision_config.hidden_size, 1)
        if config.gp_places:
            self.gaussian_process = AgriClipGaussianProcess(config)
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
        noise: Tensor | None = None,
        report_keys: Tensor | None = None,
        attacked_pixel_values: Tensor | None = None,
        attacked_numeric_values: Tensor | None = None,
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
            noise: Random numbers (B, N) whose smallest hide their cell from masked image modelling; drawn if None.
            report_keys: What tells reports apart (B, K), for their alignment with images.
            attacked_pixel_values: `pixel_values` as an attack left them, for the adversarial term (F20).
            attacked_numeric_values: `numeric_values` as an attack left them.
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
        if text is None and vision is None:
            raise ValueError("Give an image (`pixel_values`), a report (`input_ids`), or both.")
        report = _report(text, attention_mask)
        parameters, alone, effect, fused = self._answer(vision, report)
        scores, probabilities = self.suitability_head.interpret(parameters)
        report_scores, report_probabilities = self.suitability_head.interpret(alone)
        share: Any = None
        if self.config.suitability_likelihood == "share":
            share = self.suitability_head.split(parameters[:, 0])[0].exp()
        if self.config.gp_places and text is not None:
            near, report_near = self.gaussian_process(text, attention_mask, vision)
            scores, probabilities = self._with_neighbours(scores, near)
            _, report_probabilities = self._with_neighbours(report_scores, report_near)
            floor = self.config.share_floor
            together = (((share + floor).log() + near.mean) / 2).exp() - floor
            share = torch.where(near.speaks, together.clamp(min=0.0), share)
        detection = None
        if self.config.use_detection_head and vision is not None:
            detection = self.detection_head(vision.pooler_output)[:, 0]
        terms = self._prediction_terms(parameters, alone, effect, labels, label_weights, vision)
        if detection_labels is not None and detection is not None and self.config.detection_weight:
            terms["detection"] = binomial_loss(detection, detection_labels)
        if terms and vision is not None:
            terms.update(self._scale_terms(vision))
            if self.config.use_pretraining_heads and pixel_values is not None:
                image = (pixel_values, pixel_mask, channels, gsd, dates)
                terms.update(self._self_supervised_terms(vision, report, image, noise, report_keys, **kwargs))
        if labels is not None and self.config.adversarial_weight and attacked_pixel_values is not None:
            seen = self.vision_model(attacked_pixel_values, pixel_mask, channels, gsd, dates, **kwargs)
            if input_ids is not None:
                text = self.text_model(input_ids, attention_mask, attacked_numeric_values, **kwargs)
            attacked = self._answer(seen, _report(text, attention_mask))[0]
            terms["adversarial"] = self._prediction_term(attacked, labels, label_weights, vision)
        image_valid = torch.zeros_like(fused[:, 0, 0], dtype=torch.long) if vision is None else vision.image_valid
        return AgriClipSuitabilityOutput(
            loss=self._weigh(terms) if terms else None,
            loss_dict={name: term.detach() for name, term in terms.items()} or None,
            logits=scores[:, 0],
            probabilities=probabilities[:, 0],
            report_probabilities=report_probabilities[:, 0],
            share=None if share is None else share.clamp(max=1.0),
            cell_logits=None if vision is None else scores[:, 1:] * vision.cell_mask,
            cell_probabilities=None if vision is None else probabilities[:, 1:] * vision.cell_mask,
            cell_mask=None if vision is None else vision.cell_mask,
            image_valid=image_valid,
            detection_logits=detection,
            fused_state=fused,
        )

    def _with_neighbours(self, scores: Tensor, near: AgriClipNeighbours) -> tuple[Tensor, Tensor]:
        """Mean of the network's scores (B, 1 + N) and the Gaussian process', and the probabilities of it."""
        own = (near.mean - math.log(self.config.share_threshold + self.config.share_floor)) / near.sd
        scores = torch.where(near.speaks.unsqueeze(1), (scores + own.unsqueeze(1)) / 2, scores)
        return scores, torch.special.ndtr(scores)

    def _self_supervised_terms(
        self,
        vision: AgriClipVisionOutput,
        report: tuple[Tensor, ...],
        image: tuple[Tensor | None, ...],
        noise: Tensor | None,
        keys: Tensor | None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Alignment of whole images with their reports, and masked image modelling in a pass of its own."""
        terms = {}
        if self.config.alignment_weight and report:
            image_embeds, text_embeds, _ = self._similarity(vision.pooler_output, report[2])
            terms["alignment"] = self._alignment_term(image_embeds, text_embeds, vision.image_valid, keys)
        if self.config.reconstruction_weight:
            pixels, valid, channels, gsd, dates = self.vision_model.prepare(*image)
            hidden = hide_patches(self.vision_model, pixels, valid, self.config.mask_ratio, noise)
            partial = self.vision_model(pixels, hidden.seen, channels, gsd, dates, **kwargs)
            cells = self.fuser(_queries(partial), *report)[:, 1:]
            terms["reconstruction"] = hidden.loss(self._reconstruct(hidden, cells, gsd, dates, channels))
        return terms

    def _answer(
        self, vision: AgriClipVisionOutput | None, report: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Parameters of the likelihood with and without the image, the image's effect, and what was fused.

        The parameters are (B, 1 + N, 1 or 2), or (B, 1, 1 or 2) without an image or of the report alone.
        """
        batch = report[0].shape[0] if vision is None else vision.pooler_output.shape[0]
        fused = self.fuser(self.vision_model.pooling.empty.repeat(batch, 1).unsqueeze(1), *report)
        alone = self.suitability_head(fused)
        if vision is None:
            return alone, alone, None, fused
        fused = self.fuser(_queries(vision), *report)
        keep = torch.cat([vision.image_valid.unsqueeze(1), vision.cell_mask], dim=1).to(alone.dtype)
        effect = self.image_effect_head(fused) * keep.unsqueeze(-1)
        return alone + effect, alone, effect, fused

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
        terms = {"prediction": self._prediction_term(parameters, labels, weights, vision)}
        if effect is not None and self.config.report_only_weight:
            places = parameters.shape[1] if labels.dim() == 2 else 1
            terms["report_only"] = self._prediction_term(alone.expand(-1, places, -1), labels, weights, vision)
        if effect is not None and self.config.image_effect_weight:
            squared = effect.float().square()
            terms["image_effect"] = weighted_mean(squared, torch.ones_like(squared))
        return terms

    def _prediction_term(
        self, parameters: Tensor, labels: Tensor, weights: Tensor | None, vision: AgriClipVisionOutput | None
    ) -> Tensor:
        """Likelihood of the label of each place (B,), or of each of its cells (B, N)."""
        if labels.dim() == 1:
            return self._likelihood(parameters[:, 0], labels, weights)
        if vision is None:
            raise ValueError("Labels a cell need an image: give `pixel_values`, or one label a place.")
        known = vision.cell_mask.to(parameters.dtype)
        weights = known if weights is None else weights * known
        return self._likelihood(parameters[:, 1:], labels, weights)

    def _likelihood(self, parameters: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Loss of parameters (..., 1 or 2) under the configured likelihood."""
        if self.config.suitability_likelihood == "share":
            mean, log_sd = self.suitability_head.split(parameters)
            return censored_share_loss(mean, log_sd, labels, self.config.share_floor, weights)
        if self.config.suitability_likelihood == "regression":
            return squared_error_loss(parameters[..., 0], labels, weights)
        if self.config.suitability_likelihood == "presence_only":
            return positive_unlabelled_loss(parameters[..., 0], labels, self.config.presence_prior, weights)
        return binomial_loss(parameters[..., 0], labels, weights)


class AgriClipForSemanticSegmentation(_AgriClipTwoTowers):
    """Segmentation by language: every pixel against the embedding of any prompt."""

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__(config)
        self._build_towers(config)
        self._build_text_projection(config)
        self.segmentation_head = AgriClipSegmentationHead(config)
        self.post_init()

    def get_image_descriptors(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        channels: Tensor | None = None,
        gsd: Tensor | None = None,
        dates: Tensor | None = None,
    ) -> Tensor:
        """Features for a classifier of one's own: for sensors, series and classes that the towers do not know.

        Statistics of the pixels' embedding by season, see [`AgriClipPixelDecoder.describe`]. What the towers make of
        an image tells their own classes better and others worse: deeper features keep what they were trained to tell.

        Args:
            pixel_values: Standardised pixels (B, T, C, H, W) or (B, C, H, W).
            pixel_mask: 1 = valid, like `pixel_values`.
            channels: Channel descriptions (B, C, 4).
            gsd: Ground sample distance in metres (B,); taken so that a processor's output fits as it is.
            dates: Days from 1 January (B, T).

        Returns:
            (B, 14 pixel_size) in float32, not normalised.
        """
        pixels, valid, channels, _, dates = self.vision_model.prepare(pixel_values, pixel_mask, channels, gsd, dates)
        return self.segmentation_head.pixels.describe(pixels, valid, channels, dates)

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
    return (values * known).sum() / current_scope().total(known.sum()).clamp(min=1)


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
