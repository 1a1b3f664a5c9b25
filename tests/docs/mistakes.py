"""The mistakes that `own_study.md` tells of: how each is made in the practice study, and the command that meets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio

CHECK = ("study", "check", "practice/mystudy.yaml")
FIT = ("fit", "practice/mystudy.yaml", "--output", "out/other", "--quiet")
MAP = ("map", "practice/mystudy.yaml", "--output", "out/other", "--quiet")
FOLDER = Path("practice")


@dataclass(frozen=True)
class Mistake:
    """A way to spoil the practice study (in the present folder), and the command that complains."""

    spoil: Callable[[], None]
    command: tuple[str, ...] = CHECK


def study(old: str, new: str) -> Callable[[], None]:
    """Another text in the study file."""
    return lambda: _edit(FOLDER / "mystudy.yaml", old, new)


def labels(change: Callable[[list[list[str]]], None]) -> Callable[[], None]:
    """Other cells in the table of labels; row 0 is the header."""

    def spoil() -> None:
        path = FOLDER / "labels.csv"
        rows = [line.split(",") for line in path.read_text().splitlines()]
        change(rows)
        path.write_text("\n".join(",".join(row) for row in rows) + "\n")

    return spoil


def raster(
    name: str, change: Callable[[np.ndarray], np.ndarray] = lambda v: v, **profile: object
) -> Callable[[], None]:
    """Other values, or another profile, in a raster."""

    def spoil() -> None:
        path = FOLDER / name
        with rasterio.open(path) as source:
            values, old, names = source.read(), source.profile, source.descriptions
        path.unlink()
        with rasterio.open(path, "w", **{**old, **profile}) as target:
            target.write(change(values).astype(old["dtype"]))
            target.descriptions = names

    return spoil


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"'{old}' is not in {path}"
    path.write_text(text.replace(old, new, 1))


def _set(row: int, column: int, text: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        rows[row][column] = text

    return change


def _warmer(values: np.ndarray) -> np.ndarray:
    return np.where(values == -9999, values, values + 273.15)


MISTAKES: dict[str, Mistake] = {
    "a file's name": Mistake(study("file: land.tif", "file: lnd.tif")),
    "a key": Mistake(study("presence_above", "presense_above")),
    "a unit": Mistake(study("unit: degC}", "unit: degCC}")),
    "a band's name": Mistake(study("name: soil_ph,", "name: soil_ph, band: soil_p,")),
    "no CRS in a raster": Mistake(raster("land.tif", crs=None)),
    "a grid elsewhere": Mistake(
        study("{like: climate_present.tif}", '{bounds: [5, 45, 8, 48], crs: "EPSG:4326", resolution: 0.1}')
    ),
    "a column of the table": Mistake(study("positive: positive", "positive: hits")),
    "x and y exchanged": Mistake(study("  x: x\n  y: y", "  x: y\n  y: x")),
    "a place twice": Mistake(labels(lambda rows: rows.append(list(rows[1])))),
    "more hits than fields": Mistake(labels(_set(1, 3, "999"))),
    "an empty cell": Mistake(labels(_set(2, 3, ""))),
    "kelvin under degC": Mistake(raster("climate_present.tif", _warmer), FIT),
    "a map before the fit": Mistake(lambda: None, MAP),
    "a sentence with an unknown variable": Mistake(
        study("splits:", 'report: {sentences: ["Rain {sumer_rain}."]}\nsplits:')
    ),
    "a scenario of no predictor": Mistake(study("replace: {climate_present.tif", "replace: {climate.tif")),
}
