"""The study file: exact, movable, and told all its faults at once with the nearest right word."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from processing.errors import AgriClipError
from processing.study import Study, expand_variables, load_study

Writer = Callable[..., Path]
CONTENT: dict[str, Any] = {
    "name": "little",
    "grid": {"bounds": [10.0, 48.0, 12.0, 50.0], "crs": "EPSG:4326", "resolution": 0.5},
    "labels": {"table": "sites.csv", "id": "id", "x": "lon", "y": "lat", "positive": "k", "total": "n"},
    "predictors": [
        {
            "file": "climate.tif",
            "variables": [
                {"name": "bio1", "title": "annual mean temperature", "unit": "degC"},
                {"name": "bio12", "band": 2, "title": "annual precipitation", "unit": "mm", "decimals": 0},
            ],
        }
    ],
    "imagery": [{"file": "ndvi.tif", "channels": [{"band": 1, "kind": "index", "variable": "ndvi", "month": 7}]}],
    "chip": {"size": 4},
    "report": {"sentences": ["Heat {bio1}; rain {bio12}."]},
    "splits": {"size": 1.0, "folds": 2},
    "scenarios": [{"name": "warm", "replace": {"climate.tif": "warm.tif"}}],
}


@pytest.fixture
def content(tmp_path: Path, write_raster: Writer) -> dict[str, Any]:
    """A correct study with all of its files in `tmp_path`."""
    write_raster("climate.tif", np.full((2, 4, 4), 12.0, dtype=np.float32), names=("bio1", "bio12"))
    write_raster("warm.tif", np.full((2, 4, 4), 14.0, dtype=np.float32), names=("bio1", "bio12"))
    write_raster("ndvi.tif", np.full((1, 8, 8), 0.5, dtype=np.float32), resolution=0.25)
    (tmp_path / "sites.csv").write_text("id,lon,lat,k,n\na,10.2,49.2,1,2\nb,11.2,48.2,0,4\n")
    return deepcopy(CONTENT)


def write(folder: Path, content: Any, name: str = "study.yaml") -> Path:
    """Write a study file."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def faults(folder: Path, content: Any) -> list[tuple[str, str, str]]:
    """The rows that loading complains of."""
    with pytest.raises(AgriClipError) as caught:
        load_study(write(folder, content))
    assert "\n" not in str(caught.value)
    return [tuple(problem) for problem in caught.value.problems]


def test_a_correct_study_loads_with_its_defaults(tmp_path: Path, content: dict[str, Any]) -> None:
    study = load_study(write(tmp_path, content))
    assert [variable.name for variable in study.variables] == ["bio1", "bio12"]
    assert [variable.changed_by for variable in study.variables] == ["difference", "ratio"]
    assert study.variables[0].source_band == "bio1"
    assert study.imagery[0].channels[0].label == "ndvi_07"
    assert study.path("climate.tif") == tmp_path / "climate.tif"
    assert study.scenario("warm").replace == {"climate.tif": "warm.tif"}
    with pytest.raises(AgriClipError, match="no scenario 'worm'; did you mean 'warm'"):
        study.scenario("worm")


def test_saved_study_is_the_same_and_so_is_its_fingerprint(tmp_path: Path, content: dict[str, Any]) -> None:
    content["data"] = "${NO_SUCH_VARIABLE:-.}"
    study = load_study(write(tmp_path, content))
    again = load_study(study.save(tmp_path / "copy" / "saved.yaml"), data_root=tmp_path)
    assert again.model_dump() == study.model_dump()
    assert again.fingerprint() == study.fingerprint()
    assert str(tmp_path) not in (tmp_path / "copy" / "saved.yaml").read_text()
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["saved.yaml"]


