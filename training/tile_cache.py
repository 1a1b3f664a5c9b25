"""Standardised tiles on disk, one memory-mapped .npy a tile, so that decoding is paid once.

Three choices: a tile is one structured record (pixels, validity, channels, gsd, dates, label codes), so one file is
either whole or absent; it is written under a temporary name and then renamed, so any number of workers and processes
may share a folder; and its name is a digest of the files (path, size, time of change, or content) and of everything
that turned them into numbers, so a changed file or setting is never answered from an old record.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from processing.errors import AgriClipError
from training.tile_reader import Source, Tile

# Free space that is left to others, as a share of what is needed.
_MARGIN = 0.05

_KINDS = {"pixel_values": "<f4", "pixel_mask": "?", "channels": "<i8", "gsd": "<f4", "dates": "<i8", "codes": "<i2"}


class TileCache:
    """A folder of standardised tiles.

    Args:
        folder: Where the records go; created when the first is written.
        settings: What turns a file into numbers, ready for JSON: the processor's `to_dict()` and anything beside it.
        disk_usage: Asked for the free bytes of a folder, as `shutil.disk_usage` is.
    """

    def __init__(
        self, folder: str | Path, settings: dict[str, Any], disk_usage: Callable[[Any], Any] = shutil.disk_usage
    ) -> None:
        self.folder = Path(folder)
        self.disk_usage = disk_usage
        self.settings = hashlib.blake2b(
            json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16
        ).hexdigest()

    def path(self, tile: Tile) -> Path:
        """Where the record of a tile is, or would be."""
        asked = [tile.sensor, tile.bands, tile.gsd, tile.dates, tile.window, self.settings]
        digest = hashlib.blake2b(json.dumps(asked).encode(), digest_size=16)
        for source in (*tile.images, tile.mask):
            digest.update(_identity(source))
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.npy"

    def read(self, tile: Tile) -> dict[str, Tensor] | None:
        """Return the tile's tensors, or None when it is not there; a damaged record counts as absent."""
        path = self.path(tile)
        try:
            record = np.load(path, mmap_mode="r", allow_pickle=False)
            names = record.dtype.names or ()
            # A copy: tensors over a read-only map cannot be written, and augmentation works on what it is given.
            return {name: _tensor(np.array(record[name][0])) for name in names}
        except FileNotFoundError:
            return None
        except (ValueError, OSError, IndexError):
            path.unlink(missing_ok=True)
            return None

    def write(self, tile: Tile, tensors: dict[str, Tensor]) -> None:
        """Store a tile's tensors.

        Raises:
            AgriClipError: The disk is full.
        """
        arrays = {name: np.asarray(tensors[name]) for name in _KINDS if tensors.get(name) is not None}
        record = np.empty(1, dtype=[(name, _KINDS[name], array.shape) for name, array in arrays.items()])
        for name, array in arrays.items():
            record[name][0] = array
        path = self.path(tile)
        part = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.save(file, record, allow_pickle=False)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise AgriClipError(
                    f"The disk of the tile cache '{self.folder}' is full; free some space or leave the cache away."
                ) from error
            raise

    def require_space(self, count: int, tensors: dict[str, Tensor]) -> None:
        """Refuse a cache that would not fit.

        Args:
            count: Tiles that will be stored.
            tensors: Those of one of them, as the measure.

        Raises:
            AgriClipError: Their bytes and a margin exceed what is free.
        """
        each = sum(
            np.dtype(kind).itemsize * tensors[name].numel()
            for name, kind in _KINDS.items()
            if tensors.get(name) is not None
        )
        stored = sum(1 for _ in self.folder.glob("*/*.npy")) if self.folder.is_dir() else 0
        what = f"The cache of {count} tiles in '{self.folder}'"
        require_disk(self.folder, each * max(0, count - stored), what, self.disk_usage)


def require_disk(folder: str | Path, needed: float, what: str, disk_usage: Callable[[Any], Any]) -> None:
    """Refuse what would not fit on the disk of `folder`, which need not exist yet.

    Args:
        folder: Where the bytes will go.
        needed: How many bytes.
        what: Beginning of the sentence, e.g. "The cache of 900 tiles".
        disk_usage: As `shutil.disk_usage`.

    Raises:
        AgriClipError: They exceed what is free.
    """
    place = Path(folder).absolute()
    place = next(parent for parent in (place, *place.parents) if parent.exists())
    free = disk_usage(place).free
    if needed * (1 + _MARGIN) > free:
        raise AgriClipError(
            f"{what} needs about {_size(needed)}, but only {_size(free)} are free; free some space, choose another "
            "folder, or stream the tiles without a cache."
        )


def _identity(source: Source | None) -> bytes:
    """What tells one version of a file from another, without reading it."""
    if source is None:
        return b"-"
    if isinstance(source, str):
        if not os.path.exists(source):  # remote: the address has to do
            return source.encode()
        status = os.stat(source)
        return f"{os.path.abspath(source)}|{status.st_size}|{status.st_mtime_ns}".encode()
    content = source if isinstance(source, bytes) else np.ascontiguousarray(source).tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return tensor.long() if tensor.dtype == torch.int16 else tensor


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


__all__ = ["TileCache", "require_disk"]
