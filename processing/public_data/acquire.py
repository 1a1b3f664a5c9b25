"""From the name of a source to data that a study or a training run can read: terms, files, archives, loader.

Three choices: the terms come first, and those that restrict use must be accepted before a byte is fetched; every step
leaves its result whole and is passed over when it is there, so the same command goes on after a break; and a local
folder is as good as the network: its files are checked just the same and linked, not copied, where the disk allows.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import AgriClipError, Problem, named, nearest
from .archives import is_archive, require_unpackable, stem_of, unpack
from .download import LOCK, Fetched, Lock, Progress, digests, fetch, require_space, verify
from .registry import HubDataset, Prepared, RemoteFile, Source
from .tile_folder import METADATA, files_in, link_or_copy

SOURCE, RAW, UNPACKED, TILES, STUDY = "source", "source/files", "source/unpacked", "tiles", "study"
_TILE_LOADERS = {
    "ag_net": "converters_series",
    "bigearthnet": "converters_series",
    "captions": "converters_scenes",
    "captions_parquet": "converters_scenes",
    "class_folders": "converters_scenes",
    "coco_masks": "converters_scenes",
    "farmseg_vl": "converters_scenes",
    "multi_temporal_crop": "converters_series",
    "paired_tiles": "converters_series",
    "pastis": "converters_series",
    "scene_masks": "converters_series",
    "tile_pairs": "converters_series",
}


@dataclass(frozen=True)
class Acquired:
    """What `acquire` made.

    Attributes:
        source: Name of the source.
        folder: Folder of everything.
        files: The files that were fetched or linked, with what they were checked against.
        tiles: Folder of tiles that `load_tiles` reads, or None.
        rows: Tiles in it.
        study: Block of a study file, or None.
    """

    source: str
    folder: Path
    files: tuple[Fetched, ...]
    tiles: Path | None = None
    rows: int = 0
    study: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same in types that JSON has."""
        return {
            "source": self.source,
            "folder": str(self.folder),
            "files": [
                {"path": str(f.path), "url": f.url, "size": f.size, "sha256": f.sha256, "verified": f.verified}
                for f in self.files
            ],
            "tiles": None if self.tiles is None else str(self.tiles),
            "rows": self.rows,
            "study": self.study,
        }


@dataclass
class _Found:
    """Files so far, and where the loader is to look."""

    files: list[Fetched] = field(default_factory=list)
    root: Path | None = None
    form: Prepared | None = None


def acquire(
    source: Source,
    output: Path,
    *,
    local: Path | None = None,
    accept_licence: bool = False,
    only: Sequence[str] = (),
    convert: bool = True,
    progress: Progress | None = None,
    step: Callable[[str], None] | None = None,
    **download: Any,
) -> Acquired:
    """Fetch a source, or take it from a folder, and bring it into our forms.

    Args:
        source: Entry of the registry.
        output: Folder for everything: `source` (as downloaded and unpacked), `tiles` or `study`, and the lock file.
        local: Folder in which the files lie already.
        accept_licence: The user accepts terms that restrict use.
        only: Patterns of the files to fetch, in place of the default ones.
        convert: Run the loader.
        progress: Told of the bytes of each file.
        step: Told what is going on.
        **download: Passed on to `fetch`.

    Raises:
        AgriClipError: Terms are not accepted, a file cannot be fetched or is another one, an archive is not safe, or
            the loader does not find what it needs.
    """
    require_accepted(source, accept_licence)
    tell = step or (lambda _text: None)
    output.mkdir(parents=True, exist_ok=True)
    lock = Lock.of(output)
    if lock.content.get("source", source.name) != source.name:
        raise AgriClipError(f"'{output}' holds '{lock.content['source']}' already; choose another --output.")
    lock.content |= {
        "source": source.name,
        "title": source.title,
        "licence": source.licence.name,
        "citation": source.citation.text,
        "licence_accepted": datetime.now(UTC).isoformat(timespec="seconds") if accept_licence else None,
    }
    lock.write()
    if local is not None:
        found = _from_folder(source, local, output, lock, only, tell)
    else:
        found = _from_network(source, output, lock, only, progress, tell, download)
    for archive in _archives(source, found.files):
        folder = output / UNPACKED / stem_of(archive)
        if not folder.is_dir():
            tell(f"Unpacking {archive.name}")
            unpack(archive, folder, limit=_limit(source))
    if not convert:
        return Acquired(source.name, output, tuple(found.files))
    return _convert(source, output, found, tell)


def require_accepted(source: Source, accepted: bool) -> None:
    """Refuse terms that restrict use unless they were accepted.

    Raises:
        AgriClipError: They were not.
    """
    if source.licence.needs_acceptance and not accepted:
        where = f" (see {source.licence.url or source.homepage})"
        raise AgriClipError(
            f"'{source.name}' comes under {source.licence.sentence}{where}; if you accept these terms give "
            "--accept-licence."
        )


