"""The single fits that a study asks for: one a held-out fold, and one on all sites, one after another or side by side.

Every fit is a job that a fresh process can do alone: it gets the sites, a mask of those it may see, and a folder for
its weights; it gives back its predictions for the rest. So one core does them in turn, eight do eight at once, and the
answer does not depend on it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
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
from processing.study import Study
from training.progress import FitBars, FitProgress, Report
from training.study_dataset import SiteTensors, SuitabilityDataset

Predictions = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class FitTask:
    """What all fits of a study share.

    Attributes:
        study: The study.
        sites: Inputs of all N sites.
        config: Configuration of the model.
        labels: (N,) share or presence.
        weights: (N,) weight of each label.
        epochs: Passes over the sites.
    """

    study: Study
    sites: SiteTensors
    config: AgriClipConfig
    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    epochs: int

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
    """

    name: str
    inside: NDArray[np.bool_]
    seed: int
    folder: Path


def run_fits(task: FitTask, jobs: Sequence[FitJob], processes: int = 1, quiet: bool = False) -> list[Predictions]:
    """Do all jobs, at most `processes` at a time.

    Args:
        task: What they share.
        jobs: The fits.
        processes: Processes to use; 1 fits in this one, on all its threads. A GPU is not shared, so with one there is
            one process.
        quiet: No progress bars.

    Returns:
        For each job `probability` and `share` at the sites it held out, in the order of the sites.

    Raises:
        AgriClipError: A loss became infinite or not a number.
    """
    processes = 1 if torch.cuda.is_available() else min(processes, len(jobs))
    with FitBars([job.name for job in jobs], quiet) as bars:
        if processes == 1:
            return [run_fit(task, job, bars.reporter(i)) for i, job in enumerate(jobs)]
        return _run_in_processes(task, jobs, processes, bars)


def _run_in_processes(task: FitTask, jobs: Sequence[FitJob], processes: int, bars: FitBars) -> list[Predictions]:
    # A forked process would inherit torch's threads in a state they cannot leave.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)
    with (
        context.Manager() as manager,
        _environment(OMP_NUM_THREADS=str(threads)),
        ProcessPoolExecutor(processes, context, _start_worker, (threads, task)) as pool,
    ):
        news = manager.Queue()
        futures = [pool.submit(_work, job, i, news) for i, job in enumerate(jobs)]
        try:
            while not all(future.done() for future in futures):
                _pass_on(news, bars)
                _raise_first(futures)
            _pass_on(news, bars)
            return [future.result() for future in futures]
        except BaseException:
            # Jobs that have not begun need not; those under way end with their processes.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _raise_first(futures: Sequence[Future[Predictions]]) -> None:
    for future in futures:
        if future.done() and (error := future.exception()) is not None:
            raise error


def _pass_on(news: Any, bars: FitBars) -> None:
    """Show what the workers have reported, waiting for at most half a second."""
    wait = 0.5
    while True:
        try:
            job, *step = news.get(timeout=wait)
        except queue.Empty:
            return
        bars.reporter(job)(*step)
        wait = 0.001


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that a new process reads before its first line runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_worker_task: FitTask | None = None


def _start_worker(threads: int, task: FitTask) -> None:
    """Receive the sites once a process, not once a job."""
    global _worker_task
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    _worker_task = task


def _work(job: FitJob, index: int, news: Any) -> Predictions:
    assert _worker_task is not None
    return run_fit(_worker_task, job, lambda *step: news.put((index, *step)))


def run_fit(task: FitTask, job: FitJob, report: Report) -> Predictions:
    """Fit a fresh model, save it, and predict what it has not seen."""

    def watch(step: int, steps: int, loss: float | None) -> None:
        if loss is not None and not math.isfinite(loss):
            raise AgriClipError(
                f"The loss of '{task.study.name}' became {loss} by step {step} of {steps} ({job.name.lower()}); "
                f"lower `training.learning_rate` (now {task.study.training.learning_rate:g})."
            )
        report(step, steps, loss)

    trainer = make_trainer(task, job, watch)
    trainer.train()
    model = trainer.model
    assert model is not None
    model.save_pretrained(job.folder)
    return predict_sites(task, trainer, np.flatnonzero(~job.inside))


def make_trainer(task: FitTask, job: FitJob, report: Report) -> Trainer:
    """The stock Trainer around a fresh model, with the noise that the study asks for."""
    training = task.study.training
    set_seed(job.seed)
    model = AgriClipForSuitability(task.config)
    index = np.flatnonzero(job.inside)
    spread = np.nanstd(task.sites.numeric_values[index].numpy(), axis=0)
    dataset = task.dataset(
        index,
        image_dropout=training.image_dropout,
        number_noise=torch.from_numpy(training.number_noise * spread),
        band_noise=training.band_noise,
        pixel_dropout=training.pixel_dropout,
        augment=True,
    )
    steps = math.ceil(len(dataset) / training.batch_size) * task.epochs
    arguments = TrainingArguments(
        output_dir=str(job.folder / "trainer"),
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=256,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        num_train_epochs=task.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        max_grad_norm=1.0,
        seed=job.seed,
        save_strategy="no",
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(FitProgress(report))
    return trainer


def predict_sites(task: FitTask, trainer: Trainer, index: NDArray[np.int64]) -> Predictions:
    """Probability at the sites `index`, and the share where the model gives one."""
    if not len(index):
        return {"probability": np.empty(0), "share": np.empty(0)}
    model, device = trainer.model, trainer.args.device
    assert model is not None
    model.eval()
    found: dict[str, list[NDArray[np.float64]]] = {}
    with torch.no_grad():
        for batch in trainer.get_test_dataloader(task.dataset(index)):
            batch = {key: value.to(device) for key, value in batch.items() if not key.startswith("label")}
            output = model(**batch)
            for key in ("probabilities", "share"):
                if output.get(key) is not None:
                    found.setdefault(key, []).append(output[key].float().cpu().numpy().astype(np.float64))
    arrays = {key: np.concatenate(parts) for key, parts in found.items()}
    # Under a binomial likelihood the probability is the expected share.
    return {"probability": arrays["probabilities"], "share": arrays.get("share", arrays["probabilities"])}


__all__ = ["FitJob", "FitTask", "Predictions", "make_trainer", "predict_sites", "run_fit", "run_fits"]
