"""Sentinel-2's offset: found in the pixels, whatever the metadata say; between the limits the others are asked."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from processing.errors import AgriClipError
from processing.sentinel2_offset import (
    OffsetDecision,
    OffsetVerdict,
    decide_offset,
    offset_in_metadata,
)

INSIDE, REMOVED, UNKNOWN = OffsetDecision.INSIDE, OffsetDecision.REMOVED, OffsetDecision.UNKNOWN


def cropland(seed: int = 0, shape: tuple[int, int] = (60, 60)) -> np.ndarray:
    """Blue reflectance of cropland, as digital numbers without the offset."""
    return np.random.default_rng(seed).gamma(9.0, 48.0, shape) + 90.0


def hazy() -> np.ndarray:
    """Blue whose first percentile lies between the limits."""
    return cropland() + 600.0


@pytest.mark.parametrize("metadata", list(OffsetDecision))
def test_pixels_decide_against_the_metadata(metadata: OffsetDecision, caplog: pytest.LogCaptureFixture) -> None:
    blue = cropland()
    with caplog.at_level(logging.INFO, logger="processing.sentinel2_offset"):
        plain = decide_offset(blue, metadata=metadata, scene="S2A_32UPV")
        raised = decide_offset(blue + 1000.0, metadata=metadata)
    assert (plain.decision, raised.decision) == (REMOVED, INSIDE)
    assert (plain.added, raised.added) == (0.0, -1000.0)
    assert plain.percentile == pytest.approx(np.percentile(blue, 1))
    assert raised.percentile == pytest.approx(np.percentile(blue, 1) + 1000.0)
    assert np.allclose(plain.reflectance(blue), raised.reflectance(blue + 1000.0), atol=1e-6)
    assert "S2A_32UPV: offset removed, P1 of blue is" in caplog.text


def test_only_clear_pixels_count() -> None:
    blue, scl = cropland(), np.full((60, 60), 4)
    scl[:, :40] = 9  # cloud
    blue[:, :40] = 7000.0
    scl[0, :] = 3  # shadow, darker than any land
    blue[0, :] = 1.0
    blue[1, 50] = 0.0  # nodata
    clear = np.isin(scl, (4, 5, 6, 7)) & (blue > 0)
    verdict = decide_offset(blue + 1000.0 * (blue > 0), scl)
    assert verdict.decision is INSIDE
    assert verdict.pixels == clear.sum() == 59 * 20 - 1
    assert verdict.percentile == pytest.approx(np.percentile(blue[clear], 1) + 1000.0)
    with pytest.raises(AgriClipError, match="read both onto one grid"):
        decide_offset(blue, scl[:30])


def test_too_few_clear_pixels_leave_it_to_the_metadata() -> None:
    verdict = decide_offset(cropland(), np.full((60, 60), 9), metadata=INSIDE)
    assert (verdict.decision, verdict.pixels) == (INSIDE, 0)
    assert math.isnan(verdict.percentile)
    assert "too few clear pixels" in verdict.reason
    assert decide_offset(np.zeros((5, 5))).decision is UNKNOWN


def test_between_the_limits_the_time_series_then_the_metadata_then_other_bands() -> None:
    blue = hazy()
    assert 600.0 < np.percentile(blue, 1) < 1000.0
    median = float(np.median(blue))
    # the same place is usually as bright: the offset is gone; it is usually 1000 darker: the offset is inside
    assert decide_offset(blue, series_median=median - 50.0, metadata=INSIDE).decision is REMOVED
    by_series = decide_offset(blue, series_median=median - 950.0, metadata=REMOVED)
    assert by_series.decision is INSIDE
    assert "time series" in by_series.reason
    trusted = decide_offset(blue, metadata=INSIDE)
    assert trusted.decision is INSIDE
    assert "the metadata are trusted and say inside" in trusted.reason
    dark = np.stack([blue, cropland(1)])
    assert decide_offset(blue, bands=dark).decision is REMOVED
    assert decide_offset(blue, bands=np.stack([blue + 200.0, blue + 400.0])).decision is REMOVED
    nothing = decide_offset(blue)
    assert nothing.decision is UNKNOWN
    assert nothing.added == 0.0


def test_a_bright_scene_without_classification_is_judged_by_its_other_bands() -> None:
    snow = cropland() + 5000.0
    assert decide_offset(snow).decision is INSIDE
    assert decide_offset(snow, bands=np.stack([snow, cropland(1)])).decision is REMOVED  # shortwave infrared of snow
    # where clouds are known from the classification, the other bands are not needed
    clear = np.full(snow.shape, 4)
    assert decide_offset(cropland() + 1000.0, clear, bands=np.stack([snow, cropland(1)])).decision is INSIDE


@pytest.mark.parametrize(
    ("properties", "band_offset", "expected"),
    [
        ({"s2:processing_baseline": "05.09"}, None, INSIDE),
        ({"s2:processing_baseline": "03.01"}, None, REMOVED),
        ({"earthsearch:processing_baseline": "04.00"}, None, INSIDE),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, None, REMOVED),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False}, None, INSIDE),
        ({"s2:processing_baseline": "02.14", "earthsearch:boa_offset_applied": False}, None, REMOVED),
        ({"processing:version": "05.11"}, None, INSIDE),
        ({"earthsearch:boa_offset_applied": True}, -0.1, REMOVED),
        ({}, -0.1, INSIDE),
        ({"s2:processing_baseline": "new"}, None, UNKNOWN),
        ({}, 0.0, UNKNOWN),
    ],
)
def test_metadata_are_read(properties: dict[str, Any], band_offset: float | None, expected: OffsetDecision) -> None:
    assert offset_in_metadata(properties, band_offset) is expected


def test_reflectance_keeps_nodata_and_negative_values() -> None:
    inside = OffsetVerdict(INSIDE, 1200.0, 500, "")
    values = inside.reflectance(np.array([0, 990, 1000, 2000], dtype=np.uint16))
    assert values.dtype == np.float32
    assert np.allclose(values, [np.nan, -0.001, 0.0, 0.1], equal_nan=True)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("tile", "level", "expected"),
    [
        # Level-1C: the cirrus band is dark, so it tells; Level-2A of the same place, corrected for the atmosphere,
        # is darker in blue by the haze, not by another thousand
        ("282D_485L_3_3", "S2L1C", INSIDE),
        ("38D_378R_2_3", "S2L1C", REMOVED),
        ("433D_629L_3_1", "S2L1C", INSIDE),
        ("637U_59R_1_3", "S2L1C", REMOVED),
        ("282D_485L_3_3", "S2L2A", REMOVED),
        ("38D_378R_2_3", "S2L2A", REMOVED),
        ("433D_629L_3_1", "S2L2A", INSIDE),
        ("609U_541L_3_0", "S2L2A", REMOVED),
        ("637U_59R_1_3", "S2L2A", REMOVED),
    ],
)
def test_real_scenes(real_data: Path, tile: str, level: str, expected: OffsetDecision) -> None:
    path = real_data / "sentinel_examples" / level / f"{tile}.tif"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    with rasterio.open(path) as source:
        stored = source.read()
    assert decide_offset(stored[1], bands=stored).decision is expected


@pytest.mark.realdata
def test_farmland_scene_has_no_offset_and_gets_one(real_data: Path) -> None:
    path = real_data / "sentinel2_farmland" / "two_date_scene.tif"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    with rasterio.open(path) as source:
        stored = source.read().astype(np.float64)
    for blue, bands in ((stored[2], stored[:4]), (stored[6], stored[4:])):
        assert decide_offset(blue, bands=bands).decision is REMOVED
        raised = np.where(bands > 0, bands + 1000.0, 0.0)
        assert decide_offset(raised[2], bands=raised).decision is INSIDE
