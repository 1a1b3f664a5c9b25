"""Full fine-tuning, LoRA and a frozen encoder on Landsat 8 tiles, beside logistic regression and the majority class.

    python -m benchmarks.landsat --folds 1 --pretrain-epochs 30 --epochs 12

The encoder is pre-trained without labels on the training blocks only, then fitted to the dominant class of a tile and
to the class of every pixel; all scores are those of blocks of 5 x 5 tiles that neither step has seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks import landsat_fits as fits
from benchmarks import landsat_tiles as tiles
from processing.errors import AgriClipError, nearest
from training.tile_checks import check_labels
from training.tile_dataset import load_tiles

FOLDS = 5
TASKS = ("classify", "segment")
console = Console()


def run(
    out: Annotated[Path, typer.Option(help="Folder of weights, cache and result.")] = Path("out/landsat"),
    size: Annotated[str, typer.Option(help="tiny, small or base.")] = "tiny",
    folds: Annotated[int, typer.Option(help=f"How many of {FOLDS} folds to hold out in turn.")] = 1,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 1,
    pretrain_epochs: Annotated[int, typer.Option(help="Passes without labels.")] = 30,
    epochs: Annotated[int, typer.Option(help="Passes with labels.")] = 12,
    crop: Annotated[int, typer.Option(help="Edge of the training crops in pixels.")] = 64,
    batch: Annotated[int, typer.Option(help="Tiles a step.")] = 16,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 8,
    methods: Annotated[str, typer.Option(help="Of full, lora, probe, scratch.")] = ",".join(fits.METHODS),
    tasks: Annotated[str, typer.Option(help="Of classify, segment.")] = ",".join(TASKS),
    with_other: Annotated[bool, typer.Option(help="Score everything, with a class `other`.")] = False,
    limit: Annotated[int, typer.Option(help="Only so many tiles, for a trial; 0 takes all.")] = 0,
    resume: Annotated[bool, typer.Option(help="Keep finished and interrupted pre-training.")] = True,
) -> None:
    """Compare the methods and write the scores to `result_<tasks>.json`."""
    try:
        chosen = [_known(name, fits.METHODS, "method") for name in methods.split(",") if name]
        wanted = [_known(name, TASKS, "task") for name in tasks.split(",") if name]
        scheme = tiles.Scheme.of(with_other)
        described = tiles.write_metadata(tiles.data_folder(), out / "metadata", scheme, FOLDS)
        table = load_tiles(described, cache_dir=out / "checks")
        check_labels(table["label"], len(scheme.names))
    except AgriClipError as error:
        console.print(f"[red]Error:[/red] {error}")
        raise typer.Exit(2) from error
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if limit:
        table = table.select(np.random.default_rng(0).permutation(len(table))[:limit])
    results: list[dict[str, Any]] = []
    for fold in range(folds):
        for seed in range(seeds):
            settings = fits.Settings(out, size, crop, pretrain_epochs, epochs, batch, rank, seed, resume)
            for task in wanted:
                for entry in _compare(task, chosen, table, fold, settings, scheme):
                    results.append({"task": task, "fold": fold, "seed": seed, **entry})
                    _save(out / f"result_{'_'.join(wanted)}.json", results, settings, scheme)
    for task in wanted:
        console.print(_table(task, [row for row in results if row["task"] == task], scheme))


def _compare(
    task: str, methods: list[str], table: Any, fold: int, settings: fits.Settings, scheme: tiles.Scheme
) -> Any:
    """Score baselines and methods on one held-out fold, each as soon as it is done."""
    every = tiles.held_out(table, fold)
    train, test = tiles.held_out(table, fold, labelled=True) if task == "classify" else every
    plain = fits.build_transform(settings, scheme)
    if settings.seed == 0:
        if task == "classify":
            truth = np.asarray(list(test["label"]))
            commonest = np.bincount(list(train["label"])).argmax()
            yield _entry("majority class", truth, np.full_like(truth, commonest), scheme)
            found = tiles.classify_by_statistics(train, test, plain)
            yield _entry("logistic regression", truth, found, scheme)
        else:
            truth, found = tiles.segment_by_pixels(train, test, plain)
            yield _entry("pixel gradient boosting", truth, found, scheme)
    pretrained = fits.pretrain(every[0], settings, scheme, fold)
    fit: Callable[..., fits.Fit] = fits.fit_classifier if task == "classify" else fits.fit_segmenter
    for method in methods:
        done = fit(method, pretrained, train, test, settings, scheme)
        entry = _entry(method, done.truth.ravel(), done.predicted.ravel(), scheme)
        yield entry | {"trained_share": done.trained_share, "seconds": round(done.seconds, 1)}


def _entry(method: str, truth: Any, predicted: Any, scheme: tiles.Scheme) -> dict[str, Any]:
    entry = {"method": method, **tiles.scores(truth, predicted, scheme.names)}
    console.print(f"{method}: accuracy {entry['accuracy']:.3f}, balanced {entry['balanced_accuracy']:.3f}")
    return entry


def _table(task: str, rows: list[dict[str, Any]], scheme: tiles.Scheme) -> Table:
    """Means over folds and seeds, with the spread over them where there are several."""
    title = "Dominant class of a tile" if task == "classify" else "Class of a pixel"
    table = Table(title=f"{title}, held-out blocks")
    for name in ("method", "trained", "accuracy", "balanced", f"{scheme.names[0]} IoU", "mean IoU", "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        trained = of_method[0].get("trained_share")
        table.add_row(
            method,
            "" if trained is None else f"{trained:.1%}",
            _mean([row["accuracy"] for row in of_method]),
            _mean([row["balanced_accuracy"] for row in of_method]),
            _mean([row["iou"].get(scheme.names[0], np.nan) for row in of_method]),
            _mean([float(np.mean(list(row["iou"].values()))) for row in of_method]),
            "" if trained is None else f"{np.mean([row['seconds'] for row in of_method]):.0f}",
        )
    return table


def _mean(values: list[float]) -> str:
    spread = f" ± {np.std(values):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _save(path: Path, results: list[dict[str, Any]], settings: fits.Settings, scheme: tiles.Scheme) -> None:
    said = {name: value for name, value in vars(settings).items() if name not in ("out", "resume", "seed")}
    part = path.with_suffix(".partial")
    part.write_text(json.dumps({"settings": said, "classes": scheme.names, "results": results}, indent=1) + "\n")
    part.replace(path)


def _known(name: str, known: tuple[str, ...], what: str) -> str:
    if name not in known:
        raise AgriClipError(f"There is no {what} '{name}'; {nearest(name, known)}")
    return name


if __name__ == "__main__":
    typer.run(run)
