"""A small mapped study without a model: predictors, labels, probability maps of the present and two scenarios."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mapping.novelty import MessReference
from mapping.outputs import write_cog
from processing.rasters import Grid
from processing.study import load_study
from processing.study_data import StudyData

STUDY = """
name: toy
title: A toy study
description: Rain and warmth decide.
data: .
grid: {bounds: [-95, 33, -85, 42], crs: "EPSG:4326", resolution: 0.25}
labels: {table: labels.csv, id: id, x: x, y: y, kind: share, positive: hits, total: n, presence_above: 0.3}
predictors:
  - file: climate.tif
    variables:
      - {name: warmth, title: mean annual temperature, unit: degC}
      - {name: rain, title: annual rain, unit: mm, decimals: 0}
splits: {kind: spatial_blocks, size: 2.0, folds: 4}
scenarios:
  - {name: warm, title: Warm, ssp: ssp585, period: 2080, replace: {climate.tif: warm.tif}}
  - {name: dry, title: Warm and dry, replace: {climate.tif: dry.tif}}
"""


def suitability(warmth, rain):
    logit = (warmth - 14.0) * 1.2 - np.maximum(warmth - 18.0, 0) * 2.5 + np.minimum((rain - 1050.0) / 60.0, 3.0)
    return 1.0 / (1.0 + np.exp(-logit))


def build_study(folder: Path, seed: int = 0) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    grid = Grid.from_bounds((-95, 33, -85, 42), 0.25, "EPSG:4326")
    x, y = grid.cell_centres()
    warmth = 18.0 - 1.1 * (y - 34.0) + 0.4 * np.sin(x)
    rain = 1150.0 + 70.0 * (x + 90.0) + 30 * np.cos(y)
    warmth[:4, :5] = np.nan
    climates = {"climate": (warmth, rain), "warm": (warmth + 3.0, rain), "dry": (warmth + 3.0, rain * 0.75)}
    for name, layers in climates.items():
        write_cog(folder / f"{name}.tif", np.stack(layers), grid, band_names=["warmth", "rain"])
    column, row = rng.integers(6, grid.width, 300), rng.integers(5, grid.height, 300)
    truth = suitability(warmth, rain)[row, column]
    hits = rng.binomial(20, truth)
    lines = ["id,x,y,hits,n"]
    lines += [f"s{i},{x[r, c]},{y[r, c]},{h},20" for i, (r, c, h) in enumerate(zip(row, column, hits, strict=True))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "toy.yaml").write_text(STUDY)
    mess = MessReference(np.column_stack([warmth[row, column], rain[row, column]]), ["warmth", "rain"])
    maps = {}
    for name, (t, p) in zip(("present", "warm", "dry"), climates.values(), strict=True):
        score = mess.score(np.stack([t, p], axis=-1))
        maps[name] = {
            "probability": write_cog(folder / f"maps/{name}_probability.tif", suitability(t, p), grid, units=["1"]),
            "mess": write_cog(folder / f"maps/{name}_mess.tif", score.mess, grid, units=["%"]),
        }
    study = load_study(folder / "toy.yaml")
    return SimpleNamespace(folder=folder, study=study, grid=grid, maps=maps, truth=truth, hits=hits)


def write_predictions(toy, path: Path, noise: float = 0.5, seed: int = 1) -> Path:
    """Out-of-fold predictions as a fit would leave them: the truth with noise on the logit."""
    data = StudyData(toy.study)
    labels, folds = data.labels(), data.folds()
    logit = np.log(toy.truth / (1 - toy.truth)) + np.random.default_rng(seed).normal(0, noise, toy.truth.size)
    probability = 1 / (1 + np.exp(-logit))
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "x", "y", "fold", "observed", "weight", "presence", "probability", "share"])
        for i in range(len(labels)):
            row = [labels.ids[i], labels.x[i], labels.y[i], folds[i], labels.share[i], labels.weight[i]]
            writer.writerow([*row, int(labels.presence[i]), probability[i], ""])
    return path
