"""Fine-tuning a few numbers instead of all: LoRA and DoRA through PEFT, by recipe.

A recipe names the part of the network that is adapted, not its layers; the layers are found in the model at hand, so
any report encoder will do. Small task heads are trained whole and travel with the adapter. Several adapters, one a
region for instance, live on one base and are switched at run time. PEFT is imported when it is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from processing.errors import AgriClipError, nearest

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

# Linear layers of each part of the network, as patterns of their full names. Of the vision tower also those that weigh
# the channels and merge cells: a new sensor or crop differs first in its spectrum.
RECIPES = {
    "report": r"text_model\..+",
    "fusion": r"fuser\..+",
    "vision": (r"vision_model\..+\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2|to_weights|to_token|reduction|update)"),
    "all": "",
}
# Modules that answer a task: a fresh one must be trained, whatever the adapter does.
HEADS = ("suitability_head", "image_effect_head", "detection_head", "segmentation_head", "classifier")
# The way into the shared space. It is trained where it is the answer itself, in a model without any of the above.
PROJECTIONS = ("visual_projection", "text_projection", "logit_scale", "logit_bias")
# A head goes along with the adapter while it holds no more than this share of the model's parameters: that for pixels
# holds 8 % of a `small` model and a quarter of a `tiny` one.
SMALL_HEAD = 0.3


def lora_config(
    model: PreTrainedModel | PeftModel,
    recipe: str | Sequence[str],
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    dora: bool = False,
    heads: Sequence[str] | None = None,
) -> LoraConfig:
    """Configuration of an adapter, for PEFT.

    LoRA (Hu et al. 2022) adds `alpha / rank * B A` to a weight, with `B` starting at 0; DoRA (Liu et al. 2024) also
    learns the length of each row of the sum.

    Args:
        model: Any AgriCLIP model, with adapters or without.
        recipe: `report`, `fusion`, `vision` or `all`; or several of them.
        rank: Rows of `A`, from 1.
        alpha: Scale of the adapter times `rank`; twice the rank if None.
        dropout: Share of an adapted layer's inputs that the adapter does not see in training, in [0, 1).
        dora: DoRA in place of LoRA. Layers with a row of zeros stay out of it, as their rows have no direction.
        heads: Task modules to train whole and save with the adapter. If None the model's heads, or its projections
            where it has no head, as far as each holds at most a tenth of its parameters; a larger one must be named.

    Raises:
        AgriClipError: The recipe or a head is unknown or not of this model, or a number is out of range.
    """
    if rank < 1 or not 0 <= dropout < 1 or (alpha is not None and not 0 < alpha < math.inf):
        raise AgriClipError(
            f"An adapter needs rank >= 1, alpha > 0 and dropout in [0, 1), got {rank}, {alpha} and {dropout}."
        )
    linear = _linear_layers(model)
    chosen = _chosen_layers(model, linear, [recipe] if isinstance(recipe, str) else list(recipe))
    flat = [name for name in chosen if dora and (linear[name].weight == 0).all(dim=1).any()]
    if len(flat) == len(chosen):
        raise AgriClipError("Every layer of the recipe has a row of zeros, which has no direction for DoRA; use LoRA.")
    # One pattern for a layer of all depths: short enough to be read in adapter_config.json.
    patterns = sorted({re.sub(r"\\\.\d+", r"\\.\\d+", re.escape(name)) for name in chosen})
    return _peft().LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        use_dora=dora,
        target_modules="|".join(patterns),
        exclude_modules=flat or None,
        modules_to_save=_heads(model, heads) or None,
    )


def add_lora(
    model: PreTrainedModel | PeftModel,
    recipe: str | Sequence[str],
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    dora: bool = False,
    heads: Sequence[str] | None = None,
    adapter_name: str = "default",
) -> PeftModel:
    """Put a fresh adapter on a model, beside those it has, and make it the one that is used and trained.

    A fresh adapter changes no output. The model is changed in place: all but the adapter and its heads is frozen.

    Args:
        model: Any AgriCLIP model, with adapters or without.
        recipe: See [`lora_config`], as for the next five.
        rank: Rows of the adapter's matrices.
        alpha: Scale times `rank`.
        dropout: Dropout of the adapter's inputs.
        dora: DoRA in place of LoRA.
        heads: Task modules to train whole.
        adapter_name: Name to switch to it by.

    Raises:
        AgriClipError: As for [`lora_config`]; or the name is taken or cannot be one.
    """
    peft = _peft()
    _check_new_name(model, adapter_name)
    config = lora_config(model, recipe, rank, alpha, dropout, dora, heads)
    if not isinstance(model, peft.PeftModel):
        return peft.get_peft_model(model, config, adapter_name=adapter_name)
    model.add_adapter(adapter_name, config)
    model.set_adapter(adapter_name)
    return model


def trainable_share(model: nn.Module) -> float:
    """Parameters that are trained over all parameters, adapters included."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained) / max(1, sum(size for size, _ in sizes))


def save_adapter(model: PeftModel, folder: str | Path, name: str | None = None) -> Path:
    """Save one adapter with its heads, and nothing of the base.

    Args:
        model: What [`add_lora`] returned.
        folder: Where to; `default` lies in it, any other in a folder of its name in it, as PEFT has it.
        name: The adapter; the active one if None.

    Returns:
        The folder that holds `adapter_config.json`.
    """
    name = _check_known_name(model, model.active_adapter if name is None else name)
    model.save_pretrained(str(folder), selected_adapters=[name])
    return Path(folder) if name == "default" else Path(folder) / name


