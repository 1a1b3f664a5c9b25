"""One commit to the Hub, and what it would hold.

Three choices define this file. The client is `huggingface_hub`'s own; nothing here speaks HTTP. The repository becomes
what the folder is: files of an earlier release that are no longer in it are deleted in the same commit. And a plan is
made without the network, by the rules that the Hub applies: large and binary files are stored as LFS objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError

__all__ = [
    "PlannedFile",
    "Published",
    "check_repo_name",
    "logged_in",
    "plan_upload",
    "remote_files",
    "stale_files",
    "upload",
]

#: Largest file that the Hub keeps as a plain git object, in bytes.
REGULAR_LIMIT = 10 * 1024**2
# Patterns of the `.gitattributes` that the Hub gives a new repository.
_LFS = """*.7z *.arrow *.avro *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.lz4 *.mlmodel *.model *.msgpack
*.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/* *.tar.* *.tar
*.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*""".split()
# Bytes that the Hub looks at to tell a binary file.
_SAMPLE = 512
#: Never uploaded, whatever lies in the folder.
IGNORED = ("__pycache__/*", "*/__pycache__/*", "*.pyc", ".git/*", ".cache/*", ".DS_Store", "*/.DS_Store", "*.partial*")
# Of the repository, not of the release.
_KEPT = (".gitattributes",)


@dataclass(frozen=True)
class PlannedFile:
    """A file of a commit.

    Attributes:
        path: Path in the repository.
        size: Bytes.
        storage: `lfs` or `regular`.
    """

    path: str
    size: int
    storage: str


@dataclass(frozen=True)
class Published:
    """What was uploaded.

    Attributes:
        repo: Name of the repository.
        url: Its address.
        commit: Hash of the commit.
        files: Files of the commit.
        deleted: Files of an earlier release that it took away.
    """

    repo: str
    url: str
    commit: str
    files: tuple[PlannedFile, ...]
    deleted: tuple[str, ...]


def plan_upload(folder: str | Path) -> tuple[PlannedFile, ...]:
    """Exactly the files that :func:`upload` would send, by path.

    Args:
        folder: A release folder.

    Raises:
        AgriClipError: There is nothing in it.
    """
    root = Path(folder)
    files = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not any(fnmatch(name, pattern) for pattern in IGNORED):
            files.append(PlannedFile(name, path.stat().st_size, _storage(path, name)))
    if not files:
        raise AgriClipError(f"There is nothing to upload in '{folder}'.")
    return tuple(files)


def _storage(path: Path, name: str) -> str:
    size = path.stat().st_size
    if size == 0:
        return "regular"  # an LFS object cannot be empty
    if size > REGULAR_LIMIT or any(fnmatch(name, pattern) or fnmatch(path.name, pattern) for pattern in _LFS):
        return "lfs"
    with path.open("rb") as file:
        return "lfs" if b"\0" in file.read(_SAMPLE) else "regular"


def check_repo_name(repo: str) -> str:
    """The name of a repository, `owner/name`.

    Raises:
        AgriClipError: The Hub would not take it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise AgriClipError(f"'{repo}' is no name of a repository; {_lower(_first(error))}.") from error
    if repo.count("/") != 1:
        raise AgriClipError(f"'{repo}' is no name of a repository; write owner/name.")
    return repo


def logged_in(token: str | None = None) -> dict[str, Any]:
    """Who the token belongs to.

    Raises:
        AgriClipError: Nobody is logged in, the token is not valid, or the Hub is not in reach.
    """
    from huggingface_hub.errors import LocalTokenNotFoundError

    with _sentences("the Hub"):
        try:
            return dict(_api(token).whoami())
        except LocalTokenNotFoundError as error:
            raise AgriClipError("You are not logged in to the Hub; run `hf auth login`, or give --token.") from error


def remote_files(repo: str, token: str | None = None, repo_type: str = "model") -> tuple[str, ...] | None:
    """Files of a repository; None where there is none yet.

    Raises:
        AgriClipError: The Hub is not in reach, or the repository may not be read.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with _sentences(repo):
        try:
            return _files_there(_api(token), repo, repo_type)
        except RepositoryNotFoundError:
            return None


