"""Images found in folders, archives and data sets, and read one by one.

Two choices define this file. A table of images holds paths or stored bytes and never pixels. And what cannot be read
is listed and counted, and refused above 1 %, instead of being left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.vision.reading import PHOTOGRAPHS, Image, ImageRef, read_image
from processing.errors import AgriClipError, named
from processing.sensors_agriclip import get_sensor

try:
    from PIL import UnidentifiedImageError
    from rasterio.errors import RasterioError
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Reading images needs rasterio and Pillow: pip install 'agriclip[maps]'.") from error

__all__ = ["MOST_UNREADABLE", "ImageTable", "find_images", "names_of_ref", "read_names", "track"]

RASTERS = (".tif", ".tiff", ".jp2", ".vrt", ".img")
MOST_UNREADABLE = 0.01


class ImageTable:
    """Images that are read when asked for.

    Args:
        refs: Where they are.
        sensor: Name of the sensor; None lets each file say it.
        bands: Names of the bands in file order; None lets the file or the sensor say it.
        default: Sensor to prefer where the file leaves several open.
        origin: What the table was made of, for messages.

    Attributes:
        unreadable: Name and reason of each image that could not be read.
        decided: How many images were taken as which sensor.
    """

    def __init__(
        self,
        refs: Sequence[ImageRef],
        sensor: str | None = None,
        bands: Sequence[str] | None = None,
        default: str | None = None,
        origin: str = "",
    ) -> None:
        self.refs = list(refs)
        self.sensor = None if sensor is None else get_sensor(sensor).name
        self.bands, self.default, self.origin = (list(bands) if bands else None), default, origin
        self.unreadable: list[tuple[str, str]] = []
        self.decided: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.refs)

    def subset(self, keep: Sequence[int]) -> ImageTable:
        """The same images, fewer of them."""
        return ImageTable([self.refs[i] for i in keep], self.sensor, self.bands, self.default, self.origin)

    def only(self, names: Sequence[str]) -> ImageTable:
        """The images that are named, by key, file name or stem.

        Raises:
            AgriClipError: None of the names is an image of this table.
        """
        wanted = set(names) | {Path(name).stem for name in names}
        keep = [i for i, ref in enumerate(self.refs) if wanted & set(names_of_ref(ref))]
        if not keep:
            raise AgriClipError(f"None of the {len(names)} names ({named(names, 3)}) is an image of {self.origin}.")
        return self.subset(keep)

    def read(self, i: int) -> Image | None:
        """One image, or None where it cannot be read, which is counted.

        Raises:
            AgriClipError: More than 1 % cannot be read, or it is not known what the bands are.
        """
        ref = self.refs[i]
        try:
            image = read_image(ref, self.sensor, self.bands, self.default)
        except (RasterioError, OSError, UnidentifiedImageError) as error:
            self.refuse(ref.key, str(error))
            return None
        told = f"{image.sensor} ({len(image.stack.names)} bands)"
        self.decided[told] = self.decided.get(told, 0) + 1
        return image

    def refuse(self, key: str, reason: str) -> None:
        """Counts an image as unreadable."""
        self.unreadable.append((key, " ".join(reason.split())))
        if len(self.unreadable) > max(1, MOST_UNREADABLE * len(self)) or len(self) == len(self.unreadable):
            raise AgriClipError(
                f"{len(self.unreadable)} of {len(self)} images of {self.origin} cannot be read, more than 1 % "
                f"({named([f'{key}: {why}' for key, why in self.unreadable], 3)}); replace or remove them."
            )

    def batches(self, size: int, text: str = "", quiet: bool = True) -> Iterator[tuple[list[int], list[Image]]]:
        """Batches of readable images of one shape of bands, in order, with their numbers."""
        numbers: list[int] = []
        images: list[Image] = []
        for i in track(range(len(self)), text, quiet):
            image = self.read(i)
            if image is None:
                continue
            if images and (len(images) == size or image.stack.values.shape != images[0].stack.values.shape):
                yield numbers, images
                numbers, images = [], []
            numbers.append(i)
            images.append(image)
        if images:
            yield numbers, images

    def told(self) -> dict[str, Any]:
        """What the results say of the images."""
        return {
            "images": len(self),
            "from": self.origin,
            "read_as": dict(self.decided),
            "unreadable": [{"image": key, "reason": why} for key, why in self.unreadable],
        }


def track(items: Any, text: str, quiet: bool) -> Iterator[Any]:
    """Goes through items with a bar on standard error."""
    if quiet or not text:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, description=text)


def names_of_ref(ref: ImageRef) -> tuple[str, ...]:
    """What a table of labels may call an image: its key, its file name, and both without the ending."""
    path = Path(ref.key)
    return ref.key, path.name, str(path.with_suffix("").as_posix()), path.stem


def find_images(
    source: str | Path,
    *,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    default: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
    only: Sequence[str] | None = None,
) -> ImageTable:
    """Find images; no pixel is read.

    Args:
        source: A file, a folder (searched through, one folder a class or not), a folder or id of `datasets`.
        sensor: Name of the sensor of all images; by default each file says.
        bands: Names of the bands in file order.
        default: Sensor to prefer where a file leaves several open.
        split: Split of a data set; `test`, or else the last one, by default.
        image_column: Column of a data set that holds the images; found by default.
        limit: At most so many, spread evenly over the table.
        only: Names of those to take.

    Raises:
        AgriClipError: There are none.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in (*PHOTOGRAPHS, *RASTERS):
        refs, origin = [ImageRef(path.name, str(path))], f"'{path}'"
    elif path.is_dir() and not _is_dataset(path):
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*PHOTOGRAPHS, *RASTERS))
        files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        refs = [
            ImageRef(file.relative_to(path).as_posix(), str(file), file.parent.name if file.parent != path else None)
            for file in files
        ]
        origin = f"'{path}'"
    else:
        refs, origin = _from_dataset(source, path, split, image_column)
    if not refs:
        raise AgriClipError(f"There are no images in {origin}; give a folder of GeoTIFF, PNG or JPEG files.")
    table = ImageTable(refs, sensor, bands, default, origin)
    table = table if only is None else table.only(only)
    if limit is not None and limit < len(table):
        table = table.subset(np.linspace(0, len(table) - 1, limit).round().astype(int).tolist())
    return table


