"""`python -m spaces_demo.bundle FOLDER`: a folder that is a whole Space, ready to be uploaded as it is.

The Space's own files lie at its root, the packages that they import beside them, and a model in `agriclip/`. It opens
on the example of a real study where one was built, else on the invented landscape, which brings the model of its maps.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from processing.errors import AgriClipError
from spaces_demo.example import Example, default_example

__all__ = ["bundle"]

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("spaces_demo", "evaluation", "mapping", "modeling_agriclip", "processing", "training")
_AT_ROOT = ("app.py", "README.md", "requirements.txt")


def bundle(folder: str | Path, model: str | Path | None = None) -> Path:
    """Copy the Space, its packages and a model into a new folder.

    Args:
        folder: Where it goes; must not exist, or be empty.
        model: Model folder; without one the Space takes that of its example, and AGRICLIP_MODEL.

    Raises:
        AgriClipError: The folder holds something, or there is no model or no example.
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise AgriClipError(f"'{target}' is not empty; name a new folder.")
    if model is not None and not (Path(model) / "config.json").is_file():
        raise AgriClipError(f"There is no model in '{model}'; give a folder that `agriclip fit` has written.")
    shown = Example(default_example()).folder
    target.mkdir(parents=True, exist_ok=True)
    for package in _PACKAGES:
        ignored = ["__pycache__", "*.pyc", ".*"]
        if package == "spaces_demo":
            ignored += [other for other in ("example", "virtual") if other != shown.name]
        shutil.copytree(_ROOT / package, target / package, ignore=shutil.ignore_patterns(*ignored))
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
    made, shown = bundle(folder, model), Example(default_example())
    what = "the invented landscape" if shown.invented else "the study"
    typer.echo(f"{made} opens on {what} of spaces_demo/{shown.folder.name}. Upload it as it is.")


if __name__ == "__main__":
    typer.run(main)
