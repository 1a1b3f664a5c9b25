"""Landsat tiles as batches that ask about classes in words.

A batch asks with names or descriptions drawn anew each time, never with class numbers: sometimes for the few commonest
classes, sometimes for all, sometimes with one name for the rest or with classes that are nowhere in sight. So the
model learns what the words mean and not which column they stand in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor

from processing.captions import describe, write_captions
from processing.captions.crops import cdl_classes, crops, find_crop
from processing.captions.wordings import draw_wording
from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.splits import spatial_blocks
from processing.vocabulary import REST, TEMPLATES
from training.release.phrases import SEEN

SENSOR, GSD, DATE, DAY = "landsat8", 30.0, "2015-09-02", 245
LATITUDE = 46.0
BLOCK, FOLDS = 5, 5  # tiles along the edge of a block of land; folds of such blocks
NO_DATA_CODES = (0, 81)  # background, clouds
IGNORE = 255
# The six commonest codes of the scene, 84 % of it, by the names that prompts are made of.
COMMON = {5: "soybean", 176: "grassland", 23: "spring wheat", 1: "corn", 195: "wetland", 111: "water"}
STYLES = ("short", "plain", "report", "tags")


@dataclass(frozen=True)
class Tiles:
    """Tiles in memory.

    Attributes:
        pixels: (N, C, H, W) float16, standard scores.
        valid: (N, C, H, W) bool.
        codes: (N, H, W) uint8, Cropland Data Layer.
        channels: (C, 4) descriptions.
        names: (N,) file names without ending.
        folds: (N,) fold of the block of land.
        captions: For each tile, what it shows in several words.
    """

    pixels: Tensor
    valid: Tensor
    codes: Tensor
    channels: Tensor
    names: tuple[str, ...]
    folds: NDArray[np.int64]
    captions: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def at(self, index: NDArray[np.int64]) -> Tiles:
        """Some of the tiles."""
        captions = tuple(self.captions[i] for i in index) if self.captions else ()
        names = tuple(self.names[i] for i in index)
        return replace(
            self,
            pixels=self.pixels[index],
            valid=self.valid[index],
            codes=self.codes[index],
            names=names,
            folds=self.folds[index],
            captions=captions,
        )


def read_tiles(folder: Path, processor: AgriClipImageProcessor, captions: int = 6) -> Tiles:
    """Read `images/RR_CC.tif` and `masks/RR_CC.tif`, RR and CC being places in a grid of touching tiles.

    Args:
        folder: Where the two folders are.
        processor: Makes standard scores of the pixels.
        captions: Captions to write for each tile.

    Raises:
        AgriClipError: There are no tiles, or a mask is missing.
    """
    paths = sorted((folder / "images").glob("*.tif"))
    if not paths:
        raise AgriClipError(f"There are no tiles in '{folder / 'images'}'; get them with: agriclip data get ag-net.")
    pixels, valid, codes, told = [], [], [], []
    channels = None
    for path in paths:
        mask = folder / "masks" / path.name
        if not mask.is_file():
            raise AgriClipError(f"The tile '{path}' has no mask '{mask}'; get the data again.")
        inputs = processor(images=str(path), sensor=SENSOR, return_tensors="pt")
        pixels.append(inputs["pixel_values"][0, 0].half())
        valid.append(inputs["pixel_mask"][0, 0].bool())
        channels = inputs["channels"][0]
        with rasterio.open(mask) as raster:
            codes.append(torch.from_numpy(raster.read(1).astype(np.uint8)))
        with rasterio.open(path) as raster:
            values = raster.read().astype(np.float32) * np.float32(raster.scales[0])
            bands = [name or "" for name in raster.descriptions]
        told.append(_captions(codes[-1].numpy(), values, bands, len(told), captions))
    rows, columns = (np.array([int(path.stem.split("_")[axis]) for path in paths]) for axis in (0, 1))
    folds = spatial_blocks(columns + 0.5, rows + 0.5, size=BLOCK, folds=FOLDS, seed=0)
    assert channels is not None
    return Tiles(
        pixels=torch.stack(pixels),
        valid=torch.stack(valid),
        codes=torch.stack(codes),
        channels=channels,
        names=tuple(path.stem for path in paths),
        folds=np.asarray(folds, dtype=np.int64),
        captions=tuple(told),
    )


def _captions(
    codes: NDArray[np.uint8], values: NDArray[np.float32], bands: list[str], seed: int, count: int
) -> tuple[str, ...]:
    facts = describe(codes, cdl_classes(), pixels=values, bands=bands, gsd=GSD, date=DATE, latitude=LATITUDE)
    said: list[str] = []
    # Without directions: tiles are turned and mirrored.
    for number in range(count):
        said += write_captions(facts, style=STYLES[number % len(STYLES)], seed=1000 * seed + number, directions=False)
    return tuple(said)


class TileBatches:
    """Endless batches of tiles, each with its questions.

    Args:
        tiles: What is drawn from.
        processor: Tokenises.
        batch: Tiles a batch.
        seed: Seed of everything that is drawn; a batch depends on it and on its number only.
    """

    def __init__(self, tiles: Tiles, processor: AgriClipProcessor, batch: int, seed: int = 0) -> None:
        self.tiles, self.processor, self.batch, self.seed = tiles, processor, batch, seed
        counts = torch.bincount(tiles.codes.flatten().long(), minlength=256)
        known = cdl_classes()
        # Codes of at least one pixel in a thousand whose name the phrase book knows.
        least = 0.001 * float(counts.sum())
        self.present = [c for c in range(256) if counts[c] > least and c in known and c not in NO_DATA_CODES]
        self.classes = sorted({_class_of(code) for code in self.present} - {None})
        self.places = torch.full((256,), IGNORE, dtype=torch.long)
        self.places[self.present] = torch.arange(len(self.present))
        seen = set(self.present)
        self.absent = [name for name, crop in crops().items() if crop.codes and not seen & set(crop.codes)]

    def steps_an_epoch(self) -> int:
        """Batches that hold each tile once."""
        return len(self.tiles) // self.batch

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch number `number`."""
        rng = np.random.default_rng((self.seed, number))
        epoch, place = divmod(number, self.steps_an_epoch())
        order = np.random.default_rng((self.seed, 7, epoch)).permutation(len(self.tiles))
        chosen = order[place * self.batch : (place + 1) * self.batch]
        names, lut = self._question(rng)
        pixels, valid, codes, gsd = self._drawn(chosen, rng)
        prompts = [rng.choice(TEMPLATES).replace("{}", name) for name in names]
        texts = prompts + [str(rng.choice(self.tiles.captions[i])) for i in chosen]
        encoded = self.processor(text=texts, return_tensors="pt")
        dated = rng.random(len(chosen)) < 0.3
        return {
            "pixel_values": pixels,
            "pixel_mask": valid,
            "channels": self.tiles.channels.expand(len(chosen), -1, -1),
            "gsd": gsd,
            "dates": torch.from_numpy(np.where(dated, DAY, 0)).long().unsqueeze(1),
            "labels": lut[codes.long()],
            "codes": self.places[codes.long()],
            "prompts": torch.tensor(len(prompts)),
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "numeric_values": encoded["numeric_values"],
        }

    def _question(self, rng: np.random.Generator) -> tuple[list[str], Tensor]:
        """Names of what is asked for, and the index of each code among them."""
        kind = rng.random()
        lut = torch.full((256,), IGNORE, dtype=torch.long)
        if kind < 0.5:  # the commonest, each by itself
            asked = [[code] for code in COMMON]
            names = [self._phrase(code, rng) for code in COMMON]
        else:
            classes = list(self.classes)
            if kind < 0.75:  # all, and a few that are not there
                chosen = list(rng.permutation(classes))
                chosen += list(rng.choice(self.absent, size=int(rng.integers(0, 4)), replace=False))
            else:  # some of them
                chosen = list(rng.choice(classes, size=int(rng.integers(2, 7)), replace=False))
            asked = [[code for code in self.present if _class_of(code) == name] for name in chosen]
            names = [self._phrase(name, rng) for name in chosen]
        if rng.random() < 0.35:  # and one name for the rest
            listed = {code for codes in asked for code in codes}
            asked.append([c for c in range(256) if c not in listed and c not in NO_DATA_CODES])
            names.append(str(rng.choice(REST)))
        order = rng.permutation(len(names))
        for place, index in enumerate(order):
            for code in asked[index]:
                lut[code] = place
        return [names[i] for i in order], lut

    @staticmethod
    def _phrase(name: str | int, rng: np.random.Generator) -> str:
        """The plain name of a common code, two times in five; or any wording of the class."""
        if isinstance(name, int) and rng.random() < 0.4:
            return COMMON[name]
        return draw_wording(name, rng, SEEN)

    def _drawn(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels, validity, codes and ground sample distance, turned, mirrored and disturbed."""
        pixels, valid = self.tiles.pixels[chosen].float(), self.tiles.valid[chosen].clone()
        codes, gsd = self.tiles.codes[chosen], GSD
        turns = int(rng.integers(4))
        pixels, valid, codes = (torch.rot90(x, turns, (-2, -1)) for x in (pixels, valid, codes))
        if rng.random() < 0.5:
            pixels, valid, codes = (x.flip(-1) for x in (pixels, valid, codes))
        if rng.random() < 0.12:  # as a sensor of half the ground sample distance would see a quarter of it
            half = pixels.shape[-1] // 2
            top, left = (int(rng.integers(half + 1)) for _ in range(2))
            part = (..., slice(top, top + half), slice(left, left + half))
            pixels = torch.nn.functional.interpolate(pixels[part], scale_factor=2.0, mode="bilinear")
            valid, codes = (x[part].repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (valid, codes))
            gsd /= 2
        shape = (len(chosen), pixels.shape[1], 1, 1)
        gain, offset = (torch.from_numpy(rng.standard_normal(shape)).float() for _ in range(2))
        pixels = pixels * (1 + 0.03 * gain) + 0.03 * offset
        if rng.random() < 0.15:  # a sensor without some of the bands
            lost = rng.choice(pixels.shape[1], size=int(rng.integers(1, 4)), replace=False)
            valid[:, lost] = False
        pixels = torch.where(valid, pixels, 0.0)
        return pixels, valid, codes, torch.full((len(chosen),), gsd)


def _class_of(code: int) -> str | None:
    crop = find_crop(code)
    return None if crop is None else crop.name


def evaluate_tiles(
    model: Any, tiles: Tiles, processor: AgriClipProcessor, names: list[str] | None = None, batch: int = 16
) -> dict[str, Any]:
    """Accuracy, mean intersection over union and that of each class, of the six commonest, asked for by name."""
    asked = list(COMMON.values()) if names is None else names
    prompts = dict(processor.class_prompts(asked))
    lut = torch.full((256,), len(COMMON), dtype=torch.long)
    for place, code in enumerate(COMMON):
        lut[code] = place
    confusion = np.zeros((len(COMMON), len(COMMON)), dtype=np.int64)
    with torch.no_grad():
        for start in range(0, len(tiles), batch):
            part = slice(start, start + batch)
            logits = model(
                pixel_values=tiles.pixels[part].float(),
                pixel_mask=tiles.valid[part],
                channels=tiles.channels,
                gsd=torch.tensor([GSD]),
                **prompts,
            ).logits
            found, truth = logits.argmax(dim=1), lut[tiles.codes[part].long()]
            known = truth < len(COMMON)
            np.add.at(confusion, (truth[known].numpy(), found[known].numpy()), 1)
    right = np.diag(confusion)
    iou = right / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1) - right, 1)
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "mean_iou": float(iou.mean()),
        "iou": dict(zip(COMMON.values(), iou.round(4).tolist(), strict=True)),
    }
