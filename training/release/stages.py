"""The stages before and after the training of everything: reading alone, pixels alone, seasons alone.

Each trains one part and leaves the rest as it is; each of its steps draws from numbers of its own, so that nothing is
drawn from the same seed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from training.release.joint import JointModel, total
from training.release.phrases import PhraseBatches
from training.release.series import SeriesBatches
from training.release.tiles import TileBatches

__all__ = ["Settings", "learn_pixels", "learn_seasons", "learn_to_read", "progress_bar", "rate_at"]

# Where the numbers of each stage's batches begin, far above those of the training of everything.
_READING, _SEASONS, _PIXELS = 1 << 40, 1 << 41, 1 << 42


@dataclass(frozen=True)
class Settings:
    """What a run depends on, beside its data.

    Attributes:
        epochs: Passes over the tiles.
        tiles: Tiles a step, over all processes.
        sites: Counties in every second step.
        series: Series in every other second step.
        phrases: Phrases in that step.
        reading_steps: Steps on phrases alone before all else.
        pixel_steps: Steps on tiles alone after all else, of the pixels' own path only.
        season_steps: Steps on series alone after that, of the dates' encoder only.
        learning_rate: Its height; it rises for a twentieth of the run and falls to 0 by a cosine.
        pixel_rate: How much faster the convolutions of the pixels' own path learn.
        text_rate: The same of the report encoder after it has learned to read: faster, it forgets what few pixels ask.
        weight_decay: Of all weights.
        average: Share of the old in the running mean of the weights, which is what is saved.
        mask_every: Every so manieth step also hides patches and predicts them.
        hold_out: Fold of the tiles' blocks that is not trained on.
        seed: Seed of weights and draws.
    """

    epochs: int = 36
    tiles: int = 8
    sites: int = 32
    series: int = 24
    phrases: int = 32
    reading_steps: int = 3000
    pixel_steps: int = 1200
    season_steps: int = 1500
    learning_rate: float = 1e-3
    pixel_rate: float = 2.0
    text_rate: float = 0.3
    weight_decay: float = 0.05
    average: float = 0.998
    mask_every: int = 4
    hold_out: int | None = 0
    seed: int = 0


def learn_to_read(model: JointModel, phrases: PhraseBatches, settings: Settings, quiet: bool = True) -> dict[str, Any]:
    """Train the report encoder on phrases alone.

    Returns:
        The last loss, and the share of held-out phrases that it then takes for what they are, for the log.
    """
    own = [*model.suitability.text_model.parameters(), *model.suitability.text_projection.parameters()]
    losses = _descend(
        "Reading",
        lambda step: model("phrases", phrases(_READING + step))["phrases"],
        [*own, *model.phrase_task.parameters()],
        (settings.learning_rate, settings.weight_decay, settings.reading_steps),
        quiet,
    )
    asked = phrases.held_out()
    with torch.no_grad():
        found = model.phrase_task.logits(model.read(asked)).argmax(dim=1)
    right = float((found == asked["classes"]).float().mean())
    return {"reading": {"loss": round(losses[-1], 4) if losses else None, "held_out_phrases": round(right, 4)}}


def learn_pixels(model: JointModel, tiles: TileBatches, settings: Settings, quiet: bool = True) -> dict[str, Any]:
    """Train the head of segmentation alone: words and towers are learned by then, and no longer move its target.

    Returns:
        Mean loss of the first and of the last hundred steps, for the log.
    """
    own = list(model.segmentation_head.parameters())

    def loss(step: int) -> Tensor:
        with torch.autocast(own[0].device.type, dtype=torch.bfloat16):
            return model.segment(tiles(_PIXELS + step))

    rate = settings.learning_rate * settings.pixel_rate
    return {"pixels": _ends(_descend("Pixels", loss, own, (rate, settings.weight_decay, settings.pixel_steps), quiet))}


def learn_seasons(model: JointModel, series: SeriesBatches, settings: Settings, quiet: bool = True) -> dict[str, Any]:
    """Train the dates' encoder alone on series; images of one date pass it by, so nothing else changes.

    Returns:
        Mean loss of the first and of the last hundred steps, for the log.
    """
    losses = _descend(
        "Seasons",
        lambda step: total(model("series", series(_SEASONS + step))),
        [
            *model.suitability.vision_model.temporal.parameters(),
            *model.season_head.parameters(),
            *model.suitability.detection_head.parameters(),
        ],
        (settings.learning_rate, settings.weight_decay, settings.season_steps),
        quiet,
    )
    # Only these were stepped, but all were given gradients.
    model.zero_grad(set_to_none=True)
    return {"seasons": _ends(losses)}


def _descend(
    title: str,
    loss_of: Callable[[int], Tensor],
    weights: Sequence[Tensor],
    pace: tuple[float, float, int],
    quiet: bool,
) -> list[float]:
    """AdamW on some weights; `pace` is the height of the learning rate, the decay and the steps. The losses."""
    height, decay, steps = pace
    optimizer = torch.optim.AdamW(weights, lr=height, weight_decay=decay, fused=True)
    losses: list[float] = []
    with progress_bar(quiet) as bar:
        for step in bar.track(range(steps), description=title):
            for group in optimizer.param_groups:
                group["lr"] = height * rate_at(step, steps)
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def _ends(losses: list[float]) -> dict[str, float | None]:
    first, last = (round(float(np.mean(part)), 5) if part else None for part in (losses[:100], losses[-100:]))
    return {"first": first, "last": last}


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate at a step: up in a line, down by a cosine."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def progress_bar(quiet: bool) -> Progress:
    """A bar with a title, counts and the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet)