def check_folder(folder: Path) -> list[dict[str, Any]]:
    """Check everything that the lock file of a folder lists, and the tiles that were made of it.

    Returns:
        One row a file: `path`, `size`, `sha256`, `problem` (empty where there is none).

    Raises:
        AgriClipError: There is no lock file.
    """
    lock = Lock.of(folder)
    if not lock.files:
        raise AgriClipError(f"'{folder}' has no {LOCK} that lists files; it was not made by `agriclip data get`.")
    rows = []
    for name, known in sorted(lock.files.items()):
        path, problem = folder / name, ""
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != known["size"]:
            problem = f"has {path.stat().st_size:,} bytes instead of {known['size']:,}"
        elif digests(path)[0] != known["sha256"]:
            problem = "has another checksum"
        rows.append({"path": name, "size": known["size"], "sha256": known["sha256"], "problem": problem})
    metadata = folder / TILES / METADATA
    if metadata.is_file():
        missing = _missing_tiles(metadata)
        problem = f"names {len(missing)} files that are missing ({named(missing, 2)})" if missing else ""
        rows.append(
            {"path": f"{TILES}/{METADATA}", "size": metadata.stat().st_size, "sha256": None, "problem": problem}
        )
    return rows


def require_whole(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a folder with problems.

    Raises:
        AgriClipError: Names the first; all of them in `.problems`.
    """
    problems = [Problem(r["path"], r["problem"], "get it again") for r in rows if r["problem"]]
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise AgriClipError(
            f"In '{folder}', {problems[0].where} {problems[0].problem}; delete it and run the same "
            f"`agriclip data get` again{more}.",
            problems,
        )


def _from_network(
    source: Source,
    output: Path,
    lock: Lock,
    only: Sequence[str],
    progress: Progress | None,
    tell: Callable[[str], None],
    download: Mapping[str, Any],
) -> _Found:
    files = _chosen(source, only)
    addressed = [file for file in files if file.url]
    require_unpackable([file.path for file in files if file.unpack])
    if not addressed and source.hub is None:
        raise AgriClipError(
            f"'{source.name}' is not handed out as files: {source.note.rstrip('.')}; see {source.homepage}, then give "
            "the folder with --from."
        )
    found = _Found()
    if not addressed and source.hub is not None:
        tell(f"Fetching {source.hub.repo} from the Hub")
        _from_hub(source.hub, output / RAW, only)
        found.files = _recorded(output / RAW, lock)
        return found
    without = [file.path for file in files if not file.url]
    if without:
        raise AgriClipError(
            f"{named(without, 3)} of '{source.name}' has no address; fetch it by hand from {source.homepage} and give "
            "its folder with --from."
        )
    open_files = [file for file in addressed if not (output / RAW / file.path).exists()]
    known = sum(file.size or 0 for file in open_files)
    if not only and len(open_files) == len(addressed):
        known = max(known, source.size_about or 0)
    parts = sum(path.stat().st_size for path in files_in(output / RAW, "*.part")) if (output / RAW).exists() else 0
    require_space(
        output, max(0, known - parts), f"Downloading '{source.name}'", download.get("disk_usage", shutil.disk_usage)
    )
    for file in addressed:
        tell(f"Fetching {file.path}")
        found.files.append(fetch(file, output / RAW, lock, progress=progress, **download))
    return found


def _from_hub(hub: HubDataset, folder: Path, only: Sequence[str]) -> None:
    """Fetch a data set from the Hub (or from what HF_ENDPOINT names)."""
    import huggingface_hub
    from huggingface_hub import errors

    patterns = list(only or hub.files) or None
    try:
        huggingface_hub.snapshot_download(
            hub.repo,
            repo_type="dataset",
            revision=hub.revision,
            local_dir=folder,
            allow_patterns=patterns,
            endpoint=os.environ.get("HF_ENDPOINT"),  # the library reads it once, when it is imported
        )
    except errors.GatedRepoError as error:
        raise AgriClipError(
            f"The Hub data set '{hub.repo}' asks for consent; give it on its page, then run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise AgriClipError(
            f"The Hub has no data set '{hub.repo}' (or it is private); check HF_ENDPOINT, or log in with "
            "`hf auth login`."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AgriClipError(
            f"The Hub data set '{hub.repo}' could not be fetched ({reason}); the same command goes on later."
        ) from error
    if not [path for path in files_in(folder, "*") if ".cache" not in path.parts]:
        raise AgriClipError(
            f"The Hub data set '{hub.repo}' has no file like {named(patterns or ['*'])}; check --only."
        )


def _from_folder(
    source: Source, local: Path, output: Path, lock: Lock, only: Sequence[str], tell: Callable[[str], None]
) -> _Found:
    """Take a source from a folder: in a prepared form, as downloaded, or already unpacked."""
    if not local.is_dir():
        raise AgriClipError(
            f"The folder '{local}' does not exist; give the folder that holds the files of '{source.name}'."
        )
    tell(f"Looking for {source.name} in {local}")
    for form in source.prepared:
        folder = next((f for f in (local / form.folder, local) if f.name == form.folder and f.is_dir()), None)
        matched = {path for pattern in form.files for path in (folder.glob(pattern) if folder else ())}
        if folder is not None and matched:
            target = output / UNPACKED / form.folder
            for path in sorted(matched):
                _place(path, target / path.relative_to(folder))
            found = _Found(_recorded(target, lock), output / UNPACKED, form)
            return found
    there = {path.name: path for path in files_in(local, "*")}
    wanted = _chosen(source, only)
    present = [file for file in wanted if Path(file.path).name in there]
    if present:
        absent = [file.path for file in wanted if file not in present]
        if absent:
            raise AgriClipError(
                f"{named(absent, 3)} of '{source.name}' is not in '{local}'; fetch it too, or use --only."
            )
        found = _Found()
        for file in present:
            target = output / RAW / file.path
            _place(there[Path(file.path).name], target)
            try:
                fetched = verify(file, target, lock)
            except AgriClipError:
                target.unlink(missing_ok=True)
                raise
            lock.record(fetched)
            found.files.append(fetched)
        return found
    if source.hub is not None and any(any(local.rglob(pattern)) for pattern in source.hub.files):
        patterns = only or source.hub.files
        for path in sorted({path for pattern in patterns for path in local.rglob(pattern) if path.is_file()}):
            _place(path, output / RAW / path.relative_to(local))
        return _Found(_recorded(output / RAW, lock))
    if source.loader is None:
        looked = [file.path for file in source.files] or [form.folder for form in source.prepared]
        raise AgriClipError(f"None of the files of '{source.name}' is in '{local}'; {nearest(local.name, looked)}")
    return _Found(root=local)  # unpacked by hand: the loader says if it is not


def _place(source: Path, target: Path) -> None:
    """Link a file, unless the same is there."""
    if target.is_file() and (target.samefile(source) or digests(target) == digests(source)):
        return
    target.unlink(missing_ok=True)
    link_or_copy(source, target)


def _recorded(folder: Path, lock: Lock) -> list[Fetched]:
    """Remember all files of a folder; one that differs from what was there before is refused."""
    fetched = [
        verify(RemoteFile(path=path.relative_to(folder).as_posix(), url=None), path, lock)
        for path in files_in(folder, "*")
    ]
    lock.record(*fetched)
    return fetched


def _chosen(source: Source, only: Sequence[str]) -> list[RemoteFile]:
    if not only:
        return [file for file in source.files if file.default]
    chosen = [file for file in source.files if any(fnmatch.fnmatch(file.path, f"*{p}*") for p in only)]
    if not chosen and source.hub is None:
        raise AgriClipError(
            f"No file of '{source.name}' matches {named(only)}; "
            f"{nearest(only[0], (file.path for file in source.files))}"
        )
    return chosen


def _archives(source: Source, files: Sequence[Fetched]) -> list[Path]:
    """The archives among the files that are to be unpacked."""
    marked = {Path(file.path).name for file in source.files if file.unpack}
    patterns = source.hub.unpack if source.hub else ()
    return [
        fetched.path
        for fetched in files
        if fetched.path.name in marked
        or (is_archive(fetched.path) and any(fnmatch.fnmatch(fetched.path.name, pattern) for pattern in patterns))
    ]


def _limit(source: Source) -> int | None:
    return None if source.unpacked_size is None else int(source.unpacked_size * 1.1)


def _convert(source: Source, output: Path, found: _Found, tell: Callable[[str], None]) -> Acquired:
    from importlib import import_module

    form = found.form
    loader = (form.loader if form else None) or source.loader
    root = found.root or output / SOURCE  # downloads and what was unpacked: lists of splits lie beside archives
    options = form.options if form and form.loader else source.options
    study = (form.study if form else None) or source.study
    if loader is None:
        return Acquired(source.name, output, tuple(found.files))
    tell(f"Converting {source.name}")
    if loader in _TILE_LOADERS:
        function = getattr(import_module(f".{_TILE_LOADERS[loader]}", __package__), loader)
        tiles = output / TILES
        function(root, tiles, options)
        with (tiles / METADATA).open(encoding="utf-8") as stream:
            rows = sum(1 for line in stream if line.strip())
        return Acquired(source.name, output, tuple(found.files), tiles, rows)
    from . import converters_study

    if loader in ("cdl_counts", "r_tables"):
        getattr(converters_study, loader)(root, output / STUDY, options)
        root = output / STUDY
    block = None if study is None else converters_study.resolve_block(study, root)
    return Acquired(source.name, output, tuple(found.files), study=block)


def _missing_tiles(metadata: Path) -> list[str]:
    import json

    missing = []
    for line in metadata.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        names = row["file_name"] if isinstance(row["file_name"], list) else [row["file_name"]]
        missing += [n for n in (*names, row.get("mask_file")) if n and not (metadata.parent / n).is_file()]
    return missing


__all__ = ["Acquired", "acquire", "check_folder", "require_accepted", "require_whole"]
