"""Towers of a CLIP or SigLIP checkpoint: what the checkpoint answered, and what it could not read before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

import modeling_agriclip
from modeling_agriclip import AgriClipForPreTraining, AgriClipForSuitability, AgriClipModel, AgriClipVisionModel
from modeling_agriclip.clip_agriclip import colour_mixture, stretch_positions
from processing.sensors_agriclip import CHANNEL_KINDS, get_sensor

ROOT = Path(modeling_agriclip.__file__).parents[1]
NUM = 99
BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# An old configuration, whose end token says 2, and a new one; SigLIP with text as wide as images, and wider.
VARIANTS = {
    "clip": (CLIPModel, CLIPConfig, 24, {"hidden_act": "quick_gelu", "hidden_size": 32}, {"eos_token_id": 2}, 8),
    "clip_gelu": (CLIPModel, CLIPConfig, 40, {"hidden_act": "gelu", "hidden_size": 48}, {"eos_token_id": 98}, 4),
    "siglip": (SiglipModel, SiglipConfig, None, {"hidden_size": 32}, {}, 8),
    "siglip_wide": (SiglipModel, SiglipConfig, None, {"hidden_size": 48}, {"projection_size": 32}, 4),
}


def make(variant):
    """A random checkpoint: vision 32 wide, images of 32 x 32."""
    model_class, config_class, projection, both, text, patch = VARIANTS[variant]
    text = {"vocab_size": 99, "pad_token_id": 1, "bos_token_id": 97, **BLOCKS, **both, **text}
    text |= {"eos_token_id": text.get("eos_token_id", 1)}
    vision = {**BLOCKS, **both, "hidden_size": 32, "image_size": 32, "patch_size": patch}
    fields = {"text_config": text, "vision_config": vision}
    model = model_class(config_class(**fields, **({"projection_dim": projection} if projection else {})))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
        # Above 100, as the released SigLIP models have it.
        model.logit_scale.fill_(4.7)
    return model.eval()


def channels_of(sensor, names=None):
    specs = [spec for spec in get_sensor(sensor).channels if names is None or spec.name in names]
    return torch.tensor([spec.code() for spec in specs])


def texts(length=20, end=15, rows=3):
    ids = torch.randint(3, 90, (rows, length))
    ids[:, 0] = 97
    for row in range(rows):
        ids[row, end - row :] = 1
        ids[row, end - row] = 98
    return ids


def image(height=32, width=32, channels="rgb", batch=2, dates=None):
    described = channels_of(channels)
    shape = (batch, len(described), height, width) if dates is None else (batch, dates, len(described), height, width)
    return {"pixel_values": torch.randn(shape), "channels": described}


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


@pytest.fixture(params=VARIANTS)
def clip(request):
    return make(request.param)


def near(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("text_positions", [None, 248])
@pytest.mark.parametrize("with_mask", [True, False])
def test_answers_what_the_checkpoint_answers(clip, text_positions, with_mask, tmp_path):
    clip.save_pretrained(tmp_path)
    model = AgriClipModel.from_clip(tmp_path, num_scales=1, text_positions=text_positions)
    assert not model.training
    pixels, ids = image(), texts()
    mask = (ids != 1).long() if with_mask else None
    expected = run(clip, input_ids=ids, pixel_values=pixels["pixel_values"], attention_mask=mask)
    output = run(model, input_ids=ids, attention_mask=mask, **pixels)
    near(output.image_embeds, expected.image_embeds)
    near(output.text_embeds, expected.text_embeds)
    near(output.logits_per_image, expected.logits_per_image, 3e-5)  # at a scale of 110
    vision = run(clip.vision_model, pixel_values=pixels["pixel_values"])
    near(output.vision_model_output.pooler_output, vision.pooler_output)
    near(output.image_embeds @ output.text_embeds.t(), expected.image_embeds @ expected.text_embeds.t())


def test_states_of_every_block(clip):
    pixels = image()
    states = run(AgriClipModel.from_clip(clip, 1).vision_model, **pixels, output_hidden_states=True).hidden_states
    options = {"pixel_values": pixels["pixel_values"], "output_hidden_states": True}
    expected = run(clip.vision_model, **options).hidden_states
    assert len(states) == len(expected) == 3
    for ours, theirs in zip(states, expected, strict=True):
        near(ours.flatten(1, 2), theirs[:, -ours.flatten(1, 2).shape[1] :])


def test_cells_are_the_checkpoints_patches():
    clip, pixels = make("siglip"), image()
    cells = run(AgriClipModel.from_clip(clip, 1).vision_model, **pixels).last_hidden_state
    near(cells, run(clip.vision_model, pixel_values=pixels["pixel_values"]).last_hidden_state)
    clip = make("clip")
    cells = run(AgriClipModel.from_clip(clip, 1).vision_model, **pixels).last_hidden_state
    patches = run(clip.vision_model, pixel_values=pixels["pixel_values"]).last_hidden_state[:, 1:]
    near(cells, run(clip.vision_model.post_layernorm, input=patches))


def test_another_size_reads_interpolated_positions(clip):
    model, pixels = AgriClipModel.from_clip(clip, num_scales=1).vision_model, image(48, 40)
    expected = run(clip.vision_model, pixel_values=pixels["pixel_values"], interpolate_pos_encoding=True)
    near(run(model, **pixels).pooler_output, expected.pooler_output)


@pytest.mark.parametrize("text_positions", [None, 248])
def test_long_texts(clip, text_positions):
    ids = texts(length=60, end=50)
    model = AgriClipModel.from_clip(clip, text_positions=text_positions)
    features = run(model.text_model, input_ids=ids).pooler_output
    if text_positions is None:
        expected = run(clip.text_model, input_ids=ids).pooler_output
        near(
            model.text_projection(features),
            expected if hasattr(clip, "logit_bias") else clip.text_projection(expected),
        )
    else:
        assert run(model.text_model, input_ids=texts(248, 240)).pooler_output.isfinite().all()


def test_positions_are_stretched_as_in_long_clip():
    old = torch.randn(77, 8)
    new = stretch_positions(old, 248)
    assert torch.equal(new[:20], old[:20])
    near(new[20::4], old[20:])
    near(new[22:246:4], (old[20:76] + old[21:]) / 2)
    near(new[-1], old[-1] + 0.75 * (old[-1] - old[-2]))
    assert stretch_positions(torch.randn(64, 8), 248).shape == (248, 8)
    with pytest.raises(ValueError, match="cannot be made of the checkpoint's 77 positions"):
        stretch_positions(old, 50)


def test_only_numbers_change_a_text(clip):
    model, ids = AgriClipModel.from_clip(clip, 1), texts()
    assert model.config.text_config.number_token_id == NUM
    words = model.get_input_embeddings().weight
    near(words[NUM], words[:NUM].mean(dim=0))
    near(
        run(model.text_model, input_ids=ids, numeric_values=torch.rand(3, 20)).pooler_output,
        run(model.text_model, input_ids=ids).pooler_output,
    )
    ids[:, 5] = NUM
    pooled = [
        run(model.text_model, input_ids=ids, numeric_values=torch.full((3, 20), value)).pooler_output
        for value in (7.0, 7.1, 900.0)
    ]
    assert all((pooled[0] - other).norm() > 1e-5 for other in pooled[1:])
    # The end token is found behind a number, whose id is higher.
    whole = run(model.text_model, input_ids=ids).last_hidden_state
    if not hasattr(clip, "logit_bias"):
        near(run(model.text_model, input_ids=ids).pooler_output, whole[torch.arange(3), [15, 14, 13]])


def test_report_without_a_token_gives_nothing(clip):
    model, ids = AgriClipModel.from_clip(clip, 1), texts()
    output = run(model.text_model, input_ids=ids, attention_mask=torch.zeros_like(ids))
    assert output.pooler_output.abs().max() == 0 and output.last_hidden_state.abs().max() == 0


def test_embeddings_may_be_given(clip):
    model, ids = AgriClipModel.from_clip(clip, 1).text_model, texts(16, 15, rows=1)
    embeds = model.embed(ids, None)
    near(run(model, inputs_embeds=embeds).pooler_output, run(model, input_ids=ids).pooler_output)


def test_red_green_and_blue_have_the_checkpoints_kernels():
    assert CHANNEL_KINDS.index("reflectance") == 1
    for sensor, names in (
        ("rgb", None),
        ("sentinel2_l2a", ("B02", "B03", "B04")),
        ("landsat8", ("red", "green", "blue")),
    ):
        mixture, plain = colour_mixture(channels_of(sensor, names)[None])
        assert plain.all() and mixture.sum(dim=-1).eq(1).all()
        assert sorted(mixture[0].argmax(dim=-1).tolist()) == [0, 1, 2] and mixture.max(dim=-1).values.eq(1).all()
    mixture, plain = colour_mixture(channels_of("sentinel2_l2a")[None])
    assert plain.sum() == 3
    near(mixture.sum(dim=-1), torch.ones(1, 12))
    model = AgriClipModel.from_clip(make("clip")).vision_model.embeddings
    torch.nn.init.normal_(model.to_weights.weight)
    torch.nn.init.normal_(model.to_token.weight)
    shares, tokens = model.generate(channels_of("rgb")[None])
    assert torch.equal(shares[0, :, :3], torch.eye(3)) and shares[..., 3:].abs().max() == 0 == tokens.abs().max()


def test_order_of_bands_does_not_matter(clip):
    model, pixels = AgriClipModel.from_clip(clip, 1).vision_model, image()
    order = [2, 0, 1]
    other = {"pixel_values": pixels["pixel_values"][:, order], "channels": pixels["channels"][order]}
    near(run(model, **other).pooler_output, run(model, **pixels).pooler_output)


@pytest.mark.parametrize("sensor", ["sentinel2_l2a", "sentinel1", "ndvi_monthly"])
def test_any_sensor_enters_and_teaches(clip, sensor):
    model = AgriClipModel.from_clip(clip).vision_model.train()
    pixels = image(44, 36, sensor, dates=2)
    output = model(**pixels)
    cells = -(-44 // model.config.patch_size) * -(-36 // model.config.patch_size)
    assert output.last_hidden_state.shape == (2, cells, 32) and output.last_hidden_state.isfinite().all()
    loss = (output.pooler_output * torch.randn(2, 32)).sum() + output.last_hidden_state[..., 0].square().sum()
    loss.backward()
    assert model.embeddings.to_weights.weight.grad.abs().max() > 0
    near(output.scale_weights.sum(dim=-1), torch.ones(2, cells))


def test_scales_start_with_the_same_weight(clip):
    pixels, half = image(), torch.nn.functional.avg_pool2d
    model = AgriClipModel.from_clip(clip, 2).vision_model
    with torch.no_grad():
        coarse = clip.vision_model(half(pixels["pixel_values"], 2), interpolate_pos_encoding=True).pooler_output
        fine = clip.vision_model(pixels["pixel_values"]).pooler_output
    near(run(model, **pixels).pooler_output, (fine + coarse) / 2)


def test_tokens_of_channels_are_averaged():
    model, channels = AgriClipModel.from_clip(make("clip")).vision_model.embeddings, channels_of("sentinel1")[None]
    torch.nn.init.normal_(model.to_token.weight)
    generated = model.generate(channels)
    pixels = torch.zeros(1, 1, 2, 8, 8)
    near(
        run(model, pixels=pixels, valid=torch.ones_like(pixels), generated=generated)[0, 0, 0],
        generated[1].mean(dim=1),
    )
    valid = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])[None, None]
    near(run(model, pixels=pixels, valid=valid, generated=generated)[0, 0, 0], generated[1][:, 0])


def test_absent_is_masked_is_never_seen(clip):
    model, pixels = AgriClipModel.from_clip(clip).vision_model, image(channels="sentinel2_l2a", dates=2)
    mask = torch.ones_like(pixels["pixel_values"])
    mask[:, :, 4:] = 0
    mask[:, 1] = 0
    mask[:, :, :, :16] = 0
    output = run(model, pixel_mask=mask, **pixels)
    wild = torch.where(mask.bool(), pixels["pixel_values"], 1e3)
    wild[:, 1] = torch.nan
    near(run(model, pixel_mask=mask, **pixels | {"pixel_values": wild}).pooler_output, output.pooler_output)
    absent = {"pixel_values": pixels["pixel_values"][:, :1, :4], "channels": pixels["channels"][:4]}
    near(run(model, pixel_mask=mask[:, :1, :4], **absent).pooler_output, output.pooler_output)
    half = output.cell_mask.shape[1] // 2
    assert output.cell_mask[:, :half].sum() == 0 and output.cell_mask[:, half:].all()
    assert output.last_hidden_state[:, :half].abs().max() == 0


def test_masked_cells_are_not_attended(clip):
    """A masked half is as if the checkpoint's transformer had been given the other half's patches alone."""
    model, pixels, tower = AgriClipModel.from_clip(clip, 1).vision_model, image(), clip.vision_model
    mask = torch.ones_like(pixels["pixel_values"])
    mask[..., 16:, :] = 0
    first = int(hasattr(tower, "pre_layrnorm"))
    with torch.no_grad():
        tokens = tower.embeddings(pixels["pixel_values"])
        tokens = tokens[:, : first + (tokens.shape[1] - first) // 2]
        if first:
            states = tower.encoder(inputs_embeds=tower.pre_layrnorm(tokens)).last_hidden_state
            expected = tower.post_layernorm(states[:, 0])
        else:
            expected = tower.head(tower.post_layernorm(tower.encoder(inputs_embeds=tokens).last_hidden_state))
    near(run(model, pixel_mask=mask, **pixels).pooler_output, expected)


def test_masked_pixels_and_bands_add_nothing(clip):
    model, pixels = AgriClipModel.from_clip(clip, 1).vision_model, image()
    mask = torch.ones_like(pixels["pixel_values"])
    mask[:, 1] = 0
    mask[:, :, ::3, ::2] = 0
    expected = run(clip.vision_model, pixel_values=pixels["pixel_values"] * mask)
    output = run(model, pixel_mask=mask, **pixels)
    assert output.cell_mask.all()
    near(output.pooler_output, expected.pooler_output)


def test_all_masked_is_finite_and_flagged(clip):
    model, pixels = AgriClipModel.from_clip(clip).vision_model, image(dates=2)
    mask = torch.ones_like(pixels["pixel_values"])
    mask[0] = 0
    output = run(model, pixel_mask=mask, **pixels)
    assert output.image_valid.tolist() == [0, 1]
    assert output.pooler_output.isfinite().all()
    near(output.pooler_output[:1], model.pooling.empty.detach())


def test_dates_start_as_their_mean(clip):
    model, pixels = AgriClipModel.from_clip(clip, 1).vision_model, image()
    once = run(model, **pixels)
    twice = pixels["pixel_values"].unsqueeze(1).repeat(1, 3, 1, 1, 1)
    again = run(model, pixel_values=twice, channels=pixels["channels"], dates=torch.tensor([[100, 150, 200]]))
    near(again.pooler_output, once.pooler_output)
    cells = model.train()(**pixels)
    near(cells.pooler_output.detach(), once.pooler_output)


@pytest.mark.parametrize("variant", ["clip", "siglip_wide"])
def test_save_and_load(variant, tmp_path):
    model, inputs = AgriClipModel.from_clip(make(variant)), image(40, 40) | {"input_ids": texts(rows=2)}
    model.save_pretrained(tmp_path)
    loaded = AgriClipModel.from_pretrained(tmp_path).eval()
    before, after = run(model, **inputs), run(loaded, **inputs)
    for key in ("logits_per_image", "image_embeds", "text_embeds", "fused_state"):
        assert torch.equal(before[key], after[key]), key
    assert isinstance(loaded.config.vision_config.transformer_config.hidden_size, int)
    tower = AgriClipVisionModel(loaded.config.vision_config)
    assert tower.state_dict().keys() == model.vision_model.state_dict().keys()


def test_other_heads_take_the_folder(tmp_path):
    AgriClipModel.from_clip(make("siglip")).save_pretrained(tmp_path)
    inputs = image() | {"input_ids": texts(rows=2)}
    model = AgriClipForSuitability.from_pretrained(tmp_path).eval()
    output = run(model, labels=torch.tensor([0.0, 1.0]), **inputs)
    assert output.loss.isfinite() and output.cell_probabilities.shape == (2, 16)
    pretraining = AgriClipForPreTraining.from_pretrained(tmp_path).train()
    loss = pretraining(**inputs).loss
    loss.backward()
    unused = [name for name, parameter in pretraining.named_parameters() if parameter.grad is None]
    assert loss.isfinite() and not unused


LOAD = f"""
import sys; sys.path = [p for p in sys.path if p != {str(ROOT)!r}]
sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]
import importlib.util, torch
from transformers import AutoModel
model = AutoModel.from_pretrained("agriclip", trust_remote_code=True).eval()
inputs, expected = torch.load("case.pt")
with torch.no_grad():
    equal = torch.equal(model(**inputs).logits_per_image, expected)
