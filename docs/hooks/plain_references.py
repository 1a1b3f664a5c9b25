"""Docstrings name other objects in the notations of Sphinx and of transformers; pages show the name alone."""

from __future__ import annotations

import re
from typing import Any

_SPHINX = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")
_TRANSFORMERS = re.compile(r"\[(<code>[^<]*</code>)\](?!\()")


def on_page_content(html: str, **_: Any) -> str:
    """Take the marks off the names in a finished page."""
    return _TRANSFORMERS.sub(r"\1", _SPHINX.sub("", html))
