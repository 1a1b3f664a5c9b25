"""A study's agronomic layers: which climates the rules can be asked about, and with which files."""

import numpy as np
import pytest

from mapping.agronomy.layers import BioclimChange, MonthlyChange
from mapping.agronomy.study_layers import agronomy_inputs, write_study_layers
from mapping.outputs import read_map, write_cog
from processing.errors import AgriClipError
from processing.rasters import Grid
from processing.study import load_study

STUDY = """
name: plains
grid: {bounds: [-95, 36, -90, 40], crs: "EPSG:4326", resolution: 1.0}
predictors:
  - file: bio.tif
    variables:
      - {name: bio10, title: warmest quarter, unit: degC}
      - {name: bio11, title: coldest quarter, unit: degC}
      - {name: bio12, title: annual rain, unit: mm}
  - file: warmth.tif
    variables:
      - {name: january, title: warmth in January, unit: degC, band: 1}
  - file: rain.tif
    variables:
      - {name: rain1, title: rain in January, unit: mm, band: 1}
scenarios:
  - {name: bioclim, delta: {bio.tif: {baseline: bio.tif, future: bio_hot.tif}}}
  - name: months
    delta:
      warmth.tif: {baseline: warmth.tif, future: warmth_hot.tif}
      rain.tif: {baseline: rain.tif, future: rain_same.tif}
  - {name: replaced, replace: {bio.tif: bio_hot.tif}}
agronomy:
  mean_temperature: {file: warmth.tif, unit: degC}
  precipitation: {file: rain.tif, unit: mm}
  bioclim: {file: bio.tif}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plains")
    grid = Grid.from_bounds((-95, 36, -90, 40), 1.0, "EPSG:4326")
    north = np.linspace(0.0, 4.0, grid.height)[::-1, None] * np.ones((1, grid.width))
    months = -12.0 * np.cos(2 * np.pi * (np.arange(12) - 0.5) / 12)[:, None, None] + 12.0 - 1.5 * north
    rain = np.full((12, grid.height, grid.width), 95.0)
    names = ["bio10", "bio11", "bio12"]
    bio = np.stack([months[5:8].mean(axis=0), months[[0, 1, 11]].mean(axis=0), rain.sum(axis=0)])
    for name, values, described in (
        ("bio", bio, names),
        ("bio_hot", bio + np.array([4.0, 4.0, 0.0])[:, None, None], names),
        ("warmth", months, None),
        ("warmth_hot", months + 4.0, None),
        ("rain", rain, None),
        ("rain_same", rain, None),
    ):
        write_cog(folder / f"{name}.tif", values.astype(np.float32), grid, band_names=described)
    (folder / "study.yaml").write_text(STUDY)
    return load_study(folder / "study.yaml")


def test_a_scenario_changes_the_months_by_its_own_or_by_bioclimate(study):
    assert agronomy_inputs(study).change is None
    assert isinstance(agronomy_inputs(study, "bioclim").change, BioclimChange)
    change = agronomy_inputs(study, "months").change
    assert isinstance(change, MonthlyChange)
    assert change.future.mean_temperature.file.endswith("warmth_hot.tif")
    assert change.baseline.precipitation.file.endswith("rain.tif")
    assert agronomy_inputs(study, "replaced") is None


def test_layers_of_all_climates_that_can_be_asked_about(study, tmp_path):
    told = []
    written = write_study_layers(study, tmp_path, progress=told.append)
    assert told == list(written) == ["present", "bioclim", "months"]
    heat = {name: read_map(layers["heat_unit_degree_days"]) for name, layers in written.items()}
    assert (heat["months"] > heat["present"]).all()
    # Four degrees in every month and four in both extreme quarters are the same climate.
    np.testing.assert_allclose(heat["bioclim"], heat["months"], rtol=0.02)


def test_a_study_without_months_says_what_to_add(study):
    bare = study.model_copy(update={"agronomy": None})
    with pytest.raises(AgriClipError, match="no part `agronomy`; add its monthly temperature and rain"):
        agronomy_inputs(bare)