def test_fingerprint_follows_content_not_place_or_spelling(tmp_path: Path, content: dict[str, Any]) -> None:
    print_of = {"as is": load_study(write(tmp_path, content)).fingerprint()}
    content["data"] = str(tmp_path)
    content["chip"] = {"size": 4}
    content["map"] = {"suitable_above": 0.5}  # the default, said aloud
    print_of["same"] = load_study(write(tmp_path, content)).fingerprint()
    content["predictors"][0]["variables"][1]["decimals"] = 1
    print_of["other"] = load_study(write(tmp_path, content)).fingerprint()
    assert print_of["as is"] == print_of["same"] != print_of["other"]
    assert len(print_of["as is"]) == 64


def test_data_folder_by_variable_by_argument_and_beside_studies(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "studies").mkdir(parents=True)
    content["data"] = "${LITTLE_DATA:-../}"
    path = write(tmp_path / "project" / "studies", content)
    assert load_study(path).path("climate.tif") == tmp_path / "climate.tif"  # ../ as seen from the project's root
    monkeypatch.setenv("LITTLE_DATA", str(tmp_path))
    assert load_study(path).data_root == tmp_path
    monkeypatch.setenv("LITTLE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(AgriClipError, match="data folder .* does not exist"):
        load_study(path)
    assert load_study(path, data_root=tmp_path).data_root == tmp_path
    with pytest.raises(AgriClipError, match="does not exist"):
        load_study(path, data_root=tmp_path / "absent")


def test_expanding_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_HERE", "/a")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert expand_variables("${SET_HERE:-b}/c") == "/a/c"
    assert expand_variables("${NOT_SET:-b}/c") == "b/c"
    assert expand_variables("$SET_HERE/c") == "/a/c"
    with pytest.raises(AgriClipError, match="NOT_SET, which is not set"):
        expand_variables("${NOT_SET}/c")


@pytest.mark.parametrize(
    ("change", "where", "problem", "hint"),
    [
        (lambda c: c.update(predictor=[]), "predictor", "unknown key 'predictor'", "predictors"),
        (lambda c: c["chip"].update(sise=3), "chip.sise", "unknown key", "size"),
        (lambda c: c["predictors"][0]["variables"][0].update(units="mm"), "predictors[0].variables[0].units",
         "unknown key 'units'", "unit"),
        (lambda c: c["imagery"][0].update(reduce={"percentile": [5]}), "imagery[0].reduce.percentile", "unknown key",
         "percentiles"),
        (lambda c: c["predictors"][0]["variables"][0].update(unit="degc"), None, None, None),
        (lambda c: c["predictors"][0]["variables"][0].update(unit="degX"), "predictors[0].variables[0].unit",
         "Unknown unit 'degX'", "did you mean"),
        (lambda c: c["predictors"][0]["variables"][0].update(band="boi1"), "predictors[0].variables[0].band",
         "no band 'boi1'", "bio1"),
        (lambda c: c["imagery"][0]["channels"][0].update(band=2), "imagery[0].channels[0].band", "no band 2", ""),
        (lambda c: c["imagery"][0]["channels"][0].update(kind="indx"), "imagery[0].channels[0].kind", "'indx'",
         "did you mean 'index'"),
        (lambda c: c["predictors"][0].update(file="climat.tif"), "predictors[0].file", "does not exist",
         "did you mean 'climate.tif'"),
        (lambda c: c["report"].update(sentences=["Heat {boi1}."]), "report.sentences[0]", "unknown variable 'boi1'",
         "did you mean 'bio1'"),
        (lambda c: c["report"].update(sentences=["Heat {bio1."]), "report.sentences[0]", "brace", ""),
        (lambda c: c["scenarios"][0].update(replace={"klimate.tif": "warm.tif"}), "scenarios[0].replace",
         "no predictor file", "did you mean 'climate.tif'"),
        (lambda c: c["scenarios"].append(c["scenarios"][0]), "scenarios[1].name", "used twice", ""),
        (lambda c: c["scenarios"][0].update(name="present"), "scenarios[0]", "'present' names the map", ""),
        (lambda c: c["scenarios"][0].update(replace={}), "scenarios[0]", "needs `replace` or `delta`", ""),
        (lambda c: c["predictors"][0]["variables"][1].update(name="bio1"), "predictors[0].variables[1].name",
         "used twice", ""),
        (lambda c: c["grid"].update(bounds=[12, 48, 10, 50]), "grid.bounds", "is empty", ""),
        (lambda c: c["grid"].update(crs="EPSG:99999"), "grid.crs", "no known CRS", "EPSG"),
        (lambda c: c["grid"].pop("resolution"), "grid", "give either", ""),
        (lambda c: c["labels"].pop("total"), "labels", "need `total`", ""),
        (lambda c: c["splits"].pop("size"), "splits", "need `size`", ""),
        (lambda c: c["chip"].update(size="big"), "chip.size", "not 'big'", ""),
        (lambda c: c.pop("grid"), "grid", "is missing", ""),
        (lambda c: c["predictors"][0]["variables"][0].update(valid_range=[5, 1]),
         "predictors[0].variables[0].valid_range", "below", ""),
        (lambda c: c["imagery"][0].update(reduce={"percentiles": [101]}), "imagery[0].reduce.percentiles", "0 to 100",
         ""),
    ],
)  # fmt: skip
def test_each_fault_is_placed_named_and_helped(
    tmp_path: Path, content: dict[str, Any], change: Callable[[dict[str, Any]], Any], where: str | None,
    problem: str | None, hint: str | None,
) -> None:  # fmt: skip
    change(content)
    if where is None:  # spelling of units is free
        load_study(write(tmp_path, content))
        return
    rows = faults(tmp_path, content)
    assert any(row[0] == where and problem in row[1] and hint in row[2] for row in rows), rows


def test_all_faults_are_told_at_once(tmp_path: Path, content: dict[str, Any]) -> None:
    content["chip"]["sise"] = 3
    content["predictors"][0]["variables"][0]["unit"] = "degX"
    content["imagery"][0]["channels"][0]["kind"] = "indx"
    path = write(tmp_path, content)
    with pytest.raises(AgriClipError, match=r"\(2 more\)") as caught:
        load_study(path)
    assert len(caught.value.problems) == 3


def test_files_without_a_crs_or_in_ruins_are_told(
    tmp_path: Path, content: dict[str, Any], write_raster: Writer
) -> None:
    write_raster("ndvi.tif", np.ones((1, 8, 8), dtype=np.float32), crs=None)
    (tmp_path / "warm.tif").write_text("ruin")
    rows = faults(tmp_path, content)
    assert any("no CRS" in row[1] and row[0] == "imagery[0]" for row in rows), rows
    assert any("cannot be read as a raster" in row[1] and "warm" in row[0] for row in rows), rows


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgriClipError, match="did you mean 'study.yaml'"):
        write(tmp_path, CONTENT)
        load_study(tmp_path / "stdy.yaml")
    with pytest.raises(AgriClipError, match="line 2, column"):
        load_study(write(tmp_path, "name: x\n  grid: [1\n"))
    with pytest.raises(AgriClipError, match="holds no keys"):
        load_study(write(tmp_path, "just text"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AgriClipError, match="not a text file"):
        load_study(tmp_path / "bytes.yaml")


def test_files_need_not_be_there_when_not_asked_for(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, CONTENT), check_files=False)
    assert isinstance(study, Study)


def test_us_study_is_whole(real_data: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "studies" / "us_double_crop_soybean.yaml"
    study = load_study(path, data_root=real_data)
    assert len(study.variables) == 19
    assert len(study.scenarios) == 15
    assert {scenario.climate_model for scenario in study.scenarios} == {"GFDL-ESM4", "IPSL-CM6A-LR", "MPI-ESM1-2-HR"}
    assert all(scenario.delta for scenario in study.scenarios)
