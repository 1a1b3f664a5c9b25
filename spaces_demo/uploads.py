"""What a visitor brings along, looked at before anything of it is believed.

Three choices define this file. The first bytes say what a file is, not its name; a raster is opened as a GeoTIFF and
as nothing else, because other formats of GDAL may point to other files. Its size is judged by what it declares,
before a pixel is read. And every check is a row of a table, so that all of them are told at once, with what to do.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from processing.errors import AgriClipError, named, nearest
from processing.numbers_agriclip import to_canonical
from spaces_demo.sessions import Session, safe_name

__all__ = ["Check", "Upload", "check_table", "open_geotiff", "take_file"]

MOST_BYTES = 200 * 2**20
MOST_VALUES = 40_000_000  # pixels times bands of a raster
MOST_PIXELS = 6_000_000
MOST_BANDS = 256
MOST_ROWS = 5_000
MOST_REPORTS = 200
MOST_COLUMNS = 300
_SAMPLE = 512  # edge of the thinned copy that ranges are taken from
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_ARCHIVES = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\x28\xb5\x2f\xfd",
)
_LONGITUDES = ("lon", "longitude", "long", "x", "lng")
_LATITUDES = ("lat", "latitude", "y")


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        what: What was looked at.
        found: What is there.
        state: `ok`, `note` (is taken, but look) or `stop` (is not taken).
        todo: What to do about it.
    """

    what: str
    found: str
    state: str = "ok"
    todo: str = ""


