"""`python -m spaces_demo.build_example STUDY_OUTPUT`: the example that the Space opens on, from the output of a study.

Three choices define this file. The example is a small study of its own: its predictors, imagery and months are cropped
to the grid, and its `study.yaml` is read by the same code as any study's, so what the model says live is what the map
says. Numbers are stored as integers with a scale: predictors with the digits that a report shows, and probabilities to
a hundredth of a percent. And everything is made from the output folder and the study's data, so a new model needs one
command.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from mapping.outputs import file_sha256, read_map
from processing.errors import AgriClipError
from processing.whole_files import write_whole

__all__ = ["MOST_BYTES", "build_example", "write_scaled"]

#: Bytes of the whole example, at most.
MOST_BYTES = 2_000_000
#: Layers that are taken over, with the worth of one stored step.
LAYERS: dict[str, float] = {
    "probability": 1e-4,
    "probability_without_image": 1e-3,
    "std": 1e-3,
    "std_total": 1e-3,
    "std_climate": 1e-3,
    "mess": 1.0,
    "mess_variable": 1.0,
    "applicability": 1.0,
    "agreement": 1e-2,
    "heat_unit_probability": 1e-2,
    "limiting_factor": 1.0,
}
_NOTHING = -32768
_SITES = 240  # labelled sites that go along, for explanations to compare with


def build_example(
    study_output: str | Path,
    output: str | Path,
    *,
    study_file: str | Path | None = None,
    data: str | Path | None = None,
    imagery: bool = True,
    invented: bool = False,
) -> dict[str, Any]:
    """Write the example.

    Args:
        study_output: Output folder of `agriclip fit` and `agriclip map`.
        output: Folder of the example; made anew.
        study_file: The study; by default the one that lies beside the fitted model.
        data: Folder of the study's data; by default what the study says.
        imagery: Take the imagery along, so that the live model sees what the map saw.
        invented: The landscape exists nowhere; the page says so, and draws no towns on it.

    Returns:
        The summary, as it is written to `summary.json`.

    Raises:
        AgriClipError: The folder holds no maps, or the example would be larger than 2 MB.
    """
    from processing.study import load_study
    from processing.study_data import StudyData

    source, folder = Path(study_output), Path(output)
    if not (source / "map.json").is_file():
        raise AgriClipError(f"'{source}' holds no map.json; make maps with `agriclip map STUDY --output {source}`.")
    told = json.loads((source / "map.json").read_text(encoding="utf-8"))
    fitted = _read_json(source / "fit.json")
    model_dir = Path(fitted.get("model_dir", source / "model"))
    model_dir = model_dir if model_dir.exists() else source / "model"
    study = load_study(study_file or model_dir / "study.yaml", data_root=data)
    studied = StudyData(study)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        climates = _write_maps(source, told, study, studied, temporary)
        parts = _write_inputs(study, studied, temporary, imagery)
        _write_changes(study, studied, temporary)
        training = _write_sites(study, studied, temporary)
        _write_study(study, studied, parts, temporary)
        summary = _summary(source, told, fitted, study, studied, climates, training)
        if invented:
            summary["invented"] = True
        write_whole(temporary / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise AgriClipError(
                f"The example would take {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:g}; map a coarser grid or "
                "leave the imagery away (--no-imagery)."
            )
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {**summary, "bytes": size}


def write_scaled(
    path: Path,
    values: NDArray[Any],
    grid: Any,
    scales: Sequence[float],
    *,
    names: Sequence[str],
    units: Sequence[str],
    tags: Mapping[str, Any] | None = None,
) -> Path:
    """Write bands as integers with a scale each: a cloud-optimised GeoTIFF of a few kilobytes.

    Args:
        path: The file.
        values: (C, h, w) in physical units, NaN where there is nothing.
        grid: Their grid.
        scales: (C,) worth of one stored step.
        names: (C,) descriptions.
        units: (C,) units.
        tags: Metadata.

    Raises:
        AgriClipError: A value does not fit 16 bits at its scale.
    """
    import rasterio
    import rasterio.shutil
    from rasterio.io import MemoryFile

    steps = np.asarray(scales, dtype=np.float64)[:, None, None]
    stored = np.round(values.astype(np.float64) / steps)
    if np.nanmax(np.abs(stored), initial=0.0) > 32767:
        raise AgriClipError(f"A value of {path.name} does not fit 16 bits at its scale; take a coarser one.")
    stored = np.where(np.isfinite(stored), stored, _NOTHING).astype(np.int16)
    profile = {
        "driver": "GTiff", "dtype": "int16", "count": len(stored), "height": grid.height, "width": grid.width,
        "crs": grid.crs, "transform": grid.transform, "nodata": _NOTHING,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with MemoryFile() as memory:
        with memory.open(**profile) as raster:
            raster.write(stored)
            raster.scales = [float(scale) for scale in scales]
            for band, (name, unit) in enumerate(zip(names, units, strict=True), start=1):
                raster.set_band_description(band, name)
                raster.set_band_unit(band, unit)
            raster.update_tags(**{key: str(value) for key, value in (tags or {}).items()})
        with memory.open() as raster, rasterio.Env(GDAL_PAM_ENABLED=False):
            rasterio.shutil.copy(
                raster, path, driver="COG", COMPRESS="DEFLATE", LEVEL=9, PREDICTOR=2, BLOCKSIZE=128, OVERVIEWS="NONE"
            )
    return path


# -- maps -------------------------------------------------------------------------------------------------------------


def _write_maps(source: Path, told: Mapping[str, Any], study: Any, studied: Any, folder: Path) -> list[dict[str, Any]]:
    """The layers of every climate; returns what the lists of the page hold."""
    from mapping.scenario_ensemble import pathway_title, scenario_groups

    climates: list[dict[str, Any]] = [{"key": "present", "title": "Present climate", "pathway": "", "period": ""}]
    for scenario in study.scenarios:
        if scenario.name in told["maps"]:
            title = scenario.title or scenario.name
            pathway = pathway_title(scenario.ssp) if scenario.ssp else title
            climates.append(
                {
                    "key": scenario.name,
                    "title": title,
                    "pathway": pathway,
                    "period": str(scenario.period or ""),
                    "climate_model": scenario.climate_model or "",
                }
            )
    for group in scenario_groups(study).values():
        if (source / "maps" / f"{group.name}_probability.tif").is_file():
            climates.append(
                {
                    "key": group.name,
                    "title": group.title,
                    "pathway": pathway_title(group.ssp),
                    "period": str(group.period),
                    "climate_model": "",
                    "members": list(group.scenarios),
                }
            )
    for climate in climates:
        climate["layers"] = []
        for layer, scale in LAYERS.items():
            file = source / "maps" / f"{climate['key']}_{layer}.tif"
            if not file.is_file() or _left_out(layer, climate):
                continue
            values = read_map(file)
            if layer == "mess":
                values = np.clip(values, -9999.0, 100.0)
            _, unit, tags = _described(file)
            write_scaled(
                folder / "maps" / f"{climate['key']}_{layer}.tif",
                values[None], studied.grid, [scale], names=[layer], units=[unit], tags=tags,
            )  # fmt: skip
            climate["layers"].append(layer)
    return climates


def _left_out(layer: str, climate: Mapping[str, Any]) -> bool:
    """What no screen shows: the rules and single members' details of the future, to stay below 2 MB."""
    future = climate["key"] != "present"
    return future and layer in ("probability_without_image", "heat_unit_probability")


