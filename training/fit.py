"""`agriclip fit STUDY`: one model a held-out fold, and one on all sites.

Every site is predicted by a model that has not seen its block; those predictions are what the scores are computed
from. The fold models stay beside the final one as members of an ensemble, whose spread the maps show. The model folder
appears under its name only when it is complete; until then the work lies beside it, and the same command goes on with
it (see `resume.py`). Started by `torchrun` or `accelerate launch`, all processes fit each model together.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from modeling_agriclip import AgriClipConfig, Calibration
from processing.errors import AgriClipError, nearest
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.study import Study, load_study
from processing.study_data import LabelTable, StudyData
from processing.vocabulary import default_tokenizer
from training.fit_results import (
    FitResults,
    calibrate,
    cross_fitted,
    held_out_scores,
    write_held_out,
    write_unseen,
)
from training.members import run_fits
from training.objective import Objective, get_objective
from training.resume import check_disk, fingerprint_files, make_plan, partial_folder, working_folder
from training.single_fit import CHECKPOINT_SECONDS, FitJob, FitTask, count_parameters
from training.starts import ReportStart, start_config
from training.study_dataset import read_sites
from training.unlabelled import sample_unlabelled, unlabelled_count

SUMMARY = "training_summary.json"
HELD_OUT, UNSEEN = "heldout_predictions.csv", "unseen_predictions.csv"
MEMBERS = "members"
# Trackers of losses and the modules that any one of them needs.
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",)}


def fit_study(
    study: Study | str | Path,
    output_dir: str | Path,
    *,
    size: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    members: int | None = None,
    leave_out: int | None = None,
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
        leave_out: Fold, from 1, that no model sees; the ensemble predicts it in `unseen_predictions.csv`.
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
    _check_trackers(report_to)
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
    reader = _report_start(data)
    processor = build_processor(training.start, reader)
    folds = data.folds() if study.splits is not None else np.zeros(len(table), dtype=np.int64)
    members = training.members if members is None else members
    if not folds.any():
        members = 1  # without a second fold there is nothing to leave out in turn
    unseen = _unseen(folds, leave_out)
    blocks = _blocks(data, table)
    extra = sample_unlabelled(data, table, folds, unlabelled_count(study, len(table)), seed)
    x, y = np.concatenate([table.x, extra.x]), np.concatenate([table.y, extra.y])
    task = FitTask(
        study=study,
        sites=read_sites(data, processor, x, y),
        config=build_config(study, processor, size, reader),
        labels=np.concatenate([table.share, np.full(len(extra.x), np.nan)]),
        weights=np.concatenate([_label_weights(study, table), np.ones(len(extra.x))]),
        epochs=epochs or training.epochs,
        blocks=np.concatenate([blocks, np.full(len(extra.x), -1)]),
        channels=tuple(data.channels),
        checkpoint_seconds=checkpoint_seconds,
        report_to=report_to,
        log_dir=Path(output_dir) / "logs" if report_to else None,
        failure_dir=Path(output_dir) / "failed",
        reader=reader,
    )
    check_disk(output.parent, count_parameters(task.config), members + 1, min(processes, members + 1))
    plan = make_plan(
        study=study.fingerprint(),
        data=fingerprint_files([study.path(file) for _, file in study.files()]),
        size=size,
        epochs=task.epochs,
        seed=seed,
        members=members,
        leave_out=leave_out,
    )
    state = PartialState(cpu=not torch.cuda.is_available())
    output.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(output, plan, restart, state) as folder:
        result = folder / "result"
        jobs = make_jobs(folds, members, seed, result, folder, unseen)
        # Unlabelled places are seen by every fit that does not leave out their block.
        wider = [replace(job, inside=np.concatenate([job.inside, extra.seen_by(job, folds)])) for job in jobs]
        found = run_fits(task, wider, processes, quiet)
        ensemble = [len(jobs) == 1 or job.folder != result for job in jobs]
        results = FitResults.gather(jobs, found, ensemble, unseen)
        scores = held_out_scores(table, results)
        if state.is_main_process:
            _complete_folders(jobs, processor)
            calibrations = calibrate(study, table, results, blocks)
            calibrated, coverage = None, {}
            if calibrations is not None:
                calibrated, coverage = cross_fitted(study, table, results, blocks)
                _save_calibrations(calibrations, jobs, result)
            write_held_out(result / HELD_OUT, table, folds, results, calibrated)
            if unseen.any():
                write_unseen(result / UNSEEN, table, folds, results, calibrations)
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
                "calibration": None if calibrations is None else calibrations[0].method,
                "coverage": {f"{1 - alpha:.2f}": vars(found) for alpha, found in coverage.items()},
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
        "predictions": str(output / HELD_OUT),
        "scores": scores,
        "seconds": time.monotonic() - started,
    }


def make_jobs(
    folds: NDArray[np.int64],
    members: int,
    seed: int,
    result: Path,
    scratch: Path,
    unseen: NDArray[np.bool_] | None = None,
) -> list[FitJob]:
    """The fits of an ensemble: a member for each fold left out, and again with other seeds where there are more.

    Args:
        folds: (N,) fold of each site; all 0 where there are none.
        members: Members of the ensemble.
        seed: Seed of the first.
        result: Where the model folder is made.
        scratch: Where checkpoints lie.
        unseen: (N,) True at sites that none may see.
    """
    open_ = np.ones(len(folds), dtype=bool) if unseen is None else ~unseen
    if not folds.any():
        return [FitJob("Fitting", open_, seed, result, scratch / "all")]
    numbers = np.unique(folds[open_])
    jobs = []
    for k in range(members):
        fold, turn = int(numbers[k % len(numbers)]), k // len(numbers)
        name, key = f"Fitting without fold {fold + 1}", f"fold_{fold + 1}"
        if turn:
            name, key = f"{name}, seed {seed + k}", f"{key}_{turn + 1}"
        folder = result if members == 1 else result / MEMBERS / key
        jobs.append(FitJob(name, open_ & (folds != fold), seed + k, folder, scratch / key))
    if members > 1:
        jobs.append(FitJob("Fitting on all sites", open_, seed + members, result, scratch / "all"))
    return jobs


def _unseen(folds: NDArray[np.int64], leave_out: int | None) -> NDArray[np.bool_]:
    """(N,) True in the fold that is to be left out of everything."""
    if leave_out is None:
        return np.zeros(len(folds), dtype=bool)
    number = int(folds.max()) + 1
    if number < 3 or not 1 <= leave_out <= number:
        raise AgriClipError(
            f"Fold {leave_out} cannot be left out: the study has {number} folds, and it takes at least 3 to fit, to "
            "hold out and to leave out."
        )
    return folds == leave_out - 1


def _complete_folders(jobs: list[FitJob], processor: AgriClipProcessor) -> None:
    """Put beside each model what it is used with, and how its fit went."""
    for job in jobs:
        processor.save_pretrained(job.folder)
        if (job.scratch / "history.json").exists():
            shutil.copy(job.scratch / "history.json", job.folder / "history.json")


def _save_calibrations(calibrations: tuple[Calibration, Calibration], jobs: list[FitJob], result: Path) -> None:
    """A member's calibration beside its weights; the ensemble's at the root, where a single model has its own."""
    member, ensemble = calibrations
    if len(jobs) == 1:
        replace(member, levels=ensemble.levels, counts=ensemble.counts).save(result)
        return
    for job in jobs:
        if job.folder != result:
            member.save(job.folder)
    ensemble.save(result)


def _report_start(data: StudyData) -> ReportStart | None:
    """The sentence encoder that the study asks for, cut to the words of its template."""
    name = data.study.training.report_encoder
    return None if name is None else ReportStart.of(name, [data.template.text])


def build_processor(start: str | None = None, reader: ReportStart | None = None) -> AgriClipProcessor:
    """The processor of the model `start`, or the one that a fresh model starts with."""
    if start is not None:
        start_config(start)  # says in one sentence that there is no model
        return AutoProcessor.from_pretrained(start)
    return AgriClipProcessor(AgriClipImageProcessor(), default_tokenizer() if reader is None else reader.tokenizer)


def build_config(
    study: Study, processor: AgriClipProcessor, size: str | None = None, reader: ReportStart | None = None
) -> AgriClipConfig:
    """The configuration a study asks for, with the vocabulary of `processor`."""
    part, training = study.model, study.training
    overrides = dict(part.overrides)
    if training.start is not None and (size is not None or overrides):
        what = "`model.overrides`" if overrides else "--size"
        raise AgriClipError(f"The sizes of `training.start: {training.start}` are its own; leave {what} away.")
    if training.objective == "share":
        overrides = {"share_threshold": study.labels.presence_above, **overrides}
    likelihood = {"suitability_likelihood": training.objective}
    objective = get_objective(training.preset)
    weights = Objective(**{**vars(objective), **training.weights})
    fields = {**likelihood, **weights.fields(), **overrides}
    if training.start is not None:
        config = start_config(training.start)
        for name, value in fields.items():
            setattr(config, name, value)
        return config
    if reader is not None:
        own = AgriClipConfig.from_size(size or part.size, **fields).to_dict()
        return AgriClipConfig.from_dict(own | {"text_config": reader.config.to_dict()})
    config = AgriClipConfig.from_size(size or part.size, vocab_size=len(processor.tokenizer), **fields)
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


def _check_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers that are unknown or not installed, before anything is fitted."""
    for name in names:
        if name not in TRACKERS:
            raise AgriClipError(f"There is no tracker '{name}'; {nearest(name, TRACKERS)}")
        if not any(find_spec(module) for module in TRACKERS[name]):
            raise AgriClipError(f"The tracker '{name}' is not installed; install it with: pip install {name}")


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
