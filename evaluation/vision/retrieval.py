"""Image-text retrieval: recall at k, both ways, under the rule of a protocol for equal captions.

Recall at k is the share of queries with at least one right answer among the k nearest (R@k of the caption-retrieval
literature, not the share of right answers found). Equal scores are ranked in the order of the table, as a stable sort
would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.encoders import Encoder
from evaluation.vision.images import ImageTable
from evaluation.vision.labels import Captions
from evaluation.vision.protocols import Protocol
from evaluation.vision.scores import DRAWS, group_blocks, interval
from evaluation.vision.zero_shot import unit
from processing.errors import AgriClipError

__all__ = ["Pairs", "Retrieval", "best_ranks", "evaluate_retrieval", "pair_captions", "recall_scores"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
CHUNK = 512
MEAN_OVER = (1, 5, 10)


@dataclass(frozen=True)
class Pairs:
    """Which text is right for which image.

    Attributes:
        texts: The texts (M,).
        text: Text of each pair.
        image: Image of each pair, a number in the table.
    """

    texts: list[str]
    text: IntArray
    image: IntArray


def pair_captions(captions: Sequence[Sequence[str]], protocol: Protocol) -> Pairs:
    """Pairs of texts and images as a protocol counts them.

    Args:
        captions: Captions of each image.
        protocol: Whether equal captions are one text, and how captions are written.
    """
    texts: list[str] = []
    known: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    for number, own in enumerate(captions):
        for caption in own:
            text = protocol.caption(caption)
            if not protocol.unique_texts or text not in known:
                known[text] = len(texts)
                texts.append(text)
            pairs[known[text], number] = None
    places = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    return Pairs(texts, places[:, 0], places[:, 1])


def best_ranks(queries: FloatArray, keys: FloatArray, query: IntArray, key: IntArray) -> IntArray:
    """Rank, from 0, of the best right key of each query.

    Args:
        queries: (Q, D).
        keys: (M, D).
        query: Query of each right pair.
        key: Key of each right pair.

    Returns:
        (Q,) number of keys that are nearer than the best right one; equal ones count if they stand before it.
    """
    order = np.argsort(query, kind="stable")
    query, key = query[order], key[order]
    ranks = np.full(len(queries), len(keys), dtype=np.int64)
    for start in range(0, len(queries), CHUNK):
        scores = queries[start : start + CHUNK] @ keys.T
        low, high = np.searchsorted(query, [start, start + len(scores)])
        rows, columns = query[low:high] - start, key[low:high]
        for row in np.unique(rows):
            right = columns[rows == row]
            values = scores[row]
            best = right[np.lexsort((right, -values[right]))[0]]
            ranks[start + row] = int((values > values[best]).sum() + (values[:best] == values[best]).sum())
    return ranks


def recall_scores(
    image_ranks: IntArray, text_ranks: IntArray, owner: IntArray, recalls: Sequence[int], seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """R@k both ways and their mean, with intervals from drawing images with replacement, their texts with them.

    Args:
        image_ranks: Rank of the best right text of each image (N,).
        text_ranks: Rank of the best right image of each text (M,).
        owner: Image of each text (M,); of a text of several images, the first.
        recalls: The k.
        seed: Seed of the draws.

    Returns:
        `image_to_text_recall_at_k`, `text_to_image_recall_at_k`, and `mean_recall` over k = 1, 5, 10 both ways; each
        with `value`, `low`, `high`.
    """
    groups = group_blocks(np.arange(len(image_ranks)))
    count = int(groups.max()) + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
    found: dict[str, dict[str, float | None]] = {}
    means: list[float] = []
    spread: list[NDArray[np.float64]] = []
    ways = {"image_to_text": (image_ranks, groups), "text_to_image": (text_ranks, groups[owner])}
    for name, (ranks, group) in ways.items():
        asked = times @ np.bincount(group, minlength=count)
        for k in recalls:
            hits = np.bincount(group, weights=(ranks < k).astype(np.float64), minlength=count)
            with np.errstate(invalid="ignore"):
                draws = times @ hits / asked
            low, high = interval(draws)
            value = float((ranks < k).mean())
            found[f"{name}_recall_at_{k}"] = {"value": value, "low": low, "high": high}
            if k in MEAN_OVER:
                means.append(value)
                spread.append(draws)
    low, high = interval(np.mean(spread, axis=0))
    found["mean_recall"] = {"value": float(np.mean(means)), "low": low, "high": high}
    return found


@dataclass(frozen=True)
class Retrieval:
    """What a retrieval found.

    Attributes:
        images: Images that were read and have a caption.
        texts: Texts that were asked.
        scores: Scores with intervals.
        number: Number in the table of each image.
        image_ranks: Rank of the best right text of each image.
        text_ranks: Rank of the best right image of each text.
        without: Images without a caption.
        repeated: Captions that some other image or the same has too.
    """

    images: int
    texts: int
    scores: dict[str, dict[str, float | None]]
    number: IntArray
    image_ranks: IntArray
    text_ranks: IntArray
    without: int
    repeated: int


def evaluate_retrieval(
    encoder: Encoder,
    table: ImageTable,
    captions: Captions,
    protocol: Protocol,
    *,
    batch: int = 32,
    quiet: bool = True,
) -> Retrieval:
    """Find the captions of each image among all captions, and the image of each caption among all images.

    Args:
        encoder: The model.
        table: The images.
        captions: Their captions.
        protocol: The rules.
        batch: Images a step.
        quiet: No progress bar.

    Raises:
        AgriClipError: The protocol defines no retrieval, or there are fewer than two images with captions.
    """
    if not protocol.retrieval:
        raise AgriClipError(f"The protocol '{protocol.name}' defines no retrieval; use agriclip, rs5m or skyscript.")
    keep = [i for i, own in enumerate(captions.texts) if own]
    if len(keep) < 2:
        raise AgriClipError(f"Only {len(keep)} image has a caption; retrieval needs at least two.")
    part = table.subset(keep)
    numbers: list[int] = []
    vectors = []
    for some, images in part.batches(batch, "Images", quiet):
        vectors.append(encoder.encode_images(images))
        numbers += some
    table.unreadable, table.decided = part.unreadable, part.decided
    found = np.array([keep[i] for i in numbers], dtype=np.int64)
    pairs = pair_captions([captions.texts[i] for i in found], protocol)
    images_by, texts_by = unit(np.concatenate(vectors)), unit(encoder.encode_texts(pairs.texts))
    image_ranks = best_ranks(images_by, texts_by, pairs.image, pairs.text)
    text_ranks = best_ranks(texts_by, images_by, pairs.text, pairs.image)
    every = [protocol.caption(text) for i in found for text in captions.texts[i]]
    owner = np.full(len(pairs.texts), len(found), dtype=np.int64)
    np.minimum.at(owner, pairs.text, pairs.image)
    scores = recall_scores(image_ranks, text_ranks, owner, protocol.recalls)
    return Retrieval(
        len(found),
        len(pairs.texts),
        scores,
        found,
        image_ranks,
        text_ranks,
        len(table) - len(keep),
        len(every) - len(set(every)),
    )


def protocol_told(protocol: Protocol) -> dict[str, Any]:
    """What the results say of a retrieval protocol."""
    return {
        "name": protocol.name,
        "source": protocol.source,
        "equal_captions": "one text" if protocol.unique_texts else "texts of their own",
        "caption_prefix": protocol.caption_prefix,
        "capitalised": protocol.capitalise,
        "notes": list(protocol.caption_notes),
    }
