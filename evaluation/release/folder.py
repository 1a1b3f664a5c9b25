"""The release folder: what lies in a fitted folder, put together anew so that it needs nothing of this project.

Three choices define this file. The fitted folder is never touched: weights are loaded, and saved beside the code that
loads them, so the code in the release is the code that was checked. Only what a user needs goes along; predictions of
labelled places, histories and checkpoints stay. And what is told of the machine, such as the path of a data folder,
is taken out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError, nearest
from processing.whole_files import write_whole

__all__ = ["AUTO_OF", "Release", "find_model", "kind_of", "open_release", "prepare_release"]

SUMMARY = "training_summary.json"
STUDY = "study.yaml"
CALIBRATION = "calibration.json"
LICENSE = "LICENSE"
MEMBERS = "members"
ADAPTER = "adapter_config.json"
#: Class that weights were saved of -> the automatic class of transformers that loads them whole.
AUTO_OF = {
    "AgriClipForSuitability": "AutoModelForSequenceClassification",
    "AgriClipForSemanticSegmentation": "AutoModelForSemanticSegmentation",
    "AgriClipForImageClassification": "AutoModelForImageClassification",
    "AgriClipForPreTraining": "AutoModelForPreTraining",
    "AgriClipModel": "AutoModel",
}
#: Log of the training of a released model, and the manifest of its data.
_RECORDS = ("training_log.jsonl", "data_manifest.json")
_PICTURES = ("present", "scenarios", "reliability")


@dataclass(frozen=True)
class Release:
    """A release folder.

    Attributes:
        path: The folder.
        kind: `model`, `ensemble` (members beside it) or `adapter` (PEFT weights on a base).
        architecture: Class of the weights; for an adapter, of its base, or empty where that is not at hand.
        tasks: Pipelines that the folder offers.
        members: Folders of the members, relative to `path`.
        base: Name on the Hub of an adapter's base.
        base_folder: Folder of the base on this machine, where there is one.
    """

    path: Path
    kind: str
    architecture: str
    tasks: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    base: str | None = None
    base_folder: Path | None = None

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None where there is none."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def find_model(folder: str | Path) -> Path:
    """The folder with weights: the one given, or `model` in it.

    Args:
        folder: Folder of a model, of an adapter, or the output folder of a fit.

    Raises:
        AgriClipError: There is neither.
    """
    given = Path(folder)
    if not given.is_dir():
        raise AgriClipError(f"The folder '{folder}' does not exist; give the folder that `agriclip fit` wrote.")
    for place in (given, given / "model"):
        if (place / "config.json").is_file() or _adapters(place):
            return place
    raise AgriClipError(f"There is neither a model nor an adapter in '{folder}'; give a folder with config.json.")


def kind_of(folder: Path) -> str:
    """`model`, `ensemble` or `adapter`."""
    if not (folder / "config.json").is_file():
        return "adapter"
    return "ensemble" if _members(folder) else "model"


def prepare_release(
    folder: str | Path,
    output: str | Path,
    *,
    channels: Sequence[Any] = (),
    gsd: float | None = None,
    base: str | None = None,
) -> Release:
    """Put a release folder together.

    Args:
        folder: A fitted folder, see :func:`find_model`.
        output: The release folder; an earlier release there is replaced at the end, anything else is refused.
        channels: `ChannelSpec`s of the images that the model was fitted to, with their mean and spread; images without
            any further word are then read so.
        gsd: Metres per pixel of these images, for files that do not say it.
        base: Name on the Hub of the base of an adapter, in place of the one in its configuration.

    Returns:
        The release, without its card.

    Raises:
        AgriClipError: There is no model, the output is no release, or an adapter's base has no name on the Hub.
    """
    source, target = find_model(folder), Path(output)
    _check_output(source, target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if kind_of(source) == "adapter":
            _put_adapter(source, temporary, base)
        else:
            _put_model(source, temporary, channels, gsd)
        _put_papers(source, temporary)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_release(target, _local_base(source))


def open_release(folder: str | Path, base_folder: Path | None = None) -> Release:
    """Describe a folder that :func:`prepare_release` made.

    Args:
        folder: The folder.
        base_folder: Where an adapter's base lies on this machine.
    """
    path = Path(folder)
    if kind_of(path) == "adapter":
        names = [_read(adapter / ADAPTER)["base_model_name_or_path"] for adapter in _adapters(path)]
        architecture = _architecture(base_folder) if base_folder is not None else ""
        return Release(path, "adapter", architecture, base=names[0], base_folder=base_folder)
    config = _read(path / "config.json")
    return Release(
        path,
        kind_of(path),
        _architecture(path),
        tasks=tuple(config.get("custom_pipelines", {})),
        members=tuple(member.relative_to(path).as_posix() for member in _members(path)),
    )


# -- models and ensembles ---------------------------------------------------------------------------------------------


def _put_model(source: Path, target: Path, channels: Sequence[Any], gsd: float | None) -> None:
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoProcessor
    from transformers.dynamic_module_utils import custom_object_save

    import modeling_agriclip
    from processing import pipelines_agriclip

    name = _architecture(source)
    if name not in AUTO_OF:
        raise AgriClipError(f"'{source}' holds '{name}', which is no model of AgriCLIP; {nearest(name, AUTO_OF)}")
    try:
        model = getattr(modeling_agriclip, name).from_pretrained(source)
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise AgriClipError(f"'{source}' cannot be loaded ({first}); fit the model again.") from error
    if not isinstance(processor, transformers.ProcessorMixin):
        raise AgriClipError(f"'{source}' has no processor; save the one that the model was fitted with beside it.")
    if channels:
        # Told in full: a channel of a study belongs to no sensor.
        processor.image_processor.sensor = "generic"
        processor.image_processor.channels = [spec.to_dict() for spec in channels]
        if gsd:
            processor.image_processor.gsd = float(gsd)
    _forget_paths(model.config)
    model.config.custom_pipelines = pipelines_agriclip.custom_pipelines(model.config)
    model.save_pretrained(target)
    _keep_all_heads(source, target, set(model.state_dict()))
    # That the Hub could not be asked while this was made is nobody else's concern.
    processor.tokenizer.init_kwargs.pop("local_files_only", None)
    processor.save_pretrained(target)
    custom_object_save(pipelines_agriclip.AgriClipSuitabilityPipeline, target)
    custom_object_save(modeling_agriclip.AgriClipEnsemble, target)
    if (source / CALIBRATION).is_file():
        shutil.copyfile(source / CALIBRATION, target / CALIBRATION)
    _put_members(source, target)


def _keep_all_heads(source: Path, target: Path, known: set[str]) -> None:
    """A folder may hold the heads of several classes: then its weights go out as they are, in the precision stored."""
    from safetensors import safe_open

    file = source / "model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, "pt") as weights:
        more = set(weights.keys()) - known
    if more:
        shutil.copyfile(file, target / file.name)
        config = _read(target / "config.json")
        config["dtype"] = _read(source / "config.json").get("dtype", config.get("dtype"))
        _write_json(target / "config.json", config)


def _put_members(source: Path, target: Path) -> None:
    """Weights, configuration and calibration of each member; the code of the folder above serves all."""
    from modeling_agriclip.ensemble_agriclip import _FORMAT, FILE_NAME

    names = []
    for member in _members(source):
        inside = target / MEMBERS / member.name
        inside.mkdir(parents=True)
        for file in member.iterdir():
            if file.suffix == ".safetensors" or file.name == "model.safetensors.index.json":
                shutil.copyfile(file, inside / file.name)
            elif file.name == CALIBRATION:
                shutil.copyfile(file, inside / file.name)
        config = _read(member / "config.json")
        config.pop("custom_pipelines", None)
        _write_json(inside / "config.json", _without_paths(config))
        names.append(f"{MEMBERS}/{member.name}")
    if names:
        _write_json(target / FILE_NAME, {"format": _FORMAT, "members": names})


# -- adapters ---------------------------------------------------------------------------------------------------------


def _put_adapter(source: Path, target: Path, base: str | None) -> None:
    for adapter in _adapters(source):
        inside = target / adapter.relative_to(source)
        inside.mkdir(parents=True, exist_ok=True)
        settings = _read(adapter / ADAPTER)
        settings["base_model_name_or_path"] = base or settings.get("base_model_name_or_path")
        named = settings["base_model_name_or_path"] or ""
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", named) or Path(named).exists():
            raise AgriClipError(
                f"The adapter in '{adapter}' names its base '{named}', which nobody else can load; publish the base "
                "and give its name: --base owner/name."
            )
        _write_json(inside / ADAPTER, _without_paths(settings))
        for file in adapter.glob("*.safetensors"):
            shutil.copyfile(file, inside / file.name)


def _local_base(source: Path) -> Path | None:
    """Folder of an adapter's base, where its configuration names one of this machine."""
    if kind_of(source) != "adapter":
        return None
    named = Path(_read(_adapters(source)[0] / ADAPTER).get("base_model_name_or_path") or "")
    return named if named.parts and (named / "config.json").is_file() else None


