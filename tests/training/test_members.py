"""Fits side by side: how many threads each of them has."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from training import members
from training.single_fit import FitJob


class NoProcesses:
    """Stands for a pool of processes: notes what they would begin with, and does no job."""

    def __init__(self, count, context, start, given):
        self.started.append((count, start, given[0]))

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None

    def submit(self, work, job, index):
        future = Future()
        future.set_result(job.name)
        return future


@pytest.mark.parametrize(("given", "processes", "each"), [(6, 2, 3), (2, 2, 1), (1, 4, 1)])
def test_processes_share_the_threads_that_were_given(monkeypatch, tmp_path, given, processes, each):
    started = []
    monkeypatch.setattr(NoProcesses, "started", started, raising=False)
    monkeypatch.setattr(members, "ProcessPoolExecutor", NoProcesses)
    monkeypatch.setattr(torch, "get_num_threads", lambda: given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    jobs = [FitJob(f"fold {k}", np.ones(1, dtype=bool), 0, tmp_path, tmp_path) for k in range(5)]
    assert members.run_fits(None, jobs, processes, quiet=True) == [job.name for job in jobs]
    assert started == [(processes, members._start_worker, each)]
