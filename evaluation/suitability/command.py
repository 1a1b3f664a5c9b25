"""`agriclip evaluate suitability`: the command line of the evaluation of a suitability model.

Nothing heavy is imported here, so that the list of commands is there at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["suitability"]


def suitability(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).", show_default=False)],
    model: Annotated[Path, typer.Option("--model", "-m", help="Model folder.", show_default=False)],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Table of other places with the study's columns. [default: held-out places]"),
    ] = None,
    scenarios: Annotated[
        Path | None, typer.Option("--scenarios", help="Folder of rasters of other climate models.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for everything written. [default: out/<study name>/evaluation]"),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Fit and score baselines in the same run.")] = True,
    baseline: Annotated[
        list[str] | None, typer.Option("--baseline", help="Only this baseline; may be repeated.")
    ] = None,
    holdout: Annotated[
        str,
        typer.Option(
            help="What is scored: `folds`, `unseen` (the fold no member saw), or a rule such as longitude>-90."
        ),
    ] = "folds",
    ablations: Annotated[bool, typer.Option(help="Ask the model without parts of its input.")] = True,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Score places that the model was fitted on too, and say so.")
    ] = False,
    regions: Annotated[
        str | None,
        typer.Option(help="Regions: id:2 for the first characters of names, or degrees of latitude. [default: 5]"),
    ] = None,
    draws: Annotated[int, typer.Option(min=10, help="Draws of blocks behind each interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of draws, shuffles and baselines.")] = 0,
    dataset_id: Annotated[
        str | None, typer.Option("--dataset-id", help="Id of the labels on the Hub, for the card's results.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder with the study's data files; overrides `data`.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Score a suitability model on places it has not seen, beside baselines, with intervals.

    Without --labels the fit's own held-out places are scored; with it the places of another table, less those that
    were fitted.

    Writes results.json, results.md, pictures, and the card's section and metadata.
    """
    from processing.study import load_study

    loaded = load_study(study, data_root=data)  # a mistake in the study shows before torch is loaded

    import warnings

    from rich.console import Console
    from transformers.utils import logging

    from evaluation.suitability.evaluate import evaluate_suitability

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch|accelerate")
    folder = output or Path("out") / loaded.name / "evaluation"
    status = Console(stderr=True, quiet=quiet or as_json).status("Evaluating")
    with status:
        result = evaluate_suitability(
            loaded,
            model,
            folder,
            labels=labels,
            scenarios=scenarios,
            baselines=list(baseline) if baseline and baselines else baselines,
            holdout=holdout,
            in_sample=in_sample,
            ablations=ablations,
            regions=regions,
            draws=draws,
            seed=seed,
            dataset_id=dataset_id,
            command=shlex.join(["agriclip", *sys.argv[1:]]),
            progress=lambda what: status.update(f"Evaluating: {what}"),
        )
    if as_json:
        content = json.loads(result.files["results"].read_text(encoding="utf-8"))
        content["files"] = {name: str(path) for name, path in result.files.items()}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return

    from evaluation.suitability.tables import print_evaluation

    print_evaluation(result, Console(soft_wrap=not sys.stdout.isatty()))