# -- papers -----------------------------------------------------------------------------------------------------------


def _put_papers(source: Path, target: Path) -> None:
    """Licence, study, summary of the fit, what a release was trained on and how that went, and pictures."""
    shutil.copyfile(_licence(), target / LICENSE)
    for name in _RECORDS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / SUMMARY).is_file():
        _write_json(target / SUMMARY, _without_paths(_read(source / SUMMARY)))
    if (source / STUDY).is_file():
        write_whole(target / STUDY, portable_study((source / STUDY).read_text(encoding="utf-8")))
    for name in _PICTURES:
        picture = source.parent / "pictures" / f"{name}.png"
        if picture.is_file():
            (target / "pictures").mkdir(exist_ok=True)
            shutil.copyfile(picture, target / "pictures" / picture.name)


def portable_study(text: str) -> str:
    """A study file without the place of its data on one machine: `data` becomes a variable of the environment."""
    import yaml

    content = yaml.safe_load(text)
    if isinstance(content, dict) and str(content.get("data", "")).startswith(("/", "~", "\\")):
        content["data"] = "${AGRICLIP_DATA:-data}"
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=119)
    return text


def _licence() -> Path:
    """The project's licence: of the installed package, or of the checkout."""
    from importlib.metadata import PackageNotFoundError, files

    checkout = Path(__file__).resolve().parents[2] / LICENSE
    if checkout.is_file():
        return checkout
    try:
        found = [file.locate() for file in files("agriclip") or () if file.name == LICENSE]
    except PackageNotFoundError:
        found = []
    if not found:
        raise AgriClipError("The licence of AgriCLIP is not installed with it; install the package again.")
    return Path(str(found[0]))


