"""The scores that go on the card of the released checkpoint, out of the folders that `benchmarks.released` left.

python -m benchmarks.released_scores out/results --output out/results/card
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from evaluation.results import Score, read_results, scores_markdown, write_results

#: Folder -> what the data set is called on the card, and the metrics shown of it.
SHOWN = {
    "suitability": ("US counties, double-cropped soybean", ("ap", "auc", "brier", "log_loss", "ece")),
    "segmentation": ("Landsat 8 tiles, six classes", ("accuracy", "mean_iou", "iou_soybean")),
    "segmentation_described": ("Landsat 8 tiles, described classes", ("accuracy", "mean_iou")),
    "zero_shot": ("Landsat 8 tiles, main class", ("accuracy", "balanced_accuracy")),
    "zero_shot_everyday": ("Landsat 8 tiles, main class in everyday words", ("accuracy", "balanced_accuracy")),
    "zero_shot_described": ("Landsat 8 tiles, main class described", ("accuracy", "balanced_accuracy")),
    "retrieval": (
        "Landsat 8 tiles, captions",
        ("image_to_text_recall_at_1", "image_to_text_recall_at_5", "text_to_image_recall_at_1",
         "text_to_image_recall_at_5"),
    ),
    "sentinel2_l1c": ("Sentinel-2 L1C, land cover", ("accuracy", "balanced_accuracy")),
    "sentinel2_l2a": ("Sentinel-2 L2A, land cover", ("accuracy", "balanced_accuracy")),
    "mato_grosso": ("Mato Grosso MODIS series, nine classes", ("accuracy", "balanced_accuracy")),
}  # fmt: skip


def chosen(folder: Path) -> list[Score]:
    """The scores shown, baselines among them, without differences and without parts of the land."""
    scores: list[Score] = []
    for name, (dataset, metrics) in SHOWN.items():
        file = folder / name / "results.json"
        if not file.is_file():
            continue
        found, _ = read_results(file)
        splits = [score.split for score in found if score.model == "AgriCLIP"]
        scores += [
            replace(score, dataset=dataset)
            for score in found
            if not score.against and score.metric in metrics and score.split == splits[0]
        ]
    return scores


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of `benchmarks.released`.")] = Path("out/results"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.json that is written.")] = Path(
        "out/results/card"
    ),
) -> None:
    """Gather the scores for the card."""
    scores = chosen(folder)
    output.mkdir(parents=True, exist_ok=True)
    write_results(output, scores, about={"command": "make reproduce"})
    for dataset in dict.fromkeys(score.dataset for score in scores):
        typer.echo(f"\n### {dataset}\n\n{scores_markdown([s for s in scores if s.dataset == dataset])}")


if __name__ == "__main__":
    typer.run(main)
