"""Every link and every picture on README.md, in the book and in the notebooks leads somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, blocks, pages

_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


def prose(page: Path) -> str:
    """A page without its code."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        text = text.replace(block.text, "\n")
    return text


def anchors(page: Path) -> set[str]:
    """Ids of the headings of a page, as Markdown gives them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6}\s+(.+)$", prose(page), re.M):
        plain = re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()
        found.add(re.sub(r"[\s-]+", "-", plain))
    return found


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    wrong = []
    for target in _LINK.findall(_CODE.sub("", prose(page))):
        if re.match(r"[a-z]+:", target):
            if not re.match(r"https?://[\w.-]+\.[a-z]+", target):
                wrong.append(target)
            continue
        file, _, anchor = target.partition("#")
        place = page if not file else (page.parent / file).resolve()
        if not place.exists() or not place.is_relative_to(ROOT):
            wrong.append(target)
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", [*pages(), *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    assert broken(page) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    good, bad = "[a](page.md) [b](#one-head) `[f](x.md)`", "[c](none.md) ![d](none.png) [e](#two) [g](ftp:x)"
    page.write_text(f"# One head\n{good} {bad}\n")
    assert broken(page)[-4:] == ["none.md", "none.png", "#two", "ftp:x"]


def test_every_picture_and_page_is_used():
    text = "".join(prose(page) for page in pages())
    unused = [path.name for path in DOCS.rglob("*.png") if path.name not in text]
    assert unused == []