def _forget_paths(config: Any) -> None:
    """Configurations remember where they were loaded from; a release was loaded from nowhere."""
    for part in (config, *(getattr(config, name, None) for name in ("vision_config", "text_config", "fuser_config"))):
        for inner in (part, getattr(part, "encoder_config", None), getattr(part, "transformer_config", None)):
            if inner is not None and os.path.isabs(str(getattr(inner, "_name_or_path", "") or "")):
                inner._name_or_path = ""


def _without_paths(value: Any) -> Any:
    """JSON content with names in place of absolute paths."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and (os.path.isabs(value) or re.match(r"[A-Za-z]:[\\/]", value)):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


# -- helpers ----------------------------------------------------------------------------------------------------------


def _check_output(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve() or target.resolve() in source.resolve().parents:
        raise AgriClipError(f"The release cannot be written over the fitted folder '{source}'; give another --output.")
    if target.is_file():
        raise AgriClipError(f"'{target}' is a file; give a folder as --output.")
    if target.is_dir() and any(target.iterdir()) and not (target / LICENSE).is_file():
        raise AgriClipError(f"'{target}' holds something that is no release; give another --output.")


def _architecture(folder: Path) -> str:
    return str((_read(folder / "config.json").get("architectures") or ["AgriClipModel"])[0])


def _members(folder: Path) -> list[Path]:
    from modeling_agriclip.ensemble_agriclip import _find_members

    try:
        root, members = _find_members(folder)
    except ValueError as error:
        raise AgriClipError(str(error)) from error
    return [] if members == [root] else members


def _adapters(folder: Path) -> list[Path]:
    found = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    return [place for place in found if (place / ADAPTER).is_file()]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AgriClipError(f"'{path}' is not JSON; fit the model again.") from error
    if not isinstance(content, dict):
        raise AgriClipError(f"'{path}' holds no settings; fit the model again.")
    return content


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
