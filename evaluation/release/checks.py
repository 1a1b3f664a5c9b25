"""Is a release folder self-contained, harmless and honest? Checks that read its files and run nothing of it.

Three choices define this file. Every check says what it looked at, so that a passed one is information too. Code is
read as a syntax tree and never imported. And what a name hides is looked at in the bytes: a pickle is a pickle under
any ending.
"""

from __future__ import annotations

import ast
import getpass
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError, Problem, named

__all__ = ["Check", "check_files", "require"]

#: Largest file, in bytes: weights are saved in shards below it.
MAX_FILE = 5 * 1024**3
#: Largest file that is no weights: papers, code and pictures of a release are small.
MAX_OTHER = 10 * 1024**2
_PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".npy", ".npz", ".h5", ".msgpack"}
_OURS = {"agriclip_cli", "evaluation", "mapping", "modeling_agriclip", "processing", "spaces_demo", "training"}
# What the code of a release may ask for without a guard: transformers' own needs.
_ALLOWED = {"huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "transformers"}
_HOME = re.compile(r"(?:/home/|/Users/|/root/|[A-Za-z]:[\\/]+Users[\\/])[\w.-]*|file://")
_ABSOLUTE = re.compile(r"^(?:/[\w.-]+(?:/|$)|[A-Za-z]:[\\/]|\\\\)")
_TEXTS = {".json", ".yaml", ".yml", ".md", ".txt", ".csv"}
# Names that tell nothing of a person.
_COMMON_USERS = {"root", "user", "users", "admin", "runner", "ubuntu", "agriclip", "data", "test", "work", "app"}
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What, in a few words.
        passed: Whether it is in order.
        detail: What was found.
        hint: What to do about it, where it is not.
    """

    name: str
    passed: bool
    detail: str
    hint: str = ""


def check_files(folder: str | Path) -> tuple[Check, ...]:
    """Look at every file of a release.

    Args:
        folder: The release folder, with its card.

    Returns:
        A check each for what must be there, formats, sizes, private traces, weights, code and card.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file() or path.is_symlink())
    adapter = not (root / "config.json").is_file()
    found = [_complete(root, adapter), _formats(root, files), _sizes(root, files), _traces(root, files)]
    found += [_weights(root, files), _card(root)]
    if not adapter:
        found += [_code(root), _entries(root)]
    return tuple(found)


def require(checks: tuple[Check, ...]) -> None:
    """Raise one error for everything that is not in order.

    Raises:
        AgriClipError: With a row for each failed check.
    """
    failed = [check for check in checks if not check.passed]
    if failed:
        first = failed[0]
        raise AgriClipError(
            f"The release is not in order: {first.detail.rstrip('.')}{'; ' + first.hint if first.hint else ''}"
            f"{f' (and {len(failed) - 1} more)' if len(failed) > 1 else ''}.",
            [Problem(check.name, check.detail, check.hint) for check in failed],
        )


def _complete(root: Path, adapter: bool) -> Check:
    wanted = ["README.md", "LICENSE"]
    if not adapter:
        wanted += ["config.json", "processor_config.json", "tokenizer.json", "modeling_agriclip.py"]
        wanted += ["configuration_agriclip.py", "processing_agriclip.py", "pipelines_agriclip.py"]
    missing = [name for name in wanted if not (root / name).is_file()]
    weights = "adapter_model.safetensors" if adapter else "model*.safetensors"
    if not any(root.rglob(weights) if adapter else root.glob(weights)):
        missing.append(weights)
    if missing:
        return Check("complete", False, f"{named(missing)} is missing", "prepare the release again")
    return Check("complete", True, "weights, configuration, code, processor, card and licence are there")


def _formats(root: Path, files: list[Path]) -> Check:
    bad = [f"{path.relative_to(root).as_posix()} (a link)" for path in files if path.is_symlink()]
    bad += [
        path.relative_to(root).as_posix()
        for path in files
        if not path.is_symlink() and (path.suffix.lower() in _PICKLES or _is_pickle(path))
    ]
    if bad:
        return Check("no pickles", False, f"{named(bad)} could run code where it is loaded", "leave it away")
    return Check("no pickles", True, f"none among {len(files)} files")


def _is_pickle(path: Path) -> bool:
    """Whether the bytes are a pickle, or an archive that holds one, as torch writes them."""
    with path.open("rb") as file:
        head = file.read(4)
    if len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return True
    if head == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(".pkl") for name in archive.namelist())
        except zipfile.BadZipFile:
            return True
    return False


def _sizes(root: Path, files: list[Path]) -> Check:
    large = []
    for path in files:
        size = path.stat().st_size
        if size > (MAX_FILE if path.suffix == ".safetensors" else MAX_OTHER):
            large.append(f"{path.relative_to(root).as_posix()} ({size / 1e6:,.0f} MB)")
    if large:
        return Check("sizes", False, f"{named(large)} is too large for the Hub", "save weights in smaller shards")
    total = sum(path.stat().st_size for path in files)
    return Check("sizes", True, f"{len(files)} files, {total / 1e6:,.1f} MB")


