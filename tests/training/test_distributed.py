"""Two processes give the loss and the gradients of one with the same batch, for every preset."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.objective import PRESETS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "training" / "distributed_step.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run_steps(output: Path, chunk: int, processes: int) -> dict:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    command = [*launcher, str(SCRIPT), str(output), str(chunk)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=output.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(output, weights_only=True)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """Every step by one process and by two; both split their batches unevenly into chunks."""
    pytest.importorskip("peft", reason="peft is not installed")
    folder = tmp_path_factory.mktemp("steps")
    return {processes: run_steps(folder / f"{processes}.pt", 3, processes) for processes in (1, 2)}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_two_processes_and_chunks_equal_one(steps, preset, lora):
    whole = steps[1][f"{preset} {lora} False"]
    assert len(whole["gradients"]) > 10
    assert all(torch.isfinite(gradient).all() for gradient in whole["gradients"].values())
    others = [(1, True), (2, False), (2, True)]
    for processes, chunks in others:
        other = steps[processes][f"{preset} {lora} {chunks}"]
        assert other["loss"] == pytest.approx(whole["loss"], abs=1e-6)
        assert other["terms"] == pytest.approx(whole["terms"], abs=1e-6)
        assert other["gradients"].keys() == whole["gradients"].keys()
        for name, gradient in whole["gradients"].items():
            worst = (gradient - other["gradients"][name]).abs().max()
            assert worst <= 1e-6, f"{name}, {processes} processes, chunks {chunks}: gradients differ by {worst}"


def test_presets_differ(steps):
    losses = [steps[1][f"{preset} False False"]["loss"] for preset in PRESETS]
    assert len({round(loss, 5) for loss in losses}) == len(losses)


def test_a_study_is_fitted_by_two_processes_together(landscape, tmp_path):
    fits = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        launcher = [sys.executable, "-m"]
        if processes > 1:
            launcher += [
                "torch.distributed.run",
                f"--nproc-per-node={processes}",
                f"--master-port={free_port()}",
                "-m",
            ]
        options = ["--epochs=1", "--quiet", "--no-baselines", "--processes=1"]
        command = [*launcher, "agriclip_cli", "fit", str(landscape), f"--output={output}", *options]
        done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Model  ") == 1, "one process speaks for all"
        with (output / "model" / "heldout_predictions.csv").open() as file:
            fits[processes] = [float(row["probability"]) for row in csv.DictReader(file)]
        assert not (output / ".model-partial").exists()
    # Rounding differs in the last digits, and every step passes it on.
    assert fits[2] == pytest.approx(fits[1], abs=2e-3)
