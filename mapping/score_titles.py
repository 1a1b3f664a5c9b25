"""How scores are named and ranked, the same in the terminal and in the report.

One table of titles, directions and meanings: a score that is not listed here is shown by its own name and never marked
as best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["SCORE_TITLES", "best_rows", "column_title"]

#: Score -> (title, short title, whether larger is better, what it means in one sentence).
SCORE_TITLES: dict[str, tuple[str, str, bool, str]] = {
    "ap": (
        "average precision",
        "AP",
        True,
        "How well places with the crop are ranked above those without; 1 is perfect.",
    ),
    "auc": ("ROC AUC", "AUC", True, "Chance that a place with the crop is ranked above one without; 0.5 is guessing."),
    "brier": ("Brier score", "Brier", False, "Mean squared error of the probability; 0 is perfect."),
    "log_loss": ("log loss", "log loss", False, "Punishes confident mistakes; 0 is perfect."),
    "ece": (
        "calibration error",
        "ECE",
        False,
        "Mean gap between the probability and the observed frequency; 0 is perfect.",
    ),
}


def column_title(key: str, short: bool = False) -> str:
    """Title of a score, for a page or (short) for a terminal."""
    return SCORE_TITLES[key][1 if short else 0] if key in SCORE_TITLES else key.replace("_", " ")


def best_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, set[int]]:
    """Score -> indices of the rows that are best at the three decimals shown.

    Args:
        rows: Rows with ``model`` and scores.
    """
    best: dict[str, set[int]] = {}
    for key in rows[0] if rows else {}:
        best[key] = set()
        if key not in SCORE_TITLES:
            continue
        values = [row.get(key) for row in rows]
        known = [round(value, 3) for value in values if value is not None and math.isfinite(value)]
        if len(known) > 1:
            target = max(known) if SCORE_TITLES[key][2] else min(known)
            best[key] = {
                index
                for index, value in enumerate(values)
                if value is not None and math.isfinite(value) and round(value, 3) == target
            }
    return best
