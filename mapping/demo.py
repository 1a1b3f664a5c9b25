"""`agriclip demo`: an invented landscape with a known truth, from nothing to a report on how near the maps come.

Three choices define this file. It calls the same functions as `agriclip fit` and `agriclip map`, so what it shows is
what a real study gets; like the command line it may call every room. The truth is used for nothing but the comparison
at the end. Every file that it names is opened again before it is named.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mapping.change import change_classes
from mapping.outputs import read_map
from mapping.products import Products, make_products, write_json
from mapping.report import SkillPicture, TruthRow, change_sentence
from processing.errors import AgriClipError
from processing.rasters import Grid, sample_points
from processing.study_data import StudyData

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["check_file", "compare_with_truth", "demo_summary", "run_demo"]

_TRUTH_NOTE = (
    "The landscape is invented, so the true probability of every cell is known. It was never shown to the model: the "
    "labels are random draws from it at scattered places."
)
_WARNINGS = (
    "This landscape is invented. Its places, climate and crop exist nowhere; the page shows what a real study looks "
    "like and how far such maps can be trusted.",
)


def run_demo(
    output_dir: str | Path,
    seed: int = 0,
    *,
    size: str | None = None,
    epochs: int | None = None,
    height: int = 64,
    width: int = 96,
    sites: int | None = 1500,
    baselines: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Makes a virtual landscape, fits, maps, reports, and compares with the truth.

    Args:
        output_dir: Folder for everything.
        seed: Seed of the landscape and of the fit.
        size: Size of the model, instead of the study's.
        epochs: Epochs, instead of the study's.
        height: Rows of the landscape.
        width: Columns of the landscape.
        sites: Labelled sites; the landscape's own number if None.
        baselines: Whether to score baselines on the same folds.
        quiet: No progress.

    Returns:
        ``study, model_dir, report, maps, changes, suitable_present, novel_percent, comparison, held_out, truth, files,
        seconds``; also written to ``demo.json``.
    """
    from evaluation.metrics import rmse
    from evaluation.study_scores import compare_on_study, read_predictions, skill_pictures
    from mapping.predict import map_study
    from mapping.skill_figures import scatter_figure
    from processing.study import load_study
    from processing.virtual_landscape import make_virtual_landscape
    from training.fit import fit_study

    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    with _step("landscape", "Making a virtual landscape", seconds, quiet):
        study_file = Path(
            make_virtual_landscape(folder / "landscape", seed=seed, height=height, width=width, sites=sites)
        )
        study = load_study(study_file)
    with _step("fit", "Fitting", seconds, quiet):
        fit = dict(fit_study(study, folder, size=size, epochs=epochs, seed=seed, quiet=quiet))
    with _step("map", "Mapping the present and the scenarios", seconds, quiet):
        maps = map_study(study, fit["model_dir"], folder, quiet=quiet)
    with _step("baselines", "Scoring", seconds, quiet):
        comparison = compare_on_study(study, fit["predictions"], baselines=baselines, seed=seed)
        truth_files = _truth_files(study_file.parent, maps)
        rows = compare_with_truth(maps, truth_files, study)
        ours = read_predictions(fit["predictions"])
        crs = Grid.from_raster(truth_files["present"]).crs
        true_at_places = sample_points(truth_files["present"], None, ours["x"], ours["y"], crs)[0][:, 0]
        held_out = {
            "rmse": rmse(true_at_places, ours["probability"]),
            "places": int(np.isfinite(true_at_places).sum()),
            "blocks_left_out": True,
        }
    with _step("report", "Drawing and writing the report", seconds, quiet):
        pictures = skill_pictures(study, fit["predictions"], folder / "pictures")
        truth, mapped = read_map(truth_files["present"]), read_map(maps["present"]["probability"])
        png = scatter_figure(
            truth,
            mapped,
            folder / "pictures" / "truth.png",
            title="Mapped against true, present",
            note=f"RMSE {rmse(truth, mapped):.3f}",
        )
        pictures.append(SkillPicture("truth", png, "Every cell of the present map against its true probability."))
        products = make_products(
            study,
            maps,
            folder,
            comparison=comparison,
            skill_pictures=pictures,
            truth=rows,
            truth_note=_TRUTH_NOTE,
            cards=[
                {
                    "what": "Error on places left out",
                    "number": f"{held_out['rmse']:.3f}",
                    "also": f"RMSE of the probability to the truth, {held_out['places']:,} places",
                }
            ],
            warnings=_WARNINGS,
            commands=[f"agriclip demo --output {folder.as_posix()} --seed {seed}"],
            facts={"model": f"{fit['model_dir']}, fitted in {seconds['fit']:.0f} s"},
        )
    result = _result(study_file, fit, maps, products, comparison, rows, held_out, seconds)
    files = {folder / "demo.json": "everything above as JSON", study_file: "the study file", **products.files}
    files[Path(fit["predictions"])] = "predictions for places that were not fitted"
    result["files"] = {str(path): what for path, what in files.items()}
    write_json(folder / "demo.json", result)
    for path in files:
        check_file(path)
    return result


