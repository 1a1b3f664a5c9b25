"""Is Sentinel-2's offset of -1000 still inside the digital numbers? Decided from the pixels, with the measure told.

Since processing baseline 04.00, and in older scenes that were processed again, 1000 is added to every number;
archives differ in whether they took it off again, and their metadata in whether they say so rightly. A cropland whose
blue reflectance is 0.04 reads 0.14 when the offset is forgotten. Three choices: dark land decides (the first
percentile of blue over vegetation, soil, water and unclassified pixels); between the two limits the scene is held
against its time series, then its metadata are trusted, and only then its other bands are asked; and every decision
carries the number it rests on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import AgriClipError
from .sensors_agriclip import detect_sentinel2_offset

logger = logging.getLogger(__name__)

OFFSET = -1000.0  # what BOA_ADD_OFFSET and RADIO_ADD_OFFSET are in every product so far
SCALE = 1e-4  # reflectance of one digital number
CLEAR_CLASSES = (4, 5, 6, 7)  # scene classification: vegetation, bare soil, water, unclassified
DARK_PERCENTILE = 1.0
INSIDE_FROM = 1000.0  # with the offset inside, nothing is darker than it, but for noise
REMOVED_BELOW = 600.0  # dark land is darker than this when the offset is gone
FEWEST = 100  # pixels; a percentile of fewer is chance
FIRST_BASELINE = 4.0  # processing baseline since which the offset is added


class OffsetDecision(Enum):
    """Where the offset is: still in the digital numbers, taken off, or not to be known."""

    INSIDE = "inside"
    REMOVED = "removed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class OffsetVerdict:
    """A decision and what it rests on.

    Attributes:
        decision: Where the offset is.
        percentile: First percentile of the clear blue digital numbers; NaN where there were too few.
        pixels: Clear pixels that were looked at.
        reason: One clause on what decided.
    """

    decision: OffsetDecision
    percentile: float
    pixels: int
    reason: str

    @property
    def added(self) -> float:
        """Number to add to the stored numbers: -1000 where the offset is inside, else 0."""
        return OFFSET if self.decision is OffsetDecision.INSIDE else 0.0

    def reflectance(self, stored: Any) -> NDArray[np.float32]:
        """Return reflectance of digital numbers; 0, which is nodata, becomes NaN."""
        numbers = np.asarray(stored)
        out = (numbers.astype(np.float64) + self.added) * SCALE
        return np.where(numbers == 0, np.nan, out).astype(np.float32)


def decide_offset(
    blue: Any,
    scl: Any = None,
    *,
    bands: Any = None,
    series_median: float | None = None,
    metadata: OffsetDecision = OffsetDecision.UNKNOWN,
    scene: str = "scene",
) -> OffsetVerdict:
    """Decide whether the offset is inside the digital numbers of a scene, and log why.

    With `P1` the first percentile of clear blue numbers: inside from 1000 on, removed below 600. Between, in this
    order: the median of the scene is held against that of its time series; the metadata are believed; the darkest
    numbers of all bands are asked, as the image processor does (`detect_sentinel2_offset`).

    Args:
        blue: Digital numbers of B02, any shape, 0 = nodata. A thinned copy of the scene does.
        scl: Scene classification of the same shape; pixels of classes 4-7 are looked at. Without it clouds cannot be
            told, and `bands` guards against a scene that is bright for another reason (cloud, snow, Level-1C haze).
        bands: Digital numbers of all bands, (C, ...).
        series_median: Median clear blue number of the same place on other dates, without offset.
        metadata: What the metadata say; see `offset_in_metadata`.
        scene: Name in the log.

    Returns:
        The decision.

    Raises:
        AgriClipError: `scl` is of another shape than `blue`.
    """
    numbers = np.asarray(blue, dtype=np.float64)
    clear = np.isfinite(numbers) & (numbers > 0)
    if scl is not None:
        classes = np.asarray(scl)
        if classes.shape != numbers.shape:
            raise AgriClipError(
                f"The scene classification of {scene} is {classes.shape} and its blue band {numbers.shape}; read both "
                "onto one grid."
            )
        clear &= np.isin(classes, CLEAR_CLASSES)
    verdict = _decide(numbers[clear], scl is None, bands, series_median, metadata)
    logger.info(
        "%s: offset %s, P%g of blue is %.0f over %d clear pixels; %s.",
        scene,
        verdict.decision.value,
        DARK_PERCENTILE,
        verdict.percentile,
        verdict.pixels,
        verdict.reason,
    )
    return verdict


def _decide(
    blue: NDArray[np.float64], may_be_cloud: bool, bands: Any, series_median: float | None, metadata: OffsetDecision
) -> OffsetVerdict:
    if len(blue) < FEWEST:
        return OffsetVerdict(
            metadata, math.nan, len(blue), f"too few clear pixels, so the metadata decide{_say(metadata)}"
        )
    dark = float(np.percentile(blue, DARK_PERCENTILE))

    def verdict(decision: OffsetDecision, reason: str) -> OffsetVerdict:
        return OffsetVerdict(decision, dark, len(blue), reason)

    if dark < REMOVED_BELOW:
        return verdict(OffsetDecision.REMOVED, f"dark land lies below {REMOVED_BELOW:g}")
    if dark >= INSIDE_FROM:
        if may_be_cloud and bands is not None and detect_sentinel2_offset(blue, bands) == 0.0:
            return verdict(
                OffsetDecision.REMOVED,
                f"blue is bright from {INSIDE_FROM:g} on, but another band is dark: haze or cloud",
            )
        return verdict(OffsetDecision.INSIDE, f"nothing is darker than {INSIDE_FROM:g}")
    between = f"P1 lies between {REMOVED_BELOW:g} and {INSIDE_FROM:g}"
    if series_median is not None and math.isfinite(series_median):
        median = float(np.median(blue))
        inside = median - series_median > -OFFSET / 2
        return verdict(
            OffsetDecision.INSIDE if inside else OffsetDecision.REMOVED,
            f"{between}; the median {median:.0f} is held against {series_median:.0f} of the time series",
        )
    if metadata is not OffsetDecision.UNKNOWN:
        return verdict(metadata, f"{between}, so the metadata are trusted{_say(metadata)}")
    if bands is not None:
        inside = detect_sentinel2_offset(blue, bands) != 0.0
        return verdict(
            OffsetDecision.INSIDE if inside else OffsetDecision.REMOVED,
            f"{between} and nothing is said; the darkest numbers of the other bands decide",
        )
    return verdict(OffsetDecision.UNKNOWN, f"{between} and neither metadata nor other dates say more; left as it is")


def _say(metadata: OffsetDecision) -> str:
    return " and say nothing" if metadata is OffsetDecision.UNKNOWN else f" and say {metadata.value}"


def offset_in_metadata(properties: Mapping[str, Any], band_offset: float | None = None) -> OffsetDecision:
    """Read from a scene's metadata where the offset is; archives are known to be wrong, so pixels go first.

    Args:
        properties: Properties of a STAC item: `earthsearch:boa_offset_applied` (taken off by the archive), and
            `s2:processing_baseline`, `earthsearch:processing_baseline` or `processing:version`.
        band_offset: Offset that the band's metadata ask to be added, in reflectance (`raster:bands`, -0.1).

    Returns:
        The decision.
    """
    if properties.get("earthsearch:boa_offset_applied"):
        return OffsetDecision.REMOVED
    if band_offset:
        return OffsetDecision.INSIDE
    for key in ("s2:processing_baseline", "earthsearch:processing_baseline", "processing:version"):
        try:
            baseline = float(str(properties[key]))
        except (KeyError, ValueError):
            continue
        return OffsetDecision.INSIDE if baseline >= FIRST_BASELINE else OffsetDecision.REMOVED
    return OffsetDecision.UNKNOWN
