"""`agriclip explain STUDY`: why the map says what it says, at single places and altogether.

Altogether: how the probability follows each predictor, beyond the range of the labelled sites too, and what each
predictor is worth on land that the members have not seen. At a place: what spoke for and against, and the planting
window of the heat-unit rule where the study has monthly climate.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mapping.agronomy.figures import planting_window_figure
from mapping.agronomy.planting_card import planting_card
from mapping.agronomy.study_layers import calendar_at
from mapping.explain import explain_site
from mapping.explain_figures import explanation_figure, importance_figure, response_figure
from mapping.predictor import SuitabilityPredictor
from mapping.provenance import write_json
from mapping.responses import SiteEstimator, held_out_sites, permutation_importances, response_curves
from processing.rasters import transform_points
from processing.study import PRESENT, Study
from processing.study_data import StudyData
from processing.whole_files import finished

__all__ = ["explain_place", "explain_predictors"]


def explain_predictors(
    study: Study,
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    sites: int = 60,
    repeats: int = 3,
    most: int | None = 400,
    predictor: SuitabilityPredictor | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Path]:
    """Response curves and permutation importance of a fitted study.

    Args:
        study: The study.
        model_dir: Folder of the fit, with its held-out predictions.
        output_dir: `pictures/responses.png`, `pictures/importance.png`, `responses.csv` and `importance.csv` go there.
        sites: Labelled sites whose curves are drawn together.
        repeats: Permutations of each predictor.
        most: At most so many held-out sites of each member; all if None.
        predictor: The model, if it is loaded already.
        progress: Called with what is being done.

    Returns:
        Files by name.

    Raises:
        AgriClipError: The folder holds no model, or tells of no held-out sites.
    """
    tell = progress or (lambda what: None)
    data, folder = StudyData(study), Path(output_dir)
    predictor = predictor or SuitabilityPredictor(model_dir)
    labels = data.labels()
    training = data.predictors(labels.x, labels.y)
    known = np.flatnonzero(np.isfinite(training).all(axis=1))
    chosen = np.sort(np.random.default_rng(0).choice(known, min(sites, len(known)), replace=False))
    tell("response curves")
    estimator = SiteEstimator(predictor, data, labels.x[chosen], labels.y[chosen])
    curves = response_curves(estimator, training[chosen], training, data.variables)
    found = {"responses": response_figure(curves, folder / "pictures" / "responses.png")}
    rows = [
        {"predictor": curve.name, "unit": curve.unit, "value": value, "mean": mean, "low": low, "high": high}
        for curve in curves
        for value, mean, low, high in zip(curve.values, curve.mean, curve.low, curve.high, strict=True)
    ]
    found["responses_table"] = _write_table(folder / "responses.csv", rows)
    tell("importance")
    held_out = held_out_sites(model_dir, data, predictor, most)
    importances = permutation_importances(held_out, data.variables, repeats=repeats)
    found["importance"] = importance_figure(importances, folder / "pictures" / "importance.png")
    found["importance_table"] = _write_table(folder / "importance.csv", [asdict(one) for one in importances])
    return found


def explain_place(
    study: Study,
    model_dir: str | Path,
    output_dir: str | Path,
    longitude: float,
    latitude: float,
    *,
    scenario: str | None = None,
    predictor: SuitabilityPredictor | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Explain the answer at one place, and give its planting window.

    Args:
        study: The study.
        model_dir: Folder of the fit.
        output_dir: `places/<longitude>_<latitude>_<climate>.json` and pictures go there.
        longitude: Degrees east.
        latitude: Degrees north.
        scenario: Name of a scenario; the present if None.
        predictor: The model, if it is loaded already.
        **options: Of [`mapping.explain.explain_region`].

    Returns:
        `explanation`, `card` (None without monthly climate) and `files`.

    Raises:
        AgriClipError: The place has no data, or no model is there.
    """
    data = StudyData(study)
    x, y = (float(axis[0]) for axis in transform_points([longitude], [latitude], "EPSG:4326", data.grid.crs))
    explanation = explain_site(predictor or SuitabilityPredictor(model_dir), data, x, y, scenario, **options)
    climate = scenario or PRESENT
    stem = Path(output_dir) / "places" / f"{longitude:g}_{latitude:g}_{climate}"
    files = {"explanation": explanation_figure(explanation, Path(f"{stem}_explanation.png"))}
    card = None
    calendar = None if study.agronomy is None else calendar_at(study, x, y, scenario)
    if calendar is not None:
        title = climate if scenario is None else study.scenario(scenario).title or scenario
        card = planting_card(calendar, place=f"{longitude:g}, {latitude:g}", scenario=title)
        files["planting_window"] = planting_window_figure(calendar, card, Path(f"{stem}_planting_window.png"))
    told = {"explanation": explanation.as_dict(), "planting_window": None if card is None else card.as_dict()}
    files["json"] = write_json(Path(f"{stem}.json"), told)
    return {"explanation": explanation, "card": card, "files": files}


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A CSV of dictionaries with the same keys, under a temporary name first."""
    with finished(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path
