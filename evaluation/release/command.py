"""`agriclip publish DIR`: check, describe and upload a model, an ensemble or an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evaluation.release.folder import Release
    from evaluation.release.upload import PlannedFile

__all__ = ["publish", "publish_folder"]

_UNNAMED = "your-name"


def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a fit, a model, an ensemble or an adapter.")
    ],
    repo: Annotated[
        str | None, typer.Option("--repo", help="Name on the Hub, owner/name.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Release folder. [default: DIR-release beside DIR]")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", help="Study file: tells the images' channels, and is published as a data set too."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with the study's data files; overrides `data` in the study.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Name on the Hub of an adapter's base, owner/name.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="results.json of an evaluation. [default: beside DIR]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be published, and stop.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    token: Annotated[
        str | None, typer.Option("--token", help="Token of the Hub. [default: the one logged in with]")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="Message of the commit.")] = None,
    watts: Annotated[
        float, typer.Option(min=0.0, help="Power of the machine that fitted, for the estimate of carbon.")
    ] = 100.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Publish a fitted folder on the Hub, with its code, card and results.

    The folder is put together anew and must load, and answer the same, where nothing of AgriCLIP is installed.
    """
    result = publish_folder(
        folder,
        repo,
        output=output,
        study_file=study,
        data=data,
        base=base,
        results=results,
        dry_run=dry_run,
        private=private,
        token=token,
        message=message,
        watts=watts,
        quiet=quiet or as_json,
    )
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _tell(result)


def publish_folder(
    folder: Path,
    repo: str | None = None,
    *,
    output: Path | None = None,
    study_file: Path | None = None,
    data: Path | None = None,
    base: str | None = None,
    results: Path | None = None,
    dry_run: bool = False,
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
    watts: float = 100.0,
    quiet: bool = True,
) -> dict[str, Any]:
    """Prepare, check and, unless `dry_run`, upload a release; the arguments are those of the command.

    Returns:
        Plain content for JSON: `release`, `repo`, `checks`, `files`, `deleted`, `url` and `commit` (None for a dry
        run), and `dataset` with the same of the study.

    Raises:
        AgriClipError: In one sentence, with a row for each check that failed.
    """
    from evaluation.release.upload import check_repo_name, logged_in, plan_upload, remote_files, stale_files, upload
    from processing.errors import AgriClipError

    if repo is not None:
        check_repo_name(repo)
    elif not dry_run:
        raise AgriClipError("Give the name of the repository: --repo owner/name; or look first, with --dry-run.")
    if not dry_run:
        logged_in(token)  # before anything is made

    from evaluation.release.folder import find_model

    _quiet_libraries()
    target = output or _default_output(find_model(folder))
    shown = repo or f"{_UNNAMED}/{_slug(folder)}"
    with _status("Preparing the release", quiet) as say:
        release, checks, study_folder = _prepare(
            folder, target, shown, study_file, data, base, results, watts, lambda what: say(what)
        )
        planned = plan_upload(release.path)
        dataset: dict[str, Any] | None = None
        if study_folder is not None:
            name, place = study_folder
            dataset = {"repo": name, "folder": str(place), "files": _rows(plan_upload(place)), "url": None}
        told: dict[str, Any] = {
            "release": str(release.path),
            "kind": release.kind,
            "repo": shown,
            "checks": [{"check": c.name, "passed": c.passed, "found": c.detail} for c in checks],
            "files": _rows(planned),
            "deleted": [],
            "url": None,
            "commit": None,
            "dataset": dataset,
        }
        if dry_run:
            if repo is not None:
                try:
                    told["deleted"] = list(stale_files(planned, remote_files(repo, token)))
                except AgriClipError as error:
                    told["unknown"] = f"What lies in '{repo}' now is not known: {error}"
            return told
        say(f"Uploading {len(planned)} files")
        done = upload(release.path, shown, private=private, token=token, message=message)
        told |= {"url": done.url, "commit": done.commit, "deleted": list(done.deleted)}
        if dataset is not None:
            say("Uploading the study")
            also = upload(
                dataset["folder"], dataset["repo"], repo_type="dataset", private=private, token=token, message=message
            )
            dataset |= {"url": also.url, "commit": also.commit, "deleted": list(also.deleted)}
    return told