def _described(file: Path) -> tuple[str, str, dict[str, str]]:
    """Name, unit and the tags worth keeping of a map."""
    import rasterio

    with rasterio.open(file) as raster:
        kept = ("long_name", "scenario", "title", "ssp", "period", "climate_model")
        tags = {key: value for key, value in raster.tags().items() if key in kept}
        return raster.descriptions[0] or "", raster.units[0] or "1", tags


# -- what the model is asked with -------------------------------------------------------------------------------------


@dataclass
class _Parts:
    """What the study file of the example says of its own rasters."""

    imagery: list[dict[str, Any]]
    agronomy: dict[str, Any] | None


def _write_inputs(study: Any, studied: Any, folder: Path, imagery: bool) -> _Parts:
    """Predictors, imagery and months, cropped to the grid."""
    grid, variables = studied.grid, studied.variables
    write_scaled(
        folder / "predictors.tif",
        studied.predictor_grid(),
        grid,
        [10.0**-variable.decimals for variable in variables],
        names=[variable.name for variable in variables],
        units=[variable.canonical_unit for variable in variables],
    )
    shown = _write_imagery(study, studied, folder) if imagery and studied.channels else []
    return _Parts(shown, _write_months(study, studied, folder))


def _write_imagery(study: Any, studied: Any, folder: Path) -> list[dict[str, Any]]:
    """The channels as the model sees them, on the pixels of the first image, with a rim for the chips at the edge."""
    from processing.grids import Grid, transform_points

    pixels = Grid.from_raster(study.path(study.imagery[0].file))
    west, south, east, north = studied.grid.bounds_in(pixels.crs)
    t, rim = pixels.transform, studied.chip_size
    columns = (math.floor((west - t.c) / t.a) - rim, math.ceil((east - t.c) / t.a) + rim)
    rows = (math.floor((north - t.f) / t.e) - rim, math.ceil((south - t.f) / t.e) + rim)
    columns = (max(0, columns[0]), min(pixels.width, columns[1]))
    rows = (max(0, rows[0]), min(pixels.height, rows[1]))
    part = Grid(pixels.crs, t @ t.translation(columns[0], rows[0]), columns[1] - columns[0], rows[1] - rows[0])
    x, y = part.cell_centres()
    lon, lat = transform_points(x.ravel(), y.ravel(), part.crs, studied.grid.crs)
    seen = np.empty((len(studied.channels), lon.size), dtype=np.float32)
    middle = studied.chip_size // 2
    for start in range(0, lon.size, 8192):
        cut = slice(start, start + 8192)
        values, valid = studied.chips(lon[cut], lat[cut])
        seen[:, cut] = np.where(valid, values, np.nan)[:, :, middle, middle].T
    values = seen.reshape(-1, *part.shape)
    scales = [_scale_of(band) for band in values]
    names = [channel.name for channel in studied.channels]
    write_scaled(
        folder / "imagery.tif", values, part, scales, names=names, units=[c.unit or "1" for c in studied.channels]
    )
    channels = []
    for channel in studied.channels:
        limits = [channel.valid_min, channel.valid_max]
        told = {
            "band": channel.name, "name": channel.name, "kind": channel.kind, "month": channel.month,
            "wavelength_nm": channel.wavelength_nm, "variable": channel.variable, "unit": channel.unit,
            "mean": channel.mean, "std": channel.std, "valid_range": None if None in limits else limits,
        }  # fmt: skip
        channels.append({key: value for key, value in told.items() if value is not None})
    return [{"file": "imagery.tif", "gsd": studied.gsd, "channels": channels}]


