import numpy as np
import pytest

from tests.processing.captions.toy_tile import spectra_of, toy_mask


@pytest.fixture
def mask() -> np.ndarray:
    return toy_mask()


@pytest.fixture
def pixels(mask: np.ndarray) -> np.ndarray:
    return spectra_of(mask)
