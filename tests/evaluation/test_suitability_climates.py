"""Other climate models: names are read, pairs found or named as missing, and figures are those of the maps."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from affine import Affine

from evaluation.suitability.climate_files import find_scenarios, read_climate_name
from evaluation.suitability.climate_models import ClimateRow, pathway_orders, southern_change
from mapping.outputs import write_cog
from processing.errors import AgriClipError
from processing.rasters import Grid


@pytest.mark.parametrize(
    ("name", "model", "pathway", "period"),
    [
        ("bioclim_gfdl-esm4_ssp126_2050.tif", "gfdl-esm4", "ssp126", 2050),
        ("bioclim_ukesm1-0-ll_historical_2000.tif", "ukesm1-0-ll", "historical", 2000),
        ("bioclim_MRI-ESM2-0_SSP5-8.5_2041-2060.tif", "MRI-ESM2-0", "ssp585", "2041-2060"),
        ("bioclim_CanESM5_r1i1p1f1_ssp370_2081_2100_05deg.tif", "CanESM5", "ssp370", "2081-2100"),
        ("bioclim_ssp245_2050.tif", "", "ssp245", 2050),
        ("bioclim_gswp3-w5e5_obsclim_2000.tif", "gswp3-w5e5_obsclim", None, 2000),
    ],
)
def test_names_of_rasters(name, model, pathway, period):
    found = read_climate_name(name, ["bioclim"])
    assert (found.climate_model, found.pathway, found.period) == (model, pathway, period)


@pytest.fixture
def cells():
    """A grid of 6 x 8 cells of one degree."""
    return Grid("EPSG:4326", Affine(1.0, 0.0, -100.0, 0.0, -1.0, 40.0), 8, 6)


@pytest.fixture
def folder(toy, tmp_path):
    climates = ("historical_1990", "historical_2010", "ssp126_2050", "ssp585_2050")
    shape = (toy.grid.height, toy.grid.width)
    for name in (*(f"toy_a-esm_{c}" for c in climates), "toy_lonely_ssp585_2050", "toy_2050"):
        layers = np.stack([np.full(shape, 15.0), np.full(shape, 1000.0)])
        write_cog(tmp_path / f"{name}.tif", layers, toy.grid, band_names=["warmth", "rain"])
    write_cog(tmp_path / "toy_b_ssp585_2050.tif", np.ones(shape), toy.grid, band_names=["other"])
    return tmp_path


def test_pairs_are_made_as_the_study_makes_its_own(toy, folder):
    without = toy.study.model_copy(update={"scenarios": ()})
    found = find_scenarios(without, folder)
    assert [(s.climate_model, s.ssp, s.period) for s in found.scenarios] == [
        ("toy_a-esm", "ssp126", 2050),
        ("toy_a-esm", "ssp585", 2050),
    ]
    delta = found.scenarios[0].delta["climate.tif"]
    # The study's raster names no year, so the latest historical run is taken.
    assert delta.baseline.endswith("toy_a-esm_historical_2010.tif") and delta.future.endswith("ssp126_2050.tif")
    told = " ".join(found.left_out)
    assert "toy_lonely" in told and "no historical file" in told
    assert "toy_b_ssp585_2050.tif: " in told and "toy_2050.tif: its name tells no" in told

    replaced = find_scenarios(toy.study, folder)  # the toy study's own scenarios replace the file
    assert {s.climate_model for s in replaced.scenarios} == {"toy_a-esm", "toy_lonely"}
    assert all(s.replace and not s.delta for s in replaced.scenarios)


def test_a_folder_without_climates_is_refused(toy, tmp_path):
    with pytest.raises(AgriClipError, match="There is no folder"):
        find_scenarios(toy.study, tmp_path / "nowhere")
    with pytest.raises(AgriClipError, match="No raster"):
        find_scenarios(toy.study, tmp_path)


def test_southern_change_is_that_of_the_cells(cells, tmp_path):
    rng = np.random.default_rng(0)
    now, then, mess = rng.uniform(0, 1, (3, cells.height, cells.width))
    now[0, 0] = np.nan
    far = rng.integers(1, 3, (cells.height, cells.width))
    layers = {"probability": then, "mess": mess - 0.5, "applicability": far.astype(float)}
    paths = {name: write_cog(tmp_path / f"{name}.tif", values, cells) for name, values in layers.items()}
    present = write_cog(tmp_path / "now.tif", now, cells)
    found = southern_change(present, paths, 0.5, 37.0)
    area, known = cells.cell_areas_ha(slice(0, cells.height)), np.isfinite(now)
    south = known & (cells.cell_centres()[1] < 37.0)
    becomes, strange = (now < 0.5) & (then >= 0.5), mess < 0.5
    assert found["south_becomes"] == pytest.approx(area[south & becomes].sum() / area[south].sum())
    assert found["south_loses"] == pytest.approx(area[south & (now >= 0.5) & (then < 0.5)].sum() / area[south].sum())
    assert found["novel_share"] == pytest.approx(area[known & strange].sum() / area[known].sum())
    assert found["outside_share"] == pytest.approx(area[known & (far == 2)].sum() / area[known].sum())
    gain = known & becomes
    expected = area[gain & (strange | (far == 2))].sum() / area[gain].sum()
    assert found["gain_novel_share"] == pytest.approx(expected)
    assert southern_change(present, paths, 0.5, None)["south_becomes"] is None


def test_pathways_are_ordered_by_forcing():
    empty = dict.fromkeys(ClimateRow.__dataclass_fields__)
    row = ClimateRow(**{**empty, "climate_model": "a", "period": "2080", "with_image": True, "pathway": "ssp585"})
    row = replace(row, future_latitude=40.0)
    rows = [
        row,
        replace(row, pathway="ssp126", future_latitude=38.0),
        replace(row, pathway="ssp370", future_latitude=39.0),
    ]
    (order,) = pathway_orders(rows)
    assert list(order.latitudes.items()) == [("ssp126", 38.0), ("ssp370", 39.0), ("ssp585", 40.0)] and order.ordered
    (order,) = pathway_orders([*rows[:2], replace(rows[2], future_latitude=40.5)])
    assert order.ordered is False
    (order,) = pathway_orders([*rows[:2], replace(rows[2], future_latitude=None)])
    assert order.ordered is None
    assert pathway_orders(rows[:1])[0].ordered is None
    # South of the equator away from it is south.
    (order,) = pathway_orders([replace(r, future_latitude=-r.future_latitude) for r in rows])
    assert order.ordered
    assert SimpleNamespace(**order.latitudes).ssp585 == 40.0
