"""Landsat 8 tiles with Cropland Data Layer codes as a table of tiles: classes, blocks, baselines.

The tiles are read where they lie. Neighbouring tiles touch, so squares of 5 x 5 tiles are held out together.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from datasets import Dataset
from numpy.typing import NDArray

from processing.errors import AgriClipError
from processing.splits import spatial_blocks
from training.tile_reader import IGNORE, Tile
from training.tile_transform import TileTransform

# Code of the Cropland Data Layer to name, in the order of the class indices: the six commonest codes of the scene,
# 84 % of its pixels. What is anything else is not scored: a tile whose commonest code is another is left out of the
# classification, and a pixel of another code counts neither as right nor as wrong.
CLASSES = {5: "soybean", 176: "grass", 23: "spring wheat", 1: "corn", 195: "wetland", 111: "water"}
# With `other`, wetland and water of any kind are one class and everything else is the sixth.
CLASSES_WITH_OTHER = {
    5: "soybean",
    176: "grass",
    23: "spring wheat",
    1: "corn",
    83: "wetland and water",
    87: "wetland and water",
    111: "wetland and water",
    190: "wetland and water",
    195: "wetland and water",
}
NO_DATA_CODES = (0, 81)  # background, clouds
DATE = "2015-09-02"
TEXT = "Landsat 8 surface reflectance of farmland"
BLOCK = 5  # tiles along the edge of a block
LANDSAT_FOLDER = "landsat8_cdl"


@dataclass(frozen=True)
class Scheme:
    """Which code is which class.

    Attributes:
        codes: Class index of each code.
        names: Name of each class.
        unlisted: Class index of all other codes.
    """

    codes: dict[int, int]
    names: list[str]
    unlisted: int

    @classmethod
    def of(cls, with_other: bool) -> Scheme:
        """The six commonest codes, or five classes and `other`."""
        table = CLASSES_WITH_OTHER if with_other else CLASSES
        names = list(dict.fromkeys(table.values()))
        codes = {code: names.index(name) for code, name in table.items()} | dict.fromkeys(NO_DATA_CODES, IGNORE)
        return cls(codes, [*names, "other"] if with_other else names, len(names) if with_other else IGNORE)

    def class_of(self, code: int) -> int:
        """Class index of one code."""
        return self.codes.get(code, self.unlisted)


def data_folder() -> Path:
    """The folder of the real data.

    Raises:
        AgriClipError: The tiles are not there.
    """
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("AGRICLIP_DATA", default)) / LANDSAT_FOLDER
    if not (folder / "images").is_dir():
        raise AgriClipError(f"The Landsat tiles are not in '{folder}'; set AGRICLIP_DATA to the folder of the data.")
    return folder


def write_metadata(source: Path, folder: Path, scheme: Scheme, folds: int, seed: int = 0) -> Path:
    """Describe the tiles in `metadata.jsonl`, by absolute paths; nothing is copied.

    Args:
        source: Folder with `images/RR_CC.tif` and `masks/RR_CC.tif`.
        folder: Where the description goes.
        scheme: The classes.
        folds: Number of folds of blocks.
        seed: Seed of the folds.

    Returns:
        `folder`. A tile's `label` is the class of its commonest code, 255 if that is not scored; its `block` is its
        fold.
    """
    images = sorted((source / "images").glob("*.tif"))
    rows, columns = (np.array([int(path.stem.split("_")[axis]) for path in images]) for axis in (0, 1))
    fold = spatial_blocks(columns + 0.5, rows + 0.5, size=BLOCK, folds=folds, seed=seed)
    lines: list[str] = []
    for path, place in zip(images, fold, strict=True):
        mask = source / "masks" / path.name
        with rasterio.open(mask) as raster:
            counts = np.bincount(raster.read(1).ravel(), minlength=256)
        commonest = int(counts.argmax())
        row = {
            "key": path.stem,
            "file_name": str(path.resolve()),
            "mask_file": str(mask.resolve()),
            "label": scheme.class_of(commonest),
            "block": str(place),
            "date": DATE,
            "sensor": "landsat8",
            "text": caption(counts, scheme),
        }
        lines.append(json.dumps(row) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def caption(counts: NDArray[np.int64], scheme: Scheme) -> str:
    """What a tile shows, in words and numbers: the share of each class of at least 1 %, the largest first.

    Args:
        counts: Pixels of each code (256,).
        scheme: The classes.
    """
    share = {
        name: sum(int(counts[c]) for c, i in scheme.codes.items() if scheme.names[i : i + 1] == [name])
        / max(1, int(counts.sum()))
        for name in scheme.names
    }
    seen = sorted((item for item in share.items() if item[1] >= 0.01), key=lambda item: -item[1])
    return f"{TEXT}: " + ", ".join(f"{name} {100 * value:.0f} %" for name, value in seen) + "."


def held_out(tiles: Dataset, fold: int, labelled: bool = False) -> tuple[Dataset, Dataset]:
    """Tiles outside and inside a fold; with `labelled` only those with a scored label."""
    blocks, labels = list(tiles["block"]), list(tiles["label"])
    kept = [i for i, label in enumerate(labels) if label != IGNORE or not labelled]
    return (
        tiles.select([i for i in kept if blocks[i] != str(fold)]),
        tiles.select([i for i in kept if blocks[i] == str(fold)]),
    )


def scores(truth: NDArray[np.int64], predicted: NDArray[np.int64], names: list[str]) -> dict[str, Any]:
    """Accuracy, balanced accuracy (over the classes that occur) and intersection over union of each class."""
    known = truth != IGNORE
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (truth[known], predicted[known]), 1)
    right, of_class, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    there = of_class > 0
    union = of_class + said - right
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "balanced_accuracy": float((right[there] / of_class[there]).mean()),
        "iou": {name: float(right[i] / union[i]) for i, name in enumerate(names) if there[i]},
        "confusion": confusion.tolist(),
    }


def classify_by_statistics(train: Dataset, test: Dataset, transform: TileTransform) -> NDArray[np.int64]:
    """Class of each test tile by logistic regression on the mean, spread and percentiles of its bands."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def statistics(tiles: Dataset) -> NDArray[np.float32]:
        bands = [transform.standardised(Tile.from_row(row))["pixel_values"][0].flatten(1).numpy() for row in tiles]
        parts = [np.concatenate([b.mean(1), b.std(1), *np.percentile(b, (10, 50, 90), axis=1)]) for b in bands]
        return np.stack(parts).astype(np.float32)

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(statistics(train), np.asarray(list(train["label"])))
    return np.asarray(model.predict(statistics(test)), dtype=np.int64)


def segment_by_pixels(
    train: Dataset, test: Dataset, transform: TileTransform, per_tile: int = 150, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Truth and prediction at every test pixel, by gradient boosting on the bands of single pixels."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(seed)

    def pixels(row: dict[str, Any], count: int | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        tensors = transform.standardised(Tile.from_row(row))
        bands = tensors["pixel_values"][0].flatten(1).T.numpy()
        truth = transform.classes(tensors["codes"]).flatten().numpy()
        chosen = np.arange(len(truth)) if count is None else rng.choice(len(truth), count, replace=False)
        return bands[chosen], truth[chosen]

    x, y = (np.concatenate(parts) for parts in zip(*(pixels(row, per_tile) for row in train), strict=True))
    model = HistGradientBoostingClassifier(random_state=seed).fit(x[y != IGNORE], y[y != IGNORE])
    truths, found = [], []
    for row in test:
        bands, truth = pixels(row, None)
        truths.append(truth)
        found.append(model.predict(bands))
    return np.concatenate(truths), np.concatenate(found)
