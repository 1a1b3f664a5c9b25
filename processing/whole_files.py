"""Files that are there whole or not at all: written under a temporary name, and renamed once they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def finished(path: str | Path) -> Iterator[Path]:
    """A temporary name of the same ending, renamed to `path` once the block has ended without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> Path:
    """Write a text; returns the path."""
    with finished(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


__all__ = ["finished", "write_whole"]
