"""A small world for the tests of the Space: a study of two variables, its maps under two climates, a fresh model."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from mapping.outputs import write_cog
from processing.grids import Grid
from spaces_demo.build_example import build_example
from spaces_demo.engine import Engine
from spaces_demo.example import Example

GRID = Grid.from_bounds((-92.0, 34.0, -84.0, 40.0), 0.5, "EPSG:4326")
MODELS = ("A-1", "B-2")
SMALL = {
    "vision_config": {"stage_depths": (1, 1), "stage_sizes": (12, 24), "stage_heads": (2, 4), "hidden_size": 24},
    "text_config": {"encoder_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}},
    "projection_dim": 16,
}


def _study(folder: Path) -> dict:
    """Rasters and labels, and the study that names them."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(GRID.shape)
    temperature = (16.0 - 0.5 * rows + 0.05 * columns).round(1).astype(np.float32)
    rain = (900.0 + 30.0 * columns).astype(np.float32)
    temperature[0, 0] = np.nan
    names, units = ["temp", "rain"], ["degC", "mm"]
    for name, warmer in (("now", 0.0), ("future_a", 2.0), ("future_b", 4.0)):
        stack = np.stack([temperature + warmer, rain])
        write_cog(folder / f"{name}.tif", stack, GRID, band_names=names, units=units)
    months = np.cos(2 * np.pi * (np.arange(12) - 6.5) / 12)[:, None, None] * 12 + temperature
    write_cog(folder / "tmean.tif", months.astype(np.float32), GRID)
    write_cog(folder / "prec.tif", np.repeat(rain[None] / 12, 12, axis=0), GRID)
    lines = ["site,lon,lat,present"]
    for number in range(40):
        lines.append(f"{number},{rng.uniform(-91, -85):.3f},{rng.uniform(34.5, 39.5):.3f},{number % 2}")
    (folder / "sites.csv").write_text("\n".join(lines) + "\n")
    scenarios = [
        {"name": f"ssp585_2080_{m.lower()}", "title": f"SSP5-8.5, 2080, {m}", "ssp": "ssp585", "period": 2080,
         "climate_model": m, "replace": {"now.tif": f"future_{letter}.tif"}}
        for m, letter in zip(MODELS, "ab", strict=True)
    ]  # fmt: skip
    return {
        "name": "toy", "title": "A toy <b>study</b>", "data": str(folder), "grid": {"like": "now.tif"},
        "labels": {"table": "sites.csv", "id": "site", "x": "lon", "y": "lat", "kind": "presence_absence",
                   "positive": "present"},
        "predictors": [{"file": "now.tif", "variables": [
            {"name": "temp", "title": "annual mean temperature", "unit": "degC", "band": 1, "decimals": 1},
            {"name": "rain", "title": "annual precipitation", "unit": "mm", "band": 2, "decimals": 0},
        ]}],
        "splits": {"kind": "spatial_blocks", "size": 2.0, "folds": 2, "seed": 0},
        "scenarios": scenarios,
        "agronomy": {"mean_temperature": {"file": "tmean.tif", "unit": "degC"},
                     "precipitation": {"file": "prec.tif", "unit": "mm"}},
    }  # fmt: skip


