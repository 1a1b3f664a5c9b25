"""What the tests of this room share: small rasters, the real data when they are there, a virtual landscape."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from processing.virtual_landscape import make_virtual_landscape

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data; the test is skipped when it is absent."""
    folder = Path(os.environ.get("AGRICLIP_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "us_counties" / "double_crop_soybean.csv").is_file():
        pytest.skip(f"the real data are not in {folder}; set AGRICLIP_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Study file of a small virtual landscape; only read it."""
    return make_virtual_landscape(tmp_path_factory.mktemp("landscape"), seed=0, height=24, width=32)


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes an array (C, h, w) as a GeoTIFF and returns its path."""

    def write(
        name: str,
        values: Any,
        *,
        origin: tuple[float, float] = (10.0, 50.0),
        resolution: float = 0.5,
        crs: str | None = "EPSG:4326",
        nodata: float | None = None,
        scales: tuple[float, ...] | None = None,
        offsets: tuple[float, ...] | None = None,
        names: tuple[str, ...] | None = None,
        mask: Any = None,
    ) -> Path:
        array = np.asarray(values)
        path = tmp_path / name
        profile = {
            "driver": "GTiff",
            "dtype": array.dtype.name,
            "count": array.shape[0],
            "height": array.shape[1],
            "width": array.shape[2],
            "crs": crs,
            "transform": Affine(resolution, 0.0, origin[0], 0.0, -resolution, origin[1]),
            "nodata": nodata,
        }
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as raster:
            raster.write(array)
            if scales:
                raster.scales = scales
            if offsets:
                raster.offsets = offsets
            if names:
                raster.descriptions = names
            if mask is not None:
                raster.write_mask(mask)
        return path

    return write
