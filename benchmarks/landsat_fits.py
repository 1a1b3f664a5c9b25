"""Pre-training on images alone, and three ways to fit what it learnt to labels, all with the stock Trainer."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.landsat_tiles import Scheme
from modeling_agriclip import AgriClipConfig
from modeling_agriclip.modeling_agriclip import (
    AgriClipForImageClassification,
    AgriClipForPreTraining,
    AgriClipForSemanticSegmentation,
)
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.tokenizer import build_tokenizer
from training.augmentation import Augmentation
from training.lora import trainable_share
from training.progress import EpochTeller
from training.tile_cache import TileCache
from training.tile_dataset import prepare_tiles
from training.tile_transform import TileTransform, collate_tiles

METHODS = ("full", "lora", "probe", "scratch")
# An adapter and a head that start at nothing bear, and need, larger steps than weights that know something already.
RATES = {"full": 5e-4, "lora": 4e-3, "probe": 5e-3, "scratch": 1e-3}
PROMPT = "a satellite image of {}"
ALIGNMENT = 0.3


@dataclass(frozen=True)
class Settings:
    """What the runs share.

    Attributes:
        out: Folder of everything that is written.
        size: Size of the model.
        crop: Edge in pixels of the training crops; whole tiles are predicted.
        pretrain_epochs: Passes over the training tiles without labels.
        epochs: Passes with labels.
        batch: Tiles a step.
        rank: Rank of the adapters.
        seed: Seed of weights, order and changes.
        resume: Keep finished pre-training, and go on with what was interrupted.
    """

    out: Path
    size: str = "tiny"
    crop: int = 64
    pretrain_epochs: int = 30
    epochs: int = 12
    batch: int = 16
    rank: int = 8
    seed: int = 0
    resume: bool = True


@dataclass
class Fit:
    """What one fit left.

    Attributes:
        predicted: Class of each test tile (N,) or pixel (N, H, W).
        truth: The same of the labels.
        trained_share: Parameters that were trained over all.
        seconds: Time of the fit, without the predictions.
    """

    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    trained_share: float
    seconds: float


def build_processor() -> AgriClipProcessor:
    """The processor of all runs."""
    return AgriClipProcessor(AgriClipImageProcessor(sensor="landsat8"), build_tokenizer())


def build_transform(settings: Settings, scheme: Scheme, **options: Any) -> TileTransform:
    """A transform on the shared cache of tiles."""
    processor = build_processor()
    cache = TileCache(settings.out / "tiles", processor.image_processor.to_dict())
    options = {"processor": processor.image_processor, "labels": None, **options}
    return TileTransform(cache=cache, codes=scheme.codes, unlisted=scheme.unlisted, seed=settings.seed, **options)


def pretrain(train: Dataset, settings: Settings, scheme: Scheme, fold: int) -> Path:
    """Hide half of each image and predict it, and tell its caption from those of others.

    The captions say which share of a training tile is covered by what: labels, but of the training blocks only.

    Args:
        train: Tiles outside the held-out blocks.
        settings: Sizes and epochs.
        scheme: Classes, which are not used but belong to the transform.
        fold: The fold that is held out, for the folder's name.

    Returns:
        Folder of the weights. It is kept, and so are checkpoints of each epoch until it is complete.
    """
    asked = {**asdict(settings), "tiles": list(train["key"]), "alignment": ALIGNMENT}
    for name in ("out", "epochs", "rank", "resume"):
        del asked[name]
    digest = hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=4).hexdigest()
    folder = settings.out / f"pretrained_{settings.size}_fold{fold}_{digest}"
    if settings.resume and (folder / "config.json").exists():
        return folder
    set_seed(settings.seed)
    processor = build_processor()
    config = AgriClipConfig.from_size(settings.size, vocab_size=len(processor.tokenizer), alignment_weight=ALIGNMENT)
    config.text_config.number_token_id = processor.num_token_id
    model = AgriClipForPreTraining(config)
    changes = Augmentation.none(crop=settings.crop, flip=0.5, rotate=0.75, noise=0.5)
    transform = build_transform(settings, scheme, processor=processor, augmentation=changes)
    run = folder.with_suffix(".run")
    trainer = make_trainer(model, train, transform, settings, 1e-3, settings.pretrain_epochs, run, keep=True)
    last = get_last_checkpoint(str(run)) if settings.resume and run.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    part = folder.with_suffix(".partial")
    model.save_pretrained(part)
    (part / "losses.json").write_text(json.dumps(losses))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    shutil.rmtree(run, ignore_errors=True)
    return folder


def fit_classifier(
    method: str, pretrained: Path, train: Dataset, test: Dataset, settings: Settings, scheme: Scheme
) -> Fit:
    """Fit the dominant class of a tile, and predict that of the test tiles."""
    set_seed(settings.seed)
    options: dict[str, Any] = {"num_labels": len(scheme.names)}
    if method == "scratch":
        model: Any = AgriClipForImageClassification(AgriClipConfig.from_pretrained(pretrained, **options))
    else:
        model = AgriClipForImageClassification.from_pretrained(pretrained, **options)
    model = _trained_parts(model, method, settings, "classifier")
    # A crop has a dominant class of its own, which need not be that of its tile.
    changes = Augmentation.none(crop=settings.crop, flip=0.5, rotate=0.75, noise=0.5)
    learn = build_transform(settings, scheme, labels="dominant", augmentation=changes)
    return _fit(model, method, (train, learn), (test, build_transform(settings, scheme, labels="label")), settings)


def fit_segmenter(
    method: str, pretrained: Path, train: Dataset, test: Dataset, settings: Settings, scheme: Scheme
) -> Fit:
    """Fit the class of every pixel, prompted by the names of the classes, and predict that of the test tiles."""
    set_seed(settings.seed)
    if method == "scratch":
        model: Any = AgriClipForSemanticSegmentation(AgriClipConfig.from_pretrained(pretrained))
    else:
        model = AgriClipForSemanticSegmentation.from_pretrained(pretrained)
    model = _trained_parts(model, method, settings, "segmentation_head")
    changes = Augmentation.none(crop=settings.crop, flip=0.5, rotate=0.75, noise=0.5)
    learn = build_transform(settings, scheme, labels="mask", augmentation=changes)
    prompts = dict(build_processor().class_prompts(scheme.names, PROMPT))
    tested = (test, build_transform(settings, scheme, labels="mask"))
    return _fit(model, method, (train, learn), tested, settings, prompts)


def make_trainer(
    model: nn.Module,
    train: Dataset,
    transform: TileTransform,
    settings: Settings,
    rate: float,
    epochs: int,
    folder: Path,
    shared: dict[str, Tensor] | None = None,
    keep: bool = False,
) -> Trainer:
    """The stock Trainer on a table of tiles; with `keep` it leaves a checkpoint an epoch."""
    steps = -(-len(train) // settings.batch) * epochs
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        learning_rate=rate,
        weight_decay=0.05,
        num_train_epochs=epochs,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        max_grad_norm=1.0,
        seed=settings.seed,
        save_strategy="epoch" if keep else "no",
        save_total_limit=1,
        logging_strategy="epoch",
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=prepare_tiles(train, transform),
        data_collator=partial(collate_tiles, shared=shared),
        preprocess_logits_for_metrics=_classes,
        callbacks=[EpochTeller(transform)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _fit(
    model: nn.Module,
    method: str,
    train: tuple[Dataset, TileTransform],
    test: tuple[Dataset, TileTransform],
    settings: Settings,
    shared: dict[str, Tensor] | None = None,
) -> Fit:
    folder = settings.out / f"{method}.run"
    trainer = make_trainer(model, *train, settings, RATES[method], settings.epochs, folder, shared)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    found = trainer.predict(prepare_tiles(*test))
    shutil.rmtree(folder, ignore_errors=True)
    return Fit(np.asarray(found.predictions), np.asarray(found.label_ids), trainable_share(model), seconds)


def _trained_parts(model: Any, method: str, settings: Settings, head: str) -> Any:
    """Freeze what the method does not train: all but the adapters and the fresh head, or all but the head."""
    if method == "lora":
        from training.lora import add_lora

        model = add_lora(model, "vision", rank=settings.rank, heads=[head])
    elif method == "probe":
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(head in name.split("."))
    return model


def _classes(logits: Any, labels: Tensor) -> Tensor:
    """Scores (B, K, ...) to classes (B, ...), batch by batch: the scores of all pixels would not fit."""
    scores: Tensor = logits[0] if isinstance(logits, tuple) else logits
    return scores.argmax(dim=1)


__all__ = ["METHODS", "Fit", "Settings", "build_transform", "fit_classifier", "fit_segmenter", "pretrain"]
