"""A folder for each visitor, which nobody else is told of, and which goes when the visitor does or when it is old.

Two choices define this file. The folder's name is random and lies in the session's own state, never in a page. And
what is removed does not depend on a visitor closing the page: every new session also sweeps what is older than an
hour.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
import uuid
from pathlib import Path

__all__ = ["OLDEST", "Session", "remove_old", "root_folder", "safe_name"]

#: Seconds after which a visitor's files are removed in any case.
OLDEST = 3600
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def root_folder() -> Path:
    """Folder that holds the folders of all visitors."""
    folder = Path(tempfile.gettempdir()) / "agriclip-space"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class Session:
    """A visitor's folder; it is made when it is first asked for.

    Attributes:
        name: Random name.
    """

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex

    def __deepcopy__(self, memo: object) -> Session:
        # gr.State copies its initial value for every visitor: a copy is another visitor.
        return Session()

    @property
    def folder(self) -> Path:
        """The folder, made with permissions for its owner only."""
        folder = root_folder() / self.name
        if not folder.is_dir():
            remove_old()
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def fresh(self, purpose: str) -> Path:
        """An empty folder for one piece of work; the one before it is removed."""
        folder = self.folder / safe_name(purpose)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(root_folder() / self.name, ignore_errors=True)


def remove_old(age: float = OLDEST, now: float | None = None) -> int:
    """Remove folders of visitors that nothing was written to for `age` seconds; returns how many."""
    moment, removed = time.time() if now is None else now, 0
    for folder in root_folder().iterdir():
        try:
            last = max((path.stat().st_mtime for path in [folder, *folder.rglob("*")]), default=moment)
        except OSError:
            continue  # another thread removes it
        if moment - last > age:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def safe_name(name: str) -> str:
    """A file name without folders, control characters or leading dots, at most 80 characters."""
    last = str(name).replace("\\", "/").rsplit("/", 1)[-1]
    plain = _NAME.sub("_", last).strip("._-")
    stem, dot, ending = plain.rpartition(".")
    if not dot:
        return plain[:80] or "file"
    return f"{stem[: 80 - len(ending) - 1] or 'file'}.{ending}" if len(ending) <= 8 else plain[:80]
