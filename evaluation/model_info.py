"""What a model folder holds: sizes part by part, operations for a declared input, inputs, and what it was trained on.

Three choices define this file. Nothing here knows the parts of the network by name: they are the model's own
submodules, so the table stays right when the network changes. Operations are counted by torch while the model runs on
an input that is stated beside the number, two per multiply-add, attention included (it is run by its plain matrix
products for the count). What the model was trained on is read from `training_summary.json` in its folder and never
guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError

__all__ = ["count_flops", "count_parameters", "info_tables", "load_any_model", "model_info", "require_model_folder"]

SUMMARY_FILE = "training_summary.json"


def require_model_folder(folder: str | Path) -> None:
    """Says at once, before anything heavy is imported, that a folder is no model.

    Args:
        folder: Local folder, or a name on the Hub (``owner/name``), which cannot be judged here.

    Raises:
        AgriClipError: If a local folder is missing or has no ``config.json``.
    """
    path = Path(folder)
    if not (path / "config.json").is_file() and (path.exists() or path.is_absolute() or len(path.parts) > 2):
        what = "has no config.json" if path.exists() else "does not exist"
        raise AgriClipError(f"The model folder {folder} {what}; give the folder that `agriclip fit` wrote.")


def load_any_model(folder: str | Path) -> Any:
    """Loads a model folder by the class that its configuration names.

    Args:
        folder: Local folder with ``config.json`` and weights, or a name on the Hub.

    Returns:
        The model, in evaluation mode.

    Raises:
        AgriClipError: If the folder is not a model.
    """
    require_model_folder(folder)
    import transformers

    import modeling_agriclip

    try:
        config = transformers.AutoConfig.from_pretrained(str(folder))
    except OSError as error:
        raise AgriClipError(
            f"{folder} is neither a model folder nor a model that can be reached: {_line(error)}"
        ) from None
    for name in getattr(config, "architectures", None) or []:
        for module in (modeling_agriclip, transformers):
            if hasattr(module, name):
                return getattr(module, name).from_pretrained(str(folder)).eval()
    return transformers.AutoModel.from_pretrained(str(folder)).eval()


def count_parameters(model: Any) -> dict[str, int]:
    """Parameters of each part; a tensor that two parts share is counted in the first.

    Args:
        model: A torch module. Parts are its children; a child that is a whole model is split into its own children.

    Returns:
        Part -> number of parameters, ``total`` last.
    """
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for name, part in _parts(model):
        fresh = {id(p): p.numel() for p in part.parameters() if id(p) not in seen}
        seen.update(fresh)
        if fresh:
            counts[name] = sum(fresh.values())
    own = {id(p): p.numel() for p in model.parameters() if id(p) not in seen}
    if own:
        counts["(between parts)"] = sum(own.values())
    counts["total"] = sum(counts.values())
    return counts


def count_flops(
    model: Any, *, height: int = 128, width: int = 128, channels: int = 6, dates: int = 1, tokens: int = 128
) -> dict[str, int]:
    """Operations of one forward pass on one image and one report; a multiply-add counts as two.

    Args:
        model: The model.
        height: Rows of the image.
        width: Columns of the image.
        channels: Channels of the image.
        dates: Dates of the image.
        tokens: Tokens of the report.

    Returns:
        Part -> operations, ``total`` last.
    """
    import inspect

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    wavelengths = torch.linspace(490, 2200, channels).round().long()
    zeros = torch.zeros_like(wavelengths)
    inputs = {
        "pixel_values": torch.zeros(1, dates, channels, height, width),
        "pixel_mask": torch.ones(1, dates, channels, height, width, dtype=torch.long),
        "channels": torch.stack([zeros + 1, wavelengths, zeros, zeros], dim=-1)[None],
        "gsd": torch.full((1,), 30.0),
        "dates": torch.zeros(1, dates, dtype=torch.long),
        "input_ids": torch.ones(1, tokens, dtype=torch.long),
        "attention_mask": torch.ones(1, tokens, dtype=torch.long),
        "numeric_values": torch.zeros(1, tokens),
    }
    accepted = inspect.signature(model.forward).parameters
    counter = FlopCounterMode(display=False)
    # The fused attention kernels of the CPU are opaque to the counter; its plain form has the same products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(**{name: value.to(model.device) for name, value in inputs.items() if name in accepted})
    by_module = counter.get_flop_counts()
    root = type(model).__name__
    counts = {}
    for name, _ in _parts(model):
        found = by_module.get(f"{root}.{name}") or by_module.get(name)
        if found:
            counts[name] = int(sum(found.values()))
    total = int(counter.get_total_flops())
    rest = total - sum(counts.values())
    if rest > 0:
        counts["(between parts)"] = rest
    counts["total"] = total
    return counts


def model_info(
    folder: str | Path,
    *,
    height: int = 128,
    width: int = 128,
    channels: int = 6,
    tokens: int = 128,
    flops: bool = True,
) -> dict[str, Any]:
    """Everything `agriclip info` prints.

    Args:
        folder: Model folder.
        height: Rows of the image that operations are counted for.
        width: Columns of it.
        channels: Channels of it.
        tokens: Tokens of the report.
        flops: Whether to count operations (a forward pass).

    Returns:
        ``folder, class, size_bytes, parameters, flops, flops_input, inputs, config, training``; ``training`` is None
        where the folder does not say.
    """
    model = load_any_model(folder)
    config = model.config
    path = Path(folder)
    weights = [file for file in path.glob("*.safetensors") if file.is_file()] if path.is_dir() else []
    info: dict[str, Any] = {
        "folder": str(folder),
        "class": type(model).__name__,
        "model_type": config.model_type,
        "size_bytes": sum(file.stat().st_size for file in weights),
        "parameters": count_parameters(model),
        "inputs": _inputs(model),
        "config": _shape_of(config),
        "training": _training(path),
        "flops": None,
        "flops_input": None,
    }
    if flops:
        scales = getattr(getattr(config, "vision_config", config), "num_scales", None)
        info["flops"] = count_flops(model, height=height, width=width, channels=channels, tokens=tokens)
        info["flops_input"] = {
            "image": [channels, height, width],
            "dates": 1,
            "scales": scales,
            "report_tokens": tokens,
            "convention": "Two operations per multiply-add, batch of one",
        }
    return info


def info_tables(info: Mapping[str, Any]) -> list[Any]:
    """The tables that `agriclip info` prints (``rich.table.Table``).

    Args:
        info: Result of :func:`model_info`.
    """
    from rich.table import Table

    flops = info["flops"]
    size = Table(title=f"{info['class']} in {info['folder']}", title_justify="left")
    size.add_column("part")
    size.add_column("parameters", justify="right")
    if flops:
        given = info["flops_input"]
        image = " x ".join(str(part) for part in given["image"])
        scales = f", {given['scales']} scales" if given["scales"] else ""
        size.caption = (
            f"One image of {image}{scales}, one report of {given['report_tokens']} tokens. {given['convention']}."
        )
        size.caption_justify = "left"
        size.add_column("GFLOP", justify="right")
    names = [name for name in info["parameters"] if name != "total"]
    names += [name for name in (flops or {}) if name not in info["parameters"]]
    for name in [*names, "total"]:
        row = [name, f"{info['parameters'].get(name, 0):,}"]
        if flops:
            row.append(f"{flops.get(name, 0) / 1e9:.3f}")
        size.add_row(*row, style="bold" if name == "total" else None, end_section=name == names[-1])

    inputs = Table(title="Inputs", title_justify="left", show_header=False)
    inputs.add_column("input")
    inputs.add_column("what")
    for name, what in info["inputs"].items():
        inputs.add_row(name, what)

    trained = Table(title="Trained on", title_justify="left", show_header=False)
    trained.add_column("what")
    trained.add_column("value")
    if info["training"] is None:
        trained.add_row("unknown", f"there is no {SUMMARY_FILE} in the folder")
    else:
        for name, value in info["training"].items():
            trained.add_row(name.replace("_", " "), value if isinstance(value, str) else json.dumps(value))
    return [size, inputs, trained]


#: What the model's inputs are, in one line each (shapes as in the processor's documentation).
_INPUTS = {
    "pixel_values": "(B, T, C, H, W) or (B, C, H, W), standardised pixels of any channels",
    "pixel_mask": "like pixel_values, 1 = valid, 0 = nodata, cloud, absent or padding",
    "channels": "(B, C, 4): kind, centre wavelength in nm, month, variable of each channel",
    "gsd": "(B,), ground sample distance in metres per pixel",
    "dates": "(B, T), day of year of each date, 0 = undated",
    "input_ids": "(B, L), tokens of the report; each number is one [NUM] token",
    "attention_mask": "(B, L), 1 = token, 0 = padding",
    "numeric_values": "(B, L), value at each [NUM] token in canonical units, NaN = missing",
}


def _inputs(model: Any) -> dict[str, str]:
    import inspect

    accepted = inspect.signature(model.forward).parameters
    return {name: what for name, what in _INPUTS.items() if name in accepted}


def _parts(model: Any) -> list[tuple[str, Any]]:
    """(dotted name, module): children, and the children of a child that is itself a whole pretrained model."""
    from transformers import PreTrainedModel

    parts: list[tuple[str, Any]] = []
    for name, child in model.named_children():
        whole = isinstance(child, PreTrainedModel) and sum(1 for _ in child.children()) > 1
        if whole:
            parts += [(f"{name}.{inner}", module) for inner, module in child.named_children()]
        else:
            parts.append((name, child))
    return parts


def _shape_of(config: Any) -> dict[str, Any]:
    """Numbers and words of the configuration that differ from the class's defaults."""
    return {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"}


def _training(folder: Path) -> dict[str, Any] | None:
    file = folder / SUMMARY_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise AgriClipError(f"{file} is not valid JSON (line {error.lineno}); fit the model again.") from None
    return content if isinstance(content, dict) else {"summary": content}


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
