"""Strips of a raster: read ahead of the model, asked of it in batches of windows, and summed.

Three choices define this file. What the windows of a unit cover is read at once, and window by window only where that
fails. A pixel is valid where its mask, its nodata value, its fill and its number say so; what is not valid is 0 for
the model. And what fails (a read, a batch, an answer that is no number) costs its own window only, which is kept by
place and reason.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapping.tiling import Accumulator, TilePlan, Unit
from processing.errors import AgriClipError, named
from processing.rasters import no_crs

try:
    from rasterio.enums import MaskFlags
    from rasterio.errors import RasterioError
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Mapping rasters needs rasterio: pip install 'agriclip[maps]'.") from error

__all__ = ["FailedTile", "Predict", "Reader", "Strip", "Worker", "failures"]

# Pixels (B, C, t, t) float32, 0 where not valid, and validity (B, C, t, t) bool, to (B, K, t, t).
Predict = Callable[[NDArray[np.float32], NDArray[np.bool_]], Any]


@dataclass
class Strip:
    """Pixels under the windows of a unit: (C, t, w), and the windows that could not be read, by first column."""

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    unread: dict[int, str]


class Reader:
    """Windows of the required bands, with their validity.

    Args:
        dataset: The open raster.
        path: Its name, for messages.
        bands: Numbers of the bands, from 1; all but an alpha band if None.
        fills: Stored number per band that means nothing was measured, None for none.
        allow_no_crs: Take a raster without CRS.

    Raises:
        AgriClipError: A band is not there or is complex, the raster is rotated, or it has no CRS.
    """

    def __init__(
        self,
        dataset: Any,
        path: str | Path,
        bands: Sequence[int] | None,
        fills: Sequence[float | None] | None,
        allow_no_crs: bool,
    ) -> None:
        alpha = [n for n, colour in enumerate(dataset.colorinterp, 1) if colour.name == "alpha"]
        self.dataset = dataset
        self.bands = [n for n in range(1, dataset.count + 1) if n not in alpha] if bands is None else list(bands)
        self.fills = [None] * len(self.bands) if fills is None else list(fills)
        wrong = [n for n in self.bands if not 1 <= n <= dataset.count]
        if wrong or not self.bands:
            raise AgriClipError(f"'{path}' has {dataset.count} bands, no band {named(wrong)}; choose from these.")
        if len(self.fills) != len(self.bands):
            raise AgriClipError(
                f"{len(self.fills)} fill values were given for {len(self.bands)} bands; give one each."
            )
        if dataset.transform.b or dataset.transform.d:
            raise AgriClipError(f"'{path}' is rotated, so its rows are no rows of a map; warp it first (gdalwarp).")
        if dataset.crs is None and not allow_no_crs:
            raise no_crs(path)
        if any(np.issubdtype(np.dtype(dataset.dtypes[n - 1]), np.complexfloating) for n in self.bands):
            raise AgriClipError(f"'{path}' holds complex numbers; write amplitude or intensity bands first.")
        flags = [flag for n in self.bands for flag in dataset.mask_flag_enums[n - 1]]
        # An alpha band that is asked for is data, and what it would have hidden was measured.
        ignored = {MaskFlags.all_valid} | (
            {MaskFlags.alpha, MaskFlags.per_dataset} if set(alpha) & {*self.bands} else set()
        )
        self.masked = bool(set(flags) - ignored)

    def read(self, top: int, left: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Stored values (C, h, w), 0 where not valid, and validity."""
        window = Window(left, top, width, height)
        values = self.dataset.read(self.bands, window=window).astype(np.float32, copy=False)
        valid = np.isfinite(values)
        if self.masked:
            valid &= self.dataset.read_masks(self.bands, window=window) > 0
        for band, fill in enumerate(self.fills):
            if fill is not None:
                valid[band] &= values[band] != np.float32(fill)
        values[~valid] = 0.0
        return values, valid


@dataclass(frozen=True)
class FailedTile:
    """A window that could not be read or predicted: its first row and column, and why."""

    row: int
    column: int
    reason: str


