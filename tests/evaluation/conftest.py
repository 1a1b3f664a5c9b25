"""The toy study of the map tests, for the tests of scores."""

import pytest

from tests.mapping.toy_study import build_study


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    return build_study(tmp_path_factory.mktemp("toy"))
