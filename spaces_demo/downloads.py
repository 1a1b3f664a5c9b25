"""What a visitor takes home: maps as cloud-optimised GeoTIFFs with their QGIS styles, areas as CSV, and a manifest.

A map of the example is written out again in its own unit, as a study writes it, with what it is and which model made
it in the tags; the zip holds nothing that is not named in its manifest.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapping.change import CHANGE_CLASSES, area_units, change_classes
from mapping.layers import PROBABILITY_STOPS, Layer
from mapping.outputs import class_raster_options, file_sha256, write_cog, write_qgis_style
from processing.errors import AgriClipError
from processing.whole_files import finished, write_whole
from spaces_demo.example import PRESENT, Example

__all__ = ["EXPORTS", "area_rows", "export_zip", "write_area_table", "write_layer"]

#: Layers that can be taken home.
EXPORTS: dict[str, Layer] = {
    "probability": Layer("probability", stops=PROBABILITY_STOPS),
    "std": Layer("standard deviation over members and climate models", stops=((0.0, "#fcfbfd"), (0.35, "#3f007d"))),
    "mess": Layer("novelty (MESS)", "%", stops=((-60.0, "#7f3b08"), (0.0, "#f7f7f7"), (60.0, "#2d004b"))),
    "change": Layer("change against the present", dtype="uint8", classes=CHANGE_CLASSES),
}


def write_layer(example: Example, key: str, layer: str, threshold: float, folder: Path) -> list[Path]:
    """Write a layer of a climate as a COG with its style; returns both.

    Raises:
        AgriClipError: There is no such layer, or no change of the present.
    """
    climate = example.climate(key)
    if layer not in EXPORTS:
        raise AgriClipError(f"There is no layer '{str(layer)[:40]}'; choose one of {', '.join(EXPORTS)}.")
    if layer == "change" and key == PRESENT:
        raise AgriClipError("The present does not change against itself; choose a scenario for the change.")
    tags = {
        "title": climate.title,
        "scenario": key,
        "model_sha256": example.summary["model_sha256"],
        "software": "AgriCLIP",
        "long_name": example.quantity if layer == "probability" else EXPORTS[layer].title,
    }
    path = folder / f"{key}_{layer}.tif"
    spec = EXPORTS[layer]
    if spec.classes is not None:
        values = change_classes(example.layer(PRESENT, "probability"), example.layer(key, "probability"), threshold)
        options = class_raster_options(spec.classes)
        options["tags"] = {**options["tags"], **tags, "threshold": threshold}
        write_cog(path, values, example.grid, band_names=[layer], **options)
        return [path, write_qgis_style(path, classes=spec.classes)]
    write_cog(path, example.layer(key, layer), example.grid, tags=tags, band_names=[layer], units=[spec.unit])
    return [path, write_qgis_style(path, stops=spec.stops)]


def area_rows(example: Example, keys: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """Areas of the classes of change of each climate, in three units, with the shift of the centre."""
    rows = []
    for key in keys:
        climate, summary = example.climate(key), example.areas(key, threshold)
        if key == PRESENT:
            rows.append(_row(climate.title, "suitable", summary.present_ha, threshold))
            continue
        for title, hectares in summary.areas_ha.items():
            rows.append(_row(climate.title, title, hectares, threshold))
        row = _row(climate.title, "suitable", summary.future_ha, threshold)
        row["shift_km"] = "" if summary.shift_km is None else round(summary.shift_km, 1)
        row["towards"] = summary.compass or ""
        rows.append(row)
    return rows


def _row(title: str, name: str, hectares: float, threshold: float) -> dict[str, Any]:
    areas = {unit: round(value) for unit, value in area_units(hectares).items()}
    return {"climate": title, "class": name, "threshold": threshold, **areas, "shift_km": "", "towards": ""}


def write_area_table(example: Example, keys: Sequence[str], threshold: float, path: Path) -> Path:
    """Write `area_rows` as a CSV."""
    rows = area_rows(example, keys, threshold)
    with finished(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def export_zip(example: Example, keys: Sequence[str], layers: Sequence[str], threshold: float, folder: Path) -> Path:
    """Write maps, styles, areas and a manifest into one zip.

    Raises:
        AgriClipError: Nothing was chosen, or a threshold that is none.
    """
    if not keys or not layers:
        raise AgriClipError("Nothing was chosen; tick at least one climate and one layer.")
    if not 0 < threshold < 1 or not np.isfinite(threshold):
        raise AgriClipError(f"The threshold of suitability is {threshold}; give a probability between 0 and 1.")
    files: list[Path] = []
    for key in dict.fromkeys(keys):
        for layer in dict.fromkeys(layers):
            if layer == "change" and key == PRESENT:
                continue
            files += write_layer(example, key, layer, threshold, folder)
    files.append(write_area_table(example, list(dict.fromkeys(keys)), threshold, folder / "areas.csv"))
    manifest = {
        "title": example.summary["title"],
        "invented": example.invented,
        "quantity": example.quantity,
        "threshold": threshold,
        "model_sha256": example.summary["model_sha256"],
        "climates": {key: example.climate(key).title for key in keys},
        "files": {path.name: file_sha256(path) for path in files},
    }
    files.append(write_whole(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"))
    target = folder / "agriclip_maps.zip"
    with finished(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.name)
    return target
