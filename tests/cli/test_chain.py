"""Fit, map, explain: one study from its file to everything that is handed over."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from rio_cogeo import cog_validate

from agriclip_cli import main
from mapping.outputs import read_map
from mapping.provenance import describe_files
from processing.rasters import Grid
from processing.virtual_landscape import make_virtual_landscape


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    return told.out


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A landscape whose two scenarios are two climate models of one pathway, with two zones."""
    path = make_virtual_landscape(tmp_path_factory.mktemp("landscape"), seed=3, height=24, width=24, sites=120)
    content = yaml.safe_load(path.read_text())
    for scenario, model in zip(content["scenarios"], ("MODEL-A", "MODEL-B"), strict=True):
        scenario |= {"ssp": "ssp585", "period": 2080, "climate_model": model}
    content["training"] |= {"members": 2, "epochs": 1, "preset": "light", "calibration": "platt"}
    content["training"] |= {"objective": "share"}
    content["map"] = {**content.get("map", {}), "zones": {"file": "zones.geojson"}}
    west, south, east, north = Grid.from_raster(path.parent / "truth_present.tif").bounds
    middle = (west + east) / 2
    boxes = {"west": (west, middle), "east": (middle, east)}
    features = [
        {
            "type": "Feature",
            "id": name,
            "properties": {"id": name, "name": name},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[a, south], [b, south], [b, north], [a, north], [a, south]]],
            },
        }
        for name, (a, b) in boxes.items()
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::5070"}}
    zones = {"type": "FeatureCollection", "crs": crs, "features": features}
    (path.parent / "zones.geojson").write_text(json.dumps(zones))
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_from_a_study_file_to_the_report(study, tmp_path, capsys):
    out = tmp_path / "out"
    run(capsys, "fit", study, "--output", out, "--processes", 1, "--quiet")
    run(capsys, "explain", study, "--output", out, "--quiet")
    told = json.loads(run(capsys, "map", study, "--output", out, "--json"))

    assert set(told["maps"]) == {"present", "warm", "hot"}
    both = [read_map(told["maps"][name]["probability"]) for name in ("warm", "hot")]
    together = read_map(out / "maps" / "ssp585_2080_probability.tif")
    np.testing.assert_allclose(together, np.mean(both, axis=0), atol=1e-6)
    assert set(told["changes"]) == {"warm", "hot", "ssp585_2080"}
    for path in out.rglob("*.tif"):
        assert cog_validate(path, quiet=True)[0], path

    zones = pd.read_parquet(out / "areas_by_zone.parquet")
    assert set(zones["zone"]) == {"west", "east"} and set(zones["map"]) == {"present", "warm", "hot", "ssp585_2080"}
    with open(out / "areas.csv", newline="") as stream:
        areas = {(row["map"], row["class"]): float(row["ha"]) for row in csv.DictReader(stream)}
    for name in ("present", "warm"):
        summed = zones.loc[zones["map"] == name, "suitable_ha"].sum()
        assert summed == pytest.approx(areas[name, "suitable"], rel=1e-3, abs=1.0)

    manifest = json.loads((out / "manifest.json").read_text())
    made = {item["name"]: item["sha256"] for item in manifest["outputs"]}
    assert {"report.html", "areas.csv", "odmap.csv", "maps/ssp585_2080_std_climate.tif"} <= set(made)
    (found,) = describe_files([out / "areas.csv"], out)
    assert made["areas.csv"] == found["sha256"]
    report = (out / "report.html").read_text()
    assert "MODEL-A" in report and "areas_by_zone.gpkg" in report and "How the probability follows" in report


def test_places_are_explained_in_degrees(study, tmp_path, capsys):
    out = tmp_path / "out"
    run(capsys, "fit", study, "--output", out, "--processes", 1, "--quiet")
    told = json.loads(
        run(capsys, "explain", study, "--output", out, "--at=-96.0,41.0", "--scenario", "warm", "--json")
    )
    assert [place["explanation"]["scenario"] for place in told["places"]] == [None, "warm"]
    assert len(list((out / "places").glob("*.png"))) == 2
    for wrong, said in (("96", "is no place"), ("41.0,-196.0", "longitude comes first")):
        with pytest.raises(SystemExit) as ended:
            main(["explain", str(study), "--output", str(out), f"--at={wrong}"])
        assert ended.value.code == 2 and said in capsys.readouterr().err