class Worker:
    """Reads and predicts units.

    Args:
        reader: The raster.
        model: What [`stream_map`] was given.
        tiles: The windows.
        count: Number of layers.
        batch_size: Windows in a call.
        spread: Keep the variance over windows too.
    """

    def __init__(
        self, reader: Reader, model: Predict, tiles: TilePlan, count: int, batch_size: int, spread: bool
    ) -> None:
        self.reader, self.model, self.tiling = reader, model, tiles
        self.count, self.batch_size, self.spread = count, batch_size, spread
        self.seconds, self.tiles = 0.0, 0
        self._counting = Lock()

    def read(self, unit: Unit) -> Strip:
        """All that the windows of a unit cover, in one read; window by window where that fails."""
        edge, (rows, columns) = self.tiling.tile, (unit.rows, unit.columns)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        shape = (len(self.reader.bands), edge, max(edge, width))
        strip = Strip(np.zeros(shape, np.float32), np.zeros(shape, bool), {})
        try:
            part = strip.pixels[:, :height, :width], strip.valid[:, :height, :width]
            part[0][:], part[1][:] = self.reader.read(rows.start, columns.start, height, width)
        except (RasterioError, OSError):
            for left in self.tiling.lefts[unit.first : unit.stop]:
                place = slice(left - columns.start, min(left - columns.start + edge, width))
                try:
                    found = self.reader.read(rows.start, left, height, place.stop - place.start)
                    strip.pixels[:, :height, place], strip.valid[:, :height, place] = found
                except (RasterioError, OSError) as error:
                    strip.unread[left] = f"it cannot be read ({_sentence(error)})"
        return strip

    def predict(self, unit: Unit, coming: Future[Strip]) -> dict[str, NDArray[Any]]:
        """What is kept of a unit: `mean` and `variance` (K, h, w) over its own windows, and `failed`."""
        strip = coming.result()
        edge, origin = self.tiling.tile, unit.columns.start
        height, width = unit.rows.stop - unit.rows.start, unit.columns.stop - origin
        sums = Accumulator.empty(self.count, edge, strip.valid.shape[2], self.spread)
        known = strip.valid.all(axis=0)
        weights, whole = self.tiling.window_weights, slice(0, edge)
        failed = dict(strip.unread)
        lefts = self.tiling.lefts[unit.first : unit.stop]
        asked = [x for x in lefts if x not in failed and known[:, x - origin : x - origin + edge].any()]
        answers: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(asked), self.batch_size):
            batch = asked[start : start + self.batch_size]
            answers.update(self._ask(batch, strip, origin, failed))
        nothing = np.zeros((self.count, edge, edge), np.float32)
        for left in lefts:
            place = slice(left - origin, left - origin + edge)
            answer = answers.get(left, nothing)
            if left in failed:
                answer = np.full_like(nothing, np.nan)
            spread = nothing if self.spread else None
            area = sums.part(whole, place)
            area += Accumulator.of(answer, weights, spread)
        sums.values[:, ~known] = np.nan
        arrays: dict[str, NDArray[Any]] = {"mean": sums.mean[:, :height, :width].astype(np.float32)}
        if self.spread:
            arrays["variance"] = sums.variance[:, :height, :width].astype(np.float32)
        told = [[unit.rows.start, left, reason] for left, reason in sorted(failed.items())]
        arrays["failed"] = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
        return arrays

    def _ask(
        self, batch: list[int], strip: Strip, origin: int, failed: dict[int, str]
    ) -> dict[int, NDArray[np.float32]]:
        """Answers to the windows of a batch; if it fails, each is asked by itself, and those that fail are noted."""
        edge = self.tiling.tile
        cuts = [slice(left - origin, left - origin + edge) for left in batch]
        pixels = np.stack([strip.pixels[:, :, cut] for cut in cuts])
        valid = np.stack([strip.valid[:, :, cut] for cut in cuts])
        begun = time.perf_counter()
        try:
            found = self.model(pixels, valid)
            found = np.asarray(found.detach().cpu().float() if hasattr(found, "detach") else found, dtype=np.float32)
        except AgriClipError:
            raise
        except Exception as error:
            if len(batch) > 1:
                single = [self._ask([left], strip, origin, failed) for left in batch]
                return {left: answer for answers in single for left, answer in answers.items()}
            failed[batch[0]] = f"the model failed ({_sentence(error)})"
            return {}
        finally:
            with self._counting:
                self.seconds += time.perf_counter() - begun
        if found.shape != (len(batch), self.count, edge, edge):
            raise AgriClipError(
                f"The model returned {found.shape} for {len(batch)} windows of {edge} x {edge} and {self.count} "
                f"layers; it must return {(len(batch), self.count, edge, edge)}."
            )
        with self._counting:
            self.tiles += len(batch)
        answers = dict(zip(batch, found, strict=True))
        for left, answer in list(answers.items()):
            known = strip.valid[:, :, left - origin : left - origin + edge].all(axis=0)
            if not np.isfinite(answer[:, known]).all():
                failed[left] = "the model returned what is no number"
                del answers[left]
        return answers


def failures(held: NDArray[np.uint8]) -> list[FailedTile]:
    """The windows that failed, as [`Worker.predict`] keeps them."""
    return [FailedTile(*entry) for entry in json.loads(held.tobytes())]


def _sentence(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
