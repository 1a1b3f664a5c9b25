"""The demo from end to end with a stand-in for the network: what it writes, says and compares."""

import io
import json
import sys
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from mapping.demo import demo_summary, run_demo
from mapping.outputs import read_map, write_cog
from processing.rasters import Grid, sample_points
from processing.study_data import StudyData

ERROR = 0.05  # what the stand-in adds to the true probability


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Runs the demo; fit and prediction hand back the truth with a known error."""

    def fit_study(study, output_dir, **_):
        data = StudyData(study)
        labels, folds = data.labels(), data.folds()
        truth = sample_points(study.path("truth_present.tif"), None, labels.x, labels.y, data.grid.crs)[0][:, 0]
        rows = ["id,x,y,fold,observed,weight,presence,probability,share"]
        for i in np.flatnonzero(folds == 0):
            probability = min(1.0, truth[i] + ERROR)
            place = f"{labels.ids[i]},{labels.x[i]},{labels.y[i]},0,{labels.share[i]},1"
            rows.append(f"{place},{int(labels.presence[i])},{probability},")
        model = output_dir / "model"
        model.mkdir(parents=True)
        (model / "heldout.csv").write_text("\n".join(rows) + "\n")
        return {"model_dir": str(model), "predictions": str(model / "heldout.csv"), "scores": {}, "seconds": 0.0}

    def map_study(study, model_dir, output_dir, *, scenarios=None, quiet=False):
        maps = {}
        for name in ("present", *(scenario.name for scenario in study.scenarios)):
            truth = study.path(f"truth_{name}.tif")
            values = np.minimum(read_map(truth) + ERROR, 1.0)
            path = write_cog(output_dir / "maps" / f"{name}_probability.tif", values, Grid.from_raster(truth))
            maps[name] = {"probability": str(path)}
        return maps

    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, function in (("training.fit", fit_study), ("mapping.predict", map_study)):
            module = ModuleType(name)
            setattr(module, function.__name__, function)
            patch.setitem(sys.modules, name, module)
        result = run_demo(folder, height=32, width=48, sites=None, baselines=False, quiet=True)
    return folder, result


def test_the_known_error_is_found(demo):
    _, result = demo
    # Nowhere more than the error put in, and less only where the truth is close to 1.
    assert 0.8 * ERROR < result["held_out"]["rmse"] <= ERROR + 1e-6
    for row in result["truth"]:
        assert 0.8 * ERROR < row["rmse"] <= ERROR + 1e-6
        assert row["mapped_ha"] >= row["true_ha"]
    assert all(row["change_agreement_percent"] > 85 for row in result["truth"][1:])


def test_present_and_two_scenarios_with_areas(demo):
    folder, result = demo
    assert set(result["maps"]) == {"present", "warm", "hot"} and set(result["changes"]) == {"warm", "hot"}
    land = 32 * 48 * 10_000.0  # cells of 10 km in an equal-area projection: 10,000 ha each
    for change in result["changes"].values():
        assert sum(area["ha"] for area in change["classes"].values()) == pytest.approx(land)
    assert json.loads((folder / "demo.json").read_text())["held_out"] == result["held_out"]


def test_the_summary_names_files_that_exist(demo):
    folder, result = demo
    console = Console(width=140, record=True, file=io.StringIO())
    demo_summary(result, console)
    text = console.export_text()
    assert f"{result['held_out']['rmse']:.3f}" in text and str(folder / "report.html") in text
    for path in result["files"]:
        assert (folder / path).exists()
    assert {"report.html", "demo.json", "areas.csv"} <= {p.name for p in folder.iterdir()}


def test_the_report_says_that_it_is_invented(demo):
    folder, _ = demo
    text = (folder / "report.html").read_text()
    assert "This landscape is invented" in text and "agriclip demo --output" in text
