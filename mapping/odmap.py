"""An ODMAP protocol filled from a study: what was modelled, with which data, how, how well, and what was predicted.

The 84 elements are those of version 1.0 (Zurell et al. 2020, Ecography 43:1261-1277). Three choices: only what the
study's files say is filled in, and everything else stands there as an entry for the author, with what the files know
about it; no element is left out, because an empty one is an answer too; and the CSV has the columns of the authors'
own web application, so that the protocol can be finished there or in a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from processing.errors import AgriClipError
from processing.study import Study, load_study
from processing.study_data import StudyData
from processing.whole_files import write_whole

__all__ = ["ELEMENTS", "TO_FILL", "OdmapEntry", "OdmapProtocol", "odmap_protocol"]

TO_FILL = "To be filled in by the author"
SUMMARY = "training_summary.json"  # written by training.fit beside the model
_HIGH_CORRELATION = 0.7  # Dormann et al. 2013, Ecography 36:27-46

_PROTOCOL = """
Overview | Authorship | Study title; Author names; Contact; Study link
Overview | Model objective | Model objective; Target output
Overview | Focal Taxon | Focal Taxon
Overview | Location | Location
Overview | Scale of Analysis | Spatial extent; Spatial resolution; Temporal extent; Temporal resolution; Boundary
Overview | Biodiversity data | Observation type; Response data type
Overview | Predictors | Predictor types
Overview | Hypotheses | Hypotheses
Overview | Assumptions | Model assumptions
Overview | Algorithms | Modelling techniques; Model complexity; Model averaging
Overview | Workflow | Model workflow
Overview | Software | Software; Code availability; Data availability
Data | Biodiversity data | Taxon names; Taxonomic reference system; Ecological level; Data sources; Sampling design
Data | Biodiversity data | Sample size; Clipping; Scaling; Cleaning; Absence data; Background data; Errors and biases
Data | Data partitioning | Training data; Validation data; Test data
Data | Predictor variables | Predictor variables; Data sources; Spatial extent; Spatial resolution
Data | Predictor variables | Coordinate reference system; Temporal extent; Temporal resolution; Data processing
Data | Predictor variables | Errors and biases; Dimension reduction
Data | Transfer data | Data sources; Spatial extent; Spatial resolution; Temporal extent; Temporal resolution
Data | Transfer data | Models and scenarios; Data processing; Quantification of Novelty
Model | Variable pre-selection | Variable pre-selection
Model | Multicollinearity | Multicollinearity
Model | Model settings | Model settings (fitting); Model settings (extrapolation)
Model | Model estimates | Coefficients; Parameter uncertainty; Variable importance
Model | Model selection - model averaging - ensembles | Model selection; Model averaging; Model ensembles
Model | Analysis and Correction of non-independence | Spatial autocorrelation; Temporal autocorrelation; Nested data
Model | Threshold selection | Threshold selection
Assessment | Performance statistics | Performance on training data; Performance on validation data
Assessment | Performance statistics | Performance on test data
Assessment | Plausibility check | Response shapes; Expert judgement
Prediction | Prediction output | Prediction unit; Post-processing
Prediction | Uncertainty quantification | Algorithmic uncertainty; Input data uncertainty; Parameter uncertainty
Prediction | Uncertainty quantification | Scenario uncertainty; Novel environments
"""

#: (section, subsection, element) of everything that the protocol asks, in its order.
ELEMENTS: tuple[tuple[str, str, str], ...] = tuple(
    (section, subsection, element)
    for section, subsection, elements in (line.split(" | ") for line in _PROTOCOL.strip().splitlines())
    for element in elements.split("; ")
)


@dataclass(frozen=True)
class OdmapEntry:
    """One element of the protocol.

    Attributes:
        section: Overview, Data, Model, Assessment or Prediction.
        subsection: Its part.
        element: Its name.
        value: What the files say; begins with `TO_FILL` where an author has to.
    """

    section: str
    subsection: str
    element: str
    value: str

    @property
    def open(self) -> bool:
        """Whether an author has to fill it in."""
        return self.value.startswith(TO_FILL)


@dataclass(frozen=True)
class OdmapProtocol:
    """A whole protocol.

    Attributes:
        title: Title of the study.
        entries: Every element, in the order of the protocol.
    """

    title: str
    entries: tuple[OdmapEntry, ...]

    @property
    def open(self) -> list[OdmapEntry]:
        """The entries that are left to the author."""
        return [entry for entry in self.entries if entry.open]

    def as_dict(self) -> dict[str, dict[str, dict[str, str]]]:
        """Section -> subsection -> element -> value."""
        tree: dict[str, dict[str, dict[str, str]]] = {}
        for entry in self.entries:
            tree.setdefault(entry.section, {}).setdefault(entry.subsection, {})[entry.element] = entry.value
        return tree

    def write_csv(self, path: str | Path) -> Path:
        """Write section, subsection, element and Value, as the ODMAP application exports them."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["section", "subsection", "element", "Value"])
        writer.writerows([entry.section, entry.subsection, entry.element, entry.value] for entry in self.entries)
        return write_whole(path, text.getvalue())

    def write_markdown(self, path: str | Path) -> Path:
        """Write the protocol as a document, with what is left to do at its top."""
        lines = [f"# ODMAP protocol: {self.title}", ""]
        lines += [f"{len(self.open)} of {len(self.entries)} elements are left to the author, in *italics*.", ""]
        for section, subsections in self.as_dict().items():
            lines += [f"## {section}", ""]
            for subsection, elements in subsections.items():
                lines += [f"### {subsection}", ""]
                for element, value in elements.items():
                    said = " ".join(value.split())
                    lines.append(f"- **{element}**: {f'*{said}*' if said.startswith(TO_FILL) else said}")
                lines.append("")
        lines.append("Protocol: ODMAP v1.0, Zurell et al. 2020, Ecography 43:1261-1277, doi 10.1111/ecog.04960.")
        return write_whole(path, "\n".join(lines) + "\n")


