"""The book builds without a warning and without the network, and holds what its pages name."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT

NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python")
_LOADED = re.compile(
    r'<(?:script|img|iframe)[^>]+src="?(https?:[^"> ]+)|<link[^>]+rel="?(?:stylesheet|preconnect)[^>]*(https?:[^"> ]+)'
)


def _missing() -> list[str]:
    absent = []
    for name in NEEDED:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            absent.append(name)
    return absent


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if absent := _missing():
        pytest.skip(f"the book needs {', '.join(absent)}: pip install mkdocs-material 'mkdocstrings[python]'")
    site = tmp_path_factory.mktemp("book")
    # A proxy that leads nowhere: what asks for the network fails.
    away = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env=os.environ | away | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    told = [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" in line or "ERROR" in line]
    assert done.returncode == 0 and not told, "\n".join(told) or done.stderr
    return site


def test_every_page_is_built(book):
    for page in DOCS.rglob("*.md"):
        assert (book / page.relative_to(DOCS)).with_suffix(".html").is_file(), page


def test_every_named_object_has_its_docstring(book):
    for page in (DOCS / "api").glob("*.md"):
        html = (book / "api" / page.with_suffix(".html").name).read_text(encoding="utf-8")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M):
            assert f'id="{name}"' in html, f"{page.name}: {name}"


def test_no_notation_of_docstrings_is_left(book):
    for page in (book / "api").glob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r":(?:func|data|class|meth|attr):", html), page.name
        assert not re.search(r"\[<code>[^<]*</code>\]", html), page.name


def test_pages_load_nothing_from_elsewhere(book):
    for page in book.rglob("*.html"):
        assert _LOADED.findall(page.read_text(encoding="utf-8")) == [], page
