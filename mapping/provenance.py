"""What a folder of maps was made of and what lies in it: hashes of inputs, model and outputs, software, commands."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mapping.outputs import file_sha256
from processing.rasters import file_of
from processing.whole_files import write_whole

__all__ = ["describe_files", "input_files", "plain", "software", "write_json", "write_manifest"]

MANIFEST = "manifest.json"
_PACKAGES = ("agriclip", "torch", "transformers", "rasterio", "numpy")


def input_files(study: Any) -> list[Path]:
    """Every local file that a study names, each once, in the order of the study."""
    places = (file_of(study.path(file)) for _, file in study.files() if "://" not in file)
    return [path for path in dict.fromkeys(places) if path.is_file()]


def describe_files(paths: Iterable[Path], folder: Path | None = None) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of files; the name is the path from `folder`, or the file's own."""
    return [
        {
            "name": path.name if folder is None else Path(os.path.relpath(path, folder)).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in paths
    ]


def software() -> dict[str, str]:
    """Versions of what computes: Python and the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that was never installed
            found[package] = "(not installed as a package)"
    return found


def write_manifest(
    study: Any,
    folder: str | Path,
    outputs: Iterable[Path],
    *,
    inputs: Sequence[Mapping[str, Any]],
    model_sha256: str | None,
    commands: Sequence[str] = (),
) -> Path:
    """Write `manifest.json`: enough to tell whether a map is the one that a report speaks of.

    Args:
        study: The study.
        folder: Folder of the outputs.
        outputs: Files made, which are hashed.
        inputs: What [`describe_files`] says of the inputs.
        model_sha256: Hash of the model, as in the tags of its maps.
        commands: Shell commands that make it again.
    """
    target = Path(folder) / MANIFEST
    content = {
        "study": study.name,
        "study_fingerprint": study.fingerprint(),
        "model_sha256": model_sha256,
        "commands": list(commands),
        "software": software(),
        "inputs": list(inputs),
        "outputs": describe_files(sorted(path for path in outputs if path.is_file()), Path(folder)),
    }
    return write_json(target, content)


def write_json(path: str | Path, content: Any) -> Path:
    """Writes JSON under a temporary name first; paths become text and NaN becomes null.

    Args:
        path: File to write.
        content: Mappings, sequences, numbers, strings, paths, NumPy scalars.
    """
    return write_whole(path, json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """The same content in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
