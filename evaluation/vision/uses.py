"""The plain uses of a model on files: embeddings, classes and search, as tables that other programs read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.encoders import Encoder
from evaluation.vision.images import ImageTable
from evaluation.vision.protocols import Protocol, class_texts
from evaluation.vision.zero_shot import class_embeddings, classify_images, compared_by, rest_embeddings, unit
from processing.errors import AgriClipError
from processing.whole_files import finished, write_whole

__all__ = ["Classified", "Embedded", "Retrieved", "classify_files", "embed_files", "retrieve_files"]

FloatArray = NDArray[np.float32]
ENDINGS = (".npy", ".csv", ".parquet")


@dataclass(frozen=True)
class Embedded:
    """Embeddings of images: keys, vectors (N, D), places (N, 2), and the files written."""

    keys: list[str]
    vectors: FloatArray
    places: NDArray[np.float64]
    files: list[Path]


def embed_files(
    encoder: Encoder,
    table: ImageTable,
    output: str | Path,
    *,
    features: str = "projected",
    normalise: bool = True,
    batch: int = 32,
    quiet: bool = True,
) -> Embedded:
    """Write the embeddings of images.

    Args:
        encoder: The model.
        table: The images.
        output: `.parquet` (image, x, y, vector), `.csv` (a column a dimension), or `.npy` (N, D) with a CSV of names
            beside it.
        features: Kind of embedding, see `Encoder.encode_images`.
        normalise: Scale vectors to length 1.
        batch: Images a step.
        quiet: No progress bar.

    Raises:
        AgriClipError: The output has another ending.
    """
    path = Path(output)
    if path.suffix.lower() not in ENDINGS:
        raise AgriClipError(f"Embeddings are written as {', '.join(ENDINGS)}, not as '{path.name}'.")
    keys: list[str] = []
    places: list[tuple[float, float]] = []
    vectors = []
    for numbers, images in table.batches(batch, "Images", quiet):
        found = encoder.encode_images(images, features)
        vectors.append(unit(found) if normalise else found)
        keys += [table.refs[i].key for i in numbers]
        places += [image.place or (np.nan, np.nan) for image in images]
    values, where = np.concatenate(vectors).astype(np.float32), np.array(places, dtype=np.float64)
    files = [path]
    if path.suffix.lower() == ".npy":
        with finished(path) as temporary:
            np.save(temporary, values)
        files.append(_write_table(path.with_suffix(".csv"), ["image", "x", "y"], zip(keys, *where.T, strict=True)))
    elif path.suffix.lower() == ".csv":
        names = ["image", "x", "y", *(f"e{i}" for i in range(values.shape[1]))]
        rows = ([key, *place, *map(float, vector)] for key, place, vector in zip(keys, where, values, strict=True))
        _write_table(path, names, rows)
    else:
        _write_parquet(path, {"image": keys, "x": where[:, 0], "y": where[:, 1], "vector": list(values)})
    return Embedded(keys, values, where, files)


@dataclass(frozen=True)
class Classified:
    """Classes of images: keys, class found and its probability, probabilities (N, K), names, and the file."""

    keys: list[str]
    found: list[str]
    probabilities: FloatArray
    names: list[str]
    file: Path


def classify_files(
    encoder: Encoder,
    table: ImageTable,
    names: Sequence[str],
    output: str | Path,
    *,
    protocol: Protocol,
    template: str | None = None,
    by: str = "auto",
    batch: int = 32,
    quiet: bool = True,
) -> Classified:
    """Write the likeliest of some classes for each image, and the probability of each: the softmax over the classes.

    Where pixels are compared, its share of those that are any of the classes.

    Args:
        encoder: The model.
        table: The images.
        names: Classes in words.
        output: CSV or Parquet.
        protocol: Templates and pooling.
        template: A template in place of the protocol's.
        by: As of `compared_by`.
        batch: Images a step.
        quiet: No progress bar.

    Raises:
        AgriClipError: Fewer than two classes are given, or the output has another ending.
    """
    path = _require_ending(output)
    if len(names) < 2:
        raise AgriClipError("Give at least two classes to choose from: repeat --class, or give --classes FILE.")
    texts = class_texts(protocol, names, {name: name for name in names}, template)
    pixels = compared_by(encoder, protocol, by)
    classes = class_embeddings(encoder, texts, protocol.pooling, pixels)
    rest = rest_embeddings(encoder, texts, classes) if pixels else None
    numbers, logits, _ = classify_images(encoder, table, classes, batch, quiet, rest)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    keys = [table.refs[i].key for i in numbers]
    found = [names[k] for k in chances.argmax(axis=1)]
    header = ["image", "class", "probability", *names]
    rows = [
        [key, name, float(own.max()), *map(float, own)] for key, name, own in zip(keys, found, chances, strict=True)
    ]
    _write(path, header, rows)
    return Classified(keys, found, chances, list(names), path)


@dataclass(frozen=True)
class Retrieved:
    """Images found for queries: rows of query, rank from 1, image and cosine; and the file."""

    rows: list[dict[str, Any]]
    file: Path


def retrieve_files(
    encoder: Encoder,
    table: ImageTable,
    queries: Sequence[str],
    output: str | Path,
    *,
    top: int = 10,
    batch: int = 32,
    quiet: bool = True,
) -> Retrieved:
    """Write the images nearest to each query.

    Args:
        encoder: The model.
        table: The images.
        queries: Texts.
        output: CSV or Parquet.
        top: Images of each query.
        batch: Images a step.
        quiet: No progress bar.

    Raises:
        AgriClipError: There is no query, or the output has another ending.
    """
    path = _require_ending(output)
    if not queries:
        raise AgriClipError("Nothing is looked for; give at least one --query.")
    texts = unit(encoder.encode_texts(list(queries)))
    _, logits, _ = (found := classify_images(encoder, table, texts, batch, quiet))
    cosines = (logits - encoder.logit_bias) / encoder.logit_scale
    rows = []
    for column, query in enumerate(queries):
        best = np.argsort(-cosines[:, column], kind="stable")[:top]
        for rank, i in enumerate(best, 1):
            key = table.refs[found[0][i]].key
            rows.append({"query": query, "rank": rank, "image": key, "cosine": float(cosines[i, column])})
    _write(path, ["query", "rank", "image", "cosine"], [list(row.values()) for row in rows])
    return Retrieved(rows, path)


def _require_ending(output: str | Path) -> Path:
    path = Path(output)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise AgriClipError(f"Tables are written as .csv or .parquet, not as '{path.name}'.")
    return path


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if path.suffix.lower() == ".csv":
        _write_table(path, header, rows)
    else:
        _write_parquet(path, {name: [row[i] for row in rows] for i, name in enumerate(header)})


def _write_table(path: Path, header: Sequence[str], rows: Any) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    return write_whole(path, text.getvalue())


def _write_parquet(path: Path, columns: dict[str, Any]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("Writing Parquet needs pyarrow: pip install 'agriclip[zones]'.") from error
    with finished(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
