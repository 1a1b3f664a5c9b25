"""The folder of a released model: half-precision weights, configuration, processor, code, and the ensemble.

At its root lies the model of all jobs; `members/` holds the ensemble that answers for suitability, with its
calibration beside the root's weights, as `agriclip fit` leaves them. Weights lie in half precision and load in single
precision, because the configuration says so.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor

from modeling_agriclip import AgriClipModel
from modeling_agriclip.calibration_agriclip import FILE_NAME as CALIBRATION
from processing.errors import AgriClipError
from processing.processing_agriclip import AgriClipProcessor
from training.fit import SUMMARY
from training.release.joint import JointModel

EXACT = "gaussian_process."
WEIGHTS, CONFIG, MEMBERS = "model.safetensors", "config.json", "members"
LOG = "training_log.jsonl"
LARGEST = 32 * 2**20  # bytes of weights in all


def save_release(model: JointModel, processor: AgriClipProcessor, folder: Path) -> None:
    """Save the union of all heads' weights.

    Args:
        model: What was trained.
        processor: Its processor.
        folder: Made anew.
    """
    folder.mkdir(parents=True)
    AgriClipModel(copy.deepcopy(model.config)).save_pretrained(folder)  # configuration and code; its weights go
    save_in_half_precision({name: value.detach().cpu() for name, value in model.weights_to_save().items()}, folder)
    _load_in_single_precision(folder)
    processor.save_pretrained(folder)


def add_ensemble(folder: Path, fitted: Path) -> int:
    """Put the members of a fitted ensemble, and its calibration, into the folder of a released model.

    Args:
        folder: The released model.
        fitted: The model folder of `agriclip fit`.

    Returns:
        Bytes of all weights.

    Raises:
        AgriClipError: There is no ensemble, it was fitted with another vocabulary, or all is larger than 32 MiB.
    """
    members = sorted((fitted / MEMBERS).glob("fold_*"))
    if not members:
        raise AgriClipError(f"There is no ensemble in '{fitted}'; fit one with --members 5.")
    ours, theirs = (AutoProcessor.from_pretrained(path).tokenizer.get_vocab() for path in (folder, fitted))
    if ours != theirs:
        raise AgriClipError(f"The ensemble in '{fitted}' reads with another vocabulary than '{folder}'; fit it again.")
    shutil.rmtree(folder / MEMBERS, ignore_errors=True)
    for member in members:
        copied = folder / MEMBERS / member.name
        copied.mkdir(parents=True)
        _copy(member, copied, CONFIG, CALIBRATION)
        save_in_half_precision(load_file(member / WEIGHTS), copied)
        _load_in_single_precision(copied)
    _copy(fitted, folder, CALIBRATION, "study.yaml", SUMMARY)
    _add_seconds(folder)
    size = sum(path.stat().st_size for path in folder.rglob(WEIGHTS))
    if size > LARGEST:
        raise AgriClipError(f"The weights in '{folder}' take {size / 2**20:.1f} MiB; at most {LARGEST >> 20} go out.")
    return size


def _add_seconds(folder: Path) -> None:
    """Add the time of the training that the log tells to that of the ensemble: the card counts the carbon of both."""
    log, summary = folder / LOG, folder / SUMMARY
    if not (log.exists() and summary.exists()):
        return
    told = json.loads(summary.read_text())
    told["seconds"] = round(told.get("seconds", 0.0) + logged_seconds(log), 1)
    summary.write_text(json.dumps(told, indent=2) + "\n")


def logged_seconds(log: Path) -> float:
    """Seconds that a training took by its log, whose clock begins anew where it was taken up again."""
    clock = [entry["seconds"] for entry in map(json.loads, log.read_text().splitlines()) if "seconds" in entry]
    return sum(now for now, later in zip(clock, [*clock[1:], 0.0], strict=True) if later < now)


def _copy(source: Path, target: Path, *names: str) -> None:
    """Copy the files that are there: an ensemble need not be calibrated."""
    for name in names:
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def save_in_half_precision(weights: dict[str, Tensor], folder: Path) -> None:
    """Write `model.safetensors` in half precision, all but the Gaussian process: its numbers have units.

    Args:
        weights: By name.
        folder: Of the model.
    """
    short = {name: w.is_floating_point() and not name.startswith(EXACT) for name, w in weights.items()}
    half = {name: (w.half() if short[name] else w).contiguous() for name, w in weights.items()}
    save_file(half, folder / WEIGHTS, {"format": "pt"})


def _load_in_single_precision(folder: Path) -> None:
    path = folder / CONFIG
    config = json.loads(path.read_text())
    config["dtype"] = str(torch.float32).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
