"""Time series of a pixel made from nothing, so that the dates' encoder learns what a season is.

Each place has green cover through the year, the sum of up to three seasons that rise and fall at their own pace, over
soil of its own colour. Cover becomes reflectance by mixing leaf and soil spectra at the bands' wavelengths, and what a
sensor would see of it is noisy and cloudy. The task is the clean season: cover and reflectance at fixed days of the
year, from whatever dates and bands there were; and whether the place was sown twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.sensors_agriclip import ChannelSpec, get_sensor

YEAR = 365.25
DAYS = np.arange(8.0, YEAR, 15.25)  # 24 days of the year at which the clean season is asked for
# Wavelengths (nm) at which reflectance is asked for: red, near infrared, shortwave infrared.
ASKED = (650.0, 860.0, 2130.0)
TARGETS = len(DAYS) * (1 + len(ASKED))
GSD = {"modis_vi": 250.0, "modis": 500.0, "landsat8": 30.0, "sentinel2_l2a": 10.0}
# Green leaves and dry soil: wavelength (nm), reflectance, the usual shapes (Jensen 2007, Remote Sensing of the
# Environment, chapters 11 and 14); each place has its own variation of both.
_WAVES = (440, 480, 550, 600, 670, 705, 740, 780, 860, 945, 1240, 1375, 1640, 2130, 2200)
_LEAF_REFLECTANCE = (0.03, 0.035, 0.09, 0.06, 0.03, 0.13, 0.35, 0.45, 0.48, 0.46, 0.42, 0.2, 0.24, 0.11, 0.10)
_SOIL_REFLECTANCE = (0.07, 0.09, 0.13, 0.16, 0.19, 0.20, 0.22, 0.23, 0.26, 0.27, 0.33, 0.33, 0.36, 0.30, 0.29)
_LEAF, _SOIL = (np.stack([_WAVES, values], axis=1) for values in (_LEAF_REFLECTANCE, _SOIL_REFLECTANCE))


@dataclass(frozen=True)
class Places:
    """What is true of N places.

    Attributes:
        peaks: (N, 3) height of each season above the base; 0 = none.
        centres: (N, 3) day of the year of its height.
        widths: (N, 3, 2) days from the height to a cover of e^-1/2 of it, before and after.
        base: (N,) cover outside of any season.
        swing: (N,) amplitude of a slow yearly wave of the base, as of grass or forest.
        phase: (N,) day of that wave's height.
        leaf: (N, 15) spectrum of leaves.
        soil: (N, 15) spectrum of soil.
        twice: (N,) 1 where two crops follow each other within a year.
    """

    peaks: NDArray[np.float64]
    centres: NDArray[np.float64]
    widths: NDArray[np.float64]
    base: NDArray[np.float64]
    swing: NDArray[np.float64]
    phase: NDArray[np.float64]
    leaf: NDArray[np.float64]
    soil: NDArray[np.float64]
    twice: NDArray[np.float64]

    def cover(self, days: NDArray[np.float64]) -> NDArray[np.float64]:
        """Green cover (N, T) between 0 and 1 on `days` (T,) or (N, T) of the year."""
        days = np.broadcast_to(days, (len(self.base), np.shape(days)[-1]))
        apart = days[:, None] - self.centres[:, :, None]
        apart = (apart + YEAR / 2) % YEAR - YEAR / 2
        width = np.where(apart < 0, self.widths[..., :1], self.widths[..., 1:])
        seasons = (self.peaks[..., None] * np.exp(-0.5 * np.abs(apart / width) ** 2.5)).max(axis=1)
        slow = self.base[:, None] + self.swing[:, None] * np.cos(2 * np.pi * (days - self.phase[:, None]) / YEAR)
        return np.clip(slow + seasons, 0.0, 1.0)

    def reflectance(self, cover: NDArray[np.float64], wavelengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cover (N, T) and wavelengths in nm (C,) to reflectance (N, T, C)."""
        leaf = np.stack([np.interp(wavelengths, _LEAF[:, 0], row) for row in self.leaf])
        soil = np.stack([np.interp(wavelengths, _SOIL[:, 0], row) for row in self.soil])
        return cover[..., None] * leaf[:, None] + (1 - cover[..., None]) * soil[:, None]