def stale_files(planned: Sequence[PlannedFile], there: Sequence[str] | None) -> tuple[str, ...]:
    """Files of the repository that the release no longer holds."""
    kept = {file.path for file in planned} | set(_KEPT)
    return tuple(sorted(set(there or ()) - kept))


def upload(
    folder: str | Path,
    repo: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
) -> Published:
    """Make the repository what the folder is, in one commit.

    Args:
        folder: A release folder.
        repo: `owner/name`; made if it is not there.
        repo_type: `model` or `dataset`.
        private: Make a new repository private; one that is there stays as it is.
        token: Token of the Hub; the one logged in with if None.
        message: Message of the commit.

    Returns:
        What was uploaded.

    Raises:
        AgriClipError: In one sentence: no login, no rights, no network, a bad name, or what the Hub complains of.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    check_repo_name(repo)
    planned = plan_upload(folder)
    who = logged_in(token)
    _check_owner(repo, who)
    api = _api(token)
    with _sentences(repo):
        address = api.create_repo(repo, repo_type=repo_type, private=private or None, exist_ok=True)
        deleted = stale_files(planned, _files_there(api, repo, repo_type))
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=str(Path(folder) / file.path))
            for file in planned
        ]
        operations += [CommitOperationDelete(path_in_repo=path) for path in deleted]
        commit = api.create_commit(
            repo, operations=operations, commit_message=message or "Release of AgriCLIP", repo_type=repo_type
        )
    return Published(repo, str(address), str(commit.oid), planned, deleted)


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi, get_token

    # Read at every call: the environment may have changed since the library was imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return HfApi(endpoint=endpoint, token=token or get_token(), library_name="agriclip")


def _files_there(api: Any, repo: str, repo_type: str) -> tuple[str, ...]:
    """Files of a repository, in one request that is not repeated: who has no network should not wait for it."""
    about = api.repo_info(repo, repo_type=repo_type, timeout=20)
    return tuple(sibling.rfilename for sibling in about.siblings or ())


def _check_owner(repo: str, who: dict[str, Any]) -> None:
    owner = repo.partition("/")[0]
    mine = [str(who.get("name")), *(str(org.get("name")) for org in who.get("orgs") or ())]
    if owner.lower() not in [name.lower() for name in mine]:
        raise AgriClipError(
            f"You are logged in as {mine[0]}, who may not write to '{owner}'; use one of: {', '.join(mine)}."
        )


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Errors of the client in one sentence each; what is not the Hub's is passed on."""
    try:
        yield
    except AgriClipError:
        raise
    except Exception as error:
        sentence = _sentence(error, what)
        if sentence is None:
            raise
        raise AgriClipError(sentence) from error


def _sentence(error: BaseException, what: str) -> str | None:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, ValueError) and str(error).startswith("Invalid metadata"):
        return f"The Hub does not accept the card: {_lower(' '.join(str(error).split()))[:240]}"
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for one in chain:
        if isinstance(one, OfflineModeIsEnabled):
            return "The Hub may not be asked, because HF_HUB_OFFLINE is set; unset it."
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(one, HfHubHTTPError) and status is not None:
            if status == 401 and not isinstance(one, RepositoryNotFoundError):
                return "The Hub does not know your token; run `hf auth login` again, or give another --token."
            if status == 403:
                return f"Your token may not write to '{what}'; use one with write access to it."
            if status == 404 or isinstance(one, RepositoryNotFoundError):
                return f"There is no '{what}' on the Hub that your token may see."
            if status == 429:
                return "The Hub takes no more requests at the moment; try again in some minutes."
            said = f" ({_first(one)[:160]})" if status < 500 else ""
            return f"The Hub refused with status {status}{said}; nothing was published."
    for one in chain:
        # The client's library for HTTP has changed its name more than once.
        library = type(one).__module__.partition(".")[0]
        if isinstance(one, ConnectionError | TimeoutError) or library in ("httpx", "httpx2", "httpcore", "requests"):
            return f"The Hub is not in reach ({_first(one)[:120]}); check the network, or HF_ENDPOINT."
    return None


def _first(error: BaseException) -> str:
    """First sentence of an error, on one line."""
    text = " ".join(str(error).split())
    return text.split(". ")[0].rstrip(".:") or type(error).__name__


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
