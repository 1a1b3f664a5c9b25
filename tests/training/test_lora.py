"""An adapter trains what it says, changes nothing until it has learned, and can be saved, switched and merged."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import infer_auto_device_map
from transformers import AutoConfig, Trainer, TrainingArguments

from modeling_agriclip import (
    AgriClipConfig,
    AgriClipForImageClassification,
    AgriClipForSemanticSegmentation,
    AgriClipForSuitability,
    AgriClipModel,
)
from processing.errors import AgriClipError
from tests.modeling.conftest import image_inputs, report_inputs, shaken
from training.lora import (
    RECIPES,
    add_lora,
    load_adapter,
    lora_config,
    merge,
    push,
    save_adapter,
    switch_adapter,
    trainable_share,
)

HEADS = {
    AgriClipForSuitability: ["suitability_head", "image_effect_head"],
    AgriClipForImageClassification: ["classifier"],
    AgriClipForSemanticSegmentation: ["segmentation_head"],
}
CASES = [
    (AgriClipForSuitability, "report"),
    (AgriClipForSuitability, "fusion"),
    (AgriClipForSuitability, "vision"),
    (AgriClipForSuitability, "all"),
    (AgriClipForImageClassification, "vision"),
    (AgriClipForSemanticSegmentation, ["report", "vision"]),
]


def tiny(cls, **overrides):
    torch.manual_seed(0)
    return shaken(cls(AgriClipConfig.from_size("tiny", **overrides)))


def inputs_of(cls, batch=2):
    torch.manual_seed(1)
    image = image_inputs(batch, dates=2, bands=4, height=16, width=24)
    return image if cls is AgriClipForImageClassification else image | report_inputs(batch)


def labels_of(cls, batch=2):
    if cls is AgriClipForSuitability:
        return torch.linspace(0.2, 0.9, batch)
    if cls is AgriClipForImageClassification:
        return torch.arange(batch) % 2
    return torch.randint(0, batch, (batch, 16, 24))


@torch.no_grad()
def answer(model, inputs):
    """Logits of the model while it is frozen: torch multiplies by a weight that may learn in another order."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    logits = model.eval()(**inputs).logits
    for parameter in learning:
        parameter.requires_grad_(True)
    return logits