@dataclass
class Upload:
    """A file that was taken.

    Attributes:
        path: Where it lies, in the visitor's folder.
        name: Its name without folders.
        kind: `predictors` (raster), `image` (raster), `points` (CSV) or `reports` (CSV).
        checks: The table.
        bands: Variable -> band number (from 1) or column name.
        factors: Variable -> (factor, offset) from the unit of the file to the canonical one.
        columns: Names of the columns of longitude, latitude and report.
        rows: Rows of a CSV.
    """

    path: Path
    name: str
    kind: str
    checks: list[Check] = field(default_factory=list)
    bands: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, tuple[float, float]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against going on."""
        return all(check.state != "stop" for check in self.checks)

    @property
    def refusal(self) -> str:
        """The first thing that speaks against it, in one sentence."""
        for check in self.checks:
            if check.state == "stop":
                return f"{check.what}: {check.found}; {check.todo}."
        return ""


def take_file(given: str | Path | None, session: Session, name: str | None = None) -> tuple[Path, str, str]:
    """Copy an uploaded file into the visitor's folder.

    Args:
        given: Where the file lies.
        session: The visitor.
        name: Its name as the visitor calls it.

    Returns:
        Path, safe name, and `raster` or `table`.

    Raises:
        AgriClipError: There is none, it is too large, or it is neither a GeoTIFF nor a CSV.
    """
    if not given:
        raise AgriClipError("There is no file yet; choose a GeoTIFF or a CSV.")
    source = Path(given)
    if not source.is_file():
        raise AgriClipError("The file is gone; choose it again.")
    called = safe_name(name or source.name)
    size = source.stat().st_size
    if size > MOST_BYTES:
        raise AgriClipError(
            f"'{called}' has {size / 2**20:,.0f} MB, more than the {MOST_BYTES >> 20} that are taken here; cut it, or "
            "run `agriclip map` on your own machine."
        )
    if size == 0:
        raise AgriClipError(f"'{called}' is empty; choose another file.")
    with source.open("rb") as stream:
        start = stream.read(8192)
    if any(start.startswith(magic) for magic in _ARCHIVES):
        raise AgriClipError(f"'{called}' is an archive; unpack it and choose the GeoTIFF or CSV inside.")
    kind = "raster" if start.startswith(_TIFF) else "table"
    if kind == "table" and (b"\x00" in start or not _is_text(start)):
        raise AgriClipError(f"'{called}' is neither a GeoTIFF nor a text table; choose a .tif or a .csv file.")
    if kind == "table" and called.lower().endswith((".tif", ".tiff")):
        raise AgriClipError(f"'{called}' is called a raster but holds text; export it as a GeoTIFF.")
    if kind == "table" and start.lstrip()[:1] in (b"<", b"{"):
        raise AgriClipError(f"'{called}' is neither a GeoTIFF nor a CSV; choose a table with a line of column names.")
    target = session.fresh("upload") / called
    shutil.copyfile(source, target)
    return target, called, kind


def _is_text(start: bytes) -> bool:
    for cut in range(4):  # a character may be cut at the end of the sample
        try:
            start[: len(start) - cut].decode("utf-8")
            return True
        except UnicodeDecodeError:
            continue
    return False


@contextmanager
def open_geotiff(path: Path) -> Iterator[Any]:
    """Open a file as a GeoTIFF and as nothing else, without looking at files beside it.

    Raises:
        AgriClipError: It cannot be read as one.
    """
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with (
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_CACHEMAX=64, GDAL_PAM_ENABLED="NO"),
            rasterio.open(path, driver="GTiff", sharing=False) as raster,
        ):
            yield raster
    except RasterioError as error:
        raise AgriClipError(f"'{path.name}' cannot be read as a GeoTIFF; write it again or choose another.") from error


def look_at(path: Path, called: str, kind: str, variables: Sequence[dict[str, Any]], purpose: str = "auto") -> Upload:
    """Check a file that was taken.

    Args:
        path: The file.
        called: Its name.
        kind: `raster` or `table`.
        variables: Predictors of the study: name, title, unit, low, high.
        purpose: Of a raster: `predictors`, `image`, or `auto` (predictors where its bands are named so).

    Raises:
        AgriClipError: It cannot be read at all.
    """
    if kind == "table":
        return _look_at_table(path, called, variables)
    return _look_at_raster(path, called, variables, purpose)


# -- rasters ----------------------------------------------------------------------------------------------------------


def _look_at_raster(path: Path, called: str, variables: Sequence[dict[str, Any]], purpose: str) -> Upload:
    with open_geotiff(path) as raster:
        upload = Upload(path, called, "image")
        checks = upload.checks
        values = raster.width * raster.height * raster.count
        size = f"{raster.width:,} x {raster.height:,} pixels, {raster.count} band{'s' * (raster.count != 1)}"
        too_large = values > MOST_VALUES or raster.width * raster.height > MOST_PIXELS or raster.count > MOST_BANDS
        checks.append(
            Check("Size", size, "stop", f"at most {MOST_PIXELS:,} pixels and {MOST_VALUES:,} values are taken, cut it")
            if too_large
            else Check("Size", size)
        )
        if raster.crs is None:
            checks.append(Check("CRS", "none", "stop", "give it one, e.g. `gdal_edit.py -a_srs EPSG:4326 file.tif`"))
        else:
            code = raster.crs.to_epsg()
            checks.append(Check("CRS", f"EPSG:{code}" if code else "known, without a code"))
        if raster.transform.b or raster.transform.d or raster.transform.e >= 0:
            checks.append(Check("Grid", "rotated or upside down", "stop", "warp it to a north-up grid first"))
        if any(dtype.startswith("complex") for dtype in raster.dtypes):
            checks.append(Check("Numbers", "complex", "stop", "give real numbers"))
        if too_large:
            return upload  # nothing of it is read
        matched = _match_bands(list(raster.descriptions), variables)
        if purpose == "predictors" or (purpose == "auto" and len(matched) >= max(1, len(variables) // 2)):
            upload.kind = "predictors"
            _check_predictors(raster, upload, matched, variables)
        else:
            checks.append(
                Check("Bands", named([d or f"band {i}" for i, d in enumerate(raster.descriptions, 1)], 8), "ok",
                      "taken as an image, to be searched by a text")
            )  # fmt: skip
            _check_nodata(raster, upload, 1)
    return upload


def _match_bands(descriptions: Sequence[str | None], variables: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Variable -> band whose description is its name or its title."""
    found: dict[str, int] = {}
    for number, description in enumerate(descriptions, start=1):
        folded = (description or "").strip().lower()
        for variable in variables:
            if folded and folded in (variable["name"].lower(), variable["title"].lower()):
                found.setdefault(variable["name"], number)
    return found


def _check_predictors(
    raster: Any, upload: Upload, matched: dict[str, int], variables: Sequence[dict[str, Any]]
) -> None:
    checks = upload.checks
    lacking = [variable["name"] for variable in variables if variable["name"] not in matched]
    if lacking:
        unnamed = [i for i, text in enumerate(raster.descriptions, 1) if not text]
        here = [text for text in raster.descriptions if text]
        hint = f"describe the bands: {nearest(here[0], (v['name'] for v in variables))}" if here else "name the bands"
        found = f"{len(matched)} of {len(variables)} predictors; {named(lacking, 6)} missing"
        checks.append(Check("Bands", found + (f"; {len(unnamed)} without a name" if unnamed else ""), "stop", hint))
    else:
        checks.append(Check("Bands", f"all {len(variables)} predictors, by name"))
    for variable in variables:
        if variable["name"] in matched:
            number = matched[variable["name"]]
            upload.bands[variable["name"]] = number
            _check_unit(upload, variable, raster.units[number - 1] or "", "band")
    _check_units_told(upload, variables)
    if raster.crs is None:
        return
    valid = _check_nodata(raster, upload, next(iter(matched.values()), 1))
    if valid:
        for variable in variables:
            if variable["name"] in matched and variable["name"] in upload.factors:
                sample = _sample(raster, matched[variable["name"]])
                factor, offset = upload.factors[variable["name"]]
                _check_range(checks, variable, sample * factor + offset)


