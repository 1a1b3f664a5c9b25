"""The example that lies in the repository: small, whole, said to be invented, and answered by the model beside it."""

import json

import numpy as np
import pytest

from mapping.outputs import write_cog
from processing.grids import Grid, transform_points
from spaces_demo import example as examples
from spaces_demo import snippets
from spaces_demo.answers import segment_upload
from spaces_demo.engine import Engine, default_model
from spaces_demo.example import PRESENT, Example, default_example
from spaces_demo.planting import Planting
from spaces_demo.uploads import look_at
from spaces_demo.virtual import FOLDER, MODEL, MOST_BYTES
from spaces_demo.whatif import Changes, change_predictors


@pytest.fixture(scope="module")
def shipped():
    return Example(FOLDER)


@pytest.fixture(scope="module")
def asked(shipped):
    patch = pytest.MonkeyPatch()
    patch.delenv("AGRICLIP_MODEL", raising=False)
    yield Engine(shipped)
    patch.undo()


def places(example, count):
    """Longitude, latitude, row and column of some cells, told apart by their probability."""
    chance = example.layer(PRESENT, "probability")
    ranks = np.argsort(chance.ravel())[np.linspace(0, chance.size - 1, count).astype(int)]
    rows, columns = np.unravel_index(ranks, chance.shape)
    x, y = example.grid.cell_centres()
    lon, lat = transform_points(x.ravel()[ranks], y.ravel()[ranks], example.grid.crs, "EPSG:4326")
    return zip(lon.tolist(), lat.tolist(), rows.tolist(), columns.tolist(), strict=True)


def test_it_is_small_and_holds_nothing_else(shipped):
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    sizes = {file.relative_to(FOLDER).as_posix(): file.stat().st_size for file in files}
    assert sum(sizes.values()) <= MOST_BYTES
    assert sum(size for name, size in sizes.items() if not name.startswith(f"{MODEL}/")) <= 600_000
    assert {file.suffix for file in files} == {".tif", ".csv", ".yaml", ".json", ".safetensors"}
    assert not any("heldout" in name or "history" in name for name in sizes)


def test_every_layer_is_known_everywhere(shipped):
    assert len(shipped.climates) == 3
    for key, climate in shipped.climates.items():
        assert {"probability", "std", "mess", "applicability"} <= set(climate.layers)
        for layer in climate.layers:
            assert np.isfinite(shipped.layer(key, layer)).all(), (key, layer)
    # Members disagree somewhere, and the scenarios are no copies of the present.
    assert shipped.summary["members"] == 3 and shipped.layer(PRESENT, "std").max() > 0.02
    assert all(abs(shipped.areas(key).net_ha) > 0 for key in shipped.climates if key != PRESENT)


def test_its_lists_have_no_blank_to_choose(shipped):
    assert shipped.pathways == ["2 °C warmer", "4 °C warmer"]
    for pathway in shipped.pathways:
        assert shipped.periods(pathway) == [""] and len(shipped.models(pathway, "")) == 1
    assert shipped.find("4 °C warmer").key == "hot"


def test_a_place_is_told_in_whole_sentences(shipped):
    for lon, lat, row, column in places(shipped, 4):
        point = shipped.point(lon, lat)
        assert (point["row"], point["column"]) == (row, column)
        assert "under the scenario “2 °C warmer”; it " in point["sentence"]
        assert point["sentence"].endswith("under the scenario “4 °C warmer”.") and " by " not in point["sentence"]
        assert "climate models" not in point["trust"]


def test_it_says_that_it_is_invented(shipped, example):
    assert shipped.invented and not example.invented
    assert "out/us" not in snippets.for_place(0, 0, snippets.INVENTED)
    assert "agriclip demo --output out/demo\nagriclip map" in snippets.for_areas("hot", 0.5, snippets.INVENTED)
    assert not Planting(shipped).possible and Planting(example).possible


def test_the_model_says_what_the_map_says(shipped, asked):
    for lon, lat, row, column in places(shipped, 6):
        answer = asked.predict_place(lon, lat, asked.place_values(lon, lat))
        assert answer.probability[0] == pytest.approx(shipped.layer(PRESENT, "probability")[row, column], abs=0.01)
        assert answer.std[0] == pytest.approx(shipped.layer(PRESENT, "std")[row, column], abs=0.01)


def test_sliders_give_the_scenario_that_is_mapped(shipped, asked):
    """The landscape's rule moves every number: 4 degC and 14 % less summer rain are the second scenario."""
    hot = Changes(warming=4.0, summer_rain=-14.0)
    for lon, lat, row, column in places(shipped, 6):
        changed = change_predictors(asked.place_values(lon, lat), shipped.variables, hot)
        answer = asked.predict_place(lon, lat, changed)
        assert answer.probability[0] == pytest.approx(shipped.layer("hot", "probability")[row, column], abs=0.03)


def test_weights_lie_in_half_precision_and_answer_in_single(shipped, asked):
    import torch
    from safetensors import safe_open

    assert asked.model_dir == FOLDER / MODEL == shipped.model_dir
    assert asked.predictor.hash == shipped.summary["model_sha256"]
    assert len(asked.predictor.members) == 3
    for member in asked.predictor.members:
        assert {p.dtype for p in member.model.parameters()} == {torch.float32}
        with safe_open(member.path / "model.safetensors", "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


def test_the_released_model_segments_beside_it(asked, tmp_path):
    if not (default_model() / "model.safetensors").is_file():
        pytest.skip("no released model in agriclip/")
    assert asked.segment_dir == default_model() != asked.model_dir
    assert asked.can_segment()
    grid = Grid.from_bounds((500_000.0, 4_000_000.0, 500_320.0, 4_000_320.0), 10.0, "EPSG:32614")
    bands = ["B02", "B03", "B04", "B08"]
    pixels = np.random.default_rng(0).uniform(0.02, 0.4, (4, *grid.shape)).astype(np.float32)
    path = write_cog(tmp_path / "image.tif", pixels, grid, band_names=bands)
    upload = look_at(path, "image.tif", "raster", asked.example.variables, "image")
    answered = segment_upload(upload, ["soybean fields"], asked, tmp_path / "out", "sentinel2_l2a")
    assert answered.files and "soybean fields" in answered.sentence


def test_the_real_example_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "_HERE", tmp_path)
    assert default_example() == tmp_path / "virtual"
    (tmp_path / "example").mkdir()
    assert default_example() == tmp_path / "virtual"  # an empty folder is no example
    (tmp_path / "example" / "summary.json").write_text(json.dumps({}))
    assert default_example() == tmp_path / "example"


def test_an_explicit_model_comes_before_its_own(shipped, study_output):
    given = Engine(shipped, study_output / "model")
    assert given.model_dir == given.segment_dir == study_output / "model"
