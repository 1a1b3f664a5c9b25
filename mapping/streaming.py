"""Maps of rasters of any size through a model: read ahead, predicted in windows, blended, written behind.

Three choices define this file. A unit of work is a run of windows of one row; its sums are formed from its own windows
alone and kept in a `BandStore`, and rows of pixels are put together from the units above each other, top to bottom:
the result is the same bytes however many processes shared the work and however often it was interrupted. Threads
read ahead, predict, and keep and write, so that the model hardly waits, and nothing held depends on the raster's
height. And a window that fails is nodata and is named at the end; nothing is left out in silence.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mapping.band_store import BandStore, fingerprint, fingerprint_code, process_state, remove_left_over
from mapping.outputs import RowBandWriter, class_raster_options
from mapping.tiling import Accumulator, TilePlan, Unit
from processing.errors import AgriClipError, named
from processing.rasters import no_crs, open_raster

try:
    import rasterio
    from rasterio.enums import MaskFlags
    from rasterio.errors import RasterioError
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Mapping rasters needs rasterio: pip install 'agriclip[maps]'.") from error

# Pixels (B, C, t, t) float32, 0 where not valid, and validity (B, C, t, t) bool, to (B, K, t, t).
Predict = Callable[[NDArray[np.float32], NDArray[np.bool_]], Any]

_CACHE = 64 * 2**20  # GDAL would otherwise keep blocks in a twentieth of the machine's memory
_STRIP = 2048  # pixels along a row that are read at once
_BAND = 2**18  # pixels that are put together at once
_AHEAD = 2  # units read before they are needed, and kept before they are written


@dataclass(frozen=True)
class MapLayer:
    """One output: a single-band float32 raster.

    Attributes:
        path: Where it goes.
        name: Description of the band.
        tags: Metadata.
        unit: Unit of its values.
    """

    path: Path
    name: str = ""
    tags: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "1"


@dataclass(frozen=True)
class ClassLayer:
    """A raster of the layer with the highest value: uint8, 1 for the first layer, 0 = nodata.

    Attributes:
        path: Where it goes.
        classes: Number -> (title, colour as `#rrggbb`).
        tags: Metadata; the legend is added.
    """

    path: Path
    classes: Mapping[int, tuple[str, str]]
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FailedTile:
    """A window that could not be read or predicted: its first row and column, and why."""

    row: int
    column: int
    reason: str


@dataclass(frozen=True)
class MapRun:
    """What a call of [`stream_map`] did.

    Attributes:
        paths: Rasters written.
        tiles: Windows that this process predicted.
        seconds: Time of the whole call.
        predict_seconds: Time within `predict`, summed over threads.
    """

    paths: tuple[Path, ...]
    tiles: int
    seconds: float
    predict_seconds: float


class FailedTiles(AgriClipError):
    """Some windows failed; the maps are complete but for them.

    Attributes:
        tiles: The windows.
        paths: Rasters written, nodata under these windows.
    """

    def __init__(self, tiles: Sequence[FailedTile], paths: Sequence[Path]) -> None:
        self.tiles, self.paths = tuple(tiles), tuple(paths)
        places = named(f"row {tile.row} column {tile.column}" for tile in tiles)
        super().__init__(
            f"{len(tiles)} tile{'s' * (len(tiles) > 1)} failed and {'are' if len(tiles) > 1 else 'is'} nodata in "
            f"'{paths[0]}' ({places}; the first because: {tiles[0].reason}); run the same command again to try them "
            "once more."
        )


def stream_map(
    source: str | Path,
    predict: Predict,
    layers: Sequence[MapLayer],
    *,
    tile: int = 128,
    stride: int | None = None,
    bands: Sequence[int] | None = None,
    fills: Sequence[float | None] | None = None,
    batch_size: int = 8,
    workers: int = 1,
    classes: ClassLayer | None = None,
    disagreement: bool = False,
    plan: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    allow_no_crs: bool = False,
    restart: bool = False,
    quiet: bool = False,
    state: Any = None,
) -> MapRun:
    """Run a model over a raster in overlapping windows and write cloud-optimised GeoTIFFs on the same pixels.

    A pixel is nodata in every output exactly where a band is nodata (mask, nodata value, alpha, fill, NaN) or a window
    over it failed. Where all windows over a pixel give the same float32 value, that value is written bit for bit.
    Interrupted, the same call goes on; under `torchrun` the processes share the work; the bytes are the same.

    Args:
        source: Raster that GDAL reads, north up or south up but not rotated.
        predict: Model: pixels (B, C, t, t) float32 as stored, 0 where not valid, and validity (B, C, t, t) bool, to
            (B, K, t, t), array or tensor. Windows without a pixel that is valid in all bands are not asked.
        layers: The K outputs.
        tile: Edge t of a window; what a smaller raster lacks of it is not valid.
        stride: Step between windows, at most the edge; the edge by default, then windows overlap at the rims only.
        bands: Numbers of the bands, from 1, all required; all of the raster's (but an alpha band) by default.
        fills: Stored number per band that means nothing was measured, beside what the file says; None for none.
        batch_size: Windows in a call of `predict`.
        workers: Threads that call `predict` at once; it must allow that.
        classes: Write the raster of the highest layer too.
        disagreement: Write, beside each layer, `<name>_disagreement.tif`: the weighted standard deviation over the
            windows that cover a pixel, 0 where there is one.
        plan: What decides the result beside the raster and the settings here, such as the hash of the model.
        folder: Where half-done work is kept; by default `.<first layer>-partial` beside the first layer.
        allow_no_crs: Take a raster without CRS, and write its georeference as it is.
        restart: Throw away what an interrupted call left.
        quiet: No progress bar.
        state: `accelerate.PartialState`; the current one by default.

    Raises:
        AgriClipError: The raster is rotated or has no CRS, windows leave gaps, `predict` returns another shape, the
            disk is too small, or half-done work of another plan is there.
        FailedTiles: Some windows failed; the rasters are written nevertheless.
    """
    started = time.perf_counter()
    layers, state = list(layers), process_state() if state is None else state
    with rasterio.Env(GDAL_CACHEMAX=_CACHE), open_raster(source) as dataset:
        reader = _Reader(dataset, source, bands, fills, allow_no_crs)
        tiles = TilePlan(dataset.height, dataset.width, tile, stride or tile)
        units = _cut(tiles, dataset, batch_size)
        decided = {
            "source": fingerprint(dataset.files),
            "size": [dataset.height, dataset.width],
            "bands": reader.bands,
            "fills": reader.fills,
            "tile": tile,
            "stride": tiles.stride,
            "batch_size": batch_size,
            "layers": len(layers),
            "disagreement": disagreement,
            "code": fingerprint_code("mapping/streaming.py", "mapping/tiling.py"),
            **(plan or {}),
        }
        frame = _Frame(dataset.crs, dataset.transform, dataset.width, dataset.height)
        first = Path(layers[0].path)
        store = BandStore(
            folder or first.with_name(f".{first.stem}-partial"),
            decided,
            len(units),
            restart=restart,
            state=state,
            keep=lambda arrays: not _failures(arrays["failed"]),
            bytes_needed=_disk(tiles, units, len(layers) * (1 + disagreement), classes is not None),
        )
        with store:
            with ExitStack() as stack:
                assembly = _Assembly(stack, store, tiles, units, frame, layers, classes, disagreement)
                work = _Worker(reader, predict, tiles, len(layers), batch_size, disagreement)
                _run(work, store, units, assembly, workers, quiet)
                store.wait_for_everyone()
                assembly.advance()
            store.wait_for_everyone()
            failed = [
                tile for unit in units for tile in _failures(store.load_rows(unit.number, "failed", slice(None)))
            ]
            if failed:
                raise FailedTiles(failed, assembly.paths)
            store.finish()
    return MapRun(tuple(assembly.paths), work.tiles, time.perf_counter() - started, work.seconds)


def _run(work: _Worker, store: BandStore, units: list[Unit], assembly: _Assembly, workers: int, quiet: bool) -> None:
    """Read ahead in one thread, predict in others, keep and assemble in another; this one passes on in order."""
    todo = [units[number] for number in store.pending()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    answers: deque[tuple[Unit, Future[dict[str, NDArray[Any]]]]] = deque()
    writes: deque[Future[None]] = deque()

    def keep(unit: Unit, arrays: dict[str, NDArray[Any]]) -> None:
        store.save(unit.number, arrays)
        assembly.advance()

    with (
        Progress(*columns, disable=quiet or not store.is_main) as progress,
        ThreadPoolExecutor(1, "reader") as reading,
        ThreadPoolExecutor(workers, "model") as predicting,
        ThreadPoolExecutor(1, "writer") as writing,
    ):
        bar = progress.add_task("Mapping", total=sum(unit.stop - unit.first for unit in todo))

        def pass_on() -> None:
            unit, answer = answers.popleft()
            writes.append(writing.submit(keep, unit, answer.result()))
            while len(writes) > _AHEAD:
                writes.popleft().result()
            progress.advance(bar, unit.stop - unit.first)

        try:
            for unit in todo:
                strip = reading.submit(work.read, unit)
                answers.append((unit, predicting.submit(work.predict, unit, strip)))
                if len(answers) > workers + _AHEAD:
                    pass_on()
            while answers:
                pass_on()
            for write in writes:
                write.result()
        except BaseException:
            for pool in (predicting, reading, writing):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Frame:
    """What a writer must know of a raster; unlike a `Grid` it may lie south up and have no CRS."""

    crs: Any
    transform: Any
    width: int
    height: int


@dataclass
class _Strip:
    """Pixels under the windows of a unit: (C, t, w), and the windows that could not be read, by first column."""

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    unread: dict[int, str]


class _Reader:
    """Windows of the required bands, with their validity."""

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


class _Worker:
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
        self, reader: _Reader, model: Predict, tiles: TilePlan, count: int, batch_size: int, spread: bool
    ) -> None:
        self.reader, self.model, self.tiling = reader, model, tiles
        self.count, self.batch_size, self.spread = count, batch_size, spread
        self.seconds, self.tiles = 0.0, 0
        self._counting = Lock()

    def read(self, unit: Unit) -> _Strip:
        """All that the windows of a unit cover, in one read; window by window where that fails."""
        edge, (rows, columns) = self.tiling.tile, (unit.rows, unit.columns)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        shape = (len(self.reader.bands), edge, max(edge, width))
        strip = _Strip(np.zeros(shape, np.float32), np.zeros(shape, bool), {})
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

    def predict(self, unit: Unit, coming: Future[_Strip]) -> dict[str, NDArray[Any]]:
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
        self, batch: list[int], strip: _Strip, origin: int, failed: dict[int, str]
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


class _Assembly:
    """Puts rows of pixels together from the units above each other, as far as these are done; the main process only.

    Args:
        stack: Closes the writers.
        store: The units.
        tiles: The windows.
        units: How they were cut.
        frame: Size and place of the rasters.
        layers: The outputs.
        classes: The raster of the highest layer, if asked for.
        spread: Write the disagreement.
    """

    def __init__(
        self,
        stack: ExitStack,
        store: BandStore,
        tiles: TilePlan,
        units: list[Unit],
        frame: _Frame,
        layers: list[MapLayer],
        classes: ClassLayer | None,
        spread: bool,
    ) -> None:
        self.store, self.tiles, self.frame, self.spread = store, tiles, frame, spread
        self.by_row: dict[int, list[Unit]] = {}
        for unit in sorted(units, key=lambda unit: (unit.row, unit.first)):
            self.by_row.setdefault(unit.row, []).append(unit)
        means = [self._writer(layer, Path(layer.path), layer.name) for layer in layers]
        spreads = [self._writer(layer, *_beside(layer)) for layer in layers] if spread else []
        best = [self._class_writer(classes)] if classes is not None else []
        self.paths = [writer.path for writer in [*means, *spreads, *best]]
        self.next_row, self.count = 0, len(layers)
        if store.is_main:
            for path in self.paths:
                remove_left_over(path)
            self.means, self.spreads, self.best = (
                [stack.enter_context(writer) for writer in group] for group in (means, spreads, best)
            )

    def _writer(self, layer: MapLayer, path: Path, name: str) -> RowBandWriter:
        tags = {**layer.tags, "units": layer.unit}
        if path != Path(layer.path):
            tags["long_name"] = "standard deviation over the windows that cover a pixel, 0 where there is one"
        names = [name] if name else None
        return RowBandWriter(path, self.frame, tags=tags, band_names=names, units=[layer.unit])  # type: ignore[arg-type]

    def _class_writer(self, classes: ClassLayer) -> RowBandWriter:
        options = class_raster_options(classes.classes)
        options["tags"] = {**classes.tags, **options["tags"]}
        return RowBandWriter(classes.path, self.frame, **options)  # type: ignore[arg-type]

    def advance(self) -> None:
        """Write the rows that are complete."""
        height, step = self.frame.height, max(1, _BAND // self.frame.width)
        while self.store.is_main and self.next_row < height:
            rows = slice(self.next_row, min(self.next_row + step, height))
            over = [
                row
                for row, top in enumerate(self.tiles.tops)
                if top < rows.stop and top + self.tiles.tile > rows.start
            ]
            units = [unit for row in over for unit in self.by_row[row]]
            if not all(self.store.done(unit.number) for unit in units):
                return
            self._write(rows, units)
            self.next_row = rows.stop

    def _write(self, rows: slice, units: list[Unit]) -> None:
        sums = Accumulator.empty(self.count, rows.stop - rows.start, self.frame.width, self.spread)
        for unit in units:
            first, stop = max(rows.start, unit.rows.start), min(rows.stop, unit.rows.stop)
            own = slice(first - unit.rows.start, stop - unit.rows.start)
            mean = self.store.load_rows(unit.number, "mean", own, axis=1)
            spread = self.store.load_rows(unit.number, "variance", own, axis=1) if self.spread else None
            down, across = self.tiles.unit_weights(unit)
            area = sums.part(slice(first - rows.start, stop - rows.start), unit.columns)
            area += Accumulator.of(mean, np.outer(down[own], across), spread)
        mean = sums.mean.astype(np.float32)
        for writer, values in zip(self.means, mean, strict=True):
            writer.write(rows.start, values)
        if self.spread:
            for writer, values in zip(self.spreads, np.sqrt(sums.variance).astype(np.float32), strict=True):
                writer.write(rows.start, values)
        for writer in self.best:
            writer.write(rows.start, _highest(mean))


def _highest(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Number of the highest layer (h, w), from 1, the first of equals; 0 where there is no data."""
    best, number = values[0].copy(), np.ones(values.shape[1:], np.uint8)
    for index, layer in enumerate(values[1:], start=2):
        higher = layer > best
        best[higher], number[higher] = layer[higher], index
    number[np.isnan(values[0])] = 0
    return number


