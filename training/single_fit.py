"""One fit: a fresh model, the sites it may see, and its predictions for the others.

A fit can be killed at any moment and begun again by the same call: it goes on from its last complete checkpoint and
ends with the same weights, bit for bit. A fit that is done has left its predictions beside its weights.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import EarlyStoppingCallback, EvalPrediction, PrinterCallback, TrainingArguments, set_seed

from modeling_agriclip import AgriClipConfig, AgriClipForSuitability
from processing.sensors_agriclip import ChannelSpec
from processing.splits import hold_out_blocks
from processing.study import Study
from training.adversarial import Attack, SensorNoise
from training.averaging import WeightAveraging
from training.gaussian_process import add_gaussian_process
from training.progress import FitProgress, Report
from training.resume import Checkpointing, last_checkpoint
from training.starts import ReportStart, load_start, pretrain, save_tuned, tune
from training.study_dataset import SiteNoise, SiteTensors, SuitabilityDataset
from training.trainer import AgriClipTrainer

Predictions = dict[str, NDArray[np.float64]]
CHECKPOINT_SECONDS = 30.0
# Share of words that masked language modelling asks for (BERT's).
WORD_MASKING = 0.15


@dataclass(frozen=True)
class FitTask:
    """What all fits of a study share.

    Attributes:
        study: The study.
        sites: Inputs of all N sites.
        config: Configuration of the model.
        labels: (N,) share or presence; NaN = no label.
        weights: (N,) weight of each label.
        epochs: Passes over the sites.
        blocks: (N,) block of land of each site.
        channels: Channels of the imagery.
        checkpoint_seconds: Time between two checkpoints.
        report_to: Trackers that receive the log, such as `tensorboard`.
        log_dir: Where they write.
        failure_dir: Where a fit leaves what it failed at.
        reader: Weights that the report encoder of a fresh model starts from.
    """

    study: Study
    sites: SiteTensors
    config: AgriClipConfig
    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    epochs: int
    blocks: NDArray[np.int64]
    channels: tuple[ChannelSpec, ...] = ()
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    report_to: tuple[str, ...] = ()
    log_dir: Path | None = None
    failure_dir: Path | None = None
    reader: ReportStart | None = None

    def dataset(self, index: NDArray[np.int64], **options: Any) -> SuitabilityDataset:
        """The sites `index`."""
        return SuitabilityDataset(self.sites, self.labels, self.weights, index, **options)


@dataclass(frozen=True)
class FitJob:
    """One fit.

    Attributes:
        name: What is fitted, for the progress bar.
        inside: (N,) True at the sites that are fitted to; the others are predicted.
        seed: Seed of weights and order.
        folder: Where the weights go.
        scratch: Where its checkpoints and, when it is done, its predictions lie.
    """

    name: str
    inside: NDArray[np.bool_]
    seed: int
    folder: Path
    scratch: Path

    @property
    def done(self) -> Path:
        """File of the predictions, written last."""
        return self.scratch / "held_out.npz"


@dataclass
class SiteSplit:
    """Sites of one fit: fitted to, and watched."""

    fitted: NDArray[np.int64]
    watched: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def split_sites(task: FitTask, job: FitJob) -> SiteSplit:
    """Set aside the blocks that watch the fit, if the study asks for any."""
    index = np.flatnonzero(job.inside)
    share = task.study.training.validation
    if not share:
        return SiteSplit(index)
    labelled = index[np.isfinite(task.labels[index])]
    watched = labelled[hold_out_blocks(task.blocks[labelled], share, job.seed)]
    return SiteSplit(np.setdiff1d(index, watched), watched)


def run_fit(task: FitTask, job: FitJob, report: Report) -> Predictions:
    """Fit a fresh model, save it, and predict what it has not seen; or go on where an earlier call stopped."""
    if job.done.exists():
        with np.load(job.done) as found:
            return {key: found[key] for key in found.files}
    trainer = make_trainer(task, job, report)
    checkpoints = Path(trainer.args.output_dir or job.scratch)
    checkpoint = last_checkpoint(checkpoints) if checkpoints.exists() else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if task.study.training.gaussian_process:
        add_gaussian_process(model, task.sites, split_sites(task, job).fitted, task.labels, job.seed)
    if trainer.is_world_process_zero():
        save_tuned(model, job.folder)
    predictions = predict_sites(task, trainer, np.flatnonzero(~job.inside))
    if trainer.is_world_process_zero():
        temporary = job.scratch / ".held_out.npz"
        np.savez(temporary, **predictions)  # type: ignore[arg-type]
        (job.scratch / "history.json").write_text(_history(trainer))
        temporary.replace(job.done)
        for stage in ("checkpoints", "pretraining", "pretrained"):
            shutil.rmtree(job.scratch / stage, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return predictions


def _history(trainer: AgriClipTrainer) -> str:
    """What was logged, one entry a line, as JSON."""
    return "[\n" + ",\n".join(json.dumps(entry) for entry in trainer.state.log_history) + "\n]\n"


def make_trainer(task: FitTask, job: FitJob, report: Report) -> AgriClipTrainer:
    """The trainer around a fresh model, with the objective, the noise and the schedule that the study asks for."""
    training = task.study.training
    split = split_sites(task, job)
    fitted = split.fitted
    if not training.unlabelled:
        # Places without a label are then there for the first stage alone.
        fitted = fitted[np.isfinite(task.labels[fitted])]
    noise = site_noise(task, split.fitted)
    keys = report_keys(task.sites, split.fitted)
    start, before = training.start, 0
    if training.pretraining_epochs:
        before = _steps(task, len(split.fitted)) * training.pretraining_epochs
        told = _shifted(report, 0, _steps(task, len(fitted)) * task.epochs)
        start = str(_first_stage(task, job, split.fitted, noise, keys, told))
    set_seed(job.seed)
    model = AgriClipForSuitability(task.config) if start is None else load_start(start, task.config)
    if start is None and task.reader is not None:
        task.reader.load_into(model)
    attacks = bool(task.config.adversarial_weight)
    trainer = AgriClipTrainer(
        model=tune(model, training),
        args=make_arguments(task, job, len(fitted)),
        train_dataset=task.dataset(
            fitted, noise=noise, seed=job.seed, keys=keys if task.config.alignment_weight else None
        ),
        eval_dataset=task.dataset(split.watched) if len(split.watched) else None,
        compute_metrics=_watch(task.config) if len(split.watched) else None,
        attack=Attack(SensorNoise(task.channels), noise.number_noise) if attacks else None,
        chunk_size=training.chunk_size,
        step_epochs=training.step_epochs if training.schedule == "step" else None,
        # Not in the working folder, which goes when a fit fails.
        failure_dir=task.failure_dir / job.scratch.name if task.failure_dir is not None else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(FitProgress(_shifted(report, before, 0)))
    if training.average:
        trainer.add_callback(WeightAveraging(training.average))
    trainer.add_callback(Checkpointing(task.checkpoint_seconds))
    if training.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(training.patience))
    return trainer


def _first_stage(
    task: FitTask, job: FitJob, index: NDArray[np.int64], noise: SiteNoise, keys: torch.Tensor, report: Report
) -> Path:
    """Pre-train on the sites `index`, labelled or not; the folder of the model."""
    words = WORD_MASKING if task.config.masked_language_weight else 0.0
    noise = replace(noise, image_dropout=0.0, word_masking=words)
    dataset = task.dataset(index, noise=noise, seed=job.seed, keys=keys)
    arguments = make_arguments(task, job, len(index), "pretraining")
    return pretrain(task.config, dataset, arguments, task.checkpoint_seconds, report, task.reader)


def site_noise(task: FitTask, index: NDArray[np.int64]) -> SiteNoise:
    """What the study changes in a site while fitting; numbers in their spread over the sites `index`."""
    training, values = task.study.training, task.sites.numeric_values[index].numpy()
    spread = np.nan_to_num(np.nanstd(values, axis=0)) if len(values) else np.zeros(values.shape[1])
    return SiteNoise(
        image_dropout=training.image_dropout,
        sentence_dropout=training.sentence_dropout,
        number_dropout=training.number_dropout,
        number_noise=torch.from_numpy(training.number_noise * spread).float(),
        band_noise=training.band_noise,
        pixel_dropout=training.pixel_dropout,
        flips=True,
    )


def _steps(task: FitTask, sites: int) -> int:
    """Steps of an epoch."""
    return math.ceil(sites / task.study.training.batch_size)


def _shifted(report: Report, before: int, after: int) -> Report:
    """Report the progress of one stage as that of all."""

    def shifted(step: int, steps: int, logs: dict[str, float] | None = None) -> None:
        report(before + step, before + steps + after, logs)

    return shifted


def make_arguments(task: FitTask, job: FitJob, sites: int, stage: str = "checkpoints") -> TrainingArguments:
    """The study's settings as `Trainer` takes them; `stage` is the folder of the checkpoints."""
    training = task.study.training
    pretraining = stage == "pretraining"
    epochs = training.pretraining_epochs if pretraining else task.epochs
    processes = int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else 1
    steps = _steps(task, sites) * epochs
    watch: dict[str, Any] = {"save_strategy": "no"}
    if training.validation and not pretraining:
        watch = {
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": "log_loss",
            "greater_is_better": False,
        }
    if task.log_dir is not None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(task.log_dir / job.scratch.name)
    schedules = {"cosine": "cosine", "step": "constant", "plateau": "reduce_lr_on_plateau"}
    schedule = "cosine" if pretraining else training.schedule
    if schedule == "plateau":
        watch["lr_scheduler_kwargs"] = {"factor": 0.1, "patience": 0}
    return TrainingArguments(
        output_dir=str(job.scratch / stage),
        per_device_train_batch_size=max(1, training.batch_size // processes),
        per_device_eval_batch_size=256,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        num_train_epochs=epochs,
        lr_scheduler_type=schedules[schedule],
        warmup_steps=max(1, steps // 10) if schedule == "cosine" else 0,
        max_grad_norm=1.0,
        seed=job.seed,
        save_total_limit=2,
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        report_to=list(task.report_to),
        run_name=job.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        activation_checkpointing=training.gradient_checkpointing,
        torch_compile=training.compile,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **watch,
    )


def report_keys(sites: SiteTensors, index: NDArray[np.int64]) -> torch.Tensor:
    """Numbers of each report (N, K) in standard deviations over the sites `index`; a missing one is average."""
    values = sites.numeric_values.numpy()
    mean, spread = np.nanmean(values[index], axis=0), np.nanstd(values[index], axis=0)
    varying = np.isfinite(spread) & (spread > 0)
    keys = (values[:, varying] - mean[varying]) / spread[varying]
    return torch.from_numpy(np.nan_to_num(keys)).float()


def count_parameters(config: AgriClipConfig) -> int:
    """Parameters of the suitability model of `config`, without making room for them."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in AgriClipForSuitability(config).parameters())


def _watch(config: AgriClipConfig) -> Callable[[EvalPrediction], dict[str, float]]:
    """Log loss of the probabilities of presence on the watched blocks; soft labels count as such."""
    above = config.share_threshold if config.suitability_likelihood == "share" else None

    def log_loss(prediction: EvalPrediction) -> dict[str, float]:
        outputs: Any = prediction.predictions
        labels = np.asarray(prediction.label_ids, dtype=np.float64).reshape(-1)
        if above is not None:
            labels = np.where(np.isfinite(labels), labels > above, np.nan)
        # The first two outputs are logits and probabilities.
        chance = np.clip(np.asarray(outputs[1], dtype=np.float64), 1e-6, 1 - 1e-6)
        known = np.isfinite(labels)
        losses = -(labels * np.log(chance) + (1 - labels) * np.log(1 - chance))
        return {"log_loss": float(losses[known].mean())}

    return log_loss


def predict_sites(task: FitTask, trainer: AgriClipTrainer, index: NDArray[np.int64]) -> Predictions:
    """Probability at the sites `index`, and the share where the model gives one."""
    if not len(index):
        return {"probability": np.empty(0), "share": np.empty(0)}
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    device = trainer.args.device
    model.eval()
    found: dict[str, list[NDArray[np.float64]]] = {}
    with torch.no_grad():
        # Every process predicts all of them: that is quicker than to share out a second's work.
        for batch in torch.utils.data.DataLoader(task.dataset(index), batch_size=256):
            batch = {key: value.to(device) for key, value in batch.items() if not key.startswith("label")}
            output = model(**batch)
            for key in ("probabilities", "share"):
                if output.get(key) is not None:
                    found.setdefault(key, []).append(output[key].float().cpu().numpy().astype(np.float64))
    arrays = {key: np.concatenate(parts) for key, parts in found.items()}
    # Under a binomial likelihood the probability is the expected share.
    return {"probability": arrays["probabilities"], "share": arrays.get("share", arrays["probabilities"])}


__all__ = ["FitJob", "FitTask", "Predictions", "make_trainer", "predict_sites", "run_fit", "split_sites"]