def odmap_protocol(
    study: Study | str | Path,
    model_dir: str | Path | None = None,
    *,
    scores: Sequence[Mapping[str, Any]] | None = None,
    importances: Sequence[Any] = (),
    maps: Mapping[str, Mapping[str, str | Path]] | None = None,
    known: Mapping[tuple[str, str, str], str] | None = None,
) -> OdmapProtocol:
    """Fill the protocol from a study and from what was made of it.

    Args:
        study: The study, or the path of its file.
        model_dir: Folder of its fit; what is known only after the fit is left to the author without one.
        scores: Rows of scores on held-out sites, the model's first, with `model`; by default those of `fit.json`
            beside the folder, where there is one.
        importances: From `mapping.responses`.
        maps: Map name -> layer -> path, as `map_study` returns.
        known: (section, subsection, element) -> value, what the author says; it stands before everything else.

    Returns:
        All elements.

    Raises:
        AgriClipError: The folder holds no fit, or `known` names an element that ODMAP does not have.
    """
    study = study if isinstance(study, Study) else load_study(study)
    summary: dict[str, Any] = {}
    if model_dir is not None:
        file = Path(model_dir) / SUMMARY
        if not file.is_file():
            raise AgriClipError(f"There is no '{SUMMARY}' in '{model_dir}'; give the folder that `agriclip fit` made.")
        summary = json.loads(file.read_text(encoding="utf-8"))
        beside = Path(model_dir).parent / "fit.json"
        if scores is None and beside.is_file():
            scores = json.loads(beside.read_text(encoding="utf-8")).get("comparison")
    facts = _Facts(study, summary, model_dir, scores or (), importances, maps or {})
    filled = {**facts.overview(), **facts.data_section(), **facts.model(), **facts.results(), **dict(known or {})}
    for place in filled:
        if place not in ELEMENTS:
            raise AgriClipError(f"ODMAP has no element '{' / '.join(place)}'; see `mapping.odmap.ELEMENTS`.")
    return OdmapProtocol(
        study.title or study.name, tuple(OdmapEntry(*place, filled.get(place) or f"{TO_FILL}.") for place in ELEMENTS)
    )


