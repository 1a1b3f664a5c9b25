"""`python -m spaces_demo.virtual`: the example that lies in the repository, from nothing, with the model behind it.

Three choices define this file. The landscape is invented (`processing.virtual_landscape`), so nobody's data go along,
and the page says so. The maps are made with the weights as they are shipped, in half precision and without the heads
that only fitting needs, so what the model says live is what the map says. And everything random has a seed: on one
kind of machine, with one thread, the same seed gives the same files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from processing.errors import AgriClipError
from processing.whole_files import write_whole

__all__ = ["FOLDER", "MODEL", "make_virtual_example", "pack_model"]

#: Where it lies; the model in a folder of it.
FOLDER = Path(__file__).resolve().parent / "virtual"
MODEL = "model"
#: Bytes of the example with its model, at most.
MOST_BYTES = 8_000_000
#: Pathway and title of each scenario, as the lists of the page show them.
_SCENARIOS = {"warm": ("2 °C warmer", "2 °C warmer"), "hot": ("4 °C warmer", "4 °C warmer, drier summers")}


def make_virtual_example(
    folder: str | Path = FOLDER,
    *,
    seed: int = 0,
    members: int = 3,
    height: int = 64,
    width: int = 96,
    sites: int = 1500,
    epochs: int | None = None,
    baselines: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Make a landscape, fit and map it, and write its example with the model.

    Args:
        folder: Folder of the example; made anew.
        seed: Seed of the landscape and of the fit.
        members: Members of the ensemble.
        height: Rows of the landscape.
        width: Columns of the landscape.
        sites: Labelled sites.
        epochs: Epochs, instead of the study's.
        baselines: Score baselines on the same folds.
        quiet: No progress.

    Returns:
        The summary of `build_example`; its `bytes` count the model too.

    Raises:
        AgriClipError: The example with its model would be larger than 8 MB.
    """
    from evaluation.study_scores import compare_on_study
    from processing.study import load_study
    from processing.virtual_landscape import make_virtual_landscape
    from training.fit import fit_study

    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".partial", dir=target.parent) as temporary:
        place = Path(temporary)
        study_file = make_virtual_landscape(place / "landscape", seed=seed, height=height, width=width, sites=sites)
        _name_scenarios(study_file)
        study = load_study(study_file)
        fitted = fit_study(study, place, members=members, epochs=epochs, seed=seed, quiet=quiet)
        comparison = compare_on_study(study, fitted["predictions"], baselines=baselines, seed=seed)
        write_whole(place / "fit.json", json.dumps({"comparison": comparison, "scores": fitted["scores"]}))
        return _write(study, place, target, quiet)


def _write(study: Any, fitted: Path, target: Path, quiet: bool) -> dict[str, Any]:
    """Map with the packed model, and put example and model where they belong."""
    from mapping.predict import map_study
    from spaces_demo.build_example import build_example

    model = pack_model(fitted / "model", fitted / "packed")
    write_whole(fitted / "map.json", json.dumps({"maps": map_study(study, model, fitted, quiet=quiet)}))
    example = fitted / "example"
    made = build_example(fitted, example, invented=True, data=study.data_root)
    model.rename(example / MODEL)
    size = sum(file.stat().st_size for file in example.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise AgriClipError(
            f"The example with its model would take {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:g}; fit fewer "
            "members."
        )
    shutil.rmtree(target, ignore_errors=True)
    example.rename(target)
    return {**made, "bytes": size}


def pack_model(fitted: str | Path, folder: str | Path) -> Path:
    """Copy a fitted ensemble, or a single model, as small as it still answers the same.

    Weights lie in half precision and load in single precision. Left out are the heads that only fitting needs, the
    code, held-out predictions and the course of the losses.

    Args:
        fitted: Model folder of `fit_study`.
        folder: Where it goes.
    """
    from modeling_agriclip import AgriClipForSuitability
    from training.release.folder import save_in_half_precision

    source, target = Path(fitted), Path(folder)
    target.mkdir(parents=True)
    kept = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "calibration.json")
    for name in (*kept, "study.yaml"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    _write_config(target, source)
    told = json.loads((source / "training_summary.json").read_text(encoding="utf-8"))
    told.pop("seconds", None)  # another each time
    write_whole(target / "training_summary.json", json.dumps(told, indent=2) + "\n")
    for member in sorted((source / "members").glob("fold_*")) or [source]:
        place = target / member.relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        if (member / "calibration.json").is_file():
            shutil.copyfile(member / "calibration.json", place / "calibration.json")
        config = _write_config(place, member)
        weights = AgriClipForSuitability.from_pretrained(member).state_dict()
        needed = AgriClipForSuitability(config).state_dict()
        save_in_half_precision({name: weights[name] for name in needed}, place)
    return target


def _write_config(target: Path, source: Path) -> Any:
    """A model's configuration, without heads for fitting; returns it."""
    from modeling_agriclip import AgriClipConfig

    told = json.loads((source / "config.json").read_text(encoding="utf-8"))
    told.pop("auto_map", None)  # the code does not lie beside it
    told |= {"use_pretraining_heads": False, "dtype": "float32"}
    write_whole(target / "config.json", json.dumps(told, indent=2, sort_keys=True) + "\n")
    return AgriClipConfig.from_pretrained(target)


def _name_scenarios(study_file: Path) -> None:
    """Give the scenarios of a landscape the pathway and the title that the page lists."""
    import yaml

    study = yaml.safe_load(study_file.read_text(encoding="utf-8"))
    for scenario in study["scenarios"]:
        scenario["ssp"], scenario["title"] = _SCENARIOS[scenario["name"]]
    write_whole(study_file, yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=110))


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the example.")] = FOLDER,
    seed: Annotated[int, typer.Option(help="Seed of the landscape and of the fit.")] = 0,
    members: Annotated[int, typer.Option(min=1, help="Members of the ensemble.")] = 3,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, instead of the study's.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Make the example of the virtual landscape and its model, from nothing."""
    made = make_virtual_example(output, seed=seed, members=members, epochs=epochs, quiet=quiet)
    typer.echo(f"{output}: {len(made['climates'])} climates, {made['bytes'] / 1e6:.2f} MB with its model")


if __name__ == "__main__":
    typer.run(main)
