"""What the released checkpoint is worth: every figure of docs/results.md, on tiles and places that were held out.

Writes lists of tiles, class tables and captions, runs `agriclip evaluate` on each task, and gathers the scores in one
table. The tiles that were not trained on are those of the fold that the model's data manifest names.

    python -m benchmarks.released agriclip --data ../shared/data --output out/results
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rasterio
import typer

from processing.captions import held_out_phrases
from processing.splits import spatial_blocks
from training.release.tiles import BLOCK, COMMON, FOLDS

#: Other names of the classes, in the order of `COMMON`: in everyday words, and in those of the Cropland Data Layer.
NAMES = {
    "everyday": (
        "fields of soybean plants",
        "pasture or prairie grass",
        "fields of spring-sown wheat",
        "maize",
        "marsh",
        "a lake or river",
    ),
    "cdl": ("Soybeans", "Grassland/Pasture", "Spring Wheat", "Corn", "Herbaceous Wetlands", "Open Water"),
}


def write_inputs(data: Path, model: Path, folder: Path) -> dict[str, Path]:
    """Write which tiles were trained on and which were not, the classes, the dominant classes and the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    held = json.loads((model / "data_manifest.json").read_text())["settings"]["hold_out"]
    names = sorted(path.stem for path in (data / "landsat8_cdl" / "images").glob("*.tif"))
    rows, columns = (np.array([int(name.split("_")[axis]) for name in names]) for axis in (0, 1))
    folds = spatial_blocks(columns + 0.5, rows + 0.5, size=BLOCK, folds=FOLDS, seed=0)
    files = {
        key: folder / f"{key}.{'txt' if 'tiles' in key else 'csv'}"
        for key in ("train_tiles", "test_tiles", "plain", "described", "dominant")
    }
    files["train_tiles"].write_text("".join(f"{n}\n" for n, f in zip(names, folds, strict=True) if f != held))
    files["test_tiles"].write_text("".join(f"{n}\n" for n, f in zip(names, folds, strict=True) if f == held))
    described, again = ({code: held_out_phrases(code)[k] for code in COMMON} for k in (0, 1))
    for key, table in (("plain", COMMON), ("described", described)):
        _write(files[key], ("code", "name"), table.items())
    lines = []
    for name in files["test_tiles"].read_text().split():
        with rasterio.open(data / "landsat8_cdl" / "masks" / f"{name}.tif") as raster:
            commonest = int(np.bincount(raster.read(1).ravel(), minlength=256).argmax())
        if commonest in COMMON:
            lines.append((f"{name}.tif", COMMON[commonest]))
    _write(files["dominant"], ("file", "label"), lines)
    files["land_cover"] = folder / "land_cover.csv"
    codes: set[int] = set()
    for path in sorted((data / "sentinel_examples" / "LULC").glob("*.tif")):
        with rasterio.open(path) as raster:
            codes |= set(np.unique(raster.read(1)).tolist())
    # The codes have no published names; a probe needs none.
    _write(files["land_cover"], ("code", "name"), [(code, f"land cover {code}") for code in sorted(codes) if code])
    lists = {name: dict(zip(COMMON, words, strict=True)) for name, words in NAMES.items()}
    for name, words in {**lists, "described": described, "described_again": again}.items():
        files[f"{name}_names"] = folder / f"{name}_names.json"
        said = {COMMON[code]: phrase for code, phrase in words.items()}
        files[f"{name}_names"].write_text(json.dumps(said, indent=1) + "\n")
    return files


def commands(data: Path, model: Path, files: dict[str, Path], folder: Path) -> dict[str, list[str]]:
    """The calls of `agriclip`, by the name of what they show."""
    tiles, masks = str(data / "landsat8_cdl" / "images"), str(data / "landsat8_cdl" / "masks")
    ours = ["--model", str(model), "--sensor", "landsat8"]
    test = ["--images", tiles, "--only", str(files["test_tiles"])]
    dominant = ["evaluate", "zero-shot", *ours, *test, "--labels", str(files["dominant"])]
    captions = folder / "captions.csv"
    sentinel = data / "sentinel_examples"
    return {
        "segmentation": ["evaluate", "segmentation", *ours, *test, "--masks", masks, "--classes", str(files["plain"]),
                         "--train-images", tiles, "--train-only", str(files["train_tiles"])],
        "segmentation_described": ["evaluate", "segmentation", *ours, *test, "--masks", masks, "--classes",
                                   str(files["described"])],
        "zero_shot": dominant,
        **{f"zero_shot_{name}": [*dominant, "--classes", str(files[f"{name}_names"])]
           for name in (*NAMES, "described", "described_again")},
        "captions": ["caption", tiles, masks, "--output", str(captions), "--style", "plain", "--style", "report",
                     "--count", "2", "--seed", "977"],
        "retrieval": ["evaluate", "retrieval", *ours, *test, "--captions", str(captions)],
        "sentinel2_l1c": ["evaluate", "probe", "--model", str(model), "--images", str(sentinel / "S2L1C"), "--labels",
                          str(sentinel / "LULC"), "--classes", str(files["land_cover"]), "--sensor", "sentinel2_l1c",
                          "--chip", "16"],
        "sentinel2_l2a": ["evaluate", "probe", "--model", str(model), "--images", str(sentinel / "S2L2A"), "--labels",
                          str(sentinel / "LULC"), "--classes", str(files["land_cover"]), "--sensor", "sentinel2_l2a",
                          "--chip", "16"],
        "mato_grosso": ["evaluate", "probe", "--model", str(model), "--series",
                        str(data / "mato_grosso_modis" / "samples.npz"), "--forest"],
    }  # fmt: skip


def main(
    model: Annotated[Path, typer.Argument(help="Folder of the released model.")] = Path("agriclip"),
    data: Annotated[Path, typer.Option(envvar="AGRICLIP_DATA", help="Folder of the data.")] = Path("../shared/data"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything that is written.")] = Path(
        "out/results"
    ),
    only: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
) -> None:
    """Run every evaluation of the released checkpoint; ends with 1 if one of them failed."""
    failed = []
    files = write_inputs(data, model, output / "inputs")
    found: dict[str, Any] = {}
    for name, arguments in commands(data, model, files, output / "inputs").items():
        if only and name not in only:
            continue
        call = [sys.executable, "-m", "agriclip_cli", *arguments]
        if arguments[0] == "evaluate":
            call += ["--output", str(output / name), "--name", name, "--json", "--quiet"]
        typer.echo(f"agriclip {' '.join(call[3:])}")
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            typer.echo(f"{name} ended with status {done.returncode}", err=True)
            failed.append(name)
            continue
        if arguments[0] == "evaluate":
            found[name] = json.loads(done.stdout)
            (output / "all.json").write_text(json.dumps(found, indent=1) + "\n")
    if failed:
        raise typer.Exit(1)


def _write(path: Path, columns: tuple[str, ...], rows: Any) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
