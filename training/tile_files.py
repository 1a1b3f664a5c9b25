"""Which files a source of tiles means: a folder with metadata, Parquet files or tar shards, and which of a split."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

from processing.errors import AgriClipError, nearest

_ENDINGS = {"parquet": (".parquet",), "shards": (".tar", ".tar.gz", ".tgz")}
# Names that say a split whatever else the files are called; others count when the split asked for is among them.
_USUAL = ("train", "training", "validation", "valid", "val", "dev", "test")


def find_source(source: str | Path | Sequence[str | Path]) -> tuple[str, list[str]]:
    """Return the kind of a source, `folder`, `parquet` or `shards`, and its files (or the folder).

    Raises:
        AgriClipError: There are no files of one of these kinds.
    """
    if isinstance(source, str | Path):
        text = os.fspath(source)
        if os.path.isdir(text):
            return _of_folder(text)
        pattern = any(mark in text for mark in "*?[") and "://" not in text and not os.path.exists(text)
        files = sorted(glob.glob(text)) if pattern else [text]
        if not files:
            raise AgriClipError(f"No file matches '{text}'; check the pattern.")
    else:
        files = [os.fspath(file) for file in source]
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise AgriClipError(
            f"'{files[0] if files else source}' is no source of tiles; give a folder with metadata.jsonl, or .parquet "
            "or .tar files."
        )
    for file in files:
        if "://" not in file and not os.path.isfile(file):
            folder = os.path.dirname(file) or "."
            near = nearest(os.path.basename(file), os.listdir(folder) if os.path.isdir(folder) else [])
            raise AgriClipError(
                f"The file '{file}' does not exist; {near if near.startswith('did') else 'check the path.'}"
            )
    return str(kinds.pop()), files


def split_files(files: list[str], split: str | None) -> tuple[list[str], str | None]:
    """Return the files of a split, and the split if rows must be asked for it because no file name tells.

    Raises:
        AgriClipError: The files are called by splits, and this is none of them.
    """
    if split is None:
        return files, None
    named = {file: _split_name(file) for file in files}
    of_split = [file for file in files if named[file] == split]
    if of_split:
        return of_split, None
    usual = [name for name in named.values() if name in _USUAL]
    if len(usual) == len(files):
        raise AgriClipError(f"There is no split '{split}' among the files; {nearest(split, usual)}")
    return files, split


def require_whole(kind: str, files: Sequence[str]) -> None:
    """Refuse local files that are cut short or are something else, by their first and last bytes.

    Raises:
        AgriClipError: Names the first of them.
    """
    for file in files:
        if not os.path.exists(file):  # an address
            continue
        with open(file, "rb") as stream:
            head = stream.read(512)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 4))
            tail = stream.read(4)
        if kind == "parquet":
            whole = head[:4] == tail == b"PAR1"
        else:
            # Archives consist of blocks of 512 bytes; a compressed one tells its damage only when it is read.
            whole = size > 0 and (not file.endswith(".tar") or (size % 512 == 0 and _is_tar(head)))
        if not whole:
            raise AgriClipError(f"'{file}' is damaged or no {kind.removesuffix('s')} file; fetch or write it again.")


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # an empty archive
        return True
    except tarfile.HeaderError:
        return False
    return True


def _of_folder(folder: str) -> tuple[str, list[str]]:
    if os.path.isfile(os.path.join(folder, "metadata.jsonl")):
        return "folder", [folder]
    for kind, endings in _ENDINGS.items():
        files = sorted(str(path) for path in Path(folder).rglob("*") if path.name.endswith(endings))
        if files:
            return kind, files
    # Its absence is told where it is read.
    return "folder", [folder]


def _kind(file: str) -> str | None:
    path = urlparse(file).path if "://" in file else file
    return next((kind for kind, endings in _ENDINGS.items() if path.endswith(endings)), None)


def _split_name(file: str) -> str:
    """`train` of `train-00001-of-00004.parquet`, `train_3.tar` and `train/0.tar`."""
    path = Path(urlparse(file).path if "://" in file else file)
    stem = re.sub(r"([-_.]?\d+)([-_.]of[-_.]\d+)?$", "", path.name.split(".")[0])
    return stem or path.parent.name


__all__ = ["find_source", "require_whole", "split_files"]
