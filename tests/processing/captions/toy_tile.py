"""A tile whose facts can be counted by hand: quarters of fields, a lake, a wood, and spectra that fit them."""

from __future__ import annotations

import numpy as np

CODES = {5: "soybean", 1: "corn", 23: "spring wheat", 111: "water", 141: "forest", 3: "rice"}
BANDS = ("blue", "green", "red", "nir", "swir1")
# blue, green, red, nir, swir1 of each code
SPECTRA = {
    5: (0.03, 0.06, 0.04, 0.40, 0.20),
    1: (0.03, 0.05, 0.04, 0.36, 0.18),
    23: (0.08, 0.12, 0.16, 0.28, 0.36),
    111: (0.05, 0.05, 0.03, 0.02, 0.01),
    141: (0.02, 0.04, 0.03, 0.30, 0.12),
    24: (0.08, 0.12, 0.16, 0.28, 0.36),
    0: (0.1, 0.1, 0.1, 0.1, 0.1),
}


def toy_mask() -> np.ndarray:
    """40 x 40: wheat with a pond and a wood in the north, soybean in the south-west, corn in the south-east."""
    mask = np.full((40, 40), 23, dtype=np.uint8)
    mask[20:, :20] = 5
    mask[20:, 20:] = 1
    mask[4:10, 4:12] = 111
    mask[2:12, 30:34] = 141
    return mask


def spectra_of(mask: np.ndarray) -> np.ndarray:
    pixels = np.zeros((len(BANDS), *mask.shape))
    for code, spectrum in SPECTRA.items():
        pixels[:, mask == code] = np.array(spectrum)[:, None]
    return pixels
