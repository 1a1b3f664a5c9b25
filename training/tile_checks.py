"""Checks before a training run is paid for: damaged tiles, and labels that cannot be learnt from.

A damaged tile is named, counted and left out; when there are too many the run is refused, since what is left may be
another data set than the one that was meant.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers.utils import logging

from processing.errors import AgriClipError, named
from training.tile_reader import IGNORE, Tile, UnreadableTile, probe_tile

logger = logging.get_logger(__name__)

MAX_CORRUPT = 0.01
# A stream does not know its length: up to this many tiles it is judged as if it had as many.
LEAST = 100


class CorruptTiles:
    """Counts tiles and the damaged among them, tells each of these once, and refuses too many.

    Args:
        max_corrupt: Largest share of damaged tiles.
        total: Number of tiles; None in a stream, where those seen so far (but at least `LEAST`) stand for it.
    """

    def __init__(self, max_corrupt: float = MAX_CORRUPT, total: int | None = None) -> None:
        if not 0 <= max_corrupt <= 1:
            raise AgriClipError(f"max_corrupt is a share from 0 to 1, not {max_corrupt:g}.")
        self.max_corrupt = max_corrupt
        self.total = total
        self.seen = 0
        self.names: dict[str, str] = {}

    @property
    def count(self) -> int:
        """Damaged tiles so far; one that comes again in a later epoch counts once."""
        return len(self.names)

    def passed(self) -> None:
        """Count a whole tile."""
        self.seen += 1

    def skipped(self, name: str, reason: str) -> None:
        """Count a damaged tile.

        Raises:
            AgriClipError: There are too many now; names the first.
        """
        self.seen += 1
        if name not in self.names:
            self.names[name] = reason
            logger.warning(f"Tile '{name}' is left out: {reason}")
        total = self.total or max(self.seen, LEAST)
        if self.count > self.max_corrupt * total:
            of = f"{self.total}" if self.total else f"the first {self.seen}"
            raise AgriClipError(
                f"{self.count} of {of} tiles are damaged, more than max_corrupt={self.max_corrupt:g} allows "
                f"({named(self.names, 3)}; the first: {next(iter(self.names.values()))}) Replace them or raise "
                "max_corrupt."
            )


def check_tiles(
    tiles: datasets.Dataset,
    *,
    max_corrupt: float = MAX_CORRUPT,
    thorough: bool = False,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """Leave out the tiles that cannot be read.

    Headers and one block of each file are read, or every block. What was found is remembered by path, size and time of
    change, so that the next run asks only what is new.

    Args:
        tiles: A table of tiles as `load_tiles` returns it.
        max_corrupt: Largest share of damaged tiles.
        thorough: Read every block.
        cache_dir: Where findings are remembered; beside the caches of `datasets` by default.

    Returns:
        The same table without the damaged rows; the very same when there are none.

    Raises:
        AgriClipError: More than `max_corrupt` of the tiles are damaged.
    """
    plain = tiles.with_format(None)
    known = _Findings(cache_dir, thorough)
    counter = CorruptTiles(max_corrupt, total=len(plain))
    good: list[int] = []
    try:
        for index in range(len(plain)):
            tile = Tile.from_row(plain[index])
            reason = known.reason(tile)
            if reason:
                counter.skipped(tile.name, reason)
            else:
                counter.passed()
                good.append(index)
    finally:
        known.save()
    return tiles if len(good) == len(tiles) else tiles.select(good)


def check_labels(labels: Iterable[Any], num_classes: int, ignore: int = IGNORE) -> np.ndarray[Any, Any]:
    """Refuse class indices that a classifier cannot be fitted to.

    Args:
        labels: Class index of each tile; `ignore` and None are passed over.
        num_classes: Number of classes.
        ignore: Index that is not scored.

    Returns:
        How many labels each class has, (num_classes,).

    Raises:
        AgriClipError: There are none, one is no whole number or out of range, or all are of one class.
    """
    known = [(place, label) for place, label in enumerate(labels) if label is not None and label != ignore]
    if not known:
        raise AgriClipError("No tile has a label; give each row a 'label', from 0 on.")
    bad = [
        (place, label)
        for place, label in known
        if not _is_number(label) or label != int(label) or not 0 <= label < num_classes
    ]
    if bad:
        place, label = bad[0]
        raise AgriClipError(
            f"{len(bad)} of {len(known)} labels are no class index from 0 to {num_classes - 1} (the first is "
            f"{label!r} at row {place}); correct them or the number of classes."
        )
    counts = np.bincount([int(label) for _, label in known], minlength=num_classes)
    if (counts > 0).sum() == 1:
        raise AgriClipError(
            f"All {len(known)} labels are class {int(counts.argmax())}; a classifier needs at least 2 classes."
        )
    return counts


class _Findings:
    """What probing found, by path, size and time of change; in one file a folder of tiles."""

    def __init__(self, cache_dir: str | Path | None, thorough: bool) -> None:
        root = Path(cache_dir) if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "agriclip_tile_checks"
        self.root, self.thorough = root, thorough
        self.books: dict[Path, dict[str, str]] = {}
        self.changed: set[Path] = set()

    def reason(self, tile: Tile) -> str:
        """Why a tile cannot be read; empty for a good one."""
        files = [source for source in (*tile.images, tile.mask) if source is not None]
        if not all(isinstance(file, str) and os.path.exists(file) for file in files):
            return _probe(tile, self.thorough)
        stamps = [(file, os.stat(file)) for file in files if isinstance(file, str)]
        entry = json.dumps([[os.path.abspath(file), s.st_size, s.st_mtime_ns] for file, s in stamps] + [tile.window])
        book = self._book(os.path.dirname(os.path.abspath(stamps[0][0])))
        if entry not in self.books[book]:
            self.books[book][entry] = _probe(tile, self.thorough)
            self.changed.add(book)
        return self.books[book][entry]

    def _book(self, folder: str) -> Path:
        name = hashlib.blake2b(f"{folder}|{self.thorough}".encode(), digest_size=12).hexdigest()
        book = self.root / f"{name}.json"
        if book not in self.books:
            try:
                self.books[book] = dict(json.loads(book.read_text()))
            except (OSError, ValueError):
                self.books[book] = {}
        return book

    def save(self) -> None:
        """Write what is new; a folder that cannot be written only costs the next run its time."""
        for book in self.changed:
            part = book.with_suffix(f".{uuid.uuid4().hex[:8]}.partial")
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                part.write_text(json.dumps(self.books[book]))
                os.replace(part, book)
            except OSError as error:
                logger.warning(f"The findings on tiles could not be kept in '{book}' ({error}).")


def _probe(tile: Tile, thorough: bool) -> str:
    try:
        probe_tile(tile, thorough)
    except UnreadableTile as error:
        return str(error)
    return ""


def _is_number(label: Any) -> bool:
    return isinstance(label, int | float | np.integer | np.floating) and not isinstance(label, bool)


__all__ = ["LEAST", "MAX_CORRUPT", "CorruptTiles", "check_labels", "check_tiles"]
