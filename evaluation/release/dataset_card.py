"""The card of a study, as a data set on the Hub: the study file, where its data come from, and under which terms.

Data are never copied: many of the sources forbid it, and each has an address of its own. What is published is the
study file, from which everything else follows, without the path of anybody's data folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.release.card import _example_report, _label_unit, _variables, environment
from evaluation.release.folder import LICENSE, STUDY, _licence, portable_study
from evaluation.release.sources import Source, sources_of, study_files
from processing.whole_files import write_whole

__all__ = ["dataset_repo", "write_dataset_folder"]


def dataset_repo(owner: str, study: Any) -> str:
    """Name of a study's data set on the Hub."""
    return f"{owner}/{study.name.replace('_', '-')}"


def write_dataset_folder(
    study: Any, study_file: str | Path, output: str | Path, repo: str, sources: Sequence[Source] = ()
) -> Path:
    """Write `study.yaml`, `README.md` and the licence of the study file.

    Args:
        study: The study, loaded from `study_file`; its data need not be there.
        study_file: The YAML file.
        output: Folder to write to.
        repo: Name on the Hub, `owner/name`.
        sources: Sources that come before the known ones.

    Returns:
        The folder.
    """
    folder = Path(output)
    write_whole(folder / STUDY, portable_study(Path(study_file).read_text(encoding="utf-8")))
    write_whole(folder / LICENSE, _licence().read_text(encoding="utf-8"))
    text = environment().get_template("dataset_card.md.j2").render(**_content(study, repo, sources))
    write_whole(folder / "README.md", text)
    return folder


def _content(study: Any, repo: str, sources: Sequence[Source]) -> dict[str, Any]:
    found = sources_of(study_files(study), sources)
    labels = study.labels
    decimals = {variable.name: variable.decimals for variable in study.variables}
    return {
        "metadata": _metadata(study),
        "title": study.title or study.name,
        "description": study.description or "A study of where a crop can grow.",
        "repo": repo,
        "name": study.name,
        "grid": _grid(study.grid),
        "labels": "none" if labels is None else f"`{Path(str(labels.table)).name}`, {labels.kind.replace('_', ' ')}",
        "variables": [{**row, "decimals": decimals[row["name"]]} for row in _variables(study)],
        "channels": [channel.label for image in study.imagery for channel in image.channels],
        "splits": "none"
        if study.splits is None
        else f"{study.splits.kind.replace('_', ' ')}, {study.splits.folds} folds",
        "blocked": study.splits is not None and "block" in study.splits.kind,
        "scenarios": [scenario.title or scenario.name for scenario in study.scenarios],
        "fingerprint": study.fingerprint(),
        "report": _example_report(study),
        "sources": found,
        "label_unit": _label_unit(study).removeprefix("a "),
    }


def _grid(grid: Any) -> str:
    if getattr(grid, "like", None):
        return f"that of `{Path(str(grid.like)).name}`"
    west, south, east, north = grid.bounds
    return f"{grid.resolution:g} ({grid.crs}), from {west:g}, {south:g} to {east:g}, {north:g}"


def _metadata(study: Any) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        language="en",
        license="apache-2.0",
        pretty_name=study.title or study.name,
        task_categories=["tabular-classification", "image-classification"],
        tags=["agriclip", "agriculture", "climate", "geospatial", "crop-suitability"],
    )
    return data.to_yaml().strip()
