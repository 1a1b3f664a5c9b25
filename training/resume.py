"""Taking a fit up again where it stopped, with the same result as if it had not.

A fit works in a folder beside the model's own, `.<name>-partial`. Its plan says what is being fitted: to which data,
with which settings and which code. The same command finds the folder, compares plans, and goes on; another is refused
with what differs. Checkpoints count only when they are complete, which a file in them says that is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from processing.errors import AgriClipError
from processing.plans import differences, fingerprint_code
from processing.rasters import file_of

PLAN, LOCK, COMPLETE = "plan.json", "lock", "complete"
# Folders of code that decide what a fit gives.
CODE = ("modeling_agriclip", "processing", "training")
# A checkpoint holds the weights and two moments of each, in float32.
BYTES_PER_PARAMETER, CHECKPOINTS_KEPT = 12, 3


def partial_folder(output: Path) -> Path:
    """Where the fit of the model folder `output` works."""
    return output.parent / f".{output.name}-partial"


def make_plan(**settings: Any) -> dict[str, Any]:
    """What decides a fit's result: `settings`, the code, and the versions of what it stands on."""
    packages = {}
    for name in ("torch", "transformers", "accelerate"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:  # not needed to fit on one processor
            packages[name] = "absent"
    plan = settings | {"code": fingerprint_code(*CODE), "versions": packages}
    return json.loads(json.dumps(plan, default=str))


def fingerprint_files(paths: Iterator[Path] | list[Path]) -> str:
    """Fingerprint of files by name, size and time of change."""
    digest = hashlib.sha256()
    for path in sorted(file_of(path) for path in paths):
        if path.exists():
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def working_folder(
    output: Path, plan: dict[str, Any], restart: bool = False, state: PartialState | None = None
) -> Iterator[Path]:
    """The folder in which `output` is made; left as it is when the work is interrupted, gone when it is done.

    Args:
        output: The model folder that is to be made.
        plan: What decides the result.
        restart: Throw away what an earlier command left there.
        state: The processes that work in it together; the first one makes it.

    Raises:
        AgriClipError: Another command is at work there, or an earlier one of another plan left something.
    """
    folder = partial_folder(output)
    main = state is None or state.is_main_process
    if main:
        _open(folder, plan, restart)
    if state is not None:
        state.wait_for_everyone()
    try:
        yield folder
    except AgriClipError:
        # The same command would fail in the same way: there is nothing to go on with.
        if main:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if main:
            (folder / LOCK).unlink(missing_ok=True)


def _open(folder: Path, plan: dict[str, Any], restart: bool) -> None:
    """Make the folder, or find it as an earlier command of the same plan left it; then lock it."""
    if restart and folder.exists():
        _refuse_if_locked(folder)
        shutil.rmtree(folder)
    if (folder / PLAN).exists():
        _refuse_if_locked(folder)
        differing = differences(json.loads((folder / PLAN).read_text()), plan)
        if differing:
            raise AgriClipError(
                f"'{folder}' holds an unfinished fit of another plan, which differs in {', '.join(differing)}; add "
                "--restart to begin anew, or run it to its end as it was."
            )
    elif folder.exists():
        shutil.rmtree(folder)  # it did not come as far as its plan
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).write_text(str(os.getpid()))
    write_atomically(folder / PLAN, json.dumps(plan, indent=2) + "\n")


def _refuse_if_locked(folder: Path) -> None:
    try:
        process = int((folder / LOCK).read_text())
        os.kill(process, 0)
    except (OSError, ValueError):
        return  # no lock, or its process is gone
    if process != os.getpid():
        raise AgriClipError(f"Process {process} is fitting in '{folder}'; wait for it, or choose another --output.")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def check_disk(folder: Path, parameters: int, models: int, at_once: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: Where it is to be written, or a folder that will be there.
        parameters: Number of parameters of a model.
        models: How many models stay.
        at_once: How many are fitted at a time, each with its checkpoints.

    Raises:
        AgriClipError: Less is free than the fit needs.
    """
    while not folder.exists():
        folder = folder.parent
    needed = parameters * (4 * models + BYTES_PER_PARAMETER * CHECKPOINTS_KEPT * at_once)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AgriClipError(
            f"The fit needs about {needed / 1e9:.2g} GB in '{folder}', where {free / 1e9:.2g} GB are free; free some, "
            "or name another --output."
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`; incomplete ones are removed."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            found.append(path)
        else:
            shutil.rmtree(path)
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class Checkpointing(TrainerCallback):
    """Saves after so many seconds, and marks what has been saved whole.

    Args:
        seconds: Time between two checkpoints; 0 saves after every step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint when it is time."""
        if time.monotonic() - self.saved >= self.seconds:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint."""
        self.saved = time.monotonic()
        if state.is_world_process_zero and args.output_dir is not None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


__all__ = ["Checkpointing", "check_disk", "last_checkpoint", "make_plan", "working_folder", "write_atomically"]
