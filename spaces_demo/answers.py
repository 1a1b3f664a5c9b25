"""Answers to what a visitor brought: a map of a raster of predictors, a table of places or reports, a segmented image.

Two choices define this file. A raster is asked by bands of rows, so its memory is that of a band. And what goes back
is what a study's output is made of: a cloud-optimised GeoTIFF with its style beside it, or a CSV whose cells cannot be
read as formulas by a spreadsheet.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapping.layers import PROBABILITY_STOPS, Layer
from processing.errors import AgriClipError
from processing.whole_files import finished
from spaces_demo.engine import Engine
from spaces_demo.uploads import Upload, number_in, open_geotiff
from spaces_demo.whatif import out_of_range

__all__ = ["Answered", "answer_upload", "safe_cell", "segment_upload"]

_CELLS = 4096
_SHOWN = 200  # rows of a table that are shown


@dataclass(frozen=True)
class Answered:
    """What came out.

    Attributes:
        sentence: In plain words.
        files: What can be downloaded.
        header: Names of the columns of `rows`.
        rows: First rows of a table, to look at.
        picture: A PNG to look at.
    """

    sentence: str
    files: list[Path]
    header: list[str]
    rows: list[list[Any]]
    picture: Path | None = None


def answer_upload(
    upload: Upload, engine: Engine, folder: Path, progress: Callable[[float], None] | None = None
) -> Answered:
    """Ask the model about an upload.

    Args:
        upload: A raster of predictors, or a table.
        engine: The model.
        folder: Where files go.
        progress: Called with the share that is done.

    Raises:
        AgriClipError: Something speaks against the upload, or the model is not there.
    """
    if not upload.usable:
        raise AgriClipError(upload.refusal)
    tell = progress or (lambda share: None)
    if upload.kind == "predictors":
        return _map_raster(upload, engine, folder, tell)
    if upload.kind == "reports":
        return _ask_reports(upload, engine, folder)
    if upload.kind == "points":
        return _ask_points(upload, engine, folder)
    raise AgriClipError("This raster holds an image; ask for something in it by a text.")


def _map_raster(upload: Upload, engine: Engine, folder: Path, tell: Callable[[float], None]) -> Answered:
    """A probability for every pixel of a raster of predictors, from the report alone."""
    from affine import Affine
    from rasterio.windows import Window

    from processing.grids import Grid

    variables = engine.example.variables
    stem = Path(upload.name).stem
    layers = {
        "probability": Layer(f"{engine.example.quantity}, from the report alone", stops=PROBABILITY_STOPS),
        "std": Layer("standard deviation over the ensemble's members", stops=((0, "#fcfbfd"), (0.3, "#54278f"))),
        "out_of_range": Layer("variables outside the range of the labelled sites", dtype="uint8", nodata=255),
    }
    with open_geotiff(upload.path) as raster, ExitStack() as stack:
        transform = Affine(*raster.transform[:6])
        grid = Grid(raster.crs.to_wkt(), transform, raster.width, raster.height)
        tags = {"software": "AgriCLIP", "source": upload.name, "model_sha256": engine.predictor.hash}
        paths = {name: folder / f"{stem}_{name}.tif" for name in layers}
        writers = {name: layers[name].open(stack, paths[name], grid, name, tags) for name in layers}
        step = max(1, _CELLS // raster.width)
        suitable = total = 0.0
        for first in range(0, raster.height, step):
            height = min(step, raster.height - first)
            window = Window(0, first, raster.width, height)
            table = np.full((height * raster.width, len(variables)), np.nan)
            for column, variable in enumerate(variables):
                band = upload.bands[variable["name"]]
                seen = raster.read(band, window=window, masked=True)
                values = seen.filled(0).astype(np.float64) * raster.scales[band - 1] + raster.offsets[band - 1]
                values[np.ma.getmaskarray(seen)] = np.nan
                factor, offset = upload.factors[variable["name"]]
                table[:, column] = (values * factor + offset).ravel()
            known = np.flatnonzero(np.isfinite(table).all(axis=1))
            found = {name: layer.empty((len(table),)) for name, layer in layers.items()}
            if len(known):
                answer = engine.predict_table(table[known])
                found["probability"][known], found["std"][known] = answer.probability, answer.std
                low = np.array([v["low"] for v in variables])
                high = np.array([v["high"] for v in variables])
                found["out_of_range"][known] = ((table[known] < low) | (table[known] > high)).sum(axis=1)
            areas = grid.cell_areas_ha(slice(first, first + height)).ravel()
            total += float(areas[known].sum())
            suitable += float(areas[found["probability"] >= engine.example.threshold].sum())
            for name, writer in writers.items():
                writer.write(first, found[name].reshape(height, raster.width))
            tell((first + height) / raster.height)
    styles = [style for name in layers if (style := layers[name].write_style(paths[name])) is not None]
    sentence = (
        f"{suitable:,.0f} ha of {total:,.0f} ha ({_percent(suitable, total)}) reach a probability of "
        f"{engine.example.threshold:g}; the probability is from the report alone, without an image."
    )
    picture = _preview(paths["probability"], folder / f"{stem}_preview.png")
    return Answered(sentence, [*paths.values(), *styles], [], [], picture)


def _percent(part: float, whole: float) -> str:
    return "nothing" if whole <= 0 else f"{100 * part / whole:.1f} %"


def _preview(path: Path, picture: Path) -> Path:
    """A picture of a probability map."""
    from PIL import Image

    from mapping.outputs import read_map
    from spaces_demo.pictures import stop_colours

    values = read_map(path, max_size=700)
    image = Image.fromarray(stop_colours(values, PROBABILITY_STOPS))
    factor = max(1, 480 // max(image.size))
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(picture)
    return picture


def _ask_points(upload: Upload, engine: Engine, folder: Path) -> Answered:
    """A probability for every row: from its own predictors, or from the maps where the place lies."""
    example, variables = engine.example, engine.example.variables
    lon, lat = upload.columns.get("longitude"), upload.columns.get("latitude")
    notes = [""] * len(upload.rows)
    if upload.bands:
        table = np.full((len(upload.rows), len(variables)), np.nan)
        for column, variable in enumerate(variables):
            if variable["name"] in upload.bands:
                factor, offset = upload.factors[variable["name"]]
                values = [number_in(row.get(upload.bands[variable["name"]])) for row in upload.rows]
                table[:, column] = np.array(values) * factor + offset
        known = np.isfinite(table).any(axis=1)
        chance, spread = np.full(len(table), np.nan), np.full(len(table), np.nan)
        if known.any():
            answer = engine.predict_table(table[known])
            chance[known], spread[known] = answer.probability, answer.std
        for index, row in enumerate(table):
            left = out_of_range(np.where(np.isfinite(row), row, [v["median"] for v in variables]), variables)
            notes[index] = "no numbers" if not known[index] else f"outside training: {left[0]}" if left else ""
        extra: dict[str, Any] = {"probability": chance, "std": spread, "note": notes}
    else:
        assert lon is not None and lat is not None  # the checks stop a table without either
        keys = [c.key for c in example.climates.values() if c.key == "present" or c.members] or list(example.climates)
        columns: dict[str, list[float]] = {key: [] for key in keys}
        for index, row in enumerate(upload.rows):
            try:
                cell = example.cell(number_in(row.get(lon)), number_in(row.get(lat)))
            except AgriClipError as error:
                notes[index] = str(error)
                for key in keys:
                    columns[key].append(math.nan)
                continue
            for key in keys:
                columns[key].append(float(example.layer(key, "probability")[cell]))
            notes[index] = "outside the area of applicability" if example.layer("present", "applicability")[
                cell
            ] == 2 else ""  # fmt: skip
        extra = {f"probability_{key}": np.array(values) for key, values in columns.items()} | {"note": notes}
    return _table(upload, folder, extra)


def _ask_reports(upload: Upload, engine: Engine, folder: Path) -> Answered:
    """A probability for every report."""
    texts = [row.get(upload.columns["report"], "") for row in upload.rows]
    chance, spread, notes = [], [], []
    for text in texts:
        try:
            answer = engine.ask_texts([text])[0]
            chance.append(answer.probability)
            spread.append(answer.std)
            notes.append("")
        except AgriClipError as error:
            chance.append(math.nan)
            spread.append(math.nan)
            notes.append(str(error))
    if all(notes):
        raise AgriClipError(f"No report could be read; the first: {notes[0]}")
    return _table(upload, folder, {"probability": np.array(chance), "std": np.array(spread), "note": notes})


def _table(upload: Upload, folder: Path, extra: dict[str, Any]) -> Answered:
    """Write the visitor's table with the new columns behind."""
    header = list(upload.rows[0])
    path = folder / f"{Path(upload.name).stem}_answers.csv"
    shown: list[list[Any]] = []
    kept = [name for name in (*upload.columns.values(), "id", "name", "site") if name in header][:4]
    with finished(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([safe_cell(name) for name in [*header, *extra]])
        for index, row in enumerate(upload.rows):
            answers = [_number(values[index]) for values in extra.values()]
            writer.writerow([*(safe_cell(row.get(name, "")) for name in header), *answers])
            if index < _SHOWN:
                shown.append([row.get(name, "")[:80] for name in kept] + answers)
    first = next(iter(extra.values()))
    known = np.isfinite(first)
    sentence = f"{int(known.sum()):,} of {len(upload.rows):,} rows have an answer"
    if known.any():
        sentence += f"; the mean probability is {100 * float(first[known].mean()):.0f} %"
    return Answered(f"{sentence}.", [path], [*kept, *extra], shown)


def _number(value: Any) -> Any:
    if isinstance(value, str):
        return safe_cell(value)
    return "" if not math.isfinite(value) else round(float(value), 4)


def safe_cell(text: Any) -> str:
    """A cell that no spreadsheet takes for a formula; numbers stay as they are."""
    plain = str(text)
    if plain[:1] in "=+-@\t\r" and plain and not math.isfinite(number_in(plain)):
        return f"'{plain}"
    return plain


def segment_upload(
    upload: Upload, queries: Sequence[str], engine: Engine, folder: Path, sensor: str | None = None
) -> Answered:
    """Where in an image is what texts ask for.

    Args:
        upload: A raster that was taken as an image.
        queries: What is looked for.
        engine: The model.
        folder: Where files go.
        sensor: Name of the sensor; the model's by default.

    Raises:
        AgriClipError: The model was not fitted to segment, or the bands do not fit it.
    """
    texts = [text.strip()[:200] for text in queries if text.strip()]
    if not texts:
        raise AgriClipError('Nothing was asked for; write a text such as "soybean fields".')
    if len(texts) > 6:
        raise AgriClipError(f"{len(texts)} texts are too many at a time; ask for at most 6.")
    if not upload.usable:
        raise AgriClipError(upload.refusal)
    if not engine.can_segment():
        raise AgriClipError(
            "The model behind this page was not fitted to segment images; set AGRICLIP_MODEL to one that was."
        )
    from mapping.scene import map_scene

    try:
        with engine.alone():
            maps = map_scene(upload.path, engine.segment_dir, texts, folder, sensor=sensor or None, quiet=True)
    except AgriClipError as error:
        # Names of the server's folders are nobody's business.
        said = str(error).replace(str(upload.path), upload.name).replace(str(engine.segment_dir), "the model")
        raise AgriClipError(said) from error
    files = [*maps.probability.values()]
    if maps.classes is not None:
        files.append(maps.classes)
    files += [style for path in files if (style := path.with_suffix(".qml")).is_file()]
    return Answered(f"Probability of {', '.join(texts)}: {maps.weighed}.", files, [], [], maps.preview)
