"""The scores that go on the card of the released checkpoint, out of the folders that `benchmarks.released` left.

They are then held against those on the card of the checkpoint in the repository: whether a model trained anew ends
where that one did.

python -m benchmarks.released_scores out/results --output out/results/card
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub import EvalResult, ModelCard
from rich.console import Console
from rich.table import Table

from evaluation.results import OURS, Score, metric_of, read_results, scores_markdown, write_results
from processing.errors import named

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


def outside(score: Score, released: EvalResult) -> bool:
    """Whether a score lies outside the 95 % interval of the released one, to the digits that are shown."""
    ends = released.metric_args or {}
    if ends.get("low") is None or ends.get("high") is None:
        return False
    decimals = metric_of(score.metric).decimals
    return not round(ends["low"], decimals) <= round(score.value, decimals) <= round(ends["high"], decimals)


def compare(scores: list[Score], folder: Path, console: Console) -> list[str]:
    """Print the scores on the card in a folder, and ours beside them.

    Returns:
        Names of those that ours are outside the interval of, or that were not taken.
    """
    ours = {(score.dataset, score.metric): score for score in scores if score.model == OURS}
    table = Table("data", "score", "released", "this run", "")
    missed = []
    for released in ModelCard.load(folder / "README.md").data.eval_results or []:
        dataset, metric = released.dataset_name, released.metric_type
        before = Score("", dataset, "", metric, released.metric_value, **(released.metric_args or {}))
        score, title = ours.get((dataset, metric)), metric_of(metric).title
        told = "not taken" if score is None else "outside" if outside(score, released) else ""
        now = "" if score is None else replace(score, low=None, high=None).text
        table.add_row(dataset, title, before.text, now, told)
        if told:
            missed.append(f"{title} of {dataset}")
    console.print(table)
    return missed


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of `benchmarks.released`.")] = Path("out/results"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.json that is written.")] = Path(
        "out/results/card"
    ),
    released: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Released model whose card tells the scores to end at.")
    ] = Path("agriclip"),
) -> None:
    """Gather the scores for the card; end with 1 where one is outside the interval of the released one, or missing."""
    scores = chosen(folder)
    output.mkdir(parents=True, exist_ok=True)
    write_results(output, scores, about={"command": "make reproduce"})
    for dataset in dict.fromkeys(score.dataset for score in scores):
        typer.echo(f"\n### {dataset}\n\n{scores_markdown([s for s in scores if s.dataset == dataset])}")
    missed = compare(scores, released, Console())
    if missed:
        typer.echo(f"Outside the interval of the released score, or not taken: {named(missed)}.", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
