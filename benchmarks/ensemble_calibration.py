"""What an ensemble is worth on land that none of its members has seen: calibration error, coverage, ranking.

Each fold of a study is left out of everything in turn; an ensemble is fitted and calibrated on the others, and answers
for the fold. The table is of all folds together. A study of 2,000 sites and five members takes about an hour and a
half on one core: an interrupted run goes on where it was.

    python benchmarks/ensemble_calibration.py studies/us_double_crop_soybean.yaml --members 5
"""

import csv
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from evaluation.metrics import score_presence
from processing.study import load_study
from training.calibration import coverage_of
from training.fit import UNSEEN, fit_study

SETS = {"unsuitable": (True, False), "suitable": (False, True), "undecided": (True, True), "strange": (False, False)}


def main(
    study: Path,
    members: int = 5,
    output: Path = Path("out/ensemble_calibration"),
    data: Path | None = None,
    folds: Annotated[int | None, typer.Option(help="Only so many of the folds.")] = None,
    processes: int = 1,
) -> None:
    """Fit, leave out, score."""
    loaded, console = load_study(study, data_root=data), Console()
    assert loaded.splits is not None
    rows = []
    for fold in range(1, (folds or loaded.splits.folds) + 1):
        folder = output / f"without_fold_{fold}"
        path = folder / "model" / UNSEEN
        if not path.exists():
            fit_study(loaded, folder, members=members, leave_out=fold, processes=processes)
        with path.open() as file:
            rows += list(csv.DictReader(file))
    presence = np.array([int(row["presence"]) for row in rows])
    scores = score_presence(presence, np.array([float(row["probability"]) for row in rows]))
    coverage = {}
    for name in (key for key in rows[0] if key.startswith("set_")):
        found = coverage_of(np.array([SETS[row[name]] for row in rows]), presence)
        coverage[name.removeprefix("set_")] = vars(found)
    table = Table("nominal", "covered", "unsuitable", "suitable", "undecided", title=f"{len(rows)} unseen places")
    for nominal, found in coverage.items():
        names = ("pooled", "unsuitable", "suitable", "undecided")
        table.add_row(nominal, *(f"{found[key]:.3f}" for key in names))
    console.print(scores)
    console.print(table)
    result = {"members": members, "places": len(rows), "scores": scores, "coverage": coverage}
    (output / "results.json").write_text(json.dumps(result, indent=2, default=float) + "\n")


if __name__ == "__main__":
    typer.run(main)
