"""`python -m spaces_demo.bundle FOLDER`: a folder that is a whole Space, ready to be uploaded as it is.

The Space's own files lie at its root, the packages that they import beside them, and the model in `agriclip/`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from processing.errors import AgriClipError

__all__ = ["bundle"]

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("spaces_demo", "evaluation", "mapping", "modeling_agriclip", "processing", "training")
_AT_ROOT = ("app.py", "README.md", "requirements.txt")


def bundle(folder: str | Path, model: str | Path | None = None) -> Path:
    """Copy the Space, its packages and a model into a new folder.

    Args:
        folder: Where it goes; must not exist, or be empty.
        model: Model folder; without one the Space takes AGRICLIP_MODEL.

    Raises:
        AgriClipError: The folder holds something, or there is no model or no example.
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise AgriClipError(f"'{target}' is not empty; name a new folder.")
    if model is not None and not (Path(model) / "config.json").is_file():
        raise AgriClipError(f"There is no model in '{model}'; give a folder that `agriclip fit` has written.")
    if not (_ROOT / "spaces_demo" / "example" / "summary.json").is_file():
        raise AgriClipError("There is no example yet; run `python -m spaces_demo.build_example STUDY_OUTPUT` first.")
    target.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    for package in _PACKAGES:
        shutil.copytree(_ROOT / package, target / package, ignore=ignored)
    for name in _AT_ROOT:
        shutil.copyfile(_ROOT / "spaces_demo" / name, target / name)
    shutil.copyfile(_ROOT / "LICENSE", target / "LICENSE")
    if model is not None:
        shutil.copytree(model, target / "agriclip", ignore=shutil.ignore_patterns("__pycache__", "heldout*"))
    return target


def main(
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Model folder to take along.")] = None,
) -> None:
    """Make a folder that is a whole Space."""
    typer.echo(f"Upload {bundle(folder, model)} as it is.")


if __name__ == "__main__":
    typer.run(main)