def _maps(folder: Path) -> dict:
    """Maps of the present, two climate models and their mean, from a formula."""
    rows, columns = np.indices(GRID.shape)
    now = (columns / (GRID.width - 1)).astype(np.float32)
    now[0, 0] = np.nan
    chances = {"present": now, "ssp585_2080_a-1": now * 0.5, "ssp585_2080_b-2": np.clip(now * 1.25, 0, 1)}
    chances["ssp585_2080"] = (chances["ssp585_2080_a-1"] + chances["ssp585_2080_b-2"]) / 2
    maps: dict[str, dict[str, str]] = {}
    for key, chance in chances.items():
        layers = {"probability": chance, "std": np.full_like(now, 0.05), "std_total": np.full_like(now, 0.1)}
        layers["mess"] = np.where(key == "ssp585_2080_b-2", -20.0, 30.0) * np.ones_like(now)
        layers["mess_variable"] = np.zeros_like(now)
        layers["applicability"] = np.where(columns < 4 if key != "ssp585_2080_b-2" else columns < 8, 2, 1)
        for name, values in layers.items():
            if (name == "std_total") != (key == "ssp585_2080"):
                if name not in ("probability",):
                    continue
            tags = {"long_name": "probability of <i>suitability</i>", "members": 1, "model_sha256": "0" * 64}
            path = folder / "maps" / f"{key}_{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_cog(path, np.asarray(values, dtype=np.float32), GRID, tags=tags, band_names=[name], units=["1"])
            if key != "ssp585_2080":
                maps.setdefault(key, {})[name] = str(path)
    return maps


@pytest.fixture(scope="session")
def study_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder as `agriclip fit` and `agriclip map` leave it, with a fresh small model."""
    folder = tmp_path_factory.mktemp("study")
    study = _study(folder)
    output = folder / "out"
    maps = _maps(output)
    (output / "map.json").write_text(json.dumps({"maps": maps, "novel_percent": {}}))
    comparison = [{"model": "AgriCLIP", "ap": 0.9, "brier": 0.05}, {"model": "forest <b>", "ap": 0.8, "brier": 0.07}]
    (output / "fit.json").write_text(json.dumps({"comparison": comparison}))
    model = output / "model"
    model.mkdir()
    (model / "study.yaml").write_text(yaml.safe_dump(study))
    _fresh_model(model)
    return output


def _fresh_model(folder: Path) -> None:
    """As a release is: a root that segments, and two members that judge suitability; nobody has fitted them."""
    import torch
    from torch import nn

    from modeling_agriclip import AgriClipConfig, AgriClipForSemanticSegmentation, AgriClipForSuitability
    from processing.image_processing_agriclip import AgriClipImageProcessor
    from processing.processing_agriclip import AgriClipProcessor
    from processing.tokenizer import build_tokenizer

    processor = AgriClipProcessor(AgriClipImageProcessor(sensor="sentinel2_l2a"), build_tokenizer())
    kinds = {".": AgriClipForSemanticSegmentation, "members/fold_1": AgriClipForSuitability,
             "members/fold_2": AgriClipForSuitability}  # fmt: skip
    for seed, (name, kind) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        config = AgriClipConfig.from_size("tiny", vocab_size=len(processor.tokenizer), **SMALL)
        config.text_config.number_token_id = processor.num_token_id
        network = kind(config)
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        network.save_pretrained(folder / name)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as a visitor would bring it: the study's two predictors elsewhere."""
    grid = Grid.from_bounds((-90.0, 35.0, -88.0, 37.0), 0.5, "EPSG:4326")
    values = np.stack([np.full(grid.shape, 14.0), np.full(grid.shape, 1000.0)]).astype(np.float32)
    folder = tmp_path_factory.mktemp("mine")
    return write_cog(folder / "mine.tif", values, grid, band_names=["temp", "rain"], units=["degC", "mm"])


@pytest.fixture(scope="session")
def example_dir(study_output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example") / "example"
    build_example(study_output, folder)
    return folder


@pytest.fixture(scope="session")
def example(example_dir: Path) -> Example:
    return Example(example_dir)


@pytest.fixture(scope="session")
def engine(example: Example, study_output: Path) -> Engine:
    return Engine(example, study_output / "model")


@pytest.fixture(scope="session")
def served(example_dir: Path, study_output: Path):
    """The page, served on a free port of this machine; its address and the application."""
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'agriclip[demo]'")
    from spaces_demo.app import build_app, serve

    demo = build_app(example_dir, study_output / "model")
    _, address, _ = serve(demo, wait=False)
    yield address, demo
    demo.close()
    for thread in threading.enumerate():
        if thread.name == "load-model":
            thread.join(timeout=60)
