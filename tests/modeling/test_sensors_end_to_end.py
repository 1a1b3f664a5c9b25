"""One loaded `small` model takes every sensor that the processor knows, through the processor."""

import numpy as np
import pytest
import torch

from modeling_agriclip import AgriClipConfig, AgriClipModel
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.sensors_agriclip import get_sensor

CASES = {
    "RGB photograph": ("rgb", lambda rng: rng.integers(0, 256, (3, 40, 56), dtype=np.uint8), None),
    "Landsat 8 tile": ("landsat8", None, None),
    "Sentinel-2, 12 bands": ("sentinel2_l2a", None, None),
    "Sentinel-2, 13 bands": ("sentinel2_l1c", None, None),
    "Sentinel-1": ("sentinel1", lambda rng: rng.normal(-12, 3, (2, 32, 32)).astype("float32"), None),
    "DEM": ("dem", lambda rng: rng.normal(300, 40, (1, 32, 32)).astype("float32"), None),
    "twelve monthly NDVI": ("ndvi_monthly", lambda rng: rng.uniform(0, 0.9, (12, 20, 20)).astype("float32"), None),
    "23 MODIS dates": ("modis", "series", list(range(1, 366, 16))),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AgriClipModel(AgriClipConfig.from_size("small")).eval()


@pytest.mark.parametrize("case", CASES)
def test_every_sensor(case, model):
    sensor, make, dates = CASES[case]
    rng, count = np.random.default_rng(0), len(get_sensor(sensor).channels)
    if make == "series":
        image = rng.integers(200, 4000, (len(dates), count, 8, 8)).astype("int16")
    else:
        image = make(rng) if make else rng.integers(8000, 14000, (count, 32, 32)).astype("uint16")
    options = {} if dates is None else {"dates": [dates]}
    inputs = AgriClipImageProcessor()([image], sensor=sensor, **options)
    with torch.no_grad():
        output = model.get_image_features(**inputs)
    assert inputs["pixel_values"].shape[1:3] == (1 if dates is None else 23, count)
    assert output.pooler_output.shape == (1, 256)
    assert output.pooler_output.isfinite().all()
    assert output.last_hidden_state.isfinite().all()
    assert output.image_valid.tolist() == [1]
