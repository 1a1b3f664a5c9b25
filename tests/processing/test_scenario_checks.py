"""Layers of scenarios against the present: what would make a wrong map is refused, in a table that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from processing.errors import AgriClipError
from processing.scenario_checks import Mismatch, _model_in, check_scenarios, mismatch_table, require_scenarios
from processing.study import load_study
from processing.study_data import StudyData

Writer = Callable[..., Path]
GRID = {"bounds": [10.0, 48.0, 12.0, 50.0], "crs": "EPSG:4326", "resolution": 0.5}
NAMES = ("bio1", "bio12", "bio15")


def stack(heat: float = 0.0, rain: float = 1.0, spread: float = 0.0) -> np.ndarray:
    """Temperature, rain and its variation on 4 x 4 cells, changed."""
    return np.stack(
        [
            np.linspace(5, 20, 16).reshape(4, 4) + heat,
            np.linspace(400, 1000, 16).reshape(4, 4) * rain,
            np.linspace(20, 60, 16).reshape(4, 4) + spread,
        ]
    ).astype(np.float32)


def set_units(path: Path, *units: str) -> None:
    """Write the unit tags of a raster."""
    with rasterio.open(path, "r+") as raster:
        for band, unit in enumerate(units, start=1):
            raster.set_band_unit(band, unit)


@pytest.fixture
def make(tmp_path: Path, write_raster: Writer) -> Callable[..., StudyData]:
    """Function that makes the data of a study with scenarios: a replaced file, or a baseline and a future."""
    write_raster("now.tif", stack(), names=NAMES)
    write_raster("gfdl-esm4_historical.tif", stack(1.0, 0.9), names=NAMES)
    write_raster("gfdl-esm4_ssp585.tif", stack(5.0, 1.1, 2.0), names=NAMES)

    def build(
        replace: str | None = None,
        delta: tuple[str, str] | None = None,
        bands: tuple[int | str | None, ...] = (None, None, None),
        check_files: bool = True,
        **scenario: Any,
    ) -> StudyData:
        units = ("degC", "mm", "%")
        variables: list[dict[str, Any]] = [
            {"name": name, "title": name, "unit": unit, **({} if band is None else {"band": band})}
            for name, unit, band in zip(NAMES, units, bands, strict=True)
        ]
        part: dict[str, Any] = {}
        if replace:
            part["replace"] = {"now.tif": replace}
        if delta:
            part["delta"] = {"now.tif": {"baseline": delta[0], "future": delta[1]}}
        content = {
            "name": "little",
            "grid": GRID,
            "predictors": [{"file": "now.tif", "variables": variables}],
            "scenarios": [{"name": "later", **part, **scenario}],
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        return StudyData(load_study(path, check_files=check_files))

    return build


def only(found: list[Mismatch]) -> Mismatch:
    """The one mismatch."""
    assert len(found) == 1, mismatch_table(found)
    return found[0]


def test_layers_that_fit_pass_in_silence(make: Callable[..., StudyData], recwarn: pytest.WarningsRecorder) -> None:
    for data in (
        make(delta=("gfdl-esm4_historical.tif", "gfdl-esm4_ssp585.tif"), climate_model="GFDL-ESM4"),
        make(replace="gfdl-esm4_ssp585.tif", bands=(1, 2, 3)),
    ):
        assert check_scenarios(data) == []
        assert require_scenarios(data) == []
        assert check_scenarios(data, []) == []
    assert not recwarn.list
    with pytest.raises(AgriClipError, match="did you mean 'later'"):
        check_scenarios(data, ["latter"])


def test_kelvin_is_refused(make: Callable[..., StudyData], write_raster: Writer) -> None:
    write_raster("kelvin.tif", stack(273.15), names=NAMES)
    data = make(replace="kelvin.tif")
    found = only(check_scenarios(data))
    assert (found.scenario, found.variable, found.file, found.severity) == ("later", "bio1", "kelvin.tif", "refuse")
    assert found.expected == "-95 to 100 degC"
    assert found.found == "278.1 to 293.1 degC"
    assert "kelvin" in found.todo
    with pytest.raises(AgriClipError, match="scenarios\\[later\\] bio1: 'kelvin.tif': expected .* found .* kelvin"):
        require_scenarios(data)


@pytest.mark.parametrize("heat", [16.0, -16.0])
def test_an_implausible_shift_of_temperature_is_refused(
    make: Callable[..., StudyData], write_raster: Writer, heat: float
) -> None:
    write_raster("f.tif", stack(heat), names=NAMES)
    found = only(check_scenarios(make(replace="f.tif")))
    assert (found.variable, found.severity) == ("bio1", "refuse")
    assert found.expected == "a median within 15 degC of the present's 12.5"
    assert found.found == f"{12.5 + heat:g} degC"
    write_raster("f.tif", stack(np.sign(heat) * 14.0), names=NAMES)
    assert check_scenarios(make(replace="f.tif")) == []


@pytest.mark.parametrize(("rain", "refused"), [(1 / 30, True), (5.5, True), (0.19, True), (4.5, False), (0.25, False)])
def test_an_implausible_factor_of_rain_is_refused(
    make: Callable[..., StudyData], write_raster: Writer, rain: float, refused: bool
) -> None:
    write_raster("f.tif", stack(rain=rain), names=NAMES)
    found = check_scenarios(make(replace="f.tif"))
    assert [(m.variable, m.severity) for m in found] == [("bio12", "refuse")] * refused


def test_a_change_is_held_against_its_own_baseline(make: Callable[..., StudyData], write_raster: Writer) -> None:
    # a model that is 10 degrees too cold is no fault; one that then warms by 16 is
    write_raster("cold.tif", stack(-10.0), names=NAMES)
    write_raster("warm.tif", stack(6.0), names=NAMES)
    found = only(check_scenarios(make(delta=("cold.tif", "warm.tif"))))
    assert (found.file, found.expected) == ("warm.tif", "a median within 15 degC of the baseline's 2.5")
    assert check_scenarios(make(delta=("cold.tif", "now.tif"))) == []


def test_all_mismatches_are_told_at_once(make: Callable[..., StudyData], write_raster: Writer) -> None:
    write_raster("f.tif", stack(273.15, 0.01), names=NAMES)
    data = make(replace="f.tif")
    with pytest.raises(AgriClipError, match=r"\(1 more\)") as caught:
        require_scenarios(data)
    assert [row.where for row in caught.value.problems] == ["scenarios[later] bio1", "scenarios[later] bio12"]
    assert all(row.hint for row in caught.value.problems)
    lines = mismatch_table(check_scenarios(data)).splitlines()
    assert lines[0].split() == ["scenario", "variable", "file", "expected", "found", "what", "to", "do"]
    assert len(lines) == 3
    start = lines[0].index("found")
    assert lines[1][start:].startswith("278.1 to")
    assert lines[2][start:].startswith("7 mm")


def test_bands_out_of_place(make: Callable[..., StudyData], write_raster: Writer) -> None:
    swapped = stack(3.0)[[1, 0, 2]]
    write_raster("swapped.tif", swapped, names=("bio12", "bio1", "bio15"))
    assert check_scenarios(make(replace="swapped.tif")) == []  # taken by name
    found = check_scenarios(make(replace="swapped.tif", bands=(1, 2, 3)))
    named = [m for m in found if "to be" in m.expected]
    assert [(m.variable, m.expected, m.found, m.severity) for m in named] == [
        ("bio1", "band 1 to be 'bio1'", "'bio12'", "refuse"),
        ("bio12", "band 2 to be 'bio12'", "'bio1'", "refuse"),
    ]


def test_number_of_bands(make: Callable[..., StudyData], write_raster: Writer) -> None:
    write_raster("more.tif", np.concatenate([stack(), stack()[:1]]), names=(*NAMES, "bio18"))
    by_name = only(check_scenarios(make(replace="more.tif")))
    assert (by_name.variable, by_name.expected, by_name.found) == ("all", "3 bands", "4 bands")
    assert by_name.severity == "warn"
    with pytest.warns(UserWarning, match="expected 3 bands, found 4 bands; give a file with the same bands"):
        assert require_scenarios(make(replace="more.tif")) == [by_name]
    assert only(check_scenarios(make(replace="more.tif", bands=(1, 2, 3)))).severity == "refuse"
    write_raster("fewer.tif", stack()[:2], names=NAMES[:2])
    found = check_scenarios(make(replace="fewer.tif", check_files=False))
    assert [(m.variable, m.found) for m in found] == [("all", "2 bands"), ("bio15", "no such band")]


@pytest.mark.parametrize(
    ("present", "future", "refused"),
    [
        (("degC", "mm", "%"), ("K", "kg m-2 s-1", "percent"), ["bio1", "bio12"]),
        (("degC", "mm", "%"), ("celsius", "MM", "%"), []),
        ((), ("K", "mm", "%"), ["bio1"]),  # the study says degC
        ((), ("°C", "millimetre", "pct"), []),
        (("degC", "mm", "%"), (), []),
    ],
)
def test_unit_tags(
    make: Callable[..., StudyData],
    write_raster: Writer,
    tmp_path: Path,
    present: tuple[str, ...],
    future: tuple[str, ...],
    refused: list[str],
) -> None:
    set_units(tmp_path / "now.tif", *present)
    set_units(write_raster("f.tif", stack(2.0), names=NAMES), *future)
    found = check_scenarios(make(replace="f.tif"))
    assert [m.variable for m in found] == refused
    for mismatch in found:
        assert mismatch.expected.startswith("unit ") and mismatch.found.startswith("unit ")
        assert mismatch.severity == "refuse"


def test_what_cannot_be_placed_or_is_empty(make: Callable[..., StudyData], write_raster: Writer) -> None:
    write_raster("far.tif", stack(), names=NAMES, origin=(100.0, 10.0))
    found = only(check_scenarios(make(replace="far.tif", check_files=False)))
    assert "does not overlap the grid" in found.found
    write_raster("nowhere.tif", stack(), names=NAMES, crs=None)
    assert "has no CRS" in only(check_scenarios(make(replace="nowhere.tif", check_files=False))).found
    assert "does not exist" in only(check_scenarios(make(replace="none.tif", check_files=False))).found
    write_raster("empty.tif", np.where(np.arange(3)[:, None, None] == 1, -1, stack()), names=NAMES, nodata=-1)
    empty = only(check_scenarios(make(replace="empty.tif")))
    assert (empty.variable, empty.found, empty.severity) == ("bio12", "nodata throughout", "refuse")
    holes = stack(2.0)
    holes[:, 2:] = -1
    write_raster("half.tif", holes, names=NAMES, nodata=-1)
    found = check_scenarios(make(replace="half.tif"))
    assert {(m.variable, m.found, m.severity) for m in found} == {(name, "50% of them", "warn") for name in NAMES}


def test_a_change_needs_its_historical_run(make: Callable[..., StudyData]) -> None:
    same = only(check_scenarios(make(delta=("gfdl-esm4_ssp585.tif", "gfdl-esm4_ssp585.tif"))))
    assert (same.expected, same.severity) == ("a historical run", "refuse")
    gone = only(check_scenarios(make(delta=("gone.tif", "gfdl-esm4_ssp585.tif"), check_files=False)))
    assert (gone.file, gone.severity) == ("gone.tif", "refuse")
    held = only(check_scenarios(make(replace="now.tif")))
    assert held.severity == "warn"
    assert "hold these variables constant" in held.todo


def test_two_climate_models_in_one_change(
    make: Callable[..., StudyData], write_raster: Writer, tmp_path: Path
) -> None:
    write_raster("IPSL_CM6A_LR_historical.tif", stack(1.0), names=NAMES)
    found = only(check_scenarios(make(delta=("IPSL_CM6A_LR_historical.tif", "gfdl-esm4_ssp585.tif"))))
    assert (found.expected, found.found) == ("the baseline's IPSL-CM6A-LR", "GFDL-ESM4")
    assert found.severity == "warn"
    # tags say it too, and count for more than the name
    with rasterio.open(tmp_path / "IPSL_CM6A_LR_historical.tif", "r+") as raster:
        raster.update_tags(source_id="GFDL-ESM4")
    assert check_scenarios(make(delta=("IPSL_CM6A_LR_historical.tif", "gfdl-esm4_ssp585.tif"))) == []
    stated = check_scenarios(
        make(delta=("gfdl-esm4_historical.tif", "gfdl-esm4_ssp585.tif"), climate_model="MPI-ESM1-2-HR")
    )
    assert {(m.expected, m.found, m.severity) for m in stated} == {("MPI-ESM1-2-HR", "GFDL-ESM4", "warn")}
    # files that say nothing are not suspected
    write_raster("base.tif", stack(1.0), names=NAMES)
    assert check_scenarios(make(delta=("base.tif", "gfdl-esm4_ssp585.tif"))) == []


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("tas_Amon_EC-Earth3-Veg_ssp245_r1i1p1f1_gr", "EC-Earth3-Veg"),
        ("bioclim_mpi-esm1-2-hr_historical_2000", "MPI-ESM1-2-HR"),
        ("wc2.1_10m_bioc_CanESM5_ssp585_2041-2060", "CanESM5"),
        ("wc2.1_10m_bioc_CanESM5-CanOE_ssp585", "CanESM5-CanOE"),
        ("CESM21_something", None),
    ],
)
def test_climate_models_are_found_in_names(text: str, model: str | None) -> None:
    assert _model_in(text) == model


def test_the_ratio_of_a_balance_is_refused(make: Callable[..., StudyData], write_raster: Writer) -> None:
    for name, shift in (("base.tif", 0.0), ("later.tif", -450.0)):
        values = stack()
        values[1] += shift
        write_raster(name, values, names=NAMES)
    found = check_scenarios(make(delta=("base.tif", "later.tif")))
    assert [(m.variable, m.severity) for m in found] == [("bio12", "refuse")]
    assert "change: difference" in found[0].todo


@pytest.mark.parametrize("pattern", ["tas_{:02d}", "tas_month{}", "tas_m{}"])
def test_missing_months(tmp_path: Path, write_raster: Writer, pattern: str) -> None:
    names = tuple(pattern.format(month) for month in range(1, 13))
    values = np.linspace(0, 22, 12 * 16, dtype=np.float32).reshape(12, 4, 4)
    write_raster("now.tif", values, names=names)
    write_raster("whole.tif", values + 2, names=names)
    write_raster("later.tif", values[:9] + 2, names=names[:9])
    content = {
        "name": "months",
        "grid": GRID,
        "predictors": [
            {"file": "now.tif", "variables": [{"name": name, "title": "t", "unit": "degC"} for name in names]}
        ],
        "scenarios": [{"name": f, "replace": {"now.tif": f"{f}.tif"}} for f in ("whole", "later")],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    data = StudyData(load_study(tmp_path / "study.yaml", check_files=False))
    bands, months = check_scenarios(data)
    assert (bands.scenario, bands.found) == ("later", "9 bands")
    assert (months.variable, months.expected, months.severity) == ("tas", "12 months", "refuse")
    assert months.found == "no month 10, 11, 12 among 9 bands"


def test_checks_look_at_thinned_copies(
    make: Callable[..., StudyData], write_raster: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = np.repeat(np.repeat(stack(2.0), 500, axis=1), 500, axis=2)
    write_raster("fine.tif", fine, names=NAMES, resolution=0.001)
    monkeypatch.setattr("processing.rasters._read_window", None)  # what reads whole windows is not called
    assert check_scenarios(make(replace="fine.tif")) == []


@pytest.mark.realdata
def test_the_us_study_fits(real_data: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "studies" / "us_double_crop_soybean.yaml"
    data = StudyData(load_study(path, data_root=real_data))
    assert require_scenarios(data) == []
