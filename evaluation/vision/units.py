"""What a probe classifies: whole images, cuts of images, the model's cells, or time series, each with its features.

Two choices define this file. Every kind of unit carries the model's frozen features and, beside them, what a plain
method would use instead: statistics of the bands in physical units, or the raw series. And each unit knows where it
lies and which image it came from, so that units which belong together are held out together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.classes import IGNORE, ClassTable, commonest, mask_files
from evaluation.vision.encoders import AgriClipEncoder, Encoder
from evaluation.vision.images import ImageTable, track
from evaluation.vision.labels import Labels
from evaluation.vision.reading import Image, ImageRef, physical, read_codes
from processing.errors import AgriClipError, named

__all__ = [
    "BANDS",
    "OURS",
    "RAW",
    "Units",
    "band_statistics",
    "cell_units",
    "chip_units",
    "class_sizes",
    "image_units",
    "series_units",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
OURS, BANDS, RAW = "embeddings", "band statistics", "raw series"


@dataclass(frozen=True)
class Units:
    """What is classified.

    Attributes:
        features: Kind -> (N, D): `embeddings` and what they are compared with.
        index: Class of each unit (N,).
        names: Class names.
        place: Coordinates (N, 2), or None.
        edge: Edge of a unit's image in the same units.
        group: Image that each unit comes from (N,).
        split: Split as the labels say, or None.
        fold: Fold as the labels say, or None.
        told: What the units are, in words.
    """

    features: dict[str, FloatArray]
    index: IntArray
    names: list[str]
    place: NDArray[np.float64] | None
    edge: float
    group: NDArray[Any]
    split: list[str] | None = None
    fold: list[str] | None = None
    told: str = ""


def band_statistics(image: Image) -> FloatArray:
    """Mean, spread, and 10th, 50th and 90th percentile of each band's physical values, (5 C,); 0 where it has none."""
    return _statistics(*physical(image))


