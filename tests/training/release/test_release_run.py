"""A run of the released checkpoint in small: stopped and gone on with, saved, loaded by every class, put together."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file

from modeling_agriclip import AgriClipForPreTraining, AgriClipForSuitability, AgriClipModel
from modeling_agriclip.modeling_agriclip import AgriClipForSemanticSegmentation
from processing.errors import AgriClipError
from processing.study import load_study
from training.release import folder, run
from training.release.run import Settings, train

SMALL = {
    "vision_config": {"stage_sizes": (16, 32), "stage_depths": (1, 1), "stage_heads": (2, 4), "hidden_size": 32},
    "text_config": {
        "encoder_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 512,
        }
    },
    "fuser_config": {"num_hidden_layers": 1, "num_attention_heads": 2},
    "projection_dim": 32,
}
SMALL["vision_config"] |= {"patch_size": 8, "pixel_size": 8, "channel_hidden_size": 16}
SETTINGS = Settings(
    epochs=2, tiles=4, sites=8, series=4, phrases=8, reading_steps=2, pixel_steps=2, season_steps=2, average=0.5
)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Ten tiles of 16 x 16 pixels in two rows."""
    root = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    names = ("blue", "green", "red", "nir", "swir1", "swir2")
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for number in range(10):
        name = f"{number // 5 * 5:02d}_{number % 5 * 5:02d}.tif"
        codes = np.kron(rng.choice([5, 176, 23, 1, 195, 111], (4, 4)), np.ones((4, 4))).astype(np.uint8)
        profile = {"driver": "GTiff", "height": 16, "width": 16, "transform": rasterio.Affine(30, 0, 0, 0, -30, 0)}
        with rasterio.open(root / "images" / name, "w", count=6, dtype="int16", **profile) as file:
            file.write(rng.integers(50, 400, (6, 16, 16)).astype(np.int16))
            file.scales = (8e-4,) * 6
            file.descriptions = names
        with rasterio.open(root / "masks" / name, "w", count=1, dtype="uint8", **profile) as file:
            file.write(codes, 1)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(run, "SIZES", SMALL)
    monkeypatch.setattr(run, "start_words", lambda *args: 0)


@pytest.fixture(scope="module")
def released(tiles, landscape, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "SIZES", SMALL)
        patch.setattr(run, "start_words", lambda *args: 0)
        out = tmp_path_factory.mktemp("release") / "agriclip"
        return train(load_study(landscape), tiles, out, SETTINGS, quiet=True)


def test_stopped_and_gone_on_with(released, tiles, landscape, tmp_path):
    study, out = load_study(landscape), tmp_path / "agriclip"
    train(study, tiles, out, SETTINGS, quiet=True, stop_after=2)
    assert not out.exists() and (tmp_path / ".agriclip.partial" / "checkpoint.pt").exists()
    with pytest.raises(AgriClipError, match="other settings"):
        train(study, tiles, out, Settings(epochs=9), quiet=True)
    train(study, tiles, out, SETTINGS, quiet=True)
    whole, resumed = (load_file(path / "model.safetensors") for path in (released, out))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / ".agriclip.partial").exists()


@pytest.mark.parametrize(
    "model_class", [AgriClipModel, AgriClipForSuitability, AgriClipForSemanticSegmentation, AgriClipForPreTraining]
)
def test_every_class_takes_its_own_weights(released, model_class):
    model, told = model_class.from_pretrained(released, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    assert model.dtype == torch.float32
    stored = load_file(released / "model.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values() if value.is_floating_point())
    name = "vision_model.pooling.empty"
    torch.testing.assert_close(dict(model.named_parameters())[name], stored[name].float())


def test_the_last_stage_of_pixels_changes_their_head_only(released, tiles, landscape, tmp_path):
    without = train(load_study(landscape), tiles, tmp_path / "agriclip", replace(SETTINGS, pixel_steps=0), quiet=True)
    learnt, before = (load_file(path / "model.safetensors") for path in (released, without))
    changed = {name for name in learnt if not torch.equal(learnt[name], before[name])}
    assert changed and all(name.startswith("segmentation_head.") for name in changed)


def test_log_and_manifest(released, tiles):
    lines = [json.loads(line) for line in (released / "training_log.jsonl").read_text().splitlines()]
    assert "held_out_phrases" in lines[0]["reading"]
    assert lines[-3]["pixels"]["last"] > 0
    assert lines[-2]["seasons"]["last"] > 0
    assert set(lines[-1]["held_out_tiles"]) == {"accuracy", "mean_iou", "iou"}
    manifest = json.loads((released / "data_manifest.json").read_text())
    assert len([name for name in manifest["files"] if name.startswith("images/")]) == 10
    assert manifest["settings"]["epochs"] == 2


def test_ensemble_beside_the_model(released, fitted, tmp_path):
    out = tmp_path / "agriclip"
    shutil.copytree(released, out)
    size = folder.add_ensemble(out, fitted[0] / "model")
    assert size == sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    from mapping.predictor import SuitabilityPredictor

    # The time of both trainings, however often it is put together.
    folder.add_ensemble(out, fitted[0] / "model")
    ensemble, both = (json.loads((path / "training_summary.json").read_text()) for path in (fitted[0] / "model", out))
    own = json.loads((released / "training_log.jsonl").read_text().splitlines()[-1])["seconds"]
    assert both.pop("seconds") == pytest.approx(ensemble.pop("seconds") + own) and both == ensemble and own > 0
    predictor = SuitabilityPredictor(out)
    assert len(predictor.members) == 2
    source = load_file(fitted[0] / "model" / "members" / "fold_1" / "model.safetensors")
    for name, value in predictor.members[0].model.state_dict().items():
        expected = source[name] if name.startswith("gaussian_process.") else source[name].half().float()
        torch.testing.assert_close(value, expected)


def test_the_clock_of_a_log_begins_anew_where_a_training_was_taken_up(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(json.dumps(entry) + "\n" for entry in [{"seconds": 5}, {"x": 1}, {"seconds": 90}, {"seconds": 30.5}])
    )
    assert folder.logged_seconds(log) == 120.5
    log.write_text('{"seconds": 7}\n{"seconds": 7}\n')
    assert folder.logged_seconds(log) == 7


def test_a_single_fit_is_no_ensemble(released, fitted, tmp_path):
    with pytest.raises(AgriClipError, match="no ensemble"):
        folder.add_ensemble(released, fitted[0] / "model" / "members" / "fold_1")


def test_missing_tiles_say_how_to_get_them(landscape, tmp_path):
    with pytest.raises(AgriClipError, match="agriclip data get"):
        train(load_study(landscape), tmp_path, tmp_path / "out", SETTINGS, quiet=True)
