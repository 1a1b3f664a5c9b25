"""Archives unpacked as if their authors were hostile: nothing leaves the folder, and nothing grows without bound.

Three choices: a member with an absolute path, `..`, a drive, a backslash or a link makes the whole archive refused,
because an honest data set has none; bytes are counted as they are written, never believed from a header; and the
folder appears under its name only once everything is in it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from ..errors import AgriClipError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_RATIO = 200  # rasters of classes compress 50-fold; bombs more than a thousandfold
LEAST_LIMIT = 1 << 30  # below a gigabyte no ratio is worth a complaint
MAX_MEMBERS = 10_000_000
_CHUNK = 1 << 20
_DRIVE = re.compile(r"^[A-Za-z]:")


class _Member(NamedTuple):
    name: str
    size: int
    folder: bool
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive that can be unpacked."""
    return path.name.lower().endswith(ENDINGS)


def stem_of(path: Path) -> str:
    """`chips` of `chips.tar.gz`."""
    ending = next(
        (ending for ending in sorted(ENDINGS, key=len, reverse=True) if path.name.lower().endswith(ending)), ""
    )
    return path.name[: len(path.name) - len(ending)] if ending else path.stem


def require_unpackable(names: Sequence[str]) -> None:
    """Refuse archives that this machine cannot unpack, before they are fetched.

    Raises:
        AgriClipError: An archive is compressed with Zstandard and its tool is not installed.
    """
    found = [name for name in names if name.lower().endswith(".tar.zst")]
    if found and shutil.which("zstd") is None:
        raise AgriClipError(
            f"'{found[0]}' is compressed with Zstandard, whose tool `zstd` is not installed; install it, or unpack by "
            "hand with `tar --zstd -xf` and give the folder with --from."
        )


def unpack(
    archive: Path,
    folder: Path,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
    disk_usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage,
) -> Path:
    """Unpack an archive into a new folder.

    Args:
        archive: A zip or a (compressed) tar.
        folder: Is made; one that exists is replaced once the new one is whole.
        limit: Most bytes to write; by default 200 times the archive, at least 1 GiB.
        progress: Told the number of bytes written so far.
        disk_usage: Asked for free bytes, as `shutil.disk_usage` is.

    Returns:
        The folder.

    Raises:
        AgriClipError: It is no archive or damaged, a member would lie outside the folder or is a link, it grows past
            the limit, or the disk is too small.
    """
    limit = limit if limit is not None else max(LEAST_LIMIT, MAX_RATIO * archive.stat().st_size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    try:
        with _opened(archive) as members:
            written, seen = 0, 0
            for member in members:
                seen += 1
                if seen > MAX_MEMBERS:
                    raise AgriClipError(f"'{archive}' holds more than {MAX_MEMBERS:,} files; it is not unpacked.")
                target = _inside(half, member.name, archive)
                if target == half:
                    continue
                if member.folder:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                free = disk_usage(str(half))[2]
                if min(member.size, limit - written) > free:
                    raise AgriClipError(
                        f"Unpacking '{archive}' needs {member.size:,} bytes more, but only {free:,} are free in "
                        f"'{folder.parent}'; make room or choose another folder with --output."
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    raise AgriClipError(f"'{archive}' holds '{member.name}' twice; it is not unpacked.")
                with member.open() as source, target.open("wb") as out:
                    while chunk := source.read(_CHUNK):
                        written += len(chunk)
                        if written > limit:
                            raise AgriClipError(
                                f"'{archive}' ({archive.stat().st_size:,} bytes) unpacks to more than {limit:,} "
                                "bytes, which no data set does; it is not unpacked."
                            )
                        out.write(chunk)
                        if progress is not None:
                            progress(written)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(half, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, RuntimeError) and "password" in str(error):
            raise AgriClipError(
                f"'{archive}' is encrypted; unpack it by hand and give the folder with --from."
            ) from error
        raise AgriClipError(f"'{archive}' cannot be unpacked ({error}); delete it and fetch it again.") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield _zip_members(file, archive)
    elif archive.name.lower().endswith(".tar.zst"):
        require_unpackable([archive.name])
        # Python 3.11 has no Zstandard of its own; its command line tool writes a plain tar into a pipe.
        with subprocess.Popen(["zstd", "-dcq", "--", str(archive)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                    yield _tar_members(tar, archive)
            finally:
                process.kill()
    elif archive.name.lower().endswith(ENDINGS[1:]):
        # A stream ("r|*") reads members in file order once, so a large archive is not scanned twice.
        with tarfile.open(archive, "r|*") as tar:
            yield _tar_members(tar, archive)
    else:
        raise AgriClipError(f"'{archive}' is damaged or no archive (zip or tar); delete it and fetch it again.")


def _zip_members(file: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, info.filename, "is a link or a device")
        # orig_filename keeps what zipfile cuts off or rewrites, so tricks are seen
        name = info.orig_filename

        def open_member(info: zipfile.ZipInfo = info) -> IO[bytes]:
            return file.open(info)

        yield _Member(name, info.file_size, info.is_dir(), open_member)


def _tar_members(tar: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for info in tar:
        if not (info.isreg() or info.isdir()):
            raise _refused(archive, info.name, "is a link or a device")

        def open_member(info: tarfile.TarInfo = info) -> IO[bytes]:
            content = tar.extractfile(info)
            assert content is not None  # a regular file has content
            return content

        yield _Member(info.name, info.size, info.isdir(), open_member)


def _inside(folder: Path, name: str, archive: Path) -> Path:
    """Where a member goes, if that is inside the folder."""
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or _DRIVE.match(name) or ".." in parts:
        raise _refused(archive, name, "would be written outside of its folder")
    return folder.joinpath(*(part for part in parts if part not in ("", ".")))


def _refused(archive: Path, name: str, why: str) -> AgriClipError:
    return AgriClipError(
        f"'{archive}' holds {name!r}, which {why}; it is not unpacked, ask its source for a clean copy."
    )


__all__ = ["ENDINGS", "is_archive", "require_unpackable", "stem_of", "unpack"]
