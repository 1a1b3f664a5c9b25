"""The virtual landscape: the same for the same seed, its truth lawful, its study whole, its answer recoverable."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from processing.errors import AgriClipError
from processing.rasters import read_to_grid
from processing.study import load_study
from processing.study_data import StudyData
from processing.virtual_landscape import (
    SCENARIOS,
    VARIABLES,
    Climate,
    _climate,
    _land,
    heat_unit_rule,
    make_virtual_landscape,
    monthly_climate,
    suitability,
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    """The landscape at its usual size."""
    return StudyData(load_study(make_virtual_landscape(tmp_path_factory.mktemp("full"))))


def truth(data: StudyData, name: str) -> np.ndarray:
    """The true probability, (h, w)."""
    return read_to_grid(data.study.path(f"truth_{name}.tif"), 1, data.grid)[0][0].astype(np.float64)


def digests(folder: Path) -> dict[str, str]:
    """File name -> digest."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    one, two, other = (
        make_virtual_landscape(tmp_path / name, seed=seed, height=16, width=17).parent
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert digests(one) == digests(two)
    assert digests(one)["truth_present.tif"] != digests(other)["truth_present.tif"]
    assert set(digests(one)) == {
        "study.yaml", "labels.csv", "land.tif", "ndvi_monthly.tif", "crop_cover.tif",
        *(f"{kind}_{name}.tif" for kind in ("climate", "truth") for name in ("present", *SCENARIOS)),
    }  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (40, 23)])
def test_small_and_odd_landscapes_are_whole(tmp_path: Path, height: int, width: int) -> None:
    data = StudyData(load_study(make_virtual_landscape(tmp_path, height=height, width=width)))
    assert data.grid.shape == (height, width)
    sites = data.labels()
    assert np.isfinite(data.predictors(sites.x, sites.y)).all()
    assert np.isfinite(data.predictor_grid()).all()
    p = truth(data, "present")
    assert ((p > 0) & (p < 1)).all()
    assert (p > 0.5).any()
    assert (p < 0.1).any()
    assert np.bincount(data.folds()).min() > 0


def test_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgriClipError, match="at least 16 x 16"):
        make_virtual_landscape(tmp_path, height=15, width=20)


