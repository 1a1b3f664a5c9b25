"""The registry of public data: what each source is, who may use it for what, where it lies and what reads it.

Three choices: one YAML file a source, so a correction is one line in one file; a fact that was not seen in a named
place is null, never guessed (`found` says where each fact was seen, `verified: false` that something is still open);
and the licence says in three words what it allows, because the first question of a user is whether weights trained on
the data may be released.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import AgriClipError, nearest

Allowed = Literal["yes", "no", "unclear"]
Loader = Literal[
    "ag_net",
    "bigearthnet",
    "captions",
    "captions_parquet",
    "cdl_counts",
    "class_folders",
    "coco_masks",
    "farmseg_vl",
    "multi_temporal_crop",
    "paired_tiles",
    "pastis",
    "r_tables",
    "scene_masks",
    "study",
    "tile_pairs",
]
_ADDRESS = re.compile(r"^https?://[^\s]+$")
_PLACES = ("url", "licence", "size", "checksum", "format", "citation")


class _Part(BaseModel):
    """Unknown keys are refused and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Licence(_Part):
    """Who may do what with a source.

    Attributes:
        name: SPDX identifier where there is one, else the licence in words; null where none is stated.
        url: Where it is written.
        train: Whether weights trained on the data may be released under another licence.
        redistribute: Whether the data may be handed on.
        non_commercial: Whether commercial use is excluded.
        note: What else to know.
    """

    name: str | None
    url: str | None = None
    train: Allowed
    redistribute: Allowed
    non_commercial: StrictBool = False
    note: str = ""

    @property
    def needs_acceptance(self) -> bool:
        """Whether the user must say that the terms are accepted: non-commercial, or nowhere stated."""
        return self.non_commercial or self.name is None

    @property
    def sentence(self) -> str:
        """The licence in one sentence."""
        name = self.name or "no stated licence"
        terms = {"yes": "allowed", "no": "not allowed", "unclear": "unclear"}
        told = (
            f"{name}: releasing weights trained on it {terms[self.train]}, redistribution {terms[self.redistribute]}"
        )
        return (
            told
            + (", non-commercial use only" if self.non_commercial else "")
            + (f"; {self.note}" if self.note else "")
        )


class Citation(_Part):
    """What to cite."""

    key: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    authors: str
    year: StrictInt = Field(ge=1950, le=2100)
    title: str
    venue: str = ""
    doi: str | None = None
    url: str | None = None

    @field_validator("doi")
    @classmethod
    def _is_doi(cls, doi: str | None) -> str | None:
        if doi is not None and not doi.startswith("10."):
            raise ValueError(f"'{doi}' is no DOI; write it as 10.xxxx/yyyy")
        return doi

    @property
    def text(self) -> str:
        """The citation in words."""
        venue = f" {self.venue}." if self.venue else ""
        link = f" https://doi.org/{self.doi}" if self.doi else f" {self.url}" if self.url else ""
        return f"{self.authors} ({self.year}). {self.title}.{venue}{link}"

    @property
    def bibtex(self) -> str:
        """The citation as a BibTeX entry."""
        fields = {
            "author": self.authors.replace("; ", " and "),
            "title": self.title,
            "year": str(self.year),
            "howpublished": self.venue,
            "doi": self.doi or "",
            "url": self.url or "",
        }
        lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
        return f"@misc{{{self.key},\n" + ",\n".join(lines) + "\n}"


class RemoteFile(_Part):
    """One file of a source.

    Attributes:
        path: Where it is put, relative to the folder of downloads.
        url: Address, or null where the source hands it out only through a page.
        size: Bytes, null where not known.
        md5: Checksum, null where not known.
        sha256: Checksum, null where not known.
        unpack: Whether it is an archive to unpack.
        default: Whether it is fetched when nothing is asked for by name.
    """

    path: str
    url: str | None
    size: StrictInt | None = Field(default=None, gt=0)
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    unpack: StrictBool = False
    default: StrictBool = True

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if not path or path.startswith(("/", "~")) or "\\" in path or ".." in path.split("/"):
            raise ValueError(f"the path '{path}' must be relative and stay inside the folder of downloads")
        return path

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is not None and not _ADDRESS.match(url):
            raise ValueError(f"'{url}' is no http(s) address")
        return url


class HubDataset(_Part):
    """A data set on the Hugging Face Hub.

    Attributes:
        repo: Its id.
        revision: Branch, tag or commit; the newest if null.
        files: Patterns of the files to fetch; all if empty.
        unpack: Patterns of the archives among them.
    """

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    files: tuple[str, ...] = ()
    unpack: tuple[str, ...] = ()


