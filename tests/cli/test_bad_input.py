"""What a study can get wrong, through `agriclip fit`: one sentence with place and cure, status 2, no output."""

import numpy as np
import pytest
import rasterio

from agriclip_cli import main
from tests.mapping.toy_study import build_study


@pytest.fixture
def toy(tmp_path):
    return build_study(tmp_path / "toy")


def rewrite(toy, change):
    """Change the values of the toy's climate raster."""
    path = toy.folder / "climate.tif"
    with rasterio.open(path) as raster:
        values, profile, names = raster.read(), raster.profile, raster.descriptions
    path.unlink()
    with rasterio.open(path, "w", **{**profile, "driver": "GTiff", "nodata": np.nan}) as raster:
        raster.write(change(values).astype(profile["dtype"]))
        raster.descriptions = names


def edit(toy, name, old, new):
    path = toy.folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def one_missing_label(toy):
    lines = (toy.folder / "labels.csv").read_text().splitlines()
    cells = lines[3].split(",")
    lines[3] = ",".join([*cells[:3], "nan", cells[4]])
    (toy.folder / "labels.csv").write_text("\n".join(lines) + "\n")


def long_report(toy):
    sentence = "The year is warm and the soil is deep and the rain is enough at {warmth} and {rain} " * 40
    edit(toy, "toy.yaml", "splits:", f'report: {{sentences: ["{sentence.strip()}."]}}\nsplits:')


CASES = {
    "missing raster": (lambda toy: edit(toy, "toy.yaml", "file: climate.tif", "file: climat.tif"), ["climat.tif"]),
    "missing table": (lambda toy: (toy.folder / "labels.csv").unlink(), ["labels.csv"]),
    "unknown key": (lambda toy: edit(toy, "toy.yaml", "resolution", "resolutoin"), ["resolutoin", "'resolution'"]),
    "unknown unit": (lambda toy: edit(toy, "toy.yaml", "unit: degC", "unit: degCC"), ["degCC", "did you mean 'degC'"]),
    "unknown band": (
        lambda toy: edit(toy, "toy.yaml", "name: rain,", "name: rain, band: rian,"),
        ["rian", "climate.tif", "did you mean 'rain'"],
    ),
    "no overlap": (lambda toy: edit(toy, "toy.yaml", "[-95, 33, -85, 42]", "[5, 45, 8, 48]"), ["overlap"]),
    "all nodata": (lambda toy: rewrite(toy, lambda values: np.full_like(values, np.nan)), ["climate.tif", "value"]),
    "missing label": (one_missing_label, ["labels.csv", "hits"]),
    "kelvin as degC": (lambda toy: rewrite(toy, lambda values: values + 273.15), ["warmth", "degC"]),
    "too few bands": (
        lambda toy: edit(toy, "toy.yaml", "name: rain,", "name: rain, band: 3,"),
        ["climate.tif", "3", "2 bands"],
    ),
    "report too long": (long_report, ["512", "token", "`report`"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_status_2_and_nothing_written(case, toy, tmp_path, capsys):
    spoil, said = CASES[case]
    spoil(toy)
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(toy.folder / "toy.yaml"), "--output", str(output), "--quiet"])
    message = capsys.readouterr().err
    assert stop.value.code == 2, message
    assert "Traceback" not in message
    lines = [line for line in message.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, message
    for word in said:
        assert word in message, message
    assert not output.exists() or not any(output.iterdir())