def perturb(model):
    """Let the active adapter and its heads have learned something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("cls", "recipe"), CASES)
def test_only_the_adapter_and_its_heads_learn_and_a_fresh_one_is_silent(cls, recipe, dora):
    model, inputs = tiny(cls), inputs_of(cls)
    before = answer(model, inputs)
    adapted = add_lora(model, recipe, dora=dora)
    torch.testing.assert_close(answer(adapted, inputs), before, rtol=0, atol=1e-5 if dora else 0)
    adapted.train()(**inputs, labels=labels_of(cls)).loss.backward()
    learning = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    heads = [f".{head}.modules_to_save." for head in HEADS[cls]]
    assert all(".lora_" in name or any(head in name for head in heads) for name in learning)
    for head in heads:
        assert any(head in name for name in learning)
    parts = {"report": "text_model", "fusion": "fuser", "vision": "vision_model"}
    chosen = [recipe] if isinstance(recipe, str) else recipe
    for part, tower in parts.items():
        touched = any(f".{tower}." in name for name in learning)
        assert touched == (part in chosen or (recipe == "all")), part


@pytest.mark.parametrize(
    ("cls", "recipe"),
    [(AgriClipForSuitability, recipe) for recipe in RECIPES]
    + [(AgriClipForSemanticSegmentation, "all"), (AgriClipForImageClassification, "all")],
)
def test_share_of_trained_parameters_of_the_released_size(cls, recipe):
    model = cls(AgriClipConfig.from_size("small"))
    total = sum(parameter.numel() for parameter in model.parameters())
    adapted = add_lora(model, recipe)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    # The head for pixels is trained whole, and is larger than the adapter.
    assert 0 < trainable_share(adapted) < (0.1 if cls is AgriClipForSemanticSegmentation else 0.05)
    assert trainable_share(adapted) == pytest.approx(trained / (total + trained))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("cls", "recipe"), [CASES[3], CASES[4], CASES[5]])
def test_saved_loaded_and_merged_answer_alike(cls, recipe, dora, tmp_path):
    model, inputs = tiny(cls), inputs_of(cls)
    base, before = copy.deepcopy(model), answer(model, inputs)
    adapted = perturb(add_lora(model, recipe, dora=dora))
    learned = answer(adapted, inputs)
    assert (learned - before).abs().max() > 1e-3
    folder = save_adapter(adapted, tmp_path / "adapter")
    weights = (folder / "adapter_model.safetensors").stat().st_size
    assert weights < 4.2 * sum(p.numel() for p in adapted.parameters() if p.requires_grad) + 50_000
    loaded = load_adapter(base, folder)
    assert torch.equal(answer(loaded, inputs), learned)
    assert trainable_share(loaded) == 0
    merged = merge(loaded)
    assert type(merged) is cls
    torch.testing.assert_close(answer(merged, inputs), learned, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = cls.from_pretrained(tmp_path / "merged")
    assert torch.equal(answer(again, inputs), answer(merged, inputs))


def test_adapters_of_two_regions_switch_bit_for_bit(tmp_path):
    model, inputs = tiny(AgriClipForSuitability), inputs_of(AgriClipForSuitability)
    base = copy.deepcopy(model)
    adapted = perturb(add_lora(model, "fusion", adapter_name="kansas"))
    kansas = answer(adapted, inputs)
    adapted = add_lora(adapted, ["report", "vision"], rank=4, adapter_name="hebei")
    # The second starts from the base, not from what the first has learned.
    assert torch.equal(answer(adapted, inputs), answer(base, inputs))
    frozen = [name for name, p in adapted.named_parameters() if p.requires_grad and "kansas" in name]
    assert not frozen, "the adapter that is not in use must not learn"
    hebei = answer(perturb(adapted), inputs)
    assert not torch.equal(hebei, kansas)
    assert torch.equal(answer(switch_adapter(adapted, "kansas"), inputs), kansas)
    assert torch.equal(answer(switch_adapter(adapted, "hebei"), inputs), hebei)
    assert trainable_share(adapted) == 0
    assert trainable_share(switch_adapter(adapted, "hebei", trainable=True)) > 0

    for name in ("kansas", "hebei"):
        assert save_adapter(adapted, tmp_path, name) == tmp_path / name
    loaded = load_adapter(load_adapter(base, tmp_path, "kansas"), tmp_path, "hebei")
    assert torch.equal(answer(loaded, inputs), hebei)
    assert torch.equal(answer(switch_adapter(loaded, "kansas"), inputs), kansas)
    merged = merge(switch_adapter(loaded, "kansas"))
    torch.testing.assert_close(answer(merged, inputs), kansas, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", HEADS)
def test_trains_with_the_stock_trainer(cls, tmp_path):
    inputs = inputs_of(cls, 4)
    rows = [{key: value[i] for key, value in inputs.items()} | {"labels": labels_of(cls, 4)[i]} for i in range(4)]
    if cls is AgriClipForSemanticSegmentation:
        prompts = report_inputs(4)
        rows = [row | prompts for row in rows]  # each image brings all four prompts
    adapted = add_lora(tiny(cls), "all", dropout=0.1)
    frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=12,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=12,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=adapted, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 1e-3
    assert all(torch.equal(p, frozen[name]) for name, p in adapted.named_parameters() if name in frozen)
    checkpoint = tmp_path / "checkpoint-12"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists(), "the base travels with the checkpoint"
    assert torch.equal(answer(load_adapter(tiny(cls), checkpoint), inputs), answer(adapted, inputs))


def test_any_report_encoder_is_found():
    encoder = {"model_type": "clip_text_model", "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64}
    encoder |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = AgriClipConfig(text_config={"encoder_config": AutoConfig.for_model(**encoder)})
    model = AgriClipForSuitability(config)
    adapted = add_lora(model, "report")
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    for layer in ("q_proj", "v_proj", "fc1", "number_embedding.projection"):
        assert any(f"{layer}.lora_A" in name for name in names), layer


def test_layers_that_torch_reads_past_are_left_alone():
    model = tiny(AgriClipForImageClassification)
    model.vision_model.add_module("pool", torch.nn.MultiheadAttention(8, 2))
    adapted = add_lora(model, "vision")
    assert not any("pool.out_proj" in name for name, p in adapted.named_parameters() if p.requires_grad)
    # A second adapter finds the layers under the first.
    names = [
        {name.replace(f".{adapter}.", ".") for name, p in adapted.named_parameters() if f".{adapter}." in name}
        for adapter in ("default", add_lora(adapted, "vision", adapter_name="second").active_adapter)
    ]
    assert names[0] == names[1]


def test_dora_leaves_out_layers_without_a_direction():
    # A fresh fuser's FiLM is all zeros: DoRA would divide by the length of its rows.
    torch.manual_seed(0)
    model, inputs = AgriClipForSuitability(AgriClipConfig.from_size("tiny")), inputs_of(AgriClipForSuitability)
    adapted = add_lora(model, "fusion", dora=True)
    assert answer(adapted, inputs).isfinite().all()
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert not any("film" in name for name in names)
    assert any("fuser.layers.0.attention.q_proj.lora_magnitude_vector" in name for name in names)


def test_heads_can_be_named_and_the_logit_scale_learns():
    config = lora_config(tiny(AgriClipModel), "report", alpha=3)
    assert set(config.modules_to_save) == {"visual_projection", "text_projection", "logit_scale"}
    assert config.lora_alpha == 3
    assert lora_config(tiny(AgriClipForSuitability), "report").lora_alpha == 16
    assert lora_config(tiny(AgriClipForSuitability), "report", heads=[]).modules_to_save is None
    chosen = lora_config(tiny(AgriClipForSemanticSegmentation), "report", heads=["text_projection"])
    assert chosen.modules_to_save == ["text_projection"]
    model = add_lora(tiny(AgriClipModel), "report")
    output = model(**inputs_of(AgriClipModel), return_loss=True)
    output.loss.backward()
    assert model.get_base_model().logit_scale.modules_to_save["default"].value.grad.abs() > 0


def test_layers_stay_whole_when_the_model_is_spread_over_devices():
    adapted = add_lora(tiny(AgriClipForSuitability), "all")
    base = adapted.get_base_model()
    size = sum(parameter.numel() * 4 for parameter in base.parameters())
    placed = infer_auto_device_map(
        base, {0: size // 3, 1: size // 3, "cpu": size}, no_split_module_classes=list(base._no_split_modules)
    )
    assert len(set(placed.values())) > 1
    whole = [n for n, m in base.named_modules() if type(m).__name__ in base._no_split_modules]
    assert whole
    assert not any(place.startswith(f"{name}.") for place in placed for name in whole)


def test_push_sends_the_adapters_and_nothing_else(monkeypatch):
    sent = {}
    adapted = add_lora(tiny(AgriClipForSuitability), "fusion")
    monkeypatch.setattr(
        "transformers.utils.hub.hf_api",
        lambda: SimpleNamespace(
            create_repo=lambda name, **options: sent.update(options) or SimpleNamespace(repo_id=name)
        ),
    )
    card = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: card)

    def upload(self, folder, repo_id, *args, **kwargs):
        sent["repo"], sent["files"] = repo_id, {path.name for path in Path(folder).iterdir()}

    monkeypatch.setattr(type(adapted), "_upload_modified_files", upload)
    push(adapted, "someone/soybean-kansas", private=True)
    assert sent["repo"] == "someone/soybean-kansas"
    assert sent["private"] is True
    assert {"adapter_config.json", "adapter_model.safetensors"} <= sent["files"]
    assert "model.safetensors" not in sent["files"]


def test_the_saved_configuration_has_no_full_list_of_layers(tmp_path):
    folder = save_adapter(add_lora(tiny(AgriClipForSuitability), "fusion"), tmp_path)
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["target_modules"].count("|") == 4
    assert r"fuser\.layers\.\d+\.film" in saved["target_modules"]


def test_mistakes_are_told_in_one_sentence(tmp_path, monkeypatch):
    model = tiny(AgriClipForSuitability)
    with pytest.raises(AgriClipError, match="no recipe 'fussion'; did you mean 'fusion'"):
        add_lora(model, "fussion")
    with pytest.raises(AgriClipError, match="needs a recipe"):
        add_lora(model, [])
    with pytest.raises(AgriClipError, match="could adapt; use one of: vision, all"):
        add_lora(tiny(AgriClipForImageClassification), "report")
    with pytest.raises(AgriClipError, match="no head 'suitability'; did you mean 'suitability_head'"):
        add_lora(model, "report", heads=["suitability"])
    with pytest.raises(AgriClipError, match="rank >= 1"):
        add_lora(model, "report", rank=0)
    for name in ("", "U.S.", "keys"):
        with pytest.raises(AgriClipError, match="cannot be called"):
            add_lora(model, "report", adapter_name=name)
    assert not hasattr(model, "peft_config"), "a refused adapter leaves the model as it was"
    with pytest.raises(AgriClipError, match="There is no adapter in"):
        load_adapter(model, tmp_path / "nowhere")
    adapted = add_lora(model, "report", adapter_name="kansas")
    with pytest.raises(AgriClipError, match="has an adapter 'kansas' already"):
        add_lora(adapted, "vision", adapter_name="kansas")
    with pytest.raises(AgriClipError, match="no adapter 'kanzas'; did you mean 'kansas'"):
        switch_adapter(adapted, "kanzas")
    wider = add_lora(tiny(AgriClipForSuitability, vision_config={"hidden_size": 48}), "vision", heads=[])
    with pytest.raises(AgriClipError, match="network of other widths"):
        load_adapter(tiny(AgriClipForSuitability), save_adapter(wider, tmp_path))
    broken = add_lora(tiny(AgriClipForSuitability), "fusion")
    with torch.no_grad():
        next(p for n, p in broken.named_parameters() if "lora_B" in n).fill_(torch.nan)
    with pytest.raises(AgriClipError, match="weights are not finite"):
        merge(broken)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AgriClipError, match=r'pip install "agriclip\[train\]"'):
        add_lora(tiny(AgriClipForSuitability), "report")