def draw_places(count: int, rng: np.random.Generator) -> Places:
    """Places of every kind: one crop, two in a row, cut fodder, grass, forest, bare land."""
    kind = rng.choice(6, size=count, p=(0.25, 0.3, 0.1, 0.13, 0.12, 0.1))
    peaks, centres = np.zeros((count, 3)), rng.uniform(0, YEAR, (count, 3))
    widths = rng.uniform(14, 45, (count, 3, 2))
    first = rng.uniform(0, YEAR, count)
    gap = rng.uniform(75, 150, count)
    crop, twice, cut = kind == 0, kind == 1, kind == 2
    peaks[crop | twice | cut, 0] = rng.uniform(0.3, 0.9, (crop | twice | cut).sum())
    peaks[twice | cut, 1] = rng.uniform(0.25, 0.85, (twice | cut).sum())
    peaks[cut, 2] = rng.uniform(0.25, 0.7, cut.sum())
    centres[:, 0], centres[:, 1] = first % YEAR, (first + gap) % YEAR
    centres[:, 2] = (first + gap + rng.uniform(50, 100, count)) % YEAR
    # Two seasons that follow closely are narrow; a single one may be long.
    widths[twice] = rng.uniform(14, 32, (twice.sum(), 3, 2)) * (gap[twice] / 110)[:, None, None]
    widths[cut] *= 0.6
    base = np.select(
        [kind <= 1, kind == 2, kind == 3, kind == 4],
        [rng.uniform(0.02, 0.25, count), rng.uniform(0.1, 0.35, count), rng.uniform(0.25, 0.5, count),
         rng.uniform(0.55, 0.9, count)],
        rng.uniform(0.0, 0.15, count),
    )  # fmt: skip
    swing = np.where(kind == 3, rng.uniform(0.05, 0.25, count), rng.uniform(0.0, 0.06, count))
    brightness, slope = rng.uniform(0.5, 1.5, count), rng.uniform(-0.35, 0.35, count)
    bend = 1 + slope[:, None] * (_SOIL[None, :, 0] - 900) / 1300
    leaf = _LEAF[:, 1] * rng.uniform(0.75, 1.25, (count, 1)) * (1 + 0.08 * rng.standard_normal((count, len(_LEAF))))
    soil = _SOIL[:, 1] * brightness[:, None] * bend * (1 + 0.05 * rng.standard_normal((count, len(_SOIL))))
    return Places(
        peaks, centres, widths, base, swing, rng.uniform(0, YEAR, count), leaf.clip(0.005), soil.clip(0.01),
        twice.astype(np.float64),
    )  # fmt: skip


class SeriesBatches:
    """Endless batches of series; batch number n is the same whenever it is asked for.

    Args:
        processor: Makes standard scores.
        batch: Series a batch.
        seed: Seed of all that is drawn.
    """

    def __init__(self, processor: AgriClipImageProcessor, batch: int, seed: int = 0) -> None:
        self.processor, self.batch, self.seed = processor, batch, seed

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch number `number`: inputs of the vision tower, `targets` (B, 96) and `detection_labels` (B,)."""
        rng = np.random.default_rng((self.seed, 11, number))
        places = draw_places(self.batch, rng)
        name = str(rng.choice(list(GSD), p=(0.5, 0.15, 0.2, 0.15)))
        channels = list(get_sensor(name).channels)
        count = int(rng.integers(3, len(channels) + 1))
        channels = [channels[i] for i in sorted(rng.choice(len(channels), size=count, replace=False))]
        dates = int(rng.integers(10, 25))
        start = rng.uniform(1, YEAR)
        # A season may begin in one year and end in the next, as in the south.
        days = np.sort(start + np.arange(dates) * YEAR / dates + rng.normal(0, 2, (self.batch, dates)), axis=1)
        cover = places.cover(days % YEAR)
        values = _observe(places, cover, channels, rng)
        valid = rng.random((self.batch, dates, 1)) >= rng.uniform(0, 0.25)
        valid = np.broadcast_to(valid, values.shape)
        scores, known = self.processor.normalize_values(values[..., None, None], channels, valid[..., None, None])
        clean = places.cover(DAYS)
        asked = places.reflectance(clean, np.array(ASKED)) * np.array([5.0, 2.0, 3.0])  # to a spread like cover's
        targets = np.concatenate([clean[..., None], asked], axis=-1).reshape(self.batch, -1)
        return {
            "pixel_values": torch.from_numpy(scores).float(),
            "pixel_mask": torch.from_numpy(np.ascontiguousarray(known)),
            "channels": torch.tensor([channel.code() for channel in channels]).expand(self.batch, -1, -1),
            "gsd": torch.full((self.batch,), GSD[name]),
            "dates": torch.from_numpy(np.maximum(days.round(), 1).astype(np.int64)),
            "targets": torch.from_numpy(targets).float(),
            "detection_labels": torch.from_numpy(places.twice).float(),
        }


def _observe(
    places: Places, cover: NDArray[np.float64], channels: list[ChannelSpec], rng: np.random.Generator
) -> NDArray[np.float32]:
    """What a sensor sees of a cover (N, T): (N, T, C) in physical units."""
    cover = np.clip(cover + rng.normal(0, 0.03, cover.shape), 0, 1)
    waves = np.array([469.0, 650.0, 860.0] + [c.wavelength_nm or 650.0 for c in channels])
    seen = places.reflectance(cover, waves) * (1 + rng.normal(0, 0.05, (*cover.shape, 1)))
    seen = seen + rng.normal(0, 0.006, seen.shape)
    blue, red, near = seen[..., 0], seen[..., 1], seen[..., 2]
    layers = []
    for place, channel in enumerate(channels):
        if channel.name == "ndvi":
            layers.append((near - red) / np.maximum(near + red, 0.02))
        elif channel.name == "evi":
            layers.append(2.5 * (near - red) / np.maximum(near + 6 * red - 7.5 * blue + 1, 0.2))
        else:
            layers.append(seen[..., 3 + place])
    return np.stack(layers, axis=-1).astype(np.float32)
