"""Import the downloaded test files of transformers beside this project's own folder `tests`."""

import importlib
import sys
import types
from typing import Any

import pytest
from fetch_peer_tests import PeerTestsUnavailable, ensure_peer_tests


def import_peer(name: str) -> Any:
    """Import `tests.<name>` of the installed transformers; skip the importing test module if it cannot be had."""
    try:
        root = ensure_peer_tests()
    except PeerTestsUnavailable as error:
        pytest.skip(f"transformers' common tests are not here and cannot be fetched: {error}", allow_module_level=True)
    # The files import each other as `tests.<name>`, a name that belongs to this project's tests as well: both folders
    # become places of one package.
    package = sys.modules.setdefault("tests", types.ModuleType("tests"))
    places = list(getattr(package, "__path__", []))
    if str(root / "tests") not in places:
        package.__path__ = [*places, str(root / "tests")]
    return importlib.import_module(f"tests.{name}")
