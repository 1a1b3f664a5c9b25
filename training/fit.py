"""`agriclip fit STUDY`: one model a held-out fold, and one on all sites.

Every site is predicted by a model that has not seen its block; those predictions are what the scores are computed
from. The fold models stay beside the final one as members of an ensemble, whose spread the maps show. The model folder
appears under its name only when it is complete; until then the work lies beside it, and the same command goes on with
it (see `resume.py`). Started by `torchrun` or `accelerate launch`, all processes fit each model together.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from modeling_agriclip import AgriClipConfig
from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.study import Study, load_study
from processing.study_data import LabelTable, StudyData
from processing.tokenizer import build_tokenizer
from training.members import run_fits
from training.objective import Objective, get_objective
from training.resume import check_disk, fingerprint_files, make_plan, partial_folder, working_folder
from training.single_fit import CHECKPOINT_SECONDS, FitJob, FitTask, count_parameters
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
    members: int | None = None,
    processes: int = 1,
    restart: bool = False,
    report_to: tuple[str, ...] = (),
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fit a suitability model to a study's labels.

    With one member a model is fitted outside the first fold and scored on it. With more, as many folds are held out in
    turn (again and with other seeds, where there are more members than folds), and a last model, the one that the
    folder loads as, is fitted to all sites.

    Args:
        study: A study or the path of its file.
        output_dir: The model goes to the folder `model` in it, which is replaced as a whole when the fit is done.
        size: `tiny`, `small` or `base` in place of the study's.
        epochs: Epochs in place of the study's.
        seed: Seed in place of the study's.
        members: Members of the ensemble in place of the study's.
        processes: How many models to fit side by side, each in a process of its own; 1 fits in this process. A script
            that asks for more must keep its own code under `if __name__ == "__main__":`.
        restart: Throw away what an interrupted fit left, instead of going on with it.
        report_to: Trackers that follow the losses, such as `tensorboard` or `trackio`.
        checkpoint_seconds: Time between two checkpoints of a fit.
        quiet: No progress bars.

    Returns:
        `model_dir`, `predictions` (CSV of the held-out predictions), `scores` (root mean square error of
        the share on held-out sites, and how many there were), `seconds`.

    Raises:
        AgriClipError: The study has no labels to learn from, the folder holds something other than a model, the disk
            is too small, an interrupted fit of another plan lies there, or a loss is no longer a number.
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
    members = training.members if members is None else members
    if not folds.any():
        members = 1  # without a second fold there is nothing to leave out in turn
    task = FitTask(
        study=study,
        sites=read_sites(data, processor, table.x, table.y),
        config=build_config(study, processor, size),
        labels=table.share,
        weights=_label_weights(study, table),
        epochs=epochs or training.epochs,
        blocks=_blocks(data, table),
        channels=tuple(data.channels),
        checkpoint_seconds=checkpoint_seconds,
        report_to=report_to,
        log_dir=Path(output_dir) / "logs" if report_to else None,
        failure_dir=Path(output_dir) / "failed",
    )
    check_disk(output.parent, count_parameters(task.config), members + 1, min(processes, members + 1))
    plan = make_plan(
        study=study.fingerprint(),
        data=fingerprint_files([study.path(file) for _, file in study.files()]),
        size=size,
        epochs=task.epochs,
        seed=seed,
        members=members,
    )
    state = PartialState()
    output.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(output, plan, restart, state) as folder:
        result = folder / "result"
        jobs = make_jobs(folds, members, seed, result, folder)
        held_out = _fit_jobs(task, jobs, processes, quiet, processor if state.is_main_process else None)
        scores = _held_out_scores(table, held_out)
        if state.is_main_process:
            _write_predictions(result / "heldout_predictions.csv", table, folds, held_out)
            summary = {
                "study": study.name,
                "title": study.title,
                "study_fingerprint": study.fingerprint(),
                "objective": training.objective,
                "preset": training.preset,
                "terms": _weights(task.config),
                "sites": len(table),
                "members": members,
                "epochs": task.epochs,
                "seed": seed,
                "predictors": [variable.name for variable in study.variables],
                "channels": [channel.name for channel in data.channels],
                "held_out": scores,
                "seconds": round(time.monotonic() - started, 1),
            }
            (result / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
            study.save(result / "study.yaml")
            if output.exists():
                shutil.rmtree(output)
            os.replace(result, output)
    if state.is_main_process:
        shutil.rmtree(partial_folder(output))
    state.wait_for_everyone()
    return {
        "model_dir": str(output),
        "predictions": str(output / "heldout_predictions.csv"),
        "scores": scores,
        "seconds": time.monotonic() - started,
    }


def make_jobs(folds: NDArray[np.int64], members: int, seed: int, result: Path, scratch: Path) -> list[FitJob]:
    """The fits of an ensemble: member k leaves out fold k, and begins again with another seed after the last.

    Args:
        folds: (N,) fold of each site; all 0 where there are none.
        members: Members of the ensemble.
        seed: Seed of the first.
        result: Where the model folder is made.
        scratch: Where checkpoints lie.
    """
    everywhere = np.ones(len(folds), dtype=bool)
    if not folds.any():
        return [FitJob("Fitting", everywhere, seed, result, scratch / "all")]
    number = int(folds.max()) + 1
    alone = members == 1
    jobs = []
    for k in range(members):
        again = f", seed {seed + k}" if k >= number else ""
        name = f"Fitting without fold {k % number + 1}{again}"
        key = f"fold_{k % number + 1}" + (f"_{k // number}" if again else "")
        folder = result if alone else result / MEMBERS / key
        jobs.append(FitJob(name, folds != k % number, seed + k, folder, scratch / key))
    if not alone:
        jobs.append(FitJob("Fitting on all sites", everywhere, seed + members, result, scratch / "all"))
    return jobs


def _fit_jobs(
    task: FitTask, jobs: list[FitJob], processes: int, quiet: bool, processor: AgriClipProcessor | None
) -> dict[str, NDArray[np.float64]]:
    """Do all fits; the mean held-out probability and share of each site, NaN where no model left it out."""
    sums = {key: np.zeros(len(task.labels)) for key in ("probability", "share")}
    counts = np.zeros(len(task.labels))
    for job, found in zip(jobs, run_fits(task, jobs, processes, quiet), strict=True):
        if processor is not None:
            processor.save_pretrained(job.folder)
            if (job.scratch / "history.json").exists():
                shutil.copy(job.scratch / "history.json", job.folder / "history.json")
        counts += ~job.inside
        for key, values in found.items():
            sums[key][~job.inside] += values
    with np.errstate(invalid="ignore"):
        return {key: np.where(counts > 0, total / counts, np.nan) for key, total in sums.items()}


def build_processor() -> AgriClipProcessor:
    """The processor that a fresh model starts with."""
    return AgriClipProcessor(AgriClipImageProcessor(), build_tokenizer())


def build_config(study: Study, processor: AgriClipProcessor, size: str | None = None) -> AgriClipConfig:
    """The configuration a study asks for, with the vocabulary of `processor`."""
    part, training = study.model, study.training
    overrides = dict(part.overrides)
    if training.objective == "share":
        overrides = {"share_threshold": study.labels.presence_above, **overrides}
    likelihood = {"suitability_likelihood": training.objective}
    objective = get_objective(training.preset)
    weights = Objective(**{**vars(objective), **training.weights})
    config = AgriClipConfig.from_size(
        size or part.size, vocab_size=len(processor.tokenizer), **{**likelihood, **weights.fields(), **overrides}
    )
    config.text_config.number_token_id = processor.num_token_id
    return config


def _weights(config: AgriClipConfig) -> dict[str, float]:
    """Weight of each term that is not 0."""
    names = [name for name in vars(config) if name.endswith("_weight")]
    return {name.removesuffix("_weight"): float(getattr(config, name)) for name in names if getattr(config, name)}


def _blocks(data: StudyData, table: LabelTable) -> NDArray[np.int64]:
    """Block of land of each site; every site its own where the study has no blocks."""
    splits = data.study.splits
    return np.arange(len(table)) if splits is None or splits.size is None else data.blocks()


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
