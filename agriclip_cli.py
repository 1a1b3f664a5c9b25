"""The `agriclip` command: one thin file over the rooms of the project.

Three choices define this file. Everything heavy is imported inside the command that needs it, so `agriclip --help`
answers at once. A mistake of the user ends in one sentence on standard error and exit status 2, never in a traceback
(`--debug` shows it). With `--json` standard output holds one JSON document and nothing else, so a script can read it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# Only the options of these commands are read here; what they stand on is imported when they run.
from evaluation.release.command import publish
from evaluation.suitability.command import suitability
from evaluation.vision.command import classify, embed, probe, retrieval, retrieve, segmentation, zero_shot
from processing.captions.command import caption
from processing.public_data.command import data_app
from spaces_demo.command import demo_space

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="agriclip",
    help="Satellite images and climate reports to maps of where double-cropped soybean can grow, now and later.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing the help with rich costs more than half of the half second that --help may take
    context_settings={"help_option_names": ["-h", "--help"]},
)
study_app = typer.Typer(help="Check study files.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Score models: ours, and any CLIP or SigLIP.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(data_app, name="data")
for command in (suitability, segmentation, retrieval, probe):
    evaluate_app.command()(command)
evaluate_app.command("zero-shot")(zero_shot)
for command in (embed, classify, retrieve, caption, publish):
    app.command()(command)
app.command("demo-space")(demo_space)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).", show_default=False)]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder with the study's data files; overrides `data` in the study.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for everything that is written. [default: out/<study name>]"),
]
Outlines = Annotated[
    Path | None, typer.Option("--outlines", help="GeoJSON or TopoJSON boundaries to draw on the pictures.")
]
OutlineLayer = Annotated[str | None, typer.Option("--outline-layer", help="Layer of a TopoJSON file, e.g. states.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    # `debug` is listed here for --help; main() acts on it, because it must work wherever it stands.
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed_version

        try:
            typer.echo(f"agriclip {installed_version('agriclip')}")
        except PackageNotFoundError:  # run from a checkout
            typer.echo("agriclip (not installed)")
        raise typer.Exit


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything that is written.")] = Path(
        "out/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the landscape and of the fit.")] = 0,
    size: Annotated[str | None, typer.Option(help="Size of the model: tiny, small or base.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the fit; fewer is faster and worse.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Map a virtual landscape whose truth is known, from nothing.

    Makes the landscape, fits a model, maps the present and two scenarios, and compares the maps with the truth.
    """
    from mapping.demo import demo_summary, run_demo

    result = run_demo(output, seed=seed, size=size, epochs=epochs, quiet=quiet or as_json)
    _emit(result, as_json, lambda console: demo_summary(result, console))


