"""Raster files: opening them, the variables they hold, and what their headers say.

Whatever GDAL opens is read: GeoTIFF, COG, VRT, and NetCDF or Zarr, of which a variable is named as `climate.nc:tas`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import AgriClipError, named, nearest

try:
    import rasterio
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Reading rasters needs rasterio; install it with: pip install 'agriclip[maps]'.") from error

Bands = int | str | Sequence[int | str] | None

# a file of many variables followed by the name of one; GDAL's own NETCDF:"climate.nc":tas is taken too
_VARIABLE = re.compile(r'^(?:(?:netcdf|zarr):)?"?(.+?\.(?:nc|nc4|cdf|h5|hdf5|zarr))"?:(/*[A-Za-z_][\w./ -]*)$', re.I)
_BOUNDS = re.compile(r"(_bnds|_bounds|_vertices|^crs|^spatial_ref)$", re.I)  # of cells and times: no variables to map


@dataclass(frozen=True)
class RasterInfo:
    """What a raster file says of itself, without its pixels; tuples have one entry per band.

    `transform` is that of rows from north to south; `turned` says that the file stores them from south to north.
    `period` is the number of columns round the Earth, None where columns are no whole part of 360 degrees.
    """

    path: Path
    crs: str | None
    transform: Affine
    width: int
    height: int
    count: int
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str | None, ...]
    units: tuple[str | None, ...]
    turned: bool = False
    period: int | None = None

    @property
    def rotated(self) -> bool:
        """Whether columns do not run from west to east, or rows not from north to south."""
        t = self.transform
        return bool(t.b or t.d or t.a < 0)

    def band_number(self, band: int | str) -> int:
        """Return the 1-based number of a band given by number or description.

        Raises:
            AgriClipError: When the raster has no such band, or two that answer to the description.
        """
        if isinstance(band, int):
            if 1 <= band <= self.count:
                return band
            raise AgriClipError(f"'{self.path}' has no band {band}: it has {self.count} band{'s' * (self.count > 1)}.")
        names = [name for name in self.descriptions if name]
        hits = [n for n, name in enumerate(self.descriptions, 1) if name and name.lower() == band.lower()]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise AgriClipError(f"'{self.path}' has {len(hits)} bands called '{band}'; give its number instead.")
        advice = nearest(band, names) if names else f"its {self.count} bands have no names, give a band's number"
        raise AgriClipError(f"'{self.path}' has no band '{band}'; {advice}.")

    def band_numbers(self, bands: Bands) -> list[int]:
        """Return the 1-based numbers of several bands; None means all of them."""
        if bands is None:
            return list(range(1, self.count + 1))
        return [self.band_number(band) for band in ([bands] if isinstance(bands, int | str) else bands)]


def no_crs(path: str | Path) -> AgriClipError:
    """Return the error for a raster without a coordinate reference system."""
    if file_of(path).suffix.lower() in (".nc", ".nc4", ".cdf", ".h5", ".hdf5"):
        return AgriClipError(
            f"'{path}' is on no regular grid with a CRS, or its axes have no units, so it cannot be placed; put it on "
            "a grid of longitude and latitude, for example with: cdo remapbil."
        )
    return AgriClipError(f"'{path}' has no CRS, so it cannot be placed; set one with: rio edit-info --crs EPSG:4326.")


def split_variable(path: str | Path) -> tuple[str, str | None]:
    """Split `climate.nc:tas`, or GDAL's `NETCDF:"climate.nc":tas`, into file and variable; None without one."""
    match = _VARIABLE.match(str(path))
    return (match[1], match[2]) if match else (str(path), None)


def file_of(path: str | Path) -> Path:
    """Return the file, or Zarr folder, that a raster lies in: `climate.nc` of `climate.nc:tas`."""
    return Path(split_variable(path)[0])


def raster_exists(path: str | Path) -> bool:
    """Whether the file of a raster is there; remote files and archives are GDAL's to find."""
    file = file_of(path)
    return _is_remote(path) or file.is_file() or (file.suffix.lower() == ".zarr" and file.is_dir())


def _is_remote(path: str | Path) -> bool:
    return re.match(r"^(\w{2,}:/|/vsi)", str(path)) is not None