def _traces(root: Path, files: list[Path]) -> Check:
    """Paths and names of the machine that the release was made on."""
    user = _user()
    found = []
    for path in files:
        if path.suffix.lower() not in _TEXTS:
            continue
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
            strings = list(_strings(json.loads(text))) if path.suffix == ".json" else text.splitlines()
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            return Check(
                "no private traces", False, f"{name} cannot be read ({type(error).__name__})", "write it again"
            )
        # A vocabulary holds anything that begins with a slash.
        loose = path.name == "tokenizer.json" or path.suffix != ".json"
        for string in strings:
            absolute = not loose and _ABSOLUTE.match(string)
            person = user is not None and re.search(rf"[\\/]{re.escape(user)}(?:[\\/]|$)", string)
            if absolute or person or _HOME.search(string):
                found.append(f"{name}: {string.strip()[:60]}")
                break
    if found:
        return Check("no private traces", False, f"{named(found, 3)} tells of one machine", "take it out")
    return Check("no private traces", True, "no absolute paths and no user names in JSON, YAML, text and card")


def _user() -> str | None:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return None
    return None if len(name) < 3 or name.lower() in _COMMON_USERS else name


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def _weights(root: Path, files: list[Path]) -> Check:
    """Precision as declared, and finite numbers."""
    import torch
    from safetensors import SafetensorError, safe_open

    name, number = "weights", 0
    kinds: set[str] = set()
    for path in files:
        if path.suffix != ".safetensors":
            continue
        where = path.relative_to(root).as_posix()
        config = path.parent / "config.json"
        declared = json.loads(config.read_text(encoding="utf-8")).get("dtype") if config.is_file() else None
        try:
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - an open file of tensors is no dictionary
                    kind = tensors.get_slice(key).get_dtype()
                    if kind not in _FLOATS:
                        continue
                    tensor = tensors.get_tensor(key)
                    number += tensor.numel()
                    kinds.add(kind)
                    stored = str(tensor.dtype).removeprefix("torch.")
                    # Half precision on disk that loads in single precision is a choice; the other way round is not.
                    if declared not in (None, stored) and (stored, declared) != ("float16", "float32"):
                        detail = f"{where} holds {key} as {tensor.dtype}, but its configuration says {declared}"
                        return Check(name, False, detail, "save the model again")
                    if not torch.isfinite(tensor).all():
                        return Check(
                            name, False, f"{where} holds numbers in {key} that are not finite", "fit it again"
                        )
        except SafetensorError as error:
            return Check(name, False, f"{where} is no safetensors file ({error})", "save the model again")
    return Check(name, True, f"{number:,} finite numbers in {', '.join(sorted(kinds)) or 'no precision'}, safetensors")


def _card(root: Path) -> Check:
    import yaml

    card = root / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        head = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError as error:
        return Check(
            "card", False, f"the head of README.md is no YAML ({str(error).splitlines()[0]})", "write it again"
        )
    if not isinstance(head, dict):
        return Check("card", False, "README.md has no metadata at its head", "write the card again")
    missing = [key for key in ("license", "library_name", "tags") if not head.get(key)]
    if missing:
        return Check("card", False, f"the head of README.md lacks {named(missing)}", "write the card again")
    return Check("card", True, f"license {head['license']}, library {head['library_name']}")


def _code(root: Path) -> Check:
    """Every import of the code is in the folder, in transformers' own needs, or guarded."""
    problems = []
    files = sorted(root.glob("*.py"))
    for path in files:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            return Check("code", False, f"{path.name} is no Python (line {error.lineno})", "save the model again")
        guarded = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                module = (node.module or "").split(".")[0]
                if node.level > 1 or not module or not (root / f"{module}.py").is_file():
                    problems.append(f"{path.name} needs {'.' * node.level}{node.module or ''}")
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for full in names:
                top = full.split(".")[0]
                standard = top in sys.stdlib_module_names
                if top in _OURS or not (standard or top in _ALLOWED or id(node) in guarded):
                    problems.append(f"{path.name} needs {full}")
    if problems:
        return Check("code", False, f"{named(problems)}, which is not in the folder", "save the model again")
    return Check("code", True, f"{len(files)} files import only each other, torch, transformers and what is optional")


def _entries(root: Path) -> Check:
    """What the configurations name is there."""
    entries: dict[str, str] = {}
    for file in ("config.json", "processor_config.json"):
        if not (root / file).is_file():
            continue  # said by another check
        content = json.loads((root / file).read_text(encoding="utf-8"))
        entries |= content.get("auto_map", {})
        entries |= {task: entry["impl"] for task, entry in content.get("custom_pipelines", {}).items()}
    wrong = []
    for key, entry in entries.items():
        module, _, name = str(entry).rpartition(".")
        code = root / f"{module}.py"
        if not code.is_file() or not re.search(rf"^class {re.escape(name)}\b", code.read_text("utf-8"), re.MULTILINE):
            wrong.append(f"{key} ({entry})")
    if wrong or not entries:
        what = f"{named(wrong)} is named but not there" if wrong else "config.json names no code (auto_map)"
        return Check("entries", False, what, "save the model again")
    return Check("entries", True, f"{len(entries)} classes and pipelines are where the configurations say")
