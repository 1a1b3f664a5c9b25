"""`agriclip fit STUDY`: one model a held-out fold, and one on all sites, with the stock Trainer.

Every site is predicted by a model that has not seen its block; those predictions are what the scores are computed
from. The fold models stay beside the final one as members, whose spread the maps show. The model folder appears under
its name only when it is complete.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from modeling_agriclip import AgriClipConfig
from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.study import Study, load_study
from processing.study_data import LabelTable, StudyData
from processing.tokenizer import build_tokenizer
from training.members import FitJob, FitTask, run_fits
from training.study_dataset import read_sites

SUMMARY = "training_summary.json"
MEMBERS = "members"


def fit_study(
    study: Study | str | Path,
    output_dir: str | Path,
    *,
    size: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    processes: int = 1,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fit a suitability model to a study's labels.

    With `training.members: 1` one model is fitted outside the first fold and scored on it. With more members, as many
    folds are held out in turn, and a last model, the one that the folder loads as, is fitted to all sites.

    Args:
        study: A study or the path of its file.
        output_dir: The model goes to the folder `model` in it, which is replaced as a whole when the fit is done.
        size: `tiny`, `small` or `base` in place of the study's.
        epochs: Epochs in place of the study's.
        seed: Seed in place of the study's.
        processes: How many models to fit side by side, each in a process of its own; 1 fits in this process. A script
            that asks for more must keep its own code under `if __name__ == "__main__":`.
        quiet: No progress bars.

    Returns:
        `model_dir`, `predictions` (CSV of the held-out predictions), `scores` (root mean square error of
        the share on held-out sites, and how many there were), `seconds`.

    Raises:
        AgriClipError: The study has no labels to learn from, or the folder holds something other than a model.
    """
    started = time.monotonic()
    # One bar at a time: saving a few megabytes needs none.
    transformers_logging.disable_progress_bar()
    study = study if isinstance(study, Study) else load_study(study)
    output = Path(output_dir) / "model"
    _check_output(output)
    data = StudyData(study)
    table = data.labels()
    _check_labels(study, table)
    training = study.training
    seed = training.seed if seed is None else seed
    processor = build_processor()
    folds = data.folds() if study.splits is not None else np.zeros(len(table), dtype=np.int64)
    members = min(training.members, int(folds.max()) + 1)

    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        task = FitTask(
            study=study,
            sites=read_sites(data, processor, table.x, table.y),
            config=build_config(study, processor, size),
            labels=table.share,
            weights=_label_weights(study, table),
            epochs=epochs or training.epochs,
        )
        everywhere = np.ones(len(table), dtype=bool)
        # Without a second fold there is nothing to hold out.
        runs = [folds != k for k in range(members)] if folds.any() else [everywhere]
        jobs = [
            FitJob(
                name="Fitting" if inside.all() else f"Fitting without fold {k + 1}",
                inside=inside,
                seed=seed + k,
                folder=scratch / MEMBERS / f"fold_{k + 1}" if members > 1 else scratch,
            )
            for k, inside in enumerate(runs)
        ]
        if members > 1:
            jobs.append(FitJob("Fitting on all sites", everywhere, seed + members, scratch))
        held_out = {"probability": np.full(len(table), np.nan), "share": np.full(len(table), np.nan)}
        for job, found in zip(jobs, run_fits(task, jobs, processes, quiet), strict=True):
            processor.save_pretrained(job.folder)
            shutil.rmtree(job.folder / "trainer", ignore_errors=True)
            for key, values in found.items():
                held_out[key][~job.inside] = values
        predictions = _write_predictions(scratch / "heldout_predictions.csv", table, folds, held_out)
        scores = _held_out_scores(table, held_out)
        summary = {
            "study": study.name,
            "title": study.title,
            "study_fingerprint": study.fingerprint(),
            "objective": training.objective,
            "sites": len(table),
            "members": members,
            "epochs": task.epochs,
            "seed": seed,
            "predictors": [variable.name for variable in study.variables],
            "channels": [channel.name for channel in data.channels],
            "held_out": scores,
            "seconds": round(time.monotonic() - started, 1),
        }
        (scratch / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
        study.save(scratch / "study.yaml")
        scratch.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        os.replace(scratch, output)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return {
        "model_dir": str(output),
        "predictions": str(output / predictions.name),
        "scores": scores,
        "seconds": time.monotonic() - started,
    }


def build_processor() -> AgriClipProcessor:
    """The processor that a fresh model starts with."""
    return AgriClipProcessor(AgriClipImageProcessor(), build_tokenizer())


def build_config(study: Study, processor: AgriClipProcessor, size: str | None = None) -> AgriClipConfig:
    """The configuration a study asks for, with the vocabulary of `processor`."""
    part = study.model
    overrides = dict(part.overrides)
    if study.training.objective == "share":
        overrides = {"share_threshold": study.labels.presence_above, **overrides}
    likelihood = {"suitability_likelihood": study.training.objective}
    config = AgriClipConfig.from_size(
        size or part.size, vocab_size=len(processor.tokenizer), **{**likelihood, **overrides}
    )
    config.text_config.number_token_id = processor.num_token_id
    return config


def _label_weights(study: Study, table: LabelTable) -> NDArray[np.float64]:
    """Counts weigh a binomial likelihood; for `share` every site weighs the same, however large."""
    if study.training.objective == "share":
        return np.ones(len(table))
    return table.weight / table.weight.mean()


def _write_predictions(
    path: Path, table: LabelTable, folds: NDArray[np.int64], predicted: dict[str, NDArray[np.float64]]
) -> Path:
    """Held-out predictions, one row a site; sites that no model was held out from are left away."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "x", "y", "fold", "observed", "weight", "presence", "probability", "share"])
        for i in np.flatnonzero(np.isfinite(predicted["probability"])):
            place = [table.ids[i], f"{table.x[i]:.6f}", f"{table.y[i]:.6f}", int(folds[i])]
            label = [f"{table.share[i]:.6g}", f"{table.weight[i]:.6g}", int(table.presence[i])]
            writer.writerow([*place, *label, f"{predicted['probability'][i]:.6g}", f"{predicted['share'][i]:.6g}"])
    return path


def _held_out_scores(table: LabelTable, predicted: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """How many sites were held out, and the error of the share there; ranking scores belong to `evaluation`."""
    known = np.isfinite(predicted["share"])
    error = predicted["share"][known] - table.share[known]
    rmse = float(np.sqrt(np.mean(error**2))) if known.any() else math.nan
    return {"held_out_sites": int(known.sum()), "share_rmse": rmse}


def _check_output(output: Path) -> None:
    """Refuse to replace a folder that is no model."""
    if output.is_file():
        raise AgriClipError(f"'{output}' is a file; name a folder for the model.")
    if output.is_dir() and any(output.iterdir()) and not (output / "config.json").exists():
        raise AgriClipError(f"The folder '{output}' holds something other than a model; name another or empty it.")


def _check_labels(study: Study, table: LabelTable) -> None:
    """Refuse labels that say the same everywhere."""
    if len(table) < 10:
        raise AgriClipError(f"The study '{study.name}' has {len(table)} labelled sites; a fit needs at least 10.")
    if np.ptp(table.share) == 0:
        raise AgriClipError(
            f"All {len(table)} labels of '{study.name}' are {table.share[0]:g}; a fit needs sites of both kinds."
        )
