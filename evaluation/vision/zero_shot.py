"""Zero-shot classification: an image belongs to the class whose text is nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.encoders import Encoder
from evaluation.vision.images import ImageTable
from evaluation.vision.labels import Labels
from evaluation.vision.protocols import ClassTexts, Protocol, class_texts
from evaluation.vision.scores import group_blocks, pair_counts, score_counts
from processing.errors import AgriClipError, named
from processing.vocabulary import REST

__all__ = [
    "ZeroShot",
    "class_embeddings",
    "classify_images",
    "compared_by",
    "evaluate_zero_shot",
    "rest_embeddings",
    "unit",
]

FloatArray = NDArray[np.float32]
# Weight of probabilities beside shares of pixels.
_LEAST = 1e-3


def unit(vectors: FloatArray) -> FloatArray:
    """Vectors (..., D) of length 1; a vector of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def class_embeddings(encoder: Encoder, texts: ClassTexts, pooling: str, pixels: bool = False) -> FloatArray:
    """One vector a class (K, P) from the embeddings of all its prompts, pooled as a protocol does.

    Args:
        encoder: The model.
        texts: The classes and their prompts.
        pooling: `mean` of the embeddings as they are, or of unit embeddings.
        pixels: Embeddings that pixels are compared with, not whole images: means, whose length says something to a
            head of segmentation. Others are of length 1.
    """
    if pixels:
        return np.stack([encoder.segment_texts(prompts).mean(axis=0) for prompts in texts.prompts()])
    found = []
    for prompts in texts.prompts():
        vectors = encoder.encode_texts(prompts)
        found.append(vectors.mean(axis=0) if pooling == "mean" else unit(vectors).mean(axis=0))
    return unit(np.stack(found))


def rest_embeddings(encoder: Encoder, texts: ClassTexts, classes: FloatArray) -> FloatArray:
    """Vectors (R, P) of the wordings for what is none of the classes, as pixels are compared with them.

    Land that is not asked about would vote for the class that it resembles. There are none for a model that has not
    learnt to compare pixels, nor where one of the classes is the rest itself.

    Args:
        encoder: The model.
        texts: The classes and their prompts.
        classes: Their vectors (K, P).
    """
    if not encoder.compares_pixels or {text.casefold() for text in texts.strings} & set(REST):
        return classes[:0]
    rest = replace(texts, names=REST, strings=REST)
    return class_embeddings(encoder, rest, "mean", pixels=True)


@dataclass(frozen=True)
class ZeroShot:
    """What a zero-shot classification found.

    Attributes:
        number: Number in the table of each image that was read and has a label (N,).
        truth: Its class (N,).
        predicted: The class found (N,).
        texts: Class names, strings and templates.
        result: Scores with intervals.
        confusion: Counts (K, K), truth in rows.
        blocks: What the intervals were drawn from.
        unlabelled: Images without a label.
        by: What was compared with the classes' texts: whole `image`s, or their `pixels`.
        beside: The wordings for other land that stood beside the classes, if any.
    """

    number: NDArray[np.int64]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    texts: ClassTexts
    result: dict[str, Any]
    confusion: NDArray[np.int64]
    blocks: str
    unlabelled: int
    by: str = "image"
    beside: tuple[str, ...] = ()


def classify_images(
    encoder: Encoder,
    table: ImageTable,
    classes: FloatArray,
    batch: int = 32,
    quiet: bool = True,
    rest: FloatArray | None = None,
) -> tuple[list[int], FloatArray, list[Any]]:
    """Images against class vectors.

    Args:
        encoder: The model.
        table: The images.
        classes: One vector a class (K, P), of `class_embeddings`.
        batch: Images a step.
        quiet: No progress bar.
        rest: Vectors (R, P) of what is none of the classes: compare pixels, and not whole images.

    Returns:
        Numbers of the images that could be read, their logits (N, K), and their places.
    """
    numbers: list[int] = []
    logits, places = [], []
    for part, images in table.batches(batch, "Images", quiet):
        if rest is not None:
            asked = encoder.segment(images, np.concatenate([classes, rest]))
            seen = [image.stack.valid.any(dim=0).numpy() for image in images]
            shares = [_share_of_pixels(*pair, len(classes)) for pair in zip(asked, seen, strict=True)]
            logits.append(np.stack(shares))
        else:
            vectors = unit(encoder.encode_images(images))
            logits.append(encoder.logit_scale * vectors @ classes.T + encoder.logit_bias)
        numbers += part
        places += [(image.place, image.edge) for image in images]
    return numbers, np.concatenate(logits), places


