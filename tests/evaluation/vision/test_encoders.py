"""Encoders answer what the models themselves answer, for three families behind one interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

from evaluation.vision.encoders import AgriClipEncoder, PhotographEncoder, load_encoder
from evaluation.vision.images import find_images
from modeling_agriclip import AgriClipForSemanticSegmentation, AgriClipModel
from processing.errors import AgriClipError
from processing.processing_agriclip import AgriClipProcessor
from tests.evaluation.vision.conftest import write_photograph, write_tile

TEXTS = ["a satellite image of soybean", "corn", "open water near a town"]


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for i in range(3):
        values = random.integers(20, 500, (6, 20, 28)).astype(np.int16)
        write_tile(tmp_path / "tiles" / f"{i}.tif", values, origin=(840.0 * i, 0.0), scale=8e-4)
    return tmp_path / "tiles"


def test_agriclip_is_asked_as_its_own_classes_would_be(agriclip_folder: Path, tiles: Path) -> None:
    encoder = load_encoder(agriclip_folder, "cpu")
    assert isinstance(encoder, AgriClipEncoder) and encoder.aligned and encoder.default_sensor == "landsat8"
    table = find_images(tiles)
    images = [table.read(i) for i in range(3)]
    processor = AgriClipProcessor.from_pretrained(agriclip_folder)
    inputs = processor.image_processor(
        [str(f) for f in sorted(tiles.iterdir())], sensor="landsat8", return_tensors="pt"
    )
    model = AgriClipModel.from_pretrained(agriclip_folder).eval()
    with torch.no_grad():
        expected = model.get_image_features(**inputs)
        texts = model.get_text_features(**processor(text=TEXTS))
        whole = model(**processor(text=TEXTS), **inputs)
    np.testing.assert_allclose(encoder.encode_images(images), expected.pooler_output, atol=1e-5)
    found = encoder.encode_texts(TEXTS)
    np.testing.assert_allclose(found, texts.pooler_output, atol=1e-5)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (encoder.encode_images(images), found)]
    logits = unit[0] @ unit[1].T * encoder.logit_scale + encoder.logit_bias
    np.testing.assert_allclose(logits, whole.logits_per_image, atol=1e-4)
    cells = encoder.encode_cells(images)
    patch = model.config.vision_config.patch_size
    assert cells[0].shape[:2] == (-(-20 // patch), -(-28 // patch))
    np.testing.assert_allclose(cells[1].reshape(-1, cells[1].shape[-1]), expected.last_hidden_state[1], atol=1e-5)
    assert encoder.encode_images(images, "cells").shape == (3, 3 * model.config.vision_config.hidden_size)


def test_the_segmentation_head_is_asked_as_its_own_class_would_be(agriclip_folder: Path, tiles: Path) -> None:
    encoder = load_encoder(agriclip_folder, "cpu")
    table = find_images(tiles)
    images = [table.read(i) for i in range(3)]
    logits = encoder.segment(images, encoder.segment_texts(TEXTS))
    model = AgriClipForSemanticSegmentation.from_pretrained(agriclip_folder).eval()
    processor = AgriClipProcessor.from_pretrained(agriclip_folder)
    inputs = processor.image_processor([image.stack for image in images], sensor="landsat8", return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, **processor(text=TEXTS)).logits
    assert encoder.segments_by == "the segmentation head"
    np.testing.assert_allclose(np.stack(logits), expected, atol=1e-4)
    larger = load_encoder(agriclip_folder, "cpu", size=40)
    assert larger.segment(images[:1], larger.segment_texts(TEXTS))[0].shape == (3, 20, 28)


def test_descriptors_are_the_segmentation_models_own_and_photograph_models_have_none(
    agriclip_folder: Path, clip_folder: Path, tiles: Path
) -> None:
    encoder, table = load_encoder(agriclip_folder, "cpu"), find_images(tiles)
    images = [table.read(i) for i in range(3)]
    model = AgriClipForSemanticSegmentation.from_pretrained(agriclip_folder).eval()
    inputs = AgriClipProcessor.from_pretrained(agriclip_folder).image_processor(
        [str(f) for f in sorted(tiles.iterdir())], sensor="landsat8", return_tensors="pt"
    )
    with torch.no_grad():
        expected = model.get_image_descriptors(**inputs)
    np.testing.assert_allclose(encoder.encode_images(images, "descriptor"), expected, atol=1e-5)
    assert encoder.probe_features == "descriptor"
    other = load_encoder(clip_folder, "cpu")
    assert other.probe_features == "pooled"
    with pytest.raises(AgriClipError, match="no pixels' path of its own"):
        other.encode_images(images, "descriptor")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_photograph_models_are_asked_as_transformers_would(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    encoder = load_encoder(folder, "cpu")
    assert isinstance(encoder, PhotographEncoder) and encoder.family == family
    for i, colour in enumerate([(200, 40, 40), (40, 200, 40)]):
        write_photograph(tmp_path / "p" / f"{i}.png", colour)
    table = find_images(tmp_path / "p")
    images = [table.read(i) for i in range(2)]
    model = (CLIPModel if family == "clip" else SiglipModel).from_pretrained(folder).eval()
    pictures = [Picture.open(tmp_path / "p" / f"{i}.png") for i in range(2)]
    pixels = AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")["pixel_values"]
    padding = {"padding": "max_length", "max_length": 16} if family == "siglip" else {"padding": True}
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", truncation=True, **padding)
    if family == "siglip":
        tokens = {"input_ids": tokens["input_ids"]}
    with torch.no_grad():
        whole = model(pixel_values=pixels, **tokens)
    vectors, texts = encoder.encode_images(images), encoder.encode_texts(TEXTS)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors, texts)]
    logits = unit[0] @ unit[1].T * encoder.logit_scale + encoder.logit_bias
    np.testing.assert_allclose(logits, whole.logits_per_image, atol=1e-4)
    assert encoder.encode_cells(images)[0].shape == (4, 4, 16)
    assert encoder.encode_cells(images, projected=True)[0].shape == (4, 4, texts.shape[1])
    assert encoder.segment(images, texts)[0].shape == (3, 32, 32)
    assert encoder.encode_images(images, "cells").shape[1] == 48


def test_dense_features_agree_with_the_pooled_one_where_there_is_one_cell(siglip_folder: Path) -> None:
    # The pooling head over a single cell is what makes the image's embedding of an image of one cell.
    encoder = load_encoder(siglip_folder, "cpu")
    tower = encoder.model.vision_model
    tokens = torch.randn(1, 1, 16)
    torch.testing.assert_close(tower.head(tokens), tower.head(tokens.flatten(0, 1).unsqueeze(1)))


def test_a_doubt_about_units_is_told_once_by_an_encoder_and_again_by_the_next(
    agriclip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tile(tmp_path / "0.tif", np.full((6, 8, 8), 300, np.int16), scale=1.0)
    table = find_images(tmp_path)
    for _ in range(2):
        caplog.clear()
        encoder = load_encoder(agriclip_folder, "cpu")
        for _ in range(2):
            encoder.encode_images([table.read(0)])
        assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_long_texts_are_cut_and_counted(clip_folder: Path, siglip_folder: Path, agriclip_folder: Path) -> None:
    long = " ".join(["soybean"] * 600)
    for folder in (clip_folder, siglip_folder, agriclip_folder):
        encoder = load_encoder(folder, "cpu")
        assert encoder.encode_texts(["soybean", long]).shape[0] == 2
        assert encoder.truncated == 1


def test_what_is_no_model_is_refused_in_one_sentence(tmp_path: Path, agriclip_folder: Path) -> None:
    with pytest.raises(AgriClipError, match="no model in the folder"):
        load_encoder(tmp_path)
    with pytest.raises(AgriClipError, match="There is no model"):
        load_encoder(tmp_path / "nothing")
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(agriclip_folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    kept = {n: v for n, v in weights.items() if not n.startswith(("visual_projection", "segmentation_head"))}
    save_file(kept, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder(tmp_path / "m", "cpu")
    with pytest.raises(AgriClipError, match="not trained to align"):
        encoder.encode_texts(["soybean"])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(AgriClipError, match="cannot be loaded"):
        load_encoder(tmp_path / "bert")