@app.command()
def fit(
    study: StudyFile,
    output: Output = None,
    data: DataRoot = None,
    size: Annotated[str | None, typer.Option(help="Size of the model: tiny, small or base.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, instead of the study's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the study's.")] = None,
    members: Annotated[
        int | None, typer.Option("--members", "-k", min=1, help="Members of the ensemble, instead of the study's.")
    ] = None,
    leave_out: Annotated[
        int | None, typer.Option(min=1, help="Fold that no model sees, for the ensemble to be scored on.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Models to fit side by side; one a core by default.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, instead of going on with an interrupted fit.")
    ] = False,
    track: Annotated[
        list[str] | None, typer.Option(help="Follow the losses in a tracker: tensorboard or trackio.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Score baselines on the same folds.")] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fit a model to a study and score it on unseen blocks of land.

    An interrupted fit goes on when the same command is given again, and ends with the same model.

    Baselines are scored on the same places and folds, unless --no-baselines is given.
    """
    from processing.study import load_study

    loaded = load_study(study, data_root=data)  # first of all: a mistake in the study shows before torch is loaded

    from evaluation.study_scores import compare_on_study, draw_losses
    from mapping.products import write_json
    from training.fit import fit_study

    folder = output or Path("out") / loaded.name
    first = _first()
    with _quiet_libraries():
        result = dict(
            fit_study(
                loaded,
                folder,
                size=size,
                epochs=epochs,
                seed=seed,
                members=members,
                leave_out=leave_out,
                processes=processes or os.cpu_count() or 1,
                restart=restart,
                report_to=tuple(track or ()),
                quiet=quiet or as_json or not first,
            )
        )
        if not first:
            return
        with _status("Scoring baselines on the same folds", quiet or as_json or not baselines):
            result["comparison"] = compare_on_study(loaded, result["predictions"], baselines=baselines)
        losses = draw_losses(Path(result["model_dir"]), folder / "pictures")
    result["losses"] = None if losses is None else str(losses)
    result["command"] = f"agriclip fit {study} --output {folder}"
    write_json(folder / "fit.json", result)

    def tell(console: Console) -> None:
        from evaluation.baselines import comparison_table

        console.print(comparison_table(result["comparison"]))
        console.print(f"Model        {result['model_dir']}\nPredictions  {result['predictions']}")
        if losses is not None:
            console.print(f"Losses       {losses}")
        console.print(f"Next         agriclip map {study} --output {folder}")

    _emit(result, as_json, tell)


@app.command("map")
def map_command(
    study: StudyFile,
    output: Output = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model folder. [default: the one fitted in the output folder]")
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", "-s", help="Only this scenario; may be repeated.")
    ] = None,
    data: DataRoot = None,
    outlines: Outlines = None,
    outline_layer: OutlineLayer = None,
    report: Annotated[bool, typer.Option(help="Make change maps, areas, pictures and report.html.")] = True,
    agronomy: Annotated[
        bool, typer.Option(help="Map what agronomic rules say, where the study has monthly climate.")
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, instead of going on with an interrupted map.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Map the present and the scenarios of a study.

    Writes cloud-optimised GeoTIFFs with a novelty layer beside each, change maps, areas, pictures and report.html.
    """
    from processing.study import load_study

    loaded = load_study(study, data_root=data)
    for name in scenario or ():
        loaded.scenario(name)  # raises with the nearest name before any work is done
    folder = output or Path("out") / loaded.name
    fitted = _fitted(folder)
    model_dir = _model_of(folder, model, study)

    from mapping.predict import map_study

    with _quiet_libraries():
        maps = map_study(
            loaded, model_dir, folder, scenarios=scenario, restart=restart, quiet=quiet or as_json or not _first()
        )
    if not _first():
        return
    result: dict[str, Any] = {"maps": maps}
    commands = [fitted["command"]] if "command" in fitted else []
    commands.append(f"agriclip map {study} --output {folder}" + "".join(f" --scenario {s}" for s in scenario or ()))
    with _status("Drawing", quiet or as_json or not report) as tell_status:
        rules = {}
        if agronomy and loaded.agronomy is not None:
            from mapping.agronomy.study_layers import write_study_layers

            rules = write_study_layers(
                loaded, folder, scenarios=scenario, progress=lambda what: tell_status(f"Agronomic rules: {what}")
            )
            result["agronomy"] = rules
        if report:
            products = _report(
                loaded, maps, rules, folder, fitted, model_dir, commands, outlines, outline_layer, tell_status
            )
            result.update(products.as_dict())
            _write_json(folder / "map.json", result)

    def tell(console: Console) -> None:
        for name, layers in {**maps, **{f"{name}, agronomic rules": layers for name, layers in rules.items()}}.items():
            console.print(f"[bold]{name}[/]")
            for layer, path in layers.items():
                console.print(f"  {layer:<26} {path}")
        if report:
            from mapping.report import change_sentence

            for name, summary in products.changes.items():
                console.print(f"[bold]{name}[/]: {change_sentence(summary, name)}")
            console.print(f"Report       {result['report']}")

    _emit(result, as_json, tell)


def _report(
    study: Any,
    maps: Any,
    rules: Any,
    folder: Path,
    fitted: dict[str, Any],
    model_dir: Path,
    commands: list[str],
    outlines: Path | None,
    outline_layer: str | None,
    tell_status: Callable[[str], None],
) -> Any:
    """Everything that `agriclip map` makes of its maps."""
    from evaluation.study_scores import skill_pictures
    from mapping.odmap import odmap_protocol
    from mapping.products import make_products

    zones = None
    if study.map.zones is not None:
        from mapping.zones import read_zones

        part = study.map.zones
        zones = read_zones(study.path(part.file), layer=part.layer, id_field=part.id, name_field=part.name)
    comparison = fitted.get("comparison", ())
    pictures = skill_pictures(study, fitted.get("predictions"), folder / "pictures") + _explained(folder)
    protocol = odmap_protocol(study, model_dir, scores=comparison, maps=maps)
    more = {
        protocol.write_csv(folder / "odmap.csv"): "ODMAP protocol, as the authors' application reads it",
        protocol.write_markdown(folder / "odmap.md"): "ODMAP protocol, to read",
    }
    return make_products(
        study,
        maps,
        folder,
        comparison=comparison,
        skill_pictures=pictures,
        commands=commands,
        facts={"model": str(model_dir)},
        outlines=outlines,
        outline_layer=outline_layer,
        zones=zones,
        agronomy=rules,
        more_files=more,
        progress=lambda what: tell_status(f"Drawing: {what}"),
    )


def _explained(folder: Path) -> list[Any]:
    """What `agriclip explain` has drawn of the predictors, if it was run before."""
    from mapping.report import SkillPicture

    told = {
        "responses": "How the probability follows each predictor; shaded is the range of the labelled places.",
        "importance": "What the log loss on held-out land rises by when a predictor's values change places.",
    }
    files = {name: folder / "pictures" / f"{name}.png" for name in told}
    return [SkillPicture(name, path, told[name]) for name, path in files.items() if path.is_file()]


@app.command()
def explain(
    study: StudyFile,
    at: Annotated[
        list[str] | None, typer.Option(help="Place to explain, longitude,latitude in degrees; may be repeated.")
    ] = None,
    output: Output = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model folder. [default: the one fitted in the output folder]")
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", "-s", help="Also under this scenario; may be repeated.")
    ] = None,
    predictors: Annotated[
        bool | None,
        typer.Option(help="Response curves and importance of the predictors. [default: where no place is given]"),
    ] = None,
    data: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say why a map says what it says: at places, and predictor by predictor.

    At a place: what spoke for and against, and the planting window of the heat-unit rule.
    """
    from processing.study import load_study

    loaded = load_study(study, data_root=data)
    places = [_place(text) for text in at or ()]
    for name in scenario or ():
        loaded.scenario(name)
    folder = output or Path("out") / loaded.name
    model_dir = _model_of(folder, model, study)

    from mapping.explanations import explain_place, explain_predictors
    from mapping.predictor import SuitabilityPredictor

    files: dict[str, Path] = {}
    explained = []
    with _quiet_libraries(), _status("Explaining", quiet or as_json) as tell_status:
        asked = SuitabilityPredictor(model_dir)
        if predictors or (predictors is None and not places):
            files = explain_predictors(
                loaded, model_dir, folder, predictor=asked, progress=lambda what: tell_status(f"Explaining: {what}")
            )
        for longitude, latitude in places:
            for climate in [None, *(scenario or ())]:
                tell_status(f"Explaining: {longitude:g}, {latitude:g}, {climate or 'present'}")
                explained.append(
                    explain_place(loaded, model_dir, folder, longitude, latitude, scenario=climate, predictor=asked)
                )

    def tell(console: Console) -> None:
        for one in explained:
            console.print(one["explanation"].sentence)
            console.print(one["explanation"].table())
            if one["card"] is not None:
                console.print(one["card"].text(), markup=False, highlight=False)
            for path in one["files"].values():
                console.print(f"  {path}")
        for name, path in files.items():
            console.print(f"{name:<18} {path}")

    places_told = [{"explanation": o["explanation"].as_dict(), "files": o["files"]} for o in explained]
    _emit({"files": files, "places": places_told}, as_json, tell)


@app.command()
def segment(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="A raster, a folder of tiles, or tiles of one scene.")
    ],
    query: Annotated[list[str], typer.Option("--query", "-q", help="What to look for; may be repeated.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder of a segmentation model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything that is written.")] = Path(
        "out/segment"
    ),
    against: Annotated[
        list[str] | None, typer.Option(help="Weigh the queries against this text too; may be repeated.")
    ] = None,
    sensor: Annotated[str | None, typer.Option(help="Sensor of the images. [default: the model's]")] = None,
    band: Annotated[list[str] | None, typer.Option(help="Names of the channels, in order; repeat.")] = None,
    date: Annotated[list[str] | None, typer.Option(help="Date of each series of bands, oldest first; repeat.")] = None,
    gsd: Annotated[float | None, typer.Option(help="Metres a pixel. [default: from the raster]")] = None,
    tile: Annotated[int, typer.Option(min=8, help="Edge of a window in pixels.")] = 128,
    stride: Annotated[int | None, typer.Option(min=1, help="Step between windows.")] = None,
    disagreement: Annotated[bool, typer.Option(help="Also map the spread over overlapping windows.")] = False,
    allow_no_crs: Annotated[bool, typer.Option("--allow-no-crs", help="Take images without a CRS.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Map what a text asks for on the pixels of a scene of any size, such as "soybean fields".

    Writes one cloud-optimised GeoTIFF a query, a class map where there are several, styles and a picture.
    """
    from mapping.scene import map_scene

    with _quiet_libraries():
        found = map_scene(
            images if len(images) > 1 else images[0],
            model,
            query,
            output,
            against=against,
            sensor=sensor,
            bands=band,
            dates=date,
            gsd=gsd,
            tile=tile,
            stride=stride,
            disagreement=disagreement,
            allow_no_crs=allow_no_crs,
            restart=restart,
            quiet=quiet or as_json or not _first(),
        )
    if not _first():
        return
    told = found.as_dict()

    def tell(console: Console) -> None:
        for name, value in told.items():
            for path in value.values() if isinstance(value, dict) else [value]:
                if path is not None:
                    console.print(f"{name:<14} {path}")

    _emit(told, as_json, tell)


@app.command()
def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder.", show_default=False)],
    flops: Annotated[bool, typer.Option(help="Count operations (runs the model once).")] = True,
    as_json: AsJson = False,
) -> None:
    """Print sizes, operations, inputs and training of a model."""
    from evaluation.model_info import info_tables, model_info, require_model_folder

    require_model_folder(model)
    with _quiet_libraries():
        result = model_info(model, flops=flops)

    def tell(console: Console) -> None:
        for table in info_tables(result):
            console.print(table)

    _emit(result, as_json, tell)


