"""Segmentation by language: every pixel to the class whose text is nearest, scored against masks.

Three choices define this file. Counts are kept by tile, so that intervals come from whole blocks of touching tiles.
Large images go through in windows with a margin around each, whose prediction is thrown away. And the baseline that
any claim must beat, gradient boosting on the bands of single pixels, is fitted in the same run where training tiles
are given, and scored on the very same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.classes import ClassTable, mask_files
from evaluation.vision.encoders import Encoder
from evaluation.vision.images import ImageTable, track
from evaluation.vision.reading import Image, physical, read_codes, to_rgb
from evaluation.vision.scores import pair_counts, paired_interval, score_counts, sum_blocks
from evaluation.vision.zero_shot import image_blocks
from processing.errors import AgriClipError

try:
    from rasterio.errors import RasterioError
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Scoring masks needs rasterio: pip install 'agriclip[maps]'.") from error

__all__ = ["Example", "PixelBaseline", "Segmentation", "evaluate_segmentation", "fit_pixel_baseline", "predict_image"]

WINDOW, MARGIN = 256, 32
EXAMPLES = 6
PIXELS_PER_TILE = 150
BASELINE = "gradient boosting on pixels"


@dataclass(frozen=True)
class Example:
    """A tile to draw: colours (H, W, 3), truth and prediction (H, W), -1 where not scored."""

    key: str
    colours: NDArray[np.uint8]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    accuracy: float


@dataclass(frozen=True)
class PixelBaseline:
    """Gradient boosting on the physical values of single pixels.

    Attributes:
        model: A fitted scikit-learn classifier.
        bands: Names of the bands.
        tiles: Tiles it was fitted on.
        pixels: Pixels it was fitted on.
    """

    model: Any
    bands: list[str]
    tiles: int
    pixels: int

    def predict(self, image: Image) -> NDArray[np.int64]:
        """Class of each pixel (H, W)."""
        values, known = physical(image)
        table = np.where(known, values, np.nan).reshape(len(values), -1).T
        return np.asarray(self.model.predict(table), dtype=np.int64).reshape(image.size)


@dataclass
class Segmentation:
    """What a segmentation found.

    Attributes:
        classes: The classes.
        prompts: What was asked for each of them.
        result: Scores with intervals.
        confusion: Counts of pixels (K, K), truth in rows.
        tiles: Tiles that were scored.
        pixels: Pixels that were scored.
        share_ignored: Share of the masks' pixels whose code is of no listed class.
        share_unmeasured: Share of the masks' pixels where the image has no data.
        blocks: What the intervals were drawn from.
        method: How pixels were compared with texts.
        examples: Tiles to draw.
        baseline: The baseline's scores, where it was fitted.
        baseline_confusion: Its counts.
        differences: Ours less the baseline's, with intervals.
        by_tile: Key, accuracy and pixels of each tile.
    """

    classes: ClassTable
    prompts: list[str]
    result: dict[str, Any]
    confusion: NDArray[np.int64]
    tiles: int
    pixels: int
    share_ignored: float
    share_unmeasured: float
    blocks: str
    method: str
    examples: list[Example] = field(default_factory=list)
    baseline: dict[str, Any] | None = None
    baseline_confusion: NDArray[np.int64] | None = None
    differences: dict[str, tuple[float, float | None, float | None]] = field(default_factory=dict)
    by_tile: list[dict[str, Any]] = field(default_factory=list)


def evaluate_segmentation(
    encoder: Encoder,
    table: ImageTable,
    masks: str | Path,
    classes: ClassTable,
    *,
    template: str = "a satellite image of {}",
    baseline: PixelBaseline | None = None,
    block: float | None = None,
    batch: int = 4,
    quiet: bool = True,
) -> Segmentation:
    """Segment images by the names of classes and score them against masks.

    Args:
        encoder: The model.
        table: The images.
        masks: Folder of masks, called as the images are.
        classes: Codes and names; a class for all other codes is asked for by its name like any other.
        template: The prompt, with `{}` where the name goes.
        baseline: What `fit_pixel_baseline` returned, to be scored on the same pixels.
        block: Edge of the blocks of the intervals in the images' coordinates; five tiles by default.
        batch: Images a step.
        quiet: No progress bar.

    Raises:
        AgriClipError: The template has no `{}`, no image has a mask, or no pixel is of a listed class.
    """
    if "{}" not in template:
        raise AgriClipError(f"The prompt '{template}' has no {{}} where the class goes; add it.")
    files = mask_files(table, masks)
    keep = [i for i, file in enumerate(files) if file is not None]
    part = table.subset(keep)
    prompts = [template.replace("{}", name) for name in classes.names]
    texts = encoder.segment_texts(prompts)
    ours: list[NDArray[np.int64]] = []
    theirs: list[NDArray[np.int64]] = []
    places: list[Any] = []
    examples: list[Example] = []
    by_tile: list[dict[str, Any]] = []
    total = ignored = unmeasured = 0
    chosen = set(np.linspace(0, len(keep) - 1, min(EXAMPLES, len(keep))).round().astype(int).tolist())
    for numbers, images in part.batches(batch, "Tiles", quiet):
        for number, image, predicted in zip(numbers, images, predict_images(encoder, images, texts), strict=True):
            try:
                codes = _codes(Path(str(files[keep[number]])), image)
            except (RasterioError, AgriClipError) as error:
                part.refuse(image.key, str(error))
                continue
            truth = classes.index(codes)
            total, ignored = total + truth.size, ignored + int((truth < 0).sum())
            seen = image.stack.valid.any(dim=0).numpy()
            unmeasured += int(((truth >= 0) & ~seen).sum())
            truth = np.where(seen, truth, -1)
            counts = _counts(truth, predicted, len(classes.names))
            ours.append(counts)
            places.append((image.place, image.edge))
            right, pixels = int(np.trace(counts)), int(counts.sum())
            accuracy = right / pixels if pixels else float("nan")
            by_tile.append({"tile": image.key, "accuracy": round(accuracy, 4), "pixels": pixels})
            if baseline is not None:
                theirs.append(_counts(truth, baseline.predict(image), len(classes.names)))
            if number in chosen and pixels:
                examples.append(Example(image.key, to_colours(image), truth, predicted, accuracy))
    table.unreadable, table.decided = part.unreadable, part.decided
    counts = np.stack(ours) if ours else np.zeros((1, len(classes.names), len(classes.names)), dtype=np.int64)
    if not counts.any():
        raise AgriClipError(
            f"No pixel of the masks in '{masks}' is of a listed class ({classes.understood}); check the codes."
        )
    blocks, told = image_blocks([place for place, _ in places], [edge for _, edge in places], block)
    result = score_counts(sum_blocks(counts, blocks))
    found = Segmentation(
        classes,
        prompts,
        result,
        counts.sum(axis=0),
        len(ours),
        int(counts.sum()),
        ignored / max(1, total),
        unmeasured / max(1, total),
        told,
        encoder.segments_by,
        examples,
        by_tile=by_tile,
    )
    if baseline is not None:
        other = np.stack(theirs)
        found.baseline, found.baseline_confusion = score_counts(sum_blocks(other, blocks)), other.sum(axis=0)
        for name in ("accuracy", "mean_iou", "macro_f1"):
            found.differences[name] = paired_interval(result, found.baseline, name)
    return found


def _counts(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return pair_counts(truth.ravel(), predicted.ravel(), classes, np.zeros(truth.size, dtype=np.int64))[0]


def _codes(file: Path, image: Image) -> NDArray[np.int64]:
    """Codes of a mask of the image's size; of a whole multiple of it, the code in the middle of each pixel."""
    codes = read_codes(file)
    height, width = image.size
    if codes.shape == (height, width):
        return codes
    step = codes.shape[0] // max(1, height)
    if step > 1 and codes.shape == (height * step, width * step):
        return codes[step // 2 :: step, step // 2 :: step]
    raise AgriClipError(f"its mask has {codes.shape[0]} x {codes.shape[1]} pixels and the image {height} x {width}")


def predict_images(
    encoder: Encoder, images: Sequence[Image], texts: NDArray[np.float32]
) -> Iterator[NDArray[np.int64]]:
    """Class of each pixel (H, W) of some images, large ones in windows."""
    small = [image for image in images if max(image.size) <= WINDOW + 2 * MARGIN]
    logits = iter(encoder.segment(small, texts)) if small else iter(())
    for image in images:
        if max(image.size) <= WINDOW + 2 * MARGIN:
            yield next(logits).argmax(axis=0).astype(np.int64)
        else:
            yield predict_image(encoder, image, texts)


def predict_image(encoder: Encoder, image: Image, texts: NDArray[np.float32]) -> NDArray[np.int64]:
    """Class of each pixel (H, W) of a large image, window by window, each with a margin around it."""
    height, width = image.size
    found = np.zeros((height, width), dtype=np.int64)
    for row in range(0, height, WINDOW):
        for column in range(0, width, WINDOW):
            top, left = max(0, row - MARGIN), max(0, column - MARGIN)
            bottom, right = min(height, row + WINDOW + MARGIN), min(width, column + WINDOW + MARGIN)
            stack = image.stack
            cut = replace(
                stack, values=stack.values[:, top:bottom, left:right], valid=stack.valid[:, top:bottom, left:right]
            )
            classes = encoder.segment([replace(image, stack=cut)], texts)[0].argmax(axis=0)
            high, wide = min(WINDOW, height - row), min(WINDOW, width - column)
            inner = classes[row - top : row - top + high, column - left : column - left + wide]
            found[row : row + high, column : column + wide] = inner
    return found


def fit_pixel_baseline(
    table: ImageTable,
    masks: str | Path,
    classes: ClassTable,
    *,
    per_tile: int = PIXELS_PER_TILE,
    seed: int = 0,
    quiet: bool = True,
) -> PixelBaseline:
    """Fit gradient boosting on pixels drawn from training tiles.

    Args:
        table: The training images.
        masks: Folder of their masks.
        classes: Codes and names.
        per_tile: Pixels drawn from each tile.
        seed: Seed of the draw and of the fit.
        quiet: No progress bar.

    Raises:
        AgriClipError: The training tiles hold fewer than two classes.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    files = mask_files(table, masks)
    random = np.random.default_rng(seed)
    values, labels, bands = [], [], []
    for i in track(range(len(table)), "Training tiles", quiet):
        image = None if files[i] is None else table.read(i)
        if image is None:
            continue
        truth = classes.index(_codes(Path(str(files[i])), image)).ravel()
        table_of, known = physical(image)
        flat = np.where(known, table_of, np.nan).reshape(len(table_of), -1).T
        places = np.flatnonzero((truth >= 0) & np.isfinite(flat).any(axis=1))
        drawn = random.choice(places, min(per_tile, len(places)), replace=False)
        values.append(flat[drawn])
        labels.append(truth[drawn])
        bands = list(image.stack.names)
    if not labels or len(np.unique(np.concatenate(labels))) < 2:
        raise AgriClipError(f"The training tiles of {table.origin} hold fewer than two classes; give more of them.")
    x, y = np.concatenate(values), np.concatenate(labels)
    return PixelBaseline(HistGradientBoostingClassifier(random_state=seed).fit(x, y), bands, len(labels), len(y))


def to_colours(image: Image) -> NDArray[np.uint8]:
    """Colours of an image (H, W, 3) for pictures, stretched; grey of its first band where it has none."""
    if image.photograph:
        return to_rgb(image)
    try:
        values, known = physical(image, ("red", "green", "blue"))
    except AgriClipError:
        values, known = physical(image)
        values, known = values[[0, 0, 0]], known[[0, 0, 0]]
    shown = np.zeros((*values.shape[1:], 3), dtype=np.uint8)
    for band in range(3):
        seen = values[band][known[band]]
        low, high = np.percentile(seen, (2, 98)) if seen.size else (0.0, 1.0)
        scaled = (values[band] - low) / max(high - low, 1e-6)
        shown[..., band] = np.where(known[band], np.clip(scaled, 0, 1) * 255, 255).astype(np.uint8)
    return shown
