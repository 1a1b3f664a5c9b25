"""The single fits that a study asks for: one a held-out fold, and one on all sites, one after another or side by side.

Every fit is a job that a fresh process can do alone: it gets the sites, a mask of those it may see, and a folder for
its weights; it gives back its predictions for the rest. So one core does them in turn, eight do eight at once, and the
answer does not depend on it.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from training.progress import FitBars
from training.single_fit import FitJob, FitTask, Predictions, run_fit


def run_fits(task: FitTask, jobs: Sequence[FitJob], processes: int = 1, quiet: bool = False) -> list[Predictions]:
    """Do all jobs, at most `processes` at a time.

    Args:
        task: What they share.
        jobs: The fits.
        processes: Processes to use, which share the threads of this one; 1 fits in it. A GPU is not shared, and
            processes that a launcher has started fit each model together: there it is 1.
        quiet: No progress bars.

    Returns:
        For each job `probability` and `share` at the sites it held out, in the order of the sites.

    Raises:
        AgriClipError: A loss became infinite or not a number.
    """
    alone = torch.cuda.is_available() or torch.distributed.is_initialized()
    processes = 1 if alone else min(processes, len(jobs))
    with FitBars([job.name for job in jobs], quiet) as bars:
        if processes == 1:
            return [run_fit(task, job, bars.reporter(i)) for i, job in enumerate(jobs)]
        return _run_in_processes(task, jobs, processes, bars)


def _run_in_processes(task: FitTask, jobs: Sequence[FitJob], processes: int, bars: FitBars) -> list[Predictions]:
    # A forked process would inherit torch's threads in a state they cannot leave.
    context = multiprocessing.get_context("spawn")
    # Of the threads that this process was given, by which sums are rounded: not of all that the machine has.
    threads = max(1, torch.get_num_threads() // processes)
    news = context.Queue()
    with (
        _environment(OMP_NUM_THREADS=str(threads)),
        ProcessPoolExecutor(processes, context, _start_worker, (threads, task, news)) as pool,
    ):
        futures = [pool.submit(_work, job, i) for i, job in enumerate(jobs)]
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


_worker: tuple[FitTask, Any] | None = None


def _start_worker(threads: int, task: FitTask, news: Any) -> None:
    """Receive the sites once a process, not once a job."""
    global _worker
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    _worker = (task, news)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the command does, however it ends: what takes up its work must not meet this process at it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: FitJob, index: int) -> Predictions:
    assert _worker is not None
    task, news = _worker
    return run_fit(task, job, lambda *step: news.put((index, *step)))


__all__ = ["run_fits"]
