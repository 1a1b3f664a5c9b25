"""The commands `agriclip evaluate segmentation | zero-shot | retrieval | probe`, and `embed`, `classify`, `retrieve`.

Plain functions with typer's annotations; whatever is heavy is imported inside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["classify", "embed", "probe", "retrieval", "retrieve", "segmentation", "zero_shot"]

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Folder or Hub id of an AgriCLIP, CLIP or SigLIP model.", show_default=False),
]
Images = Annotated[
    str,
    typer.Option(
        "--images",
        "-i",
        help="Folder of GeoTIFF, PNG or JPEG files, or a data set's folder or Hub id.",
        show_default=False,
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for everything that is written.")]
Sensor = Annotated[str | None, typer.Option(help="Sensor of the images. [default: what the files say]")]
Band = Annotated[
    list[str] | None,
    typer.Option(
        help="Names of the bands in file order; repeat, or separate by commas. EuroSAT of 13 bands has B8A last."
    ),
]
Split = Annotated[str | None, typer.Option(help="Split of a data set or of a captions file.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of a data set that holds the images.")]
Only = Annotated[Path | None, typer.Option(help="File with the names of the images to take, one a line.")]
Limit = Annotated[int | None, typer.Option(min=2, help="At most so many images, spread evenly.")]
Batch = Annotated[int, typer.Option(min=1, help="Images a step.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: the first GPU, if there is one]")]
Size = Annotated[int | None, typer.Option(min=8, help="Shorter edge in pixels that AgriCLIP sees images at.")]
Name = Annotated[str | None, typer.Option(help="What the results call the data set.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Features = Annotated[
    str,
    typer.Option(
        help="pooled (before the projection), projected, cells (pooled, mean and spread of the cells), or descriptor "
        "(statistics of the embedded pixels by season: for other sensors, series and classes)."
    ),
]
ProbeFeatures = Annotated[
    str | None,
    typer.Option(
        help="descriptor, pooled, projected or cells, as for `agriclip embed`. [default: descriptor where the model "
        "has a pixels' path, else pooled]"
    ),
]
By = Annotated[
    str,
    typer.Option(
        help="Compare whole images or pixels with the texts: image, pixels, or auto (pixels where the model has "
        "learnt to and the protocol is our own; what looks like other land than the classes' has no vote)."
    ),
]


def segmentation(
    model: Model,
    images: Images,
    masks: Annotated[Path, typer.Option(help="Folder of masks, called as their images are.", show_default=False)],
    classes: Annotated[
        Path, typer.Option(help="CSV of code,name, or JSON, YAML or text; code * for all others.", show_default=False)
    ],
    prompt: Annotated[str, typer.Option(help="Template, with {} where the name goes.")] = "a satellite image of {}",
    sensor: Sensor = None,
    band: Band = None,
    only: Only = None,
    train_images: Annotated[
        str | None, typer.Option(help="Images for the pixel baseline. [default: none, and no baseline]")
    ] = None,
    train_masks: Annotated[Path | None, typer.Option(help="Their masks. [default: --masks]")] = None,
    train_only: Annotated[
        Path | None, typer.Option(help="Names of the training images; then no --train-images is needed.")
    ] = None,
    block: Annotated[
        float | None, typer.Option(help="Edge of the blocks of the intervals, in the images' coordinates.")
    ] = None,
    output: Output = None,
    name: Name = None,
    size: Size = None,
    limit: Limit = None,
    batch: Batch = 4,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score segmentation by language: every pixel against the names of classes.

    Gradient boosting on the bands of single pixels is scored beside it where training tiles are given.
    """
    from evaluation.vision.classes import read_classes
    from evaluation.vision.report import dataset_name, report_segmentation
    from evaluation.vision.segmentation import evaluate_segmentation, fit_pixel_baseline

    still = quiet or as_json
    listed = read_classes(classes)
    encoder = _encoder(model, device, size)
    table = _table(images, encoder, sensor, band, limit=limit, only=only)
    baseline = None
    if train_images or train_only:
        training = _table(train_images or images, encoder, sensor, band, only=train_only)
        shared = {ref.source for ref in training.refs if isinstance(ref.source, str)} & {
            ref.source for ref in table.refs if isinstance(ref.source, str)
        }
        if shared:
            from processing.errors import AgriClipError, named

            raise AgriClipError(
                f"{len(shared)} tiles ({named(sorted(shared), 2)}) are both trained on and scored; name those to "
                "be scored with --only."
            )
        baseline = fit_pixel_baseline(training, train_masks or masks, listed, quiet=still)
    elif train_masks is not None:
        raise ValueError("--train-masks without --train-images or --train-only says nothing; give the images too.")
    found = evaluate_segmentation(
        encoder, table, masks, listed, template=prompt, baseline=baseline, block=block, batch=batch, quiet=still
    )
    folder = output or Path("out/evaluate/segmentation")
    report = report_segmentation(found, encoder, table, folder, dataset_name(images, name), _line("segmentation"))
    _emit(report, as_json)