Filled = dict[tuple[str, str, str], str]


class _Facts:
    """What the files know, section by section; an element that is not named here is the author's."""

    def __init__(
        self,
        study: Study,
        summary: Mapping[str, Any],
        model_dir: str | Path | None,
        scores: Sequence[Mapping[str, Any]],
        importances: Sequence[Any],
        maps: Mapping[str, Mapping[str, str | Path]],
    ) -> None:
        self.study, self.summary, self.model_dir, self.scores = study, summary, model_dir, scores
        self.importances, self.maps = importances, maps
        self.data = StudyData(study)
        west, south, east, north = self.data.grid.bounds
        self.extent = f"{west:g}, {east:g}, {south:g}, {north:g} (xmin, xmax, ymin, ymax; {self.data.grid.crs})"
        step = self.data.grid.transform
        unit = "degrees" if self.data.grid.is_geographic else "CRS units"
        self.cell = f"{abs(step.a):g} x {abs(step.e):g} {unit}"
        self.ensemble = int(summary.get("members", study.training.members))
        self.calibrated = (summary.get("calibration") if summary else study.training.calibration) not in (None, "none")
        self.changed = bool(summary) and summary.get("study_fingerprint") != study.fingerprint()
        self.layers = list(dict.fromkeys(layer for paths in maps.values() for layer in paths))

    def overview(self) -> Filled:
        """Overview."""
        study, labels = self.study, self.study.labels
        what = "continuous probability of suitability"
        if study.training.objective == "share" and labels is not None:
            what = f"probability that the share of land exceeds {labels.presence_above:g}, and the share itself"
        versions = [f"{name} {_version(name)}" for name in ("agriclip", "torch", "transformers", "numpy", "rasterio")]
        variables = ", ".join(f"{variable.title} ({variable.canonical_unit})" for variable in study.variables)
        layers = ", ".join(channel.label for image in study.imagery for channel in image.channels)
        found = {
            ("Authorship", "Study title"): study.title or study.name,
            ("Model objective", "Model objective"): "Forecast and transfer"
            if study.scenarios
            else "Mapping and interpolation",
            ("Model objective", "Target output"): f"{what}; suitable or unsuitable at {study.map.suitable_above:g}",
            ("Focal Taxon", "Focal Taxon"): f"{TO_FILL}. The study is called: {study.title or study.name}",
            ("Location", "Location"): f"{TO_FILL}. The maps reach over {self.extent}",
            ("Scale of Analysis", "Spatial extent"): self.extent,
            ("Scale of Analysis", "Spatial resolution"): self.cell,
            ("Scale of Analysis", "Boundary"): "rectangle",
            ("Biodiversity data", "Response data type"): _KINDS.get(labels.kind, "") if labels else "",
            ("Predictors", "Predictor types"): f"{TO_FILL}. Numbers: {variables}"
            + (f". Imagery: {layers}" if layers else ""),
            ("Hypotheses", "Hypotheses"): f"{TO_FILL}. Description of the study: {study.description or 'none'}",
            ("Assumptions", "Model assumptions"): (
                "The labelled sites stand for the land that is mapped; predictors and labels are of the same years; "
                "the relation between them stays as it is in other climates."
                + (" Imagery is of the present and is held as it is in every scenario." if study.imagery else "")
            ),
            ("Algorithms", "Modelling techniques"): (
                "AgriCLIP: a transformer that reads the predictors as a report of words and numbers"
                + (", and imagery around the place" if study.imagery else "")
            ),
            ("Algorithms", "Model complexity"): f"{TO_FILL}. Size `{study.model.size}`{self._parameters()}",
            ("Algorithms", "Model averaging"): f"Unweighted mean over {self.ensemble} networks"
            if self.ensemble > 1
            else "none: a single network",
            ("Workflow", "Model workflow"): self._workflow(),
            ("Software", "Software"): f"Python {platform.python_version()}, {', '.join(versions)}",
            ("Software", "Data availability"): (
                f"{TO_FILL}. Files: {', '.join(dict.fromkeys(file for _, file in study.files()))}"
            ),
        }
        return {("Overview", *place): value for place, value in found.items()}

    def data_section(self) -> Filled:
        """Data."""
        study, labels, splits = self.study, self.study.labels, self.study.splits
        found: dict[tuple[str, str], str] = {}
        bio, part, pred, proj = "Biodiversity data", "Data partitioning", "Predictor variables", "Transfer data"
        if labels is not None:
            found[bio, "Data sources"] = f"{TO_FILL}. Table: {labels.table}"
            found[bio, "Sample size"] = self._sample()
            found[bio, "Cleaning"] = (
                f"Sites with fewer than {labels.min_total:g} units looked at were left out; of sites with several "
                f"rows, {'the first was kept' if labels.repeated == 'first' else 'none were allowed'}."
            )
            found[bio, "Absence data"] = _ABSENCES[labels.kind]
            background = "none" if labels.kind != "presence_only" else f"{TO_FILL}. Places of the grid without a label"
            found[bio, "Background data"] = background
        if splits is not None:
            size = "" if splits.size is None else f" of {splits.size:g} CRS units"
            blocks = "square spatial blocks" if splits.kind == "spatial_blocks" else "single sites at random"
            turn = "All folds but one in turn" if self.ensemble > 1 else "All folds but the first"
            found[part, "Training data"] = f"{turn}; {splits.folds} folds of {blocks}{size}"
            found[part, "Validation data"] = f"The fold left out, by cross-validation (seed {splits.seed})"
        unseen = self.model_dir is not None and (Path(self.model_dir) / "unseen_predictions.csv").is_file()
        found[part, "Test data"] = "A fold that no network saw" if unseen else "none: no fold was kept from all"
        found[pred, "Predictor variables"] = "; ".join(
            f"{variable.name}: {variable.title} ({variable.canonical_unit})" for variable in study.variables
        )
        sources = ", ".join([*(group.file for group in study.predictors), *(image.file for image in study.imagery)])
        found[pred, "Data sources"] = f"{TO_FILL}. Files: {sources}"
        found[pred, "Coordinate reference system"] = str(self.data.grid.crs)
        ways = ", ".join(sorted({self.data.resampling(group) for group in study.predictors}))
        reduced = [image for image in study.imagery if image.reduce is not None]
        found[pred, "Data processing"] = (
            f"Brought to the grid by resampling ({ways}); units converted to canonical ones; numbers rounded to the "
            "digits that the report shows"
            + (f"; percentiles over the bands of {', '.join(i.file for i in reduced)}" if reduced else "")
        )
        found[pred, "Dimension reduction"] = "none by the software"
        if study.scenarios:
            told = [scenario.title or scenario.name for scenario in study.scenarios]
            delta = any(scenario.delta for scenario in study.scenarios)
            found[proj, "Data sources"] = f"{TO_FILL}. Files: " + ", ".join(
                dict.fromkeys(file for place, file in study.files() if place.startswith("scenarios"))
            )
            found[proj, "Spatial extent"] = self.extent
            found[proj, "Spatial resolution"] = self.cell
            found[proj, "Temporal extent"] = ", ".join(
                dict.fromkeys(str(scenario.period) for scenario in study.scenarios if scenario.period is not None)
            )
            found[proj, "Models and scenarios"] = "; ".join(told)
            found[proj, "Data processing"] = (
                "The change of a climate model between its own baseline and the period was put on the observed "
                "values (differences; ratios held to 0.2-5 for amounts)"
                if delta
                else "Predictor files were replaced by those of the scenario"
            )
            found[proj, "Quantification of Novelty"] = self._novelty()
        else:
            found |= {place[1:]: _NO_SCENARIO for place in ELEMENTS if place[:2] == ("Data", proj)}
        return {("Data", *place): value for place, value in found.items()}

    def model(self) -> Filled:
        """Model."""
        study, training = self.study, self.study.training
        settings = training.model_dump(mode="json", exclude={"lora"} if training.tuning != "lora" else None)
        settings |= {key: self.summary[key] for key in ("epochs", "seed", "members") if key in self.summary}
        told = ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, {}, []))
        splits = study.splits
        folds = ""
        if splits is not None and splits.kind != "random":
            folds = f"Whole spatial blocks were held out ({splits.size:g} CRS units); residuals: {TO_FILL.lower()}"
        ranked = sorted(self.importances, key=lambda one: -one.increase)
        found = {
            ("Variable pre-selection", "Variable pre-selection"): f"{TO_FILL}. None was done by the software",
            ("Multicollinearity", "Multicollinearity"): self._correlations(),
            ("Model settings", "Model settings (fitting)"): f"size {study.model.size}, {told}",
            ("Model settings", "Model settings (extrapolation)"): "No clamping",
            ("Model estimates", "Coefficients"): "none to interpret; response curves and importance stand for them",
            ("Model estimates", "Parameter uncertainty"): "Spread over the networks of the ensemble"
            if self.ensemble > 1
            else "not quantified: a single network",
            ("Model estimates", "Variable importance"): "Increase of the held-out log loss under permutation: "
            + "; ".join(f"{one.title} {one.increase:.3g} (sd {one.sd:.2g})" for one in ranked)
            if ranked
            else "",
            ("Model selection - model averaging - ensembles", "Model averaging"): "Unweighted mean of networks"
            if self.ensemble > 1
            else "none",
            ("Model selection - model averaging - ensembles", "Model ensembles"): (
                f"{self.ensemble} networks that differ in the fold left out and in the seed"
                if self.ensemble > 1
                else "none"
            ),
            ("Analysis and Correction of non-independence", "Spatial autocorrelation"): folds,
            ("Threshold selection", "Threshold selection"): (
                f"Suitable above {study.map.suitable_above:g}; how it was chosen: {TO_FILL.lower()}"
            ),
        }
        return {("Model", *place): value for place, value in found.items()}

    def results(self) -> Filled:
        """Assessment and Prediction."""
        found: Filled = {}
        perform, unsure = ("Assessment", "Performance statistics"), ("Prediction", "Uncertainty quantification")
        rows = ["; ".join(_scored(key, value) for key, value in row.items() if key != "model") for row in self.scores]
        if rows:
            named = [f"{row.get('model', 'model')}: {told}" for row, told in zip(self.scores, rows, strict=True)]
            found[*perform, "Performance on validation data"] = ". ".join(named)
        elif self.summary.get("held_out"):
            told = "; ".join(_scored(key, value) for key, value in self.summary["held_out"].items())
            found[*perform, "Performance on validation data"] = told
        found[*perform, "Performance on training data"] = "not reported: only held-out sites were scored"
        if self.importances:
            shapes = "Partial dependence and individual curves beyond the range of the labelled sites"
            found["Assessment", "Plausibility check", "Response shapes"] = shapes
        labels = self.study.labels
        share = self.study.training.objective == "share" and labels is not None
        unit = "probability (0-1) of suitability of a cell"
        if share and labels is not None:
            unit = f"probability (0-1) that the share of land of a cell exceeds {labels.presence_above:g}"
        found["Prediction", "Prediction output", "Prediction unit"] = unit
        found["Prediction", "Prediction output", "Post-processing"] = "Cells with a missing predictor are nodata" + (
            f"; maps: {', '.join(self.maps)}; layers: {', '.join(self.layers)}" if self.layers else ""
        )
        spread = "Spread over the networks of the ensemble" if self.ensemble > 1 else "none: a single network"
        spread += " (mapped as `std`)" if self.ensemble > 1 and "std" in self.layers else ""
        found[*unsure, "Algorithmic uncertainty"] = spread
        found[*unsure, "Parameter uncertainty"] = spread
        models = dict.fromkeys(s.climate_model for s in self.study.scenarios if s.climate_model)
        ssps = dict.fromkeys(s.ssp for s in self.study.scenarios if s.ssp)
        if self.study.scenarios:
            found[*unsure, "Scenario uncertainty"] = (
                f"Every scenario is mapped by itself: {len(self.study.scenarios)} scenarios"
                + (f"; pathways {', '.join(ssps)}" if ssps else "")
                + (f"; climate models {', '.join(models)}" if models else "")
            )
        else:
            found[*unsure, "Scenario uncertainty"] = _NO_SCENARIO
        found[*unsure, "Novel environments"] = self._novelty()
        return found

    def _workflow(self) -> str:
        """Steps that were taken; none of them before a fit."""
        if not self.summary:
            return f"{TO_FILL}. Nothing has been fitted yet"
        told = "Labels and predictors were checked for units and ranges; each network was fitted without one fold and "
        told += f"{'calibrated and ' if self.calibrated else ''}scored on sites that it had not seen"
        if self.maps:
            told += f"; {len(self.maps)} climates were mapped cell by cell"
        return f"{told}." + (f" {_CHANGED}" if self.changed else "")

    def _parameters(self) -> str:
        """Number of parameters, from the header of the weights."""
        file = None if self.model_dir is None else Path(self.model_dir) / "model.safetensors"
        if file is None or not file.is_file():
            return ""
        from safetensors import safe_open

        with safe_open(file, framework="np") as weights:
            count = sum(int(np.prod(weights.get_slice(key).get_shape())) for key in weights.keys())  # noqa: SIM118
        return f", {count:,} parameters"

    def _novelty(self) -> str:
        """Which layers tell where the model leaves what it knows."""
        told = [words for layer, words in _NOVELTY.items() if layer in self.layers]
        return f"Mapped beside the prediction, nothing is masked: {'; '.join(told)}" if told else ""

    def _sample(self) -> str:
        sites = self.data.labels()
        told = f"{len(sites)} labelled sites"
        if self.study.labels is not None and self.study.labels.kind != "presence_only":
            told += f", {int(sites.presence.sum())} of them present (prevalence {sites.presence.mean():.3f})"
        return told

    def _correlations(self) -> str:
        """How many pairs of predictors go together at the labelled sites."""
        names = [variable.name for variable in self.study.variables]
        if self.study.labels is None or len(names) < 2:
            return ""
        sites = self.data.labels()
        table = self.data.predictors(sites.x, sites.y)
        table = table[np.isfinite(table).all(axis=1)]
        varying = np.flatnonzero(table.std(axis=0) > 0) if len(table) > 2 else np.zeros(0, dtype=int)
        if len(varying) < 2:
            return ""
        strength = np.abs(np.corrcoef(table[:, varying], rowvar=False))
        first, second = np.triu_indices(len(varying), 1)
        high = [(strength[i, j], names[varying[i]], names[varying[j]]) for i, j in zip(first, second, strict=True)]
        high = sorted((pair for pair in high if pair[0] > _HIGH_CORRELATION), reverse=True)
        pairs = ", ".join(f"{a} and {b} ({r:.2f})" for r, a, b in high[:5])
        return f"No predictor was removed; {len(high)} of {len(first)} pairs have |r| above {_HIGH_CORRELATION}" + (
            f", most of all {pairs}" if high else ""
        )


_CHANGED = "The study file has changed since the model was fitted: what is said of the fit may be of the new file."
_NO_SCENARIO = "not applicable: no scenario"
_NOVELTY = {
    "mess": "MESS with the most dissimilar variable (Elith et al. 2010)",
    "dissimilarity": "dissimilarity index and area of applicability (Meyer and Pebesma 2021)",
}
_KINDS = {
    "share": "counts: positive units out of units looked at",
    "presence_absence": "presence/absence",
    "presence_only": "presence-only",
}
_ABSENCES = {
    "share": "Units looked at that were not positive",
    "presence_absence": "Sites labelled 0 in the table",
    "presence_only": "none",
}


def _scored(key: str, value: Any) -> str:
    return f"{key.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed as a package)"