def compare_with_truth(
    maps: Mapping[str, Mapping[str, str | Path]], truth: Mapping[str, str | Path], study: Any
) -> list[TruthRow]:
    """Agreement of probability maps with the known truth.

    Args:
        maps: Map name -> layer -> path.
        truth: Map name -> raster of true probabilities on the same grid.
        study: The study, for the threshold and the titles.

    Returns:
        One row per map: RMSE weighted by cell area, true and mapped suitable area on cells known in both, and, for a
        scenario, the share of the area whose change class (against the present) is the true one, everywhere and where
        the map does not call the climate novel, and how much of the truly novel land it does call so.
    """
    from evaluation.metrics import rmse

    threshold = float(study.map.suitable_above)
    titles = {"present": "present", **{scenario.name: scenario.title or scenario.name for scenario in study.scenarios}}
    data = StudyData(study)
    area = data.grid.cell_areas_ha()
    mapped = {name: read_map(layers["probability"]) for name, layers in maps.items()}
    true = {name: read_map(truth[name]) for name in maps}
    rows = []
    for name, layers in maps.items():
        if mapped[name].shape != true[name].shape:
            raise AgriClipError(f"The map '{name}' and its truth have different grids; make the landscape again.")
        known = np.isfinite(mapped[name]) & np.isfinite(true[name])
        agreement = trusted = flagged = None
        if name != "present":
            ours = change_classes(mapped["present"], mapped[name], threshold)
            theirs = change_classes(true["present"], true[name], threshold)
            both, same = (ours > 0) & (theirs > 0), ours == theirs
            agreement = _percent(same & both, both, area)
            if "mess" in layers:
                flag = read_map(layers["mess"]) < 0
                trusted = _percent(same & both & ~flag, both & ~flag, area)
                novel = _occurs_nowhere(data, name) & known
                flagged = _percent(flag & novel, novel, area)
        without = None
        if "probability_without_image" in layers:
            without = rmse(true[name], read_map(layers["probability_without_image"]), area)
        rows.append(
            TruthRow(
                title=titles.get(name, name),
                rmse=rmse(true[name], mapped[name], area),
                true_ha=float(area[known & (true[name] >= threshold)].sum()),
                mapped_ha=float(area[known & (mapped[name] >= threshold)].sum()),
                change_agreement_percent=agreement,
                rmse_without_image=without,
                trusted_agreement_percent=trusted,
                novel_flagged_percent=flagged,
            )
        )
    return rows


def _percent(part: np.ndarray, whole: np.ndarray, area: np.ndarray) -> float | None:
    """Area of one set of cells in percent of another's; None where there is no such land."""
    total = float(area[whole].sum())
    return 100.0 * float(area[part].sum()) / total if total else None


def _occurs_nowhere(data: StudyData, scenario: str) -> np.ndarray:
    """Cells (h, w) of which a variable lies outside all values that it has anywhere in the present landscape."""
    present, future = data.predictor_grid(), data.predictor_grid(scenario=scenario)
    low, high = (edge(present, axis=(1, 2))[:, None, None] for edge in (np.nanmin, np.nanmax))
    return ((future < low) | (future > high)).any(axis=0)


