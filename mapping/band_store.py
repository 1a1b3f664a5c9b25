"""Half-done work on a map, kept so that an interrupted command goes on where it stopped and several can share it.

Three choices define this file. Work is cut into numbered units, and a unit is one file: written under a temporary
name, renamed, and sealed with a checksum, so that a file that is torn or of another plan counts as not done. What
decides the result is written down first as a plan; another plan is refused with what differs, never mixed in. Each
process takes a run of neighbouring units, by the list of what was missing when the work was opened, so that no unit is
worked on twice and nobody waits for another before the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as pack

from processing.errors import AgriClipError
from processing.plans import differences

MANIFEST, LOCK = "manifest.json", "lock"
# Whoever is done first waits for the others, which may be hours.
_PATIENCE = timedelta(days=7)


class BandStore:
    """A folder of finished units of work; use it as a context manager.

        with BandStore(out / ".maps-partial", plan, units=len(bands)) as store:
            for unit in store.pending():
                store.save(unit, {"probability": work_on(bands[unit])})
            store.wait_for_everyone()
            if store.is_main:
                for unit, rows in enumerate(bands):
                    writer.write(rows.start, store.load(unit)["probability"])
            store.finish()

    The folder stays when the block ends without :meth:`finish`, also by an error: the same call goes on from it.

    Args:
        folder: Where the units are kept, for example `out/.maps-partial`.
        plan: What decides the result, as JSON: hashes of inputs and model, grid, settings. Everything that changes a
            unit must be in it.
        units: Number of units; they are numbered from 0.
        restart: Throw away what an earlier call left.
        state: `accelerate.PartialState` of the processes that share the work; by default the current one.
        keep: Whether the arrays of a unit that an earlier call left are good; a unit that is not is done again.
        bytes_needed: Disk that the whole work takes; what is already done is taken off. 0 asks nothing.

    Raises:
        AgriClipError: The folder holds work of another plan, another process is at work there, or the disk is too
            small.
    """

    def __init__(
        self,
        folder: str | Path,
        plan: Mapping[str, Any],
        units: int,
        *,
        restart: bool = False,
        state: Any = None,
        keep: Callable[[dict[str, NDArray[Any]]], bool] | None = None,
        bytes_needed: int = 0,
    ) -> None:
        self.folder = Path(folder)
        self.plan = json.loads(json.dumps({**plan, "units": int(units)}, default=str))
        self.units = int(units)
        self.state = process_state() if state is None else state
        self._seal = hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:16]
        self._restart, self._keep, self._bytes_needed = restart, keep, int(bytes_needed)
        self._done: set[int] = set()
        self._missing: list[int] = []
        self._locked = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that assembles."""
        return self.state is None or bool(self.state.is_main_process)

    def __enter__(self) -> Self:
        """Find or make the folder, and list what is missing."""
        if self.is_main:
            self._open()
            self._drop_unwanted()
        self.wait_for_everyone()
        self._missing = [unit for unit in range(self.units) if not self.done(unit)]
        # Nobody may add to the folder before all have listed it.
        self.wait_for_everyone()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock; the units stay."""
        if self._locked:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._locked = False

    def _open(self) -> None:
        if self._restart and self.folder.exists():
            self._refuse_if_locked()
            shutil.rmtree(self.folder)
        if (self.folder / MANIFEST).exists():
            self._refuse_if_locked()
            differing = differences(_read_plan(self.folder / MANIFEST), self.plan)
            if differing:
                raise AgriClipError(
                    f"'{self.folder}' holds unfinished work of another plan, which differs in {', '.join(differing)}; "
                    "add --restart to begin anew, or run it to its end as it was."
                )
        elif self.folder.exists():
            shutil.rmtree(self.folder)  # it did not come as far as its plan
        kept = 0
        if self.folder.exists():
            for left in self.folder.glob(".*.partial"):
                left.unlink(missing_ok=True)  # what a killed process was writing
            kept = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        require_disk(self.folder, self._bytes_needed - kept)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / LOCK).write_text(str(os.getpid()))
        self._locked = True
        _write(self.folder / MANIFEST, (json.dumps(self.plan, indent=2, sort_keys=True) + "\n").encode())

    def _drop_unwanted(self) -> None:
        for unit in range(self.units if self._keep is not None else 0):
            arrays = self._read(unit)
            if arrays is not None and self._keep is not None and not self._keep(arrays):
                self.path(unit).unlink()

    def _refuse_if_locked(self) -> None:
        try:
            process = int((self.folder / LOCK).read_text())
        except (OSError, ValueError):
            return  # no lock
        if process != os.getpid() and _runs(process):
            raise AgriClipError(f"Process {process} is at work in '{self.folder}'; wait for it, or stop it first.")

    def path(self, unit: int) -> Path:
        """File of a unit."""
        if not 0 <= unit < self.units:
            raise AgriClipError(f"'{self.folder}' has no unit {unit}: it has {self.units}, numbered from 0.")
        return self.folder / f"{unit:06d}.safetensors"

    def save(self, unit: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep the arrays of a finished unit, whole or not at all.

        Args:
            unit: Its number.
            arrays: Any shapes; numbers or booleans. May be empty, to say that the unit is done.
        """
        held = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        seals = {"plan": self._seal, "crc32": str(_checksum(held))}
        _write(self.path(unit), pack(held, metadata=seals))
        self._done.add(unit)

    def done(self, unit: int) -> bool:
        """Whether the unit is there, whole and of this plan; it is read through once, and then remembered."""
        if unit not in self._done and self._read(unit) is not None:
            self._done.add(unit)
        return unit in self._done

    def load(self, unit: int) -> dict[str, NDArray[Any]]:
        """Read the arrays of a unit.

        Raises:
            AgriClipError: It is not done, or its file was damaged since.
        """
        arrays = self._read(unit)
        if arrays is None:
            raise self._gone(unit)
        return arrays

    def load_rows(self, unit: int, name: str, rows: slice, axis: int = 0) -> NDArray[Any]:
        """Read a part of one array of a unit, without the rest.

        Args:
            unit: Its number.
            name: Name of the array.
            rows: Which part.
            axis: Along which of the first two axes.

        Raises:
            AgriClipError: The unit is not done.
        """
        if not self.done(unit):
            raise self._gone(unit)
        with safe_open(self.path(unit), "np") as file:
            part = file.get_slice(name)
            found: NDArray[Any] = part[rows] if axis == 0 else part[:, rows]
        return found

    def pending(self, process_index: int | None = None, num_processes: int | None = None) -> list[int]:
        """Units that this process still has to do: its run of those that were missing when the store was opened.

        Args:
            process_index: Number of the process, from 0; its own by default.
            num_processes: Number of processes; as many as there are by default.
        """
        index = (0 if self.state is None else self.state.process_index) if process_index is None else process_index
        count = (1 if self.state is None else self.state.num_processes) if num_processes is None else num_processes
        first, stop = (len(self._missing) * i // count for i in (index, index + 1))
        return [unit for unit in self._missing[first:stop] if unit not in self._done]

    def wait_for_everyone(self) -> None:
        """Wait until all processes have come as far."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def finish(self) -> None:
        """Throw the units away: the work is assembled. Waits for all processes; the last call in the block."""
        self.wait_for_everyone()
        if self.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._locked = False
        self.wait_for_everyone()

    def _read(self, unit: int) -> dict[str, NDArray[Any]] | None:
        """Arrays of a unit, or None if its file is absent, torn, damaged or of another plan."""
        try:
            with safe_open(self.path(unit), "np") as file:
                seals = file.metadata() or {}
                if seals.get("plan") != self._seal:
                    return None
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return None
        return arrays if seals.get("crc32") == str(_checksum(arrays)) else None

    def _gone(self, unit: int) -> AgriClipError:
        return AgriClipError(f"Unit {unit} in '{self.folder}' is not there or damaged; run the same command again.")


def process_state() -> Any:
    """The `PartialState` of the processes that were started together, or None if there is but one."""
    # As accelerate recognises them; a single process need not wait for its import.
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if max(int(os.environ.get(name, "1")) for name in sizes) < 2:
        return None
    import torch

    try:
        from accelerate import PartialState
    except ImportError as error:
        raise AgriClipError(
            "Sharing a map among processes needs accelerate; install it with: pip install 'agriclip[train]'."
        ) from error
    # Without the word, processes on a machine without GPUs would not know of each other. What begins their group may
    # also say how long they wait for each other.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def require_disk(folder: str | Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: Where it is to be written; need not exist yet.
        needed: Bytes.

    Raises:
        AgriClipError: Fewer are free.
    """
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise AgriClipError(
            f"The work needs about {needed / 1e9:.2g} GB in '{folder}', where {free / 1e9:.2g} GB are free; free some "
            "or name another folder for the output."
        )


def fingerprint(paths: Iterable[str | Path]) -> str:
    """Fingerprint of files by path, size and time of change; of virtual rasters (.vrt) by what they say."""
    parts = []
    for path in (Path(path).absolute() for path in paths):
        if path.suffix.lower() == ".vrt":  # it may be made anew, elsewhere, for each call
            parts.append(hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest())
        elif path.exists():
            stat = path.stat()
            parts.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def remove_left_over(path: str | Path) -> None:
    """Remove what a killed process left of the raster at `path` while `RowBandWriter` was at it."""
    target = Path(path)
    mark = re.compile(re.escape(f".{target.stem}.") + r"(\d+)\.(rows|cog)\.partial")
    for left in target.parent.glob(".*.partial*") if target.parent.is_dir() else []:
        found = mark.match(left.name)
        if found and not _runs(int(found[1])):
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def _read_plan(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None  # renamed into place whole, so something else wrote it


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> int:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8), value)
    return value


__all__ = [
    "BandStore",
    "fingerprint",
    "process_state",
    "remove_left_over",
    "require_disk",
]