def test_present_is_partly_suitable_and_labels_are_draws_of_the_truth(full: StudyData) -> None:
    p = truth(full, "present")
    assert 0.2 < (p > 0.5).mean() < 0.4
    assert p.max() > 0.9
    assert (p < 0.05).mean() > 0.1
    sites = full.labels()
    assert len(sites) == 1500
    assert (sites.total.min(), sites.total.max()) == (20, 60)
    rows, columns = full.grid.cell_of(sites.x, sites.y)
    expected = p[rows, columns]
    z = (sites.positive - sites.total * expected) / np.sqrt(sites.total * expected * (1 - expected) + 1e-9)
    middle = (expected > 0.1) & (expected < 0.9)
    assert z[middle].std() == pytest.approx(1.0, abs=0.12)
    assert abs(z[middle].mean()) < 0.15


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_warming_moves_the_suitable_area_north(tmp_path: Path, seed: int) -> None:
    data = StudyData(load_study(make_virtual_landscape(tmp_path, seed=seed, height=48, width=72)))
    north = data.grid.cell_centres()[1]
    p = {name: truth(data, name) for name in ("present", *SCENARIOS)}
    centre = {name: (north * value).sum() / value.sum() for name, value in p.items()}
    assert centre["present"] + 20_000 < centre["warm"] < centre["hot"] - 20_000
    assert p["warm"].sum() > 1.05 * p["present"].sum()
    assert (p["warm"] > 0.5).sum() > (p["present"] > 0.5).sum()
    south = slice(-len(north) // 6, None)  # too warm for winter wheat
    assert p["warm"][south].sum() < p["present"][south].sum()


def test_the_rule_follows_agronomy() -> None:
    months = np.arange(12)
    mean = (12.0 - 12.0 * np.cos(2 * np.pi * (months - 0.5) / 12))[:, None, None] * np.ones((1, 1, 1))
    climate = Climate(mean=mean, minimum=mean - 6.0, rain=np.full((12, 1, 1), 80.0))
    now, warm = heat_unit_rule(climate), heat_unit_rule(climate.changed(2.0, 1.0, 0.5))
    assert set(now) == {name for name, *_ in VARIABLES}
    assert warm["wheat_harvest"] < now["wheat_harvest"]
    assert warm["season_days"] > now["season_days"]
    assert warm["heat_left"] > now["heat_left"]
    assert warm["annual_temperature"] - now["annual_temperature"] == pytest.approx(2.0)
    assert warm["summer_rain"] == pytest.approx(160.0)
    assert warm["annual_rain"] == pytest.approx(960.0 - 160.0)
    land = {"soil_water": 150.0, "soil_ph": 6.5, "slope": 2.0}
    land = {name: np.full((1, 1), value) for name, value in land.items()}

    def p(**changes: float) -> float:
        return float(suitability({**now, **{k: np.full((1, 1), v) for k, v in changes.items()}}, land)[0, 0])

    assert p(heat_left=1300.0, season_days=120.0) > p(heat_left=900.0, season_days=120.0)
    assert p(summer_rain=450.0) > p(summer_rain=200.0)
    assert p(coldest_minimum=-5.0) > p(coldest_minimum=6.0)


def test_a_place_without_summer_has_no_season() -> None:
    cold = np.full((12, 1, 1), -5.0)
    rule = heat_unit_rule(Climate(mean=cold, minimum=cold - 5, rain=np.full((12, 1, 1), 30.0)))
    assert rule["season_days"] == 0
    assert rule["heat_left"] == 0


def test_imagery_has_gaps_phenology_and_knows_the_present(full: StudyData) -> None:
    sites = full.labels()
    values, valid = full.chips(sites.x, sites.y)
    assert values.shape == (1500, 4, 16, 16)
    assert 0.5 < valid.mean() < 1.0
    assert full.gsd == 5000.0
    rows, columns = full.grid.cell_of(sites.x, sites.y)
    p = truth(full, "present")[rows, columns]
    cover = values[:, 3, 8, 8]
    assert 0.4 < np.corrcoef(cover, p)[0, 1] < 0.95  # tells much and not all
    months, seen = read_to_grid(full.study.path("ndvi_monthly.tif"), None, full.grid)
    assert not seen.all()
    green = [np.nanmean(np.where(seen[m], months[m], np.nan)[truth(full, "present") > 0.7]) for m in range(12)]
    assert green[4] > green[6] < green[8]  # a dip at wheat harvest


def test_reports_alone_recover_the_truth(full: StudyData) -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    sites, folds = full.labels(), full.folds()
    x = full.predictors(sites.x, sites.y)
    rows, columns = full.grid.cell_of(sites.x, sites.y)
    held, p = folds == 0, truth(full, "present")[rows, columns]
    model = ensemble.HistGradientBoostingRegressor(max_iter=150, learning_rate=0.08, random_state=0)
    predicted = np.clip(model.fit(x[~held], sites.share[~held]).predict(x[held]), 0, 1)
    error = np.sqrt(np.mean((predicted - p[held]) ** 2))
    assert error < 0.07
    assert error < 0.5 * np.std(p[held])


def test_months_are_found_again_from_their_variables() -> None:
    rng = np.random.default_rng(0)
    climate = _climate(rng, _land(rng, 16, 20)["elevation"])
    for one in (climate, climate.changed(4.0, 1.0, 0.86)):
        again = monthly_climate(heat_unit_rule(one))
        for name in ("mean", "minimum", "rain"):
            assert np.allclose(getattr(again, name), getattr(one, name), rtol=0, atol=1e-9)
