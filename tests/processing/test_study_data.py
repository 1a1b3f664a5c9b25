"""A study's arrays: right cells, right units, right change of climate; wrong data refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from processing.errors import AgriClipError
from processing.numbers_agriclip import canonicalise
from processing.rasters import transform_points
from processing.study import load_study
from processing.study_data import StudyData

Writer = Callable[..., Path]
GRID = {"bounds": [10.0, 48.0, 12.0, 50.0], "crs": "EPSG:4326", "resolution": 0.5}


@pytest.fixture
def make(tmp_path: Path, write_raster: Writer) -> Callable[..., StudyData]:
    """Function that makes the data of a small study; keywords replace its parts."""
    heat = np.linspace(5, 20, 16, dtype=np.float32).reshape(4, 4)
    rain = np.linspace(400, 1000, 16, dtype=np.float32).reshape(4, 4)
    write_raster("climate.tif", np.stack([heat, rain]), names=("bio1", "bio12"))
    (tmp_path / "sites.csv").write_text("id,lon,lat,k,n\na,10.2,49.9,1,2\nb,11.9,48.1,0,4\nc,11.2,49.2,3,3\n")

    def build(**parts: Any) -> StudyData:
        content: dict[str, Any] = {
            "name": "little",
            "grid": GRID,
            "labels": {"table": "sites.csv", "id": "id", "x": "lon", "y": "lat", "positive": "k", "total": "n"},
            "predictors": [
                {
                    "file": "climate.tif",
                    "variables": [
                        {"name": "bio1", "title": "mean temperature", "unit": "degC"},
                        {"name": "bio12", "title": "rain", "unit": "mm", "decimals": 0},
                    ],
                }
            ],
            **parts,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        return StudyData(load_study(path))

    return build


def labels_part(**changes: Any) -> dict[str, Any]:
    """The labels of the small study with changes."""
    base = {"table": "sites.csv", "id": "id", "x": "lon", "y": "lat", "positive": "k", "total": "n"}
    return {**base, **changes}


def one_variable(file: str, **changes: Any) -> list[dict[str, Any]]:
    """A predictor part of one band."""
    return [{"file": file, "variables": [{"name": "v", "band": 1, "title": "v", "unit": "degC", **changes}]}]


# -- labels -----------------------------------------------------------------------------------------------------


def test_labels_are_counts_and_shares(make: Callable[..., StudyData]) -> None:
    sites = make(labels=labels_part(presence_above=0.4)).labels()
    assert sites.ids.tolist() == ["a", "b", "c"]
    assert sites.share.tolist() == [0.5, 0.0, 1.0]
    assert sites.presence.tolist() == [True, False, True]
    assert sites.weight.tolist() == [1.0, 1.0, 1.0]
    assert make(labels=labels_part(min_total=3)).labels().ids.tolist() == ["b", "c"]


def test_labels_reach_the_grids_crs(make: Callable[..., StudyData], tmp_path: Path) -> None:
    data = make(grid={"bounds": [600_000, 5_300_000, 900_000, 5_600_000], "crs": "EPSG:32632", "resolution": 50_000})
    sites = data.labels()
    assert (sites.x > 500_000).all()
    assert (sites.y > 5_300_000).all()
    assert np.isfinite(data.predictors(sites.x, sites.y)).all()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,10.2,49.9,,2\nb,11,49,nan,3\n", "label 'k' is missing or no number at a, b"),
        ("a,10.2,49.9,1,2\nb,11,49,5,3\n", "exceeds 'n' at b"),
        ("a,10.2,49.9,-1,2\n", "negative at a"),
        ("a,,49.9,1,2\nb,11,49,1,3\n", "'lon' or 'lat' is no number at a"),
        ("a,10.2,49.9,1,x\n", "'n' is missing or no number at a"),
        ("a,10.2,49.9,1,2\na,11,49,1,3\n", "more than one row: a"),
        (",10.2,49.9,1,2\n", "'id' is empty in 1 rows"),
        ("a,10.2,49.9,0,0\n", "lower `min_total`"),
        ("a,49.9,10.2,1,2\n", "x and y are exchanged"),
        ("", "header but no rows"),
        ("\n".join(f"s{i},10.2,49.9,nan,2" for i in range(9)), "s0, s1, s2, s3, s4 and 4 more"),
    ],
)
def test_bad_labels_are_named(make: Callable[..., StudyData], tmp_path: Path, rows: str, said: str) -> None:
    data = make()
    (tmp_path / "sites.csv").write_text("id,lon,lat,k,n\n" + rows)
    with pytest.raises(AgriClipError, match=said):
        data.labels()


def test_label_kinds(make: Callable[..., StudyData], tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text("id,lon,lat,k,n\na,10.2,49.9,1,2\nb,11,49,0,3\n")
    sites = make(labels=labels_part(kind="presence_absence", total=None)).labels()
    assert (sites.positive.tolist(), sites.total.tolist()) == ([1.0, 0.0], [1.0, 1.0])
    only = make(labels=labels_part(kind="presence_only", positive=None, total=None)).labels()
    assert only.presence.all()
    (tmp_path / "sites.csv").write_text("id,lon,lat,k,n\na,10.2,49.9,0.5,2\n")
    with pytest.raises(AgriClipError, match="neither 0 nor 1 at a"):
        make(labels=labels_part(kind="presence_absence", total=None)).labels()
    with pytest.raises(AgriClipError, match="no column 'kk'; did you mean 'k'"):
        make(labels=labels_part(positive="kk")).labels()


def test_repeated_sites_may_keep_their_first_row(make: Callable[..., StudyData], tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text("id,lon,lat,k,n\nb,10.2,49.9,1,2\na,11,49,0,3\nb,11,49,2,2\n")
    sites = make(labels=labels_part(repeated="first")).labels()
    assert (sites.ids.tolist(), sites.positive.tolist()) == (["b", "a"], [1.0, 0.0])


# -- predictors -------------------------------------------------------------------------------------------------


def test_points_and_grid_agree(make: Callable[..., StudyData]) -> None:
    data = make()
    whole = data.predictor_grid()
    x, y = data.grid.cell_centres()
    assert whole.shape == (2, 4, 4)
    assert np.array_equal(data.predictors(x.ravel(), y.ravel()).T.reshape(2, 4, 4), whole)
    assert np.array_equal(data.predictor_grid(slice(1, 3)), whole[:, 1:3])
    outside = data.predictors([0.0], [0.0])
    assert np.isnan(outside).all()


def test_units_become_canonical(make: Callable[..., StudyData], write_raster: Writer) -> None:
    write_raster("k.tif", np.full((1, 4, 4), 288.15, dtype=np.float32))
    assert make(predictors=one_variable("k.tif", unit="K")).predictor_grid() == pytest.approx(15.0, abs=1e-4)
    write_raster("f.tif", np.full((1, 4, 4), 59.0, dtype=np.float32))
    assert make(predictors=one_variable("f.tif", unit="degF")).predictor_grid() == pytest.approx(15.0, abs=1e-6)
    write_raster("t.tif", np.full((1, 4, 4), 150, dtype=np.int16))
    assert make(predictors=one_variable("t.tif", scale=0.1)).predictor_grid() == pytest.approx(15.0)
    write_raster("g.tif", np.array([[[15.0, 99.0, 15.0, 15.0]] * 4], dtype=np.float32))
    values = make(predictors=one_variable("g.tif", valid_range=[-50, 60])).predictor_grid()
    assert np.isnan(values[0, :, 1]).all()


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (290.0, "degC", "ranges from 290 to 290 degC; that looks like kelvin"),
        (155.0, "degC", "tenths of a degree"),
        (65.0, "pH", "tenths of pH"),
        (-7000.0, "mm", "check its `unit`"),
        (-10.0, "%", "check its `unit`"),
    ],
)
def test_values_that_cannot_have_their_unit_are_refused(
    make: Callable[..., StudyData], write_raster: Writer, value: float, unit: str, said: str
) -> None:
    write_raster("v.tif", np.full((1, 4, 4), value, dtype=np.float32))
    data = make(predictors=one_variable("v.tif", unit=unit))
    for read in (data.predictor_grid, lambda: data.predictors([10.2], [49.8])):
        with pytest.raises(AgriClipError, match=said):
            read()


def test_a_few_outliers_warn_with_the_range(make: Callable[..., StudyData], write_raster: Writer) -> None:
    values = np.full((1, 40, 40), 10.0, dtype=np.float32)
    values[0, 3, 3] = 9000.0
    write_raster("v.tif", values, resolution=0.05)
    with pytest.warns(UserWarning, match="ranges from 10 to 9000"):
        make(predictors=one_variable("v.tif")).predictor_grid()


def test_empty_and_distant_rasters_are_refused(make: Callable[..., StudyData], write_raster: Writer) -> None:
    write_raster("empty.tif", np.full((1, 4, 4), -9999.0, dtype=np.float32), nodata=-9999.0)
    with pytest.raises(AgriClipError, match="'empty.tif' is all nodata"):
        make(predictors=one_variable("empty.tif")).predictor_grid()
    write_raster("far.tif", np.ones((1, 4, 4), dtype=np.float32), origin=(100.0, 0.0))
    with pytest.raises(AgriClipError, match="does not overlap the grid"):
        make(predictors=one_variable("far.tif")).predictors([10.2], [49.9])


def test_scenarios_replace_or_change(make: Callable[..., StudyData], write_raster: Writer) -> None:
    def layer(name: str, heat: float, rain: float) -> None:
        values = np.stack([np.full((4, 4), heat), np.full((4, 4), rain)]).astype(np.float32)
        write_raster(name, values, names=("bio1", "bio12"))

    layer("hot.tif", 25.0, 300.0)
    layer("base.tif", 10.0, 500.0)
    layer("future.tif", 13.0, 600.0)
    layer("dry.tif", 10.0, 0.0)
    delta = {"climate.tif": {"baseline": "base.tif", "future": "future.tif"}}
    data = make(
        scenarios=[
            {"name": "hot", "replace": {"climate.tif": "hot.tif"}},
            {"name": "model", "delta": delta},
            {"name": "dry", "delta": {"climate.tif": {"baseline": "base.tif", "future": "dry.tif"}}},
            {"name": "wet", "delta": {"climate.tif": {"baseline": "dry.tif", "future": "future.tif"}}},
        ]
    )
    now = data.predictor_grid()
    assert (data.predictor_grid(scenario="hot")[0] == 25.0).all()
    changed = data.predictor_grid(scenario="model")
    assert changed[0] == pytest.approx(now[0] + 3.0)
    assert changed[1] == pytest.approx(now[1] * 600.0 / 500.0)
    assert data.predictor_grid(scenario="dry")[1] == pytest.approx(now[1] * 0.2)  # held to 0.2-5
    # a ratio to a model without rain says nothing, so its difference is added
    assert data.predictor_grid(scenario="wet")[1] == pytest.approx(now[1] + 600.0)
    x, y = data.grid.cell_centres()
    assert np.array_equal(data.predictors(x.ravel(), y.ravel(), scenario="model").T.reshape(2, 4, 4), changed)
    with pytest.raises(AgriClipError, match="did you mean 'model'"):
        data.predictor_grid(scenario="modell")


@pytest.mark.parametrize(
    ("variable", "observed", "baseline", "future", "expected"),
    [
        # amounts: the ratio, held to 0.2-5; below 1 mm the difference, to no less than 0
        ({"unit": "mm"}, 800.0, 400.0, 500.0, 1000.0),
        ({"unit": "mm"}, 800.0, 400.0, 4.0, 160.0),
        ({"unit": "mm"}, 10.0, 4.0, 400.0, 50.0),
        ({"unit": "mm"}, 10.0, 1.0, 3.0, 30.0),
        ({"unit": "mm"}, 10.0, 0.99, 3.0, 12.01),
        ({"unit": "mm"}, 0.0, 0.5, 0.0, 0.0),
        ({"unit": "mm"}, 0.3, 0.9, 0.0, 0.0),
        ({"unit": "mm"}, 0.0, 30.0, 60.0, 0.0),
        ({"unit": "cm"}, 8.0, 4.0, 5.0, 100.0),  # read as mm
        ({"unit": "mm"}, 800.0, np.nan, 5.0, np.nan),
        ({"unit": "mm"}, 800.0, 4.0, np.nan, np.nan),
        ({"unit": "mm", "valid_range": [0, 900]}, 800.0, 400.0, 500.0, 900.0),
        # differences: temperature may be anything; a water balance asks for it
        ({"unit": "degC"}, 2.0, 10.0, 5.0, -3.0),
        ({"unit": "K"}, 275.15, 283.15, 278.15, -3.0),
        ({"unit": "degC", "change": "ratio"}, 2.0, 10.0, 15.0, 3.0),
        ({"unit": "mm", "change": "difference"}, -50.0, 200.0, -100.0, -350.0),
        # what has a floor or a range stays within
        ({"unit": "%"}, 10.0, 40.0, 20.0, 0.0),
        ({"unit": "%", "valid_range": [5, 100]}, 10.0, 40.0, 20.0, 5.0),
        ({"unit": "%", "valid_range": [5, 100]}, 90.0, 40.0, 70.0, 100.0),
        ({"unit": "degC day"}, 300.0, 900.0, 500.0, 0.0),
    ],
)
def test_the_delta_method(
    make: Callable[..., StudyData],
    write_raster: Writer,
    variable: dict[str, Any],
    observed: float,
    baseline: float,
    future: float,
    expected: float,
) -> None:
    def layer(name: str, value: float) -> None:
        values = np.full((1, 4, 4), value, dtype=np.float32)
        values[0, :, 3] = 20.0 if variable["unit"] != "K" else 290.0  # one valid column under a layer without any
        write_raster(name, values)

    for name, value in (("v.tif", observed), ("base.tif", baseline), ("later.tif", future)):
        layer(name, value)
    delta = {"v.tif": {"baseline": "base.tif", "future": "later.tif"}}
    data = make(predictors=one_variable("v.tif", **variable), scenarios=[{"name": "later", "delta": delta}])
    assert data.predictor_grid(scenario="later")[0, :, :3] == pytest.approx(expected, nan_ok=True, abs=1e-4)
    x, y = data.grid.cell_centres()
    assert data.predictors(x[:, 0], y[:, 0], "later")[:, 0] == pytest.approx(expected, nan_ok=True, abs=1e-4)


def test_the_ratio_of_a_balance_is_refused(make: Callable[..., StudyData], write_raster: Writer) -> None:
    for name, value in (("v.tif", -50.0), ("base.tif", 200.0), ("later.tif", 100.0)):
        write_raster(name, np.full((1, 4, 4), value, dtype=np.float32))
    delta = {"v.tif": {"baseline": "base.tif", "future": "later.tif"}}
    data = make(predictors=one_variable("v.tif", unit="mm"), scenarios=[{"name": "later", "delta": delta}])
    with pytest.raises(AgriClipError, match="'v' is negative in places .* write `change: difference`"):
        data.predictor_grid(scenario="later")


@pytest.mark.parametrize("resampling", [None, "nearest"])
def test_fine_imagery_asks_one_report_per_climate_cell(
    make: Callable[..., StudyData], write_raster: Writer, resampling: str | None
) -> None:
    rng = np.random.default_rng(3)
    climate = np.stack([rng.uniform(5, 25, (6, 6)), rng.uniform(300, 1500, (6, 6))]).astype(np.float32)
    write_raster("coarse.tif", climate, names=("bio1", "bio12"), origin=(10.0, 50.0), resolution=0.5)
    write_raster("warmer.tif", climate + 2.0, names=("bio1", "bio12"), origin=(10.0, 50.0), resolution=0.5)
    # 30 x 40 pixels in metres, whose edges are none of the climate's
    write_raster(
        "scene.tif",
        rng.uniform(0, 1, (1, 30, 40)).astype(np.float32),
        origin=(600_000.0, 5_500_000.0),
        resolution=4_000.0,
        crs="EPSG:32632",
    )
    part: dict[str, Any] = {
        "file": "coarse.tif",
        "variables": [
            {"name": "bio1", "title": "mean temperature", "unit": "degC", "decimals": 3},
            {"name": "bio12", "title": "rain", "unit": "mm", "decimals": 2},
        ],
        **({"resampling": resampling} if resampling else {}),
    }
    data = make(
        grid={"like": "scene.tif"},
        predictors=[part],
        scenarios=[{"name": "later", "replace": {"coarse.tif": "warmer.tif"}}],
    )
    assert data.grid.shape == (30, 40)
    x, y = transform_points(*data.grid.cell_centres(), data.grid.crs, "EPSG:4326")
    rows, columns = np.floor((50.0 - y) / 0.5).astype(int), np.floor((x - 10.0) / 0.5).astype(int)
    inside = (rows >= 0) & (rows < 6) & (columns >= 0) & (columns < 6)
    cells = len(set(zip(rows[inside], columns[inside], strict=True)))
    assert 5 < cells < 36
    for scenario, shift in ((None, 0.0), ("later", 2.0)):
        parts = [data.predictor_grid(slice(top, top + 7), scenario) for top in range(0, 30, 7)]
        table = np.concatenate(parts, axis=1).reshape(2, -1).T
        assert np.array_equal(np.isfinite(table).all(axis=1), inside)
        assert np.allclose(table[inside], climate[:, rows[inside], columns[inside]].T + shift, atol=1e-3)
        assert len(np.unique(data.template.values(table[inside]), axis=0)) == cells
    smooth = make(grid={"like": "scene.tif"}, predictors=[{**part, "resampling": "bilinear"}]).predictor_grid()
    assert len(np.unique(smooth[0][np.isfinite(smooth[0])])) > 20 * cells


def test_predictors_as_fine_as_the_grid_are_blended(make: Callable[..., StudyData], write_raster: Writer) -> None:
    write_raster("shifted.tif", np.arange(36, dtype=np.float32).reshape(1, 6, 6), origin=(9.75, 50.25))
    data = make(predictors=one_variable("shifted.tif"))
    # each cell lies in the middle of four
    assert data.predictor_grid()[0, 0].tolist() == pytest.approx([3.5, 4.5, 5.5, 6.5])


def test_sites_across_the_antimeridian_find_their_cells(
    make: Callable[..., StudyData], write_raster: Writer, tmp_path: Path
) -> None:
    (tmp_path / "sites.csv").write_text("id,lon,lat,k,n\na,178.2,-18.1,1,2\nb,-179.8,-17.9,0,4\n")
    warm = np.arange(720, dtype=np.float32)[None, None].repeat(360, axis=1) / 10
    write_raster("globe.tif", warm, origin=(-180.0, 90.0))
    data = make(
        grid={"bounds": [177, -20, 183, -15], "crs": "EPSG:4326", "resolution": 0.5},
        predictors=one_variable("globe.tif"),
    )
    sites = data.labels()
    assert sites.x.tolist() == pytest.approx([178.2, 180.2])
    assert data.predictors(sites.x, sites.y)[:, 0] == pytest.approx([71.6, 0.0])
    rows, columns = data.grid.cell_of(sites.x, sites.y)
    assert data.predictor_grid()[0][rows, columns] == pytest.approx([71.6, 0.0])


def test_report_of_a_cell(make: Callable[..., StudyData]) -> None:
    data = make()
    row = data.predictors([10.1], [49.9])
    text, values = canonicalise(data.template.render(row[0]))
    assert text == data.template.text == "Mean temperature [NUM] degC. Rain [NUM] mm."
    assert np.array_equal(np.float32(values), data.template.values(row)[0])


# -- imagery ----------------------------------------------------------------------------------------------------


def test_chips_scale_mask_and_describe(make: Callable[..., StudyData], write_raster: Writer) -> None:
    stored = np.arange(64, dtype=np.int16).reshape(1, 8, 8) * 100
    stored[0, 0, 0] = 32767
    write_raster("ndvi.tif", stored, resolution=0.25)
    channel = {"band": 1, "kind": "index", "variable": "ndvi", "month": 7, "scale": 1e-4, "valid_range": [-0.2, 1.0]}
    data = make(imagery=[{"file": "ndvi.tif", "channels": [channel]}], chip={"size": 4})
    values, valid = data.chips([10.1, 11.1], [49.9, 49.1])
    assert values.shape == valid.shape == (2, 1, 4, 4)
    assert not valid[0, 0, 2, 2]  # the point's own pixel is out of range; before it lies the raster's edge
    assert values[0, 0, 2, 2] == 0.0
    assert values[0, 0, 2, 3] == pytest.approx(0.01)
    assert not valid[0, 0, :2].any()
    assert valid[1].all()
    (spec,) = data.channels
    physical = stored.ravel()[1:] * 1e-4
    assert (spec.kind, spec.variable, spec.month) == ("index", "ndvi", 7)
    assert spec.mean == pytest.approx(physical.mean(), rel=1e-4)
    assert spec.std == pytest.approx(physical.std(), rel=1e-4)
    assert data.gsd == pytest.approx(22_600, rel=0.05)


def test_percentiles_drop_the_order_of_months(make: Callable[..., StudyData], write_raster: Writer) -> None:
    rng = np.random.default_rng(0)
    stored = rng.uniform(0, 1, (6, 8, 8)).astype(np.float32)
    stored[rng.uniform(size=stored.shape) < 0.3] = np.nan
    write_raster("a.tif", stored, resolution=0.25)
    write_raster("b.tif", stored[rng.permutation(6)], resolution=0.25)

    def of(file: str) -> StudyData:
        channels = [{"band": m, "kind": "index", "variable": "ndvi", "month": m} for m in range(1, 7)]
        image = {"file": file, "channels": channels, "reduce": {"percentiles": [10, 50, 90], "min_valid": 3}}
        return make(imagery=[image], chip={"size": 8})

    values, valid = of("a.tif").chips([11.01], [48.99])
    shuffled, _ = of("b.tif").chips([11.01], [48.99])
    assert np.array_equal(values, shuffled)
    enough = np.isfinite(stored).sum(axis=0) >= 3
    assert np.array_equal(valid[0, 0], enough)
    expected = np.nanpercentile(stored[:, enough], [10, 50, 90], axis=0)
    assert np.allclose(values[0][:, enough], expected, atol=1e-6)
    channels = of("a.tif").channels
    assert [c.name for c in channels] == ["ndvi_p10", "ndvi_p50", "ndvi_p90"]
    assert [c.month for c in channels] == [None] * 3
    assert len({tuple(c.code()) for c in channels}) == 3


def test_imagery_of_two_pixel_sizes_or_without_values_is_refused(
    make: Callable[..., StudyData], write_raster: Writer
) -> None:
    write_raster("fine.tif", np.ones((1, 8, 8), dtype=np.float32), resolution=0.25)
    write_raster("coarse.tif", np.ones((1, 4, 4), dtype=np.float32), resolution=0.5)
    parts = [{"file": f, "channels": [{"kind": "index", "variable": f[:4]}]} for f in ("fine.tif", "coarse.tif")]
    with pytest.raises(AgriClipError, match="chips need one pixel size"):
        _ = make(imagery=parts).gsd
    write_raster("empty.tif", np.full((1, 8, 8), np.nan, dtype=np.float32), resolution=0.25)
    with pytest.raises(AgriClipError, match="all nodata"):
        _ = make(imagery=[{"file": "empty.tif", "channels": [{"kind": "index"}]}]).channels


def test_without_imagery_chips_are_empty(make: Callable[..., StudyData]) -> None:
    data = make()
    values, valid = data.chips([10.0, 11.0], [49.0, 49.0])
    assert values.shape == valid.shape == (2, 0, 16, 16)
    assert data.channels == []
    assert data.gsd == 0.0


# -- splits -----------------------------------------------------------------------------------------------------


def test_folds_need_splits_and_follow_blocks(make: Callable[..., StudyData], landscape: Path) -> None:
    with pytest.raises(AgriClipError, match="has no `splits`"):
        make().folds()
    data = StudyData(load_study(landscape))
    folds, blocks = data.folds(), data.blocks()
    assert len(folds) == len(data.labels())
    assert all(len(set(folds[blocks == block])) == 1 for block in np.unique(blocks))


# -- real data --------------------------------------------------------------------------------------------------


def test_us_study_end_to_end(real_data: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "studies" / "us_double_crop_soybean.yaml"
    data = StudyData(load_study(path, data_root=real_data))
    sites = data.labels()
    assert 2000 <= len(sites) <= 2100
    assert 0.25 < sites.presence.mean() < 0.35
    predictors = data.predictors(sites.x, sites.y)
    assert np.isfinite(predictors).all()
    swing = predictors[:, [v.name for v in data.variables].index("bio4")]
    assert 1.0 < swing.min() < swing.max() < 15.0  # degC, not hundredths
    chips, valid = data.chips(sites.x, sites.y)
    size = data.study.chip.size
    assert chips.shape == (len(sites), 6, size, size)
    assert valid.mean() > 0.9
    assert valid[:, :, size // 2, size // 2].mean() > 0.99
    assert data.gsd == pytest.approx(16_556, abs=5)
    now = data.predictor_grid()
    for scenario in data.study.scenarios:
        future = data.predictor_grid(scenario=scenario)
        assert np.array_equal(np.isfinite(future).all(axis=0), np.isfinite(now).all(axis=0))
        assert 0.5 < np.nanmean(future[0] - now[0]) < 8.0
    table = now.reshape(19, -1).T
    values = data.template.values(table[np.isfinite(table).all(axis=1)])
    text, read = canonicalise(data.template.render(predictors[7]))
    assert text == data.template.text
    assert np.array_equal(np.float32(read), data.template.values(predictors[7:8])[0])
    assert values.shape[1] == 19
