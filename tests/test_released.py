"""The released folder: loads from the checkout, holds today's code, and does what its card says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from mapping.predictor import SuitabilityPredictor
from modeling_agriclip import AgriClipForSuitability, AgriClipModel
from modeling_agriclip.modeling_agriclip import AgriClipForSemanticSegmentation

ROOT = Path(__file__).resolve().parents[1]
RELEASED = ROOT / "agriclip"
LARGEST = 32 * 2**20


def test_weights_fit_and_are_half_precision():
    assert sum(path.stat().st_size for path in RELEASED.rglob("*.safetensors")) <= LARGEST
    assert json.loads((RELEASED / "config.json").read_text())["dtype"] == "float32"


def test_code_is_that_of_the_rooms():
    copies = [path for path in RELEASED.glob("*.py")]
    assert len(copies) > 15
    for copy in copies:
        source = next(
            path for room in ("modeling_agriclip", "processing") if (path := ROOT / room / copy.name).exists()
        )
        assert copy.read_text() == source.read_text(), f"{copy.name}: put the folder together again"


def test_every_class_finds_its_weights():
    for model_class in (AgriClipModel, AgriClipForSuitability, AgriClipForSemanticSegmentation):
        model, told = model_class.from_pretrained(RELEASED, output_loading_info=True)
        assert not told["missing_keys"] and model.dtype == torch.float32


def test_auto_model_from_the_checkout_without_our_packages(tmp_path):
    script = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained('agriclip', trust_remote_code=True)\n"
        "print(type(model).__name__, type(model).__module__)"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    name, module = done.stdout.split()
    assert name == "AgriClipModel" and module.startswith("transformers_modules")


def test_ensemble_reads_with_the_processor_at_the_root():
    predictor = SuitabilityPredictor(RELEASED)
    assert len(predictor.members) == 5 and predictor.calibration is not None
    vocabulary = len(predictor.processor.tokenizer)
    assert all(member.model.config.text_config.vocab_size == vocabulary for member in predictor.members)


def test_image_and_words_meet():
    model, processor = AutoModel.from_pretrained(RELEASED).eval(), AutoProcessor.from_pretrained(RELEASED)
    tile = np.full((6, 32, 32), 0.02, dtype=np.float32)  # dark in all bands: water
    inputs = processor(images=tile, text=["open water", "a field of soybeans"], sensor="landsat8",
                       channels=["blue", "green", "red", "nir", "swir1", "swir2"], do_rescale=False)  # fmt: skip
    with torch.no_grad():
        chance = model(**inputs).logits_per_image.softmax(dim=1)[0]
    assert chance[0] > 0.5


@pytest.mark.realdata
def test_pixels_of_held_out_tiles():
    data = Path(os.environ.get("AGRICLIP_DATA", ROOT.parent / "shared" / "data")) / "landsat8_cdl"
    if not (data / "images").is_dir():
        pytest.skip("the Landsat tiles are not there")
    from processing.image_processing_agriclip import AgriClipImageProcessor
    from training.release.tiles import COMMON, evaluate_tiles, read_tiles

    processor = AutoProcessor.from_pretrained(RELEASED)
    held = json.loads((RELEASED / "data_manifest.json").read_text())["settings"]["hold_out"]
    tiles = read_tiles(data, AgriClipImageProcessor(), captions=0)
    tiles = tiles.at(np.flatnonzero(tiles.folds == held)[::6])
    scores = evaluate_tiles(AgriClipForSemanticSegmentation.from_pretrained(RELEASED).eval(), tiles, processor)
    assert scores["accuracy"] > 0.8 and scores["iou"]["soybean"] > 0.7
    assert set(scores["iou"]) == set(COMMON.values())
