"""Random changes to a tile that leave it what it is: none of them touches the ground sample distance.

Two choices: nothing is rescaled, since a field of 30 m pixels shown at another size would lie about its gsd; and what
is hidden is only masked, never removed, so that shapes stay and the model sees absence the way it always does. All
randomness comes from the generator that is passed in.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import torch
from huggingface_hub.dataclasses import strict, validated_field
from torch import Generator, Tensor

from processing.errors import AgriClipError


def _share(value: Any) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"a probability or share lies in 0 to 1, not {value}")


def _not_negative(value: Any) -> None:
    if value < 0:
        raise ValueError(f"a size or spread is not negative, not {value}")


def _chance(default: float) -> Any:
    return validated_field(validator=_share, default=default)


def _amount(default: float) -> Any:
    return validated_field(validator=_not_negative, default=default)


@strict
@dataclass
class Augmentation:
    """Which changes to draw, and how often; every probability is for one tile.

    Attributes:
        crop: Edge in pixels of a square cut at random from a larger tile; 0 keeps the tile whole.
        flip: Probability of each of the two mirrorings.
        rotate: Probability of a turn by 90, 180 or 270 degrees.
        shift_dates: Probability that all dates of a tile move together, which keeps their order and distances.
        shift_days: Largest move, in days.
        noise: Probability of a gain and an offset on each band of each date.
        noise_gain: Standard deviation of the gain. Surface reflectance is specified to 0.005 + 5 % of its value.
        noise_offset: Standard deviation of the offset, in standard scores; 0.1 is 0.005 to 0.01 of reflectance.
        drop_bands: Probability that bands are hidden.
        band_share: Share of the bands hidden then; at least one stays.
        drop_dates: Probability that dates are hidden.
        date_share: Share of the dates hidden then; at least one with a measured pixel stays.
        drop_pixels: Probability that pixels are hidden, at all bands and dates alike.
        pixel_share: Largest share of pixels hidden then; how many is drawn for each tile.
    """

    crop: int = _amount(0)
    flip: float | int = _chance(0.5)
    rotate: float | int = _chance(0.75)
    shift_dates: float | int = _chance(0.5)
    shift_days: int = _amount(5)
    noise: float | int = _chance(0.5)
    noise_gain: float | int = _amount(0.05)
    noise_offset: float | int = _amount(0.1)
    drop_bands: float | int = _chance(0.1)
    band_share: float | int = _chance(0.3)
    drop_dates: float | int = _chance(0.1)
    date_share: float | int = _chance(0.5)
    drop_pixels: float | int = _chance(0.1)
    pixel_share: float | int = _chance(0.3)

    @classmethod
    def none(cls, **changes: Any) -> "Augmentation":
        """No change but those named."""
        chances = ("flip", "rotate", "shift_dates", "noise", "drop_bands", "drop_dates", "drop_pixels")
        known = {field.name for field in fields(cls)}
        for name in changes:
            if name not in known:
                raise AgriClipError(f"Augmentation has no field '{name}'; it has {', '.join(sorted(known))}.")
        return cls(**{**dict.fromkeys(chances, 0.0), **changes})

    def __call__(self, sample: dict[str, Any], generator: Generator) -> dict[str, Any]:
        """Change one tile.

        Args:
            sample: `pixel_values` (T, C, H, W), `pixel_mask` (T, C, H, W) bool, `dates` (T,), and where there is one
                the label mask `codes` (H, W); other entries are passed on.
            generator: Where all randomness comes from.

        Returns:
            A new dictionary; the tensors given are left as they are.
        """
        pixels, valid = sample["pixel_values"], sample["pixel_mask"].bool()
        planes = [pixels, valid] if sample.get("codes") is None else [pixels, valid, sample["codes"]]
        planes = self._turn(self._cut(planes, generator), generator)
        pixels, valid = planes[0], planes[1]
        valid = self._hide(valid, generator)
        if _draw(generator) < self.noise:
            spread = torch.randn(2, *pixels.shape[:2], 1, 1, generator=generator)
            pixels = pixels * (1 + self.noise_gain * spread[0]) + self.noise_offset * spread[1]
        changed = {**sample, "pixel_values": torch.where(valid, pixels, 0.0), "pixel_mask": valid}
        changed["dates"] = self._shift(sample["dates"], generator)
        if len(planes) == 3:
            changed["codes"] = planes[2].contiguous()
        return changed

    def _cut(self, planes: list[Tensor], generator: Generator) -> list[Tensor]:
        if not self.crop:
            return planes
        starts = [_whole(max(0, size - self.crop) + 1, generator) for size in planes[0].shape[-2:]]
        row, column = starts
        return [plane[..., row : row + self.crop, column : column + self.crop] for plane in planes]

    def _turn(self, planes: list[Tensor], generator: Generator) -> list[Tensor]:
        """Image, validity and labels turn together."""
        for dim in (-2, -1):
            if _draw(generator) < self.flip:
                planes = [plane.flip(dim) for plane in planes]
        if _draw(generator) < self.rotate:
            turns = 1 + _whole(3, generator)
            planes = [plane.rot90(turns, (-2, -1)) for plane in planes]
        return planes

    def _hide(self, valid: Tensor, generator: Generator) -> Tensor:
        """Validity (T, C, H, W) less what is dropped."""
        dates, bands = valid.shape[:2]
        if _draw(generator) < self.drop_bands:
            valid = _drop(valid, 1, self.band_share * bands, generator)
        if _draw(generator) < self.drop_dates:
            valid = _drop(valid, 0, self.date_share * dates, generator)
        if _draw(generator) < self.drop_pixels:
            share = self.pixel_share * _draw(generator)
            left = valid & (torch.rand(valid.shape[-2:], generator=generator) >= share)
            # The last measured pixel of a tile is not a thing to hide.
            valid = left if left.any() else valid
        return valid

    def _shift(self, dates: Tensor, generator: Generator) -> Tensor:
        """Dates (T,) moved together; 0 stays undated, and no dated one becomes it."""
        if _draw(generator) >= self.shift_dates or not self.shift_days:
            return dates
        moved = dates + _whole(2 * self.shift_days + 1, generator) - self.shift_days
        return torch.where(dates == 0, 0, torch.where(moved == 0, 1, moved))


def tile_generator(seed: int, epoch: int, key: str) -> Generator:
    """The generator of one tile in one epoch: the same in any worker and any order."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _draw(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))


def _whole(below: int, generator: Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _drop(valid: Tensor, dim: int, expected: float, generator: Generator) -> Tensor:
    """Hide about `expected` slices along `dim` of (T, C, H, W), but never all that hold a measured pixel."""
    measured = valid.transpose(0, dim).flatten(1).any(dim=1).nonzero().flatten()
    if len(measured) < 2:
        return valid
    count = min(len(measured) - 1, max(1, round(expected)))
    chosen = measured[torch.randperm(len(measured), generator=generator)[:count]]
    keep = torch.ones(valid.shape[dim], dtype=torch.bool)
    keep[chosen] = False
    return valid & keep.view([-1 if d == dim else 1 for d in range(4)])


__all__ = ["Augmentation", "tile_generator"]
