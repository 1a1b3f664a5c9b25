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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from modeling_agriclip import AgriClipConfig, AgriClipForSuitability
from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.study import Study, load_study
from processing.study_data import LabelTable, StudyData
from processing.tokenizer import build_tokenizer
from training.progress import FitProgress
from training.study_dataset import SiteTensors, SuitabilityDataset, read_sites

SUMMARY = "training_summary.json"
MEMBERS = "members"


def fit_study(
    study: Study | str | Path,
    output_dir: str | Path,
    *,
    size: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
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
        task = _FitTask(
            study=study,
            sites=read_sites(data, processor, table.x, table.y),
            config=build_config(study, processor, size),
            labels=table.share,
            weights=_label_weights(study, table),
            epochs=epochs or training.epochs,
            scratch=scratch,
            quiet=quiet,
        )
        held_out = {"probability": np.full(len(table), np.nan), "share": np.full(len(table), np.nan)}
        everywhere = np.ones(len(table), dtype=bool)
        # Without a second fold there is nothing to hold out.
        runs = [folds != k for k in range(members)] if folds.any() else [everywhere]
        for k, inside in enumerate(runs):
            name = "Fitting" if inside.all() else f"Fitting without fold {k + 1}"
            model, trainer = _fit_one(task, name, inside, seed + k)
            outside = np.flatnonzero(~inside)
            if len(outside):
                for key, values in _predict(task, trainer, outside).items():
                    held_out[key][outside] = values
            if members > 1:
                _save(model, processor, scratch / MEMBERS / f"fold_{k + 1}")
        if members > 1:
            model, _ = _fit_one(task, "Fitting on all sites", everywhere, seed + members)
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
        _save(model, processor, scratch)
        shutil.rmtree(scratch / "trainer", ignore_errors=True)
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


@dataclass
class _FitTask:
    """What all fits of a study share."""

    study: Study
    sites: SiteTensors
    config: AgriClipConfig
    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    epochs: int
    scratch: Path
    quiet: bool

    def dataset(self, index: NDArray[np.int64], **options: Any) -> SuitabilityDataset:
        """The sites `index`."""
        return SuitabilityDataset(self.sites, self.labels, self.weights, index, **options)


def _fit_one(
    task: _FitTask, name: str, inside: NDArray[np.bool_], seed: int
) -> tuple[AgriClipForSuitability, Trainer]:
    """Fit a fresh model to the sites `inside`."""
    training = task.study.training
    set_seed(seed)
    model = AgriClipForSuitability(task.config)
    index = np.flatnonzero(inside)
    spread = np.nanstd(task.sites.numeric_values[index].numpy(), axis=0)
    dataset = task.dataset(
        index,
        image_dropout=training.image_dropout,
        number_noise=torch.from_numpy(training.number_noise * spread),
        augment=True,
    )
    steps = math.ceil(len(dataset) / training.batch_size) * task.epochs
    arguments = TrainingArguments(
        output_dir=str(task.scratch / "trainer"),
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=256,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        num_train_epochs=task.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        max_grad_norm=1.0,
        seed=seed,
        save_strategy="no",
        logging_steps=max(1, steps // 10),
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    if not task.quiet:
        trainer.add_callback(FitProgress(f"{name} ({len(dataset)} of {len(inside)} sites)"))
    result = trainer.train()
    if not math.isfinite(result.training_loss):
        raise AgriClipError(
            f"The loss became {result.training_loss} while fitting '{task.study.name}'; "
            f"lower `training.learning_rate` (now {training.learning_rate:g})."
        )
    return model, trainer


def _predict(task: _FitTask, trainer: Trainer, index: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Probability, and share where the model gives one, at the sites `index`."""
    model, device = trainer.model, trainer.args.device
    model.eval()
    loader = trainer.get_test_dataloader(task.dataset(index))
    found: dict[str, list[NDArray[np.float64]]] = {}
    with torch.no_grad():
        for batch in loader:
            batch = {key: value.to(device) for key, value in batch.items() if not key.startswith("label")}
            output = model(**batch)
            for key in ("probabilities", "share"):
                if output.get(key) is not None:
                    found.setdefault(key, []).append(output[key].float().cpu().numpy().astype(np.float64))
    arrays = {key: np.concatenate(parts) for key, parts in found.items()}
    # Under a binomial likelihood the probability is the expected share.
    return {"probability": arrays["probabilities"], "share": arrays.get("share", arrays["probabilities"])}


def _save(model: AgriClipForSuitability, processor: AgriClipProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


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
