"""Rows of a tile table to the model's inputs, and tiles to batches.

Two choices: a tile's randomness comes from the seed, the epoch and the tile's key, never from the worker that happens
to read it, so any number of workers gives the same tensors; and a tile is standardised before it is cached but
augmented after, so the cache serves every epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from processing.errors import AgriClipError, nearest
from training.augmentation import Augmentation, tile_generator
from training.tile_cache import TileCache
from training.tile_checks import CorruptTiles
from training.tile_reader import IGNORE, Tile, UnreadableTile, read_bands, read_codes

LABELS = ("label", "mask", "dominant")
_TEXT = ("input_ids", "attention_mask", "numeric_values")


class TileTransform:
    """Makes the model's inputs of the rows of a tile table; for `set_transform`, or `map` of a stream.

    Args:
        processor: An `AgriClipImageProcessor`; or an `AgriClipProcessor`, and the `text` of a row is tokenised too.
        labels: `label` for one class or value a tile, `mask` for one class a pixel, `dominant` for the commonest
            class among the pixels that augmentation has left (the `label` where none is scored), None for none.
        augmentation: Random changes; none by default.
        seed: Seed of the changes.
        codes: Class index of each code in the masks, e.g. {5: 0, 176: 1}; the codes themselves if None.
        unlisted: Class index of all other codes.
        cache: Keep standardised tiles here.
    """

    def __init__(
        self,
        processor: Any,
        *,
        labels: str | None = "label",
        augmentation: Augmentation | None = None,
        seed: int = 0,
        codes: Mapping[int, int] | None = None,
        unlisted: int = IGNORE,
        cache: TileCache | None = None,
    ) -> None:
        if labels not in (*LABELS, None):
            raise AgriClipError(f"Tiles have no labels called '{labels}'; {nearest(labels, LABELS)}")
        self.image_processor = getattr(processor, "image_processor", processor)
        self.text_processor = processor if hasattr(processor, "tokenizer") else None
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed
        self.codes = None if codes is None else _table(codes, unlisted)
        self.cache = cache
        # Shared memory, so that workers that outlive an epoch hear of the next.
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that randomness is drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other changes from now on, in running workers too."""
        self._epoch.fill_(int(epoch))

    def __deepcopy__(self, memo: dict[int, Any]) -> TileTransform:
        """Data sets copy what they hold; a copy that no longer heard of the epoch would repeat itself."""
        return self

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Columns of rows to columns of tensors, as `datasets` hands them over."""
        count = len(next(iter(batch.values())))
        tiles = [self.tile({name: column[i] for name, column in batch.items()}) for i in range(count)]
        names = dict.fromkeys(name for tile in tiles for name in tile)
        return {name: [tile.get(name) for tile in tiles] for name in names}

    def tile(self, row: Mapping[str, Any] | Tile) -> dict[str, Tensor]:
        """Read, standardise and augment one tile.

        Returns:
            * `pixel_values` (T, C, H, W) float32, standard scores, 0 where masked
            * `pixel_mask` (T, C, H, W) bool, True = measured
            * `channels` (C, 4), `gsd` () metres, `dates` (T,) days
            * `labels`: () class index or value, or (H, W) class of each pixel with 255 = not scored
            * `input_ids`, `attention_mask`, `numeric_values` (L,), with a text processor and a `text`

        Raises:
            UnreadableTile: A file of the tile is damaged.
            AgriClipError: The tile does not fit the processor's settings, or has no labels.
        """
        tile = row if isinstance(row, Tile) else Tile.from_row(row)
        sample: dict[str, Any] = dict(self.standardised(tile))
        if self.augmentation is not None:
            sample = self.augmentation(sample, tile_generator(self.seed, self.epoch, _identity(tile)))
        codes = sample.pop("codes", None)
        if self.labels is not None:
            sample["labels"] = self._labels(tile, codes)
        if self.text_processor is not None and tile.text is not None:
            encoded = self.text_processor(text=[tile.text], return_tensors="pt")
            sample.update({name: encoded[name][0] for name in _TEXT})
        return sample

    def _labels(self, tile: Tile, codes: Tensor | None) -> Tensor:
        if self.labels != "label":
            if codes is None:
                raise AgriClipError(f"The tile '{tile.name}' has no mask; give each row a 'mask_file'.")
            classes = self.classes(codes)
            if self.labels == "mask":
                return classes
            scored = classes[classes != IGNORE]
            if len(scored):
                return scored.bincount().argmax()
        if tile.label is None:
            raise AgriClipError(f"The tile '{tile.name}' has no label; give each row a 'label'.")
        return torch.tensor(tile.label)

    def classes(self, codes: Tensor) -> Tensor:
        """Class index of each code of a mask, 255 = not scored."""
        return codes if self.codes is None else self.codes[codes.clamp(0, len(self.codes) - 1)]

    def standardised(self, tile: Tile) -> dict[str, Tensor]:
        """What `read` returns, from the cache where it has it."""
        if self.cache is not None:
            found = self.cache.read(tile)
            if found is not None:
                return found
        tensors = self.read(tile)
        if self.cache is not None:
            self.cache.write(tile, tensors)
        return tensors

    def read(self, tile: Tile) -> dict[str, Tensor]:
        """Read and standardise a tile, without cache and changes; the codes of its mask are `codes` (H, W)."""
        stacks = read_bands(tile)
        wanted: dict[str, Any] = {"gsd": tile.gsd, "sensor": tile.sensor}
        if tile.bands is not None:
            wanted["channels"] = list(tile.bands)
        if any(tile.dates):
            wanted["dates"] = [list(tile.dates)]
        try:
            batch = self.image_processor([stacks], return_tensors="pt", **wanted)
        except AgriClipError:
            raise
        except ValueError as error:
            raise AgriClipError(f"The tile '{tile.name}' does not fit the processor: {error}") from error
        tensors = {name: value[0] for name, value in batch.items()}
        tensors["pixel_mask"] = tensors["pixel_mask"].bool()
        codes = read_codes(tile)
        if codes is not None:
            if codes.shape != tensors["pixel_values"].shape[-2:]:
                raise UnreadableTile(
                    f"The mask of tile '{tile.name}' has {tuple(codes.shape)} pixels and its image "
                    f"{tuple(tensors['pixel_values'].shape[-2:])}; cut both alike."
                )
            tensors["codes"] = codes
        return tensors


class SkipCorrupt:
    """A transform that leaves damaged tiles out; for `map(batched=True)` of a stream.

    Args:
        transform: What makes a tile of a row.
        max_corrupt: Largest share of damaged tiles; each worker counts those it has seen.
    """

    def __init__(self, transform: TileTransform, max_corrupt: float) -> None:
        self.transform = transform
        self.corrupt = CorruptTiles(max_corrupt)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Columns of rows to columns of tensors, with fewer rows where tiles are damaged."""
        kept: list[dict[str, Tensor]] = []
        for i in range(len(next(iter(batch.values())))):
            tile = Tile.from_row({name: column[i] for name, column in batch.items()})
            try:
                kept.append(self.transform.tile(tile))
                self.corrupt.passed()
            except UnreadableTile as error:
                self.corrupt.skipped(tile.name, str(error))
        names = dict.fromkeys(name for sample in kept for name in sample)
        return {name: [sample.get(name) for sample in kept] for name in names}


