"""The fenced blocks of README.md and of the book, in the order in which a reader meets them.

A comment above a block says what a test does with it: `<!-- runs -->` runs it in the workspace of its page, and
`<!-- file: NAME -->` writes it there. A block without a comment is read only: commands against the command line,
Python by the compiler, study keys by their types.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
_COMMENT = re.compile(r"<!--\s*(runs|file:\s*(?P<file>\S+))\s*-->")
_FENCE = re.compile(r"^(?P<indent>\s*)(?P<mark>`{3,})(?P<language>\w*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language and text, and what is to be done with it."""

    page: Path
    line: int
    language: str
    text: str
    runs: bool = False
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README.md and every page of the book."""
    return [README, *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    place = 0
    comment: re.Match[str] | None = None
    while place < len(lines):
        opened = _FENCE.match(lines[place])
        if not opened:
            comment = _COMMENT.fullmatch(lines[place].strip()) or (comment if not lines[place].strip() else None)
            place += 1
            continue
        end = next((n for n in range(place + 1, len(lines)) if lines[n].strip() == opened["mark"]), None)
        assert end is not None, f"{page}:{place + 1}: the block is not closed"
        indent = len(opened["indent"])
        text = "\n".join(line[indent:] for line in lines[place + 1 : end]) + "\n"
        found.append(
            Block(
                page,
                place + 1,
                opened["language"],
                text,
                runs=comment is not None and comment["file"] is None,
                file=None if comment is None else comment["file"],
            )
        )
        place, comment = end + 1, None
    return found


def all_blocks(*languages: str) -> list[Block]:
    """Blocks of some languages on all pages."""
    return [block for page in pages() for block in blocks(page) if block.language in languages]