@study_app.command("check")
def study_check(study: StudyFile, data: DataRoot = None, as_json: AsJson = False) -> None:
    """Check a study file and say what it holds.

    Problems are listed in a table, with what to do about each.
    """
    from processing.study import load_study

    loaded = load_study(study, data_root=data)
    described = _describe_study(loaded)

    def tell(console: Console) -> None:
        from rich.table import Table

        table = Table(title=f"{study} is in order", title_justify="left", show_header=False)
        table.add_column("what")
        table.add_column("value")
        for key, value in described.items():
            table.add_row(key, value)
        console.print(table)

    _emit({"study": str(study), "problems": [], "found": described}, as_json, tell)


def _describe_study(study: Any) -> dict[str, str]:
    """What a study holds, in words."""
    from processing.study_data import StudyData

    data = StudyData(study)
    grid = data.grid
    variables = ", ".join(f"{variable.name} ({variable.unit})" for variable in study.variables)
    found = {
        "name": study.name,
        "data folder": str(study.data_root),
        "grid": f"{grid.width} x {grid.height} cells of {grid.transform.a:g} ({grid.crs})",
        "labels": "none" if study.labels is None else f"{study.labels.table} ({study.labels.kind})",
        "predictors": f"{len(study.variables)}: {variables}",
        "imagery": ", ".join(f"{image.file} ({len(image.channels)} bands)" for image in study.imagery) or "none",
        "splits": "none" if study.splits is None else f"{study.splits.kind}, {study.splits.folds} folds",
        "scenarios": ", ".join(scenario.name for scenario in study.scenarios) or "none",
        "model": f"{study.model.size}, objective {study.training.objective}, {study.training.epochs} epochs",
        "fingerprint": study.fingerprint(),
    }
    if study.labels is not None:
        labels = data.labels()
        found["labels"] += f": {len(labels.ids):,} places, {int(labels.presence.sum()):,} with the crop"
    return found


