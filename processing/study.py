"""The study file: region, labels, predictors, imagery, report, splits, scenarios and settings in one YAML.

A study says everything that a result depends on, so the same file gives the same map. Three choices: nothing unknown
is accepted (a misspelt key is an error with the nearest known one, never ignored); all faults are collected and told
at once; and the file stays movable, since data files are named relative to one folder, `data`, which may be given by
an environment variable (`${NAME:-default}`) and is no part of the study's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import Field, PrivateAttr, ValidationError

from .errors import AgriClipError, Problem, nearest
from .grids import Grid, across_antimeridian, parse_crs
from .rasters import RasterInfo, file_of, raster_exists, read_band_info, require_overlap, split_variable
from .study_agronomy import AgronomyPart
from .study_parts import NAME, Part
from .study_parts import PRESENT as PRESENT
from .study_parts import Chip as Chip
from .study_parts import Delta as Delta
from .study_parts import GridPart as GridPart
from .study_parts import Imagery as Imagery
from .study_parts import LabelsPart as LabelsPart
from .study_parts import MapPart as MapPart
from .study_parts import ModelPart as ModelPart
from .study_parts import Predictors as Predictors
from .study_parts import Reduce as Reduce
from .study_parts import Report as Report
from .study_parts import Scenario as Scenario
from .study_parts import Splits as Splits
from .study_parts import StudyChannel as StudyChannel
from .study_parts import Training as Training
from .study_parts import Variable as Variable

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)")
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")  # {variable} in a report sentence


class Study(Part):
    """A whole study. Read one with `load_study`; see the parts for their keys."""

    name: str = Field(pattern=NAME)
    title: str = ""
    description: str = ""
    data: str = "."
    grid: GridPart
    labels: LabelsPart | None = None
    predictors: tuple[Predictors, ...] = Field(min_length=1)
    imagery: tuple[Imagery, ...] = ()
    chip: Chip = Chip()
    report: Report = Report()
    splits: Splits | None = None
    scenarios: tuple[Scenario, ...] = ()
    model: ModelPart = ModelPart()
    training: Training = Training()
    map: MapPart = MapPart()
    agronomy: AgronomyPart | None = None

    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _data_root: Path | None = PrivateAttr(default=None)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """All predictor variables, in the order of the file."""
        return tuple(variable for group in self.predictors for variable in group.variables)

    def scenario(self, name: str) -> Scenario:
        """Return a scenario by name."""
        for scenario in self.scenarios:
            if scenario.name == name:
                return scenario
        raise AgriClipError(
            f"The study '{self.name}' has no scenario '{name}'; {nearest(name, (s.name for s in self.scenarios))}."
        )

    @property
    def data_root(self) -> Path | None:
        """The data folder, when it exists: `data` with variables expanded, seen from the project's root or here."""
        if self._data_root is not None:
            return self._data_root
        wanted = Path(expand_variables(self.data)).expanduser()
        # studies/ lies in the project's root, and `data` is written as seen from there
        project = self._folder.parent if self._folder.name == "studies" else self._folder
        places = [wanted] if wanted.is_absolute() else [project / wanted, Path.cwd() / wanted, self._folder / wanted]
        return next((place.resolve() for place in places if place.is_dir()), None)

    def path(self, file: str) -> Path:
        """Return where a file of the study lies: as given if absolute, else in the data folder, else beside the study.

        The place in the data folder is returned when the file exists in neither, so that messages name it. The name of
        a variable in the file (`climate.nc:tas`) stays at its end.
        """
        if "://" in file or file.startswith("/vsi"):
            return Path(file)
        name, variable = split_variable(file)
        given = Path(name).expanduser()
        root = self.data_root
        places = [folder / given for folder in (root, self._folder) if folder is not None]  # as given if absolute
        place = next((place for place in places if place.exists()), places[0])
        return place if variable is None else Path(f"{place}:{variable}")

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield (place in the study, file) for every file that the study names."""
        if self.grid.like:
            yield "grid.like", self.grid.like
        if self.labels:
            yield "labels.table", self.labels.table
        for i, group in enumerate(self.predictors):
            yield f"predictors[{i}].file", group.file
        for i, image in enumerate(self.imagery):
            yield f"imagery[{i}].file", image.file
        if self.map.zones:
            yield "map.zones.file", self.map.zones.file
        if self.agronomy:
            for name, layer in self.agronomy.monthly().items():
                yield f"agronomy.{name}.file", layer.file
            if self.agronomy.ndvi:
                yield "agronomy.ndvi.file", self.agronomy.ndvi.file
        for scenario in self.scenarios:
            for old, new in scenario.replace.items():
                yield f"scenarios[{scenario.name}].replace[{old}]", new
            for old, delta in scenario.delta.items():
                yield f"scenarios[{scenario.name}].delta[{old}].baseline", delta.baseline
                yield f"scenarios[{scenario.name}].delta[{old}].future", delta.future

    def save(self, path: str | Path) -> Path:
        """Write the study as YAML; `data` is written as it was read, so no machine's paths enter the file."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        half = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            half.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")
            os.replace(half, target)
        finally:
            half.unlink(missing_ok=True)
        return target

    @property
    def predicts_counts(self) -> bool:
        """Whether a model of it predicts the chance of one counted unit rather than presence in a place."""
        return self.labels is not None and self.labels.kind == "share" and self.training.objective == "binary"

    def fingerprint(self) -> str:
        """Return the SHA-256 of what the study says: every value, defaults included, but not where the data lie."""
        content = self.model_dump(mode="json", exclude={"data"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def expand_variables(text: str) -> str:
    """Replace `${NAME}`, `$NAME` and `${NAME:-default}` by environment variables.

    Raises:
        AgriClipError: For a variable that is not set and has no default.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        found = os.environ.get(name) or match[2]
        if found is None:
            raise AgriClipError(
                f"The study uses the environment variable {name}, which is not set; set it or write "
                f"${{{name}:-default}}."
            )
        return found

    return _VARIABLE.sub(value, text)


def load_study(path: str | Path, data_root: str | Path | None = None, check_files: bool = True) -> Study:
    """Read and check a study file.

    Args:
        path: YAML file.
        data_root: Folder that the study's files are relative to; overrides `data`.
        check_files: Also check that every file is there and that rasters have the named bands.

    Returns:
        The study.

    Raises:
        AgriClipError: One sentence on the first fault and the count of others; all of them in `.problems`.
    """
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        near = nearest(file.name, (p.name for p in file.parent.glob("*.y*ml"))) if file.parent.is_dir() else ""
        advice = near if near.startswith("did") else "check the path"
        raise AgriClipError(f"The study file '{file}' does not exist; {advice}.") from None
    except UnicodeDecodeError as error:
        raise AgriClipError(f"'{file}' is not a text file in UTF-8, so it is no study.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it is not valid YAML"
        raise AgriClipError(f"'{file}' cannot be read{place}: {what}; check indentation and quotes.") from None
    if not isinstance(raw, Mapping):
        raise AgriClipError(f"The study '{file}' holds no keys; it should begin with `name:` and `grid:`.")
    raw = _upgrade({key: value if key == "data" else _expand(value) for key, value in raw.items()})
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise _gather(file, _problems(error)) from None
    study._folder = file.resolve().parent
    if data_root is not None:
        study._data_root = Path(data_root).expanduser().resolve()
        if not study._data_root.is_dir():
            raise AgriClipError(f"The data folder '{data_root}' does not exist; give the folder that holds the files.")
    problems = list(_cross_problems(study))
    if check_files:
        problems += _file_problems(study)
    if problems:
        raise _gather(file, problems)
    return study


def _upgrade(raw: dict[str, Any]) -> dict[str, Any]:
    """Accept `size_degrees` as a clearer spelling of `splits.size` on a grid in degrees."""
    splits = raw.get("splits")
    if isinstance(splits, dict) and "size_degrees" in splits and "size" not in splits:
        raw["splits"] = {("size" if key == "size_degrees" else key): value for key, value in splits.items()}
    return raw


def _expand(value: Any) -> Any:
    if isinstance(value, str):
        return expand_variables(value)
    if isinstance(value, Mapping):
        return {key: _expand(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item) for item in value]
    return value


def _gather(file: Path, problems: list[Problem]) -> AgriClipError:
    first = problems[0]
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    hint = f"; {first.hint}" if first.hint else ""
    return AgriClipError(f"In the study '{file}', {first.where}: {first.problem}{hint}{more}.", problems)


def _where(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "study"


def _problems(error: ValidationError) -> list[Problem]:
    """Turn pydantic's findings into rows: place, what is wrong, what to do."""
    rows = []
    errors = error.errors(include_url=False)
    places = [tuple(found["loc"]) for found in errors]
    for found, location in zip(errors, places, strict=True):
        # a list whose only item is faulty counts as empty too; the fault inside is the one to tell
        if found["type"] == "too_short" and any(p[: len(location)] == location and p != location for p in places):
            continue
        if found["type"] == "extra_forbidden":
            known = _keys_at(location[:-1])
            rows.append(Problem(_where(location), f"unknown key '{location[-1]}'", nearest(location[-1], known)))
        elif found["type"] == "missing":
            rows.append(Problem(_where(location), "is missing", "add it"))
        elif found["type"] == "value_error":
            what, _, hint = str(found["ctx"]["error"]).rstrip(".").partition("; ")
            rows.append(Problem(_where(location), what, hint))
        else:
            said = found["msg"][0].lower() + found["msg"][1:]
            got = repr(found["input"])
            rows.append(Problem(_where(location), f"{said}, not {got if len(got) < 60 else got[:57] + '...'}"))
    return rows


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known at a place of the study."""
    annotation: Any = Study
    for part in location:
        if isinstance(part, str) and isinstance(annotation, type) and issubclass(annotation, Part):
            annotation = annotation.model_fields[part].annotation
        else:
            annotation = get_args(annotation)[-1 if get_origin(annotation) is dict else 0]
        annotation = _bare(annotation)
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, Part) else []


def _bare(annotation: Any) -> Any:
    """Strip `| None` from an annotation."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(a for a in get_args(annotation) if a is not type(None))
    return annotation


def _cross_problems(study: Study) -> Iterator[Problem]:
    """Check what one part says about another."""
    names = [variable.name for variable in study.variables]
    before: set[str] = set()
    for i, group in enumerate(study.predictors):
        for j, variable in enumerate(group.variables):
            if variable.name in before:
                yield Problem(f"predictors[{i}].variables[{j}].name", f"'{variable.name}' is used twice", "rename one")
            before.add(variable.name)
    for i, sentence in enumerate(study.report.sentences or ()):
        for name in PLACEHOLDER.findall(sentence):
            if name not in names:
                yield Problem(f"report.sentences[{i}]", f"unknown variable '{name}'", nearest(name, names))
        if PLACEHOLDER.sub("", sentence).count("{") or PLACEHOLDER.sub("", sentence).count("}"):
            yield Problem(f"report.sentences[{i}]", "a brace is not closed", "write {variable}")
    labels = [channel.label for image in study.imagery if not image.reduce for channel in image.channels]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        yield Problem("imagery", f"two channels are called '{label}'", "give them different names")
    files = [group.file for group in study.predictors]
    scenarios = [scenario.name for scenario in study.scenarios]
    for i, scenario in enumerate(study.scenarios):
        if scenario.name in scenarios[:i]:
            yield Problem(f"scenarios[{i}].name", f"'{scenario.name}' is used twice", "rename one")
        for key in (*scenario.replace, *scenario.delta):
            if key not in files:
                where = f"scenarios[{i}].{'replace' if key in scenario.replace else 'delta'}"
                yield Problem(where, f"'{key}' is no predictor file of this study", nearest(key, files))
    bounds = study.grid.bounds
    if bounds and (bounds[0] >= bounds[2] or bounds[1] >= bounds[3] or not all(map(math.isfinite, bounds))):
        hint = across_antimeridian(bounds, study.grid.crs or "") or "write west, south, east, north"
        yield Problem("grid.bounds", f"{list(bounds)} is empty", hint)


def _file_problems(study: Study) -> list[Problem]:
    """Check that files exist, that rasters open, have a CRS, and have the bands that are named."""
    problems = []
    missing = set()
    for where, file in study.files():
        path = study.path(file)
        if raster_exists(path):
            continue
        missing.add(file)
        path = file_of(path)
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        if near.startswith("did"):
            hint = near
        elif study.data_root is None:
            hint = f"the data folder '{study.data}' does not exist, set the folder with --data or its variable"
        else:
            hint = f"looked in '{path.parent}'"
        problems.append(Problem(where, f"the file '{file}' does not exist", hint))
    for where, crs in (("grid.crs", study.grid.crs), ("labels.crs", study.labels.crs if study.labels else None)):
        if crs:
            problems += _told(where, partial(parse_crs, crs, "the study"))
    wanted: list[tuple[str, str, str, int | str]] = []  # place of the file, place of the band, file, band
    for i, group in enumerate(study.predictors):
        alike = [(f"predictors[{i}]", group.file)]
        for scenario in study.scenarios:
            if group.file in scenario.replace:
                alike.append((f"scenarios[{scenario.name}].replace", scenario.replace[group.file]))
            if group.file in scenario.delta:
                delta = scenario.delta[group.file]
                alike += [(f"scenarios[{scenario.name}].delta", f) for f in (delta.baseline, delta.future)]
        for where, file in alike:
            wanted += [
                (where, f"{where}.variables[{j}].band", file, v.source_band) for j, v in enumerate(group.variables)
            ]
    for i, image in enumerate(study.imagery):
        where = f"imagery[{i}]"
        wanted += [(where, f"{where}.channels[{j}].band", image.file, c.band) for j, c in enumerate(image.channels)]
    grid = _grid_of(study)
    infos: dict[str, RasterInfo | None] = {}
    for where, where_band, file, band in wanted:
        if file in missing:
            continue
        if file not in infos:
            infos[file] = None
            try:
                infos[file] = info = read_band_info(study.path(file))
            except AgriClipError as error:
                problems += _told(where, partial(_again, error))
                continue
            if info.crs is None:
                problems.append(Problem(where, f"'{file}' has no CRS", "set one with: rio edit-info --crs EPSG:4326"))
            elif grid is not None:
                problems += _told(where, partial(require_overlap, info, grid))
        known = infos[file]
        if known is not None:
            problems += _told(where_band, partial(known.band_number, band))
    return problems


def _grid_of(study: Study) -> Grid | None:
    """The grid, where the study itself says it in full and can be believed."""
    part = study.grid
    try:
        if part.like is not None:
            return Grid.from_raster(study.path(part.like))
        if part.bounds and part.resolution and part.crs:
            return Grid.from_bounds(part.bounds, part.resolution, part.crs)
    except AgriClipError:
        pass  # told where it belongs
    return None


def _again(error: AgriClipError) -> None:
    raise error


def _told(where: str, check: Callable[[], object]) -> list[Problem]:
    """Run a check and return its complaint, if any, as a row."""
    try:
        check()
    except AgriClipError as error:
        what, _, hint = str(error).rstrip(".").partition("; ")
        return [Problem(where, what, hint)]
    return []