def _scale_of(band: NDArray[np.float32]) -> float:
    """A power of ten at which a band fits 16 bits, and no finer than a thousandth of its spread needs."""
    largest = float(np.nanmax(np.abs(band), initial=1e-6))
    return 10.0 ** (math.ceil(math.log10(largest)) - 3)


def _write_months(study: Any, studied: Any, folder: Path) -> dict[str, Any] | None:
    """Monthly climate for the planting window; returns the part `agronomy`."""
    from mapping.agronomy.layers import read_climate
    from mapping.agronomy.study_layers import agronomy_inputs

    if study.agronomy is None:
        return None
    inputs = agronomy_inputs(study)
    mean, spread, rain = (part.reshape(12, *studied.grid.shape) for part in read_climate(inputs, studied.grid))
    layers = {"precipitation": (rain, 1.0, "mm"), "mean_temperature": (mean, 0.1, "degC")}
    if study.agronomy.minimum_temperature is not None:
        layers["minimum_temperature"] = (mean - spread / 2, 0.1, "degC")
        layers["maximum_temperature"] = (mean + spread / 2, 0.1, "degC")
    part: dict[str, Any] = {"diurnal_range": study.agronomy.diurnal_range, "irrigated": study.agronomy.irrigated}
    for name, (values, scale, unit) in layers.items():
        write_scaled(
            folder / f"{name}.tif",
            values,
            studied.grid,
            [scale] * 12,
            names=[f"{name}_{month:02d}" for month in range(1, 13)],
            units=[unit] * 12,
        )
        part[name] = {"file": f"{name}.tif", "unit": unit}
    return part


def _write_changes(study: Any, studied: Any, folder: Path) -> None:
    """How each scenario moves the warmest and coldest quarter and the year's rain, for the planting window.

    As a change put on nothing: 0 degC and 1000 mm, so that differences and ratios are those of the climate model.
    """
    from mapping.agronomy.layers import BioclimChange
    from mapping.agronomy.study_layers import agronomy_inputs
    from processing.rasters import read_to_grid

    if study.agronomy is None or not study.scenarios:
        return
    grid, wrote = studied.grid, False
    names, units, scales = ["bio10", "bio11", "bio12"], ["degC", "degC", "mm"], [0.1, 0.1, 1.0]
    for scenario in study.scenarios:
        inputs = agronomy_inputs(study, scenario.name)
        change = None if inputs is None else inputs.change
        if not isinstance(change, BioclimChange):
            continue
        before, after = (
            read_to_grid(file, list(change.bands), grid)[0].astype(np.float64)
            for file in (change.baseline, change.future)
        )
        # One millimetre is added to both sides by the rule, where a ratio is taken.
        ratio = np.clip((after[2] + 1.0) / (before[2] + 1.0), 0.2, 5.0)
        values = np.stack([after[0] - before[0], after[1] - before[1], 1000.0 * ratio])
        write_scaled(folder / "changes" / f"{scenario.name}.tif", values, grid, scales, names=names, units=units)
        wrote = True
    if wrote:
        nothing = np.zeros((3, *grid.shape))
        nothing[2] = 1000.0
        write_scaled(folder / "changes" / "none.tif", nothing, grid, scales, names=names, units=units)