def _sample(raster: Any, band: int) -> np.ndarray:
    """A thinned copy of a band in the file's unit, valid values only."""
    shape = (min(_SAMPLE, raster.height), min(_SAMPLE, raster.width))
    seen = raster.read(band, out_shape=shape, masked=True)
    values = seen.compressed().astype(np.float64) * raster.scales[band - 1] + raster.offsets[band - 1]
    return values[np.isfinite(values)]


def _check_nodata(raster: Any, upload: Upload, band: int) -> bool:
    shape = (min(_SAMPLE, raster.height), min(_SAMPLE, raster.width))
    try:
        seen = raster.read(band, out_shape=shape, masked=True)
    except Exception as error:
        raise AgriClipError(f"'{upload.name}' is damaged: band {band} cannot be read; write it again.") from error
    known = ~np.ma.getmaskarray(seen) & np.isfinite(seen.filled(0).astype(np.float64))
    share = float(1 - known.mean())
    value = "none set" if raster.nodata is None else f"{raster.nodata:g}"
    if share >= 1:
        upload.checks.append(Check("Nodata", f"{value}; nothing else in the file", "stop", "check its nodata value"))
        return False
    upload.checks.append(
        Check("Nodata", f"{value}; {100 * share:.0f} % of the pixels", "note" if share > 0.5 else "ok")
    )
    return True


# -- tables -----------------------------------------------------------------------------------------------------------


def _look_at_table(path: Path, called: str, variables: Sequence[dict[str, Any]]) -> Upload:
    upload = Upload(path, called, "points")
    header, rows, delimiter = _read_rows(path, called)
    upload.rows = rows
    folded = {name.strip().lower(): name for name in header}
    checks = upload.checks
    checks.append(Check("Table", f"{len(rows):,} rows, {len(header)} columns, separated by '{delimiter}'"))
    report = next((folded[name] for name in ("report", "text", "sentence", "reports") if name in folded), None)
    lon = next((folded[name] for name in _LONGITUDES if name in folded), None)
    lat = next((folded[name] for name in _LATITUDES if name in folded), None)
    by_name = {}
    for variable in variables:
        for spelling in (variable["name"].lower(), variable["title"].lower()):
            column = next((f for f in folded if f == spelling or f.startswith(f"{spelling} (")), None)
            if column is not None:
                by_name[variable["name"]] = folded[column]
                break
    if report is not None:
        upload.kind, upload.columns["report"] = "reports", report
        if len(rows) > MOST_REPORTS:
            checks.append(Check("Reports", f"{len(rows):,}", "stop", f"at most {MOST_REPORTS} are taken at a time"))
        else:
            checks.append(Check("Reports", f"column '{report}'"))
        return upload
    if len(rows) > MOST_ROWS:
        checks.append(Check("Rows", f"{len(rows):,}", "stop", f"at most {MOST_ROWS:,} are taken at a time"))
    if lon and lat:
        upload.columns |= {"longitude": lon, "latitude": lat}
        xs, ys = (np.array([number_in(row.get(name)) for row in rows]) for name in (lon, lat))
        bad = ~((np.abs(xs) <= 180) & (np.abs(ys) <= 90))
        state = "stop" if bad.all() else "note" if bad.any() else "ok"
        told = f"{lon}, {lat}; degrees (EPSG:4326)"
        todo = f"{int(bad.sum())} rows have no longitude from -180 to 180 and latitude from -90 to 90"
        checks.append(Check("Places", told, state, todo if bad.any() else ""))
    if by_name:
        lacking = [variable["name"] for variable in variables if variable["name"] not in by_name]
        if lacking:
            checks.append(
                Check("Predictors", f"{len(by_name)} of {len(variables)}; {named(lacking, 6)} missing", "note",
                      "a report without those numbers is asked")
            )  # fmt: skip
        else:
            checks.append(Check("Predictors", f"all {len(variables)}, by name"))
        upload.bands = dict(by_name)
        for variable in variables:
            if variable["name"] not in by_name:
                continue
            column = by_name[variable["name"]]
            unit = column[column.index("(") + 1 :].rstrip(") ") if "(" in column else ""
            _check_unit(upload, variable, unit, "column")
            if variable["name"] in upload.factors:
                factor, offset = upload.factors[variable["name"]]
                values = np.array([number_in(row.get(column)) for row in rows]) * factor + offset
                missing = int((~np.isfinite(values)).sum())
                if missing:
                    checks.append(Check(variable["name"], f"{missing} of {len(rows)} rows without a number", "note"))
                _check_range(checks, variable, values[np.isfinite(values)])
        _check_units_told(upload, variables)
    elif not (lon and lat):
        near = nearest(header[0] if header else "", ["lon", "lat", "report", *(v["name"] for v in variables)])
        checks.append(
            Check("Columns", named(header, 6), "stop",
                  f"name columns lon and lat, or report, or the predictors ({near})")
        )  # fmt: skip
    else:
        checks.append(Check("Predictors", "none: taken from the map where each place lies"))
    return upload


