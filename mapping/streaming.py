"""Maps of rasters of any size through a model: read ahead, predicted in windows, blended, written behind.

Three choices define this file. A unit of work is a run of windows of one row; its sums are formed from its own windows
alone and kept in a `BandStore`, and rows of pixels are put together from the units above each other, top to bottom:
the result is the same bytes however many processes shared the work and however often it was interrupted. Threads
read ahead, predict, and keep and write, so that the model hardly waits, and nothing held depends on the raster's
height. And a window that fails is nodata and is named at the end; nothing is left out in silence.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mapping.band_store import BandStore, fingerprint, process_state, remove_left_over
from mapping.outputs import RowBandWriter, class_raster_options
from mapping.strips import FailedTile, Predict, Reader, Worker, failures
from mapping.tiling import Accumulator, TilePlan, Unit
from processing.errors import AgriClipError, named
from processing.plans import fingerprint_code
from processing.rasters import open_raster

try:
    import rasterio
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Mapping rasters needs rasterio: pip install 'agriclip[maps]'.") from error

__all__ = ["ClassLayer", "FailedTiles", "MapLayer", "MapRun", "stream_map"]

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
        reader = Reader(dataset, source, bands, fills, allow_no_crs)
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
            "code": fingerprint_code("mapping/streaming.py", "mapping/strips.py", "mapping/tiling.py"),
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
            keep=lambda arrays: not failures(arrays["failed"]),
            bytes_needed=_disk(tiles, units, len(layers) * (1 + disagreement), classes is not None),
        )
        with store:
            with ExitStack() as stack:
                assembly = _Assembly(stack, store, tiles, units, frame, layers, classes, disagreement)
                work = Worker(reader, predict, tiles, len(layers), batch_size, disagreement)
                _run(work, store, units, assembly, workers, quiet)
                store.wait_for_everyone()
                assembly.advance()
            store.wait_for_everyone()
            failed = [tile for unit in units for tile in failures(store.load_rows(unit.number, "failed", slice(None)))]
            if failed:
                raise FailedTiles(failed, assembly.paths)
            store.finish()
    return MapRun(tuple(assembly.paths), work.tiles, time.perf_counter() - started, work.seconds)


def _run(work: Worker, store: BandStore, units: list[Unit], assembly: _Assembly, workers: int, quiet: bool) -> None:
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
