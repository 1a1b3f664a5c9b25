"""What the tests of a release share: tiny fitted folders, releases made of them, and a Hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation.release.card import CardFacts, write_card
from evaluation.release.folder import open_release, prepare_release
from evaluation.results import Score
from modeling_agriclip import AgriClipConfig, AgriClipForSuitability, Calibration, ConformalLevel
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.sensors_agriclip import ChannelSpec
from processing.tokenizer import build_tokenizer

from .hub_stand_in import HubStandIn

REPO = "ada/tiny-soybean"
CHANNELS = (
    ChannelSpec("ndvi_p90", "index", variable="ndvi_p90", mean=0.57, std=0.23),
    ChannelSpec("woody_cover", "cover_fraction", variable="woody_cover", mean=24.4, std=25.5, unit="%"),
)
SCORES = (
    Score("suitability", "toy", "spatial blocks", "ap", 0.81, 0.77, 0.85, n=200),
    Score("suitability", "toy", "spatial blocks", "brier", 0.11, 0.09, 0.13, n=200),
    Score("suitability", "toy", "spatial blocks", "ap", 0.80, 0.76, 0.84, n=200, model="random forest"),
    Score("suitability", "toy", "spatial blocks", "ap", 0.01, -0.01, 0.03, n=200, against="random forest"),
)
STUDY = """\
name: toy_soybean
title: Soybean in a toy land
description: Made for tests.
data: {data}
grid: {{bounds: [0, 0, 4, 4], crs: "EPSG:4326", resolution: 1}}
labels: {{table: virtual_places.csv, id: id, x: lon, y: lat, positive: crop, total: land}}
predictors:
  - file: virtual_climate.tif
    variables:
      - {{name: bio12, title: annual precipitation, unit: mm, decimals: 0}}
      - {{name: bio1, title: annual mean temperature, unit: degC}}
splits: {{kind: spatial_blocks, size: 1.0, folds: 2, seed: 0}}
"""


@pytest.fixture(scope="session")
def processor() -> AgriClipProcessor:
    return AgriClipProcessor(AgriClipImageProcessor(), build_tokenizer(vocab_size=900))


def make(cls, processor, seed=0, **overrides):
    torch.manual_seed(seed)
    model = cls(AgriClipConfig.from_size("tiny", vocab_size=len(processor.tokenizer), **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.05)
    return model


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, processor) -> Path:
    """What a fit of an ensemble leaves behind, private traces included."""
    output = tmp_path_factory.mktemp("out")
    folder = output / "model"
    make(AgriClipForSuitability, processor, seed=7).save_pretrained(folder)
    processor.save_pretrained(folder)
    for number in (1, 2, 10):
        member = folder / "members" / f"fold_{number}"
        make(AgriClipForSuitability, processor, seed=number).save_pretrained(member)
        processor.save_pretrained(member)
        Calibration("temperature", scale=0.5 + 0.1 * number).save(member)
    Calibration(levels=(ConformalLevel(0.1, (0.7, 0.6)),)).save(folder)
    coverage = {"0.90": {"places": 200, "pooled": 0.905, "suitable": 0.89, "undecided": 0.2}}
    summary = {"study": "toy_soybean", "sites": 200, "seconds": 90.0, "coverage": coverage, "cache": str(output / "x")}
    (folder / "training_summary.json").write_text(json.dumps(summary))
    (folder / "study.yaml").write_text(STUDY.format(data=str(output)))
    (folder / "heldout_predictions.csv").write_text("id,observed\n1,0.5\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.pt").write_bytes(b"\x80\x02}q\x00.")
    return folder


@pytest.fixture(scope="session")
def made_once(fitted, tmp_path_factory):
    made = prepare_release(fitted, tmp_path_factory.mktemp("made") / REPO, channels=CHANNELS, gsd=900.0)
    write_card(made, REPO, CardFacts(scores=SCORES, channels=CHANNELS, gsd=900.0, date="2026-01-31"))
    return made


@pytest.fixture
def release(made_once, tmp_path):
    """A release with its card; each test has its own."""
    return open_release(shutil.copytree(made_once.path, tmp_path / REPO))


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine, in place of the real one; nobody is logged in."""
    import huggingface_hub.constants as constants

    server = HubStandIn()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its servers speak a protocol of their own
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    yield server
    server.close()


BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("agriclip_cli", "evaluation", "mapping", "modeling_agriclip", "processing", "training"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_clean(code: str, folder: Path, modules: Path) -> str:
    """Run code in `folder` where no package of ours can be imported; what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HF_MODULES_CACHE": str(modules), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", BLOCK + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
