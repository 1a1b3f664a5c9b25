"""Where the data of a study come from, and under which terms: what the card says of training data and licences.

A source is found by the name of a file, as these are the files that the shipped studies name. Beside a study or a
fitted folder, a `sources.yaml` (a list of `files`, `title`, `licence`, `citation`, `link`) tells of others and wins. A
file that nothing is known of is listed as such: silence about a licence is not permission.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError

__all__ = ["KNOWN", "Source", "read_sources", "sources_of", "study_files"]

SOURCES = "sources.yaml"


@dataclass(frozen=True)
class Source:
    """A source of data.

    Attributes:
        files: Names of files, with `*` for any characters.
        title: What it is.
        licence: Its terms in words; empty where they are not known.
        citation: Whom to cite.
        link: Where it is.
    """

    files: tuple[str, ...]
    title: str
    licence: str = ""
    citation: str = ""
    link: str = ""


KNOWN = (
    Source(
        ("*double_crop_soybean*.csv",),
        "County pixel counts of the USDA Cropland Data Layer, 2008-2017",
        "Cropland Data Layer: public domain",
        "Aramburu Merlos and Hijmans 2020; USDA NASS",
        "https://doi.org/10.1073/pnas.2011702117",
    ),
    Source(
        ("*gswp3-w5e5*", "*gfdl-esm4*", "*ipsl-cm6a-lr*", "*mpi-esm1-2-hr*", "*mri-esm2-0*", "*ukesm1-0-ll*"),
        "ISIMIP3 climate: GSWP3-W5E5 observations and bias-adjusted CMIP6 models, as bioclimatic variables",
        "ISIMIP input data: open, with citation; see the terms of each data set",
        "Lange and Buechner, ISIMIP3a and ISIMIP3b input data",
        "https://data.isimip.org",
    ),
    Source(
        ("*temperature_monthly.tif", "*precipitation_monthly.tif"),
        "CRU CL 2.0 monthly climate",
        "free, with citation",
        "New et al. 2002",
        "https://crudata.uea.ac.uk/cru/data/hrg/",
    ),
    Source(
        ("*ndvi_monthly.tif",),
        "MODIS monthly NDVI, by way of grassmapr",
        "MODIS: free of restrictions; the package grassmapr: GPL-3",
        "NASA LP DAAC; grassmapr",
    ),
    Source(
        ("*c3_crop_cover.tif", "*c4_crop_cover.tif", "*woody_cover.tif"),
        "Percent cover of C3 crops, C4 crops and woody plants (year 2000), by way of grassmapr",
        "EarthStat: free, with citation; the package grassmapr: GPL-3",
        "EarthStat; grassmapr",
        "http://www.earthstat.org",
    ),
    Source(
        ("virtual_*", "*landscape*"),
        "A virtual landscape, made by AgriCLIP itself: no real place",
        "Apache-2.0",
    ),
)


def read_sources(*folders: str | Path | None) -> tuple[Source, ...]:
    """Sources of the first `sources.yaml` that lies in one of the folders; () where there is none.

    Raises:
        AgriClipError: The file is not a list of sources.
    """
    import yaml

    for folder in folders:
        file = None if folder is None else Path(folder) / SOURCES
        if file is None or not file.is_file():
            continue
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            rows = [dict(row) for row in content]
            return tuple(Source(**{**row, "files": tuple(_listed(row["files"]))}) for row in rows)
        except (yaml.YAMLError, TypeError, ValueError, KeyError) as error:
            raise AgriClipError(
                f"'{file}' is no list of sources; give each files, title, licence, citation and link ({error})."
            ) from error
    return ()


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value]


def study_files(study: Any) -> dict[str, str]:
    """Files that a study learns from -> what it takes from them: labels, predictors or images."""
    files: dict[str, str] = {}
    if study.labels is not None:
        files[str(study.labels.table)] = "labels"
    files |= {str(part.file): "predictors" for part in study.predictors}
    files |= {str(part.file): "images" for part in study.imagery}
    return files


def sources_of(files: dict[str, str], own: Sequence[Source] = ()) -> list[dict[str, Any]]:
    """Sources of files, each with what was taken from it, in the order of the files.

    Args:
        files: What :func:`study_files` returned.
        own: Sources that come before the known ones.

    Returns:
        Rows with `title`, `role`, `licence`, `citation`, `link` and `files`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for file, role in files.items():
        name = Path(file).name.lower()
        source = _find(name, (*own, *KNOWN)) or Source((name,), f"`{Path(file).name}`")
        row = rows.setdefault(
            source.title,
            {
                "title": source.title,
                "role": [],
                "licence": source.licence or "not stated; ask before you use the weights commercially",
                "citation": source.citation,
                "link": source.link,
                "files": [],
            },
        )
        row["files"].append(Path(file).name)
        if role not in row["role"]:
            row["role"].append(role)
    return [{**row, "role": ", ".join(row["role"])} for row in rows.values()]


def _find(name: str, sources: Iterable[Source]) -> Source | None:
    return next((s for s in sources if any(fnmatch(name, pattern.lower()) for pattern in s.files)), None)
