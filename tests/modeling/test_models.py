"""The model classes: save and load, modalities dropped, losses, compile, precision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import modeling_agriclip
from modeling_agriclip import (
    AgriClipConfig,
    AgriClipForImageClassification,
    AgriClipForPreTraining,
    AgriClipForSemanticSegmentation,
    AgriClipForSuitability,
    AgriClipModel,
)

from .conftest import image_inputs, report_inputs

ROOT = Path(modeling_agriclip.__file__).parents[1]
ALL = [
    AgriClipModel,
    AgriClipForPreTraining,
    AgriClipForSuitability,
    AgriClipForSemanticSegmentation,
    AgriClipForImageClassification,
]


def inputs_for(cls):
    inputs = image_inputs()
    if cls is not AgriClipForImageClassification:
        inputs |= report_inputs()
    if cls is AgriClipForPreTraining:
        inputs["noise"] = torch.rand(2, 80)
    return inputs


def tensors(output):
    return {key: value for key, value in output.items() if torch.is_tensor(value)}


def run(model, inputs):
    with torch.no_grad():
        return tensors(model(**inputs))


@pytest.mark.parametrize("cls", ALL)
def test_save_and_load_is_bitwise_equal(cls, build, tmp_path):
    model, inputs = build(cls), inputs_for(cls)
    model.save_pretrained(tmp_path)
    before, after = run(model, inputs), run(cls.from_pretrained(tmp_path).eval(), inputs)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


LOAD = """
import importlib.util, torch
from transformers import AutoModel
ours = importlib.util.find_spec("modeling_agriclip")
model = AutoModel.from_pretrained("agriclip", **({"trust_remote_code": True} if ours is None else {})).eval()
inputs, expected = torch.load("case.pt")
with torch.no_grad():
    output = model(**inputs)
print(ours is None, type(model).__module__.split(".")[0], all(torch.equal(output[k], v) for k, v in expected.items()))
"""


@pytest.mark.parametrize("remote", [True, False])
def test_auto_model_in_a_clean_process(remote, build, tmp_path):
    model, inputs = build(AgriClipModel), inputs_for(AgriClipModel)
    model.save_pretrained(tmp_path / "agriclip")
    torch.save((inputs, run(model, inputs)), tmp_path / "case.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    script = LOAD
    if remote:
        # An editable install puts the checkout on the path of every process; take it away again.
        script = f"import sys; sys.path = [p for p in sys.path if p != {str(ROOT)!r}]\n" + (
            "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n" + LOAD
        )
    else:
        environment["PYTHONPATH"] = str(ROOT)
        script = "import modeling_agriclip\n" + LOAD
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    package = "transformers_modules" if remote else "modeling_agriclip"
    assert done.stdout.split() == [str(remote), package, "True"], done.stderr


def test_saved_folder_names_every_class(build, tmp_path):
    build(AgriClipForSuitability).save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    for entry in entries.values():
        module, name = entry.split(".")
        assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()


def test_heads_share_one_folder(build, tmp_path):
    model = build(AgriClipForSuitability)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(base, AgriClipModel)
    inputs = inputs_for(AgriClipModel)
    assert torch.equal(run(base, inputs)["fused_state"], run(model, inputs)["fused_state"])


def test_buffers_survive_loading(build, tmp_path):
    model = build(AgriClipModel)
    model.save_pretrained(tmp_path)
    loaded = dict(AgriClipModel.from_pretrained(tmp_path).named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, loaded[name]), name


@pytest.mark.parametrize("cls", [AgriClipForPreTraining, AgriClipForSuitability])
def test_compiles_in_one_graph(cls, build):
    model, inputs = build(cls), inputs_for(cls)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    before, after = run(model, inputs), run(compiled, inputs)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", ALL)
def test_bfloat16_stays_near(cls, build):
    model, inputs = build(cls), inputs_for(cls)
    expected = run(model, inputs)
    output = run(model.to(torch.bfloat16), inputs)
    assert all(value.isfinite().all() for value in output.values())
    key = "logits" if "logits" in expected else "logits_per_image"
    assert (output[key].float() - expected[key]).abs().max() < 0.1 * expected[key].abs().max() + 0.1


def test_image_dropped_equals_image_masked(build):
    model, inputs = build(AgriClipForSuitability), inputs_for(AgriClipForSuitability)
    masked = run(model, inputs | {"pixel_mask": torch.zeros_like(inputs["pixel_values"])})
    dropped = run(model, report_inputs() | {key: inputs[key] for key in ("input_ids", "numeric_values")})
    torch.testing.assert_close(masked["probabilities"], dropped["probabilities"], atol=1e-6, rtol=0)
    assert masked["image_valid"].tolist() == dropped["image_valid"].tolist() == [0, 0]


def test_report_dropped_equals_report_masked(build):
    model, inputs = build(AgriClipForSuitability), inputs_for(AgriClipForSuitability)
    masked = run(model, inputs | {"attention_mask": torch.zeros_like(inputs["attention_mask"])})
    dropped = run(model, image_inputs() | {key: inputs[key] for key in ("pixel_values", "channels")})
    torch.testing.assert_close(masked["probabilities"], dropped["probabilities"], atol=1e-6, rtol=0)


def test_image_effect_is_added_to_what_the_report_says(build):
    """A fresh model's image says nothing; and whatever it says later, the report alone is answered as before."""
    inputs = inputs_for(AgriClipForSuitability)
    fresh = AgriClipForSuitability(AgriClipConfig.from_size("tiny", vocab_size=200)).eval()
    output = run(fresh, inputs)
    assert torch.equal(output["probabilities"], output["report_probabilities"])
    shaken = build(AgriClipForSuitability)
    alone = run(shaken, {key: inputs[key] for key in ("input_ids", "attention_mask", "numeric_values")})
    output = run(shaken, inputs)
    assert not torch.allclose(output["probabilities"], output["report_probabilities"])
    torch.testing.assert_close(output["report_probabilities"], alone["probabilities"])


