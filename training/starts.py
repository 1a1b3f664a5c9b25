"""Where the weights of a fit come from: nothing, a pre-training on the study's own places, or a model that exists.

Pre-training is the first of two stages: masked image modelling, consistency between scales and the contrast of images
with reports, all without labels, so unlabelled places of the grid can be seen as well. It never sees a block that the
fit is scored on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainingArguments, set_seed

from modeling_agriclip import AgriClipConfig, AgriClipForPreTraining, AgriClipForSuitability, AgriClipTextConfig
from processing.errors import AgriClipError
from processing.study_parts import Training
from training.lora import HEADS, add_lora, merge, save_adapter
from training.objective import apply_objective, get_objective
from training.pretrained import prune_vocabulary, report_encoder, start_from_encoder
from training.progress import FitProgress, Report
from training.resume import Checkpointing, last_checkpoint
from training.trainer import AgriClipTrainer

# Inputs that pre-training has no use for.
LABELS = ("labels", "label_weights", "detection_labels")


def load_start(start: str, config: AgriClipConfig) -> AgriClipForSuitability:
    """A suitability model of `config` with the weights of the folder or Hub name `start`.

    Raises:
        AgriClipError: There is no model, or its weights do not fit the configuration.
    """
    try:
        model: AgriClipForSuitability = AgriClipForSuitability.from_pretrained(start, config=config)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AgriClipError(
            f"`training.start: {start}` is no model that this study can start from: {reason}"
        ) from error
    return model


def start_config(start: str) -> AgriClipConfig:
    """Configuration of the model `start`.

    Raises:
        AgriClipError: There is none.
    """
    try:
        return AgriClipConfig.from_pretrained(start)
    except (OSError, ValueError) as error:
        raise AgriClipError(f"`training.start: {start}` is neither a model folder nor a model on the Hub.") from error


@dataclass(frozen=True)
class ReportStart:
    """A sentence encoder, cut down to the words of a study's reports, for fits to start from.

    Attributes:
        config: Configuration of the report encoder.
        weights: Its weights by name.
        tokenizer: Its tokenizer.
    """

    config: AgriClipTextConfig
    weights: dict[str, Tensor]
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def of(cls, name: str, texts: Iterable[str]) -> ReportStart:
        """Find the encoder `name`, and keep the tokens that `texts` and spelling need.

        Raises:
            AgriClipError: There is none, or it is no encoder that we can use.
        """
        model, tokenizer = start_from_encoder(None, report_encoder(name))
        tokenizer, _ = prune_vocabulary(tokenizer, texts, model=model)
        return cls(model.config, model.state_dict(), tokenizer)

    def load_into(self, model: Any) -> None:
        """Give a fresh model's report encoder these weights."""
        model.text_model.load_state_dict(self.weights)


def tune(model: AgriClipForSuitability, training: Training) -> nn.Module:
    """Let a fit change all weights, adapters and heads, or heads only."""
    if training.tuning == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in HEADS)
    elif training.tuning == "lora":
        return add_lora(model, training.lora.recipe, rank=training.lora.rank, dora=training.lora.dora)
    return model


def save_tuned(model: Any, folder: Path) -> None:
    """Save a fitted model whole; adapters are saved beside it, then merged into it."""
    if hasattr(model, "peft_config"):
        save_adapter(model, folder / "adapter")
        model = merge(model)
    model.save_pretrained(folder)


def pretrain(
    config: AgriClipConfig,
    dataset: Any,
    arguments: TrainingArguments,
    seconds: float,
    report: Report,
    reader: ReportStart | None = None,
) -> Path:
    """Pre-train a fresh model, or go on with it, or find it done.

    Args:
        config: Configuration of the model that is to be fitted afterwards.
        dataset: Places, with noise; labels are not looked at.
        arguments: Of the fit; `output_dir` is where checkpoints lie.
        seconds: Time between two checkpoints.
        report: Is told how far it is.
        reader: Weights that the report encoder starts from.

    Returns:
        Folder of the pre-trained model.
    """
    checkpoints = Path(arguments.output_dir or ".")
    folder = checkpoints.parent / "pretrained"
    if (folder / "config.json").exists():
        return folder
    set_seed(arguments.seed)
    objective = replace(get_objective("pretraining"), masked_language=float(config.masked_language_weight))
    own = apply_objective(AgriClipConfig.from_dict(config.to_dict()), objective)
    model = AgriClipForPreTraining(own)
    if reader is not None:
        reader.load_into(model)
    trainer = AgriClipTrainer(model=model, args=arguments, train_dataset=dataset, data_collator=_without_labels)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(FitProgress(report))
    trainer.add_callback(Checkpointing(seconds))
    checkpoint = last_checkpoint(checkpoints) if checkpoints.exists() else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.is_world_process_zero():
        temporary = folder.with_name(".pretrained")
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(temporary)
        os.replace(temporary, folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def _without_labels(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key not in LABELS}


__all__ = ["ReportStart", "load_start", "pretrain", "save_tuned", "start_config", "tune"]
