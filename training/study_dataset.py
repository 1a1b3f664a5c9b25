"""A study's labelled sites as a dataset for `Trainer`.

The report's words are tokenised once and shared by all sites; a site carries only its values, its chip and its label.
In training the image is dropped now and then, so that the model also learns to answer from the report alone, which is
what a projection into another climate needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from processing.processing_agriclip import AgriClipProcessor
from processing.study_data import StudyData


@dataclass
class SiteTensors:
    """Inputs of N sites, ready for the model.

    Attributes:
        input_ids: (L,) tokens of the report, the same for all sites.
        attention_mask: (L,).
        numeric_values: (N, L) float32.
        pixel_values: (N, C, s, s) float32, standardised; None without imagery.
        pixel_mask: (N, C, s, s) bool; None without imagery.
        channels: (C, 4) int64; None without imagery.
        gsd: Ground sample distance in metres; 0 without imagery.
    """

    input_ids: Tensor
    attention_mask: Tensor
    numeric_values: Tensor
    pixel_values: Tensor | None = None
    pixel_mask: Tensor | None = None
    channels: Tensor | None = None
    gsd: float = 0.0

    def __len__(self) -> int:
        return len(self.numeric_values)


def read_sites(
    data: StudyData, processor: AgriClipProcessor, x: NDArray[np.float64], y: NDArray[np.float64]
) -> SiteTensors:
    """Read reports and chips at points.

    Args:
        data: The study's data.
        processor: Its processor.
        x: (N,) eastings or longitudes in the grid's CRS.
        y: (N,) northings or latitudes.
    """
    tokens = data.template.tokenise(processor)
    values = tokens.numeric_values(data.template.values(data.predictors(x, y)))
    sites = SiteTensors(
        input_ids=torch.from_numpy(tokens.input_ids),
        attention_mask=torch.from_numpy(tokens.attention_mask),
        numeric_values=torch.from_numpy(values),
    )
    if data.channels:
        chips, valid = data.chips(x, y)
        pixels, valid = processor.image_processor.normalize_values(chips, data.channels, valid)
        sites.pixel_values = torch.as_tensor(pixels, dtype=torch.float32)
        sites.pixel_mask = torch.as_tensor(valid).bool()
        sites.channels = torch.tensor([channel.code() for channel in data.channels])
        sites.gsd = data.gsd
    return sites


class SuitabilityDataset(Dataset[dict[str, Tensor]]):
    """Some of the sites, with labels.

    Args:
        sites: Inputs of all sites.
        labels: (N,) share or presence.
        weights: (N,) weight of each label.
        index: Which sites.
        image_dropout: Share of draws that come without their image.
        number_noise: Standard deviation of the noise on each number (L,), in its unit; what a climate raster says of
            a place is never exact, and without it the periodic features of a number remember single sites.
        band_noise: Standard deviation of an offset on each channel, in standardised units, so that an image is not a
            place's fingerprint.
        pixel_dropout: Largest share of pixels hidden; how many is drawn for each image.
        augment: Mirror chips at random; what a place looks like does not depend on where north is.
    """

    def __init__(
        self,
        sites: SiteTensors,
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        index: NDArray[np.int64],
        image_dropout: float = 0.0,
        number_noise: Tensor | None = None,
        band_noise: float = 0.0,
        pixel_dropout: float = 0.0,
        augment: bool = False,
    ) -> None:
        self.sites = sites
        self.labels = torch.as_tensor(labels, dtype=torch.float32)
        self.weights = torch.as_tensor(weights, dtype=torch.float32)
        self.index = index
        self.image_dropout = image_dropout
        self.number_noise = number_noise
        self.band_noise = band_noise
        self.pixel_dropout = pixel_dropout
        self.augment = augment

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        """One site, by its place in `index`."""
        site, sites = int(self.index[item]), self.sites
        values = sites.numeric_values[site]
        if self.number_noise is not None:
            values = values + torch.randn(len(values)) * self.number_noise
        row: dict[str, Any] = {
            "input_ids": sites.input_ids,
            "attention_mask": sites.attention_mask,
            "numeric_values": values,
            "labels": self.labels[site],
            "label_weights": self.weights[site],
        }
        if sites.pixel_values is not None and sites.pixel_mask is not None:
            pixels, mask = sites.pixel_values[site], sites.pixel_mask[site]
            if self.augment:
                flips = [dim for dim in (-2, -1) if torch.rand(()) < 0.5]
                pixels, mask = pixels.flip(flips), mask.flip(flips)
            if self.band_noise:
                pixels = pixels + self.band_noise * torch.randn(len(pixels), 1, 1)
            if self.pixel_dropout:
                mask = mask & (torch.rand(mask.shape[-2:]) >= self.pixel_dropout * torch.rand(()))
            if self.image_dropout and torch.rand(()) < self.image_dropout:
                mask = torch.zeros_like(mask)
            row |= {"pixel_values": pixels, "pixel_mask": mask, "channels": sites.channels}
            row["gsd"] = torch.tensor(sites.gsd)
        return row