class Prepared(_Part):
    """A form in which a source may already lie in a local folder.

    Attributes:
        folder: Name of the folder.
        files: Patterns of its files, relative to it.
        loader: What reads this form; the source's own loader by default.
        options: Options of the loader.
        study: Block of a study file that names these files.
    """

    folder: str
    files: tuple[str, ...] = Field(min_length=1)
    loader: Loader | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    study: dict[str, Any] | None = None


class Source(_Part):
    """One public source of data.

    Attributes:
        name: Short name, as in `agriclip data get NAME`.
        title: Its name in words.
        what: What it holds, in one or two sentences.
        task: What it is used for.
        homepage: Page of the source.
        files: Its files.
        hub: The same data on the Hugging Face Hub, used where no file has an address.
        service: What serves it where it is no set of files, e.g. a STAC catalogue.
        licence: Its terms.
        citation: What to cite.
        size: Bytes of all that is fetched by default, null where not known.
        size_about: The same as a page rounds it, for the table and the check of free space.
        unpacked_size: Bytes after unpacking, null where not known.
        format: Format of the files in words.
        loader: What brings it into a study or a folder of tiles; null where nothing does.
        options: Options of the loader.
        study: Block of a study file; files are named as they lie after unpacking.
        prepared: Forms in which it may already lie in a local folder.
        note: What else to know; says what is not known.
        verified: Whether address and licence were seen in a named place.
        found: Where each fact was seen.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    what: str
    task: Literal[
        "suitability labels",
        "climate",
        "land cover",
        "suitability maps",
        "scene classification",
        "crop segmentation",
        "segmentation",
        "captions",
        "time series",
        "detection",
        "cloud masks",
        "crop calendar",
    ]
    homepage: str
    files: tuple[RemoteFile, ...] = ()
    hub: HubDataset | None = None
    service: str | None = None
    licence: Licence
    citation: Citation
    size: StrictInt | None
    size_about: StrictInt | None = None
    unpacked_size: StrictInt | None = None
    format: str
    loader: Loader | None
    options: dict[str, Any] = Field(default_factory=dict)
    study: dict[str, Any] | None = None
    prepared: tuple[Prepared, ...] = ()
    note: str = ""
    verified: StrictBool
    found: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _honest(self) -> Self:
        unknown = sorted(set(self.found) - set(_PLACES))
        if unknown:
            raise ValueError(f"`found` has the unknown fact '{unknown[0]}'; {nearest(unknown[0], _PLACES)}")
        has_checksum = any(file.md5 or file.sha256 for file in self.files)
        needed = [*(("url", "licence") if self.verified else ()), *(("checksum",) if has_checksum else ())]
        if self.size or self.size_about or any(file.size for file in self.files):
            needed.append("size")
        missing = [fact for fact in needed if fact not in self.found]
        if missing:
            raise ValueError(f"`found` must say where '{missing[0]}' was seen, or the fact must be null")
        if not self.verified and not self.note:
            raise ValueError("an entry that is not verified needs a `note` that says what is open")
        if not self.can_fetch and not self.note:
            raise ValueError("an entry without an address needs a `note` that says how to get the data")
        names = [file.path for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("two files have the same path")
        if self.loader == "study" and self.study is None and not any(form.study for form in self.prepared):
            raise ValueError("the loader 'study' needs a `study` block")
        return self

    @property
    def can_fetch(self) -> bool:
        """Whether anything can be downloaded without a person clicking through a page."""
        return self.hub is not None or any(file.url for file in self.files)


@cache
def load_registry() -> Mapping[str, Source]:
    """Read all sources, by name.

    Raises:
        AgriClipError: An entry does not hold together.
    """
    folder = resources.files(__package__) / "sources"
    sources = {}
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name):
        source = parse_source(file.read_text(encoding="utf-8"), file.name)
        sources[source.name] = source
    return sources


def parse_source(text: str, where: str) -> Source:
    """Read one entry.

    Args:
        text: YAML.
        where: Name of the file; the entry must be called like it.

    Raises:
        AgriClipError: It is no YAML, or a key is missing, unknown or wrong.
    """
    try:
        source = Source.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise AgriClipError(f"The registry entry '{where}' is no YAML ({error}); mend it.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the entry"
        raise AgriClipError(f"In the registry entry '{where}', {place}: {first['msg']}.") from error
    if Path(where).stem != source.name:
        raise AgriClipError(f"The registry entry '{where}' is called '{source.name}'; file and entry must agree.")
    return source


def get_source(name: str) -> Source:
    """Return a source by name.

    Raises:
        AgriClipError: There is none of this name; names the nearest.
    """
    registry = load_registry()
    if name not in registry:
        raise AgriClipError(f"There is no public source '{name}'; {nearest(name, registry)}")
    return registry[name]


__all__ = [
    "Citation",
    "HubDataset",
    "Licence",
    "Prepared",
    "RemoteFile",
    "Source",
    "get_source",
    "load_registry",
    "parse_source",
]
