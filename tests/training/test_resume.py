"""A fit that is killed goes on where it was, and ends with the same weights, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from processing.errors import AgriClipError
from processing.study import load_study
from training import resume
from training.fit import fit_study

SCRIPT = """
import sys
from processing.study import load_study
from training.fit import fit_study
if __name__ == "__main__":
    study, output, processes, watching = sys.argv[1:5]
    study = load_study(study)
    training = {"members": 2, "preset": "full", "image_dropout": 0.3, "sentence_dropout": 0.2}
    # What watches a fit, or the mean of its weights: both are a fit's own state beside the weights.
    training |= {"validation": 0.2} if watching == "validation" else {"average": 0.8}
    small = {"vision_config": {"stage_depths": (1, 1), "num_scales": 2}}
    study = study.model_copy(
        update={
            "training": study.training.model_copy(update=training),
            "model": study.model.model_copy(update={"overrides": small}),
        }
    )
    fit_study(study, output, epochs=2, processes=int(processes), checkpoint_seconds=0.0, quiet=True)
"""


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("model.safetensors"))
    assert len(files) == 3  # two members and the model
    return {f"{file.relative_to(folder)} {name}": x for file in files for name, x in load_file(file).items()}


def wait_for(found, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, "the fit ended before it could be killed"
        assert time.monotonic() < end, "the fit came to nothing"
        time.sleep(0.01)


@pytest.mark.parametrize(("processes", "state"), [(1, "validation"), (2, "average")])
def test_killed_and_begun_again(landscape, tmp_path, processes, state):
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def begin(output: Path) -> subprocess.Popen:
        command = [sys.executable, str(script), str(landscape), str(output), str(processes), state]
        return subprocess.Popen(command, env=environment)

    assert begin(tmp_path / "whole").wait() == 0
    partial = tmp_path / "killed" / ".model-partial"
    # Once in the first epoch of the first fit (150 sites, 8 or 10 steps an epoch); once in the second of a later fit.
    for sign in ("fold_1/checkpoints/checkpoint-7/complete", "all/checkpoints/checkpoint-12/complete"):
        process = begin(tmp_path / "killed")
        wait_for((partial / sign).exists, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "model").exists()
    assert begin(tmp_path / "killed").wait() == 0
    whole, killed = (weights_of(tmp_path / name / "model") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not partial.exists()
    tables = [(tmp_path / name / "model" / "heldout_predictions.csv").read_text() for name in ("whole", "killed")]
    assert tables[0] == tables[1]


def interrupted(monkeypatch, landscape, output, **options):
    """Leave a fit at its first step."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.single_fit.AgriClipTrainer.train", stop)
        with pytest.raises(KeyboardInterrupt):
            fit_study(landscape, output, epochs=1, quiet=True, **options)


def test_another_plan_is_refused_with_what_differs(landscape, tmp_path, monkeypatch):
    interrupted(monkeypatch, landscape, tmp_path, seed=3)
    assert [path.name for path in tmp_path.iterdir()] == [".model-partial"]
    with pytest.raises(AgriClipError, match=r"differs in seed \(3 then, 4 now\); add --restart"):
        fit_study(landscape, tmp_path, epochs=1, seed=4, quiet=True)
    monkeypatch.setattr(resume, "fingerprint_code", lambda *parts: "other code")
    with pytest.raises(AgriClipError, match=r"differs in code \(\w+ then, other code now\)"):
        fit_study(landscape, tmp_path, epochs=1, seed=3, quiet=True)
    result = fit_study(landscape, tmp_path, epochs=1, seed=4, restart=True, quiet=True)
    assert Path(result["model_dir"]).exists()
    assert not (tmp_path / ".model-partial").exists()


def test_a_folder_in_use_is_left_alone(landscape, tmp_path, monkeypatch):
    interrupted(monkeypatch, landscape, tmp_path)
    (tmp_path / ".model-partial" / "lock").write_text(str(os.getppid()))
    for restart in (False, True):
        with pytest.raises(AgriClipError, match=f"Process {os.getppid()} is fitting in"):
            fit_study(landscape, tmp_path, epochs=1, restart=restart, quiet=True)
    assert (tmp_path / ".model-partial" / "plan.json").exists()


def test_incomplete_checkpoints_do_not_count(tmp_path):
    for step, complete in ((9, True), (10, True), (11, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "complete").touch()
    assert resume.last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists()


def test_too_small_a_disk_is_refused_before_anything_is_written(landscape, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10_000_000})
    monkeypatch.setattr("training.resume.shutil.disk_usage", lambda path: usage)
    with pytest.raises(AgriClipError, match=r"needs about 0.06\d* GB in .* where 0.01 GB are free"):
        fit_study(load_study(landscape), tmp_path / "new" / "fit", quiet=True)
    assert not (tmp_path / "new").exists()


def test_plan_holds_only_what_json_can(tmp_path):
    plan = resume.make_plan(folder=tmp_path, size=None)
    assert json.loads(json.dumps(plan)) == plan
    assert set(plan) == {"folder", "size", "code", "versions"}
