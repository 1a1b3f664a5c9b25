"""Groups of climate models: the law of total variance, agreement, nodata and names, against work by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine

from mapping.change import CHANGE_CLASSES, change_classes
from mapping.outputs import read_map, write_cog
from mapping.scenario_ensemble import (
    change_agreement,
    combine_scenarios,
    common_grid,
    most_frequent_change,
    pathway_title,
    scenario_groups,
    split_variance,
    total_variance,
)
from processing.errors import AgriClipError
from processing.rasters import Grid

G, K = 3, 5
MODELS = ("GFDL-ESM4", "IPSL-CM6A-LR", "MPI-ESM1-2-HR")


def scenario(name, ssp="ssp585", period=2080, climate_model=None):
    return SimpleNamespace(name=name, title=None, ssp=ssp, period=period, climate_model=climate_model)


def study_of(*scenarios, suitable_above=0.5):
    return SimpleNamespace(scenarios=scenarios, map=SimpleNamespace(suitable_above=suitable_above))


@pytest.fixture
def ensemble(tmp_path, cells):
    """Answers (G, K, h, w) of five members under three climates, mapped as prediction maps them."""
    rng = np.random.default_rng(3)
    answers = rng.uniform(0, 1, (G, K, cells.height, cells.width))
    mess = rng.uniform(-50, 50, (G, cells.height, cells.width)).astype(np.float32)
    present = rng.uniform(0, 1, cells.shape).astype(np.float32)
    answers[0, :, 0, 0] = np.nan  # no data under one climate only
    mess[1, 0, 1] = np.nan  # no score under another
    present[0, 2] = np.nan
    maps = {"present": {"probability": write_cog(tmp_path / "present_probability.tif", present, cells)}}
    tags = {"members": K, "model_sha256": "abc", "study": "toy", "long_name": "probability of suitability"}
    for g, model in enumerate(MODELS):
        name = f"s_{model}"
        layers = {"probability": answers[g].mean(axis=0), "std": answers[g].std(axis=0, ddof=1), "mess": mess[g]}
        maps[name] = {
            layer: write_cog(tmp_path / f"{name}_{layer}.tif", values, cells, tags=tags)
            for layer, values in layers.items()
        }
    study = study_of(*(scenario(f"s_{model}", climate_model=model) for model in MODELS))
    return SimpleNamespace(study=study, maps=maps, answers=answers, mess=mess, present=present, folder=tmp_path)


def test_law_of_total_variance_is_exact():
    answers = np.random.default_rng(0).beta(0.4, 0.7, (4, 5, 1000))
    parts = total_variance(answers)
    every = answers.reshape(20, 1000)
    np.testing.assert_allclose(parts.mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(parts.total, every.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        parts.within, [np.mean([np.var(answers[g, :, i]) for g in range(4)]) for i in range(1000)]
    )
    np.testing.assert_allclose(parts.between, np.var(answers.mean(axis=1), axis=0))
    assert np.all(parts.within > 0) and np.all(parts.between > 0)


def test_each_part_vanishes_when_nothing_differs_there():
    same_members = np.broadcast_to(np.array([0.1, 0.5, 0.9])[:, None, None], (3, 5, 1))
    same_climates = np.broadcast_to(np.array([0.1, 0.5, 0.9])[None, :, None], (4, 3, 1))
    assert total_variance(same_members).within == pytest.approx(0, abs=1e-15)
    assert total_variance(same_climates).between == pytest.approx(0, abs=1e-15)
    assert total_variance(same_members).between == pytest.approx(0.32 / 3)


def test_bad_tables_are_refused():
    with pytest.raises(AgriClipError, match="shape"):
        total_variance(np.zeros(3))
    with pytest.raises(AgriClipError, match="variances"):
        split_variance(np.zeros((2, 3)), np.zeros((3, 2)))


def test_maps_hold_the_variance_over_all_answers(ensemble):
    made = combine_scenarios(ensemble.study, ensemble.maps, ensemble.folder / "out")
    assert set(made) == {"ssp585_2080"}
    layers = {layer: read_map(path) for layer, path in made["ssp585_2080"].items()}
    known = np.isfinite(ensemble.answers).all(axis=(0, 1)) & np.isfinite(ensemble.mess).all(axis=0)
    every = ensemble.answers.reshape(G * K, *known.shape)
    assert known.sum() == known.size - 2
    np.testing.assert_allclose(layers["probability"][known], every.mean(axis=0)[known], rtol=1e-6)
    np.testing.assert_allclose(layers["std_total"][known], every.std(axis=0)[known], rtol=1e-5)
    squares = layers["std_model"].astype(float) ** 2 + layers["std_climate"].astype(float) ** 2
    np.testing.assert_allclose(layers["std_total"][known] ** 2, squares[known], rtol=1e-6)
    means = ensemble.answers.mean(axis=1)
    np.testing.assert_allclose(layers["std_climate"][known], means.std(axis=0)[known], rtol=1e-5)
    np.testing.assert_allclose(layers["agreement"][known], (means >= 0.5).mean(axis=0)[known], rtol=1e-6)
    np.testing.assert_array_equal(layers["novel_models"][known], (ensemble.mess < 0).sum(axis=0)[known])
    assert {3.0, 0.0} <= set(np.unique(layers["novel_models"][known]))


def test_a_cell_without_data_in_any_input_has_none_in_any_layer(ensemble):
    made = combine_scenarios(ensemble.study, ensemble.maps, ensemble.folder / "out")["ssp585_2080"]
    assert list(made) == ["probability", "std_model", "std_climate", "std_total", "agreement", "novel_models"]
    for layer, path in made.items():
        missing = np.argwhere(np.isnan(read_map(path))).tolist()
        assert missing == [[0, 0], [0, 1]], layer


def test_bands_of_rows_give_the_same_maps(ensemble, monkeypatch):
    whole = combine_scenarios(ensemble.study, ensemble.maps, ensemble.folder / "whole")["ssp585_2080"]
    monkeypatch.setattr("mapping.scenario_ensemble._CELLS", 1)
    by_row = combine_scenarios(ensemble.study, ensemble.maps, ensemble.folder / "rows")["ssp585_2080"]
    for layer, path in whole.items():
        np.testing.assert_array_equal(read_map(path), read_map(by_row[layer]))


def test_threshold_is_met_by_the_value_itself(tmp_path, cells):
    study = study_of(scenario("a", climate_model="A"), scenario("b", climate_model="B"), suitable_above=0.7)
    maps = {
        name: {"probability": write_cog(tmp_path / f"{name}.tif", np.full(cells.shape, value, np.float32), cells)}
        for name, value in (("a", 0.7), ("b", 0.69999))
    }
    made = combine_scenarios(study, maps, tmp_path)["ssp585_2080"]
    assert set(made) == {"probability", "std_climate", "agreement"}
    assert np.all(read_map(made["agreement"]) == 0.5)
    assert np.all(read_map(combine_scenarios(study, maps, tmp_path, 0.6999)["ssp585_2080"]["agreement"]) == 1.0)


def test_tags_say_what_the_map_is(ensemble):
    made = combine_scenarios(ensemble.study, ensemble.maps, ensemble.folder / "out")["ssp585_2080"]
    with rasterio.open(made["std_model"]) as dataset:
        tags = dataset.tags()
        assert dataset.descriptions == ("std_model",) and dataset.units == ("1",)
    assert json.loads(tags["climate_models"]) == list(MODELS)
    assert (tags["scenario"], tags["ssp"], tags["period"], tags["units"]) == ("ssp585_2080", "ssp585", "2080", "1")
    assert tags["model_sha256"] == "abc" and tags["members"] == str(K) and "population" in tags["variance"]
    assert tags["title"] == "SSP5-8.5, 2080, mean of 3 climate models"
    with rasterio.open(made["novel_models"]) as dataset:
        assert dataset.dtypes == ("uint8",) and dataset.nodata == 255
    with rasterio.open(made["agreement"]) as dataset:
        assert float(dataset.tags()["threshold"]) == 0.5


def test_groups_are_named_by_pathway_and_period():
    study = study_of(
        scenario("a", climate_model="A"),
        scenario("b", "SSP585", "2080", "B"),
        scenario("c", "SSP2-4.5", "2071 to 2100", "A"),
        scenario("d", "SSP2-4.5", "2071 to 2100", "B"),
        scenario("alone", "ssp126", 2080, "A"),
        scenario("no_model", "ssp585", 2080),
        scenario("no_period", "ssp585", None, "C"),
        scenario("no_ssp", None, 2080, "C"),
    )
    groups = scenario_groups(study)
    assert {name: group.scenarios for name, group in groups.items()} == {
        "ssp585_2080": ("a", "b"),
        "ssp2-4.5_2071-to-2100": ("c", "d"),
    }
    assert groups["ssp585_2080"].climate_models == ("A", "B")
    assert scenario_groups(study, ["a", "c", "d"]).keys() == {"ssp2-4.5_2071-to-2100"}


def test_a_group_keeps_clear_of_a_scenario_of_its_name():
    study = study_of(scenario("a", climate_model="A"), scenario("b", climate_model="B"), scenario("ssp585_2080"))
    assert list(scenario_groups(study)) == ["ssp585_2080_ensemble"]


def test_a_climate_model_counts_once():
    with pytest.raises(AgriClipError, match="'a' and 'b' are both"):
        scenario_groups(study_of(scenario("a", climate_model="A"), scenario("b", climate_model="a ")))


def test_pathway_titles():
    assert pathway_title("ssp126") == "SSP1-2.6" and pathway_title("SSP370") == "SSP3-7.0"
    assert pathway_title("rcp45") == "rcp45"


def test_different_grids_are_refused(ensemble, cells):
    moved = Grid(cells.crs, cells.transform @ Affine.translation(0.5, 0), cells.width, cells.height)
    name = f"s_{MODELS[2]}"
    other = write_cog(ensemble.folder / "moved.tif", np.zeros(cells.shape), moved, tags={"members": K})
    with pytest.raises(AgriClipError, match="different grids"):
        combine_scenarios(ensemble.study, {**ensemble.maps, name: {"probability": other}}, ensemble.folder)
    assert common_grid([ensemble.maps[name]["probability"]]).shape == cells.shape
    assert not list(ensemble.folder.glob("maps/*"))


def test_different_models_and_unknown_members_are_refused(ensemble, cells):
    name, values = f"s_{MODELS[2]}", np.zeros(cells.shape)
    other = write_cog(ensemble.folder / "other.tif", values, cells, tags={"members": K, "model_sha256": "xyz"})
    with pytest.raises(AgriClipError, match="different models"):
        combine_scenarios(ensemble.study, {**ensemble.maps, name: {"probability": other}}, ensemble.folder)
    plain = {
        f"s_{model}": {
            layer: write_cog(ensemble.folder / f"plain_{model}_{layer}.tif", values, cells)
            for layer in ("probability", "std")
        }
        for model in MODELS
    }
    with pytest.raises(AgriClipError, match="over how many members"):
        combine_scenarios(ensemble.study, plain, ensemble.folder)


def test_most_frequent_change_by_hand():
    present = np.array([0.9, 0.9, 0.1, 0.1, np.nan, 0.9])
    futures = np.array(
        [
            [0.9, 0.1, 0.9, 0.2, 0.9, 0.9],
            [0.8, 0.2, 0.6, 0.9, 0.9, np.nan],
            [0.1, 0.1, 0.9, 0.3, 0.9, 0.9],
        ]
    )
    classes, share = most_frequent_change(present, futures)
    assert classes.tolist() == [1, 3, 2, 4, 0, 0]
    np.testing.assert_allclose(share, [2 / 3, 1, 1, 2 / 3, np.nan, np.nan], rtol=1e-6)


def test_an_even_vote_goes_to_the_class_of_the_mean():
    classes, share = most_frequent_change(np.array([0.9, 0.9]), np.array([[0.9, 0.6], [0.3, 0.1]]))
    assert classes.tolist() == [1, 3] and share.tolist() == [0.5, 0.5]


def test_change_maps(ensemble):
    made = change_agreement(ensemble.study, ensemble.maps, ensemble.folder / "out")["ssp585_2080"]
    means = ensemble.answers.mean(axis=1).astype(np.float32)
    votes = np.stack([change_classes(ensemble.present, mean) for mean in means])
    classes, share = read_map(made["change"]), read_map(made["change_agreement"])
    assert np.argwhere(np.isnan(share)).tolist() == [[0, 0], [0, 1], [0, 2]]
    np.testing.assert_array_equal(np.isnan(classes), np.isnan(share))
    for row, column in np.argwhere(np.isfinite(share)):
        values, counts = np.unique(votes[:, row, column], return_counts=True)
        assert classes[row, column] == values[counts.argmax()]  # of three votes over two classes one has most
        assert share[row, column] == pytest.approx(counts.max() / G)
    style = (ensemble.folder / "out/maps/ssp585_2080_change.qml").read_text()
    assert all(title in style for title, _ in CHANGE_CLASSES.values())


def test_change_needs_the_present(ensemble):
    maps = {name: layers for name, layers in ensemble.maps.items() if name != "present"}
    with pytest.raises(AgriClipError, match="present"):
        change_agreement(ensemble.study, maps, ensemble.folder)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.5])
def test_a_threshold_is_a_probability(ensemble, threshold):
    with pytest.raises(AgriClipError, match="between 0 and 1"):
        combine_scenarios(ensemble.study, ensemble.maps, ensemble.folder, threshold)