def _write_sites(study: Any, studied: Any, folder: Path) -> dict[str, Any]:
    """Some labelled sites, and the range of each predictor over all of them."""
    sites = studied.labels()
    table = studied.predictors(sites.x, sites.y)
    complete = np.flatnonzero(np.isfinite(table).all(axis=1))
    order = complete[np.argsort(sites.presence[complete].astype(float), kind="stable")]
    chosen = np.unique(order[np.linspace(0, len(order) - 1, min(_SITES, len(order))).round().astype(int)])
    from processing.grids import transform_points

    lon, lat = transform_points(sites.x, sites.y, studied.grid.crs, "EPSG:4326")
    with (folder / "sites.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["site", "lon", "lat", "positive", "total"])
        for number, site in enumerate(chosen, start=1):
            positive = int(sites.presence[site])
            rows.writerow([number, f"{lon[site]:.3f}", f"{lat[site]:.3f}", positive, 1])
    ranges = {}
    for column, variable in enumerate(studied.variables):
        known = table[complete, column]
        low, median, high = np.percentile(known, [0, 50, 100])
        ranges[variable.name] = {"low": float(low), "median": float(median), "high": float(high)}
    return {"sites": len(sites), "with_crop": int(sites.presence.sum()), "ranges": ranges}


def _write_study(study: Any, studied: Any, parts: _Parts, folder: Path) -> None:
    """The study file of the example."""
    import yaml

    grid = studied.grid
    variables = []
    for variable in studied.variables:
        variables.append(
            {"name": variable.name, "title": variable.title, "unit": variable.canonical_unit, "band": variable.name,
             "decimals": variable.decimals}
        )  # fmt: skip
    told: dict[str, Any] = {
        "name": f"{study.name}_example",
        "title": study.title,
        "description": study.description,
        "data": ".",
        "grid": {"like": "predictors.tif"},
        "labels": {
            "table": "sites.csv", "id": "site", "x": "lon", "y": "lat", "crs": "EPSG:4326",
            "kind": "presence_absence", "positive": "positive",
        },
        "predictors": [{"file": "predictors.tif", "variables": variables}],
        "imagery": parts.imagery,
        "chip": {"size": studied.chip_size},
        "training": {"number_dropout": study.training.number_dropout,
                     "sentence_dropout": study.training.sentence_dropout},
        "map": {"suitable_above": study.map.suitable_above},
    }  # fmt: skip
    if study.report.sentences:
        told["report"] = {"sentences": list(study.report.sentences)}
    if parts.agronomy:
        told["agronomy"] = parts.agronomy
    assert grid.width  # the grid is that of predictors.tif
    write_whole(folder / "study.yaml", yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=115))


def _summary(
    source: Path,
    told: Mapping[str, Any],
    fitted: Mapping[str, Any],
    study: Any,
    studied: Any,
    climates: list[dict[str, Any]],
    training: dict[str, Any],
) -> dict[str, Any]:
    """What the page says in words and lists."""
    what, _, _ = _described(source / "maps" / "present_probability.tif")
    import rasterio

    with rasterio.open(source / "maps" / "present_probability.tif") as raster:
        tags = raster.tags()
    ranges = training.pop("ranges")
    variables = [
        {"name": v.name, "title": v.title, "unit": v.canonical_unit, "decimals": v.decimals, **ranges[v.name]}
        for v in studied.variables
    ]
    return {
        "format": "agriclip-example-1",
        "name": study.name,
        "title": study.title,
        "description": study.description,
        "quantity": tags.get("long_name", what),
        "threshold": study.map.suitable_above,
        "members": int(tags.get("members", 1)),
        "model_sha256": tags.get("model_sha256", ""),
        "map_sha256": file_sha256(source / "maps" / "present_probability.tif"),
        "novel_percent": told.get("novel_percent", {}),
        "climates": climates,
        "variables": variables,
        "training": training,
        "comparison": fitted.get("comparison", []),
        "scores": fitted.get("scores", {}),
    }


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main(
    study_output: Annotated[Path, typer.Argument(help="Output folder of `agriclip fit` and `agriclip map`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the example.")] = Path(
        "spaces_demo/example"
    ),
    study: Annotated[Path | None, typer.Option(help="Study file. [default: the one beside the model]")] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="AGRICLIP_DATA", help="Folder of the study's data files.")
    ] = None,
    imagery: Annotated[bool, typer.Option(help="Take the imagery along.")] = True,
    invented: Annotated[bool, typer.Option("--invented", help="The landscape exists nowhere; say so.")] = False,
) -> None:
    """Write the example that the Space opens on."""
    made = build_example(study_output, output, study_file=study, data=data, imagery=imagery, invented=invented)
    typer.echo(f"{output}: {len(made['climates'])} climates, {made['bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
