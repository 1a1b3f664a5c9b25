"""What decides the result of long work, written down so that half-done work of another plan is never gone on with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def fingerprint_code(*parts: str) -> str:
    """Fingerprint of files and folders of this project's code, e.g. `mapping/tiling.py`: it belongs into a plan."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for part in sorted(parts):
        for path in sorted((root / part).rglob("*.py")) if (root / part).is_dir() else [root / part]:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Names of the entries in which two plans differ, with both values where they are short."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        return [text for key in keys for text in differences(before.get(key), now.get(key), f"{where}{key} ")]
    if before == now:
        return []
    values = f"({before} then, {now} now)"
    return [f"{where.strip()} {values}" if len(values) < 80 else where.strip()]


__all__ = ["differences", "fingerprint_code"]