def _is_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file() or any(path.rglob("*.parquet"))


def _from_dataset(
    source: str | Path, path: Path, split: str | None, image_column: str | None
) -> tuple[list[ImageRef], str]:
    """Rows of a data set, folder or Hub id, their images as stored bytes."""
    if not path.exists() and (str(source).count("/") > 1 or str(source).startswith((".", "~"))):
        raise AgriClipError(f"There is no folder '{source}'; check the path.")
    try:
        import datasets
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("Reading data sets needs datasets: pip install 'agriclip[train]'.") from error
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(path))
        elif path.exists():
            files = [str(file) for file in sorted([path] if path.is_file() else path.rglob("*.parquet"))]
            found = datasets.load_dataset("parquet", data_files=files, split="train")
        else:
            found = datasets.load_dataset(str(source))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise AgriClipError(f"'{source}' is no folder and cannot be loaded as a data set ({reason}).") from error
    told = ""
    if isinstance(found, dict):
        chosen = split or ("test" if "test" in found else list(found)[-1])
        if chosen not in found:
            raise AgriClipError(f"The data set '{source}' has no split '{chosen}'; use one of {', '.join(found)}.")
        found, told = found[chosen], f", split {chosen}"
    features = found.features
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    column = image_column or next(iter(pictures), None) or next((n for n in ("image", "img") if n in features), None)
    if column not in features:
        raise AgriClipError(
            f"The data set '{source}' has no column of images (it has {', '.join(features)}); give --image-column."
        )
    if isinstance(features[column], datasets.Image):
        found = found.cast_column(column, datasets.Image(decode=False))
    names = {name: kind.names for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    others = found.select_columns([name for name in found.column_names if name != column])
    refs = [
        ImageRef(str(i), partial(_stored, found, i, column), columns=partial(_columns, others, i, names))
        for i in range(len(found))
    ]
    return refs, f"'{source}'{told}"


def _stored(rows: Any, number: int, column: str) -> Any:
    """The stored image of a row."""
    value = rows[number][column]
    return (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value


def _columns(rows: Any, number: int, names: dict[str, list[str]]) -> dict[str, Any]:
    """The other columns of a row, classes by name."""
    return {
        name: names[name][value] if name in names and value is not None else value
        for name, value in rows[number].items()
    }


def read_names(path: str | Path) -> list[str]:
    """Names of images from a text file, one a line, or from the first column of a CSV, or a JSON list.

    Raises:
        AgriClipError: The file is missing or empty.
    """
    file = Path(path)
    if not file.is_file():
        raise AgriClipError(f"The list of images '{file}' does not exist; check the path.")
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        names = [str(name) for name in json.loads(text)]
    else:
        names = [line.split(",")[0].strip().strip('"') for line in text.splitlines() if line.strip()]
    if not names:
        raise AgriClipError(f"The list of images '{file}' is empty; write one name a line.")
    return names