def _read_rows(path: Path, called: str) -> tuple[list[str], list[dict[str, str]], str]:
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count) if any(mark in first for mark in ",;\t") else ","
    csv.field_size_limit(1 << 20)
    try:
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
        header = [name for name in reader.fieldnames or [] if name is not None]
        if not header or len(header) > MOST_COLUMNS:
            raise AgriClipError(f"'{called}' has {len(header)} columns; give a line of 1 to {MOST_COLUMNS} names.")
        rows = []
        for row in reader:
            rows.append(
                {key: value or "" for key, value in row.items() if key is not None and isinstance(value, str | None)}
            )
            if len(rows) > 10 * MOST_ROWS:
                raise AgriClipError(
                    f"'{called}' has more than {10 * MOST_ROWS:,} rows; at most {MOST_ROWS:,} are taken."
                )
    except csv.Error as error:
        raise AgriClipError(f"'{called}' cannot be read as a table ({error}); export it as CSV again.") from error
    if not rows:
        raise AgriClipError(f"'{called}' has column names but no rows; add some.")
    return header, rows, {"\t": "tab"}.get(delimiter, delimiter)


def number_in(text: str | None) -> float:
    """A number of a cell; NaN where there is none."""
    try:
        return float(str(text or "").strip().replace("−", "-"))
    except ValueError:
        return math.nan


# -- both -------------------------------------------------------------------------------------------------------------


def _check_unit(upload: Upload, variable: dict[str, Any], unit: str, where: str) -> None:
    """How to come from the unit of the file to the canonical one."""
    name, wanted = variable["name"], variable["unit"]
    if not unit or unit == wanted:
        upload.factors[name] = (1.0, 0.0)
        return
    try:
        zero, found = to_canonical(0.0, unit)
        thousand, _ = to_canonical(1000.0, unit)
    except ValueError:
        todo = f"write a known unit, such as {wanted}"
        upload.checks.append(Check(f"Unit of {name}", f"'{unit[:30]}' of the {where}", "stop", todo))
        return
    if found != wanted:
        upload.checks.append(
            Check(f"Unit of {name}", f"{unit[:30]}, a unit of {found}", "stop", f"give it in {wanted}")
        )
        return
    upload.factors[name] = ((thousand - zero) / 1000.0, zero)
    if (zero, thousand) != (0.0, 1000.0):
        upload.checks.append(Check(f"Unit of {name}", f"{unit[:30]}, converted to {wanted}", "note"))


def _check_units_told(upload: Upload, variables: Sequence[dict[str, Any]]) -> None:
    if not any(check.what.startswith("Unit of") for check in upload.checks):
        units = named(dict.fromkeys(v["unit"] for v in variables if v["name"] in upload.bands), 5)
        upload.checks.append(Check("Units", f"taken as {units}" if units else "none"))


def _check_range(checks: list[Check], variable: dict[str, Any], values: np.ndarray) -> None:
    """Compare values with the range of the labelled sites; say what a wrong unit looks like."""
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    unit = "" if variable["unit"] == "1" else f" {variable['unit']}"
    told = f"{low:.6g} to {high:.6g}{unit}"
    outside = float(((values < variable["low"]) | (values > variable["high"])).mean())
    digits = variable["decimals"]
    known = f"labelled sites: {variable['low']:.{digits}f} to {variable['high']:.{digits}f}"
    what = f"Range of {variable['name']}"
    median = float(np.median(values))
    span = variable["high"] - variable["low"]
    if variable["unit"] == "degC" and 200 < median < 340:
        checks.append(Check(what, told, "stop", f"that looks like kelvin; say so as its unit, K ({known})"))
    elif span > 0 and (median > variable["high"] + 20 * span or median < variable["low"] - 20 * span):
        checks.append(Check(what, told, "stop", f"check its unit and nodata value ({known})"))
    elif outside > 0:
        checks.append(
            Check(what, told, "note", f"{max(100 * outside, 1):.0f} % outside what the model was fitted on ({known})")
        )


def check_table(checks: Sequence[Check]) -> list[list[str]]:
    """Rows for a table: what, found, judgement, what to do."""
    words = {"ok": "ok", "note": "look", "stop": "not taken"}
    return [[check.what, check.found, words[check.state], check.todo] for check in checks]
