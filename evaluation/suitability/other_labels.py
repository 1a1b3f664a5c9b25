"""Labels of other places: read like the study's own, compared with what was fitted, scored only where they are new.

Three choices define this file. The other table has the columns of the study's table, so nothing about it needs to be
said twice. A place counts as fitted when its name or its coordinates are in the study's table; fitted places are left
out of the scores and told, unless the asker wants them in, and then the result says so. And how far the new places lie
from the fitted ones stands beside the scores, because a neighbour of a training place is no test of a map.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.study_scores import read_predictions
from evaluation.suitability.places import HELD_OUT, OTHER_PLACES, Places, places_of
from processing.errors import AgriClipError, named, nearest

__all__ = ["OtherLabels", "fitted_places", "leakage_of", "read_other_labels", "rule_rows"]

_RULE = re.compile(r"\s*(\w+)\s*(<=|>=|<|>|=)\s*([^\s].*?)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SAME_METRES = 0.1  # two spellings of one point


@dataclass(frozen=True)
class OtherLabels:
    """Labelled places of another table.

    Attributes:
        data: ``processing.study_data.StudyData`` of the study with this table.
        places: The places to score.
        fitted: (N,) bool, which of them the model may have seen; all False unless fitted places were asked for.
        left_out: Names of the fitted places that were left out.
        told: What was found of leakage, for the results.
    """

    data: Any
    places: Places
    fitted: np.ndarray
    left_out: tuple[str, ...]
    told: dict[str, Any]


def read_other_labels(
    data: Any,
    table: str | Path,
    *,
    model_dir: str | Path | None = None,
    regions: str | None = None,
    keep_fitted: bool = False,
) -> OtherLabels:
    """Reads another table of labels and compares it with the one that was fitted.

    Args:
        data: ``processing.study_data.StudyData`` of the study, whose own table was fitted.
        table: CSV with the same columns.
        model_dir: Folder of the model; places that its fit left predictions of were fitted too, whatever the study
            says now.
        regions: As for :func:`evaluation.suitability.places.places_of`.
        keep_fitted: Whether places that were fitted stay in.

    Returns:
        The places to score.

    Raises:
        AgriClipError: The table does not exist, lacks a column, or holds no place that was not fitted.
    """
    from processing.study_data import StudyData

    path = Path(table)
    if not path.is_file():
        raise AgriClipError(f"The table of labels '{table}' does not exist; give a CSV with the study's columns.")
    study = data.study
    labels = study.labels.model_copy(update={"table": str(path.resolve())})
    other = StudyData(study.model_copy(update={"labels": labels}))
    places, known = places_of(other, regions), places_of(data, regions)
    fitted = fitted_places(places, known)
    if model_dir is not None:
        fitted |= _in_fit_of(places, model_dir)
    if fitted.all() and not keep_fitted:
        raise AgriClipError(
            f"All {len(places)} places of '{path.name}' were fitted (their names or coordinates are in "
            f"'{study.labels.table}'); give other places, or --in-sample to score these all the same."
        )
    told: dict[str, Any] = {
        "table": str(path),
        "places": len(places),
        "fitted": int(fitted.sum()),
        "fitted_names": places.ids[fitted][:20].tolist(),
        "left_out": 0 if keep_fitted else int(fitted.sum()),
    }
    if not fitted.all():
        told |= leakage_of(data, known, places.only(~fitted))
    kept = np.ones(len(places), dtype=bool) if keep_fitted else ~fitted
    left_out = () if keep_fitted else tuple(places.ids[fitted].tolist())
    return OtherLabels(other, places.only(kept), fitted[kept], left_out, told)


def fitted_places(places: Places, known: Places) -> np.ndarray:
    """(N,) True where a place's name or coordinates are among the known ones.

    Args:
        places: N places.
        known: Places that were fitted.
    """
    from evaluation.distances import nearest_distance

    by_name = np.isin(places.ids.astype(str), known.ids.astype(str))
    return by_name | (nearest_distance(_degrees(places), _degrees(known), geographic=True) <= _SAME_METRES)


def _in_fit_of(places: Places, model_dir: str | Path) -> np.ndarray:
    """(N,) True at places that a fit left predictions of, by name or by coordinates in the grid's CRS."""
    found = np.zeros(len(places), dtype=bool)
    path = Path(model_dir) / HELD_OUT
    if path.is_file():
        left = read_predictions(path)
        # The fit writes six decimals.
        spots = set(zip(np.round(left["x"], 6).tolist(), np.round(left["y"], 6).tolist(), strict=True))
        here = zip(np.round(places.x, 6).tolist(), np.round(places.y, 6).tolist(), strict=True)
        found |= np.isin(places.ids.astype(str), left["id"]) | np.array([spot in spots for spot in here])
    return found