def _cut(tiles: TilePlan, dataset: Any, batch_size: int) -> list[Unit]:
    """Units that are read at once without being wide, in an order in which the blocks of the file are read once."""
    most = max(batch_size, _STRIP // tiles.stride)
    height, width = dataset.block_shapes[0]
    together = -(-height // tiles.stride) if width < dataset.width else 1
    return tiles.units(most, together)


def _disk(tiles: TilePlan, units: list[Unit], layers: int, classes: bool) -> int:
    """Bytes of the units, of the rasters while they are written, and of their cloud-optimised form."""
    kept = sum((u.rows.stop - u.rows.start) * (u.columns.stop - u.columns.start) for u in units) * 4 * layers
    written = tiles.height * tiles.width * (4 * layers + classes)
    return int(kept + written * (1 + 4 / 3))


def _beside(layer: MapLayer) -> tuple[Path, str]:
    path = Path(layer.path)
    return path.with_name(f"{path.stem}_disagreement.tif"), f"{layer.name} disagreement".strip()


def _failures(held: NDArray[np.uint8]) -> list[FailedTile]:
    return [FailedTile(*entry) for entry in json.loads(held.tobytes())]


def _sentence(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


__all__ = ["ClassLayer", "FailedTile", "FailedTiles", "MapLayer", "MapRun", "Predict", "stream_map"]
