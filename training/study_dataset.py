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
        input_ids: (L,) tokens of the report, the same for all sites; or (N, L), each site's own.
        attention_mask: Of the same shape.
        numeric_values: (N, L) float32.
        clauses: (L,) which clause of the report a token belongs to, from 1; 0 where to none. None = not told apart.
        mask_token_id: Token that stands for a masked word.
        number_token_id: Token that stands for a number.
        pixel_values: (N, C, s, s) float32, standardised; None without imagery.
        pixel_mask: (N, C, s, s) bool; None without imagery.
        channels: (C, 4) int64; None without imagery.
        gsd: Ground sample distance in metres; 0 without imagery.
    """

    input_ids: Tensor
    attention_mask: Tensor
    numeric_values: Tensor
    clauses: Tensor | None = None
    mask_token_id: int | None = None
    number_token_id: int | None = None
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
        clauses=find_clauses(torch.from_numpy(tokens.input_ids), processor),
        mask_token_id=processor.tokenizer.mask_token_id,
        number_token_id=processor.num_token_id,
    )
    if data.channels:
        chips, valid = data.chips(x, y)
        pixels, valid = processor.image_processor.normalize_values(chips, data.channels, valid)
        sites.pixel_values = torch.as_tensor(pixels, dtype=torch.float32)
        sites.pixel_mask = torch.as_tensor(valid).bool()
        sites.channels = torch.tensor([channel.code() for channel in data.channels])
        sites.gsd = data.gsd
    return sites


def find_clauses(input_ids: Tensor, processor: AgriClipProcessor) -> Tensor:
    """Number the clauses of a report (L,) from 1; a full stop or semicolon ends one. Special tokens get 0."""
    tokenizer = processor.tokenizer
    ends = set(tokenizer.convert_tokens_to_ids([".", ";"]))
    special = set(tokenizer.all_special_ids) - {processor.num_token_id}
    clauses, clause = torch.zeros_like(input_ids), 1
    for place, token in enumerate(input_ids.tolist()):
        if token in special:
            continue
        clauses[place] = clause
        clause += token in ends
    return clauses


@dataclass(frozen=True)
class SiteNoise:
    """What is changed in a site each time it is drawn, so that no single thing can be relied on.

    Attributes:
        image_dropout: Share of draws that come without their image.
        sentence_dropout: Share of a report's clauses that are left out; one stays.
        number_dropout: Share of a report's numbers that are missing.
        number_noise: Standard deviation of the noise on each number (L,), in its unit; what a climate raster says of
            a place is never exact, and without it the periodic features of a number remember single sites.
        band_noise: Standard deviation of an offset on each channel, in standardised units, so that an image is not a
            place's fingerprint.
        pixel_dropout: Largest share of pixels hidden; how many is drawn for each image.
        flips: Mirror images at random; what a place looks like does not depend on where north is.
        word_masking: Share of a report's words that are masked, and asked for as `language_labels`.
    """

    image_dropout: float = 0.0
    sentence_dropout: float = 0.0
    number_dropout: float = 0.0
    number_noise: Tensor | None = None
    band_noise: float = 0.0
    pixel_dropout: float = 0.0
    flips: bool = False
    word_masking: float = 0.0


class SuitabilityDataset(Dataset[dict[str, Tensor]]):
    """Some of the sites, with labels.

    What is drawn for a site depends on the seed, the epoch and the site, and on nothing else: neither on the order of
    the sites, nor on how many processes read them, nor on where a fit was taken up again.

    Args:
        sites: Inputs of all sites.
        labels: (N,) share or presence; NaN = no label.
        weights: (N,) weight of each label.
        index: Which sites.
        noise: What is changed in a site; nothing if None.
        seed: Seed of the noise.
        keys: (N, K) what tells reports apart, for their alignment with images; not given on if None.
    """

    def __init__(
        self,
        sites: SiteTensors,
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        index: NDArray[np.int64],
        noise: SiteNoise | None = None,
        seed: int = 0,
        keys: Tensor | None = None,
    ) -> None:
        self.sites = sites
        self.labels = torch.as_tensor(labels, dtype=torch.float32)
        self.weights = torch.as_tensor(weights, dtype=torch.float32)
        self.index = index
        self.noise = noise
        self.seed = seed
        self.keys = keys
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.index)

    def set_epoch(self, epoch: int) -> None:
        """Draw the noise of epoch number `epoch`."""
        self.epoch = epoch

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        """One site, by its place in `index`."""
        site, sites = int(self.index[item]), self.sites
        row: dict[str, Any] = {
            "input_ids": sites.input_ids if sites.input_ids.dim() == 1 else sites.input_ids[site],
            "attention_mask": sites.attention_mask if sites.attention_mask.dim() == 1 else sites.attention_mask[site],
            "numeric_values": sites.numeric_values[site],
            "labels": self.labels[site],
            "label_weights": self.weights[site],
        }
        if self.keys is not None:
            row["report_keys"] = self.keys[site]
        if sites.pixel_values is not None and sites.pixel_mask is not None:
            row |= {"pixel_values": sites.pixel_values[site], "pixel_mask": sites.pixel_mask[site]}
            row |= {"channels": sites.channels, "gsd": torch.tensor(sites.gsd)}
        if self.noise is None:
            return row
        generator = torch.Generator()
        # Three numbers to one seed, far enough apart for any study.
        generator.manual_seed((self.seed * 1_000_003 + self.epoch) * 1_000_000_007 + site)
        return self._disturb(row, self.noise, generator)

    def _disturb(self, row: dict[str, Any], noise: SiteNoise, generator: torch.Generator) -> dict[str, Any]:
        """Change one site as `noise` says."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        values = row["numeric_values"]
        if noise.number_noise is not None:
            values = values + torch.randn(len(values), generator=generator) * noise.number_noise
        if noise.number_dropout:
            values = values.masked_fill(uniform(len(values)) < noise.number_dropout, torch.nan)
        row["numeric_values"] = values
        if noise.sentence_dropout and self.sites.clauses is not None:
            clauses = self.sites.clauses
            silent = uniform(int(clauses.max()) + 1) < noise.sentence_dropout
            silent[0] = False
            silent[1 + int(uniform() * int(clauses.max()))] = False
            row["attention_mask"] = row["attention_mask"] * (~silent[clauses]).to(row["attention_mask"].dtype)
        if noise.word_masking and self.sites.clauses is not None and self.sites.mask_token_id is not None:
            # Numbers and special tokens are no words: the first are read by their value, the others say nothing.
            words = (self.sites.clauses > 0) & row["attention_mask"].bool()
            words &= row["input_ids"] != self.sites.number_token_id
            masked = words & (uniform(len(words)) < noise.word_masking)
            row["language_labels"] = row["input_ids"].masked_fill(~masked, -100)
            row["input_ids"] = row["input_ids"].masked_fill(masked, self.sites.mask_token_id)
        if "pixel_values" not in row:
            return row
        pixels, mask = row["pixel_values"], row["pixel_mask"]
        if noise.flips:
            flips = [dim for dim in (-2, -1) if uniform() < 0.5]
            pixels, mask = pixels.flip(flips), mask.flip(flips)
        if noise.band_noise:
            pixels = pixels + noise.band_noise * torch.randn(len(pixels), 1, 1, generator=generator)
        if noise.pixel_dropout:
            mask = mask & (uniform(*mask.shape[-2:]) >= noise.pixel_dropout * uniform())
        if noise.image_dropout and uniform() < noise.image_dropout:
            mask = torch.zeros_like(mask)
        # One number a pixel is enough for the order in which cells are hidden, whatever the patch.
        row |= {"pixel_values": pixels, "pixel_mask": mask, "noise": uniform(mask[0].numel())}
        return row
