"""The command `caption`: a folder of tiles and masks to a table of captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def caption(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Folder of GeoTIFFs; or one with the folders images and masks, or with metadata.jsonl.",
            show_default=False,
        ),
    ],
    masks: Annotated[
        Path | None, typer.Argument(metavar="[MASKS]", help="Folder of class codes, by the names of the images.")
    ] = None,
    classes: Annotated[
        str, typer.Option("--classes", "-c", help="Class table (YAML, JSON or CSV of code and name), or cdl.")
    ] = "cdl",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for metadata.jsonl, or a .csv file. [default: IMAGES]"),
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            "--style", help="short, tags, plain, report or question; may be repeated. [default: all in turn]"
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Captions a tile.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the words.")] = 0,
    directions: Annotated[
        bool, typer.Option(help="Name compass directions; leave them out if training mirrors or turns tiles.")
    ] = False,
    row_each: Annotated[
        bool, typer.Option("--row-each", help="A row for each caption, instead of one a tile.")
    ] = False,
    date: Annotated[
        str | None, typer.Option(help="Date of the tiles, e.g. 2015-09-02, where they do not say it.")
    ] = None,
    latitude: Annotated[
        float | None, typer.Option(min=-90, max=90, help="Degrees north, where the tiles are not georeferenced.")
    ] = None,
    gsd: Annotated[float | None, typer.Option(help="Metres per pixel, where the tiles do not say it.")] = None,
    sensor: Annotated[str | None, typer.Option(help="Sensor, where the tiles lack names or scales of bands.")] = None,
    dem: Annotated[
        Path | None, typer.Option(help="Folder of elevation in metres, by the names of the images.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Write captions for satellite tiles from their masks, spectra and season.

    The table is read by the training commands: one line a tile, with its caption as `text`.
    """
    from contextlib import nullcontext

    from processing.captions.table import read_classes, write_caption_table

    table = read_classes(classes)
    with nullcontext(None) if quiet or as_json else _Bar() as bar:
        result = write_caption_table(
            images,
            table,
            masks=masks,
            output=output,
            style=style or "mixed",
            count=count,
            seed=seed,
            directions=directions,
            row_each=row_each,
            date=date,
            latitude=latitude,
            gsd=gsd,
            sensor=sensor,
            dem=dem,
            progress=bar,
        )
    if as_json:
        document = {
            "table": str(result.path),
            "tiles": result.tiles,
            "captions": result.captions,
            "skipped": [{"tile": tile, "reason": reason} for tile, reason in result.skipped],
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    typer.echo(f"Captions  {result.captions} of {result.tiles} tiles in {result.path}")
    if result.skipped:
        tile, reason = result.skipped[0]
        typer.echo(f"Left out  {len(result.skipped)} tiles, e.g. {tile}: {reason}")


class _Bar:
    """A bar on standard error for what takes more than two seconds."""

    def __enter__(self) -> _Bar:
        import time

        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("Captions", total=None)
        self._clock = time.monotonic
        self._start, self._shown = self._clock(), False
        return self

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        if not self._shown and self._clock() - self._start > 2:
            self._progress.start()
            self._shown = True
        self._progress.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


__all__ = ["caption"]
