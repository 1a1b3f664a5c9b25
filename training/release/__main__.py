"""`python -m training.release`: everything that is in the released folder, from data to weights."""

from pathlib import Path
from typing import Annotated

import typer

from processing.study import load_study
from training.fit import fit_study
from training.release.folder import add_ensemble
from training.release.run import Settings, train


def main(
    data: Annotated[
        Path, typer.Option(envvar="AGRICLIP_DATA", help="Folder of the data: landsat8_cdl/ and what the study reads.")
    ] = Path("../shared/data"),
    study: Annotated[Path, typer.Option(help="Study of suitability.")] = Path("studies/us_double_crop_soybean.yaml"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the released model.")] = Path(
        "out/release/agriclip"
    ),
    ensemble: Annotated[
        Path | None,
        typer.Option(help="Folder of `agriclip fit` with the ensemble. [default: fitted beside the output folder]"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the tiles.")] = Settings.epochs,
    hold_out: Annotated[int, typer.Option(help="Fold of blocks of tiles not trained on; -1 trains on all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of weights and draws.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Members of the ensemble fitted side by side.")] = 2,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train the model of all jobs, fit the ensemble for suitability, and put both into one folder.

    What was stopped goes on when the same command is given again; what is done is not done again.
    """
    loaded = load_study(study, data_root=data)
    settings = Settings(epochs=epochs, hold_out=None if hold_out < 0 else hold_out, seed=seed)
    if not (output / "config.json").exists():
        train(loaded, data / "landsat8_cdl", output, settings, quiet=quiet)
    fitted = ensemble or output.parent / loaded.name
    if not (fitted / "model" / "config.json").exists():
        fit_study(loaded, fitted, processes=processes, quiet=quiet)
    size = add_ensemble(output, fitted / "model")
    typer.echo(f"Model    {output} ({size / 2**20:.1f} MiB of weights)")
    typer.echo(f"Fit      {fitted}")


if __name__ == "__main__":
    typer.run(main)