def demo_summary(result: Mapping[str, Any], console: Console) -> None:
    """Prints what was made, where, and how good it is.

    Args:
        result: Result of :func:`run_demo`.
        console: Where to print.
    """
    from rich.table import Table

    from evaluation.baselines import comparison_table

    console.print()
    if result["comparison"]:
        console.print(comparison_table(result["comparison"]))
    table = Table(title="Against the known truth", title_justify="left")
    for title in ("map", "RMSE", "no image", "true Mha", "mapped", "same change", "if not novel", "novel flagged"):
        table.add_column(title, justify="left" if title == "map" else "right")
    for row in result["truth"]:
        shares = [row[f"{what}_percent"] for what in ("change_agreement", "trusted_agreement", "novel_flagged")]
        table.add_row(
            row["title"],
            f"{row['rmse']:.3f}",
            "-" if row["rmse_without_image"] is None else f"{row['rmse_without_image']:.3f}",
            f"{row['true_ha'] / 1e6:.2f}",
            f"{row['mapped_ha'] / 1e6:.2f}",
            *("-" if share is None else f"{share:.1f} %" for share in shares),
        )
    console.print(table)
    held_out = result["held_out"]
    console.print(
        f"RMSE on {held_out['places']:,} places in blocks left out of the fit: [bold]{held_out['rmse']:.3f}[/]"
    )
    for name, sentence in result["sentences"].items():
        console.print(f"{name}: {sentence}")
    folder = Path(result["report"]).parent
    files = Table(title=f"Made in {folder} (each file was opened again)", title_justify="left", show_header=False)
    files.add_column("file", overflow="fold")
    files.add_column("what it is")
    maps = [path for path in result["files"] if Path(path).parent.name == "maps"]
    files.add_row("maps/<climate>_<layer>.tif", f"{len(maps)} rasters of {len(result['maps'])} climates")
    for path, what in result["files"].items():
        if path not in maps:
            files.add_row(os.path.relpath(path, folder), what)
    console.print(files)
    total = sum(result["seconds"].values())
    steps = ", ".join(f"{name} {spent:.0f} s" for name, spent in result["seconds"].items())
    console.print(f"Took {total:.0f} s ({steps}).")
    console.print(f"Open [bold]{result['report']}[/] in a browser.")


def check_file(path: str | Path) -> None:
    """Opens a file and reads it to the end.

    Args:
        path: GeoTIFF, PNG, JSON, CSV, HTML or text.

    Raises:
        AgriClipError: If it cannot be read.
    """
    file = Path(path)
    try:
        if file.suffix == ".tif":
            read_map(file)
        elif file.suffix == ".png":
            from PIL import Image

            with Image.open(file) as image:
                image.load()
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8") as stream:
                if len(list(csv.reader(stream))) < 2:
                    raise ValueError("no rows")
        elif not file.read_text(encoding="utf-8").strip():
            raise ValueError("empty")
    except (OSError, ValueError) as error:
        raise AgriClipError(f"{file} was made but cannot be read back ({error}); is the disk full?") from error


def _truth_files(folder: Path, maps: Mapping[str, Any]) -> dict[str, Path]:
    return {name: folder / f"truth_{name}.tif" for name in maps}


def _result(
    study_file: Path,
    fit: Mapping[str, Any],
    maps: Mapping[str, Mapping[str, Any]],
    products: Products,
    comparison: list[dict[str, Any]],
    rows: list[TruthRow],
    held_out: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    truth = [{**asdict(row), "area_error_percent": row.area_error_percent} for row in rows]
    return {
        "study": str(study_file),
        "model_dir": str(fit["model_dir"]),
        "predictions": str(fit["predictions"]),
        "maps": maps,
        **products.as_dict(),
        "sentences": {name: change_sentence(summary, name) for name, summary in products.changes.items()},
        "comparison": comparison,
        "held_out": dict(held_out),
        "truth": truth,
        "seconds": dict(seconds),
    }


@contextmanager
def _step(name: str, text: str, seconds: dict[str, float], quiet: bool) -> Iterator[None]:
    """Says what begins and how long it took; the steps inside show their own bars."""
    start = time.monotonic()
    if not quiet:
        from rich.console import Console

        Console(stderr=True).print(f"[bold]{text}[/]")
    yield
    seconds[name] = time.monotonic() - start