print(importlib.util.find_spec("modeling_agriclip") is None, equal)
"""


def test_folder_loads_where_nothing_is_installed(tmp_path):
    model, inputs = AgriClipModel.from_clip(make("clip")), image() | {"input_ids": texts()}
    model.save_pretrained(tmp_path / "agriclip")
    torch.save((inputs, run(model, **inputs).logits_per_image), tmp_path / "case.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", LOAD]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_eager_compiled_and_bfloat16(clip):
    inputs = image(40, 40) | {"input_ids": texts(rows=2)}
    model = AgriClipModel.from_clip(clip)
    expected = run(model, **inputs).logits_per_image
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    near(run(compiled, **inputs).logits_per_image, expected, 1e-4)
    model.set_attn_implementation("eager")
    near(run(model, **inputs).logits_per_image, expected, 1e-4)
    rough = run(model.to(torch.bfloat16), **inputs).logits_per_image
    assert (rough.float() - expected).abs().max() < 0.1 * expected.abs().max() + 0.1


def test_overrides_are_merged():
    model = AgriClipModel.from_clip(
        make("clip"), vision_config={"temporal_layers": 2}, fuser_config={"num_hidden_layers": 1}, number_token_id=120
    )
    assert len(model.vision_model.temporal.layers) == 2 and len(model.fuser.layers) == 1
    assert model.config.text_config.vocab_size == 121
    assert model.config.vision_config.num_scales == 3


def test_other_checkpoints_are_refused(tmp_path):
    with pytest.raises(OSError, match="No checkpoint was found at 'nowhere/at-all'"):
        AgriClipModel.from_clip("nowhere/at-all")
    bert = BertModel(BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="The model given is a BertModel; `from_clip` takes a CLIPModel"):
        AgriClipModel.from_clip(bert)
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is of model type 'bert'"):
        AgriClipModel.from_clip(tmp_path / "bert")
    clip = make("clip")
    clip.config.save_pretrained(tmp_path / "empty")
    with pytest.raises(OSError, match="no weights that can be read"):
        AgriClipModel.from_clip(tmp_path / "empty")
    state = {key: value for key, value in clip.state_dict().items() if "post_layernorm" not in key}
    clip.save_pretrained(tmp_path / "partial", state_dict=state)
    with pytest.raises(ValueError, match="lacks 2 weights, such as 'vision_model.post_layernorm.bias'"):
        AgriClipModel.from_clip(tmp_path / "partial")
    clip.config.vision_config.num_channels = 4
    with pytest.raises(ValueError, match="reads 4 channels"):
        AgriClipModel.from_clip(clip)