def zero_shot(
    model: Model,
    images: Images,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV or JSON of file and label, or a folder of masks. [default: folders or column of the images]"
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Class strings and templates: agriclip, rs5m, remoteclip, skyscript or openai.")
    ] = "agriclip",
    classes: Annotated[
        Path | None, typer.Option(help="What is said for each label or code, instead of the protocol's strings.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Template instead of the protocol's.")] = None,
    by: By = "auto",
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    sensor: Sensor = None,
    band: Band = None,
    split: Split = None,
    image_column: ImageColumn = None,
    only: Only = None,
    output: Output = None,
    name: Name = None,
    size: Size = None,
    limit: Limit = None,
    batch: Batch = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score zero-shot classification under a named protocol.

    The strings and templates of the protocols are frozen, so that numbers can be compared with published ones.
    """
    from evaluation.vision.protocols import get_protocol
    from evaluation.vision.report import dataset_name, report_zero_shot
    from evaluation.vision.zero_shot import evaluate_zero_shot

    rules = get_protocol(protocol)
    encoder = _encoder(model, device, size)
    table = _table(images, encoder, sensor, band, split, image_column, limit, only)
    known, described = _labels(table, labels, classes, label_column)
    found = evaluate_zero_shot(
        encoder, table, known, rules, described=described, template=prompt, by=by, batch=batch, quiet=quiet or as_json
    )
    folder = output or Path("out/evaluate/zero-shot")
    report = report_zero_shot(
        found, encoder, table, rules, known.understood, folder, dataset_name(images, name), _line("zero-shot")
    )
    _emit(report, as_json)


def retrieval(
    model: Model,
    images: Images,
    captions: Annotated[
        Path | None,
        typer.Option(
            help="JSON of RSICD, RSITMD or UCM captions, or CSV of file and caption. [default: of the data set]"
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="agriclip, rs5m, remoteclip or skyscript.")] = "agriclip",
    sensor: Sensor = None,
    band: Band = None,
    split: Split = None,
    image_column: ImageColumn = None,
    only: Only = None,
    output: Output = None,
    name: Name = None,
    size: Size = None,
    limit: Limit = None,
    batch: Batch = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score retrieval of captions by images and of images by captions.

    Equal captions count as the protocol says.
    """
    from evaluation.vision.labels import image_captions
    from evaluation.vision.protocols import get_protocol
    from evaluation.vision.report import dataset_name, report_retrieval
    from evaluation.vision.retrieval import evaluate_retrieval

    rules = get_protocol(protocol)
    encoder = _encoder(model, device, size)
    table = _table(images, encoder, sensor, band, split, image_column, limit, only)
    texts = image_captions(table, captions, split if captions is not None else None)
    found = evaluate_retrieval(encoder, table, texts, rules, batch=batch, quiet=quiet or as_json)
    folder = output or Path("out/evaluate/retrieval")
    report = report_retrieval(
        found, encoder, table, rules, texts.understood, folder, dataset_name(images, name), _line("retrieval")
    )
    _emit(report, as_json)