def _prepare(
    folder: Path,
    target: Path,
    repo: str,
    study_file: Path | None,
    data: Path | None,
    base: str | None,
    results: Path | None,
    watts: float,
    say: Any,
) -> tuple[Release, tuple[Any, ...], tuple[str, Path] | None]:
    """The release folder with its card, its checks, and the folder of the study."""
    from evaluation.release.card import CardFacts, find_results, write_card
    from evaluation.release.checks import check_files, require
    from evaluation.release.clean_process import check_clean_process
    from evaluation.release.dataset_card import dataset_repo, write_dataset_folder
    from evaluation.release.folder import find_model, prepare_release
    from evaluation.release.sources import read_sources
    from evaluation.results import read_results

    source = find_model(folder)
    study, channels, gsd, report = None, (), 0.0, ""
    if study_file is not None:
        study, channels, gsd, report = _study(study_file, data)
    release = prepare_release(source, target, channels=channels, gsd=gsd or None, base=base)
    scores, comparison = find_results(source)
    if results is not None:
        scores = tuple(read_results(results)[0])
    own = read_sources(study_file.parent if study_file else None, source, source.parent)
    dataset = None
    if study is not None and study_file is not None:
        name = dataset_repo(repo.partition("/")[0], study)
        place = target.with_name(f"{target.name}-study")
        dataset = (name, write_dataset_folder(study, study_file, place, name, own))
    facts = CardFacts(
        scores=scores,
        comparison=comparison,
        study=study,
        channels=tuple(channels),
        gsd=gsd,
        sources=own,
        report=report,
        datasets=(dataset[0],) if dataset else (),
        watts=watts,
    )
    write_card(release, repo, facts)
    say("Checking the files")
    checks = check_files(release.path)
    require(checks)
    say("Loading it where nothing of AgriCLIP is installed")
    checks = (*checks, check_clean_process(release))
    require(checks)
    return release, checks, dataset


def _study(file: Path, data: Path | None) -> tuple[Any, tuple[Any, ...], float, str]:
    """A study, the channels of its images and a report of one of its places, as far as its data are there."""
    from processing.errors import AgriClipError
    from processing.study import load_study
    from processing.study_data import StudyData

    try:
        study = load_study(file, data_root=data)
    except AgriClipError:
        # Without its data a study still tells its words; a mistake in the file itself shows here again.
        return load_study(file, data_root=data, check_files=False), (), 0.0, ""
    given = StudyData(study)
    report = ""
    if study.labels is not None:
        labels = given.labels()
        best = int(labels.share.argmax())
        row = given.predictors(labels.x[best : best + 1], labels.y[best : best + 1])[0]
        report = given.template.render(row)
    return study, tuple(given.channels), given.gsd, report


def _default_output(source: Path) -> Path:
    """`out/us/release` for `out/us/model`, and `name-release` for any other folder."""
    resolved = source.resolve()
    return resolved.parent / ("release" if resolved.name == "model" else f"{resolved.name}-release")


def _slug(folder: Path) -> str:
    import re

    resolved = folder.resolve()
    name = resolved.parent.name if resolved.name == "model" else resolved.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "agriclip"


def _rows(files: tuple[PlannedFile, ...]) -> list[dict[str, Any]]:
    return [{"path": file.path, "size": file.size, "storage": file.storage} for file in files]


def _status(text: str, quiet: bool) -> Any:
    """A line on standard error that says what is going on; yields a function that changes it."""
    from contextlib import contextmanager, nullcontext

    if quiet:
        return nullcontext(lambda _text: None)

    @contextmanager
    def show() -> Any:
        from rich.console import Console

        with Console(stderr=True).status(text) as status:
            yield status.update

    return show()


def _quiet_libraries() -> None:
    """Keeps the libraries' own bars and notices off the terminal; ours say what is going on."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _tell(result: dict[str, Any]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=not sys.stdout.isatty())
    checks = Table(title="Checks", title_justify="left", show_header=False)
    for check in result["checks"]:
        checks.add_row("passed" if check["passed"] else "failed", check["check"], check["found"])
    console.print(checks)
    for title, part in ((result["repo"], result), *((d["repo"], d) for d in [result["dataset"]] if d)):
        table = Table("file", "bytes", "stored as", title=title, title_justify="left")
        for file in part["files"]:
            table.add_row(file["path"], f"{file['size']:,}", {"lfs": "LFS", "regular": "regular"}[file["storage"]])
        total = sum(file["size"] for file in part["files"])
        table.add_section()
        table.add_row(f"{len(part['files'])} files", f"{total:,}", "")
        console.print(table)
        for path in part.get("deleted") or ():
            console.print(f"deleted      {path}")
        if part.get("url"):
            console.print(f"Published    {part['url']} ({part['commit'][:10]})")
    if "unknown" in result:
        console.print(result["unknown"])
    if result["url"] is None:
        console.print(f"Nothing was uploaded. The release lies in {result['release']}")
