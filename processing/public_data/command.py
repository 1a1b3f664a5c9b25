"""`agriclip data`: list public sources, read their terms, get them, cite them, check them.

Everything heavy is imported inside the commands, so that `agriclip --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from .registry import Source

data_app = typer.Typer(help="Public data: terms, download, loaders.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a source, see `agriclip data list`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@data_app.command("list")
def list_sources(
    task: Annotated[str | None, typer.Option(help="Only sources for this task, e.g. 'crop segmentation'.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the public sources, what they are for and what their terms allow."""
    from .registry import load_registry

    sources = [source for source in load_registry().values() if task is None or source.task == task]
    if not sources:
        from ..errors import AgriClipError, nearest

        tasks = {source.task for source in load_registry().values()}
        raise AgriClipError(f"There is no source for '{task}'; {nearest(task, sorted(tasks))}")
    if as_json:
        _print_json([_summary(source) for source in sources])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "size", "weights", "get"):
        table.add_column(column, no_wrap=True)
    for column in ("licence", "task"):
        table.add_column(column)
    for source in sources:
        terms = source.licence.name or "none stated"
        short = terms if len(terms) <= 24 else terms[:23].rstrip(" (;,") + "…"
        licence = short + (" *" if source.licence.needs_acceptance else "")
        way = "yes" if source.can_fetch else "--from"
        table.add_row(source.name, _size(source), source.licence.train, way, licence, source.task)
    _console().print(table)
    _console().print(
        "weights: may weights trained on it be released?  get: --from where it must be fetched by hand.  *: asks for "
        "--accept-licence"
    )


@data_app.command()
def info(name: Name, as_json: AsJson = False) -> None:
    """Say what a source holds, who may use it, and where each fact was seen."""
    from .registry import get_source

    source = get_source(name)
    if as_json:
        _print_json(source.model_dump(mode="json"))
        return
    from rich.table import Table

    table = Table(title=source.title, title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("value", overflow="fold")
    for key, value in _described(source).items():
        table.add_row(key, value)
    _console().print(table)


@data_app.command()
def get(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for everything. [default: out/data/NAME]")
    ] = None,
    local: Annotated[
        Path | None, typer.Option("--from", help="Take the files from this folder instead of the network.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept terms that restrict use (see `agriclip data info`).")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only files whose name has this in it; may be repeated.")
    ] = None,
    convert: Annotated[bool, typer.Option(help="Bring the data into a folder of tiles or a study block.")] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a source and bring it into a folder of tiles, or into blocks of a study file.

    An interrupted download goes on when the same command is given again.
    """
    from .registry import get_source

    source = get_source(name)
    if not as_json:
        typer.echo(f"Licence      {source.licence.sentence}", err=True)

    from .acquire import acquire

    folder = output or Path("out") / "data" / source.name
    with _bars(quiet or as_json) as (progress, step):
        result = acquire(
            source,
            folder,
            local=local,
            accept_licence=accept_licence,
            only=only or (),
            convert=convert,
            progress=progress,
            step=step,
        )
    if as_json:
        _print_json(result.as_dict() | {"licence": source.licence.name, "citation": source.citation.text})
        return
    console = _console()
    console.print(f"Folder       {result.folder}")
    ways = sorted({fetched.verified for fetched in result.files})
    console.print(f"Files        {len(result.files)}, checked by {', '.join(ways) or 'nothing'}")
    if result.tiles is not None:
        console.print(f"Tiles        {result.tiles} ({result.rows:,})")
    if result.study is not None:
        from .converters_study import snippet

        console.print("Study block  (paste into a study file)")
        console.print(snippet(result.study), markup=False, highlight=False)
    console.print(f"Cite         {source.citation.text}", markup=False)


@data_app.command()
def cite(name: Name, as_json: AsJson = False) -> None:
    """Print what to cite, in words and as BibTeX."""
    from .registry import get_source

    citation = get_source(name).citation
    if as_json:
        _print_json(citation.model_dump(mode="json") | {"text": citation.text, "bibtex": citation.bibtex})
        return
    typer.echo(f"{citation.text}\n\n{citation.bibtex}")


@data_app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `agriclip data get` made.")],
    as_json: AsJson = False,
) -> None:
    """Check the files of a folder against its lock file."""
    from .acquire import check_folder, require_whole

    rows = check_folder(folder)
    require_whole(folder, rows)
    if as_json:
        _print_json({"folder": str(folder), "files": rows, "problems": []})
        return
    _console().print(f"{folder} is whole: {len(rows)} files, {_bytes(sum(row['size'] for row in rows))}")


def _summary(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "title": source.title,
        "task": source.task,
        "size": source.size or source.size_about,
        "licence": source.licence.name,
        "train": source.licence.train,
        "redistribute": source.licence.redistribute,
        "needs_acceptance": source.licence.needs_acceptance,
        "can_fetch": source.can_fetch,
        "loader": source.loader,
        "verified": source.verified,
    }


def _described(source: Source) -> dict[str, str]:
    """A source in words, line by line."""
    files = [
        f"{file.path}  {_bytes(file.size)}  {'sha256' if file.sha256 else 'md5' if file.md5 else 'no checksum'}"
        f"{'' if file.default else '  (only with --only)'}{'' if file.url else '  (no address)'}"
        for file in source.files
    ]
    told = {
        "name": source.name,
        "what": source.what,
        "task": source.task,
        "homepage": source.homepage,
        "files": "\n".join(files[:25]) + (f"\nand {len(files) - 25} more" if len(files) > 25 else ""),
        "Hub": source.hub.repo if source.hub else "",
        "service": source.service or "",
        "size": _size(source),
        "format": source.format,
        "licence": source.licence.sentence + (f" ({source.licence.url})" if source.licence.url else ""),
        "loader": source.loader or "none",
        "local forms": ", ".join(form.folder for form in source.prepared),
        "cite": source.citation.text + ("" if "citation" in source.found else " (not checked against its page)"),
        "note": source.note,
        "verified": "yes" if source.verified else "no, see the note",
        "seen in": "\n".join(f"{fact}: {where}" for fact, where in source.found.items()),
    }
    return {key: value for key, value in told.items() if value}


def _size(source: Source) -> str:
    rounded = "~" if source.size is None and source.size_about is not None else ""
    return rounded + _bytes(source.size or source.size_about)


def _bytes(size: int | None) -> str:
    if size is None:
        return "?"
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


@contextmanager
def _bars(quiet: bool) -> Iterator[tuple[Callable[[str, int, int | None], None] | None, Callable[[str], None] | None]]:
    """Bars on standard error for bytes, and a line for all else."""
    if quiet:
        yield None, None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield progress, lambda text: bars.console.print(text, style="dim", markup=False)


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty())


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, default=str))


__all__ = ["data_app"]
