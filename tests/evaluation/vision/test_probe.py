"""Probes: units, splits and classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.vision.classes import ClassTable
from evaluation.vision.encoders import load_encoder
from evaluation.vision.images import find_images
from evaluation.vision.probe import run_probe, split_units
from evaluation.vision.units import BANDS, OURS, Units, cell_units, chip_units, series_units
from processing.errors import AgriClipError
from tests.evaluation.vision.conftest import write_tile


def _units(signal: float, count: int = 200, **more: Any) -> Units:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, count)
    good = random.normal(size=(count, 8)) + signal * np.eye(3)[y] @ random.normal(size=(3, 8))
    bad = random.normal(size=(count, 8))
    place = random.uniform(0, 10, (count, 2))
    values = {"features": {OURS: good.astype(np.float32), BANDS: bad.astype(np.float32)}, "index": y}
    fields = {"names": ["a", "b", "c"], "place": place, "edge": 0.2, "group": np.arange(count), **values, **more}
    return Units(**fields)


def test_a_probe_finds_what_is_there_and_nothing_else() -> None:
    found = run_probe(_units(3.0))
    assert found.result["linear", OURS]["accuracy"]["value"] > 0.9
    assert found.result["nearest neighbours", OURS]["accuracy"]["value"] > 0.85
    assert found.result["linear", BANDS]["accuracy"]["value"] < 0.45
    value, low, high = found.differences[f"linear against linear on {BANDS}"]["accuracy"]
    assert value > 0.4 and low is not None and low > 0.3 and high is not None and low < value < high
    assert len(found.test) == 200 and "blocks" in found.split


def test_blocks_and_given_splits_are_kept_apart() -> None:
    units = _units(1.0)
    parts, blocks, _, _ = split_units(units, 5, None, 0)
    for train, test in parts:
        assert not set(blocks[train]) & set(blocks[test])
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(200))
    given = _units(1.0, split=["train"] * 150 + ["test"] * 50)
    parts, _, told, _ = split_units(given, 5, None, 0)
    assert parts[0][1].tolist() == list(range(150, 200)) and told == "the split that the labels give"
    groups = _units(1.0, place=None, group=np.repeat(np.arange(4), 50))
    parts, _, told, warnings = split_units(groups, 5, None, 0)
    assert len(parts) == 4 and warnings and "4 whole images" in told
    with pytest.raises(AgriClipError, match="one block"):
        split_units(_units(1.0, place=None, group=np.zeros(200, dtype=int)), 5, None, 0)
    with pytest.raises(AgriClipError, match="one class only"):
        run_probe(_units(1.0, index=np.zeros(200, dtype=int)))


def test_chips_and_cells_take_the_class_of_their_own_pixels(tmp_path: Path, agriclip_folder: Path) -> None:
    codes = np.zeros((1, 32, 32), np.uint8)
    codes[:, :16] = 5
    codes[:, 16:, 16:] = 111
    random = np.random.default_rng(0)
    for i in range(2):
        values = random.integers(20, 500, (6, 32, 32)).astype(np.int16)
        write_tile(tmp_path / "images" / f"{i}.tif", values, origin=(960.0 * i, 0.0), scale=8e-4)
        write_tile(tmp_path / "masks" / f"{i}.tif", codes, names=None)
    table, classes = find_images(tmp_path / "images"), ClassTable(["soybean", "water"], {5: 0, 111: 1})
    encoder = load_encoder(agriclip_folder, "cpu")
    chips = chip_units(encoder, table, tmp_path / "masks", classes, 16)
    assert chips.index.tolist() == [0, 0, 1] * 2 and chips.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert chips.place is not None and chips.place[:3].tolist() == [[240, -240], [720, -240], [720, -720]]
    image = table.read(1)
    assert image is not None
    part = image.stack.values[:, 16:, 16:] * 8e-4
    np.testing.assert_allclose(chips.features[BANDS][5, :6], part.mean(dim=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(chips.features[BANDS][5, 18:24], np.median(part.reshape(6, -1), axis=1), rtol=1e-4)
    cells = cell_units(encoder, table, tmp_path / "masks", classes)
    patch = encoder.model.config.vision_config.patch_size
    assert np.bincount(cells.index).tolist() == [2 * 2 * (16 // patch) ** 2, 2 * (16 // patch) ** 2]
    few = cell_units(encoder, table, tmp_path / "masks", classes, per_image=3)
    assert len(few.index) == 6


def test_a_series_of_pixels_is_seen_as_the_image_processor_would_show_it(
    tmp_path: Path, agriclip_folder: Path
) -> None:
    random = np.random.default_rng(0)
    x = random.uniform(0.05, 0.6, (6, 4, 3)).astype(np.float32)
    x[1, 2] = np.nan
    dates = np.array([["2013-11-17", "2013-12-31", "2014-01-01", "2014-02-02"]] * 6)
    np.savez(
        tmp_path / "s.npz",
        x=x,
        bands=np.array(["NIR", "RED", "NDVI"]),
        label=np.array(["Soy", "Corn"] * 3),
        dates=dates,
        lon=np.arange(6.0),
        lat=np.zeros(6),
    )
    encoder = load_encoder(agriclip_folder, "cpu")
    units = series_units(encoder, tmp_path / "s.npz")
    inputs = encoder.processor.image_processor(
        x[..., None, None],
        sensor="modis_vi",
        channels=["nir", "red", "ndvi"],
        dates=dates.tolist(),
        do_rescale=False,
        return_tensors="pt",
    )
    np.testing.assert_allclose(units.features[OURS], encoder.encode_tensors(dict(inputs), "pooled"), atol=1e-5)
    assert units.names == ["Corn", "Soy"] and units.index.tolist() == [1, 0] * 3
    np.savez(tmp_path / "t.npz", x=x)
    with pytest.raises(AgriClipError, match="no array bands, label"):
        series_units(encoder, tmp_path / "t.npz")