def open_raster(path: str | Path) -> Any:
    """Open a raster, or a variable of one (`climate.nc:tas`), for reading.

    Raises:
        AgriClipError: In one sentence, when the file is missing, is no raster, or holds several variables or not the
            one that is named.
    """
    # a Path halves the slashes of a URL
    text = re.sub(r"^(\w{2,}):/(?=[^/])", r"\1://", str(path))
    if not raster_exists(path):
        folder = file_of(path).parent
        near = nearest(file_of(path).name, (p.name for p in folder.iterdir())) if folder.is_dir() else ""
        advice = near if near.startswith("did") else "check the path and the study's data folder"
        raise AgriClipError(f"The raster '{path}' does not exist; {advice}.")
    file, name = split_variable(text)
    try:
        if name is None:
            # a server's folder is not listed to look for files beside this one
            with rasterio.Env(**({"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if _is_remote(path) else {})):
                source = rasterio.open(text)
        elif file.lower().endswith(".zarr"):
            return rasterio.open(f'ZARR:"{file}":/{name.lstrip("/")}')
        else:
            return rasterio.open(f'NETCDF:"{file}":{name}')
    except RasterioIOError as error:
        known = _variables(file) if name is not None else {}
        if known:
            raise AgriClipError(f"'{file}' has no variable '{name}'; {nearest(name, known)}.") from error
        raise AgriClipError(f"'{path}' cannot be read as a raster ({error}); is it whole, and a GeoTIFF?") from error
    if source.count:
        return source
    source.close()
    known = _variables(file)
    if len(known) == 1:
        return rasterio.open(next(iter(known.values())))
    if known:
        first = next(iter(known))
        raise AgriClipError(
            f"'{path}' holds several variables ({named(known)}); name one, for example '{Path(file).name}:{first}'."
        )
    raise AgriClipError(f"'{path}' holds no bands; give a raster with data.")


def _variables(file: str) -> dict[str, str]:
    """Names of the variables of a file that holds several, and what GDAL calls each."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the file as a whole lies nowhere
            with rasterio.open(file) as source:
                found = {str(name).rsplit(":", 1)[-1].lstrip("/"): str(name) for name in source.subdatasets}
                if not found and source.count:
                    variable = source.tags(1).get("NETCDF_VARNAME")
                    found = {variable: file} if variable else {}
    except RasterioIOError:
        return {}
    return {name: place for name, place in found.items() if not _BOUNDS.search(name)}


def read_band_info(path: str | Path) -> RasterInfo:
    """Read the header of a raster: placement, bands, nodata, scale, offset, units."""
    with open_raster(path) as source:
        return describe_raster(source, path)


def describe_raster(source: Any, path: str | Path) -> RasterInfo:
    """What the header of an open raster says."""
    crs, transform = source.crs, source.transform
    if not crs and _has_degrees(source):
        crs = CRS.from_epsg(4326)
    turned = transform.e > 0 and not (transform.b or transform.d or transform.is_identity)
    if turned:
        transform = transform @ Affine(1.0, 0.0, 0.0, 0.0, -1.0, source.height)
    return RasterInfo(
        path=Path(path),
        crs=crs.to_string() if crs else None,
        transform=transform,
        width=source.width,
        height=source.height,
        count=source.count,
        dtypes=tuple(source.dtypes),
        nodata=tuple(source.nodatavals),
        scales=tuple(float(scale) for scale in source.scales),
        offsets=tuple(float(offset) for offset in source.offsets),
        descriptions=_descriptions(source),
        units=tuple(source.units),
        turned=turned,
        period=_period(crs, transform),
    )


def _has_degrees(source: Any) -> bool:
    """Whether the axes of a file without a CRS are longitude and latitude by the CF conventions."""
    if source.driver not in ("netCDF", "HDF5Image", "Zarr") or source.transform.is_identity:
        return False
    units = {str(value) for key, value in source.tags().items() if key.endswith("#units")}
    return any(u.startswith("degree") and u.endswith(("n", "north")) for u in map(str.lower, units)) and any(
        u.startswith("degree") and u.endswith(("e", "east")) for u in map(str.lower, units)
    )


def _descriptions(source: Any) -> tuple[str | None, ...]:
    """Descriptions of bands; those of a NetCDF variable are its name, with the step of its time where it has several.

    The steps `tas_01`, `tas_02`, ... are counted from the file's first, whatever its date.
    """
    if any(source.descriptions) or source.driver != "netCDF":
        return tuple(source.descriptions)
    name = source.tags(1).get("NETCDF_VARNAME") if source.count else None
    if not name or source.count == 1:
        return tuple([name] * source.count)
    digits = max(2, len(str(source.count)))
    return tuple([f"{name}_{step:0{digits}d}" for step in range(1, source.count + 1)])


def _period(crs: CRS | None, transform: Affine) -> int | None:
    """Columns round the Earth; None where longitude is no axis or 360 degrees are no whole number of columns."""
    if not crs or not crs.is_geographic or transform.b or transform.d or transform.a <= 0:
        return None
    around = 360.0 / transform.a
    return round(around) if abs(around - round(around)) < 0.01 else None