def _fitted(folder: Path) -> dict[str, Any]:
    """What `agriclip fit` left in a folder, or nothing."""
    file = folder / "fit.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _model_of(folder: Path, model: Path | None, study: Path) -> Path:
    """The model asked for, or the one fitted in the output folder."""
    fitted = _fitted(folder)
    found = model or (Path(fitted["model_dir"]) if "model_dir" in fitted else None)
    if found is None or not found.exists():
        raise FileNotFoundError(
            f"There is no fitted model in {model or folder}; run `agriclip fit {study} --output {folder}` first or "
            "give --model."
        )
    return found


def _place(text: str) -> tuple[float, float]:
    """Longitude and latitude from `-88.0,37.5`."""
    try:
        longitude, latitude = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"'{text}' is no place; write longitude,latitude in degrees, as in --at=-88.0,37.5") from None
    if not (-180 <= longitude <= 180 and -90 <= latitude <= 90):
        raise ValueError(f"'{text}' is no longitude,latitude in degrees; longitude comes first.")
    return longitude, latitude


def _first() -> bool:
    """Whether this is the process that speaks: started by a launcher, several work together."""
    return os.environ.get("RANK", "0") == "0"


def _write_json(path: Path, content: Any) -> None:
    from mapping.provenance import write_json

    write_json(path, content)


