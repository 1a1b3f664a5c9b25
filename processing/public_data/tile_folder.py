"""A folder of tiles as training reads it: `metadata.jsonl`, one JSON object a tile, and the files that it names.

Two choices: files that need no change are hard links, so a data set does not lie on the disk twice; and the folder
appears under its name only once its last row is written, so a broken conversion is never trained on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from ..errors import AgriClipError

METADATA = "metadata.jsonl"
CLASSES = "classes.json"
IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


class TileFolder:
    """Writes a folder of tiles; a context manager.

    Args:
        folder: Where it will lie; one that exists is replaced once the new one is whole.

    Attributes:
        count: Tiles so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self._half = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        self._classes: dict[str, str] = {}

    def __enter__(self) -> Self:
        shutil.rmtree(self._half, ignore_errors=True)
        self._half.mkdir(parents=True)
        self._rows = (self._half / METADATA).open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()
        try:
            if kind is None:
                if not self.count:
                    raise AgriClipError(f"No tile was found for '{self.folder}'; check that the data are whole.")
                if self._classes:
                    text = json.dumps(self._classes, indent=1, ensure_ascii=False)
                    (self._half / CLASSES).write_text(text + "\n", encoding="utf-8")
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(self._half, self.folder)
        finally:
            shutil.rmtree(self._half, ignore_errors=True)

    def classes(self, names: Mapping[int, str]) -> None:
        """Say what the codes of labels or masks mean; goes into `classes.json`."""
        self._classes = {str(code): name for code, name in names.items()}

    def take(self, source: Path, name: str) -> str:
        """Put a file into the folder as it is, by a hard link where the disk allows; returns its name."""
        target = self._target(name)
        link_or_copy(source, target)
        return name

    def write(self, content: bytes, name: str) -> str:
        """Write the bytes of a file into the folder; returns its name."""
        self._target(name).write_bytes(content)
        return name

    def raster(
        self,
        name: str,
        values: NDArray[Any],
        bands: Sequence[str],
        *,
        scale: float | None = None,
        nodata: float | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a GeoTIFF into the folder; returns its name.

        Args:
            name: File name, relative to the folder.
            values: (C, H, W), or (H, W) for a mask.
            bands: Name of each band.
            scale: Factor from stored to physical numbers, as a tag.
            nodata: Stored number that means nothing.
            profile: `crs` and `transform`, as far as known.
        """
        rasterio = import_rasterio()
        stack = values if values.ndim == 3 else values[None]
        if len(stack) != len(bands):
            raise AgriClipError(f"'{name}' has {len(stack)} bands but {len(bands)} names; the source is damaged.")
        placed = {key: value for key, value in (profile or {}).items() if key in ("crs", "transform") and value}
        with rasterio.open(
            self._target(name),
            "w",
            driver="GTiff",
            count=len(stack),
            height=stack.shape[1],
            width=stack.shape[2],
            dtype=stack.dtype,
            compress="deflate",
            predictor=3 if stack.dtype.kind == "f" else 2,
            nodata=nodata,
            **placed,
        ) as out:
            out.write(stack)
            out.descriptions = tuple(bands)
            if scale is not None:
                out.scales = (scale,) * len(stack)
        return name

    def row(self, file_name: str | Sequence[str], **said: Any) -> None:
        """Add a tile; values that are None are left out."""
        content = {"file_name": file_name if isinstance(file_name, str) else list(file_name), **said}
        content = {key: value for key, value in content.items() if value is not None}
        self._rows.write(json.dumps(content, ensure_ascii=False) + "\n")
        self.count += 1

    def _target(self, name: str) -> Path:
        target = self._half / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where that is not possible (another disk, no permission)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError as error:
        raise AgriClipError(
            f"Two files of the source would both be '{target.name}'; the source is damaged."
        ) from error
    except OSError:
        shutil.copyfile(source, target)


def import_rasterio() -> Any:
    """Import rasterio, or say which extra to install."""
    try:
        import rasterio
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError(
            "Converting rasters needs rasterio; install it with: pip install 'agriclip[maps]'."
        ) from error
    return rasterio


def files_in(folder: Path, *patterns: str) -> list[Path]:
    """Files below a folder that match any of the patterns, in order of their paths; hidden ones are left out."""
    found = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def images_in(folder: Path) -> list[Path]:
    """Images below a folder, in order of their paths."""
    return [path for path in files_in(folder, "*.*") if path.suffix.lower() in IMAGES]


def require(found: Sequence[Any], what: str, folder: Path) -> None:
    """Refuse a folder in which nothing of a kind was found.

    Raises:
        AgriClipError: There is none.
    """
    if not found:
        raise AgriClipError(
            f"There is no {what} below '{folder}'; give the unpacked folder of this source with --from."
        )


__all__ = ["CLASSES", "METADATA", "TileFolder", "files_in", "images_in", "import_rasterio", "link_or_copy", "require"]
