"""Downloads that survive a bad line: resumed where they broke, verified before they count, whole or not there.

Three choices. A part is resumed only if the server says it is still the same file (`If-Range` with the ETag or the
date of the first answer). A file without a published checksum is trusted once: its SHA-256 goes into a lock file, and
a later download that differs is refused. And only what may pass is tried again: a server's 404 is told at once, a
broken line after a pause that doubles.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import AgriClipError
from ..whole_files import write_whole
from .registry import RemoteFile

LOCK = "agriclip-data.json"
_CHUNK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)

Progress = Callable[[str, int, int | None], None]  # name of the file, bytes so far, bytes in all if known


@dataclass(frozen=True)
class Fetched:
    """One file that is there and was checked.

    Attributes:
        path: The file.
        url: Where it came from, None for a local one.
        size: Bytes.
        sha256: Its digest.
        verified: Against what it was checked: `sha256`, `md5`, `size`, `lock` or `first download`.
        resumed: Bytes that an earlier, broken download had left.
    """

    path: Path
    url: str | None
    size: int
    sha256: str
    verified: str
    resumed: int = 0


@dataclass
class Lock:
    """The file beside the data that remembers what was fetched, from where, and its digests.

    Attributes:
        path: The lock file.
        content: What it says; `files` maps the path relative to the folder to url, size, sha256, verified, obtained.
    """

    path: Path
    content: dict[str, Any] = field(default_factory=lambda: {"files": {}})

    @classmethod
    def of(cls, folder: Path) -> Lock:
        """Read the lock of a folder, empty where there is none.

        Raises:
            AgriClipError: It is no lock file.
        """
        path = folder / LOCK
        if not path.is_file():
            return cls(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content["files"], dict):
                raise ValueError("`files` is no mapping")
        except (ValueError, KeyError, TypeError) as error:
            raise AgriClipError(f"'{path}' is damaged ({error}); delete it and get the data again.") from error
        return cls(path, content)

    @property
    def folder(self) -> Path:
        """The folder that it describes."""
        return self.path.parent

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """What is known of each file."""
        files: dict[str, dict[str, Any]] = self.content["files"]
        return files

    def record(self, *many: Fetched) -> None:
        """Remember files and write the lock."""
        for fetched in many:
            self._remember(fetched)
        self.write()

    def _remember(self, fetched: Fetched) -> None:
        key = fetched.path.relative_to(self.folder).as_posix()
        kept = self.files.get(key, {})
        same = kept.get("sha256") == fetched.sha256
        self.files[key] = {
            "url": fetched.url or kept.get("url"),
            "size": fetched.size,
            "sha256": fetched.sha256,
            "verified": kept["verified"] if same and fetched.verified == "lock" else fetched.verified,
            "obtained": kept["obtained"] if same else datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def write(self) -> None:
        """Write the lock."""
        write_whole(self.path, json.dumps(self.content, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def fetch(
    file: RemoteFile,
    folder: Path,
    lock: Lock,
    *,
    attempts: int = 6,
    pause: float = 1.0,
    timeout: float = 60.0,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
    disk_usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage,
) -> Fetched:
    """Download one file, or check the one that is there.

    Args:
        file: What to fetch.
        folder: Folder of downloads, inside the folder of the lock.
        lock: Knows the digests of earlier downloads; is written.
        attempts: How often a broken line is tried again without a byte of progress.
        pause: Seconds before the second attempt; doubles with each.
        timeout: Seconds without an answer that count as broken.
        progress: Told of the bytes so far.
        sleep: Called to pause.
        disk_usage: Asked for free bytes, as `shutil.disk_usage` is.

    Raises:
        AgriClipError: It has no address, the server refuses it, the line stays broken, the disk is too small, or what
            came is not what was expected.
    """
    if file.url is None:
        raise AgriClipError(f"'{file.path}' has no address; fetch it by hand and give its folder with --from.")
    target = folder / file.path
    if target.is_file():
        fetched = verify(file, target, lock)
        lock.record(fetched)
        return fetched
    target.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(file, target, timeout, progress, disk_usage)
    resumed = transfer.have
    failures = 0
    while True:
        before = transfer.have
        try:
            transfer.run()
            break
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise _http_error(file, error) from error
            reason, wait = f"HTTP {error.code}", _retry_after(error)
        except _BROKEN as error:
            reason, wait = _reason(error), 0.0
        failures = 0 if transfer.have > before else failures + 1
        if failures >= attempts:
            raise AgriClipError(
                f"'{file.url}' could not be fetched after {attempts} attempts ({reason}); what came is kept, so the "
                "same command goes on from there later."
            )
        sleep(max(wait, min(60.0, pause * 2.0 ** max(0, failures - 1))))
    try:
        fetched = verify(file, transfer.part, lock, target=target, resumed=resumed)
    except AgriClipError:
        transfer.discard()
        raise
    os.replace(transfer.part, target)
    transfer.discard()
    lock.record(fetched)
    return fetched


def verify(file: RemoteFile, path: Path, lock: Lock, *, target: Path | None = None, resumed: int = 0) -> Fetched:
    """Check a file against all that is known of it.

    Args:
        file: What it should be.
        path: Where it lies.
        lock: Knows the digest of an earlier download.
        target: Where it will lie; `path` by default.
        resumed: Bytes that were there before this download.

    Raises:
        AgriClipError: Size or checksum is another one, or it is not what was first downloaded.
    """
    target = target or path
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise _differs(file, target, f"has {size:,} bytes instead of {file.size:,}")
    sha256, md5 = digests(path)
    if file.sha256 is not None and sha256 != file.sha256:
        raise _differs(file, target, f"has the SHA-256 {sha256} instead of {file.sha256}")
    if file.md5 is not None and md5 != file.md5:
        raise _differs(file, target, f"has the MD5 {md5} instead of {file.md5}")
    inside = target.is_relative_to(lock.folder)
    known = lock.files.get(target.relative_to(lock.folder).as_posix()) if inside else None
    if known is not None and known["sha256"] != sha256:
        raise AgriClipError(
            f"'{target}' (SHA-256 {sha256}) is not the file that was first downloaded on {known['obtained'][:10]} "
            f"(SHA-256 {known['sha256']}); if the source has published a new one, delete the line in '{lock.path}'."
        )
    published = "sha256" if file.sha256 else "md5" if file.md5 else None
    verified = published or ("lock" if known else "size" if file.size else "first download")
    return Fetched(target, file.url, size, sha256, verified, resumed)


def digests(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the MD5 of a file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def require_space(
    folder: Path, needed: int, what: str, disk_usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage
) -> None:
    """Refuse what would fill the disk.

    Raises:
        AgriClipError: There is less room than is needed.
    """
    free = disk_usage(str(folder))[2]
    if needed > free:
        raise AgriClipError(
            f"{what} needs {needed:,} bytes, but only {free:,} are free in '{folder}'; make room or choose another "
            "folder with --output."
        )


class _Transfer:
    """One download: the part that is there, what the server said of it, and how to go on."""

    def __init__(
        self,
        file: RemoteFile,
        target: Path,
        timeout: float,
        progress: Progress | None,
        disk_usage: Callable[[str], tuple[int, int, int]],
    ) -> None:
        self.file = file
        self.part = target.with_name(target.name + ".part")
        self.about = target.with_name(target.name + ".part.json")
        self.timeout = timeout
        self.progress = progress
        self.disk_usage = disk_usage
        self.validator = self._known_validator()

    @property
    def have(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        """Ask for what is missing and write it.

        Raises:
            ConnectionError: The line broke before the end.
            AgriClipError: The server offers another file than the registry says, or the disk is too small.
        """
        start = self.have if self.validator else 0
        request = urllib.request.Request(
            str(self.file.url), headers={"User-Agent": "agriclip", "Accept-Encoding": "identity"}
        )
        if start and self.validator:
            request.add_header("Range", f"bytes={start}-")
            request.add_header("If-Range", self.validator)
        try:
            answer = urllib.request.urlopen(request, timeout=self.timeout)  # noqa: S310 - the registry holds http(s) only
        except urllib.error.HTTPError as error:
            if error.code == 416 and start:  # the part is whole already, or no part of this file: begin anew
                self.discard()
                raise ConnectionError("the server does not know the rest of the file") from error
            raise
        with answer:
            total, start = _extent(answer, start)
            if self.file.size is not None and total is not None and total != self.file.size:
                self.discard()
                raise AgriClipError(
                    f"'{self.file.url}' offers {total:,} bytes, but the registry says {self.file.size:,}; the source "
                    "has changed, so check its page before using it."
                )
            if total is not None:
                what = f"Downloading '{self.file.path}'"
                require_space(self.part.parent, total - start, what, self.disk_usage)
            self._remember(answer, total)
            self._write(answer, start, total)

    def discard(self) -> None:
        """Forget the part."""
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)
        self.validator = None

    def _write(self, answer: Any, start: int, total: int | None) -> None:
        done = start
        with self.part.open("ab" if start else "wb") as out:
            while True:
                # read1 gives what has come, so a broken line loses nothing
                chunk = answer.read1(_CHUNK)
                if not chunk:
                    break
                out.write(chunk)
                done += len(chunk)
                if self.progress is not None:
                    self.progress(self.file.path, done, total)
            out.flush()
            os.fsync(out.fileno())
        if total is not None and done < total:
            raise ConnectionError(f"the line broke at {done:,} of {total:,} bytes")

    def _known_validator(self) -> str | None:
        """What the server said of the part, if the part is of this address."""
        try:
            about = json.loads(self.about.read_text(encoding="utf-8"))
            return about["validator"] if about["url"] == self.file.url and self.part.exists() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, answer: Any, total: int | None) -> None:
        etag = answer.headers.get("ETag")
        strong = etag if etag and not etag.startswith("W/") else None
        self.validator = strong or answer.headers.get("Last-Modified")
        write_whole(self.about, json.dumps({"url": self.file.url, "validator": self.validator, "total": total}))


def _extent(answer: Any, asked: int) -> tuple[int | None, int]:
    """Bytes in all and where the answer begins."""
    length = answer.headers.get("Content-Length")
    if answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != asked:
            raise http.client.HTTPException(f"the server sent another part than asked ({match and match[0]})")
        return (None if match[3] == "*" else int(match[3])), asked
    return (int(length) if length is not None else None), 0


def _retry_after(error: urllib.error.HTTPError) -> float:
    wait = error.headers.get("Retry-After", "") if error.headers else ""
    return min(300.0, float(wait)) if wait.strip().isdigit() else 0.0


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def _http_error(file: RemoteFile, error: urllib.error.HTTPError) -> AgriClipError:
    advice = {
        401: "it asks for a login: fetch it by hand and give its folder with --from",
        403: "it refuses access: fetch it by hand and give its folder with --from",
        404: "it is no longer there: look at the source's page and give a local folder with --from",
        410: "it was taken away: look at the source's page and give a local folder with --from",
    }.get(error.code, "fetch it by hand and give its folder with --from")
    return AgriClipError(f"'{file.url}' answers HTTP {error.code} ({error.reason}); {advice}.")


def _differs(file: RemoteFile, path: Path, how: str) -> AgriClipError:
    return AgriClipError(f"'{path}' {how}; it is damaged or another file than '{file.path}', so get it anew.")


__all__ = ["LOCK", "Fetched", "Lock", "Progress", "digests", "fetch", "require_space", "verify"]