def leakage_of(
    data: Any, known: Places, places: Places | None = None, folds: np.ndarray | None = None
) -> dict[str, Any]:
    """What scored places share with those that were fitted, and how far they lie from them.

    Args:
        data: ``processing.study_data.StudyData``.
        known: Places that were fitted.
        places: Other places that are scored; None for the known ones, out of fold.
        folds: Fold of each known place, where those are scored.

    Returns:
        The verdict of ``evaluation.leakage.check_leakage`` and its counts, distances in km.
    """
    from evaluation.leakage import check_leakage
    from evaluation.splits import TrainTest

    points, split = _degrees(known), folds
    if places is not None:
        points = np.concatenate([points, _degrees(places)])
        fitted = np.arange(len(points)) < len(known)
        split = TrainTest(OTHER_PLACES, fitted, ~fitted)
    if split is None or (places is None and len(np.unique(folds)) < 2):
        return {}
    extent = data.gsd * data.chip_size if data.channels else None
    report = check_leakage(*points.T, split, chip_extent=extent, geographic=True, tolerance=_SAME_METRES)
    return {
        "verdict": report.verdict,
        "tested": report.tested,
        "identical_places": report.identical_places,
        "overlapping_chips": report.overlapping_chips,
        "nearest_fitted_place_km": _quantiles(report.distance / 1000.0),
    }


def _degrees(places: Places) -> np.ndarray:
    return np.stack([places.longitude, places.latitude], axis=1)


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Minimum, quartiles and maximum."""
    found = np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0])
    names = ("minimum", "first_quartile", "median", "third_quartile", "maximum")
    return dict(zip(names, found.tolist(), strict=True))


def rule_rows(places: Places, rule: str) -> np.ndarray:
    """(N,) True at the places that a rule names, such as `longitude>-90`, `latitude>=39.5` or `region=17`.

    Args:
        places: N places.
        rule: Longitude or latitude in degrees, x or y in units of the grid, or a region by name.

    Raises:
        AgriClipError: The rule cannot be read, or no place meets it.
    """
    match = _RULE.fullmatch(rule)
    fields = ("longitude", "latitude", "x", "y", "region")
    if match is None or match[1] not in fields:
        hint = nearest(match[1], fields) if match else "write a rule like longitude>-90"
        raise AgriClipError(f"'{rule}' names no places to hold out; {hint}.")
    name, sign, value = match.groups()
    if name == "region":
        rows = places.region.astype(str) == value
        known = named(np.unique(places.region), 8)
    else:
        try:
            limit = float(value)
        except ValueError:
            raise AgriClipError(f"'{value}' in '{rule}' is no number; write a rule like longitude>-90.") from None
        if sign == "=":
            raise AgriClipError(f"'{rule}' asks for one {name}; write a rule like {name}>{value}.")
        rows = _COMPARE[sign](getattr(places, name), limit)
        values = getattr(places, name)
        known = f"{values.min():g} to {values.max():g}"
    if not rows.any():
        raise AgriClipError(f"No place meets the rule '{rule}'; their {name} is {known}.")
    return np.asarray(rows)