def test_image_encoded_before_gives_the_same(build):
    model, inputs = build(AgriClipForSuitability), inputs_for(AgriClipForSuitability)
    with torch.no_grad():
        seen = model.vision_model(**{key: inputs[key] for key in ("pixel_values", "channels", "gsd", "dates")})
    report = {key: inputs[key] for key in ("input_ids", "attention_mask", "numeric_values")}
    again = run(model, report | {"vision_model_output": seen})
    assert torch.equal(again["probabilities"], run(model, inputs)["probabilities"])


def test_neither_modality_is_refused(build):
    with pytest.raises(ValueError, match="Give an image"):
        build(AgriClipForSuitability)()


def test_report_encoded_before_gives_the_same(build):
    model, inputs = build(AgriClipForSuitability), inputs_for(AgriClipForSuitability)
    with torch.no_grad():
        text = model.text_model(inputs["input_ids"], inputs["attention_mask"], inputs["numeric_values"])
    rest = {key: value for key, value in inputs.items() if key not in ("input_ids", "numeric_values")}
    again = run(model, rest | {"text_model_output": text})
    assert torch.equal(again["probabilities"], run(model, inputs)["probabilities"])


@pytest.mark.parametrize("likelihood", ["binary", "regression", "share"])
def test_suitability_losses(likelihood, build):
    model = build(AgriClipForSuitability, suitability_likelihood=likelihood).train()
    labels = torch.tensor([0.0, 0.4])
    output = model(**inputs_for(AgriClipForSuitability), labels=labels, label_weights=torch.tensor([3.0, 5.0]))
    output.loss.backward()
    parts = output.loss_dict
    predicted = parts["prediction"] + parts["report_only"] + 0.5 * parts["image_effect"]
    torch.testing.assert_close(
        output.loss.detach(), predicted + 0.1 * parts["consistency"] + 0.01 * parts["diversity"]
    )
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nan_label_teaches_nothing(build):
    weights = dict.fromkeys(("consistency_weight", "diversity_weight", "image_effect_weight"), 0.0)
    model = build(AgriClipForSuitability, **weights)
    inputs = inputs_for(AgriClipForSuitability)
    with_nan = model(**inputs, labels=torch.tensor([torch.nan, 0.4])).loss
    first = {key: value[1:] for key, value in inputs.items()}
    torch.testing.assert_close(with_nan, model(**first, labels=torch.tensor([0.4])).loss)