def _emit(result: Any, as_json: bool, tell: Callable[[Console], None]) -> None:
    """Prints a result for a machine or for a person."""
    if as_json:
        from mapping.products import plain

        typer.echo(json.dumps(plain(result), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    tell(Console(soft_wrap=not sys.stdout.isatty()))


def _status(text: str, quiet: bool) -> AbstractContextManager[Callable[[str], None]]:
    """A line on standard error that says what is going on; yields a function that changes it."""
    if quiet:
        return nullcontext(lambda _text: None)
    from contextlib import contextmanager

    from rich.console import Console

    @contextmanager
    def show() -> Any:
        console = Console(stderr=True)
        start = time.monotonic()
        with console.status(text) as status:
            yield status.update
        if not console.is_terminal:
            console.print(f"{text}: {time.monotonic() - start:.0f} s")

    return show()


def _quiet_libraries() -> AbstractContextManager[None]:
    """Keeps the libraries' own bars and notices off the terminal; ours say what is going on."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch|accelerate")
    return nullcontext()


def _report_error(error: BaseException, as_json: bool) -> None:
    """One sentence on standard error; the table of a study's problems if there are several."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        message = f"The file {error.filename} does not exist; check the path."
    problems = list(getattr(error, "problems", ()))
    if as_json:
        rows = [dict(zip(("where", "problem", "hint"), row, strict=False)) for row in problems]
        typer.echo(json.dumps({"error": message, "problems": rows}, ensure_ascii=False, indent=2))
    typer.echo(f"Error: {message}", err=True)
    if len(problems) > 1:
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=True, title=f"{len(problems)} problems", title_justify="left")
        for column in ("where", "problem", "what to do"):
            table.add_column(column, overflow="fold")
        for row in problems:
            table.add_row(*(str(part) for part in row))
        Console(stderr=True).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 a mistake in the input, 1 a fault of ours, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        app(args=given, prog_name="agriclip")
    except KeyboardInterrupt:
        typer.echo("Interrupted; what was finished before is kept.", err=True)
        sys.exit(130)
    # ValueError covers AgriClipError; OSError covers files that are missing, unreadable or not rasters; ImportError
    # carries the sentence that names the extra to install.
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        _report_error(error, "--json" in given)
        sys.exit(2)


if __name__ == "__main__":
    main()