def probe(
    model: Model,
    images: Annotated[
        str | None, typer.Option("--images", "-i", help="Folder of images, or a data set.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV or JSON of file and label, or a folder of masks. [default: folders or column of the images]"
        ),
    ] = None,
    series: Annotated[
        Path | None, typer.Option(help="NPZ of time series (x, bands, label, dates, lon, lat) instead of images.")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="Codes and names, as masks need them.")] = None,
    chip: Annotated[
        int | None,
        typer.Option(min=2, help="Cut images into squares of so many pixels, each seen alone (with masks)."),
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Probe the model's cells against masks.")] = False,
    features: ProbeFeatures = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of blocks, where the labels give no split.")] = 5,
    block: Annotated[
        float | None, typer.Option(help="Edge of a block in the images' coordinates. [default: five images]")
    ] = None,
    forest: Annotated[bool, typer.Option("--forest", help="Also a random forest on bands or raw series.")] = False,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    sensor: Sensor = None,
    band: Band = None,
    split: Split = None,
    image_column: ImageColumn = None,
    only: Only = None,
    seed: Annotated[int, typer.Option(help="Seed of folds and fits.")] = 0,
    output: Output = None,
    name: Name = None,
    size: Size = None,
    limit: Limit = None,
    batch: Batch = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score a linear and a nearest-neighbour probe on frozen embeddings, beside band statistics in the same run.

    Whole blocks of land are held out together, or the labels' own split or fold column is used.
    """
    from evaluation.vision.classes import read_classes
    from evaluation.vision.encoders import FEATURES
    from evaluation.vision.probe import run_probe
    from evaluation.vision.report import dataset_name, report_probe
    from evaluation.vision.units import cell_units, chip_units, image_units, series_units
    from processing.errors import AgriClipError, nearest

    still = quiet or as_json
    if features is not None and features not in FEATURES:
        raise AgriClipError(f"There are no features called '{features}'; {nearest(features, FEATURES)}.")
    if (images is None) == (series is None):
        raise AgriClipError("Give either --images or --series, what is to be classified.")
    encoder = _encoder(model, device, size)
    features = features or encoder.probe_features
    table = None
    if series is not None:
        units = series_units(encoder, series, sensor or "modis_vi", None, features, limit, batch, still)
        understood = f"labels of '{series}', {len(units.names)} classes"
    else:
        table = _table(str(images), encoder, sensor, band, split, image_column, limit, only)
        if chip or dense:
            if labels is None or not labels.is_dir() or classes is None:
                raise AgriClipError("--chip and --dense need masks: give --labels a folder, and --classes a file.")
            listed = read_classes(classes)
            understood = f"masks in '{labels}'; {listed.understood}"
            if dense:
                units = cell_units(encoder, table, labels, listed, batch=min(batch, 4), seed=seed, quiet=still)
            else:
                units = chip_units(encoder, table, labels, listed, int(chip or 0), features, batch, still)
        else:
            known, _ = _labels(table, labels, classes, label_column)
            understood = known.understood
            units = image_units(encoder, table, known, features, batch, still)
    found = run_probe(units, folds, block, forest or series is not None, seed, still)
    folder = output or Path("out/evaluate/probe")
    source = dataset_name(series if series is not None else str(images), name)
    _emit(report_probe(found, encoder, table, understood, folder, source, _line("probe")), as_json)


def embed(
    model: Model,
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .parquet, .csv or .npy.")] = Path(
        "embeddings.parquet"
    ),
    features: Features = "projected",
    normalise: Annotated[bool, typer.Option(help="Scale vectors to length 1.")] = True,
    sensor: Sensor = None,
    band: Band = None,
    split: Split = None,
    image_column: ImageColumn = None,
    size: Size = None,
    limit: Limit = None,
    batch: Batch = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the embeddings of images as a table."""
    from evaluation.vision.encoders import FEATURES
    from evaluation.vision.uses import embed_files
    from processing.errors import AgriClipError, nearest

    if features not in FEATURES:
        raise AgriClipError(f"There are no features called '{features}'; {nearest(features, FEATURES)}.")
    encoder = _encoder(model, device, size)
    table = _table(images, encoder, sensor, band, split, image_column, limit)
    found = embed_files(
        encoder, table, output, features=features, normalise=normalise, batch=batch, quiet=quiet or as_json
    )
    told = {"images": len(found.keys), "dimensions": int(found.vectors.shape[1]), "files": found.files, **table.told()}
    told["images"] = len(found.keys)
    _print(told, as_json, [f"{len(found.keys)} embeddings of {found.vectors.shape[1]} numbers: {found.files[0]}"])


def classify(
    model: Model,
    images: Images,
    class_name: Annotated[list[str] | None, typer.Option("--class", "-c", help="A class in words; repeat.")] = None,
    classes: Annotated[Path | None, typer.Option(help="File of classes instead.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .csv or .parquet.")] = Path(
        "classes.csv"
    ),
    protocol: Annotated[
        str, typer.Option(help="Templates: agriclip, rs5m, remoteclip, skyscript or openai.")
    ] = "agriclip",
    prompt: Annotated[str | None, typer.Option(help="Template instead of the protocol's.")] = None,
    by: By = "auto",
    sensor: Sensor = None,
    band: Band = None,
    split: Split = None,
    image_column: ImageColumn = None,
    size: Size = None,
    limit: Limit = None,
    batch: Batch = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write which of some classes each image shows, and how probable each class is."""
    from evaluation.vision.classes import read_classes
    from evaluation.vision.protocols import get_protocol
    from evaluation.vision.uses import classify_files

    rules = get_protocol(protocol)
    names = list(class_name or ()) + (read_classes(classes).names if classes is not None else [])
    encoder = _encoder(model, device, size)
    table = _table(images, encoder, sensor, band, split, image_column, limit)
    found = classify_files(
        encoder, table, names, output, protocol=rules, template=prompt, by=by, batch=batch, quiet=quiet or as_json
    )
    counts = {name: found.found.count(name) for name in names}
    lines = [f"{name:<40} {count}" for name, count in counts.items()] + [f"Table  {found.file}"]
    _print({"file": found.file, "images": len(found.keys), "counts": counts}, as_json, lines)


def retrieve(
    model: Model,
    images: Images,
    query: Annotated[list[str], typer.Option("--query", help="What to look for; repeat.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .csv or .parquet.")] = Path(
        "found.csv"
    ),
    top: Annotated[int, typer.Option(min=1, help="Images of each query.")] = 10,
    sensor: Sensor = None,
    band: Band = None,
    split: Split = None,
    image_column: ImageColumn = None,
    size: Size = None,
    limit: Limit = None,
    batch: Batch = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the images that are nearest to a text."""
    from evaluation.vision.uses import retrieve_files

    encoder = _encoder(model, device, size)
    table = _table(images, encoder, sensor, band, split, image_column, limit)
    found = retrieve_files(encoder, table, query, output, top=top, batch=batch, quiet=quiet or as_json)
    lines = [f"{row['query']:<32} {row['rank']:>3}  {row['cosine']:.3f}  {row['image']}" for row in found.rows]
    _print({"file": found.file, "found": found.rows}, as_json, [*lines, f"Table  {found.file}"])


def _encoder(model: str, device: str | None, size: int | None) -> Any:
    from evaluation.vision.encoders import load_encoder

    return load_encoder(model, device, size)


def _table(
    images: str,
    encoder: Any,
    sensor: str | None,
    band: list[str] | None,
    split: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
    only: Path | None = None,
) -> Any:
    """The images that a command is about."""
    from evaluation.vision.images import find_images, read_names

    return find_images(
        images,
        sensor=sensor,
        bands=[name.strip() for part in band for name in part.split(",")] if band else None,
        default=encoder.default_sensor,
        split=split,
        image_column=image_column,
        limit=limit,
        only=None if only is None else read_names(only),
    )


def _labels(
    table: Any, labels: Path | None, classes: Path | None, column: str | None
) -> tuple[Any, dict[str, str] | None]:
    """Labels of images, and what is said for each of them where a classes file says so."""
    from evaluation.vision.classes import read_classes
    from evaluation.vision.labels import image_labels, mask_labels, relabel
    from processing.errors import AgriClipError

    listed = None if classes is None else read_classes(classes)
    if labels is not None and labels.is_dir():
        if listed is None:
            raise AgriClipError(f"'{labels}' is a folder of masks, whose codes need --classes with code,name.")
        return mask_labels(table, labels, listed), {name: name for name in listed.names}
    known = image_labels(table, labels, column)
    if listed is None:
        return known, None
    return relabel(known, listed)[0], {name: name for name in listed.names}


def _line(task: str) -> str:
    """The command as it was given."""
    import shlex

    return f"agriclip evaluate {task} " + shlex.join(sys.argv[sys.argv.index(task) + 1 :] if task in sys.argv else [])


def _emit(report: Any, as_json: bool) -> None:
    """Prints a report for a machine or for a person."""
    if as_json:
        _print(report.as_dict(), True, [])
        return
    from rich.console import Console

    report.show(Console(soft_wrap=not sys.stdout.isatty()))


def _print(content: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    from mapping.provenance import plain

    if as_json:
        typer.echo(json.dumps(plain(content), indent=2, ensure_ascii=False))
    for line in [] if as_json else lines:
        typer.echo(line)
