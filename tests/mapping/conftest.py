"""Shared by the tests of maps: a toy study, made once, and a small grid."""

import pytest
from affine import Affine

from processing.rasters import Grid
from tests.mapping.toy_study import build_study


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    return build_study(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def cells():
    """A grid of 6 x 8 cells of one degree."""
    return Grid("EPSG:4326", Affine(1.0, 0.0, -100.0, 0.0, -1.0, 40.0), 8, 6)
