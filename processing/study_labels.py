"""The labelled sites of a study, read from a CSV and judged row by row.

Two choices: a label keeps its nature (positive units out of units looked at, never a threshold), and what is wrong is
told by the names of the sites, so that it can be found and repaired in the table.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import AgriClipError, named, nearest
from .grids import Grid, transform_points
from .study import Study

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelTable:
    """Labelled sites; one entry per site.

    Attributes:
        ids: Names.
        x: Eastings or longitudes in the grid's CRS.
        y: Northings or latitudes in the grid's CRS.
        positive: Positive units.
        total: Units looked at.
        share: positive / total.
        presence: Whether share exceeds the study's `presence_above`.
        weight: Weight.
    """

    ids: NDArray[np.str_]
    x: FloatArray
    y: FloatArray
    positive: FloatArray
    total: FloatArray
    share: FloatArray
    presence: BoolArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.ids)


def _column(rows: list[dict[str, str | None]], name: str) -> FloatArray:
    """Read a column of numbers; what is empty or no number becomes NaN."""

    def number(text: str | None) -> float:
        try:
            return float(text) if text is not None else float("nan")
        except ValueError:
            return float("nan")

    return np.asarray([number(row[name]) for row in rows], dtype=np.float64)


def read_labels(study: Study, grid: Grid) -> LabelTable:
    """Read and check the labelled sites of a study.

    Args:
        study: The study.
        grid: Its grid, to whose CRS the sites are taken.

    Raises:
        AgriClipError: For a missing table or column, and for values that are missing or out of range, named by id.
    """
    part = study.labels
    if part is None:
        raise AgriClipError(f"The study '{study.name}' has no `labels`; add them to fit or evaluate.")
    path = study.path(part.table)
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except FileNotFoundError:
        raise AgriClipError(f"The table of labels '{path}' does not exist; check the study's data folder.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise AgriClipError(f"'{path}' cannot be read as a CSV in UTF-8 ({error}).") from error
    for column in (part.id, part.x, part.y, part.positive, part.total, part.weight):
        if column is not None and column not in header:
            raise AgriClipError(f"The table '{part.table}' has no column '{column}'; {nearest(column, header)}.")
    if not rows:
        raise AgriClipError(f"The table '{part.table}' has a header but no rows; add labelled sites.")
    ids = np.asarray([row[part.id] or "" for row in rows], dtype=np.str_)

    def refuse(bad: BoolArray, what: str, advice: str) -> None:
        if bad.any():
            raise AgriClipError(f"In '{part.table}', {what} at {named(ids[bad])}; {advice}.")

    refuse(ids == "", f"column '{part.id}' is empty in {int((ids == '').sum())} rows", "give every site a name")
    unique, firsts, counts = np.unique(ids, return_index=True, return_counts=True)
    if (counts > 1).any():
        if part.repeated == "refuse":
            raise AgriClipError(
                f"In '{part.table}', sites have more than one row: {named(unique[counts > 1])}; keep one row for each "
                "or set `repeated: first`."
            )
        rows = [rows[position] for position in np.sort(firsts)]
        ids = ids[np.sort(firsts)]
    x, y = _column(rows, part.x), _column(rows, part.y)
    refuse(~(np.isfinite(x) & np.isfinite(y)), f"'{part.x}' or '{part.y}' is no number", "repair or remove those rows")
    total = _column(rows, part.total) if part.total else np.ones(len(rows))
    refuse(~np.isfinite(total), f"'{part.total}' is missing or no number", "repair or remove those rows")
    refuse(total < 0, f"'{part.total}' is negative", "repair or remove those rows")
    # sites with too little looked at are left out before their labels are judged
    keep = total >= part.min_total
    if not keep.any():
        raise AgriClipError(
            f"No site of '{part.table}' has '{part.total}' of at least {part.min_total:g}; lower `min_total`."
        )
    if part.positive is None:
        positive = total.copy()
    else:
        positive = _column(rows, part.positive)
        fix = "repair or remove those rows"
        refuse(keep & ~np.isfinite(positive), f"the label '{part.positive}' is missing or no number", fix)
        refuse(keep & (positive < 0), f"the label '{part.positive}' is negative", fix)
        if part.kind == "presence_absence" and part.total is None:
            refuse(keep & (positive != 0) & (positive != 1), f"the label '{part.positive}' is neither 0 nor 1", fix)
        refuse(keep & (positive > total), f"the label '{part.positive}' exceeds '{part.total or 1}'", fix)
    weight = _column(rows, part.weight) if part.weight else np.ones(len(rows))
    refuse(keep & ~(np.isfinite(weight) & (weight >= 0)), f"'{part.weight}' is no weight", "use numbers from 0 up")
    moved_x, moved_y = transform_points(x, y, part.crs, grid.crs)
    moved_x = grid.unwrap(moved_x)
    refuse(
        keep & ~(np.isfinite(moved_x) & np.isfinite(moved_y)),
        f"coordinates cannot be taken from {part.crs} to the grid",
        "check `labels.crs` and the coordinates",
    )
    west, south, east, north = grid.bounds
    inside = (moved_x >= west) & (moved_x <= east) & (moved_y >= south) & (moved_y <= north)
    if not inside[keep].any():
        raise AgriClipError(
            f"None of the {int(keep.sum())} sites of '{part.table}' lies inside the grid; check `labels.crs` and "
            "whether x and y are exchanged."
        )
    share = positive[keep] / total[keep]
    return LabelTable(
        ids=ids[keep],
        x=moved_x[keep],
        y=moved_y[keep],
        positive=positive[keep],
        total=total[keep],
        share=share,
        presence=share > part.presence_above,
        weight=weight[keep],
    )