def load_adapter(
    model: PreTrainedModel | PeftModel, folder: str | Path, name: str = "default", trainable: bool = False
) -> PeftModel:
    """Load an adapter onto a model, beside those it has, and switch to it.

    Args:
        model: The base that the adapter was fitted on, with adapters or without.
        folder: What [`save_adapter`] wrote to or returned, or the name of a repository on the Hub.
        name: Name to switch to it by.
        trainable: Train it further.

    Raises:
        AgriClipError: There is no adapter there, it fits another network, or the name is taken.
    """
    peft = _peft()
    _check_new_name(model, name)
    own = Path(folder) / name
    source = str(own if (own / "adapter_config.json").is_file() else folder)
    try:
        if not isinstance(model, peft.PeftModel):
            model = peft.PeftModel.from_pretrained(model, source, adapter_name=name, is_trainable=trainable)
        else:
            model.load_adapter(source, adapter_name=name, is_trainable=trainable)
    except RuntimeError as error:
        raise AgriClipError(f"The adapter in '{folder}' was fitted on a network of other widths.") from error
    except (OSError, ValueError) as error:
        raise AgriClipError(f"There is no adapter in '{folder}' that fits this model.") from error
    return switch_adapter(model, name, trainable)


def switch_adapter(model: PeftModel, name: str, trainable: bool = False) -> PeftModel:
    """Use another adapter of the model from now on; switching back gives back the very same outputs.

    To the last bit while both are frozen: torch multiplies by a weight that may learn in another order.

    Args:
        model: A model with adapters.
        name: One of them.
        trainable: Train it too; else nothing of the model is trained.
    """
    model.set_adapter(_check_known_name(model, name), inference_mode=not trainable)
    return model


def merge(model: PeftModel) -> PreTrainedModel:
    """The plain model with the active adapter added to its weights; it is saved and loaded like any other.

    The adapters are gone from `model` afterwards.

    Raises:
        AgriClipError: The adapter holds NaN or infinite weights.
    """
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise AgriClipError(f"The adapter '{model.active_adapter}' is broken: its weights are not finite.") from error


def push(model: PeftModel, repo_id: str, **options: Any) -> Any:
    """Send all adapters of a model to the Hub; `options` are those of PEFT's `push_to_hub`, `private` for instance."""
    return model.push_to_hub(repo_id, **options)


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise AgriClipError('Adapters need PEFT; install it with `pip install "agriclip[train]"`.') from error
    return peft


def _base(model: Any) -> PreTrainedModel:
    """The model under its adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Linear layers by the names that they have without adapters."""
    found, skipped = {}, []
    for name, module in _base(model).named_modules():
        # torch's own attention reads the weight of its output layer past whatever wraps that layer.
        if isinstance(module, nn.MultiheadAttention):
            skipped.append(f"{name}.")
        elif isinstance(module, nn.Linear) and ".lora_" not in name and not name.startswith(tuple(skipped)):
            found[name.removesuffix(".base_layer")] = module
    return found


def _chosen_layers(model: Any, names: Iterable[str], recipes: list[str]) -> list[str]:
    """Names of the layers that the recipes adapt; each recipe must find some."""
    found = {}
    for part, pattern in RECIPES.items():
        if pattern:
            found[part] = [name for name in names if re.fullmatch(pattern, name)]
    found["all"] = [name for part in found.values() for name in part]
    if not recipes:
        raise AgriClipError(f"An adapter needs a recipe; use one of: {', '.join(RECIPES)}.")
    for recipe in recipes:
        if recipe not in RECIPES:
            raise AgriClipError(f"There is no recipe '{recipe}'; {nearest(recipe, RECIPES)}")
        if not found[recipe]:
            here = ", ".join(part for part, layers in found.items() if layers)
            raise AgriClipError(
                f"{type(_base(model)).__name__} has nothing that '{recipe}' could adapt; use one of: {here}."
            )
    return sorted({name for recipe in recipes for name in found[recipe]})


def _heads(model: Any, heads: Sequence[str] | None) -> list[str]:
    """Names of the task modules to train whole."""
    base = _base(model)
    children = [name for name, _ in base.named_children()]
    present = [name for name in children if name in HEADS + PROJECTIONS]
    if heads is not None:
        for name in heads:
            if name not in present:
                raise AgriClipError(f"{type(base).__name__} has no head '{name}'; {nearest(name, present)}")
        return list(heads)
    usual = [name for name in present if name in HEADS] or present
    total = sum(parameter.numel() for name, parameter in base.named_parameters() if not _is_added(name))
    sizes = {
        head: sum(p.numel() for name, p in base.get_submodule(head).named_parameters() if not _is_added(name))
        for head in usual
    }
    return [head for head, size in sizes.items() if size <= SMALL_HEAD * total]


def _is_added(name: str) -> bool:
    """Whether a parameter came with an adapter."""
    return ".lora_" in name or "modules_to_save." in name


def _check_new_name(model: Any, name: str) -> None:
    if not name or "." in name or "/" in name or hasattr(nn.ModuleDict(), name):
        raise AgriClipError(f"An adapter cannot be called '{name}'; use letters, digits and underscores.")
    if name in getattr(model, "peft_config", {}):
        raise AgriClipError(f"The model has an adapter '{name}' already; choose another name.")


def _check_known_name(model: PeftModel, name: str) -> str:
    if name not in model.peft_config:
        raise AgriClipError(f"The model has no adapter '{name}'; {nearest(name, model.peft_config)}")
    return name


__all__ = [
    "HEADS",
    "PROJECTIONS",
    "RECIPES",
    "add_lora",
    "load_adapter",
    "lora_config",
    "merge",
    "push",
    "save_adapter",
    "switch_adapter",
    "trainable_share",
]