def collate_tiles(
    samples: Iterable[Mapping[str, Tensor]], shared: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Tiles to a batch, padded to the largest size, number of dates and number of channels among them.

    Args:
        samples: What `TileTransform.tile` returns.
        shared: Tensors that go beside every batch as they are, such as the prompts (K, L) of a segmentation.

    Returns:
        `pixel_values` and `pixel_mask` (B, T, C, H, W), `channels` (B, C, 4), `gsd` (B,), `dates` (B, T); `labels`
        (B,) or (B, H, W), 255 where padded; and what else the tiles have, padded with 0. What is padding is masked.
    """
    rows = list(samples)
    names = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
    batch = {name: _stack([row[name] for row in rows], IGNORE if name == "labels" else 0) for name in names}
    return batch | dict(shared or {})


def _stack(tensors: Sequence[Tensor], fill: int) -> Tensor:
    """Stack tensors of any sizes, the smaller ones filled up at their ends."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    if all(list(tensor.shape) == shape for tensor in tensors):
        return torch.stack(list(tensors))
    out = tensors[0].new_full((len(tensors), *shape), fill)
    for place, tensor in zip(out, tensors, strict=True):
        place[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def _table(codes: Mapping[int, int], unlisted: int) -> Tensor:
    """Lookup of class indices by code, (256 or more,); codes that are not scored stay so."""
    table = torch.full((max(IGNORE, *codes) + 1,), unlisted, dtype=torch.long)
    table[IGNORE] = IGNORE
    for code, index in codes.items():
        table[int(code)] = int(index)
    return table


def _identity(tile: Tile) -> str:
    """The tile's key, and its window where several tiles share a file."""
    return tile.key if tile.window is None else f"{tile.key}@{tile.window}"


__all__ = ["SkipCorrupt", "TileTransform", "collate_tiles"]