def _share_of_pixels(scores: FloatArray, seen: NDArray[np.bool_], count: int) -> FloatArray:
    """Logits (K + R, H, W) of pixels to the logarithm of the share of each of the K classes (K,).

    A pixel is of the class that is likeliest there, or of none: the R wordings for that are one class together, as
    likely as they are on average. Where hardly a pixel is of any, their mean probabilities decide. Pixels that are not
    `seen` (H, W), which have no data, do not count, unless there are no others.
    """
    scores = scores[:, seen] if seen.any() else scores.reshape(len(scores), -1)
    odds = np.exp(scores - scores.max(axis=0))
    if len(scores) > count:
        odds = np.concatenate([odds[:count], odds[count:].mean(axis=0, keepdims=True)])
    chance = (odds / odds.sum(axis=0)).mean(axis=1)[:count]
    share = np.bincount(odds.argmax(axis=0), minlength=len(odds))[:count] / odds.shape[1]
    found: FloatArray = np.log(share + _LEAST * chance + 1e-12).astype(np.float32)
    return found


def compared_by(encoder: Encoder, protocol: Protocol, by: str) -> bool:
    """Whether pixels and not whole images are compared with texts.

    Args:
        encoder: The model.
        protocol: A protocol other than our own compares whole images, as its numbers in the literature do.
        by: `pixels`, `image`, or `auto`: pixels under our own protocol where a model has learnt to compare them.

    Raises:
        AgriClipError: For another word.
    """
    if by not in ("auto", "image", "pixels"):
        raise AgriClipError(f"Images cannot be compared by '{by}'; choose auto, image or pixels.")
    return by == "pixels" or (by == "auto" and protocol.name == "agriclip" and encoder.compares_pixels)


def evaluate_zero_shot(
    encoder: Encoder,
    table: ImageTable,
    labels: Labels,
    protocol: Protocol,
    *,
    described: Mapping[str, str] | None = None,
    template: str | None = None,
    by: str = "auto",
    batch: int = 32,
    quiet: bool = True,
) -> ZeroShot:
    """Classify every labelled image among the classes of the labels, and score it.

    Args:
        encoder: The model.
        table: The images.
        labels: Their labels.
        protocol: Class strings, templates and pooling.
        described: What is to be said for a label in place of the protocol's string.
        template: A template in place of the protocol's.
        by: As of [`compared_by`].
        batch: Images a step.
        quiet: No progress bar.

    Raises:
        AgriClipError: Fewer than two classes have an image, or a described class is no label.
    """
    keep = np.flatnonzero(labels.index >= 0)
    if len(np.unique(labels.index[keep])) < 2:
        raise AgriClipError("Fewer than two classes have an image; zero-shot classification needs a choice.")
    unknown = [name for name in (described or {}) if name not in labels.names]
    if described and len(unknown) == len(described):
        raise AgriClipError(
            f"None of the classes described ({named(unknown, 4)}) is a label ({named(labels.names, 4)}); name them so."
        )
    texts = class_texts(protocol, labels.names, described, template)
    pixels = compared_by(encoder, protocol, by)
    classes = class_embeddings(encoder, texts, protocol.pooling, pixels)
    rest = rest_embeddings(encoder, texts, classes) if pixels else None
    part = table.subset(keep.tolist())
    found, logits, places = classify_images(encoder, part, classes, batch, quiet, rest)
    table.unreadable, table.decided = part.unreadable, part.decided
    numbers = keep[found]
    truth, predicted = labels.index[numbers], logits.argmax(axis=1)
    count = len(labels.names)
    blocks, told = image_blocks([place for place, _ in places], [edge for _, edge in places])
    counts = pair_counts(truth, predicted, count, group_blocks(blocks))
    return ZeroShot(
        number=numbers,
        truth=truth,
        predicted=predicted,
        texts=texts,
        result=score_counts(counts),
        confusion=counts.sum(axis=0),
        blocks=told,
        unlabelled=len(table) - len(keep),
        by="pixels" if pixels else "image",
        beside=() if rest is None or not len(rest) else REST,
    )


def image_blocks(
    places: Sequence[tuple[float, float] | None], edges: Sequence[float], size: float | None = None
) -> tuple[NDArray[Any], str]:
    """Block of each image: squares of five image edges, or the image itself where it has no place.

    Args:
        places: Coordinates of the middles.
        edges: Height of each image in the same units.
        size: Edge of a block in the same units; five images by default.

    Returns:
        (N,) blocks, and how they were made, in words.
    """
    from processing.splits import block_ids

    known = [place for place in places if place is not None]
    if not known or len(known) < len(places) or len(set(known)) < 2:
        return np.arange(len(places)), "single images, whose places are not known"
    length = size or 5 * float(np.nanmedian(np.asarray(edges, dtype=np.float64)))
    if not np.isfinite(length) or length <= 0:
        return np.arange(len(places)), "single images, whose places are not known"
    x, y = (np.array([place[axis] for place in known]) for axis in (0, 1))
    blocks = block_ids(x, y, length)
    return blocks, f"{len(np.unique(blocks))} blocks of {length:.4g} x {length:.4g} in the images' coordinates"