def _statistics(values: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    found = np.zeros((len(values), 5), dtype=np.float32)
    for band, (own, there) in enumerate(zip(values, known, strict=True)):
        seen = own[there]
        if seen.size:
            found[band] = (seen.mean(), seen.std(), *np.percentile(seen, (10, 50, 90)))
    return found.T.ravel()


def image_units(
    encoder: Encoder, table: ImageTable, labels: Labels, features: str = "pooled", batch: int = 32, quiet: bool = True
) -> Units:
    """Whole images as units.

    Args:
        encoder: The model.
        table: The images.
        labels: Their labels; images without one are left out.
        features: Kind of embedding, see `Encoder.encode_images`.
        batch: Images a step.
        quiet: No progress bar.
    """
    keep = np.flatnonzero(labels.index >= 0)
    if not len(keep):
        raise AgriClipError(f"No image of {table.origin} has a label; check the labels.")
    part = table.subset(keep.tolist())
    numbers: list[int] = []
    vectors, bands, places, edges = [], [], [], []
    for some, images in part.batches(batch, "Images", quiet):
        vectors.append(encoder.encode_images(images, features))
        bands += [band_statistics(image) for image in images]
        places += [image.place for image in images]
        edges += [image.edge for image in images]
        numbers += some
    table.unreadable, table.decided = part.unreadable, part.decided
    found = keep[numbers]
    place = None if any(p is None for p in places) else np.array(places, dtype=np.float64)
    if labels.place is not None:
        place = labels.place[found]
    kinds = {OURS: np.concatenate(vectors)}
    if len({len(one) for one in bands}) == 1:
        kinds[BANDS] = np.stack(bands)
    return Units(
        kinds,
        labels.index[found],
        labels.names,
        place,
        float(np.nanmedian(edges)) if np.isfinite(edges).any() else float("nan"),
        found,
        None if labels.split is None else [labels.split[i] for i in found],
        None if labels.fold is None else [labels.fold[i] for i in found],
        f"{len(found)} images",
    )


def chip_units(
    encoder: Encoder,
    table: ImageTable,
    masks: str | Path,
    classes: ClassTable,
    chip: int,
    features: str = "pooled",
    batch: int = 32,
    quiet: bool = True,
) -> Units:
    """Square cuts of images as units, each seen by the model alone; its class is the commonest of its mask.

    Args:
        encoder: The model.
        table: The images.
        masks: Folder of masks, called as the images are.
        classes: Codes and names.
        chip: Edge of a cut in pixels.
        features: Kind of embedding.
        batch: Cuts a step.
        quiet: No progress bar.
    """
    refs: list[ImageRef] = []
    index: list[int] = []
    group: list[int] = []
    for i, file in enumerate(mask_files(table, masks)):
        if file is None:
            continue
        codes = read_codes(file)
        for row in range(0, codes.shape[0] - chip + 1, chip):
            for column in range(0, codes.shape[1] - chip + 1, chip):
                label = commonest(codes[row : row + chip, column : column + chip], classes)
                if label != IGNORE:
                    refs.append(replace(table.refs[i], window=(row, column, chip, chip)))
                    index.append(label)
                    group.append(i)
    if not refs:
        raise AgriClipError(f"No cut of {chip} x {chip} pixels has a listed class; give smaller cuts or more classes.")
    cuts = ImageTable(refs, table.sensor, table.bands, table.default, table.origin)
    units = image_units(encoder, cuts, Labels(np.array(index), list(classes.names)), features, batch, quiet)
    table.unreadable, table.decided = cuts.unreadable, cuts.decided
    images = np.array(group)[units.group]
    told = f"{len(images)} cuts of {chip} x {chip} pixels from {len(set(group))} images, each seen alone"
    return replace(units, group=images, told=told)


def cell_units(
    encoder: Encoder,
    table: ImageTable,
    masks: str | Path,
    classes: ClassTable,
    per_image: int = 256,
    batch: int = 4,
    seed: int = 0,
    quiet: bool = True,
) -> Units:
    """The model's own cells as units, with the context they have seen; their class is the commonest of their mask.

    Args:
        encoder: The model.
        table: The images.
        masks: Folder of masks, called as the images are.
        classes: Codes and names.
        per_image: At most so many cells of an image, drawn at random.
        batch: Images a step.
        seed: Seed of the draw.
        quiet: No progress bar.
    """
    files = mask_files(table, masks)
    keep = [i for i, file in enumerate(files) if file is not None]
    part, random = table.subset(keep), np.random.default_rng(seed)
    vectors, bands, index, group, places, edges = [], [], [], [], [], []
    cell = (0, 0)
    for numbers, images in part.batches(batch, "Images", quiet):
        for number, image, cells in zip(numbers, images, encoder.encode_cells(images), strict=True):
            codes = read_codes(Path(str(files[keep[number]])))
            if codes.shape != image.size:
                part.refuse(image.key, f"its mask has {codes.shape} pixels and the image {image.size}")
                continue
            values, known = physical(image)
            high, wide = -(-image.size[0] // cells.shape[0]), -(-image.size[1] // cells.shape[1])
            cell = (high, wide)
            drawn = random.permutation(cells.shape[0] * cells.shape[1])
            taken = 0
            for place in drawn:
                row, column = divmod(int(place), cells.shape[1])
                here = np.s_[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                label = commonest(codes[here], classes) if codes[here].size else IGNORE
                if label == IGNORE or taken == per_image:
                    continue
                taken += 1
                vectors.append(cells[row, column])
                bands.append(_statistics(values[:, *here], known[:, *here]))
                index.append(label)
                group.append(keep[number])
                places.append(image.place)
                edges.append(image.edge)
    table.unreadable, table.decided = part.unreadable, part.decided
    if not index:
        raise AgriClipError(f"No cell of {table.origin} has a listed class; check the codes in the classes file.")
    place = None if any(p is None for p in places) else np.array(places, dtype=np.float64)
    told = f"{len(index)} cells of {cell[0]} x {cell[1]} pixels from {len(set(group))} images, seen in their context"
    features = {OURS: np.stack(vectors), BANDS: np.stack(bands)}
    edge = float(np.nanmedian(edges)) if np.isfinite(edges).any() else float("nan")
    return Units(features, np.array(index), list(classes.names), place, edge, np.array(group), told=told)


def series_units(
    encoder: Encoder,
    path: str | Path,
    sensor: str = "modis_vi",
    gsd: float | None = None,
    features: str = "pooled",
    limit: int | None = None,
    batch: int = 64,
    quiet: bool = True,
) -> Units:
    """Time series of single pixels as units, as images of 1 x 1 pixel at many dates.

    Args:
        encoder: AgriCLIP; models of photographs know no dates.
        path: NPZ with `x` (N, T, C) in physical units, `bands` (C,), `label` (N,), and as far as known `dates` (N, T)
            ISO, `lon`, `lat`, `fold` or `split`.
        sensor: Sensor whose channels the bands are.
        gsd: Metres per pixel; the sensor's by default.
        features: Kind of embedding.
        limit: At most so many series, spread evenly.
        batch: Series a step.
        quiet: No progress bar.

    Raises:
        AgriClipError: The file lacks an array, or the model takes no series.
    """
    import torch

    from processing.sensors_agriclip import get_sensor, resolve_channels

    file = Path(path).expanduser()
    if not isinstance(encoder, AgriClipEncoder):
        raise AgriClipError(f"'{encoder.name}' sees single photographs; time series need an AgriCLIP model.")
    if not file.is_file():
        raise AgriClipError(f"The file of series '{file}' does not exist; check the path.")
    with np.load(file, allow_pickle=False) as stored:
        content = {name: stored[name] for name in stored.files}
    lacking = [name for name in ("x", "bands", "label") if name not in content]
    if lacking:
        raise AgriClipError(f"'{file}' has no array {named(lacking)} (it has {named(content)}); add it.")
    chosen = np.arange(len(content["x"]))
    if limit is not None and limit < len(chosen):
        chosen = np.linspace(0, len(chosen) - 1, limit).round().astype(int)
    values = content["x"][chosen].astype(np.float32)
    try:
        spec = get_sensor(sensor)
        channels = resolve_channels([str(name) for name in content["bands"]], spec)
    except ValueError as error:
        raise AgriClipError(f"The bands of '{file}' do not fit: {error}") from error
    days = _days(content["dates"][chosen]) if "dates" in content else np.zeros(values.shape[:2], dtype=np.int64)
    scores, known = encoder.processor.image_processor.normalize_values(values[..., None, None], channels)
    codes = torch.tensor([channel.code() for channel in channels])
    vectors = []
    for start in track(range(0, len(values), batch), "Series", quiet):
        part = slice(start, start + batch)
        size = len(values[part])
        inputs = {
            "pixel_values": torch.from_numpy(scores[part]),
            "pixel_mask": torch.from_numpy(known[part]),
            "channels": codes.expand(size, -1, -1),
            "gsd": torch.full((size,), float(gsd or spec.gsd)),
            "dates": torch.from_numpy(days[part]),
        }
        with torch.inference_mode():
            vectors.append(encoder.encode_tensors({k: v.to(encoder.device) for k, v in inputs.items()}, features))
    texts = [str(text) for text in content["label"][chosen]]
    names = sorted(set(texts))
    place = None
    if "lon" in content and "lat" in content:
        place = np.stack([content["lon"][chosen], content["lat"][chosen]], axis=1).astype(np.float64)
    given = {name: [str(v) for v in content[name][chosen]] for name in ("split", "fold") if name in content}
    return Units(
        {OURS: np.concatenate(vectors), RAW: np.nan_to_num(values.reshape(len(values), -1))},
        np.array([names.index(text) for text in texts], dtype=np.int64),
        names,
        place,
        0.05,  # degrees: blocks of five are 0.25 degrees
        np.arange(len(values)),
        given.get("split"),
        given.get("fold"),
        f"{len(values)} series of {values.shape[1]} dates and {values.shape[2]} bands",
    )


def _days(dates: NDArray[Any]) -> IntArray:
    """ISO dates (N, T) to days from 1 January of each series' last year, as the image processor counts them."""
    day = dates.astype("datetime64[D]")
    first = day[:, -1].astype("datetime64[Y]").astype("datetime64[D]")
    number = (day - first[:, None]).astype(np.int64) + 1
    return np.where(number == 0, 1, number)


def class_sizes(units: Units) -> dict[str, int]:
    """How many units each class has."""
    return {name: int((units.index == k).sum()) for k, name in enumerate(units.names)}