def test_labels_of_cells(build):
    model = build(AgriClipForSuitability)
    loss = model(**inputs_for(AgriClipForSuitability), labels=torch.rand(2, 80)).loss
    assert loss.isfinite()
    with pytest.raises(ValueError, match="Labels a cell need an image"):
        model(**report_inputs(), labels=torch.rand(2, 80))


def test_detection_looks_at_the_image_alone(build):
    model, inputs = build(AgriClipForSuitability, use_detection_head=True), inputs_for(AgriClipForSuitability)
    before = run(model, inputs)["detection_logits"]
    after = run(model, inputs | report_inputs())["detection_logits"]
    assert torch.equal(before, after)
    assert "detection" in model(**inputs, detection_labels=torch.ones(2)).loss_dict


def test_weight_zero_is_not_computed(build):
    model = build(AgriClipForPreTraining, reconstruction_weight=0, alignment_weight=0.5, diversity_weight=0)
    output = model(**inputs_for(AgriClipForPreTraining))
    assert set(output.loss_dict) == {"alignment", "consistency"}
    torch.testing.assert_close(
        output.loss, 0.5 * output.loss_dict["alignment"] + 0.1 * output.loss_dict["consistency"]
    )


def test_hidden_patches_do_not_leak(build):
    """The prediction must not change with what stands in the hidden patches."""
    model, inputs = build(AgriClipForPreTraining), inputs_for(AgriClipForPreTraining)
    first = run(model, inputs)
    hidden = first["patch_mask"].view(2, 1, 1, 8, 10).repeat_interleave(4, -2).repeat_interleave(4, -1).bool()
    other = torch.where(hidden, torch.randn_like(inputs["pixel_values"]) * 9, inputs["pixel_values"])
    second = run(model, inputs | {"pixel_values": other})
    torch.testing.assert_close(first["reconstruction"], second["reconstruction"])
    assert first["patch_mask"].sum(dim=1).tolist() == [40, 40]


def test_masked_language(build):
    model = build(AgriClipForPreTraining, use_masked_language=True, masked_language_weight=0.5)
    inputs = inputs_for(AgriClipForPreTraining)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, 3] = 9
    assert model(**inputs, language_labels=labels).loss_dict["masked_language"] > 0


def test_segmentation_by_any_prompts(build):
    model, image = build(AgriClipForSemanticSegmentation), image_inputs()
    for prompts in (1, 3, 7):
        logits = run(model, image | report_inputs(batch=prompts))["logits"]
        assert logits.shape == (2, prompts, 32, 40)
    shared = report_inputs(batch=3)
    own = {key: value.expand(2, 3, -1) for key, value in shared.items()}
    torch.testing.assert_close(run(model, image | own)["logits"], run(model, image | shared)["logits"])


def test_many_reports_for_one_image(build):
    output = run(build(AgriClipModel), image_inputs(batch=1) | report_inputs(batch=4))
    assert output["logits_per_image"].shape == (1, 4)
    assert "fused_state" not in output


def test_features_are_those_of_forward(build):
    model, inputs = build(AgriClipModel), inputs_for(AgriClipModel)
    with torch.no_grad():
        image = model.get_image_features(**image_inputs() | {k: inputs[k] for k in image_inputs()}).pooler_output
        text = model.get_text_features(**{k: inputs[k] for k in report_inputs()}).pooler_output
    output = run(model, inputs)
    torch.testing.assert_close(torch.nn.functional.normalize(image, dim=-1), output["image_embeds"])
    torch.testing.assert_close(torch.nn.functional.normalize(text, dim=-1), output["text_embeds"])


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="There is no size 'huge'"):
        AgriClipConfig.from_size("huge")
    with pytest.raises(Exception, match="must be one of binary, regression, share"):
        AgriClipConfig(suitability_likelihood="poisson")
    with pytest.raises(Exception, match="not a multiple of its number of heads"):
        AgriClipConfig(vision_config={"stage_heads": (5, 6, 10)})


def test_config_object_is_not_shared_between_models():
    fuser = AgriClipConfig().fuser_config
    AgriClipConfig.from_size("tiny", fuser_config=fuser)
    assert fuser.hidden_size == 256
