"""Presets are the sums they say they are, and what has no weight costs nothing."""

import copy

import pytest
import torch
from torch import nn

import modeling_agriclip.losses_agriclip as losses
import modeling_agriclip.modeling_agriclip as modeling
from modeling_agriclip.masking_agriclip import hide_patches
from processing.errors import AgriClipError
from processing.study_parts import ObjectiveTerm, Training
from tests.training.small_model import SENSOR, model_of
from training.adversarial import Attack, SensorNoise
from training.objective import PRESETS, Objective, get_objective
from training.trainer import AgriClipTrainer


def attacked(model, batch):
    return batch | Attack(SensorNoise(SENSOR.channels), torch.full((9,), 0.1))(model, batch)


def terms_by_hand(model, batch):
    """Every term of the suitability model, written out from its parts."""
    report = {key: batch[key] for key in ("input_ids", "attention_mask", "numeric_values")}
    image = {key: batch[key] for key in ("pixel_values", "pixel_mask", "channels", "gsd")}
    config, known = model.config, batch["labels"].isfinite()
    y, w = batch["labels"][known], batch["label_weights"][known]

    def cross_entropy(logits, labels, weights):
        values = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log())
        return (values * weights).sum() / weights.sum()

    with torch.no_grad():
        output = model(**report, **image)
        alone = model(**report)
        vision, text = model.vision_model(**image), model.text_model(**report)
        terms = {"prediction": cross_entropy(output.logits[known], y, w)}
        terms["report_only"] = cross_entropy(alone.logits[known], y, w)
        cells = torch.cat([output.logits[:, None], output.cell_logits], dim=1)
        valid = torch.cat([vision.image_valid[:, None], vision.cell_mask], dim=1)
        terms["image_effect"] = ((cells - alone.logits[:, None]) * valid).square().mean()
        shared = vision.scale_states[..., : config.vision_config.hidden_size // 2]
        shared = nn.functional.layer_norm(shared, shared.shape[-1:])
        private = nn.functional.normalize(vision.scale_states[..., config.vision_config.hidden_size // 2 :], dim=-1)
        consistency, diversity, pairs = 0.0, 0.0, [(0, 1), (0, 2), (1, 2)]
        for a, b in pairs:
            both = (vision.scale_mask[..., a] * vision.scale_mask[..., b]).float()
            squared = (shared[:, :, a] - shared[:, :, b]).square().mean(dim=-1)
            cosine = (private[:, :, a] * private[:, :, b]).sum(dim=-1)
            consistency += (squared * both).sum() / both.sum() / len(pairs)
            diversity += (cosine.square() * both).sum() / both.sum() / len(pairs)
        terms |= {"consistency": consistency, "diversity": diversity}
        if config.alignment_weight:
            images = nn.functional.normalize(model.visual_projection(vision.pooler_output), dim=-1)
            texts = nn.functional.normalize(model.text_projection(text.pooler_output), dim=-1)
            s = images @ texts.t() * model.logit_scale()
            terms["alignment"] = -(s.log_softmax(1).diag().mean() + s.log_softmax(0).diag().mean()) / 2
        if config.use_detection_head:
            logits = model.detection_head(vision.pooler_output)[:, 0]
            terms["detection"] = cross_entropy(logits, batch["detection_labels"], torch.ones(4))
        if config.reconstruction_weight:
            pixels, mask, channels, gsd, dates = model.vision_model.prepare(*[*image.values(), None])
            hidden = hide_patches(model.vision_model, pixels, mask, config.mask_ratio, batch["noise"])
            seen = model.vision_model(pixels, hidden.seen, channels, gsd, dates)
            queries = torch.cat([seen.pooler_output[:, None], seen.last_hidden_state], dim=1)
            cells = model.fuser(queries, text.last_hidden_state, batch["attention_mask"], text.pooler_output)[:, 1:]
            predicted = model.decoder(
                cells,
                hidden.hidden,
                hidden.present,
                gsd * config.vision_config.patch_size,
                dates,
                channels,
                hidden.grid,
            )
            chosen = (hidden.valid * hidden.hidden[:, None, :, None, None]).bool()
            terms["reconstruction"] = (predicted - hidden.target)[chosen].square().mean()
        if "attacked_pixel_values" in batch:
            moved = model(
                **report | {"numeric_values": batch["attacked_numeric_values"]},
                **image | {"pixel_values": batch["attacked_pixel_values"]},
            )
            terms["adversarial"] = cross_entropy(moved.logits[known], y, w)
    return terms


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "pretraining"])
def test_each_preset_is_the_sum_it_says(preset, batch):
    objective = get_objective(preset)
    model = model_of(preset)
    if objective.adversarial:
        batch = attacked(model, batch)
    output, expected = model(**batch), terms_by_hand(model, batch)
    weights = {"prediction": 1.0, **{name: weight for name, weight in vars(objective).items() if weight}}
    assert set(output.loss_dict) == set(weights)
    for name in weights:
        torch.testing.assert_close(output.loss_dict[name], torch.as_tensor(expected[name]), atol=1e-5, rtol=1e-5)
    total = sum(weight * expected[name] for name, weight in weights.items())
    torch.testing.assert_close(output.loss.detach(), total, atol=1e-5, rtol=1e-5)


def test_pretraining_needs_no_labels(batch):
    model = model_of("pretraining")
    inputs = {key: value for key, value in batch.items() if "label" not in key}
    output = model(**inputs)
    assert set(output.loss_dict) == {"reconstruction", "alignment", "consistency", "diversity"}
    weights = {"reconstruction": 1.0, "alignment": 0.1, "consistency": 0.1, "diversity": 0.01}
    total = sum(weight * output.loss_dict[name] for name, weight in weights.items())
    torch.testing.assert_close(output.loss.detach(), total)


COMPUTED_BY = {
    "consistency": "scale_consistency_loss",
    "diversity": "scale_diversity_loss",
    "alignment": "alignment_loss",
    "reconstruction": "hide_patches",
}


@pytest.mark.parametrize("term", COMPUTED_BY)
def test_a_term_without_weight_is_never_computed(term, batch, monkeypatch):
    called = []
    compute = getattr(modeling, COMPUTED_BY[term])

    def watched(*args, **kwargs):
        called.append(term)
        return compute(*args, **kwargs)

    monkeypatch.setattr(modeling, COMPUTED_BY[term], watched)
    for weight in (0.1, 0.0):
        called.clear()
        model_of(Objective(**{**vars(get_objective("full")), "adversarial": 0.0, term: weight}))(**batch)
        assert bool(called) == bool(weight)


def test_without_weight_there_is_no_attack(batch):
    class Forbidden(Attack):
        def __call__(self, model, batch):
            raise AssertionError("attacked")

    for weight, expected in ((0.0, False), (0.3, True)):
        model = model_of(Objective(adversarial=weight))
        trainer = AgriClipTrainer(model=model, attack=Forbidden(SensorNoise(())), args=None)
        if expected:
            with pytest.raises(AssertionError, match="attacked"):
                trainer.compute_loss(model, batch)
        else:
            assert torch.isfinite(trainer.compute_loss(model, batch))


def test_other_terms_do_not_change_when_one_is_switched_off(batch):
    full = model_of("full")
    without = copy.deepcopy(full)
    without.config.diversity_weight = 0.0
    first, second = full(**batch).loss_dict, without(**batch).loss_dict
    assert set(first) - set(second) == {"diversity"}
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_presence_only_is_fitted_at_the_non_negative_risk(batch):
    model = model_of("default", suitability_likelihood="presence_only", presence_prior=0.4)
    labels = torch.tensor([1.0, 0.0, 0.0, torch.nan])
    output = model(**batch | {"labels": labels, "label_weights": torch.ones(4)})
    with torch.no_grad():
        logits = model(**{key: batch[key] for key in batch if "label" not in key}).logits
    expected = losses.positive_unlabelled_loss(logits, labels, 0.4)
    torch.testing.assert_close(output.loss_dict["prediction"], expected)


def test_names_agree_with_the_study_file():
    assert set(PRESETS) - {"pretraining"} == set(Training.model_fields["preset"].annotation.__args__)
    assert set(vars(Objective())) == set(ObjectiveTerm.__args__)
    with pytest.raises(AgriClipError, match="did you mean 'paper_f16'"):
        get_objective("paper_16")
